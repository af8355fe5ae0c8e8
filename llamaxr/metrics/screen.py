"""An evaluation for a terminal: one screen for a person, or the complete tables.

In: eval.py's results. Out: text. The screen has at most LINES lines of WIDTH columns: what was evaluated, the
verdict in words, and the scores that the field reads, each for the system and its floors. A floor's score is
followed by what the paired interval says of the system: nothing where it is better, "?" where it cannot be
told, "!" where it is worse. What is undefined is empty.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap

from . import agreement, table
from .verdicts import BETTER, CANNOT_TELL, verdict

LINES, WIDTH = 30, 100
HEAD, CELL = 12, 8  # columns of a system's name and of a score
COLUMNS = (
    ("llama_xr", "bleu_4", "BLEU-4"), ("llama_xr", "rouge_l", "ROUGE-L"), ("llama_xr", "meteor", "METEOR"),
    ("coco", "bleu_4", "BLEU-4"), ("coco", "rouge_l", "ROUGE-L"), ("coco", "cider", "CIDEr"),
    ("findings", "micro_f1", "micro"), ("findings", "macro_f1", "macro"),
    ("classes", "critical_micro_recall", "critic."), ("findings", "sides_right", "sides"),
)  # fmt: skip
CONVENTIONS = {"llama_xr": "LLaMA-XR's overlap", "coco": "COCO's overlap", "findings": "findings: F1, recall"}
OF_ALL = ("frequent", "template", "outline")  # rows for all studies alone: two such groups would not fit
SYSTEMS = ("system", "against", "swapped", "nearest", "constant", *OF_ALL)
MARKS = {BETTER: " ", CANNOT_TELL: "?"}  # and "!" for worse
COLOURS = {"?": "33", "!": "31"}
LEGEND = "The system beside each score: better if unmarked; ? cannot be told; ! worse (95%, paired)."


def screen(results: Mapping, colour: bool = False) -> str:
    """The one screen, without its last line: where the rest is."""
    settings, groups = results["settings"], results["groups"]
    lines = [*wrap(_title(settings, groups), WIDTH)[:2], ""]
    columns = [c for c in COLUMNS if any(_value(part, "system", c) for part in groups.values())]
    extra = groups["all"]["writers"]["system"].get("extra", {})
    columns = (columns + [("extra", name, name[: CELL - 1]) for name in extra])[: (WIDTH - HEAD) // CELL]
    title, lines = lines, ["", _conventions(columns)]
    for group in ("all", "abnormal"):
        if group in groups:
            head = f"{group} {groups[group]['studies']}"
            head = f"{head if len(head) <= HEAD else group:{HEAD}s}"
            lines.append(head + "".join(f"{title:>{CELL - 1}s} " for *_, title in columns))
            names = [name for name in SYSTEMS if name in groups[group]["writers"]]
            names = [name for name in names if group == "all" or name not in OF_ALL]
            lines += [_row(groups[group], name, columns, colour) for name in names]
    words = _words(results["in_words"], LINES - 2 - len(title) - len(lines))
    return "\n".join(line.rstrip() for line in [*title, *words, *lines, LEGEND])


def _title(settings: Mapping, groups: Mapping) -> str:
    what = settings.get("run") or settings["score"]
    of_run = ", {checkpoint}, on {split} of {data}"
    where = of_run.format(**settings) if "run" in settings else ""
    where += " (drawn films, no radiographs)" if settings.get("drawn") else ""
    against = f" against {settings['against']}" if settings.get("against") else ""
    n = {name: part["studies"] for name, part in groups.items()}
    notes = [f"{n['all']} studies, {n.get('abnormal', 0)} abnormal"]
    if settings.get("unlike_training") is not None:
        notes.append(f"{settings['unlike_training']:.1%} of the images unlike training")
    if settings.get("labels"):
        notes.append(f"findings of {settings['labels']}")
    leaked = "LEAKED (vision has seen these patients): " if settings.get("leaked") else ""
    return f"{leaked}{what}{where}{against}: {'; '.join(notes)}"


def _words(sentences: Sequence[str], max_lines: int) -> list[str]:
    """As many sentences as there is room for, as lines; the last line says if there are more."""
    lines: list[str] = []
    for i, sentence in enumerate(sentences):
        more = wrap(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ")
        if len(lines) + len(more) + (i < len(sentences) - 1) > max_lines:
            return [*lines, f"- ... and {len(sentences) - i} more: --full"]
        lines += more
    return lines


def _conventions(columns: Sequence[tuple[str, str, str]]) -> str:
    line = " " * HEAD
    for block, title in CONVENTIONS.items():
        n = sum(b == block or (block == "findings" and b == "classes") for b, *_ in columns)
        line += f"{'-- ' + title + ' ' if n else '':-<{max(n * CELL - 1, 0)}s} " if n else ""
    return line


def _row(part: Mapping, name: str, columns: Sequence[tuple[str, str, str]], colour: bool) -> str:
    line = f"{name:{HEAD}s}"
    for column in columns:
        value = _value(part, name, column)
        gaps = part["differences"].get(name, {}).get(column[0], {})
        mark = MARKS.get(verdict(gaps[column[1]]), "!") if value and column[1] in gaps else " "
        text = f"{value[0]:.3f}" if value else ""
        cell = f"{text:>{CELL - 1}s}{mark if value else ' '}"
        line += f"\033[{COLOURS[mark]}m{cell}\033[0m" if colour and mark in COLOURS else cell
    return line


def _value(part: Mapping, name: str, column: tuple[str, str, str]) -> list[float] | None:
    return part["writers"].get(name, {}).get(column[0], {}).get(column[1])


def full(results: Mapping, compat: bool = False) -> str:
    """Every score of every system and group with its interval, the paired differences, each class, the
    verdict, and the reports' own numbers beside those of the true ones."""
    groups, titles = results["groups"], table.titles(compat)
    lines = [", ".join(f"{name} {value}" for name, value in results["settings"].items())]
    lines.append(f"Value [95% interval]; swapped: mean [lowest, highest] of {table.N_SWAPS} orders.")
    for group, part in groups.items():
        lines += [f"\n{group}, {part['studies']} studies", *_block(part["writers"], titles)]
        if part["differences"]:
            lines.append(f"\n{group}: the system's lead over each, paired by study (swapped: first order)")
            lines += _block(part["differences"], titles)
    digits = {head: 3 if head in agreement.RATES else 0 for head in agreement.COLUMNS}
    classes = groups["all"]["writers"]["system"].get("per_class", {})
    if classes:
        lines += ["\nall, the system's findings", _line("", [head.replace("_", " ") for head in digits])]
    for name, row in classes.items():
        lines.append(_line(name, [_cell([row[h], *row["intervals"][h]], n) for h, n in digits.items()]))
    lines += ["\nall, the true reports", _line("", groups["all"]["references"])]
    lines.append(_line("", [_cell(v, 3) for v in groups["all"]["references"].values()]))
    return "\n".join([*lines, "", *results["in_words"]])


def _block(systems: Mapping, titles: Mapping[str, str]) -> list[str]:
    lines = [_line("", systems)]
    for block, title in titles.items():
        names = list(dict.fromkeys(name for blocks in systems.values() for name in blocks.get(block, ())))
        rows = {name: [blocks.get(block, {}).get(name) for blocks in systems.values()] for name in names}
        rows = {name: values for name, values in rows.items() if any(values)}
        lines += [title] if rows else []
        for name, values in rows.items():
            digits = 0 if name in ("distinct", "sides_named") else 3
            lines.append(_line("  " + name.replace("_", "-"), [_cell(v, digits) for v in values]))
    return lines


def _line(name: str, cells: Sequence[str]) -> str:
    return (f"{name:30s}" + "".join(f"{cell:>24s}" for cell in cells)).rstrip()


def _cell(value: Sequence[float | None] | None, digits: int) -> str:
    """A score with its interval; empty for what is undefined."""
    if value is None or value[0] is None:
        return ""
    return "{:.{d}f} [{:.{d}f},{:.{d}f}]".format(*value, d=digits)

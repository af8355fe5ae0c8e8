"""The table that makes scores readable: the reports beside what was written without looking, in groups.

In: for each study its id, true report and findings; the generated reports; training reports for the floors.
Out: for each group of studies and each writer, every score with its 95% interval, and a line of plain words.

The writers: `system`, whose reports are judged; `swapped`, the same reports given to other studies;
`constant`, the best single report; `random`, training reports drawn at random; `nearest`, the report of the
training study whose image is most alike; `outline`, what a system that outlines its reports (prompt.py) named
there, findings alone: what it saw, beside what it told.

Swapping the images is the same as swapping the reports: a system that reads nothing but the images writes for
study i, given j's images, what it wrote for j. So the test costs no generation, and any system can be put to
it. It is done in several seeded orders; shown are the mean over them, and their lowest and highest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import agreement, baselines, coco, meteor15, overlap
from .bootstrap import bootstrap
from .findings import FINDINGS, locate

N_SWAPS = 5
MOST_SWAPPED = 20_000  # studies; of more so many are drawn: a share of them has a standard error below 0.004
SYSTEM, SWAPPED, CONSTANT, RANDOM, NEAREST = "system", "swapped", "constant", "random", "nearest"
OUTLINE = "outline"
BLOCKS = {
    "llama_xr": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"),
    "coco": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "meteor"),
    "findings": tuple(f"{mean}_{rate}" for mean in ("micro", "macro", "example") for rate in agreement.RATES),
    "reports": ("distinct", "distinct_share", "mean_words", "verbatim_in_train"),
}


@dataclass(frozen=True)
class Judged:
    """One split as a system wrote it, a study a place. findings: each study's true findings with their sides;
    names: the classes that are scored. train_reports may be empty: then there are no floors. outlined: of a
    system that writes outlines, what each names, in the form of findings."""

    references: Sequence[str]
    generated: Sequence[str]
    findings: Sequence[Mapping[str, frozenset[str]]]
    names: Sequence[str]
    train_reports: Sequence[str]
    outlined: Sequence[Mapping[str, frozenset[str]]] | None = None


def writers(judged: Judged, val_reports: Sequence[str], nearest: Sequence[str] | None, seed: int) -> dict:
    """Name -> reports of all studies, or, for `swapped`, a list of such, in which of more than MOST_SWAPPED
    studies only so many, drawn, change places, and the others have None. The constant report is chosen on
    val_reports; where there are none, on 300 training reports drawn at random."""
    n, rng = len(judged.references), np.random.default_rng(seed)
    all_reports = {SYSTEM: judged.generated, SWAPPED: []}
    some = rng.permutation(n)[:MOST_SWAPPED].tolist() if n > MOST_SWAPPED else range(n)
    for i in range(N_SWAPS if n > 1 else 0):
        swapped: list[str | None] = [None] * n
        for study, other in zip(some, baselines.derangement(len(some), seed + i), strict=True):
            swapped[study] = judged.generated[some[other]]
        all_reports[SWAPPED].append(swapped)
    if judged.train_reports:
        train = judged.train_reports
        chosen_on = val_reports or [train[i] for i in rng.choice(len(train), min(300, len(train)), False)]
        all_reports[CONSTANT] = [baselines.constant_report(train, chosen_on, seed=seed)] * n
        all_reports[RANDOM] = baselines.random_reports(train, n, seed)
    if nearest is not None:
        all_reports[NEAREST] = nearest
    return {name: reports for name, reports in all_reports.items() if reports}


def groups(judged: Judged) -> dict[str, list[int]]:
    """The studies by group: all; those without and with findings; those whose text is not in train."""
    known, places = set(judged.train_reports), range(len(judged.references))
    parts = {
        "all": list(places),
        "normal": [i for i in places if not judged.findings[i]],
        "abnormal": [i for i in places if judged.findings[i]],
        "text not in train": [i for i in places if judged.references[i] not in known] if known else [],
    }
    return {name: rows for name, rows in parts.items() if rows}


class Scorer:
    """Scores reports against a split's references by all conventions. wordnet: a reader, or None; java:
    METEOR 1.5's command, or None; compat: R2Gen's cut and vocabulary."""

    def __init__(self, judged: Judged, wordnet=None, java: list[str] | None = None, compat: bool = False):
        self.judged, self.wordnet, self.java = judged, wordnet, java
        words = coco.vocabulary(judged.train_reports) if compat else None
        self.clean = lambda text: coco.clean(text, coco.CUT if compat else None, words)
        self.cleaned = [self.clean(text) for text in judged.references]
        self.frequency = coco.frequencies(self.cleaned)
        self.train_texts = overlap.texts(judged.train_reports)

    def measure(self, reports: Sequence[str | None]) -> dict:
        """What each study contributes, so that groups need no second reading: the rows of each convention, of
        the studies that have a report."""
        studies = np.array([i for i, report in enumerate(reports) if report is not None], int)
        references, reports, truths, known = (
            [every[i] for i in studies]
            for every in (self.judged.references, reports, self.judged.findings, self.cleaned)
        )
        cleaned = [self.clean(text) for text in reports]
        meteor = meteor15.statistics(self.java, known, cleaned) if self.java else None
        said = ({f: sides for f, sides in locate(r).items() if f in self.judged.names} for r in reports)
        return {
            "studies": studies,
            "overlap": overlap.statistics(references, reports, self.wordnet),
            "coco": coco.statistics(known, cleaned, meteor, self.frequency),
            "outcomes": agreement.tally(truths, said, self.judged.names),
            "texts": overlap.texts(reports),
        }

    def scores(self, measured: dict, group: list[int], n_resamples: int = 1000) -> dict:
        """Block -> score -> [value, low, high] of a group's studies, as far as they were measured, and the
        findings class by class."""
        rows, blocks = np.flatnonzero(np.isin(measured["studies"], group)), {}
        for block, key, function in (("llama_xr", "overlap", overlap), ("coco", "coco", coco)):
            names, counts = measured[key]
            values = bootstrap(counts[rows], function.scores, n_resamples).tolist()
            blocks[block] = dict(zip(names, values, strict=True))
        found = self.findings(measured["outcomes"][rows], n_resamples)
        blocks["reports"] = overlap.variety(measured["texts"][rows], self.train_texts, n_resamples)
        if not self.judged.train_reports:
            del blocks["reports"]["verbatim_in_train"]
        return {**blocks, **found}

    def findings(self, outcomes: np.ndarray, n_resamples: int = 1000) -> dict:
        """The findings' block of these studies (agreement.tally), and the findings class by class."""
        found = agreement.score_of(outcomes, self.judged.names, n_resamples)
        block = {name: [found[name], *found["intervals"][name]] for name in BLOCKS["findings"]}
        return {"findings": block, "per_class": found["per_class"]}


def spread(blocks: list[dict]) -> dict:
    """Several seeded swaps -> the mean over them of each score, its lowest and its highest. Swapping changes
    nothing of the reports themselves."""
    result = {}
    for block, names in BLOCKS.items():
        if block == "reports":
            continue
        values = {name: [b[block][name][0] for b in blocks] for name in names if name in blocks[0][block]}
        result[block] = {name: [sum(v) / len(v), min(v), max(v)] for name, v in values.items()}
    return result


def judge(judged: Judged, written: dict, scorer: Scorer) -> dict:
    """Group -> {"studies": n, "writers": writer -> block -> score -> [value, low, high]}."""
    parts = groups(judged)
    table = {group: {"studies": len(rows), "writers": {}} for group, rows in parts.items()}
    differences, system = {}, scorer.measure(written[SYSTEM])
    for name, several in written.items():
        scored = {group: [] for group in parts}
        n_resamples = 0 if name == SWAPPED else 1000  # shown of the swaps is their spread, no interval
        # Some 200 bytes a study are measured: held of the system and one other at a time, not of all.
        for reports in several if name == SWAPPED else [several]:
            measured = system if name == SYSTEM else scorer.measure(reports)
            for group, studies in parts.items():
                if np.isin(measured["studies"], studies).any():
                    scored[group].append(scorer.scores(measured, studies, n_resamples))
            if name != SYSTEM and name not in differences:  # of the swaps the first
                rows = measured["studies"]  # the system's are all
                differences[name] = {
                    "rouge_l": difference([system["overlap"][1][rows], measured["overlap"][1]]),
                    "micro_f1": f1_difference([system["outcomes"][rows], measured["outcomes"]], judged.names),
                }
            del measured  # before the next is made
        for group, blocks in scored.items():
            if blocks:  # else none of a small group was among the many studies that changed places
                table[group]["writers"][name] = spread(blocks) if name == SWAPPED else blocks[0]
    if judged.outlined is not None:
        outcomes = agreement.tally(judged.findings, judged.outlined, judged.names)
        for group, rows in parts.items():
            table[group]["writers"][OUTLINE] = scorer.findings(outcomes[rows])
    table["all"]["differences"] = differences
    return table


def difference(pair: list[np.ndarray]) -> list[float]:
    """Mean ROUGE-L of one writer less another's over the same studies: [value, low, high], in pairs."""
    place = 1 + overlap.NAMES.index("rouge_l")
    gap = (pair[0][:, place] - pair[1][:, place])[:, None]
    return bootstrap(gap, lambda sums: sums / len(gap))[0].tolist()


def f1_difference(pair: list[np.ndarray], names: Sequence[str]) -> list[float]:
    """Micro-F1 of one writer less another's over the same studies, from agreement.tally of both: [value, low,
    high], in pairs."""
    counts = np.hstack([agreement.pooled(codes, names) for codes in pair])  # (study, 2 writers x 4 outcomes)

    def gap(sums: np.ndarray) -> np.ndarray:
        right, wrong_side, fn, fp = np.moveaxis(sums.reshape(-1, 2, 4), 2, 0)
        tp = right + wrong_side
        f1 = 2 * tp / np.maximum(2 * tp + fn + fp, 1)  # (r, writer)
        return f1[:, :1] - f1[:, 1:]

    return bootstrap(counts, gap)[0].tolist()


def plain_words(table: dict) -> list[str]:
    """What follows from the table, in sentences: what each floor leaves of the scores."""
    lines, gaps = [], table["all"].get("differences", {})
    for name, against in (
        (CONSTANT, "one report written for everybody"),
        (NEAREST, "the nearest image's report"),
    ):
        if name in gaps:
            value, low, high = gaps[name]["rouge_l"]
            verdict = "beats" if low > 0 else "loses to" if high < 0 else "cannot be told from"
            lines.append(
                f"By ROUGE-L the system {verdict} {against} ({value:+.3f} [{low:+.3f}, {high:+.3f}])."
            )
    if SWAPPED in gaps:
        value, low, high = gaps[SWAPPED]["micro_f1"]
        own = table["all"]["writers"][SYSTEM]["findings"]["micro_f1"][0]
        if low <= 0:
            lines.append(
                f"Swapping the images costs nothing (findings F1 {own:.3f}): it does not look at them."
            )
        else:
            lines.append(
                f"Swapping the images costs {value:.3f} [{low:.3f}, {high:.3f}] of findings F1 {own:.3f}: "
                f"that much comes from the image."
            )
    return lines


def titles(compat: bool = False) -> dict[str, str]:
    """What each of BLOCKS is, by the names of the conventions."""
    return {
        "llama_xr": overlap.CONVENTION,
        "coco": coco.CONVENTION_COMPAT if compat else coco.CONVENTION,
        "findings": "Findings that reports assert, against the true ones",
        "reports": "The reports themselves",
    }


def as_text(table: dict, compat: bool = False) -> str:
    """The table for a terminal: of each group a column a writer and a line a score, with its interval."""
    title = titles(compat)
    lines = [f"Value [95% interval]; swapped: mean [lowest, highest] of {N_SWAPS} orders."]
    for group, part in table.items():
        lines += [f"\n{group}, {part['studies']} studies", _line("", part["writers"])]
        for block, names in BLOCKS.items():
            lines.append(title[block])
            for name in names:
                found = [blocks.get(block, {}).get(name) for blocks in part["writers"].values()]
                if any(found):
                    digits = 0 if name == "distinct" else 3
                    lines.append(_line("  " + name.replace("_", "-"), [_cell(v, digits) for v in found]))
    digits = {head: 3 if head in agreement.RATES else 0 for head in agreement.COLUMNS}
    lines += ["\nall, the system's findings", _line("", [head.replace("_", " ") for head in digits])]
    for name, of in table["all"]["writers"][SYSTEM]["per_class"].items():
        lines.append(_line(name, [_cell([of[h], *of["intervals"][h]], n) for h, n in digits.items()]))
    return "\n".join([*lines, "", *plain_words(table)])


def _line(name: str, cells: Iterable[str]) -> str:
    return (f"{name:22s}" + "".join(f"{cell:>22s}" for cell in cells)).rstrip()


def _cell(value: list[float] | None, digits: int) -> str:
    """A score and its interval; nothing for one that its writer does not have."""
    if value is None:
        return ""
    return "{:.{d}f} [{:.{d}f},{:.{d}f}]".format(*value, d=digits)


def truth_of(reference: str, known: frozenset[str] | None = None) -> dict[str, frozenset[str]]:
    """A study's true findings with their sides: those that its report asserts, or, where the findings are
    known by themselves, those, with the sides that the report gives them."""
    said = locate(reference)
    if known is None:
        return {name: sides for name, sides in said.items() if name in FINDINGS}
    return {name: said.get(name, frozenset()) for name in known}

"""Other people's systems and metrics, through our groups, floors, swaps and intervals (docs/evaluation.md).

In: files of reports, of labels and of scores. Out: what metrics/table.py compares; and, the other way, files
that other people's labellers and metrics take.

Labels belong to a text, and a score to a pair of texts. So one file serves every system that has the text:
the one under test, its swap, and each floor that the labeller or the metric was run on as well.
"""

import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..data.table import read_rows
from ..errors import UserError
from ..files.text import read_json_lines, short
from ..metrics.findings import FINDINGS, NO_FINDING
from ..metrics.table import SWAPPED, SYSTEM, Evaluation, Extra, true_findings
from . import distributed, log, recipes
from . import run as runs

MAX_BYTES = 2**29  # of a file of reports, labels or scores; a million reports have 2**28
ROW = ("id", "reference", "generated")
TEXT_COLUMNS = ("Report Impression", "report", "text")  # CheXbert's comes first
CHEXPERT = {"lung lesion": "nodule", "pleural effusion": "effusion", "support devices": "device"}
NOT_NORMAL = "not normal"  # a finding of no class: the labeller does not say "no finding"
LESS_IS_BETTER = ("radcliq",)  # scores that count errors; any other is named NAME:less


def read_reports(path: Path, keys: tuple[str, ...] = ROW, limit: int = 0) -> list[dict[str, str]]:
    """These keys of each study of a JSONL file. UserError if a study is there twice."""
    rows = log.read_lines(path, keys)[: limit or None]
    if len({row["id"] for row in rows}) < len(rows):
        raise UserError(f"{path} names a study twice; fix the file")
    return rows


def read_against(path: Path, ids: Sequence[str], references: Sequence[str], limit: int = 0) -> list[str]:
    """Another system's reports, in the order of ids. UserError unless they are of the same studies with the
    same references."""
    rows = {row["id"]: row for row in read_reports(path)}
    missing, more = [i for i in ids if i not in rows], rows.keys() - {*ids}
    if missing or (more and not limit):
        one = missing[0] if missing else min(more)
        where = f"lacks {len(missing)}" if missing else f"has {len(more)} more"
        raise UserError(f"{path} {where} of the studies ({short(one, 40)!r}); two systems need the same ones")
    for i, reference in zip(ids, references, strict=True):
        if _text(rows[i]["reference"]) != _text(reference):
            raise UserError(f"{path} has another reference of study {short(i, 40)!r}; give the same ones")
    return [rows[i]["generated"] for i in ids]


def prepare(options) -> tuple:
    """What eval.py's prepare_run returns for a run, for --score's file of any system's reports: ids, the
    Evaluation, the val reports, no nearest reports, the settings, the folder for results, no images."""
    distributed.init(torch.device("cpu"))
    if not distributed.is_main_process():
        sys.exit()  # there is nothing to generate
    rows = read_reports(options.score, limit=options.limit)
    ids, references, predictions = ([row[key] for row in rows] for key in ROW)
    train, val = read_floors(options)
    findings = [true_findings(reference) for reference in references]
    evaluation = Evaluation(references, predictions, findings, FINDINGS, train)
    settings = {"score": str(options.score), "seed": options.seed, "studies": len(ids)}
    out = options.out or options.score.with_name(options.score.stem + "-scores")
    return ids, with_others(evaluation, ids, options), val, None, settings, out, None


def read_floors(options) -> tuple[list[str], list[str]]:
    """The training and val reports that the floors of --score come from: --train-reports, or --data's."""
    if options.train_reports is not None:
        return [row["report"] for row in log.read_lines(options.train_reports, ("report",))], []
    if options.data is None:
        distributed.warn("without --train-reports or --data, the table has no constant and no random reports")
        return [], []
    data = recipes.apply_recipe("ours", data=options.data, root=options.root)
    studies = runs.load_studies(data, distributed.warn)
    train, val = ([s.report for s in studies if s.split == split] for split in ("train", "val"))
    return train, val


def with_others(evaluation: Evaluation, ids: Sequence[str], options) -> Evaluation:
    """The evaluation with the reports of --against and the labels of --labels: what can be read and checked
    before the system has written anything."""
    if options.against is not None:
        reports = read_against(options.against, ids, evaluation.references, options.limit)
        evaluation = replace(evaluation, against=reports)
    if options.labels is not None:
        label, classes = read_labels(options.labels)
        check_labels(label, evaluation.references, options.labels, "true")
        findings = [label(reference) for reference in evaluation.references]
        evaluation = replace(evaluation, label=label, classes=classes, findings=findings)
    return evaluation


def with_scores(evaluation: Evaluation, ids: Sequence[str], options, extra: Sequence[str]) -> Evaluation:
    """The evaluation with the scores of --extra, and a check of --labels: what needs the system's reports."""
    if options.labels is not None:
        check_labels(evaluation.label, evaluation.predictions, options.labels, "generated")
    pair = lambda reports: dict(zip(ids, zip(evaluation.references, reports, strict=True), strict=True))
    pairs = {SYSTEM: pair(evaluation.predictions)}
    if options.score is not None:  # whose columns may be scores
        pairs[str(options.score)] = pairs[SYSTEM]
        if evaluation.against is not None:
            pairs[str(options.against)] = pair(evaluation.against)
    return replace(evaluation, extra=dict(read_extra(each, options.score, pairs) for each in extra))


def check_labels(label: Callable, reports: Sequence[str], path: Path, which: str) -> None:
    if missing := [report for report in reports if label(report) is None]:
        raise UserError(
            f"{path} has no labels for {len(missing)} of {len(reports)} {which} reports "
            f"({short(missing[0], 40)!r}); label all of them (--export writes the file)"
        )


def read_labels(path: Path) -> tuple[Callable[[str], Mapping | None], list[str]]:
    """A labeller's CSV: a column of report texts (TEXT_COLUMNS) and one column per class.

    1 is asserted; 0, -1 (uncertain) and empty are not, as in the field's F1 scores of CheXbert. CheXpert's
    names become those of findings.py. Returns the function from a text to its findings, None if the file does
    not have it, and the classes.
    """
    rows = list(read_rows(path))
    header = list(rows[0][1]) if rows else []
    text = next((name for name in TEXT_COLUMNS if name in header), None)
    names = {h: CHEXPERT.get(h.strip().lower(), h.strip().lower()) for h in header if h and h != text}
    classes = [name for name in names.values() if name != NO_FINDING]
    if text is None or not classes or len({*names.values()}) < len(names):
        raise UserError(f"{path} needs a column {' or '.join(TEXT_COLUMNS)}, one per class, and rows")
    found: dict[str, dict[str, frozenset[str]]] = {"": {}}  # an empty report asserts nothing
    for number, row in rows:
        labels = {}
        for column, name in names.items():
            try:
                value = float(row[column] or 0)
            except (TypeError, ValueError):
                value = math.nan
            if value not in (1, 0, -1):
                shown = short(row[column], 40)
                raise UserError(f"{path}, line {number}: {column} is {shown!r}; a label is 1, 0, -1 or empty")
            if value == 1:
                labels[name] = frozenset()
        if not labels and NO_FINDING in names.values():
            labels[NOT_NORMAL] = frozenset()
        key = _text(row[text] or "")
        if found.setdefault(key, labels) != labels:
            raise UserError(f"{path}, line {number}: the same report has other labels above; fix the file")
    return lambda report: found.get(_text(report)), classes


def read_extra(
    option: str, source: Path | None, pairs: Mapping[str, Mapping[str, tuple[str, str]]]
) -> tuple[str, Extra]:
    """NAME=FILE, or NAME alone, a column of the reports' own files -> the name and the scores.

    FILE is JSONL or CSV. A row has `score` and either `ref` and `hyp`, as `export` writes them, or an `id`,
    then it is of the system's own report. pairs: file -> id -> (reference, report): source's, and in the
    column's case also those of --against. UserError unless every report of the system has one finite score.
    """
    name, _, file = option.partition("=")
    less = name.endswith(":less") or name.lower().startswith(LESS_IS_BETTER)
    name = name.removesuffix(":less").strip()
    if not name or (source is None and not file):
        raise UserError(f"--extra {short(option, 40)!r}: give NAME=FILE or, with --score, a column's NAME")
    found: dict[tuple[str, str], list[float]] = {}
    files = [(Path(file), "score", pairs[SYSTEM])] if file else [
        (Path(path), name, of) for path, of in pairs.items() if path != SYSTEM]  # fmt: skip
    for path, key, of in files:
        for number, row in _rows(path):
            pair = of.get(str(row.get("id"))) if "hyp" not in row else (row.get("ref"), row["hyp"])
            if pair is None:
                continue  # of a study that --limit left out
            try:
                score = float(row[key])
            except (KeyError, TypeError, ValueError):
                score = math.nan
            if not math.isfinite(score):
                shown = short(row.get(key), 40)
                raise UserError(f"{path}, line {number}: {key} is {shown!r}, no number; fix the file")
            found.setdefault((_text(pair[0]), _text(pair[1])), []).append(score)
    scores = {pair: sum(values) / len(values) for pair, values in found.items()}
    lacking = [i for i, pair in pairs[SYSTEM].items() if _pair(pair) not in scores]
    if lacking:
        raise UserError(
            f"{file or source} has no {name} for {len(lacking)} of {len(pairs[SYSTEM])} reports "
            f"({short(lacking[0], 40)!r}); score all of them"
        )
    return name, Extra(_Pairs(scores), less)


class _Pairs(dict):
    """Scores of pairs of texts, however their white space is."""

    def __contains__(self, pair: object) -> bool:
        return super().__contains__(_pair(pair))

    def __getitem__(self, pair: tuple[str, str]) -> float:
        return super().__getitem__(_pair(pair))


def export(folder: Path, ids: Sequence[str], evaluation: Evaluation, systems: Mapping) -> None:
    """Write what other people's tools take: NAME.jsonl for each system (of the swaps the first), with id, ref
    and hyp (RadEval's form); and reports.csv, each text once under "Report Impression" (CheXbert's form)."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = dict.fromkeys(map(_text, evaluation.references))
    for name, reports in systems.items():
        columns = zip(ids, evaluation.references, reports[0] if name == SWAPPED else reports, strict=True)
        rows = [{"id": i, "ref": true, "hyp": report} for i, true, report in columns if report is not None]
        texts.update(dict.fromkeys(_text(row["hyp"]) for row in rows))
        log.write_lines(folder / f"{name}.jsonl", rows)
    table = io.StringIO()
    csv.writer(table).writerows([TEXT_COLUMNS[:1], *((text,) for text in texts if text)])
    (folder / "reports.csv").write_text(table.getvalue(), encoding="utf-8", newline="")


def _text(text: str) -> str:
    return " ".join(text.split())


def _pair(pair: tuple[str, str]) -> tuple[str, str]:
    return _text(pair[0]), _text(pair[1])


def _rows(path: Path) -> list[tuple[int, dict]]:
    rows = list(read_rows(path) if path.suffix.lower() == ".csv" else read_json_lines(path, MAX_BYTES))
    for number, row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(k, ""), str) for k in ("ref", "hyp")):
            raise UserError(f"{path}, line {number}: no object with an id, or texts ref and hyp; fix it")
        if "hyp" in row and "ref" not in row or "hyp" not in row and "id" not in row:
            raise UserError(f"{path}, line {number}: a score needs an id, or ref and hyp; fix the file")
    return rows

"""The table of scores: a system's reports beside floors that never see the image, for groups of studies.

In: each study's true report and findings; the reports that a system wrote; training reports for the floors.
Out: for each group of studies and each system, every score with its 95% interval, and a few sentences.

The systems: `system`, the one under test; `swapped`, its reports given to other studies; `constant`, one
report for all; `random`, training reports drawn at random; `nearest`, the report of the training study with
the most similar image; `outline`, the findings that the system's own outlines name (data/outline.py), scored
as findings only.

Swapping reports is the same as swapping images: a system that reads nothing but the images writes, for study
i with the images of study j, what it wrote for study j. So this test generates nothing and works for any
system. It is done in several seeded orders; the table has the mean over them, the lowest and the highest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import agreement, baselines, coco, meteor15, overlap
from .bootstrap import bootstrap
from .findings import FINDINGS, locate

N_SWAPS = 5
MAX_SWAPPED = 20_000  # studies; with more, this many are drawn: a proportion's standard error is below 0.004
SYSTEM, SWAPPED, CONSTANT, RANDOM, NEAREST = "system", "swapped", "constant", "random", "nearest"
OUTLINE = "outline"
BLOCKS = {
    "llama_xr": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"),
    "coco": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "meteor"),
    "findings": tuple(f"{mean}_{rate}" for mean in ("micro", "macro", "example") for rate in agreement.RATES),
    "reports": ("distinct", "distinct_share", "mean_words", "verbatim_in_train"),
}


@dataclass(frozen=True)
class Evaluation:
    """One split and a system's reports for it, all in the order of the studies.

    findings: the true findings of each study with their sides. classes: the findings that are scored.
    train_reports: may be empty, then there are no floors. outlines: the findings that each outline names,
    for a system that writes outlines.
    """

    references: Sequence[str]
    predictions: Sequence[str]
    findings: Sequence[Mapping[str, frozenset[str]]]
    classes: Sequence[str]
    train_reports: Sequence[str]
    outlines: Sequence[Mapping[str, frozenset[str]]] | None = None


def all_systems(
    evaluation: Evaluation, val_reports: Sequence[str], nearest: Sequence[str] | None, seed: int
) -> dict:
    """System -> its report for each study; `swapped` has a list of N_SWAPS such lists.

    With more than MAX_SWAPPED studies only this many, drawn, are swapped; the others have None there.
    val_reports may be empty: then the constant report is chosen on training reports alone.
    """
    n, rng = len(evaluation.references), np.random.default_rng(seed)
    systems = {SYSTEM: evaluation.predictions, SWAPPED: []}
    drawn = rng.permutation(n)[:MAX_SWAPPED].tolist() if n > MAX_SWAPPED else range(n)
    for i in range(N_SWAPS if n > 1 else 0):
        swapped: list[str | None] = [None] * n
        for study, other in zip(drawn, baselines.derangement(len(drawn), seed + i), strict=True):
            swapped[study] = evaluation.predictions[drawn[other]]
        systems[SWAPPED].append(swapped)
    if evaluation.train_reports:
        train = evaluation.train_reports
        systems[CONSTANT] = [baselines.constant_report(train, val_reports, seed=seed)] * n
        systems[RANDOM] = baselines.random_reports(train, n, seed)
    if nearest is not None:
        systems[NEAREST] = nearest
    return {name: reports for name, reports in systems.items() if reports}


def groups(evaluation: Evaluation) -> dict[str, list[int]]:
    """The studies of each group: all; those without and with findings; those whose text is not in train."""
    train_texts, studies = set(evaluation.train_reports), range(len(evaluation.references))
    parts = {
        "all": list(studies),
        "normal": [i for i in studies if not evaluation.findings[i]],
        "abnormal": [i for i in studies if evaluation.findings[i]],
    }
    if train_texts:
        parts["text not in train"] = [i for i in studies if evaluation.references[i] not in train_texts]
    return {name: rows for name, rows in parts.items() if rows}


class Scorer:
    """Scores reports against a split's references by all conventions.

    wordnet: a reader of wordnet.find(), or None. java: METEOR 1.5's command, or None. compat: R2Gen's cut
    and vocabulary.
    """

    def __init__(
        self, evaluation: Evaluation, wordnet=None, java: list[str] | None = None, compat: bool = False
    ):
        self.evaluation, self.wordnet, self.java = evaluation, wordnet, java
        vocabulary = coco.vocabulary(evaluation.train_reports) if compat else None
        self.clean = lambda text: coco.clean(text, coco.CUT if compat else None, vocabulary)
        self.cleaned_references = [self.clean(text) for text in evaluation.references]
        self.frequency = coco.frequencies(self.cleaned_references)
        self.train_texts = overlap.texts(evaluation.train_reports)

    def measure(self, reports: Sequence[str | None]) -> dict:
        """The counts of each study that has a report, by convention. Groups and resamples are sums of these
        rows, so no text is read twice."""
        studies = np.array([i for i, report in enumerate(reports) if report is not None], int)
        references, predictions, findings, cleaned_references = (
            [column[i] for i in studies]
            for column in (self.evaluation.references, reports, self.evaluation.findings,
                           self.cleaned_references)
        )  # fmt: skip
        cleaned = [self.clean(text) for text in predictions]
        meteor = meteor15.statistics(self.java, cleaned_references, cleaned) if self.java else None
        classes = self.evaluation.classes
        predicted = ({f: sides for f, sides in locate(r).items() if f in classes} for r in predictions)
        return {
            "studies": studies,
            "overlap": overlap.statistics(references, predictions, self.wordnet),
            "coco": coco.statistics(cleaned_references, cleaned, meteor, self.frequency),
            "outcomes": agreement.tally(findings, predicted, classes),
            "texts": overlap.texts(predictions),
        }

    def scores(self, measured: dict, group: list[int], n_resamples: int = 1000) -> dict:
        """Block -> score -> [value, low, high] over the measured studies of a group, and the findings class
        by class."""
        rows, blocks = np.flatnonzero(np.isin(measured["studies"], group)), {}
        for block, key, function in (("llama_xr", "overlap", overlap), ("coco", "coco", coco)):
            names, counts = measured[key]
            values = bootstrap(counts[rows], function.scores, n_resamples).tolist()
            blocks[block] = dict(zip(names, values, strict=True))
        findings = self.findings(measured["outcomes"][rows], n_resamples)
        blocks["reports"] = overlap.variety(measured["texts"][rows], self.train_texts, n_resamples)
        if not self.evaluation.train_reports:
            del blocks["reports"]["verbatim_in_train"]
        return {**blocks, **findings}

    def findings(self, outcomes: np.ndarray, n_resamples: int = 1000) -> dict:
        """The findings block of some studies (rows of agreement.tally), and the findings class by class."""
        scored = agreement.score_tally(outcomes, self.evaluation.classes, n_resamples)
        block = {name: [scored[name], *scored["intervals"][name]] for name in BLOCKS["findings"]}
        return {"findings": block, "per_class": scored["per_class"]}


def spread(blocks: list[dict]) -> dict:
    """Scores of several seeded swaps -> [mean, lowest, highest] of each. The `reports` block is left out:
    swapping does not change the reports themselves."""
    result = {}
    for block, names in BLOCKS.items():
        if block == "reports":
            continue
        values = {name: [b[block][name][0] for b in blocks] for name in names if name in blocks[0][block]}
        result[block] = {name: [sum(v) / len(v), min(v), max(v)] for name, v in values.items()}
    return result


def evaluate(evaluation: Evaluation, systems: dict, scorer: Scorer) -> dict:
    """Group -> {"studies": n, "writers": system -> block -> score -> [value, low, high]}."""
    parts = groups(evaluation)
    table = {group: {"studies": len(rows), "writers": {}} for group, rows in parts.items()}
    differences, own = {}, scorer.measure(systems[SYSTEM])
    for name, reports in systems.items():
        scored = {group: [] for group in parts}
        n_resamples = 0 if name == SWAPPED else 1000  # the swaps have their spread instead of an interval
        # About 200 bytes are measured per study. Only two are in memory: the system's and one other's.
        for predictions in reports if name == SWAPPED else [reports]:
            measured = own if name == SYSTEM else scorer.measure(predictions)
            for group, studies in parts.items():
                if np.isin(measured["studies"], studies).any():
                    scored[group].append(scorer.scores(measured, studies, n_resamples))
            if name != SYSTEM and name not in differences:  # the first of the swaps
                rows = measured["studies"]  # the system's are all studies
                differences[name] = {
                    "rouge_l": difference([own["overlap"][1][rows], measured["overlap"][1]]),
                    "micro_f1": f1_difference(
                        [own["outcomes"][rows], measured["outcomes"]], evaluation.classes
                    ),
                }
            del measured  # before the next is made
        for group, blocks in scored.items():
            if blocks:  # empty if no study of a small group is among those that were swapped
                table[group]["writers"][name] = spread(blocks) if name == SWAPPED else blocks[0]
    if evaluation.outlines is not None:
        outcomes = agreement.tally(evaluation.findings, evaluation.outlines, evaluation.classes)
        for group, rows in parts.items():
            table[group]["writers"][OUTLINE] = scorer.findings(outcomes[rows])
    table["all"]["differences"] = differences
    return table


def difference(pair: list[np.ndarray]) -> list[float]:
    """Mean ROUGE-L of one system minus another's on the same studies: [value, low, high], paired."""
    column = 1 + overlap.NAMES.index("rouge_l")
    gap = (pair[0][:, column] - pair[1][:, column])[:, None]
    return bootstrap(gap, lambda sums: sums / len(gap))[0].tolist()


def f1_difference(pair: list[np.ndarray], classes: Sequence[str]) -> list[float]:
    """Micro-F1 of one system minus another's on the same studies: [value, low, high], paired. pair: the
    agreement.tally of each."""
    counts = np.hstack([agreement.pooled(codes, classes) for codes in pair])  # (study, 2 x 4 outcomes)

    def gap(sums: np.ndarray) -> np.ndarray:
        right, wrong_side, fn, fp = np.moveaxis(sums.reshape(-1, 2, 4), 2, 0)
        tp = right + wrong_side
        f1 = 2 * tp / np.maximum(2 * tp + fn + fp, 1)  # (r, system)
        return f1[:, :1] - f1[:, 1:]

    return bootstrap(counts, gap)[0].tolist()


def plain_words(table: dict) -> list[str]:
    """What follows from the table, in sentences: how far the system is ahead of each floor."""
    lines, gaps = [], table["all"].get("differences", {})
    for name, floor in (
        (CONSTANT, "one report written for everybody"),
        (NEAREST, "the nearest image's report"),
    ):
        if name in gaps:
            value, low, high = gaps[name]["rouge_l"]
            verdict = "beats" if low > 0 else "loses to" if high < 0 else "cannot be told from"
            lines.append(f"By ROUGE-L the system {verdict} {floor} ({value:+.3f} [{low:+.3f}, {high:+.3f}]).")
    if SWAPPED in gaps:
        value, low, high = gaps[SWAPPED]["micro_f1"]
        f1 = table["all"]["writers"][SYSTEM]["findings"]["micro_f1"][0]
        if low <= 0:
            lines.append(
                f"Swapping the images costs nothing (findings F1 {f1:.3f}): it does not look at them."
            )
        else:
            lines.append(
                f"Swapping the images costs {value:.3f} [{low:.3f}, {high:.3f}] of findings F1 {f1:.3f}: "
                f"that much comes from the image."
            )
    return lines


def titles(compat: bool = False) -> dict[str, str]:
    """The title of each of BLOCKS, which names its convention."""
    return {
        "llama_xr": overlap.CONVENTION,
        "coco": coco.CONVENTION_COMPAT if compat else coco.CONVENTION,
        "findings": "Findings that reports assert, against the true ones",
        "reports": "The reports themselves",
    }


def as_text(table: dict, compat: bool = False) -> str:
    """The table for a terminal. Each group has one column per system and one line per score."""
    title = titles(compat)
    lines = [f"Value [95% interval]; swapped: mean [lowest, highest] of {N_SWAPS} orders."]
    for group, part in table.items():
        lines += [f"\n{group}, {part['studies']} studies", _line("", part["writers"])]
        for block, names in BLOCKS.items():
            lines.append(title[block])
            for name in names:
                values = [blocks.get(block, {}).get(name) for blocks in part["writers"].values()]
                if any(values):
                    digits = 0 if name == "distinct" else 3
                    lines.append(_line("  " + name.replace("_", "-"), [_cell(v, digits) for v in values]))
    digits = {head: 3 if head in agreement.RATES else 0 for head in agreement.COLUMNS}
    lines += ["\nall, the system's findings", _line("", [head.replace("_", " ") for head in digits])]
    for name, row in table["all"]["writers"][SYSTEM]["per_class"].items():
        lines.append(_line(name, [_cell([row[h], *row["intervals"][h]], n) for h, n in digits.items()]))
    return "\n".join([*lines, "", *plain_words(table)])


def _line(name: str, cells: Iterable[str]) -> str:
    return (f"{name:22s}" + "".join(f"{cell:>22s}" for cell in cells)).rstrip()


def _cell(value: list[float] | None, digits: int) -> str:
    """A score with its interval; empty for a score that the system does not have."""
    if value is None:
        return ""
    return "{:.{d}f} [{:.{d}f},{:.{d}f}]".format(*value, d=digits)


def true_findings(reference: str, findings: frozenset[str] | None = None) -> dict[str, frozenset[str]]:
    """A study's true findings with their sides: those that its report asserts or, if the data set gives
    findings of its own, those, with the sides that the report names."""
    asserted = locate(reference)
    if findings is None:
        return {name: sides for name, sides in asserted.items() if name in FINDINGS}
    return {name: asserted.get(name, frozenset()) for name in findings}

"""The table of scores: a system's reports beside the floors, for groups of studies.

In: each study's true report and findings; the reports that a system wrote; training reports for the floors.
Out: for each group of studies and each system, every score with its 95% interval, and its difference from the
system under test, paired by study. What is undefined is None.

The systems: `system`, the one under test; `against`, another one; `swapped`, the system's reports given to
other studies; `constant`, one report for all; `random`, training reports drawn at random; `nearest`, the
report of the training study with the most similar image; `frequent`, the findings that are best asserted for
every study. For a system that writes outlines (data/outline.py): `template`, the outlines told in training
sentences, without a language model; `outline`, the findings that they name. `frequent` and `outline` have
scores of findings only.

Swapping reports is the same as swapping images: a system that reads nothing but the images writes, for study
i with the images of study j, what it wrote for study j. So this test generates nothing, and works for any
such system. It is done in several seeded orders; the table has the mean over them, the lowest and the
highest, and its differences are those of the first.

Findings come from findings.py or from another labeller. A system gets no findings scores if the labeller has
no labels for one of its reports. `extra` holds scores computed elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import agreement, baselines, coco, meteor15, overlap
from .bootstrap import interval, sample
from .findings import FINDINGS, OTHER, locate

N_SWAPS = 5
MAX_SWAPPED = 20_000  # studies; with more, this many are drawn: a proportion's standard error is below 0.004
SYSTEM, SWAPPED, CONSTANT, RANDOM, NEAREST = "system", "swapped", "constant", "random", "nearest"
AGAINST, TEMPLATE, OUTLINE, FREQUENT = "against", "template", "outline", "frequent"
BLOCKS = {
    "llama_xr": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"),
    "coco": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "meteor"),
    "findings": (*agreement.MEANS, *agreement.SIDES),
    "classes": agreement.GROUP_MEANS,
    "reports": ("distinct", "distinct_share", "mean_words", "comparisons", "verbatim_in_train"),
}
EXTRA = "extra"  # a block too, whose scores the user names
Samples = dict[str, tuple[Sequence[str], np.ndarray]]  # block -> names of scores, bootstrap.sample of them
Findings = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Extra:
    """A score of a report beside its reference, from anywhere. less_is_better: it counts errors."""

    scores: Mapping[tuple[str, str], float]  # (reference, report) -> score
    less_is_better: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One split and a system's reports for it, all in the order of the studies.

    findings: the true findings of each study with their sides. classes: the findings that are scored.
    train_reports: may be empty, then there are no floors. outlines: the findings that each outline names,
    for a system that writes outlines. against: another system's reports. label: report -> its findings, or
    None if it has no labels. extra: name -> anyone's score.
    """

    references: Sequence[str]
    predictions: Sequence[str]
    findings: Sequence[Findings]
    classes: Sequence[str]
    train_reports: Sequence[str]
    outlines: Sequence[Findings] | None = None
    against: Sequence[str] | None = None
    label: Callable[[str], Findings | None] = locate
    extra: Mapping[str, Extra] = field(default_factory=dict)


def all_systems(
    evaluation: Evaluation, val_reports: Sequence[str], nearest: Sequence[str] | None, seed: int
) -> dict:
    """System -> its report for each study; `swapped` has a list of N_SWAPS such lists.

    With more than MAX_SWAPPED studies only this many, drawn, are swapped; the others have None there.
    val_reports may be empty: then the constant report is chosen on training reports alone.
    """
    n, rng = len(evaluation.references), np.random.default_rng(seed)
    systems = {SYSTEM: evaluation.predictions, AGAINST: evaluation.against, SWAPPED: [], NEAREST: nearest}
    drawn = rng.permutation(n)[:MAX_SWAPPED].tolist() if n > MAX_SWAPPED else range(n)
    for i in range(N_SWAPS if n > 1 else 0):
        swapped: list[str | None] = [None] * n
        for study, other in zip(drawn, baselines.derangement(len(drawn), seed + i), strict=True):
            swapped[study] = evaluation.predictions[drawn[other]]
        systems[SWAPPED].append(swapped)
    if evaluation.train_reports:
        train = evaluation.train_reports
        constant = baselines.constant_report(train, val_reports, seed=seed)
        systems[CONSTANT] = [constant] * n
        if evaluation.outlines is not None:
            systems[TEMPLATE] = baselines.template_reports(evaluation.outlines, train, constant)
        systems[RANDOM] = baselines.random_reports(train, n, seed)
    return {name: reports for name, reports in systems.items() if reports}


def groups(evaluation: Evaluation) -> dict[str, list[int]]:
    """The studies of each group: all; those without and with findings; those whose text is not in train."""
    train_texts, studies = set(evaluation.train_reports), range(len(evaluation.references))
    normal = [agreement.is_normal(findings) for findings in evaluation.findings]
    parts = {
        "all": list(studies),
        "normal": [i for i in studies if normal[i]],
        "abnormal": [i for i in studies if not normal[i]],
    }
    if train_texts:
        parts["text not in train"] = [i for i in studies if evaluation.references[i] not in train_texts]
    return {name: rows for name, rows in parts.items() if rows}


class NoLabels(Exception):
    """A report is not among those that a labeller has labelled."""


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
        pairs = list(zip(references, predictions, strict=True))
        extra = {
            name: [extra.scores[pair] for pair in pairs]
            for name, extra in self.evaluation.extra.items()
            if all(pair in extra.scores for pair in pairs)
        }
        return {
            "studies": studies,
            "llama_xr": overlap.statistics(references, predictions, self.wordnet),
            "coco": coco.statistics(cleaned_references, cleaned, meteor, self.frequency),
            "outcomes": self.outcomes(findings, map(self.evaluation.label, predictions)),
            EXTRA: (tuple(extra), np.array([*extra.values()]).reshape(len(extra), len(pairs)).T),
            "texts": overlap.texts(predictions),
        }

    def outcomes(self, truths: Sequence[Findings], found: Iterable[Findings | None]) -> np.ndarray | None:
        """agreement.tally of the classes that are scored; None if a report has no labels."""
        try:
            return agreement.tally(truths, map(self.scored, found), self.evaluation.classes)
        except NoLabels:
            return None

    def scored(self, findings: Findings | None) -> Findings:
        """Without findings.py's findings that are not among the classes."""
        if findings is None:
            raise NoLabels
        unscored = {*FINDINGS, OTHER} - {*self.evaluation.classes}
        return {name: sides for name, sides in findings.items() if name not in unscored}

    def frequent(self) -> list[Findings] | None:
        """The same findings for every study; None without training reports that have labels."""
        reports = self.evaluation.train_reports[:MAX_SWAPPED]  # of MIMIC-CXR's all would take minutes
        try:
            train = [self.scored(self.evaluation.label(report)) for report in reports]
        except NoLabels:
            return None
        told = dict.fromkeys(baselines.frequent_findings(train), frozenset())
        return [told] * len(self.evaluation.references) if train else None

    def samples(self, measured: dict, rows: np.ndarray, n_resamples: int = 1000) -> Samples:
        """The resampled scores of some of the measured studies; a last block has those of each class."""
        blocks = {}
        for block, function in (("llama_xr", overlap), ("coco", coco)):
            if block in measured:
                names, counts = measured[block]
                blocks[block] = names, sample(counts[rows], function.scores, n_resamples)
        if measured["outcomes"] is not None:
            names, samples = agreement.sample_tally(
                measured["outcomes"][rows], self.evaluation.classes, n_resamples
            )
            of = {name: i for i, name in enumerate(names)}
            for block in ("findings", "classes"):
                columns = [of[name] for name in BLOCKS[block]]
                blocks[block] = BLOCKS[block], samples[:, columns]
            blocks["per_class"] = names, samples
        if EXTRA in measured and measured[EXTRA][0]:
            names, scores = measured[EXTRA]
            blocks[EXTRA] = names, sample(scores[rows], lambda sums: sums / len(rows), n_resamples)
        return blocks

    def scores(self, measured: dict, group: Sequence[int], n_resamples: int = 1000) -> tuple[dict, Samples]:
        """Block -> score -> [value, low, high] over the measured studies of a group, and the findings class
        by class; and the samples that they come from."""
        rows = np.flatnonzero(np.isin(measured["studies"], group))
        samples = self.samples(measured, rows, n_resamples)
        blocks = {block: _triples(*of) for block, of in samples.items() if block != "per_class"}
        if "per_class" in samples:
            per_class = agreement.named(*samples["per_class"], self.evaluation.classes)["per_class"]
            blocks["per_class"] = per_class
        if "texts" in measured:
            blocks["reports"] = self.reports(measured["texts"][rows], n_resamples)
        return blocks, samples

    def reports(self, texts: np.ndarray, n_resamples: int = 1000) -> dict:
        """The block about the reports themselves, from rows of overlap.texts."""
        block = overlap.variety(texts, self.train_texts, n_resamples)
        if not self.evaluation.train_reports:
            del block["verbatim_in_train"]
        return block

    def difference(self, own: Samples, other: Samples) -> dict:
        """Block -> score -> [value, low, high] of the system minus another, paired by study. Where less is
        better it is the other minus the system: above 0 the system is always ahead."""
        result = {}
        for block in (b for b in other if b in own and b != "per_class"):
            gaps = {}
            for j, name in enumerate(other[block][0]):
                if name in own[block][0] and name != agreement.SIDES[1]:
                    gap = own[block][1][:, own[block][0].index(name)] - other[block][1][:, j]
                    less = block == EXTRA and self.evaluation.extra[name].less_is_better
                    gaps[name] = -gap if less else gap
            result[block] = _triples(tuple(gaps), np.stack([*gaps.values()], axis=1)) if gaps else {}
        return result


def _triples(names: Sequence[str], samples: np.ndarray) -> dict[str, list[float] | None]:
    """Score -> [value, low, high]; None where it is undefined."""
    rows = interval(samples).tolist()
    return {name: None if np.isnan(row[0]) else row for name, row in zip(names, rows, strict=True)}


def spread(blocks: list[dict]) -> dict:
    """Scores of several seeded swaps -> [mean, lowest, highest] of each. The `reports` block is left out:
    swapping does not change the reports themselves."""
    result = {}
    for block in (*BLOCKS, EXTRA):
        of = [b[block] for b in blocks if block in b]  # extra scores may be those of the first order alone
        if block != "reports" and of:
            values = {name: [b[name][0] for b in of if b.get(name) is not None] for name in of[0]}
            result[block] = {n: [sum(v) / len(v), min(v), max(v)] if v else None for n, v in values.items()}
    return result


def evaluate(evaluation: Evaluation, systems: dict, scorer: Scorer) -> dict:
    """Group -> {"studies": n, "references": the `reports` block of the true reports, "writers": system ->
    block -> score -> [value, low, high], "differences": system -> block -> score -> the same}."""
    parts, true_texts = groups(evaluation), overlap.texts(evaluation.references)
    table = {
        group: {"studies": len(rows), "references": scorer.reports(true_texts[rows]), "writers": {},
                "differences": {}}
        for group, rows in parts.items()
    }  # fmt: skip
    own, own_samples = scorer.measure(systems[SYSTEM]), {}
    measured_already = {SYSTEM: own}
    for name, found in ((FREQUENT, scorer.frequent()), (OUTLINE, evaluation.outlines)):
        if found is not None:  # findings without a report
            every, outcomes = np.arange(len(found)), scorer.outcomes(evaluation.findings, found)
            measured_already[name] = {"studies": every, "outcomes": outcomes}
    for name, reports in {**systems, **measured_already}.items():
        scored = {group: [] for group in parts}
        n_resamples = 0 if name == SWAPPED else 1000  # the swaps have their spread instead of an interval
        # About 200 bytes are measured per study. Only two are in memory: the system's and one other's.
        for order, predictions in enumerate(reports if name == SWAPPED else [reports]):
            measured = measured_already.get(name) or scorer.measure(predictions)
            for group, studies in parts.items():
                if not np.isin(measured["studies"], studies).any():
                    continue  # no study of a small group is among those that were swapped
                blocks, samples = scorer.scores(measured, studies, n_resamples)
                scored[group].append(blocks)
                if name == SYSTEM:
                    own_samples[group] = samples
                elif order == 0:
                    mine = own_samples[group]
                    rows = np.intersect1d(measured["studies"], studies)  # the system's are all studies
                    if name == SWAPPED:
                        samples = scorer.samples(measured, np.searchsorted(measured["studies"], rows))
                        mine = mine if len(rows) == len(studies) else scorer.samples(own, rows)
                    table[group]["differences"][name] = scorer.difference(mine, samples)
            del measured  # before the next is made
        for group, blocks in scored.items():
            if blocks:
                table[group]["writers"][name] = spread(blocks) if name == SWAPPED else blocks[0]
    return table


def titles(compat: bool = False) -> dict[str, str]:
    """The title of each block, which names its convention."""
    return {
        "llama_xr": overlap.CONVENTION,
        "coco": coco.CONVENTION_COMPAT if compat else coco.CONVENTION,
        "findings": "Findings that reports assert, against the true ones",
        "classes": "Critical findings, and CheXpert's 5 and 14 classes",
        "reports": "The reports themselves",
        EXTRA: "Other scores",
    }


def true_findings(reference: str, findings: frozenset[str] | None = None) -> dict[str, frozenset[str]]:
    """A study's true findings with their sides: those that its report asserts or, if the data set gives
    findings of its own, those, with the sides that the report names. OTHER is left out, here and of reports
    that are scored: a study whose only finding is of no class counts as normal."""
    asserted = locate(reference)
    if findings is None:
        return {name: sides for name, sides in asserted.items() if name in FINDINGS}
    return {name: asserted.get(name, frozenset()) for name in findings}

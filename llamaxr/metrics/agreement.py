"""Agreement on findings: what a predicted report asserts, against the true findings of its study.

In: for each study, the true and the predicted findings (findings.py's `locate` or `find`; mesh.py's). Out:
for each study and class, whether it is right, on the wrong side, missed (omission) or invented
(hallucination); and over all studies precision, recall and F1, each with its 95% bootstrap interval.

Micro rates pool all decisions. Macro rates are means over the classes that some true report has, so the
classes are the same for every system, whatever it predicts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from .bootstrap import interval, sample
from .findings import FINDINGS, NO_FINDING

# What must not be missed or invented; and the classes that CheXpert's users report (Irvin et al. 2019), by
# the names of findings.py: its lung lesion is a nodule, its support devices are a device.
GROUPS = {
    "critical": ("pneumothorax", "consolidation", "edema", "nodule", "effusion", "fracture"),
    "chexpert_5": ("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion"),
    "chexpert_14": (
        NO_FINDING, "enlarged cardiomediastinum", "cardiomegaly", "lung opacity", "nodule", "edema",
        "consolidation", "pneumonia", "atelectasis", "pneumothorax", "effusion", "pleural other", "fracture",
        "device"),
}  # fmt: skip
OUTCOMES = RIGHT, WRONG_SIDE, MISSED, INVENTED = ("right", "wrong side", "missed", "invented")
RATES = ("precision", "recall", "f1")
COLUMNS = (*(outcome.replace(" ", "_") for outcome in OUTCOMES), *RATES)  # of a class
MEANS = tuple(f"{mean}_{rate}" for mean in ("micro", "macro", "example") for rate in RATES)
GROUP_MEANS = tuple(f"{group}_{mean}" for group in GROUPS for mean in MEANS[:6])
SIDES = ("sides_right", "sides_named")
SAME_SIDE = 1 + len(OUTCOMES)  # a tally's code of what is right and names the true side
# Findings of a study: their names, or a mapping of the names to their sides.
Findings = Collection[str] | Mapping[str, frozenset[str]]


def outcomes(truth: Findings, predicted: Findings, classes: Sequence[str] = FINDINGS) -> dict[str, str]:
    """One study: class -> one of OUTCOMES, for the classes that are true or predicted.

    A class is on the wrong side if both name a side and the sides differ. NO_FINDING, if it is among the
    classes, is true or predicted where `is_normal`.
    """
    result = {}
    for name in classes:
        is_true, is_predicted = (
            is_normal(f) if name == NO_FINDING else name in f for f in (truth, predicted)
        )
        if is_true and is_predicted:
            result[name] = WRONG_SIDE if len({*_sides(name, truth, predicted)}) == 2 else RIGHT
        elif is_true or is_predicted:
            result[name] = MISSED if is_true else INVENTED
    return result


def is_normal(findings: Findings) -> bool:
    """Whether there is no finding at all, or a labeller says NO_FINDING itself. OTHER counts as a finding,
    where the caller has not left it out (table.py does)."""
    return not findings or NO_FINDING in findings


def _sides(name: str, *of: Findings) -> list[frozenset[str]]:
    """The sides of a finding in each, if each names one."""
    sides = [findings.get(name) if isinstance(findings, Mapping) else None for findings in of]
    return sides if all(sides) else []


def score(
    truths: Sequence[Findings], predictions: Sequence[Findings], classes: Sequence[str] = FINDINGS
) -> dict:
    """Precision, recall and F1 of predicted findings, study by study in the same order.

    Returns, with x each of precision, recall, f1: micro_x (all decisions pooled), macro_x (the mean over
    classes), example_x (the mean over studies); the micro and macro means of each of GROUPS; sides_right, the
    share of sides that are right among sides_named, the findings of which both name a side; intervals: name
    -> [low, high] of each of these; and per_class: name -> the counts right, wrong_side, missed and invented,
    the three x, and the intervals of all seven. A finding on the wrong side counts as found. per_class has a
    row of NO_FINDING, which the means leave out unless it is among the classes: a system that writes only
    normal reports has precision 0.

    Undefined is None: precision where nothing is predicted, recall and F1 where nothing is true. Within
    macro_x and example_x, 0/0 is 0, as in scikit-learn. macro_x leaves out classes that are never true;
    example_x, studies with nothing true or predicted.

    ValueError for lists of unequal length.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(truths)} references for {len(predictions)} predictions")
    return named(*sample_tally(tally(truths, predictions, classes), classes), classes)


def tally(truths: Iterable[Findings], predictions: Iterable[Findings], classes: Sequence[str]) -> np.ndarray:
    """The outcome of each class in each study, (n, classes) of one byte: 0 where the class is neither true
    nor predicted, else 1 + its index in OUTCOMES or SAME_SIDE. NO_FINDING is the last column if not among the
    classes."""
    names = _with_no_finding(classes)
    columns, codes = {name: i for i, name in enumerate(names)}, bytearray()
    for pair in zip(truths, predictions, strict=True):
        study = bytearray(len(names))
        for name, outcome in outcomes(*pair, names).items():
            same_side = outcome == RIGHT and _sides(name, *pair)
            study[columns[name]] = SAME_SIDE if same_side else 1 + OUTCOMES.index(outcome)
        codes += study
    return np.frombuffer(codes, np.uint8).reshape(-1, len(names))


def pooled(codes: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A tally -> how many classes of each study are right, on the wrong side, missed, invented: (n, 4)."""
    codes = codes[:, : len(classes)]
    codes = np.where(codes == SAME_SIDE, 1 + OUTCOMES.index(RIGHT), codes)
    return np.stack([(codes == 1 + i).sum(1) for i in range(len(OUTCOMES))], axis=1)


def named(names: Sequence[str], samples: np.ndarray, classes: Sequence[str]) -> dict:
    """`score`'s dictionary, from `sample_tally`."""
    lines = interval(samples)
    lines = [[None if np.isnan(x) else x for x in line] for line in lines.tolist()]
    n, per_class = len(names), {}
    for i, name in enumerate(_with_no_finding(classes)):
        per_class[name] = _named(COLUMNS, lines[n + len(COLUMNS) * i :])
    return {**_named(names, lines), "per_class": per_class}


def sample_tally(
    codes: np.ndarray, classes: Sequence[str], n_resamples: int = 1000
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the scores, and bootstrap.sample's rows (1 + n_resamples, m) of them and, after them, of
    the COLUMNS of each class."""
    names, n = _with_no_finding(classes), len(codes)
    counts = (codes[..., None] == np.arange(1, 1 + SAME_SIDE)).view(np.uint8)  # (study, class, code)

    def scores(sums: np.ndarray) -> np.ndarray:
        """Sums of counts (r, k) -> the scores of all classes, of each group, of sides, of each class."""
        by_code = sums.reshape(len(sums), len(names), SAME_SIDE)
        by_class = by_code[..., : len(OUTCOMES)].copy()  # (r, class, 4)
        by_class[..., 0] += by_code[..., -1]
        each = _rates(by_class)  # (r, class, 3)
        of = [[names.index(name) for name in group if name in names] for group in GROUPS.values()]
        means = [_means(by_class[:, c], each[:, c]) for c in (list(range(len(classes))), *of)]
        same, other = by_code[:, : len(classes), -1].sum(1), by_class[:, : len(classes), 1].sum(1)
        sides = np.stack([_ratio(same, same + other), same + other], axis=1)
        columns = np.concatenate([by_class, each], axis=2)  # (r, class, 7)
        return np.hstack([*means, sides, columns.reshape(len(sums), -1)])

    samples = sample(counts.reshape(n, len(names) * SAME_SIDE), scores, n_resamples)
    by_study = pooled(codes, classes)  # (study, outcome)
    example = np.hstack([np.nan_to_num(_rates(by_study)), by_study.any(1, keepdims=True)])
    means = sample(example, lambda sums: _ratio(sums[:, :3], sums[:, 3:]), n_resamples)
    means[0, np.isnan(samples[0, :3])] = np.nan  # undefined where the pooled score is
    names = (*MEANS, *GROUP_MEANS, *SIDES)
    return names, np.hstack([samples[:, :6], means, samples[:, 6:]])


def _means(by_class: np.ndarray, each: np.ndarray) -> np.ndarray:
    """Outcomes (r, class, 4) and rates (r, class, 3) of some classes -> micro, then macro rates: (r, 6)."""
    micro, is_true = _rates(by_class.sum(1)), by_class[..., :3].any(2)[..., None]  # (r, 3), (r, class, 1)
    macro = _ratio((np.nan_to_num(each) * is_true).sum(1), is_true.sum(1))
    return np.hstack([micro, np.where(np.isnan(micro), np.nan, macro)])


def _named(names: Sequence[str], lines: list[list[float]]) -> dict:
    """The first lines (value, low, high) by name: head -> value, intervals: head -> [low, high]."""
    pairs = dict(zip(names, lines, strict=False))
    return {
        **{head: value for head, (value, _, _) in pairs.items()},
        "intervals": {head: ends for head, (_, *ends) in pairs.items()},
    }


def _with_no_finding(classes: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*classes, NO_FINDING]))


def _rates(counts: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 (..., 3) of outcomes (..., 4); NaN where they are undefined."""
    tp, fn, fp = counts[..., 0] + counts[..., 1], counts[..., 2], counts[..., 3]
    f1 = np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fn + fp), np.nan)
    return np.stack([_ratio(tp, tp + fp), _ratio(tp, tp + fn), f1], axis=-1)


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.full(np.broadcast(part, total).shape, np.nan), where=total != 0)

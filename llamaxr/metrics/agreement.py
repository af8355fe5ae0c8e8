"""Agreement on findings: what a predicted report asserts, against the true findings of its study.

In: for each study, the true and the predicted findings (findings.py's `locate` or `find`; mesh.py's). Out:
for each study and class, whether it is right, on the wrong side, missed (omission) or invented
(hallucination); and over all studies precision, recall and F1, each with its 95% bootstrap interval.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from .bootstrap import bootstrap
from .findings import FINDINGS, NO_FINDING

OUTCOMES = RIGHT, WRONG_SIDE, MISSED, INVENTED = ("right", "wrong side", "missed", "invented")
RATES = ("precision", "recall", "f1")
COLUMNS = (*(outcome.replace(" ", "_") for outcome in OUTCOMES), *RATES)  # of a class
# Findings of a study: their names, or a mapping of the names to their sides.
Findings = Collection[str] | Mapping[str, frozenset[str]]


def outcomes(truth: Findings, predicted: Findings, classes: Sequence[str] = FINDINGS) -> dict[str, str]:
    """One study: class -> one of OUTCOMES, for the classes that are true or predicted.

    A class is on the wrong side if both name a side and the sides differ. NO_FINDING, if it is among the
    classes, is true or predicted where there is no finding at all; OTHER counts as a finding.
    """
    result = {}
    for name in classes:
        is_true, is_predicted = (not f if name == NO_FINDING else name in f for f in (truth, predicted))
        if is_true and is_predicted:
            sides, others = (f.get(name) if isinstance(f, Mapping) else None for f in (truth, predicted))
            result[name] = WRONG_SIDE if sides and others and sides != others else RIGHT
        elif is_true or is_predicted:
            result[name] = MISSED if is_true else INVENTED
    return result


def score(
    truths: Sequence[Findings], predictions: Sequence[Findings], classes: Sequence[str] = FINDINGS
) -> dict:
    """Precision, recall and F1 of predicted findings, study by study in the same order.

    Returns, with x each of precision, recall, f1: micro_x (all decisions pooled), macro_x (the mean over
    classes), example_x (the mean over studies); intervals: name -> [low, high] of each of these; and
    per_class: name -> the counts right, wrong_side, missed and invented, the three x, and the intervals of
    all seven. A finding on the wrong side counts as found. per_class has a row of NO_FINDING, which the means
    leave out unless it is among the classes: a system that writes only normal reports has precision 0.

    0/0 is 0. macro_x leaves out classes, and example_x studies, in which nothing is true or predicted.
    ValueError for lists of unequal length.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(truths)} references for {len(predictions)} predictions")
    return score_tally(tally(truths, predictions, classes), classes)


def tally(truths: Iterable[Findings], predictions: Iterable[Findings], classes: Sequence[str]) -> np.ndarray:
    """The outcome of each class in each study, (n, classes) of one byte: 0 where the class is neither true
    nor predicted, else 1 + its index in OUTCOMES. NO_FINDING is the last column if not among the classes."""
    names = _with_no_finding(classes)
    columns, codes = {name: i for i, name in enumerate(names)}, bytearray()
    for pair in zip(truths, predictions, strict=True):
        study = bytearray(len(names))
        for name, outcome in outcomes(*pair, names).items():
            study[columns[name]] = 1 + OUTCOMES.index(outcome)
        codes += study
    return np.frombuffer(codes, np.uint8).reshape(-1, len(names))


def pooled(codes: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A tally -> how many classes of each study are right, on the wrong side, missed, invented: (n, 4)."""
    return np.stack([(codes[:, : len(classes)] == 1 + i).sum(1) for i in range(len(OUTCOMES))], axis=1)


def score_tally(codes: np.ndarray, classes: Sequence[str], n_resamples: int = 1000) -> dict:
    """`score` from a tally, or from some of its rows."""
    names, n = _with_no_finding(classes), len(codes)
    counts = (codes[..., None] == np.arange(1, 1 + len(OUTCOMES))).view(np.uint8)  # (study, class, outcome)

    def rates(sums: np.ndarray) -> np.ndarray:
        """Sums of counts (r, k) -> micro and macro means, then the outcomes and rates of each class."""
        by_class = sums.reshape(len(sums), len(names), len(OUTCOMES))
        each = _rates(by_class)  # (r, class, 3)
        occurs = by_class[:, : len(classes)].any(2)[..., None]  # (r, class, 1)
        macro = _ratio((each[:, : len(classes)] * occurs).sum(1), occurs.sum(1))
        micro = _rates(by_class[:, : len(classes)].sum(1))
        columns = np.concatenate([by_class, each], axis=2)  # (r, class, 7)
        return np.hstack([micro, macro, columns.reshape(len(sums), -1)])  # (r, 6 + 7 classes)

    lines = bootstrap(counts.reshape(n, len(names) * len(OUTCOMES)), rates, n_resamples).tolist()
    by_study = pooled(codes, classes)  # (study, outcome)
    example = np.hstack([_rates(by_study), by_study.any(1, keepdims=True)])
    lines[6:6] = bootstrap(example, lambda sums: _ratio(sums[:, :3], sums[:, 3:]), n_resamples).tolist()
    heads = [f"{mean}_{x}" for mean in ("micro", "macro", "example") for x in RATES]
    class_lines = lines[len(heads) :]
    per_class = {name: _named(COLUMNS, class_lines[len(COLUMNS) * i :]) for i, name in enumerate(names)}
    return {**_named(heads, lines), "per_class": per_class}


def _named(heads: Sequence[str], lines: list[list[float]]) -> dict:
    """The first lines (value, low, high) by name: head -> value, intervals: head -> [low, high]."""
    named = dict(zip(heads, lines, strict=False))
    return {
        **{head: value for head, (value, _, _) in named.items()},
        "intervals": {head: interval for head, (_, *interval) in named.items()},
    }


def _with_no_finding(classes: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*classes, NO_FINDING]))


def _rates(counts: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 (..., 3) of outcomes (..., 4)."""
    tp, fn, fp = counts[..., 0] + counts[..., 1], counts[..., 2], counts[..., 3]
    return np.stack([_ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fn + fp)], axis=-1)


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.zeros(np.broadcast(part, total).shape), where=total != 0)

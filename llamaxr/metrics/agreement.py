"""Whether reports say what is there: the findings of two reports of a study, compared and counted.

In: for each study, the true findings and the said ones (findings.py's `locate` or `find`; mesh.py's). Out, a
study and a class at a time: right, on the wrong side, missed (omission) or invented (hallucination); and over
all studies precision, recall and F1, each with its 95% bootstrap interval.
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


def outcomes(truth: Findings, said: Findings, names: Sequence[str] = FINDINGS) -> dict[str, str]:
    """One study: what became of each finding of names that is true or said, as one of OUTCOMES.

    On the wrong side is what both name with a side, and not with the same. NO_FINDING, if among names, is
    true of a study, and said of it, where there is nothing at all; OTHER is something.
    """
    found = {}
    for name in names:
        there, named = (not f if name == NO_FINDING else name in f for f in (truth, said))
        if there and named:
            sides, said_sides = (f.get(name) if isinstance(f, Mapping) else None for f in (truth, said))
            found[name] = WRONG_SIDE if sides and said_sides and sides != said_sides else RIGHT
        elif there or named:
            found[name] = MISSED if there else INVENTED
    return found


def score(truths: Sequence[Findings], said: Sequence[Findings], names: Sequence[str] = FINDINGS) -> dict:
    """Precision, recall and F1 of reports against the truth, study by study in the same order.

    Returns, with x each of precision, recall, f1: micro_x (all decisions pooled), macro_x (the mean over
    classes), example_x (the mean over studies); intervals: name -> [low, high] of each of these; and
    per_class: name -> how many were right, wrong_side, missed and invented, the three x, and the intervals of
    all seven; what is on the wrong side counts as found. per_class has a row of NO_FINDING, which the means
    leave out unless names holds it: silence earns nothing, a writer of normal reports alone has precision 0.

    Where a ratio is 0/0 it is 0. Classes and studies in which nothing is true or said say nothing, and
    macro_x and example_x leave them out. ValueError for lists of unequal length.
    """
    if len(truths) != len(said):
        raise ValueError(f"{len(truths)} references for {len(said)} generated reports")
    return score_of(tally(truths, said, names), names)


def tally(truths: Iterable[Findings], said: Iterable[Findings], names: Sequence[str]) -> np.ndarray:
    """What became of each class in each study, a byte each: (n, classes) of 0, where it is neither true nor
    said, or 1 + its place in OUTCOMES. The classes are names, then NO_FINDING if it is not among them."""
    rows = _rows(names)
    places, codes = {name: i for i, name in enumerate(rows)}, bytearray()
    for pair in zip(truths, said, strict=True):
        study = bytearray(len(rows))
        for name, outcome in outcomes(*pair, rows).items():
            study[places[name]] = 1 + OUTCOMES.index(outcome)
        codes += study
    return np.frombuffer(codes, np.uint8).reshape(-1, len(rows))


def pooled(codes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(n, classes) of `tally` -> how many of names were right, wrong in side, missed, invented: (n, 4)."""
    return np.stack([(codes[:, : len(names)] == 1 + i).sum(1) for i in range(len(OUTCOMES))], axis=1)


def score_of(codes: np.ndarray, names: Sequence[str], n_resamples: int = 1000) -> dict:
    """`score` of the studies of a tally."""
    rows, n = _rows(names), len(codes)
    counts = (codes[..., None] == np.arange(1, 1 + len(OUTCOMES))).view(np.uint8)  # (study, class, outcome)

    def rates(sums: np.ndarray) -> np.ndarray:
        """From sums of counts (r, k) to micro and macro means, then each class's outcomes and rates."""
        classes = sums.reshape(len(sums), len(rows), len(OUTCOMES))
        each = _rates(classes)  # (r, class, 3)
        scored = classes[:, : len(names)].any(2)[..., None]  # (r, class, 1)
        macro = _ratio((each[:, : len(names)] * scored).sum(1), scored.sum(1))
        own = np.concatenate([classes, each], axis=2)  # (r, class, 7)
        micro = _rates(classes[:, : len(names)].sum(1))
        return np.hstack([micro, macro, own.reshape(len(sums), -1)])  # (r, 6 + 7 classes)

    table = bootstrap(counts.reshape(n, len(rows) * len(OUTCOMES)), rates, n_resamples).tolist()
    own = pooled(codes, names)  # (study, outcome)
    example = np.hstack([_rates(own), own.any(1, keepdims=True)])
    table[6:6] = bootstrap(example, lambda sums: _ratio(sums[:, :3], sums[:, 3:]), n_resamples).tolist()
    heads = [f"{mean}_{x}" for mean in ("micro", "macro", "example") for x in RATES]
    lines = table[len(heads) :]
    each = {name: _named(COLUMNS, lines[len(COLUMNS) * i :]) for i, name in enumerate(rows)}
    return {**_named(heads, table), "per_class": each}


def _named(heads: Sequence[str], lines: list[list[float]]) -> dict:
    """The first of lines (value, low, high) by their names: name -> value, intervals: name -> [low, high]."""
    own = dict(zip(heads, lines, strict=False))
    return {
        **{head: value for head, (value, _, _) in own.items()},
        "intervals": {head: interval for head, (_, *interval) in own.items()},
    }


def _rows(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*names, NO_FINDING]))


def _rates(counts: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 (..., 3) of outcomes (..., 4)."""
    tp, fn, fp = counts[..., 0] + counts[..., 1], counts[..., 2], counts[..., 3]
    return np.stack([_ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fn + fp)], axis=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)

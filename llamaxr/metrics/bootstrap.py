"""95% bootstrap intervals (Efron 1979) of scores, over the studies of a split.

In: a row of counts per study, (n studies, k columns), and the score as a function of their sums. Out: the
score with its interval. Corpus BLEU, micro and macro F1 and plain means are all functions of summed per-study
counts, so no report is read again: a resample is a row of how often each study is drawn, and all resamples
are one matrix product. Time grows with the studies, memory does not: draws and products are made in blocks.
"""

from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 4_000_000  # draws in memory at a time: 32 MiB
STUDIES = 20_000  # studies whose counts are float64 at a time


def bootstrap(
    counts: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    n_resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Scores with their 95% percentile intervals: (m, 3), each row value, low, high.

    counts: (n, k), a row per study. score: sums (rows, k) -> scores (rows, m), row by row. A row of sums is
    over n studies drawn with replacement, so a mean is `lambda sums: sums / n`. Without studies or resamples,
    low and high are the value.
    """
    return interval(sample(counts, score, n_resamples, seed))


def sample(
    counts: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    n_resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """The scores of all studies, then those of each resample: (1 + n_resamples, m).

    Equal seed and n give equal resamples. So two systems on the same studies are compared by
    `interval(sample(a) - sample(b))`: their difference is resampled in pairs. NaN is undefined.
    """
    counts = np.asarray(counts)
    assert counts.ndim == 2
    value = score(counts.sum(0, dtype=np.float64, keepdims=True))  # (1, m)
    blocks = [score(_sums(draws, counts)) for draws in resamples(len(counts), n_resamples, seed)]
    return np.concatenate([value, *blocks])


def interval(samples: np.ndarray) -> np.ndarray:
    """`sample`'s rows -> (m, 3), each row value, low, high; NaN where the value is undefined.

    A resample in which the score is undefined counts as 0, so a score that few studies decide has a wide
    interval. A difference of two scores is undefined if either is: its 0 then favours neither.
    """
    value, drawn = samples[0], samples[1:] if len(samples) > 1 else samples
    low, high = np.quantile(np.nan_to_num(drawn), [0.025, 0.975], axis=0)  # each (m,)
    result = np.stack([value, low, high], axis=1)
    result[np.isnan(value)] = np.nan
    return result


def resamples(n: int, n_resamples: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of n studies is drawn in each resample, in blocks (rows, n) of bounded size."""
    rng, rows = np.random.default_rng(seed), max(1, BLOCK // max(n, 1))
    for start in range(0, n_resamples if n else 0, rows):
        size = (min(rows, n_resamples - start), n)
        # One draw at a time, then counted: a tenth of the time of rng.multinomial(n, [1 / n] * n).
        drawn = rng.integers(n, size=size) + n * np.arange(size[0])[:, None]  # each row counts on its own
        yield np.bincount(drawn.ravel(), minlength=size[0] * n).reshape(size).astype(np.float64)


def _sums(draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """draws (rows, n) @ counts (n, k) in float64, which adds whole numbers below 2**53 exactly."""
    parts = (slice(start, start + STUDIES) for start in range(0, len(counts), STUDIES))
    return sum(draws[:, part] @ counts[part].astype(np.float64) for part in parts)

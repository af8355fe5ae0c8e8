"""How far a score may be trusted: 95% bootstrap intervals (Efron 1979) over the studies of a split.

In: what each study contributes, as counts (n studies, k columns), and the score as a function of their sums.
Out: the score with its interval. Corpus BLEU, micro and macro F1, and plain means are all functions of summed
per-study counts, so no report is read again: a resample of the studies is a row of how often each was drawn,
and all resamples are one matrix product. Time grows with the studies, memory does not: draws and products are
made in blocks.
"""

from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 4_000_000  # draws held at a time: 32 MiB, however many studies
STUDIES = 20_000  # whose counts are held as float64 at a time


def bootstrap(
    counts: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> np.ndarray:
    """Scores with their percentile intervals: (m, 3), each row value, low, high.

    counts: (n, k), a row a study. score: from sums (rows, k) to scores (rows, m), row by row and NaN-free;
    each row is the sum of n studies drawn with replacement, so a mean is `lambda sums: sums / n`. Two systems
    compared on the same studies are columns of one array: their difference is then resampled in pairs.
    Equal seed and n give equal resamples. With no study, or no resample, low and high are the value.
    """
    counts = np.asarray(counts)
    assert counts.ndim == 2 and 0 < level < 1
    n = len(counts)
    value = score(counts.sum(0, dtype=np.float64, keepdims=True))  # (1, m)
    if n == 0 or n_resamples == 0:
        return np.repeat(value, 3, 0).T
    blocks = [score(_sums(drawn, counts)) for drawn in resamples(n, n_resamples, seed)]  # each (rows, m)
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(blocks), [tail, 1 - tail], axis=0)  # each (m,)
    return np.stack([value[0], low, high], axis=1)


def resamples(n: int, n_resamples: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of n studies is drawn in each resample, in blocks (rows, n) of a bounded size."""
    rng, rows = np.random.default_rng(seed), max(1, BLOCK // n)
    for at in range(0, n_resamples, rows):
        size = (min(rows, n_resamples - at), n)
        # Drawn one by one and counted: what rng.multinomial(n, [1 / n] * n) does in ten times as long.
        drawn = rng.integers(n, size=size) + n * np.arange(size[0])[:, None]  # each row has its own places
        yield np.bincount(drawn.ravel(), minlength=size[0] * n).reshape(size).astype(np.float64)


def _sums(drawn: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """drawn (rows, n) @ counts (n, k), in float64, in which whole numbers below 2**53 add up exactly."""
    parts = (slice(at, at + STUDIES) for at in range(0, len(counts), STUDIES))
    return sum(drawn[:, part] @ counts[part].astype(np.float64) for part in parts)

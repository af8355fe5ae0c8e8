"""Questions that the scores leave open, as functions of arrays. tools/probe.py asks them of a run.

What do the frozen vision features contain? A linear probe (Alain and Bengio 2016): where the labelled
findings cannot be read off the features linearly, the language model has little to work with; where they can
and its reports do not tell them, the language model has not learned to read the features. What did
fine-tuning teach? The perplexity of true reports, separately on the words that name findings: learning the
style lowers both parts; what the images of another study make worse again came from the images. Do reports
follow the scores? How often a report asserts a finding whose score denies it.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .bootstrap import bootstrap, resamples
from .findings import mentions

PENALTIES = np.logspace(-4, 4, 17)  # times the mean eigenvalue: from almost no penalty to almost no fit


def linear_probe(
    features: np.ndarray, present: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit classes to features (n, d), present (n, k) of 0 and 1; returns the scores (m, k) of queries (m, d),
    and those of the fitted studies (n, k), each as if it had been left out.

    Ridge regression on standardised features, w = (X'X + penalty I)^-1 X'y: only the order of the scores
    matters to an AUROC, and least squares order them as Fisher's discriminant does. Each class has the
    penalty with the smallest leave-one-out error, which needs no second fit: the error of a study that is
    left out is its residual divided by 1 - its leverage. So nothing is tuned on the queries or on a split of
    its own.
    """
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 0, std, 1)
    x, y = (features - mean) / std, present - present.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)  # (d,), (d, d)
    values, x = np.maximum(values, 0), x @ vectors  # in these axes X'X is diagonal
    xy = x.T @ y  # (d, k)
    penalties = PENALTIES * values.mean()

    def residuals(penalty: float) -> np.ndarray:  # (n, k), of studies left out
        shrink = 1 / (values + penalty)  # (d,)
        leverage = 1 / len(x) + x**2 @ shrink  # (n,), the mean's part included
        return (y - x @ (xy * shrink[:, None])) / (1 - leverage)[:, None]

    best = np.argmin([(residuals(penalty) ** 2).mean(0) for penalty in penalties], axis=0)  # (k,)
    left_out = np.empty_like(y)
    for i in {*best.tolist()}:
        left_out[:, best == i] = present[:, best == i] - residuals(penalties[i])[:, best == i]
    weights = vectors @ (xy / (values[:, None] + penalties[best]))  # (d, k)
    return (queries - mean) / std @ weights + present.mean(0), left_out


def best_threshold(scores: np.ndarray, present: np.ndarray) -> float:
    """The t for which scores >= t have the highest F1, all classes pooled. scores, present: (n, k)."""
    order = np.argsort(-scores, axis=None)
    right = np.cumsum(present.ravel()[order])  # among the 1, 2, ... highest scores
    f1 = 2 * right / (np.arange(1, right.size + 1) + present.sum())
    scores = scores.ravel()[order]
    f1[:-1][scores[:-1] == scores[1:]] = 0  # a threshold cannot part equal scores
    return float(scores[np.argmax(f1)])


def auroc(predicted: np.ndarray, present: np.ndarray) -> float:
    """The probability that a study with the finding scores above one without; ties count half.

    predicted, present: (n,), present of 0 and 1. NaN unless both occur.
    """
    return _aurocs(np.asarray(predicted), np.asarray(present), np.ones((1, len(present))))[0].item()


def auroc_interval(predicted: np.ndarray, present: np.ndarray) -> list[float]:
    """auroc with its 95% bootstrap interval: value, low, high. Resamples in which it is NaN are left out."""
    values = np.concatenate([_aurocs(predicted, present, draws) for draws in resamples(len(present))])
    return [auroc(predicted, present), *np.nanquantile(values, [0.025, 0.975]).tolist()]


def _aurocs(predicted: np.ndarray, present: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The auroc of each row of draws (rows, n), which has how often each study is drawn: (rows,)."""
    order = np.argsort(predicted, kind="stable")
    ranked = predicted[order]
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else []  # first indices
    if not len(ties):
        return np.full(len(draws), np.nan)
    weights = [draws[:, order] * (present == kind)[order] for kind in (1, 0)]
    n_with, n_without = (np.add.reduceat(w, ties, axis=1) for w in weights)  # (rows, ties)
    below = (n_with * (n_without.cumsum(1) - n_without / 2)).sum(1)
    pairs = n_with.sum(1) * n_without.sum(1)
    return np.divide(below, pairs, out=np.full(len(draws), np.nan), where=pairs > 0)


def names_a_finding(pieces: Sequence[bytes]) -> np.ndarray:
    """Which tokens of a report, given as bytes, are at least in part in words that name a finding
    (findings.mentions), asserted, doubted or denied: (tokens,) of bool."""
    text = b"".join(pieces).decode("utf-8", errors="replace")
    in_mention = np.zeros(len(text.encode()), bool)
    for m in mentions(text):
        in_mention[len(text[: m.start].encode()) : len(text[: m.end].encode())] = True
    ends = np.cumsum([len(piece) for piece in pieces], dtype=int)
    spans = zip(ends, pieces, strict=True)
    return np.array([in_mention[end - len(piece) : end].any() for end, piece in spans], bool)


def perplexity(losses: Sequence[np.ndarray], named: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """exp of the mean loss per token: over all tokens, over those that name findings, and over the rest, each
    as value, low, high. losses: nats of each token, per report. named: names_a_finding of the same tokens."""
    sums = [[x[n].sum(), n.sum(), x[~n].sum(), (~n).sum()] for x, n in zip(losses, named, strict=True)]

    def scores(sums: np.ndarray) -> np.ndarray:
        loss, count = sums[:, [0, 2]], sums[:, [1, 3]]
        loss, count = (np.hstack([a.sum(1, keepdims=True), a]) for a in (loss, count))
        return np.exp(loss / np.maximum(count, 1))  # (rows, 3)

    return dict(zip(("all", "findings", "rest"), bootstrap(sums, scores).tolist(), strict=True))


def denials(
    predictions: Sequence[Collection[str]],
    scores: np.ndarray,
    columns: Mapping[str, Sequence[int]],
    below: float,
) -> dict[str, dict]:
    """How often reports assert what the scores deny: for each finding of columns, and "all" of them together,
    the counts asserted and denied, and their ratio with its interval.

    predictions: the findings that each report asserts. scores: (n, m), of the same studies. columns: the
    scores that belong to each finding; it is denied where all of them are below the threshold.
    """
    asserted = np.array([[name in findings for name in columns] for findings in predictions])  # (n, k)
    low = np.stack([(scores[:, list(c)] < below).all(1) for c in columns.values()], axis=1)
    counts = np.stack([asserted, asserted & low], axis=2).astype(float)  # (n, k, 2)
    counts = np.concatenate([counts.sum(1, keepdims=True), counts], axis=1)  # (n, 1 + k, 2)

    def share(sums: np.ndarray) -> np.ndarray:
        pairs = sums.reshape(len(sums), -1, 2)
        return pairs[..., 1] / np.maximum(pairs[..., 0], 1)

    shares = bootstrap(counts.reshape(len(counts), -1), share).tolist()
    totals = counts.sum(0).astype(int).tolist()
    return {name: {"asserted": n, "denied": k, "share": interval}
            for name, (n, k), interval in zip(("all", *columns), totals, shares, strict=True)}  # fmt: skip

"""Three questions that the table of scores leaves open, as functions of arrays; llamaxr/probe.py asks a run.

What does vision know at all? A linear probe (Alain and Bengio 2016): where the findings that people saw
cannot be read off the frozen features linearly, the language model behind them has little to go by. What did
fine-tuning teach? The perplexity of true reports, on the words that name findings apart from all others:
learning the style alone lowers both; what another study's images make worse again came from the images. Do
reports heed the scores? How often one asserts a finding whose score denies it.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .bootstrap import bootstrap, resamples
from .findings import mentions

PENALTIES = np.logspace(-4, 4, 17)  # times the mean eigenvalue: from next to none to next to nothing learned


def linear_probe(features: np.ndarray, present: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Learn classes from features (n, d), present (n, k) of 0 and 1; give asked (m, d) its scores (m, k).

    Ridge regression on standardised features, w = (X'X + penalty I)^-1 X'y: only the order of studies matters
    to an AUROC, and least squares order them as Fisher's discriminant does. Each class has the penalty with
    the smallest leave-one-out error, which needs no second fit: the error of a study left out is its residual
    divided by 1 - its leverage. So nothing is tuned on what is asked, nor on a split of its own.
    """
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 0, std, 1)
    x, y = (features - mean) / std, present - present.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)  # (d,), (d, d)
    values, x = np.maximum(values, 0), x @ vectors  # in these axes X'X is diagonal
    xy = x.T @ y  # (d, k)
    penalties, errors = PENALTIES * values.mean(), []
    for penalty in penalties:
        shrink = 1 / (values + penalty)  # (d,)
        leverage = 1 / len(x) + x**2 @ shrink  # (n,), the mean's part included
        left_out = (y - x @ (xy * shrink[:, None])) / (1 - leverage)[:, None]
        errors.append((left_out**2).mean(0))
    best = penalties[np.argmin(errors, axis=0)]  # (k,)
    return (asked - mean) / std @ (vectors @ (xy / (values[:, None] + best)))


def auroc(predicted: np.ndarray, present: np.ndarray) -> float:
    """The chance that a study with the finding scores above one without, ties half; NaN without both kinds.

    predicted, present: (n,), present of 0 and 1.
    """
    return _aurocs(np.asarray(predicted), np.asarray(present), np.ones((1, len(present))))[0].item()


def auroc_interval(predicted: np.ndarray, present: np.ndarray) -> list[float]:
    """auroc with its 95% bootstrap interval: value, low, high. Resamples that lack a kind have none."""
    values = np.concatenate([_aurocs(predicted, present, drawn) for drawn in resamples(len(present))])
    return [auroc(predicted, present), *np.nanquantile(values, [0.025, 0.975]).tolist()]


def _aurocs(predicted: np.ndarray, present: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The auroc of each row of drawn (rows, n), which says how often each study is there: (rows,)."""
    order = np.argsort(predicted, kind="stable")
    ranked = predicted[order]
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else []  # where each begins
    if not len(ties):
        return np.full(len(drawn), np.nan)
    weights = [drawn[:, order] * (present == kind)[order] for kind in (1, 0)]
    with_it, without = (np.add.reduceat(w, ties, axis=1) for w in weights)  # (rows, ties)
    below = (with_it * (without.cumsum(1) - without / 2)).sum(1)
    pairs = with_it.sum(1) * without.sum(1)
    return np.divide(below, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)


def names_a_finding(pieces: Sequence[bytes]) -> np.ndarray:
    """Which tokens of a report, given as the bytes that each stands for, lie at least in part in words that
    name a finding (findings.mentions), be it asserted, doubted or denied: (tokens,) of bool."""
    text = b"".join(pieces).decode("utf-8", errors="replace")
    inside = np.zeros(len(text.encode()), bool)
    for m in mentions(text):
        inside[len(text[: m.start].encode()) : len(text[: m.end].encode())] = True
    ends = np.cumsum([len(piece) for piece in pieces], dtype=int)
    return np.array([inside[end - len(p) : end].any() for end, p in zip(ends, pieces, strict=True)], bool)


def perplexity(losses: Sequence[np.ndarray], named: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """exp of the mean loss a token: of all tokens, of those that name findings, and of the rest, each as
    value, low, high. losses: for each report, nats of each token; named: names_a_finding of the same."""
    sums = [[x[n].sum(), n.sum(), x[~n].sum(), (~n).sum()] for x, n in zip(losses, named, strict=True)]

    def scores(sums: np.ndarray) -> np.ndarray:
        loss, count = sums[:, [0, 2]], sums[:, [1, 3]]
        loss, count = (np.hstack([a.sum(1, keepdims=True), a]) for a in (loss, count))
        return np.exp(loss / np.maximum(count, 1))  # (rows, 3)

    return dict(zip(("all", "findings", "rest"), bootstrap(sums, scores).tolist(), strict=True))


def denials(
    said: Sequence[Collection[str]], scores: np.ndarray, columns: Mapping[str, Sequence[int]], below: float
) -> dict[str, dict]:
    """How often reports assert what the scores deny: for each finding of columns, and "all" of them together,
    the counts asserted and denied, and their share with its interval.

    said: the findings that each report asserts; scores: (n, m), of the same studies; columns: which of the m
    stand for a finding. It is denied where all of these are below the threshold.
    """
    asserted = np.array([[name in findings for name in columns] for findings in said])  # (n, k)
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

"""What a system must beat to have looked at the image: reports that were written without looking.

One report for all, the best that can be found on the validation split; a random training report each; the
report of the training study whose image is most alike; and, for the model itself, another patient's images.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from .overlap import Together, stems, tokenize


def constant_report(
    train_reports: Sequence[str],
    references: Sequence[str],
    n_candidates: int = 200,
    seed: int = 0,
    n_changes: int = 2500,
    n_sentences: int = 150,
    fits: Callable[[str], bool] = lambda text: True,
) -> str:
    """One report, of training sentences, found by search to score a high mean ROUGE-L when written for all.

    The search starts from the best of n_candidates training reports, half of them the most frequent, half
    drawn at random. It then tries n_changes drawn changes one after the other and keeps each that helps: one
    of the n_sentences most frequent training sentences put in or put for another, or a sentence left out. Of
    equal reports the earlier stays, so with nothing to gain, or no references, it is the most frequent one.
    Only what fits is chosen; among the candidates there must be a report that does. references should be the
    validation split's, never those to be scored.
    """
    assert train_reports and n_candidates >= 2
    rng = np.random.default_rng(seed)
    half = min(n_candidates // 2, len(train_reports))
    frequent = [text for text, _ in Counter(train_reports).most_common(half)]
    drawn = [train_reports[i] for i in rng.choice(len(train_reports), half, replace=False)]
    candidates = filter(fits, dict.fromkeys(frequent + drawn))  # in order, each once
    truths = [words for words in (stems(tokenize(text)) for text in references) if words]
    together = Together(truths) if truths else None

    def value(text: str) -> float:  # ROUGE-L, summed: overlap.rouge_l with the references read once
        return together.f_measures(stems(tokenize(text))).sum() if truths else 0.0

    best = max(candidates, key=value)
    score, report = value(best), _sentences(best)
    pool = [
        text for text, _ in Counter(s for r in train_reports for s in _sentences(r)).most_common(n_sentences)
    ]
    for _ in range(n_changes if truths and pool else 0):
        at, new = int(rng.integers(len(report) + 1)), pool[rng.integers(len(pool))]
        # one sentence in, one for another (at the end: in), or one out
        changed = [
            report[:at] + [new] + report[at:],
            report[:at] + [new] + report[at + 1 :],
            report[:at] + report[at + 1 :],
        ][rng.integers(3)]
        if (now := value(" ".join(changed))) > score and fits(" ".join(changed)):
            best, score, report = " ".join(changed), now, changed
    return best


def random_reports(train_reports: Sequence[str], n: int, seed: int) -> list[str]:
    """For each of n studies a training report drawn at random, with replacement. There must be one."""
    assert train_reports
    return [train_reports[i] for i in np.random.default_rng(seed).integers(len(train_reports), size=n)]


def nearest_reports(
    train_features: np.ndarray,
    train_reports: Sequence[str],
    features: np.ndarray,
    batch: int = 1024,
) -> list[str]:
    """For each study the report of the training study whose image features have the largest cosine to its.

    train_features: (n_train, d), a row a training report. features: (n, d), both finite. Cosines equal to
    within 1e-6 are a tie, which the first training study wins; a row of zeros is as far from everything.
    """
    assert len(train_features) == len(train_reports) > 0
    known, asked = _unit(train_features), _unit(features)
    reports = []
    for at in range(0, len(asked), batch):
        cosine = np.round(asked[at : at + batch] @ known.T, 6)  # (batch, n_train)
        reports += [train_reports[i] for i in cosine.argmax(1)]
    return reports


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _sentences(report: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", report.strip()) if s]


def derangement(n: int, seed: int) -> list[int]:
    """A seeded order of n studies in which none keeps its place, all such orders equally likely.

    Drawn until one fits, which a random order does with probability 1/e. Sattolo's shuffle needs one draw,
    but gives only the orders that are a single cycle. ValueError for n < 2: there is no such order.
    """
    if n < 2:
        raise ValueError(f"{n} studies cannot change places")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order.tolist()

"""What a system must beat to have looked at the image: reports that were written without looking.

One report for all, the best that can be found on the validation split; a random training report each; the
report of the training study whose image is most alike; and, for the model itself, another patient's images.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from .overlap import Together, stems, tokenize


def constant_report(
    train_reports: Sequence[str],
    references: Sequence[str],
    n_candidates: int = 200,
    seed: int = 0,
    n_changes: int = 2500,
    n_sentences: int = 150,
    temperature: float = 0.0,
    words_of: Callable[[str], list[str]] = lambda text: stems(tokenize(text)),
    likeness: Callable[[Together, list[str]], np.ndarray] = Together.rouge_l,
    fits: Callable[[str], bool] = lambda text: True,
) -> str:
    """One report, of training sentences, found by search to score a high mean ROUGE-L when written for all.

    The search starts from the best of n_candidates training reports, half of them the most frequent, half
    drawn at random. It then tries n_changes drawn changes one after the other and keeps each that helps: one
    of the n_sentences most frequent training sentences put in or put for another, or a sentence left out. Of
    equal reports the earlier stays, so with nothing to gain, or no references, it is the most frequent one.
    temperature: a change that costs so much of the mean may be kept too, less and less, so that the search
    leaves a report that no single change betters (annealing, Kirkpatrick et al. 1983); the best is returned.
    words_of: what is compared, if not stems. likeness: another score, of a report's words to each reference.
    Only what fits is chosen; among the candidates there must be a report that does. references should be the
    validation split's, never those to be scored.
    """
    assert train_reports and n_candidates >= 2
    rng = np.random.default_rng(seed)
    half = min(n_candidates // 2, len(train_reports))
    frequent = [text for text, _ in Counter(train_reports).most_common(half)]
    drawn = [train_reports[i] for i in rng.choice(len(train_reports), half, replace=False)]
    candidates = [text for text in dict.fromkeys(frequent + drawn) if fits(text)]  # in order, each once
    truths = [words for words in map(words_of, references) if words]
    if not truths:
        return candidates[0]
    together = Together(truths)
    words_of, fits = cache(words_of), cache(fits)

    @cache
    def value(report: tuple[str, ...]) -> float:
        return likeness(together, [word for sentence in report for word in words_of(sentence)]).mean()

    pool = Counter(sentence for report in train_reports for sentence in _sentences(report))
    pool = [sentence for sentence, _ in pool.most_common(n_sentences)]
    report = best = max(map(_sentences, candidates), key=value)
    for left in range(n_changes if pool else 0, 0, -1):
        at, new = int(rng.integers(len(report) + 1)), (pool[rng.integers(len(pool))],)
        # one sentence in, one for another (at the end: in), or one out
        changed = [
            report[:at] + new + report[at:],
            report[:at] + new + report[at + 1 :],
            report[:at] + report[at + 1 :],
        ][rng.integers(3)]
        allowed = temperature and temperature * left / n_changes * rng.exponential()
        if value(changed) > value(report) - allowed and fits(" ".join(changed)):
            report = changed
            best = max(best, report, key=value)
    return " ".join(best)


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


def _sentences(report: str) -> tuple[str, ...]:
    return tuple(s for s in re.split(r"(?<=[.!?])\s+", report.strip()) if s)


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

"""What a system must beat to have looked at the image: one report for all, and another patient's images."""

from collections import Counter

import numpy as np

from .overlap import rouge_l


def constant_report(
    train_reports: list[str], references: list[str], n_candidates: int = 200, seed: int = 0
) -> str:
    """Of the training reports, the one that scores the highest mean ROUGE-L when written for all references.

    Half of the candidates are the most frequent training reports, half are drawn at random; of equal ones,
    and where there are no references, the more frequent wins. There must be a training report. references
    should be the validation split's, never those of the split to be scored.
    """
    assert train_reports and n_candidates >= 2
    rng = np.random.default_rng(seed)
    half = min(n_candidates // 2, len(train_reports))
    frequent = [text for text, _ in Counter(train_reports).most_common(half)]
    drawn = [train_reports[i] for i in rng.choice(len(train_reports), half, replace=False)]
    candidates = dict.fromkeys(frequent + drawn)  # in order, each once
    return max(candidates, key=lambda text: rouge_l(references, [text] * len(references)))


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

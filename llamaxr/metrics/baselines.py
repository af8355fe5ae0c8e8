"""What a system must beat to have looked at the image: one report for all, and another patient's images."""

from collections import Counter

import numpy as np

from .overlap import rouge_l


def constant_report(train: list[str], references: list[str], n_candidates: int = 100, seed: int = 0) -> str:
    """Of the training reports, the one that scores the highest mean ROUGE-L when written for all references.

    Half of the candidates are the most frequent training reports, half are drawn at random; at most 200
    references are compared with. references should be the validation split's, never the one to be scored.
    """
    rng = np.random.default_rng(seed)
    frequent = [text for text, _ in Counter(train).most_common(n_candidates // 2)]
    drawn = [train[i] for i in rng.choice(len(train), min(n_candidates // 2, len(train)), replace=False)]
    picked = [references[i] for i in rng.choice(len(references), min(200, len(references)), replace=False)]
    return max(dict.fromkeys(frequent + drawn), key=lambda text: rouge_l(picked, [text] * len(picked)))


def derangement(n: int, seed: int) -> list[int]:
    """A seeded order of n studies in which none keeps its place, all such orders equally likely.

    Drawn until one fits: a random order is one with probability 1/e. ValueError for n < 2.
    """
    if n < 2:
        raise ValueError(f"{n} studies cannot change places")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order.tolist()

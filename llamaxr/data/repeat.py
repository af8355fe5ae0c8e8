"""Rare findings, drawn more often: repeat factor sampling (Gupta, Dollar and Girshick 2019, LVIS).

In: the training pairs. Out: the same, with studies of rare findings several times. 855 of IU X-ray's 2069
training studies assert no finding, and 9 a pneumothorax: a model that never writes the word loses little. A
finding that a share f of the studies have gets the factor max(1, sqrt(share / f)), and a study the largest of
its findings' factors. The square root is the compromise: a rare finding is seen more often, but still less
often than a common one.
"""

import math
from collections import Counter

import numpy as np

from ..metrics.findings import FINDINGS, find
from .study import Study


def repeat_rare(pairs: list[tuple], share: float, seed: int) -> list[tuple]:
    """The (anything, study) pairs, each as often as its repeat factor says, copies next to each other.

    share: findings of less than this share of the studies are repeated; 0 repeats none. A factor of 2.3 gives
    two copies, and a third with probability 0.3, drawn by the seed.
    """
    if not share:
        return pairs
    found = [findings_of(study) for _, study in pairs]
    n_with = Counter(name for names in found for name in names)
    factor = {name: max(1.0, math.sqrt(share * len(pairs) / n)) for name, n in n_with.items()}
    factors = [max((factor[name] for name in names), default=1.0) for names in found]
    drawn = np.random.default_rng(seed).random(len(pairs))
    copies = [math.floor(f + x) for f, x in zip(factors, drawn, strict=True)]
    return [pair for pair, n in zip(pairs, copies, strict=True) for _ in range(n)]


def findings_of(study: Study) -> set[str]:
    """The known findings of a study, or else those that its report asserts."""
    return set(find(study.report) if study.findings is None else study.findings) & set(FINDINGS)

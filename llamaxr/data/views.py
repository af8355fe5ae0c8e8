"""Which of a study's images is the frontal, where a data set does not say: Open-i's.

Open-i's XML names images in the order of their file numbers and says "PA and lateral" once for all of them.
The first is mostly the frontal, but not always. Two things know better, each asked where it is cheap:

1. The XML describes each image in five codes (CEDD, ColorLayout, ...: the image's cluster in a collection of
   medical images). Codes that stand mostly at first images are frontal codes; the sum of their log odds over
   an image says how frontal it is (naive Bayes, with the order as its first guess, told anew three times by
   what it found). In most studies order and codes agree, and that settles it.
2. Where they don't, the pixels decide: a chest is its own mirror image from the front, not from the side.

Of the 3405 studies with two images or more the codes contest 413, among them CXR1 (3001, 4001) and all 52
whose images are 1001 and 4004. benchmarks/views.py measures how often this agrees with Kaggle's projection
column: on simulated images (make_iu_sim.py), which draw the first as the frontal, in 3844 of 3851 studies. Of
the real column excerpts alone were at hand (benchmarks/LOG.md).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

Described = tuple[Path, Mapping[str, str]]  # an image and its codes, by name


def pick_views(studies: Mapping[str, Sequence[Described]]) -> dict[str, tuple[Path | None, Path | None]]:
    """For each study the frontal and the lateral: of its first two images, as Open-i names them, the one that
    looks frontal, and the other. A single image is the frontal; a study without images has neither."""
    pairs = {uid: images[:2] for uid, images in studies.items() if len(images) >= 2}
    contested = [uid for uid, swapped in codes_say(pairs).items() if swapped]
    with ThreadPoolExecutor() as pool:  # decoding lets go of Python's lock
        even = dict(
            zip(contested, pool.map(lambda uid: [symmetry(p) for p, _ in pairs[uid]], contested), strict=True)
        )
    views = {}
    for uid, images in studies.items():
        first, second = [path for path, _ in images[:2]] + [None] * (2 - len(images[:2]))
        a, b = even.get(uid, (1.0, 0.0))
        views[uid] = (second, first) if b > a else (first, second)
    return views


def codes_say(pairs: Mapping[str, Sequence[Described]]) -> dict[str, bool]:
    """For each study of two images whether their codes call the second the frontal."""
    swapped = dict.fromkeys(pairs, False)
    for _ in range(3):
        tally = Counter(), Counter()  # how often a code stands at a frontal, at a lateral
        for uid, images in pairs.items():
            for at, (_, codes) in enumerate(images):
                tally[at != swapped[uid]].update(codes.items())
        odds = {c: math.log((tally[0][c] + 1) / (tally[1][c] + 1)) for c in tally[0].keys() | tally[1].keys()}
        frontal = {
            uid: [sum(odds[c] for c in codes.items()) for _, codes in images] for uid, images in pairs.items()
        }
        swapped = {uid: a < b for uid, (a, b) in frontal.items()}
    return swapped


def symmetry(path: Path, side: int = 32) -> float:
    """How far the image equals its mirror image: a correlation, 1 at most, taken where it is highest among
    shifts of up to an eighth of the width, since few patients stand in the middle. 0 if it is unreadable."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), np.float32)
    except Exception:  # damaged: whoever reads it to learn from it will say so
        return 0.0
    edge, best = side // 8, -1.0
    for shift in range(-edge, edge + 1):
        part = np.roll(pixels, shift, axis=1)[:, edge : side - edge]
        part = part - part.mean()
        best = max(best, float((part * part[:, ::-1]).sum() / ((part * part).sum() + 1e-9)))
    return best

"""Out-of-distribution images: is one unlike those that a run learned from, a hand or a sideways film?

`fit` describes the features of the training images, each view by itself: the mean of each quarter of the
image, the directions in which the images differ, and how much. How far another image is from them is a
Mahalanobis distance whose covariance has low rank: along a direction in units of the spread along it, off all
directions in units of the spread that is left (Tipping and Bishop 1999). The limit is the distance that a new
image of the same kind stays below with a probability of 99.5% (Vovk et al. 2005). It comes from images that
the description has not seen: the validation images and half of the training images, since of only 200 images
it would be the largest distance. Distances are in units of the limit: above 1, an image is unlike them.

The description is kept in each checkpoint, beside the projector. The report is written in any case.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.study import Study
from ..errors import UserError
from ..files.tensors import read_tensors
from ..radiograph import VIEWS
from ..vision import StudyFeatures

FILE, REMEDY = "training_features.safetensors", "name another run, or train again"
DIRECTIONS = 64
QUANTILE = 0.995  # the share of new images of the same kind that the limit lets pass
MAX_STUDIES = 2048  # of a large training split: enough for 64 directions, and solved in seconds
MIN_IMAGES = 20  # with fewer of a view, nothing can be said of it


def fit(train: Sequence[StudyFeatures], val: Sequence[StudyFeatures]) -> dict[str, Tensor]:
    """What the training images are like: NAME.VIEW -> tensor, for each view of which both halves have
    MIN_IMAGES."""
    train = list({id(features): features for features in train}.values())  # once, if drawn more often
    statistics, halves = {}, (train[::2], [*val, *train[1::2]])
    for index, view in enumerate(VIEWS):
        known, unseen = (_of_view(half, index) for half in halves)  # each (n, dim)
        if min(len(known), len(unseen)) < MIN_IMAGES:
            continue
        mean, scale = known.mean(dim=0), known.std(dim=0)
        scale[scale < 1e-4] = 1.0  # a dead channel: 0, not infinity
        x = (known - mean) / scale  # (n, dim)
        rank = min(DIRECTIONS, len(x) // 4, x.shape[1] - 1)
        squares, left = torch.linalg.eigh(x @ x.T)  # of n x n numbers: there are fewer images than features
        squares, left = squares.flip(0)[:rank], left.flip(1)[:, :rank]
        directions = left.T @ x / squares.sqrt()[:, None]  # (rank, dim), each of length 1
        rest = (x.square().sum() - squares.sum()) / (len(x) * (x.shape[1] - rank))  # per dimension
        of_view = {
            "mean": mean, "scale": scale, "directions": directions, "spread": squares / len(x), "rest": rest,
            "limit": torch.ones(()),
        }  # fmt: skip
        rank = min(len(unseen), math.ceil(QUANTILE * (len(unseen) + 1)))  # split conformal: for a new image
        of_view["limit"] = _distance(of_view, unseen).sort().values[rank - 1]
        statistics |= {f"{name}.{view}": value.contiguous() for name, value in of_view.items()}
    return statistics


def distance(statistics: dict[str, Tensor], features: StudyFeatures) -> float:
    """How far the most unlike view of a study is from the training images, in limits. 0 if nothing is known
    of its views."""
    distances = [0.0]
    for index, view in enumerate(VIEWS):
        of_view = {name.split(".")[0]: t for name, t in statistics.items() if name.endswith(f".{view}")}
        if of_view and index in features.views:
            distances.append(_distance(of_view, _of_view([features], index)).item())
    return max(distances)


class Known(NamedTuple):
    """What a checkpoint says of its training images, and the file that says it."""

    path: Path
    statistics: dict[str, Tensor]


def read(checkpoint: Path) -> Known | None:
    """What the checkpoint says; None for one that is older than this file. UserError if it is damaged."""
    path = checkpoint / FILE
    return Known(path, read_tensors(path, REMEDY)[0]) if path.is_file() else None


def distances(known: Known | None, studies: Sequence[StudyFeatures]) -> list[float] | None:
    """The distance of each study; None if nothing is known. UserError for another network's statistics."""
    if known is None:
        return None
    try:
        return [distance(known.statistics, features) for features in studies]
    except (KeyError, RuntimeError) as error:  # a tensor is missing, or of another network's shape
        raise UserError(f"{known.path} does not fit the vision network ({error}); {REMEDY}") from None


def share(known: Known | None, studies: Sequence[StudyFeatures]) -> float | None:
    """The share of studies that are unlike those that the run learned from; None as in `distances`."""
    found = distances(known, studies)
    return found and sum(d > 1 for d in found) / len(found)


def judge(
    known: Known | None, pairs: Sequence[tuple[StudyFeatures, Study]], warn: Callable[[str], None]
) -> list[dict]:
    """What --json says of each study: {"unlike_training": bool, "distance": float}; {} if nothing is known.
    warn gets one line if any study is unlike those that the run learned from."""
    found = distances(known, [features for features, _ in pairs])
    if found is None:
        return [{} for _ in pairs]
    first_images = [study.views[0][1] for _, study in pairs]
    unlike = [f"{i} ({d:.2g} times the limit)" for i, d in zip(first_images, found, strict=True) if d > 1]
    if unlike:
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        warn(f"unlike what this run learned from: {', '.join(unlike[:3])}{more}; do not trust the report")
    return [{"unlike_training": d > 1, "distance": round(d, 3)} for d in found]


def _of_view(studies: Sequence[StudyFeatures], view: int) -> Tensor:
    """The images of one view as vectors (n, 4 * channels). The square root makes what is left of a rare,
    large feature comparable with the others: without it a few images set the limit for all."""
    step = -(-len(studies) // MAX_STUDIES) or 1
    grids = [s.grids[s.views.index(view)].float() for s in studies[::step] if view in s.views]
    if not grids:
        return torch.empty(0, 0)
    quarters = [F.adaptive_avg_pool2d(grid.clamp(min=0).sqrt(), 2).flatten() for grid in grids]
    return torch.stack(quarters)


def _distance(of_view: dict[str, Tensor], x: Tensor) -> Tensor:
    """(n, dim) -> (n,), in limits."""
    z = (x - of_view["mean"]) / of_view["scale"]
    along = z @ of_view["directions"].T  # (n, rank)
    off = z.square().sum(dim=1) - along.square().sum(dim=1)
    squared = (along.square() / of_view["spread"]).sum(dim=1) + off.clamp(min=0) / of_view["rest"]
    return squared.sqrt() / of_view["limit"]

"""The features of a data set, computed once: the vision network is frozen, so its output is cached on disk.

The cache folder is named by the network's weights and by the code that prepares an image for it. It holds a
file per batch, whose rows are named by the content of their images. So other weights, another crop or another
image have another name, and nothing stale is read; an interrupted run goes on after its last batch; and an
image that two data sets or splits share is computed once. Images are decoded in threads, one batch ahead. If
there are several processes (distributed.py), each computes a shard of the batches and reads the others' from
the folder.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import densenet, radiograph
from .. import vision as vision_module
from ..data.study import Study
from ..errors import UserError
from ..files import images
from ..files.images import content_hash
from ..files.tensors import open_tensors, write_tensors
from ..files.text import parse_json
from ..radiograph import load_radiograph
from ..vision import StudyFeatures, Vision, extract_features
from . import distributed, vision_zoo

CPU_FILMS = 16  # per forward pass on a CPU: the activations of 64 do not fit its cache, 1.9 times the seconds
CODE = images, radiograph, densenet, vision_module, vision_zoo  # between an image file and its features


@dataclass(frozen=True)
class _Row:
    """The features of one image: a row of a batch's grids (n, channels, 7, 7) and scores (n, 18)."""

    grids: Tensor
    scores: Tensor
    index: int


def study_features(
    vision: Vision,
    studies: list[Study],
    device: torch.device,
    cache: Path | None = None,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
    unreadable: list[str] | None = None,
) -> list[StudyFeatures]:
    """The features of each study, in order. cache: folder of the cache; None computes them anew.

    progress is called after each batch with its number of images. UserError if images cannot be read, after
    all others are computed; but if a list `unreadable` is given, the errors' messages are added to it, and
    the study comes back without that view, in the worst case without any.
    """
    paths = [path for study in studies for _, path in study.views]
    n_readers = min(8, os.cpu_count() or 1)  # decoding keeps a core busy, and each thread keeps some memory
    # load_radiograph silences its decoders' warnings; threads could undo that in the wrong order
    with warnings.catch_warnings(), ThreadPoolExecutor(n_readers) as pool:
        shards = distributed.all_gather(
            list(pool.map(_error_as_value(content_hash), distributed.shard(paths)))
        )
        names = [shards[i % len(shards)][i // len(shards)] for i in range(len(paths))]
        folder = cache / f"features-{_key(vision)}" if cache else None
        rows = _read_cache(folder) if folder else {}
        errors = {str(path): n for path, n in zip(paths, names, strict=True) if isinstance(n, UserError)}
        missing = {
            n: path for path, n in zip(paths, names, strict=True) if n not in rows and isinstance(n, str)
        }
        # rank 0's list: a process that reads the folder later may find more in it
        missing = distributed.broadcast(lambda: list(missing.items()))
        batches = [missing[i : i + batch] for i in range(0, len(missing), batch)]
        for named_paths, radiographs in _decode(pool, distributed.shard(batches) if folder else batches):
            decoded = list(zip(named_paths, radiographs, strict=True))
            errors |= {str(path): r for (_, path), r in decoded if isinstance(r, UserError)}
            decoded = [(name, r) for (name, _), r in decoded if not isinstance(r, UserError)]
            if decoded:
                films = [r for _, r in decoded]
                n = CPU_FILMS if device.type == "cpu" else batch
                parts = [extract_features(vision, films[i : i + n], device) for i in range(0, len(films), n)]
                grids, scores = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
                if folder:
                    _save_batch(folder, [name for name, _ in decoded], grids, scores)
                else:
                    rows |= {name: _Row(grids, scores, i) for i, (name, _) in enumerate(decoded)}
            if progress:
                progress(len(named_paths))
    if folder and distributed.world_size() > 1:
        errors = {path: error for each in distributed.all_gather(errors) for path, error in each.items()}
    if folder and (missing or distributed.world_size() > 1):
        rows = _read_cache(folder)  # mapped files take no memory; all_gather has waited for all processes
        failed = {name for name, path in missing if str(path) in errors}
        if any(isinstance(n, str) and n not in rows and n not in failed for n in names):
            raise UserError(
                f"{folder} lacks another process's features; give a --cache folder that all machines share"
            )
    if errors and unreadable is None:
        first = next(iter(errors.values()))
        if len(errors) == 1:
            raise first
        raise UserError(f"{len(errors)} images cannot be read; the first: {first}")
    if errors:
        unreadable += [str(error) for error in errors.values()]
    name_of = dict(zip(paths, names, strict=True))
    return [_join([(view, rows.get(name_of[path])) for view, path in study.views]) for study in studies]


def pooled_features(features: StudyFeatures, grid: int = 1, missing: float = 0.0) -> np.ndarray:
    """A study's features as one vector (2 * channels * grid * grid,): the means of grid x grid parts of each
    view, frontal first; `missing` where the study has no such view."""
    pooled = F.adaptive_avg_pool2d(features.grids.float(), grid)  # (n_views, channels, grid, grid)
    both = torch.full((2, *pooled.shape[1:]), missing)
    both[features.views] = pooled
    return both.flatten().numpy()


def _join(views: list[tuple[int, _Row | None]]) -> StudyFeatures:
    """The rows of one study, as StudyFeatures: a view of the batch's memory where they are neighbours, else a
    copy."""
    indices, rows = [view for view, row in views if row], [row for _, row in views if row]
    if not rows:
        return StudyFeatures([], torch.empty(0), torch.empty(0))
    first, start = rows[0], rows[0].index
    if all(row.grids is first.grids and row.index == start + i for i, row in enumerate(rows)):
        neighbours = slice(start, start + len(rows))
        return StudyFeatures(indices, first.grids[neighbours], first.scores[neighbours])
    grids = torch.stack([row.grids[row.index] for row in rows])
    return StudyFeatures(indices, grids, torch.stack([row.scores[row.index] for row in rows]))


def _decode(
    pool: ThreadPoolExecutor, batches: list[list[tuple[str, Path]]]
) -> Iterator[tuple[list[tuple[str, Path]], list[Tensor | UserError]]]:
    """Each batch of (name, path) with its radiographs; the next batch is decoded while one is in use."""
    ahead = []
    for batch in [*batches, []]:
        ahead.append((batch, [pool.submit(_error_as_value(load_radiograph), path) for _, path in batch]))
        if len(ahead) == 2:
            batch, futures = ahead.pop(0)
            yield batch, [future.result() for future in futures]


def _error_as_value(read: Callable) -> Callable:
    """`read`, but it returns a UserError instead of raising it."""

    def read_or_error(path: Path):
        try:
            return read(path)
        except UserError as error:
            return UserError(str(error))  # alone: its traceback would keep the pixels in memory

    return read_or_error


def _key(vision: Vision) -> str:
    """A hash of the weights and of CODE: a changed crop or scale gives another key."""
    key = hashlib.sha256(vision.hash.encode())
    for module in CODE:
        key.update(Path(module.__file__).read_bytes())
    return key.hexdigest()[:32]


def _save_batch(folder: Path, names: list[str], grids: Tensor, scores: Tensor) -> None:
    """Write a batch to a file named by its images. UserError if the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(''.join(names).encode()).hexdigest()[:32]}.safetensors"
    write_tensors(file, {"grids": grids, "scores": scores}, {"images": json.dumps(names)})


def _read_cache(folder: Path) -> dict[str, _Row]:
    """All cached features by the names of their images, memory-mapped. Damaged files are skipped."""
    rows = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with open_tensors(file) as tensors:
                names = parse_json(tensors.metadata()["images"])
                grids, scores = tensors.get_tensor("grids"), tensors.get_tensor("scores")
        except (UserError, ValueError, LookupError, TypeError):
            continue
        if _fit(names, grids, scores):
            rows |= {name: _Row(grids, scores, i) for i, name in enumerate(names)}
    return rows


def _fit(names: object, grids: Tensor, scores: Tensor) -> bool:
    """Whether this is a batch as `_save_batch` writes it: (n, channels, 7, 7) in fp16, (n, _) in fp32."""
    shapes = grids.ndim == 4 and grids.shape[2:] == (7, 7) and scores.ndim == 2
    dtypes = (grids.dtype, scores.dtype) == (torch.float16, torch.float32)
    return shapes and dtypes and isinstance(names, list) and len(names) == len(grids) == len(scores)

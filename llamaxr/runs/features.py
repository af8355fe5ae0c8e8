"""Vision is frozen, so each image is looked at once: features of a data set, computed, kept, found again.

Kept features lie in a folder named by the weights of the vision network and by the code that prepares an
image for it, in files of one batch each, where a row is named by the content of its image. So another weight,
crop or image is another name and nothing stale is ever read; an interrupted run goes on after its last batch;
and an image that two data sets or splits share is looked at once. Decoding runs in threads, a batch ahead.
Of several processes (distributed.py) each looks at every n-th batch, and finds the others' in the folder.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import distributed
from .. import radiograph, vision
from ..data.study import Study
from ..errors import UserError
from ..radiograph import content_hash, load_radiograph
from ..vision import Vision


@dataclass(frozen=True)
class StudyFeatures:
    """What vision saw. views: indices into VIEWS; grids (n_views, channels, 7, 7); scores (n_views, 18)."""

    views: list[int]
    grids: torch.Tensor
    scores: torch.Tensor


@dataclass(frozen=True)
class _Row:
    """Where an image's features are: row `at` of a batch, grids (n, channels, 7, 7) and scores (n, 18)."""

    grids: torch.Tensor
    scores: torch.Tensor
    at: int


@torch.inference_mode()
def look(
    net: Vision, radiographs: list[torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Radiographs (1, 224, 224) -> grids (n, channels, 7, 7) in fp16, the precision in which they are kept,
    and scores (n, 18) in fp32, both on the CPU."""
    grids = net.features(torch.stack(radiographs).to(device, memory_format=torch.channels_last))
    return grids.half().contiguous().cpu(), net.scores(grids).cpu()


def study_features(
    net: Vision,
    studies: list[Study],
    device: torch.device,
    cache: Path | None = None,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
    unreadable: list[str] | None = None,
) -> list[StudyFeatures]:
    """What vision sees of each study, in order. cache: folder to keep and find it in; None looks anew.

    progress, if given, is called with the number of images of each batch looked at. An image that cannot be
    read is a UserError, which counts them when all others are looked at; or else, if a list `unreadable` is
    given, goes there in words, and its study comes back with one view less, at worst with none.
    """
    images = [path for study in studies for _, path in study.views]
    # load_radiograph silences its decoders' warnings; threads may undo that in a wrong order, so: all at once
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        shares = distributed.gather(list(pool.map(_or_error(content_hash), distributed.share(images))))
        names = [shares[i % len(shares)][i // len(shares)] for i in range(len(images))]
        folder = cache / f"features-{_key(net)}" if cache else None
        rows = _read(folder) if folder else {}
        faults = {str(path): n for path, n in zip(images, names, strict=True) if isinstance(n, UserError)}
        unseen = {
            n: path for path, n in zip(images, names, strict=True) if n not in rows and isinstance(n, str)
        }
        todo = distributed.from_main(lambda: list(unseen.items()))  # later ones may find more in the folder
        parts = [todo[at : at + batch] for at in range(0, len(todo), batch)]
        for part, radiographs in _decoded(pool, distributed.share(parts) if folder else parts):
            whole = [
                (n, r) for (n, _), r in zip(part, radiographs, strict=True) if not isinstance(r, UserError)
            ]
            faults |= {
                str(p): r for (_, p), r in zip(part, radiographs, strict=True) if isinstance(r, UserError)
            }
            if whole:
                grids, scores = look(net, [r for _, r in whole], device)
                rows |= {name: _Row(grids, scores, at) for at, (name, _) in enumerate(whole)}
                if folder:
                    _keep(folder, [name for name, _ in whole], grids, scores)
            if progress:
                progress(len(part))
    if folder and distributed.size() > 1:
        faults = {path: error for each in distributed.gather(faults) for path, error in each.items()}
        rows = _read(folder)  # after `gather`, so all have looked
        faulty = {name for name, path in todo if str(path) in faults}
        if any(isinstance(n, str) and n not in rows and n not in faulty for n in names):
            raise UserError(f"{folder} lacks what others saw; give a --cache on a disk that all share")
    if faults and unreadable is None:
        first = next(iter(faults.values()))
        raise (
            first
            if len(faults) == 1
            else UserError(f"{len(faults)} images cannot be read; the first: {first}")
        )
    if faults:
        unreadable += [str(error) for error in faults.values()]
    of = dict(zip(images, names, strict=True))
    return [_of_study([(view, rows.get(of[path])) for view, path in study.views]) for study in studies]


def summary(features: StudyFeatures) -> np.ndarray:
    """One vector of a study's images, (2 * channels,): each view's features averaged over places, 0 where the
    study has no such view."""
    means = features.grids.float().mean(dim=(2, 3))  # (n_views, channels)
    both = torch.zeros(2, means.shape[1])
    both[features.views] = means
    return both.flatten().numpy()


def _of_study(seen: list[tuple[int, _Row | None]]) -> StudyFeatures:
    """One study's rows together: a view into the batch's memory where they are neighbours, else a copy."""
    views, rows = [view for view, row in seen if row], [row for _, row in seen if row]
    if not rows:
        return StudyFeatures([], torch.empty(0), torch.empty(0))
    first, at = rows[0], rows[0].at
    if all(row.grids is first.grids and row.at == at + i for i, row in enumerate(rows)):
        return StudyFeatures(views, first.grids[at : at + len(rows)], first.scores[at : at + len(rows)])
    grids = torch.stack([row.grids[row.at] for row in rows])
    return StudyFeatures(views, grids, torch.stack([row.scores[row.at] for row in rows]))


def _decoded(
    pool: ThreadPoolExecutor, parts: list[list[tuple[str, Path]]]
) -> Iterator[tuple[list[tuple[str, Path]], list[torch.Tensor | UserError]]]:
    """Each batch of (name, path) with its radiographs, the next being decoded while one is looked at."""
    ahead = []
    for part in [*parts, []]:
        ahead.append((part, [pool.submit(_or_error(load_radiograph), path) for _, path in part]))
        if len(ahead) == 2:
            part, futures = ahead.pop(0)
            yield part, [future.result() for future in futures]


def _or_error(read: Callable) -> Callable:
    """`read`, but a UserError is what it gives and not raised."""

    def safely(path: Path):
        try:
            return read(path)
        except UserError as error:
            return error

    return safely


def _key(net: Vision) -> str:
    """Names the weights and the code between file and features: a changed crop or scale is another key."""
    key = hashlib.sha256(net.hash.encode())
    for module in (radiograph, vision):
        key.update(Path(module.__file__).read_bytes())
    return key.hexdigest()[:32]


def _keep(folder: Path, names: list[str], grids: torch.Tensor, scores: torch.Tensor) -> None:
    """Write one batch, its file named by its images. UserError where there is no room."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(''.join(names).encode()).hexdigest()[:32]}.safetensors"
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        save_file({"grids": grids, "scores": scores}, temporary, metadata={"images": json.dumps(names)})
        os.replace(temporary, file)
    except SafetensorError as error:  # its own words for a full disk
        raise UserError(f"{file} could not be written ({error}); free some space") from None
    finally:
        temporary.unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, _Row]:
    """All kept features by the name of their image, memory-mapped; a damaged file is as if not there."""
    rows = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                names = json.loads(tensors.metadata()["images"])
                grids, scores = tensors.get_tensor("grids"), tensors.get_tensor("scores")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            continue
        if len(names) == len(grids) == len(scores):
            rows |= {name: _Row(grids, scores, at) for at, name in enumerate(names)}
    return rows

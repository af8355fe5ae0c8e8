"""Vision is frozen, so each image is looked at once: features of a data set, computed, kept, found again.

A set's features are one safetensors file, named by the weights of the vision network and by the content of
all images in it: another image or another weight gives another name, so nothing stale is ever read.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .data.study import Study
from .errors import UserError
from .radiograph import content_hash, load_radiograph
from .vision import Vision


@dataclass(frozen=True)
class StudyFeatures:
    """What vision saw. views: indices into VIEWS; grids (n_views, channels, 7, 7); scores (n_views, 18)."""

    views: list[int]
    grids: torch.Tensor
    scores: torch.Tensor


@torch.inference_mode()
def look(vision: Vision, images: list[Path], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Image files -> grids (n, channels, 7, 7) in fp16, the precision in which they are kept, and scores
    (n, 18) in fp32, both on the CPU. UserError for an image that cannot be read."""
    radiographs = torch.stack([load_radiograph(path) for path in images])  # (n, 1, 224, 224)
    grids = vision.features(radiographs.to(device, memory_format=torch.channels_last))
    return grids.half().contiguous().cpu(), vision.scores(grids).cpu()


def study_features(
    vision: Vision,
    studies: list[Study],
    device: torch.device,
    cache: Path | None = None,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[StudyFeatures]:
    """What vision sees of each study, in order. cache: folder to keep and find it in; None looks anew.

    progress, if given, is called with the number of images of each batch looked at.
    """
    images = [path for study in studies for _, path in study.views]
    file = None
    if cache is not None:
        key = hashlib.sha256(vision.hash.encode())
        for path in images:
            key.update(content_hash(path).encode())
        file = cache / f"features-{key.hexdigest()[:32]}.safetensors"
    kept = _read(file, len(images)) if file else None
    if kept is None:
        grids, scores = [], []
        for start in range(0, len(images), batch):
            g, s = look(vision, images[start : start + batch], device)
            grids.append(g)
            scores.append(s)
            if progress:
                progress(len(g))
        kept = torch.cat(grids), torch.cat(scores)
        if file:
            cache.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
            try:
                save_file({"grids": kept[0], "scores": kept[1]}, temporary)
                os.replace(temporary, file)
            except SafetensorError as error:  # its own words for a full disk
                raise UserError(f"{file} could not be written ({error}); free some space") from None
            finally:
                temporary.unlink(missing_ok=True)
    grids, scores = kept
    features, at = [], 0
    for study in studies:
        views = [view for view, _ in study.views]
        end = at + len(views)
        features.append(StudyFeatures(views, grids[at:end], scores[at:end]))
        at = end
    return features


def _read(file: Path, n_images: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Kept features, memory-mapped; None where there are none or the file is damaged."""
    try:
        with safe_open(file, framework="pt") as tensors:
            grids, scores = tensors.get_tensor("grids"), tensors.get_tensor("scores")
    except (SafetensorError, OSError):
        return None
    return (grids, scores) if len(grids) == len(scores) == n_images else None

"""Train a DenseNet's 18 pathology scores on a data set's own images and reports.

    python -m llamaxr.tools.vision_train --data sample --out cache/mine.safetensors
    python -m llamaxr.tools.vision_train --data iu_xray --root DIR --architecture densenet121 --out FILE
    python -m llamaxr.tools.vision_train --data iu_xray --root DIR --start densenet121-res224-chex --out FILE

This is for when no published weights are available, or none fit; `train.py --vision FILE` takes its output.
With --start training goes on from other weights, which takes fewer studies than random ones.

Training also teaches the grid which finding is on which side: a linear layer reads the side off the grid and
is discarded afterwards. The soft tokens are made from the grid, and the scores alone would not teach it where
a finding is. A pathology that too few studies have, or lack, is left out of the loss and marked as never
labelled, as torchxrayvision does, so its score is always 0.5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data.study import Study
from ..errors import UserError
from ..files.download import Progress
from ..files.vision_weights import save_weights
from ..metrics.findings import PATHOLOGIES_OF, find, locate
from ..metrics.probes import auroc
from ..radiograph import load_radiograph
from ..runs.log import progress_bar
from ..runs.options import DEVICE_HELP, DEVICES, MAX_SEED, option, parse, refuse_without_effect
from ..runs.recipes import DATA, apply_recipe
from ..runs.run import CACHE, load_studies, pick_device
from ..runs.terminal import one_line_errors
from ..runs.vision_zoo import TINY, load_vision
from ..vision import DENSENET121, PATHOLOGIES, Vision

ARCHITECTURES = {"tiny": TINY, "densenet121": DENSENET121}
MIN_EXAMPLES = 10  # with fewer studies with or without a pathology, it counts as not labelled


def pathology_labels(studies: Sequence[Study]) -> Tensor:
    """(n, 18): 1 where a study has a pathology, by its known findings or else by what its report asserts."""
    labels = torch.zeros(len(studies), len(PATHOLOGIES))
    for i, study in enumerate(studies):
        findings = find(study.report) if study.findings is None else study.findings
        labels[i, [PATHOLOGIES.index(p) for name in findings for p in PATHOLOGIES_OF.get(name, ())]] = 1
    return labels


def mask_rare(labels: Tensor) -> Tensor:
    """(n, 18) with NaN in the columns that have fewer than MIN_EXAMPLES ones, or zeros."""
    n_with = labels.sum(dim=0)
    return labels.masked_fill((n_with < MIN_EXAMPLES) | (n_with > len(labels) - MIN_EXAMPLES), math.nan)


def side_labels(studies: Sequence[Study]) -> Tensor:
    """(n, k): a column for each finding that a report asserts, and one for each finding on a side."""
    asserted = [
        {text for name, sides in locate(s.report).items() for text in (name, *(f"{name} {x}" for x in sides))}
        for s in studies
    ]
    columns = {text: j for j, text in enumerate(sorted(set().union(*asserted)))}
    labels = torch.zeros(len(studies), len(columns))
    for i, texts in enumerate(asserted):
        labels[i, [columns[text] for text in texts]] = 1
    return labels


def fit(
    vision: Vision,
    pixels: Tensor,
    labels: Tensor,
    places: Tensor,
    epochs: int,
    batch: int,
    lr: float,
    augment: Callable[[Tensor], Tensor] | None = None,
    after_epoch: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> nn.Linear:
    """Train vision in place, on its own device. Returns the linear layer that reads the places off the grid.

    pixels: (n, 224, 224) uint8, on the CPU. labels: (n, 18), NaN where unknown. places: (n, k), which finding
    is where. lr: AdamW's peak. augment: applied to each batch of radiographs (batch, 1, 224, 224) in
    [-1024, 1024]. progress is called with the loss of each step. The caller seeds torch.
    """
    device = vision.net.classifier.weight.device
    place_head = nn.Linear(vision.n_channels * 49, places.shape[1]).to(device)
    parameters = [*vision.parameters(), *place_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    n = len(pixels) // batch * batch
    steps = epochs * (n // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    for _ in range(epochs):
        vision.train()
        for rows in torch.randperm(len(pixels))[:n].view(-1, batch):
            radiographs = to_radiographs(pixels[rows], device)
            if augment:
                radiographs = augment(radiographs)
            grid = vision.features(radiographs)  # (batch, channels, 7, 7)
            logits = vision.net.classifier(grid.mean(dim=(2, 3)))  # (batch, 18)
            target = labels[rows].to(device)
            known = (~target.isnan()).float()
            loss = F.binary_cross_entropy_with_logits(
                logits, target.nan_to_num(), weight=known / known.mean()
            ) + F.binary_cross_entropy_with_logits(place_head(grid.flatten(1)), places[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if progress:
                progress(loss.item())
        vision.eval()
        if after_epoch:
            after_epoch()
    return place_head


def to_radiographs(pixels: Tensor, device: torch.device | str) -> Tensor:
    """(n, 224, 224) uint8 -> (n, 1, 224, 224) in [-1024, 1024], channels last: twice as fast on a CPU."""
    return ((pixels[:, None].to(device).float() / 255 * 2 - 1) * 1024).to(memory_format=torch.channels_last)


def augment(radiographs: Tensor, zoom_out: float = 0.0, exposure: float = 0.1) -> Tensor:
    """Vary positioning and exposure: rotation by up to 5 degrees, scale and shift by up to 4%, contrast and
    brightness by up to `exposure`. Never mirrored: left and right are part of a finding's name.

    zoom_out: how much smaller the chest may get, anywhere in the frame; the film's edge fills the rest.
    """
    n = len(radiographs)
    turn, scale, dx, dy, contrast, light = (torch.rand(6, n).to(radiographs.device) * 2 - 1).unbind()
    smaller = zoom_out * torch.rand(n).to(radiographs.device) ** 2  # the square: most films stay large
    angle, scale, reach = turn * math.radians(5), 1 + scale * 0.04 + smaller, 0.08 + 0.6 * smaller
    cos, sin = angle.cos() * scale, angle.sin() * scale
    affine = torch.stack([cos, -sin, dx * reach, sin, cos, dy * reach], dim=1).view(n, 2, 3)
    grid = F.affine_grid(affine, list(radiographs.shape), align_corners=False)
    moved = F.grid_sample(radiographs, grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + contrast * exposure, light * exposure * 1024
    changed = moved * gain.view(n, 1, 1, 1) + offset.view(n, 1, 1, 1)
    return changed.clamp(-1024, 1024).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(vision: Vision, pixels: Tensor, batch: int = 64) -> Tensor:
    """pixels (n, 224, 224) uint8 -> scores (n, 18), on the CPU."""
    device = vision.net.classifier.weight.device
    parts = [to_radiographs(part, device) for part in pixels.split(batch)]
    return torch.cat([vision.scores(vision.features(part)).cpu() for part in parts])


def mean_over_views(scores: Tensor, study_of: Tensor, n_studies: int) -> Tensor:
    """Scores of images (n, 18) -> scores of studies (n_studies, 18). study_of: (n,), each image's study."""
    total = torch.zeros(n_studies, scores.shape[1]).index_add_(0, study_of, scores)
    return total / torch.bincount(study_of, minlength=n_studies)[:, None]


def load_pixels(studies: Sequence[Study], progress: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """All views as pixels (n, 224, 224) uint8, 50 kB each, and the index of each view's study (n,)."""
    images = [(i, path) for i, study in enumerate(studies) for _, path in study.views]
    pixels = torch.empty(len(images), 224, 224, dtype=torch.uint8)
    for row, (_, path) in enumerate(images):
        pixels[row] = ((load_radiograph(path)[0] / 1024 + 1) / 2 * 255).round()
        progress(1)
    return pixels, torch.tensor([i for i, _ in images])


def weights_to_save(vision: Vision) -> dict[str, Tensor]:
    """The state dict on the CPU, without batch norm's counters, which nothing reads."""
    state = vision.net.state_dict()
    return {name: t.cpu() for name, t in state.items() if not name.endswith("num_batches_tracked")}


@dataclass(frozen=True)
class VisionTrainOptions:
    data: str = option("sample", "data set to learn from", choices=DATA)
    root: Path | None = option(None, "folder of the data set, where it needs one")
    start: str | None = option(
        None, "weights to start from: tiny, a published DenseNet's name, or a file (default: random)"
    )
    architecture: str = option(
        "tiny", "size of the DenseNet, if it starts from random weights", choices=tuple(ARCHITECTURES)
    )
    epochs: int = option(8, "passes over the train images", at_least=1, at_most=1000)
    batch: int = option(32, "images per step", at_least=2, at_most=4096)
    lr: float = option(3e-3, "AdamW's peak learning rate; 1e-3 suits densenet121", above=0, at_most=1)
    limit: int = option(0, "train on the first LIMIT studies only; 0 means all", at_least=0, at_most=10**7)
    seed: int = option(0, "seed of weights, order and augmentation", at_least=0, at_most=MAX_SEED)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    cache: Path | None = option(None, "folder for drawn images (default: cache/ in the repository)")
    out: Path = option(
        CACHE / "vision.safetensors", "new file, .safetensors: the weights of the best epoch on val"
    )


def starting_network(options: VisionTrainOptions, progress: Progress | None = None) -> Vision:
    """The network that training starts from, its scores uncalibrated. UserError if it was not trained on
    radiographs."""
    if options.start is None:
        return Vision(ARCHITECTURES[options.architecture])
    vision = load_vision(options.start, cache=options.cache or CACHE, progress=progress, warn=tqdm.write)
    if not vision.has_scores:
        raise UserError(f"--start {options.start} has no scores; name a DenseNet trained on radiographs")
    vision.op_threshs = None
    return vision.requires_grad_(True)


def main(argv: list[str] | None = None) -> None:
    options, extra = parse(VisionTrainOptions, __doc__, argv, prog="python -m llamaxr.tools.vision_train")
    starts_at_random = (("architecture",), options.start is None, "random weights to start from")
    refuse_without_effect(extra.given, [starts_at_random])
    if options.out.suffix != ".safetensors":
        raise UserError(f"--out {options.out} does not end in .safetensors, so train.py could not read it")
    if options.out.exists():
        raise UserError(f"{options.out} exists already, and runs may use it; name another --out")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    device = pick_device(options.device)
    data = apply_recipe("ours", data=options.data, root=options.root, cache=options.cache)
    torch.manual_seed(options.seed)
    with progress_bar() as progress:
        vision = starting_network(options, progress).to(device, memory_format=torch.channels_last)
        studies = load_studies(data, tqdm.write, progress)
    train = [s for s in studies if s.split == "train"][: options.limit or None]
    val = [s for s in studies if s.split == "val"]
    if sum(len(s.views) for s in train) < options.batch or not val:
        raise UserError(
            f"{len(train)} train and {len(val)} val studies are too few; raise --limit, or change --data"
        )
    labels, val_labels = mask_rare(pathology_labels(train)), pathology_labels(val)
    labelled = ~labels[0].isnan()
    if not labelled.any():
        raise UserError(f"no pathology is in {MIN_EXAMPLES} of the {len(train)} train studies; raise --limit")
    with tqdm(desc="images", unit=" read", leave=False) as bar:
        pixels, study_of = load_pixels(train, bar.update)
        val_pixels, val_study_of = load_pixels(val, bar.update)

    best = {"mean": -1.0}

    def validate() -> None:
        scores = mean_over_views(predict(vision, val_pixels), val_study_of, len(val))
        aurocs = {p: auroc(scores[:, j], val_labels[:, j]) for j, p in enumerate(PATHOLOGIES) if labelled[j]}
        defined = [a for a in aurocs.values() if not math.isnan(a)]
        mean = sum(defined) / max(1, len(defined))
        tqdm.write(f"mean AUROC on val {mean:.3f} over {len(defined)} classes")
        if mean > best["mean"]:
            best.update(mean=mean, **aurocs)
            op_threshs = torch.where(labelled, 0.5, math.nan)  # 0.5 leaves the probability as it is
            tensors = {**weights_to_save(vision), "op_threshs": op_threshs}
            save_weights(options.out, tensors, {"densenet": vision.architecture})

    with tqdm(total=options.epochs * (len(pixels) // options.batch), desc="vision", unit="step") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        fit(vision, pixels, labels[study_of], side_labels(train)[study_of], options.epochs, options.batch,
            options.lr, augment, validate, show)  # fmt: skip
    print(f"{'pathology':28s}{'val studies with it':>20s}{'AUROC':>8s}")
    for j, name in enumerate(PATHOLOGIES):
        if labelled[j]:
            print(f"{name:28s}{int(val_labels[:, j].sum()):20d}{best[name]:8.3f}")
    print(f"{'mean':48s}{best['mean']:8.3f}")
    print(f"written: {options.out}, the best epoch; use it with train.py --vision {options.out}")


if __name__ == "__main__":
    with one_line_errors():
        main()

"""A DenseNet learns to see: its 18 scores, trained on a data set's images and what its reports assert.

    python -m llamaxr.tools.vision_train --data sample --out cache/mine.safetensors
    python -m llamaxr.tools.vision_train --data iu_xray --root DIR --architecture densenet121 --out FILE

For where no published weights can be had, or none that fit: `train.py --vision FILE` takes what this writes.
Beside the scores the grid learns to say which finding is on which side, read off it by a linear layer that is
thrown away afterwards: the soft tokens are made of the grid, and the scores alone don't ask where a thing is.
What no report can tell (a pathology that no finding stands for) is left out of the loss and written as never
labelled, as torchxrayvision does, so that its score is 0.5 and nothing else.
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
from ..errors import UserError, one_line_errors
from ..metrics.findings import find, locate
from ..metrics.probes import auroc
from ..runs.options import option, parse
from ..radiograph import load_radiograph
from ..runs.run import CACHE, DATA, TrainOptions, load_studies, pick_device
from ..vision import DENSENET121, PATHOLOGIES, TINY, Vision
from ..files.vision_weights import keep

# Which of torchxrayvision's 18 pathologies a finding of metrics/findings.py is.
PATHOLOGIES_OF = {
    "cardiomegaly": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "enlarged cardiomediastinum": ("Enlarged Cardiomediastinum",),
    "effusion": ("Effusion",),
    "pleural other": ("Pleural_Thickening",),
    "pneumothorax": ("Pneumothorax",),
    "lung opacity": ("Lung Opacity",),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "pneumonia": ("Pneumonia", "Lung Opacity"),
    "edema": ("Edema", "Lung Opacity"),
    "nodule": ("Nodule", "Lung Lesion"),
    "granuloma": ("Nodule",),
    "atelectasis": ("Atelectasis", "Lung Opacity"),
    "scar": ("Fibrosis",),
    "hyperinflation": ("Emphysema",),
    "fracture": ("Fracture",),
}
ARCHITECTURES = {"tiny": TINY, "densenet121": DENSENET121}
LEAST = 10  # examples with and without, below which a class is taken as not labelled


def pathologies(studies: Sequence[Study]) -> Tensor:
    """(n, 18): 1 where a study's findings, as far as they are known, else its report, tell of a pathology."""
    present = torch.zeros(len(studies), len(PATHOLOGIES))
    for i, study in enumerate(studies):
        found = find(study.report) if study.findings is None else study.findings
        present[i, [PATHOLOGIES.index(p) for name in found for p in PATHOLOGIES_OF.get(name, ())]] = 1
    return present


def only_labelled(present: Tensor) -> Tensor:
    """(n, 18) with NaN in the columns of pathologies that fewer than LEAST studies have, or lack."""
    n_with = present.sum(dim=0)
    return present.masked_fill((n_with < LEAST) | (n_with > len(present) - LEAST), math.nan)


def places(studies: Sequence[Study]) -> Tensor:
    """(n, k): 1 where a report asserts a finding, and where it asserts it of a side."""
    said = [
        {text for name, sides in locate(s.report).items() for text in (name, *(f"{name} {x}" for x in sides))}
        for s in studies
    ]
    columns = {text: j for j, text in enumerate(sorted(set().union(*said)))}
    placed = torch.zeros(len(studies), len(columns))
    for i, texts in enumerate(said):
        placed[i, [columns[text] for text in texts]] = 1
    return placed


def fit(
    vision: Vision,
    pixels: Tensor,
    scores: Tensor,
    placed: Tensor,
    epochs: int,
    batch: int,
    lr: float,
    vary: Callable[[Tensor], Tensor] | None = None,
    after_epoch: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> nn.Linear:
    """Train vision in place, on its own device; the caller has seeded torch. Gives the layer reading places.

    pixels: (n, 224, 224) uint8, on the CPU; scores (n, 18), NaN where unknown; placed (n, k). vary: what a
    batch of radiographs (b, 1, 224, 224) in [-1024, 1024] goes through first. lr: AdamW's peak.
    progress: gets the loss of each step.
    """
    device = vision.net.classifier.weight.device
    where = nn.Linear(vision.n_channels * 49, placed.shape[1]).to(device)
    parameters = [*vision.parameters(), *where.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    n = len(pixels) // batch * batch
    steps = epochs * (n // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    for _ in range(epochs):
        vision.train()
        for rows in torch.randperm(len(pixels))[:n].view(-1, batch):
            radiographs = to_radiographs(pixels[rows], device)
            grid = vision.features(vary(radiographs) if vary else radiographs)  # (batch, channels, 7, 7)
            head = vision.net.classifier(grid.mean(dim=(2, 3)))
            target = scores[rows].to(device)
            known = (~target.isnan()).float()
            loss = F.binary_cross_entropy_with_logits(
                head, target.nan_to_num(), weight=known / known.mean()
            ) + F.binary_cross_entropy_with_logits(where(grid.flatten(1)), placed[rows].to(device))
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
    return where


def to_radiographs(pixels: Tensor, device: torch.device | str) -> Tensor:
    """(n, 224, 224) uint8 -> (n, 1, 224, 224) in [-1024, 1024], channels last: twice as fast on a CPU."""
    return ((pixels[:, None].to(device).float() / 255 * 2 - 1) * 1024).to(memory_format=torch.channels_last)


def vary(radiographs: Tensor) -> Tensor:
    """Each turned by up to 5 degrees, scaled and shifted by up to 4%, its contrast and brightness changed by
    up to 10%: what positioning and exposure do. Never mirrored: left and right are findings' names."""
    n = len(radiographs)
    turn, scale, dx, dy, contrast, light = (torch.rand(6, n).to(radiographs.device) * 2 - 1).unbind()
    angle, scale = turn * math.radians(5), 1 + scale * 0.04
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, -sin, dx * 0.08, sin, cos, dy * 0.08], dim=1).view(n, 2, 3)
    grid = F.affine_grid(rows, list(radiographs.shape), align_corners=False)
    moved = F.grid_sample(radiographs, grid, padding_mode="border", align_corners=False)
    changed = moved * (1 + contrast * 0.1).view(n, 1, 1, 1) + (light * 102).view(n, 1, 1, 1)
    return changed.clamp(-1024, 1024).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(vision: Vision, pixels: Tensor, batch: int = 64) -> Tensor:
    """pixels (n, 224, 224) uint8 -> probabilities (n, 18), on the CPU."""
    device = vision.net.classifier.weight.device
    parts = [to_radiographs(part, device) for part in pixels.split(batch)]
    return torch.cat([vision.scores(vision.features(part)).cpu() for part in parts])


def study_scores(predicted: Tensor, owner: Tensor, n_studies: int) -> Tensor:
    """Scores of images (n, 18) -> of studies: the mean over the views that a study has."""
    total = torch.zeros(n_studies, predicted.shape[1]).index_add_(0, owner, predicted)
    return total / torch.bincount(owner, minlength=n_studies)[:, None]


def load_pixels(studies: Sequence[Study], progress: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """All views as pixels (n, 224, 224) uint8, 50 kB each, and whose study's each is (n,)."""
    images = [(i, path) for i, study in enumerate(studies) for _, path in study.views]
    pixels = torch.empty(len(images), 224, 224, dtype=torch.uint8)
    for row, (_, path) in enumerate(images):
        pixels[row] = ((load_radiograph(path)[0] / 1024 + 1) / 2 * 255).round()
        progress(1)
    return pixels, torch.tensor([i for i, _ in images])


def weights_of(vision: Vision) -> dict[str, Tensor]:
    """What a weight file holds: the state dict, without batch norm's counters, which nothing reads."""
    state = vision.net.state_dict()
    return {name: t.cpu() for name, t in state.items() if not name.endswith("num_batches_tracked")}


@dataclass(frozen=True)
class VisionTrainOptions:
    data: str = option("sample", "data set to learn from", choices=DATA)
    root: Path | None = option(None, "folder of the data set, where it needs one")
    architecture: str = option("tiny", "how large a DenseNet", choices=tuple(ARCHITECTURES))
    epochs: int = option(8, "how often each image is seen", at_least=1)
    batch: int = option(32, "images a step", at_least=2)
    lr: float = option(3e-3, "AdamW's peak learning rate; 1e-3 suits densenet121", above=0)
    limit: int = option(0, "train on the first LIMIT studies only; 0 is all", at_least=0)
    seed: int = option(0, "seed of weights, order and variation", at_least=0)
    device: str = option("auto", "auto takes CUDA where there is one", choices=("auto", "cuda", "cpu"))
    cache: Path | None = option(None, "folder for drawn images; cache/ in the repository if not given")
    out: Path = option(CACHE / "vision.safetensors", "file to write: the best epoch's weights on val")


def main(argv: list[str] | None = None) -> None:
    options, _, _ = parse(VisionTrainOptions, __doc__, argv)
    device = pick_device(options.device)
    with tqdm(desc="studies", unit=" drawn", leave=False) as bar:
        studies = load_studies(
            TrainOptions(data=options.data, root=options.root, cache=options.cache),
            warn=tqdm.write,
            progress=lambda what, done, total: bar.update(done - bar.n),
        )
    train = [s for s in studies if s.split == "train"][: options.limit or None]
    val = [s for s in studies if s.split == "val"]
    if sum(len(s.views) for s in train) < options.batch or not val:
        raise UserError(
            f"{len(train)} train and {len(val)} val studies are too few; raise --limit, or --data"
        )
    with tqdm(desc="images", unit=" read", leave=False) as bar:
        pixels, owner = load_pixels(train, bar.update)
        val_pixels, val_owner = load_pixels(val, bar.update)
    scores, present = only_labelled(pathologies(train)), pathologies(val)
    labelled = ~scores[0].isnan()
    if not labelled.any():
        raise UserError(f"no finding stands in {LEAST} of the {len(train)} train studies; raise --limit")

    torch.manual_seed(options.seed)
    vision = Vision(ARCHITECTURES[options.architecture]).to(device, memory_format=torch.channels_last)
    best = {"mean": -1.0}

    def validate() -> None:
        seen = study_scores(predict(vision, val_pixels), val_owner, len(val))
        by_class = {p: auroc(seen[:, j], present[:, j]) for j, p in enumerate(PATHOLOGIES) if labelled[j]}
        measured = [a for a in by_class.values() if not math.isnan(a)]
        mean = sum(measured) / max(1, len(measured))
        tqdm.write(f"mean AUROC on val {mean:.3f} over {len(measured)} classes")
        if mean > best["mean"]:
            best.update(mean=mean, **by_class)
            op_threshs = torch.where(labelled, 0.5, math.nan)  # 0.5 calibrates nothing
            tensors = {**weights_of(vision), "op_threshs": op_threshs}
            keep(options.out, tensors, {"densenet": ARCHITECTURES[options.architecture]})

    with tqdm(total=options.epochs * (len(pixels) // options.batch), desc="vision", unit="step") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        fit(vision, pixels, scores[owner], places(train)[owner], options.epochs, options.batch, options.lr,
            vary, validate, show)  # fmt: skip
    print(f"{'pathology':28s}{'val studies with it':>20s}{'AUROC':>8s}")
    for j, name in enumerate(PATHOLOGIES):
        if labelled[j]:
            print(f"{name:28s}{int(present[:, j].sum()):20d}{best[name]:8.3f}")
    print(f"{'mean':48s}{best['mean']:8.3f}")
    print(f"written: {options.out}, of the best epoch; use it with train.py --vision {options.out}")


if __name__ == "__main__":
    with one_line_errors():
        main()

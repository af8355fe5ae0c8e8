"""Vision: a radiograph becomes a grid of features and 18 pathology scores.

The paper's network is DenseNet-121 (densenet.py) with one input channel, as torchxrayvision trains it (Cohen
et al. 2022). It is frozen. runs/vision_zoo.py loads its weights, and others to compare it with.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .densenet import DenseNet

# torchxrayvision's order of outputs (its datasets.default_pathologies).
PATHOLOGIES = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis",
    "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia",
    "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip

DENSENET121 = {"growth_rate": 32, "block_config": [6, 12, 24, 16], "num_init_features": 64}


class Vision(nn.Module):
    """features(radiographs) -> grid; scores(grid) -> 18 numbers. `hash` identifies the weights, for caches.

    op_threshs (18,) or None: an operating point for each pathology. If given, probabilities are rescaled
    linearly on either side of it so that it becomes 0.5, which makes rare and common pathologies comparable.
    """

    has_scores = True  # False for networks that were not trained on radiographs

    def __init__(self, architecture: dict):
        super().__init__()
        net = DenseNet(**architecture, in_channels=1, n_classes=len(PATHOLOGIES))
        self.net, self.n_channels = net, net.classifier.in_features
        self.architecture, self.hash = architecture, ""
        self.register_buffer("op_threshs", None)

    def features(self, radiographs: Tensor) -> Tensor:
        """(n, 1, 224, 224) in [-1024, 1024] -> (n, n_channels, 7, 7), not negative."""
        check_radiographs(radiographs)
        # torchxrayvision feeds its networks these raw values; batch norm in the stem absorbs the range.
        return F.relu(self.net.features(radiographs))

    def scores(self, features: Tensor) -> Tensor:
        """A grid (n, n_channels, 7, 7) -> (n, 18) in PATHOLOGIES' order: probabilities, or calibrated."""
        p = self.net.classifier(features.mean(dim=(2, 3))).sigmoid()  # (n, 18)
        if self.op_threshs is None:
            return p
        t = self.op_threshs
        calibrated = torch.where(p < t, p / (2 * t), 1 - (1 - p) / (2 * (1 - t)))  # torchxrayvision's op_norm
        return torch.where(t.isnan(), 0.5, calibrated)  # NaN: no label in training, so nothing is known


def check_radiographs(radiographs: Tensor) -> None:
    """Catches the known trap: scaled to [-1, 1], every patient gets the same features."""
    assert radiographs.shape[1:] == (1, 224, 224), radiographs.shape
    assert radiographs.abs().amax() > 2, "radiographs must span [-1024, 1024], as load_radiograph gives them"


@dataclass(frozen=True)
class StudyFeatures:
    """A study's images after vision. views: their indices in VIEWS; grids (n_views, n_channels, 7, 7); scores
    (n_views, 18)."""

    views: list[int]
    grids: Tensor
    scores: Tensor


@torch.inference_mode()
def extract_features(
    vision: Vision, radiographs: list[Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Radiographs, each (1, 224, 224) -> grids (n, n_channels, 7, 7) in fp16 and scores (n, 18) in fp32, both
    on the CPU. They are computed once and cached; fp16 is enough for that. channels_last is faster."""
    grids = vision.features(torch.stack(radiographs).to(device, memory_format=torch.channels_last))
    return grids.half().contiguous().cpu(), vision.scores(grids).cpu()

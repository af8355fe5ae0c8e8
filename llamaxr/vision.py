"""DenseNet sees: a radiograph becomes a grid of features and 18 pathology scores.

The network is torchvision's DenseNet (Huang et al. 2017) with one input channel, as torchxrayvision trains
it (Cohen et al. 2022). Two sizes stand ready: DenseNet-121, the paper's, whose weights the user brings,
and the embedded tiny one, trained by assets/make.py on drawn radiographs. A weight file is safetensors; its
metadata may hold the architecture as JSON (key "densenet"), without which it is DenseNet-121.
"""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet

from .errors import UserError

# torchxrayvision's order of outputs (its datasets.default_pathologies).
PATHOLOGIES = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis",
    "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia",
    "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip

DENSENET121 = {"growth_rate": 32, "block_config": [6, 12, 24, 16], "num_init_features": 64}
TINY = {"growth_rate": 16, "block_config": [2, 4, 6, 4], "num_init_features": 24}
TINY_WEIGHTS = Path(__file__).parent / "assets" / "tiny-densenet.safetensors"


class Vision(nn.Module):
    """features(radiographs) -> grid; scores(grid) -> 18 numbers. `hash` names the weights, for caches."""

    def __init__(self, architecture: dict):
        super().__init__()
        net = DenseNet(**architecture, num_classes=len(PATHOLOGIES))
        # One grey channel; otherwise torchvision's stem: 7x7, stride 2.
        stem = architecture["num_init_features"]
        net.features.conv0 = nn.Conv2d(1, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.net, self.n_channels, self.hash = net, net.classifier.in_features, ""

    def features(self, radiographs: Tensor) -> Tensor:
        """(n, 1, 224, 224) in [-1024, 1024] -> (n, n_channels, 7, 7), not negative.

        The assertion holds off the known trap: in [-1, 1] every patient gets the same features.
        """
        assert radiographs.shape[1:] == (1, 224, 224), radiographs.shape
        assert radiographs.abs().amax() > 2, (
            "radiographs must span [-1024, 1024], as load_radiograph gives them"
        )
        # torchxrayvision feeds its networks these raw values; batch norm in the stem absorbs the range.
        return F.relu(self.net.features(radiographs))

    def scores(self, features: Tensor) -> Tensor:
        """A grid (n, n_channels, 7, 7) -> probabilities (n, 18) in PATHOLOGIES' order."""
        return self.net.classifier(features.mean(dim=(2, 3))).sigmoid()  # (n, 18)


def load_vision(name: str | Path = "tiny", device: str | torch.device = "cpu") -> Vision:
    """ "tiny" (embedded) or a safetensors file -> a frozen Vision in evaluation mode, fp32.

    Raises UserError where the file is missing, unreadable, or does not fit its architecture.
    """
    path = TINY_WEIGHTS if name == "tiny" else Path(name)
    if name == "densenet121":
        raise UserError(
            "densenet121 has no weights of its own here: give their .safetensors file as --vision FILE"
        )
    if not path.is_file():
        raise UserError(f"vision weights {path} do not exist; give 'tiny' or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            architecture = json.loads((file.metadata() or {}).get("densenet", "null")) or DENSENET121
            weights = {key: file.get_tensor(key) for key in file.keys()}
        if sum(architecture["block_config"]) > 200 or architecture["growth_rate"] > 200:
            raise UserError(f"{path} describes a DenseNet far larger than any known; refuse it")
        vision = Vision(architecture)
        vision.net.load_state_dict(weights)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is no DenseNet in safetensors form ({str(error)[:200]})") from None
    vision.hash = hashlib.sha256(path.read_bytes()).hexdigest()
    return vision.eval().requires_grad_(False).to(device)

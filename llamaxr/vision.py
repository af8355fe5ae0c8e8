"""Vision: a radiograph becomes a grid of features and, where its network learned them, 18 pathology scores.

The paper's network is DenseNet-121 (densenet.py) with one input channel, as torchxrayvision trains it (Cohen
et al. 2022); beside it stands an embedded tiny one, trained by assets/make.py on drawn radiographs. Three
networks trained on ImageNet share the interface, to ask what training on radiographs is worth: torchvision's
DenseNet-121, ConvNeXt (Liu et al. 2022) and vision transformer (Dosovitskiy et al. 2021). All are frozen.

Where the weights come from is vision_weights.py's matter; of which network they are, their names and shapes
tell. A DenseNet of another size than 121's says so in its safetensors metadata, as JSON (key "densenet").
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .densenet import DenseNet
from .errors import UserError
from .files.vision_weights import KNOWN, Progress, known_file, read_weights

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
    """features(radiographs) -> grid; scores(grid) -> 18 numbers. `hash` names the weights, for caches.

    op_threshs (18,) or None: operating points. With them a score is 0.5 where the probability is at its
    pathology's point, and linear on either side, which makes scores of rare and common ones comparable.
    """

    has_scores = True

    def __init__(self, architecture: dict):
        super().__init__()
        net = DenseNet(**architecture, in_channels=1, n_classes=len(PATHOLOGIES))
        self.net, self.n_channels, self.hash = net, net.classifier.in_features, ""
        self.register_buffer("op_threshs", None)

    def features(self, radiographs: Tensor) -> Tensor:
        """(n, 1, 224, 224) in [-1024, 1024] -> (n, n_channels, 7, 7), not negative.

        The assertion holds off the known trap: in [-1, 1] every patient gets the same features.
        """
        _check(radiographs)
        # torchxrayvision feeds its networks these raw values; batch norm in the stem absorbs the range.
        return F.relu(self.net.features(radiographs))

    def scores(self, features: Tensor) -> Tensor:
        """A grid (n, n_channels, 7, 7) -> (n, 18) in PATHOLOGIES' order: probabilities, or calibrated."""
        p = self.net.classifier(features.mean(dim=(2, 3))).sigmoid()  # (n, 18)
        if self.op_threshs is None:
            return p
        t = self.op_threshs
        calibrated = torch.where(p < t, p / (2 * t), 1 - (1 - p) / (2 * (1 - t)))  # torchxrayvision's op_norm
        return torch.where(t.isnan(), 0.5, calibrated)  # never labelled: nothing is known of it


class ImageNetVision(nn.Module):
    """The same interface over torchvision's network of that name. It knows no pathologies: scores (n, 0)."""

    has_scores = False

    def __init__(self, name: str):
        super().__init__()
        from torchvision.models import get_model, get_model_weights  # a second to import, and seldom wanted

        self.net, self.hash = get_model(name), ""
        self.n_channels, self.see = BACKBONES[name]
        seen_in_training = get_model_weights(name).DEFAULT.transforms()
        self.register_buffer("mean", torch.tensor(seen_in_training.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(seen_in_training.std).view(3, 1, 1))

    def features(self, radiographs: Tensor) -> Tensor:
        """(n, 1, 224, 224) in [-1024, 1024] -> (n, n_channels, 7, 7). Grey is given as all three colours."""
        _check(radiographs)
        return self.see(self.net, ((radiographs + 1024) / 2048 - self.mean) / self.std)

    def scores(self, features: Tensor) -> Tensor:
        """A grid of n images -> (n, 0)."""
        return features.new_zeros(len(features), 0)


def _densenet_grid(net: nn.Module, images: Tensor) -> Tensor:
    return F.relu(net.features(images))  # (n, 1024, 7, 7)


def _convnext_grid(net: nn.Module, images: Tensor) -> Tensor:
    return net.features(images)  # (n, 768, 7, 7)


def _vit_grid(net: nn.Module, images: Tensor) -> Tensor:
    patches = net._process_input(images)  # (n, 196, 768): 14 x 14 patches of 16 x 16 pixels
    tokens = torch.cat([net.class_token.expand(len(images), -1, -1), patches], dim=1)
    seen = net.encoder(tokens)[:, 1:]  # the class token has no place in the image
    return F.avg_pool2d(seen.transpose(1, 2).unflatten(2, (14, 14)), 2)  # (n, 768, 7, 7)


# Name -> channels of its grid, and how to get it.
BACKBONES = {
    "densenet121": (1024, _densenet_grid),
    "convnext_tiny": (768, _convnext_grid),
    "vit_b_16": (768, _vit_grid),
}


def load_vision(
    name: str | Path = "tiny",
    device: str | torch.device = "cpu",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Vision | ImageNetVision:
    """ "tiny" (embedded), a name of vision_weights.KNOWN (downloaded), or a weight file, safetensors or as
    torch.save wrote it -> a frozen network in evaluation mode, fp32.

    cache: folder for downloads and for what was read of pickles; without it nothing is kept, and what must be
    downloaded is refused. progress: of a download. Raises UserError where the file is missing, unreadable,
    hostile, or does not fit its architecture.
    """
    path = TINY_WEIGHTS if name == "tiny" else Path(name)
    if name in KNOWN:
        if cache is None:
            raise UserError(f"{name} must be downloaded from {KNOWN[name]}; give the downloaded file instead")
        path = known_file(name, cache, progress)
    stored = read_weights(path, cache)
    tensors = dict(stored.tensors)
    try:
        op_threshs = tensors.pop("op_threshs", None)
        vision = _network_for(tensors, stored.metadata)
        vision.net.load_state_dict(tensors)
        if op_threshs is not None and vision.has_scores:
            known = op_threshs[~op_threshs.isnan()]
            if op_threshs.shape != (len(PATHOLOGIES),) or not ((known > 0) & (known < 1)).all():
                raise ValueError("op_threshs are not 18 numbers between 0 and 1")
            vision.op_threshs = op_threshs.float().clone()
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds the weights of no network known here ({why})") from None
    vision.hash = stored.hash
    return vision.eval().requires_grad_(False).to(device)


def _network_for(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Vision | ImageNetVision:
    """The network, random still, whose weights bear these names."""
    if "conv_proj.weight" in tensors:
        return ImageNetVision("vit_b_16")
    if "features.0.0.weight" in tensors:
        return ImageNetVision("convnext_tiny")
    if tensors["features.conv0.weight"].shape[1] == 3:
        return ImageNetVision("densenet121")
    architecture = json.loads(metadata.get("densenet", "null")) or DENSENET121
    if sum(architecture["block_config"]) > 200 or architecture["growth_rate"] > 200:
        raise ValueError("a DenseNet far larger than any known")
    return Vision(architecture)


def _check(radiographs: Tensor) -> None:
    assert radiographs.shape[1:] == (1, 224, 224), radiographs.shape
    assert radiographs.abs().amax() > 2, "radiographs must span [-1024, 1024], as load_radiograph gives them"

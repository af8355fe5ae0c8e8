"""Vision networks by name or weight file, loaded and frozen.

- torchxrayvision's DenseNet-121 and any file with such weights: `Vision`, as in the paper.
- An embedded tiny DenseNet, trained on the drawn sample by tools/make_assets.py.
- Three networks trained on ImageNet, with the same interface, to measure what training on radiographs is
  worth: torchvision's DenseNet-121, ConvNeXt (Liu et al. 2022) and ViT (Dosovitskiy et al. 2021).

The names and shapes of the weights warn which network they belong to. A DenseNet of another size than 121
states it in its safetensors metadata, as JSON under the key "densenet".
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..files.download import Progress
from ..files.text import parse_json, short
from ..files.vision_weights import KNOWN, known_file, read_weights
from ..vision import DENSENET121, PATHOLOGIES, Vision, check_radiographs

TINY = {"growth_rate": 16, "block_config": [2, 4, 6, 4], "num_init_features": 24}
TINY_WEIGHTS = Path(__file__).parents[1] / "assets" / "tiny-densenet.safetensors"


def load_vision(
    name: str | Path = "tiny",
    device: str | torch.device = "cpu",
    cache: Path | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> "Vision | ImageNetVision":
    """A frozen network in evaluation mode, fp32.

    name: "tiny" (embedded), a name in vision_weights.KNOWN (downloaded), or a weight file, safetensors or by
    torch.save. cache: folder for downloads and converted pickles; without it nothing is stored, and a name
    that needs a download is refused. progress, warn: see `download`.
    Raises UserError where the file is missing, unreadable, hostile, or does not fit its architecture.
    """
    path = TINY_WEIGHTS if name == "tiny" else Path(name)
    if name in KNOWN:
        if cache is None:
            raise UserError(f"{name} must be downloaded from {KNOWN[name]}; give the downloaded file instead")
        path = known_file(name, cache, progress, warn)
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
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = short(error, 200)
        raise UserError(
            f"{path} holds the weights of no known network ({reason}); give another file"
        ) from None
    vision.hash = stored.hash
    return vision.eval().requires_grad_(False).to(device)


def _network_for(tensors: dict[str, Tensor], metadata: dict[str, str]) -> "Vision | ImageNetVision":
    """The network, with random weights, whose state dict has these names."""
    if "conv_proj.weight" in tensors:
        return ImageNetVision("vit_b_16")
    if "features.0.0.weight" in tensors:
        return ImageNetVision("convnext_tiny")
    if tensors["features.conv0.weight"].shape[1] == 3:
        return ImageNetVision("densenet121")
    architecture = parse_json(metadata.get("densenet", "null")) or DENSENET121
    blocks = architecture["block_config"]
    if len(blocks) > 20 or sum(blocks) > 200 or architecture["growth_rate"] > 200 or min(blocks) < 1:
        raise ValueError("a DenseNet far larger than any known")
    if sum(blocks) != sum(name.endswith("conv2.weight") for name in tensors):
        raise ValueError("its metadata state another number of layers")
    with torch.device("meta"):  # shapes without memory: a few bytes could ask for gigabytes
        shapes = {name: p.shape for name, p in Vision(architecture).net.named_parameters()}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            raise ValueError(f"{name} is missing or not of shape {tuple(shape)}")
    return Vision(architecture)


class ImageNetVision(nn.Module):
    """Vision's interface over torchvision's network of that name. It knows no pathologies: scores (n, 0)."""

    has_scores = False

    def __init__(self, name: str):
        super().__init__()
        from torchvision.models import get_model, get_model_weights  # a second to import, and rarely needed

        self.net, self.hash = get_model(name), ""
        self.n_channels, self.grid = BACKBONES[name]
        transforms = get_model_weights(name).DEFAULT.transforms()
        self.register_buffer("mean", torch.tensor(transforms.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(transforms.std).view(3, 1, 1))

    def features(self, radiographs: Tensor) -> Tensor:
        """(n, 1, 224, 224) in [-1024, 1024] -> (n, n_channels, 7, 7). Grey is given as all three colours."""
        check_radiographs(radiographs)
        return self.grid(self.net, ((radiographs + 1024) / 2048 - self.mean) / self.std)

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
    encoded = net.encoder(tokens)[:, 1:]  # without the class token, which has no place in the image
    return F.avg_pool2d(encoded.transpose(1, 2).unflatten(2, (14, 14)), 2)  # (n, 768, 7, 7)


# Name -> channels of its grid, and the function that computes it.
BACKBONES = {
    "densenet121": (1024, _densenet_grid),
    "convnext_tiny": (768, _convnext_grid),
    "vit_b_16": (768, _vit_grid),
}

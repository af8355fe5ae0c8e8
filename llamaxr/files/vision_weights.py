"""Where vision's weights come from: names that are known, and files from elsewhere.

In: a name of KNOWN, or a weight file, safetensors or by torch.save. Out: its tensors. A pickle, read by
pickled.py, is saved as safetensors in the cache folder, under its hash, and read from there afterwards.
torchxrayvision's DenseNets (Cohen et al. 2022) have 18 scores, and operating points to calibrate them by.
torchvision's ImageNet networks are for comparison, and have no scores.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .download import Progress, download
from .pickled import read_pickled
from .tensors import check_finite, read_tensors, write_tensors

nan, NO_LABEL = float("nan"), ("op_threshs",)  # NaN: no label in training, so nothing is known
XRV = "https://github.com/mlmed/torchxrayvision/releases/download/v1"
XRV_FILE = "{}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
# From torchxrayvision.models.model_urls: the training data, as in the file names, and the operating points in
# vision.PATHOLOGIES' order: the probability from which a pathology counts as present, nan where no label was.
XRV_SETS = {
    "all": ("nih-pc-chex-mimic_ch-google-openi-kaggle", (
        0.07422872, 0.038290843, 0.09814756, 0.0098118475, 0.023601074, 0.0022490358, 0.010060724,
        0.103246614, 0.056810737, 0.026791653, 0.050318155, 0.023985857, 0.01939503, 0.042889766,
        0.053369623, 0.035975814, 0.20204692, 0.05015312)),
    "nih": ("nih", (
        0.039117552, 0.0034529066, 0.11396341, 0.0057298196, 0.00045666535, 0.0018880932, 0.012037827,
        0.038744126, 0.0037213727, 0.014730946, 0.016149804, 0.054241467, 0.037198864, 0.0004403434,
        nan, nan, nan, nan)),
    "pc": ("pc", (
        0.031012505, 0.013347598, 0.081435576, 0.001262615, 0.002587246, 0.0035944257, 0.0023071,
        0.055412333, 0.044385884, 0.042766232, 0.043258056, 0.037629247, 0.005658899, 0.0091741895,
        nan, 0.026507627, nan, nan)),
    "chex": ("chex", (
        0.1988969, 0.05710573, nan, 0.0531293, 0.1435217, nan, nan, 0.27212676, 0.07749717, nan, 0.19712369,
        nan, nan, nan, 0.09932402, 0.09273402, 0.3270967, 0.10888247)),
    "rsna": ("kaggle", (
        nan, nan, nan, nan, nan, nan, nan, nan, 0.13486601, nan, nan, nan, nan, nan, nan, nan, 0.13511065,
        nan)),
    "mimic_nb": ("mimic_nb", (
        0.08558747, 0.011884617, nan, 0.0040595434, 0.010733786, nan, nan, 0.118761964, 0.022924708, nan,
        0.06358637, nan, nan, nan, 0.022143636, 0.017476924, 0.1258702, 0.014020768)),
    "mimic_ch": ("mimic_ch", (
        0.09121389, 0.010573786, nan, 0.005023008, 0.003698257, nan, nan, 0.08001232, 0.037242252, nan,
        0.05006329, nan, nan, nan, 0.019866971, 0.03823637, 0.11303808, 0.0069147074)),
}  # fmt: skip
IMAGENET = {"densenet121": "a639ec97", "convnext_tiny": "983f1562", "vit_b_16": "c867db91"}  # torchvision's

# Name for --vision -> address of the published file.
KNOWN = {
    f"densenet121-res224-{name}": f"{XRV}/{XRV_FILE.format(data)}" for name, (data, _) in XRV_SETS.items()
}
KNOWN |= {
    f"{name}-imagenet": f"https://download.pytorch.org/models/{name}-{digest}.pth"
    for name, digest in IMAGENET.items()
}
OP_THRESHS = {XRV_FILE.format(data): points for data, points in XRV_SETS.values()}  # by file name
# What the parts of torchxrayvision's file names stand for (its models.py). google: other labels of nih.
DATA_SETS = {
    "nih": "NIH ChestX-ray14", "pc": "PadChest", "chex": "CheXpert", "mimic_ch": "MIMIC-CXR",
    "mimic_nb": "MIMIC-CXR", "google": "NIH ChestX-ray14", "openi": "Open-i", "kaggle": "RSNA Pneumonia",
}  # fmt: skip
TRAINED_ON = {  # by file name
    XRV_FILE.format(data): tuple(dict.fromkeys(DATA_SETS[part] for part in data.split("-")))
    for data, _ in XRV_SETS.values()
}
TRAINED_ON |= {f"{name}-{digest}.pth": ("ImageNet",) for name, digest in IMAGENET.items()}


@dataclass(frozen=True)
class StoredWeights:
    """A weight file's tensors (views of the file: copy what you keep), its metadata, and its hash."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    hash: str


def read_weights(path: Path, cache: Path | None = None) -> StoredWeights:
    """A weight file -> its tensors by torchvision's current names, with `op_threshs` (18,) where it is known.

    cache: folder for converted pickles; None writes nothing. Raises UserError for a file that is missing,
    damaged or hostile.
    """
    if not path.is_file():
        raise UserError(
            f"vision weights {path} do not exist; give a weight file, tiny, or one of {', '.join(KNOWN)}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if path.suffix == ".safetensors":
        return StoredWeights(*read_tensors(path, may_hold_nan=NO_LABEL), digest)
    op_threshs = OP_THRESHS.get(path.name)  # not in the file: torchxrayvision has them by file name
    if op_threshs:
        digest = hashlib.sha256(f"{digest} {op_threshs}".encode()).hexdigest()
    converted = cache / f"vision-{digest[:32]}.safetensors" if cache else None
    if converted and converted.is_file():
        try:
            return StoredWeights(*read_tensors(converted, may_hold_nan=NO_LABEL), digest)
        except UserError:
            pass  # damaged: converted again below
    tensors = {_current_name(name): tensor for name, tensor in read_pickled(path).items()}
    for tensor_name, tensor in tensors.items():
        if tensor_name not in NO_LABEL:
            check_finite(path, tensor_name, tensor)
    if op_threshs:
        tensors["op_threshs"] = torch.tensor(op_threshs)
    if converted:
        save_weights(converted, tensors)
    return StoredWeights(tensors, {}, digest)


def trained_on(vision: str) -> tuple[str, ...]:
    """The data sets that the network of --vision was trained on, by its name or published file name. () where
    they are not known: a file of another name may hold any network."""
    if vision == "tiny":
        return ("drawn images",)
    return TRAINED_ON.get(Path(KNOWN.get(vision, vision)).name, ())


def known_file(
    name: str,
    cache: Path,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Path:
    """A name of KNOWN -> its file in the cache folder, downloaded unless it is there. warn: see `download`.
    Raises UserError where the download fails, or the file does not have the hash in its name (torchvision's).
    """
    url = KNOWN[name]
    path = cache / "weights" / url.rpartition("/")[2]
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)  # torchvision: the first digits of its SHA-256
    return download(url, path, progress, sha256=named[1] if named else "", warn=warn)


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> None:
    """Write a safetensors file, and its folder. metadata: its values are written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {key: json.dumps(value) for key, value in (metadata or {}).items()})


def _current_name(name: str) -> str:
    """Until 2018 DenseNet's layers were named norm.1, conv.2; torchvision's ImageNet file still has that."""
    return re.sub(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$", r"\1\2", name)

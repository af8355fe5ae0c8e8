"""An image file becomes what DenseNet expects: one grey square of 224 x 224 in [-1024, 1024].

The steps are torchxrayvision's (Cohen et al. 2022): grey, centre crop to a square, scale, resize. The scale
is the trap: the same pixels in [-1, 1] look like one flat grey to these weights, and every patient gets the
same scores.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .files.images import open_pixels  # PNG, JPEG and DICOM to grey pixels

SIDE = 224  # pixels, as torchxrayvision's networks were trained
FLAT = 4.0  # of 2048: half a grey level of 8 bits is no contrast
VIEWS = ("frontal", "lateral")  # a study's images; code elsewhere uses their indices, 0 and 1


def load_radiograph(path: str | Path) -> Tensor:
    """Read a PNG, JPEG or DICOM file as float32 (1, 224, 224) in [-1024, 1024]; air dark, bone bright.

    Raises UserError where the file cannot be read (files/images.py says when) or is one grey all over.
    """
    with open_pixels(path) as (pixels, maximum):  # (height, width) in 0..maximum; memory is bounded inside
        radiograph = torch.from_numpy(normalise(centre_crop(pixels), maximum))[None]  # (1, side, side)
        # Antialiased: without it a fine line of a 2048-pixel radiograph falls between the samples.
        radiograph = F.interpolate(radiograph[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0]
    if radiograph.max() - radiograph.min() <= FLAT:  # the model would still write a report, about nothing
        raise UserError(f"radiograph {path} is blank, one grey value all over: export it again")
    # The interpolation's weights sum to 1 +- 1e-7, so white may come out slightly above 1024.
    radiograph = radiograph.clamp(-1024, 1024)  # (1, 224, 224)
    assert radiograph.shape == (1, SIDE, SIDE) and bool(radiograph.isfinite().all())
    return radiograph


def centre_crop(pixels: np.ndarray) -> np.ndarray:
    """The middle square of (height, width), a view. Equals torchxrayvision's XRayCenterCrop."""
    height, width = pixels.shape
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    return pixels[top : top + side, left : left + side]


def normalise(pixels: np.ndarray, maximum: float) -> np.ndarray:
    """Grey 0..maximum -> float32 in [-1024, 1024], same shape: (2 pixels / maximum - 1) 1024.

    Source: torchxrayvision.utils.normalize. Its docstring says "roughly"; here the range is asserted.
    """
    assert pixels.min() >= 0 and pixels.max() <= maximum, "pixels outside 0..maximum"
    values = pixels.astype(np.float32)
    values /= maximum  # in place: an image may have 30 million pixels
    values *= 2
    values -= 1
    values *= 1024
    # Bounds alone would let [-1, 1] pass: a full scale has to span 2048.
    span = 2048 * (float(pixels.max()) - float(pixels.min())) / maximum
    assert values.min() >= -1024 and values.max() <= 1024 and abs(np.ptp(values) - span) < 0.01
    return values

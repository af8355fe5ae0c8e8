"""An image file becomes what DenseNet expects: one grey square of 224 x 224 in [-1024, 1024].

In comes a PNG, a JPEG or a DICOM, known by its first bytes and not by its name; out goes a float32 tensor.
The steps are torchxrayvision's (Cohen et al. 2022): grey, centre crop to a square, scale, resize. The scale
is the trap: the same pixels in [-1, 1] look like one flat grey to these weights, and every patient gets the
same scores.

A file is hostile until read. Its declared size is checked before anything is decoded, and whatever a decoder
makes of damaged bytes leaves here as a UserError.
"""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .errors import UserError

MIN_SIDE = 32  # pixels; a thumbnail smaller than this shows no finding
MAX_PIXELS = 100_000_000  # detectors have up to 20 million; more is a decompression bomb
MAX_BYTES = 512 * 2**20  # DICOM is read into memory whole
BIT_DEPTHS = (8, 10, 12, 14, 16)  # what detectors deliver inside 16-bit files


def load_radiograph(path: str | Path, size: int = 224) -> Tensor:
    """Read a PNG, JPEG or DICOM file as float32 (1, size, size) in [-1024, 1024]; air dark, bone bright.

    Raises UserError, one line with the file's name, where the file is missing, is no such image, is damaged,
    too small or too large, holds a single grey value, or is a DICOM in colour, with several frames or in a
    compression that has no decoder here.
    """
    path = _regular_file(path)
    try:
        with warnings.catch_warnings():
            # Damaged or huge images: what we refuse, we say ourselves.
            warnings.simplefilter("ignore")
            pixels, maximum = (_read_dicom if _is_dicom(path) else _read_png_or_jpeg)(path)  # (height, width)
    except UserError:
        raise
    except Exception as error:  # decoders answer damaged bytes with nearly any exception there is
        reason = _quotable(f"{type(error).__name__}: {error}")
        mend = "check its permissions" if isinstance(error, PermissionError) else "fetch or export it again"
        raise UserError(f"cannot read radiograph {path} ({reason}): {mend}") from error

    square = centre_crop(pixels)  # (side, side)
    if square.min() == square.max():  # a model would write a report of nothing all the same
        raise UserError(f"radiograph {path} is blank, one grey value all over: export it again")
    radiograph = torch.from_numpy(normalise(square, maximum))[None]  # (1, side, side)
    # Antialiased: without it a fine line of a 2048-pixel radiograph falls between the samples.
    radiograph = F.interpolate(radiograph[None], (size, size), mode="bilinear", antialias=True)[0]
    # The interpolation's weights sum to 1 +- 1e-7, so white may come out a hair above 1024.
    radiograph = radiograph.clamp(-1024, 1024)  # (1, size, size)
    assert radiograph.shape == (1, size, size) and bool(radiograph.isfinite().all())
    return radiograph


def centre_crop(pixels: np.ndarray) -> np.ndarray:
    """The middle square of (height, width), a view; torchxrayvision's XRayCenterCrop, odd sizes too."""
    height, width = pixels.shape
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    return pixels[top : top + side, left : left + side]


def normalise(pixels: np.ndarray, maximum: float) -> np.ndarray:
    """Grey 0..maximum -> float32 in [-1024, 1024], same shape: (2 pixels / maximum - 1) 1024.

    Source: torchxrayvision.utils.normalize. Its docstring says "roughly"; here it is held.
    """
    assert pixels.min() >= 0 and pixels.max() <= maximum, "pixels outside 0..maximum"
    values = (2 * (pixels.astype(np.float32) / maximum) - 1.0) * 1024
    # A bound alone would let [-1, 1] pass: a full scale has to span 2048.
    span = 2048 * (float(pixels.max()) - float(pixels.min())) / maximum
    assert values.min() >= -1024 and values.max() <= 1024 and abs(np.ptp(values) - span) < 0.01
    return values


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes as 64 hex digits: the image's name in the feature cache.

    Raises UserError where there is no readable file; whether it is an image is load_radiograph's question.
    """
    path = _regular_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read radiograph {path} ({error.strerror}): check its permissions") from error


def _regular_file(path: str | Path) -> Path:
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"no radiograph at {path}: check the path")
        if not path.is_file():  # a folder, or a pipe or device that would never end
            raise UserError(f"{path} is not a file: give one PNG, JPEG or DICOM file")
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read radiograph {path} ({error.strerror}): check the path") from error
    if size == 0:
        raise UserError(f"radiograph {path} is empty (0 bytes): fetch or export it again")
    if size > MAX_BYTES:
        raise UserError(f"radiograph {path} is over {MAX_BYTES >> 20} MiB ({size >> 20}): export it smaller")
    return path


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"  # after a preamble of 128 bytes that may hold anything


def _check_size(width: int, height: int, path: Path) -> None:
    what = f"radiograph {path} is {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise UserError(f"{what}, over {MAX_PIXELS // 10**6} million: export it smaller")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{what}, under {MIN_SIDE} a side: give the full image")


def _read_png_or_jpeg(path: Path) -> tuple[np.ndarray, float]:
    """Grey pixels (height, width) in 0..maximum, and maximum."""
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))  # reads the header only
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is no PNG, JPEG or DICOM, or its header is damaged: export as PNG") from None
    except Image.DecompressionBombError:
        million = MAX_PIXELS // 10**6
        raise UserError(f"radiograph {path} is over {million} million pixels: export it smaller") from None
    with image:
        _check_size(*image.size, path)
        image = ImageOps.exif_transpose(image)  # a photographed film lies as its camera was held
        if not image.mode.startswith("I"):
            # Luma of colours and palettes; alpha is dropped, because what it hides was still exposed.
            return np.asarray(image.convert("L")), 255
        # A 16-bit file mostly holds 12 bits, and 4095 of 65535 would be a black image. So white is the top of
        # the smallest usual depth that holds the brightest pixel; a stretch to that pixel's own value would
        # also undo the exposure.
        pixels = np.asarray(image)
        return pixels, next(2.0**depth - 1 for depth in BIT_DEPTHS if pixels.max() < 2**depth)


def _read_dicom(path: Path) -> tuple[np.ndarray, float]:
    """Grey pixels (height, width) as a viewer first shows them, stretched to 0..1, and 1."""
    try:  # only who has DICOM needs pydicom
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
        from pydicom.uid import DeflatedExplicitVRLittleEndian
    except ImportError:
        raise UserError(
            f"radiograph {path} is DICOM, which needs pydicom: pip install 'pydicom>=3'"
        ) from None

    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    # Deflated, the header itself is compressed: its size can't be known before all of it is unpacked.
    if syntax == DeflatedExplicitVRLittleEndian or not _has_decoder(get_decoder, syntax):
        raise UserError(
            f"radiograph {path} is compressed as {_quotable(syntax.name)}, which is not read here: "
            "decompress it (gdcmconv --raw), or pip install pylibjpeg[all]"
        )
    dicom = pydicom.dcmread(path)
    if "PixelData" not in dicom:
        raise UserError(f"DICOM {path} holds no pixel data (a report, an index?): give the image file")
    frames = int(dicom.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(f"DICOM {path} holds {frames} frames: export the one to be read")
    shown_as = dicom.PhotometricInterpretation
    if shown_as not in ("MONOCHROME1", "MONOCHROME2") or dicom.SamplesPerPixel != 1:
        raise UserError(f"DICOM {path} is in colour ({_quotable(shown_as)}): give the grey radiograph itself")
    _check_size(int(dicom.Columns), int(dicom.Rows), path)
    held = len(dicom.PixelData)
    declared = int(dicom.Rows) * int(dicom.Columns) * int(dicom.BitsAllocated) // 8
    # A little more is padding; twice as much, and pydicom would make undeclared frames of it.
    if not syntax.is_compressed and not declared <= held < 2 * declared:
        raise UserError(f"DICOM {path} holds {held} bytes of pixels and declares {declared}: fetch it again")

    # Detector values -> the modality's units -> the first window (or table) its maker stored for viewing.
    pixels = apply_voi_lut(apply_modality_lut(dicom.pixel_array, dicom), dicom, index=0).astype(np.float64)
    pixels -= pixels.min()
    maximum = pixels.max()
    if not np.isfinite(maximum):
        raise UserError(f"DICOM {path} has a rescale or window that is no finite number: export it as PNG")
    if maximum > 0:
        pixels /= maximum
    if shown_as == "MONOCHROME1":  # low values are bright: turned round last, since windows are stated before
        pixels = 1 - pixels
    return pixels.astype(np.float32), 1.0


def _has_decoder(get_decoder, syntax) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:  # video, or a syntax younger than this pydicom
        return False


def _quotable(text: object) -> str:
    """What a file says of itself, fit for a message: one short line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:120]

"""Grey pixels out of a PNG, JPEG or DICOM file from anywhere.

The format is recognised by the file's first bytes, not by its name. A file is hostile until it is read: its
declared size is checked before anything is decoded, and whatever exception a decoder raises becomes a
UserError.
"""

import hashlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError

MIN_SIDE = 32  # pixels; a thumbnail smaller than this shows no finding
MAX_PIXELS = 100_000_000  # detectors have up to 20 million; more is a decompression bomb
MAX_BYTES = 512 * 2**20  # a DICOM is read into memory whole
BIT_DEPTHS = (8, 10, 12, 14, 16)  # that detectors deliver inside 16-bit files


def read_pixels(path: str | Path) -> tuple[np.ndarray, float]:
    """Grey pixels (height, width) in 0..maximum, and maximum; air dark, bone bright.

    Raises UserError, one line with the file's name, where the file is missing, is not such an image, is
    damaged, too small or too large, or is a DICOM in colour, with several frames or in a compression that has
    no decoder here.
    """
    path = _regular_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decoders, about damaged or huge images
            return (_read_dicom if _is_dicom(path) else _read_png_or_jpeg)(path)
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly any exception over damaged bytes
        reason = _printable(f"{type(error).__name__}: {error}")
        remedy = "check its permissions" if isinstance(error, PermissionError) else "fetch or export it again"
        raise UserError(f"cannot read radiograph {path} ({reason}): {remedy}") from error


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes, as 64 hex digits: the image's name in the feature cache.

    Raises UserError where there is no readable file. Whether it is an image is not checked.
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
        return file.read(132)[128:] == b"DICM"  # after a preamble of 128 bytes with any content


def _check_size(width: int, height: int, path: Path) -> None:
    size = f"radiograph {path} is {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise UserError(f"{size}, over {MAX_PIXELS // 10**6} million: export it smaller")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{size}, under {MIN_SIDE} per side: give the full image")


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
        image = ImageOps.exif_transpose(image)  # a photographed film is turned as its camera was
        if not image.mode.startswith("I"):
            # Luma of colours and palettes. Alpha is dropped: what it hides was exposed all the same.
            return np.asarray(image.convert("L")), 255
        # A 16-bit file usually holds 12 bits, and 4095 of 65535 would be a black image. So white is the top
        # of the smallest usual depth that holds the brightest pixel. A stretch to that pixel's own value
        # would also undo the exposure.
        pixels = np.asarray(image)
        return pixels, next(2.0**depth - 1 for depth in BIT_DEPTHS if pixels.max() < 2**depth)


def _read_dicom(path: Path) -> tuple[np.ndarray, float]:
    """Grey pixels (height, width) as a viewer first shows them, stretched to 0..1, and 1."""
    try:  # pydicom is needed for DICOM only
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
        from pydicom.uid import DeflatedExplicitVRLittleEndian
    except ImportError:
        raise UserError(
            f"radiograph {path} is DICOM, which needs pydicom: pip install 'pydicom>=3'"
        ) from None

    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    # In a deflated file even the header is compressed: its size is unknown until all of it is unpacked.
    if syntax == DeflatedExplicitVRLittleEndian or not _has_decoder(get_decoder, syntax):
        raise UserError(
            f"radiograph {path} is compressed as {_printable(syntax.name)}, which is not supported: "
            "decompress it (gdcmconv --raw), or pip install pylibjpeg[all]"
        )
    dicom = pydicom.dcmread(path)
    if "PixelData" not in dicom:
        raise UserError(f"DICOM {path} holds no pixel data (a report, an index?): give the image file")
    frames = int(dicom.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(f"DICOM {path} holds {frames} frames: export one of them")
    photometric = dicom.PhotometricInterpretation
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or dicom.SamplesPerPixel != 1:
        raise UserError(f"DICOM {path} is in colour ({_printable(photometric)}): give the grey radiograph")
    _check_size(int(dicom.Columns), int(dicom.Rows), path)
    n_bytes = len(dicom.PixelData)
    declared = int(dicom.Rows) * int(dicom.Columns) * int(dicom.BitsAllocated) // 8
    # A few bytes more are padding. Of twice as many pydicom would make undeclared frames.
    if not syntax.is_compressed and not declared <= n_bytes < 2 * declared:
        raise UserError(
            f"DICOM {path} holds {n_bytes} bytes of pixels and declares {declared}: fetch it again"
        )

    # Detector values -> the modality's units -> the first window (or table) its maker stored for viewing.
    pixels = apply_voi_lut(apply_modality_lut(dicom.pixel_array, dicom), dicom, index=0).astype(np.float64)
    pixels -= pixels.min()
    maximum = pixels.max()
    if not np.isfinite(maximum):
        raise UserError(f"DICOM {path} has a rescale or window that is not a finite number: export it as PNG")
    if maximum > 0:
        pixels /= maximum
    if photometric == "MONOCHROME1":  # low values are bright: inverted last, since windows apply before that
        pixels = 1 - pixels
    return pixels.astype(np.float32), 1.0


def _has_decoder(get_decoder, syntax) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:  # video, or a syntax newer than this pydicom
        return False


def _printable(text: object) -> str:
    """Text from a file, made fit for a message: one short line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:120]

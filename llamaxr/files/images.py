"""Grey pixels out of a PNG, JPEG or DICOM file from anywhere.

The format is recognised by the file's first bytes, not by its name. A file is hostile until it is read: its
declared size is checked before anything is decoded, and whatever exception a decoder raises becomes a
UserError. Many threads may read: the pixels of all images that are open at once are bounded together.
"""

import contextlib
import hashlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ..errors import UserError
from .text import short

MIN_SIDE = 32  # pixels; a thumbnail smaller than this shows no finding
MAX_PIXELS = 30_000_000  # of an image, and of those that are open together; detectors have up to 20 million
LARGE = 10_000_000  # pixels; images of more are read in turn
MAX_BYTES = 2**28  # a DICOM is read into memory whole
BIT_DEPTHS = (8, 10, 12, 14, 16)  # that detectors deliver inside 16-bit files
PNG, COLOURS = b"\x89PNG\r\n\x1a\n", (2, 4, 6)  # PNG's colour types RGB, grey with alpha, and RGBA
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601-2, as PIL


class _PixelBudget:
    """Lets threads in while what they hold together is within a bound; one alone may always come in."""

    def __init__(self, size: int):
        self.size, self.in_use, self.changed = size, 0, threading.Condition()

    def acquire(self, n: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.in_use == 0 or self.in_use + n <= self.size)
            self.in_use += n

    def release(self, n: int) -> None:
        with self.changed:
            self.in_use -= n
            self.changed.notify_all()


PIXELS = _PixelBudget(MAX_PIXELS)
TURN = threading.Lock()


def _in_turn(read: Callable, *arguments) -> tuple[np.ndarray, float]:
    """read(*arguments), one at a time, in a thread of its own. glibc keeps up to 180 MiB for each thread that
    has read a large image; the next such thread takes over what this one leaves."""
    with TURN, ThreadPoolExecutor(1) as thread:
        return thread.submit(read, *arguments).result()


@contextlib.contextmanager
def open_pixels(path: str | Path) -> Iterator[tuple[np.ndarray, float]]:
    """Grey pixels (height, width) in 0..maximum, and maximum; air dark, bone bright. Inside the `with` they
    count against what may be open together.

    Raises UserError, one line with the file's name, where the file is missing, is not such an image, is
    damaged, too small or too large, or is a DICOM in colour, with several frames or in a compression that has
    no decoder here.
    """
    path, acquired = _regular_file(path), []

    def check_size(width: int, height: int) -> None:
        size = f"radiograph {path} is {width} x {height} pixels"
        if width * height > MAX_PIXELS:
            raise UserError(f"{size}, over {MAX_PIXELS // 10**6} million: export it smaller")
        if min(width, height) < MIN_SIDE:
            raise UserError(f"{size}, under {MIN_SIDE} per side: give the full image")
        PIXELS.acquire(width * height)
        acquired.append(width * height)

    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of decoders, about damaged or huge images
                with path.open("rb") as file:
                    head = file.read(132)
                if _is_dicom(head):  # its file is in memory before its size is known
                    pixels = _in_turn(_read_dicom, path, head, check_size)
                else:
                    pixels = _read_png_or_jpeg(path, head, check_size)
        except UserError:
            raise
        except Exception as error:  # decoders raise nearly any exception over damaged bytes
            reason = short(f"{type(error).__name__}: {error}")
            remedy = "check its permissions" if isinstance(error, PermissionError) else "fetch it again"
            raise UserError(f"cannot read radiograph {path} ({reason}): {remedy}") from error
        yield pixels
    finally:
        for n in acquired:
            PIXELS.release(n)


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


def _is_dicom(head: bytes) -> bool:
    """By "DICM" after a preamble of 128 bytes, or at the start if the preamble is lost. If the mark is lost
    too, by the group of the first tag: 2, how the file is encoded, or 8, with which older files begin."""
    return head[128:132] == b"DICM" or head[:4] == b"DICM" or head[:2] in (b"\2\0", b"\x08\0")


def _read_png_or_jpeg(path: Path, head: bytes, check_size) -> tuple[np.ndarray, float]:
    """Grey pixels (height, width) in 0..maximum, and maximum."""
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))  # reads the header only
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is no PNG, JPEG or DICOM, or its header is damaged: export as PNG") from None
    except Image.DecompressionBombError:
        million = MAX_PIXELS // 10**6
        raise UserError(f"radiograph {path} is over {million} million pixels: export it smaller") from None
    with image:
        if image.width * image.height > LARGE:
            return _in_turn(_decode_png_or_jpeg, image, path, head, check_size)
        return _decode_png_or_jpeg(image, path, head, check_size)


def _decode_png_or_jpeg(image: Image.Image, path: Path, head: bytes, check_size) -> tuple[np.ndarray, float]:
    check_size(*image.size)  # after it is this image's turn: who waits for that holds no pixels
    if head.startswith(PNG) and head[24] == 16 and head[25] in COLOURS:
        image.verify()  # the checksums, which the next reader passes over
        return _within_depth(_grey_of_16_bits(path))
    ImageOps.exif_transpose(image, in_place=True)  # a photographed film is turned as its camera was
    if not image.mode.startswith("I"):
        # Luma of colours and palettes. Alpha is dropped: what it hides was exposed all the same.
        return np.asarray(image if image.mode == "L" else image.convert("L")), 255
    return _within_depth(np.asarray(image))


def _grey_of_16_bits(path: Path) -> np.ndarray:
    """A PNG with 16 bits per colour -> its luma (height, width). PIL would keep the upper 8 bits only, of
    which 12-bit data have 4; torchvision reads all."""
    from torchvision.io import ImageReadMode, decode_image, read_file  # a second to import, and rarely needed

    channels = decode_image(read_file(str(path)), ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    channels = channels.numpy()  # (n, height, width)
    if len(channels) < 3:
        return channels[0]
    grey = np.zeros(channels.shape[1:], np.float32)
    for weight, channel in zip(LUMA, channels[:3], strict=True):
        grey += np.float32(weight) * channel
    return np.rint(grey, out=grey).astype(np.uint16)


def _within_depth(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Pixels of a 16-bit file -> the same within 0..maximum, and maximum.

    Such a file usually holds 12 bits, and 4095 of 65535 would be a black image. So white is the top of the
    smallest usual depth that holds the brightest pixel. A stretch to that pixel's own value would also undo
    the exposure. A marker burned in at the file's white says nothing about the depth: a brightest pixel of
    over 4 times the 95th percentile, background left out, is replaced by that percentile.
    """
    step = max(1, int((pixels.size / 2**20) ** 0.5))
    sample = pixels[::step, ::step]
    sample, brightest = sample[sample > sample.min()], int(pixels.max())
    if len(sample) and brightest > 4 * (usual := np.percentile(sample, 95)):
        brightest = int(usual)
    maximum = next(2**depth - 1 for depth in BIT_DEPTHS if brightest < 2**depth)
    return np.minimum(pixels, maximum), float(maximum)


def _read_dicom(path: Path, head: bytes, check_size) -> tuple[np.ndarray, float]:
    """Grey pixels (height, width) as a viewer first shows them, stretched to 0..1, and 1."""
    try:  # pydicom is needed for DICOM only
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
        from pydicom.uid import (
            DeflatedExplicitVRLittleEndian,
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            RLELossless,
        )
    except ImportError:
        raise UserError(
            f"radiograph {path} is DICOM, which needs pydicom: pip install 'pydicom>=3'"
        ) from None

    data = path.read_bytes()
    if head[128:132] != b"DICM":
        data = bytes(128) + b"DICM" + data.removeprefix(b"DICM")
    # How much deflated or run-length encoded bytes unpack to is unknown until all of it is unpacked.
    meta = pydicom.filereader.read_dataset(
        io.BytesIO(data[132 : 2**20]), False, True, stop_when=lambda tag, *_: tag.group != 2
    )
    syntax = meta.get("TransferSyntaxUID")
    unbounded = syntax in (DeflatedExplicitVRLittleEndian, RLELossless)
    if unbounded or syntax and not _has_decoder(get_decoder, syntax):
        plug_in = "" if unbounded else ", or pip install pylibjpeg[all]"
        raise UserError(
            f"radiograph {path} is compressed as {short(syntax.name)}, which is not supported: "
            f"decompress it (gdcmconv --raw){plug_in}"
        )
    dicom = pydicom.dcmread(io.BytesIO(data))
    del data
    if "PixelData" not in dicom:
        raise UserError(f"DICOM {path} holds no pixel data (a report, an index?): give the image file")
    frames = int(dicom.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(f"DICOM {path} holds {frames} frames: export one of them")
    photometric = dicom.PhotometricInterpretation
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or dicom.SamplesPerPixel != 1:
        raise UserError(f"DICOM {path} is in colour ({short(photometric)}): give the grey radiograph")
    check_size(int(dicom.Columns), int(dicom.Rows))
    if not syntax:  # the group that states it is missing: it is as pydicom found the header to be
        syntax = ImplicitVRLittleEndian if dicom.original_encoding[0] else ExplicitVRLittleEndian
        dicom.file_meta.TransferSyntaxUID = syntax
    n_bytes = len(dicom.PixelData)
    declared = int(dicom.Rows) * int(dicom.Columns) * int(dicom.BitsAllocated) // 8
    # A few bytes more are padding. Of twice as many pydicom would make undeclared frames.
    if not syntax.is_compressed and not declared <= n_bytes < 2 * declared:
        raise UserError(
            f"DICOM {path} holds {n_bytes} bytes of pixels and declares {declared}: fetch it again"
        )

    _fill_empty(dicom)
    stored = dicom.pixel_array
    pixels = np.empty(stored.shape, np.float32)
    for top in range(0, len(stored), 256):  # in doubles, so not all rows at once
        rows = slice(top, top + 256)
        # Detector values -> the modality's units -> the first window (or table) its maker stored for viewing.
        pixels[rows] = apply_voi_lut(apply_modality_lut(stored[rows], dicom), dicom, index=0)
    counts = _counted(stored, dicom)
    if not counts.any():
        raise UserError(f"DICOM {path} is all padding: export it again")
    low, high = pixels.min(where=counts, initial=np.inf), pixels.max(where=counts, initial=-np.inf)
    if not (np.isfinite(low) and np.isfinite(high) and np.isfinite(high - low)):
        raise UserError(f"DICOM {path} has a rescale or window that is not a finite number: export it as PNG")
    pixels -= low
    if high > low:
        pixels /= high - low
    if photometric == "MONOCHROME1":  # low values are bright: inverted last, since windows apply before that
        pixels = 1 - pixels
    pixels[~counts] = 0
    return pixels, 1.0


def _fill_empty(dicom) -> None:
    """Treat attributes without a value, and a window without width, as absent."""
    for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0), ("VOILUTFunction", "LINEAR")):
        if name in dicom and dicom.get(name) in (None, ""):
            setattr(dicom, name, default)
    for name in ("WindowCenter", "WindowWidth"):
        value = dicom.get(name)
        first = value if isinstance(value, (float, int)) or not value else value[0]
        if name in dicom and (first in (None, "") or name == "WindowWidth" and first < 1):
            del dicom[name]  # pydicom asks for both


def _counted(stored: np.ndarray, dicom) -> np.ndarray:
    """Which pixels are of the patient, as bool (height, width): those that are neither padding (PS3.3
    C.7.5.1.1.2) nor behind a shutter (PS3.3 C.7.6.11), both of which a viewer shows in black."""
    counts = np.ones(stored.shape, bool)
    shutter = Image.new("1", stored.shape[::-1])
    draw, shape = ImageDraw.Draw(shutter), dicom.get("ShutterShape") or ""
    if "RECTANGULAR" in shape:  # edges are rows and columns from 1 on
        top, bottom = dicom.ShutterUpperHorizontalEdge - 1, dicom.ShutterLowerHorizontalEdge - 1
        left, right = dicom.ShutterLeftVerticalEdge - 1, dicom.ShutterRightVerticalEdge - 1
        if left <= right and top <= bottom:
            draw.rectangle((left, top, right, bottom), fill=1)
    elif "CIRCULAR" in shape:
        (y, x), r = dicom.CenterOfCircularShutter, dicom.RadiusOfCircularShutter
        r = min(r, 2**16)  # PIL draws one of a million pixels for minutes
        draw.ellipse((x - 1 - r, y - 1 - r, x - 1 + r, y - 1 + r), fill=1)
    elif "POLYGONAL" in shape:
        points = [n - 1 for n in dicom.VerticesOfThePolygonalShutter]
        draw.polygon(list(zip(points[1::2], points[::2], strict=True)), fill=1)
    visible = np.asarray(shutter)
    if visible.any():  # else there is none
        counts &= visible
    padding = dicom.get("PixelPaddingValue")
    if isinstance(padding, int):
        limit = dicom.get("PixelPaddingRangeLimit")
        bounds = np.array([padding, limit if isinstance(limit, int) else padding])
        if stored.dtype.itemsize == 2:
            bounds = bounds.astype(stored.dtype)  # 63536 is written where -2000 is meant
        counts &= (stored < bounds.min()) | (stored > bounds.max())
    return counts


def _has_decoder(get_decoder, syntax) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:  # video, or a syntax newer than this pydicom
        return False

"""Which image files are read, to which grey, and which are refused. Every file is made here."""

import hashlib
import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image, ImageFile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from llamaxr.errors import UserError
from llamaxr.files import images
from llamaxr.files.images import MAX_BYTES, content_hash
from llamaxr.radiograph import load_radiograph, normalise


def chest(height=300, width=300, top=255):
    """A smooth grey picture, 0..top, different from each of its rotations and mirror images."""
    y, x = np.mgrid[0:height, 0:width] / [[[height - 1]], [[width - 1]]]
    grey = 0.55 * x + 0.25 * y + 0.2 * np.sin(9 * x) * np.sin(6 * y + 1)
    grey = (grey - grey.min()) / np.ptp(grey)
    return (top * grey).round().astype(np.uint8 if top < 256 else np.uint16)


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def write_dicom(path, pixels, syntax=ExplicitVRLittleEndian, pixel_data=None, bits=16, drop=(), **tags):
    """A minimal secondary capture of one grey frame; `tags` replaces or adds, `drop` removes."""
    dicom = Dataset()
    dicom.file_meta = FileMetaDataset()
    dicom.file_meta.TransferSyntaxUID = syntax
    dicom.file_meta.MediaStorageSOPClassUID = dicom.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dicom.file_meta.MediaStorageSOPInstanceUID = dicom.SOPInstanceUID = "1.2.3.4"
    dicom.PatientID = "x"
    dicom.Rows, dicom.Columns = pixels.shape[:2]
    dicom.SamplesPerPixel = 1
    dicom.PhotometricInterpretation = "MONOCHROME2"
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = bits, bits, bits - 1
    dicom.PixelRepresentation = 0
    data = pixels.astype(np.uint8 if bits == 8 else "<u2").tobytes() if pixel_data is None else pixel_data
    dicom.add_new("PixelData", "OB" if bits == 8 else "OW", data)
    dicom["PixelData"].is_undefined_length = pixel_data is not None and syntax.is_encapsulated
    for name, value in tags.items():
        setattr(dicom, name, value)
    for name in drop:
        delattr(dicom, name)
    dicom.save_as(path, enforce_file_format=True)
    return path


def compressed(pixels, format, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return encapsulate([file.getvalue()])


def refusal(path):
    """The one line with which a file is refused; nothing may be printed or warned beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            load_radiograph(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and ": " in message
    return message


# PNG and JPEG


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "P"])
def test_grey_stored_in_another_mode_is_the_same_radiograph(tmp_path, mode):
    grey = load_radiograph(save(tmp_path / "a.png", chest()))
    assert torch.equal(load_radiograph(save(tmp_path / "b.png", chest(), mode)), grey)


def test_alpha_is_ignored(tmp_path):
    grey = chest()
    hidden = np.stack([grey, grey, grey, 255 - grey], axis=-1)  # (height, width, 4)
    assert torch.equal(
        load_radiograph(save(tmp_path / "a.png", hidden)), load_radiograph(save(tmp_path / "b.png", grey))
    )


def test_one_bit_is_black_and_white(tmp_path):
    radiograph = load_radiograph(save(tmp_path / "a.png", chest(224, 224), "1"))
    assert set(radiograph.unique().tolist()) == {-1024, 1024}


def test_16_bits_and_8_bits_of_one_image_are_equal(tmp_path):
    eight = chest()
    sixteen = eight.astype(np.uint16) * 257  # 255 -> 65535
    a, b = save(tmp_path / "8.png", eight), save(tmp_path / "16.png", sixteen)
    assert Image.open(b).mode.startswith("I")
    torch.testing.assert_close(load_radiograph(a), load_radiograph(b), atol=1e-3, rtol=0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_a_16_bit_file_are_not_black(tmp_path, bits):
    pixels = chest(224, 224, top=2**bits - 1).astype(np.uint16)
    radiograph = load_radiograph(save(tmp_path / "a.png", pixels))
    assert np.array_equal(radiograph[0].numpy(), normalise(pixels, 2**bits - 1))


def write_png(path, pixels, depth, colour):
    """A PNG in a form that PIL does not write. pixels: (height, width, channels)."""
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in pixels)
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks
    ))  # fmt: skip
    return path


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("colour, channels", [(2, "ggg"), (6, "ggga"), (4, "ga")])
def test_16_bits_of_grey_stored_as_colour_or_with_alpha_are_not_black(tmp_path, bits, colour, channels):
    grey = chest(224, 224, top=2**bits - 1).astype(np.uint16)
    layers = {"g": grey, "a": np.full_like(grey, 65535)}
    path = write_png(tmp_path / "a.png", np.stack([layers[c] for c in channels], -1), 16, colour)
    assert np.array_equal(load_radiograph(path)[0].numpy(), normalise(grey, 2**bits - 1))


def test_16_bits_of_colour_are_weighed_as_8_bits_are(tmp_path):
    colours = np.stack([chest(224, 224), chest(224, 224)[::-1], chest(224, 224)[:, ::-1]], -1)
    eight = load_radiograph(save(tmp_path / "8.png", colours))
    sixteen = load_radiograph(write_png(tmp_path / "16.png", colours.astype(np.uint16) * 257, 16, 2))
    torch.testing.assert_close(eight, sixteen, atol=8, rtol=0)  # a level of 8 bits, to which PIL rounds


@pytest.mark.parametrize("side", [1, 10, 40])
@pytest.mark.parametrize("colour, n", [(0, 1), (2, 3)])
def test_a_marker_burned_in_as_white_does_not_decide_the_depth(tmp_path, side, colour, n):
    grey = chest(224, 224, top=4095)
    marked = grey.copy()
    marked[:side, :side] = 65535
    path = write_png(tmp_path / "a.png", np.stack([marked] * n, -1), 16, colour)
    expected = normalise(grey, 4095)
    expected[:side, :side] = 1024
    assert np.array_equal(load_radiograph(path)[0].numpy(), expected)


def test_a_few_bright_pixels_that_are_no_marker_count(tmp_path):
    pixels = chest(224, 224, top=1000)
    pixels[:5, :5] = 3000  # not 4 times the rest: metal
    assert np.array_equal(
        load_radiograph(save(tmp_path / "a.png", pixels))[0].numpy(), normalise(pixels, 4095)
    )


def test_an_underexposed_image_stays_dark(tmp_path):
    pixels = chest(224, 224, top=3000)
    assert load_radiograph(save(tmp_path / "a.png", pixels)).max() == normalise(pixels, 4095).max() < 1024


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_the_same_radiograph_to_its_quality(tmp_path, mode):
    path = save(tmp_path / "a.jpg", chest(), mode, quality=95)
    png = load_radiograph(save(tmp_path / "a.png", chest()))
    # Quality 95 is off by a few of 255 levels, and each level is 8 of 2048.
    torch.testing.assert_close(load_radiograph(path), png, atol=5 * 8, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = Image.fromarray(chest(300, 340))
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}.get(orientation)  # fmt: skip
    stored = upright.transpose(Image.Transpose[undo]) if undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    expected = load_radiograph(save(tmp_path / "a.png", np.asarray(upright)))
    torch.testing.assert_close(load_radiograph(tmp_path / "a.jpg"), expected, atol=5 * 8, rtol=0)


def test_a_file_is_known_by_its_content_not_its_name(tmp_path):
    png = load_radiograph(save(tmp_path / "a.png", chest()))
    assert torch.equal(load_radiograph(save(tmp_path / "b.dcm", chest(), format="PNG")), png)
    assert torch.equal(load_radiograph(write_dicom(tmp_path / "c.png", chest(), bits=8)), png)


# DICOM


def test_dicom_is_stretched_from_its_least_to_its_greatest_value(tmp_path):
    pixels = chest(224, 224, top=2000) + 1000
    radiograph = load_radiograph(write_dicom(tmp_path / "a.dcm", pixels))
    np.testing.assert_allclose(radiograph[0], normalise(pixels - 1000, 2000), atol=1e-3)


def test_monochrome1_is_inverted(tmp_path):
    one = load_radiograph(
        write_dicom(tmp_path / "1.dcm", chest(top=4095), PhotometricInterpretation="MONOCHROME1")
    )
    two = load_radiograph(write_dicom(tmp_path / "2.dcm", chest(top=4095)))
    torch.testing.assert_close(one, -two, atol=1e-3, rtol=0)


def test_the_first_window_is_the_one_shown(tmp_path):
    pixels = chest(224, 224, top=4000)
    path = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=[2000, 100], WindowWidth=[1001, 50])
    # PS3.3 C.11.2.1.2: a straight line from centre - 0.5 - (width - 1) / 2, 1000 wide.
    expected = np.clip((pixels - (2000 - 0.5 - 500)) / 1000, 0, 1)
    np.testing.assert_allclose(load_radiograph(path)[0], normalise(expected, 1), atol=1e-2)


def test_a_window_is_stated_in_rescaled_units(tmp_path):
    pixels = chest(top=4000)
    raw = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=2000, WindowWidth=1001)
    rescaled = write_dicom(
        tmp_path / "b.dcm", pixels, RescaleSlope=1, RescaleIntercept=-500, WindowCenter=1500, WindowWidth=1001
    )
    # The offset moves the window's half pixel against the rounding of the stored range, no more.
    torch.testing.assert_close(load_radiograph(raw), load_radiograph(rescaled), atol=1e-2, rtol=0)


def test_a_negative_slope_inverts(tmp_path):
    straight = load_radiograph(write_dicom(tmp_path / "a.dcm", chest()))
    inverted = load_radiograph(write_dicom(tmp_path / "b.dcm", chest(), RescaleSlope=-2, RescaleIntercept=0))
    torch.testing.assert_close(inverted, -straight, atol=1e-3, rtol=0)


def test_signed_pixels_keep_their_order(tmp_path):
    pixels = chest(top=2000)
    signed = (pixels.astype(np.int16) - 1000).astype("<i2")
    path = write_dicom(tmp_path / "a.dcm", signed.view("<u2"), PixelRepresentation=1)
    plain = write_dicom(tmp_path / "b.dcm", pixels)
    torch.testing.assert_close(load_radiograph(path), load_radiograph(plain), atol=1e-3, rtol=0)


BORDER = np.zeros((224, 224), bool)
BORDER[:30] = BORDER[:, 200:] = True


@pytest.mark.parametrize("padding", [
    {"PixelPaddingValue": 63536}, {"PixelPaddingValue": 63000, "PixelPaddingRangeLimit": 64000},
    {"PixelPaddingValue": 64000, "PixelPaddingRangeLimit": 63000},
    {"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 1, "ShutterRightVerticalEdge": 200,
     "ShutterUpperHorizontalEdge": 31, "ShutterLowerHorizontalEdge": 224},
    {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [31, 1, 31, 200, 224, 200, 224, 1]},
])  # fmt: skip
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_left_out_of_the_stretch(tmp_path, padding, photometric):
    pixels = chest(224, 224, top=4000)
    inside = pixels[~BORDER].min(), pixels[~BORDER].max()
    padded = np.where(BORDER, 63536, pixels)
    path = write_dicom(tmp_path / "a.dcm", padded, PhotometricInterpretation=photometric, **padding)
    expected = normalise(pixels[~BORDER] - inside[0], inside[1] - inside[0])
    if photometric == "MONOCHROME1":
        expected = -expected
    radiograph = load_radiograph(path)[0].numpy()
    np.testing.assert_allclose(radiograph[~BORDER], expected, atol=1e-3)
    assert (radiograph[BORDER] == -1024).all()


def test_a_round_shutter_leaves_the_round(tmp_path):
    tags = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [112, 112], "RadiusOfCircularShutter": 80}
    y, x = np.mgrid[1:225, 1:225] - 112
    pixels = np.where(x**2 + y**2 <= 82**2, chest(224, 224, top=400), 4000)
    radiograph = load_radiograph(write_dicom(tmp_path / "a.dcm", pixels, **tags))[0]
    assert radiograph[112].max() > 700 and (radiograph[:20] == -1024).all()
    tags["RadiusOfCircularShutter"] = 10**6  # all of the image is inside; it must not take minutes to say so
    wide = load_radiograph(write_dicom(tmp_path / "b.dcm", chest(224, 224, top=400), **tags))
    assert torch.equal(wide, load_radiograph(write_dicom(tmp_path / "c.dcm", chest(224, 224, top=400))))


def test_padding_of_signed_pixels_may_be_written_without_a_sign(tmp_path):
    pixels = chest(224, 224, top=2000).astype(np.int16) - 1000
    padded = np.where(BORDER, -2000, pixels).astype("<i2")
    tags = {"PixelRepresentation": 1, "PixelPaddingValue": -2000}
    path = write_dicom(tmp_path / "a.dcm", padded.view("<u2"), **tags)
    assert (load_radiograph(path)[0].numpy()[BORDER] == -1024).all()
    assert load_radiograph(path).max() == 1024


def test_all_padding_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.full((64, 64), 7), PixelPaddingValue=7)
    assert "all padding" in refusal(path)


@pytest.mark.parametrize("tags", [
    {"RescaleSlope": None, "RescaleIntercept": None}, {"RescaleSlope": None, "RescaleIntercept": -5},
    {"WindowCenter": 100, "WindowWidth": 0}, {"WindowCenter": None, "WindowWidth": None},
    {"WindowCenter": 100}, {"WindowCenter": [], "WindowWidth": 50}, {"PixelPaddingValue": None},
    {"WindowCenter": 1000, "WindowWidth": -1, "VOILUTFunction": ""}, {"NumberOfFrames": None},
])  # fmt: skip
def test_an_attribute_without_a_value_is_as_if_it_were_not_there(tmp_path, tags):
    expected = load_radiograph(write_dicom(tmp_path / "a.dcm", chest()))
    torch.testing.assert_close(
        load_radiograph(write_dicom(tmp_path / "b.dcm", chest(), **tags)), expected, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("begin", [128, 132])
def test_a_dicom_without_its_preamble_is_read(tmp_path, begin):
    path = write_dicom(tmp_path / "a.dcm", chest())
    (tmp_path / "b.dcm").write_bytes(path.read_bytes()[begin:])
    assert torch.equal(load_radiograph(tmp_path / "b.dcm"), load_radiograph(path))


@pytest.mark.parametrize("implicit", [True, False])
def test_a_dicom_without_the_group_that_states_its_form_is_read(tmp_path, implicit):
    path = write_dicom(tmp_path / "a.dcm", chest())
    dicom = pydicom.dcmread(path)
    expected = load_radiograph(path)
    plain = Dataset({tag: dicom[tag] for tag in dicom.keys()})  # noqa: SIM118 (a Dataset gives elements)
    plain.save_as(tmp_path / "b.dcm", implicit_vr=implicit, little_endian=True)
    assert (tmp_path / "b.dcm").read_bytes()[:2] == b"\x08\0"
    assert torch.equal(load_radiograph(tmp_path / "b.dcm"), expected)


def test_compressed_dicom_is_read_where_a_decoder_is_here(tmp_path):
    pixels = chest()
    plain = load_radiograph(write_dicom(tmp_path / "a.dcm", pixels, bits=8))
    jpeg = compressed(pixels, "JPEG", quality=95)
    lossy = load_radiograph(write_dicom(tmp_path / "b.dcm", pixels, JPEGBaseline8Bit, jpeg, 8))
    torch.testing.assert_close(lossy, plain, atol=5 * 8, rtol=0)
    j2k = compressed(pixels, "JPEG2000", no_jp2=True)
    assert torch.equal(
        load_radiograph(write_dicom(tmp_path / "c.dcm", pixels, JPEG2000Lossless, j2k, 8)), plain
    )


# Refusals


def test_what_is_not_a_file_is_refused(tmp_path):
    assert "no radiograph at" in refusal(tmp_path / "none.png")
    assert "not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # reading it would block for ever
    assert "not a file" in refusal(tmp_path / "pipe.png")
    assert "too long" in refusal(tmp_path / ("a" * 300))


@pytest.mark.parametrize("content", [b"x", b"<html>not found</html>" * 20, bytes(500), b"\x89PNG\r\n\x1a\n"])
def test_what_is_not_an_image_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert "no PNG, JPEG or DICOM" in refusal(tmp_path / "a.png")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    assert "empty" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_other_formats_are_refused(tmp_path, format):
    assert "no PNG, JPEG or DICOM" in refusal(save(tmp_path / "a.png", chest(), format=format))


def test_a_file_too_large_to_hold_is_refused_unread(tmp_path):
    with open(tmp_path / "a.dcm", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no disk space
    assert "over 256 MiB" in refusal(tmp_path / "a.dcm")


@pytest.mark.parametrize("shape", [(1, 1), (31, 500), (500, 31)])
def test_an_image_too_small_to_show_anything_is_refused(tmp_path, shape):
    assert "under 32 per side" in refusal(
        save(tmp_path / "a.png", chest(64, 64)[:1, :1].repeat(shape[0], 0).repeat(shape[1], 1))
    )
    assert "under 32 per side" in refusal(write_dicom(tmp_path / "a.dcm", np.zeros(shape, np.uint16)))


@pytest.mark.parametrize("side", [5_478, 14_000, 100_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_at_its_header(tmp_path, side):
    # 5,478: ours alone; 14,000 is over PIL's limit for an error, which must not come out as such.
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    png = b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert "30 million" in refusal(tmp_path / "a.png").replace("over ", "")


def test_a_dicom_that_unpacks_to_any_size_is_refused(tmp_path):
    """Two bytes of run-length encoding are up to 128; pydicom unpacks all of them."""
    path = write_dicom(tmp_path / "a.dcm", chest(), bits=8)
    dicom = pydicom.dcmread(path)
    dicom.compress(RLELossless)
    dicom.save_as(path)
    assert refusal(path).endswith("RLE Lossless, which is not supported: decompress it (gdcmconv --raw)")


def test_a_dicom_is_held_to_its_declared_size_before_decoding(tmp_path):
    huge = write_dicom(tmp_path / "a.dcm", chest(top=4095), Rows=60000, Columns=60000)
    assert "60000 x 60000 pixels, over 30 million" in refusal(huge)
    short = write_dicom(tmp_path / "b.dcm", chest(top=4095), Rows=2000)
    assert "holds 180000 bytes of pixels and declares 1200000" in refusal(short)
    frames = write_dicom(tmp_path / "c.dcm", chest(top=4095), Rows=150)
    assert "holds 180000 bytes of pixels and declares 90000" in refusal(frames)


@pytest.mark.parametrize("tags", [{"RescaleSlope": "nan", "RescaleIntercept": 0},
                                  {"RescaleSlope": "inf", "RescaleIntercept": 0},
                                  {"WindowCenter": "nan", "WindowWidth": 100}])  # fmt: skip
def test_a_rescale_or_window_that_is_no_number_is_refused(tmp_path, tags):
    path = write_dicom(tmp_path / "a.dcm", chest(), **{name: 7 for name in tags})
    digits = path.read_bytes()
    for name, value in tags.items():
        element = pydicom.tag.Tag(name)
        at = digits.index(struct.pack("<HH", element.group, element.element))
        text = str(value).ljust(4).encode()  # same VR, DS, with another length
        digits = digits[: at + 6] + struct.pack("<H", 4) + text + digits[at + 10 :]
    path.write_bytes(digits)
    refusal(path)


def test_a_dicom_that_is_no_grey_single_image_is_refused(tmp_path):
    pixels = chest()
    assert "no pixel data" in refusal(write_dicom(tmp_path / "a.dcm", pixels, drop=["PixelData"]))
    assert "2 frames" in refusal(
        write_dicom(tmp_path / "b.dcm", pixels, pixel_data=bytes(360000), NumberOfFrames=2)
    )
    colour = dict(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert "in colour (RGB)" in refusal(
        write_dicom(tmp_path / "c.dcm", pixels, pixel_data=bytes(270000), bits=8, **colour)
    )


@pytest.mark.parametrize("tag", ["Rows", "BitsAllocated", "PhotometricInterpretation", "PixelRepresentation"])
def test_a_dicom_that_lacks_a_tag_is_refused_by_its_name(tmp_path, tag):
    assert tag in refusal(write_dicom(tmp_path / "a.dcm", chest(), drop=[tag])).replace(" ", "")


def test_text_from_a_file_cannot_break_the_line(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", chest(), PhotometricInterpretation="RGB")
    path.write_bytes(path.read_bytes().replace(b"RGB ", b"R\x1b\n\x07"))
    assert r"in colour (R\x1b \x07)" in refusal(path)


def test_a_compression_without_a_decoder_is_named(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm", chest(), JPEGLosslessSV1, encapsulate([b"\xff\xd8" + bytes(100)]), 8
    )
    if pydicom.pixels.get_decoder(JPEGLosslessSV1).is_available:
        pytest.skip("this machine has a decoder for it")
    assert "compressed as JPEG Lossless" in refusal(path) and "pylibjpeg" in refusal(path)


def test_a_deflated_dicom_is_refused_before_it_is_unpacked(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", chest(), DeflatedExplicitVRLittleEndian)
    assert "compressed as Deflated" in refusal(path)


def test_unreadable_by_permission_says_so(tmp_path):
    path = save(tmp_path / "a.png", chest())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    assert "permission" in refusal(path)
    with pytest.raises(UserError, match="permission"):
        content_hash(path)


def test_two_middle_greys_of_16_bits_are_no_contrast(tmp_path):
    pixels = np.full((64, 64), 32767, np.uint16)
    pixels[:, ::2] = 32768
    assert "blank" in refusal(save(tmp_path / "a.png", pixels))


def test_what_is_decoded_together_is_bounded_in_pixels(tmp_path, monkeypatch):
    path, most, now, lock = save(tmp_path / "a.png", chest(400, 500), "RGB"), [], [], threading.Lock()

    def luma(*arguments, real=Image.Image.convert, **named):
        with lock:
            now.append(0)
            most.append(len(now))
        time.sleep(0.02)
        with lock:
            now.pop()
        return real(*arguments, **named)

    monkeypatch.setattr(Image.Image, "convert", luma)
    monkeypatch.setattr(images, "PIXELS", images._PixelBudget(450_000))
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        expected, *others = pool.map(load_radiograph, [path] * 12)
    assert max(most) == 2 and all(torch.equal(other, expected) for other in others)
    with pytest.raises(UserError), images.open_pixels(tmp_path / "none.png"):
        pass
    assert images.PIXELS.in_use == 0


# Damage

FUZZ_ROUNDS = 120  # per file; 20,000 were run by hand


def damage(valid, rng):
    """Cut, flip or overwrite: what disks, networks and fuzzers do."""
    broken = bytearray(valid)
    kind = rng.integers(3)
    if kind == 0:
        return bytes(broken[: rng.integers(1, len(broken))])
    # Headers are where damage is interesting: half of it lands in the first 600 bytes.
    for _ in range(rng.integers(1, 8)):
        at = rng.integers(min(600, len(broken)) if rng.random() < 0.5 else len(broken))
        broken[at] = rng.integers(256) if kind == 1 else broken[at] ^ (1 << rng.integers(8))
    return bytes(broken)


def valid_files(folder):
    pixels = chest(64, 80)
    yield save(folder / "grey.png", pixels)
    yield save(folder / "16.png", chest(64, 80, 4095))
    yield save(folder / "palette.png", pixels, "P")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield save(folder / "exif.jpg", pixels, exif=exif)
    yield save(folder / "progressive.jpg", pixels, "RGB", progressive=True)
    window = dict(WindowCenter=[2000, 9], WindowWidth=[1001, 9], RescaleSlope=2, RescaleIntercept=-5)
    yield write_dicom(folder / "plain.dcm", chest(64, 80, 4095), **window)
    yield write_dicom(folder / "jpeg.dcm", pixels, JPEGBaseline8Bit, compressed(pixels, "JPEG"), 8)


@pytest.mark.parametrize("which", range(7))
def test_a_damaged_file_gives_a_sound_tensor_or_a_user_error(tmp_path, which):
    path = list(valid_files(tmp_path))[which]
    valid, rng, refused = path.read_bytes(), np.random.default_rng(which), 0
    assert load_radiograph(path).shape == (1, 224, 224)
    for _ in range(FUZZ_ROUNDS):
        path.write_bytes(damage(valid, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                radiograph = load_radiograph(path)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
            else:
                assert radiograph.shape == (1, 224, 224) and radiograph.abs().max() <= 1024
    assert 0 < refused  # else the damage did none


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_refused_not_filled_with_grey(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", chest())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in refusal(path)


def test_pils_settings_are_left_as_they_were(tmp_path):
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    load_radiograph(save(tmp_path / "a.png", chest()))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


# The cache key


def test_the_content_hash_is_sha256_of_the_bytes_and_not_of_the_name(tmp_path):
    a = save(tmp_path / "a.png", chest())
    b = tmp_path / "b.png"
    b.write_bytes(a.read_bytes())
    assert content_hash(a) == content_hash(str(b)) == hashlib.sha256(a.read_bytes()).hexdigest()
    b.write_bytes(a.read_bytes() + b"\0")
    assert content_hash(a) != content_hash(b)
    with pytest.raises(UserError, match="no radiograph"):
        content_hash(tmp_path / "none.png")

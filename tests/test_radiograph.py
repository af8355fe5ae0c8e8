"""load_radiograph's numbers are torchxrayvision's. files/test_images.py tests which files it reads."""

import numpy as np
import pytest
import torch

from llamaxr.radiograph import centre_crop, load_radiograph, normalise
from tests.files.test_images import chest, refusal, save, write_dicom


def test_black_is_minus_1024_and_white_is_1024(tmp_path):
    pixels = np.zeros((256, 256), np.uint8)
    pixels[:, 128:] = 255
    radiograph = load_radiograph(save(tmp_path / "a.png", pixels))
    assert radiograph.dtype == torch.float32 and radiograph.shape == (1, 224, 224)
    assert (radiograph.min(), radiograph.max()) == (-1024, 1024)


def test_the_scale_is_exactly_torchxrayvisions():
    xrv = pytest.importorskip("torchxrayvision")
    for top in (255, 4095, 65535):
        pixels = chest(top=top)
        assert np.array_equal(normalise(pixels, top), xrv.datasets.normalize(pixels, top))


def test_pixels_above_the_maximum_are_our_own_mistake():
    with pytest.raises(AssertionError):
        normalise(chest(top=4095), 255)


@pytest.mark.parametrize("shape", [(300, 300), (300, 401), (401, 300), (301, 400), (33, 1000)])
def test_the_crop_is_exactly_torchxrayvisions(shape):
    xrv = pytest.importorskip("torchxrayvision")
    pixels = chest(*shape)
    assert np.array_equal(centre_crop(pixels), xrv.datasets.XRayCenterCrop()(pixels[None])[0])


def test_the_result_agrees_with_torchxrayvision(tmp_path):
    # Theirs: Gaussian blur, then bilinear (scikit-image); ours: a triangle as wide as the scale (torch, as
    # PIL). On a smooth image both give the local mean, to half a grey level of 8 bits (4 of 2048); only along
    # the border does their blur mix in black from outside.
    xrv = pytest.importorskip("torchxrayvision")
    path = save(tmp_path / "a.png", chest(700, 900))
    theirs = xrv.datasets.XRayResizer(224)(xrv.datasets.XRayCenterCrop()(xrv.utils.load_image(path)))
    inside = (..., slice(3, -3), slice(3, -3))
    ours = load_radiograph(path)
    torch.testing.assert_close(ours[inside], torch.from_numpy(theirs)[inside], atol=4, rtol=0)


def test_at_its_own_size_an_image_is_not_resampled(tmp_path):
    pixels = chest(224, 224)
    radiograph = load_radiograph(save(tmp_path / "a.png", pixels))
    assert np.array_equal(radiograph[0].numpy(), normalise(pixels, 255))


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((896, 896), np.uint8)
    stripes[:, ::2] = 255  # finer than a quarter of the samples can show: grey, not moire
    assert load_radiograph(save(tmp_path / "a.png", stripes))[:, :, 2:-2].abs().max() < 150


def test_left_stays_left_and_top_stays_top(tmp_path):
    pixels = np.zeros((300, 400), np.uint8)
    pixels[:60, 50:110] = 255  # the crop takes columns 50 to 350
    for path in (save(tmp_path / "a.png", pixels), write_dicom(tmp_path / "a.dcm", pixels, bits=8)):
        radiograph = load_radiograph(path)[0]
        assert radiograph[:40, :40].min() > 1023
        assert radiograph[50:].max() < -1023 and radiograph[:, 50:].max() < -1023


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_blank_image_is_refused(tmp_path, grey):
    pixels = np.full((64, 64), grey, np.uint8)
    assert "blank" in refusal(save(tmp_path / "a.png", pixels))
    assert "blank" in refusal(save(tmp_path / "b.png", pixels.astype(np.uint16)))
    assert "blank" in refusal(write_dicom(tmp_path / "c.dcm", pixels))

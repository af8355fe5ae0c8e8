"""Frontal or lateral, where only file numbers and codes are known."""

import numpy as np
import pytest
from PIL import Image

from llamaxr.data.phantom import phantom
from llamaxr.data.views import codes_say, pick_views, symmetry


@pytest.fixture
def films(tmp_path):
    """One phantom's frontal and lateral."""
    paths = tmp_path / "a.png", tmp_path / "b.png"
    for path, film in zip(paths, phantom(0, 3)[1], strict=True):
        Image.fromarray(film).save(path)
    return paths


def described(*images):
    return [(path, {"CEDD": code, "FCTH": code}) for path, code in images]


def collection(frontal, lateral):
    """Enough pairs in the usual order for the codes F and L to mean something."""
    return {f"CXR{n}": described((frontal, "F"), (lateral, "L")) for n in range(20)}


def test_a_chest_is_symmetrical_from_the_front_and_not_from_the_side(films):
    frontal, lateral = films
    assert symmetry(frontal) > symmetry(lateral)
    picture = np.tile(np.arange(32, dtype=np.uint8), (32, 1))
    Image.fromarray(np.hstack([picture, picture[:, ::-1]])).save(lateral)
    assert symmetry(lateral) > 0.99


def test_codes_call_the_second_frontal_where_they_stand_crosswise(films):
    pairs = {**collection(*films), "CXR99": described((films[1], "L"), (films[0], "F"))}
    assert [uid for uid, swapped in codes_say(pairs).items() if swapped] == ["CXR99"]


def test_where_codes_contest_the_order_pixels_decide(films):
    frontal, lateral = films
    studies = {
        **collection(frontal, lateral),
        "crosswise": described((lateral, "L"), (frontal, "F")),
        "codes err": described((frontal, "L"), (lateral, "F")),
    }
    views = pick_views(studies)
    assert set(views.values()) == {(frontal, lateral)} and len(views) == 22


def test_of_more_images_the_first_two_count_and_one_image_is_the_frontal(films):
    a, b = films
    studies = {"one": described((a, "F")), "none": [], "three": described((a, "F"), (b, "L"), (b, "L"))}
    assert pick_views(studies) == {"one": (a, None), "none": (None, None), "three": (a, b)}


def test_an_unreadable_image_leaves_the_order(films, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    studies = {**collection(*films), "c": described((films[0], "L"), (broken, "F"))}
    assert pick_views(studies)["c"] == (films[0], broken) and symmetry(broken) == 0
    assert symmetry(tmp_path / "missing.png") == 0

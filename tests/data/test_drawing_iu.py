"""The findings of IU X-ray: each is drawn where it should be, and more of it when it is severe."""

from functools import cache

import numpy as np
import pytest

from llamaxr.data.drawing import DRAWN, SEVERITY, Finding, draw
from llamaxr.data.drawing_iu import EXTRA
from llamaxr.metrics.findings import FINDINGS

LOCAL = ("lung opacity", "streaky opacity", "pneumonia", "scar", "lung calcification", "consolidation",
         "nodule", "granuloma", "clips")  # fmt: skip
SIDED = (*LOCAL, "effusion", "pneumothorax", "atelectasis", "interstitial opacity", "pleural other",
         "raised diaphragm", "calcified nodes", "rib fracture", "clavicle fracture")  # fmt: skip
FRONTAL_ONLY = {"clavicle fracture"}
ANY_ZONE = {"effusion", "pneumothorax", "raised diaphragm", "calcified nodes", "clavicle fracture"}
# Metal has no severity.
METAL = {"catheter", "pacemaker", "wires", "valve", "clips", "midline clips", "airway tube", "feeding tube",
         "stent", "skin leads", "screws"}  # fmt: skip
SIZE, SEEDS = 112, range(3)


@cache
def normal(seed):
    return draw((), np.random.default_rng(seed), SIZE)


def change(finding):
    """How much a finding changes each pixel, in grey levels, mean of SEEDS; (2, SIZE, SIZE)."""
    films = [
        np.abs(np.subtract(draw((finding,), np.random.default_rng(s), SIZE, EXTRA), normal(s), dtype=float))
        for s in SEEDS
    ]
    return np.mean(films, axis=0)


@pytest.mark.parametrize("name", [name for name in (*DRAWN, *EXTRA) if name != "device"])
def test_every_finding_is_visible_on_both_films_and_more_so_when_severe(name):
    side, zone = ("left" if name in SIDED else None), (None if name in ANY_ZONE else "lower")
    mild, severe = (change(Finding(name, side, zone, grade)) for grade in ("mild", "severe"))
    for view in (0,) if name in FRONTAL_ONLY else (0, 1):
        for film, grey_levels in ((mild, 10), (severe, 15)):
            assert (film[view] > grey_levels).sum() >= 6, view  # at this size a granuloma is as small
    assert name in METAL or severe[0].sum() > 1.1 * mild[0].sum()


@pytest.mark.parametrize("side, half", [("left", slice(SIZE // 2, None)), ("right", slice(0, SIZE // 2))])
@pytest.mark.parametrize("name", SIDED)
def test_a_sided_finding_is_on_the_other_half_of_the_frontal_film(name, side, half):
    frontal = change(Finding(name, side, None if name in ANY_ZONE else "mid", "moderate"))[0]
    assert frontal[:, half].sum() > 0.8 * frontal.sum()


@pytest.mark.parametrize("name", LOCAL)
def test_a_finding_is_in_its_zone(name):
    heights = []  # from 0, the top, to 1
    for zone in ("upper", "mid", "lower"):
        rows = change(Finding(name, "right", zone, "moderate"))[0].sum(axis=1)
        heights.append((rows * np.arange(SIZE)).sum() / rows.sum() / SIZE)
    assert heights[0] < 0.36 < heights[1] < 0.54 < heights[2] < 0.78


@pytest.mark.parametrize("name", ["cardiomegaly", "scoliosis", "hyperinflation", "effusion", "low volume"])
def test_a_severity_orders_how_much_of_the_chest_changes(name):
    side = "left" if name == "effusion" else None
    sizes = [change(Finding(name, side, None, severity)).sum() for severity in SEVERITY]
    assert sizes == sorted(sizes)


def test_the_labellers_findings_are_all_drawn():
    kinds = {"fracture", "calcification", "device"}  # drawn by the bone, the place, the thing
    assert set(FINDINGS) - kinds <= {*DRAWN, *EXTRA}


@pytest.mark.parametrize("other", [name for name in (*DRAWN, *EXTRA) if name != "effusion"])
def test_a_finding_is_drawn_whatever_was_drawn_before_it(other):
    """The index has any order. An effusion after an atelectasis was once drawn where that had left off."""
    first, effusion = (
        Finding(other, "right", "lower", "moderate"),
        Finding("effusion", "left", None, "severe"),
    )
    alone, both = (draw(f, np.random.default_rng(0), SIZE, EXTRA) for f in ((first,), (first, effusion)))
    for view, expected in enumerate(
        np.abs(np.subtract(draw((effusion,), np.random.default_rng(0), SIZE), normal(0), dtype=float))
    ):
        changed = np.abs(np.subtract(both[view], alone[view], dtype=float)) > 10
        assert 0.4 < changed.sum() / (expected > 10).sum() < 1.6, view


def test_a_scoliosis_bends_to_its_side_and_of_two_severities_the_larger_counts():
    def film(*of):
        return draw(tuple(Finding("scoliosis", *f) for f in of), np.random.default_rng(0), SIZE)[0]

    left, right, either = (film((side, None, "mild")) for side in ("left", "right", None))
    assert not np.array_equal(left, right) and any(np.array_equal(either, one) for one in (left, right))
    severe = film(("left", None, "severe"))
    for of in (("mild", "severe"), ("severe", "mild")):
        assert np.array_equal(film(*(("left", None, grade) for grade in of)), severe)

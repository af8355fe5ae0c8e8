"""Verdicts at their borders, and the sentences made of them."""

import pytest

from llamaxr.metrics.verdicts import _critical, _images, _sides, told, verdict

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("difference", "expected"),
    [([0.2, 0.1, 0.3], "better"), ([-0.2, -0.3, -0.1], "worse"), ([0.1, -0.1, 0.3], "cannot be told"),
     ([1, 0, 1], "cannot be told"), ([-1, -1, 0], "cannot be told"), ([0, 0, 0], "cannot be told"),
     ([0.5, 1e-9, 1], "better"), ([-0.5, -1, -1e-9], "worse"),
     ([1e-17, 1e-17, 1e-17], "cannot be told"),  # rounding of sums is no difference
     (None, "cannot be told"), ([None, None, None], "cannot be told"), ([NAN] * 3, "cannot be told"),
     ([1, 0.5, INF], "cannot be told")],
)  # fmt: skip
def test_there_are_three_verdicts_and_an_interval_that_holds_zero_has_one(difference, expected):
    assert verdict(difference) == expected and told(difference).startswith(expected)


def test_sides_are_counted_and_left_out_where_nobody_names_one():
    words = _sides({"findings": {"sides_right": [0.75, 0.5, 1.0], "sides_named": [4]}})
    assert words == "Sides: 3 of 4 are right, 0.750 [0.500, 1.000]."
    assert _sides({"findings": {"sides_right": None, "sides_named": [0]}}) is None


def test_critical_findings_are_told_as_found_of_the_true_and_invented_ones():
    row = lambda *counts: dict(zip(("right", "wrong_side", "missed", "invented"), counts, strict=True))
    rows = {"effusion": row(3, 1, 6, 2), "nodule": row(0, 0, 1, 0), "scar": row(9, 9, 9, 9)}
    words = "Critical findings, found/true +invented: all 4/11 +2, nodule 0/1 +0, effusion 4/10 +2."
    assert _critical({"per_class": rows}) == words


def test_reports_that_fit_other_studies_better_are_told_as_that():
    system = {"findings": {"micro_f1": [0.2, 0.1, 0.3]}, "reports": {"distinct": [9, 9, 9]}}
    line = _images({"micro_f1": [-0.2, -0.3, -0.1]}, system)
    assert line.startswith(
        "Its reports fit other studies better than their own: findings F1, 0.200, rises by 0.200"
    )

"""Verdicts at their borders, and the sentences made of them."""

import pytest

from llamaxr.metrics.verdicts import _sides, told, verdict

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

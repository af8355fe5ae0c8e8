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


@pytest.mark.parametrize(
    ("named", "expected"), [(5, "cannot be told from"), (6, "better than")]
)  # a coin has all of five right or all wrong in one of 16 tries
def test_five_sides_that_are_all_right_prove_nothing(named, expected):
    words = _sides({"findings": {"sides_right": [1.0, 1.0, 1.0], "sides_named": [named]}})
    assert words == f"Sides: {named} of {named} are right, 1.000 [1.000, 1.000], {expected} a coin's 0.5."

"""Comparisons with a prior study, and words that only look like them."""

import pytest

from llamaxr.metrics.comparisons import compares


@pytest.mark.parametrize(
    "report",
    ["The heart is unchanged.", "Stable heart.", "No change in effusion.", "Edema improved since then.",
     "Compared to the prior exam, the lungs are clear.", "Nodule is again\nseen.", "Interval removal.",
     "The effusion has resolved.", "Previously described mass.", "No new infiltrate.", "Worsening edema."],
)  # fmt: skip
def test_a_comparison_is_found(report):
    assert compares(report.replace("\n", " "))


@pytest.mark.parametrize(
    "report",
    ["", "The heart is enlarged.", "No prior studies available for comparison.", "Prior granulomatous scar.",
     "Increased density.", "Old rib fractures.", "An unstable position.", "Comparison: None."],
)  # fmt: skip
def test_what_is_no_comparison_is_not(report):
    assert not compares(report)

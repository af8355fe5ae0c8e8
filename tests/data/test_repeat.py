"""Repeat factor sampling: its closed form, and that nothing is lost."""

import math
from collections import Counter

import pytest

from llamaxr.data.repeat import findings_of, repeat_rare
from llamaxr.data.study import Study

REPORTS = ["The lungs are clear."] * 60 + ["There is a left pleural effusion."] * 36
REPORTS += ["There is a right pneumothorax and a pleural effusion."] * 4
PAIRS = [(i, Study(str(i), None, None, report, "train")) for i, report in enumerate(REPORTS)]


def copies(share: float, seed: int) -> list[int]:
    of = Counter(i for i, _ in repeat_rare(PAIRS, share, seed))
    return [of[i] for i in range(len(PAIRS))]


def test_a_study_is_drawn_as_often_as_its_rarest_finding_says():
    # effusion: 40 of 100 studies; pneumothorax: 4 of them
    mean = [sum(column) / 400 for column in zip(*(copies(0.5, seed) for seed in range(400)), strict=True)]
    expected = [1.0] * 60 + [math.sqrt(0.5 / 0.4)] * 36 + [math.sqrt(0.5 / 0.04)] * 4
    assert mean == pytest.approx(expected, abs=0.1)


def test_every_copy_is_the_factor_rounded_up_or_down():
    for seed in range(20):
        of = copies(0.5, seed)
        assert {*of[:60]} == {1} and {*of[60:96]} <= {1, 2} and {*of[96:]} <= {3, 4}


def test_the_same_seed_draws_the_same_and_another_one_others():
    assert repeat_rare(PAIRS, 0.5, 1) == repeat_rare(PAIRS, 0.5, 1) != repeat_rare(PAIRS, 0.5, 2)


def test_a_share_of_zero_and_common_findings_repeat_nothing():
    assert repeat_rare(PAIRS, 0.0, 0) == PAIRS
    assert repeat_rare(PAIRS, 0.04, 0) == PAIRS  # a factor of exactly 1


def test_known_findings_go_before_what_the_report_says():
    drawn = Study("0", None, None, REPORTS[70], "train", findings=frozenset({"nodule"}))
    assert findings_of(drawn) == {"nodule"} and findings_of(PAIRS[70][1]) == {"effusion"}

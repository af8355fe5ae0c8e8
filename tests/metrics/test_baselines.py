"""The floors: the best constant report, and another patient's images."""

from collections import Counter

import pytest

from llamaxr.metrics.baselines import constant_report, derangement
from llamaxr.metrics.overlap import rouge_l


def test_no_study_keeps_its_place():
    for n in (2, 3, 10, 101):
        for seed in range(20):
            order = derangement(n, seed)
            assert sorted(order) == list(range(n)) and all(i != j for i, j in enumerate(order))


def test_a_swap_depends_on_its_seed_alone():
    assert derangement(50, 3) == derangement(50, 3) != derangement(50, 4)


def test_all_swaps_of_four_studies_are_drawn_about_equally_often():
    counts = Counter(tuple(derangement(4, seed)) for seed in range(900))
    assert len(counts) == 9 and min(counts.values()) > 60  # 100 each are expected, with a deviation of 10


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_studies_cannot_be_swapped(n):
    with pytest.raises(ValueError):
        derangement(n, 0)


def test_the_constant_report_is_the_candidate_that_scores_best():
    train = ["no findings at all"] * 3 + ["heart normal lungs clear", "there is a nodule"]
    assert constant_report(train, ["heart normal", "lungs clear", "heart normal lungs clear"]) == train[3]


def test_the_constant_report_comes_from_training_whatever_the_references():
    assert constant_report(["a b", "c d"], []) in ("a b", "c d")


def test_with_every_training_report_a_candidate_none_scores_higher():
    train = [f"{a} {b} {c}" for a in "abcd" for b in "bcde" for c in "cdef"]
    references = ["a b c d", "b d e", "c e f a", "d c b"]
    scores = {text: rouge_l(references, [text] * len(references)) for text in train}
    assert scores[constant_report(train, references, n_candidates=2 * len(train))] == max(scores.values())


def test_of_equal_candidates_the_more_frequent_is_taken():
    assert constant_report(["lungs clear"] + ["heart normal"] * 2, ["nodule"]) == "heart normal"


def test_the_constant_report_depends_on_its_seed_alone():
    train = [f"word{i} seen" for i in range(1000)]
    again, found = [[constant_report(train, train, 20, seed) for seed in range(3)] for _ in range(2)]
    assert again == found


def test_there_is_no_constant_report_without_training_reports():
    with pytest.raises(AssertionError):
        constant_report([], ["a b"])

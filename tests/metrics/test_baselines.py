"""The floors: the constant report, random and nearest training reports, and the images of another patient."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from llamaxr.metrics.baselines import (
    constant_report,
    derangement,
    frequent_findings,
    nearest_reports,
    random_reports,
    template_reports,
)
from llamaxr.metrics.overlap import score


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


def value(report, references):
    return score(references, [report] * len(references))["rouge_l"]


def test_the_constant_report_is_the_candidate_that_scores_best():
    train = ["no findings at all"] * 3 + ["heart normal lungs clear", "there is a nodule"]
    references = ["heart normal", "lungs clear", "heart normal lungs clear"]
    assert constant_report(train, references, n_changes=0) == train[3]  # best on val, not the most frequent


def test_the_constant_report_comes_from_training_whatever_the_references():
    assert constant_report(["a b", "c d"], [], n_changes=0) in ("a b", "c d")
    assert constant_report(["a b", "c d"], ["e f"], n_changes=0) in ("a b", "c d")
    assert constant_report([" ", "."], []) in (" ", ".")  # without a word there is nothing to compare


def test_with_every_training_report_a_candidate_none_scores_higher():
    train = [f"{a} {b} {c}" for a in "abcd" for b in "bcde" for c in "cdef"]
    references = ["a b c d", "b d e", "c e f a", "d c b"]
    best = max(value(text, references) for text in train)
    every = {"n_candidates": 2 * len(train), "n_starts": len(train)}
    unchanged = constant_report(train, references, **every, n_changes=0)
    assert value(unchanged, references) == pytest.approx(best)
    changed = constant_report(references, references, n_changes=1000)
    assert value(changed, references) >= max(value(text, references) for text in references)


def test_sentences_of_several_reports_are_combined_and_superfluous_ones_removed():
    train = ["Heart normal. Old fracture.", "Lungs clear. Spine bent.", "No effusion. Port seen."]
    reference = "Heart normal. Lungs clear. No effusion."
    assert constant_report(train, [reference] * 3, n_changes=1000) == reference


def test_annealing_and_several_starts_find_what_a_greedy_search_does_not():
    rng = np.random.default_rng(0)
    sentence = lambda: f"word{rng.integers(6)} word{rng.integers(6)}."
    train = [" ".join(sentence() for _ in range(4)) for _ in range(40)]

    def mean_value(**search):
        found = [constant_report(train, train, n_changes=1500, seed=seed, **search) for seed in range(4)]
        return np.mean([value(report, train) for report in found])

    greedy, annealed = (mean_value(n_starts=1, temperature=t) for t in (0, 0.004))
    assert annealed > greedy + 0.003
    assert mean_value(n_starts=3) >= annealed


def test_of_equal_candidates_the_more_frequent_is_taken():
    assert constant_report(["lungs clear"] + ["heart normal"] * 2, ["nodule"], n_changes=10) == "heart normal"


def test_the_constant_report_depends_on_its_seed_alone():
    train = [f"word{i} seen" for i in range(100)]
    search = lambda seed: constant_report(train, train, n_starts=2, n_changes=150, n_candidates=20, seed=seed)
    assert [search(seed) for seed in range(3)] == [search(seed) for seed in range(3)]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_frequent_findings_are_the_set_with_the_best_f1_of_all_sets(rate):
    drawn = np.random.default_rng(0).random((30, 4)) < rate * np.array([1, 0.8, 0.6, 0.2])
    train = [{name for name, has in zip("abcd", row, strict=True) if has} for row in drawn]

    def f1(told):
        right = sum(len(told & found) for found in train)
        return 2 * right / (30 * len(told) + sum(map(len, train)))

    sets = [set(names) for n in range(1, 5) for names in combinations("abcd", n)]
    assert f1({*frequent_findings(train)}) == max(map(f1, sets))
    assert frequent_findings([]) == frequent_findings([set()]) == []


def test_there_is_no_constant_report_without_training_reports():
    with pytest.raises(AssertionError):
        constant_report([], ["a b"])


def test_random_reports_are_drawn_from_training_by_their_seed():
    train = [f"report {i}" for i in range(50)]
    drawn = random_reports(train, 200, seed=1)
    assert len(drawn) == 200 and set(drawn) <= set(train) and len(set(drawn)) > 40
    assert drawn == random_reports(train, 200, seed=1) != random_reports(train, 200, seed=2)
    assert random_reports(train, 0, seed=1) == []
    with pytest.raises(AssertionError):
        random_reports([], 1, seed=0)


def test_the_nearest_report_is_that_of_the_image_with_the_largest_cosine_of_standardised_features():
    rng = np.random.default_rng(0)
    train, queries = rng.normal(size=(40, 300)), rng.normal(size=(13, 300))
    reports = [str(i) for i in range(40)]
    a, b = ((rows - train.mean(0)) / train.std(0) for rows in (train, queries))
    cosine = [[q @ t / np.linalg.norm(q) / np.linalg.norm(t) for t in a] for q in b]
    nearest = [reports[np.argmax(row)] for row in cosine]
    for batch in (1, 5, 100):
        assert nearest_reports(train, reports, queries, batch) == nearest
    # Neither the unit of a feature counts nor what all studies share.
    unit, shared = rng.uniform(0.1, 10, 300), rng.normal(size=300, scale=5)
    assert nearest_reports(train * unit + shared, reports, queries * unit + shared) == nearest
    assert nearest_reports(train, reports, train) == reports


def test_a_view_that_a_study_lacks_makes_it_neither_near_nor_far():
    rng = np.random.default_rng(0)
    train, queries = rng.normal(size=(40, 8)), rng.normal(size=(13, 8))
    reports = [str(i) for i in range(40)]
    one_view = np.c_[queries, np.full((13, 8), np.nan)]
    assert nearest_reports(np.c_[train, np.full((40, 8), np.nan)], reports, one_view) == nearest_reports(
        train, reports, queries
    )
    # Nor is study 7, which lacks it too, nearer for that; far from 0, so that a lack taken for 0 shows.
    frontal, lateral = rng.normal(size=(40, 24)), rng.normal(100, size=(40, 4))
    lateral[7] = np.nan
    one_view = np.c_[frontal, np.full((40, 4), np.nan)]
    assert nearest_reports(np.c_[frontal, lateral], reports, one_view) == reports


def test_a_feature_that_is_the_same_in_all_training_studies_but_for_noise_counts_nothing():
    train = np.array([[1.0, 0.0], [-1.0, 1e-7]])
    assert nearest_reports(train, list("ab"), np.array([[0.5, 100.0], [-0.5, -100.0]])) == ["a", "b"]


def test_of_equally_near_images_the_first_wins():
    train = np.array([[-1.0, -1.0], [1.0, 1.0], [2.0, 2.0], [-2.0, -2.0]])
    assert nearest_reports(train, list("abcd"), np.array([[1, 1], [5, 5], [0, 0], [-3, -3]])) == list("bbaa")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000))  # so long that equal cosines differ by rounding
    train = np.array([-x, 3 * x, x, 5 * x, -8 * x, y, -y])
    queries = np.outer(rng.uniform(0.1, 10, 100), x)
    assert nearest_reports(train, list("abcdefg"), queries) == ["b"] * 100
    assert nearest_reports(train, list("abcdefg"), -queries) == ["a"] * 100


def test_each_training_image_needs_its_report():
    with pytest.raises(AssertionError):
        nearest_reports(np.ones((2, 3)), ["a"], np.ones((1, 3)))


def test_a_template_tells_an_outline_in_training_sentences_and_drops_what_does_not_fit():
    normal = "The heart is normal in size. No effusion. The lungs are clear."
    large = "The heart is enlarged. No effusion. The lungs are clear."
    fluid = "The heart is normal in size. There is a left effusion. The lungs are clear."
    left, none = frozenset({"left"}), frozenset()
    train = [normal] * 5 + [large] * 3 + [fluid] * 2 + ["Cardiomegaly and nodule. The lungs are clear."]
    told = template_reports(
        [{}, {"cardiomegaly": none}, {"effusion": left}, {"cardiomegaly": none, "effusion": left},
         {"nodule": none, "fracture": left, "scar": left | {"right"}}],
        train, normal,
    )  # fmt: skip
    assert told[:3] == [
        normal,
        large,
        "There is a left effusion. The heart is normal in size. The lungs are clear.",
    ]
    assert told[3] == "The heart is enlarged. There is a left effusion. The lungs are clear."
    # No training sentence tells these.
    assert told[4].startswith("There is nodule. There is left fracture. There is bilateral scar. ")
    assert template_reports([], [], "") == []

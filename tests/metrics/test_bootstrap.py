"""Bootstrap intervals against closed forms and against a bootstrap in a loop."""

import time

import numpy as np
import pytest

import llamaxr.metrics.bootstrap as module
from llamaxr.metrics.bootstrap import bootstrap, interval, sample


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    x = np.random.default_rng(1).normal(3, 2, size=(2000, 1))
    value, low, high = bootstrap(x, lambda sums: sums / len(x), n_resamples=4000)[0]
    error = x.std() / np.sqrt(len(x))
    assert value == pytest.approx(x.mean())
    # a percentile of 4000 resamples is itself uncertain by about 4% of the standard error
    assert (low - value) / error == pytest.approx(-1.96, abs=0.15)
    assert (high - value) / error == pytest.approx(1.96, abs=0.15)


def test_it_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(2)
    intervals = [bootstrap(rng.random((100, 1)) < 0.3, lambda s: s / 100, 300)[0] for _ in range(300)]
    assert 0.90 <= np.mean([low <= 0.3 <= high for _, low, high in intervals]) <= 0.98


def test_a_ratio_of_sums_equals_that_of_studies_drawn_one_by_one():
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 4, size=(150, 3))

    def f1(sums):
        return 2 * sums[:, :1] / (2 * sums[:, :1] + sums[:, 1:2] + sums[:, 2:])

    drawn = [counts[rng.integers(150, size=150)].sum(0) for _ in range(4000)]
    by_hand = np.quantile([2 * tp / (2 * tp + fn + fp) for tp, fn, fp in drawn], [0.025, 0.975])
    assert bootstrap(counts, f1, n_resamples=4000)[0, 1:] == pytest.approx(by_hand, abs=0.005)


def test_two_equal_systems_differ_by_nothing_in_every_resample():
    x = np.random.default_rng(4).random((50, 1))
    assert (bootstrap(np.hstack([x, x]), lambda sums: sums[:, :1] - sums[:, 1:]) == 0).all()


def test_a_difference_of_samples_is_resampled_in_pairs():
    x = np.random.default_rng(6).random((40, 2))
    a, b = (sample(x[:, i : i + 1], lambda sums: sums / 40) for i in (0, 1))
    expected = bootstrap(x[:, :1] - x[:, 1:], lambda sums: sums / 40)
    assert interval(a - b) == pytest.approx(expected, abs=1e-12)


def share(sums):
    nan = np.full((len(sums), 1), np.nan)
    return np.divide(sums[:, :1], sums[:, 1:], out=nan, where=sums[:, 1:] > 0)


def test_an_undefined_score_has_no_interval_and_an_undefined_resample_counts_zero():
    assert np.isnan(bootstrap(np.zeros((9, 2)), share)).all()
    one_of_40 = np.eye(40)[:, :1].repeat(2, 1)  # right, in the only study that counts
    assert bootstrap(one_of_40, share).tolist() == [[1, 0, 1]]


def test_a_difference_that_one_of_the_two_leaves_undefined_counts_for_neither():
    all_right = np.ones((40, 2))
    one_wrong = np.hstack([np.zeros((40, 1)), np.eye(40)[:, :1]])  # the only one that counts
    (value, low, high), = interval(sample(all_right, share) - sample(one_wrong, share))  # fmt: skip
    assert (value, low, high) == (1, 0, 1)  # and not [1, 1]: "better", by one study


def test_equal_seeds_give_equal_intervals_in_blocks_of_any_size(monkeypatch):
    x = np.random.default_rng(5).integers(0, 9, size=(30, 2))
    expected = bootstrap(x, lambda sums: sums / 30)
    monkeypatch.setattr(module, "BLOCK", 70)
    assert (bootstrap(x, lambda sums: sums / 30) == expected).all()
    assert (bootstrap(x, lambda sums: sums / 30, seed=1) != expected).any()


def test_bytes_are_summed_as_floats_in_blocks_of_studies(monkeypatch):
    x = np.random.default_rng(6).integers(0, 256, size=(50, 3), dtype=np.uint8)
    expected = bootstrap(x.astype(float), lambda sums: sums / 50)
    monkeypatch.setattr(module, "STUDIES", 7)
    assert (bootstrap(x, lambda sums: sums / 50) == expected).all()


def test_a_resample_draws_n_studies_each_equally_often():
    drawn = np.concatenate(list(module.resamples(40, 5000)))
    assert drawn.shape == (5000, 40) and (drawn.sum(1) == 40).all()
    # how often one study is drawn is binomial (40, 1/40); five standard errors of its mean and variance
    assert drawn.mean(0) == pytest.approx(1, abs=5 * (1 / 5000) ** 0.5)
    assert drawn.var(0) == pytest.approx(1 - 1 / 40, abs=5 * (3 / 5000) ** 0.5)


def test_without_resamples_low_and_high_are_the_value():
    assert bootstrap([[1], [4]], lambda sums: sums / 2, n_resamples=0).tolist() == [[2.5, 2.5, 2.5]]


def test_with_fewer_than_two_studies_the_interval_has_no_width():
    assert bootstrap(np.zeros((0, 2)), lambda sums: sums).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert bootstrap([[2, 5]], lambda sums: sums).tolist() == [[2, 2, 2], [5, 5, 5]]


def test_a_test_split_takes_well_under_a_second():
    counts = np.ones((590, 80))
    began = time.perf_counter()
    bootstrap(counts, lambda sums: sums)
    assert time.perf_counter() - began < 1

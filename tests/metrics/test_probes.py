"""The probes' arithmetic against refits, pairs counted one by one, and numbers to be checked by hand."""

import math

import numpy as np
import pytest
import torch

from llamaxr.metrics import probes
from llamaxr.metrics.probes import (
    auroc,
    auroc_interval,
    best_threshold,
    denials,
    linear_probe,
    names_a_finding,
    perplexity,
)


def ridge(x, y, queries, penalty):
    """The textbook solution; x is standardised, and the mean of y has no penalty."""
    x, queries = x - x.mean(0), queries - x.mean(0)
    w = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return queries @ w + y.mean()


def test_the_probe_is_ridge_regression_with_the_penalty_of_the_smallest_leave_one_out_error():
    rng = np.random.default_rng(0)
    x, queries = rng.normal(size=(40, 6)), rng.normal(size=(9, 6))
    present = (x @ rng.normal(size=(6, 2)) + rng.normal(size=(40, 2)) * [0.5, 6] > 0).astype(float)
    mean, std = x.mean(0), x.std(0)
    scaled, scaled_queries = (x - mean) / std, (queries - mean) / std
    penalties = probes.PENALTIES * np.linalg.eigvalsh(scaled.T @ scaled).mean()
    (got, got_left_out), chosen = linear_probe(x, present, queries), []
    for j in range(2):
        y, errors, all_left_out = present[:, j], [], []
        for penalty in penalties:
            rest = [np.arange(40) != i for i in range(40)]
            left_out = [ridge(scaled[r], y[r], scaled[~r], penalty)[0] for r in rest]
            errors.append(((y - left_out) ** 2).mean())
            all_left_out.append(left_out)
        chosen.append(penalties[np.argmin(errors)])
        assert got[:, j] == pytest.approx(ridge(scaled, y, scaled_queries, chosen[j]))
        assert got_left_out[:, j] == pytest.approx(all_left_out[np.argmin(errors)])
    assert chosen[0] < chosen[1]  # the noisy class needs the larger penalty: each class has its own


def test_the_probe_finds_a_signal_and_nothing_in_noise():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 50))
    present = np.stack([x[:, 3] + x[:, 7] > 1, rng.random(400) < 0.3], axis=1).astype(float)
    scores, _ = linear_probe(x[:200], present[:200], x[200:])
    assert auroc(scores[:, 0], present[200:, 0]) > 0.9
    low, high = auroc_interval(scores[:, 1], present[200:, 1])[1:]
    assert low < 0.5 < high


def test_a_constant_feature_and_more_features_than_studies_are_no_trouble():
    rng = np.random.default_rng(2)
    x = np.hstack([np.zeros((30, 1)), rng.normal(size=(30, 100))])
    scores, _ = linear_probe(x, (x[:, 1:2] > 0).astype(float), x)
    assert np.isfinite(scores).all() and auroc(scores[:, 0], x[:, 1] > 0) > 0.9


def test_the_best_threshold_is_that_of_the_highest_pooled_f1():
    rng = np.random.default_rng(3)
    present = (rng.random((60, 4)) < 0.2).astype(float)
    scores = present + rng.normal(size=present.shape)

    def f1(threshold):
        told = scores >= threshold
        return 2 * (told * present).sum() / (told.sum() + present.sum())

    assert f1(best_threshold(scores, present)) == max(f1(t) for t in scores.ravel())
    scores = scores.round()  # ties, which no threshold can part
    assert f1(best_threshold(scores, present)) == max(f1(t) for t in scores.ravel())


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 6, (60,), generator=generator).float()  # many ties
    present = torch.randint(0, 2, (60,), generator=generator).float()
    pairs = [(p > q) + (p == q) / 2 for p in predicted[present == 1] for q in predicted[present == 0]]
    assert auroc(predicted, present) == pytest.approx(float(sum(pairs) / len(pairs)))
    assert auroc(present, present) == 1 and auroc(-present, present) == 0
    assert math.isnan(auroc(predicted, torch.ones(60))) and math.isnan(auroc([], []))


def test_aurocs_interval_is_that_of_studies_drawn_one_by_one():
    rng = np.random.default_rng(3)
    present = rng.random(80) < 0.4
    predicted = np.round(rng.normal(size=80) + present, 1)
    drawn = [rng.integers(80, size=80) for _ in range(4000)]
    by_hand = np.quantile([auroc(predicted[rows], present[rows]) for rows in drawn], [0.025, 0.975])
    value, *interval = auroc_interval(predicted, present)
    assert value == auroc(predicted, present)
    assert interval == pytest.approx(by_hand, abs=0.01)  # 1000 resamples against 4000 others


def test_resamples_without_the_one_study_that_has_a_finding_are_left_out():
    value, low, high = auroc_interval(np.arange(12), np.arange(12) == 11)
    assert value == low == high == 1


def test_tokens_that_touch_a_mention_name_a_finding_asserted_or_not():
    pieces = "No| large| eff|usion|.| Café| is| clear|.| Possible| nodule|.".split("|")
    named = names_a_finding([p.encode() for p in pieces])
    assert [p for p, n in zip(pieces, named, strict=True) if n] == [" eff", "usion", " nodule"]
    e = "é effusion".encode()  # a letter split into two tokens
    assert names_a_finding([e[:1], e[1:2], e[2:]]).tolist() == [False, False, True]
    assert names_a_finding([]).tolist() == []


def test_perplexity_is_over_all_tokens_and_not_a_mean_over_reports():
    losses = [np.array([1.0, 2.0, 3.0]), np.array([5.0])]
    named = [np.array([False, True, True]), np.array([False])]
    got = perplexity(losses, named)
    expected = {"all": 11 / 4, "findings": 5 / 2, "rest": 6 / 2}
    assert {name: math.log(value) for name, (value, _, _) in got.items()} == pytest.approx(expected)
    assert all(low <= value <= high for value, low, high in got.values())
    assert got["all"][1] == pytest.approx(math.exp(2)) and got["all"][2] == pytest.approx(math.exp(5))


def test_a_report_is_denied_where_all_its_scores_are_below_the_threshold():
    predictions = [{"effusion"}, {"effusion", "pneumonia"}, {"pneumonia"}, set()]
    scores = np.array([[0.2, 0.9, 0.9], [0.6, 0.1, 0.2], [0.1, 0.1, 0.7], [0.1, 0.1, 0.1]])
    got = denials(predictions, scores, {"effusion": [0], "pneumonia": [1, 2], "edema": [0]}, below=0.5)
    counts = {name: (row["denied"], row["asserted"]) for name, row in got.items()}
    assert counts == {"all": (2, 4), "effusion": (1, 2), "pneumonia": (1, 2), "edema": (0, 0)}
    assert [row["share"][0] for row in got.values()] == [0.5, 0.5, 0.5, 0]
    assert got["all"]["share"][1] <= 0.5 <= got["all"]["share"][2]
    assert denials(predictions, scores, {"effusion": [0]}, below=0.7)["effusion"]["denied"] == 2

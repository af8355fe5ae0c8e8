"""Scores of findings against counts by hand and loops over studies."""

import json

import numpy as np
import pytest

from llamaxr.metrics.agreement import GROUPS, RATES, outcomes, pooled, score, tally
from llamaxr.metrics.findings import CLASSES, FINDINGS, NO_FINDING, locate

TRUTH = [frozenset({"effusion", "nodule"}), frozenset(), frozenset({"device"})]
PREDICTED = [frozenset({"effusion"}), frozenset({"nodule"}), frozenset({"device", "effusion"})]


def test_scores_equal_those_counted_by_hand():
    got = score(TRUTH, PREDICTED)
    shown = ("right", "missed", "invented", "f1")
    counts = {name: tuple(line[k] for k in shown) for name, line in got["per_class"].items()}
    assert counts["effusion"] == (1, 0, 1, 2 / 3)
    assert counts["nodule"] == (0, 1, 1, 0.0)
    assert counts["device"] == (1, 0, 0, 1.0)
    assert counts[NO_FINDING] == (0, 1, 0, 0.0)
    assert got["micro_precision"] == 2 / 4 and got["micro_recall"] == 2 / 3 and got["micro_f1"] == 4 / 7
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)  # no report has the other classes
    assert got["example_precision"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert got["example_recall"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert got["example_f1"] == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)


def test_means_and_their_resamples_are_those_of_studies_drawn_one_by_one():
    rng = np.random.default_rng(0)
    names = np.array(FINDINGS[:6])
    shares = [0.3, 0.3, 0.3, 0.3, 0.05, 0.0], 0.3  # true: one class is rare, one is only predicted
    truth, predicted = ([frozenset(names[row]) for row in rng.random((80, 6)) < share] for share in shares)

    def macro_f1(drawn):
        f1 = []
        for name in names:
            tp = sum(name in truth[i] and name in predicted[i] for i in drawn)
            sizes = sum((name in truth[i]) + (name in predicted[i]) for i in drawn)
            f1 += [2 * tp / sizes] if any(name in truth[i] for i in drawn) else []
        return np.mean(f1)

    got = score(truth, predicted, names.tolist())
    assert got["macro_f1"] == pytest.approx(macro_f1(range(80)))
    pairs = [(t, s) for t, s in zip(truth, predicted, strict=True) if t or s]
    assert got["example_f1"] == pytest.approx(np.mean([2 * len(t & s) / (len(t) + len(s)) for t, s in pairs]))
    drawn = [macro_f1(rng.integers(80, size=80)) for _ in range(1000)]
    assert got["intervals"]["macro_f1"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_every_number_has_an_interval_around_it_and_is_json():
    got = json.loads(json.dumps(score(TRUTH * 20, PREDICTED * 20)))
    for line in (got, *got["per_class"].values()):
        for head, (low, high) in line["intervals"].items():
            assert low is line[head] is None or low <= line[head] <= high
        assert set(line) - {"intervals", "per_class"} == set(line["intervals"])
    right = got["per_class"]["effusion"]["intervals"]["right"]
    assert right == pytest.approx([20 - 1.96 * (60 * 2 / 9) ** 0.5, 20 + 1.96 * (60 * 2 / 9) ** 0.5], abs=1)
    assert got["intervals"]["micro_f1"][0] < got["intervals"]["micro_f1"][1]


@pytest.mark.parametrize(
    ("truth", "predicted", "precision", "recall", "f1"),
    [("nodule", "", None, 0, 0), ("", "nodule", 0, None, None), ("", "", None, None, None),
     ("nodule", "effusion", 0, 0, 0), ("nodule", "nodule", 1, 1, 1)],
)  # fmt: skip
def test_what_is_undefined_is_none_and_never_zero(truth, predicted, precision, recall, f1):
    got = score([frozenset(truth.split()), frozenset()], [frozenset(predicted.split()), frozenset()])
    for mean in ("micro", "macro", "example"):
        first = precision if truth or mean != "macro" else None  # a mean over no true class
        assert [got[f"{mean}_{rate}"] for rate in RATES] == [first, recall, f1]
    assert got["per_class"].keys() == set(CLASSES) and got["sides_right"] is None
    assert got["per_class"][NO_FINDING]["right"] == 1 + (not truth and not predicted)  # not in the means
    assert score([], [])["micro_f1"] is None


def test_groups_of_classes_have_means_of_their_own():
    truth, predicted = [frozenset({"effusion", "scar"}), frozenset()], [frozenset({"effusion"}), {"edema"}]
    got = score(truth, predicted)
    assert got["critical_micro_precision"] == 1 / 2 and got["critical_micro_recall"] == 1
    # effusion is 1; edema, which no true report has, is in micro alone
    assert got["critical_micro_f1"] == 2 / 3 and got["critical_macro_f1"] == 1
    assert got["chexpert_5_macro_f1"] == 1 and got["micro_f1"] == 2 / 4
    assert got["chexpert_14_macro_f1"] == 1 / 2  # and "no finding" 0
    names = CLASSES[1:6]
    assert score(truth, predicted, names)["chexpert_5_micro_recall"] == 1  # of the classes that are scored


def test_the_share_of_sides_is_of_those_that_both_name():
    side = lambda *of: {"effusion": frozenset(of)}
    pairs = [(side("left"), side("left")), (side("left"), side("right")), (side("left"), side()),
             (side("left", "right"), side("left", "right")), ({}, side("left"))]  # fmt: skip
    got = score(*zip(*pairs, strict=True))
    assert got["sides_named"] == 3 and got["sides_right"] == pytest.approx(2 / 3)
    assert got["per_class"]["effusion"]["right"] == 3


def test_no_finding_is_in_the_means_if_it_is_among_the_classes():
    got = score([frozenset()], [frozenset()], CLASSES)
    assert got["micro_f1"] == got["macro_f1"] == got["example_f1"] == 1.0
    other = score([frozenset({"other"})], [frozenset()], CLASSES)
    assert other["per_class"][NO_FINDING]["invented"] == 1


def test_a_tally_has_one_byte_per_class_and_study():
    codes = tally(TRUTH, PREDICTED, ["effusion", "nodule"])
    assert codes.dtype == np.uint8 and codes.tolist() == [[1, 3, 0], [0, 4, 3], [4, 0, 0]]  # and "no finding"
    assert pooled(codes, ["effusion", "nodule"]).tolist() == [[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="1 references for 0"):
        score([frozenset()], [])


def test_each_finding_of_a_study_has_its_outcome():
    truth = locate("Left pneumothorax. Right pleural effusion. Left nodule. Cardiomegaly. Scoliosis.")
    predicted = locate("Right pneumothorax. Right effusion. Nodule. Mild cardiomegaly. Left atelectasis.")
    expected = {
        "pneumothorax": "wrong side", "effusion": "right", "cardiomegaly": "right",
        "nodule": "right",  # a side left out is not a wrong one
        "scoliosis": "missed", "atelectasis": "invented",
    }  # fmt: skip
    assert outcomes(truth, predicted) == expected
    line = score([truth], [predicted])["per_class"]["pneumothorax"]
    assert [line[what] for what in ("right", "wrong_side", "missed", "invented", "recall")] == [0, 1, 0, 0, 1]


def test_the_groups_are_chexperts_by_our_names():
    five = {"atelectasis", "cardiomegaly", "consolidation", "edema", "effusion"}
    more = {NO_FINDING, "enlarged cardiomediastinum", "lung opacity", "nodule", "pneumonia", "pneumothorax"}
    assert sorted(GROUPS["chexpert_5"]) == sorted(five)
    assert sorted(GROUPS["chexpert_14"]) == sorted(five | more | {"pleural other", "fracture", "device"})
    critical = {"pneumothorax", "consolidation", "edema", "nodule", "effusion", "fracture"}
    assert sorted(GROUPS["critical"]) == sorted(critical)


def test_a_finding_on_its_true_side_is_right_in_the_mean_over_studies():
    side = lambda *of: {"effusion": frozenset(of)}
    got = score([side("left"), side("left"), {}], [side("left"), side("right"), {"nodule": frozenset()}])
    assert [got[f"example_{rate}"] for rate in RATES] == pytest.approx([2 / 3] * 3)

"""Findings read out of sentences as radiologists write them, and their counting by hand."""

import pytest

from llamaxr.metrics.findings import FINDINGS, find, locate, right_sides, score

SENTENCES = {
    "The heart is enlarged.": "cardiomegaly",
    "Stable cardiomegaly. No pleural effusion.": "cardiomegaly",
    "Heart size normal. Lungs are clear.": "",
    "Heart size is normal and the lungs are clear. No pneumothorax or pleural effusion.": "",
    "The heart is not enlarged.": "",
    "No focal consolidation, pneumothorax, or pleural effusion identified.": "",
    "There is no focal airspace disease, effusion, nodule or mass.": "",
    "Negative for pneumothorax, pneumonia or large pleural effusion.": "",
    "The lungs are free of infiltrates.": "",
    "The right pneumothorax is no longer seen.": "",
    "The effusion has resolved.": "",
    "Interval removal of the right PICC.": "",
    "Small right pleural effusion, no pneumothorax.": "effusion",
    "No pneumothorax, but there is a small left effusion.": "effusion",
    "There is blunting of the left costophrenic angle.": "effusion",
    "No change in the left basilar atelectasis.": "atelectasis",
    "Pneumonia cannot be excluded.": "consolidation",
    "Patchy right lower lobe airspace opacities.": "consolidation",
    "A 1.2 cm nodule is seen in the left upper lobe.": "nodule",
    "Calcified nodule in the right lung base.": "granuloma",
    "Noncalcified nodule in the right lung base.": "nodule",
    "Pericardial effusion.": "",
    "The lungs are hyperexpanded with flattened diaphragms.": "hyperinflation",
    "Mild dextrocurvature of the spine.": "scoliosis",
    "Left-sided pacemaker with leads in the right ventricle.": "device",
    "Sternotomy wires are intact. Scoliosis. Bibasilar atelectasis.": "atelectasis device scoliosis",
    "": "",
}


@pytest.mark.parametrize("report", SENTENCES)
def test_a_sentence_asserts(report):
    assert find(report) == set(SENTENCES[report].split())


def test_scores_equal_those_counted_by_hand():
    truth = [frozenset({"effusion", "nodule"}), frozenset(), frozenset({"device"})]
    said = [frozenset({"effusion"}), frozenset({"nodule"}), frozenset({"device", "effusion"})]
    got = score(truth, said)
    assert got["per_class"]["effusion"] == {"tp": 1, "fn": 0, "fp": 1, "f1": 2 / 3}
    assert got["per_class"]["nodule"] == {"tp": 0, "fn": 1, "fp": 1, "f1": 0.0}
    assert got["per_class"]["device"] == {"tp": 1, "fn": 0, "fp": 0, "f1": 1.0}
    assert got["micro_precision"] == 2 / 4 and got["micro_recall"] == 2 / 3 and got["micro_f1"] == 4 / 7
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)  # the seven other classes were never met


def test_silence_earns_nothing():
    silent = score([frozenset({"nodule"})], [frozenset()])
    empty = score([], [])
    for got in (silent, empty):
        assert got["micro_precision"] == got["micro_recall"] == got["micro_f1"] == got["macro_f1"] == 0.0
        assert got["per_class"].keys() == set(FINDINGS)


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError):
        score([frozenset()], [])


def test_sides_are_read_from_the_clause_that_asserts_the_finding():
    report = "Left pneumothorax. No right effusion. Bilateral pleural effusions. The right lung is clear."
    assert locate(report) == {"pneumothorax": {"left"}, "effusion": {"left", "right"}}


def test_sides_are_counted_where_both_reports_assert_a_finding():
    references = ["Left pneumothorax. Right pleural effusion.", "Cardiomegaly.", "Right nodule."]
    generated = ["Right pneumothorax. Right pleural effusion.", "Cardiomegaly.", "Normal."]
    assert right_sides(references, generated) == (1, 2)

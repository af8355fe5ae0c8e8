"""The embedded base copies what a list says, and the places of findings are counted as they were drawn."""

import re

import numpy as np
import pytest

from llamaxr.data.phantom import list_findings, sample_findings, write_report
from llamaxr.runs.run import TINY_BASE
from llamaxr.tokenizer import load_tokenizer
from llamaxr.tools.make_assets import bags_of_list, check, count_right, list_and_answer, texts_of_step


def test_two_reports_of_the_same_findings_are_right_and_other_sides_and_zones_are_not():
    for i in range(100):
        rng = np.random.default_rng((7, i))
        findings = sample_findings(rng)
        texts = [(write_report(findings, rng), write_report(findings, rng))]
        assert count_right(texts).startswith("1 of 1 reports right")
    true = "There is a nodule in the right upper lobe. Left pneumothorax is present."
    told = "There is a nodule in the left upper lobe. There is a right pleural effusion."
    assert count_right([(true, told)]) == "0 of 1 reports right, sides 0 of 1, zones 1 of 1"


@pytest.mark.parametrize("lesson", ["outlines", "reports"])
def test_a_lesson_lists_what_its_outline_says(lesson):
    for i in range(10_000, 10_050):
        listed, answer = list_and_answer(i, lesson)
        names = {item.split(",")[0] for item in listed.split("; ")} - {"normal"}
        if answer.startswith("Findings: "):
            line = answer[: answer.index("\n")]
            assert all(name in line for name in names) and ("none" in line) == (not names)
        assert lesson == "reports" or answer.endswith(".\n")


def test_a_vector_holds_a_finding_with_its_place_and_nothing_of_another_finding():
    tokenizer = load_tokenizer(TINY_BASE)
    for i in range(20):
        listed = "effusion, bilateral; nodule, right upper lobe; cardiomegaly"
        bags = bags_of_list(listed, tokenizer, 832, np.random.default_rng(i))
        words = [{tokenizer.decode([j]).strip() for j in bag.nonzero()[0]} for bag in bags]
        for sides in ({"left"}, {"right"}):
            assert [w for w in words if {"effusion"} | sides <= w and len(w) == 3]
        assert {"nodule", "right", "upper"} in words
        assert not [w for w in words if "nodule" in w and w & {"left", "mid", "lower"}]
        assert all(len(w & {"effusion", "nodule", "cardiomegaly"}) <= 1 for w in words)


def test_only_answers_carry_loss_and_each_vector_has_its_slot():
    ids, labels, bags = texts_of_step(1, "vectors", 8)
    assert (ids == -1).sum() == len(bags) > 0
    assert not (labels[ids[:, 1:] == -1] >= 0).any()
    assert (labels[labels >= 0] == ids[:, 1:][labels >= 0]).all()
    assert len(texts_of_step(1, "reports", 8)[2]) == 0


def test_the_base_copies_findings_with_their_places_from_lists_that_it_never_saw(capsys):
    trained_on = {list_and_answer(i, "reports")[0] for i in range(10_000, 10_200)}
    held_out = [list_findings(sample_findings(np.random.default_rng((1002, i)))) for i in range(100)]
    assert any("; " in listed and listed not in trained_on for listed in held_out)
    check(n=100)
    right = re.match(r"base: (\d+) of 100 reports right, sides (\d+) of (\d+)", capsys.readouterr().out)
    assert int(right[1]) >= 98 and int(right[2]) == int(right[3])

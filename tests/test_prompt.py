import re

import pytest

from llamaxr.prompt import IGNORE, SLOT, prompt_text, study_prompt, with_report
from llamaxr.tokenizer import load_tokenizer

REPORT = "The heart is normal in size."


@pytest.fixture()
def tokenizer(base):
    return load_tokenizer(base)


def test_loss_is_on_the_report_and_its_eos_and_on_nothing_else(tokenizer):
    prompt = study_prompt(tokenizer, [0, 1], n_tokens=5)
    example = with_report(tokenizer, prompt, REPORT)
    carrying = [t for t in example.targets if t != IGNORE]
    assert carrying == [*tokenizer.encode(REPORT), tokenizer.eos_ids[0]]
    # each target is the id one place to the right of where it stands
    assert all(t == IGNORE or t == example.ids[i + 1] for i, t in enumerate(example.targets))
    assert example.targets[: len(prompt) - 1] == [IGNORE] * (len(prompt) - 1)
    assert len(example.ids) == len(example.targets)


def test_each_view_has_its_slots_after_its_name(tokenizer):
    ids = study_prompt(tokenizer, [0, 1], n_tokens=5)
    assert ids.count(SLOT) == 10
    first = ids.index(SLOT)
    assert tokenizer.decode(ids[:first]).endswith("frontal view:")
    assert tokenizer.decode([i for i in ids[first:] if i != SLOT]).startswith("\nlateral view:")
    assert study_prompt(tokenizer, [1], n_tokens=5).count(SLOT) == 5


def test_scores_are_36_numbers_and_those_of_a_single_view_stand_twice(tokenizer):
    names = tuple(f"p{i}" for i in range(18))
    row, other = [i / 100 for i in range(18)], [0.5] * 18
    text = tokenizer.decode(study_prompt(tokenizer, [0, 1], 0, [row, other], names))
    assert "frontal view: 0.000, 0.010, 0.020" in text and text.count("0.500") == 18
    text = tokenizer.decode(study_prompt(tokenizer, [0], 0, [other], names))
    assert text.count("0.500") == 36 and ", ".join(names) in text


def test_the_positions_with_loss_read_as_the_report(tokenizer):
    example = with_report(tokenizer, study_prompt(tokenizer, [0], n_tokens=5), REPORT)
    carrying = [t for t in example.targets if t != IGNORE]
    assert tokenizer.decode(carrying) == REPORT and carrying[-1] in tokenizer.eos_ids


@pytest.mark.parametrize("views", [[0, 1], [0], [1]])
def test_whatever_views_there_are_the_scores_are_36_numbers_of_three_decimals(tokenizer, views):
    scores = [[0.12345] * 18 for _ in views]
    text = tokenizer.decode(study_prompt(tokenizer, views, 0, scores, tuple("abcdefghijklmnopqr")))
    assert re.findall(r"\d\.\d+", text) == ["0.123"] * 36


def test_both_bridges_give_the_slots_and_then_the_numbers(tokenizer):
    ids = study_prompt(tokenizer, [1], 5, [[0.5] * 18], tuple("abcdefghijklmnopqr"))
    end = len(ids) - ids[::-1].index(SLOT)
    assert ids.count(SLOT) == 5 and tokenizer.decode(ids[end:]).count("0.500") == 36


def test_a_limit_that_the_report_just_meets_keeps_its_end(tokenizer):
    n = len(tokenizer.encode(REPORT)) + 1
    assert with_report(tokenizer, [3], REPORT, max_report_tokens=n).ids[-1] == tokenizer.eos_ids[0]
    assert tokenizer.eos_ids[0] not in with_report(tokenizer, [3], REPORT, max_report_tokens=n - 1).ids


def test_a_report_that_is_cut_does_not_end(tokenizer):
    cut = with_report(tokenizer, [3], REPORT, max_report_tokens=4)
    assert len(cut.ids) == 5 and tokenizer.eos_ids[0] not in cut.ids


def test_a_beginning_does_not_end(tokenizer):
    whole, part = (with_report(tokenizer, [3], REPORT, append_eos=ends) for ends in (True, False))
    assert part.ids == whole.ids[:-1] and tokenizer.eos_ids[0] not in part.ids


def test_the_prompt_is_alpacas():
    """The text of Taori et al. 2023, as published."""
    assert prompt_text("INPUT", "DO IT.") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDO IT.\n\n### Input:\nINPUT\n\n### Response:\n"
    )

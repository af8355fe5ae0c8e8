"""BLEU and ROUGE-L on examples small enough to be counted by hand."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from llamaxr.metrics.overlap import bleu, rouge_l, score, tokenize


def test_tokens_are_lower_case_runs_of_letters_and_digits():
    assert tokenize("The T-spine: 1.2 cm, OK.") == ["the", "t", "spine", "1", "2", "cm", "ok"]


def test_bleu_is_the_geometric_mean_of_the_shared_n_grams():
    got = bleu(["the heart is normal"], ["the heart is big"])
    assert got == pytest.approx([3 / 4, math.sqrt(3 / 4 * 2 / 3), (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3), 0.0])


def test_bleu_is_exactly_zero_where_no_n_gram_is_shared():
    assert bleu(["the heart is normal"], ["the heart is big"])[3] == 0.0
    assert bleu(["heart"], ["heart"]) == [1.0, 0.0, 0.0, 0.0]
    assert bleu(["a b c"], ["x y z"]) == [0.0] * 4


def test_bleu_counts_a_word_as_often_as_the_reference_has_it():
    assert bleu(["the heart the"], ["the the the"])[0] == pytest.approx(2 / 3)


def test_bleu_counts_an_empty_report_as_one_wrong_word():
    # one of two words is right, and one word stands for the reference's five
    assert bleu(["a b c d", "x"], ["", "x"])[0] == pytest.approx(1 / 2 * math.exp(1 - 5 / 1))


def test_bleu_punishes_a_report_that_is_too_short():
    assert bleu(["a b c d"], ["a b"])[0] == pytest.approx(math.exp(1 - 4 / 2))


def test_bleu_counts_over_the_corpus_and_not_by_report():
    assert bleu(["a b c", "d"], ["a b c", "x"])[0] == pytest.approx(3 / 4)


def test_rouge_l_is_the_longest_common_subsequence_as_an_f_measure():
    assert rouge_l(["the heart is normal"], ["the heart is big"]) == 2 * 3 / (4 + 4)
    assert rouge_l(["a b c d"], ["d c a x b"]) == 2 * 2 / (4 + 5)


def test_rouge_l_compares_stems():
    assert rouge_l(["the lungs are hyperinflated"], ["the lung are hyperinflate"]) == 1.0


def test_rouge_l_is_the_mean_over_reports():
    assert rouge_l(["a b", "c"], ["a b", "x"]) == 0.5


def test_identical_reports_score_one_and_silence_zero():
    text = "The lungs are clear bilaterally."
    assert set(score([text], [text]).values()) == {1.0}
    assert set(score([text], [""]).values()) == set(score([text], ["..."]).values()) == {0.0}
    assert rouge_l([], []) == 0.0


EMPTY = [([], []), ([""], [""]), (["a b"], [""]), ([""], ["a b"]), (["...", "é"], ["é", "..."])]


@pytest.mark.parametrize("references, generated", EMPTY)
def test_nothing_to_compare_scores_zero_without_a_word(references, generated, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(score(references, generated).values()) == {0.0}
        score(["the heart", "x"], ["the big heart", ""])  # NLTK would warn of missing n-grams
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("metric", [bleu, rouge_l, score])
def test_each_report_needs_its_reference(metric):
    with pytest.raises(AssertionError):
        metric(["a", "b"], ["a"])


def test_scores_do_not_depend_on_the_order_of_the_studies():
    references = ["the heart is normal", "no effusion is seen", "lungs are clear today"]
    generated = ["the heart is big", "no effusion seen", "the lungs are clear"]
    assert score(references, generated) == pytest.approx(score(references[::-1], generated[::-1]))


def test_importing_the_module_does_not_import_nltk():
    code = "import sys, llamaxr.metrics.overlap; sys.exit('nltk' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0

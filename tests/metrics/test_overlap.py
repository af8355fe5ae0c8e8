"""BLEU and ROUGE-L on examples small enough to be counted by hand."""

import math

import pytest

from llamaxr.metrics.overlap import bleu, rouge_l, score, words


def test_words_are_lower_case_runs_of_letters_and_digits():
    assert words("The T-spine: 1.2 cm, OK.") == ["the", "t", "spine", "1", "2", "cm", "ok"]


def test_bleu_is_the_geometric_mean_of_the_shared_n_grams():
    got = bleu(["the heart is normal"], ["the heart is big"])
    assert got == pytest.approx([3 / 4, math.sqrt(3 / 4 * 2 / 3), (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3), 0.0])


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

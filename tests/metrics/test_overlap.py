"""LLaMA-XR's text scores on examples small enough to count by hand."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from llamaxr.metrics.overlap import (
    ReferenceBatch,
    lcs,
    rouge_l,
    score,
    scores,
    statistics,
    stems,
    texts,
    tokenize,
    variety,
    word_positions,
)


def bleu(reference, prediction):
    return [score([reference], [prediction])[f"bleu_{n}"] for n in range(1, 5)]


def test_tokens_are_lower_case_runs_of_letters_and_digits():
    assert tokenize("The T-spine: 1.2 cm, OK.") == ["the", "t", "spine", "1", "2", "cm", "ok"]


def test_bleu_is_the_geometric_mean_of_the_shared_n_grams():
    got = bleu("the heart is normal", "the heart is big")
    assert got[:3] == pytest.approx([3 / 4, math.sqrt(3 / 4 * 2 / 3), (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3)])


def test_an_order_without_a_match_counts_a_tenth_of_one():
    assert bleu("the heart is normal", "the heart is big")[3] == pytest.approx((1 / 4 * 0.1) ** (1 / 4))


def test_bleu_counts_a_word_as_often_as_the_reference_has_it():
    assert bleu("the heart the", "the the the")[0] == pytest.approx(2 / 3)


def test_bleu_punishes_a_report_that_is_too_short():
    assert bleu("a b c d", "a b")[0] == pytest.approx(math.exp(1 - 4 / 2))


def test_bleu_is_the_mean_over_reports_and_an_empty_report_scores_zero():
    assert score(["a b c", "d e f"], ["a b c", ""])["bleu_1"] == pytest.approx(1 / 2)


def test_rouge_l_is_the_longest_common_subsequence_as_an_f_measure():
    assert rouge_l("the heart is normal".split(), "the heart is big".split()) == 2 * 3 / (4 + 4)
    assert rouge_l("abcd", "dcaxb") == 2 * 2 / (4 + 5)


def test_rouge_l_compares_stems():
    assert stems(["lungs", "hyperinflated"]) == stems(["lung", "hyperinflate"]) != ["lungs", "hyperinflated"]
    assert score(["the lungs are hyperinflated"], ["the lung are hyperinflate"])["rouge_l"] == 1.0


def test_rouge_l_is_the_mean_over_reports():
    assert score(["a b", "c"], ["a b", "x"])["rouge_l"] == 0.5


def test_the_longest_common_subsequence_equals_the_full_tables():
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b = (rng.integers(0, 5, rng.integers(0, 90)).tolist() for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        assert lcs(word_positions(a), len(a), b) == table[-1, -1]


def test_identical_reports_score_one_and_silence_zero():
    text = "The lungs are clear bilaterally."
    assert set(score([text], [text]).values()) == {1.0}
    assert set(score([text], [""]).values()) == set(score([text], ["..."]).values()) == {0.0}
    assert rouge_l([], []) == rouge_l(["a"], []) == rouge_l([], ["a"]) == 0.0


EMPTY = [([], []), ([""], [""]), (["a b"], [""]), ([""], ["a b"]), (["...", "é"], ["é", "..."])]


@pytest.mark.parametrize("references, predictions", EMPTY)
def test_nothing_to_compare_scores_zero_and_prints_nothing(references, predictions, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(score(references, predictions).values()) == {0.0}
        score(["the heart", "x"], ["the big heart", ""])  # NLTK would warn of missing n-grams
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("metric", [statistics, score])
def test_each_report_needs_its_reference(metric):
    with pytest.raises((AssertionError, ValueError)):
        metric(["a", "b"], ["a"])


REFERENCES = ["the heart is normal", "no effusion is seen", "lungs are clear today"]
PREDICTIONS = ["the heart is big", "no effusion seen", "the lungs are clear"]


def test_scores_do_not_depend_on_the_order_of_the_studies():
    assert score(REFERENCES, PREDICTIONS) == pytest.approx(score(REFERENCES[::-1], PREDICTIONS[::-1]))


def test_a_sum_of_rows_scores_as_its_studies_do():
    names, rows = statistics(REFERENCES, PREDICTIONS)
    drawn = [0, 2, 2, 1, 0]
    expected = score([REFERENCES[i] for i in drawn], [PREDICTIONS[i] for i in drawn])
    assert scores(rows[drawn].sum(0)) == pytest.approx([expected[name] for name in names])
    assert scores(np.stack([rows.sum(0), rows[0]])).shape == (2, len(names))


def test_without_wordnet_meteor_is_absent_and_not_zero():
    assert "meteor" not in score(REFERENCES, PREDICTIONS)


def test_variety_counts_texts_whatever_their_white_space():
    got = variety(texts(["a b.", "a  b.", "c unchanged e"]), texts(["a b.\n", "x"]))
    values = {name: value for name, (value, _, _) in got.items()}
    assert values == {"distinct": 2, "distinct_share": 2 / 3, "mean_words": 7 / 3, "comparisons": 1 / 3,
                      "verbatim_in_train": 2 / 3}  # fmt: skip
    assert all(value == [0, 0, 0] for value in variety(texts([]), texts(["a"])).values())


def test_the_interval_of_distinct_reports_covers_their_number_in_other_samples():
    rng = np.random.default_rng(0)
    draw = lambda: texts(map(str, rng.geometric(0.02, 300)))  # some texts are frequent, many unique
    expected, covered = np.mean([len(np.unique(draw()[:, 0])) for _ in range(500)]), 0
    for _ in range(200):
        _, low, high = variety(draw(), texts([]), n_resamples=0)["distinct"]
        covered += low <= expected <= high
    assert covered >= 190  # the jackknife's variance is an upper bound (Efron and Stein 1981)
    assert variety(texts(["a"] * 9), texts([]))["distinct"] == [1, 1, 1]
    assert variety(texts(map(str, range(9))), texts([]))["distinct"] == [9, 9, 9]


def test_importing_the_module_does_not_import_nltk():
    code = "import sys, llamaxr.metrics.overlap; sys.exit('nltk' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_references_at_once_score_as_one_by_one():
    rng = np.random.default_rng(0)
    words = lambda: [f"w{i}" for i in rng.integers(12, size=rng.integers(1, 90))]
    for n in (1, 2, 40):
        references = [words() for _ in range(n)]
        batch = ReferenceBatch(references)
        for prediction in [words() for _ in range(20)] + [references[0], ["unknown"], []]:
            one_by_one = [rouge_l(reference, prediction) for reference in references]
            assert batch.rouge_l(prediction) == pytest.approx(one_by_one, abs=1e-12)


def test_beta_weighs_recall():
    for beta in (1, 1.2, 2):
        precision, recall = 1, 1 / 2
        expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
        assert rouge_l("abcd", "ab", beta) == pytest.approx(expected)

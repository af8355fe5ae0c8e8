"""R2Gen's cleaning, and the COCO caption scores on examples small enough to count by hand."""

import math

import numpy as np
import pytest

import llamaxr.metrics.coco as module
from llamaxr.metrics.coco import CUT, NAMES, RARE, clean, frequencies, score, scores, statistics, vocabulary


@pytest.mark.parametrize(
    "report, cleaned",
    [
        ("The heart is normal. Lungs clear.", "the heart is normal . lungs clear ."),
        ("No full stop at the end", "no full stop at the end ."),
        ("1. Heart normal. 2. Lungs clear. 3. XXXX.", "heart normal . lungs clear . xxxx ."),
        ("Stable... No change..", "stable . no change ."),
        ('T-spine; it\'s 1.2 cm (left/right), "ok"?', "t-spine its 12 cm leftright ok ."),
        ("A: [b] {c} <d> e=f @g 50% h_i j*k a+b", "a b c d ef g 50 hi jk ab ."),
        ("Größe é 肺 – x", "größe é 肺 – x ."),
        ("a. . b", "a . . b ."),  # R2Gen leaves the empty sentence in
        ("Nodule. Size 11. Stable", "nodule . size 1stable ."),  # and takes any "1. " for a list's
        ("", ""),
        (" .. ", ""),
    ],
)
def test_reports_are_cleaned_as_r2gen_does(report, cleaned):
    assert clean(report) == cleaned


def test_cleaning_a_cleaned_report_changes_nothing_but_the_last_stop():
    assert clean("the heart is normal . lungs clear") == "the heart is normal . lungs clear ."


def test_the_cut_counts_stops_as_words():
    assert clean("a b. c d.", cut=4) == "a b . c"
    assert len(clean("word " * 100, cut=CUT).split()) == 59


def test_words_that_occur_less_than_three_times_are_replaced():
    words = vocabulary(["Heart normal.", "Heart big.", "Heart, lungs normal.", "normal"])
    assert words == {"heart", "normal", "."}
    assert clean("Heart big.", vocabulary=words) == f"heart {RARE} ."


def test_bleu_is_over_the_corpus_and_not_the_mean_over_reports():
    got = score(["a b c", "d"], ["a b c", "x"])  # with the full stops: 5 of 6 words, the reference's length
    assert got["bleu_1"] == pytest.approx(5 / 6)


def test_bleu_punishes_a_set_that_is_too_short():
    _, rows = statistics(["a b c d", "e f"], ["a b", "e f"])
    assert scores(rows.sum(0))[0] == pytest.approx(math.exp(1 - 6 / 4))


def test_rouge_l_weighs_recall_over_precision():
    precision, recall = 3 / 3, 3 / 4
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    _, rows = statistics(["a b c d"], ["a b d"])
    assert scores(rows.sum(0))[4] == pytest.approx(expected)


def test_cider_of_the_reference_itself_is_ten_and_common_words_count_nothing():
    references = ["the heart is large", "the lungs look clear", "the bones seem intact"]
    _, rows = statistics(references, references)
    assert rows[:, 12] == pytest.approx(10)
    _, rows = statistics(references, ["the"] * 3)
    assert rows[:, 12] == pytest.approx(0)


def test_cider_punishes_another_length():
    references = ["a b c d e f g h", "x y z"]
    _, rows = statistics(references, ["a b c d e f", "x y z"])
    _, same = statistics(references, ["a b c d e f p q", "x y z"])
    assert rows[0, 12] / 10 < 1 and same[0, 12] > 0
    cosine = rows[0, 12] / 10 / math.exp(-(2**2) / (2 * 36))
    shared = [6 / 8, 5 / 7, 4 / 6, 3 / 5]  # n-grams of equal weight
    assert cosine == pytest.approx(np.mean(np.sqrt(shared)))


@pytest.mark.parametrize(
    "references, predictions",
    [([], []), ([""], [""]), (["a b"], [""]), ([""], ["a b"]), (["a", "b"], ["", ""]), (["..."], ["?!"])],
)
def test_nothing_to_compare_scores_almost_nothing(references, predictions):
    with np.errstate(all="raise", under="ignore"):
        got = score(references, predictions)
    assert list(got) == list(NAMES) and all(0 <= value < 1e-3 for value in got.values())


def test_reports_of_one_word_and_of_any_script_are_scored():
    got = score(["Cardiomegaly", "肺 clear", "🫀"], ["cardiomegaly.", "肺 clear", "🫀"])
    assert got["rouge_l"] == pytest.approx(1) and got["bleu_1"] == pytest.approx(1)


REFERENCES = ["the heart is normal .", "no effusion is seen .", "lungs are clear today ."]
PREDICTIONS = ["the heart is big .", "no effusion seen .", "the lungs are clear ."]


def test_scores_do_not_depend_on_the_order_of_the_studies():
    _, rows = statistics(REFERENCES, PREDICTIONS)
    _, reverse = statistics(REFERENCES[::-1], PREDICTIONS[::-1])
    assert reverse[::-1] == pytest.approx(rows)


def test_a_resample_of_rows_is_the_corpus_of_those_studies():
    """Except CIDEr: each study keeps the CIDEr that it has with the n-gram weights of the full set."""
    _, rows = statistics(REFERENCES, PREDICTIONS)
    drawn = [0, 2, 2, 1, 0]
    _, again = statistics([REFERENCES[i] for i in drawn], [PREDICTIONS[i] for i in drawn])
    got, expected = scores(rows[drawn].sum(0)), scores(again.sum(0))
    assert got[:5] == pytest.approx(expected[:5])
    assert got[5] == pytest.approx(rows[drawn, 12].mean())
    assert scores(np.stack([rows.sum(0), rows[0]])).shape == (2, 6)


def test_studies_compared_in_blocks_of_any_size_give_the_same_rows(monkeypatch):
    rng = np.random.default_rng(0)
    references, predictions = (
        [" ".join(rng.choice(list("abcd"), rng.integers(0, 9))) for _ in range(50)] for _ in range(2)
    )
    references[-1] = predictions[-1] = predictions[6] = "a"  # shorter than an n-gram, at the ends of blocks
    _, expected = statistics(references, predictions)
    for size in (1, 7, 49):
        monkeypatch.setattr(module, "BLOCK", size)
        assert (statistics(references, predictions)[1] == expected).all()


def test_an_n_gram_counts_once_per_reference_in_blocks_of_any_size(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    one, two, *_ = frequencies(["a b a b", "b a", "c", "", "b a"])
    counts = {key: count for keys, n in (one, two) for key, count in zip(keys, n, strict=True)}
    assert counts[module._key("a")] == counts[module._key("b")] == 3 and counts[module._key("c")] == 1
    assert sorted(two[1][:-1]) == [1, 3] and two[1][-1] == 5  # "a b", "b a"; all references
    assert (two[0][:-1] < two[0][1:]).all()
    _, rows = statistics(REFERENCES, PREDICTIONS)
    precomputed = statistics(REFERENCES, PREDICTIONS, frequency=frequencies(REFERENCES))[1]
    assert (precomputed == rows).all()


def test_a_subset_can_keep_the_n_gram_weights_of_the_full_set():
    _, rows = statistics(REFERENCES, PREDICTIONS)
    _, part = statistics(REFERENCES[1:], PREDICTIONS[1:], frequency=frequencies(REFERENCES))
    assert (part == rows[1:]).all()


def test_each_report_needs_its_reference():
    with pytest.raises(AssertionError):
        statistics(["a", "b"], ["a"])

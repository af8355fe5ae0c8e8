"""The overlap scores against rouge-score and pycocoevalcap, on texts that the tests draw themselves."""

import numpy as np
import pytest

from llamaxr.metrics.overlap import bleu, rouge_l, tokenize

WORDS = (
    "The heart is enlarged normal lungs are clear hyperinflated effusion effusions opacities opacity nodules "
    "Calcified calcification pneumothorax bilaterally There's T-spine 1.2cm 12 2019 XXXX no NOT dying skies "
    "right-sided cardiomégalie Größe İstanbul \u212aelvin 肺 café _under_ a/b e.g. ?? ... - x 3rd happily"
).split()
MARKS = ["", "", "", ".", ",", ";", ":", "!", "\n", "\t", " (", ") ", "\u00a0", "\u200b", "…"]


def drawn_text(rng, most=60):
    return " ".join(rng.choice(WORDS) + rng.choice(MARKS) for _ in range(rng.integers(0, most)))


def rewritten(text, rng):
    """text with words dropped, replaced and doubled: shares long runs, as a model's report does."""
    changes = [lambda w: [w]] * 7 + [lambda w: [], lambda w: [rng.choice(WORDS)], lambda w: [w, w]]
    return " ".join(word for w in text.split(" ") for word in changes[rng.integers(len(changes))](w))


def test_rouge_l_equals_rouge_score_with_its_stemmer():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    rng = np.random.default_rng(0)
    references = [drawn_text(rng) for _ in range(400)]
    pairs = [(r, rewritten(r, rng) if i % 2 else drawn_text(rng)) for i, r in enumerate(references)]
    pairs += [("", ""), ("", "heart"), ("heart", ""), ("heart", "hearts"), ("...", "?!"), ("肺", "肺")]
    for reference, generated in pairs:
        expected = scorer.score(reference, generated)["rougeL"].fmeasure
        # the same counts in both, divided in another order
        assert rouge_l([reference], [generated]) == pytest.approx(expected, abs=1e-9), (reference, generated)


def coco_bleu(references, generated):
    from pycocoevalcap.bleu.bleu import Bleu

    def by_id(texts):  # pycocoevalcap splits at white space: it gets our tokens
        return {i: [" ".join(tokenize(text))] for i, text in enumerate(texts)}

    return Bleu(4).compute_score(by_id(references), by_id(generated), verbose=0)[0]


@pytest.mark.parametrize("seed", range(10))
def test_bleu_equals_pycocoevalcap_on_reports_of_four_words_and_more(seed):
    pytest.importorskip("pycocoevalcap.bleu.bleu")
    rng = np.random.default_rng(seed)
    references = [drawn_text(rng, most=20 + 10 * seed) for _ in range(40)]
    pairs = [(r, rewritten(r, rng)) for r in references]
    # half of the corpora lose the end of each report, so that the brevity penalty is compared as well
    pairs = [(r, g[: len(g) * 2 // 3] if seed % 2 else g) for r, g in pairs]
    pairs = [pair for pair in pairs if len(tokenize(pair[1])) >= 4]
    references, generated = zip(*pairs, strict=True)
    # pycocoevalcap adds 1e-9 to each count that it divides by (counts here are over 10): under 1e-9 relative
    assert bleu(references, generated) == pytest.approx(coco_bleu(references, generated), abs=1e-8)


def test_where_no_n_gram_is_shared_pycocoevalcap_smooths_and_we_say_zero():
    pytest.importorskip("pycocoevalcap.bleu.bleu")
    texts = ["the heart is normal"], ["the heart is big"]
    ours, theirs = bleu(*texts), coco_bleu(*texts)
    assert ours[:3] == pytest.approx(theirs[:3], abs=1e-8)
    assert ours[3] == 0.0
    assert theirs[3] == pytest.approx((1 / 4 * 1e-15) ** (1 / 4), rel=1e-8)  # it counts 1e-15 in place of 0

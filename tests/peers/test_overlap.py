"""ROUGE-L is rouge-score's."""

import numpy as np
import pytest

from llamaxr.metrics.overlap import rouge_l

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
WORDS = (
    "The heart is enlarged normal lungs are clear, hyperinflated. There's effusions effusion nodules "
    "1.2 cm opacities opacity T-spine Calcified calcification pneumothorax; no NOT bilaterally"
).split()


def test_rouge_l_equals_rouge_scores_with_its_stemmer():
    rng = np.random.default_rng(0)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for _ in range(200):
        reference, generated = (" ".join(rng.choice(WORDS, rng.integers(0, 40))) for _ in range(2))
        expected = scorer.score(reference, generated)["rougeL"].fmeasure
        # the same count of words in both; the F-measure is rounded in another order
        assert rouge_l([reference], [generated]) == pytest.approx(expected, abs=1e-9)

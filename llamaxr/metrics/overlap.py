"""How much a generated report's words overlap with the reference's: BLEU and ROUGE-L.

These numbers are never shown alone. On IU X-ray one constant sentence, written for every patient, scores
about what the literature reports; eval.py therefore puts that floor and the swapped images beside them.

Convention: words are rouge-score's, runs of [a-z0-9] after lower-casing, for BLEU as for ROUGE; ROUGE-L also
stems them, as rouge-score does with use_stemmer (the LLaMA-XR paper's setting). Both lie in [0, 1].
"""

import re
import warnings
from functools import lru_cache

from nltk.stem.porter import PorterStemmer

_stemmer = PorterStemmer()


def words(text: str) -> list[str]:
    """The lower-case words of a text."""
    return re.findall("[a-z0-9]+", text.lower())


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return _stemmer.stem(word) if len(word) > 3 else word  # rouge-score leaves short words alone


def bleu(references: list[str], generated: list[str]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002) by NLTK; 0 where no n-gram of an order is shared."""
    from nltk.translate.bleu_score import corpus_bleu

    assert len(references) == len(generated)
    if not any(words(text) for text in generated):
        return [0.0] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns where an order has no match; the score 0 says it
        weights = [(1 / n,) * n for n in range(1, 5)]
        scores = corpus_bleu([[words(r)] for r in references], [words(g) for g in generated], weights)
    return [score if score > 1e-100 else 0.0 for score in scores]  # NLTK puts the smallest float for 0


def rouge_l(references: list[str], generated: list[str]) -> float:
    """Mean ROUGE-L F-measure (Lin 2004, beta 1) over the reports: the longest common subsequence of stems.
    0 for a pair in which a report has no words, and for no reports at all."""
    assert len(references) == len(generated)
    pairs = zip(references, generated, strict=True)
    scores = [_rouge_l([_stem(w) for w in words(r)], [_stem(w) for w in words(g)]) for r, g in pairs]
    return sum(scores) / len(scores) if scores else 0.0


def _rouge_l(reference: list[str], report: list[str]) -> float:
    if not reference or not report:
        return 0.0
    row = [0] * (len(report) + 1)  # row[j]: longest common subsequence of the reference so far and report[:j]
    for word in reference:
        diagonal = 0
        for j, other in enumerate(report, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(reference) + len(report))


def score(references: list[str], generated: list[str]) -> dict[str, float]:
    """bleu_1 to bleu_4 and rouge_l."""
    named = {f"bleu_{n}": value for n, value in enumerate(bleu(references, generated), 1)}
    return {**named, "rouge_l": rouge_l(references, generated)}

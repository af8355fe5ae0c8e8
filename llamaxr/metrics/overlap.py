"""How much a generated report's words overlap with the reference's: BLEU and ROUGE-L.

These numbers are never shown alone. On IU X-ray one constant report, written for every patient, reaches
ROUGE-L 0.36 to 0.40, about what the literature reports; eval.py therefore puts that floor (baselines.py) and
the swapped images beside them.

Convention: words are rouge-score's, runs of [a-z0-9] after lower-casing, for BLEU as for ROUGE; ROUGE-L also
stems them, as rouge-score does with use_stemmer (the LLaMA-XR paper's setting). Both lie in [0, 1].
NLTK is imported where it is first used: its import takes over a second.
"""

import re
from functools import lru_cache


def tokenize(text: str) -> list[str]:
    """The lower-case words of a text."""
    return re.findall("[a-z0-9]+", text.lower())


def bleu(references: list[str], generated: list[str]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002) by NLTK, without smoothing: exactly 0 for an order of
    which no n-gram is shared, and for no reports at all.

    A generated report of fewer than n words, an empty one too, counts as one wrong n-gram: that is NLTK's
    way; pycocoevalcap counts nothing. On reports of four words and more the two agree, but for the 0, where
    pycocoevalcap puts a small number.
    """
    from nltk.translate.bleu_score import corpus_bleu

    assert len(references) == len(generated)
    if not any(tokenize(text) for text in generated):
        return [0.0] * 4
    pairs = [(tokenize(r), tokenize(g)) for r, g in zip(references, generated, strict=True)]
    shared = [any(_ngrams(r, n) & _ngrams(g, n) for r, g in pairs) for n in range(1, 5)]
    scores = corpus_bleu(
        [[r] for r, _ in pairs],
        [g for _, g in pairs],
        weights=[(1 / n,) * n for n in range(1, 5)],
        # Left alone, NLTK warns of a precision of 0 and puts the smallest float, whose fourth root is 1e-77.
        smoothing_function=lambda precisions, **_: [p or 1 for p in precisions],
    )
    return [score if some else 0.0 for score, some in zip(scores, shared, strict=True)]


def _ngrams(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return set(zip(*(tokens[i:] for i in range(n)), strict=False))  # the shifted lists end one by one


def rouge_l(references: list[str], generated: list[str]) -> float:
    """Mean ROUGE-L F-measure (Lin 2004, beta 1) over the reports: the longest common subsequence of stems.
    0 for a pair in which a report has no words, and for no reports at all."""
    assert len(references) == len(generated)
    pairs = zip(references, generated, strict=True)
    scores = [_rouge_l(_stems(r), _stems(g)) for r, g in pairs]
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


def _stems(text: str) -> list[str]:
    return [_stem(word) for word in tokenize(text)]


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return _stemmer().stem(word) if len(word) > 3 else word  # rouge-score leaves short words alone


@lru_cache(maxsize=1)
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def score(references: list[str], generated: list[str]) -> dict[str, float]:
    """bleu_1 to bleu_4 and rouge_l."""
    named = {f"bleu_{n}": value for n, value in enumerate(bleu(references, generated), 1)}
    return {**named, "rouge_l": rouge_l(references, generated)}

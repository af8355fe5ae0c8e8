"""How much a generated report's words overlap with its reference's, by LLaMA-XR's convention.

In: the reports of a split, true and generated, in one order. Out: for each study a row of scores, whose sums
give the means and are all that a bootstrap needs. The other convention, of R2Gen's line of papers, is
coco.py; the two give different numbers under the same names (one constant report on IU X-ray's test split:
ROUGE-L 0.364 here, 0.395 there), so a table names its convention and never mixes them.

These numbers are never shown alone. That constant report, written for every patient, scores about what the
literature reports; eval.py therefore puts the floors (baselines.py) and the swapped images beside them.

Convention: words are runs of [a-z0-9] after lower-casing, for all scores. BLEU-1 to 4 is NLTK's sentence BLEU
with its smoothing method1 (an order without a match counts 0.1 matches; the paper names no smoothing), METEOR
is NLTK's on WordNet 3.0, ROUGE-L is rouge-score's F-measure with stemming; each the mean over studies.
NLTK is imported where it is first used: its import takes over a second.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

CONVENTION = "LLaMA-XR: NLTK sentence BLEU (smoothing method1), NLTK METEOR, rouge-score ROUGE-L (stemmed)"
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l")
_WEIGHTS = [(1 / n,) * n for n in range(1, 5)]


def statistics(
    references: Sequence[str], generated: Sequence[str], wordnet=None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the scores, and what each study contributes: (n, 1 + names), the first column 1.

    wordnet: a reader of wordnet.find(); without one there is no meteor among the names. `scores` turns sums
    of rows, however drawn or weighted, into scores. An empty report on either side scores 0 throughout.
    """
    assert len(references) == len(generated)
    names = NAMES + (("meteor",) if wordnet is not None else ())
    rows = np.zeros((len(references), 1 + len(names)))
    rows[:, 0] = 1
    for row, reference, report in zip(rows, references, generated, strict=True):
        truth, said = tokenize(reference), tokenize(report)
        if truth and said:
            row[1:5] = _sentence_bleu(truth, said)
            row[5] = _f_measure(stems(truth), stems(said))
            if wordnet is not None:
                row[6] = _meteor(truth, said, wordnet)
    return names, rows


def scores(sums: np.ndarray) -> np.ndarray:
    """Sums of rows of `statistics` (..., 1 + names) -> scores (..., names), all in [0, 1]; 0 of no study."""
    return sums[..., 1:] / np.maximum(sums[..., :1], 1e-9)


def score(references: Sequence[str], generated: Sequence[str], wordnet=None) -> dict[str, float]:
    """bleu_1 to bleu_4, rouge_l and, with a reader of WordNet, meteor, over all studies."""
    names, rows = statistics(references, generated, wordnet)
    return dict(zip(names, scores(rows.sum(0)).tolist(), strict=True))


def texts(reports: Iterable[str]) -> np.ndarray:
    """What `variety` needs of each report: a hash of its text, white space apart, and its words, (n, 2)."""
    rows = ((hash(" ".join(report.split())), len(tokenize(report))) for report in reports)
    return np.array(list(rows), np.int64).reshape(-1, 2)


def variety(own: np.ndarray, train: np.ndarray) -> dict[str, float]:
    """How reports differ, from their `texts` and training's: distinct (how many), distinct_share (of the
    studies), mean_words, and verbatim_in_train (the share that stands word for word in training)."""
    n, distinct = max(len(own), 1), len(np.unique(own[:, 0]))
    return {
        "distinct": distinct,
        "distinct_share": distinct / n,
        "mean_words": own[:, 1].sum().item() / n,
        "verbatim_in_train": np.isin(own[:, 0], train[:, 0]).sum().item() / n,
    }


def tokenize(text: str) -> list[str]:
    """The lower-case words of a text."""
    return re.findall("[a-z0-9]+", text.lower())


def rouge_l(references: Sequence[str], generated: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure (Lin 2004, beta 1) over the reports: the longest common subsequence of stems.
    0 for a pair in which a report has no words, and for no reports at all."""
    rows = [
        _f_measure(stems(tokenize(r)), stems(tokenize(g))) for r, g in zip(references, generated, strict=True)
    ]
    return sum(rows) / len(rows) if rows else 0.0


def places(words: Sequence[str]) -> dict[str, int]:
    """Where each word stands in a text, as the set bits of one integer: what `lcs` compares with."""
    bits: dict[str, int] = {}
    for i, word in enumerate(words):
        bits[word] = bits.get(word, 0) | 1 << i
    return bits


def lcs(bits: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence of a text (its places and length) and other words.

    Hyyrö's bit-parallel form: the table's row is one integer whose 0 bits mark where the row steps up, and a
    word updates all of it in one addition. Twenty times as fast as the table filled cell by cell.
    """
    ones = (1 << length) - 1
    row = ones
    for word in words:
        met = row & bits.get(word, 0)
        row = (row + met | row - met) & ones
    return length - row.bit_count()


def _f_measure(truth: Sequence[str], said: Sequence[str]) -> float:
    if not truth or not said:
        return 0.0
    return 2 * lcs(places(truth), len(truth), said) / (len(truth) + len(said))


def _sentence_bleu(truth: list[str], said: list[str]) -> list[float]:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return sentence_bleu([truth], said, _WEIGHTS, SmoothingFunction().method1)


def _meteor(truth: list[str], said: list[str], wordnet) -> float:
    from nltk.translate.meteor_score import meteor_score

    return meteor_score([truth], said, stemmer=_stemmer(), wordnet=wordnet)


def stems(words: Sequence[str]) -> list[str]:
    """The words as rouge-score compares them: Porter's stems of those of four letters and more."""
    stem = _stemmer().stem
    return [stem(word) if len(word) > 3 else word for word in words]  # as rouge-score: short words stay


@lru_cache(maxsize=1)
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer()
    stemmer.stem = lru_cache(maxsize=100_000)(stemmer.stem)  # reports use the same words over and over
    return stemmer

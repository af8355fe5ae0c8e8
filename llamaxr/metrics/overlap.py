"""Word overlap of a report with its reference, by LLaMA-XR's convention.

In: the references and predictions of a split, in the same order. Out: a row of scores per study. Sums of rows
give the mean scores, and are all that a bootstrap needs. The convention of R2Gen's line of papers is coco.py.
The two give different numbers under the same names (one constant report on IU X-ray's test split: ROUGE-L
0.364 here, 0.395 there), so a table names its convention and never mixes them.

These numbers are never shown alone. That constant report, written for every patient, scores about what the
literature reports; eval.py therefore shows the floors (baselines.py) and the swapped images beside them.

Convention: words are runs of [a-z0-9] after lower-casing, for all scores. BLEU-1 to 4 is NLTK's sentence BLEU
with its smoothing method1 (an order without a match counts 0.1 matches; the paper names no smoothing), METEOR
is NLTK's on WordNet 3.0, ROUGE-L is rouge-score's F-measure with stemming; each is the mean over studies.
NLTK is imported where it is first used: its import takes over a second.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from .bootstrap import bootstrap
from .comparisons import compares

CONVENTION = "LLaMA-XR: NLTK sentence BLEU (smoothing method1), NLTK METEOR, rouge-score ROUGE-L (stemmed)"
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l")
_WEIGHTS = [(1 / n,) * n for n in range(1, 5)]


def statistics(
    references: Sequence[str], predictions: Sequence[str], wordnet=None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the scores, and a row per study: (n, 1 + names), the first column 1.

    wordnet: a reader of wordnet.find(); without one, meteor is not among the names. `scores` turns sums of
    rows, however drawn or weighted, into scores. Where either report is empty, all scores are 0.
    """
    assert len(references) == len(predictions)
    names = NAMES + (("meteor",) if wordnet is not None else ())
    rows = np.zeros((len(references), 1 + len(names)))
    rows[:, 0] = 1
    for row, *pair in zip(rows, references, predictions, strict=True):
        reference, prediction = map(tokenize, pair)
        if reference and prediction:
            row[1:5] = _sentence_bleu(reference, prediction)
            row[5] = rouge_l(stems(reference), stems(prediction))
            if wordnet is not None:
                row[6] = _meteor(reference, prediction, wordnet)
    return names, rows


def scores(sums: np.ndarray) -> np.ndarray:
    """Sums of rows of `statistics` (..., 1 + names) -> scores (..., names), in [0, 1]; 0 without studies."""
    return sums[..., 1:] / np.maximum(sums[..., :1], 1e-9)


def score(references: Sequence[str], predictions: Sequence[str], wordnet=None) -> dict[str, float]:
    """bleu_1 to bleu_4, rouge_l and, with a reader of WordNet, meteor, over all studies."""
    names, rows = statistics(references, predictions, wordnet)
    return dict(zip(names, scores(rows.sum(0)).tolist(), strict=True))


def texts(reports: Iterable[str]) -> np.ndarray:
    """A hash of each report, white space normalised, its number of words, and whether it compares with an
    earlier study (comparisons.py): (n, 3), for `variety`."""
    rows = ((hash(" ".join(r.split())), len(tokenize(r)), compares(r)) for r in reports)
    return np.array(list(rows), np.int64).reshape(-1, 3)


def variety(own: np.ndarray, train: np.ndarray, n_resamples: int = 1000) -> dict[str, list[float]]:
    """How varied the reports are. own, train: `texts` of them and of the training reports. Returns, each as
    [value, low, high]: distinct (number), distinct_share (of the studies), mean_words, comparisons (the share
    that compares with an earlier study), and verbatim_in_train (the share that is a training report).

    A resample draws some studies twice, so it always has fewer distinct reports, and no bootstrap can give
    their interval. The jackknife can (Heltshe and Forrester 1983): leaving out a study loses a distinct
    report only if its report is unique; with s unique reports among n, the variance is s (1 - s / n).
    """
    n, counts = max(len(own), 1), np.unique(own[:, 0], return_counts=True)[1]
    unique = (counts == 1).sum()
    error = 1.96 * np.sqrt(unique * (1 - unique / n))
    low, high = max(len(counts) - error, min(len(own), 1)), min(len(counts) + error, n)
    distinct = np.array([len(counts), low, high])
    means = np.hstack([own[:, 1:], np.isin(own[:, :1], train[:, 0])])
    words, comparisons, verbatim = bootstrap(means, lambda sums: sums / n, n_resamples).tolist()
    return {
        "distinct": distinct.tolist(),
        "distinct_share": (distinct / n).tolist(),
        "mean_words": words,
        "comparisons": comparisons,
        "verbatim_in_train": verbatim,
    }


def tokenize(text: str) -> list[str]:
    """The lower-case words of a text."""
    return re.findall("[a-z0-9]+", text.lower())


def rouge_l(reference: Sequence[str], prediction: Sequence[str], beta: float = 1.0) -> float:
    """ROUGE-L (Lin 2004) of two texts given as words: the F-measure of their longest common subsequence. 0 if
    either is empty."""
    if not reference or not prediction:
        return 0.0
    common = lcs(word_positions(reference), len(reference), prediction)
    return f_measure(common, len(reference), len(prediction), beta)


def word_positions(words: Sequence[str]) -> dict[str, int]:
    """Each word's positions in a text, as the set bits of one integer: the form that `lcs` compares."""
    positions: dict[str, int] = {}
    for i, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << i
    return positions


def lcs(positions: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence of a text (its word_positions and length) and other words.

    Hyyrö's bit-parallel form: a row of the dynamic-programming table is one integer, whose 0 bits mark where
    the row increases, and each word updates the whole row by one addition. 20 times as fast as cell by cell.
    """
    return length - _last_row(positions, (1 << length) - 1, words).bit_count()


def _last_row(positions: dict[str, int], ones: int, words: Sequence[str]) -> int:
    row = ones
    for word in words:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & ones
    return row


class ReferenceBatch:
    """Non-empty references that a text is compared with all at once, for little more than the price of one.

    Their rows of `lcs` share one integer. A bit between two rows is always 0: it stops an addition's carry.
    """

    def __init__(self, references: Sequence[Sequence[str]]):
        self.lengths = np.array([len(words) for words in references])
        self.starts = np.cumsum([0, *self.lengths[:-1] + 1])  # each row's first bit
        self.ones, self.positions = 0, {}
        for start, words in zip(self.starts.tolist(), references, strict=True):
            self.ones |= ((1 << len(words)) - 1) << start
            for word, bits in word_positions(words).items():
                self.positions[word] = self.positions.get(word, 0) | bits << start

    def rouge_l(self, words: Sequence[str]) -> np.ndarray:
        """ROUGE-L of the words against each reference: (n_references,)."""
        row = _last_row(self.positions, self.ones, words)
        row_bytes = np.frombuffer(row.to_bytes(self.ones.bit_length() // 8 + 1, "little"), np.uint8)
        unmatched = np.add.reduceat(np.unpackbits(row_bytes, bitorder="little"), self.starts, dtype=np.int64)
        return f_measure(self.lengths - unmatched, self.lengths, len(words))


def f_measure(common, n_reference, n_predicted, beta: float = 1.0):
    """(1 + beta^2) P R / (R + beta^2 P), from the number of common words and of the words on each side.
    Numbers or arrays; n_reference > 0."""
    return (1 + beta**2) * common / (beta**2 * n_reference + n_predicted)


def _sentence_bleu(reference: list[str], prediction: list[str]) -> list[float]:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return sentence_bleu([reference], prediction, _WEIGHTS, SmoothingFunction().method1)


def _meteor(reference: list[str], prediction: list[str], wordnet) -> float:
    from nltk.translate.meteor_score import meteor_score

    return meteor_score([reference], prediction, stemmer=_stemmer(), wordnet=wordnet)


def stems(words: Sequence[str]) -> list[str]:
    """The words as rouge-score compares them: Porter stems of the words of four letters or more."""
    stem = _stemmer().stem
    return [stem(word) if len(word) > 3 else word for word in words]


@lru_cache(maxsize=1)
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer()
    stemmer.stem = lru_cache(maxsize=100_000)(stemmer.stem)  # reports repeat their words
    return stemmer

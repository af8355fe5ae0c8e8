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
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache

import numpy as np

from .bootstrap import bootstrap

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


def variety(own: np.ndarray, train: np.ndarray, n_resamples: int = 1000) -> dict[str, list[float]]:
    """How reports differ, from their `texts` and training's, each [value, low, high]: distinct (how many),
    distinct_share (of the studies), mean_words, and verbatim_in_train (the share that stands word for word in
    training).

    A resample draws some studies twice, so it always has fewer distinct reports: no bootstrap can give their
    interval. The jackknife can (Heltshe and Forrester 1983): to leave out a study takes one away where its
    report stands once, which of n do s, so the variance is s (1 - s / n).
    """
    n, times = max(len(own), 1), np.unique(own[:, 0], return_counts=True)[1]
    once = (times == 1).sum()
    error = 1.96 * np.sqrt(once * (1 - once / n))
    distinct = np.array([len(times), max(len(times) - error, min(len(own), 1)), min(len(times) + error, n)])
    means = np.stack([own[:, 1], np.isin(own[:, 0], train[:, 0])], axis=1)
    words, verbatim = bootstrap(means, lambda sums: sums / n, n_resamples).tolist()
    return {
        "distinct": distinct.tolist(),
        "distinct_share": (distinct / n).tolist(),
        "mean_words": words,
        "verbatim_in_train": verbatim,
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
    return length - _last_row(bits, (1 << length) - 1, words).bit_count()


def _last_row(bits: dict[str, int], ones: int, words: Sequence[str]) -> int:
    row = ones
    for word in words:
        met = row & bits.get(word, 0)
        row = (row + met | row - met) & ones
    return row


class Together:
    """Many texts, none empty, to be compared with others at once, at little more than the price of one: their
    rows lie in one integer, with a bit between two that is always 0, where the carry of an addition ends.
    """

    def __init__(self, texts: Sequence[Sequence[str]]):
        self.texts, self.lengths = texts, np.array([len(words) for words in texts])
        self.starts = np.cumsum([0, *self.lengths[:-1] + 1])
        self.ones, self.bits = 0, {}
        for at, words in zip(self.starts.tolist(), texts, strict=True):
            self.ones |= ((1 << len(words)) - 1) << at
            for word, where in places(words).items():
                self.bits[word] = self.bits.get(word, 0) | where << at

    def rouge_l(self, words: Sequence[str], beta: float = 1.0) -> np.ndarray:
        """ROUGE-L's F-measure of the words against each of the texts: (n_texts,). beta: recall's weight."""
        row = _last_row(self.bits, self.ones, words)
        raw = np.frombuffer(row.to_bytes(self.ones.bit_length() // 8 + 1, "little"), np.uint8)
        left = np.add.reduceat(np.unpackbits(raw, bitorder="little"), self.starts, dtype=np.int64)
        return f_measure(self.lengths - left, self.lengths, len(words), beta)

    def rouge_n(self, words: Sequence[str], n: int, beta: float = 1.0) -> np.ndarray:
        """ROUGE-n's F-measure, of runs of n words, n 1 or 2, against each of the texts: (n_texts,)."""
        number, held = self.runs[n]
        said = [(number[run], times) for run, times in Counter(_runs(words, n)).items() if run in number]
        which, times = [at for at, _ in said], np.array([times for _, times in said], np.int32)
        both = np.minimum(held[which], times[:, None]).sum(0)  # (n_texts,)
        n_runs = np.maximum(self.lengths - (n - 1), 1e-9)  # a text of one word has no pair
        return f_measure(both, n_runs, max(len(words) - (n - 1), 0), beta)

    @cached_property
    def runs(self) -> dict[int, tuple[dict[tuple[str, ...], int], np.ndarray]]:
        """For 1 and 2 words: the runs of them in any of the texts, numbered, and how often each text holds
        each: (runs, n_texts)."""
        counted = {}
        for n in (1, 2):
            counts = [Counter(_runs(words, n)) for words in self.texts]
            number = {run: at for at, run in enumerate(dict.fromkeys(run for c in counts for run in c))}
            held = np.zeros((len(number), len(counts)), np.int32)
            for i, count in enumerate(counts):
                held[[number[run] for run in count], i] = list(count.values())
            counted[n] = number, held
        return counted


def _runs(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[at:] for at in range(n)), strict=False)


def f_measure(both, truth, said: int, beta: float = 1.0):
    """F-measure by how much both have, the truth has and the said have: (1 + b2) P R / (R + b2 P). Numbers or
    arrays; the truth has something."""
    return (1 + beta**2) * both / (beta**2 * truth + said)


def _f_measure(truth: Sequence[str], said: Sequence[str]) -> float:
    if not truth or not said:
        return 0.0
    return f_measure(lcs(places(truth), len(truth), said), len(truth), len(said))


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

"""How much a generated report overlaps with its reference by the COCO caption convention, R2Gen's line's.

In: the reports of a split, true and generated, in one order. Out: for each study a row of counts, whose sums
give corpus BLEU-1 to 4, ROUGE-L (beta 1.2), CIDEr and, where Java is, METEOR 1.5: pycocoevalcap's numbers,
which R2Gen and its successors print. Papers that follow R2Gen compare cleaned texts, so `clean` comes first;
R2Gen itself also cuts references and replaces rare words, which moves the scores: an option
(--r2gen-compat), never the default. The other convention, LLaMA-XR's, is overlap.py; no table mixes the two.

N-grams are counted as arrays of numbers instead of dictionaries of words, numbered for all studies at once
and compared in blocks of them: exact, and the memory is what numbering needs, about 50 bytes a word.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from .overlap import lcs, places

CONVENTION = "COCO: corpus BLEU, ROUGE-L (beta 1.2), CIDEr, METEOR 1.5 of reports cleaned as by R2Gen"
CONVENTION_COMPAT = CONVENTION + ", cut to 59 words, rare words replaced (--r2gen-compat)"
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
CUT = 59  # words that R2Gen keeps of a reference: --max_seq_length 60 counts the start token too
RARE = "<unk>"
BLOCK = 10_000  # studies whose n-grams are compared at a time

# R2Gen's way with numbered lists ("1. Heart. 2. Lungs."), one replacement after the other.
_LISTS = (
    [("..", ".")] * 3
    + [("1. ", "")]
    + [(f". {n}. ", ". ") for n in "2345"]
    + [(f" {n}. ", ". ") for n in "2345"]
)
# All marks go but the hyphen and what is not in ASCII; a full stop comes back between sentences.
_MARKS = str.maketrans("", "", ".,?;*!%^&_+():<=>@[]{}\"/\\'")


def clean(report: str, cut: int | None = None, vocabulary: Collection[str] | None = None) -> str:
    """A report as R2Gen compares it: lower-case words and sentence-ending full stops, a space between each.

    cut: keep so many words and stops. vocabulary: words outside of it become RARE, so that two different
    rare words then match. For R2Gen's own numbers both: cut=CUT and `vocabulary(train)`, on both sides. One
    difference: of a report without words R2Gen makes a lone full stop, we nothing, which scores nothing.
    """
    for old, new in _LISTS:
        report = report.replace(old, new)
    sentences = [s.translate(_MARKS) for s in report.strip().lower().split(". ")]
    words = [word for s in sentences for word in (*s.split(), ".")]
    if vocabulary is not None:
        words = [word if word in vocabulary else RARE for word in words]
    return " ".join(words[:cut]) if any(word != "." for word in words) else ""


def vocabulary(train_reports: Iterable[str], threshold: int = 3) -> frozenset[str]:
    """The words that R2Gen keeps: those that the cleaned training reports hold threshold times and more."""
    counts = Counter(word for report in train_reports for word in clean(report).split())
    return frozenset(word for word, count in counts.items() if count >= threshold)


def statistics(
    references: Sequence[str], generated: Sequence[str], meteor: np.ndarray | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the scores, and what each study contributes to them: (n, 13 or, with METEOR, 36).

    Texts are compared as they are, split at white space: `clean` them before. meteor: meteor15.statistics()
    of the same texts. Columns: 1; n-grams of order 1 to 4 that match; that were written; words written; words
    of the reference; ROUGE-L; CIDEr; METEOR's 23. `scores` turns sums of rows into scores.

    CIDEr weighs an n-gram by how few of the given references have it. Under resampling each study keeps its
    CIDEr, hence the weights of the full set. An empty text on either side matches nothing.
    """
    assert len(references) == len(generated)
    rows = np.zeros((len(references), 13))
    rows[:, 0] = 1
    _count_ngrams(references, generated, rows)
    for row, reference, report in zip(rows, references, generated, strict=True):
        row[11] = _rouge_l(reference.split(), report.split())
    if meteor is None:
        return NAMES, rows
    return (*NAMES, "meteor"), np.concatenate([rows, meteor], axis=1)


def scores(sums: np.ndarray) -> np.ndarray:
    """Sums of rows of `statistics` (..., 13 or 36) -> scores (..., names). CIDEr goes to 10, others to 1."""
    from .meteor15 import score as meteor

    small, tiny = 1e-9, 1e-15  # pycocoevalcap's: a count of 0 becomes a very small one
    precisions = (sums[..., 1:5] + tiny) / (sums[..., 5:9] + small)
    bleu = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, 5))
    ratio = (sums[..., 9:10] + tiny) / (sums[..., 10:11] + small)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    means = sums[..., 11:13] / np.maximum(sums[..., :1], small)
    parts = [bleu * brevity, means]
    if sums.shape[-1] > 13:
        parts.append(meteor(sums[..., 13:])[..., None])
    return np.concatenate(parts, axis=-1)


def score(
    references: Sequence[str],
    generated: Sequence[str],
    cut: int | None = None,
    words: Collection[str] | None = None,
) -> dict[str, float]:
    """All scores but METEOR over all studies, from reports as they stand; cut and words (a vocabulary) as
    `clean` has them."""
    cleaned = [[clean(text, cut, words) for text in texts] for texts in (references, generated)]
    names, rows = statistics(*cleaned)
    return dict(zip(names, scores(rows.sum(0)).tolist(), strict=True))


def _rouge_l(truth: list[str], said: list[str], beta: float = 1.2) -> float:
    if not truth or not said or not (common := lcs(places(truth), len(truth), said)):
        return 0.0
    precision, recall = common / len(said), common / len(truth)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _count_ngrams(references: Sequence[str], generated: Sequence[str], rows: np.ndarray) -> None:
    """Fill in what corpus BLEU and CIDEr (Vedantam et al. 2015; CIDEr-D's clipping, sigma 6) need."""
    n = len(references)
    if not n:
        return
    # All words of all texts in a row as numbers, the references first; owner: which text each is from.
    numbers: dict[str, int] = {}
    texts = (*references, *generated)
    words = np.fromiter(
        (numbers.setdefault(word, len(numbers)) for text in texts for word in text.split()), np.int32
    )  # (all words,)
    lengths = np.array([len(text.split()) for text in texts])  # (2n,)
    starts = np.concatenate([[0], lengths.cumsum()])  # where the words of each text begin, and the last end
    owner = np.repeat(np.arange(2 * n, dtype=np.int32), lengths)  # (all words,)
    rows[:, 9], rows[:, 10] = lengths[n:], lengths[:n]

    blocks = [(at, min(at + BLOCK, n)) for at in range(0, n, BLOCK)]
    grams, cosines = words, np.zeros(n)
    for order in range(1, 5):
        rows[:, 4 + order] = np.maximum(0, lengths[n:] - order + 1)
        if order > 1:  # the n-gram at a place: the (n-1)-gram there with the next word, numbered anew
            grams = _numbered(grams[:-1].astype(np.int64) * len(numbers) + words[order - 1 :])
        if not grams.size:
            break
        kinds = int(grams.max()) + 1
        frequency = np.zeros(kinds)  # in how many references
        for a, b in blocks:
            here = slice(starts[a], starts[b])
            _, gram, _ = _by_text(owner[here], grams[here], order)
            frequency += np.bincount(gram, minlength=kinds)
        rarity = np.log(n) - np.log(np.maximum(1, frequency))
        for a, b in blocks:
            true, said = (slice(starts[first + a], starts[first + b]) for first in (0, n))
            r_text, r_gram, r_count = _by_text(owner[true] - a, grams[true], order)
            g_text, g_gram, g_count = _by_text(owner[said] - (n + a), grams[said], order)
            r_weight, g_weight = r_count * rarity[r_gram], g_count * rarity[g_gram]
            r_keys, g_keys = r_text * kinds + r_gram, g_text * kinds + g_gram
            _, ours, theirs = np.intersect1d(r_keys, g_keys, True, return_indices=True)
            study = r_text[ours]
            rows[a:b, order] = np.bincount(study, np.minimum(r_count[ours], g_count[theirs]), b - a)
            product = np.minimum(r_weight[ours], g_weight[theirs]) * r_weight[ours]
            product = np.bincount(study, product, b - a)
            squares = ((r_text, r_weight), (g_text, g_weight))
            norm = np.prod([np.sqrt(np.bincount(text, w**2, b - a)) for text, w in squares], axis=0)
            cosines[a:b] += np.divide(product, norm, out=np.zeros(b - a), where=norm > 0) / 4
    bigrams = np.maximum(0, lengths - 1)  # pycocoevalcap's measure of length
    rows[:, 12] = 10 * cosines * np.exp(-((bigrams[n:] - bigrams[:n]) ** 2) / (2 * 6.0**2))


def _numbered(keys: np.ndarray) -> np.ndarray:
    """Numbers from 0 on, equal ones for equal keys: np.unique's inverse, in half its memory."""
    order = np.argsort(keys)
    keys, numbers = keys[order], np.empty(len(keys), np.int32)
    numbers[order] = np.cumsum(np.r_[False, keys[1:] != keys[:-1]], dtype=np.int32)
    return numbers


def _by_text(owner: np.ndarray, grams: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The n-grams of some texts in a row, each once a text: text, n-gram, and how often that has it.

    owner, grams: of each word its text and the n-gram that begins with it; the last may begin none.
    """
    ends = owner[order - 1 :]
    inside = owner[: len(ends)] == ends  # not across two texts
    text, gram = owner[: len(ends)][inside].astype(np.int64), grams[: len(ends)][inside]
    kinds = int(gram.max(initial=0)) + 1
    keys, counts = np.unique(text * kinds + gram, return_counts=True)
    return *np.divmod(keys, kinds), counts

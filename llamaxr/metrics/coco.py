"""Word overlap of a report with its reference, by the COCO caption convention, as in R2Gen's line of papers.

In: the references and predictions of a split, in the same order. Out: a row of counts per study, whose sums
give corpus BLEU-1 to 4, ROUGE-L (beta 1.2), CIDEr and, if Java is there, METEOR 1.5: pycocoevalcap's numbers,
which R2Gen and its successors report. Papers that follow R2Gen compare cleaned texts, so `clean` comes first.
R2Gen itself also truncates references and replaces rare words, which changes the scores: an option
(--r2gen-compat), never the default. LLaMA-XR's convention is overlap.py. No table mixes the two.

N-grams are counted as arrays of 64-bit keys instead of dictionaries of words, a block of studies at a time.
A key is a hash: the key of the n-gram without its last word, times a constant, plus the last word's. Among
ten million n-grams, two share a key with a probability of about 1 in 400,000. So nothing has to be numbered,
and only `frequencies` stays in memory: 16 bytes for each different n-gram of the references.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

from .overlap import rouge_l

CONVENTION = "COCO: corpus BLEU, ROUGE-L (beta 1.2), CIDEr, METEOR 1.5 of reports cleaned as by R2Gen"
CONVENTION_COMPAT = CONVENTION + ", cut to 59 words, rare words replaced (--r2gen-compat)"
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
CUT = 59  # words to which R2Gen truncates a reference: its --max_seq_length 60 includes the start token
RARE = "<unk>"
BLOCK = 10_000  # studies whose n-grams are in memory at a time
MIX = 6364136223846793005  # from Knuth's MMIX generator; products wrap around at 2**64

# How R2Gen removes the numbers of lists ("1. Heart. 2. Lungs."): these replacements in this order.
_LISTS = (
    [("..", ".")] * 3
    + [("1. ", "")]
    + [(f". {n}. ", ". ") for n in "2345"]
    + [(f" {n}. ", ". ") for n in "2345"]
)
# Removes most ASCII punctuation, but no hyphen. `clean` puts a full stop back between sentences.
_MARKS = str.maketrans("", "", ".,?;*!%^&_+():<=>@[]{}\"/\\'")


def clean(report: str, cut: int | None = None, vocabulary: Collection[str] | None = None) -> str:
    """A report as R2Gen compares it: lower-case words and the full stops of sentences, separated by spaces.

    cut: truncate to this many words and stops. vocabulary: words outside it become RARE, so two different
    rare words match. R2Gen's own numbers need both, cut=CUT and `vocabulary(train)`, on references and
    predictions. One difference: a report without words becomes a lone full stop in R2Gen and empty here,
    which scores 0.
    """
    for old, new in _LISTS:
        report = report.replace(old, new)
    sentences = [s.translate(_MARKS) for s in report.strip().lower().split(". ")]
    words = [word for s in sentences for word in (*s.split(), ".")]
    if vocabulary is not None:
        words = [word if word in vocabulary else RARE for word in words]
    return " ".join(words[:cut]) if any(word != "." for word in words) else ""


def vocabulary(train_reports: Iterable[str]) -> frozenset[str]:
    """R2Gen's vocabulary: the words that occur three times or more in the cleaned training reports."""
    counts = Counter(word for report in train_reports for word in clean(report).split())
    return frozenset(word for word, count in counts.items() if count >= 3)


def statistics(
    references: Sequence[str],
    predictions: Sequence[str],
    meteor: np.ndarray | None = None,
    frequency: list[tuple[np.ndarray, np.ndarray]] | None = None,
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the scores, and a row per study: (n, 13) or, with METEOR, (n, 36).

    Texts are split at white space and compared as they are: `clean` them before. meteor:
    meteor15.statistics() of the same texts. frequency: `frequencies` of the references, or of a larger set
    that contains them.

    Columns: 1; matched n-grams of order 1 to 4; predicted n-grams of order 1 to 4; predicted words; reference
    words; ROUGE-L; CIDEr; METEOR's 23. `scores` turns sums of rows into scores.

    CIDEr weights an n-gram by how few references have it. In a resample each study keeps the CIDEr that it
    has with the weights of the full set. An empty text on either side matches nothing.
    """
    assert len(references) == len(predictions)
    rows = np.zeros((len(references), 13))
    rows[:, 0] = 1
    _count_ngrams(references, predictions, frequency or frequencies(references), rows)
    for row, reference, prediction in zip(rows, references, predictions, strict=True):
        row[11] = rouge_l(reference.split(), prediction.split(), beta=1.2)
    if meteor is None:
        return NAMES, rows
    return (*NAMES, "meteor"), np.concatenate([rows, meteor], axis=1)


def scores(sums: np.ndarray) -> np.ndarray:
    """Sums of rows of `statistics` (..., 13 or 36) -> scores (..., names). CIDEr is at most 10."""
    from .meteor15 import score as meteor

    small, tiny = 1e-9, 1e-15  # pycocoevalcap's, so that no count is 0
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
    predictions: Sequence[str],
    cut: int | None = None,
    words: Collection[str] | None = None,
) -> dict[str, float]:
    """All scores but METEOR over all studies, from uncleaned reports. cut, words: `clean`'s cut and
    vocabulary."""
    cleaned = [[clean(text, cut, words) for text in texts] for texts in (references, predictions)]
    names, rows = statistics(*cleaned)
    return dict(zip(names, scores(rows.sum(0)).tolist(), strict=True))


def frequencies(references: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For n-grams of order 1 to 4: their sorted keys, and in how many references each occurs. The last key is
    no n-gram's, so that every search ends at a key; its count is the number of all references."""
    result = [(np.array([np.iinfo(np.int64).max]), np.array([len(references)]))] * 4
    for start in range(0, len(references), BLOCK):
        for order, (text, key) in enumerate(_ngrams(references[start : start + BLOCK])):
            _, gram, keys, _ = _by_text(text, key)
            count = np.bincount(gram, minlength=len(keys))
            old_keys, total = result[order]
            index = np.searchsorted(old_keys, keys)
            new = old_keys[index] != keys
            total[index[~new]] += count[~new]
            index = index[new]
            result[order] = np.insert(old_keys, index, keys[new]), np.insert(total, index, count[new])
    return result


def _count_ngrams(
    references: Sequence[str], predictions: Sequence[str], frequency: list, rows: np.ndarray
) -> None:
    """Fill in the columns of corpus BLEU and CIDEr (Vedantam et al. 2015; CIDEr-D's clipping, sigma 6)."""
    n = len(references)
    for start in range(0, n, BLOCK):
        block = rows[start : start + BLOCK]
        size, texts = len(block), (*references[start : start + BLOCK], *predictions[start : start + BLOCK])
        lengths = np.array([len(text.split()) for text in texts])
        block[:, 10], block[:, 9] = lengths.reshape(2, size)
        cosines = np.zeros(size)
        for order, (text, key) in enumerate(_ngrams(texts)):
            block[:, 5 + order] = np.maximum(0, lengths[size:] - order)
            text, gram, keys, count = _by_text(text, key)
            known_keys, total = frequency[order]
            index = np.searchsorted(known_keys, keys)
            rarity = np.log(total[-1]) - np.log(np.where(known_keys[index] == keys, total[index], 1))
            weight, pair = count * rarity[gram], text % size * len(keys) + gram
            split = np.searchsorted(text, size)  # the first n-gram of a prediction
            _, in_reference, in_prediction = np.intersect1d(
                pair[:split], pair[split:], assume_unique=True, return_indices=True
            )
            in_prediction += split
            study = text[in_reference]
            block[:, 1 + order] = np.bincount(
                study, np.minimum(count[in_reference], count[in_prediction]), size
            )
            clipped = np.minimum(weight[in_reference], weight[in_prediction])
            product = np.bincount(study, clipped * weight[in_reference], size)
            norm = np.sqrt(np.bincount(text, weight**2, 2 * size)).reshape(2, size).prod(0)
            cosines += np.divide(product, norm, out=np.zeros(size), where=norm > 0) / 4
        n_reference, n_predicted = np.maximum(0, lengths - 1).reshape(2, size)  # bigrams, as in pycocoevalcap
        block[:, 12] = 10 * cosines * np.exp(-((n_predicted - n_reference) ** 2) / (2 * 6.0**2))


def _key(word: str) -> int:
    digest = blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _ngrams(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For order 1 to 4: the text and the key of each n-gram, in the order of the texts."""
    words = [text.split() for text in texts]
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in words])  # (all words,): each word's text
    # Not Python's hash(): it differs between processes, and with it the order of floating-point sums.
    keys_of = {word: _key(word) for word in {word for text in words for word in text}}
    first = keys = np.fromiter((keys_of[word] for text in words for word in text), np.int64, len(owner))
    for order in range(1, 5):
        if order > 1:  # the (n-1)-gram that starts at a word, extended by one word
            keys = keys[:-1] * MIX + first[order - 1 :]
        in_one_text = owner[: len(keys)] == owner[order - 1 :]
        yield owner[: len(keys)][in_one_text], keys[in_one_text]


def _by_text(text: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, ...]:
    """The distinct n-grams of each text, sorted: their text, index into the keys, the sorted keys, counts."""
    keys, gram = np.unique(key, return_inverse=True)
    pairs, count = np.unique(text * len(keys) + gram, return_counts=True)
    return *np.divmod(pairs, max(1, len(keys))), keys, count

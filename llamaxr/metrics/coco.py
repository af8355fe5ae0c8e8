"""How much a generated report overlaps with its reference by the COCO caption convention, R2Gen's line's.

In: the reports of a split, true and generated, in one order. Out: for each study a row of counts, whose sums
give corpus BLEU-1 to 4, ROUGE-L (beta 1.2), CIDEr and, where Java is, METEOR 1.5: pycocoevalcap's numbers,
which R2Gen and its successors print. Papers that follow R2Gen compare cleaned texts, so `clean` comes first;
R2Gen itself also cuts references and replaces rare words, which moves the scores: an option
(--r2gen-compat), never the default. The other convention, LLaMA-XR's, is overlap.py; no table mixes the two.

N-grams are counted as arrays of 64-bit keys instead of dictionaries of words, a block of studies at a time.
A key is a hash: that of the n-gram before its last word, times a constant, plus the word's own. Among ten
million n-grams two share a key with a chance of about one in 400,000, so nothing has to be numbered, and only
`frequencies` is kept: 16 bytes for each different n-gram of the references.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

from .overlap import f_measure, lcs, places

CONVENTION = "COCO: corpus BLEU, ROUGE-L (beta 1.2), CIDEr, METEOR 1.5 of reports cleaned as by R2Gen"
CONVENTION_COMPAT = CONVENTION + ", cut to 59 words, rare words replaced (--r2gen-compat)"
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
CUT = 59  # words that R2Gen keeps of a reference: --max_seq_length 60 counts the start token too
RARE = "<unk>"
BLOCK = 10_000  # studies whose n-grams are compared at a time
MIX = 6364136223846793005  # of Knuth's MMIX generator; products wrap around at 2**64

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
    references: Sequence[str],
    generated: Sequence[str],
    meteor: np.ndarray | None = None,
    frequency: list[tuple[np.ndarray, np.ndarray]] | None = None,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the scores, and what each study contributes to them: (n, 13 or, with METEOR, 36).

    Texts are compared as they are, split at white space: `clean` them before. meteor: meteor15.statistics()
    of the same texts. frequency: `frequencies` of the references, or of a larger set that they are part of.

    Columns: 1; n-grams of order 1 to 4 that match; that were written; words written; words of the reference;
    ROUGE-L; CIDEr; METEOR's 23. `scores` turns sums of rows into scores.

    CIDEr weighs an n-gram by how few of these references have it. Under resampling each study keeps its
    CIDEr, hence the weights of the full set. An empty text on either side matches nothing.
    """
    assert len(references) == len(generated)
    rows = np.zeros((len(references), 13))
    rows[:, 0] = 1
    _count_ngrams(references, generated, frequency or frequencies(references), rows)
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
    if not truth or not said:
        return 0.0
    return f_measure(lcs(places(truth), len(truth), said), len(truth), len(said), beta)


def frequencies(references: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For n-grams of order 1 to 4 their sorted keys, and in how many references each stands. The last key, at
    which a search ends that finds none, is no n-gram's and has the number of all references."""
    known = [(np.array([np.iinfo(np.int64).max]), np.array([len(references)]))] * 4
    for at in range(0, len(references), BLOCK):
        for order, (text, key) in enumerate(_ngrams(references[at : at + BLOCK])):
            _, gram, keys, _ = _by_text(text, key)
            count = np.bincount(gram, minlength=len(keys))
            old, total = known[order]
            place = np.searchsorted(old, keys)
            new = old[place] != keys
            total[place[~new]] += count[~new]
            known[order] = (np.insert(old, place[new], keys[new]), np.insert(total, place[new], count[new]))
    return known


def _count_ngrams(
    references: Sequence[str], generated: Sequence[str], frequency: list, rows: np.ndarray
) -> None:
    """Fill in what corpus BLEU and CIDEr (Vedantam et al. 2015; CIDEr-D's clipping, sigma 6) need."""
    n = len(references)
    for at in range(0, n, BLOCK):
        block = rows[at : at + BLOCK]
        size, texts = len(block), (*references[at : at + BLOCK], *generated[at : at + BLOCK])
        lengths = np.array([len(text.split()) for text in texts])
        block[:, 10], block[:, 9] = lengths.reshape(2, size)
        cosines = np.zeros(size)
        for order, (text, key) in enumerate(_ngrams(texts)):
            block[:, 5 + order] = np.maximum(0, lengths[size:] - order)
            text, gram, keys, count = _by_text(text, key)
            known, total = frequency[order]
            place = np.searchsorted(known, keys)
            rarity = np.log(total[-1]) - np.log(np.where(known[place] == keys, total[place], 1))
            weight, pair = count * rarity[gram], text % size * len(keys) + gram
            cut = np.searchsorted(text, size)  # where the generated texts begin
            _, ours, theirs = np.intersect1d(pair[:cut], pair[cut:], True, return_indices=True)
            theirs += cut
            study = text[ours]
            block[:, 1 + order] = np.bincount(study, np.minimum(count[ours], count[theirs]), size)
            product = np.minimum(weight[ours], weight[theirs]) * weight[ours]
            product = np.bincount(study, product, size)
            norm = np.sqrt(np.bincount(text, weight**2, 2 * size)).reshape(2, size).prod(0)
            cosines += np.divide(product, norm, out=np.zeros(size), where=norm > 0) / 4
        true, said = np.maximum(0, lengths - 1).reshape(2, size)  # bigrams: pycocoevalcap's measure of length
        block[:, 12] = 10 * cosines * np.exp(-((said - true) ** 2) / (2 * 6.0**2))


def _key(word: str) -> int:
    digest = blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _ngrams(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For order 1 to 4: of each n-gram in the texts, one after the other, its text and its key."""
    words = [text.split() for text in texts]
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in words])  # (all words,)
    # Python's own hash() differs from process to process, and with it the order in which sums are added up.
    known = {word: _key(word) for word in {word for text in words for word in text}}
    first = keys = np.fromiter((known[word] for text in words for word in text), np.int64, len(owner))
    for order in range(1, 5):
        if order > 1:  # the n-gram at a place: the (n-1)-gram there with the next word
            keys = keys[:-1] * MIX + first[order - 1 :]
        inside = owner[: len(keys)] == owner[order - 1 :]  # not across two texts
        yield owner[: len(keys)][inside], keys[inside]


def _by_text(text: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, ...]:
    """N-grams, each once a text and in order: text, place among the sorted keys, those keys, how often."""
    keys, gram = np.unique(key, return_inverse=True)
    pairs, count = np.unique(text * len(keys) + gram, return_counts=True)
    return *np.divmod(pairs, max(1, len(keys))), keys, count

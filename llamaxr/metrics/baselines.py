"""The floors: reports that take no skill to write, which a system must beat.

One report for all studies, the best that a search finds on training and validation reports; the findings that
score best when asserted for every study; a random training report for each study; the report of the training
study with the most similar image; for the model itself, the images of another patient; and, for a system that
writes outlines, its outlines turned into text without a language model.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import starmap

import numpy as np

from .findings import find, locate
from .overlap import ReferenceBatch, stems, tokenize

Report = tuple[str, ...]  # its sentences
N_SENTENCES = 150  # that the constant report is made of: with more, the search finds worse reports
N_REFERENCES = 1000  # training reports that the search compares with, and at most as many validation reports


def constant_report(
    train_reports: Sequence[str],
    val_reports: Sequence[str],
    n_starts: int = 8,
    n_changes: int = 5_000,
    temperature: float = 0.001,
    n_candidates: int = 200,
    seed: int = 0,
) -> str:
    """One report made of training sentences, with the highest mean ROUGE-L against training and validation
    reports that simulated annealing (Kirkpatrick et al. 1983) finds.

    The candidates are n_candidates training reports, half of them the most frequent, half drawn at random.
    The n_starts best are each improved by n_changes random changes, and the best result is returned. A change
    inserts one of the N_SENTENCES most frequent training sentences, replaces a sentence by one, or removes a
    sentence. It is accepted if the mean rises, or if it falls by less than an exponential random number whose
    mean goes linearly from `temperature` to 0, so that the search can leave a local optimum. Ties go to the
    earlier report. A search on validation reports alone fits them (docs/log.md); they may be empty.
    """
    assert train_reports and n_candidates >= 2
    rng = np.random.default_rng(seed)
    half = min(n_candidates // 2, len(train_reports))
    frequent = [text for text, _ in Counter(train_reports).most_common(half)]
    drawn = [train_reports[i] for i in rng.choice(len(train_reports), half, replace=False)]
    candidates = list(dict.fromkeys(frequent + drawn))
    stems_of = cache(lambda text: stems(tokenize(text)))
    some = lambda reports: rng.permutation(np.array(reports, object))[:N_REFERENCES]
    train, val = ([w for w in map(stems_of, some(part)) if w] for part in (train_reports, val_reports))
    if not train + val:
        return candidates[0]
    batch = ReferenceBatch([*val, *train])

    @cache
    def value(report: Report) -> float:
        return batch.rouge_l([word for sentence in report for word in stems_of(sentence)]).mean()

    counts = Counter(sentence for report in train_reports for sentence in _sentences(report))
    pool = [sentence for sentence, _ in counts.most_common(N_SENTENCES)]

    def anneal(report: Report) -> Report:
        best = report
        for remaining in range(n_changes if pool else 0, 0, -1):
            i, new = int(rng.integers(len(report) + 1)), (pool[rng.integers(len(pool))],)
            changed = [
                report[:i] + new + report[i:],  # insert
                report[:i] + new + report[i + 1 :],  # replace; at the end: insert
                report[:i] + report[i + 1 :],  # remove
            ][rng.integers(3)]
            tolerance = temperature * remaining / n_changes * rng.exponential()
            if value(changed) > value(report) - tolerance:
                report = changed
                best = max(best, report, key=value)
        return best

    starts = sorted(map(_sentences, candidates), key=value, reverse=True)[:n_starts]
    return " ".join(max(map(anneal, starts), key=value))


def frequent_findings(train: Sequence[Collection[str]]) -> list[str]:
    """The findings that have the highest micro F1 if they are asserted for every training study. They are the
    most frequent ones: of any n findings, those are right most often."""
    counts = Counter(name for found in train for name in found).most_common()
    n_true = sum(n for _, n in counts)
    f1 = [2 * sum(n for _, n in counts[:k]) / (k * len(train) + n_true) for k in range(1, len(counts) + 1)]
    return [name for name, _ in counts[: int(np.argmax(f1)) + 1]] if counts else []


def template_reports(
    outlines: Sequence[Mapping[str, frozenset[str]]], train_reports: Sequence[str], constant: str
) -> list[str]:
    """Each outline (finding -> sides) written in training sentences. Only what a system's reports have beyond
    these is the language model's own contribution.

    A finding becomes the most frequent training sentence that asserts it alone, on its sides; if there is
    none, one made of its name. The rest is the constant report, without the sentences that reports with
    one of the findings have less than half as often as all reports.
    """
    sentences_for, n_with = {}, Counter()  # (finding, sides) -> its sentences; finding -> reports
    kept = {sentence: Counter() for sentence in _sentences(constant)}  # finding -> reports that have it too
    everywhere = Counter()
    for report in train_reports:
        sentences, found = _sentences(report), find(report)
        n_with.update(found)
        everywhere.update(kept.keys() & {*sentences})
        for sentence in kept.keys() & {*sentences}:
            kept[sentence].update(found)
        for sentence in sentences:
            if len(asserted := locate(sentence)) == 1:
                sentences_for.setdefault(*asserted.items(), Counter())[sentence] += 1

    def write_sentence(finding: str, sides: frozenset[str]) -> str:
        if sentences := sentences_for.get((finding, sides)):
            return sentences.most_common(1)[0][0]
        side = ["bilateral"] if len(sides) == 2 else sides
        return " ".join(["There is", *side, finding]) + "."

    def fits(sentence: str, outline: Mapping[str, frozenset[str]]) -> bool:
        share = everywhere[sentence] / max(len(train_reports), 1)
        return all(kept[sentence][f] >= share / 2 * n_with[f] for f in outline)

    return [
        " ".join([*starmap(write_sentence, outline.items()), *(s for s in kept if fits(s, outline))])
        for outline in outlines
    ]


def random_reports(train_reports: Sequence[str], n: int, seed: int) -> list[str]:
    """A random training report for each of n studies, drawn with replacement."""
    assert train_reports
    return [train_reports[i] for i in np.random.default_rng(seed).integers(len(train_reports), size=n)]


def nearest_reports(
    train_features: np.ndarray,
    train_reports: Sequence[str],
    features: np.ndarray,
    batch: int = 1024,
) -> list[str]:
    """For each study the report of the training study whose image features have the largest cosine to its
    own, each feature standardised over the training studies.

    Without that, most of a cosine is what all films share, and another is nearest (docs/log.md, 2026-11-28).
    train_features: (n_train, d), a row per training report. features: (n, d). NaN is a feature of a view that
    the study lacks. Cosines within 1e-6 are a tie, which the first training study wins.
    """
    assert len(train_features) == len(train_reports) > 0
    train_units, units = _standardised_units(train_features, features)
    reports = []
    for start in range(0, len(units), batch):
        cosine = np.round(units[start : start + batch] @ train_units.T, 6)  # (batch, n_train)
        reports += [train_reports[i] for i in cosine.argmax(1)]
    return reports


def _standardised_units(train: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in fp32, with mean 0 and spread 1 in each column of `train`, NaN as the mean, rows of length 1."""
    train, rows = np.array(train, np.float32), np.array(rows, np.float32)
    for start in range(0, train.shape[1], 256):  # few columns at once: the masks and copies stay small
        columns = slice(start, start + 256)
        known = np.ma.masked_invalid(train[:, columns])
        mean, std = known.mean(0, dtype=float), known.std(0, dtype=float)
        std[std < 1e-6] = 1.0  # the same in all training studies
        for part in (train, rows):
            part[:, columns] = ((np.ma.masked_invalid(part[:, columns]) - mean) / std).filled(0)
    for part in (train, rows):  # in place: 10^5 studies of DenseNet-121 are 3 GiB
        part /= np.maximum(np.sqrt(np.einsum("ij,ij->i", part, part)), 1e-12)[:, None]
    return train, rows


def _sentences(report: str) -> Report:
    return tuple(s for s in re.split(r"(?<=[.!?])\s+", report.strip()) if s)


def derangement(n: int, seed: int) -> list[int]:
    """A seeded random order of n studies in which none keeps its place; all such orders are equally likely.

    Orders are drawn until one fits, which a random order does with probability 1/e. Sattolo's shuffle needs a
    single draw but gives only orders that are one cycle. ValueError for n < 2: there is no such order.
    """
    if n < 2:
        raise ValueError(f"{n} studies cannot change places")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order.tolist()

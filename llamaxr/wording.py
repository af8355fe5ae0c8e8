"""What a report says, in the words in which most would say it.

In: reports. Out: for each a text that asserts the same findings, on the same sides, put together from
everybody's sentences so that it is as like as can be to what is written of such studies. The findings are
its own (metrics/findings.py); what else it tells, of what is normal, becomes what such reports tell most.

The same lungs are "clear", "well expanded and clear" or "without focal airspace disease", as the radiologist
is used to, and no image tells who will sign. A model that learns from reports as they stand learns many hands
at once, and writing the likeliest word after the likeliest word then mixes them: its report of a normal study
is like nobody's. With one wording for one content, all that is left to learn comes from the image.

The search is that for the best constant report (metrics/baselines.py), once for each set of findings instead
of once for all, among the reports with the same or the most similar findings.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .checkpoint import write_json
from .metrics import baselines, findings, overlap, table

Kind = frozenset[tuple[str, str]]  # (finding, "") and (finding, side) of all that a report asserts
ITEMS = [(name, side) for name in findings.FINDINGS for side in ("", "left", "right")]


def typical(
    reports: Sequence[str],
    among: Sequence[str],
    n_like: int = 120,
    n_same: int = 1200,
    n_changes: int = 1500,
    n_starts: int = 5,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
    """Each report in typical words: of sentences of the reports of `among` with the same findings, n_same of
    them at most, filled up to n_like with those whose findings are the most similar (Dice's coefficient; of
    equals, drawn ones), with ROUGE-2 and ROUGE-L to all of these as high as n_changes tried changes from each
    of n_starts make them. Reports of equal findings and sides get the same text.

    progress(what, done, total) is called for each set of findings.
    """
    kinds = [kind_of(report) for report in reports]
    asked = dict(zip(reversed(kinds), reversed(reports), strict=True))  # the first of each kind
    known = np.array([_as_row(kind_of(report)) for report in among], np.float32)
    order = np.random.default_rng(seed).permutation(len(among))
    texts = {}
    for done, (kind, own) in enumerate(asked.items(), 1):
        wanted = np.array(_as_row(kind), np.float32)
        both, either = known @ wanted, known.sum(1) + wanted.sum()
        alike = np.where(either, 2 * both / np.maximum(either, 1), 1)  # (among,); nothing is like nothing
        n = min(max(n_like, int((alike == 1).sum())), n_same)
        like = [among[i] for i in order[np.argsort(-alike[order], kind="stable")[:n]]]
        says_the_same = lambda text, kind=kind: kind_of(text) == kind
        texts[kind] = baselines.constant_report(
            [own, *like],
            like,
            seed=seed,
            n_changes=n_changes,
            n_starts=n_starts,
            likeness=in_words_and_order,
            fits=says_the_same,
        )
        if progress:
            progress("finding typical words", done, len(asked))
    return [texts[kind] for kind in kinds]


def typical_once(reports: Sequence[str], among: Sequence[str], cache: Path, progress=None) -> list[str]:
    """`typical`, or what it gave for the same reports by the same code before, kept in the folder `cache`."""
    key = hashlib.sha256(json.dumps([list(reports), list(among)]).encode())
    for file in (__file__, *(module.__file__ for module in (baselines, findings, overlap, table))):
        key.update(Path(file).read_bytes())
    kept = cache / f"wording-{key.hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged
        return json.loads(kept.read_text(encoding="utf-8"))
    texts = typical(reports, among, progress=progress)
    cache.mkdir(parents=True, exist_ok=True)
    write_json(kept, texts)
    return texts


def in_words_and_order(among: overlap.Together, words: list[str]) -> np.ndarray:
    """ROUGE-2 + ROUGE-L to each. By ROUGE-L alone it pays to say a thing twice: either may match."""
    return among.rouge_2(words) + among.rouge_l(words)


def kind_of(report: str) -> Kind:
    """The findings that a report asserts, each with its sides."""
    return frozenset((name, side) for name, sides in table.truth_of(report).items() for side in ("", *sides))


def _as_row(kind: Kind) -> list[bool]:
    return [item in kind for item in ITEMS]

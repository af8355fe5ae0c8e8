"""What a report says, in the words in which most would say it.

In: reports. Out: for each a text that asserts the same findings, on the same sides, put together from
everybody's sentences so that it is as like as can be to what is written of such studies. The findings are
its own (metrics/findings.py); what else it tells, of what is normal, becomes what such reports tell most.

The same lungs are "clear", "well expanded and clear" or "without focal airspace disease", as the radiologist
is used to, and no image tells who will sign. A model that learns from reports as they stand learns many hands
at once, and writing the likeliest word after the likeliest word then mixes them: its report of a normal study
is like nobody's. With one wording for one content, all that is left to learn comes from the image.

The search is that for the best constant report (metrics/baselines.py), longer and annealed, once for each set
of findings instead of once for all, among the reports with the same or the most similar findings.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .checkpoint import write_json
from .metrics import baselines, coco, findings, overlap, table
from .workers import pool

BETA = 1.05  # recall's weight in `likeness`: with it texts are as long as people's, on average
Kind = frozenset[tuple[str, str]]  # (finding, "") and (finding, side) of all that a report asserts
ITEMS = [(name, side) for name in findings.FINDINGS for side in ("", "left", "right")]


def typical(
    reports: Sequence[str],
    among: Sequence[str],
    n_like: int = 120,
    n_same: int = 1200,
    n_changes: int = 6000,
    n_more: int = 50,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
    """Each report in typical words: of sentences of the reports of `among` with the same findings, n_same of
    them at most, filled up to n_like with those whose findings are the most similar (Dice's coefficient; of
    equals, drawn ones), as like to all of these (`likeness`) as n_changes tried changes make it, and n_more
    for each report with the same findings. Reports of equal findings and sides get the same text, however
    many workers (processes) search for it.

    progress(what, done, total) is called for each set of findings.
    """
    kinds = [kind_of(report) for report in reports]
    asked = dict(zip(reversed(kinds), reversed(reports), strict=True))  # the first of each kind
    known = np.array([_as_row(kind_of(report)) for report in among], np.float32)
    order = np.random.default_rng(seed).permutation(len(among))

    def searches() -> Iterator[tuple]:
        for kind, own in asked.items():
            wanted = np.array(_as_row(kind), np.float32)
            both, either = known @ wanted, known.sum(1) + wanted.sum()
            alike = np.where(either, 2 * both / np.maximum(either, 1), 1)  # (among,); nothing is like nothing
            same = min(int((alike == 1).sum()), n_same)
            nearest = order[np.argsort(-alike[order], kind="stable")[: max(n_like, same)]]
            yield kind, own, [among[i] for i in nearest], n_changes + n_more * same, seed

    texts = {}
    with pool(workers) as processes:
        for done, (kind, text) in enumerate(processes.map(_search, searches()), 1):
            texts[kind] = text
            if progress:
                progress("finding typical words", done, len(asked))
    return [texts[kind] for kind in kinds]


def _search(of: tuple[Kind, str, list[str], int, int]) -> tuple[Kind, str]:
    kind, own, like, n_changes, seed = of
    text = baselines.constant_report(
        [own, *like],
        like,
        seed=seed,
        n_changes=n_changes,
        n_sentences=500,
        temperature=0.005,
        words_of=lambda text: coco.clean(text).split(),
        likeness=likeness,
        fits=lambda text: kind_of(text) == kind,
    )
    return kind, text


def typical_once(
    reports: Sequence[str], among: Sequence[str], cache: Path, workers: int = 1, progress=None
) -> list[str]:
    """`typical`, or what it gave for the same reports by the same code before, kept in the folder `cache`."""
    key = hashlib.sha256(json.dumps([list(reports), list(among)]).encode())
    for file in (__file__, *(module.__file__ for module in (baselines, coco, findings, overlap, table))):
        key.update(Path(file).read_bytes())
    kept = cache / f"wording-{key.hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged
        return json.loads(kept.read_text(encoding="utf-8"))
    texts = typical(reports, among, workers=workers, progress=progress)
    cache.mkdir(parents=True, exist_ok=True)
    write_json(kept, texts)
    return texts


def likeness(among: overlap.Together, words: list[str]) -> np.ndarray:
    """How like the words are to each text: ROUGE-1 + ROUGE-2 + ROUGE-L, of words and full stops as R2Gen
    compares them. By ROUGE-L alone it pays to say a thing twice: either may match."""
    return among.rouge_n(words, 1, BETA) + among.rouge_n(words, 2, BETA) + among.rouge_l(words, BETA)


def kind_of(report: str) -> Kind:
    """The findings that a report asserts, each with its sides."""
    return frozenset((name, side) for name, sides in table.truth_of(report).items() for side in ("", *sides))


def _as_row(kind: Kind) -> list[bool]:
    return [item in kind for item in ITEMS]

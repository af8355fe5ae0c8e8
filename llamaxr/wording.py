"""What a report says, in the words in which most would say it.

In: reports. Out: for each a text that asserts the same findings, on the same sides, put together from
everybody's sentences so that it is as like as can be to what is written of such studies. The findings are
its own (metrics/findings.py); what else it tells, of what is normal, becomes what such reports tell most.

The same lungs are "clear", "well expanded and clear" or "without focal airspace disease", as the radiologist
is used to, and no image tells who will sign. A model that learns from reports as they stand learns many hands
at once, and writing the likeliest word after the likeliest word then mixes them: its report of a normal study
is like nobody's. With one wording for one content, all that is left to learn comes from the image.

The search is metrics/baselines.py's for the best constant report, once for each set of findings instead of
once for all, among the reports with the most similar findings.
"""

from collections.abc import Callable, Sequence

import numpy as np

from .metrics.baselines import constant_report
from .metrics.findings import FINDINGS
from .metrics.table import truth_of

Kind = frozenset[tuple[str, str]]  # (finding, "") and (finding, side) of all that a report asserts
ITEMS = [(name, side) for name in FINDINGS for side in ("", "left", "right")]


def typical(
    reports: Sequence[str],
    among: Sequence[str],
    n_like: int = 120,
    n_changes: int = 3000,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
    """Each report in typical words: of sentences of the n_like reports of `among` whose findings are the most
    similar (Dice's coefficient; of equals, drawn ones), with ROUGE-L to those as high as n_changes tried
    changes make it. Reports of equal findings and sides get the same text.

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
        like = [among[i] for i in order[np.argsort(-alike[order], kind="stable")[:n_like]]]
        says_the_same = lambda text, kind=kind: kind_of(text) == kind
        texts[kind] = constant_report([own, *like], like, seed=seed, n_changes=n_changes, fits=says_the_same)
        if progress:
            progress("finding typical words", done, len(asked))
    return [texts[kind] for kind in kinds]


def kind_of(report: str) -> Kind:
    """The findings that a report asserts, each with its sides."""
    return frozenset((name, side) for name, sides in truth_of(report).items() for side in ("", *sides))


def _as_row(kind: Kind) -> list[bool]:
    return [item in kind for item in ITEMS]

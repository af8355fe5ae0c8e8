"""Describe a data set in a few numbers and one complete study, before anyone trains on it.

In: studies. Out: what `train.py --describe` prints, as a dictionary or as text. Per split: how many studies,
with which views, how many words their reports have, and how many are normal.

Data sets differ in how they know that a study is normal, so the number comes with its source: "drawn"
(nothing was drawn), "indexed" (Open-i's MeSH term "normal") or "labelled" (metrics/findings.py finds nothing
asserted in the report).
"""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, median
from textwrap import wrap

from ..data.study import SPLITS, Study
from ..metrics.findings import find

WIDTH = 80  # columns


def is_normal(study: Study) -> tuple[bool, str]:
    """Whether the study is normal, and the source of that: "drawn", "indexed" or "labelled"."""
    if study.findings is not None:
        return not study.findings, "drawn"
    if study.terms is not None:
        return "normal" in (term.lower() for term in study.terms), "indexed"
    return not find(study.report), "labelled"


def describe(studies: Sequence[Study]) -> dict:
    """{"splits": {split: numbers}, "study": all of the first study}; views are counts of studies."""
    splits = {}
    for split in SPLITS:
        chosen = [s for s in studies if s.split == split]
        if not chosen:
            continue
        lengths = [len(s.report.split()) for s in chosen]
        normal = [is_normal(s) for s in chosen]
        splits[split] = {
            "studies": len(chosen),
            "views": {
                "both": sum(len(s.views) == 2 for s in chosen),
                "frontal only": sum(s.lateral is None for s in chosen),
                "lateral only": sum(s.frontal is None for s in chosen),
            },
            "words": {
                "mean": round(mean(lengths), 1),
                "median": median(lengths),
                "longest": max(lengths),
                "all": sum(lengths),
            },
            "normal": {
                "share": round(sum(yes for yes, _ in normal) / len(chosen), 4),
                "decided": dict(Counter(source for _, source in normal)),
            },
            "different reports": len({s.report for s in chosen}),
        }
    first = studies[0]
    study = {
        "id": first.id,
        "split": first.split,
        "frontal": str(first.frontal) if first.frontal else None,
        "lateral": str(first.lateral) if first.lateral else None,
        "report": first.report,
        "findings": None if first.findings is None else sorted(first.findings),
        "terms": None if first.terms is None else list(first.terms),
    }
    return {"splits": splits, "study": study}


def as_text(description: dict) -> str:
    """The dictionary of `describe`, for a terminal of WIDTH columns."""
    heads = ("split", "studies", "both", "frontal", "lateral", "words: mean", "median", "longest",
             "different", "normal")  # fmt: skip
    rows = [heads]
    for split, d in description["splits"].items():
        views, words = d["views"], d["words"]
        rows.append(
            (split, d["studies"], *views.values(), words["mean"], words["median"], words["longest"],
             d["different reports"], f"{d['normal']['share']:.1%}")
        )  # fmt: skip
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(heads))]
    lines = [" ".join(str(cell).rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    sources = Counter()
    for d in description["splits"].values():
        sources.update(d["normal"]["decided"])
    meaning = {
        "drawn": "nothing was drawn",
        "indexed": 'its MeSH terms include "normal"',
        "labelled": "the findings labeller (metrics/findings.py) finds nothing asserted in its report",
    }
    normal = "; ".join(f"{meaning[name]} ({n} studies)" for name, n in sources.items())
    lines += ["", *wrap(f"normal: {normal}", WIDTH), "", "one study:"]
    for name, value in description["study"].items():
        if value is not None:
            words = f"{name}: {', '.join(value) if isinstance(value, list) else value}"
            lines += wrap(words, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)

"""A data set told in a few numbers and one study whole, before anyone trains on it.

In: studies. Out: what `train.py --describe` prints, as a dictionary or as text. For each split: how many
studies, with which views, how long their reports are in words, and how many are normal.

Whether a study is normal is known to a different degree in each data set, so the number stands beside how
it was decided: "drawn" by what was drawn (none), "indexed" by Open-i's MeSH term "normal", "labelled" by
metrics/findings.py asserting nothing in the report.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, median

from ..metrics.findings import find
from ..data.study import SPLITS, Study


def normal(study: Study) -> tuple[bool, str]:
    """Whether the study is normal, and how that was decided: "drawn", "indexed" or "labelled"."""
    if study.findings is not None:
        return not study.findings, "drawn"
    if study.terms is not None:
        return "normal" in (term.lower() for term in study.terms), "indexed"
    return not find(study.report), "labelled"


def describe(studies: Sequence[Study]) -> dict:
    """{"splits": {split: numbers}, "study": the first study whole}; views are counts of studies."""
    splits = {}
    for split in SPLITS:
        chosen = [s for s in studies if s.split == split]
        if not chosen:
            continue
        lengths = [len(s.report.split()) for s in chosen]
        decided = [normal(s) for s in chosen]
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
                "share": round(sum(yes for yes, _ in decided) / len(chosen), 4),
                "decided": dict(Counter(how for _, how in decided)),
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
    """What `describe` gives, for a terminal."""
    heads = ("split", "studies", "both views", "frontal only", "lateral only", "words: mean", "median",
             "longest", "different", "normal")  # fmt: skip
    rows = [heads]
    for split, d in description["splits"].items():
        views, words = d["views"], d["words"]
        rows.append(
            (split, d["studies"], *views.values(), words["mean"], words["median"], words["longest"],
             d["different reports"], f"{d['normal']['share']:.1%}")
        )  # fmt: skip
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(str(cell).rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    ways = Counter()
    for d in description["splits"].values():
        ways.update(d["normal"]["decided"])
    words = {
        "drawn": "nothing was drawn",
        "indexed": 'its MeSH terms say "normal"',
        "labelled": "the findings labeller (metrics/findings.py) finds nothing asserted in its report",
    }
    lines += ["", "normal: " + "; ".join(f"{words[way]} ({n} studies)" for way, n in ways.items())]
    lines += ["", "one study:"]
    for name, value in description["study"].items():
        if value is not None:
            lines.append(f"  {name}: {', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)

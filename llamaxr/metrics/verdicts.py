"""Verdicts on an evaluation: better, worse, or cannot be told; and what follows from it all, in sentences.

In: the groups of table.evaluate. Out: sentences. Two systems are told apart by the 95% interval of their
difference, paired by study. An interval that holds zero proves nothing, neither an effect nor its absence: it
cannot be told. This is the only place where an interval becomes a word.
"""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from .agreement import GROUPS

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot be told"
ROUNDING = 1e-12  # what adding the same numbers in another order changes
OVERLAP = ("llama_xr", "coco")
# What each floor is called in a sentence that begins with "Beside".
FLOORS = {
    "against": "the other system",
    "nearest": "the nearest training report",
    "constant": "one report for everybody",
    "template": "its outlines told in templates",
}


def verdict(difference: Sequence[float | None] | None) -> str:
    """BETTER, WORSE or CANNOT_TELL, from value, low and high of "system minus other"; more is better."""
    if difference is None or not all(x is not None and isfinite(x) for x in difference):
        return CANNOT_TELL
    _, low, high = difference
    return BETTER if low > ROUNDING else WORSE if high < -ROUNDING else CANNOT_TELL


def told(difference: Sequence[float | None] | None) -> str:
    """The verdict with its numbers: "better, +0.022 [+0.003, +0.042]"."""
    if difference is None or difference[0] is None:
        return f"{CANNOT_TELL}, undefined"
    return "{}, {:+.3f} [{:+.3f}, {:+.3f}]".format(verdict(difference), *(x + 0.0 for x in difference))


def in_words(groups: Mapping) -> list[str]:
    """What follows from the group of all studies, in sentences, the ones that matter most first: a verdict on
    each floor, the critical findings, the sides, and invented comparisons with prior studies."""
    part = groups["all"]
    gaps, system = part["differences"], part["writers"]["system"]
    lines = [_images(gaps["swapped"].get("findings"), system)] if "swapped" in gaps else []
    beside = {
        name: f"Beside {floor}: {'; '.join(_beside(name, gaps[name]))}."
        for name, floor in FLOORS.items() if name in gaps
    }  # fmt: skip
    lines += [beside.pop(name) for name in ("against", "nearest") if name in beside]
    if "per_class" in system:
        lines += [line for line in (_critical(system), _sides(system)) if line]
    lines += beside.values()
    lines += [f"{name}: {_extra(name, system, gaps)}." for name in system.get("extra", {})]
    own, true = (block["comparisons"][0] for block in (system["reports"], part["references"]))
    shares = f"in {own:.1%} of its reports; true ones {true:.1%}"
    return [*lines, f"Invented comparisons with a prior study: {shares}."]


def _images(findings: Mapping | None, system: Mapping) -> str:
    gap = findings and findings["micro_f1"]
    outcome = verdict(gap)
    if outcome == CANNOT_TELL:
        span = "undefined" if not gap else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap)
        n = f"it wrote {system['reports']['distinct'][0]:.0f} different reports"
        start = "Whether it uses the image cannot be told: findings F1"
        return f"{start} {span} beside its reports swapped; {n}."
    f1, ends = system["findings"]["micro_f1"][0], sorted(abs(x) for x in gap[1:])
    by = "{:.3f} [{:.3f}, {:.3f}] with its reports swapped".format(abs(gap[0]), *ends)
    if outcome == BETTER:
        return f"It uses the image: findings F1, {f1:.3f}, falls by {by}."
    return f"Its reports fit other studies better than their own: findings F1, {f1:.3f}, rises by {by}."


def _beside(name: str, gaps: Mapping) -> list[str]:
    """The verdicts that matter for one floor: on findings and, where there is more to say, on overlap. A
    constant report is strong in overlap alone, so its verdicts are counted over all overlap scores."""
    rouge = f"ROUGE-L {told(gaps['llama_xr']['rouge_l'])}"
    if name != "constant":
        findings = gaps.get("findings", {})
        labels = {"micro_f1": "findings F1", "macro_f1": "macro F1"}
        words = [f"{label} {told(findings[key])}" for key, label in labels.items() if key in findings]
        return words if name == "nearest" and words else [*words, rouge]
    outcomes = [verdict(gap) for block in OVERLAP for gap in gaps[block].values()]
    counts = {each: outcomes.count(each) for each in (BETTER, WORSE, CANNOT_TELL)}
    words = ", ".join(f"{n} {each}" for each, n in counts.items() if n)
    return [rouge, f"of {len(outcomes)} scores {words}"]


def _extra(name: str, system: Mapping, gaps: Mapping) -> str:
    value = "{:.3f} [{:.3f}, {:.3f}]".format(*system["extra"][name])
    leads = {floor: gap["extra"][name] for floor, gap in gaps.items() if name in gap.get("extra", {})}
    return "; ".join([value, *(f"beside {FLOORS.get(x, x)} {told(lead)}" for x, lead in leads.items())])


def _critical(system: Mapping) -> str | None:
    rows = {name: system["per_class"].get(name) for name in GROUPS["critical"]}
    rows = {name: row for name, row in rows.items() if row}
    if not rows:
        return None
    counts = {
        name: np.array([row["right"] + row["wrong_side"], row["missed"], row["invented"]])
        for name, row in rows.items()
    }
    words = [
        f"{name} {found:.0f}/{found + missed:.0f} +{invented:.0f}"
        for name, (found, missed, invented) in {"all": sum(counts.values()), **counts}.items()
    ]
    return f"Critical findings, found/true +invented: {', '.join(words)}."


def _sides(system: Mapping) -> str | None:
    share, named = system["findings"]["sides_right"], system["findings"]["sides_named"]
    if share is None:  # nobody names a side
        return None
    right, interval = round(share[0] * named[0]), "{:.3f} [{:.3f}, {:.3f}]".format(*share)
    return f"Sides: {right} of {named[0]:.0f} are right, {interval}."

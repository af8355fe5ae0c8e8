"""The outline: one line of findings that the model writes before the report.

    Findings: effusion bilateral, nodule right upper.
    There are small bilateral pleural effusions. A nodule is seen in the right upper lobe. ...

In: a report. Out: the report after a line of the findings that it asserts, each with its sides and zones, and
the way back. Most words of a report are the same for every patient. A model lowers its loss by learning those
first, long before it uses the image. The words of an outline can be predicted from the image alone.
"""

import functools
import itertools
import re

from ..metrics.findings import FINDINGS, locate, mentions

OUTLINE = "Findings: "  # how every outline starts
ZONES = {"upper": "upper", "mid": "mid", "middle": "mid", "lower": "lower", "base": "lower", "bases": "lower",
         "basilar": "lower", "bibasilar": "lower", "basal": "lower"}  # fmt: skip
BILATERAL = "bilateral"  # not "left right": a small language model writes its first word only (docs/log.md)
PLACES = {"left", "right", BILATERAL, *ZONES.values()}
# "upper limits of normal", "upper abdomen" and "lower lung volumes" are no places in a lung.
_ZONE = re.compile(rf"\b({'|'.join(ZONES)})\b(?! limits| abdom| lung vol| vol)")


@functools.lru_cache(2**14)  # each epoch asks again, and half a millisecond per study adds up on a GPU
def with_outline(report: str) -> str:
    """The report after its outline line, which names the findings in the order of FINDINGS, or "none"."""
    sides, zones = locate(report), find_zones(report)
    words = {name: [BILATERAL] if len(of_name) == 2 else [*of_name] for name, of_name in sides.items()}
    named = [" ".join([name, *words[name], *zones[name]]) for name in FINDINGS if name in sides]
    return f"{OUTLINE}{', '.join(named) or 'none'}.\n{report}"


def find_zones(report: str) -> dict[str, list[str]]:
    """The findings that the report asserts, each with its zones from top to bottom. A zone belongs to the
    finding next to it in its sentence."""
    asserted = [m for m in mentions(report) if m.state == "asserted"]
    zones = {m.finding: set() for m in asserted}
    for sentence in re.finditer(r"[^.]+", report.lower()):
        inside = [m for m in asserted if sentence.start() <= m.start < sentence.end()]
        for word in _ZONE.finditer(sentence[0]) if inside else ():
            at = sentence.start() + word.start()
            nearest = min(inside, key=lambda m: max(m.start - at, at - m.end))
            zones[nearest.finding].add(ZONES[word[1]])
    return {name: sorted(found, key=list(ZONES.values()).index) for name, found in zones.items()}


def outline_line(text: str) -> str:
    """The outline line alone, newline included, of a text made by with_outline."""
    return text[: text.index("\n") + 1]


def split_outline(text: str) -> tuple[str, str]:
    """Generated text -> (outline without "Findings: ", or "" if there is none; report). The outline ends with
    its full stop: a model that has hardly learned may forget the end of the line."""
    if not text.lstrip().startswith(OUTLINE):
        return "", text.strip()
    line, report = re.fullmatch(r"([^.\n]*\.?)(.*)", text.lstrip().removeprefix(OUTLINE), re.DOTALL).groups()
    return line.strip(), report.strip()


def read_outline(line: str) -> dict[str, frozenset[str]]:
    """An outline from split_outline -> {finding: its sides}. Words that name no finding are ignored."""
    return {name: words & {"left", "right"} for name, words in read_places(line).items()}


def read_places(line: str) -> dict[str, frozenset[str]]:
    """An outline from split_outline -> {finding: the words for its sides and zones}."""
    findings = {}
    for entry in line.strip().rstrip(".").split(", "):
        words = entry.split(" ")
        n = sum(1 for _ in itertools.takewhile(PLACES.__contains__, reversed(words)))
        name = " ".join(words[: len(words) - n])
        if name in FINDINGS:
            places = frozenset(words[len(words) - n :])
            findings[name] = places - {BILATERAL} | {"left", "right"} if BILATERAL in places else places
    return findings

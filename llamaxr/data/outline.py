"""The outline: one line of findings that the model writes before the report.

    Findings: effusion left, nodule.
    There is a small left pleural effusion. A nodule is seen in the lung. ...

In: a report. Out: the report after a line of the findings that it asserts, each with its sides, and the way
back. Most words of a report are the same for every patient. A model lowers its loss by learning those first,
long before it uses the image. The words of an outline can be predicted from the image alone.
"""

from ..metrics.findings import FINDINGS, locate

OUTLINE = "Findings: "  # how every outline starts


def with_outline(report: str) -> str:
    """The report after its outline line, which names the findings in the order of FINDINGS, or "none"."""
    sides = locate(report)
    named = [" ".join([name, *sorted(sides[name])]) for name in FINDINGS if name in sides]
    return f"{OUTLINE}{', '.join(named) or 'none'}.\n{report}"


def outline_line(text: str) -> str:
    """The outline line alone, newline included, of a text made by with_outline."""
    return text[: text.index("\n") + 1]


def split_outline(text: str) -> tuple[str, str]:
    """Generated text -> (outline without "Findings: ", or "" if there is none; report)."""
    if not text.lstrip().startswith(OUTLINE):
        return "", text.strip()
    line, _, report = text.strip().partition("\n")
    return line.removeprefix(OUTLINE), report.strip()


def read_outline(line: str) -> dict[str, frozenset[str]]:
    """An outline from split_outline -> {finding: its sides}. Words that name no finding are ignored."""
    findings = {}
    for name in line.strip().rstrip(".").split(", "):
        sides = set()
        while name.endswith((" left", " right")):
            name, _, side = name.rpartition(" ")
            sides.add(side)
        if name in FINDINGS:
            findings[name] = frozenset(sides)
    return findings

"""The text of a report: the sections that the model learns to write, and what to do with redacted words.

In: a report's sections by name. Out: one paragraph. Open-i replaced everything that might identify a person
by XXXX (and much that would not: "x-XXXX"), MIMIC-CXR by ___. The field keeps these placeholders, and so does
this project by default.
"""

import re
from collections.abc import Mapping

SECTIONS = ("findings", "impression", "both")

_PLACEHOLDER = re.compile(r"(?:\b[xX]-)?(?:X{4,}|_{3,})(?:'(?:s|t)\b)?")
_CLEANUPS = (  # in this order: what was around a placeholder, then punctuation left loose or doubled
    (r"\(\W*\)|<\W*>", " "),  # empty brackets
    (r"(?<!\w)[-/'](?=\s|[.,;:]|$)|(?<!\S)[-/'](?=\w)|(?<=\w)[-/](?=\s|[.,;:]|$)", " "),  # half a compound
    (r"\s+(?=[.,;:)])", ""),  # "seen ." -> "seen."
    (r"(?<=\() +", ""),
    (r"[,;:]+(?=[.;:])", ""),  # ", ." -> "."
    (r"([.,;:])(?:\s*\1)+", r"\1"),  # ". ." -> "."
    (r"(?<=\.)[,;:]", ""),
    (r"^[\s.,;:]+", ""),  # the rest of a first sentence that was nothing but placeholders
    (r"\s+", " "),
)


def collapse_whitespace(text: str | None) -> str:
    """Each run of white space becomes one space, at the ends nothing. None becomes ""."""
    return " ".join((text or "").split())


def compose_report(sections: Mapping[str, str | None], which: str, drop_redacted: bool = False) -> str:
    """The chosen sections ("findings", "impression", or "both" in this order) as one paragraph; "" if the
    report has none of them."""
    names = ("findings", "impression") if which == "both" else (which,)
    text = " ".join(filter(None, (collapse_whitespace(sections.get(name)) for name in names)))
    return remove_placeholders(text) if drop_redacted else text


def remove_placeholders(text: str) -> str:
    """The text without placeholders and without the loose punctuation that they leave.

    Grammar is not repaired: "There are no XXXX of effusion" becomes "There are no of effusion".
    """
    if not _PLACEHOLDER.search(text):
        return text
    text = _PLACEHOLDER.sub(" ", text)
    for pattern, replacement in _CLEANUPS:
        text = re.sub(pattern, replacement, text)
    return text.strip()

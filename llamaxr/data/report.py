"""The text of a report: which sections a model learns to write, and what became of redacted words.

In: a report's sections by name. Out: one paragraph. Open-i replaced whatever might name a person by XXXX
(and a good deal that doesn't: "x-XXXX"), MIMIC-CXR by ___; the field keeps them, and so do we by default.
"""

import re
from collections.abc import Mapping

SECTIONS = ("findings", "impression", "both")

_REDACTED = re.compile(r"(?:\b[xX]-)?(?:X{4,}|_{3,})(?:'(?:s|t)\b)?")
_MENDS = (  # in this order: what stood around a placeholder, then what stands too close or twice
    (r"\(\W*\)|<\W*>", " "),  # empty brackets
    (r"(?<!\w)[-/'](?=\s|[.,;:]|$)|(?<!\S)[-/'](?=\w)|(?<=\w)[-/](?=\s|[.,;:]|$)", " "),  # half a compound
    (r"\s+(?=[.,;:)])", ""),  # "seen ." -> "seen."
    (r"(?<=\() +", ""),
    (r"[,;:]+(?=[.;:])", ""),  # ", ." -> "."
    (r"([.,;:])(?:\s*\1)+", r"\1"),  # ". ." -> "."
    (r"(?<=\.)[,;:]", ""),
    (r"^[\s.,;:]+", ""),  # a first sentence that was nothing else
    (r"\s+", " "),
)


def fold(text: str | None) -> str:
    """White space of any kind and length becomes one space; None becomes nothing."""
    return " ".join((text or "").split())


def compose(sections: Mapping[str, str | None], which: str, drop_redacted: bool = False) -> str:
    """The sections a model is to write ("findings", "impression" or "both", in this order) as one paragraph;
    empty where the report has none of them."""
    wanted = ("findings", "impression") if which == "both" else (which,)
    text = " ".join(filter(None, (fold(sections.get(name)) for name in wanted)))
    return without_redactions(text) if drop_redacted else text


def without_redactions(text: str) -> str:
    """The text without its placeholders and without the stray marks they leave.

    Words are not mended: "There are no XXXX of effusion" becomes "There are no of effusion".
    """
    if not _REDACTED.search(text):
        return text
    text = _REDACTED.sub(" ", text)
    for pattern, instead in _MENDS:
        text = re.sub(pattern, instead, text)
    return text.strip()

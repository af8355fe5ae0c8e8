"""A generated report beside the true one, for a terminal: wrapped to its width, with what changed.

What changed since the report of the last validation is marked as git's word diff marks it: new words green
and gone ones red on a terminal, {+new+} and [-gone-] anywhere else. Reports with little in common are not
compared: marks in every line would hide what they say.
"""

import difflib
import os
import shutil
import sys

from ..files.text import printable

HEAD = 13  # the width of "  generated  "
COLOURS = {"+": "\x1b[32m{}\x1b[0m", "-": "\x1b[9;31m{}\x1b[0m"}  # green; red and struck out
MARKS = {"+": "{{+{}+}}", "-": "[-{}-]"}
ALIKE = 0.5  # of all words: below it nothing is marked


def as_text(name: str, true: str, generated: str, before: str | None) -> str:
    """The lines of one study. before: what was generated at the last validation, None if nothing was."""
    width = shutil.get_terminal_size((100, 24)).columns
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    now = "unchanged" if generated == before else "generated"
    rows = [("true", [(word, "") for word in true.split()]), (now, word_changes(before, generated))]
    lines = [printable(f"  study {name}")]
    for head, words in rows:
        lines += _wrapped(f"  {head:{HEAD - 2}s}", words, width, COLOURS if coloured else MARKS)
    return "\n".join(lines)


def word_changes(before: str | None, after: str) -> list[tuple[str, str]]:
    """The words of `after`, each with "" or, if it is new, "+"; and those that are gone, with "-"."""
    old, new = (before or "").split(), after.split()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < ALIKE:
        return [(word, "") for word in new]
    words = []
    for kind, i, j, m, n in matcher.get_opcodes():
        words += [(word, "-") for word in old[i:j] if kind != "equal"]
        words += [(word, "" if kind == "equal" else "+") for word in new[m:n]]
    return words


def _wrapped(head: str, words: list[tuple[str, str]], width: int, styles: dict[str, str]) -> list[str]:
    """The words in lines of at most `width` letters behind a head. A colour takes no room, a mark does."""
    lines, line, used = [], head, len(head)
    for word, mark in words:
        word = printable(word)
        styled = styles[mark].format(word) if mark else word
        length = len(word) if styles is COLOURS else len(styled)
        if used + length + 1 > width and used > HEAD:
            lines.append(line)
            line, used = " " * HEAD, HEAD
        line, used = f"{line}{styled} ", used + length + 1
    return [line.rstrip() for line in [*lines, line]]

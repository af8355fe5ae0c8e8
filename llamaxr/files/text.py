"""Text and JSON out of files from anywhere: the one place that opens them.

In: a path, and the most bytes that such a file may have. Out: its bytes, its text, or its values. Pipes and
devices, which might never end, are refused, and so is JSON that is read differently by different programs:
a name twice in one object, NaN, numbers beyond 64 bits, nesting without end. A byte order mark is skipped.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError

MAX_JSON = 2**24  # bytes; R2Gen's annotation.json has 2 MB. In memory JSON takes up to 30 times its bytes
MAX_LINES = 2**20  # of a JSONL file; a run has at most 10**6 steps, MIMIC-CXR 2 * 10**5 studies
MAX_DEPTH = 100  # lists and objects within each other; ten is much
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_bytes(path: Path, max_bytes: int, remedy: str = "fetch it again") -> bytes:
    """All bytes of a regular file. UserError, which ends with the remedy, where there is none, it cannot be
    read, or has more than max_bytes."""
    try:
        if not os.path.isfile(path):  # Path.is_file raises where the name is too long for a file
            raise UserError(f"{path} {'is no file' if os.path.exists(path) else 'is missing'}; {remedy}")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise UserError(f"{path} has more than {max_bytes} bytes, too many for such a file; {remedy}")
            return file.read(size)  # not max_bytes: as many would be allocated at once
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None


def read_text(path: Path, max_bytes: int, remedy: str = "fetch it again", errors: str = "strict") -> str:
    """The text of a file in UTF-8, without a byte order mark. errors: "replace" reads bytes that are not
    UTF-8 as U+FFFD. UserError as `read_bytes`, and for bytes that are not UTF-8."""
    try:
        return read_bytes(path, max_bytes, remedy).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged (byte {error.start} is not UTF-8); {remedy}") from None


def read_json(path: Path, max_bytes: int = MAX_JSON, remedy: str = "fetch it again") -> dict:
    """The object in a JSON file. UserError as `read_text`, and for any other content."""
    try:
        value = parse_json(read_text(path, max_bytes, remedy))
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
        return value
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None


def read_json_lines(path: Path, max_bytes: int = MAX_JSON) -> Iterator[tuple[int, object]]:
    """The values of a JSONL file, each with the number of its line, without empty lines. UserError as
    `read_text`, for over MAX_LINES lines, and for a line that is no JSON, which it names."""
    remedy = "fix the file"
    text = read_text(path, max_bytes, remedy)
    if text.count("\n") > MAX_LINES:
        raise UserError(f"{path} has over {MAX_LINES:,} lines; {remedy}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON ({error}); {remedy}") from None


def parse_json(text: str | bytes) -> object:
    """A JSON text as plain values; halves of surrogate pairs become U+FFFD. ValueError, of one line, for
    what is no JSON, and for what is ambiguous or absurd."""
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    depth, level = 0, _containers([value])
    while level:
        if (depth := depth + 1) > MAX_DEPTH:
            raise ValueError("nested too deep")
        level = _containers(child for v in level for child in (v.values() if isinstance(v, dict) else v))
    if SURROGATE.search(text):
        plain = json.dumps(value, ensure_ascii=False)
        value = _DECODER.decode(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return value


@contextlib.contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` once that has gone well."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def printable(text: str) -> str:
    """The text, with characters that could move a cursor or cannot be encoded escaped: \\x1b, \\udcff.
    Letters of every script stay, and line breaks, tabs and spaces of every kind."""
    if text.isprintable():
        return text
    keep = lambda c: c.isprintable() or c in "\n\t" or (c.isspace() and c > "\x9f")
    return "".join(c if keep(c) else c.encode("unicode_escape").decode() for c in text)


def short(value: object, length: int = 100) -> str:
    """What a file holds, as part of a message: one line, safe to print, and not long."""
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= length else f"{text[:length]}..."


def _containers(values: Iterable) -> list[dict | list]:
    return [value for value in values if isinstance(value, (dict, list))]


def _object(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, _ in pairs if value.pop(name, pairs) is pairs)
        raise ValueError(f"{short(twice, 40)!r} is there twice")
    return value


def _number(text: str) -> float:
    if len(text) > 40:
        raise ValueError(f"a number of {len(text)} digits")
    value = int(text) if text.lstrip("-").isdigit() else float(text)
    if not math.isfinite(value) or isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{text} is no number that can be used")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_number, parse_float=_number, parse_int=_number
)

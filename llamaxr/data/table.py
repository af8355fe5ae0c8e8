"""Your own data: a CSV file with the columns id, frontal, lateral, report, split.

    id,frontal,lateral,report,split
    a1,images/a1.png,images/a1_side.png,"The heart is normal in size.",train

Images are named relative to the folder of the CSV file and must be inside it. One of frontal and lateral may
be empty. split is train, val or test. Other columns are ignored.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ..errors import UserError
from ..files.text import short
from ..radiograph import VIEWS
from .report import collapse_whitespace
from .study import SPLITS, Study, path_inside, validate_studies

COLUMNS = ("id", "frontal", "lateral", "report", "split")
MAX_LINE, MAX_TABLE = 2**20, 2**30  # characters; the largest table known here has 2**26
MAX_ROWS = 2**19  # MIMIC-CXR's tables have 377,110
MAX_GROWTH, LEAST_TABLE = 50, 2**20  # tables unpack to ten times their size; a small one may have 1 MiB


def load_studies(path: Path | None, on_missing: str, warn: Callable[[str], None]) -> list[Study]:
    """The studies of a CSV file, in its order. on_missing, warn: see `validate_studies`.

    Raises UserError for a file that is no such CSV, a row without the needed values, and an image outside of
    the file's folder.
    """
    if path is None or not path.is_file():
        raise UserError(f"--data csv needs --root FILE, a CSV with {','.join(COLUMNS)}; {path} is no file")
    studies = []
    for line, row in read_rows(path, COLUMNS):
        where = f"{path}, line {line}"
        if not row["id"] or row["split"] not in SPLITS or not (row["frontal"] or row["lateral"]):
            raise UserError(
                f"{where}: a study needs an id, a split ({', '.join(SPLITS)}) and at least one image; "
                f"this row has id {short(row['id'], 40)!r}, split {short(row['split'], 40)!r}; correct the "
                "file"
            )
        frontal, lateral = (
            path_inside(path.parent, row[view], where) if row[view] else None for view in VIEWS
        )
        studies.append(Study(row["id"], frontal, lateral, collapse_whitespace(row["report"]), row["split"]))
    return validate_studies(studies, path, on_missing, warn)


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a .csv or .csv.gz file as (line number, {column: stripped text}), for these columns (or
    all). UserError if a column is missing or there twice, or the file is no CSV in UTF-8."""
    if not path.is_file():  # a pipe too: reading it could block for ever
        raise UserError(f"{path} is missing; add it")
    try:
        packed, size = path.suffix == ".gz", path.stat().st_size
        max_chars = min(MAX_TABLE, max(LEAST_TABLE, MAX_GROWTH * size)) if packed else MAX_TABLE
        open_text = gzip.open if packed else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(_lines(file, max_chars), strict=True)
            header = reader.fieldnames or []
            columns = columns or [name for name in header if name]
            if wrong := [name for name in columns if header.count(name) != 1]:
                fault = "two columns" if wrong[0] in header else "no column"
                raise UserError(
                    f"{path} has {fault} {short(', '.join(wrong))}; its first line must name "
                    f"{short(','.join(columns))}, and is {short(','.join(header))!r}"
                )
            for number, row in enumerate(reader):
                if number == MAX_ROWS:
                    raise csv.Error(f"over {MAX_ROWS:,} rows")
                if None in row or None in row.values():  # more or fewer cells than the header
                    raise UserError(
                        f"{path}, line {reader.line_num}: not as many cells as columns; correct the file"
                    )
                yield reader.line_num, {name: row[name].strip() for name in columns}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        reason = short(error)
        raise UserError(f"{path} cannot be read as CSV in UTF-8 ({reason}); export it again") from None


def _lines(file: TextIO, max_chars: int) -> Iterator[str]:
    """The lines of a file, which may be packed: without bounds a few bytes become a line, or a table, without
    end. max_chars: characters in all."""
    n_read = 0
    while line := file.readline(MAX_LINE + 1):
        n_read += len(line)
        if len(line) > MAX_LINE or n_read > max_chars:
            raise csv.Error("a line or the whole is too long for a table")
        yield line

"""Anyone's own pairs: a CSV file with the columns id, frontal, lateral, report, split.

    id,frontal,lateral,report,split
    a1,images/a1.png,images/a1_side.png,"The heart is normal in size.",train

Images are named relative to the file's folder and lie inside of it. frontal or lateral may be empty, not
both. split is train, val or test. Further columns are not looked at.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import UserError
from .report import fold
from .study import SPLITS, Study, inside, whole

COLUMNS = ("id", "frontal", "lateral", "report", "split")


def load_studies(path: Path | None, on_missing: str, warn: Callable[[str], None]) -> list[Study]:
    """The studies of a CSV file, in its order. UserError for another file, a row that is no study, an image
    outside of the file's folder, and as `whole` has it."""
    if path is None or not path.is_file():
        raise UserError(f"--data csv needs --root FILE, a .csv with {','.join(COLUMNS)}; {path} is no file")
    studies = []
    for line, row in read_rows(path, COLUMNS):
        where = f"{path}, line {line}"
        if not row["id"] or row["split"] not in SPLITS or not (row["frontal"] or row["lateral"]):
            raise UserError(
                f"{where}: a study needs an id, a split ({', '.join(SPLITS)}) and at least one image; "
                f"this row has id {row['id'][:40]!r}, split {row['split'][:40]!r}; mend it"
            )
        views = [
            inside(path.parent, row[view], where) if row[view] else None for view in ("frontal", "lateral")
        ]
        studies.append(Study(row["id"], *views, fold(row["report"]), row["split"]))
    return whole(studies, path, on_missing, warn)


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file (or .csv.gz) as (line number, {column: stripped text}), for the columns named.
    UserError where a column or the file is missing, or the text is no CSV in UTF-8."""
    try:
        open_text = gzip.open if path.suffix == ".gz" else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise UserError(
                    f"{path} has no column {', '.join(lacking)}; its first line must name "
                    f"{','.join(columns)}, and is {','.join(reader.fieldnames or ())[:100]!r}"
                )
            for row in reader:
                if None in row or None in row.values():  # more or fewer cells than the first line has
                    raise UserError(f"{path}, line {reader.line_num}: not as many cells as columns; mend it")
                yield reader.line_num, {name: row[name].strip() for name in columns}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8 ({error}); export it again") from None

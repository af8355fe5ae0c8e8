"""MIMIC-CXR (Johnson et al. 2019), for users with access to it: MIMIC-CXR-JPG 2.x with the reports beside it.

    mimic-cxr-2.0.0-split.csv[.gz]       dicom_id, study_id, subject_id, split
    mimic-cxr-2.0.0-metadata.csv[.gz]    dicom_id, ..., ViewPosition
    files/p10/p10000032/s50414267/*.jpg  the images of a study
    files/p10/p10000032/s50414267.txt    its report, from mimic-cxr-reports.zip unpacked here

The split is the official one. A report's findings are the text under its header FINDINGS. About a third of
the reports have none, and their studies are left out. The frontal view is PA or else AP, the lateral LATERAL
or else LL.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..files.text import read_text, short
from .report import collapse_whitespace, compose_report
from .study import Study, validate_studies
from .table import read_rows

SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
FRONTAL, LATERAL = ("PA", "AP"), ("LATERAL", "LL")  # ViewPosition, the better one first
MAX_REPORT = 2**18  # bytes

# A header as in the official create_section_files.py: capitals at the start of a line, up to a colon.
_HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]+):", re.MULTILINE)
_SECTION_OF = (("FINDING", "findings"), ("IMPRESSION", "impression"), ("CONCLUSION", "impression"))


@dataclass
class _Record:
    """What the two tables have about a study."""

    subject: str
    split: str
    images: dict[str, str] = field(default_factory=dict)  # ViewPosition -> the first dicom_id of that view

    def image(self, positions: tuple[str, ...]) -> str | None:
        return next((self.images[p] for p in positions if p in self.images), None)


def load_studies(
    root: Path | None,
    warn: Callable[[str], None],
    *,
    sections: str = "findings",
    drop_redacted: bool = False,
    on_missing: str = "refuse",
) -> list[Study]:
    """The studies with a frontal or lateral image and the chosen sections, by subject and study number.

    warn: is called with the number of studies without such a section or view, and as in `validate_studies`.
    Raises UserError for another folder, and as `validate_studies` does.
    """
    if root is None or not root.is_dir():
        raise UserError("--data mimic_cxr needs --root DIR, the folder of MIMIC-CXR-JPG 2.x with its reports")
    records = _read_records(root)
    report_folders = [f for f in (root / "files", root / "mimic-cxr-reports" / "files") if f.is_dir()]
    studies, bad_reports, n_without_text, n_without_view = [], [], 0, 0
    for id, record in sorted(records.items(), key=lambda item: (int(item[1].subject), int(item[0]))):
        frontal, lateral = record.image(FRONTAL), record.image(LATERAL)
        if frontal is None and lateral is None:
            n_without_view += 1
            continue
        name = Path(f"p{record.subject[:2]}", f"p{record.subject}", f"s{id}")
        path = next((p for folder in report_folders if (p := folder / f"{name}.txt").is_file()), None)
        if path is None or path.stat().st_size > MAX_REPORT:
            bad_reports.append(f"files/{name}.txt")
            continue
        report = read_text(path, MAX_REPORT, errors="replace")
        text = compose_report(read_sections(report), sections, drop_redacted)
        if not text:
            n_without_text += 1
            continue
        views = [root / "files" / name / f"{dicom}.jpg" if dicom else None for dicom in (frontal, lateral)]
        studies.append(Study(f"s{id}", *views, text, record.split))
    if n_without_text or n_without_view:
        warn(
            f"{root}: of {len(records)} studies, {n_without_text} have no text for --sections {sections} and "
            f"{n_without_view} have no frontal or lateral image; they are left out"
        )
    return validate_studies(studies, root, on_missing, warn, bad_reports)


def read_sections(report: str) -> dict[str, str]:
    """A report's findings and impression, each up to the next header. If a section is there twice, the last
    one counts, as in the official parser. A header of both ("FINDINGS AND IMPRESSION") counts as findings."""
    headers = list(_HEADER.finditer(report))
    ends = [header.start() for header in headers[1:]] + [len(report)]
    sections = {}
    for header, end in zip(headers, ends, strict=False):
        for word, name in _SECTION_OF:
            if header[1].strip().startswith(word):
                sections[name] = collapse_whitespace(report[header.end() : end])
    return sections


def _read_records(root: Path) -> dict[str, _Record]:
    """study_id -> its record. UserError if a table is missing, or has an id or split of another form."""
    records: dict[str, _Record] = {}
    path = _find_table(root, "split")
    for line, row in read_rows(path, ("dicom_id", "study_id", "subject_id", "split")):
        ids = row["study_id"], row["subject_id"]
        if not all(re.fullmatch(r"[0-9]{1,18}", i) for i in ids) or row["split"] not in SPLIT_NAMES:
            raise UserError(f"{path}, line {line}: no valid study, subject and split; download it again")
        records.setdefault(row["study_id"], _Record(row["subject_id"], SPLIT_NAMES[row["split"]]))
    path = _find_table(root, "metadata")
    for line, row in read_rows(path, ("dicom_id", "study_id", "ViewPosition")):
        if not re.fullmatch(r"[0-9A-Za-z-]{1,200}", row["dicom_id"]):  # it becomes a file name
            name = short(row["dicom_id"], 60)
            raise UserError(f"{path}, line {line}: dicom_id is {name!r}; download it again")
        if row["study_id"] in records:
            records[row["study_id"]].images.setdefault(row["ViewPosition"].upper(), row["dicom_id"])
    return records


def _find_table(root: Path, name: str) -> Path:
    """The newest version of a table, unpacked or not."""
    pattern = f"mimic-cxr-2.*-{name}.csv"
    found = sorted(root.glob(pattern)) or sorted(root.glob(f"{pattern}.gz"))
    if not found:
        raise UserError(
            f"{root} lacks mimic-cxr-2.0.0-{name}.csv[.gz]; --root must be MIMIC-CXR-JPG's folder"
        )
    return found[-1]

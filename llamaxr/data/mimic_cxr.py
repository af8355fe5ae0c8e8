"""MIMIC-CXR (Johnson et al. 2019), for who may have it: MIMIC-CXR-JPG 2.x and the reports beside it.

    mimic-cxr-2.0.0-split.csv[.gz]       dicom_id, study_id, subject_id, split
    mimic-cxr-2.0.0-metadata.csv[.gz]    dicom_id, ..., ViewPosition
    files/p10/p10000032/s50414267/*.jpg  the images of a study
    files/p10/p10000032/s50414267.txt    its report, from mimic-cxr-reports.zip unpacked here

The split is the official one. A report's findings are what stands under its header FINDINGS; about a third of
the reports have none, and their studies are left out. Frontal is PA, or else AP; lateral is LATERAL or LL.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .report import compose, fold
from .study import Study, whole
from .table import read_rows

SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
FRONTAL, LATERAL = ("PA", "AP"), ("LATERAL", "LL")  # ViewPosition, the better one first
MAX_REPORT = 2**18  # bytes

# A header as in the official create_section_files.py: capitals at the start of a line, up to a colon.
_HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]+):", re.MULTILINE)
_NAMES = (("FINDING", "findings"), ("IMPRESSION", "impression"), ("CONCLUSION", "impression"))


@dataclass
class _Visit:
    subject: str
    split: str
    views: dict[str, str] = field(default_factory=dict)  # ViewPosition -> dicom_id, the first of each


def load_studies(
    root: Path | None,
    warn: Callable[[str], None],
    *,
    sections: str = "findings",
    drop_redacted: bool = False,
    on_missing: str = "refuse",
) -> list[Study]:
    """The studies with a frontal or lateral image and the sections asked for, by subject and study number.

    warn is told how many have no such section or view. UserError for another folder, and as `whole` has it.
    """
    if root is None or not root.is_dir():
        raise UserError("--data mimic_cxr needs --root DIR, the folder of MIMIC-CXR-JPG 2.x with its reports")
    visits = _read_visits(root)
    homes = [home for home in (root / "files", root / "mimic-cxr-reports" / "files") if home.is_dir()]
    studies, lost, mute, unseen = [], [], 0, 0
    for id, visit in sorted(visits.items(), key=lambda item: (int(item[1].subject), int(item[0]))):
        frontal, lateral = (
            next((visit.views[p] for p in positions if p in visit.views), None)
            for positions in (FRONTAL, LATERAL)
        )
        if frontal is None and lateral is None:
            unseen += 1
            continue
        place = Path(f"p{visit.subject[:2]}", f"p{visit.subject}", f"s{id}")
        path = next((p for home in homes if (p := home / f"{place}.txt").is_file()), None)
        if path is None or path.stat().st_size > MAX_REPORT:
            lost.append(f"files/{place}.txt")
            continue
        text = compose(read_sections(path.read_text("utf-8", "replace")), sections, drop_redacted)
        if not text:
            mute += 1
            continue
        views = [root / "files" / place / f"{dicom}.jpg" if dicom else None for dicom in (frontal, lateral)]
        studies.append(Study(f"s{id}", *views, text, visit.split))
    if mute or unseen:
        warn(
            f"{root}: of {len(visits)} studies {mute} have no text under --sections {sections} and {unseen} "
            "no frontal or lateral image; they are no part of the data set"
        )
    return whole(studies, root, on_missing, warn, lost)


def read_sections(report: str) -> dict[str, str]:
    """A report's findings and impression, each up to the next header; of several the last, as the official
    parser has it. A header of both ("FINDINGS AND IMPRESSION") counts as findings."""
    headers = list(_HEADER.finditer(report))
    ends = [h.start() for h in headers] + [len(report)]
    sections = {}
    for header, end in zip(headers, ends[1:], strict=True):
        for word, name in _NAMES:
            if header[1].strip().startswith(word):
                sections[name] = fold(report[header.end() : end])
    return sections


def _read_visits(root: Path) -> dict[str, _Visit]:
    """study_id -> its subject, split and images. UserError where a table is missing or names no such id."""
    visits: dict[str, _Visit] = {}
    path = _table(root, "split")
    for line, row in read_rows(path, ("dicom_id", "study_id", "subject_id", "split")):
        ids = row["study_id"] + row["subject_id"]
        if not (ids.isascii() and ids.isdecimal()) or row["split"] not in SPLIT_NAMES:
            raise UserError(f"{path}, line {line}: no study, subject and split; fetch it again")
        visits.setdefault(row["study_id"], _Visit(row["subject_id"], SPLIT_NAMES[row["split"]]))
    path = _table(root, "metadata")
    for line, row in read_rows(path, ("dicom_id", "study_id", "ViewPosition")):
        if not re.fullmatch(r"[0-9A-Za-z-]+", row["dicom_id"]):  # it becomes a file name
            raise UserError(f"{path}, line {line}: dicom_id is {row['dicom_id'][:60]!r}; fetch it again")
        if row["study_id"] in visits:
            visits[row["study_id"]].views.setdefault(row["ViewPosition"].upper(), row["dicom_id"])
    return visits


def _table(root: Path, name: str) -> Path:
    found = sorted(root.glob(f"mimic-cxr-2.*-{name}.csv")) or sorted(
        root.glob(f"mimic-cxr-2.*-{name}.csv.gz")
    )
    if not found:
        raise UserError(f"{root} lacks mimic-cxr-2.0.0-{name}.csv[.gz]; --root is MIMIC-CXR-JPG's own folder")
    return found[-1]

"""IU X-ray (Demner-Fushman et al. 2016) from any of its public forms: the same studies, texts and split.

In: a folder in R2Gen's, Open-i's or Kaggle's form (iu_layouts.py recognises it); `fetch` downloads Open-i's.
Out: studies. The default split is R2Gen's (Chen et al. 2020): 2069 / 296 / 590 studies, whose report is
Open-i's FINDINGS section. These are exactly the studies with findings and at least two images. Their ids and
splits, without any text, are in r2gen_split.json; R2Gen's form has its own list.

Views: R2Gen's order, Kaggle's projection column, Open-i's order. Impressions and index terms are in Open-i's
reports (even if those are beside R2Gen's files) and in Kaggle's table only.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ..files.archive import unpack
from ..files.download import download
from ..files.text import read_json
from . import iu_layouts
from .iu_layouts import Report, report_number
from .report import compose_report
from .study import Study, validate_studies

R2GEN_SPLIT = Path(__file__).parent / "r2gen_split.json"  # {split: [ids]}
SPLIT_BY = ("r2gen", "patient")
SHARES = (("train", 0.7), ("val", 0.8), ("test", 1.0))  # R2Gen's 7 : 1 : 2, as upper bounds
OPENI = "https://openi.nlm.nih.gov/imgs/collections"


def load_studies(
    root: Path,
    warn: Callable[[str], None],
    *,
    split_by: str = "r2gen",
    split_seed: int = 0,
    sections: str = "findings",
    drop_redacted: bool = False,
    on_missing: str = "refuse",
) -> list[Study]:
    """The studies of a folder.

    split_by: "r2gen" gives that benchmark's studies in its order. "patient" gives all studies with findings
    and an image, by number; a hash of number and split_seed chooses the split, so a study keeps its split
    whatever else is missing. IU X-ray has one study per patient.
    sections, drop_redacted: the text of a report (report.py). on_missing, warn: see `validate_studies`.
    Raises UserError for a folder in no known form, and for damaged or missing files in it.
    """
    layout = iu_layouts.find_layout(root)
    bad_reports: list[str] = []
    if layout == "r2gen":
        if (root / iu_layouts.SIMULATION).is_file():
            warn(f"the images in {root} are a simulation; results on them say nothing about patients")
        reports = iu_layouts.read_r2gen(root)
        if iu_layouts.has_openi_reports(root):
            bad_reports = add_openi_sections(reports, root)
        elif sections != "findings":
            raise UserError(
                f"{root} is R2Gen's form, which has findings only: --sections {sections} needs Open-i's "
                f"reports in the same folder ({OPENI}/{iu_layouts.XML_ARCHIVE})"
            )
    else:
        if layout == "openi":
            reports, bad_reports = iu_layouts.read_openi(root)
        else:
            reports = iu_layouts.read_kaggle(root)
        reports, duplicates = drop_duplicates(reports)
        bad_reports += duplicates
        if split_by == "r2gen":
            reports, absent = select_r2gen(reports)
            bad_reports += absent
    if split_by == "patient":
        reports = [r for r in reports if r.sections.get("findings") and (r.frontal or r.lateral)]
        reports.sort(key=lambda report: report_number(report.uid))
        names = {id.split("_")[0]: id for ids in read_json(R2GEN_SPLIT).values() for id in ids}
        for report in reports:  # R2Gen's id where it has one: a study has the same id in all forms
            report.id = report.id or names.get(report.uid, report.uid)
            report.split = patient_split(report.uid, split_seed)
    studies = []
    for r in reports:
        text = compose_report(r.sections, sections, drop_redacted)
        studies.append(Study(r.id, r.frontal, r.lateral, text, r.split, terms=r.terms))
    return validate_studies(studies, root, on_missing, warn, bad_reports)


def patient_split(uid: str, seed: int) -> str:
    """The split of a patient: a hash of number and seed, as a fraction of the largest, against SHARES."""
    fraction = int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:6]) / 2**48
    return next(split for split, bound in SHARES if fraction < bound)


def drop_duplicates(reports: list[Report]) -> tuple[list[Report], list[str]]:
    """The first report of each number; and the numbers of the others."""
    first: dict[str, Report] = {}
    duplicates = [f"{r.uid}, a duplicate" for r in reports if first.setdefault(r.uid, r) is not r]
    return list(first.values()), duplicates


def select_r2gen(reports: list[Report]) -> tuple[list[Report], list[str]]:
    """R2Gen's studies in R2Gen's order, with its ids and splits; and which of them are absent."""
    by_uid, selected, absent = {r.uid: r for r in reports}, [], []
    for split, ids in read_json(R2GEN_SPLIT).items():
        for id in ids:
            uid = id.split("_")[0]
            if uid in by_uid:
                by_uid[uid].id, by_uid[uid].split = id, split
                selected.append(by_uid[uid])
            else:
                absent.append(f"{uid} of R2Gen's {split} split")
    return selected, absent


def add_openi_sections(reports: list[Report], root: Path) -> list[str]:
    """Add the impressions and terms of Open-i's reports in the same folder to R2Gen's reports, in place.
    Returns the names of damaged files."""
    openi, damaged = iu_layouts.read_openi(root)
    by_uid = {report.uid: report for report in openi}
    for report in reports:
        if report.uid in by_uid:
            report.terms = by_uid[report.uid].terms
            report.sections["impression"] = by_uid[report.uid].sections.get("impression", "")
    return damaged


def fetch(
    folder: Path,
    progress: Callable[[str, int, int | None], None] | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Path:
    """Download Open-i's two archives to the folder and unpack them there; returns the folder. Files that are
    there already are not downloaded again, and an interrupted download resumes.

    progress(what, done, total) gets bytes, warn a line with the hash of a first download. UserError if a
    download fails, with how to do it by hand.
    """
    for archive, unpacked, suffix in (
        (iu_layouts.XML_ARCHIVE, iu_layouts.XML_FOLDER, ".xml"),
        (f"{iu_layouts.PNG_FOLDER}.tgz", iu_layouts.PNG_FOLDER, ".png"),
    ):
        if not (folder / unpacked).is_dir():
            download(f"{OPENI}/{archive}", folder / archive, progress, warn=warn)
            unpack(folder / archive, folder / unpacked, suffix, progress)
    return folder

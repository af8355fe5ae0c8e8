"""IU X-ray (Demner-Fushman et al. 2016) from any of its public forms: the same studies, texts and split.

In: a folder in R2Gen's, Open-i's or Kaggle's form, recognised by itself (iu_layouts.py), or none, and
Open-i's archives are downloaded (`fetch`). Out: studies. Whatever the form, the split is R2Gen's (Chen et al.
2020): 2069 / 296 / 590 studies whose report is Open-i's FINDINGS section, which are exactly those with
findings and two images or more. Its ids and splits, facts without any text, lie in r2gen_split.json; a folder
in R2Gen's form brings its own list.

Views: R2Gen's order, Kaggle's projection column, or for Open-i's form what views.py finds. Only Open-i's own
reports (beside R2Gen's form, if they lie there) and Kaggle's table know impressions and indexed terms.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from . import iu_layouts
from ..files.download import download, unpack
from .iu_layouts import Report, number
from .report import compose
from .study import SPLITS, Study, whole

SPLIT_LIST = Path(__file__).parent / "r2gen_split.json"
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

    split_by: "r2gen" gives that benchmark's studies in its order; "patient" all studies with findings and an
    image, by number, each dealt to a split by a hash of its number and split_seed, so that a study stays
    where it is whatever else is missing. A report number is a patient here: IU X-ray has one study of each.
    sections, drop_redacted: what of a report is its text (report.py). on_missing, warn: see `whole`.
    Raises UserError for a folder in no known form, and for what is damaged or missing in it.
    """
    layout = iu_layouts.layout(root)
    if layout == "r2gen":
        reports, lost = iu_layouts.read_r2gen(root), []
        if iu_layouts.has_openi_reports(root):
            lost = add_openi(reports, root)
        elif sections != "findings":
            raise UserError(
                f"{root} is R2Gen's form, which has findings only: --sections {sections} needs Open-i's "
                f"reports in the same folder ({OPENI}/{iu_layouts.XML_ARCHIVE})"
            )
    else:
        reports, lost = (
            iu_layouts.read_openi(root) if layout == "openi" else (iu_layouts.read_kaggle(root), [])
        )
        reports, lost = once(reports, lost)
        if split_by == "r2gen":
            reports, absent = r2gen_studies(reports)
            lost = lost + absent
    if split_by == "patient":
        reports = [r for r in reports if r.sections.get("findings") and (r.frontal or r.lateral)]
        name_by_r2gen(reports)
        reports.sort(key=lambda r: number(r.uid))
        for report in reports:
            report.split = deal(report.uid, split_seed)
    studies = [
        Study(
            r.id, r.frontal, r.lateral, compose(r.sections, sections, drop_redacted), r.split, None, r.terms
        )
        for r in reports
    ]
    return whole(studies, root, on_missing, warn, lost)


def deal(uid: str, seed: int) -> str:
    """The split of a patient: a hash of number and seed, as a share of all hashes."""
    share = int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:6]) / 2**48
    return next(split for split, bound in SHARES if share < bound)


def once(reports: list[Report], lost: list[str]) -> tuple[list[Report], list[str]]:
    """The first report of each number, and `lost` with the others."""
    met: dict[str, Report] = {}
    twice = [r.uid for r in reports if met.setdefault(r.uid, r) is not r]
    return list(met.values()), lost + [f"{uid}, there twice" for uid in twice]


def r2gen_studies(reports: list[Report]) -> tuple[list[Report], list[str]]:
    """R2Gen's studies in R2Gen's order, with its ids and split; and which of them are not there."""
    by_uid, chosen, absent = {r.uid: r for r in reports}, [], []
    for split, ids in json.loads(SPLIT_LIST.read_text()).items():
        assert split in SPLITS
        for id in ids:
            report = by_uid.get(id.split("_")[0])
            if report is None:
                absent.append(f"{id.split('_')[0]} of R2Gen's {split} split")
            else:
                report.id, report.split = id, split
                chosen.append(report)
    return chosen, absent


def name_by_r2gen(reports: list[Report]) -> None:
    """R2Gen's id where R2Gen has the study, else its number, so that a study has one name in all forms."""
    names = {id.split("_")[0]: id for ids in json.loads(SPLIT_LIST.read_text()).values() for id in ids}
    for report in reports:
        report.id = report.id or names.get(report.uid, report.uid)


def add_openi(reports: list[Report], root: Path) -> list[str]:
    """Give R2Gen's reports the impression and terms of Open-i's beside them. Returns what is damaged."""
    beside, damaged = iu_layouts.read_openi_reports(root)
    by_uid = {r.uid: r for r in beside}
    for report in reports:
        if report.uid in by_uid:
            report.terms = by_uid[report.uid].terms
            report.sections["impression"] = by_uid[report.uid].sections.get("impression", "")
    return damaged


def fetch(folder: Path, progress: Callable[[str, int, int | None], None] | None = None) -> Path:
    """Open-i's two archives, downloaded to the folder and unpacked there; gives the folder. What is there
    already is not fetched again, and an interrupted download goes on where it stopped.

    progress(what, done, total) is told of bytes. UserError where it can't be had, with the way by hand.
    """
    for archive, unpacked, suffix in (
        (iu_layouts.XML_ARCHIVE, iu_layouts.XML_FOLDER, ".xml"),
        ("NLMCXR_png.tgz", "NLMCXR_png", ".png"),
    ):
        if not (folder / unpacked).is_dir():
            download(f"{OPENI}/{archive}", folder / archive, progress)
            unpack(folder / archive, folder / unpacked, suffix, progress)
    return folder

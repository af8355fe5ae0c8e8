"""The three public forms of IU X-ray, each read into the same thing: reports by their number, with images.

    R2Gen   annotation.json, images/<id>/0.png (frontal), 1.png (lateral); the findings sections alone
    Open-i  ecgen-radiology/*.xml (or NLMCXR_reports.tgz as it is), NLMCXR_png/*.png; any number of images
    Kaggle  indiana_reports.csv, indiana_projections.csv, images/images_normalized/*.dcm.png

A report's number is Open-i's uId, "CXR2384"; R2Gen writes CXR2384_IM-0942, Kaggle 2384. Files are hostile
until read: sizes are bounded, XML may not declare entities, and no image is taken from outside its folder.
"""

import json
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .report import fold
from .study import SPLITS, inside
from .table import read_rows
from .views import pick_views

ANNOTATION, XML_FOLDER, XML_ARCHIVE = "annotation.json", "ecgen-radiology", "NLMCXR_reports.tgz"
MAX_XML = 2**20  # bytes; the largest of the 3955 has 8967


@dataclass
class Report:
    """One report and its images. uid: "CXR2384". sections: text by lower-case name. terms: the index's, if
    known. id, split: as the layout itself gives them, R2Gen's alone does."""

    uid: str
    sections: dict[str, str]
    terms: tuple[str, ...] | None = None
    frontal: Path | None = None
    lateral: Path | None = None
    id: str | None = None
    split: str | None = None
    images: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # Open-i: name, its descriptors


def layout(root: Path) -> str:
    """ "r2gen", "kaggle" or "openi": what lies in the folder (the first of these, where there are several).
    UserError that names all three where it is none of them."""
    if (root / ANNOTATION).is_file():
        return "r2gen"
    if (root / "indiana_reports.csv").is_file():
        return "kaggle"
    if has_openi_reports(root):
        return "openi"
    raise UserError(
        f"{root} holds no IU X-ray: --root must be R2Gen's folder ({ANNOTATION}, images/), Kaggle's "
        "(indiana_reports.csv, indiana_projections.csv, images/images_normalized/) or Open-i's "
        f"({XML_FOLDER}/, NLMCXR_png/); without --root, Open-i's is downloaded"
    )


def has_openi_reports(root: Path) -> bool:
    """Whether Open-i's reports lie in the folder, unpacked or not."""
    return (root / XML_FOLDER).is_dir() or (root / XML_ARCHIVE).is_file()


def read_r2gen(root: Path) -> list[Report]:
    """R2Gen's annotation.json, in its order. Some copies have a blank key where "test" should stand, so each
    entry's own `split` decides, and the key only where an entry has none."""
    path, reports = root / ANNOTATION, []
    try:
        for key, entries in json.loads(path.read_text(encoding="utf-8")).items():
            for e in entries:
                split = e.get("split", "").strip() or key.strip() or "test"
                names = e["image_path"]
                if split not in SPLITS or not 1 <= len(names) <= 2 or not isinstance(names, list):
                    raise UserError(
                        f"{path}: study {e['id']} has split {split!r} or no 1 to 2 images; mend it"
                    )
                views = [inside(root / "images", name, f"{path}: study {e['id']}") for name in names]
                text = {"findings": fold(e["report"])}
                reports.append(Report(e["id"].split("_")[0], text, None, *views, id=e["id"], split=split))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:100]!r}); fetch it again") from None
    if not reports:
        raise UserError(f"{path} names no study; fetch it again")
    return reports


def read_kaggle(root: Path) -> list[Report]:
    """Kaggle's two tables. The views are its `projection` column: the first Frontal, the first Lateral."""
    path, folder = root / "indiana_projections.csv", root / "images" / "images_normalized"
    views: dict[str, dict[str, Path]] = {}
    for line, row in read_rows(path, ("uid", "filename", "projection")):
        view = row["projection"].lower()
        if view not in ("frontal", "lateral"):
            raise UserError(f"{path}, line {line}: projection is {row['projection'][:40]!r}; fetch it again")
        views.setdefault(row["uid"], {}).setdefault(
            view, inside(folder, row["filename"], f"{path}, line {line}")
        )
    path, reports = root / "indiana_reports.csv", []
    for line, row in read_rows(path, ("uid", "MeSH", "findings", "impression")):
        if not row["uid"].isdigit():
            raise UserError(f"{path}, line {line}: uid is {row['uid'][:40]!r}, no number; fetch it again")
        terms = tuple(fold(term) for term in row["MeSH"].split(";") if fold(term))
        text = {name: fold(row[name]) for name in ("findings", "impression")}
        reports.append(Report(f"CXR{row['uid']}", text, terms, **views.get(row["uid"], {})))
    return reports


def read_openi(root: Path) -> tuple[list[Report], list[str]]:
    """Open-i's reports with the views that `pick_views` finds in them, and which files are damaged."""
    reports, damaged = read_openi_reports(root)
    folder = root / "NLMCXR_png"
    images = {
        r.uid: [(inside(folder, f"{name}.png", r.uid), words) for name, words in r.images] for r in reports
    }
    views = pick_views(images)
    for report in reports:
        report.frontal, report.lateral = views[report.uid]
    return reports, damaged


def read_openi_reports(root: Path) -> tuple[list[Report], list[str]]:
    """The reports of ecgen-radiology/ or else of NLMCXR_reports.tgz, by number, without images' paths; and
    the names of files that are no report."""
    reports, damaged = [], []
    for name, raw in _xml_files(root):
        try:
            reports.append(_parse(raw))
        except (ElementTree.ParseError, ValueError, AttributeError, TypeError):
            damaged.append(name)
    return sorted(reports, key=lambda r: number(r.uid)), damaged


def number(uid: str) -> int:
    """ "CXR2384" -> 2384, and 0 for an id that is no such number."""
    digits = uid.removeprefix("CXR")
    return int(digits) if digits.isdecimal() and len(digits) < 10 else 0


def _xml_files(root: Path) -> Iterator[tuple[str, bytes]]:
    folder, archive = root / XML_FOLDER, root / XML_ARCHIVE
    if folder.is_dir():
        for path in sorted(folder.glob("*.xml")):
            with path.open("rb") as file:
                yield f"{XML_FOLDER}/{path.name}", file.read(MAX_XML + 1)
        return
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isreg() and member.name.endswith(".xml"):
                    yield member.name, tar.extractfile(member).read(MAX_XML + 1)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive} is damaged ({error}); fetch it again") from None


def _parse(raw: bytes) -> Report:
    """One XML file. ValueError where it is none of Open-i's."""
    if len(raw) > MAX_XML or b"<!" in raw.replace(b"<!--", b""):  # entities can grow without end
        raise ValueError("no plain XML report")
    tree = ElementTree.fromstring(raw)
    uid = tree.find("uId").get("id")
    if not re.fullmatch(r"CXR\d{1,9}", uid):
        raise ValueError(f"uId {uid!r}")
    sections = {t.get("Label", "").lower(): fold(t.text) for t in tree.iter("AbstractText")}
    terms = tuple(fold(m.text) for m in tree.iter("major") if fold(m.text))
    images = [
        (i.get("id"), {x.tag: x.text for f in i.iter("globalImageFeatures") for x in f})
        for i in tree.iter("parentImage")
    ]
    if any(not re.fullmatch(r"[\w.-]+", name) for name, _ in images):
        raise ValueError("an image name that is a path")
    return Report(uid, sections, terms, images=images)

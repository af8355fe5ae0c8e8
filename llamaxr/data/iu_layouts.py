"""The three public forms of IU X-ray. Each is read into the same thing: reports with their images.

    R2Gen   annotation.json, images/<id>/0.png (frontal), 1.png (lateral); findings sections only
    Open-i  ecgen-radiology/*.xml (or NLMCXR_reports.tgz as it is), NLMCXR_png/*.png; any number of images
    Kaggle  indiana_reports.csv, indiana_projections.csv, images/images_normalized/*.dcm.png

The number of a report is Open-i's uId, "CXR2384"; R2Gen writes CXR2384_IM-0942, Kaggle 2384. No file is
trusted: sizes are bounded, XML may not declare entities, and images must be inside their folder.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from ..errors import UserError
from ..files.archive import read_members
from ..files.text import read_json, short
from .report import collapse_whitespace
from .study import SPLITS, path_inside
from .table import read_rows

ANNOTATION, XML_FOLDER, XML_ARCHIVE = "annotation.json", "ecgen-radiology", "NLMCXR_reports.tgz"
PNG_FOLDER = "NLMCXR_png"
SIMULATION = "simulation.json"  # in a folder whose images tools/simulate_iu.py drew
MAX_XML = 2**20  # bytes; the largest of the 3955 files has 8967


@dataclass
class Report:
    """One report and its images. uid: "CXR2384". sections: text by lower-case name. terms: index terms, None
    if the form has none. id, split: set by R2Gen's form; iu_xray.py sets them for the other two."""

    uid: str
    sections: dict[str, str]
    terms: tuple[str, ...] | None = None
    frontal: Path | None = None
    lateral: Path | None = None
    id: str | None = None
    split: str | None = None


def find_layout(root: Path) -> str:
    """ "r2gen", "kaggle" or "openi": the first of these that the folder holds. UserError if it holds none."""
    if (root / ANNOTATION).is_file():
        return "r2gen"
    if (root / "indiana_reports.csv").is_file():
        return "kaggle"
    if has_openi_reports(root):
        return "openi"
    raise UserError(
        f"{root} holds no IU X-ray data: --root must be R2Gen's ({ANNOTATION}, images/), Kaggle's "
        "(indiana_reports.csv, indiana_projections.csv, images/images_normalized/) or Open-i's "
        f"({XML_FOLDER}/, {PNG_FOLDER}/); without --root, Open-i's is downloaded"
    )


def has_openi_reports(root: Path) -> bool:
    """Whether the folder has Open-i's reports, as a folder or as an archive."""
    return (root / XML_FOLDER).is_dir() or (root / XML_ARCHIVE).is_file()


def read_r2gen(root: Path) -> list[Report]:
    """The reports of R2Gen's annotation.json, in its order.

    Some copies have a blank key in place of "test". So the `split` of each entry decides, and the key only
    for an entry without one.
    """
    path, reports = root / ANNOTATION, []
    try:
        for key, entries in read_json(path, remedy="download it again").items():
            for entry in entries:
                split = entry.get("split", "").strip() or key.strip() or "test"
                names = entry["image_path"]
                where = f"{path}: study {entry['id']}"
                if split not in SPLITS or not 1 <= len(names) <= 2 or not isinstance(names, list):
                    raise UserError(
                        f"{where} has split {short(split)!r} or not 1 to 2 images; correct the file"
                    )
                views = [path_inside(root / "images", name, where) for name in names]
                sections = {"findings": collapse_whitespace(entry["report"])}
                uid = entry["id"].split("_")[0]
                reports.append(Report(uid, sections, None, *views, id=entry["id"], split=split))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({short(error)!r}); download it again") from None
    if not reports:
        raise UserError(f"{path} lists no study; download it again")
    return reports


def read_kaggle(root: Path) -> list[Report]:
    """The reports of Kaggle's two tables. The column `projection` gives the views: a study's first Frontal
    and its first Lateral."""
    path, folder = root / "indiana_projections.csv", root / "images" / "images_normalized"
    views: dict[str, dict[str, Path]] = {}
    for line, row in read_rows(path, ("uid", "filename", "projection")):
        where, view = f"{path}, line {line}", row["projection"].lower()
        if view not in ("frontal", "lateral"):
            raise UserError(f"{where}: projection is {short(row['projection'], 40)!r}; download it again")
        views.setdefault(row["uid"], {}).setdefault(view, path_inside(folder, row["filename"], where))
    path, reports = root / "indiana_reports.csv", []
    for line, row in read_rows(path, ("uid", "MeSH", "findings", "impression")):
        if not row["uid"].isdigit():
            raise UserError(
                f"{path}, line {line}: uid {short(row['uid'], 40)!r} is no number; download it again"
            )
        terms = tuple(filter(None, map(collapse_whitespace, row["MeSH"].split(";"))))
        sections = {name: collapse_whitespace(row[name]) for name in ("findings", "impression")}
        reports.append(Report(f"CXR{row['uid']}", sections, terms, **views.get(row["uid"], {})))
    return reports


def read_openi(root: Path, archive: Path | None = None) -> tuple[list[Report], list[str]]:
    """Open-i's reports by number, and the names of damaged files; from `archive` if it is given, else from
    ecgen-radiology/ or NLMCXR_reports.tgz in the folder. The XML does not name the views: the first image is
    taken as frontal, the second as lateral."""
    reports, damaged = [], []
    for name, raw in _xml_files(root) if archive is None else _xml_members(archive):
        try:
            reports.append(_parse_xml(raw, root / PNG_FOLDER))
        except (expat.ExpatError, ValueError, LookupError, AttributeError, TypeError):
            damaged.append(name)
    return sorted(reports, key=lambda report: report_number(report.uid)), damaged


def report_number(uid: str) -> int:
    """ "CXR2384" -> 2384; 0 for an id of another form."""
    digits = uid.removeprefix("CXR")
    return int(digits) if digits.isdecimal() and len(digits) < 10 else 0


def _xml_files(root: Path) -> Iterator[tuple[str, bytes]]:
    """The name and content of each XML file; of one over MAX_XML in the folder, one byte more than that."""
    folder, archive = root / XML_FOLDER, root / XML_ARCHIVE
    if folder.is_dir():
        for path in sorted(folder.glob("*.xml")):
            if path.name.startswith("._") or not path.is_file():  # macOS keeps a file's attributes beside it
                continue
            with path.open("rb") as file:
                yield f"{XML_FOLDER}/{path.name}", file.read(MAX_XML + 1)
        return
    yield from _xml_members(archive)


def _xml_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    return ((name, content) for name, content, _ in read_members(archive, ".xml"))


def parse_plain_xml(raw: bytes) -> ElementTree.Element:
    """The root of an XML text that declares no document type, and so no entities: a few of them can expand to
    gigabytes, or name a file to read. ExpatError, ValueError or LookupError for another text.

    The parser itself reports the declaration, so it is found in every encoding.
    """

    def refuse(*_):
        raise ValueError("it declares a document type")

    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(raw, True)
    return builder.close()


def _parse_xml(raw: bytes, images: Path) -> Report:
    """One of Open-i's XML files. images: the folder of the PNG files. ValueError for another file."""
    if len(raw) > MAX_XML:
        raise ValueError("no report is so large")
    tree = parse_plain_xml(raw)
    uid = tree.find("uId").get("id")
    if not re.fullmatch(r"CXR\d{1,9}", uid):
        raise ValueError(f"uId {uid!r}")
    names = [image.get("id") for image in tree.iter("parentImage")]
    if not all(re.fullmatch(r"[\w.-]+", name) for name in names):
        raise ValueError("an image name that is a path")
    sections = {t.get("Label", "").lower(): collapse_whitespace(t.text) for t in tree.iter("AbstractText")}
    terms = tuple(filter(None, (collapse_whitespace(term.text) for term in tree.iter("major"))))
    return Report(uid, sections, terms, *(images / f"{name}.png" for name in names[:2]))

"""A study: the images of one patient's visit and their report.

Every data set, drawn or real, becomes a list of studies. Nothing else in the project depends on where a study
came from. A data set read from files passes through `validate_studies`, which counts what is missing and
either refuses the data set or leaves out the incomplete studies, as the user chose.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import UserError
from ..files.text import short
from ..radiograph import VIEWS

SPLITS = ("train", "val", "test")
ON_MISSING = ("refuse", "skip")


@dataclass(frozen=True)
class Study:
    """One radiograph study with its report.

    id: unique within its data set. frontal, lateral: image files; either may be None, not both.
    report: the reference text, one paragraph. split: train, val or test.
    findings: the true findings (names of metrics/findings.py) of a drawn study; None where only the report is
    known. terms: the published index of the report (Open-i's MeSH "major" terms, such as
    "Pleural Effusion/right/small", or "normal"); None for a data set without one.
    """

    id: str
    frontal: Path | None
    lateral: Path | None
    report: str
    split: str
    findings: frozenset[str] | None = None
    terms: tuple[str, ...] | None = None

    @property
    def views(self) -> list[tuple[int, Path]]:
        """The views of this study as (index into VIEWS, image file), frontal first."""
        return [(i, path) for i, path in enumerate((self.frontal, self.lateral)) if path is not None]


def validate_studies(
    studies: Sequence[Study],
    source: Path,
    on_missing: str,
    warn: Callable[[str], None],
    bad_reports: Sequence[str] = (),
) -> list[Study]:
    """The complete studies, in order: each id once, with text and at least one image file.

    source: the folder or file that messages name. bad_reports: names of missing or damaged reports.
    on_missing: "refuse" raises UserError with the count and the first case of each fault; "skip" passes the
    same to `warn` and returns the rest. A study that lacks one of its two images is kept with the other.
    """
    missing_images = [path for study in studies for _, path in study.views if not os.path.isfile(path)]
    missing, ids = set(missing_images), set()
    complete, duplicates, without_text, without_image = [], [], [], []
    for study in studies:
        if study.id in ids:
            duplicates.append(study.id)
            continue
        ids.add(study.id)
        if lost := {view: None for view in VIEWS if getattr(study, view) in missing}:
            study = dataclasses.replace(study, **lost)
        if not study.report:
            without_text.append(study.id)
        elif not study.views:
            without_image.append(study.id)
        else:
            complete.append(study)
    faults = {
        "missing or damaged reports": bad_reports,
        "missing images": missing_images,
        "studies without any image": without_image,
        "reports without text": without_text,
        "duplicate study ids": duplicates,
    }
    summary = "; ".join(f"{kind}: {len(cases)} (first {cases[0]})" for kind, cases in faults.items() if cases)
    if summary and on_missing == "refuse":
        raise UserError(
            f"{source} is incomplete: {summary}. Add what is missing, or use train.py --on-missing skip"
        )
    if summary:
        warn(f"{source} is incomplete: {summary}. Using the other {len(complete)} studies")
    if not complete:
        raise UserError(f"{source} has no study with both an image and a report; check --root")
    return complete


def path_inside(folder: Path, name: str, where: object) -> Path:
    """folder / name, for a name that was read from a file. UserError if the name leads out of the folder.
    What it names may be a link to anywhere: links are made by the user, not by the file."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{where} names {short(name)!r}, which is outside of {folder}/; correct the file")
    if "\\" in name and not os.path.isfile(folder / path):  # Windows' form, which is one long name here
        raise UserError(f"{where} names {short(name)!r}; write its path with / and relative to {folder}/")
    return folder / path

"""A study: what one patient's visit gives the model to read, and what it should write.

Every data set, drawn or real, becomes a list of these, and nothing else in the project knows where a
study came from. A data set of files passes through `whole` before anyone learns from it: what is missing
is counted and told, and either refused or left out, as the user chose.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

SPLITS = ("train", "val", "test")
VIEWS = ("frontal", "lateral")
ON_MISSING = ("refuse", "skip")


@dataclass(frozen=True)
class Study:
    """One radiograph study with its report.

    id: unique within its data set. frontal, lateral: image files; either may be None, not both.
    report: the reference text, one paragraph. split: train, val or test.
    findings: what is truly there (names of metrics/findings.py) where that is known, as in drawn
    images; None where only the report is known.
    terms: what the report was indexed with, as published (Open-i's MeSH "major" terms, such as
    "Pleural Effusion/right/small", or "normal"); None where the data set has no index.
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
        """The views that exist, as (index into VIEWS, image file), frontal first."""
        return [(i, path) for i, path in enumerate((self.frontal, self.lateral)) if path is not None]


def whole(
    studies: Sequence[Study],
    where: Path,
    on_missing: str,
    warn: Callable[[str], None],
    lost: Sequence[str] = (),
) -> list[Study]:
    """The studies that can be learned from, in order: each once, with a text and at least one image file.

    where: the folder or file to name in a message. lost: what no study could be made of at all, in words.
    on_missing: "refuse" raises UserError with every kind of fault, its count and its first; "skip" tells
    `warn` the same and goes on. A study that lacks one of two images goes on with the other.
    """
    missing = [path for study in studies for _, path in study.views if not os.path.isfile(path)]
    gone, met, kept = set(missing), set(), []
    twice, mute, blind = [], [], []
    for study in studies:
        if study.id in met:
            twice.append(study.id)
            continue
        met.add(study.id)
        left = {name: None for name in VIEWS if getattr(study, name) in gone}
        study = dataclasses.replace(study, **left) if left else study
        if not study.report:
            mute.append(study.id)
        elif not study.views:
            blind.append(study.id)
        else:
            kept.append(study)
    faults = {
        "missing or damaged reports": lost,
        "missing images": missing,
        "studies without any image": blind,
        "reports without text": mute,
        "studies named twice": twice,
    }
    told = "; ".join(f"{kind}: {len(names)} (first {names[0]})" for kind, names in faults.items() if names)
    if told and on_missing == "refuse":
        raise UserError(
            f"{where} is not whole: {told}. Fetch or mend them, or go on without them: --on-missing skip"
        )
    if told:
        warn(f"{where}: went on without these: {told}. {len(kept)} studies are left")
    if not kept:
        raise UserError(f"{where} holds no study with both an image and a report; check --root")
    return kept


def inside(folder: Path, name: str, where: object) -> Path:
    """folder / name, for a name that a file told us. UserError where that leaves the folder."""
    path = folder / name
    try:
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, a loop of links
        pass
    raise UserError(f"{where} names {name[:120]!r}, outside of {folder}/; mend the file") from None

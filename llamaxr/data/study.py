"""A study: what one patient's visit gives the model to read, and what it should write.

Every data set, drawn or real, becomes a list of these, and nothing else in the project knows where a
study came from.
"""

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")
VIEWS = ("frontal", "lateral")


@dataclass(frozen=True)
class Study:
    """One radiograph study with its report.

    id: unique within its data set. frontal, lateral: image files; either may be None, not both.
    report: the reference text, one paragraph. split: train, val or test.
    findings: what is truly there (names of metrics/findings.py) where that is known, as in drawn
    images; None where only the report is known.
    """

    id: str
    frontal: Path | None
    lateral: Path | None
    report: str
    split: str
    findings: frozenset[str] | None = None

    @property
    def views(self) -> list[tuple[int, Path]]:
        """The views that exist, as (index into VIEWS, image file), frontal first."""
        return [(i, path) for i, path in enumerate((self.frontal, self.lateral)) if path is not None]

"""Open-i's index terms as findings: the human labels of IU X-ray, which findings.py is measured against.

In: the terms that indexers gave a study (Demner-Fushman et al. 2016), such as "Opacity/lung/base/left/mild":
what, where, which side, how much. Out: findings by findings.py's names, with side, zone and severity. A term
of none of the nineteen is OTHER. A study whose only term is "normal" has no findings.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .findings import OTHER

# For each finding, the beginnings of its terms; "..." matches anything between. A comment gives the reason
# where a term could belong to another finding.
TERMS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/...enlarged"),
    "enlarged cardiomediastinum": ("Mediastinum/...prominent", "Mediastinum/...enlarged"),
    # a blunted angle is how a film shows a little fluid; reports and indexers use either term
    "effusion": ("Pleural Effusion", "Costophrenic Angle/...blunted", "Hydropneumothorax", "Hemopneumothorax",
                 "Hemothorax"),
    "pleural other": ("Thickening/...pleura", "Cicatrix/...pleura"),
    "pneumothorax": ("Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
    # CheXpert's lung opacity includes infiltrates and interstitial markings; bronchovascular markings are
    # crowding at low volumes
    "lung opacity": ("Opacity", "Density", "Infiltrate", "Markings/...interstitial", "Lung/...interstitial",
                     "Lung Diseases, Interstitial"),
    # filled alveoli, which have both names; CheXpert puts airspace disease under lung opacity
    "consolidation": ("Consolidation", "Airspace Disease"),
    "pneumonia": ("Pneumonia",),
    # CheXpert's edema includes vascular congestion and heart failure
    "edema": ("Pulmonary Edema", "Pulmonary Congestion", "Heart Failure"),
    "nodule": ("Nodule", "Mass"),
    "granuloma": ("Calcified Granuloma", "Granuloma", "Granulomatous Disease"),
    "calcification": ("Calcinosis", "Atherosclerosis"),  # atherosclerosis shows on a film by its calcium
    "atelectasis": ("Pulmonary Atelectasis",),
    "scar": ("Cicatrix",),
    "hyperinflation": ("Lung/...hyperdistention", "Diaphragm/...flattened"),
    "scoliosis": ("Scoliosis",),
    "degenerative spine": ("Thoracic Vertebrae/...degenerative", "Lumbar Vertebrae/...degenerative",
                           "Cervical Vertebrae/...degenerative", "Spine/...degenerative", "Spondylosis",
                           "Osteophyte", "Arthritis/...spine", "Arthritis/...vertebrae", "Hyperostosis"),
    # not Deformity/ribs: many are old fractures, others come from operations and scoliosis
    "fracture": ("Fractures, Bone",),
    "device": ("Catheters, Indwelling", "Implanted Medical Device", "Medical Device", "Tube, Inserted",
               "Stents", "Surgical Instruments", "Sutures"),
}  # fmt: skip
# Terms of no finding: a normal study, or a fault of the film.
NOTHING = ("normal", "Technical Quality of Image Unsatisfactory")
NOT_INDEXED = "No Indexing"
# The words of a term that say where in the lung, and how much.
ZONES = {"apex": "upper", "upper lobe": "upper", "middle lobe": "mid", "lingula": "mid", "hilum": "mid",
         "base": "lower", "lower lobe": "lower", "costophrenic angle": "lower",
         "retrocardiac": "lower"}  # fmt: skip
SEVERITIES = {"mild": "mild", "small": "mild", "borderline": "mild", "blunted": "mild",
              "moderate": "moderate", "severe": "severe", "large": "severe"}  # fmt: skip


@dataclass(frozen=True)
class IndexedFinding:
    """One finding of one term. name: of FINDINGS, or OTHER. sides: "left", "right", both or none. zone:
    upper, mid, lower or None. severity: mild, moderate, severe or None. term: as the indexer wrote it."""

    name: str
    sides: frozenset[str]
    zone: str | None
    severity: str | None
    term: str


def _any_of(terms: tuple[str, ...]) -> re.Pattern[str]:
    heads = "|".join(re.escape(term).replace(re.escape("..."), "(?:.*/)?") for term in terms)
    return re.compile(rf"(?:{heads})(?:[/ ]|$)")  # whole words: "Mass" is not "Mastectomy"


_TERMS = {name: _any_of(terms) for name, terms in TERMS.items()}
_LYMPH_NODES = re.compile(r"Mediastinum/.*(?:lymph nodes|blood vessels)")  # not the mediastinum's size


def is_indexed(terms: Iterable[str]) -> bool:
    """Whether the study was indexed: it has terms, and none of them is NOT_INDEXED."""
    terms = list(terms)
    return bool(terms) and NOT_INDEXED not in terms


def read_terms(terms: Iterable[str]) -> list[IndexedFinding]:
    """Everything that a study's terms name, term by term; [] for a normal study, or one not indexed."""
    found = []
    for term in map(str.strip, terms):
        if term in (*NOTHING, NOT_INDEXED):
            continue
        words = [word.strip() for word in term.split("/")]
        sides = frozenset({"left", "right"} if "bilateral" in words else {"left", "right"} & {*words})
        zone = next((ZONES[word.lower()] for word in words if word.lower() in ZONES), None)
        severity = next((SEVERITIES[word] for word in words if word in SEVERITIES), None)
        names = [name for name, pattern in _TERMS.items() if pattern.match(term)]
        if _LYMPH_NODES.match(term):
            names = [OTHER]
        found += [IndexedFinding(name, sides, zone, severity, term) for name in names or [OTHER]]
    return found


def mesh_locate(terms: Iterable[str]) -> dict[str, frozenset[str]]:
    """The findings (of FINDINGS, and OTHER) that a study's terms name, each with its sides."""
    found: dict[str, frozenset[str]] = {}
    for finding in read_terms(terms):
        found[finding.name] = found.get(finding.name, frozenset()) | finding.sides
    return found


def mesh_findings(terms: Iterable[str]) -> frozenset[str]:
    """The findings (of FINDINGS, and OTHER) that a study's terms name; the empty set is "no finding"."""
    return frozenset(mesh_locate(terms))

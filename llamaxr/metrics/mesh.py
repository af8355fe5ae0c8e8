"""Open-i's index terms, as findings: people's reading of IU X-ray's reports, to hold findings.py against.

In: the terms that indexers gave a study (Demner-Fushman et al. 2016), such as "Opacity/lung/base/left/mild":
what, where, which side, how. Out: findings by findings.py's names. A term that is none of the nineteen is
OTHER; a study whose one term is "normal" has none.
"""

import re
from collections.abc import Iterable

from .findings import OTHER

# For each finding, the beginnings of its terms; "..." is whatever stands between. Where a term could have
# gone elsewhere, the reason stands beside it.
TERMS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/...enlarged"),
    "enlarged cardiomediastinum": ("Mediastinum/...prominent", "Mediastinum/...enlarged"),
    # a blunted angle is how a film shows a little fluid; reports say either, indexers index either
    "effusion": ("Pleural Effusion", "Costophrenic Angle/...blunted", "Hydropneumothorax", "Hemopneumothorax",
                 "Hemothorax"),
    "pleural other": ("Thickening/...pleura", "Cicatrix/...pleura"),
    "pneumothorax": ("Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
    # CheXpert's lung opacity holds infiltrates and interstitial markings too; bronchovascular markings are
    # crowding, at low volumes
    "lung opacity": ("Opacity", "Density", "Infiltrate", "Markings/...interstitial", "Lung/...interstitial",
                     "Lung Diseases, Interstitial"),
    # alveoli filled, which radiologists call either; CheXpert has airspace disease under lung opacity
    "consolidation": ("Consolidation", "Airspace Disease"),
    "pneumonia": ("Pneumonia",),
    # CheXpert's edema holds vascular congestion and heart failure
    "edema": ("Pulmonary Edema", "Pulmonary Congestion", "Heart Failure"),
    "nodule": ("Nodule", "Mass"),
    "granuloma": ("Calcified Granuloma", "Granuloma", "Granulomatous Disease"),
    "calcification": ("Calcinosis", "Atherosclerosis"),  # seen on a film by its calcium
    "atelectasis": ("Pulmonary Atelectasis",),
    "scar": ("Cicatrix",),
    "hyperinflation": ("Lung/...hyperdistention", "Diaphragm/...flattened"),
    "scoliosis": ("Scoliosis",),
    "degenerative spine": ("Thoracic Vertebrae/...degenerative", "Lumbar Vertebrae/...degenerative",
                           "Cervical Vertebrae/...degenerative", "Spine/...degenerative", "Spondylosis",
                           "Osteophyte", "Arthritis/...spine", "Arthritis/...vertebrae", "Hyperostosis"),
    # not Deformity/ribs: old fractures many, but operations and scoliosis too
    "fracture": ("Fractures, Bone",),
    "device": ("Catheters, Indwelling", "Implanted Medical Device", "Medical Device", "Tube, Inserted",
               "Stents", "Surgical Instruments", "Sutures"),
}  # fmt: skip
# No findings: nothing seen, or a fault of the film and not of the patient.
NOTHING = ("normal", "Technical Quality of Image Unsatisfactory")
NOT_INDEXED = "No Indexing"


def _any_of(terms: tuple[str, ...]) -> re.Pattern[str]:
    heads = "|".join(re.escape(term).replace(re.escape("..."), "(?:.*/)?") for term in terms)
    return re.compile(rf"(?:{heads})(?:[/ ]|$)")  # whole words: "Mass" is not "Mastectomy"


_TERMS = {name: _any_of(terms) for name, terms in TERMS.items()}
_LYMPH_NODES = re.compile(r"Mediastinum/.*(?:lymph nodes|blood vessels)")  # their size, not the mediastinum's


def is_indexed(terms: Iterable[str]) -> bool:
    """Whether anybody looked: a study has terms, and is not marked as left out."""
    terms = list(terms)
    return bool(terms) and NOT_INDEXED not in terms


def mesh_locate(terms: Iterable[str]) -> dict[str, frozenset[str]]:
    """The findings (of FINDINGS, and OTHER) that a study's terms name, each with its sides."""
    found: dict[str, frozenset[str]] = {}
    for term in terms:
        words = set(term.strip().split("/"))
        sides = frozenset({"left", "right"} if "bilateral" in words else words & {"left", "right"})
        names = [name for name, pattern in _TERMS.items() if pattern.match(term)]
        if _LYMPH_NODES.match(term):
            names = [OTHER]
        if term.strip() not in (*NOTHING, NOT_INDEXED):
            for name in names or [OTHER]:
                found[name] = found.get(name, frozenset()) | sides
    return found


def mesh_findings(terms: Iterable[str]) -> frozenset[str]:
    """The findings (of FINDINGS, and OTHER) that a study's terms name; the empty set is "no finding"."""
    return frozenset(mesh_locate(terms))

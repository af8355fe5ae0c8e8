"""Index terms as Open-i's indexers write them."""

import pytest

from llamaxr.metrics.findings import FINDINGS
from llamaxr.metrics.mesh import TERMS, is_indexed, mesh_findings, mesh_locate

TERM = {
    "Cardiac Shadow/enlarged/mild": "cardiomegaly",
    "Opacity/lung/base/left/mild": "lung opacity",
    "Markings/lung/bilateral/interstitial/diffuse": "lung opacity",
    "Markings/bronchovascular": "other",
    "Airspace Disease/lung/lower lobe/right": "consolidation",
    "Cicatrix/pleura/apex/bilateral": "pleural other, scar",
    "Cicatrix/lung": "scar",
    "Lung/bilateral/hyperdistention": "hyperinflation",
    "Lung/hypoinflation": "other",
    "Thoracic Vertebrae/scattered/degenerative": "degenerative spine",
    "Shoulder/right/degenerative": "other",
    "Calcified Granuloma/lung/upper lobe/right": "granuloma",
    "Calcinosis/lung/hilum/lymph nodes": "calcification",
    "Hydropneumothorax/left": "effusion, pneumothorax",
    "Mediastinum/prominent": "enlarged cardiomediastinum",
    "Mediastinum/lymph nodes/bilateral/enlarged": "other",
    "Mass/lung/apex/right": "nodule",
    "Mastectomy/left": "other",
    "normal": "",
    "Technical Quality of Image Unsatisfactory ": "",
}


@pytest.mark.parametrize("term", TERM)
def test_a_term_names(term):
    assert mesh_findings([term]) == set(filter(None, TERM[term].split(", ")))


def test_there_are_terms_for_each_of_the_labellers_classes():
    assert set(TERMS) == set(FINDINGS)


def test_the_sides_of_several_terms_add_up():
    terms = ["Opacity/lung/left", "Opacity/lung/right", "Pleural Effusion/bilateral", "Cardiomegaly"]
    both = {"left", "right"}
    assert mesh_locate(terms) == {"lung opacity": both, "effusion": both, "cardiomegaly": set()}


def test_a_study_without_terms_is_not_indexed_rather_than_normal():
    assert not is_indexed([]) and not is_indexed(["No Indexing"])
    assert is_indexed(["normal"]) and mesh_findings(["normal"]) == frozenset()

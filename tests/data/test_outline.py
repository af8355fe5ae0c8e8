"""The outline: what it names, and that outline and report come apart again."""

import pytest

from llamaxr.data.outline import (
    find_zones,
    outline_line,
    read_outline,
    read_places,
    split_outline,
    with_outline,
)
from llamaxr.metrics.findings import FINDINGS


def test_an_outline_names_what_the_report_asserts_with_its_place_and_nothing_denied():
    report = "Heart size is normal. Small left effusion and a right upper lobe nodule. No pneumothorax."
    assert with_outline(report) == f"Findings: effusion left, nodule right upper.\n{report}"
    both = "Effusions on both sides. Atelectasis of the left base and of the right upper lobe."
    assert with_outline(both) == f"Findings: effusion bilateral, atelectasis bilateral upper lower.\n{both}"
    assert with_outline("The lungs are clear.") == "Findings: none.\nThe lungs are clear."


@pytest.mark.parametrize("report", ["The lungs are clear.", "Cardiomegaly. Findings: as before."])
def test_outline_and_report_come_apart_again(report):
    text = with_outline(report)
    outline, rest = split_outline(text)
    assert rest == report and text == f"Findings: {outline}\n{report}" == outline_line(text) + report
    assert split_outline(f" {report}") == ("", report)


@pytest.mark.parametrize("report, zones", [
    ("There is a nodule in the right middle lobe.", {"nodule": ["mid"]}),
    ("Bibasilar atelectasis. Granuloma in the left upper lobe and the left base.",
     {"atelectasis": ["lower"], "granuloma": ["upper", "lower"]}),
    ("Consolidation of the left lower lobe and a nodule of the right upper lobe.",
     {"consolidation": ["lower"], "nodule": ["upper"]}),
    ("Nodule with lower lung volumes. Cardiomegaly at the upper limits.", {"nodule": []}),
    ("No nodule in the upper lobes.", {}),
    ("Left basilar opacity.", {"lung opacity": ["lower"]}),
    ("Basal and bibasilar opacities. Atelectasis in both bases.",
     {"lung opacity": ["lower"], "atelectasis": ["lower"]}),
    ("Nodule. Clips in the right upper abdomen.", {"nodule": [], "device": []}),
])  # fmt: skip
def test_a_zone_belongs_to_the_finding_next_to_it_in_its_sentence(report, zones):
    found = find_zones(report)
    assert {name: found[name] for name in zones} == zones and ("nodule" in found) == ("nodule" in zones)


@pytest.mark.parametrize("word, sides", [
    ("", set()), (" left", {"left"}), (" bilateral", {"left", "right"}), (" left right", {"left", "right"}),
])  # fmt: skip
@pytest.mark.parametrize("zones", [(), ("upper", "lower")])
def test_an_outline_reads_back_as_the_findings_and_places_it_names(word, sides, zones):
    line = ", ".join(" ".join([name + word, *zones]) for name in FINDINGS) + "."
    assert read_outline(line) == dict.fromkeys(FINDINGS, sides)
    assert read_places(line) == dict.fromkeys(FINDINGS, {*sides, *zones})
    assert read_outline("none.") == read_outline("") == read_outline("effusions left, le") == {}


def test_a_text_cut_off_within_its_outline_has_an_empty_report():
    assert split_outline("Findings: effusion le") == ("effusion le", "")


def test_an_outline_without_the_end_of_its_line_ends_with_its_full_stop():
    assert split_outline("Findings: effusion left. The heart is normal.") == (
        "effusion left.",
        "The heart is normal.",
    )
    assert split_outline("Findings: effusion left") == ("effusion left", "")
    assert split_outline("Findings: none\nThe heart is normal.") == ("none", "The heart is normal.")

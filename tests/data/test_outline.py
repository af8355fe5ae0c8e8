"""The outline: what it names, and that outline and report come apart again."""

import pytest

from llamaxr.data.outline import outline_line, read_outline, split_outline, with_outline
from llamaxr.metrics.findings import FINDINGS


def test_an_outline_names_what_the_report_asserts_with_its_side_and_nothing_denied():
    report = "Heart size is normal. Small left effusion and a right upper lobe nodule. No pneumothorax."
    assert with_outline(report) == f"Findings: effusion left, nodule right.\n{report}"
    assert with_outline("The lungs are clear.") == "Findings: none.\nThe lungs are clear."


@pytest.mark.parametrize("report", ["The lungs are clear.", "Cardiomegaly. Findings: as before."])
def test_outline_and_report_come_apart_again(report):
    text = with_outline(report)
    outline, rest = split_outline(text)
    assert rest == report and text == f"Findings: {outline}\n{report}" == outline_line(text) + report
    assert split_outline(f" {report}") == ("", report)


@pytest.mark.parametrize("sides", [(), ("left",), ("left", "right")])
def test_an_outline_reads_back_as_the_findings_it_names(sides):
    line = ", ".join(" ".join([name, *sides]) for name in FINDINGS) + "."
    assert read_outline(line) == dict.fromkeys(FINDINGS, frozenset(sides))
    assert read_outline("none.") == read_outline("") == read_outline("effusions left, le") == {}


def test_a_text_cut_off_within_its_outline_has_an_empty_report():
    assert split_outline("Findings: effusion le") == ("effusion le", "")

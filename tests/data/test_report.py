"""A report's text: its sections, and what stood in for redacted words."""

import pytest

from llamaxr.data.report import compose, without_redactions

REPORT = {"findings": " The  heart\nis big. ", "impression": "XXXX failure."}


@pytest.mark.parametrize(
    "which, text",
    [
        ("findings", "The heart is big."),
        ("impression", "XXXX failure."),
        ("both", "The heart is big. XXXX failure."),
    ],
)
def test_the_sections_asked_for_are_one_paragraph(which, text):
    assert compose(REPORT, which) == text


def test_a_section_that_is_not_there_is_no_text():
    assert compose({}, "both") == "" and compose({"findings": None, "impression": "A."}, "both") == "A."


@pytest.mark.parametrize(
    "before, after",
    [
        ("There are no XXXX of a pleural effusion.", "There are no of a pleural effusion."),
        ("Normal chest x-XXXX.", "Normal chest."),
        ("XXXX. The lungs are clear.", "The lungs are clear."),
        ("The lungs are clear. XXXX, XXXX. Heart normal.", "The lungs are clear. Heart normal."),
        ("Fracture (XXXX), old.", "Fracture, old."),
        ("XXXX-filled loops, XXXX/fluid and dual-XXXX device.", "filled loops, fluid and dual device."),
        ("The patient's 2-3 cm opacity and 1.2 cm node.", "The patient's 2-3 cm opacity and 1.2 cm node."),
        ("XXXX's 2-3 cm XXXX opacity - stable.", "2-3 cm opacity stable."),
        ("XXXX<XXXX>technologist", "technologist"),
        ("No effusion ___ seen, ___.", "No effusion seen."),
        ("XXXX XXXX.", ""),
    ],
)
def test_dropping_placeholders_leaves_no_stray_marks(before, after):
    assert without_redactions(before) == after
    assert compose({"findings": before}, "findings") == before

"""The text of a report: its sections, and the placeholders of redacted words."""

import pytest

from llamaxr.data.report import compose_report, remove_placeholders

REPORT = {"findings": " The  heart\nis big. ", "impression": "XXXX failure."}


@pytest.mark.parametrize(
    "which, text",
    [
        ("findings", "The heart is big."),
        ("impression", "XXXX failure."),
        ("both", "The heart is big. XXXX failure."),
    ],
)
def test_the_chosen_sections_are_one_paragraph(which, text):
    assert compose_report(REPORT, which) == text


def test_an_absent_section_is_empty():
    assert (
        compose_report({}, "both") == ""
        and compose_report({"findings": None, "impression": "A."}, "both") == "A."
    )


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
def test_removing_placeholders_leaves_no_loose_punctuation(before, after):
    assert remove_placeholders(before) == after
    assert compose_report({"findings": before}, "findings") == before

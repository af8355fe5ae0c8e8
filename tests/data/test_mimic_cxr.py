"""MIMIC-CXR's layout, on a small made-up copy."""

import gzip

import pytest

from llamaxr.data.mimic_cxr import load_studies, read_sections
from llamaxr.errors import UserError

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough at 10:30

 FINDINGS:

 The heart is big: larger
 than before.  ___ device.

 IMPRESSION:  Big heart.
"""
# subject, study, split, views as (dicom_id, ViewPosition), report
VISITS = [
    (10000764, 57375967, "validate", [("aa-1", "LL"), ("aa-2", "AP"), ("aa-3", "PA")], REPORT),
    (10000032, 50414267, "train", [("bb-1", "PA"), ("bb-2", "LATERAL")], REPORT),
    (10000032, 50000001, "test", [("cc-1", "AP")], REPORT),
    (10000032, 50000002, "train", [("dd-1", "AP")], " FINAL REPORT\n IMPRESSION: No change.\n"),
    (10000032, 50000003, "train", [("ee-1", "")], REPORT),
]


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, VISITS)


def write(root, visits):
    split, metadata = (
        ["dicom_id,study_id,subject_id,split"],
        ["dicom_id,subject_id,study_id,ViewPosition,Rows"],
    )
    for subject, study, name, views, report in visits:
        folder = root / f"files/p{str(subject)[:2]}/p{subject}/s{study}"
        folder.mkdir(parents=True)
        folder.with_suffix(".txt").write_text(report)
        for dicom, position in views:
            split.append(f"{dicom},{study},{subject},{name}")
            metadata.append(f"{dicom},{subject},{study},{position},2544")
            (folder / f"{dicom}.jpg").write_bytes(b"not opened here")
    (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress("\n".join(split).encode()))
    (root / "mimic-cxr-2.0.0-metadata.csv").write_text("\n".join(metadata))
    return root


def test_the_official_split_views_and_findings_make_the_studies(root):
    warnings = []
    studies = load_studies(root, warnings.append)
    assert [(s.id, s.split) for s in studies] == [
        ("s50000001", "test"),
        ("s50414267", "train"),
        ("s57375967", "val"),
    ]
    assert all(s.report == "The heart is big: larger than before. ___ device." for s in studies)
    assert [(s.frontal and s.frontal.stem, s.lateral and s.lateral.stem) for s in studies] == [
        ("cc-1", None), ("bb-1", "bb-2"), ("aa-3", "aa-1"),
    ]  # fmt: skip
    assert len(warnings) == 1
    assert "of 5 studies, 1 have no text" in warnings[0] and "1 have no frontal" in warnings[0]


def test_other_sections_and_redactions(root):
    studies = {s.id: s for s in load_studies(root, lambda _: None, sections="impression")}
    assert studies["s50000002"].report == "No change." and studies["s50414267"].report == "Big heart."
    studies = load_studies(root, lambda _: None, sections="both", drop_redacted=True)
    assert studies[-1].report == "The heart is big: larger than before. device. Big heart."


def test_reports_may_be_in_the_folder_that_their_archive_makes(root):
    for path in list(root.glob("files/*/*/*.txt")):
        to = root / "mimic-cxr-reports" / path.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    assert len(load_studies(root, lambda _: None)) == 3


@pytest.mark.parametrize(
    "text, sections",
    [
        ("FINDINGS: A.\n FINDINGS: B.\n IMPRESSION: C.", {"findings": "B.", "impression": "C."}),
        ("FINDINGS AND IMPRESSION: A.", {"findings": "A."}),
        ("FINDINGS/IMPRESSION: A.\nNOTIFICATION: B.", {"findings": "A."}),
        ("CONCLUSION:\n A.", {"impression": "A."}),
        ("The findings: A.", {}),
        ("FINDINGS: At 10:30 PICC: fine.\n Size: 3", {"findings": "At 10:30 PICC: fine. Size: 3"}),
        ("", {}),
    ],
)
def test_a_section_ends_at_the_next_header_in_capitals(text, sections):
    assert read_sections(text) == sections


def test_a_missing_report_or_image_is_refused_or_counted(root):
    (root / "files/p10/p10000032/s50000001.txt").unlink()
    (root / "files/p10/p10000032/s50414267/bb-2.jpg").unlink()
    faults = r"reports: 1 \(first files/p10/p10000032/s50000001.txt\); missing images: 1"
    with pytest.raises(UserError, match=faults):
        load_studies(root, lambda _: None)
    warnings = []
    studies = load_studies(root, warnings.append, on_missing="skip")
    assert [len(s.views) for s in studies] == [1, 2] and len(warnings) == 2


@pytest.mark.parametrize(
    "bad", ["../../x,50414267,10000032,train", "aa-1,../x,10000032,train", "aa-1,5,1,dev"]
)
def test_a_table_that_names_a_path_or_another_split_is_refused(root, bad):
    dicom, study, subject, split = bad.split(",")
    (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(
        gzip.compress(f"dicom_id,study_id,subject_id,split\n{bad}".encode())
    )
    (root / "mimic-cxr-2.0.0-metadata.csv").write_text(f"dicom_id,study_id,ViewPosition\n{dicom},{study},PA")
    with pytest.raises(UserError, match="line 2"):
        load_studies(root, lambda _: None)


def test_another_folder_is_refused(tmp_path):
    for folder in (None, tmp_path / "absent"):
        with pytest.raises(UserError, match="--root"):
            load_studies(folder, pytest.fail)
    with pytest.raises(UserError, match="lacks mimic-cxr-2.0.0-split"):
        load_studies(tmp_path, pytest.fail)

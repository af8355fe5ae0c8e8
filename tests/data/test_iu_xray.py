"""IU X-ray in its three public forms: small made-up folders, and real reports laid out by make_iu_sim.py."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamaxr.data import iu_layouts, iu_xray
from llamaxr.data.iu_xray import load_studies, patient_split
from llamaxr.errors import UserError

SHARED = Path(os.environ.get("LLAMAXR_SHARED", "/work/shared"))
if not SHARED.is_dir():
    SHARED = Path(__file__).resolve().parents[3] / "shared"


def entry(id, split="train", report="The lungs are clear.", views=2):
    return {"id": id, "report": report, "split": split, "image_path": [f"{id}/{v}.png" for v in range(views)]}


def write(root, annotation, images=True):
    root.mkdir(exist_ok=True)
    (root / "annotation.json").write_text(
        annotation if isinstance(annotation, str) else json.dumps(annotation)
    )
    for e in [e for entries in annotation.values() for e in entries] if images else ():
        for name in e["image_path"]:
            (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "images" / name).write_bytes(b"not opened here")
    return root


XML = """<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="{uid}"/>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
<MeSH><major>Cardiomegaly/mild</major><automatic>heart</automatic></MeSH>{images}</eCitation>"""
IMAGE = '<parentImage id="{}"/>'


def write_openi(root, uids, n_images=2, findings="The  heart\nis big.", impression="Big heart."):
    for folder in ("ecgen-radiology", "NLMCXR_png"):
        (root / folder).mkdir(exist_ok=True)
    for uid in uids:
        images = [f"{uid}_IM-0001-{v}001" for v in range(1, n_images + 1)]
        for image in images:
            (root / "NLMCXR_png" / f"{image}.png").write_bytes(b"not opened here")
        images = "".join(IMAGE.format(image) for image in images)
        text = XML.format(uid=uid, findings=findings, impression=impression, images=images)
        (root / "ecgen-radiology" / f"{uid[3:]}.xml").write_text(text)
    return root


def refused(root, **options):
    with pytest.raises(UserError) as error:
        load_studies(root, pytest.fail, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# R2Gen's form


def test_studies_come_in_the_files_order_with_their_images(tmp_path):
    annotation = {"train": [entry("CXR1", report=" The heart\n is  big. "), entry("CXR2")]}
    a, b = load_studies(write(tmp_path, annotation), pytest.fail)
    assert (a.id, b.id) == ("CXR1", "CXR2")
    assert a.report == "The heart is big." and a.findings is None and a.terms is None
    assert a.frontal == tmp_path / "images/CXR1/0.png" and a.lateral == tmp_path / "images/CXR1/1.png"


def test_an_entrys_own_split_decides_and_a_blank_key_is_the_test_list(tmp_path):
    nosplit = {k: v for k, v in entry("d").items() if k != "split"}
    named = {**nosplit, "id": "e", "image_path": ["e/0.png"]}
    annotation = {"train": [entry("a"), entry("b", "val"), named], " ": [entry("c", "test"), nosplit]}
    splits = {s.id: s.split for s in load_studies(write(tmp_path, annotation), pytest.fail)}
    assert splits == {"a": "train", "b": "val", "c": "test", "d": "test", "e": "train"}


def test_a_study_of_one_view_has_no_lateral(tmp_path):
    (study,) = load_studies(write(tmp_path, {"train": [entry("a", views=1)]}), pytest.fail)
    assert study.lateral is None and [view for view, _ in study.views] == [0]


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    write(tmp_path, {"train": [entry("a"), entry("b"), entry("c")]})
    for name in ("b/1.png", "c/0.png"):
        (tmp_path / "images" / name).unlink()
    message = refused(tmp_path)
    assert "missing images: 2" in message and "b/1.png" in message and "c/0.png" not in message
    assert "--on-missing skip" in message


def test_skipping_what_is_missing_warns_and_keeps_the_other_view(tmp_path):
    write(tmp_path, {"train": [entry("a"), entry("b"), entry("c", report=" "), entry("d"), entry("d")]})
    for name in ("a/0.png", "b/0.png", "b/1.png"):
        (tmp_path / "images" / name).unlink()
    warnings = []
    a, d = load_studies(tmp_path, warnings.append, on_missing="skip")
    assert (a.id, a.frontal, a.lateral.name, d.id) == ("a", None, "1.png", "d")
    (line,) = warnings
    for fault in (
        "images: 3",
        "without any image: 1 (first b)",
        "without text: 1 (first c)",
        "duplicate study ids: 1 (first d)",
    ):
        assert fault in line


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "a/../../secret.png", "a\0b", "long" * 80]
)
def test_a_path_that_leaves_the_images_is_refused_even_when_skipping(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(b"x")
    write(tmp_path, {"train": [{**entry("a"), "image_path": [name]}]}, images=False)
    with pytest.raises(UserError, match="outside of|missing images|no study"):
        load_studies(tmp_path, lambda line: None, on_missing="skip")


def test_a_duplicate_study_is_refused(tmp_path):
    assert "duplicate study ids" in refused(
        write(tmp_path, {"train": [entry("a")], "test": [entry("a", "test")]})
    )


@pytest.mark.parametrize(
    "text", ["", '{"train": [', "[]", '{"train": [{}]}', '{"train": 3}', '{"train": [7]}']
)
def test_a_damaged_annotation_is_refused_by_name(tmp_path, text):
    assert "annotation.json is damaged" in refused(write(tmp_path, text, images=False))


def test_an_annotation_without_studies_is_refused(tmp_path):
    assert "no study" in refused(write(tmp_path, {"train": []}))


@pytest.mark.parametrize("change", [{"split": "dev"}, {"image_path": []}, {"image_path": ["x"] * 3}])
def test_an_entry_that_is_no_study_is_refused(tmp_path, change):
    assert "study a has split" in refused(write(tmp_path, {"train": [{**entry("a"), **change}]}))


def test_a_report_without_text_is_refused(tmp_path):
    write(tmp_path, {"train": [entry("a", report=" ")]})
    assert "reports without text: 1 (first a)" in refused(tmp_path)


def test_r2gens_form_has_findings_only_without_openis_reports_beside_it(tmp_path):
    write(tmp_path, {"train": [entry("CXR5_IM-0001")]})
    assert "needs Open-i's reports" in refused(tmp_path, sections="impression")
    write_openi(tmp_path, ["CXR5"])
    (study,) = load_studies(tmp_path, pytest.fail, sections="both")
    assert study.report == "The lungs are clear. Big heart." and study.terms == ("Cardiomegaly/mild",)
    assert study.frontal == tmp_path / "images/CXR5_IM-0001/0.png"


def test_another_folder_is_refused_with_the_three_forms(tmp_path):
    message = refused(tmp_path)
    assert "R2Gen" in message and "Kaggle" in message and "Open-i" in message


# Open-i's and Kaggle's form


def test_an_absent_report_of_r2gens_split_is_refused_or_counted(tmp_path):
    write_openi(tmp_path, ["CXR2384", "CXR2926"])
    assert "missing or damaged reports: 2953" in refused(tmp_path)
    warnings = []
    studies = load_studies(tmp_path, warnings.append, on_missing="skip")
    assert [(s.id, s.split) for s in studies] == [("CXR2384_IM-0942", "train"), ("CXR2926_IM-1328", "train")]
    assert studies[0].report == "The heart is big." and "2953" in warnings[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<eCitation>",
        "<eCitation></eCitation>",
        '<!DOCTYPE x [<!ENTITY a "aa">]><eCitation><uId id="CXR1"/></eCitation>',
        '<eCitation><uId id="../../etc"/></eCitation>',
        '<eCitation><uId id="CXR1"/><parentImage id="../x"/></eCitation>',
        " " * (iu_layouts.MAX_XML + 1),
    ],
)
def test_a_damaged_or_hostile_xml_is_named(tmp_path, text):
    write_openi(tmp_path, ["CXR2"])
    (tmp_path / "ecgen-radiology" / "1.xml").write_text(text)
    assert "first ecgen-radiology/1.xml" in refused(tmp_path, split_by="patient")
    warnings = []
    assert [s.id for s in load_studies(tmp_path, warnings.append, split_by="patient", on_missing="skip")]
    assert len(warnings) == 1


def test_the_split_by_patient_has_all_studies_with_findings_and_an_image(tmp_path):
    write_openi(tmp_path, ["CXR10", "CXR9"], n_images=3)
    write_openi(tmp_path, ["CXR11"], n_images=0)
    write_openi(tmp_path, ["CXR12"], findings="")
    write_openi(tmp_path, ["CXR13"], n_images=1)
    studies = load_studies(tmp_path, pytest.fail, split_by="patient")
    assert [s.id.split("_")[0] for s in studies] == ["CXR9", "CXR10", "CXR13"]
    first, _, single = studies
    names = [path.name for _, path in first.views]
    assert names == ["CXR9_IM-0001-1001.png", "CXR9_IM-0001-2001.png"]  # in Open-i's order, frontal first
    assert single.lateral is None


def test_a_patients_split_depends_on_number_and_seed_alone_and_shares_are_r2gens():
    splits = lambda seed: [patient_split(f"CXR{n}", seed) for n in range(4000)]
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs(splits(0).count(split) / 4000 - share) < 0.02  # 2.8 standard deviations of a fair draw
    assert splits(0) == splits(0) != splits(1)


def write_kaggle(root, rows, projections):
    (root / "images/images_normalized").mkdir(parents=True)
    for name, header, lines in (
        ("reports", "uid MeSH Problems image indication comparison findings impression", rows),
        ("projections", "uid filename projection", projections),
    ):
        with open(root / f"indiana_{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([header.split(), *lines])
    for _, name, _ in projections:
        if "/" not in name:
            (root / "images/images_normalized" / name).write_bytes(b"not opened here")
    return root


ROW = [9, "Opacity/lung; Calcinosis", "", "", "", "", "A  B.", "C."]


def test_kaggles_projection_column_decides_the_views(tmp_path):
    views = [(9, "l.dcm.png", "Lateral"), (9, "f.dcm.png", "Frontal"), (9, "g.dcm.png", "Frontal")]
    (study,) = load_studies(
        write_kaggle(tmp_path, [ROW], views), pytest.fail, split_by="patient", sections="both"
    )
    assert (study.frontal.name, study.lateral.name) == ("f.dcm.png", "l.dcm.png")
    assert study.report == "A B. C." and study.terms == ("Opacity/lung", "Calcinosis")


def test_kaggles_study_with_a_lateral_alone_has_no_frontal(tmp_path):
    write_kaggle(tmp_path, [ROW], [(9, "l.dcm.png", "Lateral")])
    (study,) = load_studies(tmp_path, pytest.fail, split_by="patient")
    assert study.frontal is None and [view for view, _ in study.views] == [1]


@pytest.mark.parametrize("row", [(9, "../x.png", "Frontal"), (9, "x.png", "Oblique")])
def test_kaggles_table_with_another_projection_or_path_is_refused(tmp_path, row):
    assert "line 2" in refused(write_kaggle(tmp_path, [ROW], [row]), split_by="patient")


def test_a_duplicate_report_in_kaggles_table_is_refused(tmp_path):
    write_kaggle(tmp_path, [ROW, ROW], [(9, "f.png", "Frontal")])
    assert "CXR9, a duplicate" in refused(tmp_path, split_by="patient")


# The list of ids, and all three forms of the real reports


def test_the_split_list_has_r2gens_counts_and_no_duplicates():
    splits = json.loads(iu_xray.R2GEN_SPLIT.read_text())
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 2069, "val": 296, "test": 590}
    assert len({id.split("_")[0] for ids in splits.values() for id in ids}) == 2955


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here: real reports are not in the repository (LLAMAXR_SHARED)")
    return path


def content(study):
    return study.id, study.report, study.split


def test_the_split_list_and_openis_findings_are_r2gens_annotation(tmp_path):
    annotation = json.loads(real("data/iu_xray/annotation.json").read_text())
    entries = [e for entries in annotation.values() for e in entries]
    os.symlink(real("data/iu_xray/NLMCXR_reports.tgz"), tmp_path / "NLMCXR_reports.tgz")
    reports, damaged = iu_layouts.read_openi(tmp_path)
    selected, absent = iu_xray.select_r2gen(reports)
    assert not damaged and not absent
    found = [(r.id, r.sections["findings"], r.split) for r in selected]
    assert found == [(e["id"], " ".join(e["report"].split()), e["split"]) for e in entries]


def test_the_three_forms_give_the_same_studies_order_and_texts(tmp_path):
    tool, warnings = real("tools/make_iu_sim.py"), []
    for layout in ("r2gen", "openi", "kaggle"):
        options = ["--layout", layout, "--limit", "6", "--size", "64"]
        subprocess.run([sys.executable, tool, tmp_path / layout, *options], check=True, capture_output=True)
    r2gen = load_studies(tmp_path / "r2gen", pytest.fail)
    assert [s.split for s in r2gen] == ["train"] * 6 + ["val"] * 6 + ["test"] * 6
    both = [tmp_path / "openi", tmp_path / "kaggle"]
    openi, kaggle = (load_studies(root, warnings.append, on_missing="skip") for root in both)
    assert [content(s) for s in openi] == [content(s) for s in kaggle] and 1 <= len(openi) <= 6
    assert len(warnings) == 2
    assert [tuple(t.lower() for t in s.terms) for s in openi] == [s.terms for s in kaggle]
    assert [len(s.views) for s in openi] == [len(s.views) for s in kaggle]
    openi, kaggle = (load_studies(root, pytest.fail, split_by="patient", sections="both") for root in both)
    assert [content(s) for s in openi] == [content(s) for s in kaggle] and len(openi) >= 3


def test_redacted_words_are_dropped_where_that_is_asked(tmp_path):
    write(tmp_path, {"train": [entry("a", report="Normal chest x-XXXX.")]})
    for drop, text in ((False, "Normal chest x-XXXX."), (True, "Normal chest.")):
        assert load_studies(tmp_path, pytest.fail, drop_redacted=drop)[0].report == text


def test_a_patients_split_stays_what_it_was():  # or test patients of a trained run would be in train
    splits = "val test train test train train train train".split()
    assert [patient_split(f"CXR{n}", 0) for n in range(1, 9)] == splits


def test_a_study_of_openis_form_has_r2gens_id(tmp_path):
    write_openi(tmp_path, ["CXR2384"])
    (study,) = load_studies(tmp_path, pytest.fail, split_by="patient")
    assert study.id == "CXR2384_IM-0942"

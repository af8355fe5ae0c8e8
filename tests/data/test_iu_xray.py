"""IU X-ray in R2Gen's layout, on a made-up miniature of it."""

import json

import pytest

from llamaxr.data.iu_xray import load_studies
from llamaxr.errors import UserError


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


def refused(root):
    with pytest.raises(UserError) as error:
        load_studies(root)
    return str(error.value)


def test_studies_come_in_the_files_order_with_their_images(tmp_path):
    a, b = load_studies(
        write(tmp_path, {"train": [entry("CXR1", report=" The heart\n is  big. "), entry("CXR2")]})
    )
    assert (a.id, b.id) == ("CXR1", "CXR2")
    assert a.report == "The heart is big." and a.findings is None
    assert a.frontal == tmp_path / "images/CXR1/0.png" and a.lateral == tmp_path / "images/CXR1/1.png"


def test_an_entrys_own_split_decides_and_a_blank_key_is_the_test_list(tmp_path):
    nosplit = {k: v for k, v in entry("d").items() if k != "split"}
    named = {**nosplit, "id": "e", "image_path": ["e/0.png"]}
    annotation = {"train": [entry("a"), entry("b", "val"), named], " ": [entry("c", "test"), nosplit]}
    splits = {s.id: s.split for s in load_studies(write(tmp_path, annotation))}
    assert splits == {"a": "train", "b": "val", "c": "test", "d": "test", "e": "train"}


def test_a_study_of_one_view_has_no_lateral(tmp_path):
    (study,) = load_studies(write(tmp_path, {"train": [entry("a", views=1)]}))
    assert study.lateral is None and [view for view, _ in study.views] == [0]


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    write(tmp_path, {"train": [entry("a"), entry("b"), entry("c")]})
    for name in ("b/1.png", "c/0.png"):
        (tmp_path / "images" / name).unlink()
    message = refused(tmp_path)
    assert "lacks 2 images" in message and "b/1.png" in message and "c/0.png" not in message


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png"])
def test_a_path_that_leaves_the_images_is_refused(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(b"x")
    write(tmp_path, {"train": [{**entry("a"), "image_path": [name]}]}, images=False)
    assert "outside of images/" in refused(tmp_path)


def test_a_study_named_twice_is_refused(tmp_path):
    assert "twice" in refused(write(tmp_path, {"train": [entry("a")], "test": [entry("a", "test")]}))


@pytest.mark.parametrize(
    "text", ["", '{"train": [', "[]", '{"train": [{}]}', '{"train": 3}', '{"train": [7]}']
)
def test_a_damaged_annotation_is_refused_by_name(tmp_path, text):
    assert "annotation.json is damaged" in refused(write(tmp_path, text, images=False))


def test_an_annotation_without_studies_is_refused(tmp_path):
    assert "no study" in refused(write(tmp_path, {"train": []}))


@pytest.mark.parametrize(
    "change", [{"split": "dev"}, {"report": " "}, {"image_path": []}, {"image_path": ["x"] * 3}]
)
def test_an_entry_that_is_no_study_is_refused(tmp_path, change):
    assert "study a has split" in refused(write(tmp_path, {"train": [{**entry("a"), **change}]}))


def test_another_folder_is_refused_with_the_layout_it_should_have(tmp_path):
    assert "R2Gen" in refused(tmp_path)

"""Describing a data set: its numbers, what counts as normal, and train.py --describe."""

import json
from pathlib import Path

import pytest

import train
from llamaxr.data.study import Study
from llamaxr.tools.describe import as_text, describe, is_normal

A, B = Path("a.png"), Path("b.png")
STUDIES = [
    Study("1", A, B, "The heart is enlarged.", "train", terms=("Cardiomegaly/mild",)),
    Study("2", A, None, "Clear lungs, no effusion. Normal heart size today.", "train", terms=("Normal",)),
    Study("3", None, B, "Clear.", "test"),
    Study("4", A, B, "There is a left effusion.", "test"),
]


def test_the_numbers_of_a_split():
    splits = describe(STUDIES)["splits"]
    assert splits["train"] == {
        "studies": 2,
        "views": {"both": 1, "frontal only": 1, "lateral only": 0},
        "words": {"mean": 6.0, "median": 6.0, "longest": 8, "all": 12},
        "normal": {"share": 0.5, "decided": {"indexed": 2}},
        "different reports": 2,
    }
    assert splits["test"]["views"]["lateral only"] == 1 and "val" not in splits


@pytest.mark.parametrize(
    "study, expected",
    [
        (Study("d", A, None, "Effusion.", "train", frozenset()), (True, "drawn")),
        (Study("d", A, None, "Clear.", "train", frozenset({"effusion"})), (False, "drawn")),
        (Study("d", A, None, "Effusion.", "train", None, ("normal",)), (True, "indexed")),
        (Study("d", A, None, "Clear.", "train", None, ("No Indexing",)), (False, "indexed")),
        (Study("d", A, None, "No effusion.", "train"), (True, "labelled")),
        (Study("d", A, None, "Effusion.", "train"), (False, "labelled")),
    ],
)
def test_normal_is_decided_by_the_best_source_there_is(study, expected):
    assert is_normal(study) == expected


def test_the_text_has_each_split_the_source_of_normal_and_all_of_one_study():
    text = as_text(describe(STUDIES))
    assert max(map(len, text.splitlines())) <= 80
    assert "train       2" in text and 'MeSH terms include "normal" (2 studies)' in text
    assert (
        "labeller" in text and "report: The heart is enlarged." in text and "terms: Cardiomegaly/mild" in text
    )


def test_describe_prints_on_stdout_alone_and_trains_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"not opened here")
    path = tmp_path / "mine.csv"
    path.write_text("id,frontal,lateral,report,split\nx,a.png,b.png,Fine.,train\n")
    monkeypatch.setattr(train.runs, "build", pytest.fail)
    arguments = ["--data", "csv", "--root", str(path), "--describe", "--on-missing", "skip"]
    train.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["splits"]["train"]["studies"] == 1 and "missing images: 1" in err
    train.main(arguments)
    assert capsys.readouterr().out.startswith("split studies")

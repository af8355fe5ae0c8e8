"""Other people's reports, labels and scores: read as they are meant, or refused in one line; and written for
their tools."""

import csv
import json
from types import SimpleNamespace

import pytest

from llamaxr.errors import UserError
from llamaxr.metrics.agreement import is_normal
from llamaxr.metrics.table import Evaluation
from llamaxr.runs import other_systems

REFERENCES, REPORTS = ["The heart is large.", "Clear  lungs."], ["Left effusion.", ""]
IDS = ["a", "b"]
ROWS = [{"id": i, "reference": r, "generated": g} for i, r, g in zip(IDS, REFERENCES, REPORTS, strict=True)]
CHEXBERT = """Report Impression,Cardiomegaly,Lung Lesion,Pleural Effusion,Support Devices,No Finding
The heart is large.,1.0,,0,,
Clear lungs.,,0,,1,1
Left effusion.,-1.0,,1,,
Unsure.,-1,,,,
"""


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluation():
    return Evaluation(REFERENCES, REPORTS, [{}, {}], ("effusion",), [])


def options(tmp_path, **given):
    unset = dict.fromkeys(("score", "against", "labels"))
    return SimpleNamespace(**{**unset, "score": jsonl(tmp_path / "a.jsonl", ROWS), "limit": 0, **given})


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_chexberts_labels_are_findings_by_our_names(tmp_path):
    (tmp_path / "labels.csv").write_text(CHEXBERT)
    label, classes = other_systems.read_labels(tmp_path / "labels.csv")
    assert classes == ["cardiomegaly", "nodule", "effusion", "device"]
    assert label("The heart  is\nlarge.") == {"cardiomegaly": frozenset()}  # white space aside
    assert label("Left effusion.").keys() == {"effusion"} and label("Another.") is None
    normal = {text: is_normal(label(text)) for text in ("", "Clear lungs.", "Left effusion.", "Unsure.")}
    assert normal == {"": True, "Clear lungs.": True, "Left effusion.": False, "Unsure.": False}
    given = options(tmp_path, labels=tmp_path / "labels.csv")
    labelled = other_systems.with_others(evaluation(), IDS, given)
    assert [set(f) for f in labelled.findings] == [{"cardiomegaly"}, {"device", "no finding"}]
    assert other_systems.with_scores(labelled, IDS, given, []).extra == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [("a,b\n1,2\n", "needs a column Report Impression"), ("report\nx\n", "one per class"),
     ("report,Edema,edema\nx,1,1\n", "one per class"),
     ("report,Edema,Edema\nx,1,0\n", "two columns Edema"), ("report,Edema\nx,2\n", "line 2: Edema is '2'"),
     ("report,Edema\nx,yes\n", "a label is 1, 0, -1"), ("report,Edema\nx,nan\n", "a label is"),
     ("report,Edema\nx,1\nx,0\n", "line 3: the same report has other labels"),
     ("report,Edema\nx,1,1\n", "as many cells"), ('report,Edema\n"x,1\n', "as CSV"), ("", "needs a column"),
     ("report,Edema\nThe heart is large.,1\n", "no labels for 1 of 2 true reports ('Clear lungs.')")],
)  # fmt: skip
def test_a_file_of_labels_is_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "labels.csv").write_text(content)
    given = options(tmp_path, labels=tmp_path / "labels.csv")
    assert says in refusal(other_systems.with_others, evaluation(), IDS, given)


@pytest.mark.parametrize(
    ("name", "lines"),
    [("s.jsonl", '{"id": "a", "score": 0.5}\n{"id": "b", "score": 1}\n{"id": "of another", "score": 0}\n'),
     ("s.csv", "id,score\nb,1\na,0.5\n"),
     ("s.jsonl", '{"ref": "The heart is large.", "hyp": "Left effusion.", "score": 0.5}\n'
                 '{"ref": "Clear lungs.", "hyp": "", "score": 1}\n{"ref": "x", "hyp": "y", "score": 0.25}\n'),
     ("s.csv", 'ref,hyp,score\nThe heart is large.,Left effusion.,0.5\nClear lungs.,"",1\n')],
)  # fmt: skip
def test_a_score_belongs_to_an_id_or_to_two_texts(tmp_path, name, lines):
    (tmp_path / name).write_text(lines)
    given = options(tmp_path)
    for option, less in ((f"GREEN={tmp_path / name}", False), (f"GREEN:less={tmp_path / name}", True)):
        extra = other_systems.with_scores(evaluation(), IDS, given, [option]).extra["GREEN"]
        assert [extra.scores[pair] for pair in zip(REFERENCES, REPORTS, strict=True)] == [0.5, 1]
        assert ("The heart is large.", "") not in extra.scores and extra.less_is_better == less
    named = other_systems.with_scores(evaluation(), IDS, given, [f"RadCliQ-v1={tmp_path / name}"]).extra
    assert named["RadCliQ-v1"].less_is_better  # it counts errors


@pytest.mark.parametrize("header", ["hyp,score", "text,score"])
def test_a_table_of_scores_without_an_id_or_both_texts_is_refused_in_one_line(tmp_path, header):
    (tmp_path / "s.csv").write_text(f"{header}\nClear lungs.,1\n")
    says = refusal(
        other_systems.with_scores, evaluation(), IDS, options(tmp_path), [f"X={tmp_path / 's.csv'}"]
    )
    assert "line 2: a score needs an id, or ref and hyp" in says


def test_a_score_may_be_a_column_of_the_two_systems_files(tmp_path):
    ours = jsonl(tmp_path / "a.jsonl", [{**row, "F1": i} for i, row in enumerate(ROWS)])
    theirs = jsonl(
        tmp_path / "b.jsonl", [{**row, "generated": f"B{i}", "F1": i + 5} for i, row in enumerate(ROWS)]
    )
    given = options(tmp_path, against=theirs, score=ours)
    jsonl(ours, [{**row, "F1": i} for i, row in enumerate(ROWS)])
    both = other_systems.with_others(evaluation(), IDS, given)
    assert both.against == ["B0", "B1"]
    scores = other_systems.with_scores(both, IDS, given, ["F1"]).extra["F1"].scores
    assert scores[REFERENCES[1], ""] == 1 and scores[REFERENCES[1], "B1"] == 6


@pytest.mark.parametrize(
    ("lines", "says"),
    [('{"id": "a", "score": 1}', "for 1 of 2 reports ('b')"), ('{"id": "a"}', "line 1: score is 'None'"),
     ('{"id": "a", "score": "x"}', "no number"), ('{"id": "a", "score": NaN}', "line 1"), ("", "2 of 2"),
     ('{"hyp": "x", "score": 1}', "ref and hyp"), ("[1]", "line 1: no object"), ("{", "line 1")],
)  # fmt: skip
def test_a_file_of_scores_is_refused_in_one_line(tmp_path, lines, says):
    (tmp_path / "s.jsonl").write_text(lines)
    given = options(tmp_path)
    assert says in refusal(other_systems.with_scores, evaluation(), IDS, given, [f"X={tmp_path / 's.jsonl'}"])
    assert "X is 'None'" in refusal(
        other_systems.with_scores, evaluation(), IDS, given, ["X"]
    )  # no such column
    given.score = None
    assert "give NAME=FILE" in refusal(other_systems.with_scores, evaluation(), IDS, given, ["X"])


@pytest.mark.parametrize(
    ("rows", "says"),
    [(ROWS[:1], "lacks 1 of the studies ('b')"), ([*ROWS, {**ROWS[0], "id": "c"}], "has 1 more"),
     ([ROWS[0], {**ROWS[1], "reference": "x"}], "another reference of study 'b'"), (ROWS * 2, "twice")],
)  # fmt: skip
def test_two_systems_are_of_the_same_studies(tmp_path, rows, says):
    given = options(tmp_path, against=jsonl(tmp_path / "b.jsonl", rows))
    assert says in refusal(other_systems.with_others, evaluation(), IDS, given)


def test_what_is_exported_comes_back_as_scores_and_labels(tmp_path):
    systems = {
        "system": REPORTS,
        "swapped": [REPORTS[::-1], None],
        "constant": ['A "report",\nof two lines.'] * 2,
    }
    other_systems.export(tmp_path / "out", IDS, evaluation(), systems)
    rows = {p.stem: [json.loads(line) for line in p.open()] for p in (tmp_path / "out").glob("*.jsonl")}
    assert rows.keys() == systems.keys() and rows["swapped"][0] == {
        "id": "a",
        "ref": REFERENCES[0],
        "hyp": "",
    }
    with (tmp_path / "out" / "reports.csv").open(newline="") as file:
        head, *texts = csv.reader(file)
    assert head == ["Report Impression"] and len(texts) == 4 and all(texts)  # an empty text needs no label
    jsonl(tmp_path / "s.jsonl", [{**row, "score": len(name)} for name, of in rows.items() for row in of])
    extra = other_systems.with_scores(
        evaluation(), IDS, options(tmp_path), [f"X={tmp_path / 's.jsonl'}"]
    ).extra["X"]
    assert extra.scores[REFERENCES[0], systems["constant"][0]] == len("constant")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*head, "Edema"], *([*text, "1"] for text in texts)])
    label, _ = other_systems.read_labels(tmp_path / "labels.csv")
    assert all(label(row["hyp"]) is not None for of in rows.values() for row in of)

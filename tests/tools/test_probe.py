"""python -m llamaxr.tools.probe on a small run of phantoms: what it writes, prints and refuses."""

import json
import math
import shutil

import pytest
import torch

import train
from llamaxr.data.outline import OUTLINE, outline_line, with_outline
from llamaxr.data.study import Study
from llamaxr.metrics.findings import FINDINGS, find
from llamaxr.runs.features import pooled_features
from llamaxr.runs.terminal import one_line_errors
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.tools import probe
from llamaxr.vision import PATHOLOGIES, StudyFeatures
from tests.conftest import lay_out_phantoms


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps on 24 phantoms, and in place of eval.py's reports one report for all eight test studies."""
    root = tmp_path_factory.mktemp("iu")
    test = lay_out_phantoms(root, 24, 8, 8)["test"]
    reports = [
        {"id": s["id"], "reference": s["report"], "generated": "Small right pneumothorax."} for s in test
    ]
    call(train, "--data", "iu_xray", "--base", "tiny", "--vision", "tiny", "--root", root, "--cache",
         root / "cache", "--device", "cpu", "--steps", 3, "--batch", 8, "--lr", 3e-3, "--val-every", 3,
         "--val-studies", 0, "--warmup-share", 0.34, "--n-samples", 0, "--out", root / "run")  # fmt: skip
    torch.set_flush_denormal(False)  # train.py sets it
    (root / "run" / "eval-test").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in reports)
    (root / "run" / "eval-test" / "reports.jsonl").write_text(lines)
    return root / "run"


def call(script, *argv):
    with one_line_errors():
        script.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def probed(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "MIN_EXAMPLES", 3)  # few of the 24 have any one finding
        call(probe, "--run", run, "--device", "cpu")
    return json.loads((run / "eval-test" / "probes.json").read_text())


def test_on_val_the_start_and_the_fine_tuned_model_have_the_training_runs_validation_loss(run, tmp_path):
    call(probe, "--run", run, "--split", "val", "--out", tmp_path, "--batch", 3, "--device", "cpu")
    readers = json.loads((tmp_path / "probes.json").read_text())["perplexity"]["readers"]
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # the same arithmetic in another order: batches of 3, not of 8
    assert math.log(readers[probe.START]["all"][0]) == pytest.approx(losses[0]["val_loss"], abs=1e-4)
    assert math.log(readers[probe.TUNED]["all"][0]) == pytest.approx(losses[-1]["val_loss"], abs=1e-4)


def test_a_run_that_began_with_an_adapter_is_read_with_it_at_its_start_and_its_base_without(run, tmp_path):
    readers = {}
    for name in ("fresh", "adapted"):
        shutil.copytree(run, tmp_path / name)
        if name == "adapted":
            config = json.loads((run / "config.json").read_text()) | {"adapter": str(run / "step-000003")}
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        call(probe, "--run", tmp_path / name, "--split", "val", "--limit", 4, "--device", "cpu")
        probes = json.loads((tmp_path / name / "eval-val" / "probes.json").read_text())
        readers[name] = probes["perplexity"]["readers"]
    fresh, adapted = readers["fresh"], readers["adapted"]
    assert adapted[probe.START] != fresh[probe.START] and adapted[probe.BASE] == fresh[probe.BASE]
    assert adapted[probe.TUNED] == fresh[probe.TUNED]


def test_the_four_readers_differ_and_fine_tuning_lowers_the_perplexity(probed):
    readers = probed["perplexity"]["readers"]
    values = {name: row["all"][0] for name, row in readers.items()}
    assert len(set(values.values())) == 4 and values[probe.TUNED] < values[probe.START]
    for row in readers.values():
        assert row["all"][1] <= row["all"][0] <= row["all"][2]
        low, high = sorted((row["findings"][0], row["rest"][0]))
        assert low <= row["all"][0] <= high


def test_each_class_with_enough_studies_has_its_auroc_with_an_interval(probed):
    features = probed["features"]
    assert features["annotations"] == "what the reports assert"  # this layout has no index terms
    assert (features["train"], features["evaluated"]) == (24, 8) and len(features["classes"]) > 2
    for row in features["classes"].values():
        assert 3 <= row["train"] <= 21 and 0 < row["evaluated"] < 8
        for value, low, high in (row[kind] for kind in ("probe", "score") if kind in row):
            assert 0 <= low <= value <= high <= 1


def test_an_assertion_is_denied_where_its_scores_are_low(run, probed, capsys):
    by = probed["denied"]["reports"]
    assert by["generated"]["pneumothorax"]["asserted"] == 8 and by["generated"]["all"]["asserted"] == 8
    assert by["swapped"] == by["generated"]  # one report for all
    assert by["true"]["all"]["asserted"] > by["true"]["pneumothorax"]["asserted"] > 0
    call(probe, "--run", run, "--device", "cpu", "--below", 1.0, "--limit", 4)
    rows = json.loads((run / "eval-test" / "probes.json").read_text())["denied"]["reports"]["generated"]
    assert (rows["pneumothorax"]["denied"], rows["pneumothorax"]["asserted"]) == (4, 4)  # no score reaches 1
    out = capsys.readouterr().out
    assert all(words in out for words in ("linear probe", probe.BASE, probe.SWAPPED, "4/4 1.000"))


def test_findings_are_scored_by_features_outlines_and_reports(run, tmp_path, capsys):
    test = [json.loads(line) for line in (run / "eval-test" / "reports.jsonl").read_text().splitlines()]
    outlines = [{"id": row["id"], "outline": "", "generated": row["generated"]} for row in test]
    for row, study in zip(outlines, test, strict=True):  # each true report's own outline
        row["outline"] = outline_line(with_outline(study["reference"])).removeprefix(OUTLINE).strip()
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    lines = "".join(json.dumps(row) + "\n" for row in [{"run": "settings"}, *outlines])
    (tmp_path / "generated.jsonl").write_text(lines)
    call(probe, "--run", run, "--device", "cpu", "--reports", tmp_path / "reports.jsonl", "--out", tmp_path)
    lost = json.loads((tmp_path / "probes.json").read_text())["findings"]
    assert list(lost) == [probe.LINEAR, "outlines", "reports"]
    assert lost["outlines"]["micro_f1"] == lost["outlines"]["macro_f1"] == [1, 1, 1]
    truths = [find(study["reference"]) & {*FINDINGS} for study in test]
    n_true, n_right = sum(map(len, truths)), sum("pneumothorax" in t for t in truths)
    assert lost["reports"]["micro_f1"][0] == pytest.approx(2 * n_right / (n_true + len(test)))
    assert 0 < lost[probe.LINEAR]["micro_f1"][0] < 1 and "behind" not in lost[probe.LINEAR]
    for above, below in (probe.LINEAR, "outlines"), ("outlines", "reports"):
        value, low, high = lost[below]["behind"]
        assert value == pytest.approx(lost[above]["micro_f1"][0] - lost[below]["micro_f1"][0])
        assert low <= value <= high
    assert lost["reports"]["behind"][1] > 0  # the outlines are right in each resample, one report cannot be
    assert "4. Findings F1" in capsys.readouterr().out
    (tmp_path / "generated.jsonl").write_text(lines[: lines.rindex("{")])  # eval.py was stopped
    with pytest.raises(SystemExit):
        call(probe, "--run", run, "--reports", tmp_path / "reports.jsonl", "--out", tmp_path)
    assert "generated.jsonl lacks 1 studies" in capsys.readouterr().err


def test_where_nothing_is_asserted_there_is_no_f1():
    features = lambda x: StudyFeatures([0], torch.full((1, 3, 2, 2), x), torch.zeros(1, 18))
    effusion = features(1.0), Study("1", None, None, "Large effusion.", "train")
    clear = features(0.0), Study("2", None, None, "Clear.", "train")
    rows = probe.probe_findings([effusion, clear, clear], [clear, clear], None, None)
    assert rows == {probe.LINEAR: {"micro_f1": [None] * 3, "macro_f1": [None] * 3}}
    assert probe._cell(rows[probe.LINEAR]["micro_f1"]) == "-"


def test_findings_come_from_drawings_or_index_terms_before_reports():
    features = StudyFeatures([0], torch.zeros(1, 4, 7, 7), torch.zeros(1, 18))
    study = lambda **known: Study("1", None, None, "Large effusion.", "test", **known)
    parts = lambda *studies: [[(features, study) for study in studies]]
    found = lambda *studies: [names for _, names in probe.annotations(parts(*studies))[1][0]]
    assert found(study(findings=frozenset({"nodule"}))) == [{"nodule"}]
    assert found(study(terms=("Cicatrix/lung",)), study(terms=("No Indexing",))) == [{"scar"}]
    assert found(study(terms=("normal",))) == [{"no finding"}]
    assert found(study()) == [find("Large effusion.")]


def test_a_view_that_a_study_lacks_is_zeros():
    lateral = StudyFeatures([1], torch.ones(1, 3, 7, 7).half(), torch.zeros(1, 18))
    assert pooled_features(lateral).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_view_is_pooled_by_its_parts_and_one_that_a_study_lacks_is_what_the_caller_says():
    grid = torch.arange(16.0).view(1, 1, 4, 4)
    frontal = StudyFeatures([0], torch.cat([grid, 100 + grid], dim=1).half(), torch.zeros(1, 18))
    parts = [2.5, 4.5, 10.5, 12.5]  # upper left, upper right, lower left, lower right; channel after channel
    expected = [*parts, *(100 + part for part in parts), *[math.nan] * 8]
    assert pooled_features(frontal, 2, math.nan).tolist() == pytest.approx(expected, nan_ok=True)


def test_scores_without_labels_deny_nothing():
    vision = load_vision("tiny")
    vision.op_threshs = torch.full((18,), 0.5)
    vision.op_threshs[PATHOLOGIES.index("Lung Opacity")] = math.nan
    columns = probe.labelled_columns(vision)
    assert "lung opacity" not in columns and columns["edema"] == [PATHOLOGIES.index("Edema")]


def test_probe_refuses_in_one_line(run, capsys, tmp_path):
    def refusal(*argv):
        with pytest.raises(SystemExit) as stop:
            call(probe, "--device", "cpu", *argv)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert stop.value.code == 2
        return line

    (tmp_path / "some.jsonl").write_text('{"id": "32", "generated": "Clear."}\n')
    lacking = refusal("--run", run, "--reports", tmp_path / "some.jsonl", "--out", tmp_path, "--limit", 2)
    assert "lacks 1 studies, the first 33" in lacking
    assert "is missing" in refusal("--run", run, "--reports", tmp_path / "none.jsonl")
    assert "too few" in refusal("--run", run, "--limit", 1)
    assert "config.json" in refusal("--run", tmp_path)


def test_swapped_reports_are_those_of_other_studies_and_one_view_that_shows_it_is_enough():
    def features(*scores):
        return StudyFeatures([0, 1], torch.zeros(2, 3, 7, 7), torch.tensor(scores)[:, None].expand(2, 18))

    evaluated = [(features(0.1, 0.9), Study("1", None, None, "Large effusion.", "test")),
                 (features(0.1, 0.2), Study("2", None, None, "Clear.", "test"))]  # fmt: skip
    generated = {study.id: study.report for _, study in evaluated}
    columns = {"effusion": [PATHOLOGIES.index("Effusion")]}
    rows = probe.probe_denials(evaluated, generated, columns, probe.ProbeOptions())["reports"]
    assert [rows[name]["effusion"]["denied"] for name in ("generated", "swapped")] == [0, 1]

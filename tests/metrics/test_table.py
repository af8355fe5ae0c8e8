"""The table: floors, groups, intervals, and the sentences below it."""

import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from llamaxr.metrics import baselines, coco, overlap, screen, table, verdicts
from llamaxr.metrics.findings import FINDINGS

REFERENCES = [
    "The heart is enlarged. The lungs are clear.",
    "There is a small right pleural effusion. The heart is normal in size.",
    "The heart is normal in size. The lungs are clear.",
    "There is a left pneumothorax. No pleural effusion.",
    "Consolidation in the right lower lobe. The heart is normal in size.",
    "The lungs are hyperinflated. No pneumothorax.",
] * 10
CONSTANT = "The heart is normal in size. The lungs are clear."


def evaluation_of(predictions, train=("The lungs are clear.", CONSTANT)):
    findings = [table.true_findings(text) for text in REFERENCES]
    return table.Evaluation(REFERENCES, predictions, findings, FINDINGS, list(train))


def evaluated(predictions, **changes):
    evaluation = evaluation_of(predictions, **changes)
    systems = table.all_systems(evaluation, [], None, seed=0)
    return table.evaluate(evaluation, systems, table.Scorer(evaluation))


def results_of(groups, **settings):
    settings = {"score": "a.jsonl", "seed": 0, "studies": groups["all"]["studies"], **settings}
    return {"settings": settings, "groups": groups, "in_words": verdicts.in_words(groups)}


@pytest.fixture(scope="module", autouse=True)
def short_search():
    with pytest.MonkeyPatch.context() as patch:
        short = partial(baselines.constant_report, n_starts=2, n_changes=100)
        patch.setattr(baselines, "constant_report", short)
        yield


@pytest.fixture(scope="module")
def perfect():
    return evaluated(REFERENCES)


def test_a_perfect_system_scores_one_and_its_swap_does_not(perfect):
    systems = perfect["all"]["writers"]
    assert systems["system"]["findings"]["micro_f1"] == [1, 1, 1]
    assert systems["system"]["llama_xr"]["rouge_l"] == [1, 1, 1]
    assert systems["swapped"]["findings"]["micro_f1"][2] < 0.4
    words = verdicts.in_words(perfect)
    assert words[0].startswith("It uses the image: findings F1, 1.000, falls by")
    assert "Beside one report for everybody: ROUGE-L better, +" in " ".join(words)


def test_of_a_system_that_writes_one_report_for_all_no_use_of_the_images_can_be_told():
    constant = table.all_systems(evaluation_of(REFERENCES), [], None, seed=0)["constant"]
    lines = verdicts.in_words(evaluated(constant))
    assert lines[0].startswith("Whether it uses the image cannot be told")
    assert "1 different reports" in lines[0] and "of 11 scores 11 cannot be told" in " ".join(lines)


def test_outlines_are_scored_beside_the_system_as_findings_only():
    outlines = [table.true_findings(text) for text in REFERENCES]
    evaluation = replace(evaluation_of([CONSTANT] * len(REFERENCES)), outlines=outlines)
    groups = table.evaluate(evaluation, {"system": evaluation.predictions}, table.Scorer(evaluation))
    systems = groups["abnormal"]["writers"]
    assert systems["outline"]["findings"]["micro_f1"] == [1, 1, 1] and "llama_xr" not in systems["outline"]
    assert systems["system"]["findings"]["micro_f1"][0] == 0
    assert groups["all"]["differences"]["outline"]["findings"]["micro_f1"][0] == -1


def test_the_most_frequent_findings_told_of_everybody_are_a_floor_of_findings_only():
    train = ["There is scoliosis."] * 6 + ["Cardiomegaly."] * 3 + ["A left effusion."] + ["Clear."] * 2
    evaluation = replace(evaluation_of(REFERENCES), train_reports=train)
    groups = table.evaluate(evaluation, {"system": REFERENCES}, table.Scorer(evaluation))
    floor, found = groups["all"]["writers"]["frequent"], [table.true_findings(text) for text in REFERENCES]
    # told alone, scoliosis has 2 * 6 / (12 + 10); with a large heart it would be 2 * 9 / (24 + 10)
    right = sum("scoliosis" in of_study for of_study in found)
    assert floor["findings"]["micro_f1"][0] == 2 * right / (len(found) + sum(map(len, found)))
    assert floor.keys() == {"findings", "classes", "per_class"}
    labels = dict(zip(REFERENCES, found, strict=True)).get  # of the references alone: no floor
    evaluation = replace(evaluation, label=labels)
    writers = table.evaluate(evaluation, {"system": REFERENCES}, table.Scorer(evaluation))["all"]["writers"]
    assert "frequent" not in writers and "findings" in writers["system"]


def test_a_swap_moves_every_report_to_another_study():
    texts = [f"report {i}" for i in range(len(REFERENCES))]
    swaps = table.all_systems(evaluation_of(texts), [], None, seed=0)["swapped"]
    assert len(swaps) == table.N_SWAPS and len({tuple(s) for s in swaps}) == table.N_SWAPS
    assert all(sorted(s) == sorted(texts) and not any(map(str.__eq__, s, texts)) for s in swaps)


def test_with_many_studies_only_some_are_swapped_and_the_others_have_none(monkeypatch):
    monkeypatch.setattr(table, "MAX_SWAPPED", 20)
    texts = [f"report {i}" for i in range(len(REFERENCES))]
    swaps = table.all_systems(evaluation_of(texts), [], None, seed=0)["swapped"]
    (moved,) = {tuple(i for i, text in enumerate(swap) if text is not None) for swap in swaps}
    assert len(moved) == 20
    for swap in swaps:
        assert sorted(swap[i] for i in moved) == sorted(texts[i] for i in moved)
        assert not any(swap[i] == texts[i] for i in moved)
    part = evaluated(REFERENCES)
    assert part["all"]["writers"]["swapped"]["llama_xr"]["bleu_1"][0] > 0
    assert verdicts.in_words(part)[0].startswith("It uses the image")


def test_a_group_without_swapped_studies_has_no_swap(monkeypatch):
    monkeypatch.setattr(table, "MAX_SWAPPED", 2)
    groups = evaluated(REFERENCES)
    has = {name: "swapped" in group["writers"] for name, group in groups.items()}
    assert has["all"] and not (has["normal"] and has["abnormal"] and has["text not in train"])
    screen.full(results_of(groups))


def test_studies_are_grouped_by_their_findings_and_by_whether_their_text_is_in_train():
    groups = table.groups(evaluation_of(REFERENCES))
    assert len(groups["normal"]) == 10 and len(groups["abnormal"]) == 50
    assert sorted(groups["normal"] + groups["abnormal"]) == groups["all"]
    assert groups["text not in train"] == [i for i, text in enumerate(REFERENCES) if text != CONSTANT]


def test_without_training_reports_there_are_no_floors(perfect):
    bare = evaluated(REFERENCES, train=())
    assert set(bare["all"]["writers"]) == {"system", "swapped"} and "text not in train" not in bare
    assert "verbatim_in_train" not in bare["all"]["writers"]["system"]["reports"]
    assert set(perfect["all"]["writers"]) == {"system", "swapped", "constant", "random", "frequent"}
    assert "constant" not in screen.screen(results_of(bare)) + screen.full(results_of(bare))


def test_the_constant_report_never_sees_the_reports_that_are_scored(monkeypatch):
    calls = []
    monkeypatch.setattr(baselines, "constant_report", lambda *of, seed: calls.append(of) or CONSTANT)
    train, val = [f"train {i}" for i in range(400)], [f"val {i}" for i in range(5)]
    for val_reports in ([], val):
        table.all_systems(evaluation_of(REFERENCES, train), val_reports, None, seed=0)
    assert calls == [(train, []), (train, val)]


def test_each_score_of_the_table_is_the_metrics_own():
    predictions = REFERENCES[1:] + REFERENCES[:1]
    scores = evaluated(predictions)["all"]["writers"]["system"]
    for block, module in (("llama_xr", overlap), ("coco", coco)):
        expected = module.score(REFERENCES, predictions)
        assert {name: scores[block][name][0] for name in expected} == pytest.approx(expected)


def test_counts_of_two_systems_at_most_are_in_memory(monkeypatch):
    evaluation, measurements, n_alive = evaluation_of(REFERENCES), [], []
    scorer = table.Scorer(evaluation)
    measure = scorer.measure

    def watched(reports):
        n_alive.append(sum(counts() is not None for counts in measurements))
        measured = measure(reports)
        measurements.append(weakref.ref(measured["coco"][1]))
        return measured

    monkeypatch.setattr(scorer, "measure", watched)
    table.evaluate(evaluation, table.all_systems(evaluation, [], None, seed=0), scorer)
    assert len(measurements) == 1 + table.N_SWAPS + 2 and n_alive == [0] + [1] * (len(measurements) - 1)


def test_a_difference_is_that_of_the_scores_in_every_group():
    for part in evaluated(REFERENCES[:30] + [CONSTANT] * 30).values():
        for name, blocks in part["differences"].items():
            for block, gaps in blocks.items():
                for score, gap in gaps.items():
                    own, other = (part["writers"][w][block][score] for w in ("system", name))
                    if gap is None:
                        assert own is None or other is None
                    elif name != "swapped":  # whose scores are means over the orders
                        assert gap[0] == pytest.approx(own[0] - other[0])
                        assert gap[1] - 1e-9 <= gap[0] <= gap[2] + 1e-9


def test_few_findings_decide_nothing():
    references = [CONSTANT] * 39 + ["There is a left pneumothorax."]
    findings = [table.true_findings(text) for text in references]
    evaluation = table.Evaluation(references, references, findings, FINDINGS, [CONSTANT])
    groups = table.evaluate(evaluation, table.all_systems(evaluation, [], None, 0), table.Scorer(evaluation))
    assert groups["all"]["differences"]["swapped"]["findings"]["micro_f1"] == [1, 0, 1]
    assert verdicts.in_words(groups)[0].startswith("Whether it uses the image cannot be told")
    assert groups["normal"]["writers"]["system"]["findings"]["micro_f1"] is None


def test_another_system_is_compared_on_the_same_studies():
    evaluation = evaluation_of(REFERENCES)
    evaluation = replace(evaluation, against=table.all_systems(evaluation, [], None, 0)["constant"])
    systems = table.all_systems(evaluation, [], None, 0)
    groups = table.evaluate(evaluation, systems, table.Scorer(evaluation))
    part = groups["all"]
    assert part["differences"]["against"] == part["differences"]["constant"]
    assert verdicts.in_words(groups)[1].startswith("Beside the other system: findings F1 better, +1.000")


def test_anyones_scores_go_through_groups_swaps_and_floors_and_less_may_be_better():
    evaluation = evaluation_of(REFERENCES)
    systems = table.all_systems(evaluation, [], None, seed=0)
    scored = (systems["system"], systems["constant"], systems["swapped"][0])  # not the random ones
    errors = {p: float(p[0] != p[1]) for reports in scored for p in zip(REFERENCES, reports, strict=True)}
    good = table.Extra({pair: 1 - error for pair, error in errors.items()})
    extra = {"errors": table.Extra(errors, less_is_better=True), "good": good}
    evaluation = replace(evaluation, extra=extra)
    part = table.evaluate(evaluation, systems, table.Scorer(evaluation))["all"]
    assert part["writers"]["system"]["extra"] == {"errors": [0, 0, 0], "good": [1, 1, 1]}
    assert "extra" not in part["writers"]["random"] and part["writers"]["swapped"]["extra"]["errors"][0] > 0.5
    gaps = part["differences"]["swapped"]["extra"]
    assert gaps["errors"] == pytest.approx(gaps["good"]) and verdicts.verdict(gaps["errors"]) == "better"
    (line,) = (line for line in verdicts.in_words({"all": part}) if line.startswith("errors"))
    assert "beside one report for everybody better" in line and "random" not in line


def test_a_system_with_a_report_that_nobody_labelled_has_no_findings():
    label = {CONSTANT: {}, **{text: table.true_findings(text) for text in REFERENCES}}.get
    evaluation = replace(evaluation_of(REFERENCES, train=[CONSTANT, "Unlabelled."]), label=label)
    writers = table.evaluate(
        evaluation, {"system": REFERENCES, "random": [CONSTANT, "Unlabelled."] * 30}, table.Scorer(evaluation)
    )["all"]["writers"]
    assert writers["system"]["findings"]["micro_f1"] == [1, 1, 1] and "findings" not in writers["random"]


def test_findings_of_the_data_set_take_their_sides_from_the_report():
    truth = table.true_findings("Left pleural effusion.", frozenset({"effusion", "nodule"}))
    assert truth == {"effusion": frozenset({"left"}), "nodule": frozenset()}


def test_a_spread_is_mean_lowest_and_highest():
    blocks = [{b: {n: [v] for n in names} for b, names in table.BLOCKS.items()} for v in (0.1, 0.4, 0.1)]
    assert np.allclose(table.spread(blocks)["coco"]["cider"], [0.2, 0.1, 0.4])
    some = [{"extra": {"a": [0.1], "b": [0.3]}}, {"extra": {"a": [0.2]}}]  # b is known of one order alone
    assert table.spread(some)["extra"]["b"] == [0.3, 0.3, 0.3]
    assert table.spread([{"findings": {"micro_f1": None}}]) == {"findings": {"micro_f1": None}}


def test_r2gens_form_has_its_cut_and_its_vocabulary_of_the_training_reports():
    train, predictions = [CONSTANT] * 3, [" ".join([text, *[CONSTANT] * 6]) for text in REFERENCES]
    evaluation = evaluation_of(predictions, train)
    scorer = table.Scorer(evaluation, compat=True)
    scores = table.evaluate(evaluation, {"system": predictions}, scorer)["all"]["writers"]["system"]["coco"]
    expected = coco.score(REFERENCES, predictions, coco.CUT, coco.vocabulary(train))
    assert {name: scores[name][0] for name in expected} == pytest.approx(expected)


def test_comparisons_that_a_system_invents_are_its_own():
    last = verdicts.in_words(evaluated(["The heart is unchanged."] * len(REFERENCES)))[-1]
    assert last.endswith("in 100.0% of its reports; true ones 0.0%.")


def test_a_finding_of_no_class_leaves_a_study_normal_whoever_tells_it():
    texts = ["The aorta is tortuous.", "There is scoliosis."]
    evaluation = table.Evaluation(texts, texts, [table.true_findings(t) for t in texts], FINDINGS, [])
    groups = table.evaluate(evaluation, {"system": texts}, table.Scorer(evaluation))
    row = groups["all"]["writers"]["system"]["per_class"]["no finding"]
    assert groups["normal"]["studies"] == 1 and (row["right"], row["missed"], row["invented"]) == (1, 0, 0)

"""The table: floors, groups, intervals, and the sentences below it."""

import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from llamaxr.metrics import baselines, coco, overlap, table
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
    assert "much comes from the image" in " ".join(table.plain_words(perfect))
    assert "beats one report written for everybody" in " ".join(table.plain_words(perfect))


def test_a_system_that_writes_one_report_for_all_does_not_look_at_the_images():
    constant = table.all_systems(evaluation_of(REFERENCES), [], None, seed=0)["constant"]
    lines = " ".join(table.plain_words(evaluated(constant)))
    assert "Swapping the images costs nothing" in lines and "cannot be told from one report" in lines


def test_outlines_are_scored_beside_the_system_as_findings_only():
    outlines = [table.true_findings(text) for text in REFERENCES]
    evaluation = replace(evaluation_of([CONSTANT] * len(REFERENCES)), outlines=outlines)
    groups = table.evaluate(evaluation, {"system": evaluation.predictions}, table.Scorer(evaluation))
    systems = groups["abnormal"]["writers"]
    assert systems["outline"]["findings"]["micro_f1"] == [1, 1, 1] and "llama_xr" not in systems["outline"]
    assert systems["system"]["findings"]["micro_f1"][0] == 0
    heads = [line.split() for line in table.as_text(groups).splitlines() if line.endswith("outline")]
    assert heads == [["system", "outline"]] * len(groups)


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
    assert "much comes from the image" in " ".join(table.plain_words(part))


def test_a_group_without_swapped_studies_has_no_swap(monkeypatch):
    monkeypatch.setattr(table, "MAX_SWAPPED", 2)
    groups = evaluated(REFERENCES)
    has = {name: "swapped" in group["writers"] for name, group in groups.items()}
    assert has["all"] and not (has["normal"] and has["abnormal"] and has["text not in train"])
    table.as_text(groups)


def test_studies_are_grouped_by_their_findings_and_by_whether_their_text_is_in_train():
    groups = table.groups(evaluation_of(REFERENCES))
    assert len(groups["normal"]) == 10 and len(groups["abnormal"]) == 50
    assert sorted(groups["normal"] + groups["abnormal"]) == groups["all"]
    assert groups["text not in train"] == [i for i, text in enumerate(REFERENCES) if text != CONSTANT]


def test_without_training_reports_there_are_no_floors(perfect):
    bare = evaluated(REFERENCES, train=())
    assert set(bare["all"]["writers"]) == {"system", "swapped"} and "text not in train" not in bare
    assert "verbatim_in_train" not in bare["all"]["writers"]["system"]["reports"]
    assert set(perfect["all"]["writers"]) == {"system", "swapped", "constant", "random"}
    table.as_text(bare)


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


def test_the_difference_of_f1_is_the_difference_of_the_two_f1s():
    part = evaluated(REFERENCES[:30] + [CONSTANT] * 30)["all"]
    f1 = {name: w["findings"]["micro_f1"][0] for name, w in part["writers"].items()}
    value, low, high = part["differences"]["constant"]["micro_f1"]
    assert value == pytest.approx(f1["system"] - f1["constant"]) and low <= value <= high


def test_findings_of_the_data_set_take_their_sides_from_the_report():
    truth = table.true_findings("Left pleural effusion.", frozenset({"effusion", "nodule"}))
    assert truth == {"effusion": frozenset({"left"}), "nodule": frozenset()}


def test_a_spread_is_mean_lowest_and_highest():
    blocks = [{b: {n: [v] for n in names} for b, names in table.BLOCKS.items()} for v in (0.1, 0.4, 0.1)]
    assert np.allclose(table.spread(blocks)["coco"]["cider"], [0.2, 0.1, 0.4])


def test_every_number_of_the_text_has_its_interval(perfect):
    numbers = 0
    for line in table.as_text(perfect).splitlines():
        name, cells = line[:22].strip(), line[22:].replace("[", " [").split()
        if cells and cells[0][0].isdigit() and " studies" not in line:
            assert name and len(cells) % 2 == 0, line
            for value, interval in zip(cells[::2], cells[1::2], strict=True):
                low, high = map(float, interval.strip("[]").split(","))
                assert low <= float(value) <= high, line
            numbers += len(cells) // 2
    assert numbers > 4 * 21 * 3  # four groups, each with at least three systems


def test_the_text_has_every_block_group_and_system(perfect):
    text = table.as_text(perfect)
    groups = ("normal, 10 studies", "abnormal, 50 studies")
    assert all(words in text for words in (overlap.CONVENTION, coco.CONVENTION, *groups, "wrong side"))
    assert coco.CONVENTION_COMPAT in table.as_text(perfect, compat=True)

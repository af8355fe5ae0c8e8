"""The table: floors, groups, intervals, and what follows from them in words."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from llamaxr.metrics import coco, overlap, table
from llamaxr.metrics.findings import FINDINGS

TRUTHS = [
    "The heart is enlarged. The lungs are clear.",
    "There is a small right pleural effusion. The heart is normal in size.",
    "The heart is normal in size. The lungs are clear.",
    "There is a left pneumothorax. No pleural effusion.",
    "Consolidation in the right lower lobe. The heart is normal in size.",
    "The lungs are hyperinflated. No pneumothorax.",
] * 10
CONSTANT = "The heart is normal in size. The lungs are clear."


def judged(generated, train=("The lungs are clear.", CONSTANT)):
    findings = [table.truth_of(text) for text in TRUTHS]
    return table.Judged(TRUTHS, generated, findings, FINDINGS, list(train))


def scored(generated, **how):
    split = judged(generated, **how)
    written = table.writers(split, [], None, seed=0)
    return table.judge(split, written, table.Scorer(split))


@pytest.fixture(scope="module")
def perfect():
    return scored(TRUTHS)


def test_a_perfect_system_scores_one_and_its_swap_does_not(perfect):
    writers = perfect["all"]["writers"]
    assert writers["system"]["findings"]["micro_f1"] == [1, 1, 1]
    assert writers["system"]["llama_xr"]["rouge_l"] == [1, 1, 1]
    assert writers["swapped"]["findings"]["micro_f1"][2] < 0.4
    assert "much comes from the image" in " ".join(table.plain_words(perfect))
    assert "beats one report written for everybody" in " ".join(table.plain_words(perfect))


def test_a_system_that_writes_one_report_for_all_is_told_that_it_does_not_look():
    constant = table.writers(judged(TRUTHS), [], None, seed=0)["constant"]
    lines = " ".join(table.plain_words(scored(constant)))
    assert "Swapping the images costs nothing" in lines and "cannot be told from one report" in lines


def test_what_was_outlined_stands_beside_what_was_told_in_findings_alone():
    split = replace(judged([CONSTANT] * len(TRUTHS)), outlined=[table.truth_of(text) for text in TRUTHS])
    groups = table.judge(split, {"system": split.generated}, table.Scorer(split))
    writers = groups["abnormal"]["writers"]
    assert writers["outline"]["findings"]["micro_f1"] == [1, 1, 1] and "llama_xr" not in writers["outline"]
    assert writers["system"]["findings"]["micro_f1"][0] == 0
    heads = [line.split() for line in table.as_text(groups).splitlines() if line.endswith("outline")]
    assert heads == [["system", "outline"]] * len(groups)


def test_a_swap_moves_every_report_to_another_study():
    texts = [f"report {i}" for i in range(len(TRUTHS))]
    swaps = table.writers(judged(texts), [], None, seed=0)["swapped"]
    assert len(swaps) == table.N_SWAPS and len({tuple(s) for s in swaps}) == table.N_SWAPS
    assert all(sorted(s) == sorted(texts) and not any(map(str.__eq__, s, texts)) for s in swaps)


def test_of_many_studies_some_change_places_and_the_others_keep_out_of_it(monkeypatch):
    monkeypatch.setattr(table, "MOST_SWAPPED", 20)
    texts = [f"report {i}" for i in range(len(TRUTHS))]
    swaps = table.writers(judged(texts), [], None, seed=0)["swapped"]
    (moved,) = {tuple(i for i, text in enumerate(swap) if text is not None) for swap in swaps}
    assert len(moved) == 20
    for swap in swaps:
        assert sorted(swap[i] for i in moved) == sorted(texts[i] for i in moved)
        assert not any(swap[i] == texts[i] for i in moved)
    part = scored(TRUTHS)
    assert part["all"]["writers"]["swapped"]["llama_xr"]["bleu_1"][0] > 0
    assert "much comes from the image" in " ".join(table.plain_words(part))


def test_a_group_of_which_none_changed_places_has_no_swap(monkeypatch):
    monkeypatch.setattr(table, "MOST_SWAPPED", 2)
    groups = scored(TRUTHS)
    has = {name: "swapped" in group["writers"] for name, group in groups.items()}
    assert has["all"] and not (has["normal"] and has["abnormal"] and has["text not in train"])
    table.as_text(groups)


def test_groups_part_the_studies_by_what_is_there_and_by_what_was_trained_on():
    groups = table.groups(judged(TRUTHS))
    assert len(groups["normal"]) == 10 and len(groups["abnormal"]) == 50
    assert sorted(groups["normal"] + groups["abnormal"]) == groups["all"]
    assert groups["text not in train"] == [i for i, text in enumerate(TRUTHS) if text != CONSTANT]


def test_without_training_reports_there_are_no_floors_of_them(perfect):
    bare = scored(TRUTHS, train=())
    assert set(bare["all"]["writers"]) == {"system", "swapped"} and "text not in train" not in bare
    assert "verbatim_in_train" not in bare["all"]["writers"]["system"]["reports"]
    assert set(perfect["all"]["writers"]) == {"system", "swapped", "constant", "random"}
    table.as_text(bare)


def test_each_score_of_the_table_is_the_metrics_own():
    generated = TRUTHS[1:] + TRUTHS[:1]
    part = scored(generated)["all"]["writers"]["system"]
    ours = overlap.score(TRUTHS, generated)
    assert {name: part["llama_xr"][name][0] for name in ours} == pytest.approx(ours)
    theirs = coco.score(TRUTHS, generated)
    assert {name: part["coco"][name][0] for name in theirs} == pytest.approx(theirs)


def test_of_many_writers_what_was_measured_is_held_of_the_system_and_one_other_at_a_time(monkeypatch):
    split, made, held = judged(TRUTHS), [], []
    scorer = table.Scorer(split)
    measure = scorer.measure

    def watched(reports):
        held.append(sum(rows() is not None for rows in made))
        measured = measure(reports)
        made.append(weakref.ref(measured["coco"][1]))
        return measured

    monkeypatch.setattr(scorer, "measure", watched)
    table.judge(split, table.writers(split, [], None, seed=0), scorer)
    assert len(made) == 1 + table.N_SWAPS + 2 and held == [0] + [1] * (len(made) - 1)


def test_the_difference_of_f1_is_the_difference_of_the_two_f1s():
    part = scored(TRUTHS[:30] + [CONSTANT] * 30)["all"]
    f1 = {name: w["findings"]["micro_f1"][0] for name, w in part["writers"].items()}
    value, low, high = part["differences"]["constant"]["micro_f1"]
    assert value == pytest.approx(f1["system"] - f1["constant"]) and low <= value <= high


def test_findings_known_by_themselves_take_their_sides_from_the_report():
    truth = table.truth_of("Left pleural effusion.", frozenset({"effusion", "nodule"}))
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
    assert numbers > 4 * 21 * 3  # of four groups, at least the system, the constant and the random report


def test_the_text_holds_every_block_group_and_writer(perfect):
    text = table.as_text(perfect)
    for words in (
        overlap.CONVENTION,
        coco.CONVENTION,
        "normal, 10 studies",
        "abnormal, 50 studies",
        "wrong side",
    ):
        assert words in text
    assert coco.CONVENTION_COMPAT in table.as_text(perfect, compat=True)

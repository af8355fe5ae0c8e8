"""The one screen: its size at its fullest, its marks, its empty cells; and the complete text."""

import re

import numpy as np
import pytest

from llamaxr.metrics import agreement, coco, overlap, screen, table, verdicts

SYSTEMS = ("system", "against", "swapped", "nearest", "constant", "random", "frequent", "template", "outline")
LEADS = {"swapped": 0.2, "nearest": 0.0, "constant": -0.2}  # the others: 0.2


def evaluation(extra=(), run=True):
    """Results with everything that eval.py can put there."""
    names = {**table.BLOCKS, "extra": extra}
    systems = {w: {b: {n: [0.5, 0.4, 0.6] for n in of} for b, of in names.items()} for w in SYSTEMS}
    for name in ("swapped", "frequent", "outline"):
        del systems[name]["reports"]
    for block in ("llama_xr", "coco", "extra"):
        del systems["frequent"][block], systems["outline"][block]
    systems["constant"]["findings"]["sides_right"] = None
    systems["system"]["findings"]["sides_named"] = [14.0, 10.0, 20.0]
    row = {c: 100.0 for c in agreement.COLUMNS}
    row["intervals"] = {c: [90.0, 110.0] for c in agreement.COLUMNS}
    systems["system"]["per_class"] = dict.fromkeys([*agreement.GROUPS["critical"], "scar"], row)
    leads = {}
    for name, blocks in systems.items():
        gap = [LEADS.get(name, 0.2) + d for d in (0, -0.1, 0.1)]
        paired = blocks.keys() - {"reports", "per_class"}
        leads[name] = {block: dict.fromkeys(blocks[block], gap) for block in paired}
    del leads["system"]
    true = systems["system"]["reports"]
    part = {"studies": 590, "references": true, "writers": systems, "differences": leads}
    groups = {"all": part, "normal": part, "abnormal": part, "text not in train": part}
    settings = {"run": "runs/a-very-long-name-of-a-run-that-goes-on-and-on", "checkpoint": "step-001000",
                "data": "iu_xray", "split": "test", "leaked": True, "against": "another/long/path/of/b.jsonl",
                "labels": "labeled_reports.csv"} if run else {"score": "a.jsonl"}  # fmt: skip
    return {"settings": settings, "groups": groups, "in_words": verdicts.in_words(groups)}


@pytest.mark.parametrize("extra", [(), ("GREEN",), ("GREEN", "RaTEScore", "RadCliQ")])
@pytest.mark.parametrize("colour", [False, True])
def test_it_is_one_screen_at_its_fullest(extra, colour):
    text = screen.screen(evaluation(extra), colour)
    lines = re.sub("\033.*?m", "", text).splitlines()
    assert len(lines) <= 29 and max(map(len, lines)) <= 100  # one more line says where the rest is
    assert ("\033" in text) == colour
    shown = [line.split()[0] for line in lines if line.startswith(SYSTEMS)]
    assert shown == [*SYSTEMS[:5], *SYSTEMS[6:], *SYSTEMS[:5]]  # all but "random"; then the abnormal ones


def test_the_verdict_comes_before_the_table_and_names_what_matters():
    results = evaluation(run=False)
    for part in (results["groups"]["all"]["writers"], results["groups"]["all"]["differences"]):
        del part["against"]
    results["in_words"] = verdicts.in_words(results["groups"])
    lines = screen.screen(results).splitlines()
    words = " ".join(" ".join(lines[: lines.index("", 2)]).split())
    for said in (
        "a.jsonl: 590 studies", "It uses the image: findings F1, 0.500, falls by 0.200 [0.100, 0.300]",
        "Beside the nearest training report: findings F1 cannot be told, +0.000 [-0.100, +0.100]; macro F1 ",
        "Beside one report for everybody: ROUGE-L worse, -0.200 [-0.300, -0.100]; of 13 scores 13 worse",
        "its outlines told in templates: findings F1 better", "all 1200/1800 +600, pneumothorax 200/300 +100",
        "Sides: 7 of 14 are right, 0.500 [0.400, 0.600].",
        "Invented comparisons with a prior study: in 50.0% of its reports; true ones 50.0%",
    ):  # fmt: skip
        assert said in words


def test_a_mark_says_where_the_system_is_not_better_and_what_is_undefined_is_empty():
    lines = screen.screen(evaluation(run=False)).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in reversed(lines) if line.startswith(SYSTEMS)}
    assert set(rows["system"]) == set(rows["swapped"]) == {"0.500"}
    assert set(rows["nearest"]) == {"0.500?"} and set(rows["constant"]) == {"0.500!"}
    assert len(rows["system"]) == len(screen.COLUMNS) and len(rows["constant"]) == len(screen.COLUMNS) - 1
    assert len(rows["outline"]) == len(rows["frequent"]) == 4  # findings only


def test_the_complete_text_has_every_group_block_and_interval():
    text = screen.full(evaluation(("GREEN",)))
    for words in (overlap.CONVENTION, coco.CONVENTION, "normal, 590 studies", "wrong side", "GREEN"):
        assert words in text
    assert coco.CONVENTION_COMPAT in screen.full(evaluation(), compat=True)
    value, low, high = np.array(re.findall(r"(-?[\d.]+) \[(-?[\d.]+),(-?[\d.]+)\]", text), float).T
    assert len(value) > 4 * 7 * 40 and (low <= value).all() and (value <= high).all()

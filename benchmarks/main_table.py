"""The rows of the main table: results of runs on IU X-ray -> benchmarks/results/NAME.json.

    python -m llamaxr.tools.simulate_iu --reports NLMCXR_reports.tgz IU
    python -m llamaxr.tools.vision_train --data iu_xray --root IU --epochs 12 --out VISION.safetensors
    python train.py --data iu_xray --root IU --base SMOLLM2 --vision VISION.safetensors ... --out RUN
    python eval.py --run RUN --split test
    python benchmarks/main_table.py NAME RUN/eval-test [RUN2/eval-test ...]

In: the folders that eval.py wrote for one recipe's runs, which differ in their seed alone. Out: the table of
the first with its floors and paired differences, and the findings of each.
"""

import argparse
import json
from pathlib import Path

import measure

KEPT = (
    "llama_xr.rouge_l", "llama_xr.meteor", "coco.rouge_l", "coco.cider", "findings.micro_precision",
    "findings.micro_recall", "findings.micro_f1", "findings.macro_f1", "findings.sides_right",
    "findings.sides_named", "reports.distinct",
)  # fmt: skip
OF_SEEDS = ("findings.micro_f1", "findings.macro_f1", "findings.sides_right")
COMPARED = ("findings.micro_f1", "findings.macro_f1", "llama_xr.rouge_l")
CRITICAL = ("pneumothorax", "consolidation", "edema", "nodule", "effusion")  # what a reader must not miss
BY_CLASS = ("right", "wrong_side", "missed", "invented")
GROUPS = {"all": None, "abnormal": ("system", "nearest", "constant")}  # of abnormal studies, these writers


def flat(blocks: dict, kept: tuple[str, ...] = KEPT) -> dict:
    """Scores by "block.score": [value, low, high], or [value] where there is no interval."""
    scores = {}
    for key in kept:
        block, name = key.split(".")
        value = blocks.get(block, {}).get(name)
        if value is not None:
            scores[key] = value if isinstance(value, list) else [value]
    for block in ("llama_xr", "coco") if kept == KEPT and "llama_xr" in blocks else ():
        scores[f"{block}.bleu_1_to_4"] = [blocks[block][f"bleu_{n}"][0] for n in (1, 2, 3, 4)]
    return scores


def by_class(writers: dict) -> dict:
    """Finding -> its counts for each writer, one after the other, in the order of "columns"."""
    told = [name for name in ("system", "outline", "nearest") if name in writers]
    columns = [f"{writer} {key}" for writer in told for key in BY_CLASS]
    of = lambda name: [int(writers[writer]["per_class"][name][key]) for writer in told for key in BY_CLASS]
    return {"columns": columns} | {name: of(name) for name in writers["system"]["per_class"]}


def critical(blocks: dict) -> dict[str, int]:
    """How many of the critical findings were found, missed and invented."""
    rows = [blocks["per_class"][name] for name in CRITICAL]
    total = lambda *keys: sum(int(row[key]) for row in rows for key in keys)
    found = total("right", "wrong_side")  # a finding on the wrong side was seen
    return {"found": found, "missed": total("missed"), "invented": total("invented")}


def of_run(results: dict) -> dict:
    """The row of one run: its scores, its critical findings, the findings of its outlines, its lead."""
    writers = results["groups"]["all"]["writers"]
    row = {"scores": flat(writers["system"], OF_SEEDS), "critical": critical(writers["system"])}
    if "outline" in writers:
        row["outline"] = flat(writers["outline"], ("findings.micro_f1", "findings.macro_f1"))
    row["ahead of nearest"] = flat(results["groups"]["all"]["differences"]["nearest"], OF_SEEDS[:2])
    return row


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("name", help="name of the results file")
    parser.add_argument("folders", nargs="+", type=Path, help="folders that eval.py wrote")
    parser.add_argument("--fact", action="append", default=[], metavar="KEY=TEXT",
                        help="command, commit, date, machine, or anything about how it was made")  # fmt: skip
    options = parser.parse_args()
    all_results = [json.loads((folder / "results.json").read_text()) for folder in options.folders]
    config = json.loads((options.folders[0].parent / "config.json").read_text())
    results = all_results[0]
    facts = dict(text.split("=", 1) for text in options.fact)
    own = {key: facts.pop(key) for key in ("command", "commit", "date", "machine") if key in facts}
    groups = {
        group: {
            name: flat(blocks)
            for name, blocks in results["groups"][group]["writers"].items()
            if not kept or name in kept
        }
        for group, kept in GROUPS.items()
    }
    all_of = results["groups"]["all"]
    value = {
        **own,
        "seed": config["seed"],
        "configuration": {
            **facts,
            "checkpoint": ", ".join(dict.fromkeys(each["settings"]["checkpoint"] for each in all_results)),
            "studies": {group: results["groups"][group]["studies"] for group in GROUPS},
            "seeds": [json.loads((f.parent / "config.json").read_text())["seed"] for f in options.folders],
        },
        "scores": groups,
        "critical": {name: critical(b) for name, b in all_of["writers"].items() if "per_class" in b},
        "classes": by_class(all_of["writers"]),
        "differences": {
            name: flat(b, COMPARED) for name, b in all_of["differences"].items() if name != "random"
        },
        "seeds": [of_run(each) for each in all_results],
    }
    measure.write_results(options.name, value)


if __name__ == "__main__":
    main()

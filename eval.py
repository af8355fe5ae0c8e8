"""Evaluate a run: its reports against the true ones, beside the floors that make such numbers readable.

    python eval.py --run runs/NAME --split test

Three writers stand in the table. `model` reads each study's own images. `images swapped` is the same model
given another patient's: a model that keeps its scores does not look. `constant report` is the one report,
chosen on the validation split, that scores best when written for everybody.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from llamaxr.checkpoint import write_json
from llamaxr.data.study import SPLITS
from llamaxr.decoding import generate
from llamaxr.errors import UserError, one_line_errors
from llamaxr.metrics import baselines, findings, overlap
from llamaxr.options import option, parse
from llamaxr.run import DEMO, RUNS, load_studies, newest_run, open_run, see_studies

COLUMNS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "micro_precision", "micro_recall", "micro_f1")


@dataclass(frozen=True)
class EvalOptions:
    run: Path | None = option(None, "run folder; the newest under runs/, or the embedded demo, if not given")
    split: str = option("test", "which studies", choices=SPLITS)
    limit: int = option(0, "evaluate the first LIMIT studies only; 0 is all", at_least=0)
    batch: int = option(32, "studies written together", at_least=1)
    max_tokens: int = option(300, "longest report in tokens", at_least=1, at_most=4096)
    seed: int = option(0, "seed of the swap of images", at_least=0)
    device: str = option("auto", "auto takes CUDA where there is one", choices=("auto", "cuda", "cpu"))
    root: Path | None = option(None, "folder of the data set, if it is no longer where the run had it")
    out: Path | None = option(None, "folder for results; RUN/eval-SPLIT if not given")


def main(argv: list[str] | None = None) -> None:
    options, _, _ = parse(EvalOptions, __doc__, argv)
    run = options.run or newest_run() or DEMO
    trained, vision, model, step = open_run(run, options.device)
    if options.root is not None:
        trained = type(trained)(**{**vars(trained), "root": options.root})
    studies = load_studies(trained, warn)
    chosen = [s for s in studies if s.split == options.split][: options.limit or None]
    device = model.projector.place.device
    with tqdm(desc="looking at images", unit=" images", leave=False) as bar:
        pairs = see_studies(trained, vision, chosen, device, warn, bar.update)
    seen, chosen = [f for f, _ in pairs], [s for _, s in pairs]
    if len(chosen) < 2:
        raise UserError(
            f"{len(chosen)} studies in the {options.split} split: swapping needs two; raise --limit"
        )
    out = options.out or (RUNS / "demo" if run == DEMO else run) / f"eval-{options.split}"
    out.mkdir(parents=True, exist_ok=True)

    swap = baselines.derangement(len(chosen), options.seed)
    train_reports = [s.report for s in studies if s.split == "train"]
    val_reports = [s.report for s in studies if s.split == "val"]
    if not train_reports:
        raise UserError("the data set has no train split, from which the constant report is chosen; add it")
    constant = baselines.constant_report(train_reports, val_reports, seed=options.seed)
    written = {
        "model": write(model, seen, options, "model"),
        "images swapped": write(model, [seen[i] for i in swap], options, "images swapped"),
        "constant report": [constant] * len(chosen),
    }
    truth = [s.findings if s.findings is not None else findings.find(s.report) for s in chosen]
    groups = {
        "all": range(len(chosen)),
        "normal": [i for i, t in enumerate(truth) if not t],
        "abnormal": [i for i, t in enumerate(truth) if t],
    }
    table = {
        group: {who: score(rows, chosen, truth, reports) for who, reports in written.items()}
        for group, rows in groups.items()
        if rows
    }
    distinct = {who: len(set(reports)) for who, reports in written.items()}
    settings = {"run": str(run), "checkpoint": step.name, "data": trained.data, "split": options.split,
                "seed": options.seed, "studies": len(chosen), "device": str(device)}  # fmt: skip
    results = {
        "settings": settings,
        "constant_report": constant,
        "distinct_reports": distinct,
        "scores": table,
    }
    write_json(out / "results.json", results)
    lines = out / "reports.jsonl"
    with open(f"{lines}.tmp", "w", encoding="utf-8") as file:
        for i, study in enumerate(chosen):
            row = {"id": study.id, "reference": study.report, "generated": written["model"][i],
                   "generated_swapped": written["images swapped"][i]}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    os.replace(f"{lines}.tmp", lines)
    show(settings, table, distinct)
    print(f"written: {out / 'results.json'}, {lines}")


def warn(line: str) -> None:
    tqdm.write(f"warning: {line}", file=sys.stderr)


@torch.inference_mode()
def write(model, seen: list, options: EvalOptions, name: str) -> list[str]:
    """The greedy report of each study."""
    reports = []
    for at in tqdm(range(0, len(seen), options.batch), desc=name, unit="batch", leave=False):
        batch = model.collate(seen[at : at + options.batch]).to(model.projector.place.device)
        rows = generate(
            model.llama, model.embed(batch), batch.padding, model.tokenizer.eos_ids, options.max_tokens
        )
        reports += [model.tokenizer.decode(row).strip() for row in rows]
    return reports


def score(rows, studies: list, truth: list[frozenset], reports: list[str]) -> dict:
    """All scores of some of the studies (rows: their indices)."""
    references, generated = [studies[i].report for i in rows], [reports[i] for i in rows]
    found = findings.score([truth[i] for i in rows], [findings.find(report) for report in generated])
    right, sided = findings.right_sides(references, generated)
    sides = {"sides_right": right, "sides_asserted": sided}
    return {"studies": len(references), **overlap.score(references, generated), **found, **sides}


def show(settings: dict, table: dict, distinct: dict) -> None:
    """The table, as text: one block a group of studies, one line a writer; then findings, a line a class."""
    print(f"{settings['run']} {settings['checkpoint']}, {settings['data']} {settings['split']}, "
          f"{settings['studies']} studies, findings by micro precision, recall, F1")  # fmt: skip
    names = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "P", "R", "F1", "distinct")
    print(f"{'':28s}" + "".join(f"{n:>9s}" for n in names))
    for group, writers in table.items():
        for who, scores in writers.items():
            label = f"{group} ({scores['studies']}): {who}"
            last = f"{distinct[who]:9d}" if group == "all" else ""
            print(f"{label:28s}" + "".join(f"{scores[c]:9.3f}" for c in COLUMNS) + last)
    for who, scores in table["all"].items():
        if scores["sides_asserted"]:
            print(f"sides, {who}: {scores['sides_right']} of {scores['sides_asserted']} right")
    print(f"\n{'finding (model, all studies)':30s}{'right':>7s}{'missed':>8s}{'invented':>10s}{'F1':>7s}")
    for name, c in table["all"]["model"]["per_class"].items():
        print(f"{name:30s}{c['tp']:7d}{c['fn']:8d}{c['fp']:10d}{c['f1']:7.3f}")


if __name__ == "__main__":
    with one_line_errors():
        main()

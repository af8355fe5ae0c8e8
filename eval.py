"""Evaluate reports against the true ones, beside floors that make the scores readable.

    python eval.py --run runs/NAME --split test                     a trained run on its data set
    python eval.py --score FILE.jsonl --train-reports FILE          any system's reports; loads no model
    python eval.py --score FILE.jsonl --data iu_xray --root DIR     with the training reports of a data set
    torchrun --nproc-per-node 2 -- eval.py --run runs/NAME          several processes generate the reports

FILE.jsonl has one object per study: id, reference, generated. The floors (metrics/table.py) need training
reports: from a data set, which also has a val split to choose the constant report on, or from a file with a
JSON string, or an object with a `report`, per line. Every score has its 95% interval over the studies.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llamaxr.data.drawing import DRAWN  # the findings of the sample
from llamaxr.data.outline import read_outline  # the line of findings before a report
from llamaxr.data.study import SPLITS  # train, val, test
from llamaxr.errors import UserError, one_line_errors
from llamaxr.metrics import meteor15, table, wordnet  # table: all scores, by group and system
from llamaxr.metrics.baselines import nearest_reports  # a floor: the most similar image's report
from llamaxr.metrics.findings import FINDINGS  # the classes that reports are labelled with
from llamaxr.report_page import page as report_page  # the same results as one HTML page
from llamaxr.runs import checkpoint, distributed, features, log, recipes, reports  # files and processes
from llamaxr.runs import run as runs  # opens a run: its data, its vision network, its model
from llamaxr.runs.options import DEVICE_HELP, DEVICES, PLAIN_HELP, RUN_HELP, option, parse  # flags


@dataclass(frozen=True)
class EvalOptions:
    run: Path | None = option(None, RUN_HELP)
    split: str = option("test", "split to evaluate", choices=SPLITS)
    score: Path | None = option(None, "score the reports of this JSONL file instead of a run's")
    train_reports: Path | None = option(None, "with --score: file of training reports, for the floors")
    data: str | None = option(None, "with --score: data set of the training reports", choices=recipes.DATA)
    r2gen_compat: bool = option(False, "COCO scores as R2Gen's: reports cut at 59 words, rare words replaced")
    meteor15: bool = option(False, "METEOR 1.5 too (needs Java and pycocoevalcap; takes minutes)")
    json: bool = option(False, "print results.json instead of the table")
    limit: int = option(0, "evaluate the first LIMIT studies only; 0 means all", at_least=0)
    batch: int = option(32, "studies generated together", at_least=1)
    max_tokens: int = option(300, "longest report in tokens", at_least=1, at_most=4096)
    seed: int = option(0, "seed of the swapped and random reports", at_least=0)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    plain: bool | None = option(None, PLAIN_HELP)
    root: Path | None = option(None, "where --data is, or the run's data set if it has moved")
    out: Path | None = option(None, "folder of the results (default: RUN/eval-SPLIT, or beside FILE.jsonl)")


def main(argv: list[str] | None = None) -> None:
    options, _ = parse(EvalOptions, __doc__, argv)
    java = meteor15.program() if options.meteor15 else None
    if options.meteor15 and java is None:
        raise UserError(meteor15.MISSING)
    if options.data and (options.score is None or options.train_reports):
        raise UserError("--data goes with --score, and instead of --train-reports: a run knows its data set")
    prepare = prepare_run if options.score is None else prepare_file
    ids, evaluation, val_reports, nearest, settings, out, views_of = prepare(options)
    if options.r2gen_compat and not evaluation.train_reports:
        raise UserError("--r2gen-compat takes its vocabulary from training reports; give --train-reports")
    synonyms = wordnet.find(runs.CACHE / "wordnet")
    if synonyms is None:
        distributed.warn(wordnet.MISSING)
    systems = table.all_systems(evaluation, val_reports, nearest, options.seed)
    scorer = table.Scorer(evaluation, synonyms, java, options.r2gen_compat)
    groups = table.evaluate(evaluation, systems, scorer)
    results = {"settings": settings, "groups": groups, "in_words": table.plain_words(groups),
               "constant_report": systems.get(table.CONSTANT, [None])[0]}  # fmt: skip
    columns = zip(ids, evaluation.references, evaluation.predictions, strict=True)
    rows = [{"id": name, "reference": true, "generated": predicted} for name, true, predicted in columns]
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out / "results.json", results)
    log.write_lines(out / "reports.jsonl", rows)
    with tqdm(desc="report.html", unit=" studies", leave=False) as bar:
        page = out / "report.html", results, rows, evaluation, table.titles(options.r2gen_compat)
        report_page.write(*page, views_of, options.seed, bar.update)
    if options.json:
        return print(json.dumps(results))
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    print(table.as_text(groups, options.r2gen_compat))
    print(f"written: {out / 'results.json'}, {out / 'reports.jsonl'}, {out / 'report.html'} (for a browser)")


def prepare_run(options: EvalOptions) -> tuple:
    """Generate the reports of a split with the model of a run. Returns its ids, the Evaluation, the reports
    of val and of the nearest training images, the settings, the folder for results, views_of for the page."""
    run = options.run or runs.default_run()
    trained, vision, model, step = runs.open_run(run, options.device, options.plain)
    trained, device = replace(trained, root=options.root or trained.root), model.projector.place.device
    if warning := recipes.vision_warning(trained):
        distributed.warn(warning)
    with distributed.main_process_first():
        studies = runs.load_studies(trained, distributed.warn)
    with tqdm(desc="features", unit=" images", leave=False, disable=not distributed.is_main_process()) as bar:
        pairs = runs.load_features(trained, vision, studies, device, distributed.warn, bar.update)
    train, val = ([pair for pair in pairs if pair[1].split == split] for split in ("train", "val"))
    chosen = [pair for pair in pairs if pair[1].split == options.split][: options.limit or None]
    if len(chosen) < 2:
        raise UserError(f"{options.split} has {len(chosen)} studies, but swapping needs two; raise --limit")
    if not train:
        raise UserError("the data set has no train split, which the constant report comes from; add one")
    out = options.out or runs.evaluation_folder(run, options.split)
    settings = {"run": str(run), "checkpoint": step.name, "data": trained.data, "split": options.split,
                "seed": options.seed, "studies": len(chosen), "device": device.type,
                "max_tokens": options.max_tokens, "vision": trained.vision,
                "vision_trained_on": trained.vision_trained_on, "leaked": trained.leaked}  # fmt: skip
    if not trained.plain:
        runs.prepare_for_generation(model, device, options.batch, options.max_tokens)
    file = out / "generated.jsonl"
    generated = reports.generate_reports(model, chosen, options.batch, options.max_tokens, file, settings)
    if not distributed.is_main_process():
        sys.exit()  # only the main process scores the reports
    evaluation = table.Evaluation(
        references=[study.report for _, study in chosen],
        predictions=[report for _, report in generated],
        findings=[table.true_findings(study.report, study.findings) for _, study in chosen],
        classes=DRAWN if trained.data == "sample" else FINDINGS,
        train_reports=[study.report for _, study in train],
        outlines=[read_outline(outline) for outline, _ in generated] if trained.outline else None,
    )
    pooled = [np.stack([features.pooled_features(f) for f, _ in part]) for part in (train, chosen)]
    nearest = nearest_reports(pooled[0], evaluation.train_reports, pooled[1])
    views_of = lambda i: report_page.views(vision, chosen[i][1], chosen[i][0])
    ids, val_reports = [study.id for _, study in chosen], [study.report for _, study in val]
    return ids, evaluation, val_reports, nearest, settings, out, views_of


def prepare_file(options: EvalOptions) -> tuple:
    """The same for a file of any system's reports, which has no images."""
    distributed.init(torch.device("cpu"))
    if not distributed.is_main_process():
        sys.exit()  # there is nothing to generate
    rows = log.read_lines(options.score, ("id", "reference", "generated"))[: options.limit or None]
    ids, references, predictions = ([row[key] for row in rows] for key in ("id", "reference", "generated"))
    if len({*ids}) < len(ids):
        raise UserError(f"{options.score} names a study twice; fix the file")
    train, val = [], []
    if options.train_reports is not None:
        train = [row["report"] for row in log.read_lines(options.train_reports, ("report",))]
    elif options.data is not None:
        data = recipes.apply_recipe("ours", data=options.data, root=options.root)
        studies = runs.load_studies(data, distributed.warn)
        train, val = ([s.report for s in studies if s.split == split] for split in ("train", "val"))
    else:
        distributed.warn("without --train-reports or --data, the table has no constant and no random reports")
    findings = [table.true_findings(reference) for reference in references]
    evaluation = table.Evaluation(references, predictions, findings, FINDINGS, train)
    settings = {"score": str(options.score), "seed": options.seed, "studies": len(ids)}
    out = options.out or options.score.with_name(options.score.stem + "-scores")
    return ids, evaluation, val, None, settings, out, None


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Evaluate reports against the true ones, beside floors that make the scores readable.

    python eval.py --run runs/NAME --split test                     a trained run on its data set
    python eval.py --score FILE.jsonl --train-reports FILE          any system's reports; loads no model
    python eval.py --score FILE.jsonl --data iu_xray --root DIR     with the training reports of a data set
    python eval.py --score A.jsonl --against B.jsonl                two systems on the same studies
    torchrun --nproc-per-node 2 -- eval.py --run runs/NAME          several processes generate the reports

FILE.jsonl has one object per study: id, reference, generated. The floors (metrics/table.py) need training
reports: from a data set, which also has a val split to choose the constant report on, or from a file with a
JSON string, or an object with a `report`, per line. Every score has its 95% interval over the studies. Other
people's labellers and scores (docs/evaluation.md) go through the same groups and floors.
"""

import llamaxr.runs.interrupt  # noqa: F401  # isort: skip  (Ctrl-C while torch loads ends in one line)
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llamaxr.data.drawing import DRAWN  # the findings of the sample
from llamaxr.data.outline import read_outline  # the line of findings before a report
from llamaxr.data.study import SPLITS  # train, val, test
from llamaxr.errors import UserError
from llamaxr.metrics import meteor15, screen, table, verdicts, wordnet  # table: all scores of all systems
from llamaxr.metrics.baselines import nearest_reports  # a floor: the most similar image's report
from llamaxr.metrics.findings import FINDINGS  # the classes that reports are labelled with
from llamaxr.report_page import page as report_page  # the same results as one HTML page
from llamaxr.runs import checkpoint, distributed, features, log, other_systems, recipes, reports, unlike
from llamaxr.runs import run as runs  # opens a run: its data, its vision network, its model
from llamaxr.runs.options import DEVICE_HELP, DEVICES, MAX_SEED, PLAIN_HELP, RUN_HELP, option, parse, to_json
from llamaxr.runs.options import refuse_without_effect as refuse  # options that would do nothing
from llamaxr.runs.terminal import one_line_errors

EXTRA = {"--extra": {"action": "append", "default": [], "metavar": "NAME[=FILE]", "help": "anyone's score of "
         "each report, from FILE or a column of --score's file; NAME:less if less is better"}}  # fmt: skip


@dataclass(frozen=True)
class EvalOptions:
    run: Path | None = option(None, RUN_HELP)
    split: str = option("test", "split to evaluate", choices=SPLITS)
    score: Path | None = option(None, "score the reports of this JSONL file instead of a run's")
    against: Path | None = option(None, "JSONL file of another system on the same studies, to compare")
    train_reports: Path | None = option(None, "with --score: file of training reports, for the floors")
    data: str | None = option(None, "with --score: data set of the training reports", choices=recipes.DATA)
    labels: Path | None = option(None, "CSV of a labeller's findings for all reports, such as CheXbert's")
    export: Path | None = option(None, "folder to write all reports to, for other metrics and labellers")
    r2gen_compat: bool = option(False, "COCO scores as R2Gen's: reports cut at 59 words, rare words replaced")
    meteor15: bool = option(False, "METEOR 1.5 too (needs Java and pycocoevalcap; takes minutes)")
    full: bool = option(False, "print every score of every group, not one screen")
    json: bool = option(False, "print results.json instead")
    limit: int = option(0, "evaluate the first LIMIT studies only; 0 means all", at_least=0, at_most=10**7)
    batch: int = option(32, "studies generated together", at_least=1, at_most=4096)
    max_tokens: int = option(300, "longest report in tokens", at_least=1, at_most=4096)
    seed: int = option(0, "seed of the swapped, random and constant reports", at_least=0, at_most=MAX_SEED)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    plain: bool = option(False, PLAIN_HELP)
    root: Path | None = option(None, "where --data is, or the run's data set if it has moved")
    out: Path | None = option(None, "folder of the results (default: RUN/eval-SPLIT, or beside FILE.jsonl)")


def main(argv: list[str] | None = None) -> None:
    options, more = parse(EvalOptions, __doc__, argv, EXTRA)
    of_run = options.score is None
    refuse(more.given, [
        (("run", "split", "batch", "max_tokens", "device", "plain"), of_run, "a run; --score loads none"),
        (("train_reports", "data"), not of_run, "--score: a run knows its data set"),
        (("train_reports",), not options.data, "--score alone: --data has training reports"),
        (("root",), of_run or options.data, "--data or a run"), (("full",), not options.json, "a table"),
    ])  # fmt: skip
    java = meteor15.program() if options.meteor15 else None
    if options.meteor15 and java is None:
        raise UserError(meteor15.MISSING)
    prepare = prepare_run if of_run else other_systems.prepare
    ids, evaluation, val_reports, nearest, settings, out, views_of = prepare(options)
    evaluation = other_systems.with_scores(evaluation, ids, options, more.extra)
    if options.r2gen_compat and not evaluation.train_reports:
        raise UserError("--r2gen-compat takes its vocabulary from training reports; give --train-reports")
    synonyms = wordnet.find(runs.CACHE / "wordnet")
    if synonyms is None:
        distributed.warn(wordnet.MISSING)
    systems = table.all_systems(evaluation, val_reports, nearest, options.seed)
    if options.export:
        other_systems.export(options.export, ids, evaluation, systems)
    scorer = table.Scorer(evaluation, synonyms, java, options.r2gen_compat)
    groups = table.evaluate(evaluation, systems, scorer)
    settings |= {key: str(file) for key in ("against", "labels") if (file := getattr(options, key))}
    results = {"settings": settings, "groups": groups, "in_words": verdicts.in_words(groups),
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
    one_screen = screen.screen(results, colour=sys.stdout.isatty())
    print(screen.full(results, options.r2gen_compat) if options.full else one_screen)
    print(f"All of it: --full; {out / 'report.html'} (for a browser), results.json, reports.jsonl")


def prepare_run(options: EvalOptions) -> tuple:
    """Generate the reports of a split with the model of a run. Returns its ids, the Evaluation, the reports
    of val and of the nearest training images, the settings, the results' folder, views_of(i) for the page."""
    run = options.run or runs.default_run()
    trained = runs.read_options(run)
    checkpoint.last(run)  # refuse a run without a checkpoint now, not minutes later
    distributed.init(runs.pick_device(options.device))
    with distributed.main_process_first():
        studies = runs.load_studies(replace(trained, root=options.root or trained.root), distributed.warn)
    references_of([(None, study) for study in studies], trained, options)  # refuse now what does not fit
    trained, vision, model, step = runs.open_run(run, options.device, options.plain)
    device = model.projector.place.device
    if warning := recipes.vision_warning(trained):
        distributed.warn(warning)
    with tqdm(desc="features", unit=" images", leave=False, disable=not distributed.is_main_process()) as bar:
        pairs = runs.load_features(trained, vision, studies, device, distributed.warn, bar.update)
    train, val, chosen, ids, evaluation = references_of(pairs, trained, options)
    out = options.out or runs.evaluation_folder(run, options.split)
    settings = {"run": str(run), "checkpoint": step.folder.name, "data": trained.data, "split": options.split,
                "seed": options.seed, "studies": len(chosen), "device": device.type, "plain": trained.plain,
                "max_tokens": options.max_tokens, "vision": trained.vision, "leaked": trained.leaked,
                "vision_trained_on": trained.vision_trained_on, "drawn": runs.drawn(trained, options.root),
                "unlike_training": unlike.share(step.known, [f for f, _ in chosen])}  # fmt: skip
    made_of = to_json(trained) | {"root": None, "split": options.split, "device": device.type,
                                  "weights": checkpoint.sha256(model)}  # fmt: skip
    if not trained.plain:
        runs.prepare_for_generation(model, device, options.batch, options.max_tokens)
    generated = reports.generate_reports(model, chosen, options.batch, options.max_tokens, out, made_of)
    if not distributed.is_main_process():
        sys.exit()  # only the main process scores the reports
    outlines = [read_outline(outline) for outline, _ in generated] if trained.outline else None
    evaluation = replace(evaluation, predictions=[report for _, report in generated], outlines=outlines)
    pooled = [np.stack([features.pooled_features(f, 2, np.nan) for f, _ in part]) for part in (train, chosen)]
    nearest = nearest_reports(pooled[0], evaluation.train_reports, pooled[1])
    views_of = lambda i: report_page.views(vision, chosen[i][1], chosen[i][0])
    return ids, evaluation, [study.report for _, study in val], nearest, settings, out, views_of


def references_of(pairs: list, trained: recipes.TrainOptions, options: EvalOptions) -> tuple:
    """The (features, study) pairs of train, val and the split, the split's ids, and an Evaluation that has no
    predictions yet. UserError if there are too few studies, or if --against or --labels do not fit."""
    train, val, chosen = runs.evaluated_split(pairs, options.split, options.limit)
    ids, references = [study.id for _, study in chosen], [study.report for _, study in chosen]
    findings = [table.true_findings(study.report, study.findings) for _, study in chosen]
    classes, train_reports = (DRAWN if trained.data == "sample" else FINDINGS), [s.report for _, s in train]
    evaluation = table.Evaluation(references, (), findings, classes, train_reports)  # none is generated yet
    return train, val, chosen, ids, other_systems.with_others(evaluation, ids, options)


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Evaluate reports against the true ones, beside the floors that make such numbers readable.

    python eval.py --run runs/NAME --split test                a trained run on its data
    python eval.py --score FILE.jsonl --train-reports FILE     any system's reports; no model is loaded
    python eval.py --score FILE.jsonl --data iu_xray --root DIR     with a data set's train reports
    torchrun --nproc-per-node 2 -- eval.py --run runs/NAME     the reports written by several processes

FILE.jsonl holds an object a study: id, reference, generated. The training reports, a JSON string or an object
with a `report` a line, are for the floors, or those of a data set, which also has a val split to choose the
constant report on. Every score stands with its 95% interval over the studies, by two
conventions that are never mixed, for the system and for what was written without looking (metrics/table.py).
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llamaxr.runs import distributed
from llamaxr.report_page import page as report_page
from llamaxr.runs.checkpoint import write_json
from llamaxr.data.drawing import DRAWN
from llamaxr.data.study import SPLITS
from llamaxr.decoding import generate
from llamaxr.runs.distributed import warn
from llamaxr.errors import UserError, one_line_errors
from llamaxr.runs.features import StudyFeatures, summary
from llamaxr.metrics import baselines, meteor15, table, wordnet
from llamaxr.metrics.findings import FINDINGS
from llamaxr.runs.options import option, parse
from llamaxr.prompt import read_outline
from llamaxr.runs.run import (
    CACHE,
    DATA,
    DEMO,
    TrainOptions,
    evaluation_folder,
    load_studies,
    newest_run,
    open_run,
    pick_device,
    ready_to_write,
    see_studies,
)


@dataclass(frozen=True)
class EvalOptions:
    run: Path | None = option(None, "run folder; the newest under runs/, or the embedded demo, if not given")
    split: str = option("test", "which studies", choices=SPLITS)
    score: Path | None = option(None, "score the reports of this JSONL file instead of a run's")
    train_reports: Path | None = option(None, "with --score: training reports, for the floors")
    data: str | None = option(None, "with --score: data set whose reports make the floors", choices=DATA)
    r2gen_compat: bool = option(False, "COCO scores as R2Gen's: reports cut at 59 words, rare words replaced")
    meteor15: bool = option(False, "METEOR 1.5 too (needs Java and pycocoevalcap; minutes)")
    json: bool = option(False, "print results.json instead of the table")
    limit: int = option(0, "evaluate the first LIMIT studies only; 0 is all", at_least=0)
    batch: int = option(32, "studies written together", at_least=1)
    max_tokens: int = option(300, "longest report in tokens", at_least=1, at_most=4096)
    seed: int = option(0, "seed of the swaps and of drawn reports", at_least=0)
    device: str = option("auto", "auto takes CUDA where there is one", choices=("auto", "cuda", "cpu"))
    root: Path | None = option(None, "folder of --data, or of the run's data set if it has moved")
    out: Path | None = option(None, "folder for results; RUN/eval-SPLIT, or beside FILE, if not given")


def main(argv: list[str] | None = None) -> None:
    options, _, _ = parse(EvalOptions, __doc__, argv)
    java = meteor15.program() if options.meteor15 else None
    if options.meteor15 and java is None:
        raise UserError(meteor15.MISSING)
    if options.data and (options.score is None or options.train_reports):
        raise UserError("--data goes with --score, and instead of --train-reports: a run knows its data set")
    if options.score is not None:
        ids, judged, written, settings, out, look = of_a_file(options)
    else:
        ids, judged, written, settings, out, look = of_a_run(options)
    if options.r2gen_compat and not judged.train_reports:
        raise UserError("--r2gen-compat takes its vocabulary from training reports; give --train-reports")
    reader = wordnet.find(CACHE / "wordnet")
    if reader is None:
        warn(wordnet.MISSING)
    scorer = table.Scorer(judged, reader, java, options.r2gen_compat)
    results = {"settings": settings, "groups": table.judge(judged, written, scorer)}
    results["constant_report"] = written.get(table.CONSTANT, [None])[0]
    results["in_words"] = table.plain_words(results["groups"])
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", results)
    lines = [
        {"id": i, "reference": r, "generated": g}
        for i, r, g in zip(ids, judged.references, judged.generated, strict=True)
    ]
    write_lines(out / "reports.jsonl", lines)
    with tqdm(desc="report.html", unit=" studies", leave=False) as bar:
        report_page.write(out / "report.html", results, lines, judged, table.titles(options.r2gen_compat),
                          look, options.seed, bar.update)  # fmt: skip
    if options.json:
        print(json.dumps(results))
    else:
        print(", ".join(f"{name} {value}" for name, value in settings.items()))
        print(table.as_text(results["groups"], options.r2gen_compat))
        print(f"written: {out / 'results.json'}, {out / 'reports.jsonl'}, {out / 'report.html'} (to look at)")


def of_a_run(options: EvalOptions):
    """Write the split's reports with the run's model; ids, what is judged, all writers, settings, folder,
    and the views of a study for the page."""
    run = options.run or newest_run() or DEMO
    device, rank = distributed.start(pick_device(options.device)), distributed.rank()
    trained, vision, model, step = open_run(run, options.device)
    if options.root is not None:
        trained = replace(trained, root=options.root)
    with distributed.in_turns():
        studies = load_studies(trained, warn)
    with tqdm(desc="looking at images", unit=" images", leave=False, disable=rank > 0) as bar:
        pairs = see_studies(trained, vision, studies, device, warn, bar.update)
    studies, by_id = [s for _, s in pairs], {s.id: features for features, s in pairs}
    chosen = [s for s in studies if s.split == options.split][: options.limit or None]
    train = [s for s in studies if s.split == "train"]
    if len(chosen) < 2:
        raise UserError(
            f"{len(chosen)} studies in the {options.split} split: swapping needs two; raise --limit"
        )
    if not train:
        raise UserError("the data set has no train split, from which the constant report is chosen; add it")
    out = options.out or evaluation_folder(run, options.split)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"run": str(run), "checkpoint": step.name, "data": trained.data, "split": options.split,
                "seed": options.seed, "studies": len(chosen), "device": device.type,
                "max_tokens": options.max_tokens}  # fmt: skip
    ready_to_write(model, device, options.batch, options.max_tokens)
    written = write(model, [(s.id, by_id[s.id]) for s in chosen], options, out / "generated.jsonl", settings)
    if rank > 0:
        sys.exit()  # the reports are written; scoring them is rank 0's
    judged = table.Judged(
        [s.report for s in chosen],
        [report for _, report in written],
        [table.truth_of(s.report, s.findings) for s in chosen],
        DRAWN if trained.data == "sample" else FINDINGS,
        [s.report for s in train],
        [read_outline(outline) for outline, _ in written] if model.outline else None,
    )
    looks = [np.stack([summary(by_id[s.id]) for s in part]) for part in (train, chosen)]
    nearest = baselines.nearest_reports(looks[0], judged.train_reports, looks[1])
    val_reports = [s.report for s in studies if s.split == "val"]
    written = table.writers(judged, val_reports, nearest, options.seed)
    look = lambda i: report_page.views(vision, chosen[i], by_id[chosen[i].id])
    return [s.id for s in chosen], judged, written, settings, out, look


def of_a_file(options: EvalOptions):
    """The same from a file of someone's reports."""
    distributed.start(torch.device("cpu"))
    if distributed.rank() > 0:
        sys.exit()  # there is nothing to share
    rows = read_lines(options.score, ("id", "reference", "generated"))[: options.limit or None]
    if len({row["id"] for row in rows}) < len(rows):
        raise UserError(f"{options.score} names a study twice; mend the file")
    train, val = [], []
    if options.train_reports is not None:
        train = [row["report"] for row in read_lines(options.train_reports, ("report",))]
    if options.data is not None:
        studies = load_studies(TrainOptions(data=options.data, root=options.root), warn)
        train, val = ([s.report for s in studies if s.split == split] for split in ("train", "val"))
    references = [row["reference"] for row in rows]
    judged = table.Judged(
        references,
        [row["generated"] for row in rows],
        [table.truth_of(r) for r in references],
        FINDINGS,
        train,
    )
    if not train:
        warn("no --train-reports or --data: the constant and random reports are left out of the table")
    settings = {"score": str(options.score), "seed": options.seed, "studies": len(rows)}
    out = options.out or options.score.with_name(options.score.stem + "-scores")
    written = table.writers(judged, val, None, options.seed)
    return [row["id"] for row in rows], judged, written, settings, out, None


@torch.inference_mode()
def write(model, seen: list[tuple[str, StudyFeatures]], options: EvalOptions, kept: Path, settings: dict):
    """The greedy outline and report of each study. Each batch goes to a file at once, and an evaluation that
    was broken off goes on from there, if it is of the same settings. Of several processes each writes every
    n-th batch, to a file of its own; all end in `kept`."""
    model_device, rank = model.projector.place.device, distributed.rank()
    done = distributed.from_main(lambda: written_before(kept, settings))
    todo = sorted(
        (s for s in seen if s[0] not in done), key=lambda s: len(s[1].views)
    )  # equal prompts together
    batches = distributed.share([todo[at : at + options.batch] for at in range(0, len(todo), options.batch)])
    own = kept.with_name(f"{kept.stem}.{rank}.jsonl")
    with (kept if rank == 0 else own).open("a", encoding="utf-8") as file:
        if rank:
            file.write(json.dumps(settings) + "\n")
        for part in tqdm(batches, desc="writing", unit="batch", leave=False, disable=rank > 0):
            batch = model.collate([features for _, features in part]).to(model_device)
            rows = generate(
                model.llama, model.embed(batch), batch.padding, model.tokenizer.eos_ids, options.max_tokens,
                shared=batch.shared,
            )  # fmt: skip
            for (name, _), row in zip(part, rows, strict=True):
                outline, report = model.said(row)
                file.write(json.dumps({"id": name, "outline": outline, "generated": report}) + "\n")
            file.flush()
    distributed.gather(None)  # all have written
    done = distributed.from_main(lambda: written_before(kept, settings))
    return [done[name] for name, _ in seen]


def written_before(kept: Path, settings: dict) -> dict[str, tuple[str, str]]:
    """Study -> outline and report, of what these settings wrote so far. What several processes left in files
    of their own is moved to `kept`, so that any number of processes can go on."""
    done, others = {}, sorted(kept.parent.glob(f"{kept.stem}.*.jsonl"))
    for path in (kept, *others):
        try:
            first, *lines = path.read_text(encoding="utf-8").splitlines()
            for line in lines if json.loads(first) == settings else ():
                row = json.loads(line)
                done[row["id"]] = row["outline"], row["generated"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing kept, or broken off within a line: what cannot be read is written again
    rows = ({"id": i, "outline": outline, "generated": text} for i, (outline, text) in done.items())
    write_lines(kept, [settings, *rows])
    for path in others:
        path.unlink()
    return done


def read_lines(path: Path, keys: tuple[str, ...]) -> list[dict]:
    """The objects of a JSONL file, each with these texts; a bare string stands for the first key's."""
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                row = {keys[0]: row} if isinstance(row, str) and len(keys) == 1 else row
                if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
                    raise UserError(
                        f"{path}, line {number}: no object with the texts {', '.join(keys)}; mend the file"
                    )
                rows.append({key: row[key] for key in keys})
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSONL ({error}); give a file with an object a line"
        ) from None
    if not rows:
        raise UserError(f"{path} holds no line; give a file with an object a line")
    return rows


def write_lines(path: Path, rows: list[dict]) -> None:
    """A JSONL file, under a temporary name and renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(temporary, path)


if __name__ == "__main__":
    with one_line_errors():
        main()

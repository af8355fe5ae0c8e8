"""Probe what the parts of a trained run know, which the scores of its reports do not show.

    python -m llamaxr.tools.probe --run runs/NAME --split test        after python eval.py --run runs/NAME

Four tables, printed and written to RUN/eval-SPLIT/probes.json (metrics/probes.py has the measures):

1. How well a linear layer, fitted on train, reads the findings off vision's frozen features. The findings are
   those that people indexed (Open-i's terms) or that were drawn; without either, those the reports assert.
2. The perplexity of the split's true reports before and after fine-tuning, and with another study's images.
3. How often reports assert a finding that vision's scores deny: eval.py's reports, the true ones, and
   eval.py's reports of other studies, which agree with the scores by chance only.
4. Where findings are lost: the findings F1 of a linear layer on the features, of the outlines, and of the
   reports.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..data.outline import read_outline, with_outline
from ..data.study import SPLITS, Study
from ..errors import UserError
from ..metrics import agreement, baselines, mesh, probes
from ..metrics.bootstrap import interval
from ..metrics.findings import CLASSES, FINDINGS, NO_FINDING, PATHOLOGIES_OF, find
from ..model import LlamaXR
from ..prompt import IGNORE
from ..runs import checkpoint
from ..runs.distributed import warn
from ..runs.features import pooled_features
from ..runs.log import read_lines
from ..runs.options import DEVICE_HELP, DEVICES, MAX_SEED, RUN_HELP, option, parse
from ..runs.other_systems import read_reports
from ..runs.recipes import TrainOptions
from ..runs.run import (
    build,
    default_run,
    evaluation_folder,
    load_features,
    load_studies,
    pick_device,
    read_options,
    training_splits,
)
from ..runs.terminal import one_line_errors
from ..vision import PATHOLOGIES, StudyFeatures
from .vision_train import MIN_EXAMPLES

Pair = tuple[StudyFeatures, Study]
BASE, START = "base, no images", "start of the run"
TUNED, SWAPPED = "fine-tuned", "fine-tuned, images swapped"
LINEAR = "linear layer on features"


@dataclass(frozen=True)
class ProbeOptions:
    run: Path | None = option(None, RUN_HELP)
    split: str = option("test", "split to evaluate", choices=SPLITS)
    reports: Path | None = option(
        None, "generated reports, JSONL of id and generated (default: RUN/eval-SPLIT/reports.jsonl)"
    )
    below: float = option(0.5, "a score below this denies its finding", above=0, at_most=1)
    limit: int = option(0, "evaluate the first LIMIT studies only; 0 means all", at_least=0, at_most=10**7)
    batch: int = option(8, "reports per forward pass", at_least=1, at_most=1024)
    seed: int = option(0, "seed of the swap", at_least=0, at_most=MAX_SEED)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    root: Path | None = option(None, "folder of the data set, if it has moved since the run")
    json: bool = option(False, "print probes.json instead of the tables")
    out: Path | None = option(None, "folder for probes.json (default: RUN/eval-SPLIT)")


def main(argv: list[str] | None = None) -> None:
    options, _ = parse(ProbeOptions, __doc__, argv, prog="python -m llamaxr.tools.probe")
    run = options.run or default_run()
    trained = read_options(run)
    step, device = checkpoint.last(run), pick_device(options.device)
    trained = replace(trained, root=options.root or trained.root)
    out = options.out or evaluation_folder(run, options.split)
    reports_file = options.reports or evaluation_folder(run, options.split) / "reports.jsonl"
    outlines_file = reports_file.with_name("generated.jsonl")  # beside eval.py's reports
    generated = outlines = None
    if options.reports or reports_file.is_file():
        generated = {row["id"]: row["generated"] for row in read_reports(reports_file, ("id", "generated"))}
        if trained.outline and outlines_file.is_file():
            rows = read_lines(outlines_file, ("id", "outline"), skip=1)  # the first has eval.py's settings
            outlines = {row["id"]: row["outline"] for row in rows}

    studies = load_studies(trained, warn)
    vision, model = build(trained, device)  # LoRA and projector are fresh
    model.eval()
    with tqdm(desc="features", unit=" images", leave=False) as bar:
        pairs = load_features(trained, vision, studies, device, warn, bar.update)
    train = [pair for pair in pairs if pair[1].split == "train"]
    evaluated = [pair for pair in pairs if pair[1].split == options.split][: options.limit or None]
    if len(evaluated) < 2 or not train:
        raise UserError(
            f"{len(evaluated)} {options.split} and {len(train)} train studies are too few; raise --limit"
        )
    columns = labelled_columns(vision)
    for texts, file in (generated, reports_file), (outlines, outlines_file):  # checked before minutes of work
        if texts is not None:
            check_complete(evaluated, texts, file)
    model.projector.standardise(f.grids for f, _ in training_splits(trained, pairs)[0])  # as train.py does
    settings = {"run": str(run), "checkpoint": step.name, "data": trained.data, "split": options.split,
                "studies": len(evaluated), "seed": options.seed}  # fmt: skip
    results = {"settings": settings, "features": probe_features(train, evaluated, columns)}
    texts = [with_outline(s.report) if trained.outline else s.report for _, s in evaluated]
    results["perplexity"] = probe_fine_tuning(model, step, [f for f, _ in evaluated], texts, trained, options)
    if not columns:
        warn("this vision network has no scores, so no report can contradict them")
    elif generated is None:
        warn(f"{reports_file} does not exist, so no reports are compared with the scores; run eval.py first")
    else:
        results["denied"] = probe_denials(evaluated, generated, columns, options)
    results["findings"] = probe_findings(train, evaluated, generated, outlines)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out / "probes.json", results)
    print(json.dumps(results) if options.json else as_text(results))
    if not options.json:
        print(f"written: {out / 'probes.json'}")


# 1. Features against annotations


def probe_features(train: Sequence[Pair], evaluated: Sequence[Pair], columns: dict[str, list[int]]) -> dict:
    """For each class that at least MIN_EXAMPLES train studies have, and lack: the number of studies with it,
    the linear probe's AUROC, and the AUROC of the network's own score where it has one."""
    source, (fitted, held_out) = annotations([train, evaluated])
    n_with = {name: sum(name in findings for _, findings in fitted) for name in CLASSES}
    names = [name for name, n in n_with.items() if MIN_EXAMPLES <= n <= len(fitted) - MIN_EXAMPLES]
    labels, truth = (np.array([[n in f for n in names] for _, f in part]) for part in (fitted, held_out))
    x, x_held_out = (
        np.stack([pooled_features(f) for f, _ in part]).astype(float) for part in (fitted, held_out)
    )
    predicted, _ = probes.linear_probe(x, labels.astype(float), x_held_out)
    scores, rows = study_scores([f for f, _ in held_out]), {}
    for j, name in enumerate(names):
        if 0 < truth[:, j].sum() < len(truth):
            rows[name] = {"train": n_with[name], "evaluated": int(truth[:, j].sum()),
                          "probe": probes.auroc_interval(predicted[:, j], truth[:, j])}  # fmt: skip
            if name in columns:
                score = scores[:, columns[name]].max(1)
                rows[name]["score"] = probes.auroc_interval(score, truth[:, j])
    return {"annotations": source, "train": len(fitted), "evaluated": len(held_out), "classes": rows}


def annotations(parts: list[Sequence[Pair]]) -> tuple[str, list[list[tuple[StudyFeatures, frozenset[str]]]]]:
    """The source of the findings, and for each part the studies whose findings are known, with them. A study
    without findings has NO_FINDING."""
    studies = [study for part in parts for _, study in part]
    if any(s.findings is not None for s in studies):
        source, findings_of = "what was drawn", lambda s: s.findings
    elif any(s.terms is not None for s in studies):
        source = "index terms (MeSH)"
        findings_of = lambda s: mesh.mesh_findings(s.terms) if mesh.is_indexed(s.terms or ()) else None
    else:
        source, findings_of = "what the reports assert", lambda s: find(s.report)
    found = [[(f, findings_of(study)) for f, study in part] for part in parts]
    nothing = frozenset({NO_FINDING})
    return source, [[(f, names or nothing) for f, names in part if names is not None] for part in found]


# 2. What fine-tuning taught


def probe_fine_tuning(
    model: LlamaXR,
    step: Path,
    studies: Sequence[StudyFeatures],
    texts: list[str],
    trained: TrainOptions,
    options: ProbeOptions,
) -> dict:
    """Perplexity of the true reports by four readers. Before fine-tuning: the base, prompted without images,
    and the start of the run, whose fresh projector adds noise to the prompt. Afterwards: the fine-tuned model
    with each study's own images, and with another study's. `model` holds the checkpoint `step` afterwards.

    texts hold the outline where the run writes one. It is scored, not given: it would reveal the findings."""
    pieces = [[model.tokenizer.bytes_of(t) for t in model.tokenizer.encode(text)] for text in texts]
    named = [np.r_[probes.names_a_finding(p), False] for p in pieces]  # EOS names nothing
    swapped = [studies[i] for i in baselines.derangement(len(studies), options.seed)]
    no_views = StudyFeatures([], studies[0].grids[:0], studies[0].scores[:0])
    # With the bridge `scores` a study without views would still leave the names of the scores in the prompt.
    without_images = LlamaXR(model.projector, model.llama, model.tokenizer, "tokens")

    with tqdm(total=4 * len(texts), desc="perplexity", unit=" reports", leave=False) as bar:

        def read(reader: LlamaXR, images: Sequence[StudyFeatures]) -> dict[str, list[float]]:
            return probes.perplexity(token_losses(reader, images, texts, options.batch, bar.update), named)

        readers = {BASE: read(without_images, [no_views] * len(texts))}
        if trained.adapter:  # as train.py does
            checkpoint.load_adapter(trained.adapter, model, trained.rank, trained.lora_alpha)
        readers[START] = read(model, studies)
        checkpoint.load(step, model)
        readers |= {TUNED: read(model, studies), SWAPPED: read(model, swapped)}
    n_named, n = (sum(f(x) for x in named) for f in (np.sum, len))
    return {"tokens": int(n), "naming_findings": int(n_named), "readers": readers}


@torch.inference_mode()
def token_losses(
    model: LlamaXR,
    studies: Sequence[StudyFeatures],
    texts: list[str],
    batch_size: int,
    progress: Callable[[int], None],
) -> list[np.ndarray]:
    """The loss in nats of each token of each text, EOS included."""
    losses, device = [], model.projector.place.device
    for start in range(0, len(texts), batch_size):
        rows = slice(start, start + batch_size)
        batch = model.collate(studies[rows], texts[rows]).to(device)
        hidden = model.llama.hidden(model.embed(batch))  # (batch, time, dim)
        scored = batch.targets != IGNORE  # (batch, time)
        logits = model.llama.logits(hidden[scored]).float()  # (n_targets, vocab)
        flat = F.cross_entropy(logits, batch.targets[scored], reduction="none").cpu()  # (n_targets,)
        losses += [part.double().numpy() for part in flat.split(scored.sum(1).tolist())]
        progress(len(texts[rows]))
    return losses


# 3. Reports against scores


def labelled_columns(vision) -> dict[str, list[int]]:
    """Finding -> the columns of its pathologies among the network's scores. Pathologies for which the network
    had no labels are left out: their score is always 0.5."""
    if not vision.has_scores:
        return {}
    points = torch.zeros(len(PATHOLOGIES)) if vision.op_threshs is None else vision.op_threshs.cpu()
    columns = {
        name: [j for j in map(PATHOLOGIES.index, PATHOLOGIES_OF[name]) if not points[j].isnan()]
        for name in FINDINGS
        if name in PATHOLOGIES_OF
    }
    return {name: labelled for name, labelled in columns.items() if labelled}


def study_scores(studies: Sequence[StudyFeatures]) -> np.ndarray:
    """(n, 18): each pathology's highest score among a study's views: one view that shows it is enough."""
    return np.stack([f.scores.amax(dim=0).numpy() for f in studies])


def check_complete(evaluated: Sequence[Pair], generated: dict[str, str], reports_file: Path) -> None:
    """UserError unless there is a report of each study."""
    missing = [study.id for _, study in evaluated if study.id not in generated]
    if missing:
        raise UserError(
            f"{reports_file} lacks {len(missing)} studies, the first {missing[0]}: run eval.py on all of them"
        )


def probe_denials(
    evaluated: Sequence[Pair],
    generated: dict[str, str],
    columns: dict[str, list[int]],
    options: ProbeOptions,
) -> dict:
    """How often each group of reports asserts what the scores deny (probes.denials)."""
    own = [generated[study.id] for _, study in evaluated]
    swapped = [own[i] for i in baselines.derangement(len(own), options.seed)]
    reports = {"generated": own, "true": [study.report for _, study in evaluated], "swapped": swapped}
    scores = study_scores([f for f, _ in evaluated])
    rows = {group: probes.denials([find(t) for t in texts], scores, columns, options.below)
            for group, texts in reports.items()}  # fmt: skip
    return {"below": options.below, "reports": rows}


# 4. Where findings are lost


def probe_findings(
    train: Sequence[Pair],
    evaluated: Sequence[Pair],
    generated: dict[str, str] | None,
    outlines: dict[str, str] | None,
) -> dict:
    """The findings F1, micro and macro, of three predictions of what the true reports assert: by a linear
    layer on the features, fitted on train; by the outlines; by the reports. behind: how far micro F1 is below
    that of the previous one, paired by study. None where nothing is asserted.

    The linear layer sees the mean of each view's places, so the features may hold more. It predicts a finding
    whose score reaches one threshold, the one with the best F1 on train with each study left out.
    """
    x, queries = (np.stack([pooled_features(f) for f, _ in p]).astype(float) for p in (train, evaluated))
    asserted = [find(study.report) for _, study in train]
    present = np.array([[name in findings for name in FINDINGS] for findings in asserted], float)
    scores, left_out = probes.linear_probe(x, present, queries)
    predicted = scores >= probes.best_threshold(left_out, present)
    rows = {LINEAR: [{name for name, yes in zip(FINDINGS, row, strict=True) if yes} for row in predicted]}
    if outlines is not None:
        rows["outlines"] = [read_outline(outlines[study.id]) for _, study in evaluated]
    if generated is not None:
        rows["reports"] = [find(generated[study.id]) for _, study in evaluated]
    truths, results, before = [find(study.report) for _, study in evaluated], {}, None
    for name, predictions in rows.items():
        heads, samples = agreement.sample_tally(agreement.tally(truths, predictions, FINDINGS), FINDINGS)
        samples = samples[:, [heads.index("micro_f1"), heads.index("macro_f1")]]
        columns = samples if before is None else np.c_[samples, before - samples[:, 0]]
        intervals = [[None if np.isnan(x) else x for x in line] for line in interval(columns).tolist()]
        results[name] = dict(zip(("micro_f1", "macro_f1", "behind"), intervals, strict=False))
        before = samples[:, 0]
    return results


# The tables for a terminal


def as_text(results: dict) -> str:
    return "\n".join(_lines(results))


def _lines(results: dict) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in results["settings"].items())
    part, split = results["features"], results["settings"]["split"]
    yield f"\n1. AUROC of {part['annotations']}: {part['train']} train, {part['evaluated']} {split} studies"
    yield f"{'':28s}{'train':>7s}{split:>7s}{'linear probe':>23s}{'own score':>23s}"
    for name, row in part["classes"].items():
        score = _cell(row["score"]) if "score" in row else "-"
        yield f"{name:28s}{row['train']:7d}{row['evaluated']:7d}{_cell(row['probe']):>23s}{score:>23s}"
    part = results["perplexity"]
    shares = f"{part['naming_findings']} of {part['tokens']} tokens name findings"
    yield f"\n2. Perplexity of the true reports, {shares}"
    yield f"{'':28s}{'all':>25s}{'naming findings':>25s}{'rest':>25s}"
    for name, row in part["readers"].items():
        yield f"{name:28s}" + "".join(f"{_cell(row[key], 2):>25s}" for key in ("all", "findings", "rest"))
    if part := results.get("denied"):
        yield from _denied_lines(part)
    yield "\n4. Findings F1, against what the true reports assert"
    yield f"{'':28s}{'micro':>25s}{'macro':>25s}{'micro, behind the above':>25s}"
    for name, row in results["findings"].items():
        yield f"{name:28s}" + "".join(f"{_cell(value):>25s}" for value in row.values())


def _denied_lines(part: dict) -> Iterator[str]:
    yield f"\n3. Findings asserted although their scores are below {part['below']}, of all asserted"
    yield f"{'':28s}" + "".join(f"{group:>31s}" for group in part["reports"])
    for name in part["reports"]["generated"]:
        rows = [by_finding[name] for by_finding in part["reports"].values()]
        cells = [f"{r['denied']}/{r['asserted']} {_cell(r['share']) if r['asserted'] else ''}" for r in rows]
        yield f"{name:28s}" + "".join(f"{cell:>31s}" for cell in cells)


def _cell(value: list[float | None], digits: int = 3) -> str:
    return "-" if value[0] is None else "{:.{d}f} [{:.{d}f},{:.{d}f}]".format(*value, d=digits)


if __name__ == "__main__":
    with one_line_errors():
        main()

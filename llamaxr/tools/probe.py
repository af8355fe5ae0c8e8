"""What a trained run's parts know, where the scores of its reports do not tell.

    python -m llamaxr.tools.probe --run runs/NAME --split test        after python eval.py --run runs/NAME

Three tables (metrics/probes.py says how each is measured), also written to RUN/eval-SPLIT/probes.json:

1. how well a linear layer, learned on train, reads the findings off vision's frozen features: those that
   people saw (Open-i's index terms), or that were drawn, or, of data with neither, that the reports assert;
2. the perplexity of the split's true reports before and after fine-tuning, and with another study's images;
3. how often reports assert what vision's scores deny: those that eval.py wrote, the true ones, and, to tell
   heeding the scores from agreeing with them by chance, those that it wrote for other studies.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..runs import checkpoint
from ..data.study import SPLITS, Study
from ..runs.distributed import warn
from ..errors import UserError, one_line_errors
from ..runs.features import StudyFeatures, summary
from ..metrics import baselines, mesh, probes
from ..metrics.findings import CLASSES, FINDINGS, NO_FINDING, find
from ..model import LlamaXR
from ..runs.options import from_json, option, parse
from ..prompt import with_outline
from ..runs.run import (
    DEMO,
    TrainOptions,
    build,
    evaluation_folder,
    load_studies,
    newest_run,
    pick_device,
    see_studies,
)
from ..vision import PATHOLOGIES
from .vision_train import LEAST, PATHOLOGIES_OF

Seen = tuple[StudyFeatures, Study]
BASE, START = "base, no images", "start of the run"
TUNED, SWAPPED = "fine-tuned", "fine-tuned, images swapped"


@dataclass(frozen=True)
class ProbeOptions:
    run: Path | None = option(None, "run folder; the newest under runs/, or the embedded demo, if not given")
    split: str = option("test", "which studies are asked", choices=SPLITS)
    reports: Path | None = option(
        None, "written reports (id and generated a line); RUN/eval-SPLIT/reports.jsonl if not given"
    )
    below: float = option(0.5, "a finding is denied by a score below this", above=0, at_most=1)
    limit: int = option(0, "ask the first LIMIT studies only; 0 is all", at_least=0)
    batch: int = option(8, "reports read together", at_least=1)
    seed: int = option(0, "seed of the swap", at_least=0)
    device: str = option("auto", "auto takes CUDA where there is one", choices=("auto", "cuda", "cpu"))
    root: Path | None = option(None, "folder of the data set, if it is no longer where the run had it")
    json: bool = option(False, "print probes.json instead of the tables")
    out: Path | None = option(None, "folder for probes.json; RUN/eval-SPLIT if not given")


def main(argv: list[str] | None = None) -> None:
    options, _, _ = parse(ProbeOptions, __doc__, argv)
    run = options.run or newest_run() or DEMO
    trained = from_json(TrainOptions, checkpoint.read_config(run), run / "config.json")
    step, device = checkpoint.best(run), pick_device(options.device)
    trained = replace(trained, root=options.root or trained.root)
    out = options.out or evaluation_folder(run, options.split)
    kept = options.reports or out / "reports.jsonl"
    generated = read_reports(kept) if options.reports or kept.is_file() else None

    vision, model = build(trained, device)  # LoRA and projector as they were before the first step
    model.eval()
    studies = load_studies(trained, warn)
    with tqdm(desc="looking at images", unit=" images", leave=False) as bar:
        seen = see_studies(trained, vision, studies, device, warn, bar.update)
    train = [pair for pair in seen if pair[1].split == "train"]
    asked = [pair for pair in seen if pair[1].split == options.split][: options.limit or None]
    if len(asked) < 2 or not train:
        raise UserError(
            f"{len(asked)} {options.split} and {len(train)} train studies are too few; raise --limit"
        )
    model.projector.standardise(f.grids for f, _ in train[: trained.limit or None])  # as train.py does
    settings = {"run": str(run), "checkpoint": step.name, "data": trained.data, "split": options.split,
                "studies": len(asked), "seed": options.seed}  # fmt: skip
    labelled = labelled_columns(vision)
    results = {"settings": settings, "features": probe_features(train, asked, labelled)}
    results["perplexity"] = probe_adaptation(model, step, asked, options)
    if not labelled:
        warn("this vision network has no scores, so no report can contradict them")
    elif generated is None:
        warn(f"no {kept}, so no reports to hold against the scores: run eval.py first")
    else:
        results["denied"] = probe_denials(asked, generated, kept, labelled, options)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out / "probes.json", results)
    print(json.dumps(results) if options.json else as_text(results))
    if not options.json:
        print(f"written: {out / 'probes.json'}")


# 1. Features against annotations


def probe_features(train: Sequence[Seen], asked: Sequence[Seen], labelled: dict[str, list[int]]) -> dict:
    """Each class that LEAST train studies have, and lack: studies with it, the linear probe's AUROC, and that
    of the network's own score where it has one."""
    kind, (known, held_out) = annotations([train, asked])
    names = [n for n in CLASSES if LEAST <= sum(n in f for _, f in known) <= len(known) - LEAST]
    present, truth = (np.array([[n in f for n in names] for _, f in part]) for part in (known, held_out))
    features, questions = (
        np.stack([summary(f) for f, _ in part]).astype(float) for part in (known, held_out)
    )
    answers = probes.linear_probe(features, present.astype(float), questions)
    own, rows = study_scores([f for f, _ in held_out]), {}
    for j, name in enumerate(names):
        if 0 < truth[:, j].sum() < len(truth):
            rows[name] = {"train": int(present[:, j].sum()), "asked": int(truth[:, j].sum()),
                          "probe": probes.auroc_interval(answers[:, j], truth[:, j])}  # fmt: skip
            if name in labelled:
                score = own[:, labelled[name]].max(1)
                rows[name]["score"] = probes.auroc_interval(score, truth[:, j])
    return {"annotations": kind, "train": len(known), "asked": len(held_out), "classes": rows}


def annotations(parts: list[Sequence[Seen]]) -> tuple[str, list[list[tuple[StudyFeatures, frozenset[str]]]]]:
    """Where the findings come from, and the studies of which they are known, with them; NO_FINDING is one."""
    studies = [study for part in parts for _, study in part]
    if any(s.findings is not None for s in studies):
        kind, of = "what was drawn", lambda s: s.findings
    elif any(s.terms is not None for s in studies):
        kind = "index terms (MeSH)"
        of = lambda s: mesh.mesh_findings(s.terms) if mesh.is_indexed(s.terms or ()) else None
    else:
        kind, of = "what the reports assert", lambda s: find(s.report)
    found = [[(f, of(study)) for f, study in part] for part in parts]
    nothing = frozenset({NO_FINDING})
    return kind, [[(f, names or nothing) for f, names in part if names is not None] for part in found]


# 2. What fine-tuning taught


def probe_adaptation(model: LlamaXR, step: Path, asked: Sequence[Seen], options: ProbeOptions) -> dict:
    """Perplexity of the true reports by four readers. Before fine-tuning there are two: the base, with the
    instruction and no word of images; and the run's start, whose fresh projector puts noise into the prompt.
    Afterwards two more: the fine-tuned model with each study's images, and with another study's. Where the
    run writes an outline, it is part of each text, for all readers: given, it would tell the findings."""
    own = [f for f, _ in asked]
    texts = [with_outline(study.report) if model.outline else study.report for _, study in asked]
    pieces = [[model.tokenizer.bytes_of(t) for t in model.tokenizer.encode(text)] for text in texts]
    named = [np.r_[probes.names_a_finding(p), False] for p in pieces]  # the end names nothing
    others = [own[i] for i in baselines.derangement(len(own), options.seed)]
    nothing = StudyFeatures([], own[0].grids[:0], own[0].scores[:0])
    parts = model.projector, model.llama, model.tokenizer
    wordless, seeing = LlamaXR(*parts, "tokens"), LlamaXR(*parts, model.bridge)  # scores are words, too

    with tqdm(total=4 * len(asked), desc="reading reports", unit=" reports", leave=False) as bar:

        def read(reader: LlamaXR, images: list[StudyFeatures]) -> dict[str, list[float]]:
            return probes.perplexity(token_losses(reader, images, texts, options.batch, bar.update), named)

        table = {BASE: read(wordless, [nothing] * len(own)), START: read(seeing, own)}
        checkpoint.load(step, model)
        table |= {TUNED: read(seeing, own), SWAPPED: read(seeing, others)}
    n_named, n = (sum(f(x) for x in named) for f in (np.sum, len))
    return {"tokens": int(n), "naming_findings": int(n_named), "readers": table}


@torch.inference_mode()
def token_losses(
    model: LlamaXR,
    images: list[StudyFeatures],
    reports: list[str],
    batch: int,
    progress: Callable[[int], None],
) -> list[np.ndarray]:
    """The loss in nats of each token of each report, its end included."""
    losses, device = [], model.projector.place.device
    for at in range(0, len(reports), batch):
        texts = reports[at : at + batch]
        read = model.collate(images[at : at + batch], texts).to(device)
        hidden = model.llama.hidden(model.embed(read), packing=read.packing, asked=read.answers)
        hidden, targets = hidden[0], read.targets[0, read.answers]  # (n_targets, dim), (n_targets,)
        each = F.cross_entropy(model.llama.logits(hidden).float(), targets, reduction="none")
        lengths = [len(model.tokenizer.encode(text)) + 1 for text in texts]
        losses += [part.double().numpy() for part in each.cpu().split(lengths)]
        progress(len(texts))
    return losses


# 3. Reports against scores


def labelled_columns(vision) -> dict[str, list[int]]:
    """For each finding that the network's scores know, the pathologies that stand for it. What it was never
    trained on scores 0.5 whatever the image, and counts as not known."""
    if not vision.has_scores:
        return {}
    never = torch.zeros(len(PATHOLOGIES)) if vision.op_threshs is None else vision.op_threshs.cpu()
    columns = {
        name: [j for j in map(PATHOLOGIES.index, PATHOLOGIES_OF[name]) if not never[j].isnan()]
        for name in FINDINGS
        if name in PATHOLOGIES_OF
    }
    return {name: known for name, known in columns.items() if known}


def study_scores(features: Sequence[StudyFeatures]) -> np.ndarray:
    """(n, 18): of each pathology the highest score among a study's views: one view that sees it is enough."""
    return np.stack([f.scores.amax(dim=0).numpy() for f in features])


def probe_denials(
    asked: Sequence[Seen], generated: dict[str, str], kept: Path, labelled: dict, options: ProbeOptions
) -> dict:
    lost = [study.id for _, study in asked if study.id not in generated]
    if lost:
        raise UserError(f"{kept} lacks {len(lost)} studies, the first {lost[0]}: run eval.py on all of them")
    written = [generated[study.id] for _, study in asked]
    swapped = [written[i] for i in baselines.derangement(len(written), options.seed)]
    scores = study_scores([f for f, _ in asked])
    told = {"generated": written, "true": [study.report for _, study in asked], "swapped": swapped}
    by = {who: probes.denials([find(t) for t in texts], scores, labelled, options.below)
          for who, texts in told.items()}  # fmt: skip
    return {"below": options.below, "reports": by}


def read_reports(path: Path) -> dict[str, str]:
    """Study -> its written report, of a JSONL file like eval.py's reports.jsonl."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {row["id"]: row["generated"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no JSONL of id and generated ({error!r}); mend or remove it") from None


# The tables for a terminal


def as_text(results: dict) -> str:
    return "\n".join(_lines(results))


def _lines(results: dict) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in results["settings"].items())
    part = results["features"]
    yield f"\n1. AUROC of {part['annotations']}: {part['train']} train, {part['asked']} asked studies"
    yield f"{'':28s}{'train':>7s}{'asked':>7s}{'linear probe':>23s}{'own score':>23s}"
    for name, row in part["classes"].items():
        score = _cell(row["score"]) if "score" in row else "-"
        yield f"{name:28s}{row['train']:7d}{row['asked']:7d}{_cell(row['probe']):>23s}{score:>23s}"
    part = results["perplexity"]
    shares = f"{part['naming_findings']} of {part['tokens']} tokens name findings"
    yield f"\n2. Perplexity of the true reports, {shares}"
    yield f"{'':28s}{'all':>25s}{'naming findings':>25s}{'rest':>25s}"
    for name, row in part["readers"].items():
        yield f"{name:28s}" + "".join(f"{_cell(row[key], 2):>25s}" for key in ("all", "findings", "rest"))
    if "denied" not in results:
        return
    part = results["denied"]
    yield f"\n3. Asserted though the scores deny it (each below {part['below']}), of what is asserted"
    yield f"{'':28s}" + "".join(f"{who:>31s}" for who in part["reports"])
    for name in part["reports"]["generated"]:
        rows = [by[name] for by in part["reports"].values()]
        cells = [f"{r['denied']}/{r['asserted']} {_cell(r['share']) if r['asserted'] else ''}" for r in rows]
        yield f"{name:28s}" + "".join(f"{cell:>31s}" for cell in cells)


def _cell(value: list[float], digits: int = 3) -> str:
    return "{:.{d}f} [{:.{d}f},{:.{d}f}]".format(*value, d=digits)


if __name__ == "__main__":
    with one_line_errors():
        main()

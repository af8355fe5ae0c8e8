"""Train LLaMA-XR: projector and LoRA learn to write reports; DenseNet and the base stay frozen.

python train.py                                                  the embedded sample, minutes on two cores
python train.py --data iu_xray --root DIR --base LLAMA_DIR       IU X-ray: R2Gen's, Open-i's, Kaggle's
python train.py --data iu_xray --root DIR --recipe paper         LLaMA-XR as published
python train.py --data iu_xray --root DIR --describe [--json]    what is in a data set, and no training
python train.py --resume [runs/NAME]                             go on where a run was stopped
torchrun --nproc-per-node 2 -- train.py ...                      the same steps, their studies dealt out
"""

import json
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bitsandbytes.optim import AdamW8bit
from tqdm import tqdm

from llamaxr.runs import checkpoint, distributed
from llamaxr.tools.describe import as_text, describe
from llamaxr.decoding import generate
from llamaxr.runs.distributed import warn
from llamaxr.errors import UserError, one_line_errors
from llamaxr.model import Batch, LlamaXR
from llamaxr.runs.options import from_json, parse, to_json
from llamaxr.prompt import IGNORE
from llamaxr.runs.run import (
    CACHE,
    RUNS,
    TrainOptions,
    build,
    check_memory,
    load_studies,
    n_steps,
    newest_run,
    pick_device,
    see_studies,
    settle,
)
from llamaxr.wording import typical_once

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adamw8bit": AdamW8bit}


def main(argv: list[str] | None = None) -> None:
    resume_help = "continue this run (the newest if none is named); no other option is needed"
    options, extra, given = parse(TrainOptions, __doc__, argv, {
        "--resume": {"nargs": "?", "const": "", "metavar": "RUN", "help": resume_help},
        "--describe": {"action": "store_true", "help": "print what is in the data set, and exit"},
        "--json": {"action": "store_true", "help": "with --describe: as JSON"},
    })  # fmt: skip
    if extra.json and not extra.describe:
        raise UserError("--json goes with --describe")
    if extra.describe:
        with progress_bar() as show:
            description = describe(load_studies(options, warn, show))
        print(json.dumps(description, indent=2) if extra.json else as_text(description))
        return
    resumed = extra.resume is not None
    run, options = find_run(options, extra.resume, given)
    device = distributed.start(pick_device(options.device))
    run, is_main = distributed.from_main(lambda: run), distributed.is_main()  # its name may tell the time
    if options.batch < distributed.size():
        raise UserError(
            f"--batch {options.batch} has no study for each of {distributed.size()} processes; raise it"
        )
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # Adam's smallest moments would else slow a CPU down

    with distributed.in_turns(), progress_bar() as show:
        studies = load_studies(options, warn, show)
    tqdm.write(check_memory(options, studies, device))
    with progress_bar() as show:
        vision, model = build(options, device, show)
    if options.compile:
        model.llama.compile_blocks()
    with tqdm(desc="looking at images", unit=" images", leave=False, disable=not is_main) as bar:
        seen = see_studies(options, vision, studies, device, warn, bar.update)
    pairs = {split: [(f, s) for f, s in seen if s.split == split] for split in ("train", "val")}
    train, val = pairs["train"][: options.limit or None], pairs["val"][: options.val_studies or None]
    if len(train) < options.batch or not val:
        raise UserError(
            f"{len(train)} train and {len(val)} val studies are too few for --batch {options.batch}"
        )

    options = replace(options, steps=n_steps(options, len(train)))
    # The longest reports are shown: they have findings to be right or wrong about.
    shown = sorted(val, key=lambda pair: -len(pair[1].report))[: options.n_samples]
    if options.wording == "typical":
        own = [s.report for _, s in train + val]
        with progress_bar() as show:
            cache = options.cache or CACHE
            make = lambda: typical_once(own, own[: len(train)], cache, os.cpu_count() or 1, show)
            texts = distributed.from_main(make)
        reworded = [(f, replace(s, report=text)) for (f, s), text in zip(train + val, texts, strict=True)]
        train, val = reworded[: len(train)], reworded[len(train) :]

    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adapters = [p for name, p in learning.items() if "lora_" in name]
    others = [p for name, p in learning.items() if "lora_" not in name]
    groups = [{"params": adapters, "peak": options.lr}, {"params": others, "peak": options.projector_lr}]
    optimizer = OPTIMIZERS[options.optimizer](groups, lr=options.lr, weight_decay=options.weight_decay)
    trainable = [p for group in groups for p in group["params"]]
    start = 0
    if resumed:
        start = checkpoint.load(checkpoint.last(run), model, optimizer)["step"]
    else:
        model.projector.standardise(features.grids for features, _ in train)
        if options.adapter:
            checkpoint.load_adapter(options.adapter, model, options.rank, options.lora_alpha)
    if is_main:
        if not resumed:
            run.mkdir(parents=True)
            checkpoint.write_json(run / "config.json", to_json(options))
        for name in ("metrics.jsonl", "samples.jsonl"):
            drop_lines_after(run / name, start)
    tqdm.write(
        f"{run}: {len(train)} train studies, {sum(p.numel() for p in trainable):,} trainable numbers, "
        f"base {options.base} ({options.quantize}), {device}, {model.llama.dtype}"
    )
    if start >= options.steps:
        raise UserError(f"{run} has already finished its {options.steps} steps; start a new run")

    stop = catch_signals()
    log = (run / "metrics.jsonl" if is_main else Path(os.devnull)).open("a", encoding="utf-8")
    if start == 0:
        write_line(log, {"step": 0, "val_loss": validate(model, val, options)})
    bar = tqdm(total=options.steps, initial=start, desc="train", unit="step", disable=not is_main)
    for step in range(start + 1, options.steps + 1):
        began = time.perf_counter()
        # The batches depend on the seed and the step alone, so a resumed run sees what it would have seen.
        chosen = [distributed.share(part) for part in studies_of_step(train, step, options)]
        alone = step <= options.outline_share * options.steps
        micro = [collate(model, part, options, outline_alone=alone) for part in chosen]
        n_targets = distributed.total(sum((batch.targets != IGNORE).sum() for batch in micro))
        total = torch.zeros((), device=device)
        for batch in micro:
            loss = model.loss(batch)[0] / n_targets  # a mean over all report tokens of the step
            loss.backward()
            total += loss.detach()
        distributed.sum_gradients(trainable)
        torch.nn.utils.clip_grad_norm_(trainable, options.clip)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, options)
        optimizer.step()
        optimizer.zero_grad()

        line = {"step": step, "loss": distributed.total(total).item(), "lr": optimizer.param_groups[0]["lr"]}
        n_tokens = distributed.total(torch.tensor(sum(b.ids.numel() for b in micro))).item()
        line["tokens_per_s"] = round(n_tokens / (time.perf_counter() - began))
        if step % options.val_every == 0 or step == options.steps:
            line["val_loss"] = validate(model, val, options)
        worst = max(line["loss"], line.get("val_loss", 0.0), key=lambda loss: not np.isfinite(loss))
        if not np.isfinite(worst):  # the validation's is the first to tell of a step that went wrong
            bar.close()  # or the error would stand at the end of the bar's line
            raise UserError(
                f"the loss is {worst} at step {step}; the last good checkpoint is "
                f"{last_checkpoint(run)}; start anew with a lower --lr and --projector-lr"
            )
        write_line(log, line)  # before its checkpoint, so that a run killed between lacks no line
        if is_main and "val_loss" in line:
            tqdm.write(f"step {step}: validation loss {line['val_loss']:.4f}")
            show_samples(run, step, model, shown, options)
            checkpoint.save(run, model, to_json(options), step, line["val_loss"], optimizer)
        bar.update()
        bar.set_postfix(loss=f"{line['loss']:.3f}", lr=f"{line['lr']:.1e}", tokens_per_s=line["tokens_per_s"])
        caught = distributed.largest(max(stop, default=0))  # all stop at the step at which one was told to
        if caught and step < options.steps:
            if is_main and "val_loss" not in line:
                checkpoint.save(run, model, to_json(options), step, None, optimizer)
            bar.close()
            tqdm.write(f"stopped at step {step} and saved; go on with: python train.py --resume {run}")
            distributed.gather(None)  # who left before it is saved would bring the others down
            raise SystemExit(128 + caught)
    bar.close()
    if is_main:
        draw_loss(run)
    tqdm.write(
        f"saved in {run}; next: python generate.py IMAGE --run {run}   or   python eval.py --run {run}"
    )


@contextmanager
def progress_bar():
    """A bar for what is drawn or downloaded: yields progress(what, done, total)."""
    with tqdm(leave=False, delay=0.5, unit="", unit_scale=True, disable=not distributed.is_main()) as bar:

        def show(what: str, done: int, total: int | None) -> None:
            if what != bar.desc:
                bar.reset(total)
                bar.set_description_str(what)
            bar.update(done - bar.n)

        yield show


def find_run(options: TrainOptions, resume: str | None, given: set[str]) -> tuple[Path, TrainOptions]:
    """The run folder, and the options it runs with: those given, or those kept in a resumed run."""
    if resume is None:
        run = options.out or RUNS / f"{options.data}-{time.strftime('%Y%m%d-%H%M%S')}"
        if run.exists():
            raise UserError(f"{run} exists already; name another --out, or go on with --resume {run}")
        return run, settle(options, given)
    if given:
        raise UserError(
            f"--resume takes its options from the run; leave out --{min(given).replace('_', '-')}"
        )
    run = Path(resume) if resume else newest_run()
    if run is None:
        raise UserError(f"nothing to resume: no run with a checkpoint in {RUNS}")
    return run, from_json(TrainOptions, checkpoint.read_config(run), run / "config.json")


def studies_of_step(train: list, step: int, options: TrainOptions) -> list[list]:
    """The studies of one step, in `accumulate` lists of `batch`: consecutive places of an endless sequence of
    epochs, each its own shuffle."""
    n = options.batch * options.accumulate
    rows = []
    for at in range((step - 1) * n, step * n):
        epoch, place = divmod(at, len(train))
        if not rows or place == 0:
            order = np.random.default_rng((options.seed, epoch)).permutation(len(train))
        rows.append(train[order[place]])
    return [rows[i : i + options.batch] for i in range(0, n, options.batch)]


def collate(model: LlamaXR, part: list, options: TrainOptions, outline_alone: bool = False) -> Batch:
    """(features, study) pairs -> a batch to learn from, on the model's device."""
    features, reports = [f for f, _ in part], [s.report for _, s in part]
    batch = model.collate(features, reports, options.max_report_tokens, outline_alone)
    return batch.to(model.projector.place.device)


def schedule(step: int, options: TrainOptions) -> float:
    """The share of its peak that the learning rate has at a step (1 is the first): up, then linearly to 0."""
    if step <= options.warmup:
        return step / options.warmup
    return (options.steps - step + 1) / max(1, options.steps - options.warmup)


@torch.inference_mode()
def validate(model: LlamaXR, val: list, options: TrainOptions) -> float:
    """Mean loss a report token over the validation studies, of which each process reads its share."""
    total, count = 0.0, 0
    for i in range(0, len(val), options.batch):
        if part := distributed.share(val[i : i + options.batch]):
            loss, n = model.loss(collate(model, part, options))
            total, count = total + loss.item(), count + n.item()
    total, count = distributed.total(torch.tensor([total, count], dtype=torch.float64)).tolist()
    return total / count


@torch.inference_mode()
def show_samples(run: Path, step: int, model: LlamaXR, pairs: list, options: TrainOptions) -> None:
    """Write a few reports, print them beside the true ones, and keep both in samples.jsonl."""
    if not pairs:
        return
    batch = model.collate([f for f, _ in pairs]).to(model.projector.place.device)
    rows = generate(
        model.llama, model.embed(batch), batch.padding, model.tokenizer.eos_ids, options.max_report_tokens,
        shared=batch.shared,
    )  # fmt: skip
    with (run / "samples.jsonl").open("a", encoding="utf-8") as file:
        for (_, study), row in zip(pairs, rows, strict=True):
            report = model.tokenizer.decode(row)  # its outline with it, to see what was seen
            write_line(file, {"step": step, "id": study.id, "reference": study.report, "generated": report})
            tqdm.write(f"  true:      {study.report}\n  generated: {report}\n")


def write_line(file, value: dict) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()


def drop_lines_after(path: Path, step: int) -> None:
    """Of a .jsonl keep what the checkpoint at `step` has seen: the steps after it will be done again."""
    if path.is_file():
        lines = [
            line
            for line in path.read_text().splitlines()
            if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in lines))
        temporary.replace(path)


def last_checkpoint(run: Path) -> str:
    try:
        return str(checkpoint.last(run))
    except UserError:
        return "none yet"


def catch_signals() -> list[int]:
    """An empty list to which Ctrl-C or SIGTERM adds its number; the loop looks at it after each step."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: caught.append(n))
    return caught


def draw_loss(run: Path) -> None:
    """metrics.jsonl -> loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for key, style in (("loss", "-"), ("val_loss", "o-")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), style, label=key, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats a report token)", title=run.name)
    axes.legend()
    figure.savefig(run / "loss.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Train LLaMA-XR: the projector and LoRA learn to write reports; DenseNet and the base stay frozen.

python train.py                                                the drawn sample, minutes on two cores
python train.py --data iu_xray --root DIR                      IU X-ray in R2Gen's, Open-i's or Kaggle's form
python train.py --data iu_xray --root DIR --recipe paper       LLaMA-XR as published
python train.py --data iu_xray --root DIR --describe           print what is in a data set and exit
python train.py --resume [runs/NAME]                           continue a run that was stopped
torchrun --nproc-per-node 2 -- train.py ...                    the same steps, their studies sharded
"""

import llamaxr.runs.interrupt  # noqa: F401  # isort: skip  (Ctrl-C while torch loads ends in one line)
import json
import math
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llamaxr.data.emphasis import batch_weights  # sentences that assert a finding weigh more
from llamaxr.data.outline import outline_line, with_outline  # the line of findings before a report
from llamaxr.fast.optimizer import adamw8bit  # bitsandbytes', without its waits for the GPU
from llamaxr.model import Batch, LlamaXR
from llamaxr.runs import checkpoint, distributed, unlike  # unlike: detects out-of-distribution images
from llamaxr.runs import run as runs  # finds a run's folder, its data, its vision network, its model
from llamaxr.runs.distributed import is_main_process, warn  # warn: a line on stderr
from llamaxr.runs.log import catch_signals, check_finite, finish, open_log, progress_bar, write_line
from llamaxr.runs.memory import out_of_memory_in_one_line
from llamaxr.runs.options import to_json
from llamaxr.runs.recipes import TrainOptions, n_steps, parse_train_options, parts_of_run
from llamaxr.runs.reports import write_samples  # a few reports, beside the true ones
from llamaxr.runs.terminal import one_line_errors
from llamaxr.tools.describe import as_text, describe  # --describe


def main(argv: list[str] | None = None) -> None:
    options, extra = parse_train_options(__doc__, argv)
    if extra.describe:
        with progress_bar() as progress:
            description = describe(runs.load_studies(options, warn, progress))
        return print(json.dumps(description, indent=2) if extra.json else as_text(description))
    run, options = runs.find_run(options, extra.resume, extra.given)
    device = distributed.init(runs.pick_device(options.device))
    with runs.claimed(run, options, extra.resume is None) as run, out_of_memory_in_one_line(run, options):
        train_run(run, options, device)


def train_run(run: Path, options: TrainOptions, device: torch.device) -> None:
    """Take all steps of a new run, or the remaining steps of a resumed one."""
    if runs.is_finished(run, options):
        return finish(run)  # an earlier process was killed after its last checkpoint, before `finish`
    resumed = checkpoint.has_checkpoint(run)
    options, model, pairs = load_model_and_data(options, device)
    train, val = runs.training_splits(options, pairs)
    options = replace(options, steps=n_steps(options, len(train)))
    optimizer = make_optimizer(model, options)
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    last_step = checkpoint.load(checkpoint.last(run), model, optimizer)["step"] if resumed else 0
    if not resumed:
        model.projector.standardise(features.grids for features, _ in train)
        if options.adapter:
            checkpoint.load_adapter(options.adapter, model, options.rank, options.lora_alpha)
    known = unlike.fit([f for f, _ in train], [f for f, study in pairs if study.split == "val"])
    tqdm.write(f"{run}: {len(train)} studies per epoch, {len(val)} to validate, {options.steps} steps")

    log, signals = open_log(run, to_json(options), last_step), catch_signals()  # signals: empty until Ctrl-C
    if last_step == 0:
        write_line(log, {"step": 0, "val_loss": validate(model, val, options)})
    steps = range(last_step + 1, options.steps + 1)
    bar = tqdm(steps, "train", options.steps, initial=last_step, disable=not is_main_process())
    for step in bar:
        start = time.perf_counter()
        batches = [collate(model, part, options, step) for part in pairs_of_step(train, step, options)]
        n_targets = distributed.all_reduce_sum(torch.tensor(sum(len(b.target_positions) for b in batches)))
        step_loss = torch.zeros((), device=device)  # this process's part of it
        for batch in batches:
            loss = model.loss(batch) / n_targets  # of the whole step, so that all tokens weigh the same
            loss.backward()
            step_loss += loss.detach()
        distributed.all_reduce_gradients(trainable)
        norm = torch.nn.utils.clip_grad_norm_(trainable, options.clip)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, options)
        optimizer.step()
        optimizer.zero_grad()

        loss, lr = distributed.all_reduce_sum(step_loss).item(), optimizer.param_groups[0]["lr"]
        rate = round(n_targets.item() / (time.perf_counter() - start))
        line = {"step": step, "loss": loss, "grad_norm": norm.item(), "lr": lr, "report_tokens_per_s": rate}
        if validated := step % options.val_every == 0 or step == options.steps:
            line["val_loss"] = validate(model, val, options)
        check_finite(line, run)
        write_line(log, line)  # before the checkpoint: a kill between the two then loses no line
        if validated and is_main_process():
            write_samples(run, line, model, val, options.n_samples, options.max_report_tokens)
        signal = distributed.all_reduce_max(max(signals, default=0))  # so that all stop at the same step
        if (validated or signal) and is_main_process():
            checkpoint.save(run, model, to_json(options), step, line.get("val_loss"), optimizer, known)
        bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", report_tokens_per_s=rate, refresh=False)
        if signal and step < options.steps:
            bar.close()
            tqdm.write(f"stopped at step {step} and saved; continue with: python train.py --resume {run}")
            distributed.barrier()  # a process that exits before the save would end the others
            raise SystemExit(128 + signal)
    finish(run)


def load_model_and_data(options: TrainOptions, device: torch.device) -> tuple[TrainOptions, LlamaXR, list]:
    """The options with the base's commit, the model, and the (features, study) pairs of train and val."""
    with progress_bar() as progress:
        with distributed.main_process_first():
            studies = runs.load_studies(options, warn, progress)
        studies = runs.studies_to_train_on(options, studies)  # refuses too few now
        options = runs.with_base_commit(options)
        memory, recompute = runs.check_memory(options, studies, device)
        vision, model = runs.build(options, device, progress)
    tqdm.write(f"{parts_of_run(options, model)}\n{memory}")
    runs.prepare_for_training(model, options, recompute)  # attaches llamaxr/fast/
    with tqdm(desc="features", unit=" images", leave=False, disable=not is_main_process()) as bar:
        return options, model, runs.load_features(options, vision, studies, device, warn, bar.update)


def make_optimizer(model: LlamaXR, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW over LoRA and the projector, each with its own peak learning rate."""
    lora = [p for p in model.llama.parameters() if p.requires_grad]
    projector = [p for p in model.projector.parameters() if p.requires_grad]
    groups = [{"params": lora, "peak_lr": options.lr}, {"params": projector, "peak_lr": options.projector_lr}]
    kind = {"adamw": torch.optim.AdamW, "adamw8bit": adamw8bit}[options.optimizer]
    return kind(groups, lr=options.lr, weight_decay=options.weight_decay)


def pairs_of_step(train: list, step: int, options: TrainOptions) -> list[list]:
    """This process's pairs of one step, one list per forward pass. An epoch's order depends only on the seed
    and the epoch's number, so a resumed run gets the same pairs as one that was never stopped."""
    n = options.batch * options.accumulate
    places = [divmod(i, len(train)) for i in range((step - 1) * n, step * n)]  # (epoch, place in its order)
    order = cache(lambda epoch: np.random.default_rng((options.seed, epoch)).permutation(len(train)))
    pairs = [train[order(epoch)[place]] for epoch, place in places]
    return [distributed.shard(pairs[i : i + options.batch]) for i in range(0, n, options.batch)]


def collate(model: LlamaXR, pairs: list, options: TrainOptions, step: float = math.inf) -> Batch:
    """(features, study) pairs -> Batch on the model's device. No step: to validate, without weights."""
    texts = [with_outline(study.report) if options.outline else study.report for _, study in pairs]
    outline_alone = options.outline and step <= options.outline_share * options.steps
    if outline_alone:
        texts = [outline_line(text) for text in texts]
    form = options.max_report_tokens, not outline_alone  # collate's max_report_tokens and append_eos
    batch = model.collate([features for features, _ in pairs], texts, *form)
    if step <= options.steps and options.finding_weight != 1:  # not to validate: val_loss is unweighted
        batch = replace(batch, weights=batch_weights(model.tokenizer, texts, options.finding_weight, *form))
    return batch.to(model.projector.place.device)


def schedule(step: int, options: TrainOptions) -> float:
    """The learning rate at a step as a fraction of its peak: up over the warm-up, then down, linearly."""
    warmup = round(options.warmup_share * options.steps)
    if step <= warmup:
        return step / warmup
    return (options.steps - step + 1) / (options.steps - warmup)


@torch.inference_mode()
def validate(model: LlamaXR, val: list, options: TrainOptions) -> float:
    """Mean loss per report token of the val studies, sharded over the processes. No dropout, so no eval()."""
    total, count = 0.0, 0
    for i in tqdm(range(0, len(val), options.batch), "val", leave=False, disable=not is_main_process()):
        if pairs := distributed.shard(val[i : i + options.batch]):
            batch = collate(model, pairs, options)
            total, count = total + model.loss(batch).item(), count + len(batch.target_positions)
    total, count = distributed.all_reduce_sum(torch.tensor([total, count], dtype=torch.float64)).tolist()
    return total / count


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Train SmolLM2-135M as QLoRA beside transformers + PEFT + bitsandbytes: studies per second, and memory.

    python benchmarks/train_peer.py BASE ANNOTATION.json [--studies 32] [--repeats 3] [--plain]

BASE is a Llama checkpoint folder. ANNOTATION.json is R2Gen's split of IU X-ray: the first studies of its
train split are read in batches of 8, with random feature grids in place of images. Both sides hold the base
in NF4 with double quantisation, and train in fp32 the projector and a LoRA of rank 16 on all seven linears.
They start from the same values and share batches, loss, AdamW and clipping, so their losses must agree within
TOLERANCE at every step. The peer has its fastest settings: rows padded to the longest of their batch, sdpa
attention, and prepare_model_for_kbit_training, as PEFT recommends, without gradient checkpointing. It cannot
read a common prefix once. Each side warms up with one forward and backward pass.

The limit is the arithmetic that training needs (`count_flops`) at the machine's sgemm rate. The sides take
turns, each run in its own process. CPU seconds per study are recorded too: on a busy machine they are more
reliable than the clock. The results go to benchmarks/results/train_peer.json.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from measure import Peak, peer_nf4, ratio, run_alternately, run_script, sgemm_rate, summary, write_results

from llamaxr import fast
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.lora import TARGETS, add_lora
from llamaxr.model import LlamaXR
from llamaxr.nf4 import NF4Linear
from llamaxr.projector import Projector
from llamaxr.prompt import IGNORE, SLOT
from llamaxr.vision import StudyFeatures
from llamaxr.weights import load_llama

BATCH, RANK, LR, SEED = 8, 16, 5e-4, 0
# Of a loss: fp32 sums in another order; AdamW's first steps, near sign(g), amplify the difference.
TOLERANCE = 2e-3


def read_batches(annotation: Path, n: int) -> list[list[tuple[StudyFeatures, str]]]:
    """The first n studies of the train split in batches, each with both views and random grids."""
    reports = [study["report"] for study in json.loads(annotation.read_text())["train"][:n]]
    random = torch.Generator().manual_seed(SEED)
    grids = torch.rand(len(reports), 2, 1024, 7, 7, generator=random)
    pairs = [(StudyFeatures([0, 1], g, torch.zeros(2, 18)), r) for g, r in zip(grids, reports, strict=True)]
    return [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]


def build_projector(dim: int) -> Projector:
    torch.manual_seed(SEED)
    return Projector(1024, dim, token_std=0.1)


@torch.no_grad()
def init_lora(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Set every lora_A to the same values on both sides. Returns the model's trainable parameters."""
    random = torch.Generator().manual_seed(SEED)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in sorted(name for name in trainable if "lora_A" in name):
        a = trainable[name]
        a.copy_((torch.rand(a.shape, generator=random) * 2 - 1) / a.shape[1] ** 0.5)
    return list(trainable.values())


def train(batches: list, mean_loss, trainable: list[torch.nn.Parameter]) -> dict:
    """The training loop of both sides. mean_loss(batch): the mean over the batch's report tokens."""
    torch.set_flush_denormal(True)
    optimizer = torch.optim.AdamW(trainable, lr=LR)
    mean_loss(batches[0]).backward()
    optimizer.zero_grad()
    losses, cpu = [], time.process_time()
    with Peak() as peak:
        for batch in batches:
            loss = mean_loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    n = sum(map(len, batches))
    cpu = time.process_time() - cpu  # of all cores
    return {"studies_per_s": n / peak.seconds, "cpu_seconds_per_study": cpu / n,
            "peak_anonymous_GiB": peak.bytes / 2**30, "losses": losses}  # fmt: skip


def build_ours(base: Path, plain: bool = False) -> LlamaXR:
    llama, tokenizer = load_llama(base, "nf4", nf4=NF4Linear if plain else TiledNF4Linear)
    add_lora(llama, RANK, RANK)
    model = LlamaXR(build_projector(llama.config.dim), llama, tokenizer, "tokens")
    init_lora(model.llama)
    if not plain:
        fast.for_training(model)
    return model


def our_loss(model: LlamaXR, batch: list) -> torch.Tensor:
    batch = model.collate(*map(list, zip(*batch, strict=True)))
    return model.loss(batch) / len(batch.target_positions)


def ours(base: Path, batches: list, plain: bool = False) -> dict:
    model = build_ours(base, plain)
    trainable = [p for p in model.parameters() if p.requires_grad]
    return train(batches, lambda batch: our_loss(model, batch), trainable)


def peer(base: Path, batches: list) -> dict:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import LlamaForCausalLM

    from llamaxr.prompt import study_prompt, with_report
    from llamaxr.tokenizer import load_tokenizer

    nf4 = peer_nf4(torch.float32)
    model = LlamaForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.float32)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.train()
    embedding, tokenizer = model.get_input_embeddings(), load_tokenizer(base)
    projector = build_projector(model.config.hidden_size)
    trainable = [*init_lora(model), *projector.parameters()]
    prompt = study_prompt(tokenizer, [0, 1], projector.n_tokens)

    def mean_loss(batch: list) -> torch.Tensor:
        rows = [with_report(tokenizer, prompt, report) for _, report in batch]
        time = max(len(row.ids) for row in rows)
        ids, labels = torch.zeros(len(rows), time, dtype=torch.long), torch.full((len(rows), time), IGNORE)
        attention = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            labels[i, 1 : len(row.ids)] = torch.tensor(row.targets[:-1])  # transformers shifts labels itself
            attention[i, : len(row.ids)] = 1
        grids = torch.cat([study.grids for study, _ in batch])
        soft_tokens = projector(grids, torch.tensor([0, 1] * len(batch)))
        x = embedding(ids.clamp(min=0)).masked_scatter((ids == SLOT)[..., None], soft_tokens)
        return model(inputs_embeds=x, attention_mask=attention, labels=labels, use_cache=False).loss

    return train(batches, mean_loss, trainable)


def sgemm(base: Path, batches: list) -> dict:
    cpu, start = time.process_time(), time.perf_counter()
    rate = sgemm_rate()
    cores = (time.process_time() - cpu) / (time.perf_counter() - start)
    return {"flops_per_s": rate, "cores": cores}


def profile(base: Path, batches: list) -> dict:
    """The operations that take the most time of their own in one of our steps, in percent."""
    model = build_ours(base)
    our_loss(model, batches[0]).backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        our_loss(model, batches[0]).backward()
    table = profiler.key_averages()
    total = sum(row.self_cpu_time_total for row in table)
    rows = sorted(table, key=lambda row: -row.self_cpu_time_total)[:14]
    return {"percent": {row.key: round(100 * row.self_cpu_time_total / total, 1) for row in rows},
            "calls": {row.key: row.count for row in rows}, "seconds": total / 1e6}  # fmt: skip


def count_flops(base: Path, batches: list) -> dict:
    """Floating-point operations that one pass over the batches needs: forward, and backward to the inputs, to
    LoRA and to the projector. Each batch's common prefix counts once, logits and the last feed-forward count
    only where there is a target, attention only where it is visible. Recomputation, filler and element-wise
    operations do not count."""
    model = build_ours(base)
    c, counts = model.llama.config, dict.fromkeys(("linears", "lora", "attention", "head", "projector"), 0)
    last = f"llama.layers.{c.n_layers - 1}.mlp."
    layers = [(name.startswith(last), len(m.lora_B), m.lora_A.shape[1])
              for name, m in model.named_modules() if hasattr(m, "lora_A")]  # fmt: skip
    for batch in batches:
        packed = model.collate(*map(list, zip(*batch, strict=True)))
        n, n_targets = packed.ids.numel(), int((packed.targets != IGNORE).sum())
        pairs = int((packed.packing.positions + 1).sum())  # a position attends to itself and those before it
        soft_tokens = packed.grids.shape[0] * model.projector.n_tokens
        for is_last, n_out, n_in in layers:
            rows = n_targets if is_last else n
            counts["linears"] += 4 * rows * n_out * n_in  # y and dx, a multiply and an add each
            counts["lora"] += 6 * rows * RANK * (n_out + n_in)  # and the gradients of A and B
        # Forward: scores and their sum over the values. Backward: the gradients of q, k, v and the scores.
        counts["attention"] += 12 * pairs * c.n_layers * c.n_heads * c.head_dim
        counts["head"] += 4 * n_targets * c.vocab_size * c.dim
        counts["projector"] += soft_tokens * c.dim * (4 * 1024 + 6 * c.dim)  # no gradient for the grids
    total = sum(counts.values())
    return {"flops": total, "share": {part: n / total for part, n in counts.items()}}


STEPS = {
    "ours": ours,
    "plain": partial(ours, plain=True),
    "peer": peer,
    "sgemm": sgemm,
    "profile": profile,
    "flops": count_flops,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="Llama checkpoint folder (SmolLM2-135M)")
    parser.add_argument("annotation", type=Path, help="R2Gen's annotation.json of IU X-ray")
    parser.add_argument("--studies", type=int, default=32, help="how many studies of the train split")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="time the plain form too, without llamaxr/fast/")
    parser.add_argument("--step", choices=STEPS, help="run this step alone and print its figures as JSON")
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args.base, read_batches(args.annotation, args.studies))))
        return
    arguments = (args.base.resolve(), args.annotation.resolve(), "--studies", args.studies)
    sides = ("ours", "plain", "peer") if args.plain else ("ours", "peer")
    runs = run_alternately(__file__, ("sgemm", *sides), args.repeats, *arguments)
    work = run_script(__file__, *arguments, "--step", "flops")
    speed, cpu, memory = ({side: [run[key] for run in runs[side]] for side in sides}
                     for key in ("studies_per_s", "cpu_seconds_per_study", "peak_anonymous_GiB"))  # fmt: skip
    losses = {side: runs[side][0]["losses"] for side in sides}
    rate = summary([run["flops_per_s"] for run in runs["sgemm"]])
    flops_per_study = work["flops"] / args.studies
    difference = max(abs(a / b - 1) for a, b in zip(losses["ours"], losses["peer"], strict=True))
    results = {
        "configuration": {"base": f"{args.base.resolve().name}, NF4", "batch": BATCH,
                          "studies": args.studies, "repeats": args.repeats},
        "studies_per_s": {side: summary(values) for side, values in speed.items()},
        "speed_ratio": ratio(speed["ours"], speed["peer"]),
        "cpu_seconds_per_study": {side: summary(values) for side, values in cpu.items()},
        "cpu_ratio": ratio(cpu["peer"], cpu["ours"]),
        "sgemm_cores": summary([run["cores"] for run in runs["sgemm"]]),
        "peak_anonymous_GiB": {side: summary(values) for side, values in memory.items()},
        "memory_ratio": ratio(memory["ours"], memory["peer"]),
        "losses": losses,
        "largest_relative_loss_difference": difference,
        "sgemm_flops_per_s": rate,
        "flops_per_study": flops_per_study,
        "share_of_arithmetic": work["share"],
        "share_of_limit": summary(speed["ours"])["median"] * flops_per_study / rate["median"],
        "profile": run_script(__file__, *arguments, "--step", "profile"),
    }  # fmt: skip
    if args.plain:
        results["speed_over_plain"] = ratio(speed["ours"], speed["plain"])
        results["memory_over_plain"] = ratio(memory["ours"], memory["plain"])
    for key, value in results.items():
        print(f"{key}: {json.dumps(value)}")
    write_results("train_peer", results)
    if difference > TOLERANCE:
        sys.exit(f"error: the losses of the two sides differ by {difference:.1e}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()

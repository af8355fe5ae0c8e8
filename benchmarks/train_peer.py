"""Train SmolLM2-135M as QLoRA beside transformers + PEFT + bitsandbytes: studies per second, and memory.

    python benchmarks/train_peer.py BASE ANNOTATION.json [--studies 32] [--repeats 3] [--step NAME]

BASE is a Llama checkpoint folder, ANNOTATION.json is R2Gen's split of IU X-ray: the first studies of its
train split in batches of 8, with random feature grids for images. Both sides hold the base in NF4 with
double quantisation and train a LoRA of rank 16 on all seven linears and the projector, in fp32, from the
same initial values, on the same batches, with the same loss, AdamW and clipping: their losses must agree,
step by step, within TOLERANCE. The peer's settings are those that make it fastest: rows padded to the
longest of their batch, sdpa attention, prepare_model_for_kbit_training as PEFT recommends but without
gradient checkpointing. Reading a common beginning once it does not offer. Both have one forward and
backward pass to warm up.

The physical limit is the arithmetic that training needs (counted in `arithmetic`) at the machine's sgemm
rate. Sides run alternately, each in a process of its own. CPU seconds a study stand beside: where the
machine is not idle they tell more than the clock. Figures: benchmarks/results/train_peer.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from measure import Peak, alternately, in_a_process, ratio, sgemm_rate, summary, write_results

from llamaxr.runs.features import StudyFeatures
from llamaxr.lora import TARGETS, add_lora
from llamaxr.model import LlamaXR
from llamaxr.projector import Projector
from llamaxr.prompt import IGNORE, SLOT
from llamaxr.weights import load_llama

BATCH, RANK, LR, SEED = 8, 16, 5e-4, 0
TOLERANCE = 2e-3  # of a loss: fp32 sums in another order, which AdamW's first steps, near sign(g), carry on


def studies_of(annotation: Path, n: int) -> list[list[tuple[StudyFeatures, str]]]:
    """The first n studies of the train split in batches, each with both views; random grids for images."""
    reports = [study["report"] for study in json.loads(annotation.read_text())["train"][:n]]
    random = torch.Generator().manual_seed(SEED)
    grids = torch.rand(len(reports), 2, 1024, 7, 7, generator=random)
    pairs = [(StudyFeatures([0, 1], g, torch.zeros(2, 18)), r) for g, r in zip(grids, reports, strict=True)]
    return [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]


def projector(dim: int) -> Projector:
    torch.manual_seed(SEED)
    return Projector(1024, dim, token_std=0.1)


@torch.no_grad()
def initialise(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Give all of LoRA's A the values that they have on the other side too; what learns in the model."""
    random = torch.Generator().manual_seed(SEED)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in sorted(name for name in learning if "lora_A" in name):
        a = learning[name]
        a.copy_((torch.rand(a.shape, generator=random) * 2 - 1) / a.shape[1] ** 0.5)
    return list(learning.values())


def train(batches: list, mean_loss, learning: list[torch.nn.Parameter]) -> dict:
    """The loop that both sides go through. mean_loss(batch): the mean over the batch's report tokens."""
    torch.set_flush_denormal(True)
    optimizer = torch.optim.AdamW(learning, lr=LR)
    mean_loss(batches[0]).backward()
    optimizer.zero_grad()
    losses, cpu = [], time.process_time()
    with Peak() as peak:
        for batch in batches:
            loss = mean_loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    n = sum(map(len, batches))
    cpu = time.process_time() - cpu  # of both cores
    return {"studies_per_s": n / peak.seconds, "cpu_seconds_per_study": cpu / n,
            "peak_anonymous_GiB": peak.bytes / 2**30, "losses": losses}  # fmt: skip


def our_model(base: Path) -> LlamaXR:
    llama, tokenizer = load_llama(base, "nf4")
    add_lora(llama, RANK, RANK)
    model = LlamaXR(projector(llama.config.dim), llama, tokenizer, "tokens")
    initialise(model.llama)
    return model


def our_loss(model: LlamaXR, batch: list) -> torch.Tensor:
    loss, n = model.loss(model.collate(*map(list, zip(*batch, strict=True))))
    return loss / n


def ours(base: Path, batches: list) -> dict:
    model = our_model(base)
    learning = [p for p in model.parameters() if p.requires_grad]
    return train(batches, lambda batch: our_loss(model, batch), learning)


def peer(base: Path, batches: list) -> dict:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    from llamaxr.prompt import study_prompt, with_report
    from llamaxr.tokenizer import load_tokenizer

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.float32)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.train()
    words, tokenizer = model.get_input_embeddings(), load_tokenizer(base)
    soft_tokens = projector(model.config.hidden_size)
    learning = [*initialise(model), *soft_tokens.parameters()]
    prompt = study_prompt(tokenizer, [0, 1], soft_tokens.n_tokens)

    def mean_loss(batch: list) -> torch.Tensor:
        rows = [with_report(tokenizer, prompt, report) for _, report in batch]
        time = max(len(row.ids) for row in rows)
        ids, labels = torch.zeros(len(rows), time, dtype=torch.long), torch.full((len(rows), time), IGNORE)
        attention = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            labels[i, 1 : len(row.ids)] = torch.tensor(row.targets[:-1])  # it shifts them by itself
            attention[i, : len(row.ids)] = 1
        grids = torch.cat([study.grids for study, _ in batch])
        soft = soft_tokens(grids, torch.tensor([0, 1] * len(batch)))
        x = words(ids.clamp(min=0)).masked_scatter((ids == SLOT)[..., None], soft)
        return model(inputs_embeds=x, attention_mask=attention, labels=labels, use_cache=False).loss

    return train(batches, mean_loss, learning)


def sgemm(base: Path, batches: list) -> dict:
    cpu, began = time.process_time(), time.perf_counter()
    rate = sgemm_rate()
    cores = (time.process_time() - cpu) / (time.perf_counter() - began)
    return {"flops_per_s": rate, "cores": cores}


def profile(base: Path, batches: list) -> dict:
    """Where a step of ours goes: the operations that take most time of their own, in percent."""
    model = our_model(base)
    our_loss(model, batches[0]).backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        our_loss(model, batches[0]).backward()
    table = profiler.key_averages()
    total = sum(row.self_cpu_time_total for row in table)
    rows = sorted(table, key=lambda row: -row.self_cpu_time_total)[:14]
    return {"percent": {row.key: round(100 * row.self_cpu_time_total / total, 1) for row in rows},
            "calls": {row.key: row.count for row in rows}, "seconds": total / 1e6}  # fmt: skip


def arithmetic(base: Path, batches: list) -> dict:
    """Floating-point operations that one pass over the batches needs: forward, and backward to the inputs,
    to LoRA and to the projector; the common beginning of a batch once, logits and the last feed-forward where
    there is a target, attention to what is visible. Nothing that is done twice, no filler, nothing element by
    element."""
    model = our_model(base)
    c, counts = model.llama.config, dict.fromkeys(("linears", "lora", "attention", "head", "projector"), 0)
    last = f"llama.layers.{c.n_layers - 1}.mlp."
    layers = [(name.startswith(last), len(m.lora_B), m.lora_A.shape[1])
              for name, m in model.named_modules() if hasattr(m, "lora_A")]  # fmt: skip
    for batch in batches:
        packed = model.collate(*map(list, zip(*batch, strict=True)))
        n, targets = packed.ids.numel(), int((packed.targets != IGNORE).sum())
        pairs = int((packed.packing.positions + 1).sum())  # a position sees itself and those before it
        soft = packed.grids.shape[0] * model.projector.n_tokens
        for is_last, o, i in layers:
            rows = targets if is_last else n
            counts["linears"] += 4 * rows * o * i  # y and dx, a multiply and an add each
            counts["lora"] += 6 * rows * RANK * (o + i)  # and the gradients of A and B
        # scores and their sum forward; of q, k, v and the scores backward
        counts["attention"] += 12 * pairs * c.n_layers * c.n_heads * c.head_dim
        counts["head"] += 4 * targets * c.vocab_size * c.dim
        counts["projector"] += soft * c.dim * (4 * 1024 + 6 * c.dim)  # no gradient for the images
    return {"flops": sum(counts.values()), "share": {k: v / sum(counts.values()) for k, v in counts.items()}}


STEPS = {"ours": ours, "peer": peer, "sgemm": sgemm, "profile": profile, "arithmetic": arithmetic}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("base", type=Path, help="Llama checkpoint folder (SmolLM2-135M)")
    parser.add_argument("annotation", type=Path, help="R2Gen's annotation.json")
    parser.add_argument("--studies", type=int, default=32, help="of the train split, the first so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step", choices=STEPS, help="this one alone, in this process; its figures as JSON")
    given = parser.parse_args()
    if given.step:
        print(json.dumps(STEPS[given.step](given.base, studies_of(given.annotation, given.studies))))
        return
    arguments = (given.base.resolve(), given.annotation.resolve(), "--studies", given.studies)
    runs = alternately(__file__, ("sgemm", "ours", "peer"), given.repeats, *arguments)
    work = in_a_process(__file__, *arguments, "--step", "arithmetic")
    speed, cpu, memory = ({side: [run[key] for run in runs[side]] for side in ("ours", "peer")}
                     for key in ("studies_per_s", "cpu_seconds_per_study", "peak_anonymous_GiB"))  # fmt: skip
    losses = {side: runs[side][0]["losses"] for side in ("ours", "peer")}
    rate = summary([run["flops_per_s"] for run in runs["sgemm"]])
    reached = summary(speed["ours"])["median"] / given.studies * work["flops"]
    apart = max(abs(a / b - 1) for a, b in zip(losses["ours"], losses["peer"], strict=True))
    results = {
        "command": "python " + " ".join(["benchmarks/train_peer.py", *map(str, sys.argv[1:])]),
        "studies_per_s": {side: summary(values) for side, values in speed.items()},
        "speed_ratio": ratio(speed["ours"], speed["peer"]),
        "cpu_seconds_per_study": {side: summary(values) for side, values in cpu.items()},
        "cpu_ratio": ratio(cpu["peer"], cpu["ours"]),
        "cores_that_sgemm_got": summary([run["cores"] for run in runs["sgemm"]]),
        "peak_anonymous_GiB": {side: summary(values) for side, values in memory.items()},
        "memory_ratio": ratio(memory["ours"], memory["peer"]),
        "losses": losses,
        "losses_apart": apart,
        "sgemm_flops_per_s": rate,
        "flops_per_study": work["flops"] / given.studies,
        "share_of_arithmetic": work["share"],
        "of_the_limit": reached / rate["median"],
        "profile": in_a_process(__file__, *arguments, "--step", "profile"),
    }
    for key, value in results.items():
        print(f"{key}: {json.dumps(value)}")
    write_results("train_peer", results)
    if apart > TOLERANCE:
        sys.exit(f"error: the losses differ by {apart:.1e} of themselves, more than {TOLERANCE}")


if __name__ == "__main__":
    main()

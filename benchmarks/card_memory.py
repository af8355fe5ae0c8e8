"""The forecast of training's memory beside what CUDA's allocator really takes, for Llama 3.1 8B's shapes.

    python benchmarks/card_memory.py

For each recipe for real data, in the plain and in the fast form, with and without recomputing, a model of
8B's shapes with random weights is made and quantised on the card. It takes two steps of the largest batch
that IU X-ray can have: the recipe's prompts, with the longest reports of the training split all in one batch.
Each line has, in GiB, the forecast less what it allows for the program, the largest amount that was allocated
and the largest that was reserved. What does not fit says so. The last line is the merging of the adapters for
eval.py. Nothing is read from disk. Memory does not depend on the numbers, so the figures also hold on a card
that computes nothing.
"""

import argparse
import json
from types import SimpleNamespace

import torch
from measure import run_script
from torch import nn

from llamaxr.fast.generation import MergedLlama
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.llama import KVCache, Llama, LlamaConfig
from llamaxr.lora import TARGETS, add_lora
from llamaxr.model import LlamaXR
from llamaxr.nf4 import NF4Linear
from llamaxr.projector import Projector
from llamaxr.prompt import IGNORE, SLOT, Example
from llamaxr.runs import memory
from llamaxr.runs.recipes import TrainOptions, apply_recipe
from llamaxr.runs.run import (
    TINY_BASE,
    compute_dtype,
    longest_prompt,
    prepare_for_generation,
    prepare_for_training,
)
from llamaxr.tokenizer import load_tokenizer

# IU X-ray in tokens (of SmolLM2's tokenizer): its eight longest training reports, and what an outline adds at
# most; a prompt's words, and how many of them all studies share.
REPORTS = [194, 188, 142, 142, 136, 135, 135, 134]
OUTLINE = 25
PROMPTS = {"tokens": (70, 55), "scores": (540, 180)}


def build(options: TrainOptions, device: torch.device) -> LlamaXR:
    """LlamaXR of 8B's shapes, its weights random and in NF4."""
    dtype, nf4 = compute_dtype(options, device), NF4Linear if options.plain else TiledNF4Linear
    with torch.device("meta"):
        llama = Llama(LlamaConfig())
    for name, parameter in list(llama.named_parameters()):
        module, _, kind = name.rpartition(".")
        parent, _, child = module.rpartition(".")
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
        if child in TARGETS:
            setattr(llama.get_submodule(parent), child, nf4.quantise(weight))
        else:
            weight = weight if child in ("embed_tokens", "lm_head") else weight.to(dtype)
            setattr(llama.get_submodule(module), kind, nn.Parameter(weight, requires_grad=False))
    add_lora(llama, options.rank, options.lora_alpha, device=device)
    projector = Projector(1024, llama.config.dim, options.grid).to(device)
    projector.requires_grad_(options.bridge != "scores")
    return LlamaXR(projector, llama, SimpleNamespace(pad_id=0), options.bridge)


def largest_batch(options: TrainOptions) -> tuple[list[Example], int, list[int]]:
    """The rows of the batch, the length of its prompts, and the lengths of its reports."""
    words, shared = PROMPTS[options.bridge]
    n_slots = 2 * options.grid**2 if options.bridge == "tokens" else 0
    rest = words - shared
    reports = [n + OUTLINE * options.outline for n in REPORTS]
    rows = []
    for i, n in enumerate(reports):
        prompt = [1] * shared + [SLOT] * n_slots + [2 + i] * rest
        rows.append(Example(prompt + [3] * n, [IGNORE] * (len(prompt) - 1) + [3] * n + [IGNORE]))
    return rows, words + n_slots, reports


def step(recipe: str, plain: bool, recompute: bool) -> dict:
    """Two steps, in GiB: forecast, allocated, reserved."""
    options = apply_recipe(recipe, data="iu_xray", plain=plain)
    device = torch.device("cuda")
    rows, prompt, reports = largest_batch(options)
    free = torch.cuda.mem_get_info()[0]
    needs = memory.training_needs(
        LlamaConfig(), in_4_bits=True, dtype=compute_dtype(options, device), rank=options.rank,
        projector=(1024, options.grid), prompt=prompt, shared=PROMPTS[options.bridge][1], reports=reports,
        recompute=recompute, plain=plain, cuda=True,
    )  # fmt: skip
    figures = {"free": free, "forecast": sum(needs.values()) - needs["program"]}
    try:
        model = build(options, device)
        prepare_for_training(model, options, device, recompute)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if options.optimizer == "adamw":
            optimizer = torch.optim.AdamW(trainable)
        else:
            from bitsandbytes.optim import AdamW8bit

            optimizer = AdamW8bit(trainable)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        figures["built"] = torch.cuda.memory_allocated()
        views = torch.tensor([0, 1] * len(rows))
        batch = model.join(rows, torch.zeros(len(views), 1024, 7, 7), views, False)
        for _ in range(2):
            for _ in range(options.accumulate):
                loss, n_targets = model.loss(batch.to(device))
                (loss / n_targets).backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    except torch.OutOfMemoryError as error:
        figures["error"] = str(error).split(". ")[0]
    figures |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {k: v if isinstance(v, str) else round(v / memory.GIB, 2) for k, v in figures.items()}


@torch.inference_mode()
def merge() -> dict:
    """fast.for_generation for eval.py's batch of 32 where it fits, and the reading of the prompts, in GiB."""
    device, rows, max_tokens = torch.device("cuda"), 32, 300
    model = build(apply_recipe("ours", data="iu_xray", plain=False), device)
    model.tokenizer = load_tokenizer(TINY_BASE)
    prompt = longest_prompt(model.tokenizer, model.bridge, model.projector.n_tokens)
    config = model.llama.config
    made = memory.generation_needs(config, model.llama.dtype, 2, rows, prompt + max_tokens)
    built, freed = torch.cuda.memory_allocated(), memory.freed_by_merging(model.llama)
    prepare_for_generation(model, device, rows, max_tokens)
    merged = isinstance(model.llama, MergedLlama)
    figures = {"forecast": built + (made - freed if merged else 0), "merged": torch.cuda.memory_allocated()}
    cache = KVCache(config, rows, prompt + max_tokens, device, model.llama.dtype)
    x = torch.zeros(rows, prompt, config.dim, dtype=model.llama.dtype, device=device)
    model.llama.logits(model.llama.hidden(x, None, cache)[:, -1])
    figures |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {"is_merged": merged, **{k: round(v / memory.GIB, 2) for k, v in figures.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)  # "RECIPE plain|fast on|off"
    args = parser.parse_args()
    if args.step:
        if args.step == "merge":
            return print(json.dumps(merge()))
        recipe, form, recompute = args.step.split()
        print(json.dumps(step(recipe, form == "plain", recompute == "on")))
        return
    for recipe in ("ours", "paper"):
        for form in ("plain", "fast"):
            for recompute in ("on", "off"):
                figures = run_script(__file__, "--step", f"{recipe} {form} {recompute}")
                print(f"{recipe}, {form}, --recompute {recompute}: {json.dumps(figures)}", flush=True)
    print(f"merging for eval.py's batch of 32: {json.dumps(run_script(__file__, '--step', 'merge'))}")


if __name__ == "__main__":
    main()

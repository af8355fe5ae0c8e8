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

import torch
from gpu_8b import build_ours
from measure import run_script

from llamaxr.fast.generation import MergedLlama
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.fast.optimizer import adamw8bit
from llamaxr.llama import KVCache, LlamaConfig
from llamaxr.model import LlamaXR
from llamaxr.nf4 import NF4Linear
from llamaxr.prompt import IGNORE, SLOT, Example
from llamaxr.runs import memory
from llamaxr.runs.recipes import TrainOptions, apply_recipe
from llamaxr.runs.run import compute_dtype, longest_prompt, prepare_for_generation, prepare_for_training

# IU X-ray in tokens (of SmolLM2's tokenizer): its eight longest training reports, and what an outline adds at
# most; a prompt's words, and how many of them all studies share.
REPORTS = [194, 188, 142, 142, 136, 135, 135, 134]
OUTLINE = 25
PROMPTS = {"tokens": (70, 55), "scores": (540, 180)}


def build(options: TrainOptions, device: torch.device) -> LlamaXR:
    """LlamaXR of 8B's shapes, its weights random and in NF4."""
    nf4 = NF4Linear if options.plain else TiledNF4Linear
    model = build_ours(LlamaConfig(), nf4, dtype=compute_dtype(options, device), grid=options.grid)
    model.projector.requires_grad_(options.bridge != "scores")
    model.bridge = options.bridge
    return model


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
        recompute=recompute, plain=plain, cuda=True, projector_learns=options.bridge != "scores",
        moments=memory.MOMENTS[options.optimizer],
    )  # fmt: skip
    figures = {"free": free, "forecast": sum(needs.values()) - needs["program"]}
    try:
        model = build(options, device)
        prepare_for_training(model, options, recompute)
        trainable = [p for p in model.parameters() if p.requires_grad]
        kinds = {"adamw": torch.optim.AdamW, "adamw8bit": adamw8bit}
        optimizer = kinds[options.optimizer](trainable)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        figures["built"] = torch.cuda.memory_allocated()
        views = torch.tensor([0, 1] * len(rows))
        batch = model.join(rows, torch.zeros(len(views), 1024, 7, 7), views, False)
        for _ in range(2):
            for _ in range(options.accumulate):
                (model.loss(batch.to(device)) / len(batch.target_positions)).backward()
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

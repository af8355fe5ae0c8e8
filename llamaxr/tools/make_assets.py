"""How the embedded default was made: a tiny DenseNet, a tiny LLaMA with its tokenizer, a demo adapter.

    python -m llamaxr.tools.make_assets vision    DenseNet, trained on drawn radiographs of known findings
    python -m llamaxr.tools.make_assets base      tokenizer and LLaMA, trained on generated reports, text only
    python -m llamaxr.tools.make_assets demo      projector and LoRA: train.py's own sample run, kept

In this order; `tokenizers` (in tests/requirements.txt) is needed for `base`. All data comes from
data/phantom.py with seeds that the sample data never uses, so nothing here has seen a sample image.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from ..data.phantom import describe, hints, imagine, phantom
from ..llama import Llama
from ..prompt import prompt_text
from ..vision import PATHOLOGIES, TINY, TINY_WEIGHTS, Vision
from .vision_train import PATHOLOGIES_OF, fit, to_radiographs, weights_of
from ..files.vision_weights import keep

HERE = Path(__file__).parents[1] / "assets"
VISION_SEED, TEXT_SEED = 1001, 1002  # the sample data's default seed is 0


def make_vision(n_studies: int = 7000, epochs: int = 2, batch: int = 32, lr: float = 3e-3) -> None:
    """Train the tiny DenseNet on both views: 18 scores, and beside them every finding with its place, read
    off the grid by a linear layer that is thrown away afterwards. The second makes the grid say where."""
    films, findings = [], []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        drawn = pool.map(partial(phantom, VISION_SEED), range(n_studies), chunksize=32)
        for found, views, _ in tqdm(drawn, total=n_studies, desc="draw"):
            films += views
            findings += [found] * len(views)
    places = sorted({text for found in findings for f in found for text in (f.name, hints((f,)))})
    scores = torch.zeros(len(films), len(PATHOLOGIES))
    placed = torch.zeros(len(films), len(places))
    for i, found in enumerate(findings):
        for f in found:
            placed[i, [places.index(f.name), places.index(hints((f,)))]] = 1
            scores[i, [PATHOLOGIES.index(p) for p in PATHOLOGIES_OF.get(f.name, ())]] = 1
    pixels = torch.from_numpy(np.stack(films))  # (n, 224, 224) uint8

    torch.manual_seed(VISION_SEED)
    vision = Vision(TINY).to(memory_format=torch.channels_last)
    n_train = len(pixels) - 512  # the last films are of studies that training does not see
    with tqdm(total=epochs * (n_train // batch), desc="vision") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        where = fit(
            vision, pixels[:n_train], scores[:n_train], placed[:n_train], epochs, batch, lr, progress=show
        )
    with torch.no_grad():
        grids = (vision.features(to_radiographs(part, "cpu")) for part in pixels[n_train:].split(64))
        seen = torch.cat([where(grid.flatten(1)) for grid in grids]) > 0
    truth = placed[n_train:].bool()
    for j, name in enumerate(places):
        tp = (seen & truth)[:, j].sum().item()
        f1 = 2 * tp / max(1, (seen[:, j].sum() + truth[:, j].sum()).item())
        print(f"{name:32s} n {truth[:, j].sum().item():4d}  F1 {f1:.3f}")
    keep(TINY_WEIGHTS, weights_of(vision), {"densenet": TINY})


def make_base(steps: int = 700, batch: int = 32, lr: float = 2e-3) -> None:
    """Train the tokenizer and the tiny LLaMA: on reports alone, and on reports from a list of findings in
    the Alpaca prompt, the way a real base comes with reading and following instructions already learned."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    from ..tokenizer import load_tokenizer

    folder = HERE / "tiny-llama"
    folder.mkdir(exist_ok=True)

    def text(i: int) -> tuple[str, str]:
        rng = np.random.default_rng((TEXT_SEED, i))
        found = imagine(rng)
        return hints(found), describe(found, rng)

    words = (  # LLaMA 3's rule for cutting words
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bpe = HFTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(__import__("tokenizers").Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    corpus = [t for i in range(4000) for t in text(i)] + [prompt_text("frontal view:\nlateral view:")] * 400
    corpus += [
        ", ".join(PATHOLOGIES) + " Each view is given as scores between 0 and 1, in the order: 0.123,"
    ] * 400
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.save(str(folder / "tokenizer.json"))
    vocab_size = math.ceil(bpe.get_vocab_size() / 64) * 64
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": vocab_size, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 704, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "torch_dtype": "bfloat16",
        "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[1],
        "pad_token": special[2], "clean_up_tokenization_spaces": False}, indent=2) + "\n")  # fmt: skip

    from ..files.llama_config import read_config

    tokenizer = load_tokenizer(folder)
    torch.manual_seed(TEXT_SEED)
    model = Llama(read_config(folder / "config.json"))
    for name, p in model.named_parameters():
        if p.dim() == 2:  # GPT-2's init: small, and smaller where a block adds to the residual stream
            shrink = (
                math.sqrt(2 * model.config.n_layers)
                if name.endswith(("o_proj.weight", "down_proj.weight"))
                else 1
            )
            nn.init.normal_(p, std=0.02 / shrink)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    head = tokenizer.encode(prompt_text("normal").split("### Input")[0])
    with tqdm(range(steps), desc="base") as bar:
        for step in bar:
            # Three steps in four give the list of findings, one the report alone. One in eight starts with
            # Alpaca's long head, the same for all: seldom is enough to learn it, and four times as fast.
            start = 0 if step % 8 == 1 else len(head)
            rows = []
            for i in range(batch):
                listed, report = text(10_000 + step * batch + i)
                prompt = tokenizer.encode(prompt_text(listed))[start:] if step % 4 else []
                rows.append([0, *prompt, *tokenizer.encode(report), 1])
            length = max(map(len, rows))
            ids = torch.tensor([row + [-100] * (length - len(row)) for row in rows])
            logits = model(ids[:, :-1].clamp(min=0))
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    weights = {f"model.{name}": p.detach().to(torch.bfloat16) for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_demo() -> None:
    """Run `train.py --data sample` as a user would and keep its best checkpoint, without the optimiser."""
    import subprocess

    run = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    subprocess.run([sys.executable, "train.py", "--data", "sample", "--out", str(run)], check=True)
    from ..runs.checkpoint import best, read_config, write_json

    demo = HERE / "demo"
    shutil.rmtree(demo, ignore_errors=True)
    demo.mkdir()
    write_json(demo / "config.json", {**read_config(run), "out": None})
    step = best(run)
    shutil.copytree(step, demo / step.name, ignore=shutil.ignore_patterns("optimizer.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["vision", "base", "demo"], help="which of the three to make")
    {"vision": make_vision, "base": make_base, "demo": make_demo}[parser.parse_args().part]()

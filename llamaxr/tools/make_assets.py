"""Make the embedded default: a tiny DenseNet, a tiny LLaMA with its tokenizer, a demo adapter.

    python -m llamaxr.tools.make_assets vision    DenseNet, trained on drawn radiographs of known findings
    python -m llamaxr.tools.make_assets base      tokenizer and LLaMA, trained on generated reports, text only
    python -m llamaxr.tools.make_assets demo      projector and LoRA, by train.py's own sample run

Run them in this order; `base` needs `tokenizers` (in tests/requirements.txt). All data comes from
data/phantom.py with seeds that the sample never uses, so `vision` and `base` never see a sample study.
"""

import argparse
import math
import shutil
import subprocess
import sys
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from ..data.phantom import list_findings, phantom, sample_findings, write_report
from ..data.workers import process_pool
from ..files.vision_weights import save_weights
from ..llama import Llama
from ..metrics.findings import PATHOLOGIES_OF
from ..prompt import prompt_text
from ..runs.checkpoint import best, read_config, write_json
from ..runs.run import DEMO, HOME, RUNS, TINY_BASE
from ..runs.vision_zoo import TINY, TINY_WEIGHTS
from ..tokenizer import load_tokenizer
from ..vision import PATHOLOGIES, Vision
from ..weights import read_config as read_llama_config
from .vision_train import fit, to_radiographs, weights_to_save

VISION_SEED, TEXT_SEED = 1001, 1002  # the sample's seed is 0


def make_vision(n_studies: int = 7000, epochs: int = 2, batch: int = 32, lr: float = 3e-3) -> None:
    """Train the tiny DenseNet on both views of drawn studies, and print the F1 with which the linear layer
    of vision_train.fit reads each finding and its place off the grid."""
    films, findings = [], []  # of each view
    with process_pool(2) as pool:
        drawn = pool.map(partial(phantom, VISION_SEED), range(n_studies), chunksize=32)
        for of_study, views, _ in tqdm(drawn, total=n_studies, desc="draw"):
            films += views
            findings += [of_study] * len(views)
    places = sorted({text for of_view in findings for f in of_view for text in (f.name, list_findings((f,)))})
    labels = torch.zeros(len(films), len(PATHOLOGIES))
    place_labels = torch.zeros(len(films), len(places))
    for i, of_view in enumerate(findings):
        for f in of_view:
            place_labels[i, [places.index(f.name), places.index(list_findings((f,)))]] = 1
            labels[i, [PATHOLOGIES.index(p) for p in PATHOLOGIES_OF.get(f.name, ())]] = 1
    pixels = torch.from_numpy(np.stack(films))  # (n, 224, 224) uint8

    torch.manual_seed(VISION_SEED)
    vision = Vision(TINY).to(memory_format=torch.channels_last)
    n_train = len(pixels) - 512  # the last images are of studies that training does not see
    with tqdm(total=epochs * (n_train // batch), desc="vision") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        train = pixels[:n_train], labels[:n_train], place_labels[:n_train]
        place_head = fit(vision, *train, epochs, batch, lr, progress=show)
    with torch.no_grad():
        grids = (vision.features(to_radiographs(part, "cpu")) for part in pixels[n_train:].split(64))
        predicted = torch.cat([place_head(grid.flatten(1)) for grid in grids]) > 0
    truth = place_labels[n_train:].bool()
    for j, name in enumerate(places):
        tp = (predicted & truth)[:, j].sum().item()
        f1 = 2 * tp / max(1, (predicted[:, j].sum() + truth[:, j].sum()).item())
        print(f"{name:32s} n {truth[:, j].sum().item():4d}  F1 {f1:.3f}")
    save_weights(TINY_WEIGHTS, weights_to_save(vision), {"densenet": TINY})


def make_base(steps: int = 700, batch: int = 32, lr: float = 2e-3) -> None:
    """Train the tokenizer and the tiny LLaMA on reports alone, and on reports that follow from a list of
    findings in the Alpaca prompt: a real base comes with reading and following instructions learned, too."""
    TINY_BASE.mkdir(exist_ok=True)
    vocab_size = train_tokenizer()
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
    write_json(TINY_BASE / "config.json", config)

    tokenizer = load_tokenizer(TINY_BASE)
    torch.manual_seed(TEXT_SEED)
    model = Llama(read_llama_config(TINY_BASE / "config.json"))
    for name, p in model.named_parameters():
        if p.dim() == 2:  # GPT-2's init: small, and smaller where a block adds to the residual stream
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, std=0.02 / (math.sqrt(2 * model.config.n_layers) if residual else 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    head = tokenizer.encode(prompt_text("normal").split("### Input")[0])
    with tqdm(range(steps), desc="base") as bar:
        for step in bar:
            # Three steps in four prompt with the list of findings, one has the report alone. One in eight has
            # Alpaca's long head, the same for all: enough to learn it, and four times as fast as always.
            start = 0 if step % 8 == 1 else len(head)
            rows = []
            for i in range(batch):
                listed, report = findings_and_report(10_000 + step * batch + i)
                prompt = tokenizer.encode(prompt_text(listed))[start:] if step % 4 else []
                rows.append([0, *prompt, *tokenizer.encode(report), 1])
            length = max(map(len, rows))
            ids = torch.tensor([row + [-100] * (length - len(row)) for row in rows])  # (batch, length)
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
    save_file(weights, TINY_BASE / "model.safetensors", metadata={"format": "pt"})


def findings_and_report(i: int) -> tuple[str, str]:
    """Text i of the base's training data: a terse list of findings, and a report of them."""
    rng = np.random.default_rng((TEXT_SEED, i))
    findings = sample_findings(rng)
    return list_findings(findings), write_report(findings, rng)


def train_tokenizer() -> int:
    """Train a byte-level BPE on reports and prompts; returns the vocabulary size, a multiple of 64."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    words = (  # LLaMA 3's rule for splitting text into words
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    corpus = [text for i in range(4000) for text in findings_and_report(i)]
    corpus += [prompt_text("frontal view:\nlateral view:")] * 400
    scores = ", ".join(PATHOLOGIES) + " Each view is given as scores between 0 and 1, in the order: 0.123,"
    corpus += [scores] * 400
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
    bpe.save(str(TINY_BASE / "tokenizer.json"))
    write_json(TINY_BASE / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[1],
        "pad_token": special[2], "clean_up_tokenization_spaces": False})  # fmt: skip
    return math.ceil(bpe.get_vocab_size() / 64) * 64


def make_demo() -> None:
    """Run `train.py --data sample` as a user would and copy its best checkpoint, without the optimiser."""
    run = RUNS / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    command = [sys.executable, HOME / "train.py", "--data", "sample", "--out", run]
    subprocess.run(command, check=True)
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    write_json(DEMO / "config.json", {**read_config(run), "out": None})
    step = best(run)
    shutil.copytree(step, DEMO / step.name, ignore=shutil.ignore_patterns("optimizer.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m llamaxr.tools.make_assets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=["vision", "base", "demo"], help="which of the three to make")
    {"vision": make_vision, "base": make_base, "demo": make_demo}[parser.parse_args().part]()

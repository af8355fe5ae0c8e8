"""Make the embedded default: a tiny DenseNet, a tiny LLaMA with its tokenizer, a demo adapter.

    python -m llamaxr.tools.make_assets vision    DenseNet, trained on drawn radiographs of known findings
    python -m llamaxr.tools.make_assets base      tokenizer and LLaMA, trained on generated reports, text
                                                  only: minutes on a GPU, hours on two cores
    python -m llamaxr.tools.make_assets vectors   train the base to read several words from one vector, too
    python -m llamaxr.tools.make_assets demo      projector and LoRA, by train.py's own sample run
    python -m llamaxr.tools.make_assets check     print how often base and demo get sides and zones right

Run them in this order; `base` needs `tokenizers` (in tests/requirements.txt). All data comes from
data/phantom.py with seeds that the sample never uses, so `vision` and `base` never see a sample study.
"""

import argparse
import math
import os
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

from ..data.drawing import DRAWN, SIGN, ZONE_Y, Finding, draw
from ..data.drawing_iu import EXTRA
from ..data.outline import outline_line, read_places, split_outline, with_outline
from ..data.phantom import list_findings, sample_findings, write_report
from ..data.workers import process_pool
from ..decoding import generate
from ..files.byte_level import LLAMA3_WORDS
from ..files.vision_weights import save_weights
from ..llama import Llama
from ..metrics.findings import PATHOLOGIES_OF
from ..prompt import SLOT, prompt_text
from ..runs.checkpoint import last, read_config, write_json
from ..runs.log import read_lines
from ..runs.run import DEMO, HOME, RUNS, TINY_BASE, evaluation_folder, pick_device
from ..runs.vision_zoo import TINY, TINY_WEIGHTS
from ..tokenizer import Tokenizer, load_tokenizer
from ..vision import PATHOLOGIES, Vision
from ..weights import load_llama
from ..weights import read_config as read_llama_config
from .vision_train import augment, fit, to_radiographs, weights_to_save

# What looks like a finding of the sample, under another name.
ALIKE = {"catheter", "emphysema", "lung opacity", "pacemaker", "pneumonia", "wires"}
VISION_SEED, TEXT_SEED = 1071, 1002  # the sample's seed is 0
SIDES, ZONES = ("left", "right"), ("upper", "mid", "lower")


def make_vision(n_studies: int = 12_000, epochs: int = 3, batch: int = 32, lr: float = 4e-3) -> None:
    """Train the tiny DenseNet on both views of drawn studies, and print the F1 with which the linear layer
    of vision_train.fit reads each finding and its place off the grid."""
    films, findings = [], []  # of each view
    with process_pool(2) as pool:
        drawn = pool.map(crowded_study, range(n_studies), chunksize=32)
        for of_study, views in tqdm(drawn, total=n_studies, desc="draw"):
            films += views
            findings += [of_study] * len(views)
    texts_of = lambda f: (f.name,) if f.name in EXTRA else (f.name, list_findings((f,)))
    places = sorted({text for of_view in findings for f in of_view for text in texts_of(f)})
    labels = torch.zeros(len(films), len(PATHOLOGIES))
    place_labels = torch.zeros(len(films), len(places))
    for i, of_view in enumerate(findings):
        for f in of_view:
            place_labels[i, [places.index(text) for text in texts_of(f)]] = 1
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
        # A real film shows more around the lungs than a drawn one, and their bases higher: without films
        # zoomed out, a belly there is taken for an effusion.
        vary = partial(augment, zoom_out=0.4, exposure=0.2)
        place_head = fit(vision, *train, epochs, batch, lr, vary, progress=show)
    with torch.no_grad():
        grids = (vision.features(to_radiographs(part, "cpu")) for part in pixels[n_train:].split(64))
        predicted = torch.cat([place_head(grid.flatten(1)) for grid in grids]) > 0
    truth = place_labels[n_train:].bool()
    for j, name in enumerate(places):
        tp = (predicted & truth)[:, j].sum().item()
        f1 = 2 * tp / max(1, (predicted[:, j].sum() + truth[:, j].sum()).item())
        print(f"{name:32s} n {truth[:, j].sum().item():4d}  F1 {f1:.3f}")
    save_weights(TINY_WEIGHTS, weights_to_save(vision), {"densenet": TINY})


def crowded_study(i: int) -> tuple[tuple[Finding, ...], list[np.ndarray]]:
    """Study i of the vision network's training: the sample's findings, and up to three that the sample does
    not have. Without those the network takes for an effusion whatever whitens the base of a lung."""
    rng = np.random.default_rng((VISION_SEED, i))
    findings = sample_findings(rng)
    others = sorted(EXTRA.keys() - ALIKE)
    for name in rng.choice(others, rng.integers(4), replace=False).tolist():
        findings += (Finding(name, list(SIGN)[rng.integers(2)], list(ZONE_Y)[rng.integers(3)]),)
    return findings, list(draw(findings, rng, extra=EXTRA))


def make_base() -> None:
    """Train the tokenizer and the tiny LLaMA on text alone: to write outlines and reports from a list of
    findings in the Alpaca prompt. A real base comes with reading and copying learned, too.

    Copying a place from a list takes two attention heads in a row: one finds the place that follows a name,
    one brings it. They form late where most words can be guessed without the list, as in a report. So the
    first lesson is outlines of long lists, where nearly every word comes from the list.
    """
    TINY_BASE.mkdir(exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": train_tokenizer(), "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 704, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "torch_dtype": "bfloat16",
        "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    write_json(TINY_BASE / "config.json", config)

    torch.manual_seed(TEXT_SEED)
    model = Llama(read_llama_config(TINY_BASE / "config.json"))
    for name, p in model.named_parameters():
        if p.dim() == 2:  # GPT-2's init: small, and smaller where a block adds to the residual stream
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, std=0.02 / (math.sqrt(2 * model.config.n_layers) if residual else 1))
    train_base(model, ["outlines"] * 800 + ["reports"] * 2200, batch=64, lr=2e-3)


def make_base_read_vectors() -> None:
    """Train the base further, to read a finding and its place from one vector, as a soft token holds them. In
    a list each word has its own vector. A four-layer model that knows only lists writes another finding's
    side in one of ten reports, long after it finds all findings (docs/log.md)."""
    torch.manual_seed(TEXT_SEED)
    model, _ = load_llama(TINY_BASE)
    train_base(model.float().requires_grad_(), ["vectors"] * 400, batch=32, lr=1e-3)


def train_base(model: Llama, lessons: list[str], batch: int, lr: float) -> None:
    """Train the base on the texts of each step's lesson, and save it."""
    device, steps = pick_device("auto"), len(lessons)
    with process_pool(min(4, os.cpu_count())) as pool:
        texts = pool.map(partial(texts_of_step, batch=batch), range(steps), lessons)
        bar = tqdm(texts, total=steps, desc="base")
        model.to(device)  # after the processes are forked
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
        for step, (ids, labels, bags) in enumerate(bar):
            ids = torch.from_numpy(ids).to(device)  # (batch, length)
            labels = torch.from_numpy(labels).flatten()
            places = (labels != -100).nonzero()[:, 0]
            labels, places = labels[places].to(device), places.to(device)  # (n_targets,) each
            x = model.embed(ids[:, :-1].clamp(min=0))  # (batch, length - 1, dim)
            if len(bags):
                words = model.embed_tokens.weight
                vectors = torch.from_numpy(bags).to(device) @ words  # (n_vectors, dim)
                noise = torch.rand(len(bags), 1).to(device) * words.std().detach()
                vectors = vectors + noise * torch.randn(vectors.shape).to(device)
                x = x.masked_scatter((ids[:, :-1] == SLOT)[..., None], vectors)
            with torch.autocast(device.type, torch.bfloat16):  # three times as fast where a CPU has it
                hidden = model.hidden(x).flatten(0, 1)
                logits = model.logits(hidden.index_select(0, places))  # (n_targets, vocab)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    weights = {f"model.{name}": p.detach().to("cpu", torch.bfloat16) for name, p in model.named_parameters()}
    save_file(weights, TINY_BASE / "model.safetensors", metadata={"format": "pt"})


def texts_of_step(step: int, lesson: str, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The base's texts of one step: ids (batch, length), a SLOT for each vector; labels (batch, length - 1),
    -100 where no loss is; the vectors as bags of words (n_vectors, vocab), in the slots' order."""
    tokenizer, n_words = load_tokenizer(TINY_BASE), read_llama_config(TINY_BASE / "config.json").vocab_size
    head = tokenizer.encode(prompt_text("normal").split("### Input")[0])
    start = 0 if step % 12 == 1 else len(head)  # Alpaca's long head in one step of twelve: enough to learn it
    before, after = (tokenizer.encode(part) for part in prompt_text("\0").split("\0"))
    rows, targets, bags = [], [], []
    for i in range(batch):
        number = (10_000 if lesson != "vectors" else 10_000_000) + step * batch + i
        listed, answer = list_and_answer(number, lesson)
        prompt = [0, *tokenizer.encode(prompt_text(listed))[start:]]
        if lesson == "vectors" and i >= batch // 4:  # a quarter stays as lists, so they are not forgotten
            rng = np.random.default_rng((TEXT_SEED, number, 1))
            vectors = bags_of_list(listed, tokenizer, n_words, rng)
            bags += vectors
            prompt = [0, *before, *[SLOT] * len(vectors), *after]
        is_whole = not answer.endswith("\n")  # after an outline alone, a report would follow
        answer = tokenizer.encode(answer) + [1] * is_whole
        rows.append(prompt + answer)
        targets.append([-100] * (len(prompt) - 1) + answer)
    length = max(map(len, rows))
    ids = np.array([row + [2] * (length - len(row)) for row in rows])
    labels = np.array([row + [-100] * (length - 1 - len(row)) for row in targets])
    return ids, labels, np.array(bags, np.float32)


def bags_of_list(
    listed: str, tokenizer: Tokenizer, n_words: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """A list of findings as what an image's soft tokens could hold: vectors in random order, each a bag of
    words (n_words,) with how loud each is. A finding has a vector on each of its sides, and often one without
    a side, as a lateral view has. Other vectors hold a place alone."""
    vectors = []  # (name, its place)
    for name, _, where in (item.partition(", ") for item in listed.split("; ") if item != "normal"):
        where = where.replace("base", "lower").split()
        zones = [zone for zone in ZONES if zone in where]
        sides = SIDES if "bilateral" in where else [side for side in SIDES if side in where]
        for side in sides or [rng.choice(SIDES)]:
            vectors.append((name, [side, *(zones or [rng.choice(ZONES)])]))
        if rng.random() < 0.7:
            vectors.append((name, zones))
    vectors += [("", [rng.choice(SIDES), rng.choice(ZONES)]) for _ in range(rng.integers(2, 12))]
    bags = []
    for name, place in (vectors[i] for i in rng.permutation(len(vectors))):
        bag = np.zeros(n_words)
        for word, most in ((name, 4), *((word, 2.5) for word in place)):
            ids = tokenizer.encode(f" {word}") if word else []
            bag[ids] += rng.uniform(1, most) / max(1, len(ids))
        bags.append(bag)
    return bags


def list_and_answer(i: int, lesson: str = "reports") -> tuple[str, str]:
    """Text i of the base's training data: a terse list of findings, and what is to be written of it.

    lesson "outlines": a long list in random order and its outline. Otherwise: any list, in random order in
    half of the texts; the answer is in half of them the report after its outline, else one of the two alone.
    """
    rng = np.random.default_rng((TEXT_SEED, i))
    n_draws = 6 if lesson == "outlines" or rng.random() < 0.5 else 1  # of several draws: a long list
    drawn = {f.name: f for _ in range(n_draws) for f in sample_findings(rng)}
    findings = [drawn[name] for name in DRAWN if name in drawn]
    report = write_report(tuple(findings), rng)
    outline = outline_line(with_outline(report))
    if lesson == "outlines" or rng.random() < 0.5:
        rng.shuffle(findings)
    answers = [outline] if lesson == "outlines" else [report, outline, outline + report, outline + report]
    return list_findings(tuple(findings)), answers[rng.integers(len(answers))]


def train_tokenizer() -> int:
    """Train a byte-level BPE on reports and prompts; returns the vocabulary size, a multiple of 64."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    corpus = [text for i in range(4000) for text in list_and_answer(i)]
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
    """Run `train.py --data sample` as a user would and copy its last checkpoint, without the optimiser."""
    run = RUNS / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    command = [sys.executable, HOME / "train.py", "--data", "sample", "--out", run]
    subprocess.run(command, check=True)
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    write_json(DEMO / "config.json", {**read_config(run), "out": None})
    step = last(run)
    shutil.copytree(step, DEMO / step.name, ignore=shutil.ignore_patterns("optimizer.safetensors"))


@torch.inference_mode()
def check(n: int = 500, batch: int = 50) -> None:
    """Print how many held-out lists the base copies: its greedy report asserts what the list names, with
    side and zone, and nothing else. Then the same of the demo's reports, if eval.py has written them."""
    llama, tokenizer = load_llama(TINY_BASE)
    texts = []  # (true report, copied report)
    for start in range(0, n, batch):
        rngs = [np.random.default_rng((TEXT_SEED, i)) for i in range(start, start + batch)]  # not trained on
        findings = [sample_findings(rng) for rng in rngs]
        rows = [[0, *tokenizer.encode(prompt_text(list_findings(of_study)))] for of_study in findings]
        length = max(map(len, rows))
        ids = torch.tensor([[2] * (length - len(row)) + row for row in rows])  # (batch, length)
        padding = torch.tensor([length - len(row) for row in rows])
        copies = generate(llama, llama.embed(ids), padding, tokenizer.eos_ids, 100)
        for of_study, rng, copy in zip(findings, rngs, copies, strict=True):
            texts.append((write_report(of_study, rng), split_outline(tokenizer.decode(copy))[1]))
    print(f"base: {count_right(texts)}")
    reports = evaluation_folder(DEMO, "test") / "reports.jsonl"
    if reports.exists():
        rows = read_lines(reports, ("reference", "generated"))
        print(f"demo: {count_right([(row['reference'], row['generated']) for row in rows])}")


def count_right(texts: list[tuple[str, str]]) -> str:
    """(true report, report) pairs -> in how many the findings and places are the same, and of the findings
    that are in both, how many have the true side and the true zone."""
    outlines = [[split_outline(with_outline(report))[0] for report in pair] for pair in texts]
    parts = [f"{sum(true == told for true, told in outlines)} of {len(texts)} reports right"]
    pairs = [[read_places(outline) for outline in pair] for pair in outlines]
    for kind, words in (("sides", {"left", "right"}), ("zones", {"upper", "mid", "lower"})):
        both = [(true[name], told[name]) for true, told in pairs for name in true if name in told]
        right = [true & words == told & words for true, told in both if true & words]
        parts.append(f"{kind} {sum(right)} of {len(right)}")
    return ", ".join(parts)


PARTS = {
    "vision": make_vision, "base": make_base, "vectors": make_base_read_vectors, "demo": make_demo,
    "check": check,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m llamaxr.tools.make_assets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=list(PARTS), help="which one to make, or check")
    PARTS[parser.parse_args().part]()

"""A run: its options, the data they name, and the model they describe, for train, generate and eval alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import checkpoint, distributed, memory
from ..data import iu_xray, mimic_cxr, phantom, table
from ..data.report import SECTIONS
from ..data.study import ON_MISSING, Study
from ..errors import UserError
from .features import StudyFeatures, study_features
from ..lora import add_lora
from ..model import LlamaXR
from .options import from_json, option
from ..projector import Projector
from ..prompt import BRIDGES
from ..vision import ImageNetVision, Vision, load_vision
from ..files.vision_weights import KNOWN, Progress
from ..weights import find_base, load_llama, read_config
from ..fast.generation import merge_for_writing, packs_in_16_bits

HOME = Path(__file__).resolve().parents[2]
RUNS, CACHE = HOME / "runs", HOME / "cache"
ASSETS = HOME / "llamaxr" / "assets"
TINY_BASE, DEMO = ASSETS / "tiny-llama", ASSETS / "demo"
DATA = ("sample", "iu_xray", "mimic_cxr", "csv")
LLAMA_8B = "unsloth/Meta-Llama-3.1-8B-bnb-4bit"  # the paper's base, NF4 already: 5.7 GB instead of 16


# What a recipe sets where the command line does not. `ours` on the sample is the options' own defaults.
# `paper` is LLaMA-XR as published (section 4.2); others found that its rate does not move the model in its
# 195 steps, and that 2e-4 does (--recipe paper --lr 2e-4).
RECIPES: dict[str, dict] = {
    "ours": {
        "outline": True, "outline_share": 0.2, "wording": "typical", "batch": 8, "lr": 5e-4, "epochs": 3.0,
        "steps": 0, "val_every": 100,
    },
    "paper": {
        "bridge": "scores", "vision": "densenet121-res224-all", "rank": 16, "lora_alpha": 16.0, "lr": 2e-6,
        "optimizer": "adamw8bit", "warmup": 30, "weight_decay": 0.01, "batch": 8, "accumulate": 4,
        "epochs": 3.0, "steps": 0, "val_every": 65,
    },
}  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what a training run does; a run's config.json holds exactly this."""

    recipe: str = option(
        "ours", "sets all that is not given: ours, or paper, LLaMA-XR's", choices=tuple(RECIPES)
    )
    data: str = option("sample", "data set; sample is drawn by the project itself", choices=DATA)
    root: Path | None = option(
        None,
        "where the data set lies: a folder (iu_xray: R2Gen's, Open-i's or Kaggle's form, and without --root "
        "Open-i's is downloaded; mimic_cxr: MIMIC-CXR-JPG's), or for csv the .csv file",
    )
    split_by: str = option(
        "r2gen",
        "iu_xray: R2Gen's split of its 2955 studies, or all studies with findings dealt out by patient",
        choices=iu_xray.SPLIT_BY,
    )
    split_seed: int = option(0, "seed of --split-by patient", at_least=0)
    sections: str = option("findings", "what a report is (iu_xray, mimic_cxr)", choices=SECTIONS)
    drop_redacted: bool = option(False, "take the placeholders of redacted words (XXXX, ___) out of reports")
    on_missing: str = option(
        "refuse",
        "missing or unreadable images and reports: refuse, or count them, tell and skip them",
        choices=ON_MISSING,
    )
    base: str | None = option(
        None,
        "language model: tiny (embedded), a Hugging Face Llama folder, or a hub id; if not given, tiny for "
        f"sample and {LLAMA_8B} else",
    )
    adapter: Path | None = option(None, "PEFT adapter folder from which LoRA starts; fresh if not given")
    quantize: str = option("nf4", "how the base's linears are held", choices=("nf4", "none"))
    vision: str = option(
        "tiny",
        f"vision network: tiny (embedded), {', '.join(KNOWN)}, or a file (safetensors, torch.save's)",
    )
    bridge: str = option("tokens", "how the image reaches the language model", choices=BRIDGES)
    grid: int = option(7, "soft tokens a view: GRID x GRID of DenseNet's 7 x 7 places", at_least=1, at_most=7)
    outline: bool = option(False, "the model writes a line of findings before the report (recipe ours does)")
    outline_share: float = option(
        0.0,
        "with --outline: this share of the steps, the first, learn the outline alone: to look, then to talk",
        at_least=0, at_most=1,
    )  # fmt: skip
    wording: str = option(
        "own",
        "what is learned of a report: its own words, or its findings in the words in which most reports "
        "tell such (recipe ours; llamaxr/wording.py)",
        choices=("own", "typical"),
    )
    rank: int = option(16, "rank of LoRA's matrices", at_least=1, at_most=1024)
    lora_alpha: float = option(16.0, "LoRA's scale: adapters are multiplied by alpha / rank", above=0)
    optimizer: str = option(
        "adamw", "adamw8bit is bitsandbytes', as the paper's", choices=("adamw", "adamw8bit")
    )
    lr: float = option(2e-3, "peak learning rate of LoRA", above=0)
    projector_lr: float = option(1e-3, "peak learning rate of the projector", above=0)
    warmup: int = option(30, "steps until the learning rate peaks; it then falls linearly to 0", at_least=0)
    weight_decay: float = option(0.01, "AdamW's weight decay", at_least=0)
    clip: float = option(1.0, "largest norm of the gradient of all weights together", above=0)
    batch: int = option(16, "studies a forward pass", at_least=1)
    accumulate: int = option(1, "forward passes a step", at_least=1)
    compile: bool = option(
        False, "run the blocks through torch.compile: half a minute to begin with, no gain on a CPU"
    )
    recompute: bool = option(False, "compute each block again in the backward pass: slower, far less memory")
    epochs: float = option(0.0, "passes over the train split, if --steps is 0", at_least=0)
    steps: int = option(300, "optimiser steps in all; 0: --epochs counts", at_least=0)
    limit: int = option(0, "train on the first LIMIT studies only; 0 is all", at_least=0)
    max_report_tokens: int = option(300, "longer reports are cut to so many tokens", at_least=8)
    val_every: int = option(50, "steps between validations; each also saves and writes samples", at_least=1)
    val_studies: int = option(
        64, "studies of the validation split to measure the loss on; 0 is all", at_least=0
    )
    n_samples: int = option(2, "reports to write at each validation, beside the true ones", at_least=0)
    seed: int = option(0, "seed of initial weights and of the order of studies", at_least=0)
    device: str = option("auto", "auto takes CUDA where there is one", choices=("auto", "cuda", "cpu"))
    dtype: str = option(
        "auto", "what the language model computes in: auto is bf16 on CUDA, fp32 on a CPU",
        choices=("auto", "bf16", "fp32"),
    )  # fmt: skip
    cache: Path | None = option(
        None, "folder for drawn images and features; cache/ in the repository if not given"
    )
    out: Path | None = option(None, "run folder; a new one under runs/ if not given")


def settle(options: TrainOptions, given: set[str]) -> TrainOptions:
    """The options with what the command line left open filled in by the recipe, as config.json keeps them.
    given: the names that the command line set."""
    recipe = RECIPES[options.recipe]
    if (options.recipe, options.data) == ("ours", "sample"):
        recipe = {}
    if "epochs" in given and "steps" not in given:
        recipe = {**recipe, "steps": 0}
    if "steps" in given:
        recipe = {**recipe, "epochs": 0.0}
    options = replace(options, **{name: value for name, value in recipe.items() if name not in given})
    if not options.outline:
        if options.outline_share and "outline_share" in given:
            raise UserError("--outline-share is of --outline; give it too")
        options = replace(options, outline_share=0.0)
    if not options.steps and not options.epochs:
        raise UserError("--steps and --epochs are both 0; give one of them")
    return replace(options, base=options.base or ("tiny" if options.data == "sample" else LLAMA_8B))


def n_steps(options: TrainOptions, n_train: int) -> int:
    """Optimiser steps of the whole run over so many train studies."""
    return options.steps or math.ceil(options.epochs * n_train / (options.batch * options.accumulate))


def base_folder(options: TrainOptions) -> Path:
    """Where the checkpoint lies that the options name as base. UserError where it cannot be had."""
    return TINY_BASE if options.base == "tiny" else find_base(options.base)


def pick_device(name: str) -> torch.device:
    """auto, cuda or cpu -> torch.device. UserError where CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load_studies(
    options: TrainOptions,
    warn: Callable[[str], None],
    progress: Callable[[str, int, int | None], None] | None = None,
) -> list[Study]:
    """The data set that the options name, all splits. UserError where it cannot be had.

    warn is told, in a line each, what was left out; progress(what, done, total) of what is drawn (studies) or
    downloaded (bytes)."""
    data, cache = options.data, options.cache or CACHE
    text = {"sections": options.sections, "drop_redacted": options.drop_redacted}
    if data in ("sample", "csv") and text != {"sections": "findings", "drop_redacted": False}:
        raise UserError(f"--data {data} has whole reports; leave out --sections and --drop-redacted")
    if data != "iu_xray" and options.split_by != "r2gen":
        raise UserError(f"--data {data} has its own split; leave out --split-by")
    if data == "sample":
        drawn = progress and (lambda n: progress("studies drawn", n, None))
        return phantom.make_studies(cache / "sample", progress=drawn)
    if data == "csv":
        return table.load_studies(options.root, options.on_missing, warn)
    if data == "mimic_cxr":
        return mimic_cxr.load_studies(options.root, warn, **text, on_missing=options.on_missing)
    root = options.root or iu_xray.fetch(cache / "iu_xray", progress)
    split = {"split_by": options.split_by, "split_seed": options.split_seed}
    return iu_xray.load_studies(root, warn, **split, **text, on_missing=options.on_missing)


def see_studies(
    options: TrainOptions,
    vision: Vision,
    studies: list[Study],
    device: torch.device,
    warn: Callable[[str], None],
    progress: Callable[[int], None] | None = None,
) -> list[tuple[StudyFeatures, Study]]:
    """What vision sees of each study, with the study. Unreadable images are a UserError, or with --on-missing
    skip they are told to `warn` and left out, and with them a study that has no other."""
    unreadable: list[str] = []
    seen = study_features(vision, studies, device, options.cache or CACHE, progress=progress,
                          unreadable=unreadable)  # fmt: skip
    if unreadable and options.on_missing == "refuse":
        raise UserError(
            f"{len(unreadable)} images cannot be read; the first: {unreadable[0]}; mend them, or go on "
            "without them: --on-missing skip"
        )
    pairs = [(f, s) for f, s in zip(seen, studies, strict=True) if f.views]
    if unreadable:
        lost = len(studies) - len(pairs)
        warn(f"went on without {len(unreadable)} unreadable images and {lost} studies that have no other; "
             f"the first: {unreadable[0]}")  # fmt: skip
    return pairs


def check_memory(options: TrainOptions, studies: list[Study], device: torch.device) -> str:
    """What a process will need beside what there is, in a line. UserError with advice where it cannot fit."""
    config = read_config(base_folder(options) / "config.json")
    longest = max((len(s.report) for s in studies if s.split == "train"), default=0) // 3 + 1
    report = min(options.max_report_tokens, longest)  # three letters a token at least; four are usual
    prompt = longest_prompt(options.bridge, options.grid**2)
    in_4_bits = options.quantize == "nf4"
    needs = memory.training_needs(
        config, in_4_bits=in_4_bits, dtype=compute_dtype(options, device), rank=options.rank,
        projector=(1024, options.grid), time=prompt + report, report_tokens=report,
        rows=math.ceil(options.batch / distributed.size()), recompute=options.recompute,
    )  # fmt: skip
    has = room(device)
    line = memory.table(needs, has)
    if mend := memory.advice(needs, has, options.batch, options.recompute, in_4_bits):
        raise UserError(f"this run does not fit ({line}); {mend}")
    return line


def room(device: torch.device) -> int:
    """Bytes that each process may take, as rank 0 sees it, so that all decide alike."""
    has = distributed.from_main(lambda: memory.available(device))
    return has // distributed.size() if device.type == "cpu" else has


def compute_dtype(options: TrainOptions, device: torch.device) -> torch.dtype:
    """What the language model computes in. auto: bf16 on CUDA; fp32 on a CPU, where bf16 is emulated and slow
    unless it has AVX512-BF16 or AMX."""
    if options.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]


def build(
    options: TrainOptions, device: torch.device, progress: Progress | None = None
) -> tuple[Vision | ImageNetVision, LlamaXR]:
    """Vision, and the model with fresh LoRA and projector, seeded.

    progress(file, bytes done, bytes in all): of the download of vision's weights, where there is one.
    """
    vision = load_vision(options.vision, device, options.cache or CACHE, progress)
    if options.bridge != "tokens" and not vision.has_scores:
        raise UserError(
            f"--bridge {options.bridge} needs scores, which {options.vision} has not; use --bridge tokens"
        )
    vision.to(memory_format=torch.channels_last)  # the faster layout of convolutions, on CPU and CUDA
    quantize = "nf4" if options.quantize == "nf4" else None
    llama, tokenizer = load_llama(base_folder(options), quantize, compute_dtype(options, device), device)
    llama.recompute = options.recompute
    torch.manual_seed(options.seed)
    add_lora(llama, options.rank, options.lora_alpha, device=device)
    words = llama.embed_tokens.weight
    token_std = words[:: -(-len(words) // 4096)].float().std().item()  # some thousand words tell it
    projector = Projector(vision.n_channels, llama.config.dim, options.grid, token_std=token_std).to(device)
    projector.requires_grad_(options.bridge != "scores")
    return vision, LlamaXR(projector, llama, tokenizer, options.bridge, options.outline)


def open_run(run: Path, device: str = "auto") -> tuple[TrainOptions, Vision | ImageNetVision, LlamaXR, Path]:
    """A trained run, ready to write: its options, vision, the model with its best checkpoint, and which that
    is. UserError where the folder is missing, incomplete or damaged."""
    options = from_json(TrainOptions, checkpoint.read_config(run), run / "config.json")
    step = checkpoint.best(run)
    vision, model = build(options, pick_device(device))
    checkpoint.load(step, model)
    return options, vision, model.eval(), step


def ready_to_write(model: LlamaXR, device: torch.device, rows: int, max_tokens: int) -> None:
    """Bring the model into the form that writes fastest (writing.py), where memory has room for it and for
    `rows` reports of max_tokens written together; in 4 bits each weight is dequantised again for each token.
    Nothing can learn afterwards."""
    llama = model.llama
    itemsize = 2 if packs_in_16_bits(device, llama.dtype) else llama.dtype.itemsize
    time = longest_prompt(model.bridge, model.projector.n_tokens) + max_tokens
    if room(device) > memory.writing_needs(llama.config, llama.dtype, itemsize, rows, time):
        merge_for_writing(llama)


def longest_prompt(bridge: str, n_tokens: int) -> int:
    """About how many tokens stand before the report of a study of two views, n_tokens a view, at most."""
    prompt = 90 + (2 * n_tokens if bridge != "scores" else 0)
    return prompt + (450 if bridge != "tokens" else 0)  # 36 numbers, and 18 names


def evaluation_folder(run: Path, split: str) -> Path:
    """Where what is measured of a run on a split is kept: in its own folder, the demo's under runs/."""
    return (RUNS / "demo" if run.resolve() == DEMO else run) / f"eval-{split}"


def newest_run() -> Path | None:
    """The run under runs/ that was written to last and has a checkpoint; None where there is none."""
    runs = [f for f in RUNS.glob("*") if (f / "metrics.jsonl").is_file() and any(f.glob("step-*/state.json"))]
    return max(runs, key=lambda f: (f / "metrics.jsonl").stat().st_mtime, default=None)

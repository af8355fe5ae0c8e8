"""The options of a training run, and recipes: named sets of values that the command line takes as defaults.

An option has its default in one place. If all recipes agree on it, the default is in TrainOptions; if they
differ, TrainOptions has none and every recipe in RECIPES gives a value.
"""

import argparse
import math
from dataclasses import MISSING, dataclass
from pathlib import Path

from ..data import iu_xray
from ..data.report import SECTIONS
from ..data.study import ON_MISSING
from ..errors import UserError
from ..files.vision_weights import KNOWN
from ..prompt import BRIDGES
from .options import DEVICE_HELP, DEVICES, PLAIN_HELP, option, parse

DATA = ("sample", "iu_xray", "mimic_cxr", "csv")
LLAMA_8B = "unsloth/Meta-Llama-3.1-8B-bnb-4bit"  # the paper's base, already in NF4: 5.7 GB instead of 16

EXTRA = {
    "--resume": {
        "nargs": "?", "const": "", "metavar": "RUN",
        "help": "continue this run, with its own options (default: the newest run)",
    },
    "--describe": {"action": "store_true", "help": "print what is in the data set and exit"},
    "--json": {"action": "store_true", "help": "with --describe: print JSON"},
}  # fmt: skip
BY_RECIPE = MISSING  # an option that the recipes give different values

# `paper` is LLaMA-XR as published (section 4.2). Its learning rate hardly moves the model in its 195 steps;
# 2e-4 does (--recipe paper --lr 2e-4).
RECIPES: dict[str, dict] = {
    "sample": {
        "base": "tiny", "vision": "tiny", "bridge": "tokens", "outline": False, "optimizer": "adamw",
        "lr": 2e-3, "batch": 16, "accumulate": 1, "val_every": 50,
    },
    "ours": {
        "base": LLAMA_8B, "vision": "tiny", "bridge": "tokens", "outline": True, "optimizer": "adamw",
        "lr": 5e-4, "batch": 8, "accumulate": 1, "val_every": 100,
    },
    "paper": {
        "base": LLAMA_8B, "vision": "densenet121-res224-all", "bridge": "scores", "outline": False,
        "optimizer": "adamw8bit", "lr": 2e-6, "batch": 8, "accumulate": 4, "val_every": 65,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Everything that decides what a training run does. A run's config.json holds exactly this."""

    recipe: str = option(
        BY_RECIPE,
        "set of defaults for the options below: sample for --data sample, ours for other data, or paper "
        "(LLaMA-XR as published); `--recipe NAME --help` shows its values",
        choices=tuple(RECIPES),
    )
    data: str = option("sample", "data set; the program draws sample itself", choices=DATA)
    root: Path | None = option(
        None,
        "where the data set is. iu_xray: a folder in R2Gen's, Open-i's or Kaggle's form (default: download "
        "Open-i's); mimic_cxr: the folder of MIMIC-CXR-JPG; csv: the .csv file",
    )
    split_by: str = option(
        "r2gen",
        "iu_xray: r2gen takes R2Gen's split of its 2955 studies; patient splits all studies with findings by "
        "patient",
        choices=iu_xray.SPLIT_BY,
    )
    split_seed: int = option(0, "seed of --split-by patient", at_least=0)
    sections: str = option(
        "findings", "sections of the report to learn (iu_xray, mimic_cxr)", choices=SECTIONS
    )
    drop_redacted: bool = option(False, "remove the placeholders of redacted words (XXXX, ___) from reports")
    on_missing: str = option(
        "refuse",
        "what to do about missing or unreadable images and reports: refuse to start, or count and skip them",
        choices=ON_MISSING,
    )
    base: str = option(BY_RECIPE, "language model: tiny (embedded), a Hugging Face Llama folder, or a hub id")
    adapter: Path | None = option(None, "PEFT adapter folder to start LoRA from (default: fresh LoRA)")
    quantize: str = option("nf4", "how the base's linears are stored", choices=("nf4", "none"))
    vision: str = option(
        BY_RECIPE,
        f"vision network: tiny (embedded), {', '.join(KNOWN)}, or a weight file (safetensors or torch.save)",
    )
    bridge: str = option(BY_RECIPE, "form in which an image reaches the language model", choices=BRIDGES)
    grid: int = option(
        7, "soft tokens per view: GRID x GRID, pooled from DenseNet's 7 x 7", at_least=1, at_most=7
    )
    outline: bool = option(BY_RECIPE, "write a line of findings before each report")
    outline_share: float = option(
        0.2,
        "share of the steps, from the first on, that learn the outline alone; no effect without --outline",
        at_least=0, at_most=1,
    )  # fmt: skip
    rank: int = option(16, "rank of LoRA's matrices", at_least=1, at_most=1024)
    lora_alpha: float = option(16.0, "LoRA's output is multiplied by LORA_ALPHA / RANK", above=0)
    optimizer: str = option(
        BY_RECIPE, "adamw8bit is bitsandbytes', as in the paper", choices=("adamw", "adamw8bit")
    )
    lr: float = option(BY_RECIPE, "peak learning rate of LoRA", above=0)
    projector_lr: float = option(1e-3, "peak learning rate of the projector", above=0)
    warmup: int = option(30, "steps until the learning rate peaks; then it falls linearly to 0", at_least=0)
    weight_decay: float = option(0.01, "AdamW's weight decay", at_least=0)
    clip: float = option(1.0, "largest norm of the gradient of all weights together", above=0)
    batch: int = option(BY_RECIPE, "studies per forward pass", at_least=1)
    accumulate: int = option(BY_RECIPE, "forward passes per step", at_least=1)
    plain: bool | None = option(None, PLAIN_HELP)
    compile: bool = option(
        False, "run the blocks through torch.compile: takes half a minute to start, gains nothing on a CPU"
    )
    recompute: bool = option(
        False, "recompute each block in the backward pass: slower, but takes far less memory"
    )
    epochs: float = option(3.0, "passes over the training split", above=0)
    steps: int = option(0, "optimiser steps; if 0, --epochs decides", at_least=0)
    limit: int = option(0, "train on the first LIMIT studies only; 0 means all", at_least=0)
    max_report_tokens: int = option(300, "cut longer reports to this many tokens", at_least=8)
    val_every: int = option(
        BY_RECIPE, "steps between validations; each also saves and generates samples", at_least=1
    )
    val_studies: int = option(64, "validation studies to measure the loss on; 0 means all", at_least=0)
    n_samples: int = option(2, "reports to generate and print at each validation", at_least=0)
    seed: int = option(0, "seed of the initial weights and of the order of studies", at_least=0)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    dtype: str = option(
        "auto", "what the language model computes in; auto is bf16 on CUDA and fp32 on a CPU",
        choices=("auto", "bf16", "fp32"),
    )  # fmt: skip
    cache: Path | None = option(
        None, "folder for drawn images and features (default: cache/ in the repository)"
    )
    out: Path | None = option(None, "run folder (default: a new one under runs/)")


def apply_recipe(name: str, **changes) -> TrainOptions:
    """The options of a recipe, with changes."""
    return TrainOptions(**{"recipe": name, **RECIPES[name], **changes})


def parse_train_options(description: str, argv: list[str] | None = None):
    """train.py's command line -> (TrainOptions, namespace of resume, describe, json).

    It is read twice: first for the recipe, then for everything, with the recipe's values as defaults.
    UserError for an option beside --resume, which takes the options of its run."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--data", default=TrainOptions.data)
    first.add_argument("--recipe")
    known, _ = first.parse_known_args(argv)
    recipe = known.recipe or ("sample" if known.data == "sample" else "ours")
    defaults = {"recipe": recipe, **RECIPES.get(recipe, {})}
    options, extra = parse(TrainOptions, description, argv, EXTRA, defaults)
    if extra.resume is not None:
        resume = argparse.ArgumentParser(add_help=False)
        resume.add_argument("--resume", nargs="?")
        if others := resume.parse_known_args(argv)[1]:
            raise UserError(f"--resume takes its options from the run; leave out {' '.join(others)}")
    if extra.json and not extra.describe:
        raise UserError("--json goes with --describe")
    return options, extra


def n_steps(options: TrainOptions, n_train: int) -> int:
    """Optimiser steps of the whole run, given the number of training studies."""
    return options.steps or math.ceil(options.epochs * n_train / (options.batch * options.accumulate))

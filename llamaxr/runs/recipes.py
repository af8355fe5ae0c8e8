"""The options of a training run, and recipes: named sets of values that the command line takes as defaults.

An option has its default in one place. If all recipes agree on it, the default is in TrainOptions; if they
differ, TrainOptions has none and every recipe in RECIPES gives a value. One exception: recipe `ours` takes
its vision network from UNSEEN_VISION, by the data set.
"""

import math
import os
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from ..data import iu_xray
from ..data.report import SECTIONS
from ..data.study import ON_MISSING
from ..errors import UserError
from ..files.vision_weights import KNOWN, trained_on
from ..model import LlamaXR
from ..prompt import BRIDGES
from .options import (
    DEVICE_HELP,
    DEVICES,
    MAX_SEED,
    PLAIN_HELP,
    Parser,
    derived,
    flag,
    option,
    parse,
    refuse_without_effect,
)

DATA = ("sample", "iu_xray", "mimic_cxr", "csv")
LLAMA_8B = "unsloth/Meta-Llama-3.1-8B-bnb-4bit"  # the paper's base, already in NF4: 5.7 GB instead of 16

EXTRA = {
    "--resume": {
        "nargs": "?", "const": "", "metavar": "RUN",
        "help": "continue this run, with its own options (default: the newest unfinished one); --root, "
                "--base, --vision, --cache and --device say where these are now",
    },
    "--describe": {"action": "store_true", "help": "print what is in the data set and exit"},
    "--json": {"action": "store_true", "help": "with --describe: print JSON"},
}  # fmt: skip
MAX_STUDIES = 10**7  # MIMIC-CXR has 2 * 10**5
BY_RECIPE = MISSING  # an option that the recipes give different values

MOVABLE = {"root", "base", "vision", "cache", "device"}  # what --resume may find elsewhere than the run did

# Data set -> a vision network that never saw it, so that no test patient is known to it.
UNSEEN_VISION = {
    "sample": "tiny",  # its films are drawn, and so were those of this network's training
    "iu_xray": "densenet121-res224-mimic_ch",
    "mimic_cxr": "densenet121-res224-chex",
    "csv": "densenet121-res224-mimic_ch",  # the user's own data: only the user can know
}
SAME_DATA = {"iu_xray": "Open-i", "mimic_cxr": "MIMIC-CXR"}  # as files/vision_weights.py calls the data set

RECIPES: dict[str, dict] = {
    # The embedded demo's. The sides of findings are learned late, and fastest from outlines (docs/log.md).
    "sample": {
        "base": "tiny", "vision": "tiny", "bridge": "tokens", "grid": 4, "outline": True,
        "outline_share": 0.6, "finding_weight": 1.0, "repeat_rare": 0.0, "optimizer": "adamw", "lr": 2e-3,
        "projector_lr": 3e-3, "warmup_share": 0.1,
        "batch": 16, "accumulate": 1, "epochs": 5.0, "val_every": 250, "val_studies": 64,
    },
    # For real reports and a base of billions. Nothing here was measured on such a base; what was measured was
    # measured on SmolLM2-135M and simulated images (docs/results.md, docs/log.md).
    "ours": {
        "base": LLAMA_8B,
        "bridge": "tokens",
        "grid": 4,  # simulated findings are large; on them 2 x 2 could not be told apart (docs/results.md)
        "outline": True,  # docs/choices.md
        "outline_share": 0.2,
        # On val reports keep 0.93 of their outlines' findings F1 with the weight, 0.86 without it (one seed).
        # What the repetition is worth could not be told (docs/results.md, "Chosen on val").
        "finding_weight": 3.0,
        "repeat_rare": 0.3,
        "optimizer": "adamw",
        # QLoRA's for 7B and 13B (Dettmers et al. 2023), and LLaVA-1.5's. LLaVA-Rad and LLaMA-Factory take
        # 1e-4. Not measured: the sweep's best, 5e-4, is that of 135M in 60 steps.
        "lr": 2e-4,
        # Twice lr, as in the sweep; not measured. Where the projector alone learns, R2GenGPT takes 1e-4 (7B,
        # IU X-ray, 8 studies per batch), LLaVA-1.5 and LLaVA-Rad take 1e-3 (256 images per step).
        "projector_lr": 4e-4,
        "warmup_share": 0.03,  # QLoRA's, LLaVA-1.5's and LLaVA-Rad's; not measured
        "batch": 8,  # LLaMA-Factory's for 8B (QLoRA: 16 for 7B); not measured
        "accumulate": 1,
        "epochs": 5.0,  # outlines' findings F1 0.660, after 3 epochs 0.638, one run each (log, 2026-11-25)
        "val_every": 100,
        "val_studies": 296,  # all of R2Gen's val split of IU X-ray, the first of a larger one
    },
    # LLaMA-XR as published (section 4.2). Its learning rate hardly moves the model in its 195 steps, 30 of
    # which are warm-up; 2e-4 does (--recipe paper --lr 2e-4). The projector has no part in its bridge.
    "paper": {
        "base": LLAMA_8B, "vision": "densenet121-res224-all", "bridge": "scores", "grid": 7, "outline": False,
        "outline_share": 0.2, "finding_weight": 1.0, "repeat_rare": 0.0, "optimizer": "adamw8bit",
        "lr": 2e-6, "projector_lr": 1e-3,
        "warmup_share": 30 / 195, "batch": 8, "accumulate": 4, "epochs": 3.0, "val_every": 65,
        "val_studies": 296,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Everything that decides what a training run does. A run's config.json holds exactly this."""

    recipe: str = option(
        BY_RECIPE,
        "set of defaults for the options below: sample for --data sample, ours for other data, or paper "
        "(LLaMA-XR as published); `--data DATA --recipe NAME --help` shows its values",
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
    split_seed: int = option(0, "seed of --split-by patient", at_least=0, at_most=MAX_SEED)
    sections: str = option(
        "findings", "sections of the report to learn (iu_xray, mimic_cxr)", choices=SECTIONS
    )
    drop_redacted: bool = option(False, "remove the placeholders of redacted words (XXXX, ___) from reports")
    on_missing: str = option(
        "refuse",
        "what to do about missing or unreadable images and reports: refuse to start, or count and skip them",
        choices=ON_MISSING,
    )
    base: str = option(
        BY_RECIPE, "language model: tiny (embedded), a Hugging Face Llama folder, or a hub id (or ID@COMMIT)"
    )
    adapter: Path | None = option(
        None, "folder with a PEFT adapter to start LoRA from, such as a run's step-NNNNNN, and with a "
        "projector.safetensors, if there is one, to start the projector from (default: fresh ones)",
    )  # fmt: skip
    quantize: str = option("nf4", "how the base's linears are stored", choices=("nf4", "none"))
    vision: str = option(
        BY_RECIPE,
        f"vision network: tiny (embedded), {', '.join(KNOWN)}, or a weight file (safetensors or torch.save)",
    )
    bridge: str = option(
        BY_RECIPE,
        "how an image is given: as soft tokens, as pathology scores in text, or both",
        choices=BRIDGES,
    )
    grid: int = option(
        BY_RECIPE, "soft tokens per view: GRID x GRID, pooled from DenseNet's 7 x 7", at_least=1, at_most=7
    )
    outline: bool = option(BY_RECIPE, "write a line of findings before each report")
    outline_share: float = option(
        BY_RECIPE,
        "share of the steps, from the first on, that learn the outline alone; no effect without --outline",
        at_least=0, at_most=1,
    )  # fmt: skip
    finding_weight: float = option(
        BY_RECIPE,
        "loss weight of the sentences that assert a finding; with 1 all sentences weigh the same",
        at_least=1, at_most=100,
    )  # fmt: skip
    repeat_rare: float = option(
        BY_RECIPE,
        "oversample studies with a finding that fewer than this share of the training studies have "
        "(repeat factor sampling); 0 draws each once per epoch",
        at_least=0, at_most=1,
    )  # fmt: skip
    rank: int = option(16, "rank of LoRA's matrices", at_least=1, at_most=1024)
    lora_alpha: float = option(
        16.0, "LoRA's output is multiplied by LORA_ALPHA / RANK", above=0, at_most=4096
    )
    optimizer: str = option(
        BY_RECIPE, "adamw8bit is bitsandbytes', as in the paper", choices=("adamw", "adamw8bit")
    )
    lr: float = option(BY_RECIPE, "peak learning rate of LoRA", above=0, at_most=1)
    projector_lr: float = option(BY_RECIPE, "peak learning rate of the projector", above=0, at_most=1)
    warmup_share: float = option(
        BY_RECIPE, "share of the steps until the learning rates peak; then they fall linearly to 0",
        at_least=0, at_most=1,
    )  # fmt: skip
    weight_decay: float = option(0.01, "AdamW's weight decay", at_least=0, at_most=1)
    clip: float = option(1.0, "clip the gradient of all weights to this norm", above=0, at_most=1e6)
    batch: int = option(BY_RECIPE, "studies per forward pass", at_least=1, at_most=1024)
    accumulate: int = option(BY_RECIPE, "forward passes per step", at_least=1, at_most=1024)
    plain: bool = option(False, PLAIN_HELP)
    compile: bool = option(
        False, "run the blocks through torch.compile: takes half a minute to start, gains nothing on a CPU"
    )
    recompute: str = option(
        "auto",
        "recompute each block in the backward pass: slower, but takes far less memory; auto is on where the "
        "largest batch fits only with it",
        choices=("auto", "on", "off"),
    )
    deterministic: bool = option(
        False, "add up in a fixed order: slower on CUDA, but a run repeats bit for bit on the same GPU"
    )
    epochs: float = option(BY_RECIPE, "passes over the training split", above=0, at_most=1000)
    steps: int = option(0, "optimiser steps; if 0, --epochs decides", at_least=0, at_most=10**6)
    limit: int = option(
        0, "train on the first LIMIT studies only; 0 means all", at_least=0, at_most=MAX_STUDIES
    )  # fmt: skip
    max_report_tokens: int = option(
        300, "cut longer reports to this many tokens", at_least=8, at_most=4096
    )  # fmt: skip
    val_every: int = option(
        BY_RECIPE, "steps between validations; each also saves and generates samples", at_least=1,
        at_most=10**6,
    )  # fmt: skip
    val_studies: int = option(
        BY_RECIPE, "validation studies to measure the loss on; 0 means all", at_least=0, at_most=MAX_STUDIES
    )  # fmt: skip
    n_samples: int = option(
        2, "reports to generate and print at each validation", at_least=0, at_most=64
    )  # fmt: skip
    seed: int = option(
        0, "seed of the initial weights and of the order of studies", at_least=0, at_most=MAX_SEED
    )  # fmt: skip
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    dtype: str = option(
        "auto", "what the language model computes in; auto is bf16 on CUDA and fp32 on a CPU",
        choices=("auto", "bf16", "fp32"),
    )  # fmt: skip
    cache: Path | None = option(
        None, "folder for drawn images and features (default: cache/ in the repository)"
    )
    out: Path | None = option(None, "run folder (default: a new one under runs/)")
    vision_trained_on: str = derived()  # names of data sets, or "unknown data"
    leaked: bool = derived()  # whether the data set is among them: test patients may be known

    def __post_init__(self):
        seen = trained_on(self.vision)
        object.__setattr__(self, "vision_trained_on", ", ".join(seen) or "unknown data")
        object.__setattr__(self, "leaked", SAME_DATA.get(self.data) in seen)


def defaults(recipe: str, data: str) -> dict:
    """The values of the options that TrainOptions leaves open."""
    return {"recipe": recipe, "vision": UNSEEN_VISION.get(data), **RECIPES.get(recipe, {})}


def apply_recipe(name: str, **changes) -> TrainOptions:
    """The options of a recipe, with changes."""
    return TrainOptions(**defaults(name, changes.get("data", TrainOptions.data)) | changes)


def parse_train_options(description: str, argv: list[str] | None = None):
    """train.py's command line -> (TrainOptions, namespace of resume, describe, json, given).

    It is read twice: first for the recipe, then for everything, with the recipe's values as defaults.
    UserError for an option that has no effect; --resume takes the options of its run, but MOVABLE."""
    first = Parser(add_help=False)
    first.add_argument("--data", default=TrainOptions.data)
    first.add_argument("--recipe")
    known, _ = first.parse_known_args(argv)
    recipe = known.recipe or ("sample" if known.data == "sample" else "ours")
    options, extra = parse(TrainOptions, description, argv, EXTRA, defaults(recipe, known.data))
    if extra.resume is not None:
        if others := sorted(map(flag, extra.given - MOVABLE)):
            raise UserError(f"--resume takes its options from the run; leave out {' '.join(others)}")
        if extra.describe:
            raise UserError("--describe prints what is in a data set; leave out --resume")
    if extra.json and not extra.describe:
        raise UserError("--json goes with --describe")
    drawn = options.data == "sample" and extra.resume is None
    refuse_without_effect(extra.given, [
        (("root", "on_missing", "sections", "drop_redacted"), not drawn, "another --data than sample"),
        (("split_seed",), options.split_by == "patient", "--split-by patient"),
        (("outline_share",), options.outline, "--outline"),
        (("grid", "projector_lr"), options.bridge != "scores", "--bridge tokens or both"),
        (("epochs",), not options.steps, "--steps 0"),
    ])  # fmt: skip
    return options, extra


def moved(options: TrainOptions, given: TrainOptions, names: set[str]) -> TrainOptions:
    """The options of a run, those of `names` as `given` says: data, base, vision, cache or device moved."""
    return replace(options, **{name: getattr(given, name) for name in names & MOVABLE})


def with_absolute_paths(options: TrainOptions) -> TrainOptions:
    """The same options, for config.json: they mean the same from any folder."""
    values = {name: getattr(options, name) for name in ("root", "base", "vision", "adapter", "cache", "out")}
    paths = {name: v for name, v in values.items() if isinstance(v, Path) or v and os.path.exists(v)}
    for name in {"tiny", *KNOWN} & {options.base, options.vision}:  # names, whatever lies in this folder
        paths = {key: v for key, v in paths.items() if v != name}
    return replace(options, **{name: type(values[name])(Path(v).absolute()) for name, v in paths.items()})


def n_steps(options: TrainOptions, n_train: int) -> int:
    """Optimiser steps of the whole run, given the number of training studies."""
    return options.steps or math.ceil(options.epochs * n_train / (options.batch * options.accumulate))


def vision_warning(options: TrainOptions) -> str | None:
    """What to know of a run's vision network before its results are read; None if there is nothing."""
    better = UNSEEN_VISION[options.data]
    if options.leaked:
        return (
            f"results on {options.data} are leaked: vision {options.vision} was trained on "
            f"{SAME_DATA[options.data]}, the same patients, and may know the test split; --vision {better} "
            "does not"
        )
    if options.vision == "tiny" and options.data != "sample":
        return f"vision tiny has seen drawn images only, never a radiograph; --vision {better} has"
    return None


def parts_of_run(options: TrainOptions, model: LlamaXR) -> str:
    """One line that names every part of a run; the vision_warning, if there is one, on a second."""
    lora, projector = (
        sum(p.numel() for p in part.parameters() if p.requires_grad)
        for part in (model.llama, model.projector)
    )
    dtype = str(model.llama.dtype).removeprefix("torch.")
    held = "NF4" if options.quantize == "nf4" else dtype
    grid = f", grid {options.grid} x {options.grid}" if options.bridge != "scores" else ""
    line = (
        f"data {options.data}; base {options.base} in {held}; vision {options.vision}, trained on "
        f"{options.vision_trained_on}; bridge {options.bridge}{grid}; recipe {options.recipe}; "
        f"{model.projector.place.device}, {dtype}; {lora + projector:,} trainable parameters, {lora:,} in "
        f"LoRA and {projector:,} in the projector"
    )
    warning = vision_warning(options)
    return f"{line}\nwarning: {warning}" if warning else line

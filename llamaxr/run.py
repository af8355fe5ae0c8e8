"""A run: its options, the data they name, and the model they describe, for train, generate and eval alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import checkpoint
from .data import iu_xray, mimic_cxr, phantom, table
from .data.report import SECTIONS
from .data.study import ON_MISSING, Study
from .errors import UserError
from .features import StudyFeatures, study_features
from .lora import add_lora
from .model import LlamaXR
from .options import from_json, option
from .projector import Projector
from .prompt import BRIDGES
from .vision import Vision, load_vision
from .weights import load_llama

HOME = Path(__file__).resolve().parent.parent
RUNS, CACHE = HOME / "runs", HOME / "cache"
TINY_BASE, DEMO = Path(__file__).parent / "assets" / "tiny-llama", Path(__file__).parent / "assets" / "demo"
DATA = ("sample", "iu_xray", "mimic_cxr", "csv")


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what a training run does; a run's config.json holds exactly this."""

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
    base: str = option("tiny", "language model: tiny (embedded) or a Hugging Face Llama folder")
    quantize: str = option("nf4", "how the base's linears are held", choices=("nf4", "none"))
    vision: str = option("tiny", "vision network: tiny (embedded) or a DenseNet's .safetensors file")
    bridge: str = option("tokens", "how the image reaches the language model", choices=BRIDGES)
    grid: int = option(7, "soft tokens a view: GRID x GRID of DenseNet's 7 x 7 places", at_least=1, at_most=7)
    rank: int = option(16, "rank of LoRA's matrices", at_least=1, at_most=1024)
    lora_alpha: float = option(16.0, "LoRA's scale: adapters are multiplied by alpha / rank", above=0)
    lr: float = option(2e-3, "peak learning rate of LoRA", above=0)
    projector_lr: float = option(2e-3, "peak learning rate of the projector", above=0)
    warmup: int = option(30, "steps until the learning rate peaks; it then falls linearly to 0", at_least=0)
    weight_decay: float = option(0.01, "AdamW's weight decay", at_least=0)
    clip: float = option(1.0, "largest norm of the gradient of all weights together", above=0)
    batch: int = option(16, "studies a forward pass", at_least=1)
    accumulate: int = option(1, "forward passes a step", at_least=1)
    steps: int = option(300, "optimiser steps in all", at_least=1)
    limit: int = option(0, "train on the first LIMIT studies only; 0 is all", at_least=0)
    max_report_tokens: int = option(300, "longer reports are cut to so many tokens", at_least=8)
    val_every: int = option(50, "steps between validations; each also saves and writes samples", at_least=1)
    val_studies: int = option(
        64, "studies of the validation split to measure the loss on; 0 is all", at_least=0
    )
    n_samples: int = option(2, "reports to write at each validation, beside the true ones", at_least=0)
    seed: int = option(0, "seed of initial weights and of the order of studies", at_least=0)
    device: str = option("auto", "auto takes CUDA where there is one", choices=("auto", "cuda", "cpu"))
    cache: Path | None = option(
        None, "folder for drawn images and features; cache/ in the repository if not given"
    )
    out: Path | None = option(None, "run folder; a new one under runs/ if not given")


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
        raise UserError(f"{len(unreadable)} images cannot be read; the first: {unreadable[0]}; mend them, or "
                        "go on without them: --on-missing skip")  # fmt: skip
    pairs = [(f, s) for f, s in zip(seen, studies, strict=True) if f.views]
    if unreadable:
        lost = len(studies) - len(pairs)
        warn(f"went on without {len(unreadable)} unreadable images and {lost} studies that have no other; "
             f"the first: {unreadable[0]}")  # fmt: skip
    return pairs


def build(options: TrainOptions, device: torch.device) -> tuple[Vision, LlamaXR]:
    """Vision, and the model with fresh LoRA and projector, seeded. CUDA computes in bf16, a CPU in fp32."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vision = load_vision(options.vision, device)
    vision.to(memory_format=torch.channels_last)  # the faster layout of convolutions, on CPU and CUDA
    base = TINY_BASE if options.base == "tiny" else options.base
    llama, tokenizer = load_llama(base, "nf4" if options.quantize == "nf4" else None, dtype, device)
    torch.manual_seed(options.seed)
    add_lora(llama, options.rank, options.lora_alpha, device=device)
    words = llama.embed_tokens.weight
    token_std = words[:: -(-len(words) // 4096)].float().std().item()  # some thousand words tell it
    projector = Projector(vision.n_channels, llama.config.dim, options.grid, token_std=token_std).to(device)
    projector.requires_grad_(options.bridge != "scores")
    return vision, LlamaXR(projector, llama, tokenizer, options.bridge)


def open_run(run: Path, device: str = "auto") -> tuple[TrainOptions, Vision, LlamaXR, Path]:
    """A trained run, ready to write: its options, vision, the model with its best checkpoint, and which that
    is. UserError where the folder is missing, incomplete or damaged."""
    options = from_json(TrainOptions, checkpoint.read_config(run), run / "config.json")
    step = checkpoint.best(run)
    vision, model = build(options, pick_device(device))
    checkpoint.load(step, model)
    return options, vision, model.eval(), step


def newest_run() -> Path | None:
    """The run under runs/ that was written to last and has a checkpoint; None where there is none."""
    runs = [f for f in RUNS.glob("*") if (f / "metrics.jsonl").is_file() and any(f.glob("step-*/state.json"))]
    return max(runs, key=lambda f: (f / "metrics.jsonl").stat().st_mtime, default=None)

"""A run: the data that its options name and the model that they describe, for train, generate and eval."""

import contextlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .. import fast
from ..data import iu_layouts, iu_xray, mimic_cxr, phantom, table
from ..data.outline import with_outline
from ..data.repeat import repeat_rare
from ..data.study import Study
from ..errors import UserError
from ..fast.generation import packs_in_16_bits
from ..fast.nf4 import TiledNF4Linear
from ..files.hub import find_base, with_commit
from ..files.vision_weights import KNOWN, Progress
from ..lora import add_lora
from ..model import LlamaXR
from ..nf4 import NF4Linear
from ..projector import PLACE_WORDS, Projector
from ..prompt import study_prompt
from ..tokenizer import Tokenizer, load_tokenizer
from ..vision import PATHOLOGIES, StudyFeatures, Vision
from ..weights import load_llama, read_config
from . import checkpoint, distributed, log, memory, run_folder
from .features import study_features
from .options import from_json, to_json
from .recipes import TrainOptions, moved, with_absolute_paths
from .vision_zoo import ImageNetVision, load_vision

HOME = Path(__file__).resolve().parents[2]
RUNS, CACHE = HOME / "runs", HOME / "cache"
ASSETS = HOME / "llamaxr" / "assets"
TINY_BASE, DEMO = ASSETS / "tiny-llama", ASSETS / "demo"


def base_folder(options: TrainOptions) -> Path:
    """The checkpoint folder of the base. UserError if it does not exist or cannot be downloaded."""
    return TINY_BASE if options.base == "tiny" else find_base(options.base)


def with_base_commit(options: TrainOptions) -> TrainOptions:
    """The options with the hub's commit in the base's name, for config.json: all processes of a run load the
    same weights, and so does --resume, whatever was pushed since. Downloads what is not in the cache."""
    base = distributed.broadcast(lambda: with_commit(options.base, base_folder(options)))
    return replace(options, base=base)


def pick_device(name: str) -> torch.device:
    """auto, cuda or cpu -> torch.device. UserError for cuda where torch finds no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch finds no CUDA device; use --device cpu")
    # cuDNN's attention plans anew for every new shape: for every batch, and for every token generated.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def find_run(options: TrainOptions, resume: str | None, given: set[str]) -> tuple[Path, TrainOptions]:
    """The run folder and the options of the run: a new one, or with --resume (a folder, or "" for the newest)
    an existing one, whose MOVABLE options may have changed (`given`: what the command line gives).
    UserError if a new run's folder is taken, a part of the run is not there, or nothing is left to do."""
    if resume is None:
        run = (options.out or RUNS / f"{options.data}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        if options.out:
            run_folder.check_free(run)
    else:
        run = Path(resume) if resume else newest_unfinished_run()
        if run is None:
            raise UserError(f"nothing to resume: {RUNS} holds no unfinished run")
        options = moved(read_options(run), options, given)
        if is_finished(run, options) and (run / "loss.png").is_file():
            raise UserError(f"{run} has already finished its {options.steps} steps; start a new run")
    has_lora = checkpoint.has_checkpoint(run)  # then where it started from is no longer needed
    check_parts(replace(options, adapter=None) if has_lora else options)
    return run, with_absolute_paths(options)


def read_options(run: Path) -> TrainOptions:
    """The options of a run, from its config.json. UserError if it is no run, or of another version."""
    options = from_json(TrainOptions, checkpoint.read_config(run), run / "config.json")
    elsewhere = options.cache and not os.path.isdir(options.cache.parent)  # on the machine that trained it
    return replace(options, cache=None) if elsewhere else options


def is_finished(run: Path, options: TrainOptions) -> bool:
    """Whether all steps of the run are done. It may still lack its loss.png."""
    return checkpoint.has_checkpoint(run) and 0 < options.steps <= checkpoint.step_of(checkpoint.last(run))


def check_parts(options: TrainOptions) -> None:
    """UserError for a file or folder that the options name and that is not there, before anything is loaded
    or downloaded."""
    check_root(options)
    check_networks(options)
    (options.cache or CACHE).mkdir(parents=True, exist_ok=True)
    if options.adapter is not None:
        checkpoint.read_adapter(options.adapter, options.rank, options.lora_alpha)


def check_root(options: TrainOptions) -> None:
    """UserError for a data set that is not where the options say."""
    if options.root is not None and not options.root.exists():
        raise UserError(f"the data set {options.root} does not exist; say with --root where it is")


def check_networks(options: TrainOptions) -> None:
    """UserError for a vision network or a base that the options name and that is not there. What can be
    downloaded counts as there."""
    if options.vision not in ("tiny", *KNOWN) and not Path(options.vision).is_file():
        raise UserError(f"vision weights {options.vision} do not exist; check --vision")
    if options.base != "tiny" and options.base.count("/") != 1:
        base_folder(options)  # which is no hub id, so nothing is downloaded


@contextlib.contextmanager
def claimed(run: Path, options: TrainOptions, is_new: bool) -> Iterator[Path]:
    """Hold the run folder while it is trained, from before anything is loaded. Yields it: the default name of
    a new run may be taken. A new run that is refused before its first step leaves no folder. UserError if
    another process holds it, or its logs are damaged."""
    config = to_json(options)
    if is_new:
        run = distributed.broadcast(lambda: run_folder.claim(run, config, any_name=options.out is None))
    with run_folder.locked(run):
        if distributed.is_main_process():
            if is_new:
                run_folder.check_free(run)  # another process may have trained it since
                checkpoint.write_json(run / "config.json", config)
            elif checkpoint.has_checkpoint(run):
                for path in filter(Path.is_file, (run / "metrics.jsonl", run / "samples.jsonl")):
                    log.read_log(path)
        try:
            yield run
        except UserError:
            if is_new and distributed.is_main_process() and not (run / "metrics.jsonl").exists():
                shutil.rmtree(run, ignore_errors=True)
            raise


def load_studies(
    options: TrainOptions,
    warn: Callable[[str], None],
    progress: Callable[[str, int, int | None], None] | None = None,
) -> list[Study]:
    """The data set that the options name, all splits. UserError if it cannot be read or downloaded.

    warn gets a line for each kind of study that is left out. progress(what, done, total) reports drawing (in
    studies) or downloading (in bytes)."""
    check_root(options)
    data, cache = options.data, options.cache or CACHE
    text = {"sections": options.sections, "drop_redacted": options.drop_redacted}
    if data in ("sample", "csv") and text != {"sections": "findings", "drop_redacted": False}:
        raise UserError(f"--data {data} has no sections; leave out --sections and --drop-redacted")
    if data != "iu_xray" and options.split_by != "r2gen":
        raise UserError(f"--data {data} has its own split; leave out --split-by")
    if data == "sample":
        return phantom.make_studies(
            cache / "sample", progress=progress and (lambda n: progress("studies drawn", n, None))
        )
    if data == "csv":
        return table.load_studies(options.root, options.on_missing, warn)
    if data == "mimic_cxr":
        return mimic_cxr.load_studies(options.root, warn, **text, on_missing=options.on_missing)
    root = options.root or iu_xray.fetch(cache / "iu_xray", progress, warn)
    split = {"split_by": options.split_by, "split_seed": options.split_seed}
    return iu_xray.load_studies(root, warn, **split, **text, on_missing=options.on_missing)


def load_features(
    options: TrainOptions,
    vision: Vision,
    studies: list[Study],
    device: torch.device,
    warn: Callable[[str], None],
    progress: Callable[[int], None] | None = None,
) -> list[tuple[StudyFeatures, Study]]:
    """Each study with its features. Unreadable images are a UserError; with --on-missing skip, `warn` gets
    their number, and a study that has no other image is left out."""
    unreadable: list[str] = []
    cache = options.cache or CACHE
    features = study_features(vision, studies, device, cache, progress=progress, unreadable=unreadable)
    if unreadable and options.on_missing == "refuse":
        raise UserError(
            f"{len(unreadable)} images cannot be read; the first: {unreadable[0]}; replace them, or leave "
            "them out with train.py's --on-missing skip"
        )
    pairs = [(f, s) for f, s in zip(features, studies, strict=True) if f.views]
    if unreadable:
        warn(
            f"left out {len(unreadable)} unreadable images and {len(studies) - len(pairs)} studies that have "
            f"no other; the first: {unreadable[0]}"
        )
    return pairs


def training_splits(options: TrainOptions, pairs: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """The (anything, study) pairs to train on, those with rare findings repeated as --repeat-rare says, and
    those to validate on. UserError if they are too few."""
    train = [pair for pair in pairs if pair[1].split == "train"][: options.limit or None]
    val = [pair for pair in pairs if pair[1].split == "val"][: options.val_studies or None]
    if len(train) < options.batch or not val:
        raise UserError(f"{len(train)} train, {len(val)} val studies are too few for --batch {options.batch}")
    return repeat_rare(train, options.repeat_rare, options.seed), val


def studies_to_train_on(options: TrainOptions, studies: list[Study]) -> list[Study]:
    """The train studies up to --limit and all of val: what a training needs features of. UserError if they
    are too few."""
    train, _ = training_splits(options, [(None, study) for study in studies])
    once = dict.fromkeys(study for _, study in train)  # without --repeat-rare's copies
    return [*once, *(study for study in studies if study.split == "val")]


def drawn(options: TrainOptions, moved: Path | None = None) -> bool:
    """Whether a run's films are drawings: the sample's, or a simulation's. moved: where the data is now."""
    root = moved or options.root
    return options.data == "sample" or root is not None and (root / iu_layouts.SIMULATION).is_file()


def evaluated_split(pairs: list[tuple], split: str, limit: int) -> tuple[list[tuple], ...]:
    """The (anything, study) pairs of train, of val, and the first `limit` (0: all) of the split to evaluate.
    UserError if they are too few."""
    train, val, chosen = ([pair for pair in pairs if pair[1].split == s] for s in ("train", "val", split))
    chosen = chosen[: limit or None]
    if len(chosen) < 2:
        raise UserError(f"{split} has {len(chosen)} studies, but swapping needs two; raise --limit")
    if not train:
        raise UserError("the data set has no train split, which the constant report comes from; add one")
    return train, val, chosen


def check_memory(options: TrainOptions, studies: list[Study], device: torch.device) -> tuple[str, bool]:
    """One line: the memory that a process needs to train, and what is free; and whether the blocks must be
    recomputed. UserError, with advice, if the run cannot fit, or if --batch leaves a process without a study.
    """
    if options.batch < distributed.world_size():
        raise UserError(
            f"--batch {options.batch} has no study for each of {distributed.world_size()} processes; raise it"
        )
    folder, in_4_bits = base_folder(options), options.quantize == "nf4"
    config, tokenizer = read_config(folder / "config.json"), load_tokenizer(folder)
    prompt = longest_prompt(tokenizer, options.bridge, options.grid**2)
    shared = shared_prompt(tokenizer, options.bridge, options.grid**2)
    rows = math.ceil(options.batch / distributed.world_size())
    reports = longest_reports(options, studies, tokenizer, rows)
    needs = {
        recompute: memory.training_needs(
            config, plain=options.plain, in_4_bits=in_4_bits,
            dtype=compute_dtype(options, device), rank=options.rank, projector=(1024, options.grid),
            prompt=prompt, shared=shared, reports=reports, recompute=recompute, cuda=device.type == "cuda",
            projector_learns=options.bridge != "scores", moments=memory.MOMENTS[options.optimizer],
        )
        for recompute in (False, True)
    }  # fmt: skip
    free = free_memory(device)
    too_much = sum(needs[False].values()) > free
    recompute = {"auto": too_much, "on": True, "off": False}[options.recompute]
    line = memory.table(needs[recompute], free)
    if advice := memory.advice(needs[recompute], free, options.batch, recompute, in_4_bits):
        raise UserError(f"this run does not fit ({line}); {advice}")
    line += f"; largest batch {len(reports)} x {prompt + max(reports)} positions; "
    how = "blocks are recomputed" if recompute else "blocks are not recomputed"
    without = f": without it {sum(needs[False].values()) / memory.GIB:.2f}" if recompute else ""
    return f"{line}{how} (--recompute {options.recompute}){without}", recompute


def longest_prompt(tokenizer: Tokenizer, bridge: str, n_tokens: int) -> int:
    """How many tokens the prompt of a study of two views has, with n_tokens soft tokens per view."""
    return len(a_prompt(tokenizer, bridge, n_tokens, [0, 1], 0.5))


def shared_prompt(tokenizer: Tokenizer, bridge: str, n_tokens: int) -> int:
    """How many tokens the prompts of all studies begin with: those of two unlike ones."""
    kinds = ([0, 1], 0.1), ([1], 0.9)  # views, scores
    prompts = (a_prompt(tokenizer, bridge, n_tokens, *kind) for kind in kinds)
    return sum(1 for _ in itertools.takewhile(lambda ids: ids[0] == ids[1], zip(*prompts, strict=False)))


def a_prompt(tokenizer: Tokenizer, bridge: str, n_tokens: int, views: list[int], score: float) -> list[int]:
    scores = [[score] * len(PATHOLOGIES)] * len(views) if bridge != "tokens" else None
    return study_prompt(tokenizer, views, n_tokens if bridge != "scores" else 0, scores, PATHOLOGIES)


def longest_reports(options: TrainOptions, studies: list[Study], tokenizer: Tokenizer, n: int) -> list[int]:
    """The lengths in tokens of the n longest training reports, as trained on. A batch of n is hardly ever
    larger: it would have to contain one of them twice (--repeat-rare, or the end of an epoch). Only the 4 n
    reports, and at least 256, with the most characters are tokenised."""
    texts = [study.report for study in studies if study.split == "train"][: options.limit or None]
    texts = sorted(texts, key=len)[-max(256, 4 * n) :]
    if options.outline:
        texts = [with_outline(report) for report in texts]
    lengths = sorted(len(tokenizer.encode(text)) + 1 for text in texts)[-n:]  # with EOS
    return [min(length, options.max_report_tokens) for length in lengths] or [1]


def free_memory(device: torch.device) -> int:
    """Bytes that each process may still take, as rank 0 sees it, so that all processes decide alike."""
    free = distributed.broadcast(lambda: memory.free_memory(device))
    return free // distributed.processes_of_machine() if device.type == "cpu" else free


def compute_dtype(options: TrainOptions, device: torch.device) -> torch.dtype:
    """What the language model computes in. auto: bf16 on a GPU that has it (NVIDIA's from capability 8.0 on,
    of 2020); else fp32, as on a CPU, where bf16 is emulated and slow unless it has AVX512-BF16 or AMX.
    UserError for --dtype bf16 on a GPU that would emulate it."""
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if options.dtype == "auto":
        return torch.bfloat16 if has_bf16 else torch.float32
    if options.dtype == "bf16" and device.type == "cuda" and not has_bf16:
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has no bf16; leave out --dtype bf16, or set dtype to "
            "auto in the run's config.json"
        )
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]


def build(
    options: TrainOptions, device: torch.device, progress: Progress | None = None
) -> tuple[Vision | ImageNetVision, LlamaXR]:
    """The vision network, and the model in its plain form with fresh LoRA and projector, seeded.

    progress(file, bytes done, bytes in all) reports the download of the vision weights. UserError if weights
    cannot be had, or the vision network has no scores for a bridge that needs them.
    """
    vision = load_vision(options.vision, device, options.cache or CACHE, progress, distributed.warn)
    if options.bridge != "tokens" and not vision.has_scores:
        raise UserError(
            f"--bridge {options.bridge} needs scores, which {options.vision} lacks; use --bridge tokens"
        )
    vision.to(memory_format=torch.channels_last)  # the faster layout for convolutions, on CPU and CUDA
    quantize = "nf4" if options.quantize == "nf4" else None
    nf4 = NF4Linear if options.plain else TiledNF4Linear
    dtype = compute_dtype(options, device)
    if device.type == "cuda" and options.dtype == "auto" and dtype == torch.float32:
        distributed.warn(f"{torch.cuda.get_device_name(device)} has no bf16; computing in fp32")
    llama, tokenizer = load_llama(base_folder(options), quantize, dtype, device, nf4)
    torch.manual_seed(options.seed)
    add_lora(llama, options.rank, options.lora_alpha, device=device)
    embedding = llama.embed_tokens.weight
    token_std = embedding[:: -(-len(embedding) // 4096)].float().std().item()  # about 4096 rows are enough
    projector = Projector(vision.n_channels, llama.config.dim, options.grid, token_std=token_std)
    words = {word: embedding[tokenizer.encode(f" {word}")].float().mean(0).cpu() for word in PLACE_WORDS}
    projector.name_places(words)
    projector.to(device).requires_grad_(options.bridge != "scores")
    return vision, LlamaXR(projector, llama, tokenizer, options.bridge)


def open_run(
    run: Path, device: str = "auto", plain: bool = False
) -> tuple[TrainOptions, Vision | ImageNetVision, LlamaXR, checkpoint.Loaded]:
    """A trained run: its options (`plain` is replaced), its vision network, its model in evaluation mode, and
    the checkpoint that was loaded, the last. Joins the other processes if there are any. UserError if the run
    is missing, incomplete or damaged."""
    options = read_options(run)
    checkpoint.last(run)  # refuse a run without a checkpoint now, not minutes later
    try:
        check_networks(options)
    except UserError as error:
        raise UserError(f"{error}, or write where it is now into {run}/config.json") from None
    own_device = distributed.init(pick_device(device))
    options = replace(options, plain=plain)
    vision, model = build(options, own_device)
    step = checkpoint.load_last(run, model)
    while len({*distributed.all_gather(step.folder.name)}) > 1:  # training saved one meanwhile
        step = checkpoint.load_last(run, model)
    return options, vision, model.eval(), step


def prepare_for_training(model: LlamaXR, options: TrainOptions, recompute: bool) -> None:
    """Attach the training forms of fast/ that the options ask for; call make_deterministic if they say so."""
    if options.deterministic:
        make_deterministic()
    if not options.plain:
        fast.for_training(model)
    if recompute:
        fast.recompute_blocks(model.llama)
    if options.compile:
        fast.compile_blocks(model.llama)


def make_deterministic() -> None:
    """From here on, for the whole process, an operation adds up in the same order each time, or raises
    RuntimeError if it has no form that does (docs/choices.md)."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it at its first product, which is later
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for finding errors; a kernel per tensor


def prepare_for_generation(model: LlamaXR, device: torch.device, rows: int, max_tokens: int) -> None:
    """fast.for_generation, where memory is large enough for it and for `rows` reports of max_tokens generated
    together. The model cannot be trained afterwards."""
    llama = model.llama
    itemsize = 2 if packs_in_16_bits(device, llama.dtype) else llama.dtype.itemsize
    time = longest_prompt(model.tokenizer, model.bridge, model.projector.n_tokens) + max_tokens
    needs = memory.generation_needs(llama.config, llama.dtype, itemsize, rows, time)
    if free_memory(device) > needs - memory.freed_by_merging(llama):
        fast.for_generation(model)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the 4-bit weights' memory is of no size that anything else takes


def evaluation_folder(run: Path, split: str) -> Path:
    """Where the results of a run on a split go: into its own folder; the demo's go under runs/."""
    return (RUNS / "demo" if run.resolve() == DEMO else run) / f"eval-{split}"


def default_run() -> Path:
    """The newest run or, if there is none, the embedded demo."""
    return newest_run() or DEMO


def newest_run() -> Path | None:
    """The run under runs/ with a checkpoint that was written to last; None if there is none."""
    return max(filter(checkpoint.has_checkpoint, _runs()), key=_last_written, default=None)


def newest_unfinished_run() -> Path | None:
    """The most recently written unfinished run under runs/; any run with a checkpoint comes before those
    without. None if there is none."""
    unfinished = [run for run in _runs() if not (run / "loss.png").is_file()]
    return max(unfinished, key=lambda run: (checkpoint.has_checkpoint(run), _last_written(run)), default=None)


def _runs() -> list[Path]:
    return [run for run in RUNS.glob("*") if (run / "config.json").is_file() and run.suffix != ".tmp"]


def _last_written(run: Path) -> float:
    log_file = run / "metrics.jsonl"
    return (log_file if log_file.is_file() else run).stat().st_mtime

"""A run folder: what was trained, on disk.

    runs/NAME/
      config.json                     every option of the run
      metrics.jsonl, loss.png, ...    written by train.py
      step-000400/                    a checkpoint, complete or not there at all
        adapter_model.safetensors     LoRA, by PEFT's names and shapes, with adapter_config.json
        projector.safetensors
        training_features.safetensors what the training images are like (unlike.py)
        optimizer.safetensors         AdamW's state, only needed to resume
        state.json                    step, validation loss

A checkpoint appears by a rename and disappears by one, so a crash at any moment leaves whole ones and
folders that end in .tmp, which nobody reads. A run keeps the last, to resume from and to use, whatever its
validation loss, which is lowest long before reports state what their outlines say (docs/choices.md). While a
run is training, generate.py and eval.py look again if a folder has gone. The base's weights are never saved.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import UserError
from ..files.hub import split_commit
from ..files.tensors import read_tensors, write_tensors
from ..files.text import complete_or_absent, read_json, short
from ..lora import TARGETS, LoRALinear
from ..model import LlamaXR
from . import distributed, unlike
from .unlike import REMEDY

VERSION = 2  # of the folder's format; raised when an older reader would misread a newer folder
MAX_JSON = 2**20  # bytes of a state.json or config.json; ours have 2,000
ADAPTER, PROJECTOR, OPTIMIZER = "adapter_model.safetensors", "projector.safetensors", "optimizer.safetensors"
PEFT_PREFIX = "base_model.model.model."
# Fields of PEFT's adapter_config.json that change nothing here, whatever they hold.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
}  # fmt: skip


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    with complete_or_absent(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def adapter_tensors(model: LlamaXR) -> dict[str, torch.Tensor]:
    """LoRA's matrices by PEFT's names. The tensors are the model's own, not copies."""
    return {
        f"{PEFT_PREFIX}{name}.{matrix}.weight": getattr(layer, matrix).data
        for name, layer in model.llama.named_modules()
        if isinstance(layer, LoRALinear)
        for matrix in ("lora_A", "lora_B")
    }


def save(
    run: Path, model: LlamaXR, options: dict, step: int, val_loss: float | None, optimizer=None, known=None
) -> Path:
    """Write run/step-NNNNNN; delete the checkpoints before it. Returns the new folder.

    val_loss: for the reader of state.json; None if training was interrupted. known: what unlike.fit says of
    the training images. UserError if the disk is full, or the run folder is gone.
    """
    if not run.is_dir():
        raise UserError(f"the run folder {run} was deleted during training; start it again")
    final = run / f"step-{step:06d}"
    folder = final.with_name(final.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        write_tensors(folder / ADAPTER, _to_cpu(adapter_tensors(model)))
        write_tensors(folder / PROJECTOR, _to_cpu(model.projector.state_dict()))
        if known:
            write_tensors(folder / unlike.FILE, known)
        write_json(folder / "adapter_config.json", peft_config(options))
        if optimizer is not None:
            write_tensors(folder / OPTIMIZER, _optimizer_tensors(model, optimizer))
        write_json(folder / "state.json", {"version": VERSION, "step": step, "val_loss": val_loss})
        for path in folder.iterdir():
            _to_disk(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if final.exists():
        _remove(final)
    os.rename(folder, final)
    with contextlib.suppress(OSError):  # some network file systems cannot, of a folder
        _to_disk(run)
    remove_old(run)
    return final


def _to_disk(path: Path) -> None:
    """Wait until a file is on the disk. Without this, a loss of power some seconds later may leave the new
    checkpoint by its name but empty, and the one before it deleted."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def remove_old(run: Path) -> None:
    """Delete the checkpoints before the last, and what a killed process left half."""
    for old in sorted(_steps(run))[:-1]:
        _remove(run / f"step-{old:06d}")
    for half in run.glob("*.tmp"):
        shutil.rmtree(half, ignore_errors=True) if half.is_dir() else half.unlink(missing_ok=True)


def has_checkpoint(run: Path) -> bool:
    """Whether there is a checkpoint, be it damaged."""
    return bool(_folders(run))


def last(run: Path) -> Path:
    """The checkpoint to use and to resume from. UserError if there is none."""
    return run / f"step-{max(_steps(run, distributed.warn)):06d}"


class Loaded(NamedTuple):
    """A checkpoint that was loaded: its folder, which may have gone since, and what it says of the training
    images."""

    folder: Path
    known: unlike.Known | None


def load_last(run: Path, model: LlamaXR) -> Loaded:
    """Load the last checkpoint into the model. A run that is being trained may replace it at any moment; then
    the new one is taken. UserError as `last` and `load`."""
    while True:
        folder = last(run)
        try:
            load(folder, model)
            loaded = Loaded(folder, unlike.read(folder))
        except UserError:
            if folder.is_dir():
                raise
        else:
            if folder.is_dir():  # else one of its files may have been missing
                return loaded


def sha256(model: LlamaXR) -> str:
    """The hash of what was trained: LoRA and the projector, by name. Call it before anything is merged."""
    digest = hashlib.sha256()
    for name, tensor in _to_cpu(adapter_tensors(model) | model.projector.state_dict()).items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def read_config(run: Path) -> dict:
    """The content of a run's config.json. UserError if the folder is no run."""
    if not run.is_dir():
        raise UserError(f"the run folder {run} does not exist; name one under runs/, or train first")
    return read_json(run / "config.json", MAX_JSON, REMEDY)


def load(folder: Path, model: LlamaXR, optimizer=None) -> dict:
    """Load a checkpoint into the model, and into the optimiser if there is one. Returns state.json. UserError
    if the checkpoint is damaged, of another version, or does not fit the model."""
    state = read_json(folder / "state.json", MAX_JSON, REMEDY)
    if state.get("version") != VERSION:
        raise UserError(
            f"{folder} has format {state.get('version')}, but this program reads {VERSION}; use the one that "
            "wrote it"
        )
    _copy_from(folder / ADAPTER, adapter_tensors(model))
    _copy_from(folder / PROJECTOR, model.projector.state_dict())
    if optimizer is not None:
        _load_optimizer(model, optimizer, folder / OPTIMIZER)
    return state


def check_adapter(folder: Path, rank: int, lora_alpha: float) -> None:
    """UserError unless adapter_config.json describes what add_lora does, on the base as it is: each field has
    a value that is known to change nothing. PEFT has kinds of LoRA that change the base's weights as they
    begin (PiSSA, OLoRA, CorDA, LoftQ), or what is computed; new ones come with each release."""
    remedy = "name a folder that has one, such as a run's step-NNNNNN"
    config = read_json(folder / "adapter_config.json", MAX_JSON, remedy)
    required = {"peft_type": "LORA", "bias": "none", "r": rank, "lora_alpha": lora_alpha}
    for key, value in required.items():
        if config.get(key) != value:
            raise UserError(
                f"{folder}/adapter_config.json: {key} is {short(config.get(key))}, not {value!r}; give "
                "the adapter's --rank and --lora-alpha; its kind must be LoRA without biases"
            )
    beginning = config.get("init_lora_weights", True)
    if beginning not in (True, False, "gaussian", "orthogonal"):
        raise UserError(
            f"{folder}/adapter_config.json: init_lora_weights is {short(beginning)}, which changes the base; "
            "convert it to a plain LoRA (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for key in sorted(config.keys() - required.keys() - HARMLESS):
        if config[key]:
            raise UserError(f"{folder}/adapter_config.json: {short(key)} is not supported; export without it")


def read_adapter(folder: Path, rank: int, lora_alpha: float) -> dict[str, torch.Tensor]:
    """The matrices of a PEFT adapter folder. UserError as `check_adapter`, and if they, or the projector
    beside them, are damaged."""
    check_adapter(folder, rank, lora_alpha)
    if (folder / PROJECTOR).is_file():
        read_tensors(folder / PROJECTOR, "export the adapter again")
    tensors, _ = read_tensors(folder / ADAPTER, "export the adapter again")
    if not tensors:
        raise UserError(f"{folder / ADAPTER} has no tensors; export the adapter again")
    return tensors


def load_adapter(folder: Path, model: LlamaXR, rank: int, lora_alpha: float) -> None:
    """Start the model's LoRA from a PEFT adapter folder, and its projector if the folder holds one, as a
    checkpoint and an exported adapter do: LoRA has learned to read what that projector says. Linears that the
    adapter leaves out keep their fresh LoRA, which changes nothing at first. UserError if it is another kind
    of adapter, has another rank or scale, or holds a matrix that this model does not have."""
    path, own, tensors = folder / ADAPTER, adapter_tensors(model), read_adapter(folder, rank, lora_alpha)
    if unknown := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{path}: {unknown[0]} has no place in this model; was it trained on another base?")
    _copy_from(path, {name: own[name] for name in tensors})
    if (folder / PROJECTOR).is_file():
        _copy_from(folder / PROJECTOR, model.projector.state_dict())


def _copy_from(path: Path, parameters: dict[str, torch.Tensor]) -> None:
    """Overwrite the parameters with a file's tensors. UserError if names, shapes or kinds differ."""
    tensors, _ = read_tensors(path, REMEDY)
    if different := sorted(tensors.keys() ^ parameters.keys()):
        raise UserError(
            f"{path} does not fit the model (first difference: {different[0]}); was it trained on another "
            "base?"
        )
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape or not tensor.is_floating_point():
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)} in {tensor.dtype}, not "
                f"{tuple(parameters[name].shape)} in {parameters[name].dtype}; is it of another base, vision "
                "network or grid?"
            )
        parameters[name].copy_(tensor)


def _trainable(model: LlamaXR) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _optimizer_tensors(model: LlamaXR, optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state of each parameter as "PARAMETER.KEY": AdamW's step and two moments, with the
    scales that 8 bits need. No key has a dot, so the last dot separates the two names."""
    tensors = {}
    for name, parameter in _trainable(model).items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}.{key}"] = torch.as_tensor(value).cpu().clone()  # the scales share one table
    return tensors


def _load_optimizer(model: LlamaXR, optimizer, path: Path) -> None:
    """The inverse of _optimizer_tensors. UserError unless the file has exactly the state that this optimiser
    would give these parameters: names, shapes and types."""
    tensors, _ = read_tensors(path, "start a new run")
    names = {parameter: name for name, parameter in _trainable(model).items()}
    for i, group in enumerate(optimizer.param_groups):
        for j, parameter in enumerate(group["params"]):
            state = optimizer.state[parameter]
            if isinstance(optimizer, torch.optim.AdamW):
                moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                state |= {"step": torch.tensor(0.0), **moments}
            else:
                optimizer.init_state(group, parameter, i, j)
            for key, fresh in state.items():
                value, like = tensors.pop(f"{names[parameter]}.{key}", None), torch.as_tensor(fresh)
                if value is None or value.shape != like.shape or value.dtype != like.dtype:
                    found = "missing" if value is None else f"{tuple(value.shape)} in {value.dtype}"
                    raise UserError(
                        f"{path}: {names[parameter]}.{key} is {found}, not {tuple(like.shape)} in "
                        f"{like.dtype}; it is not the state of this run's optimiser: start a new run"
                    )
                # torch's step is a tensor on the CPU, bitsandbytes' a number
                state[key] = int(value) if isinstance(fresh, int) else value.to(like.device, copy=True)
    if tensors:
        raise UserError(f"{path}: {short(min(tensors))} belongs to no parameter; start a new run")


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def peft_config(options: dict) -> dict:
    """adapter_config.json, as peft reads it."""
    name, commit = split_commit(options["base"])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name or options["base"],
        "revision": commit,
        "r": options["rank"],
        "lora_alpha": options["lora_alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
    }


def _folders(run: Path) -> list[Path]:
    return [f for f in run.glob("step-*") if f.suffix != ".tmp" and f.is_dir()]


def _remove(folder: Path) -> None:
    """Delete a checkpoint: by its rename it is gone for every reader, whatever happens then."""
    doomed = folder.with_name(f"{folder.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _steps(run: Path, warn: Callable[[str], None] | None = None) -> list[int]:
    """The steps of a run's checkpoints. A damaged one is left out, and told to `warn`. UserError if there is
    none, or all are damaged."""
    while True:
        folders, steps, damaged = _folders(run), [], []
        for folder in folders:
            try:
                step = read_json(folder / "state.json", MAX_JSON, REMEDY).get("step")
                if type(step) is not int or folder.name != f"step-{step:06d}":
                    raise UserError(f"{folder}/state.json is damaged (step); delete that folder")
                steps.append(step)
            except UserError as error:
                damaged.append(error)
        if all(folder.is_dir() for folder in folders):
            break  # else the run is being trained, and one has gone since: look again
    if not steps and damaged:
        raise damaged[0]
    if not steps:
        raise UserError(f"{run} has no checkpoint yet; train longer, or name another run")
    for error in damaged if warn else ():
        warn(f"{error}. It is left out")
    return steps

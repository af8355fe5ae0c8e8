"""A run folder: what was trained, on disk.

    runs/NAME/
      config.json                     every option of the run
      metrics.jsonl, loss.png, ...    written by train.py
      step-000400/                    a checkpoint, complete or not there at all
        adapter_model.safetensors     LoRA, by PEFT's names and shapes, with adapter_config.json
        projector.safetensors
        optimizer.safetensors         AdamW's state, only needed to resume
        state.json                    step, validation loss

A checkpoint is written to a temporary folder and renamed, so a crash leaves the old ones and no partial one.
A run keeps two: the last, to resume, and the best on validation, to use. The base's weights are never saved.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import UserError
from ..lora import TARGETS, LoRALinear
from ..model import LlamaXR

VERSION = 2  # of the folder's format; raised when an older reader would misread a newer folder
PEFT_PREFIX = "base_model.model.model."


def write_json(path: Path, value: object) -> None:
    """Write JSON under a temporary name and rename it into place."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def adapter_tensors(model: LlamaXR) -> dict[str, torch.Tensor]:
    """LoRA's matrices by PEFT's names. The tensors are the model's own, not copies."""
    return {
        f"{PEFT_PREFIX}{name}.{matrix}.weight": getattr(layer, matrix).data
        for name, layer in model.llama.named_modules()
        if isinstance(layer, LoRALinear)
        for matrix in ("lora_A", "lora_B")
    }


def save(run: Path, model: LlamaXR, options: dict, step: int, val_loss: float | None, optimizer=None) -> Path:
    """Write run/step-NNNNNN; delete the checkpoints that are neither last nor best. Returns the new folder.

    val_loss: None if training was interrupted; then the checkpoint is the best only if there is no other.
    UserError if the disk is full.
    """
    final = run / f"step-{step:06d}"
    folder = final.with_name(final.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        save_file(_to_cpu(adapter_tensors(model)), folder / "adapter_model.safetensors")
        save_file(_to_cpu(model.projector.state_dict()), folder / "projector.safetensors")
        write_json(folder / "adapter_config.json", _peft_config(options))
        if optimizer is not None:
            save_file(_optimizer_tensors(model, optimizer), folder / "optimizer.safetensors")
        write_json(folder / "state.json", {"version": VERSION, "step": step, "val_loss": val_loss})
    except SafetensorError as error:  # safetensors' own error for a full disk
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{folder} could not be written ({error}); free some space, then train with --resume"
        ) from None
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)  # a resumed run may save the same step again
    os.replace(folder, final)
    states = _states(run)
    last_and_best = {max(states), min(states, key=lambda s: (states[s], -s))}
    for old in states.keys() - last_and_best:
        shutil.rmtree(run / f"step-{old:06d}")
    return final


def best(run: Path) -> Path:
    """The checkpoint to use: lowest validation loss, the later of equals. UserError if there is none."""
    states = _states(run)
    return run / f"step-{min(states, key=lambda s: (states[s], -s)):06d}"


def last(run: Path) -> Path:
    """The checkpoint to resume from. UserError if there is none."""
    return run / f"step-{max(_states(run)):06d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def read_config(run: Path) -> dict:
    """The content of a run's config.json. UserError if the folder is no run."""
    if not run.is_dir():
        raise UserError(f"the run folder {run} does not exist; name one under runs/, or train first")
    return _read_json(run / "config.json")


def load(folder: Path, model: LlamaXR, optimizer=None) -> dict:
    """Load a checkpoint into the model, and into the optimiser if there is one. Returns state.json. UserError
    if the checkpoint is damaged, of another version, or does not fit the model."""
    state = _read_json(folder / "state.json")
    if state.get("version") != VERSION:
        raise UserError(
            f"{folder} has format {state.get('version')}, but this program reads {VERSION}; use the one that "
            "wrote it"
        )
    try:
        _copy_from(folder / "adapter_model.safetensors", adapter_tensors(model))
        _copy_from(folder / "projector.safetensors", model.projector.state_dict())
        if optimizer is not None:
            path = folder / "optimizer.safetensors"
            if not path.is_file():
                raise UserError(
                    f"{folder} has no optimizer.safetensors and cannot be resumed; start a new run"
                )
            _load_optimizer(model, optimizer, load_file(path))
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(
            f"the checkpoint {folder} is damaged or incomplete ({error}); use another run"
        ) from None
    return state


def load_adapter(folder: Path, model: LlamaXR, rank: int, lora_alpha: float) -> None:
    """Start the model's LoRA from a PEFT adapter folder. Linears that the adapter leaves out keep their fresh
    LoRA, which changes nothing at first. UserError if it is another kind of adapter, has another rank or
    scale, or holds a matrix that this model does not have."""
    config, path = _read_json(folder / "adapter_config.json"), folder / "adapter_model.safetensors"
    required = {"peft_type": "LORA", "bias": "none", "r": rank, "lora_alpha": lora_alpha}
    for key, value in required.items():
        if config.get(key) != value:
            raise UserError(
                f"{folder}/adapter_config.json: {key} is {config.get(key)!r}, not {value!r}; give "
                "the adapter's --rank and --lora-alpha; its kind must be LoRA without biases"
            )
    for key in (
        "use_dora",
        "use_rslora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
    ):
        if config.get(key):
            raise UserError(f"{folder}/adapter_config.json: {key} is not supported; export without it")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the adapter again") from None
    own = adapter_tensors(model)
    if unknown := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{path}: {unknown[0]} has no place in this model; was it trained on another base?")
    if not tensors:
        raise UserError(f"{path} has no tensors; export the adapter again")
    _copy_from(path, {name: own[name] for name in tensors})


def _copy_from(path: Path, parameters: dict[str, torch.Tensor]) -> None:
    """Overwrite the parameters with a file's tensors. UserError if names or shapes differ."""
    tensors = load_file(path)
    if different := sorted(tensors.keys() ^ parameters.keys()):
        raise UserError(
            f"{path} does not fit the model (first difference: {different[0]}); was it trained on another "
            "base?"
        )
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, not {tuple(parameters[name].shape)}"
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


def _load_optimizer(model: LlamaXR, optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of _optimizer_tensors. KeyError if a parameter's state is missing or unknown."""
    parameters = _trainable(model)
    for name, value in tensors.items():
        name, _, key = name.rpartition(".")
        if key == "step":  # torch has a tensor on the CPU, bitsandbytes a number
            value = value if isinstance(optimizer, torch.optim.AdamW) else int(value)
        else:
            value = value.to(parameters[name].device)
        optimizer.state[parameters[name]][key] = value
    if len(optimizer.state) < len(parameters):
        raise KeyError(f"state of {len(optimizer.state)} of {len(parameters)} parameters")


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _peft_config(options: dict) -> dict:
    """adapter_config.json, as peft reads it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": options["base"],
        "r": options["rank"],
        "lora_alpha": options["lora_alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
    }


def _states(run: Path) -> dict[int, float]:
    """step -> validation loss of a run's checkpoints. UserError if there is none, or one is damaged."""
    folders = [f for f in run.glob("step-*") if f.is_dir() and f.suffix != ".tmp"]
    states = {}
    for folder in folders:
        state = _read_json(folder / "state.json")
        step, loss = state.get("step"), state.get("val_loss")
        right_name = isinstance(step, int) and folder.name == f"step-{step:06d}"
        if not right_name or not isinstance(loss, float | int | None):
            raise UserError(f"{folder}/state.json is damaged; delete that folder or name another run")
        states[step] = float("inf") if loss is None else loss
    if not states:
        raise UserError(f"{run} has no checkpoint yet; train longer, or name another run")
    return states


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); name another run, or train again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (no JSON object); name another run, or train again")
    return value

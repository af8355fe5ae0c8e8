"""A base checkpoint on disk (Hugging Face layout, safetensors) becomes a Llama, quantised as it loads.

The model is first laid out on the meta device: shapes without memory. Then each tensor is read from its
memory-mapped file, quantised if it is a block's linear, and put in its place, so that never more than one
of them exists in 16 bits. Embeddings, head and norms stay in the compute dtype, as QLoRA leaves them.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import UserError
from .llama import Llama, LlamaConfig, RopeScaling
from .lora import TARGETS
from .nf4 import NF4Linear
from .tokenizer import Tokenizer, load_tokenizer


def load_llama(
    folder: str | Path,
    quantize: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[Llama, Tokenizer]:
    """Load a checkpoint folder: config.json, model.safetensors (or shards with an index), tokenizer.json.

    quantize: "nf4" holds the blocks' linears in 4 bits, None leaves all in dtype. Raises UserError for a
    folder that is no such checkpoint, naming the file and the tensor.
    """
    folder = Path(folder)
    if quantize not in (None, "nf4"):
        raise UserError(f"quantize is {quantize!r}; it must be None or 'nf4'")
    if not folder.is_dir():
        raise UserError(f"the base {folder} is not a folder; give a downloaded Llama checkpoint's folder")
    config = read_config(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}"
        )
    with torch.device("meta"):
        model = Llama(config)
    files = _shards(folder)
    wanted = {name: p.shape for name, p in model.state_dict().items()}
    seen: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (a safe_open is no mapping)
                    name = key.removeprefix("model.")
                    if name == "lm_head.weight" and config.tie_embeddings:
                        continue  # some tied checkpoints carry the copy all the same
                    if name not in wanted or name in seen:
                        raise UserError(f"{file}: unexpected tensor {key!r}; is this a Llama checkpoint?")
                    shape = tuple(tensors.get_slice(key).get_shape())
                    if shape != tuple(wanted[name]):
                        raise UserError(
                            f"{file}: {key} has shape {shape}, config.json says {tuple(wanted[name])}"
                        )
                    seen.add(name)
                    _place(model, name, tensors.get_tensor(key), quantize, dtype, device)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}); download it again") from None
    if missing := sorted(wanted.keys() - seen):
        raise UserError(f"{folder} lacks {len(missing)} tensors, first {missing[0]}; download it again")
    return model.requires_grad_(False), tokenizer


def read_config(path: Path) -> LlamaConfig:
    """config.json of a Hugging Face Llama folder -> LlamaConfig. Raises UserError for any other model."""
    try:
        c = json.loads(path.read_text(encoding="utf-8"))
        if c["model_type"] != "llama" or c.get("hidden_act") != "silu":
            raise UserError(
                f"{path}: {c['model_type']} with {c.get('hidden_act')} is not a Llama; give a Llama"
            )
        if c.get("attention_bias") or c.get("mlp_bias"):
            raise UserError(f"{path}: linears with biases are not Llama's; give a Llama checkpoint")
        # transformers 5 writes rope_parameters, earlier ones rope_theta and rope_scaling.
        rope = c.get("rope_parameters") or (c.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise UserError(f"{path}: rope type {kind!r} is unknown here; known are default and llama3")
        scaling = None
        if kind == "llama3":
            scaling = RopeScaling(
                float(rope["factor"]),
                float(rope["low_freq_factor"]),
                float(rope["high_freq_factor"]),
                int(rope["original_max_position_embeddings"]),
            )
        config = LlamaConfig(
            vocab_size=int(c["vocab_size"]),
            dim=int(c["hidden_size"]),
            n_layers=int(c["num_hidden_layers"]),
            n_heads=int(c["num_attention_heads"]),
            n_kv_heads=int(c.get("num_key_value_heads") or c["num_attention_heads"]),
            head_dim=int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]),
            ffn_dim=int(c["intermediate_size"]),
            norm_eps=float(c["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta") or c.get("rope_theta") or 10000.0),
            rope_scaling=scaling,
            max_positions=int(c["max_position_embeddings"]),
            tie_embeddings=bool(c.get("tie_word_embeddings", False)),
        )
        if min(config.vocab_size, config.dim, config.n_heads, config.n_kv_heads, config.ffn_dim) < 1:
            raise ValueError("a size below 1")
        return config
    except FileNotFoundError:
        raise UserError(f"{path} is missing: give the folder of a Hugging Face Llama checkpoint") from None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is damaged or incomplete ({error!r}); download it again") from None


def _shards(folder: Path) -> list[Path]:
    """The weight files, all inside the folder whatever the index says."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise UserError(f"{folder} has no model.safetensors; pickled weights (.bin, .pth) are not opened")
    try:
        names = sorted(map(Path, set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({error!r}); download it again") from None
    for name in names:
        if name.name != str(name) or not (folder / name).is_file():
            raise UserError(f"{index} names '{name}', which is not a file of that folder; download it again")
    return [folder / name for name in names]


def _place(model: Llama, name: str, weight: torch.Tensor, quantize, dtype, device) -> None:
    """Put one tensor where it belongs, as an NF4Linear if it is a block's linear and that was asked for."""
    path, _, kind = name.rpartition(".")
    parent_name, _, child = path.rpartition(".")
    if quantize == "nf4" and child in TARGETS:
        # The fp32 form is quantised (bf16 -> fp32 is exact), so that CPU and GPU give the same codes.
        linear = NF4Linear.quantise(weight.to(device).float())
        setattr(model.get_submodule(parent_name), child, linear)
    else:
        parameter = nn.Parameter(weight.to(device, dtype), requires_grad=False)
        setattr(model.get_submodule(path), kind, parameter)

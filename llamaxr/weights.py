"""A base checkpoint on disk (Hugging Face layout, safetensors) becomes a Llama, quantised as it loads.

Before any weight is read, config.json is checked, and then the headers of all files are checked against the
model that it describes (on the meta device, which has shapes but no memory). Then each tensor is copied from
its memory-mapped file. The blocks' linears are quantised on the way, one at a time; those already stored in
NF4 are kept bit for bit. The embedding and the head are not quantised, as in QLoRA.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from .errors import UserError
from .files.checkpoint_tensors import CheckpointTensors  # a folder's tensors by name, checked before reading
from .files.hub import find_base  # the folder itself, or the download of a hub id
from .files.llama_config import read_llama_config  # config.json as a dict, checked
from .llama import Llama, LlamaConfig, RopeScaling
from .lora import TARGETS
from .nf4 import NF4Linear
from .tokenizer import Tokenizer, load_tokenizer


def load_llama(
    base: str | Path,
    quantize: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    nf4: type[NF4Linear] = NF4Linear,
) -> tuple[Llama, Tokenizer]:
    """Load a checkpoint: its folder, or its id on the Hugging Face hub (found in the cache, or downloaded).

    quantize: "nf4" quantises the blocks' linears, None converts them to dtype. Linears that the checkpoint
    already stores in NF4 stay in NF4, and then no others are quantised. dtype: the compute dtype. nf4: the
    class of a linear in 4 bits.
    Raises UserError for anything that is not such a checkpoint, naming the file and the tensor.
    """
    assert quantize in (None, "nf4"), quantize
    folder = find_base(base)
    config, tokenizer = read_config(folder / "config.json"), load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}; "
            "take both from one checkpoint"
        )
    with torch.device("meta"):
        model = Llama(config)
    with ExitStack() as stack:
        stored = CheckpointTensors(folder, stack)
        shapes = {stored_name(name): tuple(p.shape) for name, p in model.named_parameters()}
        stored.check(shapes, nf4_allowed=lambda name: name.split(".")[-2] in TARGETS)
        in_4_bits = quantize == "nf4" or stored.has_nf4
        for name, _ in list(model.named_parameters()):
            module, _, kind = name.rpartition(".")  # "layers.0.mlp.up_proj", "weight"
            parent, _, child = module.rpartition(".")
            key = stored_name(name)
            if stored.is_nf4(key):
                linear = nf4.from_stored(*stored.nf4(key), device)
                setattr(model.get_submodule(parent), child, linear)
            elif child in TARGETS and quantize == "nf4" and not stored.has_nf4:
                linear = nf4.quantise(stored.read(key).to(device))
                setattr(model.get_submodule(parent), child, linear)
            else:
                weight = stored.read(key)
                # In a 4-bit model these stay as stored: widening on use is exact, and 2 GiB are saved on 8B.
                stays = in_4_bits and child in ("embed_tokens", "lm_head") and dtype == torch.float32
                weight = weight.to(device, weight.dtype if stays else dtype)
                setattr(model.get_submodule(module), kind, nn.Parameter(weight, requires_grad=False))
    return model.requires_grad_(False), tokenizer


def read_config(path: Path) -> LlamaConfig:
    """A checkpoint's config.json. Raises UserError for any model but a Llama."""
    fields = read_llama_config(path)
    scaling = fields.pop("rope_scaling")
    return LlamaConfig(**fields, rope_scaling=scaling and RopeScaling(**scaling))


def stored_name(name: str) -> str:
    """A parameter's name in Hugging Face checkpoints."""
    return name if name.startswith("lm_head") else f"model.{name}"

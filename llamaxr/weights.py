"""A base checkpoint on disk (Hugging Face layout, safetensors) becomes a Llama, quantised as it loads.

First everything is checked that can be without reading weights: config.json, and the headers of all files
against the model that it describes, laid out on the meta device: shapes without memory. Then each tensor goes
from its memory-mapped file to its place. A block's linear is quantised on the way, a few rows at a time, so
that nothing ever holds more of it in 16 bits; one that was stored in NF4 is taken as it is, to the bit. The
embedding and the head stay in 16 bits, as QLoRA leaves them.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import UserError
from .llama import Llama, LlamaConfig, RopeScaling
from .lora import TARGETS
from .nf4 import NF4Linear, rows_a_tile
from .tokenizer import Tokenizer, load_tokenizer

FLOATS = ("BF16", "F16", "F32")  # safetensors' names of the dtypes that a plain weight may have
HUB_FILES = ("*.json", "*.safetensors", "tokenizer.model")  # never a pickle


def load_llama(
    base: str | Path,
    quantize: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[Llama, Tokenizer]:
    """Load a checkpoint: its folder, or its id on the Hugging Face hub (found in the cache, or downloaded).

    quantize: "nf4" holds the blocks' linears in 4 bits, None leaves all as it is (what is stored in NF4 stays
    so either way). dtype: what the model computes in; beside 4-bit linears the embedding and the head keep
    the 16 bits that they are stored in even if dtype is wider, since widening as they are used is exact and
    saves 2 GiB of an 8B model. Raises UserError for what is no such checkpoint: which file, which tensor.
    """
    if quantize not in (None, "nf4"):
        raise UserError(f"quantize is {quantize!r}; it must be None or 'nf4'")
    folder = find_base(base)
    config = read_config(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}"
        )
    with torch.device("meta"):
        model = Llama(config)
    with ExitStack() as stack:
        stored = Stored(folder, stack)
        stored.check({f"model.{name}".replace("model.lm_head", "lm_head"): tuple(p.shape)
                      for name, p in model.state_dict().items()})  # fmt: skip
        in_4_bits = quantize == "nf4" or stored.has_4_bit
        for name, meta in list(model.named_parameters()):
            key = name if name.startswith("lm_head") else f"model.{name}"
            path, _, kind = name.rpartition(".")
            parent, _, child = path.rpartition(".")
            if stored.is_4_bit(key):
                setattr(model.get_submodule(parent), child, stored.nf4(key, tuple(meta.shape), device))
            elif child in TARGETS and quantize == "nf4" and not stored.has_4_bit:
                tiles = stored.tiles(key, rows_a_tile(meta.shape[1]))
                setattr(
                    model.get_submodule(parent), child, NF4Linear.quantise_tiles(tiles, meta.shape, device)
                )
            else:
                weight = stored.read(key)
                keep = in_4_bits and weight.dim() == 2 and child not in TARGETS and dtype == torch.float32
                weight = weight.to(device, weight.dtype if keep else dtype, copy=True)  # off the mapped file
                setattr(model.get_submodule(path), kind, nn.Parameter(weight, requires_grad=False))
    return model.requires_grad_(False), tokenizer


def find_base(base: str | Path) -> Path:
    """The folder of a checkpoint: base itself, or where the hub's cache holds the repository of that name.

    What the cache lacks is downloaded by huggingface_hub, which shows progress, resumes, and reads HF_TOKEN
    for gated models. UserError where it is neither a folder nor to be had.
    """
    if Path(base).is_dir():
        return Path(base)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(base)):
        raise UserError(f"the base {base} is neither a folder nor a hub id such as meta-llama/Llama-3.1-8B")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    wanted = {"allow_patterns": HUB_FILES, "ignore_patterns": "*/*"}
    try:
        folder = Path(snapshot_download(base, local_files_only=True, **wanted))
        shard_files(folder)  # a download may have been cut off
        return folder
    except Exception:  # not there, or not whole: huggingface_hub has many words for it, and all mean download
        pass
    try:
        return Path(snapshot_download(base, **wanted))
    except GatedRepoError:
        mend = f"accept its licence at https://huggingface.co/{base}, then set HF_TOKEN"
    except RepositoryNotFoundError:
        mend = "there is no such repository, or it is private: check the name, or set HF_TOKEN"
    except Exception as error:  # no network, in one of many ways
        mend = f"{type(error).__name__}; where there is a network, run: hf download {base}"
    raise UserError(f"{base} is not in the Hugging Face cache and could not be downloaded: {mend}")


class Stored:
    """The tensors of a checkpoint folder by name, over all its files: checked first, read when asked for."""

    def __init__(self, folder: Path, stack: ExitStack):
        """Opens the files, on a stack that closes them, and reads the headers; UserError if damaged."""
        self.folder, self.files = folder, {}  # name -> (path, open file)
        for path in shard_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be read ({error}); download it again") from None
            for name in file.keys():  # noqa: SIM118 (a safe_open is no mapping)
                if name in self.files:
                    raise UserError(f"{path}: {name} stands in {self.files[name][0].name} too")
                self.files[name] = path, file
        self.has_4_bit = any(self.is_4_bit(name) for name in self.files)

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype (safetensors' name of it)."""
        part = self.files[name][1].get_slice(name)
        return tuple(part.get_shape()), part.get_dtype()

    def is_4_bit(self, name: str) -> bool:
        return f"{name}.absmax" in self.files

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """UserError unless these tensors are there, of these shapes, and no others."""
        if missing := sorted(shapes.keys() - self.files.keys()):
            raise UserError(
                f"{self.folder} lacks {len(missing)} tensors, first {missing[0]}; download it again"
            )
        for name, (path, _) in self.files.items():
            weight = name[: name.find(".weight.") + 7] if ".weight." in name else name
            if weight != name and weight in shapes and self.is_4_bit(weight):
                continue  # its statistics, which NF4Linear.from_stored looks at
            if name not in shapes:
                if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight":
                    continue  # old checkpoints carry frequencies, some tied ones a copy of the embedding
                raise UserError(f"{path}: unexpected tensor {name!r}; is this a Llama checkpoint?")
            shape, dtype = self.header(name)
            if self.is_4_bit(name):
                if name.split(".")[-2] not in TARGETS:
                    raise UserError(f"{path}: {name} is in 4 bits; only the blocks' linears may be")
            elif shape != shapes[name]:
                raise UserError(f"{path}: {name} has shape {shape}, config.json says {shapes[name]}")
            elif dtype not in FLOATS:
                raise UserError(f"{path}: {name} is {dtype}; read are {', '.join(FLOATS)} and NF4")

    def read(self, name: str) -> Tensor:
        return self.files[name][1].get_tensor(name)

    def tiles(self, name: str, n_rows: int) -> Iterator[Tensor]:
        """The rows of a matrix, n_rows at a time."""
        rows = self.files[name][1].get_slice(name)
        for top in range(0, rows.get_shape()[0], n_rows):
            yield rows[top : top + n_rows]

    def nf4(self, name: str, shape: tuple[int, int], device) -> NF4Linear:
        """A linear that is stored in NF4."""
        statistics = {
            key[len(name) + 1 :]: self.read(key) for key in self.files if key.startswith(f"{name}.")
        }
        try:
            return NF4Linear.from_stored(self.read(name), statistics, shape, device)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.files[name][0]}: {name} is no NF4 of shape {shape} ({error})") from None


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


def shard_files(folder: Path) -> list[Path]:
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

"""A base checkpoint on disk (Hugging Face layout, safetensors) becomes a Llama, quantised as it loads.

First everything is checked that can be without reading weights: config.json, and the headers of all files
against the model that it describes, laid out on the meta device: shapes without memory. Then each tensor goes
from its memory-mapped file to its place. A block's linear is quantised on the way, a few rows at a time, so
that nothing ever holds more of it in 16 bits; one that was stored in NF4 is taken as it is, to the bit. The
embedding and the head stay in 16 bits, as QLoRA leaves them.
"""

import math
import os
import re
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import UserError
from .llama import Llama
from .files.llama_config import read_config, read_json
from .lora import TARGETS
from .nf4 import NF4Linear, check_stored, rows_a_tile
from .tokenizer import Tokenizer, load_tokenizer

FLOATS = ("BF16", "F16", "F32")  # safetensors' names of the dtypes that a plain weight may have
MAX_INDEX = 2**23  # bytes of a file's header or of the index; a header of all of LLaMA 3.1 405B takes 2**20
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
                weight = weight.to(device, weight.dtype if keep else dtype)  # else it stays a mapped file
                setattr(model.get_submodule(path), kind, nn.Parameter(weight, requires_grad=False))
    return model.requires_grad_(False), tokenizer


def find_base(base: str | Path) -> Path:
    """The folder of a checkpoint: base itself, or where the hub's cache holds the repository of that name.

    What the cache lacks is downloaded by huggingface_hub, which shows progress, resumes, and reads HF_TOKEN
    for gated models. UserError where it is neither a folder nor to be had.
    """
    if os.path.isdir(base):  # pathlib's raises where the name is too long for a file
        return Path(base)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(base)):
        raise UserError(f"the base {base} is neither a folder nor a hub id such as meta-llama/Llama-3.1-8B")
    from httpx2 import HTTPError  # huggingface_hub's way to the network, whose errors it lets through
    from huggingface_hub import errors, snapshot_download

    wanted = {"allow_patterns": HUB_FILES, "ignore_patterns": "*/*"}
    try:
        return whole(Path(snapshot_download(base, local_files_only=True, **wanted)))
    except errors.HFValidationError as error:
        raise UserError(f"the base {base} is no folder, and no hub id either: {error}") from None
    except (errors.LocalEntryNotFoundError, UserError):
        pass  # not there, or cut off on its way
    try:
        return whole(Path(snapshot_download(base, **wanted)))  # without a network it gives what is there
    except errors.GatedRepoError:
        mend = f"accept its licence at https://huggingface.co/{base}, then set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        mend = "there is no such repository, or it is private: check the name, or set HF_TOKEN"
    except (errors.LocalEntryNotFoundError, errors.XetDownloadError, HTTPError, ConnectionError) as error:
        mend = f"{type(error.__cause__ or error).__name__}; where there is a network, run: hf download {base}"
    except UserError as error:
        mend = f"{error}; what is cut off is completed, where there is a network, by: hf download {base}"
    raise UserError(f"{base} is not in the Hugging Face cache and could not be downloaded: {mend}")


def whole(folder: Path) -> Path:
    """The folder itself; UserError if it lacks files, as that of a download that was cut off does."""
    tokenizer = any(path.is_file() for path in folder.glob("tokenizer.*"))  # not a link to what is missing
    if not (folder / "config.json").is_file() or not tokenizer:
        raise UserError(f"{folder} lacks config.json or the tokenizer")
    shard_files(folder)
    return folder


class Stored:
    """The tensors of a checkpoint folder by name, over all its files: checked first, read when asked for."""

    def __init__(self, folder: Path, stack: ExitStack):
        """Opens the files, on a stack that closes them, and reads the headers; UserError if damaged."""
        self.folder = folder
        self.files = {}  # name -> (path, open file)
        self.parts = {}  # name of a 4-bit weight -> {statistic: name of its tensor}
        for path in shard_files(folder):
            try:
                with path.open("rb") as raw:  # safetensors would spend 12 seconds on a header of its 100 MB
                    n_bytes = int.from_bytes(raw.read(8), "little")
                if n_bytes > MAX_INDEX:
                    raise UserError(f"{path} has a header of {n_bytes} bytes, no Llama's; download it again")
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                why = " ".join(str(error).split())[:200]
                raise UserError(f"{path} cannot be read ({why}); download it again") from None
            for name in file.keys():  # noqa: SIM118 (a safe_open is no mapping)
                if name in self.files:
                    raise UserError(f"{path}: {name[:100]!r} stands in {self.files[name][0].name} too")
                self.files[name] = path, file
                weight, dot, part = name.partition(".weight.")
                if dot and part:
                    self.parts.setdefault(f"{weight}.weight", {})[part] = name
        self.has_4_bit = any(map(self.is_4_bit, self.files))

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype (safetensors' name of it)."""
        part = self.files[name][1].get_slice(name)
        return tuple(part.get_shape()), part.get_dtype()

    def is_4_bit(self, name: str) -> bool:
        return "absmax" in self.parts.get(name, ())

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """UserError unless these tensors are there, of these shapes, and no others. Reads headers alone, and
        of each 4-bit weight the few hundred bytes that say how it was made."""
        if missing := sorted(shapes.keys() - self.files.keys()):
            raise UserError(
                f"{self.folder} lacks {len(missing)} tensors, first {missing[0]}; download it again"
            )
        of_4_bit = {p for name in shapes if self.is_4_bit(name) for p in self.parts[name].values()}
        for name, (path, _) in self.files.items():
            if name in of_4_bit:
                continue  # looked at with the weight
            if name not in shapes:
                if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight":
                    continue  # old checkpoints carry frequencies, some tied ones a copy of the embedding
                raise UserError(f"{path}: unexpected tensor {name[:100]!r}; is this a Llama checkpoint?")
            shape, dtype = self.header(name)
            if self.is_4_bit(name):
                self._check_4_bit(name, shapes[name])
            elif dtype not in FLOATS:
                raise UserError(f"{path}: {name} is {dtype}; read are {', '.join(FLOATS)} and NF4")
            elif shape != shapes[name]:
                raise UserError(f"{path}: {name} has shape {shape}, config.json says {shapes[name]}")

    def _check_4_bit(self, name: str, shape: tuple[int, ...]) -> None:
        path, parts = self.files[name][0], {"": name, **self.parts[name]}
        if name.split(".")[-2] not in TARGETS:
            raise UserError(f"{path}: {name} is in 4 bits; only the blocks' linears may be")
        sizes = {part: self.header(key) for part, key in parts.items()}
        sizes = {part: (dtype, math.prod(dims)) for part, (dims, dtype) in sizes.items()}
        try:
            check_stored(sizes, lambda part: self.read(parts[part]), shape)
        except ValueError as error:
            why = f"is no NF4 of shape {shape}: {error}"
            raise UserError(f"{path}: {name} {why}; download it again") from None

    def read(self, name: str) -> Tensor:
        return self.files[name][1].get_tensor(name)

    def tiles(self, name: str, n_rows: int) -> tuple[Tensor, ...]:
        """The rows of a matrix, n_rows at a time, each read from the file as it is used."""
        return self.read(name).split(n_rows)

    def nf4(self, name: str, shape: tuple[int, int], device) -> NF4Linear:
        """A linear that is stored in NF4."""
        statistics = {part: self.read(key) for part, key in self.parts[name].items()}
        return NF4Linear.from_stored(self.read(name), statistics, shape, device)


def shard_files(folder: Path) -> list[Path]:
    """The weight files, all inside the folder whatever the index says."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise UserError(f"{folder} has no model.safetensors; pickled weights (.bin, .pth) are not opened")
    names = read_json(index, max_bytes=MAX_INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f"{index} has no weight_map of tensors to files; download it again")
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    names = sorted(set(names.values()))
    for name in names:
        if name not in files:
            raise UserError(f"{index} names {name[:100]!r}, no file of that folder; download it again")
    return [files[name] for name in names]

"""The tensors of a checkpoint folder by name, over all its safetensors files.

The headers of all files are checked first, against the shapes that the model expects: no weights are read for
that. Then tensors are read one at a time, from memory-mapped files.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from .hub import shard_files
from .nf4_stored import check_stored
from .tensors import check_finite, open_tensors
from .text import short

FLOATS = ("BF16", "F16", "F32")  # safetensors' names of the dtypes that a plain weight may have


class CheckpointTensors:
    """Checked first, then read by name. A weight in NF4 is several tensors: its codes and its statistics."""

    def __init__(self, folder: Path, stack: ExitStack):
        """Opens the files on `stack`, which closes them, and reads their headers. UserError if damaged."""
        self.folder = folder
        self.files = {}  # tensor name -> (path, open file)
        self.statistics = {}  # name of an NF4 weight -> {part ("absmax", ...): name of its tensor}
        for path in shard_files(folder):
            file = stack.enter_context(open_tensors(path, "download it again"))
            for name in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                if name in self.files:
                    raise UserError(
                        f"{path}: {short(name)!r} is in {self.files[name][0].name} too; download it again"
                    )
                self.files[name] = path, file
                module, dot, part = name.partition(".weight.")
                if dot and part:
                    self.statistics.setdefault(f"{module}.weight", {})[part] = name
        self.has_nf4 = any(map(self.is_nf4, self.files))

    def is_nf4(self, name: str) -> bool:
        """Whether this weight is stored in 4 bits."""
        return "absmax" in self.statistics.get(name, ())

    def check(self, shapes: dict[str, tuple[int, ...]], nf4_allowed: Callable[[str], bool]) -> None:
        """Raises UserError unless exactly these tensors are there, with these shapes.

        nf4_allowed: whether the weight of that name may be in 4 bits. Reads headers only, and for each NF4
        weight the few hundred bytes that say how it was quantised.
        """
        if missing := sorted(shapes.keys() - self.files.keys()):
            raise UserError(
                f"{self.folder} lacks {len(missing)} tensors, first {missing[0]}; download it again"
            )
        parts_of_nf4 = {
            part for name in shapes if self.is_nf4(name) for part in self.statistics[name].values()
        }
        for name, (path, _) in self.files.items():
            if name in parts_of_nf4:
                continue  # checked together with the weight
            if name not in shapes:
                if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight":
                    continue  # old checkpoints hold frequencies, some tied ones a copy of the embedding
                raise UserError(f"{path}: unexpected tensor {short(name)!r}; is this a Llama checkpoint?")
            shape, dtype = self.header(name)
            if self.is_nf4(name):
                if not nf4_allowed(name):
                    raise UserError(
                        f"{path}: {name} is in 4 bits; only the blocks' linears may be: use another base"
                    )
                self._check_nf4(name, shapes[name])
            elif dtype not in FLOATS:
                raise UserError(f"{path}: {name} is {dtype}; supported are {', '.join(FLOATS)} and NF4")
            elif shape != shapes[name]:
                raise UserError(f"{path}: {name} has shape {shape}, config.json says {shapes[name]}")

    def _check_nf4(self, name: str, shape: tuple[int, int]) -> None:
        parts = {"": name, **self.statistics[name]}
        headers = {part: self.header(key) for part, key in parts.items()}
        sizes = {part: (dtype, math.prod(dims)) for part, (dims, dtype) in headers.items()}
        try:
            check_stored(sizes, lambda part: self.read(parts[part]), shape)
        except ValueError as error:
            reason = f"{name} is no NF4 of shape {shape}: {error}"
            raise UserError(f"{self.files[name][0]}: {reason}; download it again") from None

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype (safetensors' name) of a tensor, which is not read."""
        header = self.files[name][1].get_slice(name)
        return tuple(header.get_shape()), header.get_dtype()

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored: memory-mapped, on the CPU. UserError for NaN in it, or an infinity."""
        path, file = self.files[name]
        tensor = file.get_tensor(name)
        check_finite(path, name, tensor, "download it again")
        return tensor

    def nf4(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """A weight in NF4: packed codes (n_bytes, 1), and flat statistics by bitsandbytes' names."""
        # Files differ in the shapes of these parts. The kernels read them as flat memory.
        parts = {part: self.read(key).flatten() for part, key in self.statistics[name].items()}
        return self.read(name).reshape(-1, 1), parts

"""Safetensors files: the one place that opens them, from anywhere, and the one that writes them.

safetensors checks the names, shapes and places in a file's header, but takes 40 seconds and 2 GiB for a
header of 95 MB. So the header's size comes first.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from .text import complete_or_absent, short

FLOATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
)  # fmt: skip
MAX_HEADER = 2**20  # bytes; a 70B in NF4 and in one file has half of it, a published file a tenth


@contextlib.contextmanager
def open_tensors(path: Path, remedy: str = "fetch it again") -> Iterator[safe_open]:
    """A safetensors file with its header read. UserError, which ends with the remedy, if it is missing or
    damaged, even if only reading a tensor inside the `with` shows it."""
    try:
        if not path.is_file():  # a pipe too: reading it could block for ever
            raise UserError(f"{path} is missing; {remedy}")
        with path.open("rb") as raw:
            n_bytes = int.from_bytes(raw.read(8), "little")
        if n_bytes > MAX_HEADER:
            raise UserError(f"{path} has a header of {n_bytes} bytes, too large for any model; {remedy}")
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({short(error, 200)}); {remedy}") from None


def read_tensors(
    path: Path, remedy: str = "fetch it again", may_hold_nan: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file by name, memory-mapped, and its metadata. UserError as `open_tensors`, and for a
    tensor that `check_finite` refuses, but for those of the names in may_hold_nan."""
    with open_tensors(path, remedy) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = file.metadata() or {}
    for name, tensor in tensors.items():
        if name not in may_hold_nan:
            check_finite(path, name, tensor, remedy)
    return tensors, metadata


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file, whole or not at all. UserError if the disk is full, instead of safetensors' own error."""
    try:
        with complete_or_absent(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    except SafetensorError as error:
        raise UserError(
            f"{path} could not be written ({short(error)}); free some space, then run the same command again "
            "(train.py: with --resume)"
        ) from None


def check_finite(path: Path, name: str, tensor: Tensor, remedy: str = "fetch it again") -> None:
    """UserError, which names the tensor, where it holds NaN, an infinity, or numbers of a type for which
    that cannot be told."""
    if tensor.is_complex() or tensor.is_floating_point() and tensor.dtype not in FLOATS:
        raise UserError(f"{path}: {short(name)} has the type {tensor.dtype}, which no model has; {remedy}")
    if tensor.is_floating_point() and tensor.numel():
        if tensor.dtype.itemsize < 2:
            tensor = tensor.float()
        if not all(extreme.isfinite() for extreme in torch.aminmax(tensor)):  # one pass; NaN comes through
            raise UserError(f"{path}: {short(name)} holds NaN or an infinite number; {remedy}")

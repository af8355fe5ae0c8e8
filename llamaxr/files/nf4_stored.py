"""The parts in which bitsandbytes stores a weight in NF4, and the check that their sizes are true.

A weight is stored as several tensors: the packed codes under the weight's own name, and statistics under
NAME.absmax, NAME.quant_map and so on. bitsandbytes' kernels trust their sizes and read past the end of a
tensor that is too short. So all sizes are checked here, by the file's header, before any tensor is read.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .text import parse_json

BLOCK_SIZE = 64  # weights per absmax: bitsandbytes' default, and that of all published checkpoints
NESTED_BLOCK_SIZE = 256  # absmaxes per scale, with double quantisation
FACTS = "quant_state.bitsandbytes__nf4"  # the part that holds shape, block size and so on, as JSON bytes
DTYPES = ("float32", "bfloat16", "float16")
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def check_stored(
    sizes: dict[str, tuple[str, int]], read: Callable[[str], Tensor], shape: tuple[int, int]
) -> None:
    """Raises ValueError unless these parts hold a weight of `shape` (out_features, in_features) in NF4.

    sizes: part -> its dtype (safetensors' name) and number of elements. The parts are "", the packed codes;
    absmax, in fp32, or in 8 bits with nested_absmax and nested_quant_map; quant_map, the 16 levels; and
    FACTS. read: gives the tensor of a part. Only quant_map and FACTS are read, once their sizes are known to
    be small.
    """
    nested = "nested_absmax" in sizes
    n_blocks = -(-shape[0] * shape[1] // BLOCK_SIZE)
    expected = {"": ("U8", (shape[0] * shape[1] + 1) // 2), "quant_map": ("F32", 16)}
    expected["absmax"] = "U8" if nested else "F32", n_blocks
    if nested:
        n_scales = -(-n_blocks // NESTED_BLOCK_SIZE)
        expected |= {"nested_absmax": ("F32", n_scales), "nested_quant_map": ("F32", 256)}
    for name, (dtype, numel) in expected.items():
        if sizes.get(name) != (dtype, numel):
            found = "{} {}".format(*reversed(sizes[name])) if name in sizes else "none"
            raise ValueError(f"its {name or 'packed codes'} should be {numel} {dtype}, has {found}")
    if extra := sizes.keys() - expected.keys() - {FACTS}:
        raise ValueError(f"unknown statistics {min(extra)[:40]!r}")
    dtype, numel = sizes.get(FACTS, ("U8", 0))
    if dtype != "U8" or not 0 < numel <= 4096:  # in practice about a hundred bytes
        raise ValueError(f"its {FACTS} has {numel} {dtype}, not about a hundred bytes of JSON")
    _check_facts(read(FACTS), shape, nested)
    if not torch.allclose(read("quant_map").flatten().cpu(), LEVELS):
        raise ValueError("its levels are not NF4's")


def _check_facts(raw: Tensor, shape: tuple[int, int], nested: bool) -> None:
    try:
        facts = parse_json(bytes(raw.flatten().tolist()))
    except ValueError:
        raise ValueError(f"its {FACTS} is no JSON") from None
    expected = {"quant_type": "nf4", "blocksize": BLOCK_SIZE, "shape": list(shape)}
    expected |= {"nested_blocksize": NESTED_BLOCK_SIZE} if nested else {}
    for name, value in expected.items():
        if not isinstance(facts, dict) or facts.get(name) != value:
            raise ValueError(f"its {FACTS} does not say {name} {value}")
    for name in ("dtype", "nested_dtype") if nested else ("dtype",):
        if facts.get(name) not in DTYPES:  # bitsandbytes looks the name up in torch
            raise ValueError(f"its {FACTS} has no usable {name}")
    offset = facts.get("nested_offset") if nested else 0.0
    if not isinstance(offset, float | int) or not abs(offset) < 1e30:
        raise ValueError(f"its {FACTS} has no usable nested_offset")

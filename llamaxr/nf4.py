"""A frozen linear layer held in NF4: 4 bits a weight, exact around it (QLoRA, Dettmers et al. 2023).

What it replaces: `nn.Linear` without bias, whose weight in bf16 takes 2 bytes a number. LLaMA 3.1 8B has
6.98 billion such weights in its blocks: 13 GiB. In NF4 they take 3.5 GiB, and one GPU of a few GiB trains it.

How a weight is stored. The matrix, row after row, is cut into blocks of 64 numbers. Each block
keeps its largest magnitude ("absmax"), and each number of the block, divided by that, becomes the nearest of
16 fixed levels in [-1, 1]. The levels are quantiles of a normal distribution (hence NormalFloat), because
trained weights are nearly normal: each level is then used about equally often, which is what 4 bits can do
best. One level is exactly zero. Two 4-bit codes share a byte.

Double quantisation. An fp32 absmax for each 64 weights would cost 0.5 bit a weight. So the absmaxes
are themselves stored in 8 bits: their mean is taken off, then blocks of 256 of them share one fp32 scale.
In all: 4 + 8/64 + 32/(64*256) = 4.127 bits a weight.

What is exact and what is not. Quantising loses; it happens once, at loading, and never again: the base
learns nothing. Dequantising is a table lookup and a multiplication, the same numbers each time, so

    forward    y  = x W^T        W dequantised on the way, used, thrown away
    backward   dx = dy W         W dequantised again, instead of kept alive between the two passes
    (no dW: the base is frozen; what learns stands beside it, in lora.py)

On a CPU W appears a few rows at a time, each set in the memory of the one before, which is still in the
cache: writing out all of a 14336 x 4096 weight takes four times as long, most of it spent on fresh pages. On
CUDA it is one piece, and a single token takes bitsandbytes' fused kernel, which never writes W out at all.
The format is bitsandbytes' own, bit for bit, as `transformers` writes it with `load_in_4bit`.
"""

import json
from collections.abc import Callable, Iterable, Iterator

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from bitsandbytes import matmul_4bit
from torch import Tensor, nn

BLOCK_SIZE = 64  # numbers that share an absmax: bitsandbytes' default and that of all published checkpoints
FACTS = "quant_state.bitsandbytes__nf4"  # the part of a stored weight that holds its sizes, as JSON
_NAMES = {torch.uint8: "U8", torch.float32: "F32"}  # safetensors' names of the dtypes that the parts have
TILE = 2**20  # numbers of a weight that exist at once on a CPU: 4 MiB in fp32


def rows_a_tile(in_features: int) -> int:
    """Rows of a weight that make a tile: a multiple of 64, so that each tile begins with a new block."""
    return max(64, TILE // in_features // 64 * 64)


class NF4Linear(nn.Module):
    """y = x W^T with W frozen in NF4. x (..., in_features) -> y (..., out_features), in x's dtype."""

    def __init__(self, packed: Tensor, state: bnb.QuantState):
        super().__init__()
        self.out_features, self.in_features = state.shape
        self.packed, self.state = packed, state  # (out * in / 2, 1) uint8, and the absmaxes in two levels

    @classmethod
    def quantise(cls, weight: Tensor) -> "NF4Linear":
        """Quantise a weight (out_features, in_features) of any float dtype, on the device where it lies."""
        return cls.quantise_tiles(weight.split(rows_a_tile(weight.shape[1])), weight.shape, weight.device)

    @classmethod
    def quantise_tiles(cls, tiles: Iterable[Tensor], shape: tuple[int, int], device) -> "NF4Linear":
        """Quantise a weight of that shape that comes as tiles of `rows_a_tile` rows, top to bottom: to the
        same bits as the whole at once. Each is quantised in fp32, exact for bf16: so CPU and GPU agree."""
        n = shape[0] * shape[1]
        packed = torch.empty((n + 1) // 2, 1, dtype=torch.uint8, device=device)
        absmax = torch.empty((n + BLOCK_SIZE - 1) // BLOCK_SIZE, device=device)
        at = 0
        for tile in tiles:
            tile = tile.to(device).float().contiguous()
            codes, state = bnb.quantize_4bit(tile, blocksize=BLOCK_SIZE, quant_type="nf4")
            packed[at // 2 : at // 2 + len(codes)] = codes
            absmax[at // BLOCK_SIZE : at // BLOCK_SIZE + len(state.absmax)] = state.absmax
            at += tile.numel()
        offset = absmax.mean()
        absmax8, state2 = bnb.quantize_blockwise(absmax - offset, blocksize=256)
        return cls(packed, bnb.QuantState(
            absmax=absmax8, shape=torch.Size(shape), code=state.code, blocksize=BLOCK_SIZE, quant_type="nf4",
            dtype=torch.float32, offset=offset, state2=state2))  # fmt: skip

    @classmethod
    def from_stored(cls, packed: Tensor, parts: dict[str, Tensor], shape: tuple[int, int], device):
        """What bitsandbytes stored, taken as it is, to the bit. Raises check_stored's ValueError."""
        tensors = {"": packed, **parts}
        sizes = {name: (_NAMES.get(t.dtype, str(t.dtype)), t.numel()) for name, t in tensors.items()}
        facts = check_stored(sizes, tensors.__getitem__, shape)
        stored = {name: t.to(device, copy=True).flatten() for name, t in tensors.items()}
        state2 = offset = None
        if "nested_absmax" in stored:
            state2 = bnb.QuantState(absmax=stored["nested_absmax"], blocksize=256, dtype=torch.float32,
                                    code=stored["nested_quant_map"])  # fmt: skip
            offset = torch.tensor(float(facts["nested_offset"]), device=device)
        return cls(stored[""].view(-1, 1), bnb.QuantState(
            absmax=stored["absmax"], shape=torch.Size(shape), code=bnb.get_4bit_type("nf4", device=device),
            blocksize=BLOCK_SIZE, quant_type="nf4", dtype=torch.float32, offset=offset, state2=state2,
        ))  # fmt: skip

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The weight as it acts, written out whole: (out_features, in_features)."""
        return torch.cat([tile for _, tile in self.tiles(dtype)])

    @property
    def weight(self) -> Tensor:
        """The same in fp32, under the name that any linear has for it."""
        return self.dequantise(torch.float32)

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The weight as it acts, tile by tile: its rows, and (n_rows, in_features). The dtype decides what
        the lookup rounds to; forward and backward must round alike: both ask for what they compute in."""
        state, absmax = self.state, self.state.absmax
        if state.nested:
            absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
        n_rows = self.out_features if self.packed.is_cuda else rows_a_tile(self.in_features)
        for top in range(0, self.out_features, n_rows):
            rows = slice(top, min(top + n_rows, self.out_features))
            a, b = rows.start * self.in_features, rows.stop * self.in_features
            tile = bnb.QuantState(
                absmax=absmax[a // state.blocksize : -(-b // state.blocksize)],
                shape=torch.Size((rows.stop - top, self.in_features)),
                blocksize=state.blocksize, quant_type="nf4", dtype=dtype,
            )  # fmt: skip
            yield rows, bnb.dequantize_4bit(self.packed[a // 2 : (b + 1) // 2], tile)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.numel() == self.in_features and not x.requires_grad:
            return matmul_4bit(x, self.packed, quant_state=self.state)
        return _NF4Matmul.apply(x, self)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """dx = dy W: the gradient of y (..., out_features) -> that of x (..., in_features)."""
        dx = None
        for rows, w in self.tiles(grad.dtype):
            part = grad[..., rows].flatten(0, -2)
            dx = part @ w if dx is None else dx.addmm_(part, w)
        return dx.view(*grad.shape[:-1], self.in_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, 4-bit NF4"


def check_stored(
    sizes: dict[str, tuple[str, int]], read: Callable[[str], Tensor], shape: tuple[int, int]
) -> dict:
    """ValueError unless these are the parts in which bitsandbytes stores an NF4 weight of that shape, its
    kernels read by these sizes, past the end if they lie. Gives the facts that are no tensors.

    sizes: of each part the dtype (safetensors' name) and how many numbers. "" is the codes; absmax alone, or
    in 8 bits with nested_absmax and nested_quant_map; quant_map, the levels; FACTS, the bytes of a JSON
    object. read: gives one, asked only for the two small ones, once their sizes are known to be small.
    """
    nested = "nested_absmax" in sizes
    n_blocks = -(-shape[0] * shape[1] // BLOCK_SIZE)
    expected = {"": ("U8", (shape[0] * shape[1] + 1) // 2), "quant_map": ("F32", 16)}
    expected["absmax"] = "U8" if nested else "F32", n_blocks
    if nested:
        expected |= {"nested_absmax": ("F32", -(-n_blocks // 256)), "nested_quant_map": ("F32", 256)}
    for name, (dtype, numel) in expected.items():
        if sizes.get(name) != (dtype, numel):
            has = "{} {}".format(*reversed(sizes[name])) if name in sizes else "none"
            raise ValueError(f"its {name or 'packed codes'} should be {numel} {dtype}, has {has}")
    if extra := sizes.keys() - expected.keys() - {FACTS}:
        raise ValueError(f"unknown statistics {min(extra)[:40]!r}")
    dtype, numel = sizes.get(FACTS, ("U8", 0))
    if dtype != "U8" or not 0 < numel <= 4096:  # about a hundred bytes in truth
        raise ValueError(f"its {FACTS} has {numel} {dtype}, not some hundred bytes of JSON")
    try:
        facts = json.loads(bytes(read(FACTS).flatten().tolist()))
    except (ValueError, RecursionError):
        raise ValueError(f"its {FACTS} is no JSON") from None
    wanted = {"quant_type": "nf4", "blocksize": BLOCK_SIZE, "shape": list(shape)}
    wanted |= {"nested_blocksize": 256} if nested else {}
    for name, value in wanted.items():
        if not isinstance(facts, dict) or facts.get(name) != value:
            raise ValueError(f"its {FACTS} does not say {name} {value}")
    offset = facts.get("nested_offset") if nested else 0.0
    if not isinstance(offset, float | int) or not abs(offset) < 1e30:
        raise ValueError(f"its {FACTS} has no usable nested_offset")
    if not torch.allclose(read("quant_map").flatten().cpu(), bnb.get_4bit_type("nf4", device="cpu")):
        raise ValueError("its levels are not NF4's")
    return facts


class _NF4Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer  # the 4-bit weight stays alive; its dequantised form does not
        tops = [F.linear(x, w) for _, w in layer.tiles(x.dtype)]
        return tops[0] if len(tops) == 1 else torch.cat(tops, dim=-1)  # (..., out_features)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.input_gradient(grad), None

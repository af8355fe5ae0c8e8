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
from collections.abc import Iterable, Iterator

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from bitsandbytes import matmul_4bit
from torch import Tensor, nn

BLOCK_SIZE = 64  # numbers that share an absmax: bitsandbytes' default and that of all published checkpoints
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
    def from_stored(cls, packed: Tensor, statistics: dict, shape: tuple[int, int], device) -> "NF4Linear":
        """What `transformers` stored, taken as it is. ValueError or KeyError where it is not NF4 in blocks of
        64 of that shape: bitsandbytes' kernels read by these sizes, past the end if they lie.

        statistics: the tensors beside the weight. absmax alone, or in 8 bits with nested_absmax and
        nested_quant_map; quant_map; and "quant_state.bitsandbytes__nf4", the bytes of a JSON object.
        """
        facts = json.loads(bytes(statistics["quant_state.bitsandbytes__nf4"].tolist()))
        nested = "nested_absmax" in statistics
        n_blocks = -(-shape[0] * shape[1] // BLOCK_SIZE)
        expected = {"": (torch.uint8, (shape[0] * shape[1] + 1) // 2), "quant_map": (torch.float32, 16),
                    "absmax": (torch.uint8 if nested else torch.float32, n_blocks)}  # fmt: skip
        if nested:
            expected["nested_absmax"] = torch.float32, -(-n_blocks // 256)
            expected["nested_quant_map"] = torch.float32, 256
        for name, (dtype, numel) in expected.items():
            tensor = statistics[name] if name else packed
            if (tensor.dtype, tensor.numel()) != (dtype, numel):
                raise ValueError(f"{name or 'it'} has {tensor.numel()} {tensor.dtype}, not {numel} {dtype}")
        for fact, value in {"blocksize": BLOCK_SIZE, "shape": list(shape), "nested_blocksize": 256}.items():
            if (nested or fact != "nested_blocksize") and facts[fact] != value:
                raise ValueError(f"{fact} {facts[fact]}, not {value}")
        code = bnb.get_4bit_type("nf4", device=device)
        if not torch.allclose(statistics["quant_map"].to(device), code):
            raise ValueError("its levels are not NF4's")
        stored = {name: tensor.to(device, copy=True) for name, tensor in statistics.items()}
        state2 = offset = None
        if nested:
            state2 = bnb.QuantState(absmax=stored["nested_absmax"], blocksize=256, dtype=torch.float32,
                                    code=stored["nested_quant_map"])  # fmt: skip
            offset = torch.tensor(float(facts["nested_offset"]), device=device)
        return cls(packed.to(device, copy=True).view(-1, 1), bnb.QuantState(
            absmax=stored["absmax"], shape=torch.Size(shape), code=code, blocksize=BLOCK_SIZE,
            quant_type="nf4", dtype=torch.float32, offset=offset, state2=state2))  # fmt: skip

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

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, 4-bit NF4"


class _NF4Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer  # the 4-bit weight stays alive; its dequantised form does not
        return torch.cat([F.linear(x, w) for _, w in layer.tiles(x.dtype)], dim=-1)  # (..., out_features)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return sum(grad[..., rows] @ w for rows, w in ctx.layer.tiles(grad.dtype)), None  # (..., in_features)

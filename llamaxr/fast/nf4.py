"""NF4, faster: on a CPU the linear of nf4.py is quantised by tables and dequantised tile by tile.

Quantising. bitsandbytes' CPU quantiser searches 15 boundaries per number. Here the upper 16 bits of a number
look up the only two codes that it can get, and one comparison decides. The codes and statistics are
bitsandbytes' own, bit for bit. Measured: loading takes 0.44 to 0.73 of transformers' time, by machine
(`python benchmarks/load_peer.py BASE`).

Forward and backward. W is written out a few rows at a time, into memory that is still in the processor's
cache from the rows before. Writing out all of a 14336 x 4096 weight takes four times as long, most of it
spent on fresh pages (`python benchmarks/load_8b.py FOLDER` times a training step).

On CUDA bitsandbytes quantises, and chooses for each product between its fused kernels and writing out W. Here
W's absmaxes are then unpacked once, which takes 9% more memory and saves two kernels per product.

bitsandbytes is imported at the first use: torch's compiler comes with it, which takes a second.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nf4 import BLOCK_SIZE, LEVELS, NF4Linear

TILE = 2**20  # numbers of a weight that are written out at a time on a CPU: 4 MiB in fp32
CHUNK = 2**18  # numbers that are quantised at a time: what is computed on the way stays in the cache


@dataclass
class Absmax:
    """The absmax of each block of 64 weights.

    codes (n_blocks,): the absmaxes in fp32 or, with double quantisation, 8-bit indices into levels (256,). An
    absmax is then its level times its scale, one of scales (n_blocks / 256,), plus offset (), their mean.
    """

    codes: Tensor
    levels: Tensor | None = None
    scales: Tensor | None = None
    offset: Tensor | None = None

    def values(self) -> Tensor:
        """In fp32: (n_blocks,)."""
        if self.levels is None:
            return self.codes
        scales = self.scales.repeat_interleave(256)[: len(self.codes)]
        return self.levels.index_select(0, self.codes.int()) * scales + self.offset


class TiledNF4Linear(NF4Linear):
    """NF4Linear with the same codes and results. packed (out * in / 2, 1): two codes per byte."""

    def __init__(self, packed: Tensor, absmax: Absmax, shape: tuple[int, int]):
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.packed, self.absmax = packed, Absmax(absmax.values()) if packed.is_cuda else absmax

    @classmethod
    def quantise(cls, weight: Tensor) -> "TiledNF4Linear":
        if weight.is_cuda:
            plain = NF4Linear.quantise(weight)
            levels, scales = plain.state.state2.code, plain.state.state2.absmax
            absmax = Absmax(plain.state.absmax, levels, scales, plain.state.offset)
            return cls(plain.packed, absmax, tuple(weight.shape))
        n = weight.numel()
        packed = torch.empty((n + 1) // 2, 1, dtype=torch.uint8, device=weight.device)
        absmax = torch.empty((n + BLOCK_SIZE - 1) // BLOCK_SIZE, device=weight.device)
        for i, chunk in enumerate(weight.flatten().split(CHUNK)):
            codes, largest = quantise_blocks(chunk.float())
            packed[i * CHUNK // 2 :][: len(codes), 0] = codes
            absmax[i * CHUNK // BLOCK_SIZE :][: len(largest)] = largest
        return cls(packed, quantise_absmax(absmax), tuple(weight.shape))

    @classmethod
    def from_stored(cls, packed: Tensor, statistics: dict[str, Tensor], device) -> "TiledNF4Linear":
        # Copied, so that no memory-mapped file stays open behind a weight that is read again and again.
        parts = {name: part.to(device, copy=True).flatten() for name, part in statistics.items()}
        facts = json.loads(bytes(parts["quant_state.bitsandbytes__nf4"].tolist()))
        absmax = Absmax(parts["absmax"])
        if "nested_absmax" in parts:
            offset = torch.tensor(float(facts["nested_offset"]), device=device)
            absmax = Absmax(parts["absmax"], parts["nested_quant_map"], parts["nested_absmax"], offset)
        return cls(packed.to(device, copy=True).view(-1, 1), absmax, tuple(facts["shape"]))

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The whole weight as it acts, (out_features, in_features); on a CPU without bitsandbytes."""
        if self.packed.is_cuda:
            return next(self.tiles(dtype))[1]
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype)
        for rows, codes, absmax in self.stored_tiles():
            n = (rows.stop - rows.start) * self.in_features
            weight[rows] = dequantise_blocks(codes[:, 0], absmax, n).view(-1, self.in_features)
        return weight

    @property
    def weight(self) -> Tensor:
        return self.dequantise(torch.float32)

    def stored_tiles(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The weight tile by tile: its rows, their codes, and the absmax of their blocks in fp32."""
        absmax = self.absmax.values()
        # A multiple of 64 rows, so that each tile begins with a new block.
        n_rows = self.out_features if self.packed.is_cuda else max(64, TILE // self.in_features // 64 * 64)
        for top in range(0, self.out_features, n_rows):
            rows = slice(top, min(top + n_rows, self.out_features))
            a, b = rows.start * self.in_features, rows.stop * self.in_features
            yield rows, self.packed[a // 2 : (b + 1) // 2], absmax[a // BLOCK_SIZE : -(-b // BLOCK_SIZE)]

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The weight tile by tile: its rows, and their weights (n_rows, in_features). bitsandbytes' kernel
        rounds to dtype: forward and backward both ask for what they compute in, so they round alike."""
        import bitsandbytes.functional as bnb

        for rows, codes, absmax in self.stored_tiles():
            yield rows, bnb.dequantize_4bit(codes, self.state(rows, absmax, dtype))

    def state(self, rows: slice, absmax: Tensor, dtype: torch.dtype):
        """bitsandbytes' QuantState of these rows, to be dequantised in dtype."""
        import bitsandbytes.functional as bnb

        shape = torch.Size((rows.stop - rows.start, self.in_features))
        # None for the levels: the kernels have them, and copying them to a GPU would make the CPU wait.
        return bnb.QuantState(absmax, shape, None, BLOCK_SIZE, "nf4", dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return _TiledMatmul.apply(x, self)
        from bitsandbytes import matmul_4bit

        state = self.state(slice(0, self.out_features), self.absmax.codes, x.dtype)
        return matmul_4bit(x, self.packed, quant_state=state)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """dx = dy W: the gradient of y (..., out_features) -> that of x (..., in_features)."""
        dx = None
        for rows, w in self.tiles(grad.dtype):
            part = grad[..., rows].flatten(0, -2)
            dx = part @ w if dx is None else dx.addmm_(part, w)
        return dx.view(*grad.shape[:-1], self.in_features)


class _TiledMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, layer: TiledNF4Linear) -> Tensor:
        ctx.layer = layer  # the 4-bit weight stays alive; its dequantised form does not
        parts = [F.linear(x, w) for _, w in layer.tiles(x.dtype)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # (..., out_features)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.input_gradient(grad), None


@functools.cache
def code_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """The upper 16 bits of an fp32 number in [-1, 1] -> the code of its nearest level, and the boundary above
    which the next code is nearer: (65536,) each. A search in 15 boundaries takes 8 times as long."""
    halfway = (LEVELS[1:] + LEVELS[:-1]) / 2
    upper = torch.arange(2**16, dtype=torch.int32) << 16
    ends = torch.stack([upper, upper | 0xFFFF]).view(torch.float32).nan_to_num().sort(0).values
    code, last = torch.bucketize(ends, halfway)  # at most one boundary is between the ends
    boundary = torch.where(last > code, halfway[code.clamp(max=14)], torch.inf)
    return code.to(torch.uint8).to(device), boundary.to(device)


def quantise_blocks(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 numbers (n,) -> their codes, two per byte (n / 2,), and absmaxes (n / 64,), each rounded up."""
    blocks = F.pad(numbers, (0, -len(numbers) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    absmax = blocks.abs().amax(1)
    inverse = absmax.reciprocal().nan_to_num(posinf=0.0)  # 0 for a block of zeros
    scaled = (blocks * inverse[:, None]).flatten()
    code, boundary = code_tables(numbers.device)
    upper = (scaled.view(torch.int32) >> 16) & 0xFFFF
    codes = code.index_select(0, upper) + (scaled > boundary.index_select(0, upper))
    high, low = codes.view(-1, 2).unbind(1)
    return ((high << 4) | low)[: (len(numbers) + 1) // 2], absmax


def dequantise_blocks(codes: Tensor, absmax: Tensor, n: int) -> Tensor:
    """The inverse: codes (n / 2,), absmaxes (n / 64,) -> n numbers in fp32."""
    levels = LEVELS.to(codes.device)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)  # (256, 2): of each byte
    pairs = pairs.view(torch.float64).flatten()  # two 32-bit numbers move as one 64-bit number
    numbers = pairs.index_select(0, codes.int()).view(torch.float32)
    padded = F.pad(numbers, (0, len(absmax) * BLOCK_SIZE - len(numbers)))
    return (padded.view(-1, BLOCK_SIZE) * absmax[:, None]).flatten()[:n]


@functools.cache
def eight_bit_levels() -> Tensor:
    """What the 256 codes of an absmax stand for, in [-1, 1]: seven powers of ten, each divided twice as
    finely as the next smaller one (the dynamic data type of Dettmers 2016)."""
    levels = [torch.tensor([0.0, 1.0])]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2**i + 1)
        middles = 10 ** (i - 6) * (bounds[1:] + bounds[:-1]) / 2
        levels += [middles, -middles]
    return torch.cat(levels).sort().values


def quantise_absmax(absmax: Tensor) -> Absmax:
    """Double quantisation: absmaxes (n_blocks,) in fp32 -> in 8 bits."""
    # A copy each: torch up to 2.9 does not compile a block whose layers share such a tensor.
    levels, offset = eight_bit_levels().to(absmax.device, copy=True), absmax.mean()
    blocks = F.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
    scales = blocks.abs().amax(1)
    scaled = (blocks * scales.reciprocal()[:, None]).nan_to_num(nan=-1.0)  # code 0 for a block of zeros
    # As bitsandbytes' CPU kernel: to one of 2^16 even steps, and from there to the nearest level.
    steps = ((scaled + 1) * 32767.5 + 0.5).floor() / 32767.5 - 1
    codes = torch.bucketize(steps, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return Absmax(codes.flatten()[: len(absmax)], levels, scales, offset)

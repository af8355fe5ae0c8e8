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
The format is bitsandbytes' own, bit for bit, as `transformers` writes it with `load_in_4bit`. Quantising and
its inverse stand here in plain PyTorch. In forward and backward bitsandbytes' kernel does the inverse, to the
same bits in less time; it is imported there and not before, since torch's compiler comes with it.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_SIZE = 64  # numbers that share an absmax: bitsandbytes' default and that of all published checkpoints
FACTS = "quant_state.bitsandbytes__nf4"  # the part of a stored weight that holds its sizes, as JSON
_NAMES = {torch.uint8: "U8", torch.float32: "F32"}  # safetensors' names of the dtypes that the parts have
TILE = 2**20  # numbers of a weight that exist at once on a CPU: 4 MiB in fp32
QUANTISE_AT_ONCE = 2**18  # numbers: what is computed of them on the way stays in the cache
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


@dataclass
class State:
    """How the codes of a weight are to be read.

    absmax (n_blocks,): fp32, or with double quantisation codes of 8 bits; then levels (256,) are what these
    stand for, scales (n_blocks / 256,) the largest magnitude of 256 of them, offset their mean.
    """

    absmax: Tensor
    levels: Tensor | None = None
    scales: Tensor | None = None
    offset: Tensor | None = None

    def absmaxes(self) -> Tensor:
        """The absmax of each block in fp32, (n_blocks,)."""
        if self.levels is None:
            return self.absmax
        scales = self.scales.repeat_interleave(256)[: len(self.absmax)]
        return self.levels.index_select(0, self.absmax.int()) * scales + self.offset


@functools.cache
def guesses(device: torch.device) -> tuple[Tensor, Tensor]:
    """The upper 16 bits of an fp32 number in [-1, 1] -> the code of its nearest level, and the boundary
    beyond which it is the next one. Two tables of 65536: a search in 15 boundaries takes 8 times as long."""
    halfway = (LEVELS[1:] + LEVELS[:-1]) / 2
    upper = torch.arange(2**16, dtype=torch.int32) << 16
    ends = torch.stack([upper, upper | 0xFFFF]).view(torch.float32).nan_to_num().sort(0).values
    code, last = torch.bucketize(ends, halfway)  # at most one boundary lies between the ends
    boundary = torch.where(last > code, halfway[code.clamp(max=14)], torch.inf)
    return code.to(torch.uint8).to(device), boundary.to(device)


def quantise_blocks(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (n,) in fp32 -> their codes, two a byte (n / 2,), and absmaxes (n / 64,), each rounded up."""
    blocks = F.pad(numbers, (0, -len(numbers) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    absmax = blocks.abs().amax(1)
    inverse = absmax.reciprocal().nan_to_num(posinf=0.0)  # of a block of zeros
    scaled = (blocks * inverse[:, None]).flatten()
    code, boundary = guesses(numbers.device)
    upper = (scaled.view(torch.int32) >> 16) & 0xFFFF
    codes = code.index_select(0, upper) + (scaled > boundary.index_select(0, upper))
    high, low = codes.view(-1, 2).unbind(1)
    return ((high << 4) | low)[: (len(numbers) + 1) // 2], absmax


def dequantise_blocks(codes: Tensor, absmax: Tensor, n: int) -> Tensor:
    """The inverse: codes (n / 2,), absmaxes (n / 64,) -> n numbers in fp32."""
    levels = LEVELS.to(codes.device)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)  # (256, 2): of each byte
    pairs = pairs.view(torch.float64).flatten()  # two numbers of 32 bits move as one of 64
    numbers = pairs.index_select(0, codes.int()).view(torch.float32)
    whole = F.pad(numbers, (0, len(absmax) * BLOCK_SIZE - len(numbers)))
    return (whole.view(-1, BLOCK_SIZE) * absmax[:, None]).flatten()[:n]


@functools.cache
def eight_bit_levels() -> Tensor:
    """What the 256 codes of an absmax stand for, in [-1, 1]: seven powers of ten, each twice as finely
    divided as the smaller one (the dynamic data type of Dettmers 2016)."""
    levels = [torch.tensor([0.0, 1.0])]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2**i + 1)
        middles = 10 ** (i - 6) * (bounds[1:] + bounds[:-1]) / 2
        levels += [middles, -middles]
    return torch.cat(levels).sort().values


def quantise_absmaxes(absmax: Tensor) -> State:
    """Double quantisation: absmaxes (n_blocks,) in fp32 -> their 8-bit State."""
    levels, offset = eight_bit_levels().to(absmax.device), absmax.mean()
    blocks = F.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
    scales = blocks.abs().amax(1)
    scaled = (blocks * scales.reciprocal()[:, None]).nan_to_num(nan=-1.0)  # of a block of zeros, code 0
    # As bitsandbytes' CPU kernel does: to one of 2^16 even steps, and from there to the nearest level.
    steps = ((scaled + 1) * 32767.5 + 0.5).floor() / 32767.5 - 1
    codes = torch.bucketize(steps, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return State(codes.flatten()[: len(absmax)], levels, scales, offset)


def rows_a_tile(in_features: int) -> int:
    """Rows of a weight that make a tile: a multiple of 64, so that each tile begins with a new block."""
    return max(64, TILE // in_features // 64 * 64)


class NF4Linear(nn.Module):
    """y = x W^T with W frozen in NF4. x (..., in_features) -> y (..., out_features), in x's dtype."""

    def __init__(self, packed: Tensor, state: State, shape: tuple[int, int]):
        super().__init__()
        self.out_features, self.in_features = shape
        self.packed, self.state = packed, state  # (out * in / 2, 1) uint8, and its absmaxes

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
        for part in (part for tile in tiles for part in tile.to(device).flatten().split(QUANTISE_AT_ONCE)):
            codes, of_part = quantise_blocks(part.float())
            packed[at // 2 : at // 2 + len(codes), 0] = codes
            absmax[at // BLOCK_SIZE : at // BLOCK_SIZE + len(of_part)] = of_part
            at += part.numel()
        return cls(packed, quantise_absmaxes(absmax), shape)

    @classmethod
    def from_stored(cls, packed: Tensor, parts: dict[str, Tensor], shape: tuple[int, int], device):
        """What bitsandbytes stored, taken as it is, to the bit. Raises check_stored's ValueError."""
        tensors = {"": packed, **parts}
        sizes = {name: (_NAMES.get(t.dtype, str(t.dtype)), t.numel()) for name, t in tensors.items()}
        facts = check_stored(sizes, tensors.__getitem__, shape)
        stored = {name: t.to(device, copy=True).flatten() for name, t in tensors.items()}
        packed = stored[""].view(-1, 1)
        if "nested_absmax" not in stored:
            return cls(packed, State(stored["absmax"]), shape)
        offset = torch.tensor(float(facts["nested_offset"]), device=device)
        state = State(stored["absmax"], stored["nested_quant_map"], stored["nested_absmax"], offset)
        return cls(packed, state, shape)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The weight as it acts, written out whole: (out_features, in_features)."""
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.packed.device)
        for rows, codes, absmax in self.stored_tiles():
            n = (rows.stop - rows.start) * self.in_features
            weight[rows] = dequantise_blocks(codes[:, 0], absmax, n).view(-1, self.in_features)
        return weight

    @property
    def weight(self) -> Tensor:
        """The same in fp32, under the name that any linear has for it."""
        return self.dequantise(torch.float32)

    def stored_tiles(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The weight tile by tile: its rows, their codes, and the absmaxes of their blocks in fp32."""
        absmax = self.state.absmaxes()
        n_rows = self.out_features if self.packed.is_cuda else rows_a_tile(self.in_features)
        for top in range(0, self.out_features, n_rows):
            rows = slice(top, min(top + n_rows, self.out_features))
            a, b = rows.start * self.in_features, rows.stop * self.in_features
            yield rows, self.packed[a // 2 : (b + 1) // 2], absmax[a // BLOCK_SIZE : -(-b // BLOCK_SIZE)]

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The weight as it acts, tile by tile: its rows, and (n_rows, in_features), by bitsandbytes' kernel.
        The dtype decides what the lookup rounds to; forward and backward must round alike: both ask for what
        they compute in."""
        import bitsandbytes.functional as bnb

        if self.packed.is_cuda:
            self.for_kernels.dtype = dtype
            yield slice(0, self.out_features), bnb.dequantize_4bit(self.packed, self.for_kernels)
            return
        for rows, codes, absmax in self.stored_tiles():
            shape = torch.Size((rows.stop - rows.start, self.in_features))
            state = bnb.QuantState(absmax, shape, blocksize=BLOCK_SIZE, quant_type="nf4", dtype=dtype)
            yield rows, bnb.dequantize_4bit(codes, state)

    @functools.cached_property
    def for_kernels(self):
        """The state in the form that bitsandbytes' kernels for CUDA take whole."""
        from bitsandbytes.functional import QuantState

        state, nested, shape = self.state, None, torch.Size((self.out_features, self.in_features))
        if state.levels is not None:
            nested = QuantState(state.scales, code=state.levels, blocksize=256, dtype=torch.float32)
        levels = LEVELS.to(self.packed.device)
        return QuantState(state.absmax, shape, levels, BLOCK_SIZE, "nf4", torch.float32, state.offset, nested)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.numel() == self.in_features and not x.requires_grad:
            from bitsandbytes import matmul_4bit

            return matmul_4bit(x, self.packed, quant_state=self.for_kernels)
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
    if not torch.allclose(read("quant_map").flatten().cpu(), LEVELS):
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

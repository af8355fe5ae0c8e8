"""A frozen linear layer in NF4: weights in 4 bits, all else as usual (QLoRA, Dettmers et al. 2023).

LLaMA 3.1 8B has 6.98 billion weights in its blocks' linears: 13 GiB in bf16, 3.4 GiB in NF4.

How a weight is stored. The matrix, row after row, is cut into blocks of 64 numbers. A block stores its
largest magnitude ("absmax"), and each number, divided by it, becomes the nearest of 16 levels in [-1, 1]. The
levels are quantiles of a normal distribution (hence NormalFloat), because trained weights are nearly normal:
every level is then used about equally often. One level is exactly 0. Two 4-bit codes share a byte.

Double quantisation. An fp32 absmax per block would cost 0.5 bit per weight. So the absmaxes, less their mean,
are stored in 8 bits, with an fp32 scale per 256 of them: 4 + 8/64 + 32/(64*256) = 4.127 bits per weight.

Precision is lost once, at loading: the base never changes. Dequantising always gives the same bits, so

    forward    y  = x W^T        W is dequantised, used and dropped
    backward   dx = dy W         W is dequantised again rather than kept in memory in between
    (no dW: the base is frozen; what learns is beside it, in lora.py)

bitsandbytes does all of this. On CUDA, an x of few rows takes its fused kernel, which never writes W out.
`dequantise` spells out what its kernels compute, and a test holds the two equal bit for bit.
"""

import torch
from torch import Tensor, nn

BLOCK_SIZE = 64  # bitsandbytes' default, and that of all published checkpoints
LEVELS = torch.tensor([  # as QLoRA's appendix lists them
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


class NF4Linear(nn.Module):
    """y = x W^T with W frozen in NF4: (..., in_features) -> (..., out_features), in x's dtype.

    packed (out * in / 2, 1): the codes. state: bitsandbytes' QuantState. .to() and state_dict() see neither.
    """

    def __init__(self, packed: Tensor, state):
        super().__init__()
        self.packed, self.state = packed, state
        self.out_features, self.in_features = state.shape

    @classmethod
    def quantise(cls, weight: Tensor) -> "NF4Linear":
        """Quantise a weight (out_features, in_features) on its device, in fp32, so that CPU and GPU agree."""
        import bitsandbytes.functional as bnb  # not at the top: torch's compiler comes with it, a second

        return cls(*bnb.quantize_nf4(weight.float(), blocksize=BLOCK_SIZE, compress_statistics=True))

    @classmethod
    def from_stored(cls, packed: Tensor, statistics: dict[str, Tensor], device) -> "NF4Linear":
        """A weight that bitsandbytes stored, to the bit. files/nf4_stored.py has checked its parts."""
        import bitsandbytes.functional as bnb

        return cls(packed.to(device).view(-1, 1), bnb.QuantState.from_dict(statistics, device))

    @property
    def weight(self) -> Tensor:
        """The weight as it acts, in fp32: (out_features, in_features)."""
        import bitsandbytes.functional as bnb

        self.state.dtype = torch.float32
        return bnb.dequantize_4bit(self.packed, self.state)

    def forward(self, x: Tensor) -> Tensor:
        from bitsandbytes import matmul_4bit

        self.state.dtype = x.dtype  # or backward would round W to the dtype that it was quantised from
        return matmul_4bit(x, self.packed, quant_state=self.state)


def dequantise(packed: Tensor, absmax: Tensor, code8: Tensor, scales: Tensor, offset: Tensor) -> Tensor:
    """The formula: n weights. packed (n / 2,): two codes per byte. absmax (n / 64,): 8-bit indices into
    code8 (256,), whose entries are multiplied by scales (n / 64 / 256, rounded up) and added to offset ()."""
    absmax = code8[absmax.int()] * scales.repeat_interleave(256)[: len(absmax)] + offset  # (n / 64,)
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten().int()  # (n,)
    return (LEVELS[codes].view(-1, BLOCK_SIZE) * absmax[:, None]).flatten()

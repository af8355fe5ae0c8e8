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

On CUDA one token at a time takes bitsandbytes' fused kernel, which never writes W out at all.
The format is bitsandbytes' own, bit for bit, as `transformers` writes it with `load_in_4bit`.
"""

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from bitsandbytes import matmul_4bit
from torch import Tensor, nn

BLOCK_SIZE = 64  # numbers that share an absmax: bitsandbytes' default and that of all published checkpoints


class NF4Linear(nn.Module):
    """y = x W^T with W frozen in NF4. x (..., in_features) -> y (..., out_features), in x's dtype."""

    def __init__(self, packed: Tensor, state: bnb.QuantState):
        super().__init__()
        self.out_features, self.in_features = state.shape
        self.packed, self.state = packed, state  # (out * in / 2, 1) uint8, and the absmaxes in two levels

    @classmethod
    def quantise(cls, weight: Tensor) -> "NF4Linear":
        """Quantise a weight (out_features, in_features) of any float dtype, on the device where it lies.

        The fp32 form is what is quantised; dequantised weights come out in the dtype of the input given.
        """
        packed, state = bnb.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK_SIZE, quant_type="nf4", compress_statistics=True
        )
        return cls(packed, state)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The weight as it acts, (out_features, in_features)."""
        # The state's dtype decides what the lookup rounds to. Forward and backward must round alike,
        # so both ask for the dtype they compute in, never for the one the checkpoint happened to have.
        self.state.dtype = dtype
        return bnb.dequantize_4bit(self.packed, self.state)

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
        return F.linear(x, layer.dequantise(x.dtype))  # (..., out_features)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantise(grad.dtype), None  # (..., in_features)

"""Attaching the fast form to train with: modules get faster classes and keep their parameters.

Each fast class is a subclass with another forward and no parameters of its own. So replacing a module is
changing its class: parameters, their names and the optimiser's references to them stay. packing.py and
gradients.py say what each form does and what it is worth.

`recompute_blocks` and `compile_blocks` wrap the blocks of either form, for training only.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..llama import Attention, FeedForward, Llama, RMSNorm
from ..lora import LoRALinear
from ..model import LlamaXR
from .gradients import FeedForwardByHand, LoRALinearInPlace, RMSNormByHand
from .packing import PackedAttention, PackedLlama, PackedLlamaXR

FASTER = {
    RMSNorm: RMSNormByHand,
    FeedForward: FeedForwardByHand,
    LoRALinear: LoRALinearInPlace,
    Attention: PackedAttention,
    Llama: PackedLlama,
    LlamaXR: PackedLlamaXR,
}


def for_training(model: LlamaXR) -> None:
    """Make the model's modules the faster ones, in place: the same parameters, losses and gradients. The
    language model must be frozen but for its LoRA, as add_lora leaves it."""
    assert not model.llama.head_weight.requires_grad, "the chunked loss has no gradient for the head"
    for module in model.modules():
        module.__class__ = FASTER.get(type(module), type(module))


def recompute_blocks(llama: Llama) -> None:
    """Keep only each block's input, and compute the block again in the backward pass: slower, and far less
    memory (gradient checkpointing, Chen et al. 2016)."""
    for block in llama.layers:
        block.forward = _when_training(partial(checkpoint, block.forward, use_reentrant=False), block.forward)


def compile_blocks(llama: Llama) -> None:
    """Run the blocks through torch.compile, for batches of any length."""
    for block in llama.layers:
        block.forward = _when_training(torch.compile(block.forward, dynamic=True), block.forward)


def _when_training(special: Callable, plain: Callable) -> Callable:
    """Use `plain` without gradients: generation would recompile for each token. (x.requires_grad is the wrong
    test: with bridge "scores" the first block's input does not require it, but its LoRA learns.)"""

    def forward(x: Tensor, *rest) -> Tensor:
        return (special if torch.is_grad_enabled() else plain)(x, *rest)

    return forward

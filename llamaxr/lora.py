"""LoRA: what learns in a frozen language model (Hu et al. 2021).

A linear layer y = W x keeps its W. Beside it stand two thin matrices, A (r, in) and B (out, r), and

    y = W x + (alpha / r) B A x

B starts at zero, so the model starts as the one that was loaded. With r = 16 on all seven linears of
LLaMA 3.1 8B's blocks that is 41,943,040 numbers to train instead of 8 billion: the paper's setting. The layer
wraps any module with in_features and out_features; how that holds its weight is not its business.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """base(x) + lora_alpha / rank * x A^T B^T. A and B stay in fp32: bf16 would lose their small steps."""

    def __init__(self, base: nn.Module, rank: int, lora_alpha: float, device=None):
        super().__init__()
        self.base, self.scaling = base, lora_alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft does: uniform within 1 / sqrt(in)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_A.to(x.dtype))  # (..., rank)
        return self.base(x) + F.linear(low, self.lora_B.to(x.dtype)) * self.scaling  # (..., out_features)

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, (out_features, in_features): merging is W + delta."""
        return self.lora_B @ self.lora_A * self.scaling


def add_lora(model: nn.Module, rank: int, lora_alpha: float, targets: tuple[str, ...] = TARGETS, device=None):
    """Freeze all of the model and wrap each linear named in targets; give the wrapped layers by their name.

    A's initial values come from torch's global generator, in the order of the model's modules.
    """
    model.requires_grad_(False)
    wrapped = {}
    for name, parent in list(model.named_modules()):
        for child_name, child in list(parent.named_children()):
            if child_name in targets and not isinstance(parent, LoRALinear):
                layer = LoRALinear(child, rank, lora_alpha, device)
                setattr(parent, child_name, layer)
                wrapped[f"{name}.{child_name}".lstrip(".")] = layer
    return wrapped

"""LoRA: what learns in a frozen language model (Hu et al. 2021).

A linear layer y = W x keeps its W. Beside it are two thin matrices, A (rank, in) and B (out, rank):

    y = W x + (alpha / rank) B A x

B starts at zero, so training starts from the loaded model. With rank 16 on all seven linears of each block of
LLaMA 3.1 8B, 41,943,040 parameters are trained instead of 8 billion: the paper's setting.
"""

import math

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """base(x) + (alpha / rank) x A^T B^T: (..., in_features) -> (..., out_features). `base` is any linear.

    A and B stay in fp32: bf16 would round their small updates away.
    """

    def __init__(self, base: nn.Module, rank: int, lora_alpha: float, device=None):
        super().__init__()
        self.base, self.scaling = base, lora_alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft: uniform within 1 / sqrt(in)

    def forward(self, x: Tensor) -> Tensor:
        down = x @ self.lora_A.T.to(x.dtype) * self.scaling  # (..., rank)
        return self.base(x) + down @ self.lora_B.T.to(x.dtype)  # (..., out_features)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """W + (alpha / rank) B A in fp32, (out, in): the weight of a single equivalent linear."""
        return self.base.weight.float() + self.lora_B @ self.lora_A * self.scaling


def add_lora(model: nn.Module, rank: int, lora_alpha: float, device=None) -> None:
    """Freeze the whole model, then wrap each linear named in TARGETS. A's initial values come from torch's
    global generator, in the order of the model's modules."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in TARGETS:
                setattr(parent, name, LoRALinear(child, rank, lora_alpha, device))

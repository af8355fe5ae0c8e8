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
        return _LoRAMatmul.apply(x, self.lora_A, self.lora_B, self)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of the one linear that does the same, W + (alpha / r) B A, in fp32: (out, in)."""
        return self.base.weight.float() + self.lora_B @ self.lora_A * self.scaling


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


class _LoRAMatmul(torch.autograd.Function):
    """LoRALinear's forward, with the gradients to x, A and B (W is frozen). They are autograd's own; by hand
    both sums, y = W x + ... and dx = W^T dy + ..., are added up in place instead of written out anew."""

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, b: Tensor, layer: LoRALinear) -> Tensor:
        low = F.linear(x, a.to(x.dtype)).mul_(layer.scaling)  # (..., rank), where scaling is cheap
        y = layer.base(x)  # (..., out_features)
        y.flatten(0, -2).addmm_(low.flatten(0, -2), b.to(x.dtype).T)
        ctx.save_for_backward(x, a, b, low)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, a, b, low = ctx.saved_tensors
        base, rows = ctx.layer.base, grad.flatten(0, -2)  # (n, out_features)
        of_low = (rows @ b.to(grad.dtype)).mul_(ctx.layer.scaling)  # (n, rank)
        of_a, of_b = of_low.T @ x.flatten(0, -2), rows.T @ low.flatten(0, -2)
        of_x = None
        if ctx.needs_input_grad[0]:
            # a base that holds its weight in another form says itself what its input's gradient is
            through = base.input_gradient if hasattr(base, "input_gradient") else lambda g: g @ base.weight
            of_x = through(grad)
            of_x.flatten(0, -2).addmm_(of_low, a.to(grad.dtype))
        return of_x, of_a.to(a.dtype), of_b.to(b.dtype), None

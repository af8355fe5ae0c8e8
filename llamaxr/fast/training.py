"""Gradients by hand: four places where what autograd would keep, or write out, is needless.

Autograd keeps what each elementary operation wants for its own backward pass: of silu(gate) * up four
tensors, though gate and up tell all. For each function here the same numbers come from fewer kept ones;
what is cheap is computed again. The plain form stands beside its use in llama.py and model.py, and the
tests hold the two together.

    function        keeps                     autograd on the plain form would keep
    rms_norm        x, a number a position    x, x^2's root, x normalised
    rotate          cos, sin                  the same, but writes five tensors out each way
    swiglu          gate, up                  gate, up, silu(gate)
    cross_entropy   the hidden's gradient     logits in fp32, their softmax

Training uses them (`wanted`); without a gradient to come the plain forms are as good, and so they are for
torch.compile, which decides by itself what to keep and writes nothing out that it can compute in passing.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 512  # positions whose logits exist at once: 100 MB for a vocabulary of 49,152


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        rstd = mean_square.add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, rstd = ctx.saved_tensors
        wide, of_weight = x.float(), None
        if ctx.needs_input_grad[1]:
            of_weight = (grad * (wide * rstd).to(x.dtype)).flatten(0, -2).sum(0)
        # With n = x rstd and g = grad * weight: dx = rstd (g - n mean(g n)).
        g = (grad * weight).float()
        along = (g * wide).mean(-1, keepdim=True).mul_(rstd.pow(3))
        return g.mul_(rstd).addcmul_(wide, along, value=-1).to(x.dtype), of_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None  # a rotation's transpose turns back


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float()
    y = torch.empty_like(wide)  # in x's order of memory
    for half, other, sign in ((0, 1, -1), (1, 0, 1)):
        part = y.chunk(2, dim=-1)[half]
        torch.mul(wide.chunk(2, dim=-1)[half], cos, out=part)
        part.addcmul_(wide.chunk(2, dim=-1)[other], sin, value=sign)
    return y.to(x.dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor):
        gate, up = ctx.saved_tensors
        of_up, of_gate = F.silu(gate).mul_(grad), grad * up
        return torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate), of_up


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, targets: Tensor, logits: Callable, backward: Callable) -> Tensor:
        total, grads = hidden.new_zeros((), dtype=torch.float32), []
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            scores = logits(h).float()  # (positions, vocab)
            highest, of_target = scores.amax(-1, keepdim=True), scores.gather(1, t[:, None])
            p = scores.sub_(highest).exp_()  # in the scores' place: to be the softmax
            sums = p.sum(-1, keepdim=True)
            total += (highest + sums.log() - of_target).sum()
            if ctx.needs_input_grad[0]:
                p.div_(sums)  # less 1 at the target it is the gradient of the scores
                p.scatter_add_(1, t[:, None], p.new_full((len(t), 1), -1.0))
                grads.append(backward(p.to(h.dtype)))
        ctx.save_for_backward(*([torch.cat(grads)] if grads else []))
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * grad.to(of_hidden.dtype), None, None, None


def wanted(x: Tensor) -> bool:
    """Whether the first three are better here than their plain forms."""
    return x.requires_grad and not torch.compiler.is_compiling()


rms_norm, rotate, swiglu = _RMSNorm.apply, _Rotate.apply, _SwiGLU.apply


def cross_entropy(hidden: Tensor, targets: Tensor, logits: Callable, backward: Callable) -> Tensor:
    """Cross-entropy of logits(hidden) at targets, summed; the hidden's gradient is computed while a chunk's
    logits are there. hidden (n, dim), targets (n,). backward: from the logits' gradient (positions, vocab) to
    the hidden's (positions, dim)."""
    return _CrossEntropy.apply(hidden, targets, logits, backward)

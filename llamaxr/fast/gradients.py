"""Gradients by hand: five places where autograd would keep, or write out, more than is needed.

Autograd keeps what each elementary operation needs for its own backward pass: for silu(gate) * up also
silu(gate), although gate determines it. Each function here computes the same gradients from fewer tensors,
and recomputes what is cheap.

    function        keeps                      autograd on the plain form would keep
    rms_norm (CPU)  x, a number per position   x, x^2's root, x normalised
    rotate          cos, sin                   the same, but writes five tensors out each way
    swiglu          gate, up                   gate, up, silu(gate)
    lora            x, x A^T                   the same, but writes W x + B A x out anew
    cross_entropy   the hidden's gradient      logits in fp32, their softmax

Measured: they save memory, not time. With packing, a training step of SmolLM2-135M takes half of the plain
form's memory (`python benchmarks/train_peer.py BASE annotation.json --plain`). training.py attaches them.
Without gradients, rms_norm, rotate and swiglu take the plain form; under torch.compile, which decides by
itself what to keep, all but the loss do.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import llama
from ..llama import FeedForward, RMSNorm
from ..lora import LoRALinear

CHUNK = 512  # positions whose logits exist at the same time: 100 MB for a vocabulary of 49,152
HEAD_NUMBERS = 2**20  # numbers of a 16-bit vocabulary projection that a CPU widens to fp32 at a time
CUDA_HEAD_NUMBERS = 2**27  # the same on CUDA, where each piece is several kernels: half a GiB


def by_hand(x: Tensor) -> bool:
    """Whether the functions by hand are better here than the plain forms."""
    return x.requires_grad and not torch.compiler.is_compiling()


class RMSNormByHand(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel each way, which keeps as little
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return rms_norm(x, self.weight, self.eps) if by_hand(x) else super().forward(x)


class FeedForwardByHand(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        if not by_hand(x):
            return super().forward(x)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))  # through (..., ffn_dim)


class LoRALinearInPlace(LoRALinear):
    copies: tuple[Tensor, ...] = ()  # A and B in what the model computes in, inside `adapters_in`

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # it avoids the copy by itself, and rejects this Function
            return super().forward(x)
        return _LoRA.apply(x, self.lora_A, self.lora_B, self)


@contextlib.contextmanager
def adapters_in(dtype: torch.dtype, model: nn.Module) -> Iterator[None]:
    """Inside, all adapters have copies of A and B in dtype, made by one call instead of one for each."""
    layers = [module for module in model.modules() if isinstance(module, LoRALinearInPlace)]
    layers = [layer for layer in layers if layer.lora_A.dtype != dtype]
    with torch.no_grad():
        originals = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
        copies = [torch.empty_like(p, dtype=dtype) for p in originals]
        if copies:
            torch._foreach_copy_(copies, originals)
    for i, layer in enumerate(layers):
        layer.copies = tuple(copies[2 * i : 2 * i + 2])
    try:
        yield
    finally:
        for layer in layers:
            layer.copies = ()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """llama.rotate."""
    return _Rotate.apply(x, cos, sin) if by_hand(x) else llama.rotate(x, cos, sin)


def cross_entropy(hidden: Tensor, targets: Tensor, head: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the logits hidden head^T at targets, times weights (None: 1), summed. hidden (n, dim),
    targets and weights (n,), and the frozen head (vocab, dim). The gradient of hidden is computed while the
    logits of a chunk of positions exist."""
    if weights is None:
        weights = torch.ones_like(targets, dtype=torch.float32)
    return _CrossEntropy.apply(hidden, targets, head, weights)


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
        wide, weight_grad = x.float(), None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * (wide * rstd).to(x.dtype)).flatten(0, -2).sum(0)
        # With n = x rstd and g = grad * weight: dx = rstd (g - n mean(g n)).
        g = (grad * weight).float()
        along = (g * wide).mean(-1, keepdim=True).mul_(rstd.pow(3))
        return g.mul_(rstd).addcmul_(wide, along, value=-1).to(x.dtype), weight_grad, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None  # the transpose of a rotation rotates back


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float()
    y = torch.empty_like(wide)  # in x's memory format
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
        up_grad, gate_grad = F.silu(gate).mul_(grad), grad * up
        return torch.ops.aten.silu_backward.grad_input(gate_grad, gate, grad_input=gate_grad), up_grad


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, targets: Tensor, head: Tensor, weights: Tensor) -> Tensor:
        total, grads = hidden.new_zeros((), dtype=torch.float32), []
        for h, t, w in zip(*(x.split(CHUNK) for x in (hidden, targets, weights[:, None])), strict=True):
            scores = _logits(h, head).float()  # (positions, vocab)
            highest, at_target = scores.amax(-1, keepdim=True), scores.gather(1, t[:, None])
            p = scores.sub_(highest).exp_()  # becomes the softmax, in the memory of the scores
            sums = p.sum(-1, keepdim=True)
            total += (w * (highest + sums.log() - at_target)).sum()
            if ctx.needs_input_grad[0]:
                p.div_(sums)  # the softmax, less 1 at the target, is the gradient of the scores
                p.scatter_add_(1, t[:, None], p.new_full((len(t), 1), -1.0))
                grads.append(_logits_backward(p.to(h.dtype), head).mul_(w))
        ctx.save_for_backward(*([torch.cat(grads)] if grads else []))
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        (hidden_grad,) = ctx.saved_tensors
        # In fp32: one over the number of targets, which grad usually is, would be off by up to 0.4% in bf16.
        return (hidden_grad.float() * grad).to(hidden_grad.dtype), None, None, None


rms_norm, swiglu = _RMSNorm.apply, _SwiGLU.apply


class _LoRA(torch.autograd.Function):
    """LoRALinear's forward, with the gradients to x, A and B (W is frozen). Both sums, y = W x + ... and
    dx = W^T dy + ..., are added in place."""

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, b: Tensor, layer: LoRALinear) -> Tensor:
        a, b = layer.copies or (a.to(x.dtype), b.to(x.dtype))
        low = F.linear(x, a)  # (..., rank)
        y = layer.base(x)  # (..., out_features)
        y.flatten(0, -2).addmm_(low.flatten(0, -2), b.T, alpha=layer.scaling)
        ctx.save_for_backward(x, a, b, low)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, a, b, low = ctx.saved_tensors
        base, scaling = ctx.layer.base, ctx.layer.scaling
        rows = grad.flatten(0, -2)  # (n, out_features)
        low_grad = rows @ b  # (n, rank)
        # beta=0: the first argument is not read. Scaling inside of a product takes no call of its own.
        a_grad = torch.addmm(a, low_grad.T, x.flatten(0, -2), beta=0, alpha=scaling)
        b_grad = torch.addmm(b, rows.T, low.flatten(0, -2), beta=0, alpha=scaling)
        x_grad = None
        if ctx.needs_input_grad[0]:
            if hasattr(base, "input_gradient"):  # nf4.py here: tile by tile
                x_grad = base.input_gradient(grad)
            else:
                x_grad = grad @ base.weight.to(grad.dtype)
            x_grad.flatten(0, -2).addmm_(low_grad, a, alpha=scaling)
        return x_grad, a_grad.to(ctx.layer.lora_A.dtype), b_grad.to(ctx.layer.lora_B.dtype), None


def _head_pieces(head: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The vocabulary projection in dtype, piece by piece: its rows and (n_rows, dim). What is held in 16 bits
    is widened into one buffer, which the next piece overwrites: fresh memory costs more than widening."""
    if head.dtype == dtype:
        yield slice(0, len(head)), head
        return
    n_rows = max(1, (CUDA_HEAD_NUMBERS if head.is_cuda else HEAD_NUMBERS) // head.shape[1])
    buffer = head.new_empty(n_rows, head.shape[1], dtype=dtype)
    for top in range(0, len(head), n_rows):
        piece = head[top : top + n_rows]
        yield slice(top, top + len(piece)), buffer[: len(piece)].copy_(piece)


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    logits = hidden.new_empty(len(hidden), len(head))
    for rows, w in _head_pieces(head, hidden.dtype):
        logits[:, rows] = F.linear(hidden, w)
    return logits


def _logits_backward(grad: Tensor, head: Tensor) -> Tensor:
    hidden_grad = grad.new_zeros(len(grad), head.shape[1])
    for rows, w in _head_pieces(head, grad.dtype):
        hidden_grad.addmm_(grad[:, rows], w)
    return hidden_grad

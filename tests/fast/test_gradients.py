"""Each function by hand against its plain form under autograd: values and gradients, in fp32 and in bf16."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llamaxr.fast import gradients
from llamaxr.fast.gradients import LoRALinearInPlace
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.nf4 import NF4Linear

# bf16 keeps 8 bits, and the plain form rounds between its steps
CLOSE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.06, "rtol": 0.03}}


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def agree(fast, plain, *inputs):
    """Both functions of the same inputs: their values, and the gradients of all inputs that want one."""
    outputs, grads = [], []
    for function in (fast, plain):
        y = function(*inputs)
        wanted = [x for x in inputs if x.requires_grad]
        grads.append(torch.autograd.grad(y, wanted, random(*y.shape, dtype=y.dtype, seed=9)))
        outputs.append(y)
    assert outputs[0].dtype == outputs[1].dtype
    assert torch.allclose(*outputs, **CLOSE[outputs[0].dtype])
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == theirs.dtype and torch.allclose(ours, theirs, **CLOSE[ours.dtype])


@pytest.mark.parametrize("dtype", CLOSE)
def test_rms_norm_is_its_formula_for_the_weight_too(dtype):
    def plain(x, weight):
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-2)).to(x.dtype)

    x, weight = random(2, 3, 32, dtype=dtype), random(32, dtype=dtype, seed=1)
    agree(lambda x, w: gradients.rms_norm(x, w, 1e-2), plain, x.requires_grad_(), weight.requires_grad_())


@pytest.mark.parametrize("dtype", CLOSE)
def test_rotate_is_the_complex_product(dtype):
    angles = random(1, 1, 5, 4, seed=1)

    def plain(x):
        a, b = x.float().chunk(2, dim=-1)
        turned = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)

    x = random(2, 5, 3, 8, dtype=dtype).requires_grad_()  # heads as attention lays them: position by position
    agree(lambda x: gradients.rotate(x.transpose(1, 2), angles.cos(), angles.sin()),
          lambda x: plain(x.transpose(1, 2)), x)  # fmt: skip


@pytest.mark.parametrize("dtype", CLOSE)
def test_swiglu_is_silu_times_up(dtype):
    gate, up = (random(3, 7, dtype=dtype, seed=i).requires_grad_() for i in (0, 1))
    agree(gradients.swiglu, lambda gate, up: F.silu(gate) * up, gate, up)


def test_swiglu_keeps_its_two_inputs_and_nothing_else():
    gate, up = (random(3, 7, seed=i).requires_grad_() for i in (0, 1))
    out = gradients.swiglu(gate, up)  # held: older versions of torch free what it saved with it
    assert [t.data_ptr() for t in out.grad_fn.saved_tensors] == [gate.data_ptr(), up.data_ptr()]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("chunk", [4, 11, 100])
def test_cross_entropy_in_chunks_is_that_of_all_logits_at_once(monkeypatch, chunk, dtype):
    monkeypatch.setattr(gradients, "CHUNK", chunk)
    weight, targets = random(20, 8, seed=1).to(dtype), torch.arange(11)
    agree(
        lambda h: gradients.cross_entropy(h, targets, weight),
        lambda h: F.cross_entropy((h @ weight.T).float(), targets, reduction="sum"),
        random(11, 8, dtype=dtype).requires_grad_(),
    )


@pytest.mark.parametrize("rows", [7, 2**20])  # in pieces, and in one piece
def test_a_head_in_16_bits_is_widened_exactly(monkeypatch, rows):
    monkeypatch.setattr(gradients, "HEAD_NUMBERS", rows * 8)
    head, targets = random(20, 8, dtype=torch.bfloat16, seed=1), torch.arange(11)
    agree(
        lambda h: gradients.cross_entropy(h, targets, head),
        lambda h: F.cross_entropy(h @ head.float().T, targets, reduction="sum"),
        random(11, 8).requires_grad_(),
    )


def test_one_over_the_number_of_targets_is_not_rounded_to_16_bits():
    hidden, head = random(11, 8).bfloat16().requires_grad_(), random(20, 8, seed=1).bfloat16()
    loss = gradients.cross_entropy(hidden, torch.arange(11), head)
    (whole,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (part,) = torch.autograd.grad(loss / 321, hidden)
    assert torch.equal(part, (whole.float() / 321).bfloat16())
    assert not torch.equal(part, (whole * torch.tensor(1 / 321).bfloat16()))


def test_without_a_gradient_to_come_cross_entropy_computes_none(monkeypatch):
    monkeypatch.setattr(gradients, "_logits_backward", lambda *_: pytest.fail("a gradient was computed"))
    hidden, weight = random(3, 8), random(20, 8, seed=1)
    loss = gradients.cross_entropy(hidden, torch.arange(3), weight)
    assert torch.allclose(loss, F.cross_entropy(hidden @ weight.T, torch.arange(3), reduction="sum"))


@pytest.mark.parametrize("nf4", [None, NF4Linear, TiledNF4Linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_is_the_formula_its_gradients_too(nf4, dtype):
    linear = nn.Linear(64, 96, bias=False, dtype=dtype)
    base = nf4.quantise(linear.weight.detach()) if nf4 else linear
    torch.manual_seed(1)
    layer = LoRALinearInPlace(base, rank=4, lora_alpha=8.0)
    nn.init.normal_(layer.lora_B)
    layer, x = layer.requires_grad_(False), torch.randn(2, 5, 64).to(dtype).requires_grad_()
    a, b = layer.lora_A.requires_grad_(), layer.lora_B.requires_grad_()
    w = base.weight.to(dtype)
    plain = x @ w.T + 2.0 * (x @ a.to(dtype).T @ b.to(dtype).T)
    grad = torch.randn(plain.shape).to(dtype)
    y = layer(x)
    ours = y, *torch.autograd.grad(y, (x, a, b), grad)
    theirs = plain, *torch.autograd.grad(plain, (x, a, b), grad)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() < (1e-5 if dtype == torch.float32 else 0.02) * other.abs().max()

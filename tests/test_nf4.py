import bitsandbytes.functional as bnb
import pytest
import torch
import torch.nn.functional as F

from llamaxr.nf4 import LEVELS, NF4Linear, dequantise


@pytest.fixture()
def weight():
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(96, 128), (200, 192), (1100, 64)])
def test_the_formula_is_bitsandbytes_kernel_bit_for_bit(shape):
    layer = NF4Linear.quantise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    s = layer.state
    numbers = dequantise(layer.packed, s.absmax, s.state2.code, s.state2.absmax, s.offset)
    assert torch.equal(numbers.view(shape), layer.weight)
    assert torch.equal(LEVELS, bnb.get_4bit_type("nf4", device="cpu"))


def test_a_weight_takes_four_bits(weight):
    assert NF4Linear.quantise(weight).packed.numel() == weight.numel() // 2


def test_quantising_errs_by_at_most_half_the_widest_step(weight):
    restored = NF4Linear.quantise(weight).weight
    absmax = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    error = (restored - weight).reshape(-1, 64).abs() / absmax
    assert error.max() < 0.304 / 2 + 0.02  # NF4's widest gap is -1 to -0.696; 0.02: 8-bit absmaxes


def test_forward_and_input_gradient_equal_those_of_the_dequantised_weight(weight):
    layer = NF4Linear.quantise(weight)
    x = torch.randn(3, 5, 128, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, grad)
    plain = F.linear(x, layer.weight)
    (theirs,) = torch.autograd.grad(plain, x, grad)
    assert torch.equal(y, plain)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_backward_keeps_no_dequantised_weight_alive(weight):
    layer = NF4Linear.quantise(weight)
    y = layer(torch.randn(2, 128, requires_grad=True))
    assert y.grad_fn.saved_tensors == ()


def test_in_bf16_forward_and_backward_use_the_same_rounded_weight(weight):
    layer = NF4Linear.quantise(weight)
    rounded = layer.weight.to(torch.bfloat16)
    x = torch.randn(4, 128, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(y, F.linear(x, rounded))
    assert torch.equal(x.grad, grad @ rounded)


def test_all_told_a_weight_takes_4_127_bits():
    layer = NF4Linear.quantise(torch.randn(512, 512))  # 16 scales of 256 blocks of 64
    second = layer.state.state2.absmax
    assert (layer.packed.dtype, layer.state.absmax.dtype) == (torch.uint8, torch.uint8)
    n_bytes = layer.packed.numel() + layer.state.absmax.numel() + second.numel() * second.element_size()
    assert 8 * n_bytes / 512**2 == 4 + 8 / 64 + 32 / (64 * 256)


@pytest.mark.gpu
def test_the_fused_kernel_of_one_token_agrees_with_the_plain_path(weight):
    layer = NF4Linear.quantise(weight.cuda())
    x = torch.randn(1, 1, 128, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        fused = layer(x)
    plain = F.linear(x, layer.weight.to(torch.bfloat16))
    assert torch.allclose(fused, plain, atol=0.1, rtol=0.05)  # bf16 keeps 8 bits

import bitsandbytes.functional as bnb
import pytest
import torch
import torch.nn.functional as F

from llamaxr.nf4 import LEVELS, NF4Linear, quantise_absmaxes, quantise_blocks


@pytest.fixture()
def weight():
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [
    (96, 128), (200, 192),  # (200 rows are 3 tiles of 64 and 8 rows)
    (128, 100), (129, 36), (70, 4097), (3, 5), (1, 63), (1, 1),  # blocks go over rows, the last one not full
    (1100, 1000),  # so many blocks that their statistics fill several blocks of 256
])  # fmt: skip
def test_the_codes_and_statistics_are_bitsandbytes_own(monkeypatch, shape, dtype):
    monkeypatch.setattr("llamaxr.nf4.TILE", 1)  # a tile is 64 rows
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = NF4Linear.quantise(weight)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(layer.packed, packed)
    assert torch.equal(layer.state.absmax, state.absmax)
    assert torch.equal(layer.state.scales, state.state2.absmax)
    assert torch.equal(layer.state.levels, state.state2.code)
    assert torch.equal(layer.state.offset, state.offset)
    assert torch.equal(LEVELS, state.code)
    state.dtype = torch.float32  # of itself it rounds to the dtype of what was quantised
    assert torch.equal(layer.dequantise(torch.float32), bnb.dequantize_4bit(packed, state))


def near_boundaries(levels, n_blocks, block_size):
    """Blocks of numbers that, over the block's largest, lie within two ulp of halfway between two levels."""
    torch.manual_seed(0)
    largest = 10 ** torch.empty(n_blocks).uniform_(-6, 3)
    halfway = (levels[1:] + levels[:-1]) / 2
    x = halfway[torch.randint(0, len(halfway), (n_blocks, block_size - 1))] * largest[:, None]
    x = (x.view(torch.int32) + torch.randint(-2, 3, x.shape, dtype=torch.int32)).view(torch.float32)
    return torch.cat([largest[:, None], x], 1).flatten()


def test_numbers_at_the_boundary_of_two_levels_fall_as_in_bitsandbytes():
    numbers = near_boundaries(LEVELS, 20000, 64)
    codes, absmax = quantise_blocks(numbers)
    theirs, state = bnb.quantize_4bit(numbers, blocksize=64, quant_type="nf4")
    assert torch.equal(codes, theirs[:, 0]) and torch.equal(absmax, state.absmax)


def test_absmaxes_at_the_boundary_of_two_levels_fall_as_in_bitsandbytes():
    numbers = near_boundaries(bnb.create_dynamic_map(), 4000, 256)
    ours = quantise_absmaxes(numbers)
    theirs, state = bnb.quantize_blockwise(numbers - numbers.mean(), blocksize=256)
    assert torch.equal(ours.absmax, theirs) and torch.equal(ours.scales, state.absmax)
    spread = torch.rand(2**20)
    theirs, _ = bnb.quantize_blockwise(spread - spread.mean(), blocksize=256)
    assert torch.equal(quantise_absmaxes(spread).absmax, theirs)


def test_blocks_of_zeros_are_bitsandbytes_own():
    weight = torch.zeros(64, 64)
    weight[3, 7] = 2.0
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    layer = NF4Linear.quantise(weight)
    assert torch.equal(layer.packed, packed) and torch.equal(layer.state.absmax, state.absmax)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_inverse_is_the_kernels(dtype):
    for shape in ((200, 192), (70, 4097), (3, 5), (1, 1)):
        layer = NF4Linear.quantise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        by_kernel = torch.cat([tile for _, tile in layer.tiles(dtype)])
        assert torch.equal(layer.dequantise(dtype), by_kernel)
        layer.for_kernels.dtype = dtype  # what CUDA's kernels are given is the same weight
        assert torch.equal(bnb.dequantize_4bit(layer.packed, layer.for_kernels), by_kernel)


def test_a_weight_takes_four_bits(weight):
    assert NF4Linear.quantise(weight).packed.numel() == weight.numel() // 2


def test_quantising_errs_by_at_most_half_the_widest_step(weight):
    restored = NF4Linear.quantise(weight).dequantise(torch.float32)
    absmax = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    error = (restored - weight).reshape(-1, 64).abs() / absmax
    assert error.max() < 0.304 / 2 + 0.02  # NF4's widest gap is -1 to -0.696; 0.02: 8-bit absmaxes


def test_forward_and_input_gradient_equal_those_of_the_dequantised_weight(weight):
    layer = NF4Linear.quantise(weight)
    x = torch.randn(3, 5, 128, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, grad)
    plain = F.linear(x, layer.dequantise(torch.float32))
    (theirs,) = torch.autograd.grad(plain, x, grad)
    assert torch.equal(y, plain)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_backward_keeps_no_dequantised_weight_alive(weight):
    layer = NF4Linear.quantise(weight)
    y = layer(torch.randn(2, 128, requires_grad=True))
    assert y.grad_fn.saved_tensors == ()


def test_in_bf16_forward_and_backward_use_the_same_rounded_weight(weight):
    layer = NF4Linear.quantise(weight)
    rounded = layer.dequantise(torch.bfloat16)
    x = torch.randn(4, 128, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(y, F.linear(x, rounded))
    assert torch.equal(x.grad, grad @ rounded)


def test_the_input_gradient_is_that_of_finite_differences(weight):
    layer = NF4Linear.quantise(weight[:8])
    w = layer.dequantise(torch.float32)
    # finite differences need fp64, which bitsandbytes does not give
    layer.tiles = lambda dtype: [(slice(0, 3), w[:3].to(dtype)), (slice(3, 8), w[3:].to(dtype))]
    assert torch.autograd.gradcheck(layer, torch.randn(2, 128, dtype=torch.float64, requires_grad=True))


def test_all_told_a_weight_takes_4_127_bits():
    layer = NF4Linear.quantise(torch.randn(512, 512))  # 16 scales of 256 blocks of 64
    second = layer.state.scales
    assert (layer.packed.dtype, layer.state.absmax.dtype) == (torch.uint8, torch.uint8)
    n_bytes = layer.packed.numel() + layer.state.absmax.numel() + second.numel() * second.element_size()
    assert 8 * n_bytes / 512**2 == 4 + 8 / 64 + 32 / (64 * 256)


@pytest.mark.gpu
def test_the_fused_kernel_of_one_token_agrees_with_the_plain_path(weight):
    layer = NF4Linear.quantise(weight.cuda())
    x = torch.randn(1, 1, 128, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        fused = layer(x)
    plain = F.linear(x, layer.dequantise(torch.bfloat16))
    assert torch.allclose(fused, plain, atol=0.1, rtol=0.05)  # bf16 keeps 8 bits

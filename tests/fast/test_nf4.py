import bitsandbytes.functional as bnb
import pytest
import torch

from llamaxr.fast.nf4 import TiledNF4Linear, quantise_absmax, quantise_blocks
from llamaxr.files import nf4_stored
from llamaxr.nf4 import LEVELS, NF4Linear


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
    monkeypatch.setattr("llamaxr.fast.nf4.TILE", 1)  # a tile is 64 rows
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = TiledNF4Linear.quantise(weight)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(layer.packed, packed)
    assert torch.equal(layer.absmax.codes, state.absmax)
    assert torch.equal(layer.absmax.scales, state.state2.absmax)
    assert torch.equal(layer.absmax.levels, state.state2.code)
    assert torch.equal(layer.absmax.offset, state.offset)
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
    ours = quantise_absmax(numbers)
    theirs, state = bnb.quantize_blockwise(numbers - numbers.mean(), blocksize=256)
    assert torch.equal(ours.codes, theirs) and torch.equal(ours.scales, state.absmax)
    spread = torch.rand(2**20)
    theirs, _ = bnb.quantize_blockwise(spread - spread.mean(), blocksize=256)
    assert torch.equal(quantise_absmax(spread).codes, theirs)


def test_blocks_of_zeros_are_bitsandbytes_own():
    weight = torch.zeros(64, 64)
    weight[3, 7] = 2.0
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    layer = TiledNF4Linear.quantise(weight)
    assert torch.equal(layer.packed, packed) and torch.equal(layer.absmax.codes, state.absmax)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_inverse_is_the_kernels(dtype):
    for shape in ((200, 192), (70, 4097), (3, 5), (1, 1)):
        layer = TiledNF4Linear.quantise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        by_kernel = torch.cat([tile for _, tile in layer.tiles(dtype)])
        assert torch.equal(layer.dequantise(dtype), by_kernel)


def test_backward_keeps_no_dequantised_weight_alive(weight):
    layer = TiledNF4Linear.quantise(weight)
    y = layer(torch.randn(2, 128, requires_grad=True))
    assert y.grad_fn.saved_tensors == ()


def test_the_input_gradient_is_that_of_finite_differences(weight):
    layer = TiledNF4Linear.quantise(weight[:8])
    w = layer.dequantise(torch.float32)
    # finite differences need fp64, which bitsandbytes does not give
    layer.tiles = lambda dtype: [(slice(0, 3), w[:3].to(dtype)), (slice(3, 8), w[3:].to(dtype))]
    assert torch.autograd.gradcheck(layer, torch.randn(2, 128, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile", [1, 2**20])  # four tiles of 64 rows and 8, and one
def test_it_is_the_plain_layer_its_input_gradient_too(monkeypatch, dtype, tile):
    monkeypatch.setattr("llamaxr.fast.nf4.TILE", tile)
    weight = torch.randn(200, 192, generator=torch.Generator().manual_seed(0))
    plain, tiled = NF4Linear.quantise(weight), TiledNF4Linear.quantise(weight)
    x = torch.randn(3, 5, 192).to(dtype).requires_grad_()
    grad = torch.randn(3, 5, 200).to(dtype)
    outputs = [layer(x) for layer in (plain, tiled)]
    close = {"atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 0.1}  # tiles' sums, rounded
    assert torch.equal(plain.weight, tiled.weight) and torch.allclose(*outputs, **close)
    assert torch.allclose(*(torch.autograd.grad(y, x, grad)[0] for y in outputs), **close)


def test_stored_weights_are_checked_against_the_same_levels():
    assert torch.equal(nf4_stored.LEVELS, LEVELS)

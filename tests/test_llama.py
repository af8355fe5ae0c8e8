import math
import shutil

import pytest
import torch

from llamaxr.llama import KVCache, Llama, LlamaConfig, Packing, RopeScaling, rope_frequencies
from llamaxr.lora import add_lora
from llamaxr.runs.run import TINY_BASE
from llamaxr.weights import load_llama
from llamaxr.fast.generation import merge_for_writing

SMALL = LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64)


@pytest.fixture()
def model():
    torch.manual_seed(0)
    return Llama(SMALL).eval()


def test_a_later_token_changes_no_earlier_logit(model):
    a = torch.randint(0, 50, (1, 12))
    b = a.clone()
    b[0, 8] = (b[0, 8] + 1) % 50
    with torch.no_grad():
        x, y = model(a), model(b)
    assert torch.equal(x[:, :8], y[:, :8])
    assert not torch.allclose(x[:, 8:], y[:, 8:])


def test_reading_through_the_cache_equals_reading_at_once(model):
    ids = torch.randint(0, 50, (2, 11))
    with torch.no_grad():
        x = model.embed(ids)
        whole = model.hidden(x)
        cache = KVCache(SMALL, 2, 11, "cpu", torch.float32)
        parts = [model.hidden(x[:, a:b], None, cache) for a, b in ((0, 5), (5, 8), (8, 9), (9, 10), (10, 11))]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)  # other sums, other rounding: fp32


def test_recomputing_a_block_changes_no_gradient(model):
    grads = []
    for recompute in (False, True):
        model.recompute = recompute
        x = model.embed(torch.arange(12)[None]).detach().requires_grad_()
        model.hidden(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_filler_at_the_left_changes_nothing(model):
    ids = torch.randint(0, 50, (1, 7))
    with torch.no_grad():
        alone = model.hidden(model.embed(ids))
        x = model.embed(torch.cat([torch.randint(0, 50, (1, 4)), ids], 1)).repeat(2, 1, 1)
        padded = model.hidden(x, torch.tensor([4, 0]))
    assert torch.allclose(padded[:1, 4:], alone, atol=1e-5)
    assert padded.isfinite().all()


def test_plain_rope_is_the_formula():
    config = LlamaConfig(rope_scaling=None, head_dim=64, rope_theta=10000.0)
    expected = torch.tensor([10000.0 ** (-2 * i / 64) for i in range(32)])
    assert torch.allclose(rope_frequencies(config, torch.device("cpu")), expected)


def test_rope_of_llama_31_keeps_fast_waves_and_slows_long_ones_by_the_factor():
    plain = rope_frequencies(LlamaConfig(rope_scaling=None), torch.device("cpu"))
    scaled = rope_frequencies(LlamaConfig(rope_scaling=RopeScaling()), torch.device("cpu"))
    waves = 2 * math.pi / plain
    fast, slow = waves < 8192 / 4, waves > 8192
    assert torch.equal(scaled[fast], plain[fast])
    assert torch.allclose(scaled[slow], plain[slow] / 8)
    between = ~fast & ~slow
    assert (
        between.any()
        and (scaled[between] < plain[between]).all()
        and (scaled[between] > plain[between] / 8).all()
    )


def test_rows_of_unequal_length_read_on_through_the_cache_as_each_would_alone(model):
    long, short = torch.randint(0, 50, (1, 9)), torch.randint(0, 50, (1, 6))
    filler = torch.randint(0, 50, (1, 3))
    with torch.no_grad():
        x = model.embed(torch.cat([long, torch.cat([filler, short], 1)]))
        cache, padding = KVCache(SMALL, 2, 9, "cpu", torch.float32), torch.tensor([0, 3])
        parts = [model.hidden(x[:, a:b], padding, cache) for a, b in ((0, 5), (5, 8), (8, 9))]
        together = torch.cat(parts, 1)
        for row, ids, n in ((0, long, 0), (1, short, 3)):
            assert torch.allclose(together[row, n:], model.hidden(model.embed(ids))[0], atol=1e-5)


@pytest.mark.gpu
def test_cuda_in_bf16_agrees_with_the_cpu(base):
    ids = torch.randint(3, 400, (2, 20))
    cpu, _ = load_llama(base)
    gpu, _ = load_llama(base, "nf4", torch.bfloat16, "cuda")
    nf4, _ = load_llama(base, "nf4")
    with torch.no_grad():
        assert torch.allclose(gpu(ids.cuda()).float().cpu(), nf4(ids), atol=0.5)
        assert cpu(ids).isfinite().all()


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)
def test_compiled_blocks_give_the_same_loss_and_gradients_whatever_the_length():
    torch.compiler.reset()
    models = [load_llama(TINY_BASE, "nf4", torch.float32, torch.device("cpu"))[0] for _ in range(2)]
    for llama in models:
        torch.manual_seed(0)
        llama.layers = llama.layers[:2]
        add_lora(llama, 4, 4.0)
        for name, p in llama.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
    models[1].compile_blocks()
    for lengths in ([30, 41, 35], [52, 33, 37], [40, 31]):
        packing, losses, grads = Packing.of(lengths, shared=10), [], []
        x = 0.1 * torch.randn(1, len(packing.positions), 256, generator=torch.Generator().manual_seed(1))
        for llama in models:
            llama.zero_grad()
            loss = llama.hidden(x.clone().requires_grad_(), packing=packing)[..., :64].square().mean()
            loss.backward()
            losses.append(loss.item())
            grads.append(torch.cat([p.grad.flatten() for p in llama.parameters() if p.requires_grad]))
        # fp32 through the same operations, which the compiler may fuse and add up in another order
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert torch.allclose(grads[1], grads[0], atol=1e-5 * grads[0].abs().max().item())
    assert models[1].compiled is not None and torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize(("lengths", "shared"), [([6, 4, 9], 3), ([5, 8], 0), ([7], 6), ([70, 300], 41)])
def test_attention_row_by_row_is_that_of_the_fused_kernel_and_so_are_its_gradients(
    lengths, shared, monkeypatch
):
    packing, random = Packing.of(lengths, shared), torch.Generator().manual_seed(0)
    n = len(packing.positions)
    q, k, v = (torch.randn(1, heads, n, 16, generator=random, requires_grad=True) for heads in (6, 2, 2))
    grad, results, called = torch.randn(1, 6, n, 16, generator=random), [], []
    row_by_row = Packing.attend_row_by_row
    monkeypatch.setattr(Packing, "attend_row_by_row", lambda *of: called.append(1) or row_by_row(*of))
    for short in (max(lengths), max(lengths) - 1):
        monkeypatch.setattr("llamaxr.llama.SHORT", short)
        y = packing.attend(q, k, v)
        results.append((y, *torch.autograd.grad(y, (q, k, v), grad)))
    assert len(called) == 1
    for by_row, fused in zip(*results, strict=True):
        assert by_row.shape == fused.shape and torch.allclose(by_row, fused, atol=2e-5)


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_asked_for_is_what_it_would_have_been_among_all(merged):
    torch.manual_seed(0)
    model, packing, asked = Llama(SMALL), Packing.of([6, 4], 3), torch.tensor([1, 4, 6])
    if merged:
        merge_for_writing(model)
    x = model.embed(torch.randint(0, SMALL.vocab_size, (1, 7))).detach().requires_grad_(not merged)
    whole, part = model.hidden(x, packing=packing)[:, asked], model.hidden(x, packing=packing, asked=asked)
    assert torch.allclose(part, whole, atol=1e-5)
    if not merged:
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), x) for y in (whole, part)), strict=True):
            assert torch.allclose(a, b, atol=1e-5)

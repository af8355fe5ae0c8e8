import math
from dataclasses import replace

import pytest
import torch

from llamaxr.llama import Block, KVCache, Llama, LlamaConfig, RopeScaling, rope_frequencies
from llamaxr.weights import load_llama

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


def test_filler_at_the_right_changes_nothing(model):
    ids = torch.randint(0, 50, (1, 7))
    with torch.no_grad():
        padded = model.hidden(model.embed(torch.cat([ids, torch.randint(0, 50, (1, 4))], 1)))
        assert torch.allclose(padded[:, :7], model.hidden(model.embed(ids)), atol=1e-5)


def test_a_head_in_16_bits_gives_the_logits_of_its_widened_weight(model):
    x = torch.randn(3, 32)
    model.lm_head.weight.data = model.lm_head.weight.data.bfloat16()
    with torch.no_grad():
        assert torch.equal(model.logits(x), x @ model.lm_head.weight.float().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_read_in_pieces_gives_all_logits_in_order(dtype):
    torch.manual_seed(0)
    model = Llama(replace(SMALL, vocab_size=2**15 + 3)).eval()
    model.lm_head.weight.data = model.lm_head.weight.data.to(dtype)
    x = torch.randn(2, 3, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(x), x @ model.lm_head.weight.float().T, rtol=1e-4, atol=1e-5)


def test_angles_are_in_fp32_whatever_the_model_computes_in(model, monkeypatch):
    ropes, real = [], Block.forward

    def forward(self, x, rope, *rest):
        ropes.append(rope)
        return real(self, x, rope, *rest)

    monkeypatch.setattr(Block, "forward", forward)
    model.bfloat16()(torch.zeros(1, 4, dtype=torch.long))
    assert len(ropes) == 2 and all(part.dtype == torch.float32 for rope in ropes for part in rope)


@pytest.mark.gpu
def test_cuda_in_bf16_agrees_with_the_cpu(base):
    ids = torch.randint(3, 400, (2, 20))
    cpu, _ = load_llama(base)
    gpu, _ = load_llama(base, "nf4", torch.bfloat16, "cuda")
    nf4, _ = load_llama(base, "nf4")
    with torch.no_grad():
        assert torch.allclose(gpu(ids.cuda()).float().cpu(), nf4(ids), atol=0.5)
        assert cpu(ids).isfinite().all()

import pytest
import torch
from torch import nn

from llamaxr.decoding import beam_search, generate
from llamaxr.fast import generation
from llamaxr.fast.generation import Fp16Linear, MergedBlock, merge
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.llama import KVCache, Llama, LlamaConfig
from llamaxr.lora import LoRALinear, add_lora
from llamaxr.nf4 import NF4Linear
from llamaxr.runs import memory

SIZES = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 128}


def trained(tied: bool = False, in_4_bits: bool = True) -> Llama:
    """A tiny Llama with adapters whose B is not zero, as training leaves them."""
    torch.manual_seed(0)
    llama = Llama(LlamaConfig(vocab_size=99, **SIZES, tie_embeddings=tied))
    if in_4_bits:
        for block in llama.layers:
            for part in (block.self_attn, block.mlp):
                for name, linear in part.named_children():
                    setattr(part, name, TiledNF4Linear.quantise(linear.weight.detach()))
    add_lora(llama, 4, 8.0)
    for name, p in llama.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 2.0)
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return llama.eval()


@pytest.fixture(params=[True, False], ids=["fp16", "no FBGEMM"])
def packs(request, monkeypatch):
    """Both forms of the weights, wherever the test runs that has the kernel."""
    if request.param and "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this processor has no FBGEMM")
    if not request.param:
        monkeypatch.setattr(generation, "packs_in_16_bits", lambda *_: False)
    return request.param


@torch.inference_mode()
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_reads_as_the_plain_one(packs, tied):
    llama, ids = trained(tied), torch.randint(0, 99, (3, 9))
    plain = llama(ids)
    merge(llama)
    # 2^-11 of each weight, and a sum over 64 of them has a tenth of that of its own size
    assert (llama(ids) - plain).abs().max() < (2e-3 if packs else 1e-5) * plain.abs().max()
    assert not any(isinstance(m, LoRALinear | NF4Linear) for m in llama.modules())
    assert any(isinstance(m, Fp16Linear) for m in llama.modules()) == packs


@torch.inference_mode()
def test_it_reads_so_with_filler_and_with_a_cache(packs):
    llama = trained()
    x, padding = llama.embed(torch.randint(0, 99, (2, 7))), torch.tensor([0, 3])

    def read() -> torch.Tensor:
        cache = KVCache(llama.config, 2, 7, "cpu", torch.float32)
        parts = [llama.hidden(part, padding, cache) for part in x.split((4, 1, 2), dim=1)]
        return torch.cat(parts, 1)

    plain = read()
    merge(llama)
    assert (read() - plain).abs().max() < (2e-3 if packs else 1e-5) * plain.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("in_4_bits", [True, False])
def test_it_generates_the_same_text(packs, in_4_bits):
    llama = trained(in_4_bits=in_4_bits)
    x = llama.embed(torch.randint(0, 99, (3, 9)))
    plain = generate(llama, x, None, (99,), 12), beam_search(llama, x, None, (99,), 6, 3)
    merge(llama)
    assert (generate(llama, x, None, (99,), 12), beam_search(llama, x, None, (99,), 6, 3)) == plain


@torch.inference_mode()
def test_the_prefix_that_prompts_share_is_read_once(packs, monkeypatch):
    llama, plain = trained(), trained()
    merge(llama)
    merge(plain)
    x = llama.embed(torch.randint(0, 99, (3, 9)))
    x[:, :5] = x[0, :5]
    expected = []
    for row in x:
        plain.prefix_cache = None
        expected += generate(plain, row[None], None, (99,), 12)
    lengths, block = [], MergedBlock.forward
    count = lambda self, x, *rest: lengths.append(x.shape[1]) or block(self, x, *rest)
    monkeypatch.setattr(MergedBlock, "forward", count)
    assert [generate(llama, row[None], None, (99,), 12)[0] for row in x] == expected
    # 3 layers: the first prompt whole, then of the two others what follows the prefix
    assert lengths.count(9) == 3 and lengths.count(4) == 2 * 3
    llama.prefix_cache = None
    assert generate(llama, x, None, (99,), 12) == expected  # together, and none known before
    other = llama.embed(torch.randint(0, 99, (1, 9)))
    assert generate(llama, other, None, (99,), 12) == generate(plain, other, None, (99,), 12)


def test_in_bf16_it_stays_bf16():
    llama = trained(in_4_bits=False).to(torch.bfloat16)
    ids = torch.randint(0, 99, (2, 9))
    with torch.inference_mode():
        plain = llama(ids)
        merge(llama)
        merged = llama(ids)
    assert merged.dtype == torch.bfloat16 and {p.dtype for p in llama.parameters()} == {torch.bfloat16}
    assert (merged - plain).abs().max() < 0.05 * plain.abs().max()  # some roundings to 2^-9 along the way


def test_fp16_weights_are_rounded_to_the_nearest_and_all_else_is_fp32():
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this processor has no FBGEMM")
    weight, x = torch.randn(70, 33), torch.randn(5, 33)
    y = Fp16Linear(weight)(x)
    assert y.dtype == torch.float32
    assert torch.allclose(y, x @ weight.half().float().T, atol=1e-5)


def test_the_estimate_of_what_generating_takes_is_what_it_takes(packs):
    llama = trained()
    config = llama.config
    merge(llama)
    layers = [m for m in llama.modules() if isinstance(m, Fp16Linear | nn.Linear)]
    held = sum(m.nbytes if isinstance(m, Fp16Linear) else m.weight.nbytes for m in layers)
    cache = KVCache(config, 5, 11, "cpu", torch.float32)
    pieces = max(3 * 2 * config.ffn_dim, config.vocab_size) * config.dim * 4
    needs = memory.generation_needs(config, torch.float32, 2 if packs else 4, rows=5, time=11)
    assert sum(isinstance(m, MergedBlock) for m in llama.modules()) == 3
    assert needs == held + sum(part.nbytes for layer in cache.layers for part in layer) + pieces

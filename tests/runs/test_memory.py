import pytest
import torch

from llamaxr.fast import packing
from llamaxr.fast.packing import Packing
from llamaxr.fast.training import FASTER
from llamaxr.llama import Llama, LlamaConfig
from llamaxr.lora import add_lora
from llamaxr.runs import memory

LLAMA_8B = LlamaConfig()
RUN = {"in_4_bits": True, "dtype": torch.bfloat16, "rank": 16, "projector": (1024, 7), "rows": 1, "time": 256,
       "report_tokens": 100, "recompute": False, "plain": False}  # fmt: skip


def test_llama_3_1_8b_in_nf4_takes_what_its_parts_sum_up_to():
    needs = memory.training_needs(LLAMA_8B, **RUN)
    linears, embedding_and_head = 6_979_321_856, 2 * 128256 * 4096
    assert needs["weights"] == pytest.approx(linears * 4.127 / 8 + embedding_and_head * 2, rel=1e-3)
    projector = 1024 * 4096 + 4096 + 4096**2 + 4096 + 2 * 49 * 4096
    assert needs["adapters and projector"] == (41_943_040 + projector) * 4


@pytest.mark.parametrize(("plain", "short"), [(False, 512), (False, 0), (True, 0)])
def test_the_estimate_of_a_block_is_what_autograd_keeps(plain, short, monkeypatch):
    for module in (memory, packing):
        monkeypatch.setattr(module, "SHORT", short)
    config = LlamaConfig(
        vocab_size=100, dim=192, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=32, ffn_dim=512
    )
    model, saved = Llama(config), {}
    add_lora(model, 1, 1.0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def save(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(2, 100, 192, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        if plain:
            y = model.hidden(x)
        else:
            for module in model.modules():
                module.__class__ = FASTER.get(type(module), type(module))
            packed = Packing.of([100, 100], 0)
            y = model.packed_hidden(x.reshape(1, 200, 192), packed, torch.arange(200))
    measured = sum(saved.values())
    estimate = memory.activations(config, 2, 100, torch.float32, recompute=False, plain=plain)
    assert y.requires_grad and 0.9 <= measured / estimate <= 1.1


def test_recompute_needs_far_less():
    plain = memory.training_needs(LLAMA_8B, **RUN)
    less = memory.training_needs(LLAMA_8B, **{**RUN, "recompute": True})
    assert less["activations"] < plain["activations"] / 5
    assert {k: v for k, v in less.items() if k != "activations"} == {
        k: v for k, v in plain.items() if k != "activations"
    }


@pytest.mark.parametrize(
    ("free", "rows", "recompute", "in_4_bits", "remedy"),
    [(20, 8, False, True, None), (14, 8, False, True, "--recompute"), (14, 8, True, True, "--batch 6"),
     (8, 8, True, True, "--grid"), (7.9, 1, True, False, "--quantize"), (7, 1, True, True, "smaller --base")],
)  # fmt: skip
def test_the_advice_names_what_would_make_it_fit(free, rows, recompute, in_4_bits, remedy):
    needs = {"weights": 6 * memory.GIB, "program": 2 * memory.GIB, "activations": 8 * memory.GIB}
    advice = memory.advice(needs, int(free * memory.GIB), rows, recompute, in_4_bits)
    assert advice is None if remedy is None else remedy in advice


def test_free_memory_is_at_most_what_the_machine_has():
    assert 0 < memory.free_memory(torch.device("cpu")) < 2**45


def test_a_system_that_does_not_tell_stops_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_read", lambda *_: None)
    assert memory.free_memory(torch.device("cpu")) == 2**63

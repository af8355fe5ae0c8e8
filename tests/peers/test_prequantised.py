"""Bases stored in NF4 by transformers' load_in_4bit and save_pretrained: the same bits, the same logits."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.nf4 import LEVELS, NF4Linear
from llamaxr.weights import load_llama
from tests.conftest import write_base

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # transformers quantises through it


def save_quantised(folder, double_quant, dtype, shards=False, **sizes):
    """A tiny base, quantised and saved by transformers into folder / "nf4"."""
    (folder / "floats").mkdir()
    write_base(folder / "floats", **sizes)
    quantisation = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM.from_pretrained(
        folder / "floats", quantization_config=quantisation, dtype=dtype, device_map="cpu"
    )
    model.save_pretrained(folder / "nf4", max_shard_size="40KB" if shards else "1GB")
    shutil.copy(folder / "floats" / "tokenizer.json", folder / "nf4")
    return folder / "nf4"


def theirs_in_fp32(folder):
    """transformers' model of that folder, computing in fp32. By itself it computes in the dtype that the
    weights were quantised from, bf16 or fp16, and rounds what it dequantises to that; in eval mode on a CPU
    with AVX512-BF16 it even multiplies in bf16."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, device_map="cpu").train()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = module.weight.quant_state.dtype = torch.float32
        else:
            for p in module.parameters(recurse=False):
                p.data = p.data.float()
    return model


def statistics(layer) -> dict[str, torch.Tensor]:
    """What a layer holds beside its codes, by the names under which it is stored."""
    if isinstance(layer, TiledNF4Linear):
        parts = layer.absmax.codes, layer.absmax.scales, layer.absmax.levels
    else:
        second = layer.state.state2
        parts = layer.state.absmax, second and second.absmax, second and second.code
    names = "absmax", "nested_absmax", "nested_quant_map"
    return {"quant_map": LEVELS} | {n: t for n, t in zip(names, parts, strict=True) if t is not None}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [False, True])
def test_the_same_bits_and_the_same_logits(tmp_path, double_quant, dtype, tied, shards):
    folder = save_quantised(tmp_path, double_quant, dtype, shards, tied=tied)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == shards
    stored = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    ids = torch.randint(3, 400, (2, 40))
    with torch.no_grad():
        theirs = theirs_in_fp32(folder)(ids).logits
    for nf4 in (NF4Linear, TiledNF4Linear):
        ours, _ = load_llama(folder, nf4=nf4)
        layers = {n: m for n, m in ours.named_modules() if isinstance(m, NF4Linear)}
        assert len(layers) == 2 * 7 and {type(m) for m in layers.values()} == {nf4}
        for name, layer in layers.items():
            assert torch.equal(layer.packed, stored[f"model.{name}.weight"])
            for part, tensor in statistics(layer).items():
                assert torch.equal(tensor, stored[f"model.{name}.weight.{part}"])
            assert ("nested_absmax" in statistics(layer)) == double_quant
        with torch.no_grad():
            assert (ours(ids) - theirs).abs().max() <= 1e-4


def test_in_features_that_are_no_multiple_of_64_nor_rows_of_a_tile(tmp_path, monkeypatch):
    """Blocks of 64 then reach over the ends of rows; tiles are of 64 rows here, of which 128 + 8 are left."""
    monkeypatch.setattr("llamaxr.fast.nf4.TILE", 1)
    folder = save_quantised(tmp_path, True, torch.bfloat16, n_heads=2, n_kv_heads=1, head_dim=36)
    ids = torch.randint(3, 400, (2, 40))
    for nf4 in (NF4Linear, TiledNF4Linear):
        ours, _ = load_llama(folder, nf4=nf4)
        assert ours.layers[0].self_attn.o_proj.in_features == 72
        with torch.no_grad():
            assert (ours(ids) - theirs_in_fp32(folder)(ids).logits).abs().max() <= 1e-4

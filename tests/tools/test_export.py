"""Exports: other programs load them and compute the same logits."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaxr.errors import UserError
from llamaxr.lora import LoRALinear, add_lora
from llamaxr.model import LlamaXR
from llamaxr.nf4 import NF4Linear
from llamaxr.projector import Projector
from llamaxr.runs import checkpoint
from llamaxr.runs.run import DEMO, TINY_BASE
from llamaxr.tools import export
from llamaxr.weights import load_llama

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
IDS = torch.randint(3, 400, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The embedded demo's adapter, exported."""
    out = tmp_path_factory.mktemp("export") / "adapter"
    export.main([str(DEMO), str(out)])
    return out


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "merged"
    export.main([str(DEMO), str(out), "--merge"])
    return out


def trained(quantize=None):
    llama, tokenizer = load_llama(TINY_BASE, quantize)
    add_lora(llama, 16, 16.0)
    model = LlamaXR(Projector(64, llama.config.dim), llama, tokenizer, "tokens")
    for name, matrix in load_file(checkpoint.last(DEMO) / "adapter_model.safetensors").items():
        checkpoint.adapter_tensors(model)[name].copy_(matrix)
    return model


def test_peft_loads_the_adapter_on_the_base_and_gives_the_same_logits(adapter):
    theirs = transformers.LlamaForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - trained().llama(IDS)).abs().max() <= 1e-4


def test_peft_loads_the_adapter_on_the_base_in_nf4_and_gives_the_same_logits(adapter):
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        TINY_BASE, quantization_config=nf4, dtype=torch.float32
    )
    # not .eval(): there bitsandbytes multiplies in bf16 on a CPU with AVX512-BF16. There is no dropout.
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).train()
    with torch.no_grad():
        assert (theirs(IDS).logits - trained("nf4").llama(IDS)).abs().max() <= 1e-4


def test_the_projector_comes_with_the_adapter_and_the_base_is_named(adapter):
    ours = load_file(checkpoint.last(DEMO) / "projector.safetensors")
    theirs = load_file(adapter / "projector.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        TINY_BASE
    )


def test_transformers_loads_the_merged_model_and_it_is_the_dequantised_base_plus_the_adapter(merged):
    theirs = transformers.LlamaForCausalLM.from_pretrained(merged, dtype=torch.bfloat16)
    weights = dict(theirs.named_parameters())
    layers = {n: m for n, m in trained("nf4").llama.named_modules() if isinstance(m, LoRALinear)}
    assert len(layers) == 7 * theirs.config.num_hidden_layers
    for name, layer in layers.items():
        assert isinstance(layer.base, NF4Linear)
        sum_ = layer.base.weight + layer.lora_B @ layer.lora_A  # alpha / rank is 1
        assert torch.equal(weights[f"model.{name}.weight"], sum_.bfloat16())


def test_our_loader_and_transformers_give_the_merged_model_the_same_logits(merged):
    theirs = transformers.LlamaForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    llama, tokenizer = load_llama(merged)
    with torch.no_grad():
        assert (theirs(IDS).logits - llama(IDS)).abs().max() <= 1e-4
    assert tokenizer.encode("The lungs are clear.")


def test_the_printed_difference_is_the_one_between_the_unmerged_and_the_merged_model(merged):
    model = trained("nf4")
    ids = torch.tensor([model.tokenizer.encode(export.COMPARED_TEXT)])
    with torch.no_grad():
        gap = (model.llama(ids) - load_llama(merged)[0](ids)).abs().max().item()
    worst, spread, same, n = export.difference(model.llama, model.tokenizer, merged)
    assert worst == pytest.approx(gap, rel=1e-3) and 0 < worst < 0.05 * spread and same > 0.9 * n


def test_the_shards_are_complete_and_their_index_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 2**20)
    export.main([str(DEMO), str(tmp_path / "out"), "--merge"])
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    load_llama(tmp_path / "out")


@pytest.mark.parametrize("merge", [(), ("--merge",)])
def test_an_export_that_has_no_room_leaves_no_half_folder(tmp_path, merge):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, hard))  # as a full disk: a write comes to its end
        with pytest.raises(UserError, match="could not be written.*free some space"):
            export.main([str(DEMO), str(tmp_path / "out"), *merge])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        export.main([str(DEMO), str(tmp_path)])


def peft_adapter(folder: Path, **other) -> Path:
    """An adapter made by peft, on two of the seven linears."""
    config = peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"], **other})
    model = transformers.LlamaForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    model = peft.get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    model.save_pretrained(folder)
    with torch.no_grad():
        torch.save(model.eval()(IDS).logits, folder / "logits.pt")
    return folder


def fresh(rank=8):
    llama, tokenizer = load_llama(TINY_BASE)
    add_lora(llama, rank, 16.0)
    return LlamaXR(Projector(64, llama.config.dim), llama, tokenizer, "tokens")


def test_an_adapter_made_by_peft_can_be_loaded(tmp_path):
    folder, model = peft_adapter(tmp_path / "peft"), fresh()
    checkpoint.load_adapter(folder, model, 8, 16.0)
    with torch.no_grad():
        assert (torch.load(folder / "logits.pt") - model.llama(IDS)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("other", "reason"),
    [({"r": 4}, "r is 4"), ({"lora_alpha": 4}, "lora_alpha is 4"), ({"use_rslora": True}, "use_rslora"),
     ({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias"),
     ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa"),
     ({"target_modules": ["lm_head"]}, "lm_head"),
     ({"rank_pattern": {"q_proj": 2}}, "rank_pattern")],
)  # fmt: skip
def test_an_adapter_of_another_kind_is_refused_with_the_reason(tmp_path, other, reason):
    folder = peft_adapter(tmp_path / "peft", **other)
    with pytest.raises(UserError, match=reason) as caught:
        checkpoint.load_adapter(folder, fresh(), 8, 16.0)
    assert "\n" not in str(caught.value)


def test_a_damaged_adapter_is_refused(tmp_path):
    folder = peft_adapter(tmp_path / "peft")
    for spoil in (lambda f: f.write_bytes(f.read_bytes()[:100]), lambda f: save_file({}, f), Path.unlink):
        spoil(folder / "adapter_model.safetensors")
        with pytest.raises(UserError, match="export the adapter again"):
            checkpoint.load_adapter(folder, fresh(), 8, 16.0)

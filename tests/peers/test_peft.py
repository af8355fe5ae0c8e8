"""LoRA and its files against peft."""

import pytest
import torch

from llamaxr.lora import add_lora
from llamaxr.model import LlamaXR
from llamaxr.projector import Projector
from llamaxr.runs import checkpoint
from llamaxr.weights import load_llama

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def ours(base, quantize=None):
    llama, tokenizer = load_llama(base, quantize)
    torch.manual_seed(0)
    add_lora(llama, 4, 8.0)
    return LlamaXR(Projector(8, 64, grid=2), llama, tokenizer, "tokens")


def save(model, folder):
    return checkpoint.save(folder, model, {"base": "x", "rank": 4, "lora_alpha": 8.0}, 1, 0.5)


def test_peft_loads_our_adapter_and_gives_the_same_logits(base, tmp_path):
    model = ours(base)
    for name, p in model.llama.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    folder = save(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(
        transformers.LlamaForCausalLM.from_pretrained(base), folder
    ).eval()
    ids = torch.randint(3, 400, (2, 20))
    with torch.no_grad():
        assert (theirs(ids).logits - model.llama(ids)).abs().max() <= 1e-5


def theirs_in_nf4(base):
    """transformers' model with bitsandbytes' linears, computing in fp32: in training mode, since in eval mode
    on a CPU with AVX512-BF16 they would repack their weights for a kernel that multiplies in bf16."""
    quantisation = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM.from_pretrained(
        base, quantization_config=quantisation, dtype=torch.float32, device_map="cpu"
    ).train()


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_training_follows_peft(base, tmp_path, quantize):
    """20 steps of AdamW from the same adapter: the losses, and where the adapters arrive."""
    model = ours(base, quantize)
    folder = save(model, tmp_path)
    plain = theirs_in_nf4(base) if quantize else transformers.LlamaForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, folder, is_trainable=True)
    linear = theirs.base_model.model.model.layers[0].mlp.up_proj.base_layer
    assert linear.training or not quantize
    assert type(linear).__name__ == ("Linear4bit" if quantize else "Linear")
    losses, ends = {}, {}
    for name, net, logits in (
        ("ours", model.llama, model.llama),
        ("peft", theirs, lambda i: theirs(i).logits),
    ):
        generator = torch.Generator().manual_seed(5)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
        losses[name] = []
        for _ in range(20):
            ids = torch.randint(3, 400, (2, 20), generator=generator)
            loss = torch.nn.functional.cross_entropy(logits(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
        ends[name] = [p.detach() for n, p in net.named_parameters() if "lora_B" in n]
    assert losses["ours"] == pytest.approx(losses["peft"], abs=1e-5)
    assert len(set(losses["ours"])) == 20
    assert len(ends["ours"]) == len(ends["peft"]) == 14
    for a, b in zip(ends["ours"], ends["peft"], strict=True):
        assert a.abs().mean() > 1e-3 and (a - b).abs().mean() <= 1e-3 * a.abs().mean()

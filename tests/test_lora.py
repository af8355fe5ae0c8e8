import torch
from torch import nn

from llamaxr.llama import Llama, LlamaConfig
from llamaxr.lora import LoRALinear, add_lora
from llamaxr.nf4 import NF4Linear
from llamaxr.weights import load_llama


def trained(base: nn.Module) -> LoRALinear:
    torch.manual_seed(1)
    layer = LoRALinear(base, rank=4, lora_alpha=8.0)
    nn.init.normal_(layer.lora_B)
    return layer


def test_it_starts_as_the_layer_it_wraps():
    linear = nn.Linear(16, 24, bias=False)
    x = torch.randn(5, 16)
    assert torch.equal(LoRALinear(linear, 4, 8.0)(x), linear(x))


def test_a_starts_uniform_within_one_over_the_root_of_its_inputs_and_b_at_zero():
    """As peft's (kaiming_uniform_ with a = sqrt(5))."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(400, 30, bias=False), 64, 16.0)
    bound = 400**-0.5
    assert 0.99 * bound < layer.lora_A.abs().max() <= bound and not layer.lora_B.any()
    assert abs(layer.lora_A.std().item() / (bound / 3**0.5) - 1) < 0.02


def test_it_adds_alpha_over_rank_b_a():
    linear = nn.Linear(16, 24, bias=False)
    layer, x = trained(linear), torch.randn(5, 16)
    expected = x @ (linear.weight + 2.0 * layer.lora_B @ layer.lora_A).T
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.allclose(linear.weight + layer.lora_B @ layer.lora_A * 2.0, layer.merged())


def test_on_nf4_it_equals_itself_on_the_dequantised_weight_gradients_too():
    nf4 = NF4Linear.quantise(torch.randn(64, 64))
    plain = nn.Linear(64, 64, bias=False)
    plain.weight = nn.Parameter(nf4.weight, requires_grad=False)
    a, b, x = trained(nf4), trained(plain), torch.randn(7, 64)
    for layer in (a, b):
        layer(x).square().sum().backward()
    assert torch.allclose(a(x), b(x), atol=1e-4)
    for name in ("lora_A", "lora_B"):
        ours, theirs = getattr(a, name).grad, getattr(b, name).grad
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-2 * theirs.abs().mean().item())


def test_a_step_changes_the_adapter_and_no_byte_of_the_base(base):
    model, _ = load_llama(base, "nf4")
    add_lora(model, 4, 8.0)
    packed = {n: m.packed.clone() for n, m in model.named_modules() if isinstance(m, NF4Linear)}
    frozen = {n: p.clone() for n, p in model.named_parameters() if "lora_" not in n}
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = [p.clone() for p in adapters]
    model(torch.randint(3, 400, (2, 9))).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(m.packed, packed[n]) for n, m in model.named_modules() if isinstance(m, NF4Linear))
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if "lora_" not in n)
    assert any(not torch.equal(p, q) for p, q in zip(adapters, before, strict=True))


def test_rank_16_on_llama_31_8b_trains_exactly_the_papers_number():
    with torch.device("meta"):
        model = Llama(LlamaConfig())
    add_lora(model, 16, 16.0, device="meta")
    assert sum(isinstance(m, LoRALinear) for m in model.modules()) == 7 * 32
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_943_040


def test_a_merged_weight_acts_as_the_wrapped_layer():
    layer, x = trained(NF4Linear.quantise(torch.randn(96, 64))), torch.randn(3, 64)
    assert torch.allclose(x @ layer.merged().T, layer(x), atol=1e-4)

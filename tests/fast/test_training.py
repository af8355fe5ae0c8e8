"""fast.for_training against the plain model: losses, gradients, and what the packed row holds."""

import contextlib
import functools
import shutil
from dataclasses import replace

import pytest
import torch

from llamaxr import fast
from llamaxr.fast import training
from llamaxr.fast.gradients import LoRALinearInPlace
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.fast.packing import Packing, shared_length
from llamaxr.fast.training import FASTER
from llamaxr.llama import Llama, LlamaConfig
from llamaxr.lora import add_lora
from llamaxr.nf4 import NF4Linear
from llamaxr.prompt import IGNORE, SLOT, Example
from llamaxr.weights import load_llama
from tests.test_model import REPORTS, assemble, study


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def randomise_lora(llama, std):
    random = torch.Generator().manual_seed(1)
    for p in trainable(llama):
        torch.nn.init.normal_(p, std=std, generator=random)


@pytest.fixture()
def model(base):
    model = assemble(base)
    randomise_lora(model.llama, 0.1)
    fast.for_training(model)
    return model


@pytest.mark.parametrize("bridge", ["tokens", "scores"])
def test_every_block_is_recomputed_and_only_to_train(base, bridge, monkeypatch):
    """With bridge "scores" the first block's input is of frozen embeddings, and needs no gradient."""
    model, calls = assemble(base, bridge), []
    model.projector.requires_grad_(bridge != "scores")
    real = training.checkpoint
    monkeypatch.setattr(training, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    fast.recompute_blocks(model.llama)
    batch = model.collate([study(1)], REPORTS[:1])
    model.loss(batch).backward()
    assert len(calls) == len(model.llama.layers)
    with torch.inference_mode():
        model.loss(batch)
    assert len(calls) == len(model.llama.layers)


@pytest.mark.parametrize("bridge", ["tokens", "scores", "both"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_are_the_plain_models(base, bridge, recompute, weighted):
    studies, reports = [study(1), study(2, views=(0,)), study(3)], [*REPORTS, "Clear."]
    losses, grads = [], []
    for attach in (lambda model: None, fast.for_training):
        model = assemble(base, bridge)
        model.projector.requires_grad_(bridge != "scores")
        randomise_lora(model.llama, 0.1)
        attach(model)
        if recompute:
            fast.recompute_blocks(model.llama)
        batch = model.collate(studies, reports)
        if weighted:
            batch = replace(batch, weights=1.0 + torch.arange(len(batch.target_positions)) % 3)
        loss = model.loss(batch)
        losses.append(loss)
        grads.append(torch.autograd.grad(loss, trainable(model)))
    assert torch.allclose(*losses, rtol=1e-5)
    for a, b in zip(*grads, strict=True):  # the same sums in another order
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max())


def test_parameters_keep_their_names_and_identity(base):
    model = assemble(base)
    before = dict(model.named_parameters())
    fast.for_training(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_the_packed_row_holds_the_shared_prefix_once(model):
    studies = [study(1), study(2)]
    batch = model.collate(studies, REPORTS)
    rows = [model.collate([s], [r]).ids[0].tolist() for s, r in zip(studies, REPORTS, strict=True)]
    shared = batch.packing.shared
    assert shared > 20 and rows[0][:shared] == rows[1][:shared] and rows[0][shared] == SLOT
    assert batch.ids[0].tolist() == rows[0] + rows[1][shared:]
    assert batch.packing.positions.tolist() == [*range(len(rows[0])), *range(shared, len(rows[1]))]


@pytest.mark.parametrize(
    "prompts",
    [
        [[1, 2, 3], [1, 2, 3]],
        [[1, 2, 3], [1, 2, 4, 5]],
        [[1, 2, SLOT, 7], [1, 2, SLOT, 7]],
        [[1, 2, SLOT, 7]],
    ],
)
def test_the_shared_prefix_ends_before_an_image_and_leaves_each_row_a_position(prompts):
    rows = [Example([*p, 9], [IGNORE] * (len(p) - 1) + [9, IGNORE]) for p in prompts]
    assert shared_length(rows) == 2


def test_prompts_to_generate_from_are_not_packed(model):
    batch = model.collate([study(1), study(2, views=(0,))])
    assert batch.ids.shape[0] == 2 and batch.padding.tolist()[0] == 0 and batch.padding[1] > 0


def test_recomputing_changes_no_gradient_of_the_plain_blocks():
    config = LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64)
    torch.manual_seed(0)
    model, grads = Llama(config), []
    for recompute in (False, True):
        if recompute:
            fast.recompute_blocks(model)
        x = model.embed(torch.arange(12)[None]).detach().requires_grad_()
        model.hidden(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize(("lengths", "shared"), [([6, 4, 9], 3), ([5, 8], 0), ([7], 6), ([70, 300], 41)])
def test_attention_row_by_row_is_the_fused_kernels_its_gradients_too(
    lengths, shared, dtype, off, monkeypatch
):
    packing, random = Packing.of(lengths, shared), torch.Generator().manual_seed(0)
    n = len(packing.positions)
    new = lambda heads: torch.randn(1, heads, n, 16, generator=random).to(dtype)
    q, k, v = (new(heads).requires_grad_() for heads in (6, 2, 2))
    grad, results, calls = new(6), [], []
    row_by_row = Packing.attend_row_by_row
    monkeypatch.setattr(Packing, "attend_row_by_row", lambda *args: calls.append(1) or row_by_row(*args))
    for short in (max(lengths), max(lengths) - 1):
        monkeypatch.setattr("llamaxr.fast.packing.SHORT", short)
        y = packing.attend(q, k, v)
        results.append((y, *torch.autograd.grad(y, (q, k, v), grad)))
    assert len(calls) == 1
    for by_row, fused in zip(*results, strict=True):
        assert by_row.shape == fused.shape and by_row.dtype == fused.dtype == dtype
        assert torch.allclose(by_row, fused, atol=off, rtol=off)


def test_answers_alone_are_what_they_are_among_all_places():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64)
    model, packing, target_positions = Llama(config), Packing.of([6, 4], 3), torch.tensor([1, 4, 6])
    for module in model.modules():
        module.__class__ = FASTER.get(type(module), type(module))
    x = model.embed(torch.randint(0, 50, (1, 7))).detach().requires_grad_()
    every, some = (
        model.packed_hidden(x, packing, torch.arange(7))[target_positions],
        model.packed_hidden(x, packing, target_positions),
    )
    assert torch.allclose(some, every, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), x) for y in (every, some)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)
def test_compiled_blocks_give_the_same_loss_and_gradients_whatever_the_length():
    torch.compiler.reset()
    config = LlamaConfig(vocab_size=50, dim=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Llama(config))
        add_lora(models[-1], 4, 4.0)
        randomise_lora(models[-1], 0.02)
        for module in models[-1].modules():
            module.__class__ = FASTER.get(type(module), type(module))
    fast.compile_blocks(models[1])
    for lengths in ([30, 41, 35], [52, 33, 37], [40, 31]):
        packing, losses, grads = Packing.of(lengths, shared=10), [], []
        n = len(packing.positions)
        x = 0.1 * torch.randn(1, n, 64, generator=torch.Generator().manual_seed(1))
        for llama in models:
            llama.zero_grad()
            hidden = llama.packed_hidden(x.clone().requires_grad_(), packing, torch.arange(n))  # (n, 64)
            loss = hidden[:, :16].square().mean()  # not of all: the norm makes that a constant
            loss.backward()
            losses.append(loss.item())
            grads.append(torch.cat([p.grad.flatten() for p in trainable(llama)]))
        # fp32 through the same operations, which the compiler may fuse and add up in another order
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert torch.allclose(grads[1], grads[0], atol=1e-5 * grads[0].abs().max().item())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("plain", [True, False])
def test_blocks_are_traced_whole_and_other_lengths_need_no_new_graph(base, monkeypatch, plain):
    """As the compiler sees them, in 4 bits; what it then makes of a graph is its own."""
    torch.compiler.reset()
    trace = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", trace)
    model = assemble(base)
    model.llama, _ = load_llama(base, "nf4", nf4=NF4Linear if plain else TiledNF4Linear)
    add_lora(model.llama, 4, 8.0)
    if not plain:
        fast.for_training(model)
    fast.compile_blocks(model.llama)
    graphs = []
    for reports in (REPORTS, [REPORTS[1] * 2, REPORTS[0]], ["Clear.", "Normal."]):
        torch._dynamo.utils.counters.clear()
        model.loss(model.collate([study(1), study(2)], reports)).backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] in (1, 2) and graphs[1:] == [0, 0]


def test_no_row_gathers_a_place_of_the_prefix_or_of_another_row():
    packing = Packing.of([7, 9, 8], 5)
    assert [sorted({*row}) for row in packing.own.tolist()] == [[5, 6], [7, 8, 9, 10], [11, 12, 13]]


def test_adapters_are_cast_once_and_no_copy_outlives_its_forward_pass(base):
    """In bf16: with the copies and with a cast in each layer, losses and gradients are the same bits."""
    results = []
    for at_once in (False, True):
        llama, _ = load_llama(base, "nf4", torch.bfloat16)
        add_lora(llama, 4, 8.0)
        randomise_lora(llama, 0.1)
        for module in llama.modules():
            module.__class__ = FASTER.get(type(module), type(module))
        x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            if not at_once:
                patch.setattr("llamaxr.fast.packing.adapters_in", lambda *_: contextlib.nullcontext())
            y = llama.packed_hidden(x, Packing.of([6, 5], 2), torch.arange(9))
        assert not any(m.copies for m in llama.modules() if isinstance(m, LoRALinearInPlace))
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *trainable(llama)])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert {g.dtype for g in results[1][2:]} == {torch.float32}

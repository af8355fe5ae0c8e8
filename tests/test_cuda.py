"""What only a GPU can show: CUDA computes what the CPU does, a step waits for nothing, runs go through.

Most compare in fp32, where both add up the same products in another order. Without a GPU all are skipped.
"""

import importlib
import itertools
import shutil
import signal
from pathlib import Path

import bitsandbytes.optim
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llamaxr import decoding, fast
from llamaxr.fast import packing
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.fast.optimizer import adamw8bit
from llamaxr.llama import Llama, LlamaConfig
from llamaxr.lora import TARGETS, add_lora
from llamaxr.model import LlamaXR
from llamaxr.nf4 import NF4Linear
from llamaxr.projector import Projector
from llamaxr.prompt import SLOT
from llamaxr.runs import checkpoint, memory
from llamaxr.runs.run import pick_device
from llamaxr.tokenizer import load_tokenizer
from llamaxr.weights import load_llama
from tests.conftest import lay_out_phantoms, short_run, untimed
from tests.test_model import REPORTS, study

pytestmark = pytest.mark.gpu

HOME = Path(__file__).resolve().parent.parent
STUDIES = [study(1), study(2, views=(0,)), study(3), study(4)]
TEXTS = [*REPORTS, "Clear.", "There is a small left pleural effusion. No pneumothorax."]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, scope="module")
def _device():
    pick_device("cuda")  # sets what the program sets


@pytest.fixture()
def assemble(base):
    """A function of device, dtype, quantize and plain -> the same model with adapters that are not zero."""

    def make(device, dtype=torch.float32, quantize=None, plain=True):
        nf4 = NF4Linear if plain else TiledNF4Linear
        llama, tokenizer = load_llama(base, quantize, dtype, device, nf4)
        add_lora(llama, 4, 8.0, device=device)
        model = LlamaXR(Projector(8, 64, grid=2, token_std=0.2).to(device), llama, tokenizer, "tokens")
        random = torch.Generator().manual_seed(0)
        for p in trainable(model):
            p.data.copy_(0.1 * torch.randn(p.shape, generator=random))
        if not plain:
            fast.for_training(model)
        return model

    return make


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def difference(a, b):
    """The norm of a - b over that of b."""
    a, b = (torch.cat([t.detach().double().cpu().flatten() for t in ts]) for ts in (a, b))
    return ((a - b).norm() / b.norm()).item()


def loss_and_gradients(model):
    batch = model.collate(STUDIES, TEXTS).to(model.projector.place.device)
    loss = model.loss(batch) / len(batch.target_positions)
    return loss, torch.autograd.grad(loss, trainable(model))


@pytest.mark.parametrize("plain", [True, False])
def test_loss_and_gradients_are_the_cpus(assemble, plain):
    ours, theirs = (loss_and_gradients(assemble(d, plain=p)) for d, p in (("cuda", plain), ("cpu", True)))
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-4)
    assert difference(ours[1], theirs[1]) < 1e-3  # CUDA may multiply in three TF32 products


@pytest.mark.parametrize("plain", [True, False])
def test_in_bf16_and_4_bits_they_are_near_the_cpus(assemble, plain):
    ours = loss_and_gradients(assemble("cuda", torch.bfloat16, "nf4", plain))
    theirs = loss_and_gradients(assemble("cpu", quantize="nf4"))
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=0.01)  # bf16 on a CPU: 0.0002 off
    assert difference(ours[1], theirs[1]) < 0.15  # bf16 on a CPU: 0.056


def test_recomputing_changes_no_gradient(assemble):
    results = []
    for recompute in (False, True):
        model = assemble("cuda", torch.bfloat16, "nf4")
        if recompute:
            fast.recompute_blocks(model.llama)
        results.append(loss_and_gradients(model)[1])
    assert difference(*results) < 1e-2  # the same kernels, but sums of the projector's gradient in any order


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_to_packed_rows_is_that_of_each_row(dtype):
    rows, torch_random = packing.Packing.of([70, 33, 90], 30), torch.Generator().manual_seed(0)
    n = len(rows.positions)
    q, k, v = (torch.randn(1, heads, n, 32, generator=torch_random).to("cuda", dtype) for heads in (6, 2, 2))
    y = rows.to("cuda").attend(q, k, v)
    start = 30
    for size in rows.sizes:
        own = [*range(30), *range(start, start + size)]
        alone = F.scaled_dot_product_attention(
            *(t[:, :, own].double() for t in (q, k, v)), is_causal=True, enable_gqa=True
        )
        assert difference([y[:, :, own]], [alone]) < (1e-4 if dtype == torch.float32 else 0.01)
        start += size


def test_flash_attention_is_chosen_to_train_with(assemble):
    for plain in (True, False):
        model = assemble("cuda", torch.bfloat16, plain=plain)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            loss_and_gradients(model)
        names = {event.key for event in profile.key_averages()}
        assert "aten::_scaled_dot_product_flash_attention" in names
        assert not any("cudnn_attention" in name for name in names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 16, 33, 64, 600])
@pytest.mark.parametrize("kind", [NF4Linear, TiledNF4Linear])
def test_a_product_in_4_bits_is_that_of_the_dequantised_weight(kind, rows, dtype):
    weight = torch.randn(384, 512, generator=torch.Generator().manual_seed(0))
    layer, x = kind.quantise(weight.cuda()), torch.randn(1, rows, 512).to("cuda", dtype).requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y)
    (x_grad,) = torch.autograd.grad(y, x, grad)
    with torch.no_grad():
        alone, w = layer(x), layer.weight.double()
    close = 1e-3 if dtype == torch.float32 else 0.01  # W, x and y are rounded to 2^-9
    for ours, plain in ((y, x.double() @ w.T), (alone, x.double() @ w.T), (x_grad, grad.double() @ w)):
        assert ours.dtype == dtype and difference([ours], [plain]) < close


def test_codes_are_the_cpus_and_the_fast_forms():
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    cpu = NF4Linear.quantise(weight)
    plain, tiled = (kind.quantise(weight.cuda()) for kind in (NF4Linear, TiledNF4Linear))
    assert torch.equal(plain.packed, tiled.packed) and torch.equal(plain.weight, tiled.weight)
    assert (plain.packed.cpu() != cpu.packed).double().mean() < 1e-4  # halfway between two levels
    assert difference([plain.weight], [cpu.weight]) < 1e-2  # 8-bit absmaxes, rounded in two ways


@pytest.mark.parametrize("padding", [None, [0, 3, 1, 5]])
@pytest.mark.parametrize("replayed", [False, True])
def test_reports_are_the_cpus(assemble, replayed, padding):
    texts = {}
    for device in ("cpu", "cuda"):
        model = assemble(device).eval()
        if replayed and device == "cuda":  # on a CPU it would round the weights to fp16
            fast.for_generation(model)
        llama = model.llama
        ids = torch.randint(3, 400, (4, 12), generator=torch.Generator().manual_seed(1)).to(device)
        x, filler = llama.embed(ids), padding and torch.tensor(padding, device=device)
        texts[device] = (
            decoding.generate(llama, x, filler, (5,), 40), decoding.beam_search(llama, x, filler, (5,), 12, 3)
        )  # fmt: skip
    assert texts["cuda"] == texts["cpu"]


def test_a_recorded_step_is_replayed_without_a_wait(assemble):
    model = assemble("cuda", torch.bfloat16).eval()
    fast.for_generation(model)
    llama, tokens = model.llama, []
    with torch.inference_mode():
        x = llama.embed(torch.randint(3, 400, (3, 12), device="cuda"))
        cache = decoding.KVCache(llama.config, 3, 32, "cuda", x.dtype)
        hidden = llama.hidden(x, None, cache)

        def step(hidden):
            tokens.append(decoding.sample(llama.logits(hidden[:, -1]).float(), 1.0, 0.9, None))
            return llama.hidden(llama.embed(tokens[-1])[:, None], None, cache)

        hidden = step(step(hidden))  # the second one is recorded
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                hidden = step(hidden)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert cache.step.graph is not None and cache.step.place.item() == 12 + 11
    assert torch.stack(tokens).max() < 448


@pytest.mark.parametrize("replayed", [False, True])
def test_sampling_repeats_with_its_seed(assemble, replayed):
    model = assemble("cuda").eval()
    if replayed:
        fast.for_generation(model)
    x = model.llama.embed(torch.randint(3, 400, (2, 12), generator=torch.Generator().manual_seed(1)).cuda())

    def draw(seed):
        how = {"temperature": 2.0, "top_p": 0.9, "generator": torch.Generator("cuda").manual_seed(seed)}
        return decoding.generate(model.llama, x, None, (999,), 20, **how)

    assert draw(1) == draw(1) != draw(2)


def test_training_takes_the_memory_that_was_forecast(base):
    """Four blocks as wide as Llama 3.1 8B's, in each form: the forecast holds, and is not far too high."""
    config, tokenizer = LlamaConfig(n_layers=4, vocab_size=16_000), load_tokenizer(base)
    texts = [" ".join([REPORTS[0]] * n) for n in (2, 3, 4, 5)]
    for plain, recompute in itertools.product((True, False), (True, False)):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        with torch.device("meta"):
            llama = Llama(config)
        for name, meta in list(llama.named_parameters()):
            module, _, kind = name.rpartition(".")
            parent, _, child = module.rpartition(".")
            weight = torch.randn(meta.shape, device="cuda", dtype=torch.bfloat16).mul_(0.02)
            if child in TARGETS:
                nf4 = NF4Linear if plain else TiledNF4Linear
                setattr(llama.get_submodule(parent), child, nf4.quantise(weight))
            else:
                setattr(llama.get_submodule(module), kind, nn.Parameter(weight, requires_grad=False))
        add_lora(llama, 16, 16.0, device="cuda")
        model = LlamaXR(Projector(8, config.dim, 2).to("cuda"), llama, tokenizer, "tokens")
        if not plain:
            fast.for_training(model)
        if recompute:
            fast.recompute_blocks(llama)
        del weight
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        optimizer = torch.optim.AdamW(trainable(model))
        for _ in range(2):
            batch = model.collate(STUDIES, texts, 300).to("cuda")
            (model.loss(batch) / len(batch.target_positions)).backward()
            optimizer.step()
            optimizer.zero_grad()
        prompts = [model.prompt(one) for one in STUDIES]
        needs = memory.training_needs(
            config, in_4_bits=True, dtype=torch.bfloat16, rank=16, projector=(8, 2),
            prompt=max(map(len, prompts)), shared=prompts[0].index(SLOT),
            reports=[len(tokenizer.encode(text)) + 1 for text in texts], recompute=recompute, plain=plain,
            cuda=True,
        )  # fmt: skip
        taken = torch.cuda.max_memory_allocated() - before
        forecast = sum(needs.values()) - needs["program"]
        assert taken < 1.02 * forecast and forecast < 1.4 * taken, (plain, recompute, taken, needs)
        del model, llama, optimizer, batch


@pytest.mark.parametrize("kind", [torch.optim.AdamW, adamw8bit])
@pytest.mark.parametrize("plain", [True, False])
def test_a_step_waits_for_nothing(assemble, monkeypatch, plain, kind):
    """From the batch on the CPU to the new parameters. Then train.py waits once, for the loss to log."""
    model = assemble("cuda", torch.bfloat16, "nf4", plain)
    optimizer, waits = kind(trainable(model), lr=1e-3), []

    def step():
        batch = model.collate(STUDIES, TEXTS).to("cuda")
        loss = model.loss(batch) / torch.tensor(len(batch.target_positions))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable(model), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    losses = [step()]  # the first one makes tables and the optimiser's state
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append(1))  # the mode does not see these
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses += [step() for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits == [] and losses[-1] < losses[0]


def test_adamw8bit_is_bitsandbytes_own_and_can_be_resumed(assemble, tmp_path):
    def step(model, optimizer, n):
        for i in range(n):
            random = torch.Generator("cuda").manual_seed(i)
            for p in trainable(model):
                p.grad = torch.randn(p.shape, device="cuda", generator=random)
            optimizer.step()

    ours, theirs = assemble("cuda"), assemble("cuda")
    optimizer = adamw8bit(trainable(ours), lr=1e-2)
    step(ours, optimizer, 3)
    step(theirs, bitsandbytes.optim.AdamW8bit(trainable(theirs), lr=1e-2), 3)
    assert all(torch.equal(a, b) for a, b in zip(trainable(ours), trainable(theirs), strict=True))
    folder = checkpoint.save(tmp_path, ours, {"base": "", "rank": 4, "lora_alpha": 8.0}, 3, 1.0, optimizer)
    resumed = assemble("cuda")
    other = adamw8bit(trainable(resumed), lr=1e-2)
    checkpoint.load(folder, resumed, other)
    step(ours, optimizer, 2)
    step(resumed, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(trainable(ours), trainable(resumed), strict=True))


@pytest.mark.skipif(not shutil.which("gcc"), reason="torch.compile needs a C compiler")
@pytest.mark.parametrize("plain", [True, False])
def test_compiled_blocks_give_the_same_gradients_and_are_compiled_once(assemble, plain):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = (assemble("cuda", torch.bfloat16, "nf4", plain) for _ in range(2))
    fast.compile_blocks(compiled.llama)
    assert difference(loss_and_gradients(compiled)[1], loss_and_gradients(eager)[1]) < 0.15  # as bf16 above
    n_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    longer = compiled.collate(STUDIES, [f"{text} {REPORTS[0]}" for text in TEXTS]).to("cuda")
    compiled.loss(longer).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == n_graphs


@pytest.fixture()
def scripts(monkeypatch):
    """A function of a script's name -> its module."""
    monkeypatch.syspath_prepend(str(HOME))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield importlib.import_module
    for number, handler in handlers.items():  # train.py catches them
        signal.signal(number, handler)


def run_on_cuda(folder, plain, optimizer):
    """The options of a short run on CUDA, whose data it lays out in the folder."""
    lay_out_phantoms(folder, 24, 8, 8)
    argv = [str(word) for word in short_run(folder)]
    argv[argv.index("--device") + 1] = "cuda"
    argv += ["--batch", "4", "--val-studies", "4", "--optimizer", optimizer]
    return [*argv, "--plain" if plain else "--no-plain"]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_run_trains_resumes_and_generates(scripts, tmp_path, monkeypatch, plain, optimizer):
    whole, half, save = tmp_path / "whole", tmp_path / "half", checkpoint.save

    def save_and_copy(run, *rest):
        folder = save(run, *rest)
        if run == whole and folder.name == "step-000003":
            shutil.copytree(whole, half)
        return folder

    monkeypatch.setattr(checkpoint, "save", save_and_copy)
    argv = run_on_cuda(tmp_path / "iu", plain, optimizer)
    scripts("train").main([*argv, "--out", str(whole)])
    scripts("train").main(["--resume", str(half)])
    for one, other in zip(*(untimed(run / "metrics.jsonl") for run in (half, whole)), strict=True):
        assert one["step"] == other["step"]
        for loss in {"loss", "val_loss"} & other.keys():  # bf16, and a few sums are added up in any order
            assert one[loss] == pytest.approx(other[loss], rel=0.02)
    image = next((tmp_path / "iu" / "images").rglob("*.png"))
    scripts("generate").main([str(image), "--run", str(half), "--device", "cuda", "--max-tokens", "20"])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_deterministic_run_repeats_bit_for_bit(scripts, tmp_path, monkeypatch, plain, optimizer):
    argv = [*run_on_cuda(tmp_path / "iu", plain, optimizer), "--deterministic"]
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is set back
    runs = [tmp_path / "one", tmp_path / "other"]
    try:
        for run in runs:
            scripts("train").main([*argv, "--out", str(run)])
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    one, other = (untimed(run / "metrics.jsonl") for run in runs)
    assert one == other


def test_a_linear_that_learns_beside_4_bits_has_its_formula():
    """LoRA's gradients in bf16, by hand and by autograd."""
    from llamaxr.fast.gradients import LoRALinearInPlace
    from llamaxr.lora import LoRALinear

    results = []
    for kind, nf4 in ((LoRALinear, NF4Linear), (LoRALinearInPlace, TiledNF4Linear)):
        weight = torch.randn(384, 512, generator=torch.Generator().manual_seed(0)).cuda()
        layer = kind(nf4.quantise(weight), 8, 16.0, device="cuda")
        random = torch.Generator("cuda").manual_seed(1)
        for p in layer.parameters():
            nn.init.normal_(p, std=0.05, generator=random)
        x = torch.randn(2, 70, 512, device="cuda", generator=random).bfloat16().requires_grad_()
        y = layer(x)
        grad = torch.randn(y.shape, device="cuda", generator=random).bfloat16()
        results.append([y, *torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), grad)])
    for ours, theirs in zip(*results, strict=True):
        assert difference([ours], [theirs]) < 0.01

"""What training is forecast to need, against what it takes; and how a lack of memory is told."""

import functools
import importlib
import shutil

import pytest
import torch
from PIL import Image

import train
from llamaxr.errors import UserError
from llamaxr.fast import packing
from llamaxr.fast.packing import PackedLlamaXR, Packing
from llamaxr.fast.training import FASTER
from llamaxr.llama import Llama, LlamaConfig
from llamaxr.lora import add_lora
from llamaxr.runs import memory
from llamaxr.runs.recipes import apply_recipe
from llamaxr.runs.run import DEMO
from llamaxr.runs.terminal import one_line_errors
from tests.conftest import lay_out_phantoms, short_run

LLAMA_8B = LlamaConfig()
RUN = {"in_4_bits": True, "dtype": torch.bfloat16, "rank": 16, "projector": (1024, 7), "prompt": 150,
       "shared": 50, "reports": [100], "recompute": False, "plain": False, "cuda": True}  # fmt: skip
# IU X-ray's largest batches in tokens (of SmolLM2's tokenizer): the prompts, and the eight longest reports.
LONGEST = [194, 188, 142, 142, 136, 135, 135, 134]
OURS = {**RUN, "projector": (1024, 4), "prompt": 102, "shared": 55, "reports": [n + 25 for n in LONGEST]}
PAPER = {**RUN, "prompt": 540, "shared": 180, "reports": LONGEST}
# What a card of so many GB has, less what CUDA itself takes of it.
GB_16, GB_24, GB_80 = 15.2 * memory.GIB, 23.1 * memory.GIB, 78.7 * memory.GIB

# What torch raises, and bitsandbytes and cuBLAS through it.
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.61 GiB. GPU 0 has a total capacity of"),
    RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you"),
]  # fmt: skip


def needs(run: dict, **changes) -> int:
    return sum(memory.training_needs(LLAMA_8B, **{**run, **changes}).values())


def test_llama_3_1_8b_in_nf4_takes_what_its_parts_sum_up_to():
    linears, embedding_and_head = 6_979_321_856, 2 * 128256 * 4096
    for bits, plain, cuda in ((4.127, True, True), (4.5, False, True), (4.127, False, False)):
        parts = memory.training_needs(LLAMA_8B, **{**RUN, "plain": plain, "cuda": cuda})
        assert parts["weights"] == pytest.approx(linears * bits / 8 + embedding_and_head * 2, rel=1e-3)
    projector = 1024 * 4096 + 4096 + 4096**2 + 4096 + 2 * 49 * 4096
    assert parts["adapters and projector"] == (41_943_040 + projector) * 4


@pytest.mark.parametrize("plain", [True, False])
def test_a_card_of_16_gb_trains_ours_one_of_24_gb_both_and_one_of_80_gb_without_recomputing(plain):
    assert needs(OURS, plain=plain, recompute=True) < GB_16
    assert needs(OURS, plain=plain, recompute=True, dtype=torch.float32) < GB_16
    assert needs(PAPER, plain=plain, recompute=True) < GB_24
    assert GB_24 < needs(PAPER, plain=plain) < GB_80 and needs(OURS, plain=plain) < GB_80


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plain", "short", "shared"),
    [(False, 512, 0), (False, 512, 40), (False, 0, 0), (False, 0, 40), (True, 0, 0)],
)
def test_the_estimate_of_a_block_is_what_autograd_keeps(plain, short, shared, dtype, monkeypatch):
    """With a torch whose attention is fused for grouped queries, and with one (2.8) whose is not."""
    for module in (memory, packing):
        monkeypatch.setattr(module, "SHORT", short)
    config = LlamaConfig(
        vocab_size=100, dim=192, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=32, ffn_dim=512
    )
    model, saved = Llama(config), {}
    add_lora(model, 1, 1.0)
    model.to(dtype)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def save(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(2, 100, 192, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        if plain:
            y = model.hidden(x)
        else:
            for module in model.modules():
                module.__class__ = FASTER.get(type(module), type(module))
            packed, n = Packing.of([100, 100], shared), 200 - shared
            y = model.packed_hidden(x.reshape(1, 200, 192)[:, :n], packed, torch.arange(n))
    measured = sum(saved.values())
    block = memory.block_bytes(config, 200 - shared, 200, 100, dtype, plain, cuda=False)
    assert y.requires_grad and 0.9 <= measured / (3 * block) <= 1.1


def test_recompute_needs_far_less():
    run = {**RUN, "reports": [100] * 8}
    plain = memory.training_needs(LLAMA_8B, **run)
    less = memory.training_needs(LLAMA_8B, **{**run, "recompute": True})
    assert less["activations"] < plain["activations"] / 5
    assert {k: v for k, v in less.items() if k != "activations"} == {
        k: v for k, v in plain.items() if k != "activations"
    }


@pytest.mark.parametrize(
    ("free", "rows", "recompute", "in_4_bits", "remedy"),
    [(20, 8, False, True, None), (14, 8, False, True, "--recompute auto"), (14, 8, True, True, "--batch 6"),
     (8, 8, True, True, "--grid"), (7.9, 1, True, False, "--quantize"), (7, 1, True, True, "smaller --base")],
)  # fmt: skip
def test_the_advice_names_what_would_make_it_fit(free, rows, recompute, in_4_bits, remedy):
    parts = {"weights": 6 * memory.GIB, "program": 2 * memory.GIB, "activations": 8 * memory.GIB}
    advice = memory.advice(parts, int(free * memory.GIB), rows, recompute, in_4_bits)
    assert advice is None if remedy is None else remedy in advice


def test_free_memory_is_at_most_what_the_machine_has():
    assert 0 < memory.free_memory(torch.device("cpu")) < 2**45


def test_a_containers_files_in_memory_count_as_free(monkeypatch, tmp_path):
    """cgroup v2 counts them as used, and gives them back when a program asks."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 200\ninactive_file 350\n")
    real = memory._read
    here = lambda path, *rest: real(path.replace("/sys/fs/cgroup", str(tmp_path)), *rest)
    monkeypatch.setattr(memory, "_read", here)
    assert memory.free_memory(torch.device("cpu")) == 650
    (tmp_path / "memory.stat").unlink()
    assert memory.free_memory(torch.device("cpu")) == 100


def test_what_does_not_learn_needs_no_gradient_and_8_bits_need_a_byte():
    parts = memory.training_needs(LLAMA_8B, **RUN)
    paper = memory.training_needs(
        LLAMA_8B, **RUN, projector_learns=False, moments=memory.MOMENTS["adamw8bit"]
    )
    key = "gradients and AdamW"
    assert parts[key] == parts["adapters and projector"] * 3
    assert paper[key] == pytest.approx(41_943_040 * 6, rel=0.01)
    assert {**paper, key: parts[key]} == parts


def test_a_system_that_does_not_tell_stops_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_read", lambda *_: None)
    assert memory.free_memory(torch.device("cpu")) == 2**63


@pytest.mark.parametrize("error", ERRORS)
def test_a_lack_of_memory_ends_in_one_line_with_the_last_checkpoint_and_advice(error, tmp_path):
    options = apply_recipe("ours", batch=8, accumulate=1)
    with (
        pytest.raises(UserError, match="no checkpoint yet.*--recompute on --batch 4 --accumulate 2$"),
        memory.out_of_memory_in_one_line(tmp_path, options),
    ):
        raise error
    for step in (50, 100):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text(f'{{"step": {step}}}')
    shutil.copytree(tmp_path / "step-000050", tmp_path / "step-000150.tmp")  # killed while it was saved
    with pytest.raises(UserError) as caught, memory.out_of_memory_in_one_line(tmp_path, options):
        raise error
    line = str(caught.value)
    assert "memory" in line or "ALLOC_FAILED" in line
    assert f'set "recompute": "on", "batch": 4, "accumulate": 2 in {tmp_path}/config.json' in line
    assert line.endswith(f"go on from step-000100 with: python train.py --resume {tmp_path}")
    assert "\n" not in line and "GPU 0" not in line


@pytest.mark.parametrize(
    ("batch", "processes", "flags"),
    [(9, 1, "--batch 3 --accumulate 6"), (7, 1, "--batch 1 --accumulate 14"),
     (8, 3, "--batch 4 --accumulate 4"), (2, 2, "--max-report-tokens 150"),
     (1, 1, "--max-report-tokens 150")],
)  # fmt: skip
def test_the_smaller_batch_has_the_same_studies_per_step(batch, processes, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "world_size", lambda: processes)
    options = apply_recipe("ours", batch=batch, accumulate=2, recompute="on")
    with (
        pytest.raises(UserError, match=f"start again with {flags}$"),
        memory.out_of_memory_in_one_line(tmp_path, options),
    ):
        raise MemoryError
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "state.json").write_text('{"step": 1}')
    named = {" --accumulate": ', "accumulate":', "--batch": '"batch":'}
    named |= {"--max-report-tokens": '"max_report_tokens":'}
    changes = functools.reduce(lambda text, flag: text.replace(flag, named[flag]), named, flags)
    with (
        pytest.raises(UserError, match=f"set {changes} in .*config.json, then"),
        memory.out_of_memory_in_one_line(tmp_path, options),
    ):
        raise MemoryError


def test_a_training_that_runs_out_of_memory_exits_with_two_and_keeps_its_checkpoint(
    tmp_path, monkeypatch, capsys
):
    lay_out_phantoms(tmp_path, 8, 4, 4)
    loss, calls = PackedLlamaXR.loss, []

    def loss_until_the_fifth_step(model, batch):
        calls.append(torch.is_grad_enabled())
        if sum(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.61 GiB. GPU 0 has")
        return loss(model, batch)

    monkeypatch.setattr(PackedLlamaXR, "loss", loss_until_the_fifth_step)
    monkeypatch.setattr(train, "catch_signals", list)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop, one_line_errors():
        train.main([*map(str, short_run(tmp_path)), "--batch", "4", "--out", str(run)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in err and (run / "step-000003").is_dir()
    assert err.endswith(f"go on from step-000003 with: python train.py --resume {run}\n")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("script", ["generate", "eval"])
def test_the_other_scripts_end_in_one_line_too(script, error, tmp_path, monkeypatch, capsys):
    Image.linear_gradient("L").save(tmp_path / "image.png")
    argv = {"generate": [str(tmp_path / "image.png")], "eval": []}[script]

    def build(*_):
        raise error

    monkeypatch.setattr("llamaxr.runs.run.build", build)
    with pytest.raises(SystemExit) as stop, one_line_errors():
        importlib.import_module(script).main([*argv, "--run", str(DEMO)])
    err = capsys.readouterr().err
    # from Python 3.12 on a fork of pytest's own process is warned of, where pytest shows such warnings
    lines = [line for line in err.splitlines() if "use of fork()" not in line]
    assert stop.value.code == 2 and len(lines) == 1 and "use a smaller --batch or --max-tokens" in err


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        with one_line_errors(), memory.out_of_memory_in_one_line(tmp_path, apply_recipe("sample")):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

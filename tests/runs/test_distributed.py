"""Two real processes under torchrun do what one does: train, compute features, generate; stop, resume.

Each process has one thread, so each sum within a process is added in the same order. Sums across processes
are not: a mean over four studies' tokens becomes the sum of two sums. In fp32 that changes a loss by about
1e-7 of itself per step, and the steps carry it on. 1e-5 after six steps is far above that, and far below what
one wrongly sharded study does (1e-2).
"""

import importlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.runs import checkpoint, distributed
from llamaxr.runs.features import study_features
from llamaxr.runs.vision_zoo import load_vision
from tests.conftest import lay_out_phantoms, short_run, untimed

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME))
train, evaluate = (importlib.import_module(name) for name in ("train", "eval"))
ROUNDING = {"rel": 1e-5}
TIMEOUT = 600  # seconds; on a busy machine three imports of torch take a minute


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)  # train.py sets it, and signal handlers
    for number, handler in handlers.items():
        signal.signal(number, handler)


def torchrun(*argv, n=2) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", n, "--", *argv]
    return subprocess.Popen(
        list(map(str, command)), cwd=HOME, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)},
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    """The stdout of a torchrun that must succeed."""
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return out


def call(script, *argv):
    script.main([str(a) for a in argv])


def same_but_for_rounding(ours: list[dict], theirs: list[dict]):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, **ROUNDING)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """28 phantoms in R2Gen's layout: 13 to train, 5 to validate, 10 to test."""
    root = tmp_path_factory.mktemp("iu")
    lay_out_phantoms(root, 13, 5, 10)
    return root


@pytest.fixture(scope="module")
def options(root):
    # 5 to validate and a batch of 3 cannot be sharded evenly; 13 to train end an epoch within a step
    return [*short_run(root), "--batch", 3, "--accumulate", 2]


@pytest.fixture(scope="module")
def one(root, options):
    call(train, *options, "--out", root / "one")
    return root / "one"


@pytest.fixture(scope="module")
def two(root, options):
    out = finished(torchrun("train.py", *options, "--out", root / "two"))
    assert out.count("validation loss") == 2  # once a validation, not once a process
    return root / "two"


# Training


def test_two_processes_train_to_the_losses_of_one(one, two):
    same_but_for_rounding(untimed(two / "metrics.jsonl"), untimed(one / "metrics.jsonl"))
    for name in ("adapter_model", "projector"):
        ours, theirs = (load_file(f / f"step-000006/{name}.safetensors") for f in (one, two))
        for key in ours:
            torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-4)
    assert sorted(f.name for f in two.iterdir()) == sorted(f.name for f in one.iterdir())


def test_a_terminated_torchrun_stops_all_at_one_step_and_any_number_of_processes_goes_on(
    root, options, one, two
):
    stopped = root / "stopped"
    process, log = torchrun("train.py", *options, "--out", stopped), stopped / "metrics.jsonl"
    until = time.monotonic() + TIMEOUT
    while not (log.exists() and '"step": 1,' in log.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    process.terminate()
    out, err = process.communicate(timeout=TIMEOUT)
    assert out.count("stopped at step") == 1 and "error:" not in err
    step = untimed(stopped / "metrics.jsonl")[-1]["step"]
    assert step < 6 and checkpoint.last(stopped).name == f"step-{step:06d}"
    shutil.copytree(stopped, root / "alone")
    finished(torchrun("train.py", "--resume", stopped))
    assert untimed(stopped / "metrics.jsonl") == untimed(two / "metrics.jsonl")  # bit for bit
    call(train, "--resume", root / "alone")
    same_but_for_rounding(untimed(root / "alone/metrics.jsonl"), untimed(one / "metrics.jsonl"))


# Evaluation


@pytest.fixture(scope="module")
def evaluated(one, tmp_path_factory):
    out = tmp_path_factory.mktemp("eval")
    call(evaluate, "--run", one, "--out", out, "--max-tokens", 20, "--batch", 3)
    return out


def test_two_processes_generate_and_score_the_same_reports_as_one(one, evaluated, tmp_path):
    out = finished(torchrun("eval.py", "--run", one, "--out", tmp_path, "--max-tokens", 20, "--batch", 3))
    for name in ("results.json", "reports.jsonl"):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()
    ours, theirs = ((f / "generated.jsonl").read_text().splitlines() for f in (tmp_path, evaluated))
    assert ours[0] == theirs[0] and sorted(ours) == sorted(theirs)
    assert not list(tmp_path.glob("generated.*.jsonl")) and out.count("report.html") == 1


def test_a_file_is_scored_by_one_process_alone(evaluated, tmp_path, monkeypatch):
    shutil.copyfile(evaluated / "reports.jsonl", tmp_path / "theirs.jsonl")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with pytest.raises(SystemExit) as stop:
        call(evaluate, "--score", tmp_path / "theirs.jsonl")
    assert not stop.value.code and not (tmp_path / "theirs-scores").exists()


def test_an_evaluation_that_three_processes_began_is_finished_by_one(one, evaluated, tmp_path):
    settings, *rows = (evaluated / "generated.jsonl").read_text().splitlines(keepends=True)
    marked = [row.replace('"generated": "', '"generated": "REUSED ') for row in rows]
    (tmp_path / "generated.jsonl").write_text("".join([settings, *marked[:2]]))
    (tmp_path / "generated.1.jsonl").write_text("".join([settings, *marked[2:4], marked[4][:20]]))
    (tmp_path / "generated.2.jsonl").write_text("".join(['{"other": "settings"}\n', *marked[6:]]))
    call(evaluate, "--run", one, "--out", tmp_path, "--max-tokens", 20, "--batch", 3)
    reports = {row["id"]: row["generated"] for row in untimed(tmp_path / "reports.jsonl")}
    for i, row in enumerate(map(json.loads, rows)):
        assert reports[row["id"]] == ("REUSED " if i < 4 else "") + row["generated"]
    assert [f.name for f in tmp_path.glob("generated*")] == ["generated.jsonl"]


# Features

COMPUTE = """
import pickle, sys, torch
from pathlib import Path
from llamaxr.runs import distributed
from llamaxr.runs.features import study_features
from llamaxr.runs.vision_zoo import load_vision
cpu, computed, unreadable, cache = torch.device("cpu"), [], [], Path(sys.argv[2])
distributed.init(cpu)
studies = pickle.loads(Path(sys.argv[1]).read_bytes())
features = study_features(load_vision("tiny"), studies, cpu, cache, 4, computed.append, unreadable)
features = [(f.views, f.grids.clone(), f.scores.clone()) for f in features]
result = {"features": features, "computed": computed, "unreadable": unreadable}
torch.save(result, cache / f"{distributed.rank()}.pt")
"""


def test_each_process_computes_its_shard_of_the_features_and_has_them_all(root, tmp_path):
    films = sorted((root / "images").glob("*/0.png"))[:18]
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    studies = [Study(str(i), film, None, "", "test") for i, film in enumerate([*films[:9], bad, *films[9:]])]
    (tmp_path / "studies").write_bytes(pickle.dumps(studies))
    (tmp_path / "compute.py").write_text(COMPUTE)
    (tmp_path / "two").mkdir()
    finished(torchrun(tmp_path / "compute.py", tmp_path / "studies", tmp_path / "two"))
    unreadable, cpu = [], torch.device("cpu")
    ours = study_features(load_vision("tiny"), studies, cpu, tmp_path / "one", 4, unreadable=unreadable)
    for rank, shard in enumerate(([4, 4, 3], [4, 4])):  # of five batches: the 1st, 3rd, 5th; the 2nd, 4th
        theirs = torch.load(tmp_path / f"two/{rank}.pt")
        assert theirs["computed"] == shard and theirs["unreadable"] == unreadable and len(unreadable) == 1
        for a, (views, grids, scores) in zip(ours, theirs["features"], strict=True):
            assert a.views == views and torch.equal(a.grids, grids) and torch.equal(a.scores, scores)
    files = [{f.name: f.read_bytes() for f in (tmp_path / n).glob("*/*")} for n in ("one", "two")]
    assert len(files[0]) == 5 and files[0] == files[1]


# The collectives

COLLECTIVES = """
import sys, torch, time
from pathlib import Path
from llamaxr.runs import distributed
from llamaxr.runs.terminal import one_line_errors
folder = Path(sys.argv[1])
device = distributed.init(torch.device(sys.argv[2]))
rank = distributed.rank()
weights = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in ((2, 3), (4,))]
for i, weight in enumerate(weights):
    weight.grad = torch.full_like(weight, 10.0 ** rank * (i + 1))
distributed.all_reduce_gradients(weights)
with distributed.main_process_first():
    found = (folder / "made").exists()
    time.sleep(0.2)
    (folder / "made").touch()
value = {
    "gradients": [w.grad.tolist() for w in weights],
    "sum": distributed.all_reduce_sum(torch.tensor(rank)).item(),
    "max": distributed.all_reduce_max(15 * (rank == 1)), "shard": distributed.shard(list(range(7))),
    "gather": distributed.all_gather(str(rank)), "broadcast": distributed.broadcast(lambda: rank),
    "found": found, "of machine": distributed.processes_of_machine(),
}
torch.save(value, folder / f"{rank}.pt")
print("printed")
if "break" in sys.argv:
    with one_line_errors():
        if rank == 1:
            sys.exit("rank 1 has ended")
        distributed.barrier()
"""


@pytest.fixture(scope="module")
def collectives(tmp_path_factory):
    """The folder, the stdout and the stderr of three processes, of which rank 1 ends before the others."""
    folder = tmp_path_factory.mktemp("collectives")
    (folder / "collectives.py").write_text(COLLECTIVES)
    process = torchrun(folder / "collectives.py", folder, "cpu", "break", n=3)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode
    return folder, out, err


def check_collectives(folder, out, n):
    assert out.count("printed") == 1  # by rank 0 alone; Gloo of torch 2.8 prints too, its lines interleaved
    for rank in range(n):
        value, ones = torch.load(folder / f"{rank}.pt"), float("1" * n)
        assert value["gradients"] == [[[ones] * 3] * 2, [2 * ones] * 4]
        assert value["sum"] == sum(range(n)) and value["max"] == 15 * (n > 1)
        assert value["shard"] == list(range(7))[rank::n] and value["gather"] == [str(r) for r in range(n)]
        assert value["broadcast"] == 0 and value["found"] == (rank > 0)  # rank 0 made it
        assert value["of machine"] == n


def test_sums_shards_order_and_messages_of_several_processes(collectives):
    folder, out, _ = collectives
    check_collectives(folder, out, 3)


@pytest.mark.gpu
def test_sums_shards_order_and_messages_of_several_gpus(tmp_path):
    (tmp_path / "collectives.py").write_text(COLLECTIVES)
    n = torch.cuda.device_count()
    check_collectives(tmp_path, finished(torchrun(tmp_path / "collectives.py", tmp_path, "cuda", n=n)), n)


def test_a_process_that_waits_for_one_that_ended_says_so_in_one_line(collectives):
    _, _, err = collectives
    assert "rank 1 has ended" in err and "another process of this run ended" in err
    assert "distributed.barrier" not in err  # no traceback of rank 0 hides it


def test_a_lack_of_memory_in_a_sum_is_not_blamed_on_another_process():
    with pytest.raises(torch.OutOfMemoryError), distributed._one_line_if_another_died():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
    with pytest.raises(UserError, match="another process"), distributed._one_line_if_another_died():
        raise RuntimeError("Connection closed by peer")


def test_a_process_whose_others_never_leave_ends_all_the_same():
    code = f"""if True:
        import sys, time
        sys.path.insert(0, {str(HOME)!r})
        from llamaxr.runs import distributed
        distributed.LEAVE_SECONDS = 1
        distributed.dist.destroy_process_group = lambda: time.sleep({TIMEOUT})
        distributed._leave()"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT / 2, check=False)
    assert ended.returncode == -signal.SIGALRM


def test_a_single_process_needs_no_process_group():
    device, weight = torch.device("cpu"), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    before = weight.grad
    assert distributed.init(device) is device and (distributed.rank(), distributed.world_size()) == (0, 1)
    distributed.all_reduce_gradients([weight])
    assert weight.grad is before and distributed.shard([1, 2]) == [1, 2]
    assert distributed.all_gather("a") == ["a"] and distributed.broadcast(lambda: "b") == "b"
    assert distributed.all_reduce_max(3) == 3 == distributed.all_reduce_sum(torch.tensor(3))

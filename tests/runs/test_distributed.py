"""Two real processes under torchrun do what one does: train, look at images, write reports; stop and go on.

One thread a process, so that each sum within a process is added up in the same order. What is added up across
processes is not: a mean over four studies' tokens is then the sum of two sums. In fp32 that moves a loss by
some 1e-7 of itself a step, and the steps carry it on; 1e-5 after six is far above that and far below what one
study dealt out wrongly does (1e-2).
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

from llamaxr.runs import checkpoint, distributed
from llamaxr.data.study import Study
from llamaxr.runs.features import study_features
from llamaxr.vision import load_vision
from tests.conftest import lay_out_phantoms, short_run, untimed

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME))
train, evaluate = (importlib.import_module(name) for name in ("train", "eval"))
ROUNDING = {"rel": 1e-5}
PATIENCE = 600  # seconds; on a busy machine three imports of torch take a minute


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)  # train.py sets both
    for number, handler in handlers.items():
        signal.signal(number, handler)


def torchrun(*argv, n=2) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", n, "--", *argv]
    return subprocess.Popen(
        list(map(str, command)), cwd=HOME, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)},
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    """What a torchrun that must succeed printed on stdout."""
    out, err = process.communicate(timeout=PATIENCE)
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
    # 5 to validate and a batch of 3 cannot be dealt out evenly; 13 to train end an epoch within a step
    return [*short_run(root), "--batch", 3, "--accumulate", 2]


@pytest.fixture(scope="module")
def one(root, options):
    call(train, *options, "--out", root / "one")
    return root / "one"


@pytest.fixture(scope="module")
def two(root, options):
    said = finished(torchrun("train.py", *options, "--out", root / "two"))
    assert said.count("validation loss") == 2  # once a validation, not once a process
    return root / "two"


# Training


def test_two_processes_train_to_the_losses_of_one(one, two):
    same_but_for_rounding(untimed(two / "metrics.jsonl"), untimed(one / "metrics.jsonl"))
    for name in ("adapter_model", "projector"):
        ours, theirs = (checkpoint.load_file(f / f"step-000006/{name}.safetensors") for f in (one, two))
        for key in ours:
            torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-4)
    assert sorted(f.name for f in two.iterdir()) == sorted(f.name for f in one.iterdir())


def test_a_terminated_torchrun_stops_all_at_one_step_and_any_number_of_processes_goes_on(
    root, options, one, two
):
    stopped = root / "stopped"
    process, log = torchrun("train.py", *options, "--out", stopped), stopped / "metrics.jsonl"
    until = time.monotonic() + PATIENCE
    while not (log.exists() and '"step": 1,' in log.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    assert out.count("stopped at step") == 1 and "error:" not in err
    step = untimed(stopped / "metrics.jsonl")[-1]["step"]
    assert step < 6 and checkpoint.last(stopped).name == f"step-{step:06d}"
    shutil.copytree(stopped, root / "alone")
    finished(torchrun("train.py", "--resume", stopped))
    assert untimed(stopped / "metrics.jsonl") == untimed(two / "metrics.jsonl")  # bit for bit
    call(train, "--resume", root / "alone")
    same_but_for_rounding(untimed(root / "alone/metrics.jsonl"), untimed(one / "metrics.jsonl"))


def test_a_batch_that_leaves_a_process_without_a_study_is_refused(options, tmp_path):
    process = torchrun("train.py", *options, "--batch", 1, "--out", tmp_path / "run")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode and "error: --batch 1 has no study for each of 2 processes; raise it" in err
    assert not (tmp_path / "run").exists()


# Evaluation


@pytest.fixture(scope="module")
def evaluated(one, tmp_path_factory):
    out = tmp_path_factory.mktemp("eval")
    call(evaluate, "--run", one, "--out", out, "--max-tokens", 20, "--batch", 3)
    return out


def test_two_processes_write_and_score_the_same_reports_as_one(one, evaluated, tmp_path):
    said = finished(torchrun("eval.py", "--run", one, "--out", tmp_path, "--max-tokens", 20, "--batch", 3))
    for name in ("results.json", "reports.jsonl"):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()
    ours, theirs = ((f / "generated.jsonl").read_text().splitlines() for f in (tmp_path, evaluated))
    assert ours[0] == theirs[0] and sorted(ours) == sorted(theirs)
    assert not list(tmp_path.glob("generated.*.jsonl")) and said.count("written: ") == 1


def test_a_file_is_scored_by_one_process_alone(evaluated, tmp_path):
    shutil.copyfile(evaluated / "reports.jsonl", tmp_path / "theirs.jsonl")
    said = finished(torchrun("eval.py", "--score", tmp_path / "theirs.jsonl"))
    assert said.count("written: ") == 1
    assert (tmp_path / "theirs-scores" / "results.json").is_file()


@pytest.mark.parametrize("n", [1, 2])
def test_an_evaluation_that_three_processes_began_is_ended_by_another_number(n, one, evaluated, tmp_path):
    settings, *rows = (evaluated / "generated.jsonl").read_text().splitlines(keepends=True)
    marked = [row.replace('"generated": "', '"generated": "KEPT ') for row in rows]  # shows what was kept
    (tmp_path / "generated.jsonl").write_text("".join([settings, *marked[:2]]))
    (tmp_path / "generated.1.jsonl").write_text("".join([settings, *marked[2:4], marked[4][:20]]))
    (tmp_path / "generated.2.jsonl").write_text("".join(['{"other": "settings"}\n', *marked[6:]]))
    command = ("--run", one, "--out", tmp_path, "--max-tokens", 20, "--batch", 3)
    call(evaluate, *command) if n == 1 else finished(torchrun("eval.py", *command, n=n))
    reports = {row["id"]: row["generated"] for row in untimed(tmp_path / "reports.jsonl")}
    for i, row in enumerate(map(json.loads, rows)):
        assert reports[row["id"]] == ("KEPT " if i < 4 else "") + row["generated"]
    assert [f.name for f in tmp_path.glob("generated*")] == ["generated.jsonl"]


# Features

LOOK = """
import pickle, sys, torch
from pathlib import Path
from llamaxr.runs import distributed
from llamaxr.runs.features import study_features
from llamaxr.vision import load_vision
cpu, looked, unreadable, cache = torch.device("cpu"), [], [], Path(sys.argv[2])
distributed.start(cpu)
studies = pickle.loads(Path(sys.argv[1]).read_bytes())
seen = study_features(load_vision("tiny"), studies, cpu, cache, 4, looked.append, unreadable)
seen = [(f.views, f.grids.clone(), f.scores.clone()) for f in seen]
torch.save({"seen": seen, "looked": looked, "unreadable": unreadable}, cache / f"{distributed.rank()}.pt")
"""


def test_each_process_looks_at_its_share_of_the_images_and_has_them_all(root, tmp_path):
    films = sorted((root / "images").glob("*/0.png"))[:18]
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    studies = [Study(str(i), film, None, "", "test") for i, film in enumerate([*films[:9], bad, *films[9:]])]
    (tmp_path / "studies").write_bytes(pickle.dumps(studies))
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "two").mkdir()
    finished(torchrun(tmp_path / "look.py", tmp_path / "studies", tmp_path / "two"))
    unreadable, cpu = [], torch.device("cpu")
    ours = study_features(load_vision("tiny"), studies, cpu, tmp_path / "one", 4, unreadable=unreadable)
    for rank, share in enumerate(([4, 4, 3], [4, 4])):  # of five batches: the 1st, 3rd, 5th; the 2nd, 4th
        theirs = torch.load(tmp_path / f"two/{rank}.pt")
        assert theirs["looked"] == share and theirs["unreadable"] == unreadable and len(unreadable) == 1
        for a, (views, grids, scores) in zip(ours, theirs["seen"], strict=True):
            assert a.views == views and torch.equal(a.grids, grids) and torch.equal(a.scores, scores)
    files = [{f.name: f.read_bytes() for f in (tmp_path / n).glob("*/*")} for n in ("one", "two")]
    assert len(files[0]) == 5 and files[0] == files[1]


# What all of it is made of

TOGETHER = """
import sys, torch, time
from pathlib import Path
from llamaxr.runs import distributed
from llamaxr.errors import one_line_errors
folder = Path(sys.argv[1])
device = distributed.start(torch.device(sys.argv[2]))
rank = distributed.rank()
weights = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in ((2, 3), (4,))]
for i, weight in enumerate(weights):
    weight.grad = torch.full_like(weight, 10.0 ** rank * (i + 1))
distributed.sum_gradients(weights)
with distributed.in_turns():
    found = (folder / "made").exists()
    time.sleep(0.2)
    (folder / "made").touch()
value = {
    "gradients": [w.grad.tolist() for w in weights], "total": distributed.total(torch.tensor(rank)).item(),
    "largest": distributed.largest(15 * (rank == 1)), "share": distributed.share(list(range(7))),
    "gather": distributed.gather(str(rank)), "from_main": distributed.from_main(lambda: rank), "found": found,
}
torch.save(value, folder / f"{rank}.pt")
print("spoken")
if "break" in sys.argv:
    with one_line_errors():
        if rank == 1:
            sys.exit("rank 1 has gone")
        distributed.gather(None)
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_sums_shares_turns_and_messages_of_several_processes(device, tmp_path):
    n = 3 if device == "cpu" else torch.cuda.device_count()
    (tmp_path / "together.py").write_text(TOGETHER)
    said = finished(torchrun(tmp_path / "together.py", tmp_path, device, n=n))
    assert said == "spoken\n"  # rank 0's alone
    for rank in range(n):
        value, ones = torch.load(tmp_path / f"{rank}.pt"), float("1" * n)
        assert value["gradients"] == [[[ones] * 3] * 2, [2 * ones] * 4]
        assert value["total"] == sum(range(n)) and value["largest"] == 15 * (n > 1)
        assert value["share"] == list(range(7))[rank::n] and value["gather"] == [str(r) for r in range(n)]
        assert value["from_main"] == 0 and value["found"] == (rank > 0)  # rank 0 made it


def test_who_waits_for_a_process_that_ended_says_so_in_one_line(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    process = torchrun(tmp_path / "together.py", tmp_path, "cpu", "break")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode and "rank 1 has gone" in err
    assert "distributed.gather" not in err  # no traceback of rank 0 hides it


def test_a_process_alone_has_nobody_to_wait_for():
    device, weight = torch.device("cpu"), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    before = weight.grad
    assert distributed.start(device) is device and (distributed.rank(), distributed.size()) == (0, 1)
    distributed.sum_gradients([weight])
    assert weight.grad is before and distributed.share([1, 2]) == [1, 2]
    assert distributed.gather("a") == ["a"] and distributed.from_main(lambda: "b") == "b"
    assert distributed.largest(3) == 3 == distributed.total(torch.tensor(3))

"""train.py, generate.py and eval.py as a user meets them: the files that they leave, output, errors.

All runs have six steps on forty phantoms in R2Gen's layout. Most call `main` in this process, because a
subprocess takes seconds to import torch.
"""

import contextlib
import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.files import tensors
from llamaxr.runs import checkpoint, log, reports
from llamaxr.runs.features import study_features
from llamaxr.runs.recipes import SAME_DATA
from llamaxr.runs.run import DEMO, open_run
from llamaxr.runs.terminal import one_line_errors
from tests.conftest import lay_out_phantoms, short_run, untimed

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
train, generate, evaluate = (importlib.import_module(name) for name in ("train", "generate", "eval"))


@pytest.fixture(autouse=True)
def _restore_the_process():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_flush_denormal(False)  # train.py sets it
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Forty phantoms in R2Gen's layout: 24 train, 8 val, 8 test."""
    root = tmp_path_factory.mktemp("iu")
    lay_out_phantoms(root, 24, 8, 8)
    return root


@pytest.fixture(scope="session")
def options(root):
    return [*short_run(root), "--batch", 4, "--val-studies", 4]


@pytest.fixture(scope="session")
def run(root, options):
    """A finished run. Tests that change it copy it."""
    call(train, *options, "--out", root / "run")
    return root / "run"


@pytest.fixture(scope="session")
def images(root):
    return [root / "images" / f"{i}/0.png" for i in (32, 33, 34)]


def call(script, *argv):
    with one_line_errors():
        script.main([str(a) for a in argv])


def refusal(capsys, script, *argv) -> str:
    """The one line of a script's error; stdout has no report."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(script, *argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in err
    assert script is not generate or out == ""
    return one_error(err)


def one_error(err: str) -> str:
    (line,) = [line for line in re.split(r"[\r\n]", err) if "error:" in line]
    assert err.endswith(line + "\n")
    return line


def metrics(run):
    return untimed(run / "metrics.jsonl")


def start(script, *argv):
    threads = str(torch.get_num_threads())  # as here, so that sums are added in the same order
    return subprocess.Popen(
        [sys.executable, f"{script}.py", *map(str, argv)], cwd=HOME, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": threads},
    )  # fmt: skip


def wait_for_step(run, step, seconds=300):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        path = run / "metrics.jsonl"
        if path.is_file() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.005)
    raise TimeoutError(f"{run} did not reach step {step}")


# train.py


def test_a_training_run_leaves_its_options_losses_samples_and_a_checkpoint(run):
    config = json.loads((run / "config.json").read_text())
    assert config["steps"] == 6 and config["data"] == "iu_xray"
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(7))
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 3, 6]
    assert all("loss" in line for line in lines[1:])
    assert Image.open(run / "loss.png").size[0] > 300
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [3, 6] and all(s["reference"] for s in samples)
    assert checkpoint.last(run).name == "step-000006"
    assert not list(run.rglob("*.tmp"))


def test_a_run_first_names_its_parts_and_says_what_the_tiny_network_is(options, tmp_path, capsys):
    call(train, *options, "--steps", 1, "--out", tmp_path / "run")
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("data iu_xray; base tiny in NF4; vision tiny, trained on drawn images; ")
    assert second.startswith("warning: vision tiny has seen drawn images only")


def test_a_leaked_result_says_so_in_its_run_and_in_its_evaluation(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SAME_DATA, "iu_xray", "drawn images")  # as if the tiny network had learned from it
    run, line = tmp_path / "run", "results on iu_xray are leaked"
    call(train, *options, "--steps", 1, "--out", run)
    assert line in capsys.readouterr().out.splitlines()[1]
    assert json.loads((run / "config.json").read_text())["leaked"] is True
    call(evaluate, "--run", run, "--max-tokens", 5, "--limit", 2, "--out", tmp_path / "eval")
    assert line in capsys.readouterr().err
    settings = json.loads((tmp_path / "eval" / "results.json").read_text())["settings"]
    assert settings["leaked"] is True and settings["vision_trained_on"] == "drawn images"


def test_a_killed_run_resumes_to_bitwise_the_same_losses(run, root, options):
    killed = root / "killed"
    process = start("train", *options, "--out", killed)
    try:
        wait_for_step(killed, 4)
    finally:
        process.kill()
        process.communicate()
    assert checkpoint.last(killed).name == "step-000003" and process.returncode == -signal.SIGKILL
    call(train, "--resume", killed)
    assert metrics(killed) == metrics(run)


def test_a_terminated_run_saves_and_prints_how_to_resume(run, root, options, capsys):
    stopped = root / "stopped"

    def terminate():
        wait_for_step(stopped, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(SystemExit) as stop:
        call(train, *options, "--out", stopped)
    thread.join()
    assert stop.value.code == 128 + signal.SIGTERM
    step = metrics(stopped)[-1]["step"]
    assert checkpoint.last(stopped).name == f"step-{step:06d}"
    assert f"train.py --resume {stopped}" in "".join(capsys.readouterr())
    call(train, "--resume", stopped)
    assert metrics(stopped) == metrics(run)


@pytest.mark.parametrize("bridge", ["scores", "both"])
def test_the_other_bridges_train_and_generate_too(bridge, root, options, images, capsys):
    out = root / f"bridge-{bridge}"
    short = ["--steps", 1, "--batch", 2, "--val-studies", 1, "--n-samples", 0, "--no-outline"]
    call(train, *options, "--out", out, "--bridge", bridge, *short)
    capsys.readouterr()
    call(generate, images[0], "--run", out, "--max-tokens", 5)
    assert capsys.readouterr().out.strip()


def test_a_full_disk_costs_no_finished_checkpoint(run, root, options, capsys, monkeypatch):
    out, save_file, calls = root / "full", tensors.save_file, []

    def fails(error, after):
        def save(tensors, path, metadata):
            calls.append(path)
            if len(calls) > after:
                path.write_bytes(b"half")
                raise error
            save_file(tensors, path)

        calls.clear()
        monkeypatch.setattr(tensors, "save_file", save)

    fails(OSError(errno.ENOSPC, "No space left on device"), after=4)  # three files a checkpoint
    assert "No space left on device; free some space" in refusal(capsys, train, *options, "--out", out)
    assert [f.name for f in out.glob("step-*")] == ["step-000003"]
    fails(SafetensorError("I/O error: No space left on device"), after=0)
    assert "free some space" in refusal(capsys, train, "--resume", out)
    assert [f.name for f in out.glob("step-*")] == ["step-000003"]
    monkeypatch.undo()
    call(train, "--resume", out)
    assert metrics(out) == metrics(run)


@pytest.mark.parametrize("val_every, step", [(1, "1"), (6, "[2-6]")])
def test_a_loss_that_is_no_number_stops_the_run_and_is_never_saved(
    val_every, step, tmp_path, options, capsys, monkeypatch
):
    monkeypatch.setattr(train, "schedule", lambda step, options: 1e30)  # a learning rate far too high
    line = refusal(capsys, train, *options, "--out", tmp_path / "run", "--val-every", val_every)
    assert re.search(rf"loss is (nan|inf) at step {step}; the last good checkpoint is none yet", line)
    assert not list((tmp_path / "run").glob("step-*"))


def test_train_refuses_in_one_line(run, root, options, capsys, tmp_path):
    assert "finished its 6 steps" in refusal(capsys, train, "--resume", run)
    assert "leave out --lr" in refusal(capsys, train, "--resume", run, "--lr", 1)
    assert "finished its 6 steps" in refusal(capsys, train, "--resume", run, "--device", "cpu")
    assert "exists already" in refusal(capsys, train, *options, "--out", run)
    assert "does not exist" in refusal(capsys, train, "--resume", tmp_path / "none")
    new = ["--out", tmp_path / "new"]
    assert "--lr is 0.0" in refusal(capsys, train, *options, *new, "--lr", 0)
    assert "invalid choice: 'mimic'" in refusal(capsys, train, "--data", "mimic", *new)
    assert "needs --root" in refusal(capsys, train, "--data", "csv", *new)
    assert "holds no IU X-ray" in refusal(capsys, train, "--data", "iu_xray", "--root", tmp_path, *new)
    assert "too few for --batch 25" in refusal(capsys, train, *options, *new, "--batch", 25)
    assert "neither a folder" in refusal(capsys, train, *options, *new, "--base", tmp_path / "none")
    assert "do not exist" in refusal(capsys, train, *options, *new, "--vision", tmp_path / "none")
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again_by_either_command(
    run, options, tmp_path
):
    for name, command in (("a", ["--resume", tmp_path / "a"]), ("b", [*options, "--out", tmp_path / "b"])):
        stopped = shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("step-*", "loss.png"))
        (stopped / "lock").write_text("process 1 on another-host")  # of a process that is dead
        call(train, *command)
        assert metrics(stopped) == metrics(run) and not (stopped / "lock").exists()


def test_a_run_that_was_killed_after_its_last_checkpoint_gets_its_curve(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("loss.png"))
    shutil.copytree(copy / "step-000006", copy / "step-000003.old.tmp")
    call(train, "--resume", copy)
    assert Image.open(copy / "loss.png").size[0] > 300 and "saved in" in capsys.readouterr().out
    assert not list(copy.glob("*.tmp"))


def test_a_run_whose_data_and_base_have_moved_says_where_they_are(run, options, root, tmp_path, capsys):
    stopped, moved = tmp_path / "stopped", tmp_path / "moved"
    shutil.copytree(run, stopped, ignore=shutil.ignore_patterns("step-*", "loss.png"))
    moved.symlink_to(root)
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(config | {"root": "/none", "base": "/none/base"}))
    assert "/none does not exist" in refusal(capsys, train, "--resume", stopped)
    call(train, "--resume", stopped, "--root", moved, "--base", "tiny")
    config = json.loads((stopped / "config.json").read_text())
    assert config["root"] == str(moved) and config["base"] == "tiny" and metrics(stopped) == metrics(run)


def test_a_run_on_another_machine_needs_neither_its_cache_nor_the_adapter_it_started_from(
    run, tmp_path, images, capsys
):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("loss.png"))
    config = json.loads((copy / "config.json").read_text())
    gone = {"cache": "/none/cache", "adapter": "/none/adapter"}
    (copy / "config.json").write_text(json.dumps(config | gone))
    call(generate, "--run", copy, images[0], "--max-tokens", 2)
    call(train, "--resume", copy)
    assert (copy / "loss.png").is_file()
    (copy / "config.json").write_text(json.dumps(config | {"base": "/none/of/it"}))
    line = refusal(capsys, generate, "--run", copy, images[0])
    assert "/none/of/it" in line and f"write where it is now into {copy}/config.json" in line


def test_the_paths_of_a_run_are_absolute_so_that_it_opens_from_any_folder(
    options, root, tmp_path, monkeypatch, capsys
):
    shutil.copytree(HOME / "llamaxr/assets/tiny-llama", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    relative = [os.path.relpath(root, tmp_path) if word == root else word for word in options]
    relative[relative.index("tiny")] = "base"
    call(train, *relative, "--steps", 1, "--n-samples", 0, "--out", "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["base"], config["out"]) == (str(tmp_path / "base"), str(tmp_path / "run"))
    assert os.path.isabs(config["root"]) and config["vision"] == "tiny"
    monkeypatch.chdir(root)
    assert printed_reports(
        capsys, next(root.glob("images/*/0.png")), "--run", tmp_path / "run", "--max-tokens", 3
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [(b'{"loss": 1.0}', "step"), (b'{"step": 1, "los": 1.0}', "no loss"),
     (b'{"step": 1, "loss": "x"}', "loss is x"),
     (b'{"step": 1, "loss": \xff}', "utf-8"), (b'{"step": 1, "loss": [[[[', "Expecting")],
)  # fmt: skip
def test_a_damaged_log_is_told_before_anything_is_loaded(run, tmp_path, capsys, monkeypatch, line, says):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("loss.png"))
    lines = (copy / "metrics.jsonl").read_bytes().splitlines()
    (copy / "metrics.jsonl").write_bytes(b"\n".join([*lines[:1], line, *lines[2:]]))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"steps": 9}))
    monkeypatch.setattr(train, "load_model_and_data", lambda *_: pytest.fail("loaded"))
    told = refusal(capsys, train, "--resume", copy)
    assert "metrics.jsonl, line 2 is damaged" in told and says in told


def test_what_is_not_there_is_told_before_anything_is_loaded(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "load_model_and_data", lambda *_: pytest.fail("loaded"))
    new, none, file = ["--out", tmp_path / "new"], tmp_path / "none", tmp_path / "file"
    file.write_text("x")
    for argv, says in (
        ([*options, *new, "--adapter", none], "adapter_config.json is missing"),
        ([*options, *new, "--vision", none], "do not exist"),
        ([*options, *new, "--base", none], "neither a folder"),
        ([*options, *new, "--root", none], "does not exist"),
        ([*options, "--out", file / "run"], "Not a directory"),
        ([*options, "--out", file], "is a file"),
        ([*options, "--out", tmp_path / ("a" * 300)], "File name too long"),
        ([*options, *new, "--cache", file], "File exists"),
    ):
        assert says in refusal(capsys, train, *argv), argv
    assert not (tmp_path / "new").exists()


def test_ctrl_c_while_data_is_loaded_ends_in_one_line(options, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.runs, "load_studies", interrupted)
    with pytest.raises(SystemExit) as stop:
        call(train, *options, "--out", tmp_path / "run")
    assert stop.value.code == 130 and capsys.readouterr().err.endswith("interrupted\n")
    assert (tmp_path / "run/config.json").is_file()  # --resume begins it


def test_a_run_folder_that_is_deleted_while_it_is_trained_is_told_and_does_not_come_back(
    options, tmp_path, capsys, monkeypatch
):
    step, run = train.schedule, tmp_path / "run"
    monkeypatch.setattr(
        train, "schedule", lambda n, o: (shutil.rmtree(run, ignore_errors=True), step(n, o))[1]
    )
    assert "was deleted" in refusal(capsys, train, *options, "--n-samples", 0, "--out", run)
    assert not run.exists()


def test_the_first_steps_may_learn_the_outline_alone(run, tmp_path, options):
    one_step = [*options, "--steps", 1]
    call(train, *one_step, "--outline-share", 0.0, "--out", tmp_path / "at-once")
    call(train, *one_step, "--no-outline", "--out", tmp_path / "without")
    at_once, outlined = metrics(tmp_path / "at-once"), metrics(run)  # run: 0.2 of 6 steps, the first
    assert at_once[0] == outlined[0] and at_once[1]["loss"] != outlined[1]["loss"]
    assert metrics(tmp_path / "without")[0] != outlined[0]


def test_plain_gives_the_same_losses_without_the_fast_forms(run, options, images, tmp_path, capsys):
    first_step = [
        "--steps",
        1,
        "--outline-share",
        1,
    ]  # as the first step of `run`, which learns outlines alone
    call(train, *options, "--plain", *first_step, "--out", tmp_path / "plain")
    fast, plain = metrics(run), metrics(tmp_path / "plain")
    assert plain[0]["val_loss"] == pytest.approx(
        fast[0]["val_loss"], rel=1e-5
    )  # fp32, added in another order
    assert plain[1]["loss"] == pytest.approx(fast[1]["loss"], rel=1e-5)
    assert printed_reports(capsys, images[0], "--plain", "--run", run, "--max-tokens", 5)


# generate.py


def printed_reports(capsys, *argv) -> list[str]:
    capsys.readouterr()
    call(generate, *argv)
    return capsys.readouterr().out.splitlines()


def test_the_report_alone_goes_to_stdout_and_the_warning_to_stderr(run, images):
    process = start("generate", images[0], "--run", run, "--max-tokens", 20)
    out, err = process.communicate()
    assert process.returncode == 0 and out.count("\n") == 1 and len(out.split()) > 2
    assert "No output of this program is for clinical use." in err and str(run) in err
    assert "This vision network was trained on drawn images only." in err


def test_a_refused_command_prints_one_line_and_exits_with_code_two(run, tmp_path):
    process = start("generate", tmp_path / "none.png", "--run", tmp_path / "norun")
    out, err = process.communicate()
    assert process.returncode == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_each_image_is_a_study_of_its_own_with_the_report_it_has_alone(run, images, capsys):
    rest = ("--run", run, "--max-tokens", 20)
    each = printed_reports(capsys, *images, "--each", *rest)
    alone = [printed_reports(capsys, image, *rest) for image in images]
    assert each == [f"{image}: {report.strip()}" for image, (report,) in zip(images, alone, strict=True)]
    assert each == printed_reports(capsys, *images, "--each", "--batch", 2, *rest)


def test_json_is_one_object_a_study(run, images, capsys):
    both = images[0].with_name("1.png")
    (line,) = printed_reports(capsys, images[0], both, "--json", "--run", run, "--max-tokens", 20)
    value = json.loads(line)
    assert value["images"] == [str(images[0]), str(both)] and value["report"] and value["run"] == str(run)
    lines = printed_reports(capsys, *images, "--each", "--json", "--run", run, "--max-tokens", 5)
    assert [json.loads(line)["images"] for line in lines] == [[str(image)] for image in images]


def test_beams_and_sampling_give_a_report_and_a_seed_repeats_it(run, images, capsys):
    rest = (images[0], "--run", run, "--max-tokens", 12)
    (beam,) = printed_reports(capsys, *rest, "--beams", 2)
    first, again, other = (printed_reports(capsys, *rest, "--temperature", 2, "--seed", s) for s in (0, 0, 1))
    assert beam and first == again != other
    likeliest = printed_reports(capsys, *rest, "--temperature", 2, "--top-p", 1e-6)
    assert likeliest == printed_reports(capsys, *rest)


@pytest.fixture
def phantoms(tmp_path):
    """Two drawn studies: the README's, and one of a frontal film alone."""
    studies = []
    for i in (3627, 3628):
        films = phantom(0, i)[1]
        paths = [tmp_path / f"{i}-{view}.png" for view in range(len(films))]
        for path, film in zip(paths, films, strict=True):
            Image.fromarray(film).save(path)
        studies.append(Study(str(i), *[*paths, None][:2], "", "test"))
    return studies


def test_the_demo_writes_what_the_readme_shows(phantoms, capsys):
    (report,) = printed_reports(capsys, phantoms[0].frontal, phantoms[0].lateral, "--run", DEMO)
    shown = re.findall(r"^> (.*)$", (HOME / "README.md").read_text(), re.MULTILINE)
    assert report.strip() == " ".join(shown)


def test_studies_of_one_and_of_two_views_have_the_reports_that_each_has_alone(phantoms):
    """With filler at the left of the shorter prompt."""
    _, vision, model, _ = open_run(DEMO, "cpu")
    features = study_features(vision, phantoms, torch.device("cpu"))
    assert [len(of_study.views) for of_study in features] == [2, 1]
    alone = [reports._generate(model, [of_study], 60)[0] for of_study in features]
    assert reports._generate(model, features, 60) == alone and alone[0] != alone[1]


def test_generate_refuses_in_one_line(run, root, images, capsys, tmp_path):
    image, at = images[0], ("--run", run)
    text = tmp_path / "text.png"
    text.write_text("not an image")
    assert "use --each" in refusal(capsys, generate, *images, *at)
    assert "no radiograph at" in refusal(capsys, generate, tmp_path / "none.png", *at)
    assert "text.png" in refusal(capsys, generate, text, *at)
    assert "is a folder" in refusal(capsys, generate, tmp_path, *at)
    assert "does not exist" in refusal(capsys, generate, image, "--run", tmp_path / "none")
    assert "config.json" in refusal(capsys, generate, image, "--run", tmp_path)
    assert "--max-tokens is 0" in refusal(capsys, generate, image, *at, "--max-tokens", 0)
    assert "without --beams 1" in refusal(capsys, generate, image, *at, "--beams", 2, "--temperature", 1)
    assert "--seed has no effect" in refusal(capsys, generate, image, *at, "--seed", 1)
    assert "--batch has no effect" in refusal(capsys, generate, image, *at, "--batch", 2)
    assert "arguments are required" in refusal(capsys, generate, *at)


def test_of_many_images_the_good_ones_are_written_and_the_broken_ones_told(run, images, capsys, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    bad = [tmp_path / "text.png", tmp_path / "none.png"]
    rest = ["--each", "--run", run, "--max-tokens", 5]
    good = printed_reports(capsys, *images[:2], *rest)
    with pytest.raises(SystemExit) as stop:
        call(generate, images[0], *bad, images[1], *rest)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out.splitlines() == good
    assert all(f"warning: {path}" in err.replace("no radiograph at ", "") or str(path) in err for path in bad)
    assert err.endswith("error: 2 of 4 images cannot be read: replace them, see above\n")


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "projector.safetensors", "state.json", "../config.json"]
)
def test_a_damaged_run_is_refused_in_one_line(file, run, images, capsys, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    for step in copy.glob("step-*"):
        content = (step / file).read_bytes()
        (step / file).write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(capsys, generate, images[0], "--run", copy)


def test_a_run_without_a_checkpoint_is_refused_in_one_line(run, images, capsys, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("step-*"))
    for script, argv in ((generate, [images[0], "--run", copy]), (evaluate, ["--run", copy])):
        assert "no checkpoint" in refusal(capsys, script, *argv)


# eval.py


@pytest.fixture(scope="session")
def evaluated(run, tmp_path_factory):
    """An evaluation's folder, with what it printed in stdout.txt."""
    folder = tmp_path_factory.mktemp("eval")
    with (folder / "stdout.txt").open("w") as out, contextlib.redirect_stdout(out):
        call(evaluate, "--run", run, "--out", folder, "--max-tokens", 20, "--limit", 6)
    return folder


def test_evaluation_puts_the_floors_beside_the_model(run, evaluated):
    out = (evaluated / "stdout.txt").read_text()
    results = json.loads((evaluated / "results.json").read_text())
    assert results["groups"]["all"]["studies"] == results["settings"]["studies"] == 6
    for name in ("system", "swapped", "constant", "random", "nearest"):
        assert f"\n{name} " in out or name == "random"
        value, low, high = results["groups"]["all"]["writers"][name]["llama_xr"]["rouge_l"]
        assert 0 <= low <= value <= high <= 1
    assert results["groups"]["all"]["writers"]["constant"]["reports"]["distinct"] == [1, 1, 1]
    assert results["groups"]["all"]["writers"]["outline"].keys() == {"findings", "classes", "per_class"}
    assert all(line in " ".join(out.split()) for line in results["in_words"]) and len(results["in_words"]) > 4
    assert len(out.splitlines()) <= 30 and "template" in results["groups"]["all"]["writers"]
    lines = [json.loads(line) for line in (evaluated / "reports.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(32, 38)]
    assert lines[0].keys() == {"id", "reference", "generated"}
    assert (evaluated / "report.html").read_text().count("data:image/jpeg;base64,") == sum(
        len(list((run.parent / "images" / line["id"]).iterdir())) for line in lines
    )


def test_an_interrupted_evaluation_goes_on_where_it_was(run, evaluated, tmp_path, monkeypatch):
    lines = (evaluated / "generated.jsonl").read_text().splitlines()
    (tmp_path / "generated.jsonl").write_text("\n".join([*lines[:4], lines[4][:20]]))
    generated, real = [], reports.generate
    monkeypatch.setattr(reports, "generate", lambda *a, **k: generated.append(len(a[1])) or real(*a, **k))
    call(evaluate, "--run", run, "--out", tmp_path, "--max-tokens", 20, "--limit", 6)
    assert sum(generated) == 3
    assert (tmp_path / "reports.jsonl").read_text() == (evaluated / "reports.jsonl").read_text()


def test_a_signal_that_the_shell_ignores_stays_ignored():
    """A script's `&` ignores Ctrl-C for its program."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        caught = train.catch_signals()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_other_settings_generated_is_generated_again(run, evaluated, tmp_path):
    shutil.copyfile(evaluated / "generated.jsonl", tmp_path / "generated.jsonl")
    call(evaluate, "--run", run, "--out", tmp_path, "--max-tokens", 5, "--limit", 6)
    assert json.loads((tmp_path / "generated.jsonl").read_text().splitlines()[0])["max_tokens"] == 5


def test_what_other_weights_generated_is_generated_again(run, evaluated, tmp_path, monkeypatch):
    other, out, calls = shutil.copytree(run, tmp_path / "run"), tmp_path / "out", []
    out.mkdir()
    shutil.copyfile(evaluated / "generated.jsonl", out / "generated.jsonl")
    real = reports.generate
    monkeypatch.setattr(reports, "generate", lambda *a, **k: calls.append(1) or real(*a, **k))
    of_other = "--run", other, "--out", out, "--max-tokens", 20
    call(evaluate, *of_other, "--limit", 6)
    assert not calls  # the same weights, in another folder
    call(evaluate, *of_other, "--limit", 2, "--seed", 1)  # which decide no report
    call(evaluate, *of_other, "--limit", 6)
    assert not calls
    (file,) = other.glob("step-*/projector.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"fc2.bias": tensors["fc2.bias"] + 1}, file)
    call(evaluate, *of_other, "--limit", 6)
    assert calls


def test_anyones_reports_are_scored_in_the_same_table(evaluated, capsys, tmp_path):
    capsys.readouterr()
    shutil.copyfile(evaluated / "reports.jsonl", tmp_path / "theirs.jsonl")
    (tmp_path / "train.jsonl").write_text('"The heart is enlarged."\n{"report": "The lungs are clear."}\n')
    call(
        evaluate, "--score", tmp_path / "theirs.jsonl", "--train-reports", tmp_path / "train.jsonl", "--json"
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "theirs-scores" / "results.json").read_text())
    ours = json.loads((evaluated / "results.json").read_text())["groups"]["all"]["writers"]["system"]
    theirs = printed["groups"]["all"]["writers"]["system"]
    assert theirs["llama_xr"] == ours["llama_xr"] and theirs["coco"] == ours["coco"]
    assert "nearest" not in printed["groups"]["all"]["writers"]


def test_the_floors_of_anyones_reports_may_come_from_a_data_set(root, evaluated, capsys, tmp_path):
    shutil.copyfile(evaluated / "reports.jsonl", tmp_path / "theirs.jsonl")
    command = ["--score", tmp_path / "theirs.jsonl", "--data", "iu_xray", "--root", root]
    call(evaluate, *command)
    ours, theirs = (
        json.loads((folder / "results.json").read_text())
        for folder in (evaluated, tmp_path / "theirs-scores")
    )
    assert theirs["constant_report"] == ours["constant_report"]  # chosen on the same val studies
    for name in ("constant", "random"):
        scores = [r["groups"]["all"]["writers"][name]["llama_xr"]["rouge_l"] for r in (ours, theirs)]
        assert scores[0] == scores[1]
    capsys.readouterr()
    for argv in (
        [*command, "--train-reports", root], ["--data", "iu_xray"], ["--train-reports", root],
        *([*command, *more] for more in (["--run", root], ["--split", "test"], ["--batch", 32], ["--plain"])),
        [*command[:2], "--root", root], [*command, "--full", "--json"],
    ):  # fmt: skip
        assert "has no effect without" in refusal(capsys, evaluate, *argv)


@pytest.mark.parametrize(
    ("lines", "says"),
    [('{"id": "a", "reference": "x"}', "line 1: no object with the strings id"), ("[1]", "line 1"),
     ("{", "line 1 is no JSON"), ("", "has no lines"),
     ('{"id":"a","reference":"x","generated":"y"}\n' * 2, "names a study twice"),
     ("[" * 100_000, "nested too deep")],
)  # fmt: skip
def test_a_file_that_cannot_be_scored_is_refused_in_one_line(capsys, tmp_path, lines, says):
    (tmp_path / "r.jsonl").write_text(lines)
    assert says in refusal(capsys, evaluate, "--score", tmp_path / "r.jsonl")
    assert "is missing" in refusal(capsys, evaluate, "--score", tmp_path / "none.jsonl")


def test_eval_refuses_in_one_line_before_it_loads_a_model(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.runs, "build", lambda *_: pytest.fail("loaded"))
    (tmp_path / "other.jsonl").write_text('{"id": "a", "reference": "x", "generated": "y"}\n')
    (tmp_path / "labels.csv").write_text("report,Edema\nAnother.,1\n")
    for flag, name, says in (("--against", "other.jsonl", "lacks"), ("--labels", "labels.csv", "no labels")):
        assert says in refusal(capsys, evaluate, "--run", run, flag, tmp_path / name)
    assert "swapping needs two" in refusal(capsys, evaluate, "--run", run, "--limit", 1)
    assert "holds no IU X-ray" in refusal(capsys, evaluate, "--run", run, "--root", tmp_path)
    assert "invalid choice" in refusal(capsys, evaluate, "--run", run, "--split", "all")


def test_reports_are_those_of_the_same_images_wherever_these_are(run, root, evaluated, tmp_path, monkeypatch):
    out, moved, calls, real = tmp_path / "out", tmp_path / "moved", [], reports.generate
    out.mkdir()
    shutil.copyfile(evaluated / "generated.jsonl", out / "generated.jsonl")
    shutil.copytree(root / "images", moved / "images")
    shutil.copyfile(root / "annotation.json", moved / "annotation.json")
    monkeypatch.setattr(reports, "generate", lambda *a, **k: calls.append(len(a[1])) or real(*a, **k))
    again = ["--run", run, "--root", moved, "--out", out, "--max-tokens", 20, "--limit", 2]
    call(evaluate, *again)
    assert calls == []
    shutil.copyfile(moved / "images/32/0.png", moved / "images/33/0.png")  # another film of the second study
    call(evaluate, *again)
    assert calls == [1]


def test_an_evaluation_with_other_settings_keeps_the_reports(run, evaluated, tmp_path, monkeypatch):
    out, calls, real = tmp_path / "out", [], reports.generate
    out.mkdir()
    shutil.copyfile(evaluated / "generated.jsonl", out / "generated.jsonl")
    before = (out / "generated.jsonl").read_bytes()
    call(evaluate, "--run", run, "--out", out, "--max-tokens", 5, "--limit", 2)
    (kept,) = out.glob("generated-*.jsonl")
    assert kept.read_bytes() == before != (out / "generated.jsonl").read_bytes()
    monkeypatch.setattr(reports, "generate", lambda *a, **k: calls.append(1) or real(*a, **k))
    call(evaluate, "--run", run, "--out", out, "--max-tokens", 20, "--limit", 2)
    assert (out / "generated.jsonl").read_bytes() == before and calls == []


def test_a_second_ctrl_c_stops_at_once(capfd):
    caught = log.catch_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert caught == [signal.SIGTERM] * 2 and capfd.readouterr().err.count("stopping after this step") == 1
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_is_no_image_is_refused_before_the_model_is_loaded(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate, "open_run", lambda *_: pytest.fail("loaded"))
    (tmp_path / "text.png").write_text("no image")
    assert "text.png" in refusal(capsys, generate, images[0], tmp_path / "text.png")
    for argv in ([tmp_path], [images[0], tmp_path, "--each"]):
        assert "is a folder; give its images" in refusal(capsys, generate, *argv)


def test_each_study_is_told_its_own_likeness_to_the_training_images(images, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for batch in (1, 2):
        each = [images[0], tmp_path / "noise.png", "--each", "--json", "--batch", batch]
        call(generate, *each, "--run", DEMO, "--max-tokens", 2)
        out, err = capsys.readouterr()
        values = [json.loads(line) for line in out.splitlines()]
        assert [v["unlike_training"] for v in values] == [False, True] and all(
            "findings" in v for v in values
        )
        assert "noise.png" in err and "do not trust the report" in err

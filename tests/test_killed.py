"""A run that is killed at any file operation of its training ends, resumed, as an undisturbed one: bitwise.

The kill is no matter of luck: a training in a process of its own dies at an operation that POINTS names, as
`kill -9` would end it there. Importing torch and others takes seconds, and a forked process inherits them.
But a process that has gone backward once cannot fork one that does. So this file is also a program: it
imports train.py and forks each training, and the test below reads what it found.
"""

import builtins
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import lay_out_phantoms, short_run, untimed

HOME = Path(__file__).resolve().parent.parent
RESULTS = "0.json", "1.json"
SAVING = "saving.json"
# When a training dies: before the n-th operation that the pattern finds in "OPERATION PATH...", where PATH is
# relative to the run folder. A file that is being written gets some bytes first.
POINTS = {
    "before the claimed folder has its name": (r"rename \S+tmp \.$", 1),
    "claimed, before the first line of the log": (r"open metrics\.jsonl$", 1),
    "writing the first checkpoint's adapter": (r"save step-000001\.tmp/adapter_model\.safetensors", 1),
    "writing the first checkpoint's state": (r"open step-000001\.tmp/state\.json", 1),
    "before the first checkpoint has its name": (r"rename step-000001\.tmp step-000001$", 1),
    "writing the second checkpoint's optimiser": (r"save step-000002\.tmp/optimizer", 1),
    "before the second checkpoint has its name": (r"rename step-000002\.tmp step-000002$", 1),
    "before the old checkpoint has lost its name": (r"rename step-\S+ \S+\.old\.tmp$", 1),
    "before the old checkpoint's first file is deleted": (r"unlink [^/]+(json|safetensors)$", 1),
    "when two of the old checkpoint's files are deleted": (r"unlink [^/]+(json|safetensors)$", 3),
    "before the old checkpoint's folder is deleted": (r"rmdir ", 1),
    "after the last checkpoint, before the loss is drawn": (r"rename loss\.png", 1),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the program below found: point -> how the killed and the resumed training ended."""
    root = tmp_path_factory.mktemp("killed")
    lay_out_phantoms(root, 4, 1, 1)
    process = subprocess.run(
        [sys.executable, __file__, str(root)], text=True, capture_output=True, timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return root, {k: v for half in RESULTS for k, v in json.loads((root / half).read_text()).items()}


def files(run: Path) -> dict[str, object]:
    """What a run has left, without what tells the time."""
    found = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in ("config.json", "loss.png"):
        assert found.pop(name)
    return found | {"metrics.jsonl": untimed(run / "metrics.jsonl")}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_is_readable_and_ends_as_an_undisturbed_one(results, point):
    root, outcomes = results
    killed, readable, resumed = outcomes[point]
    assert killed == 9, "the training came to no such operation"
    assert readable and resumed == 0
    name = str(list(POINTS).index(point))
    assert files(root / name) == files(root / "whole")


def test_nothing_is_left_beside_the_runs_but_what_ends_in_tmp(results):
    root, _ = results
    names = {"images", "annotation.json", "cache", "whole", "saving", SAVING, *RESULTS}
    names |= set(map(str, range(len(POINTS))))
    assert all(path.name in names or path.suffix == ".tmp" for path in root.iterdir())


def test_a_kill_at_any_file_operation_of_saving_leaves_what_was_there_or_what_comes(results):
    root, _ = results
    *killed, undisturbed = json.loads((root / SAVING).read_text())
    assert len(killed) > 25 and all(ended == [9, 0, True] for ended in killed)
    assert undisturbed == [0, 0, True]


# The program


def die_at(run: Path, pattern: str, n: int) -> None:
    """From here on this process dies before the n-th file operation that the pattern finds."""
    seen, open_file = [], open

    def watch(operation: str, *paths) -> bool:
        texts = [os.path.relpath(p, run) if os.path.isabs(p) else str(p) for p in map(os.fspath, paths)]
        if re.match(pattern, " ".join([operation, *texts])):
            seen.append(texts)
        return len(seen) == n

    def patch(module, name: str, operation: str):
        real = getattr(module, name)

        def watched(*args, **kwargs):
            paths = args[:2] if operation == "rename" else args[:1]
            if operation == "save":
                paths = args[1:2]
            writes = operation != "open" or set("wa") & set(str(args[1] if len(args) > 1 else "r"))
            if writes and all(isinstance(p, str | os.PathLike) for p in paths) and watch(operation, *paths):
                if operation in ("open", "save"):
                    appends = operation == "open" and "a" in args[1]
                    with open_file(paths[0], "ab" if appends else "wb") as file:
                        file.write(b'{"half')
                os._exit(9)
            return real(*args, **kwargs)

        setattr(module, name, watched)

    from llamaxr.files import tensors

    for name in ("rename", "replace"):
        patch(os, name, "rename")
    for name in ("unlink", "rmdir", "mkdir"):
        patch(os, name, name)
    for module in (io, builtins):
        patch(module, "open", "open")
    patch(tensors, "save_file", "save")


def fork(work) -> int:
    """The exit status of work() in a process of its own."""
    return wait(start(work))


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(work) -> int:
    """The id of a process that does work()."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 1
    try:
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(root: Path) -> None:
    import bitsandbytes  # noqa: F401 (once, with torch's compiler, and not in each training)
    import matplotlib.pyplot  # noqa: F401 (once)
    import torch

    import train
    from llamaxr.runs import checkpoint
    from llamaxr.runs.terminal import one_line_errors

    torch.set_num_threads(1)
    os.fsync = lambda file: None  # what a kill leaves does not depend on the disk
    # Of three checkpoints one at least is neither the last nor the best, so it is deleted.
    options = [*short_run(root), "--batch", 2, "--steps", 3, "--val-every", 1, "--lr", 0.005,
               "--max-report-tokens", 8]  # fmt: skip

    def call(*argv, point=None):
        if point:
            die_at(Path(argv[-1]), *point)
        with one_line_errors():
            train.main([str(word) for word in argv])

    def killed_and_resumed(run: Path, point) -> tuple[int, bool, int]:
        killed = fork(lambda: call(*options, "--out", run, point=point))
        readable = not checkpoint.has_checkpoint(run) or fork(lambda: checkpoint.last(run)) == 0
        again = ["--resume", run] if run.exists() else [*options, "--out", run]
        return killed, readable, fork(lambda: call(*again))

    assert fork(lambda: call(*options, "--out", root / "whole")) == 0  # also fills the cache
    points = list(enumerate(POINTS.items()))

    def every_second(first: int) -> None:
        found = {name: killed_and_resumed(root / str(i), point) for i, (name, point) in points[first::2]}
        (root / f"{first}.json").write_text(json.dumps(found))

    halves = [start(lambda first=first: every_second(first)) for first in (0, 1)]  # for two cores
    if any([wait(half) for half in halves]):
        sys.exit(1)
    (root / SAVING).write_text(json.dumps(killed_while_saving(root / "saving")))


def killed_while_saving(root: Path) -> list[tuple[int, int, bool]]:
    """A run with a checkpoint saves another, which replaces it, and dies at its first file operation, at its
    second, and so on up to none. How that ended, how reading the run and saving again did, and whether it
    is then as an undisturbed one."""
    import torch

    from llamaxr.runs import checkpoint
    from llamaxr.runs import run as runs
    from llamaxr.runs.options import to_json

    options = replace(runs.read_options(runs.DEMO), rank=1)
    model = runs.build(options, torch.device("cpu"))[1]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    def save(run: Path, step: int, val_loss: float) -> None:
        known = {"mean.frontal": torch.zeros(3)}
        checkpoint.save(run, model, to_json(options), step, val_loss, optimizer, known)

    def save_and_die(run: Path, n: int) -> None:
        die_at(run, "", n)
        save(run, 3, 0.4)

    def read_and_save(run: Path) -> None:
        checkpoint.load(checkpoint.last(run), model, optimizer)
        save(run, 3, 0.4)

    contents = lambda run: {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    (root / "begun").mkdir(parents=True)
    save(root / "begun", 2, 0.6)
    shutil.copytree(root / "begun", root / "whole")
    save(root / "whole", 3, 0.4)
    read_and_save(root / "whole")  # imports what each process below would
    found, run = [], root / "killed"
    while not found or found[-1][0]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(root / "begun", run)
        killed = fork(lambda: save_and_die(run, len(found) + 1))
        found.append((killed, fork(lambda: read_and_save(run)), contents(run) == contents(root / "whole")))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))

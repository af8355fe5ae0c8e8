"""A run folder is made in one step, is held by one process, and its lock dies with that process."""

import json
import os
import signal
import subprocess
import sys

import pytest

from llamaxr.errors import UserError
from llamaxr.runs.run_folder import check_free, claim, locked

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("process 7 on a-host", file=file, flush=True)
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_in_use_names_its_holder_and_is_free_when_that_was_killed(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match="by process 7 on a-host; wait") as caught,
            locked(tmp_path),
        ):
            pytest.fail("two hold it")
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / "lock").exists()
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
    assert not (tmp_path / "lock").exists()


def test_a_lock_is_given_back_whatever_happens(tmp_path):
    for error in (KeyboardInterrupt, UserError("x")):
        with pytest.raises(type(error) if isinstance(error, UserError) else error), locked(tmp_path):
            raise error
        assert not (tmp_path / "lock").exists()


def test_a_claimed_folder_has_its_options_and_two_of_one_default_name_get_two(tmp_path):
    names = [claim(tmp_path / "runs" / "sample-1", {"n": i}, any_name=True).name for i in range(3)]
    assert names == ["sample-1", "sample-1-2", "sample-1-3"]
    assert [json.loads((tmp_path / "runs" / n / "config.json").read_text())["n"] for n in names] == [0, 1, 2]
    assert sorted(os.listdir(tmp_path / "runs")) == names


def test_an_empty_folder_and_what_a_stopped_run_left_may_be_claimed_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    for leftovers in ((), ("config.json",), ("metrics.jsonl", "samples.jsonl", "lock", "step-000001.tmp")):
        run.mkdir(exist_ok=True)
        for name in leftovers:
            (run / name).write_text("{}")
        assert claim(run, {}, any_name=False) == run
    for name, says in (("notes.txt", "holds notes.txt"), ("step-000001", "--resume")):
        (run / name).mkdir()
        for refuse in (lambda: check_free(run), lambda: claim(run, {}, any_name=False)):
            with pytest.raises(UserError, match=says):
                refuse()
        (run / name).rmdir()

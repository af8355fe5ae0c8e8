"""A folder that one process at a time writes: a run while it is trained, an evaluation while it is made.

`claim` makes a run folder in one step, before anything is loaded: two processes never get the same one, and
a folder under the run's name always has a config.json. `locked` then holds it. The operating system drops a
lock with the process that holds it, however that ends, so no lock outlives its process.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from ..errors import UserError
from . import distributed
from .checkpoint import has_checkpoint, write_json

# What a run that was stopped before its first checkpoint may have left.
LEFTOVERS = {"config.json", "metrics.jsonl", "samples.jsonl", "lock"}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold folder/lock, on the main process. UserError, which names the holder, if another program has it."""
    if not distributed.is_main_process():
        yield
        return
    path = folder / "lock"
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read(300).strip() or "another process"
                file.close()
                raise UserError(f"{folder} is in use by {holder}; wait until that ends, or stop it") from None
            # else a file system that has no locks: go on without
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its last holder has just removed it: take a new one
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def claim(run: Path, config: dict, any_name: bool) -> Path:
    """Make the folder of a new run, with its config.json, in one step. Returns it: `run`, or with any_name
    the first of run, run-2, ... that is free. UserError if `run` is in use or holds anything but what a run
    leaves that was stopped before its first checkpoint."""
    half = run.with_name(f"{run.name}.{os.getpid()}.tmp")
    half.mkdir(parents=True, exist_ok=True)
    try:
        write_json(half / "config.json", config)
        for number in count(2):
            final = run if number == 2 else run.with_name(f"{run.name}-{number - 1}")
            try:
                os.rename(half, final)  # fails unless `final` is free, or an empty folder
                return final
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
                    raise
            if not any_name:
                check_free(run)
                return run
    finally:
        shutil.rmtree(half, ignore_errors=True)


def check_free(run: Path) -> None:
    """UserError unless a new run may begin in this folder."""
    if not run.exists():
        return
    if not run.is_dir():
        raise UserError(f"{run} is a file; name another --out")
    if has_checkpoint(run):
        raise UserError(f"{run} exists already; name another --out, or continue it with --resume {run}")
    if others := {path.name for path in run.iterdir() if path.suffix != ".tmp"} - LEFTOVERS:
        raise UserError(f"{run} exists already and holds {min(others)}; name another --out")

"""Worker processes that end with the process that started them, even if that one is killed."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def process_pool(n_workers: int) -> ProcessPoolExecutor:
    """A pool of forked processes, as DataLoader's are: a spawned worker would first import all of train.py,
    torch included."""
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(n_workers, mp_context=context, initializer=_exit_with_parent)


def _exit_with_parent() -> None:
    """Without this, a worker whose parent was killed would wait for work for ever. Ctrl-C reaches all
    processes; only the parent reports it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()

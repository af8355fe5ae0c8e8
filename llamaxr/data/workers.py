"""Worker processes, which end with the process that started them: told to stop or killed, it leaves none."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def pool(workers: int) -> ProcessPoolExecutor:
    """So many processes that hold what this one holds. Forked, as DataLoader does: a spawned worker would
    import all of train.py, torch included, first."""
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Without this a worker whose parent was killed waits for work for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()

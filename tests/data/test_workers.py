"""Worker processes work in order, and none outlives the process that started it."""

import signal
import subprocess
import sys
import time

import pytest

from llamaxr.data.workers import process_pool


def test_results_come_in_order():
    with process_pool(3) as pool:
        assert list(pool.map(abs, [-3, 2, -1])) == [3, 2, 1]


@pytest.mark.parametrize("killer", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_no_worker(killer):
    code = """if True:
        import time
        from llamaxr.data.workers import process_pool
        with process_pool(3) as pool:
            for _ in range(3):
                pool.submit(time.sleep, 0.2)
            print(*pool._processes, flush=True)
            time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 3 and all(alive(pid) for pid in workers)
    parent.send_signal(killer)
    parent.wait()
    until = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie, which nobody here waits for, does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

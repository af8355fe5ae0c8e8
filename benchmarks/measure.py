"""What the benchmarks share: a step in a process of its own, its seconds, and its anonymous memory at peak.

Anonymous memory is what a process has that is not a file's pages: what cannot be dropped and read again. A
memory-mapped checkpoint is no part of it, and should not be: the kernel takes those pages back at will.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))  # so that a benchmark finds llamaxr
RESULTS = HOME / "benchmarks" / "results"


def anonymous_bytes() -> int:
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024


class Peak:
    """`with Peak() as peak:` ...; then peak.bytes and peak.seconds. Looks every 5 ms, or as rarely as told:
    each look takes a core and Python's lock for a moment from what is measured."""

    def __init__(self, every: float = 0.005):
        self.every = every

    def __enter__(self) -> "Peak":
        self.bytes, self.running, self.began = anonymous_bytes(), True, time.perf_counter()
        self.at_first = self.bytes
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(self.every)

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.began
        self.running = False
        self.thread.join()
        self.bytes = max(self.bytes, anonymous_bytes())

    def figures(self) -> dict:
        return {"seconds": round(self.seconds, 2), "peak_anonymous_GiB": round(self.bytes / 2**30, 3)}


def in_a_process(script: str, *arguments: str) -> dict:
    """Run `python SCRIPT ARGUMENTS` and give the JSON object that the last line of its output is."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, cwd=HOME, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def alternately(script: str, steps: tuple[str, ...], repeats: int, *arguments: str) -> dict[str, list[dict]]:
    """Run `SCRIPT ARGUMENTS --step STEP` for each step in turn, and all again `repeats` times: what slows the
    machine down for a while then slows all sides down. Gives what each step's runs printed, in order."""
    runs = {step: [] for step in steps}
    for _ in range(repeats):
        for step in steps:
            runs[step].append(in_a_process(script, *arguments, "--step", step))
            print(f"{step}: {json.dumps(runs[step][-1])[:200]}", flush=True)
    return runs


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of the medians; and the extremes of the ratio of runs that were neighbours in time."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    between = statistics.median(ours) / statistics.median(theirs)
    return {"of_medians": between, "lowest": min(pairs), "highest": max(pairs)}


def sgemm_rate(n: int = 2048, repeats: int = 15) -> float:
    """Floating-point operations a second in the product of two square fp32 matrices: the median."""
    import torch

    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / statistics.median(seconds)


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to forget a folder's files, so that reading them means reading the disk."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def machine() -> dict:
    import torch

    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HOME, capture_output=True, text=True)
    return {"cpu": model.group(1) if model else platform.machine(), "cores": os.cpu_count(),
            "python": platform.python_version(), "torch": torch.__version__,
            "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def write_results(name: str, value: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.with_suffix(".tmp").write_text(json.dumps({"machine": machine(), **value}, indent=2) + "\n")
    path.with_suffix(".tmp").replace(path)
    print(f"written: {path}")


def read_bandwidth(n_bytes: int = 2**29, repeats: int = 15) -> float:
    """Bytes a second at which the cores read fp32 numbers from memory, at best: torch's sum of a tensor
    sixteen times as large as the cache."""
    import torch

    numbers, seconds = torch.ones(n_bytes // 4), []
    for _ in range(repeats):
        began = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - began)
    return n_bytes / min(seconds)

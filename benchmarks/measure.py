"""What the benchmarks share: a step in its own process, its seconds, its peak anonymous memory, the results.

Anonymous memory is what does not come from a file, so the kernel cannot drop it and read it again. A
memory-mapped checkpoint does not count, because the kernel takes its pages back at will.
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
    """`with Peak() as peak:` ...; then peak.bytes and peak.seconds. Memory is sampled every `every` seconds:
    each sample takes a core and Python's lock for a moment from what is measured."""

    def __init__(self, every: float = 0.005):
        self.every = every

    def __enter__(self) -> "Peak":
        self.bytes = self.start_bytes = anonymous_bytes()
        self.running, self.start = True, time.perf_counter()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while self.running:
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(self.every)

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.start
        self.running = False
        self.thread.join()
        self.bytes = max(self.bytes, anonymous_bytes())

    def figures(self) -> dict:
        return {"seconds": round(self.seconds, 2), "peak_anonymous_GiB": round(self.bytes / 2**30, 3)}


def run_script(script: str, *arguments: str) -> dict:
    """Run `python SCRIPT ARGUMENTS`; returns the JSON object in the last line of its output."""
    command = [sys.executable, script, *map(str, arguments)]
    process = subprocess.run(command, cwd=HOME, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} exited with {process.returncode}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def run_alternately(
    script: str, steps: tuple[str, ...], repeats: int, *arguments: str
) -> dict[str, list[dict]]:
    """Run `SCRIPT ARGUMENTS --step STEP` for each step in turn, `repeats` times: what slows the machine for a
    while then slows all steps. Returns what each step's runs printed, in order."""
    runs = {step: [] for step in steps}
    for _ in range(repeats):
        for step in steps:
            runs[step].append(run_script(script, *arguments, "--step", step))
            print(f"{step}: {json.dumps(runs[step][-1])[:200]}", flush=True)
    return runs


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratio(ours: list[float], peer: list[float]) -> dict[str, float]:
    """The ratio of the medians, and the extremes of the ratio of two consecutive runs."""
    pairs = [a / b for a, b in zip(ours, peer, strict=True)]
    of_medians = statistics.median(ours) / statistics.median(peer)
    return {"of_medians": of_medians, "lowest": min(pairs), "highest": max(pairs)}


def compare(runs: dict[str, list[dict]], figure: str) -> dict[str, dict[str, float]]:
    """Summaries of one figure for the runs of "ours" and "peer", and their ratio."""
    values = {side: [run[figure] for run in runs[side]] for side in ("ours", "peer")}
    return {side: summary(v) for side, v in values.items()} | {"ratio": ratio(values["ours"], values["peer"])}


def peer_nf4(compute_dtype):
    """The peer's quantisation: bitsandbytes' NF4 with double quantisation."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=compute_dtype)  # fmt: skip


def sgemm_rate(n: int = 2048, repeats: int = 15) -> float:
    """Floating-point operations per second in the product of two square fp32 matrices: the median."""
    import torch

    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds)


def drop_from_cache(folder: Path) -> None:
    """Drop a folder's safetensors files from the page cache, so that they are read from disk again."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def machine() -> dict:
    """Machine, commit and date."""
    import torch

    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HOME, capture_output=True, text=True)
    return {"cpu": model.group(1) if model else platform.machine(), "cores": os.cpu_count(),
            "avx512_bf16": "avx512_bf16" in cpu,
            "python": platform.python_version(), "torch": torch.__version__,
            "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def write_results(name: str, value: dict) -> None:
    """Write benchmarks/results/NAME.json: command, commit, date, machine, seed, configuration, then `value`,
    which may override them. Floats have six digits; an innermost list or object is on one line."""
    about, arguments = machine(), [Path(sys.argv[0]).name, *sys.argv[1:]]
    source = {"command": f"python benchmarks/{' '.join(arguments)}", "commit": about.pop("commit"),
              "date": about.pop("date"), "machine": about, "seed": 0, "configuration": {}}  # fmt: skip
    text = json.dumps({**source, **value})
    rounded = json.loads(text, parse_float=lambda number: float(f"{float(number):.6g}"))
    text = json.dumps(rounded, indent=2)
    text = re.sub(r"[\[{][^\[\]{}]+[\]}]", _on_one_line, text)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.with_suffix(".tmp").write_text(text + "\n")
    path.with_suffix(".tmp").replace(path)
    print(f"wrote {path}")


def _on_one_line(match: re.Match) -> str:
    opening, *words, closing = match[0].split()
    line = opening + " ".join(words) + closing
    return line if "\n" in match[0] and len(line) <= 150 else match[0]


def read_bandwidth(n_bytes: int = 2**29, repeats: int = 15) -> float:
    """The highest rate, in bytes per second, at which the cores read memory: torch's sum of an fp32 tensor
    far larger than the cache."""
    import torch

    numbers, seconds = torch.ones(n_bytes // 4), []
    for _ in range(repeats):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return n_bytes / min(seconds)

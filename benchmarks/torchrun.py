"""Measure what a second process is worth: train.py alone against train.py under torchrun, a thread each.

    python benchmarks/torchrun.py                                            on the embedded sample
    python benchmarks/torchrun.py --root IU_XRAY --base LLAMA_DIR            on IU X-ray, with a base of yours

The same steps three times: by one process; by two under torchrun; and, for the limit that the machine itself
sets (its cores share caches and memory), by two that know nothing of each other and each do all of it. Steps
are timed from outside, by when their lines come into metrics.jsonl, the first and the last left out: one
warms up, one validates. Features are kept beforehand, by a run of one step. Figures go to
benchmarks/results/torchrun.json, beside those of the other work.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import HOME, RESULTS, machine, write_results

BATCH = 8


def run_all(runs: list[Path], options: list[str], processes: int = 1) -> list[tuple[list[float], list[dict]]]:
    """train.py once for each run folder, all at the same time, one thread a process; for each the seconds at
    which lines came into its metrics.jsonl, looked at every 5 ms, and these lines."""
    how = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--"] if processes > 1 else []
    started, times = [], [[] for _ in runs]
    for run in runs:
        command = [sys.executable, *how, "train.py", *options, "--device", "cpu", "--out", str(run)]
        with run.with_suffix(".log").open("w") as said:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(command, cwd=HOME, env=environment, stdout=said, stderr=said))
    logs = [run / "metrics.jsonl" for run in runs]
    while any(process.poll() is None for process in started):
        for log, seen in zip(logs, times, strict=True):
            n = log.read_bytes().count(b"\n") if log.is_file() else 0
            seen += [time.perf_counter()] * (n - len(seen))
        time.sleep(0.005)
    for process, run in zip(started, runs, strict=True):
        if process.returncode:
            said = run.with_suffix(".log").read_text()
            sys.exit(f"error: train.py ended with {process.returncode}:\n{said}")
    lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    return list(zip(times, lines, strict=True))


def measure(options: list[str], steps: int) -> dict:
    """Studies per second by one process, by two together, by two side by side; how far the losses differ."""
    options = [*options, "--batch", str(BATCH), "--val-every", "9999", "--val-studies", "8"]
    options += ["--n-samples", "0"]
    with tempfile.TemporaryDirectory() as folder:
        run_all([Path(folder, "first")], [*options, "--steps", "1", "--batch", "1", "--val-studies", "1"])
        options += ["--steps", str(steps)]
        one = run_all([Path(folder, "one")], options)
        two = run_all([Path(folder, "two")], options, processes=2)
        beside = run_all([Path(folder, "left"), Path(folder, "right")], options)

    def speed(seen: list[float]) -> float:  # line 0 is the validation before step 1
        return BATCH * (steps - 2) / (seen[steps - 1] - seen[1])

    def losses(lines: list[dict]) -> list[float]:
        return [line[key] for line in lines for key in ("loss", "val_loss") if key in line]

    alone, together = speed(one[0][0]), speed(two[0][0])
    limit = sum(speed(seen) for seen, _ in beside)
    pairs = list(zip(losses(one[0][1]), losses(two[0][1]), strict=True))
    return {
        **machine(), "options": options, "timed_studies": BATCH * (steps - 2),
        "studies_per_s": {"one": alone, "two under torchrun": together, "two side by side": limit},
        "efficiency": together / (2 * alone), "efficiency_of_the_machine": limit / (2 * alone),
        "largest_relative_difference_of_losses": max(abs(a - b) / a for a, b in pairs),
        "losses_one": [a for a, _ in pairs], "losses_two": [b for _, b in pairs],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="IU X-ray in one of its forms; with --base")
    parser.add_argument("--base", type=Path, help="Llama checkpoint folder to train on it")
    parser.add_argument("--cache", type=Path, help="folder for what is kept of images")
    parser.add_argument("--steps", type=int, default=6, help="of which the first and last are not timed")
    options = parser.parse_args()
    name, what = "sample", ["--data", "sample"]
    if options.root and options.base:
        name, what = "iu_xray", ["--data", "iu_xray", "--root", str(options.root)]
        what += ["--base", str(options.base), "--grid", "4", "--outline-share", "0", "--wording", "own"]
    if options.cache:
        what += ["--cache", str(options.cache)]
    figures = measure(what, options.steps)
    per_s = ", ".join(f"{how} {speed:.2f}" for how, speed in figures["studies_per_s"].items())
    rest = "efficiency {efficiency:.2f}, the machine's own {efficiency_of_the_machine:.2f}; "
    rest += "losses differ by {largest_relative_difference_of_losses:.1e}"
    print(f"{name}: {per_s} studies/s; {rest.format(**figures)}")
    path = RESULTS / "torchrun.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    write_results("torchrun", {**kept, "machine": machine(), name: figures})


if __name__ == "__main__":
    main()

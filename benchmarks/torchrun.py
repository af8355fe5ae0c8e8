"""How much a second process speeds up training: train.py alone and under torchrun, one thread per process.

    python benchmarks/torchrun.py                                            on the embedded sample
    python benchmarks/torchrun.py --root IU_XRAY --base LLAMA_DIR            on IU X-ray, with your base

The same steps run three times: in one process, in two under torchrun, and in two independent processes that
each take all steps. The last is the limit of the machine, whose cores share caches and memory. Steps are
timed by the arrival of their lines in metrics.jsonl. The first step, which warms up, and the last, which
validates, are left out. A run of one step fills the feature cache beforehand. The results go to
benchmarks/results/torchrun.json, which keeps those of the other data set.
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
    """Run train.py for all run folders at once, one thread per process. Returns for each run the times when
    lines arrived in its metrics.jsonl (sampled every 5 ms), and the lines."""
    launcher = (
        ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--"] if processes > 1 else []
    )
    children, times = [], [[] for _ in runs]
    for run in runs:
        command = [sys.executable, *launcher, "train.py", *options, "--device", "cpu", "--out", str(run)]
        with run.with_suffix(".log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            children.append(subprocess.Popen(command, cwd=HOME, env=environment, stdout=log, stderr=log))
    logs = [run / "metrics.jsonl" for run in runs]
    while any(process.poll() is None for process in children):
        for log, arrivals in zip(logs, times, strict=True):
            n = log.read_bytes().count(b"\n") if log.is_file() else 0
            arrivals += [time.perf_counter()] * (n - len(arrivals))
        time.sleep(0.005)
    for process, run in zip(children, runs, strict=True):
        if process.returncode:
            output = run.with_suffix(".log").read_text()
            sys.exit(f"error: train.py exited with {process.returncode}:\n{output}")
    lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    return list(zip(times, lines, strict=True))


def measure(options: list[str], steps: int) -> dict:
    """Studies per second of one process, two under torchrun and two side by side; how far the losses
    differ."""
    options = [*options, "--batch", str(BATCH), "--val-every", "9999", "--val-studies", "8"]
    options += ["--n-samples", "0"]
    with tempfile.TemporaryDirectory() as folder:
        run_all([Path(folder, "first")], [*options, "--steps", "1", "--batch", "1", "--val-studies", "1"])
        options += ["--steps", str(steps)]
        one = run_all([Path(folder, "one")], options)
        two = run_all([Path(folder, "two")], options, processes=2)
        beside = run_all([Path(folder, "left"), Path(folder, "right")], options)

    def speed(arrivals: list[float]) -> float:  # line 0 is the validation before step 1
        return BATCH * (steps - 2) / (arrivals[steps - 1] - arrivals[1])

    def losses(lines: list[dict]) -> list[float]:
        return [line[key] for line in lines for key in ("loss", "val_loss") if key in line]

    alone, together = speed(one[0][0]), speed(two[0][0])
    limit = sum(speed(arrivals) for arrivals, _ in beside)
    pairs = list(zip(losses(one[0][1]), losses(two[0][1]), strict=True))
    about = machine()
    return {
        "commit": about["commit"], "date": about["date"], "options": " ".join(options),
        "timed_studies": BATCH * (steps - 2),
        "studies_per_s": {"one": alone, "two under torchrun": together, "two side by side": limit},
        "efficiency": together / (2 * alone), "machine_efficiency": limit / (2 * alone),
        "largest_relative_loss_difference": max(abs(a - b) / a for a, b in pairs),
        "losses_one": [a for a, _ in pairs],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="IU X-ray in one of its forms; with --base")
    parser.add_argument("--base", type=Path, help="Llama checkpoint folder to train on it")
    parser.add_argument("--cache", type=Path, help="folder of drawn images and features")
    parser.add_argument("--steps", type=int, default=6, help="steps; the first and the last are not timed")
    args = parser.parse_args()
    name, arguments = "sample", ["--data", "sample"]
    if args.root and args.base:
        name, arguments = "iu_xray", ["--data", "iu_xray", "--root", str(args.root)]
        arguments += ["--base", str(args.base), "--vision", "tiny", "--grid", "4", "--outline-share", "0"]
    if args.cache:
        arguments += ["--cache", str(args.cache)]
    figures = measure(arguments, args.steps)
    per_s = ", ".join(f"{processes} {speed:.2f}" for processes, speed in figures["studies_per_s"].items())
    rest = "efficiency {efficiency:.2f}, the machine's limit {machine_efficiency:.2f}; "
    rest += "losses differ by {largest_relative_loss_difference:.1e}"
    print(f"{name}: {per_s} studies/s; {rest.format(**figures)}")
    path = RESULTS / "torchrun.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    others = {data: earlier[data] for data in ("sample", "iu_xray") if data in earlier}
    configuration = {"threads": "one per process", "backend": "gloo"}
    write_results("torchrun", {"configuration": configuration, **others, name: figures})


if __name__ == "__main__":
    main()

"""Measure the whole way through, as a user walks it: train on the sample, evaluate, generate, test.

    python benchmarks/spine.py [--images DIR] [--only train eval generate tests]

Each step is the README's own command in a process of its own; wall seconds and peak resident memory are the
operating system's (the largest process of the step). Figures go to benchmarks/results/spine.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
STEPS, DEMO = ("train", "eval", "generate", "tests"), "llamaxr/assets/demo"


def measure(*command: str) -> dict:
    """Run a command in the repository; seconds, peak MiB of its largest process, exit code."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=HOME, stdout=subprocess.PIPE, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    return {"command": "python " + " ".join(command), "seconds": round(seconds, 1),
            "peak_MiB": round(usage.ru_maxrss / 1024), 
            "exit": os.waitstatus_to_exitcode(status), "out": out}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=Path, help="folder of radiographs to generate from, each in a process"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STEPS,
        default=STEPS,
        help="these steps; the file keeps the others' figures",
    )
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HOME, capture_output=True, text=True
    ).stdout
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    results = {"machine": machine, "steps": []}
    with tempfile.TemporaryDirectory() as folder:
        run, cache = f"{folder}/run", f"{folder}/cache"  # an empty cache: drawing is part of the time
        steps = [
            ("train", ("train.py", "--data", "sample", "--out", run, "--cache", cache)),
            ("eval", ("eval.py", "--run", run, "--split", "test")),
        ]
        images = sorted(options.images.glob("*.png")) if options.images else []
        steps += [("generate", ("generate.py", str(image), "--run", DEMO)) for image in images]
        steps += [("tests", ("-m", "pytest", "-q"))]
        for name, command in (step for step in steps if step[0] in options.only):
            step = {"step": name, "commit": commit.strip(), **measure(*command)}
            print(
                f"{name:9s} {step['seconds']:7.1f} s {step['peak_MiB']:6d} MiB  "
                f"exit {step['exit']}  {' '.join(command)}"
            )
            print("    " + step.pop("out").strip().replace("\n", "\n    "))
            if name == "eval":
                groups = json.loads(Path(run, "eval-test", "results.json").read_text())["groups"]
                writers = groups["all"]["writers"].items()
                step["micro_f1"] = {who: s["findings"]["micro_f1"] for who, s in writers}
            results["steps"].append(step)
    target = HOME / "benchmarks" / "results" / "spine.json"
    target.parent.mkdir(exist_ok=True)
    if target.is_file():
        kept = json.loads(target.read_text())["steps"]
        results["steps"] = [s for s in kept if s["step"] not in options.only] + results["steps"]
    target.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written: {target}")


if __name__ == "__main__":
    main()

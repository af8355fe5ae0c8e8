"""Time the README's commands, one after another: train on the sample, evaluate, generate, test.

    python benchmarks/spine.py [--images DIR] [--only train eval generate tests]

Each command runs in its own process. Its wall time is measured in seconds, and the peak resident memory of
its largest process, as the operating system counts it. The results go to benchmarks/results/spine.json,
which keeps those of steps that are not run again.
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

STEPS, DEMO = ("train", "eval", "generate", "tests"), "llamaxr/assets/demo"


def measure(*command: str) -> tuple[dict, str]:
    """Run a command in the repository; returns its seconds, the peak MiB of its largest process and its exit
    code, and its output."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=HOME, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    return {"command": "python " + " ".join(command), "seconds": round(seconds, 1),
            "peak_MiB": round(usage.ru_maxrss / 1024),
            "exit": os.waitstatus_to_exitcode(status)}, output  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of radiographs; one generate step for each")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="run these steps only")
    args = parser.parse_args()
    if "eval" in args.only and "train" not in args.only:
        parser.error("eval evaluates what train has trained: give --only train eval")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        run, cache = f"{folder}/run", f"{folder}/cache"  # the cache is empty: the time includes drawing
        steps = [
            ("train", ("train.py", "--data", "sample", "--out", run, "--cache", cache)),
            ("eval", ("eval.py", "--run", run, "--split", "test")),
        ]
        images = sorted(args.images.glob("*.png")) if args.images else []
        steps += [("generate", ("generate.py", str(image), "--run", DEMO)) for image in images]
        steps += [("tests", ("-m", "pytest", "-q"))]
        for name, command in (step for step in steps if step[0] in args.only):
            figures, output = measure(*command)
            print(f"{name:9s} {json.dumps(figures)}\n    " + output.strip().replace("\n", "\n    "))
            if name == "eval":
                groups = json.loads(Path(run, "eval-test", "results.json").read_text())["groups"]
                systems = groups["all"]["writers"].items()
                figures["micro_f1"] = {name: scores["findings"]["micro_f1"] for name, scores in systems}
            results.append({"step": name, "commit": machine()["commit"], **figures})
    path = RESULTS / "spine.json"
    if path.is_file():
        earlier = json.loads(path.read_text())["steps"]
        results = [step for step in earlier if step["step"] not in args.only] + results
    write_results("spine", {"configuration": {"data": "sample"}, "steps": results})


if __name__ == "__main__":
    main()

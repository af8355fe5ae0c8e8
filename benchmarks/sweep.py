"""Which rates, how many soft tokens: does the outline learn to see? A short run a setting, judged on val.

    python benchmarks/sweep.py ROOT BASE VISION [--steps 60] [--limit 148] [--only NAME ...]

ROOT, BASE, VISION as train.py's. Each setting changes one thing of the first. A run learns the outline alone
(prompt.py) for STEPS steps of 8 studies; then `eval.py --split val` counts what its outlines name: findings
F1 against the true ones over the first LIMIT studies, with its interval. Figures go to
benchmarks/results/sweep.json, which keeps those of settings that were not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import HOME, RESULTS, write_results

SETTINGS = {
    "lr 5e-4, projector 1e-3, grid 2": {"lr": 5e-4, "projector-lr": 1e-3, "grid": 2},
    "lr 1e-3, projector 2e-3": {"lr": 1e-3, "projector-lr": 2e-3, "grid": 2},
    "lr 2e-4, projector 4e-4": {"lr": 2e-4, "projector-lr": 4e-4, "grid": 2},
    "grid 4": {"lr": 5e-4, "projector-lr": 1e-3, "grid": 4},
    "grid 7": {"lr": 5e-4, "projector-lr": 1e-3, "grid": 7},
}


def run(*command: object) -> None:
    if subprocess.run([sys.executable, *map(str, command)], cwd=HOME, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("root", "base", "vision"):
        parser.add_argument(name, help="as train.py's option")
    parser.add_argument("--steps", type=int, default=60, help="steps of 8 studies")
    parser.add_argument("--limit", type=int, default=148, help="studies of val to judge by")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=SETTINGS, help="these settings")
    parser.add_argument("--cache", help="as train.py's option")
    given = parser.parse_args()
    cache = ["--cache", given.cache] if given.cache else []
    path = RESULTS / "sweep.json"
    results = json.loads(path.read_text())["settings"] if path.is_file() else {}
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            setting = [word for key, value in SETTINGS[name].items() for word in (f"--{key}", value)]
            data = ["--data", "iu_xray", "--root", given.root, *cache]
            models = ["--base", given.base, "--vision", given.vision, "--dtype", "bf16"]
            steps = ["--steps", given.steps, "--val-every", given.steps]
            steps += ["--outline-share", 1, "--wording", "own"]  # an outline is the same in all wordings
            run("train.py", *data, *models, *steps, "--n-samples", 0, "--out", f"{folder}/run", *setting)
            judge = ["--split", "val", "--limit", given.limit, "--batch", given.limit, "--max-tokens", 32]
            run("eval.py", "--run", f"{folder}/run", *judge)
            found = json.loads(Path(folder, "run/eval-val/results.json").read_text())
        judged = found["groups"]["all"]["writers"]
        results[name] = judged["outline"]["findings"]["micro_f1"]
        print(f"{name}: outline F1 {results[name]}", flush=True)
        write_results("sweep", {"steps": given.steps, "studies": given.limit, "settings": results})


if __name__ == "__main__":
    main()

"""Which learning rates and how many soft tokens suit the outline? One short run per setting, scored on val.

    python benchmarks/sweep.py ROOT BASE VISION [--steps 60] [--limit 148] [--only NAME ...]

ROOT, BASE and VISION are train.py's. Each setting changes the rates or the grid of the first. A run learns
the outline alone (data/outline.py) for STEPS steps of 8 studies. Then `eval.py --split val` scores the
outlines: findings F1 against the true ones over the first LIMIT studies, with its interval. The results go to
benchmarks/results/sweep.json, which keeps those of settings that are not run again.
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
    parser.add_argument("--limit", type=int, default=148, help="val studies to score")
    parser.add_argument(
        "--only", nargs="+", choices=SETTINGS, default=SETTINGS, help="run these settings only"
    )
    parser.add_argument("--cache", help="as train.py's option")
    args = parser.parse_args()
    cache = ["--cache", args.cache] if args.cache else []
    path = RESULTS / "sweep.json"
    results = json.loads(path.read_text())["settings"] if path.is_file() else {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            setting = [word for key, value in SETTINGS[name].items() for word in (f"--{key}", value)]
            data = ["--data", "iu_xray", "--root", args.root, *cache]
            models = ["--base", args.base, "--vision", args.vision, "--dtype", "bf16"]
            steps = ["--steps", args.steps, "--val-every", args.steps, "--outline-share", 1]
            steps += ["--warmup-share", 0.5, "--val-studies", 64]
            run("train.py", *data, *models, *steps, "--n-samples", 0, "--out", f"{folder}/run", *setting)
            first = ["--split", "val", "--limit", args.limit, "--batch", args.limit, "--max-tokens", 32]
            run("eval.py", "--run", f"{folder}/run", *first)
            scores = json.loads(Path(folder, "run/eval-val/results.json").read_text())
        results[name] = scores["groups"]["all"]["writers"]["outline"]["findings"]["micro_f1"]
        print(f"{name}: outline F1 {results[name]}", flush=True)
        configuration = {"base": args.base, "steps": args.steps, "studies": args.limit}
        write_results("sweep", {"configuration": configuration, "settings": results})


if __name__ == "__main__":
    main()

"""Time from the start of the process to the report's first token on stdout, beside a minimal peer's script.

    python benchmarks/first_token.py [--image image.png] [--repeats 5]

`python generate.py image.png` runs on the embedded demo, benchmarks/first_token_peer.py on the same files.
One run of each fills the page cache first. Also measured: the time of the whole report, each process's peak
memory (resident, as the operating system counts it), and the imports, by `python -X importtime`. The results
go to benchmarks/results/first_token.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import HOME, compare, write_results

ASSETS = HOME / "llamaxr" / "assets"


def time_first_token(command: list[str]) -> dict:
    """Run a command; seconds to its first byte that is not white space, and to its end."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=HOME, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, bufsize=0)  # fmt: skip
    first = process.stdout.read(1)
    while first.isspace():
        first = process.stdout.read(1)
    seconds = time.perf_counter() - start
    text = first + process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) or not text.strip():
        sys.exit(f"error: {' '.join(map(str, command))} failed or wrote nothing")
    return {"first_token_s": seconds, "whole_s": time.perf_counter() - start,
            "peak_resident_MiB": usage.ru_maxrss / 1024, "text": text.decode().strip()}  # fmt: skip


def time_imports(command: list[str], n: int = 12) -> dict[str, float]:
    """Import seconds of the n slowest packages, each without the other packages that it imports."""
    process = subprocess.run([sys.executable, "-X", "importtime", *map(str, command)], cwd=HOME, text=True,
                             capture_output=True)  # fmt: skip
    seconds: dict[str, float] = {}
    for line in process.stderr.splitlines():
        if line.startswith("import time:") and "[us]" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            package = ".".join(name.strip().split(".")[: 2 if "torch." in name else 1])
            seconds[package] = seconds.get(package, 0.0) + int(own) / 1e6
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1])[:n]) | {"all": sum(seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, default=ASSETS / "example.png")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    image, demo = args.image.resolve(), ASSETS / "demo"
    commands = {
        "ours": ["generate.py", image, "--run", demo],
        "peer": ["benchmarks/first_token_peer.py", image, demo, ASSETS / "tiny-llama",
                 ASSETS / "tiny-densenet.safetensors"],
    }  # fmt: skip
    runs: dict[str, list[dict]] = {"ours": [], "peer": []}
    for repeat in range(args.repeats + 1):
        for side, command in commands.items():
            run = time_first_token(command)
            if repeat:  # the first run fills the page cache
                runs[side].append(run)
            print(side, json.dumps(run), flush=True)
    results: dict = {"configuration": {"run": "the embedded demo", "repeats": args.repeats}}
    for figure in ("first_token_s", "whole_s", "peak_resident_MiB"):
        results[figure] = compare(runs, figure)
    letters = {side: "".join(c for c in figures[0]["text"] if c.isascii() and not c.isspace())
               for side, figures in runs.items()}  # fmt: skip
    results["same_text"] = letters["ours"] == letters["peer"]
    results["imports_s"] = {side: time_imports(command) for side, command in commands.items()}
    print(json.dumps(results, indent=2))
    write_results("first_token", results)


if __name__ == "__main__":
    main()

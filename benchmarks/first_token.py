"""From the start of the process to the first token of the report on stdout, beside a minimal peer's script.

    python benchmarks/first_token.py [--image image.png] [--repeats 5]

`python generate.py image.png` on the embedded demo, and benchmarks/first_token_peer.py on the same files.
Both run once first, so that the programs and files lie in the page cache. Then the whole report's time, the
memory of each process at its peak (resident, as the operating system counts it), and what is imported before
the first token, by `python -X importtime`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import HOME, ratio, summary, write_results

ASSETS = HOME / "llamaxr" / "assets"


def first_token(command: list[str]) -> dict:
    """Run a command; seconds to its first byte that is no white space, and to its end."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=HOME, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, bufsize=0)  # fmt: skip
    first = process.stdout.read(1)
    while first.isspace():
        first = process.stdout.read(1)
    seconds = time.perf_counter() - began
    text = first + process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) or not text.strip():
        sys.exit(f"error: {' '.join(map(str, command))} wrote nothing, or failed")
    return {"first_token_s": seconds, "whole_s": time.perf_counter() - began,
            "peak_resident_MiB": usage.ru_maxrss / 1024, "text": text.decode().strip()}  # fmt: skip


def imports(command: list[str], n: int = 12) -> dict[str, float]:
    """Seconds of the dearest packages that are imported, each without what it imports of other packages."""
    done = subprocess.run([sys.executable, "-X", "importtime", *map(str, command)], cwd=HOME, text=True,
                          capture_output=True)  # fmt: skip
    seconds: dict[str, float] = {}
    for line in done.stderr.splitlines():
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
    given = parser.parse_args()
    demo = ASSETS / "demo"
    commands = {
        "ours": ["generate.py", given.image.resolve(), "--run", demo],
        "peer": ["benchmarks/first_token_peer.py", given.image.resolve(), demo, ASSETS / "tiny-llama",
                 ASSETS / "tiny-densenet.safetensors"],
    }  # fmt: skip
    runs: dict[str, list[dict]] = {"ours": [], "peer": []}
    for repeat in range(given.repeats + 1):
        for side, command in commands.items():
            run = first_token(command)
            if repeat:  # the first fills the page cache
                runs[side].append(run)
            print(side, json.dumps(run), flush=True)
    results: dict = {"command": "python benchmarks/first_token.py", "repeats": given.repeats}
    for figure in ("first_token_s", "whole_s", "peak_resident_MiB"):
        of = {side: [run[figure] for run in figures] for side, figures in runs.items()}
        results[figure] = {side: summary(values) for side, values in of.items()}
        results[figure]["ratio"] = ratio(of["ours"], of["peer"])
    letters = {side: "".join(c for c in figures[0]["text"] if c.isascii() and not c.isspace())
               for side, figures in runs.items()}  # fmt: skip
    results["same_text"] = letters["ours"] == letters["peer"]
    results["imports_s"] = {side: imports(command) for side, command in commands.items()}
    print(json.dumps(results, indent=2))
    write_results("first_token", results)


if __name__ == "__main__":
    main()

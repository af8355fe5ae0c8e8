"""Measure the CUDA path in one command: under nine minutes on an H100, and nothing is fetched.

    python benchmarks/gpu.py [--out FILE] [--only STAGE ...] [--budget SECONDS] [--tiny]

The most important stages come first. Each runs in its own process. FILE is written
after every figure. A form that fails or takes over a minute does not stop the next one. Nor does a stage that
fails or is stopped at its limit, and it keeps what it has measured.

    card        what it is, and its two ceilings: memory bandwidth, and the rate of a bf16 product
    exactness   the embedded demo on CUDA against the same on the CPU: loss, gradients, logits, greedy text
    training    QLoRA of Llama 3.1 8B's shapes at batch 8: plain and fast; recomputed; compiled; fast at 32
    decoding    1 and 64 reports with those shapes: plain, fast, and by a CUDA graph
    peer        transformers + PEFT + bitsandbytes on the same codes: training, 1 and 64 reports
    tests       the tests marked gpu
    sample      train.py on the sample twice, once stopped and resumed; then eval.py

A position is one that the work needs: the prompts' common prefix counts once per batch, and filler never, for
all forms and for the peer. The limit of training is its arithmetic (gpu_8b.work_of_step) at the card's rate
for a product of that shape. The limit of decoding is the bytes of the weights and of the KV cache at its
bandwidth. The peer has its fastest settings: bf16 throughout, sdpa, no gradient checkpointing.

--tiny takes small shapes and few steps: a rehearsal of this file, which measures nothing.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_8b import (
    FULL,
    GIB,
    SEED,
    SENTENCES,
    TINY,
    Sizes,
    attempt,
    bandwidth,
    decoding,
    difference,
    note,
    one_line,
    peer,
    product_rate,
    training,
)
from measure import HOME, write_results
from torch import Tensor

from llamaxr import fast
from llamaxr.data import phantom
from llamaxr.decoding import generate
from llamaxr.runs import checkpoint
from llamaxr.runs.options import from_json
from llamaxr.runs.recipes import TrainOptions
from llamaxr.runs.run import CACHE, DEMO, build, pick_device
from llamaxr.vision import StudyFeatures

TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1}  # relative; bf16 has 8 bits, and the worst gradient decides


def card(sizes: Sizes) -> None:
    gpu, names = torch.cuda.get_device_properties(0), ("bitsandbytes", "transformers", "peft", "triton")
    note(name=gpu.name, GiB=gpu.total_memory / GIB, cuda=torch.version.cuda, torch=torch.__version__,
         packages={d.name: d.version for d in distributions() if d.name in names})  # fmt: skip
    note(TB_per_s=bandwidth() / 1e12, TFLOP_per_s=product_rate() / 1e12)
    note(TFLOP_per_s_of_8192_cubed=product_rate(8192, 8192, 8192) / 1e12)


def exactness(sizes: Sizes) -> None:
    loss, gradients, logits, write = run_demo("cpu", "fp32", plain=True)
    text = write()

    def compare(name: str, dtype: str, plain: bool) -> dict:
        own_loss, own_gradients, own_logits, write = run_demo("cuda", dtype, plain)
        gaps = [difference(own_gradients[key], gradient) for key, gradient in gradients.items()]
        figures = {"loss": difference(own_loss, loss), "logits": difference(own_logits, logits),
                   "worst_gradient": torch.tensor(gaps).max().item()}  # fmt: skip
        within = all(value <= TOLERANCE[dtype] for value in figures.values())  # a NaN is not
        note(**{name: {**figures, "within_tolerance": within}})  # now: recording a CUDA graph may fail
        same = sum(a == b for a, b in zip(write(), text, strict=True))
        return {"same": f"{same} of {len(text)}"}

    for dtype in TOLERANCE:
        for form, plain in (("plain", True), ("fast", False)):
            name = f"{dtype}_{form}"
            attempt(f"{name}_text", sizes.form_s, partial(compare, name, dtype, plain))


def run_demo(device: str, dtype: str, plain: bool) -> tuple[Tensor, dict[str, Tensor], Tensor, Callable]:
    """The embedded demo on five studies of random grids: loss, gradients, logits, and what writes greedy
    text."""
    options = from_json(TrainOptions, checkpoint.read_config(DEMO), DEMO / "config.json")
    vision, model = build(replace(options, dtype=dtype, plain=plain), torch.device(device))
    checkpoint.load(checkpoint.last(DEMO), model)
    numbers = torch.Generator().manual_seed(SEED)
    grids = [torch.rand(1 + i % 2, vision.n_channels, 7, 7, generator=numbers) for i in range(5)]
    studies = [StudyFeatures([0, 1][: len(g)], g, torch.zeros(len(g), 18)) for g in grids]
    texts = [" ".join(SENTENCES[: i + 1]) for i in range(5)]
    if not plain:
        fast.for_training(model)
    batch = model.train().collate(studies, texts, 300).to(device)
    loss = model.loss(batch) / len(batch.target_positions)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not plain:
        fast.for_generation(model)
    prompts = model.eval().collate(studies).to(device)
    with torch.inference_mode():
        x = model.embed(prompts)
        logits = model.llama.logits(model.llama.hidden(x, prompts.padding)[:, -1])
    write = partial(generate, model.llama, x, prompts.padding, model.tokenizer.eos_ids, 80)
    return loss.detach(), gradients, logits, write


def tests(sizes: Sizes) -> None:
    if find_spec("pytest") is None:
        return note(skipped="not installed: pytest")
    # By file, because others import what the card's machine may lack.
    files = [str(p) for p in sorted((HOME / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *files]
    process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True)
    outcomes, failed = Counter(), []
    for line in process.stdout:
        print(line, end="", file=sys.stderr)
        if found := re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", line):
            outcomes[found[2].lower()] += 1
            failed += [one_line(found[1])] if found[2] in ("FAILED", "ERROR") else []
            note(outcomes=outcomes, failed=failed[:20])
    note(finished=process.wait() in (0, 1))  # 1: some failed


def run(*arguments) -> float:
    """Run a script of this repository; returns its seconds. RuntimeError with its last line if it fails."""
    start = time.perf_counter()
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    if process.returncode:
        print(process.stderr, file=sys.stderr)
        raise RuntimeError(f"{arguments[0]}: {(process.stderr.strip().splitlines() or [''])[-1]}")
    return time.perf_counter() - start


def logged(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl. Step 0 has the validation loss alone."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def sample(sizes: Sizes) -> None:
    folder, n = CACHE / "gpu-sample", sizes.sample_steps
    shutil.rmtree(folder, ignore_errors=True)
    phantom.make_studies(CACHE / "sample", workers=os.cpu_count())
    command = f"train.py --data sample --device cuda --steps {n} --val-every {n // 2} --out".split()
    seconds = run(*command, folder / "a")
    start, *steps = logged(folder / "a")
    rate = statistics.median(line["report_tokens_per_s"] for line in steps)
    val_loss = [start["val_loss"], steps[-1]["val_loss"]]
    note(train={"seconds": seconds, "report_tokens_per_s": rate, "val_loss": val_loss})

    def train_again() -> dict:
        second = subprocess.Popen([sys.executable, *command, folder / "b"], cwd=HOME, stdout=sys.stderr)
        while second.poll() is None and len(logged(folder / "b")) < n // 3:
            time.sleep(0.05)
        second.send_signal(signal.SIGTERM)  # it saves and stops after the step that it is in
        second.wait()
        stopped = logged(folder / "b")[-1]["step"]
        run("train.py", "--resume", folder / "b")
        pairs = zip(steps, logged(folder / "b")[1:], strict=True)
        apart = {a["step"]: abs(a["loss"] / b["loss"] - 1) for a, b in pairs if a["loss"] != b["loss"]}
        return {"stopped_at": stopped, "equal_until_then": all(step > stopped for step in apart),
                "equal_to_the_end": not apart,
                "largest_difference": max(apart.values(), default=0.0)}  # fmt: skip

    def evaluate() -> dict:
        options = f"--device cuda --limit {sizes.studies} --run".split()
        seconds = run("eval.py", *options, folder / "a", "--out", folder / "eval")
        systems = json.loads((folder / "eval/results.json").read_text())["groups"]["all"]["writers"]
        f1 = {name: systems[name]["findings"]["micro_f1"] for name in ("system", "swapped")}  # with interval
        return {"seconds": seconds, "studies": sizes.studies, "findings_f1": f1}

    attempt("second", 2 * sizes.form_s, train_again)
    attempt("eval", 2 * sizes.form_s, evaluate)


# The stages, with the share of the budget that each may take, and at least 30 s. The shares add up to 1.5,
# because few stages come near theirs.
STAGES = {card: 0.08, exactness: 0.12, training: 0.35, decoding: 0.2, peer: 0.2, tests: 0.25, sample: 0.3}
NAMES = {stage.__name__: stage for stage in STAGES}


def run_stage(name: str, limit: float, flags: list[str], add) -> None:
    """Run one stage in its own process. add(figures) gets each line of JSON that it prints."""
    command = [sys.executable, __file__, "--step", name, *flags]
    process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True, process_group=0)
    timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))  # with what it has started
    timer.start()
    start = time.perf_counter()
    try:
        for line in process.stdout:
            print(f"{name}: {line}", end="", flush=True)
            if line.startswith("{"):
                add(json.loads(line))
        code = process.wait()
    finally:  # Ctrl-C reaches this process alone
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    seconds = time.perf_counter() - start
    add({"seconds": round(seconds, 1)} | ({"error": f"exit {code}, limit {limit:.0f} s"} if code else {}))


def run_step(name: str, sizes: Sizes) -> None:
    """A stage, in its own process."""
    import bitsandbytes  # noqa: F401  before the forms: one stopped in this import would break the next

    pick_device("cuda")
    try:
        NAMES[name](sizes)
    except Exception as error:
        traceback.print_exc()
        note(reason=one_line(f"{type(error).__name__}: {error}"))
        sys.exit(1)


def aims(results: dict) -> dict:
    """What was measured, best form, beside what is aimed at on an H100."""

    def best(stage: str, figure: str, ending: str = "") -> float | None:
        forms = [form for name, form in results.get(stage, {}).items() if name.endswith(ending)]
        forms = [form for form in forms if isinstance(form, dict)]
        return max((form[figure] for form in forms if figure in form), default=None)

    rows = {}
    for what, stage, ending, figure, aim, ratio in (
        ("training, positions per second", "training", "", "positions_per_s", 15_000, 2),
        ("one report, tokens per second", "decoding", "_1", "tokens_per_s", 150, 3),
        ("64 reports, tokens per second", "decoding", "_64", "tokens_per_s", 7_000, 3),
    ):
        ours, theirs = best(stage, figure, ending), best("peer", figure, ending or "training")
        rows[what] = {"measured": ours, "aim": aim}
        rows[f"{what}, over the peer"] = {"measured": ours and theirs and ours / theirs, "aim": ratio}
    rows["training, share of its limit"] = {"measured": best("training", "share_of_limit"), "aim": 0.6}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=CACHE / "gpu.json", help="FILE (default: cache/gpu.json)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="run these stages only")
    parser.add_argument("--budget", type=float, default=520, help="seconds for all stages (default: 520)")
    parser.add_argument("--tiny", action="store_true", help="small shapes: rehearses this file")
    parser.add_argument("--step", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device")
    if args.step:
        return run_step(args.step, TINY if args.tiny else FULL)
    start, flags = time.perf_counter(), ["--tiny"] if args.tiny else []
    base = "tiny shapes: a rehearsal" if args.tiny else "random weights of Llama 3.1 8B's shapes, NF4"
    results = {"configuration": {"base": base, "budget_s": args.budget}}

    args.out.parent.mkdir(parents=True, exist_ok=True)

    def add(name: str, figures: dict) -> None:
        results.setdefault(name, {}).update(figures)
        try:
            write_results(str(args.out.resolve().with_suffix("")), results)  # absolute: not in RESULTS
        except FileNotFoundError:  # a machine without git
            args.out.write_text(json.dumps(results, indent=2))

    for stage, share in STAGES.items():
        name = stage.__name__
        left = args.budget - (time.perf_counter() - start)
        if name in args.only and left < 15:
            add(name, {"skipped": "no time left"})
        elif name in args.only:
            run_stage(name, min(max(30, share * args.budget), left), flags, partial(add, name))
    if not args.tiny:
        add("aims", aims(results))
        print(json.dumps(results["aims"], indent=2))
    if failed := [name for name in args.only if "error" in results[name]]:
        sys.exit(f"error: {', '.join(failed)} did not end well: see above")


if __name__ == "__main__":
    main()

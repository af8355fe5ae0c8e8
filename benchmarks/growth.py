"""How training's time and memory grow: with studies, report length, soft tokens, batch and model size.

    python benchmarks/growth.py [--only studies report soft_tokens batch model]

Each point is a process of its own on random weights: the seconds of a step (forward, backward and AdamW; the
fastest of four after a first), or, against studies, of an epoch; and how far anonymous memory rose above what
the built model held. A line on log-log axes has a slope: 1 is linear. The slope is fitted over all points and
over the last three, where what does not grow (the prompt, Python) weighs least, and judged by the latter.
One thread. Figures: benchmarks/results/growth.json, and growth.png beside it. `--only` leaves the other lines
as they were.
"""

import argparse
import json
import time

import numpy as np
from measure import RESULTS, Peak, in_a_process, write_results

# A point's sizes; a line varies one of them. The embedded tiny base's shape, but for the vocabulary's size.
USUAL = {"studies": 8, "report": 60, "grid": 4, "views": 1, "batch": 8, "dim": 256, "layers": 4}
SMALL = {"dim": 64, "layers": 1, "report": 30, "grid": 1, "batch": 16}  # so that 10,000 studies take seconds
LINES = {
    "studies": [{**SMALL, "studies": n} for n in (100, 300, 1000, 3000, 10_000)],
    "report": [{"report": n, "batch": 2, "studies": 2} for n in (50, 125, 250, 500, 1000, 2000)],
    "soft_tokens": [{"grid": n} for n in (1, 2, 3, 5, 7)] + [{"grid": 7, "views": 2}],
    "batch": [{"batch": n, "studies": n} for n in (1, 2, 4, 8, 16, 32, 64)],
    "model": [{"dim": d, "layers": n} for d, n in ((64, 2), (128, 4), (256, 4), (256, 8), (512, 8))],
}
AXES = {
    "studies": "studies of an epoch", "report": "tokens of a report", "soft_tokens": "soft tokens of a study",
    "batch": "studies of a batch", "model": "numbers in the blocks' linears",
}  # fmt: skip
# Why a line may rise less than linearly.
LESS = {
    "studies": "the fixed part of an epoch still weighs",
    "report": "the prompt is as long as ever",
    "soft_tokens": "the rest of the prompt and the report are as long as ever",
    "batch": "a step's Python and the prompt's shared beginning are as long as ever",
    "model": "linears grow with the width's square; activations, attention and the vocabulary with the width",
}
MORE = {"report": "attention grows with the square of the length"}
UNEXPECTED = "which nothing here explains; measure again on a quiet machine"
FLAT = "does not grow, as it should be: one batch is held at a time"


def measure(size: dict) -> dict:
    import torch

    from llamaxr.runs.features import StudyFeatures
    from llamaxr.llama import Llama, LlamaConfig
    from llamaxr.lora import add_lora
    from llamaxr.model import LlamaXR
    from llamaxr.projector import Projector
    from llamaxr.runs.run import TINY_BASE
    from llamaxr.tokenizer import load_tokenizer

    torch.manual_seed(0)
    torch.set_num_threads(1)  # a second would share out large tensors and not small ones, and bend the lines
    torch.set_flush_denormal(True)
    tokenizer, dim = load_tokenizer(TINY_BASE), size["dim"]
    llama = Llama(LlamaConfig(832, dim, size["layers"], dim // 32, dim // 64, 32, dim * 11 // 4))
    n_linear = sum(p.numel() for name, p in llama.named_parameters() if "proj" in name)
    add_lora(llama, 8, 8.0)
    model = LlamaXR(Projector(64, dim, size["grid"]), llama, tokenizer, "tokens")
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    views = list(range(size["views"]))
    seen = StudyFeatures(views, torch.randn(len(views), 64, 7, 7).half(), torch.rand(len(views), 18))
    report = "The heart is normal in size. There is a small effusion. " * (size["report"] // 10 + 1)
    assert len(tokenizer.encode(report)) >= size["report"]  # each is then cut to exactly so many

    def step(n: int) -> None:
        batch = model.collate([seen] * n, [report] * n, size["report"])
        loss, n_targets = model.loss(batch)
        (loss / n_targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    def epoch() -> float:
        began = time.perf_counter()
        for at in range(0, size["studies"], size["batch"]):
            step(min(size["batch"], size["studies"] - at))
        return time.perf_counter() - began

    step(1)  # AdamW's moments, and what a first call sets up
    repeats = 1 if size["studies"] > size["batch"] else 4
    with Peak() as peak:
        seconds = [epoch() for _ in range(repeats)]
    return {
        "seconds": round(min(seconds), 4),
        "MiB": max(0.1, round((peak.bytes - peak.at_first) / 2**20, 1)),
        "x": {"studies": size["studies"], "report": size["report"], "batch": size["batch"], "model": n_linear,
              "soft_tokens": size["views"] * size["grid"] ** 2},
    }  # fmt: skip


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def judged(line: str, what: str, points: list[dict]) -> dict:
    """The slopes of one line, over all points and over the last three, and what they say."""
    x, y = ([point[key] for point in points] for key in ("x", what))
    whole, last = slope(x, y), slope(x[-3:], y[-3:])
    if what == "MiB" and line == "studies":
        verdict = FLAT if last < 0.2 else "grows, and should not"
    elif 0.85 <= last <= 1.15:
        verdict = "linear"
    else:
        more = f"more than linear: {MORE.get(line, UNEXPECTED)}"
        verdict = f"less than linear: {LESS[line]}" if last < 0.85 else more
    return {"slope": round(whole, 2), "slope_of_last_three": round(last, 2), "verdict": verdict}


def draw(results: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(results), figsize=(3.2 * len(results), 6), squeeze=False)
    for column, (line, result) in zip(axes.T, results.items(), strict=True):
        x = np.array([point["x"] for point in result["points"]])
        for axis, what in zip(column, ("seconds", "MiB"), strict=True):
            y = np.array([point[what] for point in result["points"]])
            axis.loglog(x, y, "o-", linewidth=1, markersize=4)
            axis.loglog(x, y[-1] * x / x[-1], ":", color="grey", linewidth=1)  # linear through the last point
            axis.set_title(f"slope at the end {result[what]['slope_of_last_three']}", fontsize=9)
        column[1].set_xlabel(AXES[line])
    axes[0, 0].set_ylabel("seconds (an epoch; else a step)")
    axes[1, 0].set_ylabel("MiB above the built model")
    figure.tight_layout()
    figure.savefig(RESULTS / "growth.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(LINES), default=tuple(LINES), help="these lines")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # within the process that is measured
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(json.loads(options.step))))
        return
    kept = RESULTS / "growth.json"
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    results = {}
    for line in LINES:
        if line not in options.only:
            if line in before:
                results[line] = before[line]
            continue
        points = []
        for size in LINES[line]:
            size = {**USUAL, "studies": size.get("batch", USUAL["batch"]), **size}
            point = in_a_process(__file__, "--step", json.dumps(size))
            points.append({**point, "x": point["x"][line]})
            print(f"{line}: {json.dumps(points[-1])}", flush=True)
        results[line] = {"points": points} | {what: judged(line, what, points) for what in ("seconds", "MiB")}
        for what in ("seconds", "MiB"):
            print(f"{line}, {what}: {json.dumps(results[line][what])}", flush=True)
    draw(results)
    write_results("growth", results)


if __name__ == "__main__":
    main()

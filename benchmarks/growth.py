"""How training's time and memory grow with studies, report length, soft tokens, batch and model size.

    python benchmarks/growth.py [--only studies report soft_tokens batch model]

Each point is measured in its own process, on random weights and one thread: the seconds of a step (forward,
backward and AdamW; the fastest of four after a warm-up) or, for the line "studies", of an epoch; and how far
anonymous memory rose above that of the built model. A line on log-log axes has a slope, which is 1 where
growth is linear. It is fitted to all points and to the last three. The verdict follows the latter, where the
constant part (the prompt, Python) weighs least. The results go to benchmarks/results/growth.json and
growth.png, which keep the lines that are not measured again.
"""

import argparse
import json
import time

import numpy as np
from measure import RESULTS, Peak, run_script, write_results

# The sizes of a point; each line varies one. The shape is the embedded tiny base's, its head untied.
DEFAULT = {"studies": 8, "report": 60, "grid": 4, "views": 1, "batch": 8, "dim": 256, "layers": 4}
SMALL = {"dim": 64, "layers": 1, "report": 30, "grid": 1, "batch": 16}  # 10,000 studies in seconds
LINES = {
    "studies": [{**SMALL, "studies": n} for n in (100, 300, 1000, 3000, 10_000)],
    "report": [{"report": n, "batch": 2, "studies": 2} for n in (50, 125, 250, 500, 1000, 2000)],
    "soft_tokens": [{"grid": n} for n in (1, 2, 3, 5, 7)] + [{"grid": 7, "views": 2}],
    "batch": [{"batch": n, "studies": n} for n in (1, 2, 4, 8, 16, 32, 64)],
    "model": [{"dim": d, "layers": n} for d, n in ((64, 2), (128, 4), (256, 4), (256, 8), (512, 8))],
}
AXES = {
    "studies": "studies per epoch", "report": "tokens per report", "soft_tokens": "soft tokens per study",
    "batch": "studies per batch", "model": "weights in the blocks' linears",
}  # fmt: skip
# Why a line may be less than linear, or more.
LESS = {
    "studies": "the constant part of an epoch still counts",
    "report": "the prompt does not grow",
    "soft_tokens": "the report and the rest of the prompt do not grow",
    "batch": "a step's Python time and the prompts' common prefix do not grow",
    "model": "linears grow with the width's square; activations, attention and the vocabulary with the width",
}
MORE = {"report": "attention grows with the square of the length"}
UNEXPECTED = "no known reason; measure again on a quiet machine"
FLAT = "constant, as expected: one batch is held at a time"


def measure(size: dict) -> dict:
    import torch

    from llamaxr import fast
    from llamaxr.llama import Llama, LlamaConfig
    from llamaxr.lora import add_lora
    from llamaxr.model import LlamaXR
    from llamaxr.projector import Projector
    from llamaxr.runs.run import TINY_BASE
    from llamaxr.tokenizer import load_tokenizer
    from llamaxr.vision import StudyFeatures

    torch.manual_seed(0)
    torch.set_num_threads(1)  # torch splits only large tensors between threads, which would bend the lines
    torch.set_flush_denormal(True)
    tokenizer, dim = load_tokenizer(TINY_BASE), size["dim"]
    llama = Llama(LlamaConfig(832, dim, size["layers"], dim // 32, dim // 64, 32, dim * 11 // 4))
    n_linear = sum(p.numel() for name, p in llama.named_parameters() if "proj" in name)
    add_lora(llama, 8, 8.0)
    model = LlamaXR(Projector(64, dim, size["grid"]), llama, tokenizer, "tokens")
    fast.for_training(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    views = list(range(size["views"]))
    study = StudyFeatures(views, torch.randn(len(views), 64, 7, 7).half(), torch.rand(len(views), 18))
    report = "The heart is normal in size. There is a small effusion. " * (size["report"] // 10 + 1)
    assert len(tokenizer.encode(report)) >= size["report"]  # collate cuts it to exactly that length

    def step(n: int) -> None:
        batch = model.collate([study] * n, [report] * n, size["report"])
        (model.loss(batch) / len(batch.target_positions)).backward()
        optimizer.step()
        optimizer.zero_grad()

    def epoch() -> float:
        start = time.perf_counter()
        for first in range(0, size["studies"], size["batch"]):
            step(min(size["batch"], size["studies"] - first))
        return time.perf_counter() - start

    step(1)  # allocates AdamW's moments and warms up
    repeats = 1 if size["studies"] > size["batch"] else 4
    with Peak() as peak:
        seconds = [epoch() for _ in range(repeats)]
    return {
        "seconds": round(min(seconds), 4),
        "MiB": max(0.1, round((peak.bytes - peak.start_bytes) / 2**20, 1)),
        "x": {"studies": size["studies"], "report": size["report"], "batch": size["batch"], "model": n_linear,
              "soft_tokens": size["views"] * size["grid"] ** 2},
    }  # fmt: skip


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def fit(line: str, figure: str, points: list[dict]) -> dict:
    """The slopes of one line, over all points and over the last three, and the verdict."""
    x, y = ([point[key] for point in points] for key in ("x", figure))
    overall, last = slope(x, y), slope(x[-3:], y[-3:])
    if figure == "MiB" and line == "studies":
        verdict = FLAT if last < 0.2 else "grows, but should be constant"
    elif 0.85 <= last <= 1.15:
        verdict = "linear"
    else:
        more = f"more than linear: {MORE.get(line, UNEXPECTED)}"
        verdict = f"less than linear: {LESS[line]}" if last < 0.85 else more
    return {"slope": round(overall, 2), "slope_of_last_three": round(last, 2), "verdict": verdict}


def draw(results: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(2, len(results), figsize=(3.2 * len(results), 6), squeeze=False)
    for column, (line, result) in zip(axes.T, results.items(), strict=True):
        x = np.array([point["x"] for point in result["points"]])
        for axis, figure in zip(column, ("seconds", "MiB"), strict=True):
            y = np.array([point[figure] for point in result["points"]])
            axis.loglog(x, y, "o-", linewidth=1, markersize=4)
            axis.loglog(x, y[-1] * x / x[-1], ":", color="grey", linewidth=1)  # linear through the last point
            axis.set_title(f"slope at the end {result[figure]['slope_of_last_three']}", fontsize=9)
        column[1].set_xlabel(AXES[line])
    axes[0, 0].set_ylabel("seconds per step (studies: per epoch)")
    axes[1, 0].set_ylabel("MiB above the built model")
    canvas.tight_layout()
    canvas.savefig(RESULTS / "growth.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=tuple(LINES), default=tuple(LINES), help="measure these lines only"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)  # in the measured process
    args = parser.parse_args()
    if args.step:
        print(json.dumps(measure(json.loads(args.step))))
        return
    path = RESULTS / "growth.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    results = {}
    for line in LINES:
        if line not in args.only:
            if line in earlier:
                results[line] = earlier[line]
            continue
        points = []
        for size in LINES[line]:
            size = {**DEFAULT, "studies": size.get("batch", DEFAULT["batch"]), **size}
            point = run_script(__file__, "--step", json.dumps(size))
            points.append({**point, "x": point["x"][line]})
            print(f"{line}: {json.dumps(points[-1])}", flush=True)
        results[line] = {"points": points}
        for figure in ("seconds", "MiB"):
            results[line][figure] = fit(line, figure, points)
            print(f"{line}, {figure}: {json.dumps(results[line][figure])}", flush=True)
    draw(results)
    write_results("growth", {"configuration": {"threads": 1}, **results})


if __name__ == "__main__":
    main()

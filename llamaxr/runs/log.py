"""What a run shows and logs: progress bars, JSONL files, the loss curve, and signals that stop it."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from ..errors import UserError
from . import checkpoint, distributed


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for drawing and downloading, on the main process: yields progress(what, done, total)."""
    disable = not distributed.is_main_process()
    with tqdm(leave=False, delay=0.5, unit="", unit_scale=True, disable=disable) as bar:

        def progress(what: str, done: int, total: int | None) -> None:
            if what != bar.desc:
                bar.reset(total)
                bar.set_description_str(what)
            bar.update(done - bar.n)

        yield progress


def catch_signals() -> list[int]:
    """An empty list; SIGINT (Ctrl-C) and SIGTERM add their number to it instead of ending the process."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: caught.append(n))
    return caught


def open_log(run: Path, config: dict, last_step: int) -> TextIO:
    """metrics.jsonl of a run, to append to. Makes the folder of a new run, with its config.json; drops what a
    resumed run logged after `last_step`. Other processes than the main one log nothing."""
    if not distributed.is_main_process():
        return open(os.devnull, "w")
    if last_step == 0:
        run.mkdir(parents=True)
        checkpoint.write_json(run / "config.json", config)
    for name in ("metrics.jsonl", "samples.jsonl"):
        drop_lines_after(run / name, last_step)
    return (run / "metrics.jsonl").open("a", encoding="utf-8")


def check_finite(line: dict, run: Path, bar: tqdm) -> None:
    """UserError if a loss of this step is NaN or infinite. The validation loss is the first to show that a
    step went wrong."""
    for loss in (line["loss"], line.get("val_loss", 0.0)):
        if not math.isfinite(loss):
            bar.close()  # or the error would be printed at the end of the bar's line
            last = max(run.glob("step-*"), default="none yet")
            raise UserError(
                f"the loss is {loss} at step {line['step']}; the last good checkpoint is {last}; train again "
                "with a lower --lr and --projector-lr"
            )


def write_line(file: TextIO, value: dict) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write a JSONL file under a temporary name and rename it into place."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(temporary, path)


def read_lines(path: Path, keys: tuple[str, ...]) -> list[dict]:
    """The objects of a JSONL file, each reduced to `keys`, whose values must be strings. With a single key, a
    line may also be a bare string. UserError if the file cannot be read, or a line lacks a key."""
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                row = {keys[0]: row} if isinstance(row, str) and len(keys) == 1 else row
                if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
                    raise UserError(
                        f"{path}, line {number}: no object with the strings {', '.join(keys)}; fix the file"
                    )
                rows.append({key: row[key] for key in keys})
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSONL ({error}); give a file with one object per line"
        ) from None
    if not rows:
        raise UserError(f"{path} has no lines; give a file with one object per line")
    return rows


def drop_lines_after(path: Path, step: int) -> None:
    """Remove from a JSONL log the lines of steps after `step`, which a resumed run takes again, and a line
    that was cut off."""
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        write_lines(path, [row for row in map(json.loads, lines) if row["step"] <= step])


def draw_loss(run: Path) -> None:
    """metrics.jsonl -> loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for key, style in (("loss", "-"), ("val_loss", "o-")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axes.plot(*zip(*points, strict=True), style, label=key, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per report token)", title=run.name)
    axes.legend()
    figure.savefig(run / "loss.png", dpi=120, bbox_inches="tight")

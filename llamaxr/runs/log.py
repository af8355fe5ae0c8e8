"""What a run shows and logs: progress bars, JSONL files, the loss curve, and signals that stop it."""

import itertools
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
from ..files.text import (
    MAX_LINES,
    complete_or_absent,
    parse_json,
    printable,
    read_bytes,
    read_json_lines,
    short,
)
from . import checkpoint, distributed

MAX_LOG = 2**30  # bytes of a JSONL file; 100,000 steps have 13 MB


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for drawing and downloading, on the main process: yields progress(what, done, total)."""
    disable = not distributed.is_main_process()
    with tqdm(leave=False, delay=0.5, unit="", unit_scale=True, disable=disable) as bar:

        def progress(what: str, done: int, total: int | None) -> None:
            if what != bar.desc:
                bar.clear()  # tqdm forgets, as it begins anew, that it has shown something
                bar.reset(total)
                bar.set_description_str(what, refresh=False)
            bar.update(done - bar.n)

        yield progress


def catch_signals() -> list[int]:
    """An empty list; SIGINT (Ctrl-C) and SIGTERM add their number to it instead of ending the process, unless
    they are ignored. A second Ctrl-C ends it; not under torchrun, which sends a second one itself."""
    caught: list[int] = []

    def catch(number: int, frame: object) -> None:
        alone = distributed.world_size() == 1
        if caught and number == signal.SIGINT and alone:
            raise KeyboardInterrupt
        if not caught and distributed.is_main_process():  # print might be what was interrupted
            again = b"; Ctrl-C again stops at once and saves nothing" if alone else b""
            os.write(2, b"\nstopping after this step" + again + b"\n")
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell script's `&` ignores SIGINT
            signal.signal(number, catch)
    return caught


def open_log(run: Path, config: dict, last_step: int) -> TextIO:
    """Open a run's metrics.jsonl to append to. Rewrites config.json, now with the number of steps. Of older
    logs, a resumed run keeps the steps up to `last_step`, a new run nothing. Only the main process logs."""
    if not distributed.is_main_process():
        return open(os.devnull, "w")
    checkpoint.write_json(run / "config.json", config)
    for name in ("metrics.jsonl", "samples.jsonl"):
        if last_step and (run / name).is_file():
            write_lines(run / name, [row for row in read_log(run / name) if row["step"] <= last_step])
        else:
            (run / name).unlink(missing_ok=True)
    return (run / "metrics.jsonl").open("a", encoding="utf-8")


def read_log(path: Path) -> list[dict]:
    """The rows of metrics.jsonl (numbers: step, and a loss, val_loss or both) or samples.jsonl (a step and
    strings). A last line that was cut off is left out. UserError for any other damage."""
    kinds = float | int if path.stem == "metrics" else str
    *lines, cut_off = read_bytes(path, MAX_LOG, "move it away").split(b"\n")
    if len(lines) > MAX_LINES:
        raise UserError(f"{path} has over {MAX_LINES:,} lines; move it away")
    rows = []
    for number, line in enumerate([*lines, cut_off], 1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError('no object with an integer "step"')
            if kinds is not str and not {"loss", "val_loss"} & row.keys():
                raise ValueError("no loss")
            for key, value in row.items():
                if key != "step" and (not isinstance(value, kinds) or isinstance(value, bool)):
                    raise ValueError(f"{short(key)} is {short(value)}")
            rows.append(row)
        except ValueError as error:
            if number <= len(lines):
                raise UserError(
                    f"{path}, line {number} is damaged ({error}); fix it, or move the file away and go on "
                    "without it"
                ) from None
    return rows


def check_finite(line: dict, run: Path) -> None:
    """UserError if a loss of this step, or the norm of its gradient, is NaN or infinite. The loss is that
    before the step: the other two tell that the step itself went wrong, before it is saved."""
    for name in ("loss", "grad_norm", "val_loss"):
        if not math.isfinite(value := line.get(name, 0.0)):
            last = checkpoint.last(run) if checkpoint.has_checkpoint(run) else "none yet"
            raise UserError(
                f"the {name} is {value} at step {line['step']}; the last good checkpoint is {last}; train "
                "again with a lower --lr and --projector-lr"
            )


def write_line(file: TextIO, value: dict) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write a JSONL file, whole or not at all."""
    with complete_or_absent(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_lines(path: Path, keys: tuple[str, ...], skip: int = 0) -> list[dict]:
    """The objects of a JSONL file after its first `skip` lines, each reduced to `keys`, whose values must be
    strings. With a single key, a line may also be a bare string. UserError if the file cannot be read, or a
    line lacks a key."""
    rows = []
    for number, row in itertools.islice(read_json_lines(path, MAX_LOG), skip, None):
        row = {keys[0]: row} if isinstance(row, str) and len(keys) == 1 else row
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            raise UserError(
                f"{path}, line {number}: no object with the strings {', '.join(keys)}; fix the file"
            )
        rows.append({key: row[key] for key in keys})
    if not rows:
        raise UserError(f"{path} has no lines; give a file with one object per line")
    return rows


def finish(run: Path) -> None:
    """What a run ends with: loss.png, and what to do next."""
    if distributed.is_main_process():
        checkpoint.remove_old(run)
        draw_loss(run)
    distributed.barrier()  # all leave the process group together: NCCL waits there, and not for long
    tqdm.write(f"saved in {run}; next: python generate.py IMAGE --run {run}, or python eval.py --run {run}")


def draw_loss(run: Path) -> None:
    """metrics.jsonl -> loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_log(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for key, style, label in (("loss", "-", "loss, weighted"), ("val_loss", "o-", "val_loss, unweighted")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per report token)")
    axes.set_title(printable(run.name), parse_math=False)  # a folder's name may hold a $
    if rows:
        axes.legend()
    with complete_or_absent(run / "loss.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)

"""Imported first by the scripts, for its effect: Ctrl-C while they import torch ends in one line, too."""

import contextlib
import os
import signal
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
PROGRAM = Path(getattr(sys.modules["__main__"], "__file__", None) or "").absolute()


def end_at_once(*_) -> None:
    """Handles Ctrl-C while a script imports torch, and while it ends."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


# Not in pytest or a notebook, which have their own Ctrl-C, and not where a shell ignores it (a script's `&`).
if PROGRAM.parent in (HOME, HOME / "llamaxr" / "tools"):
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)

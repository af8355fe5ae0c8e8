"""Imported first by the scripts, for its effect: Ctrl-C while they import torch ends in one line, too."""

import signal
import sys
from pathlib import Path

from ..errors import end_at_once

HOME = Path(__file__).resolve().parents[2]
PROGRAM = Path(getattr(sys.modules["__main__"], "__file__", None) or "").absolute()

# Not in pytest or a notebook, which have their own Ctrl-C, and not where a shell ignores it (`nohup`).
if PROGRAM.parent in (HOME, HOME / "llamaxr" / "tools"):
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)

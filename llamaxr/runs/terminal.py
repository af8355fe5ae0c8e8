"""How a script ends at a terminal: in one line, whatever went wrong, on streams that can take it.

A script's `main` runs inside `with one_line_errors():`, the one place that turns UserError, Ctrl-C and
whatever the system refuses (a full disk, a folder that is gone) into a line on stderr. Exit codes are a
shell's: 2 for an error, 130 after Ctrl-C, 141 where the reader of stdout has left (`| head -1`), which needs
no line.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator

from tqdm import tqdm

from ..errors import UserError
from ..files.text import printable
from .interrupt import end_at_once

SPACE = "free some space, then run the same command again (train.py: with --resume)"
REMEDIES = {  # errno -> what to do
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), then run the same command again",
    errno.ENOENT: "check the path; if it was there, it was deleted meanwhile: run the same command again",
    errno.ENAMETOOLONG: "give a shorter name",
}
OUT_OF_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns UserError, OSError, a lack of memory and Ctrl-C into one line on stderr and an exit code."""
    _prepare_streams()
    quiet = signal.getsignal(signal.SIGINT) is end_at_once
    if quiet:  # from here on Ctrl-C is an exception, so that files and processes are closed
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where its error is caught, and not as Python ends
    except UserError as error:
        sys.exit(_print_error(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_print_error("interrupted", 130))
    except BrokenPipeError:
        _drop_stdout()
        sys.exit(141)
    except OSError as error:
        where = "a file or stdout" if error.filename is None else error.filename
        where = os.fsdecode(where) if isinstance(where, bytes) else where
        remedy = REMEDIES.get(error.errno, "give a place that you can read and write")
        sys.exit(_print_error(f"error: {where}: {error.strerror or error}; {remedy}", 2))
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        remedy = "use a smaller --batch or --max-tokens, or free memory that other programs hold"
        sys.exit(_print_error(f"error: {first_sentences(error)}: {remedy}", 2))
    finally:
        if quiet:
            signal.signal(signal.SIGINT, end_at_once)


def lacks_memory(error: Exception) -> bool:
    """Whether memory ran out: that of CUDA, of cuBLAS or bitsandbytes there, or of the machine."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def first_sentences(error: Exception) -> str:
    """What an error of memory says first, on one line: torch adds a page of advice."""
    words = " ".join(str(error).split())
    return ". ".join(words.split(". ")[:2]).rstrip(".") or "out of memory"


def _prepare_streams() -> None:
    """stdout and stderr exist (a shell's `>&-` closes them), are written line by line, and escape letters
    that they cannot encode. A warning of a library is one line, above a progress bar and not through it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    warnings.showwarning = lambda message, *_, **__: tqdm.write(
        printable(f"warning: {' '.join(str(message).split())}"), file=sys.stderr
    )


def _print_error(message: str, code: int) -> int:
    _drop_stdout()
    with contextlib.suppress(OSError):
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()  # or the line would begin with what is left of the bar
        print(printable(" ".join(message.split())), file=sys.stderr)
    return code


def _drop_stdout() -> None:
    """Where stdout cannot take what was printed, forget it: Python would try again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

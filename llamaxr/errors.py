"""Errors that the user can mend, in one line, and streams that can take whatever is printed.

Whatever is wrong with what the user gave (a file, an option, a folder) is raised as UserError where it
enters, with a message that says what, where and what to do. A script's `main` runs inside
`with one_line_errors():`, the one place that turns it, Ctrl-C and whatever the system refuses (a full disk,
a folder that is gone) into a line on stderr. Exit codes are a shell's: 2 for an error, 130 after Ctrl-C, 141
where the reader of stdout has left (`| head -1`), which needs no line.
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

FULL = (errno.ENOSPC, errno.EDQUOT)
OUT_OF_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
REMEDIES = {  # errno -> what to do; FULL has its own words
    errno.ENOENT: "check the path; if it was there, it was deleted meanwhile: run the same command again",
    errno.ENAMETOOLONG: "give a shorter name",
}


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns UserError, OSError, a lack of memory and Ctrl-C into one line on stderr and an exit code."""
    _prepare_streams()
    quiet = signal.getsignal(signal.SIGINT)
    if quiet is end_at_once:  # from here on Ctrl-C is an exception, so that files and processes are closed
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
        where = error.filename if error.filename is not None else "a file or stdout"
        where = os.fsdecode(where) if isinstance(where, bytes) else where
        if error.errno in FULL:
            remedy = "free some space, then run the same command again (train.py: with --resume)"
            sys.exit(_print_error(f"error: no space left on the disk while writing {where}: {remedy}", 2))
        remedy = REMEDIES.get(error.errno, "give a place that you can read and write")
        sys.exit(_print_error(f"error: {where}: {error.strerror or error}; {remedy}", 2))
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        remedy = "take a smaller --batch or --max-tokens, or free memory that other programs hold"
        sys.exit(_print_error(f"error: {first_sentences(error)}: {remedy}", 2))
    finally:
        if quiet is end_at_once:
            signal.signal(signal.SIGINT, quiet)


def lacks_memory(error: Exception) -> bool:
    """Whether memory ran out: that of CUDA, of cuBLAS or bitsandbytes there, or of the machine."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def first_sentences(error: Exception) -> str:
    """What an error of memory says first, on one line: torch adds a page of advice."""
    words = " ".join(str(error).split())
    return ". ".join(words.split(". ")[:2]).rstrip(".") or "out of memory"


def end_at_once(*_) -> None:
    """A handler of Ctrl-C for the seconds in which a script imports torch, and in which it ends."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


def printable(text: str) -> str:
    """The text with what could move a terminal's cursor or cannot be encoded written as \\x1b, \\udcff.
    Letters of every script stay, and line breaks, tabs and spaces of every kind."""
    if text.isprintable():
        return text
    keep = lambda c: c.isprintable() or c in "\n\t" or (c.isspace() and c > "\x9f")
    return "".join(c if keep(c) else c.encode("unicode_escape").decode() for c in text)


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

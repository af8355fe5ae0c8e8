"""Errors that the user can mend, in one line.

Whatever is wrong with what the user gave (a file, an option, a folder) is raised as UserError where it
enters, with a message that says what, where and what to do. A script's `main` runs inside
`with one_line_errors():`, the one place that turns it into a line on stderr and exit code 2.
"""

import contextlib
import errno
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns UserError, a full disk and denied access into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        sys.exit(_print_error(str(error)))
    except OSError as error:
        where = error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, then run the same command again (train.py: with --resume)"
            sys.exit(_print_error(f"no space left on the disk while writing {where}: {remedy}"))
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            sys.exit(_print_error(f"{where}: {error.strerror}; give a place that you can read and write"))
        raise


def _print_error(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2

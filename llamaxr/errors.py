"""Errors that a user can mend, told in one line.

Whatever is wrong with what the user gave (a file, an option, a folder) is raised as UserError where it
enters, with a message that says what, where and what to do. A script's `main` stands in
`with one_line_errors():`, the one place that turns it into a line on stderr and exit code 2.
"""

import contextlib
import errno
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something that the user can mend; the message is one line: what, where, what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn UserError, a full disk and a forbidden place into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        where = error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free some space, then run the same command again (train.py: with --resume)"
            sys.exit(_complain(f"no room left on the disk while writing {where}: {mend}"))
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            sys.exit(_complain(f"{where}: {error.strerror}; give a place that you may read and write"))
        raise


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2

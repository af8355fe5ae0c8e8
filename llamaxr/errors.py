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
    """Turn UserError, and a disk with no room left, into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(
            _complain(
                f"no room left on the disk while writing {error.filename or 'a file'}: "
                "free some space, then run the same command again (train.py: with --resume)"
            )
        )


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2

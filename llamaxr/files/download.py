"""A large file from the web, complete and as expected, or not at all.

In: an address. Out: a file under its final name, which is therefore always complete. Until then the bytes are
in NAME.part. A connection that stalls, breaks or ends early is opened again and asked for the rest (HTTP
Range), in the next run too. Only https is used, for redirects too (and http to this machine itself). The file
must have the known SHA-256. If none is known, the first download's is reported, kept in NAME.sha256, and
compared with that of every later download.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UserError
from .text import short

CHUNK = 2**18  # bytes read at a time
MAX_DOWNLOAD = 2**36  # bytes; the largest file known here has a few GiB
LOCAL = ("127.0.0.1", "localhost", "::1")

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all


def download(
    url: str,
    target: Path,
    progress: Progress | None = None,
    *,
    sha256: str = "",
    warn: Callable[[str], None] = lambda line: None,
    headers: dict[str, str] | None = None,
    timeout: float = 60.0,
    pause: float = 2.0,
    tries: int = 5,
) -> Path:
    """Fetch url to target, unless it is there. Returns target.

    sha256: the file's, or its first digits; "" where it is not known. warn: gets a line with the SHA-256 of a
    first download.
    headers: sent to this address only, not to where it redirects, so that a token stays with its host.
    timeout: seconds without a byte until a connection counts as stalled. tries: attempts in a row that bring
    nothing until it gives up. pause: seconds before the second attempt, doubled for each next one.
    Raises UserError, which says how to fetch the file by hand, or that it is not the file that is expected.
    """
    if not _is_safe(url, url):  # urllib would open file: too
        raise UserError(f"{url} is not an https address; give another")
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(target.parent):
            if not target.is_file():  # another process may have fetched it meanwhile
                return _fetch(url, target, progress, sha256, warn, headers or {}, timeout, pause, tries)
    if sha256:
        _check_hash(target, target, sha256, "delete it and run the same command again")
    return target


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads into this folder: two would write to the same NAME.part."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fetch(
    url: str,
    target: Path,
    progress: Progress | None,
    sha256: str,
    warn: Callable[[str], None],
    headers: dict[str, str],
    timeout: float,
    pause: float,
    tries: int,
) -> Path:
    """`download` of a file that is not there."""
    part = target.with_name(target.name + ".part")
    n_failed, reason = 0, ""
    while n_failed < tries:
        if n_failed:
            time.sleep(pause * 2 ** (n_failed - 1))
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _fetch_rest(url, part, target, progress, headers, timeout):
                break
            reason = "the connection ended early, or brought more than it stated"
        except urllib.error.HTTPError as error:
            if 400 <= error.code < 500 and error.code not in (408, 416, 429):
                raise _by_hand(url, target, f"the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code}"
            if error.code == 416:  # .part is all of the file, or no beginning of it: start again
                if error.headers.get("Content-Range") == f"bytes */{before}":
                    break
                part.unlink(missing_ok=True)
        except TimeoutError:
            reason = f"no answer for {timeout:g} seconds"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        after = part.stat().st_size if part.is_file() else 0
        n_failed = 0 if after > before else n_failed + 1
    else:
        raise _by_hand(url, target, reason)
    record = target.with_name(f"{target.name}.sha256")
    known, remedy = sha256, "run the same command again"
    if not known and record.is_file():
        known = record.read_text("ascii", "replace")[:64]
        remedy += f", or, if the change is meant, delete {record.name} first"
    digest = _check_hash(part, target, known, remedy)
    if not known:
        record.write_text(f"{digest}  {target.name}\n")  # in sha256sum's form
        warn(f"{target.name} has SHA-256 {digest}; it is kept in {record.name}, and a change will be refused")
    os.replace(part, target)
    return target


def _check_hash(path: Path, target: Path, known: str, remedy: str) -> str:
    """The SHA-256 of a file. UserError unless it begins with the known digits; what is not yet the target is
    then deleted."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(known):
        if path != target:
            path.unlink()
        raise UserError(
            f"{target} is not the file that is expected: its SHA-256 is {digest}, not {known}; {remedy}"
        )
    return digest


def _is_safe(url: str, asked: str) -> bool:
    """Whether a URL, which the URL `asked` redirected to, is https, or http that stays on this machine."""
    to, own = urllib.parse.urlsplit(url), urllib.parse.urlsplit(asked)
    return to.scheme == "https" or to.scheme == "http" and to.hostname in LOCAL and own.hostname in LOCAL


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where `_is_safe`."""

    def redirect_request(self, request, answer, code, message, headers, url):
        if not _is_safe(url, request.full_url):
            raise UserError(f"{request.full_url} redirects to {short(url)}, which is not https: not followed")
        return super().redirect_request(request, answer, code, message, headers, url)


_OPENER = urllib.request.build_opener(_SafeRedirects)


def _fetch_rest(
    url: str, part: Path, target: Path, progress: Progress | None, headers: dict[str, str], timeout: float
) -> bool:
    """One connection: append what part lacks. Returns whether it is complete, by the stated length."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "llamaxr", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    with _OPENER.open(request, timeout=timeout) as answer:
        length = answer.headers.get("Content-Length", "")
        length = int(length) if length.isdecimal() else None
        if answer.status == 206:
            stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if stated is None or int(stated[1]) != have:
                part.unlink(missing_ok=True)  # bytes from elsewhere, which must not be appended
                return False
            total = int(stated[2]) if stated[2] != "*" else length and have + length
        else:  # the whole file: the server ignored Range, or nothing was fetched before
            have, total = 0, length
        if total is not None and total > MAX_DOWNLOAD:
            raise _by_hand(url, target, f"the server states {total >> 20} MiB, too much for such a file")
        if total is not None and total - have > shutil.disk_usage(part.parent).free:
            raise UserError(
                f"{target} still needs {total - have >> 20} MiB, more than the disk has free; free some "
                "space, then run the same command again: it continues from here"
            )
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                have += len(chunk)
                if have > (MAX_DOWNLOAD if total is None else total):  # a false length must not fill the disk
                    part.unlink()
                    return False
                file.write(chunk)
                if progress:
                    progress(target.name, have, total)
    return have == total if total is not None else have > 0


def _by_hand(url: str, target: Path, reason: str) -> UserError:
    return UserError(
        f"could not download {url} ({reason}); run the same command again to continue where it stopped, "
        f"or fetch it by hand, for instance in a browser, to {target}"
    )

"""A large file from the web, complete or not at all, and an archive unpacked the same way.

In: an address. Out: a file under its final name, which is therefore always complete. Until then the bytes are
in NAME.part. A connection that stalls, breaks or ends early is opened again and asked for the rest (HTTP
Range), in the next run too. An archive is unpacked into a temporary folder, which is renamed last.
"""

import gzip
import http.client
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..errors import UserError

CHUNK = 2**18  # bytes read at a time
MAX_DOWNLOAD = 2**36  # bytes; the largest file known here has a few GiB
MAX_FILES, MAX_FILE, MAX_TOTAL = 50_000, 2**28, 2**35  # of an archive: count, bytes per file, bytes in all

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all


def download(
    url: str,
    target: Path,
    progress: Progress | None = None,
    *,
    headers: dict[str, str] | None = None,
    timeout: float = 60.0,
    pause: float = 2.0,
    tries: int = 5,
) -> Path:
    """Fetch url (http or https) to target, unless it is there. Returns target.

    headers: sent to this address only, not to where it redirects, so that a token stays with its host.
    timeout: seconds without a byte until a connection counts as stalled. tries: attempts in a row that bring
    nothing until it gives up. pause: seconds before the second attempt, doubled for each next one.
    Raises UserError, which says how to fetch the file by hand.
    """
    if not url.startswith(("http://", "https://")):  # urllib would open file: too
        raise UserError(f"{url} is not an http or https address; give another")
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    n_failed, reason = 0, ""
    while n_failed < tries:
        if n_failed:
            time.sleep(pause * 2 ** (n_failed - 1))
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _fetch_rest(url, part, target, progress, headers or {}, timeout):
                break
            reason = "the connection ended early, or brought more than it stated"
        except urllib.error.HTTPError as error:
            if 400 <= error.code < 500 and error.code not in (408, 416, 429):
                raise _by_hand(url, target, f"the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code}"
            if error.code == 416:  # .part is not a beginning of the file: start again
                part.unlink(missing_ok=True)
        except TimeoutError:
            reason = f"no answer for {timeout:g} seconds"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        after = part.stat().st_size if part.is_file() else 0
        n_failed = 0 if after > before else n_failed + 1
    else:
        raise _by_hand(url, target, reason)
    os.replace(part, target)
    return target


def _fetch_rest(
    url: str, part: Path, target: Path, progress: Progress | None, headers: dict[str, str], timeout: float
) -> bool:
    """One connection: append to part what it lacks. Whether it is complete now, by the length stated."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "llamaxr", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        length = answer.headers.get("Content-Length", "")
        length = int(length) if length.isdecimal() else None
        if answer.status == 206:
            stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if stated is None or int(stated[1]) != have:
                part.unlink(missing_ok=True)  # bytes from elsewhere, which must not be appended
                return False
            total = int(stated[2]) if stated[2] != "*" else length and have + length
        else:  # the whole file: without Range, or with nothing fetched before
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


def unpack(archive: Path, folder: Path, suffix: str, progress: Progress | None = None) -> Path:
    """Unpack the files of a .tgz with this suffix side by side into the folder, which appears complete.

    Nothing is trusted. An archive is refused if a member is a link or a device, or has a path that leads out
    of the archive. Sizes are bounded. The gzip checksum at the end proves it complete. A damaged archive is
    deleted, so that the next run fetches it again; the UserError says so.
    """
    if folder.is_dir():
        return folder
    temporary = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was interrupted
    temporary.mkdir(parents=True)
    n_files = n_bytes = 0
    size = archive.stat().st_size
    try:
        with archive.open("rb") as packed, gzip.open(packed) as plain:
            with tarfile.open(fileobj=plain, mode="r|") as tar:
                for member in tar:
                    if member.isdir():
                        continue
                    tarfile.data_filter(member, str(temporary))  # raises on a path that leaves
                    name = PurePosixPath(member.name).name
                    n_files, n_bytes = n_files + 1, n_bytes + member.size
                    if not member.isreg() or name.startswith("."):
                        raise tarfile.TarError(f"{name[:80]!r} is not a plain file")
                    if n_files > MAX_FILES or member.size > MAX_FILE or n_bytes > MAX_TOTAL:
                        raise tarfile.TarError(f"it exceeds the bounds at {name[:80]!r}")
                    if not name.endswith(suffix):
                        continue
                    with tar.extractfile(member) as source, (temporary / name).open("xb") as file:
                        shutil.copyfileobj(source, file, CHUNK)
                    if progress:
                        progress(f"unpacking {archive.name}", packed.tell(), size)
            while plain.read(CHUNK):  # up to the checksum at the very end
                pass
        if not any(temporary.iterdir()):
            raise tarfile.TarError(f"no {suffix} file in it")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, FileExistsError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        archive.unlink()
        raise UserError(
            f"{archive} is damaged or not what it should be ({error}) and was deleted; run the same "
            "command again to fetch it again"
        ) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    os.replace(temporary, folder)
    return folder

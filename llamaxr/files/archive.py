"""The plain files in a tar archive from anywhere, packed by gzip or not.

Nothing is trusted: each cost is bounded before it is incurred. Every header counts, also a folder's or a long
name's. A header that holds a name or a comment is at most MAX_NOTE bytes, a member at most MAX_FILE. The
archive unpacks to at most MAX_GROWTH times its own size (a small one to LEAST_TOTAL).
"""

import contextlib
import gzip
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import UserError
from .text import short

MAX_FILES, MAX_FILE, MAX_TOTAL = 30_000, 2**26, 2**35  # headers (Open-i: 7470), bytes per file, in all
MAX_GROWTH, LEAST_TOTAL = 100, 2**24  # reports grow tenfold; a small archive may unpack to 16 MiB
MAX_NOTE = 2**12  # bytes of a header that holds a long name or a comment
MAX_NOTES = 2**29  # sum of their squares: some Pythons take quadratic time over them (CVE-2024-6232)
NOTES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
         tarfile.SOLARIS_XHDTYPE)  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
CHUNK = 2**18  # bytes read at a time


def read_members(archive: Path, suffix: str) -> Iterator[tuple[str, bytes, int]]:
    """Each file whose name ends with suffix: its name without folders, its content, and how many bytes of the
    archive have been read.

    After the last one, gzip's checksum has shown that the archive is complete. Raises UserError where it is
    damaged, exceeds the bounds, or has a member that is a link or a device, or leads out of the archive.
    """
    try:
        with contextlib.ExitStack() as stack:
            packed = stack.enter_context(archive.open("rb"))
            is_gzip = packed.read(2) == b"\x1f\x8b"
            packed.seek(0)
            plain = stack.enter_context(gzip.open(packed)) if is_gzip else packed
            size = archive.stat().st_size
            plain = _Bounded(plain, min(MAX_TOTAL, max(LEAST_TOTAL, MAX_GROWTH * size)))
            tar = stack.enter_context(tarfile.open(fileobj=plain, mode="r|", tarinfo=_counting()))
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isdir() or name.startswith("._"):  # macOS keeps a file's attributes in "._NAME"
                    continue
                if not member.isreg() or member.sparse or ".." in PurePosixPath(member.name).parts:
                    raise tarfile.TarError(f"{short(name)!r} is not a plain file in it")
                if member.size > MAX_FILE:
                    raise tarfile.TarError(f"it exceeds the bounds at {short(name)!r}")
                if name.endswith(suffix):
                    if not NAME.fullmatch(name):
                        raise tarfile.TarError(f"{short(name)!r} is no name for a file")
                    yield name, tar.extractfile(member).read(), packed.tell()
            while plain.read(CHUNK):  # up to the checksum at the very end
                pass
    except Exception as error:  # tarfile and zlib raise nearly any exception over damaged bytes
        if isinstance(error, UserError) or isinstance(error, OSError) and error.errno is not None:
            raise
        reason = short(error) or type(error).__name__
        raise UserError(f"{archive} is damaged or not what it should be ({reason}); fetch it again") from None


def unpack(
    archive: Path, folder: Path, suffix: str, progress: Callable[[str, int, int | None], None] | None = None
) -> Path:
    """Unpack the files of an archive with this suffix side by side into the folder, which appears complete.

    An archive that is refused is deleted, so that the next run fetches it again; the UserError says so.
    """
    if folder.is_dir():
        return folder
    temporary = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was interrupted
    temporary.mkdir(parents=True)
    size, complete = archive.stat().st_size, False
    try:
        for name, content, done in read_members(archive, suffix):
            if (temporary / name).exists():
                raise UserError(f"{archive} is damaged or not what it should be ({name} is there twice)")
            (temporary / name).write_bytes(content)
            if progress:
                progress(f"unpacking {archive.name}", done, size)
        if not any(temporary.iterdir()):
            raise UserError(f"{archive} is damaged or not what it should be (no {suffix} file in it)")
        complete = True
    except UserError as error:
        for path in (archive, archive.with_name(f"{archive.name}.sha256")):
            path.unlink(missing_ok=True)
        reason = str(error).removesuffix("; fetch it again")
        raise UserError(f"{reason} and was deleted; run the same command again to fetch it again") from None
    finally:
        if not complete:
            shutil.rmtree(temporary, ignore_errors=True)
    os.replace(temporary, folder)
    return folder


class _Bounded:
    """A file that is read no further than `max_bytes` bytes."""

    def __init__(self, file: BinaryIO, max_bytes: int):
        self.file, self.left = file, max_bytes

    def read(self, n: int) -> bytes:
        data = self.file.read(n)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.TarError("it exceeds the bounds: it unpacks to far more than archives of files do")
        return data


def _counting() -> type[tarfile.TarInfo]:
    """A TarInfo class for one archive. It sees every header as it is read, even one that tarfile merges into
    the next member, and refuses too many headers, and notes so long that reading them is an attack."""
    headers = notes = 0

    class Counting(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf, encoding, errors):
            nonlocal headers, notes
            member, headers = super().frombuf(buf, encoding, errors), headers + 1
            if member.type in NOTES:
                notes += member.size**2
            too_long = member.type in NOTES and member.size > MAX_NOTE or notes > MAX_NOTES
            if headers > MAX_FILES or too_long or member.issparse():
                raise tarfile.ReadError("it exceeds the bounds: too many members, or too long names")
            return member

    return Counting

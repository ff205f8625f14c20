"""Files from anywhere, read with bounded memory: plain, gzip, or in a tar archive.

A file may promise more than it holds, or unpack to far more than its size. So nothing is allocated
because a header says so: what is there is read in pieces, up to a limit. Archives are read from
front to back; none of their files is ever written to disk.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..runtime import files
from ..runtime.errors import EnvironmentFault

MOST_BYTES = 2 << 30  # of one file, unpacked
RATIO = 100  # how many times its size a file may unpack to
MOST_FILES = 1000  # in an archive
PIECE = 1 << 20  # bytes
FAULTS = (ValueError, EOFError, OSError, zlib.error, tarfile.TarError)


class Source:
    """The content of an open file, unpacked if it is gzip, read from front to back."""

    def __init__(self, file):
        packed, size = file.peek(2)[:2] == b"\x1f\x8b", os.fstat(file.fileno()).st_size
        self.file = gzip.GzipFile(fileobj=file) if packed else file
        self.limit = min(MOST_BYTES, RATIO * size) if packed else MOST_BYTES
        self.done, self.holds = 0, "unpacks to" if packed else "holds"

    def read(self, n: int) -> bytes:
        """Up to n of the next bytes; none at the end. Raises ValueError beyond the limit."""
        found = self.file.read(min(n, PIECE))
        self.done += len(found)
        if self.done > self.limit:
            raise ValueError(f"it {self.holds} more than {self.limit:,} bytes")
        return found

    def whole(self, most: int = MOST_BYTES) -> bytes:
        """All that is left. Raises ValueError if the file holds more than `most` bytes."""
        self.limit = min(self.limit, most)
        return b"".join(iter(lambda: self.read(PIECE), b""))

    def exactly(self, n: int) -> bytes:
        """The next n bytes. Raises ValueError if there are fewer."""
        return exactly(self, n)


def exactly(source, n: int) -> bytes:
    """The next n bytes of anything with `read`. Raises ValueError if there are fewer."""
    found = bytearray()
    while len(found) < n:
        part = source.read(min(PIECE, n - len(found)))
        if not part:
            raise ValueError(f"it is cut short: {len(found):,} bytes where {n:,} are expected")
        found += part
    return bytes(found)


@contextmanager
def source(path: Path) -> Iterator[Source]:
    """A file as a Source. Whatever is wrong with it is raised as an EnvironmentFault that names the
    file and what to do.
    """
    try:
        with files.opened(path) as file:
            yield Source(file)
    except FAULTS as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "get the file again, or choose another folder with --data"
        raise EnvironmentFault(f"cannot use {path}: {why}", hint) from error


def members(path: Path, wanted: Container[str]) -> dict[str, bytes]:
    """The files of a tar archive whose last part of the name is `wanted`: name -> content.

    Raises EnvironmentFault if the archive is damaged, has too many files, a path that leads out of
    its folder, or a wanted file twice.
    """
    found = {}
    with source(path) as packed, tarfile.open(fileobj=packed, mode="r|", bufsize=PIECE) as archive:
        for i, member in enumerate(archive):
            inside = PurePosixPath(member.name.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"a path in it leads out of its folder: {member.name!r}")
            if i >= MOST_FILES:
                raise ValueError(f"it has more than {MOST_FILES:,} files")
            if inside.name not in wanted:
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"{inside.name} in it is not a plain file")
            if inside.name in found:
                raise ValueError(f"{inside.name} is in it twice")
            found[inside.name] = exactly(archive.extractfile(member), member.size)
    return found

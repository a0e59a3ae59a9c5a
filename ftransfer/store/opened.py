"""What bytes are read from, at any offset: a file that is open, bytes in memory. Used by the stores and by `sources`.

A source knows what it was when it was opened, so that it can tell whether it changed while it was read.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import Self

from ftransfer.errors import SourceChanged, from_os
from ftransfer.pipes import FilePart

MAX_TIME = (1 << 63) - 1
"""Nanoseconds before or after 1970."""


class Source(ABC):
    """An open file to read from, at any offset."""

    size: int | None
    mtime_ns: int | None
    mode: int | None
    fingerprint: str | None
    most_unconfirmed: int | None = None
    """Bytes that may be sent and unanswered, for a source that has to keep them; None for any number."""

    @abstractmethod
    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill the view from that offset; return how many bytes there were, less only at the end."""

    def part(self, offset: int, length: int) -> FilePart | None:  # noqa: ARG002 - most sources are no files
        """Return these bytes as a part of a file that can be sent without reading it, None if there is no file."""
        return None

    def extent(self, offset: int, limit: int) -> tuple[bool, int]:  # noqa: ARG002 - most sources have no holes
        """Return (is data, length) of the run at `offset`: data, or zeros that need not be sent; at most `limit`."""
        return True, limit

    def ready(self, offset: int, seconds: float) -> bool:  # noqa: ARG002 - most sources are
        """Wait for bytes to be there to read at this offset, or the end; tell whether they are."""
        return True

    def release(self, offset: int, length: int) -> None:  # noqa: B027 - most sources keep nothing
        """Take note that these bytes are stored and will not be asked for again."""

    def check(self) -> None:  # noqa: B027 - most sources cannot change
        """Raise SourceChanged if the file is not what it was when it was opened."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BytesSource(Source):
    """Bytes in memory, which do not change."""

    def __init__(
        self, data: memoryview, *, fingerprint: str | None, mtime_ns: int | None = None, mode: int | None = None
    ):
        self._data = data
        self.size: int = len(data)
        self.fingerprint = fingerprint
        self.mtime_ns = mtime_ns
        self.mode = mode

    def read_into(self, offset: int, view: memoryview) -> int:
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._data.release()


class FileSource(Source):
    """A regular file behind a descriptor, which it owns; `path` is its name in errors."""

    def __init__(self, fd: int, path: str):
        self._fd = fd
        self._path = path
        found = os.fstat(fd)
        self.size: int = found.st_size
        self._exact_mtime_ns = found.st_mtime_ns
        self.mtime_ns: int = portable_time(found.st_mtime_ns)
        self.mode: int = found.st_mode & 0o777
        self.fingerprint: str = fingerprint(self.size, self._exact_mtime_ns)
        self._sparse = found.st_blocks * 512 < found.st_size

    def read_into(self, offset: int, view: memoryview) -> int:
        got = 0
        try:
            while got < len(view) and (count := os.preadv(self._fd, [view[got:]], offset + got)):
                got += count
        except OSError as exc:
            raise from_os(exc, self._path) from exc
        return got

    def part(self, offset: int, length: int) -> FilePart:
        return FilePart(self._fd, offset, length)

    def extent(self, offset: int, limit: int) -> tuple[bool, int]:
        if not self._sparse:
            return True, limit
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as exc:
            # ENXIO: nothing but a hole up to the end. Anything else: this file system cannot tell, so all is data.
            return exc.errno != errno.ENXIO, limit
        if data > offset:
            return False, min(limit, data - offset)
        return True, min(limit, os.lseek(self._fd, offset, os.SEEK_HOLE) - offset)

    def check(self) -> None:
        found = os.fstat(self._fd)
        if found.st_size != self.size:
            raise SourceChanged(
                f"its size changed from {self.size} to {found.st_size} bytes while it was read", path=self._path
            )
        if found.st_mtime_ns != self._exact_mtime_ns:
            raise SourceChanged("it was written to while it was read", path=self._path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def portable_time(mtime_ns: int) -> int:
    """Return a file's time, cut to what the wire can carry: the years 1678 to 2262."""
    return max(-MAX_TIME, min(mtime_ns, MAX_TIME))


def fingerprint(size: int, mtime_ns: int) -> str:
    """Return what decides whether reuse of a partial is tried; the other side takes it as it is."""
    return f"{size}-{mtime_ns}"


def has_hidden_bytes(fd: int) -> bool:
    """Tell whether a file says that it is empty and is not, as those that the kernel makes up in /proc."""
    # Looked at again: a file that is being written may just have got its first byte.
    return os.fstat(fd).st_size == 0 and bool(os.pread(fd, 1, 0)) and os.fstat(fd).st_size == 0

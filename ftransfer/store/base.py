"""The interface between the loops that move bytes and what keeps them.

Two implementations pass one suite of tests (tests/test_store_contract.py): `local` and `memory`. An object store fits
too: a grain is a part of a multipart upload, which is why a grain is begun, written in order, then accepted or
rejected. Only the store knows the disk; its callers give it checked wire paths and get `FtransferError` for
everything that fails.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Self

from ftransfer.errors import FtransferError, SourceChanged, from_os

if TYPE_CHECKING:
    from ftransfer.store.trees import Reader, Tree

FILE, FOLDER, LINK, OTHER = "file", "folder", "link", "other"
MAX_TIME = (1 << 63) - 1
"""Nanoseconds before or after 1970."""


class Entry(NamedTuple):
    """What is at a path: `kind` is file, folder, link or other; `size` in bytes; `mode` the permission bits."""

    path: str
    kind: str
    size: int
    mtime_ns: int
    mode: int


class Partial(NamedTuple):
    """A transfer that has not ended: `size` None for a stream, `held` bytes are there, the last came at `mtime_ns`."""

    path: str
    size: int | None
    held: int
    mtime_ns: int
    fingerprint: str | None


class Grain(NamedTuple):
    """Bytes that a staging holds: where, how many, and the XXH3-128 that they had when they were accepted."""

    offset: int
    length: int
    hash: str

    @property
    def end(self) -> int:
        return self.offset + self.length


class Capabilities(NamedTuple):
    """What a store can do; the loops and the tests ask instead of guessing."""

    resumes: bool
    durable: bool
    keeps_modes: bool
    keeps_holes: bool


class Description(NamedTuple):
    """What is going to be stored: the file as the sender announced it, and what to do if the name is taken."""

    path: str
    size: int | None
    fingerprint: str | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    transfer: str | None = None
    if_exists: str = "replace"


class Committed(NamedTuple):
    """The outcome: the name that the file got, its size and digest, and whether it would survive a power cut now."""

    path: str
    size: int
    hex: str
    durable: bool


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


def missing(grains: Iterable[Grain], size: int | None) -> list[tuple[int, int | None]]:
    """Return the ranges, as (offset, length), that no grain covers; a stream is missing to its unknown end."""
    gaps: list[tuple[int, int | None]] = []
    at = 0
    for grain in sorted(grains):
        if grain.offset > at:
            gaps.append((at, grain.offset - at))
        at = max(at, grain.end)
    if size is None:
        gaps.append((at, None))
    elif at < size:
        gaps.append((at, size - at))
    return gaps


_KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: FOLDER, stat.S_IFLNK: LINK}
_new_entry = tuple.__new__


def entry(path: str, found: os.stat_result) -> Entry:
    """Return the entry of what the system says is at a path; quickly, because it is called for each of a tree."""
    mode = found.st_mode
    kind = _KINDS.get(mode & 0o170000, OTHER)
    mtime_ns = found.st_mtime_ns
    if not -MAX_TIME <= mtime_ns <= MAX_TIME:
        mtime_ns = portable_time(mtime_ns)
    size = found.st_size if kind in (FILE, LINK) else 0
    return _new_entry(Entry, (path, kind, size, mtime_ns, mode & 0o7777))


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


class Staging(ABC):
    """The bytes of one transfer on their way to a name; held by one writer at a time.

    `grains` are the ones that counted when it was claimed, by offset; `inherited` is the number of their bytes.
    """

    grains: dict[int, Grain]
    inherited: int
    keeps_only_early = False
    """Whether only grains that came too early can be read back, and only before another one is accepted."""

    @abstractmethod
    def begin(self, offset: int, length: int) -> None:
        """Open a grain."""

    @abstractmethod
    def write(self, data: memoryview) -> None:
        """Append to the open grain."""

    @abstractmethod
    def zero(self) -> None:
        """Fill the open grain with zeros, as a hole where the store can."""

    @abstractmethod
    def accept(self, hex_digits: str) -> None:
        """Close the open grain: its bytes had this hash, and it counts from now on."""

    @abstractmethod
    def reject(self) -> None:
        """Close the open grain: its bytes do not count."""

    @abstractmethod
    def read(self, offset: int, view: memoryview) -> int:
        """Read staged bytes back."""

    @abstractmethod
    def forget(self, *offsets: int) -> None:
        """Take the grains at these offsets back: their bytes are not what they have to be."""

    @abstractmethod
    def check_space(self) -> None:
        """Raise DiskError if what is missing cannot fit."""

    @abstractmethod
    def commit(self, size: int, hex_digits: str) -> Committed:
        """Publish the bytes under the final name, durably where the store is; after this it is closed.

        May take long; the caller shows life meanwhile. Raises AlreadyExists, DiskError; then the old file is unchanged.
        """

    @abstractmethod
    def release(self) -> None:
        """Let go and keep what is staged, for a later claim. Does nothing after commit or discard."""

    @abstractmethod
    def discard(self) -> None:
        """Drop everything that is staged."""


OnError = Callable[[str, FtransferError], None]
Enters = Callable[[str], bool]


def always(path: str) -> bool:  # noqa: ARG001 - whatever it is
    """Look into every folder."""
    return True


def pass_over(path: str, exc: FtransferError) -> None:
    """Take note of nothing: who lists a folder sees what can be seen."""


class Store(ABC):
    """Files and folders below one root; every path is a checked wire path."""

    capabilities: Capabilities

    @abstractmethod
    def stat(self, path: str) -> Entry:
        """Return what is there. Raises NotFound."""

    @abstractmethod
    def entries(
        self,
        path: str,
        *,
        recursive: bool = False,
        follow: bool = False,
        on_error: OnError = pass_over,
        enters: Enters = always,
    ) -> Iterator[Entry]:
        """Yield what a folder holds, sorted by name in each folder, paths relative to it, without reserved names.

        Arguments: `follow` shows what links lead to, in their place, as long as that is below the folder; `on_error`
        is told of names that cannot be used and folders that cannot be read; `enters` which are looked into.
        """

    @abstractmethod
    def open(self, path: str, *, follow: bool = False) -> Source:
        """Open a regular file for reading; `follow` follows links, below the root.

        Raises NotFound, NotAFile, Refused.
        """

    @abstractmethod
    def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a folder; with `parents` also those above, and it may exist."""

    @abstractmethod
    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty folder; with `recursive` a folder and all below it."""

    @abstractmethod
    def move(self, path: str, target: str) -> None:
        """Rename; never replaces. Raises AlreadyExists."""

    @abstractmethod
    def committed(self, description: Description) -> Committed | None:
        """Return what this very transfer (its `transfer`) committed, if only the receipt was lost."""

    @abstractmethod
    def claim(self, description: Description, *, resume: bool = True) -> Staging:
        """Begin or take up a transfer. Raises Busy if another writer has it, NotAFile, AlreadyExists, DiskError."""

    @abstractmethod
    def partials(self, path: str = "", *, clear: bool = False) -> list[Partial]:
        """Return what is staged and unfinished below a path; with `clear` drop what nobody is writing."""

    @abstractmethod
    def clock_step(self) -> int:
        """Return the resolution of the store's file times, in nanoseconds."""

    @abstractmethod
    def folds(self) -> list[str]:
        """Return what the store takes for the same name: "case", "form" (of Unicode), both or neither."""

    @abstractmethod
    def tree(self, path: str, if_exists: str = "replace") -> Tree:
        """Begin to put many files below a folder, which is made when it is needed. Raises NotAFile."""

    @abstractmethod
    def reader(self, path: str, *, follow: bool = False) -> Reader:
        """Begin to read many files below a folder; `follow` follows links that stay below it. Raises NotFound."""

    @abstractmethod
    def sweep(self) -> int:
        """Drop what is staged for too long; return how many. Never touches what somebody is writing."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the root."""

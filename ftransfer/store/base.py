"""The interface between the loops that move bytes and what keeps them.

Two implementations, `local` and `memory`, and what wraps them, `guarded` and `many`, pass one suite of tests
(tests/test_store_contract.py). An object store fits too: a grain is a part of a multipart upload, which is why a grain
is begun, written in order, then accepted or rejected. Only the store knows the disk; its callers give it checked wire
paths and get `FtransferError` for everything that fails.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ftransfer.errors import FtransferError
from ftransfer.store.opened import (
    MAX_TIME,
    BytesSource,
    FileSource,
    Source,
    fingerprint,
    has_hidden_bytes,
    portable_time,
)

if TYPE_CHECKING:
    from ftransfer.store.trees import Reader, Tree

# What lives in `opened` is taken from here, with the rest of the interface.
__all__ = ["MAX_TIME", "BytesSource", "FileSource", "Source", "fingerprint", "has_hidden_bytes", "portable_time"]

FILE, FOLDER, LINK, OTHER = "file", "folder", "link", "other"


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
    owner: str = ""


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
    """What is going to be stored: the file as the sender announced it, and what to do if the name is taken.

    `owner` is whose transfer it is: nobody takes up, or drops by a commit, what another owner has staged.
    """

    path: str
    size: int | None
    fingerprint: str | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    transfer: str | None = None
    if_exists: str = "replace"
    owner: str = ""


class Committed(NamedTuple):
    """The outcome: the name that the file got, its size and digest, and whether it would survive a power cut now."""

    path: str
    size: int
    hex: str
    durable: bool


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


class Staging(ABC):
    """The bytes of one transfer on their way to a name; held by one writer at a time.

    `grains` are the ones that counted when it was claimed, by offset; `inherited` is the number of their bytes.
    """

    grains: dict[int, Grain]
    inherited: int
    keeps_only_early = False
    """Whether only grains that came too early can be read back, and only before another one is accepted."""
    taken_up = False
    """Whether it goes on with what an earlier claim has left, and so stages nothing more than there was."""
    replaced = 0
    """Bytes of the file whose name it took, after `commit`."""

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
Freed = Callable[[int], None]
"""Is told of the bytes of each file that went, because it was removed or replaced."""


def always(path: str) -> bool:  # noqa: ARG001 - whatever it is
    """Look into every folder."""
    return True


def pass_over(path: str, exc: FtransferError) -> None:
    """Take note of nothing: who lists a folder sees what can be seen."""


class Store(ABC):
    """Files and folders below one root; every path is a checked wire path."""

    capabilities: Capabilities

    @abstractmethod
    def below(self, path: str, *, create: bool = False) -> Store:
        """Return a store of a folder of this one, for "" of the same; nothing outside the folder can be reached by it.

        It is closed by itself, and this one may be closed before it. Arguments: `create` makes the folder if it is
        missing. Raises NotFound, NotAFile.
        """

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
    def remove(self, path: str, *, recursive: bool = False, freed: Freed | None = None) -> None:
        """Remove a file, a link or an empty folder; with `recursive` a folder and all below it."""

    @abstractmethod
    def move(self, path: str, target: str) -> None:
        """Rename; never replaces. Raises AlreadyExists."""

    @abstractmethod
    def committed(self, description: Description) -> Committed | None:
        """Return what this very transfer (its `transfer`, of its owner) committed, if only the receipt was lost."""

    @abstractmethod
    def claim(self, description: Description, *, resume: bool = True) -> Staging:
        """Begin or take up a transfer. Raises Busy if another writer has it, NotAFile, AlreadyExists, DiskError."""

    @abstractmethod
    def partials(self, path: str = "", *, clear: bool = False, owner: str | None = None) -> list[Partial]:
        """Return what is staged and unfinished below a path; with `clear` drop what nobody is writing.

        Arguments: `owner`, whose; None for everybody's.
        """

    @abstractmethod
    def staged(self, owner: str) -> tuple[int, int]:
        """Return how many files an owner has staged and not finished, and their bytes: of streams, what is held."""

    @abstractmethod
    def clock_step(self) -> int:
        """Return the resolution of the store's file times, in nanoseconds."""

    @abstractmethod
    def folds(self) -> list[str]:
        """Return what the store takes for the same name: "case", "form" (of Unicode), both or neither."""

    @abstractmethod
    def tree(
        self, path: str, if_exists: str = "replace", *, only_new: bool = False, freed: Freed | None = None
    ) -> Tree:
        """Begin to put many files below a folder, which is made when it is needed. Raises NotAFile.

        Arguments: `only_new` leaves time and mode of links and folders as they are that were there before.
        """

    @abstractmethod
    def reader(self, path: str, *, follow: bool = False) -> Reader:
        """Begin to read many files below a folder; `follow` follows links that stay below it. Raises NotFound."""

    @abstractmethod
    def sweep(self) -> int:
        """Drop what is staged for too long; return how many. Never touches what somebody is writing."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the root."""

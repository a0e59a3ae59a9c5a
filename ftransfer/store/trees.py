"""Many files below one folder, for the loops that move packs: the interface, and what works with any store.

A `Tree` takes whole small files and publishes them by groups; a `Reader` gives files, links and what is known of
names. `local_trees` has the quick versions for folders on a disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self

from ftransfer import digests, paths
from ftransfer.errors import BadPath, FtransferError, NotAFile, NotFound, SourceChanged
from ftransfer.store.base import Description, Entry, Freed, Source, Staging, Store


class Room(NamedTuple):
    """What is free: bytes, and files; None where nobody knows."""

    bytes: int | None
    files: int | None


class Packed(NamedTuple):
    """What was read of a small file: its size and the facts that go with it."""

    size: int
    mtime_ns: int
    mode: int


Facts = tuple[str, int, int]
"""Path, mtime_ns and mode."""
Failed = dict[int, FtransferError]
"""What failed, by its place."""


class Tree(ABC):
    """Files on their way below one folder; held by one connection. Paths are relative to that folder, and checked."""

    exists: bool
    """Whether the folder holds anything."""

    @property
    def is_full(self) -> bool:
        """Whether a group is so large that it should be committed."""
        return False

    @abstractmethod
    def room(self) -> Room:
        """Return what is free where the folder lies."""

    @abstractmethod
    def add(self, path: str, data: memoryview, mtime_ns: int, mode: int) -> None:
        """Stage a whole file; it counts after `commit`. Raises what is wrong with this file."""

    @abstractmethod
    def commit(self, folders: Sequence[Facts] = ()) -> tuple[Failed, Failed]:
        """Publish what was added since the last commit, then do as `folder` for these; durably where the store is.

        Returns what failed, by its place among the calls of `add` that did not raise, and among the folders. Raises
        DiskError if the disk did not take it; then nothing of it counts. May take long.
        """

    @abstractmethod
    def link(self, path: str, target: str, mtime_ns: int) -> None:
        """Make a symbolic link at once; whatever file or link has the name is replaced."""

    @abstractmethod
    def folder(self, path: str, mtime_ns: int, mode: int) -> None:
        """Make a folder, or take the one that is there, and give it its time and mode; "" is the tree's own."""

    @abstractmethod
    def stamp(self, path: str, mtime_ns: int, mode: int) -> None:
        """Give a file that is there another time and mode."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, a link or an empty folder. Raises NotFound, NotAFile for a folder that is not empty."""

    @abstractmethod
    def close(self) -> None:
        """Let go; what was added and not committed is dropped."""


class Reader(ABC):
    """Files below one folder, to be read; belongs to one request. Paths are relative to that folder, and checked."""

    @abstractmethod
    def stat(self, path: str) -> Entry | None:
        """Return what is there, or None."""

    @abstractmethod
    def read(self, path: str, view: memoryview, size: int = -1, mtime_ns: int = 0) -> Packed | None:
        """Read a whole file into the view; None if it does not fit, or has holes that should be kept.

        Arguments: `size` and `mtime_ns` that it had a moment ago; if it has them after it was read, it held still.
        Raises NotFound, NotAFile, Refused, SourceChanged.
        """

    @abstractmethod
    def target(self, path: str) -> str:
        """Return what a symbolic link says. Raises NotFound, NotAFile."""

    @abstractmethod
    def open(self, path: str) -> Source:
        """Open a file of any size."""

    @abstractmethod
    def close(self) -> None:
        """Let go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PlainTree(Tree):
    """A tree in any store: each file is a transfer of its own.

    Arguments: `freed` is told of the bytes of files that are replaced or removed.
    """

    def __init__(self, store: Store, path: str, if_exists: str, *, freed: Freed | None = None):
        self._store = store
        self._freed = freed
        self._base = path
        self._if_exists = if_exists
        self._staged: list[tuple[Staging, int, str]] = []
        try:
            self.exists = next(iter(store.entries(path)), None) is not None
        except NotFound:
            self.exists = False

    def room(self) -> Room:
        return Room(None, None)

    def add(self, path: str, data: memoryview, mtime_ns: int, mode: int) -> None:
        whole = paths.join(self._base, path)
        self._staged.append(
            self._stage(Description(whole, len(data), mtime_ns=mtime_ns, mode=mode, if_exists=self._if_exists), data)
        )

    def _stage(self, wanted: Description, data: memoryview) -> tuple[Staging, int, str]:
        staging = self._store.claim(wanted, resume=False)
        hex_digits = digests.block_hash(data)
        if data:
            staging.begin(0, len(data))
            staging.write(data)
            staging.accept(hex_digits)
        return staging, len(data), hex_digits

    def commit(self, folders: Sequence[Facts] = ()) -> tuple[Failed, Failed]:
        staged, self._staged = self._staged, []
        failed: Failed = {}
        bad: Failed = {}
        for at, (staging, size, hex_digits) in enumerate(staged):
            try:
                staging.commit(size, hex_digits)
            except FtransferError as exc:
                staging.discard()
                failed[at] = exc
            else:
                if self._freed is not None:
                    self._freed(staging.replaced)
        for at, facts in enumerate(folders):
            try:
                self.folder(*facts)
            except FtransferError as exc:
                bad[at] = exc
        return failed, bad

    def link(self, path: str, target: str, mtime_ns: int) -> None:  # noqa: ARG002 - it keeps none
        raise NotAFile("this store keeps no symbolic links", path=path)

    def folder(self, path: str, mtime_ns: int, mode: int) -> None:  # noqa: ARG002 - this store keeps no more
        whole = paths.join(self._base, path) if path else self._base
        if whole:
            self._store.mkdir(whole, parents=True)

    def stamp(self, path: str, mtime_ns: int, mode: int) -> None:
        whole = paths.join(self._base, path)
        with self._store.open(whole) as source:
            data = memoryview(bytearray(source.size or 0))
            source.read_into(0, data)
        staging, size, hex_digits = self._stage(Description(whole, len(data), mtime_ns=mtime_ns, mode=mode), data)
        staging.commit(size, hex_digits)

    def remove(self, path: str) -> None:
        self._store.remove(paths.join(self._base, path), freed=self._freed)

    def close(self) -> None:
        while self._staged:
            self._staged.pop()[0].discard()


class PlainReader(Reader):
    """A reader of any store."""

    def __init__(self, store: Store, path: str):
        self._store = store
        self._base = path
        next(iter(store.entries(path)), None)  # to see whether there is a folder

    def stat(self, path: str) -> Entry | None:
        try:
            return self._store.stat(paths.join(self._base, path))._replace(path=path)
        except (NotFound, NotAFile, BadPath):
            return None

    def read(self, path: str, view: memoryview, size: int = -1, mtime_ns: int = 0) -> Packed | None:  # noqa: ARG002
        with self.open(path) as source:
            size = source.size or 0
            if size > len(view):
                return None
            if source.read_into(0, view[:size]) != size:
                raise SourceChanged("it became shorter while it was read", path=path)
            source.check()
            return Packed(size, source.mtime_ns or 0, source.mode or 0o644)

    def target(self, path: str) -> str:
        raise NotAFile("it is not a symbolic link", path=path)

    def open(self, path: str) -> Source:
        return self._store.open(paths.join(self._base, path))

    def close(self) -> None:
        """Nothing is held."""

"""Many files at a time, as one account may put them below a folder. Made by `GuardedStore.tree` only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ftransfer import digests
from ftransfer.errors import AlreadyExists, FtransferError, NotAFile, NotFound
from ftransfer.store.base import FOLDER, Freed
from ftransfer.store.shares import STEP, Share
from ftransfer.store.trees import Facts, Failed, Room
from ftransfer.store.wrapped import WrappedTree

if TYPE_CHECKING:
    from ftransfer.store.guarded import GuardedStore


class GuardedTree(WrappedTree):
    """A tree of an account that may not do everything, or not without being counted."""

    def __init__(self, guard: GuardedStore, path: str, if_exists: str, *, only_new: bool, freed: Freed | None):
        self._guard = guard
        self._base = path
        self._hides = guard.hides(if_exists)
        self._skips = if_exists == "skip"
        self._creates = "create" in guard.account.can
        self._most = guard.account.max_file
        self._share = Share(guard.allowance) if guard.allowance.counts else None
        self._sizes: list[int] = []
        self._added: list[tuple[str, int, str]] = []
        self._bytes = 0
        self._freed = 0
        self._tell_freed = freed
        inner = guard.inner.tree(
            path,
            "fail" if self._hides else if_exists,
            only_new=only_new or not guard.replaces,
            freed=freed if self._share is None else self._note_freed,
        )
        super().__init__(inner)
        self.exists = inner.exists and guard.reads

    def _note_freed(self, count: int) -> None:
        self._freed += count
        if self._tell_freed is not None:
            self._tell_freed(count)

    def room(self) -> Room:
        return self.inner.room() if self._guard.reads else Room(None, None)

    def _seen(self, exc: FtransferError, path: str) -> FtransferError:
        """Return the error as the account may see it."""
        if self._skips and isinstance(exc, AlreadyExists):
            return exc  # that the name is taken is told in any case; so a tree that was cut can be gone on with
        hides = self._hides and isinstance(exc, AlreadyExists)
        if hides or (not self._guard.reads and isinstance(exc, (AlreadyExists, NotAFile))):
            return self._guard.taken(path)
        return exc

    def add(self, path: str, data: memoryview, mtime_ns: int, mode: int) -> None:
        if not self._creates:
            self._guard.account.require("create")
        if self._most is not None and len(data) > self._most:
            self._guard.check_size(len(data), path)
        if self._share is not None:
            self._share.cover(self._bytes + len(data), more=STEP)
        try:
            self.inner.add(path, data, mtime_ns, mode)
        except NotAFile as exc:
            raise self._seen(exc, path) from exc
        if self._hides:
            self._added.append((path, len(data), digests.block_hash(data)))
        if self._share is not None:
            self._sizes.append(len(data))
            self._bytes += len(data)

    def commit(self, folders: Sequence[Facts] = ()) -> tuple[Failed, Failed]:
        sizes, self._sizes = self._sizes, []
        added, self._added = self._added, []  # also if the disk refuses: the next group begins with none
        count, self._bytes = self._bytes, 0
        places, refused = self._places(folders)
        try:
            failed, bad = self.inner.commit([folders[at] for at in places])
        except BaseException:
            self._settle(0)
            raise
        self._settle(count - sum(sizes[at] for at in failed) if sizes else 0)
        if self._hides:
            failed = {at: exc for at, exc in failed.items() if not self._is_stored(exc, *added[at])}
        failed = {at: self._seen(exc, exc.path or "") for at, exc in failed.items()}
        bad = {places[at]: self._seen(exc, folders[places[at]][0]) for at, exc in bad.items()}
        return failed, bad | refused

    def _is_stored(self, exc: FtransferError, path: str, size: int, hex_digits: str) -> bool:
        """Tell whether a name is taken by just these bytes: a receipt was lost, or the command is called again."""
        if not isinstance(exc, AlreadyExists):
            return False
        try:
            with self._guard.inner.open("/".join(part for part in (self._base, path) if part)) as source:
                data = memoryview(bytearray(size))
                if source.size != size or source.read_into(0, data) != size:
                    return False
                return digests.block_hash(data) == hex_digits
        except FtransferError:
            return False

    def _places(self, folders: Sequence[Facts]) -> tuple[Sequence[int], Failed]:
        """Return which of these folders the tree below is asked for, by their places, and which are refused."""
        if self._creates:
            return range(len(folders)), {}
        places: list[int] = []
        refused: Failed = {}
        for at, (path, _, _) in enumerate(folders):
            try:
                if self._is_there(path):
                    places.append(at)
            except FtransferError as exc:
                refused[at] = exc
        return places, refused

    def _is_there(self, path: str) -> bool:
        """Tell whether a folder that is there already is to get its facts. Raises Refused if it would be made."""
        try:
            found = self._guard.inner.stat("/".join(part for part in (self._base, path) if part))
        except (NotFound, NotAFile):
            found = None
        if found is None or found.kind != FOLDER:
            self._guard.account.require("create")
        return self._guard.replaces

    def _settle(self, count: int) -> None:
        """Take note that so many bytes were published."""
        if self._share is not None:
            freed, self._freed = self._freed, 0
            self._share.stored(count, freed)

    def link(self, path: str, target: str, mtime_ns: int) -> None:
        self._guard.account.require("create")
        try:
            self.inner.link(path, target, mtime_ns)
        except (AlreadyExists, NotAFile) as exc:
            raise self._seen(exc, path) from exc

    def folder(self, path: str, mtime_ns: int, mode: int) -> None:
        if self._creates or self._is_there(path):
            try:
                self.inner.folder(path, mtime_ns, mode)
            except NotAFile as exc:
                raise self._seen(exc, path) from exc

    def stamp(self, path: str, mtime_ns: int, mode: int) -> None:
        self._guard.account.require("replace")
        self.inner.stamp(path, mtime_ns, mode)

    def remove(self, path: str) -> None:
        self._guard.account.require("delete")
        self.inner.remove(path)

    def close(self) -> None:
        try:
            self.inner.close()
        finally:
            self._settle(0)
            if self._share is not None:
                self._share.close()

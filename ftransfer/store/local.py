"""Folders on a disk as a store: everything goes through directory descriptors below one root.

Data is staged in the target's own folder under a reserved name (`staging`); descriptions, journals and records of
what was committed live in the root's `.ftransfer/`. Called by the server for the served folder and by the client for
the folder that it downloads into.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, TypeVar

from ftransfer import paths
from ftransfer.errors import DiskError, FtransferError, NotFound, UsageError
from ftransfer.store import base, journal, sync
from ftransfer.store.folders import (
    Synced,
    folder,
    open_folder,
    split,
    translated,
    unlink_counted,
    unlink_if_there,
)
from ftransfer.store.local_trees import LocalTree
from ftransfer.store.reading import LocalReader
from ftransfer.store.renaming import move_new
from ftransfer.store.staging import LocalStaging
from ftransfer.store.state import JOURNAL, StateFolder, announced, is_of, journal_prefix, receipt_name
from ftransfer.store.sweeping import KEEP_OUT_OF_REACH, sweep_probes, sweep_trees
from ftransfer.store.trees import Reader, Tree
from ftransfer.store.walking import remove_tree, walk

KEEP_PARTIALS = 14 * 86400
"""Seconds that staged data outlives its last block."""
MOST_STALE = 1000
"""Journals that are looked at in one go."""
KEEP_RECEIPTS = 86400
"""Seconds that the record of a committed transfer is kept."""
MOST_PROBED = 1000
"""Folders of which a store remembers what was found out about them."""

T = TypeVar("T")


class LocalStore(base.Store):
    """The files below `root`.

    Arguments: `durable`, whether to sync before a transfer counts as done; `receipts`, whether to remember for a day
    what was committed; `keep_free`, bytes of the disk that are left free; `state`, the folder that has `.ftransfer/`,
    None for the root. Raises NotFound, NotAFile for a root that is none.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        durable: bool = True,
        receipts: bool = True,
        keep_free: int = 0,
        state: str | None = None,
    ):
        self.root = os.fspath(root)
        self.shown = "the served folder"
        """What the root is called in errors."""
        self.capabilities = base.Capabilities(resumes=True, durable=durable, keeps_modes=True, keeps_holes=True)
        self.receipts = receipts
        self.keep_free = keep_free
        with translated(self.root):
            self.fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.state_fd = -1
        self.is_apart = state is not None
        """Whether the state is kept elsewhere, where other machines may share it: what is not here may be there."""
        if state is not None:
            with translated(state):
                self.state_fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.state = StateFolder(self.fd if state is None else self.state_fd)
        self.synced = Synced() if durable else None
        self.umask = _umask()
        self.new_file_mode = 0o666 & ~self.umask
        self.turn = Lock()
        """Held between looking at a name and changing it, by whoever counts what goes by that."""
        self._probed: dict[tuple[str, int, int], Any] = {}

    def below(self, path: str, *, create: bool = False) -> LocalStore:
        import copy

        parts = paths.check(path, root=True).split("/") if path else []
        with translated(path or self.shown):
            fd = open_folder(self.fd, parts, create=create, synced=self.synced)
        made = copy.copy(self)  # what is known of the disk is shared
        made.root = os.path.join(self.root, path)
        made.fd = fd
        made.state = StateFolder(fd)
        made.state_fd = -1
        made.is_apart = False
        return made

    def close(self) -> None:
        for fd in (self.fd, self.state_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.state_fd = -1

    def stat(self, path: str) -> base.Entry:
        with translated(path or self.shown):
            if not path:
                found = os.fstat(self.fd)
            else:
                parts, name = split(path)
                with folder(self.fd, parts, lists=False) as fd:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return base.entry(path, found)

    def entries(
        self,
        path: str,
        *,
        recursive: bool = False,
        follow: bool = False,
        on_error: base.OnError = base.pass_over,
        enters: base.Enters = base.always,
    ) -> Iterator[base.Entry]:
        with translated(path or self.shown), folder(self.fd, path.split("/") if path else []) as fd:
            for name, found in walk(fd, recursive=recursive, follow=follow, on_error=on_error, enters=enters):
                yield base.entry(name, found)

    def tree(
        self, path: str, if_exists: str = "replace", *, only_new: bool = False, freed: base.Freed | None = None
    ) -> Tree:
        self.drop_stale()
        return LocalTree(self, path, if_exists, only_new=only_new, freed=freed)

    def reader(self, path: str, *, follow: bool = False) -> Reader:
        return LocalReader(self, path, follow=follow)

    def open(self, path: str, *, follow: bool = False) -> base.Source:
        with LocalReader(self, "", follow=follow) as reader:
            return reader.open(path)

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        parts, name = split(path)
        with translated(path):
            if parents:
                os.close(open_folder(self.fd, [*parts, name], create=True, synced=self.synced))
                return
            try:
                with folder(self.fd, parts) as fd:
                    os.mkdir(name, 0o777, dir_fd=fd)
                    self._sync_all([os.dup(fd)])
            except FileNotFoundError as exc:
                raise NotFound("the folder above it does not exist", path=path, hint="mkdir -p makes it too") from exc

    def remove(self, path: str, *, recursive: bool = False, freed: base.Freed | None = None) -> None:
        parts, name = split(path)
        with translated(path), folder(self.fd, parts) as fd:
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                unlink_counted(name, fd, self.turn, freed)
            else:
                if self.synced is not None:
                    self.synced.clear()
                if recursive:
                    remove_tree(name, fd, self.turn, freed)
                else:
                    os.rmdir(name, dir_fd=fd)
                if self.synced is not None:
                    self.synced.clear()  # again: what went meanwhile may have been met in between
            self._sync_all([os.dup(fd)])

    def move(self, path: str, target: str) -> None:
        parts, name = split(path)
        target_parts, target_name = split(target)
        if target.startswith(path + "/"):
            raise UsageError("a folder cannot be moved into itself", path=path)
        with translated(path), folder(self.fd, parts) as fd:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            with translated(target), folder(self.fd, target_parts) as target_fd:
                move_new(name, fd, target_name, target_fd, is_folder=stat.S_ISDIR(found.st_mode))
                self._sync_all([os.dup(target_fd), os.dup(fd)])

    def committed(self, description: base.Description) -> base.Committed | None:
        d = description
        record = self.state.read_receipt(receipt_name(d.transfer, d.owner)) if d.transfer and self.receipts else None
        if record is None or record["asked"] != d.path or record.get("owner", "") != d.owner:
            return None
        parts, name = split(record["path"])
        try:
            fd = open_folder(self.fd, parts, synced=self.synced)
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns] != record["file"]:
                    return None
                if self.synced is not None:
                    sync.sync_folder(fd)
            finally:
                os.close(fd)
        except OSError:
            return None
        # If we were killed just after the commit, its journal is still there.
        self.drop_others(d.path, d.owner)
        return base.Committed(record["path"], record["size"], record["hex"], self.capabilities.durable)

    def claim(self, description: base.Description, *, resume: bool = True) -> base.Staging:
        return LocalStaging(self, description, resume=resume)

    def partials(self, path: str = "", *, clear: bool = False, owner: str | None = None) -> list[base.Partial]:
        found = []
        for name in self._journals(owner):
            partial = self._partial(name)
            if partial is None or not (not path or partial.path == path or partial.path.startswith(path + "/")):
                continue
            if (owner is not None and partial.owner != owner) or (clear and not self.drop(name)):
                continue
            found.append(partial)
        return sorted(found, key=lambda partial: (partial.path, partial.mtime_ns))

    def _journals(self, owner: str | None) -> list[str]:
        """Return the names of journals, of this owner or of all."""
        return [name for name in self.state.names(JOURNAL) if owner is None or is_of(name, owner)]

    def _partial(self, name: str) -> base.Partial | None:
        data = self.state.read(name)
        decoded = journal.decode_head(data) if data else None
        if data is None or decoded is None:
            return None
        head, start = decoded
        grains = journal.decode_records(data[start:], head.salt, (1 << 63) - 1)
        held = sum(grain.length for grain in grains.values())
        mtime = self.state.mtime_ns(name)
        return base.Partial(head.path, head.size, held, mtime, head.fingerprint, head.owner)

    def staged(self, owner: str) -> tuple[int, int]:
        names = self._journals(owner)
        total = 0
        for name in names:
            size = announced(name)
            if size is None and (partial := self._partial(name)) is not None:
                size = partial.held if partial.size is None else partial.size
            total += size or 0
        return len(names), total

    def drop(self, name: str) -> bool:
        """Drop a journal and what it stages, unless somebody writes it; tell whether it is gone."""
        try:
            fd = self.state.lock(name, create=False)
        except FtransferError:
            return False  # somebody writes it, or it is no journal
        if fd is None:
            return False
        try:
            data = os.pread(fd, journal.MAX_HEAD, 0)
            decoded = journal.decode_head(data)
            if decoded is not None:
                parts, _ = split(decoded[0].path)
                try:
                    with folder(self.fd, parts) as parent:
                        unlink_if_there(decoded[0].staged, parent)
                except OSError:
                    pass  # the folder is gone, and the staged file with it
            self.state.remove(name)
        finally:
            os.close(fd)
        self.state.tidy()
        return True

    def drop_others(self, path: str, owner: str, but: str = "") -> None:
        """Drop what an owner has staged for a path, unless somebody is writing it or it is the journal `but`."""
        prefix = journal_prefix(path)
        for name in self._journals(owner):
            if name.startswith(prefix) and name != but:
                self.drop(name)

    def free(self, fd: int) -> int:
        """Return the bytes that may still be written to the file system of a descriptor; negative below `keep_free`."""
        found = os.fstatvfs(fd)
        return found.f_bavail * found.f_frsize - self.keep_free

    def no_space(self, path: str, needed: int, free: int) -> DiskError:
        """Return what says that there is no space."""
        hint = "free some space (`ftransfer partials` shows what is unfinished), then run the command again"
        if self.keep_free:
            hint = f"{self.keep_free} bytes of the disk are kept free (keep_free); {hint}"
        text = f"{needed} bytes are needed and {max(free, 0)} are free" if needed else "what is left is kept free"
        return DiskError(f"no space: {text}", path=path, hint=hint)

    def clock_step(self) -> int:
        return self._probe("clock", self.state.probe_clock)

    def folds(self) -> list[str]:
        return self._probe("folds", self.state.probe_folding)

    def _probe(self, what: str, probe: Callable[[], T]) -> T:
        """Return what was found out about this folder, here or by another store of it."""
        with translated("the target folder"):
            found = os.fstat(self.fd)
            key = (what, found.st_dev, found.st_ino)
            known: T | None = self._probed.get(key)
            if known is None:
                if len(self._probed) >= MOST_PROBED:
                    self._probed.clear()
                self._probed[key] = known = probe()
        return known

    def drop_stale(self) -> None:
        """Drop journals whose staged file has gone: an end was killed just after it had given that its name."""
        if self.is_apart:
            return  # that it cannot be seen may have other reasons
        for name in self.state.names(JOURNAL)[:MOST_STALE]:
            data = self.state.read(name)
            decoded = journal.decode_head(data) if data else None
            if decoded is None:
                continue
            parts, _ = split(decoded[0].path)
            try:
                with folder(self.fd, parts) as fd:
                    os.stat(decoded[0].staged, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                self.drop(name)
            except OSError:
                pass  # whoever wants to know what is there will hear

    def sweep(self) -> int:
        sweep_trees(self)
        self.drop_stale()
        sweep_probes(self.state)
        now = time.time_ns()
        dropped = 0
        for name in self.state.names(JOURNAL):
            if now - self.state.mtime_ns(name) > KEEP_PARTIALS * 10**9 and self._is_in_reach(name):
                dropped += self.drop(name)
        self.state.sweep_receipts(now - KEEP_RECEIPTS * 10**9)
        self.state.tidy()
        return dropped

    def _is_in_reach(self, name: str) -> bool:
        """Tell whether the folder of a journal's staged file is there, or would be if it had not been removed."""
        data = self.state.read(name) if self.is_apart else None
        decoded = journal.decode_head(data) if data else None
        if decoded is None:
            return True
        try:
            with folder(self.fd, split(decoded[0].path)[0]):
                return True
        except OSError:
            return time.time_ns() - self.state.mtime_ns(name) > KEEP_OUT_OF_REACH * 10**9

    def sync_folders(self, fds: list[int]) -> None:
        """Sync folders where the store is durable."""
        if self.capabilities.durable:
            for fd in fds:
                sync.sync_folder(fd)

    def _sync_all(self, fds: list[int]) -> None:
        try:
            self.sync_folders(fds)
        finally:
            for fd in fds:
                os.close(fd)


def _umask() -> int:
    """Return the process's umask without touching it, where the system tells; else by setting it for a moment."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass  # not Linux
    value = os.umask(0o077)
    os.umask(value)
    return value

"""Folders on a disk as a store: everything goes through directory descriptors below one root.

Data is staged in the target's own folder under a reserved name (`staging`); descriptions, journals and records of
what was committed live in the root's `.ftransfer/`. Called by the server for the served folder and by the client for
the folder that it downloads into.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from ftransfer.errors import AlreadyExists, Busy, NotFound, UsageError
from ftransfer.store import base, journal, sync
from ftransfer.store.folders import (
    Synced,
    folder,
    links_refused,
    open_folder,
    split,
    translated,
    unlink_if_there,
)
from ftransfer.store.local_trees import LocalTree, sweep_trees
from ftransfer.store.reading import LocalReader
from ftransfer.store.staging import LocalStaging
from ftransfer.store.state import JOURNAL, StateFolder, journal_prefix
from ftransfer.store.trees import Reader, Tree
from ftransfer.store.walking import remove_tree, walk

KEEP_PARTIALS = 14 * 86400
"""Seconds that staged data outlives its last block."""
MOST_STALE = 1000
"""Journals that are looked at in one go."""
PROBE_SECONDS = 60
"""Seconds after which the file of a probe belongs to nobody."""
KEEP_RECEIPTS = 86400
"""Seconds that the record of a committed transfer is kept."""


class LocalStore(base.Store):
    """The files below `root`.

    Arguments: `durable`, whether to sync before a transfer counts as done; `receipts`, whether to remember for a day
    what was committed. Raises NotFound, NotAFile for a root that is
    none.
    """

    def __init__(self, root: str | os.PathLike[str], *, durable: bool = True, receipts: bool = True):
        self.root = os.fspath(root)
        self.shown = "the served folder"
        """What the root is called in errors."""
        self.capabilities = base.Capabilities(resumes=True, durable=durable, keeps_modes=True, keeps_holes=True)
        self.receipts = receipts
        with translated(self.root):
            self.fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.state = StateFolder(self.fd)
        self._clock_step: int | None = None
        self.synced = Synced() if durable else None
        self.umask = _umask()
        self.new_file_mode = 0o666 & ~self.umask
        self._folds: list[str] | None = None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def stat(self, path: str) -> base.Entry:
        with translated(path or self.shown):
            if not path:
                found = os.fstat(self.fd)
            else:
                parts, name = split(path)
                with folder(self.fd, parts) as fd:
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

    def tree(self, path: str, if_exists: str = "replace") -> Tree:
        self.drop_stale()
        return LocalTree(self, path, if_exists)

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

    def remove(self, path: str, *, recursive: bool = False) -> None:
        parts, name = split(path)
        with translated(path), folder(self.fd, parts) as fd:
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=fd)
            else:
                if self.synced is not None:
                    self.synced.clear()
                if recursive:
                    remove_tree(name, fd)
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
                self._rename(name, fd, target_name, target_fd, stat.S_ISDIR(found.st_mode))
                self._sync_all([os.dup(target_fd), os.dup(fd)])

    @staticmethod
    def _rename(name: str, fd: int, target: str, target_fd: int, is_folder: bool) -> None:
        """Rename without replacing: by link and unlink, which fails in one step if the name is taken."""
        if not is_folder:
            try:
                os.link(name, target, src_dir_fd=fd, dst_dir_fd=target_fd, follow_symlinks=False)
                os.unlink(name, dir_fd=fd)
                return
            except OSError as exc:
                if not links_refused(exc):
                    raise
        try:
            os.stat(target, dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, target, src_dir_fd=fd, dst_dir_fd=target_fd)
        else:
            raise AlreadyExists("it exists already", path=target)

    def committed(self, description: base.Description) -> base.Committed | None:
        record = self.state.read_receipt(description.transfer) if description.transfer and self.receipts else None
        if record is None or record["asked"] != description.path:
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
        self.drop_others(description.path)
        return base.Committed(record["path"], record["size"], record["hex"], self.capabilities.durable)

    def claim(self, description: base.Description, *, resume: bool = True) -> base.Staging:
        return LocalStaging(self, description, resume=resume)

    def partials(self, path: str = "", *, clear: bool = False) -> list[base.Partial]:
        found = []
        for name in self.state.names(JOURNAL):
            partial = self._partial(name)
            if partial is None or not (not path or partial.path == path or partial.path.startswith(path + "/")):
                continue
            if clear and not self.drop(name):
                continue
            found.append(partial)
        return sorted(found, key=lambda partial: (partial.path, partial.mtime_ns))

    def _partial(self, name: str) -> base.Partial | None:
        data = self.state.read(name)
        decoded = journal.decode_head(data) if data else None
        if data is None or decoded is None:
            return None
        head, start = decoded
        grains = journal.decode_records(data[start:], head.salt, (1 << 63) - 1)
        held = sum(grain.length for grain in grains.values())
        mtime = self.state.mtime_ns(name)
        return base.Partial(head.path, head.size, held, mtime, head.fingerprint)

    def drop(self, name: str) -> bool:
        """Drop a journal and what it stages, unless somebody writes it; tell whether it is gone."""
        try:
            fd = self.state.lock(name, create=False)
        except Busy:
            return False
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

    def drop_others(self, path: str, but: str = "") -> None:
        """Drop what is staged for a path, unless somebody is writing it or it is the journal `but`."""
        prefix = journal_prefix(path)
        for name in self.state.names(JOURNAL):
            if name.startswith(prefix) and name != but:
                self.drop(name)

    def clock_step(self) -> int:
        if self._clock_step is None:
            with translated("the target folder"):
                self._clock_step = self.state.probe_clock()
        return self._clock_step

    def folds(self) -> list[str]:
        if self._folds is None:
            with translated("the target folder"):
                self._folds = self.state.probe_folding()
        return self._folds

    def drop_stale(self) -> None:
        """Drop journals whose staged file has gone: an end was killed just after it had given that its name."""
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
        for name in self.state.names(".probe"):
            if time.time_ns() - self.state.mtime_ns(name) > PROBE_SECONDS * 10**9:
                self.state.remove(name)
        now = time.time_ns()
        dropped = 0
        for name in self.state.names(JOURNAL):
            if now - self.state.mtime_ns(name) > KEEP_PARTIALS * 10**9:
                dropped += self.drop(name)
        self.state.sweep_receipts(now - KEEP_RECEIPTS * 10**9)
        self.state.tidy()
        return dropped

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

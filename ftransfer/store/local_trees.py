"""Many small files in folders on a disk: staged one by one, published by groups, with few system calls for each.

The order is that of a single file (`staging`), for all of a group at once: write all, sync the file system, rename
all, sync it again, answer. A journal in the root's `.ftransfer/` says before they are made which files are staged, so
that a sweep finds those of a writer that was killed. Made by `LocalStore.tree` and `LocalStore.reader` only.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ftransfer import paths
from ftransfer.errors import AlreadyExists, FtransferError, NotAFile, Refused, from_os
from ftransfer.store import sync
from ftransfer.store.base import Freed
from ftransfer.store.cache import FolderCache
from ftransfer.store.folders import (
    Identity,
    file_size,
    identity,
    is_replaceable,
    lend_rights,
    open_folder,
    translated,
    unlink_counted,
    unlink_if_there,
)
from ftransfer.store.renaming import link_new
from ftransfer.store.trees import Facts, Failed, Room, Tree

if TYPE_CHECKING:
    from ftransfer.store.local import LocalStore

JOURNAL = ".tree"
GROUP_BYTES = 256 << 20
"""Bytes after which a group is full."""
NEAR = 250
"""Characters from which a path below another one may be too long, or too deep."""
GROUP_FILES = 16_384
"""Files after which a group is full."""
ASK_BYTES = 32 << 20
"""Bytes between two looks at how much of the disk is free."""
MOST_MADE = 50_000
"""Folders of which a tree that changes only new ones remembers that it made them; others stay as they are."""
_STAGED_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Staged = tuple[str, str, str, int]
"""Folder, staged name, final name, mtime_ns."""


class LocalTree(Tree):
    """Files on their way below a folder on a disk.

    Arguments: `only_new`, whether links and folders that were there before keep their time and mode; `freed` is told
    of the bytes of files that are replaced or removed.
    """

    def __init__(
        self, store: LocalStore, path: str, if_exists: str, *, only_new: bool = False, freed: Freed | None = None
    ):
        self._store = store
        self._base = path
        self._if_exists = if_exists
        self._made: set[Identity] | None = set() if only_new else None
        self._freed = freed
        self._ask_at = 0 if store.keep_free else sys.maxsize
        """Bytes of this group from which on the disk is looked at again."""
        self._durable = store.capabilities.durable
        self._folders: FolderCache | None = None
        self._token = os.urandom(8).hex()
        self._prefix = f"{paths.RESERVED}-{self._token}-"
        self._journal = -1
        self._announced: set[str] = set()
        self._count = 0
        self._bytes = 0
        self._staged: list[Staged] = []
        self._devices: dict[int, int] = {}
        self._is_changed = False
        self._touched: set[str] = set()
        self.exists = False
        with translated(path or store.shown):
            try:
                fd = open_folder(store.fd, path.split("/") if path else [])
            except FileNotFoundError:
                return
            try:
                self._folders = self._new_cache(fd)
                with os.scandir(fd) as scan:
                    self.exists = any(not paths.is_reserved(entry.name) for entry in scan)
            finally:
                os.close(fd)

    def room(self) -> Room:
        with translated(self._base):
            fd = self._folders.get("") if self._folders else self._store.fd
            found = os.fstatvfs(fd)
            return Room(max(0, self._store.free(fd)), found.f_favail if found.f_files else None)

    def _ask_for_space(self, path: str) -> None:
        """See whether the disk still has more than is to be left free. Raises DiskError."""
        with translated(path):
            free = self._store.free(self._folders.get("") if self._folders else self._store.fd)
        if free < 0:
            raise self._store.no_space(path, 0, free)
        self._ask_at = self._bytes + ASK_BYTES

    def _new_cache(self, fd: int) -> FolderCache:
        on_made = None if self._made is None else self._remember_made
        return FolderCache(fd, create=True, entered=self._entered, on_made=on_made)

    def _remember_made(self, fd: int) -> None:
        if self._made is not None and len(self._made) < MOST_MADE:
            self._made.add(identity(fd))

    def _may_change(self, folder: int) -> bool:
        """Tell whether time and mode of a folder may be set: of those that were there before perhaps not."""
        return self._made is None or identity(folder) in self._made

    @property
    def _cache(self) -> FolderCache:
        return self._folders or self._open(create=True)

    def _open(self, *, create: bool) -> FolderCache:
        parts = self._base.split("/") if self._base else []
        fd = open_folder(self._store.fd, parts, create=create, synced=self._store.synced, on_made=self._remember_made)
        try:
            self._folders = self._new_cache(fd)
        finally:
            os.close(fd)
        return self._folders

    def _announce(self, above: str) -> None:
        """Note, before something is staged in a folder, that it is, so that it can be found after a crash."""
        if self._journal < 0:
            locked = self._store.state.lock(self._token + JOURNAL, create=True)
            assert locked is not None
            self._journal = locked
        record = b"\n" + json.dumps([self._base, above]).encode()  # the newline first: the one before may be torn
        if os.write(self._journal, record) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._announced.add(above)

    def add(self, path: str, data: memoryview, mtime_ns: int, mode: int) -> None:
        if len(path) + len(self._base) > NEAR:
            paths.check(paths.join(self._base, path))  # both together may be too long, or too deep
        if self._bytes >= self._ask_at:
            self._ask_for_space(path)
        above, _, name = path.rpartition("/")
        staged = f"{self._prefix}{self._count:x}"
        self._count += 1
        mode &= 0o777
        try:
            folder = self._cache.get(above)
            if above not in self._announced:
                self._announce(above)
            try:
                fd = os.open(staged, _STAGED_FLAGS, mode, dir_fd=folder)
            except PermissionError:
                if not self._may_change(folder):
                    raise
                lend_rights(folder)
                fd = os.open(staged, _STAGED_FLAGS, mode, dir_fd=folder)
            try:
                written = os.write(fd, data)
                while written < len(data):
                    written += os.write(fd, data[written:])
                if mode & self._store.umask:
                    os.fchmod(fd, mode)
                os.utime(fd, ns=(mtime_ns, mtime_ns))
                if self._durable and not sync.syncs_file_systems():
                    sync.sync_file(fd)
            except BaseException:
                os.unlink(staged, dir_fd=folder)
                raise
            finally:
                os.close(fd)
        except OSError as exc:
            raise from_os(exc, path) from exc
        self._staged.append((above, staged, name, mtime_ns))
        self._bytes += len(data)

    def _entered(self, fd: int) -> None:
        """Keep a descriptor of each file system below the root, so that it can be synced."""
        if self._durable and (device := os.fstat(fd).st_dev) not in self._devices:
            self._devices[device] = os.dup(fd)

    @property
    def is_full(self) -> bool:
        return self._bytes >= GROUP_BYTES or len(self._staged) >= GROUP_FILES

    def commit(self, folders: Sequence[Facts] = ()) -> tuple[Failed, Failed]:
        staged, self._staged = self._staged, []
        self._ask_at -= min(self._ask_at, self._bytes)
        self._bytes = 0
        failed: Failed = {}
        bad: Failed = {}
        try:
            if staged:
                self._sync(staged)
        except OSError as exc:
            # What the kernel could not write it has marked clean: a second sync would lie.
            self._drop(staged)
            raise from_os(exc, self._base) from exc
        self._rename(staged, failed)
        for at, facts in enumerate(folders):
            try:
                self.folder(*facts)
            except FtransferError as exc:
                bad[at] = exc
        try:
            if staged or self._is_changed:
                self._sync(staged)
                self._is_changed = False
                self._touched.clear()
            if self._journal >= 0:
                os.ftruncate(self._journal, 0)
                os.lseek(self._journal, 0, os.SEEK_SET)
                self._announced.clear()
        except OSError as exc:
            raise from_os(exc, self._base) from exc
        return failed, bad

    def _rename(self, staged: list[Staged], failed: Failed) -> None:
        replace = self._if_exists == "replace" and self._freed is None
        for at, one in enumerate(staged):
            above, temporary, name, _ = one
            try:
                folder = self._cache.get(above)
                if replace and (above in self._cache.made or is_replaceable(folder, name)):
                    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    self._publish(folder, one)
            except OSError as exc:
                self._drop([one])
                failed[at] = from_os(exc, paths.join(above, name))

    def _publish(self, folder: int, one: Staged) -> None:
        """Give a file or a link its name by the policy, and tell what went by that. Raises OSError."""
        if self._freed is None:
            self._place(folder, one)
            return
        with self._store.turn:
            size = file_size(one[2], folder)
            self._place(folder, one)
        if size:
            self._freed(size)

    def _place(self, folder: int, one: Staged) -> None:
        above, temporary, name, mtime_ns = one
        if self._if_exists == "replace":
            replaces = is_replaceable(folder, name)
        elif self._if_exists == "newer":
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                found = None
            replaces = found is None or (mtime_ns > found.st_mtime_ns and is_replaceable(folder, name))
        else:
            replaces = False
            if link_new(temporary, name, folder):
                return
        if not replaces:
            raise AlreadyExists("the name is taken", path=paths.join(above, name))
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _sync(self, staged: list[Staged]) -> None:
        """Return when all of a group is on the disk; without a call for a whole file system, each folder by itself."""
        if not self._durable:
            return
        if sync.syncs_file_systems():
            for fd in self._devices.values():
                sync.sync_file_system(fd)
            return
        folders = {one[0] for one in staged} | self._touched
        self._touched = set()
        while folders:
            for folder in folders:
                sync.sync_folder(self._cache.get(folder))
            folders = {folder.rpartition("/")[0] for folder in folders if folder}

    def _drop(self, staged: list[Staged]) -> None:
        for above, temporary, *_ in staged:
            try:
                unlink_if_there(temporary, self._cache.get(above))
            except OSError:
                pass  # its folder has gone, or the disk fails: the journal still has it

    def link(self, path: str, target: str, mtime_ns: int) -> None:
        above, _, name = path.rpartition("/")
        with translated(path):
            folder = self._cache.get(above)
            self._is_changed = True
            self._touched.add(above)
            if self._says(folder, name, target):
                if self._made is None:
                    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)
                return
            if above not in self._announced:
                self._announce(above)
            temporary = f"{self._prefix}{self._count:x}"
            self._count += 1
            os.symlink(target, temporary, dir_fd=folder)
            try:
                os.utime(temporary, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)
                self._publish(folder, (above, temporary, name, mtime_ns))
            except BaseException:
                unlink_if_there(temporary, folder)
                raise

    @staticmethod
    def _says(folder: int, name: str, target: str) -> bool:
        """Tell whether this link is there already."""
        try:
            return os.readlink(name, dir_fd=folder) == target
        except OSError:
            return False

    def folder(self, path: str, mtime_ns: int, mode: int) -> None:
        if not path and not self._base:
            raise Refused("the served folder keeps its own time and mode")
        with translated(path or self._base):
            fd = self._cache.get(path)
            self._is_changed = True
            self._touched.add(path)
            if not self._may_change(fd):
                return
            found = os.fstat(fd)
            if stat.S_IMODE(found.st_mode) & 0o777 != mode & 0o777:
                os.fchmod(fd, mode & 0o777 | found.st_mode & 0o7000)
            if found.st_mtime_ns != mtime_ns:
                os.utime(fd, ns=(mtime_ns, mtime_ns))

    def _existing(self, above: str) -> int:
        """Return the descriptor of a folder that is there, and make none."""
        return (self._folders or self._open(create=False)).get(above, create=False)

    def stamp(self, path: str, mtime_ns: int, mode: int) -> None:
        above, _, name = path.rpartition("/")
        with translated(path):
            folder = self._existing(above)
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise NotAFile("it is not a file any more", path=path)
            self._is_changed = True
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)
            alone = self._durable and not sync.syncs_file_systems()
            if alone or found.st_mode & 0o777 != mode & 0o777:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                try:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        raise NotAFile("it is not a file any more", path=path)
                    os.fchmod(fd, mode & 0o777)
                    if alone:
                        sync.sync_file(fd)
                finally:
                    os.close(fd)

    def remove(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        with translated(path):
            folder = self._existing(above)
            self._is_changed = True
            self._touched.add(above)
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(name, dir_fd=folder)
                self._cache.forget(path)
                if self._made is not None:
                    self._made.discard((found.st_dev, found.st_ino))  # the number is used again
                if self._store.synced is not None:
                    self._store.synced.clear()
            else:
                unlink_counted(name, folder, self._store.turn, self._freed)

    def close(self) -> None:
        staged, self._staged = self._staged, []
        if staged:
            self._drop(staged)
        if self._folders is not None:
            self._folders.close()
            self._folders = None
        while self._devices:
            os.close(self._devices.popitem()[1])
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
            try:
                self._store.state.remove(self._token + JOURNAL)
                self._store.state.tidy()
            except (OSError, FtransferError):
                pass  # no descriptor left, say: a sweep removes it

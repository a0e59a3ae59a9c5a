"""One transfer on its way into a local store: staged file, journal, commit. Made by `LocalStore.claim` only.

The order of the calls here is what the promises rest on (docs/guarantees.md); tests/test_crash_replay.py replays it
with power cuts between any two of them. Staged bytes first, then their record; everything synced, then the rename;
the folder synced, then the answer. After a sync that failed the staged data is dropped: the kernel has marked its
pages clean, and a second sync would lie.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ftransfer import paths
from ftransfer.errors import AlreadyExists, Busy, NotAFile, from_os
from ftransfer.store import base, journal, sync
from ftransfer.store.folders import file_size, open_folder, split, translated, unlink_if_there
from ftransfer.store.renaming import link_new
from ftransfer.store.state import journal_name, receipt_name

if TYPE_CHECKING:
    from ftransfer.store.local import LocalStore

SYNCED_HEAD = 16 << 20
"""From this size on the description is synced before the staged file is made, so that a sweep always finds it."""
WRITE_BACK = 32 << 20
"""Bytes after which the kernel is asked to begin writing out, and how much of the disk is free."""
MAX_COPIES = 10_000
"""Names tried for `if_exists=rename`."""
_STAGED_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalStaging(base.Staging):
    """A staged file next to its target, its journal, and the locks on both."""

    def __init__(self, store: LocalStore, description: base.Description, *, resume: bool):
        self._store = store
        self._description = description
        self._parts, self._name = split(description.path)
        self._folder = self._fd = self._journal = -1
        self._open_offset = self._open_length = self._open_at = 0
        self._unwritten_back = 0
        self.grains = {}
        self.inherited = 0
        with translated(description.path):
            try:
                self._folder = open_folder(store.fd, self._parts, create=True, synced=store.synced)
                self._check_target()
                self._take_up(resume)
            except BaseException:
                self._close()
                store.state.tidy()
                raise

    # Claiming.

    def _check_target(self) -> os.stat_result | None:
        """Return what has the final name now. Raises NotAFile for what a file cannot replace."""
        try:
            found = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(found.st_mode):
            raise NotAFile("a folder has this name", path=self._description.path, hint="add the file's name")
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise NotAFile("a special file has this name", path=self._description.path, hint="choose another name")
        return found

    def _key(self, resume: bool) -> str:
        """Return the journal's name: the same for the same content meant for the same path."""
        d = self._description
        # Without resuming only this very attempt may go on, when it comes back on another connection.
        identity = (d.fingerprint if resume else None) or d.transfer or os.urandom(8).hex()
        return journal_name(d.path, d.size, identity, d.owner)

    def _take_up(self, resume: bool) -> None:
        self._key_name = self._key(resume)
        locked = self._store.state.lock(self._key_name, create=True)
        assert locked is not None
        self._journal = locked
        data = os.pread(self._journal, os.fstat(self._journal).st_size, 0)
        decoded = journal.decode_head(data)
        if decoded is not None:
            self._head, start = decoded
            if (self._head.path, self._head.owner) != (self._description.path, self._description.owner):
                raise Busy("another transfer has the place of this one")  # names are hashes, and hashes can be made
            if self._open_staged():
                limit = os.fstat(self._fd).st_size
                size = self._description.size
                limit = limit if size is None else min(limit, size)
                self.grains = journal.decode_records(data[start:], self._head.salt, limit)
                self.inherited = sum(grain.length for grain in self.grains.values())
                # A torn record at the end would shift those that follow it.
                whole = (len(data) - start) // journal.RECORD_SIZE * journal.RECORD_SIZE
                self._journal_end = start + whole
                self.taken_up = True
                return
        self._start_over()

    def _open_staged(self) -> bool:
        """Open the staged file of an earlier claim; tell whether it is still ours to use."""
        try:
            self._fd = os.open(self._head.staged, _STAGED_FLAGS, dir_fd=self._folder)
        except PermissionError:
            # A commit was cut after it had set the mode of a file that its owner may not write.
            unlink_if_there(self._head.staged, self._folder)
            return False
        except OSError:
            return False
        found = os.fstat(self._fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return True
        # Two links: a commit without replacing was cut between link and unlink, so these bytes are published.
        os.close(self._fd)
        self._fd = -1
        unlink_if_there(self._head.staged, self._folder)
        return False

    def _start_over(self) -> None:
        """Write a new description, then make the staged file, so that there is none that a sweep cannot find."""
        d = self._description
        staged = f"{paths.RESERVED}-{os.urandom(8).hex()}"
        self._head = journal.Head(d.path, staged, d.size, d.fingerprint, int.from_bytes(os.urandom(8)) >> 1, d.owner)
        head = journal.encode_head(self._head)
        try:
            os.ftruncate(self._journal, 0)
            if os.pwrite(self._journal, head, 0) != len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._journal_end = len(head)
            if self._store.capabilities.durable and (d.size or 0) >= SYNCED_HEAD:
                sync.sync_file(self._journal)
            self._fd = os.open(staged, _STAGED_FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        except OSError:
            self._store.state.remove(self._key_name)
            raise
        self.grains = {}
        self.inherited = 0

    def check_space(self) -> None:
        needed = (self._description.size or 0) - self.inherited
        with translated(self._description.path):
            free = self._store.free(self._folder)
            if needed > free:
                # An older version's part may be what fills the disk.
                self._drop_others()
                free = self._store.free(self._folder)
        if needed > free:
            if self.inherited:
                self.release()  # what is there may be gone on with when there is space
            else:
                self.discard()
            raise self._store.no_space(self._description.path, needed, free)

    def _drop_others(self) -> None:
        self._store.drop_others(self._description.path, self._description.owner, self._key_name)

    # Grains.

    def begin(self, offset: int, length: int) -> None:
        self._open_offset, self._open_length, self._open_at = offset, length, offset

    def write(self, data: memoryview) -> None:
        try:
            while data:
                written = os.pwrite(self._fd, data, self._open_at)
                self._open_at += written
                data = data[written:]
        except OSError as exc:
            self._fail(exc)

    def zero(self) -> None:
        try:
            end = self._open_offset + self._open_length
            size = os.fstat(self._fd).st_size
            if self._open_offset < size:
                self.write(memoryview(bytes(min(end, size) - self._open_offset)))
            if end > size:
                os.ftruncate(self._fd, end)
        except OSError as exc:
            self._fail(exc)

    def accept(self, hex_digits: str) -> None:
        grain = base.Grain(self._open_offset, self._open_length, hex_digits)
        record = journal.encode_record(grain, self._head.salt)
        try:
            if os.pwrite(self._journal, record, self._journal_end) != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            self._fail(exc)
        self._journal_end += len(record)
        self.grains[grain.offset] = grain
        self._unwritten_back += grain.length
        if self._unwritten_back >= WRITE_BACK:
            self._look_around(grain.end)

    def _look_around(self, end: int) -> None:
        """Have the kernel begin writing out, and see whether there is still space. Raises DiskError."""
        if self._store.capabilities.durable:
            sync.start_write_back(self._fd, max(0, end - self._unwritten_back), self._unwritten_back)
        self._unwritten_back = 0
        if self._store.keep_free and (free := self._store.free(self._folder)) < 0:
            self.discard()
            raise self._store.no_space(self._description.path, 0, free)

    def reject(self) -> None:
        self._open_length = 0

    def read(self, offset: int, view: memoryview) -> int:
        with translated(self._description.path):
            return os.preadv(self._fd, [view], offset)

    def forget(self, *offsets: int) -> None:
        """Take grains back; the journal is written anew, which is rare and therefore simple."""
        for offset in offsets:
            self.inherited = max(0, self.inherited - self.grains.pop(offset).length)
        head = journal.encode_head(self._head)
        records = b"".join(journal.encode_record(g, self._head.salt) for g in self.grains.values())
        with translated(self._description.path):
            os.pwrite(self._journal, head + records, 0)
            os.ftruncate(self._journal, len(head) + len(records))
        self._journal_end = len(head) + len(records)

    def _fail(self, exc: OSError) -> None:
        """Report a failed write; a full disk keeps nothing of it, so that it is not full any more."""
        if exc.errno in _FULL:
            self.discard()
        raise from_os(exc, self._description.path) from exc

    # The end.

    def commit(self, size: int, hex_digits: str) -> base.Committed:
        durable = self._store.capabilities.durable
        with translated(self._description.path):
            try:
                self._finish_file(size, durable)
                name = self._publish(size, hex_digits)
            except OSError as exc:
                if self._description.transfer:
                    self._store.state.remove_receipt(self._receipt)
                if exc.errno in _FULL:
                    self.discard()
                self._store.state.tidy()
                raise
            if durable:
                sync.sync_folder(self._folder)
        self._store.state.remove(self._key_name)
        self._drop_others()
        self._close()
        self._store.state.tidy()
        return base.Committed("/".join([*self._parts, name]), size, hex_digits, durable)

    def _finish_file(self, size: int, durable: bool) -> None:
        """Give the staged file its length, mode and time, and sync it."""
        d = self._description
        os.ftruncate(self._fd, size)
        os.fchmod(self._fd, self._store.new_file_mode if d.mode is None else d.mode & 0o777)
        if d.mtime_ns is not None:
            os.utime(self._fd, ns=(d.mtime_ns, d.mtime_ns))
        if durable:
            try:
                sync.sync_file(self._fd)
            except OSError:
                self.discard()
                raise

    def _publish(self, size: int, hex_digits: str) -> str:
        """Give the staged file its final name, and return that name."""
        policy = self._description.if_exists
        found = self._check_target()
        if policy == "replace" or (policy == "newer" and (found is None or self._is_newer(found))):
            self._remember(self._name, size, hex_digits)
            with self._store.turn:
                replaced = file_size(self._name, self._folder)
                os.rename(self._head.staged, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self.replaced = replaced
            return self._name
        names: Iterable[str] = [self._name] if policy != "rename" else copies(self._name)
        for name in names:
            self._remember(name, size, hex_digits)
            if link_new(self._head.staged, name, self._folder):
                return name
        self.discard()
        raise AlreadyExists("the name was taken in the meantime", path=self._description.path)

    def _is_newer(self, found: os.stat_result) -> bool:
        ours = self._description.mtime_ns
        return ours is None or ours > found.st_mtime_ns

    @property
    def _receipt(self) -> str:
        return receipt_name(self._description.transfer or "", self._description.owner)

    def _remember(self, name: str, size: int, hex_digits: str) -> None:
        d = self._description
        if not (d.transfer and self._store.receipts):
            return
        found = os.fstat(self._fd)
        record: dict[str, Any] = {
            "asked": d.path,
            "path": "/".join([*self._parts, name]),
            "file": [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns],
            "size": size,
            "hex": hex_digits,
            "owner": d.owner,
        }
        self._store.state.write_receipt(self._receipt, record)

    def release(self) -> None:
        self._close()

    def discard(self) -> None:
        if self._fd >= 0:
            try:
                unlink_if_there(self._head.staged, self._folder)
                self._store.state.remove(self._key_name)
            finally:
                self._close()
            self._store.state.tidy()

    def _close(self) -> None:
        for fd in (self._fd, self._journal, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._journal = self._folder = -1


def copies(name: str) -> Iterator[str]:
    """Yield the names that `if_exists=rename` tries, in order: `a.txt`, `a (1).txt`, `a (2).txt` ..."""
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        stem, dot, suffix = name, "", ""
    yield name
    for number in range(1, MAX_COPIES):
        yield f"{stem} ({number}){dot}{suffix}"

"""Reading many files below one folder on a disk, with few system calls for each. Made by `LocalStore.reader` only.

Nothing outside the folder is read: each part of a path is opened by itself, without following links. Where links are
followed on request, what they say is resolved here, part by part, and may not lead out of the folder.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from typing import TYPE_CHECKING

from ftransfer import paths
from ftransfer.errors import BadPath, NotAFile, NotFound, Refused, SourceChanged, from_os
from ftransfer.store import base
from ftransfer.store.cache import FolderCache
from ftransfer.store.folders import open_folder, translated
from ftransfer.store.trees import Packed, Reader

if TYPE_CHECKING:
    from ftransfer.store.local import LocalStore

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: opening a FIFO must not wait for a writer."""
MOST_HOPS = 40
"""Links that one path may lead through, as in Linux."""
HOLES_FROM = 128 << 10
"""Size from which a file may have holes worth keeping, in bytes."""
_ATTEMPTS = 3


class LocalReader(Reader):
    """Files below a folder on a disk.

    Arguments: `follow`, whether links are followed, as far as they stay below the folder. Raises NotFound, NotAFile.
    """

    def __init__(self, store: LocalStore, path: str, *, follow: bool = False):
        self._store = store
        self._base = path
        self._follow = follow
        with translated(path or store.shown):
            fd = open_folder(store.fd, path.split("/") if path else [], lists=False)
            try:
                self._folders = FolderCache(fd)
            finally:
                os.close(fd)

    def stat(self, path: str) -> base.Entry | None:
        above, _, name = path.rpartition("/")
        try:
            found = os.stat(name, dir_fd=self._folders.get(above), follow_symlinks=False)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise from_os(exc, path) from exc
        return base.entry(path, found)

    def read(self, path: str, view: memoryview, size: int = -1, mtime_ns: int = 0) -> Packed | None:
        if size > len(view):
            return None
        fd = self._open(path)
        try:
            if 0 < size < len(view) and size < HOLES_FROM:
                # One byte more than there should be, to see whether it has grown; at an offset, which no FIFO knows.
                count = os.preadv(fd, [view[: size + 1]], 0)
                found = os.fstat(fd)
                if count == size == found.st_size and found.st_mtime_ns == mtime_ns and stat.S_ISREG(found.st_mode):
                    return Packed(size, mtime_ns, found.st_mode & 0o777)
            return self._read_slowly(fd, path, view)
        except OSError as exc:
            if not stat.S_ISREG(mode := os.fstat(fd).st_mode):
                raise _not_a_file(mode, path) from exc
            raise from_os(exc, path) from exc
        finally:
            os.close(fd)

    @staticmethod
    def _read_slowly(fd: int, path: str, view: memoryview) -> Packed | None:
        """Read a file of which nothing is known, or which has changed since."""
        for _ in range(_ATTEMPTS):
            before = os.fstat(fd)
            size = before.st_size
            if not stat.S_ISREG(before.st_mode):
                raise _not_a_file(before.st_mode, path)
            if size > len(view) or (size >= HOLES_FROM and _has_holes(fd, before)):
                return None
            count = os.preadv(fd, [view[: size + 1]], 0)
            after = os.fstat(fd)
            if count >= size == after.st_size and after.st_mtime_ns == before.st_mtime_ns:
                if count == size:
                    return Packed(size, base.portable_time(after.st_mtime_ns), after.st_mode & 0o777)
                raise NotAFile("the system makes it up while it is read, so it has no size", path=path)
        raise SourceChanged("it was written to while it was read", path=path)

    def _open(self, path: str) -> int:
        above, _, name = path.rpartition("/")
        try:
            return os.open(name, READ_FLAGS, dir_fd=self._folders.get(above))
        except OSError as exc:
            if not (self._follow and exc.errno in (errno.ELOOP, errno.ENOTDIR)):
                raise from_os(exc, path) from exc
        real = resolve(self._folders.get(""), path)
        above, _, name = real.rpartition("/")
        try:
            return os.open(name, READ_FLAGS, dir_fd=self._folders.get(above))
        except OSError as exc:
            raise from_os(exc, path) from exc

    def target(self, path: str) -> str:
        above, _, name = path.rpartition("/")
        try:
            return os.readlink(name, dir_fd=self._folders.get(above))
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise NotAFile("it is not a symbolic link any more", path=path) from exc
            raise from_os(exc, path) from exc

    def open(self, path: str) -> base.Source:
        fd = self._open(path)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise _not_a_file(mode, path)
            if base.has_hidden_bytes(fd):
                raise NotAFile("the system makes it up while it is read, so it has no size", path=path)
            return base.FileSource(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        self._folders.close()


def _not_a_file(mode: int, path: str) -> NotAFile:
    return NotAFile("it is a folder" if stat.S_ISDIR(mode) else "it is a special file", path=path)


def _has_holes(fd: int, found: os.stat_result) -> bool:
    """Tell whether a file has holes; few blocks alone may mean that the file system compresses."""
    if found.st_blocks * 512 >= found.st_size:
        return False
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < found.st_size
    except OSError:
        return False


def resolve(root: int, path: str) -> str:
    """Return the path without links that `path` leads to, below the folder `root`.

    Raises Refused if a link leads out of it, NotAFile for a loop, NotFound.
    """
    left = deque(path.split("/"))
    done: list[str] = []
    hops = 0
    while left:
        part = left.popleft()
        if part == "..":
            if not done:
                raise Refused("a symbolic link leads out of the folder", path=path, hint="--links skip leaves it out")
            done.pop()
        elif part not in ("", "."):
            target = _link_target(root, done, part, path)
            if target is None:
                done.append(part)
                continue
            hops += 1
            if hops > MOST_HOPS:
                raise NotAFile("symbolic links that lead in a circle", path=path, hint="--links skip leaves them out")
            if target.startswith("/"):
                raise Refused("a symbolic link leads out of the folder", path=path, hint="--links skip leaves it out")
            left.extendleft(reversed(target.split("/")))
    try:
        return paths.check("/".join(done), root=True)
    except BadPath as exc:
        raise NotFound("no such file or folder", path=path) from exc


def _link_target(root: int, above: list[str], name: str, path: str) -> str | None:
    """Return what the link says, None if it is none."""
    with translated(path):
        fd = open_folder(root, above)
        try:
            return os.readlink(name, dir_fd=fd)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return None
            raise
        finally:
            os.close(fd)

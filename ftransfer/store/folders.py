"""Folders below a root, opened component by component without following links; the local store's only way to a name.

O_NOFOLLOW guards only the last component of a path, so every component is opened by itself, relative to the one before.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ftransfer.errors import FtransferError, from_os
from ftransfer.store import sync

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def translated(path: str | None = None) -> Iterator[None]:
    """Turn an OSError inside into ours, with the name that the caller may see."""
    try:
        yield
    except FtransferError:
        raise
    except OSError as exc:
        raise from_os(exc, path) from exc


def split(path: str) -> tuple[list[str], str]:
    """Return the folders and the last name of a wire path."""
    *folders, name = path.split("/")
    return folders, name


Link = tuple[int, int, int, int]
"""A folder's entry in the one above it: device and inode of both."""
MOST_LINKS = 10_000
"""Entries that a store remembers as synced."""


class Chain:
    """The entries of folders on the way from the root to a file; what is in a folder is as durable as they are.

    A folder that is there may have been made a moment ago by somebody who has not synced it, or by an earlier try of
    ours, so every entry counts as not synced until it is in `synced`, which the store's threads share.
    """

    def __init__(self, synced: set[Link]):
        self._synced = synced
        self._open: list[tuple[int, Link]] = []

    def add(self, fd: int, inner: int, *, made: bool) -> None:
        """Take note of the folder `inner` in the folder `fd`."""
        above, below = os.fstat(fd), os.fstat(inner)
        link = (above.st_dev, above.st_ino, below.st_dev, below.st_ino)
        if made:
            self._synced.discard(link)  # an inode's number is used again
        if link not in self._synced:
            self._open.append((os.dup(fd), link))

    def sync(self) -> None:
        """Return when all of them are on the disk."""
        for fd, link in self._open:
            sync.sync_folder(fd)
            if len(self._synced) >= MOST_LINKS:
                self._synced.clear()
            self._synced.add(link)

    def close(self) -> None:
        """Let go of the folders."""
        for fd, _ in self._open:
            os.close(fd)
        self._open = []


def open_folder(root_fd: int, parts: list[str], *, create: bool = False, chain: Chain | None = None) -> int:
    """Return a descriptor of the folder, which the caller closes.

    Arguments: `create` makes what is missing; `chain` is told of every folder on the way. Raises OSError.
    """
    fd = os.dup(root_fd)
    try:
        for part in parts:
            made = False
            try:
                inner = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            except FileNotFoundError:
                if not create:
                    raise
                inner = _make(fd, part)
                made = True
            if chain is not None:
                chain.add(fd, inner, made=made)
            os.close(fd)
            fd = inner
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make(fd: int, part: str) -> int:
    try:
        os.mkdir(part, 0o777, dir_fd=fd)
    except FileExistsError:
        pass  # somebody else made it in the meantime, or it is a link, which the next line refuses
    return os.open(part, FOLDER_FLAGS, dir_fd=fd)


@contextmanager
def folder(root_fd: int, parts: list[str]) -> Iterator[int]:
    """Open a folder for the time of a block."""
    fd = open_folder(root_fd, parts)
    try:
        yield fd
    finally:
        os.close(fd)


def unlink_if_there(name: str, dir_fd: int) -> None:
    """Unlink a name; it may be gone already."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def links_refused(exc: OSError) -> bool:
    """Tell whether an os.link failed because this file system has no hard links."""
    return exc.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)

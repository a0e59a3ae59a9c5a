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


class Synced:
    """The entries of folders that are known to be on the disk; what is in a folder is as durable as they are.

    A folder that is there may have been made a moment ago by somebody who has not synced it, or by an earlier try of
    ours, so every entry counts as not synced until it was synced here. Shared by the threads of a store.
    """

    def __init__(self) -> None:
        self._links: set[Link] = set()

    def ensure(self, fd: int, inner: int, *, made: bool) -> None:
        """Return when the entry of the folder `inner` in the folder `fd` is on the disk."""
        above, below = os.fstat(fd), os.fstat(inner)
        link = (above.st_dev, above.st_ino, below.st_dev, below.st_ino)
        if link in self._links and not made:  # an inode's number is used again
            return
        sync.sync_folder(fd)
        if len(self._links) >= MOST_LINKS:
            self._links.clear()
        self._links.add(link)

    def clear(self) -> None:
        """Forget them: folders have been removed, and their numbers are used again."""
        self._links.clear()


def open_folder(root_fd: int, parts: list[str], *, create: bool = False, synced: Synced | None = None) -> int:
    """Return a descriptor of the folder, which the caller closes.

    Arguments: `create` makes what is missing; `synced` makes every folder on the way durable. Raises OSError.
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
            try:
                if synced is not None:
                    synced.ensure(fd, inner, made=made)
            finally:
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


def link_new(staged: str, name: str, dir_fd: int) -> bool:
    """Publish a staged file without replacing anything; tell whether the name was free."""
    try:
        os.link(staged, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if not links_refused(exc):
            raise
        try:
            os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            return False
        except FileNotFoundError:
            os.rename(staged, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    else:
        unlink_if_there(staged, dir_fd)
    return True


def links_refused(exc: OSError) -> bool:
    """Tell whether an os.link failed because this file system has no hard links."""
    return exc.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)

"""Folders below a root, opened component by component without following links; the local store's only way to a name.

O_NOFOLLOW guards only the last component of a path, so every component is opened by itself, relative to the one before.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from ftransfer.errors import FtransferError, NotAFile, from_os
from ftransfer.store import sync

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASS_FLAGS = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""For a folder that only leads on to another one: /home, say, which few may list."""


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


Identity = tuple[int, int]
"""Device and inode of a folder: what tells it from all others that are there."""


def identity(fd: int) -> Identity:
    """Return what folder this is."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


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


def open_folder(
    root_fd: int,
    parts: list[str],
    *,
    create: bool = False,
    synced: Synced | None = None,
    on_made: Callable[[int], None] | None = None,
    lists: bool = True,
) -> int:
    """Return a descriptor of the folder, which the caller closes.

    Arguments: `create` makes what is missing, and tells `on_made` of it; `synced` makes every folder on the way
    durable; `lists`, whether it will be listed or synced: if not, we need only be able to go on from it, by name.
    Raises OSError.
    """
    fd = os.dup(root_fd)
    try:
        is_listed = True
        for left, part in enumerate(parts, 1 - len(parts)):
            made = False
            try:
                inner, listed = enter(part, fd, leads_on=left < 0 or not lists)
            except FileNotFoundError:
                if not create:
                    raise
                if synced is not None and not is_listed:  # then what is made in it cannot be synced
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
                made = make_folder(part, fd)
                inner, listed = os.open(part, FOLDER_FLAGS, dir_fd=fd), True
                if made and on_made is not None:
                    on_made(inner)
                made = True  # by whomever, a moment ago
            try:
                if synced is not None and is_listed:  # what may not even be listed was not made by us
                    synced.ensure(fd, inner, made=made)
            finally:
                os.close(fd)
                fd, is_listed = inner, listed
    except BaseException:
        os.close(fd)
        raise
    return fd


def enter(name: str, dir_fd: int, *, leads_on: bool) -> tuple[int, bool]:
    """Return a descriptor of a folder, and whether it can be listed; if not, it is only good to go on from."""
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=dir_fd), True
    except PermissionError:
        if not leads_on or not hasattr(os, "O_PATH"):
            raise
    return os.open(name, _PASS_FLAGS, dir_fd=dir_fd), False


def make_folder(name: str, dir_fd: int) -> bool:
    """Make a folder; False if the name is taken: by somebody else meanwhile, or by a link, which cannot be opened."""
    try:
        os.mkdir(name, 0o777, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True


def lend_rights(fd: int) -> None:
    """Let ourselves write to a folder of ours that is read-only, until its mode is set again."""
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and found.st_mode & 0o300 != 0o300:
        os.fchmod(fd, found.st_mode & 0o7777 | 0o300)


@contextmanager
def folder(root_fd: int, parts: list[str], *, lists: bool = True) -> Iterator[int]:
    """Open a folder for the time of a block."""
    fd = open_folder(root_fd, parts, lists=lists)
    try:
        yield fd
    finally:
        os.close(fd)


def is_replaceable(folder: int, name: str) -> bool:
    """Return True if a file may take this name. Raises NotAFile."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return True
    what = "folder" if stat.S_ISDIR(mode) else "special file"
    raise NotAFile(f"a {what} has this name", hint="choose another name, or remove it")


def unlink_if_there(name: str, dir_fd: int) -> None:
    """Unlink a name; it may be gone already."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def unlink_counted(name: str, dir_fd: int, turn: Lock, freed: Callable[[int], None] | None) -> None:
    """Unlink a name, and tell how many bytes went with it. Raises OSError.

    Arguments: `turn`, which whoever counts takes between looking at a name and changing it, so that what goes is
    counted once.
    """
    if freed is None:
        os.unlink(name, dir_fd=dir_fd)
        return
    with turn:
        size = file_size(name, dir_fd)
        os.unlink(name, dir_fd=dir_fd)
    freed(size)


def file_size(name: str, dir_fd: int) -> int:
    """Return the size of a regular file, 0 for anything else or nothing."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0

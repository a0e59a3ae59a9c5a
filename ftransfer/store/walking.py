"""Going through folders of any depth with one descriptor and no recursion, without following links.

Whoever may write below the root decides how deep it is; neither the stack nor the descriptors of the server depend on
it. The way back up is `..`, which counts only if it is the folder that we came from: a folder that somebody moved
meanwhile does not lead out of the root. Used by the local store only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from threading import Lock

from ftransfer import paths
from ftransfer.errors import FtransferError, NotAFile, NotFound, Refused, from_os
from ftransfer.store.base import Enters, Freed, OnError, always, pass_over
from ftransfer.store.folders import FOLDER_FLAGS, Identity, identity, open_folder, translated, unlink_counted
from ftransfer.store.reading import resolve

FAR = 200
"""Characters of a path that is neither too long nor too deep, whatever it is."""


class _Level:
    """A folder that the walk is in: what its entries begin with, the names that are left, and the way back."""

    __slots__ = ("identity", "kept", "names", "prefix")

    def __init__(self, prefix: str, fd: int, kept: int):
        self.prefix = prefix
        self.names = iter(sorted(os.listdir(fd)))
        self.identity = identity(fd)
        self.kept = kept
        """The folder above, where a link led here; else -1, and the way back is `..`."""


def walk(
    top: int, *, recursive: bool, follow: bool = False, on_error: OnError = pass_over, enters: Enters = always
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path, status) of what is in the folder behind a descriptor, sorted by name, each folder before its own.

    What no request could name is left out: reserved names, and, told to `on_error`, names that are no UTF-8, paths too
    long or too deep. Arguments: `follow` shows what links lead to, where that is below the folder; `enters` tells
    which folders are looked into. Raises OSError.
    """
    fd = os.dup(top)
    levels: list[_Level] = []
    try:
        levels.append(_Level("", fd, -1))
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                fd = _leave(levels, top, fd, on_error)
                continue
            path = level.prefix + name
            try:
                if not (paths.is_plain_name(name) and len(path) < FAR):
                    paths.check(path)
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if linked := follow and stat.S_ISLNK(found.st_mode):
                    found = _look(top, path)
            except (OSError, FtransferError) as exc:
                _tell(path, exc, on_error)
                continue
            yield path, found
            if recursive and stat.S_ISDIR(found.st_mode) and enters(path):
                fd = _enter(levels, path, fd, top if linked else -1, on_error)
    finally:
        os.close(fd)
        for level in levels:
            if level.kept >= 0:
                os.close(level.kept)


def _tell(path: str, exc: OSError | FtransferError, on_error: OnError) -> None:
    """Tell of a name that cannot be used, or a link that cannot be followed; not of what was removed meanwhile."""
    if isinstance(exc, NotFound):
        exc = NotAFile("a symbolic link that leads nowhere", path=path, hint="--links skip leaves it out")
    elif not isinstance(exc, (FtransferError, FileNotFoundError)):
        exc = from_os(exc, path)
    if isinstance(exc, FtransferError) and not paths.is_reserved(path.rpartition("/")[2]):
        on_error(path, exc)


def _look(top: int, link: str) -> os.stat_result:
    """Return what is where a link leads to."""
    path = resolve(top, link)
    if not path:
        return os.fstat(top)
    above, _, name = path.rpartition("/")
    with translated(path):
        fd = open_folder(top, above.split("/") if above else [])
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)


def _enter(levels: list[_Level], path: str, fd: int, linked_below: int, on_error: OnError) -> int:
    """Go into a folder, or, below `linked_below`, into the one that a link leads to; return where the walk is now."""
    inner = -1
    try:
        if linked_below < 0:
            inner = os.open(path.rpartition("/")[2], FOLDER_FLAGS, dir_fd=fd)
            if not os.access("..", os.F_OK, dir_fd=inner):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # it can be read, but not gone through
        else:
            real = resolve(linked_below, path)
            inner = open_folder(linked_below, real.split("/") if real else [])
            if identity(inner) in [level.identity for level in levels]:
                raise NotAFile("symbolic links that lead in a circle", path=path, hint="--links skip leaves them out")
        levels.append(_Level(path + "/", inner, -1 if linked_below < 0 else fd))
    except (FtransferError, OSError) as raised:
        if inner >= 0:
            os.close(inner)
        exc = raised if isinstance(raised, FtransferError) else from_os(raised, path)
        if not isinstance(exc, (NotFound, NotAFile, Refused)):
            raise
        on_error(path, exc)
        return fd
    if linked_below < 0:
        os.close(fd)
    return inner


def _leave(levels: list[_Level], top: int, fd: int, on_error: OnError) -> int:
    """Go up from the folder that the walk is in, past those that somebody moved meanwhile; return where it is then."""
    left = levels.pop()
    while levels:
        above = levels[-1]
        try:
            return _back(fd, left.kept, above.identity)
        except OSError:
            pass  # the way back is no more; perhaps it is still there by its name
        path = above.prefix.rstrip("/")
        try:
            again = open_folder(top, path.split("/") if path else [])
            if identity(again) == above.identity:
                os.close(fd)
                return again
            os.close(again)
        except OSError:
            pass
        on_error(path, NotFound("it was moved or removed while it was read", path=path))
        left = levels.pop()
    return fd


def _back(fd: int, kept: int, expected: Identity) -> int:
    """Leave a folder for the one above it, through which the walk came."""
    if kept < 0:
        return _up(fd, expected)
    os.close(fd)
    return kept


def remove_tree(name: str, dir_fd: int, turn: Lock, freed: Freed | None = None) -> None:
    """Remove the folder `name` and all that is below it. Raises OSError.

    Arguments: `freed` is told of the bytes of each file, except of those that the store keeps for itself; `turn`, which
    is taken for that.
    """
    fd = os.open(name, FOLDER_FLAGS, dir_fd=dir_fd)
    try:
        stack = [(name, _remove_files(fd, turn, freed), identity(fd), freed)]
        while True:
            this, folders, _, counted = stack[-1]
            if folders:
                inner_name = folders.pop()
                inner = os.open(inner_name, FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
                counted = None if paths.is_reserved(inner_name) else counted
                stack.append((inner_name, _remove_files(fd, turn, counted), identity(fd), counted))
                continue
            stack.pop()
            if not stack:
                break
            fd = _up(fd, stack[-1][2])
            os.rmdir(this, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _remove_files(fd: int, turn: Lock, freed: Freed | None) -> list[str]:
    """Remove what is no folder, and return the names of the folders."""
    folders = []
    with os.scandir(fd) as scan:
        for entry in scan:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            try:
                unlink_counted(entry.name, fd, turn, None if paths.is_reserved(entry.name) else freed)
            except FileNotFoundError:
                pass  # it was removed meanwhile
    return folders


def _up(fd: int, expected: Identity) -> int:
    """Close a folder and return the one above it, if that is still the expected one."""
    above = os.open("..", FOLDER_FLAGS, dir_fd=fd)
    if identity(above) != expected:
        os.close(above)
        raise OSError(errno.ENOENT, "the folder was moved meanwhile")
    os.close(fd)
    return above

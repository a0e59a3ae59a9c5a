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

from ftransfer import paths
from ftransfer.errors import BadPath
from ftransfer.store.folders import FOLDER_FLAGS, unlink_if_there

Identity = tuple[int, int]
"""Device and inode of a folder."""


def walk(top: int, *, recursive: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path, status) of what is in the folder behind a descriptor, sorted by name, each folder before its own.

    What no request could name is left out: reserved names, names that are no UTF-8, paths too long or too deep.
    Raises OSError.
    """
    fd = os.dup(top)
    try:
        stack = [("", iter(sorted(os.listdir(fd))), _identity(fd))]
        while stack:
            prefix, names, _ = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                fd = _up(fd, stack[-1][2]) if stack else fd
                continue
            try:
                path = paths.check(prefix + name)
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except (BadPath, FileNotFoundError):
                continue  # not for the wire, or removed since it was listed
            yield path, found
            if recursive and stat.S_ISDIR(found.st_mode):
                try:
                    inner = os.open(name, FOLDER_FLAGS, dir_fd=fd)
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    continue  # listed, but cannot be looked into
                os.close(fd)
                fd = inner
                stack.append((path + "/", iter(sorted(os.listdir(fd))), _identity(fd)))
    finally:
        os.close(fd)


def remove_tree(name: str, dir_fd: int) -> None:
    """Remove the folder `name` and all that is below it. Raises OSError."""
    fd = os.open(name, FOLDER_FLAGS, dir_fd=dir_fd)
    try:
        stack = [(name, _remove_files(fd), _identity(fd))]
        while True:
            this, folders, _ = stack[-1]
            if folders:
                inner_name = folders.pop()
                inner = os.open(inner_name, FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
                stack.append((inner_name, _remove_files(fd), _identity(fd)))
                continue
            stack.pop()
            if not stack:
                break
            fd = _up(fd, stack[-1][2])
            os.rmdir(this, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _remove_files(fd: int) -> list[str]:
    """Remove what is no folder, and return the names of the folders."""
    folders = []
    with os.scandir(fd) as scan:
        for entry in scan:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                unlink_if_there(entry.name, fd)
    return folders


def _identity(fd: int) -> Identity:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _up(fd: int, expected: Identity) -> int:
    """Close a folder and return the one above it, if that is still the expected one."""
    above = os.open("..", FOLDER_FLAGS, dir_fd=fd)
    if _identity(above) != expected:
        os.close(above)
        raise OSError(errno.ENOENT, "the folder was moved meanwhile")
    os.close(fd)
    return above

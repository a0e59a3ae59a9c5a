"""Giving a file or folder a name that is free, in one step: what has the name already is never touched.

By a hard link, where there are some; else by a rename that the system refuses if the name is taken. Called by the local
store only.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable

from ftransfer.store.folders import unlink_if_there

_NOREPLACE = 1  # RENAME_NOREPLACE, renameat2(2)
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""What says that the system, or the file system, does not know such a rename."""


def link_new(staged: str, name: str, dir_fd: int) -> bool:
    """Publish a staged file without replacing anything; tell whether the name was free."""
    try:
        move_new(staged, dir_fd, name, dir_fd, is_folder=False)
    except FileExistsError:
        return False
    return True


def move_new(name: str, dir_fd: int, target: str, target_fd: int, *, is_folder: bool) -> None:
    """Rename without replacing. Raises FileExistsError, OSError."""
    if not is_folder:
        try:
            os.link(name, target, src_dir_fd=dir_fd, dst_dir_fd=target_fd, follow_symlinks=False)
        except OSError as exc:
            if not _links_refused(exc):
                raise
        else:
            unlink_if_there(name, dir_fd)
            return
    call = _renameat2()
    if call is None or not call(name, dir_fd, target, target_fd):
        _look_and_rename(name, dir_fd, target, target_fd)


def _look_and_rename(name: str, dir_fd: int, target: str, target_fd: int) -> None:
    """Rename if the name is free, where the system has nothing better than to look first."""
    try:
        os.stat(target, dir_fd=target_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, target, src_dir_fd=dir_fd, dst_dir_fd=target_fd)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _links_refused(exc: OSError) -> bool:
    """Tell whether an os.link failed because this file system has no hard links."""
    return exc.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@functools.cache
def _renameat2() -> Callable[[str, int, str, int], bool] | None:
    """Return the system's rename that replaces nothing, if it has one; it tells whether the file system knows it."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, OSError, AttributeError):
        return None

    def rename(name: str, dir_fd: int, target: str, target_fd: int) -> bool:
        if not call(dir_fd, os.fsencode(name), target_fd, os.fsencode(target), _NOREPLACE):
            return True
        number = ctypes.get_errno()
        if number in _UNKNOWN:
            return False
        raise OSError(number, os.strerror(number))

    return rename

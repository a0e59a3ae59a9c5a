"""Making bytes and names survive a power cut, on each system its own way. Called by the local store only."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import sys
from collections.abc import Callable

_WRITE_NOW = 2  # SYNC_FILE_RANGE_WRITE, sync_file_range(2)


def sync_file(fd: int) -> None:
    """Return when the file's bytes are on the disk. Raises OSError; after that the cached bytes cannot be trusted."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_folder(fd: int) -> None:
    """Return when the names in the folder are on the disk."""
    os.fsync(fd)


def syncs_file_systems() -> bool:
    """Tell whether `sync_file_system` works: it has to say whether it did (since Linux 5.8, syncfs(2))."""
    return _syncfs() is not None


def sync_file_system(fd: int) -> None:
    """Return when all that was written to the file system of `fd` is on the disk. Raises OSError."""
    call = _syncfs()
    assert call is not None
    call(fd)


@functools.cache
def _syncfs() -> Callable[[int], None] | None:
    """Return the system's call, if it has one that reports failures."""
    if not sys.platform.startswith("linux") or tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (5, 8):
        return None
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).syncfs
    except (ImportError, OSError, AttributeError):
        return None

    def sync(fd: int) -> None:
        if call(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return sync


@functools.cache
def _write_back() -> Callable[[int, int, int], None] | None:
    """Return the system's call, if it has one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes  # here, because only a durable store needs it
    except (ImportError, OSError):
        return None  # no library, or no descriptor left to read it with: it is only a hint

    call = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return lambda fd, offset, length: call(fd, offset, length, _WRITE_NOW)  # a hint: the final sync says what fails


def start_write_back(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing these bytes out now, so that the sync at the end finds little left to do."""
    call = _write_back()
    if call is not None:
        call(fd, offset, length)

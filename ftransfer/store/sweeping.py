"""Removing what writers that were killed have left below a root.

Never touches what somebody is writing: that is locked. Called by `LocalStore.sweep` only.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import TYPE_CHECKING

from ftransfer import paths
from ftransfer.errors import Busy, FtransferError
from ftransfer.store.folders import folder
from ftransfer.store.local_trees import JOURNAL as TREE_JOURNAL

if TYPE_CHECKING:
    from ftransfer.store.local import LocalStore
    from ftransfer.store.state import StateFolder

KEEP_OUT_OF_REACH = 180 * 86400
"""Seconds that a journal is kept whose folder cannot be found: its disk may come back, or be one of another machine."""
PROBE_SECONDS = 60
"""Seconds after which the file of a probe belongs to nobody."""


def sweep_probes(state: StateFolder) -> None:
    """Remove the files of probes that were cut."""
    now = time.time_ns()
    for name in state.names(".probe"):
        if now - state.mtime_ns(name) > PROBE_SECONDS * 10**9:
            state.remove(name)


def sweep_trees(store: LocalStore) -> None:
    """Remove the staged files of groups that nobody writes any more."""
    for name in store.state.names(TREE_JOURNAL):
        try:
            fd = store.state.lock(name, create=False)
        except (Busy, OSError):
            continue
        if fd is None:
            continue
        try:
            token = name.removesuffix(TREE_JOURNAL)
            with open(fd, "rb", closefd=False) as journal:
                reached = [_sweep_record(store, token, line) for line in journal]
            age = time.time_ns() - store.state.mtime_ns(name)
            if all(reached) or not store.is_apart or age > KEEP_OUT_OF_REACH * 10**9:
                store.state.remove(name)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def _sweep_record(store: LocalStore, token: str, line: bytes) -> bool:
    """Remove what is staged in the folder that one line of a journal announced; a torn line announced nothing.

    Returns False if that folder cannot be found.
    """
    try:
        where, above = json.loads(line)
        whole = paths.check("/".join(part for part in (where, above) if part), root=True)
        with folder(store.fd, whole.split("/") if whole else []) as fd:
            for name in os.listdir(fd):
                if name.startswith(f"{paths.RESERVED}-{token}-"):
                    _unlink(name, fd)
    except OSError:
        return False
    except (ValueError, TypeError, RecursionError, FtransferError):
        pass  # not a record
    return True


def _unlink(name: str, folder_fd: int) -> None:
    try:
        os.unlink(name, dir_fd=folder_fd)
    except OSError:
        pass  # gone, or a folder that somebody has called so

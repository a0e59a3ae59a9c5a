"""The user's state folder: what the client and the server remember between runs, readable by nobody else.

`FTRANSFER_STATE`, else `$XDG_STATE_HOME/ftransfer`, else `~/.local/state/ftransfer`. Used by `tokens`, `users`, `known`
and `tls`. Each file is replaced in one step, so that a reader sees the old one or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftransfer.errors import FtransferError, Refused, from_os

MAX_FILE = 16 << 20
"""Bytes of a file that are read."""
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


def default_path() -> str:
    """Return where the state is kept unless somebody says otherwise."""
    path = os.environ.get("FTRANSFER_STATE")
    if path:
        return path
    base = os.environ.get("XDG_STATE_HOME")
    return os.path.join(base or os.path.expanduser("~/.local/state"), "ftransfer")


class StateDir:
    """A folder of small files.

    Arguments: `path`, None for the default one. It is made, with mode 0700, when something is first written.
    Every method raises Refused for a folder that others can write to, and what the disk says. Root may use that of a
    service; what it makes there belongs to the service.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self.path = os.path.abspath(os.fspath(path) if path is not None else default_path())

    def where(self, name: str) -> str:
        """Return the whole path of a file in it."""
        return os.path.join(self.path, name)

    def made(self) -> str:
        """Return the folder's path; make it if it is missing. Raises Refused, DiskError."""
        return self._folder("x")

    def _folder(self, name: str) -> str:
        """Make the folder of a file if it is missing, and return it once it is known to be ours alone."""
        folder = os.path.dirname(self.where(name))
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            if folder != self.path and not os.path.isdir(folder):
                os.makedirs(folder, 0o700, exist_ok=True)
                self._hand_over(folder, self.path)
        except OSError as exc:
            raise _explained(exc, self.path) from exc
        self._check(os.stat(folder))
        return folder

    def _check(self, found: os.stat_result) -> None:
        us = os.geteuid()
        if (us != 0 and found.st_uid not in (us, 0)) or found.st_mode & 0o022:
            raise Refused(
                f"the state folder {self.path} belongs to somebody else, or others may write to it",
                hint="chmod go-w it, or name another one: --state DIR, FTRANSFER_STATE",
            )

    def lies_in(self, folder: str | os.PathLike[str]) -> bool:
        """Tell whether this folder is, or will be, below another one, or is that one."""
        try:
            other = os.stat(folder)
        except OSError:
            return False
        here = os.path.realpath(self.path)
        while True:
            try:
                if os.path.samestat(os.stat(here), other):
                    return True
            except OSError:
                pass  # not made yet
            above = os.path.dirname(here)
            if above == here:
                return False
            here = above

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if there is none."""
        try:
            fd = os.open(self.where(name), os.O_RDONLY | _FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise _explained(exc, self.where(name)) from exc
        with open(fd, "rb") as file:
            self._check(os.fstat(fd))
            return file.read(MAX_FILE)

    def write(self, name: str, data: bytes) -> None:
        """Give a file these bytes, durably, in one step."""
        folder = self._folder(name)
        temporary = os.path.join(folder, f".{os.path.basename(name)[:100]}.{os.urandom(6).hex()}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
            try:
                self._hand_over(fd, folder)
                with open(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(fd)
                os.rename(temporary, self.where(name))
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as exc:
            raise _explained(exc, self.where(name)) from exc

    @staticmethod
    def _hand_over(made: int | str, folder: str) -> None:
        """Give a new file or folder to whom the folder belongs: root may look after the state of a service."""
        owner = os.stat(folder)
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.chown(made, owner.st_uid, owner.st_gid)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted."""
        try:
            return sorted(os.listdir(self.where(folder)))
        except OSError:
            return []

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        try:
            os.unlink(self.where(name))
        except OSError:
            pass

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object that a file holds, empty if there is none. Raises Refused for what is not one."""
        data = self.read(name)
        if data is None:
            return {}
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(f"{self.where(name)} is damaged", hint="put a copy back, or remove it and begin anew")
        return found

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Give a file an object."""
        self.write(name, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Be the only one who changes a file, among all processes and threads, for the time of a block."""
        folder = self._folder(name)
        try:
            fd = os.open(self.where(f"{name}.lock"), os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
            self._hand_over(fd, folder)
        except OSError as exc:
            raise _explained(exc, self.where(name)) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def stamp(self, name: str) -> tuple[int, int, int] | None:
        """Return what changes whenever a file does, None if there is none."""
        try:
            found = os.stat(self.where(name), follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _explained(exc: OSError, path: str) -> FtransferError:
    error = from_os(exc)
    error.message = f"the state file {path}: {error.message}"
    error.hint = "name another state folder: --state DIR, FTRANSFER_STATE"
    return error

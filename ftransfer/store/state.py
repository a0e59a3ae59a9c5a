"""The root's `.ftransfer/` folder: journals by name and lock, records of what was committed.

Used by the local store only.

The state of a transfer lives here and in its staged file, not in a process: any process that serves the same root
goes on from it. A lock (`flock`) on the journal is what makes somebody its only writer.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from typing import Any, Final

from ftransfer import paths
from ftransfer.errors import Busy, FtransferError, Refused, from_os
from ftransfer.store.folders import FOLDER_FLAGS, translated, unlink_if_there
from ftransfer.xxh import xxh3_64_intdigest, xxh3_128_hexdigest

FOLDER = paths.RESERVED
JOURNAL = ".journal"
RECEIPTS = "receipts"
_ATTEMPTS = 100
CLOCK_STEPS = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)
"""Resolutions of file times that exist, in nanoseconds."""


def journal_prefix(path: str) -> str:
    """Return what the names of all journals of a path begin with."""
    return f"{xxh3_128_hexdigest(path.encode())}-"


def journal_name(path: str, size: int | None, identity: str, owner: str) -> str:
    """Return the name of a journal: the same for the same content meant for the same path by the same owner.

    What an owner has staged can be counted by the names alone, so these say the owner and the size.
    """
    prefix = f"{journal_prefix(path)}{xxh3_64_intdigest(f'{size} {identity}'.encode()):016x}"
    if not owner:
        return prefix + JOURNAL
    return f"{prefix}-{'' if size is None else f'{size:x}'}-{_tag(owner)}{JOURNAL}"


def is_of(name: str, owner: str) -> bool:
    """Tell whether a journal is of this owner."""
    if not owner:
        return name.count("-") == 1
    return name.endswith(f"-{_tag(owner)}{JOURNAL}")


def announced(name: str) -> int | None:
    """Return the size in a journal's name, None for a stream, or where the name does not tell."""
    parts = name.split("-")
    try:
        return int(parts[2], 16) if len(parts) == 4 and parts[2] else None
    except ValueError:
        return None


def receipt_name(transfer: str, owner: str) -> str:
    """Return the name of the record of what a transfer of an owner committed."""
    return f"{transfer}-{_tag(owner)}" if owner else transfer


def _tag(owner: str) -> str:
    return f"{xxh3_64_intdigest(owner.encode()):016x}"


_PLAIN_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: opening a FIFO that somebody put there must not wait."""


def _regular(fd: int, name: str) -> int:
    """Return a descriptor that is of a regular file. Raises Refused."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise Refused(f"{name} in the staging area is not a file", hint=f"remove {FOLDER} from the served folder")


_MISSING: Final = None
_FOREIGN: Final = -1


def _is_trusted(fd: int) -> bool:
    """Tell whether a folder is ours and nobody else may write to it."""
    found = os.fstat(fd)
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


class StateFolder:
    """`.ftransfer/` below a root; made when it is needed, gone when it is empty."""

    def __init__(self, root_fd: int):
        self._root_fd = root_fd

    def _open(self, *, create: bool) -> int | None:
        for _ in range(_ATTEMPTS):
            name, fd = self._find()
            if fd is not None or not create:
                return fd
            try:
                os.mkdir(name, 0o700, dir_fd=self._root_fd)
            except FileExistsError:
                pass  # somebody else made it; or removed it, empty, before we looked: once more
            except OSError as exc:
                raise from_os(exc, "the target folder") from exc
        raise Busy("the staging area changes too fast")

    def _find(self) -> tuple[str, int | None]:
        """Return the folder's name and a descriptor of it, or None in its place if it is still to be made.

        Whoever can write to it could make us rename and remove files, so another user's is passed by: in a folder that
        users share each has one of their own, which comes first, so that it stays in use when the other's has gone.
        """
        ours = f"{FOLDER}-{os.geteuid()}"
        found = self._open_trusted(ours)
        if found is _MISSING or found is _FOREIGN:
            common = self._open_trusted(FOLDER)
            if common is not _FOREIGN:
                return FOLDER, common
            if found is _FOREIGN:
                raise Refused(
                    f"{ours} belongs to somebody else, or others may write to it",
                    hint="choose another folder, or remove it",
                )
        return ours, found

    def _open_trusted(self, name: str) -> int | None:
        """Return a descriptor, _MISSING if there is none of that name, _FOREIGN if it is not for us."""
        try:
            fd = os.open(name, FOLDER_FLAGS, dir_fd=self._root_fd)
        except FileNotFoundError:
            return _MISSING
        except PermissionError:
            return _FOREIGN
        except OSError as exc:
            raise from_os(exc, name) from exc
        if _is_trusted(fd) or not self._keeps_owners():
            return fd
        os.close(fd)
        return _FOREIGN

    def _keeps_owners(self) -> bool:
        """Tell whether this file system keeps owners and modes; where it keeps none, they say nothing."""
        probe = f"{FOLDER}-{os.urandom(8).hex()}"
        try:
            os.mkdir(probe, 0o700, dir_fd=self._root_fd)
        except OSError:
            return True
        try:
            fd = os.open(probe, FOLDER_FLAGS, dir_fd=self._root_fd)
            try:
                return _is_trusted(fd)
            finally:
                os.close(fd)
        finally:
            os.rmdir(probe, dir_fd=self._root_fd)

    def lock(self, name: str, *, create: bool) -> int | None:
        """Return a descriptor of the journal, locked by us alone, or None if there is none and it is not to be made.

        Raises Busy if another writer has it. The name is looked at again after locking: it may have been removed
        between opening and locking.
        """
        with translated():
            for _ in range(_ATTEMPTS):
                fd = self._open_journal(name, create)
                if fd is None:
                    return None
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is(name, fd):
                        return fd
                except BlockingIOError:
                    os.close(fd)
                    raise Busy("another connection is writing this transfer") from None
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)
        raise Busy("the staging area changes too fast")

    def _open_journal(self, name: str, create: bool) -> int | None:
        flags = os.O_RDWR | _PLAIN_FLAGS | (os.O_CREAT if create else 0)
        while True:
            folder = self._open(create=create)
            if folder is None:
                return None
            try:
                return _regular(os.open(name, flags, 0o600, dir_fd=folder), name)
            except FileNotFoundError:
                if not create:
                    return None
                # the empty folder was removed between the two calls; make it again
            finally:
                os.close(folder)

    def _is(self, name: str, fd: int) -> bool:
        found = self._stat(name)
        return found is not None and os.path.samestat(found, os.fstat(fd))

    def _stat(self, name: str) -> os.stat_result | None:
        folder = self._open(create=False)
        if folder is None:
            return None
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        finally:
            os.close(folder)

    def names(self, suffix: str) -> list[str]:
        """Return the names that end so, sorted."""
        folder = self._open(create=False)
        if folder is None:
            return []
        try:
            return sorted(name for name in os.listdir(folder) if name.endswith(suffix))
        finally:
            os.close(folder)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is not there."""
        folder = self._open(create=False)
        return None if folder is None else _read(name, folder)

    def mtime_ns(self, name: str) -> int:
        """Return when a file was last written, 0 if it is not there."""
        found = self._stat(name)
        return found.st_mtime_ns if found else 0

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        folder = self._open(create=False)
        if folder is None:
            return
        try:
            unlink_if_there(name, folder)
        finally:
            os.close(folder)

    def probe_clock(self) -> int:
        """Return the resolution of this file system's times, in nanoseconds, by setting one and looking at it."""
        asked = 1_234_567_891_999_999_999  # an odd second, and all digits of its fraction at their highest
        name = f"clock-{os.urandom(8).hex()}.probe"
        try:
            fd = self._open_journal(name, True)
            assert fd is not None
        except (OSError, FtransferError):
            return 1  # nothing can be made here, so nobody knows; then a time that differs is a difference
        try:
            os.utime(fd, ns=(asked, asked))
            kept = os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)
            self.remove(name)
            self.tidy()
        return next((step for step in CLOCK_STEPS if asked // step * step == kept), 1)

    def probe_folding(self) -> list[str]:
        """Return what this file system takes for the same name: "case", "form" (of Unicode); by making one."""
        folds = []
        token = os.urandom(8).hex()
        for what, made, asked in (("case", "A", "a"), ("form", "\u00e9", "e\u0301")):
            name = f"fold-{token}-{made}.probe"
            try:
                fd = self._open_journal(name, True)
                assert fd is not None
                os.close(fd)
            except (OSError, FtransferError):
                continue  # nothing can be made here
            try:
                if self._stat(f"fold-{token}-{asked}.probe") is not None:
                    folds.append(what)
            finally:
                self.remove(name)
                self.tidy()
        return folds

    def tidy(self) -> None:
        """Remove the folder if nothing is in it."""
        state, fd = self._find()
        if fd is None:
            return
        try:
            for name, above in ((RECEIPTS, fd), (state, self._root_fd)):
                try:
                    os.rmdir(name, dir_fd=above)
                except OSError:
                    pass  # in use, or gone
        finally:
            os.close(fd)

    # Records of what was committed; names as `receipt_name` makes them.

    def write_receipt(self, name: str, record: dict[str, Any]) -> None:
        """Remember what a transfer is about to commit; it counts only if the target is then that very file."""
        folder = self._open(create=True)
        assert folder is not None
        try:
            fd = self._create_receipt(folder, name)
        finally:
            os.close(folder)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(record, file)

    @staticmethod
    def _create_receipt(folder: int, name: str) -> int:
        """Return a descriptor of the empty record; others may make, and remove, the empty folder meanwhile."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _PLAIN_FLAGS
        for _ in range(_ATTEMPTS):
            try:
                os.mkdir(RECEIPTS, 0o700, dir_fd=folder)
            except FileExistsError:
                pass
            try:
                receipts = os.open(RECEIPTS, FOLDER_FLAGS, dir_fd=folder)
            except FileNotFoundError:
                continue
            try:
                return _regular(os.open(name, flags, 0o600, dir_fd=receipts), name)
            except FileNotFoundError:
                continue
            finally:
                os.close(receipts)
        raise Busy("the staging area changes too fast")

    def _open_receipts(self) -> int | None:
        """Return a descriptor of the folder of the records, if there is one."""
        folder = self._open(create=False)
        if folder is None:
            return None
        try:
            return os.open(RECEIPTS, FOLDER_FLAGS, dir_fd=folder)
        except OSError:
            return None  # none there, or somebody has put something else there
        finally:
            os.close(folder)

    def read_receipt(self, name: str) -> dict[str, Any] | None:
        """Return what was remembered of a transfer, or None; a torn record is none."""
        receipts = self._open_receipts()
        data = None if receipts is None else _read(name, receipts)
        try:
            record = dict(json.loads(data)) if data else {}
            paths.check(record["path"])
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return None
        return record if record.keys() >= {"asked", "path", "file", "size", "hex"} else None

    def remove_receipt(self, name: str) -> None:
        """Forget what was remembered of a transfer."""
        receipts = self._open_receipts()
        if receipts is not None:
            try:
                unlink_if_there(name, receipts)
            finally:
                os.close(receipts)

    def sweep_receipts(self, before_ns: int) -> None:
        """Drop records older than that time."""
        receipts = self._open_receipts()
        if receipts is None:
            return
        try:
            for name in os.listdir(receipts):
                try:
                    if os.stat(name, dir_fd=receipts, follow_symlinks=False).st_mtime_ns < before_ns:
                        os.unlink(name, dir_fd=receipts)
                except OSError:
                    pass  # another process swept it, or it is no record
        finally:
            os.close(receipts)


def _read(name: str, folder: int) -> bytes | None:
    """Return the bytes of a file in a folder, whose descriptor is closed, or None if there is no such file."""
    try:
        fd = _regular(os.open(name, os.O_RDONLY | _PLAIN_FLAGS, dir_fd=folder), name)
    except (OSError, Refused):
        return None
    finally:
        os.close(folder)
    with open(fd, "rb") as file:
        return file.read()

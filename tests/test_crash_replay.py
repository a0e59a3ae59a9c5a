"""What a power cut may leave is always the old file or the new one, and the transfer can go on (promises 1 to 5).

The store's calls are recorded, and a model of a disk replays each prefix of them: what was not synced is dropped, torn
or zeroed, names appear in any order that the syncs allow. Each such state is put into a folder and recovered from.
"""

from __future__ import annotations

import builtins
import io
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults import RESERVED, fast_folder, noise

from ftransfer import digests, errors, wire
from ftransfer.digests import block_hash
from ftransfer.receiving import Incoming
from ftransfer.store import staging as staging_module
from ftransfer.store import state as state_module
from ftransfer.store import sync
from ftransfer.store.base import Committed, Description
from ftransfer.store.folders import Synced
from ftransfer.store.local import LocalStore
from ftransfer.store.staging import LocalStaging

SECTOR = 512
GRAIN = 2048
SIZE = 5 * GRAIN + 700
OLD = noise(SIZE - 900, 1)
NEW = noise(SIZE, 2)
MTIME = 1_700_000_000_123_456_789
MODE = 0o640
RETURNED = "returned"

Entries = dict[str, int]


class Op(NamedTuple):
    """One recorded call: `what` was done to inode `at`; the rest depends on it."""

    what: str
    at: int = -1
    name: str = ""
    inode: int = -1
    to: str = ""
    offset: int = 0
    data: bytes = b""
    number: int = 0


class Violation(AssertionError):
    """A promise did not hold after a power cut."""


# Recording.


class Recorder:
    """Writes down what happens below a root, by inodes of its own numbering; number 0 is the root."""

    def __init__(self, root: Path):
        self.ops: list[Op] = []
        self.initial: dict[int, Entries | tuple[bytes, int] | str] = {}
        self._ids: dict[tuple[int, int], int] = {}
        self._scan(root)

    def _scan(self, path: Path) -> int:
        number = self._new(path.lstat())
        if path.is_symlink():
            self.initial[number] = os.readlink(path)
        elif path.is_dir():
            entries: Entries = {}
            self.initial[number] = entries
            for name in sorted(os.listdir(path)):
                entries[name] = self._scan(path / name)
        else:
            self.initial[number] = path.read_bytes(), path.stat().st_mtime_ns
        return number

    def _new(self, found: os.stat_result) -> int:
        self._ids[found.st_dev, found.st_ino] = number = getattr(self, "_count", 0)
        self._count = number + 1
        return number

    def _of(self, fd: int) -> int | None:
        found = os.fstat(fd)
        return self._ids.get((found.st_dev, found.st_ino))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record until the end of the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (
                "pwrite",
                "write",
                "ftruncate",
                "fchmod",
                "utime",
                "mkdir",
                "open",
                "link",
                "rename",
                "unlink",
                "rmdir",
                "symlink",
            ):
                patch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
            patch.setattr(state_module, "open", self._open_file, raising=False)
            patch.setattr(sync, "sync_file", lambda fd: self._add("sync", fd))
            patch.setattr(sync, "sync_folder", lambda fd: self._add("sync", fd))
            patch.setattr(sync, "sync_file_system", lambda _: self.ops.append(Op("sync all")))
            yield

    def _add(self, what: str, fd: int, **rest: Any) -> None:
        at = self._of(fd)
        if at is not None:
            self.ops.append(Op(what, at, **rest))

    def _pwrite(self, real: Callable[..., int]) -> Callable[..., int]:
        def pwrite(fd: int, data: Any, offset: int) -> int:
            count = real(fd, data, offset)
            self._add("write", fd, offset=offset, data=bytes(memoryview(data)[:count]))
            return count

        return pwrite

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, data: Any) -> int:
            count = real(fd, data)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                offset = os.lseek(fd, 0, os.SEEK_CUR) - count
                self._add("write", fd, offset=offset, data=bytes(memoryview(data)[:count]))
            return count

        return write

    def _ftruncate(self, real: Callable[..., None]) -> Callable[..., None]:
        def ftruncate(fd: int, size: int) -> None:
            real(fd, size)
            self._add("truncate", fd, number=size)

        return ftruncate

    def _fchmod(self, real: Callable[..., None]) -> Callable[..., None]:
        def fchmod(fd: int, mode: int) -> None:
            real(fd, mode)
            self._add("mode", fd, number=mode)

        return fchmod

    def _utime(self, real: Callable[..., None]) -> Callable[..., None]:
        def utime(what: Any, **options: Any) -> None:
            real(what, **options)
            if isinstance(what, int):
                self._add("mtime", what, number=options["ns"][1])
                return
            found = os.stat(what, dir_fd=options["dir_fd"], follow_symlinks=False)
            self.ops.append(Op("mtime", self._ids[found.st_dev, found.st_ino], number=options["ns"][1]))

        return utime

    def _symlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def symlink(target: str, name: str, *, dir_fd: int) -> None:
            real(target, name, dir_fd=dir_fd)
            made = self._new(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
            self._add("symlink", dir_fd, name=name, inode=made, to=target)

        return symlink

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def mkdir(name: str, mode: int = 0o777, *, dir_fd: int) -> None:
            real(name, mode, dir_fd=dir_fd)
            made = self._new(os.stat(name, dir_fd=dir_fd))
            self._add("mkdir", dir_fd, name=name, inode=made)

        return mkdir

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(name: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if dir_fd is None or not flags & os.O_CREAT:
                return real(name, flags, mode, dir_fd=dir_fd)
            is_new = True
            try:
                os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                is_new = False
            except FileNotFoundError:
                pass
            fd = real(name, flags, mode, dir_fd=dir_fd)
            if is_new:
                found = os.fstat(fd)
                self._add("create", dir_fd, name=name, inode=self._new(found), number=stat.S_IMODE(found.st_mode))
            elif flags & os.O_TRUNC:
                self._add("truncate", fd, number=0)
            return fd

        return opened

    @contextmanager
    def _open_file(self, fd: int, mode: str, **options: Any) -> Iterator[Any]:
        """Stand in for the builtin, whose writes nobody sees."""
        if "w" not in mode:
            with builtins.open(fd, mode, **options) as file:
                yield file
            return

        text = io.StringIO()
        yield text
        os.write(fd, text.getvalue().encode())
        os.close(fd)

    def _link(self, real: Callable[..., None]) -> Callable[..., None]:
        def link(name: str, to: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool = True) -> None:
            real(name, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
            found = os.stat(to, dir_fd=dst_dir_fd, follow_symlinks=False)
            self._add("link", dst_dir_fd, name=to, inode=self._ids[found.st_dev, found.st_ino])

        return link

    def _rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def rename(name: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            real(name, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            assert self._of(src_dir_fd) == self._of(dst_dir_fd), "the model knows renames within a folder"
            found = os.stat(to, dir_fd=dst_dir_fd, follow_symlinks=False)
            self._add("rename", dst_dir_fd, name=name, to=to, inode=self._ids[found.st_dev, found.st_ino])

        return rename

    def _unlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def unlink(name: str, *, dir_fd: int) -> None:
            real(name, dir_fd=dir_fd)
            self._add("unlink", dir_fd, name=name)

        return unlink

    def _rmdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def rmdir(name: str, *, dir_fd: int) -> None:
            real(name, dir_fd=dir_fd)
            parent, _, last = name.rpartition("/")
            fd = os.open(parent, os.O_RDONLY, dir_fd=dir_fd) if parent else os.dup(dir_fd)
            self._add("unlink", fd, name=last)
            os.close(fd)

        return rmdir


# The model of a disk.

NAMES = ("create", "mkdir", "link", "rename", "unlink", "symlink")


class Choice:
    """What a power cut keeps of what was not synced; each method is asked about one pending call."""

    def __init__(self, rng: random.Random, names: str, data: str, upto: int = 0):
        self._rng, self._names, self._data, self._upto = rng, names, data, upto

    def keeps_name(self, number: int) -> bool:
        """Tell whether a change of a folder is on the disk."""
        if self._names == "prefix":
            return number < self._upto
        return self._names == "all" or (self._names == "some" and self._rng.random() < 0.5)

    def bytes_of(self, op: Op) -> tuple[int, bytes] | None:
        """Return (offset, bytes) of what is there of a write, or None."""
        how = self._data
        if how == "some":
            how = self._rng.choice(["all", "none", "torn", "tail", "zeroed", "journal", "garbage"])
        data, offset = op.data, op.offset
        if how == "journal":  # it is small, and may reach the disk long before the bytes that it speaks of
            how = "all" if len(data) < SECTOR else "zeroed"
        cut = self._rng.randrange(len(data) + 1) // SECTOR * SECTOR
        match how:
            case "all":
                return offset, data
            case "torn":
                return offset, data[:cut]
            case "tail":
                return offset + cut, data[cut:]
            case "zeroed":
                return offset, bytes(len(data))
            case "garbage":
                return offset, data[:cut] + self._rng.randbytes(len(data) - cut)
        return None


class _File:
    """A file's bytes as they would be read, and the calls since the last sync."""

    def __init__(self, data: bytes = b"", mtime: int | None = None, mode: int = 0o600):
        self.synced = (data, mode, mtime)
        self.pending: list[Op] = []

    def after(self, choice: Choice | None) -> tuple[bytes, int, int | None]:
        """Return (bytes, mode, mtime) with all that is pending, or with what a power cut keeps of it."""
        data, mode, mtime = bytearray(self.synced[0]), self.synced[1], self.synced[2]
        for op in self.pending:
            kept = choice is None or choice.keeps_name(0)
            if op.what == "write":
                piece = (op.offset, op.data) if choice is None else choice.bytes_of(op)
                if piece is not None:
                    at, new = piece
                    data.extend(bytes(max(0, at + len(new) - len(data))))
                    data[at : at + len(new)] = new
            elif op.what == "truncate" and kept:
                del data[op.number :]
                data.extend(bytes(op.number - len(data)))
            elif op.what == "mode" and kept:
                mode = op.number
            elif op.what == "mtime" and kept:
                mtime = op.number
        return bytes(data), mode, mtime


def _apply(entries: Entries, op: Op) -> None:
    if op.what in ("create", "mkdir", "link", "symlink"):
        entries[op.name] = op.inode
    elif op.what == "unlink":
        entries.pop(op.name, None)
    elif op.what == "rename":
        entries.pop(op.name, None)
        entries[op.to] = op.inode


class Disk:
    """What is surely on the disk, and what is not, after some calls."""

    def __init__(self, recorder: Recorder, count: int):
        self.files: dict[int, _File] = {}
        self.folders: dict[int, Entries] = {}
        self.links: dict[int, str] = {}
        self.pending: list[Op] = []
        self.returned = False
        self.answers = 0
        for number, what in recorder.initial.items():
            if isinstance(what, tuple):
                self.files[number] = _File(*what)
            elif isinstance(what, str):
                self.links[number] = what
            else:
                self.folders[number] = dict(what)
        for op in recorder.ops[:count]:
            self._take(op)

    def _take(self, op: Op) -> None:
        if op.what == RETURNED:
            self.returned = True
            self.answers += 1
        elif op.what in NAMES:
            self.pending.append(op)
            self._make(op)
        elif op.what == "sync all":
            for number in (*self.folders, *self.files):
                self._sync(number)
        elif op.what == "sync":
            self._sync(op.at)
        elif op.at in self.files:  # times and modes of folders and links are nobody's promise
            self.files[op.at].pending.append(op)

    def _make(self, op: Op) -> None:
        if op.what == "create":
            self.files[op.inode] = _File(mode=op.number)
        elif op.what == "mkdir":
            self.folders[op.inode] = {}
        elif op.what == "symlink":
            self.links[op.inode] = op.to

    def _sync(self, number: int) -> None:
        if number in self.files:
            file = self.files[number]
            file.synced, file.pending = file.after(None), []
            return
        for change in self.pending:
            if change.at == number:
                _apply(self.folders[number], change)
        self.pending = [change for change in self.pending if change.at != number]

    def materialise(self, root: Path, choice: Choice) -> None:
        """Write what a power cut leaves into an empty folder."""
        folders = {number: dict(entries) for number, entries in self.folders.items()}
        for number, op in enumerate(self.pending):
            if choice.keeps_name(number):
                _apply(folders[op.at], op)
        contents = {number: file.after(choice) for number, file in self.files.items()}
        made: dict[int, Path] = {}

        def fill(path: Path, number: int) -> None:
            for name, inode in sorted(folders[number].items()):
                inner = path / name
                if inode in folders:
                    inner.mkdir()
                    fill(inner, inode)
                elif inode in self.links:
                    inner.symlink_to(self.links[inode])
                elif inode in made:
                    os.link(made[inode], inner)
                else:
                    data, mode, mtime = contents[inode]
                    inner.write_bytes(data)
                    inner.chmod(mode)
                    if mtime is not None:
                        os.utime(inner, ns=(mtime, mtime))
                    made[inode] = inner

        fill(root, 0)


def choices(rng: random.Random, disk: Disk, few: int) -> Iterator[Choice]:
    """Yield what may be left: the regular cases, then random ones."""
    for names in ("all", "none"):
        for data in ("all", "none", "zeroed", "torn", "journal"):
            yield Choice(rng, names, data)
    for upto in range(1, len(disk.pending)):
        yield Choice(rng, "prefix", "none", upto)
        yield Choice(rng, "prefix", "all", upto)
    for _ in range(few):
        yield Choice(rng, "some", "some")


# The transfer, as the receiving loop makes it, from a source in memory.


class Line:
    """A channel to a sender that has the bytes: takes messages, gives bodies."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0
        self.scratch = memoryview(bytearray(GRAIN))
        self.block_algorithm = digests.DEFAULT
        self.ranges: list[tuple[int, int]] = []
        self.sent = 0

    def send(self, message: wire.Message) -> None:
        """Take what the receiver says."""
        if isinstance(message, wire.Want):
            self.ranges += [(at, len(self._data) - at if length is None else length) for at, length in message.ranges]

    def read_body(self, view: memoryview) -> None:
        """Give the next bytes of the block."""
        view[:] = self._data[self._at : self._at + len(view)]
        self._at += len(view)

    def blocks(self) -> Iterator[wire.Block]:
        """Yield what was asked for."""
        while self.ranges:
            offset, length = self.ranges.pop(0)
            if length > GRAIN:
                self.ranges.insert(0, (offset + GRAIN, length - GRAIN))
            length = min(length, GRAIN)
            body = self._data[offset : offset + length]
            self._at = offset
            self.sent += length
            yield wire.Block(t=1, offset=offset, hash=block_hash(body), body=length)


class Job(NamedTuple):
    """What is transferred, and how."""

    path: str = "file.bin"
    if_exists: str = "replace"
    old: bytes | None = OLD
    data: bytes = NEW
    stop_after: int | None = None
    """Blocks after which the first connection ends; the second goes on."""

    @property
    def description(self) -> Description:
        return Description(
            self.path, len(self.data), f"{len(self.data)}-{MTIME}", MTIME, MODE, "0123456789abcdef" * 2, self.if_exists
        )

    def lay_out(self, root: Path) -> None:
        """Make what is there before."""
        if self.old is not None:
            (root / self.path).parent.mkdir(parents=True, exist_ok=True)
            (root / self.path).write_bytes(self.old)
            os.utime(root / self.path, (0, 0))

    def run(self, store: LocalStore, *, stop_after: int | None = None) -> Committed | None:
        """Transfer it, as the server does; end early after some blocks."""
        done = store.committed(self.description)
        if done is not None:
            return done
        staging = store.claim(self.description)
        staging.check_space()
        line = Line(self.data)
        incoming = Incoming(staging, self.path, len(self.data), algorithm="xxh128")
        incoming.bind(line, 1, wait=True)  # type: ignore[arg-type]
        count = 0
        try:
            while done is None:
                for block in line.blocks():
                    if count == stop_after:
                        return None
                    incoming.block(block)
                    count += 1
                done = incoming.end(wire.End(t=1, path=self.path, size=len(self.data), hash=block_hash(self.data)))
        finally:
            staging.release()
        return done


def record(job: Job, root: Path) -> Recorder:
    """Run the job and return what it did to the disk."""
    job.lay_out(root)
    recorder = Recorder(root)
    with recorder.watching():
        store = LocalStore(root)
        if job.stop_after is not None:
            assert job.run(store, stop_after=job.stop_after) is None
        done = job.run(store)
        assert done is not None
        assert done.durable
        recorder.ops.append(Op(RETURNED))
        store.close()
    return recorder


def check(job: Job, root: Path, *, returned: bool) -> None:
    """Recover from what a power cut has left. Raises Violation."""
    target = root / job.path
    found = target.read_bytes() if target.exists() else None
    if found not in (job.old, job.data):
        raise Violation(f"the final name shows {describe(found)}")
    if returned and found != job.data:
        raise Violation("the receipt was given, and the file is not there")
    if returned and (target.stat().st_mode & 0o777, target.stat().st_mtime_ns) != (MODE, MTIME):
        raise Violation("the receipt was given, and mode or time are not there")
    visible = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    if stray := [name for name in visible if name != job.path and f"/{name}".find(f"/{RESERVED}") < 0]:
        raise Violation(f"other names are there: {stray}")
    store = LocalStore(root, durable=False)
    try:
        store.sweep()
        try:
            job.run(store)
        except errors.AlreadyExists:
            if found is None:
                raise Violation("the name is free, and yet taken") from None
        except errors.FtransferError as exc:
            raise Violation(f"the next run fails: {exc!r}") from exc
        if target.read_bytes() != job.data:
            raise Violation(f"after the next run the final name shows {describe(target.read_bytes())}")
        if any(RESERVED in name for name in (entry.path for entry in store.entries("", recursive=True))):
            raise Violation("reserved names are listed")
    finally:
        store.close()


def describe(data: bytes | None) -> str:
    """Say what a file holds that is neither old nor new."""
    return "nothing" if data is None else f"{len(data)} bytes, {data.count(0)} of them zeros"


def replay(job: Job, few: int = 4, seed: int = 0) -> int:
    """Check every state that a power cut may leave of this job; return how many there were. Raises Violation."""
    rng = random.Random(seed)
    count = 0
    with fast_folder() as base:
        (base / "live").mkdir()
        recorder = record(job, base / "live")
        for length in range(len(recorder.ops) + 1):
            disk = Disk(recorder, length)
            for choice in choices(rng, disk, few):
                root = base / f"{count}"
                root.mkdir()
                disk.materialise(root, choice)
                check(job, root, returned=disk.returned)
                shutil.rmtree(root)
                count += 1
    return count


JOBS = {
    "over an old file": Job(),
    "a name that was free": Job(old=None),
    "fail if it exists": Job(old=None, if_exists="fail"),
    "newer": Job(if_exists="newer"),
    "resumed": Job(stop_after=3),
    "in new folders": Job(path="a/b/c/file.bin", old=None),
    "resumed in new folders": Job(path="a/b/file.bin", old=None, stop_after=2),
    "empty": Job(data=b"", stop_after=None),
}


@pytest.mark.parametrize("name", JOBS)
def test_every_state_that_a_power_cut_may_leave_is_recovered_from(name: str) -> None:
    """The final name shows the old file or the new one, whole; after the receipt the new one; the next run succeeds."""
    assert replay(JOBS[name]) > 100


def test_a_description_that_is_synced_first_is_recovered_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files sync their description before the staged file is made."""
    monkeypatch.setattr(staging_module, "SYNCED_HEAD", 0)
    assert replay(JOBS["resumed"]) > 100


@pytest.mark.parametrize("seed", range(12))
def test_a_second_power_cut_while_the_first_is_recovered_from(seed: int) -> None:
    """A run that goes on from what a power cut left may be cut itself."""
    rng = random.Random(seed)
    job = rng.choice([JOBS["resumed"], JOBS["fail if it exists"], JOBS["resumed in new folders"]])
    with fast_folder() as base:
        for part in ("live", "cut", "again"):
            (base / part).mkdir()
        first = record(job, base / "live")
        last = next(n for n, op in enumerate(first.ops) if op.what in ("rename", "link"))
        Disk(first, rng.randrange(last)).materialise(base / "cut", Choice(rng, "all", "some"))
        second = Recorder(base / "cut")
        with second.watching():
            store = LocalStore(base / "cut")
            job.run(store)
            second.ops.append(Op(RETURNED))
            store.close()
        for number in range(60):
            disk = Disk(second, rng.randrange(len(second.ops) + 1))
            root = base / "again" / f"{number}"
            root.mkdir()
            disk.materialise(
                root, Choice(rng, rng.choice(["all", "some", "none"]), rng.choice(["all", "some", "none"]))
            )
            check(job, root, returned=disk.returned)


# The checker itself: it has to see what is wrong.


def publish_first(self: LocalStaging, size: int, durable: bool) -> None:
    """Rename before the bytes are synced."""
    os.ftruncate(self._fd, size)
    os.fchmod(self._fd, MODE)
    os.utime(self._fd, ns=(MTIME, MTIME))
    publish = self._publish

    def late(size: int, hex_digits: str) -> str:
        name = publish(size, hex_digits)
        if durable:
            sync.sync_file(self._fd)
        return name

    self._publish = late  # type: ignore[method-assign]


def no_sync(self: LocalStaging, size: int, durable: bool) -> None:  # noqa: ARG001
    """Never sync the bytes."""
    os.ftruncate(self._fd, size)
    os.fchmod(self._fd, MODE)
    os.utime(self._fd, ns=(MTIME, MTIME))


@pytest.mark.parametrize("wrong", [publish_first, no_sync])
@pytest.mark.parametrize("name", ["over an old file", "fail if it exists", "resumed"])
def test_the_checker_sees_a_rename_before_the_sync(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., None], name: str
) -> None:
    """A store that publishes bytes that are not synced is found out."""
    monkeypatch.setattr(LocalStaging, "_finish_file", wrong)
    with pytest.raises(Violation, match="the final name shows"):
        replay(JOBS[name])


def test_the_checker_sees_a_folder_that_is_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt for a name that is not on the disk is found out."""
    monkeypatch.setattr(Recorder, "_add", _without_folder_syncs(Recorder._add))
    with pytest.raises(Violation, match="the receipt was given"):
        replay(JOBS["over an old file"])


def _without_folder_syncs(real: Callable[..., None]) -> Callable[..., None]:
    def add(self: Recorder, what: str, fd: int, **rest: Any) -> None:
        if what != "sync" or stat.S_ISREG(os.fstat(fd).st_mode):
            real(self, what, fd, **rest)

    return add


def test_the_checker_sees_new_folders_that_are_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt for a file in a folder that is not on the disk is found out."""
    monkeypatch.setattr(Synced, "ensure", lambda *_, **__: None)
    with pytest.raises(Violation, match="the receipt was given"):
        replay(JOBS["in new folders"])


def test_the_checker_sees_a_journal_that_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes the journal's word for bytes that are not there is found out."""

    def believe(self: Incoming) -> bool:
        grain = self.staging.grains.get(self.digest.position)
        if grain is None:
            return False
        self.digest.feed(grain.offset, NEW[grain.offset : grain.end])
        return True

    monkeypatch.setattr(Incoming, "catch_up", believe)
    with pytest.raises(Violation):
        replay(JOBS["resumed"])

"""Disks that are full, read-only or failing: the old file is unchanged, the error says what it is (promises 2 to 4)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import PATIENCE, RESERVED, Proxy, noise, reserved, staged

import ftransfer
from ftransfer import errors
from ftransfer.store import staging as staging_module
from ftransfer.store import sync
from ftransfer.store.base import Description, FileSource
from ftransfer.store.local import LocalStore

MIB = 1 << 20
OLD = b"old content"
DIRECTIONS = ("up", "down")
is_root = os.geteuid() == 0


def move(direction: str, url: str, source: Path, target: Path) -> ftransfer.FileResult:
    """Upload to, or download to, the name of `target`."""
    with ftransfer.connect(url, timeout=PATIENCE, retry_for=0) as remote:
        return move_with(remote, direction, source, target)


def move_with(remote: ftransfer.Remote, direction: str, source: Path, target: Path) -> ftransfer.FileResult:
    """Do the same over a connection that stays open."""
    if direction == "up":
        return remote.upload(source, target.name).files[0]
    return remote.download(source.name, target).files[0]


def fails_on_disk(direction: str, url: str, source: Path, target: Path) -> errors.DiskError:
    """Run a transfer that has to fail with the code `disk`, at the right end; return the error."""
    with pytest.raises(errors.DiskError) as caught:
        move(direction, url, source, target)
    assert caught.value.code == "disk"
    assert caught.value.exit_status == (9 if direction == "up" else 8)
    assert caught.value.hint
    return caught.value


def until_refused(act: Callable[[], object]) -> int | None:
    """Repeat something until the system refuses it; return its error number."""
    try:
        while True:
            act()
    except OSError as exc:
        return exc.errno


class Place:
    """A folder for the source and one for the target, which the test may put on a bad disk."""

    def __init__(self, base: Path, direction: str):
        self.direction = direction
        self.root, self.local = base / "root", base / "local"
        self.root.mkdir(exist_ok=True)
        self.local.mkdir(exist_ok=True)
        here, there = (self.local, self.root) if direction == "up" else (self.root, self.local)
        self.source, self.target = here / "file", there / "copy"

    @property
    def where(self) -> Path:
        """The folder of the target."""
        return self.target.parent

    def is_untouched(self) -> bool:
        """Tell whether the old file is there, and nothing else."""
        return self.target.read_bytes() == OLD and sorted(os.listdir(self.where)) == ["copy"]


@pytest.fixture(params=DIRECTIONS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place in which the target has an old version."""
    made = Place(tmp_path, request.param)
    made.target.write_bytes(OLD)
    made.source.write_bytes(noise(3 * MIB))
    return made


@pytest.fixture(params=DIRECTIONS)
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place whose target is on a disk of 2 MiB."""
    if not is_root or not sys.platform.startswith("linux"):
        pytest.skip("NOT TESTED: mounting a small disk needs root on Linux")
    where = tmp_path / ("root" if request.param == "up" else "local")
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=64", "tmpfs", str(where)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED: cannot mount a small disk here: {done.stderr.strip()}")
    try:
        made = Place(tmp_path, request.param)
        made.target.write_bytes(OLD)
        yield made
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_file_that_cannot_fit_is_refused_before_its_first_byte(small_disk: Place) -> None:
    """What is free is asked for at the beginning."""
    small_disk.source.write_bytes(noise(3 * MIB))
    with ftransfer.Server(small_disk.root) as server, Proxy(server.urls[0]) as proxy:
        failed = fails_on_disk(small_disk.direction, proxy.url, small_disk.source, small_disk.target)
        assert proxy.up_bodies <= 2 * MIB
    assert "no space" in str(failed)
    assert small_disk.is_untouched()


def test_a_disk_that_fills_up_in_the_middle(small_disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays, what was staged goes, so that the disk is not full any more; the server goes on."""
    monkeypatch.setattr(staging_module.LocalStaging, "check_space", lambda _: None)
    small_disk.source.write_bytes(noise(3 * MIB))
    with ftransfer.Server(small_disk.root) as server:
        failed = fails_on_disk(small_disk.direction, server.urls[0], small_disk.source, small_disk.target)
        assert "no space left" in str(failed)
        assert small_disk.is_untouched()
        small_disk.source.write_bytes(noise(MIB))
        move(small_disk.direction, server.urls[0], small_disk.source, small_disk.target)
    assert small_disk.target.read_bytes() == noise(MIB)


def test_a_stream_that_fills_the_disk(small_disk: Place) -> None:
    """Nobody can know before that a stream is too long."""
    if small_disk.direction == "down":
        pytest.skip("downloads know their size")
    with ftransfer.Server(small_disk.root) as server, ftransfer.connect(server.urls[0]) as remote:
        with pytest.raises(errors.DiskError, match="no space left"):
            remote.upload((noise(100_000, n) for n in range(40)), "copy")
        assert small_disk.is_untouched()
        remote.upload(b"new", "copy")
    assert small_disk.target.read_bytes() == b"new"


@pytest.mark.parametrize("left", range(8))
def test_a_disk_with_hardly_anything_left(small_disk: Place, left: int) -> None:
    """Wherever the last block or inode goes, journal, staged file, receipt: an error and the old file, or success."""
    small_disk.source.write_bytes(noise(3000))
    filler = small_disk.where / "filler"
    filler.mkdir()
    with ftransfer.Server(small_disk.root) as server:
        numbers = iter(range(1000))

        def take_inode() -> None:
            (filler / f"{next(numbers)}").touch()

        assert until_refused(take_inode) == errno.ENOSPC
        for number in range(left):
            (filler / f"{number}").unlink()
        try:
            move(small_disk.direction, server.urls[0], small_disk.source, small_disk.target)
        except errors.DiskError:
            shutil.rmtree(filler)
            assert small_disk.is_untouched()
        else:
            assert small_disk.target.read_bytes() == noise(3000)
            shutil.rmtree(filler)
        assert reserved(small_disk.where) == []
        small_disk.source.write_bytes(noise(3001))
        move(small_disk.direction, server.urls[0], small_disk.source, small_disk.target)
    assert small_disk.target.read_bytes() == noise(3001)


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4, 5])
def test_a_disk_with_some_blocks_left(small_disk: Place, free: int) -> None:
    """The same for blocks: of 4 KiB each so many are left, which the transfer may not see before it writes."""
    small_disk.source.write_bytes(noise(3000))
    filler = small_disk.where / "filler"
    with ftransfer.Server(small_disk.root) as server:
        with filler.open("wb", buffering=0) as file:
            assert until_refused(lambda: file.write(bytes(4096))) == errno.ENOSPC
        os.truncate(filler, filler.stat().st_size - free * 4096)
        try:
            move(small_disk.direction, server.urls[0], small_disk.source, small_disk.target)
        except errors.DiskError:
            filler.unlink()
            assert small_disk.is_untouched()
        else:
            filler.unlink()
            assert small_disk.target.read_bytes() == noise(3000)
        assert reserved(small_disk.where) == []


# Limits of a process. Each runs in a process of its own, because a limit holds for all of it.

LIMITED = """
import resource, signal, sys
import ftransfer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
if sys.argv[1] == "up":
    with ftransfer.Server(sys.argv[2]) as server:
        print(server.urls[0], flush=True)
        sys.stdin.read()
else:
    try:
        with ftransfer.connect(sys.argv[3], retry_for=0) as remote:
            remote.download("file", sys.argv[2])
    except ftransfer.FtransferError as exc:
        print(exc.code, exc.exit_status, exc, flush=True)
"""


def test_the_limit_of_a_files_size(place: Place) -> None:
    """A process that may not write that much reports it like a full disk; here at 1 MiB."""
    if place.direction == "down":
        with ftransfer.Server(place.root) as server:
            command = [sys.executable, "-c", LIMITED, "down", str(place.target), server.urls[0]]
            said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        assert re.match("disk 8 .*larger than", said)
    else:
        command = [sys.executable, "-c", LIMITED, "up", str(place.root)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            failed = fails_on_disk("up", url, place.source, place.target)
            assert "larger than" in str(failed)
            with ftransfer.connect(url) as remote:
                remote.upload(noise(1000), "small")
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        assert (place.root / "small").read_bytes() == noise(1000)
        (place.root / "small").unlink()
        shutil.rmtree(place.root / RESERVED)
    assert place.is_untouched()


def test_too_few_descriptors(tmp_path: Path) -> None:
    """A process without descriptors left says so, and leaves nothing."""
    store = LocalStore(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        assert until_refused(lambda: taken.append(os.open("/dev/null", os.O_RDONLY))) == errno.EMFILE
        with pytest.raises((errors.DiskError, errors.ServerFull)):
            store.claim(Description("a/b/file", 10, "f"))
        for _ in range(10):
            with contextlib.suppress(errors.DiskError, errors.ServerFull):
                store.claim(Description("a/b/file", 10, "f")).discard()
            os.close(taken.pop())
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    store.claim(Description("a/b/file", 10, "f")).discard()
    assert reserved(tmp_path) == []
    store.close()


# Syncs that fail.


def broken(number: int = errno.EIO) -> Callable[[int], None]:
    """Return a stand-in for a call of `sync` that fails."""

    def fail(fd: int) -> None:  # noqa: ARG001
        raise OSError(number, os.strerror(number))

    return fail


def test_a_sync_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The staged bytes are dropped and not synced a second time; the old file is unchanged; the next run sends all."""
    with ftransfer.Server(place.root) as server:
        with monkeypatch.context() as patch:
            calls: list[int] = []

            def fail(fd: int) -> None:
                calls.append(fd)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            patch.setattr(sync, "sync_file", fail)
            failed = fails_on_disk(place.direction, server.urls[0], place.source, place.target)
            assert len(calls) == 1
        assert "input/output error" in str(failed)
        assert place.is_untouched()
        result = move(place.direction, server.urls[0], place.source, place.target)
    assert (result.resumed_from, result.sent_bytes) == (0, 3 * MIB)
    assert place.target.read_bytes() == noise(3 * MIB)


def test_a_full_disk_that_shows_only_when_it_is_synced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that allocate late report a full disk then."""
    with ftransfer.Server(place.root) as server:
        monkeypatch.setattr(sync, "sync_file", broken(errno.ENOSPC))
        failed = fails_on_disk(place.direction, server.urls[0], place.source, place.target)
    assert "no space left" in str(failed)
    assert place.is_untouched()


def test_a_folder_whose_sync_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Success is not claimed for a name that may not be on the disk."""
    with ftransfer.Server(place.root) as server:
        with monkeypatch.context() as patch:
            patch.setattr(sync, "sync_folder", broken())
            fails_on_disk(place.direction, server.urls[0], place.source, place.target)
        assert place.target.read_bytes() in (OLD, noise(3 * MIB))
        place.source.write_bytes(noise(MIB))
        move(place.direction, server.urls[0], place.source, place.target)
    assert place.target.read_bytes() == noise(MIB)
    assert reserved(place.where) == []


def test_a_description_whose_sync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file that cannot even be described leaves nothing."""
    store = LocalStore(tmp_path)
    monkeypatch.setattr(sync, "sync_file", broken())
    with pytest.raises(errors.DiskError):
        store.claim(Description("file", 1 << 30, "f"))
    assert os.listdir(tmp_path) == []
    store.close()


STRACED = """
import sys
import ftransfer
with ftransfer.Server(sys.argv[1]) as server:
    print(server.urls[0], flush=True)
    sys.stdin.read()
"""


def test_an_fsync_that_fails_in_the_kernel(tmp_path: Path) -> None:
    """The real call returns EIO: the client is told, the old file is there, the server goes on."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("NOT TESTED: strace is not installed")
    place = Place(tmp_path, "up")
    place.target.write_bytes(OLD)
    place.source.write_bytes(noise(MIB))
    inject = [strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"]
    command = [*inject, sys.executable, "-c", STRACED, str(place.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            process.stdin.close()
            pytest.skip("NOT TESTED: this process may not be traced")
        try:
            with ftransfer.connect(url, retry_for=0) as remote:  # one connection, as strace counts by threads
                with pytest.raises(errors.RemoteDiskError, match="input/output error"):
                    remote.upload(place.source, "copy")
                assert place.is_untouched()
                remote.upload(place.source, "copy")
        finally:
            process.stdin.close()
            process.wait(PATIENCE)
    assert place.target.read_bytes() == noise(MIB)


# Reading and writing that fails.


def test_a_source_that_cannot_be_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error of the disk ends the transfer with the code of that end, and the connection can be used on."""

    def fail(self: FileSource, offset: int, view: memoryview) -> int:  # noqa: ARG001
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with ftransfer.Server(place.root) as server, ftransfer.connect(server.urls[0], retry_for=0) as remote:
        with monkeypatch.context() as patch:
            patch.setattr(FileSource, "read_into", fail)
            with pytest.raises(errors.DiskError) as caught:
                move_with(remote, place.direction, place.source, place.target)
        assert caught.value.exit_status == (8 if place.direction == "up" else 9)
        assert place.target.read_bytes() == OLD
        remote.ping()


def test_writing_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write error ends the transfer; the old file is unchanged."""
    real = os.pwrite

    def fail(fd: int, data: memoryview, offset: int) -> int:
        if offset >= MIB:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, data, offset)

    with ftransfer.Server(place.root) as server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fail)
            fails_on_disk(place.direction, server.urls[0], place.source, place.target)
        assert place.target.read_bytes() == OLD
        move(place.direction, server.urls[0], place.source, place.target)
    assert place.target.read_bytes() == noise(3 * MIB)


def test_writes_that_are_short(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes less than it was given is gone on with."""
    real = os.pwrite

    def short(fd: int, data: memoryview, at: int) -> int:
        return real(fd, data[: len(data) // 2] if len(data) > 500 else data, at)

    monkeypatch.setattr(os, "pwrite", short)
    with ftransfer.Server(place.root) as server:
        move(place.direction, server.urls[0], place.source, place.target)
    assert place.target.read_bytes() == noise(3 * MIB)


# Read-only.


def test_a_folder_without_the_right_to_write(place: Place) -> None:
    """Rights of files are a refusal, not a fault of the disk."""
    if is_root:
        pytest.skip("NOT TESTED: root may write everywhere")
    place.where.chmod(0o555)
    try:
        with ftransfer.Server(place.root) as server, pytest.raises(errors.Refused) as caught:
            move(place.direction, server.urls[0], place.source, place.target)
        assert caught.value.exit_status == 5
    finally:
        place.where.chmod(0o755)
    assert place.is_untouched()


def test_a_disk_that_is_mounted_read_only(place: Place) -> None:
    """A transfer onto it fails with the code `disk` and a hint; reading from it works."""
    if not is_root or not sys.platform.startswith("linux"):
        pytest.skip("NOT TESTED: mounting read-only needs root on Linux")
    for command in (["mount", "--bind", "W", "W"], ["mount", "-o", "remount,bind,ro", "W"]):
        done = subprocess.run([w.replace("W", str(place.where)) if w == "W" else w for w in command], check=False)
        if done.returncode:
            pytest.skip("NOT TESTED: cannot mount here")
    try:
        with ftransfer.Server(place.root) as server:
            failed = fails_on_disk(place.direction, server.urls[0], place.source, place.target)
            assert "read-only" in str(failed)
            with ftransfer.connect(server.urls[0]) as remote:
                remote.ping()
    finally:
        subprocess.run(["umount", "-l", str(place.where)], check=True)
    assert place.is_untouched()


# The root goes away.


def test_a_root_that_is_removed_meanwhile(tmp_path: Path) -> None:
    """Every request gets an error, and the server goes on until it is stopped."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(OLD)
    with ftransfer.Server(root) as server, ftransfer.connect(server.urls[0], retry_for=0) as remote:
        remote.upload(b"before", "name")
        shutil.rmtree(root)
        for request in (
            lambda: remote.upload(b"data", "new"),
            lambda: remote.upload(b"data", "in/folders/new"),
            lambda: remote.upload(b"data", "name"),
            lambda: remote.download("file", tmp_path / "copy"),
            lambda: remote.stat("file"),
            lambda: remote.mkdir("a"),
            lambda: remote.mkdir("a/b", parents=True),
            lambda: remote.checksum("file"),
        ):
            with pytest.raises((errors.NotFound, errors.DiskError)):
                request()
        assert list(remote.list()) == []
        assert remote.partials() == []
        remote.ping()
    assert not root.exists()
    assert not (tmp_path / "copy").exists()


def test_a_root_that_is_removed_during_an_upload(tmp_path: Path) -> None:
    """The upload fails with an error, not with a hang, and nothing of it is anywhere."""
    place = Place(tmp_path, "up")
    place.source.write_bytes(noise(3 * MIB))
    removed = threading.Event()

    def show(event: ftransfer.Progress) -> None:
        if event.done > 0 and not removed.is_set():
            removed.set()
            shutil.rmtree(place.root)

    with (
        ftransfer.Server(place.root) as server,
        ftransfer.connect(server.urls[0], retry_for=0, limit_rate=20 * MIB) as remote,
        pytest.raises((errors.NotFound, errors.DiskError)),
    ):
        remote.upload(place.source, "copy", on_progress=show)
    assert removed.is_set()
    assert not place.root.exists()


def test_a_state_folder_that_is_none(place: Place) -> None:
    """Somebody put a file or a link where the store keeps its state: an error, no crash, and nothing followed."""
    outside = place.where.parent / "outside"
    outside.mkdir()
    for make in (lambda p: p.write_bytes(b"x"), lambda p: p.symlink_to(outside)):
        make(place.where / RESERVED)
        with ftransfer.Server(place.root) as server, ftransfer.connect(server.urls[0], retry_for=0) as remote:
            with pytest.raises(errors.FtransferError) as caught:
                move_with(remote, place.direction, place.source, place.target)
            assert caught.value.code in ("not-a-file", "exists", "disk")
            remote.ping()
        (place.where / RESERVED).unlink()
    assert place.is_untouched()
    assert os.listdir(outside) == []


def test_signals_do_not_cut_writes(tmp_path: Path) -> None:
    """A signal that is handled while bytes move changes nothing."""
    place = Place(tmp_path, "down")
    place.source.write_bytes(noise(3 * MIB))
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with ftransfer.Server(place.root) as server:
            for count in range(10):
                move("down", server.urls[0], place.source, place.target.with_name(f"{count}"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    assert all((place.local / f"{n}").read_bytes() == noise(3 * MIB) for n in range(10))
    assert staged(place.local) == []

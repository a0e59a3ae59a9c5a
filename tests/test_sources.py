"""Sources that change, end, wait or are no files (promise 6), and what the server makes of a slow one."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import PATIENCE, noise, reserved

import ftransfer
from ftransfer import errors, sending
from ftransfer.sources import checksum_file
from ftransfer.store.base import FileSource

MIB = 1 << 20
SIZE = 4 * MIB
OLD = b"old content"


class Place:
    """A root with an old version of the target, a source and a server."""

    def __init__(self, base: Path):
        self.root, self.local = base / "root", base / "local"
        self.root.mkdir()
        self.local.mkdir()
        self.source, self.target = self.local / "file", self.root / "copy"
        self.source.write_bytes(noise(SIZE))
        os.utime(self.source, (1, 1))
        self.target.write_bytes(OLD)

    def serve(self, **options: object) -> ftransfer.Server:
        """Return a server that is to be entered."""
        return ftransfer.Server(self.root, **options)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place."""
    return Place(tmp_path)


class Once:
    """Does something once, when a transfer has moved so many bytes."""

    def __init__(self, act: Callable[[], object], after: int = MIB):
        self._act, self._after, self.done = act, after, False

    def __call__(self, event: ftransfer.Progress) -> None:
        if event.done >= self._after and not self.done:
            self.done = True
            self._act()


def truncate(path: Path) -> None:
    """Cut the file off."""
    os.truncate(path, MIB)


def grow(path: Path) -> None:
    """Append to the file."""
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    """Write other bytes of the same length over the beginning."""
    with path.open("r+b") as file:
        file.write(b"other bytes")


def touch(path: Path) -> None:
    """Give the file another time."""
    os.utime(path, (2, 2))


CHANGES = (truncate, grow, rewrite, touch)


def change_while_reading(patch: pytest.MonkeyPatch, change: Callable[[Path], None], path: Path) -> list[Path]:
    """Arrange that the file is changed when its second mebibyte is read; return what will hold it then."""
    changed: list[Path] = []
    real = FileSource.read_into

    def read_into(self: FileSource, offset: int, view: memoryview) -> int:
        if offset >= MIB and not changed:
            changed.append(path)
            change(path)
        return real(self, offset, view)

    patch.setattr(FileSource, "read_into", read_into)
    return changed


@pytest.mark.parametrize("change", CHANGES)
def test_a_local_source_that_changes_while_it_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """Another size or mtime is an error; the server keeps the old file, and the connection can be used on."""
    changed = change_while_reading(monkeypatch, change, place.source)
    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        with pytest.raises(errors.SourceChanged) as caught:
            remote.upload(place.source, "copy")
        assert changed
        assert caught.value.exit_status == 7
        assert place.target.read_bytes() == OLD
        remote.ping()
        remote.upload(place.source, "copy")
    assert place.target.read_bytes() == place.source.read_bytes()
    assert reserved(place.root) == []


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("into", ["file", "object"])
def test_a_remote_source_that_changes_while_it_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], into: str
) -> None:
    """The same for a download: the local old file is kept."""
    (place.root / "file").write_bytes(noise(SIZE))
    os.utime(place.root / "file", (1, 1))
    target = place.local / "copy"
    target.write_bytes(OLD)
    changed = change_while_reading(monkeypatch, change, place.root / "file")
    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        with pytest.raises(errors.SourceChanged):
            remote.download("file", target if into == "file" else io.BytesIO())
        assert changed
        assert target.read_bytes() == OLD
        remote.ping()
        remote.download("file", target)
    assert target.read_bytes() == (place.root / "file").read_bytes()
    assert reserved(place.local) == []


@pytest.mark.parametrize("change", [truncate, grow, rewrite])
def test_a_source_that_changes_while_it_is_checked(place: Place, change: Callable[[Path], None]) -> None:
    """`checksum` of a remote and of a local file tells, too, that the file did not hold still."""
    big = place.root / "big"
    big.write_bytes(noise(SIZE))
    os.utime(big, (1, 1))
    once = Once(lambda: change(big))
    with pytest.raises(errors.SourceChanged):
        checksum_file(big, "xxh128", once)


def test_a_source_that_is_replaced_or_unlinked_while_it_is_read(place: Place) -> None:
    """The opened file is read to its end, whole, whatever its name means meanwhile."""
    with place.serve() as server, ftransfer.connect(server.urls[0], limit_rate=60 * MIB) as remote:
        remote.upload(place.source, "copy", on_progress=Once(place.source.unlink))
        assert place.target.read_bytes() == noise(SIZE)
        remote.download("copy", place.local / "back", on_progress=Once(place.target.unlink))
    assert (place.local / "back").read_bytes() == noise(SIZE)


def test_a_source_that_is_not_there(place: Place) -> None:
    """No such file is an error before anything is sent; among several, the others go on."""
    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        with pytest.raises(errors.NotFound) as caught:
            remote.upload(place.local / "none", "copy")
        assert caught.value.exit_status == 3
        with pytest.raises(errors.PartialFailure) as several:
            remote.upload([place.local / "none", place.source], "in")
        results = several.value.results
        assert [f.result for f in results.files] == ["failed", "sent"]
        with pytest.raises(errors.NotFound):
            remote.download("none", place.local / "x")
    assert place.target.read_bytes() == OLD
    assert (place.root / "in/file").read_bytes() == noise(SIZE)
    assert not (place.local / "x").exists()


def test_sources_that_are_no_files(place: Place) -> None:
    """Sockets, pipes and links are refused, here and there, a folder where a file is; a dangling link is not found."""
    (place.local / "folder").mkdir()
    (place.local / "dangling").symlink_to("nowhere")
    (place.root / "folder").mkdir()
    os.mkfifo(place.root / "fifo")
    (place.root / "link").symlink_to("copy")
    with socket.socket(socket.AF_UNIX) as sock, place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        sock.bind(str(place.local / "socket"))
        with pytest.raises(errors.NotAFile):
            remote.upload(place.local / "folder", "copy")
        with pytest.raises(errors.NotAFile):
            remote.upload(place.local / "socket", "copy")
        with pytest.raises(errors.NotFound):
            remote.upload(place.local / "dangling", "copy")
        for name in ("fifo", "link"):
            with pytest.raises(errors.NotAFile):
                remote.download(name, place.local / "x")
        for name in ("folder", "fifo", "link"):
            with pytest.raises(errors.NotAFile):
                remote.checksum(name)
        with pytest.raises(errors.NotAFile):
            remote.upload(b"data", "fifo")
        with pytest.raises(errors.UsageError):
            remote.upload(b"data", "folder")
    assert place.target.read_bytes() == OLD


def test_a_fifo_as_source(place: Place) -> None:
    """A FIFO is a stream: read to its end."""
    fifo = place.local / "fifo"
    os.mkfifo(fifo)
    data = noise(SIZE)
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        result = remote.upload(fifo, "copy").files[0]
    writer.join(PATIENCE)
    assert result.bytes == SIZE
    assert place.target.read_bytes() == data


def test_a_pipe_behind_a_name_as_source(place: Place) -> None:
    """`/dev/fd/N`, and so `/dev/stdin`, is a stream where it is a pipe and a file where it is one."""
    ours, theirs = os.pipe()
    data = noise(300_000)

    def write() -> None:
        with open(theirs, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
            remote.upload(f"/dev/fd/{ours}", "copy")
            assert place.target.read_bytes() == data
            with place.source.open("rb") as file:
                remote.upload(f"/dev/fd/{file.fileno()}", "copy")
            assert place.target.read_bytes() == noise(SIZE)
            remote.upload(os.devnull, "copy")
            assert place.target.read_bytes() == b""
    finally:
        writer.join(PATIENCE)
        os.close(ours)


def test_a_fifo_whose_upload_fails_is_let_go(place: Place) -> None:
    """The descriptor of a stream that is not needed any more is closed by the thread that reads, and by nobody else."""
    fifo = place.local / "fifo"
    os.mkfifo(fifo)
    ready = threading.Event()
    broken = threading.Event()

    def write() -> None:
        with fifo.open("wb", buffering=0) as file:
            ready.set()
            try:
                while True:
                    file.write(bytes(65536))
            except BrokenPipeError:
                broken.set()

    writer = threading.Thread(target=write)
    writer.start()
    with (
        place.serve(read_only=True) as server,
        ftransfer.connect(server.urls[0]) as remote,
        pytest.raises(errors.Refused),
    ):
        remote.upload(fifo, "copy")
    assert ready.wait(PATIENCE)
    assert broken.wait(PATIENCE)
    writer.join(PATIENCE)


# Streams from a program.


def test_an_iterator_that_fails(place: Place) -> None:
    """Its exception comes out as it is; nothing is stored, and the next upload works."""

    def produce() -> Iterator[bytes]:
        yield noise(MIB)
        raise LookupError("the producer broke")

    with place.serve() as server, ftransfer.connect(server.urls[0], retry_for=0) as remote:
        with pytest.raises(LookupError, match="the producer broke"):
            remote.upload(produce(), "copy")
        assert place.target.read_bytes() == OLD
        remote.upload(b"new", "copy")
    assert place.target.read_bytes() == b"new"


def test_an_iterator_that_yields_no_bytes(place: Place) -> None:
    """What is no bytes is the program's error."""
    with (
        place.serve() as server,
        ftransfer.connect(server.urls[0], retry_for=0) as remote,
        pytest.raises(TypeError),
    ):
        remote.upload(["text", "more"].__iter__(), "copy")  # type: ignore[arg-type]
    assert place.target.read_bytes() == OLD


def test_empty_pieces_do_not_end_a_stream(place: Place) -> None:
    """Only the end of the iterator is the end."""
    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        remote.upload(iter([b"", b"a", b"", b"", b"bc", b""]), "copy")
        assert place.target.read_bytes() == b"abc"
        remote.upload(iter([b"", b""]), "copy")
    assert place.target.read_bytes() == b""


def test_all_kinds_of_sources(place: Place) -> None:
    """Path, str, bytes, bytearray, memoryview, file objects, iterators."""
    data = noise(100_000)
    path = place.local / "small"
    path.write_bytes(data)
    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote, path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), file, io.BytesIO(data), iter([data, b""])]
        for number, source in enumerate(sources):
            remote.upload(source, f"{number}", compare="none")
            assert (place.root / f"{number}").read_bytes() == data


class Held:
    """A stream that gives its second half only when it is told to."""

    def __init__(self, data: bytes):
        self._halves = [data[: len(data) // 2], data[len(data) // 2 :]]
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self._halves[0]
        assert self.go_on.wait(PATIENCE)
        yield self._halves[1]


def test_a_slow_producer_is_not_taken_for_a_dead_client(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream waits several times longer than the server's timeout; signs of life keep it."""
    monkeypatch.setattr(sending, "SIGN_OF_LIFE", 0.1)
    data = noise(200_000)
    stream = Held(data)
    timer = threading.Timer(1.3, stream.go_on.set)
    with place.serve(timeout=0.4) as server, ftransfer.connect(server.urls[0], retry_for=0) as remote:
        timer.start()
        remote.upload(iter(stream), "copy")
    timer.join()
    assert place.target.read_bytes() == data


def test_bytes_of_a_slow_producer_are_not_held_back(place: Place) -> None:
    """What there is goes out, though a block could hold more."""
    data = noise(2000)
    stream = Held(data)

    def show(event: ftransfer.Progress) -> None:
        if event.done == 1000:
            stream.go_on.set()

    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        remote.upload(iter(stream), "copy", on_progress=show)
    assert place.target.read_bytes() == data


def test_a_cancelled_upload_of_a_waiting_stream(place: Place) -> None:
    """Cancelling does not wait for the producer."""
    cancel = threading.Event()
    stream = Held(noise(2000))

    def show(event: ftransfer.Progress) -> None:
        if event.done == 1000:
            cancel.set()

    with (
        place.serve() as server,
        ftransfer.connect(server.urls[0], cancel=cancel) as remote,
        pytest.raises(errors.Cancelled),
    ):
        remote.upload(iter(stream), "copy", on_progress=show)
    stream.go_on.set()
    assert place.target.read_bytes() == OLD


def test_a_target_that_is_a_stream_and_breaks(place: Place) -> None:
    """A file object that refuses bytes ends the download; a broken pipe comes out as it is."""

    class Broken(io.RawIOBase):
        def __init__(self, error: OSError):
            self.error = error

        def write(self, _: object) -> int:
            raise self.error

    with place.serve() as server, ftransfer.connect(server.urls[0], retry_for=5) as remote:
        with pytest.raises(BrokenPipeError):
            remote.download("copy", Broken(BrokenPipeError()))  # type: ignore[arg-type]
        with pytest.raises(errors.DiskError):
            remote.download("copy", Broken(OSError(28, "No space left on device")))  # type: ignore[arg-type]
        remote.ping()


def test_a_target_that_takes_only_some_bytes_at_a_time(place: Place) -> None:
    """An unbuffered file object may write less than it was given."""

    class Short(io.RawIOBase):
        def __init__(self) -> None:
            self.taken = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            piece = bytes(memoryview(data)[:1000])  # type: ignore[arg-type]
            self.taken += piece
            return len(piece)

    place.target.write_bytes(noise(SIZE))
    out = Short()
    with place.serve() as server, ftransfer.connect(server.urls[0]) as remote:
        remote.download("copy", out)  # type: ignore[arg-type]
    assert bytes(out.taken) == noise(SIZE)

"""What a client can upload: a path, bytes, a file object, an iterator of bytes; each as a `Source`."""

from __future__ import annotations

import os
import queue
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, Any

from ftransfer import digests
from ftransfer.errors import FtransferError, NotAFile, SourceChanged, from_os
from ftransfer.progress import Observer, Progress, ignore
from ftransfer.store.base import BytesSource, FileSource, Source, has_hidden_bytes

CHUNK = 256 << 10
"""Bytes read from a stream at a time."""
QUEUED = 16
"""Chunks read ahead of a stream."""
PIECE = 64 << 10
"""Bytes in one piece of what is kept of a stream; smaller ones are put together."""
KEPT = 16 << 20
"""Bytes of a stream that are kept until they are confirmed, so that a lost connection loses nothing."""

Uploadable = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Iterable[bytes]


def open_source(what: Uploadable) -> Source:
    """Return a source to read from, which the caller closes. Raises NotFound, NotAFile, Refused."""
    if isinstance(what, (str, os.PathLike)):
        return _open_path(os.fspath(what))
    if isinstance(what, (bytes, bytearray, memoryview)):
        data = memoryview(what).cast("B")
        return BytesSource(data, fingerprint=f"bytes-{digests.block_hash(data)}")
    read = getattr(what, "read1", getattr(what, "read", None))
    if read is not None:
        return StreamSource(_chunks_of(what, read))
    return StreamSource(iter(what))


def _open_path(path: str) -> Source:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_os(exc, path) from exc
    mode = os.fstat(fd).st_mode
    try:
        if stat.S_ISREG(mode) and not has_hidden_bytes(fd):
            return FileSource(fd, path)
    except OSError as exc:
        os.close(fd)
        raise from_os(exc, path) from exc
    if stat.S_ISDIR(mode):
        os.close(fd)
        raise NotAFile("it is a folder", path=path, hint="name the files in it; this version transfers single files")
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
        return StreamSource(_chunks_of_fd(fd, close=True))
    os.close(fd)
    raise NotAFile("it is not a file", path=path)


def _chunks_of_fd(fd: int, *, close: bool = False) -> Iterator[bytes]:
    """Yield what comes. Only the thread that reads may close: else it could go on with what gets the number next."""
    with open(fd, "rb", buffering=0, closefd=close) as file:
        yield from _chunks_of(file, file.read)


def _chunks_of(file: Any, read: Callable[[int], bytes | None]) -> Iterator[bytes]:
    while (data := read(CHUNK)) != b"":
        if data is None:  # the file does not block, and has nothing yet; its end is b""
            select.select([file], [], [])
        else:
            yield data


class StreamSource(Source):
    """Bytes of unknown number, read once.

    A thread of its own reads them, so that a slow producer does not look like a dead peer.

    What was not confirmed yet is kept (bounded), so that it can be sent again after a lost connection.
    """

    size = None
    mtime_ns = None
    mode = None
    fingerprint = None
    most_unconfirmed = KEPT

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(QUEUED)
        self._kept: deque[tuple[int, bytearray]] = deque()
        self._read_to = 0
        self._confirmed: dict[int, int] = {}
        self._confirmed_to = 0
        self._next: bytes | BaseException | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._pump, name="ftransfer-stream", daemon=True).start()

    def _pump(self) -> None:
        try:
            for chunk in self._chunks:
                data = bytes(chunk)
                for at in range(0, len(data), CHUNK):
                    self._hand_over(data[at : at + CHUNK])
                if self._closed.is_set():
                    return
            self._hand_over(b"")
        except BaseException as exc:  # noqa: BLE001 - raised in the thread that reads
            self._hand_over(exc)
        finally:
            if isinstance(self._chunks, Generator):
                self._chunks.close()

    def _hand_over(self, item: bytes | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=1.0)
                return
            except queue.Full:
                continue

    def ready(self, offset: int, seconds: float) -> bool:
        if offset < self._read_to:
            return True
        if self._next is None:
            try:
                self._next = self._queue.get(block=seconds > 0, timeout=seconds or None)
            except queue.Empty:
                return False
        return True

    def read_into(self, offset: int, view: memoryview) -> int:
        if offset < self._read_to:
            return self._read_kept(offset, view)
        while not self.ready(offset, 1.0):
            pass
        item = self._next
        if not isinstance(item, bytes):
            raise _translated(item)
        if not item:
            return 0
        count = min(len(item), len(view))
        view[:count] = item[:count]
        if self._kept and len(self._kept[-1][1]) + count <= PIECE:
            self._kept[-1][1].extend(item[:count])  # a producer of single bytes must not make a list of them
        else:
            self._kept.append((offset, bytearray(item[:count])))
        self._next = item[count:] or None
        self._read_to += count
        return count

    def _read_kept(self, offset: int, view: memoryview) -> int:
        for start, data in self._kept:
            if start <= offset < start + len(data):
                piece = data[offset - start : offset - start + len(view)]
                view[: len(piece)] = piece
                return len(piece)
        raise SourceChanged("the stream cannot be read again from there", hint="run the command again from its start")

    def release(self, offset: int, length: int) -> None:
        self._confirmed[offset] = max(length, self._confirmed.get(offset, 0))
        while self._confirmed and (first := min(self._confirmed)) <= self._confirmed_to:
            self._confirmed_to = max(self._confirmed_to, first + self._confirmed.pop(first))
        while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= self._confirmed_to:
            self._kept.popleft()

    def close(self) -> None:
        self._closed.set()


def _translated(exc: BaseException | None) -> BaseException:
    if isinstance(exc, OSError) and not isinstance(exc, FtransferError):
        return from_os(exc)
    return exc or EOFError()


def checksum_file(
    path: str | os.PathLike[str] | int,
    algorithm: str = digests.DEFAULT,
    observer: Observer | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> digests.Digest:
    """Return the digest of a local file, or of what a descriptor still has to give.

    Arguments: `check` is called for each piece and raises what has to stop it. Raises NotFound, NotAFile,
    SourceChanged if it changes meanwhile.
    """
    name = "-" if isinstance(path, int) else os.fspath(path)
    opened = StreamSource(_chunks_of_fd(path)) if isinstance(path, int) else open_source(name)
    hasher = digests.new(algorithm)
    buffer = memoryview(bytearray(512 << 10))
    done = 0
    with opened as source:
        while True:
            while not source.ready(done, 0.2):
                if check is not None:
                    check()
            if not (count := source.read_into(done, buffer)):
                break
            if check is not None:
                check()
            source.release(done, count)
            hasher.update(buffer[:count])
            done += count
            (observer or ignore)(Progress("hashing", name, done, source.size))
        source.check()
    return digests.Digest(algorithm, hasher.hexdigest())

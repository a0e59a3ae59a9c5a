"""The receiving side of a transfer: blocks come in over a channel and go into a staging, verified one by one.

The same for an upload, where the server receives, and a download, where the client does. Bytes are written as they
come; only a block whose hash matched is accepted. The digest of the whole is taken in passing; bytes that were staged
before are read back and compared while the missing ones flow, so success always means that the final bytes were
hashed whole.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import TypeVar

from ftransfer import digests, wire
from ftransfer.channel import SLICE, Channel
from ftransfer.errors import (
    AlreadyExists,
    FtransferError,
    IntegrityError,
    NotAFile,
    ProtocolError,
    SourceChanged,
)
from ftransfer.progress import Observer, Progress, ignore
from ftransfer.store.base import FILE, FOLDER, OTHER, Committed, Description, Entry, Grain, Staging, missing

SIGN_OF_LIFE = 2.0
"""Seconds between two signs of life while this end is busy."""
MOST_DAMAGED = 20
"""Times that one block may arrive damaged before it is not the line's fault."""
QUIET_COMMIT = 8 << 20
"""Up to this size a commit is expected to be over before a sign of life is due, in bytes."""
COARSEST = 2_000_000_000
"""The coarsest resolution of file times, in nanoseconds (FAT)."""

T = TypeVar("T")


def decide(found: Entry | None, wanted: Description, compare: str, clock_step: Callable[[], int]) -> str | None:
    """Return "same" or "skipped" if nothing has to be transferred, else None.

    Arguments: `found`, what has the name now; `compare` quick or none; `clock_step` returns the resolution of the times
    of the store that holds it, in nanoseconds: a coarser clock keeps the source's time only as far as it can. Raises
    AlreadyExists for `if_exists=fail`, NotAFile for what no file may replace.
    """
    if found is None:
        return None
    if found.kind in (FOLDER, OTHER):
        what = "folder" if found.kind == FOLDER else "special file"
        raise NotAFile(f"a {what} has this name", path=wanted.path, hint="choose another name")
    if compare == "quick" and found.kind == FILE and wanted.size == found.size and wanted.mtime_ns is not None:
        lost = wanted.mtime_ns - found.mtime_ns
        if lost == 0 or (0 < lost < COARSEST and wanted.mtime_ns // clock_step() * clock_step() == found.mtime_ns):
            return "same"
    if wanted.if_exists == "fail":
        raise AlreadyExists("it exists already", path=wanted.path, hint="--if-exists says what happens then")
    if wanted.if_exists == "skip":
        return "skipped"
    if wanted.if_exists == "newer" and wanted.mtime_ns is not None and wanted.mtime_ns <= found.mtime_ns:
        return "skipped"
    return None


class Gaps:
    """The ranges that are still missing, sorted; a stream's last one has no end."""

    def __init__(self, ranges: list[tuple[int, int | None]]):
        self._starts = [offset for offset, _ in ranges]
        self._ends = [wire.MAX_INT if length is None else offset + length for offset, length in ranges]

    def __bool__(self) -> bool:
        return bool(self._starts)

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether these bytes are all missing, in one gap."""
        at = bisect_right(self._starts, offset) - 1
        return at >= 0 and offset + length <= self._ends[at]

    def fill(self, offset: int, length: int) -> None:
        """Take bytes out of the gap that covers them."""
        at = bisect_right(self._starts, offset) - 1
        start, end = self._starts[at], self._ends[at]
        pieces = [(a, b) for a, b in ((start, offset), (offset + length, end)) if a < b]
        self._starts[at : at + 1] = [a for a, _ in pieces]
        self._ends[at : at + 1] = [b for _, b in pieces]

    def open(self, offset: int, length: int) -> None:
        """Make bytes missing again."""
        at = bisect_right(self._starts, offset)
        self._starts.insert(at, offset)
        self._ends.insert(at, offset + length)

    def cut(self, size: int) -> None:
        """Take note that the stream ends here."""
        while self._ends and self._ends[-1] > size:
            if self._starts[-1] >= size:
                del self._starts[-1], self._ends[-1]
            else:
                self._ends[-1] = size

    def ranges(self) -> list[tuple[int, int | None]]:
        """Return them as a `want` carries them."""
        pairs = zip(self._starts, self._ends, strict=True)
        return [(start, None if end == wire.MAX_INT else end - start) for start, end in pairs]


class Incoming:
    """One file on its way in; outlives the connections it takes.

    Arguments: `path` and `size` as announced (None for a stream); `observer` is told of what was accepted.
    """

    def __init__(self, staging: Staging, path: str, size: int | None, *, algorithm: str, observer: Observer = ignore):
        self.staging = staging
        self.path = path
        self.size = size
        self.observer = observer
        self.digest = digests.Contiguous(algorithm)
        self.gaps = Gaps(missing(staging.grains.values(), size))
        self.inherited = staging.inherited
        self.accepted = 0
        self.received_bytes = 0
        self.damaged: list[int] = []
        self._reused = self._started_over = self._looked = False
        self._held_by = digests.DEFAULT
        self._asked_at: tuple[int, int] | None = None
        self._last_sign = time.monotonic()

    def bind(self, channel: Channel, t: int, *, wait: bool) -> None:
        """Begin on a new connection, under number `t`; with `wait` the sender is told first what is missing."""
        self.channel = channel
        self.t = t
        if wait:
            self._want()
        elif self.staging.grains:
            self._forget_all()
        self._reused = bool(self.staging.grains)
        self.tell("receiving")

    def block(self, message: wire.Block) -> None:
        """Receive a block's body, and answer. Raises ProtocolError for bytes that were not wanted."""
        self._begin(message.offset, message.body)
        self.digest.mark()
        try:
            ok = self._receive_body(message) == message.hash
        except BaseException:
            self.digest.back()  # the rest comes over another connection, in other pieces
            raise
        if ok:
            self._accept(message.offset, message.body, message.hash)
        else:
            self.digest.back()
            self.staging.reject()
            self.damaged.append(message.offset)
            if self.damaged.count(message.offset) > MOST_DAMAGED:
                raise IntegrityError(
                    f"the block at {message.offset} arrived damaged {MOST_DAMAGED} times", path=self.path
                )
        self.channel.send(wire.Stored(t=self.t, offset=message.offset, ok=ok))
        self.tell("receiving")

    def _receive_body(self, message: wire.Block) -> str:
        """Receive, hash and write piece by piece; return the hash of what came."""
        block = digests.new_block(self.channel.block_algorithm)
        at, left = message.offset, message.body
        while left:
            view = self.channel.scratch[:left]
            self.channel.read_body(view)
            self.received_bytes += len(view)
            block.update(view)
            self.digest.feed(at, view)
            self.staging.write(view)
            at += len(view)
            left -= len(view)
        return block.hexdigest()

    def hole(self, message: wire.Hole) -> None:
        """Take a run of zeros, and answer."""
        self._begin(message.offset, message.length)
        self.staging.zero()
        zeros = memoryview(bytes(min(SLICE, message.length)))
        block = digests.new_block(self.channel.block_algorithm)
        for at in range(0, message.length, SLICE):
            piece = zeros[: min(SLICE, message.length - at)]
            block.update(piece)
            self.digest.feed(message.offset + at, piece)
        self._accept(message.offset, message.length, block.hexdigest())
        self.channel.send(wire.Stored(t=self.t, offset=message.offset, ok=True))
        self.tell("receiving")

    def _begin(self, offset: int, length: int) -> None:
        if not self.gaps.covers(offset, length):
            raise ProtocolError(f"bytes {offset} to {offset + length} were not wanted")
        self.staging.begin(offset, length)

    def _accept(self, offset: int, length: int, hex_digits: str) -> None:
        self.staging.accept(hex_digits)
        self.gaps.fill(offset, length)
        self.accepted += length
        while self.staging.keeps_only_early and self.is_behind:
            self.catch_up()  # before the next grain passes it
        if self.size is None and offset + length <= self.digest.position:
            del self.staging.grains[offset]  # a stream may have very many, and nobody reads them back

    def end(self, message: wire.End) -> Committed | None:
        """Check the whole and publish it; or ask for what is missing or damaged and return None.

        Raises IntegrityError if the bytes are not those that the sender hashed, after they were fetched anew once.
        """
        if message.path != self.path or (self.size is not None and message.size != self.size):
            raise ProtocolError("the end of the file does not fit its beginning")
        self.gaps.cut(message.size)
        while not self.gaps and self.catch_up():
            self.show_life("verifying", self.digest.position, message.size)
        if self.gaps:
            if self.damaged and not (self._looked or self.staging.keeps_only_early):
                self._forget_more(message.size)
            if self._asked_at == (self.received_bytes, self.accepted):
                raise ProtocolError("the end came again, without what was missing")
            self._asked_at = (self.received_bytes, self.accepted)
            self._want()
            return None
        if self.digest.position != message.size:
            raise ProtocolError("the file is shorter than its end says")
        if self.digest.hexdigest() != message.hash:
            self._start_over()
            return None
        return self._commit(message)

    def _start_over(self) -> None:
        """Fetch everything anew, once: the parts fit the journal but not the source, so they are of another version."""
        if self._started_over or not self._reused:
            self.staging.discard()
            raise IntegrityError(
                "the hash of the whole file does not match", path=self.path, hint="nothing was replaced; try again"
            )
        if self.size is None or self.staging.keeps_only_early:
            self.staging.discard()
            raise SourceChanged("it is another version than the one that began, and a stream cannot begin anew")
        self._started_over = True
        self._forget_all()
        self._want()

    def _forget_all(self) -> None:
        self.staging.forget(*self.staging.grains)
        self.gaps = Gaps(missing((), self.size))
        self.digest.restart()
        self.inherited = self.accepted = 0

    def catch_up(self) -> bool:
        """Read one grain back that did not pass in order, compare and hash it; tell whether there was one.

        A grain that is not what it was when it was accepted is forgotten, and asked for at the end.
        """
        grain: Grain | None = self.staging.grains.get(self.digest.position)
        if grain is None:
            return False
        if not self._is_as_accepted(grain):
            self._forget(grain)
        return True

    def _is_as_accepted(self, grain: Grain) -> bool:
        """Read a grain back, into the digest if it comes next, and tell whether it is what was accepted.

        On an earlier connection that may have been by another hash than on this one.
        """
        by = self._held_by
        for algorithm in (by, *(other for other in digests.BLOCKS if other != by)):
            self.digest.mark()
            if self._read_back(grain, algorithm) == grain.hash or self.staging.keeps_only_early:
                self._held_by = algorithm  # what is kept early is in memory, and can be read once
                return True
            self.digest.back()
        return False

    def _read_back(self, grain: Grain, algorithm: str) -> str:
        block = digests.new_block(algorithm)
        for at in range(grain.offset, grain.end, SLICE):
            view = self.channel.scratch[: grain.end - at]
            count = self.staging.read(at, view)
            block.update(view[:count])
            self.digest.feed(at, view[:count])
            if count < len(view):
                break
        return block.hexdigest()

    def _forget(self, grain: Grain) -> None:
        self.staging.forget(grain.offset)
        self.gaps.open(grain.offset, grain.length)
        self.inherited = max(0, self.inherited - grain.length)
        self.damaged.append(grain.offset)

    def _forget_more(self, size: int) -> None:
        """Where one grain was not what it was, look at all behind it, so that they are asked for at once."""
        self._looked = True
        for grain in sorted(self.staging.grains.values()):
            if grain.offset > self.digest.position:
                if not self._is_as_accepted(grain):
                    self._forget(grain)
                self.show_life("verifying", grain.end, size)

    @property
    def is_behind(self) -> bool:
        """Tell whether there is something to read back."""
        return self.digest.position in self.staging.grains

    def _want(self) -> None:
        ranges = self.gaps.ranges()[: wire.MAX_WANTED]
        while len(ranges) > wire.MAX_RANGES:
            self.channel.send(wire.Want(t=self.t, ranges=ranges[: wire.MAX_RANGES], more=True))
            ranges = ranges[wire.MAX_RANGES :]
        self.channel.send(wire.Want(t=self.t, ranges=ranges))

    def _commit(self, message: wire.End) -> Committed:
        """Publish; where that may take long, in a thread of its own while this one shows that we live."""
        self.tell("syncing", message.size)
        if message.size <= QUIET_COMMIT:
            return self.staging.commit(message.size, message.hash)
        return with_life(
            lambda: self.staging.commit(message.size, message.hash),
            lambda: self.show_life("syncing", message.size, message.size),
        )

    def show_life(self, phase: str, done: int, total: int | None) -> None:
        """Tell the observer, and the sender every 2 s, that we are busy."""
        self.tell(phase, done)
        if time.monotonic() - self._last_sign >= SIGN_OF_LIFE:
            self._last_sign = time.monotonic()
            self.channel.send(wire.Working(t=self.t, phase=phase, done=done, total=total))

    def tell(self, phase: str, done: int | None = None) -> None:
        """Tell the observer where this file stands."""
        done = self.inherited + self.accepted if done is None else done
        self.observer(Progress(phase, self.path, done, self.size, self.inherited))

    def receipt(self, done: Committed) -> wire.Receipt:
        """Return the message that ends a transfer well."""
        return wire.Receipt(
            t=self.t,
            result="stored",
            path=done.path,
            size=done.size,
            hash=done.hex,
            durable=done.durable,
            inherited=self.inherited,
        )


def with_life(work: Callable[[], T], show_life: Callable[[], None]) -> T:
    """Run `work` in a thread and call `show_life` every 2 s until it is done; return its result or raise its error."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as exc:  # noqa: BLE001 - raised again in the calling thread
            failure.append(exc)
        finally:
            done.set()

    done = threading.Event()  # and not Thread.join, which believes after Ctrl-C that the thread has ended (bpo-45274)
    threading.Thread(target=run, name="ftransfer-commit").start()
    try:
        _wait_for(done, show_life)
    finally:
        done.wait()  # also on Ctrl-C: what it works on may not be closed under it
    if failure:
        raise failure[0]
    return result[0]


def _wait_for(done: threading.Event, show_life: Callable[[], None]) -> None:
    lost: FtransferError | None = None
    while not done.wait(SIGN_OF_LIFE):
        try:
            if lost is None:
                show_life()
        except FtransferError as exc:
            lost = exc  # the work is finished all the same, and whoever sends next finds the connection gone

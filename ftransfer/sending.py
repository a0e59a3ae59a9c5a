"""The sending loop: a source goes out in blocks over a channel, while the answers to them come back.

The same for an upload, where the client sends, and a download, where the server does. One thread: it sends while
fewer than `wire.WINDOW` blocks stand unanswered and reads answers in between, so neither end can block the other for
ever.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ftransfer import digests, wire
from ftransfer.channel import Channel
from ftransfer.errors import (
    DiskError,
    FtransferError,
    IntegrityError,
    OutOfTurn,
    ProtocolError,
    SourceChanged,
    from_code,
    from_os,
)
from ftransfer.pacing import Pace
from ftransfer.progress import Observer, Progress, ignore
from ftransfer.store.base import Source

CHUNK = 512 << 10
"""Bytes read and hashed at a time, so that they are still in the cache when they are hashed."""
SIGN_OF_LIFE = 2.0
"""Seconds between two signs of life of an end that is busy."""
ANSWERS = 0.2
"""Seconds after which a sender that waits for its source looks for answers."""
MOST_DAMAGED = 20
"""Times that one block may be reported damaged before it is not the line's fault."""
MOST_AGAIN = 16
"""Times that a receiver may ask for more after the end: for what arrived damaged, or was when it was read back."""
STREAM_SECONDS = 0.1
"""How long a stream's block waits for more bytes of a slow producer."""
_ZEROS = bytes(CHUNK)

Receive = Callable[[], wire.Message]


class Outgoing:
    """One file on its way out; outlives the connections it takes.

    Arguments: `path` as the other end knows it; `observer` is told of what was confirmed.
    """

    def __init__(self, source: Source, path: str, *, algorithm: str, observer: Observer = ignore):
        self.source = source
        self.path = path
        self.digest = digests.Contiguous(algorithm)
        self.observer = observer
        self.sent_bytes = 0
        self.last_sent = time.monotonic()
        self.size = source.size
        self.window = wire.WINDOW
        self.refused: dict[int, int] = {}
        self.bind(0, wait=False)
        self.held_before: int | None = None
        """Bytes that the receiver had before the first connection of this call; None until it has said so."""

    def bind(self, t: int, *, wait: bool) -> None:
        """Begin on a new connection, under number `t`; with `wait` not before the receiver's `want`."""
        self.t = t
        self.held = wait
        self.ended = False
        self.again = 0
        self.inherited = 0
        if not wait:
            self.held_before = 0
        self.todo: deque[tuple[int, int | None]] = deque() if wait or self.size == 0 else deque([(0, self.size)])
        self.in_flight: dict[int, int] = {}
        self.confirmed = 0

    @property
    def all_sent(self) -> bool:
        """Tell whether nothing is left to send that was asked for."""
        return not self.held and not self.todo

    @property
    def may_send(self) -> bool:
        """Tell whether there is something to send and room for it in the window."""
        if self.held or not self.todo or len(self.in_flight) >= self.window:
            return False
        if self.todo[0][0] in self.in_flight:  # wanted twice: answers are told apart by their offset
            return False
        most = self.source.most_unconfirmed
        return most is None or sum(self.in_flight.values()) < most

    def wanted(self, message: wire.Want) -> None:
        """Take the receiver's word for what is missing. Raises ProtocolError for ranges outside the file."""
        if self.ended:
            self.again += 1
            if self.again > MOST_AGAIN:
                raise ProtocolError(f"the other side wants the file for the {self.again}th time after its end")
            self.ended = False
            self.held = True
            self.todo.clear()
        if len(self.todo) + len(message.ranges) > wire.MAX_WANTED:
            raise ProtocolError(f"the other side wants more than {wire.MAX_WANTED} ranges")
        self.todo.extend(self._checked(offset, length) for offset, length in message.ranges)
        if message.more:
            return
        self.held = False
        if self.todo:
            self.source.release(0, self.todo[0][0])
        if list(self.todo) == [(0, self.size)]:
            self.digest.restart()
        if self.size is not None:
            self.inherited = self.size - self.confirmed - sum(length or 0 for _, length in self.todo)
            if self.held_before is None:
                self.held_before = self.inherited
        self.tell("sending")

    def _checked(self, offset: int, length: int | None) -> tuple[int, int | None]:
        """Return a range of the file; one without a length reaches to the end."""
        if self.size is None:
            return offset, length
        end = self.size if length is None else offset + length
        if not offset < end <= self.size:
            raise ProtocolError("the other side wants bytes beyond the end of the file")
        return offset, end - offset

    def stored(self, message: wire.Stored) -> int:
        """Take the answer to a block; return its length if it is well. A damaged one is put first in the queue."""
        length = self.in_flight.pop(message.offset, None)
        if length is None:
            raise ProtocolError("the other side answered a block that it was not sent")
        if message.ok:
            self.confirmed += length
            self.source.release(message.offset, length)
            self.tell("sending")
            return length
        self.refused[message.offset] = self.refused.get(message.offset, 0) + 1
        if self.refused[message.offset] > MOST_DAMAGED:
            raise IntegrityError(f"the block at {message.offset} arrived damaged {MOST_DAMAGED} times", path=self.path)
        if not self.ended:
            self.todo.appendleft((message.offset, length))
        return 0

    def check_receipt(self, receipt: wire.Receipt) -> None:
        """Raise IntegrityError if a receipt is for other bytes than those that were sent."""
        if receipt.result != "stored":
            return
        size = self.digest.position if self.size is None else self.size
        sent = (self.digest.position, self.digest.hexdigest())
        if sent != (size, receipt.hash) or receipt.size != size:
            raise IntegrityError("the receipt is not for the bytes that were sent", path=self.path)

    def take(self, limit: int) -> tuple[int, int]:
        """Return (offset, length) of the next piece, at most `limit` bytes."""
        offset, length = self.todo.popleft()
        size = limit if length is None else min(limit, length)
        if length is None:
            self.todo.appendleft((offset + size, None))
        elif length > size:
            self.todo.appendleft((offset + size, length - size))
        return offset, size

    def give_back(self, offset: int, length: int) -> None:
        """Put the rest of a piece that was taken back to the front."""
        if self.todo and self.todo[0] == (offset + length, None):
            self.todo[0] = (offset, None)
        elif length:
            self.todo.appendleft((offset, length))

    def tell(self, phase: str, done: int | None = None, total: int | None = None) -> None:
        """Tell the observer where this file stands."""
        if done is None:
            done, total = self.inherited + self.confirmed, self.size
        self.observer(Progress(phase, self.path, done, total, self.inherited))


class Sender:
    """Sends files over one channel, one after the other.

    Arguments: `receive` returns the next message (the channel's own, or the server's, which answers bad names itself);
    `other` takes messages that are not about the file being sent.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        receive: Receive | None = None,
        other: Callable[[wire.Message], None] | None = None,
        largest_block: int = wire.MAX_BLOCK,
    ):
        self._channel = channel
        self._receive = receive or channel.expect
        self._other = other
        self._largest_block = largest_block
        self._buffer: memoryview | None = None
        self.pace = Pace(largest_block)

    @property
    def buffer(self) -> memoryview:
        """For the bytes of one message on their way out; made when it is first needed."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(self._largest_block))
        return self._buffer

    def release(self) -> None:
        """Let go of the buffer."""
        self._buffer = None

    def run(self, out: Outgoing) -> wire.Receipt:
        """Send one file and return its receipt.

        Raises what the receiver reports, SourceChanged, or what the channel raises. Where the fault is the source's,
        the receiver is told, and the connection can be used on.
        """
        receipt = self.push(out)
        while receipt is None:
            receipt = self.take(out, self._receive())
            if receipt is None and not out.ended:
                receipt = self.push(out)
        return receipt

    def push(self, out: Outgoing) -> wire.Receipt | None:
        """Send one file up to its end, for which a receipt is still to come; return the receipt if it came at once.

        Raises what `run` raises.
        """
        self._channel.absorbs = True
        out.last_sent = time.monotonic()
        while not out.ended:
            try:
                receipt = self._take_answers(out)
                if receipt is not None:
                    return receipt
                self._step(out)
            except (IntegrityError, DiskError) as exc:
                if not exc.remote:
                    self.fail(out, exc)
                raise
        return None

    def fail(self, out: Outgoing, exc: FtransferError) -> None:
        """Tell the receiver that this file will not come."""
        if self._channel.session.is_open(out.t):
            self._channel.send(wire.error_message(exc, out.t))

    def _step(self, out: Outgoing) -> None:
        if out.may_send:
            if out.source.ready(out.todo[0][0], min(ANSWERS, SIGN_OF_LIFE)):
                self._send_piece(out)
            elif time.monotonic() - out.last_sent >= SIGN_OF_LIFE:
                self._channel.send(wire.Working(t=out.t, phase="waiting", done=out.confirmed))
                out.last_sent = time.monotonic()
        elif out.all_sent and not out.ended:
            self._finish(out)
        # else the next answers are waited for

    def _take_answers(self, out: Outgoing) -> wire.Receipt | None:
        """Read the answers that are there, or wait for one if there is nothing else to do."""
        wait = not (out.may_send or out.all_sent)
        while wait or self._channel.readable():
            receipt = self.take(out, self._receive())
            if receipt is not None:
                return receipt
            wait = False
        return None

    def take(self, out: Outgoing, message: wire.Message) -> wire.Receipt | None:
        """Take an answer to this file; return its receipt if that is what came.

        Raises what the receiver reports; IntegrityError for a receipt of other bytes, of which the receiver is told.
        """
        if isinstance(message, wire.Error) and message.t in (None, out.t):
            raise from_code(message.code, message.message, hint=message.hint)
        if getattr(message, "t", None) != out.t:
            if self._other is None:
                raise OutOfTurn(f"{message.type} for another number")
            self._other(message)
        elif isinstance(message, wire.Stored):
            self.pace.confirmed(out.stored(message))
        elif isinstance(message, wire.Want):
            out.wanted(message)
        elif isinstance(message, wire.Working):
            out.tell(message.phase, message.done, message.total)
        elif isinstance(message, wire.Receipt):
            out.check_receipt(message)
            out.tell("done", out.size or message.size or 0, out.size)
            return message
        return None

    def _send_piece(self, out: Outgoing) -> None:
        offset, length = out.take(self.pace.block)
        is_data, run = out.source.extent(offset, length)
        if run < length:
            out.give_back(offset + run, length - run)
        if not is_data:
            self._send_hole(out, offset, run)
            return
        part = out.source.part(offset, run) if self._channel.takes_files and run >= CHUNK else None
        count, hex_digits = self._read(out, offset, run, keeps=part is None)
        if not count:
            return
        out.in_flight[offset] = count
        block = wire.Block(t=out.t, offset=offset, hash=hex_digits, body=count)
        self._channel.send(block, part[:count] if part is not None else self.buffer[:count])
        out.sent_bytes += count
        out.last_sent = time.monotonic()

    def _read(self, out: Outgoing, offset: int, length: int, *, keeps: bool) -> tuple[int, str]:
        """Read a block and hash it for itself and, where it comes next, for the whole; return its length and hash.

        Arguments: `keeps`, whether it is to be found in the buffer. A stream's block holds what comes within a moment,
        so that a slow producer's bytes neither wait for long nor take a block for each line.
        """
        block = digests.new_block(self._channel.block_algorithm)
        until = time.monotonic() + STREAM_SECONDS
        got = 0
        while got < length:
            at = got if keeps else 0
            view = self.buffer[at : at + min(CHUNK, length - got)]
            count = self._read_source(out, offset + got, view)
            view = view[:count]
            block.update(view)
            out.digest.feed(offset + got, view)
            got += count
            if not count:
                self._met_end(out, offset + got)
                break
            if out.size is None and not out.source.ready(offset + got, max(0.0, until - time.monotonic())):
                out.give_back(offset + got, length - got)
                break
        return got, block.hexdigest()

    @staticmethod
    def _read_source(out: Outgoing, offset: int, view: memoryview) -> int:
        try:
            return out.source.read_into(offset, view)
        except OSError as exc:
            raise from_os(exc) from exc

    @staticmethod
    def _met_end(out: Outgoing, end: int) -> None:
        if out.size is not None:
            out.source.check()
            raise SourceChanged(f"it ended after {end} bytes, {out.size} were there when it was opened")
        out.todo.clear()

    def _send_hole(self, out: Outgoing, offset: int, length: int) -> None:
        at = offset
        while at < offset + length and at == out.digest.position:
            size = min(CHUNK, offset + length - at)
            out.digest.feed(at, memoryview(_ZEROS)[:size])
            at += size
        out.in_flight[offset] = length
        self._channel.send(wire.Hole(t=out.t, offset=offset, length=length))
        out.last_sent = time.monotonic()

    def _finish(self, out: Outgoing) -> None:
        """Hash what did not pass in order, make sure that the source held still, and say that this was all."""
        size = out.digest.position if out.size is None else out.size
        if out.digest.position < size and not self._catch_up(out, size):
            return
        out.source.check()
        out.ended = True
        self._channel.send(wire.End(t=out.t, path=out.path, size=size, hash=out.digest.hexdigest()))

    def _catch_up(self, out: Outgoing, size: int) -> bool:
        """Hash for a while what the receiver had before; tell whether that was all. Says that we live, every 2 s."""
        until = time.monotonic() + SIGN_OF_LIFE
        while out.digest.position < size and time.monotonic() < until:
            at = out.digest.position
            view = self.buffer[: min(CHUNK, size - at)]
            if self._read_source(out, at, view) < len(view):
                self._met_end(out, at)
            out.digest.feed(at, view)
        out.tell("verifying", out.digest.position, size)
        if out.digest.position == size:
            return True
        self._channel.send(wire.Working(t=out.t, phase="verifying", done=out.digest.position, total=size))
        return False

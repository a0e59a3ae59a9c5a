"""A connected stream that carries frames and bodies under deadlines.

Knows sockets, but not who opened them (`net` does) nor what the messages mean. One thread owns one channel. Every
wait ends: silence longer than `timeout`, or a frame that comes in slower than `LEAST_RATE` on the whole, raises
TimedOut, so a peer that sends a byte a second holds nobody.
"""

from __future__ import annotations

import fcntl
import math
import select
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable

from ftransfer import wire
from ftransfer.errors import ConnectionLost, FtransferError, ProtocolError, TimedOut
from ftransfer.session import CLIENT, SERVER, Session

TICK = 0.5
"""Seconds after which a waiting channel looks at its deadline and whether it was cancelled."""
LEAST_RATE = 1024
"""Bytes a second that a frame has to bring on the whole, beyond `timeout`."""
MOST_ABSORBED = 1024
"""Messages that are taken in while a send waits."""
SLICE = 1 << 20
"""Bytes handed to the kernel in one call, so that a deadline is looked at between them."""

Body = bytes | bytearray | memoryview


class Channel:
    """Frames over a connected socket.

    Arguments: `role` of this end; `timeout`, seconds without a byte after which the peer counts as dead; `check`,
    called before every message and in every wait, raises what has to stop the channel; `throttle`, told of the bytes
    of every body slice and may sleep.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        role: str,
        timeout: float = 60.0,
        check: Callable[[], None] | None = None,
        throttle: Callable[[int], None] | None = None,
        slice_size: int = SLICE,
    ):
        self.socket = sock
        self.session = Session()
        self.timeout = timeout
        self.absorbs = False
        """Whether answers are taken in while a send waits: for a sender, whose answers have no bodies."""
        self.body_left = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self._us = role
        self._peer = SERVER if role == CLIENT else CLIENT
        self._check = check or _nothing
        self._throttle = throttle
        self._slice = slice_size
        self._prefix = bytearray(4)
        self._absorbed: deque[wire.Message] = deque()
        self._scratch: memoryview | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        sock.settimeout(None)
        tick = struct.pack("ll", int(TICK), int(TICK % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)

    @property
    def scratch(self) -> memoryview:
        """The one buffer of this connection, of SLICE bytes, for bytes on their way through."""
        if self._scratch is None:
            self._scratch = memoryview(bytearray(SLICE))
        return self._scratch

    def close(self) -> None:
        """Close at once; what was not sent is lost."""
        self.socket.close()

    def readable(self, seconds: float = 0.0) -> bool:
        """Tell whether something can be read within that time."""
        return bool(self._absorbed) or bool(self._poll.poll(seconds * 1000))

    def receive(self, patience: float | None = None, *, within: float = math.inf) -> wire.Message | None:
        """Return the next message that counts, or None if the peer closed between two frames.

        The body of a block or pack has to be read with `read_body` before the next call; what belongs to a transfer
        that is over is passed over here.
        Arguments: `patience` in seconds to wait for the first byte, else the channel's timeout; `within` in seconds for
        all of it.
        Raises FrameError, UnknownMessage, OutOfTurn, RefusedName, TimedOut, ConnectionLost, what `check` raises.
        """
        self._check()
        return self._absorbed.popleft() if self._absorbed else self._receive(patience, within=within)

    def _receive(self, patience: float | None = None, *, within: float = math.inf) -> wire.Message | None:
        until = time.monotonic() + within
        while True:
            if self.body_left:
                self._skip_body()
            start = time.monotonic()
            prefix = memoryview(self._prefix)
            if not self._fill(prefix, min(until, start + (patience or self.timeout)), at_start=True):
                return None
            header = bytearray(wire.parse_length(prefix))
            deadline = time.monotonic() + self.timeout + len(header) / LEAST_RATE
            self._fill(memoryview(header), min(until, deadline))
            try:
                message = wire.parse(header)
            except wire.RefusedName as exc:
                if self._us == CLIENT:
                    raise ProtocolError("the server sent a name that may not be used") from exc
                if self.session.refuse(exc.t, exc.kind):
                    raise
                continue
            counts = self.session.saw(message, self._peer)
            self.body_left = getattr(message, "body", 0)
            if counts:
                return message

    def expect(self, patience: float | None = None) -> wire.Message:
        """Return the next message that counts, where the peer may not leave. Raises what `receive` does."""
        message = self.receive(patience)
        if message is None:
            raise ConnectionLost("the connection was lost (the other side closed it)")
        return message

    def read_body(self, view: memoryview) -> None:
        """Fill `view` from the body of the message that was just received. Raises what `receive` does."""
        self.body_left -= len(view)
        deadline = time.monotonic() + self.timeout + len(view) / LEAST_RATE
        if self._throttle is None:
            self._fill(view, deadline)
            return
        for at in range(0, len(view), self._slice):
            piece = view[at : at + self._slice]
            self._fill(piece, deadline + at / LEAST_RATE)
            self._throttle(len(piece))

    def send(self, message: wire.Message, body: Body = b"") -> None:
        """Send a message and its body. Raises OutOfTurn, TimedOut, ConnectionLost, what `check` raises."""
        self._check()
        self.session.saw(message, self._us)
        frame = wire.encode(message)
        size = len(frame) + len(body)
        deadline = time.monotonic() + self.timeout + size / LEAST_RATE
        if not body:
            self._send_all(memoryview(frame), deadline)
            return
        view = memoryview(body)
        step = len(view) if self._throttle is None else self._slice
        self._send_all(memoryview(frame), deadline, socket.MSG_MORE if hasattr(socket, "MSG_MORE") else 0)
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            self._send_all(piece, deadline)
            if self._throttle:
                self._throttle(len(piece))
                deadline += len(piece) / LEAST_RATE

    def _skip_body(self) -> None:
        while self.body_left:
            self.read_body(self.scratch[: self.body_left])

    def _fill(self, view: memoryview, deadline: float, *, at_start: bool = False) -> bool:
        """Fill the whole view; return False if the peer closed before the first byte and `at_start` allows it.

        At the start of a frame only the deadline counts; from its first byte on, silence counts too.
        """
        got = 0
        silent_since = time.monotonic()
        while got < len(view):
            try:
                count = self.socket.recv_into(view[got:], 0, socket.MSG_WAITALL)
            except (BlockingIOError, TimeoutError):
                self._tick(deadline, None if at_start and not got else silent_since)
                continue
            except OSError as exc:
                raise _lost(exc) from exc
            if count == 0:
                if at_start and got == 0:
                    return False
                raise ConnectionLost("the connection was lost (the other side closed it in the middle)")
            got += count
            self.bytes_in += count
            if got < len(view):
                silent_since = time.monotonic()
                self._tick(deadline, silent_since)
        return True

    def _send_all(self, view: memoryview, deadline: float, flags: int = 0) -> None:
        sent = 0
        silent_since = time.monotonic()
        pending = -1
        while sent < len(view):
            try:
                count = self.socket.send(view[sent : sent + SLICE], flags)
            except (BlockingIOError, TimeoutError):
                # A peer that does not read but still answers (it is syncing, say) is slow, not dead.
                now_pending = self._pending()
                if now_pending != pending:
                    pending, silent_since = now_pending, time.monotonic()
                if now_pending and self.absorbs:
                    pending = self._absorb()
                self._tick(deadline, silent_since)
                continue
            except OSError as exc:
                raise _lost(exc) from exc
            sent += count
            self.bytes_out += count
            silent_since = time.monotonic()

    def _absorb(self) -> int:
        """Take in what has arrived, or a peer that waits to be rid of its answers would never read what we send."""
        while (
            len(self._absorbed) < MOST_ABSORBED
            and not self.body_left
            and self._poll.poll(0)
            and (message := self._receive()) is not None
        ):
            self._absorbed.append(message)
        return self._pending()

    def _pending(self) -> int:
        """Return how many bytes have arrived and were not read."""
        count = fcntl.ioctl(self.socket, termios.FIONREAD, b"\0\0\0\0")
        return int.from_bytes(count, sys.byteorder)

    def _tick(self, deadline: float, silent_since: float | None) -> None:
        self._check()
        now = time.monotonic()
        if silent_since is not None and now - silent_since >= self.timeout:
            raise TimedOut(f"no byte from the other side for {self.timeout:g} s")
        if now >= deadline:
            raise TimedOut("the other side is too slow or has stopped")


def _nothing() -> None:
    """Let the channel go on."""


def _lost(exc: OSError) -> FtransferError:
    reason = (exc.strerror or str(exc)).lower()
    return ConnectionLost(f"the connection was lost ({reason})")

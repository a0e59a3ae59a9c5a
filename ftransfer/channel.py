"""A connected stream that carries frames and bodies under deadlines.

Knows sockets and pipes, but not who opened them (`net` and `ssh` do) nor what the messages mean. One thread owns one
channel. Every wait ends: silence longer than `timeout`, or a frame that comes in slower than `LEAST_RATE` on the whole,
raises TimedOut, so a peer that sends a byte a second holds nobody.
"""

from __future__ import annotations

import fcntl
import functools
import math
import select
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ftransfer import digests, wire
from ftransfer.errors import ConnectionLost, FtransferError, ProtocolError, TimedOut
from ftransfer.pipes import TAKES_FILES, FilePart, Pipes
from ftransfer.session import CLIENT, SERVER, Session

TICK = 0.5
"""Seconds after which a waiting channel looks at its deadline and whether it was cancelled."""
MOST_BUSY = 3600.0
"""Seconds that a peer may be busy with the same, removing a very large folder, say."""
LOOK = 0.1
"""Seconds of bytes without a pause after which a channel looks at its deadline all the same."""
LEAST_RATE = 1024
"""Bytes a second that a frame has to bring on the whole, beyond `timeout`."""
MOST_ABSORBED = 1 << 20
"""Bytes of messages that are taken in while a send waits."""
SLICE = 1 << 20
"""Bytes handed to the kernel in one call, so that a deadline is looked at between them."""

Body = bytes | bytearray | memoryview | FilePart
Stream = socket.socket | Pipes


class Channel:
    """Frames over a connected stream.

    Arguments: `sock`, plain, a TLS socket after its handshake, or a pair of pipes; `role` of this end; `timeout`,
    seconds without a byte after which the peer counts as dead; `check`, called before every message and in every wait,
    raises what has to stop the channel; `throttle`, told of the bytes of every body slice and may sleep; `least_rate`
    in bytes a second that the peer has to bring or take.
    """

    def __init__(
        self,
        sock: Stream,
        *,
        role: str,
        timeout: float = 60.0,
        check: Callable[[], None] | None = None,
        throttle: Callable[[int], None] | None = None,
        slice_size: int = SLICE,
        least_rate: float = LEAST_RATE,
    ):
        self.socket = sock
        self.session = Session()
        self.timeout = timeout
        self.absorbs = False
        """Whether answers are taken in while a send waits: for a sender, whose answers have no bodies."""
        self.block_algorithm = digests.DEFAULT
        """What the blocks of files are hashed with on this connection."""
        self.body_left = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self._us = role
        self._peer = SERVER if role == CLIENT else CLIENT
        self._check = check or _nothing
        self._throttle = throttle
        self._slice = slice_size
        self._least_rate = least_rate
        self._prefix = bytearray(4)
        self._absorbed: deque[tuple[wire.Message, int]] = deque()
        self._absorbed_bytes = 0
        self._busy_with: tuple[int, str, int] | None = None
        self._busy_since = 0.0
        self.header_size = 0
        """Bytes that the message took which was received last."""
        self._scratch: memoryview | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._decrypted: Callable[[], int] = getattr(sock, "pending", _none)
        """Bytes that TLS holds decrypted: they can be read though the socket has none."""
        self.is_encrypted = self._decrypted is not _none
        self.takes_files = TAKES_FILES and isinstance(sock, Pipes)
        """Whether a body may be a part of a file."""
        self._send_some: Callable[[Any, int], int] = sock.send
        self._more = getattr(socket, "MSG_MORE", 0)
        self._recv_into: Callable[[memoryview], int]
        if isinstance(sock, Pipes):
            self._recv_into = sock.recv_into
            return
        self._recv_into = functools.partial(_recv_all, sock)
        if self.is_encrypted:  # its sockets take no flags, and SO_RCVTIMEO does not end their waits
            self._recv_into = functools.partial(_read_record, getattr(sock, "read"))  # noqa: B009 - only an SSLSocket has it
            self._more = 0
            sock.settimeout(TICK)
            return
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
        if self.is_encrypted:
            self.say_goodbye()
        self.socket.close()

    def release(self) -> None:
        """Let go of the buffer and of what it was told to call: a connection that is over takes nothing."""
        self._scratch = None
        self._check = _nothing

    def say_goodbye(self) -> None:
        """Tell the peer that nothing more comes, so that it can tell this from a line that was cut."""
        goodbye(self.socket)
        self.shut_down(socket.SHUT_WR)

    def shut_down(self, how: int = socket.SHUT_RDWR) -> None:
        """End the stream below; also from another thread: the one that owns the channel sees it closed."""
        try:
            if isinstance(self.socket, Pipes):
                self.socket.shutdown(how)
            else:
                socket.socket.shutdown(self.socket, how)  # SSLSocket's own would go on in the clear
        except OSError:
            pass  # closed already

    def hang_up(self) -> None:
        """Close so that what was said last arrives: a close with unread bytes would take it back (RST)."""
        try:
            self.say_goodbye()
            if not isinstance(self.socket, Pipes):  # which take nothing back
                self.socket.setblocking(False)
                for _ in range(64):
                    if not self.readable(0.2) or not socket.socket.recv(self.socket, 4096):
                        break
        except OSError:
            pass
        self.socket.close()

    def readable(self, seconds: float = 0.0) -> bool:
        """Tell whether something can be read within that time."""
        return bool(self._absorbed) or self._decrypted() > 0 or bool(self._poll.poll(seconds * 1000))

    def receive(self, patience: float | None = None, *, within: float = math.inf) -> wire.Message | None:
        """Return the next message that counts, or None if the peer closed between two frames.

        The body of a block or pack has to be read with `read_body` before the next call; what belongs to a transfer
        that is over is passed over here.
        Arguments: `patience` in seconds to wait for the first byte, else the channel's timeout; `within` in seconds for
        all of it.
        Raises FrameError, UnknownMessage, OutOfTurn, RefusedName, TimedOut, ConnectionLost, what `check` raises.
        """
        self._check()
        if not self._absorbed:
            return self._receive(patience, within=within)
        message, self.header_size = self._absorbed.popleft()
        self._absorbed_bytes -= self.header_size
        return message

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
            deadline = time.monotonic() + self.timeout + len(header) / self._least_rate
            self._fill(memoryview(header), min(until, deadline))
            self.header_size = len(header) + 64  # and what the shortest takes here
            try:
                message = wire.parse(header)
            except wire.RefusedName as exc:
                if self._us == CLIENT:
                    raise ProtocolError("the server sent a name that may not be used") from exc
                if self.session.refuse(exc.t, exc.kind):
                    raise
                continue
            counts = self.session.saw(message, self._peer)
            self._see_progress(message)
            self.body_left = getattr(message, "body", 0)
            if counts:
                return message

    def _see_progress(self, message: wire.Message) -> None:
        """Raise TimedOut if all that the peer has said for long is that it is busy with the same."""
        if not isinstance(message, wire.Working):
            self._busy_with = None
        elif self._busy_with != (mark := (message.t, message.phase, message.done)):
            self._busy_with, self._busy_since = mark, time.monotonic()
        elif time.monotonic() - self._busy_since > MOST_BUSY:
            raise TimedOut(f"the other side is busy and gets no further for {MOST_BUSY / 60:g} min")

    def expect(self, patience: float | None = None) -> wire.Message:
        """Return the next message that counts, where the peer may not leave. Raises what `receive` does."""
        message = self.receive(patience)
        if message is None:
            raise ConnectionLost("the connection was lost (the other side closed it)")
        return message

    def read_body(self, view: memoryview) -> None:
        """Fill `view` from the body of the message that was just received. Raises what `receive` does."""
        self.body_left -= len(view)
        deadline = time.monotonic() + self.timeout + len(view) / self._least_rate
        if self._throttle is None:
            self._fill(view, deadline)
            return
        for at in range(0, len(view), self._slice):
            piece = view[at : at + self._slice]
            self._fill(piece, deadline + at / self._least_rate)
            self._throttle(len(piece))

    def send(self, message: wire.Message, body: Body = b"") -> None:
        """Send a message and its body. Raises OutOfTurn, TimedOut, ConnectionLost, what `check` raises."""
        self._check()
        self.session.saw(message, self._us)
        frame = wire.encode(message)
        size = len(frame) + len(body)
        deadline = time.monotonic() + self.timeout + size / self._least_rate
        if not body:
            self._send_all(memoryview(frame), deadline)
            return
        view = body if isinstance(body, FilePart) else memoryview(body)
        step = len(view) if self._throttle is None else self._slice
        self._send_all(memoryview(frame), deadline, self._more)
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            self._send_all(piece, deadline)
            if self._throttle:
                self._throttle(len(piece))
                deadline += len(piece) / self._least_rate

    def send_last(self, message: wire.Message) -> None:
        """Send what fits of a message, without waiting and whatever has been said before. Raises OSError."""
        if not isinstance(self.socket, Pipes):  # which never wait for long
            self.socket.setblocking(False)
        self.socket.send(memoryview(wire.encode(message)))

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
                count = self._recv_into(view[got:])
            except (BlockingIOError, TimeoutError):
                self._tick(deadline, None if at_start and not got else silent_since)
                continue
            except (OSError, ValueError) as exc:
                raise _lost(exc) from exc
            if count == 0:
                if at_start and got == 0:
                    return False
                raise ConnectionLost("the connection was lost (the other side closed it in the middle)")
            got += count
            self.bytes_in += count
            if got < len(view) and (now := time.monotonic()) - silent_since > LOOK:  # TLS brings 16 KiB at a time
                silent_since = now
                self._tick(deadline, silent_since)
        return True

    def _send_all(self, view: memoryview | FilePart, deadline: float, flags: int = 0) -> None:
        sent = 0
        silent_since = time.monotonic()
        pending = -1
        while sent < len(view):
            try:
                count = self._send_some(view[sent : sent + SLICE], flags)
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
            self._absorbed_bytes < MOST_ABSORBED
            and not self.body_left
            and (self._decrypted() or self._poll.poll(0))
            and (message := self._receive()) is not None
        ):
            self._absorbed.append((message, self.header_size))
            self._absorbed_bytes += self.header_size
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


def goodbye(sock: Stream) -> None:
    """Say over TLS that nothing more comes; a plain socket is left as it is."""
    unwrap = getattr(sock, "unwrap", None)
    try:
        if unwrap is not None and not isinstance(sock, Pipes):
            sock.settimeout(0)
            unwrap()  # sends ours, and would wait for theirs
    except (OSError, ValueError):
        pass  # gone, or theirs has not come yet


def _nothing() -> None:
    """Let the channel go on."""


def _none() -> int:
    """Return how many bytes a plain socket holds decrypted."""
    return 0


def _read_record(read: Callable[[int, memoryview], int], view: memoryview) -> int:
    """Read what one record of TLS brings; after a goodbye this fails, where `recv_into` would read on in the clear."""
    return read(len(view), view)


def _recv_all(sock: socket.socket, view: memoryview) -> int:
    """Fill the view in one call, unless the peer pauses."""
    return sock.recv_into(view, 0, socket.MSG_WAITALL)


def _lost(exc: OSError | ValueError) -> FtransferError:
    kind = type(exc).__name__
    if kind == "SSLEOFError":
        return ConnectionLost("the connection was lost (its TLS stream was cut)")
    if kind.startswith("SSL"):
        return ConnectionLost("the connection was lost (what came was not what was sent: a bad line, or an attack)")
    reason = (getattr(exc, "strerror", None) or str(exc)).lower()
    return ConnectionLost(f"the connection was lost ({reason})")

"""The server's side of one connection: a loop over its messages, in a thread of its own.

Made by `server` for every connection it accepts. It owns the channel; what it shares with other connections is the
store and the server's counters.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ftransfer import SOFTWARE, net, paths, wire
from ftransfer.answering import Answers, check_writable
from ftransfer.channel import Channel
from ftransfer.errors import (
    AlreadyExists,
    ConnectionLost,
    DiskError,
    FtransferError,
    NotFound,
    OutOfTurn,
    ProtocolError,
    ServerClosing,
    ServerFull,
    SourceChanged,
    TimedOut,
    VersionMismatch,
)
from ftransfer.host import Host, Outcome
from ftransfer.receiving import Incoming, decide
from ftransfer.sending import Outgoing, Sender
from ftransfer.session import SERVER
from ftransfer.store.base import Description
from ftransfer.treeserving import ServedTrees

log = logging.getLogger("ftransfer.server")


MOST_QUEUED = 1024
"""Messages that are kept while a file is sent."""


class _Sent(NamedTuple):
    """A file that was sent to its end, and whose receipt is still to come."""

    get: wire.Get
    out: Outgoing
    started: float


class Connection:
    """One client, from its hello to its end."""

    def __init__(self, server: Host, sock: socket.socket):
        self._server = server
        self.peer = net.describe_peer(sock)
        self.id = os.urandom(16).hex()
        self.channel = Channel(sock, role=SERVER, timeout=server.timeout, check=self._check)
        self._incoming: dict[int, Incoming] = {}
        self._described: dict[int, tuple[wire.Put, float]] = {}
        self._outgoing: dict[int, _Sent] = {}
        self._sender = Sender(self.channel, receive=self._expect, other=self._queue_up)
        self._trees = ServedTrees(server, self.channel, self._sender, self._log)
        self._queue: deque[wire.Message] = deque()
        self._handlers: dict[type[wire.Message], Callable[[Any], Outcome]] = {
            wire.Put: self._put,
            wire.Get: self._get,
            wire.Block: lambda m: self._incoming[m.t].block(m),
            wire.Hole: lambda m: self._incoming[m.t].hole(m),
            wire.End: self._end,
            wire.Stored: self._answer,
            wire.Want: self._answer,
            wire.Receipt: self._answer,
            wire.Error: self._error,
            wire.Working: lambda _: None,
            **Answers(server, self.channel).handlers,
            **self._trees.handlers,
        }

    def run(self) -> None:
        """Serve until the client leaves or fails; never raises."""
        log.debug("%s connected", self.peer)
        try:
            self._greet()
            while (message := self._next()) is not None:
                self._handle(message)
        except (ConnectionLost, TimedOut, ServerClosing) as exc:
            log.info("%s connection ended: %s", self.peer, exc)
            if not isinstance(exc, ConnectionLost):
                self._say(exc)
        except FtransferError as exc:
            log.warning("%s refused: %s (%s)", self.peer, paths.printable(str(exc)), exc.code)
            self._say(exc)
        except Exception:
            log.exception("%s internal error", self.peer)
            self._say(FtransferError("internal error"))
        finally:
            self._let_go_of_all()
            self._hang_up()
            log.debug("%s left", self.peer)

    def _let_go_of_all(self) -> None:
        """Forget everything that is open; a failure of one keeps nothing of the others."""
        goings: list[Callable[[], object]] = [self._trees.close]
        goings += [partial(self._let_go, t, "interrupted") for t in self._incoming]
        goings += [partial(self._end_sending, t, "interrupted") for t in self._outgoing]
        for go in goings:
            try:
                go()
            except (OSError, FtransferError) as exc:
                log.warning("%s cannot let go: %s", self.peer, exc)

    def shut_down(self) -> None:
        """End the connection from another thread: the thread that owns it sees it closed."""
        try:
            self.channel.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed already

    def _check(self) -> None:
        if self._server.closing and (self.channel.session.idle or self._server.grace_is_over):
            raise ServerClosing("the server is shutting down")

    def _say(self, exc: FtransferError) -> None:
        """Tell the client why the connection ends, if it still listens."""
        try:
            self.channel.socket.setblocking(False)
            self.channel.socket.send(wire.encode(wire.error_message(exc)))
        except (OSError, FtransferError):
            pass  # gone, or its buffer is full: nothing more can be said

    def _hang_up(self) -> None:
        """Close so that what was said last arrives: a close with unread bytes would take it back (RST)."""
        sock = self.channel.socket
        try:
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            for _ in range(64):
                if not self.channel.readable(0.2) or not sock.recv(4096):
                    break
        except OSError:
            pass
        self.channel.close()

    # The loop.

    def _greet(self) -> None:
        patience = self._server.limits.handshake_seconds
        hello = self.channel.receive(patience, within=patience)
        if hello is None:
            raise ConnectionLost("it left without a word")
        if not isinstance(hello, wire.Hello):
            raise OutOfTurn("the first message has to be hello")
        if wire.VERSION not in hello.versions:
            raise VersionMismatch(f"this server speaks version {wire.VERSION}, the client {list(hello.versions)}")
        if hello.former is not None:
            self._server.end_former(hello.former)
        welcome = wire.Welcome(
            version=wire.VERSION,
            software=SOFTWARE,
            session=self.id,
            read_only=self._server.read_only,
            durable=self._server.store.capabilities.durable,
        )
        self.channel.send(welcome)

    def _queue_up(self, message: wire.Message) -> None:
        """Keep what came while a file is sent; a request that is taken back goes from the queue."""
        if isinstance(message, wire.Working):
            return
        if isinstance(message, wire.Error):
            kept = deque(other for other in self._queue if getattr(other, "t", None) != message.t)
            was_queued, self._queue = len(kept) < len(self._queue), kept
            if was_queued:
                return
        if len(self._queue) >= MOST_QUEUED:
            raise ProtocolError(f"more than {MOST_QUEUED} messages while a file is sent")
        self._queue.append(message)

    def _next(self) -> wire.Message | None:
        """Return the next message; while none has arrived, hash what was staged before."""
        if self._queue:
            return self._queue.popleft()
        for t, incoming in list(self._incoming.items()):
            try:
                while incoming.is_behind and not self.channel.readable():
                    incoming.catch_up()
            except DiskError as exc:
                self._let_go(t, exc.code)
                self.channel.send(wire.error_message(exc, t))
        self._trees.commit_if_idle()
        idle = self.channel.session.idle
        try:
            return self._receive(self._server.limits.idle_seconds if idle else None)
        except TimedOut:
            if idle:
                return None
            raise

    def _expect(self) -> wire.Message:
        """Return the next message while a file is on its way out, when the client may not leave."""
        message = self._receive()
        if message is None:
            raise ConnectionLost("the client left in the middle")
        return message

    def _receive(self, patience: float | None = None) -> wire.Message | None:
        """Return the next message; a request whose only fault is a name is refused here."""
        while True:
            try:
                return self.channel.receive(patience)
            except wire.RefusedName as exc:
                log.info("%s refused: %s", self.peer, exc)
                self.channel.send(wire.error_message(exc, exc.t))

    def _handle(self, message: wire.Message) -> None:
        t: int | None = getattr(message, "t", None)
        started = time.monotonic()
        try:
            outcome = self._handlers[type(message)](message)
            if outcome is not None:
                self._log(message, started, *outcome)
        except (ConnectionLost, TimedOut, ServerClosing, ProtocolError):
            raise
        except FtransferError as exc:
            if t is None:
                raise
            if t in self._incoming:
                self._let_go(t, exc.code)
            elif t in self._outgoing:
                self._end_sending(t, exc.code)
            elif not self._trees.let_go(t, exc.code):
                self._log(message, started, 0, exc.code)
            if self.channel.session.is_open(t):
                self.channel.send(wire.error_message(exc, t))

    # Files.

    def _put(self, put: wire.Put) -> Outcome:
        store = self._server.store
        check_writable(self._server)
        description = Description(
            put.path, put.size, put.fingerprint, put.mtime_ns, put.mode, put.transfer, put.if_exists
        )
        done = store.committed(description)
        if done is not None:  # its receipt was lost
            self.channel.send(_receipt(put.t, "stored", done.path, done.size, done.hex, durable=done.durable))
            return 0, "repeated"
        try:
            found = store.stat(put.path)
        except NotFound:
            found = None
        outcome = decide(found, description, put.compare, store.clock_step)
        if outcome is not None:
            self.channel.send(_receipt(put.t, outcome, put.path, found.size if found else None))
            return 0, outcome
        if not self._server.uploads.acquire(blocking=False):
            raise ServerFull(f"the server has {self._server.limits.uploads} uploads open, which is its limit")
        try:
            staging = store.claim(description, resume=put.resume)
            try:
                staging.check_space()
            except BaseException:
                staging.release()
                raise
        except BaseException:
            self._server.uploads.release()
            raise
        incoming = Incoming(staging, put.path, put.size, algorithm=put.algorithm)
        self._incoming[put.t] = incoming
        self._described[put.t] = (put, time.monotonic())
        incoming.bind(self.channel, put.t, wait=put.wait)
        return None

    def _end(self, end: wire.End) -> None:
        incoming = self._incoming[end.t]
        put, _ = self._described[end.t]
        try:
            done = incoming.end(end)
        except AlreadyExists:
            if put.if_exists not in ("newer", "skip"):
                raise
            self.channel.send(_receipt(end.t, "skipped", put.path, end.size))
            self._let_go(end.t, "skipped")
            return
        if done is not None:
            self._let_go(end.t, "stored")
            self.channel.send(incoming.receipt(done))

    def _let_go(self, t: int, result: str) -> None:
        """Forget an upload, which is over or will be resumed by somebody, and write its line."""
        incoming = self._incoming.pop(t)
        put, started = self._described.pop(t)
        incoming.staging.release()
        self._server.uploads.release()
        self._log(put, started, incoming.received_bytes, result)

    def _error(self, error: wire.Error) -> None:
        """Take note that the client gives up one transfer, or the connection."""
        if error.t is None:
            raise ConnectionLost(f"the client said: {paths.printable(error.message)}")
        if error.t in self._incoming:
            incoming = self._incoming[error.t]
            if incoming.size is None:
                incoming.staging.discard()  # a stream that ended badly is never gone on with
            self._let_go(error.t, f"given up by the client ({error.code})")
        elif error.t in self._outgoing:
            self._end_sending(error.t, f"the client failed: {error.code}")
        else:
            self._trees.let_go(error.t, f"given up by the client ({error.code})")

    def _get(self, get: wire.Get) -> Outcome:
        """Send a file up to its end; its receipt may come while others are sent."""
        started = time.monotonic()
        source = self._server.store.open(get.path, follow=get.links == "follow")
        out = Outgoing(source, get.path, algorithm=get.algorithm)
        self._outgoing[get.t] = _Sent(get, out, started)
        out.bind(get.t, wait=get.wait)
        announced = wire.File(
            t=get.t,
            size=source.size or 0,
            fingerprint=source.fingerprint,
            mtime_ns=source.mtime_ns,
            mode=source.mode,
        )
        self.channel.send(announced)
        self._push(out)
        return None

    def _push(self, out: Outgoing) -> None:
        """Send a file up to its end; a failure of this file, here or there, ends it alone."""
        try:
            receipt = self._sender.push(out)
        except (ConnectionLost, TimedOut, ServerClosing):
            raise
        except FtransferError as exc:
            if not (exc.remote or isinstance(exc, (SourceChanged, DiskError))):
                raise
            # What the client reported ends this file; what broke here was reported by the sender.
            self._end_sending(out.t, f"the client failed: {exc.code}" if exc.remote else exc.code)
            return
        if receipt is not None:
            self._received(receipt)

    def _answer(self, message: wire.Stored | wire.Want | wire.Receipt) -> Outcome:
        """Take an answer to a file that was sent to its end."""
        sent = self._outgoing.get(message.t)
        if sent is None:
            raise OutOfTurn(f"{message.type} for number {message.t}, which is not being sent")
        receipt = self._sender.take(sent.out, message)
        if receipt is not None:
            self._received(receipt)
        elif not sent.out.ended:
            self._push(sent.out)
        return None

    def _received(self, receipt: wire.Receipt) -> None:
        self._end_sending(receipt.t, f"received, {'durable' if receipt.durable else 'not synced'}")

    def _end_sending(self, t: int, result: str) -> None:
        """Let go of a file that was sent, or will not be, and write its line."""
        sent = self._outgoing.pop(t)
        sent.out.source.close()
        self._log(sent.get, sent.started, sent.out.sent_bytes, result)

    def _log(self, message: Any, started: float, count: int, result: str) -> None:
        """Write the one line of a request: peer, what, path, bytes, seconds, rate, result."""
        seconds = time.monotonic() - started
        rate = count / seconds / (1 << 20) if seconds > 0 else 0.0
        names = [paths.printable(getattr(message, field)) for field in ("path", "target") if hasattr(message, field)]
        what = " ".join([message.type, " -> ".join(names) or "/"]) if names else message.type
        log.info("%s %s %d bytes %.3f s %.1f MiB/s %s", self.peer, what, count, seconds, rate, result)


def _receipt(
    t: int, result: str, path: str, size: int | None, hex_digits: str | None = None, *, durable: bool = False
) -> wire.Receipt:
    return wire.Receipt(t=t, result=result, path=path, size=size, hash=hex_digits, durable=durable)

"""The server's side of one connection: a loop over its messages, in a thread of its own.

Made by `server` for every connection it accepts. It owns the channel; what it shares with other connections is the
store and the server's counters.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ftransfer import accesslog, digests, net, paths, wire
from ftransfer.admission import Admitted
from ftransfer.answering import Answers
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
    SourceChanged,
    TimedOut,
)
from ftransfer.greeting import greet, welcome
from ftransfer.host import Host, Outcome, Visitor
from ftransfer.receiving import Incoming, decide
from ftransfer.sending import Outgoing, Sender
from ftransfer.session import OPEN, SERVER
from ftransfer.store.base import Description, Store
from ftransfer.treeserving import ServedTrees

log = logging.getLogger("ftransfer.server")


LOOK_SECONDS = 0.5
"""Time between two looks at whether a client may still do what it does."""
MOST_QUEUED, MOST_QUEUED_BYTES = 1024, 2 << 20
"""Messages that are kept while a file is sent."""


class _Sent(NamedTuple):
    """A file that was sent to its end, and whose receipt is still to come."""

    get: wire.Get
    out: Outgoing
    started: float


class Connection:
    """One client, from its hello to its end; `on_admitted` is called once it is known who it is."""

    def __init__(self, server: Host, visitor: Visitor, *, on_admitted: Callable[[Visitor, str], None]):
        self._server = server
        self._visitor = visitor
        self._on_admitted = on_admitted
        self.peer = net.describe_peer(visitor.socket)
        self.id = os.urandom(16).hex()
        self.admitted: Admitted | None = None
        """Who was let in; until then nothing can be asked, because there are no handlers."""
        self._looked_at = 0.0
        self.channel = Channel(
            visitor.socket, role=SERVER, timeout=server.timeout, check=self._check, least_rate=server.limits.least_rate
        )
        self._incoming: dict[int, Incoming] = {}
        self._described: dict[int, tuple[wire.Put, float]] = {}
        self._outgoing: dict[int, _Sent] = {}
        self._sender = Sender(self.channel, receive=self._expect, other=self._queue_up)
        self._queue: deque[wire.Message] = deque()
        self._queued_bytes = 0
        self._handlers: dict[type[wire.Message], Callable[[Any], Outcome]] = {}
        self._store: Store
        self._reads = False
        self._user = ""
        self._served_trees: ServedTrees | None = None

    @property
    def _trees(self) -> ServedTrees:
        assert self._served_trees is not None
        return self._served_trees

    def _open_to(self, admitted: Admitted, features: Sequence[str]) -> None:
        """Take requests from now on, of somebody who was let in, with a client that has these features."""
        server = self._server
        self._user = admitted.account.name
        self._on_admitted(self._visitor, self._user)
        self._store = server.admitted(admitted, self._visitor.host)
        trees = self._served_trees = ServedTrees(server, self.channel, self._sender, self._log, self._store, self._user)
        self._handlers = {
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
            **Answers(server, self.channel, self._store).handlers,
            **trees.handlers,
        }
        self.admitted = admitted
        self._reads = "read" in admitted.account.can
        if "blake2b" in features and (digests.SLOW in features or not digests.is_quick()):
            self.channel.block_algorithm = "blake2b"
        durable = self._store.capabilities.durable
        self.channel.send(welcome(admitted, self.id, durable=durable, blocks=self.channel.block_algorithm))

    def run(self) -> None:
        """Serve until the client leaves or fails; never raises."""
        log.debug("%s connected%s", self.peer, ", encrypted" if self.channel.is_encrypted else "")
        try:
            hello, admitted = greet(self._server, self.channel, self._visitor)
            if hello.former is not None:
                self._server.end_former(hello.former, admitted.account)
            self._open_to(admitted, hello.features)
            while (message := self._next()) is not None:
                self._handle(message)
        except (ConnectionLost, TimedOut, ServerClosing) as exc:
            log.log(self._level(logging.INFO), "%s connection ended: %s", self.peer, exc)
            if not isinstance(exc, ConnectionLost):
                self._say(exc)
        except FtransferError as exc:
            log.log(self._level(logging.WARNING), "%s refused: %s (%s)", self.peer, paths.printable(str(exc)), exc.code)
            self._say(exc)
        except Exception:
            log.exception("%s internal error", self.peer)
            self._say(FtransferError("internal error"))
        finally:
            self._let_go_of_all()
            self.channel.hang_up()
            self._handlers.clear()  # or buffers would wait for the collector of cycles, which comes seldom
            self._sender.release()
            self.channel.release()
            log.debug("%s left", self.peer)

    def _level(self, level: int) -> int:
        return level if self.admitted is not None else logging.DEBUG  # strangers do not fill the log

    def _let_go_of_all(self) -> None:
        """Forget everything that is open; a failure of one keeps nothing of the others."""
        if self._served_trees is None:
            return
        goings: list[Callable[[], object]] = [self._trees.close]
        goings += [partial(self._let_go, t, "interrupted") for t in self._incoming]
        goings += [partial(self._end_sending, t, "interrupted") for t in self._outgoing]
        goings.append(self._store.close)
        for go in goings:
            try:
                go()
            except (OSError, FtransferError) as exc:
                log.warning("%s cannot let go: %s", self.peer, exc)

    def shut_down(self) -> None:
        """End the connection from another thread: the thread that owns it sees it closed."""
        self.channel.shut_down()

    def _check(self) -> None:
        if self._server.closing and (self.channel.session.idle or self._server.grace_is_over):
            raise ServerClosing("the server is shutting down")
        if self.admitted is not None and (now := time.monotonic()) - self._looked_at >= LOOK_SECONDS:
            self._server.admission.still(self.admitted)
            self._looked_at = now  # behind it: who is not let in any more is told so each time

    def _say(self, exc: FtransferError) -> None:
        """Tell the client why the connection ends, if it still listens."""
        try:
            self.channel.send_last(wire.error_message(exc))
        except (OSError, FtransferError):
            pass  # gone, or its buffer is full: nothing more can be said

    # The loop.

    def _queue_up(self, message: wire.Message) -> None:
        """Keep what came while a file is sent; a request that is taken back goes from the queue."""
        if isinstance(message, wire.Working):
            return
        if isinstance(message, wire.Error):
            kept = deque(other for other in self._queue if getattr(other, "t", None) != message.t)
            was_queued, self._queue = len(kept) < len(self._queue), kept
            if was_queued:
                return
        self._queued_bytes = self.channel.header_size + (self._queued_bytes if self._queue else 0)
        if len(self._queue) >= MOST_QUEUED or self._queued_bytes > MOST_QUEUED_BYTES:
            raise ProtocolError("too many messages while a file is sent")
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
        store = self._store
        description = Description(
            put.path, put.size, put.fingerprint, put.mtime_ns, put.mode, put.transfer, put.if_exists
        )
        done = store.committed(description)
        if done is not None:  # its receipt was lost
            self.channel.send(
                wire.Receipt(
                    t=put.t, result="stored", path=done.path, size=done.size, hash=done.hex, durable=done.durable
                )
            )
            return 0, "repeated"
        found = None
        if self._reads:  # who may not look learns nothing
            try:
                found = store.stat(put.path)
            except NotFound:
                pass
        outcome = decide(found, description, put.compare, store.clock_step)
        if outcome is not None:
            self.channel.send(wire.Receipt(t=put.t, result=outcome, path=put.path, size=found.size if found else None))
            return 0, outcome
        self._server.uploads.take(self._user)
        try:
            staging = store.claim(description, resume=put.resume)
            try:
                staging.check_space()
            except BaseException:
                staging.release()
                raise
        except BaseException:
            self._server.uploads.give_back(self._user)
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
            self.channel.send(wire.Receipt(t=end.t, result="skipped", path=put.path, size=end.size))
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
        self._server.uploads.give_back(self._user)
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
        source = self._store.open(get.path, follow=get.links == "follow")
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
            if self.channel.session.state != OPEN:
                raise ConnectionLost(f"the client said: {paths.printable(str(exc))}") from exc
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
        accesslog.write(message, peer=self.peer, user=self._user, started=started, count=count, result=result)

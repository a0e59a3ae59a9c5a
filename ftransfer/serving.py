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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ftransfer import SOFTWARE, digests, net, paths, wire
from ftransfer.channel import Channel
from ftransfer.errors import (
    AlreadyExists,
    ConnectionLost,
    DiskError,
    FtransferError,
    NotFound,
    OutOfTurn,
    ProtocolError,
    Refused,
    ServerClosing,
    ServerFull,
    SourceChanged,
    TimedOut,
    VersionMismatch,
)
from ftransfer.host import Host
from ftransfer.receiving import SIGN_OF_LIFE, Incoming, decide, with_life
from ftransfer.sending import Outgoing, Sender
from ftransfer.session import SERVER
from ftransfer.store.base import Description

log = logging.getLogger("ftransfer.server")


Outcome = tuple[int, str] | None
"""What a handler has to say in the log: bytes and result, or nothing yet."""


class Connection:
    """One client, from its hello to its end."""

    def __init__(self, server: Host, sock: socket.socket):
        self._server = server
        self.peer = net.describe_peer(sock)
        self.id = os.urandom(16).hex()
        self.channel = Channel(sock, role=SERVER, timeout=server.timeout, check=self._check)
        self._incoming: dict[int, Incoming] = {}
        self._described: dict[int, tuple[wire.Put, float]] = {}
        self._queue: deque[wire.Message] = deque()
        self._handlers: dict[type[wire.Message], Callable[[Any], Outcome]] = {
            wire.Put: self._put,
            wire.Get: self._get,
            wire.Block: lambda m: self._incoming[m.t].block(m),
            wire.Hole: lambda m: self._incoming[m.t].hole(m),
            wire.End: self._end,
            wire.Error: self._error,
            wire.Working: lambda _: None,
            wire.List: self._list,
            wire.Stat: self._stat,
            wire.Checksum: self._checksum,
            wire.Mkdir: lambda m: self._change(m, lambda s: s.mkdir(m.path, parents=m.parents)),
            wire.Remove: lambda m: self._change(m, lambda s: s.remove(m.path, recursive=m.recursive)),
            wire.Move: lambda m: self._change(m, lambda s: s.move(m.path, m.target)),
            wire.Partials: self._partials,
            wire.Ping: self._ping,
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
            for t in list(self._incoming):
                self._let_go(t, "interrupted")
            self._hang_up()
            log.debug("%s left", self.peer)

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

    def _later(self, message: wire.Message) -> None:
        """Keep a request that came while a file is sent; one that is taken back goes from the queue."""
        t: int | None = getattr(message, "t", None)
        if isinstance(message, wire.Error):
            self._queue = deque(kept for kept in self._queue if getattr(kept, "t", None) != t)
        else:
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
            else:
                self._log(message, started, 0, exc.code)
            if self.channel.session.is_open(t):
                self.channel.send(wire.error_message(exc, t))

    # Files.

    def _put(self, put: wire.Put) -> Outcome:
        store = self._server.store
        self._check_writable()
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

    def _get(self, get: wire.Get) -> Outcome:
        with self._server.store.open(get.path) as source:
            out = Outgoing(source, get.path, algorithm=get.algorithm)
            out.bind(get.t, wait=get.wait)
            announced = wire.File(
                t=get.t,
                size=source.size or 0,
                fingerprint=source.fingerprint,
                mtime_ns=source.mtime_ns,
                mode=source.mode,
            )
            self.channel.send(announced)
            sender = Sender(self.channel, receive=self._expect, other=self._later)
            started = time.monotonic()
            try:
                receipt = sender.run(out)
            except (ConnectionLost, TimedOut, ServerClosing):
                self._log(get, started, out.sent_bytes, "interrupted")
                raise
            except FtransferError as exc:
                if not (exc.remote or isinstance(exc, (SourceChanged, DiskError))):
                    raise
                # What the client reported ends this file; what broke here was reported by the sender.
                return out.sent_bytes, f"the client failed: {exc.code}" if exc.remote else exc.code
            return out.sent_bytes, f"received, {'durable' if receipt.durable else 'not synced'}"

    # Operations.

    def _list(self, message: wire.List) -> Outcome:
        entries = self._server.store.entries(message.path, recursive=message.recursive)
        for rows, more in _pages(tuple(entry) for entry in entries):
            self.channel.send(wire.Entries(t=message.t, rows=rows, more=more))
        return 0, "listed"

    def _stat(self, message: wire.Stat) -> Outcome:
        entry = self._server.store.stat(message.path)
        self.channel.send(wire.Entries(t=message.t, rows=[(*entry,)]))
        return 0, entry.kind

    def _checksum(self, message: wire.Checksum) -> Outcome:
        last = time.monotonic()
        hasher = digests.new(message.algorithm)
        buffer = self.channel.scratch
        done = 0
        with self._server.store.open(message.path) as source:
            while count := source.read_into(done, buffer):
                hasher.update(buffer[:count])
                done += count
                if time.monotonic() - last >= SIGN_OF_LIFE / 4:
                    last = time.monotonic()
                    beat = wire.Working(t=message.t, phase="hashing", done=done, total=max(done, source.size or 0))
                    self.channel.send(beat)
            source.check()
        self.channel.send(wire.Digest(t=message.t, size=done, hash=hasher.hexdigest()))
        return done, "hashed"

    def _change(self, message: Any, act: Callable[[Any], None]) -> Outcome:
        self._check_writable()
        store = self._server.store
        alive = wire.Working(t=message.t, phase=message.type, done=0)
        with_life(lambda: act(store), lambda: self.channel.send(alive))  # a tree may take minutes to remove
        self.channel.send(wire.Done(t=message.t))
        return 0, "done"

    def _partials(self, message: wire.Partials) -> Outcome:
        if message.clear:
            self._check_writable()
        found = self._server.store.partials(message.path, clear=message.clear)
        for rows, more in _pages((p.path, p.size, p.held, p.mtime_ns) for p in found):
            self.channel.send(wire.Staged(t=message.t, rows=rows, more=more))
        return 0, f"{len(found)} {'dropped' if message.clear else 'unfinished'}"

    def _ping(self, message: wire.Ping) -> Outcome:
        counts = f"connections: {self._server.connection_count} of {self._server.limits.connections}"
        self.channel.send(wire.Pong(t=message.t, facts=[counts, *net.facts(self.channel.socket)]))
        return 0, "answered"

    def _check_writable(self) -> None:
        if self._server.read_only:
            raise Refused("this server only lets you read", hint="start it without --read-only to write")

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


def _pages(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[list[Any], bool]]:
    """Yield (rows, whether more follow), each page well below the limit of a header; an empty one if there is none."""
    page: list[Any] = []
    size = 0
    for row in rows:
        if size > wire.PAGE_BYTES or len(page) == wire.MAX_ROWS:
            yield page, True
            page, size = [], 0
        page.append(row)
        size += 100 + 6 * len(row[0])  # JSON may write a character as six
    yield page, False

"""The server: listens, accepts, limits, drains. One thread a connection; what a connection does is in `serving`."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from typing import Self

from ftransfer import net, wire
from ftransfer.errors import ServerFull, UsageError
from ftransfer.host import Limits
from ftransfer.serving import Connection
from ftransfer.store.base import Store
from ftransfer.store.local import LocalStore

log = logging.getLogger("ftransfer.server")
SWEEP_SECONDS = 3600.0
"""Time between two sweeps of old staging."""
FORMER_SECONDS = 5.0
"""Longest wait for a connection that its own client has replaced."""
TURNED_AWAY = 16
"""Connections beyond the limit that are told so at a time; more are just closed."""
TURN_AWAY_SECONDS = 2.0
"""What a connection beyond the limit gets to read that."""


class Server:
    """Serve a folder.

    ```python
    with ftransfer.Server("/srv/data") as server:
        print(server.urls[0])
    ```

    Arguments: `root`, the folder; `listen`, addresses as `HOST:PORT`, `[::1]:PORT`, `:PORT` or `unix:PATH`, port 0
    for a free one; `read_only` refuses everything that changes files; `durable` syncs each file before its receipt;
    `insecure` allows addresses that other machines reach; `timeout`, seconds of silence after which a client counts
    as dead; `limits`. Entering the block starts the threads, leaving it stops them. Raises UsageError, Unreachable,
    NotFound, NotAFile. Methods may be called from any thread.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        listen: tuple[str, ...] | list[str] = ("127.0.0.1:0",),
        read_only: bool = False,
        durable: bool = True,
        insecure: bool = False,
        timeout: float = 60.0,
        limits: Limits | None = None,
    ):
        self.store: Store = LocalStore(root, durable=durable)
        self.read_only = read_only
        self.timeout = timeout
        self.limits = limits or Limits()
        self.uploads = threading.BoundedSemaphore(self.limits.uploads)
        self.closing = False
        self._grace_until = 0.0
        self._listeners: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, Connection | None] = {}
        self._acceptor: threading.Thread | None = None
        self._wake_out, self._wake_in = socket.socketpair()
        try:
            for where in listen:
                self._listeners += net.listen(where, insecure=insecure)
        except BaseException:
            self._close_all()
            raise

    @property
    def urls(self) -> list[str]:
        """The addresses under which it is reached, as the client takes them."""
        return [url for sock in self._listeners for url in net.urls(sock)]

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        return len(self._threads)

    @property
    def grace_is_over(self) -> bool:
        """Whether running transfers are to be cut."""
        return self.closing and time.monotonic() >= self._grace_until

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(grace=0.0)

    def start(self) -> None:
        """Accept connections in a thread of its own. Raises UsageError if it was closed."""
        if self.closing:
            raise UsageError("this server was stopped", hint="make another one")
        self._acceptor = threading.Thread(target=self.serve_forever, name="ftransfer-accept", daemon=True)
        self._acceptor.start()

    def serve_forever(self) -> None:
        """Accept connections in this thread until `stop` or `close` is called, and sweep old staging now and then."""
        if not self.read_only:
            self._sweep()
        swept = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not self.closing:
                for key, _ in selector.select(SWEEP_SECONDS):
                    if key.fileobj is not self._wake_out and isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj)
                if time.monotonic() - swept > SWEEP_SECONDS and not self.read_only:
                    self._sweep()
                    swept = time.monotonic()

    def stop(self) -> None:
        """Ask `serve_forever` to return; may be called from a signal handler."""
        if not self.closing:
            self._grace_until = time.monotonic() + self.limits.grace_seconds
            self.closing = True  # last: who sees it looks at the other
        try:
            self._wake_in.send(b".")
        except OSError:
            pass  # closed already

    def cut(self) -> None:
        """End the grace of running transfers now; may be called from a signal handler."""
        self._grace_until = 0.0

    def close(self, *, grace: float | None = None) -> None:
        """Stop: no new connections; what is running may finish for `grace` seconds, then is cut and can be resumed."""
        self.stop()
        if grace is not None:
            self._grace_until = time.monotonic() + grace
        if self._acceptor is not None and self._acceptor is not threading.current_thread():
            self._acceptor.join()
        for listener in self._listeners:
            _close_listener(listener)
        while (left := self._grace_until - time.monotonic()) > 0 and (thread := self._any_thread()) is not None:
            thread.join(min(left, 0.1))
        for connection in list(self._threads.values()):
            if connection is not None:
                connection.shut_down()
        while (thread := self._any_thread()) is not None:
            thread.join()
        self._close_all()

    def _any_thread(self) -> threading.Thread | None:
        with self._lock:
            return next(iter(self._threads), None)

    def _close_all(self) -> None:
        for sock in (*self._listeners, self._wake_in, self._wake_out):
            sock.close()
        self.store.close()

    def _sweep(self) -> None:
        try:
            dropped = self.store.sweep()
        except OSError as exc:
            log.warning("cannot sweep old staging: %s", exc)
            return
        if dropped:
            log.info("dropped %d old unfinished transfers", dropped)

    # Connections.

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as exc:
            log.warning("cannot accept a connection: %s", exc)  # out of descriptors, most likely
            time.sleep(0.05)
            return
        try:
            net.tune(sock)
            self._start_connection(sock)
        except (OSError, RuntimeError) as exc:
            log.warning("cannot serve a connection: %s", exc)
            sock.close()

    def _start_connection(self, sock: socket.socket) -> None:
        count = len(self._threads)
        if count >= self.limits.connections + TURNED_AWAY:
            sock.close()
            return
        is_full = count >= self.limits.connections
        thread = threading.Thread(
            target=self._turn_away if is_full else self._run, args=(sock,), name="ftransfer-connection", daemon=True
        )
        with self._lock:
            self._threads[thread] = None
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                del self._threads[thread]
            raise

    def _run(self, sock: socket.socket) -> None:
        thread = threading.current_thread()
        try:
            connection = Connection(self, sock)
            with self._lock:
                self._threads[thread] = connection
            connection.run()
        finally:
            sock.close()
            with self._lock:
                self._threads.pop(thread, None)

    def _turn_away(self, sock: socket.socket) -> None:
        """Tell a client that there are too many, and make sure that it can read that."""
        thread = threading.current_thread()
        try:
            log.warning("%s turned away: %d connections are open", net.describe_peer(sock), self.limits.connections)
            full = ServerFull(f"the server has {self.limits.connections} connections, which is its limit")
            sock.settimeout(TURN_AWAY_SECONDS)
            sock.sendall(wire.encode(wire.error_message(full)))
            sock.shutdown(socket.SHUT_WR)
            until = time.monotonic() + TURN_AWAY_SECONDS
            while sock.recv(4096) and time.monotonic() < until and not self.closing:
                pass
        except OSError:
            pass  # it did not wait
        finally:
            sock.close()
            with self._lock:
                self._threads.pop(thread, None)

    def end_former(self, session: str) -> None:
        """End the connection that a reconnecting client had before, and wait until it has let go of its transfers."""
        with self._lock:
            found = [(thread, c) for thread, c in self._threads.items() if c is not None and c.id == session]
        for thread, former in found:
            former.shut_down()
            thread.join(FORMER_SECONDS)


def _close_listener(listener: socket.socket) -> None:
    """Close, and remove the file of a Unix socket."""
    if listener.fileno() < 0:
        return
    path = listener.getsockname() if listener.family == socket.AF_UNIX else None
    listener.close()
    if path:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

"""The server: listens, accepts, limits, drains. One thread a connection; what a connection does is in `serving`."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Self

from ftransfer import listening, net, tokens
from ftransfer.admission import Admission, Admitted
from ftransfer.errors import FtransferError, NotFound, Refused, UsageError
from ftransfer.host import Limits, Slots, Visitor
from ftransfer.paths import printable
from ftransfer.pipes import Pipes
from ftransfer.reception import Reception
from ftransfer.rights import Account
from ftransfer.serving import Connection
from ftransfer.statedir import StateDir
from ftransfer.store.base import Store
from ftransfer.store.guarded import GuardedStore
from ftransfer.store.local import LocalStore
from ftransfer.store.many import ManyStore
from ftransfer.users import OWNER

if TYPE_CHECKING:
    from ftransfer.tls import ServerIdentity

log = logging.getLogger("ftransfer.server")
SWEEP_SECONDS = 3600.0
"""Time between two sweeps of old staging."""
WAKE_SECONDS = 1.0
"""Longest sleep of the accepting thread: a signal that comes just before it is seen only after it."""
FORMER_SECONDS = 5.0
"""Longest wait for a connection that its own client has replaced."""


Roots = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None


class Server:
    """Serve a folder, or several by name.

    ```python
    with ftransfer.Server("/srv/data") as server:
        print(server.urls[0])
    ```

    Arguments: `root`, the folder, a dictionary of names and folders, or None for all that its user may see; `listen`,
    addresses as `HOST:PORT`, `[::1]:PORT`, `:PORT` or `unix:PATH`, port 0 for a free one; those that other machines
    reach speak only TLS, unless `insecure` says otherwise; `cert` and `key`, files in PEM, else a certificate of its
    own is made and kept.
    `state`, the folder of users and certificate (None: the default one); `anonymous` lets strangers "read" or "create";
    `read_only` refuses everybody everything that changes files; `durable` syncs each file before its receipt;
    `timeout`, seconds of silence after which a client counts as dead; `limits`. Entering the block starts the threads,
    leaving it stops them. Raises UsageError, Unreachable, NotFound, NotAFile, Refused. Methods may be called from any
    thread.
    """

    def __init__(
        self,
        root: Roots,
        *,
        listen: tuple[str, ...] | list[str] = ("127.0.0.1:0",),
        read_only: bool = False,
        durable: bool = True,
        insecure: bool = False,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        anonymous: str | None = None,
        timeout: float = 60.0,
        limits: Limits | None = None,
    ):
        if anonymous not in (None, "read", "create"):
            raise UsageError(f"strangers cannot {anonymous!r}", hint="read or create")
        self.read_only = read_only
        self.timeout = timeout
        self.limits = limits or Limits()
        self.state = StateDir(state)
        self.admission = Admission(self.state, read_only=read_only, anonymous=anonymous)
        roots = root.values() if isinstance(root, Mapping) else ["/" if root is None else root]
        # The default one, too: it has the tokens of our own logins.
        kept = [self.state] + [one for one in [StateDir()] if os.path.isdir(one.path)]
        self._is_exposed = any(one.lies_in(folder) for one in kept for folder in roots)
        self.store: Store = _store(root, self.state, durable=durable, keep_free=self.limits.keep_free)
        self.uploads = Slots("uploads", self.limits.uploads, self.limits.uploads_per_user)
        self.closing = False
        self.identity: ServerIdentity | None = None
        """What is shown to clients that speak TLS, None if the server speaks none."""
        self._insecure = insecure
        self._grace_until = 0.0
        self._listeners: list[socket.socket] = []
        self._published: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, Connection | None] = {}
        self._acceptor: threading.Thread | None = None
        self._wake_out, self._wake_in = socket.socketpair()
        try:
            for where in listen:
                patience = int(self.limits.handshake_seconds)
                listening.listen(where, prepare=self._publish_owner, silent_seconds=patience)
            if self._is_exposed and (anonymous is not None or self.outward_url is not None):
                raise UsageError(
                    f"the state folder {self.state.path} (or the default one) lies in what is served: who reads there "
                    "would have its keys",
                    hint="keep it elsewhere (--state DIR, FTRANSFER_STATE), or serve a folder beside it",
                )
            self._identify(cert, key)
            self._reception = Reception(self.identity, self.limits, insecure=insecure)
        except BaseException:
            self._close_all()
            raise

    def _identify(self, cert: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None) -> None:
        """Get a certificate, if one is given or an address needs it."""
        if cert is None and (self._insecure or self.outward_url is None):
            return
        from ftransfer.tls import ServerIdentity, own_identity  # here, because a server on loopback needs none

        self.identity = ServerIdentity(cert, key) if cert is not None else own_identity(self.state)

    def _publish_owner(self, sock: socket.socket) -> None:
        """Let the clients of this user on this machine in; before one can connect, so that it finds the right token."""
        self._listeners.append(sock)
        if net.is_local(sock, peer=False) or listening.is_everywhere(sock):
            self._published.append(sock)
            tokens.publish(self.state, sock, self.admission.owner_token)

    @property
    def outward_url(self) -> str | None:
        """The first address by which other machines reach it, None if they cannot."""
        outward = (sock for sock in self._listeners if not net.is_local(sock, peer=False))
        return next((listening.urls(sock, scheme=self._scheme)[0] for sock in outward), None)

    @property
    def _scheme(self) -> str:
        return "ft" if self.identity is not None else "ft+plain"

    @property
    def fingerprint(self) -> str | None:
        """The SHA-256 of the certificate that clients see, None if the server speaks no TLS."""
        return self.identity.fingerprint if self.identity is not None else None

    @property
    def urls(self) -> list[str]:
        """The addresses under which it is reached, as the client takes them."""
        return [url for sock in self._listeners for url in listening.urls(sock, scheme=self._scheme)]

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
                for key, _ in selector.select(WAKE_SECONDS):
                    if key.fileobj is not self._wake_out and isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj)
                if time.monotonic() - swept > SWEEP_SECONDS and not self.read_only:
                    self._sweep()
                    swept = time.monotonic()

    def serve_stream(self, stream: Pipes) -> None:
        """Serve, in this thread, whoever is at the other end of two pipes, until it leaves.

        Somebody else, ssh mostly, has looked who that is: it is the owner, unless strangers are let in.
        """
        from ftransfer.store.personal import ConfinedStore  # here, because only ssh knows of homes

        if not self.read_only:
            self._sweep()
        if not isinstance(self.store, ConfinedStore):
            self.store = ConfinedStore(self.store)
        visitor = Visitor(stream, is_owner=self.admission.anonymous is None)
        visitor.until += self.limits.handshake_seconds
        Connection(self, visitor, on_admitted=lambda *_: None).run()

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
        self._stop_listening()
        self._reception.close_strangers()
        while (left := self._grace_until - time.monotonic()) > 0 and (thread := self._any_thread()) is not None:
            thread.join(min(left, 0.1))
        self._reception.close_strangers()
        for connection in list(self._threads.values()):
            if connection is not None:
                connection.shut_down()
        while (thread := self._any_thread()) is not None:
            thread.join()
        self._close_all()

    def _any_thread(self) -> threading.Thread | None:
        with self._lock:
            return next(iter(self._threads), None)

    def _stop_listening(self) -> None:
        for listener in self._published:
            if listener.fileno() >= 0:
                tokens.withdraw(self.state, listener, self.admission.owner_token)
        for listener in self._listeners:
            _close_listener(listener)

    def _close_all(self) -> None:
        self._stop_listening()
        for sock in (*self._listeners, self._wake_in, self._wake_out):
            sock.close()
        self.store.close()

    def _sweep(self) -> None:
        dropped = _swept(self.store, "")
        for folder in self.admission.folders():
            dropped += _swept(self.store, folder)
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
        visitor = self._reception.enter(sock)
        if visitor is None:
            sock.close()
            return
        thread = threading.Thread(target=self._run, args=(visitor,), name="ftransfer-connection", daemon=True)
        with self._lock:
            self._threads[thread] = None
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                del self._threads[thread]
            self._reception.leave(visitor)
            raise

    def _run(self, visitor: Visitor) -> None:
        thread = threading.current_thread()
        try:
            if not self._reception.secure(visitor):
                return
            connection = Connection(self, visitor, on_admitted=self._reception.admitted)
            with self._lock:
                self._threads[thread] = connection
            connection.run()
        finally:
            self._reception.leave(visitor)
            with self._lock:
                self._threads.pop(thread, None)

    def admitted(self, admitted: Admitted, host: str) -> Store:
        """Return the store as somebody who was let in, from an address, may use it.

        Raises NotFound, NotAFile for a folder of theirs.
        """
        account = admitted.account
        if self._is_exposed and account.name != OWNER:
            raise Refused("this server takes only its owner", hint="its state folder lies in what it serves")
        # Strangers share a name, but not what they have unfinished.
        owner = f"{account.name}@{host}" if account.name == net.ANONYMOUS else account.name
        whole = not account.folder
        limits = self.limits if account.name != OWNER else None
        return GuardedStore(
            self.store if whole else self.store.below(account.folder, create="create" in account.can),
            account,
            self.admission.allowance(account),
            most_staged_files=limits and limits.staged_files,
            # With a quota also what is unfinished is bounded by it: once more as much.
            most_staged_bytes=limits and min(limits.staged_bytes, 2 * (account.quota or limits.staged_bytes)),
            owner=owner,
            owns_inner=not whole,
        )

    def end_former(self, session: str, account: Account) -> None:
        """End the connection that a reconnecting client had before, and wait until it has let go of its transfers."""
        with self._lock:
            found = [(thread, c) for thread, c in self._threads.items() if c is not None and c.id == session]
        for thread, former in found:
            if former.admitted is not None and former.admitted.account.name == account.name:
                former.shut_down()
                thread.join(FORMER_SECONDS)


def _swept(store: Store, folder: str) -> int:
    """Drop what was left unfinished for too long in a folder that users are confined to; return how much."""
    try:
        if not folder:
            return store.sweep()
        store.stat(folder)
        with closing(store.below(folder)) as below:
            return below.sweep()
    except NotFound:
        pass  # nobody has stored anything there yet
    except (OSError, FtransferError) as exc:
        log.warning("cannot sweep old staging in %s: %s", printable(folder) or "the served folder", exc)
    return 0


def _store(root: Roots, state: StateDir, *, durable: bool, keep_free: int) -> Store:
    if root is None:
        from ftransfer.store.personal import PersonalStore  # here, because only ssh leads there

        try:
            kept = state.made()
        except FtransferError as exc:  # a full disk, say: what is there can be read all the same
            return PersonalStore(state=exc, durable=durable, keep_free=keep_free)
        return PersonalStore(state=kept, durable=durable, keep_free=keep_free)
    if isinstance(root, Mapping):
        return ManyStore(
            {name: LocalStore(folder, durable=durable, keep_free=keep_free) for name, folder in root.items()}
        )
    return LocalStore(root, durable=durable, keep_free=keep_free)


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

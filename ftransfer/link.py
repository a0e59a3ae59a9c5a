"""A client's connection that comes back: dials, greets, and runs an operation again after a failure that may pass.

Used by `client`. A retry is bounded: the wait between tries grows, and without progress for `retry_for` seconds the
last error is raised.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ftransfer import SOFTWARE, digests, net, wire
from ftransfer.channel import SLICE, Channel, Stream
from ftransfer.errors import (
    Busy,
    Cancelled,
    ConnectionLost,
    FtransferError,
    OutOfTurn,
    ServerFull,
    TimedOut,
    from_code,
)
from ftransfer.identity import Identity
from ftransfer.progress import Observer, Progress, ignore
from ftransfer.session import CLIENT
from ftransfer.versions import check_software

if TYPE_CHECKING:
    from ftransfer.shells import Shell
    from ftransfer.ssh import Ssh

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
TRIES = 3
"""Times that a first connection is tried which the server closes before it says welcome: there may be a crowd."""
WELCOME_SECONDS = 20.0
"""Longest wait for a server to say welcome."""
DEFAULT_RETRY_FOR = 600.0
T = TypeVar("T")


class Patience(NamedTuple):
    """How long to wait, in seconds.

    `timeout` without a byte; `retry_for` without progress, over all tries (None: 600 once a connection stood, and
    no second try before that); `max_time` for everything (None: no limit).
    """

    timeout: float = 60.0
    retry_for: float | None = None
    max_time: float | None = None


class Throttle:
    """Holds a stream of bytes at a rate, in bytes a second, by sleeping."""

    def __init__(self, rate: float, check: Callable[[], None]):
        self._rate = rate
        self.slice_size = max(1024, min(64 << 10, int(rate) // 8))
        """Bytes after which it wants to be told, so that no sleep is long enough to look like a dead peer."""
        self._check = check
        self._due = time.monotonic()

    def __call__(self, count: int) -> None:
        """Take note of bytes that went over the line, and sleep as long as they were too early."""
        now = time.monotonic()
        self._due = max(self._due, now - 0.1) + count / self._rate
        while (left := self._due - time.monotonic()) > 0.001:
            self._check()
            time.sleep(min(left, 0.5))


class Link:
    """The connection of one client to one server.

    Arguments: `identity`, whom to trust and what to show; `shell`, how ssh is called where the address goes through it;
    `limit_rate` in bytes a second, None for as fast as it goes; `cancel`, an event that stops everything.
    """

    def __init__(
        self,
        address: net.Address,
        patience: Patience,
        *,
        identity: Identity | None = None,
        shell: Shell | None = None,
        limit_rate: float | None = None,
        cancel: threading.Event | None = None,
    ):
        self.address = address
        self.patience = patience
        self.identity = identity or Identity()
        self.shell = shell
        self.is_single = address.scheme == "ssh"
        """Whether there is one connection to be had: for another one ssh might ask for a password again."""
        self.cancel = cancel
        self.welcome: wire.Welcome | None = None
        self.connect_seconds = 0.0
        self._throttle = Throttle(limit_rate, self.check) if limit_rate else None
        self._until = time.monotonic() + patience.max_time if patience.max_time is not None else None
        self._channel: Channel | None = None
        self._former: str | None = None
        self._ssh: Ssh | None = None
        self._is_stopped = self._is_noted = False

    def another(self) -> Link:
        """Return a link of its own to the same server, with the same patience and end; `stop` ends it alone.

        Not for a single one.
        """
        made = Link(self.address, self.patience, identity=self.identity, cancel=self.cancel)
        made._until = self._until
        return made

    def stop(self) -> None:
        """End whatever runs on it, in another thread, with Cancelled."""
        self._is_stopped = True

    def check(self) -> None:
        """Raise Cancelled or TimedOut if this client has to stop."""
        if self._is_stopped:
            raise Cancelled("stopped, because nobody waits for it any more")
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("stopped on request")
        if self._until is not None and time.monotonic() >= self._until:
            assert self.patience.max_time is not None
            raise TimedOut(
                f"not done within {self.patience.max_time:g} s", hint="run it again: it goes on (--max-time)"
            )

    def _check_and_listen(self) -> None:
        """Do so in the thread of the connection, and pass on what ssh says."""
        if self._ssh is not None:
            self._ssh.listen()
        self.check()

    @property
    def limits(self) -> wire.Welcome:
        """What the server said when the connection was opened."""
        assert self.welcome is not None
        return self.welcome

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time for everything is over."""
        return self._until is not None and time.monotonic() >= self._until

    def channel(self) -> Channel:
        """Return the open connection; make one if there is none. Raises Unreachable, VersionMismatch and the like."""
        if self._channel is None:
            for left in reversed(range(TRIES)):
                try:
                    self._channel = self._connect()
                    break
                except ConnectionLost:
                    if not left or self._former is not None or self.patience.retry_for is not None:
                        raise  # who has been connected once, or was told how long to try, is patient elsewhere
                    self._sleep(FIRST_DELAY)
        assert self._channel is not None
        return self._channel

    def _connect(self) -> Channel:
        self.check()
        started = time.monotonic()
        timeout = self.patience.timeout
        if self._until is not None:
            timeout = max(0.01, min(timeout, self._until - started))
        stream: Stream
        if self.is_single:
            from ftransfer.shells import Shell
            from ftransfer.ssh import Ssh  # here, because a small upload without ssh starts quicker

            shell = self.shell or Shell()
            line = shell.command(self.patience.timeout)
            stream = self._ssh = Ssh(self.address, shell, line, self.patience.timeout)
        else:
            stream = self.identity.dial(self.address, timeout)
        channel = Channel(
            stream,
            role=CLIENT,
            timeout=self.patience.timeout,
            check=self._check_and_listen,
            throttle=self._throttle,
            slice_size=self._throttle.slice_size if self._throttle else SLICE,
        )
        try:
            self.welcome = self._greet(channel, timeout)
        except BaseException:
            self._close(channel)
            raise
        self._former = self.welcome.session
        self.connect_seconds = time.monotonic() - started
        return channel

    def _greet(self, channel: Channel, timeout: float) -> wire.Welcome:
        stream = channel.socket
        hello = wire.Hello(
            versions=[wire.VERSION],
            software=SOFTWARE,
            features=[*digests.BLOCKS[1:], *([] if digests.is_quick() else [digests.SLOW])],
            former=self._former,
            # To ssh it was proved who asks.
            token=self.identity.token_for(self.address, stream) if isinstance(stream, socket.socket) else None,
            user=None if self._ssh else self.address.user or None,
        )
        try:
            channel.send(hello)
        except ConnectionLost:
            if self._ssh is None:
                raise  # else it is told below why there is no connection
        if self._ssh is not None:
            self._ssh.await_first(timeout, self.check)
        welcome = self._read_welcome(channel)
        check_software(welcome.software, here="on this machine", there=f"on {self.address.host}")
        channel.block_algorithm = welcome.blocks
        return welcome

    def _read_welcome(self, channel: Channel) -> wire.Welcome:
        try:
            answer = channel.expect(min(channel.timeout, WELCOME_SECONDS))
        except TimedOut as exc:
            self.check()
            raise TimedOut("it took the connection and said nothing", hint="is that an ftransfer server?") from exc
        if isinstance(answer, wire.Error):
            raise from_code(answer.code, answer.message, hint=answer.hint)
        if not isinstance(answer, wire.Welcome) or answer.version != wire.VERSION:
            raise OutOfTurn("the server did not say welcome")
        return answer

    def algorithm(self, wanted: str | None) -> str:
        """Return the algorithm for whole files: what is wanted, else what both ends are quick with, and say so."""
        if not self.is_single:  # elsewhere xxHash is a part of what is installed
            return wanted or digests.DEFAULT
        if self.welcome is None:
            self.run(lambda _: None)
        if self.limits.blocks == digests.DEFAULT:
            return wanted or digests.DEFAULT
        chosen = wanted or "sha256"
        if self.shell is not None and self.shell.on_message is not None and not self._is_noted:
            self._is_noted = True
            where = f"on {self.address.host}" if digests.is_quick() else "here"
            instead = (
                "XXH3 in plain Python, very slowly"
                if chosen == digests.DEFAULT
                else "files with SHA-256, blocks with BLAKE2b"
            )
            self.shell.on_message(f"note: no xxHash {where}: hashing {instead}")
        return chosen

    def next_t(self) -> int:
        """Return a number for the next request on this connection."""
        return self.channel().session.last_t + 1

    @property
    def is_idle(self) -> bool:
        """Whether nothing is open on the connection, if there is one."""
        return self._channel is None or self._channel.session.idle

    def drop(self) -> None:
        """Close the connection; the next use makes another."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            self._close(channel)

    def _close(self, channel: Channel) -> None:
        self._ssh = None
        channel.close()

    def run(
        self,
        operation: Callable[[Channel], T],
        *,
        path: str = "",
        progress: Callable[[], int] = lambda: 0,
        observer: Observer = ignore,
    ) -> T:
        """Run an operation, again after each failure that may pass, and return its result.

        Arguments: `progress` returns a number that grows while there is any; as long as it does, tries go on.
        """
        retrying = _Retrying(self.patience.retry_for)
        while True:
            try:
                return operation(self.channel())
            except FtransferError as exc:
                self._drop_unless_usable(exc)
                retrying.failed(exc, progress(), connected=self._former is not None)
                if self.is_out_of_time:
                    raise
                observer(Progress("retrying", path, progress(), None, note=f"{exc}; trying again"))
                self._sleep(retrying.delay)
            except BaseException:
                self.drop()
                raise

    def _drop_unless_usable(self, exc: FtransferError) -> None:
        """After an answer that ended the request the connection can be used on; else nobody knows where it stands."""
        if self._channel is None:
            return
        usable = exc.remote and self._channel.session.state == "open" and self._channel.session.idle
        if not usable:
            self.drop()

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.2))


class _Retrying:
    """How long to go on: back-off, and an end without progress."""

    def __init__(self, retry_for: float | None):
        self._retry_for = retry_for
        self._since = time.monotonic()
        self._progress = -1
        self._delay = FIRST_DELAY / 2

    @property
    def delay(self) -> float:
        """Seconds to wait before the next try: doubled each time, spread so that many clients do not coincide."""
        import random  # here, because a run without failures does not need it

        return self._delay * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def failed(self, exc: FtransferError, progress: int, *, connected: bool) -> None:
        """Take note of a failure; raise it if it is final."""
        if not exc.retryable or (isinstance(exc, ServerFull) and not exc.remote):  # it is this end that is full
            raise exc
        if progress > self._progress:
            self._progress, self._since, self._delay = progress, time.monotonic(), FIRST_DELAY / 2
        patience = self._retry_for
        if patience is None:
            patience = DEFAULT_RETRY_FOR if connected or isinstance(exc, Busy) else 0.0
        if time.monotonic() - self._since >= patience:
            raise exc
        self._delay = min(self._delay * 2, LONGEST_DELAY)

"""What a connection needs of the server that it belongs to, and what a server bears: between `server` and `serving`."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from typing import NamedTuple, Protocol

from ftransfer import net
from ftransfer.admission import Admission, Admitted
from ftransfer.errors import FtransferError, ServerFull
from ftransfer.pipes import Pipes
from ftransfer.rights import Account
from ftransfer.store.base import Store
from ftransfer.users import OWNER

Outcome = tuple[int, str] | None
"""What a handler has to say in the log: bytes and result, or nothing yet."""


class Limits(NamedTuple):
    """What one server bears; each is a named number with a default, and an option of `serve` (`--limit NAME=N`).

    Connections: `connections` at a time, `connections_per_address`, `connections_per_user` (strangers are one, the
    owner has no limit), `unauthenticated` that have not said who they are (one more ends the one that has waited
    longest); `handshake_seconds` until TLS and hello are done; `least_rate`,
    bytes a second that a peer has to bring or take, beyond the timeout; `idle_seconds` without any request;
    `grace_seconds` that running transfers get when the server is told to stop. Storing: `uploads` open at a time, over
    all connections, `uploads_per_user`; `staged_files` and `staged_bytes`, unfinished, of one user (not of the owner);
    `keep_free`, bytes of the disk that are left free.
    """

    connections: int = 256
    connections_per_address: int = 128
    connections_per_user: int = 128
    unauthenticated: int = 64
    handshake_seconds: float = 10.0
    least_rate: float = 1024.0
    idle_seconds: float = 600.0
    grace_seconds: float = 5.0
    uploads: int = 256
    uploads_per_user: int = 128
    staged_files: int = 1000
    staged_bytes: int = 1 << 43
    keep_free: int = 0


class Slots:
    """Places of one kind, of which nobody but the owner has more than a share. May be used from any thread.

    Arguments: `what` they are for, in an error; `most` in all; `share` of one user, at most half.
    """

    def __init__(self, what: str, most: int, share: int):
        self._what = what
        self._most = most
        self._share = min(share, max(1, most // 2))
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, user: str) -> None:
        """Take a place. Raises ServerFull."""
        with self._lock:
            if self._taken.total() >= self._most:
                raise ServerFull(f"the server has {self._most} {self._what} open, which is its limit")
            if user != OWNER and self._taken[user] >= self._share:
                raise ServerFull(f"{user} has {self._share} {self._what} open, which is the limit of one user")
            self._taken[user] += 1

    def give_back(self, user: str) -> None:
        """Give a place back."""
        with self._lock:
            self._taken[user] -= 1
            if not self._taken[user]:
                del self._taken[user]


class Visitor:
    """A connection from accept to close; `refusal` is what it is told instead of being served.

    `is_owner` tells that whoever is there was let in as the user of this process before it began, by ssh.
    """

    def __init__(self, sock: socket.socket | Pipes, *, is_owner: bool = False) -> None:
        self.socket = sock
        self.is_owner = is_owner
        self.host = net.peer_host(sock)
        self.group = self.host if isinstance(sock, Pipes) else net.host_group(self.host)
        self.refusal: FtransferError | None = None
        self.is_cut = False
        self.until = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Until when it has to have said who it is."""
        return max(0.01, self.until - time.monotonic())

    def cut(self) -> None:
        """End it from another thread."""
        self.is_cut = True
        try:
            if not isinstance(self.socket, Pipes):  # these have a thread and a process to themselves
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
        except OSError:
            pass  # closed already


class Host(Protocol):
    """What a connection needs of the server that it belongs to."""

    admission: Admission
    timeout: float
    limits: Limits
    uploads: Slots
    closing: bool

    @property
    def connection_count(self) -> int: ...
    @property
    def grace_is_over(self) -> bool: ...
    def admitted(self, admitted: Admitted, host: str) -> Store: ...
    def end_former(self, session: str, account: Account) -> None: ...

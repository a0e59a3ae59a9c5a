"""Where connections come in: counted, encrypted if they ask for it, and ended if they do not say who they are.

The limits here hold before anybody has said anything: connections in all, from one address, and of strangers. Belongs
to one server; its methods may be called from any thread.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from ftransfer import net, wire
from ftransfer.errors import ConnectionLost, FtransferError, ServerFull, TimedOut, TlsMismatch
from ftransfer.host import Limits, Slots, Visitor

if TYPE_CHECKING:
    from ftransfer.tls import ServerIdentity

log = logging.getLogger("ftransfer.server")
TURNED_AWAY = 16
"""Connections beyond the limit that are told so at a time; more are just closed."""
TURN_AWAY_SECONDS = 2.0
"""What a connection beyond the limit gets to read that."""
LOG_SECONDS = 1.0
"""Least time between two lines about connections that were turned away."""
TLS_HANDSHAKE = b"\x16"
"""What TLS begins with (RFC 8446, 5.1); a frame begins with a zero."""


class Reception:
    """Lets connections in, or not.

    Arguments: `identity`, None if no TLS is spoken; `insecure` takes plain connections from other machines.
    """

    def __init__(self, identity: ServerIdentity | None, limits: Limits, *, insecure: bool):
        self._identity = identity
        self._limits = limits
        self._insecure = insecure
        self._lock = threading.Lock()
        self._inside: set[Visitor] = set()
        self._turned_away: set[Visitor] = set()
        self._strangers: dict[Visitor, None] = {}
        self._by_group: Counter[str] = Counter()
        self._users: dict[Visitor, str] = {}
        self._by_user = Slots("connections", limits.connections, limits.connections_per_user)
        self._noted = -LOG_SECONDS
        self._unnoted = 0

    def enter(self, sock: socket.socket) -> Visitor | None:
        """Count a connection that was accepted; None if it is to be closed without a word."""
        visitor = Visitor(sock)
        evicted = None
        with self._lock:
            # Whom it lets in: somebody whose own address is full throws out nobody from elsewhere.
            if self._is_group_full(visitor.group):
                evicted = self._evict(visitor.group)
            elif len(self._strangers) >= self._limits.unauthenticated or len(self._inside) >= self._limits.connections:
                evicted = self._evict()
            visitor.refusal = self._why_not(visitor.group)
            if visitor.refusal is None:
                self._inside.add(visitor)
                self._by_group[visitor.group] += 1
                self._strangers[visitor] = None
            elif len(self._turned_away) < TURNED_AWAY:
                self._turned_away.add(visitor)
            else:
                return None  # then nobody was evicted either
        if evicted is not None:
            log.debug("%s ended: it did not say who it is, and others wait", evicted.host)
            evicted.cut()
        patience = self._limits.handshake_seconds
        visitor.until += patience if visitor.refusal is None else min(patience, TURN_AWAY_SECONDS)
        return visitor

    def _evict(self, group: str | None = None) -> Visitor | None:
        """Count the stranger who has waited longest no more, and return it; None if there is none.

        It is one of those who come from where most come from, so that a crowd stands in nobody's way but its own.
        """
        if group is None and self._strangers:
            group = Counter(stranger.group for stranger in self._strangers).most_common(1)[0][0]
        found = next((stranger for stranger in self._strangers if stranger.group == group), None)
        if found is not None:
            self._forget(found)
        return found

    def _forget(self, visitor: Visitor) -> None:
        self._turned_away.discard(visitor)
        self._strangers.pop(visitor, None)
        if visitor in self._inside:
            self._inside.remove(visitor)
            self._by_group[visitor.group] -= 1
            if not self._by_group[visitor.group]:
                del self._by_group[visitor.group]

    def _is_group_full(self, group: str) -> bool:
        return self._by_group[group] >= self._limits.connections_per_address and not group.startswith("unix:")

    def _why_not(self, group: str) -> FtransferError | None:
        limits = self._limits
        if len(self._inside) >= limits.connections:
            return ServerFull(f"the server has {limits.connections} connections, which is its limit")
        if self._is_group_full(group):
            return ServerFull(
                f"there are {limits.connections_per_address} connections from this address, which is the limit"
            )
        return None

    def secure(self, visitor: Visitor) -> bool:
        """Encrypt the connection if the client speaks TLS; tell whether there is something to serve."""
        try:
            self._secure(visitor)
            return True
        except ServerFull as exc:
            self._tell(visitor, exc)
        except TimeoutError as exc:
            if self._may_be_plain(_socket(visitor)) and not isinstance(exc, TimedOut):  # else it wants to hear TLS
                self._tell(visitor, TimedOut("it did not say hello in time"))
            log.debug("%s said nothing: %s", visitor.host, exc)
        except (ConnectionLost, OSError) as exc:
            log.debug("%s left before it said who it is: %s", visitor.host, exc)
        except FtransferError as exc:
            self._tell(visitor, exc)
        return False

    def _may_be_plain(self, sock: socket.socket) -> bool:
        return self._insecure or net.is_local(sock, peer=False)

    def _secure(self, visitor: Visitor) -> None:
        sock = _socket(visitor)
        sock.settimeout(visitor.seconds_left)
        if visitor.refusal is not None and self._identity is None:
            raise visitor.refusal  # at once: it can only be told in the clear
        first = sock.recv(1, socket.MSG_PEEK)
        if not first:
            raise ConnectionLost("without a word")
        if first == TLS_HANDSHAKE:
            if self._identity is None:
                raise TlsMismatch("this port speaks no TLS", hint="ft+plain:// reaches it, in the clear")
            from ftransfer.tls import handshake  # here, because a server on loopback needs none

            visitor.socket = secured = self._identity.wrap(sock)
            if visitor.is_cut:  # while neither socket could be
                raise ConnectionLost("to make room for others")
            handshake(secured, visitor.seconds_left)
        elif not self._may_be_plain(sock):
            raise TlsMismatch("this port speaks only TLS", hint="ft:// or ft+tls:// reaches it")
        if visitor.refusal is not None:
            raise visitor.refusal

    def _tell(self, visitor: Visitor, why: FtransferError) -> None:
        """Say why it is not served, and make sure that it can read that."""
        self._note(visitor, why)
        sock = _socket(visitor)
        until = time.monotonic() + TURN_AWAY_SECONDS
        try:
            sock.settimeout(TURN_AWAY_SECONDS)
            sock.sendall(wire.encode(wire.error_message(why)))
            socket.socket.shutdown(sock, socket.SHUT_WR)
            while time.monotonic() < until and socket.socket.recv(sock, 4096):
                pass
        except (OSError, FtransferError):
            pass  # it did not wait

    def _note(self, visitor: Visitor, why: FtransferError) -> None:
        """Write a line, though not more than one in a second: strangers are not to fill the log."""
        now = time.monotonic()
        with self._lock:
            self._unnoted += 1
            if now - self._noted < LOG_SECONDS:
                return
            count, self._unnoted, self._noted = self._unnoted - 1, 0, now
        log.warning("%s turned away: %s%s", visitor.host, why, f" ({count} more)" if count else "")

    def admitted(self, visitor: Visitor, user: str) -> None:
        """Take note that it is known who that is. Raises ServerFull if that user has too many."""
        self._by_user.take(user)
        with self._lock:
            self._users[visitor] = user
            self._strangers.pop(visitor, None)

    def leave(self, visitor: Visitor) -> None:
        """Close a connection and count it no more."""
        visitor.socket.close()
        with self._lock:
            self._forget(visitor)
            user = self._users.pop(visitor, None)
        if user is not None:
            self._by_user.give_back(user)

    def close_strangers(self) -> None:
        """End, from another thread, all connections of whom nobody knows who they are."""
        with self._lock:
            visitors = [*self._strangers, *self._turned_away]
        for visitor in visitors:
            visitor.cut()


def _socket(visitor: Visitor) -> socket.socket:
    """Return the socket of somebody who came in here, where there is nothing else."""
    assert isinstance(visitor.socket, socket.socket)
    return visitor.socket

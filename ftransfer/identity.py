"""A client's side of trust: whether the server is the right one, and which token it is shown.

The order is the promise: connect, check who is there, and only then show the token. Used by `link`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from ftransfer import net
from ftransfer.channel import goodbye
from ftransfer.errors import IdentityChanged, IdentityUnknown, UsageError
from ftransfer.statedir import StateDir

SYSTEM = "system"
"""Remembered in the place of a fingerprint: that the system vouches for the certificate."""
OnUnknown = Callable[[str, str], bool]
"""Asked with the address and the fingerprint of a server that nobody vouches for: is it to be trusted?"""


class Identity(NamedTuple):
    """What a client expects of a server, and shows it.

    Arguments: `token`, shown to this server; None: that of a login, or the owner's on the same machine.
    `fingerprint` that the certificate has to have; None: the one that is remembered, else what the system trusts.
    `state`, the folder where both are remembered, None for the default one; `on_unknown` decides on others.
    """

    token: str | None = None
    fingerprint: str | None = None
    state: str | os.PathLike[str] | None = None
    on_unknown: OnUnknown | None = None

    def __repr__(self) -> str:
        return f"Identity(fingerprint={self.fingerprint!r})"  # a secret is shown nowhere

    def dial(self, address: net.Address, timeout: float) -> socket.socket:
        """Return a connected socket to the right server, encrypted where the address asks for it.

        Arguments: `timeout` in seconds for each step. Raises Unreachable, TimedOut, TlsMismatch, IdentityUnknown,
        IdentityChanged.
        """
        given = None
        if self.fingerprint is not None:
            from ftransfer.tls import parse_fingerprint  # here, because ssl costs more than a small upload in the clear

            given = parse_fingerprint(self.fingerprint)
        sock = net.dial(address, timeout)
        if not net.wants_tls(address, sock):
            if given is None:
                return sock
            sock.close()
            raise UsageError(
                f"a fingerprint was given, and {address.endpoint} is in the clear, where there is no certificate",
                hint="write ft+tls:// if the server speaks TLS there; else leave the fingerprint out",
            )
        from ftransfer import tls
        from ftransfer.known import Known

        known = Known(StateDir(self.state))
        try:
            expected = given or known.fingerprint(address.place)
        except BaseException:
            sock.close()
            raise
        if expected is None or expected == SYSTEM:
            try:
                return tls.connect(sock, address.host, timeout, by_system=True)
            except tls.Unverified as exc:
                why = str(exc)
            if expected == SYSTEM:
                raise IdentityChanged(
                    f"the system vouched for {address.endpoint} before, and does not now ({why})",
                    hint="if you know why: ftransfer login with the --fingerprint that the server shows",
                )
            expected = self._ask(address, net.dial(address, timeout), timeout, why)
            known.remember(address.place, expected)
            sock = net.dial(address, timeout)  # no server waits as long as a person thinks
        secured = tls.connect(sock, address.host, timeout, by_system=False)
        try:
            shown = tls.shown_fingerprint(secured)
            if shown != expected:
                raise IdentityChanged(
                    f"{address.endpoint} shows another certificate than expected: {shown}, not {expected}",
                    hint=f"if you know why: ftransfer login {address.endpoint}/ --fingerprint {shown}",
                )
        except BaseException:
            secured.close()
            raise
        return secured

    def prefer_system(self, address: net.Address, timeout: float) -> None:
        """Expect from now on that the system vouches for a server, if it does now, and no certain certificate.

        Raises Unreachable, TimedOut, TlsMismatch.
        """
        from ftransfer import tls
        from ftransfer.known import Known

        try:
            secured = tls.connect(net.dial(address, timeout), address.host, timeout, by_system=True)
        except tls.Unverified:
            return
        shown = tls.shown_fingerprint(secured)
        goodbye(secured)
        secured.close()
        known = Known(StateDir(self.state))
        if known.fingerprint(address.place) in (None, SYSTEM, shown):  # else `dial` says that it has changed
            known.remember(address.place, SYSTEM)

    def _ask(self, address: net.Address, sock: socket.socket, timeout: float, why: str) -> str:
        """Return the fingerprint of a server that somebody decides to trust. Raises IdentityUnknown."""
        from ftransfer import tls

        with tls.connect(sock, address.host, timeout, by_system=False) as secured:
            shown = tls.shown_fingerprint(secured)
            goodbye(secured)
        if self.on_unknown is None or not self.on_unknown(address.endpoint, shown):
            raise IdentityUnknown(
                f"nobody vouches for the certificate of {address.endpoint} ({why}); its fingerprint is {shown}",
                hint=f"compare it with what the server shows, then add: --fingerprint {shown}",
            )
        return shown

    def token_for(self, address: net.Address, sock: socket.socket) -> str | None:
        """Return the token to show to the server that a socket, checked by `dial`, leads to."""
        if address.user == net.ANONYMOUS:
            return None
        if self.token is not None:
            return self.token
        state = StateDir(self.state)
        if net.is_local(sock) and not address.user and net.is_ours(sock):
            from ftransfer.tokens import published

            found = published(state, sock, address.host)
            if found is not None:
                return found
        from ftransfer.known import Known

        return Known(state).token_for(address, encrypted=net.wants_tls(address, sock))

"""The server's side of the opening: hello, who asks, welcome. Nothing else is taken before. Used by `serving`."""

from __future__ import annotations

import logging
import time

from ftransfer import SOFTWARE, wire
from ftransfer.admission import Admitted, describe
from ftransfer.channel import Channel
from ftransfer.errors import ConnectionLost, LoginNeeded, OutOfTurn
from ftransfer.host import Host, Visitor
from ftransfer.versions import check_software, mismatch

log = logging.getLogger("ftransfer.server")


def greet(server: Host, channel: Channel, visitor: Visitor) -> tuple[wire.Hello, Admitted]:
    """Return what the client said, and who it is; the answers to guesses are delayed, by where they come from.

    Raises LoginNeeded, OutOfTurn, VersionMismatch, ConnectionLost, TimedOut, FrameError.
    """
    seconds = visitor.seconds_left
    hello = channel.receive(seconds, within=seconds)
    if hello is None:
        raise ConnectionLost("it left without a word")
    if not isinstance(hello, wire.Hello):
        raise OutOfTurn("the first message has to be hello")
    ends = {"here": "on the server", "there": "on the client's machine"}
    if wire.VERSION not in hello.versions:
        why = f": one speaks version {wire.VERSION} of the protocol, the other {list(hello.versions)}"
        raise mismatch(hello.software, why=why, **ends)
    check_software(hello.software, **ends)
    if visitor.is_owner:
        return hello, server.admission.owner()
    try:
        return hello, server.admission.admit(hello.token, hello.user)
    except LoginNeeded as exc:
        if hello.token is not None:
            log.warning("%s showed a token that does not open: %s", visitor.host, exc)
            until = time.monotonic() + server.admission.penalty(visitor.group)
            while time.monotonic() < until and not server.closing and not visitor.is_cut:
                time.sleep(0.05)
        raise


def welcome(admitted: Admitted, session: str, *, durable: bool, blocks: str) -> wire.Welcome:
    """Return the message that lets somebody in."""
    account = admitted.account
    return wire.Welcome(
        version=wire.VERSION,
        software=SOFTWARE,
        session=session,
        blocks=blocks,
        user=account.name,
        can=describe(account),
        read_only=account.can <= {"read"},
        durable=durable,
    )

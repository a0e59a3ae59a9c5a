"""Tokens: made, and handed from a server to the clients of the same user on the same machine.

A server that listens where only its own machine can connect writes a fresh owner token for each of its addresses into
the state folder (0600). A client of the same user finds it by the address that it has reached; nobody else can read it.
It is worth nothing once the server has gone, so who takes the port afterwards learns nothing by being shown it.
"""

from __future__ import annotations

import os
import socket

from ftransfer.errors import FtransferError, UsageError
from ftransfer.statedir import StateDir

PREFIX = "ftt_"
_FOLDER = "serving"


def new_token() -> str:
    """Return 256 bits that nobody can guess, as text."""
    return PREFIX + os.urandom(32).hex()


def check_token(text: str) -> str:
    """Return a token without the space around it. Raises UsageError, which does not show it."""
    token = text.strip()
    if not (0 < len(token) <= 256 and token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("that is no token", hint="it begins with ftt_, and has 68 characters in one line")
    return token


def endpoint(name: object) -> str:
    """Return the word for an address as the system gives it: (host, port), or the path of a Unix socket."""
    if isinstance(name, (str, bytes)):
        return os.path.abspath(os.fsdecode(name)).replace("%", "%25").replace("/", "%2F")
    assert isinstance(name, tuple)
    return f"{str(name[0]).removeprefix('::ffff:')},{name[1]}"


def _listening(sock: socket.socket) -> str:
    """Return the word for where a socket listens; everywhere is everywhere of the protocols that it takes."""
    name = sock.getsockname()
    if sock.family == socket.AF_INET and name[0] == "0.0.0.0":  # noqa: S104 - compared, not bound
        return f"*4,{name[1]}"
    if sock.family == socket.AF_INET6 and name[0] == "::":
        only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return f"*6,{name[1]}" if only else f"*,{name[1]}"
    return endpoint(name)


def publish(state: StateDir, sock: socket.socket, token: str) -> None:
    """Let clients of this user know the owner token of a socket that listens, or is about to."""
    word = _listening(sock)
    everywhere, _, port = word.partition(",")
    if everywhere in ("*", "*4", "*6"):  # what a killed server has left for one of these addresses would be found first
        for other in state.names(_FOLDER):
            host, _, its_port = other.partition(",")
            if its_port == port and host[:1] != "*" and everywhere in ("*", "*6" if ":" in host else "*4"):
                state.remove(f"{_FOLDER}/{other}")
    state.write(f"{_FOLDER}/{word}", token.encode())


def withdraw(state: StateDir, sock: socket.socket, token: str) -> None:
    """Take that back, unless another server has taken the address since."""
    name = f"{_FOLDER}/{_listening(sock)}"
    try:
        if state.read(name) == token.encode():
            state.remove(name)
    except FtransferError:
        pass  # it is worth nothing without the server


def published(state: StateDir, sock: socket.socket, path: str = "") -> str | None:
    """Return the owner token of the server that a connected socket leads to, if it is one of this user.

    Arguments: `path` of a Unix socket, as it was dialled: what the other side calls it proves nothing.
    """
    name = os.path.abspath(path) if sock.family == socket.AF_UNIX else sock.getpeername()
    words = [endpoint(name)]
    if isinstance(name, tuple):
        is_6 = sock.family == socket.AF_INET6 and not str(name[0]).startswith("::ffff:")
        words += [f"{'*6' if is_6 else '*4'},{name[1]}", f"*,{name[1]}"]
    for word in words:
        try:
            token = state.read(f"{_FOLDER}/{word}")
        except FtransferError:
            return None  # not for us
        if token is not None:
            return token.decode("ascii", "replace")
    return None

"""Sockets that wait for clients: where they listen, under which addresses they are reached, and that they are ready.

Called by the server and the command.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Sequence

from ftransfer.errors import AlreadyExists, Unreachable, UsageError, from_os
from ftransfer.net import DEFAULT_PORT, Address, host_and_port, is_loopback

BACKLOG = 4096
MAX_UNIX_PATH = 100
"""Longest path of a Unix socket, in bytes, that every system takes."""


def listen(
    text: str, *, prepare: Callable[[socket.socket], None] | None = None, silent_seconds: int = 0
) -> list[socket.socket]:
    """Return listening sockets for `HOST:PORT`, `[::1]:PORT`, `:PORT` (all interfaces) or `unix:PATH`.

    Arguments: `prepare` is called with each once it has its address, and before anybody can connect; `silent_seconds`,
    how long the system keeps connections on which nothing has come to itself, where it can (Linux). Raises UsageError,
    Unreachable if it cannot be bound.
    """
    sockets: list[socket.socket] = []
    try:
        for family, where in _places(text):
            # With port 0 all families get the port that the first one got.
            port = sockets[0].getsockname()[1] if sockets else where[1]
            sockets.append(_bind_unix(where[0]) if family == socket.AF_UNIX else _bind(family, where[0], port))
            if prepare is not None:
                prepare(sockets[-1])
            _start(sockets[-1], silent_seconds)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _places(text: str) -> list[tuple[int, tuple[str, int]]]:
    """Return family, host and port of each address that is meant."""
    if text.startswith("unix:"):
        return [(socket.AF_UNIX, (text.removeprefix("unix:"), 0))]
    host, port = host_and_port(text, DEFAULT_PORT)
    if not host:
        return [(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET, ("", port))]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise UsageError(f"cannot listen on {text!r}: no such address") from exc
    return [(family, (str(where[0]), port)) for family, _, _, _, where in found]


def _bind(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host else 0)
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise _cannot_listen(host, port, exc) from exc
    return sock


def _start(sock: socket.socket, silent_seconds: int) -> None:
    try:
        if silent_seconds and sock.family != socket.AF_UNIX and hasattr(socket, "TCP_DEFER_ACCEPT"):
            # The client speaks first, in TLS and in the clear: a crowd that says nothing costs the kernel, not us.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, silent_seconds)
        sock.listen(BACKLOG)
    except OSError as exc:
        host, port = sock.getsockname()[:2]
        raise _cannot_listen(host, port, exc) from exc


def _cannot_listen(host: str, port: int, exc: OSError) -> Unreachable:
    reason = os.strerror(exc.errno).lower() if exc.errno else str(exc)
    return Unreachable(
        f"cannot listen on {host or '*'}:{port}: {reason}", hint="choose another port; port 0 takes a free one"
    )


def _bind_unix(path: str) -> socket.socket:
    if not path or len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise UsageError(f"the path of a Unix socket has 1 to {MAX_UNIX_PATH} bytes")
    path = _absolute(path)  # it is the word for the owner's token, wherever a client stands
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)  # only the owner may connect
    try:
        sock.bind(path)
    except OSError as exc:
        sock.close()
        raise from_os(exc, path) from exc
    finally:
        os.umask(old)
    return sock


def _absolute(path: str) -> str:
    """Return the whole path of a socket, unless that is too long."""
    whole = os.path.abspath(path)
    return whole if len(os.fsencode(whole)) <= MAX_UNIX_PATH else path


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; anything else of that name stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise AlreadyExists("there is a file of that name", path=path, hint="choose another path for the socket")
    except FileNotFoundError:
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError:
        pass  # binding will say what is wrong
    else:
        raise AlreadyExists("a server listens on this socket already", path=path)
    finally:
        probe.close()


def urls(sock: socket.socket, *, scheme: str = "ft") -> list[str]:
    """Return the addresses, as the client takes them, under which a listening socket is reached.

    Arguments: `scheme` for those that other machines reach.
    """
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return [f"{Address('ft+unix', os.path.abspath(name), 0, '', True)}"]
    host, port = str(name[0]), int(name[1])
    if is_loopback(host):
        return [str(Address("ft", host, port, "", True))]
    if is_everywhere(sock):
        is_6 = sock.family == socket.AF_INET6 and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        ways = (socket.AF_INET6,) if is_6 else (socket.AF_INET, socket.AF_INET6)
        near = Address("ft", "::1" if is_6 else "127.0.0.1", port, "", True)
        return [str(Address(scheme, outward_host(ways), port, "", True)), str(near)]
    return [str(Address(scheme, host, port, "", True))]


def outward_host(families: Sequence[int] = (socket.AF_INET, socket.AF_INET6)) -> str:
    """Return the numeric address that this machine has on the way out, or its name if it has none.

    A datagram socket is connected, which sends nothing: the system only chooses the way (RFC 5737 addresses).
    """
    for family in families:
        far = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, DEFAULT_PORT))
                host = str(probe.getsockname()[0])
        except OSError:
            continue  # there is no way out by this protocol
        if not is_loopback(host):
            return host
    return socket.gethostname()


def is_everywhere(sock: socket.socket) -> bool:
    """Tell whether a listening socket takes connections to every address of this machine."""
    return sock.family != socket.AF_UNIX and sock.getsockname()[0] in ("::", "0.0.0.0")  # noqa: S104 - compared


def notify_ready() -> None:
    """Tell the service manager that started us, if one did, that clients are served (sd_notify(3))."""
    where = os.environ.pop("NOTIFY_SOCKET", "")
    if not where:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"READY=1", "\0" + where[1:] if where.startswith("@") else where)
        except OSError:
            pass  # it goes on without

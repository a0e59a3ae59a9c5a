"""Addresses, dialling, listening and socket options: the only module that makes sockets.

`ft://HOST[:PORT]/PATH` reaches this machine in the clear; `ft+plain://` spells that out for any host, and
`ft+unix://%2Frun%2Fft.sock/PATH` is a Unix socket. Called by the client, the server and the command.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from typing import Any, NamedTuple

from ftransfer import paths
from ftransfer.errors import AlreadyExists, FtransferError, TimedOut, Unreachable, UsageError, from_os

DEFAULT_PORT = 7788
BACKLOG = 128
KEEPALIVE_IDLE = 30
KEEPALIVE_INTERVAL = 10
KEEPALIVE_COUNT = 6
MAX_UNIX_PATH = 100
"""Longest path of a Unix socket, in bytes, that every system takes."""
_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/"
SCHEMES = ("ft", "ft+plain", "ft+unix")


class Address(NamedTuple):
    """Where a server is, and a path on it.

    `scheme` is one of SCHEMES; `host` the path of the socket for ft+unix; `path` a wire path or "";
    `is_folder` tells whether the address ended in a slash.
    """

    scheme: str
    host: str
    port: int
    path: str
    is_folder: bool

    @property
    def endpoint(self) -> str:
        """The address without its path, as it can be typed."""
        if self.scheme == "ft+unix":
            return f"ft+unix://{quote(self.host, _SAFE.replace('/', ''))}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.endpoint}/{quote(self.path)}"

    def at(self, path: str) -> Address:
        """Return the same server with another path."""
        return self._replace(path=path, is_folder=False)


def quote(text: str, safe: str = _SAFE) -> str:
    """Percent-encode what may not stand in an address; letters of all scripts may, so that people can read it."""
    return "".join(c if c in safe or (not c.isascii() and c.isprintable()) else _percent(c) for c in text)


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def is_url(text: str) -> bool:
    """Tell whether a word of the command line is an address rather than a local path."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.replace("+", "").isalnum()


def parse_url(text: str) -> Address:
    """Return what an address means. Raises UsageError, or BadPath for its path."""
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise UsageError(f"unknown address {text[:80]!r}", hint="an address looks like ft://host:7788/folder/file")
    authority, _, raw_path = rest.partition("/")
    path = _unquote(raw_path)
    is_folder = path.endswith("/") or not path
    path = paths.check(path.rstrip("/"), root=True)
    if scheme == "ft+unix":
        host = _unquote(authority)
        if not host:
            raise UsageError("the address names no socket", hint="write ft+unix://%2Frun%2Fft.sock/path")
        return Address(scheme, host, 0, path, is_folder)
    if "@" in authority:
        raise UsageError("this version knows no users", hint=f"write {scheme}://host:port/path")
    host, port = _host_and_port(authority, DEFAULT_PORT)
    if not host:
        raise UsageError(f"the address {text[:80]!r} names no host")
    return Address(scheme, host, port, path, is_folder)


def _unquote(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # here, because hardly any address needs it

    return unquote(text, errors="surrogateescape")


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise UsageError(f"not an address: {text[:80]!r}", hint="IPv6 is written [::1]:7788")
        digits = rest[1:]
    else:
        host, _, digits = text.partition(":")
        if ":" in digits:
            raise UsageError(f"not an address: {text[:80]!r}", hint="IPv6 is written [::1]:7788")
    if not digits:
        return host, default
    if not (digits.isascii() and digits.isdigit() and int(digits) <= 65535):
        raise UsageError(f"not a port: {digits[:20]!r}", hint="a port is a number from 0 to 65535")
    return host, int(digits)


def tune(sock: socket.socket) -> None:
    """Set the options that every connection has: no delay, keepalive that finds a dead peer within 90 s."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    if idle is not None:
        sock.setsockopt(socket.IPPROTO_TCP, idle, KEEPALIVE_IDLE)
    if hasattr(socket, "TCP_KEEPINTVL"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def dial(address: Address, timeout: float) -> socket.socket:
    """Return a connected socket, trying each of the host's addresses in turn.

    Arguments: `timeout` in seconds for each. Raises Unreachable, TimedOut; UsageError where the address asks for TLS.
    """
    if address.scheme == "ft+unix":
        return _connect(socket.AF_UNIX, address.host, address, timeout)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise Unreachable(f"cannot find the host {address.host!r}", hint="check the name of the host") from exc
    if address.scheme == "ft":
        _refuse_clear_text(address, [str(info[4][0]) for info in found])
    error: FtransferError | None = None
    for family, _, _, _, where in found:
        try:
            return _connect(family, where, address, timeout)
        except FtransferError as exc:
            error = exc
    raise error or Unreachable(f"the host {address.host!r} has no address")


def _refuse_clear_text(address: Address, found: list[str]) -> None:
    """`ft://` promises TLS beyond this machine; until this version has it, clear text has to be asked for."""
    if not all(is_loopback(host) for host in found):
        raise UsageError(
            f"{address.host} is another machine, where ft:// means TLS, which this version cannot speak",
            hint=f"{address._replace(scheme='ft+plain').endpoint}/ sends everything in the clear: for trusted networks",
        )


def is_loopback(host: str) -> bool:
    """Tell whether a numeric address is this machine's own."""
    return host == "::1" or host.startswith(("127.", "::ffff:127."))


def _connect(family: int, where: Any, address: Address, timeout: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(where)
        tune(sock)
    except TimeoutError as exc:
        sock.close()
        raise TimedOut(f"{address.endpoint} does not answer", hint="check host, port and firewall") from exc
    except (OSError, ValueError) as exc:
        sock.close()
        reason = (getattr(exc, "strerror", None) or str(exc)).lower()
        raise Unreachable(
            f"cannot connect to {address.endpoint}: {reason}", hint="is `ftransfer serve` running there?"
        ) from exc
    return sock


def listen(text: str, *, insecure: bool = False) -> list[socket.socket]:
    """Return listening sockets for `HOST:PORT`, `[::1]:PORT`, `:PORT` (all interfaces) or `unix:PATH`.

    Arguments: `insecure` allows addresses that other machines can reach. Raises UsageError, Unreachable if it cannot be
    bound.
    """
    if text.startswith("unix:"):
        return [_listen_unix(text.removeprefix("unix:"))]
    host, port = _host_and_port(text, DEFAULT_PORT)
    if not host:
        _check_reach("every interface", insecure)
        return [_bind(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET, "", port)]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise UsageError(f"cannot listen on {text!r}: no such address") from exc
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, where in found:
            if not is_loopback(str(where[0])):
                _check_reach(str(where[0]), insecure)
            # With port 0 all families get the port that the first one got.
            bound = sockets[0].getsockname()[1] if sockets else port
            sockets.append(_bind(family, str(where[0]), bound))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _check_reach(where: str, insecure: bool) -> None:
    if not insecure:
        raise UsageError(
            f"refusing to listen on {where}: other machines reach it, and could read and write in the clear",
            hint="listen on 127.0.0.1, [::1] or unix:PATH; or add --insecure on a network where you trust everybody",
        )


def _bind(family: int, host: str, port: int) -> socket.socket:
    dual = family == socket.AF_INET6 and not host
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as exc:
        reason = os.strerror(exc.errno).lower() if exc.errno else str(exc)
        raise Unreachable(
            f"cannot listen on {host or '*'}:{port}: {reason}", hint="choose another port; port 0 takes a free one"
        ) from exc


def _listen_unix(path: str) -> socket.socket:
    if not path or len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise UsageError(f"the path of a Unix socket has 1 to {MAX_UNIX_PATH} bytes")
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)  # only the owner may connect
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise from_os(exc, path) from exc
    finally:
        os.umask(old)
    return sock


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


def urls(sock: socket.socket) -> list[str]:
    """Return the addresses, as the client takes them, under which a listening socket is reached."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return [f"{Address('ft+unix', os.path.abspath(name), 0, '', True)}"]
    host, port = str(name[0]), int(name[1])
    if is_loopback(host):
        return [str(Address("ft", host, port, "", True))]
    if host in ("::", "0.0.0.0"):  # noqa: S104 - compared, not bound
        return [str(Address("ft+plain", socket.gethostname(), port, "", True)), f"ft://127.0.0.1:{port}/"]
    return [str(Address("ft+plain", host, port, "", True))]


def describe_peer(sock: socket.socket) -> str:
    """Return who is at the other end, for a log line."""
    try:
        name = sock.getpeername()
    except OSError:
        return "gone"
    if sock.family == socket.AF_UNIX:
        return f"unix:{_unix_uid(sock)}"
    host = str(name[0]).removeprefix("::ffff:")
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"


def _unix_uid(sock: socket.socket) -> str:
    if not sys.platform.startswith("linux"):
        return "local"
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return f"uid={int.from_bytes(credentials[4:8], sys.byteorder)}"


def facts(sock: socket.socket) -> list[str]:
    """Return "name: value" lines about a connected socket: its addresses and options as the kernel has them."""
    lines = [f"peer: {describe_peer(sock)}"]
    if sock.family != socket.AF_UNIX:
        host, port = sock.getsockname()[:2]
        lines.append(f"local: {host}:{port}")
        lines.append(f"TCP_NODELAY: {sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)}")
    lines.append(f"SO_KEEPALIVE: {sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}")
    lines.append(f"SO_SNDBUF: {sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)}")
    lines.append(f"SO_RCVBUF: {sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)}")
    return lines

"""Addresses, dialling and socket options; `listening` has the other side.

`ft://[USER@]HOST[:PORT]/PATH` is TLS, except to this machine itself, where it is plain; `ft+tls://` and `ft+plain://`
spell it out, `ft+unix://%2Frun%2Fft.sock/PATH` is a Unix socket, and `ssh://[USER@]HOST[:PORT]/PATH` goes through ssh
(`ssh` dials that). Called by the client, the server and the command.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import Any, NamedTuple

from ftransfer import paths
from ftransfer.errors import FtransferError, TimedOut, Unreachable, UsageError
from ftransfer.pipes import Pipes

DEFAULT_PORT = 7788
ANONYMOUS = "anonymous"
"""The user of an address who shows no token."""
KEEPALIVE_IDLE = 30
KEEPALIVE_INTERVAL = 10
KEEPALIVE_COUNT = 6
_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/"
SCHEMES = ("ft", "ft+tls", "ft+plain", "ft+unix", "ssh")


class Address(NamedTuple):
    """Where a server is, and a path on it.

    `scheme` is one of SCHEMES; `host` the path of the socket for ft+unix; `port` is 0 where ssh knows it; `path` a wire
    path or "";
    `is_folder` tells whether the address ended in a slash; `user` is whose token is meant, "" for whatever there is.
    """

    scheme: str
    host: str
    port: int
    path: str
    is_folder: bool
    user: str = ""

    @property
    def endpoint(self) -> str:
        """The address without its path, as it can be typed."""
        if self.scheme == "ft+unix":
            return f"ft+unix://{quote(self.host, _SAFE.replace('/', ''))}"
        host = self.host.replace("%", "%25") if self.scheme == "ssh" else self.host
        host = f"[{host}]" if ":" in host else host
        user = f"{quote(self.user)}@" if self.user else ""
        return f"{self.scheme}://{user}{host}" + f":{self.port}" * bool(self.port or self.scheme != "ssh")

    @property
    def place(self) -> str:
        """What a certificate is remembered by."""
        return f"{self.host.lower()}:{self.port}"

    def __str__(self) -> str:
        return f"{self.endpoint}/{quote(self.path)}"

    def shown(self, path: str) -> str:
        """Return a path on the server as people read it: over ssh it is one from the root, or from a home folder."""
        return path if self.scheme != "ssh" or path.startswith("~") else f"/{path}"

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
    authority, slash, raw_path = rest.partition("/")
    path = _unquote(raw_path)
    is_folder = path.endswith("/") or not path
    if scheme == "ssh":  # without a path it is the home folder, as for scp; and as a shell has it, a//b is a/b
        path = "/".join(part for part in path.split("/") if part not in ("", ".")) if slash else "~"
    path = paths.check(path.rstrip("/"), root=True)
    if scheme == "ft+unix":
        host = _unquote(authority)
        if not host:
            raise UsageError("the address names no socket", hint="write ft+unix://%2Frun%2Fft.sock/path")
        return Address(scheme, host, 0, path, is_folder)
    user, at, where = authority.rpartition("@")
    if ":" in user:
        hint = f"ftransfer login {scheme}://{where}/ asks for the token; scripts set FTRANSFER_TOKEN_FILE"
        raise UsageError(
            "an address holds no password: it would be seen in lists of processes and in histories",
            hint=hint if scheme != "ssh" else "ssh asks for it; with a key it does not have to",
        )
    user = _unquote(user)
    if scheme == "ssh":
        return _through_ssh(user, bool(at), where, path, is_folder)
    if at and not (user.isascii() and user.replace("_", "").replace(".", "").replace("-", "").isalnum()):
        raise UsageError(f"no user can be called {user[:40]!r}")
    host, port = host_and_port(where, DEFAULT_PORT)
    if not host:
        raise UsageError(f"the address {text[:80]!r} names no host")
    return Address(scheme, host, port, path, is_folder, user)


def _through_ssh(user: str, has_user: bool, where: str, path: str, is_folder: bool) -> Address:
    """Return an address for ssh, which knows more users and hosts than we do, and may not take them for options."""
    host, port = host_and_port(where, 0)
    host = _unquote(host)
    # What a ProxyCommand with %r could hand to a shell is refused, as ssh itself does since 9.6.
    is_user = not has_user or re.fullmatch(r"(?!-)[^\s\x00-\x1f\x7f'\"`;&<>|(){}$]+(?<!\\)", user)
    if not is_user or not re.fullmatch(r"[\w:][\w.:%-]*", host):
        raise UsageError(f"ssh knows no {f'{user}@{host}'.lstrip('@')[:80]!r}")
    return Address("ssh", host, port, path, is_folder, user)


def _unquote(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # here, because hardly any address needs it

    return unquote(text, errors="surrogateescape")


def host_and_port(text: str, default: int) -> tuple[str, int]:
    """Return what `HOST:PORT` means. Raises UsageError."""
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

    Arguments: `timeout` in seconds for each. Raises Unreachable, TimedOut.
    """
    if address.scheme == "ft+unix":
        return _connect(socket.AF_UNIX, address.host, address, timeout)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise Unreachable(f"cannot find the host {address.host!r}", hint="check the name of the host") from exc
    error: FtransferError | None = None
    for family, _, _, _, where in found:
        try:
            return _connect(family, where, address, timeout)
        except FtransferError as exc:
            error = exc
    raise error or Unreachable(f"the host {address.host!r} has no address")


def wants_tls(address: Address, sock: socket.socket) -> bool:
    """Tell whether an address asks for TLS on the connection that was made to it.

    `ft://` is plain only where the address itself says that it is this machine, and is right: what a name server says
    decides nothing.
    """
    return asks_for_tls(address) or (address.scheme == "ft" and not is_local(sock))


def asks_for_tls(address: Address) -> bool:
    """Tell whether an address, as it is typed, is one for TLS."""
    if address.scheme != "ft":
        return address.scheme == "ft+tls"
    host = address.host.lower().rstrip(".")
    return not (host == "localhost" or host.endswith(".localhost") or is_loopback(host))


def is_local(sock: socket.socket, *, peer: bool = True) -> bool:
    """Tell whether a connected socket never leaves this machine.

    Arguments: `peer` looks at the other end's address, else at our own. A connection to an address of this machine that
    others reach, too, does not count.
    """
    if sock.family == socket.AF_UNIX:
        return True
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return False  # it has gone
    return is_loopback(str(name[0]))


def is_loopback(host: str) -> bool:
    """Tell whether a numeric address is this machine's own."""
    digits = host.removeprefix("::ffff:")
    return host == "::1" or (digits.startswith("127.") and digits.replace(".", "").isdigit())


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


def host_group(host: str) -> str:
    """Return what connections are counted by: the address, and for IPv6 its first half, of which one owner has all."""
    if ":" not in host or host.startswith("unix:"):
        return host
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8].hex()


def peer_host(sock: socket.socket | Pipes) -> str:
    """Return the numeric address of the other end, its user for a Unix socket, or what pipes lead to."""
    if isinstance(sock, Pipes):
        return sock.peer
    if sock.family == socket.AF_UNIX:
        return f"unix:{_unix_uid(sock)}"
    try:
        return str(sock.getpeername()[0]).removeprefix("::ffff:")
    except OSError:
        return "gone"


def is_ours(sock: socket.socket) -> bool:
    """Tell whether a Unix socket leads to a process of our user, or of root; others are not asked."""
    return sock.family != socket.AF_UNIX or _unix_uid(sock) in (f"uid={os.geteuid()}", "uid=0", "local")


def _unix_uid(sock: socket.socket) -> str:
    if not sys.platform.startswith("linux"):
        return "local"
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return f"uid={int.from_bytes(credentials[4:8], sys.byteorder)}"


def describe_peer(sock: socket.socket | Pipes) -> str:
    """Return who is at the other end, for a log line."""
    host = peer_host(sock)
    if isinstance(sock, Pipes) or host.startswith("unix:") or host == "gone":
        return host
    try:
        port = sock.getpeername()[1]
    except OSError:
        return "gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def facts(sock: socket.socket | Pipes) -> list[str]:
    """Return "name: value" lines about a connected socket: its addresses and options as the kernel has them."""
    lines = [f"peer: {describe_peer(sock)}"]
    if isinstance(sock, Pipes):
        return lines
    if sock.family != socket.AF_UNIX:
        host, port = sock.getsockname()[:2]
        lines.append(f"local: {host}:{port}")
        lines.append(f"TCP_NODELAY: {sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)}")
    if (cipher := getattr(sock, "cipher", None)) is not None and (chosen := cipher()) is not None:
        lines.append(f"encrypted: {chosen[1]} {chosen[0]}")
    lines.append(f"SO_KEEPALIVE: {sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}")
    lines.append(f"SO_SNDBUF: {sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)}")
    lines.append(f"SO_RCVBUF: {sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)}")
    return lines

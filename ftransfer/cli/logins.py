"""The commands login, logout and remotes."""

from __future__ import annotations

import argparse
import os

from ftransfer import net
from ftransfer.channel import goodbye
from ftransfer.cli.installing import install, question
from ftransfer.cli.output import Output
from ftransfer.cli.remotes import MAX_TOKEN, ask, identity_of, remote_for, shell_of
from ftransfer.client import Remote
from ftransfer.errors import NotInstalled, ProtocolError, UsageError, VersionMismatch, from_os
from ftransfer.known import Known, Login, check_name
from ftransfer.link import Patience
from ftransfer.paths import printable
from ftransfer.statedir import StateDir
from ftransfer.tokens import check_token


def login(options: argparse.Namespace, output: Output) -> int:
    """Check the server, then the token, and remember both under a name."""
    word = options.url if net.is_url(options.url) else f"ft://{options.url}/"
    address = net.parse_url(word)
    if address.scheme == "ssh":
        return _login_over_ssh(options, output, address)
    if options.install:
        raise UsageError("--install is for ssh://", hint="elsewhere somebody has to start a server")
    if options.anonymous:
        address = address._replace(user=net.ANONYMOUS)
    known = Known(StateDir())
    before = known.login_to(address)
    name = check_name(options.name or (before.name if before else _name_of(address)))
    identity = identity_of(options, address)
    if identity.fingerprint is None and net.asks_for_tls(address):
        identity.prefer_system(address, options.timeout)
    sock = identity.dial(address, options.timeout)  # the server is checked before anybody types a secret
    encrypted = net.wants_tls(address, sock)
    goodbye(sock)
    sock.close()
    if encrypted and identity.fingerprint:
        from ftransfer.tls import parse_fingerprint

        known.remember(address.place, parse_fingerprint(identity.fingerprint))
    if not encrypted and address.scheme != "ft+unix":
        output.say("note: this address is in the clear; whoever is on the way can read the token")
    token = None if options.anonymous else _read_token(options, identity.token)
    patience = Patience(options.timeout, options.retry_for, options.max_time)
    with Remote(address.at(""), patience, identity=identity._replace(token=token)) as remote:
        pong = remote.ping()
    endpoint = address._replace(user=pong.user).at(address.path)
    known.save(Login(name, f"{endpoint}{'/' * (bool(address.path) and address.is_folder)}", token, encrypted))
    output.event("login", name=name, url=str(endpoint), user=pong.user, can=pong.can)
    may = ", ".join(pong.can) or "do nothing"
    output.say(f"logged in to {printable(address.endpoint)} as {printable(pong.user)}, who may {printable(may)}")
    output.say(f"from now on {name}: is an address, as in: ftransfer upload FILE {name}:")
    return 0


def _login_over_ssh(options: argparse.Namespace, output: Output, address: net.Address) -> int:
    """Check that the other end can be reached, copy ftransfer there if that is wanted, and remember the name."""
    for option in ("from_file", "anonymous"):
        if getattr(options, option):
            raise UsageError("ssh itself looks who asks: there is no token", hint=f"ftransfer login {address.endpoint}")
    known = Known(StateDir())
    before = known.login_to(address)
    name = check_name(options.name or (before.name if before else _name_of(address)))
    with remote_for(options, address, output) as remote:
        try:
            pong = remote.ping()
        except (NotInstalled, ProtocolError) as exc:
            if not (options.install or isinstance(exc, (NotInstalled, VersionMismatch))):
                raise  # what is there may be broken, or be something else
            shell = shell_of(options, address, output)
            assert shell is not None
            if shell.remote_command or not (options.install or ask(question(address))):
                raise
            output.say(install(shell, address, options.timeout))
            pong = remote.ping()
    known.save(Login(name, f"{str(address).rstrip('/')}/", None))
    output.event("login", name=name, url=str(address), user=pong.user, can=pong.can)
    output.say(f"{printable(address.endpoint)} has {printable(pong.server)}")
    output.say(f"from now on {name}: is an address, as in: ftransfer upload FILE {name}:")
    return 0


def _name_of(address: net.Address) -> str:
    """Return the first part of the host's name. Raises UsageError for a numeric address, which has none."""
    name = address.host.partition(".")[0]
    if name.isdigit() or ":" in address.host or "/" in address.host:
        raise UsageError(f"{address.host} gives no name for it", hint="add one: --as NAME")
    return name


def _read_token(options: argparse.Namespace, known: str | None) -> str:
    """Return the token from a file, the environment, standard input if that is no terminal, or the person there."""
    if options.from_file and options.from_file != "-":
        try:
            with open(options.from_file, "rb") as file:
                return check_token(file.read(MAX_TOKEN).decode("ascii", "replace"))
        except OSError as exc:
            raise from_os(exc, options.from_file) from exc
    if known is not None and not options.from_file:
        return known
    if options.from_file or not os.isatty(0):
        return check_token(_read_line().decode("ascii", "replace"))
    from getpass import getpass

    try:
        return check_token(getpass("token: "))
    except EOFError:
        raise UsageError("no token was typed", hint="ftransfer user add, on the server, makes one") from None


def _read_line() -> bytes:
    """Return what stands on standard input up to the end of a line. Raises UsageError if there is nothing."""
    data = b""
    try:
        while b"\n" not in data and len(data) < MAX_TOKEN and (more := os.read(0, MAX_TOKEN)):
            data += more
    except OSError:
        pass  # closed
    if not data.strip():
        raise UsageError("no token came on standard input", hint="--token-file FILE reads it from a file")
    return data


def logout(options: argparse.Namespace, output: Output) -> int:
    """Forget a login and its token; the certificate of the server stays known."""
    name = options.name.rstrip(":")
    known = Known(StateDir())
    login = known.login(name)
    known.forget(name)
    token = "; on the server the token still opens" if login is not None and login.token is not None else ""
    output.say(f"{printable(name)} is forgotten here{token}")
    return 0


def remotes(_: argparse.Namespace, output: Output) -> int:
    """List the logins; tokens are not shown."""
    known = Known(StateDir())
    logins = known.logins()
    for entry in logins:
        address = net.parse_url(entry.url)
        shown = known.fingerprint(address.place)
        output.event("remote", name=entry.name, url=entry.url, fingerprint=shown, has_token=entry.token is not None)
        output.verdict(f"{entry.name}:  {printable(entry.url)}")
    if not logins:
        output.say("no remotes: ftransfer login ft://HOST --as NAME makes one")
    return 0

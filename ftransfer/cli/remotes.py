"""From a word of the command line and the options to a `Remote`: names of logins, tokens, and the question of trust."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from ftransfer import net
from ftransfer.cli.output import Output
from ftransfer.client import Remote
from ftransfer.connecting import shell_for
from ftransfer.errors import UsageError, from_os
from ftransfer.identity import Identity
from ftransfer.link import Patience
from ftransfer.paths import printable
from ftransfer.tokens import check_token

if TYPE_CHECKING:
    from ftransfer.shells import Shell

MAX_TOKEN = 4096
"""Bytes of a file with a token that are read."""


def require_url(text: str, what: str) -> net.Address:
    """Return the address in a word. Raises UsageError if it is a local path."""
    if not net.is_url(text):
        raise UsageError(
            f"{what} must be an address, not {text!r}", hint="an address looks like ft://host:7788/folder/"
        )
    return net.parse_url(text)


def require_path(address: net.Address, what: str) -> str:
    """Return the path of an address. Raises UsageError if it has none, or only that of a home folder."""
    if not address.path or (address.scheme == "ssh" and address.path[0] == "~" and "/" not in address.path):
        raise UsageError(f"the address names no {what}, only the server", hint=f"write {address.endpoint}/name")
    return address.path


def remote_for(options: argparse.Namespace, address: net.Address, output: Output) -> Remote:
    """Return the root of the server at an address."""
    patience = Patience(options.timeout, options.retry_for, options.max_time)
    rate = getattr(options, "limit_rate", None)
    identity, shell = identity_of(options, address), shell_of(options, address, output)
    return Remote(address.at(""), patience, limit_rate=rate, identity=identity, shell=shell)


def shell_of(options: argparse.Namespace, address: net.Address, output: Output) -> Shell | None:
    """Return how the options and the environment say that ssh is called, None for an address that does without."""
    ssh = options.ssh or os.environ.get("FTRANSFER_SSH") or "ssh"
    return shell_for(address, ssh, options.remote_command, output.pass_on)


def identity_of(options: argparse.Namespace, address: net.Address) -> Identity:
    """Return whom the options and the environment say to trust, and what to show.

    What the environment says of certificates is meant for those addresses that have one.
    """
    fingerprint = options.fingerprint
    if address.scheme == "ssh":
        if fingerprint is not None:
            raise UsageError("there is no certificate behind ssh", hint="ssh has host keys: see ~/.ssh/known_hosts")
        return Identity()
    if fingerprint is None and net.asks_for_tls(address):
        fingerprint = os.environ.get("FTRANSFER_FINGERPRINT") or None
    return Identity(_token(), fingerprint, on_unknown=ask_for_trust)


def _token() -> str | None:
    token = os.environ.get("FTRANSFER_TOKEN")
    path = os.environ.get("FTRANSFER_TOKEN_FILE")
    if token is None and path:
        try:
            with open(path, "rb") as file:
                token = file.read(MAX_TOKEN).decode("ascii", "replace")
        except OSError as exc:
            raise from_os(exc, path) from exc
    return check_token(token) if token is not None and token.strip() else None


def ask_for_trust(endpoint: str, fingerprint: str) -> bool:
    """Ask the person at the terminal, if there is one, whether this is the right server."""
    return ask(
        f"{printable(endpoint)} is not known yet. The fingerprint of its certificate is\n"
        f"  {fingerprint}\n"
        "Is that what the server shows? Type yes to trust it from now on: "
    )


def ask(question: str) -> bool:
    """Ask the person at the terminal something that is answered with yes; False if there is nobody."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    with open(terminal, "r+b", buffering=0) as tty:
        if not os.isatty(tty.fileno()) or os.tcgetpgrp(tty.fileno()) != os.getpgrp():
            return False  # in the background nobody can answer
        sys.stderr.flush()
        tty.write(question.encode())
        answer = tty.readline(100)
    return answer.strip().lower() in (b"yes", b"y")


def remote_path(address: net.Address) -> str:
    """Return the path of an address, with the slash that makes it a folder."""
    return f"{address.path}/" if address.is_folder and address.path else address.path

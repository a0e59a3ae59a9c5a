"""From a word of the command line and the options to a `Remote`: names of logins, tokens, and the question of trust."""

from __future__ import annotations

import argparse
import os
import sys

from ftransfer import net
from ftransfer.client import Remote
from ftransfer.errors import UsageError, from_os
from ftransfer.identity import Identity
from ftransfer.link import Patience
from ftransfer.paths import printable
from ftransfer.tokens import check_token

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
    """Return the path of an address. Raises UsageError if it has none."""
    if not address.path:
        raise UsageError(f"the address names no {what}, only the server", hint=f"write {address.endpoint}/name")
    return address.path


def remote_for(options: argparse.Namespace, address: net.Address) -> Remote:
    """Return the root of the server at an address."""
    patience = Patience(options.timeout, options.retry_for, options.max_time)
    rate = getattr(options, "limit_rate", None)
    return Remote(address.at(""), patience, limit_rate=rate, identity=identity_of(options, address))


def identity_of(options: argparse.Namespace, address: net.Address) -> Identity:
    """Return whom the options and the environment say to trust, and what to show.

    What the environment says of certificates is meant for those addresses that have one.
    """
    fingerprint = options.fingerprint
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
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    with open(terminal, "r+b", buffering=0) as tty:
        if not os.isatty(tty.fileno()) or os.tcgetpgrp(tty.fileno()) != os.getpgrp():
            return False  # in the background nobody can answer
        question = (
            f"{printable(endpoint)} is not known yet. The fingerprint of its certificate is\n"
            f"  {fingerprint}\n"
            "Is that what the server shows? Type yes to trust it from now on: "
        )
        sys.stderr.flush()
        tty.write(question.encode())
        answer = tty.readline(100)
    return answer.strip().lower() in (b"yes", b"y")


def remote_path(address: net.Address) -> str:
    """Return the path of an address, with the slash that makes it a folder."""
    return f"{address.path}/" if address.is_folder and address.path else address.path

"""From an address and the options of patience to a `Remote`."""

from __future__ import annotations

import argparse

from ftransfer import net
from ftransfer.client import Remote
from ftransfer.errors import UsageError
from ftransfer.link import Patience


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
    return Remote(address.at(""), patience, limit_rate=getattr(options, "limit_rate", None))


def remote_path(address: net.Address) -> str:
    """Return the path of an address, with the slash that makes it a folder."""
    return f"{address.path}/" if address.is_folder and address.path else address.path

"""What a client remembers: which certificate each server has, and the servers that were logged in to, by name.

Files in the state folder, readable by nobody else, since one holds tokens. Used by `identity` and the command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from ftransfer import net
from ftransfer.errors import FtransferError, NotFound, Refused, UsageError
from ftransfer.statedir import StateDir

CERTIFICATES = "known.json"
REMOTES = "remotes.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


class Login(NamedTuple):
    """A server that was logged in to: its address, which may have a path, and the token, None for strangers.

    `encrypted` tells whether that was over TLS; then the token is never shown in the clear.
    """

    name: str
    url: str
    token: str | None
    encrypted: bool = True

    def __repr__(self) -> str:
        return f"Login({self.name!r}, {self.url!r})"  # a secret is shown nowhere


def check_name(name: str) -> str:
    """Return the name of a remote. Raises UsageError for one that cannot be."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a remote cannot be called {name[:40]!r}", hint="letters, digits, dot, dash and underscore; as in lab:in/"
        )
    return name


def split_word(word: str) -> tuple[str, str] | None:
    """Return name and path of `NAME:PATH`, or None for a word that is none."""
    name, colon, path = word.partition(":")
    if not colon or path.startswith("//") or not _NAME.fullmatch(name):
        return None
    return name, path


def resolve_name(word: str, state: str | os.PathLike[str] | None = None) -> str:
    """Return the address that `NAME:PATH` stands for; other words are returned as they are. Raises NotFound."""
    found = split_word(word)
    if found is None:
        return word
    name, path = found
    login = Known(StateDir(state)).login(name)
    if login is None:
        there = path.lstrip("/") if path.startswith(("/", "~")) else f"~/{path}"
        raise NotFound(
            f"no remote is called {name!r}",
            hint=f"ftransfer remotes lists them; through ssh it is ssh://{name}/{there}; a local file: ./{word}",
        )
    address = net.parse_url(login.url)
    if address.scheme == "ssh" and path.startswith(("/", "~")):  # as with scp, it is not below where the login leads
        return f"{address.endpoint}/{net.quote(path.lstrip('/'))}"
    return login.url.rstrip("/") + "/" + net.quote(path.lstrip("/"))


class Known:
    """What is remembered in one state folder."""

    def __init__(self, state: StateDir):
        self.state = state

    # Certificates, by host and port.

    def fingerprint(self, place: str) -> str | None:
        """Return the fingerprint that a server had."""
        found = self.state.read_json(CERTIFICATES).get(place)
        return found if isinstance(found, str) else None

    def remember(self, place: str, fingerprint: str) -> None:
        """Expect this certificate there from now on."""
        with self.state.lock(CERTIFICATES):
            self.state.write_json(CERTIFICATES, self.state.read_json(CERTIFICATES) | {place: fingerprint})

    # Logins.

    def logins(self) -> list[Login]:
        """Return all, sorted by name."""
        found = []
        for name, record in sorted(self.state.read_json(REMOTES).items()):
            if not isinstance(record, dict) or not isinstance(record.get("url"), str):
                raise Refused(f"{self.state.where(REMOTES)} is damaged", hint="log in again after removing it")
            token = record.get("token")
            found.append(
                Login(name, record["url"], token if isinstance(token, str) else None, record.get("tls") is not False)
            )
        return found

    def login(self, name: str) -> Login | None:
        """Return one by its name."""
        return next((login for login in self.logins() if login.name == name), None)

    def login_to(self, address: net.Address) -> Login | None:
        """Return the first login to the same server, for the same user if the address names one."""
        return next(self._logins_to(address), None)

    def _logins_to(self, address: net.Address) -> Iterator[Login]:
        for login in self.logins():
            try:
                there = net.parse_url(login.url)
            except FtransferError:
                continue  # of another version
            if _is_same_server(there, address) and (not address.user or address.user == there.user):
                yield login

    def token_for(self, address: net.Address, *, encrypted: bool) -> str | None:
        """Return the token of a login to the same server, for the same user if the address names one.

        Arguments: `encrypted`, whether the connection is; what was given over TLS is not shown in the clear.
        """
        usable = (one.token for one in self._logins_to(address) if one.token and (encrypted or not one.encrypted))
        return next(usable, None)

    def save(self, login: Login) -> None:
        """Remember a login, in the place of another one of that name."""
        with self.state.lock(REMOTES):
            record = {"url": login.url, "token": login.token, "tls": login.encrypted}
            self.state.write_json(REMOTES, self.state.read_json(REMOTES) | {check_name(login.name): record})

    def forget(self, name: str) -> None:
        """Forget a login. Raises NotFound."""
        with self.state.lock(REMOTES):
            records = self.state.read_json(REMOTES)
            if name not in records:
                raise NotFound(f"no remote is called {name[:40]!r}", hint="ftransfer remotes lists them")
            del records[name]
            self.state.write_json(REMOTES, records)


def _is_same_server(one: net.Address, other: net.Address) -> bool:
    """Tell whether a token for one may be shown to the other: never in the clear what was given over TLS."""
    return (one.scheme, one.host.lower(), one.port) == (other.scheme, other.host.lower(), other.port)

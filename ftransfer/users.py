"""The users of a server: a file in the state folder that `ftransfer user` changes and a running server looks at again.

A token is shown once, when it is made; the file has its hash only. Used by `admission` and the command.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Iterable
from typing import Any

from ftransfer import paths
from ftransfer.errors import AlreadyExists, FtransferError, NotFound, Refused, UsageError
from ftransfer.net import ANONYMOUS
from ftransfer.rights import VERBS, Account, Allowance
from ftransfer.statedir import StateDir
from ftransfer.tokens import new_token

log = logging.getLogger("ftransfer.server")
FILE = "users.json"
DEFAULT_CAN = ("create", "read")
OWNER = "owner"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}", re.ASCII)


def parse_verbs(text: str) -> frozenset[str]:
    """Return the verbs in a list with commas. Raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in VERBS:
            raise UsageError(f"nobody can be allowed to {word[:40]!r}", hint=f"the words are {', '.join(VERBS)}")
    return frozenset(words)


def check_name(name: str) -> str:
    """Return the name of a user. Raises UsageError for one that cannot be."""
    if not _NAME.fullmatch(name) or name in (OWNER, ANONYMOUS):
        raise UsageError(
            f"a user cannot be called {name[:40]!r}",
            hint="1 to 32 of a-z, 0-9, dot, dash and underscore; owner and anonymous are taken",
        )
    return name


def token_hash(token: str) -> str:
    """Return what is stored of a token; a plain hash, because a token has more bits than could be tried."""
    import hashlib  # here, because a server that knows nobody but its owner starts quicker without

    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def is_same(one: str, other: str) -> bool:
    """Compare two texts in a time that says nothing about them."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


class Users:
    """The accounts that are known, read again whenever the file has changed. May be used from any thread."""

    def __init__(self, state: StateDir):
        self._state = state
        self._stamp: object = ()
        self._known: dict[str, tuple[Account, str]] = {}
        self._damaged: list[str] = []

    def _load(self) -> dict[str, tuple[Account, str]]:
        stamp = self._state.stamp(FILE)
        if stamp != self._stamp:
            known = {}
            self._damaged = []
            for name, record in self._records().items():
                try:
                    known[name] = (_account(name, record), str(record["token"]))
                except (KeyError, TypeError, ValueError, AttributeError):
                    # It shuts out this user, not the others.
                    self._damaged.append(paths.printable(str(name)))
                    log.error("the record of the user %s is damaged", paths.printable(str(name)))
            self._known, self._stamp = known, stamp
        return self._known

    def check(self) -> None:
        """Raise Refused if a record is damaged."""
        self._load()
        if self._damaged:
            raise Refused(
                f"the record of the user {self._damaged[0]} in {self._state.where(FILE)} is damaged",
                hint="ftransfer user remove takes it away",
            )

    def all(self) -> list[Account]:
        """Return the accounts, sorted by name."""
        return [account for _, (account, _) in sorted(self._load().items())]

    def by_token(self, token: str) -> tuple[Account, str] | None:
        """Return whose token this is, and its hash; every user is compared, in constant time."""
        hashed = token_hash(token)
        found = None
        for account, known in self._load().values():
            if is_same(hashed, known):
                found = account, known
        return found

    def get(self, name: str) -> tuple[Account, str] | None:
        """Return the account of that name as it is now, and the hash of its token."""
        return self._load().get(name)

    # Changes, each under the lock of the file.

    def add(
        self,
        name: str,
        *,
        can: Iterable[str] = DEFAULT_CAN,
        folder: str = "",
        quota: int | None = None,
        max_file: int | None = None,
        expires: float | None = None,
    ) -> str:
        """Add a user and return the token, which is stored nowhere. Raises AlreadyExists, UsageError, BadPath."""
        account = Account(check_name(name), frozenset(can), paths.check(folder, root=True), quota, max_file, expires)
        token = new_token()
        with self._state.lock(FILE):
            records = self._records()
            if name in records:
                raise AlreadyExists(
                    f"there is a user called {name}", hint="ftransfer user token NAME makes another token"
                )
            records[name] = _record(account, token)
            self._save(records)
            self._state.remove(_used_file(name))  # of somebody who was called so before
        return token

    def remove(self, name: str) -> None:
        """Remove a user: from now on the token opens nothing. Raises NotFound."""
        with self._state.lock(FILE):
            records = self._records()
            self._must_be(name, records)
            del records[name]
            self._save(records)
            self._state.remove(_used_file(name))

    def renew(self, name: str) -> str:
        """Give a user another token and return it; the one before opens nothing any more. Raises NotFound."""
        token = new_token()
        with self._state.lock(FILE):
            records = self._records()
            self._must_be(name, records)
            records[name]["token"] = token_hash(token)
            self._save(records)
        return token

    @staticmethod
    def _must_be(name: str, records: dict[str, Any]) -> None:
        if name not in records:
            raise NotFound(f"there is no user called {name[:40]!r}", hint="ftransfer user list")

    def _records(self) -> dict[str, Any]:
        records = self._state.read_json(FILE).get("users", {})
        if not isinstance(records, dict):
            raise Refused(f"{self._state.where(FILE)} is damaged", hint="put a copy back, or remove it")
        return records

    def _save(self, records: dict[str, Any]) -> None:
        self._state.write_json(FILE, {"v": 1, "users": records})

    # Shares.

    def used(self, name: str) -> int:
        """Return the bytes that a user has stored, less those it has replaced or removed; counted if it has a quota."""
        data = self._state.read(_used_file(name))
        return int(data) if data and data.strip().isdigit() else 0

    def add_used(self, name: str, count: int) -> None:
        """Change that number."""
        with self._state.lock(_used_file(name)):
            self._state.write(_used_file(name), str(max(0, self.used(name) + count)).encode())

    def allowance(self, account: Account) -> Allowance:
        """Return what an account may still store."""
        return Allowance(
            account.quota, lambda: self.used(account.name), lambda count: self.add_used(account.name, count)
        )


def _used_file(name: str) -> str:
    return f"used/{name}"


def _record(account: Account, token: str) -> dict[str, Any]:
    return {
        "can": [verb for verb in VERBS if verb in account.can],
        "folder": account.folder,
        "quota": account.quota,
        "max_file": account.max_file,
        "expires": account.expires,
        "created": int(time.time()),
        "token": token_hash(token),
    }


def _account(name: str, record: dict[str, Any]) -> Account:
    """Return what a record says; whoever edited the file, nothing in it means more than it says."""
    can = frozenset(record["can"])
    if not can <= set(VERBS) or not _NAME.fullmatch(name):
        raise ValueError(name)
    try:
        folder = paths.check(record["folder"], root=True)
    except FtransferError as exc:
        raise ValueError(name) from exc
    numbers = [record.get("quota"), record.get("max_file"), record.get("expires")]
    if any(value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))) for value in numbers):
        raise TypeError(name)
    return Account(name, can, folder, *numbers)

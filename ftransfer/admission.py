"""Who is let in: tokens of users, of the owner, and strangers where the server wants them. Belongs to one server.

Nothing is asked of anybody before this has said who it is; failures are answered later and later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ftransfer.errors import FtransferError, LoginNeeded, Refused
from ftransfer.net import ANONYMOUS
from ftransfer.rights import ALL, VERBS, Account, Allowance
from ftransfer.statedir import StateDir
from ftransfer.tokens import new_token
from ftransfer.users import OWNER, Users, is_same

log = logging.getLogger("ftransfer.server")
FIRST_PENALTY = 0.1
"""Seconds that the first failure of an address waits for its answer; each further one waits twice as long."""
LONGEST_PENALTY = 5.0
FORGIVEN_AFTER = 300.0
"""Seconds without a failure after which an address begins anew."""
MOST_REMEMBERED = 4096
"""Addresses whose failures are remembered."""
_ANOTHER = "ask who runs the server for another one"
_READ_ONLY = frozenset({"read"})


class Admitted(NamedTuple):
    """Somebody who was let in, and the proof, so that it can be looked at again."""

    account: Account
    key: str | None
    """The hash of the token that opened, for users."""


class Admission:
    """Decides who a client is.

    Arguments: `read_only` takes all verbs but read from everybody; `anonymous` is what strangers can, "read" or
    "create", or None. `owner_token` is what the clients of the same user on this machine find by themselves.
    """

    def __init__(self, state: StateDir, *, read_only: bool = False, anonymous: str | None = None):
        self.users = Users(state)
        self.owner_token = new_token()
        self.anonymous = anonymous
        self._most = _READ_ONLY if read_only else ALL
        self._allowances: dict[Account, Allowance] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def admit(self, token: str | None, user: str | None = None) -> Admitted:
        """Return who shows this token. Raises LoginNeeded."""
        with _private():
            admitted = self._find(token)
        if user is not None and admitted.account.name != user:
            raise LoginNeeded(f"the token is not of the user {user[:40]!r}")
        return self._limited(admitted)

    def owner(self) -> Admitted:
        """Return the user of this process, who needs no token where somebody else has looked who that is."""
        return self._limited(Admitted(Account(OWNER, ALL), None))

    def _limited(self, admitted: Admitted) -> Admitted:
        account = admitted.account
        return admitted._replace(account=account._replace(can=account.can & self._most))

    def _find(self, token: str | None) -> Admitted:
        if token is None:
            if self.anonymous is None:
                raise LoginNeeded("the server wants to know who asks")
            return Admitted(Account(ANONYMOUS, frozenset({self.anonymous})), None)
        if is_same(token, self.owner_token):
            return Admitted(Account(OWNER, ALL), None)
        found = self.users.by_token(token)
        if found is None:
            raise LoginNeeded("the server does not know this token", hint=_ANOTHER)
        if found[0].is_over:
            raise LoginNeeded("the token has expired", hint=_ANOTHER)
        return Admitted(*found)

    def still(self, admitted: Admitted) -> None:
        """Raise Refused if somebody who was let in is not to be any more, or not with the same rights."""
        account, key = admitted
        if account.is_over:
            raise Refused("the token has expired", hint=_ANOTHER)
        if key is None:
            return
        with _private():
            found = self.users.get(account.name)
        if found is None or found[1] != key:
            raise Refused("this token opens nothing any more", hint=_ANOTHER)
        now = found[0]
        if now._replace(can=now.can & self._most) != account:
            raise Refused("the rights of this user have changed", hint="run the command again")

    def allowance(self, account: Account) -> Allowance:
        """Return the share of an account, the same object for all its connections."""
        with self._lock:
            if account not in self._allowances:
                self._allowances[account] = self.users.allowance(account)
            return self._allowances[account]

    def folders(self) -> list[str]:
        """Return the folders that users are confined to, which are swept by themselves."""
        try:
            return sorted({account.folder for account in self.users.all() if account.folder})
        except FtransferError as exc:
            log.error("cannot look up users: %s", exc)
            return []

    def penalty(self, host: str) -> float:
        """Take note of a failure, and return the seconds that its answer has to wait."""
        now = time.monotonic()
        with self._lock:
            count, last = self._failures.pop(host, (0, now))
            count = 1 if now - last > FORGIVEN_AFTER else count + 1
            if len(self._failures) >= MOST_REMEMBERED:
                del self._failures[next(iter(self._failures))]  # the one that failed longest ago
            self._failures[host] = count, now
        return float(min(FIRST_PENALTY * 2 ** min(count - 1, 10), LONGEST_PENALTY))


@contextmanager
def _private() -> Iterator[None]:
    """Keep what is wrong with the files of users in the log: strangers are not told where they lie."""
    try:
        yield
    except LoginNeeded:
        raise
    except FtransferError as exc:
        log.error("cannot look up users: %s", exc)
        raise LoginNeeded("the server cannot look up its users", hint="tell who runs the server") from exc


def describe(account: Account) -> list[str]:
    """Return the verbs of an account in their usual order."""
    return [verb for verb in VERBS if verb in account.can]

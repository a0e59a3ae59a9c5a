"""Who may do what: an account, its verbs and its share. Does no I/O.

Made by `users` (and by `server` for the owner and for strangers), asked by `store.guarded` before anything is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ftransfer.errors import OverQuota, Refused

VERBS = ("create", "read", "replace", "delete")
"""All that can be allowed: new files and folders; looking and downloading; other content for a name; removing."""
ALL = frozenset(VERBS)
_LOOKING = frozenset({"read"})
_MEANING = {
    "create": "create files and folders",
    "read": "read or list",
    "replace": "replace or change what is there",
    "delete": "remove",
}


class Account(NamedTuple):
    """Somebody that a server lets in.

    `can` holds words of VERBS; `folder` is the path below the served folder that is all they see ("" for all of it);
    `quota` and `max_file` in bytes, None for no limit; `expires` in seconds since 1970, None for never.
    """

    name: str
    can: frozenset[str]
    folder: str = ""
    quota: int | None = None
    max_file: int | None = None
    expires: float | None = None

    def require(self, *verbs: str) -> None:
        """Raise Refused for the first of these verbs that is not allowed."""
        for verb in verbs:
            if verb in self.can:
                continue
            if self.can == _LOOKING:
                raise Refused("this server only lets you read", hint="ask who runs it")
            raise Refused(f"{self.name} may not {_MEANING[verb]} here", hint="ask who runs the server")

    @property
    def is_over(self) -> bool:
        """Whether the account has expired."""
        return self.expires is not None and time.time() >= self.expires


class Allowance:
    """How much of a quota is used; shared by all connections of an account, and safe to share.

    Arguments: `quota` in bytes; `used` returns what is stored, `add` changes that for good, by a negative number, too.
    """

    def __init__(self, quota: int | None, used: Callable[[], int], add: Callable[[int], None]):
        self._quota = quota
        self._used = used
        self._add = add
        self._reserved = 0
        self._lock = threading.Lock()

    @property
    def counts(self) -> bool:
        """Whether there is a quota, so that sizes have to be looked up."""
        return self._quota is not None

    def reserve(self, count: int) -> None:
        """Set bytes aside for what is being stored. Raises OverQuota."""
        if self._quota is None:
            return
        with self._lock:
            left = self._quota - self._used() - self._reserved
            if count > left:
                raise OverQuota(f"{count} bytes are more than what is left of the quota, {max(left, 0)} bytes")
            self._reserved += count

    def release(self, count: int) -> None:
        """Give back what was set aside."""
        if self._quota is not None:
            with self._lock:
                self._reserved -= count

    def stored(self, count: int, *, freed: int = 0) -> None:
        """Take note that what was set aside is stored, in the place of `freed` bytes."""
        if self._quota is not None:
            with self._lock:
                self._reserved -= count
                self._add(count - freed)

    def freed(self, count: int) -> None:
        """Take note that so many bytes were removed."""
        if self._quota is not None and count:
            with self._lock:
                self._add(-count)

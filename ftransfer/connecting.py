"""From an address, or the name of a login, to a `Remote`: what programs begin with."""

from __future__ import annotations

import os
import threading

from ftransfer import net
from ftransfer.client import Remote
from ftransfer.identity import Identity
from ftransfer.link import Patience
from ftransfer.tokens import check_token


def connect(
    url: str,
    *,
    timeout: float = 60.0,
    retry_for: float | None = None,
    max_time: float | None = None,
    limit_rate: float | None = None,
    cancel: threading.Event | None = None,
    token: str | None = None,
    fingerprint: str | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Remote:
    """Return a `Remote` for the folder at `url`; the connection is made when it is first needed.

    Arguments: `url`, an address, or `NAME:PATH` after a login under that name; `timeout`, seconds without a byte after
    which the server counts as dead; `retry_for`, seconds without progress after which retries end (None: 600 once a
    connection stood, no retry before that); `max_time`, seconds for everything;
    `limit_rate` in bytes a second; `cancel`, an event that stops everything with Cancelled; `token`, what proves who
    asks (None: that of a login, or of a server of the same user on this machine); `fingerprint` that the server's
    certificate has to have (None: the one that is remembered, else what the system trusts); `state`, the folder where
    logins are kept (None: the default one). Raises UsageError, NotFound for a name without a login.
    """
    if not net.is_url(url):
        from ftransfer.known import resolve_name  # here, because few addresses are names

        url = resolve_name(url, state)
    return Remote(
        net.parse_url(url),
        Patience(timeout, retry_for, max_time),
        limit_rate=limit_rate,
        cancel=cancel,
        identity=Identity(check_token(token) if token is not None else None, fingerprint, state),
    )

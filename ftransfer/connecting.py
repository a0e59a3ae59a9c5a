"""From an address, or the name of a login, to a `Remote`: what programs begin with."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ftransfer import net
from ftransfer.client import Remote
from ftransfer.errors import UsageError
from ftransfer.identity import Identity
from ftransfer.link import Patience
from ftransfer.tokens import check_token

if TYPE_CHECKING:
    from ftransfer.shells import Shell


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
    ssh: str = "ssh",
    remote_command: str | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Remote:
    """Return a `Remote` for the folder at `url`; the connection is made when it is first needed.

    Arguments: `url`, an address, or `NAME:PATH` after a login under that name; `timeout`, seconds without a byte after
    which the server counts as dead; `retry_for`, seconds without progress after which retries end (None: 600 once a
    connection stood, no retry before that); `max_time`, seconds for everything;
    `limit_rate` in bytes a second; `cancel`, an event that stops everything with Cancelled; `token`, what proves who
    asks (None: that of a login, or of a server of the same user on this machine); `fingerprint` that the server's
    certificate has to have (None: the one that is remembered, else what the system trusts); `state`, the folder where
    logins are kept (None: the default one). For `ssh://`: `ssh`, the command, with its options as a shell splits them;
    `remote_command`, what is run there, followed by `serve --stdio` (None: the `ftransfer` that is found there);
    `on_message`, told each line that ssh says, and anything else meant for people, in the calling thread.
    Raises UsageError, NotFound for a name without a login.
    """
    if not net.is_url(url):
        from ftransfer.known import resolve_name  # here, because few addresses are names

        url = resolve_name(url, state)
    address = net.parse_url(url)
    return Remote(
        address,
        Patience(timeout, retry_for, max_time),
        limit_rate=limit_rate,
        cancel=cancel,
        identity=Identity(check_token(token) if token is not None else None, fingerprint, state),
        shell=shell_for(address, ssh, remote_command, on_message),
    )


def shell_for(
    address: net.Address, ssh: str, remote_command: str | None, on_message: Callable[[str], None] | None
) -> Shell | None:
    """Return how ssh is called for an address; None for one that does without. Raises UsageError."""
    if address.scheme != "ssh":
        return None
    import shlex  # here, because only ssh needs it

    from ftransfer.shells import Shell

    try:
        program = shlex.split(ssh)
    except ValueError as exc:
        raise UsageError(f"cannot split {ssh!r} into words: {exc}", hint="as in --ssh 'ssh -J gate'") from exc
    if not program:
        raise UsageError("the ssh command is empty", hint="as in --ssh 'ssh -J gate'")
    return Shell(program, remote_command, on_message)

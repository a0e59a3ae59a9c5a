"""How ssh is called, what the shell on the other machine is told, and what it means when that ends too early.

No I/O: `ssh` does that. Also used by whoever says which ssh it is to be, and by the command that copies ftransfer.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ftransfer.archive import VERSION_NAME
from ftransfer.errors import (
    ConnectionLost,
    FtransferError,
    IdentityUnknown,
    NotFound,
    NotInstalled,
    ProtocolError,
    Refused,
    RemoteDiskError,
    Unreachable,
)
from ftransfer.net import Address

SSH = ("ssh",)
OPTIONS = ("-T", "-a", "-x", "-oClearAllForwardings=yes", "-oPermitLocalCommand=no", "-oRemoteCommand=none")
"""For OpenSSH: a connection for this alone, whatever its configuration says of others to the same host."""
LEAST_PATIENCE = 5
"""Seconds of silence that the other end bears at least: a client that has nothing to send says so every 2 s."""
CACHE = "${XDG_CACHE_HOME:-$HOME/.cache}/ftransfer"
"""The cache folder there, as a shell finds it."""
# The copy first: it is there because somebody asked for it, since no other was found, or none that fits.
_FIND = (
    f'for f in "{CACHE}/{VERSION_NAME}" ftransfer "$HOME/.local/bin/ftransfer"; '
    'do command -v "$f" >/dev/null 2>&1 && exec "$f" {words}; done; exit 127'
)


class Shell(NamedTuple):
    """How ssh is called.

    Arguments: `program`, the words of another ssh; `remote_command`, what is run there instead of the `ftransfer` that
    is found, as words for the shell there; `on_message` is told each line that ssh, or the other end, says for people.
    """

    program: Sequence[str] = SSH
    remote_command: str | None = None
    on_message: Callable[[str], None] | None = None

    def argv(self, address: Address, line: str, timeout: float) -> list[str]:
        """Return the words that run a line in the shell of another machine; `timeout` in seconds to reach it."""
        words = [*self.program]
        if os.path.basename(words[0]) == "ssh":  # after the user's own words: ssh takes the first that it is given
            words += [*OPTIONS, f"-oConnectTimeout={whole_seconds(timeout)}"]
        if address.user:
            words += ["-l", address.user]
        if address.port:
            words += ["-p", str(address.port)]
        return [*words, address.host, line]

    def by_hand(self, address: Address) -> str:
        """Return what somebody types to try it without us."""
        where = f"{address.user}@{address.host}".lstrip("@")
        return shlex.join([*self.program, *(["-p", str(address.port)] if address.port else []), where])

    def command(self, timeout: float) -> str:
        """Return the line that starts the other end, which is to bear no more silence than this one, in seconds."""
        words = f"serve --stdio --timeout {max(LEAST_PATIENCE, min(60, whole_seconds(timeout)))}s"
        return f"{self.remote_command} {words}" if self.remote_command else in_sh(_FIND.replace("{words}", words))


def whole_seconds(seconds: float) -> int:
    """Return a number of seconds without a fraction, at least 1."""
    return max(1, round(min(seconds, 1e6)))


def in_sh(script: str) -> str:
    """Return the line that has a script without single quotes run by sh, whatever shell the user has."""
    return f"exec sh -c '{script}'"


def failure(status: int, address: Address, shell: Shell, said: str, lines: Sequence[str]) -> FtransferError:
    """Return the error for the exit status of ssh, which is that of the command there, or 255 for its own.

    Arguments: `said`, what came instead of an answer; `lines`, what of that ssh said.
    """
    host = address.host
    works = f"`{shell.by_hand(address)}` has to work first"
    if status == 255:
        if any("Host key verification failed" in line for line in lines):
            return IdentityUnknown(f"ssh does not trust the host key of {host}{said}", hint=works)
        if any("Permission denied" in line or "Too many authentication failures" in line for line in lines):
            return Refused(f"{host} does not let ssh in{said}", hint=works)
        # An sshd that has too many strangers drops some (MaxStartups): a moment later it may be another's turn.
        is_crowd = any(words in line for line in lines for words in _CROWDED)
        return (ConnectionLost if is_crowd else Unreachable)(f"ssh cannot reach {host}{said}", hint=works)
    if status < 0:
        return ConnectionLost(f"ssh was ended by signal {-status}{said}")
    command = shell.remote_command or "ftransfer"
    tried = f"try `{shell.by_hand(address)} '{command} --version'`"
    if status in (126, 127):  # 126: what was found there is for a Python that has gone
        if shell.remote_command is not None:
            return NotInstalled(f"{host} cannot run {command!r}{said}", hint=tried)
        line = f"ftransfer login {address.endpoint} --install"
        return NotInstalled(f"there is no ftransfer on {host}{said}", hint=f"one line puts it there: {line}")
    made = by_status(status) or ProtocolError
    return made(f"{command!r} on {host} ended with status {status} before it said anything{said}", hint=tried)


_CROWDED = ("Connection closed by", "Connection reset by", "kex_exchange_identification")


def by_status(status: int) -> type[FtransferError] | None:
    """Return the error that our own command there ended with, as it looks from here."""
    return {3: NotFound, 5: Refused, 8: RemoteDiskError, 9: RemoteDiskError}.get(status)

"""Every exception that ftransfer raises, and the only place that knows their codes, exit statuses and hints.

Raised by every other module, translated to and from the wire by `wire`, rendered by `cli`. Does no I/O.
The codes are stable: scripts read them in `--json` output, and they travel in `error` messages
(docs/protocol.md, section "Error codes").
"""

from __future__ import annotations

import errno
from typing import Any


class FtransferError(Exception):
    """Something did not work; the old files are as they were.

    Arguments: `message` in lower case without a full stop; `hint`, what the user can do next; `path`, what it is
    about; `remote`, whether the other end said so.
    """

    code = "internal"
    exit_status = 10
    retryable = False
    default_hint = ""

    def __init__(self, message: str = "", *, hint: str | None = None, path: str | None = None, remote: bool = False):
        super().__init__(message)
        self.message = message or type(self).__doc__ or self.code
        self.hint = self.default_hint if hint is None else hint
        self.path = path
        self.remote = remote
        self.results: Any = None
        """What was done before it, where that is more than nothing: a `TransferResult`."""

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__)


def _rebuild(cls: type[FtransferError], message: str, state: dict[str, Any]) -> FtransferError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class UsageError(FtransferError, ValueError):
    """The call itself makes no sense."""

    code = "usage"
    exit_status = 2


class BadPath(UsageError):
    """A name that may not be used."""

    code = "bad-path"


class NotAFile(FtransferError, OSError):
    """A folder, a symbolic link or a special file where a regular file has to be."""

    code = "not-a-file"
    exit_status = 2


class NotFound(FtransferError, FileNotFoundError):
    """There is nothing of that name."""

    code = "not-found"
    exit_status = 3


class Unreachable(FtransferError, ConnectionError):
    """Nobody answers at that address."""

    code = "unreachable"
    exit_status = 4
    retryable = True


class NotInstalled(Unreachable):
    """There is no ftransfer on the machine that ssh leads to."""

    code = "not-installed"
    retryable = False


class ConnectionLost(FtransferError, ConnectionError):
    """The connection ended in the middle."""

    code = "lost"
    exit_status = 4
    retryable = True
    default_hint = "run the same command again: it goes on where it stopped"


class TimedOut(FtransferError, TimeoutError):
    """No byte came for too long."""

    code = "timeout"
    exit_status = 4
    retryable = True
    default_hint = "run the same command again: it goes on where it stopped (--timeout changes the patience)"


class Busy(FtransferError):
    """Another connection is writing the same transfer."""

    code = "busy"
    exit_status = 4
    retryable = True
    default_hint = "wait until the other transfer of this file has ended, then run the command again"


class ServerFull(FtransferError, ConnectionError):
    """The server has as many connections as it allows."""

    code = "full"
    exit_status = 4
    retryable = True
    default_hint = "try again later"


class ServerClosing(FtransferError, ConnectionError):
    """The server is shutting down."""

    code = "closing"
    exit_status = 4
    retryable = True
    default_hint = "run the same command again when the server is back: it goes on where it stopped"


class Refused(FtransferError, PermissionError):
    """That is not allowed."""

    code = "refused"
    exit_status = 5


class LoginNeeded(Refused):
    """The server wants to know who asks, or does not know this token."""

    code = "login"
    default_hint = "log in with `ftransfer login URL`, or set FTRANSFER_TOKEN"


class IdentityUnknown(FtransferError, PermissionError):
    """Nobody has vouched for the certificate of this server."""

    code = "identity"
    exit_status = 12


class IdentityChanged(IdentityUnknown):
    """The server shows another certificate than before."""

    code = "identity-changed"


class PartialFailure(FtransferError):
    """Some files failed, others are done; `results` says which."""

    code = "partial"
    exit_status = 6

    def __init__(self, message: str = "", *, results: Any = None, **fields: Any):
        super().__init__(message, **fields)
        self.results: Any = results


class SourcesVanished(PartialFailure):
    """Some files were gone when their turn came, all others are done; `results` says which."""

    code = "vanished"
    exit_status = 24


class IntegrityError(FtransferError):
    """The bytes are not the announced ones."""

    code = "integrity"
    exit_status = 7


class SourceChanged(IntegrityError):
    """The source changed while it was read."""

    code = "changed"
    default_hint = "nothing was replaced; run the command again when nobody writes to the file"


class DiskError(FtransferError, OSError):
    """The disk on this side refuses: full, read-only, or failing."""

    code = "disk"
    exit_status = 8


class RemoteDiskError(DiskError):
    """The disk on the other side refuses: full, read-only, or failing."""

    exit_status = 9


class OverQuota(DiskError):
    """The account's share of the server's disk is used up."""

    code = "quota"
    exit_status = 9
    default_hint = "remove something, or ask who runs the server for more"


class ProtocolError(FtransferError):
    """The other side does not speak the protocol."""

    code = "protocol"
    exit_status = 10


class TlsMismatch(ProtocolError):
    """One end speaks TLS and the other does not."""

    code = "tls"


class FrameError(ProtocolError):
    """A frame that is not one: its length, its text or its fields."""

    code = "bad-frame"


class UnknownMessage(ProtocolError):
    """A message of a type that this version does not know."""

    code = "unknown-message"


class OutOfTurn(ProtocolError):
    """A message that may not come now."""

    code = "out-of-turn"


class VersionMismatch(ProtocolError):
    """The two ends share no version of the protocol."""

    code = "version"
    default_hint = "update the older end"


class AlreadyExists(FtransferError, FileExistsError):
    """The name is taken, and must not be replaced."""

    code = "exists"
    exit_status = 11


class Cancelled(FtransferError):
    """Stopped on request."""

    code = "cancelled"
    exit_status = 130
    default_hint = "run the same command again: it goes on where it stopped"


FILE_FAULTS = (NotFound, NotAFile, Refused, BadPath, IntegrityError, DiskError)
"""What can be wrong with one file of several at this end, and ends nothing more."""


def _leaves(cls: type[FtransferError]) -> dict[str, type[FtransferError]]:
    table = {cls.code: cls}
    for sub in cls.__subclasses__():
        if sub is not RemoteDiskError:
            table.update(_leaves(sub))
    return table


BY_CODE = _leaves(FtransferError)
"""Code to class, for what comes over the wire; an unknown code is a plain `FtransferError`."""


def from_code(code: str, message: str, *, hint: str | None, path: str | None = None) -> FtransferError:
    """Return the exception for an error that the other end reported."""
    cls = RemoteDiskError if code == "disk" else BY_CODE.get(code, FtransferError)
    if cls is Cancelled:
        cls = FtransferError  # nobody here has asked for it
    error = cls(message, hint=hint, path=path, remote=True)
    if cls is FtransferError:
        error.code = code
    return error


_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this file system or process may write",
}
_NOT_A_FILE_HINTS = {
    errno.ENOTDIR: "only a folder holds files, and links are not followed",
    errno.ENOTEMPTY: "rm -r removes it with all that is in it",
}
_NOT_A_FILE = {
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of the path is not a folder, or is a symbolic link",
    errno.ELOOP: "a part of the path is a symbolic link, and these are not followed",
    errno.ENXIO: "it is a special file",
    errno.ENOTEMPTY: "the folder is not empty",
}


def from_os(exc: OSError, path: str | None = None) -> FtransferError:
    """Return the exception for an `OSError` of a file operation; the one place where errno is read.

    `path` is a name that may be shown; the message never carries another one.
    """
    if isinstance(exc, FtransferError):
        return exc
    number = exc.errno or 0
    text = (exc.strerror or str(exc) or "unknown error").lower()
    if number == errno.ENOENT:
        return NotFound("no such file or folder", path=path)
    if number == errno.EEXIST:
        return AlreadyExists("it exists already", path=path)
    if number in _NOT_A_FILE:
        hint = _NOT_A_FILE_HINTS.get(number)
        return NotAFile(_NOT_A_FILE[number], path=path, hint=hint)
    if number in (errno.EACCES, errno.EPERM):
        return Refused(text, path=path, hint="check the rights of the file and of its folder")
    if number in (errno.EMFILE, errno.ENFILE):
        return ServerFull("too many files are open", path=path, hint="raise the limit (ulimit -n)")
    if number == errno.EXDEV:
        return Refused(
            "it is on another file system, and a move only renames", path=path, hint="copy it, then remove it"
        )
    if number == errno.ENAMETOOLONG:
        return BadPath("the name is too long for this file system", path=path)
    if number in _FULL:
        return DiskError(_FULL[number], path=path, hint="free some space, then run the same command again")
    if number == errno.EROFS:
        return DiskError("the file system is read-only", path=path, hint="choose another folder")
    return DiskError(f"{text} (errno {number})", path=path, hint="check the disk and the system log")

"""The tree of errors: stable codes, statuses that scripts read, built-in parents, and a way through pickle."""

import copy
import errno
import os
import pickle

import pytest

from ftransfer import digests, errors, wire
from ftransfer.errors import FtransferError

# Code, exit status, retryable, the built-in that `except` may name: a promise, to which rows are only added.
PROMISED = {
    errors.FtransferError: ("internal", 10, False, Exception),
    errors.UsageError: ("usage", 2, False, ValueError),
    errors.BadPath: ("bad-path", 2, False, ValueError),
    errors.NotAFile: ("not-a-file", 2, False, OSError),
    errors.NotFound: ("not-found", 3, False, FileNotFoundError),
    errors.Unreachable: ("unreachable", 4, True, ConnectionError),
    errors.NotInstalled: ("not-installed", 4, False, errors.Unreachable),
    errors.ConnectionLost: ("lost", 4, True, ConnectionError),
    errors.TimedOut: ("timeout", 4, True, TimeoutError),
    errors.Busy: ("busy", 4, True, Exception),
    errors.ServerFull: ("full", 4, True, ConnectionError),
    errors.ServerClosing: ("closing", 4, True, ConnectionError),
    errors.Refused: ("refused", 5, False, PermissionError),
    errors.LoginNeeded: ("login", 5, False, errors.Refused),
    errors.PartialFailure: ("partial", 6, False, Exception),
    errors.SourcesVanished: ("vanished", 24, False, errors.PartialFailure),
    errors.IntegrityError: ("integrity", 7, False, Exception),
    errors.SourceChanged: ("changed", 7, False, errors.IntegrityError),
    errors.DiskError: ("disk", 8, False, OSError),
    errors.RemoteDiskError: ("disk", 9, False, errors.DiskError),
    errors.OverQuota: ("quota", 9, False, errors.DiskError),
    errors.ProtocolError: ("protocol", 10, False, Exception),
    errors.TlsMismatch: ("tls", 10, False, errors.ProtocolError),
    errors.FrameError: ("bad-frame", 10, False, errors.ProtocolError),
    errors.UnknownMessage: ("unknown-message", 10, False, errors.ProtocolError),
    errors.OutOfTurn: ("out-of-turn", 10, False, errors.ProtocolError),
    errors.VersionMismatch: ("version", 10, False, errors.ProtocolError),
    errors.IdentityUnknown: ("identity", 12, False, PermissionError),
    errors.IdentityChanged: ("identity-changed", 12, False, errors.IdentityUnknown),
    errors.AlreadyExists: ("exists", 11, False, FileExistsError),
    errors.Cancelled: ("cancelled", 130, False, Exception),
}
CLASSES = list(PROMISED)


def every_class(cls: type[FtransferError] = FtransferError) -> set[type[FtransferError]]:
    """Return a class and all below it that the module `errors` holds."""
    below = [every_class(sub) for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return {cls}.union(*below)


def test_every_error_is_promised() -> None:
    """A new class gets a row in the table above, and with it a code and a status that stay."""
    assert every_class() == set(PROMISED)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_codes_statuses_and_parents_stay(cls: type[FtransferError]) -> None:
    """Scripts read the code and the status, programs catch the built-in."""
    code, status, retryable, parent = PROMISED[cls]
    assert (cls.code, cls.exit_status, cls.retryable) == (code, status, retryable)
    assert issubclass(cls, FtransferError)
    assert issubclass(cls, parent)


def test_codes_are_unique() -> None:
    """A code names one class; only `disk` has two, this side's and the other's."""
    codes = [row[0] for cls, row in PROMISED.items() if cls is not errors.RemoteDiskError]
    assert len(set(codes)) == len(codes)
    by_code = {cls.code: cls for cls in PROMISED if cls is not errors.RemoteDiskError}
    assert by_code == errors.BY_CODE


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_errors_survive_pickle(cls: type[FtransferError], way: str) -> None:
    """An error that crosses a process pool keeps its class, text and fields."""
    error = cls("what happened", hint="do this", path="a/b", remote=True)
    again = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert type(again) is cls
    assert (str(again), again.hint, again.path, again.remote) == ("what happened", "do this", "a/b", True)


def test_results_so_far_survive_pickle() -> None:
    """PartialFailure carries its results through pickle."""
    again = pickle.loads(pickle.dumps(errors.PartialFailure("2 of 3 files failed", results=["r"], hint="h")))
    assert (again.results, again.message, again.hint) == (["r"], "2 of 3 files failed", "h")


@pytest.mark.parametrize("error", [digests.BadLine("bad", number=7), wire.RefusedName(3, errors.BadPath("bad"))])
def test_errors_of_other_modules_survive_pickle(error: FtransferError) -> None:
    """Subclasses with fields of their own keep them."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__


def test_an_error_without_text_has_one() -> None:
    """The first line of its class stands in."""
    assert str(errors.Busy()) == "Another connection is writing the same transfer."
    assert errors.ConnectionLost().hint.startswith("run the same command again")


@pytest.mark.parametrize("code", sorted(errors.BY_CODE.keys() - {"cancelled"}))
def test_a_code_from_the_wire_becomes_its_class(code: str) -> None:
    """What the other end reports is the same class here; its disk is not our disk."""
    error = errors.from_code(code, "text", hint="hint")
    assert error.code == code
    assert error.remote
    assert type(error) is (errors.RemoteDiskError if code == "disk" else errors.BY_CODE[code])


def test_a_server_cannot_say_that_the_user_cancelled() -> None:
    """Nobody here asked for it, so it is an error like any other."""
    assert type(errors.from_code("cancelled", "text", hint=None)) is FtransferError


def test_an_unknown_code_from_the_wire_is_kept() -> None:
    """A newer end's code is shown, as a plain error of the protocol's status."""
    error = errors.from_code("quota-of-moons", "text", hint=None)
    assert (type(error), error.code, error.exit_status, error.retryable) == (
        FtransferError,
        "quota-of-moons",
        10,
        False,
    )
    assert FtransferError.code == "internal"


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.ENOENT, errors.NotFound),
        (errno.EEXIST, errors.AlreadyExists),
        (errno.EISDIR, errors.NotAFile),
        (errno.ENOTDIR, errors.NotAFile),
        (errno.ELOOP, errors.NotAFile),
        (errno.ENXIO, errors.NotAFile),
        (errno.ENOTEMPTY, errors.NotAFile),
        (errno.EACCES, errors.Refused),
        (errno.EPERM, errors.Refused),
        (errno.ENAMETOOLONG, errors.BadPath),
        (errno.ENOSPC, errors.DiskError),
        (errno.EDQUOT, errors.DiskError),
        (errno.EFBIG, errors.DiskError),
        (errno.EROFS, errors.DiskError),
        (errno.EIO, errors.DiskError),
    ],
)
def test_errno_becomes_an_error_of_ours(number: int, cls: type[FtransferError]) -> None:
    """Each errno that a file operation may set has its class, and the message holds no path of this machine."""
    error = errors.from_os(OSError(number, os.strerror(number), "/secret/place"), "shown/name")
    assert type(error) is cls
    assert error.path == "shown/name"
    assert "secret" not in str(error)
    assert "secret" not in error.hint


def test_our_own_errors_pass_unchanged() -> None:
    """Translating twice changes nothing."""
    error = errors.NotFound("no such file")
    assert errors.from_os(error) is error


def test_the_message_on_the_wire_is_bounded_and_escaped() -> None:
    """Whatever an error holds, its message fits a frame and holds no control character of a name."""
    error = errors.NotFound("x" * 5000, path="evil\x1b[2J\udcff\n", hint="h" * 5000)
    message = wire.error_message(error, 3)
    assert len(message.message) == len(message.hint) == wire.MAX_TEXT
    assert message.message.isprintable()
    assert wire.parse(wire.encode(message)[4:]) == message

"""Several files in one call: where each goes, what became of each, and what that means for all. Used by `client`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from ftransfer import paths
from ftransfer.errors import BadPath, FtransferError, PartialFailure, SourcesVanished, UsageError, from_os
from ftransfer.results import FileResult, TransferResult

N = TypeVar("N", str, "str | None")


def is_contents(source: str) -> bool:
    """Tell whether a folder as source stands for what is in it: `photos/`, `.`; as for rsync."""
    return source.rpartition("/")[2] in ("", ".", "..")


def resolve(names: Sequence[N], place: Callable[[N], str]) -> list[str]:
    """Return where each of several goes; refuses, before the first byte, names that cannot be used or would collide."""
    places: list[str] = []
    bad: list[BadPath] = []
    for name in names:
        try:
            places.append(place(name))
        except BadPath as exc:
            bad.append(exc)
    if len(bad) == 1:
        raise bad[0]
    if bad:
        listed = ", ".join(paths.printable(exc.path or "") for exc in bad)
        raise BadPath(
            f"{len(bad)} names cannot be used: {listed}", hint="nothing was sent; rename them or leave them out"
        )
    twice = sorted(place for place, count in Counter(places).items() if count > 1)
    if twice:
        listed = ", ".join(map(paths.printable, twice))
        raise UsageError(f"several sources would end up as {listed}", hint="nothing was sent; use a command for each")
    return places


def outcome(run: Callable[[], FileResult], source: str, path: str, several: bool) -> FileResult:
    """Return the outcome of one file; among several a failure is an outcome, alone it is raised."""
    try:
        return run()
    except BrokenPipeError:
        raise  # whoever read our output has left, and the command ends as filters do
    except (FtransferError, OSError) as raised:
        exc = raised if isinstance(raised, FtransferError) else from_os(raised, source)
        if exc.path is None and not (exc.remote or exc.retryable or isinstance(exc, UsageError)):
            exc.path = source
        if not several or exc.code == "cancelled":
            raise exc from raised.__cause__
        return FileResult(source, path, "failed", error=exc)


def finish(result: TransferResult, *, is_single: bool = False) -> TransferResult:
    """Return the result if all went well. Raises the error of a single file, PartialFailure for several or folders."""
    if not result.failed:
        return result
    if is_single:
        assert result.files[0].error is not None
        raise result.files[0].error
    count = len(result.files) + result.totals.files
    if all(file.result == "vanished" for file in result.failed):
        raise SourcesVanished(f"{len(result.failed)} of {count} files vanished meanwhile", results=result)
    raise PartialFailure(f"{len(result.failed)} of {count} files failed", results=result)

"""The client: what a program calls to upload, download, verify and look around. The command uses nothing else."""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Self

from ftransfer import net, paths, wire
from ftransfer.asking import answers, stream_rows
from ftransfer.channel import Channel
from ftransfer.comparing import compare
from ftransfer.digests import DEFAULT, HEX_LENGTH, Digest
from ftransfer.errors import (
    AlreadyExists,
    FtransferError,
    NotFound,
    OutOfTurn,
    ProtocolError,
    UsageError,
)
from ftransfer.link import Link, Patience
from ftransfer.progress import Observer, ignore
from ftransfer.results import FileResult, Pong, TransferResult, VerifyResult
from ftransfer.several import finish, outcome, resolve
from ftransfer.sources import Uploadable
from ftransfer.store.base import FOLDER, Entry, Partial
from ftransfer.uploading import Upload

if TYPE_CHECKING:
    from ftransfer.downloading import Download

Local = str | os.PathLike[str]


def connect(
    url: str,
    *,
    timeout: float = 60.0,
    retry_for: float | None = None,
    max_time: float | None = None,
    limit_rate: float | None = None,
    cancel: threading.Event | None = None,
) -> Remote:
    """Return a `Remote` for the folder at `url`; the connection is made when it is first needed.

    Arguments: `timeout`, seconds without a byte after which the server counts as dead; `retry_for`, seconds without
    progress after which retries end (None: 600 once a connection stood, no retry before that); `max_time`, seconds
    for everything;
    `limit_rate` in bytes a second; `cancel`, an event that stops everything with Cancelled. Raises UsageError.
    """
    return Remote(net.parse_url(url), Patience(timeout, retry_for, max_time), limit_rate=limit_rate, cancel=cancel)


class Remote:
    """A folder on a server.

    Not thread-safe: one thread uses one Remote at a time, several threads take one each. Paths are relative to the
    folder of the address and use `/`. Every method raises a subclass of `FtransferError`; lost connections are made
    again. Observers are called in the calling thread.
    """

    def __init__(
        self,
        address: net.Address,
        patience: Patience | None = None,
        *,
        limit_rate: float | None = None,
        cancel: threading.Event | None = None,
    ):
        self.address = address
        self._link = Link(address, patience or Patience(), limit_rate=limit_rate, cancel=cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        self._link.drop()

    # Transfers.

    def upload(
        self,
        source: Uploadable | Sequence[Local],
        dest: str = "",
        *,
        compare: str = "quick",
        if_exists: str = "replace",
        resume: bool = True,
        algorithm: str = DEFAULT,
        on_progress: Observer | None = None,
    ) -> TransferResult:
        """Upload a file or several, bytes, a file object or an iterator of bytes.

        Arguments: `source`; a list or tuple holds several paths. `dest`, the new name, or a folder if it ends in `/`
        or is one. `compare` (quick, hash, none), what counts as equal and is not sent; `if_exists` (replace, newer,
        skip, rename, fail), what happens if the name is taken. Returns what became of each file. Raises the error of
        a single file; for several, PartialFailure with the results if any failed.
        """
        observer = on_progress or ignore
        several = isinstance(source, (list, tuple))
        sources: list[Any] = list(source) if isinstance(source, (list, tuple)) else [source]
        started = time.monotonic()
        names = [os.path.abspath(os.fspath(s)) if isinstance(s, (str, os.PathLike)) else None for s in sources]
        places = resolve(names, lambda name: paths.check(self._path(self.target(dest + "/" * several, name))))
        files = []
        for one, where in zip(sources, places, strict=True):
            upload = Upload(self._link, one, where, algorithm=algorithm, observer=observer)
            run = lambda u=upload: self._upload_one(u, compare, if_exists, resume)  # noqa: E731
            files.append(outcome(run, upload.name, where, several))
        shown = self._path(dest) if several else files[0].path
        return finish(TransferResult(str(self.address.at(shown)), files, time.monotonic() - started))

    def _upload_one(self, upload: Upload, compare: str, if_exists: str, resume: bool) -> FileResult:
        if (compare == "hash" and upload.is_file) and (
            same := self._same_by_hash(upload.name, upload.path, upload.algorithm, upload.observer)
        ):
            return same
        return upload.run(compare="quick" if compare == "quick" else "none", if_exists=if_exists, resume=resume)

    def _same_by_hash(self, local: str, path: str, algorithm: str, observer: Observer) -> FileResult | None:
        """Return a result if both ends hold the same bytes already."""
        try:
            if not os.path.isfile(local) or self._stat(path).size != os.path.getsize(local):
                return None
        except NotFound:
            return None
        started = time.monotonic()
        both = self._verify(local, path, algorithm, observer)
        if not both.same:
            return None
        size = os.path.getsize(local)
        return FileResult(local, path, "same", size, seconds=time.monotonic() - started, digest=both.local_digest)

    def download(
        self,
        source: str | Sequence[str],
        dest: Local | IO[bytes] = ".",
        *,
        compare: str = "quick",
        if_exists: str = "replace",
        resume: bool = True,
        algorithm: str = DEFAULT,
        durable: bool = True,
        on_progress: Observer | None = None,
    ) -> TransferResult:
        """Download a file or several, to a path or into a binary file object.

        Arguments: as for `upload`; `dest` is a new name, or a folder if it ends in `/` or is one; a file object gets
        verified bytes in order, and only success tells that they were all. `durable` syncs the file before it counts.
        """
        observer = on_progress or ignore
        several = isinstance(source, (list, tuple))
        from ftransfer.downloading import Download, local_target  # here, because an upload starts quicker without

        sources: list[str] = [source] if isinstance(source, str) else list(source)
        started = time.monotonic()
        remote = resolve(sources, lambda name: paths.check(self._path(name)))
        places: list[str | IO[bytes]] = [dest] * len(remote) if not isinstance(dest, (str, os.PathLike)) else []
        if isinstance(dest, (str, os.PathLike)):
            places += resolve(remote, lambda path: local_target(dest, path, several))
        files = []
        for path, where in zip(remote, places, strict=True):
            job = Download(self._link, path, where, algorithm=algorithm, durable=durable, observer=observer)
            run = lambda d=job: self._download_one(d, compare, if_exists, resume)  # noqa: E731
            files.append(outcome(run, path, job.name, several))
        shown = os.fspath(dest) if several and isinstance(dest, (str, os.PathLike)) else files[0].path
        return finish(TransferResult(shown, files, time.monotonic() - started))

    def _download_one(self, job: Download, compare: str, if_exists: str, resume: bool) -> FileResult:
        if job.exists:
            if compare == "hash" and (same := self._same_by_hash(job.name, job.path, job.algorithm, job.observer)):
                job.drop_parts()
                return same._replace(source=job.path, path=job.name)
            decided = job.decide(self._stat(job.path), compare, if_exists)
            if decided is not None:
                job.drop_parts()
                return decided
        return job.run(if_exists=if_exists, resume=resume)

    def verify(
        self, local: Local, path: str, *, algorithm: str = DEFAULT, on_progress: Observer | None = None
    ) -> VerifyResult:
        """Hash a local file and a remote one, both at the same time, and return both digests.

        Arguments: `path`, the remote file, or the folder that holds it under the local name. A file that is missing
        at one end has no digest. Raises NotFound if it is missing at both.
        """
        remote = self._path(self.target(path, os.path.abspath(os.fspath(local))))
        return self._verify(os.fspath(local), paths.check(remote), algorithm, on_progress or ignore)

    def target(self, path: str, source: str | None) -> str:
        """Return where `source` ends up if it is put at `path`: inside, if that is a folder or ends in a slash.

        Raises UsageError for a folder if the source is a stream, which has no name (None).
        """
        is_folder = not path.strip("/") or path.endswith("/")
        if not is_folder:
            try:
                is_folder = self.stat(path).kind == FOLDER
            except NotFound:
                pass
        if not is_folder:
            return path
        if source is None:
            raise UsageError("a stream has no name of its own", hint="add the name of a file to the address")
        return paths.join(path.strip("/"), source.rpartition("/")[2])

    def _verify(self, local: str, path: str, algorithm: str, observer: Observer) -> VerifyResult:
        return compare(
            local,
            path,
            lambda: self._checksum(path, algorithm, observer),
            algorithm=algorithm,
            observer=observer,
            check=self._link.check,
        )

    # Looking around and changing.

    def checksum(self, path: str, *, algorithm: str = DEFAULT, on_progress: Observer | None = None) -> Digest:
        """Return the digest of a remote file, which the server reads and hashes now."""
        return self._checksum(paths.check(self._path(path)), algorithm, on_progress or ignore)

    def _checksum(self, path: str, algorithm: str, observer: Observer) -> Digest:
        def ask(channel: Channel) -> Digest:
            t = self._link.next_t()
            channel.send(wire.Checksum(t=t, path=path, algorithm=algorithm))
            for answer in answers(channel, t, path, observer):
                if isinstance(answer, wire.Digest) and len(answer.hash) == HEX_LENGTH[algorithm]:
                    return Digest(algorithm, answer.hash)
            raise OutOfTurn("the server sent no digest")

        return self._link.run(ask, path=path, observer=observer)

    def stat(self, path: str = "") -> Entry:
        """Return what is at a path. Raises NotFound."""
        return self._stat(self._path(path))

    def _stat(self, path: str) -> Entry:
        rows = self._link.run(lambda c: [*stream_rows(c, wire.Stat(t=self._link.next_t(), path=path))], path=path)
        if len(rows) != 1:
            raise ProtocolError("the server described not one file")
        return rows[0]

    def list(self, path: str = "", *, recursive: bool = False) -> Iterator[Entry]:
        """Yield what a folder holds, sorted by name in each folder, with paths relative to it.

        Read it to its end before the next call; leaving it early closes the connection.
        """
        where = self._path(path)

        def ask(channel: Channel) -> tuple[Channel, Iterator[Entry], Entry | None]:
            rows = stream_rows(channel, wire.List(t=self._link.next_t(), path=where, recursive=recursive))
            return channel, rows, next(rows, None)

        channel, rows, first = self._link.run(ask, path=where)  # a lost connection shows at the first row
        try:
            if first is not None:
                yield first
                yield from rows
        finally:
            if not channel.session.idle:
                self._link.drop()

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a folder; with `parents` also those above it, and it may exist. Raises AlreadyExists, NotFound."""
        where = self._path(path)
        self._change(lambda t: wire.Mkdir(t=t, path=where, parents=parents), done_if=AlreadyExists)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty folder; with `recursive` a folder and all below it. Raises NotFound, NotAFile."""
        where = self._path(path)
        self._change(lambda t: wire.Remove(t=t, path=where, recursive=recursive), done_if=NotFound)

    def move(self, path: str, target: str) -> None:
        """Give a file or folder another name. Raises AlreadyExists if that is taken."""
        where, to = self._path(path), self._path(target)
        if self._change(lambda t: wire.Move(t=t, path=where, target=to), done_if=NotFound):
            self._stat(to)  # it is gone from its old name: moved, unless it was never there

    def _change(self, make: Callable[[int], wire.Message], *, done_if: type[FtransferError]) -> bool:
        """Ask for a change; where the answer was lost, `done_if` on the next try means that it had been made.

        Returns whether that was so.
        """
        tries = 0

        def ask(channel: Channel) -> bool:
            nonlocal tries
            tries += 1
            t = self._link.next_t()
            channel.send(make(t))
            try:
                for _ in answers(channel, t, ""):
                    pass
            except FtransferError as exc:
                if tries == 1 or not isinstance(exc, done_if):
                    raise
                return True
            return False

        return self._link.run(ask)

    def partials(self, path: str = "", *, clear: bool = False) -> builtins.list[Partial]:
        """Return what is staged and unfinished below a path; with `clear` what was dropped."""

        def ask(channel: Channel) -> list[Partial]:
            t = self._link.next_t()
            channel.send(wire.Partials(t=t, path=self._path(path), clear=clear))
            found: list[Partial] = []
            for answer in answers(channel, t, path):
                if isinstance(answer, wire.Staged):
                    found += [Partial(*row, None) for row in answer.rows]
            return found

        return self._link.run(ask)

    def ping(self) -> Pong:
        """Ask the server for a sign of life; return times, versions, limits and the facts of the connection."""

        def ask(channel: Channel) -> Pong:
            started = time.monotonic()
            t = self._link.next_t()
            channel.send(wire.Ping(t=t))
            facts = [line for a in answers(channel, t, "") if isinstance(a, wire.Pong) for line in a.facts]
            seconds = time.monotonic() - started
            welcome = self._link.limits
            return Pong(
                self._link.connect_seconds,
                seconds,
                welcome.software,
                welcome.version,
                welcome.read_only,
                welcome.durable,
                welcome.max_block,
                welcome.window,
                net.facts(channel.socket),
                facts,
            )

        return self._link.run(ask)

    def _path(self, path: str) -> str:
        """Return a path below the folder of the address."""
        inner = path.strip("/")
        return paths.check(paths.join(self.address.path, inner) if inner else self.address.path, root=True)

"""The client: what a program calls to upload, download, verify and look around. The command uses nothing else."""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Self, Unpack

from ftransfer import net, paths, singly, wire
from ftransfer.asking import answers, stream_rows
from ftransfer.channel import Channel
from ftransfer.digests import DEFAULT, Digest
from ftransfer.errors import (
    AlreadyExists,
    FtransferError,
    LoginNeeded,
    NotAFile,
    NotFound,
    Refused,
    UsageError,
)
from ftransfer.identity import Identity
from ftransfer.link import Link, Patience
from ftransfer.progress import Observer, ignore
from ftransfer.results import EntryVerdict, Pong, TransferResult, TreeVerifyResult, VerifyResult
from ftransfer.several import finish, outcome, resolve
from ftransfer.sources import Uploadable
from ftransfer.store.base import FOLDER, Entry, OnError, Partial, pass_over
from ftransfer.uploading import Upload

if TYPE_CHECKING:
    from ftransfer.filters import Filter
    from ftransfer.shells import Shell
    from ftransfer.tally import OnFile
    from ftransfer.treejobs import Job
    from ftransfer.weighing import TreeOptions

Local = str | os.PathLike[str]


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
        identity: Identity | None = None,
        shell: Shell | None = None,
    ):
        self.address = address
        self._link = Link(
            address, patience or Patience(), identity=identity, shell=shell, limit_rate=limit_rate, cancel=cancel
        )

    @property
    def is_single(self) -> bool:
        """Whether all goes over one connection, as over ssh: a list is read to its end before the next request."""
        return self._link.is_single

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
        algorithm: str | None = None,
        on_progress: Observer | None = None,
        on_file: OnFile | None = None,
        **trees: Unpack[TreeOptions],
    ) -> TransferResult:
        """Upload files and folders, bytes, a file object or an iterator of bytes.

        Arguments: `source`; a list or tuple holds several paths. A folder arrives in `dest` under its name, or, if it
        ends in `/`, what is in it arrives there. `dest`, for a file the new name, or a folder if it ends in `/` or is
        one. `compare` (quick, hash, none), what counts as equal and is not sent; `if_exists` (replace, newer, skip,
        rename, fail), what happens if the name is taken. `on_file` is told of each file. For folders: `links` (copy,
        follow, skip), what becomes of symbolic links; `filter`, what is taken; `modes`, other permission bits; `delete`
        removes, after all else went well, what the source lacks; `dry_run` only says what would be done.
        Returns what became of each file. Raises the error of a single file; for several, PartialFailure with the
        results if any failed.
        """
        several = isinstance(source, (list, tuple))
        hashed_by = self._link.algorithm(algorithm)
        sources: list[Any] = list(source) if isinstance(source, (list, tuple)) else [source]
        if (
            trees.get("dry_run")
            or trees.get("modes")
            or trees.get("delete")
            or any(isinstance(s, (str, os.PathLike)) and os.path.isdir(s) for s in sources)
        ):
            return self._job(compare, if_exists, resume, hashed_by, on_progress, on_file, trees).upload(sources, dest)
        observer = on_progress or ignore
        started = time.monotonic()
        names = [os.path.abspath(os.fspath(s)) if isinstance(s, (str, os.PathLike)) else None for s in sources]
        places = resolve(names, lambda name: paths.check(self._path(self.target(dest + "/" * several, name))))
        files = []
        for one, where in zip(sources, places, strict=True):
            upload = Upload(self._link, one, where, algorithm=hashed_by, observer=observer)
            run = lambda u=upload: singly.upload_one(  # noqa: E731
                self._link, u, compare=compare, if_exists=if_exists, resume=resume
            )
            files.append(outcome(run, upload.name, where, several))
            if on_file is not None:
                on_file(files[-1])
        shown = self._path(dest) if several else files[0].path
        result = TransferResult(str(self.address.at(shown)), files, time.monotonic() - started)
        return finish(result, is_single=len(files) == 1)

    def _job(  # noqa: PLR0917 - in the order in which they stand
        self,
        compare: str,
        if_exists: str,
        resume: bool,
        algorithm: str,
        on_progress: Observer | None,
        on_file: OnFile | None,
        trees: TreeOptions,
        *,
        durable: bool = True,
    ) -> Job:
        from ftransfer.treejobs import Job  # here, because a single file starts quicker without
        from ftransfer.weighing import Choices

        return Job(
            self._link,
            self.address,
            path_of=self._path,
            target=self.target,
            choices=Choices(compare, if_exists, resume, algorithm),
            options=trees,
            on_file=on_file,
            observer=on_progress or ignore,
            durable=durable,
        )

    def download(
        self,
        source: str | Sequence[str],
        dest: Local | IO[bytes] = ".",
        *,
        compare: str = "quick",
        if_exists: str = "replace",
        resume: bool = True,
        algorithm: str | None = None,
        durable: bool = True,
        on_progress: Observer | None = None,
        on_file: OnFile | None = None,
        **trees: Unpack[TreeOptions],
    ) -> TransferResult:
        """Download files and folders to a path, or a file into a binary file object.

        Arguments: as for `upload`; `dest` is a new name for a file, or a folder if it ends in `/` or is one; a file
        object gets verified bytes in order, and only success tells that they were all. `durable` syncs what came
        before it counts.
        """
        from ftransfer.downloading import Download, local_target  # here, because an upload starts quicker without

        several = isinstance(source, (list, tuple))
        hashed_by = self._link.algorithm(algorithm)
        sources: list[str] = [source] if isinstance(source, str) else list(source)

        folder = os.fspath(dest) if isinstance(dest, (str, os.PathLike)) else None

        def folders(into: str) -> TransferResult:
            job = self._job(compare, if_exists, resume, hashed_by, on_progress, on_file, trees, durable=durable)
            return job.download(sources, into)

        for_job = trees.get("dry_run") or trees.get("modes") or trees.get("delete")
        if folder is not None and (for_job or self._has_folder(sources)):
            return folders(folder)
        observer = on_progress or ignore
        started = time.monotonic()
        remote = resolve(sources, lambda name: paths.check(self._path(name)))
        places: list[str | IO[bytes]] = []
        if isinstance(dest, (str, os.PathLike)):
            places += resolve(remote, lambda path: local_target(dest, path, several))
        else:
            places += [dest] * len(remote)
        files = []
        for path, where in zip(remote, places, strict=True):
            download = Download(self._link, path, where, algorithm=hashed_by, durable=durable, observer=observer)
            run = lambda d=download: singly.download_one(  # noqa: E731
                self._link, d, compare=compare, if_exists=if_exists, resume=resume
            )
            try:
                files.append(outcome(run, path, download.name, several))
            except NotAFile:
                if folder is not None and singly.stat(self._link, path).kind == FOLDER:
                    return folders(folder)
                raise
            if on_file is not None:
                on_file(files[-1])
        shown = os.fspath(dest) if several and isinstance(dest, (str, os.PathLike)) else files[0].path
        return finish(TransferResult(shown, files, time.monotonic() - started), is_single=len(files) == 1)

    def _has_folder(self, sources: Sequence[str]) -> bool:
        """Tell whether a folder is among the names; one that stands alone shows itself when it is fetched."""
        for source in sources:
            if not source.strip("/") or source.endswith("/"):
                return True
            if len(sources) > 1:
                try:
                    if singly.stat(self._link, self._path(source)).kind == FOLDER:
                        return True
                except FtransferError as exc:
                    if exc.retryable:
                        raise
        return False

    def verify(
        self, local: Local, path: str, *, algorithm: str | None = None, on_progress: Observer | None = None
    ) -> VerifyResult:
        """Hash a local file and a remote one, both at the same time, and return both digests.

        Arguments: `path`, the remote file, or the folder that holds it under the local name. A file that is missing
        at one end has no digest. Raises NotFound if it is missing at both.
        """
        remote = self._path(self.target(path, os.path.abspath(os.fspath(local))))
        hashed_by = self._link.algorithm(algorithm)
        return singly.verify_one(self._link, os.fspath(local), paths.check(remote), hashed_by, on_progress or ignore)

    def verify_folder(
        self,
        local: Local,
        path: str,
        *,
        algorithm: str | None = None,
        links: str = "copy",
        filter: Filter | None = None,  # noqa: A002 - the word for it
        on_progress: Observer | None = None,
        on_entry: Callable[[EntryVerdict], None] | None = None,
    ) -> TreeVerifyResult:
        """Compare a local folder with a remote one, entry by entry, files by their hashes, both ends at the same time.

        Arguments: `path`, the remote folder; `on_entry` is told the verdict on each entry. Returns the counts.
        """
        trees: TreeOptions = {"links": links}
        if filter is not None:
            trees["filter"] = filter
        job = self._job("quick", "replace", True, self._link.algorithm(algorithm), on_progress, None, trees)
        return job.verify(os.fspath(local), self._path(path), on_entry or (lambda _: None))

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
            except Refused as exc:
                if not exc.remote or isinstance(exc, LoginNeeded):
                    raise
                # Who may not look (a drop box) gives the whole name.
        if not is_folder:
            return path
        if source is None:
            raise UsageError("a stream has no name of its own", hint="add the name of a file to the address")
        return paths.join(path.strip("/"), source.rpartition("/")[2])

    # Looking around and changing.

    def checksum(self, path: str, *, algorithm: str = DEFAULT, on_progress: Observer | None = None) -> Digest:
        """Return the digest of a remote file, which the server reads and hashes now."""
        hashed_by = self._link.algorithm(algorithm)
        return singly.checksum(self._link, paths.check(self._path(path)), hashed_by, on_progress or ignore)

    def checksums(
        self,
        names: Iterable[str],
        path: str = "",
        *,
        algorithm: str = DEFAULT,
        on_progress: Observer | None = None,
    ) -> Iterator[tuple[str, Digest | FtransferError]]:
        """Yield each name with the digest of that file below a folder, or with what was wrong with it.

        The server reads and hashes them, many for a request. Arguments: `names` below the folder `path`.
        """
        from ftransfer.bulkhashing import hash_all  # here, because an upload starts quicker without

        return hash_all(self._link, self._path(path), names, self._link.algorithm(algorithm), on_progress or ignore)

    def stat(self, path: str = "") -> Entry:
        """Return what is at a path. Raises NotFound."""
        return singly.stat(self._link, self._path(path))

    def list(self, path: str = "", *, recursive: bool = False, on_error: OnError = pass_over) -> Iterator[Entry]:
        """Yield what a folder holds, sorted by name in each folder, with paths relative to it.

        Arguments: `recursive` also what is in its folders; then `on_error` is told, by name, what cannot be listed.
        Read it to its end before the next call; leaving it early closes the connection.
        """
        where = self._path(path)

        def ask(channel: Channel) -> tuple[Channel, Iterator[Entry], Entry | None]:
            rows = stream_rows(channel, wire.List(t=self._link.next_t(), path=where, recursive=recursive), on_error)
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
            singly.stat(self._link, to)  # it is gone from its old name: moved, unless it was never there

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
        return singly.ping(self._link)

    def _path(self, path: str) -> str:
        """Return a path below the folder of the address."""
        inner = path.strip("/")
        return paths.check(paths.join(self.address.path, inner) if inner else self.address.path, root=True)

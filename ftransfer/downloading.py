"""One download, over as many connections as it takes. Used by `client`."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from typing import IO, TYPE_CHECKING

from ftransfer import paths, wire
from ftransfer.channel import Channel
from ftransfer.digests import Digest
from ftransfer.errors import (
    FtransferError,
    NotAFile,
    NotFound,
    OutOfTurn,
    SourceChanged,
    from_code,
    from_os,
)
from ftransfer.link import Link
from ftransfer.progress import Observer
from ftransfer.receiving import Incoming, decide
from ftransfer.results import FileResult
from ftransfer.store import sync
from ftransfer.store.base import Committed, Description, Entry, Partial, Staging
from ftransfer.store.local import LocalStore
from ftransfer.store.stream import StreamStaging

if TYPE_CHECKING:
    from ftransfer.modes import Modes


def local_target(dest: str | os.PathLike[str], path: str, several: bool) -> str:
    """Return the local name for a remote file: inside `dest` if that is a folder or ends in a slash, else `dest`."""
    name = os.fspath(dest)
    if several or not name or name.endswith(os.sep) or os.path.isdir(name):
        return os.path.join(name, path.rpartition("/")[2])
    return name


class Download:
    """A file on its way from the server.

    Arguments: `path` on the server; `where`, a local path or a binary file object; `durable` syncs a path.
    """

    def __init__(
        self, link: Link, path: str, where: str | IO[bytes], *, algorithm: str, durable: bool, observer: Observer
    ):
        self.path = path
        self.name = where if isinstance(where, str) else "-"
        self.algorithm = algorithm
        self._where = where
        self._link = link
        self._durable = durable
        self.observer = observer
        self._store: LocalStore | None = None
        self._incoming: Incoming | None = None
        self._fingerprint: str | None = None
        self._received_before = 0
        self._sent_end = 0.0
        self.modes: Modes | None = None
        """What changes the file's permission bits."""

    @property
    def exists(self) -> bool:
        """Whether the local name is taken."""
        return isinstance(self._where, str) and os.path.lexists(self._where)

    def decide(self, remote: Entry, compare: str, if_exists: str) -> FileResult | None:
        """Return a result if nothing has to be transferred. Raises AlreadyExists, NotAFile."""
        folder, name = os.path.split(self.name)
        wanted = Description(self.name, remote.size, mtime_ns=remote.mtime_ns, if_exists=if_exists)
        with closing(LocalStore(folder or ".")) as store:
            try:
                found = store.stat(paths.check(name))
            except NotFound:
                return None  # it has gone since
            outcome = decide(found, wanted, compare, store.clock_step)
        return None if outcome is None else FileResult(self.path, self.name, outcome, found.size)

    def drop_parts(self) -> None:
        """Drop what is staged for a file that is here: an earlier run was killed just after it had published it."""
        folder, name = os.path.split(self.name)
        with closing(LocalStore(folder or ".")) as store:
            store.partials(name, clear=True)

    def run(self, *, if_exists: str, resume: bool) -> FileResult:
        """Fetch it and return what became of it."""
        started = time.monotonic()
        with ExitStack() as stack:
            stack.callback(self._let_go)
            if isinstance(self._where, str):
                self._store = stack.enter_context(closing(self._open_store(self._where)))
            done = self._link.run(
                lambda channel: self._attempt(channel, if_exists, resume),
                path=self.path,
                progress=self._progress,
                observer=self.observer,
            )
            incoming = self._incoming
            assert incoming is not None
            name = os.path.join(os.path.dirname(self.name), done.path) if self._store else self.name
            return FileResult(
                source=self.path,
                path=name,
                result="sent",
                bytes=done.size,
                sent_bytes=self._received_before + incoming.received_bytes,
                resumed_from=incoming.inherited,
                seconds=time.monotonic() - started,
                tail_seconds=max(0.0, time.monotonic() - self._sent_end),
                digest=Digest(self.algorithm, done.hex),
                durable=done.durable,
            )

    def _open_store(self, where: str) -> LocalStore:
        folder = os.path.dirname(where) or "."
        paths.check(os.path.basename(where))
        try:
            make_folders(folder, durable=self._durable)
        except OSError as exc:
            raise from_os(exc, folder) from exc
        store = LocalStore(folder, durable=self._durable, receipts=False)
        store.sweep()
        return store

    def _progress(self) -> int:
        """Return a number that grows with every byte that came."""
        return self._received_before + (self._incoming.received_bytes if self._incoming else 0)

    def _attempt(self, channel: Channel, if_exists: str, resume: bool) -> Committed:
        t = self._link.next_t()
        wait = self._incoming is not None or (resume and self._has_partial())
        channel.send(wire.Get(t=t, path=self.path, algorithm=self.algorithm, wait=wait))
        incoming = None
        try:
            while True:
                if incoming is not None:
                    while incoming.is_behind and not channel.readable():
                        incoming.catch_up()
                message = channel.expect()
                if isinstance(message, wire.Error):
                    raise from_code(message.code, message.message, hint=message.hint)
                if isinstance(message, wire.File):
                    incoming = self._begin(message, if_exists, resume)
                    incoming.bind(channel, t, wait=wait)
                elif incoming is None:
                    raise OutOfTurn(f"{message.type} before file")
                elif (done := self._take(incoming, message)) is not None:
                    self._send_receipt(channel, incoming.receipt(done._replace(path=self.path)))
                    return done
        except FtransferError as exc:
            if not exc.remote and not exc.retryable and channel.session.is_open(t):
                channel.send(wire.error_message(exc, t))
            raise

    def _send_receipt(self, channel: Channel, receipt: wire.Receipt) -> None:
        """Tell the server that the file is here; whether that arrives changes nothing any more."""
        try:
            channel.send(receipt)
        except FtransferError:
            self._link.drop()

    def _take(self, incoming: Incoming, message: wire.Message) -> Committed | None:
        if isinstance(message, wire.Block):
            incoming.block(message)
            self._sent_end = time.monotonic()
        elif isinstance(message, wire.Hole):
            incoming.hole(message)
        elif isinstance(message, wire.End):
            return incoming.end(message)
        elif isinstance(message, wire.Working):
            incoming.tell(message.phase, message.done)
        return None

    def _begin(self, file: wire.File, if_exists: str, resume: bool) -> Incoming:
        """Go on with what this download has, or claim a staging for the file that the server announced."""
        if self._incoming is not None:
            if self._fingerprint == file.fingerprint and file.fingerprint is not None:
                return self._incoming
            if self._store is None:
                raise SourceChanged("the file on the server changed meanwhile, and what went out cannot be taken back")
            self._let_go()
        self._fingerprint = file.fingerprint
        staging: Staging
        if self._store is None:
            assert not isinstance(self._where, str)
            staging = StreamStaging(self._where, self.name)
        else:
            name = os.path.basename(self.name)
            mode = file.mode if self.modes is None or file.mode is None else self.modes.file(file.mode)
            wanted = Description(name, file.size, file.fingerprint, file.mtime_ns, mode, None, if_exists)
            staging = self._store.claim(wanted, resume=resume)
            staging.check_space()
        self._sent_end = time.monotonic()
        self._incoming = Incoming(staging, self.path, file.size, algorithm=self.algorithm, observer=self.observer)
        return self._incoming

    def _has_partial(self) -> bool:
        if self._store is None:
            return False
        try:
            return bool(self._store.partials(os.path.basename(self.name)))
        except NotFound:
            return False

    def _let_go(self) -> None:
        if self._incoming is not None:
            self._received_before += self._incoming.received_bytes
            self._incoming.staging.release()
            self._incoming = None


def make_folders(folder: str, *, durable: bool) -> None:
    """Make a local folder and those above it that are missing; what lies in them is as durable as their entries."""
    missing = []
    at = os.path.abspath(folder)
    while not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    for path in reversed(missing):
        try:
            os.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as exc:
            raise NotAFile("it is not a folder", path=path) from exc
        except OSError as exc:
            raise from_os(exc, path) from exc
        if durable:
            fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync.sync_folder(fd)
            finally:
                os.close(fd)


def local_partials(folder: str | os.PathLike[str], *, clear: bool = False) -> list[Partial]:
    """Return what downloads into a local folder have left unfinished; with `clear` what was dropped of it."""
    store = LocalStore(folder)
    try:
        return store.partials(clear=clear)
    finally:
        store.close()

"""One upload, over as many connections as it takes. Used by `client`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ftransfer import wire
from ftransfer.channel import Channel
from ftransfer.digests import Digest
from ftransfer.errors import ProtocolError
from ftransfer.link import Link
from ftransfer.progress import Observer
from ftransfer.results import FileResult
from ftransfer.sending import Outgoing, Sender
from ftransfer.sources import Uploadable, open_source

if TYPE_CHECKING:
    from ftransfer.modes import Modes


class Upload:
    """A file on its way to the server.

    Arguments: `what` to send; `path` on the server; `observer` is told where it stands.
    """

    def __init__(self, link: Link, what: Uploadable, path: str, *, algorithm: str, observer: Observer):
        self.name = os.fspath(what) if isinstance(what, (str, os.PathLike)) else "-"
        self.is_file = isinstance(what, (str, os.PathLike))
        self.path = path
        self.algorithm = algorithm
        self._link = link
        self._what = what
        self.observer = observer
        self.modes: Modes | None = None
        """What changes the file's permission bits."""

    def run(self, *, compare: str, if_exists: str, resume: bool) -> FileResult:
        """Send it and return what became of it."""
        started = time.monotonic()
        with open_source(self._what) as source:
            out = Outgoing(source, self.path, algorithm=self.algorithm, observer=self.observer)
            transfer = os.urandom(16).hex()
            tries = 0
            most = 0

            def attempt(channel: Channel) -> wire.Receipt:
                nonlocal tries
                tries += 1
                t = self._link.next_t()
                wait = tries > 1 or (source.size is not None and source.size > wire.MIN_BLOCK)
                out.bind(t, wait=wait)
                put = wire.Put(
                    t=t,
                    path=self.path,
                    size=source.size,
                    fingerprint=source.fingerprint,
                    mtime_ns=source.mtime_ns,
                    mode=source.mode if self.modes is None or source.mode is None else self.modes.file(source.mode),
                    algorithm=self.algorithm,
                    transfer=transfer,
                    compare=compare,
                    if_exists=if_exists,
                    resume=resume,
                    wait=wait,
                )
                channel.send(put)
                limits = self._link.limits
                out.window = min(wire.WINDOW, limits.window)
                return Sender(channel, largest_block=limits.max_block).run(out)

            def progress() -> int:
                nonlocal most
                most = max(most, out.confirmed + out.inherited)
                return most

            receipt = self._link.run(attempt, path=self.path, progress=progress, observer=self.observer)
            self._check(receipt, compare, if_exists)
        return self._result(out, receipt, time.monotonic() - started)

    def _check(self, receipt: wire.Receipt, compare: str, if_exists: str) -> None:
        """Raise ProtocolError for an outcome that was not asked for."""
        if receipt.result == "same" and compare != "quick":
            raise ProtocolError("the server compared, which it was not asked to do", path=self.path)
        if receipt.result == "skipped" and if_exists not in ("newer", "skip"):
            raise ProtocolError("the server skipped the file, which it was not asked to do", path=self.path)
        folder = self.path.rpartition("/")[0]
        is_copy = if_exists == "rename" and receipt.path.rpartition("/")[0] == folder
        if receipt.path != self.path and not is_copy:
            raise ProtocolError("the server stored the file under another name", path=self.path)

    def _result(self, out: Outgoing, receipt: wire.Receipt, seconds: float) -> FileResult:
        sent = receipt.result == "stored"
        return FileResult(
            source=self.name,
            path=receipt.path,
            result="sent" if sent else receipt.result,
            bytes=receipt.size or 0,
            sent_bytes=out.sent_bytes,
            resumed_from=min(receipt.inherited, out.held_before or 0),
            seconds=seconds,
            tail_seconds=max(0.0, time.monotonic() - out.last_sent) if sent else 0.0,
            digest=Digest(self.algorithm, receipt.hash) if receipt.hash else None,
            durable=receipt.durable,
        )

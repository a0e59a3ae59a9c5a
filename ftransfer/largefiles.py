"""A large file of a tree on its way to or from the server, one of several under way. Used by trees."""

from __future__ import annotations

import os

from ftransfer import wire
from ftransfer.channel import Channel
from ftransfer.digests import Digest
from ftransfer.errors import FtransferError, OutOfTurn, ProtocolError, from_code
from ftransfer.progress import Observer, Progress
from ftransfer.receiving import Incoming
from ftransfer.sending import Outgoing
from ftransfer.store.base import FILE, Committed, Description, Entry, Partial, Store
from ftransfer.store.trees import Reader
from ftransfer.tally import Tally
from ftransfer.weighing import Choices


class LargeUpload:
    """A file that goes in blocks, over as many connections as it takes.

    Arguments: `path` on the server; `told` is called with where it stands. Raises what is wrong with the file.
    """

    def __init__(self, reader: Reader, entry: Entry, path: str, choices: Choices, told: Observer):
        self.entry = entry
        self.path = path
        self._choices = choices
        self._told = told
        self._source = reader.open(entry.path)
        self._transfer = os.urandom(16).hex()
        self._tries = 0
        self.out = Outgoing(self._source, path, algorithm=choices.algorithm, observer=self._observe)

    def _observe(self, event: Progress) -> None:
        if event.phase == "sending":
            self._told(event._replace(is_part=True))

    def begin(self, channel: Channel, t: int, limits: wire.Welcome, *, wait: bool) -> None:
        """Announce it on a connection; with `wait` it does not go before the server has said what is missing."""
        self._tries += 1
        wait = wait or self._tries > 1
        self.out.bind(t, wait=wait)
        self.out.window = min(wire.WINDOW, limits.window)
        channel.send(
            wire.Put(
                t=t,
                path=self.path,
                size=self._source.size,
                fingerprint=self._source.fingerprint,
                mtime_ns=self._source.mtime_ns,
                mode=self._choices.mode(self.entry),
                algorithm=self._choices.algorithm,
                transfer=self._transfer,
                if_exists=self._choices.if_exists,
                resume=self._choices.resume,
                wait=wait,
            )
        )

    def settle(self, receipt: wire.Receipt, tally: Tally) -> None:
        """Take the receipt: count the file. Raises ProtocolError for an outcome that was not asked for."""
        folder = self.path.rpartition("/")[0]
        is_copy = self._choices.if_exists == "rename" and receipt.path.rpartition("/")[0] == folder
        if receipt.path != self.path and not is_copy:
            raise ProtocolError("the server stored the file under another name", path=self.path)
        tally.in_flight = 0
        if receipt.result != "stored":
            if receipt.result == "same" or self._choices.if_exists not in ("newer", "skip"):
                raise ProtocolError("the server passed the file over, which it was not asked to do", path=self.path)
            tally.settle(self.entry.path, "skipped", receipt.size or 0)
            return
        tally.settle(
            self.entry.path,
            "sent",
            receipt.size or 0,
            sent=self.out.sent_bytes,
            resumed=min(receipt.inherited, self.out.held_before or 0),
            digest=Digest(self._choices.algorithm, receipt.hash) if receipt.hash else None,
            durable=receipt.durable,
            name=receipt.path if receipt.path != self.path else None,
        )

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()


class LargeDownload:
    """A file of a tree that comes in blocks, over as many connections as it takes.

    Arguments: `path` on the server, `target` in the local store; `told` is called with where it stands.
    """

    def __init__(self, store: Store, entry: Entry, path: str, target: str, choices: Choices, told: Observer):
        self.entry = entry
        self.path = path
        self._store = store
        self._target = target
        self._choices = choices
        self._told = told
        self._incoming: Incoming | None = None
        self._fingerprint: str | None = None
        self._done: Committed | None = None
        self._before = 0
        self._wait = False
        self.is_announced = False
        """Whether the server has said on this connection what it is; before that nothing is said about it here."""

    def begin(self, channel: Channel, t: int) -> None:
        """Ask for it on a connection; what is here already of it is told first."""
        self._t = t
        self.is_announced = False
        self._wait = self._incoming is not None or (self._choices.resume and bool(self._partials()))
        channel.send(
            wire.Get(
                t=t,
                path=self.path,
                algorithm=self._choices.algorithm,
                wait=self._wait,
                links="follow" if self._choices.links == "follow" else "copy",
            )
        )

    def _partials(self) -> list[Partial]:
        try:
            return self._store.partials(self._target)
        except FtransferError:
            return []

    @property
    def is_behind(self) -> bool:
        """Whether there is something to read back."""
        return self._incoming is not None and self._incoming.is_behind

    def catch_up(self) -> None:
        """Read some of it back."""
        assert self._incoming is not None
        self._incoming.catch_up()

    def take(self, channel: Channel, message: wire.Message) -> bool:
        """Take a message about this file; tell whether it was the last. Raises what is wrong with it."""
        if isinstance(message, wire.Error):
            raise from_code(message.code, message.message, hint=message.hint)
        if isinstance(message, wire.File):
            self.is_announced = True
            self._incoming = self._announced(message)
            self._incoming.bind(channel, self._t, wait=self._wait)
        elif self._incoming is None:
            raise OutOfTurn(f"{message.type} before file")
        elif isinstance(message, wire.Block):
            self._incoming.block(message)
        elif isinstance(message, wire.Hole):
            self._incoming.hole(message)
        elif isinstance(message, wire.End):
            self._done = self._incoming.end(message)
            if self._done is not None:
                self._send_receipt(channel, self._incoming.receipt(self._done._replace(path=self.path)))
                return True
        return False

    @staticmethod
    def _send_receipt(channel: Channel, receipt: wire.Receipt) -> None:
        """Tell the server that the file is here; whether that arrives changes nothing any more."""
        try:
            channel.send(receipt)
        except FtransferError:
            pass  # whoever waits for the next message finds the connection gone

    def _announced(self, file: wire.File) -> Incoming:
        """Go on with what is here, or claim a staging for the file that the server announced."""
        if self._incoming is not None:
            if self._fingerprint == file.fingerprint and file.fingerprint is not None:
                return self._incoming
            self.close()
        self._fingerprint = file.fingerprint
        mode = self._choices.mode(self.entry if file.mode is None else self.entry._replace(kind=FILE, mode=file.mode))
        wanted = Description(
            self._target, file.size, file.fingerprint, file.mtime_ns, mode, None, self._choices.if_exists
        )
        staging = self._store.claim(wanted, resume=self._choices.resume)
        staging.check_space()
        return Incoming(staging, self.path, file.size, algorithm=self._choices.algorithm, observer=self._observe)

    def _observe(self, event: Progress) -> None:
        if event.phase == "receiving":
            self._told(event._replace(is_part=True))

    def settle(self, tally: Tally) -> None:
        """Count it, once it is here."""
        assert self._done is not None
        assert self._incoming is not None
        tally.in_flight = 0
        tally.settle(
            self.entry.path,
            "sent",
            self._done.size,
            sent=self._before + self._incoming.received_bytes,
            resumed=self._incoming.inherited,
            digest=Digest(self._choices.algorithm, self._done.hex),
            durable=self._done.durable,
            name=os.path.join(tally.target, os.path.dirname(self.entry.path), os.path.basename(self._done.path)),
        )

    def close(self) -> None:
        """Let go of it; what is staged is kept."""
        if self._incoming is not None:
            self._before += self._incoming.received_bytes
            self._incoming.staging.release()
            self._incoming = None

"""The server's side of packs: trees that a client uploads, and files that it fetches many at a time.

Used by `serving`, which owns the connection and gives every message to the one it is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ftransfer import paths, wire
from ftransfer.channel import Channel
from ftransfer.errors import DiskError, FtransferError, NotAFile, NotFound, OutOfTurn, Refused
from ftransfer.host import Host, Outcome
from ftransfer.packing import ALONE, Packer
from ftransfer.receiving import with_life
from ftransfer.sending import Sender
from ftransfer.store.base import Store
from ftransfer.store.trees import Reader
from ftransfer.unpacking import IDLE_SECONDS, WINDOW, Unpacker, receipts

MOST_TREES = 8
"""Trees that one connection may have open; each takes descriptors."""
Log = Callable[[Any, float, int, str], None]


class _Open:
    """A tree that is being uploaded."""

    def __init__(self, tree: wire.Tree, unpacker: Unpacker):
        self.tree = tree
        self.unpacker = unpacker
        self.started = time.monotonic()


class ServedTrees:
    """The trees of one connection.

    Arguments: `sender`, whose buffer serves for packs; `log` writes the line of a request.
    """

    def __init__(self, server: Host, channel: Channel, sender: Sender, log: Log, store: Store, user: str):
        self._server = server
        self._store = store
        self._user = user
        self._channel = channel
        self._sender = sender
        self._log = log
        self._open: dict[int, _Open] = {}
        self._buffer: memoryview | None = None
        self.handlers: dict[type[wire.Message], Callable[[Any], Outcome]] = {
            wire.Tree: self._tree,
            wire.Pack: self._pack,
            wire.Finish: self._finish,
            wire.Fetch: self._fetch,
        }

    # Uploads.

    def _tree(self, message: wire.Tree) -> Outcome:
        if len(self._open) >= MOST_TREES:
            raise Refused(f"{MOST_TREES} trees are open on this connection already")
        self._server.uploads.take(self._user)
        store = self._store
        try:
            tree = store.tree(message.path, message.if_exists)
            room = tree.room()
            clock_ns, folds = store.clock_step(), store.folds()
        except BaseException:
            self._server.uploads.give_back(self._user)
            raise
        unpacker = Unpacker(tree, algorithm=message.algorithm, durable=store.capabilities.durable)
        self._open[message.t] = _Open(message, unpacker)
        self._channel.send(
            wire.Ready(
                t=message.t,
                exists=tree.exists,
                free_bytes=room.bytes,
                free_files=room.files,
                clock_ns=clock_ns,
                folds=folds,
                window=WINDOW,
            )
        )
        return None

    def _pack(self, pack: wire.Pack) -> Outcome:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(wire.MAX_PACK))
        body = self._buffer[: pack.body]
        if pack.body:
            self._channel.read_body(body)
        unpacker = self._open[pack.t].unpacker
        unpacker.take(pack, body)
        if pack.now or unpacker.is_due:
            self._commit(pack.t)
        return None

    def _commit(self, t: int) -> None:
        """Publish a group and answer its packs."""
        unpacker = self._open[t].unpacker
        durable = self._store.capabilities.durable
        if durable:
            alive = wire.Working(t=t, phase="syncing", done=unpacker.bytes)
            outcomes = with_life(unpacker.commit, lambda: self._channel.send(alive))
        else:
            outcomes = unpacker.commit()
        for message in receipts(t, outcomes, durable=durable):
            self._channel.send(message)

    def commit_if_idle(self) -> None:
        """Publish what waits for its group to fill, if nothing more comes for a moment."""
        for t, entry in list(self._open.items()):
            if entry.unpacker.is_due or (entry.unpacker.waiting and not self._channel.readable(IDLE_SECONDS)):
                try:
                    self._commit(t)
                except DiskError as exc:
                    self.let_go(t, exc.code)
                    self._channel.send(wire.error_message(exc, t))

    def _finish(self, message: wire.Finish) -> Outcome:
        if self._open[message.t].unpacker.waiting:
            raise OutOfTurn("finish before every pack was answered")
        self.let_go(message.t, "stored")
        return None

    def let_go(self, t: int, result: str) -> bool:
        """Forget a tree, which is over, and write its line; tell whether there was one."""
        entry = self._open.pop(t, None)
        if entry is None:
            return False
        try:
            entry.unpacker.tree.close()
        finally:
            self._server.uploads.give_back(self._user)
        self._log(entry.tree, entry.started, entry.unpacker.bytes, f"{entry.unpacker.files} files {result}")
        return True

    def close(self) -> None:
        """Let go of all; what was not committed is dropped."""
        self._buffer = None
        for t in list(self._open):
            self.let_go(t, "interrupted")

    # Downloads.

    def _fetch(self, message: wire.Fetch) -> Outcome:
        count = 0
        with self._store.reader(message.path, follow=message.links == "follow") as reader:
            packer = Packer(reader, self._sender.buffer, algorithm=message.algorithm, target=message.most)
            for name in message.names:
                if not packer.has_room(name):
                    count += self._flush(message.t, packer)
                if not self._add(packer, reader, name):
                    count += self._flush(message.t, packer)
                    if not self._add(packer, reader, name):
                        packer.add_failed(name, ALONE, "ask for it with get")
            if not packer.is_empty:
                count += self._flush(message.t, packer)
        self._channel.send(wire.Done(t=message.t))
        return count, f"{len(message.names)} files sent"

    def _flush(self, t: int, packer: Packer) -> int:
        pack, body = packer.take(t)
        self._channel.send(pack, body)
        packer.clear()
        return len(body)

    @staticmethod
    def _add(packer: Packer, reader: Reader, name: str) -> bool:
        """Add a file, a link or why it cannot be sent; False if it does not fit."""
        try:
            try:
                read = packer.file(name)
            except NotAFile:
                target = reader.target(name)
                paths.check_link(name, target)
                packer.add_link(name, target, _mtime(reader, name))
                return True
            if read is None:
                return False
            packer.add_file(name, *read, packer.mode)
        except FtransferError as exc:
            packer.fail(name, exc)
        return True


def _mtime(reader: Reader, name: str) -> int:
    found = reader.stat(name)
    if found is None:
        raise NotFound("no such file or folder", path=name)
    return found.mtime_ns

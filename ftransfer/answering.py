"""The server's answers to requests about files: what is there, hashes, and changes. Used by `serving`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ftransfer import digests, net, paths, wire
from ftransfer.channel import Channel
from ftransfer.errors import FtransferError, NotAFile, NotFound
from ftransfer.host import Host, Outcome
from ftransfer.packing import row_size
from ftransfer.receiving import SIGN_OF_LIFE, with_life
from ftransfer.store.base import Entry, Source, Store

MOST_FAILED = 32
"""Failures in a page of entries."""
MOST_SHOWN = 400
"""Bytes of a name that cannot be used."""
ROWS = 128
"""Rows in a page of hashes, below the limit of a header also where each is a long message."""


class Answers:
    """Answers the requests of one connection, from the store as its client may see it."""

    def __init__(self, server: Host, channel: Channel, store: Store):
        self._server = server
        self._store = store
        self.channel = channel
        self.handlers: dict[type[wire.Message], Callable[[Any], Outcome]] = {
            wire.List: self._list,
            wire.Stat: self._stat,
            wire.Stats: self._stats,
            wire.Checksum: self._checksum,
            wire.Checksums: self._checksums,
            wire.Mkdir: lambda m: self._change(m, lambda s: s.mkdir(m.path, parents=m.parents)),
            wire.Remove: lambda m: self._change(m, lambda s: s.remove(m.path, recursive=m.recursive)),
            wire.Move: lambda m: self._change(m, lambda s: s.move(m.path, m.target)),
            wire.Partials: self._partials,
            wire.Ping: self._ping,
        }

    def _list(self, message: wire.List) -> Outcome:
        failed: list[tuple[str, str, str]] = []

        def on_error(path: str, exc: FtransferError) -> None:
            if message.recursive:
                failed.append((paths.short(paths.printable(path), MOST_SHOWN), exc.code, paths.short(exc.message, 150)))

        entries = self._store.entries(
            message.path, recursive=message.recursive, follow=message.links == "follow", on_error=on_error
        )
        for rows, more in _pages(entries):
            while len(failed) > MOST_FAILED:
                self._entries(message.t, [], failed, more=True)
            self._entries(message.t, rows, failed, more=more)
        return 0, "listed"

    def _entries(self, t: int, rows: list[Any], failed: list[tuple[str, str, str]], *, more: bool) -> None:
        self.channel.send(wire.Entries.of_ours(t=t, rows=rows, failed=failed[:MOST_FAILED] or (), more=more))
        del failed[:MOST_FAILED]

    def _stat(self, message: wire.Stat) -> Outcome:
        entry = self._store.stat(message.path)
        self.channel.send(wire.Entries(t=message.t, rows=[(*entry,)]))
        return 0, entry.kind

    def _stats(self, message: wire.Stats) -> Outcome:
        rows: list[Any] = [None] * len(message.names)
        try:
            reader = self._store.reader(message.path)
        except (NotFound, NotAFile):
            pass  # then there is nothing below it
        else:
            with reader:
                for at, name in enumerate(message.names):
                    found: Entry | None = reader.stat(name)
                    rows[at] = found and found[1:]
        self.channel.send(wire.Found.of_ours(t=message.t, rows=rows))
        return 0, f"{len(rows)} names"

    def _checksum(self, message: wire.Checksum) -> Outcome:
        with self._store.open(message.path) as source:
            done, hex_digits = self._hash(source, message.t, message.algorithm)
        self.channel.send(wire.Digest(t=message.t, size=done, hash=hex_digits))
        return done, "hashed"

    def _checksums(self, message: wire.Checksums) -> Outcome:
        total = 0
        rows: list[Any] = []
        with self._store.reader(message.path, follow=message.links == "follow") as reader:
            for name in message.names:
                try:
                    with reader.open(name) as source:
                        done, hex_digits = self._hash(source, message.t, message.algorithm)
                    rows.append((done, hex_digits))
                    total += done
                except FtransferError as exc:
                    if isinstance(exc, (ConnectionError, TimeoutError)):
                        raise
                    rows.append((exc.code, paths.short(exc.message, 150)))
                if len(rows) == ROWS:
                    self.channel.send(wire.Digests(t=message.t, rows=rows, more=True))
                    rows = []
        self.channel.send(wire.Digests(t=message.t, rows=rows))
        return total, f"{len(message.names)} files hashed"

    def _hash(self, source: Source, t: int, algorithm: str) -> tuple[int, str]:
        """Read a file to its end and return its size and hash; show every now and then that we live."""
        last = time.monotonic()
        hasher = digests.new(algorithm)
        buffer = self.channel.scratch
        done = 0
        while count := source.read_into(done, buffer):
            hasher.update(buffer[:count])
            done += count
            if time.monotonic() - last >= SIGN_OF_LIFE / 4:
                last = time.monotonic()
                beat = wire.Working(t=t, phase="hashing", done=done, total=max(done, source.size or 0))
                self.channel.send(beat)
        source.check()
        return done, hasher.hexdigest()

    def _change(self, message: Any, act: Callable[[Any], None]) -> Outcome:
        store = self._store
        alive = wire.Working(t=message.t, phase=message.type, done=0)
        with_life(lambda: act(store), lambda: self.channel.send(alive))  # a tree may take minutes to remove
        self.channel.send(wire.Done(t=message.t))
        return 0, "done"

    def _partials(self, message: wire.Partials) -> Outcome:
        found = self._store.partials(message.path, clear=message.clear)
        for rows, more in _pages((p.path, p.size, p.held, p.mtime_ns) for p in found):
            self.channel.send(wire.Staged(t=message.t, rows=rows, more=more))
        return 0, f"{len(found)} {'dropped' if message.clear else 'unfinished'}"

    def _ping(self, message: wire.Ping) -> Outcome:
        facts = net.facts(self.channel.socket)
        if count := self._server.connection_count:  # none is counted where there is but this one, over pipes
            facts.insert(0, f"connections: {count} of {self._server.limits.connections}")
        self.channel.send(wire.Pong(t=message.t, facts=facts))
        return 0, "answered"


def _pages(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[list[Any], bool]]:
    """Yield (rows, whether more follow), each page well below the limit of a header; an empty one if there is none."""
    page: list[Any] = []
    size = 0
    for row in rows:
        if size > wire.PAGE_BYTES or len(page) == wire.MAX_ROWS:
            yield page, True
            page, size = [], 0
        page.append(row)
        size += row_size(row[0])
    yield page, False

"""What a client asks about many names at a time, ahead of its work. Used by transfers of trees."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from ftransfer import digests, wire
from ftransfer.channel import Channel
from ftransfer.errors import ProtocolError
from ftransfer.packing import HEADER, row_size
from ftransfer.store.base import Entry, Source

MOST_ASKED = 2
"""Questions about pages that may be open."""
HASHES = 64
"""Files that are hashed in one go."""
HASHED_BYTES = 256 << 20
"""Bytes after which a go has enough."""


def goes(page: list[Entry]) -> Iterator[list[Entry]]:
    """Yield a page in parts whose names fit into a header."""
    part: list[Entry] = []
    header = 0
    for entry in page:
        size = row_size(entry.path)
        if part and (header + size > HEADER or len(part) == wire.MAX_ROWS):
            yield part
            part, header = [], 0
        part.append(entry)
        header += size
    if part:
        yield part


class Hashing:
    """Files that may be equal at both ends: entries here and there, and the hashes of both."""

    def __init__(self, rows: list[tuple[Entry, Entry]]):
        self.rows = rows
        self.here: list[str | None] = []
        self.there: list[tuple[int, str] | tuple[str, str]] = []


class Questions:
    """What a client asks about many names at a time, ahead of its work.

    Arguments: `where`, the folder on the server that the names are below.
    """

    def __init__(self, channel: Channel, where: str):
        self._channel = channel
        self._where = where
        self._asked: dict[int, list[Entry]] = {}
        self._backlog: deque[list[Entry]] = deque()
        self._to_hash: deque[tuple[Entry, Entry]] = deque()
        self._hashing: dict[int, Hashing] = {}

    @property
    def pages(self) -> int:
        """Pages that were asked about, or wait for that, and were not answered."""
        return len(self._asked) + len(self._backlog)

    @property
    def wants_more(self) -> bool:
        """Whether another page should be asked about, so that answers are there when they are needed."""
        return self.pages < MOST_ASKED

    @property
    def is_open(self) -> bool:
        """Whether answers are still to come, or questions to be asked."""
        return bool(self._asked or self._backlog or self._hashing or self._to_hash)

    def ask(self, page: list[Entry]) -> None:
        """Ask what the server has of these names: in one go, or in several where the names are long."""
        self._backlog.extend(goes(page))
        self.pump()

    def pump(self) -> None:
        """Send questions that waited for others to be answered."""
        while self._backlog and len(self._asked) < MOST_ASKED:
            page = self._backlog.popleft()
            t = self._channel.session.last_t + 1
            self._asked[t] = page
            self._channel.send(wire.Stats.of_ours(t=t, path=self._where, names=[entry.path for entry in page]))

    def found(self, answer: wire.Found) -> list[tuple[Entry, Entry | None]]:
        """Return each entry that was asked about, with what is there."""
        page = self._asked.pop(answer.t)
        if len(answer.rows) != len(page):
            raise ProtocolError("the server answered another number of names than it was asked about")
        return [(entry, Entry(entry.path, *row) if row else None) for entry, row in zip(page, answer.rows, strict=True)]

    def add_hash(self, here: Entry, there: Entry) -> None:
        """Take note of a file that both ends have to hash."""
        self._to_hash.append((here, there))

    def ask_hashes(self, hash_here: Callable[[Entry], str | None], algorithm: str, *, force: bool) -> bool:
        """Have some files hashed at both ends at the same time; False if there are too few, unless `force`."""
        if not self._to_hash or self._hashing:
            return False
        if not force and len(self._to_hash) < HASHES and sum(e.size for e, _ in self._to_hash) < HASHED_BYTES:
            return False
        rows: list[tuple[Entry, Entry]] = []
        total = header = 0
        while self._to_hash and len(rows) < HASHES and total < HASHED_BYTES and header < HEADER:
            rows.append(self._to_hash.popleft())
            total += rows[-1][0].size
            header += row_size(rows[-1][0].path)
        t = self._channel.session.last_t + 1
        hashing = self._hashing[t] = Hashing(rows)
        names = [entry.path for entry, _ in rows]
        self._channel.send(wire.Checksums(t=t, path=self._where, names=names, algorithm=algorithm))
        hashing.here = [hash_here(entry) for entry, _ in rows]
        return True

    def hashed(self, answer: wire.Digests) -> Hashing | None:
        """Take hashes of the server; return the files once all have come."""
        hashing = self._hashing[answer.t]
        hashing.there += answer.rows
        if len(hashing.there) > len(hashing.rows):
            raise ProtocolError("the server hashed another number of files than it was asked to")
        if answer.more:
            return None
        del self._hashing[answer.t]
        if len(hashing.there) != len(hashing.rows):
            raise ProtocolError("the server hashed another number of files than it was asked to")
        return hashing

    @staticmethod
    def hash_source(source: Source, algorithm: str, buffer: memoryview, alive: Callable[[], None]) -> str:
        """Return the hash of a file at this end; `alive` is called for each piece, and may raise what stops it."""
        hasher = digests.new(algorithm)
        done = 0
        while count := source.read_into(done, buffer):
            hasher.update(buffer[:count])
            done += count
            alive()
        source.check()
        return hasher.hexdigest()

    def take_back(self) -> list[list[Entry]]:
        """Forget all; return what was not answered."""
        left = [*self._asked.values(), *self._backlog, *([here for here, _ in h.rows] for h in self._hashing.values())]
        left.append([here for here, _ in self._to_hash])
        self._asked.clear()
        self._backlog.clear()
        self._hashing.clear()
        self._to_hash.clear()
        return left

"""Folders hashed at both ends at the same time, walked side by side in bounded memory. Used by `treejobs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ftransfer import bulkhashing, digests, paths
from ftransfer.bulkhashing import Outcome
from ftransfer.channel import Channel
from ftransfer.digests import Digest
from ftransfer.errors import BadPath, FtransferError
from ftransfer.link import Link
from ftransfer.merging import Pair, merge
from ftransfer.packing import HEADER, row_size
from ftransfer.progress import Observer, Progress
from ftransfer.rehearsing import link_targets
from ftransfer.results import ONLY_HERE, ONLY_THERE, EntryVerdict
from ftransfer.store.base import FILE, LINK, OTHER, Entry
from ftransfer.store.trees import Reader

BATCH = 256
"""Files that are hashed in one go."""
BATCH_BYTES = 64 << 20
"""Bytes after which a go has enough."""

Tell = Callable[[EntryVerdict], None]


class TreeComparison:
    """A local folder and one on the server, compared entry by entry.

    Arguments: `reader` of the local folder, `where` on the server; `tell` is called with each verdict.
    """

    def __init__(
        self, link: Link, reader: Reader, where: str, *, algorithm: str, links: str, tell: Tell, observer: Observer
    ):
        self._link = link
        self._reader = reader
        self._where = where
        self._algorithm = algorithm
        self._links = links
        self._tell = tell
        self._observer = observer
        self._buffer = memoryview(bytearray(512 << 10))
        self._files = self._bytes = 0

    def run(self, here: Iterator[Entry], there: Iterator[Entry]) -> None:
        """Compare two walks."""
        batch: list[tuple[Entry, Entry]] = []
        size = header = 0
        for pair in merge(here, there):
            if (both := self._at_once(pair)) is None:
                continue
            batch.append(both)
            size += both[0].size
            header += row_size(both[0].path)
            if len(batch) == BATCH or size >= BATCH_BYTES or header >= HEADER:
                self._compare(batch)
                batch, size, header = [], 0, 0
        if batch:
            self._compare(batch)

    def _at_once(self, pair: Pair) -> tuple[Entry, Entry] | None:
        """Tell the verdict on what need not be read; return what has to be."""
        here, there = pair
        one = here or there
        assert one is not None
        if one.kind == OTHER or (one.kind == LINK and self._links == "skip") or self._leads_out(pair):
            return None  # a transfer leaves it out, too
        if there is None:
            self._tell(EntryVerdict(one.path, one.kind, ONLY_HERE))
        elif here is None:
            self._tell(EntryVerdict(one.path, one.kind, ONLY_THERE))
        elif here.kind != there.kind:
            self._tell(EntryVerdict(one.path, one.kind, "different", note=f"{here.kind} here, {there.kind} there"))
        elif here.kind == FILE and here.size != there.size:
            note = f"{here.size} bytes here, {there.size} there"
            self._tell(EntryVerdict(one.path, one.kind, "different", note=note))
        elif here.kind in (FILE, LINK):
            return here, there
        return None

    def _leads_out(self, pair: Pair) -> bool:
        """Tell whether an entry that is at one end only is a link that leads out of the folder."""
        here, there = pair
        if here is not None and there is None and here.kind == LINK:
            path, target = here.path, self._reader.target(here.path)
        elif there is not None and here is None and there.kind == LINK:
            path = there.path
            target = link_targets(self._link, self._where, [there]).get(path, "")
        else:
            return False
        return _leads_out(path, target)

    def _compare(self, batch: list[tuple[Entry, Entry]]) -> None:
        files = [here for here, _ in batch if here.kind == FILE]
        links = [here for here, _ in batch if here.kind == LINK]
        if files:
            for entry, one, other in zip(files, *self._link.run(lambda c: self._hash(c, files)), strict=True):
                self._judge(entry, one, other)
        if links:
            targets = link_targets(self._link, self._where, links)
            for entry in links:
                here, there = self._reader.target(entry.path), targets.get(entry.path)
                if there is not None or not _leads_out(entry.path, here):
                    self._tell(EntryVerdict(entry.path, LINK, "same" if here == there else "different"))

    def _judge(self, entry: Entry, here: Outcome, there: Outcome) -> None:
        error = next((one for one in (here, there) if isinstance(one, FtransferError)), None)
        if error is not None:
            self._tell(EntryVerdict(entry.path, FILE, "failed", error=error))
            return
        assert isinstance(here, Digest)
        assert isinstance(there, Digest)
        self._tell(EntryVerdict(entry.path, FILE, "same" if here == there else "different", here, there))

    def _hash(self, channel: Channel, files: list[Entry]) -> tuple[list[Outcome], list[Outcome]]:
        """Hash files at both ends: the server does it while this end does."""
        names = [entry.path for entry in files]
        t = bulkhashing.ask(self._link, channel, self._where, names, self._algorithm, self._links)
        here = [self._hash_here(entry) for entry in files]
        return here, bulkhashing.collect(channel, t, self._where, len(files), self._algorithm)

    def _hash_here(self, entry: Entry) -> Outcome:
        hasher = digests.new(self._algorithm)
        done = 0
        try:
            with self._reader.open(entry.path) as source:
                while count := source.read_into(done, self._buffer):
                    hasher.update(self._buffer[:count])
                    done += count
                    self._observer(Progress("hashing", entry.path, done, source.size))
                    self._link.check()
                source.check()
        except FtransferError as exc:
            if exc.retryable or exc.code == "cancelled":
                raise
            exc.path = exc.path or entry.path
            return exc
        return Digest(self._algorithm, hasher.hexdigest())


def _leads_out(path: str, target: str) -> bool:
    try:
        paths.check_link(path, target)
    except BadPath:
        return True
    return False

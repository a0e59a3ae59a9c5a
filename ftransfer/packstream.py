"""Packs on their way out, and their receipts on their way back. Used by `treeuploading`.

Rows go out in the order in which they are added, and are answered in that order; what was not answered when a
connection was lost can be taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ftransfer import wire
from ftransfer.channel import Channel
from ftransfer.errors import FtransferError, ProtocolError, from_code
from ftransfer.packing import Packer
from ftransfer.store.base import FILE, FOLDER, LINK, Entry
from ftransfer.weighing import STAMP

GONE = "gone"
"""Kind of a row that removes."""
MOST_ROWS = 32_768
"""Rows that may stand unanswered."""


class Row(NamedTuple):
    """One row of a pack: file, folder, link, stamp or gone; its entry, and size and hash of a file as it was read."""

    kind: str
    entry: Entry
    size: int = 0
    hash: str = ""


class _Rows:
    """The rows of a pack that is being filled; they are counted by kind, in whatever order they were added."""

    __slots__ = ("files", "folders", "gone", "links", "stamps")

    def __init__(self) -> None:
        self.files: list[Row] = []
        self.links: list[Row] = []
        self.folders: list[Row] = []
        self.stamps: list[Row] = []
        self.gone: list[Row] = []

    def all(self) -> list[Row]:
        """Return them as the receiver counts them."""
        return self.files + self.links + self.folders + self.stamps + self.gone


Settle = Callable[[list[Row], dict[int, FtransferError], bool], None]
"""Takes the rows of a pack, what failed of them by place, and whether the others are durable."""


class PackStream:
    """The packs of one tree on one connection.

    Arguments: `t` of the tree; `window`, packs that may stand unanswered; `wait` takes a message, whatever it is;
    `settle` takes what became of a pack.
    """

    def __init__(
        self, channel: Channel, packer: Packer, *, t: int, window: int, wait: Callable[[], None], settle: Settle
    ):
        self._channel = channel
        self._packer = packer
        self._t = t
        self._window = window
        self._wait = wait
        self._settle = settle
        self._rows = _Rows()
        self._unanswered: deque[list[Row]] = deque()
        self._rows_unanswered = 0
        self._failed: dict[int, dict[int, FtransferError]] = {}

    @property
    def is_outstanding(self) -> bool:
        """Whether packs stand unanswered."""
        return bool(self._unanswered)

    @property
    def is_full(self) -> bool:
        """Whether the window has no room for another pack."""
        return len(self._unanswered) >= self._window or self._rows_unanswered >= MOST_ROWS

    @property
    def has_rows(self) -> bool:
        """Whether there is something to flush."""
        return not self._packer.is_empty

    def has_room(self, entry: Entry) -> bool:
        """Tell whether a file fits into the pack that is being filled."""
        return self._packer.has_room(entry.path, entry.size)

    def add_file(self, entry: Entry, mode: int) -> bool:
        """Read a file into the pack; False if it does not fit. Raises what is wrong with it."""
        read = self._packer.file(entry.path, entry.size, entry.mtime_ns)
        if read is None:
            if self._packer.is_empty:
                return False
            self.flush()
            read = self._packer.file(entry.path, entry.size, entry.mtime_ns)
            if read is None:
                return False
        size, hex_digits, mtime_ns = read
        self._packer.add_file(entry.path, size, hex_digits, mtime_ns, mode)
        self._rows.files.append(Row(FILE, entry, size, hex_digits))
        return True

    def add_link(self, entry: Entry, target: str) -> None:
        """Add a symbolic link."""
        if not self._packer.has_room(entry.path + target):
            self.flush()
        self._packer.add_link(entry.path, target, entry.mtime_ns)
        self._rows.links.append(Row(LINK, entry))

    def add_facts(self, kind: str, entry: Entry, mode: int) -> None:
        """Add the time and mode of a folder, or of a file that is there (kind STAMP)."""
        if not self._packer.has_room(entry.path):
            self.flush()
        if kind == STAMP:
            self._packer.add_stamp(entry.path, entry.mtime_ns, mode)
            self._rows.stamps.append(Row(STAMP, entry))
        else:
            assert kind == FOLDER
            self._packer.add_folder(entry.path, entry.mtime_ns, mode)
            self._rows.folders.append(Row(FOLDER, entry))

    def add_gone(self, entry: Entry) -> None:
        """Add something to be removed."""
        if not self._packer.has_room(entry.path):
            self.flush()
        self._packer.add_gone(entry.path)
        self._rows.gone.append(Row(GONE, entry))

    def flush(self, *, now: bool = False) -> None:
        """Send the pack; with `now` it asks to be answered at once."""
        while self.is_full:
            self._wait()
        pack, body = self._packer.take(self._t, now=now)
        rows = self._rows.all()
        self._unanswered.append(rows)
        self._rows_unanswered += len(rows)
        self._rows = _Rows()
        self._channel.send(pack, body)
        self._packer.clear()

    def answered(self, message: wire.Receipts) -> int:
        """Take receipts; return the bytes that they confirm. Raises ProtocolError for what was not sent."""
        if message.packs > len(self._unanswered):
            raise ProtocolError("the other side answered packs that it was not sent")
        for pack, row, why in message.failed:
            if why >= len(message.why) or pack >= len(self._unanswered) or row >= len(self._unanswered[pack]):
                raise ProtocolError("the other side answered what it was not sent")
            self._failed.setdefault(pack, {})[row] = from_code(*message.why[why], hint=None)
        if message.more:
            return 0
        failed, self._failed = self._failed, {}
        if any(pack >= message.packs for pack in failed):
            raise ProtocolError("the other side answered what it was not sent")
        confirmed = 0
        for pack in range(message.packs):
            rows = self._unanswered.popleft()
            self._rows_unanswered -= len(rows)
            confirmed += sum(row.size for row in rows)
            self._settle(rows, failed.get(pack, {}), message.durable)
        return confirmed

    def take_back(self) -> list[Row]:
        """Forget all; return the rows that were not answered."""
        rows = [row for pack in (*self._unanswered, self._rows.all()) for row in pack]
        self._unanswered.clear()
        self._rows_unanswered = 0
        self._rows = _Rows()
        self._packer.clear()
        return rows

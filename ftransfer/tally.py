"""What became of the files of a tree, counted as it happens; failures one by one. Used by transfers of trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from ftransfer import paths
from ftransfer.digests import Digest
from ftransfer.errors import FtransferError, NotFound
from ftransfer.progress import Observer, Progress
from ftransfer.results import FileResult, Totals
from ftransfer.store.base import FOLDER, Entry

OnFile = Callable[[FileResult], None]


class Row(Protocol):
    """What is known of a row of a pack."""

    @property
    def kind(self) -> str: ...
    @property
    def entry(self) -> Entry: ...
    @property
    def size(self) -> int: ...


class Tally:
    """Counts outcomes, and tells an observer where the whole stands.

    Arguments: `name` of the whole, for people; `on_file` is told of each file; `source` and `target`, what stands
    before the paths at both ends.
    """

    def __init__(self, name: str, *, on_file: OnFile | None, observer: Observer, source: str, target: str):
        self.name = name
        self.source = source
        self.target = target
        self.failed: list[FileResult] = []
        self.counts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.bytes = self.sent_bytes = self.resumed = self.in_flight = 0
        self.folders = self.bytes_same = 0
        self.durable = True
        self.phase = "sending"
        self._on_file = on_file
        self.observer = observer

    def settle(
        self,
        path: str,
        result: str,
        size: int = 0,
        *,
        sent: int = 0,
        resumed: int = 0,
        digest: Digest | None = None,
        durable: bool = False,
        name: str | None = None,
    ) -> None:
        """Take note that a file is done: sent, same or skipped; `name` is another one that it got."""
        self.counts[result] += 1
        self.bytes += size if not result.startswith("would") else 0
        self.bytes_same += size if result in ("same", "skipped", "stamped") else 0
        self.sent_bytes += sent
        self.resumed += resumed
        if result == "sent" and not durable:
            self.durable = False
        if self._on_file is not None:
            target = self._join(self.target, path) if name is None else name
            self._on_file(
                FileResult(
                    self._join(self.source, path), target, result, size, sent, resumed, digest=digest, durable=durable
                )
            )

    def settle_rows(self, rows: Sequence[Row], *, durable: bool) -> bool:
        """Take note that all rows of a pack are done, where nobody wants to know which; False if somebody does."""
        if self._on_file is not None:
            return False
        for row in rows:
            if row.kind == "stamp":
                self.counts["stamped"] += 1
                self.bytes += row.entry.size
                self.bytes_same += row.entry.size
            elif row.kind == FOLDER:
                self.folders += 1
            else:
                self.counts["sent"] += 1
                self.bytes += row.size
                self.sent_bytes += row.size
        self.durable = self.durable and durable
        return True

    def fail(self, path: str, exc: FtransferError, *, at_source: bool = False) -> None:
        """Take note that a file failed, or has vanished from the source."""
        result = "vanished" if at_source and isinstance(exc, NotFound) else "failed"
        if f"{paths.printable(path)}:" not in exc.message:  # the other end may have named it
            exc.path = self._join(self.source, path)
        outcome = FileResult(self._join(self.source, path), self._join(self.target, path), result, error=exc)
        self.failed.append(outcome)
        if self._on_file is not None:
            self._on_file(outcome)

    def note(self, what: str, count: int = 1) -> None:
        """Take note of something that could not be kept; it is told once, with a count, if that is not 0."""
        self.notes[what] += count

    @staticmethod
    def _join(base: str, path: str) -> str:
        return f"{base.rstrip('/')}/{path}" if base and path else base or path

    @property
    def files(self) -> int:
        """Files that are done, well or not."""
        return sum(self.counts.values()) + len(self.failed)

    def tell(self, total_files: int, total_bytes: int, *, is_complete: bool) -> None:
        """Tell the observer where the whole stands; the totals are what was counted so far."""
        self.observer(
            Progress(
                self.phase,
                self.name,
                self.bytes + self.in_flight,
                total_bytes if is_complete else None,
                self.bytes - self.sent_bytes,
                files=self.files,
                total_files=total_files,
                is_tree=True,
            )
        )

    def totals(self) -> Totals:
        """Return the counts."""
        sent = self.counts["sent"]
        return Totals(
            sent,
            self.counts["same"],
            self.counts["skipped"],
            self.counts["stamped"],
            self.counts["deleted"],
            self.bytes,
            self.sent_bytes,
            self.resumed,
            self.counts["would send"],
            self.counts["would replace"],
            self.counts["would delete"],
            self.folders,
            self.bytes_same,
            self.durable and sent > 0,
            dict(self.notes),
        )

"""What the client's calls return: typed, immutable, without methods that do anything."""

from __future__ import annotations

from typing import NamedTuple

from ftransfer.digests import Digest
from ftransfer.errors import FtransferError


class FileResult(NamedTuple):
    """The outcome for one file.

    `result` is sent, same, skipped, failed or, gone from the source meanwhile, vanished (in folders also stamped: only
    its time or mode was set, and deleted); `path` where it is now; `bytes` its size; `sent_bytes` what went over the
    line; `resumed_from` how many bytes were there before the call; `seconds` in all; `tail_seconds` from the last
    byte sent to the receipt; `durable`, whether it would survive a power cut now; `error` what failed.
    """

    source: str
    path: str
    result: str
    bytes: int = 0
    sent_bytes: int = 0
    resumed_from: int = 0
    seconds: float = 0.0
    tail_seconds: float = 0.0
    digest: Digest | None = None
    durable: bool = False
    error: FtransferError | None = None


class Totals(NamedTuple):
    """What became of the files of folders, which are counted and not listed; those that failed are listed.

    `sent`, `same`, `skipped`, `stamped` (another time or mode was all) and `deleted` are numbers of files; `bytes`
    those that are there now, `sent_bytes` those that went over the line, `resumed` those that were there before;
    `would_send` and the like what a dry run would do; `folders` those that are there now,
    `bytes_same` the bytes of files that were there already; `notes` what could not be kept, with a count.
    """

    sent: int = 0
    same: int = 0
    skipped: int = 0
    stamped: int = 0
    deleted: int = 0
    bytes: int = 0
    sent_bytes: int = 0
    resumed: int = 0
    would_send: int = 0
    would_replace: int = 0
    would_delete: int = 0
    folders: int = 0
    bytes_same: int = 0
    durable: bool = True
    notes: dict[str, int] = {}  # noqa: RUF012 - nobody changes it

    @property
    def files(self) -> int:
        """Files that were looked at, without those that were deleted."""
        return self.sent + self.same + self.skipped + self.stamped + self.would_send + self.would_replace

    def count(self, result: str) -> int:
        """Return the number of files with this result."""
        number: int = self._asdict().get(result.replace(" ", "_"), 0)
        return number

    def plus(self, other: Totals) -> Totals:
        """Return both together."""
        notes = {what: self.notes.get(what, 0) + other.notes.get(what, 0) for what in {**self.notes, **other.notes}}
        return Totals(
            self.sent + other.sent,
            self.same + other.same,
            self.skipped + other.skipped,
            self.stamped + other.stamped,
            self.deleted + other.deleted,
            self.bytes + other.bytes,
            self.sent_bytes + other.sent_bytes,
            self.resumed + other.resumed,
            self.would_send + other.would_send,
            self.would_replace + other.would_replace,
            self.would_delete + other.would_delete,
            self.folders + other.folders,
            self.bytes_same + other.bytes_same,
            (self.durable or not self.sent) and (other.durable or not other.sent),
            notes,
        )


class TransferResult(NamedTuple):
    """The outcome of an upload or a download: `target` as it was resolved.

    `files` has each file that was named, and of folders those that failed; `totals` counts the other files of folders.
    """

    target: str
    files: list[FileResult]
    seconds: float
    totals: Totals = Totals()

    def count(self, result: str) -> int:
        """Return the number of files with this result: sent, same, skipped, stamped, deleted, failed, vanished."""
        return sum(file.result == result for file in self.files) + self.totals.count(result)

    @property
    def bytes(self) -> int:
        """Bytes of the files that are there now."""
        return sum(file.bytes for file in self.files if file.error is None) + self.totals.bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes that went over the line."""
        return sum(file.sent_bytes for file in self.files) + self.totals.sent_bytes

    @property
    def failed(self) -> list[FileResult]:
        """The files that failed."""
        return [file for file in self.files if file.error is not None]

    @property
    def durable(self) -> bool:
        """Whether something was sent and all of it would survive a power cut now."""
        sent = [file for file in self.files if file.result == "sent"]
        totals = self.totals.durable or not self.totals.sent
        return bool(sent or self.totals.sent) and all(file.durable for file in sent) and totals


class VerifyResult(NamedTuple):
    """The outcome of a comparison of one file at both ends; a digest is None where there is no such file."""

    local: str
    remote: str
    local_digest: Digest | None
    remote_digest: Digest | None

    @property
    def same(self) -> bool:
        """Whether both ends hold the same bytes."""
        return self.local_digest is not None and self.local_digest == self.remote_digest


class Pong(NamedTuple):
    """The answer to a ping: times in seconds, what each end says of itself."""

    connect_seconds: float
    round_trip_seconds: float
    server: str
    version: int
    user: str
    can: list[str]
    durable: bool
    max_block: int
    window: int
    client_facts: list[str]
    server_facts: list[str]


ONLY_HERE, ONLY_THERE = "only here", "only there"


class EntryVerdict(NamedTuple):
    """What a comparison of folders says of one entry.

    `path` below both folders; `kind` file, folder, link or other; `result` same, different, only here, only there or
    failed; the digests where both were hashed; `note` why it is different where nothing had to be hashed.
    """

    path: str
    kind: str
    result: str
    local_digest: Digest | None = None
    remote_digest: Digest | None = None
    note: str = ""
    error: FtransferError | None = None


class TreeVerifyResult(NamedTuple):
    """The outcome of a comparison of folders: how many are same, different, only here, only there, failed."""

    local: str
    remote: str
    same: int
    different: int
    only_here: int
    only_there: int
    failed: int

    @property
    def is_same(self) -> bool:
        """Whether both folders hold the same."""
        return not (self.different or self.only_here or self.only_there or self.failed)

"""What the client's calls return: typed, immutable, without methods that do anything."""

from __future__ import annotations

from typing import NamedTuple

from ftransfer.digests import Digest
from ftransfer.errors import FtransferError


class FileResult(NamedTuple):
    """The outcome for one file.

    `result` is sent, same, skipped or failed; `path` where it is now; `bytes` its size; `sent_bytes` what went over the
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


class TransferResult(NamedTuple):
    """The outcome of an upload or a download: `target` as it was resolved, and each file."""

    target: str
    files: list[FileResult]
    seconds: float

    @property
    def bytes(self) -> int:
        """Bytes of the files that are there now."""
        return sum(file.bytes for file in self.files if file.error is None)

    @property
    def sent_bytes(self) -> int:
        """Bytes that went over the line."""
        return sum(file.sent_bytes for file in self.files)

    @property
    def failed(self) -> list[FileResult]:
        """The files that failed."""
        return [file for file in self.files if file.error is not None]

    @property
    def durable(self) -> bool:
        """Whether something was sent and all of it would survive a power cut now."""
        sent = [file for file in self.files if file.result == "sent"]
        return bool(sent) and all(file.durable for file in sent)


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
    read_only: bool
    durable: bool
    max_block: int
    window: int
    client_facts: list[str]
    server_facts: list[str]

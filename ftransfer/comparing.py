"""One file hashed at both ends at the same time. Used by `client`."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ftransfer.digests import Digest
from ftransfer.errors import Cancelled, NotFound
from ftransfer.progress import Observer, Progress
from ftransfer.results import VerifyResult
from ftransfer.sources import checksum_file

STOPPING = 2.0
"""Longest wait, in seconds, for a thread that was told to stop."""
SHOWN = 0.2
"""Seconds between two looks at how far this end is, once the other is done."""


def compare(
    local: str,
    path: str,
    hash_there: Callable[[], Digest],
    *,
    algorithm: str,
    observer: Observer,
    check: Callable[[], None],
) -> VerifyResult:
    """Return the digests of a local file, hashed in a thread, and of a remote one, which `hash_there` asks for.

    Arguments: `observer` is told of the other end, then of this one; `check` raises what has to stop both. A file that
    is missing at one end has no digest. Raises NotFound if it is missing at both.
    """
    here = _HashHere(local, algorithm, check)
    there: Digest | None = None
    try:
        try:
            there = hash_there()
        except NotFound:
            pass
        while not here.is_done(SHOWN):
            check()
            observer(here.seen)
    finally:
        here.stop()
    found = here.result()
    if found is None and there is None:
        raise NotFound("there is no such file at either end", path=local)
    return VerifyResult(local, path, found, there)


class _HashHere:
    """A thread that hashes a local file, and can be stopped."""

    def __init__(self, local: str, algorithm: str, check: Callable[[], None]):
        self.seen = Progress("hashing", local, 0, None)
        self._local = local
        self._algorithm = algorithm
        self._check = check
        self._stop = threading.Event()
        self._outcome: Digest | BaseException | None = None
        self._done = threading.Event()
        # A daemon: it may wait for the writer of a FIFO, and nobody has to wait for that.
        threading.Thread(target=self._run, name="ftransfer-hash", daemon=True).start()

    def _run(self) -> None:
        try:
            self._outcome = checksum_file(self._local, self._algorithm, self._note, check=self._check_both)
        except BaseException as exc:  # noqa: BLE001 - raised again in the calling thread
            self._outcome = exc
        finally:
            self._done.set()

    def _note(self, event: Progress) -> None:
        self.seen = event

    def _check_both(self) -> None:
        if self._stop.is_set():
            raise Cancelled("stopped on request")
        self._check()

    def is_done(self, seconds: float) -> bool:
        """Wait for the end, at most that long; tell whether it has come."""
        return self._done.wait(seconds)

    def stop(self) -> None:
        """End it; what it has found so far is lost if it was not done."""
        self._stop.set()
        self._done.wait(STOPPING)

    def result(self) -> Digest | None:
        """Return the digest, None if there is no such file; raise what went wrong."""
        if isinstance(self._outcome, BaseException) and not isinstance(self._outcome, NotFound):
            raise self._outcome
        return self._outcome if isinstance(self._outcome, Digest) else None

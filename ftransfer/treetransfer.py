"""What uploads and downloads of folders have in common: decisions, outcomes, folders. Used by these two only."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator

from ftransfer import packing, wire
from ftransfer.errors import FILE_FAULTS, DiskError, FtransferError, IntegrityError, OutOfTurn, from_code
from ftransfer.pacing import Pace
from ftransfer.planning import Plan, Spool
from ftransfer.progress import Progress
from ftransfer.questions import Hashing, Questions
from ftransfer.receiving import SIGN_OF_LIFE
from ftransfer.store.base import FILE, FOLDER, LINK, Entry
from ftransfer.store.trees import Reader
from ftransfer.tally import Tally
from ftransfer.weighing import HASH, SAME, SEND, SKIPPED, STAMP, Choices, Look, is_wanted, settle, weigh

PAGE_LOW = 512
"""Entries to be sent, below which more are decided on."""
MOST_DAMAGED = 20
"""Times that a file may arrive damaged before it is not the line's fault."""


class TreeTransfer(ABC):
    """A folder on its way.

    Arguments: the `plan` of what is in it; `root`, the folder itself if it is to get its time and mode.
    """

    _questions: Questions
    _source: Reader | None = None
    _clock_ns: int

    def __init__(self, plan: Plan, choices: Choices, tally: Tally, root: Entry | None):
        self._plan = plan
        self._choices = choices
        self._tally = tally
        self._pages: Iterator[list[Entry]] | None = None
        self._folders = Spool()
        self._page_of_folders: list[Entry] = [root] if root is not None else []
        self._todo: deque[tuple[Entry, bool]] = deque()
        self._damaged: dict[str, int] = {}
        self._resent: set[str] = set()
        self._tries = 0
        self._moved = self._moved_before = 0
        self._most = wire.MAX_PACK
        self._last_sign = time.monotonic()
        plan.on_wait = self._alive
        self._is_plain = choices.compare == "quick" and choices.modes is None

    @abstractmethod
    def _show_life(self) -> None:
        """Tell the other end that this one is busy, not dead."""

    def _alive(self) -> None:
        """Show life, if it is time to."""
        if time.monotonic() - self._last_sign >= SIGN_OF_LIFE:
            self._last_sign = time.monotonic()
            self._show_life()

    @abstractmethod
    def _stamp(self, entry: Entry) -> None:
        """Give a file at the destination its time and mode."""

    def _count_wanted(self, look: Look | None) -> tuple[int, int]:
        """Return how many bytes and files the destination does not have yet, judging by size and time alone.

        Arguments: `look` returns what the destination has of a page, None if it has nothing.
        """
        if look is None:
            return self._plan.bytes, self._plan.files
        size = files = 0
        for page in self._plan.pages():
            wanted = [entry for entry in page if entry.kind == FILE]
            for entry, found in zip(wanted, look(wanted), strict=True):
                if found is None or found.size != entry.size:
                    size += entry.size
                    files += found is None
        return size, files

    def _try_again(self) -> None:
        """Take note of another connection: after one that carried nothing whole, packs are made smaller."""
        self._tries += 1
        if self._tries > 1 and self._moved == self._moved_before:
            self._most = max(wire.MIN_BLOCK, min(self._most, packing.TARGET) // 2)
        self._moved_before = self._moved

    def _largest(self, pace: Pace) -> int:
        """Largest file that goes in a pack: on a line that is slow, or broke before, what it carries in a moment."""
        return min(self._most, pace.block) if pace.is_known or self._tries > 1 else self._most

    # Decisions.

    def _next_planned(self) -> list[Entry] | None:
        """Return the files and links of the next page of the plan; keep its folders for the end."""
        assert self._pages is not None
        page = next(self._pages, None)
        if page is None:
            return None
        kept = []
        for entry in page:
            if entry.kind == FOLDER:
                self._page_of_folders.append(entry)
                if len(self._page_of_folders) >= PAGE_LOW:
                    self._folders.add(self._page_of_folders)
                    self._page_of_folders = []
            elif is_wanted(entry, self._choices, self._tally, self._source):
                kept.append(entry)
        return kept

    def _weigh(self, entry: Entry, found: Entry | None) -> None:
        """Decide on an entry, by what has its name at the destination."""
        choices = self._choices
        if found is not None and entry[1:] == found[1:] and self._is_plain and not self._resent:
            self._tally.settle(entry.path, SAME, entry.size)  # as nearly always, where it was transferred before
            return
        if entry.path in self._resent:
            choices = choices._replace(compare="quick")
        try:
            verdict = weigh(entry, found, choices, self._clock_ns)
        except FtransferError as exc:
            self._tally.fail(entry.path, exc)
            return
        if verdict == HASH:
            assert found is not None
            self._questions.add_hash(entry, found)
        else:
            self._decided(entry, verdict, is_taken=found is not None)

    def _decided(self, entry: Entry, verdict: str, *, is_taken: bool) -> None:
        was_sent = verdict == SAME and entry.path in self._resent  # and only the answer was lost
        if verdict == SEND or (was_sent and entry.kind == LINK):
            self._todo.append((entry, is_taken))
        elif verdict == STAMP or was_sent:
            self._stamp(entry)  # whose answer says whether it is durable
        else:
            assert verdict in (SAME, SKIPPED)
            self._tally.settle(entry.path, verdict, entry.size)

    def _hash_local(self, reader: Reader, entry: Entry, buffer: memoryview, *, at_source: bool) -> str | None:
        """Return the hash of a file at this end, None if that failed, which is then told."""
        try:
            with reader.open(entry.path) as source:
                return self._questions.hash_source(source, self._choices.algorithm, buffer, self._alive)
        except FtransferError as exc:
            if not isinstance(exc, FILE_FAULTS):
                raise
            self._tally.fail(entry.path, exc, at_source=at_source)
            return None

    def _on_answer(self, message: wire.Message) -> None:
        """Take a message that is about no file: an answer to a question, most likely."""
        if isinstance(message, wire.Found):
            for entry, found in self._questions.found(message):
                self._weigh(entry, found)
        elif isinstance(message, wire.Digests):
            hashing = self._questions.hashed(message)
            if hashing is not None:
                self._hashed(hashing)
        elif isinstance(message, wire.Error):
            raise from_code(message.code, message.message, hint=message.hint)
        elif not isinstance(message, wire.Working):
            raise OutOfTurn(f"{message.type} for no file")

    def _hashed(self, hashing: Hashing) -> None:
        """Decide on files that were hashed at both ends."""
        for (entry, found), here, there in zip(hashing.rows, hashing.here, hashing.there, strict=True):
            if here is None:
                continue
            if isinstance(there[0], str) and self._source is None:  # what cannot be read is there
                self._tally.fail(entry.path, from_code(there[0], str(there[1]), hint=None), at_source=True)
                continue
            try:
                verdict = settle(entry, found, self._choices, self._clock_ns, equal=there[1] == here)
            except FtransferError as exc:
                self._tally.fail(entry.path, exc)
            else:
                self._decided(entry, verdict, is_taken=True)

    # Outcomes.

    def _refused(self, entry: Entry, exc: FtransferError) -> None:
        """Take note that the destination did not take a file or link; some are sent again."""
        if isinstance(exc, DiskError):
            raise exc
        if isinstance(exc, IntegrityError) and self._damaged.get(entry.path, 0) < MOST_DAMAGED:
            self._damaged[entry.path] = self._damaged.get(entry.path, 0) + 1
            self._send_again(entry)
        elif exc.code == "exists" and self._choices.if_exists in ("newer", "skip"):
            self._tally.settle(entry.path, SKIPPED, entry.size)
        elif exc.code == "exists" and self._choices.if_exists == "rename" and entry.kind == FILE:
            self._send_again(entry)
        else:
            self._tally.fail(entry.path, exc)

    def _send_again(self, entry: Entry) -> None:
        self._todo.appendleft((entry, True))

    def _folders_inside_out(self) -> Iterator[Entry]:
        """Yield all folders, inner ones first."""
        if self._page_of_folders:
            self._folders.add(self._page_of_folders)
            self._page_of_folders = []
        for number in reversed(range(len(self._folders))):
            for row in reversed(self._folders.page(number)):
                yield Entry(*row)

    def _large_moved(self, event: Progress) -> None:
        self._moved += 1
        self._tally.in_flight = event.done
        self._tell()
        self._tally.observer(event)

    def _tell(self) -> None:
        self._tally.tell(self._plan.files, self._plan.bytes, is_complete=self._plan.is_complete)

    def _close(self) -> None:
        self._folders.close()
        self._plan.close()

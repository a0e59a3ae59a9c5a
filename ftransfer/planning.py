"""What a tree holds, entry by entry: counted beside the work, in bounded memory, and looked over before it begins.

A plan takes entries from a walk or a listing. For a moment it does only that, so that most trees are known as a whole
before their first byte moves; a larger tree is counted on in a thread, and what is ahead of the work lies in a
temporary file. Used by the uploads, downloads and comparisons of trees.
"""

from __future__ import annotations

import itertools
import marshal
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ftransfer import paths
from ftransfer.errors import BadPath, DiskError, FtransferError, RemoteDiskError
from ftransfer.store.base import FILE, Entry, OnError

PAGE = 512
"""Entries in a page."""
PAGES_IN_MEMORY = 40
"""Pages that are kept in memory; those that follow go to a temporary file."""
FIRST_SECONDS = 3.0
"""How long a tree is counted before the work begins."""
NEAR = 250
"""Characters from which a path below another one may be too long, or too deep."""
MOST_PROBLEMS = 1000
"""Problems that are remembered one by one."""
MOST_NAMED = 20
"""Names in one message."""


class Spool:
    """Rows in pages, in the order in which they came or the reverse; the first in memory, the rest on the disk.

    One thread may add while another one reads.
    """

    def __init__(self) -> None:
        self._pages: list[list[Any]] = []
        self._file: Any = None
        self._places: list[tuple[int, int]] = []
        self._end = 0

    def __len__(self) -> int:
        return len(self._pages) + len(self._places)

    def add(self, page: list[Any]) -> None:
        """Add a page of tuples of numbers and texts."""
        if len(self._pages) < PAGES_IN_MEMORY:
            self._pages.append(page)
            return
        if self._file is None:
            import tempfile  # here, because only large trees need it

            self._file = tempfile.TemporaryFile(prefix="ftransfer-")  # noqa: SIM115 - closed by `close`
        data = marshal.dumps([tuple(row) for row in page])
        at = 0
        while at < len(data):
            at += os.pwrite(self._file.fileno(), data[at:], self._end + at)
        self._places.append((self._end, len(data)))
        self._end += len(data)

    def page(self, number: int) -> list[Any]:
        """Return a page by its number."""
        if number < len(self._pages):
            return self._pages[number]
        offset, length = self._places[number - len(self._pages)]
        page: list[Any] = marshal.loads(os.pread(self._file.fileno(), length, offset))  # noqa: S302 - our own file
        return page

    def close(self) -> None:
        """Let go of all."""
        if self._file is not None:
            self._file.close()


def hold(entries: Iterator[Entry], told: Callable[[int], None]) -> Iterator[Entry]:
    """Take all entries now, and return an iterator over them; `told` is called with their number now and then."""
    spool = Spool()
    count = 0
    while page := list(itertools.islice(entries, PAGE)):
        spool.add(page)
        count += len(page)
        told(count)
    return _held(spool)


def _held(spool: Spool) -> Iterator[Entry]:
    try:
        for number in range(len(spool)):
            for row in spool.page(number):
                yield Entry(*row)
    finally:
        spool.close()


class Plan:
    """The entries of a tree, in pages.

    Arguments: `entries`; `folds`, what the other side takes for the same name ("case", "form"); `check` raises what
    has to stop the counting.
    """

    def __init__(
        self,
        entries: Callable[[OnError], Iterator[Entry]],
        *,
        check: Callable[[], None],
        stop: Callable[[], None] | None = None,
    ):
        self.files = self.bytes = 0
        """What was counted so far."""
        self.is_complete = False
        """Whether that is all."""
        self.problems: list[tuple[str, FtransferError]] = []
        """Names that cannot be used, and folders that cannot be read."""
        self.more_problems = 0
        self.on_wait: Callable[[], None] = check
        """Called every now and then while the work waits for the walk."""
        self._bad: list[BadPath] = []
        self._failure: BaseException | None = None
        self._entries = self._watched(entries(self.problem))
        self._twins: _Twins | None = None
        self._base = ""
        self._check = check
        self._stop = stop
        self._spool = Spool()
        self._more = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def problem(self, path: str, exc: FtransferError) -> None:
        """Take note of something that is not an entry and should have been."""
        exc.path = exc.path or path
        if isinstance(exc, BadPath) and len(self._bad) < MOST_PROBLEMS:
            self._bad.append(exc)
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append((path, exc))
        else:
            self.more_problems += 1

    def begin(
        self,
        folds: list[str] | tuple[str, ...] = (),
        base: str = "",
        told: Callable[[], None] | None = None,
    ) -> None:
        """Count for a moment, then on in a thread.

        Arguments: `folds`, what the other side takes for the same name ("case", "form"); `base`, the path that all go
        below there; `told` is called after each page. Raises BadPath, which names all names that cannot be used, if
        there are any.
        """
        self._base = base
        self._twins = self._twins or (_Twins(folds) if folds else None)
        until = time.monotonic() + FIRST_SECONDS
        while not self.is_complete and time.monotonic() < until:
            self._read_page()
            if told is not None:
                told()
        if not self.is_complete:
            self._thread = threading.Thread(target=self._run, name="ftransfer-count", daemon=True)
            self._thread.start()
        if self._bad:
            self.close()
            raise _refusal(self._bad)

    def _read_page(self) -> None:
        if self._failure is not None:
            raise self._failure
        page: list[Entry] = []
        files = size = 0
        base = self._base
        near = NEAR - len(base)
        for entry in self._entries:
            if base and len(entry.path) > near:
                try:
                    paths.check(paths.join(base, entry.path))
                except BadPath as exc:
                    self.problem(entry.path, exc)
                    continue
            if self._twins is not None and (twin := self._twins.meet(entry.path)) is not None:
                self.problem(entry.path, twin)
            page.append(entry)
            if entry.kind == FILE:
                files += 1
                size += entry.size
            if len(page) == PAGE:
                break
        self._check()
        with self._more:
            self._spool.add(page)
            self.files += files
            self.bytes += size
            self.is_complete = len(page) < PAGE
            self._more.notify_all()

    def _watched(self, entries: Iterator[Entry]) -> Generator[Entry, None, None]:
        """Go through a walk; one that broke has broken for good, and what came of it is never taken for the whole."""
        try:
            yield from entries
        except FtransferError as exc:
            exc.retryable = False  # whoever lists has tried again already
            self._failure = exc
            raise

    def _run(self) -> None:
        try:
            while not self.is_complete and not self._is_closed:
                self._read_page()
        except BaseException as exc:  # noqa: BLE001 - raised in the thread that reads
            with self._more:
                self._failure = exc
                self._more.notify_all()

    def pages(self) -> Iterator[list[Entry]]:
        """Yield the pages, each as soon as it was counted."""
        number = 0
        while True:
            with self._more:
                while number >= len(self._spool):
                    if self._failure is not None:
                        raise self._failure
                    if self.is_complete:
                        return
                    self._more.wait(0.5)
                    self._check()
                    self.on_wait()
                page = self._spool.page(number)
            yield [row if isinstance(row, Entry) else Entry(*row) for row in page]
            number += 1

    def close(self) -> None:
        """Stop counting."""
        self._is_closed = True
        if self._stop is not None:
            self._stop()
        if self._thread is not None:
            self._thread.join()
        self._entries.close()
        self._spool.close()


def check_room(
    plan: Plan, free_bytes: int | None, free_files: int | None, wanted: Callable[[], tuple[int, int]], *, remote: bool
) -> None:
    """Raise DiskError, or with `remote` RemoteDiskError, if a tree that is known as a whole cannot fit.

    Arguments: `wanted` counts what is not there yet, bytes and files; it is asked only if all together would not fit.
    """
    if not plan.is_complete or (
        (free_bytes is None or plan.bytes <= free_bytes) and (free_files is None or plan.files <= free_files)
    ):
        return
    size, files = wanted()
    for needed, free, what in ((size, free_bytes, "bytes"), (files, free_files, "files (inodes)")):
        if free is not None and needed > free:
            raise (RemoteDiskError if remote else DiskError)(
                f"no space: {needed} {what} are needed and {free} are free",
                hint=f"nothing was sent; free some space {'on the server' if remote else 'or choose another folder'}",
            )


def _refusal(bad: list[BadPath]) -> BadPath:
    if len(bad) == 1:
        return bad[0]
    names = ", ".join(paths.printable(exc.path or "") for exc in bad[:MOST_NAMED])
    more = f" and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
    return BadPath(
        f"{len(bad)} names cannot be used: {names}{more}",
        hint=f"nothing was sent; rename them or leave them out (--exclude); the first: {bad[0].message}",
    )


class _Twins:
    """Finds names in one folder that the other side would take for the same; knows the folders on the way only."""

    def __init__(self, folds: list[str] | tuple[str, ...]):
        self._folds = folds
        self._levels: list[dict[str, str]] = []

    def meet(self, path: str) -> BadPath | None:
        """Take the next path of a walk; return what is wrong with it."""
        depth = path.count("/")
        name = path.rpartition("/")[2]
        del self._levels[depth + 1 :]
        while len(self._levels) <= depth:
            self._levels.append({})
        folded = name
        if "form" in self._folds and not name.isascii():
            import unicodedata  # here, because hardly any run needs it

            folded = unicodedata.normalize("NFC", folded)
        if "case" in self._folds:
            folded = folded.casefold()
        other = self._levels[depth].setdefault(folded, name)
        if other == name:
            return None
        return BadPath(
            f"the other side takes it for the same name as {paths.printable(other)}",
            path=path,
            hint="nothing was sent; rename one of them",
        )

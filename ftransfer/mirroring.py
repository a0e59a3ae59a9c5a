"""Removing what the source lacks, after everything else went well: `--delete`. Used by `treejobs`.

What goes is decided here, from two walks, and never by the other side; what the filter excludes stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ftransfer import wire
from ftransfer.channel import Channel
from ftransfer.errors import FtransferError, NotAFile, NotFound, OutOfTurn, from_code
from ftransfer.filters import Filter
from ftransfer.link import Link
from ftransfer.merging import merge
from ftransfer.packing import Packer
from ftransfer.packstream import GONE, PackStream, Row
from ftransfer.planning import Spool
from ftransfer.rehearsing import WOULD_DELETE
from ftransfer.store.base import FOLDER, Entry
from ftransfer.store.local import LocalStore
from ftransfer.tally import Tally

PAGE = 512

Done = Callable[[Entry, FtransferError | None], None]
Remove = Callable[[Iterator[Entry], Done, list[tuple[Entry, int]]], None]
"""Removes entries, tells what became of each, then gives folders their times and modes again."""


class Extras:
    """What is at the destination only and may go: each folder before what is in it.

    Arguments: `source` without regard to size and time, so that what was left out for these is not taken for missing;
    `root`, the source itself if its time and mode are kept.
    """

    def __init__(self, source: Iterator[Entry], dest: Iterator[Entry], taken: Filter, root: Entry | None):
        self.folders: dict[str, Entry] = {}
        """Folders of the source whose copy loses something, and so its time: to be set again after that."""
        self._pairs = merge(source, dest)
        self._taken = taken
        self._above = [root] if root is not None else []

    def __iter__(self) -> Iterator[Entry]:
        kept_below = ""
        for here, there in self._pairs:
            if here is not None and here.kind == FOLDER:
                self._climb(here.path)
                self._above.append(here)
            if there is None or (kept_below and there.path.startswith(kept_below)):
                continue
            if here is not None:
                if there.kind == FOLDER and here.kind != FOLDER:
                    kept_below = there.path + "/"  # a link or special file at the source, which was left out
            elif self._may_go(there):
                self._climb(there.path)
                if self._above:
                    folder = self._above[-1]
                    self.folders[folder.path] = folder
                yield there

    def _climb(self, path: str) -> None:
        """Forget the folders that this path is not in."""
        while self._above and self._above[-1].path and not path.startswith(self._above[-1].path + "/"):
            self._above.pop()

    def _may_go(self, there: Entry) -> bool:
        if there.kind == FOLDER:
            return self._taken.takes_folder(there.path)
        return self._taken.takes_file(there.path, there.size, there.mtime_ns)


def mirror(
    extras: Extras, remove: Remove, tally: Tally, mode: Callable[[Entry], int], *, dry_run: bool, is_filtered: bool
) -> None:
    """Remove the extra entries, files first, then the folders that are empty; with `dry_run` only say so.

    Arguments: `mode` returns the permission bits that a folder of the source has at the destination.
    """
    spool = Spool()
    try:
        page: list[Entry] = []
        for entry in extras:
            page.append(entry)
            if len(page) == PAGE:
                spool.add(page)
                page = []
        spool.add(page)
        if tally.failed:
            tally.note("nothing was deleted, because something failed", 0)
            return
        if dry_run:
            for entry in _forwards(spool):
                tally.settle(entry.path, WOULD_DELETE)
            return

        def done(entry: Entry, exc: FtransferError | None) -> None:
            if exc is None or isinstance(exc, NotFound):
                tally.settle(entry.path, "deleted")
            elif entry.kind == FOLDER and isinstance(exc, NotAFile) and is_filtered:
                pass  # it holds what the filter excludes
            else:
                tally.fail(entry.path, exc)

        tally.phase = "deleting"
        folders = sorted(extras.folders.values(), key=lambda folder: folder.path.split("/"), reverse=True)
        remove(_backwards(spool), done, [(folder, mode(folder)) for folder in folders])
    finally:
        spool.close()


def _forwards(spool: Spool) -> Iterator[Entry]:
    for number in range(len(spool)):
        for row in spool.page(number):
            yield Entry(*row)


def _backwards(spool: Spool) -> Iterator[Entry]:
    """Yield the entries so that each folder comes after what is in it."""
    for number in reversed(range(len(spool))):
        for row in reversed(spool.page(number)):
            yield Entry(*row)


def remove_here(store: LocalStore, below: str) -> Remove:
    """Return what removes entries below a folder of a local store."""

    def remove(entries: Iterator[Entry], done: Done, folders: list[tuple[Entry, int]]) -> None:
        tree = store.tree(below)
        try:
            for entry in entries:
                try:
                    tree.remove(entry.path)
                except FtransferError as exc:
                    done(entry, exc)
                else:
                    done(entry, None)
            tree.commit([(folder.path, folder.mtime_ns, mode) for folder, mode in folders])
        finally:
            tree.close()

    return remove


def remove_there(link: Link, where: str) -> Remove:
    """Return what removes entries below a folder on the server, in packs."""
    return lambda entries, done, folders: _Removal(link, where, done, folders).run(entries)


class _Removal:
    """Entries that are removed on the server, over as many connections as it takes."""

    def __init__(self, link: Link, where: str, done: Done, folders: list[tuple[Entry, int]]):
        self._link = link
        self._where = where
        self._done = done
        self._folders = folders
        self._left: list[Entry] = []
        self._settled = 0

    def run(self, entries: Iterator[Entry]) -> None:
        """Remove them."""
        self._link.run(lambda c: self._attempt(c, entries), path=self._where, progress=lambda: self._settled)

    def _attempt(self, channel: Channel, entries: Iterator[Entry]) -> None:
        t = self._link.next_t()
        channel.send(wire.Tree(t=t, path=self._where))
        ready = self._expect(channel)
        if not isinstance(ready, wire.Ready):
            raise OutOfTurn(f"{ready.type} before ready")
        packs: PackStream

        def wait() -> None:
            answer = self._expect(channel)
            if isinstance(answer, wire.Receipts):
                packs.answered(answer)

        packer = Packer(None, memoryview(b""))
        packs = PackStream(channel, packer, t=t, window=ready.window, wait=wait, settle=self._settle)
        entry: Entry | None = None
        try:
            while (entry := self._left.pop(0) if self._left else next(entries, None)) is not None:
                packs.add_gone(entry)
            packs.flush()
            for folder, mode in self._folders:
                packs.add_facts(FOLDER, folder, mode)
            packs.flush(now=True)
            while packs.is_outstanding:
                wait()
        except BaseException:
            again = [row.entry for row in packs.take_back() if row.kind == GONE]
            again += [entry] if entry is not None and entry not in again else []
            self._left = again + self._left
            raise
        channel.send(wire.Finish(t=t))

    @staticmethod
    def _expect(channel: Channel) -> wire.Message:
        while isinstance(answer := channel.expect(), wire.Working):
            pass
        if isinstance(answer, wire.Error):
            raise from_code(answer.code, answer.message, hint=answer.hint)
        return answer

    def _settle(self, rows: list[Row], failed: dict[int, FtransferError], durable: bool) -> None:  # noqa: ARG002
        self._settled += len(rows)
        for at, row in enumerate(rows):
            if row.kind == GONE:
                self._done(row.entry, failed.get(at))

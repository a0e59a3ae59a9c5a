"""A folder on its way from the server, over as many connections as it takes. Used by `treejobs`.

The listing comes over a connection of its own, ahead of the work. Files that are wanted are asked for many at a time,
and come in packs; large ones flow between them. What a lost connection left unanswered is asked for again.
"""

from __future__ import annotations

from collections import deque

from ftransfer import paths, wire
from ftransfer.channel import Channel
from ftransfer.digests import Digest
from ftransfer.errors import BadPath, DiskError, FtransferError, ProtocolError, Refused, from_code
from ftransfer.largefiles import LargeDownload
from ftransfer.link import Link
from ftransfer.pacing import Pace
from ftransfer.packing import ALONE, HEADER, TARGET, row_size
from ftransfer.packstream import Row
from ftransfer.planning import Plan, check_room
from ftransfer.questions import Questions
from ftransfer.receiving import with_life
from ftransfer.store.base import FILE, LINK, Entry
from ftransfer.store.local import LocalStore
from ftransfer.store.trees import Reader
from ftransfer.tally import Tally
from ftransfer.treetransfer import PAGE_LOW, TreeTransfer
from ftransfer.unpacking import Asked, Failed, Unpacker
from ftransfer.weighing import LED_OUT, SAME, UNUSABLE, Choices

MOST_FETCHES = 8
"""Requests for packs that may be open."""
MOST_BYTES = 32 << 20
"""Bytes that may be asked for in packs, and not have come."""
FETCH_BYTES = 8 << 20
"""Bytes after which a request for packs has enough."""
MOST_LARGE = 8
"""Large files that may be open."""


class TreeDownload(TreeTransfer):
    """A folder on its way from `where` on the server to `below` in a local store.

    Arguments: `plan` of what is there; `root`, the folder itself if its time and mode are to be kept.
    """

    def __init__(
        self,
        link: Link,
        where: str,
        *,
        store: LocalStore,
        below: str,
        plan: Plan,
        choices: Choices,
        tally: Tally,
        root: Entry | None,
    ):
        super().__init__(plan, choices, tally, root)
        self._link = link
        self._where = where
        self._store = store
        self._below = below
        self._tree = store.tree(below, "fail" if choices.if_exists == "rename" else choices.if_exists)
        self._reader: Reader | None = store.reader(below) if self._tree.exists else None
        self._durable = store.capabilities.durable
        self._unpacker = Unpacker(self._tree, algorithm=choices.algorithm, durable=self._durable)
        self._clock_ns = store.clock_step()
        self._fetches: dict[int, dict[str, Entry]] = {}
        self._fetch_bytes: dict[int, int] = {}
        self._taken: deque[list[Row]] = deque()
        self._large: dict[int, LargeDownload] = {}
        self._again: list[Entry] = []
        self._again_large: deque[LargeDownload] = deque()
        self._pace = Pace()
        self._buffer = memoryview(bytearray(wire.MAX_PACK))

    def run(self) -> None:
        """Fetch it; the tally has what became of each file. Raises what ends the whole."""
        self._tally.phase = "receiving"
        try:
            self._link.run(
                self._attempt, path=self._tally.name, progress=lambda: self._moved, observer=self._tally.observer
            )
            self._finish_folders()
        finally:
            for large in (*self._large.values(), *self._again_large):
                large.close()
            self._tree.close()
            if self._reader is not None:
                self._reader.close()
            self._close()

    # One connection.

    def _attempt(self, channel: Channel) -> None:
        self._try_again()
        self._channel = channel
        self._questions = Questions(channel, self._where)
        try:
            if self._pages is None:
                self._plan.begin(self._store.folds(), self._below)
                check_room(self._plan, *self._tree.room(), lambda: self._count_wanted(self._look), remote=False)
                self._pages = self._plan.pages()
            self._work()
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Keep what was not answered, to be asked for on the next connection."""
        for names in self._fetches.values():
            self._todo.extend((entry, True) for entry in names.values())
        self._fetches.clear()
        self._fetch_bytes.clear()
        for page in self._questions.take_back():
            self._again.extend(page)
        self._again_large.extend(self._large.values())
        self._large.clear()

    # The loop.

    def _work(self) -> None:
        """Fetch all that is wanted, asking ahead."""
        while True:
            if self._ask_large() or self._fetch_next() or self._decide_next():
                continue
            if self._fetches or self._large or self._questions.is_open:
                self._take_next()
                continue
            self._commit()
            if not self._todo:
                return

    def _take_next(self) -> None:
        """Take the next message; while none has arrived, do what can be done here."""
        for large in self._large.values():
            while large.is_behind and not self._channel.readable():
                large.catch_up()
        if self._unpacker.is_due:
            self._commit()
        self._on(self._channel.expect())

    def _decide_next(self) -> bool:
        """Compare the next page with what is here; False if there is none, or enough is decided."""
        if len(self._todo) > PAGE_LOW:
            return False
        if self._questions.ask_hashes(self._hash_here, self._choices.algorithm, force=False):
            return True
        page, self._again = self._again or self._next_planned(), []
        if page is None:
            return self._questions.ask_hashes(self._hash_here, self._choices.algorithm, force=True)
        for entry in page:
            self._compare(entry)
        self._tell()
        return True

    def _look(self, page: list[Entry]) -> list[Entry | None]:
        return [self._reader.stat(entry.path) if self._reader is not None else None for entry in page]

    def _compare(self, entry: Entry) -> None:
        try:
            (found,) = self._look([entry])
        except FtransferError as exc:
            self._tally.fail(entry.path, exc)
        else:
            self._weigh(entry, found)

    def _stamp(self, entry: Entry) -> None:
        try:
            self._tree.stamp(entry.path, entry.mtime_ns, self._choices.mode(entry))
        except Refused:
            self._tally.note("files whose time and mode could not be set")
            self._tally.settle(entry.path, SAME, entry.size)
        except FtransferError as exc:
            self._refused(entry, exc)
        else:
            self._tally.settle(entry.path, "stamped", entry.size)

    def _hash_here(self, entry: Entry) -> str | None:
        assert self._reader is not None
        return self._hash_local(self._reader, entry, self._buffer, at_source=False)

    # Requests.

    def _fetch_next(self) -> bool:
        """Ask for some of the files that are wanted; False if there are none, or enough is on its way."""
        if not self._todo or len(self._fetches) >= MOST_FETCHES:
            return False
        if sum(self._fetch_bytes[t] for t in self._fetches) >= MOST_BYTES:
            return False
        names: dict[str, Entry] = {}
        header = total = 0
        largest = self._largest(self._pace)
        while self._todo and len(names) < wire.MAX_ROWS and header < HEADER and total < FETCH_BYTES:
            entry, is_taken = self._todo.popleft()
            if entry.kind == FILE and (entry.size > largest or (is_taken and self._choices.if_exists == "rename")):
                self._again_large.append(self._new_large(entry))
                continue
            names[entry.path] = entry
            header += row_size(entry.path)
            total += entry.size
        if names:
            t = self._link.next_t()
            self._fetches[t] = names
            self._fetch_bytes[t] = total
            self._channel.send(
                wire.Fetch.of_ours(
                    t=t,
                    path=self._where,
                    names=list(names),
                    algorithm=self._choices.algorithm,
                    links="follow" if self._choices.links == "follow" else "copy",
                    most=max(wire.MIN_BLOCK, min(TARGET, largest)),
                )
            )
        return True

    def _new_large(self, entry: Entry) -> LargeDownload:
        return LargeDownload(
            self._store,
            entry,
            paths.join(self._where, entry.path),
            paths.join(self._below, entry.path),
            self._choices,
            self._large_moved,
        )

    def _ask_large(self) -> bool:
        if not self._again_large or len(self._large) >= MOST_LARGE:
            return False
        large = self._again_large.popleft()
        t = self._link.next_t()
        self._large[t] = large
        large.begin(self._channel, t)
        return True

    # Answers.

    def _on(self, message: wire.Message) -> None:
        t: int | None = getattr(message, "t", None)
        if t in self._fetches:
            self._on_fetch(t, message)
        elif t in self._large:
            self._on_large(t, message)
        else:
            self._on_answer(message)

    def _on_fetch(self, t: int, message: wire.Message) -> None:
        if isinstance(message, wire.Pack):
            self._unpack(t, message)
        elif isinstance(message, wire.Done):
            left = self._fetches.pop(t)
            del self._fetch_bytes[t]
            if left:
                raise ProtocolError("the server left out files that it was asked for")
        elif isinstance(message, wire.Error):
            raise from_code(message.code, message.message, hint=message.hint)

    def _unpack(self, t: int, pack: wire.Pack) -> None:
        """Take a pack into the tree, if it holds nothing but what was asked for."""
        body = self._buffer[: pack.body]
        if pack.body:
            self._channel.read_body(body)
        asked = self._fetches[t]
        if pack.folders or pack.stamps or pack.gone:
            raise ProtocolError("the server sent what it was not asked for")
        rows: list[Row] = []
        files = []
        modes = self._choices.modes
        for path, size, hex_digits, mtime_ns, mode in pack.files:
            entry = self._asked_for(asked, path)
            if entry.kind == LINK and self._choices.links == "copy":
                raise ProtocolError("the server sent a file for a symbolic link")
            rows.append(Row(FILE, entry, size, hex_digits))
            files.append((path, size, hex_digits, mtime_ns, mode if modes is None else modes.file(mode)))
        links = []
        for link in pack.links:
            entry = self._asked_for(asked, link[0])
            try:
                paths.check_link(link[0], link[1])
            except BadPath:
                self._tally.note(LED_OUT)
                continue
            rows.append(Row(LINK, entry))
            links.append(link)
        for path, code, text in pack.failed:
            entry = self._asked_for(asked, path)
            if entry.kind == LINK and code == BadPath.code:
                self._tally.note(LED_OUT if "leads out" in text else UNUSABLE)
            elif code == ALONE:
                self._again_large.append(self._new_large(entry))
            else:
                self._tally.fail(path, from_code(code, text, hint=None), at_source=True)
        if files or links:
            self._taken.append(rows)
            self._unpacker.take(Asked(files, links), body)
        self._moved += pack.body + 1
        self._pace.confirmed(pack.body)
        if self._unpacker.is_due:
            self._commit()

    @staticmethod
    def _asked_for(asked: dict[str, Entry], path: str) -> Entry:
        entry = asked.pop(path, None)
        if entry is None:
            raise ProtocolError("the server sent a file that it was not asked for")
        return entry

    def _commit(self) -> None:
        """Publish what was taken, and count it."""
        if not self._unpacker.waiting:
            return
        outcomes = with_life(self._unpacker.commit, self._show_life) if self._durable else self._unpacker.commit()
        for failed in outcomes:
            self._settle_pack(failed)
        self._tell()

    def _settle_pack(self, failed: Failed) -> None:
        rows = self._taken.popleft()
        if not failed and self._tally.settle_rows(rows, durable=self._durable):
            return
        for at, (_, entry, size, hex_digits) in enumerate(rows):
            exc = failed.get(at)
            if exc is None:
                digest = Digest(self._choices.algorithm, hex_digits) if hex_digits else None
                self._tally.settle(entry.path, "sent", size, sent=size, digest=digest, durable=self._durable)
            else:
                self._refused(entry, exc)

    def _show_life(self) -> None:
        large = (t for t, one in self._large.items() if one.is_announced)
        t = next((t for t in (*self._fetches, *large) if self._channel.session.is_open(t)), None)
        if t is not None:
            self._channel.send(wire.Working(t=t, phase="syncing", done=self._unpacker.bytes))

    def _on_large(self, t: int, message: wire.Message) -> None:
        large = self._large[t]
        try:
            is_done = large.take(self._channel, message)
        except FtransferError as exc:
            if exc.retryable or isinstance(exc, ProtocolError) or (isinstance(exc, DiskError) and not exc.remote):
                raise
            del self._large[t]
            large.close()
            if not exc.remote and self._channel.session.is_open(t):
                self._channel.send(wire.error_message(exc, t))
            self._tally.fail(large.entry.path, exc, at_source=exc.remote)
            return
        if is_done:
            del self._large[t]
            self._moved += 1
            large.settle(self._tally)
            large.close()
            self._tell()

    # The end.

    def _finish_folders(self) -> None:
        """Give all folders their times and modes, inner ones first, once nothing changes in them any more."""
        for entry in self._folders_inside_out():
            try:
                self._tree.folder(entry.path, entry.mtime_ns, self._choices.mode(entry))
                self._tally.folders += 1
            except Refused:
                self._tally.note("folders whose time and mode could not be set")
            except FtransferError as exc:
                self._refused(entry, exc)
        self._tree.commit()

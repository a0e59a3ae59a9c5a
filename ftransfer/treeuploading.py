"""A folder on its way to the server, over as many connections as it takes. Used by `treejobs`.

One thread, and nothing waits a round trip for a file: pages of names are asked about ahead of the work, packs go out
while earlier ones are answered, large files flow between them. What a lost connection left unanswered is asked about
again.
"""

from __future__ import annotations

from collections import deque

from ftransfer import packing, paths, wire
from ftransfer.channel import Channel
from ftransfer.digests import Digest
from ftransfer.errors import (
    FILE_FAULTS,
    DiskError,
    FtransferError,
    ProtocolError,
    Refused,
    from_code,
)
from ftransfer.largefiles import LargeUpload
from ftransfer.link import Link
from ftransfer.packing import Packer
from ftransfer.packstream import PackStream, Row
from ftransfer.planning import Plan, check_room
from ftransfer.questions import Questions
from ftransfer.rehearsing import look_there
from ftransfer.sending import Sender
from ftransfer.store.base import FILE, FOLDER, LINK, Entry
from ftransfer.store.trees import Reader
from ftransfer.tally import Tally
from ftransfer.treetransfer import PAGE_LOW, TreeTransfer
from ftransfer.weighing import SAME, STAMP, Choices

MOST_LARGE = 16
"""Large files that may be open, most of them waiting for a receipt."""
MOST_AHEAD = 8192
"""Entries to be sent that are known before the first of them goes."""
MOST_HELD = 4
"""Large files that may wait to be told what is missing."""


class TreeUpload(TreeTransfer):
    """A folder on its way below `where` on the server.

    Arguments: `reader` of the folder, and the `plan` of what is in it; `root`, the folder itself if it is to get its
    time and mode.
    """

    def __init__(
        self,
        link: Link,
        reader: Reader,
        where: str,
        plan: Plan,
        choices: Choices,
        tally: Tally,
        *,
        root: Entry | None,
    ):
        super().__init__(plan, choices, tally, root)
        self._link = link
        self._reader = self._source = reader
        self._where = where
        self._again: deque[list[Entry]] = deque()
        self._again_large: deque[LargeUpload] = deque()
        self._large: dict[int, LargeUpload] = {}
        self._to_stamp: deque[Entry] = deque()
        self._is_begun = self._is_open = False

    def run(self) -> None:
        """Send it; the tally has what became of each file. Raises what ends the whole."""
        try:
            self._link.run(
                self._attempt, path=self._tally.name, progress=lambda: self._moved, observer=self._tally.observer
            )
        finally:
            for large in (*self._large.values(), *self._again_large):
                large.close()
            self._close()

    # One connection.

    def _attempt(self, channel: Channel) -> None:
        self._try_again()
        self._channel = channel
        self._sender = Sender(channel, other=self._on, largest_block=self._link.limits.max_block)
        self._questions = Questions(channel, self._where)
        channel.absorbs = True
        self._tree = self._link.next_t()
        self._are_folders_sent = False
        self._is_open = False
        try:
            self._open()
            self._work()
            channel.send(wire.Finish(t=self._tree))
        except BaseException:
            self._take_back()
            raise

    def _open(self) -> None:
        """Open the tree on the server, and see whether it can end well there."""
        policy = self._choices.if_exists
        self._channel.send(
            wire.Tree(
                t=self._tree,
                path=self._where,
                algorithm=self._choices.algorithm,
                if_exists="fail" if policy == "rename" else policy,
            )
        )
        while not isinstance(ready := self._channel.expect(), wire.Ready):
            if isinstance(ready, wire.Error):
                raise from_code(ready.code, ready.message, hint=ready.hint)
        # Who may not look does not ask: what was not answered before a line broke is sent again.
        self._exists = (ready.exists or self._tries > 1) and "read" in self._link.limits.can
        self._clock_ns = ready.clock_ns
        target = min(packing.TARGET, self._most)
        packer = Packer(self._reader, self._sender.buffer, algorithm=self._choices.algorithm, target=target)
        self._packs = PackStream(
            self._channel,
            packer,
            t=self._tree,
            window=ready.window,
            wait=self._wait,
            settle=self._settle,
        )
        self._is_open = True
        if not self._is_begun:
            self._pages = self._pages or self._plan.pages()
            self._plan.begin(ready.folds, self._where, self._ask_ahead)
            while self._questions.pages:
                self._questions.pump()
                self._wait()
            look = look_there(self._link, self._where) if self._exists else None
            check_room(self._plan, ready.free_bytes, ready.free_files, lambda: self._count_wanted(look), remote=True)
            self._is_begun = True

    def _ask_ahead(self) -> None:
        """Ask about a page that was counted, while others still are: no file goes before all names are known."""
        while self._channel.readable():
            self._wait()
        self._questions.pump()
        if self._exists and len(self._todo) <= MOST_AHEAD and (page := self._next_page()):
            self._questions.ask(page)

    def _take_back(self) -> None:
        """Keep what was not answered, to be asked about on the next connection."""
        rows = [row for row in self._packs.take_back() if row.kind != FOLDER] if self._is_open else []
        self._resent.update(row.entry.path for row in rows if row.kind != STAMP)
        self._again.append([row.entry for row in rows])
        self._again.extend(self._questions.take_back())
        self._again_large.extend(self._large.values())
        self._large.clear()

    # The loop.

    def _wait(self) -> None:
        self._on(self._channel.expect())

    def _work(self) -> None:
        """Send all that is wanted. Whatever can be done without waiting is done first."""
        while True:
            while self._channel.readable():
                self._wait()
            if self._push_large() or self._pack_next() or self._ask_next():
                continue
            if not (self._are_folders_sent or self._has_more):
                self._send_folders()
            elif self._packs.has_rows:
                self._packs.flush()
            elif self._packs.is_outstanding or self._large or self._questions.is_open:
                self._wait()
            else:
                return

    @property
    def _has_more(self) -> bool:
        """Whether something is still to be decided, or to be sent, that only waits for room."""
        waiting = self._todo or self._to_stamp or self._again_large
        return bool(waiting or self._questions.is_open or self._held)

    def _ask_next(self) -> bool:
        """Ask about the next page, or about files that may be equal; False if there is none, or nothing to gain."""
        self._questions.pump()
        if len(self._todo) > PAGE_LOW:
            return False
        if self._questions.ask_hashes(self._hash_here, self._choices.algorithm, force=False):
            return True
        if self._questions.wants_more and (page := self._next_page()) is not None:
            if self._exists:
                self._questions.ask(page)
            else:
                self._todo.extend((entry, False) for entry in page)
            return True
        return not self._questions.pages and self._questions.ask_hashes(
            self._hash_here, self._choices.algorithm, force=True
        )

    def _next_page(self) -> list[Entry] | None:
        if self._again:
            return self._again.popleft()
        return self._next_planned()

    def _stamp(self, entry: Entry) -> None:
        self._to_stamp.append(entry)  # decisions send nothing: what is half decided when a connection breaks is lost

    def _hash_here(self, entry: Entry) -> str | None:
        return self._hash_local(self._reader, entry, self._channel.scratch, at_source=True)

    def _show_life(self) -> None:
        self._channel.send(wire.Working(t=self._tree, phase="hashing", done=0))

    # Packs.

    def _pack_next(self) -> bool:
        """Send what was decided, until a pack has gone out; False if there is nothing, or no room in the window."""
        if not (self._todo or self._to_stamp) or self._packs.is_full:
            return False
        while self._to_stamp:
            entry = self._to_stamp[0]
            self._packs.add_facts(STAMP, entry, self._choices.mode(entry))
            self._to_stamp.popleft()
        largest = self._largest(self._sender.pace)
        renames = self._choices.if_exists == "rename"
        while self._todo:
            entry, is_taken = self._todo[0]
            is_alone = entry.kind == FILE and (entry.size > largest or (renames and is_taken))
            if is_alone and (len(self._large) >= MOST_LARGE or self._held >= MOST_HELD):
                return False
            if (is_alone and self._packs.has_rows) or not (is_alone or self._packs.has_room(entry)):
                self._packs.flush()
                self._tell()
                return True
            self._todo.popleft()
            if is_alone:
                self._start_large(entry)
                return True
            self._pack(entry, is_taken=is_taken)
        return True

    def _pack(self, entry: Entry, *, is_taken: bool) -> None:
        fits = True
        try:
            if entry.kind == LINK:
                target = self._reader.target(entry.path)
                paths.check_link(entry.path, target)
                self._packs.add_link(entry, target)
            else:
                fits = self._packs.add_file(entry, self._choices.mode(entry))
        except FtransferError as exc:
            if exc.remote or not isinstance(exc, FILE_FAULTS):
                self._todo.appendleft((entry, is_taken))  # the pack before it could not be sent
                raise
            self._tally.fail(entry.path, exc, at_source=True)
        if not fits:
            self._start_large(entry)

    def _send_folders(self) -> None:
        """Give all folders their times and modes, inner ones first, after all that goes into them.

        What has to be sent again after that changes the times once more, and then this is done again, too.
        """
        self._are_folders_sent = True
        self._tally.folders = 0
        for entry in self._folders_inside_out():
            self._packs.add_facts(FOLDER, entry, self._choices.mode(entry))
        if self._packs.has_rows or self._packs.is_outstanding:
            self._packs.flush(now=True)

    def _settle(self, rows: list[Row], failed: dict[int, FtransferError], durable: bool) -> None:
        """Take what became of the rows of a pack."""
        self._moved += 1
        if not failed and not self._resent and self._tally.settle_rows(rows, durable=durable):
            return
        for at, row in enumerate(rows):
            path = row.entry.path
            if at in failed:
                self._refused_row(row, failed[at])
            elif row.kind == FILE:
                self._resent.discard(path)
                digest = Digest(self._choices.algorithm, row.hash)
                self._tally.settle(path, "sent", row.size, sent=row.size, digest=digest, durable=durable)
            elif row.kind == LINK:
                self._tally.settle(path, "sent", durable=durable)
            elif row.kind == STAMP and path in self._resent:
                self._resent.discard(path)
                self._tally.settle(path, "sent", row.entry.size, sent=row.entry.size, durable=durable)
            elif row.kind == STAMP:
                self._tally.settle(path, "stamped", row.entry.size)
            elif row.kind == FOLDER:
                self._tally.folders += 1

    def _refused_row(self, row: Row, exc: FtransferError) -> None:
        if row.kind == FOLDER and isinstance(exc, Refused):
            self._tally.note("folders whose time and mode could not be set")
        elif row.kind == STAMP and isinstance(exc, Refused):
            self._tally.note("files whose time and mode could not be set")
            self._tally.settle(row.entry.path, SAME, row.entry.size)
        else:
            self._refused(row.entry, exc)

    def _send_again(self, entry: Entry) -> None:
        super()._send_again(entry)
        self._are_folders_sent = False

    # Large files.

    @property
    def _held(self) -> int:
        return sum(large.out.held for large in self._large.values())

    def _start_large(self, entry: Entry) -> None:
        assert not self._packs.has_rows  # the buffer is shared
        try:
            large = LargeUpload(
                self._reader, entry, paths.join(self._where, entry.path), self._choices, self._large_moved
            )
        except FtransferError as exc:
            self._tally.fail(entry.path, exc, at_source=True)
            return
        self._bind_large(large)

    def _bind_large(self, large: LargeUpload) -> None:
        t = self._link.next_t()
        self._large[t] = large
        large.begin(self._channel, t, self._link.limits, wait=self._exists)

    def _push_large(self) -> bool:
        """Send a large file whose turn it is, up to its end; False if there is none."""
        while self._again_large and len(self._large) < MOST_LARGE and self._held < MOST_HELD:
            self._bind_large(self._again_large.popleft())
        large = next((one for one in self._large.values() if not one.out.held and not one.out.ended), None)
        if large is None:
            return False
        if self._packs.has_rows:
            self._packs.flush()
        self._are_folders_sent = False  # also if a part of it is sent again: it changes its folder once more
        try:
            receipt = self._sender.push(large.out)
        except FtransferError as exc:
            self._end_large(large, exc)
        else:
            if receipt is not None:
                self._received(large, receipt)
        return True

    def _end_large(self, large: LargeUpload, exc: FtransferError) -> None:
        """Take note that a large file failed; raise what ends more than that."""
        if exc.retryable or isinstance(exc, ProtocolError) or (exc.remote and isinstance(exc, DiskError)):
            raise exc
        self._large.pop(large.out.t, None)
        large.close()
        self._tally.fail(large.entry.path, exc, at_source=not exc.remote)

    def _received(self, large: LargeUpload, receipt: wire.Receipt) -> None:
        del self._large[large.out.t]
        large.close()
        self._moved += large.out.sent_bytes + 1
        large.settle(receipt, self._tally)
        self._tell()

    # Answers.

    def _on(self, message: wire.Message) -> None:
        t: int | None = getattr(message, "t", None)
        if t == self._tree:
            self._on_tree(message)
        elif t in self._large:
            large = self._large[t]
            try:
                receipt = self._sender.take(large.out, message)
            except FtransferError as exc:
                self._end_large(large, exc)
            else:
                if receipt is not None:
                    self._received(large, receipt)
        else:
            self._on_answer(message)

    def _on_tree(self, message: wire.Message) -> None:
        if isinstance(message, wire.Receipts):
            self._tally.phase = "sending"
            confirmed = self._packs.answered(message)
            self._moved += confirmed
            self._sender.pace.confirmed(confirmed)
        elif isinstance(message, wire.Error):
            raise from_code(message.code, message.message, hint=message.hint)
        elif isinstance(message, wire.Working):
            self._tally.phase = message.phase
        self._tell()

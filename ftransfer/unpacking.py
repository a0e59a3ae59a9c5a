"""The receiving side of packs: small files out of a body into a tree, verified one by one, published by groups.

The same for an upload, where the server receives, and a download, where the client does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from ftransfer import digests, paths, wire
from ftransfer.errors import DiskError, FtransferError, IntegrityError, ProtocolError
from ftransfer.store.trees import Tree

GROUP_SECONDS = 2.0
"""Seconds after which a group is committed, however small it is."""
IDLE_SECONDS = 0.1
"""Seconds without anything new after which a group is committed."""
WINDOW = 256
"""Packs that may stand unanswered; a group holds at most half as many."""
MOST_REASONS = 64
"""Different reasons in one `receipts`; the last place is for all others."""
MANY_REASONS = (FtransferError.code, "one of too many different reasons")
TEXT = 200
"""Bytes of a reason."""

Failed = dict[int, FtransferError]
"""What failed of a pack, by row: files, links, folders, stamps, what is gone, counted through."""


class PackRows(Protocol):
    """The rows of a pack, as `wire.Pack` has them."""

    @property
    def files(self) -> Sequence[tuple[str, int, str, int, int]]: ...
    @property
    def links(self) -> Sequence[tuple[str, str, int]]: ...
    @property
    def folders(self) -> Sequence[tuple[str, int, int]]: ...
    @property
    def stamps(self) -> Sequence[tuple[str, int, int]]: ...
    @property
    def gone(self) -> Sequence[str]: ...


class Asked(NamedTuple):
    """The rows of a pack that were asked for, with the modes that they are to get."""

    files: Sequence[tuple[str, int, str, int, int]]
    links: Sequence[tuple[str, str, int]]
    folders: Sequence[tuple[str, int, int]] = ()
    stamps: Sequence[tuple[str, int, int]] = ()
    gone: Sequence[str] = ()


class Unpacker:
    """Packs on their way into a tree.

    Arguments: `durable`, whether the store syncs, so that groups pay; else each pack is a group.
    """

    def __init__(self, tree: Tree, *, algorithm: str = digests.DEFAULT, durable: bool):
        self.tree = tree
        self.files = self.bytes = 0
        """Files that were published, and bytes that were received."""
        self._algorithm = algorithm
        self._most_packs = WINDOW // 2 if durable else 1
        self._taken: list[Failed] = []
        self._added: list[tuple[Failed, int]] = []
        self._folders: list[tuple[Failed, int, tuple[str, int, int]]] = []
        self._since = 0.0

    @property
    def waiting(self) -> int:
        """Packs that were taken and not yet committed."""
        return len(self._taken)

    @property
    def is_due(self) -> bool:
        """Whether the group should be committed now."""
        return bool(self._taken) and (
            len(self._taken) >= self._most_packs or self.tree.is_full or time.monotonic() - self._since >= GROUP_SECONDS
        )

    def take(self, pack: PackRows, body: memoryview) -> Failed:
        """Stage what a pack holds; return what has failed so far, which `commit` adds to.

        Raises ProtocolError for a pack that does not add up, DiskError if the disk is full.
        """
        if sum(row[1] for row in pack.files) != len(body):
            raise ProtocolError("a pack whose sizes do not add up to its body")
        if not self._taken:
            self._since = time.monotonic()
        failed: Failed = {}
        self._taken.append(failed)
        self._take_files(pack, body, failed)
        row = len(pack.files)
        for path, target, mtime_ns in pack.links:
            try:
                paths.check_link(path, target)
                self.tree.link(path, target, mtime_ns)
            except FtransferError as exc:
                failed[row] = _unless_full(exc)
            row += 1
        for folder in pack.folders:
            self._folders.append((failed, row, folder))
            row += 1
        for stamp in pack.stamps:
            try:
                self.tree.stamp(*stamp)
            except FtransferError as exc:
                failed[row] = exc
            row += 1
        for path in pack.gone:
            try:
                self.tree.remove(path)
            except FtransferError as exc:
                failed[row] = exc
            row += 1
        return failed

    def _take_files(self, pack: PackRows, body: memoryview, failed: Failed) -> None:
        at = 0
        is_default = self._algorithm == digests.DEFAULT
        for row, (path, size, hex_digits, mtime_ns, mode) in enumerate(pack.files):
            data = body[at : at + size]
            at += size
            if (digests.block_hash(data) if is_default else self._hash(data)) != hex_digits:
                failed[row] = IntegrityError("it arrived damaged", path=path)
                continue
            try:
                self._add(path, data, mtime_ns, mode)
            except FtransferError as exc:
                failed[row] = _unless_full(exc)
            else:
                self._added.append((failed, row))
        self.bytes += at

    def _add(self, path: str, data: memoryview, mtime_ns: int, mode: int) -> None:
        """Stage a file; on a full disk publish first what is staged, which may make room."""
        try:
            self.tree.add(path, data, mtime_ns, mode)
        except DiskError:
            if not self._added:
                raise
            self._publish()
            self.tree.add(path, data, mtime_ns, mode)

    def _publish(self, folders: Sequence[tuple[str, int, int]] = ()) -> Failed:
        """Commit what was added, note which files failed, and return which folders did."""
        added, self._added = self._added, []
        bad_files, bad_folders = self.tree.commit(folders)
        self.files += len(added) - len(bad_files)
        for at, exc in bad_files.items():
            failed, row = added[at]
            failed[row] = exc
        return bad_folders

    def _hash(self, data: memoryview) -> str:
        hasher = digests.new(self._algorithm)
        hasher.update(data)
        return hasher.hexdigest()

    def commit(self) -> list[Failed]:
        """Publish the group; return what failed of each of its packs, in order. May take long."""
        # Folders last: each file that gets its name changes the folder's time.
        bad_folders = self._publish([folder for _, _, folder in self._folders])
        for at, exc in bad_folders.items():
            failed, row, _ = self._folders[at]
            failed[row] = exc
        taken, self._taken, self._folders = self._taken, [], []
        return taken


def _unless_full(exc: FtransferError) -> FtransferError:
    """Return the error of one file; raise it if it is the disk's, because the others would fail, too."""
    if isinstance(exc, DiskError):
        raise exc
    return exc


def receipts(t: int, outcomes: list[Failed], *, durable: bool) -> Iterator[wire.Receipts]:
    """Yield the messages that answer a group of packs."""
    why: dict[tuple[str, str], int] = {}
    rows: list[tuple[int, int, int]] = []
    for pack, failed in enumerate(outcomes):
        for row, exc in failed.items():
            reason = (exc.code, paths.short(exc.message, TEXT))
            if reason not in why and len(why) >= MOST_REASONS - 1:
                reason = MANY_REASONS
            rows.append((pack, row, why.setdefault(reason, len(why))))
    while len(rows) > wire.MAX_FAILED:
        yield wire.Receipts(t=t, packs=0, failed=rows[: wire.MAX_FAILED], why=list(why), more=True)
        rows = rows[wire.MAX_FAILED :]
    yield wire.Receipts(t=t, packs=len(outcomes), failed=rows, why=list(why), durable=durable)

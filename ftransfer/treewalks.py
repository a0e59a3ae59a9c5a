"""What a folder holds, here or on the server, entry by entry, as a transfer wants it. Used by `treejobs`."""

from __future__ import annotations

from collections.abc import Iterator

from ftransfer import wire
from ftransfer.asking import stream_rows
from ftransfer.channel import Channel
from ftransfer.errors import BadPath, FtransferError
from ftransfer.link import Link
from ftransfer.store import base
from ftransfer.store.base import Entry, OnError
from ftransfer.store.local import LocalStore
from ftransfer.tally import Tally
from ftransfer.weighing import Choices


def local_entries(store: LocalStore, choices: Choices, on_error: OnError) -> Iterator[Entry]:
    """Return the walk of a local folder, without what the filter leaves out."""
    entries = store.entries(
        "",
        recursive=True,
        follow=choices.links == "follow",
        on_error=_unless_excluded(choices, on_error),
        enters=choices.filter.takes_folder,
    )
    return entries if choices.filter.is_empty else choices.filter.select(entries)


def _unless_excluded(choices: Choices, on_error: OnError) -> OnError:
    """Return what tells of problems but for those with names that the filter excludes."""

    def told(path: str, exc: FtransferError) -> None:
        if choices.filter.takes_folder(path) and not (
            isinstance(exc, BadPath) and not choices.filter.takes_file(path, 0, base.MAX_TIME)
        ):
            on_error(path, exc)

    return told


def remote_entries(link: Link, where: str, choices: Choices, on_error: OnError) -> Iterator[Entry]:
    """Return what the server lists below a folder, without what the filter leaves out.

    `link` serves this alone, unless it is single; a listing that was cut goes on after the last entry that came.
    """
    entries = _listed(link, where, choices.links, _unless_excluded(choices, on_error))
    return entries if choices.filter.is_empty else choices.filter.select(entries)


def _listed(link: Link, where: str, links: str, on_error: OnError) -> Iterator[Entry]:
    last: list[str] = []

    def ask(channel: Channel) -> tuple[Iterator[Entry], Entry | None]:
        follow = "follow" if links == "follow" else "copy"
        rows = stream_rows(channel, wire.List(t=link.next_t(), path=where, recursive=True, links=follow), on_error)
        return rows, next((row for row in rows if row.path.split("/") > last), None)

    try:
        while True:
            rows, entry = link.run(ask, path=where)
            try:
                while entry is not None:
                    last = entry.path.split("/")
                    yield entry
                    entry = next(rows, None)
                return
            except FtransferError as exc:
                if not exc.retryable:
                    raise
                link.drop()
    finally:
        if not link.is_single or not link.is_idle:
            link.drop()


def walk_for_deleting(store: LocalStore, choices: Choices, tally: Tally) -> Iterator[Entry]:
    """Return the walk of a source with what was left out for its size or time: it is there, and not missing."""

    def failed(path: str, exc: FtransferError) -> None:
        if not tally.failed:  # else it was told already
            tally.fail(path, exc)

    return store.entries(
        "", recursive=True, follow=choices.links == "follow", on_error=failed, enters=choices.filter.takes_folder
    )

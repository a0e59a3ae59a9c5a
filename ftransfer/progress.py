"""What happened, told to an observer as it happens; knows no terminal.

An observer is a callable that takes a `Progress`. It is called in the thread that does the work, so it has to be quick.
Called by the sending and receiving loops and the client; `cli.bars` is one observer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """Where one file stands, or a tree.

    `phase` is one word: listing, sending, receiving, waiting, verifying, hashing, syncing, retrying, done. `done` and
    `total` are bytes of that phase; `total` is None for a stream. `inherited` bytes were there before, and count for
    no rate.
    `note` is for people, where there is something to say. Of a tree, `is_tree`, it tells of the whole: `files` are
    done, `total_files` counted so far; `total` is None while it is still counted. `is_part` tells of a large file in
    it.
    """

    phase: str
    path: str
    done: int
    total: int | None
    inherited: int = 0
    note: str = ""
    files: int = 0
    total_files: int = 0
    is_tree: bool = False
    is_part: bool = False


Observer = Callable[[Progress], None]


def ignore(event: Progress) -> None:
    """Take an event and do nothing; the observer where none was given."""

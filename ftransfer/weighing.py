"""What becomes of each entry of a tree: sent, left, given another time, or hashed first. Used for both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypedDict

from ftransfer import digests, paths
from ftransfer.errors import BadPath, FtransferError
from ftransfer.filters import Filter
from ftransfer.modes import Modes
from ftransfer.receiving import decide
from ftransfer.store.base import FILE, FOLDER, LINK, Description, Entry
from ftransfer.store.trees import Reader
from ftransfer.tally import Tally

LED_OUT = "symbolic links that lead out of the folder left out"
UNUSABLE = "symbolic links whose target cannot be used left out"
SEND, SAME, SKIPPED, HASH, STAMP = "send", "same", "skipped", "hash", "stamp"

Look = Callable[[list[Entry]], list[Entry | None]]
"""Returns what the destination has of a page of entries."""
EVERYTHING = Filter()
"""The filter that takes all."""


class TreeOptions(TypedDict, total=False):
    """What may be said of transfers of folders, beside what may be said of any: see `Remote.upload`."""

    links: str
    filter: Filter
    modes: Modes
    delete: bool
    dry_run: bool


class Choices(NamedTuple):
    """What the user wants of a transfer: see `Remote.upload`."""

    compare: str = "quick"
    if_exists: str = "replace"
    resume: bool = True
    algorithm: str = digests.DEFAULT
    links: str = "copy"
    modes: Modes | None = None
    filter: Filter = EVERYTHING

    @property
    def may_touch(self) -> bool:
        """Whether a file that is there, and the same, may get another time or mode."""
        return self.if_exists in ("replace", "newer")

    def mode(self, entry: Entry) -> int:
        """Return the permission bits that an entry is to get."""
        if self.modes is None:
            return entry.mode & 0o777
        return self.modes.file(entry.mode) if entry.kind == FILE else self.modes.folder(entry.mode)


def is_wanted(entry: Entry, choices: Choices, tally: Tally, reader: Reader | None) -> bool:
    """Tell whether an entry is a file, or a link that can be sent; what is left out is noted, folders in silence.

    Arguments: `reader` of the source, where that is here; else the other side says what a link is when it sends it.
    """
    if entry.kind == FILE:
        return True
    if entry.kind == LINK and choices.links != "skip":
        return reader is None or _stays_inside(entry, tally, reader)
    if entry.kind != FOLDER:
        tally.note(f"{'symbolic links' if entry.kind == LINK else 'special files'} left out")
    return False


def _stays_inside(entry: Entry, tally: Tally, reader: Reader) -> bool:
    try:
        paths.check_link(entry.path, reader.target(entry.path))
    except BadPath as exc:
        tally.note(LED_OUT if "leads out" in exc.message else UNUSABLE)
        return False
    except FtransferError as exc:
        tally.fail(entry.path, exc, at_source=True)
        return False
    return True


def weigh(entry: Entry, found: Entry | None, choices: Choices, clock_ns: int) -> str:
    """Return SEND, SAME, SKIPPED, HASH (both ends, then `settle`) or STAMP.

    Arguments: `entry` at the source, `found` at the destination; `clock_ns`, the coarser resolution of times of both.
    Raises AlreadyExists for `if_exists=fail`, NotAFile for what no file may replace.
    """
    if found is None:
        return SEND
    can_be_same = entry.kind == FILE == found.kind and entry.size == found.size
    if choices.compare == "hash" and can_be_same:
        return HASH
    outcome = _decide(entry, found, choices, clock_ns)
    if outcome == SAME:
        is_other = entry.kind == FILE and found.mode & 0o777 != choices.mode(entry)
        return STAMP if is_other and choices.may_touch else SAME
    if outcome is None and choices.compare == "quick" and can_be_same:
        return HASH if entry.size else STAMP if choices.may_touch else SAME
    return outcome or SEND


def settle(entry: Entry, found: Entry, choices: Choices, clock_ns: int, *, equal: bool) -> str:
    """Return what becomes of an entry once both ends were hashed: SEND, SAME, SKIPPED or STAMP. Raises as `weigh`."""
    if not equal:
        return _decide(entry, found, choices._replace(compare="none"), clock_ns) or SEND
    is_stamped = _decide(entry, found, Choices(), clock_ns) == SAME and found.mode & 0o777 == choices.mode(entry)
    return STAMP if choices.may_touch and not is_stamped else SAME


def _decide(entry: Entry, found: Entry, choices: Choices, clock_ns: int) -> str | None:
    compare = "quick" if choices.compare == "quick" else "none"
    if entry.kind == LINK:
        if choices.compare != "none" and found.kind == LINK and entry[2:4] == found[2:4]:  # size and time
            return SAME
        compare = "none"
    wanted = Description(entry.path, entry.size, mtime_ns=entry.mtime_ns, if_exists=choices.if_exists)
    return decide(found, wanted, compare, lambda: clock_ns)

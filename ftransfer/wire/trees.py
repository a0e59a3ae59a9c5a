"""The messages about many files at once: packs, and questions about many names (docs/protocol.md, "Trees")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ftransfer import digests
from ftransfer.wire.rules import (
    BOOL,
    CODE,
    FOLDER,
    HASH,
    KINDS,
    LINKS,
    MAX_FAILED,
    MAX_INT,
    MAX_PACK,
    MAX_ROWS,
    MIN_BLOCK,
    MODE,
    NAME,
    OPTIONAL_SIZE,
    SIZE,
    TEXT,
    TIME,
    Message,
    Rule,
    T,
    field,
    integer,
    many,
    one_of,
)


def rows(words: str, *rules: Rule, most: int = MAX_ROWS, root: bool = False, named: bool = False) -> Rule:
    """Return the rule for a list of rows, each a list of values that keep these rules.

    Arguments: `named`, the first value of each is a path; `root`, and may be empty.
    """
    width = len(rules)
    checks = tuple(rule.holds for rule in rules)

    def holds(value: Any) -> bool:
        if type(value) not in (tuple, list) or len(value) > most:
            return False
        for row in value:
            if type(row) not in (tuple, list) or len(row) != width:
                return False
            for check, item in zip(checks, row, strict=True):
                if not check(item):
                    return False
        return True

    names: Callable[[Any], list[str]] | None = (lambda value: [row[0] for row in value]) if named else None
    return Rule(f"list of at most {most} rows {words}", holds, names, root)


def _are_files(value: Any) -> bool:
    """Tell whether a value is the rows of packed files; written out, because it is called for each file."""
    if type(value) not in (tuple, list) or len(value) > MAX_ROWS:
        return False
    is_hash = HASH.holds
    for row in value:
        if type(row) not in (tuple, list) or len(row) != 5:
            return False
        path, size, hex_digits, mtime, mode = row
        if type(path) is not str or type(size) is not int or type(mtime) is not int or type(mode) is not int:
            return False
        if not (0 <= size <= MAX_PACK and -MAX_INT <= mtime <= MAX_INT and 0 <= mode <= 0o7777 and is_hash(hex_digits)):
            return False
    return True


def _is_found(value: Any) -> bool:
    if value is None:
        return True
    if type(value) not in (tuple, list) or len(value) != 4:
        return False
    kind, size, mtime, mode = value
    if type(size) is not int or type(mtime) is not int or type(mode) is not int or kind not in KINDS:
        return False
    return 0 <= size <= MAX_INT and -MAX_INT <= mtime <= MAX_INT and 0 <= mode <= 0o7777


def _is_digest(value: Any) -> bool:
    if type(value) not in (tuple, list) or len(value) != 2:
        return False
    first, second = value
    return (SIZE.holds(first) and HASH.holds(second)) or (CODE.holds(first) and TEXT.holds(second))


STRING = Rule("text", lambda v: type(v) is str)
FILES = Rule(
    f"list of at most {MAX_ROWS} rows [path, size, hash, mtime_ns, mode]",
    _are_files,
    lambda value: [row[0] for row in value],
)
NAMES = Rule(
    f"list of at most {MAX_ROWS} paths",
    lambda v: type(v) in (tuple, list) and len(v) <= MAX_ROWS and all(type(name) is str for name in v),
    lambda v: v,
)
ALGORITHM = one_of(*digests.TRANSFER_ALGORITHMS)


class Tree(Message):
    """Client: I will send files below this folder, many at a time; answered by `ready`."""

    t: int = field(T)
    path: str = field(FOLDER)
    algorithm: str = field(ALGORITHM, default=digests.DEFAULT)
    if_exists: str = field(one_of("replace", "newer", "skip", "fail"), default="replace")


class Ready(Message):
    """Server: what there is: whether the folder holds anything, the room on its disk, the habits of its names."""

    t: int = field(T)
    exists: bool = field(BOOL)
    free_bytes: int | None = field(OPTIONAL_SIZE, default=None)
    free_files: int | None = field(OPTIONAL_SIZE, default=None)
    clock_ns: int = field(integer(1, 10**10, "integer, nanoseconds, 1 to 10^10"), default=1)
    folds: list[str] = field(many(one_of("case", "form"), 2, 'list of "case" and "form"'), default=())
    window: int = field(integer(1, 1024, "integer, packs, 1 to 1024"), default=32)


class Pack(Message):
    """Sender: whole files, their bytes back to back in the body; and links, folders, new times for what is there.

    `gone` are files, links and empty folders to be removed.
    `failed` are files that were asked for and cannot be sent. `now` asks for the answer at once: nothing more comes
    before it.
    """

    t: int = field(T)
    files: list[tuple[str, int, str, int, int]] = field(FILES, default=())
    links: list[tuple[str, str, int]] = field(
        rows("[path, target, mtime_ns]", STRING, NAME, TIME, named=True), default=()
    )
    folders: list[tuple[str, int, int]] = field(
        rows('[path or "", mtime_ns, mode]', STRING, TIME, MODE, named=True, root=True), default=()
    )
    stamps: list[tuple[str, int, int]] = field(
        rows("[path, mtime_ns, mode]", STRING, TIME, MODE, named=True), default=()
    )
    gone: list[str] = field(NAMES, default=())
    failed: list[tuple[str, str, str]] = field(
        rows("[path, code, message]", STRING, CODE, TEXT, named=True), default=()
    )
    now: bool = field(BOOL, default=False)
    body: int = field(integer(0, MAX_PACK, f"integer, the sum of the sizes, 0 to {MAX_PACK}"), default=0)


class Receipts(Message):
    """Receiver: so many packs more are stored, in the order in which they came, but for the rows that failed."""

    t: int = field(T)
    packs: int = field(integer(0, 1024, "integer, 0 to 1024; 0 while `more`"))
    failed: list[tuple[int, int, int]] = field(
        rows("[pack, row, place in `why`], all counted from 0", SIZE, SIZE, SIZE, most=MAX_FAILED), default=()
    )
    why: list[tuple[str, str]] = field(rows("[code, message]", CODE, TEXT, most=64), default=())
    durable: bool = field(BOOL, default=False)
    more: bool = field(BOOL, default=False)


class Finish(Message):
    """Sender: that was all of the tree; every pack has been answered before."""

    t: int = field(T)


class Fetch(Message):
    """Client: send these files below this folder, in packs; then comes `done`."""

    t: int = field(T)
    path: str = field(FOLDER)
    names: list[str] = field(NAMES)
    algorithm: str = field(ALGORITHM, default=digests.DEFAULT)
    links: str = field(LINKS, default="copy")
    most: int = field(integer(MIN_BLOCK, MAX_PACK, f"integer, bytes of a pack, 65536 to {MAX_PACK}"), default=1 << 20)


class Stats(Message):
    """Client: what is at each of these names below this folder; answered by `found`."""

    t: int = field(T)
    path: str = field(FOLDER)
    names: list[str] = field(NAMES)


class Found(Message):
    """Server: for each name what is there, or null."""

    t: int = field(T)
    rows: list[tuple[str, int, int, int] | None] = field(
        many(Rule("", _is_found), MAX_ROWS, f"list of at most {MAX_ROWS} rows [kind, size, mtime_ns, mode] or null")
    )


class Checksums(Message):
    """Client: read and hash these files below this folder; answered by `digests`."""

    t: int = field(T)
    path: str = field(FOLDER)
    names: list[str] = field(NAMES)
    algorithm: str = field(one_of(*digests.CHECKSUM_ALGORITHMS), default=digests.DEFAULT)
    links: str = field(LINKS, default="copy")


class Digests(Message):
    """Server: for each name, in order, its size and hash, or the code and message of what went wrong."""

    t: int = field(T)
    rows: list[tuple[int, str] | tuple[str, str]] = field(
        many(Rule("", _is_digest), MAX_ROWS, f"list of at most {MAX_ROWS} rows [size, hash] or [code, message]")
    )
    more: bool = field(BOOL, default=False)

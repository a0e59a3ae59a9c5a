"""The messages of version 1, as immutable objects that are valid once they are built (docs/protocol.md, "Messages")."""

from __future__ import annotations

from ftransfer import digests
from ftransfer.wire.rules import (
    BOOL,
    CODE,
    FINGERPRINT,
    FOLDER,
    HASH,
    LINKS,
    MAX_BLOCK,
    MAX_HEADER,
    MAX_RANGES,
    MAX_ROWS,
    MIN_BLOCK,
    MODE,
    OPTIONAL_SIZE,
    PATH,
    SECRET,
    SIZE,
    TEXT,
    TIME,
    TOKEN,
    USER,
    WINDOW,
    WORDS,
    Message,
    Rule,
    T,
    field,
    integer,
    is_failure,
    is_partial,
    is_range,
    is_row,
    many,
    one_of,
    or_null,
)

# Opening. The client speaks first; nothing else is read before.


class Hello(Message):
    """Client: the first message; `former` is the session that this connection replaces.

    `token` proves who asks, null for a stranger; `user` is whose token it has to be, null for anybody's.
    """

    versions: list[int] = field(many(integer(1, 1 << 16, ""), 16, "list of at most 16 integers"))
    software: str = field(TEXT)
    features: list[str] = field(WORDS, default=())
    former: str | None = field(or_null(TOKEN), default=None)
    token: str | None = field(or_null(SECRET), default=None)
    user: str | None = field(or_null(USER), default=None)

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.__dict__.items() if name != "token"}
        return f"Hello({', '.join(f'{name}={value!r}' for name, value in shown.items())})"  # a secret is shown nowhere


class Welcome(Message):
    """Server: the answer to hello, with what holds on this connection.

    `user` is who was let in, who `can` do this; `blocks` is what blocks are hashed with.
    """

    version: int = field(integer(1, 1 << 16, "integer, one of those offered"))
    software: str = field(TEXT)
    session: str = field(TOKEN)
    features: list[str] = field(WORDS, default=())
    blocks: str = field(one_of(*digests.BLOCKS), default=digests.DEFAULT)
    user: str | None = field(or_null(USER), default=None)
    can: list[str] = field(WORDS, default=("create", "read", "replace", "delete"))
    read_only: bool = field(BOOL, default=False)
    durable: bool = field(BOOL, default=True)
    max_header: int = field(integer(1024, 1 << 24, "integer, bytes, 1024 to 16777216"), default=MAX_HEADER)
    max_block: int = field(integer(MIN_BLOCK, MAX_BLOCK, "integer, bytes, 65536 to 4194304"), default=MAX_BLOCK)
    window: int = field(integer(1, 1024, "integer, 1 to 1024"), default=WINDOW)


# One file, in either direction. `t` numbers it; the client chooses, always a larger one than before.


class Put(Message):
    """Client: I will send this file; with `wait` not before you have said what you want of it.

    `transfer` names the attempt, so that a lost receipt can be asked for again.
    """

    t: int = field(T)
    path: str = field(PATH)
    size: int | None = field(OPTIONAL_SIZE)
    fingerprint: str | None = field(or_null(FINGERPRINT), default=None)
    mtime_ns: int | None = field(or_null(TIME), default=None)
    mode: int | None = field(or_null(MODE), default=None)
    algorithm: str = field(one_of(*digests.TRANSFER_ALGORITHMS), default=digests.DEFAULT)
    transfer: str | None = field(or_null(TOKEN), default=None)
    compare: str = field(one_of("quick", "none"), default="none")
    if_exists: str = field(one_of("replace", "newer", "skip", "rename", "fail"), default="replace")
    resume: bool = field(BOOL, default=True)
    wait: bool = field(BOOL, default=False)


class Get(Message):
    """Client: send me this file; with `wait` not before I have said what I want of it."""

    t: int = field(T)
    path: str = field(PATH)
    algorithm: str = field(one_of(*digests.TRANSFER_ALGORITHMS), default=digests.DEFAULT)
    wait: bool = field(BOOL, default=False)
    links: str = field(LINKS, default="copy")


class File(Message):
    """Sender: what the file asked for by `get` is."""

    t: int = field(T)
    size: int = field(SIZE)
    fingerprint: str | None = field(or_null(FINGERPRINT), default=None)
    mtime_ns: int | None = field(or_null(TIME), default=None)
    mode: int | None = field(or_null(MODE), default=None)


class Want(Message):
    """Receiver: the ranges still missing, as [offset, length]; a null length means to the end."""

    t: int = field(T)
    ranges: list[tuple[int, int | None]] = field(
        many(Rule("", is_range), MAX_RANGES, f"list of at most {MAX_RANGES} pairs [offset, length or null]")
    )
    more: bool = field(BOOL, default=False)


class Block(Message):
    """Sender: `body` bytes that belong at `offset`, and their XXH3-128."""

    t: int = field(T)
    offset: int = field(SIZE)
    hash: str = field(TOKEN)
    body: int = field(integer(1, MAX_BLOCK, f"integer, 1 to {MAX_BLOCK}"))


class Hole(Message):
    """Sender: `length` zeros at `offset`, without a body."""

    t: int = field(T)
    offset: int = field(SIZE)
    length: int = field(integer(1, MAX_BLOCK, f"integer, 1 to {MAX_BLOCK}"))


class Stored(Message):
    """Receiver: the answer to each block and hole; `ok` is false when the bytes did not match their hash."""

    t: int = field(T)
    offset: int = field(SIZE)
    ok: bool = field(BOOL)


class End(Message):
    """Sender: that was all of it; the whole file has this size and this hash."""

    t: int = field(T)
    path: str = field(PATH)
    size: int = field(SIZE)
    hash: str = field(HASH)


class Receipt(Message):
    """Receiver: the transfer is over and well; `path` is the name that the file got."""

    t: int = field(T)
    result: str = field(one_of("stored", "same", "skipped"))
    path: str = field(PATH)
    size: int | None = field(OPTIONAL_SIZE, default=None)
    hash: str | None = field(or_null(HASH), default=None)
    durable: bool = field(BOOL, default=False)
    inherited: int = field(SIZE, default=0)


class Working(Message):
    """Either: I am busy, not dead; said every 2 s."""

    t: int = field(T)
    phase: str = field(CODE)
    done: int = field(SIZE)
    total: int | None = field(OPTIONAL_SIZE, default=None)


class Error(Message):
    """Either: transfer or request `t` has failed; without `t` the connection has, and ends."""

    t: int | None = field(or_null(T), default=None)
    code: str = field(CODE)
    message: str = field(TEXT)
    hint: str = field(TEXT, default="")


# File operations. Each has one final answer, or an error.


class List(Message):
    """Client: the entries of a folder, sorted by name in each folder; answered by `entries`."""

    t: int = field(T)
    path: str = field(FOLDER)
    recursive: bool = field(BOOL, default=False)
    links: str = field(LINKS, default="copy")


class Stat(Message):
    """Client: what is at this path; answered by `entries` with one row."""

    t: int = field(T)
    path: str = field(FOLDER)


class Entries(Message):
    """Server: a page of rows [name, kind, size, mtime_ns, mode]; the last page has `more` false.

    `failed` are names that cannot be used, and folders that cannot be read.
    """

    t: int = field(T)
    rows: list[tuple[str, str, int, int, int]] = field(
        many(Rule("", is_row), MAX_ROWS, f"list of at most {MAX_ROWS} rows [name, kind, size, mtime_ns, mode]")
    )
    failed: list[tuple[str, str, str]] = field(
        many(Rule("", is_failure), MAX_ROWS, f"list of at most {MAX_ROWS} rows [name as shown, code, message]"),
        default=(),
    )
    more: bool = field(BOOL, default=False)


class Checksum(Message):
    """Client: read the file and hash it there; answered by `digest`."""

    t: int = field(T)
    path: str = field(PATH)
    algorithm: str = field(one_of(*digests.CHECKSUM_ALGORITHMS), default=digests.DEFAULT)


class Digest(Message):
    """Server: the hash of the whole file, as it was read just now."""

    t: int = field(T)
    size: int = field(SIZE)
    hash: str = field(HASH)


class Mkdir(Message):
    """Client: make a folder; with `parents` also those above it, and it may exist."""

    t: int = field(T)
    path: str = field(PATH)
    parents: bool = field(BOOL, default=False)


class Remove(Message):
    """Client: remove a file or an empty folder; with `recursive` a folder and all below it."""

    t: int = field(T)
    path: str = field(PATH)
    recursive: bool = field(BOOL, default=False)


class Move(Message):
    """Client: give a file or folder another name; a name that is taken is never replaced."""

    t: int = field(T)
    path: str = field(PATH)
    target: str = field(PATH)


class Done(Message):
    """Server: the operation is done."""

    t: int = field(T)


class Partials(Message):
    """Client: what is staged and unfinished below this path; with `clear` drop what nobody is writing."""

    t: int = field(T)
    path: str = field(FOLDER)
    clear: bool = field(BOOL, default=False)


class Staged(Message):
    """Server: a page of rows [path, size or null, bytes held, mtime_ns of the last of them]."""

    t: int = field(T)
    rows: list[tuple[str, int | None, int, int]] = field(
        many(Rule("", is_partial), MAX_ROWS, f"list of at most {MAX_ROWS} rows [path, size or null, held, mtime_ns]")
    )
    more: bool = field(BOOL, default=False)


class Ping(Message):
    """Client: are you there."""

    t: int = field(T)


class Pong(Message):
    """Server: yes; `facts` are lines "name: value" about its end of the connection, for people."""

    t: int = field(T)
    facts: list[str] = field(WORDS, default=())

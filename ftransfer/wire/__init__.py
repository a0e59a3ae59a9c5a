"""The wire format: messages as immutable objects (`messages`), and the only code that packs and parses a peer's bytes.

A frame is a 4-byte big-endian length, that many bytes of UTF-8 JSON (one object, the header), and as many body bytes as
the header's `body` says. This module turns a header's bytes into a message or raises one `FtransferError`; a message
that exists is valid. It does no I/O and keeps no state; `channel` moves the bytes, `session` knows what may come when.
The specification is docs/protocol.md; the vectors in tests/vectors/ run against this module.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any, NoReturn

from ftransfer import paths
from ftransfer.errors import FrameError, FtransferError, UnknownMessage
from ftransfer.wire.messages import (
    Block,
    Checksum,
    Digest,
    Done,
    End,
    Entries,
    Error,
    File,
    Get,
    Hello,
    Hole,
    List,
    Mkdir,
    Move,
    Partials,
    Ping,
    Pong,
    Put,
    Receipt,
    Remove,
    Staged,
    Stat,
    Stored,
    Want,
    Welcome,
    Working,
)
from ftransfer.wire.rules import (
    BY_TYPE,
    MAX_BLOCK,
    MAX_FAILED,
    MAX_HEADER,
    MAX_INT,
    MAX_NESTING,
    MAX_PACK,
    MAX_RANGES,
    MAX_ROWS,
    MAX_TEXT,
    MAX_WANTED,
    MIN_BLOCK,
    PAGE_BYTES,
    VERSION,
    WINDOW,
    Message,
    RefusedName,
)
from ftransfer.wire.trees import (
    Checksums,
    Digests,
    Fetch,
    Finish,
    Found,
    Pack,
    Ready,
    Receipts,
    Stats,
    Tree,
)

__all__ = [
    "BY_TYPE",
    "LENGTH",
    "MAX_BLOCK",
    "MAX_FAILED",
    "MAX_HEADER",
    "MAX_INT",
    "MAX_NESTING",
    "MAX_PACK",
    "MAX_RANGES",
    "MAX_ROWS",
    "MAX_TEXT",
    "MAX_WANTED",
    "MIN_BLOCK",
    "PAGE_BYTES",
    "VERSION",
    "WINDOW",
    "Block",
    "Checksum",
    "Checksums",
    "Digest",
    "Digests",
    "Done",
    "End",
    "Entries",
    "Error",
    "Fetch",
    "File",
    "Finish",
    "Found",
    "Get",
    "Hello",
    "Hole",
    "List",
    "Message",
    "Mkdir",
    "Move",
    "Pack",
    "Partials",
    "Ping",
    "Pong",
    "Put",
    "Ready",
    "Receipt",
    "Receipts",
    "RefusedName",
    "Remove",
    "Staged",
    "Stat",
    "Stats",
    "Stored",
    "Tree",
    "Want",
    "Welcome",
    "Working",
    "encode",
    "error_message",
    "parse",
    "parse_length",
]

LENGTH = struct.Struct("!I")
"""What stands before every header: its length in bytes, big-endian."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise FrameError("the header has the same key twice")
    return made


def _bounded_int(digits: str) -> int:
    if len(digits) > 20:
        raise FrameError("the header has an integer of more than 20 digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise FrameError(f"the header has {name}, which is not JSON")


_decode_json = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant).decode
_decode_json_with_care = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_int=_bounded_int, parse_constant=_no_constant
).decode
_long_number = re.compile(r"(?<![0-9])[0-9]{21}").search
_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _is_deep(made: Any) -> bool:
    """Tell whether objects and lists stand in each other more than MAX_NESTING deep, without recursion."""
    level = [made]
    for _ in range(MAX_NESTING):
        inner = (child for one in level for child in (one.values() if type(one) is dict else one))
        level = [child for child in inner if type(child) in (dict, list)]
        if not level:
            return False
    return True


def parse_length(prefix: bytes | bytearray | memoryview) -> int:
    """Return the header's length from the 4 bytes before it. Raises FrameError outside 2 to MAX_HEADER."""
    length: int = LENGTH.unpack(prefix)[0]
    if not 2 <= length <= MAX_HEADER:
        raise FrameError(
            f"the header is said to have {length} bytes, 2 to {MAX_HEADER} are allowed",
            hint="is this really an ftransfer address?",
        )
    return length


def parse(header: bytes | bytearray | memoryview) -> Message:
    """Return the message in a header.

    Fields that are not known are ignored. Raises FrameError for what is no frame, UnknownMessage for a type of another
    version, RefusedName for a request with a name that may not be used; never anything else, whatever the bytes.
    """
    try:
        text = str(header, "utf-8")
        # A hook for every integer is slow, and only a long row of digits, mostly in a hash, can be too long a one.
        made = (_decode_json if _long_number(text) is None else _decode_json_with_care)(text)
    except FrameError:
        raise
    except UnicodeDecodeError:
        raise FrameError("the header is not UTF-8") from None
    except RecursionError:
        raise FrameError("the header is nested too deep") from None
    except ValueError:
        raise FrameError("the header is not JSON") from None
    if type(made) is not dict:
        raise FrameError("the header is not a JSON object")
    name = made.pop("type", None)
    cls = BY_TYPE.get(name) if type(name) is str else None
    if cls is None:
        raise UnknownMessage(f"unknown message type {str(name)[:40]!r}")
    # A known field that is nested deeper than its rule says breaks the rule; the others are looked at here.
    more = {key: value for key, value in made.items() if key not in cls.fields}
    if more and text.count("[") + text.count("{") > MAX_NESTING and _is_deep(more):
        raise FrameError(f"the header is nested more than {MAX_NESTING} deep")
    if "body" in made and "body" not in cls.fields and made["body"] != 0:
        raise FrameError(f"{name}: this message has no body")
    return cls(**made)


def encode(message: Message) -> bytes:
    """Return the frame of a message without its body: length and header. Fields at their default are left out."""
    made: dict[str, Any] = {"type": message.type}
    values = message.__dict__
    for name, (_, default) in message.fields.items():
        if values[name] != default:
            made[name] = values[name]
    header = _encode_json(made).encode()
    if len(header) > MAX_HEADER:
        raise FrameError(f"{message.type}: the header would have {len(header)} bytes")
    return LENGTH.pack(len(header)) + header


def error_message(exc: FtransferError, t: int | None = None) -> Error:
    """Return the message that reports an exception; names in it are shown escaped and its text is cut to size."""
    where = f"{paths.printable(exc.path)}: " if exc.path else ""
    text = (where + exc.message).encode("utf-8", "replace").decode()
    return Error(t=t, code=exc.code, message=text[:MAX_TEXT], hint=exc.hint[:MAX_TEXT])

"""Digests of whole files and of blocks, and the checksum files that `xxhsum` and `sha256sum` read and write.

A file's digest is the plain XXH3-128 of its bytes (seed 0), written `xxh128:<32 hex>`; `xxhsum -H2` prints the same
hex. xxHash finds accidents, not attackers. Called by the sending and receiving loops, the stores, the client and the
command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, Self

from ftransfer import xxh
from ftransfer.errors import FtransferError, UsageError
from ftransfer.xxh import xxh3_128, xxh3_128_hexdigest

DEFAULT = "xxh128"
BLOCK_HEX = 32
"""Hexadecimal digits of a block's hash, by whichever of BLOCKS."""
block_hash: Callable[[bytes | bytearray | memoryview], str] = xxh3_128_hexdigest


class Hasher(Protocol):
    """What every algorithm offers: feed bytes, copy the state, read the result."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Self: ...


BLOCKS = (DEFAULT, "blake2b")
"""What blocks may be hashed with: the second where an end has no xxHash but in plain Python, which is very slow."""


SLOW = "slow-xxh128"
"""What a client says in hello that has no xxHash."""


def is_quick() -> bool:
    """Tell whether XXH3 is computed by a library here."""
    return xxh.SOURCE != "python"


def new_block(algorithm: str = DEFAULT) -> Hasher:
    """Return a fresh hasher of one block, with BLOCK_HEX digits; `algorithm` is one of BLOCKS."""
    if algorithm == DEFAULT:
        return xxh3_128()
    import hashlib

    return hashlib.blake2b(digest_size=BLOCK_HEX // 2, usedforsecurity=False)


HEX_LENGTH = {"xxh128": 32, "sha256": 64, "md5": 32}
TRANSFER_ALGORITHMS = ("xxh128", "sha256")
CHECKSUM_ALGORITHMS = tuple(HEX_LENGTH)


def new(algorithm: str) -> Hasher:
    """Return a fresh hasher. Raises UsageError for an unknown algorithm."""
    if algorithm == "xxh128":
        return xxh3_128()
    if algorithm not in HEX_LENGTH:
        names = ", ".join(HEX_LENGTH)
        raise UsageError(f"unknown algorithm {algorithm!r}", hint=f"choose one of {names}")
    import hashlib  # here, because it loads OpenSSL, which takes longer than all else at start-up

    return hashlib.new(algorithm, usedforsecurity=False)


class Digest(NamedTuple):
    """A digest with the name of its algorithm; `str()` gives `xxh128:0123...`."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Return the digest that `text` spells. Raises UsageError if it spells none."""
        algorithm, _, digits = text.partition(":")
        if len(digits) != HEX_LENGTH.get(algorithm, -1) or not re.fullmatch("[0-9a-f]*", digits):
            raise UsageError(f"not a digest: {text[:80]!r}")
        return cls(algorithm, digits)


class Contiguous:
    """The digest of a whole file whose bytes may pass out of order.

    It takes those that come next and passes the others over.

    `position` bytes from the start are in it. What did not pass in order is read back and fed later.
    """

    def __init__(self, algorithm: str):
        self.algorithm = algorithm
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self.position = 0
        self._hasher = new(self.algorithm)
        self._kept = (0, self._hasher)

    def mark(self) -> None:
        """Keep this state, so that `back` returns to it."""
        self._kept = (self.position, self._hasher.copy())

    def back(self) -> None:
        """Return to the state at `mark`: the bytes since then were damaged."""
        self.position, self._hasher = self._kept

    def feed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Take the bytes at `offset` if they come next, or the part of them that does; else pass them over."""
        end = offset + len(data)
        if offset <= self.position < end:
            self._hasher.update(data if offset == self.position else memoryview(data)[self.position - offset :])
            self.position = end

    def hexdigest(self) -> str:
        """Return the digest of the first `position` bytes."""
        return self._hasher.hexdigest()


class BadLine(FtransferError, ValueError):
    """A line of a checksum file that is none; `number` counts from 1."""

    code = "bad-line"
    exit_status = 2

    def __init__(self, message: str = "", *, number: int = 0):
        super().__init__(message, hint="expected: <hex digits>, two spaces, name")
        self.number = number


class Listed(NamedTuple):
    """One line of a checksum file: the digest in lower case and the name as it was before escaping."""

    hex: str
    name: str
    algorithm: str | None = None
    """As the line says it (`--tag`), else None."""


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_HEX = "(?P<hex>[0-9A-Fa-f]{32,64})"
_GNU = re.compile(rf"(?P<escaped>\\?){_HEX} [ *](?P<name>.+)", re.DOTALL)
_BSD = re.compile(
    r"(?P<escaped>\\?)(?P<tag>XXH128|SHA256|MD5) \((?P<name>.+)\) = (?P<hex>[0-9A-Fa-f]{32,64})", re.DOTALL
)


def format_line(hex_digits: str, name: str) -> str:
    """Return a line as `sha256sum` and `xxhsum` print it, without the newline.

    A name with a backslash, newline or carriage return is escaped and the line begins with a backslash
    (GNU coreutils manual, "cksum output modes").
    """
    escaped = re.sub(r"[\\\n\r]", lambda found: _ESCAPES[found[0]], name)
    mark = "\\" if escaped != name else ""
    return f"{mark}{hex_digits}  {escaped}"


def parse_lines(lines: Iterable[str]) -> Iterator[Listed]:
    """Yield what a checksum file lists; empty lines and lines that begin with `#` are passed over.

    Takes the formats of `xxhsum`, `sha256sum` and `md5sum`, also with `--tag`. Raises BadLine.
    """
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\n").removesuffix("\r")
        if not text or text.startswith("#"):
            continue
        match = _GNU.fullmatch(text) or _BSD.fullmatch(text)
        if match is None or len(match["hex"]) not in HEX_LENGTH.values():
            raise BadLine(f"line {number} is not a checksum line", number=number)
        name = match["name"]
        if match["escaped"]:
            if re.search(r"(?:^|[^\\])(?:\\\\)*\\(?![\\nr])", name):
                raise BadLine(f"line {number} has an unknown escape", number=number)
            name = re.sub(r"\\[\\nr]", lambda found: _UNESCAPES[found[0]], name)
        algorithm = match.groupdict().get("tag", "").lower() or None
        if algorithm and len(match["hex"]) != HEX_LENGTH[algorithm]:
            raise BadLine(f"line {number} is not a checksum line", number=number)
        yield Listed(match["hex"].lower(), name, algorithm)


def guess_algorithm(hex_digits: str, file_name: str = "") -> str:
    """Return the algorithm of a checksum line: by its length, and for 32 digits by the list's own name."""
    if len(hex_digits) == HEX_LENGTH["sha256"]:
        return "sha256"
    return "md5" if "md5" in file_name.lower() else DEFAULT

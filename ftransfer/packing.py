"""The sending side of packs: small files are read into one body, each with a row that says what it is.

The same for an upload, where the client sends, and a download, where the server does.
"""

from __future__ import annotations

import re

from ftransfer import digests, paths, wire
from ftransfer.errors import FtransferError
from ftransfer.store.trees import Reader

TARGET = 1 << 20
"""Bytes after which a pack is closed: what is hot in the cache."""
HEADER = 38 << 10
"""Bytes of rows after which a pack is closed: a row of the longest name still fits into a header."""
ROW = 112
"""Bytes of a row beside the path, in a header."""
ALONE = "alone"
"""Code of a file that was asked for in packs and has to be asked for by itself: it is large, or has holes."""


def row_size(path: str) -> int:
    """Return the bytes that a row may take in a header."""
    if path.isascii() and _is_plain(path) is not None:
        return ROW + len(path)
    return ROW + 6 * len(path)


_is_plain = re.compile(r"[ !#-\[\]-~]*").fullmatch


class Packer:
    """Fills packs for one transfer.

    Arguments: `reader` of the files, if there are any; `buffer` for the body, which the caller may use for other bytes
    between two packs; `target`, bytes after which a pack is closed.
    """

    def __init__(
        self, reader: Reader | None, buffer: memoryview, *, algorithm: str = digests.DEFAULT, target: int = TARGET
    ):
        self.target = target
        self._reader = reader
        self._buffer = buffer
        self._algorithm = algorithm
        self.clear()

    def clear(self) -> None:
        """Begin another pack."""
        self._files: list[tuple[str, int, str, int, int]] = []
        self._links: list[tuple[str, str, int]] = []
        self._folders: list[tuple[str, int, int]] = []
        self._stamps: list[tuple[str, int, int]] = []
        self._gone: list[str] = []
        self._failed: list[tuple[str, str, str]] = []
        self._header = 0
        self._rows = 0
        self._body = 0
        self.mode = 0
        """Of the file that was read last."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self._rows

    def has_room(self, path: str, size: int = 0) -> bool:
        """Tell whether another row fits, with so many bytes of body."""
        if not self._rows:
            return True
        return (
            self._rows < wire.MAX_ROWS and self._body + size <= self.target and self._header + row_size(path) <= HEADER
        )

    def file(self, path: str, size: int = -1, mtime_ns: int = 0) -> tuple[int, str, int] | None:
        """Read a file into the pack, and return its size, hash and time; None if it is not for packs.

        Arguments: what is known of it. Raises what is wrong with the file.
        """
        assert self._reader is not None  # there is one where there are files
        packed = self._reader.read(path, self._buffer[self._body :], size, mtime_ns)
        if packed is None:
            return None
        data = self._buffer[self._body : self._body + packed.size]
        if self._algorithm == digests.DEFAULT:
            hex_digits = digests.block_hash(data)
        else:
            hasher = digests.new(self._algorithm)
            hasher.update(data)
            hex_digits = hasher.hexdigest()
        self._body += packed.size
        self.mode = packed.mode
        return packed.size, hex_digits, packed.mtime_ns

    def add_file(self, path: str, size: int, hex_digits: str, mtime_ns: int, mode: int) -> None:
        """Add the row of the file that was just read."""
        self._files.append((path, size, hex_digits, mtime_ns, mode))
        self._count(path)

    def add_link(self, path: str, target: str, mtime_ns: int) -> None:
        """Add a symbolic link."""
        self._links.append((path, target, mtime_ns))
        self._count(path + target)

    def add_folder(self, path: str, mtime_ns: int, mode: int) -> None:
        """Add a folder's time and mode."""
        self._folders.append((path, mtime_ns, mode))
        self._count(path)

    def add_stamp(self, path: str, mtime_ns: int, mode: int) -> None:
        """Add a file's new time and mode."""
        self._stamps.append((path, mtime_ns, mode))
        self._count(path)

    def add_gone(self, path: str) -> None:
        """Add something to be removed."""
        self._gone.append(path)
        self._count(path)

    def add_failed(self, path: str, code: str, message: str) -> None:
        """Add a file that was asked for and cannot be sent."""
        text = paths.short(message, 200)
        self._failed.append((path, code, text))
        self._count(path + text)

    def fail(self, path: str, exc: FtransferError) -> None:
        """Add a file that cannot be sent, and why."""
        self.add_failed(path, exc.code, exc.message)

    def _count(self, text: str) -> None:
        self._rows += 1
        self._header += row_size(text)

    def take(self, t: int, *, now: bool = False) -> tuple[wire.Pack, memoryview]:
        """Return the pack and its body, good until the buffer is used again; then `clear` it.

        Arguments: `now`, whether it is to be answered at once.
        """
        pack = wire.Pack.of_ours(
            t=t,
            files=self._files or (),
            links=self._links or (),
            folders=self._folders or (),
            stamps=self._stamps or (),
            gone=self._gone or (),
            failed=self._failed or (),
            now=now,
            body=self._body,
        )
        return pack, self._buffer[: self._body]

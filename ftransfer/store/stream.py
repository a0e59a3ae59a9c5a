"""A staging that writes to a stream, such as standard output: in order, each grain when it has been verified.

What went out cannot be taken back, so the caller says at the end whether it was right. A reconnect goes on behind the
last byte that went out.
"""

from __future__ import annotations

from typing import IO

from ftransfer.errors import ProtocolError, SourceChanged, from_os
from ftransfer.store.base import Committed, Grain, Staging

MOST_EARLY = 132 << 20
"""Bytes by which a grain may come too early: a window of the largest blocks behind a damaged one."""


class StreamStaging(Staging):
    """Verified grains go to `out` in order; the one being received and those that come early are kept in memory."""

    keeps_only_early = True

    def __init__(self, out: IO[bytes], name: str):
        self._out = out
        self._name = name
        self._parts: list[bytes] = []
        self._offset = self._length = 0
        self._early: dict[int, bytes] = {}
        self._written = 0
        self.grains = {}
        self.inherited = 0

    def begin(self, offset: int, length: int) -> None:
        if offset - self._written > MOST_EARLY:
            raise ProtocolError("the other side sends a stream far out of order")
        self._offset, self._length, self._parts = offset, length, []

    def write(self, data: memoryview) -> None:
        self._parts.append(bytes(data))

    def zero(self) -> None:
        self._parts = [bytes(self._length)]

    def accept(self, hex_digits: str) -> None:
        self.grains[self._offset] = Grain(self._offset, self._length, hex_digits)
        self._early[self._offset] = b"".join(self._parts)
        self._parts = []
        if self._offset != self._written:
            return  # an earlier one was damaged; this one waits until that has come again, and is read back then
        while (data := self._early.get(self._written)) is not None:
            if self._written == self._offset:
                del self._early[self._written]
            self._put(data)
            self._written += len(data)

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                count: object = self._out.write(left)  # unbuffered files may take less than all
                left = left[count:] if isinstance(count, int) else left[:0]
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise from_os(exc, self._name) from exc

    def reject(self) -> None:
        self._parts = []

    def read(self, offset: int, view: memoryview) -> int:
        for start, data in self._early.items():
            if start <= offset < start + len(data):
                piece = data[offset - start : offset - start + len(view)]
                view[: len(piece)] = piece
                if offset + len(piece) == start + len(data):
                    del self._early[start]
                return len(piece)
        raise SourceChanged("a stream cannot be read back")

    def forget(self, *offsets: int) -> None:
        for offset in offsets:
            self.grains.pop(offset, None)

    def check_space(self) -> None:
        """Return: a stream takes what it takes."""

    def commit(self, size: int, hex_digits: str) -> Committed:
        try:
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise from_os(exc, self._name) from exc
        return Committed(self._name, size, hex_digits, False)

    def release(self) -> None:
        """Nothing is kept."""

    def discard(self) -> None:
        """Return: what went out cannot be taken back."""

"""How large the next block, or pack, is: what the line carries in two seconds, so that a bad line always gets forward.

Used by `sending` and by what fetches packs.
"""

from __future__ import annotations

import time

from ftransfer import wire

FIRST_BLOCK = 256 << 10
"""Size of the blocks before the speed of the line is known, in bytes."""
KNOWN = 1 << 20
"""Bytes that say how fast a line is."""
BLOCK_SECONDS = 2.0
"""What a block may take on the line, so that a bad line always gets forward."""


class Pace:
    """Chooses the size of the next block by what the line has carried."""

    def __init__(self, largest: int = wire.MAX_BLOCK) -> None:
        self.block = min(FIRST_BLOCK, largest)
        self._largest = largest
        self._since = time.monotonic()
        self._count = 0

    @property
    def is_known(self) -> bool:
        """Whether enough has arrived to say how fast the line is."""
        return self._count >= KNOWN or time.monotonic() - self._since > BLOCK_SECONDS

    def confirmed(self, length: int) -> None:
        """Take note that so many bytes have arrived."""
        self._count += length
        elapsed = time.monotonic() - self._since
        fits = int(self._count / max(elapsed, 1e-6) * BLOCK_SECONDS)
        self.block = max(wire.MIN_BLOCK, min(self._largest, 1 << max(fits, 1).bit_length() - 1))
        if elapsed > BLOCK_SECONDS:
            self._since += elapsed / 2
            self._count //= 2

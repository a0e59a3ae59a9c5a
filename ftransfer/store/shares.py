"""What one transfer, or one tree, sets aside of an account's quota. Used by `guarded` and `guarded_trees`."""

from __future__ import annotations

from ftransfer.errors import OverQuota
from ftransfer.rights import Allowance

STEP = 4 << 20
"""Bytes that are set aside of a quota beyond what is needed now, where more will be needed soon."""


class Share:
    """What one transfer, or one tree, has set aside; given back when it is closed."""

    def __init__(self, allowance: Allowance):
        self._allowance = allowance
        self._held = 0

    def cover(self, count: int, *, more: int = 0) -> None:
        """Have at least so many bytes set aside, and `more` if there is so much. Raises OverQuota."""
        missing = count - self._held
        if missing <= 0:
            return
        try:
            self._allowance.reserve(missing + more)
            self._held += missing + more
        except OverQuota:
            if not more:
                raise
            self._allowance.reserve(missing)
            self._held += missing

    def stored(self, count: int, freed: int) -> None:
        """Take note that so many of the bytes are stored, and others gone for them."""
        self.cover(count)
        if count or freed:
            self._allowance.stored(count, freed=freed)
            self._held -= count

    def close(self) -> None:
        """Give back what is left."""
        held, self._held = self._held, 0
        if held:
            self._allowance.release(held)

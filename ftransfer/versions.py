"""Which versions of ftransfer talk to each other: those whose minor numbers differ by one at most. No I/O.

What a newer version asks for with a new field, an older one passes over. One step back this is looked after; further
back nobody has tried, and an error is better than a transfer that does not do all that was asked.
"""

from __future__ import annotations

import re

from ftransfer import SOFTWARE
from ftransfer.errors import VersionMismatch

_SOFTWARE = re.compile(r"ftransfer/(\d{1,6})\.(\d{1,6})\b", re.ASCII)


def check_software(theirs: str, *, here: str, there: str) -> None:
    """Raise VersionMismatch if the other end is too far away; what is not ftransfer at all is left to the protocol.

    Arguments: `theirs`, what the other end says it is; `here` and `there`, in words, where the two ends are.
    """
    mine, other = _parsed(SOFTWARE), _parsed(theirs)
    if mine is None or other is None:
        return
    if mine[0] != other[0] or abs(mine[1] - other[1]) > 1:
        raise mismatch(theirs, here=here, there=there)


def mismatch(theirs: str, *, here: str, there: str, why: str = "") -> VersionMismatch:
    """Return the error for an other end with which this one cannot talk, and why; it says which of them to update."""
    mine, other = _parsed(SOFTWARE), _parsed(theirs)
    where = "at the older end"
    if mine is not None and other is not None and mine != other:
        where = here if mine < other else there
    return VersionMismatch(
        f"{SOFTWARE} {here} cannot talk to {theirs[:80]} {there}{why}", hint=f"update ftransfer {where}"
    )


def _parsed(software: str) -> tuple[int, int] | None:
    found = _SOFTWARE.match(software)
    return (int(found[1]), int(found[2])) if found else None

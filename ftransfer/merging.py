"""Two sorted walks side by side: what is at both ends, and what at one only. In bounded memory. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator

from ftransfer.store.base import Entry

Pair = tuple[Entry | None, Entry | None]


def merge(here: Iterator[Entry], there: Iterator[Entry]) -> Iterator[Pair]:
    """Yield pairs of entries with the same path, or one entry and None.

    Arguments: two walks, each sorted by name in each folder, each folder before what is in it.
    """
    a, b = next(here, None), next(there, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.path != b.path and a.path.split("/") < b.path.split("/")):
            yield a, None
            a = next(here, None)
        elif a is None or a.path != b.path:
            yield None, b
            b = next(there, None)
        else:
            yield a, b
            a, b = next(here, None), next(there, None)

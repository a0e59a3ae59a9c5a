"""Open folders below one root, by path: so that a file costs one open, however deep it lies.

Each is opened relative to the one above it, without following links, as everything in the store. A cache belongs to
one request and lives no longer, so a folder that is moved away meanwhile is not written to for ever. Used by
`local_trees` and `reading`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ftransfer.store.folders import FOLDER_FLAGS, enter, make_folder

MOST_OPEN = 64
"""Folders that stay open; each is a descriptor."""


class FolderCache:
    """Descriptors of the folders below `root`, which stays the caller's.

    Arguments: `create` makes folders that are missing, and notes which; `entered` is told of each folder that is
    opened, `on_made` of each that was made.
    """

    def __init__(
        self,
        root: int,
        *,
        create: bool = False,
        entered: Callable[[int], None] | None = None,
        on_made: Callable[[int], None] | None = None,
    ):
        self._create = create
        self._entered = entered
        self._on_made = on_made
        self._root = os.dup(root)
        self._open: dict[str, int] = {}
        self.made: set[str] = set()
        """Folders that were made here and are still open: nobody else has put anything in them."""
        if entered is not None:
            entered(self._root)

    def get(self, folder: str, *, create: bool | None = None) -> int:
        """Return the descriptor of a folder, good until the next call. Raises OSError.

        Arguments: `create`, other than the cache's own.
        """
        fd = self._open.get(folder, -1) if folder else self._root
        if fd >= 0:
            return fd
        above, names = folder, []
        while above and above not in self._open:
            above, _, name = above.rpartition("/")
            names.append(name)
        fd = self._open[above] if above else self._root
        for name in reversed(names):
            above = f"{above}/{name}" if above else name
            fd = self._enter(fd, above, name, create=self._create if create is None else create)
            if len(self._open) > MOST_OPEN:  # the one that was opened first goes
                first = next(iter(self._open))
                os.close(self._open.pop(first))
                self.made.discard(first)
        return fd

    def _enter(self, parent: int, path: str, name: str, *, create: bool) -> int:
        try:
            fd, _ = enter(name, parent, leads_on=not self._create)
        except FileNotFoundError:
            if not create:
                raise
            is_made = make_folder(name, parent)
            fd = os.open(name, FOLDER_FLAGS, dir_fd=parent)
            if is_made:
                self.made.add(path)
                if self._on_made is not None:
                    self._on_made(fd)
        self._open[path] = fd
        if self._entered is not None:
            self._entered(fd)
        return fd

    def forget(self, folder: str) -> None:
        """Let go of a folder that was removed."""
        if folder in self._open:
            os.close(self._open.pop(folder))
            self.made.discard(folder)

    def close(self) -> None:
        """Close all."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

"""A staging and a tree that pass everything on to another one: what behaviour is added to by wrapping.

Used by `guarded` and `many`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ftransfer.store.base import Committed, Staging
from ftransfer.store.trees import Facts, Failed, Room, Tree


class WrappedStaging(Staging):
    """Another staging, of which it is the only user."""

    def __init__(self, inner: Staging):
        self.inner = inner
        self.grains = inner.grains  # the same, which both change
        self.inherited = inner.inherited
        self.keeps_only_early = inner.keeps_only_early
        self.taken_up = inner.taken_up

    def begin(self, offset: int, length: int) -> None:
        self.inner.begin(offset, length)

    def write(self, data: memoryview) -> None:
        self.inner.write(data)

    def zero(self) -> None:
        self.inner.zero()

    def accept(self, hex_digits: str) -> None:
        self.inner.accept(hex_digits)

    def reject(self) -> None:
        self.inner.reject()

    def read(self, offset: int, view: memoryview) -> int:
        return self.inner.read(offset, view)

    def forget(self, *offsets: int) -> None:
        self.inner.forget(*offsets)
        self.inherited = self.inner.inherited

    def check_space(self) -> None:
        self.inner.check_space()

    def commit(self, size: int, hex_digits: str) -> Committed:
        done = self.inner.commit(size, hex_digits)
        self.replaced = self.inner.replaced
        return done

    def release(self) -> None:
        self.inner.release()

    def discard(self) -> None:
        self.inner.discard()


class WrappedTree(Tree):
    """Another tree, of which it is the only user."""

    def __init__(self, inner: Tree):
        self.inner = inner
        self.exists = inner.exists

    @property
    def is_full(self) -> bool:
        return self.inner.is_full

    def room(self) -> Room:
        return self.inner.room()

    def add(self, path: str, data: memoryview, mtime_ns: int, mode: int) -> None:
        self.inner.add(path, data, mtime_ns, mode)

    def commit(self, folders: Sequence[Facts] = ()) -> tuple[Failed, Failed]:
        return self.inner.commit(folders)

    def link(self, path: str, target: str, mtime_ns: int) -> None:
        self.inner.link(path, target, mtime_ns)

    def folder(self, path: str, mtime_ns: int, mode: int) -> None:
        self.inner.folder(path, mtime_ns, mode)

    def stamp(self, path: str, mtime_ns: int, mode: int) -> None:
        self.inner.stamp(path, mtime_ns, mode)

    def remove(self, path: str) -> None:
        self.inner.remove(path)

    def close(self) -> None:
        self.inner.close()

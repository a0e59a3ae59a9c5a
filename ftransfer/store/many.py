"""Several folders served side by side: the first component of a path says which. Made by `server` only.

Above them is a folder that nobody can write to, which lists their names; nothing moves from one to another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from ftransfer import paths
from ftransfer.errors import AlreadyExists, FtransferError, NotAFile, NotFound, Refused, UsageError
from ftransfer.store import base
from ftransfer.store.base import Committed, Description, Entry, Freed, Partial, Source, Staging, Store
from ftransfer.store.trees import Packed, Reader, Tree
from ftransfer.store.wrapped import WrappedStaging

MODE = 0o555
"""Of the folder above all."""


class ManyStore(Store):
    """Stores by their names, which it closes. Raises UsageError for names that cannot be."""

    def __init__(self, stores: Mapping[str, Store]):
        for name in stores:
            if "/" in paths.check(name):
                raise UsageError(f"a served folder cannot be called {name!r}", hint="a name has no slash")
        if not stores:
            raise UsageError("there is nothing to serve")
        self._stores = dict(sorted(stores.items()))
        self._made_ns = time.time_ns()
        every = [store.capabilities for store in stores.values()]
        self.capabilities = base.Capabilities(
            resumes=all(one.resumes for one in every),
            durable=all(one.durable for one in every),
            keeps_modes=all(one.keeps_modes for one in every),
            keeps_holes=all(one.keeps_holes for one in every),
        )

    def close(self) -> None:
        with ExitStack() as stack:  # all of them, also if one fails
            for store in self._stores.values():
                stack.callback(store.close)

    def below(self, path: str, *, create: bool = False) -> Store:
        if path:
            store, rest = self._writable(path) if create and "/" in path else self._find(path)
            with _named(path, rest):
                return store.below(rest, create=create)
        with ExitStack() as stack:
            views = {}
            for name, store in self._stores.items():
                views[name] = store.below("")
                stack.callback(views[name].close)
            stack.pop_all()
        return ManyStore(views)

    def _find(self, path: str) -> tuple[Store, str]:
        """Return the store that a path is in, and the path below it. Raises NotFound."""
        name, _, rest = path.partition("/")
        if name not in self._stores:
            raise NotFound("no such file or folder", path=path, hint=f"the served folders are {self._names()}")
        return self._stores[name], rest

    def _writable(self, path: str) -> tuple[Store, str]:
        """Return the same for a path that is going to be changed. Raises Refused for the folder above all."""
        name, _, rest = path.partition("/")
        if name not in self._stores or not rest:
            raise self._choose(path)
        return self._stores[name], rest

    def _choose(self, path: str) -> Refused:
        return Refused(
            "nothing can be changed here", path=path, hint=f"choose one of the served folders: {self._names()}"
        )

    def _names(self) -> str:
        return ", ".join(map(paths.printable, self._stores))

    # Reading.

    def stat(self, path: str) -> Entry:
        if not path:
            return Entry("", base.FOLDER, 0, self._made_ns, MODE)
        store, rest = self._find(path)
        with _named(path, rest):
            return store.stat(rest)._replace(path=path)

    def entries(
        self,
        path: str,
        *,
        recursive: bool = False,
        follow: bool = False,
        on_error: base.OnError = base.pass_over,
        enters: base.Enters = base.always,
    ) -> Iterator[Entry]:
        if path:
            store, rest = self._find(path)
            with _named(path, rest):
                yield from store.entries(rest, recursive=recursive, follow=follow, on_error=on_error, enters=enters)
            return
        for name, store in self._stores.items():
            yield store.stat("")._replace(path=name)
            if not (recursive and enters(name)):
                continue
            try:
                inner = store.entries(
                    "",
                    recursive=True,
                    follow=follow,
                    on_error=partial(_tell_of, on_error, name),
                    enters=partial(_enters, enters, name),
                )
                for entry in inner:
                    yield entry._replace(path=f"{name}/{entry.path}")
            except (NotFound, NotAFile, Refused) as exc:
                on_error(name, exc)

    def open(self, path: str, *, follow: bool = False) -> Source:
        store, rest = self._find(path)
        if not rest:
            raise NotAFile("it is a folder", path=path)
        with _named(path, rest):
            return store.open(rest, follow=follow)

    def reader(self, path: str, *, follow: bool = False) -> Reader:
        if not path:
            return ManyReader(self._stores, follow=follow)
        store, rest = self._find(path)
        with _named(path, rest):
            return store.reader(rest, follow=follow)

    def partials(self, path: str = "", *, clear: bool = False, owner: str | None = None) -> list[Partial]:
        found = []
        for name, store in self._stores.items():
            if not path or path.partition("/")[0] == name:
                inner = store.partials(path.partition("/")[2], clear=clear, owner=owner)
                found += [one._replace(path=f"{name}/{one.path}") for one in inner]
        return found

    def staged(self, owner: str) -> tuple[int, int]:
        counts = [store.staged(owner) for store in self._stores.values()]
        return sum(files for files, _ in counts), sum(size for _, size in counts)

    def clock_step(self) -> int:
        return max(store.clock_step() for store in self._stores.values())

    def folds(self) -> list[str]:
        return sorted({what for store in self._stores.values() for what in store.folds()})

    # Changing.

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        if path in self._stores:
            if not parents:
                raise AlreadyExists("it exists already", path=path)
            return
        store, rest = self._writable(path)
        with _named(path, rest):
            store.mkdir(rest, parents=parents)

    def remove(self, path: str, *, recursive: bool = False, freed: Freed | None = None) -> None:
        store, rest = self._writable(path)
        with _named(path, rest):
            store.remove(rest, recursive=recursive, freed=freed)

    def move(self, path: str, target: str) -> None:
        store, rest = self._writable(path)
        other, target_rest = self._writable(target)
        if store is not other:
            raise Refused(
                "nothing moves from one served folder to another",
                path=path,
                hint="download it and upload it there, then remove it here",
            )
        with _named(path, rest), _named(target, target_rest):
            store.move(rest, target_rest)

    def committed(self, description: Description) -> Committed | None:
        store, rest = self._writable(description.path)
        done = store.committed(description._replace(path=rest))
        return done and _renamed(description.path, done)

    def claim(self, description: Description, *, resume: bool = True) -> Staging:
        store, rest = self._writable(description.path)
        with _named(description.path, rest):
            return _NamedStaging(store.claim(description._replace(path=rest), resume=resume), description.path)

    def tree(
        self, path: str, if_exists: str = "replace", *, only_new: bool = False, freed: Freed | None = None
    ) -> Tree:
        if path not in self._stores:
            self._writable(path)
        store, rest = self._find(path)
        with _named(path, rest):
            return store.tree(rest, if_exists, only_new=only_new, freed=freed)

    def sweep(self) -> int:
        return sum(store.sweep() for store in self._stores.values())


class ManyReader(Reader):
    """Reads below all of them; each is opened when it is asked for the first time."""

    def __init__(self, stores: Mapping[str, Store], *, follow: bool):
        self._stores = stores
        self._follow = follow
        self._readers: dict[str, Reader] = {}

    def _reader(self, path: str) -> tuple[Reader, str]:
        """Return what reads this path, and the path below it. Raises NotFound, NotAFile for a served folder itself."""
        name, _, rest = path.partition("/")
        if name not in self._stores:
            raise NotFound("no such file or folder", path=path)
        if not rest:
            raise NotAFile("it is a folder", path=path)
        if name not in self._readers:
            self._readers[name] = self._stores[name].reader("", follow=self._follow)
        return self._readers[name], rest

    def stat(self, path: str) -> Entry | None:
        if path in self._stores:
            return self._stores[path].stat("")._replace(path=path)
        try:
            reader, rest = self._reader(path)
        except NotFound:
            return None
        found = reader.stat(rest)
        return found and found._replace(path=path)

    def read(self, path: str, view: memoryview, size: int = -1, mtime_ns: int = 0) -> Packed | None:
        reader, rest = self._reader(path)
        with _named(path, rest):
            return reader.read(rest, view, size, mtime_ns)

    def target(self, path: str) -> str:
        reader, rest = self._reader(path)
        with _named(path, rest):
            return reader.target(rest)

    def open(self, path: str) -> Source:
        reader, rest = self._reader(path)
        with _named(path, rest):
            return reader.open(rest)

    def close(self) -> None:
        while self._readers:
            self._readers.popitem()[1].close()


class _NamedStaging(WrappedStaging):
    """A transfer whose path begins with the name of a served folder."""

    def __init__(self, inner: Staging, path: str):
        super().__init__(inner)
        self._path = path

    def check_space(self) -> None:
        with _named(self._path, self._path.partition("/")[2]):
            self.inner.check_space()

    def commit(self, size: int, hex_digits: str) -> Committed:
        with _named(self._path, self._path.partition("/")[2]):
            return _renamed(self._path, super().commit(size, hex_digits))


def _renamed(path: str, done: Committed) -> Committed:
    return done._replace(path=f"{path.partition('/')[0]}/{done.path}")


def _tell_of(on_error: base.OnError, name: str, path: str, exc: FtransferError) -> None:
    on_error(f"{name}/{path}", exc)


def _enters(enters: base.Enters, name: str, path: str) -> bool:
    return enters(f"{name}/{path}")


@contextmanager
def _named(path: str, rest: str) -> Iterator[None]:
    """Have errors about `rest`, the path below a served folder, name the whole path."""
    try:
        yield
    except FtransferError as exc:
        if exc.path == rest or not rest:
            exc.path = path
        raise

"""All that the user of this process may see, as the root of a store: what ssh leads to.

Paths mean what they mean to that user in a shell. `~` is the home folder, `~name` somebody else's, and links on the way
are followed, since nobody is to be kept from where they lead; only what lies in a folder that is read or filled as a
whole is never followed. So that any way to a file finds the same unfinished transfer, the store below knows only the
paths that are left then. Who is confined to a folder has that for a home. Made by `server`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from ftransfer import paths
from ftransfer.errors import FtransferError, UsageError
from ftransfer.store import base
from ftransfer.store.base import Committed, Description, Entry, Freed, Partial, Source, Staging, Store
from ftransfer.store.local import LocalStore
from ftransfer.store.trees import Packed, Reader, Tree
from ftransfer.store.wrapped import WrappedStaging

HOME = "~"


@contextmanager
def _from_root() -> Iterator[None]:
    """Let errors name whole paths, as they are typed here."""
    try:
        yield
    except FtransferError as exc:
        if exc.path and exc.path[0] not in "/~":
            exc.path = f"/{exc.path}"
        raise


class _PersonalStaging(WrappedStaging):
    """A staging that tells its outcome under the path that was asked for."""

    def __init__(self, inner: Staging, asked: str):
        super().__init__(inner)
        self._asked = asked

    def check_space(self) -> None:
        with _from_root():
            super().check_space()

    def write(self, data: memoryview) -> None:
        with _from_root():
            super().write(data)

    def commit(self, size: int, hex_digits: str) -> Committed:
        with _from_root():
            return _as_asked(super().commit(size, hex_digits), self._asked)


def _as_asked(done: Committed, asked: str) -> Committed:
    return done._replace(path=paths.join(asked.rpartition("/")[0], done.path.rpartition("/")[2]))


class _PersonalReader(Reader):
    """A reader of whole paths, as they are typed here; `real` returns where one leads."""

    def __init__(self, inner: Reader, real: Callable[..., str]):
        self._inner = inner
        self._real = real

    def stat(self, path: str) -> Entry | None:
        return self._inner.stat(self._real(path, last=False))

    def read(self, path: str, view: memoryview, size: int = -1, mtime_ns: int = 0) -> Packed | None:
        return self._inner.read(self._real(path, last=False), view, size, mtime_ns)

    def target(self, path: str) -> str:
        return self._inner.target(self._real(path, last=False))

    def open(self, path: str) -> Source:
        return self._inner.open(self._real(path, file=True))

    def close(self) -> None:
        self._inner.close()


class ConfinedStore(Store):
    """A store whose root is the home folder of whoever is confined to it. It closes the store below."""

    def __init__(self, inner: Store):
        self._inner = inner
        self.capabilities = inner.capabilities

    def _real(self, path: str, *, last: bool = True, file: bool = False) -> str:
        """Return where a path leads in the store below.

        Arguments: `last`, whether its last name is followed, too, where links are, if it leads to a folder; `file`,
        also if it leads to a file. Raises BadPath.
        """
        del last, file
        return path.removeprefix(HOME).lstrip("/") if path.partition("/")[0] == HOME else path

    def _changeable(self, path: str) -> str:
        """Return where a path leads that is to be moved or removed itself. Raises UsageError for a home folder."""
        real = self._real(path, last=False)
        if not real or f"{self._home()}/".startswith(f"{real}/"):
            raise UsageError(
                "that is a home folder, or has it in it", path=path, hint="name what is to go, not all that there is"
            )
        return real

    def _home(self) -> str:
        """Return where the home folder is in the store below."""
        return ""

    def close(self) -> None:
        self._inner.close()

    def below(self, path: str, *, create: bool = False) -> Store:
        with _from_root():
            return self._inner.below(self._real(path), create=create)

    def stat(self, path: str) -> Entry:
        with _from_root():
            return self._inner.stat(self._real(path))._replace(path=path)

    def entries(
        self,
        path: str,
        *,
        recursive: bool = False,
        follow: bool = False,
        on_error: base.OnError = base.pass_over,
        enters: base.Enters = base.always,
    ) -> Iterator[Entry]:
        with _from_root():
            yield from self._inner.entries(
                self._real(path), recursive=recursive, follow=follow, on_error=on_error, enters=enters
            )

    def open(self, path: str, *, follow: bool = False) -> Source:
        with _from_root():
            return self._inner.open(self._real(path, file=True), follow=follow)

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        with _from_root():
            self._inner.mkdir(self._real(path), parents=parents)

    def remove(self, path: str, *, recursive: bool = False, freed: Freed | None = None) -> None:
        with _from_root():
            self._inner.remove(self._changeable(path), recursive=recursive, freed=freed)

    def move(self, path: str, target: str) -> None:
        with _from_root():
            self._inner.move(self._changeable(path), self._changeable(target))

    def committed(self, description: Description) -> Committed | None:
        with _from_root():
            done = self._inner.committed(description._replace(path=self._real(description.path, last=False)))
            return done and _as_asked(done, description.path)

    def claim(self, description: Description, *, resume: bool = True) -> Staging:
        with _from_root():
            real = description._replace(path=self._real(description.path, last=False))
            return _PersonalStaging(self._inner.claim(real, resume=resume), description.path)

    def partials(self, path: str = "", *, clear: bool = False, owner: str | None = None) -> list[Partial]:
        with _from_root():
            return self._inner.partials(self._real(path), clear=clear, owner=owner)

    def staged(self, owner: str) -> tuple[int, int]:
        return self._inner.staged(owner)

    def clock_step(self) -> int:
        return self._inner.clock_step()

    def folds(self) -> list[str]:
        return self._inner.folds()

    def tree(
        self, path: str, if_exists: str = "replace", *, only_new: bool = False, freed: Freed | None = None
    ) -> Tree:
        with _from_root():
            return self._inner.tree(self._real(path), if_exists, only_new=only_new, freed=freed)

    def reader(self, path: str, *, follow: bool = False) -> Reader:
        with _from_root():
            if not path:  # names from here are whole paths
                return _PersonalReader(self._inner.reader("", follow=follow), self._real)
            return self._inner.reader(self._real(path), follow=follow)

    def sweep(self) -> int:
        return self._inner.sweep()


class PersonalStore(ConfinedStore):
    """The whole of this machine, as far as its user may go.

    Arguments: `state`, the folder that has `.ftransfer/`, since hardly anybody may write to the root, or why there is
    none: then it can only be read; the rest as for `LocalStore`.
    """

    def __init__(self, *, state: str | FtransferError, durable: bool = True, keep_free: int = 0):
        kept = state if isinstance(state, str) else None
        inner = LocalStore("/", durable=durable, keep_free=keep_free, state=kept)
        self._problem = None if isinstance(state, str) else state
        inner.shown = "/"
        super().__init__(inner)
        self._root = inner
        self._last = ""

    def _real(self, path: str, *, last: bool = True, file: bool = False) -> str:
        whole = os.path.expanduser(path)  # also ~name, as far as this machine knows that one
        if not os.path.isabs(whole):
            whole = f"/{path}"
        if file or whole == "/" or (last and os.path.isdir(whole)):
            real = os.path.realpath(whole)
        else:
            above, name = os.path.split(whole.rstrip("/"))
            real = os.path.join(os.path.realpath(above), name)
        self._last = paths.check(real.lstrip("/"), root=True)
        return self._last

    def claim(self, description: Description, *, resume: bool = True) -> Staging:
        self._check_state()
        return super().claim(description, resume=resume)

    def tree(
        self, path: str, if_exists: str = "replace", *, only_new: bool = False, freed: Freed | None = None
    ) -> Tree:
        self._check_state()
        return super().tree(path, if_exists, only_new=only_new, freed=freed)

    def _check_state(self) -> None:
        if self._problem is not None:
            raise type(self._problem)(
                f"unfinished transfers cannot be kept on this machine: {self._problem}", hint=self._problem.hint
            )

    def _home(self) -> str:
        return os.path.realpath(os.path.expanduser(HOME)).lstrip("/")

    def clock_step(self) -> int:
        with closing(self._near()) as folder:
            return folder.clock_step()

    def folds(self) -> list[str]:
        with closing(self._near()) as folder:
            return folder.folds()

    def _near(self) -> LocalStore:
        """Return the folder in which the path lies, or will, that was named last: each may be on a disk of its own."""
        path = self._last
        while True:
            try:
                return self._root.below(path)
            except FtransferError:
                if not path:
                    raise
                path = path.rpartition("/")[0]

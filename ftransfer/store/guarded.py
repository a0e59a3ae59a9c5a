"""A store as one account may use it: each call asks the account before anything is looked at, made or removed.

What the account may not replace is never touched: the store below is asked for names that are free, so nobody can put
something there between a look and the rename. Made by `server` for every connection; the trees are in `guarded_trees`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ftransfer.errors import AlreadyExists, DiskError, NotAFile, NotFound, Refused
from ftransfer.rights import ALL, Account, Allowance
from ftransfer.store import base
from ftransfer.store.base import Committed, Description, Entry, Freed, Partial, Source, Staging, Store
from ftransfer.store.guarded_trees import GuardedTree
from ftransfer.store.shares import STEP, Share
from ftransfer.store.trees import Reader, Tree
from ftransfer.store.wrapped import WrappedStaging

LOOK_BYTES = 32 << 20
"""Bytes of a stream after which it is looked at what else its owner has staged."""


class GuardedStore(Store):
    """What an account may do with another store.

    Arguments: `allowance`, what it may still store, shared by all its connections; `most_staged_files` and
    `most_staged_bytes`, what it may have unfinished, None for any number; `owner`, whose that is (the account's);
    `owns_inner`, whether the other store is closed with this one. All raise Refused for what the account may not do,
    OverQuota for what is too much.
    """

    def __init__(
        self,
        store: Store,
        account: Account,
        allowance: Allowance,
        *,
        most_staged_files: int | None = None,
        most_staged_bytes: int | None = None,
        owner: str | None = None,
        owns_inner: bool = True,
    ):
        self.inner = store
        self.account = account
        self.owner = owner or account.name
        self.allowance = allowance
        self.capabilities = store.capabilities
        self.reads = "read" in account.can
        self.replaces = "replace" in account.can
        self._most_files = most_staged_files
        self._most_bytes = most_staged_bytes
        self._owns_inner = owns_inner

    def below(self, path: str, *, create: bool = False) -> Store:
        self.account.require("create" if create else "read")
        return GuardedStore(
            self.inner.below(path, create=create),
            self.account,
            self.allowance,
            most_staged_files=self._most_files,
            most_staged_bytes=self._most_bytes,
            owner=self.owner,
        )

    def close(self) -> None:
        if self._owns_inner:
            self.inner.close()

    def sweep(self) -> int:
        self.account.require("delete")
        return self.inner.sweep()

    def clock_step(self) -> int:
        return self.inner.clock_step()

    def folds(self) -> list[str]:
        return self.inner.folds()

    # What it says instead of what is there.

    def taken(self, path: str) -> Refused:
        """Return the error for a name that the account may not replace, or may not know of."""
        return Refused(
            f"{self.account.name} may not replace what has this name",
            path=path,
            hint="choose another name (--if-exists rename does), or ask who runs the server",
        )

    def hides(self, if_exists: str) -> bool:
        """Tell whether, under this policy, the account would replace what it may not."""
        return not self.replaces and if_exists in ("replace", "newer")

    @contextmanager
    def unseen(self, path: str) -> Iterator[None]:
        """Say nothing of what has a name to an account that may not look."""
        try:
            yield
        except (AlreadyExists, NotAFile):
            if self.reads:
                raise
            raise self.taken(path) from None

    def check_size(self, size: int, path: str) -> None:
        """Raise Refused for a file that is larger than the account's may be."""
        most = self.account.max_file
        if most is not None and size > most:
            raise Refused(
                f"{self.account.name} may not store files larger than {most} bytes",
                path=path,
                hint="ask who runs the server",
            )

    # Reading.

    def stat(self, path: str) -> Entry:
        self.account.require("read")
        return self.inner.stat(path)

    def entries(
        self,
        path: str,
        *,
        recursive: bool = False,
        follow: bool = False,
        on_error: base.OnError = base.pass_over,
        enters: base.Enters = base.always,
    ) -> Iterator[Entry]:
        self.account.require("read")  # now, not when the first one is asked for
        return self.inner.entries(path, recursive=recursive, follow=follow, on_error=on_error, enters=enters)

    def open(self, path: str, *, follow: bool = False) -> Source:
        self.account.require("read")
        return self.inner.open(path, follow=follow)

    def reader(self, path: str, *, follow: bool = False) -> Reader:
        self.account.require("read")
        return self.inner.reader(path, follow=follow)

    def staged(self, owner: str) -> tuple[int, int]:
        if owner != self.owner:
            self.account.require("read")
        return self.inner.staged(owner)

    def partials(self, path: str = "", *, clear: bool = False, owner: str | None = None) -> list[Partial]:
        own = self.owner
        if own != self.account.name and not self.reads:
            return []  # strangers behind one address are several: none sees what the others send
        if clear and "delete" not in self.account.can:
            self.account.require("create")
        elif self.reads:
            return self.inner.partials(path, clear=clear, owner=owner)
        return self.inner.partials(path, clear=clear, owner=own) if owner in (None, own) else []

    # Changing.

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        self.account.require("create")
        with self.unseen(path):
            self.inner.mkdir(path, parents=parents or not self.reads)

    def remove(self, path: str, *, recursive: bool = False, freed: Freed | None = None) -> None:
        self.account.require("delete")
        if not self.allowance.counts:
            self.inner.remove(path, recursive=recursive, freed=freed)
            return
        sizes: list[int] = []
        try:
            self.inner.remove(path, recursive=recursive, freed=sizes.append)
        finally:
            self.allowance.freed(sum(sizes))
            if freed is not None:
                freed(sum(sizes))

    def move(self, path: str, target: str) -> None:
        self.account.require("delete", "create")
        with self.unseen(target):
            self.inner.move(path, target)

    def tree(
        self, path: str, if_exists: str = "replace", *, only_new: bool = False, freed: Freed | None = None
    ) -> Tree:
        can = self.account.can
        if not can & {"create", "replace", "delete"}:
            self.account.require("create")
        if can >= ALL and not self.allowance.counts and self.account.max_file is None:
            return self.inner.tree(path, if_exists, only_new=only_new, freed=freed)
        with self.unseen(path):
            return GuardedTree(self, path, if_exists, only_new=only_new, freed=freed)

    def committed(self, description: Description) -> Committed | None:
        self.account.require("create")
        return self.inner.committed(description._replace(owner=self.owner))

    def claim(self, description: Description, *, resume: bool = True) -> Staging:
        self.account.require("create")
        d = description._replace(owner=self.owner)
        self.check_size(d.size or 0, d.path)
        hides = self.hides(d.if_exists)
        if hides:
            self._must_be_free(d.path)
            d = d._replace(if_exists="fail")
        share = Share(self.allowance)
        share.cover(d.size or 0)
        try:
            with self.unseen(d.path):
                staging = self.inner.claim(d, resume=resume)
            self._check_staged(staging)
        except BaseException:
            share.close()
            raise
        grows = d.size is None and (self.account.max_file is not None or self._most_bytes is not None)
        if not (hides or grows or self.allowance.counts) and self.reads:
            return staging
        return GuardedStaging(self, staging, d, share, hides=hides)

    def _must_be_free(self, path: str) -> None:
        """Refuse at once what would be refused at the end."""
        try:
            self.inner.stat(path)
        except (NotFound, NotAFile):
            return
        raise self.taken(path)

    def _check_staged(self, staging: Staging) -> None:
        """Drop what was just begun if the account has too much unfinished. Raises Refused."""
        if staging.taken_up or (self._most_files is None and self._most_bytes is None):
            return
        # Counted with this one, so that of two that begin at the same time none is overlooked.
        files, size = self.inner.staged(self.owner)
        try:
            if self._most_files is not None and files > self._most_files:
                raise self._too_many(f"{self._most_files} files", "staged_files")
            self.check_staged_bytes(size)
        except Refused:
            staging.discard()
            raise

    def check_staged_bytes(self, size: int) -> None:
        """Raise Refused if so many bytes are more than the account may have unfinished."""
        if self._most_bytes is not None and size > self._most_bytes:
            raise self._too_many(f"{self._most_bytes} bytes", "staged_bytes")

    def _too_many(self, most: str, limit: str) -> Refused:
        return Refused(
            f"{self.account.name} may have no more than {most} unfinished",
            hint=f"the limit is {limit}: finish uploads or drop them (`ftransfer partials` shows them)",
        )


class GuardedStaging(WrappedStaging):
    """A transfer of an account whose files may be too large, too many, or in the way.

    Arguments: `share`, which covers what was announced; `hides`, whether a name that is taken is taken for good.
    """

    def __init__(self, guard: GuardedStore, inner: Staging, description: Description, share: Share, *, hides: bool):
        super().__init__(inner)
        self._guard = guard
        self._path = description.path
        self._share = share
        self._hides = hides
        self._others = self._look_at = 0
        self._end = max((grain.end for grain in self.grains.values()), default=0)
        if description.size is None:
            try:
                self._see_whether_it_may_grow(self._end)
            except BaseException:
                self.release()  # what is there may be gone on with when there is more room
                raise
        else:
            self._end = description.size

    def begin(self, offset: int, length: int) -> None:
        end = offset + length
        if end > self._end:
            try:
                self._see_whether_it_may_grow(end)
            except BaseException:
                self.discard()
                raise
            self._end = end
        self.inner.begin(offset, length)

    def _see_whether_it_may_grow(self, end: int) -> None:
        """Raise Refused or OverQuota if a stream may not become so long."""
        guard = self._guard
        guard.check_size(end, self._path)
        self._share.cover(end, more=STEP)
        if end >= self._look_at:
            _, staged = guard.inner.staged(guard.owner)
            self._others = max(0, staged - self._end)
            self._look_at = end + LOOK_BYTES
        guard.check_staged_bytes(self._others + end)

    def check_space(self) -> None:
        try:
            self.inner.check_space()
        except DiskError as exc:
            if self._guard.reads:
                raise
            raise DiskError("no space for this file", path=self._path, hint="ask who runs the server") from exc

    def commit(self, size: int, hex_digits: str) -> Committed:
        self._guard.check_size(size, self._path)
        self._share.cover(size)
        try:
            with self._guard.unseen(self._path):
                done = super().commit(size, hex_digits)
            self._share.stored(size, self.replaced)
        except AlreadyExists:
            if self._hides:
                raise self._guard.taken(self._path) from None
            raise
        finally:
            self._share.close()
        return done

    def release(self) -> None:
        try:
            self.inner.release()
        finally:
            self._share.close()

    def discard(self) -> None:
        try:
            self.inner.discard()
        finally:
            self._share.close()

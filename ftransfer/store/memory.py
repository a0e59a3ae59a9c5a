"""A store in memory: the second implementation of the interface, for tests and for what never needs a disk.

Keeps nothing beyond the process. Passes the same suite as the local store (tests/test_store_contract.py), which shows
that the loops need no more than `base` says. Its methods may be called from any thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, MutableMapping
from threading import RLock

from ftransfer import paths
from ftransfer.errors import AlreadyExists, Busy, DiskError, NotAFile, NotFound, UsageError
from ftransfer.store import base
from ftransfer.store.folders import split
from ftransfer.store.local import KEEP_PARTIALS, KEEP_RECEIPTS
from ftransfer.store.staging import copies
from ftransfer.store.trees import PlainReader, PlainTree, Reader, Tree

FILE_MODE = 0o644
FOLDER_MODE = 0o755
Key = tuple[str, int | None, str, str]
"""Path, size, identity of the content, and owner: what decides which staged data a claim goes on with."""


class _Node:
    """A file with its bytes, or a folder, which has none."""

    def __init__(self, data: bytes | None, mtime_ns: int, mode: int):
        self.data = data
        self.mtime_ns = mtime_ns
        self.mode = mode

    def entry(self, path: str) -> base.Entry:
        kind = base.FOLDER if self.data is None else base.FILE
        return base.Entry(path, kind, len(self.data or b""), self.mtime_ns, self.mode)


class _Staged:
    """What a transfer has left behind, or is writing now."""

    def __init__(self, fingerprint: str | None):
        self.fingerprint = fingerprint
        self.data = bytearray()
        self.grains: dict[int, base.Grain] = {}
        self.mtime_ns = time.time_ns()
        self.busy = False


class _State:
    """What a store keeps beside the files: unfinished transfers, and records of finished ones."""

    def __init__(self) -> None:
        self.staged: dict[Key, _Staged] = {}
        self.receipts: dict[tuple[str, str], tuple[str, base.Committed, _Node, int]] = {}


class _Below(MutableMapping[str, _Node]):
    """What is in a folder of another store, by paths below it."""

    def __init__(self, nodes: MutableMapping[str, _Node], folder: str):
        self._nodes = nodes
        self._folder = folder

    def __getitem__(self, path: str) -> _Node:
        return self._nodes[paths.join(self._folder, path) if path else self._folder]

    def __setitem__(self, path: str, node: _Node) -> None:
        self._nodes[paths.join(self._folder, path) if path else self._folder] = node

    def __delitem__(self, path: str) -> None:
        del self._nodes[paths.join(self._folder, path)]

    def __iter__(self) -> Iterator[str]:
        prefix = self._folder + "/"
        return iter([path[len(prefix) :] for path in self._nodes if path.startswith(prefix)])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class MemoryStaging(base.Staging):
    """The bytes of one transfer; what was accepted lives in the store's `_Staged`, for the next claim."""

    def __init__(self, store: MemoryStore, description: base.Description, key: Key, staged: _Staged, *, taken_up: bool):
        self._store = store
        self._description = description
        self._key = key
        self._staged: _Staged | None = staged
        self._offset = self._length = self._at = 0
        self.grains = dict(staged.grains)
        self.inherited = sum(grain.length for grain in self.grains.values())
        self.taken_up = taken_up

    @property
    def _ours(self) -> _Staged:
        if self._staged is None:
            raise DiskError("the staged data was dropped", path=self._description.path)
        return self._staged

    def begin(self, offset: int, length: int) -> None:
        self._offset, self._length, self._at = offset, length, offset

    def write(self, data: memoryview) -> None:
        held = self._ours.data
        end = self._at + len(data)
        if end > self._store.room:
            self.discard()
            raise DiskError("no space left in memory", path=self._description.path)
        held.extend(bytes(max(0, end - len(held))))
        held[self._at : end] = data
        self._at = end

    def zero(self) -> None:
        self.write(memoryview(bytes(self._length)))

    def accept(self, hex_digits: str) -> None:
        grain = base.Grain(self._offset, self._length, hex_digits)
        self.grains[grain.offset] = self._ours.grains[grain.offset] = grain
        self._ours.mtime_ns = time.time_ns()

    def reject(self) -> None:
        self._length = 0

    def read(self, offset: int, view: memoryview) -> int:
        piece = self._ours.data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def forget(self, *offsets: int) -> None:
        for offset in offsets:
            self._ours.grains.pop(offset, None)
            self.inherited = max(0, self.inherited - self.grains.pop(offset).length)

    def check_space(self) -> None:
        if (self._description.size or 0) > self._store.room:
            self.discard()
            raise DiskError("no space left in memory", path=self._description.path)

    def commit(self, size: int, hex_digits: str) -> base.Committed:
        staged, d = self._ours, self._description
        with self._store.lock:
            try:
                name, self.replaced = self._store.publish(d, bytes(staged.data[:size].ljust(size, b"\0")), hex_digits)
            finally:
                self.discard()
            self._store.partials(d.path, clear=True, owner=d.owner)
        return base.Committed(name, size, hex_digits, False)

    def release(self) -> None:
        if self._staged is not None:
            self._staged.busy = False
            self._staged = None

    def discard(self) -> None:
        with self._store.lock:
            if self._staged is not None:
                self._store.state.staged.pop(self._key, None)
                self._staged = None


class MemoryStore(base.Store):
    """Files and folders in a dictionary.

    Arguments: `room`, bytes that one file may have.
    """

    def __init__(self, *, room: int = 1 << 30):
        self.capabilities = base.Capabilities(resumes=True, durable=False, keeps_modes=True, keeps_holes=False)
        self.room = room
        self.lock = RLock()
        self.state = _State()
        self._at = ""
        self._states = {"": self.state}
        self._nodes: MutableMapping[str, _Node] = {paths.ROOT: _Node(None, time.time_ns(), FOLDER_MODE)}

    def below(self, path: str, *, create: bool = False) -> MemoryStore:
        paths.check(path, root=True)
        with self.lock:
            if create and path:
                self.mkdir(path, parents=True)
            if self._node(path).data is not None:
                raise NotAFile("it is not a folder", path=path)
            made = MemoryStore(room=self.room)
            made._share(self, path)
            return made

    def _share(self, other: MemoryStore, path: str) -> None:
        """Become a store of a folder of another one."""
        self.lock = other.lock
        self._at = "/".join(part for part in (other._at, path) if part)
        self._states = other._states
        self.state = self._states.setdefault(self._at, _State())
        self._nodes = _Below(other._nodes, path) if path else other._nodes

    def close(self) -> None:
        """Nothing is held."""

    def stat(self, path: str) -> base.Entry:
        return self._node(path).entry(path)

    def _node(self, path: str) -> _Node:
        self._check_above(path)
        if path not in self._nodes:
            raise NotFound("no such file or folder", path=path)
        return self._nodes[path]

    def _check_above(self, path: str) -> None:
        """Raise NotAFile if a part of the path is a file, NotFound if it is not there."""
        parts, _ = split(path)
        for count in range(1, len(parts) + 1):
            node = self._nodes.get("/".join(parts[:count]))
            if node is None:
                raise NotFound("no such file or folder", path=path)
            if node.data is not None:
                raise NotAFile("a part of the path is not a folder, or is a symbolic link", path=path)

    def _inside(self, path: str) -> list[str]:
        """Return the paths below a folder, each folder's names sorted and followed by what is in them."""
        prefix = path + "/" if path else ""
        return sorted((p for p in self._nodes if p and p.startswith(prefix)), key=lambda p: p.split("/"))

    def entries(
        self,
        path: str,
        *,
        recursive: bool = False,
        follow: bool = False,  # noqa: ARG002 - there are no links here
        on_error: base.OnError = base.pass_over,  # noqa: ARG002 - nor what cannot be read
        enters: base.Enters = base.always,  # noqa: ARG002 - and all is at hand
    ) -> Iterator[base.Entry]:
        with self.lock:
            if self._node(path).data is not None:
                raise NotAFile("it is not a folder", path=path)
            start = len(path) + 1 if path else 0
            inside = [self._nodes[p].entry(p[start:]) for p in self._inside(path)]
        yield from (entry for entry in inside if recursive or "/" not in entry.path)

    def open(self, path: str, *, follow: bool = False) -> base.Source:  # noqa: ARG002 - there are no links here
        node = self._node(path)
        if node.data is None:
            raise NotAFile("it is a folder", path=path)
        mark = base.fingerprint(len(node.data), node.mtime_ns)
        return base.BytesSource(memoryview(node.data), fingerprint=mark, mtime_ns=node.mtime_ns, mode=node.mode)

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        with self.lock:
            if parents:
                self._make_folders(path.split("/"), path)
                return
            self._check_above(path)
            if path in self._nodes:
                raise AlreadyExists("it exists already", path=path)
            self._nodes[path] = _Node(None, time.time_ns(), FOLDER_MODE)

    def _make_folders(self, parts: list[str], path: str) -> None:
        for count in range(1, len(parts) + 1):
            node = self._nodes.setdefault("/".join(parts[:count]), _Node(None, time.time_ns(), FOLDER_MODE))
            if node.data is not None:
                raise NotAFile("a part of the path is not a folder, or is a symbolic link", path=path)

    def remove(self, path: str, *, recursive: bool = False, freed: base.Freed | None = None) -> None:
        with self.lock:
            self._node(path)
            inside = self._inside(path)
            if inside and not recursive:
                raise NotAFile("the folder is not empty", path=path)
            size = sum(len(self._nodes.pop(one).data or b"") for one in (path, *inside))
        if freed is not None:
            freed(size)

    def move(self, path: str, target: str) -> None:
        with self.lock:
            self._node(path)
            if target.startswith(path + "/"):
                raise UsageError("a folder cannot be moved into itself", path=path)
            self._check_above(target)
            if target in self._nodes:
                raise AlreadyExists("it exists already", path=target)
            for one in (path, *self._inside(path)):
                self._nodes[target + one[len(path) :]] = self._nodes.pop(one)

    def committed(self, description: base.Description) -> base.Committed | None:
        key = (description.transfer or "", description.owner)
        asked, done, node, _ = self.state.receipts.get(key, ("", None, None, 0))
        if done is None or asked != description.path or self._nodes.get(done.path) is not node:
            return None
        return done

    def claim(self, description: base.Description, *, resume: bool = True) -> base.Staging:
        d = description
        identity = (d.fingerprint if resume else None) or d.transfer or os.urandom(8).hex()
        key = (d.path, d.size, identity, d.owner)
        with self.lock:
            self._make_folders(split(d.path)[0], d.path)
            self._check_target(d.path)
            taken_up = key in self.state.staged
            staged = self.state.staged.setdefault(key, _Staged(d.fingerprint))
            if staged.busy:
                raise Busy("another connection is writing this transfer")
            staged.busy = True
        return MemoryStaging(self, d, key, staged, taken_up=taken_up)

    def _check_target(self, path: str) -> _Node | None:
        node = self._nodes.get(path)
        if node is not None and node.data is None:
            raise NotAFile("a folder has this name", path=path)
        return node

    def publish(self, d: base.Description, data: bytes, hex_digits: str) -> tuple[str, int]:
        """Give bytes their final name by the policy of their description. Called under the lock.

        Returns the name, and the size of the file that had it.
        """
        found = self._check_target(d.path)
        parts, name = split(d.path)
        is_newer = found is None or d.mtime_ns is None or d.mtime_ns > found.mtime_ns
        if not (d.if_exists == "replace" or (d.if_exists == "newer" and is_newer)):
            names = copies(name) if d.if_exists == "rename" else [name]
            free = next((n for n in names if "/".join([*parts, n]) not in self._nodes), None)
            if free is None:
                raise AlreadyExists("the name was taken in the meantime", path=d.path)
            name, found = free, None
        path = "/".join([*parts, name])
        self._make_folders(parts, d.path)
        now = time.time_ns()
        mode = FILE_MODE if d.mode is None else d.mode & 0o777
        node = self._nodes[path] = _Node(data, now if d.mtime_ns is None else d.mtime_ns, mode)
        if d.transfer:
            done = base.Committed(path, len(data), hex_digits, False)
            self.state.receipts[d.transfer, d.owner] = (d.path, done, node, now)
        return path, len(found.data or b"") if found else 0

    def partials(self, path: str = "", *, clear: bool = False, owner: str | None = None) -> list[base.Partial]:
        found = []
        with self.lock:
            for key, staged in list(self.state.staged.items()):
                if path and key[0] != path and not key[0].startswith(path + "/"):
                    continue
                if owner not in (None, key[3]) or (clear and staged.busy):
                    continue
                if clear:
                    del self.state.staged[key]
                held = sum(grain.length for grain in staged.grains.values())
                found.append(base.Partial(key[0], key[1], held, staged.mtime_ns, staged.fingerprint, key[3]))
        return sorted(found, key=lambda partial: (partial.path, partial.mtime_ns))

    def staged(self, owner: str) -> tuple[int, int]:
        sizes = [partial.held if partial.size is None else partial.size for partial in self.partials(owner=owner)]
        return len(sizes), sum(sizes)

    def clock_step(self) -> int:
        return 1

    def folds(self) -> list[str]:
        return []

    def tree(
        self,
        path: str,
        if_exists: str = "replace",
        *,
        only_new: bool = False,  # noqa: ARG002 - it keeps neither links nor facts of folders
        freed: base.Freed | None = None,
    ) -> Tree:
        return PlainTree(self, path, if_exists, freed=freed)

    def reader(self, path: str, *, follow: bool = False) -> Reader:  # noqa: ARG002 - there are no links here
        return PlainReader(self, path)

    def sweep(self) -> int:
        now = time.time_ns()
        with self.lock:
            receipts, staged = self.state.receipts, self.state.staged
            for transfer in [t for t, r in receipts.items() if now - r[3] > KEEP_RECEIPTS * 10**9]:
                del receipts[transfer]
            limit = KEEP_PARTIALS * 10**9
            old = [key for key, one in staged.items() if not one.busy and now - one.mtime_ns > limit]
            for key in old:
                del staged[key]
        return len(old)

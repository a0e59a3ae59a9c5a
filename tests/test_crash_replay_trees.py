"""What a power cut may leave of a tree on its way in groups: the same model as for single files (promises 2 and 3).

Write all, sync, rename all, sync, answer: at every prefix of these calls each final name shows the old file or the new
one, whole; what was answered as durable is there; the next run ends with all of it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from faults import RESERVED, fast_folder, noise, reserved
from test_crash_replay import MODE, MTIME, RETURNED, Choice, Disk, Op, Recorder, Violation, choices, describe

from ftransfer.errors import AlreadyExists, FtransferError, NotFound
from ftransfer.store import sync
from ftransfer.store.folders import Synced
from ftransfer.store.local import LocalStore
from ftransfer.store.local_trees import LocalTree
from ftransfer.store.trees import Tree


class Group(NamedTuple):
    """What is done to a tree before one commit: files by their sizes, links, folders; what is removed."""

    files: Mapping[str, int] = MappingProxyType({})
    links: Mapping[str, str] = MappingProxyType({})
    folders: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def content(self, path: str) -> bytes:
        return noise(self.files[path], len(path) + self.files[path])


class Forest(NamedTuple):
    """A tree, and what is there before: old files by their sizes."""

    groups: tuple[Group, ...]
    base: str = "in"
    old: Mapping[str, int] = MappingProxyType({})
    if_exists: str = "replace"

    def old_content(self, path: str) -> bytes:
        return noise(self.old[path], 99 + self.old[path])

    def where(self, root: Path, path: str) -> Path:
        return root / self.base / path

    def lay_out(self, root: Path) -> None:
        """Make what is there before."""
        for path in self.old:
            where = self.where(root, path)
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_bytes(self.old_content(path))
            os.utime(where, (0, 0))

    def put(self, tree: Tree, group: Group) -> None:
        """Put a group into a tree and publish it; names that are taken may be, where nothing is replaced."""
        for path, target in group.links.items():
            tree.link(path, target, MTIME)
        for path in group.gone:
            with suppress(NotFound):
                tree.remove(path)
        for path in group.files:
            tree.add(path, memoryview(group.content(path)), MTIME, MODE)
        for failed in tree.commit([(path, MTIME, 0o755) for path in group.folders]):
            for exc in failed.values():
                if not isinstance(exc, AlreadyExists) or self.if_exists == "replace":
                    raise exc

    def run(self, store: LocalStore, answered: Callable[[], None] = lambda: None) -> None:
        """Put all groups, as the server does."""
        with closing(store.tree(self.base, self.if_exists)) as tree:
            for group in self.groups:
                self.put(tree, group)
                answered()


def record(forest: Forest, root: Path) -> Recorder:
    """Run it and return what it did to the disk."""
    forest.lay_out(root)
    recorder = Recorder(root)
    with recorder.watching(), closing(LocalStore(root)) as store:
        forest.run(store, lambda: recorder.ops.append(Op(RETURNED)))
    return recorder


def check(forest: Forest, root: Path, *, answers: int) -> None:
    """Recover from what a power cut has left. Raises Violation."""
    names = set()
    for number, group in enumerate(forest.groups):
        names |= group.files.keys() | group.links.keys()
        _check_group(forest, group, root, is_answered=number < answers)
    names |= forest.old.keys()
    below = root / forest.base
    visible = {path.relative_to(below).as_posix() for path in below.rglob("*") if path.is_symlink() or path.is_file()}
    if stray := [name for name in visible - names if f"/{RESERVED}" not in f"/{name}"]:
        raise Violation(f"other names are there: {stray}")
    with closing(LocalStore(root, durable=False)) as store:
        try:
            store.sweep()
            forest.run(store)
        except FtransferError as exc:
            raise Violation(f"the next run fails: {exc!r}") from exc
        for group in forest.groups:
            _check_group(forest, group, root, is_answered=True, is_over=True)
        if any(RESERVED in entry.path for entry in store.entries("", recursive=True)):
            raise Violation("reserved names are listed")


def _check_group(forest: Forest, group: Group, root: Path, *, is_answered: bool, is_over: bool = False) -> None:
    for path in group.files:
        where = forest.where(root, path)
        found = where.read_bytes() if where.exists() else None
        old = forest.old_content(path) if path in forest.old else None
        new = group.content(path)
        if found not in (old, new):
            raise Violation(f"the final name shows {describe(found)}")
        if not is_answered or (old is not None and forest.if_exists != "replace"):
            continue
        if found != new:
            raise Violation("it was answered, and the file is not there")
        facts = where.stat().st_mode & 0o777, where.stat().st_mtime_ns
        if facts != (MODE, MTIME) and not (is_over and forest.if_exists != "replace"):
            raise Violation("it was answered, and mode or time are not there")
    _check_names(forest, group, root, is_answered=is_answered)


def _check_names(forest: Forest, group: Group, root: Path, *, is_answered: bool) -> None:
    for path, target in group.links.items():
        where = forest.where(root, path)
        if where.is_symlink() and os.readlink(where) != target:
            raise Violation("a link says something else")
        if is_answered and not where.is_symlink():
            raise Violation("it was answered, and the link is not there")
    for path in group.gone:
        where = forest.where(root, path)
        if is_answered and where.exists():
            raise Violation("it was answered, and what was removed is there")
        if where.is_file() and where.read_bytes() != forest.old_content(path):
            raise Violation("what is to be removed is no longer whole")
    for path in group.folders:
        if is_answered and not forest.where(root, path).is_dir():
            raise Violation("it was answered, and the folder is not there")


def replay(forest: Forest, few: int = 2, seed: int = 0) -> int:
    """Check every state that a power cut may leave of it; return how many there were. Raises Violation."""
    rng = random.Random(seed)
    count = 0
    with fast_folder() as base:
        (base / "live").mkdir()
        recorder = record(forest, base / "live")
        if left := reserved(base / "live"):
            raise Violation(f"without a power cut there is left: {left}")
        for length in range(len(recorder.ops) + 1):
            disk = Disk(recorder, length)
            for choice in choices(rng, disk, few):
                root = base / f"{count}"
                root.mkdir()
                disk.materialise(root, choice)
                check(forest, root, answers=disk.answers)
                shutil.rmtree(root)
                count += 1
    return count


FORESTS = {
    "new files": Forest((Group({"a": 700, "b": 0, "c": 1}),), base=""),
    "over old files": Forest((Group({"a": 700, "b": 5}),), old={"a": 900, "b": 3}),
    "in new folders": Forest((Group({"a/b/f": 600, "a/g": 10}),), base="x/y"),
    "links and folders": Forest((Group({"f": 10}, {"l": "f", "d/l": "../f"}, ("e", "")),)),
    "links alone": Forest((Group({}, {"l": "f", "d/l": "../f"}),)),
    "folders alone": Forest((Group({}, {}, ("a/b", "a")),)),
    "two groups": Forest((Group({"a/f": 600}), Group({"a/g": 10, "h": 700}, {"a/l": "f"})), old={"a/g": 900}),
    "removed": Forest((Group({"f": 10}, {}, (), ("a", "d/e/g")), Group(gone=("d/e",))), old={"a": 700, "d/e/g": 5}),
    "nothing is replaced": Forest((Group({"a": 700, "b/c": 5}),), old={"a": 900}, if_exists="fail"),
}


@contextmanager
def syncing(whole: bool) -> Iterator[None]:
    """Have file systems synced as a whole, or each file and folder by itself, whatever this system can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync, "syncs_file_systems", lambda: whole)
        yield


@pytest.mark.parametrize("whole", [True, False], ids=["file system", "each"])
@pytest.mark.parametrize("name", FORESTS)
def test_every_state_that_a_power_cut_may_leave_is_recovered_from(name: str, whole: bool) -> None:
    """Each name shows the old file or the new one, whole; after the answer the new one; the next run succeeds."""
    with syncing(whole):
        assert replay(FORESTS[name]) > 100


@pytest.mark.parametrize("name", ["two groups", "links and folders"])
def test_a_kill_between_any_two_calls_leaves_nothing_to_a_sweep(name: str) -> None:
    """Where no power was cut the journal is whole: after a sweep nothing staged is left anywhere."""
    forest = FORESTS[name]
    with fast_folder() as base, syncing(whole=True):
        (base / "live").mkdir()
        recorder = record(forest, base / "live")
        for length in range(len(recorder.ops) + 1):
            root = base / f"{length}"
            root.mkdir()
            Disk(recorder, length).materialise(root, Choice(random.Random(0), "all", "all"))
            with closing(LocalStore(root, durable=False)) as store:
                store.sweep()
            assert reserved(root) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_second_power_cut_while_the_first_is_recovered_from(seed: int) -> None:
    """A run that goes on from what a power cut left may be cut itself."""
    rng = random.Random(seed)
    forest = rng.choice([FORESTS["two groups"], FORESTS["over old files"], FORESTS["links and folders"]])
    with fast_folder() as base, syncing(whole=True):
        for part in ("live", "cut", "again"):
            (base / part).mkdir()
        first = record(forest, base / "live")
        Disk(first, rng.randrange(len(first.ops))).materialise(base / "cut", Choice(rng, "some", "some"))
        second = Recorder(base / "cut")
        with second.watching(), closing(LocalStore(base / "cut")) as store:
            store.sweep()
            forest.run(store, lambda: second.ops.append(Op(RETURNED)))
        for number in range(40):
            disk = Disk(second, rng.randrange(len(second.ops) + 1))
            root = base / "again" / f"{number}"
            root.mkdir()
            how = [rng.choice(["all", "some", "none"]) for _ in range(2)]
            disk.materialise(root, Choice(rng, *how))
            check(forest, root, answers=disk.answers)


# The checker itself: it has to see what is wrong.


def leave_out(which: int) -> Callable[..., None]:
    """Return a `_sync` that leaves out each first, or each second, of two."""
    count = [0]
    real = LocalTree._sync

    def sometimes(self: LocalTree, *arguments: object) -> None:
        count[0] += 1
        if count[0] % 2 != which % 2:
            real(self, *arguments)  # type: ignore[arg-type]

    return sometimes


@pytest.mark.parametrize("whole", [True, False], ids=["file system", "each"])
def test_the_checker_sees_a_rename_before_the_sync(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """A tree that publishes bytes that are not synced is found out."""
    if whole:
        monkeypatch.setattr(LocalTree, "_sync", leave_out(1))
    else:
        monkeypatch.setattr(sync, "sync_file", lambda _: None)
        monkeypatch.setattr(Recorder, "watching", without_file_syncs(Recorder.watching))
    with syncing(whole), pytest.raises(Violation, match="the final name shows"):
        replay(FORESTS["over old files"])


def without_file_syncs(real: Callable[..., object]) -> Callable[..., object]:
    """Return a `watching` under which no file is synced by itself."""

    @contextmanager
    def watching(self: Recorder) -> Iterator[None]:
        with real(self), pytest.MonkeyPatch.context() as patch:  # type: ignore[attr-defined]
            patch.setattr(sync, "sync_file", lambda _: None)
            yield

    return watching


@pytest.mark.parametrize("name", ["new files", "links alone", "folders alone", "in new folders"])
def test_the_checker_sees_an_answer_before_the_sync(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A tree that answers for names that are not on the disk is found out."""
    monkeypatch.setattr(LocalTree, "_sync", leave_out(2) if FORESTS[name].groups[0].files else lambda *_: None)
    with syncing(whole=True), pytest.raises(Violation, match="it was answered"):
        replay(FORESTS[name])


def test_the_checker_sees_new_folders_that_are_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder by itself: those above the tree count too."""
    monkeypatch.setattr(Synced, "ensure", lambda *_, **__: None)
    with syncing(whole=False), pytest.raises(Violation, match="it was answered"):
        replay(FORESTS["in new folders"])

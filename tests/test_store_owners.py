"""Stores of folders of stores, and who owns what is staged: for all stores, then what only a disk can show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import journals, reserved, staged
from support import descriptors_come_back
from test_store_contract import MAKERS, T1, Maker, content, describe, save, write
from test_store_trees import File, add_all

from ftransfer import digests
from ftransfer.errors import AlreadyExists, BadPath, Busy, DiskError, NotAFile, NotFound
from ftransfer.store import journal, local_trees, staging
from ftransfer.store.base import Store
from ftransfer.store.local import LocalStore


class Disk(NamedTuple):
    """What statvfs says."""

    f_bavail: int
    f_frsize: int = 4096
    f_favail: int = 100
    f_files: int = 100


# Those that are guarded have the owner that their account says.
OPEN = {name: make for name, make in MAKERS.items() if "guarded" not in name}


@pytest.fixture(params=OPEN.values(), ids=OPEN)
def store(request: pytest.FixtureRequest, root: Path) -> Iterator[Store]:
    """An empty store."""
    make: Maker = request.param
    with closing(make(root)) as made:
        yield made


@pytest.fixture
def local(root: Path) -> Iterator[LocalStore]:
    """A store of a folder on a disk."""
    with closing(LocalStore(root)) as made:
        yield made


def leave(store: Store, path: str, data: bytes | None, *, held: bytes = b"he", **more: object) -> None:
    """Leave an unfinished transfer."""
    claimed = store.claim(describe(path, data, **more))
    if held:
        write(claimed, 0, held)
    claimed.release()


def owners(store: Store, path: str = "", owner: str | None = None) -> list[tuple[str, str]]:
    """Return the path and the owner of all that is unfinished."""
    return [(partial.path, partial.owner) for partial in store.partials(path, owner=owner)]


# Folders.


def test_a_store_below_is_the_folder(store: Store) -> None:
    """What is put into one is in the other; both are closed by themselves."""
    save(store, "a/b/old", b"old")
    inner = store.below("a/b")
    assert content(inner, "old") == b"old"
    save(inner, "c/new", b"new")
    assert content(store, "a/b/c/new") == b"new"
    with closing(inner.below("c")) as innermost, closing(inner.below("")) as again:
        inner.close()
        assert content(innermost, "new") == b"new"
        assert [entry.path for entry in again.entries("", recursive=True)] == ["c", "c/new", "old"]
        assert innermost.stat("").kind == "folder"
        assert innermost.capabilities == store.capabilities


def test_a_folder_that_is_missing_is_made_only_on_request(store: Store) -> None:
    """And a file is none."""
    save(store, "file", b"x")
    for path, expected in (("no", NotFound), ("no/thing", NotFound), ("file", NotAFile), ("file/x", NotAFile)):
        with pytest.raises(expected):
            store.below(path).close()
    for path in ("file", "file/x"):
        with pytest.raises(NotAFile):
            store.below(path, create=True).close()
    for _ in range(2):
        store.below("a/b", create=True).close()
    assert [entry.path for entry in store.entries("", recursive=True)] == ["a", "a/b", "file"]


def test_a_store_below_has_transfers_of_its_own(store: Store) -> None:
    """What is unfinished in a folder is known to every store of that folder, and to no other."""
    with closing(store.below("a", create=True)) as inner:
        leave(inner, "f", b"hello")
        assert [partial.path for partial in inner.partials()] == ["f"]
    assert store.partials() == []
    with closing(store.below("a")) as again:
        claimed = again.claim(describe("f", b"hello"))
        assert claimed.inherited == 2
        claimed.discard()


@pytest.mark.parametrize("path", ["../x", "a/../..", "/", "/etc", ".", "a//b", ".ftransfer", "a/.ftransfer-x", "a\0"])
def test_names_that_lead_elsewhere_are_refused(store: Store, path: str) -> None:
    """Whatever is asked for, a store below is below."""
    for create in (False, True):
        with pytest.raises(BadPath):
            store.below(path, create=create).close()


def test_a_link_is_no_folder_to_be_below(root: Path, tmp_path: Path, local: LocalStore) -> None:
    """Neither as the folder nor on the way, also not one that stays inside."""
    (tmp_path / "outside" / "sub").mkdir(parents=True)
    (root / "real" / "sub").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to("real")
    for path in ("out", "in", "out/sub", "in/sub", "out/new"):
        for create in (False, True):
            with descriptors_come_back(), pytest.raises(NotAFile):
                local.below(path, create=create)
    assert os.listdir(tmp_path / "outside") == ["sub"]


def test_a_store_below_is_the_folder_wherever_it_goes(root: Path, local: LocalStore) -> None:
    """It was opened, so a link that takes its name later leads it nowhere; its state lies in the folder itself."""
    with closing(local.below("a/b", create=True)) as inner:
        (root / "a" / "b").rename(root / "moved")
        (root / "a" / "b").symlink_to("/tmp")
        save(inner, "f", b"x")
        leave(inner, "g", b"hello")
        assert (root / "moved" / "f").read_bytes() == b"x"
        assert len(journals(root / "moved")) == 1
        assert journals(root) == []
        assert inner.keep_free == local.keep_free
    (root / "moved" / "f").unlink()


def test_what_is_known_of_a_disk_is_found_out_once(root: Path, local: LocalStore) -> None:
    """For all stores of a folder."""
    (root / "a").mkdir()
    for _ in range(2):
        with closing(local.below("a")) as inner:
            assert (inner.clock_step(), inner.folds()) == (local.clock_step(), local.folds())
    assert len(local._probed) == 4  # two questions about two folders


# Owners.


def test_nobody_takes_up_what_another_has_staged(store: Store) -> None:
    """Not for equal path, size and fingerprint; both go on with their own."""
    leave(store, "f", b"hello", owner="ann", held=b"hel")
    for owner in ("bob", ""):
        claimed = store.claim(describe("f", b"hello", owner=owner))
        assert (claimed.inherited, claimed.taken_up) == (0, False)
        claimed.release()
    assert owners(store) == [("f", "ann"), ("f", "bob"), ("f", "")]
    again = store.claim(describe("f", b"hello", owner="ann"))
    assert (again.inherited, again.taken_up) == (3, True)
    with pytest.raises(Busy):
        store.claim(describe("f", b"hello", owner="ann"))
    store.claim(describe("f", b"hello", owner="bob")).release()
    again.release()


def test_a_commit_drops_only_what_its_owner_has_staged(store: Store) -> None:
    """A stranger's half upload of the same name stays, and can be finished."""
    for owner in ("ann", "bob", ""):
        leave(store, "f", b"hello", owner=owner, fingerprint="f1")
        leave(store, "f", b"hello", owner=owner, fingerprint="f2")
    save(store, "f", b"other", owner="ann", fingerprint="f3")
    assert owners(store) == [("f", "bob"), ("f", "bob"), ("f", ""), ("f", "")]
    save(store, "f", b"other", fingerprint="f3")
    assert owners(store) == [("f", "bob"), ("f", "bob")]
    claimed = store.claim(describe("f", b"hello", owner="bob", fingerprint="f1"))
    write(claimed, 2, b"llo")
    claimed.commit(5, digests.block_hash(b"hello"))
    assert content(store, "f") == b"hello"
    assert store.partials() == []


def test_partials_of_an_owner(store: Store) -> None:
    """Only these are listed, and only these are dropped."""
    for path, owner in (("a/f", "ann"), ("a/f", "bob"), ("b", "ann"), ("b", "")):
        leave(store, path, b"hello", owner=owner)
    assert owners(store, owner="ann") == [("a/f", "ann"), ("b", "ann")]
    assert owners(store, "a", owner="bob") == [("a/f", "bob")]
    assert owners(store, owner="") == [("b", "")]
    assert owners(store, owner="an") == []
    assert [partial.path for partial in store.partials("b", clear=True, owner="ann")] == ["b"]
    assert owners(store) == [("a/f", "ann"), ("a/f", "bob"), ("b", "")]
    assert len(store.partials(clear=True)) == 3
    assert store.partials() == []


def test_what_an_owner_has_staged_is_counted(store: Store) -> None:
    """By the sizes that were announced; of a stream, what is there."""
    assert store.staged("ann") == (0, 0)
    leave(store, "a", bytes(1000), owner="ann")
    leave(store, "b", bytes(500), owner="ann", held=b"")
    leave(store, "c", b"", owner="ann", held=b"")
    leave(store, "d", None, owner="ann", transfer=T1, held=b"x" * 70)
    leave(store, "e", bytes(3), owner="bob")
    leave(store, "e", bytes(5))
    leave(store, "f", None, transfer=T1, held=b"x" * 7)
    assert (store.staged("ann"), store.staged("bob"), store.staged("")) == ((4, 1570), (1, 3), (2, 12))
    save(store, "a", bytes(1000), owner="ann")
    store.partials("d", clear=True, owner="ann")
    assert store.staged("ann") == (2, 500)


def test_a_lost_receipt_is_its_owners(store: Store) -> None:
    """Another one who names the same transfer finds nothing, and changes nothing about it."""
    asked = describe("f", b"hello", transfer=T1, owner="ann")
    done = save(store, "f", b"hello", transfer=T1, owner="ann")
    for owner in ("bob", ""):
        assert store.committed(asked._replace(owner=owner)) is None
        save(store, "g", b"x", transfer=T1, owner=owner)
    assert store.committed(asked) == done


def test_a_journal_without_an_owner_is_taken_up(root: Path, local: LocalStore) -> None:
    """As it was written before there were owners; it is nobody's."""
    leave(local, "f", b"hello")
    (found,) = journals(root)
    assert b"owner" not in found.read_bytes()
    assert found.name.count("-") == 1
    claimed = local.claim(describe("f", b"hello"))
    assert claimed.inherited == 2
    claimed.discard()


@pytest.mark.parametrize("field", [{"owner": "bob"}, {"path": "other"}])
def test_a_journal_in_anothers_place_is_left_alone(root: Path, local: LocalStore, field: dict[str, str]) -> None:
    """Its name is made of hashes, and hashes can be made to be equal: what counts is what it says inside."""
    leave(local, "f", b"hello", owner="ann")
    (found,) = journals(root)
    decoded = journal.decode_head(found.read_bytes())
    assert decoded is not None
    found.write_bytes(journal.encode_head(decoded[0]._replace(**field)))
    before = found.read_bytes()
    with descriptors_come_back(), pytest.raises(Busy):
        local.claim(describe("f", b"hello", owner="ann"))
    assert found.read_bytes() == before
    assert len(staged(root)) == 1


def test_a_commit_says_what_it_replaced(store: Store) -> None:
    """In bytes: nothing for a free name, also where another name was found."""
    for data, policy, expected in (
        (b"first", "replace", 0),
        (b"other!", "replace", 5),
        (b"x", "rename", 0),
        (b"newer", "newer", 6),
    ):
        claimed = store.claim(describe("f", data, if_exists=policy, mtime_ns=2 * 10**18, fingerprint=None))
        write(claimed, 0, data)
        assert claimed.commit(len(data), digests.block_hash(data)).size == len(data)
        assert claimed.replaced == expected
        store.stat("f")
        if policy == "rename":
            save(store, "f", b"other!", mtime_ns=1)
    assert store.stat("f").size == 5


def test_a_removal_says_what_went(store: Store) -> None:
    """Of a file, of a folder with all that is in it; nothing of what failed."""
    for number in range(1, 5):
        save(store, f"a/{number}/f", bytes(number))
    save(store, "g", bytes(7))
    store.mkdir("h")
    freed: list[int] = []
    store.remove("g", freed=freed.append)
    assert sum(freed) == 7
    store.remove("h", freed=freed.append)
    assert sum(freed) == 7
    with pytest.raises(NotFound):
        store.remove("g", freed=freed.append)
    with pytest.raises(NotAFile):
        store.remove("a", freed=freed.append)
    store.remove("a", recursive=True, freed=freed.append)
    assert sum(freed) == 17


def test_a_tree_says_what_went(store: Store) -> None:
    """By files that were replaced, in folders new and old, twice in one group too, and by what was removed."""
    save(store, "in/old", bytes(10), mtime_ns=5)
    freed: list[int] = []
    with closing(store.tree("in", freed=freed.append)) as tree:
        assert add_all(tree, File("old", bytes(3)), File("new/a", bytes(4)), File("b", bytes(5))) == {}
        assert sum(freed) == 10
        assert add_all(tree, File("new/a", bytes(6)), File("c/x", bytes(2)), File("c/x", bytes(1))) == {}
        assert sum(freed) == 16
        tree.remove("b")
        assert sum(freed) == 21
        with pytest.raises(NotFound):
            tree.remove("b")
        tree.remove("c/x")
        tree.remove("c")
        assert sum(freed) == 22
    for policy, expected in (("fail", 0), ("newer", 3)):
        freed.clear()
        with closing(store.tree("in", policy, freed=freed.append)) as tree:
            failed = add_all(tree, File("old", bytes(8), mtime_ns=1 << 61), File(policy, bytes(9)))
        assert [type(exc) for exc in failed.values()] == ([AlreadyExists] if policy == "fail" else [])
        assert sum(freed) == expected


def test_what_the_store_keeps_for_itself_is_not_counted(root: Path, local: LocalStore) -> None:
    """Removing a folder in which others have staged something frees nothing of anybody's share but its files."""
    with closing(local.below("a", create=True)) as inner:
        leave(inner, "f", bytes(1000), held=bytes(500))
        save(inner, "b/g", bytes(3), transfer=T1)
        leave(local, "a/b/h", bytes(1000), held=bytes(500))
    freed: list[int] = []
    local.remove("a", recursive=True, freed=freed.append)
    assert sum(freed) == 3
    assert os.listdir(root) == [".ftransfer"]


# Only what is new.


@pytest.mark.parametrize("existed", [False, True])
def test_a_tree_of_new_things_leaves_old_folders_as_they_are(root: Path, local: LocalStore, existed: bool) -> None:
    """Their time and mode; those that it made itself get what they are to have, its own folder too."""
    if existed:
        (root / "in").mkdir()
    (root / "other" / "deep").mkdir(parents=True)
    for path in root.rglob("*"):
        path.chmod(0o755)
        os.utime(path, ns=(5, 5))
    with closing(local.tree("in", "fail", only_new=True)) as tree:
        assert add_all(tree, File("a/b/f", b"x")) == {}
        facts = [("a/b", 10**18, 0o700), ("a", 10**18, 0o700), ("", 10**18, 0o700)]
        assert tree.commit(facts) == ({}, {})
    expected = {"in/a/b": (0o700, 10**18), "in/a": (0o700, 10**18)}
    if not existed:
        expected["in"] = (0o700, 10**18)
    for name, (mode, mtime_ns) in expected.items():
        found = (root / name).stat()
        assert (found.st_mode & 0o777, found.st_mtime_ns) == (mode, mtime_ns)
    if existed:
        assert (root / "in").stat().st_mode & 0o777 == 0o755
    with closing(local.tree("other", "fail", only_new=True)) as tree:
        assert tree.commit([("deep", 10**18, 0o700), ("", 10**18, 0o700)]) == ({}, {})
    for name in ("other", "other/deep"):
        found = (root / name).stat()
        assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o755, 5)


def test_a_tree_of_new_things_leaves_old_links_as_they_are(root: Path, local: LocalStore) -> None:
    """The same link is there already, whatever its time."""
    (root / "l").symlink_to("there")
    os.utime(root / "l", ns=(5, 5), follow_symlinks=False)
    with closing(local.tree("", "fail", only_new=True)) as tree:
        tree.link("l", "there", 10**18)
        tree.link("new", "there", 10**18)
        with pytest.raises(AlreadyExists):
            tree.link("l", "elsewhere", 10**18)
        assert tree.commit() == ({}, {})
    assert (root / "l").lstat().st_mtime_ns == 5
    assert (root / "new").lstat().st_mtime_ns == 10**18
    assert os.readlink(root / "l") == "there"


def test_how_many_folders_a_tree_remembers_is_bounded(
    root: Path, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond are made all the same, and keep the time and mode that they got then."""
    monkeypatch.setattr(local_trees, "MOST_MADE", 2)
    with closing(local.tree("", "fail", only_new=True)) as tree:
        assert tree.commit([(name, 10**18, 0o700) for name in ("a", "b", "c", "d")]) == ({}, {})
    kept = [name for name in ("a", "b", "c", "d") if (root / name).stat().st_mtime_ns == 10**18]
    assert kept == ["a", "b"]


# What is left free.


def test_what_is_to_stay_free_is_not_given_away(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that would need it is refused before its first byte, by an error that names the limit."""
    monkeypatch.setattr(os, "fstatvfs", lambda _: Disk(1000))
    with closing(LocalStore(root, keep_free=900 * 4096)) as store:
        with closing(store.tree("")) as tree:
            assert tree.room() == (100 * 4096, 100)
        store.claim(describe("f", bytes(100 * 4096))).discard()
        claimed = store.claim(describe("f", bytes(100 * 4096 + 1)))
        with pytest.raises(DiskError, match="no space") as caught:
            claimed.check_space()
        assert "keep_free" in caught.value.hint
        with closing(store.below("a", create=True)) as inner:
            claimed = inner.claim(describe("f", bytes(100 * 4096 + 1)))
            with pytest.raises(DiskError, match="no space"):
                claimed.check_space()
    assert reserved(root) == []


@pytest.mark.parametrize("size", [None, 1 << 30], ids=["stream", "file"])
def test_what_is_to_stay_free_is_looked_at_while_bytes_come(
    root: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    """A stream has no size to ask for, and several files may fill a disk together; nothing stays staged."""
    monkeypatch.setattr(staging, "WRITE_BACK", 1000)
    asked = []

    def free(fd: int) -> object:
        asked.append(fd)
        return Disk(2**40 if len(asked) < 4 else 899)

    monkeypatch.setattr(os, "fstatvfs", free)
    with closing(LocalStore(root, keep_free=900 * 4096)) as store:
        claimed = store.claim(describe("f", None)._replace(size=size))
        claimed.check_space()
        for number in range(29):
            write(claimed, number * 100, b"x" * 100)
        with pytest.raises(DiskError, match="no space") as caught:
            write(claimed, 2900, b"x" * 100)
        assert "keep_free" in caught.value.hint
        assert len(asked) == 4
        claimed.release()
    assert reserved(root) == []
    assert os.listdir(root) == []


def test_a_tree_looks_at_what_is_to_stay_free(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first file, and then now and then, over all its groups."""
    monkeypatch.setattr(local_trees, "ASK_BYTES", 1000)
    asked = []

    def free(fd: int) -> object:
        asked.append(fd)
        return Disk(2**40 if len(asked) < 4 else 899)

    monkeypatch.setattr(os, "fstatvfs", free)
    with closing(LocalStore(root, keep_free=900 * 4096)) as store, closing(store.tree("in")) as tree:
        for number in range(30):
            tree.add(f"{number}", memoryview(bytes(100)), 10**18, 0o644)
            if number % 7 == 0:
                assert tree.commit() == ({}, {})
        assert len(asked) == 3
        for _ in range(2):  # also after what is staged was published
            with pytest.raises(DiskError, match="no space"):
                tree.add("more", memoryview(bytes(100)), 10**18, 0o644)
            assert tree.commit() == ({}, {})
    assert reserved(root) == []
    assert len(os.listdir(root / "in")) == 30

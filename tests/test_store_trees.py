"""What the tree and the reader of every store promise to the loops that move packs: one suite for all stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import block_hash
from test_store_contract import MAKERS, Maker, content, save

from ftransfer.errors import AlreadyExists, FtransferError, NotAFile, NotFound
from ftransfer.store.base import Store
from ftransfer.store.trees import Tree

TIME = 1_700_000_000_123_456_789
POLICIES = ("replace", "newer", "skip", "fail")


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def store(request: pytest.FixtureRequest, root: Path) -> Iterator[Store]:
    """An empty store."""
    make: Maker = request.param
    with closing(make(root)) as made:
        yield made


class File(NamedTuple):
    """What is put into a tree."""

    path: str
    data: bytes
    mtime_ns: int = TIME
    mode: int = 0o640


def add_all(tree: Tree, *files: File) -> dict[int, FtransferError]:
    """Stage files and publish them; return what failed, by its place, whenever that was."""
    failed: dict[int, FtransferError] = {}
    added = []
    for at, file in enumerate(files):
        try:
            tree.add(file.path, memoryview(file.data), file.mtime_ns, file.mode)
            added.append(at)
        except FtransferError as exc:
            failed[at] = exc
    bad, folders = tree.commit()
    assert folders == {}
    return failed | {added[at]: exc for at, exc in bad.items()}


def read(store: Store, base: str, path: str, room: int = 1 << 20) -> bytes | None:
    """Read a small file through a reader."""
    view = memoryview(bytearray(room))
    with store.reader(base) as reader:
        packed = reader.read(path, view)
        return None if packed is None else bytes(view[: packed.size])


def names(store: Store) -> list[str]:
    """Return all that can be listed."""
    return [entry.path for entry in store.entries("", recursive=True)]


# Files.


@pytest.mark.parametrize("base", ["", "in", "in/a/b"])
@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_what_was_committed_is_there_as_it_was_announced(store: Store, base: str, size: int) -> None:
    """Bytes, size, time and mode, in folders that were not there."""
    data = bytes(n % 251 for n in range(size))
    with closing(store.tree(base)) as tree:
        assert add_all(tree, File("f", data), File("d/e/f", data, mtime_ns=-1, mode=0o4755)) == {}
    with store.reader(base) as reader:
        for path, mtime_ns, mode in (("f", TIME, 0o640), ("d/e/f", -1, 0o755)):
            entry = reader.stat(path)
            assert entry is not None
            assert entry[:4] == (path, "file", size, mtime_ns)
            if store.capabilities.keeps_modes:
                assert entry.mode == mode
            assert read(store, base, path) == data
    assert store.partials() == []


def test_nothing_shows_before_the_commit(store: Store) -> None:
    """The old file is there, whole, until the group is published; what was added and not committed is dropped."""
    save(store, "in/f", b"old")
    tree = store.tree("in")
    tree.add("f", memoryview(b"new"), TIME, 0o644)
    tree.add("g", memoryview(b"new"), TIME, 0o644)
    assert content(store, "in/f") == b"old"
    assert [entry.path for entry in store.entries("in")] == ["f"]
    tree.close()
    assert content(store, "in/f") == b"old"
    assert names(store) == ["in", "in/f"]
    assert store.partials() == []


def test_groups_follow_each_other(store: Store) -> None:
    """Each commit publishes what was added since the last one; one of nothing does nothing."""
    with closing(store.tree("in")) as tree:
        assert tree.commit() == ({}, {})
        for number in range(5):
            assert add_all(tree, File(f"a/{number}", b"x"), File(f"{number}/b", b"y")) == {}
            assert content(store, f"in/a/{number}") == b"x"
        assert tree.commit() == ({}, {})
    assert len([path for path in names(store) if path.count("/") == 2]) == 10


def test_a_tree_of_nothing_makes_nothing(store: Store) -> None:
    """The folder is made when it is needed, not before."""
    store.tree("a/b").close()
    with closing(store.tree("c")) as tree:
        tree.commit()
        tree.room()
    assert names(store) == []


def test_what_exists_is_told(store: Store) -> None:
    """A folder that is not there, or is empty, holds nothing; any file or folder in it is something."""

    def exists(path: str) -> bool:
        with closing(store.tree(path)) as tree:
            return tree.exists

    assert not exists("")
    assert not exists("a/b")
    store.mkdir("a")
    assert not exists("a")
    store.mkdir("a/b")
    assert exists("a")
    assert not exists("a/b")
    save(store, "a/b/c", b"x")
    assert exists("a/b")
    assert exists("")


def test_a_tree_in_a_file_is_refused(store: Store) -> None:
    """At its beginning."""
    save(store, "f", b"old")
    for path in ("f", "f/a"):
        with pytest.raises(NotAFile):
            store.tree(path).close()
    assert content(store, "f") == b"old"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("age", [-1, 0, 1], ids=["older", "as old", "newer"])
def test_the_policy_decides_on_names_that_are_taken(store: Store, policy: str, age: int) -> None:
    """One file that may not replace another fails alone, by its place; free names are taken under each policy."""
    save(store, "in/d/taken", b"old", mtime_ns=TIME)
    with closing(store.tree("in", policy)) as tree:
        failed = add_all(tree, File("a", b"a"), File("d/taken", b"new", mtime_ns=TIME + age), File("z", b"z"))
    replaces = policy == "replace" or (policy == "newer" and age > 0)
    assert {at: type(exc) for at, exc in failed.items()} == ({} if replaces else {1: AlreadyExists})
    assert content(store, "in/d/taken") == (b"new" if replaces else b"old")
    assert (content(store, "in/a"), content(store, "in/z")) == (b"a", b"z")
    assert store.partials() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_a_file_replaces_no_folder_and_goes_through_no_file(store: Store, policy: str) -> None:
    """It fails alone, under each policy; the folder keeps what is in it."""
    save(store, "in/folder/inner", b"old", mtime_ns=0)
    save(store, "in/file", b"old", mtime_ns=0)
    with closing(store.tree("in", policy)) as tree:
        failed = add_all(tree, File("a", b"a"), File("folder", b"new"), File("file/x", b"new"), File("z", b"z"))
    assert failed.keys() == {1, 2}
    assert isinstance(failed[1], (NotAFile, AlreadyExists))
    assert isinstance(failed[2], NotAFile)
    assert names(store) == ["in", "in/a", "in/file", "in/folder", "in/folder/inner", "in/z"]
    assert (content(store, "in/folder/inner"), content(store, "in/file")) == (b"old", b"old")


@pytest.mark.parametrize("policy", POLICIES)
def test_one_name_twice_in_a_group(store: Store, policy: str) -> None:
    """One of both has it, whole; where nothing is replaced, the first, and the second is told so."""
    with closing(store.tree("in", policy)) as tree:
        failed = add_all(tree, File("f", b"first"), File("f", b"second"))
    if policy == "replace":
        assert failed == {}
        assert content(store, "in/f") == b"second"
    else:
        assert {at: type(exc) for at, exc in failed.items()} == {1: AlreadyExists}
        assert content(store, "in/f") == b"first"


def test_a_file_and_a_folder_of_one_name_in_a_group(store: Store) -> None:
    """One of both is there in the end, and the other one was told so; never neither, never a mixture."""
    with closing(store.tree("in")) as tree:
        failed = add_all(tree, File("a", b"file"), File("a/b", b"inner"))
    assert len(failed) == 1
    assert isinstance(next(iter(failed.values())), NotAFile)
    assert names(store) in (["in", "in/a"], ["in", "in/a", "in/a/b"])


def test_two_trees_of_one_folder(store: Store) -> None:
    """Two writers of the same names: one whole winner of each, and nothing is left of the other."""
    one, other = store.tree("in"), store.tree("in")
    for tree, data in ((one, b"one"), (other, b"other")):
        for name in ("f", "d/g"):
            tree.add(name, memoryview(data), TIME, 0o644)
    assert one.commit() == ({}, {})
    assert other.commit() == ({}, {})
    one.close()
    other.close()
    assert (content(store, "in/f"), content(store, "in/d/g")) == (b"other", b"other")
    assert names(store) == ["in", "in/d", "in/d/g", "in/f"]


def test_the_caller_may_use_its_buffer_again(store: Store) -> None:
    """What was added is what was in the buffer then."""
    buffer = memoryview(bytearray(b"first"))
    with closing(store.tree("")) as tree:
        tree.add("a", buffer, TIME, 0o644)
        buffer[:] = b"other"
        tree.add("b", buffer, TIME, 0o644)
        buffer[:] = b"third"
        assert tree.commit() == ({}, {})
    assert (content(store, "a"), content(store, "b")) == (b"first", b"other")


def test_closing_twice_is_harmless(store: Store) -> None:
    """However it ended."""
    tree = store.tree("in")
    assert add_all(tree, File("f", b"x")) == {}
    tree.close()
    tree.close()
    assert content(store, "in/f") == b"x"


def test_the_room_is_a_number_or_unknown(store: Store) -> None:
    """Before the folder is there, and after."""
    with closing(store.tree("in")) as tree:
        for _ in range(2):
            assert all(free is None or free > 0 for free in tree.room())
            assert add_all(tree, File("f", b"x")) == {}


# Folders and stamps.


def test_folders_are_made_or_taken(store: Store) -> None:
    """With those above; "" is the tree's own; a file in the way is named, by its place."""
    save(store, "in/file", b"old")
    store.mkdir("in/old")
    with closing(store.tree("in")) as tree:
        tree.folder("a/b/c", TIME, 0o750)
        tree.folder("old", TIME, 0o750)
        _, bad = tree.commit([("", TIME, 0o750), ("file", TIME, 0o750), ("new", TIME, 0o750), ("file/x", TIME, 0o755)])
    assert {at: type(exc) for at, exc in bad.items()} == {1: NotAFile, 3: NotAFile}
    assert names(store) == ["in", "in/a", "in/a/b", "in/a/b/c", "in/file", "in/new", "in/old"]
    assert content(store, "in/file") == b"old"


def test_a_tree_of_folders_alone(store: Store) -> None:
    """Needs no file, and makes its own folder too."""
    with closing(store.tree("x/y")) as tree:
        assert tree.commit([("a/b", TIME, 0o755), ("a", TIME, 0o755), ("", TIME, 0o755)]) == ({}, {})
    assert names(store) == ["x", "x/y", "x/y/a", "x/y/a/b"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stamp_changes_time_and_mode_of_what_is_there(store: Store, policy: str) -> None:
    """Under each policy, for names are not taken by it; the bytes stay."""
    save(store, "in/d/f", b"data", mtime_ns=5, mode=0o600)
    with closing(store.tree("in", policy)) as tree:
        tree.stamp("d/f", TIME, 0o4644)
        assert tree.commit() == ({}, {})
    entry = store.stat("in/d/f")
    assert entry[1:4] == ("file", 4, TIME)
    if store.capabilities.keeps_modes:
        assert entry.mode == 0o644
    assert content(store, "in/d/f") == b"data"


def test_stamps_of_what_is_no_file_are_refused(store: Store) -> None:
    """Nothing is made by it."""
    store.mkdir("in/folder", parents=True)
    with closing(store.tree("in")) as tree:
        for path, expected in (("folder", NotAFile), ("nothing", NotFound), ("no/thing", NotFound)):
            with pytest.raises(expected):
                tree.stamp(path, TIME, 0o644)
        assert tree.commit() == ({}, {})
    assert names(store) == ["in", "in/folder"]


def test_what_is_gone_is_removed(store: Store) -> None:
    """Files and empty folders; a folder that holds something stays, and what is not there is told, and not made."""
    for path in ("a", "d/e/f", "full/x"):
        save(store, f"in/{path}", b"x")
    with closing(store.tree("in")) as tree:
        for path in ("a", "d/e/f", "d/e", "d"):
            tree.remove(path)
        for path, expected in (
            ("full", NotAFile),
            ("a", NotFound),
            ("no/thing", NotFound),
            ("d/e", NotFound),
            ("full/x/y", NotAFile),
        ):
            with pytest.raises(expected):
                tree.remove(path)
        assert tree.commit() == ({}, {})
        assert names(store) == ["in", "in/full", "in/full/x"]
        assert add_all(tree, File("d/e/f", b"new"), File("a/b", b"new")) == {}
    assert content(store, "in/d/e/f") == b"new"
    assert names(store) == ["in", "in/a", "in/a/b", "in/d", "in/d/e", "in/d/e/f", "in/full", "in/full/x"]


def test_a_tree_of_nothing_to_remove_makes_nothing(store: Store) -> None:
    """Neither its own folder."""
    with closing(store.tree("x/y")) as tree:
        calls: list[Callable[[], object]] = [lambda: tree.remove("a/b"), lambda: tree.stamp("a/b", TIME, 0o644)]
        for call in calls:
            with pytest.raises(NotFound):
                call()
        assert tree.commit() == ({}, {})
    assert names(store) == []


def test_stamps_do_not_count_among_the_files(store: Store) -> None:
    """What failed is found by its place among the files, whatever was stamped in between."""
    save(store, "in/a", b"old")
    save(store, "in/b", b"old")
    with closing(store.tree("in", "fail")) as tree:
        tree.add("new", memoryview(b"x"), TIME, 0o644)
        tree.stamp("a", TIME, 0o644)
        tree.add("b", memoryview(b"x"), TIME, 0o644)
        failed, _ = tree.commit()
    assert {at: type(exc) for at, exc in failed.items()} == {1: AlreadyExists}


# Reading.


def test_a_reader_says_what_there_is(store: Store) -> None:
    """Paths are relative to its folder; nothing, also below a file, is None."""
    save(store, "in/d/f", b"data", mtime_ns=TIME)
    with store.reader("in") as reader:
        found = [reader.stat(path) for path in ("d", "d/f", "nothing", "nothing/x", "d/f/x", "x" * 255)]
    assert [entry and entry[:2] for entry in found] == [("d", "folder"), ("d/f", "file"), None, None, None, None]
    assert found[1] is not None
    assert found[1][2:4] == (4, TIME)


def test_a_reader_of_nothing_is_refused(store: Store) -> None:
    """A folder that is not there, or is a file, is told at once."""
    save(store, "f", b"x")
    for path, expected in (("nothing", NotFound), ("f", NotAFile), ("f/x", NotAFile), ("no/thing", NotFound)):
        with pytest.raises(expected):
            store.reader(path).close()


@pytest.mark.parametrize("size", [0, 1, 99, 100])
@pytest.mark.parametrize("hint", ["none", "right", "size", "time"])
def test_a_file_that_fits_is_read_whole(store: Store, size: int, hint: str) -> None:
    """With its size, time and mode, and nothing behind it changes; what is known of it before need not be right."""
    save(store, "in/f", b"x" * size, mtime_ns=TIME, mode=0o640)
    known = {
        "none": (-1, 0),
        "right": (size, TIME),
        "size": (max(0, size - 1), TIME),
        "time": (size, TIME - 1),
    }[hint]
    view = memoryview(bytearray(b"?" * 100))
    with store.reader("in") as reader:
        packed = reader.read("f", view, *known)
    assert packed is not None
    assert packed[:2] == (size, TIME)
    assert bytes(view[:size]) == b"x" * size
    if store.capabilities.keeps_modes:
        assert packed.mode == 0o640


@pytest.mark.parametrize("known", [(-1, 0), (101, TIME), (3, TIME), (1 << 40, TIME)])
def test_a_file_that_does_not_fit_is_none(store: Store, known: tuple[int, int]) -> None:
    """Whatever was known of it."""
    save(store, "in/f", b"x" * 101, mtime_ns=TIME)
    with store.reader("in") as reader:
        assert reader.read("f", memoryview(bytearray(100)), *known) is None
        assert reader.read("f", memoryview(bytearray(0)), *known) is None


def test_a_reader_refuses_what_is_no_file(store: Store) -> None:
    """A folder, nothing, what is below a file."""
    save(store, "in/d/f", b"x")
    view = memoryview(bytearray(100))
    with store.reader("in") as reader:
        calls: list[Callable[[str], object]] = [lambda p: reader.read(p, view), reader.open, reader.target]
        for call in calls:
            with pytest.raises(NotAFile):
                call("d")
            with pytest.raises((NotFound, NotAFile)):
                call("nothing")
            with pytest.raises((NotFound, NotAFile)):
                call("d/f/x")
        with pytest.raises(NotAFile):
            reader.target("d/f")


def test_a_file_of_any_size_can_be_opened(store: Store) -> None:
    """As a source, from any offset."""
    save(store, "in/d/f", b"hello world", mtime_ns=TIME)
    view = memoryview(bytearray(5))
    with store.reader("in") as reader, reader.open("d/f") as source:
        assert (source.size, source.mtime_ns) == (11, TIME)
        assert source.read_into(6, view) == 5
        assert bytes(view) == b"world"
        source.check()


def test_one_folder_in_another_does_not_leave_it(store: Store) -> None:
    """What is beside the folder of a tree or a reader is not seen and not touched by it."""
    save(store, "f", b"beside")
    store.mkdir("in")
    with closing(store.tree("in")) as tree:
        assert not tree.exists
        assert add_all(tree, File("f", b"inside")) == {}
    assert (content(store, "f"), content(store, "in/f")) == (b"beside", b"inside")
    assert read(store, "in", "f") == b"inside"
    assert read(store, "", "f") == b"beside"


# Any order.

parts = st.sampled_from(["a", "b", "A", "\u00e4"])
small_paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
steps = st.lists(st.tuples(small_paths, st.binary(max_size=6)) | st.none(), max_size=25)


@pytest.mark.parametrize("make", [MAKERS["memory"], MAKERS["local"]], ids=["memory", "local"])
@pytest.mark.parametrize("policy", ["replace", "fail"])
@given(steps)
@settings(max_examples=40)
def test_trees_are_what_a_naive_model_says(make: Maker, policy: str, taken: list[tuple[str, bytes] | None]) -> None:
    """Files in any order and any groups: each that did not fail is there as it was last put, and nothing else is."""
    with TemporaryDirectory() as name, closing(make(Path(name))) as store:
        expected: dict[str, bytes] = {}
        with closing(store.tree("", policy)) as tree:
            group: list[File] = []
            for step in [*taken, None]:
                if step is not None:
                    group.append(File(*step))
                    continue
                failed = add_all(tree, *group)
                for at, file in enumerate(group):
                    if at in failed:
                        assert isinstance(failed[at], (NotAFile, AlreadyExists))
                        assert policy == "fail" or isinstance(failed[at], NotAFile)
                    else:
                        expected[file.path] = file.data
                group.clear()
        found = {e.path: content(store, e.path) for e in store.entries("", recursive=True) if e.kind == "file"}
        assert found == expected
        assert all(block_hash(data) == block_hash(expected[path]) for path, data in found.items())
        assert store.partials() == []

"""Several folders served side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faults import reserved
from support import descriptors_come_back
from test_store_contract import T1, content, describe, save, write
from test_store_trees import TIME, File, add_all

from ftransfer.digests import block_hash
from ftransfer.errors import (
    AlreadyExists,
    BadPath,
    DiskError,
    FtransferError,
    NotAFile,
    NotFound,
    Refused,
    UsageError,
)
from ftransfer.store import sweeping
from ftransfer.store.base import Description, Store
from ftransfer.store.local import LocalStore
from ftransfer.store.many import ManyStore
from ftransfer.store.memory import MemoryStore


@pytest.fixture
def folders(root: Path) -> dict[str, Path]:
    """Two folders with a file each."""
    made = {name: root / f"disk {name}" for name in ("music", "films")}
    for name, path in made.items():
        (path / "sub").mkdir(parents=True)
        (path / "sub" / "f").write_bytes(name.encode())
    return made


@pytest.fixture
def many(folders: dict[str, Path]) -> Iterator[ManyStore]:
    """Both of them."""
    with closing(ManyStore({name: LocalStore(path) for name, path in folders.items()})) as made:
        yield made


def test_the_folder_above_lists_their_names(many: ManyStore, folders: dict[str, Path]) -> None:
    """And all that is in them, if that is asked for; the names of their folders on the disk are nobody's business."""
    assert [(e.path, e.kind) for e in many.entries("")] == [("films", "folder"), ("music", "folder")]
    assert [entry.path for entry in many.entries("", recursive=True)] == [
        *("films", "films/sub", "films/sub/f"),
        *("music", "music/sub", "music/sub/f"),
    ]
    assert [entry.path for entry in many.entries("music", recursive=True)] == ["sub", "sub/f"]
    assert [e.path for e in many.entries("", recursive=True, enters=lambda path: path == "films")] == [
        *("films", "films/sub", "music")
    ]
    assert (many.stat("").path, many.stat("").kind) == ("", "folder")
    for path, kind in (("music", "folder"), ("music/sub", "folder"), ("music/sub/f", "file")):
        assert (many.stat(path).path, many.stat(path).kind) == (path, kind)
    (folders["films"] / "bad\udcff").write_bytes(b"")
    (folders["films"] / "loop").symlink_to("loop")
    told: list[str] = []
    list(many.entries("", recursive=True, follow=True, on_error=lambda path, _: told.append(path)))
    assert told == ["films/bad\udcff", "films/loop"]


def test_a_folder_that_cannot_be_listed_hides_no_other(many: ManyStore, folders: dict[str, Path]) -> None:
    """It is told of, and the list goes on."""
    inner = many._stores["films"]
    inner.entries = _not_found  # type: ignore[method-assign]
    told: list[tuple[str, type[FtransferError]]] = []
    found = [
        e.path for e in many.entries("", recursive=True, on_error=lambda path, exc: told.append((path, type(exc))))
    ]
    assert found == ["films", "music", "music/sub", "music/sub/f"]
    assert told == [("films", NotFound)]
    assert folders["films"].exists()


def _not_found(*_: object, **__: object) -> Iterator[object]:
    raise NotFound("gone")


def test_the_first_name_says_which(many: ManyStore, folders: dict[str, Path]) -> None:
    """For files, folders, trees and what is unfinished; what comes back has the whole path."""
    done = save(many, "music/a/b", b"data", transfer=T1)
    assert done.path == "music/a/b"
    asked = describe("music/a/b", b"data", transfer=T1)
    assert many.committed(asked) == done
    assert many.committed(asked._replace(path="films/a/b")) is None
    assert (folders["music"] / "a/b").read_bytes() == b"data"
    assert save(many, "music/a/b", b"more", if_exists="rename").path == "music/a/b (1)"
    many.mkdir("films/x")
    many.mkdir("films/y/z", parents=True)
    many.mkdir("films", parents=True)
    many.move("music/a/b", "music/c")
    assert content(many, "music/c") == b"data"
    with closing(many.tree("films")) as tree:
        assert tree.exists
        assert add_all(tree, File("t/f", b"tree")) == {}
    with closing(many.tree("films/new")) as tree:
        assert add_all(tree, File("g", b"tree")) == {}
    assert content(many, "films/t/f") == content(many, "films/new/g") == b"tree"
    many.remove("films/t", recursive=True)
    assert sorted(os.listdir(folders["films"])) == ["new", "sub", "x", "y"]


def test_the_folder_above_cannot_be_written(many: ManyStore) -> None:
    """Nor can one of those in it be removed or renamed; the error says what there is to choose from."""
    calls: list[Callable[[], object]] = [
        lambda: many.claim(describe("f", b"x")),
        lambda: many.claim(describe("music", b"x")),
        lambda: many.committed(describe("f", b"x", transfer=T1)),
        lambda: many.claim(describe("other/f", b"x")),
        lambda: many.mkdir("other"),
        lambda: many.mkdir("other/x", parents=True),
        lambda: many.remove("music", recursive=True),
        lambda: many.remove("other"),
        lambda: many.move("music", "films/music"),
        lambda: many.move("music/sub", "other"),
        lambda: many.move("music/sub", "films"),
        lambda: many.tree(""),
        lambda: many.tree("other"),
        lambda: many.below("other/x", create=True),
    ]
    before = [entry.path for entry in many.entries("", recursive=True)]
    for call in calls:
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.hint == "choose one of the served folders: films, music"
    with pytest.raises(AlreadyExists):
        many.mkdir("music")
    assert [entry.path for entry in many.entries("", recursive=True)] == before


def test_nothing_moves_from_one_to_another(many: ManyStore) -> None:
    """They may be on different disks; the error says what to do instead."""
    with pytest.raises(Refused, match="one served folder to another") as caught:
        many.move("music/sub/f", "films/f")
    assert "download" in caught.value.hint
    assert content(many, "music/sub/f") == b"music"


def test_errors_name_the_whole_path(many: ManyStore) -> None:
    """As it was asked for."""
    save(many, "music/file", b"x")
    calls: list[tuple[type[FtransferError], str, Callable[[], object]]] = [
        (NotFound, "other", lambda: many.stat("other")),
        (NotFound, "other/x", lambda: many.open("other/x")),
        (NotFound, "other/x", lambda: many.reader("other/x")),
        (NotFound, "other/x", lambda: list(many.entries("other/x"))),
        (NotFound, "music/x/y", lambda: many.stat("music/x/y")),
        (NotFound, "music/x/y", lambda: many.open("music/x/y")),
        (NotFound, "music/x", lambda: many.reader("music/x")),
        (NotFound, "music/x", lambda: list(many.entries("music/x"))),
        (NotFound, "music/x", lambda: many.remove("music/x")),
        (NotFound, "music/x", lambda: many.move("music/x", "music/y")),
        (AlreadyExists, "music/sub/f", lambda: many.move("music/file", "music/sub/f")),
        (NotAFile, "music/sub", lambda: many.claim(describe("music/sub", b"x"))),
        (NotAFile, "music", lambda: many.open("music")),
        (NotAFile, "music/file", lambda: many.tree("music/file")),
        (NotAFile, "music/file/x", lambda: many.mkdir("music/file/x", parents=True)),
        (NotAFile, "music/file", lambda: many.below("music/file")),
        (DiskError, "music/big", lambda: many.claim(Description("music/big", 1 << 62)).check_space()),
        (AlreadyExists, "music/file", lambda: save(many, "music/file", b"new", if_exists="fail")),
    ]
    for expected, path, call in calls:
        with pytest.raises(expected) as caught:
            call()
        assert caught.value.path == path


def test_all_can_be_read_from_above(many: ManyStore, folders: dict[str, Path]) -> None:
    """Files, what is known of them, links; each folder is opened once, and only if it is asked for."""
    (folders["music"] / "l").symlink_to("sub/f")
    view = memoryview(bytearray(100))
    with descriptors_come_back(), many.reader("") as reader:
        for name in ("music", "films", "music"):
            packed = reader.read(f"{name}/sub/f", view)
            assert packed is not None
            assert bytes(view[: packed.size]) == name.encode()
        assert reader.target("music/l") == "sub/f"
        with reader.open("films/sub/f") as source:
            assert source.size == 5
        found = [reader.stat(path) for path in ("music", "music/sub/f", "music/x", "x", "x/y", "music/l")]
        kinds = [("music", "folder"), ("music/sub/f", "file"), None, None, None, ("music/l", "link")]
        assert [entry and entry[:2] for entry in found] == kinds
        for path, expected in (("music", NotAFile), ("x", NotFound), ("x/y", NotFound), ("music/x", NotFound)):
            with pytest.raises(expected) as caught:
                reader.read(path, view)
            assert caught.value.path == path
    with many.reader("", follow=True) as reader:
        assert reader.read("music/l", view) is not None
    with many.reader("music/sub") as reader:
        assert reader.read("f", view) is not None


def test_what_is_unfinished_is_known_of_all(many: ManyStore, root: Path) -> None:
    """Listed, counted, dropped and swept together or one by one."""
    for path, owner in (("music/a", "ann"), ("music/b", "bob"), ("films/a", "ann")):
        staging = many.claim(describe(path, b"hello", owner=owner))
        write(staging, 0, b"he")
        staging.release()
    assert [(p.path, p.owner) for p in many.partials()] == [("films/a", "ann"), ("music/a", "ann"), ("music/b", "bob")]
    assert [p.path for p in many.partials("music")] == ["music/a", "music/b"]
    assert [p.path for p in many.partials("music/b")] == ["music/b"]
    assert many.partials("other") == []
    assert many.partials(owner="carl") == []
    assert many.staged("ann") == (2, 10)
    again = many.claim(describe("films/a", b"hello", owner="ann"))
    assert again.inherited == 2
    write(again, 2, b"llo")
    assert again.commit(5, block_hash(b"hello")).path == "films/a"
    assert [p.path for p in many.partials("music", clear=True, owner="ann")] == ["music/a"]
    assert len(many.partials(clear=True)) == 1
    assert many.sweep() == 0
    assert reserved(root) == []


def test_each_is_swept(many: ManyStore, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left behind in one is found, whatever is in the others."""
    monkeypatch.setattr(sweeping, "PROBE_SECONDS", 0)
    for path in folders.values():
        (path / ".ftransfer").mkdir(mode=0o700)
        (path / ".ftransfer" / "clock-1.probe").touch()
    many.sweep()
    assert [(path / ".ftransfer").exists() for path in folders.values()] == [False, False]


def test_a_store_of_a_folder_of_one(many: ManyStore) -> None:
    """Is the store of that folder; that of all is another view of all."""
    with closing(many.below("music/sub")) as inner:
        assert content(inner, "f") == b"music"
    with closing(many.below("music/new", create=True)) as inner, closing(many.below("")) as again:
        save(inner, "g", b"x")
        many.close()
        assert content(again, "music/new/g") == b"x"
        assert [entry.path for entry in again.entries("")] == ["films", "music"]
    with pytest.raises(FtransferError):
        many.below("")


class Coarse(MemoryStore):
    """A store on a disk that knows seconds and no case, and keeps no holes."""

    def clock_step(self) -> int:
        return 10**9

    def folds(self) -> list[str]:
        return ["case"]


def test_what_all_can_do(folders: dict[str, Path]) -> None:
    """Is what the weakest of them can; names that one takes for the same are the same."""
    stores: dict[str, Store] = {"a": LocalStore(folders["music"]), "b": Coarse()}
    with closing(ManyStore(stores)) as many:
        assert many.capabilities == (True, False, True, False)
        assert many.clock_step() == 10**9
        assert "case" in many.folds()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".ftransfer", "/"])
def test_names_that_cannot_be(name: str) -> None:
    """A served folder is called something that a path can begin with."""
    with pytest.raises((UsageError, BadPath)):
        ManyStore({name: MemoryStore()})


def test_nothing_cannot_be_served() -> None:
    """There has to be one at least."""
    with pytest.raises(UsageError):
        ManyStore({})


def test_facts_of_a_served_folder_stay(many: ManyStore, folders: dict[str, Path]) -> None:
    """It keeps its own time and mode, as the served folder always does."""
    before = folders["music"].stat()
    with closing(many.tree("music")) as tree:
        _, bad = tree.commit([("", TIME, 0o700)])
    assert {at: type(exc) for at, exc in bad.items()} == {0: Refused}
    assert folders["music"].stat().st_mode == before.st_mode

"""The whole machine as a store: what paths mean to the user whose it is."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from test_store_contract import content, describe, save, write

from ftransfer.errors import BadPath, DiskError, NotAFile, NotFound, UsageError
from ftransfer.store.base import FILE, FOLDER, LINK
from ftransfer.store.local import LocalStore
from ftransfer.store.personal import ConfinedStore, PersonalStore


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of whoever runs this test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where unfinished transfers are kept."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def store(home: Path, state: Path) -> Iterator[PersonalStore]:
    """All that this user may see."""
    assert home
    with closing(PersonalStore(state=str(state), durable=False)) as made:
        yield made


def path_of(path: Path) -> str:
    """Return an absolute path as it stands on the wire."""
    return str(path).lstrip("/")


def test_a_path_is_one_from_the_root(store: PersonalStore, tmp_path: Path) -> None:
    """What is stored under a path is there for everybody on this machine."""
    done = save(store, path_of(tmp_path / "new" / "a"), b"abc")
    assert done.path == path_of(tmp_path / "new" / "a")
    assert (tmp_path / "new" / "a").read_bytes() == b"abc"
    assert not list((tmp_path / "new").glob(".ftransfer*"))


def test_a_tilde_is_the_home_folder(store: PersonalStore, home: Path) -> None:
    """The outcome has the name that was asked for; what is only called like it is not meant."""
    assert save(store, "~/in/a", b"abc").path == "~/in/a"
    assert (home / "in" / "a").read_bytes() == b"abc"
    assert content(store, "~/in/a") == b"abc"
    assert store.stat("~").kind == FOLDER
    (home / "~").write_bytes(b"odd")
    assert content(store, "~/~") == b"odd"


def test_links_on_the_way_are_followed(store: PersonalStore, home: Path, tmp_path: Path) -> None:
    """/scratch that is a link to some disk is the main case of those who come by ssh."""
    (tmp_path / "disk").mkdir()
    (home / "scratch").symlink_to(tmp_path / "disk")
    save(store, "~/scratch/a", b"abc")
    assert (tmp_path / "disk" / "a").read_bytes() == b"abc"
    assert store.stat("~/scratch").kind == FOLDER
    assert [entry.path for entry in store.entries("~/scratch")] == ["a"]
    with store.reader("~/scratch") as reader:
        assert reader.stat("a") is not None


def test_a_link_itself_is_what_is_moved_and_removed(store: PersonalStore, home: Path, tmp_path: Path) -> None:
    """What it leads to stays, also with all that is in it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "kept").touch()
    (home / "one").symlink_to(tmp_path / "disk")
    store.move("~/one", "~/two")
    assert (home / "two").is_symlink()
    store.remove("~/two", recursive=True)
    assert not (home / "two").is_symlink()
    assert (tmp_path / "disk" / "kept").exists()


def test_a_file_takes_the_place_of_a_link(store: PersonalStore, home: Path, tmp_path: Path) -> None:
    """As with rsync: a link to a file is replaced, and the file behind it stays as it is."""
    (tmp_path / "behind").write_bytes(b"old")
    (home / "name").symlink_to(tmp_path / "behind")
    assert store.stat("~/name").kind == LINK
    save(store, "~/name", b"new")
    assert (tmp_path / "behind").read_bytes() == b"old"
    assert store.stat("~/name").kind == FILE


def test_a_file_is_read_through_its_link(store: PersonalStore, home: Path) -> None:
    """`latest.tar.gz` that is a link is what scp and cp take it for."""
    (home / "today").write_bytes(b"abc")
    (home / "latest").symlink_to("today")
    assert content(store, "~/latest") == b"abc"
    (home / "nowhere").symlink_to("missing")
    with pytest.raises(NotFound):
        store.open("~/nowhere")


def test_links_in_a_tree_are_not_followed(store: PersonalStore, home: Path, tmp_path: Path) -> None:
    """Only the way to a folder is the user's; what lies in it may be somebody else's."""
    (tmp_path / "outside").mkdir()
    (home / "tree").mkdir()
    (home / "tree" / "link").symlink_to(tmp_path / "outside")
    with closing(store.tree("~/tree")) as tree, pytest.raises(NotAFile):
        tree.add("link/a", memoryview(b"abc"), 10**18, 0o644)
    assert not list((tmp_path / "outside").iterdir())


def test_every_way_to_a_name_finds_the_same_unfinished_transfer(
    store: PersonalStore, home: Path, state: Path, tmp_path: Path
) -> None:
    """What was begun by the home folder is gone on with by the whole path, or by a link."""
    (tmp_path / "link").symlink_to(home)
    data = os.urandom(2000)
    staging = store.claim(describe("~/in/a", data))
    write(staging, 0, data[:1000])
    staging.release()
    assert list(state.glob(".ftransfer*"))
    assert [partial.path for partial in store.partials("~/in")] == [path_of(home / "in" / "a")]
    again = store.claim(describe(path_of(tmp_path / "link" / "in" / "a"), data))
    assert again.inherited == 1000
    again.discard()
    assert not list(state.glob(".ftransfer*"))
    assert not list((home / "in").iterdir())


def test_a_lost_receipt_has_the_name_that_was_asked_for(store: PersonalStore, home: Path) -> None:
    """A transfer that was committed says so again, by the same path."""
    assert home
    save(store, "~/a", b"abc", transfer="7" * 32)
    done = store.committed(describe("~/a", b"abc", transfer="7" * 32))
    assert done is not None
    assert done.path == "~/a"


def test_reserved_names_cannot_be_reached_by_a_link(store: PersonalStore, home: Path, state: Path) -> None:
    """What a link says counts as if it had been typed."""
    (state / ".ftransfer").mkdir()
    (home / "door").symlink_to(state / ".ftransfer")
    with pytest.raises(BadPath):
        save(store, "~/door/a", b"abc")


def test_what_is_missing_is_missing(store: PersonalStore, home: Path) -> None:
    """A link that leads nowhere is there, and leads nowhere."""
    (home / "dangling").symlink_to("nowhere")
    assert store.stat("~/dangling").kind == LINK
    with pytest.raises(NotFound):
        store.stat("~/nowhere")
    with pytest.raises(NotFound):
        list(store.entries("~/nowhere/in"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_passed(store: PersonalStore, home: Path) -> None:
    """/home is often one through which everybody may go, and which nobody may read."""
    (home / "closed" / "mine").mkdir(parents=True)
    (home / "closed").chmod(0o111)
    try:
        save(store, "~/closed/mine/a", b"abc")
        assert content(store, "~/closed/mine/a") == b"abc"
    finally:
        (home / "closed").chmod(0o755)


def test_who_is_confined_has_the_folder_for_a_home(home: Path, root: Path) -> None:
    """A login without a path leads to the home folder, and there is no other one than what is served."""
    with closing(ConfinedStore(LocalStore(root, durable=False))) as store:
        assert save(store, "~/in/a", b"abc").path == "~/in/a"
        assert (root / "in" / "a").read_bytes() == b"abc"
        assert content(store, "in/a") == b"abc"
        assert store.stat("~").kind == FOLDER
        assert [entry.path for entry in store.entries("~")] == ["in"]
        store.move("~/in/a", "~/b")
        store.remove("~/b")
        with pytest.raises(NotFound) as caught:
            store.open("~/b")
        assert caught.value.path == "/b"
        (root / "out").symlink_to(home)
        with pytest.raises(NotAFile):
            save(store, "~/out/a", b"abc")
    assert not list(home.iterdir())


def test_a_disk_that_is_away_costs_no_unfinished_transfer(store: PersonalStore, home: Path, state: Path) -> None:
    """What cannot be seen now may be on a disk that comes back, or on one of another machine that shares the home."""
    data = os.urandom(2000)
    staging = store.claim(describe("~/disk/a", data))
    write(staging, 0, data[:1000])
    staging.release()
    (home / "disk").rename(home / "away")
    (journal,) = state.glob(".ftransfer*/*.journal")
    save(store, "~/b", b"else")
    for days in (1, 15, 100):
        _age(journal, days)
        assert store.sweep() == 0
        assert journal.exists()
    (home / "away").rename(home / "disk")
    _age(journal, 1)
    again = store.claim(describe("~/disk/a", data))
    assert again.inherited == 1000
    again.release()


@pytest.mark.parametrize(("is_there", "days"), [(True, 15), (False, 200)])
def test_an_unfinished_transfer_is_dropped_in_the_end(
    store: PersonalStore, home: Path, state: Path, is_there: bool, days: int
) -> None:
    """After two weeks where its folder is there, after half a year where it is not."""
    staging = store.claim(describe("~/disk/a", b"abc"))
    staging.release()
    if not is_there:
        (home / "disk").rename(home / "away")
    (journal,) = state.glob(".ftransfer*/*.journal")
    _age(journal, days)
    assert store.sweep() == 1
    assert not list(state.iterdir())
    assert is_there != bool(list(home.rglob(".ftransfer-*")))


def _age(path: Path, days: int) -> None:
    then = path.stat().st_mtime - days * 86400
    os.utime(path, (then, then))


def test_each_disk_is_asked_for_itself(store: PersonalStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How exact times are, and which names are the same, is a matter of where a path lies, not of the root."""
    asked: list[str] = []

    def noted(folder: LocalStore) -> int:
        asked.append(folder.root)
        return 1

    monkeypatch.setattr(LocalStore, "clock_step", noted)
    store.stat("~")
    store.clock_step()
    with pytest.raises(NotFound):
        store.stat("~/not/yet/there")
    store.clock_step()
    (home / "file").touch()
    store.stat("~/file")
    store.clock_step()
    assert asked == [str(home)] * 3


def test_without_a_place_for_the_unfinished_it_can_be_read(home: Path) -> None:
    """A home folder that is full keeps nobody from taking something out of it."""
    (home / "a").write_bytes(b"abc")
    with closing(PersonalStore(state=DiskError("no space", hint="make some"), durable=False)) as store:
        assert content(store, "~/a") == b"abc"
        with pytest.raises(DiskError, match="cannot be kept on this machine: no space"):
            save(store, "~/b", b"abc")
        with pytest.raises(DiskError, match="cannot be kept"):
            store.tree("~/c")


@pytest.mark.parametrize("path", ["~", "", "above"])
def test_nobody_removes_their_home_by_mistake(store: PersonalStore, home: Path, path: str) -> None:
    """`rm -r lab:$dir` with an empty variable would be all that somebody has there."""
    (home / "kept").touch()
    where = path_of(home.parent) if path == "above" else path
    for what in (where, path_of(home)):
        with pytest.raises(UsageError, match="home folder"):
            store.remove(what, recursive=True)
        with pytest.raises(UsageError, match="home folder"):
            store.move(what, path_of(home.parent / "elsewhere"))
    assert (home / "kept").exists()


def test_nobody_removes_what_they_are_confined_to(root: Path) -> None:
    """The served folder itself stays, by whatever name."""
    (root / "kept").touch()
    with closing(ConfinedStore(LocalStore(root, durable=False))) as store:
        for path in ("~", "~/", ""):
            with pytest.raises(UsageError):
                store.remove(path, recursive=True)
    assert (root / "kept").exists()


def test_a_list_of_whole_paths_is_read_as_they_were_typed(store: PersonalStore, home: Path) -> None:
    """Checksums that were made below the home folder can be checked from the root."""
    (home / "in").mkdir()
    (home / "in" / "a").write_bytes(b"abc")
    with store.reader("") as reader:
        for name in ("~/in/a", path_of(home / "in" / "a")):
            found = reader.stat(name)
            assert found is not None
            assert found.size == 3
            view = memoryview(bytearray(10))
            assert reader.read(name, view) is not None
            assert view[:3] == b"abc"
            with reader.open(name) as source:
                assert source.size == 3

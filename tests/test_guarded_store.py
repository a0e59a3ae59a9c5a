"""What an account may do with a store, and what it may not: for stores in memory and on a disk."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import PATIENCE, journals, reserved, staged
from support import snapshot
from test_store_contract import T1, T2, below, content, describe, save, write
from test_store_trees import POLICIES, TIME, File, add_all

from ftransfer.digests import block_hash
from ftransfer.errors import AlreadyExists, DiskError, FtransferError, NotAFile, NotFound, OverQuota, Refused
from ftransfer.rights import ALL, Account, Allowance
from ftransfer.store import renaming
from ftransfer.store.base import Description, Staging, Store
from ftransfer.store.guarded import GuardedStaging, GuardedStore
from ftransfer.store.guarded_trees import GuardedTree
from ftransfer.store.local import LocalStore
from ftransfer.store.many import ManyStore
from ftransfer.store.memory import MemoryStore
from ftransfer.store.trees import Room

MAKERS: dict[str, Callable[[Path], Store]] = {
    "memory": lambda _: MemoryStore(),
    "local": lambda folder: LocalStore(folder, durable=False),
    "many": lambda folder: below(ManyStore({"in": LocalStore(folder, durable=False)})),
}
READ, CREATE, BOTH = frozenset({"read"}), frozenset({"create"}), frozenset({"create", "read"})


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def store(request: pytest.FixtureRequest, root: Path) -> Iterator[Store]:
    """A store that nobody guards, with a few files."""
    make: Callable[[Path], Store] = request.param
    with closing(make(root)) as made:
        save(made, "old", b"old", mtime_ns=TIME, mode=0o640)
        save(made, "folder/inner", b"inner", mtime_ns=TIME)
        yield made


@pytest.fixture
def local(root: Path) -> Iterator[LocalStore]:
    """The same on a disk."""
    with closing(LocalStore(root, durable=False)) as made:
        save(made, "old", b"old", mtime_ns=TIME, mode=0o640)
        save(made, "folder/inner", b"inner", mtime_ns=TIME)
        yield made


class Counter:
    """What is remembered of a quota."""

    def __init__(self, quota: int | None):
        self.used = 0
        self.allowance = Allowance(quota, lambda: self.used, self.add)

    def add(self, count: int) -> None:
        """Change it."""
        self.used += count

    @property
    def is_settled(self) -> bool:
        """Whether nothing is set aside."""
        return self.allowance._reserved == 0


def guard(store: Store, can: frozenset[str], counter: Counter | None = None, **more: object) -> GuardedStore:
    """Return what `ann`, who can that, may use."""
    limits = {name: more.pop(name) for name in list(more) if name.startswith("most_")}
    account = Account("ann", can, **more)  # type: ignore[arg-type]
    allowance = counter.allowance if counter else Allowance(None, lambda: 0, lambda _: None)
    return GuardedStore(store, account, allowance, owns_inner=False, **limits)  # type: ignore[arg-type]


def everything(store: Store) -> list[object]:
    """Return all that can be seen, with bytes."""
    files = [(e, content(store, e.path)) for e in store.entries("", recursive=True) if e.kind == "file"]
    # A folder that something was staged in has another time.
    folders = [(e.path, e.mode) for e in store.entries("", recursive=True) if e.kind != "file"]
    return [*store.partials(), *files, *folders]


def begin(store: Store, path: str, data: bytes | None, **more: object) -> Staging:
    """Begin a transfer and have the first bytes accepted."""
    staging = store.claim(describe(path, data, **more))
    write(staging, 0, b"he")
    return staging


def in_tree(store: Store, path: str, act: Callable[[object], object]) -> None:
    """Do something with a tree, and commit."""
    with closing(store.tree(path)) as tree:
        act(tree)
        failed, bad = tree.commit()
        for exc in (*failed.values(), *bad.values()):
            raise exc


# Verbs.


class Act(NamedTuple):
    """Something that can be asked for, and what one has to be allowed for it."""

    needs: frozenset[str]
    do: Callable[[Store], object]


def act(needs: str, do: Callable[[Store], object]) -> Act:
    """Return an act."""
    return Act(frozenset(needs.split()), do)


ACTS = {
    "stat": act("read", lambda s: s.stat("old")),
    "stat of the root": act("read", lambda s: s.stat("")),
    "list": act("read", lambda s: s.entries("")),
    "list all": act("read", lambda s: list(s.entries("", recursive=True))),
    "open": act("read", lambda s: s.open("old").close()),
    "reader": act("read", lambda s: s.reader("").close()),
    "below": act("read", lambda s: s.below("folder").close()),
    "new below": act("create", lambda s: s.below("folder/x", create=True).close()),
    "staged of others": act("read", lambda s: s.staged("bob")),
    "upload": act("create", lambda s: save(s, "new/file", b"x")),
    "lost receipt": act("create", lambda s: s.committed(describe("f", b"x", transfer=T1))),
    "replace": act("create replace", lambda s: save(s, "old", b"other")),
    "replace by time": act("create replace", lambda s: save(s, "old", b"other", if_exists="newer", mtime_ns=1 << 62)),
    "mkdir": act("create", lambda s: s.mkdir("new")),
    "mkdir -p": act("create", lambda s: s.mkdir("new/er", parents=True)),
    "remove": act("delete", lambda s: s.remove("old")),
    "remove all": act("delete", lambda s: s.remove("folder", recursive=True)),
    "move": act("create delete", lambda s: s.move("old", "moved")),
    "sweep": act("delete", lambda s: s.sweep()),
    "tree, new file": act("create", lambda s: in_tree(s, "t", lambda t: t.add("f", memoryview(b"x"), 5, 0o644))),
    "tree, old file": act(
        "create replace", lambda s: in_tree(s, "", lambda t: t.add("old", memoryview(b"x"), 5, 0o644))
    ),
    "tree, new folder": act("create", lambda s: in_tree(s, "", lambda t: t.folder("new", 5, 0o755))),
    "tree, stamp": act("replace", lambda s: in_tree(s, "", lambda t: t.stamp("old", 5, 0o600))),
    "tree, gone": act("delete", lambda s: in_tree(s, "", lambda t: t.remove("old"))),
}


@pytest.mark.parametrize("what", ACTS)
@pytest.mark.parametrize("can", [frozenset(), READ, CREATE, BOTH, ALL], ids=lambda can: ",".join(sorted(can)) or "none")
def test_each_call_asks_the_account(store: Store, what: str, can: frozenset[str]) -> None:
    """What all its verbs allow is done; what one is missing for is refused, and changes nothing."""
    asked = ACTS[what]
    before = everything(store)
    guarded = guard(store, can)
    if asked.needs <= can:
        asked.do(guarded)
        return
    with pytest.raises(Refused) as caught:
        asked.do(guarded)
    assert "ann may not" in str(caught.value) or can == READ
    assert caught.value.hint
    assert everything(store) == before


@pytest.mark.parametrize("verb", sorted(ALL))
@pytest.mark.parametrize("what", ACTS)
def test_no_verb_stands_for_another(store: Store, what: str, verb: str) -> None:
    """Whoever may do all but one thing is refused just what needs that."""
    asked = ACTS[what]
    guarded = guard(store, ALL - {verb})
    if verb not in asked.needs:
        asked.do(guarded)
        return
    before = everything(store)
    with pytest.raises(Refused):
        asked.do(guarded)
    assert everything(store) == before


def test_a_list_is_refused_when_it_is_asked_for(store: Store) -> None:
    """Not when its first entry is."""
    with pytest.raises(Refused):
        guard(store, CREATE).entries("")


def test_who_may_do_everything_uses_the_store_itself(store: Store) -> None:
    """What costs something for each block or file is only there for those who need it."""
    guarded = guard(store, ALL, most_staged_files=5, most_staged_bytes=1000)
    staging = guarded.claim(describe("f", b"x"))
    assert not isinstance(staging, GuardedStaging)
    staging.discard()
    with closing(guarded.tree("")) as tree:
        assert not isinstance(tree, GuardedTree)
    with closing(guard(store, BOTH).tree("")) as tree:
        assert isinstance(tree, GuardedTree)


@pytest.mark.parametrize("owns", [False, True])
def test_the_store_below_is_closed_only_by_its_owner(root: Path, owns: bool) -> None:
    """A server closes its own store once, for all its connections."""
    inner = LocalStore(root)
    account = Account("ann", ALL)
    GuardedStore(inner, account, Allowance(None, lambda: 0, lambda _: None), owns_inner=owns).close()
    assert (inner.fd < 0) == owns
    inner.close()


# A drop box.


def test_in_a_drop_box_nothing_is_to_be_seen(store: Store) -> None:
    """What is there, what others have begun, how much is free: all as if there were nothing."""
    store.claim(describe("theirs", b"hello", owner="bob")).release()
    store.claim(describe("nobodys", b"hello")).release()
    guarded = guard(store, CREATE)
    begin(guarded, "mine", b"hello").release()
    assert [(partial.path, partial.held) for partial in guarded.partials()] == [("mine", 2)]
    assert guarded.partials(owner="bob") == []
    assert guarded.staged("ann") == (1, 5)
    for path in ("", "folder", "nothing"):
        with closing(guarded.tree(path)) as tree:
            assert not tree.exists
            assert tree.room() == Room(None, None)
    assert [partial.path for partial in guarded.partials(clear=True)] == ["mine"]
    assert [partial.path for partial in store.partials()] == ["nobodys", "theirs"]


def test_in_a_drop_box_an_upload_can_be_resumed(store: Store) -> None:
    """And its receipt asked for again."""
    guarded = guard(store, CREATE)
    begin(guarded, "sub/f", b"hello").release()
    again = guarded.claim(describe("sub/f", b"hello", transfer=T1))
    assert (again.inherited, sorted(again.grains)) == (2, [0])
    write(again, 2, b"llo")
    done = again.commit(5, block_hash(b"hello"))
    assert done[:3] == ("sub/f", 5, block_hash(b"hello"))
    assert guarded.committed(describe("sub/f", b"hello", transfer=T1)) == done
    assert store.committed(describe("sub/f", b"hello", transfer=T1)) is None
    assert guarded.committed(describe("sub/f", b"hello", transfer=T2)) is None
    assert content(store, "sub/f") == b"hello"


def said(call: Callable[[], object]) -> tuple[type[FtransferError], str, str]:
    """Return what an error says."""
    with pytest.raises(FtransferError) as caught:
        call()
    return type(caught.value), caught.value.message, caught.value.hint


def test_in_a_drop_box_all_that_is_in_the_way_looks_the_same(store: Store) -> None:
    """A file, a folder, or a file where a folder would have to be."""
    guarded = guard(store, CREATE)
    names = ("old", "folder", "old/below")
    errors = {said(lambda n=name: save(guarded, n, b"x")) for name in names}  # type: ignore[misc]
    errors |= {said(lambda n=name: save(guarded, n, b"x", if_exists="fail")) for name in names[1:]}  # type: ignore[misc]
    errors |= {said(lambda: guarded.mkdir("old")), said(lambda: guarded.mkdir("old/below", parents=True))}
    errors.add(said(lambda: guarded.tree("old").close()))
    with closing(guarded.tree("")) as tree:
        errors |= {
            (type(exc), exc.message, exc.hint) for exc in add_all(tree, *(File(n, b"x") for n in names)).values()
        }
        errors.add(said(lambda: tree.folder("old", 5, 0o755)))
        _, bad = tree.commit([("old/below", 5, 0o755)])
        errors |= {(type(exc), exc.message, exc.hint) for exc in bad.values()}
    assert len(errors) == 1
    assert next(iter(errors))[0] is Refused
    guarded.mkdir("folder")  # neither does it say whether a folder is new
    guarded.mkdir("a/b")
    assert (content(store, "old"), content(store, "folder/inner")) == (b"old", b"inner")


def test_in_a_drop_box_nobody_hears_how_much_is_free(store: Store) -> None:
    """A file that does not fit is refused, without a number."""
    staging = guard(store, CREATE).claim(Description("f", 1 << 62))
    with pytest.raises(DiskError, match="no space") as caught:
        staging.check_space()
    staging.release()
    assert not any(char.isdigit() for char in str(caught.value) + caught.value.hint)
    staging = guard(store, BOTH).claim(Description("f", 1 << 62, if_exists="fail"))
    with pytest.raises(DiskError, match="no space"):
        staging.check_space()
    assert store.partials() == []


# What is taken.


@pytest.mark.parametrize("policy", ["replace", "newer", "skip", "fail", "rename"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_name_that_is_taken_is_not_touched(store: Store, policy: str, when: str) -> None:
    """Nor one that somebody takes while the bytes come; other policies say what they always say."""
    guarded = guard(store, BOTH)
    path = "old" if when == "before" else "new"
    outcome: object = None
    try:
        staging = guarded.claim(describe(path, b"mine!", if_exists=policy, mtime_ns=1 << 62))
        write(staging, 0, b"mine!")
        if when == "meanwhile":
            save(store, path, b"theirs", mtime_ns=5)
        outcome = staging.commit(5, block_hash(b"mine!")).path
    except FtransferError as exc:
        outcome = type(exc), "ann may not replace" in str(exc)
    expected = {"rename": f"{path} (1)", "replace": (Refused, True), "newer": (Refused, True)}
    assert outcome == expected.get(policy, (AlreadyExists, False))
    assert content(store, path) == (b"old" if when == "before" else b"theirs")
    assert store.stat(path).mtime_ns == (TIME if when == "before" else 5)
    assert store.partials() == []


def test_what_would_be_refused_at_the_end_is_refused_at_once(store: Store) -> None:
    """Before a byte is staged; a policy that does not replace is asked at the end, as ever."""
    guarded = guard(store, BOTH)
    before = everything(store)
    for path in ("old", "folder"):
        for policy in ("replace", "newer"):
            with pytest.raises(Refused):
                guarded.claim(describe(path, b"x", if_exists=policy))
    assert everything(store) == before
    with pytest.raises(NotAFile):
        guarded.claim(describe("old/below", b"x"))


@pytest.mark.parametrize("policy", POLICIES)
def test_files_of_a_tree_replace_nothing(store: Store, policy: str) -> None:
    """The rest of the group goes on; names that are taken twice in it, too."""
    guarded = guard(store, BOTH)
    with closing(guarded.tree("", policy)) as tree:
        assert tree.exists
        failed = add_all(
            tree,
            File("a", b"a"),
            File("old", b"new", mtime_ns=1 << 62),
            File("folder/inner", b"new", mtime_ns=1 << 62),
            File("twice", b"first", mtime_ns=5),
            File("twice", b"second", mtime_ns=6),
            File("z/z", b"z"),
        )
    expected = Refused if policy in ("replace", "newer") else AlreadyExists
    assert {at: type(exc) for at, exc in failed.items()} == dict.fromkeys((1, 2, 4), expected)
    assert (content(store, "old"), content(store, "folder/inner"), content(store, "twice")) == (
        b"old",
        b"inner",
        b"first",
    )
    assert (content(store, "a"), content(store, "z/z")) == (b"a", b"z")
    assert store.partials() == []


def no_links(*_: object, **__: object) -> None:
    """Fail as on a file system that has no hard links."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "none"])
def test_a_race_for_a_name_is_won_by_whoever_was_there(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Between the look and the rename there is no room for another: one of many has the name, for good."""
    if not has_links:
        if renaming._renameat2() is None:
            pytest.skip("NOT TESTED: this system has no rename that replaces nothing")
        monkeypatch.setattr(os, "link", no_links)
    results: list[str] = []
    barrier = threading.Barrier(4)

    def play(number: int) -> None:
        guarded = guard(local, BOTH)
        for turn in range(50):
            data = b"%d" % number
            staging = guarded.claim(describe(f"n{turn}", data, fingerprint=f"{number}", mtime_ns=number))
            write(staging, 0, data)
            barrier.wait(PATIENCE)
            try:
                staging.commit(len(data), block_hash(data))
                results.append(f"{turn}:{number}")
            except Refused:
                staging.release()

    threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(results) == 50
    assert sorted(results) == sorted(f"{turn}:{content(local, f'n{turn}').decode()}" for turn in range(50))


@pytest.mark.parametrize("knows", [True, False], ids=["one step", "look first"])
def test_without_hard_links_nothing_is_replaced(
    root: Path, local: LocalStore, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    """Nor where the system has no rename that replaces nothing: files, packed ones too, links, and what is moved."""
    monkeypatch.setattr(os, "link", no_links)
    if not knows:
        monkeypatch.setattr(renaming, "_renameat2", lambda: None)
    guarded = guard(local, BOTH)
    assert save(guarded, "new", b"new").path == "new"
    assert save(guarded, "old", b"new", if_exists="rename").path == "old (1)"
    with pytest.raises(AlreadyExists):
        save(guarded, "old", b"new", if_exists="fail")
    with closing(guarded.tree("")) as tree:
        assert add_all(tree, File("old", b"x"), File("packed", b"packed")).keys() == {0}
        tree.link("l", "old", TIME)
        with pytest.raises(Refused):
            tree.link("old", "new", TIME)
    for path in ("new", "folder"):
        for target in ("old", "l", "folder"):
            with pytest.raises((AlreadyExists, NotAFile)):
                local.move(path, target)
    local.mkdir("empty")
    with pytest.raises(AlreadyExists):
        local.move("folder", "empty")
    local.move("new", "moved")
    local.move("folder", "there")
    names = ["empty", "l", "moved", "old", "old (1)", "packed", "there", "there/inner"]
    assert [entry.path for entry in local.entries("", recursive=True)] == names
    assert [content(local, name) for name in ("old", "moved", "packed")] == [b"old", b"new", b"packed"]
    assert reserved(root) == []


def test_links_replace_nothing(root: Path, local: LocalStore) -> None:
    """Neither a file nor another link; the same link is left as it is."""
    (root / "l").symlink_to("old")
    os.utime(root / "l", ns=(5, 5), follow_symlinks=False)
    with closing(guard(local, BOTH).tree("")) as tree:
        for name, target in (("old", "folder"), ("l", "folder"), ("folder", "old")):
            with pytest.raises(Refused, match="may not replace"):
                tree.link(name, target, TIME)
        tree.link("l", "old", TIME)
        tree.link("new", "old", TIME)
        assert tree.commit() == ({}, {})
    assert (os.readlink(root / "l"), (root / "l").lstat().st_mtime_ns) == ("old", 5)
    assert (os.readlink(root / "new"), (root / "new").lstat().st_mtime_ns) == ("old", TIME)
    assert content(local, "old") == b"old"
    assert reserved(root) == []


def test_facts_of_folders_that_were_there_stay(root: Path, local: LocalStore) -> None:
    """A tree sends them for each folder: for old ones that is no failure, and does nothing."""
    (root / "folder").chmod(0o750)
    os.utime(root / "folder", ns=(5, 5))
    with closing(guard(local, BOTH).tree("")) as tree:
        tree.folder("folder", TIME, 0o777)
        assert tree.commit([("folder", TIME, 0o777), ("new", TIME, 0o700)]) == ({}, {})
    found = (root / "folder").stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o750, 5)
    found = (root / "new").stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o700, TIME)
    with closing(guard(local, BOTH | {"replace"}).tree("")) as tree:
        assert tree.commit([("folder", TIME, 0o700)]) == ({}, {})
    assert (root / "folder").stat().st_mode & 0o777 == 0o700


def test_a_read_only_folder_that_was_there_stays_so(root: Path, local: LocalStore) -> None:
    """It is not made writable for a moment by somebody who may not change it."""
    if os.geteuid() == 0:
        pytest.skip("root may do everything: run as another user")
    (root / "folder").chmod(0o555)
    with closing(guard(local, BOTH).tree("")) as tree, pytest.raises(Refused):
        tree.add("folder/new", memoryview(b"x"), TIME, 0o644)
    assert (root / "folder").stat().st_mode & 0o777 == 0o555


def test_who_may_not_create_gives_facts_to_what_is_there(root: Path, local: LocalStore) -> None:
    """After removing something, say; nothing is made by it."""
    before = snapshot(root)
    with closing(guard(local, READ | {"delete", "replace"}).tree("")) as tree:
        failed, bad = tree.commit([("new", TIME, 0o755), ("folder", TIME, 0o700), ("old", TIME, 0o700)])
        assert (failed, {at: type(exc) for at, exc in bad.items()}) == ({}, {0: Refused, 2: Refused})
        with pytest.raises(Refused):
            tree.folder("other/new", TIME, 0o755)
    found = (root / "folder").stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o700, TIME)
    (root / "folder").chmod(0o755)
    assert snapshot(root) == before
    with closing(guard(local, READ | {"delete"}).tree("")) as tree:
        assert tree.commit([("folder", 7, 0o700)]) == ({}, {})
    assert (root / "folder").stat().st_mtime_ns == TIME


# Sizes.


def test_a_file_that_is_too_large_is_refused(store: Store) -> None:
    """When it is announced, when a stream or a packed file turns out to be; nothing of it stays."""
    before = everything(store)
    guarded = guard(store, ALL, max_file=100)
    with pytest.raises(Refused, match="100 bytes"):
        guarded.claim(describe("f", bytes(101)))
    stream = guarded.claim(describe("f", None, transfer=T1))
    for offset in range(0, 100, 20):
        write(stream, offset, bytes(20))
    with pytest.raises(Refused, match="100 bytes"):
        stream.begin(100, 1)
    stream.release()
    with closing(guarded.tree("")) as tree:
        with pytest.raises(Refused, match="100 bytes"):
            tree.add("f", memoryview(bytes(101)), TIME, 0o644)
        assert tree.commit() == ({}, {})
    assert everything(store) == before
    save(guarded, "f", bytes(100))
    with closing(guarded.tree("")) as tree:
        assert add_all(tree, File("g", bytes(100))) == {}


def test_a_file_counts_when_it_is_there(store: Store) -> None:
    """Set aside while it comes, given back if it does not; what it replaced is free again."""
    counter = Counter(100)
    guarded = guard(store, ALL, counter)
    first = guarded.claim(describe("f", bytes(60)))
    with pytest.raises(OverQuota):
        guarded.claim(describe("g", bytes(41)))
    second = guarded.claim(describe("g", bytes(40)))
    second.release()
    assert counter.used == 0
    write(first, 0, bytes(60))
    first.commit(60, block_hash(bytes(60)))
    assert counter.used == 60
    first.release()
    first.discard()
    assert (counter.used, counter.is_settled) == (60, True)
    for _ in range(2):
        save(guarded, "f", bytes(30))
        assert counter.used == 30
    guarded.claim(describe("x", bytes(70))).discard()
    guarded.remove("f")
    assert (counter.used, counter.is_settled) == (0, True)
    save(guarded, "d/a", bytes(50))
    save(guarded, "d/b/c", bytes(50))
    with pytest.raises(OverQuota):
        save(guarded, "e", b"x")
    guarded.remove("d", recursive=True)
    assert (counter.used, counter.is_settled) == (0, True)


def test_what_fails_gives_back_what_was_set_aside(store: Store) -> None:
    """However it fails."""
    counter = Counter(100)
    guarded = guard(store, BOTH, counter)
    calls: list[Callable[[], object]] = [
        lambda: save(guarded, "old", bytes(10)),
        lambda: save(guarded, "folder", bytes(10)),
        lambda: save(guarded, "old/below", bytes(10)),
        lambda: save(guarded, "old", bytes(10), if_exists="fail"),
    ]
    for call in calls:
        with pytest.raises((Refused, NotAFile, AlreadyExists)):
            call()
    staging = guarded.claim(describe("new", bytes(10)))
    save(store, "new", b"theirs")
    with pytest.raises(Refused):
        staging.commit(10, block_hash(bytes(10)))
    staging.release()
    assert (counter.used, counter.is_settled) == (0, True)


@pytest.mark.parametrize("how", ["commit", "release", "discard"])
def test_a_stream_counts_as_it_grows(store: Store, how: str) -> None:
    """Up to the last byte of the quota, and not beyond; in the end it counts with its length."""
    counter = Counter(100)
    guarded = guard(store, ALL, counter)
    stream = guarded.claim(describe("f", None, transfer=T1))
    for offset in range(0, 90, 30):
        write(stream, offset, bytes(30))
    with pytest.raises(OverQuota):
        guarded.claim(describe("g", bytes(11)))
    if how == "commit":
        stream.begin(90, 10)
        stream.reject()
        stream.commit(90, block_hash(bytes(90)))
    else:
        getattr(stream, how)()
    assert (counter.used, counter.is_settled) == (90 if how == "commit" else 0, True)
    if how != "release":
        return
    again = guarded.claim(describe("f", None, transfer=T1))
    assert again.inherited == 90
    with pytest.raises(OverQuota):
        again.begin(90, 11)
    again.release()
    assert store.partials() == []
    assert (counter.used, counter.is_settled) == (0, True)


def test_a_stream_for_which_there_is_no_room_now_is_kept(store: Store) -> None:
    """It may be gone on with when something was removed."""
    counter = Counter(100)
    guarded = guard(store, ALL, counter)
    stream = guarded.claim(describe("f", None, transfer=T1))
    write(stream, 0, bytes(50))
    stream.release()
    save(guarded, "g", bytes(60))
    with pytest.raises(OverQuota):
        guarded.claim(describe("f", None, transfer=T1))
    guarded.remove("g")
    again = guarded.claim(describe("f", None, transfer=T1))
    assert again.inherited == 50
    again.commit(50, block_hash(bytes(50)))
    assert (counter.used, counter.is_settled) == (50, True)


def test_the_files_of_a_tree_count(store: Store) -> None:
    """Group by group, without those that failed, and less what they replaced and what was removed."""
    counter = Counter(100)
    guarded = guard(store, ALL, counter)
    save(guarded, "in/a", bytes(10))
    with closing(guarded.tree("in")) as tree:
        failed = add_all(tree, File("a", bytes(20)), File("a/b", bytes(5)), File("c", bytes(30)), File("a", bytes(25)))
        assert failed.keys() == {1}
        assert counter.used == 55
        tree.add("d", memoryview(bytes(45)), TIME, 0o644)
        with pytest.raises(OverQuota):
            tree.add("e", memoryview(bytes(1)), TIME, 0o644)
        assert tree.commit() == ({}, {})
        assert counter.used == 100
        tree.remove("d")
        tree.remove("c")
        assert tree.commit() == ({}, {})
        assert counter.used == 25
        tree.add("f", memoryview(bytes(70)), TIME, 0o644)  # and is not committed
    assert (counter.used, counter.is_settled) == (25, True)
    assert sum(entry.size for entry in store.entries("in", recursive=True)) == 25


def test_what_a_tree_removed_last_is_given_back(store: Store) -> None:
    """Also if it is closed without a commit."""
    counter = Counter(100)
    guarded = guard(store, ALL, counter)
    save(guarded, "in/a", bytes(10))
    with closing(guarded.tree("in")) as tree:
        tree.remove("a")
    assert (counter.used, counter.is_settled) == (0, True)


def test_nothing_is_counted_twice(local: LocalStore) -> None:
    """Several connections replace and remove the same names at once: in the end the sum is what is there."""
    counter = Counter(1 << 40)
    barrier = threading.Barrier(4)

    def replaces(store: Store, turn: int) -> None:
        save(store, f"in/{turn % 3}", bytes(turn + 1), fingerprint=f"{threading.get_ident()}-{turn}")

    def puts(store: Store, turn: int) -> None:
        with closing(store.tree("in")) as tree:
            add_all(tree, *(File(f"{n}", bytes(10 * turn + n)) for n in range(3)))

    def removes(store: Store, turn: int) -> None:
        try:
            if turn % 5 == 0:
                store.remove("in", recursive=True)
            else:
                store.remove(f"in/{turn % 3}")
        except (NotFound, NotAFile):
            pass

    def play(act: Callable[[Store, int], None]) -> None:
        guarded = guard(local, ALL, counter)
        barrier.wait(PATIENCE)
        for turn in range(100):
            try:
                act(guarded, turn)
            except (NotFound, NotAFile):
                pass  # its folder went meanwhile

    threads = [threading.Thread(target=play, args=(act,)) for act in (replaces, puts, removes, removes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    there = sum(entry.size for entry in local.entries("", recursive=True)) - len(b"old") - len(b"inner")
    assert (counter.used, counter.is_settled) == (there, True)


# What is unfinished.


def test_a_file_too_many_is_refused(store: Store) -> None:
    """One that takes up what it has left is none; finishing or dropping one makes room. Others are not counted."""
    store.claim(describe("theirs", b"hello", owner="bob")).release()
    store.claim(describe("nobodys", b"hello")).release()
    guarded = guard(store, ALL, most_staged_files=2)
    for name in ("a", "b"):
        begin(guarded, name, b"hello").release()
    before = everything(store)
    with pytest.raises(Refused, match="2 files") as caught:
        guarded.claim(describe("c", b"hello"))
    assert "staged_files" in caught.value.hint
    assert "ftransfer partials" in caught.value.hint
    assert everything(store) == before
    again = guarded.claim(describe("a", b"hello"))
    assert again.inherited == 2
    write(again, 2, b"llo")
    again.commit(5, block_hash(b"hello"))
    begin(guarded, "c", b"hello").release()
    with pytest.raises(Refused):
        guarded.claim(describe("a", b"other", fingerprint="f2"))
    guarded.partials("b", clear=True, owner="ann")
    begin(guarded, "a", b"other", fingerprint="f2").discard()


def test_bytes_too_many_are_refused(store: Store) -> None:
    """By what was announced; of streams by what has come, together with all else."""
    guarded = guard(store, ALL, most_staged_bytes=100)
    begin(guarded, "a", bytes(60)).release()
    with pytest.raises(Refused, match="100 bytes") as caught:
        guarded.claim(describe("b", bytes(41)))
    assert "staged_bytes" in caught.value.hint
    with pytest.raises(Refused):
        guarded.claim(describe("b", bytes(1000)))
    stream = guarded.claim(describe("s", None, transfer=T1))
    write(stream, 0, bytes(40))
    stream.release()
    assert guarded.staged("ann") == (2, 100)
    stream = guarded.claim(describe("s", None, transfer=T1))
    assert stream.inherited == 40
    with pytest.raises(Refused, match="100 bytes"):
        stream.begin(40, 1)
    stream.release()
    assert guarded.staged("ann") == (1, 60)
    save(guarded, "b", bytes(40))
    save(guarded, "a", bytes(60))
    save(guarded, "c", bytes(100))


def test_many_at_once_are_not_too_many(local: LocalStore, root: Path) -> None:
    """Connections of one account that begin at the same time share its limit."""
    barrier = threading.Barrier(8)
    held: list[Staging] = []

    def play(number: int) -> None:
        guarded = guard(local, ALL, most_staged_files=3)
        barrier.wait(PATIENCE)
        for turn in range(10):
            try:
                held.append(guarded.claim(describe(f"{number}/{turn}", b"hello")))
            except Refused:
                pass

    threads = [threading.Thread(target=play, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(held) <= 3
    assert len(journals(root)) == len(staged(root)) == len(held)
    for staging in held:
        staging.discard()


@pytest.mark.parametrize(
    ("can", "seen", "dropped"),
    [
        (CREATE, ["a"], ["a"]),
        (BOTH, ["a", "b", "c"], ["a"]),
        (READ, ["a", "b", "c"], None),
        (READ | {"delete"}, ["a", "b", "c"], ["a", "b", "c"]),
        (frozenset({"delete"}), ["a"], ["a"]),
    ],
)
def test_who_may_see_and_drop_what_is_unfinished(
    store: Store, can: frozenset[str], seen: list[str], dropped: list[str] | None
) -> None:
    """One's own always; that of others to look at with read, to drop with delete."""
    for path, owner in (("a", "ann"), ("b", "bob"), ("c", "")):
        store.claim(describe(path, b"hello", owner=owner)).release()
    guarded = guard(store, can)
    assert [partial.path for partial in guarded.partials()] == seen
    if dropped is None:
        with pytest.raises(Refused):
            guarded.partials(clear=True)
    else:
        assert [partial.path for partial in guarded.partials(clear=True)] == dropped
    left = [partial.path for partial in store.partials()]
    assert left == [path for path in ("a", "b", "c") if path not in (dropped or [])]


def test_nobody_says_whose_transfer_it_is(store: Store) -> None:
    """The account does, whatever the description says."""
    store.claim(describe("f", b"hello", owner="bob")).release()
    guarded = guard(store, ALL)
    staging = guarded.claim(Description("f", 5, "f1", owner="bob"))
    assert not staging.taken_up
    staging.release()
    assert sorted((partial.path, partial.owner) for partial in store.partials()) == [("f", "ann"), ("f", "bob")]

"""What every store promises to the loops: one suite, run against each implementation."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import block_hash

from ftransfer.errors import AlreadyExists, Busy, DiskError, FtransferError, NotAFile, NotFound
from ftransfer.receiving import Gaps
from ftransfer.rights import ALL, Account, Allowance
from ftransfer.store import base
from ftransfer.store.base import Description, Grain, Staging, Store
from ftransfer.store.guarded import GuardedStore
from ftransfer.store.local import LocalStore
from ftransfer.store.many import ManyStore
from ftransfer.store.memory import MemoryStore

Maker = Callable[[Path], Store]


def below(store: Store) -> Store:
    """Return a store of a folder of another one, which is closed."""
    with closing(store):
        return store.below("in/here", create=True)


def guarded(store: Store) -> Store:
    """Return a store as somebody may use it who may do everything, and is counted."""
    used = [0]

    def add(count: int) -> None:
        used[0] += count
        assert used[0] >= 0

    account = Account("ann", ALL, quota=1 << 63)
    return GuardedStore(store, account, Allowance(account.quota, lambda: used[0], add), most_staged_bytes=1 << 63)


MAKERS: dict[str, Maker] = {
    "memory": lambda _: MemoryStore(),
    "memory, below": lambda _: below(MemoryStore()),
    "local": lambda folder: LocalStore(folder, durable=False),
    "local, durable": LocalStore,
    "local, below": lambda folder: below(LocalStore(folder)),
    "guarded memory": lambda _: guarded(MemoryStore()),
    "guarded local": lambda folder: guarded(LocalStore(folder, durable=False)),
    "one of many": lambda folder: below(ManyStore({"in": LocalStore(folder, durable=False), "other": MemoryStore()})),
}
T1, T2 = "1" * 32, "2" * 32


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request: pytest.FixtureRequest) -> Maker:
    """One way to make a store."""
    made: Maker = request.param
    return made


@pytest.fixture
def store(make: Maker, root: Path) -> Iterator[Store]:
    """An empty store."""
    with closing(make(root)) as made:
        yield made


def describe(path: str, data: bytes | None, **more: object) -> Description:
    """Return the description of some bytes, or of a stream."""
    fields: dict[str, object] = {"size": None if data is None else len(data), "fingerprint": "f1", "mtime_ns": 10**18}
    return Description(path, **(fields | more))  # type: ignore[arg-type]


def write(staging: Staging, offset: int, data: bytes) -> None:
    """Write a grain and have it accepted."""
    staging.begin(offset, len(data))
    staging.write(memoryview(data))
    staging.accept(block_hash(data))


def save(store: Store, path: str, data: bytes, **more: object) -> base.Committed:
    """Store a file as one grain."""
    staging = store.claim(describe(path, data, **more))
    if data:
        write(staging, 0, data)
    return staging.commit(len(data), block_hash(data))


def content(store: Store, path: str) -> bytes:
    """Read a file through the store."""
    with store.open(path) as source:
        buffer = bytearray((source.size or 0) + 10)
        count = source.read_into(0, memoryview(buffer))
        source.check()
        assert count == source.size
        return bytes(buffer[:count])


def staged_bytes(staging: Staging, offset: int, length: int) -> bytes:
    """Read staged bytes back."""
    view = memoryview(bytearray(length))
    return bytes(view[: staging.read(offset, view)])


def test_a_new_store_is_empty(store: Store) -> None:
    """The root is there, nothing is in it."""
    assert store.stat("").kind == "folder"
    assert list(store.entries("", recursive=True)) == []
    assert store.partials() == []
    assert store.sweep() == 0


@pytest.mark.parametrize("data", [b"", b"x", b"hello" * 1000])
def test_a_committed_file_is_there_as_it_was_announced(store: Store, data: bytes) -> None:
    """Bytes, size, time and mode; nothing staged is left."""
    done = save(store, "a/b.txt", data, mode=0o4640)
    assert done == ("a/b.txt", len(data), block_hash(data), store.capabilities.durable)
    assert content(store, "a/b.txt") == data
    entry = store.stat("a/b.txt")
    assert (entry.path, entry.kind, entry.size, entry.mtime_ns) == ("a/b.txt", "file", len(data), 10**18)
    if store.capabilities.keeps_modes:
        assert entry.mode == 0o640
    assert [e.path for e in store.entries("", recursive=True)] == ["a", "a/b.txt"]
    assert store.partials() == []


def test_nothing_shows_before_the_commit(store: Store) -> None:
    """The old file is there, whole, until the new one is; a release or a discard leaves it."""
    save(store, "f", b"old")
    staging = store.claim(describe("f", b"newer"))
    write(staging, 0, b"newer")
    assert content(store, "f") == b"old"
    assert [entry.path for entry in store.entries("")] == ["f"]
    staging.release()
    assert content(store, "f") == b"old"
    staging = store.claim(describe("f", b"newer"))
    staging.discard()
    assert content(store, "f") == b"old"
    assert store.partials() == []


def test_what_was_accepted_is_there_for_the_next_claim(store: Store) -> None:
    """The same content for the same path goes on; rejected and open grains do not count."""
    data = bytes(range(200))
    staging = store.claim(describe("f", data))
    write(staging, 50, data[50:100])
    staging.begin(100, 50)
    staging.write(memoryview(bytes(50)))
    staging.reject()
    staging.begin(150, 50)
    staging.write(memoryview(bytes(10)))
    staging.release()
    (partial,) = store.partials()
    assert (partial.path, partial.size, partial.held, partial.fingerprint) == ("f", 200, 50, "f1")
    staging = store.claim(describe("f", data))
    assert staging.grains == {50: Grain(50, 50, block_hash(data[50:100]))}
    assert staging.inherited == 50
    assert staged_bytes(staging, 50, 50) == data[50:100]
    assert base.missing(staging.grains.values(), 200) == [(0, 50), (100, 100)]
    write(staging, 100, data[100:])
    write(staging, 0, data[:50])
    staging.commit(200, block_hash(data))
    assert content(store, "f") == data


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "f2"},
        {"size": 4},
        {"path": "g"},
        {"fingerprint": None},
        {"size": None},
    ],
    ids=str,
)
def test_other_content_never_goes_on_with_it(store: Store, other: dict[str, object]) -> None:
    """Another fingerprint, size or path starts from nothing."""
    first = store.claim(describe("f", b"hello"))
    write(first, 0, b"he")
    first.release()
    second = store.claim(describe("f", b"hello")._replace(**other))
    assert second.grains == {}
    assert second.inherited == 0
    second.release()


def test_without_resume_a_claim_starts_from_nothing(store: Store) -> None:
    """Unless it is this very attempt, which comes back by its `transfer`."""
    first = store.claim(describe("f", b"hello"))
    write(first, 0, b"he")
    first.release()
    second = store.claim(describe("f", b"hello", transfer=T1), resume=False)
    assert second.inherited == 0
    write(second, 0, b"hel")
    second.release()
    third = store.claim(describe("f", b"hello", transfer=T1), resume=False)
    assert third.inherited == 3
    third.discard()


def test_a_stream_resumes_by_its_transfer(store: Store) -> None:
    """A stream has neither size nor fingerprint; the attempt that sends it has a name."""
    description = describe("f", None, fingerprint=None, transfer=T1)
    staging = store.claim(description)
    write(staging, 0, b"hello")
    staging.release()
    staging = store.claim(description)
    assert staging.inherited == 5
    write(staging, 5, b" world")
    staging.commit(11, block_hash(b"hello world"))
    assert content(store, "f") == b"hello world"


def test_one_writer_at_a_time(store: Store) -> None:
    """A second claim of the same transfer is told so, until the first has let go; other transfers go on."""
    first = store.claim(describe("f", b"hello"))
    with pytest.raises(Busy):
        store.claim(describe("f", b"hello"))
    store.claim(describe("f", b"other", fingerprint="f2")).release()
    assert len(store.partials()) == 2
    assert len(store.partials(clear=True)) == 1
    write(first, 0, b"hello")
    first.release()
    second = store.claim(describe("f", b"hello"))
    assert second.inherited == 5
    second.commit(5, block_hash(b"hello"))
    store.claim(describe("f", b"hello")).discard()


def test_two_writers_of_one_name_leave_one_whole_winner(store: Store) -> None:
    """The last commit has the name, and what the other staged does not stay behind."""
    first = store.claim(describe("f", b"first", fingerprint="f1"))
    second = store.claim(describe("f", b"second", fingerprint="f2"))
    write(second, 0, b"second")
    write(first, 0, b"first")
    second.commit(6, block_hash(b"second"))
    first.commit(5, block_hash(b"first"))
    assert content(store, "f") == b"first"
    assert store.partials() == []


def test_a_commit_drops_what_it_supersedes(store: Store) -> None:
    """Older content staged for the same path goes with it, that of other paths stays."""
    for path, name in (("f", "f1"), ("f", "f2"), ("g", "f1")):
        staging = store.claim(describe(path, b"hello", fingerprint=name))
        write(staging, 0, b"he")
        staging.release()
    save(store, "f", b"hello", fingerprint="f3")
    assert [partial.path for partial in store.partials()] == ["g"]


def test_a_grain_that_went_bad_is_forgotten(store: Store) -> None:
    """Also for the next claim; the others stay."""
    staging = store.claim(describe("f", b"hello world"))
    for offset, piece in ((0, b"hello"), (5, b" wor"), (9, b"ld")):
        write(staging, offset, piece)
    staging.forget(5)
    assert sorted(staging.grains) == [0, 9]
    staging.release()
    staging = store.claim(describe("f", b"hello world"))
    assert sorted(staging.grains) == [0, 9]
    assert staging.inherited == 7
    write(staging, 5, b" wor")
    staging.commit(11, block_hash(b"hello world"))
    assert content(store, "f") == b"hello world"


def test_holes_read_as_zeros(store: Store) -> None:
    """Also over bytes that a rejected grain left behind, and behind the last byte that was written."""
    staging = store.claim(describe("f", bytes(300)))
    staging.begin(0, 200)
    staging.write(memoryview(b"x" * 200))
    staging.reject()
    for offset in (0, 100, 200):
        staging.begin(offset, 100)
        staging.zero()
        staging.accept(block_hash(bytes(100)))
    assert staged_bytes(staging, 0, 300) == bytes(300)
    staging.commit(300, block_hash(bytes(300)))
    assert content(store, "f") == bytes(300)


def test_bytes_beyond_the_end_do_not_stay(store: Store) -> None:
    """A rejected grain behind the end of a stream leaves nothing in the file."""
    staging = store.claim(describe("f", None, transfer=T1))
    write(staging, 0, b"hello")
    staging.begin(5, 100)
    staging.write(memoryview(b"x" * 100))
    staging.reject()
    staging.commit(5, block_hash(b"hello"))
    assert content(store, "f") == b"hello"


def test_release_and_discard_do_nothing_after_the_end(store: Store) -> None:
    """However a transfer ended, letting go of it again is harmless."""
    staging = store.claim(describe("f", b"x"))
    write(staging, 0, b"x")
    staging.commit(1, block_hash(b"x"))
    staging.release()
    staging.discard()
    staging = store.claim(describe("g", b"x"))
    staging.discard()
    staging.discard()
    staging.release()
    assert content(store, "f") == b"x"
    assert [entry.path for entry in store.entries("")] == ["f"]


@pytest.mark.parametrize(
    ("policy", "mtime_ns", "expected"),
    [
        ("replace", 5, "new"),
        ("newer", 10**18 + 1, "new"),
        ("newer", 10**18, "exists"),
        ("newer", 5, "exists"),
        ("skip", 5, "exists"),
        ("fail", 5, "exists"),
        ("rename", 5, "renamed"),
    ],
)
def test_the_policy_decides_at_the_commit(store: Store, policy: str, mtime_ns: int, expected: str) -> None:
    """A name that was taken while the bytes came is treated as one that was taken before; nothing staged is left."""
    staging = store.claim(describe("a/f.tar.gz", b"new", if_exists=policy, mtime_ns=mtime_ns, fingerprint="new"))
    write(staging, 0, b"new")
    save(store, "a/f.tar.gz", b"old")
    if expected == "exists":
        with pytest.raises(AlreadyExists):
            staging.commit(3, block_hash(b"new"))
        staging.release()
    else:
        done = staging.commit(3, block_hash(b"new"))
        assert done.path == ("a/f.tar.gz" if expected == "new" else "a/f.tar (1).gz")
        assert content(store, done.path) == b"new"
    assert content(store, "a/f.tar.gz") == (b"new" if expected == "new" else b"old")
    assert store.partials() == []


@pytest.mark.parametrize("policy", ["replace", "newer", "skip", "fail", "rename"])
def test_every_policy_takes_a_free_name(store: Store, policy: str) -> None:
    """Where nothing is in the way there is nothing to decide."""
    assert save(store, "f", b"data", if_exists=policy).path == "f"
    assert content(store, "f") == b"data"


def test_renamed_copies_count_up(store: Store) -> None:
    """`f`, `f (1)`, `f (2)`; a name that begins with a dot has no suffix."""
    assert [save(store, "f", b"x", if_exists="rename").path for _ in range(3)] == ["f", "f (1)", "f (2)"]
    assert [save(store, ".rc", b"x", if_exists="rename").path for _ in range(2)] == [".rc", ".rc (1)"]


def test_a_lost_receipt_is_found_by_the_transfer(store: Store) -> None:
    """Only for the same transfer and path, and only while the file is the one that was committed."""
    done = save(store, "f", b"hello", transfer=T1)
    asked = describe("f", b"hello", transfer=T1)
    assert store.committed(asked) == done
    assert store.committed(asked._replace(transfer=T2)) is None
    assert store.committed(asked._replace(transfer=None)) is None
    assert store.committed(asked._replace(path="g")) is None
    save(store, "f", b"other", transfer=T2)
    assert store.committed(asked) is None
    store.remove("f")
    assert store.committed(asked._replace(transfer=T2)) is None


def test_a_lost_receipt_names_the_copy(store: Store) -> None:
    """With `rename` the file is found under the name that it got."""
    save(store, "f", b"old")
    save(store, "f", b"new", transfer=T1, if_exists="rename")
    done = store.committed(describe("f", b"new", transfer=T1, if_exists="rename"))
    assert done is not None
    assert done.path == "f (1)"


def test_folders_and_files_in_the_way_are_named(store: Store) -> None:
    """A file never replaces a folder, and a folder is never looked for in a file."""
    store.mkdir("folder")
    save(store, "file", b"x")
    calls: list[tuple[type[FtransferError], Callable[[], object]]] = [
        (NotAFile, lambda: store.claim(describe("folder", b"x"))),
        (NotAFile, lambda: store.claim(describe("file/x", b"x"))),
        (NotAFile, lambda: store.open("folder")),
        (NotAFile, lambda: store.open("file/x")),
        (NotAFile, lambda: store.stat("file/x")),
        (NotAFile, lambda: list(store.entries("file"))),
        (NotAFile, lambda: store.mkdir("file/x", parents=True)),
        (NotAFile, lambda: store.mkdir("file", parents=True)),
        (NotFound, lambda: store.open("nothing")),
        (NotFound, lambda: store.open("nothing/x")),
        (NotFound, lambda: store.stat("nothing")),
        (NotFound, lambda: list(store.entries("nothing"))),
        (NotFound, lambda: store.mkdir("nothing/x")),
        (NotFound, lambda: store.remove("nothing")),
        (NotFound, lambda: store.move("nothing", "x")),
        (NotFound, lambda: store.move("file", "nothing/x")),
        (AlreadyExists, lambda: store.mkdir("folder")),
        (AlreadyExists, lambda: store.mkdir("file")),
        (AlreadyExists, lambda: store.move("file", "folder")),
        (AlreadyExists, lambda: store.move("folder", "file")),
        (AlreadyExists, lambda: store.move("file", "file")),
    ]
    for expected, call in calls:
        with pytest.raises(expected):
            call()
    assert content(store, "file") == b"x"
    assert [entry.path for entry in store.entries("", recursive=True)] == ["file", "folder"]
    assert store.partials() == []


def test_a_folder_cannot_move_into_itself(store: Store) -> None:
    """It is a mistake of the caller, not of the disk."""
    store.mkdir("a/b", parents=True)
    with pytest.raises(FtransferError) as caught:
        store.move("a", "a/b/c")
    assert not isinstance(caught.value, DiskError)
    assert [entry.path for entry in store.entries("", recursive=True)] == ["a", "a/b"]


def test_folders_are_made_and_removed(store: Store) -> None:
    """With and without those above; a folder that is not empty stays unless it is meant."""
    store.mkdir("a/b/c", parents=True)
    store.mkdir("a/b/c", parents=True)
    save(store, "a/b/f", b"x")
    with pytest.raises(NotAFile):
        store.remove("a")
    store.remove("a/b/c")
    store.remove("a", recursive=True)
    assert list(store.entries("", recursive=True)) == []


def test_files_and_folders_move(store: Store) -> None:
    """With all that is in them."""
    save(store, "a/b/f", b"x", mode=0o600)
    store.move("a/b", "c")
    store.move("c/f", "a/g")
    assert [entry.path for entry in store.entries("", recursive=True)] == ["a", "a/g", "c"]
    assert content(store, "a/g") == b"x"


def test_entries_come_sorted_folder_by_folder(store: Store) -> None:
    """By name in each folder, each folder followed by what is in it, paths relative to where it began."""
    for path in ("b/z", "b/a/x", "a!", "a/y", "ä", "B"):
        save(store, path, b"x")
    assert [entry.path for entry in store.entries("")] == ["B", "a", "a!", "b", "ä"]
    recursive = ["B", "a", "a/y", "a!", "b", "b/a", "b/a/x", "b/z", "ä"]
    assert [entry.path for entry in store.entries("", recursive=True)] == recursive
    assert [entry.path for entry in store.entries("b", recursive=True)] == ["a", "a/x", "z"]


def test_partials_are_listed_below_a_path(store: Store) -> None:
    """Whatever their sizes are; with `clear` all go but what is being written."""
    for path, data, name in (("a/f", None, None), ("a/f", b"hello", "f1"), ("a/f", b"hello", None), ("b", b"x", "f1")):
        staging = store.claim(describe(path, data, fingerprint=name))
        write(staging, 0, b"h")
        staging.release()
    assert [partial.path for partial in store.partials()] == ["a/f"] * 3 + ["b"]
    assert [partial.path for partial in store.partials("a")] == ["a/f"] * 3
    assert store.partials("a/f/x") == []
    assert [partial.path for partial in store.partials("b")] == ["b"]
    busy = store.claim(describe("b", b"x"))
    assert len(store.partials(clear=True)) == 3
    assert [partial.path for partial in store.partials()] == ["b"]
    busy.discard()
    assert store.partials() == []


def test_a_file_that_does_not_fit_is_refused_before_its_first_byte(store: Store) -> None:
    """And leaves nothing behind."""
    staging = store.claim(Description("f", 1 << 62))
    with pytest.raises(DiskError, match="no space"):
        staging.check_space()
    assert store.partials() == []
    assert list(store.entries("")) == []


@pytest.mark.parametrize("mtime_ns", [None, 0, -1, 1, 1_700_000_000_123_456_789])
def test_times_are_kept(store: Store, mtime_ns: int | None) -> None:
    """To the nanosecond, before 1970 too."""
    save(store, "f", b"x", mtime_ns=mtime_ns)
    assert mtime_ns is None or store.stat("f").mtime_ns == mtime_ns


def test_an_open_source_is_the_file_that_was_opened(store: Store) -> None:
    """A file that is replaced meanwhile is read to its end as it was."""
    save(store, "f", b"old")
    with store.open("f") as source:
        save(store, "f", b"newer")
        view = memoryview(bytearray(10))
        assert bytes(view[: source.read_into(0, view)]) == b"old"
        assert source.read_into(3, view) == 0
        assert source.read_into(100, view) == 0


cuts = st.sets(st.integers(1, 299), max_size=8).map(lambda inner: [0, *sorted(inner), 300])


@pytest.mark.parametrize("make_one", [MAKERS["memory"], MAKERS["local"]], ids=["memory", "local"])
@given(st.data(), cuts)
def test_grains_in_any_order_over_any_claims(make_one: Maker, data: st.DataObject, where: list[int]) -> None:
    """Grains come in any order, are rejected, forgotten, interrupted: in the end the file is what was sent."""
    whole = bytes(i * 7 % 251 for i in range(300))
    pieces = [(a, whole[a:b]) for a, b in itertools.pairwise(where)]
    with TemporaryDirectory() as folder, closing(make_one(Path(folder))) as store:
        description = describe("a/f", whole)
        staging = store.claim(description)
        for offset, piece in data.draw(st.permutations(pieces)):
            act = data.draw(st.sampled_from(["accept", "accept", "reject", "forget", "interrupt", "break off"]))
            if act in ("reject", "break off"):
                staging.begin(offset, len(piece))
                staging.write(memoryview(b"?" * len(piece)))
                if act == "reject":
                    staging.reject()
            else:
                write(staging, offset, piece)
            if act == "forget":
                staging.forget(offset)
            if act in ("interrupt", "break off"):
                held = dict(staging.grains)
                staging.release()
                staging = store.claim(description)
                assert staging.grains == held
                assert staging.inherited == sum(grain.length for grain in held.values())
        for offset, length in base.missing(staging.grains.values(), 300):
            assert length is not None
            write(staging, offset, whole[offset : offset + length])
        assert all(
            staged_bytes(staging, g.offset, g.length) == whole[g.offset : g.end] for g in staging.grains.values()
        )
        staging.commit(300, block_hash(whole))
        assert content(store, "a/f") == whole
        assert store.partials() == []


SIZE = 60


class NaiveGaps:
    """The model of `Gaps`: a set of missing bytes, and which of them belong to one gap."""

    def __init__(self) -> None:
        self.pieces = [set(range(SIZE))]

    def covers(self, offset: int, length: int) -> bool:
        return any(piece.issuperset(range(offset, offset + length)) for piece in self.pieces)

    def fill(self, offset: int, length: int) -> None:
        made = []
        for piece in self.pieces:
            if offset in piece:
                made += [{b for b in piece if b < offset}, {b for b in piece if b >= offset + length}]
            else:
                made.append(piece)
        self.pieces = [piece for piece in made if piece]

    def open(self, offset: int, length: int) -> None:
        self.pieces.append(set(range(offset, offset + length)))


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20), st.booleans()), max_size=25))
def test_gaps_are_what_a_naive_model_says(steps: list[tuple[int, int, bool]]) -> None:
    """Filled, opened again, asked: the same as looking at every byte."""
    gaps, model = Gaps([(0, SIZE)]), NaiveGaps()
    filled: list[tuple[int, int]] = []
    for offset, length, again in steps:
        if again and filled:
            one = filled.pop(offset % len(filled))
            gaps.open(*one)
            model.open(*one)
            continue
        assert gaps.covers(offset, length) == model.covers(offset, length)
        if gaps.covers(offset, length):
            gaps.fill(offset, length)
            model.fill(offset, length)
            filled.append((offset, length))
        ranges = [(start, (size or 0)) for start, size in gaps.ranges()]
        assert sorted((min(p), len(p)) for p in model.pieces) == ranges
        assert bool(gaps) == bool(model.pieces)


@given(st.integers(0, 100), st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=8))
def test_the_end_of_a_stream_cuts_the_gaps(size: int, grains: list[tuple[int, int]]) -> None:
    """What is missing of a stream is missing up to its end, and nothing behind it."""
    gaps = Gaps([(0, None)])
    held = set()
    for offset, length in grains:
        if gaps.covers(offset, length):
            gaps.fill(offset, length)
            held |= set(range(offset, offset + length))
    gaps.cut(size)
    left = [byte for start, length in gaps.ranges() for byte in range(start, start + (length or 0))]
    assert left == [byte for byte in range(size) if byte not in held]

"""Packs: small files into frames and out of them; whatever the names are, each frame fits and each row is answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftransfer import digests, packing, paths, unpacking, wire
from ftransfer.errors import AlreadyExists, BadPath, DiskError, FtransferError, IntegrityError, NotFound, ProtocolError
from ftransfer.packing import HEADER, ROW, Packer, row_size
from ftransfer.store.base import Entry, Source
from ftransfer.store.trees import Packed, Reader, Room, Tree
from ftransfer.unpacking import MOST_REASONS, Unpacker, receipts

TIME = 1_700_000_000_123_456_789
characters = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")
texts = st.text(characters, max_size=40) | st.text('\x01\\"\x7f\u2028\U0001f600\xe9 a', max_size=40)
names = st.text(characters | st.sampled_from('\x01\\"\U0001f600'), min_size=1, max_size=30)


def _is_path(text: str) -> bool:
    try:
        paths.check(text)
    except BadPath:
        return False
    return True


good_paths = st.lists(names, min_size=1, max_size=4).map("/".join).filter(_is_path)
times = st.integers(-wire.MAX_INT, wire.MAX_INT) | st.sampled_from([-wire.MAX_INT, wire.MAX_INT])
modes = st.integers(0, 0o7777)
sizes = st.integers(0, wire.MAX_PACK) | st.just(wire.MAX_PACK)


def in_json(row: object) -> int:
    """Return the bytes that a row takes in a header, with the comma after it."""
    return len(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()) + 1


@given(good_paths, texts, sizes, times, modes)
def test_a_row_never_takes_more_than_was_reckoned(path: str, text: str, size: int, mtime_ns: int, mode: int) -> None:
    """Of any kind, with the longest hash; so a header that was not full before does not burst."""
    rows: list[tuple[object, str]] = [
        (path, path),
        ([path, size, "f" * 64, mtime_ns, mode], path),
        ([path, text, mtime_ns], path + text),
        ([path, mtime_ns, mode], path),
        ([path, "a" * 32, text], path + text),
    ]
    for row, reckoned in rows:
        assert in_json(row) <= row_size(reckoned)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_every_character_is_reckoned(text: str) -> None:
    """Whatever JSON makes of it; the bytes that are not the path's are ROW."""
    assert len(json.dumps(text, ensure_ascii=False).encode()) - 2 <= row_size(text) - ROW


def test_a_full_header_bears_one_more_row() -> None:
    """The longest row fits behind a header that is just not full."""
    assert HEADER + ROW + 6 * paths.MAX_PATH + 200 <= wire.MAX_HEADER


# Packing.


class Shelf(Reader):
    """Files in a dictionary."""

    def __init__(self, files: dict[str, bytes | FtransferError]):
        self._files = files

    def stat(self, path: str) -> Entry | None:
        raise NotImplementedError

    def read(self, path: str, view: memoryview, size: int = -1, mtime_ns: int = 0) -> Packed | None:  # noqa: ARG002
        data = self._files[path]
        if isinstance(data, FtransferError):
            raise data
        if len(data) > len(view):
            return None
        view[: len(data)] = data
        return Packed(len(data), TIME, 0o644)

    def target(self, path: str) -> str:
        raise NotImplementedError

    def open(self, path: str) -> Source:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


ROOM = 4096
TARGET = 1024


@given(
    st.dictionaries(good_paths, st.binary(max_size=60) | st.integers(900, ROOM + 50).map(bytes), max_size=20),
    st.sampled_from(["xxh128", "sha256"]),
)
@settings(max_examples=60)
def test_what_is_packed_is_what_is_unpacked(files: dict[str, bytes], algorithm: str) -> None:
    """Every file in its turn, in frames that fit; only what is larger than the buffer goes another way."""
    packer = Packer(Shelf(dict(files)), memoryview(bytearray(ROOM)), algorithm=algorithm, target=TARGET)
    found: dict[str, bytes] = {}
    alone = []

    def flush() -> None:
        pack, body = packer.take(1)
        assert len(pack.files) == 1 or pack.body <= TARGET
        frame = wire.encode(pack)
        again = wire.parse(frame[4:])
        assert isinstance(again, wire.Pack)
        tree = Heap()
        unpacker = Unpacker(tree, algorithm=algorithm, durable=False)
        assert unpacker.take(again, body) == {}
        assert unpacker.commit() == [{}]
        found.update(tree.files)
        packer.clear()

    for path, data in files.items():
        if not packer.has_room(path, len(data)):
            flush()
        read = packer.file(path)
        if read is None and not packer.is_empty:
            flush()
            read = packer.file(path)
        if read is None:
            alone.append(path)
            continue
        packer.add_file(path, *read, packer.mode)
    if not packer.is_empty:
        flush()
    assert found == {path: data for path, data in files.items() if len(data) <= ROOM}
    assert list(found) == [path for path in files if path not in alone]


@given(st.lists(st.tuples(good_paths, texts), max_size=60))
def test_rows_without_bytes_fit_too(rows: list[tuple[str, str]]) -> None:
    """Links, folders, stamps, failures with messages of any length, what is gone."""
    packer = Packer(Shelf({}), memoryview(bytearray(0)))
    for number, (path, text) in enumerate(rows * 20):
        if not packer.has_room(path):
            assert len(wire.encode(packer.take(1, now=True)[0])) < wire.MAX_HEADER
            packer.clear()
        match number % 5:
            case 0:
                packer.add_link(path, text, TIME)
            case 1:
                packer.add_folder(path, TIME, 0o755)
            case 2:
                packer.add_stamp(path, TIME, 0o644)
            case 3:
                packer.fail(path, FtransferError(text * 100))
            case 4:
                packer.add_gone(path)
    assert len(wire.encode(packer.take(1)[0])) < wire.MAX_HEADER


def test_a_pack_has_at_most_so_many_rows() -> None:
    """However short their names are."""
    packer = Packer(Shelf({}), memoryview(bytearray(0)))
    count = 0
    while packer.has_room("a"):
        packer.add_stamp("a", 0, 0)
        count += 1
    assert count <= wire.MAX_ROWS
    assert wire.encode(packer.take(1)[0])


# Unpacking.


class Heap(Tree):
    """A tree in a dictionary, whose files, links and so on fail as their names say."""

    is_full = False

    exists = False

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._added: list[tuple[str, bytes]] = []
        self.commits = 0

    def room(self) -> Room:
        return Room(None, None)

    def add(self, path: str, data: memoryview, mtime_ns: int, mode: int) -> None:  # noqa: ARG002
        _fail(path, "add")
        self._added.append((path, bytes(data)))

    def commit(
        self, folders: Sequence[tuple[str, int, int]] = ()
    ) -> tuple[dict[int, FtransferError], dict[int, FtransferError]]:
        self.commits += 1
        failed = _failures([path for path, _ in self._added], "commit")
        self.files |= {path: data for at, (path, data) in enumerate(self._added) if at not in failed}
        self._added = []
        return failed, _failures([path for path, _, _ in folders], "folder")

    def link(self, path: str, target: str, mtime_ns: int) -> None:  # noqa: ARG002
        _fail(path, "link")

    def folder(self, path: str, mtime_ns: int, mode: int) -> None:  # noqa: ARG002
        _fail(path, "folder")

    def stamp(self, path: str, mtime_ns: int, mode: int) -> None:  # noqa: ARG002
        _fail(path, "stamp")

    def remove(self, path: str) -> None:
        _fail(path, "remove")

    def close(self) -> None:
        """Nothing is held."""


def _fail(path: str, at: str) -> None:
    if path.endswith(f"!{at}"):
        raise NotFound(f"failed at {at}", path=path)
    if path.endswith("!disk"):
        raise DiskError("no space left on the disk", path=path)


def _failures(names: Sequence[str], at: str) -> dict[int, FtransferError]:
    made = ((number, NotFound(f"failed at {at}")) for number, path in enumerate(names) if path.endswith(f"!{at}"))
    return dict(made)


ORDER = ("files", "links", "folders", "stamps", "gone")
suffixes = st.sampled_from(["", "", "!add", "!commit", "!link", "!folder", "!stamp", "!remove", "damaged"])
rows = st.lists(st.tuples(st.sampled_from(ORDER), suffixes), max_size=12)


@given(st.lists(rows, max_size=6))
def test_every_row_is_answered_by_its_place(packs: list[list[tuple[str, str]]]) -> None:
    """Counted through files, links, folders, stamps, gone; over all packs of a group; whenever it failed."""
    tree = Heap()
    unpacker = Unpacker(tree, durable=True)
    expected: list[set[int]] = []
    for number, kinds in enumerate(packs):
        made: dict[str, list[Any]] = {kind: [] for kind in ORDER}
        fails = set()
        for row, (kind, suffix) in enumerate(sorted(kinds, key=lambda one: ORDER.index(one[0]))):
            path = f"{number}-{row}{suffix}"
            good = digests.block_hash(b"x")
            if kind == "files":
                made[kind].append((path, 1, good if suffix != "damaged" else "0" * 32, TIME, 0o644))
                fails |= {row} if suffix in ("!add", "!commit", "damaged") else set()
            elif kind == "links":
                made[kind].append((path, "x", TIME))
                fails |= {row} if suffix == "!link" else set()
            elif kind == "gone":
                made[kind].append(path)
                fails |= {row} if suffix == "!remove" else set()
            else:
                made[kind].append((path, TIME, 0o644))
                fails |= {row} if suffix == f"!{kind[:-1]}" else set()
        expected.append(fails)
        body = b"x" * len(made["files"])
        unpacker.take(wire.Pack(t=1, body=len(body), **made), memoryview(body))
    assert unpacker.waiting == len(packs)
    outcomes = unpacker.commit()
    assert [set(failed) for failed in outcomes] == expected
    assert unpacker.waiting == 0
    assert unpacker.commit() == []


def test_links_that_lead_out_fail_alone() -> None:
    """They are not made, and answered by their row."""
    unpacker = Unpacker(Heap(), durable=False)
    pack = wire.Pack(t=1, links=[("l", "../x", TIME), ("d/l", "../x", TIME), ("m", "/etc", TIME), ("n", "\0", TIME)])
    assert {row: exc.code for row, exc in unpacker.take(pack, memoryview(b"")).items()} == dict.fromkeys(
        (0, 2, 3), "bad-path"
    )


@pytest.mark.parametrize("field", ["files", "links"])
def test_a_full_disk_ends_the_whole(field: str) -> None:
    """What follows would fail, too."""
    unpacker = Unpacker(Heap(), durable=False)
    row = ("f!disk", 0, digests.block_hash(b""), TIME, 0) if field == "files" else ("f!disk", "x", TIME)
    with pytest.raises(DiskError):
        unpacker.take(wire.Pack(t=1, **{field: [row]}), memoryview(b""))  # type: ignore[arg-type]


@pytest.mark.parametrize(("sizes", "body"), [([1, 1], 1), ([1], 2), ([], 1), ([0], 1), ([5], 0)])
def test_a_pack_that_does_not_add_up_is_refused(sizes: list[int], body: int) -> None:
    """Before anything of it is stored."""
    tree = Heap()
    unpacker = Unpacker(tree, durable=False)
    files = [(f"{n}", size, digests.block_hash(b"x" * size), TIME, 0o644) for n, size in enumerate(sizes)]
    with pytest.raises(ProtocolError):
        unpacker.take(wire.Pack(t=1, files=files, body=body), memoryview(bytes(body)))
    assert unpacker.waiting == 0
    assert tree._added == []


def test_a_group_is_due_by_packs_by_size_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """At half of the window, when the tree is full, or when it has waited long enough; never while it is empty."""
    pack = wire.Pack(t=1)
    unpacker = Unpacker(Heap(), durable=True)
    assert not unpacker.is_due
    for _ in range(unpacking.WINDOW // 2 - 1):
        unpacker.take(pack, memoryview(b""))
        assert not unpacker.is_due
    unpacker.take(pack, memoryview(b""))
    assert unpacker.is_due
    unpacker.commit()
    assert not unpacker.is_due
    unpacker.take(pack, memoryview(b""))
    unpacker.tree.is_full = True
    assert unpacker.is_due
    unpacker.tree.is_full = False
    assert not unpacker.is_due
    monkeypatch.setattr(unpacking, "GROUP_SECONDS", 0.0)
    assert unpacker.is_due
    quick = Unpacker(Heap(), durable=False)
    quick.take(pack, memoryview(b""))
    assert quick.is_due


# Answers.

reasons = st.tuples(st.sampled_from([NotFound, AlreadyExists, IntegrityError]), st.text(max_size=300))
outcomes_of_packs = st.lists(st.dictionaries(st.integers(0, 5000), reasons, max_size=6), max_size=8)


def read_back(messages: list[wire.Receipts]) -> tuple[int, dict[tuple[int, int], tuple[str, str]]]:
    """Return what a sender makes of the answers to a group: how many packs, and what failed of them."""
    failed: dict[tuple[int, int], tuple[str, str]] = {}
    for number, message in enumerate(messages):
        frame = wire.encode(message)
        again = wire.parse(frame[4:])
        assert isinstance(again, wire.Receipts)
        is_last = number == len(messages) - 1
        assert again.more != is_last
        assert is_last or again.packs == 0
        for pack, row, why in again.failed:
            assert (pack, row) not in failed
            code, text = again.why[why]
            failed[pack, row] = (code, text)
    return messages[-1].packs, failed


@given(outcomes_of_packs, st.booleans())
def test_what_failed_is_told_row_by_row(
    outcomes: list[dict[int, tuple[type[FtransferError], str]]], durable: bool
) -> None:
    """Each with its code and its text, cut to size and escaped; everything else counts as stored."""
    made = [{row: cls(text) for row, (cls, text) in pack.items()} for pack in outcomes]
    messages = list(receipts(1, made, durable=durable))
    packs, failed = read_back(messages)
    assert packs == len(outcomes)
    assert messages[-1].durable == durable
    assert {at: code for at, (code, _) in failed.items()} == {
        (pack, row): exc.code for pack, them in enumerate(made) for row, exc in them.items()
    }
    for (pack, row), (_, text) in failed.items():
        assert text == paths.short(made[pack][row].message, unpacking.TEXT)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_many_failures_go_over_several_messages(count: int) -> None:
    """The packs count as answered with the last one only."""
    made: list[dict[int, FtransferError]] = [{}, {row: NotFound("gone") for row in range(count)}, {}]
    messages = list(receipts(1, made, durable=True))
    assert len(messages) == max(1, -(-count // wire.MAX_FAILED))
    packs, failed = read_back(messages)
    assert packs == 3
    assert failed == {(1, row): ("not-found", "gone") for row in range(count)}


@pytest.mark.parametrize("text", ["a", "\xe9", "\U0001f600", "\x01", '"', "\\", "\u2028", "\ud800"], ids=ascii)
def test_many_reasons_fit(text: str) -> None:
    """Beyond the most that one message has, the last one stands for others; every row is told, every frame fits."""
    count = 3000
    made: list[dict[int, FtransferError]] = [{row: NotFound(f"{row}" + text * 500) for row in range(count)}]
    packs, failed = read_back(list(receipts(1, made, durable=True)))
    assert packs == 1
    assert len(failed) == count
    assert len(set(failed.values())) == MOST_REASONS


def test_a_reason_that_stands_for_others_has_a_code_that_is_harmless() -> None:
    """What is not told exactly is never told as something that the sender acts upon: exists, or damaged."""
    many: dict[int, FtransferError] = {row: NotFound(f"{row}") for row in range(MOST_REASONS - 2)}
    for acted_upon in (AlreadyExists("the name is taken"), IntegrityError("it arrived damaged")):
        made = [many | {1000: acted_upon, 1001: NotFound("something else"), 1002: NotFound("and another thing")}]
        _, failed = read_back(list(receipts(1, made, durable=True)))
        assert failed[0, 1000][0] == acted_upon.code
        assert {failed[0, 1001][0], failed[0, 1002][0]} & {"exists", "integrity"} == set()


def test_the_limits_of_packs_fit_each_other() -> None:
    """A pack is never larger than a frame may be, nor a group than its answer may say."""
    assert packing.TARGET <= wire.MAX_PACK
    assert unpacking.WINDOW <= 1024
    assert MOST_REASONS <= 64

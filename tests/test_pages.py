"""Pages of names, rows and failures: whatever the names are, each fits into a header, and nothing is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftransfer import bulkhashing, paths, wire
from ftransfer.answering import Answers
from ftransfer.errors import FtransferError, NotAFile, NotFound, Refused
from ftransfer.questions import goes
from ftransfer.store.base import FILE, Entry, OnError, Source
from ftransfer.store.memory import MemoryStore
from ftransfer.store.trees import PlainReader, Reader

NASTY = ["a", "\x01", '"', "\\", "\xe9", "\u20ac", "\U0001f600", "\u2028", "\x7f"]


def long_path(char: str, size: int = paths.MAX_PATH) -> str:
    """Return a path of this character that is as long as a path may be."""
    width = len(char.encode())
    component = char * (paths.MAX_COMPONENT // width)
    path = "/".join([component] * (size // (len(component.encode()) + 1) + 1))
    while len(path.encode()) > size:
        path = path[:-1]
    return paths.check(path.rstrip("/"))


class Line:
    """A channel that only encodes what is sent."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.scratch = memoryview(bytearray(1 << 16))

    def send(self, message: wire.Message) -> None:
        """Take a message, if it can be sent."""
        frame = wire.encode(message)
        assert wire.parse(frame[4:])
        self.said.append(message)


some_paths = st.builds(
    lambda char, count, tail: f"{char * count}{tail}",
    st.sampled_from(NASTY),
    st.integers(1, 63),
    st.integers(0, 999),
) | st.sampled_from([long_path(char) for char in NASTY])
pages = st.lists(some_paths, max_size=30).map(lambda names: names * 10)


@given(pages)
@settings(max_examples=15)
def test_a_page_of_names_goes_in_parts_that_fit(names: list[str]) -> None:
    """All of them, in their order, in every message that carries names."""
    parts = list(goes([Entry(name, FILE, 0, 0, 0) for name in names]))
    assert [entry.path for part in parts for entry in part] == names
    assert all(parts)
    where = long_path("\x01")
    for part in parts:
        named = {"t": (1 << 31) - 1, "path": where, "names": [entry.path for entry in part]}
        for kind in (wire.Stats, wire.Fetch, wire.Checksums):
            assert wire.encode(kind(**named))
    made = list(bulkhashing._parts(iter(names)))
    assert [name for part in made for name in part] == names
    for part in made:
        assert wire.encode(wire.Checksums(t=1, path=where, names=part, algorithm="xxh128", links="follow"))


def test_few_names_go_in_one_part() -> None:
    """A page of ordinary names is not cut."""
    entries = [Entry(f"src/package/module_{n}.py", FILE, 0, 0, 0) for n in range(200)]
    assert len(list(goes(entries))) == 1
    assert list(goes([])) == []


class Nasty(MemoryStore):
    """A store whose folder lists these names, and cannot list those."""

    def __init__(self, names: list[str], failed: list[tuple[str, FtransferError]]):
        super().__init__()
        self._names, self._failed = names, failed

    def entries(  # type: ignore[override]
        self,
        path: str,  # noqa: ARG002
        *,
        on_error: OnError,
        **_: object,
    ) -> Iterator[Entry]:
        for name in self._names:
            yield Entry(name, FILE, wire.MAX_INT, -wire.MAX_INT, 0o7777)
        for name, exc in self._failed:
            on_error(name, exc)

    def reader(self, path: str, *, follow: bool = False) -> Reader:  # noqa: ARG002
        return _Refusing(self, path, dict(self._failed))


class _Refusing(PlainReader):
    """A reader that refuses each file in its own way."""

    def __init__(self, store: MemoryStore, path: str, failed: dict[str, FtransferError]):
        self._store, self._base, self._failed = store, path, failed

    def open(self, path: str) -> Source:
        raise self._failed.get(path, NotFound("no such file or folder"))


def answers_to(store: MemoryStore, request: wire.Message) -> list[Any]:
    """Return what a server says to a request about this store."""
    line = Line()
    server: Any = SimpleNamespace()
    made: Any = line
    handlers: dict[type[wire.Message], Callable[[Any], object]] = dict(Answers(server, made, store).handlers)
    handlers[type(request)](request)
    return line.said


@given(pages, pages, st.text(max_size=300))
@settings(max_examples=15)
def test_every_listing_fits(names: list[str], failed: list[str], text: str) -> None:
    """All names, all failures, as many pages as it takes; the last one says that it is."""
    store = Nasty(names, [(name, Refused(text)) for name in failed])
    said = answers_to(store, wire.List(t=1, path="", recursive=True))
    assert [row[0] for page in said for row in page.rows] == names
    assert sum(len(page.failed) for page in said) == len(failed)
    assert [page.more for page in said] == [True] * (len(said) - 1) + [False]


@pytest.mark.parametrize("char", ["a", "\x01", '"', "\u20ac", "\U0001f600"], ids=ascii)
@pytest.mark.parametrize("text", ["a", "\x01", "\\", "\U0001f600"], ids=ascii)
def test_the_worst_listing_fits(char: str, text: str) -> None:
    """The longest rows behind a page that is almost full, beside the longest failures."""
    short = char * (100 // len(char.encode()))
    for count in (0, 45, 48, 52, 300):
        names = [short] * count + [long_path(char)] + [short] * count
        failed: list[tuple[str, FtransferError]] = [(long_path(text), NotAFile(text * 300))] * 40
        said = answers_to(Nasty(names, failed), wire.List(t=1, path="", recursive=True))
        assert sum(len(page.rows) for page in said) == len(names)
        assert sum(len(page.failed) for page in said) == len(failed)


@pytest.mark.parametrize("text", [*NASTY, "\ud800"], ids=ascii)
def test_hashes_that_all_failed_fit(text: str) -> None:
    """Each with a message of its own."""
    names = [f"{n}" for n in range(wire.MAX_ROWS)]
    store = Nasty([], [(name, NotAFile(f"{name}{text * 500}")) for name in names])
    said = answers_to(store, wire.Checksums(t=1, path="", names=names))
    rows = [row for page in said for row in page.rows]
    assert [row[0] for row in rows] == ["not-a-file"] * len(names)
    assert all(row[1].startswith(name) for name, row in zip(names, rows, strict=True))
    assert [page.more for page in said] == [True] * (len(said) - 1) + [False]

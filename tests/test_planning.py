"""What is decided before a tree moves: its entries counted and looked over, two walks merged, each entry weighed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftransfer import planning
from ftransfer.errors import (
    AlreadyExists,
    BadPath,
    Cancelled,
    ConnectionLost,
    DiskError,
    FtransferError,
    NotAFile,
    Refused,
    RemoteDiskError,
)
from ftransfer.merging import merge
from ftransfer.modes import Modes
from ftransfer.planning import PAGE, PAGES_IN_MEMORY, Plan, Spool, check_room
from ftransfer.store.base import FILE, FOLDER, LINK, OTHER, Entry, OnError
from ftransfer.weighing import HASH, SAME, SEND, SKIPPED, STAMP, Choices, settle, weigh


def file(path: str, size: int = 1) -> Entry:
    """Return the entry of a file."""
    return Entry(path, FILE, size, 10**18, 0o644)


def nothing() -> None:
    """Let it go on."""


# The spool.

values = st.text(max_size=5) | st.integers(-(1 << 63), 1 << 63)
pages_of_rows = st.lists(st.lists(st.tuples(values, values), max_size=4), max_size=12)


@given(pages_of_rows, st.integers(0, 5))
def test_a_spool_gives_back_what_it_was_given(pages: list[list[tuple[Any, ...]]], kept: int) -> None:
    """In any order, whether a page is in memory or on the disk."""
    with pytest.MonkeyPatch.context() as patch, closing(Spool()) as spool:
        patch.setattr(planning, "PAGES_IN_MEMORY", kept)
        for page in pages:
            spool.add(page)
        assert len(spool) == len(pages)
        for number in (*range(len(pages)), *reversed(range(len(pages)))):
            assert spool.page(number) == pages[number]


def test_a_spool_keeps_entries_as_rows() -> None:
    """A page that was on the disk has plain tuples, from which the entries are made again; odd names come back."""
    entries = [Entry(f"a\n\u00e4{n}", LINK, (1 << 63) - 1, -(1 << 63) + 1, 0o7777) for n in range(3)]
    with closing(Spool()) as spool:
        for _ in range(PAGES_IN_MEMORY + 3):
            spool.add(list(entries))
        assert [Entry(*row) for row in spool.page(PAGES_IN_MEMORY + 2)] == entries


def test_one_thread_adds_to_a_spool_while_another_reads() -> None:
    """Each page is whole as soon as it counts."""
    count = PAGES_IN_MEMORY + 200
    with closing(Spool()) as spool:
        thread = threading.Thread(target=lambda: [spool.add([(n, "x" * n)]) for n in range(count)])
        thread.start()
        seen = 0
        while seen < count:
            if seen < len(spool):
                assert [*spool.page(seen)] == [(seen, "x" * seen)]
                seen += 1
        thread.join()


# The plan.


def plan_of(entries: Iterable[Entry], problems: Iterable[tuple[str, FtransferError]] = (), **options: Any) -> Plan:
    """Return a plan of a walk that has these entries and problems."""

    def walk(on_error: OnError) -> Iterator[Entry]:
        for path, exc in problems:
            on_error(path, exc)
        yield from entries

    return Plan(walk, check=options.get("check", nothing))


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["in a thread", "at once"])
@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, (PAGES_IN_MEMORY + 2) * PAGE + 7])
def test_a_plan_has_all_entries_in_their_order(monkeypatch: pytest.MonkeyPatch, count: int, seconds: float) -> None:
    """And the totals; whether it was counted at once or beside the work, in memory or on the disk."""
    monkeypatch.setattr(planning, "FIRST_SECONDS", seconds)
    entries = [file(f"{n:06}", n) if n % 3 else Entry(f"{n:06}", FOLDER, 0, 0, 0o755) for n in range(count)]
    with closing(plan_of(entries)) as plan:
        plan.begin()
        assert plan.is_complete or seconds == 0
        pages = list(plan.pages())
        assert [entry for page in pages for entry in page] == entries
        assert all(len(page) <= PAGE for page in pages)
        assert all(type(entry) is Entry for page in pages for entry in page)
        assert plan.is_complete
        files = [entry for entry in entries if entry.kind == FILE]
        assert (plan.files, plan.bytes) == (len(files), sum(entry.size for entry in files))


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["in a thread", "at once"])
def test_a_walk_that_fails_fails_the_plan(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What it raises is raised where the pages are read, or at the beginning; nothing hangs."""
    monkeypatch.setattr(planning, "FIRST_SECONDS", seconds)

    def walk() -> Iterator[Entry]:
        yield from (file(f"{n}") for n in range(PAGE + 10))
        raise DiskError("input/output error")

    def run() -> None:
        with closing(plan_of(walk())) as plan:
            plan.begin()
            for _ in plan.pages():
                pass

    with pytest.raises(DiskError):
        run()


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["in a thread", "at once"])
def test_a_plan_can_be_stopped(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """By its check, also in a walk that never ends."""
    monkeypatch.setattr(planning, "FIRST_SECONDS", seconds)
    calls = itertools.count()

    def check() -> None:
        if next(calls) > 5:
            raise Cancelled("stopped")

    def run() -> None:
        with closing(plan_of((file(f"{n}") for n in itertools.count()), check=check)) as plan:
            plan.begin()
            for _ in plan.pages():
                pass

    with pytest.raises(Cancelled):
        run()


def test_closing_stops_the_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that never ends ends with the plan, and is closed itself."""
    monkeypatch.setattr(planning, "FIRST_SECONDS", 0.0)
    closed = []

    def walk() -> Iterator[Entry]:
        try:
            for number in itertools.count():
                yield file(f"{number}")
        finally:
            closed.append(True)

    plan = plan_of(walk())
    plan.begin()
    assert len(next(plan.pages())) == PAGE
    plan.close()
    assert closed == [True]
    assert not any(thread.name == "ftransfer-count" for thread in threading.enumerate())


def test_what_cannot_be_read_refuses_nothing() -> None:
    """It is remembered, with its path, and the rest goes."""
    with closing(plan_of([file("a")], [("closed", Refused("permission denied"))])) as plan:
        plan.begin()
        assert [entry.path for page in plan.pages() for entry in page] == ["a"]
        assert [(path, exc.path, exc.code) for path, exc in plan.problems] == [("closed", "closed", "refused")]


@pytest.mark.parametrize("count", [1, 2, 20, 21, 999])
def test_names_that_cannot_be_used_are_named_all_at_once(count: int) -> None:
    """Before the first byte; of very many the first twenty, and how many more; escaped."""
    problems = [(f"bad\x1b{n:03}", BadPath("the name is not valid UTF-8", hint="rename it")) for n in range(count)]
    with closing(plan_of([file("a")], problems)) as plan, pytest.raises(BadPath) as caught:
        plan.begin()
    text = str(caught.value)
    if count == 1:
        assert (text, caught.value.path) == ("the name is not valid UTF-8", "bad\x1b000")
        return
    assert text.isprintable()
    assert text.startswith(f"{count} names cannot be used: bad\\x1b000, ")
    assert sum(f"bad\\x1b{n:03}" in text for n in range(count)) == min(count, 20)
    assert (f"and {count - 20} more" in text) == (count > 20)
    assert "nothing was sent" in caught.value.hint


def test_a_thousand_problems_hide_no_bad_name() -> None:
    """However many folders could not be read before, a name that cannot be used refuses the whole."""
    problems: list[tuple[str, FtransferError]] = [(f"{n}", Refused("permission denied")) for n in range(1500)]
    problems.append(("bad", BadPath("the name is not valid UTF-8")))
    with closing(plan_of([file("a")], problems)) as plan, pytest.raises(BadPath, match="UTF-8"):
        plan.begin()


TWINS = [
    (["case"], ["A", "a"], True),
    (["case"], ["a/X", "a/x"], True),
    (["case"], ["a/X", "b/x"], False),
    (["case"], ["A", "a/x"], True),
    (["case"], ["STRASSE", "stra\u00dfe"], True),
    (["case"], ["\u00c9", "\u00e9"], True),
    (["case"], ["\u00e9", "e\u0301"], False),
    (["form"], ["\u00e9", "e\u0301"], True),
    (["form"], ["A", "a"], False),
    (["case", "form"], ["E\u0301", "\u00e9"], True),
    (["form"], ["a/\u00e9", "b/e\u0301"], False),
    ([], ["A", "a", "\u00e9", "e\u0301"], False),
]


@pytest.mark.parametrize(("folds", "names", "refused"), TWINS, ids=str)
def test_names_that_the_other_side_takes_for_the_same_are_refused(
    folds: list[str], names: list[str], refused: bool
) -> None:
    """Two in one folder, by case or Unicode form, where the other side folds these; each is named."""
    above = sorted({name.rpartition("/")[0] for name in names} - {"", *names})
    entries = [Entry(name, FOLDER, 0, 0, 0o755) for name in above] + [file(name) for name in names]
    entries.sort(key=lambda entry: entry.path.split("/"))
    with closing(plan_of(entries)) as plan:
        if not refused:
            plan.begin(folds)
            assert [entry for page in plan.pages() for entry in page] == entries
            return
        with pytest.raises(BadPath, match="same name") as caught:
            plan.begin(folds)
    assert caught.value.path in {entry.path for entry in entries}


def test_each_of_several_twins_is_named() -> None:
    """In whatever folders they are; folders that have twins, too."""
    entries = [Entry(name, FOLDER, 0, 0, 0o755) for name in ("A", "B", "a")]
    entries += [file(name) for name in ("A/x", "B/X", "B/x", "a/y")]
    entries.sort(key=lambda entry: entry.path.split("/"))
    with closing(plan_of(entries)) as plan, pytest.raises(BadPath) as caught:
        plan.begin(["case"])
    assert str(caught.value).startswith("2 names cannot be used: B/x, a")


@pytest.mark.parametrize("base", ["", "x" * 200, "/".join("a" * 120)])
def test_paths_that_are_too_long_only_there_are_refused(base: str) -> None:
    """A path that can be used here may not be usable below the folder where it goes."""
    entries = [file("short"), file("/".join("b" * 20)), file("/".join(["y" * 250] * 16))]
    refused = {"": 0, "x" * 200: 1, "/".join("a" * 120): 2}[base]
    with closing(plan_of(entries)) as plan:
        if not refused:
            plan.begin(base=base)
            return
        with pytest.raises(BadPath):
            plan.begin(base=base)
        assert len(plan.problems) == refused


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize(
    ("free_bytes", "free_files", "fits"),
    [(None, None, True), (30, 3, True), (29, 3, False), (30, 2, False), (None, 2, False), (0, None, False)],
)
def test_what_cannot_fit_is_refused(free_bytes: int | None, free_files: int | None, fits: bool, remote: bool) -> None:
    """By bytes and by files, on the side where the room is; nobody knows of a tree that is not counted."""
    with closing(plan_of([file("a", 10), file("b", 20), file("c", 0)])) as plan:
        check_room(plan, 0, 0, lambda: (plan.bytes, plan.files), remote=remote)
        plan.begin()
        if fits:
            check_room(plan, free_bytes, free_files, lambda: (plan.bytes, plan.files), remote=remote)
            return
        with pytest.raises(DiskError, match="are needed and") as caught:
            check_room(plan, free_bytes, free_files, lambda: (plan.bytes, plan.files), remote=remote)
        assert type(caught.value) is (RemoteDiskError if remote else DiskError)
        assert caught.value.hint


def test_a_walk_that_broke_is_never_taken_for_a_whole_one() -> None:
    """However often it is asked: what came before the end is not the tree."""

    def breaking() -> Iterator[Entry]:
        yield from (file(f"{n:04}") for n in range(PAGE + 3))
        raise ConnectionLost

    with closing(plan_of(breaking())) as plan:
        for _ in range(3):
            with pytest.raises(ConnectionLost) as caught:
                plan.begin()
            assert not caught.value.retryable
        assert not plan.is_complete


def test_a_plan_can_be_gone_through_again() -> None:
    """What was read of it ahead of the work is still there to be counted."""
    with closing(plan_of([file(f"{n:04}", 1) for n in range(3 * PAGE)])) as plan:
        plan.begin()
        for _ in range(2):
            assert sum(len(page) for page in plan.pages()) == 3 * PAGE


# Two walks.

components = st.sampled_from(["a", "b", "a!", "a.b", "B", "\u00e4", "-"])
trees = st.sets(st.lists(components, min_size=1, max_size=4).map("/".join), max_size=12)


def walk_of(paths: set[str], kind: str) -> list[Entry]:
    """Return the entries of a tree with these paths, and the folders above them, in the order of a walk."""
    whole = {"/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 2)}
    return [Entry(path, kind, 0, 0, 0) for path in sorted(whole, key=lambda path: path.split("/"))]


@given(trees, trees)
def test_two_walks_are_merged_as_a_naive_model_says(one: set[str], other: set[str]) -> None:
    """Each path once, in the order of a walk, with what is at either end."""
    here, there = walk_of(one, "here"), walk_of(other, "there")
    by_path = {entry.path: entry for entry in here}, {entry.path: entry for entry in there}
    everything = sorted(by_path[0].keys() | by_path[1].keys(), key=lambda path: path.split("/"))
    expected = [(by_path[0].get(path), by_path[1].get(path)) for path in everything]
    assert list(merge(iter(here), iter(there))) == expected


def test_walks_are_merged_one_entry_ahead() -> None:
    """Neither walk is read further than it has to be, so trees of any size need no memory."""
    read = [0, 0]

    def walk(which: int) -> Iterator[Entry]:
        for number in range(10_000):
            read[which] += 1
            yield file(f"{number:05}")

    for count, _ in zip(range(1, 100), merge(walk(0), walk(1)), strict=False):
        assert max(read) <= count + 1


# What becomes of an entry.

CLOCK = 2_000_000_000
POLICIES = ("replace", "newer", "skip", "rename", "fail")
TIMES = {"same": 10**18 + 5, "older": 10**18 - CLOCK, "newer": 10**18 + 10 * CLOCK, "cut by the clock": 10**18}
ENTRY = {
    FILE: Entry("f", FILE, 10, TIMES["same"], 0o644),
    LINK: Entry("f", LINK, 10, TIMES["same"], 0o777),
}
FOUND: list[tuple[str, bool, str, bool]] = [
    (kind, same_size, time, same_mode)
    for kind in (FILE, LINK, FOLDER, OTHER)
    for same_size in (True, False)
    for time in TIMES
    for same_mode in (True, False)
]


def found_as(kind: str, same_size: bool, time: str, same_mode: bool, entry: Entry) -> Entry:
    """Return what is at the destination."""
    mode = entry.mode if same_mode else 0o600
    return Entry("f", kind, entry.size if same_size else entry.size + 1, TIMES[time], mode)


def by_policy(policy: str, time: str) -> str | type[FtransferError] | None:
    """Return what the policy says of a name that is taken by something else; None if it may be replaced."""
    if policy == "fail":
        return AlreadyExists
    if policy == "skip" or (policy == "newer" and time in ("same", "newer")):
        return SKIPPED
    return None


def outcome(act: Callable[[], str]) -> str | type[FtransferError]:
    """Return what a decision was, or the class of what it raised."""
    try:
        return act()
    except FtransferError as exc:
        return type(exc)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("compare", ["quick", "hash", "none"])
def test_what_becomes_of_a_file(compare: str, policy: str) -> None:
    """Over everything that may be there: sent, left, given its mode, hashed first, or refused."""
    entry = ENTRY[FILE]
    choices = Choices(compare=compare, if_exists=policy)
    assert weigh(entry, None, choices, CLOCK) == SEND
    for kind, same_size, time, same_mode in FOUND:
        found = found_as(kind, same_size, time, same_mode, entry)
        expected: str | type[FtransferError]
        may_touch = policy in ("replace", "newer")
        if kind in (FOLDER, OTHER):
            expected = NotAFile
        elif kind == FILE and same_size and compare == "hash":
            expected = HASH
        elif kind == FILE and same_size and compare == "quick" and time in ("same", "cut by the clock"):
            expected = SAME if same_mode or not may_touch else STAMP
        else:
            # A file of the same size and another time is hashed before it is sent, where it would be replaced.
            may_be_equal = kind == FILE and same_size and compare == "quick"
            expected = by_policy(policy, time) or (HASH if may_be_equal else SEND)
        assert outcome(lambda f=found: weigh(entry, f, choices, CLOCK)) == expected, (found, expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("compare", ["quick", "hash", "none"])
def test_what_becomes_of_a_link(compare: str, policy: str) -> None:
    """It is never hashed; one with the same size and time counts as the same one, where times are looked at."""
    entry = ENTRY[LINK]
    choices = Choices(compare=compare, if_exists=policy)
    assert weigh(entry, None, choices, CLOCK) == SEND
    for kind, same_size, time, same_mode in FOUND:
        found = found_as(kind, same_size, time, same_mode, entry)
        if kind in (FOLDER, OTHER):
            expected: str | type[FtransferError] = NotAFile
        elif kind == LINK and same_size and time == "same" and compare != "none":
            expected = SAME
        else:
            expected = by_policy(policy, time) or SEND
        assert outcome(lambda f=found: weigh(entry, f, choices, CLOCK)) == expected, (found, expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("compare", ["quick", "hash"])
def test_what_becomes_of_a_file_that_was_hashed(compare: str, policy: str) -> None:
    """Equal ones are never sent, and touched only where a file may be replaced; others go by the policy."""
    entry = ENTRY[FILE]
    choices = Choices(compare=compare, if_exists=policy)
    for time, same_mode, equal in itertools.product(TIMES, (True, False), (True, False)):
        found = found_as(FILE, True, time, same_mode, entry)
        if not equal:
            expected = by_policy(policy, time) or SEND
        else:
            is_stamped = same_mode and time in ("same", "cut by the clock")
            expected = SAME if is_stamped or policy not in ("replace", "newer") else STAMP
        made = outcome(lambda f=found, e=equal: settle(entry, f, choices, CLOCK, equal=e))
        assert made == expected, (time, same_mode, equal)


def test_empty_files_need_no_hash() -> None:
    """Two empty files are equal, whatever their times are."""
    entry = Entry("f", FILE, 0, 5, 0o644)
    assert weigh(entry, entry._replace(mtime_ns=4), Choices(), 1) == STAMP
    assert weigh(entry, entry, Choices(), 1) == SAME


def test_the_mode_that_counts_is_the_one_that_it_is_to_get() -> None:
    """With `--chmod`, and without the special bits."""
    entry = Entry("f", FILE, 1, 5, 0o4755)
    assert weigh(entry, entry._replace(mode=0o755), Choices(), 1) == SAME
    changed = Choices(modes=Modes.parse("600"))
    assert weigh(entry, entry._replace(mode=0o755), changed, 1) == STAMP
    assert weigh(entry, entry._replace(mode=0o600), changed, 1) == SAME
    assert changed.mode(entry._replace(kind=FOLDER)) == 0o700

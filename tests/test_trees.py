"""Folders, up and down: what arrives, what is kept, what is not sent again, what is refused before the first byte."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from faults import Proxy, noise
from forests import (
    DIRECTIONS,
    KIB,
    MIB,
    Link,
    Way,
    facts,
    grove,
    plant,
    python_library,
    results,
    same_trees,
    weather,
)

import ftransfer
from ftransfer import errors
from ftransfer.results import FileResult
from ftransfer.store.local import LocalStore

SOME_PACKAGES = ("asyncio", "email", "importlib", "json", "unittest", "xml", "encodings", "os.py", "typing.py")


@pytest.fixture(params=DIRECTIONS)
def way(request: pytest.FixtureRequest, server: ftransfer.Server, root: Path) -> Way:
    """A folder at one end and where it goes at the other; the server is real, and does not sync."""
    return Way(root.parent, request.param, server.urls[0])


def fails(way: Way, **choices: object) -> errors.PartialFailure:
    """Move a tree of which some files fail; return what was said of them."""
    with pytest.raises(errors.PartialFailure) as caught:
        way.go(**choices)
    return caught.value


def outcomes(exc: errors.FtransferError) -> dict[str, str]:
    """Return the code of each failure by the last part of its path."""
    return {file.path.rpartition("/")[2]: file.error.code for file in exc.results.failed if file.error}


# What arrives.


def there_and_back_again(way: Way) -> None:
    """Move a tree, compare it; move it again, which sends nothing and changes nothing."""
    with Proxy(way.url) as proxy:
        first = way.go(url=proxy.url)
        same_trees(way.source, way.dest)
        count = sum(fact.kind == stat.S_IFREG for fact in facts(way.source).values())
        links = sum(fact.kind == stat.S_IFLNK for fact in facts(way.source).values())
        assert results(first) == {"sent": count + links}
        bodies = way.bodies(proxy)
        assert bodies == first.sent_bytes == first.bytes
        again = way.go(url=proxy.url)
        assert results(again) == {"same": count + links}
        assert (again.sent_bytes, way.bodies(proxy)) == (0, bodies)
        same_trees(way.source, way.dest)
    way.leaves_nothing()


def test_a_part_of_the_python_library(way: Way) -> None:
    """Byte for byte, with modes, times and links; once more and nothing is sent."""
    python_library(way.source, SOME_PACKAGES)
    there_and_back_again(way)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_python_library(way: Way) -> None:
    """All of it: some thousand files."""
    python_library(way.source)
    there_and_back_again(way)


def test_a_tree_with_a_bit_of_everything(way: Way) -> None:
    """Links, empty folders, modes and times of all sorts, and a file that goes in blocks."""
    grove(way.source, large=5 * MIB)
    there_and_back_again(way)


@pytest.mark.parametrize("algorithm", ["xxh128", "sha256"])
def test_files_of_all_sizes_around_the_limits(way: Way, algorithm: str) -> None:
    """Of packs and of blocks; each is hashed as asked."""
    sizes = [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB]
    plant(way.source, {f"f{size}": size for size in sizes})
    seen: list[FileResult] = []
    way.go(algorithm=algorithm, on_file=seen.append)
    same_trees(way.source, way.dest)
    assert sorted(file.bytes for file in seen) == sizes
    assert {file.digest.algorithm for file in seen if file.digest} == {algorithm}
    assert all(file.digest and file.sent_bytes == file.bytes for file in seen)


NAMES = [
    "two\nlines",
    "\n",
    " leading and trailing ",
    "\t",
    "back\\slash",
    "'quo\"tes'",
    "-rf",
    "~",
    "*?[a-z]",
    "%41",
    "\x01\x1b[31m\x7f",
    "\u202egpj.exe",
    "é composed",
    "e\u0301 decomposed",
    "日本語",
    "🦊🏽‍♂️",
    "x" * 255,
    "ü" * 127,
    "con",
    "...",
    "#!",
    "a:b",
]


def test_names_of_all_sorts(way: Way) -> None:
    """Whatever the file system takes and is UTF-8 arrives as it is, as file, folder and target of a link."""
    seeds = {f"{name}/{name}": name.encode() for name in NAMES}
    plant(way.source, {**seeds, **{f"link {n}": Link(f"{name}/{name}") for n, name in enumerate(NAMES)}})
    there_and_back_again(way)


def test_forty_levels(way: Way) -> None:
    """Deep, with a file and an empty folder on each level, and names that make the paths long."""
    deep = ["/".join(f"{level:02} {'n' * 60}" for level in range(depth + 1)) for depth in range(40)]
    plant(way.source, {**{f"{path}/f": b"x" for path in deep}, **{f"{path}/e": None for path in deep}})
    there_and_back_again(way)


def test_long_paths_into_a_folder_that_holds_something(way: Way) -> None:
    """Names are asked about in questions that fit into a header."""
    folder = "/".join(["d" * 120] * 6)
    plant(way.source, {f"{folder}/f{number}": b"x" for number in range(300)})
    plant(way.dest, {"other": b""})
    assert results(way.go()) == {"sent": 300}
    assert results(way.go(compare="hash")) == {"same": 300}
    weather(way.source, seed=1)
    assert results(way.go()) == {"stamped": 300}
    assert results(way.go(dry_run=True)) == {"same": 300}
    with ftransfer.connect(way.url) as remote:
        found = remote.verify_folder(way.local / "tree", "tree")
    assert (found.same >= 300, found.different) == (True, 0)


def test_folders_that_are_too_deep_are_refused(way: Way) -> None:
    """Paths have at most 128 components: it is said before anything is sent."""
    plant(way.source, {"first": b"x", "/".join("d" * 130): b"too deep"})
    with pytest.raises(errors.BadPath) as caught:
        way.go()
    assert "128 components" in f"{caught.value} {caught.value.hint}"
    assert not way.dest.exists() or os.listdir(way.dest) == []


def test_names_that_cannot_be_used_are_all_named_at_once(way: Way) -> None:
    """They are no UTF-8; nothing is sent before that is said."""
    plant(way.source, {"a/good": b"x"})
    for number in range(3):
        (way.source / "a" / f"bad{number}").write_bytes(b"x")
        os.rename(os.fsencode(way.source / "a" / f"bad{number}"), os.fsencode(way.source) + b"/a/bad%d\xff" % number)
    with Proxy(way.url) as proxy:
        with pytest.raises(errors.BadPath) as caught:
            way.go(url=proxy.url)
        assert way.bodies(proxy) == 0
    for number in range(3):
        assert f"bad{number}" in str(caught.value)
    assert "3 names" in str(caught.value)
    assert caught.value.hint
    assert not way.dest.exists() or os.listdir(way.dest) == []


def test_ten_thousand_empty_files(way: Way) -> None:
    """Each a file of its own; few in a folder, many in another."""
    plant_many(way.source, 10_000)
    assert results(way.go()) == {"sent": 10_000}
    assert count_files(way.dest) == 10_000
    assert results(way.go()) == {"same": 10_000}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_one_folder_with_a_hundred_thousand_entries(way: Way) -> None:
    """They arrive, and are seen to be there."""
    way.source.mkdir()
    for number in range(100_000):
        (way.source / f"{number}").touch()
    assert results(way.go()) == {"sent": 100_000}
    assert sorted(os.listdir(way.dest)) == sorted(os.listdir(way.source))
    assert results(way.go()) == {"same": 100_000}


def plant_many(root: Path, count: int) -> None:
    """Make so many empty files, half of them in one folder."""
    for number in range(count):
        folder = root / (f"{number % 97}/{number % 7}" if number % 2 else "many")
        if number < 2 * 97 * 7:
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").touch()


def count_files(root: Path) -> int:
    """Return the number of files below a folder."""
    return sum(len(files) for _, _, files in os.walk(root))


def test_chains_of_folders_need_few_descriptors(way: Way) -> None:
    """Folders by the thousand that hold a file each, in a process that may open 256."""
    resource = pytest.importorskip("resource")
    plant(way.source, {f"c{number}/{'/'.join('abcdefghij')}/f": b"x" for number in range(150)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert results(way.go()) == {"sent": 150}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    same_trees(way.source, way.dest)


# Links, special files, holes.


LINKS: dict[str, bytes | Link | None] = {
    "a/file": b"content",
    "a/up": Link("../b"),
    "b/to file": Link("../a/file"),
    "b/inner/x": b"x",
    "to folder": Link("b/inner"),
}


def test_links_are_copied_as_they_are(way: Way) -> None:
    """With their own times; also those that lead nowhere yet."""
    plant(way.source, {**LINKS, "nowhere": Link("later")})
    there_and_back_again(way)
    assert os.readlink(way.dest / "nowhere") == "later"


def test_a_link_that_leads_elsewhere_now(way: Way) -> None:
    """It is made anew, also in place of a file; and a file in place of a link does not go through it."""
    plant(way.source, {"one": b"1", "two": b"2", "link": Link("one"), "was file": b"x", "was link": Link("two")})
    way.go()
    for name in ("link", "was file", "was link"):
        (way.source / name).unlink()
    plant(way.source, {"link": Link("./two"), "was file": Link("one"), "was link": b"now a file"}, seed=2)
    way.go()
    same_trees(way.source, way.dest)
    assert (way.dest / "two").read_bytes() == b"2"


def test_links_can_be_left_out(way: Way) -> None:
    """They are counted, and what they lead to is not touched."""
    plant(way.source, LINKS)
    result = way.go(links="skip")
    assert results(result) == {"sent": 2}
    assert sum(result.totals.notes.values()) == 3
    assert not [name for name, fact in facts(way.dest).items() if fact.kind == stat.S_IFLNK]


def test_links_can_be_followed(way: Way) -> None:
    """Files and folders arrive in their place, as often as links lead there."""
    plant(way.source, LINKS)
    way.go(links="follow")
    assert (way.dest / "b/to file").read_bytes() == b"content"
    assert (way.dest / "to folder/x").read_bytes() == b"x"
    assert (way.dest / "a/up/inner/x").read_bytes() == b"x"
    assert not [name for name, fact in facts(way.dest).items() if fact.kind == stat.S_IFLNK]
    assert set(results(way.go(links="follow"))) == {"same"}


def test_links_that_are_followed_in_a_circle(way: Way) -> None:
    """It ends: each circle is named, and everything else is there."""
    plant(way.source, {"a/b/file": b"x", "a/b/up": Link(".."), "self": Link("self"), "ok": b"ok"})
    failed = fails(way, links="follow")
    assert failed.exit_status == 6
    assert set(outcomes(failed)) >= {"self"}
    assert (way.dest / "a/b/file").read_bytes() == b"x"
    assert (way.dest / "ok").read_bytes() == b"ok"


def test_links_to_nowhere_that_are_followed_are_told(way: Way) -> None:
    """There is nothing to send, and it is not silently so."""
    plant(way.source, {"ok": b"ok", "dangling": Link("nowhere")})
    try:
        result = way.go(links="follow")
    except errors.PartialFailure as exc:
        result = exc.results
    assert result.failed or result.totals.notes
    assert (way.dest / "ok").read_bytes() == b"ok"


@pytest.mark.parametrize("links", ["copy", "follow"])
def test_links_out_of_the_tree(way: Way, links: str) -> None:
    """They are left out and it is said, however they spell it; what they lead to is not read."""
    (way.source.parent / "secret").write_bytes(b"secret")
    targets = ["../secret", "a/../../secret", str(way.source.parent / "secret"), "/etc/passwd"]
    plant(way.source, {"a/ok": b"x", **{f"l{n}": Link(target) for n, target in enumerate(targets)}})
    try:
        result = way.go(links=links)
    except errors.PartialFailure as exc:
        result = exc.results
    assert len(result.failed) + sum(result.totals.notes.values()) == len(targets)
    assert sorted(facts(way.dest)) == ["a", "a/ok"]


def test_special_files_are_left_out_and_counted(way: Way) -> None:
    """A FIFO and a socket; nobody waits for a writer."""
    plant(way.source, {"file": b"x"})
    os.mkfifo(way.source / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        before = Path.cwd()
        os.chdir(way.source)  # the name of a socket has to be short
        try:
            sock.bind("socket")
        finally:
            os.chdir(before)
        result = way.go()
    assert results(result) == {"sent": 1}
    assert result.totals.notes == {"special files left out": 2}
    assert sorted(os.listdir(way.dest)) == ["file"]


def test_holes_stay_holes(way: Way) -> None:
    """A sparse file takes no more room there than here."""
    way.source.mkdir()
    for name, size in (("small", 2 * MIB), ("large", 64 * MIB)):
        with (way.source / name).open("wb") as file:
            file.write(b"begin")
            file.seek(size - 3)
            file.write(b"end")
    if (way.source / "large").stat().st_blocks * 512 > MIB:
        pytest.skip("NOT TESTED: this file system keeps no holes")
    weather(way.source)
    way.go()
    same_trees(way.source, way.dest)
    for name in ("small", "large"):
        assert (way.dest / name).stat().st_blocks * 512 < MIB


def test_a_folder_that_was_downloaded_into_is_uploaded(server: ftransfer.Server, root: Path, tmp_path: Path) -> None:
    """What the store keeps there for itself does not travel, at any level."""
    grove(root / "tree", 10)
    with ftransfer.connect(server.urls[0]) as remote:
        remote.download("tree", tmp_path / "here")
        for place in (".ftransfer/receipts", "tree/.ftransfer", "tree/a/.ftransfer-1-2"):
            (tmp_path / "here" / place).mkdir(parents=True)
            (tmp_path / "here" / place / "x").write_bytes(b"mine")
        remote.upload(f"{tmp_path}/here/", "back")
    assert sorted(facts(root / "back/tree")) == sorted(facts(root / "tree"))
    assert not list((root / "back").rglob(".ftransfer*"))


# What is there already.


def test_another_time_alone_is_only_stamped(way: Way) -> None:
    """Equal bytes are not sent again: both ends hash them; the time and mode of the source are set."""
    grove(way.source, 20, large=5 * MIB)
    way.go()
    weather(way.source, seed=9)
    with Proxy(way.url) as proxy:
        result = way.go(url=proxy.url)
        assert way.bodies(proxy) == 0
    assert results(result).keys() <= {"stamped", "sent"}  # a link with another time is made anew
    assert (result.count("stamped"), result.sent_bytes) == (21, 0)
    same_trees(way.source, way.dest)


def test_another_mode_alone_is_only_stamped(way: Way) -> None:
    """For files and folders."""
    plant(way.source, {"a/file": 1000, "large": 5 * MIB, "other": b"x"})
    way.go()
    for path, mode in (("a", 0o711), ("a/file", 0o601), ("large", 0o750)):
        os.chmod(way.source / path, mode)
    with Proxy(way.url) as proxy:
        assert results(way.go(url=proxy.url)) == {"stamped": 2, "same": 1}
        assert way.bodies(proxy) == 0
    same_trees(way.source, way.dest)


def test_the_same_size_with_other_bytes_and_another_time_is_sent(way: Way) -> None:
    """The hashes tell; only that file goes."""
    plant(way.source, {"one": b"11111", "two": b"22222"})
    way.go()
    (way.source / "one").write_bytes(b"1x111")
    os.utime(way.source / "two", ns=(5, 5))
    assert results(way.go()) == {"sent": 1, "stamped": 1}
    same_trees(way.source, way.dest, own=False)


@pytest.mark.parametrize(("compare", "expected"), [("quick", "same"), ("hash", "sent"), ("none", "sent")])
def test_what_counts_as_equal(way: Way, compare: str, expected: str) -> None:
    """Same size and time and other bytes: quick believes it, hash finds it, none sends whatever it is."""
    plant(way.source, {"lie": b"source", "true": b"true"})
    way.go()
    (way.dest / "lie").write_bytes(b"target")
    os.utime(way.dest / "lie", ns=(0, (way.source / "lie").stat().st_mtime_ns))
    seen: list[FileResult] = []
    result = way.go(compare=compare, on_file=seen.append)
    by_name = {file.path.rpartition("/")[2]: file.result for file in seen}
    assert by_name == {"lie": expected, "true": "sent" if compare == "none" else "same"}
    assert result.sent_bytes == {"quick": 0, "hash": 6, "none": 10}[compare]
    assert (way.dest / "lie").read_bytes() == (b"target" if compare == "quick" else b"source")


TAKEN: dict[str, bytes | int] = {"older": b"older there", "newer": b"newer there", "large": 5 * MIB, "free": b"x"}


@pytest.mark.parametrize("if_exists", ["replace", "newer", "skip", "rename", "fail"])
def test_names_that_are_taken(way: Way, if_exists: str) -> None:
    """Each policy, for small and for large files; what is free is sent in any case."""
    plant(way.source, TAKEN)
    plant(way.dest, {"older": b"old", "newer": b"new", "large": b"large"})
    for name, time in (("older", 1), ("newer", 2 * 10**18), ("large", 1)):
        os.utime(way.dest / name, ns=(time, time))
    old = {name: fact.content for name, fact in facts(way.dest).items()}
    new = {name: fact.content for name, fact in facts(way.source).items()}
    if if_exists == "fail":
        failed = fails(way, if_exists=if_exists)
        assert outcomes(failed) == dict.fromkeys(old, "exists")
        result = failed.results
    else:
        result = way.go(if_exists=if_exists)
    expected = {
        "replace": ({"sent": 4}, new),
        "newer": ({"sent": 3, "skipped": 1}, {**new, "newer": b"new"}),
        "skip": ({"sent": 1, "skipped": 3}, {**new, **old}),
        "fail": ({"sent": 1, "failed": 3}, {**new, **old}),
        "rename": ({"sent": 4}, {**new, **old}),
    }[if_exists]
    there = {name: fact.content for name, fact in facts(way.dest).items()}
    assert results(result) == expected[0]
    assert {name: there[name] for name in new} == expected[1]
    if if_exists == "rename":
        extra = [content for name, content in there.items() if name not in new]
        assert sorted(extra) == sorted(new[name] for name in old)
    else:
        assert there.keys() == new.keys()


def test_files_where_folders_should_be_and_the_reverse(way: Way) -> None:
    """Neither replaces the other: these fail and are named, the rest arrives."""
    plant(way.source, {"dir/x": b"x", "empty": None, "file": b"file", "large": 5 * MIB, "ok": b"ok"})
    plant(way.dest, {"dir": b"a file", "empty": b"a file", "file/inner": b"x", "large/inner": b"x"})
    before = {name: fact.content for name, fact in facts(way.dest).items()}
    failed = fails(way)
    assert failed.exit_status == 6
    assert set(outcomes(failed)) >= {"x", "empty", "file", "large"}
    assert set(outcomes(failed).values()) == {"not-a-file"}
    after = {name: fact.content for name, fact in facts(way.dest).items()}
    assert after.pop("ok") == b"ok"
    assert after == before


def test_a_link_where_a_folder_should_be_leads_nowhere(way: Way, tmp_path: Path) -> None:
    """Nothing is written through it."""
    plant(way.source, {"a/x": b"x", "ok": b"ok"})
    outside = tmp_path / "outside"
    outside.mkdir()
    plant(way.dest, {"a": Link(str(outside))})
    assert set(outcomes(fails(way))) >= {"x"}
    assert os.listdir(outside) == []
    assert (way.dest / "ok").read_bytes() == b"ok"


def test_trees_are_merged(way: Way) -> None:
    """What only the other side has stays."""
    plant(way.dest, {"a/theirs": b"theirs", "a/both": b"old", "b": None})
    plant(way.source, {"a/mine": b"mine", "a/both": b"new!"})
    way.go()
    assert {n: f.content for n, f in facts(way.dest).items() if f.kind == stat.S_IFREG} == {
        "a/theirs": b"theirs",
        "a/both": b"new!",
        "a/mine": b"mine",
    }


# Trees that change under the transfer.


def once(act: Callable[[], object]) -> Callable[[ftransfer.Progress], None]:
    """Return an observer that does something once: when the tree is known and hardly anything of it has been read."""
    left = [act]

    def observe(event: ftransfer.Progress) -> None:
        if left and event.is_tree:
            left.pop()()

    return observe


def test_files_that_vanish_meanwhile(way: Way) -> None:
    """The others arrive; if that was all, the status says so."""
    plant(way.source, {f"f{number:02}": 300 * KIB for number in range(40)})
    gone = [way.source / f"f{number:02}" for number in range(30, 40, 2)]
    with pytest.raises(errors.SourcesVanished) as caught:
        way.go(on_progress=once(lambda: [path.unlink() for path in gone]))
    assert caught.value.exit_status == 24
    assert results(caught.value.results) == {"sent": 35, "vanished": 5}
    assert sorted(path.name for path in gone) == sorted(outcomes(caught.value))
    same_trees(way.source, way.dest, own=False)


def test_files_that_vanish_and_others_that_fail(way: Way) -> None:
    """Then some files failed."""
    plant(way.source, {f"f{number:02}": 300 * KIB for number in range(40)})
    plant(way.dest, {"f01/in the way": b"x"})
    failed = fails(way, on_progress=once((way.source / "f39").unlink))
    assert (failed.exit_status, failed.code) == (6, "partial")
    assert results(failed.results) == {"sent": 38, "failed": 1, "vanished": 1}


def test_folders_that_are_renamed_meanwhile(way: Way) -> None:
    """What was below them has vanished; nothing is sent from elsewhere, nothing else fails."""
    plant(way.source, {f"{folder}/f{number}": 300 * KIB for folder in "ab" for number in range(20)})
    before = facts(way.source)
    with pytest.raises(errors.SourcesVanished):
        way.go(on_progress=once(lambda: (way.source / "b").rename(way.source / "c")))
    there = facts(way.dest)
    assert {name for name in there if name.startswith("a/")} == {name for name in before if name.startswith("a/")}
    assert not any(name.startswith("c") for name in there)
    assert all(fact.content == before[name].content for name, fact in there.items())


def test_a_file_that_is_replaced_by_a_link_meanwhile(way: Way) -> None:
    """It is not read through the link, and it is said."""
    plant(way.source, {f"f{number:02}": 300 * KIB for number in range(40)})
    (way.source.parent / "secret").write_bytes(b"secret")

    def swap() -> None:
        (way.source / "f39").unlink()
        (way.source / "f39").symlink_to("../secret")

    try:
        result = way.go(on_progress=once(swap))
    except errors.PartialFailure as exc:
        result = exc.results
    assert len(result.failed) + sum(result.totals.notes.values()) == 1
    assert not os.path.lexists(way.dest / "f39")


def test_files_that_are_written_to_meanwhile(way: Way) -> None:
    """One grows all the time: it arrives as it was at some moment, or fails; the others arrive."""
    plant(way.source, {**{f"f{number:02}": 300 * KIB for number in range(20)}, "log": b"", "z/big log": b""})
    logs = [way.source / "log", way.source / "z/big log"]
    logs[1].write_bytes(noise(5 * MIB))
    stop = threading.Event()

    def write() -> None:
        with logs[0].open("ab", buffering=0) as one, logs[1].open("ab", buffering=0) as other:
            while not stop.wait(0):
                one.write(b"line\n")
                other.write(b"line\n")

    writer = threading.Thread(target=write)
    writer.start()
    failed: dict[str, str] = {}
    try:
        way.go()
    except errors.PartialFailure as exc:
        failed = outcomes(exc)
    finally:
        stop.set()
        writer.join()
    assert set(failed.items()) <= {("log", "changed"), ("big log", "changed")}
    for log in logs:
        there = way.dest / log.relative_to(way.source)
        if log.name not in failed:
            assert log.read_bytes().startswith(there.read_bytes())
        else:
            assert not there.exists()
    for name in (f"f{number:02}" for number in range(20)):
        assert (way.dest / name).read_bytes() == (way.source / name).read_bytes()
    shutil.rmtree(way.dest)
    way.go()
    same_trees(way.source, way.dest)


def test_folders_have_their_times_when_the_window_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are set after all that goes into them, however often the sender had to wait for room."""
    monkeypatch.setattr("ftransfer.packstream.MOST_ROWS", 20)
    source, served = tmp_path / "tree", tmp_path / "served"
    served.mkdir()
    plant(source, {f"d{n // 20:02}/f{n:03}": 200 * KIB for n in range(200)})
    for folder in (*source.iterdir(), source):
        os.utime(folder, ns=(10**18, 10**18))
    with ftransfer.Server(served) as server, ftransfer.connect(server.urls[0]) as remote:
        assert remote.upload(str(source)).count("sent") == 200
    made = [*(served / "tree").iterdir(), served / "tree"]
    assert [folder.name for folder in made if folder.stat().st_mtime_ns != 10**18] == []


def test_a_folder_that_is_moved_while_it_is_listed(tmp_path: Path) -> None:
    """What is beside it is listed all the same."""
    plant(tmp_path, {"a/b/c/x": b"x", "a/b/y": b"x", "a/z": b"x", "q": b"x"})
    told: list[str] = []
    with closing(LocalStore(tmp_path)) as store:
        listed = []
        for entry in store.entries("", recursive=True, on_error=lambda path, _: told.append(path)):
            listed.append(entry.path)
            if entry.path == "a/b/c/x":
                (tmp_path / "a/b").rename(tmp_path / "moved")
    assert {"a/z", "q"} <= {*listed}
    assert told == []

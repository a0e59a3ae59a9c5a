"""Folders on the command line: where they land, what is said, what is left out or deleted, and with which status."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command import Ran, Terminal, frames, run, serving
from faults import Proxy, reserved
from forests import DIRECTIONS, KIB, MIB, Link, facts, grove, plant, same_trees, weather
from support import snapshot

import ftransfer

DAY = 86_400 * 10**9


class Ends(NamedTuple):
    """A served folder, its address, and a local folder; and which of them a transfer takes from."""

    root: Path
    local: Path
    url: str
    direction: str

    @property
    def source(self) -> Path:
        """The folder at whose end things come from."""
        return self.local if self.direction == "up" else self.root

    @property
    def dest(self) -> Path:
        """The folder at whose end things arrive."""
        return self.root if self.direction == "up" else self.local

    def words(self, *sources: str, to: str = "") -> list[str]:
        """Return the words of a command that moves these sources to a folder at the other end, or compares them."""
        if self.direction == "up":
            return [*(f"{self.local}/{source}" for source in sources), self.url + to]
        return [*(self.url + source for source in sources), f"{self.local}/{to}"]

    def move(self, *words: object, to: str = "", sources: tuple[str, ...] = ("tree/",)) -> Ran:
        """Run the command with these options."""
        return run("upload" if self.direction == "up" else "download", *words, *self.words(*sources, to=to))

    def verify(self, *words: object, to: str = "", sources: tuple[str, ...] = ("tree/",)) -> Ran:
        """Compare what `move` moves."""
        return run("verify", *words, *self.words(*sources, to=to))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that is served, and its address; in this process, where nobody has to read the log."""
    root = tmp_path_factory.mktemp("served")
    with ftransfer.Server(root, durable=False) as running:
        yield root, running.urls[0]


@pytest.fixture(params=DIRECTIONS)
def ends(request: pytest.FixtureRequest, server: tuple[Path, str], tmp_path: Path) -> Iterator[Ends]:
    """Both ends, empty."""
    root, url = server
    where = root / tmp_path.name
    where.mkdir()
    (tmp_path / "local").mkdir()
    yield Ends(where, tmp_path / "local", f"{url}{tmp_path.name}/", request.param)
    shutil.rmtree(where)


def names(root: Path) -> list[str]:
    """Return the paths of all that is below a folder, the store's own left out."""
    return sorted(facts(root))


def events(text: str, kind: str = "file") -> list[dict[str, Any]]:
    """Return the JSON events of a kind."""
    made = [json.loads(line) for line in text.splitlines()]
    assert all(event["v"] == 1 for event in made)
    return [event for event in made if event["event"] == kind]


# Where things land.


LANDINGS = [
    (("tree",), "", ["f", "tree", "tree/a", "tree/a/x", "tree/e"]),
    (("tree/",), "", ["a", "a/x", "e", "f"]),
    (("tree",), "to", ["f", "to", "to/tree", "to/tree/a", "to/tree/a/x", "to/tree/e"]),
    (("tree",), "to/", ["f", "to", "to/tree", "to/tree/a", "to/tree/a/x", "to/tree/e"]),
    (("tree/",), "to", ["f", "to", "to/a", "to/a/x", "to/e"]),
    (("tree/",), "to/new/", ["f", "to", "to/new", "to/new/a", "to/new/a/x", "to/new/e"]),
    (("tree/a",), "to", ["f", "to", "to/a", "to/a/x"]),
    (("tree/.",), "to", ["f", "to", "to/a", "to/a/x", "to/e"]),
    (("tree/e",), "to", ["f", "to", "to/e"]),
    (("tree", "tree/a/", "file"), "to", ["f", "to", "to/file", "to/tree", "to/tree/a", "to/tree/a/x", "to/tree/e"]),
]


@pytest.mark.parametrize(("sources", "to", "expected"), LANDINGS)
def test_where_folders_land(ends: Ends, sources: tuple[str, ...], to: str, expected: list[str]) -> None:
    """As with rsync: a slash after the source takes what is in it; one after the target changes nothing."""
    if "tree/." in sources and ends.direction == "down":
        pytest.skip("an address has no dots")
    plant(ends.source, {"tree/a/x": b"x", "tree/e": None, "file": b"file"})
    plant(ends.dest, {"f": b"other"})
    if "tree/a/" in sources:
        expected = sorted([*expected, "to/x"])
    if sources == ("tree/",) and not to:
        expected = ["a", "a/x", "e", "f"]
    done = ends.move(to=to, sources=sources)
    assert done.status == 0, done.err
    assert names(ends.dest) == expected
    assert done.err.startswith("to ")
    assert run("verify", *ends.words(*sources, to=to)).status == 0
    again = ends.move(to=to, sources=sources)
    assert again.status == 0
    assert " in " not in again.err
    assert names(ends.dest) == expected


def test_a_download_without_destination_lands_here(server: tuple[Path, str], tmp_path: Path) -> None:
    """In the working folder, under its own name; what is in the served folder, too."""
    root, url = server
    plant(root / tmp_path.name, {"tree/x": b"x"})
    assert run("download", f"{url}{tmp_path.name}/tree", cwd=tmp_path).status == 0
    assert (tmp_path / "tree/x").read_bytes() == b"x"
    assert run("verify", f"{url}{tmp_path.name}/tree", cwd=tmp_path).status == 0
    with serving(root / tmp_path.name) as (small, _):
        assert run("download", small, cwd=tmp_path / "tree").status == 0
    assert (tmp_path / "tree/tree/x").read_bytes() == b"x"
    shutil.rmtree(root / tmp_path.name)


def test_sources_that_would_collide_are_refused(ends: Ends) -> None:
    """Nothing is sent; what collides is named."""
    plant(ends.source, {"a/same/x": b"x", "b/same/y": b"y", "c/same": b"a file"})
    for sources in (("a/same", "b/same"), ("a/same", "c/same")):
        done = ends.move(sources=sources, to="to")
        assert done.status == 2
        assert "same" in done.err
        assert names(ends.dest) == []


def test_sources_that_are_not_there(ends: Ends) -> None:
    """Alone it is not found; among others it fails alone or stops all before the first byte, and is named."""
    plant(ends.source, {"tree/x": b"x"})
    assert ends.move(sources=("gone",)).status == 3
    assert ends.move(sources=("gone/",)).status == 3
    done = ends.move(sources=("tree", "gone"), to="to")
    assert done.status in (3, 6)
    assert "gone" in done.err


# What is said.


def test_what_people_read(ends: Ends) -> None:
    """The target first, then one line to believe; a line for each file with -v; nothing with -q."""
    grove(ends.source / "tree", 20)
    done = ends.move(to="to", sources=("tree",))
    first, last = done.err.splitlines()
    assert first.startswith("to ")
    assert first.endswith("/to/tree")
    assert re.fullmatch(
        r"21 files, [\d.]+ KiB in [\d.]+ m?s \([\d.]+ [KM]iB/s\), verified, (durable|not synced.*)", last
    )
    assert done.out == ""
    again = ends.move(to="to", sources=("tree",))
    assert re.fullmatch(r"21 files already there", again.err.splitlines()[-1])
    quiet = ends.move("-q", to="quiet", sources=("tree",))
    assert quiet == (0, "", "")
    loud = ends.move("-v", to="loud", sources=("tree",))
    assert sum(line.startswith("sent ") for line in loud.err.splitlines()) == 21
    assert "\r" not in loud.err + done.err


def test_what_scripts_read(ends: Ends) -> None:
    """An event for each file, with all that a single file's has; then a summary that counts them."""
    plant(ends.source / "tree", {"a/x": b"12345", "b": b"", "large": 5 * MIB, "l": Link("b")})
    plant(ends.dest / "to", {"b/in the way": b""})
    done = ends.move("--json", to="to")
    assert done.status == 6
    files = {event["path"].rpartition("/")[2]: event for event in events(done.out)}
    assert {name: event["result"] for name, event in files.items()} == {
        "x": "sent",
        "b": "failed",
        "large": "sent",
        "l": "sent",
    }
    assert {"bytes", "sent_bytes", "resumed_from", "seconds", "digest", "durable", "error"} <= files["x"].keys()
    assert (files["x"]["bytes"], files["x"]["sent_bytes"]) == (5, 5)
    assert files["x"]["digest"].startswith("xxh128:")
    assert files["large"]["digest"].startswith("xxh128:")
    assert files["b"]["error"].keys() == {"code", "path", "message", "hint", "retryable"}
    assert files["b"]["error"]["code"] == "not-a-file"
    assert files["x"]["path"].endswith("to/a/x")
    last = json.loads(done.out.splitlines()[-1])
    assert last["event"] == "summary"
    assert {word: last[word] for word in ("files", "sent", "failed", "same", "bytes")} == {
        "files": 4,
        "sent": 3,
        "failed": 1,
        "same": 0,
        "bytes": 5 * MIB + 5,
    }


def test_names_cannot_move_the_cursor(ends: Ends) -> None:
    """Whatever a name holds, people see it escaped, on one line; scripts get it as it is."""
    name = "red\x1b[31m\nnext \u202e"
    plant(ends.source / "tree", {name: b"x", "b/x": b"x"})
    plant(ends.dest, {"b": b"in the way"})
    done = ends.move("-v")
    assert done.status == 6
    assert "\x1b" not in done.err
    assert "\u202e" not in done.err
    assert any(line.startswith("sent ") and "red" in line and "next" in line for line in done.err.splitlines())
    assert any(event["path"].endswith(name) for event in events(ends.move("--json").out))


# What would be done.


def test_a_dry_run_changes_nothing_and_says_what_would(ends: Ends) -> None:
    """Each file by what would become of it, links and deletions too; then exactly that is done."""
    plant(ends.source / "tree", {"new": b"new", "same": b"same", "other": b"other", "a/deep": b"x", "l": Link("new")})
    plant(ends.source / "tree", {"out": Link("../../x"), "e": None})
    assert ends.move("--exclude", "new", "--exclude", "/a", "--exclude", "l").status == 0
    (ends.source / "tree/other").write_bytes(b"changed")
    plant(ends.dest, {"extra": b"extra", "gone/too": b"x"})
    before = snapshot(ends.root.parent, times=True), snapshot(ends.local, times=True)
    done = ends.move("--dry-run", "--delete")
    assert done.status == 0, done.err
    assert (snapshot(ends.root.parent, times=True), snapshot(ends.local, times=True)) == before
    said = {line.rpartition("/")[2]: line.partition(":")[0] for line in done.out.splitlines()}
    assert {name: word for name, word in said.items() if word != "same"} == {
        "new": "would send",
        "deep": "would send",
        "l": "would send",
        "other": "would replace",
        "extra": "would delete",
        "gone": "would delete",
        "too": "would delete",
    }
    words = [event["result"] for event in events(ends.move("-n", "--json", "--delete").out)]
    assert sorted(word for word in words if word != "same") == sorted(
        ["would send"] * 3 + ["would replace"] + ["would delete"] * 3
    )
    real = events(ends.move("--json", "--delete").out)
    by_result = {word: sum(event["result"] == word for event in real) for word in ("sent", "deleted")}
    assert by_result == {"sent": 4, "deleted": 3}


def test_a_dry_run_into_nothing(ends: Ends) -> None:
    """Everything would be sent, and no folder is made for it."""
    grove(ends.source / "tree", 10)
    done = ends.move("-n", "--delete", to="new/er")
    assert done.status == 0, done.err
    assert done.out.count("would send") == 11
    assert names(ends.dest) == []
    assert os.listdir(ends.dest) == []


# What is deleted.


def test_delete_makes_an_exact_copy(ends: Ends) -> None:
    """What the source lacks goes, folders with all that is in them; nothing beside the target is touched."""
    grove(ends.source / "tree", 30)
    plant(ends.dest, {"to/extra/deep/er/x": b"x", "to/a/b/extra": b"x", "to/l": Link("../beside"), "beside": b"x"})
    plant(ends.dest, {"to/many/" + str(n): b"" for n in range(600)})
    done = ends.move("--delete", to="to")
    assert done.status == 0, done.err
    assert names(ends.dest / "to") == names(ends.source / "tree")
    same_trees(ends.source / "tree", ends.dest / "to", own=False)
    assert (ends.dest / "beside").read_bytes() == b"x"
    assert "607 deleted" in done.err
    assert ends.verify(to="to").status == 0


def test_delete_keeps_what_the_filters_exclude(ends: Ends) -> None:
    """At the target, too, and the folders around it; what was left out for its size or time is not missing."""
    plant(ends.source / "tree", {"a": b"a", "big": 100 * KIB})
    plant(
        ends.dest / "to", {"keep.o": b"x", "dir/keep.o": b"x", "dir/go": b"x", "go": b"x", "big": b"old", "own/x": b""}
    )
    done = ends.move("--delete", "--exclude", "*.o", "--exclude", "/own/", "--max-size", "50K", to="to")
    assert done.status == 0, done.err
    assert names(ends.dest / "to") == ["a", "big", "dir", "dir/keep.o", "keep.o", "own", "own/x"]
    assert (ends.dest / "to/big").read_bytes() == b"old"


def test_nothing_is_deleted_if_something_failed(ends: Ends) -> None:
    """And it is said."""
    plant(ends.source / "tree", {"a/x": b"x", "b": b"b"})
    plant(ends.dest / "to", {"a": b"in the way", "extra": b"x"})
    done = ends.move("--delete", to="to")
    assert done.status == 6
    assert "nothing was deleted" in done.err
    assert names(ends.dest / "to") == ["a", "b", "extra"]


def test_delete_does_not_follow_links(ends: Ends) -> None:
    """A link at the target to a folder elsewhere goes; what it leads to stays."""
    plant(ends.source / "tree", {"a": b"a"})
    plant(
        ends.dest,
        {"elsewhere/x": b"x", "to/link": Link("../elsewhere"), "to/d/abs": Link(str(ends.dest / "elsewhere"))},
    )
    assert ends.move("--delete", to="to").status == 0
    assert names(ends.dest) == ["elsewhere", "elsewhere/x", "to", "to/a"]


# What is left out.


def test_filters(ends: Ends) -> None:
    """Patterns as in .gitignore, in the order given, from files too; sizes and times."""
    seeds = {
        "a.c": b"x",
        "a.o": b"x",
        "sub/b.o": b"x",
        "sub/keep.o": b"x",
        "build/x": b"x",
        "sub/build/y": b"x",
        "n": None,
    }
    plant(ends.source / "tree", {**seeds, "big": 20 * KIB})
    done = ends.move("--exclude", "*.o", "--include", "keep.o", "--exclude", "/build/", to="one")
    assert done.status == 0, done.err
    assert names(ends.dest / "one") == ["a.c", "big", "n", "sub", "sub/build", "sub/build/y", "sub/keep.o"]
    (ends.local / "rules").write_text("# a comment\n*.o\n!keep.o\nbuild/\n", encoding="utf-8")
    assert ends.move("--exclude-from", ends.local / "rules", "--max-size", "10K", to="two").status == 0
    assert names(ends.dest / "two") == ["a.c", "n", "sub", "sub/keep.o"]
    old = time.time_ns() - 5 * DAY
    for path in (ends.source / "tree").rglob("*"):
        os.utime(path, ns=(old, old))
    (ends.source / "tree/a.c").touch()
    assert ends.move("--newer", "2d", to="three").status == 0
    assert [name for name in names(ends.dest / "three") if (ends.dest / "three" / name).is_file()] == ["a.c"]
    assert ends.verify("--newer", "2d", to="three").status == 0
    assert ends.verify(to="three").status == 1


def test_modes_of_ones_own(ends: Ends) -> None:
    """--chmod changes files and folders on the way; what is there is only given its mode."""
    plant(ends.source / "tree", {"a/x": b"x", "large": 5 * MIB})
    for path, mode in (("a", 0o700), ("a/x", 0o600), ("large", 0o600)):
        (ends.source / "tree" / path).chmod(mode)
    assert ends.move("--chmod", "D755,F644").status == 0
    modes = lambda: {name: oct(fact.mode) for name, fact in facts(ends.dest).items() if name != "tree"}  # noqa: E731
    assert modes() == {"a": "0o755", "a/x": "0o644", "large": "0o644"}
    done = ends.move("--chmod", "640", "--json")
    assert {event["result"] for event in events(done.out)} == {"stamped"}
    assert modes() == {"a": "0o750", "a/x": "0o640", "large": "0o640"}
    assert ends.move("--chmod", "4755").status == 2


# Comparing.


def test_verify_says_what_is_different(ends: Ends) -> None:
    """Same, different, only here, only there, by name, with status 1; the same arguments as the transfer."""
    plant(
        ends.source / "tree",
        {"same": b"same", "bytes": b"12345", "size": b"1", "new": b"x", "d/e": None, "l": Link("new")},
    )
    plant(ends.source / "tree", {"kind": b"a file", "large": 5 * MIB})
    ends.move(to="to")
    assert ends.verify(to="to").status == 0
    (ends.dest / "to/bytes").write_bytes(b"54321")
    (ends.dest / "to/size").write_bytes(b"11")
    (ends.dest / "to/new").unlink()
    (ends.dest / "to/kind").unlink()
    (ends.dest / "to/l").unlink()
    plant(ends.dest / "to", {"kind/x": b"x", "l": Link("same"), "extra": b"x"})
    done = ends.verify(to="to")
    assert done.status == 1, done.err
    said = {line.split("  ")[0].rstrip("/") for line in done.out.splitlines()}
    here, there = ("here", "there") if ends.direction == "up" else ("there", "here")
    assert said == {
        "different: bytes",
        "different: size",
        "different: l",
        "different: kind",
        f"only {here}: new",
        f"only {there}: kind/x",
        f"only {there}: extra",
    }
    assert re.search("same, 4 different, . only here, . only there", done.err)
    assert ends.verify("-q", to="to") == (1, "", "")
    made = {
        event["path"].rpartition("/")[2]: event["result"]
        for event in events(ends.verify("--json", to="to").out, "verify")
    }
    assert (made["bytes"], made["large"], made["extra"]) == ("different", "same", f"only {there}")
    summary = events(ends.verify("--json", to="to").out, "summary")[0]
    assert (summary["different"], summary["same"]) == (5, 2)
    everything = ends.verify("-v", "--algorithm", "sha256", to="to").out
    assert "same: same" in everything


def test_what_only_the_target_has_is_told(ends: Ends) -> None:
    """It is no difference, because merging is normal; with --delete, which would have removed it, it is one."""
    plant(ends.source / "tree", {"a": b"x"})
    plant(ends.dest / "to", {"theirs": b"x"})
    ends.move(to="to")
    done = ends.verify(to="to")
    assert done.status == 0
    assert "theirs" in done.out
    assert ends.verify("--delete", to="to").status == 1
    assert ends.verify("--delete", "--exclude", "theirs", to="to").status == 0
    ends.move("--delete", to="to")
    assert ends.verify("--delete", to="to").status == 0


def test_verify_takes_the_words_of_the_transfer(ends: Ends) -> None:
    """Press up-arrow, change the verb: every option is understood."""
    plant(ends.source / "tree", {"a/x": b"x"})
    words = ["--compare", "hash", "--if-exists", "newer", "--no-resume", "--chmod", "644", "--limit-rate", "100M"]
    words += ["--exclude", "*.o", "--max-size", "1M", "--newer", "1000d", "--links", "skip", "--delete", "-r"]
    (ends.source / "tree/a/x").touch()
    assert ends.move(*words, to="to").status == 0
    done = ends.verify(*words, to="to")
    assert done.status == 0, done.err


def test_verify_of_what_is_not_there(ends: Ends) -> None:
    """Everything is only here or there; what is missing at both ends is not found."""
    plant(ends.source / "tree", {"a/x": b"x"})
    done = ends.verify(to="nowhere")
    assert done.status in (1, 3)
    assert ends.verify(sources=("gone",), to="nowhere").status in (1, 3)


# On a terminal.


def test_the_bar_of_a_tree_moves(server: tuple[Path, str], tmp_path: Path) -> None:
    """One bar for the whole: it shows files and bytes, grows, and is gone at the end."""
    root, url = server
    plant(tmp_path / "tree", {f"a/f{n:03}": 100 * KIB for n in range(150)})
    terminal = Terminal("upload", "--limit-rate", "10M", tmp_path / "tree", f"{url}{tmp_path.name}/")
    assert terminal.finish() == 0
    shown = [frame for frame in frames(terminal.text) if "%" in frame]
    assert len(shown) > 3
    percent = [int(found[1]) for frame in shown if (found := re.search(r"(\d+)%", frame))]
    assert percent == sorted(percent)
    assert percent[-1] > percent[0]
    assert any("iB" in frame for frame in shown)
    assert any(re.search(r"\d+(/\d+)? files", frame) for frame in shown), shown[-1]
    assert "150 files" in frames(terminal.text)[-1]
    shutil.rmtree(root / tmp_path.name)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ctrl_c_in_the_middle(server: tuple[Path, str], tmp_path: Path, direction: str) -> None:
    """One line says how to go on; the same command does, and sends what is missing."""
    root, url = server
    where = root / tmp_path.name
    source, dest = (tmp_path, where) if direction == "up" else (where, tmp_path)
    plant(source / "tree", {**{f"a/f{n:03}": 100 * KIB for n in range(60)}, "b/large": 12 * MIB})
    dest.mkdir(exist_ok=True)
    words = (
        [tmp_path / "tree", f"{url}{tmp_path.name}/"] if direction == "up" else [f"{url}{tmp_path.name}/tree", tmp_path]
    )
    verb = "upload" if direction == "up" else "download"
    terminal = Terminal(verb, "--limit-rate", "12M", *words)
    terminal.read_until(lambda text: re.search(r" [3-8]\d%", text))
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == -signal.SIGINT
    assert frames(terminal.text)[-1].strip() == "interrupted: run the same command again, it goes on where it stopped"
    assert "Traceback" not in terminal.text
    there = {name: fact.content for name, fact in facts(dest / "tree").items() if fact.content is not None}
    assert there.items() <= {name: fact.content for name, fact in facts(source / "tree").items()}.items()
    with Proxy(url) as proxy:
        words = [str(word).replace(url, proxy.url) for word in words]
        done = run(verb, *words)
        assert done.status == 0, done.err
        assert (proxy.up_bodies if direction == "up" else proxy.down_bodies) < 16 * MIB
    same_trees(source / "tree", dest / "tree")
    assert reserved(root) == []
    assert reserved(tmp_path) == []
    shutil.rmtree(where)


def test_a_pipe_gets_no_bar(ends: Ends) -> None:
    """Neither colours nor carriage returns, however long it takes."""
    plant(ends.source / "tree", {f"f{n}": 300 * KIB for n in range(10)})
    weather(ends.source / "tree")
    done = ends.move("--limit-rate", "4M")
    assert done.status == 0
    assert "\r" not in done.err + done.out
    assert len(done.err.splitlines()) == 2


def test_what_would_undo_itself_is_refused(ends: Ends) -> None:
    """Nothing is moved, and nothing deleted."""
    plant(ends.source / "tree", {"a": b"new"})
    plant(ends.dest / "to", {"a": b"old", "b": b"x"})
    before = snapshot(ends.dest)
    done = ends.move("--delete", "--if-exists", "rename", to="to")
    assert (done.status, "choose one of the two" in done.err) == (2, True)
    assert snapshot(ends.dest) == before


def test_a_link_is_not_renamed(ends: Ends) -> None:
    """It fails, by itself, and the run ends."""
    plant(ends.source / "tree", {"l": Link("bb"), "f": b"newer"})
    plant(ends.dest / "to", {"l": Link("a"), "f": b"old"})
    done = ends.move("--if-exists", "rename", to="to")
    assert done.status == 6
    assert (ends.dest / "to/l").readlink() == Path("a")
    assert {(ends.dest / "to" / name).read_bytes() for name in ("f", "f (1)")} == {b"old", b"newer"}


def test_delete_needs_a_folder(ends: Ends) -> None:
    """For files alone it means nothing."""
    plant(ends.source, {"f": b"x"})
    done = ends.move("--delete", to="to/", sources=("f",))
    assert (done.status, "needs a folder" in done.err) == (2, True)

"""Trees on a disk: staged, synced, published by groups; links, rights, descriptors; what a killed writer leaves."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faults import PATIENCE, RESERVED, noise, reserved
from support import descriptors_come_back, needs_no_root, snapshot, wait_until
from test_store_trees import POLICIES, TIME, File, add_all

from ftransfer import errors, wire
from ftransfer.digests import block_hash
from ftransfer.store import cache, local_trees, sync
from ftransfer.store.cache import MOST_OPEN, FolderCache
from ftransfer.store.local import LocalStore
from ftransfer.store.trees import Tree
from ftransfer.unpacking import Unpacker


@pytest.fixture
def store(root: Path) -> Iterator[LocalStore]:
    """A durable store of an empty folder."""
    with closing(LocalStore(root)) as made:
        yield made


@pytest.fixture
def tree(store: LocalStore) -> Iterator[Tree]:
    """A tree below its folder `in`, which is there."""
    (Path(store.root) / "in").mkdir()
    with closing(store.tree("in")) as made:
        yield made


def add(tree: Tree, path: str, data: bytes = b"x", mode: int = 0o644) -> None:
    """Stage a file."""
    tree.add(path, memoryview(data), TIME, mode)


def journals(root: Path) -> list[Path]:
    """Return the journals of trees."""
    return sorted((root / RESERVED).glob("*.tree"))


def visible(root: Path) -> list[str]:
    """Return every name below a folder that is not reserved."""
    found = (path.relative_to(root).as_posix() for path in root.rglob("*"))
    return sorted(name for name in found if f"/{RESERVED}" not in f"/{name}")


# Staging.


def test_nothing_has_its_name_before_the_commit(root: Path, store: LocalStore, tree: Tree) -> None:
    """Staged files have reserved names in the folder of their target, which nobody sees; a journal says where."""
    for path in ("a", "d/e/b", "d/c"):
        add(tree, path)
    assert visible(root) == ["in", "in/d", "in/d/e"]
    assert [entry.path for entry in store.entries("", recursive=True)] == ["in", "in/d", "in/d/e"]
    staged = [path for path in root.rglob(f"{RESERVED}-*") if path.is_file()]
    assert sorted(path.parent.relative_to(root).as_posix() for path in staged) == ["in", "in/d", "in/d/e"]
    (journal,) = journals(root)
    records = [json.loads(line) for line in journal.read_text().splitlines() if line]
    assert records == [["in", ""], ["in", "d/e"], ["in", "d"]]
    assert stat.S_IMODE((root / RESERVED).stat().st_mode) == 0o700
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    assert tree.commit() == ({}, {})
    assert visible(root) == ["in", "in/a", "in/d", "in/d/c", "in/d/e", "in/d/e/b"]
    assert [path for path in root.rglob(f"{RESERVED}-*") if path.is_file()] == []
    assert journal.read_bytes() == b""
    tree.close()
    assert reserved(root) == []
    assert not (root / RESERVED).exists()


def test_what_was_not_committed_is_dropped(root: Path, store: LocalStore) -> None:
    """Closing leaves the old files and nothing else."""
    (root / "in").mkdir()
    (root / "in" / "a").write_bytes(b"old")
    before = snapshot(root, times=True)
    with descriptors_come_back(), closing(store.tree("in")) as tree:
        add(tree, "a", b"new")
        add(tree, "b", b"new")
    assert snapshot(root, times=True) == before


@pytest.mark.parametrize(("limit", "value"), [("GROUP_FILES", 3), ("GROUP_BYTES", 30)])
def test_a_group_is_full(tree: Tree, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """By files or by bytes; a commit makes room."""
    monkeypatch.setattr(local_trees, limit, value)
    for number in range(3):
        assert not tree.is_full
        add(tree, f"{number}", b"x" * 10)
    assert tree.is_full
    assert tree.commit() == ({}, {})
    assert not tree.is_full


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
@pytest.mark.parametrize("mode", [0o777, 0o644, 0o600, 0o444, 0o7755, 0o200])
def test_modes_do_not_depend_on_the_umask(root: Path, umask: int, mode: int) -> None:
    """A file gets the nine bits that it had; none of the special ones; also one that its owner may not write."""
    before = os.umask(umask)
    try:
        with closing(LocalStore(root, durable=False)) as store, closing(store.tree("")) as tree:
            assert add_all(tree, File("f", b"x", mode=mode), File("f", b"y", mode=mode)) == {}
            assert stat.S_IMODE((root / "f").stat().st_mode) == mode & 0o777
    finally:
        os.umask(before)


def test_folders_get_their_time_and_mode(root: Path, tree: Tree) -> None:
    """And keep the group bit that they inherited."""
    add(tree, "d/f")
    tree.commit()
    (root / "in" / "d").chmod(0o2755)
    inherits = bool((root / "in" / "d").stat().st_mode & 0o2000)
    assert tree.commit([("d", TIME, 0o7700), ("", TIME + 1, 0o750)]) == ({}, {})
    found = (root / "in" / "d").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o700 | (0o2000 if inherits else 0), TIME)
    assert ((root / "in").stat().st_mode & 0o777, (root / "in").stat().st_mtime_ns) == (0o750, TIME + 1)


def test_special_files_are_not_replaced(root: Path, store: LocalStore) -> None:
    """Whatever the policy, and also by links; the rest of the group goes on."""
    (root / "in").mkdir()
    os.mkfifo(root / "in" / "fifo")
    for policy in POLICIES:
        with closing(store.tree("in", policy)) as tree:
            failed = add_all(tree, File("fifo", b"x", mtime_ns=1 << 62), File(policy, b"y"))
            assert failed.keys() == {0}
            with pytest.raises((errors.NotAFile, errors.AlreadyExists)):
                tree.link("fifo", "x", TIME)
    assert stat.S_ISFIFO((root / "in" / "fifo").stat().st_mode)
    assert visible(root) == ["in", *sorted(f"in/{name}" for name in ("fifo", *POLICIES))]
    assert reserved(root) == []


# Links.


def test_links_are_made_as_they_are(root: Path, tree: Tree) -> None:
    """With their time, at once, whatever they lead to; the same one again changes only its time."""
    tree.link("d/l", "../nowhere", TIME)
    made = (root / "in" / "d" / "l").lstat()
    assert (os.readlink(root / "in" / "d" / "l"), made.st_mtime_ns) == ("../nowhere", TIME)
    tree.link("d/l", "../nowhere", TIME + 1)
    again = (root / "in" / "d" / "l").lstat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, TIME + 1)
    tree.link("d/l", "x", TIME)
    assert os.readlink(root / "in" / "d" / "l") == "x"
    tree.close()
    assert reserved(root) == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("old", ["file", "link", "folder", "full folder"])
def test_the_policy_decides_on_links_too(root: Path, store: LocalStore, policy: str, old: str) -> None:
    """A link replaces a file or a link where a file would; a folder never; nothing staged stays."""
    where = root / "in" / "taken"
    where.parent.mkdir()
    if old == "link":
        where.symlink_to("old")
    elif old == "file":
        where.write_bytes(b"old")
    else:
        where.mkdir()
    if old == "full folder":
        (where / "inner").write_bytes(b"x")
    os.utime(where, ns=(5, 5), follow_symlinks=False)
    before = snapshot(root)
    with closing(store.tree("in", policy)) as tree:
        if old in ("file", "link") and policy in ("replace", "newer"):
            tree.link("taken", "new", TIME)
            assert os.readlink(where) == "new"
        else:
            with pytest.raises((errors.NotAFile, errors.AlreadyExists)):
                tree.link("taken", "new", TIME)
    if not where.is_symlink() or old == "link":
        assert reserved(root) == []
    if old.endswith("folder") or policy in ("skip", "fail"):
        assert snapshot(root) == before


def test_a_file_replaces_a_link_and_not_what_it_leads_to(root: Path, tmp_path: Path, tree: Tree) -> None:
    """Neither for files nor for stamps nor for folders."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"old")
    before = snapshot(outside, times=True)
    (root / "in" / "l").symlink_to(outside / "f")
    with pytest.raises(errors.NotAFile):
        tree.stamp("l", TIME, 0o600)
    assert add_all(tree, File("l", b"new")) == {}
    assert (root / "in" / "l").read_bytes() == b"new"
    assert not (root / "in" / "l").is_symlink()
    assert snapshot(outside, times=True) == before


def test_nothing_goes_through_a_link(root: Path, tmp_path: Path, tree: Tree) -> None:
    """A folder that is a link is not entered: files, links, stamps and folders below it are refused."""
    outside = tmp_path / "outside"
    (outside / "d").mkdir(parents=True)
    (outside / "f").write_bytes(b"old")
    before = snapshot(outside, times=True)
    (root / "in" / "l").symlink_to(outside)
    failed = add_all(tree, File("l/f", b"new"), File("l/d/f", b"new"), File("l/e/f", b"new"), File("good", b"x"))
    assert {at: type(exc) for at, exc in failed.items()} == dict.fromkeys(range(3), errors.NotAFile)
    calls: list[Callable[[], object]] = [
        lambda: tree.link("l/x", "y", TIME),
        lambda: tree.stamp("l/f", TIME, 0o600),
        lambda: tree.remove("l/f"),
        lambda: tree.remove("l/d"),
        lambda: tree.folder("l", TIME, 0o700),
        lambda: tree.folder("l/d", TIME, 0o700),
        lambda: tree.folder("l/new", TIME, 0o700),
    ]
    for call in calls:
        with pytest.raises(errors.NotAFile):
            call()
    assert snapshot(outside, times=True) == before
    assert visible(root) == ["in", "in/good", "in/l"]


def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere(root: Path, tmp_path: Path, tree: Tree) -> None:
    """What was staged in it is not published elsewhere; the others are."""
    outside = tmp_path / "outside"
    outside.mkdir()
    add(tree, "d/f")
    add(tree, "e/f")
    (root / "in" / "d").rename(root / "moved")
    (root / "in" / "d").symlink_to(outside)
    tree.commit()
    assert list(outside.iterdir()) == []
    assert (root / "in" / "e" / "f").read_bytes() == b"x"
    assert (root / "in" / "d").is_symlink()


def test_a_reader_does_not_leave_its_folder(root: Path, tmp_path: Path, store: LocalStore) -> None:
    """Links are not read; followed on request, as far as they stay below the folder."""
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "beside").write_bytes(b"beside")
    inside = root / "in"
    (inside / "d").mkdir(parents=True)
    (inside / "d" / "f").write_bytes(b"data")
    for name, target in (
        ("absolute", tmp_path / "secret"),
        ("up", "../beside"),
        ("round", "d/../../in/d/f"),
        ("good", "d/f"),
        ("folder", "d"),
        ("d/back", "../good"),
        ("loop", "loop2"),
        ("loop2", "loop"),
        ("gone", "nowhere"),
        ("store", f"{RESERVED}/x"),
    ):
        (inside / name).symlink_to(target)
    view = memoryview(bytearray(100))
    with store.reader("in") as reader:
        for name in ("absolute", "up", "good", "loop", "gone", "folder/f"):
            with pytest.raises(errors.NotAFile):
                reader.read(name, view)
        assert reader.target("good") == "d/f"
        assert reader.stat("folder/f") is None
        entry = reader.stat("good")
        assert entry is not None
        assert entry.kind == "link"
    with store.reader("in", follow=True) as reader:
        for name in ("good", "folder/f", "d/back", "folder/back"):
            packed = reader.read(name, view)
            assert packed is not None
            assert bytes(view[: packed.size]) == b"data"
        for name, expected in (
            ("absolute", errors.Refused),
            ("up", errors.Refused),
            ("round", errors.Refused),
            ("loop", errors.NotAFile),
            ("gone", errors.NotFound),
            ("store", errors.NotFound),
            ("folder", errors.NotAFile),
        ):
            with pytest.raises(expected):
                reader.read(name, view)


def test_a_link_is_removed_and_not_what_it_leads_to(root: Path, tmp_path: Path, tree: Tree) -> None:
    """To a file, to a folder, to nothing."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"old")
    for name, target in (("a", outside), ("b", outside / "f"), ("c", "nowhere")):
        (root / "in" / name).symlink_to(target)
        tree.remove(name)
    assert tree.commit() == ({}, {})
    assert visible(root) == ["in"]
    assert (outside / "f").read_bytes() == b"old"


# Reading what moves.


def test_a_file_that_grows_or_shrinks_meanwhile_is_read_again(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once is borne; one that does not hold still is an error."""
    (root / "f").write_bytes(b"0123456789")
    view = memoryview(bytearray(100))
    real = os.preadv
    changes: list[bytes] = []

    def preadv(fd: int, views: list[memoryview], at: int) -> int:
        count = real(fd, views, at)
        if changes:
            (root / "f").write_bytes(changes.pop())
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    with store.reader("") as reader:
        for change in (b"0123456789ab", b"012", b""):
            changes.append(change)
            packed = reader.read("f", view)
            assert packed is not None
            assert bytes(view[: packed.size]) == change
        changes += [b"x" * n for n in range(50)]
        with pytest.raises(errors.SourceChanged):
            reader.read("f", view)
        changes[:] = [b"y" * 101]
        (root / "f").write_bytes(b"0123456789")
        assert reader.read("f", view) is None


def test_a_file_that_changed_since_it_was_listed_is_read_as_it_is(root: Path, store: LocalStore) -> None:
    """What the listing said of it is a hint, never the truth."""
    view = memoryview(bytearray(100))
    with store.reader("") as reader:
        for data in (b"", b"12345", b"123456789", b"1234567890", b"12345678901", b"x" * 100):
            (root / "f").write_bytes(data)
            mtime_ns = (root / "f").stat().st_mtime_ns
            for size in (0, 9, 10, 11, 99, 100):
                packed = reader.read("f", view, size, mtime_ns)
                assert packed is not None
                assert (packed.size, packed.mtime_ns, bytes(view[: packed.size])) == (len(data), mtime_ns, data)


def test_what_the_system_makes_up_is_no_file(store: LocalStore, root: Path) -> None:
    """A file that says it is empty and is not, as those in /proc."""
    if not Path("/proc/self/status").exists():
        pytest.skip("NOT TESTED: no /proc here")
    with closing(LocalStore("/proc/self")) as proc, proc.reader("") as reader:
        with pytest.raises(errors.NotAFile, match="makes it up"):
            reader.read("status", memoryview(bytearray(1 << 16)))
        with pytest.raises(errors.NotAFile, match="makes it up"):
            reader.open("status")
    with store.reader("") as reader:
        os.mkfifo(root / "fifo")
        with pytest.raises(errors.NotAFile):
            reader.read("fifo", memoryview(bytearray(10)))


def test_files_with_holes_are_not_for_packs(root: Path, store: LocalStore) -> None:
    """Where the file system keeps them, they are asked for as large files, which keep them too."""
    with (root / "f").open("wb") as file:
        file.truncate(1 << 20)
    view = memoryview(bytearray(2 << 20))
    with store.reader("") as reader:
        packed = reader.read("f", view)
        keeps = (root / "f").stat().st_blocks == 0
        assert (packed is None) == keeps


# Descriptors.


def test_many_folders_need_few_descriptors(root: Path, store: LocalStore) -> None:
    """However many a group, or a reader, goes through, and however deep: a bounded number stays open."""
    most = MOST_OPEN + 16
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("NOT TESTED: nowhere to count descriptors")
    before = len(os.listdir(folder))

    def used() -> int:
        return len(os.listdir(folder)) - before

    names = [f"{n}/a/b" for n in range(300)]
    with closing(store.tree("in")) as tree:
        for name in names:
            add(tree, f"{name}/f")
        assert used() <= most
        assert tree.commit([(name, TIME, 0o755) for name in names]) == ({}, {})
        for name in names:
            tree.stamp(f"{name}/f", TIME, 0o600)
            tree.link(f"{name}/l", "f", TIME)
        assert used() <= most
        assert tree.commit() == ({}, {})
        assert not tree.is_full
    view = memoryview(bytearray(10))
    with store.reader("in") as reader:
        for name in names:
            assert reader.read(f"{name}/f", view) is not None
            assert reader.target(f"{name}/l") == "f"
        assert used() <= most
    assert used() <= 0
    assert sum(1 for path in (root / "in").rglob("f")) == 300


def test_the_cache_keeps_what_is_used(root: Path) -> None:
    """A descriptor is good until the next call, also of a folder that was entered on the way; none is left over."""
    for number in range(MOST_OPEN + 40):
        (root / f"{number}" / "inner").mkdir(parents=True)
    top = os.open(root, os.O_RDONLY)
    with descriptors_come_back(), closing(FolderCache(top)) as folders:
        for number in (*range(MOST_OPEN + 40), 0, 1, MOST_OPEN + 39, 5):
            for name in (f"{number}/inner", f"{number}"):
                fd = folders.get(name)
                assert os.path.samestat(os.fstat(fd), os.stat(root / name))
        assert os.path.samestat(os.fstat(folders.get("")), os.stat(root))
        with pytest.raises(FileNotFoundError):
            folders.get("0/nothing")
    os.close(top)


def test_the_cache_makes_folders_only_if_it_is_to(root: Path) -> None:
    """And knows which were made here; a deep one with all above it."""
    deep = "/".join("d" * 100)
    top = os.open(root, os.O_RDONLY)
    with closing(FolderCache(top, create=True)) as folders:
        (root / "old").mkdir()
        folders.get("old/new")
        folders.get(deep)
        assert "old" not in folders.made
        assert {"old/new", "d"} <= folders.made or MOST_OPEN < 100
        (root / "l").symlink_to("old")
        for name in ("l", "l/new"):
            with pytest.raises(OSError, match=r".*") as caught:
                folders.get(name)
            assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert (root / deep).is_dir()
    assert sorted(os.listdir(root / "old")) == ["new"]
    os.close(top)


def test_a_folder_that_was_made_again_is_not_taken_for_the_one_before(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was let go of is looked at anew: what somebody put in its place is not replaced unseen."""
    monkeypatch.setattr(cache, "MOST_OPEN", 1)
    with closing(store.tree("in")) as tree:
        add(tree, "d/f")
        for number in range(5):
            add(tree, f"{number}/f")
        (root / "in" / "d" / "f").mkdir()
        failed, _ = tree.commit()
        assert {at: type(exc) for at, exc in failed.items()} == {0: errors.NotAFile}
    assert (root / "in" / "d" / "f").is_dir()
    assert reserved(root) == []


# Killed writers.

WRITER = """
import sys
from ftransfer.store.local import LocalStore
store = LocalStore(sys.argv[1])
tree = store.tree("in")
def add(path):
    tree.add(path, memoryview(b"x" * 1000), 10**18, 0o644)
add("first")
tree.commit()
for path in ("a", "first", "d/b", "d/e/c", "gone/c", "moved/c"):
    add(path)
print("staged", flush=True)
sys.stdin.read()
tree.commit()
tree.close()
print("done", flush=True)
"""


@pytest.fixture
def writer(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has published `in/first` and staged a group."""
    command = [sys.executable, "-c", WRITER, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        yield process
        process.kill()


def test_a_sweep_removes_what_a_killed_writer_left(
    root: Path, store: LocalStore, writer: subprocess.Popen[str]
) -> None:
    """All that it staged, and nothing else: neither what it had published nor what others are writing."""
    with closing(store.tree("in")) as tree:
        add(tree, "d/ours")
        writer.kill()
        writer.wait(PATIENCE)
        (root / "in" / "gone" / next(iter(os.listdir(root / "in" / "gone")))).unlink()
        (root / "in" / "gone").rmdir()
        assert len(reserved(root)) == 5 + 1 + 2
        store.sweep()
        assert len(reserved(root)) == 2
        assert tree.commit() == ({}, {})
    assert reserved(root) == []
    assert visible(root) == ["in", "in/d", "in/d/e", "in/d/ours", "in/first", "in/moved"]
    assert (root / "in" / "first").read_bytes() == b"x" * 1000
    assert not (root / RESERVED).exists()


def test_a_sweep_never_touches_what_is_being_written(
    root: Path, store: LocalStore, writer: subprocess.Popen[str]
) -> None:
    """Not in this process, not in another one."""
    before = snapshot(root, times=True)
    for _ in range(3):
        store.sweep()
    assert snapshot(root, times=True) == before
    out, _ = writer.communicate("", timeout=PATIENCE)
    assert out == "done\n"
    assert reserved(root) == []
    assert (root / "in" / "d" / "e" / "c").read_bytes() == b"x" * 1000


def test_a_sweep_goes_where_the_journal_says_and_no_further(root: Path, tmp_path: Path, store: LocalStore) -> None:
    """Torn lines, junk, names that may not be used and links announce nothing; other writers' files stay."""
    outside = tmp_path / "outside"
    token = "0123456789abcdef"
    for folder in (outside, root, root / "d"):
        folder.mkdir(exist_ok=True)
        (folder / f"{RESERVED}-{token}-0").write_bytes(b"staged")
        (folder / f"{RESERVED}-fedcba9876543210-0").write_bytes(b"others'")
        (folder / "keep").write_bytes(b"keep")
    (root / "link").symlink_to(outside)
    (root / RESERVED).mkdir(mode=0o700)
    lines = [
        *(json.dumps(record) for record in ([["", "../outside"], ["..", "outside"], ["link", ""], ["", "link"]])),
        *(json.dumps(record) for record in ([str(outside), ""], [1, 2], {"a": 1}, [], ["a"], None, ["", ["d"]], "ab")),
        "\x00\x00\x00",
        '["", ',
        json.dumps(["", "nothing"]),
        json.dumps(["d", ""]),
        '["", "d',
    ]
    (root / RESERVED / f"{token}.tree").write_text("\n".join(lines))
    store.sweep()
    assert sorted(os.listdir(outside)) == sorted([f"{RESERVED}-{token}-0", f"{RESERVED}-fedcba9876543210-0", "keep"])
    assert sorted(os.listdir(root / "d")) == [f"{RESERVED}-fedcba9876543210-0", "keep"]
    assert (root / f"{RESERVED}-{token}-0").exists()
    assert journals(root) == []


def test_a_sweep_while_groups_are_written_and_published(root: Path, store: LocalStore) -> None:
    """Sweeping again and again beside a writer changes nothing for it."""
    with closing(LocalStore(root)) as other, closing(store.tree("in")) as tree:
        for number in range(20):
            add(tree, f"{number % 3}/{number}")
            other.sweep()
            if number % 4 == 3:
                assert tree.commit() == ({}, {})
                other.sweep()
    assert len([name for name in visible(root) if name.count("/") == 2]) == 20
    assert reserved(root) == []


# Disks that fail.


def fail_once(patch: pytest.MonkeyPatch, at: int, number: int = errno.EIO) -> list[int]:
    """Have the sync with this number fail; return the list of the calls."""
    calls: list[int] = []

    def fail(fd: int) -> None:
        calls.append(fd)
        if len(calls) == at:
            raise OSError(number, os.strerror(number))

    patch.setattr(sync, "sync_file_system", fail)
    patch.setattr(sync, "syncs_file_systems", lambda: True)
    return calls


def test_a_first_sync_that_fails_drops_the_whole_group(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name is changed, nothing is synced a second time, the disk is not filled; the next group counts for itself."""
    (root / "in").mkdir()
    (root / "in" / "a").write_bytes(b"old")
    calls = fail_once(monkeypatch, 1)
    with closing(store.tree("in")) as tree:
        add(tree, "a", b"new")
        add(tree, "d/b", b"new")
        failed, _ = outcome(tree)
        assert failed == {0, 1}
        assert len(calls) == 1
        assert (root / "in" / "a").read_bytes() == b"old"
        assert visible(root) == ["in", "in/a", "in/d"]
        assert [path for path in root.rglob(f"{RESERVED}-*") if path.is_file()] == []
        assert add_all(tree, File("a", b"next")) == {}
    assert (root / "in" / "a").read_bytes() == b"next"
    assert reserved(root) == []


def test_a_last_sync_that_fails_is_no_success(root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names may be there, but nobody knows whether they stay: each file is whole, and each is told as failed."""
    calls = fail_once(monkeypatch, 2)
    with closing(store.tree("in")) as tree:
        add(tree, "a", b"new")
        add(tree, "d/b", b"new")
        failed, _ = outcome(tree)
        assert failed == {0, 1}
        assert len(calls) == 2
    for name in ("a", "d/b"):
        path = root / "in" / name
        assert not path.exists() or path.read_bytes() == b"new"


def outcome(tree: Tree, folders: int = 0) -> tuple[set[int], set[int]]:
    """Commit where the disk fails, which is told for each row or for all of them; return the places."""
    count = len(getattr(tree, "_staged", ()))
    try:
        failed, bad = tree.commit([(f"f{n}", TIME, 0o755) for n in range(folders)])
    except errors.DiskError:
        return set(range(count)), set(range(folders))
    assert all(isinstance(exc, errors.DiskError) for exc in (*failed.values(), *bad.values()))
    return set(failed), set(bad)


@pytest.mark.parametrize("which", [1, 2])
def test_folders_whose_sync_fails_are_no_success(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Each is told as failed, with files in the group and without."""
    fail_once(monkeypatch, which)
    with closing(store.tree("in")) as tree:
        if which == 2:
            add(tree, "a")
        assert outcome(tree, 2)[1] == {0, 1}


@pytest.mark.parametrize("kind", ["link", "stamp"])
@pytest.mark.parametrize(("files", "which"), [(0, 1), (1, 1), (1, 2)])
def test_links_whose_sync_fails_are_no_success(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch, kind: str, files: int, which: int
) -> None:
    """A pack of links or stamps is not answered as stored if the disk failed, whatever else is in its group."""
    (root / "in").mkdir()
    (root / "in" / "s").write_bytes(b"x")
    fail_once(monkeypatch, which)
    with closing(store.tree("in")) as tree:
        unpacker = Unpacker(tree, durable=True)
        rows: dict[str, list[tuple[object, ...]]] = {}
        if files:
            rows["files"] = [("f", 1, block_hash(b"x"), TIME, 0o644)]
        rows["links" if kind == "link" else "stamps"] = [("l", "x", TIME) if kind == "link" else ("s", TIME, 0o600)]
        unpacker.take(wire.Pack(t=1, body=files, **rows), memoryview(b"x" * files))  # type: ignore[arg-type]
        try:
            (failed,) = unpacker.commit()
        except errors.DiskError:
            return
        assert failed.keys() == set(range(files + 1))


def test_links_and_folders_alone_are_synced(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group without a file is durable too, before it is answered."""
    calls = fail_once(monkeypatch, 0)
    acts: list[Callable[[Tree], object]] = [
        lambda tree: tree.link("a/l", "x", TIME),
        lambda tree: tree.folder("b/c", TIME, 0o755),
        lambda tree: tree.remove("a/l"),
        lambda tree: tree.remove("a"),
        lambda tree: (add(tree, "f"), tree.commit(), calls.clear(), tree.stamp("f", TIME + 1, 0o600)),
    ]
    with closing(store.tree("in")) as tree:
        for act in acts:
            calls.clear()
            act(tree)
            assert tree.commit() == ({}, {})
            assert len(calls) >= 1
        calls.clear()
        assert tree.commit([("d", TIME, 0o755)]) == ({}, {})
        assert len(calls) >= 1
        calls.clear()
        assert tree.commit() == ({}, {})
        assert calls == []


def test_without_durable_nothing_is_synced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for single files."""
    calls: list[int] = []
    for name in ("sync_file_system", "sync_file", "sync_folder"):
        monkeypatch.setattr(sync, name, calls.append)
    with closing(LocalStore(root, durable=False)) as store, closing(store.tree("in")) as tree:
        assert add_all(tree, File("a", b"x"), File("d/b", b"x")) == {}
        tree.link("l", "x", TIME)
        assert tree.commit([("d", TIME, 0o755)]) == ({}, {})
    assert calls == []


def test_without_a_call_for_file_systems_each_file_and_folder_is_synced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file before it has its name, each folder with a new name after that, and those above it."""
    monkeypatch.setattr(sync, "syncs_file_systems", lambda: False)
    said: list[str] = []

    def where(fd: int) -> str:
        inode = os.fstat(fd).st_ino
        paths = [root, *root.rglob("*")]
        return next(path.relative_to(root).as_posix() for path in paths if path.lstat().st_ino == inode)

    monkeypatch.setattr(sync, "sync_file", lambda fd: said.append("file" if RESERVED in where(fd) else "published"))
    monkeypatch.setattr(sync, "sync_folder", lambda fd: said.append(where(fd)))
    with closing(LocalStore(root)) as store, closing(store.tree("in")) as tree:
        add(tree, "a")
        add(tree, "d/e/b")
        assert said.count("file") == 2
        said.clear()
        assert tree.commit([("new", TIME, 0o755)]) == ({}, {})
    assert {"in", "in/d", "in/d/e"} <= set(said)
    assert "published" not in said


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on a disk of 2 MiB and 64 files."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("NOT TESTED: mounting a small disk needs root on Linux")
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=64", "tmpfs", str(where)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED: cannot mount a small disk here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def until_full(act: Callable[[], object]) -> str:
    """Repeat something until the disk is full; return what was said then."""
    try:
        while True:
            act()
    except errors.DiskError as exc:
        return str(exc)


@pytest.mark.parametrize("size", [0, 300_000], ids=["inodes", "blocks"])
def test_a_disk_that_fills_up_within_a_group(small_root: Path, size: int) -> None:
    """The last file is told so and leaves nothing; what was staged goes with its tree, and then there is room again."""
    (small_root / "0").write_bytes(b"old")
    with closing(LocalStore(small_root)) as store:
        before = snapshot(small_root)
        with closing(store.tree("")) as tree:
            room = tree.room()
            assert room.bytes is not None
            assert room.files is not None
            assert room.bytes < 2 << 20
            assert room.files < 64
            numbers = iter(range(100))
            assert until_full(lambda: add(tree, f"{next(numbers)}", noise(size))) == "no space left on the disk"
            assert (small_root / "0").read_bytes() == b"old"
        assert snapshot(small_root) == before
        with closing(store.tree("")) as tree:
            assert add_all(tree, *(File(f"{number}", noise(size, number)) for number in range(5))) == {}
    assert (small_root / "0").read_bytes() == noise(size)


@pytest.mark.parametrize("how", ["refused", "short"])
def test_a_full_disk_is_told_at_once(root: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A write that is refused, or takes less than all, leaves nothing of that file; the old one is there."""
    (root / "in" / "f").write_bytes(b"old")
    add(tree, "good", noise(100))
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if len(data) < 5000:
            return real(fd, data)
        if how == "short":
            return real(fd, data[:4096]) if os.fstat(fd).st_size == 0 else refuse()
        return refuse()

    def refuse() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(errors.DiskError, match="no space left"):
            add(tree, "f", noise(10_000))
    staged = [path for path in root.rglob(f"{RESERVED}-*") if path.is_file()]
    assert [path.stat().st_size for path in staged] == [100]
    assert (root / "in" / "f").read_bytes() == b"old"
    assert tree.commit() == ({}, {})
    assert (root / "in" / "good").read_bytes() == noise(100)


def test_a_write_that_is_cut_short_is_gone_on_with(root: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for single files: less than all is not yet an error."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2] if len(data) > 500 else data))
    add(tree, "f", noise(10_000))
    assert tree.commit() == ({}, {})
    assert (root / "in" / "f").read_bytes() == noise(10_000)


def test_a_journal_that_cannot_be_written_stages_nothing(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sweep could not find is not made."""
    with closing(store.tree("in")) as tree:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: len(data) // 2)  # noqa: ARG005
            with pytest.raises(errors.DiskError):
                add(tree, "f")
            with pytest.raises(errors.DiskError):
                tree.link("l", "x", TIME)
        assert [path for path in root.rglob(f"{RESERVED}-*") if path.is_file()] == []
        add(tree, "f")
        (journal,) = journals(root)
        assert json.loads(journal.read_text().splitlines()[-1]) == ["in", ""]  # not behind the torn one
        assert tree.commit() == ({}, {})
    assert visible(root) == ["in", "in/f"]
    assert reserved(root) == []


@needs_no_root
def test_a_folder_without_rights_fails_alone(root: Path, tree: Tree) -> None:
    """Its files are refused, whether before they are staged or when they get their names; the others are stored."""
    (root / "in" / "closed").mkdir(parents=True)
    add(tree, "late/f")
    (root / "in" / "closed").chmod(0o555)
    (root / "in" / "late").chmod(0o555)
    try:
        failed = add_all(tree, File("closed/f", b"x"), File("good", b"x"))
        assert all(isinstance(exc, errors.Refused) for exc in failed.values())
        assert (root / "in" / "good").read_bytes() == b"x"
        assert visible(root) == ["in", "in/closed", "in/good", "in/late"]
    finally:
        (root / "in" / "closed").chmod(0o755)
        (root / "in" / "late").chmod(0o755)


def test_a_root_that_is_removed_meanwhile(root: Path, store: LocalStore) -> None:
    """Each file fails with an error of its own; closing is harmless."""
    tree = store.tree("in")
    add(tree, "d/f")
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    root.rmdir()
    failed, _ = tree.commit()
    assert [type(exc) for exc in failed.values()] == [errors.NotFound]
    with pytest.raises((errors.NotFound, errors.DiskError)):
        add(tree, "e/f")
    tree.close()
    wait_until(lambda: not root.exists(), "staying away")

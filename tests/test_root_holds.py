"""Nothing outside the root is read, written, made or removed, while its folders are swapped for links (promise 8).

The store is used as the server uses it, and a thread swaps a folder for a link that leads outside, and back, as fast as
it can: what the store does is made of several calls of the system, and falls apart somewhere between two of them.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import itertools
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import PATIENCE, fast_folder
from support import snapshot
from test_store_contract import content, describe, save, write
from test_store_trees import TIME, File, add_all

import ftransfer.store
from ftransfer import errors
from ftransfer.digests import block_hash
from ftransfer.store import cache, folders, journal, local_trees, reading, staging, state, walking
from ftransfer.store.local import KEEP_PARTIALS, LocalStore
from ftransfer.store.trees import Tree

SECRET = b"canary" * 20
TURNS = 300
"""Times that each thing is done while the folder is swapped; more, until both of its faces were met."""
MOST_TURNS = 4000
STAGED = ".ftransfer-" + "0" * 16
TREE = "0" * 15
"""Name of a tree's journal, with which the names of its staged files begin."""
PLANTED = (STAGED, f".ftransfer-{TREE}-0", "sub/" + STAGED, f"sub/.ftransfer-{TREE}-0")
_EXCHANGE = 2  # RENAME_EXCHANGE, renameat2(2)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; tell whether the system could."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd = -100
    return call is not None and not call(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), _EXCHANGE)


class Place:
    """A root with a folder that has another face outside: the same names, and bytes that must never come out."""

    def __init__(self, base: Path, flipped: str):
        self.root, self.outside, self._link = base / "root", base / "outside", base / "link"
        self.flipped = self.root / flipped
        self._fill(self.outside, SECRET, "only-here", "sub/only-here")
        self._fill(self.flipped, b"public")
        self._link.symlink_to(self.outside)
        if not exchange(self.flipped, self._link):
            pytest.skip("NOT TESTED: this system cannot swap two names in one step")
        exchange(self.flipped, self._link)
        self.before = self.state()
        self._inside = os.open(self.flipped, os.O_RDONLY)
        self._stop = threading.Event()
        self.flips = 0
        self.seen: list[bytes] = []

    @staticmethod
    def _fill(folder: Path, data: bytes, *more: str) -> None:
        """Put in what is going to be asked for, and what the store calls its own."""
        (folder / "sub").mkdir(parents=True)
        for name in ("file", "sub/file", *PLANTED, "1.journal", "2.tree", "3.probe", *more):
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o600)
            os.utime(folder / name, ns=(5, 5))
        (folder / "link").symlink_to(data.decode())
        folder.chmod(0o700)

    def state(self) -> list[tuple[object, ...]]:
        """Return everything about what is outside."""
        found: list[tuple[object, ...]] = []
        for path in [self.outside, *sorted(self.outside.rglob("*"))]:
            info = path.lstat()
            held = path.read_bytes() if stat.S_ISREG(info.st_mode) else None
            found.append(
                (str(path), info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_mode, info.st_nlink, held)
            )
        return found

    def put(self, name: str) -> None:
        """Put a file into the folder, whatever its name leads to now."""
        above, _, _ = name.rpartition("/")
        if above:
            try:
                os.mkdir(above, dir_fd=self._inside)
            except FileExistsError:
                pass
        with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=self._inside), "wb") as file:
            file.write(b"public")

    def holds(self, name: str) -> bool:
        """Tell whether the folder itself has this name."""
        try:
            os.stat(name, dir_fd=self._inside, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            exchange(self.flipped, self._link)
            self.flips += 1

    @contextmanager
    def flipping(self) -> Iterator[None]:
        """Swap the folder until the end of the block, and leave it in its place."""
        thread = threading.Thread(target=self._run, name="flipper")
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(PATIENCE)
            sys.setswitchinterval(interval)
            if self.flipped.is_symlink():
                exchange(self.flipped, self._link)

    @contextmanager
    def turned(self) -> Iterator[None]:
        """Show the other face for the time of a block."""
        exchange(self.flipped, self._link)
        try:
            yield
        finally:
            exchange(self.flipped, self._link)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._inside)


Act = Callable[[LocalStore, Place, int], None]


@pytest.fixture
def base() -> Iterator[Path]:
    """An empty folder in memory."""
    with fast_folder() as made:
        yield made


def is_kept(place: Place) -> bool:
    """Tell whether all that is outside is what it was, and nothing of it came out."""
    return place.state() == place.before and not any(SECRET[:6] in piece for piece in place.seen)


def play(store: LocalStore, place: Place, act: Act) -> None:
    """Do something while the folder is swapped, until it was done and has failed often enough; nothing gets out."""
    done = failed = 0
    with place.flipping():
        for n in itertools.count():
            try:
                act(store, place, n)
                done += 1
            except errors.FtransferError:
                failed += 1
            if n >= MOST_TURNS or (n >= TURNS and done > 10 and failed > 10 and place.flips > TURNS):
                break
    assert is_kept(place)
    assert done > 10, "it never met the folder"
    assert failed > 10, "it never met the link"


# What is done to a folder. Each may fail as a store fails, and in no other way.


def read(store: LocalStore, place: Place, n: int) -> None:
    """Read by all the ways there are."""
    view = memoryview(bytearray(1000))
    name = ("door/file", "door/sub/file")[n % 2]
    follow = n % 3 == 0
    with store.open(name, follow=follow) as source:
        place.seen.append(bytes(view[: source.read_into(0, view)]))
    with store.reader("", follow=follow) as reader:
        found = reader.stat(name)
        place.seen.append(SECRET * (found is not None and found.size == len(SECRET)))
        packed = reader.read(name, view, *((found.size, found.mtime_ns) if found else ()))
        place.seen.append(bytes(view[: packed.size if packed else 0]))
        place.seen.append(reader.target("door/link").encode())
    with store.reader("door") as reader:
        packed = reader.read("file", view)
        place.seen.append(bytes(view[: packed.size if packed else 0]))


def follow(store: LocalStore, place: Place, n: int) -> None:
    """Read through a link that stays inside, when that on which it leads becomes one that does not."""
    view = memoryview(bytearray(1000))
    with store.reader("", follow=True) as reader, reader.open(("way/file", "way/sub/file")[n % 2]) as source:
        place.seen.append(bytes(view[: source.read_into(0, view)]))


def listing(store: LocalStore, place: Place, n: int) -> None:
    """List, with and without all that is below, following links or not."""
    for entry in store.entries(("", "door", "door/sub")[n % 3], recursive=n % 2 == 0, follow=n % 5 == 0):
        place.seen.append(SECRET * ("only-here" in entry.path or entry.size == len(SECRET)))


def look(store: LocalStore, place: Place, n: int) -> None:
    """Ask what a name is."""
    place.seen.append(SECRET * (store.stat(("door/file", "door/sub/file")[n % 2]).size == len(SECRET)))


def upload(store: LocalStore, place: Place, n: int) -> None:  # noqa: ARG001
    """Store a file, under a name that is taken or not, in folders that are there or not."""
    path = (f"door/new{n}", "door/file", f"door/sub/new{n}", f"door/made{n}/er/f")[n % 4]
    policy = ("replace", "rename", "fail", "newer")[n // 4 % 4]
    description = describe(path, b"data", fingerprint=f"{n}", if_exists=policy, transfer=f"{n:032x}", mode=0o777)
    claimed = store.claim(description)
    try:
        write(claimed, 0, b"data")
        claimed.commit(4, block_hash(b"data"))
        store.committed(description)
    finally:
        claimed.release()


def stage(store: LocalStore, place: Place, n: int) -> None:  # noqa: ARG001
    """Leave something unfinished, take it up again, drop it."""
    description = describe("door/sub/half", b"hello", fingerprint=f"{n // 2}")
    for _ in range(2):
        claimed = store.claim(description)
        write(claimed, 0, b"he")
        claimed.check_space()
        claimed.release()
    if n % 2:
        store.claim(description).discard()


def try_all(*acts: Callable[[], object]) -> None:
    """Do all of it, whatever fails."""
    for act in acts:
        try:
            act()
        except errors.FtransferError:
            pass


def commit(tree: Tree, *facts: tuple[str, int, int]) -> None:
    """Commit a group, and raise what failed."""
    for outcome in tree.commit(facts):
        for exc in outcome.values():
            raise exc


def group(store: LocalStore, place: Place, n: int) -> None:  # noqa: ARG001
    """Put small files and links, and make folders."""
    data = memoryview(b"data")
    inner = ("door/", "")[n % 2]
    with closing(store.tree(("", "door")[n % 2])) as tree:
        try_all(
            lambda: tree.add(f"{inner}file", data, TIME, 0o777),
            lambda: tree.add(f"{inner}sub/t{n}", data, TIME, 0o777),
            lambda: tree.link(f"{inner}sub/l{n}", "nowhere", TIME),
            lambda: tree.link(f"{inner}link", f"{n}", TIME),
            lambda: tree.add(f"{inner}deep{n}/er/f", data, TIME, 0o777),
        )
        commit(tree, (f"{inner}deep{n}", TIME, 0o777))


def facts(store: LocalStore, place: Place, n: int) -> None:  # noqa: ARG001
    """Give files and folders other times and modes."""
    with closing(store.tree("")) as tree:
        try_all(
            lambda: tree.stamp(("door/file", "door/sub/file")[n % 2], TIME + n, (0o644, 0o777)[n // 2 % 2]),
            lambda: tree.link("door/link", "public", TIME + n),
            lambda: tree.folder("door/sub", TIME + n, (0o755, 0o777)[n % 2]),
        )
        commit(tree, ("door", TIME + n, 0o777), ("door/sub", TIME, 0o777))


def group_remove(store: LocalStore, place: Place, n: int) -> None:
    """Remove by a tree."""
    place.put("file")
    place.put("sub/file")
    inner = ("door/", "")[n % 2]
    with closing(store.tree(("", "door")[n % 2])) as tree:
        tree.remove(f"{inner}file")
        tree.remove(f"{inner}sub/file")


def remove(store: LocalStore, place: Place, n: int) -> None:
    """Remove a file, then a folder with all that is in it."""
    place.put("file")
    place.put("sub/deep/file") if place.holds("sub/deep") else place.put("sub/file")
    sizes: list[int] = []
    store.remove(("door/file", "door/sub/file")[n % 2], freed=sizes.append if n % 3 else None)
    store.remove("door/sub", recursive=True, freed=sizes.append if n % 3 else None)
    place.seen.append(SECRET * (len(SECRET) in sizes))


def remove_all(store: LocalStore, place: Place, n: int) -> None:
    """Remove a folder with all that is in it, above the one that is swapped."""
    for name in ("sub/file", f"sub/{n}"):
        place.put(name)
    with closing(store.below("")) as again:
        again.remove("door/sub", recursive=True)


def mkdir(store: LocalStore, place: Place, n: int) -> None:  # noqa: ARG001
    """Make folders."""
    try_all(
        lambda: store.mkdir(f"door/made{n}"),
        lambda: store.mkdir(f"door/sub/made{n}/deep", parents=True),
    )
    store.mkdir("door/sub", parents=True)


def move(store: LocalStore, place: Place, n: int) -> None:
    """Rename a file and a folder, within the folder that is swapped and out of it."""
    place.put("file")
    store.move("door/file", (f"door/sub/moved{n}", f"moved{n}")[n % 2])
    if n % 2:
        store.move(f"moved{n}", f"door/back{n}")
    store.mkdir(f"door/sub/made{n}", parents=True)
    store.move(f"door/sub/made{n}", f"door/made{n}")


def below(store: LocalStore, place: Place, n: int) -> None:
    """Take a folder for the root."""
    with closing(store.below(("door", "door/sub", f"door/made{n}/er")[n % 3], create=True)) as inner:
        for entry in inner.entries("", recursive=True):
            place.seen.append(SECRET * (entry.size == len(SECRET)))
        save(inner, "file", b"data", fingerprint=f"{n}")


def plant(store: LocalStore, place: Place, n: int) -> None:
    """Leave journals that name what is staged in the folder; outside there is something of the same names."""
    for name in PLANTED:
        place.put(name)
    head = journal.Head(("door/f", "door/sub/f")[n % 2], STAGED, 5, "x", 1)
    for name, text in (
        (f"{'a' * 32}-{n:016x}.journal", journal.encode_head(head)),
        (TREE + ".tree", b'\n["door", ""]\n["", "door/sub"]'),
    ):
        fd = store.state.lock(name, create=True)
        assert fd is not None
        os.pwrite(fd, text, 0)
        os.utime(fd, ns=(5, time.time_ns() - (KEEP_PARTIALS + 100) * 10**9))
        os.close(fd)


def clear(store: LocalStore, place: Place, n: int) -> None:
    """Drop what is unfinished in the folder."""
    plant(store, place, n)
    store.partials(("", "door")[n % 2])
    store.partials("door", clear=True)
    if place.holds((STAGED, "sub/" + STAGED)[n % 2]):
        raise errors.NotFound("it was not met")


def sweep(store: LocalStore, place: Place, n: int) -> None:
    """Drop what is too old, and what trees have left."""
    plant(store, place, n)
    store.sweep()
    if any(place.holds(name) for name in PLANTED[1::2]):
        raise errors.NotFound("it was not met")


ACTS = [read, follow, listing, look, upload, stage, group, facts, group_remove]
ACTS += [remove, remove_all, mkdir, move, below, clear, sweep]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_a_folder_that_becomes_a_link_leads_nowhere(base: Path, act: Act) -> None:
    """Whatever is done meanwhile, in the folder and below it; afterwards it works as before."""
    with closing(Place(base, "door")) as place, closing(LocalStore(base / "root", durable=False)) as store:
        (base / "root" / "way").symlink_to("door")
        play(store, place, act)
        save(store, "door/after", b"data")
        assert content(store, "door/after") == b"data"


OWN = [(".ftransfer", upload), (".ftransfer", stage), (".ftransfer", group), (".ftransfer/receipts", upload)]


@pytest.mark.parametrize(("flipped", "act"), OWN, ids=[f"{act.__name__} {flipped}" for flipped, act in OWN])
def test_the_stores_own_folder_leads_nowhere(base: Path, act: Act, flipped: str) -> None:
    """It is a folder like any other for whoever may write to the root."""
    (base / "root" / "door" / "sub").mkdir(parents=True)
    if flipped != ".ftransfer":
        (base / "root" / ".ftransfer").mkdir(mode=0o700)

    def act_and_sweep(store: LocalStore, place: Place, n: int) -> None:
        try_all(store.sweep, lambda: store.partials(clear=True), lambda: store.staged("ann"), store.state.tidy)
        act(store, place, n)

    with closing(Place(base, flipped)) as place, closing(LocalStore(base / "root", durable=False)) as store:
        play(store, place, act_and_sweep)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_the_checker_sees_a_store_that_follows(base: Path, act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without O_NOFOLLOW for folders each of these would have reached what is outside."""
    for module in (cache, folders, state, walking):
        monkeypatch.setattr(module, "FOLDER_FLAGS", folders.FOLDER_FLAGS & ~os.O_NOFOLLOW)
    with closing(Place(base, "door")) as place, closing(LocalStore(base / "root", durable=False)) as store:
        (base / "root" / "way").symlink_to("door")
        with place.turned():
            for n in range(12):
                try_all(lambda n=n: act(store, place, n))  # type: ignore[misc]
        assert not is_kept(place)


# How the store asks the system.

ONE_NAME = ("open", "stat", "unlink", "rename", "mkdir", "rmdir", "link", "symlink", "utime", "readlink", "access")


def test_each_name_is_one_component_and_is_not_followed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_NOFOLLOW guards only the last one: seen in every call that the store makes while all of it is done once."""
    asked: set[str] = set()

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            caller = inspect.currentframe()
            assert caller is not None
            assert caller.f_back is not None
            if caller.f_back.f_globals["__name__"].startswith("ftransfer.store") and isinstance(args[0], str):
                names = args[1:2] if name == "symlink" else args[: 2 if name in ("rename", "link") else 1]
                assert all("/" not in one for one in names), (name, args)
                assert options.keys() & {"dir_fd", "src_dir_fd"}, (name, args)
                if name == "open":
                    assert args[1] & os.O_NOFOLLOW, args
                if name in ("stat", "utime", "link"):
                    assert options["follow_symlinks"] is False, (name, args)
                asked.add(name)
            return real(*args, **options)

        return call

    with closing(Place(base, "door")) as place, closing(LocalStore(base / "root")) as store:
        (base / "root" / "way").symlink_to("door")
        for name in ONE_NAME:
            monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
        for act, n in itertools.product(ACTS, range(12)):
            try_all(lambda act=act, n=n: act(store, place, n))  # type: ignore[misc]
        store.clock_step()
        store.folds()
        monkeypatch.undo()
        assert place.state() == place.before
    assert asked == set(ONE_NAME)


def test_the_flags_follow_nothing() -> None:
    """Those of folders, of files that are read, staged or the store's own."""
    flags = [folders.FOLDER_FLAGS, reading.READ_FLAGS, staging._STAGED_FLAGS, local_trees._STAGED_FLAGS]
    assert all(flag & os.O_NOFOLLOW and flag & os.O_CLOEXEC for flag in (*flags, state._PLAIN_FLAGS))
    assert folders.FOLDER_FLAGS & os.O_DIRECTORY
    for flag in (reading.READ_FLAGS, staging._STAGED_FLAGS, state._PLAIN_FLAGS):
        assert flag & os.O_NONBLOCK  # a FIFO must not wait for its other end
    assert local_trees._STAGED_FLAGS & os.O_EXCL


PATH_CALLS = {
    *("access", "chflags", "chmod", "chown", "getxattr", "lchmod", "lchown", "link", "listdir", "listxattr", "lstat"),
    *("makedirs", "mkdir", "mkfifo", "mknod", "open", "pathconf", "readlink", "remove", "removedirs", "removexattr"),
    *("rename", "renames", "replace", "rmdir", "scandir", "setxattr", "stat", "statvfs", "symlink", "truncate"),
    *("unlink", "utime", "walk"),
}
DESCRIPTORS = {"fd", "folder", "receipts", "self._fd"}
"""What the calls that may take a path or a descriptor are given here: always a descriptor."""
EXCEPTIONS = {
    ("local.py", "os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)"): "whoever serves a folder names it",
    ("local.py", "os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)"): "the user's own state folder",
    ("local.py", "open('/proc/self/status', encoding='ascii', errors='replace')"): "where Linux tells the umask",
    ("state.py", "open(fd, 'rb')"): "a descriptor",
    ("state.py", "open(fd, 'w', encoding='utf-8')"): "a descriptor",
    ("sweeping.py", "open(fd, 'rb', closefd=False)"): "a descriptor",
}
OTHER_WAYS = {"fileinput", "glob", "io", "mmap", "pathlib", "shutil", "subprocess", "tempfile"}
"""Modules that take paths in one piece."""


def goes_by_descriptor(call: ast.Call) -> bool:
    """Tell whether a call names something in a folder that is open, or what is open itself."""
    assert isinstance(call.func, ast.Attribute)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if call.func.attr in ("rename", "link"):
        within = {"src_dir_fd", "dst_dir_fd"} <= options.keys()
    else:
        within = "dir_fd" in options
    if within and call.func.attr in ("stat", "utime", "link"):
        return options.get("follow_symlinks") == "False"
    return within or (call.func.attr in ("listdir", "scandir", "utime") and ast.unparse(call.args[0]) in DESCRIPTORS)


def test_every_call_that_takes_a_name_goes_by_a_descriptor() -> None:
    """In the sources of the store; each exception has its reason."""
    found = set()
    for path in sorted(Path(ftransfer.store.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
                assert not {name.partition(".")[0] for name in names} & OTHER_WAYS, path.name
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            is_path_call = called.startswith("os.") and called.removeprefix("os.") in PATH_CALLS
            if called == "open" or (is_path_call and not goes_by_descriptor(node)):
                found.add((path.name, ast.unparse(node)))
    assert found == EXCEPTIONS.keys()


# What is no file.


@pytest.fixture
def special(root: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """A FIFO that somebody has written to, and a socket, in a folder and as files of the store's own."""
    own = root / ".ftransfer"
    own.mkdir(mode=0o700)
    (own / "receipts").mkdir(mode=0o700)
    for name in ("fifo", STAGED, ".ftransfer/" + "1" * 32 + "-" + "2" * 16 + ".journal", ".ftransfer/x.tree"):
        os.mkfifo(root / name)
    os.mkfifo(own / "receipts" / ("3" * 32))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
        both = os.open(root / "fifo", os.O_RDWR | os.O_NONBLOCK)
        os.write(both, SECRET)
        yield {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in root.rglob("*")}
        assert os.read(both, 1000) == SECRET, "somebody has read it"
        os.close(both)


def test_nothing_but_files_is_opened(root: Path, special: dict[str, tuple[int, int]]) -> None:
    """Neither read nor waited for nor changed; the store's own files are passed by if they are none."""
    view = memoryview(bytearray(1000))
    with closing(LocalStore(root, durable=False)) as store, store.reader("") as reader, closing(store.tree("")) as tree:
        for name in ("fifo", "socket"):
            calls: list[Callable[[], object]] = [
                lambda name=name: store.open(name),  # type: ignore[misc]
                lambda name=name: reader.open(name),  # type: ignore[misc]
                lambda name=name: reader.read(name, view),  # type: ignore[misc]
                lambda name=name: reader.read(name, view, len(SECRET), 5),  # type: ignore[misc]
                lambda name=name: store.claim(describe(name, b"x")),  # type: ignore[misc]
                lambda name=name: store.below(name),  # type: ignore[misc]
                lambda name=name: tree.stamp(name, TIME, 0o777),  # type: ignore[misc]
                lambda name=name: tree.folder(name, TIME, 0o777),  # type: ignore[misc]
                lambda name=name: tree.link(name, "x", TIME),  # type: ignore[misc]
            ]
            for call in calls:
                with pytest.raises(errors.NotAFile):
                    call()
            assert store.stat(name).kind == "other"
        failed = add_all(tree, File("fifo", b"x"), File("socket", b"x"))
        assert {type(exc) for exc in failed.values()} == {errors.NotAFile}
        assert store.partials() == store.partials(clear=True) == []
        assert store.committed(describe("f", b"x", transfer="3" * 32)) is None
        assert store.sweep() == 0
        staging_of = store.claim(describe("f", b"x", transfer="3" * 32))
        write(staging_of, 0, b"x")
        with pytest.raises((errors.NotAFile, errors.Refused)):
            staging_of.commit(1, block_hash(b"x"))
        staging_of.discard()
    for path in (root / "fifo", root / "socket"):
        assert (path.lstat().st_mode, path.lstat().st_mtime_ns) == special[str(path)]


def test_a_journal_that_is_no_file_is_not_written(root: Path) -> None:
    """Nor waited for; the error says what to remove."""
    with closing(LocalStore(root, durable=False)) as store:
        claimed = store.claim(describe("f", b"x"))
        claimed.release()
        (found,) = (root / ".ftransfer").glob("*.journal")
        found.unlink()
        os.mkfifo(found)
        with pytest.raises(errors.Refused, match="is not a file") as caught:
            store.claim(describe("f", b"x"))
        assert ".ftransfer" in caught.value.hint
        found.unlink()
        (found.parent / found.name).symlink_to(root / "elsewhere")
        with pytest.raises(errors.NotAFile):
            store.claim(describe("f", b"x"))
        assert not (root / "elsewhere").exists()


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd", "", 5, None, ["a"]])
def test_a_record_leads_nowhere(root: Path, path: object) -> None:
    """Whoever has written it: what a transfer is said to have committed is below the root, or nothing."""
    (root.parent / "outside").write_bytes(b"secret")
    found = (root.parent / "outside").stat()
    with closing(LocalStore(root)) as store:
        record = {"asked": "f", "path": path, "size": 6, "hex": "0" * 32}
        record["file"] = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
        store.state.write_receipt("1" * 32, record)
        assert store.committed(describe("f", b"x", transfer="1" * 32)) is None


def test_modes_are_nine_bits(root: Path) -> None:
    """Whatever a peer says, by each way that a mode comes in."""
    with closing(LocalStore(root, durable=False)) as store:
        save(store, "a", b"x", mode=0o7777)
        with closing(store.tree("")) as tree:
            assert add_all(tree, File("b", b"x", mode=0o6755), File("c", b"x", mode=0o7000 | 0o644)) == {}
            tree.stamp("c", TIME, 0o7711)
            tree.folder("d", TIME, 0o7755)
            assert tree.commit([("e", TIME, 0o6777)]) == ({}, {})
    modes = {name: mode for name, (_, mode, _) in snapshot(root).items()}
    inherited = (root / "d").stat().st_mode & 0o2000  # BSD, and folders with this bit, hand it down
    expected = {"a": 0o777, "b": 0o755, "c": 0o711, "d": 0o755 | inherited, "e": 0o777 | inherited}
    assert modes == expected

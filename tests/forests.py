"""Trees for the tests: planted, taken down as facts, compared; moved up and down; killed in the middle.

Run as a script it is the mother of the processes that move trees, as tests/faults.py is of those that move files.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
from faults import Mother, noise
from support import block_hash, wait_until

import ftransfer

KIB, MIB = 1 << 10, 1 << 20
DIRECTIONS = ("up", "down")
EPOCH = 1_600_000_000_000_000_000
MODES = (0o644, 0o600, 0o755, 0o640, 0o444, 0o664)


class Link(str):
    """What a symbolic link to be planted says."""

    __slots__ = ()


class Fact(NamedTuple):
    """What has to arrive of an entry: its kind, permission bits, time, and bytes or target."""

    kind: int
    mode: int
    mtime_ns: int
    content: Any


Seeds = Mapping[str, bytes | int | Link | None]
"""Path to content: bytes, or so many bytes of noise, or where a link leads, or nothing for a folder."""


def plant(root: Path, seeds: Seeds, *, seed: int = 0) -> Path:
    """Make a tree, with modes and times of all sorts, the same for the same arguments; return its folder."""
    chance = random.Random(f"{seed}")
    root.mkdir(parents=True, exist_ok=True)
    for path, content in seeds.items():
        place = root / path
        (place if content is None else place.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            place.symlink_to(content)
        elif content is not None:
            place.write_bytes(noise(content, chance.randrange(1 << 30)) if isinstance(content, int) else content)
            place.chmod(chance.choice(MODES))
    return weather(root, seed=seed)


def weather(root: Path, *, seed: int = 0) -> Path:
    """Give everything below a folder, and the folder, a time of its own, to the nanosecond; return the folder."""
    chance = random.Random(f"{seed} times")
    for path in [*sorted(root.rglob("*"), reverse=True), root]:
        time = EPOCH + chance.randrange(10**17)
        os.utime(path, ns=(time, time), follow_symlinks=False)
    return root


def grove(root: Path, count: int = 60, *, seed: int = 0, large: int = 0) -> Path:
    """Plant a tree of many small files in a few folders, with links, empty folders and, if asked, a large file."""
    chance = random.Random(f"{seed} grove")
    seeds: dict[str, bytes | int | Link | None] = {"empty": None, "deep/er/empty": None, "link": Link("a/f0")}
    for number in range(count):
        folder = chance.choice(["", "a/", "a/b/", "c d/", "deep/er/"])
        seeds[f"{folder if number else 'a/'}f{number}"] = chance.choice([0, 1, 100, 4000, 30_000])
    if large:
        seeds["m/large"] = large
    return plant(root, seeds, seed=seed)


def facts(root: Path, *, own: bool = False) -> dict[str, Fact]:
    """Return all that has to arrive of a tree, by path, the store's own names left out; `own`: the folder itself, too.

    For folders this ends with their times, so read it before anything else is done there.
    """
    found = {}
    for path in [root] * own + [Path(at, name) for at, folders, files in os.walk(root) for name in folders + files]:
        name = os.path.relpath(path, root)
        if any(part.startswith(faults.RESERVED) for part in name.split("/")):
            continue
        status = path.lstat()
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[name] = Fact(stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
    return found


def same_facts(one: dict[str, Fact], other: dict[str, Fact]) -> None:
    """Fail the test unless both are the same; say what is not, and not all of it."""
    assert sorted(one) == sorted(other), f"only in one: {sorted(set(one) ^ set(other))[:10]}"
    wrong = []
    for name, fact in one.items():
        if fact != other[name]:
            wrong += [f"{name}: {f}" for f in Fact._fields if getattr(fact, f) != getattr(other[name], f)]
    assert not wrong, wrong[:10]


def same_trees(one: Path, other: Path, *, own: bool = True) -> None:
    """Fail the test unless both folders hold the same: bytes, modes, times, links; `own`, and are the same."""
    same_facts(facts(one, own=own), facts(other, own=own))


def contents(root: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder that may not be there, the store's own left out."""
    return {name: fact.content for name, fact in facts(root).items() if fact.content is not None}


def nothing_is_half(now: dict[str, bytes], *allowed: dict[str, bytes]) -> None:
    """Fail the test unless each file is one of the allowed versions of it."""
    for name, content in now.items():
        assert content in [version.get(name) for version in allowed], f"{name}: {len(content)} bytes"


def python_library(to: Path, packages: Iterable[str] | None = None) -> Path:
    """Copy the Python library, or some packages of it, with all that it knows of its files; return the copy."""
    source = Path(os.__file__).parent
    for name in packages or [path.name for path in source.iterdir() if path.name != "site-packages"]:
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name, symlinks=True)
        else:
            to.mkdir(exist_ok=True)
            shutil.copy2(source / name, to / name, follow_symlinks=False)
    return to


class Way:
    """One direction: `source` is a folder at one end, and `dest`, of the same name, where it arrives at the other.

    Arguments: `url` under which a server serves `base/root`.
    """

    def __init__(self, base: Path, direction: str, url: str):
        self.root, self.local = base / "root", base / "local"
        self.direction = direction
        self.url = url
        self.is_up = direction == "up"
        for folder in (self.root, self.local):
            folder.mkdir(exist_ok=True)
        here, there = (self.local, self.root) if self.is_up else (self.root, self.local)
        self.source, self.dest = here / "tree", there / "tree"

    def go(
        self, *, contents: bool = False, url: str | None = None, cancel: threading.Event | None = None, **choices: Any
    ) -> ftransfer.TransferResult:
        """Move the folder, or with `contents` what is in it. Raises what the client raises."""
        with ftransfer.connect(url or self.url, timeout=20, retry_for=10, cancel=cancel) as remote:
            if self.is_up:
                return remote.upload(f"{self.source}/" if contents else self.source, "tree" * contents, **choices)
            return remote.download("tree/" if contents else "tree", self.dest if contents else self.local, **choices)

    def leaves_nothing(self) -> None:
        """Fail the test if something staged, a journal or a lock stays at either end; the server may need a moment."""
        wait_until(lambda: not faults.reserved(self.root), "dropping what was staged")
        left = [path.relative_to(self.local).as_posix() for path in self.local.rglob("*")]
        left = [name for name in left if f"/{faults.RESERVED}" in f"/{name}"]
        assert not left, left

    def bodies(self, proxy: faults.Proxy) -> int:
        """Return the bytes of bodies that went over the line in this direction."""
        return proxy.up_bodies if self.is_up else proxy.down_bodies


def results(result: ftransfer.TransferResult) -> dict[str, int]:
    """Return the counts that are not zero: sent, same, skipped, stamped and so on."""
    words = ("sent", "same", "skipped", "stamped", "deleted", "failed", "vanished")
    words += ("would_send", "would_replace", "would_delete")
    return {word: result.count(word) for word in words if result.count(word)}


# By hand.


BAD_NAMES = ("..", "../x", "a/../../x", "/etc/x", "a//b", "a/", ".", ".ftransfer", "a/.FTRANSFER-x", "nul\0", "x" * 256)
"""Paths that no peer may name."""
PROTOCOL = {"out-of-turn", "bad-frame", "protocol", "bad-path"}
"""Codes of errors that end a connection because of what the peer said."""


def row(path: str, data: bytes = b"", **changed: Any) -> list[Any]:
    """Return the row of a packed file, right but for what is changed."""
    values = {"size": len(data), "hash": block_hash(data), "mtime": 10**18, "mode": 0o644} | changed
    return [path, *values.values()]


# Disks and rights.


class mounted:  # noqa: N801 - used as a function
    """A file system in memory, for a block; the test is skipped where there cannot be one."""

    def __init__(self, where: Path, options: str):
        if os.geteuid() != 0 or not sys.platform.startswith("linux"):
            pytest.skip("NOT TESTED: mounting needs root on Linux")
        self._where = str(where)
        where.mkdir(parents=True, exist_ok=True)
        (where.parent / "root").mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._where]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NOT TESTED: cannot mount here: {done.stderr.strip()}")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self._where], check=True)


def until_refused(act: Callable[[], object]) -> int | None:
    """Repeat something until the system refuses it; return its error number."""
    try:
        while True:
            act()
    except OSError as exc:
        return exc.errno


OVERRIDE, READ_SEARCH, DROP = 1, 2, 24
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)), PR_CAPBSET_DROP (prctl(2))."""
_BOUND = """\
import ctypes, os, sys
libc = ctypes.CDLL(None)
assert not any(libc.prctl({drop}, right, 0, 0, 0) for right in {rights})
os.execv(sys.argv[1], sys.argv[1:])
"""


def bound_by_rights() -> list[str] | None:
    """Return what stands before a command so that the permission bits count for it; None if that cannot be had here."""
    if os.geteuid() != 0:
        return []
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "prctl"):
        return None
    words = [sys.executable, "-c", _BOUND.format(drop=DROP, rights=(OVERRIDE, READ_SEARCH))]
    done = subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, check=False)
    return words if done.returncode == 0 else None


# Processes.


class TreeMother(Mother):
    """A process with ftransfer imported that forks children which move trees."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            )
        self._replies = self._sock.makefile("r")


def _move(direction: str, url: str, source: str, dest: str, rate: float | None = None) -> None:
    with ftransfer.connect(url, limit_rate=rate, timeout=10, retry_for=15) as remote:
        move = remote.upload if direction == "up" else remote.download
        result = move(source, dest, on_progress=_show)
        faults._say(f"result {result.count('sent')} {result.count('same')} {result.totals.resumed}")


def _show(event: ftransfer.Progress) -> None:
    faults._say(f"{event.phase} {event.files} {event.done}")


faults.CHILDREN["move"] = _move

if __name__ == "__main__":
    import ftransfer.treejobs

    faults._mother(socket.socket(fileno=int(sys.argv[1])))

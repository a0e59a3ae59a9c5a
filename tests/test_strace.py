"""What a server asks of the system while it is attacked: no path outside of what it serves, seen by strace(1).

Skipped, aloud, where there is no strace or nobody may trace.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from forests import BAD_NAMES
from support import Header, Peer, block_hash, server_process, wait_until
from test_hostile_client import vectors

import ftransfer
from ftransfer import statedir

LINKS = {
    "way out": "../outside",
    "straight out": None,
    "deep": "folder/inner",
    "nowhere": "../gone",
    "swing": "../outside",
}
"""Links in the root, which nothing may follow; None for the absolute path of what is outside."""
NEVER_FOLLOW = {"unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2", "readlink", "readlinkat", "mkdir"}
NEVER_FOLLOW |= {"mkdirat", "symlink", "symlinkat", "lstat", "link", "linkat"}
"""Calls that take a link for itself, but for `linkat` where it is told otherwise."""
CHANGING = re.compile("creat|mkdir|mknod|rename|^link|symlink|unlink|rmdir|truncate|chmod|chown|utim").search
"""Finds the names of calls that change something; those of descriptors are not seen."""


# What strace has seen.


class Seen(NamedTuple):
    """A call that names a path: as it is said, made absolute, what it led to if it opened something, and the line."""

    name: str
    word: str
    path: str
    opened: str
    line: str


_CALL = re.compile(r"(\w+)\((.*)\)\s+= (?:-?\d+|\?|0x\w+)(?:<([^>]*)>)?")
_WORD = re.compile(r'(?:AT_FDCWD|\d+)<([^>]*)>|"((?:[^"\\]|\\.)*)"')


def calls(text: str) -> Iterator[Seen]:
    """Yield the calls of one thread, from its log."""
    for line in text.splitlines():
        found = _CALL.match(line)
        if found is None:
            continue
        name, words, opened = found[1], _WORD.findall(found[2]), _named(found[3] or "")
        if name.startswith("symlink"):
            words = words[1:]  # what a link says is no path
        if name.startswith("readlink"):
            words = words[: next(at for at, (_, word) in enumerate(words) if word) + 1]  # what follows is the answer
        folder = os.getcwd()
        for fd_path, word in words:
            if fd_path:
                folder = _named(fd_path)
            elif word:  # with AT_EMPTY_PATH it is the descriptor itself
                yield Seen(name, word, os.path.normpath(os.path.join(folder, word)), opened, line)


def _named(path: str) -> str:
    """Return the path of a descriptor, without what strace adds of a file that was removed."""
    return path.removesuffix(" (deleted)")


def after_listening(text: str) -> str:
    """Return what a thread did after the server began to listen; all of it, if it is another thread."""
    return text[text.rfind("\nlisten(") + 1 :]


@pytest.fixture(scope="module")
def tracer() -> str:
    """The program, where it can be used."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run([program, "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()[:200]}")
    return program


# The attacks.


def ask(peer: Peer, requests: list[Header]) -> None:
    """Send requests one after the other, and read their answers; what is sent to us is not wanted any more then."""
    for t, request in enumerate(requests, 1):
        peer.send({"t": t} | request)
        while (made := peer.receive()) is not None and (made.get("more") or made["type"] not in FINAL):
            pass
        if made is None:
            return
        if made["type"] == "end":
            peer.send({"type": "error", "t": t, "code": "x", "message": ""})


FINAL = {
    "error",
    "done",
    "entries",
    "digest",
    "digests",
    "found",
    "staged",
    "end",
    "want",
    "receipt",
    "receipts",
    "ready",
}


def about(path: str) -> list[Header]:
    """Return every request about a path, and about what would lie below it."""
    below = f"{path}/secret"
    found: list[Header] = []
    for place in (path, below, f"{path}/new/er"):
        found += [{"type": kind, "path": place} for kind in ("stat", "list", "checksum", "get", "partials", "mkdir")]
        found += [{"type": "list", "path": place, "recursive": True, "links": "follow"}]
        found += [{"type": "mkdir", "path": place, "parents": True}]
        found += [{"type": "move", "path": "old", "target": below}]
        found += [{"type": "move", "path": below, "target": "moved"}, {"type": "remove", "path": below}]
        for kind in ("fetch", "stats", "checksums"):
            for names in ([place], ["old", place]):
                found.append({"type": kind, "path": "", "names": names} | FOLLOW.get(kind, {}))
            found.append({"type": kind, "path": place, "names": ["secret"]} | FOLLOW.get(kind, {}))
    return found


FOLLOW = {"fetch": {"links": "follow"}, "checksums": {"links": "follow"}}


def uploads(url: str, path: str) -> None:
    """Put files and trees below a path."""
    for place in (f"{path}/secret", f"{path}/new/er"):
        with Peer.dial(url) as peer:
            peer.send({"type": "put", "t": 1, "path": place, "size": 1})
            peer.send_block(1, 0, b"x")
            peer.hang_up()
            peer.drain()
        with Peer.dial(url) as peer:
            peer.send({"type": "tree", "t": 1, "path": place})
            if (peer.receive() or {}).get("type") != "ready":
                continue
            peer.send(
                {"type": "pack", "t": 1, "files": [["f", 1, block_hash(b"x"), 0, 420]], "body": 1, "now": True}, b"x"
            )
            peer.hang_up()
            peer.drain()


def packs(url: str) -> None:
    """Send links out, files and folders and stamps through them, and remove through them."""
    with Peer.dial(url) as peer:
        peer.send({"type": "tree", "t": 1, "path": ""})
        peer.expect("ready")
        names = [*LINKS, *(f"{name}/{inner}" for name in LINKS for inner in ("secret", "new", "new/er"))]
        digest = block_hash(b"x")
        for fields, body in (
            (
                {
                    "links": [
                        ["l1", "../outside", 1],
                        ["l2", "/etc", 1],
                        ["l3", "folder", 1],
                        ["l3/up", "../../outside", 1],
                    ]
                },
                b"",
            ),
            ({"files": [[f"{link}/secret", 1, digest, 0, 420] for link in ("l1", "l2", "l3", "l3/up")]}, b"xxxx"),
            ({"files": [[name, 1, digest, 0, 420] for name in names if "/" in name]}, b"x" * (3 * len(LINKS))),
            ({"folders": [[name, 1, 0o777] for name in names]}, b""),
            ({"stamps": [[name, 1, 0o777] for name in names]}, b""),
            ({"gone": [name for name in names if "/" in name]}, b""),
        ):
            peer.send({"type": "pack", "t": 1, "now": True, "body": len(body)} | fields, body)
            peer.expect("receipts")


def attack(url: str) -> None:
    """Do all of it; nothing is expected but that the server bears it."""
    for name in ("names", "packs"):
        for vector in vectors(name):
            with Peer.dial(url) as peer:
                peer.send_raw(bytes.fromhex(vector["bytes"]))
                peer.hang_up()
                peer.drain()
    for path in [*LINKS, *BAD_NAMES]:
        with Peer.dial(url) as peer:
            ask(peer, about(path))
        if path in LINKS:
            uploads(url, path)
    packs(url)
    with ftransfer.connect(url, retry_for=0) as remote:
        assert "folder/secret" in [entry.path for entry in remote.list("", recursive=True)]
        remote.upload(b"good", "good")


def swing(place: Path, outside: Path, stop: threading.Event) -> None:
    """Make a folder a link and the link a folder, again and again."""
    folder = place.with_name("swing folder")
    while not stop.is_set():
        try:
            place.unlink(missing_ok=True)
            folder.mkdir(exist_ok=True)
            folder.rename(place)
            stop.wait(0.001)
            shutil.rmtree(place, ignore_errors=True)
            place.symlink_to(outside)
        except OSError:
            pass  # something was put in it meanwhile
        stop.wait(0.001)


def only_read() -> dict[str, tuple[str, ...]]:
    """Return what a server may look at beside its root, and why."""
    return {
        "what Python imports late": (sys.base_prefix, *sys.path, *sysconfig.get_paths().values()),
        "the libraries of that": ("/etc/ld.so.cache", "/lib", "/usr/lib", "/etc/ssl/openssl.cnf"),
        "memory": ("/proc/sys/vm/overcommit_memory",),
        "the time zone of the log": ("/etc/localtime", "/usr/share/zoneinfo"),
    }


def is_below(path: str, folder: str) -> bool:
    """Tell whether a path is a folder or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def test_nothing_outside_of_the_root_is_touched(tracer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever clients ask for, by whatever names, through whatever links: no call names or reaches anything else.

    But for what Python loads and the server's state folder, of which only the latter is written to.
    """
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    root, outside = (tmp_path / "root").resolve(), (tmp_path / "outside").resolve()
    for folder in (root / "folder", outside):
        folder.mkdir(parents=True)
        (folder / "secret").write_bytes(b"secret")
    (root / "folder" / "inner").mkdir()
    (root / "old").write_bytes(b"old")
    for name, target in LINKS.items():
        (root / name).symlink_to(target or outside)
    log = tmp_path / "calls"
    options = ("-D", "-ff", "-y", "-s", "5000", "-o", str(log), "-e", "trace=%file,listen")
    stop = threading.Event()
    swinging = threading.Thread(target=swing, args=(root / "swing", outside, stop))
    with server_process(root, before=(tracer, *options)) as (url, _):
        swinging.start()
        try:
            attack(url)
        finally:
            stop.set()
            swinging.join()
    logs = list(tmp_path.glob("calls.*"))
    wait_until(lambda: all("+++ " in path.read_text(errors="replace")[-300:] for path in logs), "the end of the trace")
    found = [call for path in logs for call in calls(after_listening(path.read_text(errors="replace")))]
    assert len(found) > 500
    assert any(is_below(call.opened, str(root)) for call in found)
    assert faults(found, root) == []
    assert (outside / "secret").read_bytes() == b"secret"
    assert os.listdir(outside) == ["secret"]


def faults(found: list[Seen], root: Path) -> list[str]:
    """Return the lines of the calls that name or reach anything outside, or may follow a link."""
    ours = [os.path.realpath(path) for path in (root, statedir.default_path())]
    read = [path for paths in only_read().values() for one in paths for path in (one, os.path.realpath(one))]
    bad = []
    for call in found:
        changes = CHANGING(call.name) or "O_WRONLY" in call.line or "O_RDWR" in call.line
        allowed = ours if changes else ours + read
        named = [path for path in (call.path, call.opened) if path.startswith("/")]
        is_inside = all(any(is_below(path, folder) for folder in allowed) for path in named)
        is_link = is_below(call.path, str(root)) and os.path.basename(call.word) in LINKS
        follows = "SYMLINK_FOLLOW" in call.line if call.name in NEVER_FOLLOW else "NOFOLLOW" not in call.line
        if not is_inside or (is_link and follows):
            bad.append(call.line)
    return bad


def test_the_trace_is_understood(tmp_path: Path) -> None:
    """What would be a fault is found in lines as strace writes them, and what is none is not."""
    root = tmp_path / "root"
    good = [
        f'openat(9<{root}>, "way out", O_RDONLY|O_NOFOLLOW|O_CLOEXEC) = -1 ELOOP (Too many levels of symbolic links)',
        f'openat(9<{root}>, "old", O_RDONLY|O_NOFOLLOW) = 10<{root}/old>',
        f'newfstatat(9<{root}>, "way out", {{st_mode=S_IFLNK|0777, st_size=10, ...}}, AT_SYMLINK_NOFOLLOW) = 0',
        f'renameat(9<{root}>, ".ftransfer-1", 9<{root}>, "way out") = 0',
        f'symlinkat("../outside", 9<{root}>, "l") = 0',
        f'readlinkat(9<{root}>, "way out", "/etc/passwd", 4097) = 11',
        f'newfstatat(9<{root}/swing>, "", {{st_mode=S_IFDIR|0755, ...}}, AT_EMPTY_PATH) = 0',
    ]
    bad = [
        f'openat(9<{root}>, "way out", O_RDONLY) = 10<{tmp_path}/outside>',
        f'newfstatat(9<{root}>, "way out", {{st_mode=S_IFDIR|0755, ...}}, 0) = 0',
        f'openat(9<{root}>, "old", O_RDONLY|O_NOFOLLOW) = 10<{tmp_path}/outside/old>',
        f'unlinkat(9<{root}>, "../outside/secret", 0) = 0',
        f'renameat(9<{root}>, "a", 11<{tmp_path}/outside>, "a") = 0',
        'openat(AT_FDCWD</>, "/etc/passwd", O_RDONLY) = 5</etc/passwd>',
        'unlinkat(AT_FDCWD</>, "/usr/lib/x", 0) = 0',
        f'linkat(9<{root}>, "way out", 9<{root}>, "x", AT_SYMLINK_FOLLOW) = 0',
    ]
    assert faults(list(calls("\n".join(good + bad))), root) == bad

"""Clients that say anything valid in any order, with small names and numbers so that much of it fits together.

Whatever they find becomes a test of its own; their seeds are fixed.
"""

from __future__ import annotations

import logging
import random
import select
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import (
    Header,
    Peer,
    block_hash,
    content_of,
    frame,
    nothing_leaks,
    serves_well,
    token_for,
    wait_until,
)

import ftransfer
from ftransfer.statedir import StateDir
from ftransfer.users import Users

PATHS = ["a", "b", "d", "d/x", "d/y/z", "a/x", "link", "out", "out/secret", "é", "e\u0301", "gone", "d/link"]
DATA = [b"", b"x", b"hello", b"y" * 300, b"z" * 70_000]
HASHES = [block_hash(data) for data in DATA]
TOKENS = ["0" * 32, "1" * 32]
FINGERPRINTS = [None, "5-1", "300-1", "x"]
TIMES = [0, 1, -1, 10**18, (1 << 63) - 1]
MODES = [0, 0o644, 0o777, 0o7777, 0o400]
LENGTH = 30
"""Messages of one client."""
BATCH = 10
"""Clients of one server, before everything is as in the beginning again."""


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, and when its server was closed, no descriptor and no thread is left."""
    with nothing_leaks():
        yield


class Put(NamedTuple):
    """A file that was announced, and the bytes of it that were sent."""

    path: str
    size: int | None
    data: bytes | None = None


class Babbler:
    """Makes up messages; remembers what it has begun, so that most of them may come."""

    def __init__(self, seed: int):
        self.chance = random.Random(seed)
        self.paths = self.chance.sample(PATHS, 5)
        self.last = 0
        self.puts: dict[int, Put] = {}
        self.trees: list[int] = []
        self.gets: list[int] = []

    def one_of(self, *values: Any) -> Any:
        """Return one of these."""
        return self.chance.choice(values)

    def new(self) -> int:
        """Return a number for a request, mostly one that may come."""
        self.last += self.one_of(*[1] * 30, 2, 0)
        return max(self.last, 1)

    def of(self, numbers: Iterable[int]) -> int:
        """Return one of these numbers; now and then, or if there is none, any other."""
        known = list(numbers)
        if not known or self.chance.random() < 0.01:
            return self.chance.randint(1, self.last + 1)
        return int(self.chance.choice(known))

    def names(self) -> list[str]:
        """Return some paths."""
        return self.chance.choices(self.paths, k=self.chance.randint(0, 4))

    def put(self) -> tuple[Header, bytes]:
        """Announce a file."""
        size = self.one_of(None, *map(len, DATA))
        fields = {
            "path": self.one_of(*self.paths),
            "size": size,
            "fingerprint": self.one_of(*FINGERPRINTS),
            "mtime_ns": self.one_of(None, *TIMES),
            "mode": self.one_of(None, *MODES),
            "transfer": self.one_of(None, *TOKENS),
            "compare": self.one_of("quick", "none"),
            "if_exists": self.one_of("replace", "newer", "skip", "rename", "fail"),
            "resume": self.one_of(True, False),
            "wait": self.one_of(True, False),
        }
        t = self.new()
        self.puts[t] = Put(fields["path"], size)
        return {"type": "put", "t": t} | fields, b""

    def block(self) -> tuple[Header, bytes]:
        """Send bytes of a file, mostly all of them, once, and with the right hash."""
        t = self.of([t for t, put in self.puts.items() if put.data is None])
        put = self.puts.get(t, Put("a", None))
        fitting = [data for data in DATA if data and put.size in (None, len(data))]
        data = self.one_of(*(fitting or DATA[1:]))
        at = self.one_of(*[0] * 20, 1)
        right = block_hash(data[at:] or b"?")
        hex_digits = self.one_of(*[right] * 8, TOKENS[0])
        if t in self.puts and hex_digits == right and not at:
            self.puts[t] = put._replace(data=data)
        data = data[at:] or b"?"
        return {"type": "block", "t": t, "offset": at, "hash": hex_digits, "body": len(data)}, data

    def hole(self) -> tuple[Header, bytes]:
        """Send zeros."""
        t = self.of([t for t, put in self.puts.items() if put.data is None])
        put = self.puts.get(t, Put("a", None))
        length = self.one_of(*[put.size or 5] * 8, 300)
        if t in self.puts:
            self.puts[t] = put._replace(data=bytes(length))
        return {"type": "hole", "t": t, "offset": 0, "length": length}, b""

    def end(self) -> tuple[Header, bytes]:
        """Say that this was all of a file, mostly with what fits; then it mostly is."""
        t = self.of([t for t, put in self.puts.items() if put.data is not None or put.size == 0] or self.puts)
        put = self.puts.pop(t, Put("a", None, b"hello")) if self.chance.random() < 0.8 else Put("a", None, b"x")
        data = put.data or b""
        hex_digits = self.one_of(*[block_hash(data)] * 8, TOKENS[0])
        return {"type": "end", "t": t, "path": put.path, "size": len(data), "hash": hex_digits}, b""

    def tree(self) -> tuple[Header, bytes]:
        """Begin a tree."""
        policy = self.one_of("replace", "newer", "skip", "fail")
        t = self.new()
        self.trees.append(t)
        return {"type": "tree", "t": t, "path": self.one_of("", "", *self.paths), "if_exists": policy}, b""

    def pack(self) -> tuple[Header, bytes]:
        """Send some small files, links and the rest."""
        rows, body = [], b""
        for path in self.names():
            data = self.one_of(*DATA)
            hex_digits = block_hash(self.one_of(data, data, b"?"))
            rows.append([path, len(data), hex_digits, self.one_of(*TIMES), self.one_of(*MODES)])
            body += data
        made: Header = {"type": "pack", "t": self.of(self.trees), "files": rows, "body": len(body)}
        made["now"] = self.one_of(True, False)
        if self.one_of(True, False):
            made["links"] = [[path, self.one_of("a", "../a", "/etc", "d/x"), 1] for path in self.names()]
            made["folders"] = [[path, self.one_of(*TIMES), self.one_of(*MODES)] for path in self.names()]
            made["stamps"] = [[path, self.one_of(*TIMES), self.one_of(*MODES)] for path in self.names()]
            made["gone"] = self.names()
        return made, body + self.one_of(*[b""] * 60, b"!")

    def get(self) -> tuple[Header, bytes]:
        """Ask for a file."""
        t = self.new()
        self.gets.append(t)
        return {"type": "get", "t": t, "path": self.one_of(*self.paths), "wait": self.one_of(True, False)}, b""

    def fetch(self) -> tuple[Header, bytes]:
        """Ask for many files."""
        links = self.one_of("copy", "follow")
        return {
            "type": "fetch",
            "t": self.new(),
            "path": self.one_of("", *self.paths),
            "names": self.names(),
            "links": links,
        }, b""

    def taken(self) -> tuple[Header, bytes]:
        """Answer what is sent to us."""
        t, number = self.of(self.gets), self.chance.randrange(len(DATA))
        size, digest = len(DATA[number]), HASHES[number]
        found: Header = self.one_of(
            {"type": "want", "t": t, "ranges": [[0, None]], "more": self.one_of(True, False, False)},
            {"type": "want", "t": t, "ranges": [[at, 1] for at in range(self.chance.randint(0, 5))]},
            {"type": "stored", "t": t, "offset": 0, "ok": self.one_of(True, True, False)},
            {"type": "receipt", "t": t, "result": "stored", "path": "a", "size": size, "hash": digest},
        )
        return found, b""

    def request(self) -> tuple[Header, bytes]:
        """Ask for something else."""
        kind = self.one_of("list", "stat", "checksum", "mkdir", "remove", "move", "partials", "stats", "checksums")
        made: Header = {"type": kind, "t": self.new()}
        made["path"] = self.one_of(*self.paths, *[""] * (kind not in ("checksum", "mkdir", "remove", "move")))
        made |= {
            "list": {"recursive": self.one_of(True, False), "links": self.one_of("copy", "follow")},
            "checksum": {"algorithm": self.one_of("xxh128", "sha256", "md5")},
            "mkdir": {"parents": self.one_of(True, False)},
            "remove": {"recursive": self.one_of(True, False)},
            "move": {"target": self.one_of(*self.paths)},
            "partials": {"clear": self.one_of(True, False)},
            "stats": {"names": self.names()},
            "checksums": {"names": self.names(), "links": self.one_of("copy", "follow")},
        }.get(kind, {})
        return made, b""

    def life(self) -> tuple[Header, bytes]:
        """Say that we live."""
        t = self.of([*self.puts, *self.trees, *self.gets])
        return {"type": "working", "t": t, "phase": "x", "done": 0}, b""

    def over(self) -> tuple[Header, bytes]:
        """End something that was begun."""
        t = self.of([*self.puts, *self.trees, *self.gets])
        kind = "finish" if t in self.trees and self.one_of(True, False) else "error"
        self.puts.pop(t, None)
        self.trees = [other for other in self.trees if other != t]
        self.gets = [other for other in self.gets if other != t]
        return {"type": kind, "t": t} | ({"code": "x", "message": ""} if kind == "error" else {}), b""

    def message(self) -> tuple[Header, bytes]:
        """Make up the next message; now and then one that may not come."""
        kinds: list[Callable[[], tuple[Header, bytes]]] = [self.request]
        everything = self.chance.random() < 0.02
        if self.puts or self.trees or everything:
            kinds += [self.put, self.tree, self.over]
        if self.puts or everything:
            kinds += [self.block] * 3 + [self.hole, self.end, self.end, self.life]
        if self.trees or everything:
            kinds += [self.pack] * 4
        if self.gets or everything:
            kinds += [self.get, self.fetch, self.over, self.taken, self.taken, self.life]
        if not (self.puts or self.trees or self.gets):
            kinds += [self.put, self.put, self.tree, self.get, self.fetch]
        make: Callable[[], tuple[Header, bytes]] = self.one_of(*kinds)
        return make()

    def speech(self) -> list[bytes]:
        """Return what a client says."""
        said = [frame(header) + body for header, body in (self.message() for _ in range(LENGTH))]
        if self.one_of(True, False, False):
            said[-1] = said[-1][: self.chance.randrange(len(said[-1]) + 1)]
        return said


def furnish(root: Path) -> None:
    """Make what is talked about, and what must not be touched beside it."""
    outside = root.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(b"secret")
    shutil.rmtree(root)
    (root / "d").mkdir(parents=True)
    for name, data in (("a", b"hello"), ("d/x", b"y" * 300)):
        (root / name).write_bytes(data)
    (root / "out").symlink_to(outside)
    (root / "link").symlink_to("a")


def enter(url: str, token: str) -> Peer:
    """Return a connection that has said hello with this token."""
    peer = Peer.dial(url, greet=False)
    peer.send({"type": "hello", "versions": [1], "software": "tests", "token": token})
    peer.expect("welcome")
    return peer


def babble(server: ftransfer.Server, seeds: range, token: str | None = None) -> None:
    """Let clients talk, one after the other; they read now and then, and each leaves in its own way."""
    url = server.urls[0]
    for seed in seeds:
        babbler = Babbler(seed)
        with enter(url, token or token_for(url)) as peer:
            for data in babbler.speech():
                if not peer.try_to_send(data):
                    break
                if babbler.one_of(True, False):
                    hear(peer, babbler.one_of(0.0, 0.0, 0.001, 0.01))
            if babbler.one_of(True, True, True, False):
                try:
                    peer.hang_up()
                except OSError:
                    continue  # the server has left already
                peer.drain()
            else:
                peer.reset()


def hear(peer: Peer, seconds: float) -> None:
    """Read what has come, or comes within that time."""
    while select.select([peer.socket], [], [], seconds)[0]:
        try:
            if not peer.socket.recv(1 << 16):
                return
        except ConnectionError:
            return


def check(root: Path, seeds: range, caplog: pytest.LogCaptureFixture, **options: Any) -> None:
    """Fail the test if anything of it was an error of the server's own, or harmed what is beside the root."""
    caplog.set_level(logging.WARNING, "ftransfer.server")
    for start in range(seeds.start, seeds.stop, BATCH):
        furnish(root)
        with ftransfer.Server(root, timeout=5, **options) as server:
            babble(server, range(start, min(start + BATCH, seeds.stop)))
            wait_until(lambda: server.connection_count == 0, "the end of the connections")
            serves_well(server)
            with ftransfer.connect(server.urls[0], retry_for=0) as remote:
                assert all(entry.path for entry in remote.list("", recursive=True))
                remote.partials(clear=True)
        broken = [(record.getMessage(), str(record.exc_info)) for record in caplog.records if record.exc_info]
        assert broken == [], f"seeds from {start}"
        caplog.clear()
    outside = root.parent / "outside"
    assert (outside / "secret").read_bytes() == b"secret"
    assert [path.name for path in outside.iterdir()] == ["secret"]


@pytest.mark.parametrize("durable", [False, True], ids=["quick", "durable"])
def test_anything_in_any_order_is_borne(root: Path, caplog: pytest.LogCaptureFixture, durable: bool) -> None:
    """No error is the server's own, nothing beside the root is touched, and the next client is served."""
    check(root, range(40), caplog, durable=durable)


QUOTA = 1000


@pytest.mark.parametrize(
    "can", [("read",), ("create",), ("create", "read"), ("create", "read", "delete")], ids=", ".join
)
def test_nobody_does_what_they_may_not(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, can: tuple[str, ...]
) -> None:
    """Whatever is said in whatever order: rights and quota hold, and no error is the server's own."""
    caplog.set_level(logging.WARNING, "ftransfer.server")
    users = Users(StateDir(tmp_path / "state"))
    token = users.add("somebody", can=can, quota=QUOTA)
    for start in range(0, 40, BATCH):
        furnish(root)
        before = content_of(root)
        with ftransfer.Server(root, durable=False, timeout=5, state=tmp_path / "state") as server:
            babble(server, range(start, start + BATCH), token)
            wait_until(lambda: server.connection_count == 0, "the end of the connections")
        now = content_of(root)
        if can == ("read",):
            assert now == before
        if "delete" not in can:
            assert {name: now.get(name) for name in before} == before, start
        new = {name: value for name, value in now.items() if before.get(name) != value}
        assert sum(len(value[2] or b"") for value in new.values()) <= QUOTA
        assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    outside = root.parent / "outside"
    assert [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("secret", b"secret")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_much_more_of_it_is_borne(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same for thousands of clients."""
    check(root, range(1000, 5000), caplog, durable=False)

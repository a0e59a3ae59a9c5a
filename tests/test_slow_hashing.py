"""Where an end has no xxHash: blocks go by BLAKE2b, whole files by SHA-256 over ssh, and the bytes are the same."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command import COMMAND, Ran, run, run_here
from faults import Plan, Proxy, journals, noise, reserved
from forests import contents, grove, same_trees
from hypothesis import given
from hypothesis import strategies as st
from support import FakeServer, Header, Peer, block_hash, put, server_process, token_for, wait_until, welcomed

import ftransfer
from ftransfer import digests, errors, link, pacing, wire
from ftransfer.store.base import Grain
from ftransfer.store.journal import decode_head, decode_records

MIB = 1 << 20
SIZE = 2 * MIB + 123
LARGE = 5 * MIB
"""Size of a file that no pack holds."""
MOST_ROUNDS = 16
"""Times that a sender bears to be asked for more after the end."""
DIRECTIONS = ("up", "down")
TURNS = (("slow", "quick"), ("quick", "slow"))


def blake2b(data: bytes) -> str:
    """Return the hash of a block where it is not XXH3-128."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def sha256(data: bytes) -> str:
    """Return the digest of a whole file where it is not XXH3-128."""
    return hashlib.sha256(data).hexdigest()


HASHES = {"xxh128": block_hash, "blake2b": blake2b, "sha256": sha256}


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that takes xxHash away, the module and the way to the system's library."""
    folder = tmp_path_factory.mktemp("hidden")
    for name in ("xxhash", "ctypes"):
        (folder / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')\n")
    return folder


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client tries again after a hundredth of a second."""
    monkeypatch.setattr(link, "FIRST_DELAY", 0.01)


# Servers of one folder, by ft://.


class Servers(NamedTuple):
    """A served folder, and the addresses of the two that serve it: one has no xxHash, the other has."""

    root: Path
    slow: str
    quick: str


@pytest.fixture(scope="module")
def servers(hidden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A process without xxHash and a server in this one; all tests here use it, each has its own names in it."""
    root = tmp_path_factory.mktemp("root")
    before = ("env", f"PYTHONPATH={hidden}")
    with server_process(root, "--no-sync", before=before) as (url, _), ftransfer.Server(root, durable=False) as quick:
        yield Servers(root, url, quick.urls[0])


@contextmanager
def greeted(url: str, *features: str) -> Iterator[tuple[Peer, Header]]:
    """Connect by hand as a client with these features; give the connection and the welcome."""
    with Peer.dial(url, greet=False) as peer:
        hello = {"type": "hello", "versions": [1], "software": "tests", "token": token_for(url)}
        peer.send(hello | ({"features": list(features)} if features else {}))
        yield peer, peer.expect("welcome")


@pytest.mark.parametrize(
    ("features", "blocks"), [((), "xxh128"), (("other",), "xxh128"), (("other", "blake2b"), "blake2b")]
)
@pytest.mark.parametrize("algorithm", ["xxh128", "sha256"])
def test_blocks_are_hashed_by_what_was_agreed(
    servers: Servers, tmp_path: Path, features: tuple[str, ...], blocks: str, algorithm: str
) -> None:
    """A slow server asks for BLAKE2b, but not a client that does not know it; another hash is a damaged block."""
    data, path = noise(70_000), f"{tmp_path.name}.bin"
    (other,) = {"xxh128", "blake2b"} - {blocks}
    with greeted(servers.slow, *features) as (peer, welcome):
        assert welcome.get("blocks", "xxh128") == blocks
        assert ("blocks" in welcome) == (blocks != "xxh128")
        put(peer, 1, path, len(data), algorithm=algorithm)
        peer.send_block(1, 0, data, hash=HASHES[other](data))
        peer.expect("stored", t=1, offset=0, ok=False)
        peer.send_block(1, 0, data, hash=HASHES[blocks](data))
        peer.expect("stored", t=1, offset=0, ok=True)
        peer.send_end(1, path, data, hash=HASHES[algorithm](data))
        peer.expect("receipt", t=1, result="stored", hash=HASHES[algorithm](data))
        peer.send({"type": "get", "t": 2, "path": path, "algorithm": algorithm})
        peer.expect("file", t=2, size=len(data))
        peer.expect("block", t=2, offset=0, hash=HASHES[blocks](data), body=len(data))
        peer.send({"type": "stored", "t": 2, "offset": 0, "ok": True})
        peer.expect("end", t=2, hash=HASHES[algorithm](data))
    assert (servers.root / path).read_bytes() == data


def test_a_file_of_another_hash_than_its_end_says_is_refused(servers: Servers, tmp_path: Path) -> None:
    """Right blocks do not make up for a wrong whole: nothing gets the name."""
    data, path = noise(1000), f"{tmp_path.name}.bin"
    with greeted(servers.slow, "blake2b") as (peer, _):
        put(peer, 1, path, len(data), algorithm="sha256")
        peer.send_block(1, 0, data, hash=blake2b(data))
        peer.expect("stored", t=1, ok=True)
        peer.send_end(1, path, data, hash=sha256(data[::-1]))
        peer.expect("error", t=1, code="integrity")
    assert not (servers.root / path).exists()


def test_a_server_with_xxhash_is_never_asked_for_less(servers: Servers) -> None:
    """Whatever the client can, its blocks are XXH3-128."""
    for features in ((), ("blake2b",)):
        with greeted(servers.quick, *features) as (_, welcome):
            assert "blocks" not in welcome


def test_a_hole_is_kept_by_the_hash_that_was_agreed(servers: Servers, tmp_path: Path) -> None:
    """Cut behind it, the transfer goes on behind it: read back, its zeros are what was accepted."""
    size, path, data = 1 << 17, f"{tmp_path.name}.bin", noise(1 << 16)
    whole = bytes(size) + data
    asked = {"fingerprint": "f", "wait": True, "algorithm": "sha256"}
    with greeted(servers.slow, "blake2b") as (peer, _):
        put(peer, 1, path, len(whole), **asked)
        peer.expect("want", ranges=[[0, len(whole)]])
        peer.send({"type": "hole", "t": 1, "offset": 0, "length": size})
        peer.expect("stored", offset=0, ok=True)
    assert [grain.hash for grain in _journaled(servers.root, path)] == [blake2b(bytes(size))]
    with greeted(servers.slow, "blake2b") as (peer, _):
        put(peer, 1, path, len(whole), **asked)
        peer.expect("want", ranges=[[size, len(data)]])
        peer.send_block(1, size, data, hash=blake2b(data))
        peer.expect("stored", offset=size, ok=True)
        peer.send_end(1, path, whole, hash=sha256(whole))
        peer.expect("receipt", result="stored", inherited=size)
    assert (servers.root / path).read_bytes() == whole


def test_a_client_does_as_the_welcome_says(tmp_path: Path) -> None:
    """It says hello with the feature, hashes its blocks as it is told, and takes no word that it does not know."""
    said: list[Header] = []

    def script(peer: Peer) -> None:
        said.append(peer.expect("put"))
        said.append(peer.expect("block"))
        peer.send({"type": "stored", "t": said[0]["t"], "offset": 0, "ok": True})
        end = peer.expect("end")
        taken = {name: end[name] for name in ("t", "path", "size", "hash")}
        peer.send({"type": "receipt", "result": "stored", "durable": True} | taken)
        assert peer.is_closed_by_peer()

    (tmp_path / "file").write_bytes(b"some bytes")
    with FakeServer(welcomed(script, blocks="blake2b")) as fake, ftransfer.connect(fake.url, retry_for=0) as remote:
        result = remote.upload(tmp_path / "file", "in/").files[0]
    assert said[1]["hash"] == blake2b(b"some bytes")
    assert str(result.digest) == f"{said[0].get('algorithm', 'xxh128')}:{result.digest and result.digest.hex}"

    def refused(peer: Peer) -> None:
        said.append(peer.expect("hello"))
        peer.send({"type": "welcome", "version": 1, "software": "x", "session": "0" * 32, "blocks": "md5"})
        peer.receive()

    with FakeServer(refused) as fake, pytest.raises(errors.ProtocolError):
        ftransfer.connect(fake.url, retry_for=0).ping()
    assert said[-1]["features"] == ["blake2b"]


@pytest.mark.parametrize("algorithm", [None, "xxh128", "sha256"])
def test_a_slow_server_by_ft_does_all_that_another_does(
    servers: Servers, tmp_path: Path, algorithm: str | None
) -> None:
    """Files, holes, streams and folders, with the digest that was asked for, or one of the two."""
    name, data = tmp_path.name, noise(300_000)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "sparse", "wb") as file:
        file.seek(MIB)
        file.write(data)
    sparse = bytes(MIB) + data
    grove(tmp_path / "tree", 20, large=LARGE)
    options: dict[str, Any] = {"algorithm": algorithm}
    with ftransfer.connect(servers.slow, timeout=20, retry_for=0) as remote:
        for source, path, content in (
            (tmp_path / "file", f"{name}/file", data),
            (tmp_path / "sparse", f"{name}/sparse", sparse),
            (io.BytesIO(data), f"{name}/stream", data),
        ):
            up = remote.upload(source, path, **options).files[0]
            assert (servers.root / path).read_bytes() == content
            down = remote.download(path, tmp_path / "back", if_exists="replace", compare="none", **options).files[0]
            assert (tmp_path / "back").read_bytes() == content
            for digest in (up.digest, down.digest):
                assert digest is not None
                assert digest.algorithm == (algorithm or digest.algorithm)
                assert digest.hex == HASHES[digest.algorithm](content)
        remote.upload(tmp_path / "tree", f"{name}/", **options)
        remote.download(f"{name}/tree", tmp_path / "copy/", **options)
        assert remote.verify_folder(tmp_path / "copy/tree", f"{name}/tree", **options).is_same
    same_trees(tmp_path / "tree", servers.root / name / "tree")
    same_trees(tmp_path / "tree", tmp_path / "copy/tree")


# Cut at one server, gone on with at another.


def _move(direction: str, url: str, here: Path, path: str, **options: Any) -> ftransfer.TransferResult:
    """Move `here/file` up to `path`, or `path` down to `here/file`."""
    with ftransfer.connect(url, timeout=20, **options) as remote:
        if direction == "up":
            return remote.upload(here / "file", path)
        return remote.download(path, here / "file")


def _interrupted(direction: str, servers: Servers, turn: str, here: Path, path: str, count: int) -> list[Grain]:
    """Cut a transfer after so many bytes, and return what is left of it; the grains are of the least size."""
    url, is_up = getattr(servers, turn), direction == "up"
    plan = Plan(cut_up=count) if is_up else Plan(cut_down=count)
    with pytest.MonkeyPatch.context() as patch, Proxy(url, plan) as proxy:
        patch.setattr(pacing, "BLOCK_SECONDS", 0)
        patch.setattr(pacing, "FIRST_BLOCK", wire.MIN_BLOCK)
        with pytest.raises(errors.ConnectionLost):
            _move(direction, proxy.url, here, path, retry_for=0)
        return _journaled(servers.root, path) if is_up else _journaled(here, "file")


def _journaled(folder: Path, path: str) -> list[Grain]:
    """Return the grains that a journal below a folder has of a path, as soon as nobody writes to it any more."""
    for journal in journals(folder):
        found = decode_head(journal.read_bytes())
        if found is not None and found[0].path == path:
            wait_until(lambda: _is_free(journal), "letting go of what was cut")  # noqa: B023 - at once
            head, start = found
            return [*decode_records(journal.read_bytes()[start:], head.salt, head.size or 0).values()]
    return []


def _is_free(journal: Path) -> bool:
    with open(journal, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("turns", TURNS, ids="-".join)
@pytest.mark.parametrize("is_changed", [False, True], ids=["as it was", "changed"])
def test_another_server_goes_on_with_what_was_cut(
    servers: Servers, tmp_path: Path, direction: str, turns: tuple[str, str], is_changed: bool
) -> None:
    """The journal has hashes of the other kind: what cannot be checked by them comes again, and nothing is spliced.

    Nor is it where the source was changed so that its size and time do not tell.
    """
    data, name = noise(SIZE), f"{tmp_path.name}.bin"
    path, here = f"in/{name}", tmp_path / "here"
    here.mkdir()
    (servers.root / "in").mkdir(exist_ok=True)
    source, target = (here / "file", servers.root / path)[:: 1 if direction == "up" else -1]
    source.write_bytes(data)
    grains = _interrupted(direction, servers, turns[0], here, path, MIB)
    assert grains
    for grain in grains:
        assert grain.hash == HASHES["blake2b" if turns[0] == "slow" else "xxh128"](data[grain.offset : grain.end])
    if is_changed:
        before, data = source.stat(), bytes(byte ^ 1 for byte in data[:MIB]) + data[MIB:]
        source.write_bytes(data)
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = _move(direction, getattr(servers, turns[1]), here, path, retry_for=10).files[0]
    assert target.read_bytes() == data
    assert (result.result, result.digest and result.digest.hex) == ("sent", block_hash(data))
    assert 0 <= result.resumed_from <= sum(grain.length for grain in grains)
    assert name not in " ".join(reserved(servers.root))
    assert (_journaled(servers.root, path), reserved(here)) == ([], [])


@pytest.mark.parametrize("turns", TURNS, ids="-".join)
def test_many_blocks_may_have_hashes_of_the_other_kind(
    servers: Servers, tmp_path: Path, turns: tuple[str, str]
) -> None:
    """However many there are, one command ends it."""
    data, path = noise(SIZE), f"{tmp_path.name}.bin"
    (tmp_path / "file").write_bytes(data)
    assert len(_interrupted("up", servers, turns[0], tmp_path, path, SIZE - MIB // 4)) > MOST_ROUNDS
    _move("up", getattr(servers, turns[1]), tmp_path, path, retry_for=10)
    assert (servers.root / path).read_bytes() == data


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_slow_server_goes_on_with_what_it_has(servers: Servers, tmp_path: Path, direction: str) -> None:
    """Read back and compared by the hash that it was accepted by, what was there is not sent again."""
    data, path = noise(SIZE), f"{tmp_path.name}.bin"
    source, target = (tmp_path / "file", servers.root / path)[:: 1 if direction == "up" else -1]
    source.write_bytes(data)
    assert _interrupted(direction, servers, "slow", tmp_path, path, SIZE // 2)
    result = _move(direction, servers.slow, tmp_path, path, retry_for=10).files[0]
    assert target.read_bytes() == data
    assert result.resumed_from > 0
    assert result.sent_bytes == SIZE - result.resumed_from


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_damaged_on_the_way_is_sent_again(servers: Servers, tmp_path: Path, direction: str) -> None:
    """BLAKE2b finds it as XXH3 does."""
    data, path = noise(SIZE), f"{tmp_path.name}.bin"
    source, target = (tmp_path / "file", servers.root / path)[:: 1 if direction == "up" else -1]
    source.write_bytes(data)
    plan = Plan(flip_up=MIB) if direction == "up" else Plan(flip_down=MIB)
    with Proxy(servers.slow, plan) as proxy:
        result = _move(direction, proxy.url, tmp_path, path, retry_for=0).files[0]
    assert target.read_bytes() == data
    assert result.sent_bytes > SIZE


@pytest.mark.parametrize("algorithm", digests.TRANSFER_ALGORITHMS)
def test_a_lost_receipt_is_repeated(servers: Servers, tmp_path: Path, algorithm: str) -> None:
    """With the digest by the same algorithm, and nothing is sent twice."""
    data, path = noise(100_000), f"{tmp_path.name}.bin"
    with Proxy(servers.slow, Plan(cut_at_down="receipt")) as proxy:
        with ftransfer.connect(proxy.url, timeout=20, retry_for=10) as remote:
            result = remote.upload(data, path, algorithm=algorithm).files[0]
        assert (proxy.connections, proxy.up_bodies) == (2, len(data))
    assert str(result.digest) == f"{algorithm}:{HASHES[algorithm](data)}"
    assert (servers.root / path).read_bytes() == data


@pytest.mark.parametrize("turns", [("blake2b", "xxh128"), ("xxh128", "blake2b")], ids="-".join)
def test_a_stream_that_waits_for_a_damaged_block_goes_on_by_another_hash(turns: tuple[str, str]) -> None:
    """What came too early was accepted on a connection that has gone; it goes out once, and counts."""
    data, size = noise(3 << 16), 1 << 16
    hashes = [HASHES[name] for name in turns]
    described = {"type": "file", "size": len(data), "mtime_ns": 1, "fingerprint": "f"}

    def block(peer: Peer, t: int, offset: int) -> None:
        piece = data[offset : offset + size]
        peer.send_block(t, offset, piece, hash=hashes[0](piece))
        peer.expect("stored", offset=offset, ok=True)

    def first(peer: Peer) -> None:
        t = peer.expect("get")["t"]
        peer.send(described | {"t": t})
        peer.send_block(t, 0, data[:size], hash="0" * 32)
        peer.expect("stored", ok=False)
        block(peer, t, size)

    def second(peer: Peer) -> None:
        t = peer.expect("get", wait=True)["t"]
        peer.send(described | {"t": t})
        while (asked := peer.expect_any_of("want", "receipt"))["type"] == "want":
            for offset, _ in asked["ranges"]:
                block(peer, t, offset)
            peer.send_end(t, "file", data)

    def script(peer: Peer) -> None:
        welcomed(first if fake.connections == 1 else second, blocks=turns[fake.connections - 1])(peer)
        hashes.pop(0)

    out = io.BytesIO()
    with FakeServer(script) as fake, ftransfer.connect(fake.url, timeout=20, retry_for=10) as remote:
        remote.download("file", out)
        assert out.getvalue() == data


# By ssh: a program that ignores its host and runs its last word takes its place.

_SSH = """
import json, os, subprocess, sys, threading
with open(sys.argv[1]) as file:
    line, *others = json.load(file)
if others:
    with open(sys.argv[1], "w") as file:
        json.dump(others, file)
os.environ["NODE"] = line["node"]
if line["cut_up"] is line["cut_down"] is None:
    os.execlp("sh", "sh", "-c", sys.argv[-1])
child = subprocess.Popen(["sh", "-c", sys.argv[-1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

def pump(source, sink, cut):
    at = 0
    try:
        while data := os.read(source, 1 << 16):
            at, left = at + len(data), memoryview(data)
            left = left[: len(data) - max(0, at - cut)] if cut is not None else left
            while left:
                left = left[os.write(sink, left) :]
            if cut is not None and at >= cut:
                break
    except OSError:
        pass
    for fd in (source, sink):
        os.close(fd)

up = (0, os.dup(child.stdin.fileno()), line["cut_up"])
down = (os.dup(child.stdout.fileno()), 1, line["cut_down"])
child.stdin.close()
child.stdout.close()
for way in up, down:
    thread = threading.Thread(target=pump, args=way, daemon=True)
    thread.start()
status = child.wait()
thread.join()
os._exit(status)
"""


class Line(NamedTuple):
    """What one connection is: to which node, and after how many bytes it is cut."""

    node: str = "slow"
    cut_up: int | None = None
    cut_down: int | None = None


class There:
    """The other machine, which has a slow and a quick node with the same files.

    Arguments: `base`, an empty folder; `hidden`, what takes xxHash away; `words` that are added to `serve --stdio`.
    """

    def __init__(self, base: Path, hidden: Path, *words: object):
        self.root, self.state, self._lines = base / "root", base / "state", base / "lines"
        self.root.mkdir(parents=True)
        command = base / "ftransfer"
        command.write_text(
            f"""#!/bin/sh
unset PYTHONPATH
if [ "$NODE" = slow ]; then export PYTHONPATH={shlex.quote(str(hidden))}; fi
export FTRANSFER_STATE={shlex.quote(str(self.state))}
exec {shlex.join(COMMAND)} "$@" {shlex.join(map(str, words))}
"""
        )
        command.chmod(0o755)
        (base / "ssh.py").write_text(_SSH)
        self.ssh = shlex.join([sys.executable, "-IS", str(base / "ssh.py"), str(self._lines)])
        self.command = shlex.quote(str(command))
        self.leads_to(Line())

    def leads_to(self, *lines: Line) -> None:
        """Say where the next connections lead; those after them are like the last."""
        self._lines.write_text(json.dumps([line._asdict() for line in lines]))

    def url(self, path: str = "") -> str:
        """Return the address of something in the root."""
        return f"ssh://there{self.root}/{path}"

    def words(self, command: str, *words: object) -> list[object]:
        """Return the words of a command, with how to get there."""
        return [command, "--ssh", self.ssh, "--remote-command", self.command, *words]

    def run(self, *words: object) -> Ran:
        """Run a command."""
        return run_here(*self.words(*map(str, words)))

    def connect(self, url: str | None = None, **options: Any) -> ftransfer.Remote:
        """Return a Remote of the root."""
        options = {"timeout": 20, "retry_for": 10} | options
        return ftransfer.connect(url or self.url(), ssh=self.ssh, remote_command=self.command, **options)

    def leaves_nothing(self) -> None:
        """Fail the test if something unfinished lies there."""
        assert (reserved(self.root), reserved(self.state)) == ([], [])


@pytest.fixture
def there(tmp_path: Path, hidden: Path) -> There:
    """Another machine; its nodes are slow."""
    return There(tmp_path / "there", hidden)


def _files(folder: Path) -> list[bytes]:
    return [content for content in contents(folder).values() if isinstance(content, bytes)]


def _notes(ran: Ran) -> int:
    return len([line for line in ran.err.splitlines() if "xxHash" in line])


def test_a_file_goes_up_and_down_by_sha256(there: There, tmp_path: Path) -> None:
    """Status 0, the same bytes, the digest in the output, and the reason for it said once; verify says the same."""
    data = noise(SIZE)
    (tmp_path / "big").write_bytes(data)
    digest = f"sha256:{sha256(data)}"
    ran = there.run("upload", "--json", tmp_path / "big", there.url("in/"))
    file, summary = map(json.loads, ran.out.splitlines())
    assert (ran.status, file["result"], file["digest"], summary["failed"]) == (0, "sent", digest, 0)
    assert (there.root / "in/big").read_bytes() == data
    ran = there.run("download", "-v", there.url("in/big"), tmp_path / "back")
    assert (ran.status, _notes(ran)) == (0, 1)
    assert digest in ran.err
    assert (tmp_path / "back").read_bytes() == data
    ran = there.run("verify", tmp_path / "back", there.url("in/big"))
    assert (ran.status, ran.out, _notes(ran)) == (0, f"same: {tmp_path / 'back'}  {digest}\n", 1)
    (tmp_path / "back").write_bytes(data[:-1])
    ran = there.run("verify", "-q", tmp_path / "back", there.url("in/big"))
    assert (ran.status, ran.out, ran.err) == (1, "", "")
    there.leaves_nothing()


def test_a_quick_node_says_nothing_and_hashes_by_xxh3(there: There, tmp_path: Path) -> None:
    """The same command where there is xxHash."""
    there.leads_to(Line("quick"))
    (tmp_path / "a").write_bytes(b"hello")
    ran = there.run("upload", "--json", tmp_path / "a", there.url())
    assert json.loads(ran.out.splitlines()[0])["digest"] == f"xxh128:{block_hash(b'hello')}"
    assert ran.err == ""


def test_the_note_is_for_those_who_want_it(there: There, tmp_path: Path) -> None:
    """Quiet commands do not say it, and programs are told it by their callback, once for all connections."""
    (tmp_path / "a").write_bytes(b"hello")
    assert there.run("upload", "-q", tmp_path / "a", there.url()) == (0, "", "")
    said: list[str] = []
    with there.connect(on_message=said.append) as remote:
        assert remote.checksum("a").hex == block_hash(b"hello")
        remote.close()
        remote.download("a", tmp_path / "b")
    assert ["xxHash" in line for line in said] == [True]


def test_folders_go_up_and_down_by_sha256(there: There, tmp_path: Path) -> None:
    """Packs, large files, links; both ends compare by it, and what is there is not sent again."""
    tree = grove(tmp_path / "tree", 20, large=LARGE)
    ran = there.run("upload", "--json", tree, there.url())
    *files, summary = map(json.loads, ran.out.splitlines())
    assert (ran.status, summary["failed"], _notes(ran)) == (0, 0, 1)
    digested = [file["digest"] for file in files if file["digest"]]
    assert sorted(digested) == sorted(f"sha256:{sha256(data)}" for data in _files(tree))
    same_trees(tree, there.root / "tree")
    ran = there.run("download", there.url("tree"), tmp_path / "copy/")
    assert (ran.status, _notes(ran)) == (0, 1)
    same_trees(tree, tmp_path / "copy/tree")
    ran = there.run("verify", "--json", tmp_path / "copy/tree", there.url())
    *verdicts, summary = map(json.loads, ran.out.splitlines())
    assert (ran.status, summary["different"]) == (0, 0)
    assert {v["remote_digest"][:7] for v in verdicts if v["remote_digest"]} == {"sha256:"}
    os.utime(tmp_path / "copy/tree/a/f0")
    ran = there.run("upload", "--json", "--compare", "hash", tmp_path / "copy/tree", there.url())
    assert json.loads(ran.out.splitlines()[-1])["sent"] == 0
    there.leaves_nothing()


def test_what_is_asked_for_is_done_slowly(there: There, tmp_path: Path) -> None:
    """`--algorithm xxh128` gives the right XXH3 for files and folders, both ways, and in verify."""
    data = noise(200_000)
    (tmp_path / "tree").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "tree/a").write_bytes(data)
    digest = f"xxh128:{block_hash(data)}"
    words = ("--json", "--algorithm", "xxh128")
    for source, dest in ((tmp_path / "tree/a", there.url("b")), (tmp_path / "tree", there.url())):
        assert digest in there.run("upload", *words, source, dest).out
    for path in ("b", "tree"):
        assert digest in there.run("download", *words, there.url(path), tmp_path / "back/").out
    ran = there.run("verify", "--algorithm", "xxh128", tmp_path / "back/b", there.url("tree/a"))
    assert (ran.status, ran.out) == (0, f"same: {tmp_path / 'back/b'}  {digest}\n")
    same_trees(tmp_path / "tree", tmp_path / "back/tree")


def test_checksums_are_the_usual_ones(there: There, tmp_path: Path) -> None:
    """Lists from there can be compared with those of other tools, and checked."""
    tree = grove(there.root / "tree", 5)
    for words, algorithm in (((), block_hash), (("--algorithm", "sha256"), sha256)):
        ran = there.run("checksum", "-r", *words, there.url("tree"))
        assert ran.status == 0
        assert sorted(re.findall(r"^([0-9a-f]+)  ", ran.out, re.MULTILINE)) == sorted(map(algorithm, _files(tree)))
        (tmp_path / "SUMS").write_text(ran.out)
        assert there.run("checksum", "--check", tmp_path / "SUMS", "ssh://there/").status == 0
    one = there.run("checksum", there.url("tree/a/f0"))
    assert one.out.split()[0] == block_hash((tree / "a/f0").read_bytes())


def test_streams_go_both_ways(there: There) -> None:
    """Standard input, standard output, and what an API's caller makes of them."""
    data = noise(SIZE)
    ran = run(*there.words("upload", "-", there.url("stdin")), stdin=data)
    assert (ran.status, ran.out, _notes(ran)) == (0, "", 1)
    assert (there.root / "stdin").read_bytes() == data
    out = io.BytesIO()
    with there.connect() as remote:
        result = remote.upload(iter([data[:MIB], data[MIB:]]), "pieces").files[0]
        assert str(result.digest) == f"sha256:{sha256(data)}"
        result = remote.download("pieces", out).files[0]
        assert str(result.digest) == f"sha256:{sha256(data)}"
    assert out.getvalue() == data
    (there.root / "text").write_text("hello\n")
    ran = there.run("download", "--json", there.url("text"), "-")
    assert (ran.status, ran.out) == (0, "hello\n")
    there.leaves_nothing()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("turns", TURNS, ids="-".join)
def test_the_next_connection_may_lead_to_another_node(
    there: There, tmp_path: Path, direction: str, turns: tuple[str, str]
) -> None:
    """Cut in the middle, one command goes on there: by its own digest to the end, with the hash of each connection."""
    data = noise(SIZE)
    here = tmp_path / "here"
    here.mkdir()
    source, target = (here / "file", there.root / "file")[:: 1 if direction == "up" else -1]
    source.write_bytes(data)
    first = Line(turns[0], cut_up=MIB) if direction == "up" else Line(turns[0], cut_down=MIB)
    there.leads_to(first, Line(turns[1]))
    said: list[str] = []
    with there.connect(on_message=said.append) as remote:
        result = (remote.upload(source, "file") if direction == "up" else remote.download("file", target)).files[0]
    algorithm = "sha256" if turns[0] == "slow" else "xxh128"
    assert str(result.digest) == f"{algorithm}:{HASHES[algorithm](data)}"
    assert target.read_bytes() == data
    assert len(said) == (turns[0] == "slow")
    assert reserved(here) == []
    there.leaves_nothing()


def test_a_folder_goes_on_at_another_node(there: There, tmp_path: Path) -> None:
    """The packs that were cut are sent again, the large file with them, all by the digest that was chosen first."""
    tree = grove(tmp_path / "tree", 20, large=LARGE)
    there.leads_to(Line("slow", cut_up=MIB), Line("quick", cut_up=MIB), Line("slow"))
    with there.connect() as remote:
        remote.upload(tree)
    same_trees(tree, there.root / "tree")
    there.leads_to(Line("quick", cut_down=MIB), Line("slow"))
    with there.connect() as remote:
        remote.download("tree", tmp_path / "copy/")
    same_trees(tree, tmp_path / "copy/tree")
    there.leaves_nothing()


def test_a_drop_box_takes_what_is_new(tmp_path: Path, hidden: Path) -> None:
    """`--anonymous create` on a slow machine: new files and folders come in; what is there stays and is not shown."""
    there = There(tmp_path / "there", hidden, tmp_path / "box", "--anonymous", "create")
    (tmp_path / "box").mkdir()
    tree = grove(tmp_path / "tree", 10, large=LARGE)
    for source, address in ((tree / "m/large", "ssh://there/large"), (tree, "ssh://there/")):
        ran = there.run("upload", source, address)
        assert (ran.status, _notes(ran)) == (0, 1), ran.err
    assert (tmp_path / "box/large").read_bytes() == (tree / "m/large").read_bytes()
    assert contents(tmp_path / "box/tree") == contents(tree)
    before = contents(tmp_path / "box")
    (tree / "a/f0").write_bytes(b"other bytes")
    assert there.run("upload", tree / "a/f0", "ssh://there/large").status == 5
    ran = there.run("upload", "--json", tree, "ssh://there/")
    failed = [json.loads(line) for line in ran.out.splitlines()]
    assert {file["path"] for file in failed if file.get("result") == "failed"} == {"tree/a/f0", "tree/m/large"}
    assert there.run("download", "ssh://there/large", tmp_path / "back").status == 5
    assert contents(tmp_path / "box") == before
    assert reserved(tmp_path / "box") == []


@pytest.mark.parametrize("node", ["quick", "slow"])
def test_the_client_may_be_the_slow_one(there: There, tmp_path: Path, hidden: Path, node: str) -> None:
    """What was copied to a machine without xxHash is a client, too, and says so to the other end."""
    there.leads_to(Line(node))
    data, env = noise(200_000), {"PYTHONPATH": str(hidden)}
    (tmp_path / "a").write_bytes(data)
    for words in (("upload", tmp_path / "a", there.url()), ("download", there.url("a"), tmp_path / "b")):
        ran = run(*there.words(words[0], "--json", *words[1:]), env=env)
        assert (ran.status, _notes(ran)) == (0, 1), ran.err
        assert json.loads(ran.out.splitlines()[0])["digest"] == f"sha256:{HASHES['sha256'](data)}"
    assert (there.root / "a").read_bytes() == (tmp_path / "b").read_bytes() == data


# The hashes.


@given(pieces=st.lists(st.binary(max_size=300), max_size=5), algorithm=st.sampled_from(digests.BLOCKS))
def test_each_block_hash_fits_a_journal_and_a_frame(pieces: list[bytes], algorithm: str) -> None:
    """It has the digits that both have room for, however the bytes come, also out of a copy; and others compute it."""
    hasher = digests.new_block(algorithm)
    for piece in pieces:
        hasher.update(memoryview(piece))
        hasher = hasher.copy()
    assert re.fullmatch(f"[0-9a-f]{{{digests.BLOCK_HEX}}}", hasher.hexdigest())
    assert hasher.hexdigest() == HASHES[algorithm](b"".join(pieces))
    assert (algorithm == digests.DEFAULT) == (hasher.hexdigest() == digests.block_hash(b"".join(pieces)))

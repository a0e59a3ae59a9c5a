"""The example client of docs/protocol.md, run as it is against the real server."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import FakeServer, Peer, address_of, block_hash, put, token_for, welcomed

import ftransfer

CLIENT = Path(__file__).parent.parent / "docs" / "examples" / "client.py"
MIB = 1 << 20


def run(server: ftransfer.Server | FakeServer, verb: str, local: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Run the example and return what it said."""
    url = server.url if isinstance(server, FakeServer) else server.urls[0]
    host, port = address_of(url)
    command = [sys.executable, CLIENT, host, str(port), verb, local, path]
    env = os.environ if isinstance(server, FakeServer) else {**os.environ, "FTRANSFER_TOKEN": token_for(url)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


def answer_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Return the message that the example printed at its good end."""
    assert (done.returncode, done.stderr) == (0, "")
    made: dict[str, object] = ast.literal_eval(done.stdout)
    return made


def sample(folder: Path, size: int) -> Path:
    """Return a file of random bytes with the time of another day."""
    path = folder / "sample.bin"
    path.write_bytes(os.urandom(size))
    os.utime(path, ns=(10**18, 10**18 + 123))
    return path


def test_the_example_is_short_and_needs_only_xxhash() -> None:
    """A stranger can write it: at most 60 lines, and nothing beyond the standard library but xxhash."""
    text = CLIENT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"xxhash"}


@pytest.mark.parametrize("size", [0, 1, 6000, 3 * MIB + 17])
def test_a_file_goes_up(server: ftransfer.Server, root: Path, tmp_path: Path, size: int) -> None:
    """Empty, small, or larger than a block: the file is stored with its time, and the receipt has its hash."""
    source = sample(tmp_path, size)
    answer = answer_of(run(server, "put", source, "in/new.bin"))
    assert (answer["result"], answer["hash"]) == ("stored", block_hash(source.read_bytes()))
    assert (root / "in/new.bin").read_bytes() == source.read_bytes()
    assert (root / "in/new.bin").stat().st_mtime_ns == source.stat().st_mtime_ns


def test_an_upload_goes_on_where_it_stopped(server: ftransfer.Server, root: Path, tmp_path: Path) -> None:
    """What an earlier connection brought is not sent again: only the gaps are wanted."""
    source = sample(tmp_path, 3 * MIB)
    data = source.read_bytes()
    with Peer.dial(server.urls[0]) as first:
        put(first, 1, "big.bin", len(data), fingerprint=f"{len(data)}-{source.stat().st_mtime_ns}")
        for offset in (0, 2 * MIB):
            first.send_block(1, offset, data[offset : offset + MIB])
            first.expect("stored", ok=True)
    answer = answer_of(run(server, "put", source, "big.bin"))
    assert answer["inherited"] == 2 * MIB
    assert (root / "big.bin").read_bytes() == data


def test_many_gaps_are_filled(server: ftransfer.Server, root: Path, tmp_path: Path) -> None:
    """A list of wanted ranges that takes several messages is understood."""
    source = sample(tmp_path, 1201)
    data = source.read_bytes()
    with Peer.dial(server.urls[0]) as first:
        put(first, 1, "gaps.bin", len(data), fingerprint=f"{len(data)}-{source.stat().st_mtime_ns}")
        for offset in range(0, len(data), 2):
            first.send_block(1, offset, data[offset : offset + 1])
            first.expect("stored", ok=True)
    answer = answer_of(run(server, "put", source, "gaps.bin"))
    assert answer["inherited"] == 601
    assert (root / "gaps.bin").read_bytes() == data


@pytest.mark.parametrize("size", [0, 1, 6000, 3 * MIB + 17])
def test_a_file_comes_down(server: ftransfer.Server, root: Path, tmp_path: Path, size: int) -> None:
    """Empty, small, or larger than a block: what is written is what the server has."""
    source = sample(root, size)
    answer = answer_of(run(server, "get", tmp_path / "got.bin", source.name))
    assert answer["hash"] == block_hash(source.read_bytes())
    assert (tmp_path / "got.bin").read_bytes() == source.read_bytes()


def test_a_file_with_a_hole_comes_down(server: ftransfer.Server, root: Path, tmp_path: Path) -> None:
    """Runs of zeros may come without their bytes."""
    with (root / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(9 * MIB)
        file.write(b"end")
    answer_of(run(server, "get", tmp_path / "got", "sparse"))
    assert (tmp_path / "got").read_bytes() == (root / "sparse").read_bytes()


def test_an_error_is_shown(server: ftransfer.Server, tmp_path: Path) -> None:
    """What the server refuses ends the example with the server's words."""
    done = run(server, "get", tmp_path / "got", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: not-found: ")
    assert not (tmp_path / "got").exists()


def test_a_stranger_is_told_so(server: ftransfer.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right token the server lets nobody in, and the example says why."""
    monkeypatch.setenv("FTRANSFER_TOKEN", "ftt_wrong")
    host, port = address_of(server.urls[0])
    command = [sys.executable, CLIENT, host, str(port), "get", tmp_path / "got", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: login: ")


def test_a_wrong_hash_is_noticed(tmp_path: Path) -> None:
    """A file whose whole does not have the announced hash is not written."""

    def lie(peer: Peer) -> None:
        peer.expect("get")
        peer.send({"type": "file", "t": 1, "size": 5})
        peer.send_block(1, 0, b"hello")
        peer.expect("stored", ok=True)
        peer.send_end(1, "x", b"other")
        assert peer.is_closed_by_peer()

    with FakeServer(welcomed(lie)) as fake:
        done = run(fake, "get", tmp_path / "got", "x")
    assert (done.returncode, done.stderr) == (1, "damaged on the way: run it again\n")
    assert not (tmp_path / "got").exists()

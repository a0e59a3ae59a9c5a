"""Hostile peers and resuming: what is staged is taken up by whom it belongs to, and never becomes a mixture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import (
    FakeServer,
    Header,
    Peer,
    Script,
    block_hash,
    content_of,
    nothing_leaks,
    put,
    serves_well,
    staged,
    token_for,
    unharmed,
    wait_until,
    welcomed,
)
from test_hostile_server import asked_for

import ftransfer
from ftransfer.errors import FtransferError

OLD = b"the old content"
A, B = b"a" * 1000, b"b" * 1000
HALF = 500
FINGERPRINT = "1000-1"
H = "0" * 32


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, and when its server was closed, no descriptor and no thread is left."""
    with nothing_leaks():
        yield


@pytest.fixture
def begun(server: ftransfer.Server, root: Path) -> ftransfer.Server:
    """A server that has the first half of A staged for the name `f`, which holds the old content."""
    (root / "f").write_bytes(OLD)
    with Peer.dial(server.urls[0]) as peer:
        put(peer, 1, "f", len(A), fingerprint=FINGERPRINT)
        peer.send_block(1, 0, A[:HALF])
        peer.expect("stored", ok=True)
    wait_until(lambda: server.connection_count == 0, "letting go of the transfer")
    return server


def take_up(peer: Peer, t: int = 1, **fields: Any) -> list[list[int | None]]:
    """Go on with the transfer; return what the server wants."""
    put(peer, t, "f", len(A), wait=True, **({"fingerprint": FINGERPRINT} | fields))
    ranges: list[list[int | None]] = peer.expect("want", t=t)["ranges"]
    return ranges


def send(peer: Peer, t: int, offset: int, data: bytes) -> None:
    """Send a block that is stored."""
    peer.send_block(t, offset, data)
    peer.expect("stored", t=t, offset=offset, ok=True)


# A client that goes on with what it did not begin.


def test_the_second_half_of_another_file_begins_anew(begun: ftransfer.Server, root: Path) -> None:
    """The same fingerprint and another content: the whole hash shows it, and all is asked for again."""
    with Peer.dial(begun.urls[0]) as peer:
        assert take_up(peer) == [[HALF, HALF]]
        send(peer, 1, HALF, B[HALF:])
        peer.send_end(1, "f", B)
        peer.expect("want", t=1, ranges=[[0, 1000]])
        assert (root / "f").read_bytes() == OLD
        send(peer, 1, 0, B)
        peer.send_end(1, "f", B)
        peer.expect("receipt", t=1, hash=block_hash(B))
    assert (root / "f").read_bytes() == B
    assert staged(root) == []


def test_who_stays_wrong_gets_an_error(begun: ftransfer.Server, root: Path) -> None:
    """Beginning anew is offered once; then it is an integrity error, nothing is staged, the old file is there."""
    with Peer.dial(begun.urls[0]) as peer:
        take_up(peer)
        send(peer, 1, HALF, B[HALF:])
        peer.send_end(1, "f", B)
        peer.expect("want", t=1, ranges=[[0, 1000]])
        send(peer, 1, 0, A)
        peer.send_end(1, "f", B)
        peer.expect("error", t=1, code="integrity")
    assert (root / "f").read_bytes() == OLD
    assert staged(root) == []
    serves_well(begun)


@pytest.mark.parametrize(("offset", "length"), [(0, HALF), (0, 1000), (HALF - 1, 2), (HALF - 1, 1), (999, 2)])
def test_what_is_held_is_not_written_again(begun: ftransfer.Server, root: Path, offset: int, length: int) -> None:
    """A block over what the server has, or beyond the end, is refused; what is staged is as it was."""
    with Peer.dial(begun.urls[0]) as peer:
        take_up(peer)
        peer.send_block(1, offset, b"x" * length)
        peer.expect("error", t=None, code="protocol")
    with Peer.dial(begun.urls[0]) as peer:
        wait_until(lambda: begun.connection_count == 1, "letting go of the transfer")
        assert take_up(peer) == [[HALF, HALF]]
        send(peer, 1, HALF, A[HALF:])
        peer.send_end(1, "f", A)
        peer.expect("receipt", t=1, hash=block_hash(A))
    assert (root / "f").read_bytes() == A


def test_an_end_without_the_rest_is_no_end(begun: ftransfer.Server, root: Path) -> None:
    """What is missing is asked for once more; who says the end again without it is refused."""
    with Peer.dial(begun.urls[0]) as peer:
        take_up(peer)
        peer.send_end(1, "f", A)
        peer.expect("want", t=1, ranges=[[HALF, HALF]])
        peer.send_end(1, "f", A)
        peer.expect("error", t=None, code="protocol")
    assert (root / "f").read_bytes() == OLD
    serves_well(begun)


def test_another_size_is_another_transfer(begun: ftransfer.Server, root: Path) -> None:
    """Whatever the fingerprint says; the same for another path, and where resuming was not asked for."""
    with Peer.dial(begun.urls[0]) as peer:
        others: list[Header] = [{"size": 999}, {"path": "g"}, {"fingerprint": "1000-2"}, {"resume": False}]
        for t, fields in enumerate(others, 1):
            request = {"path": "f", "size": 1000, "fingerprint": FINGERPRINT, "wait": True} | fields
            peer.send({"type": "put", "t": t} | request)
            assert peer.expect("want", t=t)["ranges"] == [[0, request["size"]]]
    assert (root / "f").read_bytes() == OLD
    serves_well(begun)


def test_without_waiting_nothing_is_inherited(begun: ftransfer.Server, root: Path) -> None:
    """Who sends at once sends all of it: nothing of what was staged is in the file."""
    with Peer.dial(begun.urls[0]) as peer:
        put(peer, 1, "f", len(B), fingerprint=FINGERPRINT)
        send(peer, 1, 0, B)
        peer.send_end(1, "f", B)
        peer.expect("receipt", t=1, hash=block_hash(B))
    assert (root / "f").read_bytes() == B


@pytest.mark.parametrize("fingerprint", ["../../f", "/etc/passwd", ".", "..", "%2e%2e%2f", "a" * 128, "$(id)", "~"])
def test_a_fingerprint_is_no_name(server: ftransfer.Server, root: Path, fingerprint: str) -> None:
    """It is opaque: nothing below or beside the root is called by it."""
    beside = content_of(root.parent)
    with Peer.dial(server.urls[0]) as peer:
        put(peer, 1, "f", 5, fingerprint=fingerprint)
        peer.send_block(1, 0, b"hello")
        peer.expect("stored", ok=True)
        for name in staged(root):
            assert name.startswith(".ftransfer")
            assert fingerprint not in name or fingerprint in (".", "a")
        peer.send({"type": "error", "t": 1, "code": "x", "message": ""})
        peer.send({"type": "partials", "t": 2, "path": "", "clear": True})
        peer.expect("staged", t=2)
    assert content_of(root.parent) == beside
    serves_well(server)


def test_a_session_that_is_guessed_ends_nobody(begun: ftransfer.Server, root: Path) -> None:
    """`former` names a session by a secret of its client; others are ignored, and what is held stays held."""
    with Peer.dial(begun.urls[0]) as holder:
        take_up(holder)
        for former in ("0" * 32, "f" * 32, block_hash(b"guess")):
            with Peer.dial(begun.urls[0], greet=False) as peer:
                token = token_for(begun.urls[0])
                peer.send({"type": "hello", "versions": [1], "software": "x", "token": token, "former": former})
                peer.expect("welcome")
                put(peer, 1, "f", len(A), wait=True, fingerprint=FINGERPRINT)
                peer.expect("error", t=1, code="busy")
        send(holder, 1, HALF, A[HALF:])
        holder.send_end(1, "f", A)
        holder.expect("receipt", t=1)
    assert (root / "f").read_bytes() == A


def test_a_receipt_of_another_transfer_is_not_given(server: ftransfer.Server, root: Path) -> None:
    """The number of a transfer that was committed says nothing about another name, size or content."""
    token = block_hash(b"token")
    with Peer.dial(server.urls[0]) as peer:
        put(peer, 1, "f", 5, transfer=token)
        send(peer, 1, 0, b"hello")
        peer.send_end(1, "f", b"hello")
        peer.expect("receipt", t=1)
        put(peer, 2, "f", 5, transfer=token, wait=True)
        assert peer.expect_any_of("receipt", "want")["type"] == "receipt"  # the same, whose receipt was lost
        (root / "f").write_bytes(b"HELLO")
        others: list[Header] = [{}, {"path": "g"}, {"size": 6}, {"transfer": H}]
        for t, fields in enumerate(others, 3):
            request = {"path": "f", "size": 5, "transfer": token, "wait": True} | fields
            peer.send({"type": "put", "t": t} | request)
            peer.expect("want", t=t)
    serves_well(server)


# A client that takes a file, and wants odd ranges of it.

CONTENT = bytes(range(256)) * 4
ODD: dict[str, list[list[int | None]]] = {
    "twice": [[0, 10], [0, 10]],
    "overlapping": [[0, 600], [300, 600]],
    "backwards": [[1000, 24], [0, 10]],
    "byte by byte": [[at, 1] for at in range(512)],
    "to the end, twice": [[5, None], [7, None]],
    "nothing": [],
}


@pytest.mark.parametrize("ranges", ODD.values(), ids=ODD)
def test_odd_ranges_give_bytes_of_the_file_and_no_others(
    server: ftransfer.Server, root: Path, ranges: list[list[int | None]]
) -> None:
    """Whatever is asked for within the file: each block is what stands there; two at one offset may be an error."""
    (root / "f").write_bytes(CONTENT)
    with unharmed(server, root), Peer.dial(server.urls[0]) as peer:
        peer.send({"type": "get", "t": 1, "path": "f", "wait": True})
        peer.expect("file", size=len(CONTENT))
        peer.send({"type": "want", "t": 1, "ranges": ranges})
        count = 0
        while (made := peer.expect_any_of("block", "end", "error"))["type"] == "block":
            at = made["offset"]
            assert peer.last_body == CONTENT[at : at + made["body"]]
            count += made["body"]
            peer.send({"type": "stored", "t": 1, "offset": at, "ok": True})
        if made["type"] == "error":
            assert made["code"] == "protocol"
            assert ranges == ODD["twice"]  # the answers are told apart by their offsets
            return
        assert made["hash"] == block_hash(CONTENT)
        assert count == sum(len(CONTENT) - (at or 0) if length is None else length for at, length in ranges)
        peer.send({"type": "error", "t": 1, "code": "x", "message": ""})
        peer.send({"type": "ping", "t": 2})
        peer.expect("pong", t=2)


# A server that gives and takes other bytes than it says.


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A local folder with an old file that a download would replace."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "f").write_bytes(OLD)
    return folder


def called(script: Script, act: Callable[[ftransfer.Remote], object]) -> FtransferError | None:
    """Make a call against this server, and return the error of ours that it ends in."""
    with FakeServer(welcomed(script)) as server:
        remote = ftransfer.connect(server.url, timeout=0.5, retry_for=0, max_time=6)
        with remote:
            try:
                act(remote)
            except FtransferError as exc:
                return exc
    return None


def announce(peer: Peer, **changed: Any) -> Header:
    """Wait for a get and announce A; return what was asked for."""
    asked = asked_for(peer, "get")
    peer.send({"type": "file", "t": asked["t"], "size": len(A), "fingerprint": FINGERPRINT, "mtime_ns": 1} | changed)
    return asked


def half(peer: Peer) -> None:
    """Send the first half of A, and leave."""
    t = announce(peer)["t"]
    peer.send_block(t, 0, A[:HALF])
    peer.expect("stored", ok=True)
    peer.hang_up()


def held(peer: Peer, **changed: Any) -> int:
    """Wait until the client goes on with the first half; return the number."""
    asked = announce(peer, **changed)
    assert asked["wait"] is True
    return int(asked["t"])


def another_half(peer: Peer) -> None:
    """Go on with B, and say that the whole is B; then send all of it."""
    t = held(peer)
    peer.expect("want", ranges=[[HALF, HALF]])
    send(peer, t, HALF, B[HALF:])
    peer.send_end(t, "f", B)
    peer.expect("want", ranges=[[0, 1000]])
    send(peer, t, 0, B)
    peer.send_end(t, "f", B)
    peer.expect("receipt", hash=block_hash(B))


def always_wrong(peer: Peer) -> None:
    """Go on with B, and never send what the hash says."""
    t = held(peer)
    peer.expect("want")
    send(peer, t, HALF, B[HALF:])
    peer.send_end(t, "f", B)
    peer.expect("want", ranges=[[0, 1000]])
    send(peer, t, 0, A)
    peer.send_end(t, "f", B)
    peer.drain()


def over_what_is_held(peer: Peer) -> None:
    """Send what was not wanted."""
    t = held(peer)
    peer.expect("want")
    peer.send_block(t, 0, B[:HALF])
    peer.drain()


def without_the_rest(peer: Peer) -> None:
    """Say that this was all, and once more."""
    t = held(peer)
    peer.expect("want")
    peer.send_end(t, "f", A)
    peer.expect("want")
    peer.send_end(t, "f", A)
    peer.drain()


def of_another_size(peer: Peer) -> None:
    """Announce the same fingerprint and another size."""
    t = held(peer, size=10)
    peer.expect("want", ranges=[[0, 10]])
    send(peer, t, 0, B[:10])
    peer.send_end(t, "f", B[:10])
    peer.expect("receipt", hash=block_hash(B[:10]))


RESUMED: dict[str, tuple[Script, str, bytes]] = {
    "another half": (another_half, "", B),
    "always wrong": (always_wrong, "integrity", OLD),
    "over what is held": (over_what_is_held, "protocol", OLD),
    "without the rest": (without_the_rest, "protocol", OLD),
    "of another size": (of_another_size, "", B[:10]),
}


@pytest.mark.parametrize(("script", "code", "content"), RESUMED.values(), ids=RESUMED)
def test_a_download_that_goes_on_is_never_a_mixture(here: Path, script: Script, code: str, content: bytes) -> None:
    """The file is the old one, or all of what the server sent in the end."""
    act = lambda remote: remote.download("f", here / "f", compare="none")  # noqa: E731
    cut = called(half, act)
    assert cut is not None
    assert cut.code == "lost"
    assert len(staged(here)) == 2
    error = called(script, act)
    assert (error.code if error else "") == code
    assert (here / "f").read_bytes() == content


def wanting(again: list[list[int | None]]) -> Script:
    """Return a script that takes each block and, at each end, wants these ranges once more."""

    def run(peer: Peer) -> None:
        asked = asked_for(peer, "put")
        t = asked["t"]
        peer.send({"type": "want", "t": t, "ranges": [[0, None]]})
        while (made := peer.receive()) is not None:
            if made["type"] == "block":
                peer.send({"type": "stored", "t": t, "offset": made["offset"], "ok": True})
            elif made["type"] == "end":
                peer.send({"type": "want", "t": t, "ranges": again})

    return run


@pytest.mark.parametrize("again", [[[0, None]], [[0, 10]], []], ids=["all", "some", "nothing"])
def test_a_server_that_is_never_satisfied_is_given_up(tmp_path: Path, again: list[list[int | None]]) -> None:
    """It may ask for damaged bytes again, but not for ever: the client does not send without end."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(100_000))
    error = called(wanting(again), lambda remote: remote.upload(source, "f", compare="none"))
    assert error is not None
    assert error.code in ("protocol", "integrity")

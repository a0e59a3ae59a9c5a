"""What a peer that is let in could do for ever: ask on after it was removed, be busy with nothing, pile up messages."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from support import WELCOME, FakeServer, Peer, block_hash, frame, put, wait_until

import ftransfer
from ftransfer import channel, errors, serving
from ftransfer.statedir import StateDir
from ftransfer.users import Users

PATIENCE = 10.0
PAUSE = threading.Event()


def test_a_removed_user_gets_nothing_by_asking_again(root: Path, tmp_path: Path) -> None:
    """The connection ends, however many requests come one after the other."""
    users = Users(StateDir(tmp_path / "state"))
    token = users.add("bob", can=["read"])
    with ftransfer.Server(root, state=tmp_path / "state") as server, Peer.dial(server.urls[0], greet=False) as peer:
        peer.send({"type": "hello", "versions": [1], "software": "x", "token": token})
        assert peer.expect("welcome")["user"] == "bob"
        users.remove("bob")
        ends = time.monotonic() + PATIENCE
        refused = answered_after = t = 0
        while time.monotonic() < ends:
            t += 1
            if not peer.try_to_send(frame({"type": "stat", "t": t, "path": ""})):
                break
            answer = peer.receive()
            if answer is None:
                break
            refused += answer["type"] == "error"
            answered_after += bool(refused) and answer["type"] != "error"
        assert time.monotonic() < ends, "it was never cut off"
        assert refused
        assert answered_after == 0


def test_who_is_busy_with_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life that tell of no progress are no life in the end."""
    monkeypatch.setattr(channel, "MOST_BUSY", 0.2)

    def script(peer: Peer) -> None:
        peer.expect("hello")
        peer.send(WELCOME)
        t = peer.expect("stat")["t"]
        while peer.try_to_send(frame({"type": "working", "t": t, "phase": "looking", "done": 0, "total": 10})):
            PAUSE.wait(0.01)

    with (
        FakeServer(script) as server,
        ftransfer.connect(server.url, retry_for=0) as remote,
        pytest.raises(errors.TimedOut, match="busy"),
    ):
        remote.stat("x")


def test_an_upload_that_is_busy_with_nothing_is_let_go(
    server: ftransfer.Server, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gives up the client in the same way."""
    monkeypatch.setattr(channel, "MOST_BUSY", 0.2)
    put(peer, 1, "new", 1000)
    while peer.try_to_send(frame({"type": "working", "t": 1, "phase": "reading", "done": 0, "total": 10})):
        if server.connection_count == 0:
            break
        PAUSE.wait(0.01)
    wait_until(lambda: server.connection_count == 0, "letting it go")


def test_messages_that_pile_up_are_counted_in_bytes(
    root: Path, server: ftransfer.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a file is sent that nobody reads, few large messages are too many as well."""
    monkeypatch.setattr(serving, "MOST_QUEUED_BYTES", 100_000)
    (root / "small").write_bytes(b"x")
    (root / "large").write_bytes(bytes(64 << 20))
    with Peer.dial(server.urls[0]) as peer:
        peer.send({"type": "get", "t": 1, "path": "small"})
        peer.expect("file", t=1)
        peer.expect("block", t=1)
        peer.send({"type": "stored", "t": 1, "offset": 0, "ok": True})
        peer.expect("end", t=1, hash=block_hash(b"x"))
        peer.send({"type": "get", "t": 2, "path": "large"})
        peer.expect("file", t=2)
        many = frame({"type": "want", "t": 1, "ranges": [[0, 1]] * 512, "more": True})
        ends = time.monotonic() + PATIENCE
        while peer.try_to_send(many) and server.connection_count:
            assert time.monotonic() < ends, "they were all taken"
    with ftransfer.connect(server.urls[0]) as remote:
        assert remote.stat("small").size == 1

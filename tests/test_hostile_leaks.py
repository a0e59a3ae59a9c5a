"""After each attack the descriptors, the threads and the memory of the server are what they were.

It is a process of its own, because what the tests themselves take would hide what it takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Peer, block_hash, descriptors, frame, put, resident, server_process, thread_count, wait_until
from test_hostile_client import vectors
from test_states import WAYS, Talk, body_of, furnish, odd_messages, seen

import ftransfer

MIB = 1 << 20
GROWTH = 16 * MIB
"""Memory that a server may have more after all rounds of an attack; one buffer of each connection would be more."""

Attack = Callable[[str], None]


def leaves(url: str) -> None:
    """Reach each state and close, with and without a word, and with a reset."""
    for way in WAYS.values():
        for leave in (Peer.reset, Peer.hang_up):
            with Peer.dial(url) as peer:
                Talk(peer).go(way)
                leave(peer)
                if leave is Peer.hang_up:
                    peer.drain()


def is_out_of_turn(url: str) -> None:
    """Say each message in two states in which most of them may not come."""
    for state in ("put", "tree"):
        for odd in odd_messages():
            with Peer.dial(url) as peer:
                Talk(peer).go(WAYS[state])
                peer.send(odd, body_of(odd))
                peer.hang_up()
                peer.drain()


def sends_vectors(url: str) -> None:
    """Send every vector with a fault, before and after hello."""
    for name in ("frames", "fields", "names", "packs"):
        for vector in vectors(name):
            with Peer.dial(url, greet=name != "frames") as peer:
                peer.send_raw(bytes.fromhex(vector["bytes"]))
                peer.hang_up()
                peer.drain()


def damages_bodies(url: str) -> None:
    """Send blocks and packs with wrong hashes, and leave in the middle of large ones."""
    wrong = "0" * 32
    for size in (1, 100_000, 4 * MIB):
        with Peer.dial(url) as peer:
            put(peer, 1, "a", size)
            peer.send_block(1, 0, b"x" * size, hash=wrong)
            peer.expect("stored", ok=False)
            peer.send({"type": "block", "t": 1, "offset": 0, "hash": wrong, "body": size}, b"x" * (size // 2))
            peer.reset()
        with Peer.dial(url) as peer:
            peer.send({"type": "tree", "t": 1, "path": ""})
            peer.expect("ready")
            row = ["a", size, wrong, 0, 0o644]
            peer.send({"type": "pack", "t": 1, "files": [row], "body": size, "now": True}, b"x" * size)
            assert peer.expect("receipts")["failed"]
            peer.send({"type": "pack", "t": 1, "files": [row], "body": size}, b"x" * (size // 2))
            peer.reset()


def asks_much(url: str) -> None:
    """Open as much as may be open, and leave all of it."""
    with Peer.dial(url) as peer:
        for t in range(1, 33):
            put(peer, t, f"many/{t}", 5)
        peer.send({"type": "ping", "t": 33})
        peer.reset()
    with Peer.dial(url) as peer:
        for t in range(1, 9):
            peer.send({"type": "tree", "t": t, "path": ""})
            peer.expect("ready")
        for t in range(1, 9):
            row = [f"in/{t}", 1, block_hash(b"y"), 0, 0o644]
            peer.send({"type": "pack", "t": t, "files": [row], "body": 1}, b"x")
        peer.reset()
    with Peer.dial(url) as peer:
        for t in range(1, 33):
            peer.send({"type": "get", "t": t, "path": "large"})
        peer.expect("file")
        peer.reset()


def floods(url: str) -> None:
    """Connect and leave, with the beginnings of words."""
    hello = frame({"type": "hello", "versions": [1], "software": "x"})
    for count in range(60):
        peer = Peer.dial(url, greet=False)
        peer.try_to_send(hello[: count % len(hello)])
        peer.reset()


ATTACKS: dict[str, tuple[Attack, int]] = {
    "leaves": (leaves, 4),
    "is out of turn": (is_out_of_turn, 3),
    "sends vectors": (sends_vectors, 3),
    "damages bodies": (damages_bodies, 8),
    "asks much": (asks_much, 8),
    "floods": (floods, 8),
}
"""What is done, and how often; twice before that, after which a server has all that it keeps."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served."""
    return furnish(tmp_path_factory.mktemp("leaks") / "root")


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[tuple[str, int]]:
    """The address and the process of a server."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("what a process takes can be counted on Linux only")
    with server_process(home, "--no-sync") as running:
        with Peer.dial(running[0]) as peer:  # it has begun to serve, and has what it needs for that
            peer.send({"type": "ping", "t": 1})
            peer.expect("pong")
        wait_until(lambda: thread_count(running[1]) == 1, "the end of that connection")
        yield running


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_nothing_for_good(served: tuple[str, int], home: Path, name: str) -> None:
    """However often it comes; and the next client is served."""
    url, pid = served
    before = seen(home)
    open_before, threads_before = descriptors(pid), thread_count(pid)

    def is_calm() -> bool:
        return descriptors(pid) <= open_before and thread_count(pid) <= threads_before

    attack, rounds = ATTACKS[name]
    held = 0
    for number in range(2 + rounds):
        if number == 2:
            held = resident(pid)
        attack(url)
        wait_until(is_calm, "closing what the attack had opened")
    grown = resident(pid) - held
    assert grown < GROWTH, f"{grown / MIB:.1f} MiB more, after {rounds} rounds"
    with ftransfer.connect(url, retry_for=0) as remote:
        remote.upload(b"good", "good", if_exists="fail")
        remote.remove("good")
    assert seen(home) == before

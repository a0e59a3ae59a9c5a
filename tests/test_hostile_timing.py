"""Peers that are slow or silent, wherever they stand: each is given up at its time, and nobody else waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import Header, Peer, frame, nothing_leaks, serves_well, unharmed, wait_until
from test_states import HONESTLY, WAYS, Place, Plot, Talk, Turncoat, find_places, furnish, planted, run, seen

import ftransfer
from ftransfer import errors

TIMEOUT = 0.5
"""Seconds of silence that are borne here."""
MOST = 6.0
"""Seconds within which everything has to be over, on a slow machine, too."""
SOON = ftransfer.Limits(handshake_seconds=TIMEOUT, idle_seconds=TIMEOUT)
STEP = 0.03
"""Seconds between two bytes of a peer that dribbles."""
ROUNDS = 1000
"""Bytes that a dribbling peer has: they would keep it busy for longer than MOST."""
H = "0" * 32


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, and when its server was closed, no descriptor and no thread is left."""
    with nothing_leaks():
        yield


@pytest.fixture
def impatient(root: Path) -> Iterator[ftransfer.Server]:
    """A server of a furnished root that waits for nobody."""
    root.rmdir()
    with ftransfer.Server(furnish(root), durable=False, timeout=TIMEOUT, limits=SOON) as running:
        yield running


def test_silence_in_every_state_ends(impatient: ftransfer.Server, root: Path) -> None:
    """Whatever a client has begun: it is told so if it reads, and its descriptors and threads are free again."""
    serves_well(impatient)
    before = seen(root)
    with nothing_leaks(), ExitStack() as stack:
        talks = {}
        for name, way in WAYS.items():
            talk = Talk(stack.enter_context(Peer.dial(impatient.urls[0])))
            talk.go(way)
            talks[name] = talk
        started = time.monotonic()
        wait_until(lambda: impatient.connection_count == 0, "giving them all up", MOST)
        assert time.monotonic() - started >= TIMEOUT / 2
        for name, talk in talks.items():
            said = []
            try:
                while (made := talk.peer.receive()) is not None:
                    said.append((made["type"], made.get("code")))
            except AssertionError:
                pass  # it read nothing, so it was cut in the middle of a frame
            codes = {code for kind, code in said if kind == "error"}
            assert codes <= errors.BY_CODE.keys() - {"internal"}, (name, codes)
            assert "timeout" in codes or name not in ("put", "put, a block", "tree", "get, waiting"), (name, codes)
    assert seen(root) == before
    serves_well(impatient)


def dribbled(peer: Peer, data: bytes) -> float:
    """Send a byte now and then until the other end has enough of it; return how long it took."""
    started = time.monotonic()
    assert peer.dribble(data, STEP, most=MOST)
    return time.monotonic() - started


HELLO = frame({"type": "hello", "versions": [1], "software": "x" * 900})
FIRST: dict[str, tuple[bytes, bytes]] = {
    "the first byte": (b"", HELLO),
    "the second byte": (HELLO[:1], HELLO[1:]),
    "the header": (HELLO[:4], HELLO[4:]),
    "the end of the header": (HELLO[:-200], HELLO[-200:]),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_time_for_hello_is_for_all_of_it(impatient: ftransfer.Server, root: Path, name: str) -> None:
    """However much of it came at once, and however regularly the rest comes."""
    at_once, rest = FIRST[name]
    with unharmed(impatient, root), Peer.dial(impatient.urls[0], greet=False) as peer:
        peer.send_raw(at_once)
        assert dribbled(peer, rest) < MOST


def test_a_hello_that_is_refused_does_not_buy_time(impatient: ftransfer.Server, root: Path) -> None:
    """Who was refused and goes on talking is closed, and who has not said hello gets no time by other words."""
    with unharmed(impatient, root):
        for header in ({"type": "hello", "versions": [7], "software": "x"}, {"type": "ping", "t": 1}, {"type": "x"}):
            with Peer.dial(impatient.urls[0], greet=False) as peer:
                peer.send(header)
                peer.expect("error", t=None)
                dribbled(peer, b"\0" * ROUNDS)


LENGTH = (1500).to_bytes(4)
"""Of a header that is to come within TIMEOUT, and a second and a half for its bytes."""
SPACES = b"{" + b" " * ROUNDS
BLOCK: Header = {"type": "block", "t": 1, "offset": 0, "hash": H, "body": 30}
PASSED: Header = BLOCK | {"body": 1000}
PACK: Header = {"type": "pack", "t": 1, "files": [["a", 1000, H, 0, 420]], "body": 1000}
SLOW: dict[str, tuple[str, bytes, bytes]] = {
    "a header": ("nothing", LENGTH, SPACES),
    "a header in a transfer": ("put", LENGTH, SPACES),
    "a header in a tree": ("tree", LENGTH, SPACES),
    "a header while a file goes out": ("get, waiting", LENGTH, SPACES),
    "the body of a block": ("put", frame(BLOCK), b"x" * ROUNDS),
    "the body of a block that is passed over": ("put, given up", frame(PASSED), b"x" * ROUNDS),
    "the body of a block of a refused put": ("put, refused", frame(PASSED), b"x" * ROUNDS),
    "the body of a pack": ("tree", frame(PACK), b"x" * ROUNDS),
    "the body of a pack that is passed over": ("tree, finished", frame(PACK), b"x" * ROUNDS),
}


def test_what_comes_byte_by_byte_ends(impatient: ftransfer.Server, root: Path) -> None:
    """Headers and bodies have to come at the least rate on the whole, wherever they stand; here all at a time."""
    serves_well(impatient)
    before = seen(root)

    def slowly(name: str) -> None:
        state, at_once, rest = SLOW[name]
        with Peer.dial(impatient.urls[0]) as peer:
            Talk(peer).go(WAYS[state])
            peer.send_raw(at_once)
            assert dribbled(peer, rest) >= TIMEOUT / 2

    with nothing_leaks(), ThreadPoolExecutor(len(SLOW)) as pool:
        for outcome in [pool.submit(slowly, name) for name in SLOW]:
            outcome.result()
    assert seen(root) == before
    serves_well(impatient)


def test_who_takes_a_file_too_slowly_is_given_up(root: Path) -> None:
    """A byte taken now and then is not enough: what goes out has a least rate, too."""
    root.rmdir()
    furnish(root)
    limits = ftransfer.Limits(least_rate=float(1 << 20))
    with (
        ftransfer.Server(root, durable=False, timeout=TIMEOUT, limits=limits) as server,
        unharmed(server, root),
        Peer.dial(server.urls[0]) as peer,
    ):
        Talk(peer).go(WAYS["get"])
        pause = threading.Event()
        until = time.monotonic() + MOST
        while server.connection_count and peer.socket.recv(2000):
            assert time.monotonic() < until, "it is still served"
            pause.wait(STEP)


# The client's side.


def silence(peer: Peer, honest: bytes) -> None:
    """Say nothing any more."""


def bytewise(peer: Peer, honest: bytes) -> None:
    """Say what an honest server says, and never come to its end."""
    peer.dribble(honest[:-1], STEP, most=MOST)


def endless(peer: Peer, honest: bytes) -> None:  # noqa: ARG001 - an act
    """Announce a large header, and let it come so slowly that it never does."""
    peer.send_raw(LENGTH)
    peer.dribble(SPACES, STEP, most=MOST)


def given_up(name: str, place: Place, act: Callable[[Peer, bytes], object], folder: Path) -> tuple[str, float]:
    """Return the code and the time of the error in which a call ends whose server is slow from that place on."""
    folder.mkdir()
    here = planted(folder)
    with Turncoat(**HONESTLY) as server:
        plot = Plot(place, act=act)
        started = time.monotonic()
        error = run(server, name, plot, here, TIMEOUT)
        took = time.monotonic() - started
        return ("" if error is None else error.code), took


@pytest.mark.parametrize("act", [silence, bytewise, endless], ids=lambda act: act.__name__)
def test_a_client_waits_for_no_server(tmp_path: Path, act: Callable[[Peer, bytes], object]) -> None:
    """Wherever it falls silent, or comes to a byte now and then, the call ends with `timeout`; here all at a time."""
    with Turncoat(**HONESTLY) as server:
        (tmp_path / "honest").mkdir()
        places = find_places(server, planted(tmp_path / "honest"))
    cases = [(name, place) for name, found in places.items() for place in found if place[2]]
    with ThreadPoolExecutor(12) as pool:
        outcomes = [
            pool.submit(given_up, name, place, act, tmp_path / f"{number}")
            for number, (name, place) in enumerate(cases)
        ]
    for case, outcome in zip(cases, outcomes, strict=True):
        code, took = outcome.result()
        assert code in ("timeout", "partial"), (case, code)
        assert took < MOST, (case, took)

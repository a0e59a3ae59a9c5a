"""Every message in every state, in both roles, generated from the tables: refused with a code or handled.

A real server is driven by hand into each state, then told each message of the wire; a real client meets a server that
is honest up to one message, in place of which it says each of the wire. Which of them may come says `session.Session`,
in which both ends are followed. Nobody is silent, nobody fails in any other way, and nothing is changed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from forests import PROTOCOL, Seeds, plant
from support import WELCOME, Header, Peer, block_hash, frame, serves_well
from test_tree_hostile_server import Answer, FakeTreeServer

import ftransfer
from ftransfer import errors, session, wire
from ftransfer.errors import FtransferError, OutOfTurn
from ftransfer.session import ANSWERS, BEGINNINGS, CLIENT, SERVER, Session
from ftransfer.wire.rules import _REQUIRED

SOON = 4.0
"""Seconds within which every answer has to be there; the patience of both ends is longer."""
LARGE = 12 << 20
"""More than the buffers of a connection take, so that who sends it waits for its reader."""
OLD = b"the old content"
KINDS = sorted(wire.BY_TYPE)


# A valid message of each type, made from the rules of its fields.

CANDIDATES: list[Any] = [1, "a", False, "0" * 32, [], "stored", "xxh128"]
"""One of these is right for each field that has no default."""


@cache
def minimal(kind: str) -> dict[str, Any]:
    """Return the required fields of a message, each with the first value that its rule takes."""
    made = {}
    for name, (rule, default) in wire.BY_TYPE[kind].fields.items():
        if default is _REQUIRED:
            fitting = [value for value in CANDIDATES if rule.holds(value)]
            assert fitting, f"{kind}.{name} takes none of the candidates: add one"
            made[name] = fitting[0]
    return made


def said(kind: str, t: int) -> Header:
    """Return a message as a header, under that number if it has one."""
    fields = minimal(kind)
    return {"type": kind} | fields | ({"t": t} if "t" in wire.BY_TYPE[kind].fields else {})


def body_of(header: Header) -> bytes:
    """Return as many bytes as a header announces."""
    return b"x" * int(header.get("body", 0))


def parsed(header: Header) -> wire.Message:
    """Return the message that a header is."""
    return wire.parse(json.dumps(header).encode())


def test_every_message_has_a_minimal_one() -> None:
    """It is valid, and a new type gets its place in every test below by itself."""
    for kind in KINDS:
        assert parsed(said(kind, 7)).type == kind


# The server's side.


class Talk:
    """A connection to a real server, followed in a session of our own."""

    def __init__(self, peer: Peer):
        self.peer = peer
        self.model = Session()
        self.model.saw(parsed(said("hello", 0)), CLIENT)
        self.model.saw(parsed(said("welcome", 0)), SERVER)

    def go(self, way: Way) -> None:
        """Go a way, up to where the odd message is said."""
        self.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for header, answer in way.steps:
            self.say(header)
            if answer:
                self.hear(answer)

    def say(self, header: Header) -> None:
        """Send a message that may come."""
        self.model.saw(parsed(header), CLIENT)
        self.peer.send(header, body_of(header))

    def hear(self, kind: str) -> None:
        """Wait for a message of this type, or for the error that takes its place."""
        while (made := self.peer.receive()) is not None:
            self.model.saw(parsed(made), SERVER)
            if made["type"] in (kind, "error"):
                return
        raise AssertionError(f"closed, and {kind} was to come")

    def state(self, t: int = 1) -> str:
        """Return the state of a transfer or request."""
        return self.model._open[t].state if self.model.is_open(t) else session.OVER

    def allows(self, header: Header) -> bool:
        """Tell whether the client may say this now."""
        try:
            self.model.saw(parsed(header), CLIENT)
        except OutOfTurn:
            return False
        return True


class Way(NamedTuple):
    """What leads to a state: what the client says, each with the answer to wait for, if any.

    The answers in `late` are waited for when the odd message is sent already: what a server does before it reads on.
    """

    state: str
    steps: list[tuple[Header, str]]
    late: str = ""


def asks(kind: str, **fields: Any) -> Header:
    """Return a request, or what belongs to it, with number 1."""
    return said(kind, 1) | fields


STOP = asks("error")
PUT = asks("put", path="old", size=30)
HELD_PUT = asks("put", path="old", size=30, wait=True)
END = asks("end", path="old", size=30)
TREE = asks("tree", path="in")
FETCH = asks("fetch", path="", names=["many"] * 150)
WAYS: dict[str, Way] = {
    "nothing": Way(session.OVER, []),
    "put": Way(session.FLOWING, [(PUT, "")]),
    "put, waiting": Way(session.FLOWING, [(HELD_PUT, "want")]),
    "put, waiting, not heard yet": Way(session.FLOWING, [(HELD_PUT, "")], "want"),
    "put, a block": Way(session.FLOWING, [(PUT, ""), (asks("block", offset=4), "stored")]),
    "put, asked again": Way(session.FLOWING, [(PUT, ""), (END, "want")]),
    "put, asked again, not heard yet": Way(session.FLOWING, [(PUT, ""), (END, "")], "want"),
    "put, given up": Way(session.OVER, [(PUT, ""), (STOP, "")]),
    "put, refused": Way(session.OVER, [(asks("put", path="folder"), "error")]),
    "tree": Way(session.PACKING, [(TREE, "ready")]),
    "tree, not heard yet": Way(session.PACKING, [(TREE, "")], "ready"),
    "tree, a pack": Way(session.PACKING, [(TREE, "ready"), (asks("pack", now=True), "receipts")]),
    "tree, finished": Way(session.OVER, [(TREE, "ready"), (asks("finish"), "")]),
    "tree, given up": Way(session.OVER, [(TREE, "ready"), (STOP, "")]),
    "get": Way(session.FLOWING, [(asks("get", path="large"), "file")]),
    "get, not heard yet": Way(session.FLOWING, [(asks("get", path="large"), "")], "file"),
    "get, waiting": Way(session.HELD, [(asks("get", path="old", wait=True), "file")]),
    "get, waiting, not heard yet": Way(session.HELD, [(asks("get", path="old", wait=True), "")], "file"),
    "get, sent": Way(session.ENDED, [(asks("get", path="old"), "end")]),
    "get, received": Way(session.OVER, [(asks("get", path="old"), "end"), (asks("receipt"), "")]),
    "fetch, not heard yet": Way(session.OVER, [(FETCH, "")], "done"),
    "fetch, done": Way(session.OVER, [(asks("fetch", path="", names=["old"]), "done")]),
    **{f"{kind}, not heard yet": Way(session.OVER, [(asks(kind), "")], answer) for kind, answer in ANSWERS.items()},
}
PASSED = {session.ASKED, session.ASKED_TO_WAIT, session.PREPARING, session.FETCHING}
"""States that a server has left before it reads on; the ways that are "not heard yet" lead through them."""


def test_every_state_of_a_server_is_driven() -> None:
    """Each state of the table is one of the ways above, or one that a server has left before it reads on."""
    assert {way.state for way in WAYS.values()} | PASSED == {state for state, _, _ in session.TRANSFER}
    through = {header["type"] for way in WAYS.values() if way.late for header, _ in way.steps}
    assert through == BEGINNINGS | {"end"}


def furnish(root: Path) -> Path:
    """Fill a folder with what the ways lead to; return it."""
    (root / "folder").mkdir(parents=True)
    (root / "folder/inner").write_bytes(OLD)
    (root / "old").write_bytes(OLD)
    (root / "large").write_bytes(os.urandom(LARGE))
    (root / "many").write_bytes(os.urandom(50_000))
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all of these tests are about."""
    return furnish(tmp_path_factory.mktemp("states") / "root")


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[ftransfer.Server]:
    """One server for all of them."""
    with ftransfer.Server(home, durable=False, timeout=2 * SOON) as running:
        yield running


def seen(root: Path) -> dict[str, tuple[int, ...]]:
    """Return what is below the root, but for the store's own files and for `a` and `in`, which legal messages make."""
    found: dict[str, tuple[int, ...]] = {}
    for at, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != ".ftransfer"]
        for name in folders + files:
            status = os.lstat(os.path.join(at, name))
            is_ours = name.startswith(".ftransfer") or (at == str(root) and name in ("a", "in"))
            if is_ours or stat.S_ISDIR(status.st_mode):
                continue
            found[os.path.relpath(os.path.join(at, name), root)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def odd_messages() -> Iterator[Header]:
    """Yield each message, under the number of what is open or, where it begins something, under the next one."""
    for kind in KINDS:
        yield said(kind, 2 if kind in BEGINNINGS else 1)
    yield {"type": "error", "code": "a", "message": "a"}


def is_the_end(header: Header) -> bool:
    """Tell whether the client gives up the connection."""
    return header["type"] == "error" and "t" not in header


def judge(talk: Talk, odd: Header) -> None:
    """Read all that the server says; fail the test unless it is an answer of the right kind to the odd message."""
    allowed = talk.allows(odd)
    codes = []
    is_served = False
    while not is_served and (made := talk.peer.receive()) is not None:
        is_served = made["type"] == "pong" and made["t"] == LATER
        if made["type"] == "error":
            codes.append((made.get("t"), made["code"]))
    assert {code for _, code in codes} <= errors.BY_CODE.keys() - {"internal", "timeout", "lost"}, codes
    ends = [code for t, code in codes if t is None]
    if not allowed:
        assert (ends, is_served) == (["out-of-turn"], False), codes
    elif is_the_end(odd):
        assert (codes, is_served) == ([], False)  # the client is told nothing any more
    else:
        assert is_served == (not ends), codes
        assert "out-of-turn" not in ends, codes


LATER = 50
AFTER = frame(STOP) + frame({"type": "ping", "t": LATER})
"""What is said behind the odd message: an end of what is open, and a question to see that it was handled."""


@pytest.mark.parametrize("name", WAYS)
def test_a_server_answers_every_message_in_every_state(shared: ftransfer.Server, home: Path, name: str) -> None:
    """What the table does not allow ends the connection with `out-of-turn`; all else is handled, and what follows."""
    way = WAYS[name]
    before = seen(home)
    for odd in odd_messages():
        with Peer.dial(shared.urls[0]) as peer:
            peer.socket.settimeout(SOON)
            talk = Talk(peer)
            talk.go(way)
            peer.send_raw(frame(odd) + body_of(odd) + (b"" if is_the_end(odd) else AFTER))
            if way.late:
                talk.hear(way.late)
            assert talk.state() == way.state
            try:
                judge(talk, odd)
            except (AssertionError, TimeoutError) as exc:
                raise AssertionError(f"{odd} behind {name}: {exc!r}") from exc
    assert seen(home) == before
    serves_well(shared)


def test_a_server_takes_hello_first_and_nothing_after_the_end(shared: ftransfer.Server, home: Path) -> None:
    """The two other states of a connection: before hello all else is refused, after an error nothing is heard."""
    before = seen(home)
    for odd in odd_messages():
        with Peer.dial(shared.urls[0], greet=False) as peer:
            if odd["type"] != "hello":
                peer.send(odd, body_of(odd))
                assert peer.expect("error", t=None)["code"] == "out-of-turn"
                assert peer.is_closed_by_peer()
        with Peer.dial(shared.urls[0]) as peer:
            peer.send({"type": "error", "code": "a", "message": "a"})
            peer.try_to_send(frame(odd) + body_of(odd) + AFTER)
            assert peer.drain() == b""
    assert seen(home) == before
    serves_well(shared)


# The client's side.


Place = tuple[str, str, str]
"""Where a server is: what was asked of it, the state of that, and what an honest one says then, if anything."""


AHEAD = {
    ("put", session.FLOWING): (session.ENDED, session.RECEIVER),
    ("get", session.HELD): (session.FLOWING, session.SENDER),
}
"""Where the client goes on by itself: the state that it may be in already, and what the server is in it."""


class Turned(Exception):
    """The odd message was said, and the connection has ended."""


class Plot:
    """At which place of a conversation a server says which message, once.

    Arguments: `act` does something else there; it gets the connection, and the frame that an honest server would send.
    """

    def __init__(
        self, place: Place | None = None, kind: str = "", *, act: Callable[[Peer, bytes], object] | None = None
    ):
        self.place = place
        self.kind = kind
        self.act = act
        self.met: list[Place] = []
        self.allowed: bool | None = None
        """Whether it may come there; None until it has come."""

    def turn(self, place: Place, t: int, model: Session) -> Header | None:
        """Return the odd message if its turn has come."""
        if place not in self.met:
            self.met.append(place)
        if place != self.place or self.allowed is not None:
            return None
        odd = said(self.kind or "working", t or 1)
        if self.kind in BEGINNINGS:
            odd["t"] = model.last_t + 1
        elif self.kind == "error" and not t:
            del odd["t"]
        try:
            model.saw(parsed(odd), SERVER)
            self.allowed = True
        except OutOfTurn:
            ahead = AHEAD.get(place[:2])
            self.allowed = ahead is not None and (*ahead, self.kind) in session.TRANSFER
        return odd


class Followed(Peer):
    """The server's end of a connection, followed in a session of our own; says something odd when its turn comes."""

    plot: Plot
    model: Session
    asked: dict[int, str]

    def receive(self) -> Header | None:
        """Take note of what the client says."""
        made = super().receive()
        if made is not None:
            self.model.saw(parsed(made), CLIENT)
            if made["type"] in BEGINNINGS:
                self.asked[made["t"]] = made["type"]
        return made

    def send(self, header: Header | bytes, body: bytes = b"", *, length: int | None = None) -> None:
        """Say what an honest server says; or, in its place, the odd message, and then nothing more."""
        assert isinstance(header, dict)
        self.pause(header.get("t", 0), header["type"], frame(header) + body)
        self.model.saw(parsed(header), SERVER)
        super().send(header, body, length=length)

    def pause(self, t: int, kind: str = "", honest: bytes = b"") -> None:
        """Say the odd message if its turn has come, where an honest server says this, or nothing."""
        over = session.OVER if t else self.model.state
        state = self.model._open[t].state if self.model.is_open(t) else over
        odd = self.plot.turn((self.asked.get(t, "hello"), state, kind), t, self.model)
        if odd is None:
            return
        if self.plot.act is not None:
            self.plot.act(self, honest)
        else:
            super().send(odd, body_of(odd))
            self.hang_up()
        self.drain()
        raise Turned


class Turncoat(FakeTreeServer):
    """A server that is honest up to the message that its plot wants to be another one."""

    plot = Plot()

    def _serve(self, peer: Peer) -> None:
        made = Followed(peer.socket)
        made.plot, made.model, made.asked = self.plot, Session(), {}
        try:
            made.expect("hello")
            made.send(WELCOME)
            while (message := made.receive()) is not None:
                answer = self._answers.get(message["type"])
                if answer is not None:
                    answer(made, message)
        except Turned:
            pass


HELLO = b"hello"
BIG = b"0123456789abcdef" * 10_000
HALF = len(BIG) // 2
TIME = 10**18
FILES = {"f": BIG, "g": HELLO}
"""Files of the server by the last letter of their path; other names are folders."""


def gives(peer: Peer, asked: Header) -> None:
    """Answer a get: with a file, or with the error that a folder has."""
    assert isinstance(peer, Followed)
    t, data = asked["t"], FILES.get(asked["path"][-1])
    if data is None:
        peer.send({"type": "error", "t": t, "code": "not-a-file", "message": "it is a folder"})
        return
    peer.send({"type": "file", "t": t, "size": len(data), "mtime_ns": TIME, "fingerprint": f"{len(data)}-{TIME}"})
    missing = 0
    if asked.get("wait"):
        peer.pause(t)
        missing = next((offset for offset, _ in peer.expect("want")["ranges"]), len(data))
    for at in range(missing, len(data), HALF):
        peer.send_block(t, at, data[at : at + HALF])
    peer.send_end(t, asked["path"], data)
    peer.pause(t)


def takes(peer: Peer, asked: Header) -> None:
    """Answer a put up to its receipt."""
    assert isinstance(peer, Followed)
    t = asked["t"]
    if asked.get("wait"):
        peer.send({"type": "want", "t": t, "ranges": [[0, None]]})
    while (made := peer.receive()) is not None and made["type"] == "block":
        peer.send({"type": "stored", "t": t, "offset": made["offset"], "ok": True})
    if made is not None and made["type"] == "end":
        peer.send({"type": "receipt", "result": "stored"} | {k: made[k] for k in ("t", "path", "size", "hash")})
        peer.pause(t)


def is_described(peer: Peer, asked: Header) -> None:
    """Answer a stat."""
    name = asked["path"][-1:]
    row = [name, "file", len(FILES[name]), TIME, 0o644] if name in FILES else ["x", "folder", 0, 1, 0o755]
    peer.send({"type": "entries", "t": asked["t"], "rows": [row]})


def is_fetched(peer: Peer, asked: Header) -> None:
    """Answer a fetch: one file in two packs, of what else is asked for that it is to be asked for alone."""
    alone = [[name, "alone", ""] for name in asked["names"] if name != "g"]
    files = [["g", len(HELLO), block_hash(HELLO), TIME, 0o644]]
    if alone:
        peer.send({"type": "pack", "t": asked["t"], "failed": alone})
    if len(alone) < len(asked["names"]):
        peer.send({"type": "pack", "t": asked["t"], "files": files, "body": len(HELLO)}, HELLO)
    peer.send({"type": "done", "t": asked["t"]})


def says(kind: str, **fields: Any) -> Answer:
    """Return what answers a request with one message."""
    return lambda peer, asked: peer.send({"type": kind, "t": asked["t"]} | fields)


def repeats(kind: str, row: list[Any]) -> Answer:
    """Return what answers a question about many names with the same for each."""
    return lambda peer, asked: peer.send({"type": kind, "t": asked["t"], "rows": [row] * len(asked["names"])})


LISTED = [[name, "file", len(data), TIME, 0o644] for name, data in FILES.items()]
HONESTLY: dict[str, Answer] = {
    "get": gives,
    "put": takes,
    "stat": is_described,
    "list": says("entries", rows=LISTED),
    "fetch": is_fetched,
    "tree": says("ready", exists=True),
    "pack": says("receipts", packs=1),
    "stats": repeats("found", ["file", len(HELLO), 1, 0o644]),
    "checksum": says("digest", size=5, hash=block_hash(HELLO)),
    "checksums": repeats("digests", [len(HELLO), block_hash(HELLO)]),
    "mkdir": says("done"),
    "remove": says("done"),
    "move": says("done"),
    "partials": says("staged", rows=[["f", 10, 5, 1]]),
    "ping": says("pong"),
}
Call = Callable[[ftransfer.Remote, Path], object]
CALLS: dict[str, Call] = {
    "upload": lambda r, _: r.upload(b"x" * 20, "g"),
    "upload two": lambda r, here: r.upload([here / "mine/a", here / "big"], "x", compare="none"),
    "upload a folder": lambda r, here: r.upload(here / "mine", ""),
    "mirror a folder": lambda r, here: r.upload(here / "mine", "", delete=True),
    "download": lambda r, here: r.download("f", here / "f", compare="none"),
    "go on with a download": lambda r, here: r.download("f", here / "begun" / "f", compare="none"),
    "download a folder": lambda r, here: r.download("tree", here),
    "verify": lambda r, here: r.verify(here / "big", "f"),
    "verify a folder": lambda r, here: r.verify_folder(here / "same", "tree"),
    "list": lambda r, _: list(r.list("")),
    "stat": lambda r, _: r.stat("f"),
    "checksum": lambda r, _: r.checksum("f"),
    "checksums": lambda r, _: list(r.checksums(["f"])),
    "mkdir": lambda r, _: r.mkdir("f"),
    "remove": lambda r, _: r.remove("f"),
    "move": lambda r, _: r.move("f", "g"),
    "partials": lambda r, _: r.partials(),
    "ping": lambda r, _: r.ping(),
}


@pytest.fixture(scope="module")
def turncoat() -> Iterator[Turncoat]:
    """One server for all of them, which gets a plot for each call."""
    with Turncoat(**HONESTLY) as running:
        yield running


def planted(folder: Path) -> Path:
    """Return a local folder with what is uploaded, and with what a download must not touch."""
    seeds: Seeds = {"mine/a": HELLO, "mine/b/c": b"other", "same/g": HELLO, "same/f": BIG, "big": BIG, "tree/kept": OLD}
    here = plant(folder / "here", seeds)
    (here / "begun").mkdir()
    (here / "f").write_bytes(OLD)
    (folder / "outside").write_bytes(OLD)
    return here


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Such a folder for one test."""
    return planted(tmp_path)


def called(server: Turncoat, plot: Plot, act: Call, here: Path, timeout: float = 2 * SOON) -> FtransferError | None:
    """Make a client call a server with this plot; return the error of ours that comes, any other fails the test."""
    server.plot = plot
    with ftransfer.connect(server.url, timeout=timeout, retry_for=0, max_time=SOON) as remote:
        try:
            act(remote, here)
        except FtransferError as exc:
            return exc
    return None


def codes_of(error: FtransferError | None) -> set[str]:
    """Return the codes of an error and of what it has to say about each of several files."""
    if error is None:
        return set()
    files = error.results.files if error.results is not None else ()
    return {error.code} | {file.error.code for file in files if file.error is not None}


def begin(server: Turncoat, here: Path) -> None:
    """Leave a download in the middle, so that the next one goes on."""
    (here / "begun/f").unlink(missing_ok=True)
    cut = Plot(("get", session.FLOWING, "end"), "working")
    assert called(server, cut, CALLS["go on with a download"], here) is not None
    assert (here / "begun/.ftransfer").exists()


def forget(here: Path) -> None:
    """Remove what earlier downloads have left to go on with."""
    for path in list(here.rglob(".ftransfer*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def tidied(here: Path) -> dict[str, bytes]:
    """Return the local files that were there before; remove what came, which has to be whole."""
    found = {}
    for path in sorted(here.parent.rglob("*")):
        name = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
        if not path.is_file() or ".ftransfer" in name or name.startswith("begun"):
            continue
        if name in ("tree/f", "tree/g"):
            assert path.read_bytes() == FILES[name[-1]]
            path.unlink()
        else:
            found[name] = path.read_bytes()
    return found


def run(server: Turncoat, name: str, plot: Plot, here: Path, timeout: float = 2 * SOON) -> FtransferError | None:
    """Make a call as if it were the first."""
    forget(here)
    tidied(here)
    (here / "f").write_bytes(OLD)
    if name == "go on with a download":
        begin(server, here)
    return called(server, plot, CALLS[name], here, timeout)


def find_places(server: Turncoat, here: Path) -> dict[str, list[Place]]:
    """Return where an honest server says something in each call: each place once, but for those where it may not."""
    met: set[Place] = set()
    found = {}
    for name in CALLS:
        plot = Plot()
        assert run(server, name, plot, here) is None
        found[name] = [place for place in plot.met if place not in met or not place[2]]
        met.update(plot.met)
    return found


@pytest.fixture(scope="module")
def places(turncoat: Turncoat, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Place]]:
    """The places of each call."""
    return find_places(turncoat, planted(tmp_path_factory.mktemp("places")))


def test_every_state_of_a_client_is_driven(places: dict[str, list[Place]]) -> None:
    """The calls lead through every request and every state of the table."""
    met = [place for found in places.values() for place in found]
    assert {state for _, state, _ in met} == {state for state, _, _ in session.TRANSFER} | {
        session.GREETED,
        session.WAITING,
    }
    assert {name for name, _, _ in met} == BEGINNINGS | {"hello"}


@pytest.mark.parametrize("name", CALLS)
def test_a_client_bears_every_message_in_every_state(
    turncoat: Turncoat, places: dict[str, list[Place]], here: Path, name: str
) -> None:
    """What the table does not allow is an error of the protocol at once; all else is one of ours, or well."""
    before = tidied(here)
    for place, kind in itertools.product(places[name], KINDS):
        plot = Plot(place, kind)
        error = run(turncoat, name, plot, here)
        where = (place, kind, error)
        if error is None and not place[2]:
            continue  # it had all that it wanted
        assert plot.allowed is not None, where
        if plot.allowed:
            assert not codes_of(error) & {"internal", "timeout"}, where
        else:
            assert codes_of(error) & PROTOCOL, where
        assert tidied(here) == before, where

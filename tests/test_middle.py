"""A man in the middle: a line between a real client and a real server that flips, cuts, repeats, swaps and drops.

In clear, chance is found: a byte that is flipped in a body by the hash of its block or file, one that is flipped in a
header by the rules of fields and of the session, or by the end of a file, which says its path, size and hash again. So
the call ends in an error, or the right bytes have the final name; it never hangs.

Not promised in clear: that somebody who understands the protocol is found, who makes hashes anew or leaves frames out;
that times and modes arrive; that the files of a folder arrive under their own names, and all of them, because rows have
no hash of their own; that what is listed, hashed or verified is what is there. That is the work of TLS: there every
tampering ends in an error, and nothing is stored.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from forests import Link, Seeds, plant
from support import address_of, nothing_leaks, serves_well, share_token

import ftransfer
from ftransfer.errors import FtransferError

OLD = b"the old content"
PATIENCE = 1.0
"""Seconds of silence that both ends bear: a length that was flipped makes one wait for bytes that never come."""
MOST = 8.0
"""Seconds within which a call has to be over."""
WORKERS = 12
"""Cases at a time: most of them wait."""
UP, DOWN = "up", "down"
RECORD = 5
"""Bytes of a TLS record before what is in it: type, version, length (RFC 8446, 5.1)."""
CHANGE_CIPHER_SPEC = 0x14
"""A record without meaning in TLS 1.3, which may come any number of times, or not (RFC 8446, 5)."""


# What goes over the line, unit by unit: a frame with its body in clear, a record under TLS.


class Unit(NamedTuple):
    """One frame or record: which of a call's connections, the direction, the number in it; its head, and all of it."""

    connection: int
    way: str
    number: int
    head: int
    data: bytes


Cut = Callable[[bytes], tuple[int, int] | None]
"""Returns how long the first unit of some bytes is, and its head; None if it is not complete."""


def frame_in(data: bytes) -> tuple[int, int] | None:
    """Find a frame: its head are the length and the header, the rest is its body."""
    if len(data) < 4:
        return None
    head = 4 + int(struct.unpack("!I", data[:4])[0])
    if len(data) < head:
        return None
    whole = head + int(json.loads(data[4:head]).get("body", 0))
    return (whole, head) if len(data) >= whole else None


def record_in(data: bytes) -> tuple[int, int] | None:
    """Find a TLS record."""
    if len(data) < RECORD:
        return None
    whole = RECORD + int.from_bytes(data[3:5])
    return (whole, RECORD) if len(data) >= whole else None


class Tamper(NamedTuple):
    """What is done to which unit; `at` and `mask` say what is flipped, or where the line is cut."""

    what: str
    connection: int
    way: str
    number: int
    at: int = 0
    mask: int = 1


class Middle:
    """A line to a server that tampers with one unit.

    What is no unit any more goes through as it comes: behind a flipped length neither end knows where it stands.
    """

    def __init__(self, url: str, cut: Cut, tamper: Tamper | None = None):
        self._target = address_of(url)
        self._cut = cut
        self._tamper = tamper
        self._listener = socket.create_server(("127.0.0.1", 0))
        share_token(url, self._listener)
        self.port = self._listener.getsockname()[1]
        self.units: list[Unit] = []
        self.was_done = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="middle")]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for sock in self._sockets:
            _shut(sock)
        for thread in self._threads[1:]:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            for way, source, sink in ((UP, client, server), (DOWN, server, client)):
                thread = threading.Thread(target=self._pump, args=(number, way, source, sink), name="middle-pump")
                self._threads.append(thread)
                thread.start()

    def _pump(self, connection: int, way: str, source: socket.socket, sink: socket.socket) -> None:
        waiting, buffer = b"", b""
        number = 0
        try:
            while data := source.recv(1 << 16):
                buffer += data
                while (found := self._cut(buffer)) is not None:
                    unit = Unit(connection, way, number, found[1], buffer[: found[0]])
                    buffer = buffer[found[0] :]
                    number += 1
                    self.units.append(unit)
                    waiting = self._pass_on(unit, waiting, sink)
            sink.sendall(waiting + buffer)
            sink.shutdown(socket.SHUT_WR)
        except (OSError, _CutHere):
            _shut(source)
            _shut(sink)

    def _pass_on(self, unit: Unit, waiting: bytes, sink: socket.socket) -> bytes:
        """Send a unit, changed if it is its turn, and what waited to be swapped with it; return what waits now."""
        tamper = self._tamper
        if tamper is None or unit[:3] != tamper[1:4]:
            sink.sendall(unit.data + waiting)
            return b""
        self.was_done.set()
        if tamper.what == "swap":
            return unit.data
        if tamper.what == "cut":
            sink.sendall(unit.data[: tamper.at])
            raise _CutHere
        sink.sendall(_changed(unit.data, tamper))
        return b""


class _CutHere(Exception):
    """The line ends here."""


def _changed(data: bytes, tamper: Tamper) -> bytes:
    if tamper.what == "flip":
        made = bytearray(data)
        made[min(tamper.at, len(data) - 1)] ^= tamper.mask  # a signature, say, is not always as long
        return bytes(made)
    return {"replay": data + data, "drop": b""}[tamper.what]


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already


# What is called, and what has to be there then.

FOLDER: Seeds = {"a": b"small", "b/c": 3000, "b/d": b"", "e": 200_000, "empty": None, "link": Link("b/c")}
LARGE = 150_000


class Place(NamedTuple):
    """Where one call has its files: a folder of the server that is its own, and one here."""

    there: Path
    here: Path
    name: str


Call = Callable[[ftransfer.Remote, Place], object]
CALLS: dict[str, Call] = {
    "upload": lambda r, p: r.upload(p.here / "large", f"{p.name}/large"),
    "upload at once": lambda r, p: r.upload(p.here / "small", f"{p.name}/small"),
    "download": lambda r, p: r.download(f"{p.name}/there/large", p.here / "got", compare="none"),
    "upload a folder": lambda r, p: r.upload(p.here / "tree", p.name),
    "download a folder": lambda r, p: r.download(f"{p.name}/there/tree", p.here / "trees"),
}
ASKING: dict[str, Call] = {
    "list": lambda r, p: list(r.list(f"{p.name}/there", recursive=True)),
    "checksum": lambda r, p: r.checksum(f"{p.name}/there/large"),
    "remove": lambda r, p: r.remove(f"{p.name}/there/small"),
    "move": lambda r, p: r.move(f"{p.name}/there/small", f"{p.name}/there/moved"),
    "verify a folder": lambda r, p: r.verify_folder(p.here / "tree", f"{p.name}/there/tree"),
}


def often(names: Iterable[str], *quick: str) -> list[Any]:
    """Return the calls as parameters, of which only these are made each time and the others with the slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


"""Calls whose tampering is found under TLS only."""


class Line:
    """A server, and how a client reaches it through a middle: in clear, or by TLS with a fingerprint that it knows."""

    def __init__(self, server: ftransfer.Server, root: Path, home: Path, *, tls: bool):
        self.server = server
        self.root = root
        self.cut = record_in if tls else frame_in
        self._home = home
        self._tls = tls
        self._numbers = itertools.count()

    def place(self) -> Place:
        """Return new folders with something in them, the same each time."""
        name = f"case{next(self._numbers)}"
        there, here = self.root / name, self._home / name
        for folder, inner in ((there, there / "there"), (here, here)):
            plant(folder, {})
            plant(inner / "tree", FOLDER, seed=1)
            plant(inner, {"large": LARGE, "small": b"some bytes"}, seed=2)
        (there / "large").write_bytes(OLD)
        (there / "small").write_bytes(OLD)
        (here / "got").write_bytes(OLD)
        (here / "trees").mkdir()
        return Place(there, here, name)

    def call(
        self, act: Call, place: Place, tamper: Tamper | None = None
    ) -> tuple[FtransferError | None, Middle, float]:
        """Make a call through a middle; return the error of ours in which it ended, the line, and the seconds."""
        error = None
        with Middle(self.server.urls[0], self.cut, tamper) as middle:
            scheme = "ft+tls" if self._tls else "ft"
            fingerprint = self.server.fingerprint if self._tls else None
            url = f"{scheme}://127.0.0.1:{middle.port}/"
            started = time.monotonic()
            with ftransfer.connect(
                url, fingerprint=fingerprint, timeout=PATIENCE, retry_for=0, max_time=MOST
            ) as remote:
                try:
                    act(remote, place)
                except FtransferError as exc:
                    error = exc
            took = time.monotonic() - started
        return error, middle, took


# What is tampered with.


def places(unit: Unit, count: int) -> list[tuple[int, int]]:
    """Return where a unit is flipped, with masks: in the length, spread over the head, in the body."""
    size = len(unit.data)
    found = [(3, 1), (1, 0x80)] if unit.head > RECORD else [(0, 1), (4, 1), (3, 0x80)]  # a record's version is ignored
    if unit.head > RECORD:
        found += [(4 + (unit.head - 5) * step // (count - 1), 1) for step in range(count)]
    if size > unit.head:
        found += [(unit.head, 1), (unit.head + (size - unit.head) // 2, 4), (size - 1, 0x80)]
    return found


def tampers(unit: Unit, count: int) -> list[Tamper]:
    """Return what can be done to a unit."""
    where = unit[:3]
    middle = (unit.head + len(unit.data)) // 2
    made = [Tamper("flip", *where, at, mask) for at, mask in places(unit, count)]
    made += [Tamper("cut", *where, at) for at in (0, 3, middle)]
    if unit.data[0] != CHANGE_CIPHER_SPEC:
        made += [Tamper(what, *where) for what in ("replay", "swap", "drop")]
    return made


def some(units: Sequence[Unit]) -> list[Tamper]:
    """Return a few of what can be done to each unit, others for each."""
    chosen = []
    for number, unit in enumerate(units):
        found = tampers(unit, 5)
        chosen += [found[at % len(found)] for at in range(number, number + 5 * 7, 7)]
    return chosen


def telling(units: Sequence[Unit]) -> list[Unit]:
    """Return the units of a call that are unlike those beside them: of a row of full records the first and last."""
    found = []
    for before, unit, after in zip([None, *units], units, [*units[1:], None], strict=False):
        if not (before and after and len(before.data) == len(unit.data) == len(after.data) > 1 << 14):
            found.append(unit)
    return found


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, but the store's own."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and ".ftransfer" not in str(path):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


class Case(NamedTuple):
    """What became of a call that was tampered with."""

    tamper: Tamper
    error: FtransferError | None
    seconds: float
    before: tuple[dict[str, bytes], dict[str, bytes]]
    after: tuple[dict[str, bytes], dict[str, bytes]]

    @property
    def is_harmless(self) -> bool:
        """Whether every file is what it was."""
        return self.after == self.before


def tried(line: Line, act: Call, tampers: Sequence[Tamper]) -> list[Case]:
    """Make a call with each of these, several at a time."""

    def one(tamper: Tamper) -> Case:
        place = line.place()
        before = files_below(place.there), files_below(place.here)
        error, _, seconds = line.call(act, place, tamper)
        return Case(tamper, error, seconds, before, (files_below(place.there), files_below(place.here)))

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(one, tampers))


def undisturbed(line: Line, act: Call) -> tuple[Sequence[Unit], tuple[dict[str, bytes], dict[str, bytes]]]:
    """Make a call that nobody tampers with; return what went over the line and the files there and here."""
    place = line.place()
    error, middle, _ = line.call(act, place)
    assert error is None
    return middle.units, (files_below(place.there), files_below(place.here))


def is_whole(case: Case, right: tuple[dict[str, bytes], dict[str, bytes]]) -> bool:
    """Tell whether each file that was there before is there, and each is as it was or as it should become."""
    return all(
        before.keys() <= after.keys()
        and all(data in (before.get(name), good.get(name)) for name, data in after.items())
        for before, good, after in zip(case.before, right, case.after, strict=True)
    )


def is_known(case: Case, right: tuple[dict[str, bytes], dict[str, bytes]]) -> bool:
    """Tell whether what was there is there, and each file, whatever its name, has the whole content of one of them."""
    known = {data for files in (*case.before, *right) for data in files.values()}
    return all(
        all(after.get(name) in (data, good.get(name)) for name, data in before.items()) and set(after.values()) <= known
        for before, good, after in zip(case.before, right, case.after, strict=True)
    )


# In clear.


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line in clear."""
    yield from _line(tmp_path_factory.mktemp("clear"), tls=False)


def _line(folder: Path, *, tls: bool) -> Iterator[Line]:
    root = folder / "root"
    root.mkdir()
    limits = ftransfer.Limits(handshake_seconds=PATIENCE, connections_per_address=200)
    cert = certificate(folder) if tls else None
    with (
        nothing_leaks(),
        ftransfer.Server(root, durable=False, timeout=PATIENCE, limits=limits, cert=cert) as server,
    ):
        yield Line(server, root, folder, tls=tls)
        serves_well(server)


def check_clear(line: Line, name: str, choose: Callable[[Sequence[Unit]], list[Tamper]]) -> None:
    """Tamper with a call in clear; fail the test if a wrong file came of it, or another error than ours."""
    units, right = undisturbed(line, CALLS[name])
    for case in tried(line, CALLS[name], choose(units)):
        assert case.seconds < MOST, case[:3]
        assert case.error is None or case.error.code != "internal", case[:3]
        if name.endswith("folder"):
            assert is_known(case, right), case[:3]
        else:
            assert is_whole(case, right), case[:3]
            assert case.error is not None or case.after == right, case[:3]


@pytest.mark.parametrize("name", often(CALLS, "upload", "download"))
def test_chance_in_clear_is_an_error_or_does_no_harm(clear: Line, name: str) -> None:
    """The final name has what it had or what it should have; of a folder each file has the content of one of them."""
    check_clear(clear, name, some)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CALLS)
def test_every_byte_in_clear(clear: Line, name: str) -> None:
    """The same for each byte of each header."""
    check_clear(clear, name, lambda units: [tamper for unit in units for tamper in tampers(unit, unit.head)])


# By TLS.


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line by TLS."""
    pytest.importorskip("cryptography", reason="without the package cryptography no certificate can be made")
    yield from _line(tmp_path_factory.mktemp("tls"), tls=True)


def certificate(folder: Path) -> str:
    """Return the path of a certificate with its key."""
    from ftransfer.statedir import StateDir
    from ftransfer.tls import IDENTITY, own_identity

    state = StateDir(folder / "identity")
    own_identity(state)
    return state.where(IDENTITY)


def needed(units: Sequence[Unit]) -> list[Unit]:
    """Return the records of each connection up to the last that the client needs: what it says then is not answered."""
    found = []
    for connection in {unit.connection for unit in units}:
        its = [unit for unit in units if unit.connection == connection]
        last = max(at for at, unit in enumerate(its) if unit.way == DOWN and len(unit.data) != GOODBYE)
        found += its[: last + 1]
    return found


HANDSHAKE = {UP: 3, DOWN: 6}
"""Records of a handshake, which are the same for each call."""
GOODBYE = 24
"""Bytes of the record that closes a stream of TLS: two, their kind and a tag of sixteen, behind the head."""


def is_late(tamper: Tamper, units: Sequence[Unit], name: str) -> bool:
    """Tell whether an end may have all that it wants before it meets this, or says this only when it has that."""
    last = max(unit.number for unit in units if (unit.connection, unit.way) == (tamper.connection, tamper.way))
    if "download" in name and tamper.way == UP:
        return tamper.number >= last - 1  # that a block is stored, and the receipt
    return tamper.what == "replay" and tamper.number == last


def check_secure(line: Line, name: str, choose: Callable[[Sequence[Unit]], list[Tamper]]) -> None:
    """Tamper with a call by TLS; fail the test unless each ends in an error, and what the client said was not done."""
    act = (CALLS | ASKING)[name]
    units, right = undisturbed(line, act)
    theirs = needed(units)
    chosen = [unit for unit in telling(theirs) if name == "upload" or unit.number >= HANDSHAKE[unit.way]]
    for case in tried(line, act, choose(chosen)):
        what = case.tamper, case.error
        assert case.seconds < MOST, what
        late = is_late(case.tamper, theirs, name)
        if case.error is None:
            assert late, what
            assert case.after == right, what
            continue
        no_tls = case.tamper.number == 0 and case.error.code == "tls"  # the first byte is what tells
        assert case.error.exit_status in (4, 12) or no_tls, what
        done = case.after[0] == right[0] and (late or case.tamper.way == DOWN)
        assert case.after[0] == case.before[0] or done, what
        if name in CALLS:
            assert is_whole(case, right), what


@pytest.mark.parametrize("name", often({*CALLS, *ASKING}, "upload", "download", "list"))
def test_every_tampering_with_tls_is_an_error(secure: Line, name: str) -> None:
    """Of the handshake, of what is asked and of what is answered; what was tampered with on its way up is not done."""
    check_secure(secure, name, some)

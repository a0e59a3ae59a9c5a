"""What a server bears: connections, strangers, time, staged and stored bytes; and that it comes back to what it was."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Certificate
from command import run, run_here
from support import (
    PATIENCE,
    Peer,
    address_of,
    block_hash,
    content_of,
    descriptors,
    frame,
    nothing_leaks,
    put,
    serves_well,
    staged,
    thread_count,
    token_for,
    unharmed,
    wait_until,
)

import ftransfer
from ftransfer import admission, channel, errors, reception
from ftransfer.statedir import StateDir
from ftransfer.users import Users

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait in this process look up often."""
    monkeypatch.setattr(channel, "TICK", 0.05)
    monkeypatch.setattr(reception, "TURN_AWAY_SECONDS", 0.3)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("authority")).sign("127.0.0.1")


@pytest.fixture(params=["in the clear", "over TLS"])
def limited(request: pytest.FixtureRequest, root: Path, certificate: Certificate) -> Callable[..., ftransfer.Server]:
    """Return what makes a server with these limits, whose clients come in the clear or over TLS."""

    def make(**limits: Any) -> ftransfer.Server:
        files = {"cert": certificate.path, "key": certificate.key} if request.param == "over TLS" else {}
        return ftransfer.Server(root, durable=False, limits=ftransfer.Limits(**limits), **files)

    return make


def url_of(server: ftransfer.Server) -> str:
    """Return the address, with TLS if the server has a certificate."""
    scheme = "ft+tls" if server.fingerprint else "ft"
    return f"{scheme}://{server.urls[0].partition('://')[2]}"


def client(server: ftransfer.Server, *, token: str | None = None, **options: Any) -> ftransfer.Remote:
    """Return a client that tries once."""
    options = {"retry_for": 0, "timeout": 10} | options
    return ftransfer.connect(url_of(server), fingerprint=server.fingerprint, token=token, **options)


def dial(server: ftransfer.Server, host: str = "127.0.0.1") -> socket.socket:
    """Return a silent connection that comes from this address."""
    return socket.create_connection(address_of(server.urls[0]), timeout=PATIENCE, source_address=(host, 0))


def is_over(sock: socket.socket) -> bool:
    """Tell whether the server has ended a connection that says nothing."""
    sock.settimeout(0)
    try:
        return sock.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@contextmanager
def connected(server: ftransfer.Server, host: str = "127.0.0.1") -> Iterator[Peer]:
    """Give a connection that was let in, from this address."""
    sock = dial(server, host)
    if server.fingerprint:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    with Peer(sock) as peer:
        peer.send({"type": "hello", "versions": [1], "software": "x", "token": token_for(server.urls[0])})
        peer.expect("welcome")
        yield peer


def is_empty(server: ftransfer.Server) -> bool:
    """Tell whether nobody is counted anywhere any more."""
    counted = server._reception
    held = [counted._inside, counted._turned_away, counted._strangers, +counted._by_group, server._threads]
    return not any(held)


# Connections.


def test_beyond_the_limit_of_connections(limited: Callable[..., ftransfer.Server]) -> None:
    """Code `full`, told in the client's own language; there is room again when one has left."""
    with limited(connections=2) as server:
        serves_well(server)
        with nothing_leaks():
            with connected(server), connected(server):
                for _ in range(3):
                    with client(server) as remote, pytest.raises(errors.ServerFull) as caught:
                        remote.ping()
                    assert (caught.value.code, caught.value.exit_status, caught.value.remote) == ("full", 4, True)
                    assert "2 connections, which is its limit" in str(caught.value)
                waiting = client(server, retry_for=PATIENCE)
            with waiting:
                assert waiting.ping().user == "owner"
            wait_until(lambda: is_empty(server), "coming back to nothing")


def test_beyond_the_limit_of_an_address(limited: Callable[..., ftransfer.Server]) -> None:
    """Other addresses are served meanwhile."""
    with limited(connections_per_address=2) as server:
        with connected(server, "127.0.0.2"), connected(server, "127.0.0.2"):
            with pytest.raises((AssertionError, OSError)), connected(server, "127.0.0.2"):
                pass
            serves_well(server)
            with connected(server, "127.0.0.3"):
                pass
        wait_until(lambda: is_empty(server), "coming back to nothing")
        with connected(server, "127.0.0.2"):
            pass


def test_beyond_the_limit_of_a_user(root: Path, known: Users) -> None:
    """Nobody but the owner takes all places; others still get in, and the place comes back."""
    lab, other = known.add("lab"), known.add("other")
    with serving(root, connections_per_user=2) as server, ExitStack() as stack:
        held = [stack.enter_context(greeted(server, lab)) for _ in range(2)]
        for _ in range(3):
            with client(server, token=lab) as remote, pytest.raises(errors.ServerFull, match="limit of one user"):
                remote.ping()
        with client(server, token=other) as remote:
            assert remote.ping().user == "other"
        for _ in range(3):
            owner = stack.enter_context(client(server))
            assert owner.ping().user == "owner"
        held[0].socket.close()
        with client(server, token=lab, retry_for=PATIENCE) as remote:
            assert remote.ping().user == "lab"


def test_one_user_takes_half_of_the_places_at_most(root: Path, known: Users) -> None:
    """Also where the limits are set otherwise."""
    token = known.add("lab")
    with serving(root, connections=6, connections_per_user=100) as server, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(greeted(server, token))
        with client(server, token=token) as remote, pytest.raises(errors.ServerFull):
            remote.ping()
        with client(server) as remote:
            assert remote.ping().user == "owner"


def test_who_comes_by_a_unix_socket_is_not_counted_by_address(root: Path, tmp_path: Path) -> None:
    """There is one user only, and all are of it."""
    limits = ftransfer.Limits(connections_per_address=2)
    with ftransfer.Server(root, listen=[f"unix:{tmp_path / 's'}"], limits=limits) as server, ExitStack() as stack:
        for _ in range(5):
            remote = stack.enter_context(ftransfer.connect(server.urls[0], retry_for=0))
            assert remote.ping().user == "owner"


def test_more_than_can_be_told_are_just_closed(limited: Callable[..., ftransfer.Server]) -> None:
    """A crowd beyond the limit takes a bounded number of threads, and nobody's place."""
    with limited(connections=1) as server, connected(server) as inside, ExitStack() as stack:
        before = thread_count()
        crowd = [stack.enter_context(dial(server)) for _ in range(reception.TURNED_AWAY + 30)]
        assert thread_count() <= before + reception.TURNED_AWAY + 1
        wait_until(lambda: all(map(is_over, crowd)), "turning the crowd away")
        inside.send({"type": "ping", "t": 1})
        inside.expect("pong", t=1)


# Strangers.


def first_byte(server: ftransfer.Server) -> bytes:
    """Return what makes a connection known to the server: those that say nothing the system may keep to itself."""
    return b"\x16" if server.identity is not None else b"\0"


def test_the_stranger_who_waited_longest_goes(limited: Callable[..., ftransfer.Server]) -> None:
    """One more than are borne ends the first one; who was let in before stays."""
    with limited(unauthenticated=3) as server, connected(server) as inside, ExitStack() as stack:
        silent = []
        for number in range(6):
            silent.append(stack.enter_context(dial(server)))
            silent[-1].sendall(first_byte(server))
            wait_until(lambda n=number: len(server._reception._strangers) == min(n + 1, 3), "counting")  # type: ignore[misc]
        wait_until(lambda: all(map(is_over, silent[:3])), "ending the first three")
        assert not any(map(is_over, silent[3:]))
        with client(server) as remote:
            assert remote.ping().user == "owner"
        inside.send({"type": "ping", "t": 1})
        inside.expect("pong", t=1)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"unauthenticated": 4},
        {"connections": 4},
        {"connections": 4, "unauthenticated": 64},
        {"connections_per_address": 4},
        {"connections": 2, "connections_per_address": 2, "unauthenticated": 2},
    ],
    ids=str,
)
def test_silent_strangers_keep_nobody_out(limited: Callable[..., ftransfer.Server], limits: dict[str, int]) -> None:
    """However many there are, and whichever limit they reach first."""
    with limited(**limits) as server, ExitStack() as stack:
        for _ in range(140):
            stack.enter_context(dial(server))
        with client(server) as remote:
            assert remote.ping().user == "owner"


def test_a_good_client_gets_in_while_strangers_flood(limited: Callable[..., ftransfer.Server]) -> None:
    """They come again and again, say nothing, half a hello, or TLS that goes nowhere; each call is served."""
    with limited(unauthenticated=16) as server:
        done = threading.Event()
        came = [0]

        def flood() -> None:
            sockets: list[socket.socket] = []
            for said in itertools.cycle((b"", b"\0\0\0\x50{", b"\x16\x03\x01\x02\x00\x01")):
                if done.wait(0.001):
                    break
                try:
                    sockets.append(dial(server, "127.0.0.9"))
                    sockets[-1].sendall(said)
                except OSError:
                    pass
                came[0] += 1
                while len(sockets) > 40:
                    sockets.pop(0).close()
            for sock in sockets:
                sock.close()

        crowd = threading.Thread(target=flood)
        crowd.start()
        try:
            wait_until(lambda: came[0] > 50, "the flood")
            for number in range(5):
                before = came[0]
                with client(server) as remote:
                    remote.upload(b"data", f"file-{number}", compare="none")
                wait_until(lambda: came[0] > before + 5, "more of the flood")  # noqa: B023 - called in this round
        finally:
            done.set()
            crowd.join(PATIENCE)
        wait_until(lambda: is_empty(server), "coming back to nothing")


def test_who_is_cut_between_two_sockets_is_cut(
    root: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encryption begins with another socket of the same connection: an end that comes meanwhile is not lost."""
    with ftransfer.Server(root, cert=certificate.path, key=certificate.key) as server:
        serves_well(server)
        identity = server.identity
        assert identity is not None
        wrap = identity.wrap

        def cut_meanwhile(sock: socket.socket) -> ssl.SSLSocket:
            made = wrap(sock)
            for visitor in list(server._reception._strangers):
                visitor.cut()
            return made

        monkeypatch.setattr(identity, "wrap", cut_meanwhile)
        started = time.monotonic()
        with dial(server) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")
            Peer(sock).drain()
        assert time.monotonic() - started < 3
        wait_until(lambda: is_empty(server), "coming back to nothing")


def test_guesses_fill_no_server(limited: Callable[..., ftransfer.Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who shows wrong tokens waits for the answers, and is a stranger meanwhile as all others are."""
    monkeypatch.setattr(admission, "FIRST_PENALTY", 5.0)
    with limited(connections=8, unauthenticated=3) as server, ExitStack() as stack:
        guess = frame({"type": "hello", "versions": [1], "software": "x", "token": "ftt_wrong"})
        for _ in range(20):
            sock = stack.enter_context(dial(server))
            sock.sendall(guess)
        with client(server) as remote:
            assert remote.ping().user == "owner"
        started = time.monotonic()
        wait_until(lambda: server.connection_count <= 4, "the end of the guesses that had to go")
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\0\0\x50{", frame({"type": "hello"})[:-1]], ids=len)
def test_the_opening_has_its_time(limited: Callable[..., ftransfer.Server], root: Path, said: bytes) -> None:
    """Who does not finish is ended, at once or byte by byte; it is told so where it can be."""
    with (
        limited(handshake_seconds=0.4) as server,
        unharmed(server, root),
        dial(server) as sock,
        dial(server) as dribbling,
    ):
        started = time.monotonic()
        sock.sendall(said)
        heard = Peer(sock).drain()
        assert time.monotonic() - started < 3
        assert b"timeout" in heard
        assert Peer(dribbling).dribble((said or b"\0\0\0") + b" " * 200, 0.04, most=5)


def test_storms_leave_nothing_behind(limited: Callable[..., ftransfer.Server], root: Path) -> None:
    """Connecting and leaving, in each way, at each place: counters, descriptors and threads come back."""
    with limited() as server:
        held = descriptors()
        with unharmed(server, root):
            for number in range(60):
                sock = dial(server)
                sock.sendall(frame({"type": "hello", "versions": [1], "software": "x"})[: number % 50])
                if number % 3 == 0:
                    Peer(sock).reset()
                elif number % 3 == 1:
                    sock.shutdown(socket.SHUT_WR)
                    Peer(sock).drain()
                sock.close()
            wait_until(lambda: is_empty(server), "coming back to nothing")
        assert descriptors() <= held + 2


def test_strangers_do_not_delay_the_end(limited: Callable[..., ftransfer.Server]) -> None:
    """The grace is for transfers; who has said nothing, or waits for an answer to a guess, gets none."""
    server = limited(grace_seconds=10.0)
    server.start()
    with dial(server) as waiting, dial(server) as half, dial(server) as shaking:
        waiting.sendall(first_byte(server))
        half.sendall(b"\0\0\0\x50{")
        shaking.sendall(b"\x16\x03\x01\x02\x00\x01")
        wait_until(lambda: server.connection_count == 3, "the connections")
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 3


def test_who_says_nothing_more_is_let_go(limited: Callable[..., ftransfer.Server]) -> None:
    """After `idle_seconds` without a request."""
    with limited(idle_seconds=0.3) as server, connected(server) as peer:
        assert peer.receive() is None
        wait_until(lambda: is_empty(server), "coming back to nothing")


# What is being stored.


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Users:
    """The users of the servers of this test."""
    monkeypatch.setenv("FTRANSFER_STATE", str(tmp_path / "state"))
    return Users(StateDir())


@contextmanager
def serving(root: Path, **limits: Any) -> Iterator[ftransfer.Server]:
    """Serve with these limits."""
    with ftransfer.Server(root, durable=False, limits=ftransfer.Limits(**limits)) as server:
        yield server


def greeted(server: ftransfer.Server, token: str) -> Peer:
    """Return a connection of a user."""
    peer = Peer.dial(server.urls[0], greet=False)
    peer.send({"type": "hello", "versions": [1], "software": "x", "token": token})
    peer.expect("welcome")
    return peer


def test_uploads_that_are_open(root: Path, known: Users) -> None:
    """One more is refused, over all connections; the others go on."""
    with (
        serving(root, uploads=2) as server,
        greeted(server, known.add("lab")) as one,
        greeted(server, known.add("b")) as two,
    ):
        put(one, 1, "a", 10)
        put(two, 1, "b", 10)
        one.send({"type": "ping", "t": 2})
        one.expect("pong")
        two.send({"type": "ping", "t": 2})
        two.expect("pong")
        put(one, 3, "c", 10)
        one.expect("error", t=3, code="full")
        one.send_block(1, 0, b"x" * 10)
        one.expect("stored", t=1)
        one.send_end(1, "a", b"x" * 10)
        one.expect("receipt", t=1)
        put(one, 4, "c", 0)
        one.send_end(4, "c", b"")
        one.expect("receipt", t=4)


def test_uploads_of_one_user(root: Path, known: Users) -> None:
    """Nobody but the owner takes all places of uploads."""
    with (
        serving(root, uploads=100, uploads_per_user=2) as server,
        greeted(server, known.add("lab")) as lab,
        greeted(server, known.add("other")) as other,
    ):
        for number in (1, 2):
            put(lab, number, f"part-{number}", 10)
        put(lab, 3, "part-3", 10)
        lab.expect("error", t=3, code="full")
        put(other, 1, "others", 0)
        other.send_end(1, "others", b"")
        other.expect("receipt", t=1)
        lab.send({"type": "error", "t": 1, "code": "cancelled", "message": "enough"})
        put(lab, 4, "fits", 0)
        lab.send_end(4, "fits", b"")
        lab.expect("receipt", t=4)


def begin(server: ftransfer.Server, token: str, path: str, size: int) -> None:
    """Begin an upload that stays unfinished, and let go of the connection."""
    with greeted(server, token) as peer:
        put(peer, 1, path, size)
        peer.send_block(1, 0, b"x")
        peer.expect_any_of("stored", "error")


def move_in(remote: ftransfer.Remote, kind: str, data: bytes, tree: Path) -> ftransfer.TransferResult:
    """Upload this as `stream` or `file`, or upload the folder `tree`."""
    if kind == "a stream":
        return remote.upload(iter([data[at : at + MIB] for at in range(0, len(data), MIB)]), "stream")
    return remote.upload(data, "file") if kind == "a file" else remote.upload(tree)


def test_unfinished_files_of_a_user(root: Path, known: Users) -> None:
    """One more than are borne is refused, with what to do; other users and the owner are not concerned."""
    token = known.add("lab")
    with serving(root, staged_files=3) as server:
        for number in range(3):
            begin(server, token, f"part-{number}", 100)
        wait_until(lambda: server.connection_count == 0, "the end of the connections")
        before = staged(root)
        with client(server, token=token) as remote:
            with pytest.raises(errors.Refused) as caught:
                remote.upload(b"one more", "more")
            assert "partials" in caught.value.hint
            assert "3 files" in str(caught.value)
            assert staged(root) == before
            with client(server, token=known.add("other")) as other:
                other.upload(b"data", "others")
            with client(server) as owner:
                owner.upload(b"data", "owners")
            assert len(remote.partials(clear=True)) == 3
            remote.upload(b"one more", "more")
    assert sorted(content_of(root)) == ["more", "others", "owners"]


@pytest.mark.parametrize("kind", ["a file", "a stream", "a tree"])
def test_unfinished_bytes_of_a_user(root: Path, known: Users, tmp_path: Path, kind: str) -> None:
    """What is on its way may not be more; nothing of what is refused stays."""
    token = known.add("lab")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(6 * MIB))
    with serving(root, staged_bytes=5 * MIB) as server, client(server, token=token) as remote:
        with pytest.raises(errors.FtransferError) as caught:
            move_in(remote, kind, (tree / "large").read_bytes(), tree)
        assert not caught.value.retryable
        assert caught.value.exit_status in (5, 6)
        remote.upload(os.urandom(4 * MIB), "fits")
    assert [name for name in content_of(root) if name != "tree"] == ["fits"]
    assert staged(root) == []


@pytest.mark.parametrize("kind", ["a file", "a stream", "a tree", "a large tree"])
def test_space_that_is_kept_free(root: Path, tmp_path: Path, kind: str) -> None:
    """An upload that would leave less is refused like one to a full disk; nothing is left of it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(6 * MIB if kind == "a large tree" else 100))
    with serving(root, keep_free=1 << 60) as server, client(server) as remote:
        with pytest.raises(errors.FtransferError) as caught:
            move_in(remote, kind, b"data", tree)
        found = caught.value if "tree" not in kind else _first_error(caught.value)
        assert isinstance(found, errors.DiskError), found
        assert "kept free" in f"{found} {found.hint}" or "0 are free" in str(found)
        assert list(remote.list(recursive=True)) == [] or "tree" in kind
    assert [name for name, kept in content_of(root).items() if kept[2] is not None] == []
    assert staged(root) == []


def _first_error(exc: errors.FtransferError) -> errors.FtransferError:
    """Return what was wrong with the first file of a tree, or with all of it."""
    failed = exc.results.failed if exc.results is not None else []
    return failed[0].error if failed else exc


# What is stored.


def test_a_quota_is_kept(root: Path, known: Users) -> None:
    """Code `quota`, status 9; what is there stays, and what is removed or replaced makes room."""
    token = known.add("lab", can=["create", "read", "replace", "delete"], quota=MIB)
    with serving(root) as server, client(server, token=token) as remote:
        remote.upload(os.urandom(600 * KIB), "one")
        assert known.used("lab") == 600 * KIB
        with pytest.raises(errors.OverQuota) as caught:
            remote.upload(os.urandom(600 * KIB), "two")
        assert (caught.value.code, caught.value.exit_status) == ("quota", 9)
        assert str(MIB - 600 * KIB) in str(caught.value)
        assert sorted(content_of(root)) == ["one"]
        remote.upload(os.urandom(100 * KIB), "one", compare="none")
        assert known.used("lab") == 100 * KIB
        remote.upload(os.urandom(900 * KIB), "two")
        remote.remove("one")
        assert known.used("lab") == 900 * KIB
        remote.move("two", "moved")
        remote.mkdir("folder")
        assert known.used("lab") == 900 * KIB
        remote.remove("moved")
        assert known.used("lab") == 0
        with client(server) as owner:
            owner.upload(os.urandom(2 * MIB), "owners")
        assert known.used("lab") == 0
    assert run_here("user", "list").out == "lab  create, read, replace, delete; 0 B of 1.0 MiB\n"


def test_connections_of_a_user_share_the_quota(root: Path, known: Users) -> None:
    """Several uploads at the same time do not get more than one after the other."""
    token = known.add("lab", quota=MIB)
    results: list[str] = []

    def upload(server: ftransfer.Server, number: int) -> None:
        with client(server, token=token) as remote:
            try:
                remote.upload(os.urandom(300 * KIB), f"file-{number}")
                results.append("sent")
            except errors.OverQuota:
                results.append("quota")

    with serving(root) as server:
        threads = [threading.Thread(target=upload, args=[server, number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(results) == 8
        assert 1 <= results.count("sent") <= 3
        stored = sum(len(kept[2]) for kept in content_of(root).values())
        assert stored == known.used("lab") == results.count("sent") * 300 * KIB
        with client(server, token=token) as remote:
            remote.upload(bytes(MIB - stored), "the rest")
    assert staged(root) == []


@pytest.mark.parametrize("how", ["cut", "given up", "over"])
def test_what_was_set_aside_comes_back(root: Path, known: Users, how: str) -> None:
    """An upload that does not end takes nothing of the quota once it is dropped."""
    token = known.add("lab", quota=MIB)
    with serving(root) as server:
        for _ in range(4):
            with greeted(server, token) as peer:
                put(peer, 1, "part", 700 * KIB, transfer=os.urandom(16).hex(), resume=False)
                peer.send_block(1, 0, b"x" * 1000)
                peer.expect_any_of("stored", "error")
                if how == "given up":
                    peer.send({"type": "error", "t": 1, "code": "cancelled", "message": "enough"})
                if how == "over":
                    put(peer, 2, "more", 700 * KIB)
                    assert peer.expect("error", t=2)["code"] in ("quota", "refused")
            wait_until(lambda: server.connection_count == 0, "the end of the connection")
        with client(server, token=token) as remote:
            remote.partials(clear=True)
            remote.upload(bytes(MIB), "all of it")
        assert known.used("lab") == MIB


@pytest.mark.parametrize("kind", ["a stream", "a tree", "a tree with a large file"])
def test_a_quota_counts_all_ways_in(root: Path, known: Users, tmp_path: Path, kind: str) -> None:
    """Streams, packs and large files of trees stop where the quota ends, and what is counted is what is there."""
    token = known.add("lab", quota=3 * MIB)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(10):
        (tree / f"{number}").write_bytes(os.urandom(500 * KIB))
    if "large" in kind:
        (tree / "large").write_bytes(os.urandom(5 * MIB))
    with serving(root) as server, client(server, token=token) as remote:
        with pytest.raises(errors.FtransferError) as caught:
            move_in(remote, kind, os.urandom(5 * MIB), tree)
        assert isinstance(_first_error(caught.value), errors.OverQuota), caught.value
        assert caught.value.exit_status in (6, 9)
    stored = sum(len(kept[2]) for kept in content_of(root).values() if kept[2] is not None)
    assert stored == known.used("lab") <= 3 * MIB
    assert staged(root) == []


def test_a_quota_holds_after_a_restart(root: Path, known: Users) -> None:
    """What was stored before counts."""
    token = known.add("lab", quota=MIB)
    for number in range(2):
        with serving(root) as server, client(server, token=token) as remote:
            if number == 0:
                remote.upload(bytes(800 * KIB), "one")
            else:
                with pytest.raises(errors.OverQuota):
                    remote.upload(bytes(300 * KIB), "two")
                remote.upload(bytes(100 * KIB), "two")


@pytest.mark.parametrize("kind", ["a file", "a stream", "a tree", "a tree with a large file", "by hand"])
def test_the_largest_file_of_a_user(root: Path, known: Users, tmp_path: Path, kind: str) -> None:
    """One byte more is refused, also where the size is not told before; one that is just as large is taken."""
    most = 5 * MIB if kind != "a tree" else 100 * KIB
    token = known.add("lab", max_file=most)
    source = tmp_path / "tree"
    source.mkdir()
    (source / "over").write_bytes(os.urandom(most + 1))
    (source / "fits").write_bytes(os.urandom(most))
    with serving(root) as server, client(server, token=token) as remote:
        if kind == "by hand":
            with greeted(server, token) as peer:
                put(peer, 1, "over", most + 1)
                peer.expect("error", t=1, code="refused")
                put(peer, 2, "over", None)
                data = b"x" * MIB
                for at in range(6):
                    peer.send_block(2, at * MIB, data)
                while (said := peer.receive()) is not None and said["type"] == "stored":
                    pass
                assert said is not None
                assert (said["type"], said["t"], said["code"]) == ("error", 2, "refused")
            wait_until(lambda: server.connection_count == 0, "the end of the connection")
        else:
            with pytest.raises(errors.FtransferError) as caught:
                move_in(remote, kind, (source / "over").read_bytes(), source)
            assert isinstance(_first_error(caught.value), errors.Refused), caught.value
            assert str(most) in str(_first_error(caught.value))
            assert caught.value.exit_status in (5, 6)
        remote.upload(source / "fits", "fits")
    names = {Path(name).name for name, kept in content_of(root).items() if kept[2] is not None}
    assert names == {"fits"}
    assert staged(root) == []
    assert block_hash((root / "fits").read_bytes()) == block_hash((source / "fits").read_bytes())


def test_a_list_of_many_folders_takes_two_connections(root: Path) -> None:
    """One for the questions and one for the list of a folder, however many folders are named."""
    names = [f"folder-{number}" for number in range(12)]
    for name in names:
        (root / name).mkdir()
        (root / name / "a").write_bytes(b"abc")
    with ftransfer.Server(root, limits=ftransfer.Limits(connections=5)) as server:
        ran = run("checksum", "-r", *(f"{server.urls[0]}{name}" for name in names))
    assert (ran.status, len(ran.out.splitlines())) == (0, 12)

"""TLS from outside: the same transfers as in the clear, nothing that is taken for granted, and every way to be cut."""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Certificate
from command import COMMAND, Terminal, run, run_here, serving
from forests import grove, same_trees
from support import (
    PATIENCE,
    FakeServer,
    Peer,
    Proxy,
    Script,
    address_of,
    content_of,
    cut_after,
    flip,
    frame,
    nothing_leaks,
    put,
    serves_well,
    token_for,
    unharmed,
    upload_by_hand,
    wait_until,
    welcomed,
)

import ftransfer
from ftransfer import channel, errors, link, listening, net
from ftransfer.known import Known
from ftransfer.statedir import StateDir

NO_PLAIN = "this port speaks only TLS"
NO_TLS = "TLS was asked for, and the server speaks none on this port"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs certificates here."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    """A certificate of this machine, good for a day."""
    return authority.sign("127.0.0.1", "localhost")


@pytest.fixture
def server(root: Path, certificate: Certificate) -> Iterator[ftransfer.Server]:
    """A server on loopback that speaks TLS to who begins with it."""
    with ftransfer.Server(root, durable=False, cert=certificate.path, key=certificate.key) as running:
        yield running


@pytest.fixture
def url(server: ftransfer.Server) -> str:
    """The address that asks for TLS."""
    return over_tls(server.urls[0])


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """A state folder of this test's own."""
    monkeypatch.setenv("FTRANSFER_STATE", str(tmp_path / "state"))
    return StateDir()


@pytest.fixture
def outward(root: Path) -> Iterator[ftransfer.Server]:
    """A server that other machines reach, with a certificate that it makes itself."""
    host = listening.outward_host()
    try:
        made = ftransfer.Server(root, durable=False, listen=[f"[{host}]:0" if ":" in host else f"{host}:0"])
    except errors.FtransferError:
        made = None
    if made is None or net.is_local(made._listeners[0], peer=False):
        pytest.skip("NOT TESTED: this machine has no address that others reach")
    with made:
        yield made


def over_tls(url: str) -> str:
    """Return the same address, with TLS."""
    return f"ft+tls://{url.partition('://')[2]}"


def in_the_clear(url: str) -> str:
    """Return the same address, in the clear."""
    return f"ft+plain://{url.partition('://')[2]}"


@contextmanager
def shaken(server: ftransfer.Server, *, greet: bool = True) -> Iterator[Peer]:
    """Give an encrypted connection to a server, to be driven by hand."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(address_of(server.urls[0]), timeout=PATIENCE) as sock,
        Peer(context.wrap_socket(sock)) as peer,
    ):
        if greet:
            token = token_for(server.urls[0])
            peer.send({"type": "hello", "versions": [1], "software": "tests", "token": token})
            peer.expect("welcome")
        yield peer


def encrypted(certificate: Certificate, script: Script) -> Script:
    """Return a script for `FakeServer` that shakes hands first."""
    context = certificate.context()

    def run(peer: Peer) -> None:
        peer.socket = context.wrap_socket(peer.socket, server_side=True, suppress_ragged_eofs=False)
        script(peer)

    return run


# The same as in the clear.


def everything(url: str, base: Path, fingerprint: str | None) -> list[Any]:
    """Do all that a client can do, and return what can be compared."""
    tree = grove(base / "tree", 30, large=5 << 20)
    with ftransfer.connect(url, fingerprint=fingerprint, retry_for=0) as remote:
        sent = remote.upload(tree)
        again = remote.upload(tree)
        remote.upload(b"small", "small")
        remote.upload(iter([b"a stream ", b"of two"]), "stream")
        listed = [entry._replace(mtime_ns=0) for entry in remote.list(recursive=True)]
        verified = remote.verify_folder(tree, "tree")
        digest = remote.checksum("tree/m/large")
        digests = list(remote.checksums(["a/f0", "absent"], "tree"))
        remote.mkdir("made/here", parents=True)
        remote.move("small", "made/here/moved")
        received = remote.download("tree", base / "back/")
        with open(base / "out", "w+b") as out:
            remote.download("tree/m/large", out)
        remote.remove("stream")
        stated = remote.stat("made/here/moved").size
        left = remote.partials()
    same_trees(tree, base / "back/tree")
    assert (base / "out").read_bytes() == (tree / "m/large").read_bytes()
    counts = [
        [result.count(word) for word in ("sent", "same", "failed")] + [result.sent_bytes]
        for result in (sent, again, received)
    ]
    failures = [found if not isinstance(found, Exception) else str(found) for _, found in digests]
    return [counts, listed, verified[2:], digest, failures, stated, left]


def test_everything_is_as_in_the_clear(tmp_path: Path, certificate: Certificate) -> None:
    """Uploads, downloads, trees, streams, comparing and file operations: the same results, the same folder."""
    found, left = [], []
    for scheme in ("ft", "ft+tls"):
        (tmp_path / scheme / "root").mkdir(parents=True)
        with ftransfer.Server(tmp_path / scheme / "root", cert=certificate.path, key=certificate.key) as server:
            url = server.urls[0].replace("ft", scheme, 1)
            found.append(everything(url, tmp_path / scheme, server.fingerprint if "tls" in scheme else None))
        left.append({name: kept[:3] for name, kept in content_of(tmp_path / scheme / "root").items()})
    assert found[0] == found[1]
    assert left[0] == left[1]


def test_ping_tells_that_it_is_encrypted(server: ftransfer.Server, url: str, remote: ftransfer.Remote) -> None:
    """Version and cipher, as both ends see them; in the clear nothing of that kind."""
    with ftransfer.connect(url, fingerprint=server.fingerprint) as secured:
        pong = secured.ping()
    for facts in (pong.client_facts, pong.server_facts):
        assert [fact for fact in facts if fact.startswith("encrypted: TLSv1.3 TLS_")]
    assert not [fact for fact in remote.ping().client_facts if fact.startswith("encrypted")]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_transfer_goes_on(
    server: ftransfer.Server, root: Path, tmp_path: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next connection is encrypted too, and what was there is not sent again."""
    monkeypatch.setattr(link, "FIRST_DELAY", 0.01)
    data = os.urandom(12 << 20)
    (tmp_path / "big").write_bytes(data)
    (root / "there").write_bytes(data)
    with (
        Proxy(server.urls[0], **{direction: cut_after(9 << 20)}) as proxy,
        ftransfer.connect(over_tls(proxy.url), fingerprint=server.fingerprint) as remote,
    ):
        if direction == "up":
            remote.upload(tmp_path / "big", "copy")
        else:
            remote.download("there", tmp_path / "copy")
        assert proxy.connections == 2
    assert max(proxy.bytes_up, proxy.bytes_down) < 18 << 20
    assert (root / "copy" if direction == "up" else tmp_path / "copy").read_bytes() == data


# A line that is cut, or lies.

PLACES = [0, 1, 4, 300, 600, 700, 900, 1500, 3000, 70_000, 1_000_000, 3_000_000]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_stream_that_is_cut_anywhere_is_an_error(
    server: ftransfer.Server, root: Path, tmp_path: Path, data_file: Path, direction: str
) -> None:
    """In the handshake, between frames, within one: nothing half gets the name, and the next run is whole."""
    (root / "there").write_bytes(data_file.read_bytes())
    for place in PLACES:
        target = root / f"copy-{place}" if direction == "up" else tmp_path / f"copy-{place}"

        def move(url: str, target: Path = target) -> ftransfer.TransferResult:
            with ftransfer.connect(url, fingerprint=server.fingerprint, retry_for=0) as remote:
                return remote.upload(data_file, target.name) if direction == "up" else remote.download("there", target)

        with nothing_leaks(), Proxy(server.urls[0], **{direction: cut_after(place)}, bad=1000) as proxy:
            with pytest.raises(errors.ConnectionLost):
                move(over_tls(proxy.url))
            assert not target.exists()
        assert move(over_tls(server.urls[0])).count("sent") == 1
        assert target.read_bytes() == data_file.read_bytes()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_no_byte_can_be_changed(
    server: ftransfer.Server, root: Path, data_file: Path, tmp_path: Path, direction: str
) -> None:
    """A flipped byte ends the connection: what arrives under the name is what was sent, or nothing does."""
    (root / "there").write_bytes(data_file.read_bytes())
    for place in (0, 2, 5, 60, 250, 640, 800, 1200, 50_000, 1_000_000):
        copy = tmp_path / f"copy-{place}"
        target = root / copy.name if direction == "up" else copy
        with (
            Proxy(server.urls[0], **{direction: flip(place)}, bad=1000) as proxy,
            ftransfer.connect(over_tls(proxy.url), fingerprint=server.fingerprint, retry_for=0, timeout=2) as remote,
        ):
            try:
                if direction == "up":
                    remote.upload(data_file, copy.name)
                else:
                    remote.download("there", copy)
            except errors.IntegrityError:
                pytest.fail("TLS comes before our own hashes")
            except errors.FtransferError:
                assert not target.exists()
                continue
        assert place == 2, "only the version of a record counts for nothing (RFC 8446, 5.1)"
        assert target.read_bytes() == data_file.read_bytes()


def again(at: int, data: bytes) -> bytes:
    """Say everything twice once the keys are agreed on."""
    return data + data if at > 2000 else data


def turned(at: int, data: bytes) -> bytes:
    """Change the order of what comes together once the keys are agreed on."""
    half = len(data) // 2
    return data[half:] + data[:half] if at > 2000 else data


@pytest.mark.parametrize("change", [again, turned])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_nothing_can_be_replayed_or_reordered(
    server: ftransfer.Server,
    root: Path,
    data_file: Path,
    tmp_path: Path,
    direction: str,
    change: Callable[[int, bytes], bytes],
) -> None:
    """The connection ends; the next one, which is good, brings the same bytes."""
    (root / "there").write_bytes(data_file.read_bytes())
    with (
        Proxy(server.urls[0], **{direction: change}) as proxy,
        ftransfer.connect(over_tls(proxy.url), fingerprint=server.fingerprint, retry_for=0) as remote,
    ):
        for whole in (False, True):
            with ExitStack() as stack:
                if not whole:
                    stack.enter_context(pytest.raises(errors.ConnectionLost))
                if direction == "up":
                    remote.upload(data_file, "copy")
                else:
                    remote.download("there", tmp_path / "copy")
    assert (root / "copy" if direction == "up" else tmp_path / "copy").read_bytes() == data_file.read_bytes()


def goodbye(peer: Peer) -> None:
    """End as TLS has it."""
    peer.socket.settimeout(PATIENCE)
    peer.socket.unwrap()  # type: ignore[attr-defined]
    peer.socket.close()


def leave(peer: Peer) -> None:
    """End the stream below, without a goodbye."""
    socket.socket.shutdown(peer.socket, socket.SHUT_WR)
    try:
        while socket.socket.recv(peer.socket, 4096):
            pass
    except OSError:
        pass


def reset(peer: Peer) -> None:
    """End with RST."""
    peer.reset()


@pytest.mark.parametrize("end", [goodbye, leave, reset])
@pytest.mark.parametrize("said", ["nothing", "welcome", "a page", "half a frame"])
def test_an_end_before_the_end_is_an_error(
    certificate: Certificate, said: str, end: Callable[[Peer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the server leaves before a list is whole, nobody takes it for whole."""
    rows = [["one", "file", 1, 0, 0o644]]
    page = {"type": "entries", "t": 1, "rows": rows, "more": True}

    def script(peer: Peer) -> None:
        if said == "nothing":
            peer.expect("hello")
        else:
            welcomed(lambda p: p.expect("list"))(peer)  # type: ignore[arg-type,return-value]
        if said == "a page":
            peer.send(page)
        if said == "half a frame":
            peer.send_raw(frame(page)[:20])
        end(peer)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path.parent / "authority.pem"))
    with FakeServer(encrypted(certificate, script)) as fake:
        with ftransfer.connect(over_tls(fake.url), retry_for=0, timeout=5) as remote:
            with pytest.raises(errors.ConnectionLost) as caught:
                list(remote.list())
            assert caught.value.exit_status == 4
        assert fake.connections <= link.TRIES


@pytest.mark.parametrize("end", [goodbye, leave, reset])
def test_a_client_that_leaves_within_a_block_leaves_no_file(
    server: ftransfer.Server, root: Path, end: Callable[[Peer], None]
) -> None:
    """The server lets go of the connection, and goes on; what is staged is under no name."""
    serves_well(server)
    with nothing_leaks(), shaken(server) as peer:
        put(peer, 1, "half", 1000)
        peer.send({"type": "block", "t": 1, "offset": 0, "hash": "0" * 32, "body": 1000}, b"x" * 500)
        if end is goodbye:
            channel_goodbye(peer)
        else:
            end(peer)
    wait_until(lambda: server.connection_count == 0, "the end of the connection")
    assert content_of(root) == {}
    serves_well(server)


def channel_goodbye(peer: Peer) -> None:
    """Say goodbye without waiting for theirs."""
    peer.socket.settimeout(0)
    try:
        peer.socket.unwrap()  # type: ignore[attr-defined]
    except ssl.SSLError:
        pass


def test_clean_ends_are_told_apart_from_cuts(
    server: ftransfer.Server, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that is done says goodbye: the log has nothing of cuts or attacks, from any kind of request."""
    tree = grove(tmp_path / "tree", 10, large=5 << 20)
    with caplog.at_level(logging.DEBUG, logger="ftransfer.server"):
        for _ in range(3):
            with ftransfer.connect(url, fingerprint=server.fingerprint) as remote:
                remote.upload(tree)
                list(remote.list(recursive=True))
                remote.download("tree", tmp_path / "back/")
                assert next(remote.list("tree"))  # and the rest is not wanted
        ran = run("list", url, env={"FTRANSFER_FINGERPRINT": server.fingerprint or ""})
        assert ran.status == 0
        wait_until(lambda: server.connection_count == 0, "the end of the connections")
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if line.endswith(" left")]) >= 4
    assert not [line for line in said if "cut" in line or "attack" in line or "lost" in line], said


# One end without the other.


def test_older_versions_are_refused(server: ftransfer.Server, root: Path, certificate: Certificate) -> None:
    """TLS 1.2 is not spoken, by either end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        unharmed(server, root),
        socket.create_connection(address_of(server.urls[0])) as sock,
        pytest.raises(ssl.SSLError),
        context.wrap_socket(sock),
    ):
        pass
    heard: list[bytes] = []
    old = certificate.context(most=ssl.TLSVersion.TLSv1_2)

    def script(peer: Peer) -> None:
        with pytest.raises(OSError, match="SSL"):
            old.wrap_socket(peer.socket, server_side=True)
        heard.append(b"no more")

    with FakeServer(script) as fake, ftransfer.connect(over_tls(fake.url), fingerprint="0" * 64) as remote:
        with pytest.raises(errors.FtransferError) as caught:
            remote.ping()
        assert (caught.value.hint, caught.value.retryable) == ("both ends need TLS 1.3", False)
        assert fake.connections == 1


def test_plain_to_a_tls_port(outward: ftransfer.Server, root: Path, data_file: Path) -> None:
    """It fails with that very sentence and status 10, and nothing is stored; TLS goes through."""
    url = in_the_clear(outward.urls[0])
    with ftransfer.connect(url, token=outward.admission.owner_token) as remote:
        with pytest.raises(errors.TlsMismatch) as caught:
            remote.upload(data_file)
        assert (str(caught.value), caught.value.code, caught.value.exit_status) == (NO_PLAIN, "tls", 10)
        assert "ft+tls://" in caught.value.hint
    ran = run_here("stat", url)
    assert (ran.status, ran.err.splitlines()[0]) == (10, f"error: the server says: {NO_PLAIN}")
    assert list(root.iterdir()) == []
    with ftransfer.connect(
        outward.urls[0], token=outward.admission.owner_token, fingerprint=outward.fingerprint
    ) as remote:
        assert outward.urls[0].startswith("ft://")
        assert any(fact.startswith("encrypted") for fact in remote.ping().client_facts)


def test_a_hello_in_the_clear_is_not_looked_at(outward: ftransfer.Server, root: Path) -> None:
    """Neither a right token nor what comes behind it counts on a port of TLS."""
    with socket.create_connection(address_of(outward.urls[0])) as sock, Peer(sock) as peer:
        peer.send({"type": "hello", "versions": [1], "software": "x", "token": outward.admission.owner_token})
        put(peer, 1, "stored", 0)
        peer.send_end(1, "stored", b"")
        peer.expect("error", code="tls", message=NO_PLAIN)
        assert peer.is_closed_by_peer()
    wait_until(lambda: outward.connection_count == 0, "the end of the connection")
    assert list(root.iterdir()) == []


def test_tls_to_a_plain_port(root: Path, data_file: Path) -> None:
    """It fails with that very sentence and status 10, and nothing is sent in the clear instead."""
    with ftransfer.Server(root) as server:
        url = over_tls(server.urls[0])
        for fingerprint in (None, "0" * 64):
            with (
                ftransfer.connect(url, fingerprint=fingerprint) as remote,
                pytest.raises(errors.TlsMismatch) as caught,
            ):
                remote.upload(data_file)
            assert (str(caught.value), caught.value.exit_status) == (NO_TLS, 10)
        ran = run_here("stat", url)
        assert (ran.status, ran.err.splitlines()[0]) == (10, f"error: {NO_TLS}")
        assert ran.err.splitlines()[1].startswith("hint: ")
        wait_until(lambda: server.connection_count == 0, "the end of the connections")
        serves_well(server)
    assert content_of(root) == {}


def test_insecure_takes_plain_where_others_reach_it(root: Path) -> None:
    """Only if it is asked for; the address says so."""
    host = listening.outward_host()
    try:
        server = ftransfer.Server(root, listen=[f"{host}:0"], insecure=True)
    except errors.FtransferError:
        pytest.skip("NOT TESTED: this machine has no address that others reach")
    with server:
        assert server.urls[0].startswith("ft+plain://")
        with ftransfer.connect(server.urls[0], token=server.admission.owner_token) as remote:
            remote.upload(b"in the clear", "file")
        with (
            ftransfer.connect(f"ft://{server.urls[0].partition('://')[2]}") as remote,
            pytest.raises(errors.TlsMismatch, match=NO_TLS),
        ):
            remote.ping()
    assert (root / "file").read_bytes() == b"in the clear"


def test_a_fingerprint_is_never_passed_over(root: Path, data_file: Path) -> None:
    """Who says which certificate is expected does not get a connection without any."""
    with ftransfer.Server(root) as server:
        url = in_the_clear(server.urls[0])
        with (
            ftransfer.connect(url, fingerprint=f"sha256:{'0' * 64}") as remote,
            pytest.raises(errors.FtransferError) as caught,
        ):
            remote.upload(data_file)
        assert not caught.value.retryable
        assert run_here("upload", "--fingerprint", "0" * 64, data_file, url).status != 0
    assert list(root.iterdir()) == []


# Whom a client trusts.


def test_what_the_system_trusts_needs_no_fingerprint(
    server: ftransfer.Server, url: str, authority: Authority, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked, and nothing remembered: the certificate may change to another that is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    del server, state
    with ftransfer.connect(url, token="x") as remote, pytest.raises(errors.LoginNeeded):
        remote.ping()  # the server was trusted, and answered
    assert Known(StateDir()).fingerprint(url.partition("://")[2].rstrip("/")) is None


@pytest.mark.parametrize(
    ("hosts", "days", "why"),
    [
        (("127.0.0.2", "example.test"), 1, "mismatch"),
        (("127.0.0.1",), -1, "expired"),
        (("127.0.0.1",), 1, "local issuer"),
    ],
)
@pytest.mark.usefixtures("state")
def test_certificates_that_do_not_vouch_for_the_server(  # noqa: PLR0917 - fixtures
    root: Path,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hosts: tuple[str, ...],
    days: int,
    why: str,
) -> None:
    """Of another name, expired, of an unknown authority: status 12, and the hint is what makes it right."""
    by = Authority(tmp_path) if why == "local issuer" else authority
    shown = by.sign(*hosts, days=days)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with ftransfer.Server(root, cert=shown.path, key=shown.key) as server:
        url = over_tls(server.urls[0])
        assert server.fingerprint == shown.fingerprint
        with ftransfer.connect(url) as remote, pytest.raises(errors.IdentityUnknown, match=why) as caught:
            remote.ping()
        assert (caught.value.code, caught.value.exit_status) == ("identity", 12)
        option, _, value = caught.value.hint.rpartition(" ")
        assert (option[-13:], value) == ("--fingerprint", shown.fingerprint)
        with ftransfer.connect(url, fingerprint=value) as remote:
            assert remote.ping().user == "owner"


def test_a_pinned_fingerprint_counts_more_than_the_system(
    server: ftransfer.Server, url: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another certificate is refused, whoever vouches for it; each way to write the right one is taken."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with ftransfer.connect(url, fingerprint="sha256:" + "0" * 64) as remote:
        with pytest.raises(errors.IdentityChanged) as caught:
            remote.ping()
        assert (caught.value.code, caught.value.exit_status) == ("identity-changed", 12)
    digits = (server.fingerprint or "").removeprefix("sha256:")
    colons = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    for text in (digits, digits.upper(), f"SHA256:{digits}", colons.upper(), f" sha256:{colons}\n"):
        with ftransfer.connect(url, fingerprint=text) as remote:
            remote.ping()
    for text in (digits[:-1], digits + "0", "sha1:" + digits[:40], digits[:-1] + "g", "\u0660" * 64):
        with ftransfer.connect(url, fingerprint=text) as remote, pytest.raises(errors.UsageError, match="fingerprint"):
            remote.ping()


def test_without_a_terminal_nobody_is_asked(server: ftransfer.Server, url: str, root: Path, here: Path) -> None:
    """Status 12, no prompt; the option and the variable that the hint and the docs name make it go."""
    ran = run("upload", here / "a.txt", url)
    assert (ran.status, ran.out) == (12, "")
    error, hint = ran.err.splitlines()[-2:]
    assert f"nobody vouches for the certificate of {url.rstrip('/')} (" in error
    assert hint.endswith(f"--fingerprint {server.fingerprint}")
    assert "yes" not in ran.err
    assert list(root.iterdir()) == []
    assert run("upload", here / "a.txt", url, *hint.split()[-2:]).status == 0
    assert run_here("upload", here / "a.txt", url).status == 12, "nothing was remembered"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with one small file."""
    made = tmp_path / "here"
    made.mkdir()
    (made / "a.txt").write_bytes(b"hello\n")
    return made


def test_a_fingerprint_in_the_environment(
    server: ftransfer.Server, url: str, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FTRANSFER_FINGERPRINT counts as the option does, which goes before it."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    del state
    monkeypatch.setenv("FTRANSFER_FINGERPRINT", server.fingerprint or "")
    assert run_here("stat", url).status == 5  # it was trusted; the owner's token is in another state folder
    assert run_here("stat", url, "--fingerprint", "0" * 64).status == 12
    monkeypatch.setenv("FTRANSFER_FINGERPRINT", "0" * 64)
    assert run_here("stat", url).status == 12


def test_somebody_at_a_terminal_is_asked_once(server: ftransfer.Server, url: str, here: Path, tmp_path: Path) -> None:
    """The question shows address and fingerprint; `yes` is remembered, readable by nobody else."""
    env = {"FTRANSFER_STATE": str(tmp_path / "state"), "FTRANSFER_TOKEN": server.admission.owner_token}
    shown = Terminal("upload", here / "a.txt", url, env=env)
    shown.read_until(lambda text: "Type yes" in text)
    assert server.fingerprint in shown.text
    assert url.rstrip("/") in shown.text
    shown.type("yes\n")
    assert shown.finish() == 0
    assert Known(StateDir(tmp_path / "state")).fingerprint(url.partition("://")[2].rstrip("/")) == server.fingerprint
    assert stat.S_IMODE((tmp_path / "state/known.json").stat().st_mode) == 0o600
    assert run("list", url, env=env).out == "a.txt\n"


@pytest.mark.parametrize("answer", ["no\n", "\n", "yes please\n", "yess\n", "\x04", "\x03"], ids=ascii)
def test_any_other_answer_refuses(
    server: ftransfer.Server, root: Path, url: str, here: Path, tmp_path: Path, answer: str
) -> None:
    """Status 12, or the end by Ctrl-C; nothing is sent, nothing remembered."""
    env = {"FTRANSFER_STATE": str(tmp_path / "state"), "FTRANSFER_TOKEN": server.admission.owner_token}
    shown = Terminal("upload", here / "a.txt", url, env=env)
    shown.read_until(lambda text: "Type yes" in text)
    shown.type(answer)
    assert shown.finish() == (-signal.SIGINT if answer == "\x03" else 12)
    assert "Traceback" not in shown.text
    if answer != "\x03":
        assert f"--fingerprint {server.fingerprint}" in shown.text
    assert not (tmp_path / "state/known.json").exists()
    assert list(root.iterdir()) == []


def test_the_terminal_answers_also_where_data_is_piped(server: ftransfer.Server, root: Path, url: str) -> None:
    """What is uploaded from standard input is never taken for an answer."""
    env = {"FTRANSFER_TOKEN": server.admission.owner_token, "FTRANSFER_STATE": str(root.parent / "state")}
    near, far = os.pipe()
    shown = Terminal("upload", "-", f"{url}stream", env=env, stdin=near)
    os.close(near)
    os.write(far, b"yes\ndata")
    os.close(far)
    shown.read_until(lambda text: "Type yes" in text)
    shown.type("yes\n")
    assert shown.finish() == 0
    assert (root / "stream").read_bytes() == b"yes\ndata"


def test_in_the_background_nobody_is_asked(server: ftransfer.Server, url: str, tmp_path: Path) -> None:
    """There is a terminal, but it belongs to another job."""
    env = {"FTRANSFER_STATE": str(tmp_path / "state"), "FTRANSFER_TOKEN": server.admission.owner_token}
    words = " ".join([*COMMAND, "list", url])
    shown = Terminal(f"set -m; {words} & wait $!; echo ended with $?", program=["bash", "-c"], env=env)
    assert shown.finish() == 0
    assert "ended with 12" in shown.text
    assert "Type yes" not in shown.text


def test_there_is_time_to_compare(root: Path, certificate: Certificate, tmp_path: Path) -> None:
    """Who thinks longer than the server waits for a hello still gets what was asked for."""
    limits = ftransfer.Limits(handshake_seconds=0.3)
    (root / "file").touch()
    with ftransfer.Server(root, cert=certificate.path, key=certificate.key, limits=limits) as server:
        env = {"FTRANSFER_STATE": str(tmp_path / "state"), "FTRANSFER_TOKEN": server.admission.owner_token}
        shown = Terminal("list", over_tls(server.urls[0]), env=env)
        shown.read_until(lambda text: "Type yes" in text)
        wait_until(lambda: server.connection_count == 0, "the end of the server's patience")
        shown.type("yes\n")
        assert shown.finish() == 0, shown.text
        assert "file" in frames_of(shown.text)


def frames_of(text: str) -> list[str]:
    """Return the lines that a terminal showed."""
    return [line.strip() for line in text.splitlines()]


class Listening:
    """A script that shakes hands and keeps all that the client says then, which has to be nothing."""

    def __init__(self) -> None:
        self.heard = b""
        self.ends = 0

    def __call__(self, peer: Peer) -> None:
        """Listen to the end."""
        try:
            while data := peer.socket.recv(4096):
                self.heard += data
        finally:
            self.ends += 1


@pytest.mark.parametrize("before", ["remembered", "pinned", "nothing"])
def test_a_server_that_is_not_the_right_one_is_told_nothing(
    certificate: Certificate, state: StateDir, data_file: Path, before: str
) -> None:
    """Another certificate than expected, or one that nobody knows: no hello, no token, no name; and no second try."""
    listening = Listening()
    with FakeServer(encrypted(certificate, listening)) as fake:
        url = over_tls(fake.url)
        place = url.partition("://")[2].rstrip("/")
        expected = f"sha256:{'0' * 64}"
        if before == "remembered":
            Known(state).remember(place, expected)
        fingerprint = expected if before == "pinned" else None
        with (
            ftransfer.connect(url, token="ftt_secret", fingerprint=fingerprint, retry_for=5) as remote,
            pytest.raises(errors.IdentityUnknown) as caught,
        ):
            remote.upload(data_file)
        changed = before != "nothing"
        assert caught.value.code == ("identity-changed" if changed else "identity")
        assert certificate.fingerprint in str(caught.value)
        if changed:
            assert expected in str(caught.value)
        known = Known(state).fingerprint(place)
        assert known == (expected if before == "remembered" else None)
        wait_until(lambda: listening.ends >= fake.connections - (not changed), "the end of the connections")
    assert listening.heard == b""


def test_a_changed_certificate_stops_hard(server: ftransfer.Server, url: str, here: Path, tmp_path: Path) -> None:
    """Nobody is asked, also at a terminal; the way on is to log in again with the new fingerprint."""
    Known(StateDir(tmp_path / "state")).remember(url.partition("://")[2].rstrip("/"), "sha256:" + "1" * 64)
    token = server.admission.owner_token
    env = {"FTRANSFER_STATE": str(tmp_path / "state"), "FTRANSFER_TOKEN": token}
    shown = Terminal("upload", here / "a.txt", url, env=env, columns=400)
    assert shown.finish() == 12
    assert "Type yes" not in shown.text
    hint = next(line for line in frames_of(shown.text) if line.startswith("hint: "))
    words = hint.rpartition("ftransfer ")[2].split()
    assert words[0] == "login"
    assert run(*words, "--as", "here", env=env).status == 0
    assert run("list", url, env=env).status == 0


# The handshake.


def test_a_stalled_handshake_delays_nobody(server: ftransfer.Server, url: str, root: Path) -> None:
    """It is made in the connection's own thread; who says nothing, half a hello or rubbish ends alone."""
    hello = client_hello()
    with unharmed(server, root), ExitStack() as stack:
        for said in [b"", hello[:1], hello[:100], hello[:-1], hello] * 3:
            sock = stack.enter_context(socket.create_connection(address_of(server.urls[0])))
            sock.sendall(said)
        for said in (b"\x16" + b"\0" * 600, b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"):
            sock = stack.enter_context(socket.create_connection(address_of(server.urls[0])))
            sock.sendall(said)
        with ftransfer.connect(url, fingerprint=server.fingerprint, timeout=5, retry_for=0) as remote:
            remote.upload(b"data", "quick")
            remote.remove("quick")


def client_hello() -> bytes:
    """Return what a client begins with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    shaking = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        shaking.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("stage", ["handshake", "hello"])
def test_the_opening_has_one_deadline_for_all_of_it(
    root: Path, certificate: Certificate, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then does not make it longer, neither in the handshake nor in the hello behind it."""
    monkeypatch.setattr(channel, "TICK", 0.05)
    limits = ftransfer.Limits(handshake_seconds=0.5)
    with (
        ftransfer.Server(root, cert=certificate.path, key=certificate.key, limits=limits) as server,
        unharmed(server, root),
    ):
        if stage == "handshake":
            with socket.create_connection(address_of(server.urls[0])) as sock, Peer(sock) as peer:
                assert peer.dribble(client_hello(), 0.05, most=5)
        else:
            with shaken(server, greet=False) as peer:
                hello = frame({"type": "hello", "versions": [1], "software": "x" * 500})
                assert peer.dribble(hello, 0.05, most=5)


@pytest.mark.parametrize("where", ["a header", "a body"])
def test_deadlines_hold_under_tls_too(
    root: Path, certificate: Certificate, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that falls silent in the middle, or dribbles, is let go; so is a server."""
    monkeypatch.setattr(channel, "TICK", 0.05)
    limits = ftransfer.Limits(least_rate=10_000.0)
    with ftransfer.Server(root, cert=certificate.path, key=certificate.key, limits=limits, timeout=0.4) as server:
        serves_well(server)
        for dribbles in (False, True):
            with nothing_leaks(), shaken(server) as peer:
                if where == "a header":
                    data = frame({"type": "stat", "t": 1, "path": "x" * 200})
                else:
                    put(peer, 1, "x", 2000)
                    block = {"type": "block", "t": 1, "offset": 0, "hash": "0" * 32, "body": 2000}
                    data = frame(block) + b"x" * 2000
                peer.send_raw(data[: len(data) // 2])
                if dribbles:
                    assert peer.dribble(data[len(data) // 2 :], 0.05, most=5)
                else:
                    while peer.receive() is not None:
                        pass


def test_a_silent_server_is_given_up(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the handshake, after it, after the welcome: within the client's patience."""
    monkeypatch.setattr(channel, "TICK", 0.05)
    done = threading.Event()

    def wait(_: Peer) -> None:
        done.wait(PATIENCE)

    for script in (wait, encrypted(certificate, wait), encrypted(certificate, welcomed(wait))):
        done.clear()
        with FakeServer(script) as fake:
            with (
                ftransfer.connect(
                    over_tls(fake.url), fingerprint=certificate.fingerprint, timeout=0.3, retry_for=0
                ) as remote,
                pytest.raises(errors.TimedOut),
            ):
                remote.stat("x")
            done.set()


def test_an_upload_by_hand(server: ftransfer.Server, root: Path) -> None:
    """The frames within are the same as in the clear, in records of any size."""
    with shaken(server) as peer:
        assert upload_by_hand(peer, 1, "by-hand", b"x" * 100_000)["result"] == "stored"
        put(peer, 2, "slow", 3)
        for byte in frame({"type": "block", "t": 2, "offset": 0, "hash": "0" * 32, "body": 3}):
            peer.send_raw(bytes([byte]))
        peer.send_raw(b"a")
        peer.send_raw(b"bc")
        assert peer.expect("stored", t=2)["ok"] is False
    assert (root / "by-hand").read_bytes() == b"x" * 100_000


# What a server shows.


def test_a_certificate_is_made_once_and_kept(root: Path, tmp_path: Path, state: StateDir) -> None:
    """Its file and folder are for nobody else; the next start, and a server beside it, show the same."""
    found = set()
    for _ in range(2):
        with (
            ftransfer.Server(root, listen=[":0"]) as server,
            ftransfer.Server(root, listen=[":0"], state=tmp_path / "state") as beside,
        ):
            found |= {server.fingerprint, beside.fingerprint}
            with ftransfer.connect(over_tls(server.urls[-1]), fingerprint=server.fingerprint) as remote:
                remote.ping()
    assert len(found) == 1
    identity = Path(state.where("identity.pem"))
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.parent.stat().st_mode) == 0o700
    assert b"PRIVATE KEY" in identity.read_bytes()
    with ftransfer.Server(root, listen=[":0"], state=tmp_path / "other") as server:
        assert server.fingerprint not in found


def test_many_first_starts_make_one_certificate(root: Path, tmp_path: Path) -> None:
    """Whoever is first makes it, the others take it."""
    found: list[str | None] = []

    def start() -> None:
        with ftransfer.Server(root, listen=[":0"], state=tmp_path / "state") as server:
            found.append(server.fingerprint)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 6
    assert len(set(found)) == 1


def test_a_server_on_loopback_makes_none(root: Path, state: StateDir) -> None:
    """Nobody asks for it there."""
    with ftransfer.Server(root, listen=["127.0.0.1:0", "localhost:0"]) as server:
        assert server.fingerprint is None
    assert not os.path.exists(state.where("identity.pem"))


def test_a_real_certificate_is_used(
    server: ftransfer.Server, certificate: Certificate, root: Path, state: StateDir
) -> None:
    """Its chain and its key may stand in one file, or in two; none of our own is made."""
    assert server.fingerprint == certificate.fingerprint
    both = certificate.path.with_suffix(".both")
    both.write_bytes(certificate.key.read_bytes() + certificate.path.read_bytes())
    with ftransfer.Server(root, cert=both) as other:
        assert other.fingerprint == certificate.fingerprint
    assert not os.path.exists(state.where("identity.pem"))


def test_certificates_that_cannot_be_used(root: Path, authority: Authority, certificate: Certificate) -> None:
    """Mismatched, missing, protected, garbage: an error of ours before anybody is served, and nothing stays behind."""
    folder = certificate.path.parent
    garbage = folder / "garbage"
    garbage.write_bytes(os.urandom(500))
    half = folder / "half"
    half.write_bytes(certificate.path.read_bytes()[:200])
    protected = authority.sign("localhost", password=b"secret")
    other = authority.sign("localhost")
    cases: list[tuple[Any, Any, type[errors.FtransferError], str]] = [
        (certificate.path, other.key, errors.UsageError, "key values mismatch"),
        (certificate.path, folder / "absent.key", errors.NotFound, "absent.key"),
        (folder / "absent.pem", certificate.key, errors.NotFound, "absent.pem"),
        (protected.path, protected.key, errors.UsageError, "password"),
        (garbage, None, errors.UsageError, "garbage"),
        (half, certificate.key, errors.UsageError, "half"),
        (certificate.path, garbage, errors.UsageError, ""),
        (certificate.path, None, errors.UsageError, ""),
        (certificate.key, None, errors.UsageError, ""),
        (folder, None, errors.FtransferError, ""),
        (os.devnull, None, errors.UsageError, ""),
    ]
    for cert, key, cls, says in cases:
        with nothing_leaks(), pytest.raises(cls) as caught:
            ftransfer.Server(root, cert=cert, key=key)
        told = f"{caught.value.path} {caught.value} {caught.value.hint}"
        assert says in told, told
        assert caught.value.exit_status in (2, 3), (cert, key)
        assert "PRIVATE" not in told
        assert "_ssl.c" not in told, told
    ran = run_here("serve", root, "--listen", "127.0.0.1:0", "--cert", certificate.path, "--key", other.key)
    assert (ran.status, ran.out) == (2, "")
    assert "cannot be used: key values mismatch\nhint: --cert takes" in ran.err


def test_a_start_that_fails_leaves_no_token_behind(root: Path, state: StateDir, tmp_path: Path) -> None:
    """Nor the file of a socket: there is no server to show the one to, and none behind the other."""
    with pytest.raises(errors.FtransferError):
        ftransfer.Server(root, listen=[f"unix:{tmp_path / 's'}", "127.0.0.1:0"], cert=tmp_path / "absent")
    assert os.listdir(state.where("serving")) == []
    assert not (tmp_path / "s").exists()


def test_a_damaged_certificate_of_our_own(root: Path, state: StateDir) -> None:
    """It is named, and never replaced behind anybody's back."""
    state.write("identity.pem", b"damaged")
    with pytest.raises(errors.UsageError, match=r"identity\.pem"):
        ftransfer.Server(root, listen=[":0"])
    assert state.read("identity.pem") == b"damaged"


def test_without_the_package_that_makes_certificates(
    root: Path, certificate: Certificate, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install; a certificate that is given needs it not, nor does loopback."""
    del state
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    ran = run_here("serve", root, "--listen", ":0")
    assert (ran.status, ran.out) == (3, "")
    assert "hint: pip install 'ftransfer-tool[tls]'; or give one: --cert FILE --key FILE" in ran.err
    with ftransfer.Server(root, listen=[":0"], cert=certificate.path, key=certificate.key) as server:
        assert server.fingerprint == certificate.fingerprint
    with ftransfer.Server(root) as server:
        serves_well(server)


def test_the_command_speaks_tls(tmp_path: Path, here: Path) -> None:
    """`serve` on every address prints the fingerprint that clients see."""
    root = tmp_path / "served"
    root.mkdir()
    with serving(root, "--state", tmp_path / "state", listen=":0") as (url, process):
        assert process.stdout is not None
        line = process.stdout.readline()
        fingerprint = line.split("--fingerprint ")[1].split()[0]
        assert f"ftransfer login {url} --fingerprint sha256:" in line
        port = net.parse_url(url).port
        local = f"ft+tls://127.0.0.1:{port}/"
        env = {"FTRANSFER_STATE": str(tmp_path / "state"), "FTRANSFER_FINGERPRINT": fingerprint}
        assert run("upload", here / "a.txt", local, env=env).status == 0
        token = StateDir(tmp_path / "state").read(f"serving/{next(iter(os.listdir(tmp_path / 'state/serving')))}")
        assert token is not None
        if not url.startswith(("ft://127.", "ft://[::1]")):
            ran = run("verify", here / "a.txt", url, env=env | {"FTRANSFER_TOKEN": token.decode()})
            assert ran.status == 0, ran.err
    assert (root / "a.txt").read_bytes() == b"hello\n"


def test_a_handshake_that_is_reset_is_no_traceback(
    server: ftransfer.Server, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At every place of it."""
    hello = client_hello()
    with unharmed(server, root):
        for said in (hello[:1], hello[:50], hello):
            sock = socket.create_connection(address_of(server.urls[0]))
            sock.sendall(said)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
    assert not [record for record in caplog.records if record.exc_info]

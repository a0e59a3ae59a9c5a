"""How a server begins and ends: addresses, draining, idle and stopped clients; and how patient a client is."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from faults import PATIENCE, Mother, Plan, Proxy, noise, reserved, tree
from support import token_for

import ftransfer
from ftransfer import channel, errors, link, wire
from ftransfer.session import CLIENT

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder to serve."""
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to upload."""
    made = tmp_path / "file"
    made.write_bytes(noise(SIZE))
    return made


@pytest.fixture(scope="module")
def mother() -> Iterator[Mother]:
    """The process that forks others."""
    with Mother() as made:
        yield made


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait in this process look up every tenth of a second."""
    monkeypatch.setattr(channel, "TICK", 0.1)


def move(
    remote: ftransfer.Remote, direction: str, source: Path, target: Path, **options: object
) -> ftransfer.FileResult:
    """Upload `source` as `copy`, or download `big` to `target`."""
    if direction == "upload":
        return remote.upload(source, "copy", **options).files[0]  # type: ignore[arg-type]
    return remote.download("big", target, **options).files[0]  # type: ignore[arg-type]


@contextlib.contextmanager
def channel_to(url: str) -> Iterator[channel.Channel]:
    """Yield a channel that has been greeted."""
    address = ftransfer.connect(url).address
    with socket.create_connection((address.host, address.port), timeout=PATIENCE) as sock:
        made = channel.Channel(sock, role=CLIENT, timeout=PATIENCE)
        made.send(wire.Hello(versions=[wire.VERSION], software="test", token=token_for(url)))
        assert isinstance(made.receive(), wire.Welcome)
        yield made


# The command in a process of its own.


class Command:
    """`ftransfer serve` as a process."""

    def __init__(self, root: Path, *options: str):
        command = [sys.executable, "-m", "ftransfer", "serve", str(root), "--listen", "127.0.0.1:0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready
        self.line = self.process.stdout.readline()
        self.url = self.line.split()[-1]

    def __enter__(self) -> Command:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, number: int = signal.SIGTERM) -> str:
        """Send a signal, wait for the end, which has to be good, and return what was logged."""
        self.process.send_signal(number)
        _, logged = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, logged
        return logged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_well(root: Path, source: Path, number: int) -> None:
    """Without connections it ends at once, with status 0; the log has one line for the request before."""
    with Command(root) as command:
        with ftransfer.connect(command.url) as remote:
            remote.upload(source, "copy")
        started = time.monotonic()
        logged = command.end(number)
        assert time.monotonic() - started < 3
    assert sum("put copy" in line for line in logged.splitlines()) == 1
    assert f"{SIZE} bytes" in logged
    assert (root / "copy").read_bytes() == noise(SIZE)


def test_a_running_upload_may_finish(root: Path, source: Path) -> None:
    """A signal in the middle of an upload: it gets its receipt, then the server ends with status 0."""
    with Command(root) as command:
        signals = []

        def show(event: ftransfer.Progress) -> None:
            if event.done > 0 and not signals:
                signals.append(1)
                command.process.terminate()

        with ftransfer.connect(command.url, limit_rate=8 * MIB, retry_for=0) as remote:
            result = remote.upload(source, "copy", on_progress=show).files[0]
        _, logged = command.process.communicate(timeout=PATIENCE)
        assert command.process.returncode == 0, logged
    assert (result.result, result.durable) == ("sent", True)
    assert (root / "copy").read_bytes() == noise(SIZE)
    assert reserved(root) == []


def test_a_second_signal_cuts_what_is_running(root: Path, source: Path) -> None:
    """Nobody has to wait for the grace to end; what was cut is resumed."""
    with Command(root) as command:
        signals = []

        def show(event: ftransfer.Progress) -> None:
            if event.done > 0 and event.phase == "sending" and len(signals) < 2:
                signals.append(1)
                command.process.terminate()
                # New connections are refused when the first signal has been seen; only then may the second come.
                _until_refused(command.url)

        with (
            ftransfer.connect(command.url, limit_rate=MIB // 2, retry_for=0) as remote,
            pytest.raises((errors.ServerClosing, errors.ConnectionLost)),
        ):
            remote.upload(source, "copy", on_progress=show)
        _, logged = command.process.communicate(timeout=PATIENCE)
        assert command.process.returncode == 0, logged
    assert not (root / "copy").exists()
    with ftransfer.Server(root) as server, ftransfer.connect(server.urls[0]) as remote:
        assert remote.upload(source, "copy").files[0].resumed_from > 0
    assert (root / "copy").read_bytes() == noise(SIZE)


def _until_refused(url: str) -> None:
    address = ftransfer.connect(url).address
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            with socket.create_connection((address.host, address.port), timeout=1) as sock:
                sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    sock.recv(1)
        except OSError:
            return
    raise AssertionError("it still listens")


# Draining, in this process.


def test_an_idle_connection_is_told_that_the_server_closes(root: Path) -> None:
    """It gets an error `closing`, then the end."""
    server = ftransfer.Server(root)
    server.start()
    with channel_to(server.urls[0]) as client:
        closing = threading.Thread(target=server.close)
        started = time.monotonic()
        closing.start()
        answer = client.receive()
        assert isinstance(answer, wire.Error)
        assert answer.code == "closing"
        assert client.receive() is None
        closing.join(PATIENCE)
        assert time.monotonic() - started < 3


def test_the_grace_ends(root: Path, source: Path) -> None:
    """A transfer that does not end in time is cut, and can be resumed."""
    server = ftransfer.Server(root, limits=ftransfer.Limits(grace_seconds=0.3))
    server.start()
    closing = threading.Thread(target=server.close)

    def show(event: ftransfer.Progress) -> None:
        if event.done > 0 and not closing.ident:
            closing.start()

    with (
        ftransfer.connect(server.urls[0], limit_rate=MIB, retry_for=0) as remote,
        pytest.raises((errors.ServerClosing, errors.ConnectionLost)) as caught,
    ):
        remote.upload(source, "copy", on_progress=show)
    assert caught.value.exit_status == 4
    closing.join(PATIENCE)
    with ftransfer.Server(root) as second, ftransfer.connect(second.urls[0]) as remote:
        assert remote.upload(source, "copy").files[0].resumed_from > 0


def test_a_server_is_closed_once_and_for_all(root: Path, tmp_path: Path) -> None:
    """Closing twice is harmless, entering again is an error, another one on the same address is fine."""
    where = f"unix:{tmp_path / 's'}"
    for _ in range(2):
        server = ftransfer.Server(root, listen=[where])
        with server, ftransfer.connect(server.urls[0]) as remote:
            remote.ping()
        server.close()
        assert not (tmp_path / "s").exists()
        with pytest.raises(errors.UsageError):
            server.start()


def test_a_server_that_was_never_started(root: Path) -> None:
    """It only has to be closed."""
    server = ftransfer.Server(root)
    assert server.urls
    server.close()


def test_a_root_that_is_none(tmp_path: Path) -> None:
    """No such folder, or a file, is an error at the beginning."""
    with pytest.raises(errors.NotFound):
        ftransfer.Server(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(errors.NotAFile):
        ftransfer.Server(tmp_path / "file")


# Clients that stop.


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_stopped_client_is_let_go_and_others_are_served(
    root: Path, source: Path, tmp_path: Path, mother: Mother, direction: str
) -> None:
    """A client that is stopped in the middle loses its connection after the timeout; meanwhile others are served."""
    big = noise(24 * MIB)
    (root / "big").write_bytes(big)
    (tmp_path / "big").write_bytes(big)
    with ftransfer.Server(root, timeout=0.6) as server:
        names = ("big", str(tmp_path / "copy")) if direction == "download" else (str(tmp_path / "big"), "copy")
        child = mother.start(direction, url=server.urls[0], source=names[0], dest=names[1], rate=20 * MIB)
        while not (said := child.wait_for("sending", "receiving")) or int(said.split()[1]) < MIB:
            pass
        os.kill(child.pid, signal.SIGSTOP)
        try:
            (thread,) = server._threads
            with ftransfer.connect(server.urls[0]) as remote:
                remote.upload(source, "other")
            thread.join(PATIENCE)
            assert not thread.is_alive()
        finally:
            os.kill(child.pid, signal.SIGCONT)
        assert child.finish().startswith("result sent")
    assert (root / "other").read_bytes() == noise(SIZE)
    assert (tmp_path / "copy" if direction == "download" else root / "copy").read_bytes() == big


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_stopped_server_is_not_waited_for_for_ever(
    root: Path, source: Path, tmp_path: Path, mother: Mother, direction: str
) -> None:
    """A client gives a server that has stopped its timeout, and says so."""
    (root / "big").write_bytes(noise(24 * MIB))
    child = mother.start("server", root=str(root), listen="127.0.0.1:0")
    url = child.wait_for("ready").split()[1]
    stopped = threading.Event()

    def show(event: ftransfer.Progress) -> None:
        if event.done > 0 and not stopped.is_set():
            stopped.set()
            os.kill(child.pid, signal.SIGSTOP)

    try:
        with (
            ftransfer.connect(url, timeout=0.6, retry_for=0, limit_rate=20 * MIB) as remote,
            pytest.raises(errors.TimedOut),
        ):
            move(remote, direction, source, tmp_path / "copy", on_progress=show)
        assert stopped.is_set()
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.kill()
    assert not (tmp_path / "copy").exists()


def test_a_client_that_dies_frees_what_it_held(root: Path, tmp_path: Path, mother: Mother) -> None:
    """Its transfer can be taken up by another at once."""
    (tmp_path / "big").write_bytes(noise(12 * MIB))
    with ftransfer.Server(root) as server:
        child = mother.start("upload", url=server.urls[0], source=str(tmp_path / "big"), dest="copy", rate=12 * MIB)
        while not (said := child.wait_for("sending")) or int(said.split()[1]) < 1:
            pass
        child.kill()
        with ftransfer.connect(server.urls[0]) as remote:
            result = remote.upload(tmp_path / "big", "copy").files[0]
    assert result.resumed_from > 0
    assert (root / "copy").read_bytes() == noise(12 * MIB)


# Addresses.


def has_ipv6() -> bool:
    """Tell whether ::1 can be bound here."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0", "unix:"])
def test_addresses_that_only_this_machine_reaches(root: Path, tmp_path: Path, listen: str) -> None:
    """Each gives a URL with the real port that the client takes."""
    if listen == "[::1]:0" and not has_ipv6():
        pytest.skip("NOT TESTED: there is no IPv6 here")
    if listen == "unix:":
        listen += str(tmp_path / "socket é")
    with ftransfer.Server(root, listen=[listen]) as server:
        assert server.urls
        for url in server.urls:
            assert ":0/" not in url
            with ftransfer.connect(url) as remote:
                remote.upload(b"data", "copy", compare="none")
                assert remote.ping().version == wire.VERSION
    assert tree(root) == {"copy": b"data"}


def test_several_addresses_at_once(root: Path, tmp_path: Path) -> None:
    """All of them lead to the same folder."""
    listen = ["127.0.0.1:0", f"unix:{tmp_path / 'a'}", f"unix:{tmp_path / 'b'}", "127.0.0.1:0"]
    with ftransfer.Server(root, listen=listen) as server:
        assert len(server.urls) == 4
        for number, url in enumerate(server.urls):
            with ftransfer.connect(url) as remote:
                remote.upload(b"data", f"{number}")
    assert len(tree(root)) == 4


@pytest.mark.parametrize("insecure", [False, True])
def test_every_interface_takes_both_families(root: Path, insecure: bool) -> None:
    """The user of this machine gets in by IPv4 and by IPv6, in the clear; without `insecure` TLS is there, too."""
    with ftransfer.Server(root, listen=[":0"], insecure=insecure) as server:
        assert (server.fingerprint is None) == insecure
        port = ftransfer.connect(server.urls[-1]).address.port
        for host in ["127.0.0.1", *(["[::1]"] if has_ipv6() else [])]:
            with ftransfer.connect(f"ft://{host}:{port}/") as remote:
                assert remote.ping().user == "owner"
            with ftransfer.connect(f"ft+tls://{host}:{port}/", fingerprint=server.fingerprint) as remote:
                if insecure:
                    with pytest.raises(errors.TlsMismatch, match="speaks none on this port"):
                        remote.ping()
                else:
                    assert any(fact.startswith("encrypted: TLSv1.3 ") for fact in remote.ping().server_facts)


def test_addresses_that_are_none(root: Path) -> None:
    """Nonsense and taken ports are errors that leave nothing open."""
    for listen in ("127.0.0.1:x", "127.0.0.1:70000", "[::1", "unix:", "unix:" + "x" * 200, "no such host.invalid:0"):
        with pytest.raises(errors.UsageError):
            ftransfer.Server(root, listen=["127.0.0.1:0", listen])
    with ftransfer.Server(root) as server:
        address = ftransfer.connect(server.urls[0]).address
        with pytest.raises(errors.Unreachable):
            ftransfer.Server(root, listen=[f"127.0.0.1:{address.port}"])
        with ftransfer.connect(server.urls[0]) as remote:
            remote.ping()


def test_a_port_can_be_taken_again_at_once(root: Path) -> None:
    """A restarted server gets its old port, though connections of the old one linger."""
    with ftransfer.Server(root) as server:
        address = ftransfer.connect(server.urls[0]).address
        with ftransfer.connect(server.urls[0]) as remote:
            remote.ping()
            server.close()
            with ftransfer.Server(root, listen=[f"127.0.0.1:{address.port}"]):
                remote.ping()


def test_socket_files(root: Path, tmp_path: Path, mother: Mother) -> None:
    """A stale socket is replaced, a live one and a file that is no socket are not."""
    path = tmp_path / "s"
    child = mother.start("server", root=str(root), listen=f"unix:{path}")
    child.wait_for("ready")
    with pytest.raises(errors.AlreadyExists):
        ftransfer.Server(root, listen=[f"unix:{path}"])
    child.kill()
    assert path.exists()
    with (
        ftransfer.Server(root, listen=[f"unix:{path}"]),
        ftransfer.connect(f"ft+unix://{quote(str(path), safe='')}/") as r,
    ):
        r.ping()
        assert path.stat().st_mode & 0o077 == 0
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(errors.FtransferError):
        ftransfer.Server(root, listen=[f"unix:{path}"])
    assert path.read_text() == "precious"


# The patience of a client.


def test_an_idle_connection_is_made_again(root: Path, source: Path) -> None:
    """The server lets idle clients go; the next call of the API does not notice."""
    limits = ftransfer.Limits(idle_seconds=0.1)
    with ftransfer.Server(root, limits=limits) as server, ftransfer.connect(server.urls[0]) as remote:
        for request in (
            lambda: remote.upload(source, "copy"),
            lambda: list(remote.list()),
            lambda: remote.stat("copy"),
            lambda: remote.mkdir("folder"),
            lambda: remote.checksum("copy"),
            remote.partials,
            lambda: remote.move("copy", "moved"),
            lambda: remote.remove("moved"),
        ):
            request()
            for thread in list(server._threads):
                thread.join(PATIENCE)
            assert server.connection_count == 0


def test_a_list_that_is_cut_is_not_taken_for_whole(root: Path) -> None:
    """The end of the connection is not the end of the list."""
    for number in range(3000):
        (root / f"{number:05}").touch()
    plan = Plan(cut_down=60_000)
    with (
        ftransfer.Server(root) as server,
        Proxy(server.urls[0], plan) as proxy,
        ftransfer.connect(proxy.url) as remote,
    ):
        with pytest.raises(errors.ConnectionLost):
            list(remote.list())
        assert len(list(remote.list())) == 3000


def test_nobody_there(root: Path) -> None:
    """An address without a server fails at once, or is tried for as long as was asked for."""
    with ftransfer.Server(root) as server:
        url = server.urls[0]
    started = time.monotonic()
    with ftransfer.connect(url) as remote, pytest.raises(errors.Unreachable) as caught:
        remote.ping()
    assert time.monotonic() - started < 2
    assert caught.value.exit_status == 4
    started = time.monotonic()
    with ftransfer.connect(url, retry_for=0.5) as remote, pytest.raises(errors.Unreachable):
        remote.ping()
    assert 0.4 < time.monotonic() - started < 5


def test_retry_for_nothing(root: Path, source: Path) -> None:
    """With retry_for=0 the first failure is the last."""
    with ftransfer.Server(root) as server, Proxy(server.urls[0], Plan(cut_up=MIB)) as proxy:
        with ftransfer.connect(proxy.url, retry_for=0) as remote, pytest.raises(errors.ConnectionLost):
            remote.upload(source, "copy")
        assert proxy.connections == 1


def test_retries_end_without_progress(root: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as something arrives tries go on; when nothing does they end after `retry_for`."""
    monkeypatch.setattr(link, "FIRST_DELAY", 0.01)
    plans = [Plan(cut_up=300_000 * n) for n in range(1, 5)] + [Plan(cut_down=200)] * 1000
    with ftransfer.Server(root) as server, Proxy(server.urls[0], *plans) as proxy:
        with ftransfer.connect(proxy.url, retry_for=0.6) as remote, pytest.raises(errors.ConnectionLost):
            remote.upload(source, "copy")
        assert proxy.connections > 5


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_max_time_ends_everything(root: Path, source: Path, tmp_path: Path, direction: str) -> None:
    """After `max_time` the call ends with a timeout, whatever it was doing; running it again goes on."""
    (root / "big").write_bytes(noise(SIZE))
    with ftransfer.Server(root) as server:
        started = time.monotonic()
        with (
            ftransfer.connect(server.urls[0], max_time=0.7, limit_rate=3 * MIB) as remote,
            pytest.raises(errors.TimedOut, match=r"0\.7 s"),
        ):
            move(remote, direction, source, tmp_path / "copy")
        assert time.monotonic() - started < 4
        for thread in list(server._threads):
            thread.join(PATIENCE)
        with ftransfer.connect(server.urls[0]) as remote:
            again = move(remote, direction, source, tmp_path / "copy")
    assert again.resumed_from > 0


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_cancelling_ends_everything(root: Path, source: Path, tmp_path: Path, direction: str) -> None:
    """The event of the caller stops a transfer; the old file stays, and the next run goes on."""
    (root / "big").write_bytes(noise(SIZE))
    cancel = threading.Event()

    def show(event: ftransfer.Progress) -> None:
        if event.done > 0:
            cancel.set()

    with ftransfer.Server(root) as server:
        with ftransfer.connect(server.urls[0], cancel=cancel, limit_rate=10 * MIB) as remote:
            with pytest.raises(errors.Cancelled) as caught:
                move(remote, direction, source, tmp_path / "copy", on_progress=show)
            assert caught.value.exit_status == 130
            with pytest.raises(errors.Cancelled):
                remote.ping()
        for thread in list(server._threads):
            thread.join(PATIENCE)
        with ftransfer.connect(server.urls[0]) as remote:
            again = move(remote, direction, source, tmp_path / "copy")
    assert again.resumed_from > 0


def test_cancelling_while_nobody_answers(root: Path) -> None:
    """Waiting between two tries is ended, too."""
    with ftransfer.Server(root) as server:
        url = server.urls[0]
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    started = time.monotonic()
    with ftransfer.connect(url, cancel=cancel, retry_for=PATIENCE) as remote, pytest.raises(errors.Cancelled):
        remote.ping()
    timer.join()
    assert time.monotonic() - started < 5


def test_too_many_connections_are_told_so(root: Path) -> None:
    """Beyond the limit a client learns that the server is full, and gets in when there is room again."""
    with ftransfer.Server(root, limits=ftransfer.Limits(connections=2)) as server:
        url = server.urls[0]
        with (
            channel_to(url),
            channel_to(url),
            ftransfer.connect(url, retry_for=0) as remote,
            pytest.raises(errors.ServerFull),
        ):
            remote.ping()
        with ftransfer.connect(url, retry_for=PATIENCE) as remote:
            remote.ping()


def test_connecting_and_silence_do_not_hold_the_server(root: Path) -> None:
    """Clients that say nothing are let go after the handshake's time; others are served meanwhile."""
    with ftransfer.Server(root, limits=ftransfer.Limits(handshake_seconds=0.3)) as server:
        address = ftransfer.connect(server.urls[0]).address
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection((address.host, address.port))) for _ in range(5)]
            with ftransfer.connect(server.urls[0]) as remote:
                remote.ping()
            for sock in silent:
                sock.settimeout(PATIENCE)
                while sock.recv(4096):
                    pass

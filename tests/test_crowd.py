"""A crowd that says nothing, or a byte now and then, while a good client uploads: it is served, and all is bounded.

A thousand silent connections and two hundred that dribble are held open by a process of their own. How fast the upload
is beside them is for the benchmark.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from support import (
    PATIENCE,
    Peer,
    address_of,
    block_hash,
    descriptors,
    frame,
    resident,
    server_process,
    thread_count,
    token_for,
    wait_until,
)

import ftransfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SILENT, DRIBBLING = 1000, 200
SIZE = 64 << 20
BESIDE = 24
"""Threads and descriptors of a server that belong to no connection, and those of what it turns away."""
MEMORY = 128 << 20
"""Memory that the crowd may cost."""

# Opens connections from some addresses of this machine, says what each is to say at once, and then, until its input
# ends, the bytes of the rest one by one, round by round. Says "ready" when all are open.
CROWD = """
import resource, select, socket, sys
host, port, silent, dribbling, addresses = sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:6])
at_once, rest = bytes.fromhex(sys.argv[6]), bytes.fromhex(sys.argv[7])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 8192, hard))
held = []
for number in range(silent + dribbling):
    source = None if addresses == 1 else ("127.0.1.%d" % (number % addresses + 1), 0)
    sock = socket.create_connection((host, port), 20, source)
    if number >= silent and at_once:
        sock.sendall(at_once)
        sock.recv(1)  # it is let in, or told why not
    held.append(sock)
print("ready", flush=True)
alive = held[silent:]
for at in range(len(rest)):
    if select.select([sys.stdin], [], [], 0.2)[0]:
        break
    for sock in list(alive):
        try:
            sock.sendall(rest[at:at + 1])
        except OSError:
            alive.remove(sock)
sys.stdin.read()
"""


@contextmanager
def crowd(url: str, *, addresses: int = 1, at_once: bytes = b"", rest: bytes) -> Iterator[None]:
    """Hold the connections open for the time of the block."""
    host, port = address_of(url)
    words = [host, port, SILENT, DRIBBLING, addresses, at_once.hex(), rest.hex()]
    with subprocess.Popen(
        [sys.executable, "-c", CROWD, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n", "the crowd could not come"
            yield
        finally:
            process.communicate(timeout=PATIENCE)


class Watch:
    """Looks at a server again and again, and keeps the most that it saw."""

    def __init__(self, pid: int):
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.threads = self.descriptors = self.memory = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.threads = max(self.threads, thread_count(self._pid))
            self.descriptors = max(self.descriptors, descriptors(self._pid))
            self.memory = max(self.memory, resident(self._pid))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the good client uploads."""
    path = tmp_path / "source.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def needs_addresses(count: int) -> None:
    """Skip, aloud, where the whole of 127.0.0.0/8 is not this machine, or a process may not open as much."""
    import socket

    if count > 1:
        try:
            with socket.socket() as probe:
                probe.bind(("127.0.1.1", 0))
        except OSError as exc:
            pytest.skip(f"this machine has one loopback address: {exc}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2 * (SILENT + DRIBBLING):
        pytest.skip(f"a process may open no more than {hard} files here")


def upload_well(url: str, source: Path, root: Path) -> None:
    """Upload, verify, look and download, as one who knows nothing of the crowd."""
    with ftransfer.connect(url, timeout=30) as remote:
        result = remote.upload(source, "good.bin").files[0]
        assert result.result == "sent"
        assert result.durable
        assert remote.verify(source, "good.bin").same
        assert [entry.path for entry in remote.list("")] == ["good.bin"]
    assert (root / "good.bin").read_bytes() == source.read_bytes()


HELLO = frame({"type": "hello", "versions": [1], "software": "x" * 900})


@pytest.mark.parametrize("addresses", [1, 40])
def test_a_good_client_is_served_beside_a_crowd(root: Path, source: Path, addresses: int) -> None:
    """From its own address or from others: none of the crowd has said who it is, and so it is what gives way."""
    needs_addresses(addresses)
    limits = ftransfer.Limits()
    with server_process(root) as (url, pid):
        calm = thread_count(pid), descriptors(pid), resident(pid)
        with Watch(pid) as watch, crowd(url, addresses=addresses, rest=HELLO):
            upload_well(url, source, root)
        assert watch.threads <= limits.connections + BESIDE
        assert watch.descriptors <= limits.connections + calm[1] + BESIDE
        assert watch.memory <= calm[2] + MEMORY
        assert watch.threads <= limits.unauthenticated + BESIDE
        wait_until(lambda: thread_count(pid) <= calm[0] and descriptors(pid) <= calm[1] + 2, "the end of the crowd")
        upload_again(url, root)


def test_a_good_client_is_served_beside_those_who_may_be_there(root: Path, source: Path) -> None:
    """A crowd of a thousand that is silent, and two hundred that have logged in and send a block byte by byte."""
    needs_addresses(40)
    limits = ftransfer.Limits()
    with server_process(root) as (url, pid):
        calm = thread_count(pid), descriptors(pid), resident(pid)
        hello = {"type": "hello", "versions": [1], "software": "x", "token": token_for(url)}
        put = {"type": "put", "t": 1, "path": "slow.bin", "size": 1000}
        block = {"type": "block", "t": 1, "offset": 0, "hash": block_hash(b"x" * 1000), "body": 1000}
        with (
            Watch(pid) as watch,
            crowd(url, addresses=40, at_once=frame(hello) + frame(put) + frame(block), rest=b"x" * 1000),
        ):
            upload_well(url, source, root)
        assert watch.threads <= limits.connections + BESIDE
        assert watch.descriptors <= limits.connections + 4 * limits.uploads + calm[1] + BESIDE
        wait_until(lambda: thread_count(pid) <= calm[0] and descriptors(pid) <= calm[1] + 2, "the end of the crowd")
        upload_again(url, root)


def upload_again(url: str, root: Path) -> None:
    """Fail the test unless the server is as good as new."""
    with ftransfer.connect(url, retry_for=0) as remote:
        remote.upload(b"again", "again")
    assert (root / "again").read_bytes() == b"again"
    with Peer.dial(url) as peer:
        peer.send({"type": "ping", "t": 1})
        peer.expect("pong")

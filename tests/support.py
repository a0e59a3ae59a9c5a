"""What the tests share: a peer that speaks frames by hand, servers real and hostile, a proxy that cuts and corrupts.

Nothing here sleeps for a fixed time: what has to come is waited for, and every wait ends.
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from xxhash import xxh3_128_hexdigest

import ftransfer
from ftransfer import net, tokens
from ftransfer.statedir import StateDir

PATIENCE = 20.0
"""Seconds after which a test that waits gives up."""
Header = dict[str, Any]
Script = Callable[["Peer"], None]

needs_no_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything: run as another user")


def block_hash(data: bytes) -> str:
    """Return the XXH3-128 of some bytes, as blocks and files carry it."""
    return xxh3_128_hexdigest(data)


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of an `ft://` address."""
    address = net.parse_url(url)
    return address.host, address.port


def token_for(url: str) -> str:
    """Return the owner token of a server of this user, as clients find it: by the address, in the state folder."""
    host, port = address_of(url)
    token = StateDir().read(f"serving/{tokens.endpoint((host, port))}")
    assert token is not None, f"no server of ours at {url}"
    return token.decode()


def share_token(url: str, listener: socket.socket) -> None:
    """Let clients that connect to a proxy show the token of the server behind it, as they would without the proxy."""
    tokens.publish(StateDir(), listener, token_for(url))


def wait_until(condition: Callable[[], object], what: str = "it", seconds: float = PATIENCE) -> None:
    """Return as soon as the condition holds; fail the test if it does not within that time."""
    until = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"{what} did not happen within {seconds:g} s")
        pause.wait(0.005)


def snapshot(root: Path, *, times: bool = False) -> dict[str, tuple[Any, ...]]:
    """Return everything below a folder, the store's own files too: kind, permission bits and content of each name."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        kind = stat.S_IFMT(status.st_mode)
        found[str(path.relative_to(root))] = (kind, stat.S_IMODE(status.st_mode), content) + (
            (status.st_mtime_ns,) if times and not stat.S_ISDIR(status.st_mode) else ()
        )
    return found


def staged(root: Path) -> list[str]:
    """Return the names below a folder that belong to unfinished transfers: staged files and journals."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.name.startswith(".ftransfer-") or path.name.endswith(".journal")
    )


def frame(header: Header | bytes, *, length: int | None = None) -> bytes:
    """Return a frame without its body; `length` lies about the header's."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("!I", len(raw) if length is None else length) + raw


class Peer:
    """One end of a connection that is driven by hand, message by message."""

    def __init__(self, sock: socket.socket):
        sock.settimeout(PATIENCE)
        self.socket = sock
        self.last_body = b""

    @classmethod
    def dial(cls, url: str, *, greet: bool = True) -> Self:
        """Connect to a server; with `greet` also exchange hello and welcome."""
        peer = cls(socket.create_connection(address_of(url), timeout=PATIENCE))
        if greet:
            peer.send({"type": "hello", "versions": [1], "software": "tests", "token": token_for(url)})
            assert peer.expect("welcome")["version"] == 1
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, header: Header | bytes, body: bytes = b"", *, length: int | None = None) -> None:
        """Send a frame, valid or not."""
        self.send_raw(frame(header, length=length) + body)

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def try_to_send(self, data: bytes) -> bool:
        """Send bytes; tell whether the other end still took them."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def send_block(self, t: int, offset: int, data: bytes, /, **changed: Any) -> None:
        """Send a block with its right hash, or with fields changed."""
        self.send(
            {"type": "block", "t": t, "offset": offset, "hash": block_hash(data), "body": len(data)} | changed, data
        )

    def send_end(self, t: int, path: str, data: bytes, /, **changed: Any) -> None:
        """Say that this was all of a file, with its right size and hash, or with fields changed."""
        self.send({"type": "end", "t": t, "path": path, "size": len(data), "hash": block_hash(data)} | changed)

    def receive(self) -> Header | None:
        """Return the next header, or None at the end of the stream; the body is in `last_body`."""
        try:
            prefix = self._read(4)
        except ConnectionError:
            return None
        if prefix is None:
            return None
        raw = self._read(struct.unpack("!I", prefix)[0])
        assert raw is not None
        made: Header = json.loads(raw)
        body = self._read(made.get("body", 0))
        assert body is not None
        self.last_body = body
        return made

    def expect(self, kind: str, **fields: Any) -> Header:
        """Return the next header that is not a sign of life, which has to be of this type and have these fields."""
        while (made := self.receive()) is not None and made["type"] == "working" and kind != "working":
            pass
        assert made is not None, f"the other side closed; {kind} was expected"
        assert made["type"] == kind, made
        assert {name: made.get(name) for name in fields} == fields, made
        return made

    def expect_any_of(self, *kinds: str) -> Header:
        """Return the next header, which has to be of one of these types."""
        made = self.receive()
        assert made is not None, "the other side closed"
        assert made["type"] in kinds, made
        return made

    def is_closed_by_peer(self) -> bool:
        """Tell whether the other end says nothing more and closes."""
        return self.receive() is None

    def hang_up(self) -> None:
        """Say that nothing more will come, but go on listening."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST, as a machine that loses its patience."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def drain(self) -> bytes:
        """Read until the other end closes; return what came."""
        parts = []
        try:
            while data := self.socket.recv(1 << 16):
                parts.append(data)
        except ConnectionError:
            pass
        return b"".join(parts)

    def dribble(self, data: bytes, seconds: float, *, most: float = PATIENCE) -> bool:
        """Send a byte at a time, so many seconds apart; return whether the other end gave up before `most` seconds."""
        until = time.monotonic() + most
        for at in range(len(data)):
            if not self.try_to_send(data[at : at + 1]):
                return True
            if self._hears_the_end(seconds):
                return True
            if time.monotonic() > until:
                return False
        return False

    def _hears_the_end(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                return False
            try:
                if not self.socket.recv(1 << 16):
                    return True
            except ConnectionError:
                return True
        return False

    def _read(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            data = self.socket.recv(count - len(parts))
            if not data:
                assert not parts, "the other side closed within a frame"
                return None
            parts += data
        return bytes(parts)


def put(peer: Peer, t: int, path: str, size: int | None, **fields: Any) -> None:
    """Announce an upload."""
    peer.send({"type": "put", "t": t, "path": path, "size": size} | fields)


def upload_by_hand(peer: Peer, t: int, path: str, data: bytes) -> Header:
    """Upload a file in one block and return its receipt."""
    put(peer, t, path, len(data))
    if data:
        peer.send_block(t, 0, data)
        peer.expect("stored", t=t, offset=0, ok=True)
    peer.send_end(t, path, data)
    return peer.expect("receipt", t=t)


def serves_well(server: ftransfer.Server) -> None:
    """Fail the test unless a good client can still upload, download and remove a file."""
    data = os.urandom(100_000)
    with ftransfer.connect(server.urls[0], timeout=10, retry_for=0) as remote:
        remote.upload(data, "good-client.bin", if_exists="fail")
        assert remote.checksum("good-client.bin").hex == block_hash(data)
        remote.remove("good-client.bin")


class FakeServer:
    """A listening socket whose connections a script answers, one after the other.

    What a script raises, other than that the client has gone, is raised again when the block ends.
    """

    def __init__(self, script: Script):
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peers: list[Peer] = []
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="fake-server")
        self.url = f"ft://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            try:
                peer.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        self._thread.join()
        if self._failures and kind is None:
            raise self._failures[0]

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with Peer(sock) as peer:
                self._peers.append(peer)
                try:
                    self._script(peer)
                except OSError:
                    continue  # the client has gone
                except BaseException as exc:  # noqa: BLE001 - raised again at the end
                    self._failures.append(exc)


WELCOME: Header = {
    "type": "welcome",
    "version": 1,
    "software": "fake",
    "session": "0" * 32,
    "can": ["create", "read", "replace", "delete"],
}
"""What a server says that lets everybody do everything."""


def welcomed(script: Script, **fields: Any) -> Script:
    """Return a script for `FakeServer` that greets the client first."""

    def run(peer: Peer) -> None:
        peer.expect("hello")
        peer.send(WELCOME | fields)
        script(peer)

    return run


Change = Callable[[int, bytes], bytes | None]
"""Takes the offset of some bytes in the stream and the bytes; returns what goes on, or None to cut the connection."""


def cut_after(count: int) -> Change:
    """Let that many bytes through, then cut."""

    def change(at: int, data: bytes) -> bytes | None:
        return data[: count - at] if at < count else None

    return change


def flip(*where: int) -> Change:
    """Invert the bytes at these offsets of the stream."""

    def change(at: int, data: bytes) -> bytes:
        made = bytearray(data)
        for one in where:
            if at <= one < at + len(data):
                made[one - at] ^= 0xFF
        return bytes(made)

    return change


def unchanged(at: int, data: bytes) -> bytes:  # noqa: ARG001 - a Change
    """Let everything through."""
    return data


class Proxy:
    """A line between client and server that can be cut and made to lie.

    Arguments: `url` of the real server; `up` and `down` change what goes to the server and to the client; they belong
    to the first `bad` connections, those after it are good.
    """

    def __init__(self, url: str, *, up: Change = unchanged, down: Change = unchanged, bad: int = 1):
        self._target = address_of(url)
        self._changes = (up, down)
        self._bad = bad
        self._listener = socket.create_server(("127.0.0.1", 0))
        share_token(url, self._listener)
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._sockets: list[socket.socket] = []
        self.url = f"ft://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def cut(self) -> None:
        """Cut every connection that is open now."""
        for sock in self._sockets:
            _shut(sock)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            self.connections += 1
            changes = self._changes if self.connections <= self._bad else (unchanged, unchanged)
            for source, sink, change, is_up in (
                (client, server, changes[0], True),
                (server, client, changes[1], False),
            ):
                thread = threading.Thread(target=self._pump, args=(source, sink, change, is_up), name="proxy-pump")
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, change: Change, is_up: bool) -> None:
        at = 0
        try:
            while data := source.recv(1 << 16):
                made = change(at, data)
                if made is None:
                    break
                at += len(data)
                sink.sendall(made)
                if is_up:
                    self.bytes_up += len(made)
                else:
                    self.bytes_down += len(made)
                if len(made) < len(data):
                    break  # cut here; more may never come
            else:
                sink.shutdown(socket.SHUT_WR)
                return
        except OSError:
            pass  # the other half was cut
        _shut(source)
        _shut(sink)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already


@contextmanager
def descriptors_come_back() -> Iterator[None]:
    """Fail the test if more descriptors are open after the block than before it; where that can be counted."""
    before = descriptors()
    yield
    wait_until(lambda: descriptors() <= before, "closing the descriptors")


def descriptors(pid: int | str = "self") -> int:
    """Return how many descriptors a process has open, 0 where that cannot be counted."""
    folder = f"/proc/{pid}/fd"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def resident(pid: int | str = "self") -> int:
    """Return the bytes of memory that a process has, 0 where that cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def thread_count(pid: int | str = "self") -> int:
    """Return how many threads a process has, 0 where that cannot be told."""
    folder = f"/proc/{pid}/task"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


@contextmanager
def server_process(folder: Path, *words: object, before: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """Run `ftransfer serve` in a process of its own and give its first address and its process id.

    Arguments: `before` are the words of a command that runs it. What it logs goes to a file, so that it never waits for
    somebody to read it.
    """
    command = [*before, sys.executable, "-m", "ftransfer", "serve", str(folder), "--listen", "127.0.0.1:0"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([*command, *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"ft\S*://127\.0\.0\.1:\d+/", line):
                    yield found[0], process.pid
                    break
            else:
                log.seek(0)
                pytest.fail(f"no server: {log.read().decode(errors='replace')}")
        finally:
            process.terminate()


@contextmanager
def nothing_leaks() -> Iterator[None]:
    """Fail the test if descriptors or threads are left over after the block that were not there before it."""
    threads = set(threading.enumerate())
    held = descriptors()
    with descriptors_come_back():
        yield
        wait_until(lambda: set(threading.enumerate()) <= threads, "ending the threads")
        if descriptors() > held:
            gc.collect()  # what an error's traceback still holds is no leak


def content_of(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return everything below a folder, with its times, but the store's own files."""
    found = snapshot(root, times=True)
    return {name: value for name, value in found.items() if ".ftransfer" not in name}


@contextmanager
def unharmed(server: ftransfer.Server, root: Path) -> Iterator[None]:
    """Fail the test unless an attack leaves the server as it was.

    Everything below the root is as before and nothing is staged, a good client is served, and the server has no more
    threads, connections and open descriptors than before.
    """
    held = server.connection_count
    serves_well(server)
    wait_until(lambda: server.connection_count <= held, "ending the connection of the good client")
    before = content_of(root)
    with nothing_leaks():
        yield
        wait_until(lambda: server.connection_count <= held, "ending the connections")
    serves_well(server)
    wait_until(lambda: staged(root) == [], "dropping what was staged")
    assert content_of(root) == before

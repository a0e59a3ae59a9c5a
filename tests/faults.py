"""Faults for the tests: a proxy that cuts and damages connections, processes that can be killed, comparing trees.

Run as a script it is the mother of the processes that tests/test_kill.py kills: it has everything imported and forks.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import ftransfer
from ftransfer import net, tokens
from ftransfer.statedir import StateDir

RESERVED = ".ftransfer"
PATIENCE = 20.0
"""Seconds after which something that has to happen has not happened."""


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not repeat, always the same for the same arguments."""
    return random.Random(seed).randbytes(size)


def tree(root: str | os.PathLike[str]) -> dict[str, bytes | None]:
    """Return every file below a folder by its path, reserved names left out; folders have None."""
    found: dict[str, bytes | None] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(RESERVED)]
        at = os.path.relpath(folder, root)
        for name in folders:
            found[os.path.normpath(os.path.join(at, name))] = None
        for name in files:
            if not name.startswith(RESERVED):
                found[os.path.normpath(os.path.join(at, name))] = Path(folder, name).read_bytes()
    return found


def staged(root: str | os.PathLike[str]) -> list[Path]:
    """Return the staged files below a folder."""
    return [path for path in Path(root).rglob(f"{RESERVED}-*") if path.is_file()]


def reserved(root: str | os.PathLike[str]) -> list[str]:
    """Return every reserved name below a folder that is left, records of receipts and their folders left out."""
    left = [path.relative_to(root).as_posix() for path in Path(root).rglob(f"{RESERVED}*")]
    left += [path.relative_to(root).as_posix() for path in Path(root, RESERVED).glob("*") if path.name != "receipts"]
    return sorted(name for name in left if name != RESERVED)


def journals(root: str | os.PathLike[str]) -> list[Path]:
    """Return the journals of a root."""
    return sorted(Path(root, RESERVED).glob("*.journal"))


# The proxy.


class Plan(NamedTuple):
    """What happens to one connection; up is from the client to the server, numbers count bytes of that direction.

    `cut_up`, `cut_down`: cut after so many bytes. `flip_up`, `flip_down`: flip a bit in that byte of the bodies.
    `cut_at_up`, `cut_at_down`: cut instead of passing on the first message of that type. `abort` resets the connection.
    """

    cut_up: int | None = None
    cut_down: int | None = None
    flip_up: int | None = None
    flip_down: int | None = None
    cut_at_up: str | None = None
    cut_at_down: str | None = None
    abort: bool = False


class _Lane:
    """One direction of one connection: follows the frames, so that it knows bodies from headers."""

    def __init__(self, cut: int | None, flip: int | None, cut_at: str | None):
        self.passed = 0
        self.body_bytes = 0
        self._cut, self._flip, self._cut_at = cut, flip, cut_at
        self._head = bytearray()
        self._body_left = 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Return what to pass on, and whether to cut after it."""
        out = bytearray()
        at = 0
        while at < len(data):
            if self._body_left:
                piece = bytearray(data[at : at + self._body_left])
                if self._flip is not None and self.body_bytes <= self._flip < self.body_bytes + len(piece):
                    piece[self._flip - self.body_bytes] ^= 0x10
                self.body_bytes += len(piece)
                self._body_left -= len(piece)
            else:
                piece = bytearray(data[at : at + self._head_missing()])
                self._head += piece
                if self._head_is_whole():
                    message = json.loads(self._head[4:])
                    self._head.clear()
                    if message["type"] == self._cut_at:
                        return bytes(out), True
                    self._body_left = message.get("body", 0)
            out += piece
            at += len(piece)
        if self._cut is not None and self.passed + len(out) >= self._cut:
            kept = out[: self._cut - self.passed]
            self.passed = self._cut
            return bytes(kept), True
        self.passed += len(out)
        return bytes(out), False

    def _head_missing(self) -> int:
        if len(self._head) < 4:
            return 4 - len(self._head)
        length: int = struct.unpack("!I", self._head[:4])[0]
        return 4 + length - len(self._head)

    def _head_is_whole(self) -> bool:
        return len(self._head) >= 4 and not self._head_missing()


class Proxy:
    """Passes connections on to a server and does to each what its plan says; without a plan it passes everything.

    Arguments: `to`, a URL of the server, or nothing yet (see `to`); `plans`, one for each connection in turn.
    """

    def __init__(self, to: str, *plans: Plan):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.to = to
        self.plans = list(plans)
        self.connections = 0
        self.up_bodies = 0
        """Bytes of bodies that came from the clients."""
        self.down_bodies = 0
        """Bytes of bodies that came from the server."""
        self._closing = threading.Event()
        self._wake_out, self._wake_in = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def to(self) -> str:
        """The server; clients of the proxy show its owner token as if it were there."""
        return self._to

    @to.setter
    def to(self, url: str) -> None:
        self._to = url
        if not url:
            return
        address = net.parse_url(url)
        name = address.host if address.scheme == "ft+unix" else (address.host, address.port)
        token = StateDir().read(f"serving/{tokens.endpoint(name)}")
        if token is not None:
            tokens.publish(StateDir(), self._listener, token.decode())

    @property
    def url(self) -> str:
        """The address of the proxy, as a client takes it."""
        return f"ft://127.0.0.1:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._wake_in.send(b".")
        self._thread.join()
        for sock in (self._listener, self._wake_in, self._wake_out):
            sock.close()

    def _dial(self) -> socket.socket:
        address = ftransfer.connect(self.to).address
        if address.scheme == "ft+unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address.host)
            return sock
        return socket.create_connection((address.host, address.port))

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_out, selectors.EVENT_READ)
            try:
                while not self._closing.is_set():
                    for key, _ in selector.select(PATIENCE):
                        if key.fileobj is self._listener:
                            self._accept(selector)
                        elif key.data is not None and key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                            self._pump(selector, selector.get_key(key.fileobj))
            finally:
                for key in list(selector.get_map().values()):
                    if key.data is not None:
                        key.fileobj.close()  # type: ignore[union-attr]

    def _accept(self, selector: selectors.BaseSelector) -> None:
        here, _ = self._listener.accept()
        try:
            there = self._dial()
        except OSError:
            here.close()
            return
        plan = self.plans.pop(0) if self.plans else Plan()
        self.connections += 1
        up = _Lane(plan.cut_up, plan.flip_up, plan.cut_at_up)
        down = _Lane(plan.cut_down, plan.flip_down, plan.cut_at_down)
        selector.register(here, selectors.EVENT_READ, (there, up, plan, True))
        selector.register(there, selectors.EVENT_READ, (here, down, plan, False))

    def _pump(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        source: socket.socket = key.fileobj  # type: ignore[assignment]
        target, lane, plan, is_up = key.data
        try:
            data = source.recv(256 << 10)
        except OSError:
            data = b""
        if target is None:  # it was cut, and what it still says is for nobody
            if not data:
                selector.unregister(source)
                source.close()
            return
        bodies = lane.body_bytes
        out, cut = lane.take(data)
        if is_up:
            self.up_bodies += lane.body_bytes - bodies
        else:
            self.down_bodies += lane.body_bytes - bodies
        try:
            target.sendall(out)
        except OSError:
            cut = True
        if cut or not data:
            self._cut(selector, source, target, abort=cut and plan.abort)

    @staticmethod
    def _cut(selector: selectors.BaseSelector, source: socket.socket, target: socket.socket, *, abort: bool) -> None:
        """End both connections; without `abort` the target gets all that was passed on before that."""
        for sock in (source, target):
            if abort:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        selector.unregister(source)
        source.close()
        try:
            if abort:
                raise ConnectionAbortedError
            target.shutdown(socket.SHUT_WR)
            selector.modify(target, selectors.EVENT_READ, (None, None, None, False))
        except OSError:
            selector.unregister(target)
            target.close()


# Processes.


class Process:
    """A forked child that says what it does on a pipe, one word or number a line; can be killed, and is reaped."""

    def __init__(self, mother: Mother, pid: int, pipe: int):
        self.pid = pid
        self.pipe = pipe
        self._mother = mother
        self._rest = b""
        self.at_end = False
        self.last = ""
        """The last line that it said."""

    def lines(self, seconds: float) -> list[str]:
        """Return what it has said, waiting at most so long for the first line; nothing once it has ended."""
        if not self.at_end and select.select([self.pipe], [], [], seconds)[0]:
            data = os.read(self.pipe, 65536)
            self.at_end = not data
            *whole, self._rest = (self._rest + data).split(b"\n")
            if whole:
                self.last = whole[-1].decode()
            return [line.decode() for line in whole]
        return []

    def wait_for(self, *words: str) -> str:
        """Return the first line that begins with one of these words; raise if it ends before that."""
        said: list[str] = []
        while not self.at_end:
            lines = self.lines(PATIENCE)
            said += lines
            for line in lines:
                if line.startswith(words):
                    return line
            if not lines and not self.at_end:
                break
        raise AssertionError(f"{words} was not said, but {said[-5:]}")

    def kill(self) -> None:
        """Kill it with SIGKILL; it has ended when this returns."""
        os.kill(self.pid, signal.SIGKILL)
        self.finish()

    def finish(self) -> str:
        """Wait for its end, let go of it, and return the last line that it said."""
        while not self.at_end:
            if not self.lines(PATIENCE) and not self.at_end:
                raise AssertionError("it does not end")
        os.close(self.pipe)
        self._mother.ask({"reap": self.pid})
        return self.last


class Mother:
    """A process with ftransfer imported that forks children in no time, which a process with threads may not."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._replies = self._sock.makefile("r")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._sock.close()
        self._process.wait(PATIENCE)

    def ask(self, request: dict[str, object], *fds: int) -> int:
        """Send a request and return the number in the answer."""
        socket.send_fds(self._sock, [json.dumps(request).encode() + b"\n"], list(fds))
        return int(self._replies.readline())

    def start(self, what: str, **arguments: object) -> Process:
        """Start a child that runs `what` (see CHILDREN) with these arguments."""
        ours, theirs = os.pipe()
        try:
            pid = self.ask({"run": what, "arguments": arguments}, theirs)
        finally:
            os.close(theirs)
        return Process(self, pid, ours)


def _say(line: object) -> None:
    os.write(_PIPE[0], f"{line}\n".encode())


_PIPE: list[int] = []


def _child_server(root: str, listen: str, *, timeout: float = 60.0) -> None:
    server = ftransfer.Server(root, listen=[listen], timeout=timeout)
    _say(f"ready {server.urls[0]}")
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    server.serve_forever()
    server.close()
    _say("closed")


def _child_upload(url: str, source: str, dest: str, rate: float | None = None, *, chatty: bool = True) -> None:
    with ftransfer.connect(url, limit_rate=rate, timeout=10, retry_for=15) as remote:
        result = remote.upload(source, dest, on_progress=_show if chatty else None).files[0]
        _say(f"result {result.result} {result.sent_bytes} {result.resumed_from}")


def _child_download(url: str, source: str, dest: str, rate: float | None = None, *, chatty: bool = True) -> None:
    with ftransfer.connect(url, limit_rate=rate, timeout=10, retry_for=15) as remote:
        result = remote.download(source, dest, on_progress=_show if chatty else None).files[0]
        _say(f"result {result.result} {result.sent_bytes} {result.resumed_from}")


def _show(event: ftransfer.Progress) -> None:
    _say(f"{event.phase} {event.done}")


CHILDREN = {"server": _child_server, "upload": _child_upload, "download": _child_download}


def _mother(sock: socket.socket) -> None:
    """Fork children as asked, until the other end closes."""
    for module in ("server", "client"):
        importlib.import_module(f"ftransfer.{module}")  # the children find it there

    alive: set[int] = set()
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 65536, 1)
        if not data:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return
        request = json.loads(data)
        if "reap" in request:
            os.waitpid(request["reap"], 0)
            alive.discard(request["reap"])
            sock.send(b"0\n")
            continue
        pid = os.fork()
        if pid:
            os.close(fds[0])
            alive.add(pid)
            sock.send(b"%d\n" % pid)
            continue
        sock.close()
        _PIPE.append(fds[0])
        code = 1
        with contextlib.suppress(BaseException):
            try:
                CHILDREN[request["run"]](**request["arguments"])
                code = 0
            except ftransfer.FtransferError as exc:
                _say(f"error {exc.code} {exc}")
        os._exit(code)


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """Yield an empty folder in memory where the system has such a place, else on disk."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ft-", dir=base) as name:
        yield Path(name)


if __name__ == "__main__":
    _mother(socket.socket(fileno=int(sys.argv[1])))

"""The exchanges of docs/protocol.md: recorded between a real client and a real server, written as hex, read back.

`python tests/exchanges.py` prints them anew; `python tests/exchanges.py tree fetch` puts these two into the page.
"""

import json
import os
import re
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pages import DOCS
from support import Change, Proxy, cut_after

import ftransfer

ROW = 16
SHOWN = 32
"""Bytes of a body that are shown; of a longer one the rest is counted."""
MTIME = 1_700_000_000_000_000_000
HELLO = b"hello\n"
DAY = b"Sunny.\n"
NUMBERS = bytes(i % 251 for i in range(300_000))
"""What the page says of numbers.bin: byte i is i modulo 251."""
FIRST_BLOCK = 256 << 10
PASSED_OVER = {"upload": 0, "resume": 2, "download": 2, "tree": 2, "listing": 2, "fetch": 4}
"""Frames at the beginning of an exchange that the page leaves out: the greeting, and of the last the `stat`."""
TOKEN = "ftt_" + "0123456789abcdef" * 4
"""Stands for the owner's token, which is another one for each server and is shown to nobody."""


class Frame(NamedTuple):
    """One frame: `who` says it, client or server; the header as text; the bytes of the body that are known."""

    who: str
    raw: bytes
    body: bytes
    body_length: int

    @property
    def header(self) -> str:
        return self.raw[4:].decode()


class Tape:
    """What went over one connection, in the order in which it came; told by a proxy."""

    def __init__(self) -> None:
        self.chunks: list[tuple[str, bytes]] = []

    def up(self, at: int, data: bytes) -> bytes:  # noqa: ARG002 - a Change
        self.chunks.append(("client", data))
        return data

    def down(self, at: int, data: bytes) -> bytes:  # noqa: ARG002 - a Change
        self.chunks.append(("server", data))
        return data

    def frames(self) -> list[Frame]:
        """Return the frames in the order in which they were complete."""
        buffers = {"client": b"", "server": b""}
        found = []
        for who, data in self.chunks:
            buffers[who] += data
            while (frame := _cut(who, buffers[who])) is not None:
                found.append(frame)
                buffers[who] = buffers[who][len(frame.raw) + frame.body_length :]
        assert not any(buffers.values())
        return found


def _cut(who: str, data: bytes) -> Frame | None:
    if len(data) < 4:
        return None
    end = 4 + struct.unpack("!I", data[:4])[0]
    if len(data) < end:
        return None
    count = json.loads(data[4:end]).get("body", 0)
    return Frame(who, data[:end], data[end : end + count], count) if len(data) >= end + count else None


def record() -> dict[str, list[Frame]]:
    """Return the exchanges by their names on the page, each of a connection from its beginning, with another token."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "root"
        root.mkdir()
        for file, data in (("hello.txt", HELLO), ("numbers.bin", NUMBERS)):
            (folder / file).write_bytes(data)
            (folder / file).chmod(0o644)
            os.utime(folder / file, ns=(MTIME, MTIME))
        with ftransfer.Server(root) as server:
            found["upload"] = _taped(server, lambda remote: remote.upload(folder / "hello.txt", "in/"))
            with Proxy(server.urls[0], up=cut_after(FIRST_BLOCK + 1000)) as cut:
                _fail_to_upload(cut.url, folder / "numbers.bin")
            found["resume"] = _taped(server, lambda remote: remote.upload(folder / "numbers.bin", "in/"))
            found["download"] = _taped(server, lambda remote: remote.download("in/hello.txt", folder / "back.txt"))
            _make_trip(folder)
            with ftransfer.connect(server.urls[0]) as remote:
                remote.upload(folder / "hello.txt", "trip/")
            found["tree"] = _taped(server, lambda remote: remote.upload(folder / "trip", ""))
            both = _taped_each(server, lambda remote: remote.download("trip/", folder / "back"))
            found["listing"] = next(frames for frames in both if '"type":"list"' in frames[2].header)
            found["fetch"] = next(frames for frames in both if frames is not found["listing"])
    return found


def _make_trip(folder: Path) -> None:
    """Make the folder `trip` of the page: two files, one in a folder of its own, and an empty folder."""
    trip = folder / "trip"
    for path, data in ((trip / "hello.txt", HELLO), (trip / "notes/day.txt", DAY)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)
        os.utime(path, ns=(MTIME, MTIME))
    (trip / "empty").mkdir()
    for path in (trip / "notes", trip / "empty", trip):
        path.chmod(0o755)
        os.utime(path, ns=(MTIME, MTIME))


def _fail_to_upload(url: str, path: Path) -> None:
    with ftransfer.connect(url, retry_for=0) as remote:
        try:
            remote.upload(path, "in/")
        except ftransfer.errors.ConnectionLost:
            pass


def _taped(server: ftransfer.Server, act: Callable[[ftransfer.Remote], object]) -> list[Frame]:
    (frames,) = _taped_each(server, act)
    return frames


def _taped_each(server: ftransfer.Server, act: Callable[[ftransfer.Remote], object]) -> list[list[Frame]]:
    """Return the frames of each connection that something takes."""
    tapes: dict[int, Tape] = {}
    with TapingProxy(server.urls[0], tapes) as line, ftransfer.connect(line.url) as remote:
        act(remote)
    known = server.admission.owner_token.encode()
    assert len(known) == len(TOKEN)
    return [
        [frame._replace(raw=frame.raw.replace(known, TOKEN.encode())) for frame in tape.frames()]
        for tape in tapes.values()
    ]


class TapingProxy(Proxy):
    """A proxy with a tape for each connection."""

    def __init__(self, url: str, tapes: dict[int, Tape]):
        super().__init__(url)
        self._tapes = tapes

    def _pump(self, source: socket.socket, sink: socket.socket, change: Change, is_up: bool) -> None:  # noqa: ARG002
        tape = self._tapes.setdefault(self._sockets.index(source) // 2, Tape())
        super()._pump(source, sink, tape.up if is_up else tape.down, is_up)


def render(frames: list[Frame]) -> Iterator[str]:
    """Yield the lines of the page: who says what, its header as JSON, then all of its bytes."""
    for number, frame in enumerate(frames):
        if number:
            yield ""
        yield f"{frame.who}: {frame.header}"
        yield _row(frame.raw[:4], f"length of the header: {len(frame.raw) - 4}")
        yield from (_row(frame.raw[at : at + ROW]) for at in range(4, len(frame.raw), ROW))
        shown = frame.body if len(frame.body) <= 2 * SHOWN else frame.body[:SHOWN]
        if shown:
            yield f"body of {frame.body_length} bytes:"
        yield from (_row(shown[at : at + ROW]) for at in range(0, len(shown), ROW))
        if len(shown) < frame.body_length:
            yield f"  and {frame.body_length - len(shown)} more bytes"


def _row(data: bytes, note: str | None = None) -> str:
    text = "".join(chr(b) if 32 <= b < 127 else "." for b in data) if note is None else note
    return f"  {data.hex(' '):<{ROW * 3 - 1}}  {text}"


def read(text: str) -> list[Frame]:
    """Return the frames of a block of the page; every line of it has to be one that `render` could have written."""
    found = []
    for part in text.strip("\n").split("\n\n"):
        first, *lines = part.split("\n")
        who, _, header = first.partition(": ")
        raw, body, rest = b"", b"", 0
        in_body = False
        for line in lines:
            if re.fullmatch(r"body of \d+ bytes:", line):
                in_body = True
            elif more := re.fullmatch(r"  and (\d+) more bytes", line):
                rest = int(more[1])
            else:
                data = bytes.fromhex(line[2 : 2 + ROW * 3 - 1])
                raw, body = (raw, body + data) if in_body else (raw + data, body)
        frame = Frame(who, raw, body, len(body) + rest)
        assert frame.header == header
        found.append(frame)
    return found


def block_of(name: str) -> re.Pattern[str]:
    """Return what finds an exchange in the page; the frames are its only group."""
    return re.compile(rf"^```{{code-block}} text\n:name: exchange-{name}\n\n(.*?)^```", re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    STATE = tempfile.TemporaryDirectory()
    os.environ["FTRANSFER_STATE"] = STATE.name  # not that of whoever runs this
    PROTOCOL = DOCS / "protocol.md"
    for title, exchange in record().items():
        lines = "\n".join([*render(exchange[PASSED_OVER[title] :]), ""])
        if not sys.argv[1:]:
            sys.stdout.write(f"== {title}\n{lines}\n")
        elif title in sys.argv[1:]:
            text = PROTOCOL.read_text(encoding="utf-8")
            found = block_of(title).search(text)
            assert found, f"the page has no place for {title}"
            PROTOCOL.write_text(text[: found.start(1)] + lines + text[found.end(1) :], encoding="utf-8")

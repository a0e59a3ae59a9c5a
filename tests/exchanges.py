"""The exchanges of docs/protocol.md: recorded between a real client and a real server, written as hex, read back.

`python tests/exchanges.py` prints them anew, for the page.
"""

import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from support import Proxy, cut_after

import ftransfer

ROW = 16
SHOWN = 32
"""Bytes of a body that are shown; of a longer one the rest is counted."""
MTIME = 1_700_000_000_000_000_000
HELLO = b"hello\n"
NUMBERS = bytes(i % 251 for i in range(300_000))
"""What the page says of numbers.bin: byte i is i modulo 251."""
FIRST_BLOCK = 256 << 10


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
    """What went over the line, in the order in which it came; told by a proxy."""

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
    """Return the three exchanges by their names on the page."""
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
    return found


def _fail_to_upload(url: str, path: Path) -> None:
    with ftransfer.connect(url, retry_for=0) as remote:
        try:
            remote.upload(path, "in/")
        except ftransfer.errors.ConnectionLost:
            pass


def _taped(server: ftransfer.Server, act: Callable[[ftransfer.Remote], object]) -> list[Frame]:
    tape = Tape()
    with Proxy(server.urls[0], up=tape.up, down=tape.down) as line, ftransfer.connect(line.url) as remote:
        act(remote)
    return tape.frames()


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


if __name__ == "__main__":
    for title, exchange in record().items():
        greeted = exchange if title == "upload" else exchange[2:]
        sys.stdout.write("\n".join([f"== {title}", *render(greeted), "", ""]))

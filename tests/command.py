"""The command as a user runs it: a child process, with or without a terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

COMMAND = [sys.executable, "-m", "ftransfer"]
PATIENCE = 30.0


class Ran(NamedTuple):
    """What a command did: its exit status (negative for a signal) and what it wrote."""

    status: int
    out: str
    err: str


def run(*words: object, cwd: Path | None = None, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ran:
    """Run `ftransfer` with these words, with pipes instead of a terminal."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **(env or {})},
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def serving(folder: Path, *words: object, listen: str = "127.0.0.1:0") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `ftransfer serve` and give its first address, as it prints it, and the process."""
    process = subprocess.Popen(
        [*COMMAND, "serve", str(folder), "--listen", listen, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"ft\S*://\S+", line)
        assert found, (line, process.stderr.read() if process.stderr else "")
        yield found[0], process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE)


class Terminal:
    """A command on a terminal of its own, of 80 columns unless said otherwise."""

    def __init__(self, *words: object, columns: int = 80, env: dict[str, str] | None = None):
        self._near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            stdin=far,
            stdout=far,
            stderr=far,
            env={**os.environ, "TERM": "xterm", **(env or {})},
        )
        os.close(far)

    def read_until(self, condition: Callable[[str], object]) -> str:
        """Read what appears until the condition holds of all of it, or the command has ended; return it."""
        until = time.monotonic() + PATIENCE
        while not condition(self.text):
            assert time.monotonic() < until, f"did not come: {self.text[-500:]!r}"
            if not select.select([self._near], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(self._near, 65536)
            except OSError:
                break  # it has ended and the terminal is gone
            if not data:
                break
            self.text += data.decode(errors="replace")
        return self.text

    def finish(self) -> int:
        """Read the rest and return the exit status."""
        self.read_until(lambda _: False)
        status = self.process.wait(PATIENCE)
        os.close(self._near)
        return status


def frames(text: str) -> list[str]:
    """Return what a terminal's line showed, one state after the other."""
    return [piece for line in text.split("\n") for piece in line.split("\r") if piece.strip()]

"""The command as a user runs it: a child process, with or without a terminal."""

import fcntl
import io
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
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from ftransfer.cli import main

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


def run_here(*words: object) -> Ran:
    """Run the command in this process, which is quicker than one of its own; not for what reads standard input."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([*map(str, words)])
        except SystemExit as exc:  # of argparse
            status = int(str(exc.code))
    return Ran(status, *(stream.detach().getvalue().decode() for stream in (out, err)))


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
    """A command on a terminal of its own, of 80 columns unless said otherwise.

    It is the terminal that `/dev/tty` means for the command. Arguments: `words` of ftransfer, or of `program`;
    `stdin`, a descriptor in the place of the terminal.
    """

    def __init__(
        self,
        *words: object,
        columns: int = 80,
        env: dict[str, str] | None = None,
        program: list[str] = COMMAND,
        stdin: int | None = None,
    ):
        self._near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _ON_A_TERMINAL, str(far), *program, *map(str, words)],
            stdin=far if stdin is None else stdin,
            stdout=far,
            stderr=far,
            pass_fds=[far],
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **(env or {})},
        )
        os.close(far)

    def type(self, text: str) -> None:
        """Type something; a line ends with a newline."""
        os.write(self._near, text.encode())

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


_ON_A_TERMINAL = """
import fcntl, os, sys, termios
far = int(sys.argv[1])
fcntl.ioctl(far, termios.TIOCSCTTY, 0)
os.close(far)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def frames(text: str) -> list[str]:
    """Return what a terminal's line showed, one state after the other."""
    return [piece for line in text.split("\n") for piece in line.split("\r") if piece.strip()]

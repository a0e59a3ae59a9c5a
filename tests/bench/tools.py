"""The tools that are compared: how each is started, and how it moves one file up or down."""

import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from bench.children import BenchError, Children, Run
from bench.sockets import HOST, free_port, listens

Direction = Literal["upload", "download"]


class Tool(ABC):
    """A way to move files between two folders over the loopback interface.

    `served` is the server's folder: an upload makes `served/NAME`, a download reads it.
    """

    name: ClassVar[str]
    checks: ClassVar[str]

    def __init__(self, children: Children, work: Path, served: Path) -> None:
        """Serve the folder `served`; whatever the tool needs besides may lie in `work`."""
        self.children = children
        self.work = work
        self.served = served

    @abstractmethod
    def missing(self) -> str | None:
        """Return what is not installed, or None if the tool can be used."""

    def cannot(self, direction: Direction) -> str | None:  # noqa: ARG002 - most tools can do both
        """Return why the tool, as installed, can't go in this direction, or None."""
        return None

    def start(self) -> None:  # noqa: B027 - nc has no server that lasts
        """Start the server, if the tool has one that outlives a transfer."""

    def stop(self) -> None:  # noqa: B027 - as above
        """End the server."""

    @abstractmethod
    def upload(self, source: Path, name: str) -> Run:
        """Send a file; the time runs from the start of the client until both it and the receiver are done."""

    @abstractmethod
    def download(self, name: str, target: Path) -> Run:
        """Fetch a file; timed as an upload."""


def program(name: str) -> str | None:
    """Return the full path of a program; servers lie where users don't always look."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


class Netcat(Tool):
    """`nc > file`: bytes from a socket into a file, nothing checked; what people compare with."""

    # The sender has -N, to close the line when its input ends. The receiver has -d, not to close it at once
    # for its own empty input: a sender that sees the line half closed stops in the middle and says nothing.
    name = "nc"
    checks = "nothing"
    _child: subprocess.Popen[bytes]

    def missing(self) -> str | None:
        """Ask for the OpenBSD variant: only that has -N, without which the receiver would not see the end."""
        if (path := program("nc")) is None:
            return "nc (netcat-openbsd)"
        help_text = self.children.log("nc-help")
        self.children.wait(self.children.start([path, "-h"], log=help_text))
        return None if "OpenBSD" in help_text.read_text(errors="replace") else "nc of the OpenBSD kind"

    def upload(self, source: Path, name: str) -> Run:
        """Let the server's side receive: it is started before, and the time ends when it has ended."""
        port = self._listener("-d", stdout=self.served / name)
        begun = time.perf_counter()
        sent = self.children.run(["nc", "-N", HOST, str(port)], stdin=source)
        return self._finish(begun, sent)

    def download(self, name: str, target: Path) -> Run:
        """Let the server's side send; the client writes the file."""
        port = self._listener("-N", stdin=self.served / name)
        begun = time.perf_counter()
        received = self.children.run(["nc", "-d", HOST, str(port)], stdout=target)
        return self._finish(begun, received)

    def _listener(self, option: str, *, stdin: Path | None = None, stdout: Path | None = None) -> int:
        port, log = free_port(), self.children.log("nc-listen")
        argv = ["nc", "-l", option, HOST, str(port)]
        self._child = self.children.start(argv, log=log, stdin=stdin, stdout=stdout)
        self.children.until(lambda: listens(port), self._child, log)
        return port

    def _finish(self, begun: float, run: Run) -> Run:
        status, _ = self.children.wait(self._child)
        seconds = time.perf_counter() - begun
        if status != 0:
            raise BenchError(f"nc -l ended with status {status}")
        return Run(seconds=seconds, peak_bytes=run.peak_bytes, status=0, output="")

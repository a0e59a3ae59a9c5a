"""ftransfer as one of the tools, through its command alone."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.children import BenchError, Children, Run, server_peak_bytes, tail_of
from bench.tools import Tool

READY = re.compile(r"\bft(?:\+plain)?://[^\s/]+:(\d+)/")


class Ftransfer(Tool):
    """ftransfer with its defaults: verified in passing by XXH3-128, synced and renamed before the receipt."""

    name = "ftransfer"
    checks = "xxh128"
    scheme = "ft"
    client_options: Sequence[str] = ()

    def __init__(
        self,
        children: Children,
        work: Path,
        served: Path,
        *,
        command: Path,
        serve_options: Sequence[str] = (),
    ) -> None:
        """Use the program `command`; `serve_options` are handed to its server."""
        super().__init__(children, work, served)
        self.command = command
        self.serve_options = serve_options
        self._server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._log = Path(os.devnull)

    def missing(self) -> str | None:
        """Name the command if it was not built."""
        return None if self.command.exists() else f"ftransfer ({self.command})"

    def start(self) -> None:
        """Start the server on a port of its choice and read it from the line that says it is ready."""
        log, output = self.children.log("ftransfer-server"), self.children.log("ftransfer-ready")
        argv: list[str | Path] = [self.command, "serve", self.served, "--listen", "127.0.0.1:0"]
        self._server = self.children.start([*argv, *self.serve_options], log=log, stdout=output)
        self._log = log
        self.children.until(lambda: bool(READY.search(output.read_text(errors="replace"))), self._server, log)
        match = READY.search(output.read_text(errors="replace"))
        self.port = int(match[1]) if match else 0

    def stop(self) -> None:
        """End the server."""
        if self._server is not None:
            self.children.stop(self._server)

    @property
    def server(self) -> subprocess.Popen[bytes]:
        """The server's process."""
        if self._server is None:
            raise BenchError("the server is not running")
        return self._server

    def server_end(self) -> str | None:
        """Return how the server ended, or None if it runs, as it should."""
        if self._server is None or self._server.poll() is None:
            return None
        return f"the server has ended with status {self._server.returncode}: {tail_of(self._log)}"

    def server_peak(self) -> int:
        """Return the server's peak resident bytes so far."""
        return server_peak_bytes(self.server.pid)

    def url(self, name: str, *, port: int = 0) -> str:
        """Return the address of a file on the server, or behind a proxy at `port`."""
        return f"{self.scheme}://127.0.0.1:{port or self.port}/{name}"

    def upload(self, source: Path, name: str) -> Run:
        """Upload whatever is there already."""
        return self.client("upload", source, self.url(name))

    def download(self, name: str, target: Path) -> Run:
        """Download whatever is there already."""
        return self.client("download", self.url(name), target)

    def client(self, verb: str, source: Path | str, target: Path | str, *options: str, check: bool = True) -> Run:
        """Run the client once, quietly."""
        argv = [self.command, verb, source, target, "--compare", "none", "-q", *self.client_options, *options]
        return self.children.run(argv, check=check)


def file_event(run: Run) -> dict[str, Any]:
    """Return the event of the one file from the output of a client with --json."""
    events = [json.loads(line) for line in run.output.splitlines() if line.startswith("{")]
    found: list[dict[str, Any]] = [event for event in events if event.get("event") == "file"]
    if len(found) != 1:
        raise BenchError(f"one file event expected, not {len(found)}: {run.output[:500]!r}")
    return found[0]

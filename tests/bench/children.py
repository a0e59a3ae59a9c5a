"""Start, time and end processes. Every process of the bench goes through here, so that none outlives it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

READY_SECONDS = 20.0
STOP_SECONDS = 10.0


class BenchError(Exception):
    """Something that makes a figure impossible: a tool failed, or delivered other bytes than it was given."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process took: wall-clock seconds, peak resident bytes, exit status, its stdout."""

    seconds: float
    peak_bytes: int
    status: int
    output: str


def clean_environment() -> dict[str, str]:
    """Return the environment for children, without what `make` set for the Python of the bench itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Children:
    """All processes that the bench started and that are not known to have ended."""

    def __init__(self, folder: Path, *, patience: float) -> None:
        """Keep logs in `folder`; kill any timed process that takes longer than `patience` seconds."""
        self.folder = folder
        self.patience = patience
        self._running: set[subprocess.Popen[bytes]] = set()
        self._count = 0

    def log(self, name: str) -> Path:
        """Return a fresh file name for the output of a process."""
        self._count += 1
        return self.folder / f"{self._count:04}-{name}.log"

    def start(
        self, argv: Sequence[str | Path], *, log: Path, stdin: Path | None = None, stdout: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own: Ctrl-C reaches the bench alone, which ends the process.

        Both outputs go to files, never to a pipe that somebody would have to empty.
        """
        with (
            log.open("wb") as errors,
            (stdin or Path(os.devnull)).open("rb") as given,
            (stdout or Path(os.devnull)).open("wb") as taken,
        ):
            child = self._popen(argv, given, taken, errors)
        self._running.add(child)
        return child

    def _popen(
        self, argv: Sequence[str | Path], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [os.fspath(word) for word in argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=clean_environment(),
            start_new_session=True,
        )

    def wait(self, child: subprocess.Popen[bytes]) -> tuple[int, int]:
        """Wait for a process and return its exit status and its peak resident bytes.

        The kernel's peak of a child is never below that of the process which forked it (getrusage(2)): the
        bench itself keeps small.
        """
        timer = threading.Timer(self.patience, signal_group, (child, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        self._running.discard(child)
        return child.returncode, usage.ru_maxrss * 1024

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: Path | None = None,
        stdout: Path | None = None,
        check: bool = True,
    ) -> Run:
        """Run a process to its end and time it; with `check`, a status other than 0 is a BenchError."""
        name = Path(argv[0]).name
        log, output = self.log(name), stdout or self.log(name + "-stdout")
        begun = time.perf_counter()
        child = self.start(argv, log=log, stdin=stdin, stdout=output)
        status, peak = self.wait(child)
        seconds = time.perf_counter() - begun
        if check and status != 0:
            raise BenchError(f"{' '.join(map(str, argv))}: status {status}: {tail_of(log)}")
        text = "" if stdout else output.read_text(encoding="utf-8", errors="replace")
        return Run(seconds=seconds, peak_bytes=peak, status=status, output=text)

    def until(self, ready: Callable[[], bool], child: subprocess.Popen[bytes], log: Path) -> None:
        """Wait until a server is ready; a BenchError with the end of its log if it ends or takes too long."""
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{child.args!r} did not get ready: {tail_of(log)}")
            time.sleep(0.005)

    def stop(self, child: subprocess.Popen[bytes]) -> None:
        """End a process and whatever it started: first politely, then not."""
        if child.poll() is None:
            signal_group(child, signal.SIGTERM)
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        signal_group(child, signal.SIGKILL)
        child.wait()
        self._running.discard(child)

    def close(self) -> None:
        """End all that still runs."""
        for child in list(self._running):
            self.stop(child)


def signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a child and its descendants; `start` made the child the leader of their group."""
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def tail_of(log: Path) -> str:
    """Return the last lines of a log, for an error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(lines[-4:]) or "it wrote nothing"


def server_peak_bytes(pid: int) -> int:
    """Return the peak resident bytes of a running process (VmHWM in proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/{pid}/status has no VmHWM")

"""The other end over ssh: the system's `ssh` is started, and starts `ftransfer serve --stdio` there.

Who may log in, with which key, over which hosts, is all ssh's: its configuration, its agent, its questions at the
terminal. What is said here goes through its two pipes. Called by `link`, for addresses with `ssh://`.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable

from ftransfer.errors import ConnectionLost, FtransferError, ProtocolError, TimedOut, Unreachable
from ftransfer.net import Address
from ftransfer.paths import readable
from ftransfer.pipes import TICK_MS, Pipes
from ftransfer.shells import Shell, failure

MOST_NOISE = 64 << 10
"""Bytes that may come before the first frame: what a shell there says when it starts."""
PROMPT_SECONDS = 300.0
"""How long ssh may take to log in where there is a terminal, at which it may ask something."""
HINT_SECONDS = 8.0
"""How long it takes without a word until somebody at the terminal is told what is waited for."""
END_SECONDS = 3.0
"""How long ssh gets to end when it is told that nothing more comes; then it is killed."""
LINGER_SECONDS = 0.5
"""How long ssh gets for that once the other end has ended."""
LOOK_MS = 10
"""Milliseconds between two looks at whether it has, where the system does not tell."""
MOST_LINES = 12
"""Lines that ssh said, the last ones, which are kept for an error."""
MOST_LINE = 1000
"""Characters of such a line."""
MOST_TOLD = 1000
"""Lines of one connection that are passed on to people."""
PIECES = 4
"""Pieces of what ssh says that are read at a time: it may never pause."""
_FIRST = re.compile(rb"\0[\0\1][\0-\xff]{2}\{")
"""What a frame begins with: the length of its header, which is less than 2^17 bytes, and the header."""


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - the user's own program
            argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise Unreachable(
            f"cannot start {argv[0]!r}: {reason}", hint="install an ssh client, or name another one: --ssh"
        ) from exc


class Ssh(Pipes):
    """The pipes to a command on another machine, and the process that keeps them connected.

    Belongs to one thread. Arguments: `line`, the command for the shell there; `timeout` in seconds to reach it. Raises
    Unreachable if there is no ssh.
    """

    def __init__(self, address: Address, shell: Shell, line: str, timeout: float):
        self._address = address
        self._shell = shell
        self._process = process = _start(shell.argv(address, line, timeout))
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        super().__init__(os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno()), f"ssh to {address.host}")
        process.stdin.close()
        process.stdout.close()
        self.words = Messages(process.stderr.fileno(), shell.on_message)
        self._noise = bytearray()
        self._ahead = b""
        self._is_up = False

    def recv_into(self, view: memoryview) -> int:
        if not self._ahead:
            return super().recv_into(view)
        count = min(len(view), len(self._ahead))
        view[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count

    def listen(self) -> None:
        """Pass on what ssh has said for people since the last call."""
        self.words.read()

    def await_first(self, timeout: float, check: Callable[[], None]) -> None:
        """Return when the first frame begins, behind whatever the shell there has said.

        Arguments: `timeout` in seconds without a terminal, where ssh may ask; `check` raises what has to stop it.
        Raises what the end of ssh means, TimedOut, ProtocolError.
        """
        can_ask = _has_terminal()
        started = time.monotonic()
        until = started + (max(timeout, PROMPT_SECONDS) if can_ask else timeout)
        waiting = select.poll()
        waiting.register(self._in, select.POLLIN)
        waiting.register(self.words.fd, select.POLLIN)
        while not self._ahead:
            check()
            if time.monotonic() > until:
                raise TimedOut(
                    f"ssh got nothing from {self._address.host} in time{self._said()}",
                    hint=f"does `{self._shell.by_hand(self._address)}` work? --timeout changes the patience",
                )
            if can_ask and time.monotonic() - started > HINT_SECONDS:
                can_ask = False
                self.words.tell("waiting for ssh to log in: it may be asking for something, or a key for a touch")
            ready = {fd for fd, _ in waiting.poll(TICK_MS)}
            if self.words.fd in ready and not self.words.read():
                waiting.unregister(self.words.fd)
            if self._in in ready and not self._hear():
                raise self._why_ended()

    def _hear(self) -> bool:
        """Read on towards the first frame; False at the end of all."""
        data = os.read(self._in, 1 << 14)
        self._noise += data
        if found := _FIRST.search(self._noise):
            self._ahead = bytes(self._noise[found.start() :])
            del self._noise[found.start() :]
            self._is_up = True
        if len(self._noise) > MOST_NOISE:
            raise ProtocolError(
                f"{self._address.host} sent more than {MOST_NOISE} bytes that are none of ftransfer's{self._said()}",
                hint="let the start-up files of the shell there print nothing where there is no terminal",
            )
        return bool(data)

    def _said(self) -> str:
        """Return what came instead of a frame, for an error: from ssh, and from the shell there."""
        noise = readable(bytes(self._noise[:MOST_LINE]).decode("utf-8", "replace").strip())
        lines = self.words.new_to_the_user
        words = "; ".join([*lines, *([f"before that came: {noise}"] if noise else [])])
        return f": {words}" if words else ""

    def _why_ended(self) -> FtransferError:
        """Return what it means that ssh ended, or that the command there did, before the first frame."""
        try:
            status = self.status()
        except TimedOut:
            return ConnectionLost(f"the connection to {self._address.host} was closed{self._said()}")
        return failure(status, self._address, self._shell, self._said(), [*self.words.lines])

    def status(self) -> int:
        """Return what ssh has ended with, once it is known to end. Raises TimedOut."""
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"ssh to {self._address.host} does not end") from None
        self.words.read()
        return status

    def close(self) -> None:
        """Close both ways, and return when ssh has ended: by itself, since the other end has, or by force."""
        if self._in < 0:
            return
        process = self._process
        self.shutdown(socket.SHUT_WR)
        if not self._is_up:
            process.terminate()  # it may be waiting for an answer, from far away or from somebody here
        try:
            has_left = self._await_end()
        finally:
            super().close()
            if process.poll() is None and not has_left:
                process.kill()
                process.wait()
            self.words.read()
            self.words.is_over = True
            assert process.stderr is not None
            process.stderr.close()

    def _await_end(self) -> bool:
        """Wait a while for the end of ssh; tell whether it goes on although the other end has left.

        Then it is the master of other sessions (ControlMaster), which are not ours to end.
        """
        until = time.monotonic() + END_SECONDS
        has_left = False
        ends = select.poll()
        ends.register(self._in, select.POLLIN)
        pid = _open_process(self._process.pid)
        try:
            if pid >= 0:
                ends.register(pid, select.POLLIN)
            while self._process.poll() is None and (left := until - time.monotonic()) > 0:
                ready = {fd for fd, _ in ends.poll(min(left * 1000, TICK_MS if pid >= 0 else LOOK_MS))}
                if self._in in ready and not has_left and not _discard(self._in):
                    has_left = True
                    ends.unregister(self._in)
                    until = min(until, time.monotonic() + LINGER_SECONDS)
        finally:
            if pid >= 0:
                os.close(pid)
        return has_left


def _open_process(pid: int) -> int:
    """Return a descriptor that is readable when a process has ended; -1 where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _discard(fd: int) -> bool:
    """Read what nobody wants any more; False at its end."""
    try:
        return bool(os.read(fd, 1 << 16))
    except BlockingIOError:
        return True
    except OSError:
        return False


class Messages:
    """What ssh, and the other end, say for people, line by line; the last lines are kept.

    Arguments: `fd`, where it comes from; `tell` is told each line, with everything escaped that a terminal might obey.
    """

    def __init__(self, fd: int, tell: Callable[[str], None] | None):
        os.set_blocking(fd, False)
        self.fd = fd
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self._tell = tell
        self._rest = b""
        self._told = 0
        self.is_over = False

    @property
    def new_to_the_user(self) -> list[str]:
        """What belongs into an error: all lines, or only the last one where they have been told."""
        return [*self.lines] if self._tell is None else [*self.lines][-1:]

    def read(self) -> bool:
        """Read some of what there is; False once nothing more can come."""
        for _ in range(PIECES):
            if self.is_over:
                return False
            try:
                data = os.read(self.fd, 1 << 14)
            except BlockingIOError:
                return True
            *lines, self._rest = (self._rest + data).split(b"\n")
            if self._rest and (not data or len(self._rest) > MOST_LINE):
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                self._take(line)
            self.is_over = not data
        return not self.is_over

    def _take(self, raw: bytes) -> None:
        line = _shown(raw)
        if line.strip():
            self.lines.append(line)
        self._told += 1
        if self._told <= MOST_TOLD:
            said = line if self._told < MOST_TOLD else "(more was said, which is not shown)"
            self.tell(f"ssh: {said.removeprefix('ssh: ')}")  # so that nobody there can say something in our name

    def tell(self, line: str) -> None:
        """Tell people a line, if there are any."""
        if self._tell is not None:
            self._tell(line)


def run(shell: Shell, address: Address, line: str, data: bytes, timeout: float) -> tuple[int, bytes, list[str]]:
    """Run a line in the shell of another machine, with data on its standard input, to its end.

    Arguments: `timeout` in seconds to reach it. Returns the exit status, the end of what it wrote and of what ssh said.
    Raises Unreachable, TimedOut.
    """
    ssh = Ssh(address, shell, line, timeout)
    until = time.monotonic() + PROMPT_SECONDS
    left, out, piece = memoryview(data), b"", memoryview(bytearray(1 << 14))
    try:
        while time.monotonic() < until:
            ssh.listen()
            try:
                if left:
                    left = left[ssh.send(left) :]
                    continue
                ssh.shutdown(socket.SHUT_WR)
                count = ssh.recv_into(piece)
            except BlockingIOError:
                continue
            except BrokenPipeError:
                left = left[:0]  # its status says why nobody reads
                continue
            if not count:
                return ssh.status(), out, [*ssh.words.lines]
            out = (out + piece[:count])[-MOST_NOISE:]
        raise TimedOut(f"ssh to {address.host} does not end")
    finally:
        ssh.close()


def _shown(raw: bytes) -> str:
    return readable(raw.decode("utf-8", "replace").replace("\t", " ").strip("\r"))[:MOST_LINE]


def _has_terminal() -> bool:
    """Tell whether ssh can ask somebody something."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True

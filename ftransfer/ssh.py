"""The other end over ssh: the system's `ssh` is started, and starts `ftransfer serve --stdio` there.

Who may log in, with which key, over which hosts, is all ssh's: its configuration, its agent, its questions at the
terminal. What is said here goes through its two pipes. Called by `link`, for addresses with `ssh://`.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ftransfer.archive import VERSION_NAME
from ftransfer.errors import (
    ConnectionLost,
    FtransferError,
    IdentityUnknown,
    NotFound,
    NotInstalled,
    ProtocolError,
    Refused,
    RemoteDiskError,
    TimedOut,
    Unreachable,
)
from ftransfer.net import Address
from ftransfer.paths import readable
from ftransfer.pipes import TICK_MS, Pipes

SSH = ("ssh",)
OPTIONS = ("-T", "-a", "-x", "-oClearAllForwardings=yes", "-oPermitLocalCommand=no", "-oRemoteCommand=none")
"""For OpenSSH: a connection for this alone, whatever its configuration says of others to the same host."""
MOST_NOISE = 64 << 10
"""Bytes that may come before the first frame: what a shell there says when it starts."""
PROMPT_SECONDS = 300.0
"""How long ssh may take to log in where there is a terminal, at which it may ask something."""
END_SECONDS = 3.0
"""How long ssh gets to end when it is told that nothing more comes; then it is killed."""
LEAST_PATIENCE = 5
"""Seconds of silence that the other end bears at least: a client that has nothing to send says so every 2 s."""
MOST_LINES = 12
"""Lines that ssh said, the last ones, which are kept for an error."""
MOST_LINE = 1000
"""Characters of such a line."""
MOST_TOLD = 1000
"""Lines of one connection that are passed on to people."""
PIECES = 4
"""Pieces of what ssh says that are read at a time: it may never pause."""
CACHE = "${XDG_CACHE_HOME:-$HOME/.cache}/ftransfer"
"""The cache folder there, as a shell finds it."""
# The copy first: it is there because somebody asked for it, since no other was found, or none that fits.
_FIND = (
    f'for f in "{CACHE}/{VERSION_NAME}" ftransfer "$HOME/.local/bin/ftransfer"; '
    'do command -v "$f" >/dev/null 2>&1 && exec "$f" {words}; done; exit 127'
)
_FIRST = re.compile(rb"\0[\0\1][\0-\xff]{2}\{")
"""What a frame begins with: the length of its header, which is less than 2^17 bytes, and the header."""


class Shell(NamedTuple):
    """How ssh is called.

    Arguments: `program`, the words of another ssh; `remote_command`, what is run there instead of the `ftransfer` that
    is found, as words for the shell there; `on_message` is told each line that ssh, or the other end, says for people.
    """

    program: Sequence[str] = SSH
    remote_command: str | None = None
    on_message: Callable[[str], None] | None = None

    def argv(self, address: Address, line: str, timeout: float) -> list[str]:
        """Return the words that run a line in the shell of another machine; `timeout` in seconds to reach it."""
        words = [*self.program]
        if os.path.basename(words[0]) == "ssh":  # after the user's own words: ssh takes the first that it is given
            words += [*OPTIONS, f"-oConnectTimeout={whole_seconds(timeout)}"]
        if address.user:
            words += ["-l", address.user]
        if address.port:
            words += ["-p", str(address.port)]
        return [*words, address.host, line]

    def by_hand(self, address: Address) -> str:
        """Return what somebody types to try it without us."""
        where = f"{address.user}@{address.host}".lstrip("@")
        return shlex.join([*self.program, *(["-p", str(address.port)] if address.port else []), where])

    def command(self, timeout: float) -> str:
        """Return the line that starts the other end, which is to bear no more silence than this one, in seconds."""
        words = f"serve --stdio --timeout {max(LEAST_PATIENCE, min(60, whole_seconds(timeout)))}s"
        return f"{self.remote_command} {words}" if self.remote_command else in_sh(_FIND.replace("{words}", words))


def whole_seconds(seconds: float) -> int:
    """Return a number of seconds without a fraction, at least 1."""
    return max(1, round(min(seconds, 1e6)))


def in_sh(script: str) -> str:
    """Return the line that has a script without single quotes run by sh, whatever shell the user has."""
    return f"exec sh -c '{script}'"


def start(shell: Shell, address: Address, line: str, timeout: float) -> subprocess.Popen[bytes]:
    """Start ssh with three pipes. Raises Unreachable if there is none."""
    argv = shell.argv(address, line, timeout)
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
    """The pipes to the other end, and the process that keeps them connected.

    Belongs to one thread. Arguments: `timeout`, seconds of silence that count as death. Raises Unreachable if there is
    no ssh.
    """

    def __init__(self, address: Address, shell: Shell, timeout: float):
        self._address = address
        self._shell = shell
        self._process = process = start(shell, address, shell.command(timeout), timeout)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        super().__init__(os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno()), f"ssh to {address.host}")
        process.stdin.close()
        process.stdout.close()
        self._words = Messages(process.stderr.fileno(), shell.on_message)
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
        self._words.read()

    def await_first(self, timeout: float, check: Callable[[], None]) -> None:
        """Return when the first frame begins, behind whatever the shell there has said.

        Arguments: `timeout` in seconds without a terminal, where ssh may ask; `check` raises what has to stop it.
        Raises what the end of ssh means, TimedOut, ProtocolError.
        """
        until = time.monotonic() + (max(timeout, PROMPT_SECONDS) if _has_terminal() else timeout)
        waiting = select.poll()
        waiting.register(self._in, select.POLLIN)
        waiting.register(self._words.fd, select.POLLIN)
        while not self._ahead:
            check()
            if time.monotonic() > until:
                raise TimedOut(
                    f"ssh got nothing from {self._address.host} in time{self._said()}",
                    hint=f"does `{self._shell.by_hand(self._address)}` work? --timeout changes the patience",
                )
            ready = {fd for fd, _ in waiting.poll(TICK_MS)}
            if self._words.fd in ready and not self._words.read():
                waiting.unregister(self._words.fd)
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
        lines = self._words.new_to_the_user
        words = "; ".join([*lines, *([f"before that came: {noise}"] if noise else [])])
        return f": {words}" if words else ""

    def _why_ended(self) -> FtransferError:
        """Return what it means that ssh ended, or that the command there did, before the first frame."""
        host = self._address.host
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return ConnectionLost(f"the connection to {host} was closed{self._said()}")
        self._words.read()
        return failure(status, self._address, self._shell, self._said(), [*self._words.lines])

    def close(self) -> None:
        """Close both ways, and return when ssh has ended: by itself, since the other end has, or by force."""
        super().close()
        process = self._process
        if not self._is_up:
            process.terminate()  # it may be waiting for an answer, from far away or from somebody here
        try:
            _await_end(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            self._words.read()
            self._words.is_over = True
            assert process.stderr is not None
            process.stderr.close()


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
        if self._tell is not None and self._told <= MOST_TOLD:
            self._tell(line if self._told < MOST_TOLD else "(more was said, which is not shown)")


def run(shell: Shell, address: Address, line: str, data: bytes, timeout: float) -> tuple[int, bytes, list[str]]:
    """Run a line in the shell of another machine, with data on its standard input, to its end.

    Arguments: `timeout` in seconds to reach it. Returns the exit status, the end of what it wrote and of what ssh said.
    Raises Unreachable, TimedOut.
    """
    with start(shell, address, line, timeout) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said, wrote, takes = process.stderr.fileno(), process.stdout.fileno(), process.stdin.fileno()
        words = Messages(said, shell.on_message)
        os.set_blocking(takes, False)
        waiting = select.poll()
        waiting.register(takes, select.POLLOUT)
        for fd in (wrote, said):
            waiting.register(fd, select.POLLIN)
        left, out, is_over = memoryview(data), b"", False
        until = time.monotonic() + PROMPT_SECONDS
        try:
            while not is_over and time.monotonic() < until:
                for fd, _ in waiting.poll(TICK_MS):
                    if fd == said and not words.read():
                        waiting.unregister(fd)
                    elif fd == wrote:
                        came = os.read(fd, 1 << 14)
                        out, is_over = (out + came)[-MOST_NOISE:], not came
                    elif fd == takes and not (left := _fed(fd, left)):
                        waiting.unregister(fd)
                        process.stdin.close()
            status = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"ssh to {address.host} does not end") from None
        finally:
            if process.poll() is None:
                process.kill()
        words.read()
        return status, out, [*words.lines]


def _fed(fd: int, data: memoryview) -> memoryview:
    """Write what fits; return what is left, nothing if nobody reads."""
    try:
        return data[os.write(fd, data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]


def _shown(raw: bytes) -> str:
    return readable(raw.decode("utf-8", "replace").replace("\t", " ").strip("\r"))[:MOST_LINE]


def failure(status: int, address: Address, shell: Shell, said: str, lines: Sequence[str]) -> FtransferError:
    """Return the error for the exit status of ssh, which is that of the command there, or 255 for its own.

    Arguments: `said`, what came instead of an answer; `lines`, what of that ssh said.
    """
    host = address.host
    works = f"`{shell.by_hand(address)}` has to work first"
    if status == 255:
        if any("Host key verification failed" in line for line in lines):
            return IdentityUnknown(f"ssh does not trust the host key of {host}{said}", hint=works)
        if any("Permission denied" in line or "Too many authentication failures" in line for line in lines):
            return Refused(f"{host} does not let ssh in{said}", hint=works)
        return Unreachable(f"ssh cannot reach {host}{said}", hint=works)
    if status < 0:
        return ConnectionLost(f"ssh was ended by signal {-status}{said}")
    command = shell.remote_command or "ftransfer"
    tried = f"try `{shell.by_hand(address)} '{command} --version'`"
    if status in (126, 127):  # 126: what was found there is for a Python that has gone
        if shell.remote_command is not None:
            return NotInstalled(f"{host} cannot run {command!r}{said}", hint=tried)
        line = f"ftransfer login {address.endpoint} --install"
        return NotInstalled(f"there is no ftransfer on {host}{said}", hint=f"one line puts it there: {line}")
    made = by_status(status) or ProtocolError
    return made(f"{command!r} on {host} ended with status {status} before it said anything{said}", hint=tried)


def by_status(status: int) -> type[FtransferError] | None:
    """Return the error that our own command there ended with, as it looks from here."""
    return {3: NotFound, 5: Refused, 8: RemoteDiskError, 9: RemoteDiskError}.get(status)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Return when a process has ended, at once where the system tells of it, or after a while."""
    try:
        fd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        try:
            process.wait(END_SECONDS)  # looks now and then
        except subprocess.TimeoutExpired:
            pass
        return
    try:
        end = select.poll()
        end.register(fd, select.POLLIN)
        end.poll(END_SECONDS * 1000)
    finally:
        os.close(fd)


def _has_terminal() -> bool:
    """Tell whether ssh can ask somebody something."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True

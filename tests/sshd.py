"""A real sshd on loopback, with keys of its own, and accounts there whose home, PATH and commands a test chooses.

Nothing of the machine's ssh is read or written: not its keys, not its known hosts, not the home of whoever runs it.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Self

import pytest
from command import COMMAND, PATIENCE, Ran
from support import wait_until

HOST = "there"
"""The name that leads to the sshd, in every configuration that is written here."""
PRIVILEGED_FOLDER = Path("/run/sshd")
"""Without this empty folder sshd as root does not start; systemd or an init script makes it, where one runs."""
OUTSIDE_PATH = os.pathsep.join(("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"))
PLAIN_TOOLS = (
    *("basename", "cat", "chmod", "cp", "cut", "date", "dd", "dirname", "echo", "env", "expr", "false", "find", "grep"),
    *("head", "id", "kill", "ln", "ls", "mkdir", "mktemp", "mv", "od", "printf", "pwd", "rm", "rmdir", "sed", "sh"),
    *("sleep", "sort", "tail", "tee", "test", "touch", "tr", "true", "tty", "uname", "wc"),
)

# Accepts connections and starts an sshd for each, as inetd does: no port is chosen before it is taken, each connection
# is counted, and its process is known. When the tests have ended, however, its standard input ends.
_LISTENER = """
import select, socket, subprocess, sys
log, count, *command = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
running = []
while 0 not in select.select([0, listener], [], [])[0]:
    connection = listener.accept()[0]
    with connection, open(log, "ab") as errors, open(count, "a") as counted:
        made = subprocess.Popen(command, stdin=connection, stdout=connection, stderr=errors, start_new_session=True)
        print(made.pid, file=counted)
    running = [process for process in [*running, made] if process.poll() is None]
listener.close()
for process in running:
    process.terminate()
for process in running:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
"""


@cache
def program(name: str) -> str | None:
    """Return where a program is; sshd lies where PATH often does not lead."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), OUTSIDE_PATH)))


@cache
def _account() -> str:
    """Return the name of who runs the tests; skip aloud where there is none, since sshd lets in nobody else."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        pytest.skip("NOT TESTED: this user has no name")


class Sshd:
    """An sshd on a free port of loopback that lets in by key only, as the user who runs the tests.

    Arguments: `base`, an empty folder. The test is skipped, aloud, where there is no ssh, or where it cannot log in.
    """

    def __init__(self, base: Path):
        for name in ("ssh", "sshd", "ssh-keygen"):
            if program(name) is None:
                pytest.skip(f"NOT TESTED: no {name}")
        self.base = base
        self.user = _account()
        self._log, self._count, self._keys = base / "log", base / "count", base / "authorized_keys"
        self._lines: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            PRIVILEGED_FOLDER.mkdir(mode=0o755, exist_ok=True)  # and it stays: other tests may need it at this moment
        new_key(self.base / "host")
        self._count.touch()
        self.set_most_tries(6)
        sshd = [program("sshd") or "sshd", "-i", "-e", "-f", str(self.base / "sshd_config")]
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _LISTENER, str(self._log), str(self._count), *sshd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._prove()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate(timeout=PATIENCE)

    def _prove(self) -> None:
        """Log in once; skip aloud if that does not work here, since an account may be locked or have no shell."""
        with self.account(self.base / "first") as there:
            tried = subprocess.run(
                [*there.ssh, HOST, 'printf %s "$HOME"'],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=PATIENCE,
                start_new_session=True,
            )
        if tried.stdout.decode(errors="replace") != str(there.home):
            said = tried.stderr.decode(errors="replace") + self.log()
            self.__exit__()
            pytest.skip(f"NOT TESTED: nobody can log in to an sshd of the tests: {said[-500:]}")

    @contextmanager
    def account(self, base: Path) -> Iterator[There]:
        """Give an account there, whose key opens as long as the block runs; `base` is a folder for its files."""
        base.mkdir(exist_ok=True)
        made = There(self, base)
        try:
            yield made
        finally:
            self.admit(made.marker, None)

    def admit(self, who: str, line: str | None) -> None:
        """Let a line of authorized_keys count from the next connection on; None takes it back."""
        if line is not None:
            self._lines[who] = line
        else:
            self._lines.pop(who, None)
        new = self._keys.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in self._lines.values()), encoding="utf-8")
        new.replace(self._keys)

    def set_most_tries(self, count: int) -> None:
        """Hang up, from the next connection on, on whoever has shown so many keys in vain."""
        (self.base / "sshd_config").write_text(
            f"HostKey {self.base}/host\nAuthorizedKeysFile {self._keys}\nPidFile none\nStrictModes no\nUsePAM no\n"
            "AuthenticationMethods publickey\nPermitRootLogin prohibit-password\nPermitUserEnvironment yes\n"
            f"PermitUserRC no\nPrintMotd no\nPrintLastLog no\nLoginGraceTime 20\nBanner {self.base}/banner\n"
            f"LogLevel VERBOSE\nMaxAuthTries {count}\n",
            encoding="utf-8",
        )

    def set_banner(self, data: bytes) -> None:
        """Show this to everybody before they are let in."""
        (self.base / "banner").write_bytes(data)

    def log(self) -> str:
        """Return what sshd has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def connections(self) -> list[int]:
        """Return the process ids of all connections that were ever made."""
        return [int(line) for line in self._count.read_text().split()]


class There:
    """An account on the other machine: a home, and an environment, of a test's own; and how a client gets there.

    `env` is for the client: its own state folder, and the command line of ssh. `bare()` takes ftransfer away.
    """

    def __init__(self, sshd: Sshd, base: Path):
        self.sshd = sshd
        self.base = base
        self.home = base / "home"
        self.home.mkdir()
        self.marker = f"FTRANSFER_THERE={secrets.token_hex(8)}"
        self.environment = {
            "HOME": str(self.home),
            "PATH": os.pathsep.join((os.path.dirname(sys.executable), OUTSIDE_PATH)),
            "PYTHONSAFEPATH": "1",
        }
        self.config = base / "ssh_config"
        self.known_hosts = base / "known_hosts"
        self.key = new_key(base / "key")
        self._forced: str | None = None
        self._options: dict[str, str] = {}
        self.trust()
        self.set_options()
        self._admit()

    # The client's side.

    @property
    def ssh(self) -> list[str]:
        """The command line of ssh that gets there."""
        return [program("ssh") or "ssh", "-F", str(self.config)]

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {"FTRANSFER_SSH": shlex.join(self.ssh), "FTRANSFER_STATE": str(self.base / "state-here")}

    def set_options(self, **options: str) -> None:
        """Write the client's configuration, with some options changed."""
        self._options |= options
        chosen = {
            "HostName": "127.0.0.1",
            "Port": str(self.sshd.port),
            "User": self.sshd.user,
            "IdentityFile": str(self.key),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PreferredAuthentications": "publickey",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": HOST,
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "KexAlgorithms": "curve25519-sha256",  # the quickest
        } | self._options
        self.config.write_text("".join(f"{name} {value}\n" for name, value in chosen.items()), encoding="utf-8")

    def trust(self, key: Path | None = None) -> None:
        """Know a host key as the one of the sshd, its own unless another is given; forget all others."""
        public = (key or self.sshd.base / "host").with_suffix(".pub").read_text(encoding="ascii")
        self.known_hosts.write_text(f"{HOST} {public}", encoding="ascii")

    def url(self, path: object = "") -> str:
        """Return the address of an absolute path, or of one below the home there."""
        return f"ssh://{HOST}{path}" if str(path).startswith("/") else f"ssh://{HOST}/~/{path}"

    def run(
        self, *words: object, cwd: Path | None = None, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> Ran:
        """Run `ftransfer` with these words, as a client that knows how to get there and has no terminal to ask at."""
        done = subprocess.run(
            [*COMMAND, *map(str, words)],
            cwd=cwd,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, **self.env, **(env or {})},
            start_new_session=True,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextmanager
    def one_connection(self) -> Iterator[None]:
        """Fail the test unless exactly one connection is made in the block."""
        before = len(self.sshd.connections())
        yield
        assert len(self.sshd.connections()) - before == 1

    # The other machine.

    @property
    def state(self) -> Path:
        """The state folder there."""
        return self.home / ".local/state/ftransfer"

    def set_environment(self, **values: str) -> None:
        """Change what the environment is that a login there has."""
        self.environment |= values
        self._admit()

    def force(self, command: str | None) -> None:
        """Have sshd run this command, whatever the client asks for."""
        self._forced = command
        self._admit()

    def lock_out(self) -> None:
        """Let the key open no more."""
        self.sshd.admit(self.marker, None)

    def _admit(self) -> None:
        name, _, value = self.marker.partition("=")
        options = [f"environment={_quoted(f'{n}={v}')}" for n, v in ({name: value} | self.environment).items()]
        options += [f"command={_quoted(self._forced)}"] if self._forced is not None else []
        public = self.key.with_suffix(".pub").read_text(encoding="ascii").strip()
        self.sshd.admit(self.marker, f"{','.join(['restrict', *options])} {public}")

    def bare(self, *, python: str | None = os.path.realpath(sys.executable)) -> Path:
        """Leave only plain tools, and a Python without this package, on the PATH there; return the folder with them.

        Arguments: `python` is what `python3` runs, None for no such program.
        """
        tools = self.base / "tools"
        tools.mkdir()
        for name in PLAIN_TOOLS:
            if (found := program(name)) is not None:
                (tools / name).symlink_to(found)
        if python is not None:
            (tools / "python3").symlink_to(python)
        self.set_environment(PATH=str(tools))
        return tools

    def processes(self) -> list[int]:
        """Return the processes that run there in this account, but sshd's own."""
        return marked(self.marker)

    def is_left(self) -> None:
        """Fail the test unless nothing runs there any more soon."""
        wait_until(lambda: not self.processes(), "ending all that runs there")


def marked(marker: str) -> list[int]:
    """Return the processes that have a variable, `NAME=VALUE`, in the environment they were started with."""
    needs_proc()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue  # it has ended, or is somebody else's
        if marker.encode() in environment.split(b"\0"):
            found.append(int(entry))
    return found


def needs_proc() -> None:
    """Skip the test, aloud, where processes cannot be looked at."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("NOT TESTED: no /proc")


def command_line(pid: int) -> list[str]:
    """Return the words a process was started with; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def kill_connection(pid: int) -> None:
    """Kill an sshd of one connection with all that belongs to it, but what it has started there."""
    os.killpg(pid, signal.SIGKILL)


def new_key(path: Path) -> Path:
    """Make a key without a passphrase, and its public half beside it."""
    argv = [program("ssh-keygen") or "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=PATIENCE)
    return path


def script(path: Path, text: str) -> Path:
    """Write a program for `sh`; return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _quoted(text: str) -> str:
    """Return a text as the value of an option in authorized_keys."""
    assert "\n" not in text
    return json.dumps(text, ensure_ascii=False).replace("\\\\", "\\")

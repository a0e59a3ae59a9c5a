"""The peers that have a server: curl with nginx, rsync with its daemon, scp with a private sshd."""

import getpass
import os
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.children import Run
from bench.sockets import HOST, answers, free_port
from bench.tools import Direction, Tool, program

SSHD_EMPTY_FOLDER = Path("/run/sshd")
FAST_CIPHER = "aes128-gcm@openssh.com"


class ServedTool(Tool):
    """A tool whose server is started once, and whose client is one command."""

    programs: Sequence[str]
    port: int
    _server: subprocess.Popen[bytes] | None = None

    def missing(self) -> str | None:
        """Name the first program that is not there."""
        return next((name for name in self.programs if program(name) is None), None)

    def start(self) -> None:
        """Start the server on a free port and wait until it answers."""
        self.port = free_port()
        log = self.children.log(f"{self.name}-server")
        self._server = self.children.start(self.server_command(), log=log)
        self.children.until(lambda: answers(self.port), self._server, log)

    def stop(self) -> None:
        """End the server."""
        if self._server is not None:
            self.children.stop(self._server)

    @abstractmethod
    def server_command(self) -> list[str]:
        """Write the server's configuration and return its command line; it must stay in the foreground."""

    def own_folder(self) -> Path:
        """Return a folder for the server's configuration and state, on the file system of the served one."""
        folder = self.work / f"{self.name}.d"
        folder.mkdir(exist_ok=True)
        return folder


class Curl(ServedTool):
    """curl and nginx: HTTP without TLS, sendfile on the way down, nothing checked."""

    name = "curl"
    checks = "nothing"
    programs = ("curl", "nginx")
    scheme = "http"
    client_options: Sequence[str | Path] = ()

    def cannot(self, direction: Direction) -> str | None:
        """Leave uploads out where nginx was built without its module for PUT."""
        if direction == "download":
            return None
        built = subprocess.run([program("nginx") or "nginx", "-V"], capture_output=True, text=True, check=False)
        return None if "http_dav_module" in built.stderr else "nginx without its dav module takes no uploads"

    def server_command(self) -> list[str]:
        """Configure one worker, its temporary bodies beside the served folder: an upload ends in a rename."""
        folder = self.own_folder()
        user = "user root;" if os.geteuid() == 0 else ""
        put = "" if self.cannot("upload") else "dav_methods PUT;"
        temporary = "\n".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = folder / "nginx.conf"
        config.write_text(
            f"""
            daemon off; worker_processes 1; {user}
            pid {folder}/pid; error_log stderr error;
            events {{ worker_connections 64; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; client_max_body_size 0;
                {temporary}
                server {{ {self.listen()} root {self.served}; {put} }}
            }}
            """,
            encoding="utf-8",
        )
        return [program("nginx") or "nginx", "-c", str(config), "-p", str(folder)]

    def listen(self) -> str:
        """Return where the server listens, in the words of its configuration."""
        return f"listen {HOST}:{self.port};"

    def upload(self, source: Path, name: str) -> Run:
        """PUT."""
        return self.children.run(self.client_command("-T", source, name=name))

    def download(self, name: str, target: Path) -> Run:
        """GET."""
        return self.children.run(self.client_command("-o", target, name=name))

    def client_command(self, *words: str | Path, name: str) -> list[str | Path]:
        """Return the command of a client for a file on the server."""
        return ["curl", "-sSf", *self.client_options, *words, f"{self.scheme}://{HOST}:{self.port}/{name}"]


class Rsync(ServedTool):
    """rsync and its daemon: whole files, each checked by xxh128 (its default), written beside and renamed."""

    name = "rsync"
    checks = "xxh128"
    programs = ("rsync",)
    options: Sequence[str] = ("-W", "--no-compress")

    def server_command(self) -> list[str]:
        """Configure a daemon with one module."""
        config = self.own_folder() / "rsyncd.conf"
        user = "uid = 0\ngid = 0\n" if os.geteuid() == 0 else ""
        config.write_text(f"use chroot = no\n{user}[bench]\npath = {self.served}\nread only = no\n", encoding="utf-8")
        return [
            "rsync",
            "--daemon",
            "--no-detach",
            f"--config={config}",
            f"--port={self.port}",
            f"--address={HOST}",
        ]

    def upload(self, source: Path, name: str) -> Run:
        """Push into the module."""
        return self.children.run(["rsync", *self.options, source, f"rsync://{HOST}:{self.port}/bench/{name}"])

    def download(self, name: str, target: Path) -> Run:
        """Pull from the module."""
        return self.children.run(["rsync", *self.options, f"rsync://{HOST}:{self.port}/bench/{name}", target])


class SshTool(ServedTool):
    """A tool that goes through ssh to an sshd with keys of its own; nothing of the machine's or the user's is read."""

    programs: Sequence[str] = ("ssh", "sshd", "ssh-keygen")

    _made_folder = False

    def server_command(self) -> list[str]:
        """Configure a private sshd: own host key, one user key."""
        folder = self.own_folder()
        for key in ("host", "user"):
            if (folder / key).exists():
                continue  # a section before this one has made them
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if os.geteuid() == 0 and not SSHD_EMPTY_FOLDER.exists():
            SSHD_EMPTY_FOLDER.mkdir(mode=0o755)  # sshd as root does not start without it
            self._made_folder = True
        config = folder / "sshd_config"
        lines = [
            f"ListenAddress {HOST}:{self.port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub",
            f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no",
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp",
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in self.environment().items()),
        ]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [program("sshd") or "sshd", "-D", "-e", "-f", str(config)]

    def environment(self) -> dict[str, str]:
        """Return what its sshd sets: an empty home, as what a user's shell does at its start is no part of a tool."""
        home = self.own_folder() / "home"
        home.mkdir(exist_ok=True)
        return {"HOME": str(home), "PATH": os.environ.get("PATH", os.defpath)}

    def stop(self) -> None:
        """End the server, and leave nothing that was not there before."""
        super().stop()
        if self._made_folder:
            SSHD_EMPTY_FOLDER.rmdir()

    def asked_cipher(self) -> str | None:
        """Return the one cipher that it may use; None for what ssh likes best."""
        return fast_cipher()

    def ssh_options(self) -> list[str]:
        """Return the options that ssh, scp and sftp have in common."""
        options = [
            f"Port={self.port}",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
            "Compression=no",
        ]
        words = [word for option in options for word in ("-o", option)]
        cipher = ["-c", asked] if (asked := self.asked_cipher()) else []
        return ["-F", "/dev/null", "-i", str(self.own_folder() / "user"), *cipher, *words]

    def login(self) -> str:
        """Return whom its sshd lets in, and where."""
        return f"{getpass.getuser()}@{HOST}"


class Scp(SshTool):
    """scp: encrypted and authenticated by aes128-gcm, the fastest cipher."""

    name = "scp"
    checks = "AES-GCM"
    programs = ("scp", *SshTool.programs)

    def upload(self, source: Path, name: str) -> Run:
        """Copy to the server."""
        return self.children.run([*self._command(), source, self._remote(name)])

    def download(self, name: str, target: Path) -> Run:
        """Copy from the server."""
        return self.children.run([*self._command(), self._remote(name), target])

    def _remote(self, name: str) -> str:
        return f"{self.login()}:{self.served / name}"

    def _command(self) -> list[str]:
        return ["scp", "-q", *self.ssh_options()]


@cache
def fast_cipher() -> str | None:
    """Return the fastest cipher; None where this ssh does not have it, and takes what it likes best."""
    known = subprocess.run(["ssh", "-Q", "cipher"], capture_output=True, text=True, check=False).stdout.split()
    return FAST_CIPHER if FAST_CIPHER in known else None

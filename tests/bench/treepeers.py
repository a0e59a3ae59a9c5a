"""The peers that have a server, now with whole folders: rsync, scp, lftp with vsftpd; and cp, for the disk."""

from pathlib import Path

from bench.children import Run
from bench.peers import Rsync, Scp, ServedTool
from bench.sockets import HOST
from bench.tools import program
from bench.treetools import TreeTool


class TreeRsync(TreeTool, Rsync):
    """rsync and its daemon: whole files, links and times; what has the same size and time is left alone."""

    mtime_step_ns = 1
    options = ("-W", "-rlt", "--no-compress")


class TreeScp(TreeTool, Scp):
    """scp and a private sshd."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-r"]


class TreeLftp(TreeTool, ServedTool):
    """lftp's mirror and vsftpd: FTP without TLS, a connection for each file, four at a time, nothing checked."""

    name = "lftp"
    checks = "nothing"
    programs = ("lftp", "vsftpd")

    def server_command(self) -> list[str]:
        """Configure a server for everyone that runs as whoever runs the bench: no chroot, no accounts, no sandbox."""
        folder = self.own_folder()
        config = folder / "vsftpd.conf"
        options = {
            "listen": "YES",
            "listen_ipv6": "NO",
            "listen_address": HOST,
            "listen_port": self.port,
            "background": "NO",
            "run_as_launching_user": "YES",
            "secure_chroot_dir": folder,
            "seccomp_sandbox": "NO",
            "connect_from_port_20": "NO",
            "xferlog_enable": "NO",
            "local_enable": "NO",
            "anonymous_enable": "YES",
            "no_anon_password": "YES",
            "anon_root": self.served,
            "allow_writeable_chroot": "YES",
            "anon_world_readable_only": "NO",
            "write_enable": "YES",
            "anon_upload_enable": "YES",
            "anon_mkdir_write_enable": "YES",
            "anon_other_write_enable": "YES",
            "anon_umask": "022",
            "force_dot_files": "YES",  # else a mirror lacks them
        }
        config.write_text("".join(f"{name}={value}\n" for name, value in options.items()), encoding="utf-8")
        return [program("vsftpd") or "vsftpd", str(config)]

    def upload(self, source: Path, name: str) -> Run:
        """Mirror to the server; a slash at the end keeps the folder's own name."""
        return self._lftp(f'mirror --parallel=4 -R "{source}" "{name}/"')

    def download(self, name: str, target: Path) -> Run:
        """Mirror from the server."""
        return self._lftp(f'mirror --parallel=4 "{name}" "{target}/"')

    def _lftp(self, command: str) -> Run:
        script = f"set ftp:ssl-allow no; set cmd:fail-exit yes; open ftp://{HOST}:{self.port}; {command}"
        home = f"LFTP_HOME={self.own_folder()}"  # where it logs, which is not to be the user's
        return self.children.run(["env", home, "lftp", "--norc", "-c", script])


class TreeCopy(TreeTool):
    """`cp -r` and `sync -f` on one machine: what the disk can do. There is no server, and no way down."""

    name = "cp"
    checks = "nothing"

    def missing(self) -> str | None:
        """Ask for both programs."""
        return next((name for name in ("cp", "sync") if program(name) is None), None)

    def upload(self, source: Path, name: str) -> Run:
        """Copy, and wait for the file system."""
        target = self.served / name
        return self.children.run(["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "sh", source, target])

    def download(self, name: str, target: Path) -> Run:
        """Do the same the other way."""
        return self.children.run(["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "sh", self.served / name, target])

"""ftransfer and its peers over ssh: scp, sftp and rsync, and what people do by hand with cat and with tar.

Each has an sshd of its own, all with the same settings, and all ask for the same cipher.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.children import Children, Run
from bench.ours import Ftransfer
from bench.peers import SshTool
from bench.tools import program
from bench.treetools import NO_SYNC, SECOND_NS, TreeFtransfer, TreeTool


class SshFtransfer(SshTool, Ftransfer):
    """ftransfer, which starts itself on the other side: the command of the bench there, too.

    There is no server to be told not to wait for the disk, so an upload does; a download need not.
    """

    checks = "AES-GCM, xxh128"

    def missing(self) -> str | None:
        """Ask for ssh, and for the command."""
        return super().missing() or Ftransfer.missing(self)

    def environment(self) -> dict[str, str]:
        """Give the other side a state folder of its own, not the user's."""
        return super().environment() | {"FTRANSFER_STATE": str(self.own_folder() / "state")}

    def start(self) -> None:
        """Start the sshd, and note how a client gets there."""
        super().start()
        remote = shlex.quote(str(self.command))
        self.client_options = ["--ssh", shlex.join(["ssh", *self.ssh_options()]), "--remote-command", remote]

    def url(self, name: str, *, port: int = 0) -> str:
        """Return the address of what lies in the served folder; paths are absolute there."""
        door = f":{port}" if port else ""
        return f"ssh://{self.login()}{door}{self.served / name}{'/' if name.endswith('/') else ''}"

    def download(self, name: str, target: Path) -> Run:
        """Download, without waiting for the disk, as the peers do."""
        return self.client("download", self.url(name), target, NO_SYNC)


class SshSftp(SshTool):
    """sftp, its commands from a file."""

    name = "sftp"
    checks = "AES-GCM"
    programs = ("sftp", *SshTool.programs)
    options: Sequence[str] = ()

    def upload(self, source: Path, name: str) -> Run:
        """Put."""
        return self._batch("put", source, self.served / name)

    def download(self, name: str, target: Path) -> Run:
        """Get."""
        return self._batch("get", self.served / name, target)

    def _batch(self, verb: str, source: Path, target: Path) -> Run:
        commands = self.own_folder() / "batch"
        words = " ".join([verb, *self.options])
        commands.write_text(f'{words} "{source}" "{target}"\n', encoding="utf-8")
        return self.children.run(["sftp", "-q", *self.ssh_options(), "-b", commands, self.login()])


class SshRsync(SshTool):
    """rsync, which starts itself on the other side: whole files, each checked by xxh128 (its default)."""

    name = "rsync"
    checks = "AES-GCM, xxh128"
    programs = ("rsync", *SshTool.programs)
    options: Sequence[str] = ("-W", "--no-compress")

    def upload(self, source: Path, name: str) -> Run:
        """Push."""
        return self._rsync(source, self._remote(name))

    def download(self, name: str, target: Path) -> Run:
        """Pull."""
        return self._rsync(self._remote(name), target)

    def _rsync(self, source: Path | str, target: Path | str) -> Run:
        shell = shlex.join(["ssh", *self.ssh_options()])
        return self.children.run(["rsync", *self.options, "-e", shell, source, target])

    def _remote(self, name: str) -> str:
        return f"{self.login()}:{self.served / name}"


class SshCat(SshTool):
    """`cat | ssh cat > file`, and the way back: what ssh itself can do."""

    name = "cat"
    checks = "AES-GCM"

    def upload(self, source: Path, name: str) -> Run:
        """Let the other side write what cat reads here: ssh is slower with a file for its input."""
        script = 'file=$1; shift; cat "$file" | "$@"'
        ssh = self._ssh(f"cat > {shlex.quote(str(self.served / name))}")
        return self.children.run(["sh", "-c", script, "sh", source, *ssh])

    def download(self, name: str, target: Path) -> Run:
        """Let the other side read, and cat write here what ssh delivers."""
        script = 'file=$1; shift; "$@" | cat > "$file"'
        ssh = self._ssh(f"cat {shlex.quote(str(self.served / name))}")
        return self.children.run(["sh", "-c", script, "sh", target, *ssh])

    def _ssh(self, command: str) -> list[str]:
        return ["ssh", *self.ssh_options(), self.login(), command]


class TreeSshFtransfer(SshFtransfer, TreeFtransfer):
    """The same with folders; what is there and equal by size and mtime is left alone."""

    def __init__(self, children: Children, work: Path, served: Path, *, command: Path) -> None:
        """Use the program `command`, on both sides."""
        TreeFtransfer.__init__(self, children, work, served, command=command)

    def download(self, name: str, target: Path) -> Run:
        """Download, without waiting for the disk."""
        return TreeFtransfer.download(self, name, target)

    def _transfer(self, verb: str, source: Path | str, target: Path | str, *options: str) -> Run:
        return super()._transfer(verb, source, target, *options, *self.client_options)


class TreeSshSftp(TreeTool, SshSftp):
    """sftp with whole folders."""

    options = ("-r",)


class TreeSshRsync(TreeTool, SshRsync):
    """rsync's archive mode: links, modes, times, owners."""

    keeps_modes = True
    mtime_step_ns = 1
    options = ("-a", "-W", "--no-compress")


class TreeSshTar(TreeTool, SshTool):
    """`tar | ssh tar`, and `ssh tar | tar`: what people do by hand."""

    name = "tar"
    checks = "AES-GCM"
    keeps_modes = True
    mtime_step_ns = SECOND_NS

    def missing(self) -> str | None:
        """Ask for tar, too."""
        return "tar" if program("tar") is None else super().missing()

    def upload(self, source: Path, name: str) -> Run:
        """Pack here, unpack there."""
        script = 'above=$1 name=$2; shift 2; tar -C "$above" -cf - "$name" | "$@"'
        return self._pipe(script, source.parent, source.name, f"tar -C {shlex.quote(str(self.served / name))} -xpf -")

    def download(self, name: str, target: Path) -> Run:
        """Pack there, unpack here."""
        script = 'folder=$1; shift; "$@" | tar -C "$folder" -xpf -'
        packing = ["tar", "-C", str(self.served), "-cf", "-", name]
        return self._pipe(script, target, shlex.join(packing))

    def _pipe(self, script: str, *words: Path | str) -> Run:
        ssh = ["ssh", *self.ssh_options(), self.login()]
        return self.children.run(["sh", "-c", script, "sh", *words[:-1], *ssh, words[-1]])

"""The tools again, now with whole folders.

Each keeps rsync's rule: the folder `photos` arrives as `target/photos`, where `target` is a folder that is there.
"""

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from bench.children import BenchError, Children, Run
from bench.ours import Ftransfer
from bench.sockets import HOST, free_port, listens
from bench.tools import Netcat, Tool, program

SECOND_NS = 1_000_000_000
NO_SYNC = "--no-sync"


class TreeTool(Tool):
    """A tool that moves folders, and what it promises to keep of the files in them.

    `upload` sends one into the served folder `name`, `download` fetches the one of that name into `target`.
    """

    keeps_modes: ClassVar[bool] = False
    mtime_step_ns: ClassVar[int] = 0  # in which steps the mtimes are kept; 0 where they are not
    port: int
    door: int = 0  # where an upload connects to, if not to the server itself: the near end of a long line


class TreeFtransfer(TreeTool, Ftransfer):
    """ftransfer; without waiting for the disk, as its peers do, unless it is `synced`."""

    keeps_modes = True
    mtime_step_ns = 1

    def __init__(self, children: Children, work: Path, served: Path, *, command: Path, synced: bool = False) -> None:
        """Use the program `command`."""
        super().__init__(children, work, served, command=command, serve_options=() if synced else (NO_SYNC,))
        self.synced = synced

    @cached_property
    def download_options(self) -> Sequence[str]:
        """What keeps a download from waiting for the disk: nothing, as long as the command has no such option."""
        if self.synced or NO_SYNC not in self.children.run([self.command, "download", "--help"]).output:
            return ()
        return (NO_SYNC,)

    def upload(self, source: Path, name: str) -> Run:
        """Upload; what is there and equal by size and mtime is left alone, as rsync does."""
        return self._transfer("upload", source, self.url(f"{name}/", port=self.door))

    def download(self, name: str, target: Path) -> Run:
        """Download, likewise."""
        return self._transfer("download", self.url(name), target, *self.download_options)

    def _transfer(self, verb: str, source: Path | str, target: Path | str, *options: str) -> Run:
        try:
            return self.children.run([self.command, verb, "-q", *options, source, target])
        except BenchError as exc:
            if end := self.server_end():
                raise BenchError(f"{exc}; {end}") from exc
            raise


class TreeTar(TreeTool, Netcat):
    """`tar | nc` to `nc | tar`: what people do by hand. The time ends when both ends have ended."""

    name = "tar"
    keeps_modes = True
    mtime_step_ns = SECOND_NS

    def missing(self) -> str | None:
        """Ask for tar, and for the same nc as elsewhere."""
        return "tar" if program("tar") is None else super().missing()

    def start(self) -> None:
        """Choose the port of all transfers; what listens there ends with each."""
        self.port = free_port()

    def upload(self, source: Path, name: str) -> Run:
        """Let the server's side receive."""
        receiver = unpack(self.served / name, "-l", "-d", HOST, str(self.port))
        return self._exchange(receiver, pack(source, "-N", HOST, str(self.door or self.port)))

    def download(self, name: str, target: Path) -> Run:
        """Let the server's side send."""
        sender = pack(self.served / name, "-l", "-N", HOST, str(self.port))
        return self._exchange(sender, unpack(target, "-d", HOST, str(self.port)))

    def _exchange(self, server: Sequence[str | Path], client: Sequence[str | Path]) -> Run:
        log = self.children.log("tar-nc-listen")
        self._child = self.children.start(server, log=log)
        self.children.until(lambda: listens(self.port), self._child, log)
        begun = time.perf_counter()
        try:
            return self._finish(begun, self.children.run(client))
        except BenchError:
            self.children.stop(self._child)
            raise


def pack(folder: Path, *options: str) -> list[str | Path]:
    """Return the command that packs a folder and sends it. If tar fails, so does the other end, for lack of an end."""
    script = 'above=$1 name=$2; shift 2; tar -C "$above" -cf - "$name" | nc "$@"'
    return ["sh", "-c", script, "sh", folder.parent, folder.name, *options]


def unpack(folder: Path, *options: str) -> list[str | Path]:
    """Return the command that receives and unpacks into a folder."""
    return ["sh", "-c", 'folder=$1; shift; nc "$@" | tar -C "$folder" -xpf -', "sh", folder, *options]

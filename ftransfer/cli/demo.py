"""The command demo: serve, upload, cut, resume, download and verify, on this machine, in a folder that goes away."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Self

from ftransfer import listening, net, paths
from ftransfer.cli.output import Output, error_lines, summary_line
from ftransfer.cli.units import show_size
from ftransfer.client import Remote
from ftransfer.errors import FtransferError, NotFound
from ftransfer.identity import Identity
from ftransfer.link import Patience
from ftransfer.server import Server

DEFAULT_FOLDER = "sample_files"
BIG = 64 << 20
CUT_AFTER = 0.6


def demo(options: argparse.Namespace, output: Output) -> int:
    """Show it."""
    folder = options.folder or DEFAULT_FOLDER
    if not os.path.isdir(folder):
        raise NotFound("no folder of files to show it with", path=folder, hint="name one: ftransfer demo FOLDER")
    scratch = tempfile.mkdtemp(prefix="ftransfer-demo-")
    try:
        served = os.path.join(scratch, "served")
        os.mkdir(served)
        with Server(served, state=os.path.join(scratch, "state")) as server:  # nothing is left outside
            _Show(server, folder, scratch, output).run()
    finally:
        shutil.rmtree(scratch)
    print("\nThat was all on this machine, in a temporary folder that is gone now.")
    return 0


class _Show:
    """The steps of the demonstration, each as the command that a person would type."""

    def __init__(self, server: Server, folder: str, scratch: str, output: Output):
        self.url = url = server.urls[0]
        self._identity = Identity(token=server.admission.owner_token)
        self.folder = folder
        self.scratch = scratch
        self.output = output
        self.address = net.parse_url(url)

    def run(self) -> None:
        """Do one after the other; an error ends it."""
        print(f"$ ftransfer serve {os.path.join(self.scratch, 'served')} --listen 127.0.0.1:0\nserving at {self.url}")
        with Remote(self.address, identity=self._identity) as remote:
            names = sorted(_files_below(self.folder))
            for folder in sorted({os.path.dirname(name) for name in names}):
                self._upload(remote, folder, [name for name in names if os.path.dirname(name) == folder])
            big = self._big_file()
            self._cut_and_resume(remote, big)
            self._download_and_verify(remote, big)
            self._compare_all(remote, names)

    def _upload(self, remote: Remote, folder: str, names: list[str]) -> None:
        """Upload the files of one folder."""
        target = f"samples/{folder}/" if folder else "samples/"
        print(f"\n$ ftransfer upload {_quoted(os.path.join(self.folder, folder, '*'))} {self.url}{net.quote(target)}")
        sources = [os.path.join(self.folder, name) for name in names]
        print(summary_line(remote.upload(sources, target, on_progress=self.output.observer())))
        self.output.end_bars()

    def _big_file(self) -> str:
        big = os.path.join(self.scratch, "big.bin")
        with open(big, "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(BIG >> 20))
        return big

    def _cut_and_resume(self, remote: Remote, big: str) -> None:
        """Send through a line that is cut in the middle, then send again."""
        print(f"\n$ ftransfer upload big.bin {self.url}      # {show_size(BIG)}; the line is cut at {CUT_AFTER:.0%}")
        with _Scissors(self.address, int(BIG * CUT_AFTER)) as line:
            cut = self.address._replace(port=line.port)
            patience = Patience(retry_for=0.0)
            with Remote(cut, patience, limit_rate=100 << 20, identity=self._identity) as unlucky:
                try:
                    unlucky.upload(big, "big.bin", on_progress=self.output.observer())
                except FtransferError as exc:
                    self.output.end_bars()
                    print("\n".join(error_lines(exc)))
        for partial in remote.partials():
            print(f"\n$ ftransfer partials {self.url}")
            print(f"{paths.printable(partial.path)}  {show_size(partial.held)} of {show_size(partial.size or 0)}")
        print(f"\n$ ftransfer upload big.bin {self.url}      # the same command again")
        print(summary_line(remote.upload(big, "big.bin", on_progress=self.output.observer())))
        self.output.end_bars()

    def _download_and_verify(self, remote: Remote, big: str) -> None:
        back = os.path.join(self.scratch, "back.bin")
        print(f"\n$ ftransfer download {self.url}big.bin back.bin")
        print(summary_line(remote.download("big.bin", back, on_progress=self.output.observer())))
        self.output.end_bars()
        print(f"\n$ ftransfer verify back.bin {self.url}big.bin")
        result = remote.verify(back, "big.bin")
        print(f"{'same' if result.same else 'different'}: back.bin  {result.local_digest}")
        if not result.same or remote.verify(big, "big.bin").same is False:
            raise FtransferError("the demonstration found a difference")

    def _compare_all(self, remote: Remote, names: list[str]) -> None:
        print(f"\n$ ftransfer verify {_quoted(os.path.join(self.folder, '*'))} {self.url}samples/")
        for name in names:
            result = remote.verify(os.path.join(self.folder, name), f"samples/{name}")
            print(f"{'same' if result.same else 'different'}: {paths.printable(name)}  {result.local_digest}")
            if not result.same:
                raise FtransferError("the demonstration found a difference")


def _files_below(folder: str) -> Iterator[str]:
    for here, _, files in os.walk(folder):
        for name in files:
            yield os.path.relpath(os.path.join(here, name), folder)


def _quoted(text: str) -> str:
    return f"'{text.removesuffix('*')}'*" if " " in text else text


class _Scissors:
    """A line to the server that is cut, once, after so many bytes."""

    def __init__(self, address: net.Address, count: int):
        self._address = address
        self._left = count
        self._listener = listening.listen("127.0.0.1:0")[0]
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join()

    def _carry(self) -> None:
        near, _ = self._listener.accept()
        far = net.dial(self._address, 5.0)
        far.settimeout(None)
        answers = threading.Thread(target=_pour, args=(far, near), daemon=True)
        answers.start()
        while self._left > 0 and (data := near.recv(min(256 << 10, self._left))):
            far.sendall(data)
            self._left -= len(data)
        for sock in (near, far):
            sock.shutdown(socket.SHUT_RDWR)
        answers.join()
        near.close()
        far.close()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass  # cut

"""Ports of the loopback interface, and a proxy that cuts the line after so many bytes."""

import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
LISTENING = "0A"  # the state in /proc/net/tcp, see proc_net_tcp in the kernel's documentation
CONNECTED = "01"
CHUNK = 256 << 10


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Tell whether somebody accepts connections there."""
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    """Tell whether somebody listens there, without connecting: nc takes one connection and ends."""
    return LISTENING in states(port)


def is_connected(port: int) -> bool:
    """Tell whether anybody is connected to a server there."""
    return CONNECTED in states(port)


def states(port: int) -> set[str]:
    """Return the states of the sockets that have this port of their own.

    A line at a time: after FTP there are tens of thousands, and the bench itself keeps small.
    """
    local = f"0100007F:{port:04X}"
    with Path("/proc/net/tcp").open(encoding="ascii") as lines:
        return {row[3] for row in map(str.split, lines) if row[1] == local}


def share_token(server: int, proxy: int) -> None:
    """Let clients of a proxy at one port find the owner token of the server at another, as if it were there.

    A server of ftransfer leaves it in the state folder, in a file named after its address; other tools leave nothing.
    """
    folder = Path(os.environ["FTRANSFER_STATE"]) / "serving"
    token = folder / f"{HOST},{server}"
    if token.exists():
        shutil.copy(token, folder / f"{HOST},{proxy}")


class CuttingProxy:
    """Hand one connection through to a server and cut both ends once so many bytes went one way."""

    def __init__(self, port: int, *, cut_after: int, upwards: bool) -> None:
        """Stand before the server at `port`; count the bytes to it (`upwards`) or those from it."""
        self._server = port
        self._left = cut_after
        self._upwards = upwards
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        share_token(port, self.port)
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        """Return itself: it works from the moment it is made."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cut whatever is still connected."""
        self._listener.close()
        self._cut()
        for thread in self._threads:
            thread.join(5)

    def _serve(self) -> None:
        try:
            client = self._listener.accept()[0]
        except OSError:
            return
        self._listener.close()
        server = socket.create_connection((HOST, self._server))
        self._ends = [client, server]
        for source, sink, counted in ((client, server, self._upwards), (server, client, not self._upwards)):
            pump = threading.Thread(target=self._pump, args=(source, sink, counted), daemon=True)
            self._threads.append(pump)
            pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        buffer = memoryview(bytearray(CHUNK))
        try:
            while count := source.recv_into(buffer, min(CHUNK, self._left) if counted else CHUNK):
                sink.sendall(buffer[:count])
                if counted:
                    self._left -= count
                    if self._left == 0:
                        break
        except OSError:
            pass
        self._cut()

    def _cut(self) -> None:
        for end in self._ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

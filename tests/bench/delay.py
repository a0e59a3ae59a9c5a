"""A line that is long: a proxy that hands on what it gets after a delay, and no faster than a rate.

It runs as a process of its own, so that it and the bench don't share an interpreter, and stands alone: nothing
of the bench is imported. `python -m bench.delay --port P --to PORT --delay 0.04 --rate 62500000`
"""

import argparse
import socket
import sys
import threading
import time
from collections import deque

HOST = "127.0.0.1"
CHUNK = 256 << 10
ON_THE_WAY = 64 << 20  # the most bytes that may be on their way in one direction of a connection


class Line:
    """One direction of the line, shared by all connections. It knows when what is sent now arrives."""

    def __init__(self, delay: float, rate: int | None) -> None:
        """Take `delay` seconds from one end to the other, for at most `rate` bytes a second."""
        self.delay = delay
        self.rate = rate
        # With a rate: what is on its way, and as much again that waits before the narrow place, as in a router.
        self.holds = max(min(int(rate * delay * 3), ON_THE_WAY), CHUNK) if rate else ON_THE_WAY
        self._free = 0.0
        self._lock = threading.Lock()

    def arrival(self, sent: float, size: int) -> float:
        """Return when the last of `size` bytes arrives that were sent then."""
        if self.rate is None:
            return sent + self.delay
        with self._lock:
            self._free = max(sent, self._free) + size / self.rate
            return self._free + self.delay


class Pipe:
    """One direction of a connection: one thread reads, another writes what is due."""

    def __init__(self, source: socket.socket, sink: socket.socket, line: Line, opened: float) -> None:
        """Send nothing before the time `opened`."""
        self._source = source
        self._sink = sink
        self._line = line
        self._opened = opened
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]

    def _read(self) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = self._source.recv(CHUNK)
            except OSError:
                chunk = b""
            due = self._line.arrival(max(time.monotonic(), self._opened), len(chunk))
            with self._changed:
                self._changed.wait_for(lambda: self._held < self._line.holds)
                self._held += len(chunk)
                self._chunks.append((due, chunk))
                self._changed.notify_all()

    def _write(self) -> None:
        chunk = b"-"
        while chunk:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._chunks))
                due, chunk = self._chunks.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if chunk:
                    self._sink.sendall(chunk)
                else:
                    self._sink.shutdown(socket.SHUT_WR)
            except OSError:
                self._break()  # and go on: what else is read is dropped here until the reader sees the end
            with self._changed:
                self._held -= len(chunk)
                self._changed.notify_all()

    def _break(self) -> None:
        for end in (self._source, self._sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def connect(client: socket.socket, to: int, up: Line, down: Line) -> None:
    """Carry one connection to its end. Its first byte leaves when a real line would have shaken hands."""
    opened = time.monotonic() + up.delay + down.delay
    with client, socket.create_connection((HOST, to)) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipes = [Pipe(client, server, up, opened), Pipe(server, client, down, opened)]
        threads = [thread for pipe in pipes for thread in pipe.threads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main() -> int:
    """Carry connections until somebody ends the process."""
    parser = argparse.ArgumentParser(prog="python -m bench.delay", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="to listen on")
    parser.add_argument("--to", type=int, required=True, help="the port of the server")
    parser.add_argument("--delay", type=float, default=0.04, help="seconds each way (%(default)s)")
    parser.add_argument("--rate", type=int, help="bytes a second each way, for all connections together (no limit)")
    asked = parser.parse_args()
    up, down = Line(asked.delay, asked.rate), Line(asked.delay, asked.rate)
    with socket.create_server((HOST, asked.port)) as listener:
        while True:
            client = listener.accept()[0]
            threading.Thread(target=connect, args=(client, asked.to, up, down), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

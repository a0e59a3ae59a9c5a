"""A crowd at a server's door: connections that say nothing, others that say hello a byte a second.

It runs as a process of its own and stands alone, as the proxy in `delay` does. Each stranger whom the server sends away
comes back after a pause, until the process gets SIGTERM; then it prints what it did as one JSON object. Before that, a
line says that all of them have come at least once. `python -m bench.strangers --port P --silent 1000 --dribbling 200`
"""

import argparse
import json
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass

HOST = "127.0.0.1"
TICK = 0.02
SPARE_DESCRIPTORS = 64
HELLO = b'{"type":"hello","versions":[1],"software":"' + b"x" * 4096
FRAME = len(HELLO).to_bytes(4, "big") + HELLO  # a frame that is still right after many bytes, and never ends


@dataclass(kw_only=True)
class Stranger:
    """One connection, of `talks`, who has said `said` bytes so far."""

    sock: socket.socket
    talks: bool
    said: int = 0


class Crowd:
    """All of them: who is there, who comes back when, who says the next byte when."""

    def __init__(self, port: int, *, silent: int, dribbling: int, pause: float) -> None:
        """Let them come one by one within the first pause, so that they do not come back all at once."""
        self._port = port
        self._pause = pause
        self._poll = select.epoll()
        self._inside: dict[int, Stranger] = {}
        count = silent + dribbling
        every = count // dribbling if dribbling else count + 1
        begin = time.monotonic()
        self._outside = deque(
            (begin + pause * number / count, number % every == 0 and number // every < dribbling)
            for number in range(count)
        )
        self._talking: deque[tuple[float, Stranger]] = deque()
        self.opened = self.ended = self.most = 0

    def turn(self) -> None:
        """Do what is due, and wait a moment for the server to do something."""
        now = time.monotonic()
        while self._outside and self._outside[0][0] <= now:
            self._come(talks=self._outside.popleft()[1], now=now)
        while self._talking and self._talking[0][0] <= now:
            self._talk(self._talking.popleft()[1], now)
        self.most = max(self.most, len(self._inside))
        for number, _ in self._poll.poll(TICK):
            if (stranger := self._inside.get(number)) and self._was_sent_away(stranger):
                self._leave(stranger)

    def _come(self, *, talks: bool, now: float) -> None:
        stranger = Stranger(sock=socket.socket(), talks=talks)
        stranger.sock.setblocking(False)
        stranger.sock.connect_ex((HOST, self._port))
        self._inside[stranger.sock.fileno()] = stranger
        self._poll.register(stranger.sock, select.EPOLLIN)
        self.opened += 1
        if talks:
            self._talk(stranger, now)

    def _talk(self, stranger: Stranger, now: float) -> None:
        """Say the next byte; if it is not connected yet, say it later, and if it is gone, `turn` hears of that."""
        if stranger.sock.fileno() < 0:
            return
        try:
            stranger.said += stranger.sock.send(FRAME[stranger.said : stranger.said + 1])
        except OSError:
            pass
        self._talking.append((now + 1.0, stranger))

    def _was_sent_away(self, stranger: Stranger) -> bool:
        try:
            return not stranger.sock.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _leave(self, stranger: Stranger) -> None:
        del self._inside[stranger.sock.fileno()]
        stranger.sock.close()
        self.ended += 1
        self._outside.append((time.monotonic() + self._pause, stranger.talks))


def main() -> int:
    """Crowd the server until somebody ends the process."""
    parser = argparse.ArgumentParser(prog="python -m bench.strangers", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="of the server")
    parser.add_argument("--silent", type=int, default=1000, help="connections that say nothing (%(default)s)")
    parser.add_argument("--dribbling", type=int, default=200, help="that say a byte a second (%(default)s)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds until one comes back (%(default)s)")
    asked = parser.parse_args()
    count = asked.silent + asked.dribbling
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + SPARE_DESCRIPTORS, hard), hard))
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    crowd = Crowd(asked.port, silent=asked.silent, dribbling=asked.dribbling, pause=asked.pause)
    begin, are_here = time.monotonic(), False
    while not told:
        crowd.turn()
        if not are_here and crowd.opened >= count:
            are_here = True
            print("all of them have come", flush=True)
    seconds = time.monotonic() - begin
    print(json.dumps({"opened": crowd.opened, "ended": crowd.ended, "most": crowd.most, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Either end is killed with SIGKILL at random moments, 200 times; the transfer goes on and every byte is right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from faults import Mother, Process, fast_folder, noise, reserved, tree

MIB = 1 << 20
SIZE = 6 * MIB
RATE = 100 * MIB
"""Bytes a second, so that there is time to kill."""
ROUNDS = 25
KILLED = ("client", "server")
DIRECTIONS = ("upload", "download")


class Scene:
    """A root with a server on a Unix socket that can be started again at the same address, and a client's folder."""

    def __init__(self, base: Path, mother: Mother, direction: str):
        self.root, self.local = base / "root", base / "local"
        self.root.mkdir()
        self.local.mkdir()
        self.direction = direction
        self._socket = base / "s"
        self._mother = mother
        self.url = f"ft+unix://{quote(str(self._socket), safe='')}/"
        self.server = self.start_server()
        if direction == "upload":
            self.source, self.target = self.local / "file", self.root / "in" / "copy"
        else:
            self.source, self.target = self.root / "file", self.local / "copy"
        self.target.parent.mkdir(exist_ok=True)

    def start_server(self) -> Process:
        """Start a server, which has to be the only one."""
        server = self._mother.start("server", root=str(self.root), listen=f"unix:{self._socket}")
        server.wait_for("ready")
        return server

    def start_client(self, rate: float | None) -> Process:
        """Start the transfer."""
        source = "file" if self.direction == "download" else str(self.source)
        dest = "in/copy" if self.direction == "upload" else str(self.target)
        return self._mother.start(self.direction, url=self.url, source=source, dest=dest, rate=rate)

    def content(self) -> bytes | None:
        """Return what the final name shows."""
        return self.target.read_bytes() if self.target.exists() else None

    def left_over(self) -> list[str]:
        """Return what should not be there between two transfers."""
        return (
            reserved(self.root)
            + reserved(self.local)
            + [n for n in tree(self.root) if n not in ("file", "in", "in/copy")]
        )


@pytest.fixture(scope="module")
def mother() -> Iterator[Mother]:
    """The process that forks the others."""
    with Mother() as made:
        yield made


def wait_until(client: Process, moment: random.Random) -> str:
    """Wait for a random moment of the transfer: a number of bytes or a phase, and some microseconds more."""
    phase = moment.choice(["any", "any", "any", "any", "syncing", "start"])
    bytes_seen = moment.randrange(SIZE) if phase == "any" else SIZE + 1
    while not client.at_end and phase != "start":
        for line in client.lines(20):
            words = line.split()
            if words[0] in (phase, "result", "error") or (len(words) == 2 and int(words[1]) >= bytes_seen):
                phase = "start"
    client.lines(moment.choice([0, 0, 0.0002, 0.001, 0.004]))
    return phase


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("killed", KILLED)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_killed_end_costs_nothing_but_time(mother: Mother, direction: str, killed: str, part: int) -> None:
    """The final name shows the old file or the new one; the next run ends right and leaves nothing behind."""
    moment = random.Random(f"{direction} {killed} {part}")
    resumed = 0
    with fast_folder() as base:
        scene = Scene(base, mother, direction)
        old = None
        for count in range(ROUNDS):
            new = noise(SIZE, count)
            scene.source.write_bytes(new)
            client = scene.start_client(RATE)
            wait_until(client, moment)
            if killed == "client":
                client.kill()
            else:
                scene.server.kill()
                assert scene.content() in (old, new)
                scene.server = scene.start_server()
                said = client.finish()
                assert said.startswith("result"), said
            assert scene.content() in (old, new)
            last = scene.start_client(None)
            result = last.finish()
            assert result.startswith(("result sent", "result same")), result
            resumed += int(result.split()[3]) > 0
            assert scene.content() == new
            assert scene.left_over() == []
            old = new
        scene.server.kill()
    if killed == "client":
        assert resumed >= ROUNDS // 4

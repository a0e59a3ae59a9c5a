"""A tree whose transfer is killed with SIGKILL, at either end: the next run goes on, and no name ever shows a part."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from faults import PATIENCE, Mother, Process, fast_folder, noise
from forests import (
    DIRECTIONS,
    MIB,
    TreeMother,
    Way,
    contents,
    nothing_is_half,
    plant,
    results,
    same_trees,
    weather,
)

import ftransfer
from ftransfer import errors

KILLED = ("client", "server")


@pytest.fixture(scope="module")
def mother() -> Iterator[TreeMother]:
    """The process that forks those that are killed."""
    with TreeMother() as made:
        yield made


class Scene:
    """A tree at one end of a server on a Unix socket, which can be started again at the same address."""

    def __init__(self, base: Path, mother: Mother, direction: str):
        socket = base / "s"
        self.way = Way(base, direction, f"ft+unix://{quote(str(socket), safe='')}/")
        self._mother = mother
        self._listen = f"unix:{socket}"
        self.server = self.start_server()

    def start_server(self) -> Process:
        """Start a server, which has to be the only one."""
        server = self._mother.start("server", root=str(self.way.root), listen=self._listen)
        server.wait_for("ready")
        return server

    def start_client(self, rate: float | None = None) -> Process:
        """Start the transfer."""
        way = self.way
        source, dest = (str(way.source), "") if way.is_up else ("tree", str(way.local))
        return self._mother.start("move", direction=way.direction, url=way.url, source=source, dest=dest, rate=rate)

    def change(self, count: int) -> None:
        """Make most files of the source other ones, of other sizes."""
        for number in range(120):
            place = self.way.source / f"d{number % 7}/{number % 3}/f{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            if count == 0 or number % 5:
                place.write_bytes(noise(100 + 997 * (number % 40) + count, 1000 * count + number))
        (self.way.source / "d0/large").write_bytes(noise(5 * MIB + count, count))
        weather(self.way.source, seed=count)


def kill_and_go_on(base: Path, mother: Mother, direction: str, killed: str, rounds: int) -> int:
    """Kill an end again and again at random moments, go on each time, compare; return how often a file was resumed."""
    moment = random.Random(f"{direction} {killed}")
    scene = Scene(base, mother, direction)
    way = scene.way
    old: dict[str, bytes] = {}
    resumed = 0
    for count in range(rounds):
        scene.change(count)
        new = contents(way.source)
        client = scene.start_client(rate=40 * MIB)
        wait_for_a_moment(client, moment)
        if killed == "client":
            client.kill()
        else:
            scene.server.kill()
            nothing_is_half(contents(way.dest), old, new)
            scene.server = scene.start_server()
            assert client.finish().startswith("result")
        nothing_is_half(contents(way.dest), old, new)
        last = scene.start_client().finish()
        assert last.startswith("result"), last
        resumed += int(last.split()[3]) > 0
        same_trees(way.source, way.dest)
        way.leaves_nothing()
        old = new
    scene.server.kill()
    return resumed


def wait_for_a_moment(client: Process, moment: random.Random) -> None:
    """Wait until the transfer, or a phase of it, is so far, and some microseconds more; it may have ended then."""
    word = moment.choice(["any", "any", "any", "any", "syncing", "start"])
    seen = moment.randrange(8 * MIB) if word == "any" else 1 << 60
    while not client.at_end and word != "start":
        for line in client.lines(PATIENCE):
            words = line.split()
            if words[0] in (word, "result", "error") or int(words[2]) >= seen:
                word = "start"
    client.lines(moment.choice([0, 0, 0.0002, 0.001, 0.004]))


@pytest.mark.parametrize("killed", KILLED)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_killed_end_costs_nothing_but_time(mother: Mother, direction: str, killed: str) -> None:
    """Every name shows an old file or a new one; the next run ends with the same tree and leaves nothing behind."""
    with fast_folder() as base:
        kill_and_go_on(base, mother, direction, killed, 4)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("killed", KILLED)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_hundred_kills(mother: Mother, direction: str, killed: str) -> None:
    """The same, 25 times for each end and direction; half-sent large files are gone on with."""
    with fast_folder() as base:
        resumed = kill_and_go_on(base, mother, direction, killed, 25)
    if killed == "client":
        assert resumed >= 3


def test_an_end_that_is_killed_again_and_again(mother: Mother) -> None:
    """One tree, and no run that may end: what is there only grows, and the last run ends it."""
    with fast_folder() as base:
        scene = Scene(base, mother, "up")
        scene.change(0)
        there = 0
        for _ in range(6):
            client = scene.start_client(rate=20 * MIB)
            while not client.at_end and not any(int(line.split()[1]) > there + 10 for line in client.lines(PATIENCE)):
                pass
            client.kill()
            now = len(contents(scene.way.dest)) if scene.way.dest.exists() else 0
            assert now >= there
            there = now
        assert scene.start_client().finish().startswith("result")
        same_trees(scene.way.source, scene.way.dest)
        scene.way.leaves_nothing()
        scene.server.kill()


DIES = """
import os, sys
import ftransfer
from ftransfer.store.state import StateFolder
remove = StateFolder.remove
StateFolder.remove = lambda self, name: os._exit(9) if name.endswith(".journal") else remove(self, name)
if sys.argv[1] == "up":
    with ftransfer.Server(sys.argv[2]) as server:
        print(server.urls[0], flush=True)
        sys.stdin.read()
else:
    with ftransfer.connect(sys.argv[3]) as remote:
        remote.download("tree", sys.argv[2])
"""


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_end_that_dies_between_a_name_and_its_journal(tmp_path: Path, direction: str) -> None:
    """The large file has its name already; the next run sees that it is there, and what was left behind goes, too."""
    way = Way(tmp_path, direction, "")
    plant(way.source, {"large": 5 * MIB})
    with ftransfer.Server(way.root) as server:
        words = [sys.executable, "-c", DIES, direction, str(way.root if way.is_up else way.local), server.urls[0]]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            if way.is_up:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                with ftransfer.connect(url, retry_for=0) as remote, pytest.raises(errors.ConnectionLost):
                    remote.upload(way.source, "")
            assert process.wait(PATIENCE) == 9
        assert (way.dest / "large").read_bytes() == (way.source / "large").read_bytes()
    with ftransfer.Server(way.root) as server:
        assert results(way.go(url=server.urls[0])) == {"same": 1}
        same_trees(way.source, way.dest)
        way.leaves_nothing()

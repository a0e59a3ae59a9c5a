"""Over ssh, killed and stopped in the middle: it goes on, nothing runs on, and no name ever shows a part."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from command import COMMAND, PATIENCE, Ran, Terminal
from faults import noise
from forests import contents, facts, grove, nothing_is_half, same_facts
from sshd import There, command_line, kill_connection, marked, needs_proc
from support import wait_until

MIB = 1 << 20
SIZE = 24 * MIB
RATE = ("--limit-rate", "32M")
"""Slow enough that there is time to kill, quick enough that it goes on soon."""
SEEN = 12 * MIB
"""Bytes that have to be staged when it happens: some blocks are in the journal then."""
LOST = 8 * MIB
"""Most bytes that may have to be sent again: those of a block that was cut, and those in the pipes."""
DIRECTIONS = ("upload", "download")
ENDS = ("ssh", "server", "sshd")


@pytest.fixture(autouse=True)
def processes_can_be_seen() -> None:
    """Skip, aloud, where they cannot."""
    needs_proc()


class Scene:
    """A file on its way to a name that shows another one, while something is done to what carries it.

    Arguments: `base`, a folder on this side; `direction`, upload or download.
    """

    def __init__(self, there: There, base: Path, direction: str):
        self.there = there
        self.direction = direction
        local = base / "local"
        local.mkdir()
        (there.home / "far").mkdir()
        self.marker = f"FTRANSFER_HERE={secrets.token_hex(8)}"
        self.source, self.target = local / "file", there.home / "far/file"
        self.words: list[object] = [self.source, there.url("far/")]
        if direction == "download":
            self.source, self.target = self.target, self.source
            self.words = [there.url("far/file"), local]
        self.new, self.old = noise(SIZE, 1), b"the old one"
        self.source.write_bytes(self.new)
        self.target.write_bytes(self.old)

    @property
    def env(self) -> dict[str, str]:
        """The environment of the client, by which its processes are found."""
        name, _, value = self.marker.partition("=")
        return {**os.environ, **self.there.env, name: value}

    @contextmanager
    def started(self, *more: object) -> Iterator[subprocess.Popen[str]]:
        """Start the transfer, at a rate, in a group of its own; yield it when a part of the file is staged."""
        words = [*COMMAND, self.direction, "--json", *RATE, *self.words, *more]
        with subprocess.Popen(
            [*map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            start_new_session=True,
        ) as process:
            try:
                self.await_part(lambda: process.poll() is not None)
                yield process
            finally:
                process.kill()

    def await_part(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Wait until a part of the file is staged."""
        wait_until(lambda: self.staged_bytes() >= SEEN or ended(), "the first part of the file")

    def staged_bytes(self) -> int:
        """Return how much is staged where the file is to arrive."""
        found = 0
        for path in self.target.parent.glob(".ftransfer-*"):
            try:
                found += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                pass  # it has got its name
        return found

    def hit(self, what: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to ssh, to the server there, or to the sshd between them."""
        if what == "sshd":
            kill_connection(self.there.sshd.connections()[-1])
            return
        pids = self.processes(what)
        assert len(pids) == 1, (what, [command_line(pid) for pid in pids])
        os.kill(pids[0], number)

    def processes(self, what: str) -> list[int]:
        """Return the process of ssh here, or of the server there."""
        if what == "ssh":
            return [pid for pid in marked(self.marker) if command_line(pid)[:1] == self.there.ssh[:1]]
        return [pid for pid in self.there.processes() if "--stdio" in command_line(pid)]

    def is_whole(self) -> None:
        """Fail the test unless the file has arrived, and nothing else is left of it, at either end."""
        assert self.target.read_bytes() == self.new
        assert os.listdir(self.target.parent) == [self.target.name]
        self.nothing_runs()

    def nothing_runs(self) -> None:
        """Fail the test unless all that was started has ended, here and there."""
        self.there.is_left()
        wait_until(lambda: not marked(self.marker), "ending what runs here")

    def again(self) -> Ran:
        """Run the same command once more, as quick as it goes."""
        return self.there.run(self.direction, "-v", *self.words)


def went_on(process: subprocess.Popen[str]) -> None:
    """Fail the test unless a transfer with `--json` ends well, and not all that was sent was sent again."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    file = json.loads(out.splitlines()[0])
    assert (file["event"], file["result"]) == ("file", "sent")
    assert SIZE <= file["sent_bytes"] <= SIZE + LOST


def resumes(ran: Ran) -> None:
    """Fail the test unless a command has ended well, and says that it went on where another stopped."""
    assert (ran.status, "resumed at" in ran.err) == (0, True), ran.err


@pytest.mark.parametrize("killed", ENDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_killed_connection_comes_back(there: There, tmp_path: Path, direction: str, killed: str) -> None:
    """Killed is ssh, the server there, or sshd: the same command goes on, resumes, and ends with 0."""
    scene = Scene(there, tmp_path, direction)
    with scene.started() as process:
        scene.hit(killed)
        assert scene.target.read_bytes() == scene.old
        went_on(process)
    scene.is_whole()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_killed_client_ends_what_runs_there(there: There, tmp_path: Path, direction: str) -> None:
    """Both ssh and the server end by themselves; the old file stays; the next run resumes."""
    scene = Scene(there, tmp_path, direction)
    with scene.started() as process:
        process.kill()
        process.communicate(timeout=PATIENCE)
    scene.nothing_runs()
    assert scene.target.read_bytes() == scene.old
    listed = there.run("partials", there.url("far/") if direction == "upload" else scene.target.parent)
    assert "file" in listed.out, listed
    resumes(scene.again())
    scene.is_whole()


@pytest.mark.parametrize("direction", ["upload", pytest.param("download", marks=pytest.mark.slow)])
def test_a_stopped_ssh_counts_as_dead_after_the_timeout(there: There, tmp_path: Path, direction: str) -> None:
    """SIGSTOP: `--timeout` finds it, it is ended all the same, and the command goes on with another."""
    scene = Scene(there, tmp_path, direction)
    with scene.started("--timeout", "1s") as process:
        stopped = scene.processes("ssh")
        scene.hit("ssh", signal.SIGSTOP)
        went_on(process)
    assert not [pid for pid in stopped if command_line(pid)]
    scene.is_whole()


@pytest.mark.parametrize("direction", ["download", pytest.param("upload", marks=pytest.mark.slow)])
def test_a_stopped_server_counts_as_dead_after_the_timeout(there: There, tmp_path: Path, direction: str) -> None:
    """As on a machine that hangs: the client leaves it; when it wakes it ends, and writes into nothing of others."""
    scene = Scene(there, tmp_path, direction)
    with scene.started("--timeout", "1s", "--retry-for", "0") as process:
        stopped = scene.processes("server")
        scene.hit("server", signal.SIGSTOP)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 4, err
        assert scene.target.read_bytes() == scene.old
        os.kill(stopped[0], signal.SIGCONT)
    scene.nothing_runs()
    resumes(scene.again())
    scene.is_whole()


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_line_that_goes_dead_is_left_behind(there: There, tmp_path: Path, direction: str) -> None:
    """Nothing comes and nothing ends, as when a network goes away: what hangs there keeps nobody waiting."""
    scene = Scene(there, tmp_path, direction)
    with scene.started("--timeout", "1s") as process:
        dead = there.sshd.connections()[-1]
        os.killpg(dead, signal.SIGSTOP)
        try:
            went_on(process)
        finally:
            os.killpg(dead, signal.SIGCONT)
    scene.is_whole()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ctrl_c_ends_both_ends(there: There, tmp_path: Path, direction: str) -> None:
    """By SIGINT, with the one line; nothing runs on; the next run resumes."""
    scene = Scene(there, tmp_path, direction)
    shown = Terminal(direction, *RATE, *scene.words, env=scene.env)
    shown.read_until(lambda text: re.search(r"[4-9]\d%", text))
    shown.type("\x03")  # the terminal sends SIGINT to the whole group, ssh too
    assert shown.finish() == -signal.SIGINT
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.text.replace("^C", ""))]
    assert lines.count("interrupted: run the same command again, it goes on where it stopped") == 1, lines
    for word in ("Traceback", "error", "Killed", "Broken pipe", "closed by"):
        assert word not in shown.text
    scene.nothing_runs()
    assert scene.target.read_bytes() == scene.old
    resumes(scene.again())
    scene.is_whole()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_client_ends_what_runs_there(there: There, tmp_path: Path, number: int) -> None:
    """As when a terminal is closed or a machine goes down."""
    scene = Scene(there, tmp_path, "upload")
    with scene.started() as process:
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
    scene.nothing_runs()
    assert scene.target.read_bytes() == scene.old
    resumes(scene.again())
    scene.is_whole()


def test_a_server_that_is_told_to_end_there_is_replaced(there: There, tmp_path: Path) -> None:
    """SIGTERM, as the administrator there would send it."""
    scene = Scene(there, tmp_path, "upload")
    with scene.started() as process:
        scene.hit("server", signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    scene.is_whole()


def test_where_ssh_fails_the_second_time_it_says_why(there: There, tmp_path: Path) -> None:
    """What cannot pass ends the retries: a key that opens no more is status 5; a later run goes on."""
    scene = Scene(there, tmp_path, "upload")
    with scene.started() as process:
        there.lock_out()
        scene.hit("ssh")
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 5, err
    assert "Permission denied" in err
    scene.nothing_runs()
    assert scene.target.read_bytes() == scene.old
    there.force(None)  # lets it in again
    resumes(scene.again())
    scene.is_whole()


def test_a_stream_that_cannot_be_read_again_fails_whole(there: There) -> None:
    """`-` as a source: what was read is gone, so the error is the connection's, and no part gets the name."""
    words = [*COMMAND, "upload", *RATE, "-", there.url("stream")]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **there.env}
    ) as process:
        assert process.stdin is not None
        process.stdin.write(noise(1 << 16))
        process.stdin.flush()
        wait_until(lambda: list(there.home.glob(".ftransfer-*")), "the first part of the stream")
        kill_connection(there.sshd.connections()[-1])
        try:
            process.stdin.write(noise(4 * MIB))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already
        process.stdin = None
        _, err = process.communicate(timeout=PATIENCE)
    if process.returncode == 0:  # what was sent was still at hand
        assert (there.home / "stream").read_bytes() == noise(1 << 16) + noise(4 * MIB)
    else:
        assert (process.returncode, (there.home / "stream").exists()) == (4, False), err
    there.is_left()


@pytest.mark.parametrize("killed", [*ENDS, "client"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.slow
def test_a_folder_goes_on_after_a_kill(there: There, tmp_path: Path, direction: str, killed: str) -> None:
    """No name shows a part; what has arrived is not sent again; the rest comes, in the same run or the next."""
    scene = Scene(there, tmp_path, direction)
    source, target = scene.source.with_name("tree"), scene.target.with_name("tree")
    grove(source, 300, large=24 * MIB)  # some seconds, so that it is hit in the middle
    grove(target, 100, seed=2)
    wanted, new, old = facts(source, own=True), contents(source), contents(target)
    local = scene.source if direction == "upload" else scene.target
    scene.words = [source, there.url("far/")] if direction == "upload" else [there.url("far/tree"), local.parent]
    words = [*COMMAND, direction, "--limit-rate", "6M", "-v", *map(str, scene.words)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=scene.env) as process:
        wait_until(lambda: contents(target) != old or process.poll() is not None, "the first files")
        if killed == "client":
            process.kill()
        elif process.poll() is None:
            scene.hit(killed)
        nothing_is_half(contents(target), new, old)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == (0 if killed != "client" else -signal.SIGKILL), err
    scene.nothing_runs()
    nothing_is_half(contents(target), new, old)
    ran = scene.again()
    assert ran.status == 0, ran.err
    found = facts(target, own=True)
    same_facts(wanted, {name: fact for name, fact in found.items() if name in wanted})


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_killed_again_and_again_it_still_arrives(there: There, tmp_path: Path, direction: str) -> None:
    """Each time something else is killed, and every run gets further."""
    scene = Scene(there, tmp_path, direction)

    def came_back(connections: int) -> bool:
        return len(there.sshd.connections()) > connections and len(scene.processes("server")) == 1

    with scene.started() as process:
        for killed in ("sshd", "ssh", "server"):
            before = len(there.sshd.connections())
            scene.hit(killed)
            wait_until(partial(came_back, before), "coming back")
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    scene.is_whole()


@pytest.mark.slow
def test_a_shared_connection_that_ends_is_found(there: There, tmp_path: Path) -> None:
    """With ControlMaster in the configuration, ssh is only the client of another ssh, which may go away."""
    socket = there.base / "c"
    there.set_options(ControlMaster="auto", ControlPath=str(socket), ControlPersist="20")
    scene = Scene(there, tmp_path, "upload")
    try:
        with scene.started() as process:
            subprocess.run([*there.ssh, "-O", "exit", "there"], check=False, capture_output=True, timeout=20)
            _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert scene.target.read_bytes() == scene.new
    finally:
        subprocess.run([*there.ssh, "-O", "exit", "there"], check=False, capture_output=True, timeout=20)
    scene.nothing_runs()


def test_ctrl_c_before_the_first_word_ends_what_runs_there(there: There) -> None:
    """A command there that never speaks loses its input, here nobody waits for it."""
    shown = Terminal("ping", "--remote-command", "cat > /dev/null #", there.url(""), env=there.env)
    wait_until(there.processes, "the command there")
    shown.type("\x03")
    assert shown.finish() == -signal.SIGINT
    assert "Traceback" not in shown.text
    there.is_left()

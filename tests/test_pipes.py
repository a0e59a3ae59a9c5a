"""Two pipes as one stream: what channels need of them, at their edges."""

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import wait_until

from ftransfer import wire
from ftransfer.channel import Channel
from ftransfer.errors import ConnectionLost, TimedOut
from ftransfer.pipes import CAPACITY, TAKES_FILES, FilePart, Pipes
from ftransfer.session import CLIENT, SERVER

HELLO = wire.Hello(versions=[1], software="test")


@pytest.fixture
def ends() -> Iterator[tuple[Pipes, Pipes]]:
    """Both ends of a line."""
    (here_in, there_out), (there_in, here_out) = os.pipe(), os.pipe()
    made = Pipes(here_in, here_out, "there"), Pipes(there_in, there_out, "here")
    yield made
    for end in made:
        end.close()


def channels(ends: tuple[Pipes, Pipes], timeout: float = 10.0) -> tuple[Channel, Channel]:
    """Return a client's channel and a server's."""
    return (
        Channel(ends[0], role=CLIENT, timeout=timeout),
        Channel(ends[1], role=SERVER, timeout=timeout),
    )


def test_a_frame_goes_over_pipes(ends: tuple[Pipes, Pipes]) -> None:
    """What is sent at one end is received at the other, both ways."""
    client, server = channels(ends)
    client.send(HELLO)
    assert isinstance(server.receive(), wire.Hello)
    server.send(wire.Welcome(version=1, software="test", session="0" * 32))
    assert isinstance(client.receive(), wire.Welcome)


def test_more_than_a_pipe_holds_goes_through(ends: tuple[Pipes, Pipes]) -> None:
    """A sender waits for the reader, and neither loses a byte."""
    data = os.urandom(3 * CAPACITY + 7)
    got = bytearray(len(data))
    view = memoryview(data)

    def send() -> None:
        at = 0
        while at < len(data):
            try:
                at += ends[0].send(view[at:])
            except BlockingIOError:
                continue

    thread = threading.Thread(target=send)
    thread.start()
    at = 0
    while at < len(data):
        at += ends[1].recv_into(memoryview(got)[at:])
    thread.join()
    assert bytes(got) == data


def test_a_call_gives_its_caller_a_turn(ends: tuple[Pipes, Pipes]) -> None:
    """Where nothing can be read or written, a call ends after a moment, so that deadlines are looked at."""
    with pytest.raises(BlockingIOError):
        ends[0].recv_into(memoryview(bytearray(10)))
    full = memoryview(bytes(CAPACITY))
    while ends[0].send(full) < len(full):
        pass
    with pytest.raises(BlockingIOError):
        ends[0].send(full)


def test_silence_is_found(ends: tuple[Pipes, Pipes]) -> None:
    """A peer that says nothing for the timeout counts as dead."""
    client, _ = channels(ends, timeout=0.2)
    client.send(HELLO)
    with pytest.raises(TimedOut):
        client.receive()


def test_the_end_is_heard(ends: tuple[Pipes, Pipes]) -> None:
    """A peer that closed between two frames is gone; one that closed in the middle was lost."""
    client, server = channels(ends)
    client.close()
    assert server.receive() is None
    with pytest.raises(ConnectionLost):
        server.send(wire.Error(code="x", message="y"))


def test_half_a_frame_is_a_lost_connection(ends: tuple[Pipes, Pipes]) -> None:
    """What ends in the middle of a frame is not taken for an end."""
    _, server = channels(ends)
    ends[0].send(memoryview(b"\0\0"))
    ends[0].close()
    with pytest.raises(ConnectionLost):
        server.receive()


def test_the_last_word_arrives(ends: tuple[Pipes, Pipes]) -> None:
    """What was said before the end is read, also by a peer that had something to say itself."""
    client, server = channels(ends)
    client.send(HELLO)
    server.send_last(wire.Error(code="full", message="too many"))
    server.hang_up()
    answer = client.receive()
    assert isinstance(answer, wire.Error)
    assert answer.code == "full"
    assert client.receive() is None


def test_closing_twice_closes_nobody_elses(ends: tuple[Pipes, Pipes]) -> None:
    """A descriptor that somebody else has got meanwhile stays open."""
    ends[0].close()
    others = os.pipe()
    ends[0].close()
    ends[0].shutdown(socket.SHUT_RDWR)
    for fd in others:
        os.fstat(fd)
        os.close(fd)


def test_it_can_be_polled(ends: tuple[Pipes, Pipes]) -> None:
    """Its number becomes readable when something comes."""
    poll = select.poll()
    poll.register(ends[1], select.POLLIN)
    assert not poll.poll(0)
    ends[0].send(memoryview(b"x"))
    wait_until(lambda: poll.poll(0), "the byte")


@pytest.fixture
def a_file(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """An open file of two and a half pipes, and what is in it."""
    data = os.urandom(CAPACITY * 5 // 2)
    (tmp_path / "file").write_bytes(data)
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd, data
    os.close(fd)


def drained(end: Pipes, count: int) -> bytes:
    """Return what comes, so many bytes of it."""
    got = bytearray(count)
    at = 0
    while at < count:
        at += end.recv_into(memoryview(got)[at:])
    return bytes(got)


def sent(ends: tuple[Pipes, Pipes], part: FilePart) -> bytes:
    """Send a part of a file as a channel does, and return what arrives."""

    def send() -> None:
        at = 0
        while at < len(part):
            try:
                at += ends[0].send(part[at : at + CAPACITY])
            except BlockingIOError:
                continue

    thread = threading.Thread(target=send)
    thread.start()
    got = drained(ends[1], len(part))
    thread.join()
    return got


needs_splice = pytest.mark.skipif(not TAKES_FILES, reason="this system cannot splice")


@needs_splice
@pytest.mark.parametrize(("offset", "length"), [(0, None), (1, 100), (4095, 70_000), (CAPACITY, CAPACITY + 1)])
def test_a_part_of_a_file_is_sent(
    ends: tuple[Pipes, Pipes], a_file: tuple[int, bytes], offset: int, length: int | None
) -> None:
    """From wherever it begins to wherever it ends, in the pieces that fit; the file's own position is left alone."""
    fd, data = a_file
    os.lseek(fd, 7, os.SEEK_SET)
    part = FilePart(fd, offset, len(data) - offset if length is None else length)
    assert sent(ends, part) == data[offset : offset + len(part)]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7


@needs_splice
def test_a_file_that_is_cut_off_meanwhile_leaves_the_line_in_order(
    ends: tuple[Pipes, Pipes], a_file: tuple[int, bytes]
) -> None:
    """As many bytes come as were announced: the block is found damaged, and what comes behind it is understood."""
    fd, data = a_file
    os.ftruncate(fd, 1000)
    assert sent(ends, FilePart(fd, 0, 5000)) == data[:1000] + bytes(4000)


@needs_splice
def test_a_file_system_that_cannot_splice_is_read(
    ends: tuple[Pipes, Pipes], a_file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some say so with EINVAL; then it is copied as from any other source."""

    def splice(*_: object, **__: object) -> int:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "splice", splice)
    fd, data = a_file
    assert sent(ends, FilePart(fd, 10, len(data) - 10)) == data[10:]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 120), st.integers(0, 120))
def test_a_part_is_sliced_like_bytes(offset: int, length: int, start: int, stop: int) -> None:
    """A slice of a part names the bytes that a slice of its bytes has."""
    data = bytes(range(250))
    part = FilePart(-1, offset, length)[start:stop]
    assert data[part.offset : part.offset + len(part)] == data[offset : offset + length][start:stop]

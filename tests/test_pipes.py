"""Two pipes as one stream: what channels need of them, at their edges."""

import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest
from support import wait_until

from ftransfer import wire
from ftransfer.channel import Channel
from ftransfer.errors import ConnectionLost, TimedOut
from ftransfer.pipes import CAPACITY, Pipes
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

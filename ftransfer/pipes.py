"""Two pipes, one each way, used like one connected socket: how both ends speak through ssh.

Made by `ssh` around the pipes of its child, and by `serve --stdio` around its standard input and output; used by
`channel`, which treats it as a socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket

TICK_MS = 500
"""Milliseconds after which a call that waits gives its caller a turn (`channel.TICK`)."""
CAPACITY = 1 << 20
"""Bytes that a pipe should hold, so that neither end wakes up for each of ssh's small packets."""
PIECE = 128 << 10
"""Bytes of a file that are copied at a time where they cannot be spliced."""
TAKES_FILES = hasattr(os, "splice")
"""Whether parts of files can be sent without copying them (Linux)."""
_AT_ONCE = getattr(os, "SPLICE_F_NONBLOCK", 0)
_SET_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)


class FilePart:
    """Bytes of an open file, which the kernel puts into a pipe without copying them; sliced like a memoryview.

    Whoever sends it has hashed what was there before, so bytes that are changed meanwhile arrive as a damaged block.
    """

    __slots__ = ("fd", "length", "offset")

    def __init__(self, fd: int, offset: int, length: int):
        self.fd, self.offset, self.length = fd, offset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> FilePart:
        start, stop, _ = part.indices(self.length)
        return FilePart(self.fd, self.offset + start, max(0, stop - start))

    def put_into(self, pipe: int) -> int:
        """Put what fits into a pipe; return how much. Raises BlockingIOError, OSError."""
        try:
            count = os.splice(self.fd, pipe, self.length, self.offset, flags=_AT_ONCE)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            return os.write(pipe, os.pread(self.fd, min(self.length, PIECE), self.offset))  # not by this file system
        # It was cut off meanwhile: something has to come in the place of what was announced, and is found damaged.
        return count or os.write(pipe, bytes(min(self.length, PIECE)))


class Pipes:
    """A stream over two descriptors, which belong to it from now on.

    Arguments: `incoming`, to read from; `outgoing`, to write to; `peer`, what is at the other end, for people. What a
    call cannot do within half a second it gives up with BlockingIOError; it can be tried again.
    """

    _in = _out = -1

    def __init__(self, incoming: int, outgoing: int, peer: str):
        self.peer = peer
        self._in = incoming
        self._out = outgoing
        for fd in (incoming, outgoing):
            _prepare(fd)
        self._readable = select.poll()
        self._readable.register(incoming, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(outgoing, select.POLLOUT)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something comes."""
        return self._in

    def recv_into(self, view: memoryview) -> int:
        """Read what there is, at least a byte; 0 means that nothing more comes. Raises BlockingIOError, OSError."""
        try:
            return os.readv(self._in, [view])
        except BlockingIOError:
            self._readable.poll(TICK_MS)
        return os.readv(self._in, [view])

    def send(self, data: memoryview | FilePart, flags: int = 0, /) -> int:
        """Write what fits, at least a byte; return how much. Raises BlockingIOError, OSError."""
        del flags  # a socket's
        try:
            return self._put(data)
        except BlockingIOError:
            self._writable.poll(TICK_MS)
        return self._put(data)

    def _put(self, data: memoryview | FilePart) -> int:
        return data.put_into(self._out) if isinstance(data, FilePart) else os.write(self._out, data)

    def shutdown(self, how: int) -> None:
        """Say that nothing more will be written; what still comes can be read."""
        if how != socket.SHUT_RD and self._out >= 0:
            os.close(self._out)
            self._out = -1

    def __del__(self) -> None:
        Pipes.close(self)  # as a socket does; a process at its other end hears that, and ends

    def close(self) -> None:
        """Close both ways."""
        self.shutdown(socket.SHUT_WR)
        if self._in >= 0:
            os.close(self._in)
            self._in = -1


def _prepare(fd: int) -> None:
    """Let a descriptor never wait, and hold much if it is a pipe."""
    os.set_blocking(fd, False)
    if _SET_SIZE is not None:
        try:
            fcntl.fcntl(fd, _SET_SIZE, CAPACITY)
        except OSError:
            pass  # not a pipe, or more than this user may have

"""One request and its answers, as the client sees them. Used by `client`."""

from __future__ import annotations

from collections.abc import Iterator

from ftransfer import wire
from ftransfer.channel import Channel
from ftransfer.errors import ConnectionLost, from_code
from ftransfer.progress import Observer, Progress, ignore
from ftransfer.store.base import Entry


def answers(channel: Channel, t: int, path: str, observer: Observer = ignore) -> Iterator[wire.Message]:
    """Yield the answers to request `t`, up to the last; raise the error that came in its place."""
    while channel.session.is_open(t):
        answer = channel.receive()
        if answer is None:
            raise ConnectionLost("the server closed the connection")
        if isinstance(answer, wire.Error):
            raise from_code(answer.code, answer.message, hint=answer.hint)
        if isinstance(answer, wire.Working):
            observer(Progress(answer.phase, path, answer.done, answer.total))
        else:
            yield answer


def stream_rows(channel: Channel, request: wire.List | wire.Stat) -> Iterator[Entry]:
    """Ask for entries and yield them page by page."""
    channel.send(request)
    for answer in answers(channel, request.t, request.path):
        if isinstance(answer, wire.Entries):
            for row in answer.rows:
                yield Entry(*row)

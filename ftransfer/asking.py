"""One request and its answers, as the client sees them."""

from __future__ import annotations

from collections.abc import Iterator

from ftransfer import paths, wire
from ftransfer.channel import Channel
from ftransfer.errors import BadPath, ProtocolError, from_code
from ftransfer.progress import Observer, Progress, ignore
from ftransfer.store.base import Entry, OnError, pass_over


def answers(channel: Channel, t: int, path: str, observer: Observer = ignore) -> Iterator[wire.Message]:
    """Yield the answers to request `t`, up to the last; raise the error that came in its place."""
    while channel.session.is_open(t):
        answer = channel.expect()
        if isinstance(answer, wire.Error):
            raise from_code(answer.code, answer.message, hint=answer.hint)
        if isinstance(answer, wire.Working):
            observer(Progress(answer.phase, path, answer.done, answer.total))
        else:
            yield answer


def stream_rows(channel: Channel, request: wire.List | wire.Stat, on_error: OnError = pass_over) -> Iterator[Entry]:
    """Ask for entries and yield them page by page; `on_error` is told of what could not be listed."""
    channel.send(request)
    for answer in answers(channel, request.t, request.path):
        if isinstance(answer, wire.Entries):
            _check_rows(answer, request)
            for name, code, text in answer.failed:
                on_error(name, from_code(code, text, hint=None, path=name))
            for row in answer.rows:
                yield Entry(*row)


def _check_rows(answer: wire.Entries, request: wire.List | wire.Stat) -> None:
    """Raise ProtocolError for entries that cannot be an answer: who joins their names to a folder has to stay in it."""
    if isinstance(request, wire.Stat):
        if answer.more or len(answer.rows) != 1:
            raise ProtocolError("the server described not one file")
        return
    for row in answer.rows:
        try:
            path = paths.check(row[0])
        except BadPath as exc:
            raise ProtocolError("the server listed a name that may not be used") from exc
        if "/" in path and not request.recursive:
            raise ProtocolError("the server listed what is not in the folder")

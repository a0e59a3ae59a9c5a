"""Many files hashed on the server in one request. Used by comparisons of folders and lists of checksums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ftransfer import paths, wire
from ftransfer.asking import answers
from ftransfer.channel import Channel
from ftransfer.digests import HEX_LENGTH, Digest
from ftransfer.errors import BadPath, FtransferError, ProtocolError, from_code
from ftransfer.link import Link
from ftransfer.packing import HEADER, row_size
from ftransfer.progress import Observer, ignore

AT_ONCE = 64
"""Files in one request."""
Outcome = Digest | FtransferError
"""The hash of a file, or what was wrong with it."""


def ask(link: Link, channel: Channel, where: str, names: Sequence[str], algorithm: str, links: str) -> int:
    """Ask the server to hash these files below a folder; return the number of the request."""
    t = link.next_t()
    follow = "follow" if links == "follow" else "copy"
    channel.send(wire.Checksums(t=t, path=where, names=list(names), algorithm=algorithm, links=follow))
    return t


def collect(
    channel: Channel, t: int, where: str, count: int, algorithm: str, observer: Observer = ignore
) -> list[Outcome]:
    """Return the answers to a request, one for each name, in order."""
    found: list[Outcome] = []
    for outcome in _outcomes(channel, t, where, algorithm, observer):
        found.append(outcome)
        if len(found) > count:
            break
    if len(found) != count:
        raise ProtocolError("the server hashed another number of files than it was asked to")
    return found


def hash_all(
    link: Link, where: str, names: Iterable[str], algorithm: str, observer: Observer = ignore
) -> Iterator[tuple[str, Outcome]]:
    """Yield each name with the hash of that file below a folder on the server, or with what was wrong with it."""
    for part in _parts(names):
        outcomes: dict[str, Outcome] = {}
        for name in part:
            try:
                paths.check(name)
            except BadPath as exc:
                outcomes[name] = exc
        good = [name for name in part if name not in outcomes]

        def work(channel: Channel, good: list[str] = good) -> list[Outcome]:
            t = ask(link, channel, where, good, algorithm, "copy")
            return collect(channel, t, where, len(good), algorithm, observer)

        outcomes.update(zip(good, link.run(work, path=where, observer=observer), strict=True))
        for name in part:
            yield name, outcomes[name]


def _parts(names: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    header = 0
    for name in names:
        size = row_size(name)
        if part and (len(part) == AT_ONCE or header + size > HEADER):
            yield part
            part, header = [], 0
        part.append(name)
        header += size
    if part:
        yield part


def _outcomes(channel: Channel, t: int, where: str, algorithm: str, observer: Observer) -> Iterator[Outcome]:
    for answer in answers(channel, t, where, observer):
        if isinstance(answer, wire.Digests):
            for first, second in answer.rows:
                if isinstance(first, str):
                    yield from_code(first, str(second), hint=None)
                elif len(str(second)) == HEX_LENGTH[algorithm]:
                    yield Digest(algorithm, str(second))
                else:
                    raise ProtocolError("the server sent a hash of another kind")

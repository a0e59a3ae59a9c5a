"""One file: up, down, compared, described, hashed on the server. Used by `client` and `treejobs`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ftransfer import net, wire
from ftransfer.asking import answers, stream_rows
from ftransfer.channel import Channel
from ftransfer.comparing import compare as compare_file
from ftransfer.digests import HEX_LENGTH, Digest
from ftransfer.errors import NotAFile, NotFound, OutOfTurn, ProtocolError
from ftransfer.link import Link
from ftransfer.progress import Observer
from ftransfer.results import FileResult, Pong, VerifyResult
from ftransfer.store.base import FOLDER, Entry
from ftransfer.uploading import Upload

if TYPE_CHECKING:
    from ftransfer.downloading import Download


def upload_one(link: Link, upload: Upload, *, compare: str, if_exists: str, resume: bool) -> FileResult:
    """Send a file, unless it is there already, and return what became of it."""
    if (compare == "hash" and upload.is_file) and (
        same := same_by_hash(link, upload.name, upload.path, upload.algorithm, upload.observer)
    ):
        return same
    return upload.run(compare="quick" if compare == "quick" else "none", if_exists=if_exists, resume=resume)


def download_one(link: Link, download: Download, *, compare: str, if_exists: str, resume: bool) -> FileResult:
    """Fetch a file, unless it is here already, and return what became of it."""
    if download.exists:
        if compare == "hash" and (
            same := same_by_hash(link, download.name, download.path, download.algorithm, download.observer)
        ):
            download.drop_parts()
            return same._replace(source=download.path, path=download.name)
        found = stat(link, download.path)
        if found.kind == FOLDER:
            raise NotAFile("it is a folder", path=download.path)
        decided = download.decide(found, compare, if_exists)
        if decided is not None:
            download.drop_parts()
            return decided
    return download.run(if_exists=if_exists, resume=resume)


def same_by_hash(link: Link, local: str, path: str, algorithm: str, observer: Observer) -> FileResult | None:
    """Return a result if both ends hold the same bytes already."""
    try:
        if not os.path.isfile(local) or stat(link, path).size != os.path.getsize(local):
            return None
    except NotFound:
        return None
    started = time.monotonic()
    both = verify_one(link, local, path, algorithm, observer)
    if not both.same:
        return None
    size = os.path.getsize(local)
    return FileResult(local, path, "same", size, seconds=time.monotonic() - started, digest=both.local_digest)


def verify_one(link: Link, local: str, path: str, algorithm: str, observer: Observer) -> VerifyResult:
    """Hash a file at both ends at the same time."""
    return compare_file(
        local,
        path,
        lambda: checksum(link, path, algorithm, observer),
        algorithm=algorithm,
        observer=observer,
        check=link.check,
    )


def stat(link: Link, path: str) -> Entry:
    """Return what is at a path. Raises NotFound."""
    rows = link.run(lambda channel: [*stream_rows(channel, wire.Stat(t=link.next_t(), path=path))], path=path)
    if len(rows) != 1:
        raise ProtocolError("the server described not one file")
    return rows[0]


def checksum(link: Link, path: str, algorithm: str, observer: Observer) -> Digest:
    """Return the digest of a file, which the server reads and hashes now. Raises NotFound, NotAFile, SourceChanged."""

    def ask(channel: Channel) -> Digest:
        t = link.next_t()
        channel.send(wire.Checksum(t=t, path=path, algorithm=algorithm))
        for answer in answers(channel, t, path, observer):
            if isinstance(answer, wire.Digest) and len(answer.hash) == HEX_LENGTH[algorithm]:
                return Digest(algorithm, answer.hash)
        raise OutOfTurn("the server sent no digest")

    return link.run(ask, path=path, observer=observer)


def ping(link: Link) -> Pong:
    """Ask the server for a sign of life; return times, versions, limits and the facts of the connection."""

    def ask(channel: Channel) -> Pong:
        started = time.monotonic()
        t = link.next_t()
        channel.send(wire.Ping(t=t))
        facts = [line for a in answers(channel, t, "") if isinstance(a, wire.Pong) for line in a.facts]
        seconds = time.monotonic() - started
        welcome = link.limits
        return Pong(
            link.connect_seconds,
            seconds,
            welcome.software,
            welcome.version,
            welcome.user or "",
            list(welcome.can),
            welcome.durable,
            welcome.max_block,
            welcome.window,
            net.facts(channel.socket),
            facts,
        )

    return link.run(ask)

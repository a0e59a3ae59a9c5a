"""The commands list, stat, mkdir, move, remove, partials and ping."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

from ftransfer import net
from ftransfer.cli.output import Output, error_lines, tell
from ftransfer.cli.remotes import remote_for, require_path, require_url
from ftransfer.cli.units import show_size
from ftransfer.errors import FtransferError, PartialFailure, UsageError
from ftransfer.paths import printable
from ftransfer.store.base import FOLDER, Entry

_LETTER = {"file": "-", "folder": "d", "link": "l", "other": "?"}


def list_entries(options: argparse.Namespace, output: Output) -> int:
    """Print the entries of a folder, or the one file that the address names."""
    address = require_url(options.url, "what to list")
    with remote_for(options, address, output) as remote:
        found = remote.stat(address.path)
        failed: list[str] = []

        def on_error(path: str, exc: FtransferError) -> None:
            failed.append(path)
            exc.path = path
            for line in error_lines(exc):
                tell(line)

        entries: Iterator[Entry] = iter([found])
        if found.kind == FOLDER:
            entries = remote.list(address.path, recursive=options.recursive, on_error=on_error)
        for entry in entries:
            if output.as_json:
                output.event("entry", **_fields(entry))
            elif options.null:
                sys.stdout.buffer.write(entry.path.encode() + b"\0")
            else:
                print(_long(entry) if options.long else _short(entry))
    return PartialFailure.exit_status if failed else 0


def stat_entry(options: argparse.Namespace, output: Output) -> int:
    """Print what is at a path."""
    address = require_url(options.url, "what to show")
    with remote_for(options, address, output) as remote:
        entry = remote.stat(address.path)
    output.event("entry", **_fields(entry))
    if not output.as_json:
        print(f"path:  {printable(address.shown(entry.path)) or '/'}")
        print(f"kind:  {entry.kind}")
        print(f"size:  {entry.size} ({show_size(entry.size)})")
        print(f"mtime: {_time(entry.mtime_ns)} ({entry.mtime_ns} ns)")
        print(f"mode:  {entry.mode:04o}")
    return 0


def mkdir(options: argparse.Namespace, output: Output) -> int:
    """Make a folder."""
    address = require_url(options.url, "the folder to make")
    with remote_for(options, address, output) as remote:
        remote.mkdir(require_path(address, "folder"), parents=options.parents)
    output.note(f"made {printable(str(address))}")
    return 0


def move(options: argparse.Namespace, output: Output) -> int:
    """Rename; a target that is a folder means inside it."""
    address = require_url(options.url, "what to move")
    target = require_url(options.target, "the new name")
    if address.endpoint != target.endpoint:
        raise UsageError("both addresses have to be on one server", hint="download and upload to move between servers")
    with remote_for(options, address, output) as remote:
        where = remote.target(target.path + "/" * target.is_folder, address.path)
        remote.move(address.path, where)
    output.note(f"moved to {printable(str(target.at(where)))}")
    return 0


def remove(options: argparse.Namespace, output: Output) -> int:
    """Remove a file or folder."""
    address = require_url(options.url, "what to remove")
    with remote_for(options, address, output) as remote:
        remote.remove(require_path(address, "file or folder"), recursive=options.recursive)
    output.note(f"removed {printable(str(address))}")
    return 0


def partials(options: argparse.Namespace, output: Output) -> int:
    """Print what is staged and unfinished, or drop it."""
    shown: Callable[[str], str] = str
    if net.is_url(options.where):
        address = require_url(options.where, "")
        shown = address.shown
        with remote_for(options, address, output) as remote:
            found = remote.partials(address.path, clear=options.clear)
    else:
        from ftransfer.downloading import local_partials

        found = local_partials(options.where, clear=options.clear)
    for partial in found:
        fields = {"path": partial.path, "size": partial.size, "held": partial.held, "mtime_ns": partial.mtime_ns}
        output.event("partial", **fields, cleared=options.clear)
        size = "a stream" if partial.size is None else show_size(partial.size)
        word = "dropped  " if options.clear else ""
        output.verdict(
            f"{word}{printable(shown(partial.path))}  {show_size(partial.held)} of {size}, {_time(partial.mtime_ns)}"
        )
    if not found:
        output.say("nothing unfinished")
    return 0


def ping(options: argparse.Namespace, output: Output) -> int:
    """Print the round trip and what both ends say of the connection."""
    address = require_url(options.url, "whom to ask")
    with remote_for(options, address, output) as remote:
        first = remote.ping()
        pong = min((remote.ping() for _ in range(3)), key=lambda p: p.round_trip_seconds)
    fields = pong._replace(connect_seconds=first.connect_seconds)._asdict()
    output.event("ping", url=address.endpoint, **fields)
    output.verdict(f"{printable(address.endpoint)}  {printable(pong.server)}, protocol {pong.version}")
    output.verdict(
        f"round trip {pong.round_trip_seconds * 1000:.2f} ms, connecting {first.connect_seconds * 1000:.2f} ms"
    )
    rights = f"{printable(pong.user)} may {printable(', '.join(pong.can)) or 'do nothing'}"
    output.verdict(f"{rights}; {'synced before the receipt' if pong.durable else 'not synced (--no-sync)'}")
    output.verdict(f"blocks of at most {show_size(pong.max_block)}, {pong.window} unanswered")
    for side, facts in (("here", pong.client_facts), ("there", pong.server_facts)):
        output.verdict(f"{side}: {'; '.join(printable(fact) for fact in facts)}")
    return 0


def _fields(entry: Entry) -> dict[str, object]:
    return entry._asdict()


def _short(entry: Entry) -> str:
    return printable(entry.path) + ("/" if entry.kind == FOLDER else "")


def _long(entry: Entry) -> str:
    return f"{_LETTER[entry.kind]}{_bits(entry.mode)} {entry.size:>14} {_time(entry.mtime_ns)} {_short(entry)}"


def _bits(mode: int) -> str:
    return "".join(letter if mode >> 8 - at & 1 else "-" for at, letter in enumerate("rwxrwxrwx"))


def _time(mtime_ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mtime_ns // 10**9))
    except (OverflowError, ValueError, OSError):
        return f"{mtime_ns // 10**9} s"

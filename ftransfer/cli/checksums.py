"""The command checksum: lines as `xxhsum` and `sha256sum` print them, of files here or on a server, and their check."""

from __future__ import annotations

import argparse
import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import groupby, tee

from ftransfer import net, paths
from ftransfer.cli.output import Output, error_fields, error_lines, tell
from ftransfer.cli.remotes import remote_for, require_url
from ftransfer.client import Remote
from ftransfer.digests import DEFAULT, Digest, Listed, format_line, guess_algorithm, parse_lines
from ftransfer.errors import FtransferError, NotAFile, PartialFailure, TimedOut, UsageError, from_os
from ftransfer.planning import hold
from ftransfer.sources import checksum_file
from ftransfer.store.base import FILE, FOLDER, OnError

DIFFERENT = 1
Outcome = Digest | FtransferError
HashAll = Callable[[Iterable[str], str], Iterator[tuple[str, Outcome]]]
"""Yields each name with the digest of that file, or with what was wrong with it."""


def checksum(options: argparse.Namespace, output: Output) -> int:
    """Print checksums, or check a list of them."""
    return _check(options, output) if options.check else _print(options, output)


def _print(options: argparse.Namespace, output: Output) -> int:
    algorithm = options.algorithm or DEFAULT
    failed = total = 0
    if not sys.stdout.isatty() and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names as they are, for `xxhsum -c`
    for name, digest in _hashed(options, output, algorithm):
        total += 1
        if isinstance(digest, FtransferError):
            if len(options.names) == 1 and not options.recursive:
                raise digest
            failed += 1
            digest.path = digest.path or name
            output.event("checksum", path=name, digest=None, error=error_fields(digest))
            for line in error_lines(digest):
                tell(line)
            continue
        output.end_bars()
        output.event("checksum", path=name, digest=str(digest), error=None)
        if not output.as_json:
            line = format_line(digest.hex, name)
            print(paths.readable(line) if sys.stdout.isatty() else line, flush=True)
    output.event("summary", files=total, failed=failed)
    return PartialFailure.exit_status if failed else 0


def _hashed(options: argparse.Namespace, output: Output, algorithm: str) -> Iterator[tuple[str, Outcome]]:
    """Yield each file's name with its digest, or with what was wrong with it."""
    hash_here = _local_hash(options, output)
    bad: list[tuple[str, Outcome]] = []

    def on_error(name: str, exc: FtransferError) -> None:
        bad.append((name, exc))

    with ExitStack() as stack:
        remotes: dict[str, Remote] = {}
        for word in options.names:
            if not net.is_url(word):
                yield from hash_here(_local_files(word, on_error, recursive=options.recursive), algorithm)
                yield from bad
                bad.clear()
                continue
            address = require_url(word, "")
            if address.endpoint not in remotes:
                remotes[address.endpoint] = stack.enter_context(remote_for(options, address, output))
            remote = remotes[address.endpoint]
            if not options.recursive or remote.stat(address.path).kind != FOLDER:
                yield from _hash_there_one(remote, address.path, algorithm, output)
                continue
            # A connection for the list, which is read bit by bit; over ssh there is one, and the list comes first.
            with nullcontext(remote) if remote.is_single else remote_for(options, address, output) as listing:
                entries = listing.list(address.path, recursive=True, on_error=on_error)
                held = hold(entries, lambda _: None) if remote.is_single else entries
                names = (entry.path for entry in held if entry.kind == FILE)
                for name, outcome in remote.checksums(names, address.path, algorithm=algorithm):
                    yield paths.join(address.path, name), outcome
            yield from bad
            bad.clear()


def _hash_there_one(remote: Remote, path: str, algorithm: str, output: Output) -> Iterator[tuple[str, Outcome]]:
    try:
        yield path, remote.checksum(path, algorithm=algorithm, on_progress=output.observer())
    except FtransferError as exc:
        if exc.retryable:
            raise
        yield path, exc


def _local_files(path: str, on_error: OnError, *, recursive: bool) -> Iterator[str]:
    if path == "-" or not os.path.isdir(path):
        yield path
        return
    if not recursive:
        raise NotAFile("it is a folder", path=path, hint="-r goes into folders")

    def unread(exc: OSError) -> None:
        on_error(str(exc.filename), from_os(exc, str(exc.filename)))

    for folder, folders, files in os.walk(path, onerror=unread):
        folders[:] = sorted(name for name in folders if not paths.is_reserved(name))
        for name in sorted(files):
            whole = os.path.join(folder, name)
            try:
                if not paths.is_reserved(name) and stat.S_ISREG(os.lstat(whole).st_mode):
                    yield whole
            except FileNotFoundError:
                pass  # removed since it was listed
            except OSError as exc:
                unread(exc)


def _local_hash(options: argparse.Namespace, output: Output) -> HashAll:
    until = None if options.max_time is None else time.monotonic() + options.max_time

    def check() -> None:
        if until is not None and time.monotonic() >= until:
            raise TimedOut(f"not done within {options.max_time:g} s", hint="give it more with --max-time")

    def hash_all(names: Iterable[str], algorithm: str) -> Iterator[tuple[str, Outcome]]:
        for path in names:
            try:
                yield path, checksum_file(0 if path == "-" else path, algorithm, output.observer(), check=check)
            except FtransferError as exc:
                if exc.retryable:
                    raise
                yield path, exc

    return hash_all


def _remote_hash(remote: Remote) -> HashAll:
    return lambda names, algorithm: remote.checksums(names, algorithm=algorithm)


def _check(options: argparse.Namespace, output: Output) -> int:
    """Check a list: names are relative to the folder or address that follows it, else to this folder."""
    if len(options.names) > 2:
        raise UsageError("--check takes a list and at most one folder or address")
    listed = options.names[0]
    where = options.names[1] if len(options.names) == 2 else ""
    if net.is_url(where):
        address = require_url(where, "")
        with remote_for(options, address, output) as remote:
            return _check_list(listed, options, output, address.path, _remote_hash(remote))
    return _check_list(listed, options, output, where, _local_hash(options, output))


def _check_list(listed: str, options: argparse.Namespace, output: Output, folder: str, hash_all: HashAll) -> int:
    wrong = missing = total = 0

    def algorithm_of(line: Listed) -> str:
        return options.algorithm or line.algorithm or guess_algorithm(line.hex, os.path.basename(listed))

    def name_of(line: Listed) -> str:
        name = line.name.removeprefix("./")
        return paths.join(folder.rstrip("/"), name) if folder else name

    for algorithm, lines in groupby(parse_lines(_lines(listed)), algorithm_of):
        asked, told = tee(lines)
        for line, (_, found) in zip(told, hash_all(map(name_of, asked), algorithm), strict=True):
            total += 1
            if isinstance(found, FtransferError):
                if found.exit_status not in (2, 3, 5):
                    raise found
                missing += 1
                word, result = f"FAILED ({found})", "unreadable"
            else:
                word, result = ("OK", "same") if found.hex == line.hex else ("FAILED", "different")
            wrong += word != "OK"
            output.verdict(f"{paths.printable(line.name)}: {paths.printable(word)}")
            output.event("check", path=line.name, result=result)
    if not total:
        raise UsageError(f"{listed} lists no checksums", hint="a line is: <hex digits>, two spaces, name")
    if wrong:
        output.say(f"{wrong} of {total} did not match" + (f", {missing} of them could not be read" if missing else ""))
    output.event("summary", files=total, different=wrong - missing, unreadable=missing)
    return DIFFERENT if wrong else 0


def _lines(listed: str) -> Iterator[str]:
    if listed == "-":
        yield from sys.stdin
        return
    try:
        with open(listed, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield from file
    except OSError as exc:
        raise from_os(exc, listed) from exc

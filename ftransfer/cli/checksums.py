"""The command checksum: lines as `xxhsum` and `sha256sum` print them, of files here or on a server, and their check."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator

from ftransfer import net, paths
from ftransfer.cli.output import Output, error_fields, error_lines, tell
from ftransfer.cli.remotes import remote_for, require_url
from ftransfer.client import Remote
from ftransfer.digests import DEFAULT, Digest, format_line, guess_algorithm, parse_lines
from ftransfer.errors import FtransferError, NotAFile, PartialFailure, TimedOut, UsageError, from_os
from ftransfer.sources import checksum_file
from ftransfer.store.base import FILE, FOLDER

DIFFERENT = 1
Hash = Callable[[str, str], Digest]


def checksum(options: argparse.Namespace, output: Output) -> int:
    """Print checksums, or check a list of them."""
    return _check(options, output) if options.check else _print(options, output)


def _print(options: argparse.Namespace, output: Output) -> int:
    algorithm = options.algorithm or DEFAULT
    failed = total = 0
    if not sys.stdout.isatty() and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names as they are, for `xxhsum -c`
    for name, hash_it in _files(options, output):
        total += 1
        try:
            digest = hash_it(name, algorithm)
        except FtransferError as exc:
            if len(options.names) == 1 and not options.recursive:
                raise
            failed += 1
            exc.path = exc.path or name
            output.event("checksum", path=name, digest=None, error=error_fields(exc))
            for line in error_lines(exc):
                tell(line)
            continue
        output.end_bars()
        output.event("checksum", path=name, digest=str(digest), error=None)
        if not output.as_json:
            line = format_line(digest.hex, name)
            print(paths.readable(line) if sys.stdout.isatty() else line, flush=True)
    output.event("summary", files=total, failed=failed)
    return PartialFailure.exit_status if failed else 0


def _files(options: argparse.Namespace, output: Output) -> Iterator[tuple[str, Hash]]:
    """Yield each file's name, and what hashes it where it is."""
    hash_here = _local_hash(options, output)
    for word in options.names:
        if net.is_url(word):
            address = require_url(word, "")
            with remote_for(options, address) as remote:
                hash_it = _remote_hash(remote, output)
                for path in _remote_files(remote, address.path, recursive=options.recursive):
                    yield path, hash_it
        else:
            for path in _local_files(word, recursive=options.recursive):
                yield path, hash_here


def _remote_files(remote: Remote, path: str, *, recursive: bool) -> list[str]:
    if not recursive or remote.stat(path).kind != FOLDER:
        return [path]
    found = list(remote.list(path, recursive=True))
    return [paths.join(path, entry.path) for entry in found if entry.kind == FILE]


def _local_files(path: str, *, recursive: bool) -> Iterator[str]:
    if path == "-" or not os.path.isdir(path):
        yield path
        return
    if not recursive:
        raise NotAFile("it is a folder", path=path, hint="-r goes into folders")
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not paths.is_reserved(name))
        for name in sorted(files):
            whole = os.path.join(folder, name)
            if not paths.is_reserved(name) and os.path.isfile(whole):
                yield whole


def _local_hash(options: argparse.Namespace, output: Output) -> Hash:
    until = None if options.max_time is None else time.monotonic() + options.max_time

    def check() -> None:
        if until is not None and time.monotonic() >= until:
            raise TimedOut(f"not done within {options.max_time:g} s", hint="give it more with --max-time")

    def hash_it(path: str, algorithm: str) -> Digest:
        return checksum_file(0 if path == "-" else path, algorithm, output.observer(), check=check)

    return hash_it


def _remote_hash(remote: Remote, output: Output) -> Hash:
    return lambda path, algorithm: remote.checksum(path, algorithm=algorithm, on_progress=output.observer())


def _check(options: argparse.Namespace, output: Output) -> int:
    """Check a list: names are relative to the folder or address that follows it, else to this folder."""
    if len(options.names) > 2:
        raise UsageError("--check takes a list and at most one folder or address")
    listed = options.names[0]
    where = options.names[1] if len(options.names) == 2 else ""
    if net.is_url(where):
        address = require_url(where, "")
        with remote_for(options, address) as remote:
            return _check_list(listed, options, output, address.path, _remote_hash(remote, output))
    return _check_list(listed, options, output, where, _local_hash(options, output))


def _check_list(listed: str, options: argparse.Namespace, output: Output, folder: str, hash_it: Hash) -> int:
    wrong = missing = total = 0
    for line in parse_lines(_lines(listed)):
        total += 1
        algorithm = options.algorithm or line.algorithm or guess_algorithm(line.hex, os.path.basename(listed))
        name = line.name.removeprefix("./")
        try:
            found = hash_it(paths.join(folder.rstrip("/"), name) if folder else name, algorithm)
            word, result = ("OK", "same") if found.hex == line.hex else ("FAILED", "different")
        except FtransferError as exc:
            if exc.exit_status not in (2, 3, 5):
                raise
            missing += 1
            word, result = f"FAILED ({exc})", "unreadable"
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

"""The commands upload, download and verify."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from ftransfer import net
from ftransfer.cli.output import Output, error_fields
from ftransfer.cli.remotes import remote_for, remote_path, require_path, require_url
from ftransfer.client import Remote
from ftransfer.digests import Digest
from ftransfer.errors import FtransferError, NotFound, PartialFailure, UsageError
from ftransfer.paths import join, printable, readable
from ftransfer.results import ONLY_HERE, ONLY_THERE, EntryVerdict, FileResult, Totals, TransferResult, VerifyResult
from ftransfer.several import is_contents
from ftransfer.store.base import FOLDER

DIFFERENT = 1
"""Exit status of a comparison that found a difference."""


def _collect_seldom() -> None:
    """Let the collector of cycles run seldom: a tree makes very many small objects, and no cycles."""
    import gc

    gc.set_threshold(100_000, 20, 20)


def _split(options: argparse.Namespace) -> tuple[list[str], str]:
    *sources, dest = options.words
    if not sources:
        raise UsageError(
            f"{options.command} needs a source and a destination",
            hint=f"ftransfer {options.command} FILE ft://host/folder/",
        )
    return sources, dest


def _choices(options: argparse.Namespace, output: Output) -> dict[str, Any]:
    return {
        "compare": options.compare,
        "if_exists": options.if_exists,
        "resume": not options.no_resume,
        "algorithm": options.algorithm,
        "on_progress": output.observer(),
        "on_file": output.on_file(dry_run=options.dry_run),
        "links": options.links,
        "filter": _filter(options),
        "modes": options.chmod,
        "delete": options.delete,
        "dry_run": options.dry_run,
    }


def _filter(options: argparse.Namespace) -> Any:
    if not options.rules and options.max_size is None and options.newer is None:
        return None
    from ftransfer.filters import Filter  # here, because hardly any run needs it

    return Filter(options.rules, max_size=options.max_size, newer_ns=options.newer)


def upload(options: argparse.Namespace, output: Output) -> int:
    """Send files and folders; `-` is standard input."""
    _collect_seldom()
    sources, dest = _split(options)
    address = require_url(dest, "the destination of an upload")
    for source in sources:
        if net.is_url(source):
            raise UsageError(
                f"the source {source} is an address", hint="upload takes local files; did you mean download?"
            )
    output.shown = address.shown
    with remote_for(options, address, output) as remote:
        target = remote_path(address)
        choices = _choices(options, output)
        if sources == ["-"]:
            if fcntl.fcntl(0, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                raise UsageError("standard input is closed", hint="pipe something into it")
            stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - not ours to close
            return _report(output, lambda: remote.upload(stdin, target, **choices), sources, dest)
        if "-" in sources:
            raise UsageError(
                "standard input cannot be one of several sources", hint="upload it with a command of its own"
            )
        if len(sources) == 1:
            return _report(output, lambda: remote.upload(sources[0], target, **choices), sources, dest)
        return _report(output, lambda: remote.upload(sources, target, **choices), sources, dest)


def download(options: argparse.Namespace, output: Output) -> int:
    """Fetch files and folders; `-` is standard output, and without a destination it is this folder."""
    _collect_seldom()
    if net.is_url(options.words[-1]):
        options.words.append(".")
    sources, dest = _split(options)
    addresses = [require_url(source, "the source of a download") for source in sources]
    _one_server(addresses)
    names = [address.path + "/" * (address.is_folder and bool(address.path)) for address in addresses]
    with remote_for(options, addresses[0], output) as remote:
        choices = _choices(options, output) | {"durable": not options.no_sync}
        if dest == "-":
            if len(names) > 1:
                raise UsageError("only one file can go to standard output")
            require_path(addresses[0], "file")
            return _report(output, lambda: remote.download(names[0], sys.stdout.buffer, **choices), sources, dest)
        if len(names) == 1:
            return _report(output, lambda: remote.download(names[0], dest, **choices), sources, dest)
        return _report(output, lambda: remote.download(names, dest, **choices), sources, dest)


def _one_server(addresses: list[net.Address]) -> None:
    if len({address.endpoint for address in addresses}) > 1:
        raise UsageError("the sources are on different servers", hint="one command for each server")


def _report(output: Output, run: Callable[[], TransferResult], sources: list[str], dest: str) -> int:
    try:
        output.transfer(run())
    except PartialFailure as exc:
        output.transfer(exc.results)
        return exc.exit_status
    except FtransferError as exc:
        if exc.results is not None:
            if exc.results.files or exc.results.totals != Totals():
                output.transfer(exc.results)
            return output.failed(exc)
        output.single(TransferResult(dest, [FileResult(sources[0], dest, "failed", error=exc)], 0.0))
        return exc.exit_status
    return 0


def verify(options: argparse.Namespace, output: Output) -> int:
    """Compare: takes the arguments of the transfer that it checks, in either direction."""
    if all(net.is_url(word) for word in options.words):
        options.words.append(".")  # as download does
    sources, dest = _split(options)
    total: Counter[str] = Counter()
    if net.is_url(dest):
        address = require_url(dest, "the destination")
        with remote_for(options, address, output) as remote:
            target = remote_path(address) + ("/" if len(sources) > 1 else "")
            for source in sources:
                if os.path.isdir(source):
                    name = "" if is_contents(source) else os.path.basename(os.path.abspath(source))
                    where = join(target.strip("/"), name) if name else target.strip("/")
                    total += _verify_folder(remote, source, where, options, output, extra=ONLY_THERE)
                else:
                    total += _verify(remote, source, target, options, output)
    else:
        addresses = [require_url(source, "one side of a comparison") for source in sources]
        _one_server(addresses)
        with remote_for(options, addresses[0], output) as remote:
            for there in addresses:
                total += _verify_remote(remote, there, dest, options, output)
    files = sum(total[word] for word in VERDICTS)
    different = files - total["same"] - total[ALLOWED]
    output.event("summary", files=files, different=different, **_counts(total))
    if files > 1:
        shown = [f"{total[word]:,} {word}" for word in VERDICTS if total[word] or word == "same"]
        output.say(", ".join(shown))
    return DIFFERENT if different else 0


ALLOWED = "allowed"
"""Entries that only the destination has, of a transfer that deletes nothing: they are told, and no difference."""
VERDICTS = ("same", "different", "only here", "only there", "missing", "failed")


def _counts(total: Counter[str]) -> dict[str, int]:
    return {word.replace(" ", "_"): total[word] for word in VERDICTS if word not in ("different", "missing")}


def _verify_remote(
    remote: Remote, source: net.Address, dest: str, options: argparse.Namespace, output: Output
) -> Counter[str]:
    """Compare what an address names with what a download of it would have made here."""
    from ftransfer.downloading import local_target

    try:
        is_folder = not source.path or source.is_folder or remote.stat(source.path).kind == FOLDER
    except NotFound:
        is_folder = False
    if not is_folder:
        return _verify(remote, local_target(dest, source.path, len(options.words) > 2), source.path, options, output)
    inside = source.path and not source.is_folder
    local = os.path.join(dest, source.path.rpartition("/")[2]) if inside else dest
    return _verify_folder(remote, local, source.path, options, output, extra=ONLY_HERE)


def _verify_folder(
    remote: Remote, local: str, where: str, options: argparse.Namespace, output: Output, *, extra: str
) -> Counter[str]:
    def tell(verdict: EntryVerdict) -> None:
        if verdict.kind == FOLDER and verdict.result == "same":
            return
        output.event(
            "verify",
            path=os.path.join(local, verdict.path),
            remote=join(where, verdict.path),
            kind=verdict.kind,
            result=verdict.result,
            local_digest=_text(verdict.local_digest),
            remote_digest=_text(verdict.remote_digest),
            error=error_fields(verdict.error) if verdict.error else None,
        )
        if verdict.result != "same" or options.verbose:
            why = str(verdict.error) if verdict.error else verdict.note
            name = printable(verdict.path) + "/" * (verdict.kind == FOLDER)
            output.verdict(f"{verdict.result}: {name}" + (f"  {readable(why)}" if why else ""))

    result = remote.verify_folder(
        local,
        where,
        algorithm=options.algorithm,
        links=options.links,
        filter=_filter(options),
        on_progress=output.observer(),
        on_entry=tell,
    )
    output.end_bars()
    counts = {"same": result.same, "different": result.different, "failed": result.failed}
    counts |= {ONLY_HERE: result.only_here, ONLY_THERE: result.only_there}
    return Counter(counts | {ALLOWED: 0 if options.delete else counts[extra]})


def _verify(remote: Remote, local: str, path: str, options: argparse.Namespace, output: Output) -> Counter[str]:
    try:
        result = remote.verify(local, path, algorithm=options.algorithm, on_progress=output.observer())
    except NotFound:
        if len(options.words) <= 2:
            raise
        result = VerifyResult(local, path, None, None)
    word = "same" if result.same else "different"
    if result.local_digest is None and result.remote_digest is None:
        word = "missing"
    elif result.local_digest is None:
        word = "only there"
    elif result.remote_digest is None:
        word = "only here"
    both = (
        result.local_digest
        if result.same
        else f"{_show(result.local_digest)} here, {_show(result.remote_digest)} there"
    )
    output.verdict(f"{word}: {printable(local)}  {both}")
    output.event(
        "verify",
        path=local,
        remote=result.remote,
        result=word,
        local_digest=_text(result.local_digest),
        remote_digest=_text(result.remote_digest),
    )
    return Counter({word: 1})


def _text(digest: Digest | None) -> str | None:
    return str(digest) if digest else None


def _show(digest: Digest | None) -> str:
    return str(digest) if digest else "nothing"

"""The commands upload, download and verify."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Callable
from typing import Any

from ftransfer import net
from ftransfer.cli.output import Output
from ftransfer.cli.remotes import remote_for, remote_path, require_path, require_url
from ftransfer.client import Remote
from ftransfer.digests import Digest
from ftransfer.errors import FtransferError, NotFound, PartialFailure, UsageError
from ftransfer.paths import printable
from ftransfer.results import FileResult, TransferResult, VerifyResult

DIFFERENT = 1
"""Exit status of a comparison that found a difference."""


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
    }


def upload(options: argparse.Namespace, output: Output) -> int:
    """Send files; `-` is standard input."""
    sources, dest = _split(options)
    address = require_url(dest, "the destination of an upload")
    for source in sources:
        if net.is_url(source):
            raise UsageError(
                f"the source {source} is an address", hint="upload takes local files; did you mean download?"
            )
    with remote_for(options, address) as remote:
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
    """Fetch files; `-` is standard output, and without a destination it is this folder."""
    if net.is_url(options.words[-1]):
        options.words.append(".")
    sources, dest = _split(options)
    addresses = [require_url(source, "the source of a download") for source in sources]
    _one_server(addresses)
    names = [require_path(address, "file") for address in addresses]
    with remote_for(options, addresses[0]) as remote:
        choices = _choices(options, output)
        if dest == "-":
            if len(names) > 1:
                raise UsageError("only one file can go to standard output")
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
        output.transfer(TransferResult(dest, [FileResult(sources[0], dest, "failed", error=exc)], 0.0))
        return exc.exit_status
    return 0


def verify(options: argparse.Namespace, output: Output) -> int:
    """Compare: takes the arguments of the transfer that it checks, in either direction."""
    if all(net.is_url(word) for word in options.words):
        options.words.append(".")  # as download does
    sources, dest = _split(options)
    if net.is_url(dest):
        address = require_url(dest, "the destination")
        with remote_for(options, address) as remote:
            target = remote_path(address) + ("/" if len(sources) > 1 else "")
            results = [_verify(remote, source, target, options, output) for source in sources]
    else:
        from ftransfer.downloading import local_target

        addresses = [require_url(source, "one side of a comparison") for source in sources]
        _one_server(addresses)
        with remote_for(options, addresses[0]) as remote:
            results = [
                _verify(remote, local_target(dest, a.path, len(sources) > 1), a.path, options, output)
                for a in addresses
            ]
    different = sum(not result.same for result in results)
    output.event("summary", files=len(results), different=different)
    return DIFFERENT if different else 0


def _verify(remote: Remote, local: str, path: str, options: argparse.Namespace, output: Output) -> VerifyResult:
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
    return result


def _text(digest: Digest | None) -> str | None:
    return str(digest) if digest else None


def _show(digest: Digest | None) -> str:
    return str(digest) if digest else "nothing"

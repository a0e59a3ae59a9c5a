"""What the command says: data, listings, verdicts and JSON on stdout; summaries, bars and errors on stderr.

Everything that a peer or a file name can choose is escaped on its way to a person.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import IO, Any, Self

from ftransfer.cli.units import show_duration, show_rate, show_size
from ftransfer.errors import FtransferError, PartialFailure
from ftransfer.paths import printable, readable
from ftransfer.progress import Observer
from ftransfer.results import FileResult, TransferResult

VERSION = 1
"""Version of the JSON events."""
_WHY = {"same": "already there", "skipped": "not sent, the name is taken"}


class Output:
    """How one run of the command speaks.

    Arguments: `quiet` says nothing but errors; `verbose` adds a line for each file; `as_json` writes events, to
    stderr if `data_on_stdout`; `goes_on`, whether the same command goes on where this one stops.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        as_json: bool = False,
        data_on_stdout: bool = False,
        goes_on: bool = False,
    ):
        self.quiet = quiet
        self.verbose = verbose
        self.as_json = as_json
        self._events: IO[str] = sys.stderr if data_on_stdout else sys.stdout
        self._goes_on = goes_on
        self._bars: Any = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Self:
        """Return the output that the options ask for."""
        return cls(
            quiet=getattr(options, "quiet", False),
            verbose=getattr(options, "verbose", False),
            as_json=getattr(options, "json", False),
            data_on_stdout=getattr(options, "words", [])[-1:] == ["-"],
            goes_on=options.command in ("upload", "download") and "-" not in options.words,
        )

    # To people.

    def say(self, line: str) -> None:
        """Write a line to stderr unless there is nothing to be said."""
        if not self.quiet and not self.as_json:
            self.end_bars()
            tell(line)

    def note(self, line: str) -> None:
        """Write a line to stderr where only the curious want it."""
        if self.verbose:
            self.say(line)

    def verdict(self, line: str) -> None:
        """Write a line to stdout unless quiet."""
        if not self.quiet and not self.as_json:
            self.end_bars()
            print(line)

    def observer(self) -> Observer | None:
        """Return what shows progress: bars on a terminal, retries with -v, else nothing."""
        if self.quiet or self.as_json:
            return None
        if self._bars is None:
            from ftransfer.cli.bars import Bars

            self._bars = Bars(is_terminal=sys.stderr.isatty(), verbose=self.verbose, say=tell)
        observer: Observer = self._bars
        return observer

    def end_bars(self) -> None:
        """Take the bar off the screen."""
        if self._bars is not None:
            self._bars.end()

    def failed(self, exc: FtransferError) -> int:
        """Report an error and return the exit status."""
        self.end_bars()
        try:
            if not isinstance(exc, PartialFailure):
                self.event("error", error=error_fields(exc))
        except OSError:
            pass  # nobody reads it; stderr says it too
        for line in error_lines(exc):
            tell(line)
        return exc.exit_status

    def interrupted(self) -> None:
        """Say how to go on after Ctrl-C."""
        self.end_bars()
        on = ": run the same command again, it goes on where it stopped" if self._goes_on else ""
        tell(f"interrupted{on}")

    # To scripts.

    def event(self, kind: str, /, **fields: Any) -> None:
        """Write one JSON object on a line of its own."""
        if self.as_json:
            print(json.dumps({"v": VERSION, "event": kind, **fields}), file=self._events, flush=True)

    # Results of transfers.

    def transfer(self, result: TransferResult) -> None:
        """Report what became of each file, then all in one line."""
        self.end_bars()
        for file in result.files:
            self.event("file", **_file_fields(file))
            if file.error is None:
                self.note(_file_line(file))
                continue
            for line in error_lines(file.error):
                tell(line)
        if len(result.files) > 1 or not result.failed:
            self.say(f"to {printable(result.target)}")
            self.say(summary_line(result))
        self.event(
            "summary",
            target=result.target,
            files=len(result.files),
            sent=sum(file.result == "sent" for file in result.files),
            failed=len(result.failed),
            bytes=result.bytes,
            sent_bytes=result.sent_bytes,
            seconds=round(result.seconds, 6),
            durable=result.durable,
        )


def tell(line: str) -> None:
    """Write a line to stderr; that nobody can read it changes nothing of what was done."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # else it is tried again at exit


def error_lines(exc: FtransferError) -> list[str]:
    """Return an error as people read it: what, about what, who said so, and what to do."""
    about = f"{printable(exc.path)}: " if exc.path else ""
    who = "the server says: " if exc.remote else ""
    lines = [f"error: {who}{about}{readable(str(exc))}"]
    if exc.hint:
        lines.append(f"hint: {readable(exc.hint)}")
    return lines


def error_fields(exc: FtransferError) -> dict[str, Any]:
    """Return an error as scripts read it."""
    return {"code": exc.code, "path": exc.path, "message": str(exc), "hint": exc.hint, "retryable": exc.retryable}


def _file_fields(file: FileResult) -> dict[str, Any]:
    return {
        "source": file.source,
        "path": file.path,
        "result": file.result,
        "bytes": file.bytes,
        "sent_bytes": file.sent_bytes,
        "resumed_from": file.resumed_from,
        "seconds": round(file.seconds, 6),
        "tail_seconds": round(file.tail_seconds, 6),
        "digest": str(file.digest) if file.digest else None,
        "durable": file.durable,
        "error": error_fields(file.error) if file.error else None,
    }


def _file_line(file: FileResult) -> str:
    name = printable(file.path)
    if file.result != "sent":
        return f"{file.result:<8} {name}: {_WHY.get(file.result, '')}"
    resumed = f", resumed at {show_size(file.resumed_from)}" if file.resumed_from else ""
    return f"{file.result:<8} {name}  {show_size(file.bytes)}{resumed}  {file.digest}"


def summary_line(result: TransferResult) -> str:
    """Return the last line, which says what was proven: `3 files, 2.0 GiB in 1.2 s (1.7 GiB/s), verified, durable`."""
    sent = [file for file in result.files if file.result == "sent"]
    parts = []
    if sent:
        total, moved = sum(file.bytes for file in sent), sum(file.sent_bytes for file in sent)
        resumed = sum(file.resumed_from for file in sent)
        rate = f" ({show_rate(moved, result.seconds)})" if moved else ""
        parts.append(f"{_files(len(sent))}, {show_size(total)} in {show_duration(result.seconds)}{rate}")
        if resumed:
            parts[-1] += f", resumed at {show_size(resumed)}" if len(sent) == 1 else f", {show_size(resumed)} resumed"
        parts[-1] += ", verified, " + ("durable" if result.durable else "not synced to disk")
    for kind in ("same", "skipped"):
        count = sum(file.result == kind for file in result.files)
        if count:
            parts.append(f"{_files(count)} {_WHY[kind]}")
    if result.failed:
        parts.append(f"{len(result.failed)} failed (listed above)")
    return "; ".join(parts)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"

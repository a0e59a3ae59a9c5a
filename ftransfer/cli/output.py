"""What the command says: data, listings, verdicts and JSON on stdout; summaries, bars and errors on stderr.

Everything that a peer or a file name can choose is escaped on its way to a person.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any, Self

from ftransfer.cli.units import show_duration, show_rate, show_size
from ftransfer.errors import FtransferError, PartialFailure
from ftransfer.paths import printable, readable
from ftransfer.progress import Observer
from ftransfer.results import FileResult, Totals, TransferResult

VERSION = 1
"""Version of the JSON events."""
_WHY = {
    "same": "already there",
    "skipped": "not sent, the name is taken",
    "stamped": "already there, with another time or mode",
    "would send": "would be sent",
    "would replace": "would be replaced",
}


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
        self.shown: Callable[[str], str] = str
        """How the path of a file that was sent is shown to people."""
        self._events: IO[str] = sys.stderr if data_on_stdout else sys.stdout
        self._goes_on = goes_on
        self._passed_on = ""
        self._bars: Any = None
        self._dry_run = self._streams = False

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

    def pass_on(self, line: str) -> None:
        """Write a line that ssh says to people, which has been escaped."""
        if not self.quiet and line != self._passed_on:  # each try may say the same
            self.end_bars()
            tell(line)
        self._passed_on = line

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

    def on_file(self, *, dry_run: bool) -> Callable[[FileResult], None] | None:
        """Return what tells of each file as it is done, where that is wanted: it costs a little for each."""
        self._dry_run = dry_run
        self._streams = dry_run or self.as_json or self.verbose
        return self._file if self._streams else None

    def _file(self, file: FileResult) -> None:
        self.event("file", **_file_fields(file))
        if self._dry_run and file.error is None:
            if file.result in ("same", "skipped") and not self.verbose:
                return
            self.verdict(f"{file.result}: {printable(self.shown(file.path))}")
        elif file.error is None:
            self.note(_file_line(file, self.shown(file.path)))
        else:
            self.end_bars()
            for line in error_lines(file.error):
                tell(line)

    def single(self, result: TransferResult) -> None:
        """Report a file that failed before anything was told of it."""
        self._streams = False
        self.transfer(result)

    def transfer(self, result: TransferResult) -> None:
        """Report what became of each file, unless that was told as it happened, then all in one line."""
        self.end_bars()
        for file in [] if self._streams else result.files:
            self._file(file)
        for what, count in sorted(result.totals.notes.items()):
            self.say(f"note: {what}: {count:,}" if count else f"note: {what}")
        if len(result.files) > 1 or not result.failed or result.totals != Totals():
            self.say(f"to {printable(result.target)}")
            self.say(summary_line(result))
        words = ["sent", "same", "skipped", "stamped", "deleted", "vanished"]
        words += ["would send", "would replace", "would delete"] if self._dry_run else []
        counts = {word.replace(" ", "_"): result.count(word) for word in words}
        self.event(
            "summary",
            target=result.target,
            files=len(result.files) + result.totals.files,
            **counts,
            failed=len(result.failed),
            bytes=result.bytes,
            sent_bytes=result.sent_bytes,
            seconds=round(result.seconds, 6),
            durable=result.durable,
            notes=result.totals.notes,
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


def _file_line(file: FileResult, path: str) -> str:
    name = printable(path)
    if file.result != "sent":
        why = _WHY.get(file.result)
        return f"{file.result:<8} {name}" + (f": {why}" if why else "")
    resumed = f", resumed at {show_size(file.resumed_from)}" if file.resumed_from else ""
    return f"{file.result:<8} {name}  {show_size(file.bytes)}{resumed}  {file.digest or ''}".rstrip()


def summary_line(result: TransferResult) -> str:
    """Return the last line, which says what was proven: `3 files, 2.0 GiB in 1.2 s (1.7 GiB/s), verified, durable`."""
    sent = result.count("sent")
    totals = result.totals
    parts = []
    if sent:
        files = [file for file in result.files if file.result == "sent"]
        same = sum(file.bytes for file in result.files if file.error is None and file.result != "sent")
        moved = result.sent_bytes
        resumed = sum(file.resumed_from for file in files) + totals.resumed
        rate = f" ({show_rate(moved, result.seconds)})" if moved else ""
        size = result.bytes - same - totals.bytes_same
        parts.append(f"{_files(sent)}, {show_size(size)} in {show_duration(result.seconds)}{rate}")
        if resumed:
            parts[-1] += f", resumed at {show_size(resumed)}" if sent == 1 else f", {show_size(resumed)} resumed"
        parts[-1] += ", verified, " + ("durable" if result.durable else "not synced to disk")
    for kind, why in _WHY.items():
        if count := result.count(kind):
            parts.append(f"{_files(count)} {why}")
    if doomed := result.count("would delete"):
        parts.append(f"{doomed:,} would be deleted")
    if deleted := result.count("deleted"):
        parts.append(f"{deleted:,} deleted")
    vanished = result.count("vanished")
    if vanished:
        parts.append(f"{vanished:,} vanished meanwhile (listed above)")
    if failed := len(result.failed) - vanished:
        parts.append(f"{failed:,} failed (listed above)")
    return "; ".join(parts) or _no_files(result)


def _no_files(result: TransferResult) -> str:
    folders = result.totals.folders
    what = f"{folders:,} folder{'s' * (folders != 1)} and no files" if folders else "no files"
    return f"{what}, {show_duration(result.seconds)}"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"

"""The progress bar, an observer: name, phase, bytes, rate and time left on a terminal; nothing on a pipe.

tqdm is imported when the first bar is shown, which is after a short while: quick transfers neither wait for it nor
flicker.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ftransfer.paths import printable, readable
from ftransfer.progress import Progress

FIRST_SHOWN = 0.25
"""Seconds until there is a bar."""
NAME_WIDTH = 24
"""Columns for the name, so that a line of 80 has room for the numbers."""
_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}iB {rate_fmt} {remaining}"
_STREAM = "{desc} {n_fmt}iB {rate_fmt} {elapsed}"
_INDIRECT = ("retrying", "done", "syncing", "waiting")


class Bars:
    """Shows one bar at a time.

    Arguments: `is_terminal`, whether stderr is one; `verbose` tells of retries also where it is not; `say` writes a
    line there.
    """

    def __init__(self, *, is_terminal: bool, verbose: bool, say: Callable[[str], None]):
        self._say = say
        self._is_terminal = is_terminal
        self._verbose = verbose
        self._started = time.monotonic()
        self._bar: Any = None
        self._shown: tuple[str, str] = ("", "")
        self._noted = ""

    def __call__(self, event: Progress) -> None:
        """Take what happened and show it."""
        if event.phase == "retrying":
            self._retrying(event)
            return
        if not self._is_terminal or time.monotonic() - self._started < FIRST_SHOWN:
            return
        if event.phase == "done":
            self.end()
            return
        if (event.phase, event.path) != self._shown:
            self._begin(event)
        if self._bar is not None and event.phase not in _INDIRECT:
            self._bar.update(event.done - self._bar.n)

    def end(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._shown = ("", "")

    def _begin(self, event: Progress) -> None:
        """Show another file or phase; a phase without bytes of its own keeps the bar and changes its name."""
        self._shown = (event.phase, event.path)
        label = f"{event.phase} {shorten(event.path.rpartition('/')[2])}"
        if self._bar is not None and event.phase in _INDIRECT:
            self._bar.set_description_str(label)
            return
        if self._bar is not None:
            self._bar.close()
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread: every event refreshes
        self._bar = tqdm(
            desc=label,
            total=event.total,
            initial=max(event.inherited, event.done),
            unit="iB",
            unit_scale=True,
            unit_divisor=1024,
            **_size(),
            leave=False,
            file=sys.stderr,
            bar_format=_FORMAT if event.total is not None else _STREAM,
        )

    def _retrying(self, event: Progress) -> None:
        note = readable(event.note)
        if note != self._noted and (self._is_terminal or self._verbose):
            self.end()
            self._noted = note
            self._say(f"{shorten(event.path.rpartition('/')[2])}: {note}" if event.path else note)


def _size() -> dict[str, Any]:
    """Return how wide tqdm may be; a serial line or a container's terminal may not know, then 80 columns."""
    columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return {"dynamic_ncols": True} if columns else {"ncols": 80, "nrows": 24}


def shorten(name: str) -> str:
    """Return a name that fits its column, cut in the middle."""
    text = printable(name)
    if len(text) <= NAME_WIDTH:
        return text
    half = (NAME_WIDTH - 3) // 2
    return f"{text[:half]}...{text[-half:]}"

"""The progress bar, an observer: name, phase, bytes, rate and time left on a terminal; nothing on a pipe.

tqdm is imported when the first bar is shown, which is after a short while: quick transfers neither wait for it nor
flicker.
"""

from __future__ import annotations

import functools
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
_TREE = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}iB {rate_fmt} {remaining}{postfix}"
_COUNTING = "{desc} {n_fmt}iB {rate_fmt} {elapsed}{postfix}, still counting"
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
        self._part: Any = None
        self._part_path = ""
        self._shown: tuple[str, str | bool] = ("", "")
        self._noted = ""

    def __call__(self, event: Progress) -> None:
        """Take what happened and show it."""
        if event.phase == "retrying":
            self._retrying(event)
            return
        if not self._is_terminal or time.monotonic() - self._started < FIRST_SHOWN or not _has_tqdm():
            return
        if event.is_tree:
            self._tree(event)
            return
        if event.is_part:
            self._large_file(event)
            return
        if event.phase == "done":
            self.end()
            return
        if (event.phase, event.path) != self._shown:
            self._begin(event)
        if self._bar is not None and event.phase not in _INDIRECT:
            self._bar.update(event.done - self._bar.n)

    def _tree(self, event: Progress) -> None:
        """Show a tree as a whole: bytes, files, and, while they are counted, that they are."""
        shown = (event.path, event.total is None)
        if shown != self._shown or self._bar is None:
            self.end()
            self._shown = shown
            self._bar = self._make(event, _COUNTING if event.total is None else _TREE, smoothing=0)
            self._bar.start_t -= time.monotonic() - self._started  # the rate is that of all of it
        bar = self._bar
        bar.initial = event.inherited  # what was there already counts for no rate
        bar.total = event.total
        bar.set_description_str(f"{event.phase} {shorten(_name(event.path))}", refresh=False)
        bar.set_postfix_str(f"{event.files:,}/{event.total_files:,} files", refresh=False)
        bar.update(max(0, event.done - bar.n))

    def _large_file(self, event: Progress) -> None:
        """Show a large file below the tree that it is in."""
        if self._bar is None:
            return
        if self._part is None or self._part_path != event.path:
            self._end_part()
            self._part = self._make(event, _FORMAT, position=1)
            self._part.set_description_str(f"  {shorten(_name(event.path))}", refresh=False)
            self._part_path = event.path
        self._part.update(max(0, event.done - self._part.n))
        if event.done >= (event.total or 0):
            self._end_part()

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def end(self) -> None:
        """Take the bars off the screen."""
        self._end_part()
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
        self._bar = self._make(event, _FORMAT if event.total is not None else _STREAM, desc=label)

    @staticmethod
    def _make(event: Progress, form: str, **fields: Any) -> Any:
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread: every event refreshes
        return tqdm(
            total=event.total,
            initial=max(event.inherited, event.done),
            unit="iB",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            file=sys.stderr,
            bar_format=form,
            **_size(),
            **fields,
        )

    def _retrying(self, event: Progress) -> None:
        note = readable(event.note)
        if note != self._noted and (self._is_terminal or self._verbose):
            self.end()
            self._noted = note
            self._say(f"{shorten(event.path.rpartition('/')[2])}: {note}" if event.path else note)


@functools.cache
def _has_tqdm() -> bool:
    """Tell whether bars can be drawn; in the archive that `login` copies they cannot."""
    from importlib.util import find_spec

    return find_spec("tqdm") is not None


def _size() -> dict[str, Any]:
    """Return how wide tqdm may be; a serial line or a container's terminal may not know, then 80 columns."""
    columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return {"dynamic_ncols": True} if columns else {"ncols": 80, "nrows": 24}


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def shorten(name: str) -> str:
    """Return a name that fits its column, cut in the middle."""
    text = printable(name)
    if len(text) <= NAME_WIDTH:
        return text
    half = (NAME_WIDTH - 3) // 2
    return f"{text[:half]}...{text[-half:]}"

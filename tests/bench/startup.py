"""What a user waits for besides the bytes: the start of the command, and a transfer of next to nothing."""

import sys
from collections.abc import Callable

from bench.children import Run
from bench.lab import KIB, Lab, median
from bench.ours import Ftransfer
from bench.report import Goal

ROUNDS = 15
VERSION_MS, UPLOAD_MS = 40, 60


def measure(lab: Lab) -> None:
    """Time the bare interpreter, `--version` and an upload of 1 KiB in turns."""
    served = lab.folder("served-startup")
    tool = Ftransfer(lab.children, lab.work, served, command=lab.options.command)
    target = served / "small.bin"
    kinds: dict[str, Callable[[], Run]] = {
        "python -c pass": lambda: lab.children.run([sys.executable, "-c", "pass"]),
        "ftransfer --version": lambda: lab.children.run([tool.command, "--version"]),
        "ftransfer upload, 1 KiB": lambda: tool.upload(lab.source(KIB), target.name),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    tool.start()
    try:
        for number in range(ROUNDS + 1):
            for name, run in kinds.items():
                seconds = run().seconds
                if number:  # the first round fills caches
                    times[name].append(seconds)
            target.unlink()
    finally:
        tool.stop()
    tabulate(lab, {name: median(seconds) * 1000 for name, seconds in times.items()})


def tabulate(lab: Lab, milliseconds: dict[str, float]) -> None:
    """Print the table and note the goals."""
    bare, version, upload = milliseconds.values()
    rows = [[name, f"{figure:.1f}", f"{figure - bare:.1f}"] for name, figure in milliseconds.items()]
    lab.report.table(f"start-up, median of {ROUNDS}", ["", "ms", "beyond the bare interpreter"], rows)
    for name, figure, limit in (
        ("--version beyond the bare interpreter", version - bare, VERSION_MS),
        ("upload of 1 KiB beyond the bare interpreter", upload - bare, UPLOAD_MS),
    ):
        lab.report.goal(Goal(name=name, figure=figure, bound="at most", limit=limit, unit=" ms"))

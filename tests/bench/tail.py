"""The end of an upload: the time from the last byte sent to the receipt, in memory and on a disk."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.lab import GIB, Lab, file_system, median
from bench.ours import Ftransfer, file_event


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder to receive in, and the words for it."""

    folder: Path
    label: str


def measure(lab: Lab) -> None:
    """Upload into memory and onto the disk, with and without waiting for it; dd's figure stands beside."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="ftransfer-bench-", dir=lab.options.disk) as disk:
        for place in places(lab, Path(disk)):
            for options in ((), ("--no-sync",)):
                seconds, tails = uploads(lab, place, options)
                label = " ".join([place.label, *(options or ("synced",))])
                rows.append(row(lab, label, seconds, tails))
            rows.append(row(lab, f"{place.label} dd conv=fsync", writes(lab, place), []))
    head = ["upload to", "GiB/s", "last byte to receipt, ms", "longest, ms"]
    lab.report.table(f"the end of a transfer of {lab.options.size / GIB:g} GiB", head, rows)


def places(lab: Lab, disk: Path) -> list[Place]:
    """Return the fast folder and, if there is one, a real disk."""
    found = [Place(folder=lab.folder("served-tail"), label=file_system(lab.work))]
    if lab.options.disk is None:
        lab.report.say("left out: the disk: no folder that is not in memory was found; name one with --disk")
    elif shutil.disk_usage(disk).free < 2 * lab.options.size:
        lab.report.say(f"left out: the disk: not enough room in {lab.options.disk}")
    else:
        found.append(Place(folder=disk, label=f"disk ({file_system(disk)})"))
    return found


def uploads(lab: Lab, place: Place, options: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Return the whole seconds of each run and the seconds between the last byte and the receipt."""
    tool = Ftransfer(lab.children, lab.work, place.folder, command=lab.options.command, serve_options=options)
    target = place.folder / "tail.bin"
    seconds, tails = [], []
    tool.start()
    try:
        for _ in range(lab.options.runs):
            os.sync()  # what the run before left to be written must not be paid for by this one
            run = tool.client("upload", lab.source(lab.options.size), tool.url(target.name), "--json")
            target.unlink()
            seconds.append(run.seconds)
            tails.append(float(file_event(run)["tail_seconds"]))
    finally:
        tool.stop()
    return seconds, tails


def writes(lab: Lab, place: Place) -> list[float]:
    """Return the seconds that dd takes to write the same bytes there and sync them: what the disk allows."""
    target = place.folder / "dd.bin"
    seconds = []
    for _ in range(lab.options.runs):
        os.sync()
        source = lab.source(lab.options.size)
        run = lab.children.run(["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync", "status=none"])
        seconds.append(run.seconds)
        target.unlink()
    return seconds


def row(lab: Lab, label: str, seconds: list[float], tails: list[float]) -> list[str]:
    """Return a row of the table."""
    rate = f"{lab.options.size / GIB / median(seconds):.2f}"
    if not tails:
        return [label, rate, "-", "-"]
    return [label, rate, f"{median(tails) * 1000:.1f}", f"{max(tails) * 1000:.1f}"]

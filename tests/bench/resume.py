"""What resuming costs: a file of which nine tenths are there, against the whole of it."""

from pathlib import Path

from bench.children import BenchError, Run
from bench.lab import GIB, Lab, median, must_be_equal
from bench.ours import Ftransfer, file_event
from bench.report import Goal
from bench.sockets import CuttingProxy
from bench.tools import Direction

PART = 0.9
# The least part of the file that must not be sent again: what was on its way when the line was cut may be.
HELD = 0.8
DIRECTIONS: tuple[Direction, ...] = ("upload", "download")
LIMIT_TMPFS, LIMIT_LINE = 0.6, 0.2
LINE = ("--limit-rate", "125MB")


def measure(lab: Lab) -> None:
    """Compare whole transfers with resumed ones, as fast as the machine allows and on a line of 1 Gbit/s."""
    served = lab.folder("served-resume")
    lab.folder("fetched")
    tool = Ftransfer(lab.children, lab.work, served, command=lab.options.command)
    rows = []
    tool.start()
    try:
        for label, options, limit, runs in (
            ("no limit", (), LIMIT_TMPFS, lab.options.runs),
            ("1 Gbit/s", LINE, LIMIT_LINE, max(1, lab.options.runs // 3)),
        ):
            for direction in DIRECTIONS:
                whole, rest = compare(lab, tool, direction, options, runs)
                rows.append([f"{direction}, {label}", f"{whole:.3f}", f"{rest:.3f}", f"{rest / whole:.2f}"])
                name = f"resume of {PART:.0%}, {direction}, {label}, to the whole"
                lab.report.goal(Goal(name=name, figure=rest / whole, bound="at most", limit=limit))
    finally:
        tool.stop()
    title = f"resuming {lab.options.size / GIB:g} GiB of which {PART:.0%} are there"
    lab.report.table(title, ["", "whole, s", "rest, s", "rest to whole"], rows)


def compare(
    lab: Lab, tool: Ftransfer, direction: Direction, options: tuple[str, ...], runs: int
) -> tuple[float, float]:
    """Return the median seconds of a whole transfer and of the rest of one that was cut, in turns."""
    whole, rest = [], []
    for _ in range(runs):
        whole.append(transfer(lab, tool, direction, *options).seconds)
        target_of(lab, tool, direction).unlink()
        cut(lab, tool, direction)
        run = transfer(lab, tool, direction, "--json", *options)
        must_have_resumed(run, lab.options.size)
        rest.append(run.seconds)
        must_be_equal(lab.source(lab.options.size), target_of(lab, tool, direction), by=f"resumed {direction}")
        target_of(lab, tool, direction).unlink()
    return median(whole), median(rest)


def target_of(lab: Lab, tool: Ftransfer, direction: Direction) -> Path:
    """Return where the file ends up."""
    return (tool.served if direction == "upload" else lab.folder("fetched")) / "resume.bin"


def transfer(lab: Lab, tool: Ftransfer, direction: Direction, *options: str, port: int = 0, check: bool = True) -> Run:
    """Move the file, directly or through a proxy at `port`."""
    source, target = lab.source(lab.options.size), target_of(lab, tool, direction)
    if direction == "upload":
        return tool.client("upload", source, tool.url(target.name, port=port), *options, check=check)
    offered = tool.served / source.name
    if not offered.exists():
        offered.hardlink_to(source)
    return tool.client("download", tool.url(offered.name, port=port), target, *options, check=check)


def cut(lab: Lab, tool: Ftransfer, direction: Direction) -> None:
    """Leave nine tenths of the file at the receiver: a proxy cuts the line, the client gives up at once."""
    bytes_through = int(lab.options.size * PART)
    with CuttingProxy(tool.port, cut_after=bytes_through, upwards=direction == "upload") as proxy:
        run = transfer(lab, tool, direction, "--retry-for", "0", port=proxy.port, check=False)
    if run.status == 0 or target_of(lab, tool, direction).exists():
        raise BenchError(f"the {direction} was cut and still ended with status {run.status}")


def must_have_resumed(run: Run, size: int) -> None:
    """Hold that the file was not simply sent again: that would be another measurement."""
    sent = int(file_event(run)["sent_bytes"])
    if sent > size * (1 - HELD):
        raise BenchError(f"{sent} bytes of {size} were sent again: the transfer did not resume")

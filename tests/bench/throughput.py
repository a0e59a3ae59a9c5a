"""How fast one large file goes up and down, next to the peers."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from bench.children import Run
from bench.lab import GIB, Lab, median, must_be_equal
from bench.ours import Ftransfer
from bench.peers import Curl, Rsync, Scp
from bench.report import Goal
from bench.tools import Direction, Netcat, Tool

TO_NC, TO_RSYNC, LOOP_TO_NC = 1.0, 1.3, 1.15

# By direction, tool, and size of the file: the seconds of every run.
Times = dict[tuple[Direction, str, int], list[float]]
AnyTool = TypeVar("AnyTool", bound=Tool)
Step = TypeVar("Step")


def measure(lab: Lab, directions: Sequence[Direction]) -> None:
    """Run every tool once a round, with the large file and with a single byte; print a table each way."""
    tools = installed(lab)
    lab.folder("fetched")
    try:
        for tool in tools:
            tool.start()
        times = rounds(lab, tools, directions)
    finally:
        for tool in tools:
            tool.stop()
    for direction in directions:
        tabulate(lab, tools, direction, times)


def installed(lab: Lab) -> list[Tool]:
    """Return the tools for one file that can be used."""
    served = lab.folder("served")
    place = (lab.children, lab.work, served)
    ours = Ftransfer(*place, command=lab.options.command)
    return available(lab, [ours, Netcat(*place), Curl(*place), Rsync(*place), Scp(*place)])


def available(lab: Lab, tools: Sequence[AnyTool]) -> list[AnyTool]:
    """Return those of the tools that were asked for and are there; say which are not.

    What follows a hyphen in a name tells two ways of using one tool from each other.
    """
    found = []
    for tool in (tool for tool in tools if tool.name.partition("-")[0] in lab.options.tools):
        if missing := tool.missing():
            lab.report.say(f"not installed: {missing}; nothing is compared with {tool.name}")
        else:
            found.append(tool)
    return found


def rounds(lab: Lab, tools: Sequence[Tool], directions: Sequence[Direction]) -> Times:
    """Return the times of all runs. Round 0 warms up and is compared byte for byte instead of counted."""
    times: Times = defaultdict(list)
    steps: list[tuple[Direction, Tool]] = []
    for direction in directions:
        for tool in tools:
            if reason := tool.cannot(direction):
                lab.report.say(f"left out: {tool.name} {direction}: {reason}")
            else:
                steps.append((direction, tool))
    for number in range(lab.options.runs + 1):
        for direction, tool in rotated(steps, number):
            for size in (1, lab.options.size):
                run = transfer(lab, tool, direction, size, compare=number == 0)
                if number:
                    times[direction, tool.name, size].append(run.seconds)
    return times


def rotated(steps: Sequence[Step], number: int) -> list[Step]:
    """Return the steps in another order each round: nobody always runs after the same other."""
    start = number % len(steps) if steps else 0
    return [*steps[start:], *steps[:start]]


def transfer(lab: Lab, tool: Tool, direction: Direction, size: int, *, compare: bool) -> Run:
    """Move the file of `size` bytes once, to where nothing lies; with `compare`, look at what arrived."""
    source = lab.source(size)
    if direction == "upload":
        target = tool.served / f"{tool.name}.bin"
        target.unlink(missing_ok=True)
        run = tool.upload(source, target.name)
    else:
        offer(tool.served / source.name, source)
        target = lab.folder("fetched") / f"{tool.name}.bin"
        target.unlink(missing_ok=True)
        run = tool.download(source.name, target)
    if compare:
        must_be_equal(source, target, by=f"{tool.name} {direction}")
    target.unlink(missing_ok=True)
    return run


def offer(name: Path, source: Path) -> None:
    """Put a source into the served folder; a second name takes no space."""
    if not name.exists():
        name.hardlink_to(source)


def tabulate(lab: Lab, tools: Sequence[Tool], direction: Direction, times: Times) -> None:
    """Print the table of one direction and note the goals."""
    size = lab.options.size
    whole = {tool.name: times[direction, tool.name, size] for tool in tools}
    whole = {name: seconds for name, seconds in whole.items() if seconds}
    loop = {name: without_start(seconds, times[direction, name, 1]) for name, seconds in whole.items()}
    checks = {tool.name: tool.checks for tool in tools}
    rows = [
        [
            name,
            f"{size / GIB / median(whole[name]):.2f}",
            f"{size / GIB / max(whole[name]):.2f}-{size / GIB / min(whole[name]):.2f}",
            shown(ratio(whole, name, "nc")),
            shown(ratio(whole, name, "rsync")),
            f"{size / GIB / median(loop[name]):.2f}",
            shown(ratio(loop, name, "nc")),
            checks[name],
        ]
        for name in whole
    ]
    title = f"{direction} of {size / GIB:g} GiB, whole processes, median of {lab.options.runs}"
    head = ["", "GiB/s", "worst-best", "to nc", "to rsync", "loop GiB/s", "loop to nc", "checked by"]
    lab.report.table(title, head, rows)
    for figure, what, limit in (
        (ratio(whole, "ftransfer", "nc"), "to nc", TO_NC),
        (ratio(whole, "ftransfer", "rsync"), "to rsync", TO_RSYNC),
        (ratio(loop, "ftransfer", "nc"), "the loop alone, to nc's", LOOP_TO_NC),
    ):
        if figure is not None:
            lab.report.goal(Goal(name=f"{direction} {what}", figure=figure, bound="at least", limit=limit))


def without_start(seconds: Sequence[float], small: Sequence[float]) -> list[float]:
    """Return what each run took beyond the median transfer of one byte: the loop itself."""
    start = median(small)
    return [max(spent - start, 1e-9) for spent in seconds]


def ratio(times: dict[str, list[float]], name: str, other: str) -> float | None:
    """Return how many times as fast as another tool one is: the median of the ratios within each round.

    The two runs of a round are seconds apart, so a machine that slows down meanwhile slows both.
    """
    if name not in times or other not in times:
        return None
    return median([theirs / mine for mine, theirs in zip(times[name], times[other], strict=True)])


def shown(figure: float | None) -> str:
    """Return a ratio for the table, or a dash where nothing was measured."""
    return "-" if figure is None else f"{figure:.2f}"

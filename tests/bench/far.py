"""How a tree goes up a line of 80 ms round trip, as fast as the machine allows and at 500 Mbit/s."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import delay
from bench.forest import Tree, python_tree, served
from bench.lab import Lab
from bench.sockets import free_port, listens, share_token
from bench.throughput import shown
from bench.treerounds import (
    FIGURES,
    Plan,
    Results,
    figures,
    no_slower,
    rounds,
    running,
    seconds_of,
    seconds_to,
    steps_of,
)
from bench.treetools import TreeFtransfer, TreeTar, TreeTool

DELAY = 0.04
RATE = 62_500_000
TO_TAR = 1.1


def measure(lab: Lab) -> None:
    """Upload the tree through a proxy that delays, with ftransfer and with tar|nc."""
    tree = python_tree(lab)
    place = (lab.children, lab.work, served(lab))
    rows = []
    with running(lab, [TreeFtransfer(*place, command=lab.options.command), TreeTar(*place)]) as tools:
        for label, rate, runs in (
            ("no limit", None, lab.options.runs),
            ("500 Mbit/s", RATE, (lab.options.runs + 1) // 2),
        ):
            with lines(lab, tools, rate):
                results = rounds(lab, tree, steps_of(lab, tools, ("upload",)), Plan(runs=runs))
            rows += rows_of(tree, label, results)
            no_slower(lab, f"far, {label}", seconds_of(results, "upload"), "tar", limit=TO_TAR)
    if rows:
        title = f"upload of {tree} over a line of {2000 * DELAY:g} ms round trip"
        lab.report.table(title, ["", *FIGURES, "s to tar|nc"], rows)


@contextmanager
def lines(lab: Lab, tools: Sequence[TreeTool], rate: int | None) -> Iterator[None]:
    """Put a line before the server of each tool."""
    proxies = []
    try:
        for tool in tools:
            tool.door, log = free_port(), lab.children.log("delay")
            share_token(tool.port, tool.door)
            # By its path: children get no PYTHONPATH, and it imports nothing of the bench.
            argv = [sys.executable, "-P", str(Path(delay.__file__)), "--port", str(tool.door), "--to", str(tool.port)]
            argv += ["--delay", str(DELAY), *(["--rate", str(rate)] if rate else [])]
            proxies.append(lab.children.start(argv, log=log))
            lab.children.until(partial(listens, tool.door), proxies[-1], log)
        yield
    finally:
        for tool in tools:
            tool.door = 0
        for proxy in proxies:
            lab.children.stop(proxy)


def rows_of(tree: Tree, label: str, results: Results) -> list[list[str]]:
    """Return the rows of one kind of line."""
    seconds = seconds_of(results, "upload")
    return [
        [f"{name}, {label}", *figures(tree, spent), shown(seconds_to(seconds, name, "tar"))]
        for name, spent in seconds.items()
    ]

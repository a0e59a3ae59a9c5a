"""What an upload feels of a crowd that never says who it is: a thousand silent connections, and dribbling ones."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import strangers
from bench.children import Run
from bench.lab import GIB, Lab, median, must_be_equal
from bench.ours import Ftransfer
from bench.report import Goal
from bench.sockets import is_connected
from bench.throughput import ratio
from bench.treetools import NO_SYNC

SILENT, DRIBBLING = 1000, 200
PAUSE = 1.0
ALONE, CROWDED = "alone", "in the crowd"
TO_ALONE = 0.8


def measure(lab: Lab) -> None:
    """Upload the large file once a round alone and once beside the crowd, to one server with its default limits."""
    served = lab.folder("served-crowd")
    tool = Ftransfer(lab.children, lab.work, served, command=lab.options.command, serve_options=(NO_SYNC,))
    seconds: dict[str, list[float]] = {ALONE: [], CROWDED: []}
    crowds: list[dict[str, float]] = []
    tool.start()
    try:
        for number in range(lab.options.runs + 1):
            for kind in (ALONE, CROWDED) if number % 2 else (CROWDED, ALONE):
                if kind == ALONE:
                    run = upload(lab, tool)
                else:
                    with crowd(lab, tool, crowds):
                        run = upload(lab, tool)
                if number:  # the first round warms up
                    seconds[kind].append(run.seconds)
        memory = tool.server_peak()
    finally:
        tool.stop()
    tabulate(lab, seconds, crowds, memory)


def upload(lab: Lab, tool: Ftransfer) -> Run:
    """Upload the file to where nothing lies, and look at what arrived."""
    source, target = lab.source(lab.options.size), tool.served / "good.bin"
    run = tool.upload(source, target.name)
    must_be_equal(source, target, by="an upload in a crowd")
    target.unlink()
    return run


@contextmanager
def crowd(lab: Lab, tool: Ftransfer, crowds: list[dict[str, float]]) -> Iterator[None]:
    """Crowd the server for the time of a block, and note what the crowd did; leave when the server is empty again."""
    log, output = lab.children.log("strangers"), lab.children.log("strangers-output")
    # By its path, as `delay`.
    argv = [sys.executable, "-P", str(Path(strangers.__file__)), "--port", str(tool.port), "--pause", str(PAUSE)]
    argv += ["--silent", str(SILENT), "--dribbling", str(DRIBBLING)]
    child = lab.children.start(argv, log=log, stdout=output)
    try:
        lab.children.until(lambda: bool(output.read_text()), child, log)
        yield
    finally:
        lab.children.stop(child)
    crowds.append(json.loads(output.read_text().splitlines()[-1]))
    lab.children.until(lambda: not is_connected(tool.port), tool.server, log)


def tabulate(lab: Lab, seconds: dict[str, list[float]], crowds: list[dict[str, float]], memory: int) -> None:
    """Print the table and note the goal."""
    size = lab.options.size / GIB
    rows = [
        [kind, f"{size / median(spent):.2f}", f"{size / max(spent):.2f}-{size / min(spent):.2f}"]
        for kind, spent in seconds.items()
    ]
    title = f"upload of {size:g} GiB to a server crowded by {SILENT} silent and {DRIBBLING} dribbling connections"
    lab.report.table(title, ["", "GiB/s", "worst-best"], rows)
    rate = sum(one["opened"] for one in crowds) / sum(one["seconds"] for one in crowds)
    most = max(one["most"] for one in crowds)
    lab.report.say(
        f"who is sent away comes back after {PAUSE:g} s: {rate:,.0f} new connections a second, "
        f"at most {most:,.0f} open at a time; the server's peak memory: {memory >> 20} MiB"
    )
    figure = ratio(seconds, CROWDED, ALONE)
    assert figure is not None
    lab.report.goal(Goal(name="upload in a crowd, to the same alone", figure=figure, bound="at least", limit=TO_ALONE))

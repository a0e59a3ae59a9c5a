"""How fast one large file and a tree of real files go up and down over ssh, next to the peers.

The sshd is private and on this machine; all tools ask for the same cipher.
"""

from bench.forest import Tree, python_tree, served
from bench.lab import GIB, Lab, median
from bench.peers import Scp, SshTool, fast_cipher
from bench.report import Goal
from bench.sshpeers import (
    SshCat,
    SshFtransfer,
    SshRsync,
    SshSftp,
    TreeSshFtransfer,
    TreeSshRsync,
    TreeSshSftp,
    TreeSshTar,
)
from bench.throughput import Times, available, ratio, rounds, shown
from bench.tools import Direction
from bench.treepeers import TreeScp
from bench.treerounds import DIRECTIONS, FIGURES, Plan, Results, figures, running, seconds_of, steps_of
from bench.treerounds import rounds as tree_rounds
from bench.treetools import TreeTool

RIVALS = ("scp", "sftp", "rsync")
AS_FAST = 1.0


def measure(lab: Lab) -> None:
    """Move the file, then the tree, with every tool once a round; print a table for each, each way."""
    measure_file(lab)
    measure_tree(lab)


def measure_file(lab: Lab) -> None:
    """Move the large file and a single byte."""
    place = (lab.children, lab.work, lab.folder("served"))
    known: list[SshTool] = [
        SshFtransfer(*place, command=lab.options.command),
        Scp(*place),
        SshSftp(*place),
        SshRsync(*place),
        SshCat(*place),
    ]
    tools = available(lab, known)
    if not tools:
        return
    cipher = fast_cipher() or "what ssh likes best"
    lab.report.say(f"\nover ssh: cipher {cipher}; an upload of ftransfer waits for the disk, its peers don't")
    lab.folder("fetched")
    try:
        for tool in tools:
            tool.start()
        times = rounds(lab, tools, DIRECTIONS)
    finally:
        for tool in tools:
            tool.stop()
    checks = {tool.name: tool.checks for tool in tools}
    for direction in DIRECTIONS:
        tabulate_file(lab, direction, times, checks)


def measure_tree(lab: Lab) -> None:
    """Move the tree, each time to where nothing lies."""
    tree = python_tree(lab)
    place = (lab.children, lab.work, served(lab))
    known: list[TreeTool] = [
        TreeSshFtransfer(*place, command=lab.options.command),
        TreeScp(*place),
        TreeSshSftp(*place),
        TreeSshRsync(*place),
        TreeSshTar(*place),
    ]
    with running(lab, known) as tools:
        results = tree_rounds(lab, tree, steps_of(lab, tools), Plan(runs=lab.options.runs))
    for direction in DIRECTIONS:
        tabulate_tree(lab, tree, direction, results)


def tabulate_file(lab: Lab, direction: Direction, times: Times, checks: dict[str, str]) -> None:
    """Print the table of one direction and note the goal."""
    size = lab.options.size
    whole = {name: times[direction, name, size] for name in checks if times[direction, name, size]}
    rows = [
        [
            name,
            f"{size / GIB / median(seconds):.2f}",
            f"{size / GIB / max(seconds):.2f}-{size / GIB / min(seconds):.2f}",
            *(shown(ratio(whole, name, other)) for other in (*RIVALS, "cat")),
            f"{median(times[direction, name, 1]) * 1000:.0f}",
            checks[name],
        ]
        for name, seconds in whole.items()
    ]
    if rows:
        title = f"{direction} of {size / GIB:g} GiB over ssh, whole processes, median of {lab.options.runs}"
        others = [f"to {other}" for other in (*RIVALS, "ssh cat")]
        lab.report.table(title, ["", "GiB/s", "worst-best", *others, "one byte, ms", "checked by"], rows)
    goal(lab, f"{direction} over ssh", whole)


def tabulate_tree(lab: Lab, tree: Tree, direction: Direction, results: Results) -> None:
    """Print the table of one direction and note the goal; its ratios, too, are of speeds."""
    seconds = seconds_of(results, direction)
    checks = {step.label: step.tool.checks for step in results}
    rows = [
        [name, *figures(tree, spent), *(shown(ratio(seconds, name, other)) for other in (*RIVALS, "tar")), checks[name]]
        for name, spent in seconds.items()
    ]
    if rows:
        title = f"{direction} over ssh of a tree of {tree}, whole processes, median of {lab.options.runs}"
        others = [f"to {other}" for other in (*RIVALS, "tar|ssh")]
        lab.report.table(title, ["", *FIGURES, *others, "checked by"], rows)
    goal(lab, f"tree, {direction} over ssh", seconds)


def goal(lab: Lab, what: str, seconds: dict[str, list[float]]) -> None:
    """Note the goal that ftransfer is as fast as the fastest of its rivals, as far as they were measured."""
    found = {other: figure for other in RIVALS if (figure := ratio(seconds, "ftransfer", other)) is not None}
    if found:
        figure, best = min((figure, other) for other, figure in found.items())
        name = f"{what} to the best of {', '.join(found)}, which is {best}"
        lab.report.goal(Goal(name=name, figure=figure, bound="at least", limit=AS_FAST))

"""What it takes to find out that nothing has changed: the same tree once more, next to rsync."""

from bench.forest import python_tree, served
from bench.lab import Lab
from bench.throughput import shown
from bench.treepeers import TreeRsync
from bench.treerounds import (
    DIRECTIONS,
    FIGURES,
    Plan,
    figures,
    no_slower,
    rounds,
    running,
    seconds_of,
    seconds_to,
    steps_of,
)
from bench.treetools import TreeFtransfer


def measure(lab: Lab) -> None:
    """Move the tree to where it already is; both tools go by size and mtime. It is compared before and after."""
    tree = python_tree(lab)
    place = (lab.children, lab.work, served(lab))
    with running(lab, [TreeFtransfer(*place, command=lab.options.command), TreeRsync(*place)]) as tools:
        results = rounds(lab, tree, steps_of(lab, tools), Plan(runs=lab.options.runs, again=True))
    for direction in DIRECTIONS:
        title = f"{direction} again, nothing has changed: {tree}, median of {lab.options.runs}"
        seconds = seconds_of(results, direction)
        rows = [
            [name, *figures(tree, spent)[:-1], shown(seconds_to(seconds, name, "rsync"))]
            for name, spent in seconds.items()
        ]
        if rows:  # without MiB/s: none is moved
            lab.report.table(title, ["", *FIGURES[:-1], "s to rsync"], rows)
        no_slower(lab, f"{direction} again", seconds, "rsync")

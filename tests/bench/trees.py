"""How fast a tree of real files goes up and down, next to the peers."""

from bench.forest import python_tree, served
from bench.lab import Lab
from bench.treepeers import TreeLftp, TreeRsync, TreeScp
from bench.treerounds import DIRECTIONS, Plan, no_slower, rounds, running, seconds_of, steps_of, tabulate
from bench.treetools import NO_SYNC, TreeFtransfer, TreeTar


def measure(lab: Lab) -> None:
    """Move the tree with every tool once a round, each time to where nothing lies; print a table each way."""
    tree = python_tree(lab)
    lab.report.say(f"\nthe tree, of parts of the library of Python: {tree}")
    place = (lab.children, lab.work, served(lab))
    ours = TreeFtransfer(*place, command=lab.options.command)
    with running(lab, [ours, TreeTar(*place), TreeRsync(*place), TreeScp(*place), TreeLftp(*place)]) as tools:
        if ours in tools and not ours.download_options:
            lab.report.say(f"ftransfer download has no {NO_SYNC} and waits for the disk; its peers don't")
        results = rounds(lab, tree, steps_of(lab, tools), Plan(runs=lab.options.runs))
    for direction in DIRECTIONS:
        title = f"{direction} of a tree of {tree}, whole processes, median of {lab.options.runs}"
        tabulate(lab, title, tree, results, direction)
        for other in ("rsync", "tar"):
            no_slower(lab, f"tree, {direction}", seconds_of(results, direction), other)

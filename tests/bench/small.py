"""How fast very many very small files go up and down, and how much memory that takes."""

import resource
import shutil

from bench.forest import Tree, served, small_tree
from bench.lab import MIB, Lab
from bench.memory import PEAK_MIB
from bench.report import Goal
from bench.treepeers import TreeRsync
from bench.treerounds import DIRECTIONS, Plan, Results, rounds, running, steps_of, tabulate
from bench.treetools import TreeFtransfer, TreeTar


def measure(lab: Lab) -> None:
    """Move the small files with each tool in turns, half as often as the rest."""
    tree = small_tree(lab)
    place = (lab.children, lab.work, served(lab))
    ours = TreeFtransfer(*place, command=lab.options.command)
    plan = Plan(runs=(lab.options.runs + 1) // 2)
    try:
        with running(lab, [ours, TreeTar(*place), TreeRsync(*place)]) as tools:
            results = rounds(lab, tree, steps_of(lab, tools), plan)
            server = ours.server_peak() if any(step.tool is ours for step in results) else 0
    finally:
        shutil.rmtree(tree.path)
    for direction in DIRECTIONS:
        tabulate(lab, f"{direction} of {tree}, median of {plan.runs}", tree, results, direction)
    memory(lab, tree, results, server)


def memory(lab: Lab, tree: Tree, results: Results, server: int) -> None:
    """Print the highest peaks of ftransfer: of its clients, and of the one server of all rounds."""
    peaks = {
        f"{step.direction}: client": max(run.peak_bytes for run in runs) / MIB
        for step, runs in results.items()
        if step.label == "ftransfer"
    }
    if not peaks:
        return
    peaks["server, all rounds"] = server / MIB
    # The kernel counts the bench itself, which started them, into the clients' peaks.
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    row = [f"{tree.files:,} files", *(f"{figure:.1f}" for figure in [*peaks.values(), floor])]
    lab.report.table("peak resident memory, MiB", ["", *peaks, "least to be seen of a client"], [row])
    for name, figure in peaks.items():
        goal = Goal(
            name=f"peak of {tree.files:,} files, {name}", figure=figure, bound="at most", limit=PEAK_MIB, unit=" MiB"
        )
        lab.report.goal(goal)

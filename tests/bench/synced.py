"""What it costs that a tree is on the disk before the transfer ends: figures only, in memory and on a disk."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.forest import Tree, python_tree, served
from bench.lab import GIB, Lab, file_system
from bench.throughput import shown
from bench.tools import Direction
from bench.treepeers import TreeCopy
from bench.treerounds import DIRECTIONS, FIGURES, Plan, Results, Step, figures, rounds, running, seconds_of, seconds_to
from bench.treetools import NO_SYNC, TreeFtransfer

STEPS = 5  # up and down, with and without waiting, and a copy
SYNCED, UNSYNCED = "ftransfer synced", f"ftransfer {NO_SYNC}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where trees arrive: in a folder of a server, or in one of a client; and how they are moved there."""

    label: str
    plan: Plan
    served: Path
    fetched: Path


def measure(lab: Lab) -> None:
    """Upload and download the tree with and without waiting for the disk; `cp -r` and `sync -f` stand beside.

    Right after a run that left much to be removed, the disk's figures are worse: see Plan.
    """
    tree = python_tree(lab)
    with tempfile.TemporaryDirectory(prefix="ftransfer-bench-", dir=lab.options.disk) as disk:
        for place in places(lab, tree, Path(disk)):
            results = runs_at(lab, tree, place)
            rows = [row for direction in DIRECTIONS for row in rows_of(tree, results, direction)]
            if rows:
                title = f"{tree}, to {place.label}, median of {place.plan.runs}"
                lab.report.table(title, ["", *FIGURES, f"s to {NO_SYNC}"], rows)


def places(lab: Lab, tree: Tree, disk: Path) -> list[Place]:
    """Return the fast file system and, if there is one, a real disk."""
    fast, plan = Plan(runs=lab.options.runs), Plan(runs=(lab.options.runs + 1) // 2, disk=True)
    found = [Place(label=file_system(lab.work), plan=fast, served=served(lab), fetched=lab.folder("fetched-trees"))]
    room = (plan.runs + 2) * STEPS * tree.size
    if lab.options.disk is None:
        lab.report.say("left out: the disk: no folder that is not in memory was found; name one with --disk")
    elif shutil.disk_usage(disk).free < room:
        lab.report.say(f"left out: the disk: {room / GIB:.1f} GiB are needed in {lab.options.disk}")
    else:
        (disk / "served").mkdir()
        label = f"disk ({file_system(disk)})"
        found.append(Place(label=label, plan=plan, served=disk / "served", fetched=disk / "fetched"))
    return found


def runs_at(lab: Lab, tree: Tree, place: Place) -> Results:
    """Return what the runs to one place took. Uploads have servers there; downloads come from where the tree lies."""
    here, command = (lab.children, lab.work), lab.options.command
    ups = {
        SYNCED: TreeFtransfer(*here, place.served, command=command, synced=True),
        UNSYNCED: TreeFtransfer(*here, place.served, command=command),
    }
    downs = {
        SYNCED: TreeFtransfer(*here, served(lab), command=command, synced=True),
        UNSYNCED: TreeFtransfer(*here, served(lab), command=command),
    }
    copy = TreeCopy(*here, place.served)
    with running(lab, [*ups.values(), *downs.values(), copy]) as tools:
        steps = [
            Step(label=label, direction="upload", tool=tool, target=place.served / arrival(tool))
            for label, tool in ups.items()
            if tool in tools
        ]
        if copy in tools:
            target = place.served / "to-cp"
            steps.append(Step(label="cp -r, sync -f", direction="upload", tool=copy, target=target))
        steps += [
            Step(label=label, direction="download", tool=tool, target=place.fetched / arrival(tool))
            for label, tool in downs.items()
            if tool in tools and (tool.synced or tool.download_options)
        ]
        return rounds(lab, tree, steps, place.plan)


def arrival(tool: TreeFtransfer) -> str:
    """Return the name of the folder in which a tool's trees arrive."""
    return "to-synced" if tool.synced else "to-unsynced"


def rows_of(tree: Tree, results: Results, direction: Direction) -> list[list[str]]:
    """Return the rows of one direction."""
    seconds = seconds_of(results, direction)
    return [
        [f"{direction}, {name}", *figures(tree, spent), shown(seconds_to(seconds, name, UNSYNCED))]
        for name, spent in seconds.items()
    ]

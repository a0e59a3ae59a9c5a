"""Rounds of moving trees: what each run is, in which order they come, and what the figures say."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.children import BenchError, Run
from bench.forest import Tree, must_be_same, served
from bench.lab import MIB, Lab, median
from bench.report import Goal
from bench.throughput import available, ratio, rotated, shown
from bench.tools import Direction
from bench.treetools import TreeTool

DIRECTIONS: tuple[Direction, ...] = ("upload", "download")
FIGURES = ("s", "best-worst", "files/s", "MiB/s")
PEER_NAMES = {"tar": "tar|nc", "rsync": "rsync"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One tool moving a tree in one direction, into the folder `target`."""

    label: str
    direction: Direction
    tool: TreeTool
    target: Path

    def __str__(self) -> str:
        """Name it, for messages."""
        return f"{self.label} {self.direction}"


# What each step took, in the order of the rounds; a step that failed is missing.
Results = dict[Step, list[Run]]
# By label, in the order of the rounds.
Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure the steps: in so many rounds; with fresh transfers, or the same `again`; in memory or on a `disk`.

    On a disk each run has a target of its own, and all are removed at the end: ext4 looks at every inode that was
    freed in the last minutes before it makes another, which takes many times as long as making one.
    """

    runs: int
    again: bool = False
    disk: bool = False


@contextmanager
def running(lab: Lab, tools: Sequence[TreeTool]) -> Iterator[list[TreeTool]]:
    """Start those of the tools that were asked for and that can run, say which can't, and end them all."""
    found: list[TreeTool] = []
    try:
        for tool in available(lab, tools):
            found.append(tool)
            try:
                tool.start()
            except BenchError as exc:
                lab.report.say(f"left out: {tool.name}: {exc}")
                found.pop().stop()
        yield found
    finally:
        for tool in found:
            tool.stop()


def steps_of(lab: Lab, tools: Sequence[TreeTool], directions: Sequence[Direction] = DIRECTIONS) -> list[Step]:
    """Return a step for each tool each way, each with a folder of its own beside the tree."""
    places = {"upload": served(lab), "download": lab.folder("fetched-trees")}
    return [
        Step(label=tool.name, direction=direction, tool=tool, target=places[direction] / f"to-{tool.name}")
        for direction in directions
        for tool in tools
    ]


def rounds(lab: Lab, tree: Tree, steps: Sequence[Step], plan: Plan) -> Results:
    """Return what all runs took. Round 0 warms up; what arrived in it is compared, and not counted.

    A step that fails is named and left out of the rest.
    """
    results: Results = {step: [] for step in steps}
    try:
        for number in range(plan.runs + 1):
            for step in rotated(list(results), number):
                try:
                    run = move(tree, step, plan, number)
                except BenchError as exc:
                    lab.report.say(f"failed: {step}: {exc}")
                    del results[step]
                else:
                    results[step] += [run] if number else []
    finally:
        for step in steps:
            shutil.rmtree(step.target, ignore_errors=True)
    return results


def move(tree: Tree, step: Step, plan: Plan, number: int) -> Run:
    """Move the tree once: to where nothing lies, or `again` to where it already does."""
    target = step.target / str(number) if plan.disk else step.target
    if number == 0 or not plan.again:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    if plan.disk:
        os.sync()  # what was left to be written must not be paid for by this run
    if step.direction == "upload":
        run = step.tool.upload(tree.path, os.fspath(target.relative_to(step.tool.served)))
    else:
        run = step.tool.download(tree.path.name, target)
    if number == 0 or (plan.again and number == plan.runs):
        must_be_same(
            tree.path,
            target / tree.path.name,
            by=str(step),
            modes=step.tool.keeps_modes,
            mtime_step_ns=step.tool.mtime_step_ns,
        )
    if not (plan.again or plan.disk):
        shutil.rmtree(target)
    return run


def seconds_of(results: Results, direction: Direction) -> Seconds:
    """Return the seconds of one direction, by label."""
    return {step.label: [run.seconds for run in runs] for step, runs in results.items() if step.direction == direction}


def seconds_to(seconds: Seconds, name: str, other: str) -> float | None:
    """Return how many times as long as another tool one takes: the median of the ratios within each round."""
    return ratio(seconds, other, name)


def figures(tree: Tree, seconds: Sequence[float]) -> list[str]:
    """Return the cells of a row that every table has, those under FIGURES."""
    middle = median(seconds)
    return [
        f"{middle:.3f}",
        f"{min(seconds):.3f}-{max(seconds):.3f}",
        f"{tree.files / middle:,.0f}",
        f"{tree.size / MIB / middle:.1f}",
    ]


def tabulate(lab: Lab, title: str, tree: Tree, results: Results, direction: Direction) -> None:
    """Print the table of one direction, with the seconds of each tool to those of tar and of rsync."""
    seconds = seconds_of(results, direction)
    checks = {step.label: step.tool.checks for step in results}
    rows = [
        [
            name,
            *figures(tree, spent),
            shown(seconds_to(seconds, name, "tar")),
            shown(seconds_to(seconds, name, "rsync")),
            checks[name],
        ]
        for name, spent in seconds.items()
    ]
    if rows:
        head = ["", *FIGURES, "s to tar|nc", "s to rsync", "checked by"]
        lab.report.table(title, head, rows)


def no_slower(lab: Lab, what: str, seconds: Seconds, other: str, *, limit: float = 1.0) -> None:
    """Note the goal that ftransfer takes no longer than another tool, as far as both were measured."""
    figure = seconds_to(seconds, "ftransfer", other)
    if figure is not None:
        name = f"{what}, seconds to those of {PEER_NAMES[other]}"
        lab.report.goal(Goal(name=name, figure=figure, bound="at most", limit=limit))

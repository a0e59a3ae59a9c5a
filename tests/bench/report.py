"""Tables and goals: printed as they come, and kept for `--json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure, and what it should at least, or at most, be."""

    name: str
    figure: float
    bound: Literal["at least", "at most"]
    limit: float
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure keeps to the limit."""
        return self.figure >= self.limit if self.bound == "at least" else self.figure <= self.limit

    def __str__(self) -> str:
        """Say it in one line."""
        verdict = "reached    " if self.reached else "not reached"
        return f"{verdict}  {self.name}: {self.figure:.3g}{self.unit} ({self.bound} {self.limit:g}{self.unit})"


@dataclass
class Report:
    """All that was measured, in the order in which it was."""

    facts: list[str] = field(default_factory=list)
    tables: list[dict[str, object]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print one fact and keep it: what is not installed, what was left out, where the files lie."""
        self.facts.append(text)
        print(text, flush=True)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, the first column to the left, figures to the right."""
        self.tables.append({"title": title, "rows": [dict(zip(head, row, strict=True)) for row in rows]})
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        print(f"\n{title}", flush=True)
        for row in (head, ["-" * width for width in widths], *rows):
            first, *rest = (
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            print("  " + "  ".join([first, *rest]).rstrip(), flush=True)

    def goal(self, goal: Goal) -> None:
        """Keep a goal for the summary at the end."""
        self.goals.append(goal)

    def summary(self) -> None:
        """Print every goal with its verdict."""
        print("\nGoals")
        for goal in self.goals:
            print(f"  {goal}")
        if not self.goals:
            print("  none was measured")

    def write(self, path: Path) -> None:
        """Write all of it as one JSON object."""
        goals = [asdict(goal) | {"reached": goal.reached} for goal in self.goals]
        text = json.dumps({"facts": self.facts, "tables": self.tables, "goals": goals}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")

"""The pages of docs/ as the tests read them: sections, tables, fenced blocks."""

import re
from pathlib import Path

TOP = Path(__file__).parent.parent
DOCS = TOP / "docs"
PAGES = [
    TOP / "README.md",
    TOP / "SECURITY.md",
    *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
]


def page(name: str) -> str:
    """Return the text of a page of docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """Return what stands under a heading, up to the next of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,6}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title!r}"
    level = len(found[1])
    whole = re.compile(rf"^#{{{level}}} {re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)", re.MULTILINE | re.DOTALL)
    match = whole.search(text)
    assert match
    return match[1]


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a text as rows of cells, without their heads."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        found.append(rows[2:])
    return found


def bare(cell: str) -> str:
    """Return a cell without its code marks."""
    return cell.replace("`", "")


def fenced(text: str, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a language: the line on which each begins, and its text."""
    blocks = re.finditer(rf"^```{re.escape(language)}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in blocks]

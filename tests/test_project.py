"""The shape of the project: what lies at the top, which module may import which, how long things may get."""

import ast
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pages import page, section, tables

import ftransfer

TOP = Path(__file__).parent.parent
PACKAGE = TOP / "ftransfer"
SOURCES = sorted(PACKAGE.rglob("*.py"))

ALLOWED_AT_THE_TOP = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "docs",
    "ftransfer",
    "pyproject.toml",
    "sample_files",
    "tests",
}

# Which module may import which: only one of a lower row. Modules of one row know nothing of each other; the
# files of one folder (store/, cli/) may import each other. `ftransfer` is its __init__.py, the public face.
ROWS = [
    ["errors"],
    ["xxh3", "pipes", "versions"],
    ["xxh"],
    ["paths", "digests", "progress", "filters", "modes", "rights", "statedir", "archive"],
    ["wire", "tokens", "tls", "accesslog"],
    ["session"],
    ["channel"],
    ["store", "pacing"],
    ["sending", "receiving", "sources", "results", "packing", "unpacking", "planning", "merging"],
    ["net", "tally"],
    ["users", "known", "listening", "shells"],
    ["admission", "identity", "ssh"],
    ["host", "weighing"],
    ["link", "asking", "questions", "answering", "packstream", "largefiles", "reception", "greeting"],
    [
        *("uploading", "downloading", "several", "comparing"),
        *("bulkhashing", "rehearsing", "treetransfer", "treeserving", "treewalks"),
    ],
    ["singly", "treeuploading", "treedownloading", "treeverifying", "mirroring", "serving"],
    ["treejobs"],
    ["client", "server"],
    ["connecting"],
    ["ftransfer"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
# From the package itself anyone may take these: they need no other module.
FREE_NAMES = {"__version__", "SOFTWARE"}

# The core is pure: bytes and names in, values out. Only the command knows the terminal.
IMPURE = {
    "select",
    "selectors",
    "shutil",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "tqdm",
}
PURE = {"errors", "versions", "xxh3", "paths", "progress", "modes", "wire", "session", "merging"}

LINES_OF_A_MODULE = 400
LINES_OF_A_FUNCTION = 60


@cache
def tracked() -> list[str]:
    """Return the paths that git tracks; skip, aloud, where this is no checkout or nothing was ever added."""
    try:
        run = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"not a git checkout: {exc}")
    paths = [path for path in run.stdout.decode().split("\0") if path]
    if not paths:
        pytest.skip("git tracks no file yet")
    return paths


def module_name(path: Path) -> str:
    """Return the dotted name of a source file; a folder's __init__.py has the folder's name."""
    parts = path.relative_to(TOP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def row_name(module: str) -> str:
    """Return the name under which a module stands in ROWS: the part after `ftransfer.`, to the next dot."""
    return module.split(".")[1] if "." in module else module


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the dotted names that a source file imports, anywhere in it, relative ones resolved."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                if submodule in MODULES:
                    yield submodule
                elif origin != "ftransfer" or alias.name not in FREE_NAMES:
                    yield origin


def may_import(importer: str, imported: str) -> bool:
    """Tell whether a module may import another one of the package."""
    mine, other = row_name(importer), row_name(imported)
    return mine == other or RANK[other] < RANK[mine]


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of lines of every function in a source file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_top_level_holds_only_what_belongs_there() -> None:
    """Whatever else is needed finds its place in one of the folders."""
    top = {path.partition("/")[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} - ALLOWED_AT_THE_TOP == set()


def test_nobody_is_told_to_install_someone_elses_package() -> None:
    """The name `ftransfer` on PyPI is not ours: every install command names ftransfer-tool."""
    installers = "pip3? install|pipx install|pipx run|uv tool install|uv add|uvx"
    wrong = re.compile(rf"({installers})\s+(-\S+\s+)*['\"]?ftransfer(?![-\w])")
    found = []
    for name in tracked():
        if (path := TOP / name).is_file():
            text = path.read_bytes().decode(errors="replace")
            found += [f"{name}: {match[0]}" for match in wrong.finditer(text)]
    assert found == []


def test_every_module_has_its_place_in_the_order() -> None:
    """A new module is put into ROWS before anything may import it."""
    assert {row_name(module) for module in MODULES} - RANK.keys() == set()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    """A module imports only from rows below its own, from the command down to the errors."""
    importer = module_name(path)
    inside = [name for name in imported_modules(path) if name.partition(".")[0] == "ftransfer"]
    unknown = [name for name in inside if row_name(name) not in RANK]
    assert unknown == []
    assert [f"{importer} imports {name}" for name in inside if not may_import(importer, name)] == []


def test_the_table_of_modules_is_that_of_the_code() -> None:
    """docs/architecture.md has each module in a row, and each imports only from its own row and those above it."""
    (rows,) = tables(section(page("architecture.md"), "Modules"))
    place = {name: number for number, row in enumerate(rows) for name in re.findall(r"`(\w+)`", row[0])}
    assert place.keys() == RANK.keys() - {"ftransfer", "__main__"}
    for path in SOURCES:
        importer = row_name(module_name(path))
        others = {row_name(name) for name in imported_modules(path)} & place.keys()
        assert [name for name in others if importer in place and place[name] > place[importer]] == [], importer


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_the_core_is_pure_and_only_the_command_knows_bars(path: Path) -> None:
    """No socket, clock, thread or bar below the channel; tqdm nowhere but in cli/."""
    row = row_name(module_name(path))
    outside = {name.partition(".")[0] for name in imported_modules(path)}
    banned = (IMPURE if row in PURE else set()) | ({"tqdm"} if row != "cli" else set())
    assert outside & banned == set()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_and_functions_stay_short(path: Path) -> None:
    """A module fits into a head, a function onto a screen."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_OF_A_MODULE
    assert [(name, lines) for name, lines in function_lengths(path) if lines > LINES_OF_A_FUNCTION] == []


def test_the_installed_package_is_tested() -> None:
    """The tests import what a user would have installed, not the folder next to them."""
    installed = importlib.metadata.distribution("ftransfer-tool")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("the package is installed in editable mode: the wheel is not tested")
    assert not Path(ftransfer.__file__).is_relative_to(PACKAGE)


def test_the_installed_package_is_typed_and_complete() -> None:
    """The wheel holds py.typed and every module, the bytes of the tree, and nothing beside the package."""
    files = importlib.metadata.files("ftransfer-tool") or []
    held = {str(path): path for path in files if path.parts[0] == "ftransfer"}
    in_tree = {str(path.relative_to(TOP)) for path in [*SOURCES, PACKAGE / "py.typed"]}
    if not held:
        pytest.skip("the package is installed in editable mode: the wheel is not tested")
    assert in_tree <= held.keys()
    assert [name for name in in_tree if held[name].read_binary() != (TOP / name).read_bytes()] == []
    beside = {path.parts[0] for path in files} - {"ftransfer", "..", "__pycache__"}
    assert {name for name in beside if not name.endswith(".dist-info")} == set()

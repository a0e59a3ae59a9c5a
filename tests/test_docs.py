"""The examples of the pages: Python runs, commands parse, links to files hold.

Every ```python block of a page runs, in order and in one namespace, in a folder of its own that holds `report.txt`; a
server listens at `url`. Every command of a ```console, ```sh or ```ini (a unit of systemd) block is given to the real
parser.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, PAGES, TOP, fenced, page

import ftransfer
from ftransfer import net
from ftransfer.cli.arguments import build

REPORT = b"twelve bytes"


def name_of(path: Path) -> str:
    """Return a page's name for the list of tests."""
    return str(path.relative_to(TOP))


WITH_PYTHON = [path for path in PAGES if fenced(path.read_text(encoding="utf-8"), "python")]


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(path: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it raises; what it asserts holds."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "report.txt").write_bytes(REPORT)
    monkeypatch.chdir(here)
    with ftransfer.Server(root) as server:
        names: dict[str, object] = {"url": server.urls[0], "__name__": "example"}
        try:
            for line, text in fenced(path.read_text(encoding="utf-8"), "python"):
                exec(compile("\n" * (line - 1) + text, str(path), "exec"), names)
        finally:
            for value in names.values():
                if isinstance(value, ftransfer.Remote):
                    value.close()


def commands(text: str, *, tables: bool) -> list[str]:
    """Return the commands of a page that call ftransfer, without what the shell does with them.

    Arguments: `tables`, whether what stands in tables can be typed, too.
    """
    found = []
    typed = [block for language in ("sh", "ini") for _, block in fenced(text, language)]
    for _, session in fenced(text, "console"):
        joined = session.replace("\\\n", " ").replace("log in with: ", "$ ")  # what the server prints is typed, too
        typed.append("\n".join(line for line in joined.splitlines() if line.startswith("$ ")))
    rows = "\n".join(line for line in text.replace("\\|", "|").splitlines() if line.startswith("| "))
    typed += re.findall(r"`(ftransfer [a-z]+ [^`]+)`", rows) if tables else []
    for line in "\n".join(typed).replace("\\\n", " ").splitlines():
        for part in re.split(r"\||&&|;|\$\(", line):
            called = re.search(r"(?:^|\s|/)(ftransfer\s.*?)(?:\s\d?>.*|\)\s*|\s*&\s*|\s#.*)?$", part)
            if called and not line.startswith("#"):
                found.append(called[1].strip())
    return found


def _commands_of(path: Path) -> list[str]:
    return commands(path.read_text(encoding="utf-8"), tables=path.parent.name == "howto")


COMMANDS = [(path, command) for path in PAGES for command in _commands_of(path)]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda v: name_of(v) if isinstance(v, Path) else v)
def test_the_commands_of_a_page_can_be_typed(path: Path, command: str) -> None:
    """No page shows an option that does not exist, or an address that is none."""
    words = shlex.split(command)[1:]
    if words in (["--version"], ["--help"]) or words[:1] == ["COMMAND"]:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "exit", lambda status: pytest.fail(f"{path}: {command}: status {status}"))
        options = build().parse_args(words)
    assert callable(options.run)
    for word in words:
        if net.is_url(word):
            net.parse_url(word)


UNITS = [text for _, text in fenced(page("howto/services.md"), "ini") if text.startswith("[Unit]")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("number", range(len(UNITS)))
def test_the_units_are_understood(tmp_path: Path, number: int) -> None:
    """There is no line in a unit of the page that systemd finds fault with."""
    unit = tmp_path / "ftransfer.service"
    unit.write_text(UNITS[number].replace("/opt/ftransfer/bin/ftransfer", sys.executable), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", unit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert [line for line in done.stderr.splitlines() if line.startswith(f"{unit}:")] == []


def test_there_are_commands_to_check() -> None:
    """The pages that show sessions are among those that were looked at."""
    pages = {path.name for path, _ in COMMANDS}
    assert {"getting-started.md", "reference.md", "folders.md", "scripts.md", "streams.md"} <= pages
    assert {"machines.md", "users.md", "services.md", "certificates.md", "networks.md", "ssh.md", "README.md"} <= pages


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(path: Path) -> None:
    """A link to a file of the project names one that exists, and a heading in it that exists."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_test_that_a_page_names_exists() -> None:
    """A page that says which test tries to break something names a file that is there, and a test in it."""
    for path in PAGES:
        for name, test in re.findall(r"tests/(test_\w+\.py)(?:::(\w+))?", path.read_text(encoding="utf-8")):
            file = DOCS.parent / "tests" / name
            assert file.is_file(), f"{name_of(path)}: {name}"
            assert f"def {test}" in file.read_text(encoding="utf-8"), f"{name_of(path)}: {name}::{test}"

"""The package as one file: built the same each time, settled by any Python, and complete without anything installed."""

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import xxhash
from support import PATIENCE, needs_no_root, staged

import ftransfer
from ftransfer import archive

SETTLE = "import sys; sys.path.insert(0, sys.argv[1]); from ftransfer.archive import settle; settle(*sys.argv[1:])"
NO_LIBRARY = """
import ctypes, sys
class CDLL(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name and "xxhash" in name:
            raise OSError(name)
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = CDLL
sys.argv[0] = sys.argv.pop(1)
sys.path[0] = sys.argv[0]
from ftransfer.cli import main
sys.exit(main())
"""
"""Runs the command out of an archive as on a machine that has no libxxhash."""
NEWER, OLDER = ("3.11", "3.12", "3.13"), ("3.8", "3.9", "3.10")


class Settled(NamedTuple):
    """An archive where it belongs, and what was said of it."""

    path: Path
    said: dict[str, Any]


def _environment() -> dict[str, str]:
    """Return an environment in which nothing leads to a module but what the Python that runs brings along."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**inherited, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, check=False, timeout=PATIENCE, env=_environment(), **options
    )


@cache
def _python(version: str) -> str:
    """Return a Python of a version that has no xxhash; skip the test, aloud, where none is installed."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    places = [getattr(sys, "_base_executable", ""), *sorted(map(str, versions.glob(f"{version}.*/bin/python")))]
    check = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != {version!r})"
    for place in [*places, shutil.which(f"python{version}") or ""]:
        if place and _run(place, "-c", check).returncode == 0 and _run(place, "-c", "import xxhash").returncode:
            return place
    pytest.skip(f"no Python {version} without xxhash is installed")


@cache
def _bare() -> str:
    """Return some Python that can run this and has no xxhash."""
    for version in NEWER:
        try:
            return _python(version)
        except pytest.skip.Exception:
            pass
    pytest.skip("each Python that is installed has xxhash")


@pytest.fixture(scope="module")
def built() -> bytes:
    """The archive as it is sent."""
    return archive.build()


@pytest.fixture(scope="module")
def settled(built: bytes, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Settled]:
    """A function that settles the archive with a Python, once."""

    @cache
    def settle(python: str) -> Settled:
        folder = tmp_path_factory.mktemp("cache")
        return _settle(python, built, folder, folder / archive.VERSION_NAME)

    return settle


def _settle(python: str, built: bytes, folder: Path, target: Path) -> Settled:
    source = folder / "sent"
    source.write_bytes(built)
    done = _run(python, "-c", SETTLE, source, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert not source.exists()
    return Settled(target, json.loads(done.stdout))


@contextmanager
def _serving(*command: object, listen: Path) -> Iterator[str]:
    """Run a server on a socket, and give its address."""
    words = [*map(str, command), "--listen", f"unix:{listen}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()) as it:
        try:
            assert it.stdout is not None
            line = it.stdout.readline()
            assert "ft+unix://" in line, line + it.stdout.read()
            yield f"ft+unix://{quote(str(listen), safe='')}/"
        finally:
            it.terminate()


def _carries_files(command: list[object], tmp_path: Path) -> None:
    """Check that a server and a client out of an archive move a file and a folder, there and back."""
    here, root, back = (tmp_path / name for name in ("here", "root", "back"))
    for folder in (here, root, back):
        folder.mkdir()
    (here / "large").write_bytes(os.urandom(3 << 20))
    for number in range(30):
        (here / f"small {number}").write_bytes(os.urandom(number * 50))
    with _serving(*command, "serve", root, listen=tmp_path / "s") as url:
        for words in (("upload", here, url), ("download", f"{url}here", f"{back}/"), ("verify", here, url)):
            done = _run(*command, *words)
            assert done.returncode == 0, done.stderr
        digest = _run(*command, "checksum", "--algorithm", "xxh128", f"{url}here/large").stdout
    assert digest.split()[0] == xxhash.xxh3_128_hexdigest((here / "large").read_bytes())
    expected = {path.name: path.read_bytes() for path in here.iterdir()}
    for folder in (root, back):
        assert {path.name: path.read_bytes() for path in (folder / "here").iterdir()} == expected
    assert staged(root) == []


def test_it_is_built_the_same_each_time(built: bytes) -> None:
    """Two builds of one version are equal byte for byte."""
    assert archive.build() == built


def test_it_holds_every_module_and_what_starts_them(built: bytes) -> None:
    """All sources of the package are in it, and nothing else but the start."""
    folder = Path(ftransfer.__file__).parent
    expected = {f"ftransfer/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.py")}
    with zipfile.ZipFile(io.BytesIO(built)) as archived:
        assert archived.testzip() is None
        held = {name: archived.read(name) for name in archived.namelist()}
    assert b"sys.exit(main())" in held.pop("__main__.py")
    assert held == expected
    assert len(built) < sum(map(len, expected.values())) / 2


@pytest.mark.parametrize("version", [*NEWER, "running"])
def test_every_python_settles_and_runs_it(settled: Callable[[str], Settled], version: str, tmp_path: Path) -> None:
    """The file says what it is for that Python, is a command that moves files, and nobody else can use it."""
    python = sys.executable if version == "running" else _python(version)
    path, said = settled(python)
    assert said.keys() == {"python", "xxh", "path"}
    assert said["path"] == str(path)
    assert said["python"].startswith(version) or version == "running"
    assert (said["xxh"] == "xxhash") == (version == "running")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    done = _run(path, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ftransfer {ftransfer.__version__}\n")
    _carries_files([path], tmp_path)


def test_it_carries_files_with_the_library_alone(settled: Callable[[str], Settled], tmp_path: Path) -> None:
    """Where there is libxxhash, but not the module, it is used."""
    path, said = settled(_bare())
    if said["xxh"] != "libxxhash":
        pytest.skip("there is no libxxhash")
    _carries_files([path], tmp_path)


def test_it_carries_files_in_plain_python(settled: Callable[[str], Settled], tmp_path: Path) -> None:
    """Where there is neither the module nor the library, everything works all the same."""
    path, _ = settled(_bare())
    source = "import sys\nfrom ftransfer.xxh import SOURCE\nprint(SOURCE)"
    told = _run(_bare(), "-c", NO_LIBRARY.replace("from ftransfer.cli import main\nsys.exit(main())", source), path)
    assert told.stdout == "python\n", told.stderr
    _carries_files([_bare(), "-c", NO_LIBRARY, path], tmp_path)


def test_what_it_compiled_is_what_runs(settled: Callable[[str], Settled], tmp_path: Path) -> None:
    """Python takes the compiled modules, without which it would start slowly; tracebacks show the source."""
    path, _ = settled(_bare())
    code = (
        "import sys, linecache; sys.path.insert(0, sys.argv[1]); from ftransfer import errors; import ftransfer.cli\n"
        "print(errors.__file__, ftransfer.cli.__file__, errors.from_os.__code__.co_filename)\n"
        "print(linecache.getline(errors.from_os.__code__.co_filename, errors.from_os.__code__.co_firstlineno,"
        " vars(errors)))"
    )
    done = _run(_bare(), "-c", code, path, cwd=tmp_path)
    assert done.stdout.split("\n")[0].split() == [
        f"{path}/ftransfer/errors.pyc",
        f"{path}/ftransfer/cli/__init__.pyc",
        f"{path}/ftransfer/errors.py",
    ]
    assert done.stdout.split("\n")[1].startswith("def from_os("), done.stderr


def test_another_python_takes_the_source(settled: Callable[[str], Settled]) -> None:
    """An upgrade of Python does not break what an earlier one compiled."""
    path, _ = settled(sys.executable)
    for version in NEWER:
        if version != "{}.{}".format(*sys.version_info[:2]):
            done = _run(_python(version), path, "--version")
            assert (done.returncode, done.stdout) == (0, f"ftransfer {ftransfer.__version__}\n")
            return
    pytest.skip("only one Python is installed")


def test_an_archive_builds_the_archive_it_came_from(
    settled: Callable[[str], Settled], built: bytes, tmp_path: Path
) -> None:
    """What was copied to a machine can be copied on from there, and is the same."""
    path, _ = settled(_bare())
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from ftransfer import archive as a; f = open(sys.argv[2], 'wb')"
    )
    done = _run(_bare(), "-c", f"{code}; f.write(a.build())", path, tmp_path / "again")
    assert (done.returncode, done.stderr) == (0, "")
    with zipfile.ZipFile(tmp_path / "again") as again, zipfile.ZipFile(io.BytesIO(built)) as first:
        assert [(i.filename, i.CRC, i.date_time) for i in again.infolist()] == [
            (i.filename, i.CRC, i.date_time) for i in first.infolist()
        ]


@pytest.mark.parametrize("name", ["with blanks", "x" * 140, 'it\'s "quoted" $HOME'])
def test_a_python_of_any_name_runs_it(built: bytes, tmp_path: Path, name: str) -> None:
    """Blanks, quotes and paths that are too long for a shebang are no obstacle; neither are they in the words."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "python").symlink_to(_bare())
    target = folder / "ft"
    _settle(str(folder / "python"), built, tmp_path, target)
    assert target.read_bytes().split(b"\n")[0] == b"#!/bin/sh"
    assert _run(target, "--version").stdout == f"ftransfer {ftransfer.__version__}\n"
    (tmp_path / "a  b$x").write_bytes(b"hello")
    done = _run("ft", "checksum", "a  b$x", cwd=tmp_path, executable=str(target))
    assert done.stdout.split(maxsplit=1) == [xxhash.xxh3_128_hexdigest(b"hello"), "a  b$x\n"], done.stderr


def test_it_replaces_what_was_there(built: bytes, tmp_path: Path) -> None:
    """An older file of the name is replaced, under any umask, and nothing else is left in the folder."""
    target = tmp_path / archive.VERSION_NAME
    target.write_bytes(b"old")
    target.chmod(0o444)
    (tmp_path / "sent").write_bytes(built)
    done = _run("/bin/sh", "-c", 'umask 277; exec "$@"', "sh", _bare(), "-c", SETTLE, tmp_path / "sent", target)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert _run(target, "--version").returncode == 0


def test_a_target_that_cannot_be_is_said_in_a_sentence(built: bytes, tmp_path: Path) -> None:
    """No traceback, a status that is not 0, and nothing stays behind."""
    (tmp_path / "sent").write_bytes(built)
    (tmp_path / "taken").mkdir()
    done = _run(_bare(), "-c", SETTLE, tmp_path / "sent", tmp_path / "taken")
    assert (done.returncode > 0, done.stdout) == (True, "")
    assert re.fullmatch(r"cannot put ftransfer at \S+/taken: .+\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@needs_no_root
def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(built: bytes, tmp_path: Path) -> None:
    """The same where the user has no right to the cache folder."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o500)
    (tmp_path / "sent").write_bytes(built)
    done = _run(_bare(), "-c", SETTLE, tmp_path / "sent", folder / "ft")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


def test_an_archive_that_was_damaged_on_the_way_is_not_settled(built: bytes, tmp_path: Path) -> None:
    """A changed byte is found, by a checksum or sooner, also in a module that `settle` does not need."""
    with zipfile.ZipFile(io.BytesIO(built)) as archived:
        info = archived.getinfo("ftransfer/server.py")
    for at in range(info.header_offset, info.header_offset + info.compress_size, 500):
        damaged = bytearray(built)
        damaged[at] ^= 0x55
        (tmp_path / "sent").write_bytes(damaged)
        with pytest.raises(SystemExit, match="the archive did not arrive as it was sent: "):
            archive.settle(str(tmp_path / "sent"), str(tmp_path / "ft"))
        assert not (tmp_path / "ft").exists()


@pytest.mark.parametrize("version", OLDER)
def test_an_older_python_is_told_so(built: bytes, tmp_path: Path, version: str) -> None:
    """Neither settling nor running ends in a traceback where Python is too old, and nothing is put anywhere."""
    python = _python(version)
    (tmp_path / "sent").write_bytes(built)
    for words in (("-c", SETTLE, tmp_path / "sent", tmp_path / "ft"), (tmp_path / "sent", "--version")):
        done = _run(python, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(rf"ftransfer needs Python 3\.11 or later, and \S+ is {re.escape(version)}.*\n", done.stderr)
    assert not (tmp_path / "ft").exists()

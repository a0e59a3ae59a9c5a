"""Folder trees to be moved: how they are made, and whether what arrived is the same."""

import filecmp
import os
import shutil
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench.children import BenchError
from bench.lab import MIB, Lab

BYTES_PER_FILE = 100 * MIB // 3000  # 300 MiB in 9,000 files
SMALL_BYTES, SMALL_FOLDERS = 100, 100
CACHES = {"__pycache__"}
ENOUGH = 0.01  # a turn that adds less than this part of what is wanted is the last


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A folder, and what is in it: files, folders (itself among them), bytes."""

    path: Path
    files: int
    folders: int
    size: int

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.files:,} files in {self.folders:,} folders, {self.size / MIB:.1f} MiB"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file or folder of the installation of Python, of which a tree is put together."""

    path: Path
    files: int
    size: int


def served(lab: Lab) -> Path:
    """Return the folder that all tools serve: the trees lie in it, and uploads arrive beside them."""
    return lab.folder("served-trees")


def python_tree(lab: Lab) -> Tree:
    """Return the tree of real files, made once: parts of the library of this Python, repeated if it has too few.

    The same installation always makes the same tree.
    """
    path = served(lab) / "python-lib"
    if not path.exists():
        library = Path(sysconfig.get_path("stdlib"))
        files = lab.options.tree_files
        for turn, part in choose(list(parts(library)), files, files * BYTES_PER_FILE):
            copy(part.path, path / str(turn) / part.path.relative_to(library))
        if not path.exists():
            raise BenchError(f"no part of {library} is small enough for a tree of {files} files")
    return survey(path)


def small_tree(lab: Lab) -> Tree:
    """Return the tree of many small files, made once."""
    path = served(lab) / "small-files"
    if not path.exists():
        for number in range(lab.options.small):
            folder = path / f"{number * SMALL_FOLDERS // lab.options.small:02}"
            if not folder.exists():
                folder.mkdir(parents=True)
            (folder / f"{number:07}.txt").write_bytes((f"{number:07} " * SMALL_BYTES)[:SMALL_BYTES].encode())
    return survey(path)


def parts(library: Path) -> Iterator[Part]:
    """Yield what lies in the library and in its site-packages, each folder as one part."""
    for folder in (library, library / "site-packages"):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        for path in (folder / name for name in names if name not in {"site-packages", *CACHES}):
            sizes = [file.lstat().st_size for file in regular_files(path)]
            if sizes:
                yield Part(path=path, files=len(sizes), size=sum(sizes))


def regular_files(path: Path) -> Iterator[Path]:
    """Yield the file itself or every file below the folder, without caches, links and what can't be read."""
    if path.is_dir() and not path.is_symlink():
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(set(folders) - CACHES)
            yield from (Path(folder, name) for name in sorted(names) if usable(Path(folder, name)))
    elif usable(path):
        yield path


def usable(path: Path) -> bool:
    """Tell whether it is a file that may be copied."""
    return path.suffix != ".pyc" and stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK)


def choose(available: Sequence[Part], files: int, size: int) -> list[tuple[int, Part]]:
    """Return parts that make up about so many files and so many bytes, each with the turn in which it is taken.

    A turn takes each part at most once. The next is always the one that keeps files and bytes in proportion.
    """
    chosen: list[tuple[int, Part]] = []
    have_files = have_size = 0
    for turn in count(1):
        left, begun = list(available), (have_files, have_size)
        while fitting := [part for part in left if have_files + part.files <= files and have_size + part.size <= size]:
            ratios = [abs((have_files + part.files) / files - (have_size + part.size) / size) for part in fitting]
            best = fitting[ratios.index(min(ratios))]
            left.remove(best)
            chosen.append((turn, best))
            have_files, have_size = have_files + best.files, have_size + best.size
        if have_files - begun[0] < files * ENOUGH and have_size - begun[1] < size * ENOUGH:
            break
    return chosen


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder with its times; modes are 0644, or 0755 where the owner may run it."""
    for path in regular_files(source):
        name = target / path.relative_to(source)
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, name)
        status = path.stat()
        name.chmod(0o755 if status.st_mode & stat.S_IXUSR else 0o644)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns))


def survey(path: Path) -> Tree:
    """Count what is in a tree."""
    files = folders = size = 0
    for folder, _, names in os.walk(path):
        folders += 1
        files += len(names)
        size += sum(Path(folder, name).lstat().st_size for name in names)
    return Tree(path=path, files=files, folders=folders, size=size)


def must_be_same(source: Path, target: Path, *, by: str, modes: bool, mtime_step_ns: int) -> None:
    """Compare two trees, a folder at a time so that the bench itself keeps small; a BenchError names the tool.

    Names, kinds, sizes and bytes have to be equal; so have to be the modes and mtimes of files, the latter in
    steps of so many nanoseconds, where the tool keeps them.
    """
    wanted, found = entries(source), entries(target)
    if wanted.keys() != found.keys():
        name = min(wanted.keys() ^ found.keys())
        raise BenchError(f"{by}: {target / name} {'is missing' if name in wanted else 'is too much'}")
    filecmp.clear_cache()
    for name, entry in wanted.items():
        path, ours, theirs = target / name, entry.stat(), found[name].stat(follow_symlinks=False)
        if stat.S_IFMT(ours.st_mode) != stat.S_IFMT(theirs.st_mode):
            raise BenchError(f"{by}: {path} is of another kind")
        if entry.is_dir():
            must_be_same(source / name, path, by=by, modes=modes, mtime_step_ns=mtime_step_ns)
        elif ours.st_size != theirs.st_size or not filecmp.cmp(source / name, path, shallow=False):
            raise BenchError(f"{by}: {path} has other bytes")
        elif modes and stat.S_IMODE(ours.st_mode) != stat.S_IMODE(theirs.st_mode):
            raise BenchError(f"{by}: {path} has another mode")
        elif mtime_step_ns and ours.st_mtime_ns // mtime_step_ns != theirs.st_mtime_ns // mtime_step_ns:
            raise BenchError(f"{by}: {path} has another mtime")


def entries(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Return what lies in a folder, by name."""
    if not folder.is_dir():
        raise BenchError(f"{folder} is missing")
    with os.scandir(folder) as found:
        return {entry.name: entry for entry in found}

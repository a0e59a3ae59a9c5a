"""What all measurements share: the options, the folders, the source file, and where the results go."""

import filecmp
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.children import BenchError, Children
from bench.report import Report

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; sizes are bytes, times are seconds."""

    size: int
    runs: int
    only: Sequence[str]
    tools: Sequence[str]
    folder: Path
    disk: Path | None
    huge: int
    command: Path
    patience: float
    tree_files: int
    small: int


@dataclass(kw_only=True)
class Lab:
    """One session of measuring: a work folder where the files lie, and the processes that run."""

    options: Options
    children: Children
    work: Path
    report: Report
    _sources: dict[int, Path] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Return a folder of the work folder, made if need be."""
        path = self.work / name
        path.mkdir(exist_ok=True)
        return path

    def source(self, size: int) -> Path:
        """Return a file of `size` random bytes, made once."""
        if size not in self._sources:
            self._sources[size] = random_file(self.folder("sources") / f"source-{size}.bin", size)
        return self._sources[size]


def random_file(path: Path, size: int) -> Path:
    """Write `size` random bytes, a MiB at a time so that the bench itself keeps small."""
    with path.open("wb") as file:
        for offset in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - offset)))
    return path


def sparse_file(path: Path, size: int) -> Path:
    """Make a file that is mostly holes, with a MiB of random bytes at each 16 MiB."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 16 * MIB):
            file.seek(offset)
            file.write(os.urandom(min(MIB, size - offset)))
    return path


def must_be_equal(source: Path, target: Path, *, by: str) -> None:
    """Compare two files byte for byte; a BenchError that names the tool if they differ."""
    filecmp.clear_cache()
    if not target.is_file() or not filecmp.cmp(source, target, shallow=False):
        raise BenchError(f"{by} delivered something else than it was given")


def file_system(path: Path) -> str:
    """Return the type of the file system under a path: `tmpfs`, `ext4`, `unknown` where nobody says."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    best, kind = "", "unknown"
    for fields in (line.split() for line in mounts):
        if path.resolve().is_relative_to(fields[1]) and len(fields[1]) >= len(best):
            best, kind = fields[1], fields[2]
    return kind


def fast_folder() -> Path:
    """Return where the files lie unless the user says otherwise: in memory, else the temporary folder."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def real_disk() -> Path | None:
    """Return a folder that lies on a disk, not in memory; None if there is none to be found."""
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.home(), Path.cwd()):
        if os.access(folder, os.W_OK) and file_system(folder) not in {"tmpfs", "ramfs"}:
            return folder
    return None


def median(values: Sequence[float]) -> float:
    """Return the median, as a float."""
    return float(statistics.median(values))

"""The command of the bench: parse the options, measure what was asked for, print tables and goals."""

import argparse
import os
import platform
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench import again, crowd, far, memory, resume, small, ssh, startup, synced, tail, throughput, tls, trees
from bench.children import BenchError, Children
from bench.lab import GIB, Lab, Options, fast_folder, file_system, real_disk
from bench.report import Report
from bench.tools import Direction

DIRECTIONS: tuple[Direction, ...] = ("upload", "download")
SECTIONS: dict[str, Callable[[Lab], None]] = {
    "memory": memory.measure,
    "tail": tail.measure,
    "resume": resume.measure,
    "startup": startup.measure,
    "crowd": crowd.measure,
}
# These make figures also of the peers alone, where --tools leaves ftransfer out.
COMPARED: dict[str, Callable[[Lab], None]] = {
    "tls": tls.measure,
    "trees": trees.measure,
    "again": again.measure,
    "small": small.measure,
    "far": far.measure,
    "synced": synced.measure,
    "ssh": ssh.measure,
}
TOOLS = ("ftransfer", "nc", "curl", "rsync", "scp", "sftp", "tar", "cat", "lftp", "cp")


def size(text: str) -> int:
    """Return the bytes that a size such as `64M` or `1G` stands for."""
    match = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"not a size: {text!r} (64M, 1G)")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",")]
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return found

    return parse


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    sections = [*DIRECTIONS, *SECTIONS, *COMPARED]
    made = argparse.ArgumentParser(prog="make bench BENCH=...", description=__doc__)
    made.add_argument("--size", type=size, default=GIB, help="of the large file (1G)")
    made.add_argument("--runs", type=int, default=7, help="rounds that are counted (7)")
    made.add_argument("--only", type=names(sections), default=sections, help=", ".join(sections))
    made.add_argument("--tools", type=names(TOOLS), default=list(TOOLS), help=", ".join(TOOLS))
    made.add_argument("--dir", type=Path, default=fast_folder(), help="where the files lie (%(default)s)")
    made.add_argument("--disk", type=Path, default=real_disk(), help="a folder on a real disk (%(default)s)")
    made.add_argument("--huge", type=size, nargs="?", const=10 * GIB, default=0, help="memory with a sparse file (10G)")
    made.add_argument("--tree-files", type=int, default=9000, metavar="N", help="files of the trees (%(default)s)")
    made.add_argument("--small", type=int, default=100_000, metavar="N", help="number of small files (%(default)s)")
    made.add_argument("--patience", type=float, default=600.0, help="seconds that one run may take (%(default)s)")
    made.add_argument("--command", type=Path, default=Path(sys.executable).parent / "ftransfer", help="of ftransfer")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return made


def measure(lab: Lab) -> None:
    """Do one section after the other; one that fails is named and does not stop the next."""
    lab.report.say(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    lab.report.say(
        f"files in {lab.options.folder} ({file_system(lab.options.folder)}), over 127.0.0.1, TLS only where it says so"
    )
    only = lab.options.only
    sections: list[tuple[str, Callable[[], None]]] = []
    if directions := [direction for direction in DIRECTIONS if direction in only]:
        sections.append(("throughput", partial(throughput.measure, lab, directions)))
    for name, section in SECTIONS.items():
        if name in only and "ftransfer" in lab.options.tools:
            sections.append((name, partial(section, lab)))
    sections += [(name, partial(section, lab)) for name, section in COMPARED.items() if name in only]
    for name, run in sections:
        try:
            run()
        except BenchError as exc:
            lab.report.say(f"\nfailed: {name}: {exc}")


def own_state(folder: Path) -> None:
    """Keep the user's logins out of it: the processes find only what those before them left in this folder."""
    for name in [name for name in os.environ if name.startswith("FTRANSFER_")]:
        del os.environ[name]
    os.environ["FTRANSFER_STATE"] = str(folder)


def end(*_: object) -> None:
    """Leave on SIGTERM as on Ctrl-C: through every `finally`."""
    raise KeyboardInterrupt


def main() -> int:
    """Measure; the exit status is 0 whatever the figures are, and 130 after Ctrl-C."""
    asked = parser().parse_args()
    options = Options(
        size=asked.size,
        runs=asked.runs,
        only=asked.only,
        tools=asked.tools,
        folder=asked.dir,
        disk=asked.disk,
        huge=asked.huge,
        command=asked.command,
        patience=asked.patience,
        tree_files=asked.tree_files,
        small=asked.small,
    )
    signal.signal(signal.SIGTERM, end)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="ftransfer-bench-", dir=asked.dir) as folder:
        work = Path(folder)
        (work / "logs").mkdir()
        own_state(work / "state")
        children = Children(work / "logs", patience=asked.patience)
        try:
            measure(Lab(options=options, children=children, work=work, report=report))
        except KeyboardInterrupt:
            report.say("\ninterrupted: what is above is all there is")
            return 130
        finally:
            children.close()
    report.summary()
    if asked.json:
        report.write(asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

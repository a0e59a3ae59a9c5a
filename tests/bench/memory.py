"""How much memory a client and a server hold at most, for small and for huge files."""

import shutil
from pathlib import Path

from bench.lab import GIB, MIB, Lab, sparse_file
from bench.ours import Ftransfer
from bench.report import Goal

PEAK_MIB = 64


def measure(lab: Lab) -> None:
    """Move files of several sizes up and down, each with a fresh server, and note the peaks of both ends."""
    rows = []
    highest = 0.0
    for source in sources(lab):
        up_client, up_server = peaks(lab, source, upwards=True)
        down_client, down_server = peaks(lab, source, upwards=False)
        figures = [up_client / MIB, up_server / MIB, down_client / MIB, down_server / MIB]
        highest = max(highest, *figures)
        rows.append([human(source.stat().st_size), *(f"{figure:.1f}" for figure in figures)])
    head = ["", "upload: client", "server", "download: client", "server"]
    lab.report.table("peak resident memory, MiB", head, rows)
    lab.report.goal(
        Goal(
            name="peak resident memory of either end",
            figure=highest,
            bound="at most",
            limit=PEAK_MIB,
            unit=" MiB",
        )
    )


def sources(lab: Lab) -> list[Path]:
    """Return the files: 1 MiB, the usual size, and, if asked for and there is room, a huge sparse one."""
    found = [lab.source(MIB), lab.source(lab.options.size)]
    if huge := lab.options.huge:
        if shutil.disk_usage(lab.work).free > huge + huge // 8:
            found.append(sparse_file(lab.folder("sources") / f"sparse-{huge}.bin", huge))
        else:
            lab.report.say(f"left out: memory with {human(huge)}: not enough room in {lab.work.parent}")
    return found


def peaks(lab: Lab, source: Path, *, upwards: bool) -> tuple[int, int]:
    """Return the peak bytes of the client and of the server for one transfer."""
    served = lab.folder("served-memory")
    tool = Ftransfer(lab.children, lab.work, served, command=lab.options.command)
    tool.start()
    try:
        if upwards:
            target = served / "up.bin"
            run = tool.upload(source, target.name)
        else:
            target = lab.folder("fetched") / "down.bin"
            (served / source.name).hardlink_to(source)
            run = tool.download(source.name, target)
        server = tool.server_peak()
    finally:
        tool.stop()
    target.unlink()
    shutil.rmtree(served)
    return run.peak_bytes, server


def human(size: int) -> str:
    """Return a size in the largest unit that divides it well."""
    return f"{size / GIB:g} GiB" if size >= GIB else f"{size / MIB:g} MiB"

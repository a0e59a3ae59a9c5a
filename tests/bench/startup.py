"""What a user waits for besides the bytes: the start of the command, and a transfer of next to nothing."""

import sys
from collections.abc import Callable

from bench.children import Run
from bench.lab import KIB, Lab, median
from bench.ours import Ftransfer
from bench.report import Goal
from bench.tlspeers import TlsFtransfer, certificate

ROUNDS = 15
BARE, VERSION = "python -c pass", "ftransfer --version"
UPLOAD, TLS_UPLOAD = "ftransfer upload, 1 KiB", "the same over TLS, handshake included"
VERSION_MS, UPLOAD_MS = 40, 60


def measure(lab: Lab) -> None:
    """Time the bare interpreter, `--version` and an upload of 1 KiB, in the clear and over TLS, in turns."""
    served, command = lab.folder("served-startup"), lab.options.command
    target = served / "small.bin"
    plain = Ftransfer(lab.children, lab.work, served, command=command)
    kinds: dict[str, Callable[[], Run]] = {
        BARE: lambda: lab.children.run([sys.executable, "-c", "pass"]),
        VERSION: lambda: lab.children.run([command, "--version"]),
        UPLOAD: lambda: plain.upload(lab.source(KIB), target.name),
    }
    tools = [plain]
    if identity := certificate(lab):
        tls = TlsFtransfer(lab.children, lab.work, served, command=command, shown=identity, synced=True)
        kinds[TLS_UPLOAD] = lambda: tls.upload(lab.source(KIB), target.name)
        tools.append(tls)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    try:
        for tool in tools:
            tool.start()
        for number in range(ROUNDS + 1):
            for name, run in kinds.items():
                target.unlink(missing_ok=True)
                seconds = run().seconds
                if number:  # the first round fills caches
                    times[name].append(seconds)
    finally:
        for tool in tools:
            tool.stop()
    tabulate(lab, {name: median(seconds) * 1000 for name, seconds in times.items()})


def tabulate(lab: Lab, milliseconds: dict[str, float]) -> None:
    """Print the table and note the goals."""
    bare = milliseconds[BARE]
    rows = [[name, f"{figure:.1f}", f"{figure - bare:.1f}"] for name, figure in milliseconds.items()]
    lab.report.table(f"start-up, median of {ROUNDS}", ["", "ms", "beyond the bare interpreter"], rows)
    for name, what, limit in ((VERSION, "--version", VERSION_MS), (UPLOAD, "upload of 1 KiB", UPLOAD_MS)):
        figure = milliseconds[name] - bare
        goal = Goal(name=f"{what} beyond the bare interpreter", figure=figure, bound="at most", limit=limit, unit=" ms")
        lab.report.goal(goal)

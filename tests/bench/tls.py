"""How fast one large file goes up and down encrypted: ftransfer over TLS, curl over https, scp."""

from collections.abc import Sequence

from bench.lab import GIB, Lab, median
from bench.report import Goal
from bench.throughput import Times, available, ratio, rounds, shown
from bench.tlspeers import DefaultScp, TlsCurl, TlsFtransfer, TlsScp, TlsTool, certificate
from bench.tools import Direction

DIRECTIONS: tuple[Direction, ...] = ("upload", "download")
TO_SCP, TO_CURL = 1.0, 0.9


def measure(lab: Lab) -> None:
    """Run every tool once a round, with the large file and with a single byte; print a table each way."""
    tools = installed(lab)
    lab.folder("fetched")
    try:
        for tool in tools:
            tool.start()
        ciphers = {tool.name: tool.cipher() for tool in tools}
        times = rounds(lab, tools, DIRECTIONS)
    finally:
        for tool in tools:
            tool.stop()
    for direction in DIRECTIONS:
        tabulate(lab, tools, direction, times, ciphers)


def installed(lab: Lab) -> list[TlsTool]:
    """Return the tools that can be used."""
    identity = certificate(lab)
    if identity is None:
        return []
    place = (lab.children, lab.work, lab.folder("served"))
    ours = TlsFtransfer(*place, command=lab.options.command, shown=identity)
    return available(lab, [ours, TlsCurl(*place, shown=identity), TlsScp(*place), DefaultScp(*place)])


def tabulate(lab: Lab, tools: Sequence[TlsTool], direction: Direction, times: Times, ciphers: dict[str, str]) -> None:
    """Print the table of one direction and note the goals."""
    size = lab.options.size
    whole = {tool.name: times[direction, tool.name, size] for tool in tools}
    whole = {name: seconds for name, seconds in whole.items() if seconds}
    checks = {tool.name: tool.checks for tool in tools}
    rows = [
        [
            name,
            f"{size / GIB / median(seconds):.2f}",
            f"{size / GIB / max(seconds):.2f}-{size / GIB / min(seconds):.2f}",
            *(shown(ratio(whole, name, other)) for other in ("curl", "scp", "scp-default")),
            f"{median(times[direction, name, 1]) * 1000:.0f}",
            ciphers[name],
            checks[name],
        ]
        for name, seconds in whole.items()
    ]
    if not rows:
        return
    title = f"encrypted {direction} of {size / GIB:g} GiB, whole processes, median of {lab.options.runs}"
    head = ["", "GiB/s", "worst-best", "to curl", "to scp", "to scp-default", "one byte, ms", "cipher", "checked by"]
    lab.report.table(title, head, rows)
    for other, limit in (("curl", TO_CURL), ("scp", TO_SCP), ("scp-default", TO_SCP)):
        figure = ratio(whole, "ftransfer", other)
        if figure is not None:
            name = f"encrypted {direction} to {other} ({ciphers[other]})"
            lab.report.goal(Goal(name=name, figure=figure, bound="at least", limit=limit))

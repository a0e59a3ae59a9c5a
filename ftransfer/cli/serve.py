"""The command serve: a server in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import signal
import sys

from ftransfer.cli.output import Output
from ftransfer.paths import printable
from ftransfer.server import Server

DEFAULT_LISTEN = "127.0.0.1:7788"
DESCRIPTORS = 4096


def serve(options: argparse.Namespace, output: Output) -> int:
    """Serve until told to stop; running transfers may finish for a few seconds, a second signal cuts them."""
    level = logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(message)s")
    _allow_descriptors()
    gc.set_threshold(100_000, 20, 20)  # trees make very many small objects, and no cycles
    server = Server(
        options.folder,
        listen=options.listen or [DEFAULT_LISTEN],
        read_only=options.read_only,
        durable=not options.no_sync,
        insecure=options.insecure,
        timeout=options.timeout,
    )

    def stop(number: int, frame: object) -> None:
        del number, frame
        server.stop()
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, lambda *_: server.cut())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    print(f"serving {printable(options.folder)} at {' '.join(server.urls)}", flush=True)
    if not options.quiet:
        _warn(options, output)
    server.serve_forever()
    server.close()
    output.say("stopped")
    return 0


def _allow_descriptors() -> None:
    """Ask for as many descriptors as the limits may need: each connection takes one, each open upload three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _warn(options: argparse.Namespace, output: Output) -> None:
    """Say who can do what, until there are users."""
    what = "read" if options.read_only else "read and write"
    listen = options.listen or [DEFAULT_LISTEN]
    if options.insecure:
        output.say(f"warning: everybody who reaches this address may {what} here, and everything goes in the clear")
    elif any(not where.startswith("unix:") for where in listen):
        output.say(f"note: every user of this machine may {what} here (unix:PATH is for you alone)")

"""The command: parse, call the Python API, render, exit. The only part that knows the terminal.

`main` is the entry point of the `ftransfer` command; each command is a module here that is imported when it is called.
"""

from __future__ import annotations

import os
import signal
import sys

from ftransfer import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status (docs/reference.md, "Exit statuses")."""
    words = sys.argv[1:] if argv is None else argv
    if words in (["--version"], ["-V"]):  # asked by scripts: not worth loading everything
        print(f"ftransfer {__version__}")
        return 0
    from ftransfer.cli.arguments import parse
    from ftransfer.cli.output import Output
    from ftransfer.errors import FtransferError

    options = parse(words)
    output = Output.of(options)
    try:
        status: int = options.run(options, output)
        sys.stdout.flush()
    except FtransferError as exc:
        return output.failed(exc)
    except BrokenPipeError:
        return _die_of(signal.SIGPIPE)
    except KeyboardInterrupt:
        output.interrupted()
        return _die_of(signal.SIGINT)
    return status


def _die_of(number: signal.Signals) -> int:
    """End as if the signal had not been caught, so that the shell's loop or pipe sees it."""
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number

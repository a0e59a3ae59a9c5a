"""The command: parse, call the Python API, render, exit. The only part that knows the terminal.

`main` is the entry point of the `ftransfer` command; each command is a module here that is imported when it is called.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from ftransfer import __version__

if TYPE_CHECKING:
    from ftransfer.cli.output import Output

INTERNAL = 10
"""Exit status of a fault of the program itself."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status (docs/reference.md, "Exit statuses")."""
    words = sys.argv[1:] if argv is None else argv
    if words in (["--version"], ["-V"]):  # asked by scripts: not worth loading everything
        print(f"ftransfer {__version__}")
        return 0
    output = None
    try:
        _prepare_streams()
        from ftransfer.cli.arguments import parse
        from ftransfer.cli.output import Output

        options = parse(words)
        output = Output.of(options)
        return _run(options, output)
    except KeyboardInterrupt:
        if output is not None:
            output.interrupted()
        return _die_of(signal.SIGINT)


def _run(options: Any, output: Output) -> int:
    """Run a command; what goes wrong is said in a sentence, and has an exit status of its own."""
    from ftransfer.errors import FtransferError, from_os

    try:
        status: int = options.run(options, output)
        sys.stdout.flush()
    except FtransferError as exc:
        return output.failed(exc)
    except BrokenPipeError:
        return _die_of(signal.SIGPIPE)
    except OSError as exc:
        return output.failed(from_os(exc))
    except Exception as exc:  # noqa: BLE001 - the last resort before the interpreter
        if output.verbose:
            import traceback

            traceback.print_exc()
        kind = type(exc).__name__
        output.failed(FtransferError(f"internal error: {kind}: {exc}", hint="this is a bug; -v shows where"))
        return INTERNAL
    finally:
        _let_go_of_stdout()
    return status


def _let_go_of_stdout() -> None:
    """Write out what is left; where that cannot be written, see to it that it is not tried again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _prepare_streams() -> None:
    """Take descriptors 0 to 2, or a socket could become standard output, and let every name be printed.

    A missing standard input stays unreadable, so that it is not taken for an empty one.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_WRONLY)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for the whole run
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a test's or a program's own stream may have none
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _die_of(number: signal.Signals) -> int:
    """End as if the signal had not been caught, so that the shell's loop or pipe sees it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number

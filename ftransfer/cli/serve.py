"""The command serve: a server in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from ftransfer import listening, net, wire
from ftransfer.cli.output import Output
from ftransfer.cli.units import parse_size
from ftransfer.errors import FtransferError, UsageError
from ftransfer.host import Limits
from ftransfer.paths import printable
from ftransfer.pipes import Pipes
from ftransfer.rights import ALL
from ftransfer.server import Server
from ftransfer.users import check_name

DEFAULT_LISTEN = "127.0.0.1:7788"
DESCRIPTORS = 4096
KEEP_FREE = 1 << 30
"""Bytes of the disk that strangers leave free, unless somebody says otherwise."""


def serve(options: argparse.Namespace, output: Output) -> int:
    """Serve until told to stop; running transfers may finish for a few seconds, a second signal cuts them."""
    if options.stdio:
        return serve_stdio(options)
    if not options.folders:
        raise UsageError("there is nothing to serve", hint="ftransfer serve DIR")
    if options.key and not options.cert:
        raise UsageError("--key comes with --cert", hint="--cert FILE --key FILE, both in PEM")
    _log_to_stderr(options)
    say = logging.getLogger("ftransfer.server").info if options.log_format == "json" else output.say
    limits = _prepare(options)
    server = Server(
        _roots(options.folders),
        listen=options.listen or [DEFAULT_LISTEN],
        read_only=options.read_only,
        durable=not options.no_sync,
        insecure=options.insecure,
        cert=options.cert,
        key=options.key,
        state=options.state,
        anonymous=options.anonymous,
        timeout=options.timeout,
        limits=limits,
    )

    def stop(number: int, frame: object) -> None:
        del number, frame
        server.stop()
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, lambda *_: server.cut())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        _announce(server, options, say)
        listening.notify_ready()
        server.serve_forever()
    finally:
        server.close()
    say("stopped")
    return 0


def serve_stdio(options: argparse.Namespace) -> int:
    """Serve whoever started this over ssh, through standard input and output, until it leaves."""
    for option in ("listen", "cert", "key", "insecure"):
        if getattr(options, option):
            raise UsageError(f"--{option} does not go with --stdio", hint="whoever comes by ssh has been checked by it")
    if any(os.isatty(fd) for fd in (0, 1)):
        raise UsageError(
            "--stdio is for ssh, not for a terminal", hint="ftransfer upload FILE ssh://HOST/ starts it there"
        )
    if sys.getfilesystemencoding() != "utf-8":  # by a locale that ssh has brought along, say; names are what they are
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - ourselves
    _log_to_stderr(options, least=logging.ERROR)  # the client tells its user what goes wrong
    if not options.verbose:
        logging.getLogger().handlers[0].addFilter(_without_traceback)
    limits = _prepare(options)
    came_from = os.environ.get("SSH_CONNECTION", "").split(" ")[0]
    stream = Pipes(os.dup(0), os.dup(1), f"ssh from {came_from}" if came_from else "stdio")
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    os.dup2(2, 1)  # what anything prints by mistake comes between no frames
    try:
        server = Server(
            _roots(options.folders) if options.folders else None,
            listen=(),
            read_only=options.read_only,
            durable=not options.no_sync,
            state=options.state,
            anonymous=options.anonymous,
            timeout=options.timeout,
            limits=limits,
        )
    except FtransferError as exc:
        # To the client, and not to stderr, which leads to the same terminal.
        stream.send(memoryview(wire.encode(wire.error_message(exc))))
        return exc.exit_status
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: server.stop())
    try:
        server.serve_stream(stream)
    finally:
        server.close(grace=0.0)
    os._exit(0)  # the client waits for this end, and taking an interpreter apart takes a moment


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _prepare(options: argparse.Namespace) -> Limits:
    """Set this process up for much work, and return what it bears."""
    limits = _limits(options)
    _allow_descriptors(limits)
    gc.set_threshold(100_000, 20, 20)  # trees make very many small objects, and no cycles
    return limits


def _roots(words: list[str]) -> str | dict[str, str]:
    """Return the folder, or the folders by name. Raises UsageError."""
    if len(words) == 1 and ("=" not in words[0] or os.path.isdir(words[0])):
        return words[0]
    named: dict[str, str] = {}
    for word in words:
        name, found, folder = word.partition("=")
        if not found or not name or not folder:
            raise UsageError(
                f"not a name and a folder: {word!r}", hint="several folders are served as NAME=DIR NAME=DIR"
            )
        if name in named:
            raise UsageError(f"two folders are called {name!r}")
        named[name] = folder
    return named


def _limits(options: argparse.Namespace) -> Limits:
    """Return the limits with those that were named changed. Raises UsageError."""
    changed: dict[str, Any] = {}
    for word in options.limit or ():
        name, found, value = word.partition("=")
        if name not in Limits._fields or not found:
            raise UsageError(f"no such limit: {word!r}", hint=f"NAME=N, with NAME one of {', '.join(Limits._fields)}")
        try:
            number = float(value) if name.endswith(("seconds", "rate")) else parse_size(value)
        except ValueError as exc:
            raise UsageError(f"{name} has to be a number, not {value!r}") from exc
        if not (number > 0 or (name == "keep_free" and number == 0)) or number == float("inf"):
            raise UsageError(f"{name} has to be more than nothing, not {value!r}")
        changed[name] = number
    if options.keep_free is not None:
        changed["keep_free"] = options.keep_free
    elif options.anonymous == "create":
        changed.setdefault("keep_free", KEEP_FREE)
    return Limits(**changed)


def _allow_descriptors(limits: Limits) -> None:
    """Ask for as many descriptors as the limits may need: each connection takes one, each open upload three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(DESCRIPTORS, 8 * limits.connections + 4 * limits.uploads)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _announce(server: Server, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Print where the server is, and what the other person pastes to reach it."""
    folders = " ".join(printable(word) for word in options.folders)
    print(f"serving {folders} at {' '.join(server.urls)}")
    if server.outward_url is not None:
        name = socket.gethostname().partition(".")[0] or "server"
        words = ["ftransfer login", *_way_in(server, options.cert)]
        words += [f"--as {printable(name)}"] + ["--anonymous"] * bool(options.anonymous)
        print(f"log in with: {' '.join(words)}")
        _first_user(server, options, say)
    sys.stdout.flush()
    if options.anonymous:
        say(f"note: everybody who reaches this address may {options.anonymous} here")
    if options.insecure and server.outward_url is not None:
        say("warning: everything, tokens too, goes in the clear to addresses that other machines reach")


def _way_in(server: Server, cert: str | None) -> list[str]:
    """Return the address, and what the certificate is known by: an authority's by its name, as it is renewed."""
    assert server.outward_url is not None
    if cert is not None:
        from ftransfer.tls import certified_name

        host = certified_name(cert)
        if host is not None:
            return [str(net.parse_url(server.outward_url)._replace(host=host))]
    return [server.outward_url] + [f"--fingerprint {server.fingerprint}"] * (server.fingerprint is not None)


def _first_user(server: Server, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """See to it that somebody can log in: at a terminal, the person who starts the first server is the first user."""
    if options.anonymous or server.admission.users.all():
        return
    if not sys.stdout.isatty():  # a token has no place in the log of a service
        say("note: nobody can log in from another machine yet: ftransfer user add NAME")
        return
    import getpass

    try:
        name = check_name(getpass.getuser().lower())
    except (UsageError, KeyError, OSError):
        name = "first"
    token = server.admission.users.add(name, can=ALL)
    may = "read" if options.read_only else "do everything"
    print(f"its first user is {name}, who may {may}, with this token, shown only now:\n  {token}")


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what a request was is in fields of its own."""
        import json
        import time

        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {"v": 1, "time": when, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_stderr(options: argparse.Namespace, least: int = logging.INFO) -> None:
    level = logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO
    level = level if options.verbose else max(level, least)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines() if options.log_format == "json" else logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])

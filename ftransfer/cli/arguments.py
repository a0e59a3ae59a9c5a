"""The words of the command line: what may be typed, and which module runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ftransfer import __version__
from ftransfer.cli.units import parse_duration, parse_patience, parse_rate, parse_size, parse_when
from ftransfer.errors import FtransferError, UsageError

WIDTH = 80
"""Columns for which options are tried out while they are added."""
COMPARE = ("quick", "hash", "none")
IF_EXISTS = ("replace", "newer", "skip", "rename", "fail")
LINKS = ("copy", "follow", "skip")
_EXAMPLES = """\
  ftransfer serve ~/share                            serve a folder on this machine
  ftransfer upload big.iso ft://localhost/in/        upload a file into a folder
  ftransfer download ft://localhost/in/big.iso       download it to here
  ftransfer verify big.iso ft://localhost/in/        compare both ends by hash
Run the same command again after anything went wrong: it goes on where it stopped.
"""


class _Parser(argparse.ArgumentParser):
    width: int | None = None
    """Of what is printed, None for that of the terminal, which argparse would look up anew for each option."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        return self.formatter_class(prog=self.prog, **({} if self.width is None else {"width": self.width}))

    def __init__(self, **fields: Any):
        super().__init__(**{"allow_abbrev": False, **fields})

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\nhint: {self.prog} --help shows what can be typed", file=sys.stderr)
        sys.exit(UsageError.exit_status)


def _type(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return convert(text)
        except UsageError as exc:
            raise argparse.ArgumentTypeError(f"{exc} ({exc.hint})") from None

    return checked


def _run(module: str, function: str) -> Callable[..., int]:
    """Return a function that imports its module when it is called."""

    def run(options: argparse.Namespace, output: Any) -> int:
        from importlib import import_module

        from ftransfer.cli.expanding import expand_names

        expand_names(options)
        status: int = getattr(import_module(f"ftransfer.cli.{module}"), function)(options, output)
        return status

    return run


class _Skipped:
    """Takes the place of the parser of a command that was not typed: to fill it would take longer than to start."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Builder:
    """Collects the commands, or `only` the one of that name."""

    def __init__(self, only: str | None) -> None:
        self._only = only
        self.has_any = False
        self.parser = _Parser(
            prog="ftransfer",
            description="Move files between machines, every byte verified; goes on where it stopped.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parser.add_argument("-V", "--version", action="version", version=f"ftransfer {__version__}")
        self._commands = self.parser.add_subparsers(
            metavar="COMMAND", required=True, parser_class=_Parser, prog="ftransfer"
        )

    def add(self, name: str, run: Callable[..., int], text: str, *, aliases: tuple[str, ...] = ()) -> Any:
        """Add a command with the options that all have; return its parser."""
        if self._only not in (None, name, *aliases):
            return _Skipped()
        self.has_any = True
        made: _Parser = self._commands.add_parser(name, aliases=aliases, help=text, description=f"{text}.")
        made.set_defaults(run=run, command=name, quiet=False, verbose=False)
        _add_volume(made)
        return made

    def add_client(self, name: str, run: Callable[..., int], text: str, *, aliases: tuple[str, ...] = ()) -> Any:
        """Add a command that talks to a server."""
        made = self.add(name, run, text, aliases=aliases)
        made.add_argument("--json", action="store_true", help="write events, one JSON object a line")
        duration = _type(parse_duration)
        made.add_argument(
            "--timeout", type=_type(parse_patience), default=60.0, metavar="T", help="longest silence (60s)"
        )
        made.add_argument(
            "--retry-for", type=duration, metavar="T", help="give up after T without progress (10m once connected)"
        )
        made.add_argument("--max-time", type=duration, metavar="T", help="longest time for everything")
        made.add_argument("--fingerprint", metavar="F", help="that the server's certificate has to have: sha256:...")
        made.add_argument("--ssh", metavar="CMD", help="for ssh://, another ssh command: 'ssh -J gate'")
        made.add_argument("--remote-command", metavar="CMD", help="for ssh://, ftransfer on the other machine (found)")
        return made

    def add_transfer(self, name: str, run: Callable[..., int], text: str, *, aliases: tuple[str, ...] = ()) -> Any:
        """Add upload or download."""
        made = self.add_client(name, run, text, aliases=aliases)
        made.add_argument("words", nargs="+", metavar="SOURCE... DEST", help="files and folders, then where to")
        made.usage = f"ftransfer {name} [OPTION...] SOURCE... DEST"
        made.add_argument(
            "--compare", choices=COMPARE, default="quick", help="what counts as equal (quick: size and mtime)"
        )
        made.add_argument("--if-exists", choices=IF_EXISTS, default="replace", help="if the name is taken (replace)")
        made.add_argument("--no-resume", action="store_true", help="begin anew, also if a part is there")
        made.add_argument("--algorithm", choices=("xxh128", "sha256"), help="digest of the file (xxh128)")
        made.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")
        made.add_argument("--delete", action="store_true", help="remove from DEST what the source folder lacks")
        made.add_argument("--chmod", type=_type(_modes), metavar="MODE", help="permission bits: 640, D755,F644, go-w")
        self.add_choice_of_entries(made)
        made.add_argument("--limit-rate", type=_type(parse_rate), metavar="N", help="bytes a second: 10M, 500K")
        made.add_argument("-r", "--recursive", action="store_true", help=argparse.SUPPRESS)
        return made

    @staticmethod
    def add_choice_of_entries(made: Any) -> None:
        """Add what says which entries of folders are meant."""
        made.set_defaults(rules=())
        for option, metavar, text in (
            ("--include", "PATTERN", "take what matches after all (as in .gitignore: the last match counts)"),
            ("--exclude", "PATTERN", "leave out what matches"),
            ("--exclude-from", "FILE", "patterns in a file like .gitignore"),
        ):
            made.add_argument(option, action=_Rule, dest="rules", metavar=metavar, help=text, default=())
        made.add_argument("--max-size", type=_type(parse_size), metavar="N", help="leave out larger files: 10M")
        made.add_argument("--newer", type=_type(parse_when), metavar="TIME", help="leave out older: 2d, 2026-11-21")
        made.add_argument(
            "--links", choices=LINKS, default="copy", help="what becomes of symbolic links in folders (copy)"
        )


class _Rule(argparse.Action):
    """Keeps includes and excludes in the order in which they were typed."""

    def __call__(self, parser: argparse.ArgumentParser, options: Any, values: Any, option: str | None = None) -> None:
        rules = [*options.rules]
        if option == "--exclude-from":
            from ftransfer.filters import read_rules  # here, because hardly any run needs it

            try:
                rules += read_rules(values)
            except FtransferError as exc:
                parser.error(f"--exclude-from {values}: {exc}")
        else:
            rules.append(((option or "").lstrip("-"), values))
        options.rules = rules


def _modes(text: str) -> Any:
    from ftransfer.modes import Modes  # here, because hardly any run needs it

    return Modes.parse(text)


def build(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command; `only` of one of its commands, if there is one of that name."""
    _Parser.width = WIDTH
    b = _Builder(only)
    _add_transfers(b)
    _add_files(b)
    _add_logins(b)
    _add_serving(b)
    _Parser.width = None
    return b.parser if b.has_any else build()


def _add_transfers(b: _Builder) -> None:
    b.add_transfer("upload", _run("transfers", "upload"), "Send files and folders to a server", aliases=("up",))
    run = _run("transfers", "download")
    made = b.add_transfer("download", run, "Fetch files or folders from a server", aliases=("down",))
    made.add_argument("--no-sync", action="store_true", help="do not wait for the disk")

    made = b.add_client("verify", _run("transfers", "verify"), "Compare files and folders at both ends by their hashes")
    made.add_argument("words", nargs="+", metavar="SOURCE... DEST", help="as for the transfer that it checks")
    made.usage = "ftransfer verify [OPTION...] SOURCE... DEST"
    b.add_choice_of_entries(made)
    made.add_argument("--delete", action="store_true", help="what only DEST has is a difference, too")
    made.add_argument("--limit-rate", type=_type(parse_rate), help=argparse.SUPPRESS)
    for option in ("--compare", "--if-exists", "--chmod"):  # those of the transfer that it checks
        made.add_argument(option, help=argparse.SUPPRESS)
    for options in (["--no-resume"], ["--no-sync"], ["-r", "--recursive"], ["-n", "--dry-run"]):
        made.add_argument(*options, action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--algorithm", choices=("xxh128", "sha256"), help="which hash (xxh128)")

    made = b.add_client("checksum", _run("checksums", "checksum"), "Print or check checksums, here or on a server")
    made.add_argument(
        "names", nargs="+", metavar="PATH|URL", help="files; with --check a list, then a folder or address"
    )
    made.add_argument("--check", action="store_true", help="check what a list of checksums says")
    made.add_argument("-r", "--recursive", action="store_true", help="go into folders")
    made.add_argument("--algorithm", choices=("xxh128", "sha256", "md5"), help="which hash (xxh128)")


def _add_files(b: _Builder) -> None:
    made = b.add_client("list", _run("files", "list_entries"), "List a folder on a server", aliases=("ls",))
    made.add_argument("url", metavar="URL")
    made.add_argument("-l", "--long", action="store_true", help="with kind, mode, size and time")
    made.add_argument("-r", "--recursive", action="store_true", help="go into folders")
    made.add_argument("-0", "--null", action="store_true", help="raw names, each with a NUL after it")

    made = b.add_client("stat", _run("files", "stat_entry"), "Show what is at a path on a server")
    made.add_argument("url", metavar="URL")

    made = b.add_client("mkdir", _run("files", "mkdir"), "Make a folder on a server")
    made.add_argument("url", metavar="URL")
    made.add_argument("-p", "--parents", action="store_true", help="also those above it; it may exist")

    made = b.add_client("move", _run("files", "move"), "Rename on a server; never replaces", aliases=("mv",))
    made.add_argument("url", metavar="URL")
    made.add_argument("target", metavar="URL")

    made = b.add_client("remove", _run("files", "remove"), "Remove a file or folder on a server", aliases=("rm",))
    made.add_argument("url", metavar="URL")
    made.add_argument("-r", "--recursive", action="store_true", help="a folder and all below it")

    made = b.add_client("partials", _run("files", "partials"), "Show what is staged and unfinished")
    made.add_argument("where", metavar="PATH|URL")
    made.add_argument("--clear", action="store_true", help="drop it")

    made = b.add_client("ping", _run("files", "ping"), "Show round trip, versions, limits and socket options")
    made.add_argument("url", metavar="URL")


def _add_serving(b: _Builder) -> None:
    made = b.add("serve", _run("serve", "serve"), "Serve a folder, or several by name")
    made.add_argument("folders", nargs="*", metavar="DIR", help="a folder, or NAME=DIR for each of several")
    made.add_argument(
        "--stdio", action="store_true", help="one client, over standard input and output, as ssh:// starts it"
    )
    made.add_argument(
        "--listen",
        action="append",
        metavar="ADDR",
        help="HOST:PORT, [::1]:PORT, :PORT or unix:PATH, several times; port 0 takes a free one (127.0.0.1:7788)",
    )
    made.add_argument("--read-only", action="store_true", help="let nobody change anything")
    made.add_argument("--anonymous", choices=("read", "create"), help="what who has no token may do (nothing)")
    made.add_argument("--cert", metavar="FILE", help="certificate in PEM (one of its own)")
    made.add_argument("--key", metavar="FILE", help="its key in PEM (in the file of the certificate)")
    made.add_argument("--insecure", action="store_true", help="speak in the clear on addresses that others reach")
    _add_state(made)
    made.add_argument("--no-sync", action="store_true", help="do not wait for the disk before a receipt")
    made.add_argument("--keep-free", type=_type(parse_size), metavar="N", help="bytes of the disk to leave free: 10G")
    made.add_argument("--limit", action="append", metavar="NAME=N", help="another limit: connections=1000")
    made.add_argument("--log-format", choices=("text", "json"), default="text", help="of the log on stderr (text)")
    made.add_argument("--timeout", type=_type(parse_patience), default=60.0, metavar="T", help="longest silence (60s)")

    _add_user(b)

    made = b.add("demo", _run("demo", "demo"), "Show it all on this machine: upload, cut, resume, download, verify")
    made.add_argument("folder", nargs="?", metavar="FOLDER", help="files to take (sample_files)")


def _add_volume(made: argparse.ArgumentParser) -> None:
    # Suppressed, so that an action does not take back what stands before it.
    made.add_argument("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="say nothing but errors")
    made.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="say more")


def _add_state(made: argparse.ArgumentParser) -> None:
    made.add_argument("--state", metavar="DIR", help="where users and certificate are kept (~/.local/state/ftransfer)")


def _add_user(b: _Builder) -> None:
    """Add the command user, which has commands of its own."""
    made = b.add("user", _run("users", "list_users"), "Say who may do what on a server")
    if isinstance(made, _Skipped):
        return
    actions = made.add_subparsers(
        metavar="ACTION", required=True, parser_class=_Parser, dest="action", prog="ftransfer user"
    )
    for name, function, text in (
        ("add", "add", "Add a user and print the token, once"),
        ("list", "list_users", "List users and what they may do"),
        ("remove", "remove", "Remove a user: the token opens nothing any more"),
        ("token", "renew", "Make another token for a user"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text}.")
        action.set_defaults(run=_run("users", function))
        _add_volume(action)
        _add_state(action)
        if name != "list":
            action.add_argument("name", metavar="NAME")
            continue
        action.add_argument("--json", action="store_true", help="write events, one JSON object a line")
    action = actions.choices["add"]
    action.add_argument(
        "--can",
        type=_type(_verbs),
        default=("create", "read"),
        metavar="VERBS",
        help="with commas, of create, read, replace, delete (create,read); create alone is a drop box",
    )
    action.add_argument("--folder", default="", metavar="F", help="folder that is all they see, made when needed")
    action.add_argument("--quota", type=_type(parse_size), metavar="N", help="bytes that they may store: 50G")
    action.add_argument("--max-file", type=_type(parse_size), metavar="N", help="largest file: 5G")
    action.add_argument("--expires", type=_type(parse_duration), metavar="T", help="until when, from now: 30d")


def _verbs(text: str) -> Any:
    from ftransfer.users import parse_verbs  # here, because hardly any run needs it

    return parse_verbs(text)


def _add_logins(b: _Builder) -> None:
    made = b.add_client("login", _run("logins", "login"), "Check a server and keep its token, under a name")
    made.add_argument("url", metavar="URL")
    made.add_argument("--as", dest="name", metavar="NAME", help="then NAME:PATH is an address (the host's name)")
    made.add_argument(
        "--token-file", dest="from_file", metavar="FILE", help="with the token; - is standard input (asked for)"
    )
    made.add_argument("--anonymous", action="store_true", help="without a token, where the server takes strangers")
    made.add_argument("--install", action="store_true", help="for ssh://, copy ftransfer there if it is missing")
    made = b.add("logout", _run("logins", "logout"), "Forget a login and its token")
    made.add_argument("name", metavar="NAME")
    made = b.add("remotes", _run("logins", "remotes"), "List the logins")
    made.add_argument("--json", action="store_true", help="write events, one JSON object a line")


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options. Exits with 2 and a hint for what cannot be understood."""
    parser = build(words[0] if words else None)
    options, more = parser.parse_known_args(words)
    lists = (getattr(options, name, None) for name in ("words", "names", "folders"))
    taken: list[str] | None = next((found for found in lists if isinstance(found, list)), None)
    if more and (taken is None or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if taken is not None:
        taken += more  # argparse leaves files behind that come after an option between files
    return options

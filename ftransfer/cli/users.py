"""The command user: who may do what on the servers of a state folder. A running server obeys at once."""

from __future__ import annotations

import argparse
import os
import time

from ftransfer.admission import describe
from ftransfer.cli.output import Output
from ftransfer.cli.units import show_size
from ftransfer.errors import UsageError
from ftransfer.paths import printable
from ftransfer.statedir import StateDir
from ftransfer.users import Users


def add(options: argparse.Namespace, output: Output) -> int:
    """Add a user, and print the token this once."""
    if os.path.isabs(options.folder):
        raise UsageError("the folder is below the one that is served", hint=f"--folder {options.folder.strip('/')}")
    if options.expires == 0:
        raise UsageError("it would have expired already", hint="--expires 30d: for 30 days from now")
    token = Users(StateDir(options.state)).add(
        options.name,
        can=options.can,
        folder=options.folder.rstrip("/"),
        quota=options.quota,
        max_file=options.max_file,
        expires=time.time() + options.expires if options.expires is not None else None,
    )
    if options.expires is not None:
        output.say(f"{options.name} may log in until {_when(time.time() + options.expires)}")
    return _show(options, output, token)


def renew(options: argparse.Namespace, output: Output) -> int:
    """Make another token for a user; the one before opens nothing any more."""
    return _show(options, output, Users(StateDir(options.state)).renew(options.name))


def _show(options: argparse.Namespace, output: Output, token: str) -> int:
    print(token)
    output.say(f"this is the token of {options.name}; it is shown only now, and its hash is kept")
    output.say("`ftransfer login`, which the server shows when it starts, asks for it")
    return 0


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def remove(options: argparse.Namespace, output: Output) -> int:
    """Remove a user; the files stay."""
    Users(StateDir(options.state)).remove(options.name)
    output.say(f"{options.name} is removed; connections end within a second")
    return 0


def list_users(options: argparse.Namespace, output: Output) -> int:
    """List users and what they may do."""
    users = Users(StateDir(options.state))
    users.check()
    found = users.all()
    for account in found:
        used = users.used(account.name) if account.quota is not None else None
        output.event(
            "user",
            name=account.name,
            can=describe(account),
            folder=account.folder,
            quota=account.quota,
            used=used,
            max_file=account.max_file,
            expires=account.expires,
        )
        words = [", ".join(describe(account)) or "nothing"]
        words += [f"in {printable(account.folder)}/"] * bool(account.folder)
        if account.quota is not None:
            words.append(f"{show_size(used or 0)} of {show_size(account.quota)}")
        if account.max_file is not None:
            words.append(f"files of at most {show_size(account.max_file)}")
        if account.expires is not None:
            when = _when(account.expires)
            words.append(f"expired {when}" if account.is_over else f"until {when}")
        output.verdict(f"{account.name}  {'; '.join(words)}")
    if not found:
        output.say("no users: ftransfer user add NAME makes one")
    return 0

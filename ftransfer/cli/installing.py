"""Copying this version to another machine over ssh, where there is none: one file in the cache folder there."""

from __future__ import annotations

import json

from ftransfer import __version__, archive, net, shells, ssh
from ftransfer.errors import ConnectionLost, FtransferError, NotInstalled, RemoteDiskError
from ftransfer.paths import printable

_NO_PYTHON, _CUT, _NO_PLACE = 96, 97, 98
"""What the script ends with: no Python is new enough, the archive did not arrive whole, the folder cannot be used."""
_PYTHONS = "python3 python3.14 python3.13 python3.12 python3.11"
_SETTLE = "import sys; sys.path.insert(0, sys.argv[1]); from ftransfer.archive import settle; settle(*sys.argv[1:])"


def _script(size: int) -> str:
    """Return what the shell there does with an archive of so many bytes; nothing in the home folder is imported."""
    return (
        f"umask 077; PYTHONSAFEPATH=1; export PYTHONSAFEPATH; for p in {_PYTHONS}; do "
        'if "$p" -c "import sys; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; then '
        f'd="{shells.CACHE}"; t="$d/.new-$$"; mkdir -p "$d" && : >"$t" || exit {_NO_PLACE}; cat >"$t"; '
        f'if [ "$(wc -c <"$t")" -eq {size} ]; then '
        f'"$p" -c "{_SETTLE}" "$t" "$d/{archive.VERSION_NAME}"; s=$?; else s={_CUT}; fi; '
        f'rm -f "$t"; exit $s; fi; done; exit {_NO_PYTHON}'
    )


def question(address: net.Address) -> str:
    """Return what somebody is asked before anything is copied."""
    return (
        f"There is no ftransfer on {printable(address.host)} that fits. Copy this version, {__version__}, into\n"
        "the folder ~/.cache/ftransfer there? It needs Python 3.11 or later. Type yes to copy it: "
    )


def install(shell: shells.Shell, address: net.Address, timeout: float) -> str:
    """Copy this version there, and return a sentence about it.

    Arguments: `timeout` in seconds to reach it. Raises NotInstalled, what ssh's end means, TimedOut.
    """
    data = archive.build()
    status, out, lines = ssh.run(shell, address, shells.in_sh(_script(len(data))), data, timeout)
    if status == _NO_PYTHON:
        raise NotInstalled(
            f"there is no ftransfer on {address.host}, and no Python 3.11 or later that could run it",
            hint="put one on the PATH that shells without a terminal have there, or install ftransfer with it and name "
            f"that: --remote-command; looked for: {_PYTHONS}",
        )
    last = "".join(f": {line}" for line in lines[-1:])
    if status == _CUT:
        raise ConnectionLost(f"the copy did not arrive whole on {address.host}{last}", hint="run it again")
    if status == _NO_PLACE or 0 < status < _NO_PYTHON:
        hint = "it goes into ~/.cache/ftransfer there, or the folder of XDG_CACHE_HOME"
        raise (shells.by_status(status) or RemoteDiskError)(
            f"ftransfer cannot be put on {address.host}{last}", hint=hint
        )
    if status:
        raise shells.failure(status, address, shell, last, lines)
    try:
        told = json.loads(out.decode("utf-8", "replace").rstrip().rpartition("\n")[2])
        return f"copied to {address.host}: {told['path']} (Python {told['python']}, XXH3 by {told['xxh']})"
    except (ValueError, KeyError, TypeError) as exc:
        raise FtransferError(f"what {address.host} said of the copy cannot be understood") from exc

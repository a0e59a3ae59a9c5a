"""One file that holds this version and that a Python without it can run: built here, settled on the other machine.

`ftransfer login ssh://HOST` sends the bytes of `build` to a temporary file there, and lets the Python that it finds
there call `settle` out of that file:

    PYTHONSAFEPATH=1 python3 -c "import sys; sys.path.insert(0, sys.argv[1])
    from ftransfer.archive import settle; settle(*sys.argv[1:])" TEMPORARY TARGET

What is left is an executable file: a shebang, and a zip archive of the modules, compiled for that Python.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from ftransfer import __version__
from ftransfer.errors import from_os

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable
    from zipfile import ZipFile

VERSION_NAME = f"ftransfer-{__version__}"
"""What the archive is called in the cache folder."""
SHEBANG = 127
"""Bytes of the first line that every kernel reads."""
_MAIN = b"""\
import sys

if sys.version_info < (3, 11):
    sys.exit("ftransfer needs Python 3.11 or later, and %s is %d.%d" % ((sys.executable,) + sys.version_info[:2]))
from ftransfer.cli import main

sys.exit(main())
"""


def build() -> bytes:
    """Return this package as a zip application: the same bytes each time, also if it runs out of such an archive."""
    from importlib.resources import files
    from zipfile import ZIP_DEFLATED, ZipFile

    made = io.BytesIO()
    with ZipFile(made, "w", ZIP_DEFLATED, compresslevel=9) as archive:
        for name, source in [("__main__.py", _MAIN), *_sources(files("ftransfer"), "ftransfer")]:
            _add(archive, name, source)
    return made.getvalue()


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            yield f"{name}/{entry.name}", entry.read_bytes()


def _add(archive: ZipFile, name: str, data: bytes, *, packed: bool = True) -> None:
    from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

    info = ZipInfo(name)  # of 1980, whatever the clock says
    info.compress_type = ZIP_DEFLATED if packed else ZIP_STORED
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    archive.writestr(info, data)


def settle(source: str, target: str) -> None:
    """Make the archive `source` the executable file `target`, for the Python that runs this, and say what was found.

    `target` is replaced in one step, `source` removed. Prints a line of JSON: the version of `python`, where `xxh`
    comes from, the `path`. Ends the process with a sentence where that does not work.
    """
    import json
    import zlib
    from zipfile import BadZipFile

    if sys.version_info < (3, 11):  # noqa: UP036 - who calls this has asked; but it runs wherever it is called
        sys.exit(f"ftransfer needs Python 3.11 or later, and {sys.executable} is {sys.version.split()[0]}")
    if not sys.executable:
        sys.exit("this Python does not know where it is")
    from ftransfer.xxh import SOURCE

    target = os.path.abspath(target)
    try:
        made = _compiled(source, target)
        os.unlink(source)  # nothing of it is needed any more, and nothing stays behind if the next step fails
        _replace(target, _head(sys.executable) + made)
    except OSError as exc:
        error = from_os(exc)
        sys.stderr.write(f"cannot put ftransfer at {target}: {error}\n")
        sys.exit(error.exit_status)
    except (BadZipFile, zlib.error, RuntimeError) as exc:  # RuntimeError for what claims to be encrypted, or newer
        sys.exit(f"the archive did not arrive as it was sent: {exc}")
    found = {"python": sys.version.split()[0], "xxh": SOURCE, "path": target}
    sys.stdout.write(f"{json.dumps(found)}\n")
    sys.stdout.flush()


def _head(python: str) -> bytes:
    """Return the lines before the archive, which let a kernel run it with this Python."""
    name = os.fsencode(python)  # -E: what a module system sets for another Python is not for this one
    if len(name) <= SHEBANG - len("#! -E\n") and not any(blank in name for blank in b" \t\n"):
        return b"#!%b -E\n" % name
    from shlex import quote

    return b'#!/bin/sh\nexec %b -E "$0" "$@"\n' % os.fsencode(quote(python))


def _compiled(source: str, target: str) -> bytes:
    """Return the archive `source` with what this Python compiles each module to.

    Another Python, after an upgrade, takes the source. The compiled modules are not compressed, to start sooner.
    """
    from zipfile import ZipFile

    made = io.BytesIO()
    with ZipFile(source) as old, ZipFile(made, "w") as archive:
        for name in old.namelist():
            text = old.read(name)
            _add(archive, f"{name}c", _pyc(text, os.path.join(target, name)), packed=False)
            _add(archive, name, text)
    return made.getvalue()


def _pyc(source: bytes, path: str) -> bytes:
    """Return a compiled module that is taken without a look at its source (PEP 552: unchecked, by hash)."""
    import marshal
    from importlib.util import MAGIC_NUMBER, source_hash

    code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    return MAGIC_NUMBER + (1).to_bytes(4, "little") + source_hash(source) + marshal.dumps(code)


def _replace(path: str, data: bytes) -> None:
    """Give an executable file these bytes, durably, in one step."""
    folder = os.path.dirname(path)
    temporary = f"{path}.{os.urandom(6).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o700)  # also under an odd umask
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(held)
    finally:
        os.close(held)

"""The permission bits that files and folders get on the other side, as `--chmod` spells them (chmod(1), rsync(1)).

Nine bits and no more: who may set a user or group id on a file is decided on the machine where it is. Does no I/O.
Called by the client.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ftransfer.errors import UsageError

_ALL = 0o777
_WHO = {"u": 0o700, "g": 0o070, "o": 0o007, "a": _ALL}
_RIGHTS = {"r": 0o444, "w": 0o222, "x": 0o111}
_CLAUSE = r"([DF]?)(?:0?([0-7]{3})|([ugoa]*)((?:[-+=](?:[rwxX]*|[ugo]))+))"
_MORE_THAN_NINE_BITS = r"[DF]?(?:0?[1-7][0-7]{3}|[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+)"


class _Step(NamedTuple):
    """One change, by `op` (+, - or =), of the bits in `who`.

    The bits are `bits`; with `may_execute` x too for what has an x, and for folders; and what the class `like` has.
    """

    op: str
    who: int
    bits: int
    may_execute: bool = False
    like: int = 0

    def apply(self, mode: int, *, is_folder: bool) -> int:
        bits = self.bits
        if self.may_execute and (is_folder or mode & _RIGHTS["x"]):
            bits |= _RIGHTS["x"]
        if self.like:
            bits |= sum(right for right in _RIGHTS.values() if mode & self.like & right)
        bits &= self.who
        if self.op == "+":
            return mode | bits
        return mode & ~bits if self.op == "-" else mode & ~self.who | bits


class Modes(NamedTuple):
    """What `--chmod` asks for: changes that are made one after the other to the bits that an entry has."""

    for_files: tuple[_Step, ...]
    for_folders: tuple[_Step, ...]

    @classmethod
    def parse(cls, text: str) -> Modes:
        """Return what `text` asks for: clauses with commas between, each for files and folders unless it begins F or D.

        - Octal: `640` gives that to files, and to folders x too wherever it has r (750); `D755`, `F644` just that.
        - Symbolic: `u+rw`, `go-w`, `a+X`, `u=rwX`, `g=u`. X is x where there is one already, and for folders. Without
          a who it is everyone, whatever the umask; as w for everyone is rarely meant, `+w` and `=w` need the who.

        Raises UsageError with a hint.
        """
        files: list[_Step] = []
        folders: list[_Step] = []
        for clause in text.split(","):
            match = re.fullmatch(_CLAUSE, clause)
            if match is None:
                raise _not_a_mode(clause)
            kind, octal, who, changes = match.groups()
            steps = [_Step("=", _ALL, int(octal, 8))] if octal else _changes(who, changes)
            if kind != "D":
                files += steps
            if octal and not kind:
                steps.append(_Step("+", _ALL, (int(octal, 8) & _RIGHTS["r"]) >> 2))
            if kind != "F":
                folders += steps
        return cls(tuple(files), tuple(folders))

    def file(self, mode: int) -> int:
        """Return the nine bits for a file that has these."""
        mode &= _ALL
        for step in self.for_files:
            mode = step.apply(mode, is_folder=False)
        return mode

    def folder(self, mode: int) -> int:
        """Return the nine bits for a folder that has these."""
        mode &= _ALL
        for step in self.for_folders:
            mode = step.apply(mode, is_folder=True)
        return mode


def _changes(who: str, changes: str) -> list[_Step]:
    """Return the steps of a symbolic clause, such as `ug` and `+rw-x`."""
    if not who and re.search("[+=][rxX]*w", changes):
        raise UsageError(f"w for whom? {changes!r}", hint="write u+w for the owner, a+w for everyone")
    mask = 0
    for letter in who or "a":
        mask |= _WHO[letter]
    steps = []
    for op, rights, like in re.findall("([-+=])([rwxX]*)([ugo]?)", changes):
        bits = sum(right for letter, right in _RIGHTS.items() if letter in rights)
        steps.append(_Step(op, mask, bits, "X" in rights, _WHO[like] if like else 0))
    return steps


def _not_a_mode(clause: str) -> UsageError:
    if re.fullmatch(_MORE_THAN_NINE_BITS, clause):
        return UsageError(f"more than r, w and x in a mode: {clause!r}", hint="leave out setuid, setgid and sticky bit")
    return UsageError(
        f"not a mode: {clause!r}", hint="write 640, D755,F644, u+rw,go-w or a+rX; D is for folders only, F for files"
    )

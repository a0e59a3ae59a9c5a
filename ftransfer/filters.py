r"""Which entries of a tree are taken: patterns in the order given, a largest size, an oldest time.

A pattern has the meaning that it has in a .gitignore at the root of the tree (gitignore(5)): `*.o` is any name that
ends so, `/x` and `a/x` begin at the root, `a/` is a folder only, `**` is any number of folders. The library `pathspec`
translates it; what applies to an entry is decided here, as git does it: the last rule that matches the entry itself
counts, and what lies in an excluded folder is never looked at. Called by the client, for every entry of a tree.

Beyond gitignore(5):
- a rule says by itself whether it includes, so a `#` at the front is a character of the name, and a `!` is refused,
  for it could be meant either way; the character itself is `\!`
- spaces at the end count, except in the lines of a file (`read_rules`)
- what git passes over in silence, because it can match nothing, is refused: `a//b`, `./a`, a `[` without its `]`
- so is what the library takes for something else than git does: classes like `[[:alpha:]]`, a `\` inside `[...]`
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, TypeVar

from ftransfer.errors import UsageError, from_os

Rule = tuple[Literal["include", "exclude"], str]
"""What is done with the entries that match, and the pattern."""
_FOLDERS_KEPT = 1024
"""Folders whose state is kept at hand: entries come folder by folder."""


class TreeEntry(Protocol):
    """What `Filter.select` reads of an entry; `store.base.Entry` is one."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


E = TypeVar("E", bound=TreeEntry)


class _State(Enum):
    """What a folder means for what lies in it."""

    OUT = auto()  # nothing in it is taken
    OPEN = auto()  # the rules decide on each entry
    IN = auto()  # each file in it is taken


class _Matcher(NamedTuple):
    """A rule made ready: `search` in the name alone, or in the path if that has so many slashes (None: any number)."""

    includes: bool
    search: Callable[[str], re.Match[str] | None]
    folders_only: bool
    name_only: bool
    slashes: int | None


class Filter:
    """Tells which entries of a tree are taken; never changes.

    Arguments: `rules`, of which the last one that matches counts; `max_size`, the most bytes a file may have;
    `newer_ns`, the earliest time of last change, in nanoseconds since 1970, that a file may have.

    What no rule matches is taken, unless there are includes and no excludes: then a file is taken only if an include
    matches it or a folder that it lies in, and every folder is looked into. An excluded folder takes all that is in it
    along, and no include brings that back: `*` and `!*.c` take the .c files of the top only, `*`, `!*/` and `!*.c` all.
    Paths are relative to the root of the tree, with `/`. The answers do not depend on the order of the questions.

    Raises UsageError for a pattern that makes no sense, or if there are rules and `pathspec` is not installed.
    """

    def __init__(self, rules: Iterable[Rule] = (), *, max_size: int | None = None, newer_ns: int | None = None):
        matchers = [_matcher(*rule) for rule in rules][::-1]
        self._for_folders = tuple(matchers)
        self._for_files = tuple(matcher for matcher in matchers if not matcher.folders_only)
        self._only_includes = bool(matchers) and all(matcher.includes for matcher in matchers)
        self._max_size = max_size
        self._newer_ns = newer_ns
        self._state = lru_cache(_FOLDERS_KEPT)(self._decide)

    @property
    def is_empty(self) -> bool:
        """Whether it takes everything."""
        return not self._for_folders and self._max_size is None and self._newer_ns is None

    def takes_folder(self, path: str) -> bool:
        """Tell whether a folder is taken and looked into; size and time do not count here."""
        return not self._for_folders or self._state(path) is not _State.OUT

    def takes_file(self, path: str, size: int, mtime_ns: int) -> bool:
        """Tell whether a file is taken, by the patterns and by size and time.

        What this refuses is left alone on both sides: whoever removes what the source lacks (`--delete`) asks this
        about each file that might go, with the size and the time that it has there, and keeps what is not taken.
        A link is a file of size 0.
        """
        if self._max_size is not None and size > self._max_size:
            return False
        if self._newer_ns is not None and mtime_ns < self._newer_ns:
            return False
        if not self._for_folders:
            return True
        folder, _, name = path.rpartition("/")
        state = self._state(folder)
        if state is _State.OPEN:
            verdict = _verdict(self._for_files, path, name)
            return not self._only_includes if verdict is None else verdict
        return state is _State.IN

    def select(self, entries: Iterable[E]) -> Iterator[E]:
        """Yield the entries that are taken, in their order: each folder comes before its contents, these right after.

        What lies below an excluded folder is passed over unasked. Nothing is kept but the name of that folder.
        """
        return iter(entries) if self.is_empty else self._select(entries)

    def _select(self, entries: Iterable[E]) -> Iterator[E]:
        excluded = "/"  # no path begins so
        for entry in entries:
            path = entry.path
            if path.startswith(excluded):
                continue
            kind = entry.kind
            if kind != "folder":
                if self.takes_file(path, entry.size if kind == "file" else 0, entry.mtime_ns):
                    yield entry
            elif self.takes_folder(path):
                yield entry
            else:
                excluded = path + "/"

    def _decide(self, folder: str) -> _State:
        """Return the state of a folder; it goes no deeper into itself than paths go (paths.MAX_DEPTH)."""
        if not folder:
            return _State.OPEN
        above, _, name = folder.rpartition("/")
        state = self._state(above)
        if state is not _State.OPEN:
            return state
        verdict = _verdict(self._for_folders, folder, name)
        if self._only_includes:
            return _State.IN if verdict else _State.OPEN
        return _State.OUT if verdict is False else _State.OPEN


def _verdict(matchers: tuple[_Matcher, ...], path: str, name: str) -> bool | None:
    """Return whether the last rule that matches this very entry includes it; None if no rule does."""
    if "\n" in path:
        path, name = _one_line(path), _one_line(name)
    depth = path.count("/")
    for includes, search, _, name_only, slashes in matchers:
        if name_only:
            match = search(name)
        elif slashes is None or slashes == depth:
            match = search(path)
        else:
            continue
        # pathspec also matches what lies below a match, and has that in a group: then the match is a folder above.
        if match is not None and match.lastindex is None:
            return includes
    return None


def _one_line(text: str) -> str:
    """Return a text without newlines, where `.` and `$` of a regular expression have meanings of their own."""
    return text.replace("\n", "\0")


def _matcher(action: str, pattern: str) -> _Matcher:
    if action not in ("include", "exclude"):
        raise UsageError(f"not a rule: {action!r}", hint="a rule is include or exclude, and a pattern")
    parts = _parts(pattern)
    folders_only = parts[-1] == "/"
    if folders_only:
        # Matched without its slash, and only with folders: so a folder is no other case than a file.
        parts.pop()
    _protect(parts)
    # As wildmatch of git has it, three stars between slashes are no less than two.
    line = re.sub(r"(?<![^/])\*{3,}(?![^/])", "**", "".join(parts))
    # The count also keeps sets like [!a] from standing for a slash, as pathspec would have it; with ** they still may.
    slashes = None if "**" in line.split("/") else line.removeprefix("/").count("/")
    return _Matcher(action == "include", _compile(line, pattern), folders_only, "/" not in line, slashes)


def _protect(parts: list[str]) -> None:
    """Write the blanks around a pattern and a # at its front so that a line keeps them."""
    for end in (0, -1):
        if (last := parts[end][-1]).isspace():
            parts[end] = f"[{last}]"
    if parts[0] == "#":
        parts[0] = "\\#"


def _bad(pattern: str, why: str, hint: str) -> UsageError:
    return UsageError(f"not a pattern: {pattern!r}: {why}", hint=hint)


_PART = r"\\[^/]|\[[!^]?+\]?+(?:(?!\[[:.=])[^]\\/])*+\]|[^\\[]"
"""One part of a pattern: an escaped character, a set, or any other character."""


def _parts(pattern: str) -> list[str]:
    """Return the parts of a pattern, which is one that can match something. Raises UsageError."""
    if pattern.startswith("!"):
        raise _bad(pattern, "it begins with !", "to take something back, include it; a name that begins so is \\!name")
    if not pattern.strip("/") or "\0" in pattern:
        raise _bad(pattern, "it can match nothing", "* is everything")
    components = pattern.removesuffix("/").removeprefix("/").split("/")
    if "" in components:
        raise _bad(pattern, "it has an empty component", "write a/b, not a//b")
    if "." in components or ".." in components:
        raise _bad(pattern, "it has a component . or ..", "/x is x at the root of the tree, x is x anywhere in it")
    if not re.fullmatch(f"(?:{_PART})*+", pattern, re.DOTALL):
        raise _bad(
            pattern,
            "a [ without its ], a \\, / or [:class:] inside [...], or a \\ with nothing to escape",
            "\\[ and \\\\ are the characters themselves",
        )
    return re.findall(_PART, pattern, re.DOTALL)


def _compile(line: str, pattern: str) -> Callable[[str], re.Match[str] | None]:
    """Return what searches a path for the pattern that pathspec reads in a line."""
    try:
        from pathspec import GitIgnoreSpec  # here, because it is not always installed, and few runs have patterns
    except ImportError as exc:
        hint = "pip install 'ftransfer-tool[filters]'"
        raise UsageError("patterns need the package pathspec, which is not installed", hint=hint) from exc
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of `[[]`, which may one day mean more to re
            regex = GitIgnoreSpec.from_lines([_one_line(line)]).patterns[0].regex
    except (ValueError, re.error) as exc:
        raise _bad(pattern, str(exc), "the syntax is that of .gitignore") from exc
    if regex is None:
        raise _bad(pattern, "it can match nothing", "the syntax is that of .gitignore")
    return regex.search


def read_rules(path: str | os.PathLike[str]) -> list[Rule]:
    r"""Return the rules in a file that is written as a .gitignore: a pattern a line, `!` before what is included.

    As git reads it: comments (`#`), blank lines and spaces at the end of a line (but not `\ `) do not count.
    Raises NotFound, NotAFile, Refused; UsageError if it is no text, or with the number of a line that is no pattern.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read().split("\n")
    except OSError as exc:
        raise from_os(exc, name) from exc
    except UnicodeDecodeError as exc:
        raise UsageError("the list of patterns is not UTF-8", path=name, hint="save it as UTF-8") from exc
    rules = []
    for number, line in enumerate(lines, 1):
        text = _trimmed(line)
        if text and not text.startswith("#"):
            rule = _rule(text)
            try:
                _parts(rule[1])
            except UsageError as exc:
                raise UsageError(f"line {number}: {exc}", path=name, hint=exc.hint) from None
            rules.append(rule)
    return rules


def _rule(line: str) -> Rule:
    action: Literal["include", "exclude"] = "include" if line[0] == "!" else "exclude"
    pattern = line.removeprefix("!")
    return action, f"\\{pattern}" if pattern.startswith("!") else pattern


def _trimmed(line: str) -> str:
    """Return a line without the carriage return and the spaces at its end; an escaped space stays."""
    line = line.removesuffix("\r")
    text = line.rstrip(" ")
    backslashes = len(text) - len(text.rstrip("\\"))
    return text + " " if backslashes % 2 and len(text) < len(line) else text

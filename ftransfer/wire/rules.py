"""What a message is: its fields, the rule each field keeps, and the limits. Used by the other modules of `wire` only.

Every length that a peer chooses has a named limit here, checked before anything is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, Self, dataclass_transform

from ftransfer import paths
from ftransfer.errors import BadPath, FrameError

VERSION = 1
"""The version of the protocol that this module speaks."""
MAX_HEADER = 65_536
"""Longest header, in bytes."""
MAX_NESTING = 32
"""Objects and lists of a header that may stand in each other."""
MAX_BLOCK = 4 << 20
"""Largest body of a block, in bytes."""
MIN_BLOCK = 64 << 10
"""A sender on a slow line does not go below this, in bytes."""
WINDOW = 32
"""Blocks, packs or requests that may stand unanswered."""
MAX_RANGES = 512
"""Ranges in one `want`; more follow in another."""
MAX_WANTED = 65_536
"""Ranges that may be wanted of one file at a time; the rest is asked for at the end."""
PAGE_BYTES = 32 << 10
"""A page of rows is closed when it has grown to about this many bytes."""
MAX_ROWS = 1024
"""Rows in one page."""
MAX_PACK = 4 << 20
"""Largest body of a pack, in bytes."""
MAX_FAILED = 1024
"""Rows that one `receipts` names; more follow in another."""
MAX_TEXT = 1000
"""Longest message or hint of an error, in characters."""
MAX_INT = (1 << 63) - 1


class Rule(NamedTuple):
    """What a field may hold: the words for the docs, and the check.

    `names` yields the paths in it; with `root` they may be empty, which means the served folder or the request's own.
    """

    words: str
    holds: Callable[[Any], bool]
    names: Callable[[Any], Iterable[str]] | None = None
    root: bool = False


def integer(low: int, high: int, words: str) -> Rule:
    """Return the rule for an integer from `low` to `high`; true and false are none."""
    return Rule(words, lambda v: type(v) is int and low <= v <= high)


def pattern(expression: str, words: str) -> Rule:
    """Return the rule for text that a regular expression matches whole."""
    match = re.compile(expression, re.ASCII).fullmatch
    return Rule(words, lambda v: type(v) is str and match(v) is not None)


def one_of(*values: str) -> Rule:
    """Return the rule for one of several words."""
    return Rule(" or ".join(f'"{v}"' for v in values), lambda v: type(v) is str and v in values)


def or_null(rule: Rule) -> Rule:
    """Return the rule for a field that may be null."""
    return Rule(f"{rule.words}, or null", lambda v: v is None or rule.holds(v))


def many(rule: Rule, most: int, words: str) -> Rule:
    """Return the rule for a list of at most `most` items."""
    return Rule(words, lambda v: type(v) in (tuple, list) and len(v) <= most and all(rule.holds(item) for item in v))


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT and (value.isascii() or not _SURROGATE.search(value))


def is_range(value: Any) -> bool:
    """Tell whether a value is a pair of offset and length, or null for to the end."""
    if type(value) not in (tuple, list) or len(value) != 2 or not SIZE.holds(value[0]):
        return False
    return value[1] is None or (SIZE.holds(value[1]) and value[1] > 0 and value[0] + value[1] <= MAX_INT)


def is_row(value: Any) -> bool:
    """Tell whether a value is the row of an entry."""
    if type(value) not in (tuple, list) or len(value) != 5:
        return False
    name, kind, size, mtime, mode = value
    if type(size) is not int or type(mtime) is not int or type(mode) is not int or kind not in KINDS:
        return False
    return 0 <= size <= MAX_INT and -MAX_INT <= mtime <= MAX_INT and 0 <= mode <= 0o7777 and NAME.holds(name)


def is_partial(value: Any) -> bool:
    """Tell whether a value is the row of a partial."""
    if type(value) not in (tuple, list) or len(value) != 4:
        return False
    return NAME.holds(value[0]) and OPTIONAL_SIZE.holds(value[1]) and SIZE.holds(value[2]) and TIME.holds(value[3])


def is_failure(value: Any) -> bool:
    """Tell whether a value is the row of something that cannot be listed."""
    if type(value) not in (tuple, list) or len(value) != 3:
        return False
    return NAME.holds(value[0]) and CODE.holds(value[1]) and TEXT.holds(value[2])


_SURROGATE = re.compile("[\ud800-\udfff]")
KINDS = ("file", "folder", "link", "other")
T = integer(1, (1 << 31) - 1, "integer, 1 to 2147483647")
SIZE = integer(0, MAX_INT, "integer, 0 to 2^63-1")
OPTIONAL_SIZE = or_null(SIZE)
TIME = integer(-MAX_INT, MAX_INT, "integer, nanoseconds since 1970, may be negative")
MODE = integer(0, 0o7777, "integer, 0 to 4095")
BOOL = Rule("true or false", lambda v: type(v) is bool)
TEXT = Rule(f"text of at most {MAX_TEXT} characters", _is_text)
NAME = Rule(
    "text of at most 4096 characters",
    lambda v: type(v) is str and len(v) <= paths.MAX_PATH and (v.isascii() or not _SURROGATE.search(v)),
)
PATH = Rule("path", lambda v: type(v) is str, lambda v: (v,))
FOLDER = Rule('path, or "" for the served folder', lambda v: type(v) is str, lambda v: (v,), root=True)
TOKEN = pattern("[0-9a-f]{32}", "32 hexadecimal digits")
SECRET = pattern("[!-~]{1,256}", "1 to 256 printable ASCII characters")
USER = pattern("[a-z0-9][a-z0-9_.-]{0,31}", "1 to 32 of a-z, 0-9, dot, dash and underscore")
FINGERPRINT = pattern("[!-~]{1,128}", "1 to 128 printable ASCII characters")
CODE = pattern("[a-z][a-z-]{0,31}", "lower-case word")
HASH = pattern("[0-9a-f]{32}|[0-9a-f]{64}", "32 or 64 hexadecimal digits")
LINKS = one_of("copy", "follow")
WORDS = many(TEXT, 64, "list of at most 64 texts")


_REQUIRED: Any = object()


class Field(NamedTuple):
    """A field of a message: its rule, and what it is if it is left out."""

    rule: Rule
    default: Any


def field(rule: Rule, *, default: Any = _REQUIRED) -> Any:
    """Declare a field of a message; one with a default may be left out of the header."""
    return Field(rule, default)


BY_TYPE: dict[str, type[Message]] = {}
"""Type name to class, of every message of this version."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Message:
    """Base of all messages: keyword-built, checked when built, immutable after.

    A frozen dataclass in all but the import of `dataclasses`, which would cost more than the rest of the start-up.
    Raises FrameError for a missing or wrong field, BadPath for a name that may not be used.
    """

    type: ClassVar[str]
    fields: ClassVar[dict[str, Field]]

    def __init_subclass__(cls) -> None:
        cls.type = cls.__name__.lower()
        cls.fields = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        BY_TYPE[cls.type] = cls

    def __init__(self, /, **values: Any) -> None:
        bad_path = None
        for name, (rule, default) in self.fields.items():
            value = values.get(name, default)
            if value is _REQUIRED:
                raise FrameError(f"{self.type}: field {name!r} is missing")
            if not rule.holds(value):
                raise FrameError(f"{self.type}: field {name!r} must be {rule.words}")
            if rule.names is not None:
                try:
                    for path in rule.names(value):
                        paths.check(path, root=rule.root)
                except BadPath as exc:
                    bad_path = exc
            self.__dict__[name] = value if value or default != () else default  # an empty list is the default
        if bad_path is not None:
            raise RefusedName(self.__dict__["t"], bad_path, kind=self.type) from bad_path

    @classmethod
    def of_ours(cls, **values: Any) -> Self:
        """Return a message of many rows that this end has made of what it has checked already: not checked again."""
        made = cls.__new__(cls)
        made.__dict__.update({name: default for name, (_, default) in cls.fields.items()} | values)
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self.type} messages are immutable")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((self.type, repr(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"


class RefusedName(BadPath):
    """A request whose only fault is a name: it is refused by its number, and the connection goes on."""

    def __init__(self, t: int = 0, why: BadPath | None = None, *, kind: str = ""):
        super().__init__(why.message if why else "", hint=why.hint if why else None, path=why.path if why else None)
        self.t = t
        self.kind = kind

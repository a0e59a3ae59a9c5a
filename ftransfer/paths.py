"""Names that come from the other side: the only place that decides what is a usable path and how it is shown.

A wire path is relative to the served root, uses `/`, and is UTF-8. What passes here is what the store opens, unchanged.
Control characters, newlines and backslashes are legal in names on Linux and macOS, so they are kept, and escaped
wherever a person sees them. Called by `wire` (every path in a message), the stores and the client. Does no I/O.
"""

from __future__ import annotations

import re

from ftransfer.errors import BadPath

MAX_PATH = 4096
"""Longest path, in bytes of UTF-8."""
MAX_COMPONENT = 255
"""Longest component, in bytes of UTF-8."""
MAX_DEPTH = 128
"""Most components: what walks a tree holds a descriptor for each level, and these are few."""
RESERVED = ".ftransfer"
"""Names that begin so, in any spelling that a file system may take for the same, belong to the store."""
ROOT = ""
"""The path of the served folder itself."""


def is_reserved(component: str) -> bool:
    """Tell whether a component is, or could be taken for, a name that the store keeps to itself.

    File systems may fold case and Unicode forms and drop ignorable characters (HFS+), so the name is folded the
    same way before it is compared.
    """
    if component.isascii():
        return component[: len(RESERVED)].lower() == RESERVED
    import unicodedata  # here, because hardly any run needs it

    folded = unicodedata.normalize("NFKC", component).casefold()
    visible = "".join(c for c in folded if unicodedata.category(c) != "Cf" and not _is_ignorable(c))
    return unicodedata.normalize("NFKC", visible).startswith(RESERVED)


def _is_ignorable(char: str) -> bool:
    """Tell whether a character is default-ignorable beyond category Cf (Unicode, DerivedCoreProperties)."""
    code = ord(char)
    return code in (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0) or (
        0x180B <= code <= 0x180F or 0xFE00 <= code <= 0xFE0F or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF
    )


_is_plain = re.compile(r"[^/.\0][^/\0]{0,254}(?:/[^/.\0][^/\0]{0,254}){0,127}", re.DOTALL).fullmatch
"""ASCII paths that this matches are good, which is quickly seen: no component begins with a dot."""


def is_plain_name(name: str) -> bool:
    """Tell, quickly, that a component is good; most are, and False says nothing."""
    return name.isascii() and _is_plain(name) is not None


def check(path: str, *, root: bool = False) -> str:
    """Return `path` if it may be used, unchanged.

    Arguments: `root` allows the empty path, which means the served folder itself.
    Raises BadPath with what is wrong and, where there is a way out, a hint.
    """
    if path.isascii() and len(path) <= MAX_PATH and _is_plain(path):
        return path
    if not path:
        if root:
            return path
        raise BadPath("the path is empty", hint="name a file")
    try:
        raw = path.encode("utf-8")
    except UnicodeEncodeError:
        raise BadPath("the name is not valid UTF-8", path=path, hint="rename the file; names travel as UTF-8") from None
    if len(raw) > MAX_PATH:
        raise BadPath(f"the path is longer than {MAX_PATH} bytes", path=path[:80] + "...")
    if b"\0" in raw:
        raise BadPath("the path holds a NUL byte", path=path)
    if path[0] == "/":
        raise BadPath("the path is absolute", path=path, hint="paths are relative to the served folder")
    components = path.split("/")
    if len(components) > MAX_DEPTH:
        raise BadPath(f"the path has more than {MAX_DEPTH} components", path=path[:80] + "...")
    for component in components:
        _check_component(component, path)
    return path


def _check_component(component: str, path: str) -> None:
    if component == "":
        raise BadPath("the path has an empty component", path=path, hint="write a/b, not a//b or a/")
    if component in (".", ".."):
        raise BadPath(f"the path has a component {component!r}", path=path, hint="write the path out")
    if len(component) > MAX_COMPONENT // 4 and len(component.encode()) > MAX_COMPONENT:
        raise BadPath(f"a component is longer than {MAX_COMPONENT} bytes", path=path)
    if is_reserved(component):
        raise BadPath(f"names that begin with {RESERVED} are reserved for staging", path=path, hint="rename the file")


def join(folder: str, name: str) -> str:
    """Return the path of `name` inside `folder`, both wire paths; the result still has to be checked."""
    return f"{folder}/{name}" if folder else name


def check_link(path: str, target: str) -> None:
    """Raise BadPath if a symbolic link at `path` that says `target` may not be made: it could lead out of its tree.

    `..` counts at the beginning only: after the name of another link nobody knows what it leads to.
    """
    if not target.isascii() and _SURROGATE.search(target):
        raise BadPath("a symbolic link whose target is not valid UTF-8", path=path)
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if not target or len(target) > MAX_PATH // 4 or "\0" in target:
        raise BadPath("a symbolic link whose target cannot be used", path=path)
    if target[0] == "/" or up > path.count("/") or ".." in parts[up:]:
        raise BadPath("a symbolic link that leads out of the folder", path=path)


_SURROGATE = re.compile("[\ud800-\udfff]")


def short(text: str, most: int) -> str:
    """Return text for a message: escaped as `readable` does, and cut to that many bytes of UTF-8."""
    return readable(text).encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def readable(text: str) -> str:
    """Return a sentence escaped as `printable` does, except for the backslash: names in it are escaped already."""
    return printable(text).replace("\\\\", "\\")


_SPECIAL = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def printable(text: str) -> str:
    """Return `text` with everything escaped that could move a cursor, end a line or reorder what is read.

    Escapes C0 and C1 controls, DEL, line and paragraph separators, format characters (which holds the bidirectional
    overrides), lone surrogates, private and unassigned characters, and the backslash that would make this ambiguous.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape(c) for c in text)


def _escape(char: str) -> str:
    if char in _SPECIAL:
        return _SPECIAL[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

"""Names from the other side: what passes is safe to open, what is shown cannot move a cursor."""

import os
import re
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ftransfer
from ftransfer import paths
from ftransfer.errors import BadPath

BAD = {
    "empty": "",
    "absolute": "/etc/passwd",
    "only a slash": "/",
    "parent": "..",
    "parent in front": "../x",
    "parent inside": "a/../x",
    "parent at the end": "a/..",
    "itself": ".",
    "itself inside": "a/./b",
    "empty component": "a//b",
    "slash at the end": "a/",
    "NUL": "a\0b",
    "NUL alone": "\0",
    "lone surrogate": "a\udcffb",
    "surrogate pair in two halves": "\ud83d/\ude00",
    "component of 256 bytes": "x" * 256,
    "component of 256 bytes, 64 characters": "\U0001f600" * 64,
    "component of 256 bytes in the middle": f"a/{'é' * 128}/b",
    "path of 4097 bytes": "/".join(["x" * 99] * 40) + "/" + "y" * 97,
    "too deep": "/".join("a" * 300),
}
RESERVED = {
    "as it is": ".ftransfer",
    "with a tail": ".ftransfer-0123456789abcdef",
    "any tail": ".ftransferred",
    "inside": "a/.ftransfer/b",
    "upper case": ".FTRANSFER",
    "mixed case": ".fTrAnSfEr-x",
    "full width": "\uff0e\uff46\uff54\uff52\uff41\uff4e\uff53\uff46\uff45\uff52",
    "full width, one letter": ".\uff46transfer-1",
    "one dot leader": "\u2024ftransfer",
    "small full stop": "\ufe52ftransfer",
    "long s": ".ftran\u017ffer",
    "circled letters": ".\u24d5\u24e3\u24e1\u24d0\u24dd\u24e2\u24d5\u24d4\u24e1",
    "mathematical letters": ".\U0001d41f\U0001d42d\U0001d42bansfer",
    "superscript": ".ftransf\u1d49r",
    "full width, two letters": "\uff0e\uff46transfer",
    "zero width space": ".ftrans\u200bfer",
    "zero width joiner first": "\u200d.ftransfer",
    "soft hyphen": ".ft\u00adransfer",
    "byte order mark": "\ufeff.ftransfer",
    "right-to-left mark": ".\u200fftransfer",
    "variation selector": ".f\ufe0ftransfer",
    "variation selector 17": ".f\U000e0100transfer",
    "combining grapheme joiner": ".ftrans\u034ffer",
    "hangul filler": ".ftransfer\u3164-x",
    "hangul filler first": "\u115f.ftransfer",
    "half-width hangul filler": ".f\uffa0transfer",
    "mongolian vowel separator": ".ft\u180eransfer",
    "tag character": ".ft\U000e0061ransfer",
    "invisible operator": ".ft\u2064ransfer",
    "unassigned but ignorable": ".ft\u2065ransfer",
    "unassigned but ignorable, specials": ".ft\ufff0ransfer",
    "musical beam": ".ft\U0001d173ransfer",
    "shorthand format": ".ft\U0001bca0ransfer",
    "everything at once": "\u200b\uff0e\u00ad\uff26\u034fT\u2060ran\u017ffer",
}
FINE = [
    "a",
    "a/b/c",
    "...",
    "..a",
    "a..",
    ".hidden",
    ".ftransfe",
    "ftransfer",
    "x.ftransfer",
    " ",
    "a b",
    "back\\slash",
    "C:\\windows\\system32",
    "new\nline",
    "\x01\x1b[2J\x7f",
    "-rf",
    "~",
    "*?[",
    "NUL",
    "con.txt",
    "grüße/日本語/🎉",
    "e\u0301",
    "x" * 255,
    "\U0001f600" * 63,
    "\u202efdp.exe",
]
DEFAULT_IGNORABLE = [
    0xAD, 0x34F, 0x61C, *range(0x115F, 0x1161), *range(0x17B4, 0x17B6), *range(0x180B, 0x1810), *range(0x200B, 0x2010),
    *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0,
    *range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000),
]  # fmt: skip
"""Unicode 15, DerivedCoreProperties.txt, Default_Ignorable_Code_Point: what file systems that fold names leave out."""


@pytest.mark.parametrize("path", BAD.values(), ids=BAD)
def test_unsafe_names_are_refused(path: str) -> None:
    """Each has its own words."""
    with pytest.raises(BadPath) as caught:
        paths.check(path)
    assert caught.value.message


@pytest.mark.parametrize("path", RESERVED.values(), ids=RESERVED)
def test_every_spelling_of_a_staging_name_is_refused(path: str) -> None:
    """A name that some file system takes for `.ftransfer…` is not usable, at any depth."""
    for shape in (path, f"folder/{path}", f"{path}/file"):
        with pytest.raises(BadPath, match="reserved"):
            paths.check(shape)


def test_every_ignorable_character_is_seen_through() -> None:
    """None of the characters that a folding file system drops hides the reserved name."""
    hidden = [code for code in DEFAULT_IGNORABLE if not paths.is_reserved(f".ftrans{chr(code)}fer")]
    assert [f"{code:04X}" for code in hidden] == []


@pytest.mark.parametrize("path", FINE)
def test_legal_names_pass_unchanged(path: str) -> None:
    """What POSIX allows is allowed, and not touched."""
    assert paths.check(path) is path


def test_the_root_is_a_path_only_where_it_is_allowed() -> None:
    """The empty path means the served folder, for those who say so."""
    assert paths.check("", root=True) == ""
    with pytest.raises(BadPath):
        paths.check("")
    with pytest.raises(BadPath):
        paths.check(".", root=True)


def test_a_path_at_the_limits_passes() -> None:
    """4096 bytes in components of 255 are allowed, one more is not."""
    path = "/".join(["x" * 255] * 15 + ["y" * 254, "z"])[: paths.MAX_PATH]
    assert len(path) == paths.MAX_PATH
    assert paths.check(path) == path


texts = st.text(st.characters() | st.sampled_from("/.\0\\\n\x1b\u202e") | st.characters(categories=["Cs"]), max_size=40)


@given(texts | st.lists(texts, max_size=5).map("/".join))
@example("a" * 256)
def test_what_passes_is_safe(path: str) -> None:
    """Only paths below the root pass, and the same path passes again."""
    try:
        checked = paths.check(path)
    except BadPath:
        return
    assert checked == path == paths.check(checked)
    raw = os.fsencode(checked)
    assert raw.decode("utf-8") == path
    assert b"\0" not in raw
    assert 0 < len(raw) <= paths.MAX_PATH
    assert os.path.normpath(raw) == raw
    assert not os.path.isabs(raw)
    for component in raw.split(b"/"):
        assert component not in (b"", b".", b"..")
        assert len(component) <= paths.MAX_COMPONENT
        assert not component.lower().startswith(b".ftransfer")


@given(texts)
def test_what_is_shown_is_printable(text: str) -> None:
    """No control, format, surrogate, private or unassigned character and no foreign space is left."""
    shown = paths.printable(text)
    assert shown.isprintable()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in shown)


_ESCAPE = re.compile(r"\\(?:([nrt\\])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def unescape(shown: str) -> str:
    """Read what `printable` wrote."""
    plain = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}

    def one(found: re.Match[str]) -> str:
        return plain[found[1]] if found[1] else chr(int(found[2] or found[3] or found[4], 16))

    return _ESCAPE.sub(one, shown)


@given(texts)
def test_what_is_shown_means_one_name(text: str) -> None:
    """The escapes can be undone, so two names never look the same."""
    assert unescape(paths.printable(text)) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.txt", "plain name.txt"),
        ("grüße 日本", "grüße 日本"),
        ("a\\b", r"a\\b"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[31mred\x07\x7f\x00", r"\x1b[31mred\x07\x7f\x00"),
        ("\x9b2J", r"\x9b2J"),
        ("invoice\u202efdp.exe", r"invoice\u202efdp.exe"),
        ("a\u2028b\u200b", r"a\u2028b\u200b"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("\xa0", r"\xa0"),
    ],
)
def test_escapes_look_like_this(name: str, shown: str) -> None:
    """Readable letters stay, everything that acts is spelled out."""
    assert paths.printable(name) == shown


@pytest.mark.parametrize(
    "name", ["back\\slash", "new\nline", "\x01\x1b[2J", "invoice\u202efdp.exe", " ", "-rf", "日本"]
)
def test_odd_but_legal_names_are_stored_as_they_are(remote: ftransfer.Remote, root: Path, name: str) -> None:
    """POSIX allows them, so they arrive, are listed and come back, byte by byte."""
    remote.upload(b"data", f"in/{name}")
    assert [entry.name for entry in os.scandir(root / "in")] == [name]
    assert [entry.path for entry in remote.list("in")] == [name]
    assert remote.stat(f"in/{name}").size == 4
    remote.move(f"in/{name}", f"in/x{name}")
    remote.remove(f"in/x{name}")
    assert os.listdir(root / "in") == []


# The quick way.

near_limits = st.builds(
    lambda parts, tail: "/".join(parts) + tail,
    st.lists(
        st.sampled_from(
            ["a", "a.b", ".a", "-", " ", "~", "a\n", "\x01", ".", "..", "", ".ftransfer", "x" * 254, "x" * 255]
        )
        | st.sampled_from(
            ["x" * 256, "\u00e9" * 127, "\u00e9" * 128, "a\0b", ".FTransfer-1", "\ud800", "\u2024ftransfer"]
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(
        ["", "/", "\n", "/.", "/" + "/".join("a" * 107), "/" + "/".join("a" * 108), "/" + "/".join("a" * 127)]
    ),
)


def outcome(path: str, root: bool) -> str | None:
    """Return why a path is refused, or None."""
    try:
        assert paths.check(path, root=root) == path
    except BadPath as exc:
        return f"{exc.message} {exc.path!r} {exc.hint}"
    return None


@given(near_limits | st.text("a./\0\n-\u00e9", max_size=12), st.booleans())
@example("/".join("a" * 128), False)
@example("/".join("a" * 129), False)
@example("/".join(["x" * 255] * 16), False)
@example("/".join(["x" * 255] * 15) + "/" + "x" * 256, False)
@example("/".join(["x" * 255] * 16) + "/x", False)
@example("a\n", False)
@example("\n", False)
@example("a/.b", False)
@example("", True)
def test_the_quick_way_decides_as_the_slow_one(path: str, root: bool) -> None:
    """Most names are seen to be good at once; none that is not."""
    quick = outcome(path, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "_is_plain", lambda _: None)
        assert outcome(path, root) == quick


# What links say.

link_paths = st.lists(st.sampled_from("abl"), min_size=1, max_size=4).map("/".join)
targets = st.builds(
    lambda start, parts, end: start + "/".join(parts) + end,
    st.sampled_from(["", "", "", "/", "./", "//"]),
    st.lists(st.sampled_from(["..", "..", ".", "", "a", "b", "...", "..a", " "]), max_size=7),
    st.sampled_from(["", "", "/", "/.", "/.."]),
)


def leads_out(path: str, target: str) -> bool:
    """Tell whether a link leads out of the tree that it lies in, as the system's own rules of paths have it."""
    if not target or target.startswith("/"):
        return True
    where = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return where == ".." or where.startswith("../")


@given(link_paths, targets)
@example("l", "..")
@example("a/l", "..")
@example("a/l", "../..")
@example("l", "a/..")
@example("l", "..a")
def test_links_stay_inside_as_the_rules_of_paths_have_it(path: str, target: str) -> None:
    """What leads out is refused; and `..` after a name, where nobody knows what that name is a link to."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    goes_back = any(part == ".." and parts[at - 1] != ".." for at, part in enumerate(parts) if at)
    try:
        paths.check_link(path, target)
        refused = False
    except BadPath:
        refused = True
    assert refused == (leads_out(path, target) or goes_back)


@pytest.mark.parametrize("target", ["", "a\0b", "\udce9", "caf\udce9/x", "x" * 5000], ids=ascii)
def test_targets_that_cannot_be_sent_are_refused(target: str) -> None:
    """Of links on this disk, too: what is not UTF-8 or too long is no text that a message may hold."""
    with pytest.raises(BadPath):
        paths.check_link("a/l", target)


places = st.sampled_from(["l0", "l1", "a/l2", "a/b/l3", "c/l4"])
many_targets = st.lists(
    st.sampled_from(["..", "..", ".", "a", "b", "c", "l0", "l1", "l2", "l3", "l4"]), max_size=6
).map("/".join)


@given(st.dictionaries(places, many_targets, max_size=5))
@example({"a/l2": "..", "l0": "a/l2/.."})
@example({"a/b/l3": "../..", "l1": "a/b/l3/../c"})
def test_links_that_pass_never_lead_out_together(links: dict[str, str]) -> None:
    """However they lead through each other: rsync's --safe-links let that happen (CVE-2024-12088)."""
    with TemporaryDirectory() as name:
        root = Path(name).resolve() / "root"
        for folder in ("a/b", "c"):
            (root / folder).mkdir(parents=True)
        made = []
        for path, target in links.items():
            try:
                paths.check_link(path, target)
            except BadPath:
                continue
            (root / path).symlink_to(target)
            made.append(root / path)
        for link in made:
            assert Path(os.path.realpath(link)).is_relative_to(root), links

"""Which entries of a tree are taken: what git says of the same patterns, and sizes, times and includes beside them."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ftransfer.errors import FtransferError, NotAFile, NotFound, UsageError
from ftransfer.filters import Filter, Rule, read_rules
from ftransfer.store.base import FILE, FOLDER, LINK, OTHER, Entry

NAMES = ["a", "b", "ab", "a.c", "b.c", " a", "a ", "#a", "!a", "[a]", "\\a", "a-", "a\nb", "a\t"]
# Not `a**/b`: git (2.39) compares the `a` first and then takes `**/b` for what it is alone, against its own manual.
COMPONENTS = [
    *(
        "a",
        "b",
        "ab",
        "*",
        "*",
        "**",
        "***",
        "?",
        "?*",
        "a*",
        "a?",
        "*b",
        "**a",
        "*.c",
        "\\a",
        "\\*",
        "\\\\a",
        " a",
        "a ",
    ),
    *("a\\ ", "a\t", "#a", "\\#a", "\\!a", "[ab]", "[a-b]", "[!a]", "[^b]*", "[]a]", "[!]a]", "[[]a]", "[a-]", "[--0]"),
]


def exclude(*patterns: str) -> list[Rule]:
    """Return rules that exclude, or include what has a `!` in front, as the lines of a .gitignore."""
    return [("include", line[1:]) if line.startswith("!") else ("exclude", line) for line in patterns]


def include(*patterns: str) -> list[Rule]:
    """Return rules that include."""
    return [("include", pattern) for pattern in patterns]


def entries_of(*paths: str) -> list[Entry]:
    """Return the entries of a tree as a store lists them: folders end with a slash here, and need not be named."""
    files = {path for path in paths if not path.endswith("/")}
    folders = {path.removesuffix("/") for path in paths if path.endswith("/")}
    for path in paths:
        folders |= {path[:i] for i, char in enumerate(path) if char == "/"}
    found = [Entry(path, FILE, 10, 0, 0o644) for path in files] + [Entry(path, FOLDER, 0, 0, 0o755) for path in folders]
    return sorted(found, key=lambda entry: entry.path.split("/"))


def taken(filtered: Filter, *paths: str) -> list[str]:
    """Return the paths that a filter takes of a tree, folders with a slash."""
    selected = list(filtered.select(entries_of(*paths)))
    return [entry.path + "/" * (entry.kind == FOLDER) for entry in selected]


components = st.sampled_from(COMPONENTS)
lines = st.builds(
    lambda negation, root, parts, folder: negation + root + "/".join(parts) + folder,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "", "/"]),
    st.lists(components, min_size=1, max_size=3),
    st.sampled_from(["", "", "", "/"]),
)
level: st.SearchStrategy[Any] = st.none()
for _ in range(3):
    level = st.none() | st.dictionaries(st.sampled_from(NAMES), level, max_size=4)
trees = st.dictionaries(st.sampled_from(NAMES), level, min_size=1, max_size=4)


def walk(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the paths of a tree of dictionaries, folders with a slash."""
    for name, below in sorted(tree.items()):
        if below is None:
            yield prefix + name
        else:
            yield f"{prefix}{name}/"
            yield from walk(below, f"{prefix}{name}/")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that git takes for a repository, whatever else the user has told git."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    base = tmp_path_factory.mktemp("repository")
    git(base, "init", "--quiet", ".")
    return base


def git(base: Path, *words: str, data: str = "") -> str:
    """Run git without anybody's configuration; return what it prints. Finding nothing (1) is no failure."""
    surroundings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_DIR": str(base / ".git")}
    run = subprocess.run(
        ["git", *words],
        cwd=base,
        env={**os.environ, **surroundings},
        input=data.encode(),
        capture_output=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stderr
    return run.stdout.decode()


numbers = itertools.count()


@given(trees, st.lists(lines, min_size=1, max_size=5))
@example({"a": {"a.c": None, "b.c": None, "b": {"a.c": None}}, "b": None}, ["*", "!*/", "!a.c"])
@example({"a": {"a": {"b": None}, "b": None}}, ["a/**", "!a/a"])
@example({"a": {"b": {"a": None}, "a": {"b": {"a": None}}}}, ["a/**/b/", "!a/b/"])
@example({"a": {"b": None}}, ["**/a", "!/a"])
@example({"a": {"b": None, "-b": None}, "a-b": None}, ["/a[!c]b", "/a[+-9]b"])
@example({"a": {"b": None, "a": {"a": {"b": None}}}}, ["a/***/b"])
@example({"a\nb": {"a": None, "b": None}}, ["a", "[!a]?b"])
@example({"a": {"a": {"a": {"a": None, "b": None}}}}, ["a/*/a/", "!a/a/a", "b"])
def test_the_patterns_mean_what_they_mean_to_git(repository: Path, tree: dict[str, Any], rules: list[str]) -> None:
    """What `git check-ignore` ignores is not taken, and everything else is."""
    assume(any(line[0] not in "!#" for line in rules))  # nothing but includes means something else to us
    base = repository / str(next(numbers))
    paths = list(walk(tree))
    for path in paths:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).mkdir(exist_ok=True) if path.endswith("/") else (base / path).touch()
    (base / ".gitignore").write_text("\n".join(rules) + "\n")
    filtered = Filter(read_rules(base / ".gitignore"))
    named = "\0".join(f"{base.name}/{path.removesuffix('/')}" for path in paths)
    output = git(repository, "--work-tree=.", "check-ignore", "--no-index", "-z", "--stdin", data=named + "\0")
    ignored = {path.partition("/")[2] for path in output.split("\0") if path}
    assert taken(filtered, *paths) == [
        path for path in taken(Filter(), *paths) if path.removesuffix("/") not in ignored
    ]


@given(trees, st.lists(lines, max_size=5), st.booleans())
def test_a_tree_and_its_entries_one_by_one_get_the_same_answer(
    tree: dict[str, Any], rules: list[str], only_includes: bool
) -> None:
    """Nothing depends on what was asked before: what is in an excluded folder is refused by itself too."""
    plain = [line.removeprefix("!") for line in rules]
    made = Filter(include(*plain) if only_includes else exclude(*rules))
    entries = entries_of(*walk(tree))
    selected = list(made.select(entries))
    for entry in reversed(entries):
        asked = (
            made.takes_folder(entry.path)
            if entry.kind == FOLDER
            else made.takes_file(entry.path, entry.size, entry.mtime_ns)
        )
        assert asked == (entry in selected)


def test_without_rules_and_limits_everything_is_taken() -> None:
    """The empty filter says that it is one, and needs no library."""
    empty = Filter()
    assert empty.is_empty
    assert empty.takes_folder("a")
    assert empty.takes_file("a", 1 << 60, -1)
    assert taken(empty, "a/b/c", "d/") == ["a/", "a/b/", "a/b/c", "d/"]
    for made in (Filter(exclude("a")), Filter(max_size=0), Filter(newer_ns=0)):
        assert not made.is_empty


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (exclude("*.o"), ["a/", "a/b.c", "a/sub/", "a/sub/c.c", "d.c"]),
        (exclude("a"), ["d.c", "d.o"]),
        (exclude("a", "!a/b.c"), ["d.c", "d.o"]),
        (exclude("/*.o"), ["a/", "a/b.c", "a/b.o", "a/sub/", "a/sub/c.c", "d.c"]),
        (exclude("sub/"), ["a/", "a/b.c", "a/b.o", "d.c", "d.o"]),
        (exclude("d.c/"), ["a/", "a/b.c", "a/b.o", "a/sub/", "a/sub/c.c", "d.c", "d.o"]),
        (exclude("a/*", "!a/b.*"), ["a/", "a/b.c", "a/b.o", "d.c", "d.o"]),
        (exclude("a/**", "!a/sub"), ["a/", "a/sub/", "d.c", "d.o"]),
        (exclude("*", "!*.c"), ["d.c"]),
        (exclude("*", "!*/", "!*.c"), ["a/", "a/b.c", "a/sub/", "a/sub/c.c", "d.c"]),
        (exclude("!*.c", "*"), []),
        (exclude("**/sub", "[d-z].?"), ["a/", "a/b.c", "a/b.o"]),
    ],
)
def test_the_last_rule_that_matches_counts(rules: list[Rule], expected: list[str]) -> None:
    """As in a .gitignore; what lies in an excluded folder does not come back."""
    assert taken(Filter(rules), "a/b.c", "a/b.o", "a/sub/c.c", "d.c", "d.o") == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.c"], ["a/", "a/b.c", "a/sub/", "a/sub/c.c", "d.c"]),
        (["a/"], ["a/", "a/b.c", "a/b.o", "a/sub/", "a/sub/c.c"]),
        (["/sub"], ["a/", "a/sub/"]),
        (["sub"], ["a/", "a/sub/", "a/sub/c.c"]),
        (["a/*.o", "d.o"], ["a/", "a/b.o", "a/sub/", "d.o"]),
        (["d.c/"], ["a/", "a/sub/"]),
        (["a/**"], ["a/", "a/b.c", "a/b.o", "a/sub/", "a/sub/c.c"]),
    ],
)
def test_with_includes_only_nothing_else_is_taken(patterns: list[str], expected: list[str]) -> None:
    """A file needs an include for itself or for a folder above it; folders are looked into."""
    assert taken(Filter(include(*patterns)), "a/b.c", "a/b.o", "a/sub/c.c", "d.c", "d.o") == expected


def test_a_file_is_not_below_itself() -> None:
    """An include of a folder does not take a file of that name, but it takes one in such a folder."""
    assert taken(Filter(include("x/")), "a/x", "x/x", "y/x/x") == ["a/", "x/", "x/x", "y/", "y/x/", "y/x/x"]


def test_size_and_time_concern_files_only() -> None:
    """Both limits are included in what is taken; a folder has neither, a link has no size of its own."""
    limited = Filter(max_size=10, newer_ns=100)
    assert limited.takes_file("a", 10, 100)
    assert not limited.takes_file("a", 11, 100)
    assert not limited.takes_file("a", 10, 99)
    assert limited.takes_folder("a")
    entries = [
        Entry("a", FOLDER, 4096, 0, 0o755),
        Entry("a/link", LINK, 4096, 100, 0o777),
        Entry("a/old link", LINK, 0, 99, 0o777),
        Entry("a/pipe", OTHER, 4096, 100, 0o644),
        Entry("b", FILE, 11, 100, 0o644),
    ]
    assert [entry.path for entry in limited.select(entries)] == ["a", "a/link", "a/pipe"]


def test_limits_and_patterns_both_have_to_agree() -> None:
    """An include does not bring a large file back."""
    made = Filter(include("*.c"), max_size=10)
    assert made.takes_file("a.c", 10, 0)
    assert not made.takes_file("a.c", 11, 0)
    assert not made.takes_file("a.o", 1, 0)


def test_what_begins_like_an_excluded_folder_is_not_in_it() -> None:
    """Only the whole name counts, and the order of a listing by folders."""
    assert taken(Filter(exclude("/a")), "a/b", "a-b", "a.c", "aa/b") == ["a-b", "a.c", "aa/", "aa/b"]


def test_a_selection_is_made_as_it_is_read() -> None:
    """A tree of any size is filtered without being held."""
    endless = (Entry(f"{number}.{'co'[number % 2]}", FILE, 0, 0, 0o644) for number in itertools.count())
    selected = Filter(exclude("*.o")).select(endless)
    assert [entry.path for entry in itertools.islice(selected, 3)] == ["0.c", "2.c", "4.c"]


@pytest.mark.parametrize(
    "name", ["#a", "!a", " a", "a ", "a\t", "\ta", "a\n", "\na", "a\nb", "*", "[a]", "a\\", "é", "\x1c"]
)
def test_any_name_can_be_excluded(name: str) -> None:
    """With the characters that mean something escaped, a pattern is the name, and no other one."""
    escaped = "".join(f"\\{char}" if char in "*?[]\\" else char for char in name)
    escaped = f"\\{escaped}" if escaped.startswith("!") else escaped
    for pattern in (escaped, f"/{escaped}"):
        made = Filter(exclude(pattern))
        assert not made.takes_file(name, 0, 0)
        assert not made.takes_folder(name)
        for other in (name + "x", "x" + name, name.strip(), name + "\n"):
            assert other == name or made.takes_file(other, 0, 0)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("", "everything"),
        ("/", "everything"),
        ("//", "everything"),
        ("a\0b", "everything"),
        ("!a", "include"),
        ("a//b", "a/b"),
        ("//a", "a/b"),
        ("a//", "a/b"),
        ("./a", "/x"),
        ("a/../b", "/x"),
        ("..", "/x"),
        ("a[b", "\\["),
        ("[]", "\\["),
        ("[!]", "\\["),
        ("a[/]b", "\\["),
        ("[[:alpha:]]", "\\["),
        ("[\\]]", "\\["),
        ("a\\", "\\["),
        ("a\\/b", "\\["),
        ("[b-a]", ".gitignore"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(pattern: str, hint: str) -> None:
    """Git would pass over most of these, and so send what somebody wanted to keep."""
    with pytest.raises(UsageError) as caught:
        Filter([*exclude("a"), ("exclude", pattern)])
    assert repr(pattern) in str(caught.value)
    assert hint in caught.value.hint


@given(st.text("ab/*?[]!^-:\\.# \n", max_size=12) | st.text(max_size=8))
def test_any_text_is_a_pattern_or_a_usage_error(text: str) -> None:
    """Nothing else comes out, neither from building nor from asking; no warning either."""
    try:
        made = Filter([("exclude", text), ("include", text)])
    except UsageError:
        return
    assert made.takes_file("a/b", 0, 0)
    assert made.takes_folder(text)


def test_a_rule_includes_or_excludes() -> None:
    """There is no third kind."""
    with pytest.raises(UsageError):
        Filter([("ignore", "a")])  # type: ignore[list-item]


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only patterns need it, sizes and times do not."""
    monkeypatch.setitem(sys.modules, "pathspec", None)
    with pytest.raises(UsageError) as caught:
        Filter(exclude("a"))
    assert caught.value.hint == "pip install 'ftransfer-tool[filters]'"
    assert not Filter(max_size=1, newer_ns=1).takes_file("a", 2, 2)


def test_the_library_is_loaded_only_for_patterns() -> None:
    """Start-up does not pay for what few runs need."""
    code = "import sys, ftransfer.filters as f; f.Filter(max_size=1); sys.exit('pathspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_of_rules_is_read_as_git_reads_it(tmp_path: Path) -> None:
    """Comments, blank lines, carriage returns, a byte order mark and spaces at the end do not count."""
    text = "\ufeff*.o\r\n\n   \n# comment\n!a.o  \n\\#a\n\\!a\n!!a\n!#a\na\\ \nb\\\\  \nc\\   \n d\nlast"
    (tmp_path / "rules").write_bytes(text.encode())
    assert read_rules(tmp_path / "rules") == [
        ("exclude", "*.o"),
        ("include", "a.o"),
        ("exclude", "\\#a"),
        ("exclude", "\\!a"),
        ("include", "\\!a"),
        ("include", "#a"),
        ("exclude", "a\\ "),
        ("exclude", "b\\\\"),
        ("exclude", "c\\ "),
        ("exclude", " d"),
        ("exclude", "last"),
    ]
    (tmp_path / "empty").touch()
    assert read_rules(str(tmp_path / "empty")) == []


def test_a_bad_line_is_reported_with_its_number(tmp_path: Path) -> None:
    """The number counts every line, also comments."""
    (tmp_path / "rules").write_text("# one\n\n*.o\n./a\n")
    with pytest.raises(UsageError, match=r"^line 4: .*'\./a'") as caught:
        read_rules(tmp_path / "rules")
    assert caught.value.path == str(tmp_path / "rules")
    assert caught.value.hint


def test_a_file_of_rules_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8: never anything but the tree of errors."""
    (tmp_path / "bytes").write_bytes(b"a\xff\n")
    expected: dict[str, type[FtransferError]] = {"missing": NotFound, ".": NotAFile, "bytes": UsageError}
    for name, error in expected.items():
        with pytest.raises(error) as caught:
            read_rules(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)

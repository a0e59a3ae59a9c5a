"""What `--chmod` makes of permission bits: the same as chmod(1), nine bits, files and folders apart."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ftransfer.errors import UsageError
from ftransfer.modes import Modes

modes = st.integers(0, 0o777)
whos = st.text("ugoa", min_size=1, max_size=3)
changes = st.builds(
    lambda op, rights: op + rights, st.sampled_from("+-="), st.text("rwxX", max_size=3) | st.sampled_from("ugo")
)
symbolic = st.builds(lambda who, made: who + "".join(made), whos, st.lists(changes, min_size=1, max_size=2))
octal = st.builds(lambda mode, zero: f"{zero}{mode:03o}", modes, st.sampled_from(["", "0"]))
clauses = st.builds(lambda kind, clause: kind + clause, st.sampled_from(["", "D", "F"]), symbolic | octal)


@given(modes, st.lists(symbolic, min_size=1, max_size=3).map(",".join))
@example(0o644, "a-x,a+X")
@example(0o100, "u-x,a+X")
@example(0o640, "o=g,g=u,u=o")
@example(0o777, "u=,g=r-r,a-X")
def test_symbolic_clauses_do_what_chmod_does(tmp_path_factory: pytest.TempPathFactory, mode: int, text: str) -> None:
    """The bits of a real file and a real folder come out the same."""
    if sys.platform != "linux" or shutil.which("chmod") is None:
        pytest.skip("not the chmod of GNU: in others X may look at the mode as it was before the first clause")
    base = tmp_path_factory.mktemp("modes")
    file, folder = base / "file", base / "folder"
    file.touch()
    folder.mkdir()
    for path in (file, folder):
        path.chmod(mode)
    subprocess.run(["chmod", "--", text, file, folder], check=True)
    made = Modes.parse(text)
    assert made.file(mode) == bits_of(file)
    assert made.folder(mode) == bits_of(folder)


def bits_of(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


@given(modes, modes)
def test_octal_is_for_files_and_folders_get_the_x_that_they_need(given_mode: int, mode: int) -> None:
    """Whoever may read a file may look into the folder; nobody gets anything else."""
    made = Modes.parse(f"{mode:03o}")
    assert made.file(given_mode) == mode
    folder = made.folder(given_mode)
    assert folder & 0o666 == mode & 0o666
    assert folder & 0o111 == (mode | mode >> 2) & 0o111


@pytest.mark.parametrize(
    ("text", "file", "folder"),
    [
        ("640", 0o640, 0o750),
        ("0600", 0o600, 0o700),
        ("755", 0o755, 0o755),
        ("000", 0o000, 0o000),
        ("D755,F644", 0o644, 0o755),
        ("D700", 0o664, 0o700),
        ("F600", 0o600, 0o775),
        ("D640", 0o664, 0o640),
        ("D755,F644,go-w", 0o644, 0o755),
        ("640,D700", 0o640, 0o700),
        ("Dg-w,Fo=", 0o660, 0o755),
        ("u=rwX,go=rX", 0o644, 0o755),
        ("F+X", 0o664, 0o775),
        ("+x", 0o775, 0o775),
        ("-w", 0o444, 0o555),
        ("=r", 0o444, 0o444),
        ("=", 0o000, 0o000),
        ("g=o", 0o644, 0o755),
        ("a+w", 0o666, 0o777),
    ],
)
def test_clauses_are_made_one_after_the_other(text: str, file: int, folder: int) -> None:
    """Beginning with 664 and 775; what no clause concerns stays as it is."""
    made = Modes.parse(text)
    assert (made.file(0o664), made.folder(0o775)) == (file, folder)


@given(st.integers(0, 0o177777), st.lists(clauses, min_size=1, max_size=4).map(",".join))
def test_nothing_but_the_nine_bits_comes_out(mode: int, text: str) -> None:
    """What the kind of a file, or setuid, adds to its mode is cut off, and decides nothing."""
    made = Modes.parse(text)
    for apply in (made.file, made.folder):
        assert apply(mode) == apply(mode & 0o777)
        assert 0 <= apply(mode) <= 0o777


@given(modes, clauses, clauses)
def test_a_list_is_its_clauses_in_their_order(mode: int, first: str, second: str) -> None:
    """Parsing them together or one by one is the same."""
    both, one, two = Modes.parse(f"{first},{second}"), Modes.parse(first), Modes.parse(second)
    assert both.file(mode) == two.file(one.file(mode))
    assert both.folder(mode) == two.folder(one.folder(mode))


@given(modes, clauses)
def test_a_clause_for_one_kind_leaves_the_other(mode: int, clause: str) -> None:
    """D is for folders and F for files only."""
    made = Modes.parse(clause)
    if clause[0] == "D":
        assert made.file(mode) == mode
    if clause[0] == "F":
        assert made.folder(mode) == mode


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "640"),
        ("rw", "640"),
        ("64", "640"),
        ("648", "640"),
        ("00640", "640"),
        ("u", "640"),
        ("u+rwq", "640"),
        ("u+ru", "640"),
        ("640,", "640"),
        ("D755, F644", "640"),
        ("d755", "640"),
        ("D", "640"),
        ("-1", "640"),
        ("٦٤٠", "640"),
        ("640\n", "640"),
        ("4755", "setuid"),
        ("01777", "setuid"),
        ("D2775", "setuid"),
        ("Dg+s", "setuid"),
        ("u=rws", "setuid"),
        ("+t", "setuid"),
        ("+w", "a+w"),
        ("640,F=rw", "a+w"),
        ("-x+rw", "a+w"),
    ],
)
def test_what_is_no_mode_is_refused(text: str, hint: str) -> None:
    """The hint shows what can be written; w for everyone has to be asked for, and only nine bits travel."""
    with pytest.raises(UsageError) as caught:
        Modes.parse(text)
    assert hint in caught.value.hint


@given(st.text("DFugoarwxXst+-=,01246 ", max_size=10) | st.text(max_size=6))
def test_any_text_is_a_mode_or_a_usage_error(text: str) -> None:
    """Nothing else comes out of parsing."""
    try:
        made = Modes.parse(text)
    except UsageError:
        return
    assert Modes.parse(text) == made

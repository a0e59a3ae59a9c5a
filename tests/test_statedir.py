"""The state folder: for nobody else, never half written, and never believed if others could have written it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from support import PATIENCE, needs_no_root, nothing_leaks

from ftransfer import errors, statedir
from ftransfer.statedir import StateDir, default_path


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A folder that does not exist yet."""
    return StateDir(tmp_path / "state")


def mode_of(path: str | Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(os.stat(path).st_mode)


# Where it is.


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FTRANSFER_STATE, else ftransfer in XDG_STATE_HOME, else below the home; an empty variable is none."""
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    monkeypatch.setenv("FTRANSFER_STATE", str(tmp_path))
    assert default_path() == str(tmp_path)
    monkeypatch.setenv("FTRANSFER_STATE", "")
    assert default_path() == "/xdg/ftransfer"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert default_path() == "/home/ann/.local/state/ftransfer"
    monkeypatch.delenv("FTRANSFER_STATE")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_path() == "/home/ann/.local/state/ftransfer"


def test_it_stays_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative name is made whole at once: nothing moves with the working folder."""
    monkeypatch.chdir(tmp_path)
    state = StateDir("here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    state.write("x", b"data")
    assert (tmp_path / "here/x").read_bytes() == b"data"


def test_reading_makes_nothing(state: StateDir) -> None:
    """A client that has never logged in leaves no folder behind."""
    assert state.read("x") is None
    assert state.read("deep/x") is None
    assert state.read_json("x.json") == {}
    assert state.stamp("x") is None
    state.remove("x")
    assert not os.path.exists(state.path)


# Who may read and write.


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_nobody_else_reads_it(state: StateDir, umask: int) -> None:
    """Folders are 0700 and files 0600, whatever the umask; those above are made as usual."""
    if umask == 0o777 and os.geteuid() != 0:
        pytest.skip("a folder that nobody may enter")
    old = os.umask(umask)
    try:
        made = StateDir(Path(state.path) / "inner") if umask != 0o777 else state
        made.write("serving/x", b"secret")
        made.write("y", b"secret")
        with made.lock("y"):
            pass
    finally:
        os.umask(old)
    for path in Path(made.path).rglob("*"):
        assert mode_of(path) & 0o077 == 0, path
    assert mode_of(made.path) & 0o077 == 0
    if umask < 0o777:
        assert {mode_of(path) for path in Path(made.path).rglob("*") if path.is_file()} == {0o600}


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_may_write_to(state: StateDir, mode: int) -> None:
    """Nothing is put there, and what to do is said."""
    os.mkdir(state.path)
    os.chmod(state.path, mode)
    for write in (lambda: state.write("x", b""), lambda: state.lock("x").__enter__()):
        with pytest.raises(errors.Refused, match="others may write to it") as caught:
            write()
        assert "chmod go-w" in caught.value.hint
        assert caught.value.exit_status == 5
    assert os.listdir(state.path) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to(state: StateDir, mode: int) -> None:
    """It is not read: they could have put anything there."""
    state.write("x.json", b"{}")
    os.chmod(state.where("x.json"), mode)
    for read in (state.read, state.read_json):
        with nothing_leaks(), pytest.raises(errors.Refused, match="others may write to it"):
            read("x.json")


AS_ANOTHER = """
import os, sys
import ftransfer.statedir as statedir
os.setgroups([]); os.setgid(65534); os.setuid(65534)
state = statedir.StateDir(sys.argv[1])
for call in (lambda: state.read("theirs"), lambda: state.read("ours"), lambda: state.read("roots"),
             lambda: state.write("new", b"")):
    try:
        print("done", call())
    except statedir.Refused as exc:
        print("refused")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can give files away")
def test_files_of_somebody_else() -> None:
    """A third user's are not believed, though they can be read; root's are."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by nobody else
        os.chmod(folder, 0o755)
        for name, owner in (("theirs", 1), ("ours", 65534), ("roots", 0)):
            path = Path(folder, name)
            path.write_bytes(b"data")
            os.chown(path, owner, owner)
            path.chmod(0o644)
        os.chown(folder, 1, 1)
        words = [sys.executable, "-c", AS_ANOTHER, folder]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["refused", "done b'data'", "done b'data'", "refused"]


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can give a folder away")
def test_root_may_manage_the_folder_of_a_service(state: StateDir) -> None:
    """What root writes there can be read by whom the folder belongs to."""
    os.mkdir(state.path, 0o700)
    os.chown(state.path, 65534, 65534)
    with state.lock("users.json"):
        state.write("users.json", b"{}")
        state.write("used/lab", b"1")
    for path in Path(state.path).rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534), path
    assert state.read("users.json") == b"{}"


def test_links_are_not_followed(state: StateDir, tmp_path: Path) -> None:
    """Neither for reading nor for writing."""
    state.write("real", b"data")
    (tmp_path / "outside").write_bytes(b"precious")
    os.chmod(tmp_path / "outside", 0o600)
    os.symlink(tmp_path / "outside", state.where("link"))
    with pytest.raises(errors.FtransferError):
        state.read("link")
    state.write("link", b"new")
    assert (tmp_path / "outside").read_bytes() == b"precious"
    assert state.read("link") == b"new"
    os.symlink(tmp_path / "absent", state.where("z.lock"))
    with pytest.raises(errors.FtransferError):
        state.lock("z").__enter__()
    assert not (tmp_path / "absent").exists()


# Whole or not at all.


def test_a_reader_sees_the_old_or_the_new(state: StateDir) -> None:
    """Never a part, however often it is written."""
    whole = {bytes([n]) * 50_000 for n in range(4)}
    state.write("x", next(iter(whole)))
    done = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        while not done.is_set():
            data = state.read("x")
            if data not in whole:
                wrong.append(len(data or b""))

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(20):
        for data in whole:
            state.write("x", data)
    done.set()
    thread.join(PATIENCE)
    assert wrong == []
    assert os.listdir(state.path) == ["x"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failure_leaves_the_old_file(state: StateDir, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A full disk at any step: an error that names file and way out, no temporary left, no descriptor open."""
    state.write("x", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with nothing_leaks(), monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(statedir.os, "open", _opening_full(statedir.os.open))
        else:
            patch.setattr(statedir.os, call, fail)
        with pytest.raises(errors.DiskError) as caught:
            state.write("x", b"new")
    assert state.where("x") in str(caught.value) or caught.value.path == state.where("x")
    assert "--state DIR" in caught.value.hint
    assert state.read("x") == b"old"
    assert os.listdir(state.path) == ["x"]


def _opening_full(real: object) -> object:
    def open_full(path: str, flags: int, *rest: int, **fields: object) -> int:
        fd: int = real(path, flags, *rest, **fields)  # type: ignore[operator]
        if flags & os.O_CREAT and os.path.exists("/dev/full"):
            full = os.open("/dev/full", os.O_WRONLY) if real is os.open else real("/dev/full", os.O_WRONLY)  # type: ignore[operator]
            os.dup2(full, fd)
            os.close(full)
        return fd

    return open_full


@needs_no_root
def test_a_folder_that_cannot_be_written_to(state: StateDir) -> None:
    """It is named, with the option that names another one."""
    os.mkdir(state.path, 0o500)
    with pytest.raises(errors.Refused) as caught:
        state.write("x", b"")
    assert "--state DIR, FTRANSFER_STATE" in caught.value.hint


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    """It is an error in a sentence, for reading and writing."""
    (tmp_path / "file").write_bytes(b"precious")
    state = StateDir(tmp_path / "file")
    for call in (lambda: state.write("x", b""), lambda: state.lock("x").__enter__()):
        with pytest.raises(errors.FtransferError) as caught:
            call()
        assert str(tmp_path / "file") in f"{caught.value.path} {caught.value}"
    assert state.read("x") is None
    assert (tmp_path / "file").read_bytes() == b"precious"


# JSON.


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff", b"{}x", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\0"],
    ids=lambda content: ascii(content[:12]),
)
def test_damaged_files_are_named(state: StateDir, content: bytes) -> None:
    """Whatever is wrong with them, it is one error, and nothing is changed."""
    state.write("x.json", content)
    with pytest.raises(errors.Refused, match=r"x\.json is damaged") as caught:
        state.read_json("x.json")
    assert caught.value.hint
    assert state.read("x.json") == content


def test_objects_come_back(state: StateDir) -> None:
    """Text of all kinds, also what has no UTF-8."""
    value = {"a": [1, None, True], "\u00e9": "\u202e", "lone": "\udcff", "deep": {"x": {}}}
    state.write_json("x.json", value)
    assert state.read_json("x.json") == value
    assert json.loads(Path(state.where("x.json")).read_text()) == value


def test_a_file_is_read_up_to_its_limit(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's memory is filled by it."""
    monkeypatch.setattr(statedir, "MAX_FILE", 100)
    state.write("x", b"x" * 1000)
    try:
        assert len(state.read("x") or b"") == 100
    except errors.FtransferError:
        pass  # or it is said to be too large


# Several at a time.


def test_changes_under_the_lock_are_not_lost(state: StateDir) -> None:
    """Of threads and, as each opens the lock anew, of processes."""

    def count() -> None:
        own = StateDir(state.path)
        for _ in range(20):
            with own.lock("n.json"):
                own.write_json("n.json", {"n": own.read_json("n.json").get("n", 0) + 1})

    threads = [threading.Thread(target=count) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert state.read_json("n.json") == {"n": 100}


def test_a_lock_is_let_go_after_a_failure(state: StateDir) -> None:
    """And leaves no descriptor open."""
    with nothing_leaks():
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), state.lock("x"):
                raise ZeroDivisionError


def test_the_stamp_changes_with_the_file(state: StateDir) -> None:
    """Also for the same bytes again, a removed and a new file."""
    seen = [state.stamp("x")]
    for data in (b"one", b"one", b"two"):
        state.write("x", data)
        seen.append(state.stamp("x"))
    state.remove("x")
    seen.append(state.stamp("x"))
    assert seen[0] is None
    assert seen[-1] is None
    assert len(set(seen[1:-1])) == 3
    assert state.stamp("x") == state.stamp("x")

"""A folder that several users share: what another user has planted there is neither believed nor in the way."""

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

import ftransfer
from ftransfer.digests import block_hash
from ftransfer.errors import Refused
from ftransfer.store import journal, state
from ftransfer.store.base import Description
from ftransfer.store.local import LocalStore

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can make another user's files")
NOBODY = 65534


def plant(folder: Path, mode: int, owner: int) -> Path:
    """Make a `.ftransfer/` of another user, with a journal that names a file outside."""
    secret = folder.parent / "secret"
    secret.write_bytes(b"mine")
    state = folder / ".ftransfer"
    state.mkdir()
    head = journal.Head("whatever", "../secret", 5, "x", 1)
    entry = state / ("0" * 32 + "-0.journal")
    entry.write_bytes(journal.encode_head(head))
    os.utime(entry, (0, 0))
    for path in (state, entry):
        os.chown(path, owner, -1)
    state.chmod(mode)
    return secret


@as_root
def test_anothers_state_is_passed_by(tmp_path: Path) -> None:
    """Transfers work with a state folder of our own; nothing that the planted journal names is touched."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o1777)
    secret = plant(folder, 0o777, NOBODY)
    with ftransfer.Server(tmp_path, durable=False) as server, ftransfer.connect(server.urls[0]) as remote:
        remote.upload(b"hello", "file")
        remote.download("file", folder / "copy")
    assert (folder / "copy").read_bytes() == b"hello"
    assert secret.read_bytes() == b"mine"
    assert sorted(os.listdir(folder)) == [".ftransfer", "copy"]


@as_root
def test_a_state_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    """Ours, but opened to all: it is passed by as well, and if both are, that is an error that says so."""
    folder = tmp_path / "shared"
    folder.mkdir()
    plant(folder, 0o777, os.geteuid())
    store = LocalStore(folder)
    staging = store.claim(Description("f", 1, "f"))
    assert f".ftransfer-{os.geteuid()}" in os.listdir(folder)
    staging.discard()
    (folder / f".ftransfer-{os.geteuid()}").mkdir()
    (folder / f".ftransfer-{os.geteuid()}").chmod(0o770)
    with pytest.raises(Refused, match="others may write"):
        store.claim(Description("f", 1, "f"))
    store.close()


def test_a_journal_of_another_version_stops_nobody(tmp_path: Path) -> None:
    """What cannot be understood is left alone until it is old; serving and listing go on."""
    state = tmp_path / ".ftransfer"
    state.mkdir(mode=0o700)
    entry = state / ("0" * 32 + "-0.journal")
    entry.write_bytes(b"something newer")
    store = LocalStore(tmp_path)
    assert store.sweep() == 0
    assert store.partials() == []
    assert entry.exists()
    os.utime(entry, (0, 0))
    assert store.sweep() == 1
    assert os.listdir(tmp_path) == []
    store.close()


def test_the_state_folder_is_ours_alone(tmp_path: Path) -> None:
    """0700, and the staged file 0600, whatever the umask."""
    old = os.umask(0)
    try:
        store = LocalStore(tmp_path)
        staging = store.claim(Description("f", 1, "f"))
        modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    finally:
        os.umask(old)
    assert sorted(modes.values()) == [0o600, 0o700]
    staging.discard()
    store.close()


@as_root
def test_our_own_folder_stays_in_use_when_the_others_has_gone(tmp_path: Path) -> None:
    """What was staged with it is found again, listed and dropped."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o1777)
    plant(folder, 0o700, NOBODY)
    store = LocalStore(folder)
    staging = store.claim(Description("f", 10, "f"))
    staging.begin(0, 5)
    staging.write(memoryview(b"12345"))
    staging.accept(block_hash(b"12345"))
    staging.release()
    shutil.rmtree(folder / ".ftransfer")
    staging = store.claim(Description("f", 10, "f"))
    assert staging.inherited == 5
    staging.release()
    assert [partial.held for partial in store.partials(clear=True)] == [5]
    assert os.listdir(folder) == []
    store.close()


def test_a_file_system_without_owners_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every folder looks open to all, its looks say nothing."""
    monkeypatch.setattr(state, "_is_trusted", lambda _: False)
    store = LocalStore(tmp_path)
    staging = store.claim(Description("f", 1, "f"))
    staging.discard()
    assert os.listdir(tmp_path) == []
    store.close()


def test_the_clock_can_be_asked_by_many_at_once(tmp_path: Path) -> None:
    """The folder that the question makes may go away under another's feet."""
    stores = [LocalStore(tmp_path) for _ in range(4)]
    failures: list[BaseException] = []

    def ask(store: LocalStore) -> None:
        try:
            for _ in range(50):
                store._clock_step = None
                assert store.clock_step() == stores[0].clock_step()
        except BaseException as exc:  # noqa: BLE001 - told below
            failures.append(exc)

    threads = [threading.Thread(target=ask, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert failures == []
    assert os.listdir(tmp_path) == []

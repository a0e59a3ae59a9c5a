"""Several want the same name at the same time, and folders are swapped for links meanwhile (promises 3, 7, 8)."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest
from faults import PATIENCE, fast_folder, noise, reserved, tree

import ftransfer
from ftransfer import errors, link
from ftransfer.digests import block_hash

MIB = 1 << 20
SIZE = 700_000
SECRET = block_hash(b"secret")


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client tries again after a hundredth of a second."""
    monkeypatch.setattr(link, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(link, "LONGEST_DELAY", 0.05)


@pytest.fixture
def base() -> Iterator[Path]:
    """An empty folder in memory, with a root and a folder for the clients in it."""
    with fast_folder() as made:
        (made / "root").mkdir()
        (made / "local").mkdir()
        yield made


@pytest.fixture
def server(base: Path) -> Iterator[ftransfer.Server]:
    """A server on the root."""
    with ftransfer.Server(base / "root") as made:
        yield made


def at_once(*jobs: Callable[[], object]) -> list[object]:
    """Run the jobs at the same time, and return what each returned or raised."""
    results: list[object] = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def run(number: int) -> None:
        barrier.wait(PATIENCE)
        try:
            results[number] = jobs[number]()
        except errors.FtransferError as exc:
            results[number] = exc

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


def upload(url: str, source: Path | bytes, dest: str, **options: object) -> ftransfer.FileResult:
    """Upload with a connection of its own."""
    with ftransfer.connect(url, retry_for=PATIENCE) as remote:
        return remote.upload(source, dest, **options).files[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("if_exists", ["replace", "newer"])
def test_of_two_uploads_of_one_name_one_wins_whole(base: Path, server: ftransfer.Server, if_exists: str) -> None:
    """Both are done; the name shows one of them, whole, in every round."""
    url = server.urls[0]
    versions = [noise(SIZE + 17 * n, n) for n in range(3)]
    for _ in range(20):
        results = at_once(*(partial(upload, url, v, "in/name", if_exists=if_exists) for v in versions))
        assert all(isinstance(r, ftransfer.FileResult) for r in results), results
        assert (base / "root/in/name").read_bytes() in versions
        assert reserved(base / "root") == []


def test_of_two_uploads_that_must_not_replace_one_wins(base: Path, server: ftransfer.Server) -> None:
    """With if_exists=fail one is told that the name was taken, and its bytes are nowhere."""
    url = server.urls[0]
    for count in range(20):
        versions = [noise(SIZE, n + count) for n in range(3)]
        results = at_once(*(partial(upload, url, v, f"{count}", if_exists="fail") for v in versions))
        sent = [r for r in results if isinstance(r, ftransfer.FileResult)]
        assert [r.result for r in sent] == ["sent"]
        assert sum(isinstance(r, errors.AlreadyExists) for r in results) == 2
        winner = next(n for n, r in enumerate(results) if isinstance(r, ftransfer.FileResult))
        assert (base / f"root/{count}").read_bytes() == versions[winner]
        assert reserved(base / "root") == []


def test_uploads_that_get_names_of_their_own(base: Path, server: ftransfer.Server) -> None:
    """With if_exists=rename every one of them is there, under the name that its receipt tells."""
    url = server.urls[0]
    versions = [noise(20_000 + n, n) for n in range(8)]
    results = at_once(*(partial(upload, url, v, "name.txt", if_exists="rename") for v in versions))
    for version, result in zip(versions, results, strict=True):
        assert isinstance(result, ftransfer.FileResult)
        assert (base / "root" / result.path).read_bytes() == version
    assert len(tree(base / "root")) == 8
    assert reserved(base / "root") == []


@pytest.mark.parametrize("size", [1000, SIZE, 4 * MIB])
def test_the_same_upload_twice_at_once(base: Path, server: ftransfer.Server, size: int) -> None:
    """Both say that it is there; the second waits for the first, then has nothing to send or sends it again."""
    url = server.urls[0]
    source = base / "local/file"
    for count in range(10):
        source.write_bytes(noise(size, count))
        results = at_once(*[partial(upload, url, source, "copy")] * 2)
        assert all(isinstance(r, ftransfer.FileResult) and r.result in ("sent", "same") for r in results), results
        assert (base / "root/copy").read_bytes() == noise(size, count)
        assert reserved(base / "root") == []


def test_many_first_files_at_once(base: Path) -> None:
    """Clients that arrive at an empty root make the state folder, and remove it, under each other's feet."""
    for count in range(15):
        root = base / f"root{count}"
        root.mkdir()
        with ftransfer.Server(root) as server:
            url = server.urls[0]
            jobs = [partial(upload, url, noise(100, n), f"sub/{n}", if_exists="skip") for n in range(6)]
            results = at_once(*jobs)
            assert [getattr(r, "result", r) for r in results] == ["sent"] * 6
        assert {name: data for name, data in tree(root).items() if data is not None} == {
            f"sub/{n}": noise(100, n) for n in range(6)
        }


@pytest.mark.parametrize("name", [".ftransfer", "receipts"])
@pytest.mark.parametrize("how", ["made", "removed"])
def test_the_state_folder_changes_under_a_claim(
    base: Path, server: ftransfer.Server, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    """Between looking for a folder of the state and using it, another one makes or removes it."""
    real = os.mkdir
    done: list[str] = []

    def interfered(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if path == name and not done:
            done.append(path)
            real(path, mode, dir_fd=dir_fd)
            if how == "removed":
                os.rmdir(path, dir_fd=dir_fd)
                return
        real(path, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", interfered)
    for if_exists in ("skip", "fail"):
        done.clear()
        result = upload(server.urls[0], b"data", if_exists, if_exists=if_exists)
        assert done
        assert result.result == "sent"
        assert (base / "root" / if_exists).read_bytes() == b"data"
        shutil.rmtree(base / "root/.ftransfer")


def test_two_servers_on_one_root(base: Path, server: ftransfer.Server) -> None:
    """Two servers share the state of the root: one whole winner, and a transfer is claimed by one of them."""
    source = base / "local/file"
    with ftransfer.Server(base / "root") as second:
        urls = [server.urls[0], second.urls[0]]
        for count in range(10):
            source.write_bytes(noise(2 * MIB, count))
            same = [partial(upload, u, source, "same") for u in urls]
            versions = [noise(SIZE, count), noise(SIZE, count + 1)]
            other = [partial(upload, u, v, "other") for u, v in zip(urls, versions, strict=True)]
            results = at_once(*same, *other)
            assert all(isinstance(r, ftransfer.FileResult) for r in results), results
            assert (base / "root/same").read_bytes() == source.read_bytes()
            assert (base / "root/other").read_bytes() in versions
            assert reserved(base / "root") == []


@pytest.mark.parametrize("in_place", [False, True])
def test_a_download_while_the_file_is_replaced(base: Path, server: ftransfer.Server, in_place: bool) -> None:
    """What arrives is one version, whole, or the error that says that it changed; never a mixture."""
    url = server.urls[0]
    versions = [bytes([65 + n]) * (2 * MIB) for n in range(4)]
    source = base / "root/file"
    source.write_bytes(versions[0])
    stop = threading.Event()

    def replace() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            where = source if in_place else base / "root/new"
            where.write_bytes(versions[count % 4])
            os.utime(where, ns=(1, count * 10**9))
            if not in_place:
                os.replace(where, source)

    thread = threading.Thread(target=replace)
    thread.start()
    outcomes = []
    try:
        for count in range(30):
            target = base / f"local/{count}"
            try:
                with ftransfer.connect(url) as remote:
                    remote.download("file", target)
                # One that is written in place has states in between, which are all of one version, too.
                data = target.read_bytes()
                outcomes.append(data in versions or (in_place and len(set(data)) < 2))
            except errors.SourceChanged:
                outcomes.append(not target.exists())
            except errors.FtransferError as exc:
                raise AssertionError(f"unexpected: {exc!r}") from exc
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert all(outcomes)


def test_a_download_never_mixes_versions_over_several_connections(base: Path, server: ftransfer.Server) -> None:
    """A file that is uploaded again and again is downloaded whole, by clients that read it meanwhile."""
    url = server.urls[0]
    versions = [noise(MIB + n, n) for n in range(2)]
    upload(url, versions[0], "file")

    def put() -> int:
        return len([upload(url, versions[n % 2], "file") for n in range(15)])

    def get() -> int:
        count = 0
        for n in range(15):
            target = base / f"local/{threading.get_ident()}-{n}"
            with ftransfer.connect(url) as remote:
                remote.download("file", target)
            count += target.read_bytes() in versions
        return count

    assert at_once(put, get, get) == [15, 15, 15]


def test_a_folder_that_is_removed_under_an_upload(base: Path, server: ftransfer.Server) -> None:
    """The upload fails with an error that names the file, or it made the folder again; the server goes on."""
    url = server.urls[0]
    stop = threading.Event()

    def remove() -> int:
        while not stop.is_set():
            with ftransfer.connect(url) as remote:
                try:
                    remote.remove("in", recursive=True)
                except (errors.NotFound, errors.NotAFile):
                    pass  # not there, or filled again meanwhile
        return 0

    def put() -> int:
        done = 0
        try:
            for n in range(60):
                try:
                    upload(url, noise(5000, n), "in/deep/name")
                    done += 1
                except errors.NotFound:
                    pass
        finally:
            stop.set()
        return done

    results = at_once(remove, put)
    assert all(isinstance(r, int) for r in results), results
    upload(url, b"last", "in/deep/name")
    assert (base / "root/in/deep/name").read_bytes() == b"last"


class Flipper:
    """Swaps a folder of the root for a link to a folder outside, and back, as fast as it can."""

    def __init__(self, base: Path):
        self.outside = base / "outside"
        (self.outside / "sub").mkdir(parents=True)
        (self.outside / "file").write_bytes(b"secret")
        (self.outside / "sub/file").write_bytes(b"secret")
        self.before = self.state()
        self._inside = base / "root/door"
        self._aside = base / "root/aside"
        (self._inside / "sub").mkdir(parents=True)
        (self._inside / "file").write_bytes(b"public")
        (self._inside / "sub/file").write_bytes(b"public")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.flips = 0

    def state(self) -> list[tuple[str, int, int, int]]:
        """Return everything about what is outside."""
        found = []
        for path in [self.outside, *sorted(self.outside.rglob("*"))]:
            info = path.lstat()
            found.append((str(path), info.st_ino, info.st_mtime_ns, info.st_mode))
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                os.rename(self._inside, self._aside)
                os.symlink(self.outside, self._inside)
                self.flips += 1
                os.unlink(self._inside)
                os.rename(self._aside, self._inside)
            except OSError:  # an upload has made the folder anew
                shutil.rmtree(self._aside, ignore_errors=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(base: Path, server: ftransfer.Server) -> None:
    """Whatever is asked for while it happens, nothing outside is read, written, made, moved or removed."""
    url = server.urls[0]
    seen: list[bytes] = []
    targets = ("door/file", "door/sub/file", "door/new/er/file")

    def reads(remote: ftransfer.Remote, n: int) -> None:
        target = base / f"local/got-{threading.get_ident()}"  # each thread has its own
        target.unlink(missing_ok=True)
        name = ("door/file", "door/sub/file")[n % 2]
        remote.download(name, target)
        seen.append(target.read_bytes())

    def lists(remote: ftransfer.Remote, _: int) -> None:
        if any("outside" in entry.path for entry in remote.list("", recursive=True)):
            seen.append(b"secret")

    def hashes(remote: ftransfer.Remote, _: int) -> None:
        if remote.checksum("door/file").hex == SECRET:
            seen.append(b"secret")

    actions: list[Callable[[ftransfer.Remote, int], object]] = [
        lambda r, n: r.upload(noise(3000, n), targets[n % 3], compare="none"),
        reads,
        lists,
        hashes,
        lambda r, n: r.move("door/file", f"door/moved{n}"),
        lambda r, n: r.mkdir(f"door/made{n}/deep", parents=True),
        lambda r, _: r.remove("door/sub", recursive=True),
        lambda r, _: r.remove("door/file"),
        lambda r, _: r.stat("door/sub/file"),
    ]

    def play(share: int) -> int:
        done = 0
        with ftransfer.connect(url) as remote:
            for n in range(180):
                try:
                    actions[(n + share) % len(actions)](remote, n)
                    done += 1
                except (errors.NotFound, errors.NotAFile, errors.AlreadyExists, errors.Busy, errors.SourceChanged):
                    pass
        return done

    with Flipper(base) as flipper:
        results = at_once(lambda: play(0), lambda: play(4))
    assert all(isinstance(r, int) for r in results), results
    assert flipper.flips > 50
    assert b"secret" not in seen
    assert flipper.state() == flipper.before
    assert (flipper.outside / "file").read_bytes() == b"secret"

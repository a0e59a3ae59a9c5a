"""A hostile server against a client that moves trees: an error of ours, and nothing but what was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forests import BAD_NAMES, PROTOCOL, facts, plant, row
from support import WELCOME, FakeServer, Header, Peer, frame, nothing_leaks, resident

import ftransfer
from ftransfer import errors
from ftransfer.errors import FtransferError

OLD = b"the old content"

Answer = Callable[[Peer, Header], object]
ROWS = [["f1", "file", 5, 10**18, 0o644], ["f2", "file", 5, 10**18, 0o644], ["f3", "file", 5, 10**18, 0o644]]


class FakeTreeServer(FakeServer):
    """A server that answers several connections at a time, each message by the function for its type."""

    def __init__(self, **answers: Answer):
        super().__init__(self._serve)
        self._answers = {**HONEST, **answers}
        self._serving: list[threading.Thread] = []

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            self.connections += 1
            peer = Peer(sock)
            self._peers.append(peer)
            self._serving.append(threading.Thread(target=self._one, args=(peer,)))
            self._serving[-1].start()
        for thread in self._serving:
            thread.join()

    def _one(self, peer: Peer) -> None:
        with peer:
            try:
                self._serve(peer)
            except OSError:
                pass  # the client has gone
            except BaseException as exc:  # noqa: BLE001 - raised again at the end
                self._failures.append(exc)

    def _serve(self, peer: Peer) -> None:
        peer.expect("hello")
        peer.send(WELCOME)
        while (message := peer.receive()) is not None:
            answer = self._answers.get(message["type"])
            if answer is not None:
                answer(peer, message)


def listed(*rows: list[Any], **fields: Any) -> Answer:
    """Return what answers a listing with these rows."""
    return lambda peer, asked: peer.send({"type": "entries", "t": asked["t"], "rows": rows} | fields)


def packed(*packs: tuple[Header, bytes], done: bool = True) -> Answer:
    """Return what answers a fetch with these packs."""

    def answer(peer: Peer, asked: Header) -> None:
        for fields, body in packs:
            peer.send({"type": "pack", "t": asked["t"], "body": len(body)} | fields, body)
        if done:
            peer.send({"type": "done", "t": asked["t"]})

    return answer


def honest_fetch(peer: Peer, asked: Header) -> None:
    """Send each file that was asked for; all hold the same."""
    packed(({"files": [row(name, b"hello") for name in asked["names"]]}, b"hello" * len(asked["names"])))(peer, asked)


HONEST: dict[str, Answer] = {
    "get": lambda p, m: p.send({"type": "error", "t": m["t"], "code": "not-a-file", "message": "it is a folder"}),
    "stat": listed(["tree", "folder", 0, 1, 0o755]),
    "list": listed(*ROWS),
    "fetch": honest_fetch,
    "tree": lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": False}),
    "stats": lambda p, m: p.send({"type": "found", "t": m["t"], "rows": [None] * len(m["names"])}),
    "pack": lambda p, m: p.send({"type": "receipts", "t": m["t"], "packs": 1}),
}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, and when its server was closed, no descriptor and no thread is left."""
    with nothing_leaks():
        yield


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A local folder with something in it, and something beside it."""
    folder = plant(tmp_path / "here", {"mine": OLD, "tree/mine": OLD, "tree/sub/mine": OLD})
    (tmp_path / "outside").write_bytes(OLD)
    return folder


def client_of(server: FakeServer, **patience: Any) -> ftransfer.Remote:
    """Return a real client that soon gives up."""
    return ftransfer.connect(server.url, **({"timeout": 1, "retry_for": 0, "max_time": 15} | patience))


def download_fails(here: Path, **answers: Answer) -> FtransferError:
    """Download a tree from a server with these answers; return the error, after which nothing is here but before."""
    before = facts(here.parent)
    with FakeTreeServer(**answers) as server, client_of(server) as remote, pytest.raises(FtransferError) as caught:
        remote.download("tree", here)
    after = facts(here.parent)
    new = {name for name in after if name not in before}
    assert new <= {f"here/tree/{name}" for name in ("f1", "f2", "f3", "f1/x")}
    assert {name: fact.content for name, fact in after.items() if name not in new} == {
        name: fact.content for name, fact in before.items()
    }
    assert [path for path in here.rglob(".ftransfer*") if path.is_file()] == []
    return caught.value


def test_the_fake_server_can_be_honest(here: Path) -> None:
    """Else the tests below would prove nothing."""
    with FakeTreeServer() as server, client_of(server) as remote:
        assert remote.download("tree", here).count("sent") == 3
        assert remote.upload(here, "").count("sent") == 6
    assert (here / "tree/f2").read_bytes() == b"hello"


THREE = [row(name, b"hello") for name in ("f1", "f2", "f3")]
BAD_FETCHES: dict[str, Answer] = {
    "never asked for": packed(({"files": [row("evil", b"x")]}, b"x")),
    "one too many": packed(({"files": [*THREE, row("f4", b"")]}, b"hello" * 3)),
    "twice in a pack": packed(({"files": [THREE[0], THREE[0]]}, b"hello" * 2)),
    "twice": packed(({"files": THREE}, b"hello" * 3), ({"files": THREE[:1]}, b"hello")),
    "too few": packed(({"files": THREE[:2]}, b"hello" * 2)),
    "none": packed(),
    "folders": packed(({"folders": [["sub", 1, 0o777]], "files": THREE}, b"hello" * 3)),
    "stamps": packed(({"stamps": [["mine", 1, 0o777]], "files": THREE}, b"hello" * 3)),
    "too much body": packed(({"files": THREE}, b"hello" * 4)),
    "too little body": packed(({"files": THREE}, b"hello" * 2)),
    "a body that never comes": packed(({"files": THREE, "body": 15}, b""), done=False),
    "a failure of what was not asked for": packed(({"failed": [["f9", "not-found", "gone"]]}, b"")),
    "a file that failed, too": packed(({"files": THREE, "failed": [["f1", "gone", "gone"]]}, b"hello" * 3)),
    "another fetch": lambda p, m: p.send({"type": "pack", "t": m["t"] + 1, "files": THREE, "body": 15}, b"hello" * 3),
    "a link nobody asked for": packed(({"links": [["f4", "f1", 1]], "files": THREE}, b"hello" * 3)),
    "receipts": lambda p, m: p.send({"type": "receipts", "t": m["t"], "packs": 1}),
    "a block": lambda p, m: p.send_block(m["t"], 0, b"hello"),
    "silence": lambda _p, _m: None,
    **{
        f"the name {name!r}": packed(({"files": [*THREE, row(name, b"")]}, b"hello" * 3))
        for name in ("../outside", "sub/../../../outside", "/etc/x", ".ftransfer", "")
    },
}


@pytest.mark.parametrize("answer", BAD_FETCHES.values(), ids=BAD_FETCHES)
def test_a_fetch_that_is_answered_badly(here: Path, answer: Answer) -> None:
    """It is an error, and nothing but what was asked for is here."""
    assert download_fails(here, fetch=answer).code in {*PROTOCOL, "lost", "timeout"}


def test_files_that_are_always_damaged(here: Path) -> None:
    """They are asked for again some times, then that is an error; nothing of them is here."""
    answer = lambda p, m: packed(  # noqa: E731
        ({"files": [row(name, b"hello", hash="0" * 32) for name in m["names"]]}, b"hello" * len(m["names"]))
    )(p, m)
    failed = download_fails(here, fetch=answer)
    assert failed.exit_status in (6, 7)
    assert not (here / "tree/f1").exists()


BAD_LISTS: dict[str, Answer] = {
    **{f"the name {name!r}": listed(ROWS[0], [name, "file", 5, 1, 0o644]) for name in BAD_NAMES},
    "a kind nobody knows": listed(["f1", "device", 5, 1, 0o644]),
    "a negative size": listed(["f1", "file", -5, 1, 0o644]),
    "more than there can be": listed(["f1", "file", 1 << 62, 1, 0o644], ["f2", "file", 1 << 62, 1, 0o644]),
    "a folder that is here a file": listed(["mine", "folder", 0, 1, 0o755], ["mine/x", "file", 5, 1, 0o644]),
    "a file that is here a folder": listed(["sub", "file", 5, 1, 0o644]),
    "a file and what is below it": listed(["f1", "file", 5, 1, 0o644], ["f1/x", "file", 5, 1, 0o644]),
    "silence": lambda _p, _m: None,
    "an end in the middle": listed(*ROWS, more=True),
    "done": lambda p, m: p.send({"type": "done", "t": m["t"]}),
}


@pytest.mark.parametrize("answer", BAD_LISTS.values(), ids=BAD_LISTS)
def test_a_listing_that_cannot_be(here: Path, answer: Answer) -> None:
    """It is an error, and nothing that was here is touched."""
    failed = download_fails(here, list=answer)
    assert failed.code in {*PROTOCOL, "lost", "timeout", "disk", "partial", "not-a-file"}


def test_a_listing_with_a_name_twice(here: Path) -> None:
    """The file is here, whole."""
    with FakeTreeServer(list=listed(*ROWS, *ROWS)) as server, client_of(server) as remote:
        try:
            remote.download("tree", here)
        except FtransferError as exc:
            assert exc.code in PROTOCOL  # noqa: PT017 - either will do
        else:
            assert (here / "tree/f1").read_bytes() == b"hello"
    assert (here / "mine").read_bytes() == OLD


@pytest.mark.parametrize("target", ["../../outside", "/etc/passwd", "sub/../../../outside", ".."])
def test_a_link_that_leads_out_and_a_file_through_it(here: Path, target: str) -> None:
    """The link is left out or made a folder; what lies through it stays below."""
    rows = [["l", "link", 5, 1, 0o777], ["l/outside", "file", 5, 1, 0o644], ["sub/f", "file", 5, 1, 0o644]]

    def answer(peer: Peer, asked: Header) -> None:
        files = [name for name in asked["names"] if name != "l"]
        links = [["l", target, 1]] if "l" in asked["names"] else []
        packed(({"links": links, "files": [row(n, b"hello") for n in files]}, b"hello" * len(files)))(peer, asked)

    with FakeTreeServer(list=listed(*rows), fetch=answer) as server, client_of(server) as remote:
        try:
            remote.download("tree", here)
        except FtransferError as exc:
            assert exc.exit_status in (6, 10)  # noqa: PT017 - either will do
    assert (here.parent / "outside").read_bytes() == OLD
    assert not (here / "outside").exists()
    assert not (here / "tree/l").is_symlink()


def test_a_link_within_the_tree_and_a_file_through_it(here: Path) -> None:
    """Nothing is written through it: what it leads to is as it was."""
    rows = [["l", "link", 5, 1, 0o777], ["l/mine", "file", 5, 1, 0o644]]

    def answer(peer: Peer, asked: Header) -> None:
        for name in asked["names"]:
            made = {"links": [["l", "sub", 1]]} if name == "l" else {"files": [row(name, b"hello")]}
            packed((made, b"" if name == "l" else b"hello"), done=False)(peer, asked)
        peer.send({"type": "done", "t": asked["t"]})

    with (
        FakeTreeServer(list=listed(*rows), fetch=answer) as server,
        client_of(server) as remote,
        pytest.raises(errors.PartialFailure),
    ):
        remote.download("tree", here)
    assert (here / "tree/sub/mine").read_bytes() == OLD


def test_a_listing_without_end(here: Path) -> None:
    """Memory stays bounded, and the client can be stopped."""
    pages = iter(range(1_000_000))

    def answer(peer: Peer, asked: Header) -> None:
        for page in pages:
            rows = [[f"{page:07}-{n:03}", "file", 5, 1, 0o644] for n in range(500)]
            peer.send({"type": "entries", "t": asked["t"], "rows": rows, "more": True})

    before = resident()
    with FakeTreeServer(list=answer) as server, client_of(server, max_time=4) as remote:
        started = time.monotonic()
        with pytest.raises(errors.TimedOut, match="not done within"):
            remote.download("tree", here)
        assert time.monotonic() - started < 10
    assert next(pages) > 200  # or it was not what took the time
    assert resident() - before < 100 << 20


def endless(kind: str, **fields: Any) -> Answer:
    """Return what sends a message with `more` without end, or rather until the client has gone."""

    def answer(peer: Peer, asked: Header) -> None:
        data = frame({"type": kind, "t": asked["t"], "more": True} | fields)
        for _ in range(3000):
            if not peer.try_to_send(data):
                return

    return answer


MANY = [[0, n % 100, 0] for n in range(1000)]
BAD_RECEIPTS: dict[str, dict[str, Answer]] = {
    "packs never sent": {"pack": lambda p, m: p.send({"type": "receipts", "t": m["t"], "packs": 5})},
    "a failure without reason": {
        "pack": lambda p, m: p.send({"type": "receipts", "t": m["t"], "packs": 1, "failed": [[0, 0, 0]]})
    },
    "a row out of range": {
        "pack": lambda p, m: p.send(
            {"type": "receipts", "t": m["t"], "packs": 1, "failed": [[0, 99, 0]], "why": [["refused", "no"]]}
        )
    },
    "a pack out of range": {
        "pack": lambda p, m: p.send(
            {"type": "receipts", "t": m["t"], "packs": 1, "failed": [[1, 0, 0]], "why": [["refused", "no"]]}
        )
    },
    "failures without end": {"pack": endless("receipts", packs=0, failed=MANY, why=[["refused", "no"]])},
    "ready twice": {"tree": lambda p, m: (HONEST["tree"](p, m), HONEST["tree"](p, m))},
    "no window": {"tree": lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": False, "window": 0})},
    "a clock that stands": {
        "tree": lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": False, "clock_ns": 0})
    },
    "a pack back": {"tree": lambda p, m: (HONEST["tree"](p, m), p.send({"type": "pack", "t": m["t"]}))},
    "too few answers": {
        "tree": lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": True}),
        "stats": lambda p, m: p.send({"type": "found", "t": m["t"], "rows": []}),
    },
    "too many answers": {
        "tree": lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": True}),
        "stats": lambda p, m: p.send({"type": "found", "t": m["t"], "rows": [None] * 50}),
    },
    "too few hashes": {
        "tree": lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": True}),
        "stats": lambda p, m: p.send(
            {"type": "found", "t": m["t"], "rows": [["file", len(OLD), 1, 0o644]] * len(m["names"])}
        ),
        "checksums": lambda p, m: p.send({"type": "digests", "t": m["t"], "rows": [[1, "0" * 32]]}),
    },
    "hashes without end": {
        "tree": lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": True}),
        "stats": lambda p, m: p.send(
            {"type": "found", "t": m["t"], "rows": [["file", len(OLD), 1, 0o644]] * len(m["names"])}
        ),
        "checksums": endless("digests", rows=[[1, "0" * 32]] * 1000),
    },
}


@pytest.mark.parametrize("answers", BAD_RECEIPTS.values(), ids=BAD_RECEIPTS)
def test_an_upload_that_is_answered_badly(here: Path, answers: dict[str, Answer]) -> None:
    """It is an error at once, and never counted as sent."""
    before = facts(here.parent)
    with FakeTreeServer(**answers) as server, client_of(server) as remote, pytest.raises(FtransferError) as caught:
        remote.upload(here, "")
    assert caught.value.code in PROTOCOL
    assert facts(here.parent) == before


# What a server says of itself.


def ready(**fields: Any) -> Answer:
    """Return what answers a tree."""
    return lambda p, m: p.send({"type": "ready", "t": m["t"], "exists": False} | fields)


def not_one_pack(_: Peer, asked: Header) -> None:
    """Fail the test, because nothing should have been sent."""
    raise AssertionError(asked)


def test_names_that_are_one_there_are_named_before_the_first_byte(here: Path) -> None:
    """By case, by Unicode form, or both, in files and folders: all of them at once."""
    plant(here, {"Makefile": b"", "makefile": b"", "a/é": b"", "a/e\u0301": b"", "B/x": b"", "b/y": b"", "ok/Ok": b""})
    with FakeTreeServer(tree=ready(folds=["case", "form"]), pack=not_one_pack) as server, client_of(server) as remote:
        with pytest.raises(errors.BadPath) as caught:
            remote.upload(f"{here}/", "")
        assert "3 names" in str(caught.value)
        assert all(name in str(caught.value) for name in ("akefile", "a/", "b"))
        assert "same name" in f"{caught.value} {caught.value.hint}"
    with FakeTreeServer(tree=ready()) as server, client_of(server) as remote:
        assert remote.upload(f"{here}/", "").count("sent") == 10


@pytest.mark.parametrize(("room", "said"), [({"free_bytes": 44}, "bytes"), ({"free_files": 2}, "inodes")])
def test_too_little_room_is_said_before_the_first_byte(here: Path, room: Header, said: str) -> None:
    """Where the server knows its room, and nothing of the tree is there yet."""
    with (
        FakeTreeServer(tree=ready(**room), pack=not_one_pack) as server,
        client_of(server) as remote,
        pytest.raises(errors.RemoteDiskError, match=said) as caught,
    ):
        remote.upload(here, "")
    assert caught.value.exit_status == 9


@pytest.mark.parametrize("code", ["disk", "full", "refused", "closing", "exists", "moon-phase"])
def test_a_tree_that_is_refused_in_the_middle(here: Path, code: str) -> None:
    """The error is the server's, with its code; nothing counts as sent."""
    refuse = lambda p, m: p.send({"type": "error", "t": m["t"], "code": code, "message": "no\x1b[31m"})  # noqa: E731
    with (
        FakeTreeServer(pack=refuse) as server,
        client_of(server) as remote,
        pytest.raises(FtransferError) as caught,
    ):
        remote.upload(here, "")
    assert (caught.value.code, caught.value.remote) == (code, True)
    assert caught.value.results.count("sent") == 0

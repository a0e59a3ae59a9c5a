"""A hostile client that sends trees: bad packs and questions are refused, nothing is harmed, the server goes on."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import support
from forests import BAD_NAMES, PROTOCOL, plant, row
from support import PATIENCE, Header, Peer, block_hash, content_of, frame, nothing_leaks, staged, wait_until

import ftransfer
from ftransfer.treeserving import MOST_TREES

OLD = b"the old content"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, and when its server was closed, no descriptor and no thread is left."""
    with nothing_leaks():
        yield


@pytest.fixture
def home(root: Path) -> Path:
    """What has to be unchanged after every attack: files below the root, and one outside that links lead to."""
    plant(root, {"old": OLD, "folder/inner": OLD})
    (root.parent / "outside").mkdir()
    (root.parent / "outside/secret").write_bytes(b"secret")
    (root / "way out").symlink_to("../outside")
    (root / "abs").symlink_to(root.parent / "outside")
    return root


@contextmanager
def unharmed(server: ftransfer.Server, root: Path) -> Iterator[None]:
    """Fail the test unless an attack leaves the server, its root and what is beside it as they were."""
    before = content_of(root.parent)
    with support.unharmed(server, root):
        yield
    assert content_of(root.parent) == before
    source = plant(root.parent / "good", {"a/f": b"good", "l/x": 5000})
    with ftransfer.connect(server.urls[0], timeout=10, retry_for=0) as remote:
        remote.upload(source, "")
        assert remote.verify_folder(source, "good").is_same
        remote.remove("good", recursive=True)
    wait_until(lambda: staged(root) == [], "dropping what was staged")


def open_tree(peer: Peer, t: int = 1, path: str = "", **fields: Any) -> None:
    """Open a tree and wait until it is ready."""
    peer.send({"type": "tree", "t": t, "path": path} | fields)
    peer.expect("ready", t=t)


def pack(peer: Peer, body: bytes = b"", /, **fields: Any) -> None:
    """Send a pack that wants its answer at once, right but for what is given."""
    peer.send({"type": "pack", "t": 1, "now": True, "body": len(body)} | fields, body)


def failed_rows(peer: Peer) -> dict[int, str]:
    """Return the code of each row that failed, from the answer to one pack."""
    answer = peer.expect("receipts", packs=1)
    return {row: answer["why"][why][0] for _, row, why in answer.get("failed", ())}


def ends(peer: Peer, *codes: str) -> None:
    """Fail the test unless the server ends this connection with an error of such a code."""
    error = peer.expect("error", t=None)
    assert error["code"] in (codes or PROTOCOL)
    assert peer.is_closed_by_peer()


@pytest.mark.parametrize("kind", ["files", "links", "folders", "stamps", "failed"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_in_a_pack_end_the_connection(
    server: ftransfer.Server, home: Path, peer: Peer, name: str, kind: str
) -> None:
    """Nothing of the pack is taken, the good rows before them neither."""
    rows = {
        "files": row,
        "links": lambda path: [path, "old", 1],
        "folders": lambda path: [path, 1, 0o700],
        "stamps": lambda path: [path, 1, 0o600],
        "failed": lambda path: [path, "not-found", "gone"],
    }
    with unharmed(server, home):
        open_tree(peer)
        pack(peer, **{kind: [rows[kind]("fine"), rows[kind](name)]})
        ends(peer)


BAD_PACKS: dict[str, tuple[Header, bytes]] = {
    "too little body": ({"files": [row("x", b"12345")]}, b"1234"),
    "too much body": ({"files": [row("x", b"12345")]}, b"123456"),
    "a body of nothing": ({"files": []}, b"123456"),
    "sizes that cancel out": ({"files": [row("x", b"", size=-5), row("y", b"", size=10)]}, b"12345"),
    "a size beyond all limits": ({"files": [row("x", size=1 << 62)]}, b""),
    "a body beyond all limits": ({"files": [], "body": 1 << 40}, b""),
    "a size that is no number": ({"files": [row("x", size="5")]}, b""),
    "a size that is true": ({"files": [row("x", size=True)]}, b"1"),
    "more rows than allowed": ({"files": [row(f"x{n}") for n in range(400)] * 3}, b""),
    "a row that is too short": ({"files": [row("x")[:4]]}, b""),
    "a row that is too long": ({"files": [[*row("x"), 1]]}, b""),
    "a hash that is none": ({"files": [row("x", hash="x" * 32)]}, b""),
    "a mode of too many bits": ({"files": [row("x", mode=0o10000)]}, b""),
    "a time of too many bits": ({"files": [row("x", mtime=1 << 64)]}, b""),
    "links without targets": ({"links": [["x"]]}, b""),
    "a file that is a text": ({"files": ["x"]}, b""),
    "files that are no list": ({"files": {"x": 1}}, b""),
    "nothing nested deeply": ({"files": [[[[[[]]]]]]}, b""),
}


@pytest.mark.parametrize(("fields", "body"), BAD_PACKS.values(), ids=BAD_PACKS)
def test_bad_packs_end_the_connection(
    server: ftransfer.Server, home: Path, peer: Peer, fields: Header, body: bytes
) -> None:
    """What does not add up, or is no pack, is no error of a file."""
    with unharmed(server, home):
        open_tree(peer)
        pack(peer, files=[row("first")])
        assert failed_rows(peer) == {}
        peer.send({"type": "finish", "t": 1})
        (home / "first").unlink()
        open_tree(peer, 2)
        pack(peer, body, **({"t": 2} | fields))
        ends(peer)


@pytest.mark.parametrize(
    "send",
    [
        lambda p: pack(p, files=[row("x")]),
        lambda p: p.send({"type": "finish", "t": 1}),
        lambda p: (open_tree(p), pack(p, t=2, files=[row("x")])),
        lambda p: (open_tree(p), p.send({"type": "tree", "t": 1, "path": ""})),
        lambda p: (open_tree(p), p.send({"type": "receipts", "t": 1, "packs": 1})),
        lambda p: (open_tree(p), p.send({"type": "ready", "t": 1, "exists": True})),
        lambda p: (open_tree(p), p.send_block(1, 0, b"block")),
        lambda p: (open_tree(p), p.send_end(1, "x", b"")),
        lambda p: (open_tree(p), p.send({"type": "fetch", "t": 2, "path": "", "names": ["old"]})),
    ],
    ids=["no tree", "finish", "other number", "twice", "receipts", "ready", "block", "end", "fetch"],
)
def test_what_belongs_to_no_open_tree_is_out_of_turn(
    server: ftransfer.Server, home: Path, peer: Peer, send: Callable[[Peer], object]
) -> None:
    """Packs need a tree, a tree takes packs only, and bodies go in one direction at a time."""
    with unharmed(server, home):
        send(peer)
        ends(peer, "out-of-turn")


def test_packs_of_a_tree_that_is_over_are_passed_over(server: ftransfer.Server, home: Path, peer: Peer) -> None:
    """They were under way; the connection goes on."""
    with unharmed(server, home):
        open_tree(peer)
        peer.send({"type": "finish", "t": 1})
        pack(peer, b"data", files=[row("x", b"data")])
        peer.send({"type": "ping", "t": 2})
        peer.expect("pong", t=2)


@pytest.mark.parametrize("path", ["..", "/etc", "a/../..", ".ftransfer", "way out", "old", "way out/x"])
def test_trees_at_bad_places_are_refused(server: ftransfer.Server, home: Path, peer: Peer, path: str) -> None:
    """By their number; the connection goes on."""
    with unharmed(server, home):
        peer.send({"type": "tree", "t": 1, "path": path})
        assert peer.expect("error", t=1)["code"] in ("bad-path", "not-a-file")
        peer.send({"type": "ping", "t": 2})
        peer.expect("pong", t=2)


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "a/../../x", "", "..", "a\0b", "./../x"])
def test_links_out_of_the_tree_are_refused(server: ftransfer.Server, home: Path, peer: Peer, target: str) -> None:
    """Each for itself; what would lie behind one is not written."""
    with unharmed(server, home), peer:
        open_tree(peer)
        pack(peer, files=[row("link/x")], links=[["link", target, 1]], folders=[["link", 1, 0o777]])
        failed = failed_rows(peer)
        assert failed[1] == "bad-path"
        for path in ("link/x", "link"):
            place = home / path
            place.rmdir() if place.is_dir() else place.unlink(missing_ok=True)


def test_nothing_is_written_through_a_link(server: ftransfer.Server, home: Path, peer: Peer) -> None:
    """Neither through one that was there nor through one that was just made, whatever the row is."""
    with unharmed(server, home), peer:
        open_tree(peer)
        pack(peer, links=[["l", "folder", 1]])
        assert failed_rows(peer) == {}
        names = ["l/inner", "l/new", "way out/secret", "abs/secret", "abs/new"]
        pack(
            peer,
            files=[row(name) for name in names],
            links=[[f"{name}2", "old", 1] for name in names],
            folders=[["l", 1, 0o700], ["abs", 1, 0o700], ["way out/d", 1, 0o700]],
            stamps=[["l", 1, 0o600], ["l/inner", 1, 0o600], ["abs/secret", 1, 0o600], ["way out", 1, 0o600]],
        )
        assert sorted(failed_rows(peer)) == list(range(17))
        (home / "l").unlink()


def test_rows_that_contradict_each_other(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """A name twice, a file and something below it, a link of the same name: some fail, nothing breaks."""
    open_tree(peer)
    pack(
        peer,
        b"1234",
        files=[
            row("a", b"1"),
            row("a", b"2"),
            row("b/c"),
            row("b"),
            row("b/c/d"),
            row("e", b"3"),
            row("g", b"4", mode=0o4755),
        ],
        links=[["a", "e", 1], ["b/c/l", "x", 1], ["e/l", "x", 1]],
        folders=[["a", 1, 0o700], ["e", 1, 0o700], ["g", 1, 0o700], ["b", 1, 0o7777]],
        stamps=[["gone", 1, 0o600]],
    )
    assert set(failed_rows(peer).values()) <= {"not-a-file", "not-found"}
    assert (root / "g").read_bytes() == b"4"
    assert stat.S_IMODE((root / "g").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "b").stat().st_mode) == 0o777
    serves_well_with_trees(server, root)


def serves_well_with_trees(server: ftransfer.Server, root: Path) -> None:
    """Fail the test unless a good client can still send a tree."""
    with unharmed(server, root):
        pass


def test_a_file_that_arrives_damaged_is_not_stored(server: ftransfer.Server, home: Path, peer: Peer) -> None:
    """It fails alone; the old file stays."""
    with unharmed(server, home), peer:
        open_tree(peer)
        pack(peer, b"12345", files=[row("old", b"12345", hash=block_hash(b"12354"))])
        assert failed_rows(peer) == {0: "integrity"}


def test_a_client_that_leaves_in_the_middle_of_a_pack(server: ftransfer.Server, home: Path) -> None:
    """Or before the answer: what was not answered may be there or not, but nothing staged is."""
    with unharmed(server, home):
        for count in (0, 3, 40):
            with Peer.dial(server.urls[0]) as peer:
                open_tree(peer)
                pack(peer, b"", body=50, files=[row("old", b"x" * 50)])
                peer.send_raw(b"x" * count)
                peer.reset() if count else peer.hang_up()


def test_a_client_that_opens_trees_until_the_limit(home: Path) -> None:
    """It is told that the server is full; when it leaves others are served again."""
    with (
        ftransfer.Server(home, durable=False, limits=ftransfer.host.Limits(uploads=4)) as server,
        unharmed(server, home),
    ):
        with Peer.dial(server.urls[0]) as peer:
            for t in range(1, 5):
                open_tree(peer, t)
            peer.send({"type": "tree", "t": 5, "path": ""})
            peer.expect("error", t=5, code="full")
            for t in range(1, 5):
                peer.send({"type": "finish", "t": t})
            for t in range(6, 10):
                open_tree(peer, t)
            peer.reset()
        wait_until(lambda: server.connection_count == 0, "letting go of the connection")


def test_a_client_that_opens_more_than_a_connection_bears(server: ftransfer.Server, home: Path, peer: Peer) -> None:
    """Each tree takes descriptors: one connection has a few, and the next is refused."""
    with unharmed(server, home), peer:
        for t in range(1, MOST_TREES + 1):
            open_tree(peer, t)
        peer.send({"type": "tree", "t": MOST_TREES + 1, "path": ""})
        peer.expect("error", t=MOST_TREES + 1, code="refused")
        peer.send({"type": "finish", "t": 1})
        open_tree(peer, MOST_TREES + 2)


def test_a_client_that_sends_packs_and_never_reads(home: Path) -> None:
    """The server waits for it no longer than for any silent peer, and lets go."""
    wrong = [row(f"x{n}", hash="0" * 32) for n in range(500)]
    with ftransfer.Server(home, durable=False, timeout=1) as server, unharmed(server, home):
        with Peer.dial(server.urls[0]) as peer:
            open_tree(peer)
            data = frame({"type": "pack", "t": 1, "now": True, "files": wrong}) * 20
            until = time.monotonic() + PATIENCE
            while peer.try_to_send(data):
                assert time.monotonic() < until
        wait_until(lambda: server.connection_count == 0, "letting go of the connection")


ASKED: dict[str, Header] = {
    "fetch": {"names": ["old"]},
    "stats": {"names": ["old"]},
    "checksums": {"names": ["old"]},
}


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_questions_about_bad_names_are_refused(
    server: ftransfer.Server, home: Path, peer: Peer, kind: str, name: str
) -> None:
    """By their number, as folder and as name; the connection goes on."""
    with unharmed(server, home):
        for t, fields in enumerate([{"path": name, "names": []}, {"path": "", "names": ["old", name]}], 1):
            peer.send({"type": kind, "t": t} | fields)
            peer.expect("error", t=t, code="bad-path")
        peer.send({"type": "ping", "t": 9})
        peer.expect("pong", t=9)


def test_nothing_is_read_through_a_link(server: ftransfer.Server, home: Path, peer: Peer) -> None:
    """Where links are followed, they may not lead out of the folder that was asked about."""
    names = ["way out/secret", "abs/secret", "way out", "abs", "folder/up"]
    (home / "folder/up").symlink_to("../../outside/secret")
    with unharmed(server, home):
        peer.send({"type": "stats", "t": 1, "path": "", "names": names})
        assert [found and found[0] for found in peer.expect("found", t=1)["rows"]] == [None, None, *["link"] * 3]
        for t, links in ((2, "copy"), (4, "follow")):
            peer.send({"type": "fetch", "t": t, "path": "", "names": names, "links": links})
            sent = peer.expect("pack", t=t)
            assert sent.get("files", []) == []
            assert peer.last_body == b""
            peer.expect("done", t=t)
            peer.send({"type": "checksums", "t": t + 1, "path": "", "names": names, "links": links})
            assert all(isinstance(first, str) for first, _ in peer.expect("digests", t=t + 1)["rows"])
        peer.send({"type": "stats", "t": 20, "path": "way out", "names": ["secret"]})
        assert peer.expect("found", t=20)["rows"] == [None]
        peer.send({"type": "fetch", "t": 21, "path": "abs", "names": ["secret"]})
        peer.expect("error", t=21, code="not-a-file")


def test_questions_about_more_names_than_allowed(server: ftransfer.Server, home: Path) -> None:
    """1,024 are answered, one more is no question."""
    with unharmed(server, home):
        for kind, answer in (("stats", "found"), ("checksums", "digests"), ("fetch", "pack")):
            with Peer.dial(server.urls[0]) as peer:
                peer.send({"type": kind, "t": 1, "path": "", "names": ["old", "gone"] * 512})
                peer.expect(answer, t=1)
                peer.reset()
            with Peer.dial(server.urls[0]) as peer:
                peer.send({"type": kind, "t": 1, "path": "", "names": ["old"] * 1025})
                ends(peer, "bad-frame")

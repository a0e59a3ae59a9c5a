"""A hostile client against the real server: each fault has its stated outcome, nothing is lost, the server goes on."""

import json
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import (
    Header,
    Peer,
    block_hash,
    descriptors_come_back,
    frame,
    nothing_leaks,
    put,
    serves_well,
    snapshot,
    staged,
    unharmed,
    upload_by_hand,
    wait_until,
)
from test_session import make

import ftransfer
from ftransfer import errors, paths, wire

VECTORS = Path(__file__).parent / "vectors"
OLD = b"the old content"
H = "0" * 32
YEAR_2350 = 12_000_000_000
"""Seconds whose nanoseconds do not fit into 63 bits."""


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, and when its server was closed, no descriptor and no thread is left."""
    with nothing_leaks():
        yield


@pytest.fixture(autouse=True)
def old_file(root: Path) -> bytes:
    """What has to be unchanged after every attack: a file, and one in a folder."""
    (root / "old").write_bytes(OLD)
    (root / "folder").mkdir()
    (root / "folder" / "inner").write_bytes(OLD)
    return OLD


def refused(peer: Peer, code: str) -> Header:
    """Return the error without number with which the server ends this connection."""
    error = peer.expect("error", code=code, t=None)
    assert peer.is_closed_by_peer()
    return error


def vectors(name: str) -> list[dict[str, Any]]:
    """Return the vectors of one file."""
    made: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["vectors"]
    return made


# Frames.


@pytest.mark.parametrize("name", ["frames", "fields"])
@pytest.mark.parametrize("greet", [True, False], ids=["greeted", "first"])
def test_bad_frames_end_their_connection_with_a_code(
    server: ftransfer.Server, root: Path, name: str, greet: bool
) -> None:
    """Every vector with an error is refused with its code, or is a lost client; before and after hello."""
    with unharmed(server, root):
        for vector in vectors(name):
            with Peer.dial(server.urls[0], greet=greet) as peer:
                peer.send_raw(bytes.fromhex(vector["bytes"]))
                peer.hang_up()
                is_tls = not greet and vector["bytes"].startswith("16")  # the first byte decides
                if vector["error"] != "lost":
                    code = "tls" if is_tls else vector["error"]
                    assert peer.expect("error", t=None)["code"] == code, vector["name"]
                assert peer.is_closed_by_peer(), vector["name"]


def test_bad_names_are_refused_and_the_connection_goes_on(server: ftransfer.Server, root: Path) -> None:
    """Every vector of a name is refused by its number; the next request is served."""
    with unharmed(server, root):
        for vector in vectors("names"):
            with Peer.dial(server.urls[0]) as peer:
                peer.send_raw(bytes.fromhex(vector["bytes"]))
                peer.expect("error", t=vector["t"], code="bad-path")
                peer.send({"type": "ping", "t": 8})
                peer.expect("pong", t=8)


def test_a_pack_with_a_bad_name_ends_the_connection(server: ftransfer.Server, root: Path) -> None:
    """Every vector of a pack, whether its tree is open or not: it is no request that could be refused by itself."""
    with unharmed(server, root):
        for vector in vectors("packs"):
            for opening in ([], [{"type": "tree", "t": vector["t"], "path": "in"}]):
                with Peer.dial(server.urls[0]) as peer:
                    for header in opening:
                        peer.send(header)
                        peer.expect("ready")
                    peer.send_raw(bytes.fromhex(vector["bytes"]))
                    peer.hang_up()
                    assert refused(peer, "out-of-turn"), vector["name"]


def test_a_late_pack_with_a_bad_name_does_not_make_its_body_a_frame(
    server: ftransfer.Server, root: Path, peer: Peer
) -> None:
    """Whatever becomes of a pack whose tree is over, its body is never read as the next frame."""
    with unharmed(server, root):
        peer.send({"type": "tree", "t": 1, "path": "in"})
        peer.expect("ready")
        peer.send({"type": "error", "t": 1, "code": "x", "message": ""})
        body = frame({"type": "remove", "t": 2, "path": "old"})
        row = ["../x", len(body), block_hash(body), 0, 0o644]
        peer.send({"type": "pack", "t": 1, "files": [row], "body": len(body)}, body)
        peer.hang_up()
        assert b'"done"' not in peer.drain()


def test_a_tree_that_is_finished_too_early_is_told_so(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """What was sent and not answered is stored, or the client hears of it; it is not dropped in silence."""
    peer.send({"type": "tree", "t": 1, "path": "in"})
    peer.expect("ready")
    files = [["f", 5, block_hash(b"hello"), 0, 0o644]]
    peer.send_raw(
        frame({"type": "pack", "t": 1, "files": files, "body": 5}) + b"hello" + frame({"type": "finish", "t": 1})
    )
    peer.hang_up()
    heard = peer.drain()
    stored = (root / "in" / "f").exists()
    assert (b'"receipts"' in heard) == stored or b'"error"' in heard
    assert stored or b'"error"' in heard
    serves_well(server)


def test_a_bad_name_before_hello_is_no_request(server: ftransfer.Server, root: Path) -> None:
    """It is out of turn, as everything before hello."""
    with unharmed(server, root), Peer.dial(server.urls[0], greet=False) as peer:
        peer.send({"type": "put", "t": 1, "path": "../x", "size": 1})
        refused(peer, "out-of-turn")


def test_blocks_of_a_refused_put_are_consumed_silently(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """They were under way already; what comes after them counts again."""
    with unharmed(server, root):
        put(peer, 1, "../x", 10)
        peer.send_block(1, 0, b"0123456789")
        peer.send_end(1, "../x", b"0123456789")
        peer.send({"type": "ping", "t": 2})
        peer.expect("error", t=1, code="bad-path")
        peer.expect("pong", t=2)


def test_a_name_in_an_end_cannot_open_a_number(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """A bad name in an answer is no request that was refused: it is out of turn."""
    with unharmed(server, root):
        peer.send_end(5, "../x", b"")
        refused(peer, "out-of-turn")


def test_a_body_that_is_too_short_leaves_the_old_file(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """The client leaves in the middle of a block; the partial holds nothing and can be dropped."""
    put(peer, 1, "old", 1000)
    peer.send({"type": "block", "t": 1, "offset": 0, "hash": H, "body": 1000}, b"x" * 500)
    peer.hang_up()
    assert peer.is_closed_by_peer()
    assert (root / "old").read_bytes() == OLD
    with ftransfer.connect(server.urls[0]) as remote:
        assert [(p.path, p.held) for p in remote.partials(clear=True)] == [("old", 0)]
    serves_well(server)
    assert staged(root) == []


def test_a_body_that_is_too_long_is_no_frame(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """What follows the announced bytes is read as the next frame, and is none."""
    put(peer, 1, "old", 1000)
    peer.send({"type": "block", "t": 1, "offset": 0, "hash": block_hash(b"x" * 10), "body": 10}, b"x" * 100)
    peer.expect("stored", ok=True)
    refused(peer, "bad-frame")
    assert (root / "old").read_bytes() == OLD
    serves_well(server)


# Turns.


@pytest.mark.parametrize("kind", sorted(set(wire.BY_TYPE) - {"hello"}))
def test_nothing_is_served_before_hello(server: ftransfer.Server, root: Path, kind: str) -> None:
    """Whatever comes first is refused, and changes nothing."""
    with unharmed(server, root), Peer.dial(server.urls[0], greet=False) as peer:
        changed = {"path": "old"} if kind in ("remove", "put", "move") else {}
        peer.send_raw(wire.encode(make(kind, None if kind == "error" else 1, **changed)))
        refused(peer, "out-of-turn")


def test_an_unknown_version_is_refused(server: ftransfer.Server, root: Path) -> None:
    """With the code `version`, and both versions in words."""
    with unharmed(server, root):
        for versions in ([], [2], [65536, 7]):
            with Peer.dial(server.urls[0], greet=False) as peer:
                peer.send({"type": "hello", "versions": versions, "software": "x"})
                assert "version 1" in refused(peer, "version")["message"]


def test_a_number_is_used_once(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """Also after its request is over."""
    with unharmed(server, root):
        peer.send({"type": "ping", "t": 5})
        peer.expect("pong")
        put(peer, 5, "new", 1)
        refused(peer, "out-of-turn")


def test_the_33rd_open_request_is_refused(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """32 puts may be open; one more ends the connection, and all of them can be taken up again."""
    for t in range(1, wire.WINDOW + 2):
        put(peer, t, f"many/{t}", 5)
    refused(peer, "out-of-turn")
    with ftransfer.connect(server.urls[0]) as remote:
        wait_until(lambda: remote.partials(clear=True) == [], "letting go of the transfers")
    assert os.listdir(root / "many") == []
    serves_well(server)


def test_files_go_one_way_at_a_time(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """A put while a get is open would let both ends wait for each other."""
    with unharmed(server, root):
        peer.send({"type": "get", "t": 1, "path": "old", "wait": True})
        peer.expect("file")
        put(peer, 2, "new", 5)
        refused(peer, "out-of-turn")


def test_the_same_transfer_twice_is_busy(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """On one connection or on two; the first goes on and wins."""
    put(peer, 1, "new", 5, fingerprint="5-1")
    put(peer, 2, "new", 5, fingerprint="5-1")
    peer.expect("error", t=2, code="busy")
    with Peer.dial(server.urls[0]) as other:
        put(other, 1, "new", 5, fingerprint="5-1")
        other.expect("error", t=1, code="busy")
    peer.send_block(1, 0, b"hello")
    peer.expect("stored", ok=True)
    peer.send_end(1, "new", b"hello")
    peer.expect("receipt", t=1, result="stored")
    assert (root / "new").read_bytes() == b"hello"


# Blocks.


@pytest.mark.parametrize(
    ("offset", "length"),
    [(30, 1), (29, 2), (0, 31), (wire.MAX_INT, 1), (wire.MAX_INT - 5, 10), (5, 10), (0, 30), (10, 1)],
    ids=["at the end", "over the end", "too long", "far away", "over the edge", "overlapping", "around", "again"],
)
def test_bytes_that_are_not_wanted_are_refused(
    server: ftransfer.Server, root: Path, peer: Peer, offset: int, length: int
) -> None:
    """Outside of the file, over what is there, twice: nothing is written beyond the file."""
    put(peer, 1, "old", 30)
    peer.send_block(1, 10, b"0123456789")
    peer.expect("stored", offset=10, ok=True)
    peer.send_block(1, offset, b"x" * length)
    refused(peer, "protocol")
    assert (root / "old").read_bytes() == OLD
    with ftransfer.connect(server.urls[0]) as remote:
        assert [(p.size, p.held) for p in remote.partials(clear=True)] == [(30, 10)]
    serves_well(server)


@pytest.mark.parametrize("kind", ["block", "hole"])
def test_a_stream_cannot_claim_the_end_of_the_world(
    server: ftransfer.Server, root: Path, peer: Peer, kind: str
) -> None:
    """Bytes at an offset that no disk has end in an error; the old file is there, nothing is staged."""
    put(peer, 1, "old", None, transfer=H)
    at = wire.MAX_INT - 4096
    header = {"type": kind, "t": 1, "offset": at} | ({"length": 10} if kind == "hole" else {"hash": H, "body": 10})
    peer.send(header, b"x" * 10 if kind == "block" else b"")
    answer = peer.receive()
    assert answer is not None
    assert answer["type"] in ("error", "stored")
    peer.hang_up()
    peer.drain()
    assert (root / "old").read_bytes() == OLD
    with ftransfer.connect(server.urls[0]) as remote:
        remote.partials(clear=True)
    assert staged(root) == []
    serves_well(server)


@pytest.mark.parametrize("size", [1 << 62, wire.MAX_INT])
def test_a_file_that_cannot_fit_is_refused_at_once(server: ftransfer.Server, root: Path, peer: Peer, size: int) -> None:
    """Before its first byte."""
    with unharmed(server, root):
        put(peer, 1, "old", size)
        peer.expect("error", t=1, code="disk")
        peer.send({"type": "ping", "t": 2})
        peer.expect("pong")


def test_a_damaged_block_is_sent_again_alone(root: Path, peer: Peer) -> None:
    """The answer names it, the others stay, and the end is fine."""
    pieces = [bytes([65 + i]) * 100 for i in range(3)]
    data = b"".join(pieces)
    put(peer, 1, "old", 300)
    peer.send_block(1, 0, pieces[0])
    peer.send({"type": "block", "t": 1, "offset": 100, "hash": block_hash(pieces[1]), "body": 100}, b"?" * 100)
    peer.send_block(1, 200, pieces[2])
    for offset, ok in ((0, True), (100, False), (200, True)):
        peer.expect("stored", offset=offset, ok=ok)
    assert (root / "old").read_bytes() == OLD
    peer.send_end(1, "old", data)
    peer.expect("want", t=1, ranges=[[100, 100]])
    peer.send_block(1, 100, pieces[1])
    peer.expect("stored", offset=100, ok=True)
    peer.send_end(1, "old", data)
    assert peer.expect("receipt", result="stored")["hash"] == block_hash(data)
    assert (root / "old").read_bytes() == data
    assert staged(root) == []


def test_a_block_that_stays_damaged_ends_its_transfer(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """Nobody sends the same wrong bytes for ever: it is an integrity error, and the connection goes on."""
    put(peer, 1, "old", 100)
    answers = []
    for _ in range(1000):
        peer.send_block(1, 0, b"?" * 100, hash=H)
        answer = peer.receive()
        assert answer is not None
        answers.append(answer["type"])
        if answer["type"] == "error":
            assert (answer["t"], answer["code"]) == (1, "integrity")
            break
    assert answers[-1] == "error"
    peer.send({"type": "ping", "t": 2})
    peer.expect("pong")
    assert (root / "old").read_bytes() == OLD
    serves_well(server)


def test_a_wrong_hash_at_the_end_changes_nothing(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """The code is `integrity`, the old file is unchanged, nothing is staged, the connection goes on."""
    with unharmed(server, root):
        for t, wrong in ((1, H), (2, "0" * 64)):
            put(peer, t, "old", 5)
            peer.send_block(t, 0, b"hello")
            peer.expect("stored", ok=True)
            peer.send_end(t, "old", b"hello", hash=wrong)
            peer.expect("error", t=t, code="integrity")
            assert staged(root) == []
        peer.send({"type": "ping", "t": 3})
        peer.expect("pong")


@pytest.mark.parametrize(
    "changed", [{"path": "folder/inner"}, {"size": 4}, {"size": 6}, {"size": wire.MAX_INT}], ids=str
)
def test_an_end_that_does_not_fit_is_refused(
    server: ftransfer.Server, root: Path, peer: Peer, changed: dict[str, Any]
) -> None:
    """Another path or size than was announced."""
    put(peer, 1, "old", 5)
    peer.send_block(1, 0, b"hello")
    peer.expect("stored", ok=True)
    peer.send_end(1, "old", b"hello", **changed)
    refused(peer, "protocol")
    assert (root / "old").read_bytes() == OLD
    assert (root / "folder" / "inner").read_bytes() == OLD
    serves_well(server)


@pytest.mark.parametrize(("size", "answer"), [(5, "receipt"), (4, "error"), (0, "error"), (9, "want")])
def test_a_stream_ends_where_its_end_says(
    server: ftransfer.Server, root: Path, peer: Peer, size: int, answer: str
) -> None:
    """Less than what came is refused, more is asked for."""
    put(peer, 1, "old", None, transfer=H)
    peer.send_block(1, 0, b"hello")
    peer.expect("stored", ok=True)
    peer.send_end(1, "old", b"hello", size=size)
    peer.expect(answer)
    assert (root / "old").read_bytes() == (b"hello" if answer == "receipt" else OLD)
    serves_well(server)


def test_special_bits_of_a_mode_are_dropped(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """A peer never makes a setuid file."""
    put(peer, 1, "new", 0, mode=0o7755)
    peer.send_end(1, "new", b"")
    peer.expect("receipt")
    assert (root / "new").stat().st_mode & 0o7777 == 0o755
    serves_well(server)


@pytest.mark.parametrize("mtime_ns", [wire.MAX_INT, -wire.MAX_INT, -1])
def test_extreme_times_are_stored_or_refused(root: Path, peer: Peer, mtime_ns: int) -> None:
    """And the folder can be listed afterwards."""
    put(peer, 1, "new", 0, mtime_ns=mtime_ns)
    peer.send_end(1, "new", b"")
    peer.expect("receipt")
    peer.send({"type": "list", "t": 2, "path": ""})
    assert len(peer.expect("entries", t=2)["rows"]) == 3
    assert (root / "new").exists()


def test_a_file_from_a_far_future_does_not_spoil_its_folder(
    server: ftransfer.Server, root: Path, peer: Peer, remote: ftransfer.Remote, tmp_path: Path
) -> None:
    """A time that the wire cannot carry is cut; the file is listed, downloaded and uploaded."""
    try:
        os.utime(root / "old", (YEAR_2350, YEAR_2350))
    except OSError as exc:
        pytest.skip(f"this file system has no such times: {exc}")
    if (root / "old").stat().st_mtime != YEAR_2350:
        pytest.skip("this file system has no such times")
    peer.send({"type": "list", "t": 1, "path": ""})
    assert len(peer.expect("entries")["rows"]) == 2
    assert remote.download("old", tmp_path / "copy").files[0].result == "sent"
    assert remote.upload(root / "old", "again").files[0].result == "sent"
    serves_well(server)


# Names and what they lead to.


def test_a_path_through_a_link_leads_nowhere(server: ftransfer.Server, root: Path, tmp_path: Path, peer: Peer) -> None:
    """No request follows a symbolic link to a folder, inside the root or out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to("folder")
    before = snapshot(outside, times=True)
    requests: list[Header] = []
    for link, name in (("out", "secret"), ("in", "inner")):
        path = f"{link}/{name}"
        requests += [
            {"type": "put", "path": path, "size": 5},
            {"type": "put", "path": f"{link}/new/file", "size": 5},
            {"type": "get", "path": path},
            {"type": "stat", "path": path},
            {"type": "checksum", "path": path},
            {"type": "list", "path": link},
            {"type": "mkdir", "path": f"{link}/new"},
            {"type": "mkdir", "path": f"{link}/new/er", "parents": True},
            {"type": "remove", "path": path},
            {"type": "remove", "path": path, "recursive": True},
            {"type": "move", "path": path, "target": "moved"},
            {"type": "move", "path": "old", "target": f"{link}/moved"},
        ]
    with unharmed(server, root):
        for t, request in enumerate(requests, 1):
            peer.send(request | {"t": t})
            peer.expect("error", t=t, code="not-a-file")
    assert snapshot(outside, times=True) == before


def test_links_are_not_read_and_are_replaced_themselves(root: Path, tmp_path: Path, peer: Peer) -> None:
    """A put onto a link replaces the link, a remove removes it; its target is never touched."""
    target = tmp_path / "target"
    target.write_bytes(b"target")
    for name in ("link", "gone"):
        (root / name).symlink_to(target)
    peer.send({"type": "get", "t": 1, "path": "link"})
    peer.expect("error", t=1, code="not-a-file")
    peer.send({"type": "checksum", "t": 2, "path": "link"})
    peer.expect("error", t=2, code="not-a-file")
    peer.send({"type": "stat", "t": 3, "path": "link"})
    assert peer.expect("entries")["rows"][0][1:3] == ["link", len(str(target))]  # what it says, not what is there
    upload_by_hand(peer, 4, "link", b"hello")
    peer.send({"type": "remove", "t": 5, "path": "gone", "recursive": True})
    peer.expect("done")
    assert not (root / "link").is_symlink()
    assert (root / "link").read_bytes() == b"hello"
    assert not (root / "gone").is_symlink()
    assert target.read_bytes() == b"target"


def test_folders_and_special_files_are_not_replaced(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """A put onto a folder or a FIFO is refused, a FIFO is not read, and nobody waits for its writer."""
    os.mkfifo(root / "fifo")
    with unharmed(server, root):
        for t, (kind, path) in enumerate(
            [("put", "folder"), ("put", "fifo"), ("get", "fifo"), ("get", "folder"), ("checksum", "fifo")], 1
        ):
            peer.send({"type": kind, "t": t, "path": path} | ({"size": 5} if kind == "put" else {}))
            peer.expect("error", t=t, code="not-a-file")
        peer.send({"type": "stat", "t": 9, "path": "fifo"})
        assert peer.expect("entries")["rows"][0][1] == "other"


def test_the_stores_own_files_cannot_be_reached(root: Path, peer: Peer) -> None:
    """They are not listed, and no request takes their names."""
    put(peer, 1, "folder/new", 5)
    wait_until(lambda: len(staged(root)) == 2, "staging")
    names = staged(root)
    t = 1
    for name in [*names, ".ftransfer"]:
        for kind in ("get", "stat", "remove", "list", "checksum", "mkdir", "partials"):
            t += 1
            peer.send({"type": kind, "t": t, "path": name})
            if kind == "get":  # a get beside a put is another fault
                peer.expect("error", t=t, code="bad-path")
                continue
            peer.expect("error", t=t, code="bad-path")
    peer.send({"type": "list", "t": t + 1, "path": "", "recursive": True})
    assert [row[0] for row in peer.expect("entries")["rows"]] == ["folder", "folder/inner", "old"]
    assert staged(root) == names


def test_a_read_only_server_changes_nothing(root: Path) -> None:
    """Each request that writes is refused; reading works."""
    requests: list[Header] = [
        {"type": "put", "path": "old", "size": 0},
        {"type": "put", "path": "new/file", "size": 0},
        {"type": "mkdir", "path": "new"},
        {"type": "remove", "path": "old"},
        {"type": "move", "path": "old", "target": "new"},
        {"type": "partials", "path": "", "clear": True},
    ]
    before = snapshot(root, times=True)
    with ftransfer.Server(root, read_only=True) as server, Peer.dial(server.urls[0]) as peer:
        for t, request in enumerate(requests, 1):
            peer.send(request | {"t": t})
            peer.expect("error", t=t, code="refused")
        peer.send({"type": "checksum", "t": 99, "path": "old"})
        assert peer.expect("digest")["hash"] == block_hash(OLD)
    assert snapshot(root, times=True) == before


@contextmanager
def few_descriptors(most: int) -> Iterator[None]:
    """Let this process open only so many more descriptors for the time of a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = (
        max((int(name) for name in os.listdir("/proc/self/fd")), default=100) if os.path.isdir("/proc/self/fd") else 200
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used + most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_path_of_many_levels_does_not_use_up_the_descriptors(server: ftransfer.Server, root: Path) -> None:
    """However deep the names of one client are, the others are served, and nothing leaks."""
    serves_well(server)
    with few_descriptors(200), unharmed(server, root), descriptors_come_back():
        for t, depth in enumerate((300, 1000, 2000), 1):
            with Peer.dial(server.urls[0]) as peer:
                peer.send({"type": "mkdir", "t": t, "path": "/".join("d" * depth), "parents": True})
                peer.expect("error", t=t, code="bad-path")
                put(peer, t + 1, "/".join("d" * depth), 5)
                peer.expect("error", t=t + 1, code="bad-path")


def test_a_tree_of_many_levels_can_be_listed_and_removed(root: Path) -> None:
    """Somebody made it on the machine itself, or moved folders into each other: neither stack nor descriptors end."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with ftransfer.Server(root, durable=False) as server, few_descriptors(200), Peer.dial(server.urls[0]) as peer:
        peer.send({"type": "list", "t": 1, "path": "", "recursive": True})
        count = 0
        while True:
            page = peer.expect("entries", t=1)
            count += len(page["rows"])
            if not page.get("more"):
                break
        assert count == paths.MAX_DEPTH + 3
        peer.send({"type": "remove", "t": 2, "path": "d", "recursive": True})
        peer.expect("done", t=2)
        serves_well(server)
    assert sorted(os.listdir(root)) == [".ftransfer", "folder", "old"]
    assert staged(root) == []


# Floods and silence.


def test_connect_and_reset_many_times(server: ftransfer.Server, root: Path) -> None:
    """The accept loop survives clients that are gone before, after and in the middle of a word."""
    hello = frame({"type": "hello", "versions": [1], "software": "x"})
    put_frame = frame({"type": "put", "t": 1, "path": "new", "size": 1000})
    words = [b"", hello[:3], hello[:10], hello, hello + put_frame, hello + put_frame[:-1]]
    serves_well(server)
    with descriptors_come_back():
        for count in range(120):
            peer = Peer.dial(server.urls[0], greet=False)
            peer.try_to_send(words[count % len(words)])
            peer.reset()
        wait_until(lambda: server.connection_count == 0, "ending the connections")
    with ftransfer.connect(server.urls[0]) as remote:
        remote.partials(clear=True)
    assert (root / "old").read_bytes() == OLD
    serves_well(server)


@pytest.mark.parametrize("first", [b"", b"\0", frame({"type": "hello", "versions": [1], "software": "x"})[:20]])
def test_silence_before_hello_ends_soon(root: Path, first: bytes) -> None:
    """However much of it came."""
    limits = ftransfer.Limits(handshake_seconds=0.3)
    with ftransfer.Server(root, limits=limits, timeout=0.4) as server:
        with Peer.dial(server.urls[0], greet=False) as peer:
            peer.send_raw(first)
            peer.expect("error", code="timeout")
            assert peer.is_closed_by_peer()
        serves_well(server)


def test_a_hello_byte_by_byte_ends_soon(root: Path) -> None:
    """The time for hello is for all of it, not for each byte."""
    limits = ftransfer.Limits(handshake_seconds=0.3)
    hello = frame({"type": "hello", "versions": [1], "software": "x" * 900})
    with ftransfer.Server(root, limits=limits) as server:
        with Peer.dial(server.urls[0], greet=False) as peer:
            started = time.monotonic()
            assert peer.dribble(hello, 0.05, most=10)
            assert time.monotonic() - started < 5
        serves_well(server)


def test_a_connection_that_asks_for_nothing_ends(root: Path) -> None:
    """After the idle time, without an error: it did nothing wrong."""
    with ftransfer.Server(root, limits=ftransfer.Limits(idle_seconds=0.3)) as server:
        with Peer.dial(server.urls[0]) as peer:
            assert peer.is_closed_by_peer()
        serves_well(server)


@pytest.mark.parametrize("what", ["header", "body", "silence"])
def test_a_byte_now_and_then_holds_nobody(root: Path, what: str) -> None:
    """A frame has to come at the least rate on the whole; a byte in time is not enough."""
    block = frame({"type": "block", "t": 1, "offset": 0, "hash": H, "body": 300})
    with ftransfer.Server(root, timeout=0.4) as server:
        with Peer.dial(server.urls[0]) as peer:
            put(peer, 1, "old", 300)
            if what == "body":
                peer.send_raw(block)
            if what == "silence":
                peer.expect("error", code="timeout")
            else:
                assert peer.dribble(block if what == "header" else b"x" * 300, 0.05, most=10)
        assert (root / "old").read_bytes() == OLD
        serves_well(server)


def test_a_client_that_does_not_read_holds_nobody(root: Path) -> None:
    """It asks for a file and takes nothing: the server gives up, and serves others meanwhile."""
    (root / "big").write_bytes(os.urandom(24 << 20))
    with ftransfer.Server(root, timeout=1.0) as server:
        with Peer.dial(server.urls[0]) as peer:
            peer.send({"type": "get", "t": 1, "path": "big"})
            serves_well(server)
            wait_until(lambda: server.connection_count == 0, "giving up")
        serves_well(server)


def test_too_many_connections_are_told_so(root: Path) -> None:
    """With `full`; when one ends there is room again."""
    with ftransfer.Server(root, limits=ftransfer.Limits(connections=3)) as server, ExitStack() as stack:
        url = server.urls[0]
        held = [stack.enter_context(Peer.dial(url)) for _ in range(3)]
        for _ in range(5):
            with Peer.dial(url, greet=False) as peer:
                peer.send_raw(b"\0")  # until then the system may keep it to itself
                error = peer.expect("error", code="full", t=None)
                assert "3 connections" in error["message"]
                assert peer.is_closed_by_peer()
        with ftransfer.connect(url, retry_for=0) as remote, pytest.raises(errors.ServerFull) as caught:
            remote.stat("old")
        assert caught.value.exit_status == 4
        held[0].socket.close()
        wait_until(lambda: server.connection_count < 3, "noticing the end")
        serves_well(server)


def test_a_flood_of_connections_is_borne(root: Path) -> None:
    """Those far beyond the limit are just closed; those who stay are served."""
    with ftransfer.Server(root, limits=ftransfer.Limits(connections=2)) as server, ExitStack() as stack:
        url = server.urls[0]
        good = stack.enter_context(Peer.dial(url))
        for _ in range(60):
            stack.enter_context(Peer.dial(url, greet=False))
        good.send({"type": "ping", "t": 1})
        good.expect("pong")
        assert server.connection_count <= 2 + 16


def test_who_was_turned_away_cannot_hold_the_server(root: Path) -> None:
    """A client beyond the limit that goes on talking is dropped, and does not keep the server from closing."""
    ended = threading.Event()
    with ExitStack() as stack:
        with ftransfer.Server(root, limits=ftransfer.Limits(connections=1)) as server:
            stack.enter_context(Peer.dial(server.urls[0]))
            loud = stack.enter_context(Peer.dial(server.urls[0], greet=False))
            loud.expect("error", code="full")
            started = time.monotonic()

            def talk() -> None:
                pause = threading.Event()
                while loud.try_to_send(b"x"):
                    pause.wait(0.05)
                ended.set()

            thread = threading.Thread(target=talk)
            thread.start()
            stack.callback(thread.join)
        assert time.monotonic() - started < 10
        assert ended.wait(10)


def test_requests_that_were_taken_back_are_not_served(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """A get that waits behind another one and is cancelled sends nothing, and holds nothing up."""
    (root / "big").write_bytes(os.urandom(12 << 20))
    (root / "small").write_bytes(b"small")
    peer.send({"type": "get", "t": 1, "path": "big"})
    peer.expect("file", t=1)
    for t in (2, 3):
        peer.send({"type": "get", "t": t, "path": "small"})
    peer.send({"type": "error", "t": 2, "code": "cancelled", "message": ""})
    peer.send({"type": "error", "t": 1, "code": "cancelled", "message": ""})
    while (made := peer.receive()) is not None and made.get("t") == 1:
        pass
    assert made is not None
    assert (made["type"], made["t"]) == ("file", 3)
    peer.expect("block", t=3)
    assert peer.last_body == b"small"
    serves_well(server)


def test_requests_without_number_of_end_do_not_fill_the_memory(
    server: ftransfer.Server, root: Path, peer: Peer
) -> None:
    """Asking and taking back behind a transfer that stands still leaves nothing in the queue."""
    (root / "big").write_bytes(os.urandom(12 << 20))
    peer.send({"type": "get", "t": 1, "path": "big"})
    for t in range(2, 1002):
        peer.send_raw(
            frame({"type": "get", "t": t, "path": "big"}) + frame({"type": "error", "t": t, "code": "x", "message": ""})
        )
    blocks = 0
    while blocks < wire.WINDOW:
        blocks += peer.expect_any_of("file", "block")["type"] == "block"
    (connection,) = [c for c in server._threads.values() if c is not None]
    wait_until(lambda: connection.channel.session.last_t == 1001, "reading them all")
    assert len(connection._queue) <= wire.WINDOW
    peer.socket.close()
    serves_well(server)


@pytest.mark.parametrize(
    "what", ["life of a fetch", "life of a file that was sent", "answers for a file that was sent"]
)
def test_what_is_said_behind_a_transfer_that_stands_still_is_bounded(
    server: ftransfer.Server, root: Path, peer: Peer, what: str
) -> None:
    """Whatever may be repeated about another number is not kept without end; the client may lose its connection."""
    (root / "big").write_bytes(os.urandom(12 << 20))
    if what == "life of a fetch":
        peer.send({"type": "get", "t": 2, "path": "big"})
        peer.send({"type": "fetch", "t": 3, "path": "", "names": ["old"]})
        said = {"type": "working", "t": 3, "phase": "x", "done": 0}
    else:
        peer.send({"type": "get", "t": 2, "path": "old"})
        for kind in ("file", "block", "end"):
            peer.expect(kind, t=2)
        peer.send({"type": "get", "t": 3, "path": "big"})
        peer.expect("file", t=3)
        said = {"type": "working", "t": 2, "phase": "x", "done": 0}
        if what.startswith("answers"):
            said = {"type": "stored", "t": 2, "offset": 0, "ok": True}
    (connection,) = [c for c in server._threads.values() if c is not None]
    before = connection.channel.bytes_in
    flood = frame(said) * 5000
    peer.try_to_send(flood)
    wait_until(
        lambda: connection.channel.bytes_in >= before + len(flood) or not connection_is_served(server, connection),
        "reading it all",
    )
    assert len(connection._queue) <= 1024
    peer.socket.close()
    serves_well(server)


def connection_is_served(server: ftransfer.Server, connection: Any) -> bool:
    """Tell whether a connection has not ended yet."""
    return connection in server._threads.values()


def test_a_want_has_an_end(server: ftransfer.Server, root: Path, peer: Peer) -> None:
    """A receiver that asks for ever more ranges is stopped before they fill the memory."""
    peer.send({"type": "get", "t": 1, "path": "old", "wait": True})
    peer.expect("file")
    want = frame({"type": "want", "t": 1, "ranges": [[0, 1]] * wire.MAX_RANGES, "more": True})
    for _ in range(1000):
        if not peer.try_to_send(want):
            break
    assert peer.expect("error")["code"] in ("protocol", "out-of-turn")
    assert (root / "old").read_bytes() == OLD
    serves_well(server)


@pytest.mark.parametrize("ranges", [[[15, 1]], [[14, 2]], [[0, 16]], [[15, None]], [[wire.MAX_INT, None]], [[99, 1]]])
def test_ranges_outside_of_the_file_are_refused(
    server: ftransfer.Server, root: Path, peer: Peer, ranges: list[list[int | None]]
) -> None:
    """A receiver gets no byte that is not in the file."""
    with unharmed(server, root):
        peer.send({"type": "get", "t": 1, "path": "old", "wait": True})
        peer.expect("file", size=len(OLD))
        peer.send({"type": "want", "t": 1, "ranges": ranges})
        refused(peer, "protocol")


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "stored", "t": 1, "offset": 3, "ok": True},
        {"type": "stored", "t": 1, "offset": 99, "ok": False},
        {"type": "receipt", "t": 7, "result": "stored", "path": "old"},
        {"type": "want", "t": 1, "ranges": [[0, 5]]},
    ],
    ids=str,
)
def test_answers_to_what_was_not_said_are_refused(
    server: ftransfer.Server, root: Path, peer: Peer, answer: Header
) -> None:
    """A block that was not sent, another number, a want that nobody waits for."""
    (root / "big").write_bytes(os.urandom(12 << 20))
    peer.send({"type": "get", "t": 1, "path": "big"})
    peer.expect("file")
    peer.send(answer)
    while (made := peer.receive()) is not None and made["type"] == "block":
        pass
    assert made is not None
    assert made["type"] == "error"
    assert made["code"] in ("protocol", "out-of-turn")
    serves_well(server)


def test_a_blocks_answer_of_false_for_ever_ends_the_download(server: ftransfer.Server, peer: Peer) -> None:
    """A receiver that finds every block damaged does not keep the server sending."""
    peer.send({"type": "get", "t": 1, "path": "old"})
    peer.expect("file")
    for _ in range(1000):
        made = peer.receive()
        assert made is not None
        if made["type"] == "error":
            assert made["code"] == "integrity"
            break
        if made["type"] == "block":
            peer.send({"type": "stored", "t": 1, "offset": made["offset"], "ok": False})
        else:
            peer.send({"type": "want", "t": 1, "ranges": [[0, 15]]})
    else:
        pytest.fail("it would go on for ever")
    serves_well(server)


# What is said about it.


def test_names_reach_the_log_escaped(server: ftransfer.Server, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody forges a line of the log or moves the cursor of who reads it."""
    caplog.set_level(logging.DEBUG)
    evil = "evil\x1b[2J\r\n127.0.0.1:1 put fake\u202e\x9b"
    upload_by_hand(peer, 1, evil, b"x")
    for t, request in enumerate(
        [
            {"type": "get", "path": evil + "?"},
            {"type": "mkdir", "path": evil + "/x"},
            {"type": "remove", "path": evil},
            {"type": "get", "path": evil + "/../x"},
        ],
        2,
    ):
        peer.send(request | {"t": t})
        peer.receive()
    peer.send({"type": "error", "code": "x", "message": evil})
    peer.drain()
    with Peer.dial(server.urls[0]) as other:
        other.send({"type": evil})
        refused(other, "unknown-message")
    text = [record.getMessage() for record in caplog.records]
    assert len(text) >= 4
    assert [line for line in text if not line.isprintable()] == []
    assert all(record.exc_info is None for record in caplog.records)


def test_errors_on_the_wire_are_escaped_and_name_nothing_of_this_machine(
    server: ftransfer.Server, root: Path, peer: Peer
) -> None:
    """What goes back holds no control character and no path outside of the root."""
    for t, path in enumerate(("no\x1b[2Jthing", "no/thing", "old/x", "folder"), 1):
        peer.send({"type": "get", "t": t, "path": path})
        error = peer.expect("error", t=t)
        assert error["message"].isprintable()
        assert str(root) not in error["message"] + error.get("hint", "")
    serves_well(server)


def test_no_attack_is_an_internal_error(server: ftransfer.Server, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file where the store has its folder, and requests that meet it: an error of ours, not a traceback."""
    (root / ".ftransfer").write_bytes(b"in the way")
    with Peer.dial(server.urls[0]) as peer:
        put(peer, 1, "new", 5)
        peer.expect("error", t=1)
        peer.send({"type": "partials", "t": 2, "path": ""})
        assert peer.expect("error", t=2)["code"] != "internal"
        peer.send({"type": "ping", "t": 3})
        peer.expect("pong")
    assert all(record.exc_info is None for record in caplog.records)
    (root / ".ftransfer").unlink()
    serves_well(server)

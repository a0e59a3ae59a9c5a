"""A hostile server against the real client: one error of ours, and the local files are as they were."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import (
    FakeServer,
    Header,
    Peer,
    Script,
    block_hash,
    frame,
    nothing_leaks,
    snapshot,
    staged,
    upload_by_hand,
    welcomed,
)

import ftransfer
from ftransfer import errors, wire
from ftransfer.errors import FtransferError

VECTORS = Path(__file__).parent / "vectors"
DATA = b"the real content of the file"
OLD = b"the old content"
H = "0" * 32


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, and when its server was closed, no descriptor and no thread is left."""
    with nothing_leaks():
        yield


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A local folder with a file that a download would replace, and one beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "f").write_bytes(OLD)
    (folder / "other").write_bytes(OLD)
    (tmp_path / "outside").write_bytes(OLD)
    return folder


def client_of(server: FakeServer) -> ftransfer.Remote:
    """Return a real client that soon gives up."""
    return ftransfer.connect(server.url, timeout=0.5, retry_for=0, max_time=15)


def fails(script: Script, call: Callable[[ftransfer.Remote], object]) -> FtransferError:
    """Return the error of ours that a call against this server ends in; any other exception fails the test."""
    with FakeServer(script) as server, client_of(server) as remote, pytest.raises(FtransferError) as caught:
        call(remote)
    return caught.value


def asked_for(peer: Peer, kind: str) -> Header:
    """Return the request of this type; what the client looks at before is a file of another size."""
    while (made := peer.expect_any_of("stat", kind))["type"] == "stat" != kind:
        peer.send({"type": "entries", "t": made["t"], "rows": [["f", "file", 5, 1, 420]]})
    return made


def send_file(peer: Peer, **changed: Any) -> int:
    """Wait for a get and announce DATA, with fields changed; return its number."""
    asked = asked_for(peer, "get")
    peer.send({"type": "file", "t": asked["t"], "size": len(DATA), "fingerprint": "28-1"} | changed)
    return int(asked["t"])


def end(t: int, **changed: Any) -> Header:
    """Return the end of DATA, with fields changed."""
    return {"type": "end", "t": t, "path": "f", "size": len(DATA), "hash": block_hash(DATA)} | changed


def whole(peer: Peer, t: int, data: bytes = DATA) -> None:
    """Send a file's bytes in one block and wait for the answer."""
    peer.send_block(t, 0, data)
    peer.expect("stored", ok=True)


# Greeting.


GREETINGS: dict[str, tuple[Script, str]] = {
    "silence": (lambda p: p.drain() and None, "timeout"),
    "closes at once": (lambda p: p.socket.close(), "lost"),
    "resets": (lambda p: p.reset(), "lost"),
    "garbage": (lambda p: p.send_raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "bad-frame"),
    "a web server": (lambda p: p.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "bad-frame"),
    "a huge frame": (lambda p: p.send_raw(b"\xff\xff\xff\xff"), "bad-frame"),
    "half a frame": (lambda p: p.send_raw(frame({"type": "welcome"}, length=500)), "lost"),
    "another version": (
        lambda p: p.send({"type": "welcome", "version": 2, "software": "x", "session": H}),
        "out-of-turn",
    ),
    "no welcome": (lambda p: p.send({"type": "pong", "t": 1}), "out-of-turn"),
    "hello back": (lambda p: p.send({"type": "hello", "versions": [1], "software": "x"}), "out-of-turn"),
    "a welcome without session": (lambda p: p.send({"type": "welcome", "version": 1, "software": "x"}), "bad-frame"),
    "a window of nothing": (
        lambda p: p.send({"type": "welcome", "version": 1, "software": "x", "session": H, "window": 0}),
        "bad-frame",
    ),
    "full": (lambda p: p.send({"type": "error", "code": "full", "message": "no"}), "full"),
    "an unknown code": (lambda p: p.send({"type": "error", "code": "moon-phase", "message": "no"}), "moon-phase"),
    "a byte at a time": (
        lambda p: p.dribble(frame({"type": "welcome", "x": "x" * 900}), 0.05) and None,
        "timeout",
    ),
}


@pytest.mark.parametrize(("script", "code"), GREETINGS.values(), ids=GREETINGS)
def test_a_bad_greeting_is_an_error(script: Script, code: str) -> None:
    """Each has its code, and none hangs."""

    def run(peer: Peer) -> None:
        peer.expect("hello")
        script(peer)

    assert fails(run, lambda remote: remote.stat("f")).code == code


@pytest.mark.parametrize("name", ["frames", "fields"])
def test_bad_frames_are_errors(name: str) -> None:
    """Every vector with an error, as the answer to a request."""
    for vector in json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["vectors"]:

        def run(peer: Peer, data: str = vector["bytes"]) -> None:
            peer.expect("stat")
            peer.send_raw(bytes.fromhex(data))
            peer.hang_up()

        assert fails(welcomed(run), lambda remote: remote.stat("f")).code == vector["error"], vector["name"]


# Downloads.


def answer(*headers: Header) -> Script:
    """Return a script that answers a get with these headers."""

    def run(peer: Peer) -> None:
        first = asked_for(peer, "get")["t"] - 1
        for header in headers:
            peer.send(header | {"t": header["t"] + first} if "t" in header else header)
        peer.drain()

    return run


def after_file(act: Callable[[Peer, int], object], **changed: Any) -> Script:
    """Return a script that announces the file, then acts."""

    def run(peer: Peer) -> None:
        act(peer, send_file(peer, **changed))
        peer.drain()

    return run


def both(*acts: Callable[[Peer, int], object]) -> Callable[[Peer, int], None]:
    """Return acts one after the other."""

    def run(peer: Peer, t: int) -> None:
        for act in acts:
            act(peer, t)

    return run


def endless(header: Header) -> Callable[[Peer, int], None]:
    """Return an act that says the same for ever."""

    def run(peer: Peer, t: int) -> None:
        while True:
            peer.send(header | {"t": t})

    return run


def damaged_for_ever(peer: Peer, t: int) -> None:
    """Send a block with a wrong hash as often as it is refused."""
    while (made := peer.send_block(t, 0, DATA, hash=H) or peer.expect_any_of("stored", "error"))["type"] == "stored":
        assert made["ok"] is False


DOWNLOADS: dict[str, tuple[Script, str]] = {
    "another name at the end": (after_file(both(whole, lambda p, t: p.send(end(t, path="other")))), "protocol"),
    "a name outside at the end": (after_file(both(whole, lambda p, t: p.send(end(t, path="../outside")))), "protocol"),
    "an absolute name at the end": (
        after_file(both(whole, lambda p, t: p.send(end(t, path="/etc/passwd")))),
        "protocol",
    ),
    "another size at the end": (after_file(both(whole, lambda p, t: p.send(end(t, size=5)))), "protocol"),
    "another hash at the end": (after_file(both(whole, lambda p, t: p.send(end(t, hash=H)))), "integrity"),
    "a hash of another length": (after_file(both(whole, lambda p, t: p.send(end(t, hash=H + H)))), "integrity"),
    "more than announced": (after_file(lambda p, t: p.send_block(t, 0, DATA + b"!")), "protocol"),
    "more behind the end": (after_file(both(whole, lambda p, t: p.send_block(t, len(DATA), b"!"))), "protocol"),
    "the same twice": (after_file(both(whole, lambda p, t: p.send_block(t, 0, DATA))), "protocol"),
    "a block far away": (after_file(lambda p, t: p.send_block(t, wire.MAX_INT, b"!")), "protocol"),
    "a hole behind the end": (
        after_file(lambda p, t: p.send({"type": "hole", "t": t, "offset": 0, "length": 1 << 20})),
        "protocol",
    ),
    "a file that cannot fit": (after_file(lambda _p, _t: None, size=wire.MAX_INT), "disk"),
    "a negative size": (answer({"type": "file", "t": 1, "size": -1}), "bad-frame"),
    "the file twice": (after_file(lambda p, t: p.send({"type": "file", "t": t, "size": 1})), "out-of-turn"),
    "a block before the file": (lambda p: p.send_block(asked_for(p, "get")["t"], 0, DATA), "out-of-turn"),
    "an end before the file": (answer(end(1)), "out-of-turn"),
    "a file nobody asked for": (answer({"type": "file", "t": 7, "size": 1}), "out-of-turn"),
    "a put": (answer({"type": "put", "t": 2, "path": "other", "size": 5}), "out-of-turn"),
    "a put under our number": (answer({"type": "put", "t": 1, "path": "other", "size": 5}), "out-of-turn"),
    "a put of a bad name": (answer({"type": "put", "t": 2, "path": "../outside", "size": 5}), "protocol"),
    "a remove": (answer({"type": "remove", "t": 2, "path": "other"}), "out-of-turn"),
    "a receipt": (answer({"type": "receipt", "t": 1, "result": "stored", "path": "f"}), "out-of-turn"),
    "entries": (answer({"type": "entries", "t": 1, "rows": []}), "out-of-turn"),
    "stored": (after_file(lambda p, t: p.send({"type": "stored", "t": t, "offset": 0, "ok": True})), "out-of-turn"),
    "a want": (after_file(lambda p, t: p.send({"type": "want", "t": t, "ranges": []})), "out-of-turn"),
    "a second welcome": (answer({"type": "welcome", "version": 1, "software": "x", "session": H}), "out-of-turn"),
    "an unknown message": (answer({"type": "teleport", "t": 1}), "unknown-message"),
    "silence": (after_file(lambda _p, _t: None), "timeout"),
    "closes after the announcement": (after_file(lambda p, _t: p.socket.close()), "lost"),
    "closes in a block": (
        after_file(
            both(
                lambda p, t: p.send({"type": "block", "t": t, "offset": 0, "hash": H, "body": 20}, b"x" * 10),
                lambda p, _t: p.hang_up(),
            )
        ),
        "lost",
    ),
    "resets in a block": (
        after_file(
            both(
                lambda p, t: p.send({"type": "block", "t": t, "offset": 0, "hash": H, "body": 20}, b"x" * 10),
                lambda p, _t: p.reset(),
            )
        ),
        "lost",
    ),
    "closes before the end": (after_file(both(whole, lambda p, _t: p.hang_up())), "lost"),
    "a body byte by byte": (
        after_file(
            both(
                lambda p, t: p.send({"type": "block", "t": t, "offset": 0, "hash": H, "body": len(DATA)}),
                lambda p, _t: p.dribble(b"x" * len(DATA), 0.05, most=0.1),
            )
        ),
        "timeout",
    ),
    "damage for ever": (after_file(damaged_for_ever), "integrity"),
    "the end for ever": (after_file(endless(end(1))), "protocol"),
    "an error with control characters": (
        answer({"type": "error", "t": 1, "code": "refused", "message": "\x1b[2J\r\nok", "hint": "\x07"}),
        "refused",
    ),
    "an error of the connection": (answer({"type": "error", "code": "closing", "message": "bye"}), "closing"),
    "an error, then silence": (answer({"type": "error", "t": 1, "code": "not-found", "message": "no"}), "not-found"),
    "pretends that we cancelled": (
        answer({"type": "error", "t": 1, "code": "cancelled", "message": "no"}),
        "cancelled",
    ),
    "our disk is full, it says": (answer({"type": "error", "t": 1, "code": "disk", "message": "full"}), "disk"),
}


@pytest.mark.parametrize(("script", "code"), DOWNLOADS.values(), ids=DOWNLOADS)
def test_a_bad_download_changes_nothing(here: Path, script: Script, code: str) -> None:
    """The file that was there is there, nothing else was touched, and what is staged is ours to drop."""
    before = snapshot(here.parent, times=True)
    error = fails(welcomed(script), lambda remote: remote.download("f", here / "f"))
    assert error.code == code
    for name in staged(here):
        (here / name).unlink()
    if (here / ".ftransfer").exists():
        (here / ".ftransfer").rmdir()
    assert snapshot(here.parent, times=True) == before


def test_a_good_download_works_with_the_same_script(here: Path) -> None:
    """The attacks above differ from this in one thing each."""

    def run(peer: Peer) -> None:
        t = send_file(peer)
        whole(peer, t)
        peer.send(end(t))
        peer.expect("receipt", result="stored", hash=block_hash(DATA), path="f")

    with FakeServer(welcomed(run)) as server, client_of(server) as remote:
        assert remote.download("f", here / "f").files[0].result == "sent"
    assert (here / "f").read_bytes() == DATA


def test_an_error_of_the_server_keeps_its_fields() -> None:
    """The text is the server's own, marked as remote; who shows it escapes it."""
    script = answer({"type": "error", "t": 1, "code": "disk", "message": "\x1b[2J", "hint": "\x07"})
    error = fails(welcomed(script), lambda remote: remote.download("f", os.devnull + ".x"))
    assert (error.message, error.hint, error.remote) == ("\x1b[2J", "\x07", True)
    assert isinstance(error, errors.RemoteDiskError)
    assert error.exit_status == 9


def test_a_download_never_gets_special_bits_or_another_place(here: Path) -> None:
    """Modes lose setuid; a file named by its end elsewhere is refused (above); a link is replaced, not followed."""
    (here / "f").unlink()
    (here / "f").symlink_to("other")

    def run(peer: Peer) -> None:
        t = send_file(peer, mode=0o7777)
        whole(peer, t)
        peer.send(end(t))
        peer.expect("receipt")

    with FakeServer(welcomed(run)) as server, client_of(server) as remote:
        remote.download("f", here / "f", compare="none")
    assert not (here / "f").is_symlink()
    assert (here / "f").stat().st_mode & 0o7000 == 0
    assert (here / "other").read_bytes() == OLD


# Uploads.


def after_put(act: Callable[[Peer, Header], object]) -> Script:
    """Return a script that waits for a put, then acts."""

    def run(peer: Peer) -> None:
        act(peer, asked_for(peer, "put"))
        peer.drain()

    return run


def wanting(*ranges: list[int | None]) -> Script:
    """Return a script that wants ranges of the first put."""
    return after_put(lambda p, put: p.send({"type": "want", "t": put["t"], "ranges": list(ranges)}))


def receipt(put: Header, **changed: Any) -> Header:
    """Return a receipt for a put, with fields changed."""
    return {"type": "receipt", "t": put["t"], "result": "stored", "path": put["path"], "size": put["size"]} | changed


def taken(act: Callable[[Peer, Header], object]) -> Script:
    """Return a script that takes the whole file, then acts instead of a good receipt."""

    def run(peer: Peer) -> None:
        put = asked_for(peer, "put")
        peer.send({"type": "want", "t": put["t"], "ranges": [[0, None]]})
        while (made := peer.receive()) is not None and made["type"] == "block":
            peer.send({"type": "stored", "t": put["t"], "offset": made["offset"], "ok": True})
        assert made is not None
        assert made["type"] == "end"
        act(peer, put | {"hash": made["hash"]})
        peer.drain()

    return run


def refusing_blocks(peer: Peer, put: Header) -> None:
    """Say of every block that it is damaged."""
    want = {"type": "want", "t": put["t"], "ranges": [[0, 100]]}
    peer.send(want)
    while (made := peer.receive()) is not None:
        peer.send({"type": "stored", "t": put["t"], "offset": 0, "ok": False} if made["type"] == "block" else want)


def wanting_for_ever(peer: Peer, put: Header) -> None:
    """Want ever more ranges."""
    while True:
        peer.send({"type": "want", "t": put["t"], "ranges": [[0, 1]] * wire.MAX_RANGES, "more": True})


UPLOADS: dict[str, tuple[Script, str]] = {
    "wants bytes behind the end": (wanting([100_000, 1]), "protocol"),
    "wants over the end": (wanting([99_999, 2]), "protocol"),
    "wants everything and one": (wanting([0, 100_001]), "protocol"),
    "wants from far away to the end": (wanting([wire.MAX_INT, None]), "protocol"),
    "wants ever more": (after_put(wanting_for_ever), "protocol"),
    "wants a negative range": (wanting([-1, 5]), "bad-frame"),
    "stored what was not sent": (
        after_put(
            lambda p, put: (
                p.send({"type": "want", "t": put["t"], "ranges": [[0, 5]]}),
                p.send({"type": "stored", "t": put["t"], "offset": 77, "ok": True}),
            )
        ),
        "protocol",
    ),
    "stored before want": (
        after_put(lambda p, put: p.send({"type": "stored", "t": put["t"], "offset": 0, "ok": True})),
        "out-of-turn",
    ),
    "stored for another number": (
        after_put(lambda p, put: p.send({"type": "stored", "t": put["t"] + 1, "offset": 0, "ok": True})),
        "out-of-turn",
    ),
    "a receipt for another number": (after_put(lambda p, put: p.send(receipt(put, t=put["t"] + 1))), "out-of-turn"),
    "a receipt before a byte was sent": (after_put(lambda p, put: p.send(receipt(put, hash=H))), "integrity"),
    "a receipt without a hash": (taken(lambda p, put: p.send(receipt(put))), "integrity"),
    "a receipt for other bytes": (taken(lambda p, put: p.send(receipt(put, hash=H))), "integrity"),
    "a receipt for fewer bytes": (taken(lambda p, put: p.send(receipt(put, hash=put["hash"], size=5))), "integrity"),
    "a receipt for another name": (
        taken(lambda p, put: p.send(receipt(put, hash=put["hash"], path="other"))),
        "protocol",
    ),
    "a receipt for a bad name": (
        taken(lambda p, put: p.send(receipt(put, hash=put["hash"], path="../../x"))),
        "protocol",
    ),
    "the same, which nobody asked": (after_put(lambda p, put: p.send(receipt(put, result="same"))), "protocol"),
    "skipped, which nobody asked": (after_put(lambda p, put: p.send(receipt(put, result="skipped"))), "protocol"),
    "every block is damaged, it says": (after_put(refusing_blocks), "integrity"),
    "silence": (after_put(lambda _p, _put: None), "timeout"),
    "silence after all bytes": (taken(lambda _p, _put: None), "timeout"),
    "closes": (after_put(lambda p, _put: p.hang_up()), "lost"),
    "closes instead of a receipt": (taken(lambda p, _put: p.hang_up()), "lost"),
    "a block": (after_put(lambda p, put: p.send_block(put["t"], 0, b"x")), "out-of-turn"),
    "a get of ours": (after_put(lambda p, _put: p.send({"type": "get", "t": 9, "path": "outside"})), "out-of-turn"),
    "garbage": (after_put(lambda p, _put: p.send_raw(b"\0\0\0\5hello")), "bad-frame"),
    "the disk is full": (
        after_put(lambda p, put: p.send({"type": "error", "t": put["t"], "code": "disk", "message": "full"})),
        "disk",
    ),
}


@pytest.mark.parametrize(("script", "code"), UPLOADS.values(), ids=UPLOADS)
def test_a_bad_upload_is_an_error(here: Path, script: Script, code: str) -> None:
    """The client believes no receipt but the right one, and its source is unchanged."""
    source = here / "f"
    source.write_bytes(os.urandom(100_000))

    before = snapshot(here.parent, times=True)
    error = fails(welcomed(script), lambda remote: remote.upload(source, "f", compare="none"))
    assert error.code == code
    assert snapshot(here.parent, times=True) == before


def test_a_good_upload_works_with_the_same_script() -> None:
    """The attacks above differ from this in one thing each; small blocks and a small window are respected."""
    data = os.urandom(1_000_000)
    most = 0

    def run(peer: Peer) -> None:
        nonlocal most
        put = asked_for(peer, "put")
        peer.send({"type": "want", "t": put["t"], "ranges": [[0, None]]})
        while (made := peer.expect_any_of("block", "end"))["type"] == "block":
            most = max(most, made["body"])
            peer.send({"type": "stored", "t": put["t"], "offset": made["offset"], "ok": True})
        peer.send(receipt(put, hash=made["hash"], durable=True))
        peer.drain()

    with FakeServer(welcomed(run, max_block=65536, window=1)) as server, client_of(server) as remote:
        assert remote.upload(data, "f").files[0].result == "sent"
    assert most <= 65536


# Answers to requests.


def rows(*made: list[Any], more: bool = False) -> Script:
    """Return a script that answers any request with one page of entries."""

    def run(peer: Peer) -> None:
        asked = peer.receive()
        assert asked is not None
        peer.send({"type": "entries", "t": asked["t"], "rows": list(made), "more": more})
        peer.drain()

    return run


def endless_rows(peer: Peer) -> None:
    """Answer a request with entries that never end."""
    asked = peer.receive()
    assert asked is not None
    page = {"type": "entries", "t": asked["t"], "rows": [["x", "file", 1, 1, 1]] * 1000, "more": True}
    while True:
        peer.send(page)


ENTRY = ["f", "file", 1, 1, 420]
LISTS: dict[str, list[Any]] = {
    "the folder above": ["../outside", "file", 1, 1, 420],
    "absolute": ["/etc/passwd", "file", 1, 1, 420],
    "the folder itself": [".", "folder", 0, 1, 420],
    "no name": ["", "file", 1, 1, 420],
    "NUL": ["a\0b", "file", 1, 1, 420],
    "a staging name": [".ftransfer-x", "file", 1, 1, 420],
    "a component too many": ["a//b", "file", 1, 1, 420],
    "not asked for": ["a/b", "file", 1, 1, 420],
}


@pytest.mark.parametrize("row", LISTS.values(), ids=LISTS)
def test_a_list_holds_no_name_that_could_not_be_there(row: list[Any]) -> None:
    """Who joins it to a local folder must not be led out of that."""
    error = fails(welcomed(rows(ENTRY, row)), lambda remote: list(remote.list("folder")))
    assert isinstance(error, errors.ProtocolError)


@pytest.mark.parametrize(
    "row",
    [
        ["f", "file", 1, 1],
        ["f", "file", -1, 1, 1],
        ["f", "device", 1, 1, 1],
        [None, "file", 1, 1, 1],
        ["f", ["file"], 1, 1, 1],
        ["f", "file", True, 1, 1],
        ["f", "file", 1, 1, 1, 1],
        "f",
        {},
    ],
    ids=str,
)
def test_rows_of_another_shape_are_refused(row: Any) -> None:
    """Also the last of many."""
    assert fails(welcomed(rows(*[ENTRY] * 500, row)), lambda remote: list(remote.list(""))).code == "bad-frame"


@pytest.mark.parametrize(
    "call", [lambda r: r.stat("f"), lambda r: r.upload(b"x", "f"), lambda r: r.download("f", "/x/")]
)
def test_a_description_that_never_ends_is_cut(call: Callable[[ftransfer.Remote], object]) -> None:
    """A stat has one row; whatever comes after it does not fill the memory."""
    assert isinstance(fails(welcomed(endless_rows), call), errors.ProtocolError)


@pytest.mark.parametrize("count", [0, 2])
def test_a_stat_has_one_row(count: int) -> None:
    """None and two are no answer."""
    error = fails(welcomed(rows(*[ENTRY] * count)), lambda remote: remote.stat("f"))
    assert isinstance(error, errors.ProtocolError)


def test_a_list_that_never_ends_is_a_stream() -> None:
    """It is yielded as it comes; who has enough leaves it, and the next call takes a new connection."""
    calls = 0

    def run(peer: Peer) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            endless_rows(peer)
        rows(ENTRY)(peer)

    with FakeServer(welcomed(run)) as server, client_of(server) as remote:
        entries: Iterator[ftransfer.Entry] = remote.list("")
        assert [next(entries).path for _ in range(5000)] == ["x"] * 5000
        entries.close()  # type: ignore[attr-defined]
        assert remote.stat("f").size == 1
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answered", "call"),
    [
        ({"type": "digest", "size": 1, "hash": H + H}, lambda r: r.checksum("f")),
        ({"type": "digest", "size": 1, "hash": H}, lambda r: r.checksum("f", algorithm="sha256")),
        ({"type": "digest", "size": 1, "hash": "0" * 31}, lambda r: r.checksum("f")),
        ({"type": "done"}, lambda r: r.checksum("f")),
        ({"type": "digest", "size": 1, "hash": H}, lambda r: r.mkdir("f")),
        ({"type": "pong", "t": 99}, lambda r: r.ping()),
        ({"type": "staged", "rows": [["f", None, -1, 1]]}, lambda r: r.partials()),
        ({"type": "entries", "rows": []}, lambda r: r.partials()),
        ({"type": "ping"}, lambda r: r.ping()),
    ],
    ids=["long", "short for sha256", "odd", "done", "digest for done", "another number", "row", "kind", "request"],
)
def test_answers_of_another_kind_are_refused(answered: Header, call: Callable[[ftransfer.Remote], object]) -> None:
    """Each request has its own answer; a digest has the length of its algorithm."""

    def run(peer: Peer) -> None:
        asked = peer.receive()
        assert asked is not None
        peer.send({"t": asked["t"]} | answered)
        peer.drain()

    assert isinstance(fails(welcomed(run), call), errors.ProtocolError)


def test_signs_of_life_without_end_have_an_end() -> None:
    """`max_time` counts for everything."""

    def run(peer: Peer) -> None:
        endless({"type": "working", "phase": "hashing", "done": 1})(peer, peer.expect("checksum")["t"])

    with (
        FakeServer(welcomed(run)) as server,
        ftransfer.connect(server.url, timeout=5, retry_for=0, max_time=0.5) as remote,
        pytest.raises(errors.TimedOut),
    ):
        remote.checksum("f")


def test_after_a_bad_answer_the_client_can_be_used_on(root: Path, here: Path) -> None:
    """The connection that went wrong is dropped; the same Remote makes another one."""
    calls = 0

    def run(peer: Peer) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            peer.send_raw(b"garbage garbage")
            return
        t = send_file(peer)
        whole(peer, t)
        peer.send(end(t))
        peer.expect("receipt")

    with FakeServer(welcomed(run)) as server, client_of(server) as remote:
        with pytest.raises(errors.ProtocolError):
            remote.stat("f")
        remote.download("f", here / "f", compare="none")
    assert (here / "f").read_bytes() == DATA
    with ftransfer.Server(root, durable=False) as real, Peer.dial(real.urls[0]) as peer:
        upload_by_hand(peer, 1, "f", DATA)

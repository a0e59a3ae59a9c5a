"""A transfer that was cut goes on where it stopped, with the same bytes, or starts over (promise 5)."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import PATIENCE, Plan, Proxy, journals, noise, reserved, staged, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ftransfer
from ftransfer import errors, link, pacing, users, wire
from ftransfer.digests import block_hash
from ftransfer.results import FileResult
from ftransfer.store import journal as journals_format
from ftransfer.store.base import Description
from ftransfer.store.local import KEEP_PARTIALS, LocalStore

MIB = 1 << 20
SIZE = 5 * MIB + 123
WINDOW_BYTES = wire.WINDOW * wire.MAX_BLOCK
DIRECTIONS = ("up", "down")


class Place:
    """A served folder, a folder of the client, a file of either and a server."""

    def __init__(self, base: Path):
        self.root = base / "root"
        self.local = base / "local"
        self.root.mkdir()
        self.local.mkdir()
        self.server = ftransfer.Server(self.root, durable=False)

    def source(self, direction: str, data: bytes, name: str = "file.bin") -> Path:
        """Write the file that is to be moved, and return where it is."""
        path = (self.local if direction == "up" else self.root) / name
        path.write_bytes(data)
        return path

    def target(self, direction: str, name: str = "copy.bin") -> Path:
        """Return where it is going to be."""
        return (self.root if direction == "up" else self.local) / name

    def move(self, direction: str, url: str, **options: object) -> FileResult:
        """Move the file over that address, as a new client would."""
        patience = {k: options.pop(k) for k in ("retry_for", "limit_rate", "timeout", "cancel") if k in options}
        with ftransfer.connect(url, **{"timeout": 10, "retry_for": 10, **patience}) as remote:  # type: ignore[arg-type]
            if direction == "up":
                return remote.upload(self.local / "file.bin", "copy.bin", **options).files[0]  # type: ignore[arg-type]
            return remote.download("file.bin", self.local / "copy.bin", **options).files[0]  # type: ignore[arg-type]

    def is_clean(self, direction: str) -> bool:
        """Tell whether nothing is left of the transfer but the file."""
        return reserved(self.root if direction == "up" else self.local) == []


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client tries again after a hundredth of a second."""
    monkeypatch.setattr(link, "FIRST_DELAY", 0.01)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place with a running server."""
    made = Place(tmp_path)
    with made.server:
        yield made


def cut(direction: str, count: int, *, abort: bool = False) -> Plan:
    """Return a plan that cuts after so many bytes in the direction of the file."""
    return Plan(cut_up=count, abort=abort) if direction == "up" else Plan(cut_down=count, abort=abort)


def flip(direction: str, at: int) -> Plan:
    """Return a plan that damages that byte of the bodies."""
    return Plan(flip_up=at) if direction == "up" else Plan(flip_down=at)


def interrupted(place: Place, direction: str, count: int, **options: object) -> None:
    """Run the transfer until so many bytes went over the line, then let the client fail."""
    with pytest.MonkeyPatch.context() as patch, Proxy(place.server.urls[0], cut(direction, count)) as proxy:
        patch.setattr(pacing, "BLOCK_SECONDS", 0)  # so that there are many grains, each of the least size
        with pytest.raises(errors.ConnectionLost):
            place.move(direction, proxy.url, retry_for=0, **options)
        for thread in list(place.server._threads):
            thread.join(PATIENCE)  # the server has taken all that arrived, and let go


# Cuts, and a client that goes on by itself.


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "count", [0, 3, 4, 100, 400, 700, 5000, 262_000, 263_000, 600_000, 3 * MIB, SIZE - 1, SIZE + 300]
)
def test_a_client_goes_on_by_itself_after_a_cut(place: Place, direction: str, count: int) -> None:
    """Wherever the line is cut, the same call ends well and nothing that arrived is sent again."""
    data = noise(SIZE)
    place.source(direction, data)
    with Proxy(place.server.urls[0], cut(direction, count, abort=bool(count % 2))) as proxy:
        result = place.move(direction, proxy.url)
        assert proxy.connections == 2
        assert proxy.up_bodies + proxy.down_bodies <= SIZE + WINDOW_BYTES
    assert place.target(direction).read_bytes() == data
    assert (result.result, result.resumed_from) == ("sent", 0)
    assert result.sent_bytes >= SIZE
    assert place.is_clean(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_many_cuts_in_one_transfer(place: Place, direction: str) -> None:
    """Each connection brings a little, each is cut, and in the end all of it is there."""
    data = noise(SIZE)
    place.source(direction, data)
    plans = [cut(direction, 700_000 + 77_777 * n) for n in range(6)]
    with Proxy(place.server.urls[0], *plans) as proxy:
        place.move(direction, proxy.url)
        assert proxy.connections >= 4
    assert place.target(direction).read_bytes() == data
    assert place.is_clean(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_answers_are_cut(place: Place, direction: str) -> None:
    """A cut in the direction without the file loses nothing either."""
    data = noise(SIZE)
    place.source(direction, data)
    back = "down" if direction == "up" else "up"
    with Proxy(place.server.urls[0], cut(back, 350), cut(back, 420), cut(back, 500), cut(back, 800)) as proxy:
        place.move(direction, proxy.url)
    assert place.target(direction).read_bytes() == data
    assert place.is_clean(direction)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    direction=st.sampled_from(DIRECTIONS),
    size=st.sampled_from([0, 1, 65_536, 262_144, 524_288, 1_572_864, 3 * MIB + 17]),
    cuts=st.lists(st.tuples(st.booleans(), st.integers(0, 3 * MIB + 2000), st.booleans()), max_size=4),
    algorithm=st.sampled_from(["xxh128", "sha256"]),
)
def test_any_cuts_end_with_the_same_bytes(
    place: Place, direction: str, size: int, cuts: list[tuple[bool, int, bool]], algorithm: str
) -> None:
    """Any few cuts, in either direction, at any byte, leave the same bytes as none."""
    data = noise(size, size)
    place.source(direction, data)
    place.target(direction).unlink(missing_ok=True)
    plans = [Plan(cut_up=n, abort=a) if up else Plan(cut_down=n, abort=a) for up, n, a in cuts]
    with Proxy(place.server.urls[0], *plans) as proxy:
        result = place.move(direction, proxy.url, algorithm=algorithm)
    assert place.target(direction).read_bytes() == data
    assert result.digest is not None
    assert result.digest.algorithm == algorithm
    assert place.is_clean(direction)


def test_the_digest_stands_after_cuts_within_large_blocks(place: Place) -> None:
    """The hash of the whole does not keep bytes of a block that was cut: its pieces come in other sizes again."""
    data = noise(24 * MIB)
    place.source("down", data)
    plans = [Plan(cut_down=n) for n in (9_800_001, 5_700_001, 3_300_001)]
    with Proxy(place.server.urls[0], *plans) as proxy:
        place.move("down", proxy.url)
    assert place.target("down").read_bytes() == data


# New processes at either end.


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("count", [700_000, 2 * MIB, SIZE])
def test_a_new_client_goes_on(place: Place, direction: str, count: int) -> None:
    """What a client that failed had moved is not moved again by the next one."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, count)
    held = held_bytes(place, direction)
    assert not place.target(direction).exists()
    with Proxy(place.server.urls[0]) as proxy:
        result = place.move(direction, proxy.url)
        assert proxy.up_bodies + proxy.down_bodies == SIZE - held
    assert place.target(direction).read_bytes() == data
    assert (result.resumed_from, result.sent_bytes) == (held, SIZE - held)
    assert held > count - 300_000
    assert place.is_clean(direction)


def held_bytes(place: Place, direction: str) -> int:
    """Return how many bytes of the one unfinished transfer are held."""
    where = place.root if direction == "up" else place.local
    store = LocalStore(where)
    try:
        (partial,) = store.partials()
    finally:
        store.close()
    return partial.held


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_another_server_goes_on(place: Place, tmp_path: Path, direction: str) -> None:
    """The state is in the store: a second server on the same root, at another address, goes on."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, 3 * MIB)
    held = held_bytes(place, direction)
    place.server.close()
    with ftransfer.Server(place.root, listen=[f"unix:{tmp_path / 's'}"]) as second:
        result = place.move(direction, second.urls[0])
    assert result.resumed_from == held > 0
    assert place.target(direction).read_bytes() == data


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_server_that_is_restarted_in_the_middle(place: Place, direction: str) -> None:
    """The client waits for the server to come back and goes on by itself."""
    data = noise(SIZE)
    place.source(direction, data)
    reached = threading.Event()
    results: list[FileResult] = []

    def show(event: ftransfer.Progress) -> None:
        if event.done > MIB:
            reached.set()

    def run(url: str) -> None:
        results.append(place.move(direction, url, on_progress=show, limit_rate=20 * MIB))

    with Proxy(place.server.urls[0]) as proxy:
        thread = threading.Thread(target=run, args=(proxy.url,))
        thread.start()
        assert reached.wait(20)
        place.server.close(grace=0)
        with ftransfer.Server(place.root) as second:
            proxy.to = second.urls[0]
            thread.join(30)
    assert results
    assert results[0].sent_bytes <= SIZE + WINDOW_BYTES
    assert place.target(direction).read_bytes() == data


def test_a_reconnecting_client_takes_its_transfer_from_its_former_connection(place: Place) -> None:
    """The server still waits on the old connection, which only the client has lost: it lets go at once."""
    data = noise(SIZE)
    place.source("up", data)
    with ftransfer.connect(place.server.urls[0], retry_for=10, timeout=10, limit_rate=30 * MIB) as remote:
        kept: list[int] = []
        inherited: list[int] = []

        def show(event: ftransfer.Progress) -> None:
            inherited.append(event.inherited)
            if event.done > 0 and not kept:
                channel = remote._link._channel
                assert channel is not None
                kept.append(os.dup(channel.socket.fileno()))  # the server sees no end
                raise errors.ConnectionLost("pulled")

        remote.upload(place.local / "file.bin", "copy.bin", on_progress=show)
        os.close(kept[0])
    assert max(inherited) > 0
    assert place.target("up").read_bytes() == data


# Damage on the wire and on the disk.


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("at", [0, 262_143, 262_144, 3 * MIB, SIZE - 1])
def test_a_block_damaged_on_the_wire_is_sent_again_alone(place: Place, direction: str, at: int) -> None:
    """One flipped bit costs one block."""
    data = noise(SIZE)
    place.source(direction, data)
    with Proxy(place.server.urls[0], flip(direction, at)) as proxy:
        result = place.move(direction, proxy.url)
        assert proxy.connections == 1
    assert place.target(direction).read_bytes() == data
    assert SIZE < result.sent_bytes <= SIZE + wire.MAX_BLOCK
    assert place.is_clean(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_damage_in_the_staged_part_is_found_and_only_it_is_sent_again(place: Place, direction: str) -> None:
    """A bit that flipped on the disk between two runs costs its block, and the result is right."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, 4 * MIB)
    where = place.root if direction == "up" else place.local
    held = held_bytes(place, direction)
    (part,) = staged(where)
    damage(part, 300_000)
    grain = grain_at(where, 300_000)
    result = place.move(direction, place.server.urls[0])
    assert place.target(direction).read_bytes() == data
    assert result.sent_bytes == SIZE - held + grain
    assert result.resumed_from == held - grain
    assert place.is_clean(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_staged_part_that_was_cut_off_is_fetched_again(place: Place, direction: str) -> None:
    """Records of bytes that are not there do not count."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, 4 * MIB)
    (part,) = staged(place.root if direction == "up" else place.local)
    os.truncate(part, 100_000)
    result = place.move(direction, place.server.urls[0])
    assert result.resumed_from == 0
    assert place.target(direction).read_bytes() == data


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_staged_part_that_is_gone_is_fetched_again(place: Place, direction: str) -> None:
    """A journal without its staged file is worth nothing."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, 4 * MIB)
    (part,) = staged(place.root if direction == "up" else place.local)
    part.unlink()
    result = place.move(direction, place.server.urls[0])
    assert (result.resumed_from, result.sent_bytes) == (0, SIZE)
    assert place.target(direction).read_bytes() == data


def damage(path: Path, at: int) -> None:
    """Flip a bit of a file and leave its times as they were."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def grain_at(root: Path, at: int) -> int:
    """Return the length of the grain in the journal that holds this byte."""
    data = journals(root)[0].read_bytes()
    decoded = journals_format.decode_head(data)
    assert decoded is not None
    grains = journals_format.decode_records(data[decoded[1] :], decoded[0].salt, SIZE)
    (length,) = [g.length for g in grains.values() if g.offset <= at < g.end]
    return length


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "how", ["empty", "torn head", "torn record", "one record", "garbage", "noise behind", "zeroed"]
)
def test_a_damaged_journal_costs_time_not_bytes(place: Place, direction: str, how: str) -> None:
    """Whatever is left of the journal, the transfer ends with the right bytes."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, 4 * MIB)
    held = held_bytes(place, direction)
    (path,) = journals(place.root if direction == "up" else place.local)
    old = path.read_bytes()
    decoded = journals_format.decode_head(old)
    assert decoded is not None
    start = decoded[1]
    changed = {
        "empty": b"",
        "torn head": old[: start - 5],
        "torn record": old[:-11],
        "one record": old[: start + 50] + b"\xff" * 40 + old[start + 90 :],
        "garbage": noise(len(old)),
        "noise behind": old + noise(111),
        "zeroed": old[:start] + bytes(len(old) - start),
    }[how]
    path.write_bytes(changed)
    result = place.move(direction, place.server.urls[0])
    assert place.target(direction).read_bytes() == data
    assert result.resumed_from <= held
    if how in ("torn record", "one record", "noise behind"):
        assert result.resumed_from > 0


# Other versions.


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_another_version_with_the_same_fingerprint_starts_over(place: Place, direction: str) -> None:
    """Same size, same mtime, other bytes: the whole digest tells, and nothing of the old part is kept."""
    source = place.source(direction, noise(SIZE, 1))
    interrupted(place, direction, 4 * MIB)
    before = source.stat()
    data = noise(SIZE, 2)
    source.write_bytes(data)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = place.move(direction, place.server.urls[0])
    assert place.target(direction).read_bytes() == data
    assert result.resumed_from == 0
    assert place.is_clean(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_source_that_changed_between_two_runs_starts_over(place: Place, direction: str) -> None:
    """Another fingerprint is another transfer; the part of the old one is dropped when the new one is done."""
    source = place.source(direction, noise(SIZE, 1))
    interrupted(place, direction, 4 * MIB)
    data = noise(SIZE, 2)
    source.write_bytes(data)
    os.utime(source, ns=(1, 10**18))
    result = place.move(direction, place.server.urls[0])
    assert place.target(direction).read_bytes() == data
    assert (result.resumed_from, result.sent_bytes) == (0, SIZE)
    assert place.is_clean(direction)


@pytest.mark.parametrize("same_times", [False, True])
def test_a_file_that_is_replaced_on_the_server_between_two_connections(place: Place, same_times: bool) -> None:
    """A download that goes on by itself never mixes two versions, even if their size and mtime are the same."""
    source = place.source("down", noise(SIZE, 1))
    before = source.stat()
    data = noise(SIZE, 2)
    done = []

    def show(event: ftransfer.Progress) -> None:
        if event.phase == "retrying" and not done:
            done.append(1)
            source.with_suffix(".new").write_bytes(data)
            os.replace(source.with_suffix(".new"), source)
            os.utime(source, ns=(1, before.st_mtime_ns if same_times else 10**18))

    with Proxy(place.server.urls[0], Plan(cut_down=2 * MIB)) as proxy:
        place.move("down", proxy.url, on_progress=show)
    assert place.target("down").read_bytes() == data
    assert place.is_clean("down")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_without_resume_what_is_staged_is_not_used(place: Place, direction: str) -> None:
    """resume=False sends all of it, and leaves nothing of the earlier part."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, 4 * MIB)
    result = place.move(direction, place.server.urls[0], resume=False)
    assert (result.resumed_from, result.sent_bytes) == (0, SIZE)
    assert place.target(direction).read_bytes() == data
    assert place.is_clean(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_without_resume_a_lost_connection_goes_on_with_this_attempt_only(place: Place, direction: str) -> None:
    """Between two connections of one call nothing is lost; what an earlier call staged stays out of it."""
    data = noise(SIZE)
    place.source(direction, data)
    interrupted(place, direction, 4 * MIB)
    damage(staged(place.root if direction == "up" else place.local)[0], 10)
    with Proxy(place.server.urls[0], cut(direction, 3 * MIB)) as proxy:
        result = place.move(direction, proxy.url, resume=False)
        assert SIZE <= proxy.up_bodies + proxy.down_bodies < SIZE + 3 * MIB
    assert place.target(direction).read_bytes() == data
    assert (result.result, result.resumed_from) == ("sent", 0)
    assert place.is_clean(direction)


# Holes.


def sparse_file(path: Path) -> bytes:
    """Write a file of 40 MiB with three islands of data, and return its bytes."""
    with path.open("wb") as file:
        for at, length in ((0, 70_000), (9 * MIB + 4096, MIB), (30 * MIB, 2 * MIB)):
            file.seek(at)
            file.write(noise(length, at))
        file.truncate(40 * MIB)
    if path.stat().st_blocks * 512 > 20 * MIB:
        pytest.skip("this file system keeps no holes")
    return path.read_bytes()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("count", [None, 500_000, 2 * MIB])
def test_holes_stay_holes(place: Place, direction: str, count: int | None) -> None:
    """A sparse file is sent without its zeros and stays sparse, also when it was cut."""
    source = place.source(direction, b"")
    data = sparse_file(source)
    if count is not None:
        interrupted(place, direction, count)
    result = place.move(direction, place.server.urls[0])
    target = place.target(direction)
    assert target.read_bytes() == data
    assert target.stat().st_blocks * 512 < 12 * MIB
    assert result.sent_bytes < 8 * MIB
    assert place.is_clean(direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_file_of_nothing_but_a_hole(place: Place, direction: str) -> None:
    """No byte goes over the line."""
    source = place.source(direction, b"")
    os.truncate(source, 9 * MIB)
    result = place.move(direction, place.server.urls[0])
    assert place.target(direction).read_bytes() == bytes(9 * MIB)
    if source.stat().st_blocks == 0:
        assert result.sent_bytes == 0


# The receipt.


@pytest.mark.parametrize("if_exists", ["replace", "fail", "rename", "newer", "skip"])
@pytest.mark.parametrize("size", [0, 1000, SIZE])
def test_a_lost_receipt_is_given_again(place: Place, if_exists: str, size: int) -> None:
    """The file was committed, its receipt lost: asking again brings the same receipt, and no second file."""
    data = noise(size)
    place.source("up", data)
    with Proxy(place.server.urls[0], Plan(cut_at_down="receipt")) as proxy:
        result = place.move("up", proxy.url, if_exists=if_exists, compare="none")
        assert proxy.connections == 2
        assert proxy.up_bodies == size
    assert (result.result, result.path, result.bytes) == ("sent", "copy.bin", size)
    assert result.digest is not None
    assert tree(place.root) == {"copy.bin": data}
    assert place.is_clean("up")


def test_a_lost_receipt_names_the_file_that_was_made(place: Place) -> None:
    """With if_exists=rename the new name is part of the receipt, also of the second."""
    place.source("up", noise(1000))
    place.target("up").write_bytes(b"old")
    with Proxy(place.server.urls[0], Plan(cut_at_down="receipt")) as proxy:
        result = place.move("up", proxy.url, if_exists="rename")
    assert result.path == "copy (1).bin"
    assert tree(place.root) == {"copy.bin": b"old", "copy (1).bin": noise(1000)}


def test_a_lost_receipt_of_a_stream(place: Place) -> None:
    """A stream that was committed is not read again."""
    data = noise(SIZE)
    with Proxy(place.server.urls[0], Plan(cut_at_down="receipt")) as proxy:
        with ftransfer.connect(proxy.url, retry_for=10) as remote:
            result = remote.upload(chunks(data, 100_000), "copy.bin").files[0]
        assert proxy.up_bodies == SIZE
    assert result.bytes == SIZE
    assert place.target("up").read_bytes() == data


@pytest.mark.parametrize("size", [0, 1000, SIZE])
def test_the_receipt_of_a_download_may_get_lost(place: Place, size: int) -> None:
    """The file is here: that the server never hears of it changes nothing."""
    data = noise(size)
    place.source("down", data)
    with Proxy(place.server.urls[0], Plan(cut_at_up="receipt")) as proxy:
        result = place.move("down", proxy.url)
        assert proxy.connections == 1
    assert result.result == "sent"
    assert place.target("down").read_bytes() == data
    assert place.is_clean("down")


def test_a_download_whose_connection_dies_while_it_is_committed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client finds out only when it sends the receipt, and has its file."""
    from ftransfer import receiving

    monkeypatch.setattr(receiving, "SIGN_OF_LIFE", 0.01)
    monkeypatch.setattr(receiving, "QUIET_COMMIT", 0)
    data = noise(SIZE)
    place.source("down", data)
    with ftransfer.connect(place.server.urls[0], retry_for=5) as remote:
        from ftransfer.store.staging import LocalStaging

        commit = LocalStaging.commit

        def slow(self: LocalStaging, size: int, hex_digits: str) -> object:
            place.server.close(grace=0)
            return commit(self, size, hex_digits)

        monkeypatch.setattr(LocalStaging, "commit", slow)
        result = remote.download("file.bin", place.local / "copy.bin").files[0]
    assert result.result == "sent"
    assert place.target("down").read_bytes() == data


# Streams.


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    """Yield data in pieces."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("size", [1, 4096, 300_000, 5 * MIB])
def test_an_uploaded_stream_survives_cuts(place: Place, size: int) -> None:
    """What was read and not confirmed is kept, so that an iterator needs to be read only once."""
    data = noise(SIZE) if size > 1 else noise(20_000)
    plans = [Plan(cut_up=n) for n in (300, 9_000, 1_100_000, 2 * MIB, 700)]
    with Proxy(place.server.urls[0], *plans) as proxy, ftransfer.connect(proxy.url, retry_for=10) as remote:
        result = remote.upload(chunks(data, size), "copy.bin").files[0]
    assert result.bytes == len(data)
    assert place.target("up").read_bytes() == data
    assert place.is_clean("up")


def test_a_damaged_block_of_a_slow_stream(place: Place) -> None:
    """Only the damaged block comes again, though the producer has nothing new meanwhile."""
    data = noise(3 * MIB)
    released = threading.Event()

    def produce() -> Iterator[bytes]:
        yield data[: 2 * MIB]
        released.wait(20)
        yield data[2 * MIB :]

    def show(event: ftransfer.Progress) -> None:
        if event.done >= 2 * MIB - 1:
            released.set()

    with Proxy(place.server.urls[0], Plan(flip_up=10)) as proxy, ftransfer.connect(proxy.url, retry_for=10) as remote:
        remote.upload(produce(), "copy.bin", on_progress=show)
        assert proxy.connections == 1
    assert place.target("up").read_bytes() == data


def test_what_a_slow_stream_has_given_is_sent_again_without_waiting_for_more(place: Place) -> None:
    """After a cut, what was read before goes out though the producer has nothing new."""
    data = noise(300_000)
    released = threading.Event()

    def produce() -> Iterator[bytes]:
        yield data
        released.wait(20)

    def show(event: ftransfer.Progress) -> None:
        if event.done == len(data):
            released.set()

    with Proxy(place.server.urls[0], Plan(cut_up=100_000)) as proxy, ftransfer.connect(proxy.url) as remote:
        remote.upload(produce(), "copy.bin", on_progress=show)
        assert released.is_set()
    assert place.target("up").read_bytes() == data


def test_a_stream_keeps_no_more_than_its_bound_after_a_cut() -> None:
    """What the server stored is let go, also if the answer that said so was lost."""
    from ftransfer.sources import StreamSource

    data = noise(SIZE)
    source = StreamSource(chunks(data, 65_536))
    buffer = memoryview(bytearray(65_536))
    for n in range(10):
        source.read_into(n * 65_536, buffer)
    source.release(65_536 * 3, 65_536)
    source.release(0, 65_536 * 2)
    source.release(0, 65_536 * 6)
    assert sum(len(piece) for _, piece in source._kept) == 4 * 65_536
    source.release(65_536 * 6, 4 * 65_536)
    assert not source._kept
    source.close()


@pytest.mark.parametrize("count", [100, 300, 5_000, 400_000, 3 * MIB])
def test_a_download_into_a_file_object_survives_cuts(place: Place, count: int) -> None:
    """Bytes go out once and in order, over as many connections as it takes."""
    data = noise(SIZE)
    place.source("down", data)
    out = io.BytesIO()
    plans = [Plan(cut_down=count), Plan(cut_down=count + 1000, flip_down=10)]
    with Proxy(place.server.urls[0], *plans) as proxy, ftransfer.connect(proxy.url, retry_for=10) as remote:
        remote.download("file.bin", out)
    assert out.getvalue() == data


def test_a_damaged_block_of_a_download_into_a_file_object(place: Place) -> None:
    """The blocks behind it wait until it has come again."""
    data = noise(SIZE)
    place.source("down", data)
    out = io.BytesIO()
    with Proxy(place.server.urls[0], Plan(flip_down=MIB)) as proxy, ftransfer.connect(proxy.url) as remote:
        result = remote.download("file.bin", out).files[0]
    assert out.getvalue() == data
    assert result.sent_bytes > SIZE


def test_a_file_object_and_a_file_that_changed_between_two_connections(place: Place) -> None:
    """What went out cannot be taken back: that is an error, and no second version goes out behind the first."""
    source = place.source("down", noise(SIZE, 1))
    out = io.BytesIO()

    def show(event: ftransfer.Progress) -> None:
        if event.phase == "retrying":
            source.write_bytes(noise(SIZE, 2))
            os.utime(source, ns=(1, 10**18))

    with (
        Proxy(place.server.urls[0], Plan(cut_down=2 * MIB)) as proxy,
        ftransfer.connect(proxy.url, retry_for=10) as remote,
        pytest.raises(errors.SourceChanged),
    ):
        remote.download("file.bin", out, on_progress=show)
    assert noise(SIZE, 1).startswith(out.getvalue())


# Sizes and algorithms.


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", ["xxh128", "sha256"])
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 262_144, 262_145, 524_288, 4 * MIB, 8 * MIB])
def test_sizes_at_the_edges_of_blocks(place: Place, direction: str, algorithm: str, size: int) -> None:
    """Empty files and files of exactly some blocks arrive, after a cut too."""
    data = noise(size)
    place.source(direction, data)
    with Proxy(place.server.urls[0], cut(direction, size // 2 + 200)) as proxy:
        result = place.move(direction, proxy.url, algorithm=algorithm)
    assert place.target(direction).read_bytes() == data
    assert result.bytes == size
    assert str(result.digest).startswith(f"{algorithm}:")


# What is staged: listed, dropped, swept, claimed.


def test_partials_are_listed_and_dropped(place: Place) -> None:
    """`partials` shows what an upload has left; with clear it is gone, staged bytes and journal."""
    place.source("up", noise(SIZE))
    interrupted(place, "up", 3 * MIB)
    with ftransfer.connect(place.server.urls[0]) as remote:
        (partial,) = remote.partials()
        assert (partial.path, partial.size) == ("copy.bin", SIZE)
        assert 0 < partial.held < SIZE
        assert remote.partials("other") == []
        assert remote.partials("other", clear=True) == []
        assert [p.path for p in remote.partials("copy.bin", clear=True)] == ["copy.bin"]
        assert remote.partials() == []
    assert reserved(place.root) == []
    assert not (place.root / ".ftransfer").exists()


def test_partials_in_use_are_not_dropped(place: Place) -> None:
    """What somebody is writing stays."""
    store = LocalStore(place.root)
    staging = store.claim(Description("a/b.bin", 100, "f"))
    try:
        with ftransfer.connect(place.server.urls[0]) as remote:
            assert remote.partials(clear=True) == []
            assert len(remote.partials()) == 1
        assert len(staged(place.root)) == 1
    finally:
        staging.release()
        store.close()


def test_old_staging_is_swept_and_young_is_kept(place: Place) -> None:
    """A server that starts drops what is older than 14 days, and nothing else."""
    place.source("up", noise(SIZE))
    interrupted(place, "up", 3 * MIB)
    (journal,) = journals(place.root)
    place.server.close()
    for age, count in ((KEEP_PARTIALS - 3600, 1), (KEEP_PARTIALS + 3600, 0)):
        then = time.time() - age
        os.utime(journal, (then, then))
        with ftransfer.Server(place.root) as server, ftransfer.connect(server.urls[0]) as remote:
            remote.ping()
            assert len(remote.partials()) == count
        assert len(staged(place.root)) == count
    assert reserved(place.root) == []


def test_sweeping_spares_what_is_being_written(place: Place) -> None:
    """An old journal with a living writer is not swept."""
    store, other = LocalStore(place.root), LocalStore(place.root)
    staging = store.claim(Description("a.bin", 100, "f"))
    (journal,) = journals(place.root)
    os.utime(journal, (1, 1))
    assert other.sweep() == 0
    assert len(staged(place.root)) == 1
    staging.release()
    assert other.sweep() == 1
    assert reserved(place.root) == []
    store.close()
    other.close()


def test_two_stores_cannot_claim_one_transfer(place: Place) -> None:
    """The second gets Busy, whichever process it is in, until the first lets go."""
    first, second = LocalStore(place.root), LocalStore(place.root)
    description = Description("a.bin", 4, "f")
    staging = first.claim(description)
    with pytest.raises(errors.Busy):
        second.claim(description)
    other = second.claim(description._replace(fingerprint="g"))
    staging.begin(0, 4)
    staging.write(memoryview(b"abcd"))
    staging.accept("0" * 32)
    staging.release()
    again = second.claim(description)
    assert again.inherited == 4
    for one in (again, other):
        one.discard()
    assert reserved(place.root) == []
    first.close()
    second.close()


def test_busy_is_waited_for(place: Place) -> None:
    """An upload that another process is making waits until that has let go, and goes on from there."""
    data = noise(SIZE)
    source = place.source("up", data)
    found = source.stat()
    store = LocalStore(place.root)
    staging = store.claim(Description("copy.bin", SIZE, f"{SIZE}-{found.st_mtime_ns}", owner=users.OWNER))
    released = threading.Event()

    def show(event: ftransfer.Progress) -> None:
        if event.phase == "retrying" and not released.is_set():
            released.set()
            staging.release()

    result = place.move("up", place.server.urls[0], on_progress=show)
    assert released.is_set()
    assert result.result == "sent"
    assert place.target("up").read_bytes() == data
    store.close()


def test_a_read_only_staged_part_is_no_obstacle(place: Place) -> None:
    """A commit that was cut after it set the mode of a read-only file leaves a part that can be done without."""
    data = noise(SIZE)
    source = place.source("up", data)
    source.chmod(0o400)
    interrupted(place, "up", 3 * MIB)
    staged(place.root)[0].chmod(0o400)
    place.move("up", place.server.urls[0])
    assert place.target("up").read_bytes() == data
    assert place.target("up").stat().st_mode & 0o777 == 0o400
    assert place.is_clean("up")


def test_a_part_in_many_pieces_is_asked_for_in_pages(place: Place) -> None:
    """A part with more gaps in it than one message can name is asked for in several."""
    count = wire.MAX_RANGES * 2 + 7
    data = noise(count * 200)
    source = place.source("up", data)
    os.utime(source, ns=(1, 10**18))
    store = LocalStore(place.root)
    staging = store.claim(Description("copy.bin", len(data), f"{len(data)}-{10**18}", owner=users.OWNER))
    for at in range(0, len(data), 200):
        piece = data[at : at + 90]
        staging.begin(at, 90)
        staging.write(memoryview(piece))
        staging.accept(block_hash(piece))
    staging.release()
    store.close()
    result = place.move("up", place.server.urls[0])
    assert (result.resumed_from, result.sent_bytes) == (count * 90, count * 110)
    assert place.target("up").read_bytes() == data


def test_a_folder_that_vanished_under_a_part(place: Place) -> None:
    """The folder of the target was removed between two runs, part and all: the next run starts over."""
    data = noise(SIZE)
    source = place.source("up", data)
    with (
        Proxy(place.server.urls[0], Plan(cut_up=3 * MIB)) as proxy,
        ftransfer.connect(proxy.url, retry_for=0) as remote,
        pytest.raises(errors.ConnectionLost),
    ):
        remote.upload(source, "deep/er/copy.bin")
    shutil.rmtree(place.root / "deep")
    with ftransfer.connect(place.server.urls[0]) as remote:
        result = remote.upload(source, "deep/er/copy.bin").files[0]
    assert result.resumed_from == 0
    assert (place.root / "deep/er/copy.bin").read_bytes() == data
    assert reserved(place.root) == []

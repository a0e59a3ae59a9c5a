"""The journal as bytes: whatever a power cut leaves of it, no grain comes out that was not written."""

import itertools
import json
import struct

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from ftransfer.store import journal
from ftransfer.store.base import Grain, missing

hashes = st.text("0123456789abcdef", min_size=32, max_size=32)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
tokens = st.text("0123456789abcdef", min_size=16, max_size=16)
heads = st.builds(
    journal.Head,
    path=st.sampled_from(["p", "a/b c", "deep/er/\u00e4\n\\x"]),
    staged=tokens.map(".ftransfer-{}".format),
    size=st.none() | st.integers(0, (1 << 63) - 1),
    fingerprint=st.none() | names,
    salt=st.integers(0, (1 << 63) - 1),
    owner=st.just("") | names,
)
grain_lists = st.lists(
    st.builds(Grain, st.integers(0, 60), st.integers(1, 20), hashes), max_size=12
)  # fmt: skip
LIMIT = 80


def written(head: journal.Head, grains: list[Grain]) -> bytes:
    """Return a whole journal."""
    return journal.encode_head(head) + b"".join(journal.encode_record(grain, head.salt) for grain in grains)


def read(data: bytes, limit: int = LIMIT) -> tuple[journal.Head, dict[int, Grain]] | None:
    """Read a journal as the local store does."""
    decoded = journal.decode_head(data)
    if decoded is None:
        return None
    head, start = decoded
    return head, journal.decode_records(data[start:], head.salt, limit)


def overlapping(grains: dict[int, Grain]) -> bool:
    """Tell whether any two of them share a byte."""
    ordered = sorted(grains.values())
    return any(a.end > b.offset for a, b in itertools.pairwise(ordered))


@given(heads, grain_lists)
def test_what_was_written_is_read(head: journal.Head, grains: list[Grain]) -> None:
    """The head comes back, the last record counts, and nothing overlaps."""
    found = read(written(head, grains))
    assert found is not None
    assert found[0] == head
    assert not overlapping(found[1])
    assert set(found[1].values()) <= set(grains)
    assert all(offset == grain.offset for offset, grain in found[1].items())
    if grains and grains[-1].end <= LIMIT:
        assert grains[-1] in found[1].values()
    if not any(a.end > b.offset for a, b in itertools.pairwise(sorted(grains))):
        assert sorted(found[1].values()) == sorted(grain for grain in grains if grain.end <= LIMIT)


@given(heads, grain_lists, st.integers(0, 100))
def test_no_grain_reaches_beyond_the_limit(head: journal.Head, grains: list[Grain], limit: int) -> None:
    """A record that stands for bytes which the staged file does not have counts for nothing."""
    found = read(written(head, grains), limit)
    assert found is not None
    assert all(grain.end <= limit for grain in found[1].values())


@given(heads, grain_lists, st.data())
def test_a_prefix_makes_bytes_missing_never_wrong(head: journal.Head, grains: list[Grain], data: st.DataObject) -> None:
    """Cut anywhere, as an append that was torn: the whole records before the cut count, or the head is gone."""
    whole = written(head, grains)
    cut = data.draw(st.integers(0, len(whole)))
    found = read(whole[:cut])
    start = len(journal.encode_head(head))
    if cut < start:
        assert found is None
        return
    assert found == (head, read(written(head, grains[: (cut - start) // journal.RECORD_SIZE]))[1])  # type: ignore[index]


@given(heads, grain_lists, st.data())
def test_flipped_bits_never_make_a_grain(head: journal.Head, grains: list[Grain], data: st.DataObject) -> None:
    """Only records that were written come out, also behind a damaged one."""
    made = bytearray(written(head, grains))
    for _ in range(data.draw(st.integers(1, 5))):
        made[data.draw(st.integers(0, len(made) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = read(bytes(made))
    if found is not None:
        assert found[0] == head
        assert set(found[1].values()) <= set(grains)
        assert not overlapping(found[1])


@given(heads, grain_lists, st.data())
@example(journal.Head("p", ".ftransfer-" + "0" * 16, 9, None, 0), [Grain(0, 5, "0" * 32)], None)
def test_zeroed_pieces_never_make_a_grain(head: journal.Head, grains: list[Grain], data: st.DataObject | None) -> None:
    """Pages that were never written read as zeros; so does a whole file after some power cuts."""
    made = bytearray(written(head, grains))
    first = data.draw(st.integers(0, len(made))) if data else len(journal.encode_head(head))
    last = data.draw(st.integers(first, len(made))) if data else len(made)
    made[first:last] = bytes(last - first)
    made += bytes(journal.RECORD_SIZE * 3)
    found = read(bytes(made))
    if found is not None:
        assert found[0] == head
        assert set(found[1].values()) <= set(grains)


@given(heads, grain_lists, grain_lists, st.integers(0, (1 << 63) - 1))
def test_records_of_another_transfer_count_for_nothing(
    head: journal.Head, grains: list[Grain], foreign: list[Grain], salt: int
) -> None:
    """What an earlier file left behind on the same disk blocks has another salt."""
    old = b"".join(journal.encode_record(grain, salt) for grain in foreign)
    found = read(written(head, grains) + old)
    assert found is not None
    if salt != head.salt:
        assert found == read(written(head, grains))


@given(st.binary(max_size=400), st.binary(max_size=200), st.integers(0, 1 << 32))
def test_arbitrary_bytes_are_no_journal(data: bytes, tail: bytes, salt: int) -> None:
    """No bytes raise anything, and none of them are a head or a grain."""
    assert journal.decode_head(data) is None
    assert journal.decode_head(journal.MAGIC + data) is None
    assert journal.decode_records(tail, salt, 1 << 62) == {}


@given(grain_lists, st.none() | st.integers(0, 100))
def test_missing_is_what_no_grain_covers(grains: list[Grain], size: int | None) -> None:
    """Against a model that looks at each byte; the ranges are sorted, apart, and not empty."""
    held = {byte for grain in grains for byte in range(grain.offset, grain.end)}
    end = max(held, default=-1) + 1 if size is None else size
    found = missing(grains, size)
    if size is None:
        assert found[-1] == (end, None)
        found = found[:-1]
    covered = [byte for offset, length in found for byte in range(offset, offset + (length or 0))]
    if size is None or end >= max(held, default=0):
        assert covered == [byte for byte in range(end) if byte not in held]
    assert covered == sorted(set(covered))
    assert all(length for _, length in found)


@pytest.mark.parametrize(
    "fields",
    [
        {"staged": "../other/secret"},
        {"staged": "secret"},
        {"staged": ".ftransfer-0000000000000000/x"},
        {"staged": None},
        {"path": "../x"},
        {"path": None},
        {"path": 5},
        {"size": -1},
        {"size": "1"},
        {"fingerprint": 1},
        {"salt": -1},
        {"owner": None},
        {"owner": ["ann"]},
        {"of a newer version": 1},
    ],
    ids=str,
)
def test_a_head_names_nothing_but_a_staged_file_beside_its_target(fields: dict[str, object]) -> None:
    """Whoever wrote it: a journal cannot make the store rename or remove anything else, and cannot crash it."""
    good = {"path": "a/b", "staged": ".ftransfer-" + "0" * 16, "size": 1, "fingerprint": "f", "salt": 1}
    assert journal.decode_head(_head(good)) is not None
    assert journal.decode_head(_head({**good, **fields})) is None


def _head(fields: dict[str, object]) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("!8sIQ", journal.MAGIC, len(text), xxhash.xxh3_64_intdigest(text)) + text


def test_a_head_from_before_there_were_owners_is_nobodys() -> None:
    """And a head of nobody is written as it was then, so that the version before this one reads it."""
    old = {"path": "a/b", "staged": ".ftransfer-" + "0" * 16, "size": 1, "fingerprint": "f", "salt": 1}
    decoded = journal.decode_head(_head(old))
    assert decoded is not None
    assert decoded[0].owner == ""
    assert journal.encode_head(decoded[0]) == _head(old)

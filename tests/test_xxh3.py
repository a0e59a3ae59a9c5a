"""XXH3 without the module `xxhash`: the same digests from the system's library and from plain Python."""

import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from support import resident

from ftransfer import xxh, xxh3

Piece = bytes | bytearray | memoryview
SEED = 0x9E3779B185EBCA8D


class Made(NamedTuple):
    """What an implementation offers."""

    hasher: Callable[..., Any]
    hex_128: Callable[..., str]
    int_64: Callable[..., int]


@cache
def _library() -> Made:
    try:
        return Made(*xxh._of_the_system())
    except OSError as exc:
        pytest.skip(f"not tested with libxxhash: {exc}")


PLAIN = Made(xxh3.Xxh3, xxh3.xxh3_128_hexdigest, xxh3.xxh3_64_intdigest)
each = pytest.mark.parametrize("made", [lambda: PLAIN, _library], ids=["plain", "library"])
seeds = st.sampled_from([0, 1, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
sizes = (
    st.integers(0, 16)
    | st.integers(17, 128)
    | st.integers(129, 240)
    | st.integers(241, 2100)
    | st.builds(lambda blocks, more: blocks * 1024 + more, st.integers(1, 40), st.integers(-65, 65))
)
wholes = st.binary(max_size=300) | st.builds(
    lambda size, seed: random.Random(seed).randbytes(size), sizes, st.integers(0, 1 << 32)
)
kinds = st.sampled_from([bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])

# size, XXH3-64, XXH3-128, XXH3-128 with SEED; of the bytes that `_pattern` makes
VECTORS = [
    (0, 0x2D06800538D394C2, "99aa06d3014798d86001c324468d497f", "00feaa732a3ce25ea986dfc5d7605bfe"),
    (1, 0xC44BDFF4074EECDB, "a6cd5e9392000f6ac44bdff4074eecdb", "20e49abcc53b3842032be332dd766ef8"),
    (3, 0x35F78206B6157490, "b265c8c34c23f56b35f78206b6157490", "bda3dbe449f1f0097f95ee208d8ab996"),
    (4, 0x5B2A406B303AEB61, "b6a492684f17632216c4bc1cf0b74071", "6bd5d33a4f1f7d4c4866a95c8dd4cf6d"),
    (8, 0x8EB38AE254C5E9A0, "4668d346ad86b8fba5e3da166c18dab2", "b3592fe58a5c79bfe6e8c98d6fce0005"),
    (9, 0x8753BEABF3AE28C5, "cdb6faf0fba0dc92d276aff7e7fddcf3", "2b25a17ec0041ee60b6d221f077161fa"),
    (16, 0xCC5E6595F4E85113, "02ed30b2dc2d21a0b5d0860a2e4c0e31", "d77c7d0c0021ec0208d90b96c486b288"),
    (17, 0x0C9D20D697BDD5B2, "bd8f68ecd2e15e8a4968f811f3abd817", "952f00491a8c28676a35b596e91f774a"),
    (128, 0x34637D1535B43CE3, "92a43cd07c60c5fb8e82da4ac50fafd4", "702dc0c72e3983082d371ababb8c91ac"),
    (129, 0xF1EA4C0C98941118, "a3d6ea4eb4b417138e75f5122d72c078", "b935b13f15489ff0ad5f1a13abbbec03"),
    (240, 0xF876B8D886B12F6F, "ea04d351a12ade17c3931ba5e82b504a", "87bb1bce832bec6cd16dfd6e534268d6"),
    (241, 0xB804EB112211FC0D, "a3fce7f34666efb2b804eb112211fc0d", "a793e9ead1313078324a3a5f2f6ad553"),
    (1024, 0xF2DF53B5411119D0, "e73c0a287be3c300f2df53b5411119d0", "39ddcc9069a7ce88f8a93ea03cd1a1fe"),
    (1025, 0xE2D3363E2AFC99BB, "200e60ae533abdb0e2d3363e2afc99bb", "6e6730bd4700ef784e50d7f7f2d896cd"),
    (17408, 0xCC6656E124D4D531, "6caca65ace445536cc6656e124d4d531", "0d9d5b5743f80d7d07e94909f6f2329d"),
    (20000, 0x82E85ED514DD3FB5, "203774eec9da2ab582e85ed514dd3fb5", "10b825585e848a3f7e6341df5c476a80"),
]


def _pattern(size: int) -> bytes:
    return bytes(i * i * 31 + i >> 3 & 255 for i in range(size))


@each
@pytest.mark.parametrize(("size", "int_64", "hex_128", "seeded"), VECTORS, ids=[str(row[0]) for row in VECTORS])
def test_known_digests_come_out(made: Callable[[], Made], size: int, int_64: int, hex_128: str, seeded: str) -> None:
    """A digest of each class of lengths is the one written down here."""
    data = _pattern(size)
    assert made().int_64(data) == int_64
    assert made().hex_128(data) == hex_128
    assert made().hex_128(data, SEED) == made().hasher(data, SEED).hexdigest() == seeded


@each
@given(whole=wholes, seed=seeds, kind=kinds)
def test_digests_are_those_of_the_module(
    made: Callable[[], Made], whole: bytes, seed: int, kind: Callable[[bytes], Piece]
) -> None:
    """Both widths, any length, any seed, whatever holds the bytes."""
    assert made().int_64(kind(whole)) == xxhash.xxh3_64_intdigest(whole)
    assert made().int_64(kind(whole), seed) == xxhash.xxh3_64_intdigest(whole, seed)
    assert made().hex_128(kind(whole)) == xxhash.xxh3_128_hexdigest(whole)
    assert made().hex_128(kind(whole), seed) == xxhash.xxh3_128_hexdigest(whole, seed)


@each
@given(pieces=st.lists(wholes, max_size=6), seed=seeds, kind=kinds, copied=st.integers(0, 6))
def test_pieces_count_like_the_whole(
    made: Callable[[], Made], pieces: list[bytes], seed: int, kind: Callable[[bytes], Piece], copied: int
) -> None:
    """Wherever the data is cut, and also if a copy goes on; neither a digest nor the copy disturbs the first one."""
    hasher, whole = made().hasher(seed=seed), b""
    other, expected = hasher, ""
    for number, piece in enumerate(pieces):
        if number == copied:
            other, expected = hasher, hasher.hexdigest()
            hasher = hasher.copy()
        hasher.update(kind(piece))
        whole += piece
        assert hasher.hexdigest() == xxhash.xxh3_128_hexdigest(whole, seed)
    assert not expected or other.hexdigest() == expected


@each
def test_every_length_up_to_some_blocks_is_right(made: Callable[[], Made]) -> None:
    """No length between the classes is forgotten."""
    data = random.Random(1).randbytes(3200)
    for size in range(len(data)):
        assert made().hex_128(data[:size]) == xxhash.xxh3_128_hexdigest(data[:size]), size


@each
def test_extreme_bytes_do_not_overflow(made: Callable[[], Made]) -> None:
    """Sums and products of the largest and the smallest words end where they should."""
    for byte in (b"\0", b"\xff", b"\x80"):
        for size in (8, 16, 200, 1024, 40000):
            assert made().hex_128(byte * size) == xxhash.xxh3_128_hexdigest(byte * size)


@each
def test_what_has_no_bytes_in_a_row_is_refused_as_by_the_module(made: Callable[[], Made]) -> None:
    """Text is a TypeError, and a hasher goes on after one."""
    hasher = made().hasher(b"abc")
    for wrong, error in (("text", TypeError), (memoryview(b"abcdef")[::2], (BufferError, TypeError))):
        with pytest.raises(error):
            made().hex_128(wrong)
        with pytest.raises(error):
            hasher.update(wrong)
    assert hasher.hexdigest() == xxhash.xxh3_128_hexdigest(b"abc")


@each
def test_what_was_hashed_is_let_go(made: Callable[[], Made]) -> None:
    """A bytearray may change its size afterwards."""
    data = bytearray(5000)
    hasher = made().hasher(data)
    hasher.update(memoryview(data))
    made().int_64(data)
    data.clear()
    assert hasher.hexdigest() == xxhash.xxh3_128_hexdigest(bytes(10000))


def test_the_library_reads_large_data_where_it_lies() -> None:
    """No kind of object is copied to be hashed, nor one that cannot be written to."""
    made = _library()
    whole = bytes(8 << 20)
    for data in (whole, bytearray(whole), memoryview(whole), memoryview(whole)[1:]):
        tracemalloc.start()
        try:
            made.hasher(data).update(data)
            made.hex_128(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_the_states_of_the_library_are_freed() -> None:
    """Thousands of hashers take no more memory than a few."""
    made = _library()
    made.hasher(b"abc").copy()
    gc.collect()
    before = resident()
    for _ in range(30_000):  # of more than 500 bytes each
        made.hasher(b"abc").copy()
    assert resident() - before < 8 << 20


def _child(hidden: str) -> list[str]:
    """Return what a new process finds after some lines: the source, two digests, which of three modules it loaded."""
    code = f"""
import sys
{hidden}
from ftransfer import xxh
hasher = xxh.xxh3_128()
hasher.update(memoryview(b"a" * 500))
print(xxh.SOURCE, hasher.copy().hexdigest() == xxh.xxh3_128_hexdigest(b"a" * 500), xxh.xxh3_64_intdigest(b"abc", 7))
print(*(name for name in ("ctypes", "ftransfer.xxh3", "subprocess") if sys.modules.get(name)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


DIGESTS = f"True {xxhash.xxh3_64_intdigest(b'abc', 7)}"
HIDDEN = "sys.modules['xxhash'] = None"
FAKE = f"""
{HIDDEN}
import ctypes
class CDLL:
    def __init__(self, name, *_, **__):
        if {{fails}}:
            raise OSError(name)
    def XXH_versionNumber(self):
        return {{version}}
    def __getitem__(self, name):
        raise AttributeError(name)
ctypes.CDLL = CDLL
"""


def test_the_module_is_taken_first_and_costs_nothing_more() -> None:
    """Where `xxhash` is installed, neither ctypes nor the fallback is loaded."""
    assert _child("") == [f"xxhash {DIGESTS}", ""]


def test_the_library_is_taken_next() -> None:
    """Without the module the system's library is found, and no process is started for that."""
    _library()
    assert _child(HIDDEN) == [f"libxxhash {DIGESTS}", "ctypes"]


@pytest.mark.parametrize(
    "hidden",
    [
        f"{HIDDEN}; sys.modules['ctypes'] = None",
        FAKE.format(fails=True, version=800),
        FAKE.format(fails=False, version=704),
        FAKE.format(fails=False, version=800),
    ],
    ids=["no ctypes", "no library", "one too old", "one that lacks functions"],
)
def test_plain_python_is_taken_last(hidden: str) -> None:
    """Where there is no library that can be used, the digests are the same, only slower."""
    assert _child(hidden)[0] == f"python {DIGESTS}"

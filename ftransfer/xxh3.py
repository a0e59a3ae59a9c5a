"""XXH3 in plain Python, 64 and 128 bits: for machines that have neither the module `xxhash` nor the library.

Used by `xxh` alone. The names of the steps are those of the specification (doc/xxhash_spec.md of xxHash 0.8). What it
says of eight lanes of 64 bits is done here with one long integer of eight slots of 128 bits, wide enough that sums
and products never reach the next slot; so Python works on whole blocks at a time, at some 50 MB/s.
"""

from __future__ import annotations

import sys
from array import array
from functools import lru_cache
from operator import mul
from struct import Struct
from typing import Final, NamedTuple

P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
MX1, MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
SECRET: Final = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
STRIPE, BLOCK, BLOCKS = 64, 1024, 16
"""Bytes of a stripe and of a block, and the blocks that are done at a time: more would leave the processor's cache."""
SHORT = 240
"""Up to so many bytes a digest is made in one go, without lanes."""
M32, M64 = (1 << 32) - 1, (1 << 64) - 1
_TWO, _EIGHT, _ALL = Struct("<QQ").unpack_from, Struct("<8Q").unpack_from, Struct("<24Q")
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which lane each slot holds: the even ones first, then the odd ones."""
Data = bytes | bytearray | memoryview


def _read(data: Data, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width], "little")


def _swapped(value: int, width: int) -> int:
    return int.from_bytes(value.to_bytes(width, "little"), "big")


def _folded(product: int) -> int:
    return product & M64 ^ product >> 64


def _avalanche(x: int) -> int:
    x = (x ^ x >> 37) * MX1 & M64
    return x ^ x >> 32


def _avalanche_64(x: int) -> int:
    """Mix as XXH64 does in its last step."""
    x = (x ^ x >> 33) * P64_2 & M64
    x = (x ^ x >> 29) * P64_3 & M64
    return x ^ x >> 32


def _mix(data: Data, at: int, offset: int, seed: int) -> int:
    """Mix 16 bytes with those of the secret at `offset`."""
    low, high = _TWO(data, at)
    first, second = _TWO(SECRET, offset)
    return _folded((low ^ first + seed & M64) * (high ^ second - seed & M64))


def _tiny(data: Data, seed: int) -> int:
    """Return the 64 bits of at most 16 bytes."""
    size = len(data)
    if size > 8:
        first, second, third, fourth = _EIGHT(SECRET, 24)[:4]
        low = (first ^ second) + seed & M64 ^ _read(data, 0, 8)
        high = (third ^ fourth) - seed & M64 ^ _read(data, size - 8, 8)
        return _avalanche(size + _swapped(low, 8) + high + _folded(low * high) & M64)
    if size > 3:
        first, second = _TWO(SECRET, 8)
        value: int = (first ^ second) - (seed ^ _swapped(seed & M32, 4) << 32) & M64
        value ^= _read(data, size - 4, 4) | _read(data, 0, 4) << 32
        value ^= (value << 49 | value >> 15) & M64 ^ (value << 24 | value >> 40) & M64
        value = value * MX2 & M64
        value = (value ^ (value >> 35) + size) * MX2 & M64
        return value ^ value >> 28
    if size:
        combined = data[-1] | size << 8 | data[0] << 16 | data[size >> 1] << 24
        return _avalanche_64((_read(SECRET, 0, 4) ^ _read(SECRET, 4, 4)) + seed & M64 ^ combined)
    first, second = _TWO(SECRET, 56)
    return _avalanche_64(seed ^ first ^ second)


def _tiny_128(data: Data, seed: int) -> tuple[int, int]:
    """Return the low and the high half of the digest of at most 16 bytes."""
    size = len(data)
    if size > 8:
        first, second, third, fourth = _EIGHT(SECRET, 32)[:4]
        last = _read(data, size - 8, 8)
        product = ((first ^ second) - seed & M64 ^ _read(data, 0, 8) ^ last) * P64_1
        other = (third ^ fourth) + seed & M64 ^ last
        high = (product >> 64) + other + (other & M32) * (P32_2 - 1) & M64
        product = ((product + (size - 1 << 54) & M64) ^ _swapped(high, 8)) * P64_2
        return _avalanche(product & M64), _avalanche((product >> 64) + high * P64_2 & M64)
    if size > 3:
        first, second = _TWO(SECRET, 16)
        value = (first ^ second) + (seed ^ _swapped(seed & M32, 4) << 32) & M64
        product = (value ^ (_read(data, 0, 4) | _read(data, size - 4, 4) << 32)) * (P64_1 + (size << 2))
        high = (product >> 64) + (product << 1) & M64
        low = product & M64 ^ high >> 3
        low = (low ^ low >> 35) * MX2 & M64
        return low ^ low >> 28, _avalanche(high)
    if size:
        combined = data[-1] | size << 8 | data[0] << 16 | data[size >> 1] << 24
        turned = _swapped(combined, 4)
        turned = (turned << 13 | turned >> 19) & M32
        high = (_read(SECRET, 8, 4) ^ _read(SECRET, 12, 4)) - seed & M64 ^ turned
        return _tiny(data, seed), _avalanche_64(high)
    first, second, third, fourth = _EIGHT(SECRET, 64)[:4]
    return _avalanche_64(seed ^ first ^ second), _avalanche_64(seed ^ third ^ fourth)


def _middling(data: Data, seed: int) -> int:
    """Return the 64 bits of 17 to 240 bytes."""
    size = len(data)
    total = size * P64_1
    if size <= 128:
        for at in range(0, (size - 1 >> 5) * 16 + 16, 16):
            total += _mix(data, at, at * 2, seed) + _mix(data, size - at - 16, at * 2 + 16, seed)
        return _avalanche(total & M64)
    total = _avalanche(total + sum(_mix(data, at, at, seed) for at in range(0, 128, 16)) & M64)
    total += sum(_mix(data, at, at - 125, seed) for at in range(128, size & ~15, 16))
    return _avalanche(total + _mix(data, size - 16, 119, seed) & M64)


def _mix_two(totals: tuple[int, int], data: Data, places: tuple[int, int], offset: int, seed: int) -> tuple[int, int]:
    """Mix 16 bytes from each of two places, each into its own total and plainly into the other one."""
    first, second = places
    return (
        totals[0] + _mix(data, first, offset, seed) & M64 ^ sum(_TWO(data, second)) & M64,
        totals[1] + _mix(data, second, offset + 16, seed) & M64 ^ sum(_TWO(data, first)) & M64,
    )


def _middling_128(data: Data, seed: int) -> tuple[int, int]:
    """Return the low and the high half of the digest of 17 to 240 bytes."""
    size = len(data)
    totals = size * P64_1 & M64, 0
    if size <= 128:
        for at in reversed(range(0, (size - 1 >> 5) * 16 + 16, 16)):
            totals = _mix_two(totals, data, (at, size - at - 16), at * 2, seed)
    else:
        for at in range(0, 128, 32):
            totals = _mix_two(totals, data, (at, at + 16), at, seed)
        totals = _avalanche(totals[0]), _avalanche(totals[1])
        for at in range(128, size & ~31, 32):
            totals = _mix_two(totals, data, (at, at + 16), at - 125, seed)
        totals = _mix_two(totals, data, (size - 16, size - 32), 103, -seed)
    high = totals[0] * P64_1 + totals[1] * P64_4 + (size - seed) * P64_2 & M64
    return _avalanche(totals[0] + totals[1] & M64), -_avalanche(high) & M64


def _slots(words: tuple[int, ...]) -> int:
    """Return eight words of 64 bits, one for each lane, in the slots of a long integer."""
    return sum(words[lane] << 128 * slot for slot, lane in enumerate(_ORDER))


_START = _slots((P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1))
_LOW_64, _LOW_17 = _slots((M64,) * 8), _slots(((1 << 17) - 1,) * 8)


class _Masks(NamedTuple):
    """What a number of blocks takes: its bytes, its even words, and the first half of each block."""

    size: int
    even: int
    half: int


def _masks(blocks: int) -> _Masks:
    every = sum(1 << 8 * BLOCK * block for block in range(blocks))
    return _Masks(BLOCK * blocks, sum(M64 << 128 * slot for slot in range(64)) * every, ((1 << 4096) - 1) * every)


_ONE, _MANY = _masks(1), _masks(BLOCKS)


class _Keys(NamedTuple):
    """What is made of a seed: the secret, its words, those against one block and many, and those that scramble."""

    secret: bytes
    words: tuple[int, ...]
    one: int
    many: int
    scramble: int


@lru_cache(maxsize=4)
def _keys(seed: int) -> _Keys:
    words = tuple(word + (-seed if i & 1 else seed) & M64 for i, word in enumerate(_ALL.unpack(SECRET)))
    secret = _ALL.pack(*words)
    block = b"".join(secret[at : at + STRIPE] for at in range(0, 128, 8))
    one, many = (int.from_bytes(block * count, "little") for count in (1, BLOCKS))
    return _Keys(secret, words, one, many, _slots(words[16:]))


def _round(lanes: int, data: Data, masks: _Masks, key: int, scramble: int) -> int:
    """Take whole blocks in, and return the lanes after them.

    What a block adds to the lanes does not depend on them, so it is found for all blocks at once.
    """
    size, even, half = masks
    plain = int.from_bytes(data, "little")
    # On either byte order the halves of a word stand beside each other, and the products come out as they go in.
    halves = iter(array("I", (plain ^ key).to_bytes(size, sys.byteorder)))
    products = int.from_bytes(array("Q", [*map(mul, halves, halves)]), sys.byteorder)
    evens = (products & even) + (plain >> 64 & even)
    odds = (products >> 64 & even) + (plain & even)
    # The sixteen stripes of a block on top of each other; what comes down from the next block stays above them.
    evens += evens >> 4096
    odds += odds >> 4096
    sums = evens & half | (odds & half) << 4096
    sums += sums >> 2048
    sums += sums >> 1024
    sums += sums >> 512
    added = sums.to_bytes(size + 8, "little")
    for at in range(0, size, BLOCK):
        lanes = lanes + int.from_bytes(added[at : at + 64] + added[at + 512 : at + 576], "little") & _LOW_64
        lanes = (lanes ^ lanes >> 47 & _LOW_17 ^ scramble) * P32_1
    return lanes


class Xxh3:
    """A digest of bytes that come in pieces.

    Arguments: `data`, the first piece; `seed`, of which 64 bits count. Offers what the hashers of `hashlib` do.
    """

    def __init__(self, data: Data = b"", seed: int = 0):
        self._seed = seed & M64
        self._size = 0
        self._lanes = _START
        self._held = bytearray()  # at most a block that is not taken in, never nothing once something came
        self._before = b""  # the end of what was taken in
        self.update(data)

    def update(self, data: Data, /) -> None:
        """Go on with these bytes."""
        view = memoryview(data).cast("B")
        self._size += len(view)
        missing = BLOCK - len(self._held)
        if len(view) > missing:
            self._held += view[:missing]
            self._take(self._held)
            whole = (len(view) - missing - 1) // BLOCK * BLOCK + missing
            if whole > missing:
                self._take(view[missing:whole])
            view = view[whole:]
            self._held = bytearray()
        self._held += view

    def _take(self, data: bytearray | memoryview) -> None:
        keys = _keys(self._seed)
        at, lanes = 0, self._lanes
        for masks, key in ((_MANY, keys.many), (_ONE, keys.one)):
            size = masks.size
            while at + size <= len(data):
                lanes = _round(lanes, data[at : at + size], masks, key, keys.scramble)
                at += size
        self._lanes = lanes
        self._before = bytes(data[-STRIPE:])

    def _merged(self) -> list[int]:
        """Return the lanes after all that is held."""
        keys = _keys(self._seed)
        lanes = [0] * 8
        for slot, lane in enumerate(_ORDER):
            lanes[lane] = self._lanes >> 128 * slot & M64
        held = bytes(self._held)
        stripes = [(_EIGHT(held, n * STRIPE), keys.words[n : n + 8]) for n in range((len(held) - 1) // STRIPE)]
        last = (self._before + held)[-STRIPE:]
        for stripe, secret in [*stripes, (_EIGHT(last), _EIGHT(keys.secret, 121))]:
            for lane, word, key in zip(range(8), stripe, secret, strict=True):
                mixed = word ^ key
                lanes[lane ^ 1] += word
                lanes[lane] += (mixed & M32) * (mixed >> 32)
        return lanes

    def _final(self, lanes: list[int], start: int, offset: int) -> int:
        mixed = [lane & M64 ^ key for lane, key in zip(lanes, _EIGHT(_keys(self._seed).secret, offset), strict=True)]
        return _avalanche(start + sum(map(_folded, map(mul, mixed[::2], mixed[1::2]))) & M64)

    def low(self) -> int:
        """Return the 64 bits of XXH3-64."""
        if self._size > SHORT:
            return self._final(self._merged(), self._size * P64_1, 11)
        return (_tiny if self._size <= 16 else _middling)(self._held, self._seed)

    def halves(self) -> tuple[int, int]:
        """Return the low and the high half of XXH3-128."""
        if self._size > SHORT:
            lanes = self._merged()
            low, high = self._size * P64_1, ~(self._size * P64_2)
            return self._final(lanes, low, 11), self._final(lanes, high, 117)
        return (_tiny_128 if self._size <= 16 else _middling_128)(self._held, self._seed)

    def hexdigest(self) -> str:
        """Return XXH3-128 in hexadecimal, the high half first."""
        low, high = self.halves()
        return f"{high:016x}{low:016x}"

    def copy(self) -> Xxh3:
        """Return another one that goes on from here."""
        made = Xxh3(seed=self._seed)
        made._size, made._lanes, made._before = self._size, self._lanes, self._before
        made._held += self._held
        return made


def xxh3_128_hexdigest(data: Data, seed: int = 0) -> str:
    """Return XXH3-128 of some bytes in hexadecimal."""
    return Xxh3(data, seed).hexdigest()


def xxh3_64_intdigest(data: Data, seed: int = 0) -> int:
    """Return XXH3-64 of some bytes."""
    return Xxh3(data, seed).low()

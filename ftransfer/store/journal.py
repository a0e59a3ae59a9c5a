"""The journal of one transfer as bytes: a description, then records of fixed size. Does no I/O.

A record stands for a grain whose bytes were written and whose hash matched; it is appended after them. Records that are
torn, zeroed or of another transfer fail their own check and are skipped wherever they stand, so that any prefix, and
any damage a power cut can do, only makes bytes missing, never wrong: what counts is proven by reading back.
"""

from __future__ import annotations

import bisect
import json
import re
import struct
from typing import NamedTuple

from ftransfer import paths
from ftransfer.store.base import Grain
from ftransfer.xxh import xxh3_64_intdigest

MAGIC = b"ftjrnl1\n"
_HEAD = struct.Struct("!8sIQ")  # magic, length of the JSON, its check
_RECORD = struct.Struct("!QQ16s")  # offset, length, XXH3-128
_CHECK = struct.Struct("!Q")
RECORD_SIZE = _RECORD.size + _CHECK.size
MAX_HEAD = 32 << 10
_STAGED = re.compile(r"\.ftransfer-[0-9a-f]{16}", re.ASCII)


class Head(NamedTuple):
    """What the journal belongs to; `staged` is the reserved name in the target's folder."""

    path: str
    staged: str
    size: int | None
    fingerprint: str | None
    salt: int
    owner: str = ""


def encode_head(head: Head) -> bytes:
    """Return the bytes that a journal begins with; one of nobody is as it was before there were owners."""
    fields = head._asdict()
    if not head.owner:
        del fields["owner"]
    text = json.dumps(fields, ensure_ascii=True).encode()
    return _HEAD.pack(MAGIC, len(text), xxh3_64_intdigest(text)) + text


def encode_record(grain: Grain, salt: int) -> bytes:
    """Return the bytes of one record; the salt of the transfer goes into its check."""
    record = _RECORD.pack(grain.offset, grain.length, bytes.fromhex(grain.hash))
    return record + _CHECK.pack(xxh3_64_intdigest(record, salt))


def decode_head(data: bytes) -> tuple[Head, int] | None:
    """Return the head and where the records begin, or None if the head is torn."""
    if len(data) < _HEAD.size:
        return None
    magic, length, check = _HEAD.unpack_from(data)
    text = data[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or len(text) != length or xxh3_64_intdigest(text) != check:
        return None
    head = _checked(text)
    return None if head is None else (head, _HEAD.size + length)


def _checked(text: bytes) -> Head | None:
    """Return the head that the text spells; whoever wrote it, it names nothing but a staged file beside its target."""
    try:
        fields = json.loads(text)
        head = Head(**fields)
        paths.check(head.path)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    is_size = head.size is None or (type(head.size) is int and head.size >= 0)
    is_fingerprint = head.fingerprint is None or type(head.fingerprint) is str
    is_staged = type(head.staged) is str and _STAGED.fullmatch(head.staged) is not None
    is_salt = type(head.salt) is int and 0 <= head.salt < 1 << 64
    is_owner = type(head.owner) is str
    return head if is_size and is_fingerprint and is_staged and is_salt and is_owner else None


def decode_records(data: bytes, salt: int, limit: int) -> dict[int, Grain]:
    """Return the grains that valid records stand for, by offset, none reaching beyond `limit` bytes.

    A later record takes the place of earlier ones that it covers whole; one that overlaps another in part is skipped.
    """
    latest: dict[int, Grain] = {}
    for at in range(0, len(data) - RECORD_SIZE + 1, RECORD_SIZE):
        record = data[at : at + _RECORD.size]
        (check,) = _CHECK.unpack_from(data, at + _RECORD.size)
        if check != xxh3_64_intdigest(record, salt):
            continue
        offset, length, raw = _RECORD.unpack(record)
        if length and offset + length <= limit:
            latest.pop(offset, None)
            latest[offset] = Grain(offset, length, raw.hex())
    return _without_overlaps(latest)


def _without_overlaps(latest: dict[int, Grain]) -> dict[int, Grain]:
    """Keep the newest of grains that overlap; order of `latest` is age, oldest first."""
    kept: list[Grain] = []
    for grain in reversed(latest.values()):
        at = bisect.bisect(kept, grain)
        if (at == 0 or kept[at - 1].end <= grain.offset) and (at == len(kept) or grain.end <= kept[at].offset):
            kept.insert(at, grain)
    return {grain.offset: grain for grain in kept}

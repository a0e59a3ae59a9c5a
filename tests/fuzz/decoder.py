"""Any bytes give a message that encodes to the same fields again, or one ProtocolError or RefusedName: nothing else.

Nothing else is raised, in bounded time and memory, and what is raised can be told to the peer. The same for the journal
of a store: any bytes give a head and grains that encode to the same again, or nothing.

`python tests/fuzz/decoder.py [frames|journal] -max_total_time=20 CORPUS` runs a target under atheris, which is imported
there only; an empty CORPUS is filled from the vectors first. tests/test_fuzz.py drives the same targets by hypothesis.
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from ftransfer import paths, wire
from ftransfer.errors import FtransferError, ProtocolError
from ftransfer.store import journal
from ftransfer.store.base import Grain

VECTORS = Path(__file__).parent.parent / "vectors"
MOST_SECONDS = 1.0
"""Processor time that one header may take, however it is made."""
RECORD = journal.RECORD_SIZE - 8
"""Bytes of a record before its check."""
LIMIT = 1 << 40
"""Bytes that the staged file of a fuzzed journal is said to have."""


# Frames.


def frames(data: bytes) -> None:
    """Read bytes as a stream of frames, and as one header; fail if the invariant does not hold."""
    stream(data)
    header(data)


def stream(data: bytes) -> list[wire.Message]:
    """Return the messages at the start of a stream, up to what is refused or cut."""
    found: list[wire.Message] = []
    at = 0
    while at + wire.LENGTH.size <= len(data):
        try:
            length = wire.parse_length(memoryview(data)[at : at + wire.LENGTH.size])
        except ProtocolError as exc:
            tell(exc)
            break
        assert 2 <= length <= wire.MAX_HEADER
        at += wire.LENGTH.size
        made = header(data[at : at + length]) if at + length <= len(data) else None
        if not isinstance(made, wire.Message):
            break
        found.append(made)
        at += length + getattr(made, "body", 0)
    return found


def header(raw: bytes) -> wire.Message | FtransferError:
    """Return the message in a header, or what it was refused with; fail if the invariant does not hold."""
    started = time.process_time()
    try:
        made = wire.parse(bytearray(raw))
    except (ProtocolError, wire.RefusedName) as exc:
        tell(exc)
        return exc
    finally:
        assert len(raw) > wire.MAX_HEADER or time.process_time() - started < MOST_SECONDS
    frame = wire.encode(made)
    assert len(frame) - wire.LENGTH.size <= max(len(raw), wire.MAX_HEADER)
    again = wire.parse(frame[wire.LENGTH.size :])
    assert type(again) is type(made)
    assert again == made
    assert plain(again) == plain(made)
    assert wire.encode(again) == frame
    assert 0 <= getattr(made, "body", 0) <= max(wire.MAX_BLOCK, wire.MAX_PACK)
    assert made.type in wire.BY_TYPE
    return made


def plain(message: wire.Message) -> str:
    """Return the fields of a message as JSON says them, where 1, 1.0 and true differ."""
    return json.dumps(message.__dict__, sort_keys=True)


def tell(exc: FtransferError) -> None:
    """Fail unless an error can be sent as a message, and read again."""
    t: int | None = getattr(exc, "t", None)
    if isinstance(exc, wire.RefusedName):
        assert t is not None
        assert exc.kind in wire.BY_TYPE
    message = wire.error_message(exc, t)
    assert wire.parse(wire.encode(message)[wire.LENGTH.size :]) == message
    assert message.code in ("bad-frame", "unknown-message", "bad-path")


# The journal.


def journals(data: bytes) -> None:
    """Read bytes as a journal, then as a head and as records with right checks; fail if something else comes out."""
    read_journal(data)
    read_journal(checked_head(data))
    salt = 7
    records = [data[at : at + RECORD] for at in range(0, len(data) - RECORD + 1, RECORD)]
    whole = b"".join(record + struct.pack("!Q", xxh3_64_intdigest(record, salt)) for record in records)
    read_records(whole, salt, LIMIT)


def checked_head(text: bytes) -> bytes:
    """Return a head that says this text, and whose length and check are right."""
    return struct.pack("!8sIQ", journal.MAGIC, len(text), xxh3_64_intdigest(text)) + text


def read_journal(data: bytes) -> None:
    """Read a journal as the local store does."""
    decoded = journal.decode_head(data)
    if decoded is None:
        return
    head, start = decoded
    assert 0 < start <= len(data)
    assert paths.check(head.path) == head.path
    assert "/" not in head.staged
    assert paths.is_reserved(head.staged)
    assert head.size is None or head.size >= 0
    encoded = journal.encode_head(head)
    assert journal.decode_head(encoded) == (head, len(encoded))
    read_records(data[start:], head.salt, LIMIT if head.size is None else head.size)


def read_records(data: bytes, salt: int, limit: int) -> None:
    """Read records; fail unless what they stand for is in the file, does not overlap, and encodes to the same again."""
    grains = journal.decode_records(data, salt, limit)
    assert all(offset == grain.offset for offset, grain in grains.items())
    assert all(0 <= grain.offset < grain.end <= limit for grain in grains.values())
    assert all(one.end <= other.offset for one, other in itertools.pairwise(sorted(grains.values())))
    assert len(grains) <= len(data) // journal.RECORD_SIZE
    again = b"".join(journal.encode_record(grain, salt) for grain in grains.values())
    assert journal.decode_records(again, salt, limit) == grains


# The corpus, and atheris.


def vectors() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each vector."""
    for path in sorted(VECTORS.glob("*.json")):
        for vector in json.loads(path.read_text(encoding="utf-8"))["vectors"]:
            yield f"{path.stem}: {vector['name']}", bytes.fromhex(vector["bytes"])


def frame_seeds() -> Iterator[bytes]:
    """Yield each vector as a stream, and its header alone."""
    for _, data in vectors():
        yield data
        yield data[wire.LENGTH.size :]


def journal_seeds() -> Iterator[bytes]:
    """Yield journals, and the texts and records that they are made of."""
    head = journal.Head("a/b c", ".ftransfer-" + "0" * 16, 1 << 20, "1048576-1", 7)
    grains = [Grain(0, 65536, "0" * 32), Grain(65536, 10, "f" * 32), Grain(30, 65536, "1" * 32)]
    records = [journal.encode_record(grain, head.salt) for grain in grains]
    yield journal.encode_head(head)
    yield journal.encode_head(head) + b"".join(records)
    yield journal.encode_head(head)[struct.calcsize("!8sIQ") :]
    yield b"".join(record[:RECORD] for record in records)
    yield json.dumps(head._asdict() | {"size": None, "fingerprint": None, "path": "../x"}).encode()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "frames": (frames, frame_seeds),
    "journal": (journals, journal_seeds),
}
"""Name to the function that has to bear any bytes, and the first bytes that it is given."""


def write_corpus(folder: Path, target: str = "frames") -> int:
    """Write the first inputs of a target to a folder, one file each; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for seed in TARGETS[target][1]():
        (folder / f"seed-{count:04}").write_bytes(seed)
        count += 1
    return count


def main(words: list[str]) -> None:
    """Run a target under atheris until it fails or the time is over; it ends the process."""
    import gc
    from types import FunctionType

    import atheris

    name = words.pop(0) if words and words[0] in TARGETS else "frames"
    folders = [Path(word) for word in words if not word.startswith("-")]
    if folders and not (folders[0].is_dir() and any(folders[0].iterdir())):
        write_corpus(folders[0], name)
    for made in gc.get_objects():
        if isinstance(made, FunctionType) and (made.__module__ or "").startswith("ftransfer"):
            atheris.instrument_func(made)
    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=1024", *words], _caller(TARGETS[name][0]))
    atheris.Fuzz()


def _caller(target: Callable[[bytes], None]) -> Callable[[Any], None]:
    return lambda data: target(bytes(data))


if __name__ == "__main__":
    main(sys.argv[1:])

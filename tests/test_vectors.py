"""The vectors that other languages run too: bytes in, message or error code out."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftransfer import wire
from ftransfer.errors import ConnectionLost, FtransferError

FOLDER = Path(__file__).parent / "vectors"
FILES = sorted(FOLDER.glob("*.json"))
VECTORS = [
    pytest.param(vector, id=f"{path.stem}: {vector['name']}")
    for path in FILES
    for vector in json.loads(path.read_text(encoding="utf-8"))["vectors"]
]


def read(data: bytes) -> tuple[wire.Message, bytes]:
    """Return the message at the start of some bytes, and what follows it; bytes that end too early are a lost peer."""
    if len(data) < wire.LENGTH.size:
        raise ConnectionLost("cut in the length")
    length = wire.parse_length(data[: wire.LENGTH.size])
    header = data[wire.LENGTH.size : wire.LENGTH.size + length]
    if len(header) < length:
        raise ConnectionLost("cut in the header")
    return wire.parse(header), data[wire.LENGTH.size + length :]


def plain(message: wire.Message) -> dict[str, Any]:
    """Return a message as JSON would hold it, with every field."""
    made: dict[str, Any] = json.loads(json.dumps({"type": message.type} | message.__dict__))
    return made


@pytest.mark.parametrize("vector", VECTORS)
def test_the_vector_holds(vector: dict[str, Any]) -> None:
    """What comes out is what the vector says, and a message survives our own encoder.

    A field that is younger than the vector is at its default.
    """
    data = bytes.fromhex(vector["bytes"])
    if "error" in vector:
        with pytest.raises(FtransferError) as caught:
            read(data)
        assert caught.value.code == vector["error"]
        assert getattr(caught.value, "t", None) == vector.get("t")
        return
    message, rest = read(data)
    made = plain(message)
    assert {name: made[name] for name in vector["message"]} == vector["message"]
    later = {name: message.fields[name].default for name in made.keys() - vector["message"].keys()}
    assert {name: getattr(message, name) for name in later} == later
    assert len(rest) == vector["message"].get("body", 0)
    assert read(wire.encode(message))[0] == wire.parse(data[4 : len(data) - len(rest)])


def test_the_vectors_are_whole() -> None:
    """Every message type has a valid vector, names are unique, and each says one outcome."""
    assert len(VECTORS) >= 50
    types = set()
    for path in FILES:
        vectors = json.loads(path.read_text(encoding="utf-8"))["vectors"]
        assert len({vector["name"] for vector in vectors}) == len(vectors)
        for vector in vectors:
            assert ("message" in vector) != ("error" in vector)
            types.add(vector.get("message", {}).get("type"))
    assert types - {None} == set(wire.BY_TYPE)

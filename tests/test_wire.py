"""The wire format: every message survives the way there and back, and no bytes do more than raise our errors."""

import json
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftransfer import paths, wire
from ftransfer.errors import BadPath, FrameError, FtransferError, ProtocolError, UnknownMessage
from ftransfer.wire import rules

ints = st.integers(0, wire.MAX_INT)
numbers = st.integers(1, (1 << 31) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
tokens = st.text("0123456789abcdef", min_size=32, max_size=32)
hashes = tokens | st.text("0123456789abcdef", min_size=64, max_size=64)
booleans = st.booleans()
times = st.integers(-wire.MAX_INT, wire.MAX_INT)
modes = st.integers(0, 0o7777)
fingerprints = st.text([chr(c) for c in range(0x21, 0x7F)], min_size=1, max_size=128)
codes = st.from_regex(r"[a-z][a-z\-]{0,31}", fullmatch=True)


def _is_path(text: str) -> bool:
    try:
        paths.check(text)
    except BadPath:
        return False
    return True


good_paths = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
).map("/".join).filter(_is_path)  # fmt: skip
ranges = st.lists(
    st.tuples(st.integers(0, 1 << 62), st.none() | st.integers(1, 1 << 62)).map(list), max_size=6
)  # fmt: skip
rows = st.lists(st.tuples(texts, st.sampled_from(rules.KINDS), ints, times, modes).map(list), max_size=4)
staged = st.lists(st.tuples(texts, st.none() | ints, ints, times).map(list), max_size=4)
words = st.lists(texts, max_size=4)

# A field's values, by "Message.field" where the name alone is not enough.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "t": numbers,
    "Error.t": st.none() | numbers,
    "path": good_paths,
    "List.path": good_paths | st.just(""),
    "Stat.path": good_paths | st.just(""),
    "Partials.path": good_paths | st.just(""),
    "target": good_paths,
    "size": ints,
    "Put.size": st.none() | ints,
    "Receipt.size": st.none() | ints,
    "done": ints,
    "offset": ints,
    "inherited": ints,
    "total": st.none() | ints,
    "versions": st.lists(st.integers(1, 65536), max_size=16),
    "version": st.integers(1, 65536),
    "software": texts,
    "features": words,
    "facts": words,
    "former": st.none() | tokens,
    "session": tokens,
    "transfer": st.none() | tokens,
    "read_only": booleans,
    "durable": booleans,
    "resume": booleans,
    "wait": booleans,
    "more": booleans,
    "ok": booleans,
    "recursive": booleans,
    "parents": booleans,
    "clear": booleans,
    "max_header": st.integers(1024, 1 << 24),
    "max_block": st.integers(wire.MIN_BLOCK, wire.MAX_BLOCK),
    "window": st.integers(1, 1024),
    "fingerprint": st.none() | fingerprints,
    "mtime_ns": st.none() | times,
    "mode": st.none() | modes,
    "algorithm": st.sampled_from(["xxh128", "sha256"]),
    "Checksum.algorithm": st.sampled_from(["xxh128", "sha256", "md5"]),
    "compare": st.sampled_from(["quick", "none"]),
    "if_exists": st.sampled_from(["replace", "newer", "skip", "rename", "fail"]),
    "result": st.sampled_from(["stored", "same", "skipped"]),
    "ranges": ranges,
    "rows": rows,
    "Staged.rows": staged,
    "hash": hashes,
    "Block.hash": tokens,
    "Receipt.hash": st.none() | hashes,
    "body": st.integers(1, wire.MAX_BLOCK),
    "length": st.integers(1, wire.MAX_BLOCK),
    "phase": codes,
    "code": codes,
    "message": texts,
    "hint": texts,
}
CLASSES = sorted(wire.BY_TYPE.values(), key=lambda cls: cls.type)


def messages_of(cls: type[wire.Message]) -> st.SearchStrategy[wire.Message]:
    """Return every valid message of a class, with and without its optional fields."""
    values = {name: VALUES.get(f"{cls.__name__}.{name}", VALUES.get(name)) for name in cls.fields}
    required = {name: values[name] for name, (_, default) in cls.fields.items() if default is rules._REQUIRED}
    optional = {name: values[name] for name in values if name not in required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda made: cls(**made))


def header_of(message: wire.Message) -> dict[str, Any]:
    """Return the JSON object that a message is sent as."""
    frame = wire.encode(message)
    assert wire.parse_length(frame[:4]) == len(frame) - 4
    made: dict[str, Any] = json.loads(frame[4:])
    return made


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.type)
@given(st.data())
def test_every_message_survives_the_way(cls: type[wire.Message], data: st.DataObject) -> None:
    """What is sent is what is parsed, field by field, and unknown fields do not matter."""
    message = data.draw(messages_of(cls))
    frame = wire.encode(message)
    again = wire.parse(frame[4:])
    assert again == message
    assert again.__dict__ == message.__dict__
    assert wire.encode(again) == frame
    more = header_of(message) | {"from_the_future": [1, {"a": None}], "self": 1, "cls": 2, "values": 3}
    assert wire.parse(json.dumps(more).encode()) == message


WRONG: list[Any] = [None, True, False, -1, 1.0, 1.5, "", "x", [], {}, [[]], 1 << 63, 1 << 64, "\ud800", [None], [["x"]]]


def _holds(cls: type[wire.Message], name: str, value: Any) -> bool:
    """Tell whether a field takes a value, by the sort of values that it is generated from."""
    rule = cls.fields[name].rule
    return bool(rule.holds(value)) and (rule not in (rules.PATH, rules.FOLDER) or value == "" or _is_path(value))


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in CLASSES for name in cls.fields])
@given(st.data())
@settings(max_examples=5)
def test_a_wrong_field_is_named(cls: type[wire.Message], name: str, data: st.DataObject) -> None:
    """Each field refuses what is not of its kind; `true` is no number, `1.0` is no integer."""
    header = header_of(data.draw(messages_of(cls)))
    for value in WRONG:
        if _holds(cls, name, value):
            continue
        with pytest.raises((FrameError, wire.RefusedName)) as caught:
            wire.parse(json.dumps(header | {name: value}).encode())
        if isinstance(caught.value, FrameError):
            assert repr(name) in str(caught.value)


@pytest.mark.parametrize("field", ["t", "size", "offset", "body", "mode", "versions"])
def test_true_is_no_number(field: str) -> None:
    """Python says that True is 1; the wire does not."""
    for cls in CLASSES:
        if field in cls.fields:
            value: Any = [True] if field == "versions" else True
            assert not cls.fields[field].rule.holds(value)


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in CLASSES for name in cls.fields])
@given(st.data())
@settings(max_examples=3)
def test_a_missing_field_is_named_or_has_a_default(cls: type[wire.Message], name: str, data: st.DataObject) -> None:
    """Without a default a field has to be there."""
    header = header_of(data.draw(messages_of(cls)))
    header.pop(name, None)
    if cls.fields[name].default is not rules._REQUIRED:
        assert cls.fields[name].default == getattr(wire.parse(json.dumps(header).encode()), name)
        return
    with pytest.raises(FrameError, match=f"{name!r} is missing"):
        wire.parse(json.dumps(header).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200))
@example(b"\xff\xfe{}")
@example(b"{" * 60_000)
@example(b"[" * 60_000)
@example(b'{"type":' * 8_000)
@example(b'{"a":' * 900 + b"1" + b"}" * 900)
@example(b'{"type":' + b"[" * 960 + b"]" * 960 + b"}")
@example(b'{"type":"ping","t":' + b"9" * 60_000 + b"}")
@example(b'{"type":"ping","t":1e' + b"9" * 60_000 + b"}")
@example(b'{"type":"ping","t":1.' + b"9" * 60_000 + b"}")
@example(b'{"type":"ping","t":-' + b"9" * 5_000 + b"}")
def test_arbitrary_bytes_raise_nothing_else(raw: bytes) -> None:
    """A message, a ProtocolError or a BadPath: nothing else comes out of `parse`."""
    try:
        wire.parse(bytearray(raw))
    except (ProtocolError, BadPath):
        pass


@given(st.sampled_from(CLASSES).flatmap(messages_of), st.data())
def test_arbitrary_fields_raise_nothing_else(message: wire.Message, data: st.DataObject) -> None:
    """The same for a real message in which fields were replaced by anything JSON can say."""
    header = header_of(message)
    changed = data.draw(st.dictionaries(st.sampled_from([*header, "self", "body", "t"]), json_values, max_size=3))
    try:
        made = wire.parse(json.dumps(header | changed).encode("utf-8", "surrogatepass"))
    except (ProtocolError, BadPath):
        return
    assert wire.parse(wire.encode(made)[4:]) == made


@given(st.sampled_from(CLASSES).flatmap(messages_of), st.data())
def test_flipped_bits_raise_nothing_else(message: wire.Message, data: st.DataObject) -> None:
    """The same for a frame that was damaged on the way."""
    raw = bytearray(wire.encode(message)[4:])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        wire.parse(raw)
    except (ProtocolError, BadPath):
        pass


@given(st.integers(0, (1 << 32) - 1))
@example(0)
@example(1)
@example(2)
@example(wire.MAX_HEADER)
@example(wire.MAX_HEADER + 1)
def test_only_lengths_within_the_limit_pass(length: int) -> None:
    """Nothing is allocated for a header that is too long."""
    prefix = struct.pack("!I", length)
    if 2 <= length <= wire.MAX_HEADER:
        assert wire.parse_length(prefix) == length
        return
    with pytest.raises(FrameError):
        wire.parse_length(prefix)


def test_messages_cannot_be_changed() -> None:
    """A message that was checked stays what it was."""
    message = wire.Ping(t=1)
    with pytest.raises(AttributeError):
        message.t = 2  # type: ignore[misc]
    with pytest.raises(FrameError):
        wire.Ping(t=0)
    assert message == wire.Ping(t=1)
    assert message != wire.Done(t=1)
    assert len({message, wire.Ping(t=1), wire.Ping(t=2)}) == 2
    assert repr(message) == "Ping(t=1)"


def test_a_refused_name_keeps_its_number() -> None:
    """A request whose only fault is a name is refused by its number; with another fault it is no message at all."""
    with pytest.raises(wire.RefusedName) as caught:
        wire.parse(b'{"type":"mkdir","t":7,"path":"../x"}')
    assert (caught.value.t, caught.value.code) == (7, "bad-path")
    with pytest.raises(FrameError):
        wire.parse(b'{"type":"mkdir","t":7,"path":"../x","parents":1}')


def test_an_unknown_type_is_shown_cut_and_escaped() -> None:
    """The error names the type, whatever it holds."""
    with pytest.raises(UnknownMessage) as caught:
        wire.parse(json.dumps({"type": "\x1b[2J" + "x" * 1000}).encode())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 100


@given(st.text(max_size=2000), texts | st.none(), st.integers(1, 100) | st.none())
def test_every_error_fits_into_a_message(text: str, path: str | None, t: int | None) -> None:
    """Reporting an error never fails."""
    message = wire.error_message(FtransferError(text, path=path, hint=None), t)
    assert wire.parse(wire.encode(message)[4:]) == message


def test_the_largest_answers_fit_into_a_header() -> None:
    """The largest want, error and put stay below the limit, answers to blocks below 256 bytes."""
    pair = [1 << 62, (1 << 62) - 1]
    assert len(wire.encode(wire.Want(t=1, ranges=[pair] * wire.MAX_RANGES))) < wire.MAX_HEADER
    assert len(wire.encode(wire.Error(t=1, code="a", message="\x01" * 1000, hint="\x01" * 1000))) < wire.MAX_HEADER
    assert len(wire.encode(wire.Put(t=1, path="/".join(["\x01" * 250] * 16), size=1))) < wire.MAX_HEADER
    assert len(wire.encode(wire.Stored(t=(1 << 31) - 1, offset=wire.MAX_INT, ok=False))) <= 256

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
names = st.lists(good_paths, max_size=4)
folders = good_paths | st.just("")


def rows_of(*values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return lists of rows with these values."""
    return st.lists(st.tuples(*values).map(list), max_size=4)


# A field's values, by "Message.field" where the name alone is not enough.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "token": st.none() | fingerprints,
    "user": st.none() | st.from_regex(r"[a-z0-9][a-z0-9_.\-]{0,31}", fullmatch=True),
    "can": words,
    "t": numbers,
    "Error.t": st.none() | numbers,
    "path": good_paths,
    "List.path": folders,
    "Stat.path": folders,
    "Partials.path": folders,
    "Tree.path": folders,
    "Fetch.path": folders,
    "Stats.path": folders,
    "Checksums.path": folders,
    "names": names,
    "gone": names,
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
    "blocks": st.sampled_from(["xxh128", "blake2b"]),
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
    "Checksums.algorithm": st.sampled_from(["xxh128", "sha256", "md5"]),
    "compare": st.sampled_from(["quick", "none"]),
    "if_exists": st.sampled_from(["replace", "newer", "skip", "rename", "fail"]),
    "Tree.if_exists": st.sampled_from(["replace", "newer", "skip", "fail"]),
    "links": st.sampled_from(["copy", "follow"]),
    "result": st.sampled_from(["stored", "same", "skipped"]),
    "ranges": ranges,
    "rows": rows,
    "Staged.rows": staged,
    "Found.rows": st.lists(
        st.none() | st.tuples(st.sampled_from(rules.KINDS), ints, times, modes).map(list), max_size=4
    ),
    "Digests.rows": st.lists((st.tuples(ints, hashes) | st.tuples(codes, texts)).map(list), max_size=4),
    "failed": rows_of(texts, codes, texts),
    "exists": booleans,
    "free_bytes": st.none() | ints,
    "free_files": st.none() | ints,
    "clock_ns": st.integers(1, 10**10),
    "folds": st.lists(st.sampled_from(["case", "form"]), max_size=2),
    "files": rows_of(good_paths, st.integers(0, wire.MAX_PACK), hashes, times, modes),
    "Pack.links": rows_of(good_paths, texts, times),
    "folders": rows_of(folders, times, modes),
    "stamps": rows_of(good_paths, times, modes),
    "Pack.failed": rows_of(good_paths, codes, texts),
    "now": booleans,
    "Pack.body": st.integers(0, wire.MAX_PACK),
    "packs": st.integers(0, 1024),
    "Receipts.failed": rows_of(ints, ints, ints),
    "why": rows_of(codes, texts),
    "most": st.integers(wire.MIN_BLOCK, wire.MAX_PACK),
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


def facts(message: wire.Message) -> dict[str, Any]:
    """Return the fields of a message as JSON has them: an empty list, which is left out, is like its default."""
    made: dict[str, Any] = json.loads(json.dumps(message.__dict__))
    return made


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.type)
@given(st.data())
def test_every_message_survives_the_way(cls: type[wire.Message], data: st.DataObject) -> None:
    """What is sent is what is parsed, field by field, and unknown fields do not matter."""
    message = data.draw(messages_of(cls))
    frame = wire.encode(message)
    again = wire.parse(frame[4:])
    assert type(again) is type(message)
    assert facts(again) == facts(message)
    assert wire.encode(again) == frame
    more = header_of(message) | {"from_the_future": [1, {"a": None}], "self": 1, "cls": 2, "values": 3}
    assert wire.parse(json.dumps(more).encode()) == again


WRONG: list[Any] = [None, True, False, -1, 1.0, 1.5, "", "x", [], {}, [[]], 1 << 63, 1 << 64, "\ud800", [None], [["x"]]]


def _holds(cls: type[wire.Message], name: str, value: Any) -> bool:
    """Tell whether a field takes a value, by the sort of values that it is generated from."""
    rule = cls.fields[name].rule
    return bool(rule.holds(value)) and (rule.names is None or all(_is_path(path) for path in rule.names(value) if path))


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
    assert facts(wire.parse(wire.encode(made)[4:])) == facts(made)


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


BAD_NAMES = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a\0b",
    ".ftransfer",
    "a/.FTRANSFER-x",
    "\ud800",
    "x" * 256,
]
NAMED: dict[str, list[tuple[str, Any]]] = {
    "tree": [("path", "{}")],
    "fetch": [("path", "{}"), ("names", ["good", "{}"])],
    "stats": [("path", "{}"), ("names", ["good", "{}"])],
    "checksums": [("path", "{}"), ("names", ["good", "{}"])],
    "pack": [
        ("files", [["good", 0, "0" * 32, 0, 0], ["{}", 0, "0" * 32, 0, 0]]),
        ("links", [["good", "x", 0], ["{}", "x", 0]]),
        ("folders", [["", 0, 0], ["{}", 0, 0]]),
        ("stamps", [["good", 0, 0], ["{}", 0, 0]]),
        ("gone", ["good", "{}"]),
        ("failed", [["good", "a", ""], ["{}", "a", ""]]),
    ],
}
REQUIRED: dict[str, dict[str, Any]] = {
    "fetch": {"path": "", "names": []},
    "stats": {"path": "", "names": []},
    "checksums": {"path": "", "names": []},
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize(("kind", "field", "value"), [(kind, *one) for kind, them in NAMED.items() for one in them])
def test_every_name_in_a_row_is_checked(kind: str, field: str, value: Any, name: str) -> None:
    """One of many names that may not be used refuses the message by its number, as a single one does."""
    text = json.dumps({"type": kind, "t": 7} | REQUIRED.get(kind, {}) | {field: value})
    raw = text.replace('"{}"', json.dumps(name)).encode()
    if name == "" and field in ("path", "folders"):
        wire.parse(raw)  # the served folder, the tree's own
        return
    with pytest.raises(wire.RefusedName) as caught:
        wire.parse(raw)
    assert (caught.value.t, caught.value.kind, caught.value.code) == (7, kind, "bad-path")


@pytest.mark.parametrize(
    ("kind", "field", "row", "most"),
    [
        ("pack", "files", ["a", 0, "0" * 32, 0, 0], wire.MAX_ROWS),
        ("pack", "links", ["a", "b", 0], wire.MAX_ROWS),
        ("pack", "folders", ["", 0, 0], wire.MAX_ROWS),
        ("pack", "stamps", ["a", 0, 0], wire.MAX_ROWS),
        ("pack", "gone", "a", wire.MAX_ROWS),
        ("pack", "failed", ["a", "b", ""], wire.MAX_ROWS),
        ("receipts", "failed", [0, 0, 0], wire.MAX_FAILED),
        ("receipts", "why", ["a", ""], 64),
        ("fetch", "names", "a", wire.MAX_ROWS),
        ("stats", "names", "a", wire.MAX_ROWS),
        ("checksums", "names", "a", wire.MAX_ROWS),
        ("found", "rows", None, wire.MAX_ROWS),
        ("digests", "rows", [0, "0" * 32], wire.MAX_ROWS),
        ("ready", "folds", "case", 2),
    ],
)
def test_no_page_has_more_rows_than_allowed(kind: str, field: str, row: Any, most: int) -> None:
    """So many, and not one more; a row that is too short, too long or no row is none."""
    base = (
        {"type": kind, "t": 1}
        | REQUIRED.get(kind, {})
        | {"receipts": {"packs": 1}, "ready": {"exists": True}}.get(kind, {})
    )
    made = wire.parse(json.dumps(base | {field: [row] * most}).encode())
    assert len(getattr(made, field)) == most
    bad: list[Any] = [[row] * (most + 1), {"0": row}, "a" * 4, 1, [1]]
    if isinstance(row, list):
        bad += [[row[:-1]], [[*row, 0]], [[]], [{}], ["abcde"[: len(row)]], [None]]
    for value in bad:
        with pytest.raises(FrameError, match=repr(field)):
            wire.parse(json.dumps(base | {field: value}).encode())


@pytest.mark.parametrize(
    "row",
    [
        [1, 0, "0" * 32, 0, 0],
        [None, 0, "0" * 32, 0, 0],
        ["a", -1, "0" * 32, 0, 0],
        ["a", wire.MAX_PACK + 1, "0" * 32, 0, 0],
        ["a", True, "0" * 32, 0, 0],
        ["a", 1.0, "0" * 32, 0, 0],
        ["a", "1", "0" * 32, 0, 0],
        ["a", None, "0" * 32, 0, 0],
        ["a", 0, "0" * 31, 0, 0],
        ["a", 0, "0" * 33, 0, 0],
        ["a", 0, "G" * 32, 0, 0],
        ["a", 0, "A" * 32, 0, 0],
        ["a", 0, "0" * 32 + "\n", 0, 0],
        ["a", 0, None, 0, 0],
        ["a", 0, "0" * 32, 1 << 63, 0],
        ["a", 0, "0" * 32, -(1 << 63), 0],
        ["a", 0, "0" * 32, False, 0],
        ["a", 0, "0" * 32, None, 0],
        ["a", 0, "0" * 32, 0, -1],
        ["a", 0, "0" * 32, 0, 0o10000],
        ["a", 0, "0" * 32, 0, True],
        ["a", 0, "0" * 32, 0, None],
    ],
    ids=str,
)
def test_the_row_of_a_packed_file_keeps_its_rules(row: list[Any]) -> None:
    """Written out for speed, and as strict as the rules of the fields; wherever the bad row stands."""
    good = ["a", wire.MAX_PACK, "0" * 64, -wire.MAX_INT, 0o7777]
    for files in ([row], [good, row], [row, good]):
        with pytest.raises(FrameError, match="files"):
            wire.parse(json.dumps({"type": "pack", "t": 1, "files": files}).encode())
    assert wire.parse(json.dumps({"type": "pack", "t": 1, "files": [good]}).encode())


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
    assert len(wire.encode(wire.Receipts(t=(1 << 31) - 1, packs=1024, durable=True))) <= 256
    found = ("folder", wire.MAX_INT, -wire.MAX_INT, 0o7777)
    assert len(wire.encode(wire.Found(t=1, rows=[found] * wire.MAX_ROWS))) < wire.MAX_HEADER

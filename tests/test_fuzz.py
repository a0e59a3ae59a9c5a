"""The decoders, the journal and the session under anything at all: the invariants of tests/fuzz, driven by hypothesis.

What is found here, or by a longer run under atheris, becomes a vector or a test of its own.
"""

import importlib.util
import itertools
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from fuzz import decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import FIELDS, make, opened

from ftransfer import session, wire
from ftransfer.errors import OutOfTurn
from ftransfer.session import CLIENT, SERVER, Session

SECONDS = 15
"""How long atheris looks for something."""
MOST_BYTES = 8 << 20
"""Memory that the parser may take for one header, of 64 KiB at most."""
FRAMES = [data for _, data in decoder.vectors()]
HEADERS = [data[wire.LENGTH.size :] for data in FRAMES]


# Frames.


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b"\0", b"\2", b"{}", b"[", b'"type":', b"9"])).map(b"".join))
def test_any_bytes_are_messages_or_one_refusal(data: bytes) -> None:
    """Bytes of no shape at all, as a stream and as a header."""
    decoder.frames(data)


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return a seed in which bytes were flipped, removed, repeated, put in, or taken from another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(1, 12)))
        what = draw(st.integers(0, 4))
        if what == 0 and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == 1:
            del data[at:end]
        elif what == 2:
            data[at:at] = data[at:end] * draw(st.integers(1, 4))
        elif what == 3:
            data[at:at] = draw(st.binary(max_size=6) | st.sampled_from(ODD).map(str.encode))
        else:
            other = draw(st.sampled_from(seeds))
            data[at:end] = other[at : at + draw(st.integers(0, 40))]
    return bytes(data)


# What JSON can say, or nearly, and a header should not: spelled out, because an encoder would not write it.
ODD = [
    "true",
    "null",
    "-0",
    "1.0",
    "1e0",
    "1E999",
    "-1e-999",
    "NaN",
    "-Infinity",
    "0x10",
    "01",
    "1_0",
    "9" * 21,
    "-" + "9" * 20,
    "9" * 5000,
    "1." + "9" * 5000,
    str(1 << 63),
    str((1 << 63) - 1),
    str(-(1 << 63)),
    '""',
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\u0000"',
    '"a/../b"',
    '"/a"',
    '".ftransfer"',
    '"\\u202e\\u0007"',
    '"' + "x" * 4097 + '"',
    "[]",
    "{}",
    "[[[]]]",
    "[" * 40 + "]" * 40,
    '{"a":' * 40 + "1" + "}" * 40,
    "[" * 5000,
    '{"a":1,"a":2}',
    "[null,true,0]",
    '[["a","file",1,1,1]]',
    "[[0,null]]",
]
KEYS = sorted(
    {name for cls in wire.BY_TYPE.values() for name in cls.fields} | {"type", "", "self", "__class__", "\\u0074"}
)


@st.composite
def odd_json(draw: st.DrawFn) -> bytes:
    """Return the text of an object: a type, its fields, and odd values in some of them; keys may stand there twice."""
    kind = draw(st.sampled_from([*sorted(wire.BY_TYPE), "teleport", "Put", ""]))
    message = make(kind) if kind in FIELDS else make("ping")
    said = wire.encode(message)[wire.LENGTH.size + 1 : -1].decode()
    fields = said.split(",") if draw(st.booleans()) else [said]
    fields += [
        f'"{key}":{value}'
        for key, value in draw(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(ODD)), max_size=4))
    ]
    fields = draw(st.permutations(fields)) if draw(st.booleans()) else fields
    space = draw(st.sampled_from(["", " ", "\n\t", "\f", "\ufeff"]))
    return (space + "{" + f",{space}".join(fields) + "}" + draw(st.sampled_from(["", " ", "x", "{}", "\0"]))).encode()


@given(mutated(FRAMES))
@settings(max_examples=300)
def test_damaged_frames_are_messages_or_one_refusal(data: bytes) -> None:
    """Vectors with flipped, missing, doubled and foreign bytes, as a stream."""
    decoder.stream(data)


@given(mutated(HEADERS))
@settings(max_examples=300)
def test_damaged_headers_are_messages_or_one_refusal(data: bytes) -> None:
    """The same behind a length that is right."""
    decoder.header(data)


@given(odd_json())
@settings(max_examples=300)
def test_odd_values_are_messages_or_one_refusal(raw: bytes) -> None:
    """Values that JSON can say and a field cannot hold, keys twice, nesting, spaces and what follows the object."""
    decoder.header(raw)


@given(st.lists(st.sampled_from(FRAMES), min_size=1, max_size=5))
def test_a_stream_is_read_frame_by_frame(whole: list[bytes]) -> None:
    """Frames one behind the other are the messages that each of them is, up to the first that is refused."""
    alone = [decoder.stream(data) for data in whole]
    good = list(itertools.takewhile(bool, alone))
    assert decoder.stream(b"".join(whole))[: len(good)] == [message for (message,) in good]


PAGE = wire.MAX_HEADER
LARGEST: dict[str, bytes] = {
    "arrays": b"[" * PAGE,
    "objects": b'{"a":' * (PAGE // 5),
    "an array of a type": b'{"type":' + b"[" * 900 + b"]" * 900 + b"}",
    "many keys": b'{"type":"ping","t":1' + b"".join(b',"%d":1' % n for n in range(6900)) + b"}",
    "many lists": b'{"type":"ping","t":1,"a":[' + b"[]," * 21_800 + b"1]}",
    "many objects": b'{"type":"ping","t":1,"a":[' + b"{}," * 21_800 + b"1]}",
    "many floats": b'{"type":"ping","t":1,"a":[' + b"1e9," * 16_000 + b"1]}",
    "one integer": b'{"type":"ping","t":' + b"9" * 65_000 + b"}",
    "one fraction": b'{"type":"ping","t":1.' + b"9" * 65_000 + b"}",
    "escapes": b'{"type":"' + b"\\ud800" * 10_900 + b'"}',
    "names to be folded": b'{"type":"stats","t":1,"path":"","names":['
    + b",".join([b'"' + "\ufdfa\u0315\u0300".encode() * 8 + b'"'] * 800)
    + b"]}",
    "a path of many levels": b'{"type":"stat","t":1,"path":"' + b"\xc3\xa9/" * 21_000 + b'x"}',
    "an integer of many words": b'{"type":"ping","t":1,"a":"' + b"9" * 65_000 + b'"}',
}


@pytest.mark.parametrize("raw", LARGEST.values(), ids=LARGEST)
def test_the_largest_header_takes_little_time_and_memory(raw: bytes) -> None:
    """Whatever 64 KiB say, they take no second and no more than some times their size."""
    assert 10 <= len(raw) <= wire.MAX_HEADER
    decoder.header(raw)
    tracemalloc.start()
    try:
        decoder.header(raw)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


# The journal.

JOURNALS = list(decoder.journal_seeds())


@given(st.binary(max_size=300) | mutated(JOURNALS))
@settings(max_examples=300)
def test_any_bytes_are_a_journal_or_none(data: bytes) -> None:
    """With the checks as they are, and made right: what comes out is within the file and does not overlap."""
    decoder.journals(data)


@given(st.dictionaries(st.sampled_from(["path", "staged", "size", "fingerprint", "salt", "x"]), st.sampled_from(ODD)))
@settings(max_examples=200)
def test_a_head_of_odd_values_is_a_head_or_none(odd: dict[str, str]) -> None:
    """Whoever wrote it."""
    fields = {"path": '"p"', "staged": '".ftransfer-' + "0" * 16 + '"', "size": "1", "fingerprint": "null", "salt": "1"}
    text = "{" + ",".join(f'"{name}":{value}' for name, value in (fields | odd).items()) + "}"
    decoder.read_journal(decoder.checked_head(text.encode()))


# The session.

KINDS = sorted(wire.BY_TYPE)
STATES = {state for state, _, _ in session.TRANSFER} | {session.WAITING}
said = st.tuples(st.sampled_from(KINDS), st.sampled_from([CLIENT, SERVER]), st.integers(1, 6), st.booleans())
refused = st.tuples(st.sampled_from(KINDS), st.just(""), st.integers(1, 6), st.booleans())


def message_of(kind: str, t: int, *, flag: bool) -> wire.Message:
    """Return a message; the flag is its `more` or `wait`, or an error without number."""
    named = {name: flag for name in ("more", "wait") if name in wire.BY_TYPE[kind].fields}
    return make(kind, None if kind == "error" and flag else t, **named)


@given(st.lists(said | refused, max_size=60), st.booleans())
@settings(max_examples=300)
def test_a_session_bears_any_messages(events: list[tuple[str, str, int, bool]], is_greeted: bool) -> None:
    """From both ends, with names that were refused: True, False or OutOfTurn, which changes nothing that is open."""
    made = opened() if is_greeted else Session()
    for kind, who, t, flag in events:
        before = (made.state, made.last_t, {number: entry.state for number, entry in made._open.items()})
        try:
            counts = made.saw(message_of(kind, t, flag=flag), who) if who else made.refuse(t, kind)
        except OutOfTurn:
            after = (made.state, made.last_t, {number: entry.state for number, entry in made._open.items()})
            assert after[0] == before[0]
            assert after[2] == before[2]
            continue
        assert counts in (True, False)
        assert made.last_t >= before[1]
        assert made.idle == (not made._open)
        assert all(1 <= number <= made.last_t for number in made._open)
        assert {entry.state for entry in made._open.values()} <= STATES - {session.OVER}
        assert len(made._open) <= session.MAX_OPEN
        senders = {entry.sender for entry in made._open.values() if not entry.answer}
        assert len(senders) <= 1


class Crossing:
    """Two ends that send only what their own session lets them, over a line on which messages cross."""

    def __init__(self) -> None:
        self.ends = {CLIENT: opened(), SERVER: opened()}
        self.line: dict[str, list[wire.Message]] = {CLIENT: [], SERVER: []}

    def choices(self, who: str) -> list[tuple[str, int]]:
        """Return what that end may say about each number that it has open, and what it may begin."""
        own = self.ends[who]
        found = [(kind, own.last_t + 1) for kind in sorted(session.BEGINNINGS) if who == CLIENT]
        for t, entry in own._open.items():
            if entry.answer:
                found += [(kind, t) for kind in (entry.answer, "working", "error") if who == SERVER]
            else:
                role = session.SENDER if who == entry.sender else session.RECEIVER
                found += [(kind, t) for state, says, kind in session.TRANSFER if (state, says) == (entry.state, role)]
        return found

    def say(self, who: str, choice: int, *, flag: bool) -> None:
        """Send one of the messages that this end may send."""
        choices = self.choices(who)
        if not choices:
            return
        kind, t = choices[choice % len(choices)]
        message = message_of(kind, t, flag=flag and kind != "error")
        try:
            self.ends[who].saw(message, who)
        except OutOfTurn:
            return  # the other direction, or too many at a time
        self.line[who].append(message)

    def deliver(self, who: str) -> None:
        """Let the other end see the first message that is on its way from this one. Raises OutOfTurn."""
        if self.line[who]:
            self.ends[SERVER if who == CLIENT else CLIENT].saw(self.line[who].pop(0), who)


steps = st.tuples(st.booleans(), st.sampled_from([CLIENT, SERVER]), st.integers(0, 500), st.booleans())


@given(st.lists(steps, min_size=10, max_size=80))
@settings(max_examples=400)
def test_ends_that_keep_the_table_never_find_each_other_out_of_turn(events: list[tuple[bool, str, int, bool]]) -> None:
    """However their messages cross on the line; and when all have arrived both see the same numbers open."""
    made = Crossing()
    for is_sent, who, choice, flag in events:
        made.say(who, choice, flag=flag) if is_sent else made.deliver(who)
    for who in (CLIENT, SERVER):
        while made.line[who]:
            made.deliver(who)
    client, server = ({t: entry.state for t, entry in end._open.items()} for end in made.ends.values())
    assert client == server


# Atheris.


@pytest.mark.slow
@pytest.mark.parametrize("target", decoder.TARGETS)
def test_atheris_finds_nothing(target: str, tmp_path: Path) -> None:
    """A run of some seconds that is led by what the code has not done yet, from the vectors on."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris (where there is one for this Python)")
    corpus = tmp_path / "corpus"
    assert decoder.write_corpus(corpus, target) > 4
    options = [f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, decoder.__file__, target, *options, str(corpus)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 40, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Done " in run.stderr

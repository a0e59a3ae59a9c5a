"""Which message may come when: generated from the tables, every message in every state from both ends."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftransfer import session, wire
from ftransfer.errors import OutOfTurn
from ftransfer.session import CLIENT, SERVER, Session

FIELDS: dict[str, dict[str, Any]] = {
    "hello": {"versions": [1], "software": "x"},
    "welcome": {"version": 1, "software": "x", "session": "0" * 32},
    "put": {"path": "a", "size": 1},
    "get": {"path": "a"},
    "file": {"size": 1},
    "want": {"ranges": []},
    "block": {"offset": 0, "hash": "0" * 32, "body": 1},
    "hole": {"offset": 0, "length": 1},
    "stored": {"offset": 0, "ok": True},
    "end": {"path": "a", "size": 1, "hash": "0" * 32},
    "receipt": {"result": "stored", "path": "a"},
    "working": {"phase": "x", "done": 0},
    "error": {"code": "x", "message": "x"},
    "move": {"path": "a", "target": "b"},
    "entries": {"rows": []},
    "staged": {"rows": []},
    "digest": {"size": 1, "hash": "0" * 32},
    "list": {"path": ""},
    "stat": {"path": ""},
    "checksum": {"path": "a"},
    "mkdir": {"path": "a"},
    "remove": {"path": "a"},
    "partials": {"path": ""},
    "ping": {},
    "pong": {},
    "done": {},
    "tree": {"path": ""},
    "ready": {"exists": False},
    "pack": {},
    "receipts": {"packs": 1},
    "finish": {},
    "fetch": {"path": "", "names": []},
    "stats": {"path": "", "names": []},
    "found": {"rows": []},
    "checksums": {"path": "", "names": []},
    "digests": {"rows": []},
}
REQUESTS = {"put", "get", "tree", "fetch", *session.ANSWERS}
SENDS = {"put": CLIENT, "tree": CLIENT, "get": SERVER, "fetch": SERVER}
"""What moves files, and who owns the bytes."""
CONNECTION_TYPES = {"hello", "welcome", "error"}


def make(kind: str, t: int | None = 1, **changed: Any) -> wire.Message:
    """Return some valid message of a type."""
    fields = FIELDS[kind] | changed
    if "t" in wire.BY_TYPE[kind].fields and t is not None:
        fields["t"] = t
    return wire.BY_TYPE[kind](**fields)


def opened() -> Session:
    """Return a session after hello and welcome."""
    made = Session()
    made.saw(make("hello"), CLIENT)
    made.saw(make("welcome"), SERVER)
    return made


def begun(state: str, sender: str) -> Session:
    """Return a session in which transfer 1 is in that state, and `sender` owns the bytes."""
    made = opened()
    receiver = SERVER if sender == CLIENT else CLIENT
    steps: dict[tuple[str, str], list[tuple[str, str, dict[str, Any]]]] = {
        (session.ASKED, SERVER): [("get", CLIENT, {})],
        (session.ASKED_TO_WAIT, SERVER): [("get", CLIENT, {"wait": True})],
        (session.HELD, CLIENT): [("put", CLIENT, {"wait": True})],
        (session.HELD, SERVER): [("get", CLIENT, {"wait": True}), ("file", SERVER, {})],
        (session.FLOWING, CLIENT): [("put", CLIENT, {})],
        (session.FLOWING, SERVER): [("get", CLIENT, {}), ("file", SERVER, {})],
        (session.PREPARING, CLIENT): [("tree", CLIENT, {})],
        (session.PACKING, CLIENT): [("tree", CLIENT, {}), ("ready", SERVER, {})],
        (session.FETCHING, SERVER): [("fetch", CLIENT, {})],
    }
    for after, more in ((session.ENDED, "end"), (session.OVER, "error")):
        steps[after, CLIENT] = [*steps[session.FLOWING, CLIENT], (more, CLIENT, {})]
        steps[after, SERVER] = [*steps[session.FLOWING, SERVER], (more, SERVER, {})]
    assert receiver != sender
    for kind, who, changed in steps[state, sender]:
        made.saw(make(kind, **changed), who)
    return made


CASES = [
    (state, sender)
    for state in (
        session.ASKED,
        session.ASKED_TO_WAIT,
        session.HELD,
        session.FLOWING,
        session.ENDED,
        session.PREPARING,
        session.PACKING,
        session.FETCHING,
        session.OVER,
    )
    for sender in (CLIENT, SERVER)
    if not (sender == CLIENT and state in (session.ASKED, session.ASKED_TO_WAIT, session.FETCHING))
    if not (sender == SERVER and state in (session.PREPARING, session.PACKING))
]


def test_every_message_is_known_here() -> None:
    """A new message gets a line in this file, and so a place in every test below."""
    assert FIELDS.keys() == wire.BY_TYPE.keys()
    in_tables = {kind for _, _, kind in (*session.TRANSFER, *session.CONNECTION)}
    assert in_tables | REQUESTS | set(session.ANSWERS.values()) == set(wire.BY_TYPE)
    assert session.BEGINNINGS == REQUESTS


def test_every_state_is_tried_here() -> None:
    """A new state gets a line in this file, and so a place in every test below."""
    assert {state for state, _ in CASES} == {state for state, _, _ in session.TRANSFER}


@pytest.mark.parametrize("kind", sorted(wire.BY_TYPE))
@pytest.mark.parametrize("who", [CLIENT, SERVER])
@pytest.mark.parametrize("state", [session.OPENING, session.GREETED, session.OPEN, session.CLOSED])
def test_each_state_of_the_connection_takes_what_the_table_says(state: str, who: str, kind: str) -> None:
    """Nothing runs before hello and welcome, nothing after an error without number."""
    made = Session()
    for step, speaker in (("hello", CLIENT), ("welcome", SERVER), ("error", SERVER)):
        if made.state == state:
            break
        made.saw(make(step, None), speaker)
    assert made.state == state
    message = make(kind, None if kind in CONNECTION_TYPES else 1)
    after = session.CONNECTION.get((state, who, kind)) if kind in CONNECTION_TYPES else None
    if after is not None:
        assert made.saw(message, who)
        assert made.state == after
    elif kind in REQUESTS and state == session.OPEN and who == CLIENT:
        assert made.saw(message, who)
        assert made.is_open(1)
    else:
        with pytest.raises(OutOfTurn) as caught:
            made.saw(message, who)
        assert caught.value.code == "out-of-turn"
        assert (made.state, made.idle) == (state, True)


@pytest.mark.parametrize(("state", "sender"), CASES)
@pytest.mark.parametrize("who", [CLIENT, SERVER])
@pytest.mark.parametrize("kind", sorted(wire.BY_TYPE))
def test_each_state_of_a_transfer_takes_what_the_table_says(state: str, sender: str, who: str, kind: str) -> None:
    """Every message in every state from either end: a step, passed over because it is late, or refused."""
    made = begun(state, sender)
    role = session.SENDER if who == sender else session.RECEIVER
    after = session.TRANSFER.get((state, role, kind))
    if kind in ("hello", "welcome"):
        with pytest.raises(OutOfTurn):
            made.saw(make(kind), who)
    elif state == session.OVER and (kind in session._TRANSFER_TYPES or kind in session.ANSWERS.values()):
        assert made.saw(make(kind), who) is False
        assert made.idle
    elif after is None:
        with pytest.raises(OutOfTurn):
            made.saw(make(kind), who)
    else:
        assert made.saw(make(kind), who) is True
        assert made.is_open(1) == (after != session.OVER)
        if made.is_open(1):
            assert made._open[1].state == after


@pytest.mark.parametrize(("request_kind", "answer"), session.ANSWERS.items())
@pytest.mark.parametrize("who", [CLIENT, SERVER])
@pytest.mark.parametrize("kind", sorted(wire.BY_TYPE))
def test_each_request_takes_its_answer_only(request_kind: str, answer: str, who: str, kind: str) -> None:
    """Working any number of times, then the answer or an error, from the server."""
    made = opened()
    made.saw(make(request_kind), CLIENT)
    if who == SERVER and kind in (answer, "working", "error"):
        assert made.saw(make(kind), who) is True
        assert made.idle == (kind != "working")
    else:
        with pytest.raises(OutOfTurn):
            made.saw(make(kind), who)


@pytest.mark.parametrize(
    "request_kind", [kind for kind, answer in session.ANSWERS.items() if "more" in wire.BY_TYPE[answer].fields]
)
def test_pages_follow_until_the_last(request_kind: str) -> None:
    """A page with `more` keeps the request open, the last one ends it."""
    answer = session.ANSWERS[request_kind]
    made = opened()
    made.saw(make(request_kind), CLIENT)
    assert made.saw(make(answer, more=True), SERVER)
    assert made.saw(make(answer, more=True), SERVER)
    assert made.is_open(1)
    assert made.saw(make(answer), SERVER)
    assert made.idle


ENDINGS = [
    (session.PREPARING, CLIENT, "error", CLIENT),
    (session.PREPARING, CLIENT, "error", SERVER),
    (session.PACKING, CLIENT, "finish", CLIENT),
    (session.PACKING, CLIENT, "error", CLIENT),
    (session.PACKING, CLIENT, "error", SERVER),
    (session.FETCHING, SERVER, "done", SERVER),
    (session.FETCHING, SERVER, "error", CLIENT),
    (session.FETCHING, SERVER, "error", SERVER),
]


@pytest.mark.parametrize(("state", "sender", "kind", "who"), ENDINGS)
def test_what_was_under_way_when_a_tree_ended_is_passed_over(state: str, sender: str, kind: str, who: str) -> None:
    """Packs, their answers and the end itself may cross each other, whoever ended it."""
    made = begun(state, sender)
    assert made.saw(make(kind), who)
    assert made.idle
    for late in ("pack", "finish", "done", "working", "error", "receipts", "ready"):
        for end in (CLIENT, SERVER):
            assert made.saw(make(late), end) is False
    assert made.saw(make("ping", 2), CLIENT)


def test_packs_wait_for_ready() -> None:
    """A client asks what there is before it sends; the server says so once."""
    made = begun(session.PREPARING, CLIENT)
    for kind in ("pack", "finish"):
        with pytest.raises(OutOfTurn, match="preparing"):
            made.saw(make(kind), CLIENT)
    made.saw(make("ready"), SERVER)
    assert made.saw(make("pack"), CLIENT)
    assert made.saw(make("receipts", packs=0, more=True), SERVER)
    assert made.saw(make("receipts"), SERVER)
    with pytest.raises(OutOfTurn, match="packing"):
        made.saw(make("ready"), SERVER)


@pytest.mark.parametrize("kind", ["block", "hole", "end", "stored", "want", "receipt", "file"])
@pytest.mark.parametrize("sender", [CLIENT, SERVER])
def test_blocks_and_packs_have_numbers_of_their_own(kind: str, sender: str) -> None:
    """A number that carries packs takes nothing of a single file."""
    made = begun(session.PACKING if sender == CLIENT else session.FETCHING, sender)
    for who in (CLIENT, SERVER):
        with pytest.raises(OutOfTurn):
            made.saw(make(kind), who)


def test_a_long_want_keeps_its_state() -> None:
    """Ranges with `more` do not yet let the blocks flow."""
    made = begun(session.HELD, CLIENT)
    made.saw(make("want", more=True), SERVER)
    with pytest.raises(OutOfTurn):
        made.saw(make("block"), CLIENT)
    made.saw(make("want"), SERVER)
    assert made.saw(make("block"), CLIENT)


@pytest.mark.parametrize("kind", sorted(REQUESTS))
def test_numbers_are_used_once_and_grow(kind: str) -> None:
    """A number that was used, or is smaller than one that was, is refused; also while its request is open."""
    made = opened()
    made.saw(make(kind, 5), CLIENT)
    for t in (5, 4, 1):
        with pytest.raises(OutOfTurn, match="used before"):
            made.saw(make("ping", t), CLIENT)
    assert made.saw(make("ping", 6), CLIENT)


@pytest.mark.parametrize("kind", sorted(set(wire.BY_TYPE) - REQUESTS - {"hello", "welcome"}))
@pytest.mark.parametrize("who", [CLIENT, SERVER])
def test_what_nobody_asked_for_is_refused(kind: str, who: str) -> None:
    """An answer, a block or an error for a number that was never used."""
    with pytest.raises(OutOfTurn, match="nobody asked"):
        opened().saw(make(kind, 1), who)


@pytest.mark.parametrize("kind", sorted(REQUESTS))
def test_a_server_asks_for_nothing(kind: str) -> None:
    """Requests come from the client only."""
    with pytest.raises(OutOfTurn):
        opened().saw(make(kind), SERVER)


@pytest.mark.parametrize("kind", ["put", "get", "tree", "fetch", "ping"])
def test_the_window_of_open_requests_is_kept(kind: str) -> None:
    """MAX_OPEN may be open, one more is refused, and one that ends makes room."""
    made = opened()
    for t in range(1, session.MAX_OPEN + 1):
        made.saw(make(kind, t), CLIENT)
    with pytest.raises(OutOfTurn, match="open already"):
        made.saw(make(kind, session.MAX_OPEN + 1), CLIENT)
    made.saw(make("error", 1), SERVER)
    assert made.saw(make(kind, session.MAX_OPEN + 1), CLIENT)


@pytest.mark.parametrize(("first", "second"), [*itertools.product(SENDS, SENDS)])
def test_files_go_one_way_at_a_time(first: str, second: str) -> None:
    """Two ends that both send bodies would wait for each other; requests may stand beside either."""
    made = opened()
    made.saw(make(first, 1), CLIENT)
    made.saw(make("ping", 2), CLIENT)
    if SENDS[first] == SENDS[second]:
        assert made.saw(make(second, 3), CLIENT)
        return
    with pytest.raises(OutOfTurn, match="one direction"):
        made.saw(make(second, 3), CLIENT)
    made.saw(make("error", 1), CLIENT)
    assert made.saw(make(second, 4), CLIENT)


@pytest.mark.parametrize("first", SENDS)
@pytest.mark.parametrize("request_kind", session.ANSWERS)
def test_questions_stand_beside_files_in_either_direction(first: str, request_kind: str) -> None:
    """Names are asked about, hashed and listed while packs or blocks flow."""
    made = opened()
    made.saw(make(first, 1), CLIENT)
    assert made.saw(make(request_kind, 2), CLIENT)
    assert made.saw(make(session.ANSWERS[request_kind], 2), SERVER)
    assert made.is_open(1)
    assert not made.is_open(2)


def test_a_refused_request_uses_its_number_up() -> None:
    """What was refused for its name counts as over: its blocks are passed over, its number is gone."""
    made = opened()
    assert made.refuse(3, "put")
    assert made.saw(make("block", 3), CLIENT) is False
    for t in (2, 3):
        with pytest.raises(OutOfTurn):
            made.refuse(t, "mkdir")
    with pytest.raises(OutOfTurn):
        Session().refuse(1, "put")


def test_a_bad_name_in_an_answer_is_no_request() -> None:
    """It is passed over if its transfer is over, as the `end` of a refused put is; else it is out of turn."""
    made = opened()
    assert made.refuse(3, "put")
    assert made.refuse(3, "end") is False
    for t in (3, 4):
        made.saw(make("put", t), CLIENT) if t > made.last_t else None
        if t == 4:
            with pytest.raises(OutOfTurn):
                made.refuse(t, "end")
    with pytest.raises(OutOfTurn):
        made.refuse(9, "end")


def test_a_pack_with_a_bad_name_is_no_request() -> None:
    """It cannot be refused by itself: its tree is open and has to be answered, so the connection ends."""
    for state, sender in ((session.PREPARING, CLIENT), (session.PACKING, CLIENT), (session.FETCHING, SERVER)):
        with pytest.raises(OutOfTurn):
            begun(state, sender).refuse(1, "pack")


@pytest.mark.parametrize("kind", ["tree", "fetch", "stats", "checksums"])
def test_many_names_are_refused_as_one_request(kind: str) -> None:
    """One bad name among them refuses the number; the packs of such a tree are passed over."""
    made = opened()
    assert made.refuse(1, kind)
    assert made.saw(make("pack"), CLIENT) is False
    assert made.saw(make(kind, 2), CLIENT)


events = st.lists(
    st.tuples(st.sampled_from(sorted(wire.BY_TYPE)), st.sampled_from([CLIENT, SERVER]), st.integers(1, 4)), max_size=30
)


@given(events)
def test_both_ends_agree_whatever_is_said(said: list[tuple[str, str, int]]) -> None:
    """Two sessions that see the same messages are always in the same state, and refuse the same ones."""
    one, other = opened(), opened()
    for kind, who, t in said:
        outcomes = []
        for end in (one, other):
            try:
                outcomes.append(str(end.saw(make(kind, t), who)))
            except OutOfTurn as exc:
                outcomes.append(str(exc))
        assert outcomes[0] == outcomes[1]
    assert one.state == other.state
    assert one._open.keys() == other._open.keys()
    assert len(one._open) <= session.MAX_OPEN


def test_the_tables_are_whole() -> None:
    """Every state can be left, every state that is entered has rows, and `error` ends a transfer everywhere."""
    states = {state for state, _, _ in session.TRANSFER}
    assert set(session.TRANSFER.values()) <= states
    for state, role in itertools.product(states, (session.SENDER, session.RECEIVER)):
        assert session.TRANSFER[state, role, "error"] == session.OVER


def test_whatever_may_come_may_come_late() -> None:
    """The table shows that each message of a transfer is passed over once it is over."""
    late = {(role, kind) for state, role, kind in session.TRANSFER if state == session.OVER}
    assert {(role, kind) for _, role, kind in session.TRANSFER} - late == set()

"""Which message may come when: a table for the connection and one for each transfer, for both roles.

A `Session` is told of every message that is sent or received on one connection and raises OutOfTurn for one that may
not come now. It does no I/O. Used by `channel`, which tells it, so that no caller can forget. docs/protocol.md shows
the tables as they stand here.
"""

from __future__ import annotations

from typing import Final

from ftransfer import wire
from ftransfer.errors import OutOfTurn

CLIENT: Final = "client"
SERVER: Final = "server"

# States of the connection.
OPENING: Final = "opening"
GREETED: Final = "greeted"
OPEN: Final = "open"
CLOSED: Final = "closed"

# States of a transfer or request.
ASKED: Final = "asked"
ASKED_TO_WAIT: Final = "asked to wait"
HELD: Final = "held"
FLOWING: Final = "flowing"
ENDED: Final = "ended"
WAITING: Final = "waiting"
PREPARING: Final = "preparing"
PACKING: Final = "packing"
FETCHING: Final = "fetching"
OVER: Final = "over"

CONNECTION: dict[tuple[str, str, str], str] = {
    (OPENING, CLIENT, "hello"): GREETED,
    (GREETED, SERVER, "welcome"): OPEN,
    (OPENING, SERVER, "error"): CLOSED,
    (OPENING, CLIENT, "error"): CLOSED,
    (GREETED, SERVER, "error"): CLOSED,
    (GREETED, CLIENT, "error"): CLOSED,
    (OPEN, SERVER, "error"): CLOSED,
    (OPEN, CLIENT, "error"): CLOSED,
}
"""(state, who says it, message without `t`) to the next state."""

SENDER: Final = "sender"
RECEIVER: Final = "receiver"

TRANSFER: dict[tuple[str, str, str], str] = {
    (ASKED, SENDER, "file"): FLOWING,
    (ASKED, SENDER, "error"): OVER,
    (ASKED, RECEIVER, "error"): OVER,
    (ASKED_TO_WAIT, SENDER, "file"): HELD,
    (ASKED_TO_WAIT, SENDER, "error"): OVER,
    (ASKED_TO_WAIT, RECEIVER, "error"): OVER,
    (HELD, SENDER, "error"): OVER,
    (HELD, RECEIVER, "want"): FLOWING,
    (HELD, RECEIVER, "working"): HELD,
    (HELD, RECEIVER, "receipt"): OVER,
    (HELD, RECEIVER, "error"): OVER,
    (FLOWING, SENDER, "block"): FLOWING,
    (FLOWING, SENDER, "hole"): FLOWING,
    (FLOWING, SENDER, "working"): FLOWING,
    (FLOWING, SENDER, "end"): ENDED,
    (FLOWING, SENDER, "error"): OVER,
    (FLOWING, RECEIVER, "stored"): FLOWING,
    (FLOWING, RECEIVER, "working"): FLOWING,
    (FLOWING, RECEIVER, "receipt"): OVER,
    (FLOWING, RECEIVER, "error"): OVER,
    (ENDED, SENDER, "error"): OVER,
    (ENDED, RECEIVER, "want"): FLOWING,
    (ENDED, RECEIVER, "stored"): ENDED,
    (ENDED, RECEIVER, "working"): ENDED,
    (ENDED, RECEIVER, "receipt"): OVER,
    (ENDED, RECEIVER, "error"): OVER,
    # A tree: what the client sends in packs.
    (PREPARING, SENDER, "error"): OVER,
    (PREPARING, RECEIVER, "ready"): PACKING,
    (PREPARING, RECEIVER, "working"): PREPARING,
    (PREPARING, RECEIVER, "error"): OVER,
    (PACKING, SENDER, "pack"): PACKING,
    (PACKING, SENDER, "working"): PACKING,
    (PACKING, SENDER, "finish"): OVER,
    (PACKING, SENDER, "error"): OVER,
    (PACKING, RECEIVER, "receipts"): PACKING,
    (PACKING, RECEIVER, "working"): PACKING,
    (PACKING, RECEIVER, "error"): OVER,
    # A fetch: what the server sends in packs.
    (FETCHING, SENDER, "pack"): FETCHING,
    (FETCHING, SENDER, "working"): FETCHING,
    (FETCHING, SENDER, "done"): OVER,
    (FETCHING, SENDER, "error"): OVER,
    (FETCHING, RECEIVER, "working"): FETCHING,
    (FETCHING, RECEIVER, "error"): OVER,
    # What was under way when one end closed the transfer still arrives, and is passed over.
    (OVER, SENDER, "file"): OVER,
    (OVER, SENDER, "block"): OVER,
    (OVER, SENDER, "hole"): OVER,
    (OVER, SENDER, "working"): OVER,
    (OVER, SENDER, "end"): OVER,
    (OVER, SENDER, "pack"): OVER,
    (OVER, SENDER, "finish"): OVER,
    (OVER, SENDER, "done"): OVER,
    (OVER, SENDER, "error"): OVER,
    (OVER, RECEIVER, "ready"): OVER,
    (OVER, RECEIVER, "want"): OVER,
    (OVER, RECEIVER, "stored"): OVER,
    (OVER, RECEIVER, "working"): OVER,
    (OVER, RECEIVER, "receipt"): OVER,
    (OVER, RECEIVER, "receipts"): OVER,
    (OVER, RECEIVER, "error"): OVER,
}
"""(state, who says it, message) to the next state, for the `t` of a put, a get, a tree or a fetch.

A put begins flowing, or held if it says `wait`; a get begins asked, or asked to wait; a tree begins preparing, a fetch
fetching. A message with `more` does not step.
"""

ANSWERS: dict[str, str] = {
    "list": "entries",
    "stat": "entries",
    "checksum": "digest",
    "mkdir": "done",
    "remove": "done",
    "move": "done",
    "partials": "staged",
    "ping": "pong",
    "stats": "found",
    "checksums": "digests",
}
"""Request to its final answer; before it may come `working`, and in its place `error`."""

BEGINNINGS = frozenset({"put", "get", "tree", "fetch", *ANSWERS})
"""What a client may begin a number with."""

MAX_OPEN = wire.WINDOW
"""Transfers and requests that a client may have open at a time."""


class _Open:
    """One transfer or request that is not over."""

    __slots__ = ("answer", "sender", "state")

    def __init__(self, state: str, sender: str, answer: str = ""):
        self.state = state
        self.sender = sender
        self.answer = answer


class Session:
    """The state of one connection and of all that is open on it."""

    def __init__(self) -> None:
        self.state = OPENING
        self.last_t = 0
        self._open: dict[int, _Open] = {}

    @property
    def idle(self) -> bool:
        """Tell whether nothing is open."""
        return not self._open

    def is_open(self, t: int) -> bool:
        """Tell whether `t` is not over."""
        return t in self._open

    def saw(self, message: wire.Message, who: str) -> bool:
        """Take note of a message; return False if it belongs to what is over and must be passed over.

        Arguments: `who` said it, CLIENT or SERVER. Raises OutOfTurn if it may not come now.
        """
        t: int | None = getattr(message, "t", None)
        if t is None:
            self._step_connection(message.type, who)
            return True
        if self.state != OPEN:
            raise OutOfTurn(f"{message.type} from the {who} before the connection is open")
        if message.type in BEGINNINGS:
            self._begin(t, message, who)
            return True
        return self._step(t, message, who)

    def refuse(self, t: int, kind: str) -> bool:
        """Take note of a message that was refused for its name; return False if it belongs to what is over.

        A client that did not wait closes a refused put with an `end` of the same name.
        """
        if kind not in BEGINNINGS:
            if kind != "pack" and self.state == OPEN and t <= self.last_t and t not in self._open:
                return False
            raise OutOfTurn(f"{kind} with a name that may not be used")
        if self.state != OPEN or t <= self.last_t:
            raise OutOfTurn(f"number {t} was used before")
        self.last_t = t
        return True

    def _step_connection(self, kind: str, who: str) -> None:
        after = CONNECTION.get((self.state, who, kind))
        if after is None:
            raise OutOfTurn(f"{kind} from the {who} while the connection is {self.state}")
        self.state = after

    def _begin(self, t: int, message: wire.Message, who: str) -> None:
        kind = message.type
        if who != CLIENT:
            raise OutOfTurn(f"{kind} from the server")
        if t <= self.last_t:
            raise OutOfTurn(f"{kind}: number {t} was used before, each request takes a larger one")
        if len(self._open) >= MAX_OPEN:
            raise OutOfTurn(f"{kind}: {MAX_OPEN} requests are open already")
        self.last_t = t
        if isinstance(message, wire.Put):
            self._one_direction(CLIENT, kind)
            self._open[t] = _Open(HELD if message.wait else FLOWING, CLIENT)
        elif isinstance(message, wire.Get):
            self._one_direction(SERVER, kind)
            self._open[t] = _Open(ASKED_TO_WAIT if message.wait else ASKED, SERVER)
        elif isinstance(message, wire.Tree):
            self._one_direction(CLIENT, kind)
            self._open[t] = _Open(PREPARING, CLIENT)
        elif isinstance(message, wire.Fetch):
            self._one_direction(SERVER, kind)
            self._open[t] = _Open(FETCHING, SERVER)
        else:
            self._open[t] = _Open(WAITING, SERVER, ANSWERS[kind])

    def _one_direction(self, sender: str, kind: str) -> None:
        """Two ends that both send bodies and do not read would wait for each other for ever."""
        if any(o.sender != sender and not o.answer for o in self._open.values()):
            raise OutOfTurn(f"{kind}: a connection carries files in one direction at a time")

    def _step(self, t: int, message: wire.Message, who: str) -> bool:
        if t > self.last_t:
            raise OutOfTurn(f"{message.type} for number {t}, which nobody asked for")
        entry = self._open.get(t)
        if entry is None:
            if message.type in _TRANSFER_TYPES or message.type in _ANSWER_TYPES:
                return False
            raise OutOfTurn(f"{message.type} from the {who}")
        if entry.answer:
            self._answer(t, entry, message, who)
            return True
        role = SENDER if who == entry.sender else RECEIVER
        after = TRANSFER.get((entry.state, role, message.type))
        if after is None:
            raise OutOfTurn(f"{message.type} from the {role} while transfer {t} is {entry.state}")
        if after == OVER:
            del self._open[t]
        elif not getattr(message, "more", False):
            entry.state = after
        return True

    def _answer(self, t: int, entry: _Open, message: wire.Message, who: str) -> None:
        if who != SERVER or message.type not in (entry.answer, "working", "error"):
            raise OutOfTurn(f"{message.type} from the {who} while request {t} waits for {entry.answer}")
        if message.type != "working" and not getattr(message, "more", False):
            del self._open[t]


_TRANSFER_TYPES = frozenset(kind for _, _, kind in TRANSFER)
_ANSWER_TYPES = frozenset(ANSWERS.values())

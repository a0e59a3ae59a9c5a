"""What a connection needs of the server that it belongs to, and what a server bears: between `server` and `serving`."""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

from ftransfer.store.base import Store

Outcome = tuple[int, str] | None
"""What a handler has to say in the log: bytes and result, or nothing yet."""


class Limits(NamedTuple):
    """What one server bears; each is a named number with a default.

    `connections` at a time; `uploads` open at a time, over all connections; `handshake_seconds` until hello has come;
    `idle_seconds` without any request; `grace_seconds` that running transfers get when the server is told to stop.
    """

    connections: int = 256
    uploads: int = 256
    handshake_seconds: float = 10.0
    idle_seconds: float = 600.0
    grace_seconds: float = 5.0


class Host(Protocol):
    """What a connection needs of the server that it belongs to."""

    store: Store
    read_only: bool
    timeout: float
    limits: Limits
    uploads: threading.BoundedSemaphore
    closing: bool

    @property
    def connection_count(self) -> int: ...
    @property
    def grace_is_over(self) -> bool: ...
    def end_former(self, session: str) -> None: ...

"""The one line that the server writes of each request, for people and, as fields, for programs. Used by `serving`."""

from __future__ import annotations

import logging
import time
from typing import Any

from ftransfer import paths

log = logging.getLogger("ftransfer.server")


def write(message: Any, *, peer: str, user: str, started: float, count: int, result: str) -> None:
    """Write who did what, to which path, how many bytes, in how many seconds, with what result.

    Names come from a peer: in the text they are escaped; the fields are escaped by whoever writes them as JSON.
    """
    seconds = time.monotonic() - started
    rate = count / seconds / (1 << 20) if seconds > 0 else 0.0
    names = {field: getattr(message, field) for field in ("path", "target") if hasattr(message, field)}
    shown = " -> ".join(paths.printable(name) for name in names.values()) or "/"
    what = f"{message.type} {shown}" if names else message.type
    fields = {
        "event": "request",
        "peer": peer,
        "user": user,
        "request": message.type,
        **names,
        "bytes": count,
        "seconds": round(seconds, 6),
        "result": result,
    }
    extra = {"fields": fields}
    log.info("%s %s %s %d bytes %.3f s %.1f MiB/s %s", peer, user, what, count, seconds, rate, result, extra=extra)

"""Sizes, rates, durations and times as people read and type them. No I/O but a look at the clock."""

from __future__ import annotations

import re
import time

from ftransfer.errors import UsageError

_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DATE = r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:(?<=:\d\d:\d\d)\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?)?"
_FARTHEST = 1 << 63
"""Nanoseconds before or after 1970 that a time may be away: what a file system can tell."""


def parse_size(text: str) -> int:
    """Return bytes: `10M` and `10MiB` are 10 * 1048576, `10MB` is 10,000,000. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(B|iB)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"not a size: {text!r}", hint="write 500K, 10M, 2G; 10MB means 10,000,000")
    number, prefix, suffix = match[1], match[2].upper(), (match[3] or "").lower()
    power = "KMGT".find(prefix) + 1 if prefix else 0
    factor = 1000**power if suffix == "b" else _BINARY[prefix]
    return int(float(number) * factor)


def parse_rate(text: str) -> int:
    """Return bytes a second, spelled as a size. Raises UsageError."""
    rate = parse_size(text.removesuffix("/s"))
    if rate < 1024:
        raise UsageError(f"a rate of {text!r} is too low", hint="1K is the least")
    return rate


def parse_duration(text: str) -> float:
    """Return seconds: `90`, `90s`, `10m`, `2h`, `1h30m`, `500ms`. Raises UsageError."""
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+|\d+(?:\.\d+)?", text):
        raise UsageError(f"not a duration: {text!r}", hint="write 90s, 10m, 2h, 1h30m")
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", text)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_patience(text: str) -> float:
    """Return seconds, more than none. Raises UsageError."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError("no time at all is not a timeout", hint="write 30s, 5m")
    return seconds


def parse_when(text: str, *, now_ns: int | None = None) -> int:
    """Return a time in nanoseconds since 1970; `now_ns` is now.

    `2d` or `3h30m`: so long ago. `2024-05-31`, `2024-05-31T12:30` or `2024-05-31 12:30:05.25`: local time, unless `Z`
    or an offset such as `+02:00` follows. `@1700000000`: seconds since 1970. Raises UsageError.
    """
    try:
        if text.startswith("@"):
            when = _parse_epoch(text[1:])
        elif match := re.fullmatch(_DATE, text, re.ASCII):
            when = _parse_date(*match.groups(""))
        elif text.endswith(tuple("smhd")):
            ago = int(parse_duration(text) * 1e9)
            when = (time.time_ns() if now_ns is None else now_ns) - ago
        else:
            raise ValueError  # a plain number might be a year as well as seconds
        if abs(when) >= _FARTHEST:
            raise OverflowError
    except (ValueError, OverflowError):
        hint = "write 2d or 3h30m (so long ago), 2024-05-31, 2024-05-31T12:30, or @ and seconds since 1970"
        raise UsageError(f"not a time: {text!r}", hint=hint) from None
    return when


def _parse_epoch(text: str) -> int:
    match = re.fullmatch(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?", text, re.ASCII)
    if match is None:
        raise ValueError
    when = int(match[2]) * 10**9 + int((match[3] or "").ljust(9, "0"))
    return -when if match[1] else when


def _parse_date(date: str, clock: str, fraction: str, offset: str) -> int:
    from datetime import UTC, datetime, timedelta  # here, because hardly any run needs it

    when = datetime.fromisoformat(f"{date}T{clock or '00:00'}{offset}").astimezone()  # without an offset: local time
    seconds = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    return seconds * 10**9 + int(fraction.ljust(9, "0"))


def show_size(count: float) -> str:
    """Return bytes as `512 B`, `1.4 MiB`, `2.0 TiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        count /= 1024
        if count < 999.95 or unit == "PiB":
            return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"
    raise AssertionError


def show_duration(seconds: float) -> str:
    """Return `0.42 s`, `12.3 s`, `5 min 03 s`, `1 h 02 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show_rate(count: float, seconds: float) -> str:
    """Return `562 MiB/s`."""
    return f"{show_size(count / max(seconds, 1e-9))}/s"

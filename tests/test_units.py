"""Times as people type them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftransfer.cli.units import parse_when
from ftransfer.errors import UsageError

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time is five and a half hours ahead."""
    monkeypatch.setenv("TZ", "XXX-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2d", 172_800), ("3h30m", 12_600), ("90s", 90), ("1.5h", 5400), ("500ms", 0.5), ("0s", 0), ("20000d", 1.728e9)],
)
def test_a_duration_is_so_long_ago(text: str, seconds: float) -> None:
    """Also a time before 1970."""
    assert parse_when(text, now_ns=NOW) == NOW - int(seconds * SECOND)


def test_now_is_now_unless_told() -> None:
    """The clock is the system's."""
    before = time.time_ns()
    assert before - 60 * SECOND <= parse_when("1m") <= time.time_ns() - 60 * SECOND


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("@1700000000", NOW),
        ("@0", 0),
        ("@-1", -SECOND),
        ("@1700000000.000000001", NOW + 1),
        ("@-0.5", -SECOND // 2),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14 22:13:20.25Z", NOW + SECOND // 4),
        ("2023-11-14T22:13:20.123456789Z", NOW + 123_456_789),
        ("2023-11-15T03:43:20+05:30", NOW),
        ("2023-11-14T17:13:20-0500", NOW),
        ("2023-11-14T22:13Z", NOW - 20 * SECOND),
        ("1969-12-31T23:59:59.5Z", -SECOND // 2),
        ("2023-11-15T03:43:20", NOW),
        ("2023-11-15 03:43", NOW - 20 * SECOND),
        ("2023-11-15", NOW - (3 * 3600 + 43 * 60 + 20) * SECOND),
    ],
)
@pytest.mark.usefixtures("east")
def test_dates_and_seconds_are_points_in_time(text: str, ns: int) -> None:
    """Exact to the nanosecond; without Z or an offset the time is the local one, a date its first moment."""
    assert parse_when(text) == ns


@given(
    st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)),  # noqa: DTZ001 - the zone comes as an argument
    st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_what_datetime_writes_is_read(moment: datetime, zone: timezone) -> None:
    """Any date, with microseconds or without, at any offset."""
    there = moment.replace(tzinfo=zone)
    assert parse_when(there.isoformat()) == (there - EPOCH) // timedelta(microseconds=1) * 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024",
        "20240531",
        "90",
        "1.5",
        "-2d",
        "2w",
        "d",
        "2024-13-01",
        "2024-02-30",
        "2024-05-31T",
        "2024-05-31T25:00",
        "2024-05-31T12",
        "2024-05-31T12:30.5",
        "2024-05-31Z",
        "2024-05-31T12:30+99:99",
        "2024-W05-1",
        "0001-01-01",
        "9999-12-31",
        "@",
        "@1e9",
        "@1.",
        "@ 5",
        "@999999999999",
        "9" * 400 + "d",
        "./file",
        "yesterday",
        "2024-05-31\n",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    """A plain number could be a year or seconds, so it is neither; what no file system could tell is out of range."""
    with pytest.raises(UsageError) as caught:
        parse_when(text, now_ns=NOW)
    assert "2024-05-31" in caught.value.hint


@given(st.text("0123456789-:.T Z+@dhms", max_size=25) | st.text(max_size=8))
def test_any_text_is_a_time_or_a_usage_error(text: str) -> None:
    """Nothing else comes out of parsing, and a time fits into 64 bits."""
    try:
        when = parse_when(text, now_ns=NOW)
    except UsageError:
        return
    assert -(1 << 63) < when < 1 << 63


def test_dates_are_not_loaded_before_one_is_read() -> None:
    """Start-up does not pay for what few runs need."""
    code = "import sys, ftransfer.cli.units as u; u.parse_when('2d'); sys.exit('datetime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0

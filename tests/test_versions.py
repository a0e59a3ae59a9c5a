"""Which versions talk to each other, and which end is told to be updated."""

import pytest

from ftransfer import versions
from ftransfer.errors import VersionMismatch

ENDS = {"here": "here", "there": "there"}


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this end be 1.5."""
    monkeypatch.setattr(versions, "SOFTWARE", "ftransfer/1.5.2")


@pytest.mark.parametrize("theirs", ["ftransfer/1.4.0", "ftransfer/1.5.9", "ftransfer/1.6.0", "ftransfer/1.6.0.dev3"])
def test_one_minor_number_apart_is_near_enough(theirs: str) -> None:
    """Neighbours talk to each other, whatever follows."""
    versions.check_software(theirs, **ENDS)


@pytest.mark.parametrize("theirs", ["", "curl/8", "ftransfer", "ftransfer/x.y", "other/ftransfer/9.9", "ftransfer/9"])
def test_what_is_not_ftransfer_is_left_to_the_protocol(theirs: str) -> None:
    """Another program that speaks the protocol has numbers of its own."""
    versions.check_software(theirs, **ENDS)


@pytest.mark.parametrize(
    ("theirs", "older"),
    [
        ("ftransfer/1.3.9", "there"),
        ("ftransfer/1.7.0", "here"),
        ("ftransfer/0.5.2", "there"),
        ("ftransfer/2.5.2", "here"),
    ],
)
def test_further_apart_the_older_end_is_to_be_updated(theirs: str, older: str) -> None:
    """The error names both versions, and the hint the older one's place."""
    with pytest.raises(VersionMismatch, match=r"1\.5\.2 here .* there") as caught:
        versions.check_software(theirs, **ENDS)
    assert caught.value.hint == f"update ftransfer {older}"
    assert theirs in str(caught.value)


def test_the_same_version_with_another_protocol_blames_nobody() -> None:
    """Where the numbers tell nothing, the hint does not guess."""
    assert versions.mismatch("ftransfer/1.5.0", **ENDS).hint == "update ftransfer at the older end"

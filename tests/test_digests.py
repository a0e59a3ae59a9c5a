"""Digests and checksum files: the same hex as `xxhsum` and `sha256sum`, and names that survive their lists."""

import hashlib
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from ftransfer import digests
from ftransfer.errors import UsageError

SAMPLES = Path(__file__).parent.parent / "sample_files"
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30) | st.text(
    "\\nr\r\n *()=#ab", min_size=1, max_size=12
)
hexes = st.sampled_from([32, 64]).flatmap(lambda n: st.text("0123456789abcdef", min_size=n, max_size=n))


@given(st.lists(st.tuples(hexes, names), max_size=5))
def test_a_list_reads_back_as_it_was_written(rows: list[tuple[str, str]]) -> None:
    """Any name without NUL survives, also with newlines and backslashes, and takes one line."""
    lines = [digests.format_line(hex_digits, name) for hex_digits, name in rows]
    assert not any("\n" in line or "\r" in line for line in lines)
    assert [row[:2] for row in digests.parse_lines(line + "\n" for line in lines)] == rows
    assert [row[:2] for row in digests.parse_lines(line + "\r\n" for line in lines)] == rows


@given(st.lists(st.text(max_size=100), max_size=4))
def test_any_text_is_a_list_or_a_bad_line(lines: list[str]) -> None:
    """Nothing but BadLine comes out of a file that is no list."""
    number = 1
    try:
        list(digests.parse_lines(lines))
    except digests.BadLine as exc:
        number = exc.number
    assert 1 <= number <= max(1, len(lines))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0" * 32 + "  a", ("0" * 32, "a")),
        ("A" * 32 + " *a", ("a" * 32, "a")),
        ("XXH128 (a) = " + "1" * 32, ("1" * 32, "a")),
        ("SHA256 (a) = (b) = " + "1" * 64, ("1" * 64, "a) = (b")),
        ("\\" + "0" * 64 + "  a\\nb\\\\c\\rd", ("0" * 64, "a\nb\\c\rd")),
        ("\\" + "0" * 64 + "  \\\\n", ("0" * 64, "\\n")),
        ("0" * 64 + "  a\\nb", ("0" * 64, "a\\nb")),
    ],
)
def test_the_formats_of_other_tools_are_read(line: str, expected: tuple[str, str]) -> None:
    """Text and binary mode, upper case, BSD tags, escapes."""
    assert [row[:2] for row in digests.parse_lines([line])] == [expected]


@pytest.mark.parametrize(
    "line",
    ["x", "0" * 31 + "  a", "0" * 33 + "  a", "0" * 32 + " a", "0" * 32, "0" * 32 + "  ", "\\" + "0" * 32 + "  a\\q"],
)
def test_other_lines_are_refused_with_their_number(line: str) -> None:
    """The number counts every line, also the empty ones."""
    with pytest.raises(digests.BadLine) as caught:
        list(digests.parse_lines(["# a comment", "", line]))
    assert caught.value.number == 3


@pytest.mark.parametrize("size", [0, 1, 4096, 300_001])
def test_digests_are_the_plain_ones(size: int) -> None:
    """Seed 0, nothing added: other tools print the same."""
    data = os.urandom(size)
    expected = {
        "xxh128": xxh3_128_hexdigest(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
    }
    for algorithm, value in expected.items():
        hasher = digests.new(algorithm)
        hasher.update(data)
        assert hasher.hexdigest() == value
        assert len(value) == digests.HEX_LENGTH[algorithm]


@pytest.mark.parametrize(("tool", "arguments"), [("xxhsum", ["-H2"]), ("sha256sum", [])])
def test_the_tools_print_what_we_print(tool: str, arguments: list[str], tmp_path: Path) -> None:
    """Our line is the line of xxhsum and sha256sum, byte by byte."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    (tmp_path / "a b").write_bytes(b"some bytes")
    run = subprocess.run([tool, *arguments, "a b"], cwd=tmp_path, capture_output=True, check=True)
    algorithm = digests.new("xxh128" if tool == "xxhsum" else "sha256")
    algorithm.update(b"some bytes")
    assert digests.format_line(algorithm.hexdigest(), "a b") + "\n" == run.stdout.decode()


@pytest.mark.parametrize(
    "text", ["", "xxh128", "xxh128:", "xxh128:" + "0" * 31, "xxh128:" + "G" * 32, "sha1:" + "0" * 40]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    """A digest has a known algorithm and exactly its digits."""
    with pytest.raises(UsageError):
        digests.Digest.parse(text)


def test_a_digest_reads_back_as_it_was_written() -> None:
    """`str` and `parse` are inverse."""
    digest = digests.Digest("sha256", "ab" * 32)
    assert digests.Digest.parse(str(digest)) == digest


def test_an_unknown_algorithm_is_a_usage_error() -> None:
    """The hint names those that exist."""
    with pytest.raises(UsageError) as caught:
        digests.new("crc32")
    assert "xxh128" in caught.value.hint


@given(st.binary(max_size=200), st.data())
def test_bytes_that_pass_out_of_order_wait(data: bytes, draw: st.DataObject) -> None:
    """The digest takes only what comes next; what it took is a prefix, and feeding the rest gives the whole."""
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(data)), max_size=6)) | {0, len(data)})
    pieces = [(a, data[a:b]) for a, b in itertools.pairwise(cuts)]
    whole = digests.Contiguous("xxh128")
    for offset, piece in draw.draw(st.permutations(pieces)):
        whole.mark()
        whole.feed(offset, b"damaged" if piece else b"")
        whole.back()
        whole.feed(offset, piece)
        assert whole.hexdigest() == xxh3_128_hexdigest(data[: whole.position])
    for offset, piece in pieces:
        whole.feed(offset, piece)
    assert whole.position == len(data)
    assert whole.hexdigest() == xxh3_128_hexdigest(data)


def test_the_algorithm_that_a_line_names_counts() -> None:
    """`md5sum --tag` and `sha256sum --tag` say it; a length that does not fit it is a bad line."""
    rows = digests.parse_lines(["MD5 (a) = " + "0" * 32, "SHA256 (a) = " + "0" * 64, "0" * 32 + "  a"])
    assert [row.algorithm for row in rows] == ["md5", "sha256", None]
    with pytest.raises(digests.BadLine):
        list(digests.parse_lines(["SHA256 (a) = " + "0" * 32]))

"""The sample files are what their checksum lists say, and the usual tools can read the lists."""

import hashlib
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

SAMPLES = Path(__file__).parent.parent / "sample_files"
LISTS = {"SHA256SUMS": hashlib.sha256, "XXH128SUMS": xxhash.xxh3_128}
TOOLS = {"SHA256SUMS": ["sha256sum", "--strict"], "XXH128SUMS": ["xxhsum", "--strict"]}


def listed(name: str) -> dict[str, str]:
    """Return the paths of a checksum list with their hex digests; no name in them needs an escape."""
    lines = (SAMPLES / name).read_text(encoding="utf-8").splitlines()
    return {path: digest for digest, path in (line.split("  ", 1) for line in lines)}


def sample_files() -> Iterator[Path]:
    """Yield every file of the folder but the lists themselves."""
    return (path for path in SAMPLES.rglob("*") if path.is_file() and path.name not in LISTS)


@pytest.mark.parametrize(("name", "algorithm"), LISTS.items())
def test_every_digest_is_that_of_the_file(name: str, algorithm: Callable[[bytes], object]) -> None:
    """Each line holds what hashlib or xxhash makes of the file."""
    digests = listed(name)
    assert digests == {path: algorithm((SAMPLES / path).read_bytes()).hexdigest() for path in digests}


@pytest.mark.parametrize("name", LISTS)
def test_every_file_is_listed_once(name: str) -> None:
    """No sample is missing in a list and no list names a file that is not there."""
    assert sorted(listed(name)) == sorted(str(path.relative_to(SAMPLES)) for path in sample_files())


@pytest.mark.parametrize(("name", "tool"), TOOLS.items())
def test_the_usual_tool_accepts_the_list(name: str, tool: list[str]) -> None:
    """`sha256sum -c` and `xxhsum -c` say OK to each line."""
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed: {name} was checked in Python only")
    run = subprocess.run([*tool, "-c", name], cwd=SAMPLES, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(": OK\n") == len(listed(name))


def test_there_are_files_of_many_kinds() -> None:
    """Empty, large, with spaces and letters beyond ASCII in its name, not text, deep down."""
    sizes = {str(path.relative_to(SAMPLES)): path.stat().st_size for path in sample_files()}
    assert 0 in sizes.values()
    assert any(1_000_000 <= size <= 2_000_000 for size in sizes.values())
    assert any(" " in name and not name.isascii() for name in sizes)
    assert any(name.count("/") > 1 for name in sizes)
    with pytest.raises(UnicodeDecodeError):
        (SAMPLES / "random.bin").read_text(encoding="utf-8")


def test_the_image_is_a_whole_png() -> None:
    """Every chunk has the right CRC, the last is IEND, and the pixels are as many as the header says."""
    data = (SAMPLES / "gradient.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, offset = [], 8
    while offset < len(data):
        length, kind = struct.unpack_from("!I4s", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        assert struct.unpack_from("!I", data, offset + 8 + length)[0] == zlib.crc32(kind + body)
        chunks.append((kind, body))
        offset += 12 + length
    assert chunks[-1] == (b"IEND", b"")
    width, height = struct.unpack_from("!II", dict(chunks)[b"IHDR"])
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    assert len(pixels) == height * (1 + 3 * width)

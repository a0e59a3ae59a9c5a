"""The command from outside: what it prints where, its exit statuses, its JSON, its bar, and Ctrl-C."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Terminal, frames, run, serving

import ftransfer

NASTY = "line\nbreak\x1b[31m\u202e.txt"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder behind a server of this process, and its address."""
    root = tmp_path_factory.mktemp("served")
    with ftransfer.Server(root, durable=False) as server:
        yield root, server.urls[0]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with one small file."""
    (tmp_path / "a.txt").write_bytes(b"hello\n")
    return tmp_path


def test_a_pipe_gets_final_lines_only(served: tuple[Path, str], here: Path) -> None:
    """Stdout stays empty; stderr names the resolved target, then says what was proven."""
    root, url = served
    ran = run("upload", "a.txt", f"{url}pipe/", cwd=here)
    assert (ran.status, ran.out) == (0, "")
    target, summary = ran.err.splitlines()
    assert target == f"to {url}pipe/a.txt"
    assert re.fullmatch(r"1 file, 6 B in .* s \(.*/s\), verified, not synced to disk", summary)
    assert (root / "pipe/a.txt").read_bytes() == b"hello\n"


def test_running_it_again_changes_nothing_and_says_so(served: tuple[Path, str], here: Path) -> None:
    """The second run sends nothing."""
    _, url = served
    run("upload", "a.txt", f"{url}again/", cwd=here)
    ran = run("up", "-v", "a.txt", f"{url}again/", cwd=here)
    assert (ran.status, ran.err.splitlines()[-1]) == (0, "1 file already there")
    assert "same     again/a.txt: already there" in ran.err


@pytest.mark.parametrize(
    ("dest", "lands"),
    [("d1/", "d1/a.txt"), ("new/name.bin", "new/name.bin"), ("isdir", "isdir/a.txt"), ("", "a.txt")],
)
def test_an_upload_lands_where_cp_would_put_it(served: tuple[Path, str], here: Path, dest: str, lands: str) -> None:
    """A slash or a folder means inside; anything else is the new name; parents are made."""
    root, url = served
    (root / "isdir").mkdir(exist_ok=True)
    assert run("upload", "-q", "a.txt", f"{url}{dest}", cwd=here) == (0, "", "")
    assert (root / lands).read_bytes() == b"hello\n"


@pytest.mark.parametrize(("dest", "lands"), [(None, "x.txt"), ("d/", "d/x.txt"), ("n", "n"), ("have", "have/x.txt")])
def test_a_download_lands_where_cp_would_put_it(
    served: tuple[Path, str], here: Path, dest: str | None, lands: str
) -> None:
    """The same the other way; without a destination it is this folder."""
    root, url = served
    (root / "x.txt").write_bytes(b"there\n")
    (here / "have").mkdir()
    assert run("download", "-q", f"{url}x.txt", *([dest] if dest else []), cwd=here) == (0, "", "")
    assert (here / lands).read_bytes() == b"there\n"
    assert not list(here.rglob(".ftransfer*"))


def test_streams(served: tuple[Path, str], here: Path) -> None:
    """`-` is standard input and standard output; data is all that stdout gets."""
    root, url = served
    data = os.urandom(3_000_000)
    assert run("upload", "-", f"{url}stream", stdin=data).status == 0
    assert (root / "stream").read_bytes() == data
    with open(here / "out", "wb") as out:
        words = [sys.executable, "-m", "ftransfer", "download", f"{url}stream", "-", "--json"]
        done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, check=True, timeout=30)
    assert (here / "out").read_bytes() == data
    assert json.loads(done.stderr.splitlines()[-1])["event"] == "summary"


def test_json_events_have_their_fields(served: tuple[Path, str], here: Path) -> None:
    """One object a line; `file`, then `summary`."""
    _, url = served
    ran = run("upload", "--json", "a.txt", f"{url}json/", cwd=here)
    file, summary = map(json.loads, ran.out.splitlines())
    assert ran.err == ""
    assert (file["v"], file["event"], file["result"], file["path"]) == (1, "file", "sent", "json/a.txt")
    assert (file["bytes"], file["sent_bytes"], file["resumed_from"], file["error"]) == (6, 6, 0, None)
    assert file["digest"] == f"xxh128:{_xxh128(b'hello' + bytes([10]))}"
    assert {"seconds", "tail_seconds", "durable"} <= file.keys()
    assert (summary["event"], summary["files"], summary["failed"], summary["bytes"]) == ("summary", 1, 0, 6)


def test_json_errors_have_code_and_hint(served: tuple[Path, str], here: Path) -> None:
    """A failure is a `file` event too, the summary is last all the same, and stderr says it to people."""
    _, url = served
    ran = run("download", "--json", f"{url}absent", cwd=here)
    file, summary = map(json.loads, ran.out.splitlines())
    assert ran.status == 3
    assert (file["event"], file["result"], summary["event"], summary["failed"]) == ("file", "failed", "summary", 1)
    assert (file["error"]["code"], file["error"]["retryable"]) == ("not-found", False)
    assert ran.err.startswith("error: ")


def test_options_may_stand_anywhere(served: tuple[Path, str], here: Path) -> None:
    """Before, between and behind the files."""
    (here / "b.txt").write_bytes(b"b")
    ran = run("upload", "a.txt", "--compare", "none", "b.txt", "-v", f"{served[1]}any/", "-q", cwd=here)
    assert ran == (0, "", "")
    assert run("upload", "a.txt", "--nonsense", f"{served[1]}any/", cwd=here).status == 2


def _xxh128(data: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["upload", "absent", "URL"], 3, "error: absent: no such file or folder"),
        (["upload", "a.txt"], 2, "needs a source and a destination"),
        (["upload", "a.txt", "there"], 2, "must be an address"),
        (["upload", "a.txt", "gopher://x/"], 2, "unknown address"),
        (["upload", "a.txt", "URL.ftransfer/x"], 2, "reserved"),
        (["upload", "a.txt", "URLa/../b"], 2, "'..'"),
        (["upload", "a.txt", "ft://127.0.0.1:1/"], 4, "hint: is `ftransfer serve` running there?"),
        (["upload", "a.txt", "ft://no-such-host.invalid/"], 4, "cannot find the host"),
        (["download", "URLabsent"], 3, "the server says: absent: no such file or folder"),
        (["frobnicate"], 2, "invalid choice"),
        (["upload", "--timeout", "soon", "a.txt", "URL"], 2, "not a duration"),
        (["upload", "--timeout", "0", "a.txt", "URL"], 2, "not a timeout"),
        (["upload", "--limit-rate", "1", "a.txt", "URL"], 2, "too low"),
        (["rm", "URLfull"], 2, "the folder is not empty"),
        (["mkdir", "URLno/where"], 3, "hint: mkdir -p makes it too"),
        (["mv", "URLfull/f", "URLtaken"], 11, "it exists already"),
        (["upload", "--if-exists", "fail", "--compare", "none", "a.txt", "URLtaken"], 11, "it exists already"),
        (["serve", "nowhere"], 3, "no such file or folder"),
        (["serve", ".", "--key", "k.pem"], 2, "--key comes with --cert"),
        (["serve", ".", "--limit", "moons=1"], 2, "no such limit"),
        (["serve", "a=.", "b"], 2, "not a name and a folder"),
    ],
)
def test_mistakes_have_a_status_and_a_sentence(
    served: tuple[Path, str], here: Path, words: list[str], status: int, says: str
) -> None:
    """Each kind of failure has its own exit status, an `error:` line and, where there is a way out, a `hint:`."""
    root, url = served
    (root / "full").mkdir(exist_ok=True)
    (root / "full/f").write_bytes(b"f")
    (root / "taken").write_bytes(b"old")
    ran = run(*[word.replace("URL", url) for word in words], cwd=here)
    assert (ran.status, ran.out) == (status, "")
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert ran.err.startswith("error: ")
    assert (root / "taken").read_bytes() == b"old"


def test_some_files_fail_and_the_others_are_done(served: tuple[Path, str], here: Path) -> None:
    """Status 6, each failure named, the last line counts."""
    root, url = served
    ran = run("upload", "absent", "a.txt", f"{url}some/", cwd=here)
    assert ran.status == 6
    assert "error: absent: no such file or folder" in ran.err
    assert ran.err.splitlines()[-1].endswith("1 failed (listed above)")
    assert (root / "some/a.txt").exists()


def test_if_exists_rename_tells_the_new_name(served: tuple[Path, str], here: Path) -> None:
    """The first line of the summary has the name that the file got."""
    root, url = served
    (root / "r.txt").write_bytes(b"old")
    ran = run("upload", "--if-exists", "rename", "a.txt", f"{url}r.txt", cwd=here)
    assert ran.err.splitlines()[0] == f"to {url}r%20(1).txt"
    assert ((root / "r.txt").read_bytes(), (root / "r (1).txt").read_bytes()) == (b"old", b"hello\n")


def test_verify_takes_the_arguments_of_the_transfer(served: tuple[Path, str], here: Path) -> None:
    """Same: 0. Different or only at one end: 1. In both directions."""
    _, url = served
    run("upload", "-q", "a.txt", f"{url}v/", cwd=here)
    ran = run("verify", "a.txt", f"{url}v/", cwd=here)
    assert (ran.status, ran.out) == (0, f"same: a.txt  xxh128:{_xxh128(b'hello' + bytes([10]))}\n")
    assert run("verify", f"{url}v/a.txt", "a.txt", cwd=here).status == 0
    assert run("verify", f"{url}v/a.txt", ".", cwd=here).status == 0
    (here / "a.txt").write_bytes(b"other\n")
    ran = run("verify", "a.txt", f"{url}v/", cwd=here)
    assert (ran.status, ran.out.split(":")[0]) == (1, "different")
    (here / "only").write_bytes(b"")
    ran = run("verify", "only", f"{url}v/", cwd=here)
    assert (ran.status, ran.out.split(":")[0]) == (1, "only here")


def test_checksum_files_pass_between_us_and_the_usual_tools(served: tuple[Path, str], here: Path) -> None:
    """What we write `sha256sum -c` and `xxhsum -c` accept, and the other way round; escapes included."""
    root, url = served
    names = ["plain", "with space", "back\\slash", "new\nline"]
    for folder in (here / "sums", root / "sums"):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(name.encode())
    ours = run("checksum", "--algorithm", "sha256", *names, cwd=here / "sums")
    assert ours.status == 0
    (here / "ours").write_text(ours.out)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", "../ours"], cwd=here / "sums", check=True)
        theirs = subprocess.run(["sha256sum", *names], cwd=here / "sums", check=True, capture_output=True).stdout
        assert theirs.decode() == ours.out
    assert run("checksum", "--check", "ours", "sums", cwd=here).status == 0
    assert run("checksum", "--check", "ours", f"{url}sums/", cwd=here).status == 0
    remote = run("checksum", "-r", f"{url}sums")
    (here / "remote").write_text(remote.out)
    if shutil.which("xxhsum"):
        plain = "".join(line for line in remote.out.splitlines(keepends=True) if not line.startswith("\\"))
        (here / "plain").write_text(plain)
        subprocess.run(["xxhsum", "--quiet", "-c", "plain"], cwd=here, check=True)
    (root / "sums/plain").write_bytes(b"changed")
    ran = run("checksum", "--check", "remote", url, cwd=here)
    assert ran.status == 1
    assert "sums/plain: FAILED\n" in ran.out
    assert "1 of 4 did not match" in ran.err


def test_listings_escape_names_and_minus_zero_gives_them_raw(served: tuple[Path, str]) -> None:
    """What a name holds never reaches the terminal raw; `-0` is for programs."""
    root, url = served
    (root / "nasty").mkdir()
    (root / "nasty" / NASTY).write_bytes(b"123")
    (root / "nasty/folder").mkdir()
    assert run("ls", f"{url}nasty").out == "folder/\nline\\nbreak\\x1b[31m\\u202e.txt\n"
    assert run("ls", "-0", f"{url}nasty").out == f"folder\0{NASTY}\0"
    assert "-rw" in run("ls", "-l", f"{url}nasty").out
    entry = json.loads(run("ls", "--json", f"{url}nasty").out.splitlines()[1])
    assert (entry["path"], entry["kind"], entry["size"]) == (NASTY, "file", 3)
    ran = run("download", f"{url}nasty/{NASTY}", "-")
    assert ran.out == "123"
    assert "\x1b" not in run("rm", f"{url}nasty/x\x1b[2J").err


def test_stat_mkdir_move_remove(served: tuple[Path, str]) -> None:
    """The file operations, and that moving into a folder keeps the name."""
    root, url = served
    assert run("mkdir", "-p", f"{url}ops/one").status == 0
    (root / "ops/f").write_bytes(b"123456")
    assert "size:  6 (6 B)" in run("stat", f"{url}ops/f").out
    assert json.loads(run("stat", "--json", f"{url}ops/f").out)["size"] == 6
    assert run("mv", f"{url}ops/f", f"{url}ops/one/").status == 0
    assert (root / "ops/one/f").read_bytes() == b"123456"
    assert run("rm", f"{url}ops/one/f").status == 0
    assert run("rm", "-r", f"{url}ops").status == 0
    assert not (root / "ops").exists()


def test_ping_tells_both_ends(served: tuple[Path, str]) -> None:
    """Round trip, version, limits, and the options as the kernel has them."""
    ran = run("ping", served[1])
    assert re.search(r"round trip \d+\.\d\d ms", ran.out)
    assert f"ftransfer/{ftransfer.__version__}, protocol 1" in ran.out
    assert ran.out.count("TCP_NODELAY: 1") == 2
    assert json.loads(run("ping", "--json", served[1]).out)["event"] == "ping"


def test_the_bar_moves_within_80_columns(served: tuple[Path, str], tmp_path: Path) -> None:
    """On a terminal one line shows name, phase, percentage, bytes and rate, and goes away at the end."""
    big = tmp_path / "a name that is much too long for the line it is shown on.bin"
    big.write_bytes(os.urandom(24 << 20))
    shown = Terminal("upload", "--limit-rate", "16M", big, f"{served[1]}bar/")
    shown.read_until(lambda text: "%" in text)
    assert shown.finish() == 0
    lines = frames(shown.text)
    bars = [line for line in lines if "%" in line and line.startswith("sending a name")]
    percentages = [int(re.search(r"(\d+)%", line)[1]) for line in bars]  # type: ignore[index]
    assert len(set(percentages)) >= 3
    assert percentages == sorted(percentages)
    assert max(map(len, bars)) <= 80
    assert lines[-1].startswith("1 file, 24.0 MiB")


def test_the_bar_begins_where_the_transfer_goes_on(served: tuple[Path, str], tmp_path: Path) -> None:
    """Ctrl-C says how to go on and ends by SIGINT; the next run starts at the resumed offset."""
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(32 << 20))
    url = f"{served[1]}ctrl-c/"
    shown = Terminal("upload", "--limit-rate", "16M", big, url)
    shown.read_until(lambda text: re.search(r"[3-9]\d%", text))
    shown.process.send_signal(signal.SIGINT)
    assert shown.finish() == -signal.SIGINT
    assert "interrupted: run the same command again, it goes on where it stopped" in shown.text
    assert "Traceback" not in shown.text
    shown = Terminal("upload", "--limit-rate", "16M", big, url)
    assert shown.finish() == 0
    first = next(line for line in frames(shown.text) if "%" in line)
    assert int(re.search(r"(\d+)%", first)[1]) >= 20  # type: ignore[index]
    assert "resumed at" in shown.text


def test_a_reader_that_leaves_is_no_error(served: tuple[Path, str]) -> None:
    """`ftransfer download URL - | head` ends like any filter does, without a word."""
    root, url = served
    (root / "long").write_bytes(bytes(20 << 20))
    done = subprocess.run(
        f"{sys.executable} -m ftransfer download -q {url}long - | head -c 10 | wc -c",
        shell=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (b"10", b"")


def test_serve_prints_an_address_that_can_be_pasted(tmp_path: Path) -> None:
    """One line on stdout, with the real port; a log line for each request; SIGTERM ends it with 0."""
    (tmp_path / "f").write_bytes(b"data")
    with serving(tmp_path) as (url, process):
        assert run("download", f"{url}f", "-").out == "data"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert re.search(r"127\.0\.0\.1:\d+ owner get f 4 bytes .* MiB/s received", err)
    assert not re.search(r"warning|note|ftt_", err)


def test_a_read_only_server_refuses_with_5(tmp_path: Path, here: Path) -> None:
    """Nothing is written, and the message says why."""
    root = tmp_path / "ro"
    root.mkdir()
    with serving(root, "--read-only", "-q") as (url, _):
        ran = run("upload", "a.txt", url, cwd=here)
    assert (ran.status, os.listdir(root)) == (5, [])
    assert "error: the server says: this server only lets you read" in ran.err


def test_the_demo_shows_it_all(here: Path) -> None:
    """Upload, cut, resume, download, verify; status 0 and nothing left behind."""
    ran = run("demo", here)
    assert ran.status == 0, ran.err
    for word in ("the line is cut", "error: the connection was lost (", "resumed at", "same: back.bin", "same: a.txt"):
        assert word in ran.out
    assert sorted(os.listdir(here)) == ["a.txt"]


def test_what_start_up_leaves_alone(served: tuple[Path, str], here: Path) -> None:
    """An upload of a small file loads no bar, no OpenSSL and no server; `--version` loads next to nothing."""
    show = "import sys; sys.argv[1:]={words!r}; from ftransfer.cli import main; s=main(); print(*sorted(sys.modules))"
    version = _modules(show.format(words=["--version"]), here)
    assert not version & {"argparse", "json", "socket", "xxhash", "ftransfer.errors"}
    upload = _modules(show.format(words=["upload", "-q", "a.txt", f"{served[1]}start/"]), here)
    assert not upload & {"tqdm", "_hashlib", "ssl", "logging", "dataclasses", "ftransfer.server", "urllib.parse"}


def _modules(code: str, cwd: Path) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, check=True, timeout=30)
    return set(done.stdout.decode().splitlines()[-1].split())


def test_sources_that_would_collide_are_refused_before_the_first_byte(served: tuple[Path, str], here: Path) -> None:
    """Two files of one name into one folder: nothing is sent, in either direction, and the name is told."""
    root, url = served
    for folder in ("d1", "d2"):
        (here / folder).mkdir()
        (here / folder / "same").write_bytes(folder.encode())
    ran = run("upload", "d1/same", "d2/same", f"{url}collide/", cwd=here)
    assert (ran.status, (root / "collide").exists()) == (2, False)
    assert "several sources would end up as collide/same" in ran.err
    for folder in ("e1", "e2"):
        (root / folder).mkdir()
        (root / folder / "n").write_bytes(folder.encode())
    ran = run("download", f"{url}e1/n", f"{url}e2/n", "col/", cwd=here)
    assert (ran.status, (here / "col").exists()) == (2, False)


def test_one_unusable_name_stops_all_before_the_first_byte(served: tuple[Path, str], here: Path) -> None:
    """All of them are named."""
    root, url = served
    for name in ("one", ".ftransfer-x", ".FTRANSFER"):
        (here / name).write_bytes(b"1")
    ran = run("upload", "one", ".ftransfer-x", ".FTRANSFER", f"{url}names/", cwd=here)
    assert (ran.status, (root / "names").exists()) == (2, False)
    assert "2 names cannot be used: names/.ftransfer-x, names/.FTRANSFER" in ran.err


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="NOT TESTED: no /proc")
def test_files_that_the_kernel_makes_up_are_read_to_their_end(served: tuple[Path, str], tmp_path: Path) -> None:
    """They say that they are empty; a client sends what they hold, and a server does not serve them as empty."""
    root, url = served
    assert run("upload", "/proc/version", f"{url}version").status == 0
    assert (root / "version").read_bytes() == Path("/proc/version").read_bytes()
    with serving(Path("/proc/sys/kernel"), "--read-only") as (proc, _):
        ran = run("download", f"{proc}ostype", tmp_path / "x")
    assert (ran.status, (tmp_path / "x").exists()) == (2, False)
    assert "made" in ran.err or "makes it up" in ran.err


def test_a_time_that_differs_is_a_difference(served: tuple[Path, str], here: Path) -> None:
    """A clock that can tell nanoseconds is taken at its word, also where the stored time is a whole second."""
    root, url = served
    for content, when in ((b"AAAA", 1_700_000_000_000_000_000), (b"BBBB", 1_700_000_001_900_000_000)):
        (here / "t").write_bytes(content)
        os.utime(here / "t", ns=(when, when))
        assert run("upload", "-q", "t", f"{url}times/t", cwd=here).status == 0
    assert (root / "times/t").read_bytes() == b"BBBB"


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">/dev/full", "2>/dev/full", ">&- 2>&-"])
def test_an_upload_does_not_depend_on_who_listens(served: tuple[Path, str], here: Path, redirect: str) -> None:
    """Closed or full standard streams change neither what is done nor the status."""
    if "full" in redirect and not Path("/dev/full").exists():
        pytest.skip("NOT TESTED: no /dev/full")
    root, url = served
    name = f"who/{abs(hash(redirect))}"
    done = subprocess.run(
        f"{sys.executable} -m ftransfer upload a.txt {url}{name} {redirect}",
        shell=True,
        cwd=here,
        check=False,
        timeout=30,
    )
    assert (done.returncode, (root / name).read_bytes()) == (0, b"hello\n")


def test_output_that_cannot_be_written_is_an_error(served: tuple[Path, str], here: Path) -> None:
    """A listing or a download that nobody could read did not succeed; a missing standard input is not an empty one."""
    root, url = served
    (root / "f").write_bytes(b"data")
    commands = {"ls URL >/dev/full": 8, "download -q URLf - >/dev/full": 8, "stat --json URLno >/dev/full": 3}
    if not Path("/dev/full").exists():
        commands = {}
    commands["upload - URLnothing <&-"] = 2
    for command, status in commands.items():
        done = subprocess.run(
            f"{sys.executable} -m ftransfer {command.replace('URL', url)}",
            shell=True,
            cwd=here,
            check=False,
            capture_output=True,
            timeout=30,
        )
        assert done.returncode == status, command
        assert b"Traceback" not in done.stderr
    assert not (root / "nothing").exists()


def test_names_are_shown_on_a_terminal_of_any_encoding(served: tuple[Path, str]) -> None:
    """What its encoding lacks is escaped."""
    root, url = served
    (root / "enc").mkdir()
    (root / "enc/\u00fc").write_bytes(b"")
    assert run("ls", f"{url}enc", env={"PYTHONIOENCODING": "ascii"}).out == "\\xfc\n"


def test_a_failing_upload_of_standard_input_has_its_status(tmp_path: Path) -> None:
    """Also while the producer still holds the pipe open."""
    with serving(tmp_path, "--read-only", "-q") as (url, _):
        words = [sys.executable, "-m", "ftransfer", "upload", "-", f"{url}x"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.wait(30) == 5


def test_max_time_ends_local_hashing_too(served: tuple[Path, str]) -> None:
    """`checksum` and `verify` of something without an end."""
    for words in (["checksum", "/dev/zero"], ["verify", "/dev/zero", f"{served[1]}absent"]):
        ran = run(*words, "--max-time", "0.3s")
        assert ran.status == 4, words


def test_verify_goes_on_after_a_name_that_is_nowhere(served: tuple[Path, str], here: Path) -> None:
    """The others are compared; the status says that not all was well; alone it is not found."""
    run("upload", "-q", "a.txt", f"{served[1]}nowhere/", cwd=here)
    ran = run("verify", "absent", "a.txt", f"{served[1]}nowhere/", cwd=here)
    assert (ran.status, [line.split(":")[0] for line in ran.out.splitlines()]) == (1, ["missing", "same"])
    assert run("verify", "absent", f"{served[1]}nowhere/", cwd=here).status == 3


def test_a_low_rate_still_gets_forward(tmp_path: Path, here: Path) -> None:
    """The slices are small enough that no pause looks like a dead peer."""
    (here / "slow").write_bytes(bytes(range(256)) * 160)
    with serving(tmp_path, "--timeout", "1s", "-q") as (url, _):
        words = ["--limit-rate", "20K", "--retry-for", "0"]
        assert run("upload", *words, "slow", f"{url}slow", cwd=here).status == 0
        assert run("download", *words, f"{url}slow", "back", cwd=here).status == 0
    assert (here / "back").read_bytes() == (here / "slow").read_bytes()


def test_standard_input_that_does_not_block_is_read_to_its_end(served: tuple[Path, str]) -> None:
    """Nothing there yet is not the end."""
    root, url = served
    near, far = os.pipe()
    os.set_blocking(near, False)
    words = [sys.executable, "-m", "ftransfer", "upload", "-v", "-", f"{url}nonblock"]
    with subprocess.Popen(words, stdin=near, stderr=subprocess.PIPE) as process:
        os.close(near)
        os.write(far, b"1" * 1000)
        until = time.monotonic() + 20
        while not list(root.glob(".ftransfer-*")) and time.monotonic() < until:
            select.select([], [], [], 0.02)  # until the first half is being stored
        os.write(far, b"2" * 1000)
        os.close(far)
        assert process.wait(20) == 0
    assert (root / "nonblock").read_bytes() == b"1" * 1000 + b"2" * 1000


def test_a_stream_is_not_compared_with_a_file_named_dash(served: tuple[Path, str], here: Path) -> None:
    """`-` is standard input, also for `--compare hash`."""
    root, url = served
    (here / "-").write_bytes(b"hello")
    (root / "dash").write_bytes(b"hello")
    assert run("upload", "-", "--compare", "hash", f"{url}dash", cwd=here, stdin=b"HELLO").status == 0
    assert (root / "dash").read_bytes() == b"HELLO"


def test_a_json_error_that_nobody_reads_is_no_traceback(served: tuple[Path, str]) -> None:
    """The reader of a pipe may have left."""
    command = f"{sys.executable} -m ftransfer stat --json {served[1]}missing"
    done = subprocess.run(f"({command}; echo $? >&2) | true", shell=True, capture_output=True, check=False, timeout=30)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("policy", "status", "says"), [("skip", 0, "not sent"), ("newer", 0, "not sent"), ("fail", 11, "exists")]
)
def test_a_folder_that_cannot_be_written_to_is_only_looked_at(
    served: tuple[Path, str], here: Path, policy: str, status: int, says: str
) -> None:
    """Whether a name is taken can be told without writing there."""
    if os.geteuid() == 0:
        pytest.skip("NOT TESTED: root may write everywhere")
    root, url = served
    (root / "ro").write_bytes(b"12345")
    os.utime(root / "ro", ns=(1_700_000_001_900_000_000,) * 2)
    folder = here / "readonly"
    folder.mkdir()
    (folder / "ro").write_bytes(b"54321")
    os.utime(folder / "ro", ns=(1_700_000_002_000_000_000 if policy == "newer" else 1_700_000_001_000_000_000,) * 2)
    folder.chmod(0o555)
    ran = run("download", "--if-exists", policy, f"{url}ro", "readonly/", cwd=here)
    folder.chmod(0o755)
    assert ran.status == status
    assert says in ran.err


@pytest.mark.parametrize(
    "words", [["ping", "ft://127.0.0.1:1"], ["ping", "-v", "ft://127.0.0.1:1"]], ids=["plain", "-v"]
)
def test_a_fault_of_our_own_has_its_own_status(words: list[str]) -> None:
    """Never 1, which would mean a difference; -v shows where it was."""
    code = (
        f"import sys; from ftransfer.cli import files, main; files.ping = lambda *_: 1 // 0\nsys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=30)
    assert done.returncode == 10
    assert b"error: internal error: ZeroDivisionError" in done.stderr
    assert (b"Traceback" in done.stderr) == ("-v" in words)

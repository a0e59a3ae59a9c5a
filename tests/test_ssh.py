"""Everything over ssh, through a real sshd: files, folders, operations, names, streams, the API, forced commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND
from faults import reserved
from forests import bound_by_rights, contents, facts, grove, same_facts, same_trees
from sshd import HOST, There, script
from support import staged

import ftransfer
from ftransfer import errors

NASTY = "line\nbreak\x1b[31m\u202e.txt"
NAMES = [
    "plain",
    "with blank",
    NASTY,
    "quote'\"`$(touch broken)",
    "-rf",
    "~",
    "back\\slash",
    "%41%",
]


def nothing_is_staged(there: There) -> None:
    """Fail the test if a part of a transfer is left in the home or the state folder there."""
    own = there.state.relative_to(there.home).as_posix()
    assert [name for name in reserved(there.home) if not name.startswith(own)] == []
    assert (staged(there.home), reserved(there.state)) == ([], [])


# Files.


def test_a_file_goes_up_and_comes_down(there: There, here: Path, tmp_path: Path) -> None:
    """The path is an absolute one; each command is one connection; the last line says what was proven."""
    target = tmp_path / "away" / "in"
    with there.one_connection():
        ran = there.run("upload", "a.txt", f"{there.url(target)}/", cwd=here)
    assert (ran.status, ran.out) == (0, "")
    first, last = ran.err.splitlines()
    assert first == f"to {there.url(target)}/a.txt"
    assert re.fullmatch(r"1 file, 6 B in .*, verified, durable", last)
    assert (target / "a.txt").read_bytes() == b"hello\n"
    assert (target / "a.txt").stat().st_mtime_ns == (here / "a.txt").stat().st_mtime_ns
    with there.one_connection():
        ran = there.run("download", f"{there.url(target)}/a.txt", "back", cwd=here)
    assert (ran.status, (here / "back").read_bytes()) == (0, b"hello\n")
    assert sorted(os.listdir(target)) == ["a.txt"]
    nothing_is_staged(there)


def test_a_path_may_begin_at_the_home(there: There, here: Path) -> None:
    """`ssh://HOST/~/PATH`; the home is the one that the environment there says."""
    assert there.run("upload", "-q", "a.txt", f"ssh://{HOST}/~/in/", cwd=here) == (0, "", "")
    assert (there.home / "in/a.txt").read_bytes() == b"hello\n"
    assert there.run("download", "-q", f"ssh://{HOST}/~/in/a.txt", "-").out == "hello\n"
    assert there.run("upload", "-q", "a.txt", f"ssh://{HOST}/~", cwd=here) == (0, "", "")
    assert (there.home / "a.txt").exists()


def test_a_large_file_is_verified_on_the_way(there: There, data_file: Path, here: Path) -> None:
    """Blocks, window and receipt over two pipes; both ends hash, and the second run sends nothing."""
    target = there.home / "data.bin"
    ran = there.run("upload", "--json", data_file, there.url(target))
    file, summary = map(json.loads, ran.out.splitlines())
    assert (file["result"], file["durable"], summary["failed"]) == ("sent", True, 0)
    assert target.read_bytes() == data_file.read_bytes()
    assert there.run("verify", data_file, there.url(target)).status == 0
    assert there.run("upload", data_file, there.url(target)).err.splitlines()[-1] == "1 file already there"
    assert there.run("download", "-q", there.url(target), "copy", cwd=here).status == 0
    assert (here / "copy").read_bytes() == data_file.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_travels(there: There, here: Path, name: str) -> None:
    """No shell on the way reads it, and none reaches the terminal raw."""
    (here / name).write_bytes(name.encode(errors="surrogateescape"))
    ran = there.run("upload", "-v", f"./{name}", there.url("in/"), cwd=here)
    assert (ran.status, os.listdir(there.home / "in")) == (0, [name])
    assert "\x1b" not in ran.out + ran.err
    (here / "got").mkdir()
    with ftransfer.connect(there.url("in"), ssh=shlex.join(there.ssh)) as remote:
        remote.download(name, here / "got")
    assert (here / "got" / name).read_bytes() == (here / name).read_bytes()
    assert sorted(os.listdir(here)) == sorted({name, "a.txt", "got"})


def test_an_empty_file_and_an_empty_folder_travel(there: There, here: Path) -> None:
    """Both ways."""
    (here / "t/nothing").mkdir(parents=True)
    (here / "t/empty").touch()
    assert there.run("upload", "-q", "t", there.url(""), cwd=here).status == 0
    assert there.run("download", "-q", there.url("t"), "back/", cwd=here).status == 0
    same_trees(here / "t", here / "back/t")


def test_streams(there: There, here: Path) -> None:
    """Standard input and output carry the data, which ssh does not touch; stdout gets nothing else."""
    data = os.urandom(3_000_000)
    with there.one_connection():
        assert there.run("upload", "-", there.url("stream"), stdin=data).status == 0
    assert (there.home / "stream").read_bytes() == data
    with open(here / "out", "wb") as out:
        subprocess.run(
            [*COMMAND, "download", "-q", there.url("stream"), "-"],
            stdout=out,
            check=True,
            timeout=30,
            env=os.environ | there.env,
        )
    assert (here / "out").read_bytes() == data


def test_ssh_does_not_read_what_is_typed_for_others(there: There, here: Path) -> None:
    """In a shell's loop over standard input, the command takes none of it."""
    command = f"{shlex.join(COMMAND)} upload -q a.txt {there.url('loop/')}; cat"
    done = subprocess.run(
        command, shell=True, cwd=here, input=b"rest\n", capture_output=True, check=False, timeout=30,
        env=os.environ | there.env,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"rest\n", b"")


def test_what_is_missing_has_status_3(there: There, here: Path) -> None:
    """In both directions, and the message says which end."""
    ran = there.run("download", there.url("absent"), cwd=here)
    assert ran.status == 3
    assert ran.err.startswith("error: the server says: ")
    assert "no such file or folder" in ran.err
    with there.one_connection():
        ran = there.run("stat", "--json", there.url("absent"))
    assert (ran.status, json.loads(ran.out)["error"]["code"]) == (3, "not-found")
    assert there.run("upload", "absent", there.url(""), cwd=here).status == 3


def test_what_this_user_may_not_write_there_has_status_5(there: There, here: Path) -> None:
    """The rights of the account count, and the old state stays."""
    bound = bound_by_rights()
    if bound is None:
        pytest.skip("NOT TESTED: root may write everywhere")
    (there.home / "ro").mkdir()
    (there.home / "ro").chmod(0o555)
    command = script(there.base / "bound", f'exec {shlex.join([*bound, *COMMAND])} "$@"') if bound else "ftransfer"
    ran = there.run("upload", "--remote-command", str(command), "a.txt", there.url("ro/"), cwd=here)
    (there.home / "ro").chmod(0o755)
    assert ran.status == 5, ran.err
    assert "error: " in ran.err
    assert os.listdir(there.home / "ro") == []


# Folders.


@pytest.mark.parametrize("large", [0, 2 << 20], ids=["packs", "large"])
def test_a_folder_goes_up_and_comes_down(there: There, here: Path, large: int) -> None:
    """Bytes, modes, times and links arrive; either way, and to verify it, is one connection."""
    source = grove(here / "tree", large=large)
    before = facts(source, own=True)
    with there.one_connection():
        ran = there.run("upload", "tree", there.url(""), cwd=here)
    assert ran.status == 0, ran.err
    same_facts(before, facts(there.home / "tree", own=True))
    with there.one_connection():
        ran = there.run("download", there.url("tree"), "back/", cwd=here)
    assert ran.status == 0, ran.err
    same_facts(before, facts(here / "back/tree", own=True))
    with there.one_connection():
        ran = there.run("verify", "tree", there.url(""), cwd=here)
    assert ran.status == 0, ran.err
    (there.home / "tree/a/f0").write_bytes(b"changed")
    assert there.run("verify", there.url("tree"), "back/", cwd=here).status == 1
    nothing_is_staged(there)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_delete_removes_what_the_source_lacks(there: There, here: Path, direction: str) -> None:
    """Both listings, the transfer and the deletions share one connection; a dry run only tells."""
    local, remote = here / "tree", there.home / "tree"
    source, dest = (local, remote) if direction == "upload" else (remote, local)
    grove(source, 30)
    grove(dest, 40, seed=1)
    (dest / "surplus/deep").mkdir(parents=True)
    (dest / "surplus/deep/file").touch()
    wanted, old = facts(source), facts(dest)
    words = ["--delete", "tree", there.url("")] if direction == "upload" else ["--delete", there.url("tree"), "."]
    with there.one_connection():
        ran = there.run(direction, "--dry-run", *words, cwd=here)
    assert ran.status == 0, ran.err
    assert "surplus" in ran.out
    same_facts(facts(dest), old)
    with there.one_connection():
        ran = there.run(direction, *words, cwd=here)
    assert ran.status == 0, ran.err
    same_facts(facts(dest), wanted)


def test_several_files_and_folders_share_a_connection(there: There, here: Path) -> None:
    """One command, one ssh, both ways."""
    grove(here / "one", 10)
    grove(here / "two", 10, seed=2)
    with there.one_connection():
        assert there.run("upload", "-q", "a.txt", "one", "two", there.url("in/"), cwd=here).status == 0
    assert contents(there.home / "in") == contents(here)
    with there.one_connection():
        sources = [there.url(f"in/{name}") for name in ("a.txt", "one", "two")]
        assert there.run("download", "-q", *sources, "back/", cwd=here).status == 0
    assert contents(here / "back") == contents(there.home / "in")


# The other commands.


def test_the_file_operations(there: There, here: Path) -> None:
    """List, stat, mkdir, move, remove, checksum, partials: what they do on any server."""
    (there.home / "listed").mkdir()
    (there.home / "listed/f").touch()
    (there.home / "listed" / NASTY).touch()
    (there.home / "f").write_bytes(b"123456")
    assert there.run("ls", there.url("listed")).out.splitlines() == ["f", "line\\nbreak\\x1b[31m\\u202e.txt"]
    assert json.loads(there.run("stat", "--json", there.url("f")).out)["size"] == 6
    assert there.run("mkdir", "-p", there.url("ops/one")).status == 0
    assert there.run("mv", there.url("f"), there.url("ops/one/")).status == 0
    assert (there.home / "ops/one/f").read_bytes() == b"123456"
    listed = there.run("checksum", "--algorithm", "sha256", "-r", there.url("ops"))
    (here / "sums").write_text(listed.out)
    assert re.fullmatch(r"8d969eef\w{56}  ~/ops/one/f\n", listed.out)
    assert there.run("rm", "-r", there.url("ops")).status == 0
    assert not (there.home / "ops").exists()
    assert there.run("partials", there.url("")).status == 0


def test_ping_tells_both_ends(there: There) -> None:
    """Round trip, version and limits; where sockets have options, it says what the line is."""
    ran = there.run("ping", there.url(""))
    assert ran.status == 0, ran.err
    assert re.search(r"round trip \d+\.\d\d ms", ran.out)
    assert f"ftransfer/{ftransfer.__version__}, protocol 1" in ran.out
    event = json.loads(there.run("ping", "--json", there.url("")).out)
    assert event["event"] == "ping"


def test_the_options_of_ssh_come_from_the_command_line_or_the_environment(there: There, here: Path) -> None:
    """`--ssh` goes before FTRANSFER_SSH, is split as a shell would, and is started once."""
    count = here / "count"
    wrapper = script(here / "my ssh", f'echo "$@" >> {shlex.quote(str(count))}\nexec {shlex.join(there.ssh)} "$@"')
    words = ["--ssh", shlex.join([str(wrapper), "-o", "LogLevel=ERROR"])]
    grove(here / "tree", 10)
    ran = there.run("upload", *words, "-q", "tree", there.url(""), cwd=here, env={"FTRANSFER_SSH": "/nonexistent"})
    assert ran == (0, "", "")
    assert there.run("download", *words, "-q", there.url("tree"), "back/", cwd=here).status == 0
    assert [line.split()[:2] for line in count.read_text().splitlines()] == [["-o", "LogLevel=ERROR"]] * 2
    same_trees(here / "tree", here / "back/tree")


def test_user_and_port_of_the_address_go_to_ssh(there: There, here: Path) -> None:
    """They win over the configuration."""
    there.set_options(Port="1", User="nobody-of-that-name")
    url = f"ssh://{there.sshd.user}@{HOST}:{there.sshd.port}/~/in/"
    ran = there.run("upload", "a.txt", url, cwd=here)
    assert ran.status == 0, ran.err
    assert (there.home / "in/a.txt").exists()


def test_what_is_typed_is_not_seen_by_ssh_as_an_option(there: There, here: Path) -> None:
    """A host or user that begins with a dash, or holds what a shell would read, is refused; nothing is started."""
    count = here / "count"
    wrapper = script(here / "ssh", f"echo started >> {shlex.quote(str(count))}; exit 255")
    for address in (
        "ssh://-oProxyCommand=touch%20started/x",
        "ssh://-oProxyCommand=touch${IFS}started/x",
        "ssh://-oProxyCommand=touch%20started@there/x",
        "ssh://%2DoProxyCommand=id@there/x",
        "ssh://%2DF/x",
        "ssh://-F@there/x",
        "ssh://-Gthere/x",
        "ssh://two words/x",
        "ssh://me too@there/x",
        "ssh://there\n/x",
        "ssh://$(touch started)/x",
        "ssh://`touch started`/x",
        "ssh://there;id/x",
        "ssh:///x",
        "ssh://@/x",
        "ssh://there:99999/x",
        "ssh://there:-1/x",
        "ssh://@there/x",
    ):
        ran = there.run("ping", "--ssh", str(wrapper), address, cwd=here)
        assert (ran.status, count.exists()) == (2, False), (address, ran)
        assert ran.err.startswith("error: ")


def test_staging_lives_in_the_state_folder_there(there: There, here: Path) -> None:
    """The root is `/`, so no journal is made at the root; the state folder there holds none after success either."""
    before = set(os.listdir("/"))
    grove(here / "tree", 20)
    assert there.run("upload", "-q", "tree", there.url(""), cwd=here).status == 0
    assert set(os.listdir("/")) - before <= set()
    nothing_is_staged(there)
    for path in there.home.rglob("*"):
        if ".local" in path.parts and path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or "ftransfer" not in str(path)


def test_a_login_gives_the_address_a_name(there: There, here: Path) -> None:
    """`NAME:rel` begins at the home, `NAME:/abs` is absolute; logout forgets it."""
    with there.one_connection():
        ran = there.run("login", there.url(""), "--as", "lab")
    assert ran.status == 0, ran.err
    assert there.run("remotes").out.startswith(f"lab:  ssh://{HOST}/")
    assert there.run("upload", "-q", "a.txt", "lab:in/", cwd=here) == (0, "", "")
    assert (there.home / "in/a.txt").read_bytes() == b"hello\n"
    assert there.run("download", "-q", f"lab:{there.home}/in/a.txt", "-").out == "hello\n"
    assert there.run("ls", "lab:in").out == "a.txt\n"
    assert there.run("logout", "lab").status == 0
    assert there.run("ls", "lab:").status != 0


# The API.


def test_the_api_takes_the_address_and_the_command_of_ssh(there: There, here: Path) -> None:
    """`connect` with `ssh=`; requests share the connection; closing ends what ran there."""
    with there.one_connection():
        with ftransfer.connect(there.url("api/"), ssh=shlex.join(there.ssh), timeout=20) as remote:
            result = remote.upload(here / "a.txt", "")
            assert result.files[0].result == "sent"
            assert [entry.path for entry in remote.list()] == ["a.txt"]
            remote.move("a.txt", "b.txt")
            remote.download("b.txt", here / "b.txt")
            assert remote.checksum("b.txt").hex == ftransfer.checksum_file(here / "b.txt").hex
            remote.remove("b.txt")
            grove(here / "tree", 20)
            remote.upload(here / "tree", "")
            remote.download("tree", here / "back/")
        same_trees(here / "tree", here / "back/tree")
    assert (here / "b.txt").read_bytes() == b"hello\n"
    there.is_left()


def test_the_api_gives_what_ssh_says_to_whoever_asks(there: There, capfd: pytest.CaptureFixture[str]) -> None:
    """Lines of ssh's own go to `on_message`, and the library prints nothing."""
    there.sshd.set_banner(b"authorised people only\n")
    try:
        said: list[str] = []
        with ftransfer.connect(there.url(""), ssh=shlex.join(there.ssh), on_message=said.append) as remote:
            remote.ping()
        with ftransfer.connect(there.url(""), ssh=shlex.join(there.ssh)) as remote:
            remote.ping()
    finally:
        there.sshd.set_banner(b"")
    assert any("authorised people only" in line for line in said)
    assert capfd.readouterr() == ("", "")


def test_an_error_there_is_an_exception_here(there: There) -> None:
    """Of the same types as with any server, and the connection can be used on."""
    with (
        there.one_connection(),
        ftransfer.connect(there.url(""), ssh=shlex.join(there.ssh), retry_for=0) as remote,
    ):
        with pytest.raises(errors.NotFound):
            remote.stat("absent")
        assert remote.stat("").kind == "folder"


# `serve --stdio DIR`, as a forced command.


@pytest.fixture
def share(there: There) -> Path:
    """A folder to which a key is confined, with a file outside it and links that lead there."""
    root = there.home / "share"
    root.mkdir()
    (there.home / "secret").write_bytes(b"secret")
    (root / "inside").write_bytes(b"inside")
    (root / "out").symlink_to(there.home)
    (root / "file").symlink_to(there.home / "secret")
    there.force(shlex.join([*COMMAND, "serve", "--stdio", str(root)]))
    return root


def test_a_forced_command_confines_to_its_folder(there: There, here: Path, share: Path) -> None:
    """The root of the address is the folder; neither `..`, nor absolute names, nor links lead out of it."""
    assert there.run("download", "-q", f"ssh://{HOST}/inside", "-").out == "inside"
    assert there.run("upload", "-q", "a.txt", f"ssh://{HOST}/new/", cwd=here) == (0, "", "")
    assert (share / "new/a.txt").exists()
    for path in ("../secret", "out/secret", "file", str(there.home / "secret")):
        ran = there.run("download", f"ssh://{HOST}/{path}", "-")
        assert (ran.status in (2, 3, 5), ran.out) == (True, ""), (path, ran)
    ran = there.run("upload", "a.txt", f"ssh://{HOST}/out/new/deep", cwd=here)
    assert ran.status in (2, 5), ran
    assert "Traceback" not in ran.err
    assert (there.home / "secret").read_bytes() == b"secret"
    assert sorted(os.listdir(there.home)) == ["secret", "share"]


@pytest.mark.usefixtures("share")
def test_a_forced_command_ignores_what_the_client_wants_to_run(there: There, here: Path) -> None:
    """`--remote-command` is only a wish then."""
    mark = here / "ran"
    ran = there.run("ls", "--remote-command", f"touch {shlex.quote(str(mark))}; ftransfer", f"ssh://{HOST}/")
    assert (ran.status, mark.exists()) == (0, False)
    assert "inside" in ran.out
    assert "secret" not in ran.out


def _forced(there: There, root: Path, *options: str) -> None:
    there.force(shlex.join([*COMMAND, "serve", "--stdio", str(root), *options]))


def test_a_forced_command_can_be_read_only(there: There, here: Path, share: Path) -> None:
    """Everything is read, nothing written, and the status is 5."""
    _forced(there, share, "--read-only")
    assert there.run("download", "-q", f"ssh://{HOST}/inside", "-").out == "inside"
    for words in (["upload", "a.txt", f"ssh://{HOST}/"], ["rm", f"ssh://{HOST}/inside"], ["mkdir", f"ssh://{HOST}/n"]):
        assert there.run(*words, cwd=here).status == 5, words
    assert sorted(os.listdir(share)) == ["file", "inside", "out"]


def test_a_forced_command_can_be_a_drop_box(there: There, here: Path, share: Path) -> None:
    """`--anonymous create`: new files come in, nothing is replaced, read or removed."""
    _forced(there, share, "--anonymous", "create")
    assert there.run("upload", "-q", "a.txt", f"ssh://{HOST}/dropped", cwd=here) == (0, "", "")
    assert (share / "dropped").read_bytes() == b"hello\n"
    (here / "a.txt").write_bytes(b"other\n")
    assert there.run("upload", "--compare", "none", "a.txt", f"ssh://{HOST}/inside", cwd=here).status in (5, 11)
    assert there.run("download", f"ssh://{HOST}/inside", "-").status == 5
    assert there.run("rm", f"ssh://{HOST}/inside").status == 5
    assert (share / "inside").read_bytes() == b"inside"


def test_what_is_served_over_standard_input_has_one_connection_and_an_end(tmp_path: Path) -> None:
    """`serve --stdio` ends with its standard input, and says nothing but frames on standard output."""
    done = subprocess.run(
        [*COMMAND, "serve", "--stdio", str(tmp_path)], input=b"", capture_output=True, check=False, timeout=20
    )
    assert (done.stdout, b"Traceback" in done.stderr) == (b"", False)


def test_start_up_stays_quick(there: There) -> None:
    """What only ssh needs is loaded only then, and asyncio, TLS and bars never."""
    show = "import sys; sys.argv[1:]={words!r}; from ftransfer.cli import main; s=main(); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", show.format(words=["mkdir", "-p", there.url("x")])],
        capture_output=True,
        check=True,
        timeout=30,
        env=os.environ | there.env,
    )
    loaded = set(done.stdout.decode().splitlines()[-1].split())
    assert not loaded & {"ssl", "tqdm", "asyncio", "logging", "ftransfer.server", "zipfile", "dataclasses"}

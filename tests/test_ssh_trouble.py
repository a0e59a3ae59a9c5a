"""Over ssh, when it is not simple: nothing installed there, noise, banners, prompts, refusals, and other versions."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command import Ran, Terminal
from sshd import HOST, There, new_key, program, script

import ftransfer
from ftransfer import errors

NOISE_LIMIT = 64 << 10
RED = b"\x1b[31mred\x07\x9b31m\x1b]0;title\x07"
"""Bytes that would do something to a terminal."""


def code_of(ran: Ran) -> str:
    """Return the code of the error event that a command with `--json` ended with."""
    code: str = json.loads(ran.out.splitlines()[-1])["error"]["code"]
    return code


def is_plain(*texts: str) -> bool:
    """Tell whether texts hold nothing that acts on a terminal."""
    return not any(
        (ord(char) < 32 and char not in "\r\n\t") or 127 <= ord(char) < 160 for text in texts for char in text
    )


def below(folder: Path) -> list[str]:
    """Return all that is in a folder, but bash's and Python's own."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def in_cache(there: There) -> Path:
    """Return where login puts the archive there."""
    return there.home / ".cache/ftransfer" / f"ftransfer-{ftransfer.__version__}"


# Nothing installed there.


def test_not_installed_there_says_how_to_install_it(there: There, here: Path) -> None:
    """A status, a code and the one line to type; nothing is left behind there."""
    there.bare()
    ran = there.run("upload", "a.txt", there.url("in/"), cwd=here)
    assert ran.status == 4
    assert "error: " in ran.err
    assert f"ftransfer login ssh://{HOST}" in ran.err
    assert "--install" in ran.err
    ran = there.run("ping", "--json", there.url(""))
    assert (ran.status, code_of(ran)) == (4, "not-installed")
    assert below(there.home) == []


def test_it_is_not_tried_again_where_it_is_not_installed(there: There) -> None:
    """`--retry-for` does not help against that."""
    there.bare()
    with there.one_connection():
        assert there.run("ping", "--retry-for", "20s", there.url("")).status == 4


def test_found_in_local_bin(there: There, here: Path) -> None:
    """`~/.local/bin` often is not on the PATH of a shell that nobody logs in to."""
    there.bare()
    (there.home / ".local/bin").mkdir(parents=True)
    command = Path(sys.executable).with_name("ftransfer")
    script(there.home / ".local/bin/ftransfer", f'echo "$@" > "$HOME/said"; exec {shlex.quote(str(command))} "$@"')
    with there.one_connection():
        ran = there.run("upload", "-q", "a.txt", there.url("in/"), cwd=here)
    assert ran == (0, "", "")
    assert (there.home / "in/a.txt").exists()
    assert (there.home / "said").read_text().split()[:2] == ["serve", "--stdio"]


def test_the_path_goes_before_the_other_places(there: There, here: Path) -> None:
    """What the user there has chosen is taken."""
    (there.home / ".local/bin").mkdir(parents=True)
    script(there.home / ".local/bin/ftransfer", "exit 3")
    assert there.run("upload", "-q", "a.txt", there.url("in/"), cwd=here) == (0, "", "")


def test_login_installs_an_archive_that_runs_there(there: There, here: Path) -> None:
    """One executable file in the cache, for this user alone to change; from then on everything works, and is reused."""
    there.bare()
    ran = there.run("login", there.url(""), "--as", "lab", "--install")
    assert ran.status == 0, ran.err
    archive = in_cache(there)
    assert below(there.home / ".cache") == ["ftransfer", f"ftransfer/{archive.name}"]
    assert stat.S_IMODE(archive.stat().st_mode) & 0o722 == 0o700
    before = archive.stat()
    assert there.run("upload", "-q", "a.txt", "lab:in/", cwd=here).status == 0
    assert (there.home / "in/a.txt").read_bytes() == b"hello\n"
    assert there.run("download", "-q", there.url("in/a.txt"), "-").out == "hello\n"
    ran = there.run("login", there.url(""), "--as", "again", "--install")
    assert ran.status == 0, ran.err
    after = archive.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert below(there.home / ".cache") == ["ftransfer", f"ftransfer/{archive.name}"]


def test_where_it_is_installed_login_copies_nothing(there: There) -> None:
    """`--install` is only for where there is none."""
    with there.one_connection():
        assert there.run("login", there.url(""), "--as", "lab", "--install").status == 0
    assert not (there.home / ".cache").exists()


def test_the_cache_folder_may_be_elsewhere_there(there: There, here: Path) -> None:
    """XDG_CACHE_HOME, as it is there; its blanks and quotes are no trouble."""
    there.bare()
    cache = there.home / "my ca'che"
    there.set_environment(XDG_CACHE_HOME=str(cache))
    ran = there.run("login", there.url(""), "--as", "lab", "--install")
    assert ran.status == 0, ran.err
    assert (cache / "ftransfer" / in_cache(there).name).exists()
    assert not (there.home / ".cache").exists()
    assert there.run("upload", "-q", "a.txt", "lab:", cwd=here).status == 0


@pytest.mark.parametrize("answer", ["yes", "no", ""])
def test_login_asks_at_a_terminal_before_it_installs(there: There, answer: str) -> None:
    """Only yes is yes."""
    there.bare()
    shown = Terminal("login", there.url(""), "--as", "lab", columns=200, env=there.env)
    shown.read_until(lambda text: "?" in text)
    shown.type(f"{answer}\n")
    status = shown.finish()
    assert (status, in_cache(there).exists()) == ((0, True) if answer == "yes" else (4, False)), shown.text
    if answer != "yes":
        assert below(there.home) == []


def test_login_without_a_terminal_does_not_ask(there: There) -> None:
    """It says what to add, and installs nothing."""
    there.bare()
    ran = there.run("login", there.url(""), "--as", "lab", stdin=b"yes\n")
    assert ran.status == 4
    assert "--install" in ran.err
    assert below(there.home) == []
    assert there.run("remotes").out == ""


def test_an_installation_that_is_cut_leaves_nothing_that_counts(there: There, here: Path) -> None:
    """The archive gets its name when it is whole; the next login puts it there."""
    there.bare()
    ssh = shlex.join(there.ssh)
    cuts = script(here / "ssh", f'case "$*" in *mkdir*) head -c 20000 | {ssh} "$@";; *) exec {ssh} "$@";; esac')
    ran = there.run("login", there.url(""), "--as", "lab", "--install", "--ssh", str(cuts))
    assert ran.status != 0
    assert "Traceback" not in ran.err
    assert not in_cache(there).exists()
    ran = there.run("login", there.url(""), "--as", "lab", "--install")
    assert ran.status == 0, ran.err
    assert below(there.home / ".cache") == ["ftransfer", f"ftransfer/{in_cache(there).name}"]


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_an_archive_whose_python_is_gone_is_replaced_by_login(there: There, shell: str) -> None:
    """As after an upgrade of the system there: the error says what to do, and that helps, whatever `sh` is there."""
    found = program(shell)
    if found is None:
        pytest.skip(f"NOT TESTED: no {shell}")
    tools = there.bare()
    (tools / "sh").unlink()
    (tools / "sh").symlink_to(found)
    in_cache(there).parent.mkdir(parents=True)
    in_cache(there).write_text("#!/nonexistent/python3.11\n")
    in_cache(there).chmod(0o755)
    ran = there.run("ping", there.url(""))
    assert ran.status == 4, ran.err
    assert "--install" in ran.err
    assert there.run("login", there.url(""), "--as", "lab", "--install").status == 0
    assert there.run("ping", "lab:").status == 0


OLD = "Python 3.9.2"


@pytest.mark.parametrize("python", ["none", "old"])
def test_no_python_that_would_do_is_an_error_before_anything_is_copied(there: There, python: str) -> None:
    """The message says what is needed, and nothing is left behind there."""
    tools = there.bare(python=None)
    if python == "old":
        # It knows its version, and that is all: what is asked with -c or from standard input says 3.9 as well.
        script(
            tools / "python3",
            f'case "$1" in -V|--version) echo "{OLD}"; exit 0;; esac\n'
            f'exec {shlex.quote(os.path.realpath(sys.executable))} -c \'import sys, runpy\n'
            'class V(tuple): major, minor, micro = 3, 9, 2\n'
            'sys.version_info = V((3, 9, 2, "final", 0)); sys.hexversion = 0x030902f0; sys.version = "3.9.2"\n'
            'sys.argv = sys.argv[1:]\n'
            'if sys.argv[:1] == ["-c"]:\n'
            '    code = sys.argv[1]; del sys.argv[1]; exec(code, {"__name__": "__main__"})\n'
            'elif sys.argv[:1] in ([], ["-"]): exec(sys.stdin.read(), {"__name__": "__main__"})\n'
            'else: runpy.run_path(sys.argv[0], run_name="__main__")\' "$@"',
        )  # fmt: skip
    ran = there.run("login", there.url(""), "--as", "lab", "--install")
    assert ran.status not in (0, 1, 130), ran.err
    assert "Traceback" not in ran.err
    assert "3.11" in ran.err
    assert "Python" in ran.err
    assert below(there.home) == []
    assert there.run("remotes").out == ""


def test_a_cache_folder_that_cannot_be_written_is_an_error(there: There) -> None:
    """Said in a sentence, with what went wrong there."""
    there.bare()
    (there.home / ".cache").write_bytes(b"a file")
    ran = there.run("login", there.url(""), "--as", "lab", "--install")
    assert ran.status not in (0, 1), ran.err
    assert "error: " in ran.err
    assert "Traceback" not in ran.err
    assert below(there.home) == [".cache"]


def test_the_remote_command_may_be_any(there: There, here: Path) -> None:
    """`--remote-command` replaces the search; the shell there reads it, `~` and quotes and all."""
    there.bare()
    command = Path(sys.executable).with_name("ftransfer")
    script(there.home / "my own", f'echo "$1" "$2" >> "$HOME/said"; exec {shlex.quote(str(command))} "${{@}}"')
    words = ["--remote-command", "PATH=$PATH ~/'my own'"]
    assert there.run("upload", "-q", *words, "a.txt", there.url("in/"), cwd=here) == (0, "", "")
    assert there.run("ping", *words, there.url("")).status == 0
    with ftransfer.connect(there.url("in"), ssh=shlex.join(there.ssh), remote_command="~/'my own'") as remote:
        assert [entry.path for entry in remote.list()] == ["a.txt"]
    assert (there.home / "said").read_text() == "serve --stdio\n" * 3


@pytest.mark.parametrize(
    ("command", "status", "code"),
    [
        ("no-such-program-anywhere", 4, "not-installed"),
        ("/etc/passwd", 4, "not-installed"),
        ("exit 3;", 3, "not-found"),
        ("exit 5;", 5, "refused"),
        ("exit 9;", 9, "disk"),
        ("exit 42;", 10, "protocol"),
        ("exit 0;", 10, "protocol"),
        ("kill -9 $$;", None, None),
        ("echo just words #", 10, "protocol"),
    ],
)
def test_a_command_there_that_fails_has_a_status_here(
    there: There, command: str, status: int | None, code: str | None
) -> None:
    """What it wrote before it ended is shown, and nothing hangs."""
    ran = there.run("ping", "--json", "--remote-command", f"echo oh dear >&2; {command}", there.url(""))
    if status is None:
        assert ran.status in (4, 10)
    else:
        assert (ran.status, code_of(ran)) == (status, code), ran
    assert "oh dear" in ran.err
    assert "Traceback" not in ran.err


def test_a_command_there_that_is_no_ftransfer_is_found_out(there: There) -> None:
    """An echo of our own frames, or a program that says nothing to us, ends in an error in time."""
    ran = there.run("ping", "--remote-command", "cat #", there.url(""))
    assert ran.status == 10, ran
    ran = there.run("ping", "--timeout", "1s", "--remote-command", "echo menu; cat > /dev/null #", there.url(""))
    assert ran.status == 4, ran
    assert "menu" in ran.err
    there.is_left()


# Noise, and what ssh says.


def test_noise_before_the_first_frame_is_skipped(there: There, here: Path) -> None:
    """What a shell's start-up files print does no harm, and is not shown where all goes well."""
    (there.home / "noise").write_bytes(
        b"Welcome!\n" + RED + b"\nYou\0have\0\0\0\1mail.\n" + b"x" * (NOISE_LIMIT - 1000)
    )
    command = ["--remote-command", 'cat "$HOME/noise"; ftransfer']
    ran = there.run("upload", *command, "a.txt", there.url("in/"), cwd=here)
    assert ran.status == 0, ran.err
    assert is_plain(ran.out, ran.err)
    assert (there.home / "in/a.txt").exists()
    assert there.run("download", "-q", *command, there.url("in/a.txt"), "-").out == "hello\n"


def test_noise_of_a_start_up_file_is_skipped(there: There, here: Path) -> None:
    """As it really comes: from a file that the shell there reads."""
    for name in (".bashrc", ".zshenv", ".cshrc", ".profile"):
        (there.home / name).write_text("echo noise of $HOME\n")
    shown = subprocess.run([*there.ssh, HOST, "true"], capture_output=True, check=True, timeout=20)
    if b"noise" not in shown.stdout:
        pytest.skip("NOT TESTED: the shell of this user reads no such file under ssh")
    assert there.run("upload", "-q", "a.txt", there.url("in/"), cwd=here) == (0, "", "")


def test_too_much_noise_is_an_error_that_shows_its_beginning(there: There) -> None:
    """It never reaches the terminal raw, and ssh is ended."""
    (there.home / "noise").write_bytes(b"Welcome! " + RED + b"\n" + b"y" * (NOISE_LIMIT + 1))
    ran = there.run("ping", "--json", "--remote-command", 'cat "$HOME/noise"; ftransfer', there.url(""))
    assert (ran.status, code_of(ran)) == (10, "protocol")
    assert "Welcome!" in ran.err
    assert is_plain(ran.out, ran.err)
    assert len(ran.err) < 2000
    ran = there.run("ping", "--timeout", "5s", "--remote-command", "yes Welcome! #", there.url(""))
    assert ran.status == 10
    assert "Welcome!" in ran.err
    there.is_left()


def test_noise_is_shown_where_the_command_there_fails(there: There) -> None:
    """Such as `This account is not available`, which comes on standard output."""
    ran = there.run(
        "ping", "--remote-command", "printf 'This account is not available.\\n\\033[2J'; exit 1;", there.url("")
    )
    assert ran.status == 10
    assert "This account is not available." in ran.err
    assert is_plain(ran.err)


def test_noise_after_the_first_frame_is_an_error(there: There) -> None:
    """As of something in a start-up file that goes on in the background: it is no frame, and is not taken for data."""
    command = "ftransfer serve --stdio | (dd bs=1 count=20 2>/dev/null; echo 'you have mail'; cat) #"
    ran = there.run("ping", "--retry-for", "0", "--timeout", "5s", "--remote-command", command, there.url(""))
    assert ran.status == 10, ran
    assert "Traceback" not in ran.err


def test_lines_on_stderr_reach_the_user_cleaned(there: There) -> None:
    """With everything in them that acts on a terminal made harmless, also where they are long and not UTF-8."""
    (there.home / "said").write_bytes(b"warning: " + RED + b"\xff\xfe\nsecond line\r\n" + b"z" * 100_000 + b"\nlast")
    ran = there.run("ping", "--remote-command", 'cat "$HOME/said" >&2; ftransfer', there.url(""))
    assert ran.status == 0
    for words in ("warning: ", "red", "second line", "last"):
        assert words in ran.err
    assert is_plain(ran.out, ran.err)


def test_a_banner_reaches_the_user(there: There) -> None:
    """What sshd shows before anybody is let in comes out on standard error, once, and not with -q... or in stdout."""
    there.sshd.set_banner(b"Authorised people only. \x1b[31m\n")
    try:
        ran = there.run("ping", "--json", there.url(""))
    finally:
        there.sshd.set_banner(b"")
    assert ran.status == 0
    assert ran.err.count("Authorised people only.") == 1
    assert "Authorised" not in ran.out
    assert is_plain(ran.err)


def test_a_chatty_stderr_does_not_stop_the_transfer(there: There, data_file: Path) -> None:
    """It is read all the time, so that nobody waits for a full pipe."""
    command = "(i=0; while [ $i -lt 4000 ]; do echo line $i of much that is said beside the transfer >&2; "
    command += "i=$((i+1)); done) & ftransfer"
    ran = there.run("upload", "-q", "--remote-command", command, data_file, there.url("data"))
    assert ran.status == 0, ran.err[-500:]
    assert (there.home / "data").read_bytes() == data_file.read_bytes()


# ssh's own failures.


def test_a_refused_connection_is_unreachable(there: There) -> None:
    """With ssh's own words in the error."""
    there.set_options(Port="1")
    ran = there.run("ping", "--json", there.url(""))
    assert (ran.status, code_of(ran)) == (4, "unreachable")
    assert "refused" in ran.err.lower()
    assert "Traceback" not in ran.err


def test_a_host_that_is_not_known_by_name(there: There) -> None:
    """Also unreachable."""
    there.set_options(HostName="no-such-host.invalid")
    ran = there.run("ping", there.url(""))
    assert ran.status == 4, ran.err
    assert "no-such-host.invalid" in ran.err


@pytest.mark.parametrize("known", ["nothing", "another key"])
def test_a_host_key_that_is_not_the_known_one_has_status_12(there: There, here: Path, known: str) -> None:
    """Neither an unknown key nor a changed one is taken, nothing is sent, and it is not tried again."""
    if known == "nothing":
        there.known_hosts.write_text("")
    else:
        there.trust(new_key(here / "other"))
    with there.one_connection():
        ran = there.run("upload", "--retry-for", "20s", "a.txt", there.url("in/"), cwd=here)
    assert ran.status == 12, ran.err
    assert "Host key verification failed" in ran.err
    if known != "nothing":
        assert "HAS CHANGED" in ran.err
    assert is_plain(ran.err)
    assert below(there.home) == []


def test_a_key_that_does_not_open_has_status_5(there: There, here: Path) -> None:
    """Nor is that tried again."""
    there.lock_out()
    with there.one_connection():
        ran = there.run("upload", "--retry-for", "20s", "a.txt", there.url("in/"), cwd=here)
    assert ran.status == 5, ran.err
    assert "Permission denied" in ran.err
    with pytest.raises(errors.Refused), ftransfer.connect(there.url(""), ssh=shlex.join(there.ssh)) as remote:
        remote.ping()


def test_too_many_keys_have_status_5(there: There) -> None:
    """As with an agent that has many: sshd hangs up before it was the right one's turn."""
    there.sshd.set_most_tries(1)
    try:
        there.set_options(IdentityFile="\nIdentityFile ".join([str(new_key(there.base / "other")), str(there.key)]))
        ran = there.run("ping", there.url(""))
    finally:
        there.sshd.set_most_tries(6)
    assert ran.status == 5, ran
    assert "Too many authentication failures" in ran.err


@pytest.mark.parametrize("command", ["no-such-ssh-anywhere", "/nonexistent/ssh -v", "/etc/passwd"])
def test_no_ssh_program_is_an_error_that_names_it(there: There, here: Path, command: str) -> None:
    """A hint says what to install or change."""
    ran = there.run("upload", "--ssh", command, "a.txt", there.url("in/"), cwd=here)
    assert ran.status in (2, 3, 4, 5), ran
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert command.partition(" ")[0] in ran.err


def test_a_command_of_ssh_that_cannot_be_split_is_a_usage_error(there: There) -> None:
    """An open quote."""
    ran = there.run("ping", "--ssh", "ssh -o 'x", there.url(""))
    assert ran.status == 2, ran
    assert ran.err.startswith("error: ")


def test_options_of_ssh_are_for_ssh_addresses_only(there: There) -> None:
    """`--ssh` beside another address starts nothing; the environment variable does no harm there."""
    ran = there.run("ping", "ft://127.0.0.1:1/", env={"FTRANSFER_SSH": "/nonexistent"})
    assert ran.status == 4
    assert "nonexistent" not in ran.err


# Prompts.


def test_a_password_can_be_typed(there: There, here: Path) -> None:
    """What asks at the terminal is seen and answered there, while the frames go through the pipes."""
    asks = script(
        here / "ssh",
        "exec 3<>/dev/tty\nstty -echo <&3\nprintf 'password: ' >&3\nread -r word <&3\nstty echo <&3\necho >&3\n"
        f'[ "$word" = sesame ] || {{ echo "Permission denied (password)." >&2; exit 255; }}\n'
        f'exec 3>&-\nexec {shlex.join(there.ssh)} "$@"',
    )
    for word, status in (("sesame", 0), ("wrong", 5)):
        target = there.url(f"{word}/")
        shown = Terminal("upload", "--ssh", asks, here / "a.txt", target, columns=200, env=there.env)
        shown.read_until(lambda text: "password: " in text)
        shown.type(f"{word}\n")
        assert shown.finish() == status, shown.text
        assert word not in shown.text.replace(target, "")
        assert (there.home / word).exists() == (status == 0)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_the_question_about_a_host_key_can_be_answered(there: There, here: Path, answer: str) -> None:
    """It is ssh's own, at the terminal; no is status 12, and nothing was sent."""
    there.known_hosts.write_text("")
    there.set_options(StrictHostKeyChecking="ask")
    shown = Terminal("upload", here / "a.txt", there.url("in/"), columns=200, env=there.env)
    shown.read_until(lambda text: "(yes/no" in text)
    shown.type(f"{answer}\n")
    assert shown.finish() == (0 if answer == "yes" else 12), shown.text
    assert (there.home / "in/a.txt").exists() == (answer == "yes")
    assert (there.known_hosts.read_text() != "") == (answer == "yes")


def test_ctrl_c_at_a_prompt_ends_both(there: There, here: Path) -> None:
    """Neither ssh nor its question stays behind."""
    there.known_hosts.write_text("")
    there.set_options(StrictHostKeyChecking="ask")
    shown = Terminal("upload", here / "a.txt", there.url("in/"), columns=200, env=there.env)
    shown.read_until(lambda text: "(yes/no" in text)
    shown.type("\x03")
    assert shown.finish() == -signal.SIGINT, shown.text
    assert "Traceback" not in shown.text
    there.is_left()


# Other versions.


def other_version(there: There, change: int) -> str:
    """Put a copy of the package there whose minor version differs by so much; return its version."""
    major, minor, *_ = ftransfer.__version__.split(".")
    if int(minor) + change < 0:
        pytest.skip(f"NOT TESTED: nothing comes before {ftransfer.__version__}")
    version = f"{major}.{int(minor) + change}.7"
    package = there.base / "other/ftransfer"
    source = Path(ftransfer.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    init = package / "__init__.py"
    text = init.read_text(encoding="utf-8")
    assert f'"{ftransfer.__version__}"' in text
    init.write_text(text.replace(f'"{ftransfer.__version__}"', f'"{version}"'), encoding="utf-8")
    there.set_environment(PYTHONPATH=str(package.parent))
    return version


@pytest.mark.parametrize("change", [1, -1])
def test_one_minor_version_apart_talks(there: There, here: Path, change: int) -> None:
    """A newer or an older end there, and both know who the other is."""
    version = other_version(there, change)
    ran = there.run("ping", there.url(""))
    assert ran.status == 0, ran.err
    assert f"ftransfer/{version}" in ran.out
    assert there.run("upload", "-q", "a.txt", there.url("in/"), cwd=here).status == 0


@pytest.mark.parametrize("change", [2, 30])
def test_versions_too_far_apart_say_which_end_to_update(there: There, here: Path, change: int) -> None:
    """Status 10; both versions are named, and the older end, which is this one, is the one to update."""
    version = other_version(there, change)
    ran = there.run("upload", "--retry-for", "20s", "a.txt", there.url("in/"), cwd=here)
    assert ran.status == 10, ran.err
    assert version in ran.err
    assert ftransfer.__version__ in ran.err
    assert "hint: update ftransfer on the client's machine" in ran.err
    assert not (there.home / "in").exists()
    assert code_of(there.run("ping", "--json", there.url(""))) == "version"


def test_a_server_that_is_too_old_is_named(there: There, here: Path) -> None:
    """The other way round: seen from a client of a later version, the other end is to be updated."""
    other_version(there, 2)
    there.set_environment(PYTHONPATH="")
    env = {"PYTHONPATH": str(there.base / "other")}
    ran = there.run("upload", "a.txt", there.url("in/"), cwd=here, env=env)
    assert ran.status == 10, ran.err
    assert ftransfer.__version__ in ran.err
    assert "hint: update ftransfer on the server" in ran.err


def test_an_archive_of_another_version_is_not_used(there: There, here: Path) -> None:
    """Each version has a file of its own in the cache; an older one does not stand in the way of the next login."""
    there.bare()
    old = in_cache(there).with_name("ftransfer-0.0.1")
    old.parent.mkdir(parents=True)
    script(old, "exit 3")
    assert there.run("ping", there.url("")).status == 4
    assert there.run("login", there.url(""), "--as", "lab", "--install").status == 0
    assert there.run("upload", "-q", "a.txt", "lab:", cwd=here).status == 0


def test_what_keeps_the_other_end_from_starting_is_said_once(there: There) -> None:
    """Its own error comes over the line, with its status and hint, and not as text of an unknown program."""
    there.force(f"ftransfer serve --stdio {there.base}/missing")
    ran = there.run("list", "--json", there.url("/"))
    assert (ran.status, code_of(ran)) == (3, "not-found")
    assert ran.err == f"error: the server says: {there.base}/missing: no such file or folder\n"


def test_names_are_utf8_whatever_the_locale_there(there: There, tmp_path: Path) -> None:
    """A login may bring along a locale that is not there; a name is stored as the bytes that it had."""
    there.set_environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "\u00fc").write_bytes(b"abc")
    assert there.run("upload", tmp_path / "tree", there.url("")).status == 0
    assert there.run("upload", tmp_path / "tree" / "\u00fc", there.url("one-\u00fc")).status == 0
    assert (there.home / "tree" / "\u00fc").read_bytes() == b"abc"
    assert (there.home / "one-\u00fc").read_bytes() == b"abc"
    ran = there.run("list", "-r", there.url("tree"))
    assert ran.out == "\u00fc\n"


@pytest.mark.parametrize("path", ["", "~", "~/"])
def test_a_home_folder_is_not_removed_by_mistake(there: There, path: str) -> None:
    """What stands behind the host may have been an empty variable."""
    (there.home / "kept").touch()
    address = f"ssh://{HOST}/{path}" if path else f"ssh://{HOST}"
    for words in (("rm", "-r", address), ("mv", address, f"ssh://{HOST}/tmp/elsewhere")):
        ran = there.run(*words)
        assert (ran.status, ran.out) == (2, "")
    assert (there.home / "kept").exists()


def test_a_copy_that_is_damaged_is_made_anew(there: There) -> None:
    """Login with --install mends what is there and does not start."""
    there.bare()
    assert there.run("login", "--install", f"ssh://{HOST}", "--as", "a").status == 0
    (copy,) = (there.home / ".cache/ftransfer").iterdir()
    os.truncate(copy, 1000)
    ran = there.run("list", f"ssh://{HOST}")
    assert ran.status not in (0, 1)
    assert there.run("login", "--install", f"ssh://{HOST}", "--as", "a").status == 0
    assert there.run("list", f"ssh://{HOST}").status == 0

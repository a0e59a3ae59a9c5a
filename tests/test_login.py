"""Logins from the command: where the token comes from, where it goes, where never; names instead of addresses."""

from __future__ import annotations

import io
import json
import os
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import Authority, Certificate
from command import COMMAND, Terminal, run, run_here, serving
from forests import grove
from support import PATIENCE, FakeServer, Peer, content_of, wait_until

import ftransfer
from ftransfer import errors, net
from ftransfer.cli.serve import _Lines
from ftransfer.known import Known, Login, resolve_name, split_word
from ftransfer.listening import outward_host
from ftransfer.statedir import StateDir
from ftransfer.users import Users

WRONG = "ftt_" + "0" * 64


class Place(NamedTuple):
    """A server that speaks TLS, its users, and a client's state folder of its own."""

    server: ftransfer.Server
    root: Path
    url: str
    users: Users
    state: StateDir

    @property
    def fingerprint(self) -> str:
        """What the server shows."""
        return self.server.fingerprint or ""

    def log_in(self, name: str = "lab", token: str | None = None, *more: object) -> None:
        """Log in as a new user, or with this token."""
        file = Path(self.state.path).parent / "token"
        file.write_text(token or self.users.add(name) + "\n")
        words = ["--as", name, "--fingerprint", self.fingerprint, "--token-file", file, *more]
        ran = run_here("login", self.url, *words)
        assert ran.status == 0, ran.err


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("authority")).sign("127.0.0.1")


@pytest.fixture
def place(root: Path, tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A server with a state folder of its own, so that its clients are no owners."""
    monkeypatch.setenv("FTRANSFER_STATE", str(tmp_path / "client"))
    state = tmp_path / "server"
    with ftransfer.Server(root, durable=False, cert=certificate.path, key=certificate.key, state=state) as server:
        url = f"ft+tls://{server.urls[0].partition('://')[2]}"
        yield Place(server, root, url, Users(StateDir(state)), StateDir())


def everything_in(folder: str | Path) -> str:
    """Return the text of all files below a folder."""
    return "".join(path.read_text() for path in Path(folder).rglob("*") if path.is_file())


# Where the token comes from.


def test_a_token_from_a_file(place: Place, tmp_path: Path) -> None:
    """The whole of it: what is printed, what is kept, and that it opens."""
    token = place.users.add("lab")
    (tmp_path / "token").write_text(f"  {token}\n\n")
    words = ["login", place.url, "--as", "lab", "--fingerprint", place.fingerprint, "--token-file", tmp_path / "token"]
    ran = run_here(*words)
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.splitlines() == [
        f"logged in to {place.url.rstrip('/')} as lab, who may create, read",
        "from now on lab: is an address, as in: ftransfer upload FILE lab:",
    ]
    kept = Path(place.state.where("remotes.json"))
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert token in kept.read_text()
    event = json.loads(run_here(*words, "--json").out)
    assert event == {
        "v": 1,
        "event": "login",
        "name": "lab",
        "url": place.url.replace("://", "://lab@"),
        "user": "lab",
        "can": ["create", "read"],
    }
    assert run_here("upload", tmp_path / "token", "lab:in/").status == 0
    assert run_here("list", "lab:in").out == "token\n"


@pytest.mark.parametrize("option", [[], ["--token-file", "-"]], ids=["piped", "-"])
@pytest.mark.parametrize("pieces", [["TOKEN\n"], ["TOKEN"], ["TO", "KEN\n"], ["  TOKEN", " \r\n", "more\n"]])
def test_a_token_from_standard_input(place: Place, option: list[str], pieces: list[str]) -> None:
    """In one go or in several, with a newline or without; what is asked is never shown."""
    token = place.users.add("lab")
    words = [*COMMAND, "login", place.url, "--as", "lab", "--fingerprint", place.fingerprint, *option]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        half = len(token) // 2
        for piece in pieces:
            text = piece.replace("TOKEN", token).replace("TO", token[:half]).replace("KEN", token[half:])
            process.stdin.write(text.encode())
            process.stdin.flush()
            if len(pieces) > 1:
                wait_until(lambda: _is_read(process), "reading the first piece")
        process.stdin.close()
        out, err = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
    assert process.returncode == 0, err
    assert token.encode() not in out + err


def _is_read(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a process has taken all that was written to its standard input, or has ended."""
    import fcntl
    import termios

    assert process.stdin is not None
    left = fcntl.ioctl(process.stdin, termios.FIONREAD, b"\0\0\0\0")
    return left == b"\0\0\0\0" or process.poll() is not None


def test_a_token_that_is_typed(place: Place) -> None:
    """At a terminal it is asked for, and not echoed."""
    token = place.users.add("lab")
    shown = Terminal("login", place.url, "--as", "lab", "--fingerprint", place.fingerprint, columns=200)
    shown.read_until(lambda text: "token: " in text)
    shown.type(f"{token}\n")
    assert shown.finish() == 0
    assert token not in shown.text
    assert token[4:20] not in shown.text
    assert "logged in to" in shown.text
    assert run_here("stat", "lab:").status == 0


def test_nobody_types_a_secret_before_the_server_was_checked(place: Place) -> None:
    """First the question about the fingerprint, then the token; where the answer is no, no token is asked for."""
    token = place.users.add("lab")
    shown = Terminal("login", place.url, "--as", "lab", columns=200)
    shown.read_until(lambda text: "Type yes" in text)
    assert "token: " not in shown.text
    assert place.fingerprint in shown.text
    shown.type("no\n")
    assert shown.finish() == 12
    assert "token: " not in shown.text
    shown = Terminal("login", place.url, "--as", "lab", columns=200)
    shown.read_until(lambda text: "Type yes" in text)
    shown.type("yes\n")
    shown.read_until(lambda text: "token: " in text)
    shown.type(f"{token}\n")
    assert shown.finish() == 0
    assert run_here("stat", "lab:").status == 0


@pytest.mark.parametrize("how", ["\x04", "\n", "\x03"], ids=ascii)
def test_a_token_that_is_not_typed(place: Place, how: str) -> None:
    """The end of input, an empty line, Ctrl-C: nothing is remembered but the certificate."""
    shown = Terminal("login", place.url, "--as", "lab", "--fingerprint", place.fingerprint, columns=200)
    shown.read_until(lambda text: "token: " in text)
    shown.type(how)
    assert shown.finish() == (-signal.SIGINT if how == "\x03" else 2)
    assert "Traceback" not in shown.text
    assert Known(place.state).logins() == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 2),
        (b"\n", 2),
        (b"two words\n", 2),
        (b"x" * 5000, 2),
        ("\u00e9".encode(), 2),
        (b"\xff\xfe", 2),
        (b"a\x00b", 2),
        (b"\x1b[2J", 2),
        (WRONG.encode(), 5),
    ],
)
def test_tokens_that_open_nothing(place: Place, tmp_path: Path, content: bytes, status: int) -> None:
    """Status 2 for what is no token, 5 for one that the server does not know; neither is shown, or kept."""
    (tmp_path / "token").write_bytes(content)
    words = ["login", place.url, "--as", "lab", "--fingerprint", place.fingerprint, "--token-file", tmp_path / "token"]
    for more in ([], ["--json"], ["-v"]):
        ran = run_here(*words, *more)
        assert ran.status == status, ran
        assert content.decode("ascii", "replace").strip("\n") not in ran.out + ran.err or not content.strip()
        assert "Traceback" not in ran.err
        assert "\x1b" not in ran.err
    assert Known(place.state).logins() == []


def test_no_standard_input(place: Place) -> None:
    """A closed one is an error of ours; a file that is not there is named."""
    words = shlex.join([*COMMAND, "login", place.url, "--as", "lab", "--fingerprint", place.fingerprint])
    done = subprocess.run(f"{words} <&-", shell=True, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode in (2, 3, 8), done
    assert b"internal error" not in done.stderr
    ran = run_here("login", place.url, "--as", "lab", "--fingerprint", place.fingerprint, "--token-file", "absent")
    assert (ran.status, ran.err.splitlines()[0]) == (3, "error: absent: no such file or folder")


def test_there_is_no_option_for_a_token() -> None:
    """A secret in argv is seen by everybody on the machine: no command takes one, nor an abbreviation of one."""
    for command in ("login", "upload", "download", "list", "ping", "serve", "user"):
        text = run_here(command, "--help").out
        assert not re.search(r"--(token|password|secret)(?!-file)\b", text), command
        assert run_here(command, "--token", WRONG, "x").status == 2


@pytest.mark.parametrize("command", ["login", "list", "stat", "upload", "ping"])
def test_a_password_in_an_address_is_refused(command: str, tmp_path: Path) -> None:
    """Before anything is sent anywhere, and it is not repeated."""
    (tmp_path / "f").touch()
    for url in (f"ft://lab:{WRONG}@127.0.0.1:1/x", f"ft+tls://:{WRONG}@h/", f"ft+plain://a%3Ab:{WRONG}@[::1]:1/"):
        ran = run_here(command, *([tmp_path / "f"] if command == "upload" else []), url)
        assert ran.status == 2
        assert "an address holds no password" in ran.err
        assert WRONG not in ran.err + ran.out
        assert "FTRANSFER_TOKEN_FILE" in ran.err
    with pytest.raises(errors.UsageError) as caught:
        ftransfer.connect(f"ft://lab:{WRONG}@h/")
    assert WRONG not in f"{caught.value} {caught.value.hint}"


def test_tokens_in_the_environment(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FTRANSFER_TOKEN, or the file that FTRANSFER_TOKEN_FILE names; an option goes before both."""
    token = place.users.add("lab")
    monkeypatch.setenv("FTRANSFER_FINGERPRINT", place.fingerprint)
    assert run_here("stat", place.url).status == 5
    monkeypatch.setenv("FTRANSFER_TOKEN", token)
    assert run_here("stat", place.url).status == 0
    monkeypatch.setenv("FTRANSFER_TOKEN", f" {token}\n")
    assert run_here("stat", place.url).status == 0
    monkeypatch.setenv("FTRANSFER_TOKEN", WRONG)
    (tmp_path / "token").write_text(f"{token}\n")
    monkeypatch.setenv("FTRANSFER_TOKEN_FILE", str(tmp_path / "token"))
    assert run_here("stat", place.url).status == 5
    ran = run_here("login", place.url, "--as", "lab", "--token-file", tmp_path / "token")
    assert ran.status == 0, ran.err
    monkeypatch.delenv("FTRANSFER_TOKEN")
    assert run_here("stat", place.url).status == 0
    monkeypatch.setenv("FTRANSFER_TOKEN_FILE", str(tmp_path / "absent"))
    ran = run_here("stat", place.url)
    assert (ran.status, "absent: no such file or folder" in ran.err) == (3, True)
    (tmp_path / "token").write_bytes(b"\xffsecret word")
    monkeypatch.setenv("FTRANSFER_TOKEN_FILE", str(tmp_path / "token"))
    ran = run_here("stat", place.url)
    assert (ran.status, "secret" in ran.err) == (2, False)


def test_a_token_in_the_environment_goes_before_a_login(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sets it for one command means it."""
    place.log_in()
    monkeypatch.setenv("FTRANSFER_TOKEN", place.users.add("other"))
    ran = run_here("ping", "--json", place.url)
    assert json.loads(ran.out)["user"] == "other"


def test_a_token_is_seen_nowhere(place: Place, tmp_path: Path) -> None:
    """Not in the output of any command, whatever goes wrong, not in a traceback, not in other files."""
    token = place.users.add("lab")
    place.log_in("lab", token)
    (tmp_path / "f").write_bytes(b"data")
    for words in (
        ["upload", "-v", tmp_path / "f", "lab:in/"],
        ["upload", "--json", tmp_path / "f", "lab:in/"],
        ["download", "-v", "lab:absent"],
        ["list", "--json", "lab:"],
        ["ping", "lab:"],
        ["ping", "--json", "lab:"],
        ["remotes"],
        ["remotes", "--json"],
        ["remove", "-v", "lab:in/f"],
        ["list", "--fingerprint", "1" * 64, "lab:"],
    ):
        ran = run_here(*words)
        assert token not in ran.out + ran.err, words
        assert token[4:30] not in ran.out + ran.err, words
    code = "import ftransfer, sys; r = ftransfer.connect(sys.argv[1], token=sys.argv[2]); r.ping(1)"
    done = subprocess.run(
        [sys.executable, "-c", code, place.url, token], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert "Traceback" in done.stderr
    assert token not in done.stderr
    assert token not in everything_in(place.users._state.path)
    os.unlink(place.state.where("remotes.json"))
    assert token not in everything_in(place.state.path)


# Names in the place of addresses.


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("lab:", ("lab", "")),
        ("lab:x", ("lab", "x")),
        ("lab:/x", ("lab", "/x")),
        ("lab:a:b", ("lab", "a:b")),
        ("L.a-b_9:", ("L.a-b_9", "")),
        ("./lab:x", None),
        ("a/lab:x", None),
        ("lab", None),
        (":x", None),
        ("-lab:x", None),
        (".lab:x", None),
        ("l\u00e4b:x", None),
        ("la b:x", None),
        ("ft://h/x", None),
        ("lab\n:x", None),
        ("", None),
    ],
)
def test_what_is_a_name_and_a_path(word: str, found: tuple[str, str] | None) -> None:
    """Letters, digits, dot, dash, underscore, a colon; a slash before the colon makes it a local file."""
    assert split_word(word) == found


def test_a_name_is_an_address_everywhere(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every command that takes one, and in the API."""
    place.log_in("lab", place.users.add("lab", can=["create", "read", "replace", "delete"]))
    monkeypatch.chdir(tmp_path)
    Path("f").write_bytes(b"data")
    tree = grove(tmp_path / "tree", 5)
    del tree
    for words, status in (
        (["upload", "f", "lab:"], 0),
        (["upload", "f", "tree", "lab:in/"], 0),
        (["upload", "--dry-run", "f", "lab:in/g"], 0),
        (["verify", "f", "lab:in/"], 0),
        (["verify", "tree", "lab:in/"], 0),
        (["verify", "lab:in/f", "f"], 0),
        (["download", "lab:in/f", "back"], 0),
        (["download", "lab:in/tree", "lab:f", "all/"], 0),
        (["download", "lab:f"], 0),
        (["checksum", "lab:in/f", "lab:f"], 0),
        (["checksum", "-r", "lab:in"], 0),
        (["list", "lab:"], 0),
        (["ls", "-r", "lab:in/"], 0),
        (["stat", "lab:in/f"], 0),
        (["mkdir", "-p", "lab:made/here"], 0),
        (["move", "lab:f", "lab:made/moved"], 0),
        (["remove", "-r", "lab:made"], 0),
        (["partials", "lab:"], 0),
        (["ping", "lab:"], 0),
        (["stat", "lab:/in/f"], 0),
        (["stat", "lab:in/../f"], 2),
        (["stat", "lab:.ftransfer"], 2),
        (["stat", "lab:absent"], 3),
    ):
        ran = run_here(*words)
        assert ran.status == status, (words, ran)
    Path("list").write_text(run_here("checksum", "lab:in/f").out)
    assert run_here("checksum", "--check", "list", "lab:").status == 0
    with ftransfer.connect("lab:in") as remote:
        assert remote.stat("f").size == 4
    assert Path("back").read_bytes() == b"data"


@pytest.mark.parametrize("name", ["a b", "50%", "a%20b", "q?x#y", "caf\u00e9", "x:y", "a@b", "[1]", "~", "\u202e"])
def test_paths_behind_a_name_are_taken_as_they_are(place: Place, tmp_path: Path, name: str) -> None:
    """Nothing in them is special, as it would be in an address."""
    place.log_in()
    (tmp_path / "f").write_bytes(name.encode())
    assert run_here("upload", tmp_path / "f", f"lab:in/{name}").status == 0
    assert (place.root / "in" / name).read_bytes() == name.encode()
    assert run_here("stat", "--json", f"lab:in/{name}").status == 0


def test_a_login_may_have_a_path(place: Place, tmp_path: Path) -> None:
    """What is behind the name is below it."""
    place.users.add("x")
    token = place.users.add("lab")
    (tmp_path / "token").write_text(token)
    for at, (url, name) in enumerate((("in/deep/", "one"), ("in/deep", "two"), ("a%20b/", "three"))):
        ran = run_here(
            *["login", place.url + url, "--as", name, "--fingerprint", place.fingerprint],
            *["--token-file", tmp_path / "token"],
        )
        assert ran.status == 0, ran.err
        assert run_here("upload", tmp_path / "token", f"{name}:x/f{at}").status == 0
    assert sorted(content_of(place.root)) == [
        *["a b", "a b/x", "a b/x/f2", "in", "in/deep", "in/deep/x", "in/deep/x/f0", "in/deep/x/f1"]
    ]


def test_names_that_nobody_logged_in_to(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to do: list the names, or write the file another way; files that are there are files."""
    monkeypatch.chdir(tmp_path)
    ran = run_here("list", "lab:x")
    assert (ran.status, ran.out) == (3, "")
    assert ran.err.splitlines() == [
        "error: no remote is called 'lab'",
        "hint: ftransfer remotes lists them; through ssh it is ssh://lab/~/x; a local file: ./lab:x",
    ]
    with pytest.raises(errors.NotFound, match="no remote is called 'lab'"):
        ftransfer.connect("lab:x")
    with pytest.raises(errors.UsageError):
        ftransfer.connect("lab")
    place.log_in()
    Path("lab:there").write_bytes(b"here")
    Path("folder").mkdir()
    Path("folder/a:b").write_bytes(b"here too")
    for word, name in (
        ("./lab:there", "1"),
        ("lab:there", "2"),
        ("folder/a:b", "3"),
        (str(tmp_path / "lab:there"), "4"),
    ):
        assert run_here("upload", word, f"lab:{name}").status == 0, word
    assert run_here("download", "lab:1", "./new:one").status == 0
    assert Path("new:one").read_bytes() == b"here"
    assert run_here("upload", "nobody:there", "lab:5").status == 3
    assert run_here("upload", "./nobody:there", "lab:5").err.startswith("error: ./nobody:there: no such file")


def test_where_a_name_is_not_known_no_address_is_guessed(place: Place) -> None:
    """Who types what scp would take learns how it is written here."""
    del place
    ran = run_here("upload", __file__, "127.0.0.1:in/")
    assert ran.status == 3
    assert "no remote is called '127.0.0.1'" in ran.err


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a:b", "a b", "l\u00e4b", "x" * 65, "..", "x\n", "\x1b[2J"])
def test_names_that_cannot_be(place: Place, name: str) -> None:
    """They are refused before the server is looked at."""
    ran = run_here("login", "ft://127.0.0.1:1/", f"--as={name}")
    if not name:
        assert ran.status in (2, 4)
        return
    assert (ran.status, ran.out) == (2, "")
    assert "a remote cannot be called" in ran.err
    assert "\x1b" not in ran.err
    del place


def test_logging_in_again_replaces_a_login(place: Place) -> None:
    """The name is what counts."""
    place.log_in("lab")
    place.log_in("lab", place.users.add("other"))
    assert [login.name for login in Known(place.state).logins()] == ["lab"]
    assert json.loads(run_here("ping", "--json", "lab:").out)["user"] == "other"


def test_remotes_and_logout(place: Place) -> None:
    """The list has name and address, and no token; a login that is forgotten is gone with its token."""
    assert run_here("remotes") == (0, "", "no remotes: ftransfer login ft://HOST --as NAME makes one\n")
    place.log_in("lab")
    place.log_in("alpha")
    url = place.url.replace("://", "://lab@")
    assert run_here("remotes").out == f"alpha:  {place.url.replace('://', '://alpha@')}\nlab:  {url}\n"
    events = [json.loads(line) for line in run_here("remotes", "--json").out.splitlines()]
    assert events[1] == {
        "v": 1,
        "event": "remote",
        "name": "lab",
        "url": url,
        "fingerprint": place.fingerprint,
        "has_token": True,
    }
    assert run_here("logout", "lab") == (0, "", "lab is forgotten here; on the server the token still opens\n")
    assert run_here("list", "lab:").status == 3
    assert run_here("logout", "alpha").status == 0
    ran = run_here("logout", "alpha")
    assert (ran.status, ran.err.splitlines()[0]) == (3, "error: no remote is called 'alpha'")
    assert "ftt_" not in everything_in(place.state.path)
    assert run_here("list", place.url).status == 5, "the certificate is known, the token is not"


def test_a_login_without_as_has_the_name_of_the_host(place: Place, tmp_path: Path) -> None:
    """A numeric address gives none."""
    (tmp_path / "token").write_text(place.users.add("lab"))
    words = ["--fingerprint", place.fingerprint, "--token-file", tmp_path / "token"]
    ran = run_here("login", place.url, *words)
    assert ran.status == 2
    assert "--as NAME" in ran.err
    assert run_here("login", place.url.replace("127.0.0.1", "localhost"), *words).status == 0
    assert [login.name for login in Known(place.state).logins()] == ["localhost"]


@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b'{"lab": 5}', b'{"lab": {}}', b'{"lab": {"url": 5}}', b"\xff", b'{"lab": null}']
)
def test_a_damaged_file_of_logins(place: Place, damage: bytes) -> None:
    """It is named, with what to do; nothing of it is taken."""
    place.log_in("lab")
    place.state.write("remotes.json", damage)
    for words in (["remotes"], ["list", "lab:"], ["list", place.url], ["remotes", "--json"]):
        ran = run_here(*words)
        assert (ran.status, "remotes.json" in ran.err, "hint: " in ran.err) == (5, True, True), (words, ran)
    assert place.state.read("remotes.json") == damage


# Where the token goes.


def test_a_token_is_sent_to_the_right_server_only(place: Place, certificate: Certificate) -> None:
    """Behind the handshake, to who shows the certificate; to another one, nothing."""
    token = place.users.add("lab")
    place.log_in("lab", token)
    heard: list[Any] = []

    def script(peer: Peer) -> None:
        hello = peer.expect("hello")
        heard.append((hello.get("token"), hello.get("user")))

    context = certificate.context()

    def secured(peer: Peer) -> None:
        peer.socket = context.wrap_socket(peer.socket, server_side=True)
        script(peer)

    for scheme, serve in (("ft", script), ("ft+plain", script), ("ft+tls", secured)):
        with FakeServer(serve) as fake:
            url = f"{scheme}://{fake.url.partition('://')[2]}"
            fingerprint = certificate.fingerprint if serve is secured else None
            with (
                ftransfer.connect(url, fingerprint=fingerprint) as remote,
                pytest.raises(errors.ConnectionLost),
            ):
                remote.ping()
    assert len(heard) >= 3
    assert set(heard) == {(None, None)}, "each was another server"


def test_what_was_given_over_tls_is_never_shown_in_the_clear(
    place: Place, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by another scheme, nor because the name of the host now leads to this machine."""
    heard: list[Any] = []

    def script(peer: Peer) -> None:
        heard.append(peer.socket.recv(1, socket.MSG_PEEK))
        if heard[-1] == b"\0":
            heard.append(peer.expect("hello").get("token"))

    with FakeServer(script) as fake:
        port = net.parse_url(fake.url).port
        known = Known(place.state)
        known.save(Login("one", f"ft+tls://lab@127.0.0.1:{port}/", "ftt_secret", True))
        known.save(Login("two", f"ft://lab@lab.example:{port}/", "ftt_secret", True))
        known.save(Login("three", f"ft://lab@127.0.0.1:{port}/", "ftt_secret", True))
        known.remember(f"lab.example:{port}", certificate.fingerprint)
        for url in (f"ft+plain://127.0.0.1:{port}/", f"ft://127.0.0.1:{port}/", f"ft+plain://lab@127.0.0.1:{port}/"):
            with ftransfer.connect(url, retry_for=0) as remote, pytest.raises(errors.FtransferError):
                remote.ping()
        assert "ftt_secret" not in heard
        assert heard.count(None) >= 3
        heard.clear()
        found = socket.getaddrinfo

        def spoofed(host: str, *args: Any, **fields: Any) -> Any:
            return found("127.0.0.1" if host == "lab.example" else host, *args, **fields)

        monkeypatch.setattr(socket, "getaddrinfo", spoofed)
        for word in ("two:", f"ft://lab.example:{port}/"):
            with ftransfer.connect(word, retry_for=0) as remote, pytest.raises(errors.FtransferError):
                remote.ping()
        assert set(heard) <= {b"\x16"}, "TLS was begun, and nothing was said in the clear"


def test_the_same_server_by_its_address_takes_the_login(place: Place) -> None:
    """Also with USER@; another user's login is not shown."""
    place.log_in("lab")
    assert json.loads(run_here("ping", "--json", place.url).out)["user"] == "lab"
    assert json.loads(run_here("ping", "--json", place.url.replace("://", "://lab@")).out)["user"] == "lab"
    assert run_here("ping", place.url.replace("://", "://bob@")).status == 5
    place.log_in("bob")
    assert json.loads(run_here("ping", "--json", place.url.replace("://", "://bob@")).out)["user"] == "bob"
    assert json.loads(run_here("ping", "--json", "lab:").out)["user"] == "lab"


def test_a_login_of_a_stranger(root: Path, tmp_path: Path, certificate: Certificate, place: Place) -> None:
    """Without a token, also where there is another login to the same server, or a server of this user."""
    (root / "f").write_bytes(b"data")
    state = tmp_path / "server"
    with ftransfer.Server(root, anonymous="read", cert=certificate.path, key=certificate.key, state=state) as server:
        url = f"ft+tls://{server.urls[0].partition('://')[2]}"
        other = place._replace(server=server, url=url)
        other.log_in("lab")
        ran = run_here("login", url, "--as", "pub", "--anonymous", "--fingerprint", other.fingerprint)
        assert ran.status == 0
        assert "as anonymous, who may read" in ran.err
        assert json.loads(run_here("ping", "--json", "pub:").out)["user"] == "anonymous"
        assert json.loads(run_here("ping", "--json", "lab:").out)["user"] == "lab"
        assert run_here("list", "pub:").out == "f\n"
    ran = run_here("login", place.url, "--as", "pub2", "--anonymous", "--fingerprint", place.fingerprint)
    assert ran.status == 5, "that server takes no strangers"


def test_a_login_leaves_no_alarm_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It connects twice, and ends each connection well."""
    with caplog.at_level("DEBUG", logger="ftransfer.server"):
        place.log_in("lab")
        wait_until(lambda: place.server.connection_count == 0, "the end of the connections")
    assert not [r.getMessage() for r in caplog.records if re.search("cut|attack|lost", r.getMessage())]
    assert "ftt_" not in caplog.text


def test_a_login_in_the_clear_says_so(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others are on the way; on this machine, nobody is."""
    host = outward_host()
    try:
        server = ftransfer.Server(root, listen=[f"{host}:0"], insecure=True, state=tmp_path / "server")
    except errors.FtransferError:
        pytest.skip("NOT TESTED: this machine has no address that others reach")
    monkeypatch.setenv("FTRANSFER_STATE", str(tmp_path / "client"))
    (tmp_path / "token").write_text(Users(StateDir(tmp_path / "server")).add("lab"))
    with server:
        ran = run_here("login", server.urls[0], "--as", "lab", "--token-file", tmp_path / "token")
        assert (ran.status, "in the clear" in ran.err) == (0, True)
        assert run_here("stat", "lab:").status == 0


# What serve says.


def test_what_serve_prints_can_be_pasted(tmp_path: Path) -> None:
    """From nothing to a verified upload in three commands, as the other person types them."""
    root, here = tmp_path / "root", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    (here / "big.iso").write_bytes(os.urandom(100_000))
    state = tmp_path / "server"
    with serving(root, "--state", state, listen=":0") as (url, process):
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            r"log in with: (ftransfer login \S+ --fingerprint sha256:[0-9a-f]{64} --as [\w.-]+)\n", line
        )
        assert found, line
        words = shlex.split(found[1])
        assert words[2] == url
        if net.is_loopback(net.parse_url(url).host):
            pytest.skip("NOT TESTED: this machine has no address that others reach")
        token = run("user", "add", "lab", "--state", state).out.strip()
        env = {"FTRANSFER_STATE": str(tmp_path / "client")}
        ran = run(*words[1:], env=env, stdin=f"{token}\n".encode())
        assert ran.status == 0, ran.err
        name = words[-1]
        assert run("upload", here / "big.iso", f"{name}:", env=env).status == 0
        ran = run("verify", here / "big.iso", f"{name}:", env=env)
        assert (ran.status, ran.out.split(":")[0]) == (0, "same")
    assert (root / "big.iso").read_bytes() == (here / "big.iso").read_bytes()


def test_the_first_user_at_a_terminal(tmp_path: Path, root: Path) -> None:
    """Who starts the first server there is its first user; the token is shown once, and never at the next start."""
    env = {"FTRANSFER_STATE": str(tmp_path / "state"), "LOGNAME": "Ann"}
    tokens_shown: list[str] = []
    for done in (False, True):
        shown = Terminal("serve", root, "--listen", ":0", env=env, columns=300)
        shown.read_until(lambda text: "--as " in text and ("ftt_" in text or done))  # noqa: B023
        shown.process.send_signal(signal.SIGTERM)
        assert shown.finish() == 0
        tokens_shown += re.findall(r"ftt_[0-9a-f]{64}", shown.text)
    assert len(tokens_shown) == 1
    (account,) = Users(StateDir(tmp_path / "state")).all()
    assert (account.name, sorted(account.can)) == ("ann", ["create", "delete", "read", "replace"])
    found = Users(StateDir(tmp_path / "state")).by_token(tokens_shown[0])
    assert found is not None


@pytest.mark.parametrize("words", [[], ["--anonymous", "read"]], ids=["nobody", "strangers"])
def test_a_service_has_no_token_in_its_log(tmp_path: Path, root: Path, words: list[str]) -> None:
    """Without a terminal nobody is added; the note says how."""
    state = tmp_path / "state"
    with serving(root, "--state", state, *words, listen=":0") as (_, process):
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert "ftt_" not in line + out + err
    assert Users(StateDir(state)).all() == []
    if words:
        assert line.startswith("log in with: ")
        assert line.rstrip().endswith(" --anonymous")
        assert "everybody who reaches this address may read here" in err
    else:
        assert "nobody can log in from another machine yet: ftransfer user add NAME" in err


def test_serve_on_loopback_prints_one_line(tmp_path: Path, root: Path) -> None:
    """Nobody has to log in there."""
    with serving(root, "--state", tmp_path / "state") as (url, process):
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert (out, url[:15]) == ("", "ft://127.0.0.1:")
    assert "log in" not in err
    assert not (tmp_path / "state/identity.pem").exists()


def test_an_insecure_server_warns(tmp_path: Path, root: Path) -> None:
    """And the line to paste has the address in the clear."""
    with serving(root, "--state", tmp_path / "state", "--insecure", listen=":0") as (url, process):
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert url.startswith("ft+plain://") or net.is_loopback(net.parse_url(url).host)
    assert "in the clear" in err
    assert line.startswith(f"log in with: ftransfer login {url} --as ")
    assert "--fingerprint" not in line


def test_an_insecure_server_with_a_certificate(tmp_path: Path, root: Path, certificate: Certificate) -> None:
    """It takes plain, and what it prints is the way that is encrypted."""
    words = ["--state", tmp_path / "state", "--insecure", "--cert", certificate.path, "--key", certificate.key]
    with serving(root, *words, listen=":0") as (url, process):
        assert process.stdout is not None
        line = process.stdout.readline()
        if net.is_loopback(net.parse_url(url).host):
            pytest.skip("NOT TESTED: this machine has no address that others reach")
        token = run_here("user", "add", "-q", "lab", "--state", tmp_path / "state").out
        words = shlex.split(line.partition("ftransfer ")[2])
        ran = run(*words, stdin=token.encode(), env={"FTRANSFER_STATE": str(tmp_path / "client")})
        assert ran.status == 0, ran.err
        assert "in the clear" not in ran.err
        port = net.parse_url(url).port
        with ftransfer.connect(f"ft+plain://{net.parse_url(url).host}:{port}/", token=token) as remote:
            assert remote.ping().user == "lab"


NASTY = 'x"\n{"message": "forged"}\x1b[2J\u202e\\'


def test_the_log_is_one_object_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names, users and errors are in it, from the start to the end; fields say who did what."""
    root = tmp_path / "root"
    root.mkdir()
    (root / NASTY).write_bytes(b"data")
    monkeypatch.setenv("FTRANSFER_STATE", str(tmp_path / "state"))
    with serving(root, "--log-format", "json", "-v") as (url, process):
        with ftransfer.connect(url) as remote:
            remote.upload(b"data", f"new {NASTY}")
            remote.download(NASTY, io.BytesIO())
            with pytest.raises(errors.NotFound):
                remote.stat(f"absent {NASTY}")
        with ftransfer.connect(url, token=WRONG, retry_for=0) as remote, pytest.raises(errors.LoginNeeded):
            remote.ping()
        with socket.create_connection((net.parse_url(url).host, net.parse_url(url).port)) as sock:
            sock.sendall(b"\0\0\0\5{\n\x1b}]")
            sock.recv(4096)
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    lines = err.splitlines()
    made = [json.loads(line) for line in lines]
    assert len(made) > 5
    assert all(isinstance(one, dict) and one["v"] == 1 and {"time", "level", "message"} <= one.keys() for one in made)
    assert not [one for one in made if one["message"] == "forged"]
    assert err.isascii()
    assert "\x1b" not in err
    text = "".join(one["message"] for one in made)
    assert "\x1b" not in text
    assert "\n" not in text
    assert "\u202e" not in text
    assert WRONG not in err
    (line,) = [one for one in made if one["message"].find(" put ") > 0]
    assert re.search(r"^127\.0\.0\.1:\d+ owner put new x", line["message"])
    if "user" in line:
        assert (line["user"], line["bytes"], line["result"]) == ("owner", 4, "stored")


def test_a_fault_of_our_own_is_one_object_too() -> None:
    """Its traceback stands in a field."""
    import logging

    try:
        raise ValueError(NASTY)
    except ValueError:
        record = logging.LogRecord("ftransfer", logging.ERROR, "", 0, "%s broke", (NASTY,), sys.exc_info())
    line = _Lines().format(record)
    assert "\n" not in line
    assert "ValueError" in json.loads(line)["traceback"]


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    """READY=1 when clients are served, on a socket with a path or without; only from the server itself."""
    for where in (str(tmp_path / "notify"), f"\0ftransfer-test-{os.getpid()}"):
        if where[0] == "\0" and not sys.platform.startswith("linux"):
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(where)
            with _serving_with(tmp_path, {"NOTIFY_SOCKET": where.replace("\0", "@")}) as url:
                assert select.select([manager], [], [], PATIENCE)[0]
                assert b"READY=1" in manager.recv(4096).split(b"\n")
                with ftransfer.connect(url) as remote:
                    remote.ping()
    with _serving_with(tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as url, ftransfer.connect(url) as remote:
        remote.ping()


@contextmanager
def _serving_with(root: Path, env: dict[str, str]) -> Iterator[str]:
    process = subprocess.Popen(
        [*COMMAND, "serve", str(root), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **env},
    )
    assert process.stdout is not None
    try:
        found = re.search(r"ft\S*://\S+", process.stdout.readline())
        assert found
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--limit", "connections"], "no such limit: 'connections'"),
        (["--limit", "moons=1"], "NAME=N, with NAME one of connections, connections_per_address"),
        (["--limit", "connections=many"], "connections has to be a number, not 'many'"),
        (["--limit", "connections=0"], "more than nothing"),
        (["--limit", "connections=-1"], "connections"),
        (["--limit", "connections="], "connections has to be a number"),
        (["--limit", "handshake_seconds=inf"], "more than nothing"),
        (["--limit", "handshake_seconds=nan"], "more than nothing"),
        (["--limit", "handshake_seconds=soon"], "handshake_seconds has to be a number"),
        (["--limit", "idle_seconds=0"], "more than nothing"),
        (["--limit", "__class__=1"], "no such limit"),
        (["--keep-free", "lots"], "lots"),
        (["--keep-free", "-1"], ""),
        (["--anonymous", "delete"], "invalid choice"),
        (["--log-format", "xml"], "invalid choice"),
        (["--listen", "nowhere.invalid:0"], "no such address"),
        (["--listen", "127.0.0.1:99999"], "not a port"),
    ],
)
def test_options_of_serve_that_cannot_be(tmp_path: Path, words: list[str], says: str) -> None:
    """Each is an error of status 2, in a sentence, before anybody is served."""
    ran = run_here("serve", tmp_path, "--listen", "127.0.0.1:0", *words)
    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.startswith("error: ")


def test_limits_are_taken(tmp_path: Path) -> None:
    """With units where bytes are counted; `ping` shows the one that it knows."""
    words = ["--limit", "connections=7", "--limit", "handshake_seconds=2.5", "--limit", "staged_bytes=10G"]
    words += ["--keep-free", "0", "--limit", "least_rate=100"]
    with serving(tmp_path, *words) as (url, _):
        assert "connections: 1 of 7" in run_here("ping", url).out


@pytest.mark.parametrize(
    "words", [["one=ROOT/a", "two=ROOT/b"], ["one=ROOT/a"], ["ROOT/x=y"]], ids=["two", "one", "a folder with ="]
)
def test_folders_by_name(tmp_path: Path, words: list[str]) -> None:
    """NAME=DIR serves each under its name; a folder that has such a name itself is a folder."""
    for name in ("a", "b", "x=y"):
        (tmp_path / name).mkdir()
    (tmp_path / "f").write_bytes(b"data")
    words = [word.replace("ROOT", str(tmp_path)) for word in words]
    names = [word.partition("=")[0] for word in words if word.startswith(("one", "two"))]
    with serving(Path(words[0]), *words[1:]) as (url, _):
        assert run_here("list", url).out == "".join(f"{name}/\n" for name in names)
        for name in names or [""]:
            assert run_here("upload", tmp_path / "f", f"{url}{name}/").status == 0
        if names:
            assert run_here("upload", tmp_path / "f", url).status == 5
            assert run_here("mkdir", f"{url}three").status == 5
    stored = [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/f")]
    assert sorted(stored) == (["x=y/f"] if not names else ["a/f", "b/f"][: len(names)])


@pytest.mark.parametrize("words", [["ROOT"], ["one=ROOT/a", "two=ROOT"], ["LINK"]], ids=["root", "named", "by a link"])
def test_the_state_is_not_served(tmp_path: Path, words: list[str]) -> None:
    """Below what is served it would hand out tokens and key: refused where others come, however it is called."""
    (tmp_path / "root/a/state").mkdir(parents=True)
    (tmp_path / "link").symlink_to("root")
    words = [word.replace("ROOT", f"{tmp_path}/root").replace("LINK", f"{tmp_path}/link") for word in words]
    for state in ("root/a/state", "root/new", "root", "link/a/state"):
        for more in (["--listen", ":0"], ["--listen", "127.0.0.1:0", "--anonymous", "read"]):
            ran = run_here("serve", *words, *more, "--state", tmp_path / state)
            assert (ran.status, ran.out) == (2, ""), (state, ran)
            assert "lies in what is served" in ran.err


def test_where_the_state_is_served_the_owner_is_alone(tmp_path: Path) -> None:
    """`serve ~` on this machine: nobody else may read there, also who has a token."""
    state = tmp_path / "root/.local/state/ftransfer"
    with ftransfer.Server(tmp_path, state=state) as server:
        token = Users(StateDir(state)).add("lab")
        with (
            ftransfer.connect(server.urls[0], token=token, retry_for=0) as remote,
            pytest.raises(errors.Refused, match="takes only its owner"),
        ):
            remote.ping()
        with ftransfer.connect(server.urls[0], state=state) as remote:
            assert remote.ping().user == "owner"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a=.", "b"], "not a name and a folder: 'b'"),
        (["a=.", "a=/"], "two folders are called 'a'"),
        (["=x", "a=."], "not a name and a folder"),
        (["a=", "b=."], "not a name and a folder"),
        (["a/b=.", "c=."], "a name has no slash"),
        (["..=.", "c=."], "'..'"),
        ([".ftransfer=.", "c=."], "reserved"),
        (["a=.", "b=absent"], "absent"),
    ],
)
def test_folders_that_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    """They are refused, one and all."""
    monkeypatch.chdir(tmp_path)
    ran = run_here("serve", *words, "--listen", "127.0.0.1:0")
    assert (ran.status, ran.out) == (3 if "absent" in says else 2, "")
    assert says in ran.err


def test_what_a_server_says_is_escaped(place: Place) -> None:
    """A message, a hint, a name of the software: nothing of it moves the cursor of who logs in."""
    del place
    evil = "evil\x1b[2J\r\n\u202eerror: fake\x9b"

    def refusing(peer: Peer) -> None:
        if peer.receive() is not None:  # a login looks first who is there
            peer.send({"type": "error", "code": "login", "message": evil, "hint": evil})

    def welcoming(peer: Peer) -> None:
        if peer.receive() is not None:
            peer.send({"type": "welcome", "version": 1, "software": evil, "session": "0" * 32, "can": [evil]})
            peer.send({"type": "error", "code": "login", "message": evil})

    for script in (refusing, welcoming):
        with FakeServer(script) as fake:
            for words in (["login", fake.url, "--as", "x", "--anonymous"], ["ping", fake.url]):
                ran = run_here(*words)
                assert ran.status != 0
                assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", ran.out + ran.err)
                assert "\nerror: fake" not in ran.err


def test_resolving_is_the_same_for_programs(place: Place, tmp_path: Path) -> None:
    """`state` names another folder, for the name and the token alike."""
    place.log_in()
    assert resolve_name("lab:a b", place.state.path) == place.url.replace("://", "://lab@") + "a%20b"
    assert resolve_name("ft://h/x") == "ft://h/x"
    with pytest.raises(errors.NotFound):
        resolve_name("lab:x", tmp_path / "other")
    with ftransfer.connect("lab:", state=place.state.path) as remote:
        assert remote.ping().user == "lab"


def test_two_logins_at_once_lose_nothing(place: Place) -> None:
    """Each writes what the other has written, too."""
    threads = [
        threading.Thread(target=Known(StateDir(place.state.path)).save, args=[Login(f"n{n}", "ft://h/", None)])
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(Known(place.state).logins()) == 20

"""Who is let in, as who, and for how long: the command `user`, a running server, tokens of users and of the owner."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import run, run_here, serving
from forests import facts, grove
from support import (
    PATIENCE,
    Peer,
    Proxy,
    block_hash,
    content_of,
    cut_after,
    nothing_leaks,
    put,
    serves_well,
    token_for,
    wait_until,
)

import ftransfer
from ftransfer import admission, channel, errors, link, net, tokens, users
from ftransfer import serving as serving_module
from ftransfer.statedir import StateDir
from ftransfer.users import Users

TOKEN = re.compile(r"ftt_[0-9a-f]{64}")
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """A state folder of this test's own, for the server and the command."""
    monkeypatch.setenv("FTRANSFER_STATE", str(tmp_path / "state"))
    return StateDir()


@pytest.fixture
def known(state: StateDir) -> Users:
    """The users of that folder."""
    return Users(state)


@pytest.fixture
def server(root: Path, state: StateDir) -> Iterator[ftransfer.Server]:
    """A server with these users."""
    del state
    with ftransfer.Server(root, durable=False) as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have servers look at once, and failures wait for next to nothing."""
    monkeypatch.setattr(channel, "TICK", 0.05)
    monkeypatch.setattr(serving_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(admission, "FIRST_PENALTY", 0.001)


def log_in(server: ftransfer.Server, token: str | None, **options: Any) -> ftransfer.Remote:
    """Return a client that shows this token, without retries."""
    return ftransfer.connect(server.urls[0], token=token, retry_for=0, **options)


def greet(server: ftransfer.Server, token: str | None, **fields: Any) -> Peer:
    """Return a connection by hand that has sent its hello."""
    peer = Peer.dial(server.urls[0], greet=False)
    peer.send({"type": "hello", "versions": [1], "software": "tests", "token": token} | fields)
    return peer


# The command.


def test_adding_prints_the_token_once(state: StateDir) -> None:
    """Stdout has the token and nothing else, for scripts; stderr says what it is; the file has its hash only."""
    ran = run_here("user", "add", "lab")
    assert ran.status == 0
    assert TOKEN.fullmatch(ran.out.rstrip("\n"))
    assert ran.err == (
        "this is the token of lab; it is shown only now, and its hash is kept\n"
        "`ftransfer login`, which the server shows when it starts, asks for it\n"
    )
    token = ran.out.strip()
    for path in Path(state.path).rglob("*"):
        if path.is_file():
            assert token not in path.read_text()
            assert token[4:] not in path.read_text()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        else:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(state.path).st_mode) == 0o700
    assert users.token_hash(token) in Path(state.where("users.json")).read_text()
    assert token not in run_here("user", "list").out + run_here("user", "list", "--json").out


def test_tokens_are_never_the_same(state: StateDir) -> None:
    """Nor do they tell of each other."""
    del state
    found = {run_here("user", "add", f"u{n}").out for n in range(5)} | {run_here("user", "token", "u0").out}
    assert len(found) == 6
    assert len({token[:20] for token in found}) == 6


def test_the_list_says_who_may_do_what(state: StateDir) -> None:
    """One line for each, in full; and as JSON."""
    assert run_here("user", "list") == (0, "", "no users: ftransfer user add NAME makes one\n")
    run_here("user", "add", "zoe")
    run_here("user", "add", "box", "--can", "create", "--folder", "in/box/", "--quota", "50G", "--max-file", "5G")
    run_here("user", "add", "all", "--can", "delete,create, read,replace", "--expires", "30d")
    Users(state).add_used("box", 3 << 30)
    until = json.loads(Path(state.where("users.json")).read_text())["users"]["all"]["expires"]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
    assert abs(until - time.time() - 30 * 86400) < 60
    assert run_here("user", "list").out.splitlines() == [
        f"all  create, read, replace, delete; until {when}",
        "box  create; in in/box/; 3.0 GiB of 50.0 GiB; files of at most 5.0 GiB",
        "zoe  create, read",
    ]
    events = [json.loads(line) for line in run_here("user", "list", "--json").out.splitlines()]
    assert events[1] == {
        "v": 1,
        "event": "user",
        "name": "box",
        "can": ["create"],
        "folder": "in/box",
        "quota": 50 << 30,
        "used": 3 << 30,
        "max_file": 5 << 30,
        "expires": None,
    }
    assert [event["name"] for event in events] == ["all", "box", "zoe"]


def test_removing_and_renewing(state: StateDir) -> None:
    """A removed user is gone, the share too; a renewed one keeps all but the token."""
    known = Users(state)
    first = run_here("user", "add", "lab", "--quota", "1G").out.strip()
    known.add_used("lab", 1000)
    ran = run_here("user", "token", "lab")
    assert (ran.status, TOKEN.fullmatch(ran.out.strip()) is not None) == (0, True)
    assert ran.err.startswith("this is the token of lab; ")
    assert known.by_token(first) is None
    found = known.by_token(ran.out.strip())
    assert found is not None
    assert (found[0].name, found[0].quota, known.used("lab")) == ("lab", 1 << 30, 1000)
    assert run_here("user", "remove", "lab") == (0, "", "lab is removed; connections end within a second\n")
    assert known.all() == []
    run_here("user", "add", "lab", "--quota", "1G")
    assert known.used("lab") == 0


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["add", "Lab"], 2, "error: a user cannot be called 'Lab'\nhint: 1 to 32 of a-z, 0-9, dot"),
        (["add", ""], 2, "cannot be called ''"),
        (["add", "-x"], 2, ""),
        (["add", "a" * 33], 2, "cannot be called"),
        (["add", "a/b"], 2, "cannot be called"),
        (["add", "../x"], 2, "cannot be called"),
        (["add", "l\u00e4b"], 2, "cannot be called"),
        (["add", "new\nline"], 2, "cannot be called"),
        (["add", "owner"], 2, "owner and anonymous are taken"),
        (["add", "anonymous"], 2, "owner and anonymous are taken"),
        (["add", "there"], 11, "error: there is a user called there\nhint: ftransfer user token NAME"),
        (["add", "x", "--can", "fly"], 2, "nobody can be allowed to 'fly'"),
        (["add", "x", "--can", ""], 2, "nobody can be allowed to ''"),
        (["add", "x", "--can", "read,"], 2, "nobody can be allowed to ''"),
        (["add", "x", "--folder", "../up"], 2, "'..'"),
        (["add", "x", "--folder", "/srv/x"], 2, "--folder srv/x"),
        (["add", "x", "--folder", ".ftransfer"], 2, "reserved"),
        (["add", "x", "--quota", "much"], 2, "much"),
        (["add", "x", "--quota", "-1"], 2, ""),
        (["add", "x", "--max-file", "1Q"], 2, "1Q"),
        (["add", "x", "--expires", "soon"], 2, "soon"),
        (["remove", "nobody"], 3, "error: there is no user called 'nobody'\nhint: ftransfer user list"),
        (["token", "nobody"], 3, "there is no user called 'nobody'"),
        (["remove", "../../x\x1b[2J"], 3, "\\x1b[2J"),
        (["remove"], 2, "NAME"),
        ([], 2, "ACTION"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_change_nothing(state: StateDir, words: list[str], status: int, says: str) -> None:
    """Each is an error in a sentence, with the status of its kind."""
    run_here("user", "add", "there")
    before = Path(state.where("users.json")).read_bytes()
    ran = run_here("user", *words)
    assert (ran.status, ran.out) == (status, ""), ran.err
    assert ran.err.startswith("error: ")
    assert says in ran.err
    assert "\x1b" not in ran.err
    assert Path(state.where("users.json")).read_bytes() == before


def test_options_stand_before_and_behind_the_action(state: StateDir) -> None:
    """`-q` says nothing but the token."""
    del state
    assert run_here("user", "-q", "add", "one").err == ""
    ran = run_here("user", "add", "-q", "two")
    assert (ran.status, ran.err) == (0, "")
    assert run_here("user", "list", "-q").status == 0


def test_another_state_folder(tmp_path: Path, state: StateDir) -> None:
    """`--state` is for all actions; nothing of it is seen in the default one."""
    where = ["--state", str(tmp_path / "other")]
    token = run_here("user", "add", "lab", *where).out.strip()
    assert run_here("user", "list", *where).out == "lab  create, read\n"
    assert run_here("user", "token", "lab", *where).out.strip() != token
    assert run_here("user", "remove", "lab", *where).status == 0
    assert not os.path.exists(state.where("users.json"))


def test_many_commands_at_once_lose_nothing(state: StateDir) -> None:
    """Each sees what the others have done."""
    threads = [threading.Thread(target=Users(StateDir(state.path)).add, args=[f"u{n}"]) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(Users(state).all()) == 20


# A running server.


@pytest.mark.usefixtures("quick")
def test_a_server_obeys_at_once(server: ftransfer.Server, known: Users) -> None:
    """Who is added can log in, who is removed or has another token cannot; nothing is restarted."""
    first = known.add("lab")
    with log_in(server, first) as remote:
        pong = remote.ping()
        assert (pong.user, pong.can) == ("lab", ["create", "read"])
    second = known.renew("lab")
    with log_in(server, first) as remote, pytest.raises(errors.LoginNeeded, match="does not know this token"):
        remote.ping()
    with log_in(server, second) as remote:
        assert remote.ping().user == "lab"
    known.remove("lab")
    with log_in(server, second) as remote, pytest.raises(errors.LoginNeeded):
        remote.ping()
    third = known.add("lab", can=["read"])
    with log_in(server, third) as remote:
        assert remote.ping().can == ["read"]


def change(known: Users, how: str) -> None:
    """Do to the user `lab` what ends its connections."""
    if how == "removed":
        known.remove("lab")
    elif how == "renewed":
        known.renew("lab")
    else:
        with known._state.lock(users.FILE):
            records = known._state.read_json(users.FILE)
            if how == "expired":
                records["users"]["lab"]["expires"] = time.time() - 1
            elif how == "less":
                records["users"]["lab"]["can"] = ["read"]
            elif how == "elsewhere":
                records["users"]["lab"]["folder"] = "elsewhere"
            known._state.write_json(users.FILE, records)


@pytest.mark.parametrize("how", ["removed", "renewed", "expired", "less", "elsewhere"])
def test_an_open_connection_ends(server: ftransfer.Server, known: Users, how: str) -> None:
    """Within about a second, also one that does nothing; it is told why."""
    token = known.add("lab", expires=time.time() + 1000)
    with greet(server, token) as peer:
        assert peer.expect("welcome")["user"] == "lab"
        started = time.monotonic()
        change(known, how)
        error = peer.expect("error", t=None)
        assert time.monotonic() - started < 3
        assert error["code"] in ("refused", "login")
        assert peer.is_closed_by_peer()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("direction", ["upload", "download", "tree up", "tree down"])
def test_a_transfer_in_the_middle_stops(
    server: ftransfer.Server, root: Path, known: Users, tmp_path: Path, direction: str
) -> None:
    """Nothing more is stored or sent once the user is gone, and no retry brings it back."""
    token = known.add("lab")
    data = os.urandom(24 * MIB)  # more than the buffers of the line hold
    (tmp_path / "big").write_bytes(data)
    (root / "big").write_bytes(data)
    for folder in (tmp_path / "tree", root / "tree"):
        folder.mkdir()
        for number in range(400):
            (folder / f"{number}").write_bytes(data[number * 60_000 :][:60_000])
    done: list[float] = []

    def stop(event: ftransfer.Progress) -> None:
        if event.done > 0 and not done:
            done.append(time.monotonic())
            known.remove("lab")

    target = tmp_path / "back"
    moves: dict[str, Callable[[ftransfer.Remote], Any]] = {
        "upload": lambda remote: remote.upload(tmp_path / "big", "copy", on_progress=stop),
        "download": lambda remote: remote.download("big", target, on_progress=stop),
        "tree up": lambda remote: remote.upload(tmp_path / "tree", "copy/", on_progress=stop),
        "tree down": lambda remote: remote.download("tree", target, on_progress=stop),
    }
    with log_in(server, token, limit_rate=(5 if direction == "tree down" else 16) * MIB) as remote:
        with pytest.raises(errors.FtransferError) as caught:
            moves[direction](remote)
        assert time.monotonic() - done[0] < 4
        assert not caught.value.retryable or isinstance(caught.value, errors.ConnectionLost)
    if "tree" not in direction:
        assert not (root / "copy").exists()
        assert not target.exists()
    wait_until(lambda: server.connection_count == 0, "the end of the connection")
    serves_well(server)


@pytest.mark.usefixtures("quick")
def test_rights_that_grow_count_at_the_next_connection(server: ftransfer.Server, root: Path, known: Users) -> None:
    """A client of the API logs in again by itself, and may do more."""
    token = known.add("lab", can=["read"])
    with ftransfer.connect(server.urls[0], token=token) as remote:
        assert remote.ping().can == ["read"]
        with known._state.lock(users.FILE):
            records = known._state.read_json(users.FILE)
            records["users"]["lab"]["can"] = ["read", "create"]
            known._state.write_json(users.FILE, records)
        wait_until(lambda: server.connection_count == 0, "the end of the connection")
        try:
            remote.upload(b"data", "file")
        except errors.Refused:
            remote.upload(b"data", "file")
    assert (root / "file").read_bytes() == b"data"


# Wrong tokens.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("token", ["ftt_" + "0" * 64, "x", "!" * 256, None])
def test_strangers_are_refused(server: ftransfer.Server, root: Path, token: str | None) -> None:
    """Code `login`, status 5, no retry; nothing of what they sent behind it was looked at."""
    with greet(server, token) as peer:
        put(peer, 1, "file", 0)
        peer.send_end(1, "file", b"")
        assert peer.expect("error", t=None, code="login")["hint"]
        assert peer.is_closed_by_peer()
    if token is not None:
        with ftransfer.connect(server.urls[0], token=token, retry_for=5) as remote:
            with pytest.raises(errors.LoginNeeded) as caught:
                remote.ping()
            assert (caught.value.exit_status, caught.value.retryable, caught.value.remote) == (5, False, True)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("token", ["", "\u00e9", "\ud800", "a b", "x" * 257, "\0", 5, True, [], {}])
def test_tokens_that_cannot_be(server: ftransfer.Server, token: Any) -> None:
    """What is no token by its form is a bad frame, whatever it is compared with."""
    with greet(server, token) as peer:
        peer.expect("error", t=None, code="bad-frame")
        assert peer.is_closed_by_peer()
    serves_well(server)


def test_a_token_as_programs_read_it_from_a_file(server: ftransfer.Server, known: Users) -> None:
    """The space around it does not count; what cannot be one is an error at once, which does not show it."""
    token = known.add("lab")
    for text in (f"{token}\n", f"  {token}\r\n", token):
        with log_in(server, text) as remote:
            assert remote.ping().user == "lab"
    for wrong in ("", "\n", "secret word", "s\u00e9cret", "\ud800", "secret" * 50, "sec\0ret", "sec\x1bret"):
        with pytest.raises(errors.UsageError) as caught:
            ftransfer.connect(server.urls[0], token=wrong)
        assert "sec" not in f"{caught.value} {caught.value.hint}"


def test_secrets_are_compared_as_bytes() -> None:
    """Text that has no UTF-8 is compared like any other; `compare_digest` alone would refuse it."""
    for one in ("", "a", "\u00e9", "\udcff", "\ud800x", "\U0001f600"):
        assert users.is_same(one, one)
        assert not users.is_same(one, one + "x")
        assert len(users.token_hash(one)) == 64
    assert len({users.token_hash(text) for text in ("", "a", "\u00e9", "\udcff", "\udcfe")}) == 5


@pytest.mark.usefixtures("quick")
def test_a_token_is_shown_nowhere(server: ftransfer.Server, known: Users, caplog: pytest.LogCaptureFixture) -> None:
    """Not in the log, right or wrong, not in errors, not in the repr of what carries it."""
    right, wrong = known.add("lab"), "ftt_" + "f" * 64
    with caplog.at_level(logging.DEBUG):
        for token in (right, wrong):
            with log_in(server, token) as remote, ExitStack() as stack:
                if token == wrong:
                    caught = stack.enter_context(pytest.raises(errors.LoginNeeded))
                remote.ping()
                remote.upload(b"data", "file")
    assert wrong not in f"{caught.value} {caught.value.hint} {caught.value!r}"
    said = caplog.text
    assert "lab put file" in said
    for token in (right, wrong, server.admission.owner_token):
        assert token not in said
        assert token[4:] not in said
        assert users.token_hash(token) not in said


def test_failures_are_answered_later_and_later(server: ftransfer.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong token of an address waits longer; a success in between changes nothing, strangers do not wait."""
    monkeypatch.setattr(admission, "FIRST_PENALTY", 0.05)
    waited = []
    for _ in range(4):
        started = time.monotonic()
        with greet(server, "wrong") as peer:
            peer.expect("error", code="login")
        waited.append(time.monotonic() - started)
        serves_well(server)
    for number, seconds in enumerate(waited):
        assert seconds >= 0.05 * 2**number * 0.9
    started = time.monotonic()
    with greet(server, None) as peer:
        peer.expect("error", code="login")
    assert time.monotonic() - started < waited[-1]


def test_a_guess_that_waits_delays_nobody(
    server: ftransfer.Server, known: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even those of the same address; and the end of the server waits for no guess."""
    monkeypatch.setattr(admission, "FIRST_PENALTY", 5.0)
    token = known.add("lab")
    with greet(server, "wrong") as guess:
        started = time.monotonic()
        with log_in(server, token) as remote:
            assert remote.ping().user == "lab"
        server.close(grace=0)
        assert time.monotonic() - started < 3
        guess.drain()


def test_the_penalty_has_its_bounds(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a few seconds, for a bounded number of addresses, and forgiven after a time."""
    now = [1000.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: now[0])
    judge = admission.Admission(state)
    first = [judge.penalty("a") for _ in range(50)]
    assert first[:4] == [0.1, 0.2, 0.4, 0.8]
    assert first[-1] == max(first) == admission.LONGEST_PENALTY
    assert judge.penalty("b") == 0.1
    now[0] += admission.FORGIVEN_AFTER + 1
    assert judge.penalty("a") == 0.1
    for number in range(admission.MOST_REMEMBERED + 100):
        judge.penalty(f"host {number}")
    assert len(judge._failures) <= admission.MOST_REMEMBERED


@pytest.mark.usefixtures("quick")
def test_the_user_of_an_address_has_to_be_that_of_the_token(server: ftransfer.Server, known: Users) -> None:
    """`USER@` says whose token is meant; the token of somebody else is refused, the owner's too."""
    token = known.add("lab")
    known.add("other")
    url = server.urls[0].replace("://", "://lab@")
    with ftransfer.connect(url, token=token, retry_for=0) as remote:
        assert remote.ping().user == "lab"
    for wrong in (known.renew("other"), server.admission.owner_token):
        with (
            ftransfer.connect(url, token=wrong, retry_for=0) as remote,
            pytest.raises(errors.LoginNeeded, match="not of the user 'lab'"),
        ):
            remote.ping()
    with ftransfer.connect(url, retry_for=0) as remote, pytest.raises(errors.LoginNeeded):
        remote.ping()  # the owner's token is not looked for


# The owner.


def test_the_owner_is_who_started_it(server: ftransfer.Server, state: StateDir) -> None:
    """Clients of the same user on the same machine find a token, 0600, and may do everything."""
    with ftransfer.connect(server.urls[0]) as remote:
        assert (remote.ping().user, remote.ping().can) == ("owner", ["create", "read", "replace", "delete"])
    (name,) = os.listdir(state.where("serving"))
    assert stat.S_IMODE(os.stat(state.where(f"serving/{name}")).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(state.where("serving")).st_mode) == 0o700


def test_others_do_not_find_it(server: ftransfer.Server, tmp_path: Path) -> None:
    """Somebody with a state folder of their own is a stranger."""
    with (
        ftransfer.connect(server.urls[0], state=tmp_path / "other", retry_for=0) as remote,
        pytest.raises(errors.LoginNeeded),
    ):
        remote.ping()
    ran = run("list", server.urls[0], env={"FTRANSFER_STATE": str(tmp_path / "other")})
    assert (ran.status, ran.out) == (5, "")
    assert ran.err.splitlines()[0] == "error: the server says: the server wants to know who asks"
    assert "ftransfer login" in ran.err.splitlines()[1]


AS_ANOTHER = """
import encodings.idna, os, sys
import ftransfer, ftransfer.server, ftransfer.known, ftransfer.tokens, ftransfer.identity, ftransfer.client
remotes = [ftransfer.connect(url, retry_for=0) for url in sys.argv[1:]]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for remote in remotes:
    try:
        print(remote.ping().user)
    except ftransfer.FtransferError as exc:
        print(exc.code)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can become another user")
def test_another_user_of_the_machine_is_a_stranger(server: ftransfer.Server, root: Path, tmp_path: Path) -> None:
    """The token cannot be read, whoever points at its folder; a Unix socket cannot even be connected to."""
    with ftransfer.Server(root, listen=[f"unix:{tmp_path / 's'}"]) as beside:
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER, server.urls[0], beside.urls[0]],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.stderr == ""
    assert done.stdout.split() == ["refused", "unreachable"]


def test_the_token_goes_with_the_server(root: Path, state: StateDir) -> None:
    """It is fresh at each start, and its file is gone after the stop."""
    seen = set()
    for _ in range(3):
        with ftransfer.Server(root) as server:
            seen.add(token_for(server.urls[0]))
            seen.add(server.admission.owner_token)
        assert os.listdir(state.where("serving")) == []
    assert len(seen) == 3


def test_what_a_killed_server_leaves_is_worth_nothing(root: Path, state: StateDir) -> None:
    """Who takes the port is shown a token that opens nothing; the next server there is found all the same."""
    with serving(root) as (url, process):
        old = token_for(url)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    assert token_for(url) == old, "nobody could take it away"
    port = net.parse_url(url).port
    shown: list[Any] = []

    def script(peer: Peer) -> None:
        shown.append(peer.expect("hello")["token"])

    with _fake(script, port), ftransfer.connect(url, retry_for=0) as remote, pytest.raises(errors.ConnectionLost):
        remote.ping()
    assert shown == [old]
    for listen in (f"127.0.0.1:{port}", f":{port}", f"0.0.0.0:{port}"):
        state.write(f"serving/{tokens.endpoint(('127.0.0.1', port))}", old.encode())
        with ftransfer.Server(root, listen=[listen]):
            with (
                ftransfer.connect(f"ft://127.0.0.1:{port}", token=old, retry_for=0) as remote,
                pytest.raises(errors.LoginNeeded),
            ):
                remote.ping()
            with ftransfer.connect(f"ft://127.0.0.1:{port}/") as remote:
                assert remote.ping().user == "owner", listen


@contextmanager
def _fake(script: Callable[[Peer], None], port: int) -> Iterator[None]:
    """Serve one connection on this port."""
    listener = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        sock, _ = listener.accept()
        with Peer(sock) as peer:
            script(peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
        listener.close()


def test_a_file_of_the_token_that_others_could_write_is_not_taken(server: ftransfer.Server, state: StateDir) -> None:
    """Who could write it could have clients show what they like."""
    (name,) = os.listdir(state.where("serving"))
    os.chmod(state.where(f"serving/{name}"), 0o666)
    with ftransfer.connect(server.urls[0], retry_for=0) as remote, pytest.raises(errors.LoginNeeded):
        remote.ping()


@pytest.mark.parametrize("path", ["s", "with space and %25 \u00e9", "s" * 60])
def test_unix_sockets_have_a_token_too(
    root: Path, tmp_path_factory: pytest.TempPathFactory, state: StateDir, path: str
) -> None:
    """Whatever the path looks like."""
    where = tmp_path_factory.mktemp("s") / path
    if len(os.fsencode(where)) > 100:  # what every system takes
        where = Path(f"/tmp/{os.getpid()}-{path}")
    with ftransfer.Server(root, listen=[f"unix:{where}"]) as server:
        with ftransfer.connect(server.urls[0]) as remote:
            assert remote.ping().user == "owner"
        with (
            ftransfer.connect(server.urls[0], state=root.parent / "other", retry_for=0) as remote,
            pytest.raises(errors.LoginNeeded),
        ):
            remote.ping()
    assert os.listdir(state.where("serving")) == []
    assert not where.exists()


def test_several_servers_beside_each_other(tmp_path: Path, state: StateDir) -> None:
    """Each has a token of its own; the token of one opens no other."""
    del state
    roots = [tmp_path / name for name in "abc"]
    for one in roots:
        one.mkdir()
    with (
        ftransfer.Server(roots[0]) as a,
        ftransfer.Server(roots[1]) as b,
        ftransfer.Server(roots[2], listen=[":0"]) as c,
    ):
        for server, one in ((a, "a"), (b, "b"), (c, "c")):
            with ftransfer.connect(server.urls[-1]) as remote:
                remote.upload(b"data", f"file-{one}")
        with log_in(a, b.admission.owner_token) as remote, pytest.raises(errors.LoginNeeded):
            remote.ping()
    assert [list(content_of(one)) for one in roots] == [["file-a"], ["file-b"], ["file-c"]]


def has_ipv6() -> bool:
    """Tell whether ::1 can be bound here."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="NOT TESTED: there is no IPv6 here")
@pytest.mark.parametrize(("listen", "trap"), [("0.0.0.0", "::1"), ("[::]", "127.0.0.1")])
def test_the_token_is_for_the_families_that_are_served(root: Path, state: StateDir, listen: str, trap: str) -> None:
    """Who takes the same port of the other family is shown nothing that the server of this user takes."""
    del state
    with ftransfer.Server(root, listen=[f"{listen}:0"]) as server:
        port = net.parse_url(server.urls[-1]).port
        family = socket.AF_INET6 if ":" in trap else socket.AF_INET
        shown: list[Any] = []
        try:
            listener = socket.create_server((trap, port), family=family)
        except OSError:
            pytest.skip("NOT TESTED: the port is taken in both families")
        with listener:

            def serve() -> None:
                sock, _ = listener.accept()
                with Peer(sock) as peer:
                    shown.append((peer.receive() or {}).get("token"))

            thread = threading.Thread(target=serve)
            thread.start()
            host = f"[{trap}]" if ":" in trap else trap
            with ftransfer.connect(f"ft://{host}:{port}/", retry_for=0) as remote, pytest.raises(errors.FtransferError):
                remote.ping()
            thread.join(PATIENCE)
        assert shown != [server.admission.owner_token]
        with ftransfer.connect(server.urls[-1]) as remote:
            assert remote.ping().user == "owner"


@pytest.mark.skipif(not has_ipv6(), reason="NOT TESTED: there is no IPv6 here")
@pytest.mark.parametrize(
    "places", [["[::]", "0.0.0.0"], ["0.0.0.0", "[::]"], ["[::1]", "0.0.0.0"], ["127.0.0.1", "[::]"]]
)
@pytest.mark.parametrize("servers", [1, 2])
def test_both_families_have_their_token(root: Path, state: StateDir, places: list[str], servers: int) -> None:
    """On the same port, of one server or of two, in either order: each is found, and nothing is left behind."""
    port = _free_port()
    where = [f"{place}:{port}" for place in places]
    with ExitStack() as stack:
        for listen in [where] if servers == 1 else [[one] for one in where]:
            stack.enter_context(ftransfer.Server(root, listen=listen))
        for host in ("127.0.0.1", "[::1]"):
            with ftransfer.connect(f"ft://{host}:{port}/", retry_for=0) as remote:
                assert remote.ping().user == "owner", host
    assert os.listdir(state.where("serving")) == []


def _free_port() -> int:
    """Return a port that is free in both families."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as probe:
        port: int = probe.getsockname()[1]
        return port


# Strangers, and what nobody may.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("verb", ["read", "create"])
def test_strangers_may_what_the_server_says(root: Path, tmp_path: Path, state: StateDir, verb: str) -> None:
    """Without a token; with a wrong one nobody is let in."""
    del state
    (root / "there").write_bytes(b"data")
    with ftransfer.Server(root, anonymous=verb) as server:
        with ftransfer.connect(server.urls[0], state=tmp_path / "other") as remote:
            pong = remote.ping()
            assert (pong.user, pong.can) == ("anonymous", [verb])
            if verb == "read":
                assert [entry.path for entry in remote.list()] == ["there"]
                remote.download("there", tmp_path / "copy")
                with pytest.raises(errors.Refused):
                    remote.upload(b"more", "more", compare="none")
            else:
                assert remote.upload(b"more", "in/more").files[0].result == "sent"
                for look in (
                    lambda: list(remote.list()),
                    lambda: remote.stat("there"),
                    lambda: remote.checksum("there"),
                ):
                    with pytest.raises(errors.Refused):
                        look()
                with pytest.raises(errors.Refused):
                    remote.download("there", tmp_path / "copy")
            for spoil in (lambda: remote.remove("there"), lambda: remote.move("there", "x")):
                with pytest.raises(errors.Refused):
                    spoil()
        with log_in(server, "wrong") as remote, pytest.raises(errors.LoginNeeded):
            remote.ping()
        with ftransfer.connect(server.urls[0]) as remote:
            assert remote.ping().user == "owner"
    assert (root / "there").read_bytes() == b"data"
    assert (root / "in/more").exists() == (verb == "create")


def test_no_other_words_for_strangers(root: Path) -> None:
    """Neither more nor nonsense."""
    for word in ("replace", "delete", "all", "", "create,read"):
        with pytest.raises(errors.UsageError):
            ftransfer.Server(root, anonymous=word)


def test_read_only_is_for_everybody(root: Path, known: Users, state: StateDir) -> None:
    """The owner, users and strangers; who could only create can do nothing."""
    del state
    (root / "there").write_bytes(b"data")
    tokens_of = {"owner": None, "writer": known.add("writer", can=users.VERBS), "box": known.add("box", can=["create"])}
    with ftransfer.Server(root, read_only=True) as server:
        for name, token in tokens_of.items():
            with log_in(server, token) as remote:
                assert (remote.ping().user, remote.ping().can) == (name, [] if name == "box" else ["read"])
                for spoil in (
                    lambda: remote.upload(b"x", "new", compare="none"),
                    lambda: remote.mkdir("new"),
                    lambda: remote.remove("there"),
                    lambda: remote.move("there", "elsewhere"),
                    lambda: remote.partials(clear=True),
                ):
                    with pytest.raises(errors.Refused):
                        spoil()
    assert {name: kept[2] for name, kept in content_of(root).items()} == {"there": b"data"}
    with ftransfer.Server(root, read_only=True, anonymous="create") as server, greet(server, None) as peer:
        assert peer.expect("welcome").get("can", []) == []


@pytest.fixture
def box(server: ftransfer.Server, known: Users) -> Iterator[ftransfer.Remote]:
    """A client that may only create."""
    with log_in(server, known.add("box", can=["create"])) as remote:
        yield remote


def test_a_drop_box(server: ftransfer.Server, box: ftransfer.Remote, root: Path, tmp_path: Path) -> None:
    """Files and folders go in, with a receipt that has their digest; nothing is seen or replaced."""
    (root / "secret").write_bytes(b"secret")
    (root / "folder").mkdir()
    source = tmp_path / "file"
    source.write_bytes(b"data")
    result = box.upload(source, "folder/").files[0]
    assert (result.result, str(result.digest)) == ("sent", f"xxh128:{block_hash(b'data')}")
    assert box.upload(source, "new/name").files[0].result == "sent"
    tree = grove(tmp_path / "tree", 20, large=5 * MIB)
    assert box.upload(tree, "in/").count("failed") == 0
    assert len(list((root / "in/tree").rglob("*"))) >= 20  # below it, where nothing is taken away any more
    for look in (
        lambda: box.stat("secret"),
        lambda: box.stat("absent"),
        lambda: list(box.list()),
        lambda: box.checksum("secret"),
        lambda: list(box.checksums(["secret"])),
        lambda: box.download("secret", tmp_path / "copy"),
        lambda: box.verify_folder(tree, "in/tree"),
    ):
        with pytest.raises(errors.Refused, match="box may not"):
            look()
    for there in ("secret", "folder"):
        with pytest.raises(errors.Refused, match="box may not replace"):
            box.upload(b"other", there, compare="none")
    assert (root / "secret").read_bytes() == b"secret"
    serves_well(server)


def test_a_drop_box_goes_on_with_its_own(server: ftransfer.Server, known: Users, root: Path, tmp_path: Path) -> None:
    """An upload that was cut is resumed by the same user; nobody else's is, and nobody else sees it."""
    mine, other = known.add("mine", can=["create"]), known.add("other", can=["create"])
    source = tmp_path / "big"
    source.write_bytes(os.urandom(6 * MIB))

    def cut(event: ftransfer.Progress) -> None:
        if event.done >= 3 * MIB:
            raise KeyboardInterrupt

    with log_in(server, mine, limit_rate=20 * MIB) as remote, pytest.raises(KeyboardInterrupt):
        remote.upload(source, "big", on_progress=cut)
    wait_until(lambda: server.connection_count == 0, "the end of the connection")
    with log_in(server, other) as remote:
        assert remote.partials() == []
        assert remote.partials(clear=True) == []
    with log_in(server, mine) as remote:
        assert [part.path for part in remote.partials()] == ["big"]
        assert remote.upload(source, "big").files[0].resumed_from > 0
    assert (root / "big").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("place", [500, 5000, 100_000, 1_000_000, 3_000_000])
def test_a_drop_box_over_a_bad_line(
    server: ftransfer.Server, known: Users, root: Path, tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder gets in whole, though its user may not look at what is there already."""
    monkeypatch.setattr(link, "FIRST_DELAY", 0.01)
    tree = grove(tmp_path / "tree", 100, large=5 * MIB)
    with (
        Proxy(server.urls[0], up=cut_after(place)) as proxy,
        ftransfer.connect(proxy.url, token=known.add("box", can=["create"])) as remote,
    ):
        assert remote.upload(tree).failed == []
        assert proxy.connections == 2
    there = facts(root / "tree")
    assert {name: fact[:2] + fact[3:] for name, fact in facts(tree).items()} == {
        name: fact[:2] + fact[3:] for name, fact in there.items()
    }


def test_strangers_see_nothing_of_each_other(root: Path, tmp_path: Path, state: StateDir) -> None:
    """They share a name, and still what one has begun is neither shown to another nor dropped by it."""
    del state
    elsewhere = tmp_path / "other"
    with ftransfer.Server(root, anonymous="create") as server:
        with greet(server, None) as peer:
            peer.expect("welcome")
            put(peer, 1, "secret name", 1000)
            peer.send_block(1, 0, b"x" * 500)
            peer.expect("stored")
        wait_until(lambda: server.connection_count == 0, "the end of the connection")
        with ftransfer.connect(server.urls[0], state=elsewhere) as remote:
            for clear in (False, True):
                try:
                    assert remote.partials(clear=clear) == []
                except errors.Refused:
                    pass


def test_a_user_sees_a_folder_only(server: ftransfer.Server, root: Path, known: Users, tmp_path: Path) -> None:
    """It is made when it is needed, and is the root of all that the user names."""
    (root / "outside").write_bytes(b"secret")
    token = known.add("lab", can=users.VERBS, folder="homes/lab")
    with log_in(server, token) as remote:
        remote.upload(b"data", "file")
        remote.upload(grove(tmp_path / "tree", 10))
        assert {entry.path for entry in remote.list()} == {"file", "tree"}
        remote.move("file", "moved")
        remote.mkdir("deep/er", parents=True)
        for name in ("outside", "homes/lab/moved", "homes"):
            with pytest.raises(errors.NotFound):
                remote.stat(name)
        remote.remove("tree", recursive=True)
    with greet(server, token) as peer:
        peer.expect("welcome")
        for number, path in enumerate(["../outside", "/outside", "a/../../outside", "..", "./outside"], start=1):
            peer.send({"type": "checksum", "t": number, "path": path})
            assert peer.expect("error")["code"] in ("bad-path", "bad-frame")
    assert (root / "homes/lab/moved").read_bytes() == b"data"
    assert sorted(os.listdir(root / "homes")) == ["lab"]
    assert (root / "outside").read_bytes() == b"secret"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", ["a file", "a link out", "a link in"])
def test_a_folder_of_a_user_that_is_none(
    server: ftransfer.Server, root: Path, known: Users, tmp_path: Path, what: str
) -> None:
    """Nobody gets anywhere through it."""
    (tmp_path / "outside").mkdir()
    (root / "inside").mkdir()
    if what == "a file":
        (root / "lab").touch()
    else:
        (root / "lab").symlink_to(tmp_path / "outside" if what == "a link out" else "inside")
    with log_in(server, known.add("lab", folder="lab")) as remote, pytest.raises(errors.FtransferError) as caught:
        remote.upload(b"data", "file")
    assert not caught.value.retryable
    assert caught.value.code != "internal"
    assert str(tmp_path) not in f"{caught.value} {caught.value.hint}"
    assert os.listdir(tmp_path / "outside") == os.listdir(root / "inside") == []
    serves_well(server)


# A reconnecting client.


@pytest.mark.usefixtures("quick")
def test_only_the_same_user_ends_a_former_session(server: ftransfer.Server, known: Users) -> None:
    """Who knows the number of another's session cannot end it; the same user can."""
    mine, other = known.add("mine"), known.add("other")
    with greet(server, mine) as first:
        session = first.expect("welcome")["session"]
        for token in (other, server.admission.owner_token):
            with greet(server, token, former=session) as peer:
                peer.expect("welcome")
        with greet(server, "wrong", former=session) as peer:
            peer.expect("error", code="login")
        first.send({"type": "ping", "t": 1})
        first.expect("pong", t=1)
        with greet(server, mine, former=session) as second:
            assert second.expect("welcome")["session"] != session
            assert first.drain() is not None
            second.send({"type": "ping", "t": 1})
            second.expect("pong", t=1)


# Files that are damaged.

DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"users": []}',
    b'{"users": null}',
    b'{"users": "x"}',
    b'{"users": {"lab": null}}',
    b'{"users": {"lab": []}}',
    b'{"users": {"lab": {}}}',
    b'{"users": {"lab": {"can": 5, "folder": "", "token": "x"}}}',
    b'{"users": {"lab": {"can": "read", "folder": "", "token": "x"}}}',
    b'{"users": {"lab": {"can": ["read", "fly"], "folder": "", "token": "x"}}}',
    b'{"users": {"lab": {"can": [[]], "folder": "", "token": "x"}}}',
    b'{"users": {"lab": {"can": ["read"], "folder": "../..", "token": "x"}}}',
    b'{"users": {"lab": {"can": ["read"], "folder": 7, "token": "x"}}}',
    b'{"users": {"lab": {"can": ["read"], "folder": "", "token": "x", "expires": "never"}}}',
    b'{"users": {"lab": {"can": ["read"], "folder": "", "token": "x", "quota": true}}}',
    b'{"users": {"l\\u0000b": {"can": ["read"], "folder": "", "token": "x"}}}',
    b'{"users": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
    b'{"users": {"lab": {"can": ["read"], "folder": "", "token": "x", "quota": 1' + b"0" * 5000 + b"}}}",
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: ascii(damage[:90]))
def test_a_damaged_file_lets_nobody_in_but_the_owner(
    server: ftransfer.Server,
    known: Users,
    state: StateDir,
    damage: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clients are told in a sentence without a path of the server; the command names the file; the server stands."""
    token = known.add("lab")
    with log_in(server, token) as remote:
        assert remote.ping().user == "lab"
        state.write("users.json", damage)
        wait_until(lambda: server.connection_count == 0, "the end of the connection")
    for shown in (token, "x"):
        with log_in(server, shown) as remote, pytest.raises(errors.FtransferError) as caught:
            remote.ping()
        assert caught.value.exit_status == 5
        assert state.path not in f"{caught.value} {caught.value.hint}"
    ran = run_here("user", "list")
    assert (ran.status, ran.out) == (5, ""), ran
    assert "users.json" in ran.err
    assert ("the record of the user l" in ran.err) == (damage in RECORDS)
    assert not [record for record in caplog.records if record.exc_info]
    assert "\0" not in caplog.text
    serves_well(server)


RECORDS = [damage for damage in DAMAGED if damage.startswith(b'{"users": {"l') and b"0" * 99 not in damage]


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: ascii(damage[:90]))
def test_a_server_starts_with_a_damaged_file(root: Path, state: StateDir, damage: bytes) -> None:
    """And serves its owner."""
    state.write("users.json", damage)
    with nothing_leaks():
        with ftransfer.Server(root) as server:
            serves_well(server)
        server.close()


@pytest.mark.usefixtures("quick")
def test_a_record_that_is_damaged_shuts_out_one_user(server: ftransfer.Server, known: Users, state: StateDir) -> None:
    """The others go on; the command names it, and removes it."""
    good, bad = known.add("good"), known.add("bad")
    with log_in(server, good) as remote:
        remote.ping()
        records = state.read_json("users.json")
        records["users"]["bad"]["can"] = "everything"
        state.write_json("users.json", records)
        assert remote.ping().user == "good"
    with log_in(server, bad) as remote, pytest.raises(errors.LoginNeeded):
        remote.ping()
    ran = run_here("user", "list")
    assert ran.status == 5
    assert "the record of the user bad in " in ran.err
    assert "ftransfer user remove takes it away" in ran.err
    assert run_here("user", "remove", "bad").status == 0
    assert run_here("user", "list") == (0, "good  create, read\n", "")


@pytest.mark.usefixtures("quick")
def test_a_file_that_others_may_write_is_not_believed(server: ftransfer.Server, known: Users, state: StateDir) -> None:
    """Who could have added themselves is not let in."""
    token = known.add("lab")
    os.chmod(state.where("users.json"), 0o666)
    with log_in(server, token) as remote, pytest.raises(errors.FtransferError) as caught:
        remote.ping()
    assert caught.value.exit_status == 5
    ran = run_here("user", "list")
    assert ran.status == 5
    assert "others may write to it" in ran.err
    serves_well(server)

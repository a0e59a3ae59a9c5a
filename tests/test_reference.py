"""The pages reference.md and protocol.md against the code: what there is is there, and nothing else."""

import argparse
import json
import re
from pathlib import Path

import exchanges
import pytest
from pages import bare, page, section, tables
from xxhash import xxh3_128_hexdigest

from ftransfer import admission, channel, errors, link, paths, receiving, rights, serving, session, unpacking, wire
from ftransfer.cli import output
from ftransfer.cli.arguments import build
from ftransfer.host import Limits
from ftransfer.results import FileResult, TransferResult
from ftransfer.wire import rules

PROTOCOL = page("protocol.md")
REFERENCE = page("reference.md")


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command under its names."""
    (action,) = [a for a in build()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a parser that its help shows, and those of its own commands."""
    own = {word for a in parser._actions if a.help != argparse.SUPPRESS for word in a.option_strings}
    inner = [
        other for a in parser._actions if isinstance(a, argparse._SubParsersAction) for other in a.choices.values()
    ]
    return own.union(*map(options, inner))


COMMANDS = {name: parser for name, parser in commands().items() if parser.get_default("command") == name}


# reference.md


def test_every_command_has_a_section() -> None:
    """Each command, with its other name, is the title of a section under "Commands"; there is no other section."""
    aliases: dict[str, list[str]] = {}
    for name, parser in commands().items():
        aliases.setdefault(parser.get_default("command"), []).append(name)
    titles = re.findall(r"^### (.*)$", section(REFERENCE, "Commands"), re.MULTILINE)
    assert titles == [", ".join(names) for names in aliases.values()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_there(name: str) -> None:
    """The table of a command's section, with those of the options that many have, names what its parser takes."""
    parser = COMMANDS[name]
    title = ", ".join(other for other, one in commands().items() if one.get_default("command") == name)
    own = named(section(REFERENCE, title))
    shared = named(section(REFERENCE, "Options of every command"))
    client = named(section(REFERENCE, "Options of the commands that talk to a server"))
    transfer = named(section(REFERENCE, "Options of upload and download"))
    chosen = named(section(REFERENCE, "Options that choose from folders"))
    expected = own | shared
    if "--retry-for" in options(parser):
        expected |= client
    if "--no-resume" in options(parser):
        expected |= transfer
    if "--exclude" in options(parser):
        expected |= chosen
    assert expected == options(parser)


def named(text: str) -> set[str]:
    """Return the options that the first columns of a text's tables name."""
    return {word for rows in tables(text) for row in rows for word in re.findall(r"(?<![\w-])--?[\w-]+", bare(row[0]))}


def test_no_page_of_the_reference_names_an_option_that_does_not_exist() -> None:
    """Every `--word` of the page is an option of some command."""
    known = {word for parser in [build(), *commands().values()] for word in options(parser)}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", REFERENCE)) - known == set()


def test_the_choices_of_options_are_there() -> None:
    """Every value that an option may have is named in the page."""
    values = {str(v) for parser in COMMANDS.values() for a in parser._actions for v in a.choices or ()}
    assert {value for value in values if f"`{value}`" not in REFERENCE} == set()


def test_the_exit_statuses_are_those_of_the_errors() -> None:
    """Each status that an error has is in the table, beside the codes that have it."""
    rows = {int(row[0]): row for row in tables(section(REFERENCE, "Exit statuses"))[0] if row[0].isdigit()}
    for code, cls in errors.BY_CODE.items():
        assert f"`{code}`" in rows[cls.exit_status][2]
    listed = {code for row in rows.values() for code in re.findall(r"`([a-z-]+)`", row[2])}
    assert listed - {"bad-line"} == errors.BY_CODE.keys()


def test_the_limits_of_the_server_are_there() -> None:
    """Each limit with its default."""
    rows = {bare(row[0]): row[1] for row in tables(section(REFERENCE, "Limits of the server"))[0]}
    assert {name: float(rows[name]) for name in Limits._fields} == Limits()._asdict()


def test_the_fixed_limits_are_there() -> None:
    """What no option changes stands in a table of its own, with the numbers of the code."""
    rows = {row[0]: row[1] for row in tables(section(REFERENCE, "Fixed limits"))[0]}
    numbers = {name: [int(digits) for digits in re.findall(r"\d+", cell)] for name, cell in rows.items()}
    assert numbers == {
        "header of a message": [wire.MAX_HEADER],
        "lists and objects in each other": [rules.MAX_NESTING],
        "path": [paths.MAX_PATH, paths.MAX_DEPTH],
        "component of a path": [paths.MAX_COMPONENT],
        "block": [wire.MAX_BLOCK],
        "pack": [wire.MAX_PACK, wire.MAX_ROWS],
        "page": [wire.MAX_ROWS],
        "ranges that are wanted of one file": [wire.MAX_RANGES, wire.MAX_WANTED],
        "blocks unanswered": [wire.WINDOW],
        "packs unanswered": [unpacking.WINDOW],
        "transfers and requests open on a connection": [session.MAX_OPEN],
        "texts": [wire.MAX_TEXT],
        "answer to a token that is wrong": [int(admission.LONGEST_PENALTY)],
        "memory of a connection": [
            wire.MAX_HEADER >> 10,
            channel.SLICE >> 20,
            wire.MAX_PACK >> 20,
            channel.MOST_ABSORBED + serving.MOST_QUEUED_BYTES >> 20,
        ],
        "a peer that says it is busy, and gets no further": [int(channel.MOST_BUSY // 3600)],
    }


def test_the_variables_of_the_environment_are_there() -> None:
    """The table has each that the package reads, and no other."""
    rows = {bare(row[0]) for row in tables(section(REFERENCE, "Environment"))[0]}
    folder = Path(errors.__file__).parent
    found = {name for path in folder.rglob("*.py") for name in re.findall(r'"(FTRANSFER_\w+)"', path.read_text())}
    assert {name for name in rows if name.startswith("FTRANSFER_")} == found


def test_the_verbs_are_there() -> None:
    """What a user can be allowed to do is told in a table."""
    assert [bare(row[0]) for row in tables(section(REFERENCE, "Rights"))[0]] == list(rights.VERBS)


def test_the_fields_of_a_file_event_are_there() -> None:
    """The table has a row for each, and no other; that of the error names its fields."""
    rows = {name: row[1] for row in tables(section(REFERENCE, "JSON events"))[0] for name in bare(row[0]).split(", ")}
    assert rows.keys() == output._file_fields(FileResult("source", "path", "sent")).keys()
    assert set(re.findall(r"`(\w+)`", rows["error"])) == output.error_fields(errors.NotFound()).keys()


def test_the_fields_of_a_summary_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has those of the event after a transfer, and those of a dry run; no others."""
    shown = output.Output(as_json=True)
    shown.on_file(dry_run=True)
    shown.transfer(TransferResult("target", [], 0.0))
    event = json.loads(capsys.readouterr().out)
    rows = {name for row in tables(section(REFERENCE, "JSON events"))[1] for name in bare(row[0]).split(", ")}
    assert rows == event.keys() - {"v", "event"}


# protocol.md


@pytest.mark.parametrize("name", sorted(wire.BY_TYPE))
def test_every_message_is_specified(name: str) -> None:
    """The section of a message has a row for each field: what it may hold and its default; and no other row."""
    (rows,) = tables(section(PROTOCOL, name))
    found = {bare(row[0]): (row[1], row[2]) for row in rows}
    expected = {}
    for field, (rule, default) in wire.BY_TYPE[name].fields.items():
        value = list(default) if default == () else default
        shown = "required" if default is rules._REQUIRED else f"`{json.dumps(value)}`"
        expected[field] = (rule.words, shown)
    assert found == expected
    assert all(row[3] for row in rows)


def test_no_message_is_specified_that_does_not_exist() -> None:
    """The sections under "Messages" are the messages."""
    titles = re.findall(r"^### (.*)$", section(PROTOCOL, "Messages"), re.MULTILINE)
    assert sorted(titles) == sorted(wire.BY_TYPE)


def steps(rows: list[list[str]]) -> dict[tuple[str, str, str], str]:
    """Return a table of states as `session` has it."""
    return {(row[0], row[1], kind): row[3] for row in rows for kind in re.findall(r"`(\w+)`", row[2])}


def test_the_state_tables_are_those_of_the_code() -> None:
    """Connection, transfers and requests step as the page says."""
    (connection,) = tables(section(PROTOCOL, "Opening"))
    (transfers,) = tables(section(PROTOCOL, "Transfers"))
    (answers,) = tables(section(PROTOCOL, "Requests"))
    (trees,) = tables(section(PROTOCOL, "Trees"))
    assert steps(connection) == session.CONNECTION
    assert steps(transfers).keys().isdisjoint(steps(trees))
    assert steps(transfers) | steps(trees) == session.TRANSFER
    assert {bare(request): bare(answer) for request, answer in answers} == session.ANSWERS


def test_the_error_codes_are_those_of_the_code() -> None:
    """Each code with its exit status and whether it may pass."""
    (rows,) = tables(section(PROTOCOL, "Error codes"))
    found = {bare(row[0]): (int(row[1]), row[2]) for row in rows}
    assert found == {c: (e.exit_status, "yes" if e.retryable else "no") for c, e in errors.BY_CODE.items()}


@pytest.mark.parametrize(
    "number",
    [
        wire.MAX_HEADER,
        wire.MAX_BLOCK,
        wire.WINDOW,
        session.MAX_OPEN,
        wire.MAX_RANGES,
        wire.MAX_WANTED,
        wire.MAX_ROWS,
        wire.MAX_PACK,
        wire.MAX_FAILED,
        wire.MAX_TEXT,
    ],
)
def test_the_limits_are_those_of_the_code(number: int) -> None:
    """Every named limit stands in the table of limits."""
    (rows,) = tables(section(PROTOCOL, "Numbers and limits"))
    assert any(re.search(rf"\b{number}\b", row[1]) for row in rows)


@pytest.mark.parametrize("number", [paths.MAX_PATH, paths.MAX_COMPONENT, paths.MAX_DEPTH])
def test_the_limits_of_paths_are_those_of_the_code(number: int) -> None:
    """Each stands among the rules for paths."""
    assert re.search(rf"\b{number}\b", section(PROTOCOL, "Paths"))


def test_the_times_are_those_of_the_code() -> None:
    """Each time that the code names stands in the table of times."""
    times = {row[0]: row[1] for row in tables(section(PROTOCOL, "Time"))[0]}
    limits = Limits()
    found = {float(number) for cell in times.values() for number in re.findall(r"\d+", cell)}
    held = {limits.handshake_seconds, limits.idle_seconds, limits.grace_seconds, link.WELCOME_SECONDS}
    assert held | {link.Patience().timeout, float(channel.LEAST_RATE), receiving.SIGN_OF_LIFE} <= found


def exchange(name: str) -> list[exchanges.Frame]:
    """Return an exchange of the page."""
    found = exchanges.block_of(name).search(PROTOCOL)
    assert found
    return exchanges.read(found[1])


EXCHANGES = list(exchanges.PASSED_OVER)


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_exchanges_are_frames(name: str) -> None:
    """Every line of a dump belongs to a frame that the code reads, and that says what is shown beside it."""
    state = session.Session()
    if name != "upload":
        state.state = session.OPEN
    for frame in exchange(name):
        assert wire.parse_length(frame.raw[:4]) == len(frame.raw) - 4
        message = wire.parse(frame.raw[4:])
        assert message == wire.BY_TYPE[message.type](**json.loads(frame.header))
        assert frame.body_length == getattr(message, "body", 0)
        assert state.saw(message, frame.who)
    assert state.idle


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_dumps_are_written_as_they_are_read(name: str) -> None:
    """The text beside the bytes is that of the bytes."""
    shown = "\n".join(exchanges.render(exchange(name)))
    assert shown in PROTOCOL


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_hashes_of_the_exchanges_are_right(name: str) -> None:
    """Blocks and files have the hashes that stand in the dumps."""
    data = exchanges.NUMBERS if name == "resume" else exchanges.HELLO
    files = {"hello.txt": exchanges.HELLO, "notes/day.txt": exchanges.DAY}
    for frame in exchange(name):
        message = wire.parse(frame.raw[4:])
        if isinstance(message, wire.Block):
            body = data[message.offset : message.offset + message.body]
            assert body.startswith(frame.body)
            assert message.hash == xxh3_128_hexdigest(body)
        elif isinstance(message, wire.End | wire.Receipt):
            assert message.hash == xxh3_128_hexdigest(data)
        elif isinstance(message, wire.Pack):
            assert frame.body == b"".join(files[row[0]] for row in message.files)
            assert all(row[1:3] == [len(files[row[0]]), xxh3_128_hexdigest(files[row[0]])] for row in message.files)


def test_the_exchanges_are_still_real() -> None:
    """Recorded anew, client and server say the same, but for what is random."""
    for name, frames in exchanges.record().items():
        fresh = frames[exchanges.PASSED_OVER[name] :]
        for who in (session.CLIENT, session.SERVER):
            said = [fixed(f) for f in fresh if f.who == who]
            assert said == [fixed(f) for f in exchange(name) if f.who == who], (
                f"record {name} again: {exchanges.__doc__}"
            )


def fixed(frame: exchanges.Frame) -> dict[str, object]:
    """Return a header without what is random in it, or depends on the disk."""
    made: dict[str, object] = json.loads(frame.header)
    other = ("session", "transfer", "software", "free_bytes", "free_files", "clock_ns", "folds")
    return {key: value for key, value in made.items() if key not in other}

"""What a transfer would do, said and not done: `--dry-run`. Used by `treejobs`."""

from __future__ import annotations

from collections.abc import Callable

from ftransfer import paths, wire
from ftransfer.asking import answers
from ftransfer.channel import Channel
from ftransfer.errors import BadPath, FtransferError, ProtocolError
from ftransfer.link import Link
from ftransfer.planning import Plan
from ftransfer.questions import goes
from ftransfer.store.base import LINK, Entry
from ftransfer.store.trees import Reader
from ftransfer.tally import Tally
from ftransfer.weighing import LED_OUT, SEND, Choices, Look, is_wanted, settle, weigh

WOULD_SEND, WOULD_REPLACE, WOULD_DELETE = "would send", "would replace", "would delete"

Equal = Callable[[Entry], bool]


def rehearse(
    plan: Plan,
    look: Look,
    equal: Equal,
    choices: Choices,
    tally: Tally,
    clock_ns: int,
    *,
    reader: Reader | None = None,
    targets: Callable[[list[Entry]], dict[str, str]] | None = None,
) -> None:
    """Decide on each entry of a plan, and tell the tally instead of doing it.

    Arguments: `look` returns what the destination has of a page; `equal` hashes a file at both ends; `reader` of the
    source, where that is here, else `targets`, which returns what links say.
    """
    plan.begin()
    for page in plan.pages():
        wanted = [entry for entry in page if is_wanted(entry, choices, tally, reader)]
        links = [entry for entry in wanted if entry.kind == LINK] if targets is not None else []
        if targets is not None and links:
            wanted = _without_those_that_lead_out(wanted, targets(links), tally)
        for entry, found in zip(wanted, look(wanted), strict=True):
            rehearse_one(entry, found, equal, choices, tally, clock_ns)


def _without_those_that_lead_out(page: list[Entry], targets: dict[str, str], tally: Tally) -> list[Entry]:
    kept = []
    for entry in page:
        try:
            if entry.kind == LINK:
                paths.check_link(entry.path, targets.get(entry.path, ""))
        except BadPath:
            tally.note(LED_OUT)
        else:
            kept.append(entry)
    return kept


def rehearse_one(
    entry: Entry, found: Entry | None, equal: Equal, choices: Choices, tally: Tally, clock_ns: int
) -> None:
    """Decide on one entry, and tell the tally."""
    try:
        verdict = weigh(entry, found, choices, clock_ns)
        if verdict == "hash":
            assert found is not None
            verdict = settle(entry, found, choices, clock_ns, equal=equal(entry))
    except FtransferError as exc:
        if isinstance(exc, (ConnectionError, TimeoutError)):
            raise
        tally.fail(entry.path, exc)
        return
    if verdict == SEND:
        verdict = WOULD_SEND if found is None or choices.if_exists == "rename" else WOULD_REPLACE
    tally.settle(entry.path, "same" if verdict == "stamp" else verdict, entry.size)


def look_there(link: Link, where: str) -> Look:
    """Return what tells which entries of a page the server has below `where`."""

    def look(page: list[Entry]) -> list[Entry | None]:
        return [found for part in goes(page) for found in look_at(part)]

    def look_at(page: list[Entry]) -> list[Entry | None]:
        def ask(channel: Channel) -> list[Entry | None]:
            t = link.next_t()
            channel.send(wire.Stats(t=t, path=where, names=[entry.path for entry in page]))
            for answer in answers(channel, t, where):
                if isinstance(answer, wire.Found) and len(answer.rows) == len(page):
                    return [Entry(e.path, *row) if row else None for e, row in zip(page, answer.rows, strict=True)]
            raise ProtocolError("the server did not answer for each name")

        return link.run(ask, path=where)

    return look


def link_targets(link: Link, where: str, links: list[Entry]) -> dict[str, str]:
    """Return what symbolic links on the server say, by path; one that leads out of the folder is not told."""
    found: dict[str, str] = {}
    for part in goes(links):

        def ask(channel: Channel, part: list[Entry] = part) -> None:
            t = link.next_t()
            channel.send(wire.Fetch(t=t, path=where, names=[entry.path for entry in part]))
            for answer in answers(channel, t, where):
                if isinstance(answer, wire.Pack):
                    found.update((path, target) for path, target, _ in answer.links)

        link.run(ask, path=where)
    return found

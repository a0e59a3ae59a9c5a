"""Calls with folders among their sources: where each goes, and what became of all. Used by `client`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from ftransfer import net, paths, singly
from ftransfer.downloading import Download, local_target, make_folders
from ftransfer.errors import Cancelled, FtransferError, NotFound, UsageError, from_os
from ftransfer.link import Link
from ftransfer.mirroring import Extras, Remove, mirror, remove_here, remove_there
from ftransfer.planning import Plan, hold
from ftransfer.progress import Observer, Progress
from ftransfer.rehearsing import WOULD_SEND, Equal, link_targets, look_there, rehearse, rehearse_one
from ftransfer.results import ONLY_HERE, ONLY_THERE, EntryVerdict, FileResult, Totals, TransferResult, TreeVerifyResult
from ftransfer.several import finish, is_contents, outcome, resolve
from ftransfer.store import base
from ftransfer.store.base import FOLDER, Entry
from ftransfer.store.local import LocalStore
from ftransfer.tally import OnFile, Tally
from ftransfer.treedownloading import TreeDownload
from ftransfer.treeuploading import TreeUpload
from ftransfer.treeverifying import TreeComparison
from ftransfer.treewalks import local_entries, remote_entries, walk_for_deleting
from ftransfer.uploading import Upload
from ftransfer.weighing import EVERYTHING, Choices, TreeOptions


class Job:
    """One call of upload or download.

    Arguments: `path_of` returns the path on the server for one that the caller gave; `target` the place of a file that
    is uploaded there.
    """

    def __init__(
        self,
        link: Link,
        address: net.Address,
        *,
        path_of: Callable[[str], str],
        target: Callable[[str, str | None], str],
        choices: Choices,
        options: TreeOptions,
        on_file: OnFile | None,
        observer: Observer,
        durable: bool = True,
    ):
        self._link = link
        self._address = address
        self._path_of = path_of
        self._target = target
        self._choices = choices._replace(
            links=options.get("links", "copy"),
            modes=options.get("modes"),
            filter=options.get("filter") or EVERYTHING,
        )
        self._delete = options.get("delete", False)
        self._dry_run = options.get("dry_run", False)
        self._on_file = on_file
        self._observer = observer
        self._durable = durable
        self._started = time.monotonic()
        self._mirrors: list[Callable[[], None]] = []
        if self._delete and choices.if_exists == "rename":
            raise UsageError(
                "--delete would remove what --if-exists rename has just stored", hint="choose one of the two"
            )

    def _run(
        self,
        target: str,
        sources: Sequence[Any],
        places: Sequence[str],
        work: Callable[[int, Tally], FileResult | None],
    ) -> TransferResult:
        """Do the work for each source, and return what became of all of them."""
        files: list[FileResult] = []
        tallies: list[Tally] = []

        def so_far() -> TransferResult:
            return self._sum(target, files, tallies)

        for at, (source, place) in enumerate(zip(sources, places, strict=True)):
            name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "-"
            tally = Tally(name, on_file=self._on_file, observer=self._observer, source=name, target=place)
            tallies.append(tally)
            try:
                file = work(at, tally)
                if file is not None:
                    files.append(file)
                    if self._on_file is not None:
                        self._on_file(file)
            except FtransferError as exc:
                if len(sources) == 1 or isinstance(exc, (Cancelled, UsageError)):
                    exc.results = so_far()
                    raise
                tally.fail("", exc)
        if self._mirrors and so_far().failed:
            tallies[0].note("nothing was deleted, because something failed", 0)
        else:
            for work_at_end in self._mirrors:
                try:
                    work_at_end()
                except FtransferError as exc:
                    exc.results = so_far()
                    raise
        return finish(so_far())

    def _sum(self, target: str, files: list[FileResult], tallies: list[Tally]) -> TransferResult:
        totals = Totals()
        for tally in tallies:
            totals = totals.plus(tally.totals())
        failed = [file for tally in tallies for file in tally.failed]
        return TransferResult(target, files + failed, time.monotonic() - self._started, totals)

    def _check_apart(self, places: list[str], folders: list[bool]) -> None:
        """Refuse to remove what the source lacks where several sources go to one place: each lacks what others have."""
        if not self._delete:
            return
        if not any(folders):
            raise UsageError("--delete needs a folder as source", hint="leave it out for files")
        for at, place in enumerate(places):
            for other in places[:at] + places[at + 1 :]:
                if not place or other == place or other.startswith(place.rstrip("/") + "/"):
                    raise UsageError(
                        f"--delete would remove what another source has just put into {paths.printable(place)}",
                        hint="nothing was sent; use a command for each source",
                    )

    # Uploads.

    def upload(self, sources: Sequence[Any], dest: str) -> TransferResult:
        """Upload folders, and files between them. Raises what `Remote.upload` does."""
        several = len(sources) > 1
        base = self._path_of(dest)
        folders = [isinstance(source, (str, os.PathLike)) and os.path.isdir(source) for source in sources]
        places = []
        for source, is_folder in zip(sources, folders, strict=True):
            name = os.path.abspath(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else None
            if not is_folder:
                places.append(self._path_of(self._target(dest + "/" * several, name)))
            elif is_contents(os.fspath(source)):
                places.append(base)
            else:
                places.append(paths.join(base, os.path.basename(name or "")))
        resolve([place for place, source in zip(places, sources, strict=True) if place != base], paths.check)
        self._check_apart(places, folders)

        def work(at: int, tally: Tally) -> FileResult | None:
            if folders[at]:
                self._upload_folder(os.fspath(sources[at]), places[at], tally)
                return None
            choices = self._choices
            if self._dry_run:
                self._rehearse_upload(sources[at], places[at], tally)
                return None
            upload = Upload(self._link, sources[at], places[at], algorithm=choices.algorithm, observer=self._observer)
            upload.modes = choices.modes
            return outcome(
                lambda: singly.upload_one(
                    self._link, upload, compare=choices.compare, if_exists=choices.if_exists, resume=choices.resume
                ),
                upload.name,
                places[at],
                several,
            )

        return self._run(str(self._address.at(base if several else places[0])), sources, places, work)

    def _upload_folder(self, source: str, where: str, tally: Tally) -> None:
        choices = self._choices
        with closing(LocalStore(source)) as store:
            store.shown = source
            root = None if is_contents(source) else store.stat("")._replace(path=paths.ROOT, kind=FOLDER)
            plan = Plan(lambda told: local_entries(store, choices, told), check=self._link.check)
            with store.reader("", follow=choices.links == "follow") as reader:
                if self._dry_run:
                    look = look_there(self._link, where)
                    rehearse(plan, look, self._equal(where, source), choices, tally, 1, reader=reader)
                    plan.close()
                else:
                    TreeUpload(self._link, reader, where, plan, choices, tally, root=root).run()
            _tell_problems(plan, tally)
            if self._delete:
                self._mirrors.append(lambda: self._mirror_there(source, where, root, tally))

    def _mirror_there(self, source: str, where: str, root: Entry | None, tally: Tally) -> None:
        choices = self._choices
        with closing(LocalStore(source)) as store:
            here = walk_for_deleting(store, choices, tally)
            there = self._list(self._listing(), where, choices._replace(filter=EVERYTHING), tally.fail)
            self._mirror(here, there, remove_there(self._link, where), tally, root)

    def _mirror(
        self, source: Iterator[Entry], dest: Iterator[Entry], remove: Remove, tally: Tally, root: Entry | None
    ) -> None:
        """Remove what the source lacks."""
        choices = self._choices
        extras = Extras(source, dest, choices.filter, root)
        is_filtered = not choices.filter.is_empty
        try:
            mirror(extras, remove, tally, choices.mode, dry_run=self._dry_run, is_filtered=is_filtered)
        except NotFound:
            if not self._dry_run:
                raise  # else there is no destination yet
        finally:
            for walk in (source, dest):
                if isinstance(walk, Generator):
                    walk.close()  # it holds folders open

    def _equal(self, where: str, local: str) -> Equal:
        """Return what tells whether a file is the same at both ends, by hash."""

        def equal(entry: Entry) -> bool:
            both = singly.verify_one(
                self._link,
                os.path.join(local, entry.path) if entry.path else local,
                paths.join(where, entry.path) if entry.path else where,
                self._choices.algorithm,
                self._observer,
            )
            return both.same

        return equal

    def _rehearse_upload(self, source: Any, where: str, tally: Tally) -> None:
        """Say what would become of a single file; a stream is always sent."""
        if not isinstance(source, (str, os.PathLike)):
            tally.settle("", WOULD_SEND)
            return
        try:
            here = base.entry("", os.stat(source))
        except OSError as exc:
            raise from_os(exc, os.fspath(source)) from exc
        equal = self._equal(where, os.fspath(source))
        rehearse_one(here, _stat_there(self._link, where), equal, self._choices, tally, 1)

    def _rehearse_download(self, there: Entry, place: str, tally: Tally) -> None:
        here = base.entry("", os.lstat(place)) if os.path.lexists(place) else None
        equal = self._equal(there.path, place)
        rehearse_one(there._replace(path=""), here, equal, self._choices, tally, 1)

    # Downloads.

    def download(self, sources: Sequence[str], dest: str) -> TransferResult:
        """Download folders, and files between them. Raises what `Remote.download` does."""
        several = len(sources) > 1
        remote = [self._path_of(source) for source in sources]
        entries = [_stat_there(self._link, path) for path in remote]
        places = []
        for source, path, entry in zip(sources, remote, entries, strict=True):
            if entry is None or entry.kind != FOLDER:
                places.append(local_target(dest, path, several))
            elif is_contents(source) or not path:
                places.append(dest)
            else:
                places.append(os.path.join(dest, path.rpartition("/")[2]))
        resolve([place for place in places if place != dest], lambda place: place)
        self._check_apart(places, [found is not None and found.kind == FOLDER for found in entries])

        def work(at: int, tally: Tally) -> FileResult | None:
            entry = entries[at]
            if entry is None:
                raise NotFound("no such file or folder", path=remote[at])
            if entry.kind == FOLDER:
                self._download_folder(remote[at], entry, dest, places[at], tally)
                return None
            choices = self._choices
            if self._dry_run:
                self._rehearse_download(entry, places[at], tally)
                return None
            download = Download(
                self._link,
                remote[at],
                places[at],
                algorithm=choices.algorithm,
                durable=self._durable,
                observer=self._observer,
            )
            download.modes = choices.modes
            return outcome(
                lambda: singly.download_one(
                    self._link, download, compare=choices.compare, if_exists=choices.if_exists, resume=choices.resume
                ),
                remote[at],
                places[at],
                several,
            )

        return self._run(dest if several else places[0], remote, places, work)

    def _download_folder(self, where: str, entry: Entry, dest: str, place: str, tally: Tally) -> None:
        choices = self._choices
        listing = self._listing()
        stop = None if listing is self._link else listing.stop
        plan = Plan(lambda told: self._list(listing, where, choices, told), check=self._link.check, stop=stop)
        if self._dry_run and not os.path.isdir(place or "."):
            targets = lambda links: link_targets(self._link, where, links)  # noqa: E731
            rehearse(plan, lambda page: [None] * len(page), lambda _: False, choices, tally, 1, targets=targets)
            plan.close()
            return
        if not self._dry_run:
            make_folders(dest or ".", durable=self._durable)
        below = "" if place == dest else where.rpartition("/")[2]
        root = entry._replace(path=paths.ROOT) if below else None
        with closing(LocalStore(dest or ".", durable=self._durable, receipts=False)) as store:
            store.shown = dest
            if self._dry_run:
                with store.reader(below) as reader:
                    look = lambda page: [reader.stat(entry.path) for entry in page]  # noqa: E731
                    targets = lambda links: link_targets(self._link, where, links)  # noqa: E731
                    equal = self._equal(where, place)
                    rehearse(plan, look, equal, choices, tally, store.clock_step(), targets=targets)
                plan.close()
            else:
                store.sweep()
                TreeDownload(
                    self._link, where, store=store, below=below, plan=plan, choices=choices, tally=tally, root=root
                ).run()
            _tell_problems(plan, tally)
            if self._delete:
                self._mirrors.append(lambda: self._mirror_here(where, dest, below, root, tally))

    def _mirror_here(self, where: str, dest: str, below: str, root: Entry | None, tally: Tally) -> None:
        with closing(LocalStore(dest or ".", durable=self._durable, receipts=False)) as store:
            there = self._list(self._listing(), where, self._choices._replace(filter=EVERYTHING), tally.fail)
            here = store.entries(below, recursive=True, on_error=tally.fail)
            self._mirror(there, here, remove_here(store, below), tally, root)

    # What the server has.

    def _listing(self) -> Link:
        """Return the link for a list: one of its own, so that it can be read bit by bit, if there can be one."""
        return self._link if self._link.is_single else self._link.another()

    def _list(self, listing: Link, where: str, choices: Choices, on_error: base.OnError) -> Iterator[Entry]:
        """Return what a folder on the server holds; all is listed before anything else where that has to wait."""
        entries = remote_entries(listing, where, choices, on_error)
        if listing is not self._link:
            return entries
        tell = lambda count: self._observer(  # noqa: E731
            Progress("listing", where, 0, None, total_files=count, is_tree=True)
        )
        return hold(entries, tell)

    # Comparisons.

    def verify(self, local: str, where: str, tell: Callable[[EntryVerdict], None]) -> TreeVerifyResult:
        """Compare a local folder with one on the server, entry by entry."""
        choices = self._choices
        counts: Counter[str] = Counter()

        def told(verdict: EntryVerdict) -> None:
            counts[verdict.result] += 1
            tell(verdict)

        def failed(path: str, exc: FtransferError) -> None:
            told(EntryVerdict(path, FOLDER, "failed", error=exc))

        with closing(LocalStore(local)) as store, store.reader("", follow=choices.links == "follow") as reader:
            here = local_entries(store, choices, failed)
            there = self._list(self._listing(), where, choices, failed)
            TreeComparison(
                self._link,
                reader,
                where,
                algorithm=choices.algorithm,
                links=choices.links,
                tell=told,
                observer=self._observer,
            ).run(here, there)
        numbers = [counts[what] for what in ("same", "different", ONLY_HERE, ONLY_THERE, "failed")]
        return TreeVerifyResult(local, where, *numbers)


def _tell_problems(plan: Plan, tally: Tally) -> None:
    for path, exc in plan.problems:
        tally.fail(path, exc, at_source=True)
    if plan.more_problems:
        tally.note("more names and folders that could not be used", plan.more_problems)


def _stat_there(link: Link, where: str) -> Entry | None:
    try:
        return singly.stat(link, where)
    except NotFound:
        return None

"""From a selection to a suite on the disk: over all cores, whole or not at all, the same bytes each time."""

import hashlib
import json
import os
import re
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context, parent_process, resource_tracker
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from eval.suites.config import Heard, SuiteConfig
from eval.suites.entries import Entry, Selection
from eval.suites.media import Unusable, read_media, read_reference
from eval.suites.suite import (
    ITEMS,
    MISSING,
    OTHERS,
    POOL,
    SOUNDS,
    SOUNDS_WHOLE,
    SUITE,
    Item,
    Stored,
    Suite,
    item_line,
    list_bytes,
    record_bytes,
    suite_digest,
    table_bytes,
)
from sonify.errors import InputError
from sonify.io.places import is_utf8
from sonify.io.write import naming_place, replacing
from sonify.rows import Reason

# An item is named so on every system; ids of YouTube may begin with a dash.
ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
# What a suite's folder holds, and nothing else: more is somebody's, and is not replaced.
FILES = (SUITE, ITEMS, SOUNDS, SOUNDS_WHOLE, POOL, MISSING)
FOLDERS = ("sounds", "windows", "images", OTHERS)
# Tasks that wait for each worker: what is tried in vain behind the last wanted picture stays little.
AHEAD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is made of one entry, in which folder; of `only_picture` nothing but its reference."""

    entry: Entry
    folder: Path
    seconds: float | None
    heard: Heard
    side: int
    only_picture: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """An entry that could not be used."""

    id: str
    reason: Reason
    detail: str


Done = Item | Stored | Miss


def write_suite(config: SuiteConfig, selection: Selection, out: Path, workers: int = 1) -> Suite:
    """Prepare a selection as the folder `out`; a suite that is there is replaced.

    Args:
        config: what it is made by, recorded in it.
        selection: from `select`, or in an order of its own.
        out: the folder; nothing is there half-written.
        workers: processes; with 1 all is done in this one.

    Raises:
        InputError: `out` holds something else, or more than a suite; or nothing that the list names can be used.
        DiskFull: no room is left.
    """
    out = out.absolute()
    _check_paths(out, config)
    _check_out(out, config.name)
    _check_ids(selection.wanted + selection.rest + selection.others)
    with replacing(out) as folder:
        for name in FOLDERS:
            (folder / name).mkdir()
        with _workers(workers) as run:
            items, tried = _make_items(config, selection, folder, run)
            others = _make_others(config, selection, folder, run, items)
        suite = _suite_of(config, selection, out, items, tried, others)
        files = {
            ITEMS: b"".join(map(item_line, suite.items)),
            SOUNDS: list_bytes(suite, whole=False),
            SOUNDS_WHOLE: list_bytes(suite, whole=True),
            POOL: _pool_bytes(suite.items),
            MISSING: table_bytes(("id", "reason", "detail"), ((m.id, m.reason.value, m.detail) for m in tried)),
            SUITE: record_bytes(suite),
        }
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return suite


def _check_paths(out: Path, config: SuiteConfig) -> None:
    """A suite's lists name where it and its corpus lie, and they are UTF-8."""
    if not is_utf8(str(out)):
        raise InputError(f"{str(out)!r}: expected a path in UTF-8; choose another place")
    if not is_utf8(json.dumps(config.model_dump(mode="json"), ensure_ascii=False)):
        raise InputError(f"{config.name}: a path to its corpus is not UTF-8; give the folder another name")


def _check_out(out: Path, name: str) -> None:
    with naming_place(out):
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: expected a folder for the suite, found a file")
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not names:
        return
    if (there := _name_of(out)) is None:
        raise InputError(f"{out}: holds something else than a suite; choose another place")
    if foreign := [each for each in names if each not in (*FILES, *FOLDERS)]:
        more = f" and {len(foreign) - 1:,} more" if foreign[1:] else ""
        raise InputError(
            f"{out}: holds {foreign[0]!r}{more} beside its suite, which would be lost; move it, or choose another place"
        )
    if there != name:
        raise InputError(f"{out}: holds the suite {there}, and this is {name}; choose another place, or remove it")


def _name_of(out: Path) -> str | None:
    """What the suite in a place is called, of whatever version and however damaged besides; None where there is none.

    Others call a file `suite.json` as well: what every version has must be in it.
    """
    try:
        match json.loads((out / SUITE).read_bytes()):
            case {"version": int(), "digest": str(), "settings": dict(), "name": str(name)}:
                return name
            case _:
                return None
    except (OSError, ValueError, RecursionError):
        return None


def _check_ids(entries: Sequence[Entry]) -> None:
    if not entries:
        raise InputError("the suite's list names nothing; see `classes`, `confirmed` and `split` of its configuration")
    if wrong := [entry.id for entry in entries if not ID.fullmatch(entry.id)]:
        raise InputError(
            f"the suite's list has the id {wrong[0]!r}: expected letters, digits, '-', '_' and '.'; files are named so"
        )


def _pool_bytes(items: Iterable[Item]) -> bytes:
    return table_bytes(("id", "sha256"), ((item.id, item.sound.sha256) for item in items))


def _suite_of(
    config: SuiteConfig,
    selection: Selection,
    out: Path,
    items: Sequence[Item],
    tried: Sequence[Miss],
    others: Sequence[Stored],
) -> Suite:
    wanted = {entry.id for entry in selection.wanted}
    missing = [miss for miss in tried if miss.id in wanted]
    suite = Suite(
        folder=out,
        name=config.name,
        digest="",
        wanted=len(wanted),
        missing=dict(sorted(Counter(miss.reason.value for miss in missing).items())),
        replaced=len(items) - (len(wanted) - len(missing)),
        settings=config.model_dump(mode="json"),
        items=tuple(items),
        others=tuple(others),
        pool=tuple(item.id for item in items),
        pool_sha256=hashlib.sha256(_pool_bytes(items)).hexdigest(),
    )
    return replace(suite, digest=suite_digest(suite))


# --- what is made


def _make_items(
    config: SuiteConfig, selection: Selection, folder: Path, run: "Run"
) -> tuple[list[Item], tuple[Miss, ...]]:
    """The items in the selection's order, and all entries that were tried in vain.

    Where one is missing and may be replaced, the next of its class takes its place, however many workers there are.
    """
    places: list[Entry | None] = list(selection.wanted)
    rest: dict[str, deque[Entry]] = defaultdict(deque)
    for entry in selection.rest:
        rest[entry.label].append(entry)
    found: dict[int, Item] = {}
    tried: list[Miss] = []
    open_places = list(range(len(places)))
    while open_places:
        entries = [entry for place in open_places if (entry := places[place]) is not None]
        made = run([_task(config, entry, folder) for entry in entries], "items")
        for place, done in zip(open_places, made, strict=True):
            if isinstance(done, Item):
                found[place] = done
            else:
                assert isinstance(done, Miss)
                tried.append(done)
        if not found and (not config.replace_missing or not selection.rest):
            raise _nothing_found(config, selection, tried)
        open_places = [place for place in open_places if place not in found] if config.replace_missing else []
        for place in open_places:
            queue = rest[selection.wanted[place].label]
            places[place] = queue.popleft() if queue else None
        open_places = [place for place in open_places if places[place] is not None]
    if not found:
        raise _nothing_found(config, selection, tried)
    return [found[place] for place in sorted(found)], tuple(tried)


def _nothing_found(config: SuiteConfig, selection: Selection, tried: Sequence[Miss]) -> InputError:
    first = tried[0]
    return InputError(
        f"{config.name}: none of {len(selection.wanted):,} entries can be used; the first is {first.id}"
        f" ({first.reason}: {first.detail}): is the configuration's path to the media right?"
    )


def _make_others(
    config: SuiteConfig, selection: Selection, folder: Path, run: "Run", items: Sequence[Item]
) -> list[Stored]:
    """Further real pictures of other recordings than the items', by the shares of the wanted classes, each once."""
    wanted = len(items) if config.others is None else config.others
    taken = {item.id for item in items}
    recordings = {item.recording for item in items}
    pictures = {entry.image for entry in selection.wanted if entry.id in taken and entry.image_sec is None}
    apart = [entry for entry in selection.rest + selection.others if entry.recording not in recordings]
    tasks: list[Task] = []
    for entry in _in_turn(apart, Counter(entry.label for entry in selection.wanted)):
        if entry.image is None or entry.image in pictures:
            continue
        if entry.image_sec is None:
            pictures.add(entry.image)
        tasks.append(replace(_task(config, entry, folder), only_picture=True))
    waiting = iter(tasks)
    others: list[Stored] = []
    while batch := list(islice(waiting, wanted - len(others))):
        others += [done for done in run(batch, "others") if isinstance(done, Stored)]
    return others


def _in_turn(entries: Iterable[Entry], shares: Mapping[str, int]) -> list[Entry]:
    """The first of each class, then the second of each, and so on; of one with twice the share two in each turn."""
    counted: Counter[str] = Counter()
    ranked: list[tuple[float, Entry]] = []
    for entry in entries:
        ranked.append((counted[entry.label] / max(shares.get(entry.label, 0), 1), entry))
        counted[entry.label] += 1
    return [entry for _, entry in sorted(ranked, key=lambda each: each[0])]


def _task(config: SuiteConfig, entry: Entry, folder: Path) -> Task:
    return Task(entry=entry, folder=folder, seconds=config.seconds, heard=config.heard, side=config.image.side)


def do_task(task: Task) -> Done:
    """Read what an entry names and write its files; what cannot be used is a `Miss` and leaves none."""
    entry = task.entry
    try:
        if task.only_picture:
            return _store(task.folder, f"{OTHERS}/{entry.id}.png", read_reference(entry, task.seconds, task.side))
        media = read_media(entry, task.seconds, task.heard, task.side)
    except Unusable as error:
        return Miss(id=entry.id, reason=error.reason, detail=error.detail)
    names = [f"images/{entry.id}{f'+{n}' if n > 1 else ''}.png" for n in range(1, len(media.references) + 1)]
    window = media.window
    return Item(
        id=entry.id,
        recording=entry.recording,
        ids=(*entry.ids, f"sha256:{media.published_sha256}"),
        labels=entry.labels,
        captions=entry.captions,
        split=entry.split,
        group=entry.group,
        sound=_store(task.folder, f"sounds/{entry.id}.flac", media.sound),
        seconds=media.seconds,
        sample_rate_hz=media.sample_rate_hz,
        window=None if window is None else _store(task.folder, f"windows/{entry.id}.flac", window),
        window_start_sec=media.window_start_sec,
        references=tuple(_store(task.folder, name, data) for name, data in zip(names, media.references, strict=True)),
    )


def _store(folder: Path, file: str, data: bytes) -> Stored:
    (folder / file).write_bytes(data)
    return Stored(file=file, sha256=hashlib.sha256(data).hexdigest())


# --- who does it

Run = Callable[[Sequence[Task], str], list[Done]]


@contextmanager
def _workers(count: int) -> Iterator[Run]:
    """Do tasks in this process, or in several that are started once; results are in the order of the tasks."""
    if count <= 1:
        yield lambda tasks, what: list(_shown(map(do_task, tasks), len(tasks), what))
        return
    pool = _Pool(count)
    try:
        yield lambda tasks, what: list(_shown(pool.run(tasks), len(tasks), what))
    finally:
        pool.close()


def _shown(results: Iterator[Done], total: int, what: str) -> Iterator[Done]:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(results, total=total, description=what)


class _Pool:
    """Processes that do tasks. One that dies, as by a file that crashes a decoder, takes no other task with it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._executor = _start(count)

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Results in the tasks' order, few of which are under way at a time."""
        waiting = iter(tasks)
        under_way: deque[tuple[Task, Future[Done]]] = deque()
        while True:
            for task in islice(waiting, AHEAD * self._count - len(under_way)):
                under_way.append((task, _submit(self._executor, task)))
            if not under_way:
                return
            task, future = under_way.popleft()
            try:
                yield future.result()
            except BrokenProcessPool:
                again = [task, *(each for each, _ in under_way)]
                under_way.clear()
                self.close()
                yield from _do_apart(again)
                self._executor = _start(self._count)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


def _start(count: int) -> ProcessPoolExecutor:
    # a fork would share the threads of the libraries that are loaded here
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin_worker)


def _submit(executor: ProcessPoolExecutor, task: Task) -> Future[Done]:
    """Give a task to a worker; one that is started for it leaves Ctrl+C to the command, while it imports as well."""
    resource_tracker.ensure_running()  # or its own start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(do_task, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """End with the command where it is killed: nobody else would write into its folder."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _do_apart(tasks: Iterable[Task]) -> Iterator[Done]:
    """Tasks of which one may be what killed a worker: one at a time, in a process that only that one can take along."""
    executor = _start(1)
    try:
        for task in tasks:
            try:
                yield _submit(executor, task).result()
            except BrokenProcessPool:
                yield Miss(id=task.entry.id, reason=Reason.CRASHED, detail="a reader of its files died of them")
                executor.shutdown(wait=True)
                executor = _start(1)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)

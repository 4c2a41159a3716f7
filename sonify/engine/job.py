"""What the engine knows of a stage, and how one unit of it becomes a commit."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO, Protocol

from sonify import layout
from sonify.errors import WorkError
from sonify.io.commits import Commit, Count, Done, digest_of, find_commit, write_commit
from sonify.io.tables import TableWriter, storable
from sonify.io.write import Transaction, naming_full_disk
from sonify.rows import Reason, Rejected
from sonify.stores import Place

MAX_DETAIL_CHARS = 300  # details quote untrusted input
Row = Any  # frozen, of the stage's own types; a row that is read has a `key`


class Sink(Protocol):
    """Takes a unit's rows in order and writes its files."""

    def write(self, row: Row) -> None:
        """Add one row."""
        ...

    def close(self) -> Count | None:
        """Finish the files; a pool also counts its clips."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A loaded stage.

    `process` gives one row or one `Rejected` for each row in, in order, and nothing else is asked of it. Each row
    counts once for each of `scenes`. A stage that waits for others (a decoder's threads, a server) gives `begin`, which
    starts a window's work in the background and returns what `process` then gets: one window is always begun ahead.
    """

    read: Callable[[str], Iterator[Row | Rejected]]
    process: Callable[[Any], Sequence[Row | Rejected]]
    open_sink: Callable[[str, Transaction, "RejectTable"], Sink]
    batch_rows: int
    scenes: tuple[str, ...] = ("",)
    begin: Callable[[Sequence[Row]], Any] | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One stage of one run.

    `listing` names the frozen listing that its units follow. `upstream` are stages whose commit of the same unit it
    reads, `upstream_whole` those of which it reads every unit. `part` tells a stage's extractors apart. `check` raises
    `InputError` where the stage must not start; `rows_expected` says how many rows the upstream commits of a unit hold.
    `acted` is asked before the stage works for what its rules come to, a dataclass that run.json keeps. `as_before` are
    overrides under which keys that came later than the run do what the run did without them.
    """

    name: str
    version: int
    listing: str
    settings: Mapping[str, Any]
    load: Callable[[], Job]
    part: str = ""
    upstream: tuple[str, ...] = ()
    upstream_whole: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    acted: Callable[[], Any] | None = None
    rows_expected: Callable[[Sequence[Done]], int | None] = lambda _upstream: None
    num_cpus: float = 1
    num_gpus: float = 0
    gpu_optional: bool = False  # runs on CPUs where the cluster has no GPU
    models: tuple[str, ...] = ()  # the names under which run.json records them
    fetch: Callable[[], Mapping[str, str]] = dict  # gets them before any work: names and what exactly they are
    as_before: tuple[str, ...] = ()
    # Of some units, those whose answers are kept: they may need no model.
    units_answered: Callable[[Place, Iterable[str]], Iterable[str]] = lambda _run_dir, _units: ()

    @property
    def key(self) -> str:
        """The stage's name in messages and in `run.json`."""
        return f"{self.name}/{self.part}" if self.part else self.name

    @property
    def digest(self) -> str:
        """What the stage's commits stand under."""
        return digest_of({"stage": self.key, "version": self.version, "settings": dict(self.settings)})[:16]


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker of a stage takes."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One unit of one stage to be done. `part` tells a stage's extractors apart; it is empty elsewhere.

    `rows_expected` is what the commits upstream say that there is to read; None where only reading tells.
    """

    stage: str
    part: str
    unit: str
    digest: str
    inputs: Mapping[str, str]
    rows_expected: int | None

    @property
    def rejects_path(self) -> str:
        """Where the unit's rejects go."""
        return layout.rejects(self.stage, self.part, self.unit)


class RejectTable:
    """The rejects of one unit; the file exists only where there is one."""

    def __init__(self, transaction: Transaction, task: Task) -> None:
        self._transaction = transaction
        self._task = task
        self._writer: TableWriter | None = None

    def write(self, rejected: Rejected) -> None:
        """Add one rejected row."""
        if self._writer is None:
            self._writer = TableWriter(self._transaction.create(self._task.rejects_path), StoredReject)
        self._writer.write(
            StoredReject(
                key=rejected.key,
                scene=rejected.scene,
                stage=self._task.stage,
                reason=rejected.reason,
                detail=storable(rejected.detail[:MAX_DETAIL_CHARS]),
            )
        )

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReject:
    """A line of `rejects/`."""

    key: str
    scene: str
    stage: str
    reason: Reason
    detail: str


def run_task(run_dir: Place, job: Job, task: Task, crashed: Mapping[int, str]) -> Commit:
    """Do one unit and commit it.

    Args:
        run_dir: the run.
        job: the loaded stage.
        task: the unit.
        crashed: positions of rows that kill or break their worker, with how; they are rejected untouched.
    """
    with naming_full_disk(run_dir), Transaction(run_dir) as transaction:
        rejects = RejectTable(transaction, task)
        sink = job.open_sink(task.unit, transaction, rejects)
        count = _drain(job, _numbered(job, task.unit), crashed, sink, rejects)
        clips = sink.close()
        rejects.close()
        if task.rows_expected is not None and count.rows_in != task.rows_expected:
            raise WorkError(
                f"{task.stage} {task.unit}: {task.rows_expected} rows were committed before, {count.rows_in} read"
            )
        assert count.balances(), (task, count)
        assert clips is None or clips.balances(), (task, clips)
        if (standing := find_commit(run_dir, task.stage, task.digest, task.unit)) is not None:
            return standing  # another worker was faster, who was thought dead: its files stay
        commit = Commit(
            stage=task.stage,
            unit=task.unit,
            digest=task.digest,
            inputs=task.inputs,
            rows=count,
            clips=clips,
            files=transaction.publish(),
        )
    write_commit(run_dir, commit)
    return commit


def probe_task(job: Job, unit: str, start: int, stop: int, crashed: Mapping[int, str]) -> None:
    """Process the rows from `start` to `stop` and keep nothing: does this part of the unit survive?"""
    for _ in _results(job, islice(_numbered(job, unit), start, stop), crashed):
        pass


def count_rows_in(job: Job, unit: str) -> int:
    """How many rows a unit reads, rejected ones included."""
    return sum(1 for _ in job.read(unit))


def _numbered(job: Job, unit: str) -> Iterator[tuple[int, Row | Rejected]]:
    return enumerate(job.read(unit))


def _drain(
    job: Job,
    rows: Iterator[tuple[int, Row | Rejected]],
    crashed: Mapping[int, str],
    sink: Sink,
    rejects: RejectTable,
) -> Count:
    rows_in = rows_out = 0
    reasons: Counter[str] = Counter()
    for result in _results(job, rows, crashed):
        rows_in += len(job.scenes)
        if isinstance(result, Rejected):
            for rejected in spread_over_scenes(result, job.scenes):
                rejects.write(rejected)
                reasons[rejected.reason] += 1
        else:
            sink.write(result)
            rows_out += len(job.scenes)
    return Count(rows_in=rows_in, rows_out=rows_out, rejected=dict(sorted(reasons.items())))


@dataclass(frozen=True, slots=True)
class _Window:
    """Rows in work: their numbers, those that are settled already, and what `process` is to get for the others."""

    numbers: list[int]
    settled: Mapping[int, Rejected]
    begun: Any


def _results(
    job: Job, rows: Iterator[tuple[int, Row | Rejected]], crashed: Mapping[int, str]
) -> Iterator[Row | Rejected]:
    """Results in the order of the rows."""
    ahead: deque[_Window] = deque()
    while window := list(islice(rows, job.batch_rows)):
        ahead.append(_begin_window(job, window, crashed))
        if job.begin is None or len(ahead) > 1:
            yield from _process_window(job, ahead.popleft())
    while ahead:
        yield from _process_window(job, ahead.popleft())


def _begin_window(job: Job, window: list[tuple[int, Row | Rejected]], crashed: Mapping[int, str]) -> _Window:
    """Rows that arrive rejected, or are known to crash, are not processed."""
    settled: dict[int, Rejected] = {}
    for n, row in window:
        if isinstance(row, Rejected):
            settled[n] = row
        elif n in crashed:
            settled[n] = Rejected(key=row.key, reason=Reason.CRASHED, detail=crashed[n])
    rows = [row for n, row in window if n not in settled]
    begun = job.begin(rows) if rows and job.begin else rows
    return _Window(numbers=[n for n, _ in window], settled=settled, begun=begun)


def _process_window(job: Job, window: _Window) -> list[Row | Rejected]:
    num_rows = len(window.numbers) - len(window.settled)
    processed = job.process(window.begun) if num_rows else []
    assert len(processed) == num_rows, (len(processed), num_rows)
    results = iter(processed)
    return [window.settled[n] if n in window.settled else next(results) for n in window.numbers]


def spread_over_scenes(rejected: Rejected, scenes: tuple[str, ...]) -> tuple[Rejected, ...]:
    """An image leaves with all its scenes: where one scene is to blame, the others are `missing_scene`."""
    if not rejected.scene:
        return tuple(replace(rejected, scene=scene) for scene in scenes)
    missing = Rejected(key=rejected.key, reason=Reason.MISSING_SCENE, detail=f"{rejected.scene}: {rejected.reason}")
    return tuple(rejected if scene == rejected.scene else replace(missing, scene=scene) for scene in scenes)


class TableSink:
    """Writes rows as they are."""

    def __init__(self, file: BinaryIO, row_type: type) -> None:
        self._table = TableWriter(file, row_type)

    def write(self, row: Any) -> None:
        """Add one row."""
        self._table.write(row)

    def close(self) -> None:
        """Finish the table."""
        self._table.close()

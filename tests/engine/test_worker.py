"""How a worker's task ends where something other than its rows is to blame."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sonify.engine.job import Job, Stage, TableSink, Task
from sonify.engine.worker import Worker
from sonify.errors import ConcernsAll, InputError, TransientError, WorkError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    key: str


class Breaking:
    """Raises these errors, call after call, the last for ever."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def __call__(self, _rows: Sequence[Row]) -> Sequence[Row]:
        raise self._errors.pop(0) if len(self._errors) > 1 else self._errors[0]


def read(_unit: str) -> Iterator[Row]:
    return (Row(key=f"k{n}") for n in range(4))


def worker_of(run_dir: Path, process: Breaking) -> Worker:
    job = Job(
        read=read,
        process=process,
        open_sink=lambda unit, transaction, _rejects: TableSink(transaction.create(f"x/{unit}"), Row),
        batch_rows=2,
    )
    return Worker(run_dir, [Stage(name="x", version=1, listing="x", settings={}, load=lambda: job)])


TASK = Task(stage="x", part="", unit="u", digest="d", inputs={}, rows_expected=None)


@pytest.mark.parametrize(
    "error", [TransientError("the server is down"), WorkError("gone"), InputError("wrong"), ConcernsAll("refused")]
)
@pytest.mark.parametrize("first", [[], [RuntimeError("a row breaks")]], ids=["at once", "in the search for a row"])
def test_what_is_no_rows_fault_leaves_the_unit_undone_and_rejects_nothing(tmp_path, error, first):
    outcome = worker_of(tmp_path, Breaking(*first, error)).run("x", TASK, {})
    assert outcome.commit is None
    assert outcome.error == str(error)
    assert outcome.concerns_all == isinstance(error, ConcernsAll)
    assert not list(tmp_path.rglob("rejects/*"))


def test_a_units_seconds_are_its_own_and_loading_is_told_once(tmp_path):
    def load() -> Job:
        time.sleep(0.3)
        return Job(read=read, process=work, open_sink=open_sink, batch_rows=4)

    def work(rows: Sequence[Row]) -> Sequence[Row]:
        time.sleep(0.1)
        return rows

    def open_sink(unit, transaction, _rejects):
        return TableSink(transaction.create(f"x/{unit}"), Row)

    worker = Worker(tmp_path, [Stage(name="x", version=1, listing="x", settings={}, load=load)])
    first, second = (worker.run("x", replace(TASK, unit=unit), {}) for unit in "uv")
    assert first.load_seconds >= 0.3
    assert second.load_seconds == 0
    assert first.commit is not None
    assert all(0.1 <= outcome.seconds < 0.1 + first.load_seconds for outcome in (first, second))
    worker.close()
    assert worker.run("x", replace(TASK, unit="w"), {}).load_seconds >= 0.3

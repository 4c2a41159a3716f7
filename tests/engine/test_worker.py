"""How a worker's task ends where something other than its rows is to blame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

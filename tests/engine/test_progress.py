import logging
import subprocess
import sys
import time

import pytest

from sonify.engine import progress
from sonify.engine.progress import StageProgress
from sonify.io.commits import Count
from tests.builders import small_input

ROWS = Count(rows_in=10, rows_out=9, rejected={"unreadable": 1})


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def finish(state: StageProgress, clock: list[float], waits: list[float]) -> None:
    for seconds in waits:
        clock[0] += seconds
        state.add(ROWS)


def test_time_left_after_a_resume_counts_this_calls_units_and_not_the_start(clock):
    """900 of 1,000 are done; models load for 60 seconds, and a unit takes one: 80 are left, not 500 seconds."""
    state = StageProgress("pair", 900, 1000)
    finish(state, clock, [61.0, *[1.0] * 19])
    assert ", 10 rejected" not in state.line()
    assert "left" not in state.line()  # one of them was watched for less than it took
    finish(state, clock, [1.0] * 42)
    assert state.line().startswith("pair: 962/1000 units")
    assert state.line().endswith(", 62 rejected, 38 s left")


def test_workers_that_end_together_are_no_rate(clock):
    """Sixteen workers end their first units at once: what follows is some waves of ten seconds."""
    state = StageProgress("pool", 0, 160)
    finish(state, clock, [10.0, *[0.01] * 15])
    assert "left" not in state.line()
    finish(state, clock, [9.85, *[0.01] * 15])
    assert 30 <= float(state.line().rpartition(", ")[2].removesuffix(" s left").replace(" min ", "")) <= 100


def test_nothing_is_left_at_the_end(clock):
    state = StageProgress("pool", 0, 2)
    finish(state, clock, [1.0, 5.0])
    assert state.line() == "pool: 2/2 units, 3.3 rows/s, 2 rejected"


NOTEBOOK = """
import logging, sys
{setup}
import sonify
config = sonify.load_config("folder", ["images.path=photos", "audio.sources.0.path=sounds", "run_dir=run",
                                       "images.shard_size=2", "engine.kind=local"])
sonify.run(config)
"""


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("", 5),  # as a notebook is
        ("logging.basicConfig(level=logging.WARNING)", 5),  # as some hosts of notebooks are
        ("logging.basicConfig(level=logging.INFO, format='log %(message)s')", 5),
        ("logging.getLogger('sonify').setLevel(logging.WARNING)", 0),  # who asks for silence
    ],
)
def test_a_process_that_set_up_no_logging_sees_progress(tmp_path, setup, shown):
    small_input(tmp_path, photos=4, recordings=4)
    command = [sys.executable, "-c", NOTEBOOK.format(setup=setup)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if " units, " in line]
    assert len(lines) == shown
    if shown:
        assert "pair: 2/2 units" in lines[3]
        assert lines[3].startswith("log ") == ("INFO" in setup)
    assert done.stdout == ""


def test_a_line_is_said_now_and_then_and_at_the_end_of_a_stage(clock, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sonify"), "level", logging.NOTSET)
    with progress.open_display() as display:
        state = StageProgress("pool", 0, 5)
        display.start(state)
        for seconds in (1.0, 10.0, 1.0, 1.0, 1.0):
            finish(state, clock, [seconds])
            display.update(state)
        display.finish(state)
    said = [line.partition(" units")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["pool: 2/5", "pool: 5/5"]

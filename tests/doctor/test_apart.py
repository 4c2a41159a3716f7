"""Trials in a process of their own, and what becomes of it."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import active_children
from typing import Any

import pytest

from sonify.doctor.apart import Apart, tried
from sonify.doctor.findings import Finding, Outcome
from sonify.errors import InputError, TransientError, WorkError


def in_process(about: str) -> Finding:
    sys.stdout.write("a library prints\n")
    return Finding(about=about, outcome=Outcome.OK, found="done", facts={"pid": os.getpid()})


def failing(about: str, error: type[Exception], said: str) -> Finding:
    raise error(said)


def ended_by(_about: str, number: int) -> Finding:
    os.kill(os.getpid(), number)
    raise AssertionError


def leaving(_about: str, code: int) -> Finding:
    os._exit(code)


class Model:
    """What a library holds in a circle, as models are, of which only a collection gets rid."""

    def __init__(self) -> None:
        self.itself = self


def holding(about: str) -> Finding:
    held = sum(isinstance(one, Model) for one in gc.get_objects())
    Model()
    return Finding(about=about, outcome=Outcome.OK, found=str(held))


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with closing(Apart()) as apart:
        yield apart


def test_trials_are_done_in_one_process_that_is_not_ours_and_prints_into_no_document(capfd):
    with closing(Apart()) as apart:
        first, second = apart(in_process, "first"), apart(in_process, "second")
        pid = first.facts["pid"]
        assert (first.about, first.outcome, second.facts["pid"]) == ("first", Outcome.OK, pid)
        assert first.seconds is not None
        process = next(child for child in active_children() if child.pid == pid)
    assert process.exitcode == 0  # by itself
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("a library prints") == 2


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (InputError, "model: two lines"),
        (WorkError, "model: two lines"),
        (TransientError, "model: two lines"),
        (MemoryError, "MemoryError: model: two lines"),
        (ValueError, "ValueError: model: two lines"),
    ],
)
def test_an_error_is_a_fault_of_one_line(error, found):
    assert tried("llava", lambda: failing("llava", error, "model: two\n lines")) == Finding(
        about="llava", outcome=Outcome.FAULT, found=found
    )


def test_what_a_trial_held_is_gone_before_the_next(apart):
    assert [apart(holding, "llava").found for _ in range(2)] == ["0", "0"]


def test_what_a_library_says_at_length_is_cut():
    assert len(tried("llava", lambda: failing("llava", ValueError, "long " * 1000)).found) <= 400


def test_after_a_fault_the_next_trial_has_a_process_of_its_own(apart):
    before = apart(in_process, "before").facts["pid"]
    failed = apart(failing, "llava", InputError, "no such model")
    after = apart(in_process, "after").facts["pid"]
    assert (failed.outcome, failed.found) == (Outcome.FAULT, "no such model")
    assert after != before


@pytest.mark.parametrize(
    ("trial", "argument", "found"),
    [
        (ended_by, signal.SIGKILL, "was killed, as is done when memory runs out"),
        (ended_by, signal.SIGSEGV, "ended by signal 11: a library crashed"),
        (leaving, 3, "ended with exit code 3: a library crashed"),
        (leaving, 0, "ended with exit code 0: a library crashed"),
    ],
)
def test_a_process_that_ends_is_a_fault_and_the_next_trial_is_done(apart, trial: Any, argument: int, found: str):
    ended = apart(trial, "llava", argument)
    assert ended.outcome is Outcome.FAULT
    assert found in ended.found
    assert ended.about == "llava"
    assert apart(in_process, "clap").outcome is Outcome.OK

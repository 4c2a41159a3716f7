import os
import signal

import pytest

from sonify.errors import DiskFull, InputError, TransientError, WorkError
from sonify.terminal import Interrupt, Parser, run_command

ENDING = (signal.SIGINT, signal.SIGTERM)


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\nlines of it"), 2, "a.command: two lines of it"),
        (WorkError("damage"), 3, "a.command: damage"),
        (DiskFull("no room"), 3, "a.command: no room"),
        (TransientError("no server"), 3, "a.command: no server"),
        (KeyboardInterrupt(), 130, "a.command: interrupted; the same command goes on from here"),
        (KeyboardInterrupt("step 3 is saved"), 130, "a.command: interrupted; step 3 is saved"),
    ],
)
def test_each_error_is_one_line_and_has_its_code(capsys, error, code, line):
    assert run_command("a.command", raising(error)) == code
    assert capsys.readouterr().err.splitlines() == [line]


def test_work_that_is_done_is_0_or_says_its_own_code():
    assert run_command("a.command", lambda: None) == 0
    assert run_command("a.command", lambda: 7) == 7


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command("a.command", raising(ZeroDivisionError()))


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_the_work_and_is_not_heard_twice(number):
    before = [signal.getsignal(each) for each in ENDING]
    ended = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            for again in ENDING:
                os.kill(os.getpid(), again)
            ended.append("in good order")

    assert run_command("a.command", work) == 130
    assert ended == ["in good order"]
    assert [signal.getsignal(each) for each in ENDING] == before


@pytest.mark.parametrize("number", ENDING)
def test_a_step_is_finished_before_a_signal_counts(number):
    before = [signal.getsignal(each) for each in ENDING]
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), number)
        assert interrupt.asked
    assert [signal.getsignal(each) for each in ENDING] == before


def test_a_wrong_option_is_one_line_and_none_is_taken_cut_short(capsys):
    parser = Parser(prog="a.command")
    parser.add_argument("--config")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--conf", "x"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "a.command: unrecognized arguments: --conf x (see --help)\n"

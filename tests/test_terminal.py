import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sonify.errors import DiskFull, InputError, TransientError, WorkError
from sonify.terminal import Interrupt, Parser, run_command, run_module, stop_if_asked
from tests.processes import run_first

ROOT = Path(__file__).parents[1]

ENDING = (signal.SIGINT, signal.SIGTERM)


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\nlines of it"), 2, "a.command: two lines of it"),
        (InputError("\x1b]0;a\x07 b\x9b31m\u202eé"), 2, "a.command: \\x1b]0;a\\x07 b\\x9b31m\\u202eé"),
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


WRITING = """
import sys
from sonify.terminal import run_command
def work():
    for line in range(100_000):
        print(line)
sys.exit(run_command("a.command", work))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_stops_reading_is_told_nothing(unbuffered):
    shell = f"{sys.executable} -c '{WRITING}' | head -1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output_is_one_line_and_3(unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", WRITING]
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    said = "a.command: no room left for what is written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (3, said)


def test_other_errors_of_the_system_keep_their_traceback():
    with pytest.raises(BrokenPipeError):
        run_command("a.command", raising(BrokenPipeError()))


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_swallowed_ends_the_work_at_its_next_step(capsys, number):
    steps: list[int] = []

    def work():
        for step in range(3):
            stop_if_asked()
            steps.append(step)
            with suppress(KeyboardInterrupt):  # as what catches everything does
                os.kill(os.getpid(), number)

    assert run_command("sonify", work) == 130
    assert steps == [0]
    assert "interrupted" in capsys.readouterr().err
    assert run_command("sonify", stop_if_asked) == 0, "the next command was not asked"


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
    assert capsys.readouterr().err == "a.command: no such option: --conf; did you mean --config? (see --help)\n"


def test_what_is_required_is_asked_for_by_name_and_with_what_it_is(capsys):
    parser = Parser(prog="a.command")
    parser.add_argument("run_dir", metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", required=True)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "a.command: expected RUN: the folder of a run; expected --out (see --help)\n"


def test_an_option_that_does_not_exist_is_said_before_what_is_required(capsys):
    parser = Parser(prog="a.command", explain=lambda option, value: f"{option}? {value}" if option == "seed" else "")
    parser.add_argument("--out", required=True)
    for words, said in (
        (["--uot", "x"], "no such option: --uot; did you mean --out?"),
        (["--seed", "3"], "seed? 3"),
        (["--seed=4"], "seed? 4"),
        (["--xyzzy"], "no such option: --xyzzy"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert capsys.readouterr().err == f"a.command: {said} (see --help)\n"
    assert parser.parse_known_args(["--out", "x", "--", "--seed"])[0].out == "x"


LIGHT = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec
away = ("torch", "diffusers", "matplotlib", "pyroomacoustics", "psutil")
PathFinder.find_spec = lambda name, path=None, target=None: None if name in away else found(name, path, target)
"""
NAMED = (
    ("train.pixart", "torch", "train"),
    ("train.audiotoken", "torch", "train"),
    ("train.generate", "torch", "train"),
    ("train.release", "torch", "train"),
    ("train.ema", "torch", "train"),
    ("train.tiny", "torch", "train"),
    ("train.projector", "torch", "train"),
    ("eval.audit", "matplotlib", "eval"),
    ("eval.convert_weights", "torch", "eval"),
    ("eval.memorisation", "matplotlib", "eval"),
    ("eval.family", "torch", "eval"),
    ("eval.reproduce", "torch", "eval"),
    ("eval.loudness", "matplotlib", "eval"),
    ("eval.projector_start", "torch", "eval"),
    ("eval.semantic_mixing", "matplotlib", "eval"),
    ("eval.separation", "matplotlib", "eval"),
    ("eval.reverberation", "pyroomacoustics", "eval"),
    ("eval.ast_loudness", "torch", "eval"),
    ("benchmarks.adapters", "torch", "dev"),
    ("benchmarks.clap", "torch", "dev"),
    ("benchmarks.evaluation", "torch", "dev"),
    ("benchmarks.features", "torch", "dev"),
    ("benchmarks.loader", "torch", "dev"),
    ("benchmarks.train_step", "torch", "dev"),
    ("benchmarks.scale", "psutil", "dev"),
    ("benchmarks.learning", "torch", "dev"),
    ("benchmarks.learning.recall", "torch", "dev"),
    ("benchmarks.conditioning", "torch", "dev"),
)


@pytest.mark.parametrize(("module", "library", "extra"), NAMED, ids=[module for module, _, _ in NAMED])
def test_a_module_that_is_run_without_its_libraries_says_so_in_one_line(tmp_path, monkeypatch, module, library, extra):
    run_first(monkeypatch, tmp_path, LIGHT)
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2, done.stderr
    name = f"{module}.__main__" if module == "benchmarks.learning" else module
    assert done.stderr.startswith(f"{name}: the library {library} is not installed: run ")
    assert f"[{extra}]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_while_libraries_are_imported_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "slow_to_import.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_module("slow_to_import", [], extra="train", name="a.command") == 130
    assert capsys.readouterr().err == "a.command: interrupted; nothing was begun\n"


def test_every_module_with_a_main_says_so():
    """A new command is one of those above, or needs nothing that the light installation lacks."""
    mains = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("train", "eval")
        for path in (ROOT / folder).glob("*.py")
        if "\ndef main(" in path.read_text()
    }
    assert mains == {module for module, _, _ in NAMED if module[0] != "b"} | {
        "eval.baseline",
        "eval.compare",
        "eval.leakage",
        "eval.met",
        "eval.pairing",
        "eval.prepare",
        "eval.run",
        "eval.table",
        "eval.__main__",
        "train.pairs",
    }


def test_a_library_that_is_there_and_broken_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import yaml.nothing")
    (tmp_path / "of_ours.py").write_text("import sonify.nothing")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("broken", "of_ours"):
        with pytest.raises(ModuleNotFoundError):
            run_module(module, [], extra="train")

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import search, training
from benchmarks.gpu.report import Figure, PartReport, Report, read_report, table_of, write_report
from benchmarks.gpu.room import TINY, Room
from benchmarks.on_gpu import PARTS, Part, main, run_part
from sonify.errors import InputError
from sonify.retrieval.search import NONE_TIED, Best
from tests.processes import children_of

PART = Part(name="search", module="search", title="Search", seconds=60)
FIGURE = Figure(name="rate", value=12.5, unit="images/s", note="a | note")


def ran(code: str, seconds: float = 20.0, told: list[PartReport] | None = None) -> PartReport:
    """What a part comes to whose process runs some Python."""
    noted: list[PartReport] = [] if told is None else told
    return run_part(PART, seconds, [sys.executable, "-c", code], noted.append)


def is_gone(number: int) -> bool:
    """Whether a process ends within some seconds; who has it as a child may still have to hear of it."""
    for _ in range(100):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


def printing(*figures: Figure) -> str:
    rows = [{"name": each.name, "value": each.value, "unit": each.unit, "note": each.note} for each in figures]
    return "".join(f"print({json.dumps(json.dumps(row))}, flush=True)\n" for row in rows)


def test_each_figure_is_told_as_it_comes():
    told: list[PartReport] = []
    measured = ran(
        printing(FIGURE) + "print('a library says hello')\n" + printing(FIGURE) + "print('{', end='')", told=told
    )
    assert [len(each.figures) for each in told] == [1, 2]
    assert {each.outcome for each in told} == {"not measured"}
    assert (measured.outcome, measured.why, measured.figures) == ("done", "", (FIGURE, FIGURE))


def test_what_a_part_measured_before_it_failed_stands_beside_the_reason():
    measured = ran(printing(FIGURE) + "raise MemoryError('no room for it')")
    assert measured.outcome == "failed"
    assert measured.why.startswith("exit code 1: ")
    assert measured.why.endswith("MemoryError: no room for it")
    assert measured.figures == (FIGURE,)


def test_a_part_that_kills_itself_is_a_failure():
    assert ran("import os; os.kill(os.getpid(), 9)").why.startswith("exit code -9")


@pytest.mark.slow
def test_a_part_that_is_late_is_ended_with_all_that_it_started(tmp_path):
    started = time.monotonic()
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    measured = ran(printing(FIGURE) + code, seconds=5.0)
    assert time.monotonic() - started < 30
    assert (measured.outcome, measured.why) == ("not measured", "not ready within 5 s")
    assert measured.figures == (FIGURE,)
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_with_no_time_left_nothing_is_begun(tmp_path, capsys):
    out = tmp_path / "on_gpu.json"
    assert main(["--out", str(out), "--minutes", "0.1", "--device", "cpu", "--tiny"]) == 3
    report = read_report(out)
    assert [each.part for each in report.parts] == [part.name for part in PARTS]
    assert {(each.outcome, each.why) for each in report.parts} == {("not measured", "no time was left")}


def test_a_part_runs_as_the_command_runs_it(tmp_path, capsys):
    out = tmp_path / "on_gpu.json"
    assert main(["--out", str(out), "--parts", "search", "--device", "cpu", "--tiny"]) == 0
    (measured,) = read_report(out).parts
    assert measured.outcome == "done"
    figures = {figure.name: figure for figure in measured.figures}
    assert figures["concepts with another list than on CPUs"].value == 0
    assert figures["rate on CPUs"].unit == "concepts/s"


def test_a_device_that_is_not_there_is_said(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "on_gpu.json"
    assert main(["--out", str(out), "--parts", "search", "--tiny"]) == 3
    (measured,) = read_report(out).parts
    assert "--device: torch finds no GPU here" in measured.why


@pytest.mark.slow
def test_a_killed_conductor_leaves_its_figures_and_nobody_behind(tmp_path):
    out = tmp_path / "on_gpu.json"
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--parts", "machine,search", "--tiny", "--device", "cpu"]
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    try:
        while not out.exists() or not any(each.part == "search" and each.figures for each in read_report(out).parts):
            assert process.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    machine, searched = read_report(out).parts
    assert machine.outcome == "done"
    assert (searched.outcome, searched.why) == ("not measured", "being measured")
    assert len(children) == 1
    assert is_gone(int(children[0]))


def test_a_part_ends_with_its_conductor_whatever_it_is_at():
    part = (
        "from benchmarks.on_gpu import die_with_parent, os, time\n"
        "die_with_parent(os.getppid())\nprint('r', flush=True)\ntime.sleep(60)"
    )
    begun = f"subprocess.Popen([sys.executable, '-c', {part!r}])"
    conductor = f"import subprocess, sys\npart = {begun}\nprint(part.pid, flush=True)\npart.wait()"
    process = subprocess.Popen([sys.executable, "-c", conductor], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = int(process.stdout.readline())
    assert process.stdout.readline() == "r\n"
    process.kill()
    process.wait()
    assert is_gone(number)


def test_what_a_killed_run_left_is_removed_by_the_next_and_that_of_a_live_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    waits = "import time; print('{}', flush=True); time.sleep(60)"
    code = (
        f"import sys; from benchmarks.on_gpu import *; run_part(PARTS[0], 60, [sys.executable, '-c', {waits!r}], print)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    children: list[int] = []
    runs = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    try:
        while len(left := list(tmp_path.glob("sonify-on-gpu-*/said"))) < 2:
            time.sleep(0.05)
        children = [child for run in runs for child in children_of(run.pid)]
        os.kill(runs[0].pid, signal.SIGKILL)
        runs[0].wait()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/lock").touch()
        (tmp_path / "sonify-on-gpu-link").symlink_to(tmp_path / "elsewhere")
        assert ran("pass").outcome == "done"
        assert len([each for each in left if each.parent.is_dir()]) == 1
        assert (tmp_path / "elsewhere/lock").exists()
        os.kill(runs[1].pid, signal.SIGKILL)
        runs[1].wait()
        assert ran("pass").outcome == "done"
        assert sorted(os.listdir(tmp_path)) == ["elsewhere", "sonify-on-gpu-link"]
    finally:
        for each in (*(run.pid for run in runs if run.poll() is None), *children):
            os.kill(each, signal.SIGKILL)


@pytest.mark.parametrize("minutes", ["nan", "-1", "0"])
def test_minutes_that_are_none_are_refused(tmp_path, minutes, capsys):
    assert main(["--out", str(tmp_path / "r.json"), f"--minutes={minutes}"]) == 2
    assert f"--minutes: expected a number above 0, found {minutes}" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_a_place_that_no_file_can_take_is_refused_before_anything_is_measured(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert main(["--out", str(tmp_path / "pipe"), "--tiny", "--device", "cpu"]) == 2
    assert (tmp_path / "pipe").is_fifo()
    assert len(capsys.readouterr().err.splitlines()) == 1


def best(numbers: Sequence[int], scores: Sequence[float]) -> Best:
    return Best(np.array(scores, np.float32), np.array(numbers), NONE_TIED)


def test_rows_of_equal_cosines_may_change_places():
    one, other = best([1, 2, 3], [0.9, 0.5, 0.5]), best([1, 3, 2], [0.9, 0.5, 0.5])
    assert search.differences([one], [other]) == (0, 0.0)
    assert search.differences([one, one], [other, best([1, 3, 2], [0.9, 0.75, 0.5])]) == (1, 0.25)


def test_saving_is_measured_on_a_whole_checkpoint(tmp_path):
    room = Room(device=torch.device("cpu"), sizes=TINY, folder=tmp_path)
    figures = {figure.name: figure.value for figure in training.checkpoint(room)}
    assert figures["size of a checkpoint"] == pytest.approx(figures["estimated size"], rel=0.05)


@pytest.mark.slow
def test_each_way_to_need_less_memory_is_measured_beside_its_estimate(tmp_path):
    room = Room(device=torch.device("cpu"), sizes=TINY, folder=tmp_path)
    names = [figure.name for figure in training.memory(room)]
    ways = ("compiled", "compiled, recomputing", "not compiled")
    assert [name.rpartition(": ")[0] for name in names if name.endswith(": estimated for that")] == list(ways)


def report_of(*parts: PartReport, tiny: bool = False) -> Report:
    return Report(tiny=tiny, device="cuda", parts=parts)


def test_a_table_has_all_figures_and_says_what_is_missing():
    done = PartReport(part="a", title="A", outcome="done", seconds=12.3, figures=(FIGURE,))
    late = PartReport(part="b", title="B", outcome="not measured", why="not ready within 5 s", seconds=5.0)
    counted = PartReport(part="c", title="C", outcome="done", figures=(Figure(name="n", value=607_000_000),))
    assert list(table_of(report_of(done, late, counted))) == [
        "| what | figure | |",
        "|---|---|---|",
        "| **A** |  | 12 s |",
        "| rate | 12.5 images/s | a / note |",
        "| **B** | not measured: not ready within 5 s | 5 s |",
        "| **C** |  |  |",
        "| n | 607,000,000 |  |",
    ]
    assert "these figures say nothing" in next(table_of(report_of(done, tiny=True)))


def test_nothing_that_a_file_says_reaches_the_terminal_as_a_command(tmp_path, capsys):
    evil = "a\x1b]0;title\x07\x9b31m\u202e|\nb"
    figure = Figure(name=evil, value=evil, unit=evil, note=evil)
    parts = (PartReport(part=evil, title=evil, outcome="failed", why=evil, figures=(figure,)),)
    write_report(tmp_path / "r.json", Report(tiny=True, device=evil, parts=parts))
    assert main(["--table", str(tmp_path / "r.json")]) == 0
    (tmp_path / "r.json").write_text(json.dumps({"format": 1, "tiny": False, "device": "", "parts": [], evil: 1}))
    assert main(["--table", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))


def test_a_report_is_read_as_it_was_written(tmp_path):
    written = report_of(PartReport(part="a", title="A", outcome="failed", why="w", figures=(FIGURE,)))
    write_report(tmp_path / "r.json", written)
    assert read_report(tmp_path / "r.json") == written


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 2}', '{"format":1,"tiny":false,"device":"cuda","parts":[{}]}']
)
def test_what_is_no_report_is_one_line(tmp_path, text, capsys):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"no file of benchmarks\.on_gpu"):
        read_report(path)
    assert main(["--table", str(path)]) == 2

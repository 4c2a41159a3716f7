"""The paper's table: what is known, what is measured, what is said of the rest."""

import csv
import json
from pathlib import Path

import pytest

from eval.reproduce import BEST, COLUMNS, OFFLINE, PUBLISHED, Asked, Cell, find_lacks, main, write_table


def asked(out: Path, **changes: object) -> Asked:
    """The bare command."""
    defaults = {"model": None, "trained_on": (), "towers": "towers", "seeds": 1, "on_cpu": False}
    return Asked(out=out, **{**defaults, **changes})  # pyright: ignore[reportArgumentType]


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without corpora, without weights, and a hub that is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_all_that_is_missing_is_named(apart: Path) -> None:
    lacks = find_lacks(asked(apart))
    assert set(lacks.corpora) == set(COLUMNS)
    assert [text.partition(":")[0] for text in lacks.towers] == [
        "towers.inception",
        "towers.clip_b32",
        "towers.wav2clip",
    ]
    assert lacks.model
    assert all(lacks.of_column(name) for name in COLUMNS)
    assert not lacks.of_column(OFFLINE)


def test_a_model_without_a_gpu_is_left_to_who_asks_for_it(apart: Path) -> None:
    assert "GPU" in find_lacks(asked(apart, model="somewhere")).gpu
    assert not find_lacks(asked(apart, model="somewhere", on_cpu=True)).gpu


def test_the_table_has_the_known_cells_and_says_what_nobody_measured(tmp_path: Path, capsys) -> None:
    cells = [
        Cell(model=PUBLISHED, suite="greatest_hits", metric="FID", value=87.3, source="published"),
        Cell(model="ours", suite="greatest_hits", metric="FID", why="a model: --model"),
        Cell(
            model="ours", suite="greatest_hits", metric="AIS", value=0.0512, low=0.04, high=0.06,
            mark="audio 40 %, out 60 %", source="measured",
        ),
    ]  # fmt: skip
    write_table(tmp_path, cells)
    printed = capsys.readouterr().out
    assert "87.3" in printed
    assert "not measured" in printed
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["source"] for row in rows] == ["published", "not measured", "measured"]
    assert json.loads((tmp_path / "table.json").read_text())[1]["why"] == "a model: --model"
    latex = (tmp_path / "table.tex").read_text()
    assert "0.0512 [0.04, 0.06] (audio 40 \\%, out 60 \\%)" in latex
    write_table(tmp_path, [Cell(model="m", suite=OFFLINE, metric="FID", value=1.0)])
    assert "{smoke (random projections, which judge nothing)}" in (tmp_path / "table.tex").read_text()


def test_each_column_has_its_best_published_cells() -> None:
    assert {len(best) for best in BEST.values()} == {len(COLUMNS)}


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--towers", "none.yaml"], "none.yaml"), (["--seeds", "0"], "--seeds: expected 1"), ([], "--out")],
)
def test_what_cannot_be_is_one_line(apart: Path, words: list[str], said: str, capsys) -> None:
    out = ["--out", str(apart / "out")] if words else []
    try:
        code = main([*out, *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_offline_column_is_measured(apart: Path, capsys) -> None:
    assert main(["--out", str(apart / "out")]) == 0
    rows = list(csv.DictReader((apart / "out" / "table.csv").open()))
    measured = {(row["model"], row["metric"]): float(row["value"]) for row in rows if row["source"] == "measured"}
    assert abs(measured["references", "FID"]) < 1e-6
    assert measured["references", "IIS"] == pytest.approx(1)
    assert measured["shuffled", "IIS"] < 0.9
    assert {row["suite"] for row in rows if row["source"] == "measured"} == {OFFLINE}
    assert sum(row["source"] == "published" for row in rows) == 3 * len(COLUMNS)

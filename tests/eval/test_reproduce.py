"""The paper's table: what is known, what is measured, what is said of the rest."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from eval.baseline import main as baseline
from eval.report import say_met
from eval.reproduce import (
    BEST,
    COLUMNS,
    OFFLINE,
    PUBLISHED,
    Asked,
    Cell,
    cells_of,
    check_prepared,
    find_lacks,
    main,
    write_table,
)
from eval.run import main as judge
from eval.suites.config import load_suite_config
from eval.suites.entries import Selection
from eval.suites.write import write_suite
from tests.builders import write_csv
from tests.eval.suites_built import demo_suite, make_entries, make_suite


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


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """A run's folder with a report of a model on the offline suite: of some of its items it is out of sample."""
    out, heard = tmp_path / "out", tmp_path / "heard.csv"
    towers = {role: {"kind": "random", "width": 8} for role in ("inception", "clip_b32", "wav2clip")}
    suite = make_suite(tmp_path, 8, others=0, towers=towers, metrics=["fid", "iis_cosine", "ais_cosine"])
    write_csv(heard, ("id", "kind"), [(item.ids[0].partition(":")[2], "youtube") for item in suite.items[:2]])
    made, report = out / "pictures" / OFFLINE / "model", out / "reports" / OFFLINE / "model"
    assert baseline(["--recipe", "references", "--suite", str(suite.folder), "--out", str(made)]) == 0
    words = ["--suite", str(suite.folder), "--manifest", str(made), "--out", str(report)]
    assert judge([*words, "--trained-on", str(heard)]) == 0
    return out


def test_a_cell_has_the_score_on_what_is_out_beside_it(reported: Path, tmp_path: Path, capsys) -> None:
    cells = cells_of(asked(reported, model="somewhere"), OFFLINE, "model", None)
    fid, iis, ais = cells
    assert {cell.mark for cell in cells} == {"audio 25 %, out 75 %"}
    items = csv.DictReader((reported / "reports" / OFFLINE / "model" / "items.csv").open())
    assert [item["level"] for item in items] == ["audio"] * 2 + ["out"] * 6
    assert all(cell.out is not None and cell.source == "measured" for cell in cells)
    assert (iis.value, iis.out) == (pytest.approx(1), pytest.approx(1))
    assert ais.out != ais.value
    write_table(tmp_path / "table", cells)
    assert f"(audio 25 \\%, out 75 \\%; on out alone {ais.out:.3g} [" in (tmp_path / "table" / "table.tex").read_text()
    assert next(csv.DictReader((tmp_path / "table" / "table.csv").open()))["out"] == str(fid.out)


def test_a_model_that_has_met_all_items_has_none_out() -> None:
    assert say_met({"in": 3, "audio": 1, "out": 0, "unknown": 0}) == "in 75 %, audio 25 %, none out"
    assert say_met({"in": 0, "audio": 0, "out": 0, "unknown": 4}) == ""


def test_an_older_report_is_not_shown_where_nothing_was_measured_now(reported: Path) -> None:
    cells = cells_of(asked(reported, model="another"), OFFLINE, "model", "a GPU")
    assert {(cell.model, cell.value, cell.source, cell.why) for cell in cells} == {
        ("another", None, "not measured", "a GPU")
    }


def test_a_suite_of_other_settings_is_named_with_what_is_to_be_removed(reported: Path, apart: Path, capsys) -> None:
    demo_suite(reported, 4)
    (reported / "suites").mkdir()
    (reported / "suite").rename(reported / "suites" / OFFLINE)
    assert main(["--out", str(reported)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{reported}/suites/smoke: was prepared by another configuration than smoke is today (" in said
    assert f"remove it, and what was made from it: {reported}/pictures/smoke, {reported}/reports/smoke" in said


def test_a_suite_of_the_settings_of_today_is_taken(tmp_path: Path) -> None:
    entries = Selection(wanted=tuple(make_entries(tmp_path / "media", 4)), rest=())
    write_suite(load_suite_config(OFFLINE), entries, tmp_path / "suites" / OFFLINE)
    check_prepared(tmp_path, OFFLINE)


@pytest.mark.slow
def test_the_offline_column_is_measured(reported: Path, apart: Path, capsys) -> None:
    """What lies there of older reports is not taken for it."""
    shutil.rmtree(reported / "pictures")
    (reported / "reports").rename(apart / "out" / "older")
    for place in (f"{OFFLINE}/model", "vegas_1k/references"):
        shutil.copytree(apart / "out" / "older" / OFFLINE / "model", apart / "out" / "reports" / place)
    assert main(["--out", str(apart / "out")]) == 0
    rows = list(csv.DictReader((apart / "out" / "table.csv").open()))
    measured = {(row["model"], row["metric"]): float(row["value"]) for row in rows if row["source"] == "measured"}
    assert abs(measured["references", "FID"]) < 1e-6
    assert measured["references", "IIS"] == pytest.approx(1)
    assert measured["shuffled", "IIS"] < 0.9
    assert {row["suite"] for row in rows if row["source"] == "measured"} == {OFFLINE}
    assert sum(row["source"] == "published" for row in rows) == 3 * len(COLUMNS)

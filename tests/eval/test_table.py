"""Models by suites: what stands in which cell, what is refused, what is a footnote, and which differences are shown."""

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from eval import table
from eval.baseline import main as baseline
from eval.compare import compare_reports
from eval.report import ARROWS, read_side
from eval.run import main as judge
from eval.table import Given, make_table
from eval.table_forms import say_cell, table_csv, table_html, table_latex, table_markdown
from eval.towers import random
from sonify.errors import InputError
from tests.eval.reports_built import SHA, distance_score, mean_score, write_report
from tests.eval.suites_built import make_suite

RIGHT = np.random.RandomState(0).standard_normal(24)
FORMS = ("table.csv", "table.html", "table.json", "table.md", "table.tex")


def given(*folders, names=()):
    names = names or [""] * len(folders)
    return [Given(name=name, side=read_side(folder)) for name, folder in zip(names, folders, strict=True)]


def made(*folders, names=(), **options):
    return make_table(given(*folders, names=names), **options)


def run(*words):
    return table.main([str(word) for word in words])


def cell_of(found, model, metric="m", suite=None, on="all"):
    columns = next(each for each in found.suites if suite in (None, each.name)).columns
    column = next(column for column in columns if (column.metric, column.on) == (metric, on))
    return next(cell for cell in column.cells if cell.model == model)


def notes_of(found, numbers):
    return [found.notes[n - 1] for n in numbers]


@pytest.fixture
def grid(tmp_path):
    """Two models on two suites, of which the second has one report; seven items each."""

    def write(name, suite, shift):
        return write_report(
            tmp_path / suite / name, {"m": [1.0 + shift] * 7, "n": [2.0 + shift] * 7}, suite=suite,
            suite_digest=suite[0] * 64, model=f"/models/{name}",
        )  # fmt: skip

    return [write("a", "vegas", 0.0), write("b", "vegas", 1.0), write("a", "landscapes", 0.0)]


def test_rows_are_models_and_groups_of_columns_suites(grid):
    found = made(*grid)

    assert [line.name for line in found.lines] == ["models/a", "models/b"]
    assert [(suite.name, [column.metric for column in suite.columns]) for suite in found.suites] == [
        ("vegas", ["m", "n"]),
        ("landscapes", ["m", "n"]),
    ]
    cell = cell_of(found, "models/b", "n", "vegas")
    assert (cell.value, cell.low, cell.high, cell.images, cell.recordings) == (3.0, 3.0, 3.0, 7, 7)
    assert table_latex(found).count("\\midrule") == 1  # no control, no rule before controls


def test_a_cell_that_is_not_there_is_empty_with_a_reason(grid, tmp_path):
    none = write_report(tmp_path / "c", {"m": [None] * 7}, suite="vegas", suite_digest="v" * 64)
    found = made(*grid, none)

    cell = cell_of(found, "models/b", suite="landscapes")
    assert (cell.value, say_cell(cell)) == (None, "")
    assert len(set(found.notes)) == len(found.notes)  # what is said of many cells is one footnote
    assert notes_of(found, cell.notes) == [cell.why] == ["no report of it on landscapes"]
    assert cell_of(found, "models/c", suite="vegas").why == "no sound of it can be heard"
    assert cell_of(found, "models/c", "n", "vegas").why == "not judged by it"
    rows = list(csv.DictReader(table_csv(found).decode().splitlines()))
    (row,) = (row for row in rows if (row["model"], row["suite"], row["metric"]) == ("models/b", "landscapes", "m"))
    assert (row["value"], row["low"], row["images"], row["note"]) == ("", "", "", "no report of it on landscapes")
    assert len(rows) == 3 * 2 * 2


def test_a_part_of_the_scores_can_be_asked_for(grid):
    found = made(*grid, metrics=["n"])
    assert {column.metric for suite in found.suites for column in suite.columns} == {"n"}


def test_controls_stand_below_and_are_marked(tmp_path):
    control = write_report(
        tmp_path / "c", {"m": RIGHT.tolist()}, model="shuffled[references]",
        settings={"kind": "control", "control": "shuffled", "of": "references", "donor": "s1"},
    )  # fmt: skip
    model = write_report(tmp_path / "a", {"m": RIGHT.tolist()})
    found = made(control, model)

    assert [(line.name, line.control) for line in found.lines] == [
        ("models/a", ""),
        ("shuffled[references]", "shuffled of references"),
    ]
    assert found.suites[0].met["shuffled[references]"] == "control: shuffled"
    assert "\\midrule\nshuffled[references] (control) & " in table_latex(found)
    assert "<th class=control>shuffled[references] (control)</th>" in table_html(found)
    assert "| shuffled\\[references\\] (control) |" in table_markdown(found)
    for form in (table_html(found), table_markdown(found), table_latex(found)):
        assert "they are no models." in form


def test_controls_are_in_no_difference_and_no_test_and_every_form_says_so(tmp_path):
    """Each model would pay for them by Holm's steps; a control that is chosen itself is what the models are held to."""
    control = write_report(
        tmp_path / "c", {"m": (RIGHT + 5).tolist()}, model="references",
        settings={"kind": "control", "control": "references"},
    )  # fmt: skip
    a, b = (write_report(tmp_path / name, {"m": (RIGHT + n).tolist()}) for n, name in enumerate("ab"))
    found, alone = made(a, b, control, against="models/a"), made(a, b, against="models/a")

    assert (found.family, alone.family) == (1, 1)
    assert cell_of(found, "models/b").p_holm == cell_of(alone, "models/b").p_holm
    cell = cell_of(found, "references")
    assert (cell.difference, cell.verdict, cell.value is not None) == (None, "", True)
    assert found.untested == {"references": "a control: in no difference and in no test"}
    for form in (table_html(found), table_markdown(found), table_latex(found)):
        assert "they are no models, and are in no difference and in no test." in form
    held = made(a, b, control, against="references")
    assert (held.family, held.untested) == (2, {})


def test_scores_of_random_judges_are_in_no_test_and_have_no_mark(tmp_path):
    towers = dict.fromkeys(SHA, f"{random.NAME}: seed 0")
    a, b = (
        write_report(tmp_path / name, {"m": (RIGHT + n * 5).tolist()}, towers=towers) for n, name in enumerate("ab")
    )
    found = made(a, b, against="models/a")

    cell = cell_of(found, "models/b")
    assert (found.family, cell.p_holm, cell.verdict) == (0, None, "not tested: random projections judge nothing")
    assert cell.difference is not None
    assert (cell.difference.value, cell.difference.p) == (pytest.approx(5), None)
    assert found.untested == {"landscapes: m": "judged by random projections: in no test"}
    for form in (table_html(found), table_markdown(found), table_latex(found)):
        assert "Scores that random projections judge are in no test" in form
        assert "Holm" not in form


def test_a_pipeline_goes_by_its_training_run(tmp_path):
    def names(*models):
        reports = [
            write_report(tmp_path / f"{len(models)}-{n}", {"m": [1.0, 2.0]}, model=model, model_sha256=str(n) * 64)
            for n, model in enumerate(models)
        ]
        return [line.name for line in made(*reports).lines]

    assert names("/runs/ours/pipeline") == ["ours"]
    assert names("/one/ours/pipeline", "/two/ours/pipeline") == ["/one/ours/pipeline", "/two/ours/pipeline"]


def test_a_page_has_a_row_a_score_and_a_column_a_model_and_says_what_in_or_out_is(grid):
    found = made(*grid)
    html, markdown = table_html(found), table_markdown(found)
    checked = Checked()
    checked.feed(html)
    assert checked.rows == [3] * (1 + 2 * 4)  # heads; of each suite its name, in or out, and two scores
    assert "details" not in checked.tags
    rows = [line.split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == ["", "---", "in or out", "m ↑", "n ↑"] * 2
    assert [line for line in markdown.splitlines() if line.startswith("### ")] == [
        "### vegas, 7 of 7 items", "### landscapes, 7 of 7 items",
    ]  # fmt: skip
    assert all("none out: it may have met each of them" in form for form in (html, markdown))


def test_the_marks_say_what_each_model_may_have_met(tmp_path):
    known = write_report(
        tmp_path / "a", {"m": [1.0, 2.0, 3.0, 4.0]}, levels=["in", "out", "out", "out"], met={"in": 1, "out": 3},
        scores=[replace(mean_score("m", [2.0, 3.0, 4.0], ["1", "2", "3"]), on="out")], trained_on=("x.csv",),
        said_of_training=("landscapes_train",), domain=("landscapes_train",),
    )  # fmt: skip
    unknown = write_report(tmp_path / "b", {"m": [1.0, 2.0, 3.0, 4.0]}, met={"unknown": 4})
    none = write_report(tmp_path / "c", {"m": [5.0] * 4}, levels=["out"] * 4, met={"out": 4}, trained_on=("x.csv",))
    every = write_report(tmp_path / "d", {"m": [5.0] * 4}, levels=["in"] * 4, met={"in": 4}, trained_on=("x.csv",))
    found = made(known, unknown, none, every)

    assert found.suites[0].met == {
        "models/a": "in 25 %, out 75 %",
        "models/b": "unknown",
        "models/c": "out 100 %",
        "models/d": "in 100 %, none out",
    }
    assert notes_of(found, found.suites[0].met_notes["models/a"]) == [
        "models/a was trained on landscapes_train, as its recipe says: of this suite's corpus"
    ]
    assert [(column.metric, column.on) for column in found.suites[0].columns] == [("m", "all"), ("m", "out")]
    assert cell_of(found, "models/a", on="out").value == 3.0
    assert cell_of(found, "models/c", on="out").value == 5.0  # all of its items are out
    assert cell_of(found, "models/b", on="out").why.startswith("which items it may have met is not known")
    assert cell_of(found, "models/d", on="out").why == "it may have met every item"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"suite_digest": "c" * 64}, "digest of the suite landscapes"),
        ({"changed": {"towers": {**SHA, "clip_b32": "9" * 64}}}, "tower clip_b32 of m"),
        ({"changed": {"pool_sha256": "4" * 64}}, "pool of m"),
        ({"changed": {"preprocessing": ("bilinear 299",)}}, "preprocessing of m"),
        ({"changed": {"definition": "another"}}, "definition of m"),
        ({"recordings": ["one"] * 24}, "recording of item 0"),
    ],
)
def test_reports_that_were_not_judged_alike_are_in_no_table(tmp_path, capsys, changes, said):
    a = write_report(tmp_path / "a", {"n": RIGHT.tolist()})  # what it was not judged by cannot tell the others apart
    b = write_report(tmp_path / "b", {"m": RIGHT.tolist()})
    c = write_report(tmp_path / "c", {"m": RIGHT.tolist()}, **changes)

    assert run("--reports", a, b, c, "--out", tmp_path / "t") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"its {said} is not that of" in error
    assert not (tmp_path / "t").exists()


def test_other_items_are_a_footnote_and_differences_are_of_the_common_ones(tmp_path):
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0, 3.0, None]}, images=[1, 1, 1, 0])
    b = write_report(tmp_path / "b", {"m": [2.0, 4.0, 6.0, 90.0]})
    found = made(a, b, against="models/a")

    (note,) = notes_of(found, found.suites[0].notes)
    assert note.startswith("pictures are not of the same items: models/a 3, models/b 4;")
    cell = cell_of(found, "models/b")
    assert (cell.value, cell.items, cell.compared_items) == (25.5, 4, 3)
    assert cell.difference is not None
    assert cell.difference.value == 2.0
    assert not made(a).suites[0].notes


def test_models_without_a_common_item_stand_side_by_side_and_have_no_difference(tmp_path):
    a = write_report(tmp_path / "a", {"m": [1.0, None]}, images=[1, 0])
    b = write_report(tmp_path / "b", {"m": [None, 1.0]}, images=[0, 1])
    found = made(a, b, against="models/a")

    assert (cell_of(found, "models/b").difference, cell_of(found, "models/b").verdict) == (None, "")
    said = "no difference of models/b on landscapes: no item has a picture of it and of models/a"
    assert said in notes_of(found, found.suites[0].notes)


def test_a_suite_without_the_chosen_model_says_so(grid):
    found = made(*grid, against="models/b")

    assert cell_of(found, "models/a", suite="vegas").verdict != ""
    assert cell_of(found, "models/a", suite="landscapes").verdict == ""
    said = "no differences on landscapes: there is no report of models/b on it"
    assert notes_of(found, found.suites[1].notes) == [said]


def test_differences_are_those_of_compare(tmp_path):
    rng = np.random.RandomState(3)
    replicates = rng.standard_normal((3, 20)) * 0.01 + 5
    folders = [
        write_report(
            tmp_path / name, {"m": (RIGHT + n * 0.5 + 0.1 * rng.standard_normal(24)).tolist()},
            scores=[distance_score("fid", 5 + n * 0.1, replicates[n].tolist())],
        )
        for n, name in enumerate("abc")
    ]  # fmt: skip
    found = made(*folders, against="models/a")
    there = compare_reports([read_side(folder) for folder in folders])

    assert found.family == there.family == 4
    for row in there.rows:
        cell = cell_of(found, there.models[row.b].removeprefix("/"), row.metric)
        assert (cell.difference, cell.p_holm) == (row.difference, row.p_holm)
        assert (cell.verdict == "no difference shown") == (row.verdict == "no difference shown")
    assert {cell_of(found, "models/a", metric).verdict for metric in ("m", "fid")} == {""}


def test_the_family_of_tests_is_the_whole_table(grid, tmp_path):
    """Of seven recordings the least p is 2 / 2 ** 7; each suite alone has two tests."""
    more = write_report(
        tmp_path / "landscapes" / "b", {"m": [2.0] * 7, "n": [3.0] * 7}, suite="landscapes", suite_digest="l" * 64,
        model="/models/b",
    )  # fmt: skip
    alone, both = made(*grid, against="models/a"), made(*grid, more, against="models/a")
    fewer = made(*grid, more, against="models/a", metrics=["m"])

    assert [(each.family, cell_of(each, "models/b", suite="vegas").p_holm) for each in (alone, both, fewer)] == [
        (2, 2 * 2 / 2**7),
        (4, 4 * 2 / 2**7),
        (2, 2 * 2 / 2**7),
    ]
    assert cell_of(both, "models/b", "n", "landscapes").p_holm == 4 * 2 / 2**7
    assert (cell_of(alone, "models/b", suite="vegas").verdict, cell_of(both, "models/b", suite="vegas").verdict) == (
        "better",
        "no difference shown",
    )
    assert cell_of(made(*grid, more, against="models/a", alpha=0.07), "models/b", suite="vegas").verdict == "better"


@pytest.mark.parametrize(
    ("better", "shift", "verdict", "mark"),
    [("higher", 1, "better", " +"), ("higher", -1, "worse", " -"), ("lower", 1, "worse", " -"), ("lower", 0, "", "")],
)
def test_a_mark_says_which_way_a_difference_goes(tmp_path, better, shift, verdict, mark):
    noise = np.random.RandomState(5).standard_normal(24) * 0.1
    a = write_report(tmp_path / "a", {"m": RIGHT.tolist()}, changed={"better": better})
    b = write_report(tmp_path / "b", {"m": (RIGHT + shift + noise).tolist()}, changed={"better": better})
    found = made(a, b, against="models/a")

    assert cell_of(found, "models/b").verdict == (verdict or "no difference shown")
    text = table_markdown(found)
    (line,) = (line for line in text.splitlines() if line.startswith("| m "))
    assert line.endswith(f"\\]{mark} |")
    assert f"| m {'↑' if better == 'higher' else '↓'}" in text
    assert rf"\texttt{{m}} {ARROWS[better]}" in table_latex(found)


def test_a_difference_of_few_recordings_says_what_it_cannot_show(tmp_path):
    a, b = (write_report(tmp_path / name, {"m": [float(n), n + 1.0, n + 2.0]}) for n, name in enumerate("ab"))
    found = made(a, b, against="models/a")
    assert "3 recordings cannot show any at 0.05" in notes_of(found, cell_of(found, "models/b").notes)


def test_without_a_chosen_model_there_are_no_differences_and_every_form_says_so(grid):
    found = made(*grid)
    assert (found.against, found.family) == (None, 0)
    assert all(not cell.verdict for suite in found.suites for column in suite.columns for cell in column.cells)
    for text in (table_html(found), table_markdown(found), table_latex(found)):
        assert "No differences: no model was chosen" in text


@pytest.mark.parametrize(
    ("floor", "better", "is_at"),
    [
        (-9.0, "higher", False),
        (9.0, "higher", True),
        (9.0, "lower", False),
        (-9.0, "lower", True),
        (0.1, "lower", True),
    ],
)
def test_a_mean_that_does_not_clear_its_floor_is_marked(tmp_path, floor, better, is_at):
    a = write_report(tmp_path / "a", {"m": RIGHT.tolist()}, changed={"beside": {"floor": floor}, "better": better})
    found = made(a)
    assert cell_of(found, "models/a").at_floor is is_at
    assert ("no better than its floor" in table_html(found)) is is_at


def test_floors_of_several_kinds_and_other_numbers_of_pictures_are_footnotes(tmp_path):
    replicates = [5.0, 5.1, 5.2]
    one, other = (
        distance_score("fid", 5.0, replicates, images=images, beside=beside)
        for images, beside in (
            (24, {"floor_at_fewer": 1.0, "value_at_fewer": 6.0, "floor_images": 8.0}),
            (8, {"floor": 1.0, "floor_images": 8.0}),
        )
    )
    a = write_report(tmp_path / "a", {"m": RIGHT.tolist()}, scores=[one], changed={"beside": {"floor": -9.0}})
    b = write_report(
        tmp_path / "b", {"m": RIGHT.tolist()}, scores=[other], changed={"beside": {"floor": -9.0}, "images": 8}
    )
    found = made(a, b)

    fid, mean = found.suites[0].columns
    assert notes_of(found, fid.notes) == [
        "a distance depends on the number of pictures: models/a 24, models/b 8; differences are of the pictures that"
        " both have",
        "floors are not alike: models/a floor_at_fewer of 8 pictures, models/b floor of 8 pictures",
    ]
    assert not mean.notes
    assert cell_of(found, "models/a", "fid").floor == "1, of 6 at n = 8"
    assert not cell_of(found, "models/a", "fid").at_floor


@pytest.mark.parametrize("left_out", ["value_at_fewer", "floor_images"])
def test_a_floor_of_fewer_pictures_without_what_it_is_read_by_is_refused(tmp_path, left_out):
    beside = {"floor_at_fewer": 1.0, "value_at_fewer": 6.0, "floor_images": 8.0}
    del beside[left_out]
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0]}, changed={"beside": beside})
    with pytest.raises(InputError, match=r"report.json: m: a floor of fewer pictures without the value at as many"):
        made(a)


def test_two_models_of_one_name_are_told_apart(tmp_path):
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0]}, model="theirs", model_sha256="1" * 64)
    b = write_report(tmp_path / "b", {"m": [1.0, 2.0]}, model="theirs", model_sha256="2" * 64)
    c = write_report(tmp_path / "c", {"m": [1.0, 2.0]}, model="/one/runs/ours")
    d = write_report(tmp_path / "d", {"m": [1.0, 2.0]}, model="/two/runs/ours")

    found = made(a, b, c, d)
    assert [line.name for line in found.lines] == [
        "theirs (111111111111)",
        "theirs (222222222222)",
        "/one/runs/ours",
        "/two/runs/ours",
    ]
    assert made(a, c).lines[1].name == "runs/ours"
    assert [line.name for line in made(a, b, c, names=["", "mine", "theirs"]).lines] == [
        "theirs (111111111111)",
        "mine",
        "theirs",
    ]
    with pytest.raises(InputError, match="several models are called 'theirs'"):
        made(a, b, against="theirs")
    assert made(a, b, c, against="/one/runs/ours").against == "runs/ours"


def test_pictures_that_were_taken_as_they_are_go_by_their_name_on_every_suite(tmp_path):
    """What is known of such a model is a digest of its pictures, another on each suite."""
    settings = {"kind": "outside", "command": []}
    a, b = (
        write_report(tmp_path / suite, {"m": [1.0, 2.0]}, suite=suite, model="theirs", model_sha256=suite[0] * 64,
                     settings=settings)
        for suite in ("dogs", "cats")
    )  # fmt: skip
    found = made(a, b)
    assert [(line.name, sorted(line.reports)) for line in found.lines] == [("theirs", ["cats", "dogs"])]
    assert set(found.lines[0].model_sha256.values()) == {"d" * 64, "c" * 64}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reports", "--out", "t"], "argument --reports: expected at least one argument (see --help)"),
        (["--out", "t"], "expected --reports"),
        (["--reports", "gone", "--out", "t"], "report.json: cannot be read (No such file or directory)"),
        (["--reports", "a", "a/../a", "--out", "t"], "expected different reports, found a/../a twice"),
        (["--reports", "a", "again", "--out", "t"], "is a second report of models/a on landscapes, beside "),
        (["--reports", "a", "old", "--out", "t"], "expected version 1, found 0; run `python -m eval.run` again"),
        (["--reports", "a", "b", "--against", "c", "--out", "t"], "--against: no model is called 'c'"),
        (["--reports", "a", "b", "--against", "models/bb", "--out", "t"], "did you mean models/b?"),
        (["--reports", "x=a", "x=b", "--out", "t"], "x is given to reports of two models: "),
        (["--reports", "=a", "--out", "t"], "expected NAME=REPORT, found the name ''"),
        (["--reports", "a", "--metrics", "mm", "--out", "t"], "--metrics: no report has the score 'mm'"),
        (["--reports", "a", "--alpha", "1", "--out", "t"], "--alpha: expected a number between 0 and 1, found 1.0"),
        (["--reports", "a", "--seed", "-1", "--out", "t"], "--seed: expected 0 or more, found -1"),
        (["--reports", "a", "--out", "b"], "--out b: is a report's folder; choose another place"),
        (["--reports", "a", "--out", "model"], "model: holds something else than a table (such as 'model_index.json')"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0]})
    write_report(tmp_path / "b", {"m": [1.0, 2.0]}, model_sha256="c" * 64)
    write_report(tmp_path / "again", {"m": [1.0, 2.0]}, model="/models/a")
    write_report(tmp_path / "old", {"m": [1.0, 2.0]}, version=0)
    assert a.is_dir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    try:
        code = run(*words)
    except SystemExit as ended:  # the parser's own
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "t").exists()


def test_a_folder_whose_name_has_an_equals_sign_is_a_folder(tmp_path, monkeypatch):
    write_report(tmp_path / "cfg=4", {"m": [1.0, 2.0]})
    monkeypatch.chdir(tmp_path)
    assert table.read_given("cfg=4").name == ""
    assert table.read_given("four=cfg=4").name == "four"


class Checked(HTMLParser):
    """Counts the cells of each row, and which elements there are."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append(0)
        elif tag in ("td", "th"):
            self.rows[-1] += int(dict(attrs).get("colspan") or 1)


def test_names_of_others_steer_no_form(tmp_path, capsys):
    evil = "\x1b[2J[x] & y_%$#{}~^\\ | `z` <script>alert(1)</script>\n# \u202e"
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0]}, model=evil, suite=evil)
    b = write_report(tmp_path / "b", {"m": [1.0, None]}, suite=evil, model="[b]")
    assert run("--reports", a, b, "--out", tmp_path / "t") == 0

    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    html, markdown, latex = ((tmp_path / "t" / f"table.{end}").read_text() for end in ("html", "md", "tex"))
    assert not any(sign in form for form in (html, markdown, latex) for sign in ("\x1b", "\u202e"))
    checked = Checked()
    checked.feed(html)
    assert "script" not in checked.tags
    assert set(checked.rows) == {3}
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert {line.replace("\\|", "").count("|") for line in rows} == {4}
    assert not any(line.startswith("# ") for line in markdown.splitlines())
    assert "<script" not in markdown.replace("\\<", "")
    rows = [line for line in latex.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {2}
    assert all(not line.startswith("[") for line in rows)
    assert r"\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in latex


def test_the_command_writes_five_forms_the_same_each_time(grid, tmp_path, capsys):
    words = ["--reports", *grid, "--against", "models/a"]
    assert [run(*words, "--out", tmp_path / out) for out in ("one", "two")] == [0, 0]

    said = capsys.readouterr().out
    assert "+ better and - worse than models/a" in said
    assert "adjusted by Holm for the 2 tests of the table" in said
    assert tuple(sorted(path.name for path in (tmp_path / "one").iterdir())) == FORMS
    for name in FORMS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    record = json.loads((tmp_path / "one" / "table.json").read_text())
    assert (record["version"], record["against"], record["family"]) == (1, "models/a", 2)
    cell = record["suites"][0]["columns"][0]["cells"][1]
    assert (cell["model"], cell["value"], cell["difference"]["value"], cell["verdict"]) == (
        "models/b", 2.0, 1.0, "better",
    )  # fmt: skip


def test_random_judges_are_said_first_in_every_form(tmp_path):
    towers = {"clip_b32": f"{random.NAME}: seed 0"}
    found = made(write_report(tmp_path / "a", {"m": [1.0, 2.0]}, towers=towers))
    warning = "landscapes: random projections judge nothing: clip_b32"
    assert found.suites[0].warnings == ("random projections judge nothing: clip_b32",)
    assert table_latex(found).startswith(f"% {warning}\n")
    escaped = warning.replace("_", "\\_")
    assert table_markdown(found).startswith(f"**{escaped}**\n")
    assert f'<p class="warn">{warning}</p>' in table_html(found)


def test_a_note_is_said_above_the_table_in_every_form(grid, tmp_path, capsys):
    assert run("--reports", *grid, "--note", "nothing but\nplumbing", "--out", tmp_path / "t") == 0
    assert "\nnothing but plumbing\n" in capsys.readouterr().out
    latex, markdown, html = ((tmp_path / "t" / f"table.{end}").read_text() for end in ("tex", "md", "html"))
    assert latex.startswith("% nothing but plumbing\n")
    assert markdown.startswith("**nothing but plumbing**\n")
    assert '<p class="warn">nothing but plumbing</p>' in html


def test_the_table_of_real_reports(tmp_path: Path, capsys):
    """The references against a shuffle of them, from pictures to the table; without one picture distances are computed
    again on those that both have."""
    towers = {role: {"kind": "random", "width": 8} for role in ("inception", "clip_b32")}
    metrics = ["kid", "iis_cosine"]
    make_suite(tmp_path, 12, [f"label {n}" for n in range(6)], others=2, towers=towers, metrics=metrics)
    for name in ("references", "shuffled"):
        words = ["--suite", str(tmp_path / "suite"), "--out", str(tmp_path / "made" / name)]
        assert baseline(["--recipe", name, *words]) == 0
    (tmp_path / "made" / "shuffled" / "images" / "s003-0.png").write_bytes(b"cut")
    for name in ("references", "shuffled"):
        words = ["--suite", str(tmp_path / "suite"), "--manifest", str(tmp_path / "made" / name)]
        assert judge([*words, "--out", str(tmp_path / "reports" / name)]) == 0
    reports = [tmp_path / "reports" / name for name in ("references", "shuffled")]
    record = reports[1] / "report.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"model": "theirs", "settings": {"kind": "outside"}}))
    assert run("--reports", *reports, "--against", "references", "--out", tmp_path / "t") == 0

    capsys.readouterr()
    columns = json.loads((tmp_path / "t" / "table.json").read_text())["suites"][0]["columns"]
    kid, iis = ({cell["model"]: cell for cell in column["cells"]} for column in columns)
    assert (iis["references"]["value"], iis["theirs"]["verdict"]) == (
        pytest.approx(1), "not tested: random projections judge nothing",
    )  # fmt: skip
    assert iis["theirs"]["at_floor"]
    assert not iis["references"]["at_floor"]
    assert (kid["theirs"]["images"], kid["theirs"]["compared_items"]) == (11, 11)
    assert kid["theirs"]["difference"]["method"] == "jackknife"

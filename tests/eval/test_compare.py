import csv
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from eval import compare
from eval.baseline import main as baseline
from eval.compare import compare_reports, print_comparison, write_comparison
from eval.report import read_side
from eval.run import main as judge
from eval.statistics import jackknife
from sonify.errors import InputError
from tests.eval.reports_built import SHA, distance_score, mean_score, write_report
from tests.eval.suites_built import make_suite


def sides(*folders):
    return [read_side(folder) for folder in folders]


def run(*words):
    return compare.main([str(word) for word in words])


RIGHT = np.random.RandomState(0).standard_normal(24).tolist()


@pytest.fixture
def golden():
    """The per-recording differences of `statistics.json`: p = .552734375 by counting all flips."""
    return [
        *(-0.019075267378861692, 0.004393573026841291, 0.008115236642621683, 0.005150502299688484),
        *(0.00351007783958774, 0.004786662649390025, 0.0036563180788584115, -0.0021472128217046305),
        *(0.0038753775564529525, -0.002774733535714037, 0.004967332189052223, 0.0026963779582754796),
    ]


def test_the_difference_of_two_models_is_that_of_their_recordings(tmp_path, golden):
    """Each recording has as many items as it likes: it counts once."""
    sizes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 5, 5]
    recordings = [f"r{r}" for r, size in enumerate(sizes) for _ in range(size)]
    base = np.random.RandomState(1).standard_normal(len(recordings))
    more = base + np.repeat(golden, sizes)
    a = write_report(tmp_path / "a", {"ais_cosine": base.tolist()}, recordings=recordings)
    b = write_report(tmp_path / "b", {"ais_cosine": more.tolist()}, recordings=recordings)

    (row,) = compare_reports(sides(a, b)).rows

    assert row.difference is not None
    assert row.difference.value == pytest.approx(0.0014295203753739941)
    assert row.difference.p == 0.552734375
    assert row.difference.low == pytest.approx(-0.003, abs=3e-4)
    assert row.difference.high == pytest.approx(0.0044, abs=3e-4)
    assert (row.items, row.recordings, row.verdict) == (60, 12, "no difference shown")


def test_swapping_the_models_turns_the_sign_and_not_the_p(tmp_path):
    other = (np.array(RIGHT) + np.random.RandomState(3).standard_normal(24) * 0.5 + 0.2).tolist()
    replicates = np.random.RandomState(4).standard_normal((2, 20)) * 0.01 + 5
    fid_a, fid_b = (distance_score("fid", 5 + n * 0.1, replicates[n].tolist()) for n in range(2))
    a = write_report(tmp_path / "a", {"ais_cosine": RIGHT}, scores=[fid_a])
    b = write_report(tmp_path / "b", {"ais_cosine": other}, scores=[fid_b])

    one, two = compare_reports(sides(a, b)), compare_reports(sides(b, a))

    for row, turned in zip(one.rows, two.rows, strict=True):
        assert row.difference is not None
        assert turned.difference is not None
        assert row.difference.value == pytest.approx(-turned.difference.value)
        assert row.difference.p == turned.difference.p
        assert (row.value_a, row.value_b) == (turned.value_b, turned.value_a)
    assert {row.metric: row.difference.value > 0 for row in one.rows if row.difference} == {
        "ais_cosine": True,
        "fid": True,
    }


@pytest.mark.parametrize(
    ("better", "shift", "verdict"),
    [("higher", 1, "B better"), ("higher", -1, "A better"), ("lower", 1, "A better"), ("lower", 0, "no difference")],
)
def test_what_is_shown_says_which_is_better(tmp_path, better, shift, verdict):
    noise = np.random.RandomState(5).standard_normal(24) * 0.1
    a = write_report(tmp_path / "a", {"m": RIGHT}, changed={"better": better})
    b = write_report(tmp_path / "b", {"m": (np.array(RIGHT) + shift + noise).tolist()}, changed={"better": better})

    (row,) = compare_reports(sides(a, b)).rows

    assert row.verdict.startswith(verdict)


def test_p_are_adjusted_over_all_metrics_and_all_pairs(tmp_path):
    """Four tests of least p = 2 / 2 ** 7 = 0.0156: each is shown alone, and none of four."""
    one = {"m": [1.0] * 7, "n": [1.0] * 7}
    two = {"m": [2.0] * 7, "n": [2.0] * 7}
    a, b, c = (write_report(tmp_path / name, values) for name, values in (("a", one), ("b", two), ("c", two)))

    pair, family = compare_reports(sides(a, b)), compare_reports(sides(a, b, c))

    assert [row.p_holm for row in pair.rows] == [0.03125] * 2
    assert [(row.metric, row.b, row.p_holm) for row in family.rows] == [
        ("m", "B", 0.0625),
        ("n", "B", 0.0625),
        ("m", "C", 0.0625),
        ("n", "C", 0.0625),
    ]
    assert ({row.verdict for row in pair.rows}, {row.verdict for row in family.rows}) == (
        {"B better"},
        {"no difference shown"},
    )
    assert {row.verdict for row in compare_reports(sides(a, b, c), alpha=0.07).rows} == {"B better", "C better"}


def test_only_items_that_both_have_are_compared_and_the_others_counted(tmp_path):
    values = [1.0, None, 1.0, None, 2.0, 3.0]
    others = [2.0, 9.0, 2.0, 5.0, None, None]
    a = write_report(tmp_path / "a", {"m": values}, images=[2, 0, 2, 2, 2, 2])
    b = write_report(tmp_path / "b", {"m": others}, images=[2, 2, 2, 2, 0, 2])

    found = compare_reports(sides(a, b))

    (pair,), (row,) = found.pairs, found.rows
    assert (pair.common, pair.only_a, pair.only_b) == (4, 1, 1)
    assert (row.items, row.value_a, row.value_b) == (2, 1.0, 2.0)  # of item 3 there is no sound, of item 5 no value


@pytest.fixture
def distances():
    replicates = np.random.RandomState(6).standard_normal(20) * 0.01 + 5
    return distance_score("fid", 5.0, replicates.tolist()), distance_score("fid", 6.0, (replicates + 1).tolist())


def test_distances_go_by_the_jackknife_of_their_difference(tmp_path, distances):
    """Both move together from group to group: the difference is sure where each is not."""
    a = write_report(tmp_path / "a", {"m": RIGHT}, scores=[distances[0]])
    b = write_report(tmp_path / "b", {"m": RIGHT}, scores=[distances[1]])

    fid, mean = compare_reports(sides(a, b)).rows

    assert fid.difference is not None
    assert (fid.value_a, fid.value_b, fid.difference.value) == (5.0, 6.0, 1.0)
    assert fid.difference.method == "jackknife"
    assert fid.difference.standard_error == pytest.approx(0, abs=1e-9)
    assert fid.verdict == "A better"
    assert (mean.p_holm, mean.verdict) == (1.0, "no difference shown")


def test_of_other_items_distances_are_computed_on_the_common_ones(tmp_path, distances):
    asked = []

    def computed(side, other, items):
        assert other.folder != side.folder
        asked.append((side.folder.name, sorted(items)))
        return {"fid": jackknife(*{"a": (1.0, [1, 1.1, 1.2]), "b": (3.0, [3, 3.1, 3.2])}[side.folder.name])}

    a = write_report(tmp_path / "a", {"m": [1.0, 1.0, 1.0]}, scores=distances[:1], images=[2, 2, 2])
    b = write_report(tmp_path / "b", {"m": [1.0, 1.0, None]}, scores=distances[1:], images=[2, 2, 0])

    (fid, _) = compare_reports(sides(a, b), distances=computed).rows
    (without, _) = compare_reports(sides(a, b)).rows

    assert asked == [("a", ["item 0", "item 1"]), ("b", ["item 0", "item 1"])]
    assert (fid.value_a, fid.value_b, fid.items, fid.recordings) == (1.0, 3.0, 2, 2)
    assert (without.verdict, without.difference, without.value_a) == ("not compared", None, None)
    assert "other items" in without.note


def test_what_hinders_a_distance_leaves_the_means_compared(tmp_path, distances):
    def gone(side, other, items):
        raise InputError("the suite is not there any more")

    a = write_report(tmp_path / "a", {"m": RIGHT[:3]}, scores=distances[:1])
    b = write_report(tmp_path / "b", {"m": [*RIGHT[:2], None]}, scores=distances[1:], images=[1, 1, 0])

    fid, mean = compare_reports(sides(a, b), distances=gone).rows

    assert (fid.difference, fid.note) == (None, "on the common items it cannot be had: the suite is not there any more")
    assert mean.difference is not None


@pytest.mark.parametrize(
    ("found", "note"),
    [({"fid": "it takes ten images"}, "it takes ten images"), ({}, "on the common items it is not computed")],
)
def test_a_distance_without_a_value_on_the_common_items_says_why(tmp_path, distances, found, note):
    a = write_report(tmp_path / "a", {"m": RIGHT[:2]}, scores=distances[:1])
    b = write_report(tmp_path / "b", {"m": [RIGHT[0], None]}, scores=distances[1:], images=[1, 0])

    fid, _ = compare_reports(sides(a, b), distances=lambda *_: found).rows

    assert (fid.value_a, fid.note) == (None, note)


def test_distances_of_unequal_numbers_of_images_are_never_compared(tmp_path, distances):
    a = write_report(tmp_path / "a", {"m": RIGHT}, scores=distances[:1], images=4)
    b = write_report(tmp_path / "b", {"m": RIGHT}, scores=distances[1:], images=1)

    fid, mean = compare_reports(sides(a, b)).rows

    assert (fid.verdict, fid.difference) == ("not compared", None)
    assert fid.note == "a distance depends on the number of images, A has 96 of the common items and B 24"
    assert mean.difference is not None


@pytest.mark.parametrize(
    ("replicates", "note"),
    [((), "no replicates"), ((1.0, 2.0, 3.0), "found 3 and 20")],
)
def test_a_distance_whose_error_is_not_known_is_not_tested(tmp_path, distances, replicates, note):
    a = write_report(tmp_path / "a", {"m": RIGHT}, scores=distances[:1])
    b = write_report(tmp_path / "b", {"m": RIGHT}, scores=[distance_score("fid", 5.0, replicates)])

    found = compare_reports(sides(a, b))

    assert found.rows[0].difference is None
    assert note in found.rows[0].note
    assert found.family == 1


def test_rounding_is_no_difference(tmp_path):
    """As of the references by two seeds: the same pictures, added up in another order."""
    noise = 1e-15 * np.arange(1, 21)
    summed = (9e-15 + 1e-17 * np.arange(20)).tolist()  # each sure to be the larger, if it were a difference
    values = [distance_score("fid", 1e-15, [1e-15] * 20), distance_score("fid", 9e-15, summed)]
    a = write_report(tmp_path / "a", {"m": [1.0] * 20}, scores=values[:1])
    b = write_report(tmp_path / "b", {"m": (1 + noise).tolist()}, scores=values[1:])

    found = compare_reports(sides(a, b))

    assert [(row.p_holm, row.verdict) for row in found.rows] == [(1.0, "no difference shown")] * 2


def test_a_metric_that_one_lacks_is_named_and_not_compared(tmp_path):
    a = write_report(tmp_path / "a", {"m": RIGHT, "only_a": RIGHT, "silent": RIGHT})
    b = write_report(tmp_path / "b", {"m": RIGHT, "silent": [None] * 24, "only_b": RIGHT})

    found = compare_reports(sides(a, b))

    assert [(row.metric, row.verdict, row.note) for row in found.rows] == [
        ("m", "no difference shown", ""),
        ("only_a", "not compared", "B was not judged by it"),
        ("silent", "not compared", "B has no value: no sound of it can be heard"),
        ("only_b", "not compared", "A was not judged by it"),
    ]
    assert found.family == 1


def test_one_recording_gives_no_p(tmp_path):
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0]}, recordings=["one", "one"])
    b = write_report(tmp_path / "b", {"m": [2.0, 2.0]}, recordings=["one", "one"])

    found = compare_reports(sides(a, b))

    (row,) = found.rows
    assert row.difference is not None
    assert (row.difference.value, row.difference.p, row.p_holm, found.family) == (0.5, None, None, 0)
    assert row.verdict == "not compared"
    assert "two recordings" in row.note


def test_few_recordings_are_said_to_be_too_few(tmp_path):
    """Of five the least p is 2 / 2 ** 5 = 0.0625."""
    a = write_report(tmp_path / "a", {"m": [1.0] * 5})
    b = write_report(tmp_path / "b", {"m": [2.0] * 5})

    (row,) = compare_reports(sides(a, b)).rows

    assert row.difference is not None
    assert (row.difference.p, row.verdict) == (0.0625, "no difference shown")
    assert row.note == "5 recordings cannot show any at 0.05"


def test_six_recordings_could_show_a_difference(tmp_path):
    a = write_report(tmp_path / "a", {"m": [1.0] * 6})
    b = write_report(tmp_path / "b", {"m": [2.0, 0.0] * 3})

    (row,) = compare_reports(sides(a, b)).rows

    assert (row.p_holm, row.verdict) == (1.0, "no difference shown")
    assert "cannot show" not in row.note


HALF = ["out"] * 12 + ["audio"] * 12


def test_items_that_neither_model_can_have_met_are_compared_as_well(tmp_path, capsys):
    """Model B is better where it has heard the sounds, and on the others it is not."""
    more = [value + (level != "out") for value, level in zip(RIGHT, HALF, strict=True)]
    a = write_report(tmp_path / "a", {"m": RIGHT}, levels=["out"] * 24)
    b = write_report(tmp_path / "b", {"m": more}, levels=HALF)

    assert run(a, b, "--out", tmp_path / "out") == 0

    assert "; 12 of them out of what either can have met" in capsys.readouterr().out
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        whole, out = csv.DictReader(file)
    assert (whole["on"], whole["items"], whole["verdict"]) == ("all", "24", "B better")
    assert (out["on"], out["items"], out["difference"], out["verdict"]) == ("out", "12", "0.0", "no difference shown")
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["pairs"][0]["out"] == 12


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        (["out"] * 24, "; 24 of them out of what either can have met"),
        (["in"] * 24, "; none of them out of what either can have met"),
        (["unknown"] * 24, "; which of them a model may have met is not known of both (eval.run --trained-on)"),
    ],
)
def test_where_no_part_of_the_items_is_out_it_is_said_and_not_compared_twice(tmp_path, capsys, levels, said):
    a = write_report(tmp_path / "a", {"m": RIGHT}, levels=["out"] * 24)
    b = write_report(tmp_path / "b", {"m": RIGHT}, levels=levels)

    assert run(a, b, "--out", tmp_path / "out") == 0

    assert said in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]) == 1


def test_distances_on_what_is_out_are_those_of_the_reports_where_both_are_of_the_same_items(tmp_path, distances):
    outs = [distance_score("fid", value, [value - 0.1, value + 0.1], on="out") for value in (2.0, 3.0)]
    a, b = (
        write_report(tmp_path / name, {"m": RIGHT}, levels=HALF, scores=[of_all, out])
        for name, of_all, out in zip("ab", distances, outs, strict=True)
    )
    c = write_report(tmp_path / "c", {"m": RIGHT}, levels=HALF[1:] + HALF[:1], scores=[distances[1], outs[1]])

    def computed(side, other, items):
        assert sorted(items) == sorted(f"item {n}" for n in range(11))
        return {"fid": jackknife(*{"a": (1.0, [1, 1.1]), "c": (4.0, [4, 4.1])}[side.folder.name])}

    rows = compare_reports(sides(a, b, c), distances=computed).rows
    found = [(row.b, row.on, row.value_a, row.value_b) for row in rows if row.metric == "fid"]
    assert found == [("B", "all", 5.0, 6.0), ("B", "out", 2.0, 3.0), ("C", "all", 5.0, 6.0), ("C", "out", 1.0, 4.0)]


def test_another_scale_of_a_score_is_shown_and_is_no_further_test(tmp_path):
    values = {"clip_score_cosine": [0.01] * 7, "clip_score_torchmetrics": [1.0] * 7}
    others = {"clip_score_cosine": [0.02] * 7, "clip_score_torchmetrics": [2.0] * 7}
    a, b = write_report(tmp_path / "a", values), write_report(tmp_path / "b", others)

    found = compare_reports(sides(a, b))
    alone = compare_reports(sides(a, b), metrics=["clip_score_torchmetrics"])

    assert [(row.verdict, row.p_holm) for row in found.rows] == [
        ("B better", 2**-6),
        ("copy of clip_score_cosine", None),
    ]
    assert found.rows[1].difference is not None
    assert (found.family, alone.family) == (1, 1)
    assert [(row.metric, row.verdict) for row in alone.rows] == [("clip_score_torchmetrics", "B better")]


def test_a_part_of_the_scores_is_a_family_of_its_own(tmp_path, capsys):
    """Of seven recordings the least p is 0.0156: of four tests none is shown."""
    values = dict.fromkeys("mnop", [1.0] * 7)
    a, b = write_report(tmp_path / "a", values), write_report(tmp_path / "b", dict.fromkeys("mnop", [2.0] * 7))

    assert run(a, b, "--metrics", "n", "m", "--out", tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert [(row["metric"], row["p_holm"], row["verdict"]) for row in rows] == [
        ("m", 2**-5, "B better"),
        ("n", 2**-5, "B better"),
    ]
    assert {row.verdict for row in compare_reports(sides(a, b)).rows} == {"no difference shown"}
    capsys.readouterr()
    assert run(a, b, "--metrics", "mm", "--out", tmp_path / "none") == 2
    assert "--metrics: no report has the score 'mm'" in capsys.readouterr().err


def test_an_interval_that_p_contradicts_is_marked(tmp_path, capsys):
    """Five of 24 recordings, all one way: as often as not none of them is drawn, and p = 2 / 2 ** 5."""
    a = write_report(tmp_path / "a", {"recall_at_1": [1.0] * 24})
    b = write_report(tmp_path / "b", {"recall_at_1": [0.0] * 5 + [1.0] * 19})

    assert run(a, b, "--out", tmp_path / "out") == 0

    assert "p decides (of means by flips of signs), not the interval" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert row["difference"]["high"] < 0
    assert row["difference"]["p"] == pytest.approx(2 / 2**5, abs=0.005)
    assert (row["verdict"], row["note"]) == (
        "no difference shown",
        "the interval leaves out 0 and p does not say so: p decides",
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"suite": "vegas"}, "suite is not"),
        ({"suite_digest": "c" * 64}, "digest of the suite landscapes"),
        ({"changed": {"definition": "another"}}, "definition of m"),
        ({"changed": {"better": "lower"}}, "definition of m"),
        ({"changed": {"towers": {**SHA, "clip_b32": "9" * 64}}}, "tower clip_b32 of m"),
        ({"changed": {"towers": {"wav2clip": "2" * 64}}}, "tower clip_b32 of m"),
        ({"changed": {"preprocessing": ("bilinear 299",)}}, "preprocessing of m"),
        ({"changed": {"sample_rate_hz": 44100}}, "sample rate of m"),
        ({"changed": {"pool_sha256": "9" * 64}}, "pool of m"),
        ({"recordings": [*(f"recording {i}" for i in range(23)), "another"]}, "recording of item 23"),
    ],
)
def test_reports_that_do_not_mean_the_same_are_refused(tmp_path, capsys, changes, what):
    a = write_report(tmp_path / "a", {"m": RIGHT})
    b = write_report(tmp_path / "b", {"m": RIGHT}, **changes)

    assert run(a, b, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{b}: its {what}" in said
    assert not (tmp_path / "out").exists()


def test_reports_without_a_common_item_are_refused(tmp_path, capsys):
    a = write_report(tmp_path / "a", {"m": [1.0, None]}, images=[1, 0])
    b = write_report(tmp_path / "b", {"m": [None, 1.0]}, images=[0, 1])

    assert run(a, b, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == (f"eval.compare: {b}: no item has an image here and in {a}; nothing to compare\n")


def change_json(**changes):
    def change(folder):
        report = json.loads((folder / "report.json").read_text())
        (folder / "report.json").write_text(json.dumps({**report, **changes}))

    return change


def change_items(before, after):
    def change(folder):
        text = (folder / "items.csv").read_text()
        assert before in text
        (folder / "items.csv").write_text(text.replace(before, after, 1))

    return change


def change_estimate(**changes):
    def change(folder):
        report = json.loads((folder / "report.json").read_text())
        report["scores"][0]["estimate"].update(changes)
        (folder / "report.json").write_text(json.dumps(report))

    return change


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "report.json").unlink(), "report.json: cannot be read (No such file or directory)"),
        (lambda folder: (folder / "items.csv").unlink(), "items.csv: cannot be read (No such file or directory)"),
        (cut("report.json"), "Invalid JSON"),
        (cut("items.csv"), "items.csv"),
        (change_json(scores=[{"metric": "m"}]), "scores.0.definition: "),
        (change_json(suite=None), "report.json: suite: "),
        (change_estimate(value=float("nan")), "report.json"),
        (change_estimate(replicates=[1.0, float("inf")]), "report.json"),
        (change_estimate(replicates=[1.0, 1e300]), "report.json: m: holds a number that no metric has"),
        (change_estimate(value=0.5), "not of one run, or changed"),
        (change_items("recording 3", "recording 2"), "not of one run, or changed"),
        (
            change_items("recording,group", "group,recording"),
            "expected the columns id,recording,group,labels,level,images",
        ),
        (change_items("images,m", "images,m,m"), "expected the columns"),
        (change_items("images,m", "images,n"), "has n, which report.json does not know"),
        (change_items(",1,1.0", ",1,one"), "line 2: could not convert string to float"),
        (change_items(",1,1.0", ",1,nan"), "line 2: m: expected a number or nothing, found nan"),
        (change_items(",1,1.0", ",-1,1.0"), "line 2: images: expected a whole number, found '-1'"),
        (change_items(",1,1.0", ",1,1.0,2"), "line 2: expected 7 cells, found 8"),
        (change_items("unknown,1,1.0", "Out,1,1.0"), "line 2: level: expected one of in, audio, out, unknown"),
        (change_items("item 3", "item 2"), "line 5: names 'item 2' twice"),
        (change_items("item 3", '"item 3'), "items.csv: "),
        (lambda folder: (folder / "items.csv").write_bytes(b"\xff\xfe"), "items.csv: cannot be read ("),
        (
            lambda folder: (folder / "items.csv").write_text("id,recording,group,labels,level,images,m\n"),
            "names no item",
        ),
        (lambda folder: (folder / "items.csv").write_text(""), "expected the columns"),
    ],
)
def test_a_damaged_report_is_refused_in_one_line(tmp_path, capsys, damage, said):
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0, 4.0, 9.0]})
    b = write_report(tmp_path / "b", {"m": [1.0, 2.0, 4.0, 9.0]})
    damage(b)

    assert run(a, b, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(b) in error
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_metric_named_twice_is_refused(tmp_path):
    a = write_report(tmp_path / "a", {"m": RIGHT}, scores=[mean_score("m", RIGHT, [str(i) for i in range(24)])])

    with pytest.raises(InputError, match="names a metric twice"):
        read_side(a)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "expected 2 to 26 reports, found 1"),
        (["a", "a/../a"], "expected different reports, found one given twice"),
        (["a", "b", "--alpha", "0"], "--alpha: expected a number between 0 and 1, found 0.0"),
        (["a", "b", "--alpha", "nan"], "--alpha: expected a number between 0 and 1, found nan"),
        (["a", "b", "--seed", "-1"], "--seed: expected 0 or more, found -1"),
    ],
)
def test_what_is_asked_wrongly_is_refused(tmp_path, monkeypatch, capsys, words, said):
    write_report(tmp_path / "a", {"m": RIGHT})
    write_report(tmp_path / "b", {"m": RIGHT})
    monkeypatch.chdir(tmp_path)

    assert run(*words, "--out", "out") == 2
    assert said in capsys.readouterr().err


def test_the_command_writes_both_tables_and_says_what_it_does_not_show(tmp_path, capsys, distances):
    a = write_report(tmp_path / "a", {"m": RIGHT}, scores=distances[:1])
    b = write_report(tmp_path / "b", {"m": RIGHT}, scores=distances[1:])

    codes = [run(a, b, "--out", tmp_path / out) for out in ("one", "two")]

    said = capsys.readouterr().out
    assert codes == [0, 0]
    assert "A and B: 24 items in common; which of them a model may have met is not known of both" in said
    assert "no difference shown" in said
    assert "which does not mean that there is none" in said
    for name in ("compare.json", "compare.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    found = json.loads((tmp_path / "one" / "compare.json").read_text())
    with (tmp_path / "one" / "compare.csv").open(newline="") as file:
        fid, mean = csv.DictReader(file)
    assert (fid["metric"], fid["difference"], fid["verdict"]) == ("fid", "1.0", "A better")
    assert (mean["a"], mean["b"], mean["p"], mean["p_holm"]) == ("A", "B", "1.0", "1.0")
    assert found["models"] == {"A": "/models/a", "B": "/models/b"}
    assert [row["metric"] for row in found["rows"]] == ["fid", "m"]
    assert (found["family"], found["alpha"]) == (2, 0.05)


def test_names_in_a_report_steer_neither_the_terminal_nor_the_table(tmp_path, capsys):
    a = write_report(tmp_path / "a", {"m": RIGHT}, model="\x1b[2Jone [bold]two[/bold]")
    b = write_report(tmp_path / "b", {"m": RIGHT})

    found = compare_reports(sides(a, b))
    write_comparison(found, tmp_path)
    print_comparison(found, Console(width=200, force_terminal=False))

    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "?[2Jone [bold]two[/bold]" in said


def test_items_left_out_are_said(tmp_path, capsys):
    a = write_report(tmp_path / "a", {"m": [1.0, 2.0, None]}, images=[1, 1, 0])
    b = write_report(tmp_path / "b", {"m": [1.0, 2.0, 3.0]})

    assert run(a, b, "--out", tmp_path / "out") == 0
    assert "A and B: 2 items in common; left out: 0 of A alone, 1 of B alone" in capsys.readouterr().out


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Reports of both controls on a suite of 12 sounds, and of the references without the picture of `s003`."""
    place = tmp_path_factory.mktemp("judged")
    towers = {role: {"kind": "random", "width": 8} for role in ("inception", "clip_b32", "dinov2", "wav2clip")}
    labels = [f"label {n}" for n in range(6)]
    make_suite(place, 12, labels, others=2, towers=towers, metrics=["fid", "kid", "prdc", "ais_cosine", "iis_cosine"])
    for control in ("references", "shuffled"):
        words = ["--recipe", control, "--suite", str(place / "suite"), "--out", str(place / "made" / control)]
        assert baseline(words) == 0
    shutil.copytree(place / "made" / "references", place / "made" / "one_less")
    (place / "made" / "one_less" / "images" / "s003-0.png").write_bytes(b"cut")
    for name in ("references", "shuffled", "one_less"):
        words = ["--suite", str(place / "suite"), "--manifest", str(place / "made" / name)]
        assert judge([*words, "--out", str(place / "reports" / name)]) == 0
    return place


def test_the_references_beat_a_shuffle_of_them_by_what_tells_them_apart(judged, tmp_path):
    reports = judged / "reports"

    assert run(reports / "shuffled", reports / "references", "--out", tmp_path) == 0

    found = {row["metric"]: row for row in json.loads((tmp_path / "compare.json").read_text())["rows"]}
    assert found["iis_cosine"]["verdict"] == "B better"
    assert found["iis_cosine"]["difference"]["p"] == 2 / 2**12
    # as sets of pictures they are the same
    assert found["fid_torch_fidelity"]["difference"]["value"] == pytest.approx(0, abs=1e-6)


def test_without_a_picture_the_distances_are_computed_again_from_the_vectors(judged, tmp_path, capsys):
    reports = judged / "reports"
    kept = read_side(reports / "references").scores

    assert run(reports / "references", reports / "one_less", "--out", tmp_path) == 0

    assert "11 items in common; left out: 1 of A alone, 0 of B alone" in capsys.readouterr().out
    found = {row["metric"]: row for row in json.loads((tmp_path / "compare.json").read_text())["rows"]}
    assert kept["kid"].estimate is not None
    assert found["kid"]["value_a"] != kept["kid"].estimate.value  # of 11 pictures, not of 12
    assert {
        (row["value_a"] == row["value_b"], row["items"], row["p_holm"])
        for row in found.values()
        if row["metric"] != "fid_infinity"
    } == {(True, 11, 1.0)}


def test_without_the_suite_the_means_are_compared_alone(judged, tmp_path):
    reports = shutil.copytree(judged / "reports", tmp_path / "reports")
    for name in ("references", "one_less"):
        change_json(suite_folder=str(tmp_path / "gone"))(reports / name)

    assert run(reports / "references", reports / "one_less", "--out", tmp_path / "out") == 0

    found = {row["metric"]: row for row in json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]}
    assert "on the common items it cannot be had: " in found["kid"]["note"]
    assert found["kid"]["difference"] is None
    assert found["ais_cosine"]["items"] == 11


def test_distances_are_not_computed_again_by_other_weights(judged, tmp_path):
    reports = shutil.copytree(judged / "reports", tmp_path / "reports")
    for name in ("references", "one_less"):
        text = (reports / name / "report.json").read_text()
        was = read_side(reports / name).scores["kid"].towers["inception"]
        (reports / name / "report.json").write_text(text.replace(was, "9" * 64))

    assert run(reports / "references", reports / "one_less", "--out", tmp_path / "out") == 0

    found = {row["metric"]: row for row in json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]}
    assert "has other weights than when the report was made" in found["kid"]["note"]

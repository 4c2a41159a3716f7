import json
import math

import numpy as np
import pytest

from sonify.config import ClapEncoder, Limit, Retrieval, TextEncoder
from sonify.errors import InputError
from sonify.retrieval.encoders import load_encoder
from sonify.retrieval.limits import (
    Calibration,
    QueryLimit,
    RiskRow,
    Trial,
    calibrate,
    figures,
    identify_limit,
    query_limit,
    read_calibrations,
    write_calibrations,
)


def trial(n, similarity, right, answerable, mean=0.0):
    return Trial(
        concept=f"concept {n}", similarity=similarity, mean=mean, deviation=0.1, right=right, answerable=answerable
    )


def make_trials(n=400, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    answerable = rng.random(n) < 0.5
    similarity = np.clip(0.4 + 0.25 * signal * answerable + 0.15 * rng.standard_normal(n), 0, 1)
    right = answerable & (rng.random(n) < 0.9)
    return [
        trial(i, float(s), float(r), bool(a))
        for i, (s, r, a) in enumerate(zip(similarity, right, answerable, strict=True))
    ]


def one_calibration(**changes):
    row = RiskRow(risk=0.05, probability=0.6, precision=0.9, kept=0.8, wrong_answers=0.04)
    fields = {"intercept": -4.0, "similarity": 6.0, "standing": 0.5, "risks": (row,)}
    return Calibration(**{"encoder": "mine", "table": "t.csv", "trials": 100, **fields, **changes})


def test_the_figures_count_every_concept():
    trials = [trial(0, 0.9, 1.0, True), trial(1, 0.9, 0.5, True), trial(2, 0.1, 1.0, True), trial(3, 0.9, 0.0, False)]
    found = figures([*trials, trial(4, 0.1, 0.0, False)], np.array([True, True, False, True, False]))
    assert (found.precision, found.kept, found.wrong_answers, found.draws) == (0.5, 0.5, 0.5, 3)


def test_the_limit_keeps_to_the_risk_on_concepts_that_it_never_saw():
    fitted = calibrate(make_trials(), "mine", "t.csv", risks=(0.02, 0.05, 0.2))
    fresh = make_trials(4000, seed=1)
    kept = []
    for row in fitted.risks:
        rule = QueryLimit(fitted, row)
        passed = np.array([t.similarity >= rule(t.mean, t.deviation) for t in fresh])
        found = figures(fresh, passed)
        assert found.wrong_answers <= row.risk + 0.02
        assert found.wrong_answers == pytest.approx(row.wrong_answers, abs=0.03)
        assert found.precision == pytest.approx(row.precision, abs=0.06)
        assert found.kept == pytest.approx(row.kept, abs=0.08)
        kept.append(found.kept)
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def test_the_figures_are_of_folds_that_the_map_was_not_fitted_on():
    """On the concepts that it was chosen by, a limit always keeps to its risk; on others it sometimes does not."""
    tables = [make_trials(80, seed=seed, signal=2.0) for seed in range(12)]
    found = [calibrate(trials, "mine", "t.csv", risks=(0.06,)).risks[0].wrong_answers for trials in tables]
    assert max(found) > 0.06


def test_nothing_is_let_through_that_is_likelier_wrong_than_right():
    fitted = calibrate(make_trials(), "mine", "t.csv", risks=(0.9,))
    assert fitted.risks[0].probability == 0.5


def test_a_slope_that_points_the_wrong_way_is_none():
    upside_down = [trial(n, 1 - t.similarity, t.right, t.answerable) for n, t in enumerate(make_trials())]
    fitted = calibrate(upside_down, "mine", "t.csv", risks=(0.05,))
    assert fitted.similarity == fitted.standing == 0
    assert QueryLimit(fitted, fitted.risks[0])(0.0, 0.1) == 2.0  # all or none, and these are not good enough


def test_calibrating_twice_gives_the_same_in_any_order():
    trials = make_trials()
    assert calibrate(trials, "mine", "t").risks == calibrate(trials[::-1], "mine", "t").risks


@pytest.mark.parametrize("answerable", [0, 5, 38])
def test_too_few_concepts_are_refused(answerable):
    trials = [trial(n, 0.5, 1.0, n < answerable) for n in range(40)]
    with pytest.raises(InputError, match=r"expected at least 20 concepts .* found \d+ and \d+: add concepts"):
        calibrate(trials, "mine", "t.csv")


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.1), (0.2, 0.05), (-0.1, 1.0)])
def test_the_limit_of_a_query_is_where_the_map_has_the_chance(mean, deviation):
    calibration = one_calibration()
    limit = QueryLimit(calibration, calibration.risks[0])(mean, deviation)
    value = -4.0 + 6.0 * limit + 0.5 * (limit - mean) / deviation
    assert 1 / (1 + math.exp(-value)) == pytest.approx(0.6)


def test_a_query_that_is_like_everything_has_a_higher_limit():
    calibration = one_calibration()
    rule = QueryLimit(calibration, calibration.risks[0])
    assert rule(0.3, 0.1) > rule(0.0, 0.1)


def test_a_pool_without_spread_has_a_limit_too():
    calibration = one_calibration()
    assert -1 <= QueryLimit(calibration, calibration.risks[0])(0.5, 0.0) <= 2


def test_what_is_written_is_read(tmp_path):
    ours = {"b": one_calibration(encoder="b"), "a": one_calibration(encoder="a")}
    write_calibrations(tmp_path / "limits.json", ours)
    assert read_calibrations(tmp_path / "limits.json") == ours
    assert [entry["encoder"] for entry in json.loads((tmp_path / "limits.json").read_text())["calibrations"]] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"[]", b"{}", b'{"calibrations": 3}', b'{"calibrations": [{}]}', b"\xff\xfe", b"[" * 100_000,
        b'{"calibrations": [{"encoder": "a"}]}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    (tmp_path / "limits.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"^retrieval\.limit\.calibration: .*limits\.json: expected what") as refused:
        read_calibrations(tmp_path / "limits.json")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("similarity", -1.0),
        ("similarity", "6"),
        ("standing", None),
        ("trials", "x"),
        ("intercept", float("nan")),
        ("risks", [{}]),
    ],
)
def test_a_field_of_the_wrong_sort_is_refused(tmp_path, field, value):
    write_calibrations(tmp_path / "limits.json", {"mine": one_calibration()})
    raw = json.loads((tmp_path / "limits.json").read_text())
    raw["calibrations"][0][field] = value
    (tmp_path / "limits.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="expected what"):
        read_calibrations(tmp_path / "limits.json")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read: No such file"):
        read_calibrations(tmp_path / "none.json")


def test_an_encoder_that_nobody_calibrated_is_refused_with_the_command():
    with pytest.raises(InputError, match=r"no calibration of the encoder clap-1.*python -m eval\.pairing --calibrate"):
        query_limit(Limit(), "clap-1")


def test_a_smaller_risk_than_any_is_refused(tmp_path):
    write_calibrations(tmp_path / "limits.json", {"mine": one_calibration()})
    with pytest.raises(InputError, match=r"holds the risks 0\.05, expected one of them or more"):
        query_limit(Limit(risk=0.01, calibration=tmp_path / "limits.json"), "mine")


def test_between_two_risks_the_smaller_acts(tmp_path):
    rows = tuple(
        RiskRow(risk=r, probability=p, precision=0.9, kept=0.8, wrong_answers=r) for r, p in ((0.02, 0.9), (0.1, 0.6))
    )
    write_calibrations(tmp_path / "limits.json", {"mine": one_calibration(risks=rows)})
    rule = query_limit(Limit(risk=0.05, calibration=tmp_path / "limits.json"), "mine")
    assert rule is not None
    assert rule.row.risk == 0.02


def test_the_text_encoder_has_a_limit_by_default_and_no_other_has():
    assert Retrieval().limit == Limit(risk=0.05)
    assert Retrieval(encoder=TextEncoder(kind="text", matching="words")).limit is None
    assert Retrieval(encoder=ClapEncoder(kind="clap")).limit is None
    assert Retrieval(limit=None).limit is None


@pytest.mark.parametrize("matching", ["kinds", "words"])
def test_what_ships_is_of_the_encoders_that_ship(matching):
    encoder = load_encoder(TextEncoder(kind="text", matching=matching)).identity
    rule = query_limit(Limit(), encoder)
    assert rule is not None
    assert rule.row.wrong_answers <= 0.06
    assert len(identify_limit(Limit(), encoder)) == 64
    assert identify_limit(Limit(), encoder) != identify_limit(Limit(risk=0.02), encoder)

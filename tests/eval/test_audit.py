"""A metric that hears is told from one that does not, whatever its scale, and one that nobody could audit is named."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.audit import NULL, OTHER_LABEL, OTHER_RECORDING, Audit, as_csv, audit, draw, main, verdicts
from eval.pictures import Made, Picture
from eval.suites.suite import Suite
from tests.builders import picture, refused
from tests.eval.made_built import make_made
from tests.eval.suites_built import make_suite

LABELS = ("dog", "rain", "train", "cat")
SEEDS = 2


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Twenty-four sounds of four labels, each its own recording."""
    return make_suite(tmp_path_factory.mktemp("audit"), 24, LABELS)


@pytest.fixture(scope="module")
def made(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two pictures of each."""
    pictures = {
        item.id: [picture(100 * n + seed, image_format="PNG") for seed in range(SEEDS)]
        for n, item in enumerate(suite.items)
    }
    return make_made(suite, tmp_path_factory.mktemp("made") / "folder", pictures)


def shown(one: Picture) -> int:
    """Which item a picture was made for: its file says so."""
    return int(one.path.name[1:4])


def noise(one: Picture, spread: float = 1.0) -> float:
    return float(np.random.default_rng([shown(one), one.seed]).normal(0, spread))


def label_of(number: int) -> int:
    return number % len(LABELS)


def scorer(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
    """`hears` knows the very sound, `class` its label; `deaf` sees the picture alone; `wrong` prefers others."""
    given = [int(one.item.id[1:]) for one in pictures]
    same = np.array([float(shown(one) == number) for one, number in zip(pictures, given, strict=True)])
    alike = np.array(
        [float(label_of(shown(one)) == label_of(number)) for one, number in zip(pictures, given, strict=True)]
    )
    noises = np.array([noise(one, 0.1) for one in pictures])
    return {"hears": same + noises, "class": alike + noises, "deaf": noises, "wrong": -same + noises}


def finding(found: Audit, metric: str, control: str = OTHER_LABEL):
    (one,) = [one for one in found.findings if (one.metric, one.control) == (metric, control)]
    return one


@pytest.fixture(scope="module")
def found(suite: Suite, made: Made) -> Audit:
    return audit(suite, [made], scorer)


def test_what_hears_tells_and_what_sees_only_the_picture_does_not(found: Audit):
    assert verdicts(found) == {
        "hears": "tells", "class": "tells", "deaf": "does not tell", "wrong": "does not tell"
    }  # fmt: skip
    hears = finding(found, "hears")
    assert hears.difference.value == pytest.approx(1, abs=0.1)
    assert hears.share.value == 1.0
    assert hears.p_holm is not None
    assert hears.p_holm < 0.001
    assert finding(found, "wrong").difference.high is not None
    assert finding(found, "wrong").share.value < 0.1


def test_pictures_of_like_sounds_are_harder_to_tell_than_those_of_other_labels(found: Audit):
    """`class` cannot tell a picture of the same label: among all recordings there are some, among other labels none."""
    primary, shuffled = finding(found, "class"), finding(found, "class", OTHER_RECORDING)
    assert shuffled.difference.value < primary.difference.value - 0.05
    assert primary.wrong == pytest.approx(0, abs=0.1)
    assert shuffled.verdict == ""
    assert primary.verdict == "tells"


def test_a_wrong_score_is_that_of_a_picture_of_another_label_held_against_the_items_sound(suite: Suite, made: Made):
    asked: list[tuple[str, str]] = []

    def watching(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
        asked.extend((one.item.id, one.donor) for one in pictures if one.donor)
        return {"none": np.zeros(len(pictures))}

    audit(suite, [made], watching, draws=2)
    labels = {item.id: item.labels for item in suite.items}
    primary, shuffled = asked[: 2 * SEEDS * 24], asked[2 * SEEDS * 24 :]
    assert all(labels[item] != labels[donor] for item, donor in primary)
    assert all(item != donor for item, donor in shuffled)
    assert any(labels[item] == labels[donor] for item, donor in shuffled)
    assert len(set(primary)) > 24  # the permutations differ


@pytest.mark.parametrize(("recordings", "said"), [(4, "too few recordings to say"), (12, "does not tell")])
def test_of_many_metrics_that_are_noise_none_tells(suite: Suite, made: Made, recordings: int, said: str):
    """By intervals that lie above 0 some would: each is a test of its own, and of few recordings they are narrow."""
    noises = np.random.default_rng(0).normal(size=(60, 24, 24))

    def deaf(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
        cells = [shown(one) for one in pictures], [int(one.item.id[1:]) for one in pictures]
        return {f"noise {n}": of_both[cells] for n, of_both in enumerate(noises)}

    kept = suite.items[:recordings]
    few = replace(made, pictures=tuple(one for one in made.pictures if one.item in kept))
    found = audit(replace(suite, items=kept), [few], deaf, draws=4)
    primary = [one for one in found.findings if one.control == OTHER_LABEL]
    assert {one.verdict for one in primary} == {said}
    assert any((one.difference.low or 0) > 0 for one in primary)
    assert all(bool(one.difference.note) == (recordings < 10) for one in primary)


def test_a_metric_that_hears_is_not_said_to_by_few_recordings_or_in_too_large_a_family(suite: Suite, made: Made):
    """Of ten recordings the least p is 2 ** -9: one metric tells by it, and of fifty none could."""

    def asked(recordings: int, metrics: int) -> set[str]:
        kept = suite.items[:recordings]
        few = replace(made, pictures=tuple(one for one in made.pictures if one.item in kept))

        def many(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
            return {f"hears {n}": scorer(pictures)["hears"] for n in range(metrics)}

        return set(verdicts(audit(replace(suite, items=kept), [few], many, draws=2)).values())

    assert asked(10, 1) == {"tells"}
    assert asked(9, 1) == {"too few recordings to say"}
    assert asked(10, 50) == {"too few recordings to say"}


def test_ties_are_no_evidence(suite: Suite, made: Made):
    one = finding(audit(suite, [made], lambda pictures: {"flat": np.ones(len(pictures))}), "flat")
    assert (one.difference.value, one.share.value, one.verdict) == (0.0, 0.5, "does not tell")
    assert one.p_holm == 1.0


def test_items_of_one_recording_count_once(tmp_path: Path):
    """The same data twice over, as items of the same recordings, prove no more."""
    results = []
    for per_recording in (1, 2):
        suite = make_suite(tmp_path / str(per_recording), 12 * per_recording, LABELS, per_recording=per_recording)
        pictures = {item.id: [picture(n, image_format="PNG")] for n, item in enumerate(suite.items)}
        made = make_made(suite, tmp_path / str(per_recording) / "made", pictures)
        results.append(finding(audit(suite, [made], scorer, draws=2), "hears", OTHER_RECORDING))
    once, twice = results
    assert (once.recordings, twice.recordings) == (12, 12)
    assert (once.items, twice.items) == (12, 24)
    assert once.difference.p == twice.difference.p


def test_what_has_no_value_is_left_out_and_counted(suite: Suite, made: Made):
    def silent(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
        values = scorer(pictures)["hears"]
        quiet = np.array([one.item.id in ("s000", "s001") for one in pictures])
        return {"hears": np.where(quiet, np.nan, values), "never": np.full(len(pictures), np.nan)}

    found = audit(suite, [made], silent)
    one = finding(found, "hears")
    assert (one.items, one.left_out) == (22, 0)
    assert {each.metric for each in found.findings} == {"hears"}


def test_an_item_with_one_kind_of_value_only_is_counted(suite: Suite, made: Made):
    def half(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
        own = np.array([one.donor is None and one.item.id == "s003" for one in pictures])
        return {"hears": np.where(own, np.nan, scorer(pictures)["hears"])}

    one = finding(audit(suite, [made], half), "hears")
    assert (one.items, one.left_out) == (23, 1)


def test_the_null_condition_is_labelled_and_judges_nothing(suite: Suite, made: Made, tmp_path: Path):
    null = replace(made, folder=tmp_path)
    found = audit(suite, [made], scorer, [null])
    one = finding(found, "hears", NULL)
    assert (one.difference.value, one.verdict) == (0.0, "")
    with refused("which is none of a model"):
        audit(suite, [made], scorer, [replace(made, model="another")])


def test_p_is_adjusted_for_the_primary_control_of_all_models(suite: Suite, made: Made):
    found = audit(suite, [made, replace(made, model="b")], scorer, draws=2)
    assert len(found.findings) == 16
    primary = [one for one in found.findings if one.control == OTHER_LABEL]
    raw, adjusted = [one.difference.p for one in primary], [one.p_holm for one in primary]
    assert all(p is not None and q is not None and q >= p for p, q in zip(raw, adjusted, strict=True))
    smallest = min(p for p in raw if p is not None)
    assert min(q for q in adjusted if q is not None) == pytest.approx(min(1, 8 * smallest))
    assert all(one.p_holm is None for one in found.findings if one.control != OTHER_LABEL)
    assert verdicts(found)["hears"] == "tells"


def test_a_metric_may_tell_in_some_models_only(suite: Suite, made: Made):
    def of_one(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
        values = scorer(pictures)
        is_first = pictures[0].path.parent.parent.name == "folder"
        return {"hears": values["hears"] if is_first else values["deaf"]}

    other = replace(
        made,
        model="b",
        pictures=tuple(replace(one, path=Path("/elsewhere/images") / one.path.name) for one in made.pictures),
    )
    assert verdicts(audit(suite, [made, other], of_one)) == {"hears": "tells in 1 of 2 models"}


def test_without_labels_there_is_no_verdict(tmp_path: Path):
    suite = make_suite(tmp_path, 8, ("",))
    items = tuple(replace(item, labels=()) for item in suite.items)
    suite = replace(suite, items=items)
    made = make_made(
        suite, tmp_path / "made", {item.id: [picture(n, image_format="PNG")] for n, item in enumerate(items)}
    )
    found = audit(suite, [made], scorer)
    assert verdicts(found)["hears"] == "not audited"
    assert "no item has a label" in found.notes[0]


def test_a_label_of_most_items_leaves_the_primary_control_out(tmp_path: Path):
    suite = make_suite(tmp_path, 8, ("dog", "dog", "dog", "rain"))
    made = make_made(
        suite, tmp_path / "made", {i.id: [picture(n, image_format="PNG")] for n, i in enumerate(suite.items)}
    )
    found = audit(suite, [made], scorer)
    assert {one.control for one in found.findings} == {OTHER_RECORDING}
    assert "6 of them are of the label 'dog'" in found.notes[0]


def test_models_that_are_called_alike_and_values_of_another_length_are_refused(suite: Suite, made: Made):
    with refused("two folders hold pictures of a model"):
        audit(suite, [made, made], scorer)
    with pytest.raises(ValueError, match="expected a value for each of 48"):
        audit(suite, [made], lambda _: {"short": np.zeros(3)})
    with refused("no metric could be audited"):
        audit(suite, [made], lambda _: {})


def test_the_table_has_a_line_for_each_finding_and_the_figure_all_metrics(found: Audit):
    lines = list(csv.DictReader(as_csv(found).decode().splitlines()))
    assert [(one["metric"], one["control"]) for one in lines] == [(one.metric, one.control) for one in found.findings]
    assert all(float(one["low"]) <= float(one["difference"]) <= float(one["high"]) for one in lines)
    (axes,) = draw(found).axes
    said = [text.get_text() for text in axes.get_yticklabels()]
    assert said == ["hears\ntells", "class\ntells", "deaf\ndoes not tell", "wrong\ndoes not tell"]


def test_the_command_audits_the_metrics_of_the_report(suite: Suite, made: Made, tmp_path: Path, capsys):
    towers = tmp_path / "towers.yaml"
    towers.write_text("towers:\n  clip_b32: {kind: random}\n  wav2clip: {kind: random}\n")
    words = ["--suite", str(suite.folder), "--manifests", str(made.folder), "--towers", str(towers), "--draws", "2"]
    assert main([*words, "--out", str(tmp_path / "a"), "--metrics", "ais_cosine", "ais_rank", "iis_cosine"]) == 0
    assert "ais_rank: " in capsys.readouterr().out
    written = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert set(written["verdicts"]) == {"ais_cosine", "ais_rank", "iis_cosine"}
    assert main([*words, "--out", str(tmp_path / "b"), "--metrics", "ais_cosine", "ais_rank", "iis_cosine"]) == 0
    for name in ("audit.json", "audit.csv", "audit.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "why"), [(["--draws", "0"], "--draws: expected 1 at least"), (["--metrics", "ais"], "no metric 'ais'")]
)
def test_wrong_words_are_one_line(suite: Suite, made: Made, tmp_path: Path, capsys, words: list[str], why: str):
    asked = ["--suite", str(suite.folder), "--manifests", str(made.folder), "--out", str(tmp_path / "out"), *words]
    assert main(asked) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

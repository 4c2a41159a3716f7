"""Recordings of an examination, read back and compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonify.doctor.findings import Finding, Outcome, as_rows
from sonify.doctor.record import COMPARED, Examination, compare_examinations, read_examination
from tests.builders import refused

LOOKED = Finding(
    about="llava",
    outcome=Outcome.OK,
    found="is here",
    facts={"model": "llava-hf/llava@1", "identity": "abc", "size_bytes": 1000, "here": True},
)
ANSWERED = Finding(
    about="llava, one image",
    outcome=Outcome.OK,
    found="hears car",
    shown=("| car: a car",),
    facts={"answer": "car: a car", "concepts": ["car"], "picture_sha256": "11", "load_sec": 3.0, "tokens_per_sec": 9.5},
    seconds=4.5,
)
CHECKED = Finding(
    about="eye, one check", outcome=Outcome.OK, found="", facts={"medium": "photo", "reason": "", "finished": True}
)
HEARD = Finding(
    about="clap, 6 x 6",
    outcome=Outcome.OK,
    found="6 of 6",
    facts={
        "cosines": [[0.5, 0.1], [0.2, 0.6]],
        "rows_won": 2,
        "columns_won": 2,
        "dimension": 512,
        "sounds": ["dog-barking-0.opus"],
    },
)
SEEN = Finding(about="vae, one image", outcome=Outcome.OK, found="", facts={"psnr_db": 24.0, "shape": [4, 64, 64]})
LISTENED = Finding(
    about="ast, one sound", outcome=Outcome.OK, found="", facts={"mean": 0.1, "deviation": 1.2, "confirmed": ["dog"]}
)
GPU = Finding(about="gpu", outcome=Outcome.NOTE, found="none", facts={"gpus": 0})
VERSIONS = {"torch": "2.14.1", "python": "3.11.9"}
ROWS = (LOOKED, ANSWERED, CHECKED, HEARD, SEEN, LISTENED, GPU)
BEFORE = Examination(findings=ROWS, versions=VERSIONS)


def write(path: Path, findings: object) -> Path:
    path.write_text(json.dumps({"findings": findings, "versions": VERSIONS, "machine": {}, "seconds": 1.5}))
    return path


def with_one(finding: Finding, **fields: Any) -> Examination:
    """The examination with one finding changed."""
    return replace(BEFORE, findings=tuple(replace(one, **fields) if one is finding else one for one in ROWS))


def with_facts(finding: Finding, **facts: Any) -> Examination:
    return with_one(finding, facts={**finding.facts, **facts})


def differences(after: Examination) -> list[tuple[Outcome, str, Any, Any]]:
    """What differs from the examination above, each with both sides."""
    found = list(compare_examinations(BEFORE, after))
    assert {one.about for one in found} == {"compared"}
    return [(one.outcome, f"{one.facts['about']}: {one.facts['what']}", *both_sides(one)) for one in found if one.facts]


def both_sides(finding: Finding) -> tuple[Any, Any]:
    return finding.facts["before"], finding.facts["after"]


def test_what_was_recorded_is_read_back(tmp_path):
    assert read_examination(write(tmp_path / "doctor.json", as_rows(BEFORE.findings))) == BEFORE


def test_the_same_examination_does_not_differ_however_long_it_took():
    for later in (BEFORE, with_facts(ANSWERED, load_sec=30.0, tokens_per_sec=1.0)):
        (finding,) = compare_examinations(BEFORE, later)
        assert (finding.outcome, finding.found) == (Outcome.OK, "models and versions are as they were recorded")


@pytest.mark.parametrize(
    ("finding", "what", "after"),
    [
        (LOOKED, "model", "llava-hf/llava@2"),
        (LOOKED, "identity", "abd"),
        (LOOKED, "size_bytes", 1001),
        (ANSWERED, "answer", "cat: a cat"),
        (ANSWERED, "concepts", ["car", "rain"]),
        (CHECKED, "medium", "drawing"),
        (CHECKED, "reason", "bad_answer"),
        (CHECKED, "finished", False),
        (HEARD, "cosines", [[0.5, 0.1], [0.2, 0.6102]]),
        (HEARD, "cosines", [[0.5, 0.1], [0.2, float("nan")]]),
        (HEARD, "cosines", [[0.5, 0.1]]),
        (HEARD, "cosines", None),
        (HEARD, "rows_won", 1),
        (HEARD, "columns_won", 1),
        (HEARD, "dimension", 1024),
        (SEEN, "shape", [4, 32, 32]),
        (SEEN, "psnr_db", 23.4),
        (LISTENED, "mean", 0.12),
        (LISTENED, "deviation", 1.22),
        (LISTENED, "confirmed", []),
    ],
)
def test_what_differs_is_a_fault_with_both_sides(finding, what, after):
    [difference] = compare_examinations(BEFORE, with_facts(finding, **{what: after}))
    assert (difference.about, difference.outcome) == ("compared", Outcome.FAULT)
    assert difference.found.startswith(f"{finding.about}: {what} was {json.dumps(finding.facts[what])}, and is ")
    assert difference.facts["about"] == finding.about
    assert difference.facts["after"] is after


def test_all_that_is_compared_is_tried_above():
    assert {*COMPARED} <= {name for one in ROWS for name in one.facts}


@pytest.mark.parametrize(
    ("finding", "facts"),
    [
        (HEARD, {"cosines": [[0.51, 0.09], [0.2, 0.59]]}),
        (SEEN, {"psnr_db": 24.5}),
        (LISTENED, {"mean": 0.11, "deviation": 1.19}),
    ],
)
def test_numbers_may_lie_a_little_apart(finding, facts):
    assert differences(with_facts(finding, **facts)) == []


def test_of_another_picture_and_of_other_sounds_only_that_is_told():
    later = with_facts(ANSWERED, picture_sha256="22", answer="cat: a cat", concepts=["cat"])
    assert differences(later) == [(Outcome.NOTE, "llava, one image: picture_sha256", "11", "22")]
    sounds = ["rain-1.opus"]
    assert differences(with_facts(HEARD, sounds=sounds, cosines=[], rows_won=0)) == [
        (Outcome.NOTE, "clap, 6 x 6: sounds", ["dog-barking-0.opus"], sounds)
    ]


@pytest.mark.parametrize(
    ("was", "found", "outcome"),
    [
        (Outcome.OK, Outcome.NOTE, Outcome.FAULT),
        (Outcome.OK, Outcome.NOT_TRIED, Outcome.FAULT),
        (Outcome.NOT_TRIED, Outcome.FAULT, Outcome.FAULT),
        (Outcome.FAULT, Outcome.OK, Outcome.NOTE),
        (Outcome.NOTE, Outcome.OK, Outcome.NOTE),
    ],
)
def test_an_outcome_that_is_worse_is_a_fault_and_a_better_one_a_note(was, found, outcome):
    before, after = with_one(HEARD, outcome=was), with_one(HEARD, outcome=found)
    (difference,) = compare_examinations(before, after)
    assert (difference.outcome, *both_sides(difference)) == (outcome, was, found)
    assert difference.found == f'clap, 6 x 6: it was "{was}", and is "{found}"'


def test_a_finding_that_is_gone_is_a_fault_and_one_that_came_a_note():
    fewer = replace(BEFORE, findings=tuple(one for one in ROWS if one is not HEARD))
    assert differences(fewer) == [(Outcome.FAULT, "clap, 6 x 6: it", "ok", None)]
    (came,) = compare_examinations(fewer, BEFORE)
    assert (came.outcome, came.found) == (Outcome.NOTE, 'clap, 6 x 6: it was not there, and is "ok"')


def test_a_trial_that_failed_is_told_though_it_has_no_facts():
    failed = with_one(HEARD, outcome=Outcome.FAULT, facts={})
    assert differences(failed)[0] == (Outcome.FAULT, "clap, 6 x 6: it", "ok", "fault")


def test_what_a_machine_has_is_not_compared():
    assert differences(with_one(GPU, outcome=Outcome.OK, facts={"gpus": 8})) == []


def test_other_versions_are_notes():
    assert differences(replace(BEFORE, versions={"torch": "2.15.0", "python": "3.11.9", "timm": "1.0"})) == [
        (Outcome.NOTE, "versions: timm", None, "1.0"),
        (Outcome.NOTE, "versions: torch", "2.14.1", "2.15.0"),
    ]


ROW = as_rows([LOOKED])[0]


@pytest.mark.parametrize(
    "findings",
    [
        None,
        ["llava"],
        [{key: value for key, value in ROW.items() if key != "outcome"}],
        [ROW | {"outcome": "fine"}],
        [ROW | {"facts": [1]}],
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, findings):
    with refused("expected a recording of `sonify doctor --record FILE`"):
        read_examination(write(tmp_path / "doctor.json", findings))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"findings": []}', b"\xff\xfe{}"])
def test_a_damaged_file_is_refused(tmp_path, data):
    (tmp_path / "doctor.json").write_bytes(data)
    with refused("expected a recording"):
        read_examination(tmp_path / "doctor.json")


def test_a_recording_that_is_not_there_is_refused(tmp_path):
    with refused("cannot be read"):
        read_examination(tmp_path / "doctor.json")

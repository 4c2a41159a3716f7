"""Recordings of an examination, read back and compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonify.doctor.findings import Finding, Outcome, as_rows
from sonify.doctor.record import Kind, Recording, compare, read_recording
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
HEARD = Finding(
    about="clap, 6 x 6",
    outcome=Outcome.OK,
    found="6 of 6",
    facts={"cosines": [[0.5, 0.1], [0.2, 0.6]], "rows_won": 2, "dimension": 512},
)
GPU = Finding(about="gpu", outcome=Outcome.NOTE, found="none", facts={"gpus": 0})
VERSIONS = {"torch": "2.14.1", "python": "3.11.9"}
BEFORE = Recording(findings=(LOOKED, ANSWERED, HEARD, GPU), versions=VERSIONS)


def write(path: Path, findings: object, versions: object = VERSIONS) -> Path:
    path.write_text(json.dumps({"findings": findings, "versions": versions, "machine": {}, "seconds": 1.5}))
    return path


def with_facts(finding: Finding, **facts: Any) -> Recording:
    """The recording with one finding's facts changed."""
    changed = replace(finding, facts={**finding.facts, **facts})
    findings = tuple(changed if one is finding else one for one in BEFORE.findings)
    return replace(BEFORE, findings=findings)


def test_what_was_recorded_is_read_back(tmp_path):
    assert read_recording(write(tmp_path / "doctor.json", as_rows(BEFORE.findings))) == BEFORE


def test_the_same_examination_does_not_differ_however_long_it_took():
    later = with_facts(ANSWERED, load_sec=30.0, tokens_per_sec=1.0)
    assert compare(BEFORE, BEFORE) == []
    assert compare(BEFORE, later) == []


@pytest.mark.parametrize(
    ("finding", "facts", "kind", "what"),
    [
        (ANSWERED, {"answer": "cat: a cat"}, Kind.ANSWER, "answer"),
        (ANSWERED, {"concepts": ["car", "rain"]}, Kind.ANSWER, "concepts"),
        (LOOKED, {"size_bytes": 1001}, Kind.SIZE, "size_bytes"),
        (LOOKED, {"identity": "abd"}, Kind.MODEL, "identity"),
        (HEARD, {"cosines": [[0.5, 0.1], [0.2, 0.6102]]}, Kind.NUMBER, "cosines"),
        (HEARD, {"cosines": [[0.5, 0.1], [0.2, float("nan")]]}, Kind.NUMBER, "cosines"),
        (HEARD, {"cosines": [[0.5, 0.1]]}, Kind.NUMBER, "cosines"),
        (HEARD, {"cosines": None}, Kind.NUMBER, "cosines"),
        (HEARD, {"rows_won": 1}, Kind.NUMBER, "rows_won"),
        (HEARD, {"dimension": 1024}, Kind.SIZE, "dimension"),
    ],
)
def test_what_differs_is_named_with_both_sides(finding, facts, kind, what):
    [difference] = compare(BEFORE, with_facts(finding, **facts))
    assert (difference.kind, difference.about, difference.what) == (kind, finding.about, what)
    assert (difference.before, difference.after) == (finding.facts[what], facts[what])
    assert str(difference).startswith(f"{finding.about}: {what} was ")


def test_cosines_may_lie_a_hundredth_apart():
    assert compare(BEFORE, with_facts(HEARD, cosines=[[0.51, 0.09], [0.2, 0.59]])) == []


def test_of_another_picture_only_the_picture_is_compared():
    later = with_facts(ANSWERED, picture_sha256="22", answer="cat: a cat", concepts=["cat"])
    assert [difference.kind for difference in compare(BEFORE, later)] == [Kind.INPUT]


def test_an_outcome_and_a_finding_that_is_gone_differ():
    failed = replace(HEARD, outcome=Outcome.FAULT, facts={})
    later = replace(BEFORE, findings=(LOOKED, failed, GPU))
    found = {(difference.about, difference.before, difference.after) for difference in compare(BEFORE, later)}
    assert found == {("llava, one image", "ok", None), ("clap, 6 x 6", "ok", "fault")}


def test_what_a_machine_has_is_not_compared():
    later = replace(BEFORE, findings=(LOOKED, ANSWERED, HEARD, replace(GPU, outcome=Outcome.OK, facts={"gpus": 8})))
    assert compare(BEFORE, later) == []


def test_other_versions_are_told_apart_from_all_else():
    later = replace(BEFORE, versions={"torch": "2.15.0", "python": "3.11.9", "timm": "1.0"})
    found = [
        (difference.kind, difference.what, difference.before, difference.after) for difference in compare(BEFORE, later)
    ]
    assert found == [(Kind.VERSION, "timm", None, "1.0"), (Kind.VERSION, "torch", "2.14.1", "2.15.0")]


ROW = as_rows([LOOKED])[0]


@pytest.mark.parametrize(
    "findings",
    [
        None,
        {},
        ["llava"],
        [{key: value for key, value in ROW.items() if key != "outcome"}],
        [ROW | {"outcome": "fine"}],
        [ROW | {"about": 3}],
        [ROW | {"facts": []}],
        [ROW | {"shown": "line"}],
        [ROW | {"shown": [1]}],
        [ROW | {"seconds": "long"}],
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, findings):
    with refused("expected a recording of `sonify doctor --record FILE`"):
        read_recording(write(tmp_path / "doctor.json", findings))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"findings": []}', b"\xff\xfe{}", b"[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path, data):
    (tmp_path / "doctor.json").write_bytes(data)
    with refused("expected a recording"):
        read_recording(tmp_path / "doctor.json")


def test_a_recording_that_is_not_there_is_refused(tmp_path):
    with refused("cannot be read"):
        read_recording(tmp_path / "doctor.json")


def test_versions_are_words(tmp_path):
    with refused("expected a recording"):
        read_recording(write(tmp_path / "doctor.json", as_rows(BEFORE.findings), versions={"torch": 2}))


def test_numbers_without_end_are_compared_like_others(tmp_path):
    long = tmp_path / "long.json"
    text = write(tmp_path / "doctor.json", as_rows(BEFORE.findings)).read_text()
    long.write_text(text.replace("[0.2, 0.6]", f"[0.2, {'9' * 400}]"))
    [difference] = compare(BEFORE, read_recording(long))
    assert difference.what == "cosines"

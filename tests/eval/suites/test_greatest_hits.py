"""The Greatest Hits is read by its events: one of a video, or all that lie apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.prepare import selection_of
from eval.suites.config import GreatestHits
from eval.suites.greatest_hits import list_greatest_hits
from sonify.config.loader import make_settings
from sonify.errors import InputError
from tests.builders import write_sound

FIRST, SECOND, EMPTY = "2015-02-16-16-49-06", "2015-03-25-00-38-45-1", "2015-03-28-19-47-12"
TIMES = (
    "0.50 wood hit static\n"
    "4.00 metal scratch deform\n"
    "5.00 None None None\n"
    "5.10 None hit None\n"
    "6.00 plastic-bag None None\n"
    "7.00 rock hit scatter\n"
    "8.90 rock hit scatter\n"
    "9.00 glass hit static"
)


def greatest_hits(root: Path, **more: Any) -> GreatestHits:
    """Two videos of `train`, one of `test` without an event; no media."""
    (root / "train.txt").write_bytes(f"{FIRST}\r\n{SECOND}".encode())
    (root / "test.txt").write_text(f"{EMPTY}\n")
    (root / f"{FIRST}_times.txt").write_text(TIMES)
    (root / f"{SECOND}_times.txt").write_text("3.25 wood hit static\r\n\r\n", newline="")
    (root / f"{EMPTY}_times.txt").write_text("")
    (root / ".DS_Store").touch()
    raw = {"kind": "greatest_hits", "name": "small", "path": str(root), **more}
    return make_settings(raw, GreatestHits, check_paths=False)


@pytest.mark.parametrize(("seconds", "event"), [(10.0, 4.0), (13.0, 7.0), (60.0, 9.0), (1.0, 0.5)])
def test_the_event_nearest_to_the_middle_of_the_sound_is_taken(tmp_path, seconds, event):
    config = greatest_hits(tmp_path)
    write_sound(tmp_path / f"{FIRST}_denoised.wav", np.zeros(round(seconds * 8000)), 8000)
    first, second = list_greatest_hits(config)
    assert (first.id, first.recording, first.image_sec) == (FIRST, FIRST, event)
    assert (first.audio_start_sec, first.audio_seconds) == (max(0.0, event - 5.0), 10.0)
    assert (second.id, second.labels, second.split) == (SECOND, ("wood",), "train")


@pytest.mark.parametrize("content", [None, b"", b"no sound"])
def test_without_a_sound_the_middle_is_that_of_the_events(tmp_path, content):
    config = greatest_hits(tmp_path)
    if content is not None:
        (tmp_path / f"{FIRST}_denoised.wav").write_bytes(content)
    first = list_greatest_hits(config)[0]
    assert (first.image_sec, first.labels) == (4.0, ("metal",))
    assert first.audio == tmp_path / f"{FIRST}_denoised.wav"
    assert first.image == tmp_path / f"{FIRST}_denoised.mp4"


def test_all_events_are_those_two_seconds_behind_the_one_before(tmp_path):
    entries = list_greatest_hits(greatest_hits(tmp_path, events="all"))
    assert [(entry.id, entry.labels[0]) for entry in entries] == [
        (f"{FIRST}_000500", "wood"),
        (f"{FIRST}_004000", "metal"),
        (f"{FIRST}_007000", "rock"),
        (f"{FIRST}_009000", "glass"),
        (f"{SECOND}_003250", "wood"),
    ]
    assert {entry.recording for entry in entries} == {FIRST, SECOND}
    assert [entry.audio_start_sec for entry in entries] == [0.0, 0.0, 2.0, 4.0, 0.0]


def test_the_videos_of_the_other_split_give_other_pictures(tmp_path):
    config = greatest_hits(tmp_path)
    (tmp_path / f"{EMPTY}_times.txt").write_text("2.00 rock hit static")
    others = {split: selection_of(config.model_copy(update={"split": split})).others for split in ("train", "test")}
    assert {split: {entry.id for entry in entries} for split, entries in others.items()} == {
        "train": {EMPTY},
        "test": {FIRST, SECOND},
    }
    assert selection_of(config).others == ()
    (tmp_path / "train.txt").unlink()
    assert selection_of(config.model_copy(update={"split": "test"})).others == ()


def test_a_video_without_a_known_material_is_left_out_and_counted(tmp_path, caplog):
    assert EMPTY not in {entry.id for entry in list_greatest_hits(greatest_hits(tmp_path))}
    assert "1 of 3 videos have no event of a known material" in caplog.text
    with pytest.raises(InputError, match="expected events of a known material, hit or scratch, found none in 1 videos"):
        list_greatest_hits(greatest_hits(tmp_path, split="test"))


def test_events_need_not_stand_in_the_order_of_their_times(tmp_path):
    config = greatest_hits(tmp_path, events="all", split="train")
    ordered = list_greatest_hits(config)
    (tmp_path / f"{FIRST}_times.txt").write_text("\n".join(reversed(TIMES.splitlines())))
    assert list_greatest_hits(config) == ordered


def test_another_length_of_sound_may_be_asked_for(tmp_path):
    entries = list_greatest_hits(greatest_hits(tmp_path, seconds=4.0, events="all"))
    assert [(entry.audio_start_sec, entry.audio_seconds) for entry in entries[1:4]] == [
        (2.0, 4.0),
        (5.0, 4.0),
        (7.0, 4.0),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (f"{FIRST}_times.txt", "1.0 wood hit\n", r"line 1: expected 4 columns \(seconds material action reaction\)"),
        (f"{FIRST}_times.txt", TIMES + "\nx wood hit static", "line 9: expected a time in seconds, found 'x'"),
        (f"{FIRST}_times.txt", "-1 wood hit static", "line 1: expected a time in seconds, found '-1'"),
        ("train.txt", "", "train.txt: expected a video on each line, found an empty file"),
        ("train.txt", "x" * 101, "train.txt, line 1: expected the name of a video"),
        ("train.txt", "../x\n", "train.txt, line 1: expected the name of a video, found '../x'"),
        ("train.txt", f"{FIRST}\n{FIRST}\n", r"train.txt, line 2: expected each video once \(train.txt, line 1"),
        ("test.txt", f"{FIRST}\n", r"test.txt, line 1: expected each video once \(train.txt, line 1 has this one\)"),
        ("test.txt", "2016\n", "2016_times.txt: expected a list, found none"),
    ],
)
def test_damaged_lists_are_refused(tmp_path, name, content, said):
    config = greatest_hits(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        list_greatest_hits(config)

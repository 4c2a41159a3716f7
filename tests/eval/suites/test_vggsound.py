"""VGGSound's list is read as it is published, and what is taken of it does not depend on the disk."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from eval.suites.config import VggSound
from eval.suites.entries import Entry, select
from eval.suites.vggsound import list_vggsound
from sonify.config.loader import load_settings, make_settings
from sonify.errors import InputError

CONFIGS = Path(__file__).parents[3] / "configs" / "eval"
CLASSES = CONFIGS / "classes" / "sound2scene_50.txt"
ALL_FLAGS = {"static_image": False, "voice_over": False, "background_music": False}
COLUMNS = "video_id,label,modality,background_music,static_image,voice_over\n"
ROWS = (
    "-_aBcdefgh1_000030.mp4,dog barking\r\n"
    "_-aBcdefgh2_000177.mp4,dog barking\r\n"
    "_-aBcdefgh2_000190.mp4,hail\r\n"
    'aaaaaaaaaa3_000000.mp4,"railroad car, train wagon"\r\n'
    "aaaaaaaaaa4_000005.mp4,hail"
)


def vggsound(root: Path, rows: str | bytes = ROWS, **more: Any) -> VggSound:
    """A test list, with no media but those that a test puts into `video`."""
    (root / "video").mkdir(exist_ok=True)
    (root / "test.csv").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    return config_of(root, root / "test.csv", **more)


def config_of(root: Path, test_csv: Path, **more: Any) -> VggSound:
    raw = {
        "kind": "vggsound",
        "name": "small",
        "test_csv": str(test_csv),
        "media": {"dir": str(root / "video"), "pattern": "{ytid}_{start:06d}.mp4"},
        **more,
    }
    return make_settings(raw, VggSound, check_paths=False)


def taken(config: VggSound, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    return select(
        entries, config.name, per_class=config.per_class, one_per_recording=config.one_clip_per_recording
    ).wanted


def table(root: Path, rows: str) -> dict[str, Any]:
    (root / "vggsounder.csv").write_text(COLUMNS + rows)
    return {"vggsounder": str(root / "vggsounder.csv"), "background_music": False}


@pytest.fixture(scope="module")
def published(test_data: Path) -> Path:
    path = test_data / "formats" / "vggsound" / "test.csv"
    if not path.is_file():
        pytest.skip("the test data has no formats/vggsound/test.csv")
    return path


@pytest.fixture(scope="module")
def vggsounder() -> Path:
    found = find_spec("vggsounder")
    if found is None or found.origin is None:
        pytest.skip("the package vggsounder is not installed")
    return Path(found.origin).parent / "data" / "vggsounder+background-music.csv"


# --- the published list


def test_the_published_list_has_its_clips_and_videos(published, tmp_path):
    entries = list_vggsound(config_of(tmp_path, published))
    videos = Counter(entry.recording for entry in entries)
    assert len({entry.id for entry in entries}) == len(entries) == 15_446
    assert (len(videos), Counter(videos.values())) == (14_851, {1: 14_256, 2: 595})
    classes = Counter(entry.labels for entry in entries)
    assert (len(classes), set(classes.values())) == (309, {49, 50})
    assert len(select(entries, "vggsound", one_per_recording=True).wanted) == 14_851


@pytest.mark.parametrize(
    ("flags", "clips"), [({"static_image": None}, 8_481), ({}, 8_138), ({"voice_over": False}, 6_712)]
)
def test_vggsounder_confirms_so_many_of_the_published_clips(published, vggsounder, tmp_path, flags, clips):
    confirmed = {"vggsounder": str(vggsounder), **flags}
    assert len(list_vggsound(config_of(tmp_path, published, confirmed=confirmed))) == clips


@pytest.mark.parametrize(("flags", "by_clips", "by_videos"), [({"static_image": None}, 41, 40), (ALL_FLAGS, 30, 29)])
def test_so_many_of_the_fifty_classes_keep_twenty(published, vggsounder, tmp_path, flags, by_clips, by_videos):
    confirmed = {"vggsounder": str(vggsounder), **flags}
    entries = list_vggsound(config_of(tmp_path, published, classes=str(CLASSES), confirmed=confirmed))
    clips = Counter(entry.labels[0] for entry in entries)
    videos = Counter(label for label, _ in {(entry.labels[0], entry.recording) for entry in entries})
    assert [sum(count >= 20 for count in counts.values()) for counts in (clips, videos)] == [by_clips, by_videos]


@pytest.mark.parametrize(
    ("name", "clips", "classes", "digest"),
    [
        ("vggsound_50x20", 2_498, 50, "b71491959b5cdc36"),
        ("vggsound_309x3", 15_446, 309, "40b194254442ca24"),
    ],
)
def test_a_suite_is_the_same_sample_for_ever(published, name, clips, classes, digest):
    config = load_settings(CONFIGS / f"{name}.yaml", [f"test_csv={published}"], VggSound, check_paths=False)
    entries = list_vggsound(config)
    assert len(entries) == clips
    assert classes_by_size(taken(config, entries), digest) == {config.per_class: classes}


def test_three_confirmed_clips_of_different_videos_are_left_of_298_classes(published, vggsounder, caplog):
    changed = [f"test_csv={published}", f"confirmed.vggsounder={vggsounder}"]
    config = load_settings(CONFIGS / "vggsound_av.yaml", changed, VggSound, check_paths=False)
    entries = list_vggsound(config)
    assert len(entries) == 5_632  # of 5,648: the others are of the 11 classes
    assert "11 of 309 classes keep fewer than 3 clips of different videos" in caplog.text
    assert classes_by_size(taken(config, entries), "8100c954dea84937") == {3: 298}


def classes_by_size(wanted: Sequence[Entry], digest: str) -> dict[int, int]:
    """How many classes have so many clips; all are of different videos, and their ids are those of the digest."""
    assert len({entry.recording for entry in wanted}) == len(wanted)
    ids = "\n".join(entry.id for entry in wanted)
    assert hashlib.sha256(ids.encode()).hexdigest().startswith(digest)
    return Counter(Counter(entry.labels[0] for entry in wanted).values())


# --- how it is read


def test_clips_are_split_from_the_right_and_quotes_and_line_ends_mean_nothing(tmp_path):
    entries = list_vggsound(vggsound(tmp_path))
    assert [(entry.id, entry.recording, entry.labels) for entry in entries] == [
        ("-_aBcdefgh1_000030", "-_aBcdefgh1", ("dog barking",)),
        ("_-aBcdefgh2_000177", "_-aBcdefgh2", ("dog barking",)),
        ("_-aBcdefgh2_000190", "_-aBcdefgh2", ("hail",)),
        ("aaaaaaaaaa3_000000", "aaaaaaaaaa3", ("railroad car, train wagon",)),
        ("aaaaaaaaaa4_000005", "aaaaaaaaaa4", ("hail",)),
    ]
    first = entries[0]
    assert first.audio == first.image == tmp_path / "video" / "-_aBcdefgh1_000030.mp4"
    assert (first.image_sec, first.ids, first.split) == (None, ("youtube:-_aBcdefgh1",), "test")


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ([], "-_aBcdefgh1_000030.mp4"),
        (["-_aBcdefgh1_30000_40000.mkv"], "-_aBcdefgh1_30000_40000.mkv"),
        (["-_aBcdefgh1_30000_40000.mp4", "-_aBcdefgh1_000030.webm"], "-_aBcdefgh1_000030.webm"),
        (["-_aBcdefgh1_30000_40000.mp4", "-_aBcdefgh1_000030.mp4"], "-_aBcdefgh1_000030.mp4"),
        (["-_aBcdefgh1_000030.wav", ".DS_Store", "-_aBcdefgh1_31000_41000.mp4"], "-_aBcdefgh1_000030.mp4"),
    ],
)
def test_of_the_published_names_the_one_that_is_there_is_taken(tmp_path, there, found):
    config = vggsound(tmp_path)
    for name in there:
        (tmp_path / "video" / name).touch()
    assert list_vggsound(config)[0].audio == tmp_path / "video" / found


@pytest.mark.parametrize(
    ("pattern", "found"), [("{ytid}_{start:06d}.m4v", "_000030.m4v"), ("{ytid}.mp4", "_000030.webm")]
)
def test_the_pattern_s_name_goes_before_the_published_ones(tmp_path, pattern, found):
    config = vggsound(tmp_path, media={"dir": str(tmp_path / "video"), "pattern": pattern})
    for name in ("_000030.m4v", "_000030.webm", "_30000_40000.mp4"):
        (tmp_path / "video" / f"-_aBcdefgh1{name}").touch()
    assert list_vggsound(config)[0].audio.name == f"-_aBcdefgh1{found}"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{ytid}_{start_ms}_{end_ms}.*", "_-aBcdefgh2_177000_187000.mp4"),
        ("{label}/{ytid}-{start}-{end}.mkv", "dog barking/_-aBcdefgh2-177-187.mkv"),
    ],
)
def test_a_pattern_names_what_is_not_there(tmp_path, pattern, found):
    entries = list_vggsound(vggsound(tmp_path, media={"dir": str(tmp_path / "video"), "pattern": pattern}))
    assert entries[1].image == tmp_path / "video" / found


@pytest.mark.parametrize(
    "pattern",
    ["{ytid}_{begin}.mp4", "{}.mp4", "{ytid.__class__}.mp4", "{ytid", "../{ytid}.mp4", "{start:z}", "/{ytid}.mp4"],
)
def test_a_pattern_that_names_no_file_is_refused(tmp_path, pattern):
    config = vggsound(tmp_path, media={"dir": str(tmp_path / "video"), "pattern": pattern})
    with pytest.raises(InputError, match=r"^config: media.pattern: "):
        list_vggsound(config)


def test_what_lies_on_the_disk_does_not_change_what_is_taken(tmp_path):
    config = vggsound(tmp_path, per_class=1)
    before = [entry.id for entry in taken(config, list_vggsound(config))]
    (tmp_path / "video" / "_-aBcdefgh2_000177.mp4").touch()
    assert [entry.id for entry in taken(config, list_vggsound(config))] == before
    assert len(before) == 3


def test_the_frame_is_the_best_of_sound2scene_s_where_it_has_one(tmp_path):
    moments = {"-_aBcdefgh1_30000_40000": [47, 46], "_-aBcdefgh2_190000_200000": [0], "aaaaaaaaaa4_5000_15000": [100]}
    (tmp_path / "top1.json").write_text(json.dumps(moments))
    entries = list_vggsound(vggsound(tmp_path, frame="top1", top1=str(tmp_path / "top1.json")))
    assert [(entry.id[:11], entry.image_sec) for entry in entries] == [
        ("-_aBcdefgh1", 4.6),
        ("_-aBcdefgh2", 0.0),
        ("aaaaaaaaaa4", 9.9),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{'a': [1]}", "found no JSON"),
        ("[1]", "found no object of names"),
        ('{"-_aBcdefgh1_30000_40000": []}', "expected numbers of frames from 0 to 100, found None"),
        ('{"-_aBcdefgh1_30000_40000": [101]}', "expected numbers of frames from 0 to 100, found 101"),
        ('{"-_aBcdefgh1_30000_40000": ["1"]}', "expected numbers of frames from 0 to 100, found '1'"),
        ('{"-_aBcdefgh1_30000_40000": [true]}', "found True"),
        ("{}", "expected clips that `confirmed` and `frame` leave, found none of 5"),
        ("[" * 100_000, "found no JSON"),
    ],
)
def test_frames_of_another_form_are_refused(tmp_path, content, said):
    (tmp_path / "top1.json").write_text(content)
    with pytest.raises(InputError, match=said):
        list_vggsound(vggsound(tmp_path, frame="top1", top1=str(tmp_path / "top1.json")))


def test_the_best_frame_needs_its_file(tmp_path):
    with pytest.raises(InputError, match="top1 needs top1"):
        list_vggsound(vggsound(tmp_path, frame="top1"))
    with pytest.raises(InputError, match=r"none\.json: expected .*found none \(No such file"):
        list_vggsound(vggsound(tmp_path, frame="top1", top1=str(tmp_path / "none.json")))


# --- VGGSounder


def test_the_other_labels_that_are_shown_and_heard_stand_behind_a_clip_s_own(tmp_path):
    confirmed = table(
        tmp_path,
        "-_aBcdefgh1_000030,hail,AV,False,False,False\n"
        "-_aBcdefgh1_000030,dog barking,AV,False,False,False\n"
        '-_aBcdefgh1_000030,"railroad car, train wagon",A,False,False,False\n'
        "_-aBcdefgh2_000177,dog barking,A,False,False,False\n"
        "_-aBcdefgh2_000177,hail,AV,False,False,False\n"
        "aaaaaaaaaa4_000005,hail,AV,False,True,False\n"
        "zzzzzzzzzz9_000005,hail,AV,False,False,False\n",
    )
    entries = list_vggsound(vggsound(tmp_path, confirmed=confirmed))
    assert [(entry.id, entry.labels) for entry in entries] == [("-_aBcdefgh1_000030", ("dog barking", "hail"))]
    heard = list_vggsound(vggsound(tmp_path, confirmed={**confirmed, "modality": "A"}))
    assert [entry.id for entry in heard] == ["_-aBcdefgh2_000177"]


def test_classes_that_keep_too_few_confirmed_clips_are_left_out_and_said(tmp_path, caplog):
    rows = "".join(f"{'b' * 10}{n}_000001.mp4,hail\n" for n in range(4)) + "cccccccccc1_000001.mp4,skiing\n"
    confirmed = table(tmp_path, "".join(f"{row[:18]},{row[23:]},AV,False,False,False\n" for row in rows.splitlines()))
    rows += "cccccccccc2_000001.mp4,rapping\n"
    assert {entry.labels for entry in list_vggsound(vggsound(tmp_path, rows, confirmed=confirmed, per_class=2))} == {
        ("hail",)
    }
    assert (
        "2 of 3 classes keep fewer than 2 clips of different videos and are left out (rapping, skiing)" in caplog.text
    )


def test_the_table_without_clips_with_music_is_not_taken_for_the_whole(tmp_path):
    confirmed = table(tmp_path, "-_aBcdefgh1_000030,dog barking,AV,False,False,False\n")
    with pytest.raises(InputError, match=r"take vggsounder\+background-music\.csv"):
        list_vggsound(vggsound(tmp_path, confirmed={**confirmed, "background_music": None}))
    assert len(list_vggsound(vggsound(tmp_path, confirmed=confirmed))) == 1
    confirmed |= table(tmp_path, "-_aBcdefgh1_000030,dog barking,AV,True,False,False\n")
    assert len(list_vggsound(vggsound(tmp_path, confirmed={**confirmed, "background_music": None}))) == 1


def test_where_no_class_keeps_enough_confirmed_clips_there_is_no_suite(tmp_path):
    confirmed = table(tmp_path, "-_aBcdefgh1_000030,dog barking,AV,False,False,False\n")
    with pytest.raises(InputError, match=r"expected 2 clips of different videos of 'hail' \(per_class\), found 0"):
        list_vggsound(vggsound(tmp_path, confirmed=confirmed, per_class=2))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("-_aBcdefgh1_000030,hail,X,False,False,False\n", "line 2: expected a modality of A, V, AV, found 'X'"),
        (
            "-_aBcdefgh1_000030,hail,A,False,no,False\n",
            "line 2: expected True or False in the last .*, found 'False,no,False'",
        ),
        ("-_aBcdefgh1_30,hail,A,False,False,False\n", "line 2: expected <YouTube id>_<start, six digits>, found"),
        ("-_aBcdefgh1_000030,hail,A,False,False\n", "line 2: expected 6 columns"),
        ("-_aBcdefgh1_000030,hail,A,False,False,False\n" * 2, "line 3: expected each label of a clip once"),
        ("", "found no line under the columns"),
    ],
)
def test_a_damaged_table_of_vggsounder_is_refused(tmp_path, row, said):
    with pytest.raises(InputError, match=rf"^{tmp_path}/vggsounder\.csv.*{said}"):
        list_vggsound(vggsound(tmp_path, confirmed=table(tmp_path, row)))


# --- damage


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "test.csv: expected VGGSound's test.csv, found an empty file"),
        ("\r\n\r\n", "test.csv: expected VGGSound's test.csv, found an empty file"),
        ("-_aBcdefgh1_000030.mp4\r\n", r"test.csv, line 1: expected 2 columns \(clip,label\)"),
        (ROWS + "\r\n-_aBcdefgh1_000031.mp4,hail,3\r\n", "line 6: expected 2 columns"),
        (
            "-_aBcdefgh1_30.mp4,hail",
            "line 1: expected <YouTube id>_<start, six digits>.mp4, found '-_aBcdefgh1_30.mp4'",
        ),
        ("../../aaaaa_000030.mp4,hail", "line 1: expected <YouTube id>"),
        ("-_aBcdefgh1_000030.mp4,\n", "line 1: expected a class behind the clip"),
        ('-_aBcdefgh1_000030.mp4,"hail\n', "line 1: expected clip,label, found unexpected end of data"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "expected a list in UTF-8, found other bytes at 0"),
        (b"a\0b,c\n", "found a file that is not text"),
    ],
)
def test_a_damaged_list_is_one_line_that_says_where(tmp_path, rows, said):
    with pytest.raises(InputError, match=said) as error:
        list_vggsound(vggsound(tmp_path, rows))
    assert str(error.value).startswith(str(tmp_path / "test.csv"))
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: expected a list, found none \(No such file or directory\)"):
        list_vggsound(config_of(tmp_path, tmp_path / "none.csv"))


def test_a_video_that_was_named_for_a_list_is_not_read(tmp_path):
    with (tmp_path / "film.mp4").open("wb") as file:
        file.truncate(80 << 20)
    with pytest.raises(InputError, match="found 80 MB: is it the corpus itself"):
        list_vggsound(config_of(tmp_path, tmp_path / "film.mp4"))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("hail\ndog barkin\n", "line 2: expected a class of test.csv; did you mean dog barking.*, found 'dog barkin'"),
        ("hail\nhail\n", "line 2: expected each class once, found 'hail'"),
        ("\n", "expected a class of VGGSound on each line, found an empty file"),
    ],
)
def test_a_list_of_classes_that_does_not_fit_is_refused(tmp_path, classes, said):
    (tmp_path / "classes.txt").write_text(classes)
    with pytest.raises(InputError, match=said):
        list_vggsound(vggsound(tmp_path, classes=str(tmp_path / "classes.txt")))


def test_a_list_of_classes_that_comes_along_is_named_bare_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vggsound(tmp_path, classes="sound2scene_50").classes == CLASSES
    assert vggsound(tmp_path, classes="sound2scene_5").classes == tmp_path / "sound2scene_5"
    (tmp_path / "sound2scene_50").write_text("hail\n")
    assert {entry.labels for entry in list_vggsound(vggsound(tmp_path, classes="sound2scene_50"))} == {("hail",)}


def test_classes_are_taken_as_listed(tmp_path):
    (tmp_path / "classes.txt").write_text("hail\r\nrailroad car, train wagon")
    entries = list_vggsound(vggsound(tmp_path, classes=str(tmp_path / "classes.txt")))
    assert Counter(entry.labels[0] for entry in entries) == {"hail": 2, "railroad car, train wagon": 1}


def test_several_clips_of_a_video_count_where_they_are_wanted(tmp_path):
    rows = "-_aBcdefgh1_000030.mp4,hail\n-_aBcdefgh1_000050.mp4,hail\n"
    assert len(list_vggsound(vggsound(tmp_path, rows, per_class=2, one_clip_per_recording=False))) == 2
    with pytest.raises(InputError, match=r"expected 2 clips of different videos of 'hail' \(per_class\), found 1"):
        list_vggsound(vggsound(tmp_path, rows, per_class=2))


@pytest.mark.parametrize(("per_class", "one_of_a_video", "count"), [(3, False, 1), (2, True, 1)])
def test_more_of_a_class_than_it_has_is_refused(tmp_path, per_class, one_of_a_video, count):
    config = vggsound(tmp_path, per_class=per_class, one_clip_per_recording=one_of_a_video)
    with pytest.raises(InputError, match=rf"expected {per_class} clips.* of '.*' \(per_class\), found {count}"):
        list_vggsound(config)

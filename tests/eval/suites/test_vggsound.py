"""VGGSound's list is read as it is published, and what is taken of it does not depend on the disk."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from eval.suites.config import VggSound
from eval.suites.entries import Entry, select
from eval.suites.vggsound import list_vggsound
from sonify.config.loader import make_settings

CLASSES = Path(__file__).parents[3] / "configs" / "eval" / "classes" / "sound2scene_50.txt"
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


def taken(config: VggSound) -> tuple[Entry, ...]:
    entries = list_vggsound(config)
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
    ("flags", "clips"),
    [
        ({"static_image": None}, 8_481),
        ({}, 8_138),
        ({"voice_over": False}, 6_712),
        (ALL_FLAGS, 5_648),
    ],
)
def test_vggsounder_confirms_so_many_of_the_published_clips(published, vggsounder, tmp_path, flags, clips):
    confirmed = {"vggsounder": str(vggsounder), **flags}
    assert len(list_vggsound(config_of(tmp_path, published, confirmed=confirmed))) == clips


def test_three_confirmed_clips_of_different_videos_are_left_of_298_classes(published, vggsounder, tmp_path, caplog):
    confirmed = {"vggsounder": str(vggsounder), **ALL_FLAGS}
    wanted = taken(config_of(tmp_path, published, confirmed=confirmed, per_class=3))
    assert len(wanted) == len({entry.recording for entry in wanted}) == 894
    assert set(Counter(entry.labels[0] for entry in wanted).values()) == {3}
    assert "11 of 309 classes keep fewer than 3 clips of different videos" in caplog.text


@pytest.mark.parametrize(
    ("flags", "one_of_a_video", "classes"),
    [
        ({"static_image": None}, False, 41),
        ({"static_image": None}, True, 40),
        (ALL_FLAGS, False, 30),
        (ALL_FLAGS, True, 29),
    ],
)
def test_so_many_of_the_fifty_classes_keep_twenty(published, vggsounder, tmp_path, flags, one_of_a_video, classes):
    config = config_of(
        tmp_path,
        published,
        classes=str(CLASSES),
        per_class=20,
        one_clip_per_recording=one_of_a_video,
        confirmed={"vggsounder": str(vggsounder), **flags},
    )
    assert len({entry.labels[0] for entry in list_vggsound(config)}) == classes


def test_the_fifty_classes_hold_2498_clips_of_which_a_thousand_are_taken(published, tmp_path):
    config = config_of(tmp_path, published, classes=str(CLASSES), per_class=20)
    assert len(list_vggsound(config)) == 2_498
    wanted = taken(config)
    assert len(wanted) == len({entry.recording for entry in wanted}) == 1_000
    assert set(Counter(entry.labels for entry in wanted).values()) == {20}

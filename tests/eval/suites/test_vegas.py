"""VEGAS is read by the tables of its ten classes, whose rows count from 0."""

from pathlib import Path
from typing import Any

import pytest

from eval.suites.config import Vegas
from eval.suites.vegas import CLASSES, COLUMNS, list_vegas
from sonify.config.loader import make_settings
from sonify.errors import InputError
from tests.builders import write_csv


def vegas(root: Path, rows: int = 3, **more: Any) -> Vegas:
    """Ten tables, and no media; two rows of a class are of one video."""
    for number, name in enumerate(CLASSES):
        (root / name).mkdir()
        (root / name / ".DS_Store").touch()
        cells = [(f"-{number}_aBcdefg{row // 2}", row * 10, row * 10 + 4.5) for row in range(rows)]
        write_csv(root / name / "video_info.csv", COLUMNS, cells)
    return make_settings({"kind": "vegas", "name": "small", "path": str(root), **more}, Vegas, check_paths=False)


def test_row_i_is_the_video_of_that_number_whether_it_is_there_or_not(tmp_path):
    entries = list_vegas(vegas(tmp_path))
    assert len(entries) == 30
    third = entries[29]
    assert (third.id, third.recording, third.labels) == ("water_flowing_00002", "-9_aBcdefg1", ("water flowing",))
    assert third.audio == tmp_path / "water_flowing" / "audios" / "video_00002.wav"
    assert third.image == tmp_path / "water_flowing" / "img" / "video_00002.jpg"
    assert (third.ids, third.audio_start_sec, third.audio_seconds) == (("youtube:-9_aBcdefg1",), 0.0, None)
    assert len({entry.recording for entry in entries}) == 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("YTID,start_second,end_second\n", "found no line under the columns"),
        ("", "expected VEGAS' table of a class, found an empty file"),
        ("YTID,start_second\naaaaaaaaaaa,1\n", "line 1: expected the columns YTID,start_second,end_second"),
        ("YTID,start_second,end_second\naaaaaaaaaaa,1\n", "line 2: expected 3 columns"),
        ("YTID,start_second,end_second\naaaaaaaaaaa,x,2\n", "line 2: expected a time in seconds, found 'x'"),
        ("YTID,start_second,end_second\naaaaaaaaaaa,2,2\n", "line 2: expected an end behind the start, found '2,2'"),
        ("YTID,start_second,end_second\n../aaaaaaaa,1,2\n", "line 2: expected a YouTube id, found '../aaaaaaaa'"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content, said):
    config = vegas(tmp_path)
    (tmp_path / "dog" / "video_info.csv").write_text(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/dog/video_info\.csv.*{said}"):
        list_vegas(config)


def test_a_class_that_is_not_there_or_has_too_few_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"baby_cry/video_info\.csv: expected 4 videos \(per_class\), found 3"):
        list_vegas(vegas(tmp_path, per_class=4))
    (tmp_path / "snoring" / "video_info.csv").unlink()
    config = make_settings({"kind": "vegas", "name": "small", "path": str(tmp_path)}, Vegas, check_paths=False)
    with pytest.raises(InputError, match=r"snoring/video_info\.csv: expected a list, found none"):
        list_vegas(config)

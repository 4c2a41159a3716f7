"""The suites that need no corpus: a table, a folder, and the demo's."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from eval.prepare import prepare, selection_of
from eval.suites.config import DemoSuite
from eval.suites.own import SHOWN_IN, list_folder, select_demo
from eval.suites.suite import read_suite
from sonify.demo.demo import PHOTOS
from sonify.errors import InputError
from tests.builders import picture, tone, write_csv, write_sound
from tests.eval.suites_built import demo_suite, folder_config, write_film


def listed(path: Path):
    return list_folder(folder_config(path))


def table(folder: Path, *lines: str) -> Path:
    path = folder / "mine.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_table_of_sounds_alone_is_enough(tmp_path):
    (one, two) = listed(table(tmp_path, "sound", "dogs/one.wav", '"two, and more.wav"'))
    assert (one.id, one.recording, one.audio) == ("dogs-one", "dogs/one.wav", tmp_path / "dogs/one.wav")
    assert (one.image, one.labels, one.captions, one.ids, one.group) == (None, (), (), (), "")
    assert (two.id, two.audio.name) == ("two_2c_20and_20more_2ewav", "two, and more.wav")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1e"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_line_ends_where_a_line_ends_and_nowhere_else(tmp_path, separator, quote):
    write_sound(tmp_path / "a.wav", tone(0))
    caption = f"a{separator}b"
    path = table(tmp_path, "sound,caption,recording", f"a.wav,{quote}{caption}{quote},walk")
    (entry,) = listed(path)
    assert (entry.captions, entry.recording) == ((caption,), "walk")
    suite = prepare(folder_config(path), tmp_path / "suite")
    assert read_suite(suite.folder) == suite
    assert suite.items[0].captions == (caption,)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_any_system_ends_them(tmp_path, end):
    (tmp_path / "mine.csv").write_bytes(f'sound,caption{end}a.wav,"x{end}y"{end}b.wav,z'.encode())
    assert [entry.id for entry in listed(tmp_path / "mine.csv")] == ["a", "b"]


def test_every_column_is_read(tmp_path):
    path = table(
        tmp_path,
        "\ufeffid,sound,image,label,caption,recording,group,youtube,freesound,by whom",
        'a1,a.wav,a.jpg; b.jpg,dog;rain ,"a dog; in the rain",walk,outdoors,abcdefghijk,,me',
        "a2,/else/where.wav,,,,,,abcdefghijk,77,you",
        "a3,a.wav,,,,,,,78,",
    )
    one, two, three = listed(path)
    assert (one.id, one.recording, one.labels, one.captions) == ("a1", "walk", ("dog", "rain"), ("a dog; in the rain",))
    assert (one.image, one.more_images) == (tmp_path / "a.jpg", (tmp_path / "b.jpg",))
    assert (one.group, one.ids) == ("outdoors", ("youtube:abcdefghijk",))
    assert (two.audio, two.recording) == (Path("/else/where.wav"), "youtube:abcdefghijk")
    assert two.ids == ("youtube:abcdefghijk", "freesound:77")
    assert three.recording == "freesound:78"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "expected a column `sound`, found none"),
        (["sounds", "a.wav"], "expected a column `sound`, found 'sounds'"),
        (["sound,labels", "a.wav,dog"], r"no such column: 'labels'; did you mean label\?"),
        (["sound"], "names no sound"),
        (["sound,label", "a.wav,dog", ",cat"], "line 3: names no sound"),
        (["sound,label", "a.wav,a dog, and more"], "line 2: more cells than the first line has columns"),
        (["sound", '"a.wav'], "line 2: cannot be read as CSV"),
        (["sound", "a" * 200_000], "line 2: cannot be read as CSV"),
    ],
)
def test_a_table_that_is_wrong_says_where(tmp_path, lines, message):
    with pytest.raises(InputError, match=message) as refused:
        listed(table(tmp_path, *lines))
    assert "mine.csv" in str(refused.value)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "mine.csv").write_bytes("sound\nhü.wav\n".encode("utf-16"))
    with pytest.raises(InputError, match="cannot be read as text"):
        listed(tmp_path / "mine.csv")


def test_a_folder_gives_labels_and_pictures_by_its_own_names(tmp_path):
    root = tmp_path / "mine"
    for name in ("dog/1.wav", "dog/big/2.flac", "cat/1.wav", "alone.wav", ".hidden/3.wav"):
        write_sound(root / name, tone(0))
    for name in ("dog/1.png", "dog/1.jpg", "dog/big/2.webp", "cat/2.jpg", "dog/.1.jpg"):
        (root / name).write_bytes(picture(0))
    write_film(root / "cat/film.mp4", 1.0)
    (root / "notes.txt").write_text("no sound")
    found = {entry.id: entry for entry in listed(root)}
    assert list(found) == ["alone", "cat-1", "cat-film", "dog-1", "dog-big-2"]
    assert [entry.labels for entry in found.values()] == [(), ("cat",), ("cat",), ("dog",), ("dog",)]
    assert found["dog-1"].image == root / "dog/1.jpg"
    assert found["dog-big-2"].image == root / "dog/big/2.webp"
    assert found["cat-1"].image is None
    assert found["cat-film"].image == found["cat-film"].audio == root / "cat/film.mp4"
    assert found["dog-big-2"].recording == "dog/big/2.flac"


def test_a_suite_that_was_made_inside_of_the_folder_is_not_listed(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0))
    config = folder_config(tmp_path)
    first = prepare(config, tmp_path / "suite")
    assert prepare(config, tmp_path / "suite") == first
    assert len(first.items) == 1


def test_links_are_followed_and_those_that_lead_back_are_not(tmp_path):
    write_sound(tmp_path / "else/b.wav", tone(0))
    write_sound(tmp_path / "mine/dog/a.wav", tone(0))
    (tmp_path / "mine/dog/loop").symlink_to("..")
    (tmp_path / "mine/cat").symlink_to(tmp_path / "else")
    assert [entry.id for entry in listed(tmp_path / "mine")] == ["cat-b", "dog-a"]


def test_names_that_no_list_can_hold_are_left_out(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0))
    shutil.copy(tmp_path / "a.wav", os.fsencode(tmp_path) + b"/\xff.wav")
    assert [entry.id for entry in listed(tmp_path)] == ["a"]


def test_ids_that_are_one_file_on_other_systems_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"mine\.csv: the ids 'Ab' and 'aB' differ in capitals alone"):
        listed(table(tmp_path, "id,sound", "c,x.wav", "Ab,y.wav", "aB,z.wav"))


def test_a_folder_without_a_sound_is_refused(tmp_path):
    with pytest.raises(InputError, match="names no sound; expected a CSV with a column `sound`, or a folder of sounds"):
        listed(tmp_path)


def test_two_sounds_of_one_name_are_told_apart_by_the_user(tmp_path):
    for name in ("a.wav", "a.flac"):
        write_sound(tmp_path / name, tone(0))
    with pytest.raises(InputError, match="names the id 'a' 2 times"):
        selection_of(folder_config(tmp_path))


def test_a_table_is_prepared_with_pictures_films_and_labels(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0))
    (tmp_path / "a.jpg").write_bytes(picture(0))
    film = write_film(tmp_path / "b.mp4", 6.0)
    write_csv(tmp_path / "mine.csv", ("sound", "image", "label"), [("a.wav", "a.jpg;a.jpg", "x"), (film, film, "y;z")])
    suite = prepare(folder_config(tmp_path / "mine.csv"), tmp_path / "suite")
    items = {item.id: item for item in suite.items}
    assert [stored.file for stored in items["a"].references] == ["images/a.png", "images/a+2.png"]
    assert items["b"].labels == ("y", "z")
    assert items["b"].sample_rate_hz == 48_000
    with Image.open(suite.folder / items["b"].references[0].file) as image:
        assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "PNG")


# --- the demo's


def test_the_demos_photographs_say_what_is_heard():
    captions = {photo.file: photo.caption.lower() for photo in PHOTOS}
    assert set(SHOWN_IN.values()) <= set(captions)
    told = {
        "page-turning": "rustling", "keyboard": "keyboard", "spacecraft-radio": "radio beeps", "crowd": "talking",
        "bees": "bees", "dog-barking": "dog barks", "clock": "ticking",
    }  # fmt: skip
    for kind, file in SHOWN_IN.items():
        words = told.get(kind, kind.replace("-", " ").rpartition(" ")[2])
        assert words.rstrip("s").removesuffix("ing") in captions[file], kind


def test_the_demos_suite_has_two_sounds_of_twelve_kinds_and_other_photographs(tmp_path):
    suite = demo_suite(tmp_path)
    assert (len(suite.items), suite.missing) == (24, {})
    labels = [item.labels[0] for item in suite.items]
    assert {labels.count(label) for label in labels} == {2}
    assert "horse hooves" in labels
    shown = [item.references[0].sha256 for item in suite.items]
    assert len(set(shown)) == 6
    assert max(map(shown.count, shown)) == 4  # fewer than the neighbours that a radius needs
    assert suite.twin_references == 24  # each photograph is of two kinds of sound or more
    assert len(suite.others) == len({other.sha256 for other in suite.others}) == 8
    assert not {other.sha256 for other in suite.others} & set(shown)
    assert all(item.window is not None and len(item.captions) == 1 for item in suite.items)


def test_the_demo_has_no_more_than_it_has():
    assert len(select_demo(DemoSuite(kind="demo", name="smoke", sounds=48)).wanted) == 48
    with pytest.raises(InputError, match="sounds: expected at most 48, found 49"):
        select_demo(DemoSuite(kind="demo", name="smoke", sounds=49))

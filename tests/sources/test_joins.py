import random
import unicodedata

import pytest

from sonify.errors import InputError
from sonify.sources.joins import check_any_met, meet, plain, say_meeting, spellings, texts_beside

COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")


@pytest.mark.parametrize(
    ("row", "file"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        (".\\d\\a.jpg", "d/a.jpg"),
        ("d//a.jpg", "d/a.jpg"),
        ("d/./a.jpg", "d/a.jpg"),
        (' "a.jpg" ', "a.jpg"),
        ("\ta b.jpg\r", "a b.jpg"),
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        ("a.jpg", "a.JPG"),
        ("d/a.JPG", "d/a.jpg"),
        ("a", "a.jpg"),
        ("d/a.1", "d/a.1.jpg"),
        ("photos/a.jpg", "a.jpg"),
        ("photos\\d\\a", "d/a.JPG"),
        ("/home/me/photos/d/a.jpg", "d/a.jpg"),
        ("C:\\photos\\photos\\a.jpg", "a.jpg"),
    ],
)
def test_a_row_meets_its_file_in_any_spelling(row, file):
    met = meet([row], [file, "other.jpg"], "photos")
    assert (met.met, met.bare, met.lost, met.unclear) == (1, ["other.jpg"], [], [])
    assert met.others.get(file, file) == row


@pytest.mark.parametrize(
    ("row", "files"),
    [
        ("a", ["a.jpg", "a.png"]),
        ("./a.Jpg", ["a.jpg", "a.JPG"]),
        ("./café.jpg", [COMPOSED, DECOMPOSED]),
    ],
)
def test_what_could_be_two_files_is_none(row, files):
    met = meet([row], files, "photos")
    assert (met.met, met.unclear, met.lost) == (0, [row], [])


@pytest.mark.parametrize(
    "row", ["x/a.jpg", "a.jpeg", "../photos/a.jpg", "/home/a.jpg", "A.jpg", "", "photos", "me/photos/a.jpg"]
)
def test_another_file_is_not_met(row):
    met = meet([row], ["a.jpg"], "photos")
    assert (met.met, met.lost) == (0, [row])


def test_the_very_name_counts_before_any_other_spelling():
    met = meet(["./a.jpg", "a.jpg", "a", "a.JPG"], ["a.jpg", "a.png"], "photos")
    assert (met.others, met.again, met.unclear, met.lost) == ({}, ["./a.jpg", "a.JPG"], ["a"], [])


def test_of_several_rows_the_last_counts_and_the_others_are_said():
    met = meet(["./a.jpg", "a.JPG", "b.jpg", "b.jpg"], ["a.jpg", "b.jpg"])
    assert met.others == {"a.jpg": "a.JPG"}
    assert sorted(met.again) == ["./a.jpg", "b.jpg"]


def test_every_row_and_every_file_is_accounted_for():
    rng = random.Random(0)
    parts = ["a", "b.jpg", "B.JPG", ".", "photos", "é", "e\u0301", "", " ", "c.png", '"']
    for _ in range(3000):
        rows, files = (
            [rng.choice("/\\").join(rng.choices(parts, k=rng.randint(1, 3))) for _ in range(6)] for _ in "ab"
        )
        met = meet(rows, dict.fromkeys(files), "photos")
        direct = set(rows) & set(files)
        assert met.met + len(met.bare) == len(set(files)) == len(direct | met.others.keys() | set(met.bare))
        assert len(direct) + len(met.others) + len(met.again) + len(met.lost) + len(met.unclear) == len(rows)


def test_what_met_nothing_is_said_in_one_line_and_nothing_otherwise(caplog):
    say_meeting("captions.csv", meet(["x", "y", "z", "a.jpg"], ["a.jpg", *(f"{n}.jpg" for n in range(12))]), "image")
    say_meeting("captions.csv", meet(["a.jpg"], ["a.jpg"]), "image")
    say_meeting("captions.csv", meet(["a.jpg", "a.jpg"], ["a.jpg", "b.jpg"]), "image")
    assert [record.getMessage() for record in caplog.records] == [
        "captions.csv: 3 rows name no file (first: 'x'), 12 images have no row (first: '0.jpg')",
        "captions.csv: 1 row names a file again (first: 'a.jpg'), 1 image has no row (first: 'b.jpg')",
    ]


def test_a_table_of_which_no_row_meets_a_file_says_what_one_would_look_like(tmp_path):
    met = meet(["IMG_1", "IMG_2"], ["d/a.jpg"], "photos")
    with pytest.raises(
        InputError, match=r"c\.csv: none of its 2 rows .* column file, such as 'd/a\.jpg', found 'IMG_1'"
    ):
        check_any_met(tmp_path / "c.csv", "file", met, tmp_path)
    for rows, files in (([], ["a.jpg"]), (["a"], []), (["a", "x"], ["a.jpg"])):
        check_any_met(tmp_path / "c.csv", "file", meet(rows, files), tmp_path)


def test_plain_names_stay_plain_and_paths_from_the_root_stay_that():
    assert [plain(name) for name in ("a.jpg", "a/../b", "//a//b/", "\u201ca\u201d")] == ["a.jpg", "a/../b", "/a/b", "a"]


def test_the_spellings_of_a_name_lead_no_further_than_the_name():
    assert spellings("d\\a.JPG") == ["d/a.JPG", "d/a.jpg"]
    assert all(name.split("/").count("..") for name in spellings("..\\a.jpg"))


ENDINGS = ("txt", "caption", "json")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["1.jpg", "1.txt", "1.json"], "1.txt"),
        (["1.jpg", "1.json"], "1.json"),
        (["1.jpg", "1.CAPTION"], "1.CAPTION"),
        (["1.jpg", "1.TXT", "1.txt"], "1.txt"),
        (["d/1.image.jpg", "d/1.txt", "1.txt"], "d/1.txt"),
        (["1.jpg", "1.image.jpg", "1.txt"], "1.txt"),
        (["1.jpg", "1.cls.txt"], "1.cls.txt"),
        (["1.jpg", "1.cls.txt", "1.caption.txt"], "1.caption.txt"),
        (["1.jpg", "1.cls.txt", "1.url.txt"], None),
        (["a.1.jpg", "a.2.jpg", "a.2.txt"], None),
        (["a.1.jpg", "a.2.jpg", "a.3.txt"], None),
        (["a.1.jpg", "a.1.txt", "a.txt"], "a.1.txt"),
        (["1.jpg", "2.txt", "d/1.txt", "1txt"], None),
    ],
)
def test_a_text_belongs_to_the_image_of_its_name_or_of_its_sample(names, text):
    images = [name for name in names if name.endswith(".jpg")]
    assert texts_beside(names, images, ENDINGS).get(images[0]) == text


def test_both_images_of_a_sample_have_its_text():
    names = ["1.left.jpg", "1.right.jpg", "1.txt"]
    assert texts_beside(names, names[:2], ENDINGS) == dict.fromkeys(names[:2], "1.txt")

"""Landscapes and Into the Wild are read in their published forms."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.prepare import selection_of
from eval.suites.config import Itw, Landscapes, LandscapesItw
from eval.suites.landscapes import list_itw, list_landscapes, list_landscapes_itw
from sonify.config.loader import make_settings
from sonify.errors import InputError

CLIPS = ("0012_3889", "0588_220", "0012_17")
LABELS = "filename,label\r\n0012_3889.png,wind noise\r\n0588_220.png,explosion\r\n0012_17.png,raining"
TABLE = "event_labels\tfilename\nfire_crackling\t_2ioOlo0u5I#19826#19836\nraining\t-WrD5DwI6_4#8410#8420\n"


def write_lists(root: Path, clips: Sequence[str] = CLIPS, split: str = "val") -> Path:
    """The two lists of a split, without a line end at the end."""
    for kind, suffix in (("audio", "wav"), ("image", "png")):
        lines = "\n".join(f"landscape-{kind}s/{clip}.{suffix}" for clip in clips)
        (root / f"{kind}_{split}_landscape.txt").write_text(lines)
    return root


def landscapes(root: Path, **more: Any) -> Landscapes:
    raw = {"kind": "landscapes", "name": "small", "path": str(root), **more}
    return make_settings(raw, Landscapes, check_paths=False)


def itw(root: Path, *names: str, **more: Any) -> Itw:
    (root / "audio").mkdir()
    for name in names:
        (root / "audio" / name).touch()
    return make_settings({"kind": "itw", "name": "small", "path": str(root), **more}, Itw, check_paths=False)


def with_labels(root: Path, content: str = LABELS) -> dict[str, str]:
    (root / "labels.csv").write_bytes(content.encode())
    return {"labels": str(root / "labels.csv")}


# --- the published lists


@pytest.fixture(scope="module")
def published(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published `val` and labels.csv; the clips of labels.csv that are not in it are the 5,993 of `train`."""
    source = test_data / "formats" / "landscapes"
    if not source.is_dir():
        pytest.skip("the test data has no formats/landscapes")
    root = tmp_path_factory.mktemp("landscapes")
    audio_list = (source / "SonicDiffusion_audio_val_landscape.txt").read_bytes()
    (root / "audio_val_landscape.txt").write_bytes(audio_list)
    (root / "image_val_landscape.txt").write_bytes(
        audio_list.replace(b"landscape-audios", b"landscape-images").replace(b".wav", b".png")
    )
    (root / "labels.csv").write_bytes((source / "SonicDiffusion_labels.csv").read_bytes())
    with (root / "labels.csv").open(newline="") as file:
        named = [row["filename"].removesuffix(".png") for row in csv.DictReader(file)]
    val = {line.rpartition("/")[2].removesuffix(".wav") for line in audio_list.decode().split()}
    write_lists(root, [clip for clip in named if clip not in val], "train")
    return root


def test_the_published_splits_have_612_and_83_sources_and_share_none(published):
    labels = str(published / "labels.csv")
    train, val = (list_landscapes(landscapes(published, split=split, labels=labels)) for split in ("train", "val"))
    sources = [{entry.recording for entry in entries} for entries in (train, val)]
    assert (len(train), len(val)) == (5_993, 808)
    assert (len(sources[0]), len(sources[1]), len(sources[0] & sources[1])) == (612, 83, 0)
    assert len({entry.labels for entry in (*train, *val)}) == 9


# --- lists


def test_line_k_of_the_sounds_pairs_with_line_k_of_the_pictures(tmp_path):
    entries = list_landscapes(landscapes(write_lists(tmp_path), **with_labels(tmp_path)))
    assert [(each.id, each.recording, each.labels) for each in entries] == [
        ("0012_3889", "0012", ("wind noise",)),
        ("0588_220", "0588", ("explosion",)),
        ("0012_17", "0012", ("raining",)),
    ]
    assert entries[1].audio == tmp_path / "landscape-audios" / "0588_220.wav"
    assert entries[1].image == tmp_path / "landscape-images" / "0588_220.png"
    assert (entries[1].split, entries[1].ids, entries[1].image_sec) == ("val", (), None)


def test_lists_are_read_without_labels_and_with_either_line_end(tmp_path):
    write_lists(tmp_path, split="train")
    path = tmp_path / "audio_train_landscape.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    entries = list_landscapes(landscapes(tmp_path, split="train"))
    assert [(entry.id, entry.labels, entry.split) for entry in entries] == [(clip, (), "train") for clip in CLIPS]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("audio_val_landscape.txt", "", "audio_val_landscape.txt: expected a file of each clip, found an empty file"),
        ("image_val_landscape.txt", "a/0012_3889.png", "image_val_landscape.txt: expected 3 lines as in .*, found 1"),
        (
            "image_val_landscape.txt",
            "a/0012_3889.png\na/0012_17.png\na/0588_220.png",
            "line 2: expected the picture of 0588_220, as in audio_val_landscape.txt, found '0012_17'",
        ),
        ("audio_val_landscape.txt", "a/1_1.png\na/1_2.wav\na/1_3.wav", r"line 1: expected <folder>/<source>_<n>\.wav"),
        ("audio_val_landscape.txt", "a/1_1\na/1_2.wav\na/1_3.wav", r"line 1: expected <folder>/<source>_<n>\.wav"),
        ("audio_val_landscape.txt", "../a/1_1.wav\na/1_2.wav\na/1_3.wav", r"line 1: expected <folder>/<source>_<n>"),
        ("audio_val_landscape.txt", "/a/1_1.wav\na/1_2.wav\na/1_3.wav", r"line 1: expected <folder>/<source>_<n>"),
        ("labels.csv", "filename,label\r\n0012_3889.png,rain\r\n", "line 2: expected a clip of .*labels.csv, found"),
        ("labels.csv", "filename\r\n0012_3889.png\r\n", "labels.csv, line 1: expected the columns filename,label"),
        ("labels.csv", LABELS + "\r\n0012_17.wav,hail", "labels.csv, line 5: expected each clip once"),
        ("labels.csv", LABELS + "\r\n0012_18.png,", r"labels.csv, line 5: expected <source>_<n>\.png,label"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, name, content, said):
    config = landscapes(write_lists(tmp_path), **with_labels(tmp_path))
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(InputError, match=said):
        list_landscapes(config)


def test_a_clip_is_listed_once(tmp_path):
    with pytest.raises(InputError, match=r"^small: its list names the id '1_1' 2 times \(.*landscape-audios/1_1\.wav"):
        selection_of(landscapes(write_lists(tmp_path, ("1_1", "1_2", "1_1"))))


@pytest.mark.parametrize(("split", "other", "others"), [("val", "train", 5_993), ("train", "val", 808)])
def test_the_other_split_gives_other_pictures_and_replaces_nothing(published, split, other, others):
    config = landscapes(published, split=split, labels=str(published / "labels.csv"), replace_missing=True)
    selection = selection_of(config)
    assert {entry.split for entry in selection.wanted} == {split}
    assert selection.rest == ()
    assert (len(selection.others), {entry.split for entry in selection.others}) == (others, {other})
    assert selection_of(config.model_copy(update={"others": 0})).others == ()


def test_without_the_lists_of_the_other_split_there_are_no_other_pictures(tmp_path):
    assert selection_of(landscapes(write_lists(tmp_path))).others == ()
    write_lists(tmp_path, ("0001_1", "0001_2"), "train")
    assert {entry.id for entry in selection_of(landscapes(tmp_path)).others} == {"0001_1", "0001_2"}
    (tmp_path / "image_train_landscape.txt").unlink()
    assert selection_of(landscapes(tmp_path)).others == ()
    assert selection_of(table(tmp_path)).others == ()


# --- the table


def table(root: Path, content: str = TABLE) -> Landscapes:
    (root / "Landscape.csv").write_text(content)
    return landscapes(root / "videos", form="table", table=str(root / "Landscape.csv"))


def test_the_table_names_videos_and_their_times(tmp_path):
    first, second = list_landscapes(table(tmp_path))
    assert (first.id, first.recording, first.labels) == ("_2ioOlo0u5I_19826_19836", "_2ioOlo0u5I", ("fire crackling",))
    assert first.ids == ("youtube:_2ioOlo0u5I",)
    assert first.audio == first.image == tmp_path / "videos" / "_2ioOlo0u5I#19826#19836.mp4"
    assert (second.id, second.image_sec) == ("-WrD5DwI6_4_8410_8420", None)


def test_videos_of_the_table_may_lie_in_folders(tmp_path):
    there = tmp_path / "videos" / "test" / "-WrD5DwI6_4#8410#8420.mp4"
    there.parent.mkdir(parents=True)
    there.touch()
    (there.parent / "._-WrD5DwI6_4#8410#8420.mp4").touch()
    assert list_landscapes(table(tmp_path))[1].audio == there


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TABLE + "thunder\tabc#1#2\n", "line 4: expected <ytid>#<start>#<end> in seconds, found 'abc#1#2'"),
        (TABLE + "thunder\t-WrD5DwI6_4#20#10\n", "line 4: expected <ytid>#<start>#<end> in seconds"),
        (TABLE + "\t-WrD5DwI6_4#1#2\n", "line 4: expected a label in front of the name"),
        (TABLE + "thunder,-WrD5DwI6_4#1#2\n", r"line 4: expected 2 columns \(event_labels<TAB>filename\)"),
        ("thunder\t-WrD5DwI6_4#1#2\n", "line 1: expected the columns event_labels<TAB>filename"),
        ("event_labels\tfilename\n", "found no line under the columns"),
        ('"thunder" x\t-WrD5DwI6_4#1#2\n', "line 1: expected event_labels<TAB>filename, found '<TAB>' expected after"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content, said):
    with pytest.raises(InputError, match=rf"^{tmp_path}/Landscape\.csv.*{said}"):
        list_landscapes(table(tmp_path, content))


def test_the_table_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="form: table needs table"):
        list_landscapes(landscapes(tmp_path, form="table"))


# --- Into the Wild


def test_every_clip_has_the_picture_of_its_middle(tmp_path):
    config = itw(tmp_path, "_-aBcdefgh2_clip3.wav", "-_aBcdefgh1_clip10.wav", ".DS_Store", "._x.wav", "notes.txt")
    first, second = list_itw(config)
    assert (first.id, first.recording, first.ids) == ("-_aBcdefgh1_clip10", "-_aBcdefgh1", ("youtube:-_aBcdefgh1",))
    assert (second.audio, second.image) == (
        tmp_path / "audio" / "_-aBcdefgh2_clip3.wav",
        tmp_path / "jpg" / "_-aBcdefgh2_clip3-4.jpg",
    )
    assert (second.more_images, second.labels, second.group) == ((), (), "")


def test_all_eight_pictures_are_references_where_that_is_asked(tmp_path):
    (entry,) = list_itw(itw(tmp_path, "aaaaaaaaaaa_clip1.wav", references="all"))
    assert entry.image is not None
    assert [path.name[-5] for path in (entry.image, *entry.more_images)] == list("41235678")


def test_what_is_not_into_the_wild_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"audio: expected <ytid>_clip<N>\.wav, found no such file"):
        list_itw(itw(tmp_path, "aaaaaaaaaaa_clip1.mp3"))
    (tmp_path / "audio" / "dog.wav").touch()
    config = make_settings({"kind": "itw", "name": "small", "path": str(tmp_path)}, Itw, check_paths=False)
    with pytest.raises(InputError, match=r"audio: expected <ytid>_clip<N>\.wav, found 'dog\.wav'"):
        list_itw(config)
    elsewhere = make_settings({"kind": "itw", "name": "small", "path": str(tmp_path / "no")}, Itw, check_paths=False)
    with pytest.raises(InputError, match=r"no/audio: expected Into the Wild's sounds, found no folder"):
        list_itw(elsewhere)


def test_the_union_holds_both_and_says_which_is_which(tmp_path):
    for name in ("landscapes", "itw"):
        (tmp_path / name).mkdir()
    write_lists(tmp_path / "landscapes")
    itw(tmp_path / "itw", "aaaaaaaaaaa_clip1.wav", "aaaaaaaaaaa_clip2.wav")
    raw = {"kind": "landscapes_itw", "name": "both", "landscapes": str(tmp_path / "landscapes")}
    raw |= {"itw": str(tmp_path / "itw"), **with_labels(tmp_path)}
    entries = list_landscapes_itw(make_settings(raw, LandscapesItw, check_paths=False))
    assert [(entry.group, len(entry.labels)) for entry in entries] == [("landscapes", 1)] * 3 + [("itw", 0)] * 2
    assert len({entry.recording for entry in entries}) == 3

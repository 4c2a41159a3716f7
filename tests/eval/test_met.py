"""An item is met where an id says so, and not otherwise; what cannot be told is said to be unknown."""

import csv
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from eval.met import RECORDINGS, Met, level_of, levels_of, main, read_met, write_recordings
from eval.prepare import prepare
from eval.suites.suite import Item, read_suite
from sonify.dataset.write import publish
from sonify.errors import WorkError
from sonify.running import run
from tests.builders import refused, small_config, tone, write_csv, write_photos, write_sound, write_sounds
from tests.eval.suites.test_derange import item as plain_item
from tests.eval.suites_built import folder_config

VIDEO, OTHER = "-abcDEF_123", "ZYXwvu98765"
ESC50 = ("filename", "fold", "target", "category", "esc10", "src_file", "take")


def item(*ids: str, name: str = "a") -> Item:
    return replace(plain_item(name), ids=ids)


def table(tmp_path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = ("id", "kind", "seen")) -> Path:
    return write_csv(tmp_path / "recordings.csv", columns, rows)


def esc50(root: Path, sources: Sequence[int]) -> Path:
    """ESC-50 with a take of each of these uploads."""
    names = [f"1-{source}-A-0.wav" for source in sources]
    for n, name in enumerate(names):
        write_sound(root / "esc50" / "audio" / name, tone(n))
    (root / "esc50" / "meta").mkdir()
    rows = [(name, 1, 0, "dog", "False", source, "A") for name, source in zip(names, sources, strict=True)]
    write_csv(root / "esc50" / "meta" / "esc50.csv", ESC50, rows)
    return root / "esc50"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a folder and ESC-50, whole."""
    root = tmp_path_factory.mktemp("met")
    write_photos(root / "photos", {"a.jpg": "a photo of a dog"})
    write_sounds(root / "sounds", {"a.flac": "dog", "b.flac": "rain"})
    sources = [
        {"kind": "folder", "path": str(root / "sounds")},
        {"kind": "esc50", "path": str(esc50(root, (100, 200)))},
    ]
    run(small_config(root, audio={"sources": sources, "validation": 0.5}))
    return root


def test_a_pair_is_worse_than_a_sound_and_what_is_not_there_is_out(tmp_path: Path):
    met = read_met([table(tmp_path, [(VIDEO, "youtube", "pair"), ("42", "freesound", "audio")])])
    levels = {"pair": item(f"youtube:{VIDEO}"), "sound": item("freesound:42"), "none": item(f"youtube:{OTHER}")}
    assert {name: level_of(one, met) for name, one in levels.items()} == {
        "pair": "in", "sound": "audio", "none": "out"
    }  # fmt: skip
    assert level_of(item("freesound:42", f"youtube:{VIDEO}"), met) == "in"
    assert level_of(item("freesound:1", f"youtube:{VIDEO}"), met) == "in"


@pytest.mark.parametrize("ids", [(), ("freesound:42",), ("sha256:" + "a" * 64, "bbc:0707")])
def test_without_an_id_of_a_kind_that_the_data_have_it_is_unknown(tmp_path: Path, ids: tuple[str, ...]):
    met = read_met([table(tmp_path, [(VIDEO, "youtube", "pair")])])
    assert level_of(item(*ids), met) == "unknown"


def test_a_table_without_how_it_was_seen_is_of_sounds(tmp_path: Path):
    met = read_met([table(tmp_path, [("42", "freesound")], ("id", "kind"))])
    assert met == Met(audio=frozenset({"freesound:42"}))


def test_levels_are_counted_and_the_ids_of_out_are_given(tmp_path: Path):
    met = read_met([table(tmp_path, [(VIDEO, "youtube", "pair"), ("42", "freesound", "audio")])])
    ids = {"a": (f"youtube:{VIDEO}",), "b": ("freesound:7",), "c": (), "d": ("freesound:9",)}
    items = [item(*of, name=name) for name, of in ids.items()]
    levels = levels_of(items, met)
    assert levels.counts == {"in": 1, "audio": 0, "out": 2, "unknown": 1}
    assert levels.out == ("b", "d")
    assert levels_of(items, None).counts == {"in": 0, "audio": 0, "out": 0, "unknown": 4}


def test_an_item_that_comes_into_the_pool_flips(root: Path, tmp_path: Path):
    """The same item against a pool without its upload and against one with it."""
    asked = item("freesound:300")
    assert level_of(asked, read_met([root / "run"])) == "out"
    write_photos(tmp_path / "photos", {"a.jpg": "a photo of a dog"})
    sources = {"sources": [{"kind": "esc50", "path": str(esc50(tmp_path, (100, 300)))}], "validation": 0}
    run(small_config(tmp_path, audio=sources), stages=["pool"])
    assert level_of(asked, read_met([tmp_path / "run"])) == "audio"
    assert level_of(asked, read_met([root / "run", tmp_path / "run"])) == "audio"


def test_a_folder_is_known_by_the_hashes_of_its_files_where_they_still_lie(root: Path, tmp_path: Path):
    data = (root / "sounds" / "a.flac").read_bytes()
    asked = item(f"sha256:{hashlib.sha256(data).hexdigest()}")
    met = read_met([root / "run"])
    assert met.kinds == {"freesound", "sha256"}
    assert met.unnamed == 0
    assert level_of(asked, met) == "audio"
    shutil.copytree(root / "run", tmp_path / "run")
    hidden = (root / "sounds").rename(root / "elsewhere")
    try:
        moved = read_met([tmp_path / "run"])
    finally:
        hidden.rename(root / "sounds")
    assert moved.unnamed == 2
    assert level_of(asked, moved) == "unknown"


def test_the_very_file_that_was_trained_on_is_known_by_its_bytes(tmp_path: Path):
    """From `prepare` to a level: what was heard is the published file, not the sound that the suite holds."""
    for n, name in enumerate(("heard", "new", "video")):
        write_sound(tmp_path / "mine" / f"{name}.wav", tone(n, 12.0))
    rows = [("heard.wav", ""), ("new.wav", ""), ("video.wav", VIDEO)]
    suite = prepare(folder_config(write_csv(tmp_path / "mine" / "mine.csv", ("sound", "youtube"), rows), seconds=10.0),
                    tmp_path / "suite")  # fmt: skip
    published = hashlib.sha256((tmp_path / "mine/heard.wav").read_bytes()).hexdigest()
    items = read_suite(suite.folder).items
    assert published not in {item.sound.sha256 for item in items}
    met = read_met([table(tmp_path, [(published, "sha256", "audio")])])
    # that video's file was not heard; another encoding of it is not known
    assert levels_of(items, met).of == {"heard": "audio", "new": "out", "video": "out"}
    met = read_met([table(tmp_path, [(VIDEO, "youtube", "pair"), (published, "sha256", "audio")])])
    assert levels_of(items, met).of == {"heard": "audio", "new": "out", "video": "in"}
    # a sound without a public id is unknown to data of which only such ids are known
    assert levels_of(items, read_met([table(tmp_path, [(OTHER, "youtube", "pair")])])).of == {
        "heard": "unknown", "new": "unknown", "video": "out"
    }  # fmt: skip


def test_a_folders_own_table_may_name_the_upload(tmp_path: Path):
    write_photos(tmp_path / "photos", {"a.jpg": "a photo of a dog"})
    write_sounds(tmp_path / "sounds", {"a.flac": "dog", "b.flac": "rain"})
    rows = [("a.flac", "dog", f"youtube/{VIDEO}"), ("b.flac", "rain", "freesound/42")]
    write_csv(tmp_path / "sounds" / "metadata.csv", ("file", "text", "recording"), rows)
    run(small_config(tmp_path), stages=["pool"])
    assert read_met([tmp_path / "run"]) == Met(audio=frozenset({f"youtube:{VIDEO}", "freesound:42"}))


def test_what_a_run_publishes_says_the_same_of_what_is_heard(root: Path, tmp_path: Path):
    publish(root / "run", tmp_path / "out")
    met = read_met([tmp_path / "out"])
    assert met.audio <= {"freesound:100", "freesound:200"}
    assert met.audio or met.unnamed
    clips = next((tmp_path / "out" / "clips").iterdir())
    clips.write_bytes(clips.read_bytes()[:-9])
    with refused("another sha256"):
        read_met([tmp_path / "out"])


@pytest.mark.parametrize("place", [RECORDINGS, f"pipeline/{RECORDINGS}"])
def test_a_release_and_a_training_run_name_what_was_heard(tmp_path: Path, place: str):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"folder/dog.wav\nfreesound/42\nyoutube/{VIDEO}\nyoutube/too_short\nbbc/0707\n")
    expected = Met(audio=frozenset({"freesound:42", f"youtube:{VIDEO}", "bbc:0707"}), unnamed=2)
    assert read_met([tmp_path]) == read_met([path]) == expected


def test_its_name_is_that_of_the_release():
    from train.checkpoints import RECORDINGS as OF_RELEASE  # noqa: PLC0415 - takes torch

    assert OF_RELEASE == RECORDINGS


def test_what_is_written_is_read_again_and_is_the_same_bytes(root: Path, tmp_path: Path, capsys):
    assert main([str(root / "run"), "--out", str(tmp_path / "recordings.csv")]) == 0
    assert "2 freesound, 2 sha256 (0 seen as pairs); 0 without" in capsys.readouterr().out
    met = read_met([root / "run"])
    assert read_met([tmp_path]) == met
    first = (tmp_path / "recordings.csv").read_bytes()
    write_recordings(met, tmp_path / "recordings.csv")
    assert (tmp_path / "recordings.csv").read_bytes() == first
    assert list(csv.reader(first.decode().splitlines()))[:2] == [["id", "kind", "seen"], ["100", "freesound", "audio"]]


def test_seen_both_ways_is_seen_as_a_pair(tmp_path: Path):
    met = Met(pairs=frozenset({f"youtube:{VIDEO}"}), audio=frozenset({f"youtube:{VIDEO}", "bbc:1"}))
    write_recordings(met, tmp_path / "recordings.csv")
    assert (tmp_path / "recordings.csv").read_text() == f"id,kind,seen\n1,bbc,audio\n{VIDEO},youtube,pair\n"


def test_what_nobody_could_look_up_is_not_written(tmp_path: Path):
    (tmp_path / RECORDINGS).write_text("folder/dog.wav\n")
    with refused("none of 1 recordings has an id"):
        write_recordings(read_met([tmp_path]), tmp_path / "recordings.csv")
    assert main([str(tmp_path), "--out", str(tmp_path / "recordings.csv")]) == 2
    assert not (tmp_path / "recordings.csv").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected the columns"),
        ("name,kind\n1,bbc\n", "found 'name,kind'"),
        ("id,kind\n", "names no recording"),
        ("id,kind\n12,vimeo\n", "line 2: kind: expected one of youtube"),
        ("id,kind\n12,\n", "line 2: kind"),
        ("id,kind\n12\n", "line 2: kind"),
        ("id,kind\n12,freesound,audio\n", "line 2: expected id,kind,seen, found more"),
        ("id,kind\n12.0,freesound\n", "line 2: id: expected that of freesound, a sound's number"),
        ("id,kind\nabc,youtube\n", "line 2: id: expected that of youtube"),
        ("id,kind\nAA,sha256\n", "line 2: id"),
        ("id,kind\n../x,bbc\n", "line 2: id"),
        ("id,kind,seen\n12,freesound,heard\n", "line 2: seen: expected one of pair, audio"),
        ('id,kind\n"12,freesound\n', "no row of a table"),
        ("id,kind\n12,free\x00sound\n", "line 2"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, text: str, why: str):
    (tmp_path / "recordings.csv").write_text(text)
    with refused(why):
        read_met([tmp_path])


def test_a_table_that_is_no_text_is_one_line(tmp_path: Path):
    (tmp_path / "recordings.csv").write_bytes(b"id,kind\n\xff\xfe,bbc\n")
    with refused("cannot be read as text"):
        read_met([tmp_path / "recordings.csv"])


def test_a_table_of_a_spreadsheet_is_read(tmp_path: Path):
    (tmp_path / "recordings.csv").write_bytes(b"\xef\xbb\xbfid,kind,seen\r\n12,freesound,\r\n")
    assert read_met([tmp_path]) == Met(audio=frozenset({"freesound:12"}))


def test_a_place_that_says_nothing_is_refused(tmp_path: Path):
    with refused("found none of these"):
        read_met([tmp_path])
    with refused("found none of these"):
        read_met([tmp_path / "nowhere"])


def test_a_damaged_pool_is_damage(root: Path, tmp_path: Path):
    shutil.copytree(root / "run", tmp_path / "run")
    for clips in (tmp_path / "run" / "pool" / "clips").glob("*.parquet"):
        clips.write_bytes(b"PAR1")
    with refused("missing or damaged", WorkError):
        read_met([tmp_path / "run"])

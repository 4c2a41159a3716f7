"""Mistakes that stop a command before any work: nothing of the pool is made."""

import shutil
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify import layout
from sonify.running import run
from sonify.sources import mistakes
from tests.builders import (
    archives_in,
    picture,
    refused,
    small_config,
    small_input,
    sound_bytes,
    sounds_in,
    tone,
    vlm_at,
    write_photos,
    write_sound,
    write_sounds,
    write_tar,
)


def refuse(config, match, **settings):
    with refused(match):
        run(config, **settings)
    assert not (config.run_dir / layout.COMMITS).exists()
    assert not (config.run_dir / "pool").exists()


@pytest.mark.parametrize("stages", [None, ["pool", "embeddings"]])
def test_swapped_folders_are_told_by_both_counts(tmp_path, stages):
    small_input(tmp_path, photos=5, recordings=3)
    config = small_config(tmp_path, images={"path": str(tmp_path / "sounds")}, audio=sounds_in(tmp_path / "photos"))
    both = (
        r"sounds holds 3 recordings and no image, and audio\.sources\.0\.path: .*photos holds 5 images and no recording"
    )
    refuse(config, both, stages=stages)


def test_swapped_folders_are_told_behind_links_too(tmp_path):
    small_input(tmp_path, photos=5, recordings=3)
    for name in ("photos", "sounds"):
        (tmp_path / f"links to {name}").mkdir()
        (tmp_path / f"links to {name}" / "linked").symlink_to(tmp_path / name)
    config = small_config(
        tmp_path, images={"path": str(tmp_path / "links to sounds")}, audio=sounds_in(tmp_path / "links to photos")
    )
    refuse(config, "swap the two")


def test_what_a_system_leaves_is_no_medium_of_the_other_kind(tmp_path):
    small_input(tmp_path, photos=5, recordings=3)
    (tmp_path / "sounds" / "._cover.jpg").write_bytes(b"x")
    config = small_config(tmp_path, images={"path": str(tmp_path / "sounds")})
    refuse(config, "sounds holds 3 recordings and no image: name a folder of images")


def test_one_folder_in_the_place_of_another_is_told(tmp_path):
    small_input(tmp_path, photos=5, recordings=3)
    sounds = small_config(tmp_path, images={"path": str(tmp_path / "sounds")})
    refuse(sounds, "images.path: .*sounds holds 3 recordings and no image: name a folder of images")
    photos = small_config(tmp_path, audio=sounds_in(tmp_path / "photos"))
    refuse(photos, r"audio\.sources\.0\.path: .*photos holds 5 images and no recording: name a folder of recordings")


def test_one_file_is_one(tmp_path):
    small_input(tmp_path, photos=1, recordings=1)
    config = small_config(tmp_path, images={"path": str(tmp_path / "sounds")}, audio=sounds_in(tmp_path / "photos"))
    refuse(config, r"sounds holds 1 recording and no image, and .*photos holds 1 image and no recording")


def test_a_swap_is_told_after_what_was_not_found(tmp_path):
    small_input(tmp_path)
    config = small_config(tmp_path, images={"path": str(tmp_path / "sounds")})
    refuse(config, r"sounds holds no \.jpg, .* file: nothing to do; images\.path: .*: name a folder of images")


def test_archives_of_images_beside_a_film_are_images(tmp_path):
    """Another mistake is told as what it is, and so is nothing to list."""
    write_sounds(tmp_path / "sounds", {"dog.flac": "a dog"})
    write_tar(tmp_path / "tars" / "0.tar", {"1.jpg": picture()})
    (tmp_path / "tars" / "preview.mp4").write_bytes(b"film")
    (tmp_path / "ids.csv").write_text("id,text_of_it\n1,a dog\n")
    images = archives_in(tmp_path / "tars")
    refuse(small_config(tmp_path, images=images), "^images.path: no image in .*tars has a caption")
    refuse(apart(tmp_path, "ids.csv", images=images), r"^.*ids\.csv: expected the columns (?!.*no image)")
    folder = {"kind": "folder", "path": str(tmp_path / "tars"), "validation": 0}
    refuse(small_config(tmp_path, images=folder), "tars holds no .*: nothing to do$")


def test_archives_of_sounds_beside_a_cover_are_sounds(tmp_path):
    small_input(tmp_path)
    write_tar(tmp_path / "tars" / "0.tar", {"1.flac": sound_bytes(tone()), "1.txt": b"a dog"})
    (tmp_path / "tars" / "cover.png").write_bytes(picture())
    (tmp_path / "photos" / "captions.csv").write_text("file,caption\nIMG_1.jpg,a dog\n")
    audio = {"sources": [{"kind": "webdataset", "path": str(tmp_path / "tars")}], "validation": 0}
    refuse(small_config(tmp_path, audio=audio), r"^.*captions\.csv: none of its 1 rows (?!.*no recording)")
    refuse(small_config(tmp_path, audio=sounds_in(tmp_path / "tars")), "tars holds no recording: nothing to draw from$")


def test_of_many_archives_some_are_counted(tmp_path):
    small_input(tmp_path)
    for part in range(mistakes.ARCHIVES_SEEN + 1):
        write_tar(tmp_path / "tars" / f"{part}.tar", {"1.flac": sound_bytes(tone()), "._1.jpg": b""})
    images = archives_in(tmp_path / "tars")
    refuse(small_config(tmp_path, images=images), "tars holds at least 3 recordings and no image: name a folder")


def test_a_mistake_in_a_table_is_told_alone(tmp_path):
    small_input(tmp_path)
    (tmp_path / "sounds" / "metadata.csv").write_text("file,text\nx.wav,a dog\n")
    config = small_config(tmp_path, images={"path": str(tmp_path / "sounds")})
    refuse(config, r"metadata\.csv: none of its 1 rows names a file below .*found 'x\.wav'$")


def test_swapped_archives_are_told(tmp_path):
    write_tar(tmp_path / "images" / "0.tar", {"1.jpg": picture(), "1.txt": b"a dog"})
    write_tar(tmp_path / "sounds" / "0.tar", {"1.flac": sound_bytes(tone()), "1.txt": b"a dog"})
    audio = {"sources": [{"kind": "webdataset", "path": str(tmp_path / "sounds")}], "validation": 0}
    swapped = {"sources": [{"kind": "webdataset", "path": str(tmp_path / "images")}], "validation": 0}
    refuse(small_config(tmp_path, images=archives_in(tmp_path / "sounds"), audio=swapped), "swap the two")
    refuse(small_config(tmp_path, images=archives_in(tmp_path / "sounds"), audio=audio), "name a folder of images")


def test_archives_without_an_image_are_told_also_where_a_model_would_look(tmp_path):
    write_sounds(tmp_path / "sounds", {"dog.flac": "a dog"})
    write_tar(tmp_path / "tars" / "0.tar", {"1.xyz": b"", "1.txt": b"a dog"})
    concepts = {"extractors": [vlm_at("http://127.0.0.1:9/v1", max_wait_sec=0.1)]}
    config = small_config(tmp_path, images=archives_in(tmp_path / "tars"), concepts=concepts)
    refuse(config, "no archive that was looked into in .*tars holds an image")


@pytest.mark.parametrize("lost", ["photos", "sounds"])
def test_an_empty_folder_is_told_as_what_it_is(tmp_path, lost):
    small_input(tmp_path)
    for path in (tmp_path / lost).iterdir():
        path.unlink()
    refuse(small_config(tmp_path), "nothing to do" if lost == "photos" else "holds no recording")


def test_an_esc50_folder_without_its_recordings_is_told(tmp_path):
    small_input(tmp_path)
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("filename,category,src_file\n1-1-A-0.wav,dog,1\n")
    audio = {"sources": [{"kind": "esc50", "path": str(tmp_path / "esc")}], "validation": 0}
    refuse(small_config(tmp_path, audio=audio), r"none of the 1 recordings in .*esc50\.csv is below .*audio: .*1-1-A-0")


def test_an_esc50_run_whose_recordings_are_gone_can_be_looked_at_again(tmp_path):
    small_input(tmp_path)
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("filename,category,src_file\n1-1-A-0.wav,dog,1\n")
    write_sound(tmp_path / "esc" / "audio" / "1-1-A-0.wav", tone(0))
    audio = {"sources": [{"kind": "esc50", "path": str(tmp_path / "esc")}], "validation": 0}
    config = small_config(tmp_path, audio=audio)
    before = run(config)
    assert before["pool"].rows_out == 1
    shutil.rmtree(tmp_path / "esc" / "audio")
    assert run(config) == before


def without_captions(tmp_path, photos=5):
    write_sounds(tmp_path / "sounds", {"dog.flac": "a dog"})
    return write_photos(tmp_path / "photos", {f"{n:03d}.jpg": "" for n in range(photos)}, table=False)


def test_images_without_any_caption_stop_before_the_pool(tmp_path):
    without_captions(tmp_path)
    start = time.perf_counter()
    refuse(small_config(tmp_path), "no image in .*photos has a caption: put a captions.csv")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["003.txt", "004.JSON", "002.Caption"])
def test_one_caption_anywhere_is_enough(tmp_path, name, monkeypatch):
    monkeypatch.setattr(mistakes, "IMAGES_SEEN", 1)  # so that all names are looked at
    (without_captions(tmp_path) / name).write_text('{"caption": "a dog"}')
    assert run(small_config(tmp_path), stages=["concepts"])["concepts/captions"].rows_out == 1


def test_one_caption_behind_a_link_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(mistakes, "IMAGES_SEEN", 1)
    photos = without_captions(tmp_path)
    photos.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "003.txt").write_text("a dog")
    photos.mkdir()
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    assert run(small_config(tmp_path), stages=["concepts"])["concepts/captions"].rows_out == 1


def test_captions_that_went_away_do_not_stop_a_run_that_began(tmp_path):
    photos = without_captions(tmp_path)
    (photos / "000.txt").write_text("a dog")
    run(small_config(tmp_path))
    (photos / "000.txt").unlink()
    assert run(small_config(tmp_path))["render"].rows_out == 1


def test_who_asks_a_model_needs_no_captions(tmp_path):
    without_captions(tmp_path)
    config = small_config(tmp_path, concepts={"extractors": [vlm_at("http://127.0.0.1:9/v1", max_wait_sec=0.1)]})
    run(config, stages=["pool"])


def test_archives_and_tables_without_captions_are_told(tmp_path):
    write_sounds(tmp_path / "sounds", {"dog.flac": "a dog"})
    for part in range(2):
        write_tar(tmp_path / "tars" / f"{part}.tar", {f"{n}.jpg": picture(n) for n in range(3)})
    refuse(
        small_config(tmp_path, images=archives_in(tmp_path / "tars")), "no image in .*tars has a caption: put a .txt"
    )
    (tmp_path / "tables").mkdir()
    table = pa.table({"image": [picture()], "text": ["a dog"]})
    pq.write_table(table, tmp_path / "tables" / "0.parquet")
    images = {"kind": "parquet", "path": str(tmp_path / "tables"), "validation": 0}
    refuse(small_config(tmp_path, images=images), "name their column with images.caption_column")
    write_tar(tmp_path / "tars" / "1.tar", {"0.jpg": picture(), "0.TXT": b"a dog"})
    run(small_config(tmp_path, run="other", images=archives_in(tmp_path / "tars")), stages=["concepts"])


def apart(tmp_path, file, **sections):
    extractors = [{"kind": "captions", "file": str(tmp_path / file)}]
    return small_config(tmp_path, concepts={"extractors": extractors}, **sections)


def test_a_table_apart_that_meets_no_image_stops_before_the_pool(tmp_path):
    without_captions(tmp_path)
    (tmp_path / "c.csv").write_text("file,caption\nIMG_1.jpg,a dog\n")
    refuse(apart(tmp_path, "c.csv"), r"c\.csv: none of its 1 rows .* such as '000\.jpg', found 'IMG_1\.jpg'")
    (tmp_path / "ids.csv").write_text("id,caption\nsa_1,a dog\n")
    refuse(apart(tmp_path, "ids.csv"), r"ids\.csv: none of its 1 rows .* such as '000', found 'sa_1'")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "sa_1.txt").write_text("a dog")
    refuse(apart(tmp_path, "texts"), "texts: it has no caption for any of 5 images .* would be named '000'")


def test_what_of_a_table_apart_meets_nothing_is_said(tmp_path, caplog):
    without_captions(tmp_path)
    (tmp_path / "c.csv").write_text("file,caption\n./000.jpg,a dog\nphotos/001.JPG,a cat\n9.jpg,rain\n")
    counts = run(apart(tmp_path, "c.csv"), stages=["concepts"])
    assert counts["concepts/captions"].rows_out == 2
    assert "c.csv: 1 row names no file (first: '9.jpg'), 3 images have no row (first: '002.jpg')" in caplog.messages


def test_captions_apart_are_sought_for_images_in_archives(tmp_path, caplog):
    write_sounds(tmp_path / "sounds", {"dog.flac": "a dog"})
    write_tar(tmp_path / "tars" / "0.tar", {"./sa_1.jpg": picture(), "./sa_2.jpg": picture(1)})
    images = {"kind": "sa1b", "path": str(tmp_path / "tars"), "validation": 0}
    (tmp_path / "c.csv").write_text("image,caption\nsa_7.jpg,a dog\n")
    config = apart(tmp_path, "c.csv", images=images)
    with refused("no image has a sounding concept", Exception):
        run(config, stages=["concepts"])
    (said,) = [message for message in caplog.messages if "it has no caption for any of 2 images" in message]
    assert "one for '0.tar/sa_1.jpg' would be named 'sa_1'" in said

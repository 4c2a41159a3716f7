import json
from typing import Any

import pytest

from sonify.config import FolderImages, WebDatasetImages
from sonify.engine.plan import listed_units
from sonify.errors import InputError, TransientError
from sonify.keys import escape_key
from sonify.prepare import freeze_images
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.sources.images import list_images, read_images
from sonify.sources.images.folder import MAX_TEXT_BYTES
from tests.fakes import picture, small_config, small_input, write_photos, write_tar


def folder(path, **settings):
    return FolderImages(kind="folder", path=path, **settings)


def archives(path, **settings):
    return WebDatasetImages(kind="webdataset", path=path, **settings)


def read_all(images, seed=0) -> list[Any]:
    return [row for unit in list_images(images, seed) for row in read_images(images, unit, seed)]


def test_a_folder_is_read_recursively_in_the_order_of_keys(tmp_path):
    write_photos(tmp_path, {"b.jpg": "one", "a/x.jpeg": "two", "a.png": "three", "notes.gif": "no image"})
    rows = read_all(folder(tmp_path))
    assert [row.uri for row in rows] == ["a.png", "a/x.jpeg", "b.jpg"]
    assert [row.caption for row in rows] == [b"three", b"two", b"one"]
    assert [row.key for row in rows] == sorted(escape_key(row.uri) for row in rows)


def test_captions_come_from_files_beside_the_image(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(picture())
    (tmp_path / "a.txt").write_text("from text")
    (tmp_path / "b.json").write_text(json.dumps({"caption": "from json"}))
    assert [row.caption for row in read_all(folder(tmp_path))] == [b"from text", b"from json", None]


@pytest.mark.parametrize("record", ["{", "[1]", '{"caption": 3}', "[" * 100_000])
def test_a_broken_json_is_no_caption(tmp_path, record):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "a.json").write_text(record)
    (row,) = read_all(folder(tmp_path))
    assert row.caption is None or b"\xff" in row.caption


def test_a_caption_of_any_length_is_read_in_bounds(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "a.txt").write_bytes(b"x" * (MAX_TEXT_BYTES + 10))
    (row,) = read_all(folder(tmp_path))
    assert len(row.caption) == MAX_TEXT_BYTES


def test_blocks_have_the_size_that_was_asked_for(tmp_path):
    write_photos(tmp_path, {f"{n}.jpg": "x" for n in range(7)})
    assert [len(unit) for unit in list_images(folder(tmp_path, shard_size=3), 0)] == [3, 3, 1]


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_sample_has_exactly_the_size_and_depends_on_the_seed(tmp_path, kind):
    names = [f"{n:03d}.jpg" for n in range(40)]
    if kind == "folder":
        write_photos(tmp_path, dict.fromkeys(names, "x"))
        make = folder
    else:
        for part in range(4):
            write_tar(tmp_path / f"{part}.tar", dict.fromkeys(names[part * 10 : part * 10 + 10], b"image"))
        make = archives
    drawn = [{row.key for row in read_all(make(tmp_path, sample=11), seed)} for seed in (0, 0, 1)]
    assert [len(keys) for keys in drawn] == [11, 11, 11]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {row.key for row in read_all(make(tmp_path, sample=5), 0)} < drawn[0]


def test_an_archive_gives_images_with_captions_wherever_they_stand(tmp_path):
    members = {
        "b.jpg": b"B",
        "x/a.1.txt": b"first",
        "b.json": b'{"caption": "second"}',
        "x/a.1.jpg": b"A",
        "z.pkl": b"!",
    }
    write_tar(tmp_path / "part.tar", members)
    rows = read_all(archives(tmp_path))
    assert [(row.uri, row.data, row.caption) for row in rows] == [
        ("part.tar/b.jpg", b"B", b"second"),
        ("part.tar/x/a.1.jpg", b"A", b"first"),
    ]


def test_keys_with_dots_stay_apart(tmp_path):
    write_tar(tmp_path / "p.tar", {"a.1.jpg": b"1", "a.2.jpg": b"2", "a b ü.jpg": b"3", "n" * 300 + ".jpg": b"4"})
    rows = read_all(archives(tmp_path / "p.tar"))
    assert len({row.key for row in rows}) == 4


def test_a_cut_archive_gives_what_is_whole_and_one_reject(tmp_path):
    path = write_tar(tmp_path / "p.tar", {f"{n}.jpg": bytes([n]) * 1000 for n in range(3)})
    path.write_bytes(path.read_bytes()[: 1536 * 2 + 700])
    rows = read_all(archives(tmp_path))
    assert [row.uri for row in rows if isinstance(row, SourceImage)] == ["p.tar/0.jpg", "p.tar/1.jpg"]
    assert [row.reason for row in rows if isinstance(row, Rejected)] == [Reason.DAMAGED_ARCHIVE]


def test_an_image_that_went_away_is_rejected_but_a_lost_disk_is_not(tmp_path):
    root = write_photos(tmp_path / "photos", {"a.jpg": "x"})
    refs = [ImageRef(uri="gone.jpg", caption=b"", below=0)]
    (row,) = read_images(folder(root), refs, 0)
    assert isinstance(row, Rejected)
    assert row.reason == Reason.UNREADABLE
    with pytest.raises(TransientError, match="mounted"):
        list(read_images(folder(tmp_path / "unmounted"), refs, 0))


@pytest.mark.parametrize("make", [folder, archives])
def test_an_empty_image_set_is_an_error(tmp_path, make):
    with pytest.raises(InputError, match="nothing to do"):
        list(list_images(make(tmp_path), 0))


def test_a_captions_table_without_its_columns_is_an_error(tmp_path):
    write_photos(tmp_path, {"a.jpg": "x"}, table=False)
    (tmp_path / "captions.csv").write_text("image,text\na.jpg,x\n")
    with pytest.raises(InputError, match=r"captions\.csv: expected the columns file, caption"):
        list(list_images(folder(tmp_path), 0))


def test_captions_in_a_table_may_hold_anything(tmp_path):
    write_photos(tmp_path, {"a.jpg": "x", "b.jpg": "x", "c.jpg": "x"}, table=False)
    rows = (
        b'file,caption\na.jpg,"two ""quoted""\nlines, and a comma"\nb.jpg,\xff\xfe\nc.jpg,' + b"x" * (1 << 20) + b"\n"
    )
    (tmp_path / "captions.csv").write_bytes(rows)
    first, second, third = read_all(folder(tmp_path))
    assert first.caption == b'two "quoted"\nlines, and a comma'
    assert second.caption == b"\xff\xfe"
    assert len(third.caption) == 1 << 20


def test_new_images_become_new_units_and_old_units_stay(tmp_path):
    small_input(tmp_path, photos=10)
    config = small_config(tmp_path)
    freeze_images(config.run_dir, config.images, config.seed)
    frozen = {p.name: p.read_bytes() for p in (config.run_dir / "units/concepts").iterdir()}
    write_photos(tmp_path / "photos", {"000-new.jpg": "x", "zzz.jpg": "y"})
    freeze_images(config.run_dir, config.images, config.seed)
    assert listed_units(config.run_dir, "concepts") == ["000000", "000001", "000002"]
    for name, data in frozen.items():
        assert (config.run_dir / "units/concepts" / name).read_bytes() == data


@pytest.mark.parametrize("sample", [None, 18])
def test_a_lost_listing_comes_back_the_same(tmp_path, sample):
    small_input(tmp_path, photos=20)
    images = small_config(tmp_path).images.model_dump(mode="json") | {"sample": sample}
    config = small_config(tmp_path, images=images)
    freeze_images(config.run_dir, config.images, config.seed)
    lost = config.run_dir / "units/concepts/000001.parquet"
    before = lost.read_bytes()
    lost.unlink()
    freeze_images(config.run_dir, config.images, config.seed)
    assert lost.read_bytes() == before

import io
import json
import logging
import sys
import tracemalloc
from typing import Any

import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sonify import layout
from sonify.config import FolderImages, ParquetImages, Sa1bImages, WebDatasetImages
from sonify.engine.plan import listed_units
from sonify.errors import InputError, TransientError
from sonify.io.listing import Listing, say_passed_over
from sonify.io.tables import read_rows
from sonify.keys import escape_key
from sonify.media.pixels import inspect_image
from sonify.prepare import freeze_images
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.running import run
from sonify.sources.captions import MAX_CAPTION_BYTES, captions_for
from sonify.sources.images import _texts_beside, images_in, list_images, read_images
from sonify.sources.tables import table_for
from sonify.sources.userfiles import FILE_COLUMNS, TEXT_COLUMNS
from sonify.stages.table import stages_of
from tests import builders
from tests.builders import (
    SUBJECTS,
    picture,
    refused,
    small_config,
    small_input,
    write_csv,
    write_photos,
    write_sa1b,
    write_tar,
)


def folder(path, **settings):
    return FolderImages(kind="folder", path=path, **settings)


def archives(path, **settings):
    return WebDatasetImages(kind="webdataset", path=path, **settings)


def read_all(images, seed=0) -> list[Any]:
    return [row for unit in list_images(images, seed) for row in read_images(images, unit, seed)]


def test_a_folder_is_read_recursively_in_the_order_of_keys(tmp_path):
    write_photos(tmp_path, {"b.jpg": "one", "a/x.jpeg": "two", "a.png": "three", "notes.tga": "no image"})
    rows = read_all(folder(tmp_path))
    assert [row.uri for row in rows] == ["a.png", "a/x.jpeg", "b.jpg"]
    assert [row.caption for row in rows] == [b"three", b"two", b"one"]
    assert [row.key for row in rows] == sorted(escape_key(row.uri) for row in rows)


@pytest.mark.parametrize(
    ("files", "text", "beside"),
    [
        (["a.jpg"], "a.txt", True),
        (["a-b.jpg", "a.b.jpg", "a.jpg", "ab.jpg"], "a.txt", True),
        (["a.b.jpg", "a.b.png", "a.c/d.jpg"], "a.txt", False),
        (["a.b.jpg", "a.z"], "a.TXT", True),
        (["a.b.jpg", "a.z"], "a.b.json", True),
        (["b/a.jpg"], "a.txt", False),
        ([], "a.txt", False),
        (["a.jpg"], "b.txt", False),
        (["a.jpg"], "a.xmp", False),
    ],
)
def test_a_text_is_counted_as_read_where_an_image_has_its_name(files, text, beside):
    assert list(_texts_beside(Listing(files=files, others=[text]))) == ([text] if beside else [])


def test_what_is_said_of_a_large_folder_needs_no_second_listing_in_memory(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"{n % 100:02d}/sa_{n:08d}" for n in range(30_000)]
    listing = Listing(files=sorted(f"{n}.jpg" for n in names), others=sorted(f"{n}.txt" for n in [*names, "z"]))
    tracemalloc.start()
    say_passed_over(tmp_path, listing, _texts_beside(listing))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "30,000 files are input, 30,000 read beside them; ignored: 1 .txt" in caplog.text
    assert peak < 500_000  # a set of the names would be 4 MB


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
    (tmp_path / "a.txt").write_bytes(b"x" * (MAX_CAPTION_BYTES + 10))
    (row,) = read_all(folder(tmp_path))
    assert len(row.caption) == MAX_CAPTION_BYTES


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
    with pytest.raises(
        InputError, match=r"captions\.csv: expected the columns file or file_name or filename, caption or text"
    ):
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


IDS = range(223_750, 223_762)


def sa1b(path, **settings):
    return Sa1bImages(kind="sa1b", path=path, **settings)


@pytest.fixture
def sa1b_archives(tmp_path):
    return write_sa1b(tmp_path / "sa1b", IDS)


def test_archives_are_units_and_images_have_their_plain_names(sa1b_archives):
    units = list(list_images(sa1b(sa1b_archives), 0))
    assert [ref.uri for unit in units for ref in unit] == ["sa_000020.tar", "sa_000021.tar"]
    rows = list(read_images(sa1b(sa1b_archives), units[0], 0))
    assert [row.uri for row in rows if isinstance(row, SourceImage)] == [
        f"sa_000020.tar/sa_{n}.jpg" for n in range(223_750, 223_756)
    ]
    assert [row.key for row in rows] == sorted(row.key for row in rows)
    assert rows[2].key == "sa__000020_2etar_2fsa__223752_2ejpg"
    assert rows[2] == SourceImage(uri="sa_000020.tar/sa_223752.jpg", data=picture(223_752), caption=None)


def test_masks_are_not_parsed(tmp_path):
    members = {"./sa_1.jpg": picture(), "./sa_1.json": b'{"caption": "a dog", "annotations": [' + b"[" * 200_000}
    write_tar(tmp_path / "a.tar", members)
    (row,) = read_images(sa1b(tmp_path), next(list_images(sa1b(tmp_path), 0)), 0)
    assert isinstance(row, SourceImage)
    assert row.caption is None


def test_a_name_that_differs_only_in_its_dot_is_a_second_one(tmp_path):
    write_tar(tmp_path / "a.tar", {"sa_1.jpg": b"first", "./sa_1.jpg": b"second"})
    rejected, kept = list[Any](read_images(sa1b(tmp_path), next(list_images(sa1b(tmp_path), 0)), 0))
    assert (rejected.reason, kept.data) == (Reason.DUPLICATE_KEY, b"first")


def test_only_the_images_that_are_asked_for_are_read(sa1b_archives):
    unit = next(list_images(sa1b(sa1b_archives), 0))
    key = "sa__000020_2etar_2fsa__223752_2ejpg"
    assert [row.key for row in read_images(sa1b(sa1b_archives), unit, 0, keys={key})] == [key]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(path, **settings):
    return ParquetImages(kind="parquet", path=path, **settings)


def write_table(path, cells, captions=None, rows_in_group=5, image_type=IMAGE):
    columns = {"image": pa.array(cells, image_type)}
    if captions is not None:
        columns["caption"] = pa.array(captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


def test_rows_are_images_in_order_with_captions(tmp_path):
    pictures = [picture(n) for n in range(12)]
    write_table(
        tmp_path / "data/a.parquet", [{"bytes": p, "path": "../x"} for p in pictures], [f"dog {n}" for n in range(12)]
    )
    rows = read_all(parquet(tmp_path, caption_column="caption"))
    assert [(row.uri, row.data, row.caption) for row in rows] == [
        (f"data/a.parquet/{n:09d}", pictures[n], f"dog {n}".encode()) for n in range(12)
    ]
    assert [row.key for row in rows] == sorted(escape_key(row.uri) for row in rows)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_images_too(tmp_path, kind):
    path = write_table(tmp_path / "a.parquet", [picture(0), picture(1)], image_type=kind)
    assert [row.data for row in read_all(parquet(path))] == [picture(0), picture(1)]


def test_captions_may_be_lists_or_missing(tmp_path):
    captions = [["a dog", "a pet"], [], None, ["x" * (MAX_CAPTION_BYTES + 5)]]
    write_table(tmp_path / "a.parquet", [{"bytes": picture(), "path": None}] * 4, captions)
    found = [row.caption for row in read_all(parquet(tmp_path, caption_column="caption"))]
    assert found == [b"a dog", None, None, b"x" * MAX_CAPTION_BYTES]


def test_paths_lead_to_files_beside_the_table_and_nowhere_else(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/a.jpg").write_bytes(picture())
    (tmp_path / "outside.jpg").write_bytes(picture(1))
    (tmp_path / "data/link.jpg").symlink_to(tmp_path / "outside.jpg")
    paths = ["images/a.jpg", "../outside.jpg", str(tmp_path / "outside.jpg"), "http://127.0.0.1/a.jpg", "s3://b/a.jpg"]
    paths += ["images/../../outside.jpg", "link.jpg", "gone.jpg", "", None, "a\0b"]
    write_table(tmp_path / "data/a.parquet", paths, image_type=pa.string())
    first, *others = read_all(parquet(tmp_path))
    assert isinstance(first, SourceImage)
    assert first.data == picture()
    unsupported, unreadable = Reason.UNSUPPORTED, Reason.UNREADABLE
    assert [row.reason for row in others] == [unsupported] * 6 + [unreadable] * 3 + [unsupported]


def test_an_image_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.sources.images.MAX_IMAGE_BYTES", len(picture()) - 1)
    write_table(tmp_path / "a.parquet", [{"bytes": picture(), "path": None}, {"bytes": b"x", "path": None}])
    refused, kept = read_all(parquet(tmp_path))
    assert (refused.reason, kept.data) == (Reason.TOO_LARGE, b"x")


def test_a_missing_column_is_an_error_that_says_what_there_is(tmp_path):
    write_table(tmp_path / "a.parquet", [{"bytes": b"", "path": None}])
    with pytest.raises(InputError, match=r"images\.image_column: .*a\.parquet has no column 'jpg', but image"):
        list(list_images(parquet(tmp_path, image_column="jpg"), 0))
    with pytest.raises(InputError, match=r"images\.caption_column: "):
        list(list_images(parquet(tmp_path, caption_column="text"), 0))
    with pytest.raises(InputError, match=r"holds no \.parquet file"):
        list(list_images(parquet(tmp_path / "nothing"), 0))


def test_damage_ends_a_file_and_is_rejected_once(tmp_path):
    path = write_table(tmp_path / "b.parquet", [{"bytes": picture(n), "path": None} for n in range(9)], rows_in_group=3)
    write_table(tmp_path / "c.parquet", [{"bytes": picture(), "path": None}])
    data = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    rows = [(row.key, type(row)) for row in read_all(parquet(tmp_path))]
    whole = [(escape_key(f"b.parquet/{n:09d}"), SourceImage) for n in range(3)]
    last = (escape_key("c.parquet/000000000"), SourceImage)
    assert rows == [("a_2eparquet", Rejected), *whole, ("b_2eparquet", Rejected), last]


def test_a_sample_is_exact_and_reads_no_image_to_be_drawn(tmp_path):
    for part in range(3):
        write_table(tmp_path / f"{part}.parquet", [{"bytes": bytes([part, n]), "path": None} for n in range(20)])
    drawn = [{row.key for row in read_all(parquet(tmp_path, sample=17), seed)} for seed in (0, 0, 1)]
    assert [len(keys) for keys in drawn] == [17, 17, 17]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_row_groups_with_wanted_rows_are_read(tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"bytes": picture(n), "path": None} for n in range(9)], rows_in_group=3)
    data = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))
    key = escape_key("a.parquet/000000007")
    (unit,) = list_images(parquet(tmp_path), 0)
    (row,) = read_images(parquet(tmp_path), unit, 0, keys={key})
    assert isinstance(row, SourceImage)
    assert (row.key, row.data) == (key, picture(7))


def test_a_whole_run_of_parquet(tmp_path):
    small_input(tmp_path)
    cells = [{"bytes": picture(n), "path": f"{n}.jpg"} for n in range(20)]
    write_table(tmp_path / "hub/train-0.parquet", cells, [f"a photo of a {SUBJECTS[n % 8]}" for n in range(20)])
    images = {"kind": "parquet", "path": str(tmp_path / "hub"), "caption_column": "caption", "validation": 0}
    counts = run(small_config(tmp_path, images=images))
    assert counts["render"].rows_out == 20


# --- what systems leave beside images, and HEIF


ODD = {
    "._a.jpg": b"AppleDouble",
    "__MACOSX/a.jpg": b"x",
    "x/.hidden.png": b"x",
    "a.jpg": picture(1),
    "b.gif": picture(2),
}


def test_what_systems_leave_in_archives_is_no_image(tmp_path):
    write_tar(tmp_path / "0.tar", {**ODD, "b.txt": b"rain", "._b.txt": b"snow"})
    rows = read_all(archives(tmp_path))
    assert [(row.uri, row.caption) for row in rows] == [("0.tar/a.jpg", None), ("0.tar/b.gif", b"rain")]
    (unit,) = list_images(archives(tmp_path), 0)
    assert [ref.uri for ref in images_in(archives(tmp_path), unit[0])] == ["0.tar/a.jpg", "0.tar/b.gif"]


def test_what_a_run_has_paired_is_read_again_whatever_it_is_called(tmp_path):
    write_tar(tmp_path / "0.tar", {**ODD, "._real.jpg": picture(3)})
    keys = {escape_key(f"0.tar/{name}") for name in ("._real.jpg", "a.jpg")}
    (unit,) = list_images(archives(tmp_path), 0)
    rows = list[Any](read_images(archives(tmp_path), unit, 0, keys))
    assert [row.uri for row in rows] == ["0.tar/._real.jpg", "0.tar/a.jpg"]


def heif_bytes():
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.open(io.BytesIO(picture(1)))).save(file)
    return file.getvalue()


def make_heif_set(kind, root):
    if kind == "folder":
        (root / "a.heic").write_bytes(heif_bytes())
        (root / "b.jpg").write_bytes(heif_bytes())
        return lambda heif: folder(root, heif=heif)
    if kind == "webdataset":
        write_tar(root / "0.tar", {"a.heic": heif_bytes(), "b.jpg": heif_bytes()})
        return lambda heif: archives(root, heif=heif)
    write_table(root / "0.parquet", [{"bytes": heif_bytes(), "path": "a.heic"}, {"bytes": heif_bytes(), "path": None}])
    return lambda heif: parquet(root, heif=heif)


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_heif_is_read_under_its_key_only(tmp_path, kind):
    make = make_heif_set(kind, tmp_path)
    rows = read_all(make(True))
    assert [type(row) for row in rows] == [SourceImage, SourceImage]
    assert all(inspect_image(row.data).width == 48 for row in rows)
    # without it `.heic` is no input, and what turns out to be one is refused
    without = read_all(make(False))
    assert len(without) == (2 if kind == "parquet" else 1)
    assert {(row.reason, row.detail) for row in without} == {("unsupported", "HEIF; images.heif: true reads it")}


def test_heif_without_its_library_is_said_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(picture())
    images = folder(tmp_path, heif=True)
    (unit,) = list_images(images, 0)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as Python marks what cannot be imported
    for work in (lambda: list(list_images(images, 0)), lambda: list(read_images(images, unit, 0))):
        with refused("pillow_heif.*heif"):
            work()
    assert len(list(read_images(folder(tmp_path), unit, 0))) == 1


def test_heif_is_in_the_settings_where_it_is_asked_for_only(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "sounds").mkdir()
    digests = {}
    for heif in (None, False, True):
        section = {"kind": "folder", "path": str(tmp_path / "photos"), "validation": 0}
        config = small_config(tmp_path, images=section if heif is None else {**section, "heif": heif})
        digests[heif] = {stage.key: stage.digest for stage in stages_of(config)}
    assert digests[None] == digests[False]
    differing = {key for key, digest in digests[True].items() if digest != digests[False][key]}
    assert differing == {"concepts/captions"}


def test_a_run_that_has_junk_keeps_it_and_takes_what_is_new(tmp_path):
    """Its listing was frozen by a version that took `._a.jpg` for an image, and knew neither GIF nor linked folders."""
    photos, _ = small_input(tmp_path, photos=3, recordings=8)
    (photos / "._x.jpg").write_bytes(picture(9))
    config = small_config(tmp_path)
    earlier = [ImageRef(uri=uri, caption=b"a dog") for uri in ("._x.jpg", "000.jpg", "001.jpg", "002.jpg")]
    place = tmp_path / "run" / layout.listing("concepts", "000000")
    builders.write_table(place, ImageRef, earlier)
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.gif", "b.jpg"):
        (tmp_path / "elsewhere" / name).write_bytes(picture(5, image_format="GIF"))
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    freeze_images(config.run_dir, config.images, config.seed)
    assert list(read_rows(place, ImageRef)) == earlier
    new = tmp_path / "run" / layout.listing("concepts", "000001")
    assert [ref.uri for ref in read_rows(new, ImageRef)] == ["linked/a.gif", "linked/b.jpg"]
    rows = list[Any](read_images(config.images, earlier, 0))
    assert [row.uri for row in rows] == [ref.uri for ref in earlier]
    freeze_images(config.run_dir, config.images, config.seed)
    assert len(list(place.parent.glob("*.parquet"))) == 2


def test_a_captions_table_meets_images_in_any_spelling_and_says_what_meets_nothing(tmp_path, caplog):
    write_photos(
        tmp_path / "photos", dict.fromkeys(["d/a.JPG", "b.jpg", "caf\u0065\u0301.jpg", "z.png"], "x"), table=False
    )
    rows = "./d\\a.jpg,one\nphotos/b,two\ncaf\u00e9.jpg,three\ngone.jpg,four\n"
    (tmp_path / "photos" / "captions.csv").write_text(f"file,caption\n{rows}", encoding="utf-8")
    captions = {row.uri: row.caption for row in read_all(folder(tmp_path / "photos"))}
    assert captions == {"d/a.JPG": b"one", "b.jpg": b"two", "caf\u0065\u0301.jpg": b"three", "z.png": None}
    assert caplog.messages == [
        "captions.csv: 1 row names no file (first: 'gone.jpg'), 1 image has no row (first: 'z.png')"
    ]


def test_a_captions_table_that_names_no_image_is_an_error(tmp_path):
    write_photos(tmp_path, {"d/a.jpg": "x"}, table=False)
    (tmp_path / "captions.csv").write_text("file,caption\na.jpg,a dog\n")
    with pytest.raises(InputError, match=r"captions\.csv: none of its 1 rows .* such as 'd/a\.jpg', found 'a\.jpg'"):
        list(list_images(folder(tmp_path), 0))


def put_tables(root, tables):
    for name, rows in tables.items():
        if name.lower().endswith(".csv"):
            write_csv(root / name, ("file", "caption"), rows)
        else:
            files, captions = zip(*rows, strict=True)
            pq.write_table(pa.table({"file": files, "caption": captions}), root / name)


def test_a_captions_table_in_a_folder_is_for_the_images_of_that_folder(tmp_path, caplog):
    names = ["a.jpg", "s/b.jpg", "s/c.jpg", "s/t/d.jpg", "s/u/e.jpg", "st/f.jpg"]
    write_photos(tmp_path, dict.fromkeys(names, ""), table=False)
    (tmp_path / "empty").mkdir()
    put_tables(
        tmp_path,
        {
            "captions.csv": [("a.jpg", "a"), ("s/c.jpg", "root")],
            "s/captions.csv": [("b.jpg", "b"), ("c.jpg", "c"), ("t/d.jpg", "far"), ("u/e.jpg", "e")],
            "s/t/captions.parquet": [("d.jpg", "d")],
            "empty/captions.csv": [("a.jpg", "x")],
        },
    )
    caplog.set_level(logging.INFO)
    captions = {row.uri: row.caption for row in read_all(folder(tmp_path))}
    assert captions == dict(zip(names, [b"a", b"b", b"root", b"d", b"e", None], strict=True))
    assert caplog.messages == [
        "empty/captions.csv: not read, there is no image for it below its folder",
        f"{tmp_path}: 6 files are input, 3 read beside them; ignored: 1 .csv",
        "captions.csv: 1 image has no row (first: 'st/f.jpg')",
        "s/captions.csv: 1 row names no file (first: 't/d.jpg')",
    ]
    assert table_for(tmp_path, "s/t/d.jpg") == tmp_path / "captions.csv"
    (tmp_path / "captions.csv").unlink()
    assert table_for(tmp_path, "s/t/d.jpg") == tmp_path / "s/t/captions.parquet"


def test_a_captions_table_in_a_folder_that_is_wrong_stops_a_new_run_only(tmp_path, caplog):
    write_photos(tmp_path, {"s/a.jpg": ""}, table=False)
    for table in ("image,title\na.jpg,x\n", "file,caption\na.jpg,x,y\n", "file,caption\nz.jpg,x\n"):
        (tmp_path / "s" / "captions.csv").write_text(table)
        with pytest.raises(InputError, match=r"s/captions\.csv: "):
            list(list_images(folder(tmp_path), 0))
        caplog.clear()
        ((ref,),) = list_images(folder(tmp_path), 0, must_meet=False)
        assert ref.caption == b""
        assert "s/captions.csv: " in caplog.messages[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("captions.csv", "captions.parquet"),
        ("captions.csv", "CAPTIONS.CSV"),
        ("s/captions.csv", "s/captions.parquet"),
        ("metadata.csv", "metadata.parquet"),
        ("metadata.csv", "METADATA.csv"),
    ],
)
def test_a_second_table_of_a_folder_is_said_and_not_counted_as_read(tmp_path, caplog, first, second):
    write_photos(tmp_path, {"s/a.jpg": ""}, table=False)
    name = "a.jpg" if "/" in first else "s/a.jpg"
    put_tables(tmp_path, {first: [(name, "first")], second: [(name, "second")]})
    caplog.set_level(logging.INFO)
    assert [row.caption for row in read_all(folder(tmp_path))] == [b"first"]
    ending = second.rpartition(".")[2].lower()
    assert caplog.messages == [
        f"{second}: not read, {first} is",
        f"{tmp_path}: 1 files are input, 1 read beside them; ignored: 1 .{ending}",
    ]


def test_only_images_without_a_caption_from_anywhere_are_said_to_have_no_row(tmp_path, caplog):
    write_photos(tmp_path, dict.fromkeys(["a.jpg", "b.jpg", "s/c.jpg", "d.jpg"], ""), table=False)
    (tmp_path / "b.TXT").write_text("a dog")
    put_tables(tmp_path, {"captions.csv": [("a.jpg", "x")], "s/metadata.csv": [("c.jpg", "y")]})
    assert [row.caption for row in read_all(folder(tmp_path))] == [b"x", b"a dog", None, b"y"]
    assert caplog.messages == ["captions.csv: 1 image has no row (first: 'd.jpg')"]
    (tmp_path / "d.json").write_text("{}")
    caplog.clear()
    read_all(folder(tmp_path))
    assert not caplog.messages


@pytest.mark.parametrize("name", ["caption.csv", "captions.xlsx", "captions.txt", "metadata.xlsx", "s/Captions.JSONL"])
def test_what_is_meant_for_a_table_and_is_none_is_said(tmp_path, caplog, name):
    write_photos(tmp_path, {"s/a.jpg": ""}, table=False)
    (tmp_path / name).write_text("file,caption\n")
    read_all(folder(tmp_path))
    (said,) = caplog.messages
    assert said.startswith(f"{name}: not read unless concepts.extractors names it; what is read")
    caplog.clear()
    (tmp_path / name).with_suffix(".jpg").write_bytes(picture())  # of which it is the text, if it is one
    list(list_images(folder(tmp_path), 0))
    assert len(caplog.messages) == (not name.endswith(".txt"))


def test_a_filename_beside_an_id_is_a_further_column_of_captions_apart(tmp_path):
    (tmp_path / "apart.csv").write_text("image_id,filename,caption\na,elsewhere.jpg,a dog\n")
    assert captions_for(tmp_path / "run", tmp_path / "apart.csv")("d/a.jpg") == b"a dog"


@pytest.mark.parametrize("text", TEXT_COLUMNS)
@pytest.mark.parametrize("file", FILE_COLUMNS)
def test_a_table_has_the_same_columns_wherever_it_stands(tmp_path, file, text):
    write_photos(tmp_path / "photos", {"a.jpg": ""}, table=False)
    table = f"{file},{text}\na.jpg,a dog\n"
    (tmp_path / "apart.csv").write_text(table)
    assert captions_for(tmp_path / "run", tmp_path / "apart.csv")("a.jpg") == b"a dog"
    for name in ("captions.csv", "metadata.csv"):
        (tmp_path / "photos" / name).write_text(table)
        (row,) = read_all(folder(tmp_path / "photos"))
        assert row.caption == b"a dog"
        (tmp_path / "photos" / name).unlink()


def test_of_several_columns_the_first_of_the_tables_own_names_counts(tmp_path):
    write_photos(tmp_path, {"a.jpg": "", "b.jpg": ""}, table=False)
    table = "file,file_name,text,caption\na.jpg,b.jpg,a cat,a dog\n"
    (tmp_path / "captions.csv").write_text(table)
    assert [row.caption for row in read_all(folder(tmp_path))] == [b"a dog", None]
    (tmp_path / "captions.csv").rename(tmp_path / "metadata.csv")
    assert [row.caption for row in read_all(folder(tmp_path))] == [None, b"a cat"]


@pytest.mark.parametrize("file", FILE_COLUMNS)
def test_metadata_of_recordings_beside_images_is_no_mistake(tmp_path, file):
    write_photos(tmp_path, {"a.jpg": ""}, table=False)
    (tmp_path / "metadata.csv").write_text(f"{file},text\ndog.wav,a dog\n")
    assert [row.caption for row in read_all(folder(tmp_path))] == [None]
    (tmp_path / "metadata.csv").write_text(f"{file},text\ndog.wav,a dog\ndog.jpg,a dog\n")
    with pytest.raises(InputError, match=r"metadata\.csv: none of its 2 rows"):
        read_all(folder(tmp_path))


@pytest.mark.parametrize("column", ["text", "caption", "Caption", "captions"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_imagefolder_of_hugging_face_brings_its_captions(tmp_path, kind, column):
    write_photos(tmp_path, dict.fromkeys(["a.jpg", "train/b.jpg", "train/d/c.jpg", "test/e.jpg"], ""), table=False)
    for place, names in (("", ["a.jpg"]), ("train", ["b.jpg", "./d/c.jpg"])):
        rows = [{"file_name": name, column: f"{place} {name}"} for name in names]
        path = tmp_path / place / f"metadata.{kind}"
        if kind == "csv":
            path.write_text("\n".join([f"file_name,{column}", *(",".join(row.values()) for row in rows)]))
        elif kind == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    captions = {row.uri: row.caption for row in read_all(folder(tmp_path))}
    assert captions == {
        "a.jpg": b" a.jpg",
        "train/b.jpg": b"train b.jpg",
        "train/d/c.jpg": b"train ./d/c.jpg",
        "test/e.jpg": None,
    }


def test_a_metadata_table_without_captions_is_none_and_captions_csv_counts_first(tmp_path):
    write_photos(tmp_path, {"a.jpg": "", "b.jpg": ""}, table=False)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.jpg,3\n")
    assert [row.caption for row in read_all(folder(tmp_path))] == [None, None]
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,one\nb.jpg,two\n")
    (tmp_path / "captions.csv").write_text("file,caption\na.jpg,first\n")
    assert [row.caption for row in read_all(folder(tmp_path))] == [b"first", b"two"]


@pytest.mark.parametrize(
    ("ending", "data", "caption"),
    [
        *((ending, "a dog", b"a dog") for ending in ("txt", "TXT", "Txt", "caption", "CAPTION")),
        ("json", '{"caption": "a dog"}', b"a dog"),
        ("JSON", '{"text": "a dog", "captions": "a cat"}', b"a dog"),
        ("json", '{"captions": ["a dog", "", 3, "a cat."]}', b"a dog.\na cat."),
        ("json", '{"caption": ["a dog"]}', b"a dog."),
        ("json", '{"url": "http://x", "key": "1", "caption": "", "text": "a dog", "status": "success"}', b"a dog"),
        ("json", '{"caption": null}', None),
    ],
)  # fmt: skip
def test_a_caption_beside_an_image_is_found_by_any_of_its_endings(tmp_path, ending, data, caption):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.b.jpg").write_bytes(picture())
    (tmp_path / "d" / f"a.b.{ending}").write_text(data)
    write_tar(tmp_path / "0.tar", {"d/a.b.jpg": picture(), f"d/a.b.{ending}": data.encode()})
    assert [row.caption for row in read_all(folder(tmp_path))] == [caption]
    assert [row.caption for row in read_all(archives(tmp_path / "0.tar"))] == [caption]


def test_a_webdataset_sample_is_one_up_to_its_first_dot(tmp_path):
    members = {"0001.image.jpg": b"A", "0001.txt": b"one", "0002.jpg": b"B", "0002.cls.txt": b"two", "0003.jpg": b"C"}
    write_tar(tmp_path / "0.tar", members)
    assert [row.caption for row in read_all(archives(tmp_path))] == [b"one", b"two", None]


def test_paths_in_a_table_of_images_may_be_spelt_otherwise(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.JPG").write_bytes(picture())
    write_table(tmp_path / "a.parquet", ["./images/a.JPG", "images\\a.jpg", "images//a.JPG"], image_type=pa.string())
    assert [row.data for row in read_all(parquet(tmp_path))] == [picture()] * 3

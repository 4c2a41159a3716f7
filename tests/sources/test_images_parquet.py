from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.config import ParquetImages
from sonify.errors import InputError
from sonify.keys import escape_key
from sonify.rows import Reason, Rejected, SourceImage
from sonify.run import run
from sonify.sources.images import list_images, read_images
from sonify.sources.images.folder import MAX_TEXT_BYTES
from tests.fakes import SUBJECTS, picture, small_config, small_input

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(path, **settings):
    return ParquetImages(kind="parquet", path=path, **settings)


def read_all(images, seed=0) -> list[Any]:
    return [row for unit in list_images(images, seed) for row in read_images(images, unit, seed)]


def write(path, cells, captions=None, rows_in_group=5, image_type=IMAGE):
    columns = {"image": pa.array(cells, image_type)}
    if captions is not None:
        columns["caption"] = pa.array(captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


def test_rows_are_images_in_order_with_captions(tmp_path):
    pictures = [picture(n) for n in range(12)]
    write(
        tmp_path / "data/a.parquet", [{"bytes": p, "path": "../x"} for p in pictures], [f"dog {n}" for n in range(12)]
    )
    rows = read_all(parquet(tmp_path, caption_column="caption"))
    assert [(row.uri, row.data, row.caption) for row in rows] == [
        (f"data/a.parquet/{n:09d}", pictures[n], f"dog {n}".encode()) for n in range(12)
    ]
    assert [row.key for row in rows] == sorted(escape_key(row.uri) for row in rows)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_images_too(tmp_path, kind):
    path = write(tmp_path / "a.parquet", [picture(0), picture(1)], image_type=kind)
    assert [row.data for row in read_all(parquet(path))] == [picture(0), picture(1)]


def test_captions_may_be_lists_or_missing(tmp_path):
    captions = [["a dog", "a pet"], [], None, ["x" * (MAX_TEXT_BYTES + 5)]]
    write(tmp_path / "a.parquet", [{"bytes": picture(), "path": None}] * 4, captions)
    found = [row.caption for row in read_all(parquet(tmp_path, caption_column="caption"))]
    assert found == [b"a dog", None, None, b"x" * MAX_TEXT_BYTES]


def test_paths_lead_to_files_beside_the_table_and_nowhere_else(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/a.jpg").write_bytes(picture())
    (tmp_path / "outside.jpg").write_bytes(picture(1))
    (tmp_path / "data/link.jpg").symlink_to(tmp_path / "outside.jpg")
    paths = ["images/a.jpg", "../outside.jpg", str(tmp_path / "outside.jpg"), "http://127.0.0.1/a.jpg", "s3://b/a.jpg"]
    paths += ["images/../../outside.jpg", "link.jpg", "gone.jpg", "", None, "a\0b"]
    write(tmp_path / "data/a.parquet", paths, image_type=pa.string())
    first, *others = read_all(parquet(tmp_path))
    assert isinstance(first, SourceImage)
    assert first.data == picture()
    unsupported, unreadable = Reason.UNSUPPORTED, Reason.UNREADABLE
    assert [row.reason for row in others] == [unsupported] * 6 + [unreadable] * 3 + [unsupported]


def test_an_image_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.sources.images.tables.MAX_IMAGE_BYTES", len(picture()) - 1)
    write(tmp_path / "a.parquet", [{"bytes": picture(), "path": None}, {"bytes": b"x", "path": None}])
    refused, kept = read_all(parquet(tmp_path))
    assert (refused.reason, kept.data) == (Reason.TOO_LARGE, b"x")


def test_a_missing_column_is_an_error_that_says_what_there_is(tmp_path):
    write(tmp_path / "a.parquet", [{"bytes": b"", "path": None}])
    with pytest.raises(InputError, match=r"images\.image_column: .*a\.parquet has no column 'jpg', but image"):
        list(list_images(parquet(tmp_path, image_column="jpg"), 0))
    with pytest.raises(InputError, match=r"images\.caption_column: "):
        list(list_images(parquet(tmp_path, caption_column="text"), 0))
    with pytest.raises(InputError, match=r"holds no \.parquet file"):
        list(list_images(parquet(tmp_path / "nothing"), 0))


def test_damage_ends_a_file_and_is_rejected_once(tmp_path):
    path = write(tmp_path / "b.parquet", [{"bytes": picture(n), "path": None} for n in range(9)], rows_in_group=3)
    write(tmp_path / "c.parquet", [{"bytes": picture(), "path": None}])
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
        write(tmp_path / f"{part}.parquet", [{"bytes": bytes([part, n]), "path": None} for n in range(20)])
    drawn = [{row.key for row in read_all(parquet(tmp_path, sample=17), seed)} for seed in (0, 0, 1)]
    assert [len(keys) for keys in drawn] == [17, 17, 17]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_row_groups_with_wanted_rows_are_read(tmp_path):
    path = write(tmp_path / "a.parquet", [{"bytes": picture(n), "path": None} for n in range(9)], rows_in_group=3)
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
    write(tmp_path / "hub/train-0.parquet", cells, [f"a photo of a {SUBJECTS[n % 8]}" for n in range(20)])
    images = {"kind": "parquet", "path": str(tmp_path / "hub"), "caption_column": "caption", "validation": 0}
    counts = run(small_config(tmp_path, images=images))
    assert counts["render"].rows_out == 20

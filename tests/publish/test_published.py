"""A folder that somebody else made."""

import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.engine.units import freeze_published
from sonify.errors import InputError, WorkError
from sonify.publish.published import open_published, read_clips, read_pairs
from sonify.publish.rows import CHECKSUMS
from sonify.publish.settings import adopt_settings, published_folder
from sonify.run import run
from tests.publish.elsewhere import copy_of, elsewhere, own, published_run, seal


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return published_run(tmp_path_factory.mktemp("first"))


@pytest.fixture
def copy(first, tmp_path):
    return copy_of(first, tmp_path)


def rewrite_pairs(folder, change):
    """Change the rows of the first file of pairs and seal the folder again."""
    path = sorted((folder / "data").iterdir())[0]
    rows = [change(row) for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    seal(folder)


def look_at(root):
    """All that is looked at before anything is heard."""
    config = adopt_settings(elsewhere(root))
    freeze_published(config)
    folder = published_folder(config)
    return [image for unit in folder.data for image in read_pairs(folder, unit, config.scenes)]


def test_what_was_published_is_read_image_by_image(copy):
    images = look_at(copy)
    assert [image[0].image for image in images] == sorted(image[0].image for image in images)
    assert {len(image) for image in images} == {2}
    assert len(images) == 20


def with_source(row, **values):
    row["sources"][0] |= values
    return row


def test_a_changed_file_is_noticed(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="another sha256"):
        look_at(copy)


def test_another_publication_in_the_same_place_is_noticed(copy):
    run(elsewhere(copy))
    rewrite_pairs(copy / "published", lambda row: row | {"caption": "another"})
    with pytest.raises(InputError, match=r"published\.digest"):
        run(elsewhere(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"image_uri": "../secret.jpg", "image": "_2e_2e_2fsecret_2ejpg"}, "leads elsewhere"),
        (lambda row: row | {"image_uri": "/etc/passwd", "image": "_2fetc_2fpasswd"}, "leads elsewhere"),
        (lambda row: row | {"image": "../../x"}, "not the one that the key is made of"),
        (lambda row: row | {"scene": "../x"}, "expected the scenes"),
        (lambda row: row | {"split": "../x"}, "a row of the split"),
        (lambda row: row | {"sources": []}, "without sources"),
        (lambda row: with_source(row, gain_db=float("nan")), "a number that is none"),
        (lambda row: with_source(row, gain_db=4000.0), "a gain that no mix has"),
        (lambda row: row | {"image_sha256": "x"}, "image_sha256 is none"),
    ],
)
def test_rows_that_nobody_publishes_are_refused(copy, change, message):
    rewrite_pairs(copy / "published", change)
    with pytest.raises(InputError, match=message):
        look_at(copy)


def test_a_unit_with_such_a_row_is_not_rendered(copy, caplog):
    rewrite_pairs(copy / "published", lambda row: row | {"scene": "other"})
    with pytest.raises(WorkError, match="units were given up"):
        run(elsewhere(copy))
    assert "expected the scenes captions-0, captions-1, found other, other" in caplog.text
    assert not list((copy / "run" / "shards").rglob("000000.tar"))


@pytest.mark.parametrize(
    "values", [{"file": "../x"}, {"file": "."}, {"corpus": "\x1b[31m"}, {"sha256": ""}, {"loudness_lufs": float("inf")}]
)
def test_clips_that_nobody_publishes_are_refused(copy, values):
    path = sorted((copy / "published" / "clips").iterdir())[0]
    rows = [row | values for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    seal(copy / "published")
    folder = open_published(copy / "published")
    with pytest.raises(InputError, match=r"clips/.*: clip") as caught:
        list(read_clips(folder, "000000"))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["data/../x.parquet", "data/train-../../x.parquet", "/etc/passwd", "data/train-a/b.parquet", "clips/x.csv"]
)
def test_files_of_other_names_are_refused(copy, name):
    with (copy / "published" / CHECKSUMS).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(InputError, match=r"checksums\.sha256"):
        look_at(copy)


def test_other_columns_are_refused(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    pq.write_table(pq.read_table(path).drop_columns(["caption"]), path)
    seal(copy / "published")
    with pytest.raises(InputError, match="expected the columns image"):
        look_at(copy)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"{}" * 50])
def test_what_is_no_table_is_refused(copy, data):
    sorted((copy / "published" / "clips").iterdir())[0].write_bytes(data)
    seal(copy / "published")
    with pytest.raises(InputError, match="not a Parquet file"):
        look_at(copy)


def test_a_folder_that_is_no_publication_is_refused(copy):
    with pytest.raises(InputError, match="not a published dataset"):
        adopt_settings(own(copy, published={"path": str(copy / "photos")}))


def test_a_small_file_of_one_long_text_many_times_is_refused_unread(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    row = pq.read_table(path)[:1].combine_chunks()
    again = pa.array([0] * 4096, pa.int32())
    text = pa.DictionaryArray.from_arrays(again, pa.array(["x" * 20_000_000]))
    columns = [text if name == "caption" else row[name].combine_chunks().take(again) for name in row.schema.names]
    caption = pa.field("caption", text.type, nullable=False)
    schema = pa.schema([caption if field.name == "caption" else field for field in row.schema])
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    seal(copy / "published")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="a text of 20000000 bytes"):
        look_at(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_a_scene_of_thousands_of_sources_is_refused_unread(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    rows = pq.read_table(path).to_pylist()[:1]
    rows[0]["sources"] = rows[0]["sources"][:1] * 5000
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    seal(copy / "published")
    with pytest.raises(InputError, match="in one row group: too many"):
        look_at(copy)

"""A folder that somebody else made."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import MISSING, fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from upath import UPath

from sonify.dataset.card import CARD
from sonify.dataset.format import CHECKSUMS, RECORD
from sonify.dataset.read import read_clips, read_pairs
from sonify.dataset.render_from import adopt_settings, open_published, published_folder
from sonify.dataset.write import PublishOptions, publish
from sonify.errors import InputError
from sonify.prepare import freeze_published
from sonify.rows import SourceClip
from sonify.running import run
from tests.dataset.folders import elsewhere, own, seal


def rewrite_pairs(folder, change):
    """Change the rows of the first file of pairs and seal the folder again."""
    path = sorted((folder / "data").iterdir())[0]
    rows = [change(row) for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    seal(folder)


def rewrite_clips(folder, change):
    """Change the rows of the first file of clips and seal the folder again."""
    path = sorted((folder / "clips").iterdir())[0]
    pq.write_table(pa.Table.from_pylist(change(pq.read_table(path).to_pylist()), schema=pq.read_schema(path)), path)
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


def with_refused(row, **values):
    named = {"concept": "goose", "description": "", "presence": "", "reason": "no_match", "clip": "", "cosine": 0.0}
    return row | {"refused": [named | {"heard": ""} | values]}


def test_a_changed_file_is_noticed(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="another sha256"):
        look_at(copy)


def test_another_publication_in_the_same_place_is_noticed(copy):
    run(elsewhere(copy))
    rewrite_pairs(copy / "published", lambda row: row | {"caption": "another"})
    with pytest.raises(InputError, match="another configuration: one of the two renders a published dataset"):
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
        (lambda row: with_source(row, gain_db=float("nan")), "a gain_db of nan"),
        (lambda row: with_source(row, gain_db=90.0), "a gain_db of 90.0, which no mix has"),
        (lambda row: with_source(row, target_lufs=1e300), "a target_lufs of 1e"),
        (lambda row: with_source(row, score=float("inf")), "a number that is none"),
        (lambda row: with_source(row, copy="evil"), "its copy is 'evil'"),
        (lambda row: with_source(row, clip="folder/none.flac#0"), "which clips/ does not have"),
        (lambda row: row | {"sources": row["sources"] * 2}, "one clip twice"),
        (lambda row: with_source(row, limit=float("nan")), "a number that is none"),
        (lambda row: with_source(row, speech=float("inf")), "a number that is none"),
        (lambda row: with_refused(row, reason="evil"), "'evil' is not a valid Reason"),
        (lambda row: with_refused(row, cosine=float("nan")), "a number that is none"),
        (lambda row: with_refused(row, presence="\x1b[31m"), r"its presence is '\\x1b"),
        (lambda row: with_refused(row, heard="x" * 70_000), "a text of 70000 bytes"),
        (lambda row: row | {"refused": with_refused(row)["refused"] * 200}, "200 values in one row|too many"),
        (lambda row: row | {"width": -5, "height": 2**62}, "-5 x 4611686018427387904 pixels"),
        (lambda row: row | {"width": 60_000, "height": 60_000}, "60000 x 60000 pixels"),
        (lambda row: row | {"mix_sha256": "x"}, "mix_sha256 is none"),
        (lambda row: row | {"image_sha256": "x"}, "image_sha256 is none"),
    ],
)
def test_rows_that_nobody_publishes_are_refused(copy, change, message):
    rewrite_pairs(copy / "published", change)
    with pytest.raises(InputError, match=message):
        look_at(copy)


def without(folder, sources=(), refused=True):
    """Write the first file of pairs as it was before fields of sources, and what was refused, came."""
    path = sorted((folder / "data").iterdir())[0]
    pairs = pq.read_table(path)
    place = pairs.schema.get_field_index("sources")
    listed = pairs.schema.field("sources")
    kept = [field for field in listed.type.value_type if field.name not in sources]
    element = pa.field("element", pa.struct(kept), nullable=False)
    rows = [
        [{name: value for name, value in source.items() if name not in sources} for source in row]
        for row in pairs["sources"].to_pylist()
    ]
    changed = pairs.set_column(place, listed.with_type(pa.list_(element)), pa.array(rows, pa.list_(element)))
    pq.write_table(changed.drop_columns(["refused"]) if refused else changed, path)
    seal(folder)


LATER = tuple(field.name for field in fields(SourceClip) if field.default is not MISSING and field.name != "copy")


def test_a_folder_of_before_is_read_with_what_nobody_recorded(copy):
    before = look_at(copy)
    without(copy / "published", LATER)
    assert look_at(copy) == [tuple(forget(pair) for pair in image) for image in before]
    counts = run(elsewhere(copy))
    assert counts["render"].rows_out == 40


def forget(pair):
    if pair.split != "train":  # the first file is that of training images
        return pair
    fresh = {name: SourceClip.__dataclass_fields__[name].default for name in LATER}
    return replace(pair, refused=(), sources=tuple(replace(source, **fresh) for source in pair.sources))


@pytest.mark.parametrize("missing", ["clip", "gain_db", "cosine", "concept"])
def test_a_column_that_always_was_may_not_be_missing(copy, missing):
    without(copy / "published", (missing,), refused=False)
    with pytest.raises(InputError, match="expected the columns"):
        look_at(copy)


def test_what_a_run_refused_goes_on_through_a_rendering(first, copy):
    near = {"concept": "goose", "description": "a goose honks", "presence": "off_screen", "reason": "no_match"}
    refused = near | {"clip": "folder/elsewhere.flac#0", "cosine": 0.2, "heard": "Vehicle horn 0.90"}
    rewrite_pairs(
        copy / "published", lambda row: with_source(row, heard_by="yamnet", support=0.5) | {"refused": [refused]}
    )
    run(elsewhere(copy))
    publish(copy / "run", copy / "again")
    files = [sorted((copy / name / "data").iterdir())[0] for name in ("published", "again")]
    assert pq.read_table(files[0]).equals(pq.read_table(files[1]))
    counted = json.loads((copy / "again" / RECORD).read_bytes())["statistics"]["evidence"]
    scenes = pq.read_metadata(files[1]).num_rows
    assert (counted["refused"], counted["near_misses"]) == ({"no_match": scenes}, scenes)
    assert (counted["presence"], counted["asked"], counted["confirmed"]) == ({"off_screen": scenes}, scenes, scenes)
    card = (copy / "again" / CARD).read_text()
    assert f"| no\\_match | {scenes} |" in card
    assert f"heard the concept in 100.0 % of the {scenes} sounds" in card
    assert "It took part in the choice" in card
    assert f"| off\\_screen | {scenes} |" in card


def test_a_near_miss_that_is_excluded_is_not_named(copy):
    named = {
        "concept": "goose",
        "description": "",
        "presence": "",
        "reason": "not_confirmed",
        "cosine": 0.2,
        "heard": "Car",
    }
    rewrite_pairs(copy / "published", lambda row: row | {"refused": [named | {"clip": "folder/gone.flac#0"}]})
    run(elsewhere(copy))
    (copy / "out.txt").write_text("folder/gone.flac#0\n")
    publish(copy / "run", copy / "again", PublishOptions(exclude=copy / "out.txt"))
    rows = pq.read_table(sorted((copy / "again" / "data").iterdir())[0])["refused"].to_pylist()
    assert rows
    assert {(one["clip"], one["cosine"], one["heard"]) for row in rows for one in row} == {("", 0.0, "")}


def test_a_clip_is_heard_twice_only_where_recordings_are_repeated(copy):
    rewrite_pairs(copy / "published", lambda row: row | {"sources": row["sources"] * 2})
    with pytest.raises(InputError, match=r"one clip twice, .* without retrieval\.repeat_recordings"):
        look_at(copy)
    record = json.loads((copy / "published" / RECORD).read_text())
    record["config"]["retrieval"]["repeat_recordings"] = True
    (copy / "published" / RECORD).write_text(json.dumps(record))
    seal(copy / "published")
    shutil.rmtree(copy / "run", ignore_errors=True)
    assert any(len({s.clip for s in scene.sources}) < len(scene.sources) for image in look_at(copy) for scene in image)


def test_a_folder_with_such_a_row_is_refused_before_any_work(copy):
    rewrite_pairs(copy / "published", lambda row: row | {"scene": "\x1b[31m"})
    with pytest.raises(InputError, match="expected the scenes 'captions-0, captions-1', found") as caught:
        run(elsewhere(copy))
    assert "\x1b" not in str(caught.value)
    assert not (copy / "run" / "pool").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"file": "../x"},
        {"file": "."},
        {"corpus": "\x1b[31m"},
        {"corpus": "folder\n"},
        {"sha256": ""},
        {"loudness_lufs": float("inf")},
        {"loudness_lufs": 1e308},
        {"peak_dbfs": float("nan")},
    ],
)
def test_clips_that_nobody_publishes_are_refused(copy, values):
    rewrite_clips(copy / "published", lambda rows: [row | values for row in rows])
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


def test_a_small_file_of_many_sources_is_refused_unread(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    table = pq.read_table(path)
    scenes, sources = 4096, 1000
    one = table["sources"].combine_chunks().flatten().take(pa.array([0] * scenes * sources, pa.int32()))
    many = pa.ListArray.from_arrays(pa.array(range(0, scenes * sources + 1, sources), pa.int32()), one)
    rows = table.take([0] * scenes)
    columns = [many.cast(field.type) if field.name == "sources" else rows[field.name] for field in table.schema]
    pq.write_table(pa.Table.from_arrays(columns, schema=table.schema), path, compression="zstd")
    assert path.stat().st_size < 100_000
    seal(copy / "published")
    del one, many, rows, columns, table
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="4096000 values in one row group"):
        look_at(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_many_long_texts_are_refused_before_they_are_unpacked(copy):
    long = dict.fromkeys(("caption", "medium", "check_answer"), "x" * 60_000)
    rewrite_pairs(copy / "published", lambda row: row | long)
    path = sorted((copy / "published" / "data").iterdir())[0]
    pq.write_table(pq.read_table(path).take([0] * 2000), path)
    seal(copy / "published")
    with pytest.raises(InputError, match="bytes of text in 512 rows: too many"):
        look_at(copy)


def test_a_scene_of_thousands_of_sources_is_refused_unread(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    rows = pq.read_table(path).to_pylist()[:1]
    rows[0]["sources"] = rows[0]["sources"][:1] * 5000
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    seal(copy / "published")
    with pytest.raises(InputError, match="in one row group: too many"):
        look_at(copy)


def test_one_row_of_too_many_sources_among_others_is_refused(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    rows = pq.read_table(path).to_pylist()
    rows[0]["sources"] = rows[0]["sources"][:1] * 101
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    seal(copy / "published")
    with pytest.raises(InputError, match="sources: 101 values in one row, at most 100"):
        look_at(copy)


def test_bytes_that_are_no_text_are_refused_in_one_line(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    table = pq.read_table(path)
    offsets = pa.array(range(len(table) + 1), pa.int32()).buffers()[1]
    caption = pa.Array.from_buffers(pa.string(), len(table), [None, offsets, pa.py_buffer(b"\xff" * len(table))])
    column = table.schema.get_field_index("caption")
    pq.write_table(table.set_column(column, table.schema.field(column), caption), path)
    seal(copy / "published")
    with pytest.raises(InputError, match="Invalid UTF8") as caught:
        look_at(copy)
    assert "\n" not in str(caught.value)


def test_a_clip_that_is_listed_twice_is_refused(copy):
    rewrite_clips(copy / "published", lambda rows: [*rows, rows[0] | {"sha256": "0" * 64}])
    with pytest.raises(InputError, match="is there twice"):
        look_at(copy)


def test_a_fingerprint_of_another_length_is_refused(copy):
    rewrite_clips(copy / "published", lambda rows: [row | {"fingerprint": b"x"} for row in rows])
    with pytest.raises(InputError, match=r"expected a fingerprint of .* bytes, found 1"):
        look_at(copy)


def test_clips_that_pairs_name_must_be_there(copy):
    rewrite_clips(copy / "published", lambda rows: rows[1:])
    with pytest.raises(InputError, match=r"is heard with the clip .*, which clips/ does not have"):
        run(elsewhere(copy))


def test_an_empty_table_is_refused(copy):
    rewrite_clips(copy / "published", lambda _: [])
    with pytest.raises(InputError, match="0 rows, expected some"):
        look_at(copy)


@pytest.mark.parametrize("name", ["data", "clips"])
def test_a_folder_without_pairs_or_clips_says_so(copy, name):
    shutil.rmtree(copy / "published" / name)
    seal(copy / "published")
    with pytest.raises(InputError, match=rf"names no {name}/\*\.parquet"):
        look_at(copy)


def test_an_image_in_two_units_is_refused(copy):
    path = sorted((copy / "published" / "data").iterdir())[0]
    shutil.copy(path, path.with_name("train-zzz.parquet"))
    seal(copy / "published")
    with pytest.raises(InputError, match="is in several units: 000000, zzz"):
        look_at(copy)


def replace_by(kind, path):
    """Put something else in the place of a file; what it was lies beside the folder."""
    outside = path.rename(path.parents[2] / "outside")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        folder = path.parent.rename(path.parents[2] / "below")
        outside.rename(folder / path.name)
        path.parent.symlink_to(folder)
    else:
        path.symlink_to(outside if kind == "link" else "/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
def test_what_is_no_file_of_the_folder_is_neither_read_nor_waited_for(copy, kind):
    replace_by(kind, copy / "published" / "data" / "train-000000.parquet")
    with pytest.raises(InputError, match=r"data/train-000000\.parquet: no regular file") as caught:
        look_at(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sonify.json", CHECKSUMS])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_the_record_and_the_list_must_be_files_too(copy, name, make):
    (copy / "published" / name).unlink()
    make(copy / "published" / name)
    with pytest.raises(InputError, match=rf"{name}: no regular file"):
        adopt_settings(elsewhere(copy))


def test_a_signal_ends_the_hashing_of_a_file_that_takes_hours(copy):
    os.truncate(copy / "published" / "data" / "train-000000.parquet", 1 << 40)
    config = elsewhere(copy)
    (copy / "run.yaml").write_text(
        yaml.safe_dump(config.model_dump(mode="json", exclude={"published": {"digest", "scenes"}}, exclude_unset=True))
    )
    words = ["render", "--config", str(copy / "run.yaml")]
    with subprocess.Popen([sys.executable, "-m", "sonify", *words], stderr=subprocess.PIPE) as process:
        while not os.path.exists(copy / "run" / "lock"):
            time.sleep(0.05)
            assert process.poll() is None
        time.sleep(0.5)
        process.terminate()
        assert process.wait(timeout=10) == 130


def test_a_folder_in_a_store_is_read_alike(copy):
    here = look_at(copy)
    store = UPath("memory://published")
    for path in (path for path in (copy / "published").rglob("*") if path.is_file()):
        place = store / path.relative_to(copy / "published").as_posix()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    config = adopt_settings(own(copy, published={"path": str(store)}))
    freeze_published(config)
    folder = published_folder(config)
    assert [image for unit in folder.data for image in read_pairs(folder, unit, config.scenes)] == here
    (store / "clips" / "000000.parquet").unlink()
    with pytest.raises(InputError, match=r"clips/000000\.parquet: there is no such file"):
        freeze_published(config)

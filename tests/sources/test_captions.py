import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify import layout
from sonify.engine.job import StoredReject
from sonify.errors import InputError, WorkError
from sonify.io.tables import read_rows
from sonify.io.tars import index_tar
from sonify.media.headers import HEIF_SUFFIXES, IMAGE_SUFFIXES
from sonify.rows import Pair, Reason
from sonify.running import run
from sonify.sources.captions import TEXTS, captions_for, identify_captions
from tests.builders import (
    SUBJECTS,
    picture,
    sa1b_members,
    sa1b_record,
    small_config,
    small_input,
    stored,
    tar_bytes,
    write_csv,
    write_sa1b,
    write_tar,
)

IDS = range(223_750, 223_762)


@pytest.fixture
def images(tmp_path):
    return write_sa1b(tmp_path / "sa1b", IDS)


def llava(image: int) -> str:
    return f"The image features a {SUBJECTS[image % 4]} in a yard. " + "It is a sunny day and nobody is there. " * 45


def texts():
    return {f"sa_{image}.txt": llava(image).encode() for image in IDS}


def as_gzip(root):
    path = root / "SA1B_caption.tar.gz"
    path.write_bytes(tar_bytes({f"./{name}": data for name, data in texts().items()}, "w:gz"))
    return path


def as_tar(root):
    path = root / "captions.tar"
    path.write_bytes(gzip.decompress(as_gzip(root).read_bytes()))
    return path


def as_flat_folder(root):
    path = root / "captions"
    path.mkdir()
    for name, data in texts().items():
        (path / name).write_bytes(data)
    return path


def as_folders(root):
    for number, (name, data) in enumerate(texts().items()):
        folder = root / "captions" / f"sa_00002{number // 6}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return root / "captions"


def as_hub_parquet(root):
    folder = root / "captions" / "default" / "train"
    folder.mkdir(parents=True)
    for part in range(2):
        ids = list(IDS)[part::2]
        columns = {
            "txt": [llava(n) for n in ids],
            "__key__": [f"sa_{n}" for n in ids],
            "__url__": ["hf://x"] * len(ids),
        }
        pq.write_table(pa.table(columns), folder / f"{part:04d}.parquet")
    return root / "captions"


def as_csv(root):
    return write_csv(root / "captions.csv", ("image", "caption"), [(f"sa_{n}.jpg", llava(n)) for n in IDS])


LAYOUTS = [as_gzip, as_tar, as_flat_folder, as_folders, as_hub_parquet, as_csv]


@pytest.mark.parametrize("make", LAYOUTS)
def test_captions_are_joined_by_image_id(tmp_path, make):
    captions = captions_for(tmp_path / "run", make(tmp_path))
    for image in IDS:
        assert captions(f"sa_000020.tar/sa_{image}.jpg" if image < 223_756 else f"sa_000021.tar/sa_{image}.jpg") == (
            llava(image).encode()
        )
    assert captions("sa_000020.tar/sa_1.jpg") is None


@pytest.mark.parametrize("make", [as_gzip, as_csv])
def test_captions_are_stored_once_and_anew_when_they_change(tmp_path, make):
    place = make(tmp_path)
    kept = tmp_path / "run" / layout.UNITS / "captions"
    captions_for(tmp_path / "run", place)
    (first,) = kept.glob("*.sqlite")
    before = first.stat()
    captions_for(tmp_path / "run", place)
    assert first.stat() == before
    was = identify_captions(place)
    place.write_bytes(place.read_bytes() + b"\0" if place.suffix == ".gz" else b"image,caption\nsa_1.jpg,another\n")
    assert identify_captions(place) != was
    if place.suffix == ".csv":
        assert captions_for(tmp_path / "run", place)("x.tar/sa_1.jpg") == b"another"


@pytest.mark.parametrize("cut", [100, 1000])
def test_a_cut_archive_of_captions_is_an_error_and_leaves_nothing(tmp_path, cut):
    place = as_gzip(tmp_path)
    place.write_bytes(place.read_bytes()[:-cut])
    with pytest.raises(InputError, match="damaged archive of captions"):
        captions_for(tmp_path / "run", place)
    assert [path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()] == [".lock"]


def test_a_table_by_file_is_joined_by_the_whole_path_only(tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\n001.jpg,a dog\n001.jpg,a cat\n")
    captions = captions_for(tmp_path / "run", table)
    assert captions("001.jpg") == b"a cat"
    assert captions("other/001.jpg") is None


def test_a_folder_of_archives_of_texts_is_joined_like_one(tmp_path):
    folder = tmp_path / "captions"
    write_tar(folder / "sa_000000.tar", {"sa_1.txt": b"a dog"})
    write_tar(folder / "sa_000001.tar", {"sa_2.txt": b"a cat"})
    captions = captions_for(tmp_path / "run", folder)
    assert captions("x.tar/sa_1.jpg") == b"a dog"
    assert captions("x.tar/sa_2.jpg") == b"a cat"
    assert identify_captions(folder) != identify_captions(tmp_path / "nothing")


def test_a_damaged_store_of_captions_is_an_error_of_the_work(tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\n001.jpg,a dog\n")
    captions_for(tmp_path / "run", table)
    (kept,) = (tmp_path / "run").rglob("*.sqlite")
    kept.write_bytes(b"nonsense" * 1000)
    with pytest.raises(WorkError, match="remove the file, and the next run makes it again"):
        captions_for(tmp_path / "run", table)("001.jpg")


def test_a_folder_of_texts_is_not_left_by_a_name(tmp_path):
    (tmp_path / "sa_1.txt").write_text("secret")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "sa_2.txt").write_text("a dog")
    captions = captions_for(tmp_path / "run", tmp_path / "captions")
    assert captions("a.tar/sa_2.jpg") == b"a dog"
    assert captions("../sa_1.jpg") is None


@pytest.mark.parametrize("name", ["captions.zip", "captions.txt"])
def test_another_kind_of_captions_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(InputError, match="expected captions as"):
        captions_for(tmp_path / "run", tmp_path / name)


def test_a_whole_run_of_sa1b_with_its_captions(tmp_path, images):
    small_input(tmp_path)
    (tmp_path / "exclude.txt").write_text("# asked to be taken down\nsa_223751\n")
    broken = sa1b_members(range(300, 301)) | {"./sa_301.jpg": picture()[:-300], "./sa_301.json": sa1b_record(301)}
    write_tar(images / "sa_000022.tar", broken)
    captions = as_gzip(tmp_path)
    config = small_config(
        tmp_path,
        images={"kind": "sa1b", "path": str(images), "validation": 0, "exclude": str(tmp_path / "exclude.txt")},
        concepts={"extractors": [{"kind": "captions", "file": str(captions)}]},
        engine={"kind": "local", "max_fault_ratio": 1.0},
    )
    counts = run(config)
    pairs = stored(config.run_dir / layout.PAIRS, Pair)
    assert [pair.image_uri.rpartition("/")[2] for pair in pairs] == [f"sa_{n}.jpg" for n in IDS if n != 223_751]
    assert all(
        pair.caption == " ".join(llava(n).split())
        for pair, n in zip(pairs, [n for n in IDS if n != 223_751], strict=True)
    )
    rejected = [
        (row.key, row.stage, row.reason)
        for path in sorted((config.run_dir / layout.REJECTS).rglob("*.parquet"))
        for row in read_rows(path, StoredReject)
    ]
    assert rejected == [
        ("sa__000022_2etar_2fsa__300_2ejpg", "concepts", Reason.NO_CAPTION),
        ("sa__000022_2etar_2fsa__301_2ejpg", "concepts", Reason.UNREADABLE),
        ("sa__000020_2etar_2fsa__223751_2ejpg", "pair", Reason.EXCLUDED),
    ]
    assert counts["render"].rows_out == 11
    members, _ = index_tar(config.run_dir / "shards/train/000000.tar", "x")
    assert [member.name for member in members][:2] == [
        "sa__000020_2etar_2fsa__223750_2ejpg.captions.flac",
        "sa__000020_2etar_2fsa__223750_2ejpg.jpg",
    ]


@pytest.mark.parametrize(
    "name", ["./d/a.jpg", "d\\a.jpg", "d//a.jpg", "d/a.JPG", "d/a", "photos/d/a.jpg", "/x/photos/d/a", " d/a.jpg"]
)
def test_a_table_by_file_meets_other_spellings_after_the_very_name(tmp_path, name):
    table = tmp_path / "captions.csv"
    table.write_text(f"file,caption\n{name},a dog\n")
    captions = captions_for(tmp_path / "run", table, "photos")
    assert captions("d/a.jpg") == captions("x.tar/d/a.jpg") == b"a dog"
    assert captions("a.jpg") is None
    table.write_text(f"file,caption\nd/a.jpg,a cat\n{name},a dog\n")
    assert captions_for(tmp_path / "run", table, "photos")("d/a.jpg") == b"a cat"


@pytest.mark.parametrize("name", ["sa_1.TXT", "x/sa_1.txt", "sa_1.caption"])
def test_texts_of_an_archive_are_known_by_any_ending(tmp_path, name):
    captions = captions_for(tmp_path / "run", write_tar(tmp_path / "c.TAR", {name: b"a dog"}))
    assert captions("sa_000001.tar/sa_1.jpg") == b"a dog"


def test_ids_meet_whatever_stands_around_them(tmp_path):
    table = tmp_path / "captions.tsv"
    table.write_text('Image_ID\tCaption\n.\\x\\sa_1.JPG\ta dog\n "sa_2"\ta cat\n')
    captions = captions_for(tmp_path / "run", table)
    assert [captions(f"0.tar/sa_{n}.jpg") for n in (1, 2, 3)] == [b"a dog", b"a cat", None]


@pytest.mark.parametrize("name", ["b/sa_1.caption", "b/sa_1.TXT", "sa_1.txt"])
def test_a_folder_of_texts_is_read_by_any_ending(tmp_path, name):
    (tmp_path / "c" / "b").mkdir(parents=True)
    (tmp_path / "c" / name).write_text("a dog")
    assert captions_for(tmp_path / "run", tmp_path / "c")("b.tar/sa_1.jpg") == b"a dog"


@pytest.mark.parametrize("written", [str, str.upper])
@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, *HEIF_SUFFIXES])
def test_an_image_of_any_ending_meets_its_caption_by_id(tmp_path, suffix, written):
    table = tmp_path / "captions.csv"
    table.write_text(f"image,caption\nsa_1,a dog\nsa_2{suffix},a cat\n")
    captions = captions_for(tmp_path / "run", table)
    assert captions(f"x.tar/sa_1{written(suffix)}") == b"a dog"
    assert captions(f"x.tar/sa_2{written(suffix)}") == b"a cat"
    assert captions("x.tar/sa_2.jpg") == b"a cat"


def test_tables_behind_a_link_are_tables(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.csv").write_text("image,caption\nsa_1,a dog\n")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "linked").symlink_to(tmp_path / "elsewhere")
    assert identify_captions(tmp_path / "captions") != TEXTS
    assert captions_for(tmp_path / "run", tmp_path / "captions")("x.tar/sa_1.jpg") == b"a dog"


@pytest.mark.parametrize("form", ["", "-2"])
def test_a_store_of_an_earlier_version_is_made_again(tmp_path, form):
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\n./a.jpg,a dog\n")
    kept = tmp_path / "run" / layout.UNITS / "captions"
    kept.mkdir(parents=True)
    (kept / f"{identify_captions(table)}{form}.sqlite").write_bytes(b"of before")
    assert captions_for(tmp_path / "run", table)("a.jpg") == b"a dog"

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from sonify import layout
from sonify.config import FolderImages, ParquetImages, WebDatasetImages, make_config
from sonify.errors import InputError, TransientError, WorkError
from sonify.io.listing import list_files
from sonify.io.places import check_mounted, files_below, open_local, open_place, read_bytes, read_whole
from sonify.io.tables import read_rows
from sonify.rows import ImageRef, Pair, Reason, SourceImage
from sonify.running import run
from sonify.sources.captions import captions_for
from sonify.sources.images import list_images, read_images
from sonify.sources.userfiles import read_exclusions
from sonify.stores import BLOCK_BYTES, Place, kind_of
from tests.builders import picture, small_config, small_input, tar_bytes
from tests.processes import run_python
from tests.servers import running_store


@pytest.fixture
def store(monkeypatch):
    with running_store(monkeypatch) as running:
        yield running


@pytest.fixture
def memory():
    root = UPath("memory://remote-tests")
    yield root
    MemoryFileSystem.store.clear()


def read_all(images) -> list[Any]:
    return [row for unit in list_images(images, 0) for row in read_images(images, unit, 0)]


FILES = {
    "set/b.jpg": b"B",
    "set/x/a#1?.JPG": b"A",
    "set/x/a#1?.txt": b"a dog",
    "set/empty.jpg": b"",
    "set/x//no.jpg": b"a name without a folder's",
    "set/x/../no.jpg": b"a name that leads elsewhere",
    "set/note.tga": b"",
    "set2/other.jpg": b"",
}


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_files_are_listed_and_read_as_those_of_a_disk(kind, memory, store):
    if kind == "s3":
        root = store.put("listed", FILES)
    else:
        root = memory
        for name, data in FILES.items():
            root.fs.pipe_file(f"{root.path}/{name}", data)
    names = list_files(root / "set", (".jpg",)).files
    assert names == ["b.jpg", "empty.jpg", "x/a#1?.JPG"]
    assert [read_bytes(root / "set" / name, 10) for name in names] == [b"B", b"", b"A"]
    assert read_bytes(root / "set/x/a#1?.txt", 3) == b"a d"
    assert [kind_of(root / name) for name in ("set", "set/b.jpg", "set/gone", "set/gone.jpg")] == (
        ["folder", "file", None, None]
    )
    rows = read_all(FolderImages(kind="folder", path=root / "set"))
    assert [(row.uri, row.data, row.caption) for row in rows] == [
        ("b.jpg", b"B", None),
        ("empty.jpg", b"", None),
        ("x/a#1?.JPG", b"A", b"a dog"),
    ]


def test_a_large_file_is_read_here_and_there(store):
    data = bytes(range(256)) * (BLOCK_BYTES // 256 * 2 + 4)
    place = store.put("large", {"a.bin": data}) / "a.bin"
    with open_place(place) as file:
        assert file.seek(-7, 2) == len(data) - 7
        assert file.read() == data[-7:]
        file.seek(BLOCK_BYTES - 3)
        assert file.read(BLOCK_BYTES + 9) == data[BLOCK_BYTES - 3 : 2 * BLOCK_BYTES + 6]
        file.seek(len(data) + 5)
        assert file.read() == b""
    before = store.objects_read
    with open_local(place) as file:
        assert file.read() == data
        file.seek(5)
        assert file.read(3) == data[5:8]
    assert store.objects_read - before == 3  # each block once


def test_archives_and_tables_of_a_store_are_as_those_of_a_disk(store, tmp_path):
    members = {"b.jpg": picture(1), "x/a.1.jpg": picture(2), "x/a.1.txt": b"a dog", "b.json": b'{"caption": "a cat"}'}
    archive = tar_bytes(members)
    image = [{"bytes": picture(n), "path": None} for n in range(7)] + [{"bytes": None, "path": "beside/a.jpg"}]
    table = pa.table({"image": image, "text": [f"dog {n}" for n in range(8)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    files = {
        "p/a.tar": archive,
        "p/sub/cut.tar": archive[:-900],
        "p/t.parquet": (tmp_path / "t.parquet").read_bytes(),
        "p/beside/a.jpg": picture(9),
    }
    remote = store.put("containers", files) / "p"
    local = tmp_path / "p"
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for place in ("", "a.tar"):
        of_store, of_disk = (
            read_all(WebDatasetImages(kind="webdataset", path=root / place)) for root in (remote, local)
        )
        assert of_store == of_disk
        assert sum(isinstance(row, SourceImage) for row in of_disk) >= 2
    of_store, of_disk = (
        read_all(ParquetImages(kind="parquet", path=root, caption_column="text")) for root in (remote, local)
    )
    assert of_store == of_disk
    assert [row.data for row in of_disk] == [picture(n) for n in (0, 1, 2, 3, 4, 5, 6, 9)]


def test_captions_and_exclusions_come_from_a_store(store, tmp_path):
    archive = tar_bytes({"./sa_1.txt": b"a dog"}, "w:gz")
    texts = {"lists/out.txt": b"sa_2\n", "captions/SA1B_caption.tar.gz": archive, "texts/sa_3.txt": b"a cat"}
    root = store.put("words", texts)
    assert read_exclusions(root / "lists/out.txt") == {"sa_2"}
    assert captions_for(tmp_path, root / "captions/SA1B_caption.tar.gz")("x.tar/sa_1.jpg") == b"a dog"
    assert captions_for(tmp_path, root / "texts")("x.tar/sa_3.jpg") == b"a cat"
    assert captions_for(tmp_path, root / "texts")("x.tar/sa_4.jpg") is None


def test_a_run_over_a_store_writes_what_one_over_a_disk_does(store, tmp_path):
    photos, _ = small_input(tmp_path)
    files = {f"photos/{path.relative_to(photos).as_posix()}": path.read_bytes() for path in photos.iterdir()}
    store.put("whole", files)
    images = {"kind": "folder", "path": "s3://whole/photos", "shard_size": 8, "validation": 0}
    remote = small_config(tmp_path, "remote", images=images)
    local = small_config(tmp_path, "local")
    run(remote)
    run(local)
    assert _shards(remote.run_dir) == _shards(local.run_dir)
    assert len(_shards(local.run_dir)) == 3


def _shards(run_dir: Place) -> dict[str, bytes]:
    shards = run_dir / layout.SHARDS
    return {name: read_whole(shards / name) for name in files_below(shards)}


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_a_store_that_fails_in_the_middle_leaves_units_undone_and_loses_nothing(store, tmp_path, kind):
    photos, _ = small_input(tmp_path)
    names = sorted(path.name for path in photos.glob("*.jpg"))
    captions = dict(line.split(",", 1) for line in (photos / "captions.csv").read_text().splitlines()[1:])
    if kind == "folder":
        files = {path.name: path.read_bytes() for path in photos.iterdir()}
    else:
        files = {}
        for part in range(3):
            block = names[part * 8 : part * 8 + 8]
            if kind == "webdataset":
                members = {name: (photos / name).read_bytes() for name in block}
                members |= {name.replace("jpg", "txt"): captions[name].encode() for name in block}
                files[f"{part}.tar"] = tar_bytes(members)
            else:
                image = [{"bytes": (photos / name).read_bytes(), "path": name} for name in block]
                table = pa.table({"image": image, "caption": [captions[name] for name in block]})
                pq.write_table(table, tmp_path / "t.parquet")
                files[f"{part}.parquet"] = (tmp_path / "t.parquet").read_bytes()
    store.put(f"failing-{kind}", files)
    images = {"kind": kind, "path": f"s3://failing-{kind}", "validation": 0}
    images |= {"shard_size": 8} if kind == "folder" else {}
    images |= {"caption_column": "caption"} if kind == "parquet" else {}
    config = small_config(tmp_path, images=images)

    store.serves_objects = store.objects_read + {"folder": 14, "webdataset": 1, "parquet": 3}[kind]
    with pytest.raises(WorkError, match=r"cannot be reached|given up"):
        run(config)
    assert not list((config.run_dir / layout.REJECTS).rglob("*.parquet"))
    done = list((config.run_dir / layout.COMMITS / "concepts").rglob("*.json"))
    assert 0 < len(done) < 3

    store.serves_objects = 10**9
    counts = run(config)
    assert counts["render"].rows_out == 24
    pairs = [row for path in sorted((config.run_dir / "pairs").iterdir()) for row in read_rows(path, Pair)]
    assert len({pair.image for pair in pairs}) == 24


def test_a_store_that_is_gone_is_transient_and_says_no_secret(store):
    images = FolderImages(kind="folder", path=store.put("gone", {"a.jpg": picture()}))
    refs = [ImageRef(uri="a.jpg", caption=b"", below=0)]
    store.stop()
    for attempt in (
        lambda: list(read_images(images, refs, 0)),
        lambda: list(list_images(images, 0)),
        lambda: kind_of(images.path / "a.jpg"),
    ):
        with pytest.raises(TransientError, match="cannot be reached") as caught:
            attempt()
        assert "secret-of-nobody" not in str(caught.value)


def test_an_object_that_went_away_is_rejected_but_a_lost_bucket_is_not(store):
    root = store.put("leaving", {"a.jpg": picture()})
    refs = [ImageRef(uri="b.jpg", caption=b"", below=0)]
    (row,) = list[Any](read_images(FolderImages(kind="folder", path=root), refs, 0))
    assert row.reason == Reason.UNREADABLE
    with pytest.raises(TransientError):
        check_mounted(UPath("s3://no-such-bucket/x"), FileNotFoundError())


def test_what_a_store_refuses_is_the_users_to_mend(monkeypatch, tmp_path, store):
    small_input(tmp_path)
    raw = small_config(tmp_path).model_dump(mode="json")
    raw["images"] |= {"path": "s3://no-such-bucket/photos"}
    with pytest.raises(InputError, match=r"images\.path: no such file or folder: s3://no-such-bucket/photos"):
        make_config(raw)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    UPath("s3://x").fs.clear_instance_cache()
    with pytest.raises(
        InputError, match=r"s3://no-such-bucket/photos: the store refuses: NoCredentialsError"
    ) as caught:
        make_config(raw)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(tmp_path):
    small_input(tmp_path)
    raw = small_config(tmp_path).model_dump(mode="json")
    raw["images"] |= {"path": "s3://bucket/photos"}
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from sonify.config import make_config\nfrom sonify.errors import InputError\n"
        f"try: make_config({raw!r})\n"
        "except InputError as error: print(error)"
    )
    said = run_python(program, timeout=60).stdout
    assert "[remote]" in said
    assert said.count("\n") == 1


def test_links_to_files_and_folders_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(picture())
    root = tmp_path / "photos"
    root.mkdir()
    (root / "subset.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "broken.jpg").symlink_to("nowhere.jpg")
    rows = read_all(FolderImages(kind="folder", path=root))
    assert [(row.uri, row.data) for row in rows] == [("folder/a.jpg", picture()), ("subset.jpg", picture())]

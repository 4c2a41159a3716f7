"""Sounds in a store are listed and opened as on a disk; a store that fails leaves work undone."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.errors import TransientError
from sonify.sources.sounds import open_sound
from tests.builders import write_tar
from tests.servers import running_store
from tests.sources.recordings import audio_of, listed, put, real_recording


@pytest.fixture
def store(monkeypatch):
    with running_store(monkeypatch) as running:
        yield running


@pytest.fixture
def disk(test_data, tmp_path):
    """A small corpus of each kind that may lie in a store, below one folder."""
    root = tmp_path / "disk"
    sounds = [real_recording(test_data, number) for number in range(6)]
    put(root / "folder/a/dog.flac", sounds[0])
    put(root / "folder/metadata.csv", b"file,text,licence\na/dog.flac,a dog,CC0\n")
    write_tar(root / "webdataset/0.tar", {"1.flac": sounds[1], "1.json": b'{"text": "a bell"}', "2.flac": sounds[2]})
    cells = pa.array([{"bytes": sounds[3], "path": None}, {"bytes": None, "path": "x/4.flac"}])
    (root / "parquet").mkdir()
    pq.write_table(pa.table({"audio": cells, "text": ["rain", "wind"]}), root / "parquet/0.parquet")
    put(root / "parquet/x/4.flac", sounds[4])
    for name in ("class_labels_indices.csv", "eval_segments.head.original_form.csv"):
        shutil.copy(test_data / "formats/audioset" / name, root / name)
    put(root / "audioset/--4gqARaEJE.flac", sounds[5])
    write_tar(root / "audioset/0.tar", {"audio/--BfvyPmVMo.flac": sounds[0]})
    put(root / "fsd50k/FSD50K.ground_truth/dev.csv", b'fname,labels,mids,split\n64760,"Dog,Animal","a,b",train\n')
    put(root / "fsd50k/FSD50K.metadata/dev_clips_info_FSD50K.json", json.dumps({"64760": {"license": "by"}}).encode())
    put(root / "fsd50k/FSD50K.dev_audio/64760.flac", sounds[1])
    shutil.copytree(root / "fsd50k/FSD50K.dev_audio", root / "bbc")
    put(root / "bbc/BBCSoundEffects.csv", b'"64760.wav","a dog ","1","","","",""\n')
    return root


def source_of(root, kind):
    lists = {"segments": root / "eval_segments.head.original_form.csv", "labels": root / "class_labels_indices.csv"}
    return {"kind": kind, "path": root / kind, **(lists if kind == "audioset" else {})}


def upload(store, bucket, disk):
    files = {path.relative_to(disk).as_posix(): path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    return store.put(bucket, files)


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet", "audioset", "fsd50k", "bbc"])
def test_a_corpus_in_a_store_is_the_same_as_on_a_disk(disk, store, kind):
    here, there = source_of(disk, kind), source_of(upload(store, f"bucket-{kind}", disk), kind)

    refs = listed(there)

    assert refs == listed(here)
    readable = [file for file, ref in refs.items() if not ref.refused]
    assert readable
    for file in readable:
        local = open_sound(audio_of(here).sources, kind, file)
        data = local.read_bytes() if isinstance(local, Path) else local
        assert open_sound(audio_of(there).sources, kind, file) == data


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet", "audioset"])
def test_a_store_that_fails_refuses_no_row(disk, store, kind):
    there = source_of(upload(store, f"busy-{kind}", disk), kind)
    refs = [file for file, ref in listed(there).items() if not ref.refused]
    store.serves_objects = 0
    for file in refs:
        with pytest.raises(TransientError):
            open_sound(audio_of(there).sources, kind, file)
    with pytest.raises(TransientError):
        listed(there)

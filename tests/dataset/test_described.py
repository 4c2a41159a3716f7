"""What `publish` writes, opened by the libraries that others open it with."""

import hashlib
import io
import json
from pathlib import Path

import datasets
import datasets.config
import mlcroissant
import pytest
import soundfile
from huggingface_hub import DatasetCard

from sonify.dataset.push import push
from sonify.dataset.write import PublishOptions, publish
from sonify.io.tables import read_rows
from sonify.rows import Pair
from sonify.running import run
from tests.builders import small_config, small_input

pytestmark = [
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated"),  # mlcroissant's own use of its libraries
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run over 40 photos in two splits and 32 recordings, and all of it published."""
    root = tmp_path_factory.mktemp("described")
    photos, sounds = small_input(root, photos=40, recordings=32)
    config = small_config(
        root,
        images={"kind": "folder", "path": str(photos), "shard_size": 16, "validation": 0.3},
        audio={"sources": [{"kind": "folder", "path": str(sounds)}], "validation": 0.3},
    )
    run(config)
    options = PublishOptions(with_audio=True, image_licence="CC0-1.0", licence="cc0-1.0")
    publish(root / "run", root / "set", options)
    return root


@pytest.fixture(scope="module")
def pairs(root) -> list[Pair]:
    """What the run paired."""
    return [pair for table in sorted((root / "run/pairs").glob("*.parquet")) for pair in read_rows(table, Pair)]


def load(root: Path, name: str) -> datasets.DatasetDict:
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        found = datasets.load_dataset(str(root / "set"), name, cache_dir=str(root / "cache"))
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    assert isinstance(found, datasets.DatasetDict)
    return found


def test_all_that_was_paired_is_loaded_in_its_split(root, pairs):
    loaded = load(root, "pairs")
    assert {split: len(rows) for split, rows in loaded.items()} == {
        split: sum(pair.split == split for pair in pairs) for split in ("train", "validation")
    }
    for split, rows in loaded.items():
        expected = {(pair.image, pair.scene): pair for pair in pairs if pair.split == split}
        for row in rows.to_list():
            pair = expected[row["image"], row["scene"]]
            assert [source["clip"] for source in row["sources"]] == [source.clip for source in pair.sources]


def test_every_clip_that_is_heard_is_loaded_once(root, pairs):
    clips = load(root, "clips")["train"]
    assert sorted(clips["clip"]) == sorted({source.clip for pair in pairs for source in pair.sources})


def test_the_audio_column_holds_the_mixes(root):
    for split, sounds in load(root, "audio").items():
        assert sounds.features["audio"] == datasets.Audio(sampling_rate=16000)
        stored = sounds.cast_column("audio", datasets.Audio(decode=False)).to_list()
        expected = [(row["image"], row["scene"], row["mix_sha256"]) for row in load(root, "pairs")[split].to_list()]
        assert [(row["image"], row["scene"], mix_sha256(row["audio"]["bytes"])) for row in stored] == expected


def mix_sha256(flac: bytes) -> str:
    samples, _ = soundfile.read(io.BytesIO(flac), dtype="int16")
    return hashlib.sha256(samples.tobytes()).hexdigest()


def test_the_card_parses_and_agrees_with_the_record(root):
    head = DatasetCard.load(root / "set/README.md").data.to_dict()
    record = json.loads((root / "set/sonify.json").read_text())
    counted = {
        one["config_name"]: {split["name"]: split["num_examples"] for split in one["splits"]}
        for one in head["dataset_info"]
    }
    assert set(counted) == {"pairs", "clips", "shards", "audio"}
    assert counted["pairs"] == counted["audio"] == record["statistics"]["scenes"]
    assert counted["clips"] == {"train": sum(record["statistics"]["clips"].values())}


def test_croissant_reads_what_datasets_reads(root):
    described = mlcroissant.Dataset(jsonld=str(root / "set/croissant.json"))
    assert described.metadata.ctx.issues.errors == set()
    loaded = load(root, "pairs")
    sources = {
        row["pairs/image"].decode(): [source["pairs/sources/clip"].decode() for source in row["pairs/sources"]]
        for row in described.records("pairs")
    }
    assert sources == {
        row["image"]: [source["clip"] for source in row["sources"]]
        for rows in loaded.values()
        for row in rows.to_list()
    }
    clips = [row["clips/clip"].decode() for row in described.records("clips")]
    assert clips == list(load(root, "clips")["train"]["clip"])


def test_croissant_reads_the_sounds_that_datasets_reads(root):
    described = mlcroissant.Dataset(jsonld=str(root / "set/croissant.json"))
    sounds = {
        (row["audio/image"].decode(), row["audio/scene"].decode()): mix_sha256(row["audio/audio"])
        for row in described.records("audio")
    }
    pairs = [row for rows in load(root, "pairs").values() for row in rows.to_list()]
    assert sounds == {(row["image"], row["scene"]): row["mix_sha256"] for row in pairs}


def test_every_recording_is_credited(root):
    text = (root / "set/ATTRIBUTION.md").read_text()
    recordings = set(load(root, "clips")["train"]["recording"])
    assert text.count("\n- ") == len(recordings)
    assert "(by " in text


def test_it_is_ready_to_be_pushed(root):
    planned = push(root / "set", "me/set", dry_run=True)
    there = {path.relative_to(root / "set").as_posix() for path in (root / "set").rglob("*") if path.is_file()}
    assert {one.path for one in planned} == there

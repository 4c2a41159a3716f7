"""Names in other scripts than ASCII: short enough to unpack, and known again in a run that an earlier version began."""

import json
import subprocess

import datasets
import numpy as np
import pytest
from pyarrow.parquet import read_table
from webdataset.compat import WebDataset

from sonify import keys, layout
from sonify.dataset.write import PublishOptions, publish
from sonify.features.samples import make_sample, sources_of
from sonify.keys import escape_key, plain_key, split_member, unescape_key
from sonify.pool import ClipTexts
from sonify.report.gallery import build_gallery
from sonify.rows import ImageConcepts, Pair, Render
from sonify.running import run
from sonify.stages.features import ShardReader
from sonify.stages.table import stages_of
from tests.builders import (
    archives_in,
    members_of,
    picture,
    small_config,
    small_input,
    sounds_in,
    stored,
    write_photos,
    write_tar,
)
from tests.dataset.folders import own

# Plain keys of 24, 246, 297, 194, 1,413 and 280 characters; of the first two today's are in another order.
NAMES = {
    "写真.jpg": "a dog",
    f"{'é' * 40}.jpg": "a dog",
    f"旅行/{'富士山の朝' * 6}.jpg": "a cat",
    f"mixed {'é' * 30}.jpg": "rain",
    f"{'東京' * 40}/{'夜景' * 38}.jpg": "a train",
    f"{'plain' * 30}/a{'_' * 60}.jpg": "a frog",
}


def long_names(root, **sections):
    """A run over pictures with long names."""
    small_input(root, photos=0)
    write_photos(root / "photos", NAMES)
    return small_config(root, **sections)


def archived_names(root, **sections):
    """The same pictures and captions in an archive."""
    small_input(root, photos=0)
    members = {name: picture(n) for n, name in enumerate(NAMES)}
    texts = {f"{name.removesuffix('.jpg')}.txt": text.encode() for name, text in NAMES.items()}
    write_tar(root / "tars/a.tar", members | texts)
    images = archives_in(root / "tars", **sections.pop("images", {}))
    return small_config(root, images=images, **sections)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    config = long_names(tmp_path_factory.mktemp("long"))
    run(config)
    return config


def shard_of(config):
    (shard,) = (config.run_dir / layout.SHARDS).rglob("*.tar")
    return shard


def test_a_shard_of_long_names_can_be_unpacked(done, tmp_path):
    subprocess.run(["tar", "xf", shard_of(done), "-C", tmp_path], check=True)
    records = [json.loads(path.read_bytes()) for path in tmp_path.rglob("*.json")]
    assert {record["image_uri"] for record in records} == NAMES.keys()
    assert {unescape_key(record["key"]) for record in records} == NAMES.keys()
    assert len(list(tmp_path.rglob("*.jpg"))) == len(list(tmp_path.rglob("*.captions.flac"))) == len(NAMES)


def test_both_libraries_read_a_shard_of_long_names(done, tmp_path):
    samples = list(WebDataset(str(shard_of(done)), shardshuffle=False))
    assert [json.loads(sample["json"])["key"] for sample in samples] == sorted(
        map(escape_key, NAMES), key=keys.key_order
    )
    for sample in samples:
        assert {"jpg", "json", "captions.flac"} <= sample.keys()
        assert sample["__key__"].replace("/", "") == json.loads(sample["json"])["key"]
    loaded = datasets.load_dataset(
        "webdataset", data_files=[str(shard_of(done))], split="train", cache_dir=str(tmp_path)
    )
    table = loaded.data.table
    assert [found["key"] for found in table["json"].to_pylist()] == [
        json.loads(sample["json"])["key"] for sample in samples
    ]
    assert all(data["bytes"] for data in table["captions.flac"].to_pylist())


def test_members_of_long_names_are_found_by_all_who_look_for_them(done, tmp_path):
    build_gallery(done.run_dir, out=tmp_path / "gallery")
    assert len(list((tmp_path / "gallery/media").glob("*.flac"))) == len(NAMES)
    render = next(stage for stage in stages_of(done) if stage.name == "render")
    samples = list(ShardReader(done.run_dir, render.digest)("000000"))
    assert {unescape_key(sample.key) for sample in samples} == NAMES.keys()
    assert all(len(sample.sounds) == 1 for sample in samples)
    texts = ClipTexts(done.run_dir)
    for sample in samples:
        heard = texts([source["clip"] for source in sources_of(sample.record)])
        made = make_sample(sample.record, {"latent": np.zeros(1)}, np.zeros((1, 1, 1)), heard)
        names = [name for name, _ in made.members]
        assert [split_member(name) for name in names] == [
            (made.key, ending) for ending in ("captions.audio.npy", "json", "latent.npy")
        ]
        assert max(len(part) for name in names for part in name.split("/")) <= 255
    options = PublishOptions(with_audio=True, image_licence="CC0-1.0")
    publish(done.run_dir, tmp_path / "set", options)
    (table,) = (read_table(path) for path in (tmp_path / "set/audio").glob("*.parquet"))
    assert {unescape_key(key) for key in table["image"].to_pylist()} == NAMES.keys()


def as_before(monkeypatch):
    """Name images as the versions did that knew no other key than the plain one, nor folders in shards."""
    monkeypatch.setattr(keys, "MAX_PART_CHARS", 1 << 20)


TWO = [{"kind": "captions", "name": "one"}, {"kind": "captions", "name": "other"}]


@pytest.mark.parametrize("upto", ["concepts", "pair", "render"])
@pytest.mark.parametrize("make", [long_names, archived_names])
def test_a_run_that_an_earlier_version_began_goes_on_under_its_own_keys(tmp_path, monkeypatch, make, upto):
    config = make(tmp_path, images={"sample": 5})
    stages = ["pool", "embeddings", "concepts", "pair", "render"]
    with monkeypatch.context() as patch:
        as_before(patch)
        run(config, stages=stages[: stages.index(upto) + 1])
    counts = run(config)
    assert counts["render"].rows_out == 5
    assert not any(count.rejected for count in counts.values())
    pairs = stored(config.run_dir / layout.PAIRS, Pair)
    assert [pair.image for pair in pairs] == [plain_key(pair.image_uri) for pair in pairs]
    names = members_of(tmp_path / "run" / layout.SHARDS)
    assert {split_member(name)[0] for name in names} == {pair.image for pair in pairs}
    if upto == "render":
        assert not any("/" in name for name in names)


@pytest.mark.parametrize("make", [long_names, archived_names])
def test_extractors_of_two_versions_are_joined(tmp_path, monkeypatch, make):
    config = make(tmp_path, concepts={"extractors": TWO})
    first = config.model_copy(
        update={"concepts": config.concepts.model_copy(update={"extractors": config.concepts.extractors[:1]})}
    )
    with monkeypatch.context() as patch:
        as_before(patch)
        run(first, stages=["concepts"])
    counts = run(config)
    assert counts["pair"].rows_out == 2 * len(NAMES)
    concepts = {name: stored(config.run_dir / layout.CONCEPTS / name, ImageConcepts) for name in ("one", "other")}
    assert [row.image_uri for row in concepts["one"]] == [row.image_uri for row in concepts["other"]]
    assert [row.image for row in concepts["one"]] != [row.image for row in concepts["other"]]
    pairs = stored(config.run_dir / layout.PAIRS, Pair)
    assert (
        [pair.image for pair in pairs[::2]]
        == [pair.image for pair in pairs[1::2]]
        == [row.image for row in concepts["one"]]
    )


@pytest.mark.parametrize("earlier", [True, False])
def test_what_was_published_is_rendered(tmp_path, monkeypatch, earlier):
    config = long_names(tmp_path, images={"validation": 0.5}, audio=sounds_in(tmp_path / "sounds", validation=0.5))
    with monkeypatch.context() as patch:
        if earlier:
            as_before(patch)
        run(config)
        publish(config.run_dir, tmp_path / "set")
    assert len(list((tmp_path / "set" / "data").glob("*.parquet"))) == 2
    again = own(tmp_path, run="again", published={"path": str(tmp_path / "set")})
    assert run(again)["render"].rows_out == len(NAMES)
    mixes = [stored(of.run_dir / layout.RENDERS, Render) for of in (config, again)]
    assert mixes[0] == mixes[1]


def test_an_excluded_image_is_known_by_both_of_its_keys(tmp_path):
    config = long_names(tmp_path)
    for number, key in enumerate(sorted(keys.keys_of(max(NAMES, key=lambda name: len(plain_key(name)))))):
        (tmp_path / "exclude.txt").write_text(key)
        images = config.images.model_copy(update={"exclude": tmp_path / "exclude.txt"})
        counts = run(config.model_copy(update={"images": images, "run_dir": tmp_path / f"run-{number}"}))
        assert counts["pair"].rejected == {"excluded": 1}

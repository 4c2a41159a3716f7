import io
import json
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image

from sonify import layout
from sonify.engine.tables import read_rows
from sonify.mixing import pcm_sha256
from sonify.report.usage import read_pairs
from sonify.rows import Clip, Render
from sonify.run import run
from tests.fakes import picture, small_config, small_input, write_photos


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("render")
    photos, _ = small_input(root, photos=12)
    (photos / "x.png").write_bytes(picture(5, image_format="PNG"))
    (photos / "x.txt").write_text("a cat and a dog in the rain")
    config = small_config(root, retrieval={"draws": 2})
    run(config)
    return root, config


def members(config):
    found = {}
    for path in sorted((config.run_dir / layout.SHARDS).rglob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    return found


def renders(config):
    return [row for path in sorted((config.run_dir / layout.RENDERS).iterdir()) for row in read_rows(path, Render)]


def test_every_sample_has_the_same_members(rendered):
    _, config = rendered
    names = sorted(members(config))
    assert len(names) == 13 * 4
    assert names[:4] == ["000_2ejpg.captions-0.flac", "000_2ejpg.captions-1.flac", "000_2ejpg.jpg", "000_2ejpg.json"]


def test_jpegs_are_kept_byte_for_byte_and_others_become_jpeg(rendered):
    root, config = rendered
    found = members(config)
    assert found["000_2ejpg.jpg"] == (root / "photos/000.jpg").read_bytes()
    converted = Image.open(io.BytesIO(found["x_2epng.jpg"]))
    assert (converted.format, converted.mode) == ("JPEG", "RGB")


def test_the_sound_is_the_mix_that_the_tables_describe(rendered):
    _, config = rendered
    found = members(config)
    clips, samples = {}, np.load(config.run_dir / layout.audio("000000"))
    for row, clip in enumerate(read_rows(config.run_dir / layout.clips("000000"), Clip)):
        clips[clip.clip] = samples[row]
    pairs = {(pair.image, pair.scene): pair for pair in read_pairs(config.run_dir)}
    for render in renders(config):
        pcm, rate = soundfile.read(io.BytesIO(found[f"{render.image}.{render.scene}.flac"]), dtype="int16")
        assert (rate, len(pcm)) == (16000, 80000)
        assert pcm_sha256(pcm) == render.mix_sha256
        sources = pairs[render.image, render.scene].sources
        mixed = sum(clips[s.clip] * 10 ** (s.gain_db / 20) for s in sources) * 10 ** (render.mix_gain_db / 20)
        assert np.abs(mixed - pcm).max() <= 1


def test_json_has_fixed_fields_no_null_no_empty_list_and_floats_with_a_point(rendered):
    _, config = rendered
    texts = [data.decode() for name, data in members(config).items() if name.endswith(".json")]
    shapes = set()
    for text in texts:
        record = json.loads(text)
        assert "null" not in text
        assert "[]" not in text
        shapes.add((tuple(record), tuple(record["scenes"][0]), tuple(record["scenes"][0]["sources"][0])))
        source = record["scenes"][0]["sources"][0]
        assert all(isinstance(source[key], float) for key in ("cosine", "score", "threshold", "target_lufs", "gain_db"))
    assert len(shapes) == 1


def test_webdataset_opens_the_shards_as_they_are(rendered):
    _, config = rendered
    urls = [str(path) for path in sorted((config.run_dir / layout.SHARDS / "train").iterdir())]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 13
    for sample in samples:
        assert {"jpg", "json", "captions-0.flac", "captions-1.flac"} <= set(sample)


def test_hugging_face_opens_the_shards_as_they_are(rendered, tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: datasets decodes sound with its libraries")
    import datasets  # noqa: PLC0415 - a second to import

    _, config = rendered
    datasets.disable_progress_bars()
    shards = str(config.run_dir / layout.SHARDS / "train" / "*.tar")
    loaded = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=str(tmp_path))
    assert len(loaded) == 13
    row = loaded[0]
    assert row["json"]["scenes"][0]["sources"][0]["clip"].startswith("folder/")
    assert row["jpg"].size == (48, 32)
    assert row["captions-0.flac"].get_all_samples().data.shape == (1, 80_000)


def test_images_can_be_made_smaller(rendered):
    root, _ = rendered
    config = small_config(root, run="small", render={"image": 16})
    run(config)
    sizes = {Image.open(io.BytesIO(data)).size for name, data in members(config).items() if name.endswith(".jpg")}
    assert {min(size) for size in sizes} == {16}


def test_an_image_that_changed_after_pairing_is_rejected(tmp_path):
    small_input(tmp_path, photos=4)
    config = small_config(tmp_path)
    run(config, stages=["pool", "embeddings", "concepts", "pair"])
    (tmp_path / "photos/001.jpg").write_bytes(picture(99))
    (tmp_path / "photos/002.jpg").unlink()
    counts = run(config, stages=["render"])["render"]
    assert counts.rejected == {"changed": 1, "unreadable": 1}
    assert counts.balances()


@pytest.mark.slow
def test_an_independent_meter_measures_the_target_loudness(test_data, tmp_path):
    """FFmpeg's ebur128 against target + mix gain, on single-source scenes of real recordings."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: no independent loudness meter")
    config = small_config(
        tmp_path,
        images={"kind": "folder", "path": str(test_data / "photos"), "shard_size": 64, "validation": 0},
        audio={"sources": [{"kind": "folder", "path": str(test_data / "sounds")}], "validation": 0},
    )
    run(config)
    gains = {(row.image, row.scene): row.mix_gain_db for row in renders(config)}
    found = members(config)
    single = [pair for pair in read_pairs(config.run_dir) if len(pair.sources) == 1]
    limited = capped = 0
    assert len(single) > 50
    for pair in single:
        mix_gain_db = gains[pair.image, pair.scene]
        limited += mix_gain_db < 0
        if pair.sources[0].gain_db >= config.mix.max_gain_db:
            capped += 1
            continue  # too quiet a recording to be brought to its target
        path = tmp_path / "scene.flac"
        path.write_bytes(found[f"{pair.image}.{pair.scene}.flac"])
        measured = ebur128(path)
        assert measured == pytest.approx(pair.sources[0].target_lufs + mix_gain_db, abs=0.1), pair
    assert limited / len(single) <= 0.05
    assert capped / len(single) <= 0.05


def ebur128(path) -> float:
    meter = "ebur128=metadata=1,ametadata=mode=print:key=lavfi.r128.I:file=-"
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-i", str(path), "-af", meter, "-f", "null", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(text.rpartition("lavfi.r128.I=")[2].split()[0])


def test_an_image_without_jpeg_twin_keeps_its_key(rendered):
    _, config = rendered
    assert {name.partition(".")[0] for name in members(config)} >= {"x_2epng", "000_2ejpg"}


def test_photos_of_one_stem_do_not_merge(tmp_path):
    small_input(tmp_path, photos=0)
    write_photos(tmp_path / "photos", {"a.1.jpg": "a dog", "a.2.jpg": "a cat", "a.jpeg": "a frog"})
    config = small_config(tmp_path)
    run(config)
    assert len({name.partition(".")[0] for name in members(config)}) == 3

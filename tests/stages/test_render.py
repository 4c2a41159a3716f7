import io
import json
import shutil
import subprocess

import numpy as np
import pyebur128
import pytest
import soundfile
from PIL import Image
from webdataset.compat import WebDataset

from sonify import layout
from sonify.io.tables import read_rows
from sonify.io.tars import TarWriter
from sonify.media.mixing import pcm_sha256
from sonify.report.status import pairs_of_run
from sonify.rows import Clip, Render
from sonify.running import run
from tests.builders import (
    archives_in,
    members_of,
    picture,
    small_config,
    small_input,
    stored,
    write_photos,
)


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
    return members_of(config.run_dir / layout.SHARDS)


def renders(config):
    return stored(config.run_dir / layout.RENDERS, Render)


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
    pairs = {(pair.image, pair.scene): pair for pair in pairs_of_run(config.run_dir)}
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
    samples = list(WebDataset(urls, shardshuffle=False))
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


@pytest.fixture(scope="module")
def single_source_scenes(real_run):
    """(pair, mix gain in dB, FLAC bytes) of every scene of one source, of real photographs and recordings."""
    gains = {(row.image, row.scene): row.mix_gain_db for row in renders(real_run)}
    found = members(real_run)
    single = [pair for pair in pairs_of_run(real_run.run_dir) if len(pair.sources) == 1]
    assert len(single) > 100
    return [(pair, gains[pair.image, pair.scene], found[f"{pair.image}.{pair.scene}.flac"]) for pair in single]


def check_loudness(scenes, measure):
    """Nearly all scenes are within 0.1 LU of target + mix gain.

    The others have blocks near -70 LUFS, which the gain takes over BS.1770's absolute gate: the relative gate moves
    with them, and so does the loudness, whoever measures it.
    """
    errors = np.array([abs(measure(flac) - pair.sources[0].target_lufs - gain_db) for pair, gain_db, flac in scenes])
    assert np.median(errors) < 0.01
    assert np.mean(errors < 0.1) >= 0.95
    assert errors.max() < 0.5


def test_rendered_scenes_have_the_target_loudness_by_libebur128(single_source_scenes):
    def measure(flac):
        samples, rate = soundfile.read(io.BytesIO(flac))
        meter = pyebur128.R128State(1, rate, pyebur128.MeasurementMode.MODE_I)
        meter.add_frames(samples, len(samples))
        return pyebur128.get_loudness_global(meter)

    check_loudness(single_source_scenes, measure)
    assert all(pair.sources[0].gain_db < 30.0 for pair, _, _ in single_source_scenes)
    assert np.mean([mix_gain_db < 0 for _, mix_gain_db, _ in single_source_scenes]) <= 0.05


@pytest.mark.slow
def test_rendered_scenes_have_the_target_loudness_by_ffmpeg(single_source_scenes, tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: no ebur128 filter to measure with")

    def measure(flac):
        path = tmp_path / "scene.flac"
        path.write_bytes(flac)
        return ebur128(path)

    check_loudness(single_source_scenes, measure)


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


def test_the_second_member_of_a_name_does_not_take_the_first_along(tmp_path):
    small_input(tmp_path, photos=0)
    path = tmp_path / "tars" / "a.tar"
    path.parent.mkdir()
    with path.open("wb") as file:
        archive = TarWriter(file)
        for name, data in (("x.jpg", picture(1)), ("x.txt", b"a dog"), ("x.jpg", picture(2)), ("y.jpg", picture(3))):
            archive.add(name, data)
        archive.add("y.txt", b"a cat")
        archive.close()
    config = small_config(tmp_path, images=archives_in(path.parent))
    counts = run(config)
    assert counts["concepts/captions"].rejected == {"duplicate_key": 1}
    assert counts["render"].rows_out == 2
    assert members(config)["a_2etar_2fx_2ejpg.jpg"] == picture(1)

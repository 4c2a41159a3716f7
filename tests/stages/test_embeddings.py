import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soxr

from sonify import layout
from sonify.engine.job import Task, run_task
from sonify.errors import TransientError, WorkError
from sonify.io.tables import read_rows
from sonify.io.write import remove
from sonify.media.clips import cut_recording
from sonify.retrieval.candidates import read_pool
from sonify.retrieval.encoders import load_encoder
from sonify.rows import Clip, Rejected, SoundRef
from sonify.stages import embeddings
from sonify.stages.embeddings import EmbeddingKey
from sonify.stages.make_pool import pool_job
from tests.builders import (
    noise,
    small_config,
    sound_row,
    tone,
    write_sound,
    write_table,
)
from tests.tiny_networks import tiny_clap

UNIT = "000000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clap(tmp_path_factory.mktemp("models") / "clap")


@pytest.fixture
def sounds(tmp_path):
    """A long recording, a short one, and one with silence in its middle, at three rates."""
    root = tmp_path / "sounds"
    write_sound(root / "long.flac", tone(1, 11.5, 44_100), 44_100)
    write_sound(root / "short.wav", tone(2, 1.4, 48_000), 48_000)
    quiet = tone(3, 15, 22_050)
    quiet[5 * 22_050 : 10 * 22_050] = 0
    write_sound(root / "silent_middle.flac", quiet, 22_050)
    return root


def config_of(tmp_path, encoder, **retrieval):
    (tmp_path / "photos").mkdir(exist_ok=True)
    return small_config(tmp_path, retrieval={"encoder": encoder, **retrieval})


def clap(folder):
    return {"kind": "clap", "model": str(folder), "device": "cpu", "batch_size": 2}


def do(config, stage, job):
    task = Task(stage=stage, part="", unit=UNIT, digest="d", inputs={}, rows_expected=None)
    return run_task(config.run_dir, job, task, {})


def make_pool(config):
    refs = [sound_row(path.name) for path in sorted(config.audio.sources[0].path.iterdir())]
    write_table(config.run_dir / layout.listing("pool", UNIT), SoundRef, refs)
    do(config, "pool", pool_job(config.run_dir, config.audio, config.seed))
    return list(read_rows(config.run_dir / layout.clips(UNIT), Clip))


def embed(config):
    do(config, "embeddings", embeddings.embeddings_job(config.run_dir, config.audio, config.retrieval))
    parts = load_encoder(config.retrieval.encoder, config.retrieval.hears).parts
    return [np.load(config.run_dir / layout.embeddings(part.id, UNIT)) for part in parts]


def test_each_clip_is_heard_at_48_khz_without_its_padding(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    clips = make_pool(config)
    assert [clip.clip.rpartition("/")[2] for clip in clips] == [
        "long.flac#0", "long.flac#1", "long.flac#2", "short.wav#0", "silent_middle.flac#0", "silent_middle.flac#2",
    ]  # fmt: skip
    (rows,) = embed(config)
    cuts = {
        f"{path.name}#{cut.index}": cut.samples[: round(cut.duration_sec * 48_000)]
        for path in sounds.iterdir()
        for cut in cut_recording(path, 48_000, 5.0)
    }
    assert len(cuts["short.wav#0"]) == round(1.4 * 48_000)
    hears = load_encoder(config.retrieval.encoder).parts[0].hears
    assert hears is not None
    expected = list(hears.embed_segments(cuts[clip.clip.rpartition("/")[2]] for clip in clips))
    assert np.array_equal(rows, expected)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_the_clip_of_the_pool_is_heard_without_its_padding_where_that_is_asked_for(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder), hears="clip")
    clips = make_pool(config)
    stored = np.load(tmp_path / "run" / layout.audio(UNIT))
    sounds.rename(tmp_path / "away")  # no recording is opened
    (rows,) = embed(config)
    cuts = [
        soxr.resample(samples[: round(clip.duration_sec * 16_000)].astype(np.float32), 16_000, 48_000, quality="HQ")
        for clip, samples in zip(clips, stored, strict=True)
    ]
    assert cuts[3].size == round(1.4 * 48_000)
    hears = load_encoder(config.retrieval.encoder).parts[0].hears
    assert hears is not None
    expected = list(hears.embed_segments(np.rint(cut.clip(-32768, 32767)).astype(np.int16) for cut in cuts))
    assert np.array_equal(rows, expected)


@pytest.mark.parametrize("extra", [1, 2, 100])
@pytest.mark.parametrize("hears", ["recording", "clip"])
def test_a_tail_of_a_few_samples_is_heard(tmp_path, folder, hears, extra):
    for rate in (16_000, 44_100, 48_000):
        samples = np.append(tone(1, 5.0, rate), noise(2, extra * 3, level=0.9))
        write_sound(tmp_path / "sounds" / f"{rate}.wav", samples, rate)
    (tmp_path / "photos").mkdir()
    retrieval = {"encoder": clap(folder), "hears": hears}
    config = small_config(tmp_path, retrieval=retrieval, audio={"min_tail_sec": 0})
    clips = make_pool(config)
    (rows,) = embed(config)
    assert len(rows) == len(clips) >= 3
    assert np.isfinite(rows).all()


def test_what_is_heard_of_clips_and_of_recordings_is_never_mixed_up(tmp_path, folder, sounds):
    recording, clip = (config_of(tmp_path, clap(folder), hears=hears) for hears in ("recording", "clip"))
    make_pool(recording)
    (before,) = embed(recording)
    (heard,) = embed(clip)
    assert not np.allclose(before, heard, atol=1e-4)
    assert np.array_equal(embed(recording)[0], before)
    one, other = (load_encoder(config.retrieval.encoder, config.retrieval.hears) for config in (recording, clip))
    assert one.identity != other.identity
    assert one.parts[0].model != other.parts[0].model


def test_a_recording_is_decoded_once_though_windows_cut_it(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    job = embeddings.embeddings_job(config.run_dir, config.audio, config.retrieval)
    whole = [row.vectors[0] for row in job.process(list(job.read(UNIT)))]  # pyright: ignore[reportAttributeAccessIssue]
    one_by_one = []
    for row in job.read(UNIT):
        assert not isinstance(row, Rejected)
        one_by_one += [result.vectors[0] for result in job.process([row])]  # pyright: ignore[reportAttributeAccessIssue]
        (sounds / row.clip.file).unlink(missing_ok=True)  # what is opened again is not there
    assert list(sounds.iterdir()) == []
    assert np.array_equal(whole, one_by_one)


def test_a_hybrid_writes_both_parts_and_the_pool_joins_them(tmp_path, folder, sounds):
    config = config_of(tmp_path, {"kind": "hybrid", "audio": clap(folder), "weight": 0.6})
    clips = make_pool(config)
    heard, written = embed(config)
    encoder = load_encoder(config.retrieval.encoder)
    assert np.array_equal(written, encoder.parts[1].encoder([clip.text for clip in clips]))
    pooled = read_pool(config.run_dir, encoder)["train"]
    assert isinstance(pooled.embeddings, np.ndarray)
    assert np.allclose(pooled.embeddings, np.hstack([heard * 0.6**0.5, written * 0.4**0.5]), atol=1e-6)


def test_a_pool_that_is_made_again_embeds_only_what_changed(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    (before,) = embed(config)
    sounds.rename(tmp_path / "away")  # what is heard again now fails
    (again,) = embed(config)
    assert np.array_equal(again, before)
    (tmp_path / "away").rename(sounds)
    write_sound(sounds / "short.wav", tone(9, 3.0, 48_000), 48_000)
    write_sound(sounds / "more.wav", tone(10, 6.0, 48_000), 48_000)
    clips = make_pool(config)
    kept = {name: (sounds / name).read_bytes() for name in ("long.flac", "silent_middle.flac")}
    for name in kept:
        (sounds / name).unlink()
    (grown,) = embed(config)
    for name, data in kept.items():
        (sounds / name).write_bytes(data)
    remove(config.run_dir / layout.EMBEDDINGS)
    (fresh,) = embed(config)
    assert len(fresh) == len(clips) == 8
    assert np.array_equal(grown, fresh)


def test_what_lies_there_is_used_only_where_it_is_right(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    (before,) = embed(config)
    part = load_encoder(config.retrieval.encoder).parts[0]
    rows = config.run_dir / layout.embeddings(part.id, UNIT)
    keys = tmp_path / "run" / layout.embedding_keys(part.id, UNIT)

    np.save(str(rows), before[::-1])  # as if a killed run had replaced one of the two files
    assert np.array_equal(embed(config)[0], before)

    rows.write_bytes(rows.read_bytes()[:-1])
    assert np.array_equal(embed(config)[0], before)
    keys.write_bytes(b"PAR1")
    assert np.array_equal(embed(config)[0], before)

    others = np.roll(before, 1, axis=1)  # whole and sealed, of another model
    np.save(str(rows), others)
    sealed = [hashlib.sha256(row.tobytes()).hexdigest() for row in others]
    known = list(read_rows(keys, EmbeddingKey))
    for model, expected in ((part.model, others), ("another", before)):
        write_table(
            keys,
            EmbeddingKey,
            [replace(key, model=model, embedding_sha256=seal) for key, seal in zip(known, sealed, strict=True)],
        )
        assert np.array_equal(embed(config)[0], expected)


def test_the_files_are_the_same_bytes_twice(tmp_path, folder, sounds):
    config = config_of(tmp_path, {"kind": "hybrid", "audio": clap(folder)})
    make_pool(config)

    def files():
        remove(config.run_dir / layout.EMBEDDINGS)
        embed(config)
        found = sorted((config.run_dir / layout.EMBEDDINGS).rglob("*.*"))
        return {path: path.read_bytes() for path in found}

    first = files()
    assert len(first) == 3
    assert files() == first


def test_a_recording_that_is_gone_is_named(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    (sounds / "short.wav").unlink()
    with pytest.raises(WorkError, match=r"short\.wav: has clips in the pool and cannot be read .*--redo pool"):
        embed(config)


def test_a_recording_that_ends_earlier_is_named(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    write_sound(sounds / "long.flac", tone(1, 6, 44_100), 44_100)
    with pytest.raises(WorkError, match=r"long\.flac: is shorter than when the pool was made"):
        embed(config)


def test_a_disk_that_is_gone_leaves_the_unit_undone(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    job = embeddings.embeddings_job(config.run_dir, config.audio, config.retrieval)
    shutil.rmtree(sounds)
    with pytest.raises(TransientError, match="mounted"):
        do(config, "embeddings", job)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000])
def test_a_tail_of_just_a_second_is_heard_as_well(tmp_path, folder, sounds, rate):
    """Of 6 s, the rounding of one rate can leave the tail a sample below the least, where the other does not."""
    for path in sounds.iterdir():
        path.unlink()
    for n, extra in enumerate((-2, -1, 0, 1, 2)):
        write_sound(sounds / f"{n}.wav", np.resize(tone(n, 6, rate), 6 * rate + extra), rate)
    config = config_of(tmp_path, clap(folder))
    assert len(make_pool(config)) >= 6
    embed(config)


def test_text_embeddings_leave_no_keys(tmp_path, sounds):
    config = config_of(tmp_path, {"kind": "text"})
    clips = make_pool(config)
    (rows,) = embed(config)
    assert rows.shape == (len(clips), 1024)
    assert [path.name for path in (config.run_dir / layout.EMBEDDINGS).rglob("*.*")] == [f"{UNIT}.npy"]

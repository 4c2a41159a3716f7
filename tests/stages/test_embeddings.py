import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from sonify import layout
from sonify.config import make_config
from sonify.engine.job import Task, run_task
from sonify.errors import TransientError, WorkError
from sonify.io.tables import read_rows, write_rows
from sonify.io.write import Transaction, remove
from sonify.media.clips import cut_recording
from sonify.retrieval import encoders
from sonify.retrieval.clap import Clap
from sonify.retrieval.encoders import load_encoder
from sonify.retrieval.pool import read_pool
from sonify.rows import Clip, SoundRef
from sonify.stages import embeddings, pool
from sonify.stages.embeddings import EmbeddingKey
from tests.fakes import tone
from tests.tiny_models import tiny_clap

UNIT = "000000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clap(tmp_path_factory.mktemp("models") / "clap")


@pytest.fixture
def sounds(tmp_path):
    """A long recording, a short one, and one with silence in its middle, at three rates."""
    root = tmp_path / "sounds"
    root.mkdir()
    soundfile.write(root / "long.flac", tone(1, 11.5, 44_100), 44_100)
    soundfile.write(root / "short.wav", tone(2, 1.4, 48_000), 48_000)
    quiet = tone(3, 15, 22_050)
    quiet[5 * 22_050 : 10 * 22_050] = 0
    soundfile.write(root / "silent_middle.flac", quiet, 22_050)
    return root


def config_of(tmp_path, encoder, clip_seconds=5.0):
    (tmp_path / "photos").mkdir(exist_ok=True)
    return make_config(
        {
            "run_dir": str(tmp_path / "run"),
            "images": {"kind": "folder", "path": str(tmp_path / "photos"), "validation": 0},
            "audio": {
                "sources": [{"kind": "folder", "path": str(tmp_path / "sounds")}],
                "validation": 0,
                "clip_seconds": clip_seconds,
            },
            "retrieval": {"encoder": encoder},
        }
    )


def clap(folder):
    return {"kind": "clap", "model": str(folder), "device": "cpu", "batch_size": 2}


def do(config, stage, job):
    task = Task(stage=stage, part="", unit=UNIT, digest="d", inputs={}, rows_expected=None)
    return run_task(config.run_dir, job, task, {})


def make_pool(config):
    files = sorted(path.name for path in config.audio.sources[0].path.iterdir())
    refs = [
        SoundRef(corpus="folder", file=file, recording=file, text=f"sound {file}", licence="", attribution="")
        for file in files
    ]
    refs = [replace(ref, corpus=config.audio.sources[0].name) for ref in refs]
    with Transaction(config.run_dir) as transaction:
        write_rows(transaction.create(layout.listing("pool", UNIT)), SoundRef, refs)
        transaction.publish()
    do(config, "pool", pool.pool_job(config.run_dir, config.audio, config.seed))
    return list(read_rows(config.run_dir / layout.clips(UNIT), Clip))


def embed(config):
    do(config, "embeddings", embeddings.load_embeddings(config.run_dir, config.audio, config.retrieval.encoder))
    parts = load_encoder(config.retrieval.encoder).parts
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


def test_a_recording_is_decoded_once_though_windows_cut_it(tmp_path, folder, sounds, monkeypatch):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    opened = []
    open_sound = encoders.open_sound
    monkeypatch.setattr(encoders, "open_sound", lambda *args: opened.append(args[-1]) or open_sound(*args))
    job = embeddings.load_embeddings(config.run_dir, config.audio, config.retrieval.encoder)
    whole = [row.vectors[0] for row in job.process(list(job.read(UNIT)))]  # pyright: ignore[reportAttributeAccessIssue]
    assert opened == ["long.flac", "short.wav", "silent_middle.flac"]
    opened.clear()
    one_by_one = [job.process([row])[0].vectors[0] for row in job.read(UNIT)]  # pyright: ignore[reportAttributeAccessIssue]
    assert opened == ["long.flac", "short.wav", "silent_middle.flac"]
    assert np.array_equal(whole, one_by_one)


def test_a_hybrid_writes_both_parts_and_the_pool_joins_them(tmp_path, folder, sounds):
    config = config_of(tmp_path, {"kind": "hybrid", "audio": clap(folder), "weight": 0.6})
    clips = make_pool(config)
    heard, written = embed(config)
    encoder = load_encoder(config.retrieval.encoder)
    assert np.array_equal(written, encoder.parts[1].encoder([clip.text for clip in clips]))
    pooled = read_pool(config.run_dir, encoder)["train"]
    assert np.allclose(pooled.embeddings, np.hstack([heard * 0.6**0.5, written * 0.4**0.5]), atol=1e-6)


def count_embedded(monkeypatch):
    """Count the clips that go through the model."""
    seen = []
    original = Clap.embed_segments

    def counted(self, sounds):
        return original(self, (seen.append(len(sound)) or sound for sound in sounds))

    monkeypatch.setattr(Clap, "embed_segments", counted)
    return seen


def test_a_pool_that_is_made_again_embeds_only_what_changed(tmp_path, folder, sounds, monkeypatch):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    (before,) = embed(config)
    seen = count_embedded(monkeypatch)
    (again,) = embed(config)
    assert seen == []
    assert np.array_equal(again, before)
    soundfile.write(sounds / "short.wav", tone(9, 3.0, 48_000), 48_000)
    soundfile.write(sounds / "more.wav", tone(10, 6.0, 48_000), 48_000)
    make_pool(config)
    (grown,) = embed(config)
    assert sorted(seen) == [48_000, 3 * 48_000, 5 * 48_000]
    remove(config.run_dir / layout.EMBEDDINGS)
    (fresh,) = embed(config)
    assert len(seen) == 3 + 8
    assert np.array_equal(grown, fresh)


def test_what_lies_there_is_used_only_where_it_is_right(tmp_path, folder, sounds, monkeypatch):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    (before,) = embed(config)
    part = load_encoder(config.retrieval.encoder).parts[0]
    rows = config.run_dir / layout.embeddings(part.id, UNIT)
    keys = config.run_dir / layout.embedding_keys(part.id, UNIT)
    seen = count_embedded(monkeypatch)

    np.save(str(rows), before[::-1])  # as if a killed run had replaced one of the two files
    assert np.array_equal(embed(config)[0], before)
    assert len(seen) == len(before)

    rows.write_bytes(rows.read_bytes()[:-1])
    assert np.array_equal(embed(config)[0], before)
    keys.write_bytes(b"PAR1")
    assert np.array_equal(embed(config)[0], before)
    assert len(seen) == 3 * len(before)

    stored = [replace(key, model="another") for key in read_rows(keys, EmbeddingKey)]
    with keys.open("wb") as file:
        write_rows(file, EmbeddingKey, stored)
    assert np.array_equal(embed(config)[0], before)
    assert len(seen) == 4 * len(before)


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
    soundfile.write(sounds / "long.flac", tone(1, 6, 44_100), 44_100)
    with pytest.raises(WorkError, match=r"long\.flac: is shorter than when the pool was made"):
        embed(config)


def test_a_disk_that_is_gone_leaves_the_unit_undone(tmp_path, folder, sounds):
    config = config_of(tmp_path, clap(folder))
    make_pool(config)
    job = embeddings.load_embeddings(config.run_dir, config.audio, config.retrieval.encoder)
    shutil.rmtree(sounds)
    with pytest.raises(TransientError, match="mounted"):
        do(config, "embeddings", job)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000])
def test_a_tail_of_just_a_second_is_heard_as_well(tmp_path, folder, sounds, rate):
    """Of 6 s, the rounding of one rate can leave the tail a sample below the least, where the other does not."""
    for path in sounds.iterdir():
        path.unlink()
    for n, extra in enumerate((-2, -1, 0, 1, 2)):
        soundfile.write(sounds / f"{n}.wav", np.resize(tone(n, 6, rate), 6 * rate + extra), rate)
    config = config_of(tmp_path, clap(folder))
    assert len(make_pool(config)) >= 6
    embed(config)


def test_text_embeddings_leave_no_keys(tmp_path, sounds):
    config = config_of(tmp_path, {"kind": "text"})
    clips = make_pool(config)
    (rows,) = embed(config)
    assert rows.shape == (len(clips), 1024)
    assert [path.name for path in (config.run_dir / layout.EMBEDDINGS).rglob("*.*")] == [f"{UNIT}.npy"]

"""Scenes that are mixed anew while training, on a run that `sonify` itself made."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from sonify import layout
from sonify.config import Config
from sonify.config.loader import make_settings
from sonify.engine.record import require_record, write_record
from sonify.errors import InputError, WorkError
from sonify.media.mixing import pcm_sha256
from sonify.retrieval.candidates import Candidates
from sonify.retrieval.encoders import query_of
from sonify.rows import Clip, ImageConcepts, Pair, Render
from sonify.running import run
from sonify.stages.pair import pool_of
from tests.builders import SUBJECTS, small_config, stored, write_csv, write_photos, write_sounds
from tests.tiny_networks import tiny_tagger
from train.checkpoints import learned_from
from train.config import AudioTokenConfig, TrainConfig
from train.loader import Batch, make_loader
from train.metrics import read_metrics
from train.pixart import hear, train
from train.release import release_checkpoint
from train.scenes import FOLDER, RECORDINGS, Remix, SceneEar, prepare_remix, settings_of
from train.shards import FeatureData, Shard, TrainingSample, open_feature_data
from train.tiny import write_tiny_ast, write_tiny_vae

PHOTOS = 24
STEPS = 12
CAPTIONS = [" and ".join(SUBJECTS[(n + k) % len(SUBJECTS)] for k in (0, 2, 5)) for n in range(PHOTOS)]


@pytest.fixture(scope="module")
def sonified(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with everything that acts on a draw: two extractors of which one may fill up for the other, a listener,
    ratios, events, and both splits."""
    root = tmp_path_factory.mktemp("sonified")
    write_photos(root / "photos", {f"{n:03d}.jpg": f"a {caption}" for n, caption in enumerate(CAPTIONS)})
    other = [(f"{n:03d}.jpg", "a wall" if n % 3 else f"a {SUBJECTS[n % 8]}") for n in range(PHOTOS)]
    write_csv(root / "other.csv", ("file", "caption"), other)
    write_sounds(root / "sounds", {f"{n:03d}.flac": SUBJECTS[n % len(SUBJECTS)] for n in range(64)})
    networks = {"vae": str(write_tiny_vae(root / "vae")), "ast": str(write_tiny_ast(root / "ast"))}
    config = small_config(
        root,
        images={"shard_size": 6, "validation": 0.3},
        audio={"validation": 0.3},
        concepts={
            "extractors": [{"kind": "captions"}, {"kind": "captions", "name": "other", "file": str(root / "other.csv")}]
        },
        retrieval={"confirm": {"kind": "tagger", "model": str(tiny_tagger(root / "tagger", list(LABELS)))}},
        mix={"snr_db": [6, 12], "events": {}},
        render={"scenes": "any"},
        features={"size": 64, **networks},
    )
    run(config)
    return config


LABELS = ("Dog", "Cat", "Church bell", "Rain", "Train", "Chicken, rooster", "Helicopter", "Frog")


def training(sonified: Config, out: Path, **changes: Any) -> TrainConfig:
    assert sonified.features is not None
    data = {"runs": [str(sonified.run_dir)], "workers": 0, "window_shards": 2, "scenes": "remix"}
    raw = {
        "run_dir": str(out),
        "max_steps": STEPS,
        "data": data | changes.pop("data", {}),
        "vae": sonified.features.vae,
        "ast": sonified.features.ast,
        "model": {"sample_size": 8, "caption_channels": 32},
        "batch": {"total": 4, "per_device": 2} | changes.pop("batch", {}),
    }
    return make_settings(raw | changes, TrainConfig)


def load(config: TrainConfig, start_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    data = open_feature_data(config.data)
    return make_loader(data, config, 0.5, start_step, rank, world, remix=prepare_remix(config, data))


def by_steps(config: TrainConfig, world: int = 1, start_step: int = 0) -> dict[str, list]:
    """What all ranks of a world see, in the order of positions."""
    ranks = [list(load(config, start_step, rank, world)) for rank in range(world)]
    batches = [batch for micro_step in zip(*ranks, strict=True) for batch in micro_step]
    assert all(batch.waveforms_BS is not None and batch.audio_BTD.shape[1] == 0 for batch in batches)
    return {
        "keys": [key for batch in batches for key in batch.keys],
        "timesteps": torch.cat([batch.timesteps_B for batch in batches]).tolist(),
        "noise": torch.cat([batch.noise_BCHW for batch in batches]).tolist(),
        "waveforms": [row.numpy().tobytes() for batch in batches for row in batch.waveforms_BS],  # pyright: ignore[reportOptionalIterable]
    }


@pytest.fixture(scope="module")
def remixed(sonified: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, FeatureData, Remix]:
    config = training(sonified, tmp_path_factory.mktemp("training"))
    data = open_feature_data(config.data)
    return config, data, prepare_remix(config, data)


@pytest.fixture(scope="module")
def straight(remixed: tuple[TrainConfig, FeatureData, Remix]) -> dict[str, list]:
    return by_steps(remixed[0])


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (2, 2)])
def test_batches_are_the_same_for_any_processes_and_workers(
    sonified: Config, remixed: Any, straight: dict[str, list], world: int, workers: int
) -> None:
    config = training(sonified, remixed[0].run_dir, data={"workers": workers})

    assert by_steps(config, world) == straight


def test_a_later_start_gives_what_a_run_that_got_there_gets(remixed: Any, straight: dict[str, list]) -> None:
    resumed = by_steps(remixed[0], start_step=5)

    assert resumed == {name: values[4 * 5 :] for name, values in straight.items()}


def test_a_training_of_another_folder_draws_the_same_and_another_seed_others(
    sonified: Config, remixed: Any, straight: dict[str, list], tmp_path: Path
) -> None:
    again = by_steps(training(sonified, tmp_path / "again"))
    other = by_steps(training(sonified, remixed[0].run_dir, seed=1))

    assert again == straight
    assert not set(other["waveforms"]) & set(straight["waveforms"])


def stored_scenes(data: FeatureData) -> Iterator[tuple[Shard, TrainingSample, str]]:
    for number, shard in enumerate(data.shards):
        for row in range(shard.num_samples):
            sample = data.read(number, row)
            yield from ((shard, sample, scene) for scene in sample.scenes)


def scenes_of(data: FeatureData, remix: Remix, visits: int) -> Iterator[tuple[str, str, list]]:
    """Of each scene of each training image its key and its name, and what is drawn for the first visits."""
    for shard, sample, scene in stored_scenes(data):
        yield sample.key, scene, [remix.sources(shard, sample.key, scene, v) for v in range(visits)]


def test_each_visit_draws_other_recordings_or_gains_by_the_rules_of_the_run(sonified: Config, remixed: Any) -> None:
    """What the stage itself, with its search, would have drawn from."""
    _, data, remix = remixed
    clips = {clip.clip: clip for clip in stored(sonified.run_dir / layout.CLIPS, Clip)}
    folders = (sonified.run_dir / layout.CONCEPTS / name for name in ("captions", "other"))
    rows = (row for folder in folders for row in stored(folder, ImageConcepts))
    concepts = {concept.concept: concept for row in rows for concept in row.concepts}
    pool = pool_of(sonified)["train"]
    rankings = pool.rank({query_of(concept, "description") for concept in concepts.values()})
    scenes = redrawn = 0

    for key, scene, draws in scenes_of(data, remix, visits=6):
        for visit, sources in enumerate(draws):
            assert {clips[one.clip].split for one in sources} == {"train"}
            assert len({clips[one.clip].recording for one in sources}) == len(sources)
            for one in sources:
                concept = concepts[one.concept]
                purpose = (sonified.seed, key, f"{scene}@0-{visit}", concept.concept)
                found = pool.consider(concept, rankings[query_of(concept, "description")], purpose)
                assert isinstance(found, Candidates)
                assert one.clip in {pool.clips[position] for position in found.clips}
                assert one.role == "ambience" or -32 <= one.target_lufs <= -28
        gains = [tuple(one.gain_db for one in sources) for sources in draws]
        assert len(set(gains)) == len(gains), (key, scene)
        scenes += 1
        redrawn += len({tuple(one.clip for one in sources) for sources in draws}) > 1
    assert scenes
    assert redrawn > 0.8 * scenes


def test_the_loudness_of_gains_is_of_the_whole_range(remixed: Any) -> None:
    _, data, remix = remixed
    targets = [
        one.target_lufs
        for _, _, draws in scenes_of(data, remix, visits=20)
        for sources in draws
        for one in sources
        if one.role != "ambience"
    ]

    counts, _ = np.histogram(targets, 4, (-32, -28))
    assert counts.min() > 0.6 * len(targets) / 4


def test_the_draw_that_is_stored_sounds_and_is_heard_as_it_is_stored(sonified: Config, remixed: Any) -> None:
    """To the bit: the same draw, the same mix, the same AST."""
    config, data, remix = remixed
    ear = SceneEar(config, settings_of(data), torch.device("cpu"))
    pairs = {(pair.image, pair.scene): pair for pair in stored(sonified.run_dir / layout.PAIRS, Pair)}
    mixes = {(one.image, one.scene): one.mix_sha256 for one in stored(sonified.run_dir / layout.RENDERS, Render)}
    filled = 0

    for shard, sample, scene in stored_scenes(data):
        named = sample.key, scene
        waveform_S = remix.mix(shard, *named, None)
        assert remix.sources(shard, *named, None) == pairs[named].sources
        assert pcm_sha256(waveform_S) == mixes[named]
        heard_BTD = ear(torch.from_numpy(waveform_S[None]))
        np.testing.assert_array_equal(heard_BTD[0], sample.decode(f"{scene}.audio.npy", data.audio_shape))
        filled += scene == "scene-1" and " and " in pairs[named].caption  # a caption of the first extractor
    assert filled


def test_what_is_heard_becomes_a_batch_of_training(remixed: Any) -> None:
    config, data, _ = remixed
    ear = SceneEar(config, settings_of(data), torch.device("cpu"))
    batch = next(load(config))
    threads = torch.get_num_threads()

    heard = hear(batch, ear)

    assert heard.waveforms_BS is None
    assert heard.audio_BTD.shape == (2, *data.audio_shape)
    assert not heard.audio_BTD.is_inference()
    assert torch.get_num_threads() == threads


def test_a_killed_search_goes_on_unit_by_unit(sonified: Config, remixed: Any, tmp_path: Path) -> None:
    config = training(sonified, tmp_path / "run")
    data = open_feature_data(config.data)
    prepare_remix(config, data)
    (folder,) = (tmp_path / "run" / FOLDER).iterdir()
    whole = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    first, second = sorted(name for name in whole if name[0] == "0" and name.endswith(".parquet"))[:2]
    for name in (second, RECORDINGS):
        (folder / name).unlink()

    prepare_remix(config, data)

    now = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    assert {name: data for name, (data, _) in now.items()} == {name: data for name, (data, _) in whole.items()}
    assert now[first][1] == whole[first][1]
    assert now[second][1] > whole[second][1]


def test_the_recordings_that_may_be_heard_are_those_that_a_release_names(sonified: Config, remixed: Any) -> None:
    config, data, remix = remixed
    clips = {clip.clip: clip for clip in stored(sonified.run_dir / layout.CLIPS, Clip)}
    heard = {clips[one.clip].recording for _, _, draws in scenes_of(data, remix, 20) for some in draws for one in some}

    named = learned_from(config, data)

    assert heard <= set(named) <= {clip.recording for clip in clips.values() if clip.split == "train"}
    assert set(named) > set(data.recordings())


TINY = {
    "model": {"layers": 1, "heads": 2, "head_dim": 16, "sample_size": 8, "caption_channels": 32},
    "precision": "fp32",
    "compile": False,
    "log_every": 1,
    "samples": {"sounds": 0},
}


def train_for(config: TrainConfig, steps: int) -> dict[str, torch.Tensor]:
    train(config.model_copy(update={"max_steps": steps}))
    return load_file(config.run_dir / "checkpoints" / f"step-{steps:08d}" / "model.safetensors")


def test_a_training_learns_from_remixes_and_resumes_to_the_bit(sonified: Config, tmp_path: Path) -> None:
    straight, broken = (training(sonified, tmp_path / name, **TINY) for name in ("straight", "broken"))

    expected = train_for(straight, 4)
    train_for(broken, 2)
    resumed = train_for(broken, 4)

    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    with pytest.raises(InputError, match=r"data\.scenes was 'remix [0-9a-f]{16}' when this .* and is None now"):
        train(training(sonified, tmp_path / "broken", data={"scenes": "stored"}, **TINY))


def test_a_training_that_was_moved_is_released_with_what_it_heard(sonified: Config, tmp_path: Path) -> None:
    config = training(sonified, tmp_path / "before", **TINY)
    train_for(config, 1)
    (tmp_path / "before").rename(tmp_path / "moved")
    release_checkpoint(tmp_path / "moved", 1, tmp_path / "out")
    (kept,) = (tmp_path / "moved" / FOLDER).glob(f"*/{RECORDINGS}")
    assert (tmp_path / "out" / RECORDINGS).read_text() == kept.read_text()


@pytest.mark.parametrize("damaged", ["*.npy", "recordings.txt", "pool.parquet"])
def test_damage_of_what_is_kept_is_one_line_that_says_how_it_is_made_again(
    sonified: Config, tmp_path: Path, damaged: str
) -> None:
    config = training(sonified, tmp_path / "damaged", **TINY)
    train_for(config, 1)
    for file in (tmp_path / "damaged" / "scenes").glob(f"*/{damaged}"):
        file.write_bytes(file.read_bytes()[:7] if damaged != "recordings.txt" else b"\xff")
    with pytest.raises(WorkError, match=r"damaged .*; remove it, and it is made again"):
        train_for(config, 2)


def test_two_processes_have_the_losses_of_one(sonified: Config, tmp_path: Path) -> None:
    """The second one waits for what the first one searches."""
    one, two = (training(sonified, tmp_path / name, max_steps=3, **TINY) for name in ("one", "two"))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two.model_dump(mode="json")))
    train(one)

    start = "import sys; from train.launch import launch_processes;"
    start += " sys.exit(launch_processes(2, 'train.pixart', sys.argv[1:], 'train'))"
    done = subprocess.run(
        [sys.executable, "-c", start, "--config", str(tmp_path / "two.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    losses = [[line["loss"] for line in read_metrics(config.run_dir)] for config in (one, two)]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.fixture
def copied(sonified: Config, tmp_path: Path) -> TrainConfig:
    shutil.copytree(str(sonified.run_dir), tmp_path / "copy")
    return training(sonified, tmp_path / "training", data={"runs": [str(tmp_path / "copy")]})


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (layout.CLIPS, r"pool/clips is missing"),
        (layout.AUDIO, r"pool/audio/000000\.npy is missing"),
        (layout.CONCEPTS, r"concepts/captions/000000\.parquet is missing"),
        (layout.EMBEDDINGS, r"pool/embeddings/.* is missing"),
        (layout.TAGS, r"pool/tags/.* missing"),
    ],
)
def test_a_run_without_what_scenes_are_drawn_from_is_refused_in_one_line(
    copied: TrainConfig, gone: str, said: str
) -> None:
    shutil.rmtree(str(copied.data.runs[0] / gone))

    with pytest.raises((InputError, WorkError), match=said) as caught:
        prepare_remix(copied, open_feature_data(copied.data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mix": {"lufs": [-40, -39]}}, r"unit 000000: of \d+ scenes \d+ are not what rules and pool give now"),
        ({"published": {"path": "d", "scenes": ["a"], "digest": "0"}}, r"renders a published dataset"),
    ],
)
def test_a_run_whose_rules_give_other_scenes_is_refused(copied: TrainConfig, change: dict[str, Any], said: str) -> None:
    run_dir = Path(str(copied.data.runs[0]))
    record = require_record(run_dir)
    changed = {key: {**(record.config[key] or {}), **value} for key, value in change.items()}
    write_record(run_dir, replace(record, config={**record.config, **changed}))

    with pytest.raises(InputError, match=said):
        prepare_remix(copied, open_feature_data(copied.data))


def test_pairs_of_ones_own_have_nothing_to_draw_from(copied: TrainConfig) -> None:
    data = open_feature_data(copied.data)
    (run_dir,) = data.runs
    data.runs[run_dir] = replace(data.runs[run_dir], own_pairs=True)

    with pytest.raises(InputError, match=r"holds pairs of somebody's own, and draws nothing: .*data\.scenes: stored$"):
        prepare_remix(copied, data)


def test_only_pixart_with_an_ast_mixes_anew(sonified: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.scenes is remix, which AST hears, and ast is null"):
        training(sonified, tmp_path, ast=None)
    raw = training(sonified, tmp_path).model_dump(mode="json", include={"run_dir", "max_steps", "data", "vae"})
    with pytest.raises(InputError, match=r"data\.scenes"):
        make_settings(raw | {"encoder": {"kind": "ast"}}, AudioTokenConfig)

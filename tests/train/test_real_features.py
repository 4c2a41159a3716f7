"""What `sonify` itself writes, photographs and recordings to features, as training reads it."""

import os
from pathlib import Path

import pytest

from sonify import layout
from sonify.config import Config
from sonify.config.loader import make_settings
from sonify.errors import WorkError
from sonify.models.fetch import AST_FILES, VAE_FILES, fetch_model
from sonify.report.verify import verify
from sonify.rows import Clip
from sonify.running import run
from tests.builders import small_config, small_input, stored
from train.config import TrainConfig
from train.loader import make_loader
from train.shards import check_matches, first_scenes, open_feature_data
from train.tiny import write_tiny_ast, write_tiny_vae


@pytest.fixture(scope="module")
def sonified(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("sonified")
    small_input(root, photos=12, recordings=16)
    networks = {"vae": str(write_tiny_vae(root / "vae")), "ast": str(write_tiny_ast(root / "ast"))}
    config = small_config(
        root,
        run="run",
        images={"shard_size": 4, "validation": 0.3},
        audio={"validation": 0.3},
        retrieval={"draws": 2, "limit": None},
        features={"size": 64, "flip": True, "std": True, **networks},
    )
    run(config)
    return config


def training(config: Config, split: str) -> TrainConfig:
    assert config.features is not None
    raw = {
        "run_dir": "out",
        "max_steps": 3,
        "data": {"runs": [str(config.run_dir)], "split": split, "workers": 0},
        "vae": config.features.vae,
        "ast": config.features.ast,
        "model": {"sample_size": 8, "caption_channels": 32},
        "batch": {"total": 2, "per_device": 2},
    }
    return make_settings(raw, TrainConfig)


def test_a_run_is_read_as_it_was_made(sonified: Config) -> None:
    config = training(sonified, "train")
    assert config.ast is not None
    data, validation = (open_feature_data(training(sonified, split).data) for split in ("train", "validation"))

    check_matches(
        data,
        config,
        fetch_model(config.vae, None, VAE_FILES).identity,
        fetch_model(config.ast, None, AST_FILES).identity,
    )
    batches = list(make_loader(data, config, 0.18215, start_step=0, rank=0, world=1))

    assert data.num_images + validation.num_images == 12
    assert [batch.latents_BCHW.shape for batch in batches] == [(2, 4, 8, 8)] * 3
    assert [batch.audio_BTD.shape for batch in batches] == [(2, *data.audio_shape)] * 3
    clips = stored(sonified.run_dir / layout.CLIPS, Clip)
    of_train = {clip.recording for clip in clips if clip.split == "train"}
    assert set(data.recordings()) <= of_train
    assert not set(validation.recordings()) & of_train
    assert all(caption for _, _, _, caption in first_scenes(validation, 4))


def test_the_remedy_that_is_told_for_damage_mends_it(sonified: Config) -> None:
    data = training(sonified, "train").data
    before = open_feature_data(data).digest
    archive = next(Path(str(sonified.run_dir), "features/train").glob("*.tar"))
    os.truncate(archive, archive.stat().st_size - 512)
    with pytest.raises(WorkError, match=r"--repair` withdraws it, and `.*sonify features --config F` makes it again"):
        open_feature_data(data)

    verify(sonified.run_dir, repair=True)
    run(sonified, ("features",))

    assert open_feature_data(data).digest == before

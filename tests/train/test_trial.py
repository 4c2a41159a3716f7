import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.runs import training_config, training_input
from train.config import TrainConfig
from train.frozen import load_networks
from train.launch import start_accelerator
from train.loader import Batch, make_loader
from train.metrics import read_metrics
from train.model import init_transformer
from train.pixart import train
from train.shards import open_feature_data
from train.trial import Trainee, images_for_cpu, make_batch, read_for


def made(config: TrainConfig, count: int = 10**6, seconds: float = 0.0) -> Iterator[Batch]:
    for number in range(count):
        time.sleep(seconds)
        yield make_batch(config, 5, seed=number)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    training_input(tmp_path)
    return training_config(tmp_path)


def test_a_batch_is_cut_to_its_first_images(config):
    whole = make_batch(config, 5)
    cut = whole.first(3)
    assert cut.keys == whole.keys[:3]
    assert cut.latents_BCHW.shape == (3, 4, 8, 8)
    assert torch.equal(cut.audio_BTD, whole.audio_BTD[:3])
    assert len(cut.dropped_B) == len(cut.timesteps_B) == len(cut.noise_BCHW) == 3


def trainee_of(config: TrainConfig) -> Trainee:
    transformer, _ = init_transformer(config.model, config.seed)
    return Trainee(config, start_accelerator(config), transformer, torch.zeros(5, config.model.caption_channels))


def test_the_first_step_is_that_of_the_training_itself(config):
    clipping = config.optimizer.model_copy(update={"clip_norm": 0.1})
    config = config.model_copy(update={"optimizer": clipping})
    data = open_feature_data(config.data)
    scale = load_networks(config).vae.config["scaling_factor"]
    batches = make_loader(data, config, scaling_factor=scale, start_step=0, rank=0, world=1)
    trainee = trainee_of(config)
    before = {name: weight.clone() for name, weight in trainee.learner.ema.state_dict().items()}
    step = trainee.step([next(batches), next(batches)])
    train(config.model_copy(update={"max_steps": 1}))
    (line,) = read_metrics(config.run_dir)
    assert step.loss == pytest.approx(line["loss"], rel=1e-6)
    assert step.gradient_norm == pytest.approx(line["gradient_norm"], rel=1e-5)
    saved = load_file(config.run_dir / "checkpoints" / "step-00000001" / "ema.safetensors")
    moments = load_file(config.run_dir / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    for name, weight in trainee.transformer.named_parameters():
        assert torch.equal(trainee.learner.optimizer.state[weight]["exp_avg"], moments[f"{name}/exp_avg"])
    averaged = trainee.learner.ema.state_dict()
    assert averaged.keys() == saved.keys()
    assert all(torch.equal(weight, saved[name]) for name, weight in averaged.items())
    assert sum(not torch.equal(weight, before[name]) for name, weight in averaged.items()) > len(before) / 2
    assert not any(
        p.grad is None or p.grad.any() for p in trainee.transformer.parameters()
    )  # forgotten, in their place


def test_a_rate_leaves_out_what_was_made_ahead(config):
    reading = read_for(made(config, seconds=0.02), seconds=0.5, kept=2, warm_up=3)
    assert len(reading.batches) == 2
    assert 4 / 0.05 < reading.images_per_sec < 4 / 0.02


def test_a_loader_that_ends_early_has_a_rate(config):
    reading = read_for(made(config, count=3), seconds=5, kept=2, warm_up=0)
    assert len(reading.batches) == 2
    assert reading.images_per_sec > 0


def test_made_batches_are_of_the_configurations_shape_and_repeatable(config):
    one, other = make_batch(config, 7, seed=1), make_batch(config, 7, seed=1)
    assert one.audio_BTD.shape == (4, 7, 32)
    assert torch.equal(one.noise_BCHW, other.noise_BCHW)
    assert not np.allclose(one.noise_BCHW, make_batch(config, 7, seed=2).noise_BCHW)


def test_on_a_cpu_no_more_images_are_tried_than_take_seconds(config):
    assert images_for_cpu(config, 5) == 4
    deep = config.model_copy(update={"model": config.model.model_copy(update={"layers": 10**7})})
    assert images_for_cpu(deep, 5) == 0

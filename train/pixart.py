"""Train an audio-conditioned PixArt-alpha on what `sonify features` wrote.

    python -m train.pixart --config configs/train/pixart_xl_512.yaml [key=value ...]

The plain command uses every visible GPU (`torchrun` and `accelerate launch` work as well); the same command resumes.

    B  images of a micro-batch, C H W  channels, height and width of the latents, T D  times and width of the condition
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.pixart", extra="train"))

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from accelerate import Accelerator
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import nn

from sonify.features.vae import scaling_factor
from train.adapters import adapt, merge
from train.checkpoints import BASE, restore_training
from train.config import TrainConfig
from train.cost import print_plan
from train.device import device_bytes
from train.diffusion import NUM_TIMESTEPS, Losses, add_noise, diffusion_loss
from train.execution import choose_linears, set_execution
from train.frozen import load_networks, make_pipeline
from train.launch import first_of_each_machine
from train.loader import Batch, accumulation_steps, make_loader
from train.loop import Lesson, in_run, run_trainer, start_learner
from train.memory import log_estimate
from train.metrics import training_flops
from train.model import drop_condition, init_transformer, predict
from train.pictures import Pictures
from train.pipeline import AudioPixArtPipeline
from train.routing import draw_route, routed
from train.scenes import SceneEar, prepare_remix, settings_of
from train.shards import check_matches, open_feature_data

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, prog: str = "train.pixart") -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    return run_trainer("train.pixart", TrainConfig, train, print_plan, (words, prog))


def train(config: TrainConfig) -> None:
    """Train from the newest checkpoint, or from the beginning, to `max_steps`, and release the pipeline.

    Raises:
        InputError: the configuration, the data or a model is wrong, or does not fit the run that is there.
        WorkError: a loss is not finite, data or all checkpoints are damaged, or the disk is full.
        KeyboardInterrupt: SIGTERM or SIGINT; the state is saved.
    """
    in_run(config, _prepare)


def _prepare(config: TrainConfig, accelerator: Accelerator) -> Lesson:
    with first_of_each_machine(accelerator):  # who comes first fetches what is not here yet
        networks = load_networks(config)
        transformer, report = init_transformer(config.model, config.seed)
    data = open_feature_data(config.data)
    check_matches(data, config, networks.vae_identity, networks.ast_identity)
    accumulation_steps(config.batch, accelerator.num_processes)
    if accelerator.is_main_process:
        log_estimate(config, data.audio_shape[0], accelerator.num_processes, device_bytes(accelerator.device))

    linears = choose_linears(config, accelerator.device, is_main=accelerator.is_main_process)
    config = config.model_copy(update={"linears": linears})
    remix = ear = None
    frozen: dict[str, str] = {}
    if config.data.scenes == "remix":
        with accelerator.main_process_first():  # who comes first searches, and the others find what it kept
            remix = prepare_remix(config, data)
        ear = SceneEar(config, settings_of(data), accelerator.device)
        frozen["data.scenes"] = f"remix {remix.digest}"
    adapts = config.train == "adapters"
    if adapts:
        adapt(transformer, config)
        frozen[BASE] = str(report.identity)
    transformer.to(accelerator.device).train()
    learner = start_learner(transformer, config.optimizer, frozen, lengths=config.ema.lengths)
    with accelerator.main_process_first():  # who comes first sets damaged checkpoints aside
        first_step = restore_training(config, data, learner, check=accelerator.is_main_process)
    log.info("%s", f"goes on after step {first_step:,}" if first_step else report)
    set_execution(
        transformer,
        compiled=config.compile,
        recompute=config.recompute,
        budget=config.activation_memory_budget,
        linears=linears,
    )

    def pipeline_of(network: nn.Module) -> AudioPixArtPipeline:
        trained = cast(PixArtTransformer2DModel, network)
        return make_pipeline(merge(trained) if adapts else trained, config, networks, data)

    null_TD = make_pipeline(transformer, config, networks, data).encode_null(data.audio_shape[0]).to(accelerator.device)
    batches = make_loader(
        data,
        config,
        scaling_factor=scaling_factor(networks.vae),
        start_step=first_step,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        remix=remix,
    )
    return Lesson(
        config=config,
        learner=learner,
        model=accelerator.prepare_model(transformer),
        loss_of=lambda model, batch: loss_of(model, hear(batch, ear), null_TD, config),
        data=data,
        batches=batches,
        first_step=first_step,
        flops_of=lambda step: training_flops(config, data.audio_shape[0], step),
        num_timesteps=NUM_TIMESTEPS,
        pictures=Pictures(config, data, pipeline_of) if accelerator.is_main_process else None,
    )


def hear(batch: Batch, ear: SceneEar | None) -> Batch:
    """The batch with what its scenes sound like, where they were mixed anew."""
    if ear is None:
        return batch
    assert batch.waveforms_BS is not None
    return replace(batch, audio_BTD=ear(batch.waveforms_BS), waveforms_BS=None)


def loss_of(model: nn.Module, batch: Batch, null_TD: torch.Tensor, config: TrainConfig) -> Losses:
    """What the network makes of a micro-batch; `null_TD` is heard where the condition is dropped."""
    noisy_BCHW = add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.timesteps_B)
    audio_BTD = drop_condition(batch.audio_BTD, batch.dropped_B, null_TD)
    with routed(model, draw_route(config, batch)):
        output_BCHW = predict(model, noisy_BCHW, batch.timesteps_B, audio_BTD)
    return diffusion_loss(
        output_BCHW, batch.latents_BCHW, noisy_BCHW, batch.noise_BCHW, batch.timesteps_B, config.loss.min_snr
    )

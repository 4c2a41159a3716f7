"""Train AudioToken on what `sonify features` wrote: an embedder that makes one word of a sound for Stable Diffusion.

    python -m train.audiotoken --config configs/train/audiotoken.yaml [key=value ...]

Everything but the embedder is frozen. The features are those of an ear whose layers 4, 8 and 12 are joined
(`features: {layers: [4, 8, 12], frequency: all}`). The plain command uses every visible GPU; the same command resumes.

    B  images of a micro-batch, C H W  channels, height and width of the latents, T D  times and width of the features
    L  places of the prompt

Source: AudioToken (arXiv 2305.13050) and its code, guyyariv/AudioToken ab7d280.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.audiotoken", extra="train"))

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sonify.errors import InputError, WorkError
from sonify.features.vae import scaling_factor
from sonify.keys import hash64
from sonify.report.cost import Prices
from train.checkpoints import newest_step, restore_training
from train.config import AudioTokenConfig, TokenWeights
from train.diffusion import NUM_TIMESTEPS
from train.embedder import Embedder, TokenLosses, TokenPrompt, make_noise_scheduler, token_loss
from train.frozen import TokenNetworks, load_token_networks, make_token_pipeline
from train.launch import first_of_each_machine
from train.loader import Batch, accumulation_steps, make_loader
from train.loop import Lesson, in_run, run_trainer, start_learner
from train.pictures import Pictures
from train.shards import FeatureData, check_heard_by, open_feature_data
from train.token_pipeline import AudioTokenPipeline

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, prog: str = "train.audiotoken") -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    return run_trainer("train.audiotoken", AudioTokenConfig, train, print_plan, (words, prog))


def train(config: AudioTokenConfig) -> None:
    """Train from the newest checkpoint, or from the beginning, to `max_steps`, and release the pipeline.

    Raises:
        InputError: the configuration, the data or a model is wrong, or does not fit the run that is there.
        WorkError: a loss is not finite, data or all checkpoints are damaged, or the disk is full.
        KeyboardInterrupt: SIGTERM or SIGINT; the state is saved.
    """
    in_run(config, _prepare)


def print_plan(config: AudioTokenConfig, prices: Prices) -> None:
    """Print the resolved configuration, and the plan as comments behind it; what a step costs is not reckoned."""
    if prices != Prices():
        raise InputError("--prices: what a step of AudioToken costs is not reckoned; its metrics say what it takes")
    done = min(newest_step(config.run_dir), config.max_steps)
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))  # noqa: T201 - the command's result
    print(  # noqa: T201 - the same
        f"# steps: {config.max_steps:,}, {done:,} done, {config.max_steps - done:,} to do;"
        f" {config.max_steps * config.batch.total:,} images in all\n# operations and hours: not known before the run"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What a token goes through on its way to a loss, on the device of training; `null_1LD` is an empty prompt."""

    prompt: TokenPrompt
    null_1LD: Tensor
    unet: UNet2DConditionModel
    noise: DDPMScheduler


def _prepare(config: AudioTokenConfig, accelerator: Accelerator) -> Lesson:
    with first_of_each_machine(accelerator):  # who comes first fetches what is not here yet
        networks = load_token_networks(config)
    data = open_feature_data(config.data)
    _check_data(config, networks, data)
    accumulation_steps(config.batch, accelerator.num_processes)

    embedder = new_embedder(config, data.audio_shape[1], networks.sd.width).to(accelerator.device).train()
    learner = start_learner(embedder, config.optimizer, {"sd": networks.sd.identity}, config.ema.lengths)
    with accelerator.main_process_first():  # who comes first sets damaged checkpoints aside
        first_step = restore_training(config, data, learner, check=accelerator.is_main_process)
    log.info("%s", f"goes on after step {first_step:,}" if first_step else _describe(embedder, data))
    frozen = freeze(config, networks, accelerator.device)

    def pipeline_of(network: nn.Module) -> AudioTokenPipeline:
        return make_token_pipeline(cast(Embedder, network), config, networks, data)

    def release_of(network: nn.Module) -> AudioTokenPipeline:
        """With what is frozen as it was fetched: in training it has the precision of training."""
        return make_token_pipeline(cast(Embedder, network), config, load_token_networks(config), data)

    batches = make_loader(
        data,
        config,
        scaling_factor=scaling_factor(networks.vae),
        start_step=first_step,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        with_labels=config.loss.classification is not None,
    )

    def loss_of(model: nn.Module, batch: Batch) -> TokenLosses:
        # of the visit and not of what came before: a resumed run has the dropout of one that never stopped
        torch.manual_seed(hash64(config.seed, "dropout", batch.position))
        with accelerator.autocast():
            return token_losses(model, batch, frozen, config.loss)

    image_flops = step_flops(embedder, frozen, data)
    return Lesson(
        config=config,
        learner=learner,
        model=accelerator.prepare_model(embedder),
        loss_of=loss_of,
        data=data,
        batches=batches,
        first_step=first_step,
        flops_of=lambda _step: image_flops,
        num_timesteps=NUM_TIMESTEPS,
        pictures=Pictures(config, data, pipeline_of, release_of) if accelerator.is_main_process else None,
    )


def new_embedder(config: AudioTokenConfig, audio_width: int, token_width: int) -> Embedder:
    """An embedder with its first weights, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return Embedder(audio_width=audio_width, token_width=token_width, upstream_dropout=config.upstream_dropout)


def freeze(config: AudioTokenConfig, networks: TokenNetworks, device: torch.device) -> Frozen:
    """Bring what is frozen to a device, in the precision of training.

    Raises:
        InputError: the placeholder or the prompt cannot be used.
    """
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    sd = networks.sd
    unet: UNet2DConditionModel = cast(Any, sd.unet).to(device, dtype)
    text_encoder = cast(Any, sd.text_encoder).to(device, dtype)
    if config.recompute:
        unet.enable_gradient_checkpointing()
    try:
        prompt = TokenPrompt(text_encoder, sd.tokenizer, config.placeholder, config.prompt)
        prompt.input_ids(config.sampling_prompt)
    except ValueError as error:
        raise InputError(f"placeholder, prompt, sampling_prompt: {error}") from error
    with torch.no_grad():
        null_1LD = prompt.encode_text("")
    return Frozen(prompt=prompt, null_1LD=null_1LD, unet=unet, noise=make_noise_scheduler(sd.scheduler))


def token_losses(model: nn.Module, batch: Batch, frozen: Frozen, weights: TokenWeights) -> TokenLosses:
    """What the frozen model makes of a micro-batch with the embedder's tokens in its prompts."""
    token_BD = model(batch.audio_BTD)
    hidden_BLD = frozen.prompt(token_BD)
    hidden_BLD = torch.where(batch.dropped_B[:, None, None], frozen.null_1LD, hidden_BLD)
    noisy_BCHW = frozen.noise.add_noise(batch.latents_BCHW, batch.noise_BCHW, cast(Any, batch.timesteps_B))
    predicted_BCHW = frozen.unet(
        noisy_BCHW.to(frozen.unet.dtype), batch.timesteps_B, encoder_hidden_states=hidden_BLD, return_dict=False
    )[0]
    return token_loss(
        predicted_BCHW,
        batch.noise_BCHW,
        token_BD,
        None if batch.labels is None else frozen.prompt.embed_labels(batch.labels),
        l1_weight=weights.l1,
        l2sq_weight=weights.l2,
        label_weight=weights.classification or 0.0,
    )


@torch.no_grad()
def step_flops(embedder: Embedder, frozen: Frozen, data: FeatureData) -> int:
    """The operations of a step for one image, by those of a forward pass: of what is frozen the backward pass is as
    much again, as it has gradients of no weights, of the embedder twice as much."""
    device, dtype = frozen.unet.device, frozen.unet.dtype
    token_BD = torch.zeros(1, frozen.prompt.width, device=device, dtype=dtype)
    latents_BCHW = torch.zeros(1, *data.latent_shape, device=device, dtype=dtype)
    with FlopCounterMode(display=False) as of_embedder:
        embedder(torch.zeros(1, *data.audio_shape, device=device))
    with FlopCounterMode(display=False) as of_frozen:
        frozen.unet(latents_BCHW, 0, encoder_hidden_states=frozen.prompt(token_BD))
    return 3 * of_embedder.get_total_flops() + 2 * of_frozen.get_total_flops()


def _check_data(config: AudioTokenConfig, networks: TokenNetworks, data: FeatureData) -> None:
    encoder, unet, where = config.encoder, networks.sd.unet.config, data.shards[0].run_dir
    check_heard_by(data, (config.vae, networks.vae_identity), (encoder.kind, encoder.model, networks.ear_identity))
    if data.latent_shape[0] != unet["in_channels"]:
        raise InputError(
            f"{where}: its latents have {data.latent_shape[0]} channels, and the UNet of {config.sd} takes"
            f" {unet['in_channels']}: make features with the VAE of that Stable Diffusion"
        )
    if data.latent_shape[1] != unet["sample_size"]:
        log.warning(
            "%s: its latents are %d on a side, and %s was trained at %d: a frozen UNet draws worse at another size",
            where, data.latent_shape[1], config.sd, unet["sample_size"],
        )  # fmt: skip
    if config.loss.classification is not None:
        first = next(data.samples())
        try:
            for scene in first.scenes:
                first.label_of(scene)
        except WorkError as lacking:  # of all samples, so that it is the configuration that does not fit
            raise InputError(f"loss.classification: {lacking}; set it to null") from lacking
    if networks.sd.scheduler.config["num_train_timesteps"] != NUM_TIMESTEPS:
        raise InputError(f"{config.sd}: expected a schedule of {NUM_TIMESTEPS} timesteps, as Stable Diffusion's is")


def _describe(embedder: Embedder, data: FeatureData) -> str:
    found = data.features
    count = sum(parameter.numel() for parameter in embedder.parameters())
    by = f"{found.ear_kind}, layers {', '.join(map(str, found.layers))}, frequency {found.frequency}"
    as_published = "as published" if found.audiotoken == "audiotoken" else "not the published system"
    return f"{found.audiotoken}: an embedder of {count:,} parameters, new; it hears by {by} ({as_published})"

"""Train an audio-conditioned PixArt-alpha on what `sonify features` wrote.

    python -m train.pixart --config configs/train/pixart_xl_512.yaml [key=value ...]

The plain command uses every visible GPU (`torchrun` and `accelerate launch` work as well); the same command resumes.

    B  images of a micro-batch, C H W  channels, height and width of the latents, T D  times and width of the condition
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.pixart", extra="train"))

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from sonify.config import explain_option, load_settings
from sonify.config.shipped import find_config
from sonify.errors import InputError, WorkError
from sonify.features.vae import scaling_factor
from sonify.io.write import naming_full_disk
from sonify.report.cost import Prices, read_prices
from sonify.running import open_run
from sonify.terminal import Interrupt, Parser, run_command
from train.checkpoints import check_run_dir, restore_training, save_training
from train.config import Optimizer, TrainConfig, write_config
from train.cost import print_plan
from train.diffusion import NUM_TIMESTEPS, Losses, add_noise, diffusion_loss
from train.ema import Ema
from train.frozen import load_networks, make_pipeline
from train.launch import check_devices, is_launched, launch_processes, start_accelerator
from train.loader import Batch, accumulation_steps, make_loader, naming_lost_loaders
from train.metrics import Recorder, StepTally
from train.model import drop_condition, init_transformer, predict, set_execution
from train.pictures import Pictures
from train.shards import check_matches, open_feature_data

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, prog: str = "train.pixart") -> int:
    """Run the command and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(
        prog=prog,
        description="Train on sonified shards; the same command resumes.",
        explain=explain_option(TrainConfig),
    )
    parser.add_argument("--config", required=True, metavar="F", help="YAML file, or the name of one that comes along")
    parser.add_argument("--dry-run", action="store_true", help="print the config, the plan and its cost, and stop")
    parser.add_argument(
        "--prices", metavar="P", help="gpu_hour=2.1,gpu_watts=700,device_tflops=312,mfu=0.45, or a file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    return run_command(prog, lambda: _launch(arguments, prog, argv))


def _launch(arguments: argparse.Namespace, prog: str, argv: Sequence[str]) -> int:
    file = find_config(arguments.config, "train")
    config = load_settings(file, arguments.overrides, TrainConfig, check_paths=not arguments.dry_run)
    if arguments.prices is not None and not arguments.dry_run:
        raise InputError("--prices: goes with --dry-run, which says what the training costs")
    if arguments.dry_run:
        print_plan(config, Prices() if arguments.prices is None else read_prices(arguments.prices))
        return 0
    processes = check_devices(config.devices)
    if processes > 1 and not is_launched():
        return launch_processes(processes, "train.pixart", argv, prog)
    train(config)
    return 0


def train(config: TrainConfig) -> None:
    """Train from the newest checkpoint, or from the beginning, to `max_steps`, and release the pipeline.

    Raises:
        InputError: the configuration, the data or a model is wrong, or does not fit the run that is there.
        WorkError: a loss is not finite, data or all checkpoints are damaged, or the disk is full.
        KeyboardInterrupt: SIGTERM or SIGINT; the state is saved.
    """
    check_run_dir(config)
    accelerator = start_accelerator(config)
    with (
        open_run(config.run_dir) if accelerator.is_main_process else nullcontext(),
        naming_full_disk(config.run_dir),
        naming_lost_loaders(),
    ):
        _train(config, accelerator)


def _train(config: TrainConfig, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        logging.getLogger("train").setLevel(logging.WARNING)
    with accelerator.main_process_first():  # who comes first fetches what is not here yet
        networks = load_networks(config)
        transformer, report = init_transformer(config.model, config.seed)
    data = open_feature_data(config.data)
    check_matches(data, config, networks.vae_identity, networks.ast_identity)
    accumulation = accumulation_steps(config.batch, accelerator.num_processes)

    transformer.to(accelerator.device).train()
    ema = Ema(transformer, config.optimizer.ema_decay)
    optimizer = make_optimizer(transformer, config.optimizer)
    with accelerator.main_process_first():  # who comes first sets damaged checkpoints aside
        first_step = restore_training(config, data, transformer, ema, optimizer, check=accelerator.is_main_process)
    log.info("%s", f"goes on after step {first_step:,}" if first_step else report)
    set_execution(transformer, precision=config.precision, compiled=config.compile, recompute=config.recompute)
    model = accelerator.prepare_model(transformer)
    null_TD = make_pipeline(transformer, config, networks, data).encode_null(data.audio_shape[0])
    null_TD = null_TD.to(accelerator.device)
    batches = make_loader(
        data,
        config,
        scaling_factor=scaling_factor(networks.vae),
        start_step=first_step,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    pictures = Pictures(config, networks, data) if accelerator.is_main_process else None
    if accelerator.is_main_process:
        write_config(config, config.run_dir)

    with (
        Interrupt() as interrupt,
        Recorder(config, accelerator, data.audio_shape[0], first_step) as recorder,
    ):
        for step in range(first_step + 1, config.max_steps + 1):
            tally = StepTally(NUM_TIMESTEPS, accelerator.device)
            for micro_step in range(1, accumulation + 1):
                with recorder.waiting_for_data():
                    batch = next(batches).to(accelerator.device)
                with nullcontext() if micro_step == accumulation else accelerator.no_sync(model):
                    losses = add_gradients(accelerator, model, batch, null_TD, accumulation)
                tally.add(losses, batch.timesteps_B, batch.keys)
            gradient_norm = clip_gradients(accelerator, model, config.optimizer)
            sums = tally.reduce(accelerator, stop=interrupt.asked)
            if sums.num_not_finite or not gradient_norm.isfinite():
                what = "loss" if sums.num_not_finite else "gradient"
                keys = sorted(gather_object(tally.keys(not_finite=bool(sums.num_not_finite))))
                raise WorkError(
                    f"step {step}: the {what} is not finite; images: {', '.join(keys[:8])} ({len(keys)} in all);"
                    " nothing of this step was applied, and the checkpoints are whole"
                )
            learning_rate = learning_rate_at(step, config.optimizer, config.batch.total)
            finish_step(transformer, optimizer, ema, learning_rate)

            recorder.record(step, sums, gradient_norm, learning_rate)
            last = step == config.max_steps
            with recorder.pausing():
                if accelerator.is_main_process and (sums.stop or last or step % config.checkpoints.every == 0):
                    save_training(config, data, step, transformer, ema, optimizer)
                if sums.stop and not last:
                    accelerator.wait_for_everyone()
                    raise KeyboardInterrupt(f"step {step:,} is saved; the same command goes on from there")
                if pictures and step % config.samples.every == 0:
                    pictures.draw(step, transformer, ema)
    if pictures:
        pictures.release(config.max_steps, transformer, ema)
    accelerator.wait_for_everyone()


def add_gradients(
    accelerator: Accelerator, model: nn.Module, batch: Batch, null_TD: torch.Tensor, accumulation: int
) -> Losses:
    """Add a micro-batch's share of a step of so many to the gradients."""
    noisy_BCHW = add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.timesteps_B)
    audio_BTD = drop_condition(batch.audio_BTD, batch.dropped_B, null_TD)
    output_BCHW = predict(model, noisy_BCHW, batch.timesteps_B, audio_BTD)
    losses = diffusion_loss(output_BCHW, batch.latents_BCHW, noisy_BCHW, batch.noise_BCHW, batch.timesteps_B)
    accelerator.backward(losses.total_B.mean() / accumulation)
    return losses


def clip_gradients(accelerator: Accelerator, model: nn.Module, config: Optimizer) -> torch.Tensor:
    """Clip the gradients of a step, and return the norm that they had."""
    norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
    assert norm is not None  # the library's type allows for other engines
    return norm


def finish_step(transformer: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, learning_rate: float) -> None:
    """Learn from the gradients of a step and forget them; the average follows."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    ema.update(transformer)


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """AdamW in one kernel; every parameter decays, as in PixArt-alpha. The rate is set at each step."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(step: int, config: Optimizer, total_batch: int) -> float:
    """Return the rate of a step, counted from 1: linear up to the square-root rule's rate, then constant."""
    peak = config.learning_rate * math.sqrt(total_batch / config.reference_batch)
    return peak * min(1.0, step / config.warmup_steps) if config.warmup_steps else peak

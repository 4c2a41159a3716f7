"""The training loop, whatever learns: steps over batches, metrics, checkpoints, pictures, and the release at the end.

B  images of a micro-batch
"""

import argparse
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from sonify.config import explain_option, load_settings
from sonify.config.shipped import find_config
from sonify.errors import InputError, WorkError
from sonify.io.write import naming_full_disk
from sonify.report.cost import Prices, read_prices
from sonify.running import open_run
from sonify.terminal import Interrupt, Parser, run_command
from train.checkpoints import Learner, check_run_dir, save_training
from train.config import Optimizer, Training, check_trainer, peak_rate, write_config
from train.ema import Ema
from train.launch import check_devices, is_launched, launch_processes, start_accelerator
from train.loader import Batch, accumulation_steps, naming_lost_loaders
from train.memory import naming_full_memory
from train.metrics import Recorder, StepLosses, StepTally
from train.pictures import Pictures
from train.shards import FeatureData

log = logging.getLogger(__name__)

Config = TypeVar("Config", bound=Training)
# The prepared network and a batch on its device, to the batch's losses.
LossOf = Callable[[nn.Module, Batch], StepLosses]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """All that the loop needs of what is trained.

    `model` is the learner's network, prepared for several processes; `image_flops` are the operations of a step for one
    image, `num_timesteps` those of the noise; `batches` begin after `first_step`.
    """

    learner: Learner
    model: nn.Module
    loss_of: LossOf
    data: FeatureData
    batches: Iterator[Batch]
    first_step: int
    image_flops: int
    num_timesteps: int
    pictures: Pictures | None


def run_trainer(
    module: str,
    kind: type[Config],
    train: Callable[[Config], None],
    print_plan: Callable[[Config, Prices], None],
    command: tuple[Sequence[str], str],
) -> int:
    """Run a trainer's command, its words and its name, and return its exit code; `module` is what runs in each of
    several processes."""
    argv, prog = command
    parser = Parser(
        prog=prog,
        description="Train on sonified shards; the same command resumes.",
        explain=explain_option(kind),
    )
    parser.add_argument("--config", required=True, metavar="F", help="YAML file, or the name of one that comes along")
    parser.add_argument("--dry-run", action="store_true", help="print the config, the plan and its cost, and stop")
    parser.add_argument(
        "--prices", metavar="P", help="gpu_hour=2.1,gpu_watts=700,device_tflops=312,mfu=0.45, or a file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(list(argv))

    def work() -> int:
        config = _read_config(arguments, kind, module)
        if arguments.dry_run:
            print_plan(config, Prices() if arguments.prices is None else read_prices(arguments.prices))
            return 0
        processes = check_devices(config.devices)
        if processes > 1 and not is_launched():
            return launch_processes(processes, module, argv, prog)
        train(config)
        return 0

    return run_command(prog, work)


def _read_config(arguments: argparse.Namespace, kind: type[Config], module: str) -> Config:
    if arguments.prices is not None and not arguments.dry_run:
        raise InputError("--prices: goes with --dry-run, which says what the training costs")
    file = find_config(arguments.config, "train")
    check_trainer(file, module)
    return load_settings(file, arguments.overrides, kind, check_paths=not arguments.dry_run)


def in_run(config: Config, prepare: Callable[[Config, Accelerator], Lesson]) -> None:
    """Train from the newest checkpoint, or from the beginning, to `max_steps`, and release the pipeline.

    Raises:
        InputError: the configuration, the data or a model is wrong, or does not fit the run that is there, or a GPU.
        WorkError: a loss is not finite, data or all checkpoints are damaged, or the disk is full.
        KeyboardInterrupt: SIGTERM or SIGINT; the state is saved.
    """
    check_run_dir(config)
    accelerator = start_accelerator(config)
    with (
        open_run(config.run_dir) if accelerator.is_main_process else nullcontext(),
        naming_full_disk(config.run_dir),
        naming_full_memory(config),
        naming_lost_loaders(),
    ):
        if not accelerator.is_main_process:
            logging.getLogger("train").setLevel(logging.WARNING)
        teach(config, accelerator, prepare(config, accelerator))


def teach(config: Training, accelerator: Accelerator, lesson: Lesson) -> None:
    """Make the steps that are still to do, and the release."""
    learner, pictures, first_step = lesson.learner, lesson.pictures, lesson.first_step
    accumulation = accumulation_steps(config.batch, accelerator.num_processes)
    if accelerator.is_main_process:
        write_config(config, config.run_dir)

    with Interrupt() as interrupt, Recorder(config, accelerator, lesson.image_flops, first_step) as recorder:
        for step in range(first_step + 1, config.max_steps + 1):
            tally = StepTally(lesson.num_timesteps, accelerator.device)
            for micro_step in range(1, accumulation + 1):
                with recorder.waiting_for_data():
                    batch = next(lesson.batches).to(accelerator.device)
                with nullcontext() if micro_step == accumulation else accelerator.no_sync(lesson.model):
                    losses = lesson.loss_of(lesson.model, batch)
                    accelerator.backward(losses.total_B.mean() / accumulation)
                tally.add(losses, batch.timesteps_B, batch.keys)
            gradient_norm = clip_gradients(accelerator, lesson.model, config.optimizer)
            sums = tally.reduce(accelerator, stop=interrupt.asked)
            if sums.num_not_finite or not gradient_norm.isfinite():
                what = "loss" if sums.num_not_finite else "gradient"
                keys = sorted(gather_object(tally.keys(not_finite=bool(sums.num_not_finite))))
                raise WorkError(
                    f"step {step}: the {what} is not finite; images: {', '.join(keys[:8])} ({len(keys)} in all);"
                    " nothing of this step was applied, and the checkpoints are whole"
                )
            learning_rate = learning_rate_at(step, config.optimizer, config.batch.total)
            finish_step(learner, learning_rate)

            recorder.record(step, sums, gradient_norm, learning_rate)
            last = step == config.max_steps
            with recorder.pausing():
                if accelerator.is_main_process and (sums.stop or last or step % config.checkpoints.every == 0):
                    save_training(config, lesson.data, step, learner)
                if sums.stop and not last:
                    accelerator.wait_for_everyone()
                    raise KeyboardInterrupt(f"step {step:,} is saved; the same command goes on from there")
                if pictures and step % config.samples.every == 0:
                    pictures.draw(step, learner)
    if pictures:
        pictures.release(config.max_steps, learner)
    accelerator.wait_for_everyone()


def start_learner(network: nn.Module, config: Optimizer, frozen: Mapping[str, str] | None = None) -> Learner:
    """A network on its device with its average, and AdamW in one kernel; every parameter decays, as in PixArt-alpha.
    The rate is set at each step.

    Gradients are there from here on, and are only ever set to zero: those that DDP finds it puts into its buckets,
    where each that comes later, or again, would lie in memory of its own until the end of a step.
    """
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    return Learner(network=network, ema=Ema(network, config.ema_decay), optimizer=optimizer, frozen=frozen or {})


def clip_gradients(accelerator: Accelerator, model: nn.Module, config: Optimizer) -> torch.Tensor:
    """Clip the gradients of a step, if they are to be, and return the norm that they had."""
    norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
    assert norm is not None  # the library's type allows for other engines
    return norm


def finish_step(learner: Learner, learning_rate: float) -> None:
    """Learn from the gradients of a step and forget them; the average follows."""
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=False)  # what is in DDP's buckets stays there
    learner.ema.update(learner.network)


def learning_rate_at(step: int, config: Optimizer, total_batch: int) -> float:
    """Return the rate of a step, counted from 1: linear up to the rule's rate, then constant."""
    peak = peak_rate(config, total_batch)
    return peak * min(1.0, step / config.warmup_steps) if config.warmup_steps else peak

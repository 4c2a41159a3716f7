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
from train.averages import Average, Exponential, Power
from train.checkpoints import Learner, Saver, check_run_dir
from train.config import Optimizer, Training, check_trainer, peak_rate, write_config
from train.launch import among_processes, check_devices, check_same_start, is_launched, launch_processes
from train.loader import Batch, accumulation_steps, naming_lost_loaders
from train.memory import naming_full_memory
from train.metrics import Recorder, StepLosses, StepSums, StepTally
from train.page import write_page
from train.pictures import Pictures
from train.shards import FeatureData
from train.snapshots import forget_snapshots, save_snapshot

log = logging.getLogger(__name__)

Config = TypeVar("Config", bound=Training)
# The prepared network and a batch on its device, to the batch's losses.
LossOf = Callable[[nn.Module, Batch], StepLosses]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """All that the loop needs of what is trained.

    `config` is what was asked for, with what it left open decided; `model` is the learner's network, prepared for
    several processes; `flops_of` are the operations of a step, by its number, for one image, `num_timesteps` those of
    the noise; `batches` begin after `first_step`.
    """

    config: Training
    learner: Learner
    model: nn.Module
    loss_of: LossOf
    data: FeatureData
    batches: Iterator[Batch]
    first_step: int
    flops_of: Callable[[int], int]
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
    with (
        among_processes(config) as accelerator,
        open_run(config.run_dir) if accelerator.is_main_process else nullcontext(),
        naming_full_disk(config.run_dir),
        naming_full_memory(config),
        naming_lost_loaders(),
    ):
        if not accelerator.is_main_process:
            logging.getLogger("train").setLevel(logging.WARNING)
        teach(accelerator, prepare(config, accelerator))


def teach(accelerator: Accelerator, lesson: Lesson) -> None:
    """Make the steps that are still to do, and the release."""
    config, learner, pictures, first_step = lesson.config, lesson.learner, lesson.pictures, lesson.first_step
    check_same_start(gather_object([(first_step, lesson.data.digest)]))
    if accelerator.is_main_process:
        write_config(config, config.run_dir)
        forget_snapshots(config.run_dir, first_step)

    with (
        Interrupt() as interrupt,
        Recorder(config, accelerator, lesson.flops_of, first_step) as recorder,
        Saver(config, lesson.data, learner, writes=accelerator.is_main_process) as saver,
    ):
        for step in range(first_step + 1, config.max_steps + 1):
            sums = learn_step(accelerator, lesson, recorder, step, interrupt)
            last = step == config.max_steps
            with recorder.pausing():
                saver.raise_failure()
                # before the checkpoint: one that is there has all snapshots before it
                if accelerator.is_main_process and learner.powers and (last or step % config.ema.snapshot_every == 0):
                    save_snapshot(config.run_dir, step, learner)
                if sums.stop or last or step % config.checkpoints.every == 0:
                    saver.save(step)
                    if accelerator.is_main_process:
                        write_page(config.run_dir, config.max_steps)
                if sums.stop and not last:
                    saver.wait()
                    accelerator.wait_for_everyone()
                    raise KeyboardInterrupt(f"step {step:,} is saved; the same command goes on from there")
                if pictures and step % config.samples.every == 0:
                    pictures.draw(step, learner)
                    write_page(config.run_dir, config.max_steps)
    if pictures:
        pictures.release(config.max_steps, learner)
        log.info("curves and pictures: %s", write_page(config.run_dir, config.max_steps))
    accelerator.wait_for_everyone()


def learn_step(
    accelerator: Accelerator, lesson: Lesson, recorder: Recorder, step: int, interrupt: Interrupt
) -> StepSums:
    """Learn from the micro-batches of a step, record it, and return its sums over all processes.

    Raises:
        WorkError: a loss or a gradient is not finite; nothing of the step was applied.
    """
    config = lesson.config
    accumulation = accumulation_steps(config.batch, accelerator.num_processes)
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
    finish_step(lesson.learner, learning_rate, step)
    recorder.record(step, sums, gradient_norm, learning_rate)
    return sums


def start_learner(
    network: nn.Module, config: Optimizer, frozen: Mapping[str, str] | None = None, lengths: Sequence[float] = ()
) -> Learner:
    """A network on its device with its averages, and AdamW in one kernel; every parameter that learns decays, as in
    PixArt-alpha. The rate is set at each step.

    Gradients are there from here on, and are only ever set to zero: those that DDP finds it puts into its buckets,
    where each that comes later, or again, would lie in memory of its own until the end of a step.
    """
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer = torch.optim.AdamW(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    return Learner(
        network=network,
        ema=Average(network, Exponential(decay=config.ema_decay, warmup=config.ema_warmup)),
        optimizer=optimizer,
        frozen=frozen or {},
        powers={length: Average(network, Power(length=length)) for length in lengths},
    )


def clip_gradients(accelerator: Accelerator, model: nn.Module, config: Optimizer) -> torch.Tensor:
    """Clip the gradients of a step, if they are to be, and return the norm that they had."""
    norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
    assert norm is not None  # the library's type allows for other engines
    return norm


def finish_step(learner: Learner, learning_rate: float, step: int) -> None:
    """Learn from the gradients of a step, counted from 1, and forget them; the averages follow."""
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=False)  # what is in DDP's buckets stays there
    for average in (learner.ema, *learner.powers.values()):
        average.update(learner.network, step)


def learning_rate_at(step: int, config: Optimizer, total_batch: int) -> float:
    """Return the rate of a step, counted from 1: linear up to the rule's rate, then constant."""
    peak = peak_rate(config, total_batch)
    return peak * min(1.0, step / config.warmup_steps) if config.warmup_steps else peak

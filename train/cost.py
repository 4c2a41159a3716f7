"""What a training run takes: its steps, images and floating-point operations, and what those come to in time and money.

Operations are counted off the configuration: no network is built, and of the data at most one sample is read. Hours
want a speed: the run's own, once it has one, or that of a device which its user names. Nothing else is assumed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
import yaml

from sonify.errors import InputError, WorkError
from sonify.io.machine import usable_cpus
from sonify.report.cost import NOT_KNOWN, Cost, Prices, cost_of, tell_amount, tell_lacking
from train.checkpoints import newest_step
from train.config import TrainConfig
from train.device import device_bytes
from train.memory import GB, count_snapshots, snapshots_bytes, tell_estimate
from train.metrics import forward_flops, read_metrics, training_flops
from train.shards import peek_features

VECTORS_OF_FIVE_SECONDS = 50  # AST's, a column of patches each 100 ms, as long as no data says otherwise
LINES_OF_SPEED = 100  # of metrics, the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What is to be done. `devices` are GPUs; 0 is the CPU, and None where the configuration leaves that open.

    `image_flops` are those of one image's part of a step; where tokens are routed, the mean of all steps.
    """

    steps: int
    steps_done: int
    images_in_step: int
    condition_vectors: int
    vectors_from: str
    forward_flops: int
    image_flops: int
    devices: int | None

    @property
    def steps_left(self) -> int:
        """Steps still to do."""
        return max(self.steps - self.steps_done, 0)


def plan_training(config: TrainConfig) -> TrainingPlan:
    """Read the plan off a configuration and off what its run has so far; data that are not there are no error."""
    try:
        vectors, source = peek_features(config.data).audio_shape[0], f"as in {config.data.runs[0]}"
    except (InputError, WorkError) as error:
        vectors, source = VECTORS_OF_FIVE_SECONDS, f"assumed, as of five seconds of AST features: {error}"
    forward = forward_flops(config.model, vectors)
    return TrainingPlan(
        steps=config.max_steps,
        steps_done=newest_step(config.run_dir),
        images_in_step=config.batch.total,
        condition_vectors=vectors,
        vectors_from=source,
        forward_flops=forward,
        image_flops=_mean_flops(config, vectors),
        devices=config.devices or torch.cuda.device_count() or None,
    )


def _mean_flops(config: TrainConfig, vectors: int) -> int:
    """Operations of an image's part of a step; recomputing is another forward pass."""
    finish = min(config.routing.finish_steps, config.max_steps) if config.routing else 0
    parts = ((config.max_steps - finish, 1, config.routing), (finish, config.max_steps, None))
    totals = [
        steps
        * (training_flops(config, vectors, step) + config.recompute * forward_flops(config.model, vectors, routing))
        for steps, step, routing in parts
        if steps
    ]
    return round(sum(totals) / config.max_steps)


def measured_speed(config: TrainConfig) -> float | None:
    """Images a second over all devices, as the run's newest steps had it; the line of a start, which compiles, is none.

    Saving and drawing samples are no part of it.
    """
    lines = read_metrics(config.run_dir)[1:][-LINES_OF_SPEED:]
    speeds = [speed for line in lines if isinstance(speed := line.get("images_per_sec"), float | int)]
    usable = [speed for speed in speeds if math.isfinite(speed) and speed > 0]
    return median(usable) if usable else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """What some steps come to; `days` are None where the number of devices is not known."""

    days: float | None
    cost: Cost


def cost_measured(plan: TrainingPlan, steps: int, speed: float, prices: Prices) -> TrainingCost:
    """At a speed in images a second of all devices together; on a CPU its cores are what is paid."""
    hours = steps * plan.images_in_step / speed / 3600
    spent = cost_of(hours * plan.devices, 0, prices) if plan.devices else cost_of(0, hours * usable_cpus(), prices)
    return TrainingCost(days=hours / 24, cost=spent)


def cost_reckoned(plan: TrainingPlan, steps: int, device_flops: float, prices: Prices) -> TrainingCost:
    """On GPUs that each do so many operations a second."""
    hours = steps * plan.images_in_step * plan.image_flops / device_flops / 3600
    return TrainingCost(days=hours / plan.devices / 24 if plan.devices else None, cost=cost_of(hours, 0, prices))


def print_plan(config: TrainConfig, prices: Prices) -> None:
    """Print the resolved configuration, and the plan as comments behind it."""
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))  # noqa: T201 - the command's result
    for line in tell_plan(config, prices):
        print(f"# {line}")  # noqa: T201 - the command's result


def tell_plan(config: TrainConfig, prices: Prices) -> Iterator[str]:
    """What is to do, what it takes, and what is not known of it."""
    plan = plan_training(config)
    flops = plan.image_flops * plan.images_in_step
    images = plan.steps * plan.images_in_step
    yield f"steps: {plan.steps:,}, {plan.steps_done:,} done, {plan.steps_left:,} to do; {images:,} images in all"
    yield f"condition: {plan.condition_vectors} vectors, {plan.vectors_from}"
    yield (
        f"operations: {tell_flops(plan.forward_flops)} forward for an image,"
        f" {plan.image_flops / plan.forward_flops:.3g} times that in a step;"
        f" {tell_flops(flops * plan.steps)} in all, {tell_flops(flops * plan.steps_left)} to do"
    )
    if snapshots := snapshots_bytes(config):
        yield f"averages: {count_snapshots(config)} snapshots, {snapshots / GB:,.1f} GB on the disk when all are there"
    gpus = [torch.device("cuda", n) for n in range(torch.cuda.device_count())]
    has = min((size for gpu in gpus if (size := device_bytes(gpu)) is not None), default=None)
    yield f"memory: {tell_estimate(config, plan.condition_vectors, has)}"
    if config.data.scenes == "remix":
        yield "scenes mixed anew: what AST does for them on the device is in no figure but a measured speed"
    speed = measured_speed(config)
    if speed is not None:
        on = _count_gpus(plan.devices) if plan.devices else f"{usable_cpus()} CPUs"
        yield f"at this run's own speed, {speed:,.1f} images/s on {on} (saving and samples not in it):"
        for name, steps in (("in all", plan.steps), ("to do", plan.steps_left)):
            yield f"  {name}: {_tell_cost(cost_measured(plan, steps, speed, prices), prices)}"
    if prices.device_tflops is not None and prices.mfu is not None:
        reached = prices.device_tflops * 1e12 * prices.mfu
        on = _count_gpus(plan.devices) if plan.devices else f"GPUs whose number is {NOT_KNOWN} (devices=N says it)"
        yield f"at {prices.mfu:.0%} of {prices.device_tflops:,g} TFLOP/s a device, on {on} (reckoned, not measured):"
        for name, steps in (("in all", plan.steps), ("to do", plan.steps_left)):
            yield f"  {name}: {_tell_cost(cost_reckoned(plan, steps, reached, prices), prices)}"
    elif speed is None:
        yield f"hours: {NOT_KNOWN} before the run has metrics of two steps; or say --prices device_tflops=...,mfu=..."
    yield from tell_lacking(_what_is_paid(plan, speed, prices), prices)
    yield "the CPUs of the GPUs' machines, disks and networks are in no figure"


def _what_is_paid(plan: TrainingPlan, speed: float | None, prices: Prices) -> Cost:
    """An hour of what the figures are about."""
    on_cpu = speed is not None and not plan.devices
    return cost_of(0 if on_cpu else 1, 1 if on_cpu else 0, prices)


def _tell_cost(found: TrainingCost, prices: Prices) -> str:
    cost = found.cost
    said = [
        _tell_days(found.days),
        f"{tell_amount(cost.gpu_hours)} GPU h" if cost.gpu_hours else f"{tell_amount(cost.cpu_hours)} CPU h",
    ]
    said += [f"{tell_amount(cost.kwh)} kWh"] * prices.name_energy
    said += [f"{tell_amount(cost.money)} {prices.currency}"] * prices.name_money
    return ", ".join(said)


def _tell_days(days: float | None) -> str:
    if days is None:
        return f"days {NOT_KNOWN}"
    return f"{tell_amount(days)} days" if days >= 1 else f"{tell_amount(24 * days)} hours"


def tell_flops(number: float) -> str:
    """Operations with the prefix that fits: 1.215 TFLOP, 1,166 EFLOP."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:,.4g} {prefix}FLOP"
    return f"{number / 1e6:,.4g} MFLOP"


def _count_gpus(number: int) -> str:
    return f"{number} GPU{'s' * (number != 1)}"

"""How much of a device's memory a training takes: arithmetic over the configuration, each term with where it is from.

Activations are counted in units of one bfloat16 tensor (B, N, D): the images of a micro-batch, their tokens, the
model's width. What a block keeps for its backward pass was measured, by what autograd saved and by the peak of the
allocator, on CPUs at widths of 288 and 576 and 64 and 256 tokens; what it is on a GPU is derived from that, as is every
total. `python -m benchmarks.on_gpu` compares one with what is allocated.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch

from sonify.errors import InputError, WorkError
from train.config import BatchSizes, TrainConfig, Training, Transformer
from train.device import device_bytes
from train.metrics import TIMESTEP_CHANNELS
from train.shards import peek_features

log = logging.getLogger(__name__)

GB = 10**9
# Of one block: by precision, compiled or not. Statistics of norms and attention (0.3 of a percent) are left out.
BLOCK_UNITS = {("bf16", True): 23, ("bf16", False): 29, ("fp32", True): 42, ("fp32", False): 46}
# Of one compiled block of XL/2 at 512 pixels, by precision and `activation_memory_budget`: what torch's partitioner
# keeps, by counting it (`tests/train/test_memory.py`), at 20, 40 and 80 images the most of them. It goes down in steps;
# between two budgets that were counted it is at most what it is at the larger.
BUDGET_UNITS = {
    "bf16": {1.0: 23, 0.95: 15, 0.65: 13, 0.45: 12, 0.4: 11, 0.35: 10, 0.3: 8, 0.2: 6, 0.1: 4, 0.0: 2},
    "fp32": {1.0: 42, 0.95: 28, 0.65: 24, 0.45: 20, 0.4: 18, 0.35: 16, 0.3: 14, 0.2: 10, 0.1: 6, 0.0: 2},
}
# Of what a block computes again, so much lies where `BESIDE_UNITS` lay a moment before, and is nothing more: fitted to
# the allocator's peak on a CPU at budgets of 0.8, 0.6 and 0.2 in bfloat16; in float32 twice that, not measured.
AGAIN_UNITS = {"bf16": 8, "fp32": 16}
PROPOSED_BUDGETS = (0.8, 0.6)  # nothing that they compute again is a product of matrices
NEARLY_FULL = 0.95  # of a device's memory: the estimate is not better than that
# Keys and values of the condition, in units of N: two tensors of (B, T, D).
CONDITION_UNITS = {"bf16": 2, "fp32": 4}
# Before and behind the blocks, and the gradients between two blocks on their way back: measured as the peak's rest.
BESIDE_UNITS = {"bf16": 11, "fp32": 13}
RECOMPUTED_UNITS = 2  # a block's input in float32, which is all that is kept of it
# The driver's context, cuBLAS and NCCL's buffers, what the allocator cannot use again: assumed, nobody measured it.
CONTEXT_BYTES = 3 * GB
BYTES_OF_STATE = 20  # of a parameter: weight, gradient, two moments of Adam, average, each float32
BYTES_OF_AVERAGE = 4  # of a parameter, of each power-function average on top
UNIT_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The parts of one device's memory, in bytes; `python -m benchmarks.on_gpu` measures the sum of all but `context`.

    `frozen` are weights that do not learn, `half_weights` the others as autocast turns them for a micro-batch.
    """

    state: int
    frozen: int = 0
    half_weights: int
    activations: int
    context: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def allocated(self) -> int:
        """What torch's allocator has of it at the most."""
        return self.total - self.context

    def __str__(self) -> str:
        parts = [(field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)]
        return f"{self.total / GB:.1f} GB ({', '.join(f'{name} {size / GB:.1f}' for name, size in parts if size)})"


def estimate_memory(config: TrainConfig, condition_tokens: int) -> DeviceMemory:
    """What each GPU will hold when it holds most, with a condition of so many vectors an image.

    Gradients are there while activations are, once: several processes have them in the buckets that they exchange.
    Where adapters learn activations count as where all does, which is more than there are. Pictures that are made on
    the way come on top where they are larger than a step, which is where a model is small.
    """
    parameters = count_learning(config)
    block, unit = _block_units(config, condition_tokens), _unit_bytes(config)
    layers = config.model.layers
    again = _units_again(config)
    kept = layers * RECOMPUTED_UNITS + block
    if not config.recompute:
        kept = layers * block + max(0, again - AGAIN_UNITS[config.precision])
    half_weights = UNIT_BYTES * parameters if config.precision == "bf16" else 0
    if config.recompute:  # all of them are there in the forward pass, when no block's activations are yet
        half_weights = max(half_weights // layers, half_weights - round(block * unit))
    elif again:  # turned again on the way back
        half_weights //= layers
    return DeviceMemory(
        state=(BYTES_OF_STATE + BYTES_OF_AVERAGE * len(config.ema.lengths)) * parameters,
        frozen=(UNIT_BYTES if config.precision == "bf16" else 4) * _count_frozen(config),
        half_weights=half_weights,
        activations=round((BESIDE_UNITS[config.precision] + kept) * unit),
        context=CONTEXT_BYTES,
    )


def with_batch(config: TrainConfig, per_device: int, recompute: bool | None = None) -> TrainConfig:
    """The configuration with other images at once, and as it is about recomputing where that is None."""
    batch = BatchSizes(total=config.batch.total, per_device=per_device)
    return config.model_copy(update={"batch": batch, "recompute": config.recompute if recompute is None else recompute})


def most_that_fits(config: TrainConfig, condition_tokens: int, processes: int, memory_bytes: int) -> int | None:
    """The most images at once that fit and divide a process's share of a step; None where one image does not fit."""
    share = config.batch.total // processes
    fitting = (
        size
        for size in range(share, 0, -1)
        if share % size == 0 and estimate_memory(with_batch(config, size), condition_tokens).total <= memory_bytes
    )
    return next(fitting, None)


def _with_budget(config: TrainConfig, budget: float | None) -> TrainConfig:
    return config.model_copy(update={"activation_memory_budget": budget})


def tell_estimate(config: TrainConfig, condition_tokens: int, has: int | None) -> str:
    """The estimate in a sentence, beside what the smallest device has where there is one."""
    found = f"{config.batch.per_device} images at once take a GPU some {estimate_memory(config, condition_tokens)}"
    return f"{found}, derived; " + ("there is none here to compare it with" if has is None else f"it has {tell(has)}")


def tell(size_bytes: int) -> str:
    """80.0 GB."""
    return f"{size_bytes / GB:.1f} GB"


def ways_that_fit(config: TrainConfig, condition_tokens: int, processes: int, memory_bytes: int) -> Sequence[str]:
    """What could be set, each by itself, so that the estimate is below that memory; the cheapest first."""

    def total(changed: TrainConfig) -> int:
        return estimate_memory(changed, condition_tokens).total

    ways: list[str] = []
    if config.compile and not config.recompute:
        now = 1.0 if config.activation_memory_budget is None else config.activation_memory_budget
        kept = ((each, total(_with_budget(config, each))) for each in PROPOSED_BUDGETS if each < now)
        fits = next(((each, size) for each, size in kept if size <= memory_bytes), None)
        if fits:
            ways.append(f"activation_memory_budget={fits[0]:g} ({fits[1] / GB:.0f} GB, no more matrix products)")
    if fitting := most_that_fits(config, condition_tokens, processes, memory_bytes):
        ways.append(f"batch.per_device={fitting}")
    again = _with_budget(with_batch(config, config.batch.per_device, recompute=True), None)
    if not config.recompute and total(again) <= memory_bytes:
        without = " with activation_memory_budget=null" if config.activation_memory_budget is not None else ""
        ways.append(f"recompute=true{without} ({total(again) / GB:.0f} GB, a third more work)")
    return ways


def todo_of(ways: Sequence[str]) -> str:
    """What to do where memory does not suffice."""
    return f"set {' or '.join(ways)}" if ways else "take a GPU with more memory, or a smaller model"


def log_estimate(config: TrainConfig, condition_tokens: int, processes: int, has: int | None) -> None:
    """Say at the start what it will take, and warn where that is more than there is; the estimate refuses nothing."""
    told = tell_estimate(config, condition_tokens, has)
    if has is None or estimate_memory(config, condition_tokens).total <= NEARLY_FULL * has:
        log.info("memory: %s", told)
    else:
        ways = ways_that_fit(config, condition_tokens, processes, round(NEARLY_FULL * has))
        log.warning("memory: %s: where it does not fit, %s", told, todo_of(ways))


@contextmanager
def naming_full_memory(config: Training) -> Iterator[None]:
    """Turn a GPU's memory that does not suffice into one line: what would fit, by the estimate where there is one.

    Raises:
        InputError: it did not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        has = device_bytes(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else None
        of = "" if has is None else f" of {tell(has)}"
        said = str(error).split(". ")[0].rstrip(".")
        found = f"batch.per_device: {config.batch.per_device} images at once do not fit a GPU{of} ({said})"
        if not isinstance(config, TrainConfig):
            ways = ["batch.per_device lower"] if config.recompute else ["batch.per_device lower", "recompute=true"]
            raise InputError(f"{found}; {todo_of(ways)}") from error
        estimate = estimate_memory(config, condition_tokens := _condition_tokens(config)).total
        # where the estimate says that it fits, it is too low here, or others use the GPU as well: less than now
        below = estimate - 1 if has is None else min(round(NEARLY_FULL * has), estimate - 1)
        ways = ways_that_fit(config, condition_tokens, int(os.environ.get("WORLD_SIZE", "1")), below)
        raise InputError(f"{found}; {tell(estimate)} were estimated; {todo_of(ways)}") from error


def _condition_tokens(config: TrainConfig) -> int:
    try:
        return peek_features(config.data).audio_shape[0]
    except (InputError, WorkError):
        return 50  # AST's, of five seconds


def count_parameters(config: Transformer) -> int:
    """The parameters of the transformer that `init_transformer` builds."""
    width, patch = config.width, config.patch_size**2 * config.latent_channels

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    # self-attention and cross-attention, feed-forward, a table of shifts and scales
    block = 8 * linear(width, width) + linear(width, 4 * width) + linear(4 * width, width) + 6 * width
    timestep = linear(TIMESTEP_CHANNELS, width) + linear(width, width) + linear(width, 6 * width)
    condition = linear(config.caption_channels, width) + linear(width, width)
    patches = linear(patch, width) + linear(width, 2 * patch) + 2 * width
    return config.layers * block + timestep + condition + patches


def count_learning(config: TrainConfig) -> int:
    """Those of them that learn; with adapters also what low-rank matrices add."""
    model, adapters = config.model, config.adapters
    if config.train == "all":
        return count_parameters(model)
    width = model.width
    low_rank = [(width, width)] * 4 * (adapters.cross_attention == "lora")
    if adapters.others == "lora":
        low_rank += [(width, width)] * 4 + [(width, 4 * width)] * 2
    added = model.layers * adapters.rank * sum(map(sum, low_rank))
    return count_parameters(model) - _count_frozen(config) + added


def _count_frozen(config: TrainConfig) -> int:
    if config.train == "all":
        return 0
    width = config.model.width
    layer = (width + 1) * width
    cross_attention = 4 * layer if config.adapters.cross_attention == "full" else 0
    projection = (config.model.caption_channels + 1) * width + layer
    return count_parameters(config.model) - projection - config.model.layers * cross_attention


def checkpoint_bytes(config: TrainConfig) -> int:
    """The size of a checkpoint but for its list of recordings: weights, averages and Adam's two moments."""
    return (16 + BYTES_OF_AVERAGE * len(config.ema.lengths)) * count_learning(config)


def snapshots_bytes(config: TrainConfig) -> int:
    """The size of all snapshots of a whole run: float16, of each power-function average."""
    return 2 * len(config.ema.lengths) * count_learning(config) * count_snapshots(config)


def count_snapshots(config: TrainConfig) -> int:
    """One each `snapshot_every` steps, and one of the last step."""
    return -(-config.max_steps // config.ema.snapshot_every)


def _block_units(config: TrainConfig, condition_tokens: int) -> float:
    keys_and_values = CONDITION_UNITS[config.precision] * condition_tokens / config.model.tokens
    return BLOCK_UNITS[config.precision, config.compile] - _units_again(config) + keys_and_values


def _units_again(config: TrainConfig) -> int:
    """What a block computes again on its way back, and holds then, because a budget keeps it from being saved."""
    if config.activation_memory_budget is None or not config.compile:
        return 0
    counted = BUDGET_UNITS[config.precision]
    kept = counted[min(budget for budget in counted if budget >= config.activation_memory_budget)]
    return BLOCK_UNITS[config.precision, True] - kept


def _unit_bytes(config: TrainConfig) -> int:
    model = config.model
    return UNIT_BYTES * config.batch.per_device * model.tokens * model.width

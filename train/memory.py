"""How much of a device's memory a training takes: arithmetic over the configuration, each term with where it is from.

Activations are counted in units of one bfloat16 tensor (B, N, D): the images of a micro-batch, their tokens, the
model's width. What a block keeps for its backward pass was measured, by what autograd saved and by the peak of the
allocator, on CPUs at widths of 288 and 576 and 64 and 256 tokens; what it is on a GPU is derived from that, as is every
total. `python -m benchmarks.on_gpu` compares one with what is allocated.
"""

from dataclasses import dataclass, fields

from train.config import BatchSizes, TrainConfig, Transformer
from train.metrics import TIMESTEP_CHANNELS

GB = 10**9
# Of one block: by precision, compiled or not. Statistics of norms and attention (0.3 of a percent) are left out.
BLOCK_UNITS = {("bf16", True): 23, ("bf16", False): 29, ("fp32", True): 42, ("fp32", False): 46}
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

    `frozen` are weights that do not learn, `half_weights` the others as autocast turns them for a micro-batch,
    `second_gradients` those that several processes hold twice while they add up micro-batches: in the buckets that are
    exchanged, and beside them.
    """

    state: int
    frozen: int = 0
    half_weights: int
    second_gradients: int
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


def estimate_memory(config: TrainConfig, condition_tokens: int, processes: int = 1) -> DeviceMemory:
    """What each of so many GPUs will hold when it holds most, with a condition of so many vectors an image.

    Where adapters learn activations count as where all does, which is more than there are. Gradients are counted as
    there while activations are: so it is from the second micro-batch of a step on. Pictures
    that are made on the way come on top where they are larger than a step, which is where a model is small.
    """
    parameters = count_learning(config)
    accumulates = config.batch.total > processes * config.batch.per_device
    block, unit = _block_units(config, condition_tokens), _unit_bytes(config)
    layers = config.model.layers
    units = BESIDE_UNITS[config.precision] + (layers * RECOMPUTED_UNITS + block if config.recompute else layers * block)
    half_weights = UNIT_BYTES * parameters if config.precision == "bf16" else 0
    if config.recompute:  # all of them are there in the forward pass, when no block's activations are yet
        half_weights = max(half_weights // layers, half_weights - round(block * unit))
    return DeviceMemory(
        state=(BYTES_OF_STATE + BYTES_OF_AVERAGE * len(config.ema.lengths)) * parameters,
        frozen=(UNIT_BYTES if config.precision == "bf16" else 4) * _count_frozen(config),
        half_weights=half_weights,
        second_gradients=4 * parameters if processes > 1 and accumulates else 0,
        activations=round(units * unit),
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
        if share % size == 0
        and estimate_memory(with_batch(config, size), condition_tokens, processes).total <= memory_bytes
    )
    return next(fitting, None)


def count_parameters(config: Transformer) -> int:
    """The parameters of the transformer that `init_transformer` builds."""
    width, patch = config.heads * config.head_dim, config.patch_size**2 * config.latent_channels

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
    width = model.heads * model.head_dim
    low_rank = [(width, width)] * 4 * (adapters.cross_attention == "lora")
    if adapters.others == "lora":
        low_rank += [(width, width)] * 4 + [(width, 4 * width)] * 2
    added = model.layers * adapters.rank * sum(map(sum, low_rank))
    return count_parameters(model) - _count_frozen(config) + added


def _count_frozen(config: TrainConfig) -> int:
    if config.train == "all":
        return 0
    width = config.model.heads * config.model.head_dim
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
    keys_and_values = CONDITION_UNITS[config.precision] * condition_tokens / _tokens(config.model)
    return BLOCK_UNITS[config.precision, config.compile] + keys_and_values


def _unit_bytes(config: TrainConfig) -> int:
    model = config.model
    return UNIT_BYTES * config.batch.per_device * _tokens(model) * model.heads * model.head_dim


def _tokens(model: Transformer) -> int:
    return (model.sample_size // model.patch_size) ** 2

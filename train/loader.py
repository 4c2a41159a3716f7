"""Batches for training: the same ones for any number of processes and loader workers, from any step on.

A position counts visits from the start of training on: with N images, position p is visit `p % N` of epoch `p // N`,
and each epoch visits every image once. A step covers `batch.total` positions. Micro-batch m, counted over all steps,
covers the `per_device * world` positions from `m * per_device * world` on, of which each rank takes a contiguous part.
What is drawn for a visit depends on the seed and its position alone: no worker has random numbers of its own, and a run
that is resumed needs nothing but its step.

    B  images of a micro-batch, C H W  channels, height and width of the latents, T D  times and width of the condition
    S  samples of a scene that is mixed anew
"""

import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sonify.errors import InputError, WorkError
from sonify.io.machine import shorten_sockets
from sonify.keys import hash64
from train.config import BatchSizes, Training
from train.diffusion import NUM_TIMESTEPS
from train.scenes import Remix
from train.shards import FeatureData, TrainingSample

DEATH_SEC = 10
LOST = (
    "a loader process was lost, perhaps killed for memory or for a full /dev/shm: the same command goes on from the"
    " last checkpoint; set data.workers lower if it happens again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one micro-step needs; latents are scaled, and `dropped_B` says whose condition is left out.

    `position` is the first image's; `labels` say what is heard, where that was asked for. Scenes that were mixed anew
    are `waveforms_BS`, int16, and `audio_BTD` is empty, of no time, until they are heard.
    """

    position: int
    keys: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    latents_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor
    audio_BTD: Tensor
    dropped_B: Tensor
    waveforms_BS: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copy is not waited for."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def first(self, count: int) -> "Batch":
        """The first images of it."""
        labels = self.labels and self.labels[:count]
        return replace(self._with_each(lambda tensor: tensor[:count]), keys=self.keys[:count], labels=labels)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory; torch's loader looks for this method."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(one) for name, one in tensors.items() if isinstance(one, Tensor)})


def accumulation_steps(batch: BatchSizes, world: int) -> int:
    """How many micro-batches each process adds up for one step."""
    if batch.total % world:
        raise InputError(
            f"batch.total: {batch.total} images do not divide among {world} processes; use another number of processes"
            f" (devices), or a total such as {batch.total // world * world or world}"
        )
    share = batch.total // world
    if share % batch.per_device:
        fitting = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        raise InputError(
            f"batch.per_device: {batch.per_device} does not divide the {share} images that each of {world} processes"
            f" has of a step; these do: {fitting}"
        )
    return share // batch.per_device


def make_loader(  # noqa: PLR0913 - the place of a process among others is three numbers
    data: FeatureData,
    config: Training,
    scaling_factor: float,
    start_step: int,
    rank: int,
    world: int,
    *,
    with_labels: bool = False,
    remix: Remix | None = None,
) -> Generator[Batch, None, None]:
    """The micro-batches of one process, from those of step `start_step` (the first is 0) on to `max_steps`.

    Scenes are heard as they are stored, or mixed anew by `remix`. Reading begins with the first `next`, in
    `data.workers` processes.

    Raises:
        InputError: an epoch is smaller than a step, or the batch does not divide.
        WorkError: (from `next`) a sample is damaged; the message names it.
    """
    accumulation = accumulation_steps(config.batch, world)
    if data.num_images < config.batch.total:
        raise InputError(
            f"data: {data.num_images} images of split {config.data.split!r}, fewer than the {config.batch.total} of one"
            " step; add runs, or set a smaller batch.total"
        )
    if config.data.workers:
        shorten_sockets()  # through which they hand tensors over
    loader = DataLoader(
        _MicroBatches(
            data,
            config,
            scaling_factor,
            rank * config.batch.per_device,
            world,
            with_labels=with_labels,
            remix=remix,
        ),
        batch_size=None,
        sampler=range(start_step * accumulation, config.max_steps * accumulation),
        num_workers=config.data.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # for seeds of workers, which would else be taken from the training's own numbers
        worker_init_fn=_leave_signals_to_trainer,
    )
    return _iterate(loader)


def _iterate(loader: DataLoader) -> Generator[Batch, None, None]:
    try:
        for batch in loader:
            if isinstance(batch, WorkError):
                raise batch
            yield batch
    except (ConnectionError, EOFError) as error:
        with suppress(RuntimeError):  # its pipes close before it is dead: torch's word of that is awaited here
            time.sleep(DEATH_SEC)
        raise WorkError(LOST) from error


@contextmanager
def naming_lost_loaders() -> Iterator[None]:
    """Name a killed loader process, of which torch tells by an error in whatever the main thread does just then."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise WorkError(LOST) from error
        raise


def _leave_signals_to_trainer(_worker: int) -> None:
    """Launchers signal the whole process group; a worker that died would take the step away that is to be saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _MicroBatches(Dataset):
    """One process's micro-batches, by their number in the whole training."""

    def __init__(  # noqa: PLR0913 - as `make_loader`
        self,
        data: FeatureData,
        config: Training,
        scaling_factor: float,
        first_in_world: int,
        world: int,
        *,
        with_labels: bool,
        remix: Remix | None,
    ) -> None:
        self._data = data
        self._remix = remix
        self._config = config
        self._scaling_factor = scaling_factor
        self._with_labels = with_labels
        self._first_in_world = first_in_world
        self._world_size = world * config.batch.per_device
        self._order = Order([shard.num_samples for shard in data.shards], config.data.window_shards, config.seed)

    def __getitem__(self, number: int) -> Batch | WorkError:
        """A batch, or what is wrong with it: torch would bury an exception under a worker's traceback."""
        first = number * self._world_size + self._first_in_world
        try:
            visits = [self._visit(position) for position in range(first, first + self._config.batch.per_device)]
        except WorkError as damage:
            return damage
        return Batch(
            position=first,
            keys=tuple(visit.key for visit in visits),
            labels=tuple(visit.label for visit in visits) if self._with_labels else None,
            latents_BCHW=_stack([visit.latents_CHW for visit in visits]) * self._scaling_factor,
            noise_BCHW=_stack([visit.noise_CHW for visit in visits]),
            timesteps_B=torch.tensor([visit.timestep for visit in visits]),
            audio_BTD=_stack([visit.audio_TD for visit in visits]),
            dropped_B=torch.tensor([visit.dropped for visit in visits]),
            waveforms_BS=_stack([visit.waveform_S for visit in visits]) if self._remix else None,
        )

    def _visit(self, position: int) -> "_Visit":
        random = generator(self._config.seed, "visit", position)
        which_scene, which_side, drop = random.random(3)
        timestep = int(random.integers(NUM_TIMESTEPS))
        noise_CHW = random.standard_normal(self._data.latent_shape, np.float32)
        shard, row = self._order.locate(position)
        sample = self._data.read(shard, row)
        scene = sample.scenes[int(which_scene * len(sample.scenes))]
        mirrored = "latent_flip.npy" in sample.members and which_side < 0.5
        audio_TD = waveform_S = np.empty((0, self._data.audio_shape[1]), np.float32)
        if self._remix is None:
            audio_TD = sample.decode(f"{scene}.audio.npy", self._data.audio_shape)
        else:
            epoch = position // self._order.num_images
            waveform_S = self._remix.mix(self._data.shards[shard], sample.key, scene, epoch)
        return _Visit(
            key=sample.key,
            latents_CHW=self._draw_latents(sample, "latent_flip" if mirrored else "latent", random),
            noise_CHW=noise_CHW,
            timestep=timestep,
            audio_TD=audio_TD,
            waveform_S=waveform_S,
            dropped=bool(drop < self._config.condition_dropout),
            label=sample.label_of(scene) if self._with_labels else "",
        )

    def _draw_latents(self, sample: TrainingSample, name: str, random: np.random.Generator) -> np.ndarray:
        """The posterior's mean, or a draw from it where its deviation is there."""
        shape = self._data.latent_shape
        mean_CHW = sample.decode(f"{name}.npy", shape)
        if f"{name}_std.npy" not in sample.members:
            return mean_CHW
        return mean_CHW + sample.decode(f"{name}_std.npy", shape) * random.standard_normal(shape, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    key: str
    latents_CHW: np.ndarray
    noise_CHW: np.ndarray
    timestep: int
    audio_TD: np.ndarray
    waveform_S: np.ndarray
    dropped: bool
    label: str


def _stack(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def generator(*purpose: str | int) -> np.random.Generator:
    """Random numbers that depend on nothing but what they are for."""
    return np.random.default_rng(hash64(*purpose))


class Order:
    """Finds the image of a position.

    An epoch shuffles all shards, takes them in windows of `window_shards`, and shuffles the images of each window: no
    permutation is longer than a window, however many images there are.
    """

    def __init__(self, shard_sizes: Sequence[int], window_shards: int, seed: int) -> None:
        assert all(size > 0 for size in shard_sizes)
        self._sizes = np.array(shard_sizes, dtype=np.int64)
        self._window_shards = window_shards
        self._seed = seed
        self.num_images = int(self._sizes.sum())
        self._epoch = _Epoch(self._sizes, window_shards, seed, epoch=0)

    def locate(self, position: int) -> tuple[int, int]:
        """The shard, and the row in it, that a position visits; quick where positions are near each other."""
        epoch, visit = divmod(position, self.num_images)
        if self._epoch.epoch != epoch:
            self._epoch = _Epoch(self._sizes, self._window_shards, self._seed, epoch)
        return self._epoch.locate(visit)


class _Epoch:
    def __init__(self, sizes: np.ndarray, window_shards: int, seed: int, epoch: int) -> None:
        self.epoch = epoch
        self._seed = seed
        self._sizes = sizes
        self._window_shards = window_shards
        self._shards = generator(seed, "shards", epoch).permutation(len(sizes))
        starts = np.concatenate([[0], np.cumsum(sizes[self._shards])[:-1]])
        self._window_starts = starts[::window_shards]
        self._window = -1
        self._places = np.empty((0, 2), dtype=np.int64)

    def locate(self, visit: int) -> tuple[int, int]:
        window = int(np.searchsorted(self._window_starts, visit, side="right")) - 1
        if window != self._window:
            self._window, self._places = window, self._shuffle(window)
        shard, row = self._places[visit - self._window_starts[window]]
        return int(shard), int(row)

    def _shuffle(self, window: int) -> np.ndarray:
        """The (shard, row) of a window's images, in the order of their visits."""
        first = window * self._window_shards
        shards = self._shards[first : first + self._window_shards]
        rows = np.concatenate([np.arange(size) for size in self._sizes[shards]])
        places = np.stack([np.repeat(shards, self._sizes[shards]), rows], axis=1)
        return generator(self._seed, "window", self.epoch, window).permutation(places)

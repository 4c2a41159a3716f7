"""Whether a training configuration will train here: devices, networks, data, memory, disk, the loader's rate, a step.

Nothing is left in `run_dir`, and nothing is fetched unless that is asked for.
"""

import math
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.doctor.gpus import how_to_mend, look_for_gpus
from sonify.doctor.machine import AST_VECTORS, SHARED_MEMORY, Need, examine_run_dir, judge_disks, loader_bytes
from sonify.doctor.models import look_for
from sonify.errors import InputError, WorkError
from sonify.features.vae import scaling_factor
from sonify.io.machine import usable_cpus, why_no_cuda
from sonify.models.fetch import AST_FILES, VAE_FILES, Files
from train.checkpoints import FOLDER, RELEASE, check_run_dir
from train.config import Checkpoint, Scratch, TrainConfig
from train.device import device_bytes, peak_bytes, reset_peak
from train.frozen import Networks, load_networks, make_pipeline
from train.launch import check_devices, start_accelerator
from train.loader import accumulation_steps, make_loader, naming_lost_loaders
from train.memory import (
    GB,
    NEARLY_FULL,
    checkpoint_bytes,
    count_parameters,
    count_snapshots,
    estimate_memory,
    snapshots_bytes,
    tell_estimate,
    todo_of,
    ways_that_fit,
    with_batch,
)
from train.model import TRANSFORMER_FILES, init_transformer, transformer_part
from train.scenes import check_remix
from train.shards import FeatureData, check_matches, open_feature_data
from train.snapshots import FOLDER as SNAPSHOTS
from train.trial import CPU_SECONDS, Reading, Step, Trainee, images_for_cpu, read_for

LOADER_SECONDS = 5.0
FROZEN_BYTES = 700_000_000  # sd-vae-ft-ema and AST as a release has them, where they are not here
MICRO_BATCHES = 2  # of a step that is tried: with the second, gradients are there while activations are
STEPS = 3  # on a GPU: the first compiles, the fastest counts
FAR = 0.1  # of the peak: an estimate that is further from it is told as wrong

# The identities of those of `vae`, `ast` and `model` that are here; None for what needs no files.
Here = dict[str, str | None]


def examine_training(config: TrainConfig, *, fetch: bool = False) -> Iterator[Finding]:
    """Try everything that a training needs; each finding comes when it is known.

    Args:
        config: of the training.
        fetch: download first what is not here of the networks.
    """
    yield _examine_run_dir(config)
    processes = yield from _examine_devices(config)
    asked = processes or config.devices or 1
    yield _examine_batch(config, asked)
    here = yield from _examine_models(config, fetch)
    networks = yield from _load_networks(config, here)
    data = yield from _examine_data(config, here)
    condition_tokens = data.audio_shape[0] if data else AST_VECTORS
    yield _examine_memory(config, condition_tokens, asked, there=processes is not None)
    yield _examine_disk(config, networks)
    yield _examine_shared_memory(config, condition_tokens, asked)
    reading = yield from _examine_loader(config, data, networks, asked)
    if processes is None:
        yield _not_tried("a step", "the devices that are asked for are not here")
    elif data is None or networks is None or reading is None:
        missing = "data" if data is None else "networks" if networks is None else "loader"
        yield _not_tried("a step", f"there is none without the {missing}")
    else:
        yield from _examine_step(config, data, networks, reading, fetched="model" in here)


# --- run_dir and devices


def _examine_run_dir(config: TrainConfig) -> Finding:
    try:
        check_run_dir(config)
    except InputError as error:
        return _fault("run_dir", error)
    finding = examine_run_dir(config.run_dir)
    steps = sorted(path.name for path in (config.run_dir / FOLDER).glob("step-*"))
    begun = f"; training goes on from its newest checkpoint, {steps[-1]}" if steps else ""
    return replace(finding, found=finding.found + begun)


def _examine_devices(config: TrainConfig) -> Generator[Finding, None, int | None]:
    """How many processes will train; None where the devices that are asked for, or are to be seen, cannot be used."""
    seen = look_for_gpus(with_torch=True)
    facts: dict[str, Any] = asdict(seen)
    if seen.traces and not seen.torch_gpus:
        why = why_no_cuda(seen.torch_cuda or None, seen.driver)
        yield _fault("devices", f"{seen.traces}, and torch {seen.torch} finds none: {why}", how_to_mend(seen), facts)
        return None
    try:
        processes = check_devices(config.devices)
    except InputError as error:
        yield _fault("devices", error, facts=facts)
        return None
    if not seen.torch_gpus:
        yield Finding(
            about="devices", outcome=Outcome.NOTE, found=f"no GPU: it trains on {usable_cpus()} CPUs", facts=facts
        )
        return processes
    names = {torch.cuda.get_device_name(n) for n in range(processes)}
    found = f"{processes} x {' and '.join(sorted(names))}, driver {seen.driver}, CUDA {seen.torch_cuda}"
    if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        todo = "set precision=fp32, or take GPUs that have bfloat16 (NVIDIA's from Ampere on)"
        yield _fault("devices", f"{found}: it has no bfloat16", todo, facts)
    else:
        yield Finding(about="devices", outcome=Outcome.OK, found=found, facts=facts)
    return processes


def _examine_batch(config: TrainConfig, processes: int) -> Finding:
    try:
        accumulation = accumulation_steps(config.batch, processes)
    except InputError as error:
        return _fault("batch", error)
    parts = [f"{processes} processes"] if processes > 1 else []
    parts += [f"{accumulation} times"] if accumulation > 1 else []
    found = f"{config.batch.total} images a step: " + " x ".join([f"{config.batch.per_device} at once", *parts])
    return Finding(about="batch", outcome=Outcome.OK, found=found)


# --- networks and data


def _examine_models(config: TrainConfig, fetch: bool) -> Generator[Finding, None, Here]:
    """Look for `vae`, `ast` and `model`."""
    asked: list[tuple[str, str, str | None, Files]] = [("vae", config.vae, config.vae_revision, VAE_FILES)]
    here: Here = {}
    if config.ast is None:
        here["ast"] = None
    else:
        asked.append(("ast", config.ast, config.ast_revision, AST_FILES))
    init = config.model.init
    if isinstance(init, Checkpoint):
        folder = Path(init.model).expanduser()
        model = str(transformer_part(folder)) if folder.is_dir() else init.model
        asked.append(("model", model, init.revision, TRANSFORMER_FILES))
    else:
        here["model"] = None
    for about, model, revision, files in asked:
        try:
            finding = look_for(about, model, revision, files, fetch)
        except InputError as error:  # a name that is none, or no library to fetch it with
            finding = _fault(about, error)
        if finding.outcome is Outcome.OK:
            here[about] = finding.facts["identity"]
        yield finding
    return here


def _load_networks(config: TrainConfig, here: Here) -> Generator[Finding, None, Networks | None]:
    if missing := [name for name in ("vae", "ast") if name not in here]:
        yield _not_tried("networks", f"{' and '.join(missing)} cannot be had now")
        return None
    started = time.perf_counter()
    try:
        networks = load_networks(config)
    except InputError as error:
        yield _fault("networks", error)
        return None
    seconds = time.perf_counter() - started
    loaded = "VAE and AST load" if config.ast else "the VAE loads"
    yield Finding(about="networks", outcome=Outcome.OK, found=loaded, seconds=seconds)
    return networks


def _examine_data(config: TrainConfig, here: Here) -> Generator[Finding, None, FeatureData | None]:
    try:
        data = open_feature_data(config.data)
    except (InputError, WorkError) as error:
        yield _fault("data", error)
        return None
    facts = {
        "images": data.num_images,
        "shards": len(data.shards),
        "latent_shape": list(data.latent_shape),
        "audio_shape": list(data.audio_shape),
    }
    found = f"{data.num_images:,} images in {len(data.shards):,} archives: latents {_by(data.latent_shape)}, condition"
    found += f" {_by(data.audio_shape)}"
    yield Finding(about="data", outcome=Outcome.OK, found=found, facts=facts)
    vae, ast = here.get("vae"), here.get("ast")
    if vae is None or (ast is None and config.ast is not None):
        yield _not_tried("features", "whose they are is seen when vae and ast are here")
    else:
        try:
            check_matches(data, config, vae, ast)
        except InputError as error:
            yield _fault("features", error)
            return None
        yield Finding(about="features", outcome=Outcome.OK, found="were made by these networks, and fit the model")
    if config.samples.sounds:
        yield _examine_samples(config)
    return data


def _examine_samples(config: TrainConfig) -> Finding:
    split = config.samples.split
    try:
        shown = open_feature_data(config.data.model_copy(update={"split": split}))
    except (InputError, WorkError) as error:
        return Finding(about="samples", outcome=Outcome.NOTE, found=f"no grids of pictures: {one_line(error)}")
    found = f"grids of {config.samples.sounds} pictures, of sounds of {shown.num_images:,} images of split {split}"
    return Finding(about="samples", outcome=Outcome.OK, found=found)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


# --- memory, disk, /dev/shm


def _examine_memory(config: TrainConfig, condition_tokens: int, processes: int, *, there: bool) -> Finding:
    gpus = [torch.device("cuda", n) for n in range(processes)] if there and torch.cuda.is_available() else []
    has = min((size for gpu in gpus if (size := device_bytes(gpu)) is not None), default=None)
    return judge_estimate(config, condition_tokens, processes, has)


def judge_estimate(config: TrainConfig, condition_tokens: int, processes: int, has: int | None) -> Finding:
    """Compare the estimate with the memory of the smallest device, where there is one, and say what would fit."""
    memory = estimate_memory(config, condition_tokens)
    found = tell_estimate(config, condition_tokens, has)
    facts: dict[str, Any] = {"estimated_bytes": memory.total, "condition_tokens": condition_tokens}
    if has is None:
        return Finding(about="memory", outcome=Outcome.NOTE, found=found, facts=facts)
    facts |= {"device_bytes": has}
    if memory.total <= NEARLY_FULL * has:
        return Finding(about="memory", outcome=Outcome.OK, found=found, facts=facts)
    ways = ways_that_fit(config, condition_tokens, processes, round(NEARLY_FULL * has))
    todo = todo_of(ways)
    outcome = Outcome.FAULT if memory.total > has else Outcome.NOTE
    return Finding(about="memory", outcome=outcome, found=found, todo=todo, facts=facts)


def _examine_disk(config: TrainConfig, networks: Networks | None) -> Finding:
    """What a run's folder comes to at most, against what is free."""
    one, kept = checkpoint_bytes(config), config.checkpoints.keep
    modules = [networks.vae, networks.audio_encoder] if networks else []
    frozen = sum(4 * p.numel() for module in modules if module is not None for p in module.parameters())
    release = 4 * count_parameters(config.model) + (frozen if networks else FROZEN_BYTES)
    written = [
        path for name in (FOLDER, RELEASE, SNAPSHOTS) for path in (config.run_dir / name).rglob("*") if path.is_file()
    ]
    snapshots = snapshots_bytes(config)
    needed = max(0, one * (kept + 1) + release + snapshots - sum(path.stat().st_size for path in written))
    (finding,) = judge_disks([Need(name="run_dir", folder=config.run_dir, needed_bytes=needed)])
    found = f"{finding.found}: {kept} checkpoints of {one / GB:.1f} GB, one more while it is written, and a release of"
    found += f" {release / GB:.1f}"
    if snapshots:
        found += f"; {count_snapshots(config)} snapshots of averages, {snapshots / GB:.1f} in all"
    todo = f"{finding.todo}; or set checkpoints.keep lower" if finding.todo else ""
    facts = {**finding.facts, "checkpoint_bytes": one, "release_bytes": release}
    return replace(finding, about="disk", found=found, todo=todo, facts=facts)


def _examine_shared_memory(config: TrainConfig, condition_tokens: int, processes: int) -> Finding:
    """What loader processes hand over lies there, some micro-batches ahead; a container has 64 MB unless told."""
    about = str(SHARED_MEMORY)
    if not config.data.workers:
        found = "not used: the training process reads by itself (data.workers: 0)"
        return Finding(about=about, outcome=Outcome.OK, found=found)
    model = config.model
    needed = loader_bytes(
        workers=config.data.workers,
        images=config.batch.per_device,
        latent_shape=(model.latent_channels, model.sample_size, model.sample_size),
        condition_shape=(condition_tokens, model.caption_channels),
        processes=processes,
    )
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = f"what {processes} x {config.data.workers} loader processes have ready takes up to"
    found += f" {needed / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free"
    facts = {"needed_bytes": needed, "free_bytes": free}
    if needed <= free:
        return Finding(about=about, outcome=Outcome.OK, found=found, facts=facts)
    todo = "give the container more (docker: --shm-size or --ipc=host; Kubernetes: a memory-backed volume), or set"
    return _fault(about, found, f"{todo} data.workers lower", facts)


# --- the loader and a step


def _examine_loader(
    config: TrainConfig, data: FeatureData | None, networks: Networks | None, processes: int
) -> Generator[Finding, None, Reading | None]:
    """Read as the first of all processes does."""
    if data is None or networks is None:
        yield _not_tried("loader", f"it needs the {'data' if data is None else 'networks'}")
        return None
    try:
        if config.data.scenes == "remix":
            check_remix(config, data)
        scale = scaling_factor(networks.vae)
        batches = make_loader(data, config, scaling_factor=scale, start_step=0, rank=0, world=processes)
        kept = min(accumulation_steps(config.batch, processes), MICRO_BATCHES)
        with naming_lost_loaders(), closing(batches):
            reading = read_for(batches, LOADER_SECONDS, kept=kept, warm_up=config.data.workers)
    except (InputError, WorkError) as error:
        yield _fault("loader", error)
        return None
    workers, cpus = processes * max(config.data.workers, 1), usable_cpus()
    found = f"{reading.images_per_sec:,.0f} images/s by {config.data.workers or 'no'} loader processes"
    facts = {"images_per_sec": reading.images_per_sec, "workers": config.data.workers, "cpus": cpus}
    if config.data.scenes == "remix":
        found += ", of stored scenes: to mix them anew takes longer, and AST is in no step that is tried"
    if workers > cpus:
        found += f"; {processes} such loaders are {workers} processes on {cpus} CPUs, and each will be slower"
    outcome = Outcome.NOTE if workers > cpus else Outcome.OK
    yield Finding(about="loader", outcome=outcome, found=found, facts=facts)
    return reading


def _examine_step(
    config: TrainConfig, data: FeatureData, networks: Networks, reading: Reading, *, fetched: bool
) -> Iterator[Finding]:
    """Take some steps as the first process would, on the device that it would have."""
    condition_tokens, batches, count = data.audio_shape[0], reading.batches, STEPS
    weights = "" if fetched else " of random weights"
    if not fetched:
        config = config.model_copy(update={"model": config.model.model_copy(update={"init": Scratch(kind="scratch")})})
    try:
        accelerator = start_accelerator(config)
        if accelerator.device.type == "cpu":
            images = images_for_cpu(config, condition_tokens)
            if not images:
                yield _not_tried("a step", f"one image alone would take this CPU more than {CPU_SECONDS:.0f} s")
                return
            batches, count = [batches[0].first(images)], 1
            config = config.model_copy(update={"compile": False, "activation_memory_budget": None})
            config = with_batch(config, images)
        transformer, _ = init_transformer(config.model, config.seed)
        null_TD = make_pipeline(transformer, config, networks, data).encode_null(condition_tokens)
        reset_peak(accelerator.device)
        trainee = Trainee(config, accelerator, transformer, null_TD)
        steps = [trainee.step(batches) for _ in range(count)]
    except InputError as error:
        yield _fault("a step", error)
        return
    except torch.OutOfMemoryError as error:
        ways = ways_that_fit(config, condition_tokens, 1, estimate_memory(config, condition_tokens).total - 1)
        yield _fault("a step", f"{config.batch.per_device} images at once do not fit: {error}", todo_of(ways))
        return
    images = sum(len(batch.keys) for batch in batches)
    where = f"{images} images{weights} on {accelerator.device.type}"
    yield judge_step(steps, images, where)
    if (peak := peak_bytes(accelerator.device)) is not None:
        yield judge_peak(peak, estimate_memory(config, condition_tokens).allocated)
        yield judge_loader(reading.images_per_sec, images / min(step.seconds for step in steps))


def judge_step(steps: Sequence[Step], images: int, where: str) -> Finding:
    """Whether steps gave numbers, and how long they took."""
    first, seconds = steps[0].seconds, min(step.seconds for step in steps)
    losses = ", ".join(f"{step.loss:.4g}" for step in steps)
    found = f"{where}: {images / seconds:,.1f} images/s; losses {losses}; the first step took {first:.1f} s"
    facts = {
        "images": images,
        "seconds": seconds,
        "first_seconds": first,
        "losses": [step.loss if math.isfinite(step.loss) else None for step in steps],
        "images_per_sec": images / seconds,
    }
    if not all(math.isfinite(step.loss) and math.isfinite(step.gradient_norm) for step in steps):
        todo = "look at the weights of model.init and at the data; precision=fp32 tells whether bfloat16 is the cause"
        return _fault("a step", f"{found}: the loss or the gradient is not finite", todo, facts)
    total = sum(step.seconds for step in steps)
    return Finding(about="a step", outcome=Outcome.OK, found=found, facts=facts, seconds=total)


def judge_peak(peak: int, estimated: int) -> Finding:
    """Compare what a step had allocated with what was estimated for it."""
    found = f"{peak / GB:.2f} GB at the peak of a step, and {estimated / GB:.2f} were estimated"
    facts = {"peak_bytes": peak, "estimated_bytes": estimated}
    outcome = Outcome.OK if abs(estimated - peak) <= FAR * peak else Outcome.NOTE
    return Finding(about="peak memory", outcome=outcome, found=found, facts=facts)


def judge_loader(read: float, learned: float) -> Finding:
    """Compare a loader's rate with that of the device which it feeds, in images a second."""
    found = f"the loader reads {read:,.0f} images/s, and the device learns from {learned:,.0f}"
    facts = {"read_per_sec": read, "learned_per_sec": learned}
    if read >= learned:
        return Finding(about="loader and device", outcome=Outcome.OK, found=found, facts=facts)
    todo = "set data.workers higher, take a machine with more CPUs, or have the runs on a faster disk"
    return Finding(about="loader and device", outcome=Outcome.NOTE, found=found, todo=todo, facts=facts)


def _fault(about: str, why: object, todo: str = "", facts: Mapping[str, Any] | None = None) -> Finding:
    found = one_line(why).removeprefix(f"{about}: ")
    return Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo, facts=facts or {})


def _not_tried(about: str, why: str) -> Finding:
    return Finding(about=about, outcome=Outcome.NOT_TRIED, found=why)

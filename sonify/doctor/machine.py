"""The machine that a run is started on, and what it reaches: GPUs, engines, the run directory, disks, limits, Ray.

What is probed is left as it was: a file or an object of our own is made beside what a run makes, and removed.
"""

import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonify.config import Config, wrong_paths
from sonify.dataset.render_from import adopt_settings
from sonify.doctor.cluster import examine_ray
from sonify.doctor.engines import examine_program, programs_of
from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.doctor.gpus import Gpu, asks_of, examine_gpus, judge_gpu_memory
from sonify.engine.lease import hold
from sonify.engine.plan import Plan
from sonify.errors import InputError, TransientError, WorkError
from sonify.io.places import read_whole
from sonify.io.write import create_if_absent, put_bytes, remove, write_atomically
from sonify.report.estimate import Estimate, estimate
from sonify.running import plan_run
from sonify.stores import Place

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is made in it
# With less, Ray keeps its objects in files on a disk: what `sonify.engine.cluster` starts it with.
RAY_SHARED_BYTES = 100 << 20
# Where a model lies on several GPUs, or a loader has many workers: Docker gives 64 MB. Not measured.
SHARED_BYTES = 1 << 30
# Micro-batches that each loader process of a training has under way: torch's `prefetch_factor`.
BATCHES_AHEAD = 2
# Of five seconds of sound, by AST with `frequency: mean`: where no data says how many there are.
AST_VECTORS = 49
# Beside a run's files: Ray's logs, unpacked parts, what a worker makes before it is uploaded.
SPARE_BYTES = 1 << 30
PROBE = b"made by `sonify doctor`, and removed at once"


def examine_machine(config: Config) -> Iterator[Finding]:
    """Examine this machine for a run, and the cluster that it names."""
    elsewhere = _joins_cluster(config)
    yield from examine_gpus(config, elsewhere)
    programs = tuple(programs_of(config))
    for program in programs:
        yield examine_program(program, elsewhere)
    yield examine_run_dir(config.run_dir)
    yield from examine_disks(config)
    several = any(ask.gpus > 1 for ask in asks_of(config))
    yield examine_shared_memory(several_gpus=several)
    yield from examine_ray(config, asks_of(config), programs)


def _joins_cluster(config: Config) -> bool:
    """Whether the work is done by a Ray that runs already, and so perhaps on other machines."""
    named = config.engine.address or os.environ.get("RAY_ADDRESS", "")
    return config.engine.kind == "ray" and named.strip() not in ("", "local")


# --- where the run writes


def examine_run_dir(run_dir: Place) -> Finding:
    """See that a run can write where it is to, as it does: whole files, and one command at a time."""
    return _examine_folder(run_dir) if isinstance(run_dir, Path) else _examine_store(run_dir)


def _examine_folder(run_dir: Path) -> Finding:
    """Make a file and a lock as a run does, in a folder of our own in the nearest folder that is there."""
    above = nearest(run_dir)
    folder = above / f".sonify-doctor-{uuid.uuid4().hex}"
    try:
        if not above.is_dir():
            raise InputError(f"{above} is not a folder")
        with hold(folder / "lock"):
            write_atomically(folder, "probe", PROBE)
            if (folder / "probe").read_bytes() != PROBE:
                raise WorkError(f"{above}: what was written is not what is read")
    except (InputError, WorkError, OSError) as error:
        why = error.__cause__ or error  # a lock that cannot be had is not another command's here
        return Finding(
            about="run_dir",
            outcome=Outcome.FAULT,
            found=f"{run_dir}: cannot be written as a run does: {one_line(why)}",
            todo="set run_dir to a folder that can be written, or give the user that runs this a right to it (on"
            " Kubernetes: fsGroup)",
        )
    finally:
        if folder.is_dir():
            remove(folder)
    where = (
        "is there and can be written"
        if above == run_dir.absolute()
        else f"will be made in {above}, which can be written"
    )
    return Finding(about="run_dir", outcome=Outcome.OK, found=f"{run_dir}: {where}, files are renamed, locks hold")


def _examine_store(run_dir: Place) -> Finding:
    """Create one object twice, only if absent: a commit and the lock of a run rest on the second being refused."""
    probe = run_dir / f"sonify-doctor-{uuid.uuid4().hex}"
    facts: dict[str, bool] = {}
    try:
        try:
            facts["created"] = create_if_absent(probe, PROBE)
            facts["created_again"] = create_if_absent(probe, PROBE[::-1])
            facts["kept"] = read_whole(probe) == PROBE
            put_bytes(probe, PROBE[::-1])  # as a lock is kept fresh
            facts["replaced"] = read_whole(probe) == PROBE[::-1]
        finally:
            remove(probe)
    except (InputError, TransientError, FileNotFoundError) as error:
        return Finding(
            about="run_dir",
            outcome=Outcome.FAULT,
            found=one_line(error),
            todo="check the bucket's name and region, and the credentials in the environment (read, write and delete)",
            facts=facts,
        )
    if facts == {"created": True, "created_again": False, "kept": True, "replaced": True}:
        found = f"{run_dir}: an object that is there is not created again, and one can be replaced and removed"
        return Finding(about="run_dir", outcome=Outcome.OK, found=found, facts=facts)
    what = "created an object over one that was there" if facts["created_again"] else "does not give what was written"
    return Finding(
        about="run_dir",
        outcome=Outcome.FAULT,
        found=f"{run_dir}: the store {what}: two commands could work in one run, and a unit be committed twice",
        todo="take a store that knows conditional writes (If-None-Match: *), as S3, GCS and MinIO do",
        facts=facts,
    )


def nearest(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    whole = path.absolute()
    return next(each for each in (whole, *whole.parents) if each.exists())


# --- disks


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is to be written below a folder."""

    name: str
    folder: Path
    needed_bytes: int


def examine_disks(config: Config) -> Iterator[Finding]:
    """Compare what a run is going to write with the room that there is."""
    missing = [wrong.key for wrong in wrong_paths(config) if wrong.key != "run_dir"]
    expected, todo_bytes = None, 0
    if missing:
        yield Finding(
            about="estimate", outcome=Outcome.NOT_TRIED, found=f"it looks at the input, and {missing[0]} is not there"
        )
    else:
        try:
            config = adopt_settings(config)
            plans = plan_run(config)
            expected = estimate(config, plans)
        except (InputError, TransientError, WorkError, OSError) as error:
            yield Finding(about="estimate", outcome=Outcome.FAULT, found=one_line(error))
        else:
            todo_bytes = bytes_left(expected, plans)
            yield _describe_estimate(expected, todo_bytes)
    yield from judge_disks(_needs(config, expected, todo_bytes))


def bytes_left(expected: Estimate, plans: Iterable[Plan]) -> int:
    """What of the estimate is still to be written: by each stage's share of units that are not done."""
    sizes = {"pool": expected.pool_bytes, "render": expected.shard_bytes, "features": expected.feature_bytes}
    left = 0.0
    for plan in plans:
        if plan.stage.name not in sizes:
            continue
        done = len(plan.done)
        units = max(expected.units.get(plan.stage.listing, 0), done + len(plan.tasks) + len(plan.waiting))
        left += sizes[plan.stage.name] * (1 - done / units if units else 1.0)
    return round(left)


def _describe_estimate(expected: Estimate, todo_bytes: int) -> Finding:
    calls = ", ".join(f"{key} some {count:,} calls" for key, count in expected.model_calls.items())
    found = f"{expected.images:,} images, {expected.recordings:,} recordings, some {expected.clips:,} clips"
    found += f"; {todo_bytes / 1e9:,.2f} GB to write" + (f"; {calls}" if calls else "")
    facts = {
        "images": expected.images,
        "recordings": expected.recordings,
        "clips": expected.clips,
        "bytes_to_write": todo_bytes,
        "model_calls": dict(expected.model_calls),
    }
    return Finding(about="estimate", outcome=Outcome.OK, found=found, facts=facts)


def _needs(config: Config, expected: Estimate | None, todo_bytes: int) -> Iterator[Need]:
    if isinstance(config.run_dir, Path):
        yield Need(name="run_dir", folder=config.run_dir, needed_bytes=todo_bytes)
    unit = 0
    if expected is not None and not isinstance(config.run_dir, Path):  # each worker makes its unit there first
        units = max(1, expected.units.get("concepts", 1))
        largest = max(expected.shard_bytes / units, expected.feature_bytes / units)
        unit = round(largest) * (config.engine.workers or os.cpu_count() or 1)
    yield Need(name="TMPDIR", folder=Path(tempfile.gettempdir()), needed_bytes=unit)


def _hub_folder() -> Path:
    """Where models are fetched to, by the rules of huggingface_hub, which the light installation lacks."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def judge_disks(needs: Iterable[Need]) -> Iterator[Finding]:
    """Compare what is to be written with the room; what lies on one disk shares it."""
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(nearest(need.folder).stat().st_dev, []).append(need)
    for sharing in by_disk.values():
        free = shutil.disk_usage(nearest(sharing[0].folder)).free
        needed = sum(need.needed_bytes for need in sharing)
        places = ", ".join(f"{need.name} {need.folder}" for need in sharing)
        found = f"{free / 1e9:,.1f} GB free" + (f", {needed / 1e9:,.2f} GB to write" if needed else "")
        facts = {"free_bytes": free, "needed_bytes": needed}
        outcome, todo = Outcome.OK, ""
        if needed > free:
            outcome, todo = Outcome.FAULT, f"free some, or set {sharing[0].name} to a folder on a larger disk"
        elif needed + SPARE_BYTES > free:
            outcome, todo = Outcome.NOTE, f"less than {SPARE_BYTES / 1e9:.1f} GB to spare, which logs may take"
        yield Finding(about=f"disk of {places}", outcome=outcome, found=found, todo=todo, facts=facts)


# --- limits of the system


def examine_shared_memory(*, several_gpus: bool) -> Finding:
    """See how much memory the processes of this machine, or of this container, can share."""
    if not SHARED_MEMORY.is_dir():
        found, todo = f"{SHARED_MEMORY} is not there", "Ray will use files on a disk"
        return Finding(about="shared memory", outcome=Outcome.NOTE, found=found, todo=todo)
    room = shutil.disk_usage(SHARED_MEMORY)
    return judge_shared_memory(room.total, room.free, several_gpus=several_gpus)


def judge_shared_memory(total_bytes: int, free_bytes: int, *, several_gpus: bool) -> Finding:
    """Whether it is enough for Ray, and for what lies on several GPUs."""
    found = f"{SHARED_MEMORY} has {total_bytes / 1e9:,.2f} GB, {free_bytes / 1e9:,.2f} GB free"
    needed = SHARED_BYTES if several_gpus else RAY_SHARED_BYTES
    todo = ""
    if free_bytes < needed:
        what = "a model on several GPUs talks through it" if several_gpus else "Ray takes files on a disk instead"
        todo = f"{what}: docker run --shm-size=2g; on Kubernetes an emptyDir of medium Memory at /dev/shm"
    facts = {"total_bytes": total_bytes, "free_bytes": free_bytes}
    outcome = Outcome.NOTE if todo else Outcome.OK
    return Finding(about="shared memory", outcome=outcome, found=found, todo=todo, facts=facts)


def loader_bytes(
    *, workers: int, images: int, latent_shape: tuple[int, int, int], condition_shape: tuple[int, int], processes: int
) -> int:
    """What a training's loader processes on one node may hold in shared memory at once.

    Args:
        workers: loader processes of each training process.
        images: of a micro-batch.
        latent_shape: channels, height and width; noise of the same shape goes along.
        condition_shape: vectors and their width.
        processes: training processes of the node.
    """
    numbers = 2 * math.prod(latent_shape) + math.prod(condition_shape)
    return BATCHES_AHEAD * workers * processes * images * 4 * numbers


# --- what depends on the models


def examine_fit(config: Config, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Compare what was found of models with the GPUs' memory that was found, and with the disk they are fetched to."""
    rows = [finding.facts for finding in findings]
    sizes = {facts["model"]: facts["size_bytes"] for facts in rows if {"model", "size_bytes"} <= {*facts}}
    asks = asks_of(config)
    needed = {ask.key: sizes.get(ask.model, 0) for ask in asks}
    needed["retrieval.search"] = int(config.retrieval.search.memory_gib * 2**30)
    seen = next((finding.facts["found"] for finding in findings if finding.about == "gpu"), ())
    yield from judge_gpu_memory([Gpu(**gpu) for gpu in seen], asks, needed)
    to_fetch = sum(facts.get("missing_bytes", 0) for facts in rows)
    if to_fetch:
        yield from judge_disks([Need(name="HF_HOME", folder=_hub_folder(), needed_bytes=to_fetch)])

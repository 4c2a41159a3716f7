"""Many small images on several nodes of this machine: is the memory flat, and what does a unit cost the driver?

    python -m benchmarks.scale                        # 10,000 and 100,000 images of 1 KB in archives of 1,000
    python -m benchmarks.scale --images 20000 --unit 20
    python -m benchmarks.scale --plan 100000          # planning alone, over commits of that many units

Captions, the text encoder, two raylets with a CPU each. Prints a JSON line a run: images a second of each stage, the
processor time of the driver a unit (all stages), and the resident memory of the driver and of the largest worker, in
MB, at a tenth of the run and at its most in the last tenth. docs/scale.md says what follows for a billion images.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.scale", extra="dev"))

import io
import json
import os
import resource
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from benchmarks.inputs import SUBJECTS, write_sounds
from sonify import layout
from sonify.config import Config, make_config
from sonify.engine.plan import plan_stage
from sonify.engine.record import require_record
from sonify.io.commits import Commit, Count, record_of
from sonify.io.tars import TarWriter
from sonify.io.write import FileRecord
from sonify.running import run
from sonify.stages.table import stages_of
from sonify.terminal import Parser, run_command

NODES = 2
OBJECT_STORE_BYTES = 80 << 20
PICTURES = 50
SAMPLE_SEC = 0.5
STAGES = ("pool", "embeddings", "concepts/captions", "pair", "render")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--unit", type=int, default=1000)
    parser.add_argument("--plan", type=int, help="units")
    arguments = parser.parse_args(argv)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.plan:
                print(json.dumps(measure_plan(Path(folder), arguments.plan)))
                return
            write_sounds(Path(folder) / "sounds")
            for images in arguments.images:
                print(json.dumps(measure_run(Path(folder), images, arguments.unit)), flush=True)

    return run_command("benchmarks.scale", work)


def measure_run(root: Path, images: int, unit: int) -> dict[str, object]:
    """Do a run on a cluster of this machine and watch its processes."""
    archives = root / f"images-{images}"
    write_archives(archives, images, unit)
    with two_nodes() as address, Watch() as watch:
        config = config_of(root, archives, address)
        started, cpu = time.monotonic(), os.times()
        run(config)
        seconds = time.monotonic() - started
        ended = os.times()
    cpu_sec = ended.user + ended.system - cpu.user - cpu.system
    stages = require_record(config.run_dir).stages
    units = images // unit
    return {
        "name": "scale",
        "images": images,
        "units": units,
        "seconds": round(seconds, 1),
        "images_per_sec": {key: round(stages[key].rows / stages[key].seconds, 1) for key in STAGES[2:]},
        "driver_cpu_ms_per_unit": round(1000 * cpu_sec / (3 * units), 2),
        **watch.megabytes(),
    }


@contextmanager
def two_nodes() -> Iterator[str]:
    """A Ray cluster of raylets on this machine, which listen on loopback."""
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    cluster = Cluster()
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, node_ip_address="127.0.0.1")
        yield str(cluster.address)
    finally:
        cluster.shutdown()


class Watch:
    """Samples the resident memory of this process and of Ray's workers."""

    def __enter__(self) -> "Watch":
        self._samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        driver = psutil.Process()
        while not self._ended.wait(SAMPLE_SEC):
            workers = [0.0]
            for child in driver.children(recursive=True):
                try:
                    if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::"):
                        workers.append(child.memory_info().rss / 1e6)
                except psutil.Error:
                    continue  # it ended meanwhile
            self._samples.append((driver.memory_info().rss / 1e6, max(workers)))

    def megabytes(self) -> dict[str, float]:
        """Memory at a tenth of the time, and the most of the last tenth and of all."""
        tenth = max(1, len(self._samples) // 10)
        early, late = self._samples[tenth - 1], [max(column) for column in zip(*self._samples[-tenth:], strict=True)]
        most = [max(column) for column in zip(*self._samples, strict=True)]
        names = ("driver", "worker")
        return {
            f"{name}_mb_{when}": round(values[n], 1)
            for n, name in enumerate(names)
            for when, values in (("early", early), ("late", late), ("most", most))
        }


def write_archives(folder: Path, images: int, unit: int) -> None:
    """Archives of different images of about 1 KB, each with a caption that names one to three sounds."""
    folder.mkdir()
    pictures = [_picture(seed) for seed in range(PICTURES)]
    rng = np.random.default_rng(0)
    for first in range(0, images, unit):
        with (folder / f"{first // unit:06d}.tar").open("wb") as file:
            archive = TarWriter(file)
            for n in range(first, first + unit):
                named = " and a ".join(rng.choice(SUBJECTS, 1 + n % 3, replace=False))
                archive.add(f"{n:08d}.jpg", pictures[n % PICTURES])
                archive.add(f"{n:08d}.txt", f"a photo of a {named}".encode())
            archive.close()


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def config_of(root: Path, archives: Path, address: str) -> Config:
    """A run over the archives with the default settings."""
    return make_config(
        {
            "run_dir": str(root / f"run-{archives.name}"),
            "images": {"kind": "webdataset", "path": str(archives), "validation": 0},
            "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}], "validation": 0},
            "engine": {"address": address},
        }
    )


def measure_plan(root: Path, units: int) -> dict[str, object]:
    """Write the commits of a stage's units, as they would stand after a run, and plan the stage again."""
    write_archives(root / "images", 1, 1)
    write_sounds(root / "sounds")
    config = config_of(root, root / "images", "")
    stage = next(stage for stage in stages_of(config) if stage.name == "concepts")
    listing = config.run_dir / layout.UNITS / "concepts"
    commits = config.run_dir / layout.COMMITS / stage.name / stage.digest
    for folder in (listing, commits, config.run_dir / layout.CONCEPTS / stage.part):
        folder.mkdir(parents=True)
    for n in range(units):
        unit = f"{n:06d}"
        (listing / f"{unit}.parquet").write_bytes(b"")
        path = layout.concepts(stage.part, unit)
        (config.run_dir / path).write_bytes(b"")
        count = Count(rows_in=10_000, rows_out=9_800, rejected={"no_concepts": 150, "discarded": 50})
        files = (FileRecord(path=path, size_bytes=0, sha256="0" * 64),)
        commit = Commit(stage=stage.name, unit=unit, digest=stage.digest, inputs={"listing": EMPTY}, rows=count,
                        clips=None, files=files)  # fmt: skip
        (commits / f"{unit}.json").write_bytes(record_of(commit))
    started = time.monotonic()
    plan = plan_stage(config.run_dir, stage, {})
    seconds = time.monotonic() - started
    assert len(plan.done) == units, plan.stale
    tracemalloc.start()
    again = plan_stage(config.run_dir, stage, {})
    held, _ = tracemalloc.get_traced_memory()
    assert again.done == plan.done
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {
        "name": "plan",
        "units": units,
        "seconds": round(seconds, 2),
        "microseconds_per_unit": round(1e6 * seconds / units, 1),
        "bytes_held_per_unit": round(held / units),
        "driver_mb_most": round(most, 1),
    }


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # the sha256 of nothing

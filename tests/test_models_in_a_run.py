"""Real models at tiny size through whole runs on Ray: the same bytes over workers, kills and executors."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from sonify.config import Config, make_config
from sonify.engine.record import require_record
from sonify.errors import InputError
from sonify.running import run
from tests.builders import hash_run, small_config, tone, write_csv, write_photos, write_sound, write_sounds
from tests.processes import meanwhile, ray_workers
from tests.tiny_networks import answering_llava, answering_qwen_vl, tiny_clap

LLAVA_SAYS = "Caption: a dog on grass.\ndog: sound of a dog barking (foreground)\nwind: wind in the trees (ambience)"
QWEN_SAYS = "**Caption**: waves on a beach.\n1. **waves**: waves breaking on the shore (background)"
OTHER = "Caption: a street.\ncar: a car passing by (foreground)"
PHOTOS = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of the three models, taught in a few seconds each."""
    folder = tmp_path_factory.mktemp("models")
    red, blue = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    answering_llava(folder / "llava", [(red, LLAVA_SAYS), (blue, OTHER)])
    answering_qwen_vl(folder / "qwen", [(red, QWEN_SAYS), (blue, OTHER)])
    tiny_clap(folder / "clap")
    return folder


@pytest.fixture
def configure(tmp_path, models) -> Callable[..., Config]:
    """Runs over red and blue photos and some tones, with two models that look and one that listens."""
    write_photos(tmp_path / "photos", {f"{n:02d}.jpg": "" for n in range(PHOTOS)}, table=False)
    for n in range(PHOTOS):
        colour = "red" if n % 3 else "blue"
        Image.new("RGB", (90 + n, 70), colour).save(tmp_path / "photos" / f"{n:02d}.jpg", quality=95)
    write_sounds(tmp_path / "sounds", {f"{n:02d}.flac": "" for n in range(6)})
    sections = models_of(models) | {"images": {"shard_size": 4}}
    return lambda run_name, **engine: small_config(tmp_path, run_name, engine=engine, **sections)


def models_of(models: Path) -> dict[str, object]:
    def vlm(name: str) -> dict[str, object]:
        return {
            "kind": "vlm", "name": name, "backend": "transformers", "model": str(models / name), "batch_size": 4,
            "max_new_tokens": 48, "device": "cpu",
        }  # fmt: skip

    clap = {"kind": "clap", "model": str(models / "clap"), "device": "cpu"}
    return {
        "concepts": {"extractors": [vlm("llava"), vlm("qwen")]},
        "retrieval": {"encoder": clap, "min_cosine": -1},
    }


def test_models_give_the_same_bytes_here_and_on_ray_with_workers_killed(configure):
    straight = configure("straight", kind="local")
    counts = run(straight)
    assert counts["concepts/llava"].rows_out == counts["concepts/qwen"].rows_out == PHOTOS
    assert counts["render"].rows_out == 2 * PHOTOS
    said = {row["answer"] for row in pq.read_table(straight.run_dir / "concepts" / "llava").to_pylist()}
    assert said == {LLAVA_SAYS, OTHER}
    expected = hash_run(straight.run_dir)

    killed = configure("killed", kind="ray", workers=2)
    kills = run_killing_workers(killed)
    assert kills >= 3
    assert hash_run(killed.run_dir) == expected


def run_killing_workers(config: Config) -> int:
    """Kill a worker soon after the first unit of each stage that asks a model is begun."""
    waiting = ["commits/pool", "commits/embeddings", "commits/concepts"]
    kills: list[int] = []

    def kill() -> bool:
        if (config.run_dir / waiting[0]).is_dir() and (pids := ray_workers()):
            waiting.pop(0)
            os.kill(pids[0], signal.SIGKILL)
            kills.append(pids[0])
        return not waiting

    with meanwhile(kill):
        run(config)
    return len(kills)


def test_what_was_loaded_is_recorded(configure, models):
    config = configure("run", kind="local")
    run(config, stages=("pool", "embeddings"))
    run(config, stages=("concepts",))
    record = require_record(config.run_dir)
    assert set(record.models) == {str(models / name) for name in ("llava", "qwen", "clap")}
    assert {"torch", "transformers"} <= set(record.versions)


def test_a_grown_pool_embeds_only_what_is_new(configure, tmp_path):
    config = configure("run", kind="local")
    run(config, stages=("pool", "embeddings"))
    embeddings = sorted((config.run_dir / "pool" / "embeddings").glob("*/*.npy"))
    before = [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in embeddings]
    write_sound(tmp_path / "sounds" / "new.flac", tone(0, 7.0))

    run(config, stages=("pool", "embeddings"))

    assert all(path.stat().st_mtime_ns == mtime for path, mtime, _ in before)
    assert len(sorted((config.run_dir / "pool" / "embeddings").glob("*/*.npy"))) == len(before) + 1

    write_csv(tmp_path / "sounds" / "metadata.csv", ("file", "text"), [("00.flac", "another text")])
    run(config, stages=("pool", "embeddings"), redo="pool")
    assert all(path.read_bytes() == data for path, _, data in before)


def test_other_weights_under_the_same_name_are_refused_and_then_asked(configure, models, tmp_path):
    shutil.copytree(models / "llava", tmp_path / "own")
    raw = configure("run", kind="local").model_dump(mode="json")
    raw["concepts"]["extractors"] = [raw["concepts"]["extractors"][0] | {"model": str(tmp_path / "own")}]
    config = make_config(raw)
    run(config, stages=("concepts",))
    shutil.copytree(models / "qwen", tmp_path / "own", dirs_exist_ok=True)
    shutil.copy(tmp_path / "photos" / "00.jpg", tmp_path / "photos" / "new.jpg")

    with pytest.raises(InputError, match=r"use the same files, or `.*--redo concepts`"):
        run(config, stages=("concepts",))
    run(config, stages=("concepts",), redo="concepts")

    said = {row["answer"] for row in pq.read_table(config.run_dir / "concepts" / "llava").to_pylist()}
    assert said == {QWEN_SAYS, OTHER}

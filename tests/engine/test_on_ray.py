"""Ray's workers and its driver are killed, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sonify.errors import InputError
from sonify.running import run
from tests.builders import hash_run, picture, small_config, small_input
from tests.processes import meanwhile, ray_workers, run_first

STAGES = ("pool", "embeddings", "concepts/captions", "pair", "render")
RAY = {"kind": "ray", "workers": 2}
IMAGES = {"shard_size": 2}

DRIVER = f"""
import sys
from pathlib import Path
from sonify.running import run
from tests.builders import small_config
run(small_config(Path(sys.argv[1]), run="ray", images={IMAGES}, engine={RAY}))
"""

KILLER = """
import os, signal, sys
if any("default_worker" in word for word in sys.orig_argv):
    from sonify.stages import concepts
    inspect = concepts.inspect_image
    def kills(data):
        if data.endswith(b"deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        return inspect(data)
    concepts.inspect_image = kills
"""


def begun_stages(run_dir: Path) -> set[str]:
    """The stages that a run has begun: those before them have a commit for each of their units."""
    begun = set()
    for stage in STAGES:
        name = stage.partition("/")[0]
        listing = "pool" if name in ("pool", "embeddings") else "concepts"
        units = len(list((run_dir / "units" / listing).glob("*.parquet")))
        if not units:
            break
        begun.add(stage)
        if len(list((run_dir / "commits" / name).glob("*/*.json"))) < units:
            break
    return begun


@pytest.fixture
def root(tmp_path):
    small_input(tmp_path, photos=48)
    run(small_config(tmp_path, run="local", images=IMAGES))
    return tmp_path


def test_a_worker_killed_in_each_stage_is_replaced(root):
    killed: dict[str, int] = {}

    def kill_one_in_each_stage() -> bool:
        begun = [stage for stage in STAGES if stage in begun_stages(root / "ray") and stage not in killed]
        for stage, pid in zip(begun, ray_workers(), strict=False):
            os.kill(pid, signal.SIGKILL)
            killed[stage] = pid
        return len(killed) == len(STAGES)

    with meanwhile(kill_one_in_each_stage):
        run(small_config(root, run="ray", images=IMAGES, engine=RAY))
    assert set(killed) == set(STAGES)
    assert hash_run(root / "ray") == hash_run(root / "local")


def test_a_driver_that_is_killed_again_and_again_resumes(root):
    for stage in ("pool", "concepts/captions", "render"):  # each start costs Ray's
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(root)])
        while stage not in begun_stages(root / "ray") and driver.poll() is None:
            time.sleep(0.02)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, stage
    run(small_config(root, run="ray", images=IMAGES, engine=RAY))
    assert hash_run(root / "ray") == hash_run(root / "local")


def test_rows_that_kill_their_worker_are_found_and_rejected(tmp_path, monkeypatch):
    small_input(tmp_path, photos=20)
    for name in ("003.jpg", "012.jpg"):
        (tmp_path / "photos" / name).write_bytes(picture(1) + b"deadly")
    run_first(monkeypatch, tmp_path, KILLER)
    counts = run(small_config(tmp_path, engine=RAY))
    assert counts["concepts/captions"].rejected == {"crashed": 2}
    assert counts["concepts/captions"].balances()


def test_a_cluster_elsewhere_needs_a_token_and_an_absolute_run_directory(tmp_path, monkeypatch):
    small_input(tmp_path, photos=2)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    elsewhere = {"kind": "ray", "address": "192.0.2.77:6379"}
    with pytest.raises(InputError, match="RAY_AUTH_MODE=token on all nodes"):
        run(small_config(tmp_path, engine=elsewhere))
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.77:6379")  # which is what `auto` stands for
    with pytest.raises(InputError, match="RAY_AUTH_MODE=token on all nodes"):
        run(small_config(tmp_path, engine={"kind": "ray", "address": "auto"}))
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(InputError, match="Ray client's"):
        run(small_config(tmp_path, engine={"kind": "ray", "address": "ray://192.0.2.77:10001"}))
    relative = small_config(tmp_path, engine=elsewhere | {"unauthenticated": True})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="absolute path that all nodes see"):
        run(relative.model_copy(update={"run_dir": Path("run")}))

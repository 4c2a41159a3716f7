"""What ships is taken by those who will run it, and our own checks agree with theirs."""

import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import _get_excludes, create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from sonify.doctor.findings import Outcome
from sonify.doctor.jobs import examine_jobs
from sonify.doctor.jobs.supplies import GO, STAY, is_left_out

ROOT = Path(__file__).parents[2]
JOBS = sorted(path for path in (ROOT / "jobs").iterdir() if path.is_file())
CLUSTERS = [path for path in JOBS if path.suffix == ".yaml" and "cluster_name:" in path.read_text()]


def test_rays_launcher_takes_the_cluster_file():
    assert len(CLUSTERS) == 1
    config = yaml.safe_load(CLUSTERS[0].read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(prepare_config(config | {"idle_timeout_minuets": 1}))


def test_ray_takes_the_runtime_environment():
    raw = yaml.safe_load((ROOT / "jobs/runtime-env.yaml").read_text())
    assert set(raw) <= RuntimeEnv.known_fields - {"pip", "uv", "conda"}
    assert RuntimeEnv(**raw, working_dir=".")["excludes"] == raw["excludes"]


def test_a_job_takes_the_code_and_the_configurations_and_nothing_else(tmp_path):
    """As `ray job submit --working-dir .` packs a checkout in which somebody has worked."""
    kept = ["configs/sonify/sam.yaml", "eval/study.py", "mine.yaml", "sonify/captions/kinds.csv", "train/pixart.py"]
    left = [".venv/bin/python", "photos/a.jpg", "runs/mine/run.json", "sonify/__pycache__/cli.pyc", "sounds/a.opus"]
    for name in [*kept, *left, "a.wav"]:
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text("x")
    excludes = yaml.safe_load((ROOT / "jobs/runtime-env.yaml").read_text())["excludes"]
    create_package(str(tmp_path / "checkout"), tmp_path / "job.zip", include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(tmp_path / "job.zip") as package:
        assert sorted(name for name in package.namelist() if not name.endswith("/")) == sorted(kept)


@pytest.mark.parametrize(
    "patterns",
    [
        yaml.safe_load((ROOT / "jobs/runtime-env.yaml").read_text())["excludes"],
        ["runs/", "*.jpg", ".venv*"],
        ["/*", "!/train", "!/sounds"],
        ["**/a.wav", "sonify/cli.py", "configs/*/sam.yaml"],
        ["runs", "!runs/mine/run.json", "photos/*"],
    ],
    ids=lambda patterns: " ".join(patterns)[:40],
)
def test_what_is_left_out_is_what_ray_leaves_out(tmp_path, patterns):
    excludes = _get_excludes(tmp_path, patterns)
    for name in (*STAY, *GO):
        # a folder that is left out is not looked into
        parts = name.split("/")
        left = any(excludes(tmp_path.joinpath(*parts[:n])) for n in range(1, len(parts) + 1))
        assert is_left_out(name, patterns) == left, name


def test_each_file_opens_with_what_it_is_for():
    for path in (path for path in JOBS if path.suffix in (".yaml", ".sh") or path.name == "Dockerfile"):
        text = path.read_text()
        assert text.splitlines()[path.suffix == ".sh"].startswith("# "), path
        assert "# Needs: " in text, path


def test_a_linter_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    shutil.copy(ROOT / "jobs" / "Dockerfile", tmp_path)
    told = [each.found for each in examine_jobs(tmp_path) if each.outcome is Outcome.NOT_TRIED]
    assert told == ["hadolint is not installed"]

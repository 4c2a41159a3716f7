"""What jobs/ holds is read by those who will run it: Ray's launcher, bash, and our own commands."""

import re
import shlex
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from sonify.cli import build_parser
from sonify.config import Config, Section
from sonify.config.loader import make_settings
from train.config import TrainConfig

ROOT = Path(__file__).parents[1]
JOBS = sorted(path for path in (ROOT / "jobs").iterdir() if path.is_file())
SCRIPTS = [path for path in JOBS if path.suffix == ".sh"]


def commands_in(path: Path) -> list[list[str]]:
    """The commands of ours that a file holds, in comments too, with the defaults of a shell's variables."""
    text = re.sub(r"^\s*# ?", "", path.read_text(), flags=re.M)
    text = re.sub(r"\\\n\s*", "", text)
    text = re.sub(r"(python -m sonify .*)\n\s*(\w+\.\w+.*)", r"\1 \2", text)  # YAML's folded lines
    text = text.replace('"$@"\' -- ', "").replace('"$@"', "").replace('"${SLURM_NTASKS}"', "8").replace("$PWD", "/here")
    text = re.sub(r"\s(&|\|\| .*)$", "", text, flags=re.M)
    text = text.replace(
        '"${config}"', f"configs/{'train/pixart_xl_512' if 'train' in path.name else 'sonify/sam'}.yaml"
    )
    return [shlex.split(found) for found in re.findall(r"-m ((?:sonify|train\.pixart) .*)", text)]


COMMANDS = [
    pytest.param(command, id=f"{path.name}-{n}") for path in JOBS for n, command in enumerate(commands_in(path))
]


def load(command: list[str]) -> Section:
    """The configuration of a command; its paths are not looked for: the cluster's disks are not here."""
    module, *words = command
    if module == "sonify":
        arguments, overrides = build_parser().parse_known_args(words)
        return make_settings(overridden(arguments.config, overrides), Config, check_paths=False)
    assert words[0] == "--config"
    return make_settings(overridden(Path(words[1]), words[2:]), TrainConfig, check_paths=False)


def overridden(path: Path, overrides: list[str]) -> dict[str, Any]:
    """A file with `a.b=value` overrides applied, each to a section that the file has."""
    raw = yaml.safe_load((ROOT / path).read_text())
    for key, text in (override.split("=", 1) for override in overrides):
        node: Any = raw
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in parents:
            node = node[part]
        node[last] = yaml.safe_load(text)
    return raw


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_ours_has_a_configuration_that_loads(command):
    config = load(command)
    if isinstance(config, Config):
        assert str(config.run_dir).startswith(("/", "s3://"))


def test_the_files_hold_commands_and_open_with_what_they_are_for():
    assert len(COMMANDS) >= 6
    for path in JOBS:
        first = path.read_text().splitlines()[path.suffix == ".sh"]
        assert first.startswith("# ") or path.suffix == ".lock", path
    for path in JOBS:
        assert path.suffix in (".md", ".in", ".lock") or "# Needs: " in path.read_text(), path


def test_rays_launcher_takes_the_cluster_file():
    config = yaml.safe_load((ROOT / "jobs/ray-up.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(prepare_config(config | {"idle_timeout_minuets": 1}))


def test_ray_takes_the_runtime_environment():
    raw = yaml.safe_load((ROOT / "jobs/runtime-env.yaml").read_text())
    assert RuntimeEnv(**raw, working_dir=".")
    assert not {"pip", "uv", "conda"} & set(raw)


@pytest.mark.parametrize("name", ["rayjob", "raycluster"])
def test_kuberays_files_name_this_ray_ask_for_tokens_and_hold_no_secret(name):
    spec = yaml.safe_load((ROOT / f"jobs/{name}.yaml").read_text())["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [group["template"]["spec"]["containers"][0] for group in groups]
    assert all(entry["name"] == "HF_HOME" for container in containers for entry in container["env"])
    assert all(container["envFrom"][0]["secretRef"]["name"] == "sonify-secrets" for container in containers)
    assert [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers] == [None, "1", None]
    assert [container["image"] for container in containers] == [
        f"REGISTRY/sonify:{kind}" for kind in ("gpu", "gpu", "cpu")
    ]


def test_a_job_takes_the_code_and_the_configurations_and_nothing_else(tmp_path):
    """As `ray job submit --working-dir .` packs a checkout in which somebody has worked."""
    kept = ["configs/sonify/sam.yaml", "eval/study.py", "mine.yaml", "sonify/captions/kinds.csv", "train/pixart.py"]
    left = [
        ".venv/bin/python",
        "photos/a.jpg",
        "runs/mine/run.json",
        "sonify/__pycache__/cli.pyc",
        "sounds/a.opus",
        "a.wav",
    ]
    for name in kept + left:
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text("x")
    excludes = yaml.safe_load((ROOT / "jobs/runtime-env.yaml").read_text())["excludes"]
    create_package(str(tmp_path / "checkout"), tmp_path / "job.zip", include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(tmp_path / "job.zip") as package:
        assert sorted(name for name in package.namelist() if not name.endswith("/")) == sorted(kept)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_scripts(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=True).stderr == b""
    assert "set -euo pipefail" in path.read_text()


def test_two_nodes_of_gpus_still_divide_the_batch():
    """As slurm-train.sh's second example asks."""
    config = load(["train.pixart", "--config", "configs/train/pixart_xl_512.yaml", "devices=16", "data.runs.0=/r"])
    assert isinstance(config, TrainConfig)
    assert config.batch.total % (config.batch.per_device * 16) == 0

"""What jobs/ holds is read by those who will run it: Ray's launcher, bash, and our own commands."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
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
    text = re.sub(r"(python -m sonify .*)\n\s*(engine\..*)", r"\1 \2", text)  # YAML's folded lines
    text = text.replace('"${config}"', "${CONFIG:-configs/train/pixart_xl_512.yaml}")
    text = re.sub(r"\$\{CONFIG:-([^}]*)\}", r"\1", text).replace('"$@"', "")
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
        assert first.startswith("# "), path
    for path in JOBS:
        assert path.suffix == ".md" or "# Needs: " in path.read_text(), path


def test_rays_launcher_takes_the_cluster_file():
    config = yaml.safe_load((ROOT / "jobs/ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(prepare_config(config | {"idle_timeout_minuets": 1}))


def test_ray_takes_the_runtime_environment():
    raw = yaml.safe_load((ROOT / "jobs/runtime-env.yaml").read_text())
    assert RuntimeEnv(**raw, working_dir=".")
    assert not {"pip", "uv", "conda"} & set(raw)


def test_the_rayjob_names_this_ray_asks_for_tokens_and_holds_no_secret():
    job = yaml.safe_load((ROOT / "jobs/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [group["template"]["spec"]["containers"][0] for group in groups]
    secrets = [entry for container in containers for entry in container["env"] if entry["name"] != "HF_HOME"]
    assert len(secrets) == 9
    assert all(entry["valueFrom"]["secretKeyRef"]["name"] == "sonify-secrets" for entry in secrets)
    assert [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers] == [None, "1", None]
    workers = sum(group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert workers > 0


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_scripts(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=True).stderr == b""
    assert "set -euo pipefail" in path.read_text()


def test_two_nodes_of_gpus_still_divide_the_batch():
    """As slurm-train.sh's second example asks."""
    config = load(["train.pixart", "--config", "configs/train/pixart_xl_512.yaml", "devices=16", "data.runs.0=/r"])
    assert isinstance(config, TrainConfig)
    assert config.batch.total % (config.batch.per_device * 16) == 0

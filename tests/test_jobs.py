"""What jobs/ holds is read by those who will run it: Ray's launcher, bash, and our own commands."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from sonify.cli import build_parser
from sonify.config import Config, Section, load_settings
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


def load(command: list[str], monkeypatch) -> Section:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sonify.config.loader._check_paths", lambda *_: None)  # the cluster's disks are not here
    module, *words = command
    if module == "sonify":
        arguments, overrides = build_parser().parse_known_args(words)
        return load_settings(arguments.config, overrides, Config)
    assert words[0] == "--config"
    return load_settings(Path(words[1]), words[2:], TrainConfig)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_ours_has_a_configuration_that_loads(command, monkeypatch):
    config = load(command, monkeypatch)
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


def test_two_nodes_of_gpus_still_divide_the_batch(monkeypatch):
    """As slurm-train.sh's second example asks."""
    [config] = [
        load(command, monkeypatch)
        for command in [
            ["train.pixart", "--config", "configs/train/pixart_xl_512.yaml", "devices=16", "data.runs.0=/r"]
        ]
    ]
    assert isinstance(config, TrainConfig)
    assert config.batch.total % (config.batch.per_device * 16) == 0

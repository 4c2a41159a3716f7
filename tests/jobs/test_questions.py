"""Questions that the shipped folder gives no occasion for, asked about small folders."""

import pytest

from sonify.doctor.findings import Outcome
from sonify.doctor.jobs import examine_jobs

POD = """\
# A pod.
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
    - name: a
      image: example.org/a
      command: [python, -c, "print('$(A)')"]
      env:
        - {name: A, value: b}
"""
RAYJOB = """\
# A job of Ray's.
apiVersion: ray.io/v1
kind: RayJob
metadata: {name: a}
spec:
  entrypoint: python -m sonify run --config laptop run_dir=s3://b/r images.path=s3://b/i audio.sources.0.path=s3://b/s
  rayClusterSpec:
    authOptions: {mode: token}
    headGroupSpec:
      rayStartParams: {num-cpus: "0"}
      template: {spec: {containers: [{name: a, image: example.org/a}]}}
    workerGroupSpecs:
      - groupName: cpu
        minReplicas: 0
        maxReplicas: 2
        template: {spec: {containers: [{name: a, image: example.org/a}]}}
"""
DOCKERFILE = "FROM python:3.11\nCOPY a.py /a.py\n"
AWS = """\
# A cluster.
cluster_name: a
provider: {type: aws, region: b}
head_node_type: head
docker: {image: example.org/a, container_name: a, run_options: [--env RAY_AUTH_MODE=token]}
available_node_types:
  head: {node_config: {}, resources: {CPU: 0}}
  more: {node_config: {}, resources: {CPU: 1}, min_workers: 0, max_workers: 2}
"""


def examine(folder, name, text, old="", new=""):
    """What is found at which line, where a part of a file is another one."""
    assert old in text
    folder = folder / "jobs"
    folder.mkdir()
    (folder / name).write_text(text.replace(old, new, 1) if old else text)
    return [
        (int(each.about.rpartition(":")[2]), each.outcome, each.found)
        for each in examine_jobs(folder)
        if ":" in each.about
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("$(A)", "$(B)", 9, "a: $(B) is no variable of the container"),
        ("{name: A, value: b}", "{name: HF_TOKEN, value: b}", 11, "HF_TOKEN stands here as a value"),
        (
            "value: b",
            "valueFrom: {secretKeyRef: {name: s, key: k}}",
            11,
            "nobody is told how to make k of the secret s",
        ),
        ("      image: example.org/a\n", "", 7, "a: no image"),
        ("kind: Pod", "kind: Pad", 2, "a kind that is not looked into"),
        ("apiVersion: v1", "apiVersion: [v1]", 2, "apiVersion and kind name nothing of Kubernetes"),
    ],
)
def test_a_pods_mistakes_are_found(tmp_path, old, new, line, said):
    found = examine(tmp_path, "a.yaml", POD, old, new)
    assert any(at == line and said in what for at, _, what in found), found


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('num-cpus: "0"', "num-cpus: 0", 10, "rayStartParams.num-cpus: expected a text in quotes"),
        ("  entrypoint:", "  # entrypoint:", 5, "a RayJob without entrypoint"),
        ("authOptions: {mode: token}", "authOptions: token", 8, "authOptions: expected"),
        ("kind: RayJob", "kind: RayServe", 2, "a kind of KubeRay's that is not looked into"),
        ("  rayClusterSpec:", "  clusterSpec:", 5, "a RayJob without rayClusterSpec or clusterSelector"),
    ],
)
def test_a_rayjobs_mistakes_are_found(tmp_path, old, new, line, said):
    found = examine(tmp_path, "a.yaml", RAYJOB, old, new)
    assert any(at == line and said in what for at, _, what in found), found


def test_a_field_that_this_kuberay_has_not_may_be_a_newer_ones(tmp_path):
    found = examine(tmp_path, "a.yaml", RAYJOB, "  entrypoint:", "  shutdownAfterJobFinished: true\n  entrypoint:")
    said = "KubeRay 1.5 has no field shutdownAfterJobFinished in spec; did you mean shutdownAfterJobFinishes?"
    assert (6, Outcome.NOTE, said) in found


@pytest.mark.parametrize(
    ("where", "outcome"),
    [
        ("{name: a, image: example.org/a}", Outcome.FAULT),
        ("{name: a, image: example.org/a, envFrom: [{secretRef: {name: s}}]}", None),
    ],
)
def test_the_variable_that_a_key_is_in_is_set_where_workers_run(tmp_path, where, outcome):
    text = RAYJOB.replace("--config laptop", "--config mine.yaml").replace("{name: a, image: example.org/a}", where)
    config = (
        "run_dir: s3://b/r\nimages: {kind: folder, path: s3://b/i}\naudio: {sources: [{kind: folder, path: s3://b/s}]}\n"
        "concepts: {extractors: [{kind: vlm, name: a, model: b, backend: endpoint, url: 'http://a:1/v1',"
        " api_key_env: VLM_API_KEY}]}\n"
    )
    (tmp_path / "mine.yaml").write_text(config)
    found = [each for each in examine(tmp_path, "a.yaml", text) if "VLM_API_KEY" in each[2]]
    assert {(at, each) for at, each, _ in found} == ({(6, outcome)} if outcome else set())


def test_people_with_gpus_are_told_which_driver(tmp_path):
    lock = "cuda-toolkit==13.0.3.0\n"
    (tmp_path / "requirements.lock").write_text(lock)
    found = examine(tmp_path, "Dockerfile", DOCKERFILE)
    assert any("the lock's CUDA 13 needs a driver of 580 or newer" in what for _, _, what in found)


def test_people_who_are_told_which_driver_are_told(tmp_path):
    (tmp_path / "requirements.lock").write_text("cuda-toolkit==13.0.3.0\n")
    found = examine(tmp_path, "Dockerfile", f"# Needs: a driver of 580 or newer.\n{DOCKERFILE}")
    assert not any("driver" in what for _, _, what in found)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("head_node_type: head", "head_node_type: heads", 4, "head_node_type is 'heads', none of available_node_types"),
        ("container_name: a", "containers: a", 5, "Ray's launcher refuses it: Additional properties"),
    ],
)
def test_a_cluster_files_mistakes_are_found(tmp_path, old, new, line, said):
    found = examine(tmp_path, "a.yaml", AWS, old, new)
    assert any(at == line and said in what for at, _, what in found), found


@pytest.mark.parametrize(
    ("text", "line", "outcome", "said"),
    [
        ("excludes: [a]\nenv_vars: {A: 1}\n", 2, Outcome.FAULT, "Ray refuses env_vars"),
        ("excludes: a\n", 1, Outcome.FAULT, "Ray refuses excludes"),
    ],
)
def test_a_runtime_environments_mistakes_are_found(tmp_path, text, line, outcome, said):
    found = examine(tmp_path, "a.yaml", text)
    assert any(at == line and each is outcome and said in what for at, each, what in found), found


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("ray start --head\nray stop\n", {1, 2}),
        ("#SBATCH --exclusive\nray start --head\nray stop\n", set()),
        ("ray start --address a:6379 --block\n", set()),
        ("trap 'kill 1; ray stop' EXIT\n", {1}),
        ("echo 'a; ray stop'\n", set()),
    ],
)
def test_another_ray_is_met_where_the_machine_is_shared(tmp_path, text, lines):
    found = examine(tmp_path, "a.sh", text)
    assert {at for at, _, what in found if "meets another Ray" in what or "ends every Ray" in what} == lines


def test_a_script_that_goes_on_behind_a_failure_is_noted(tmp_path):
    assert (1, Outcome.NOTE, "goes on behind a command that failed") in examine(tmp_path, "a.sh", "echo\n")

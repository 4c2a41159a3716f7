"""A folder of anybody's: whatever lies in it is a finding, nothing of it is run, and nothing ends in a traceback."""

import os

import pytest

from sonify.doctor.findings import Outcome
from sonify.doctor.jobs import examine_jobs
from sonify.doctor.jobs.text import MAX_BYTES, MAX_VALUES

JOB = """\
# A job.
apiVersion: batch/v1
kind: Job
metadata: {name: a}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
        - {name: a, image: %s, command: [python, -m, sonify, run, --config, %s]}
"""
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

RAY = "apiVersion: ray.io/v1\n"


def examine(folder, **files):
    """What is found in a folder of these files, by outcome; `__` stands for a dot in a name."""
    folder = folder / "theirs"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(examine_jobs(folder))


def said(findings, outcome):
    """The findings of an outcome as lines."""
    return [f"{os.path.basename(each.about)}: {each.found}" for each in findings if each.outcome is outcome]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [1, 2\n", "a.yaml:2: not read: not YAML: expected ',' or ']'"),
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3: not read: a stands in line 1 already"),
        (b"\xff\xfe\x00", "a.yaml:1: not read: not text in UTF-8"),
        ("a: 1\nb: \0\n", "a.yaml:2: not read: not text"),
        ("a: &a [*a]\n", "a.yaml:1: not read: a value that holds itself"),
        (LAUGHS, f"not read: more than {MAX_VALUES:,} values"),
        ("[" * 900, "a.yaml:1: not read: not YAML: maximum recursion depth exceeded"),
        (b"#" * (MAX_BYTES + 1), "a.yaml:1: not read: larger than 1 MiB"),
        (
            "!!python/object/apply:os.system ['touch HERE']\n",
            "not read: not plain YAML: tag:yaml.org,2002:python/object/apply:os.system",
        ),
    ],
    ids=["open", "twice", "bytes", "nul", "itself", "laughs", "deep", "large", "code"],
)
def test_what_cannot_be_read_is_a_fault_with_its_line(tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    faults = said(examine(tmp_path, a__yaml=content), Outcome.FAULT)
    assert any(expected in fault for fault in faults), faults
    assert not (tmp_path / "HERE").exists()


def test_what_is_no_job_is_a_note(tmp_path):
    findings = examine(tmp_path, a__yaml="colour: blue\n", b__bin=b"\xff\xff", c__txt="hello\n")
    assert said(findings, Outcome.FAULT) == []
    assert said(findings, Outcome.NOTE) == [
        "b.bin:1: not read: not text in UTF-8",
        "a.yaml:1: of a kind that is not known here: not looked into",
    ]


def test_a_folder_that_is_not_there_or_empty_is_a_fault(tmp_path):
    assert [each.found for each in examine_jobs(tmp_path / "nowhere")] == ["no such folder"]
    assert [each.found for each in examine_jobs(tmp_path)] == ["holds no file"]


def test_no_file_outside_of_the_set_is_opened(tmp_path):
    """A pipe that nobody writes would never end."""
    os.mkfifo(tmp_path / "pipe.yaml")
    findings = examine(tmp_path, a__yaml=JOB % ("python:3.11", tmp_path / "pipe.yaml"))
    (tmp_path / "theirs/b.yaml").symlink_to(tmp_path / "pipe.yaml")
    assert any("pipe.yaml: not in this set" in fault for fault in said(findings, Outcome.FAULT))
    again = said(list(examine_jobs(tmp_path / "theirs")), Outcome.FAULT)
    assert "b.yaml:1: not read: not a file" in again


def test_nothing_that_a_script_says_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "theirs" / "a.sh"))
    examine(tmp_path, a__sh=f"touch {tmp_path}/ran\nx=$(touch {tmp_path}/ran)\necho `touch {tmp_path}/ran`\n")
    assert not (tmp_path / "ran").exists()


def test_an_image_that_is_told_of_needs_no_dockerfile(tmp_path):
    text = JOB % ("example.org/ray:2", "demo")
    assert any(
        "nothing here builds the image" in fault for fault in said(examine(tmp_path, a__yaml=text), Outcome.FAULT)
    )
    told = text.replace("# A job.", "# Needs: example.org/ray:2, of the registry.")
    assert not any("builds the image" in fault for fault in said(examine(tmp_path, a__yaml=told), Outcome.FAULT))


def test_a_mistake_that_pods_share_is_told_once(tmp_path):
    text = (JOB % ("REGISTRY/none", "demo")).replace("- {name: a,", "- &a {name: a,")
    faults = said(examine(tmp_path, a__yaml=f"{text}        - *a\n"), Outcome.FAULT)
    assert faults.count("a.yaml:10: a: nothing here builds the image REGISTRY/none") == 1
    assert len({*faults}) == len(faults)


@pytest.mark.parametrize(
    "text",
    ["FROM\n", "RUN x\n", "", "FROM a AS\nCOPY\nUSER\nENV\nRUN \\", "FROM a AS a\nFROM a AS a\nCOPY --from=a / /\n"],
)
def test_a_dockerfile_may_be_anything(tmp_path, text):
    assert examine(tmp_path, Dockerfile=text)


@pytest.mark.parametrize(
    "text",
    [
        "#SBATCH\n", "#SBATCH --gpus-per-node=\n#SBATCH -N\n", "cat <<EOF\n$X\n", "'", '"$(', "${A:-${B:-${C:-$A}}}\n",
        "sbatch a.sh --nodes\n#SBATCH --nodes=x\npython -m sonify run $@\n", "python -m train.pixart --config\n",
        "bash -c 'python -m sonify run --config \"$@\"' -- a\n",
        "python -m sonify\nsonify --help\npython -m sonify help\n",
    ],
)  # fmt: skip
def test_a_script_may_be_anything(tmp_path, text):
    assert examine(tmp_path, a__sh=text)


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: v1\nkind: Pod\n", "apiVersion: ray.io/v1\nkind: RayJob\nspec: 3\n",
        "apiVersion: [1]\nkind: {a: b}\n", "apiVersion: v1\nkind: List\nitems: {a: 1}\n",
        f"{RAY}kind: RayJob\nspec: {{entrypoint: [1], rayClusterSpec: {{workerGroupSpecs: 1, headGroupSpec: x}}}}\n",
        f"{RAY}kind: RayCluster\nspec: {{workerGroupSpecs: [1, {{maxReplicas: x, template: {{spec: []}}}}]}}\n",
        "cluster_name: 1\nprovider: 2\navailable_node_types: [1]\n",
        "cluster_name: a\nprovider: {type: aws}\navailable_node_types: {a: 1, b: {resources: x, docker: [1]}}\n",
        "excludes: 3\nenv_vars: [1]\n", "env_vars: {A: 1}\n", "1: 2\n? [a, b]\n: c\n", "--- \n--- \n...\n",
        "a: 2001-99-99\n", "apiVersion: v1\nkind: Secret\ndata: [1]\nstringData: {a: [b]}\n",
        "apiVersion: a/b/c\nkind: ../../x\n",
    ],
)  # fmt: skip
def test_yaml_may_be_anything(tmp_path, text):
    assert examine(tmp_path, a__yaml=text)

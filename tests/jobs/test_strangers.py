"""A folder of anybody's: whatever lies in it is a finding, nothing of it is run, and nothing ends in a traceback."""

import os
import time

import pytest

from sonify.doctor.findings import Outcome
from sonify.doctor.jobs import examine_jobs
from sonify.doctor.jobs.commands import find_commands
from sonify.doctor.jobs.text import MAX_BYTES, MAX_VALUES, read_source
from tests.processes import is_gone

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
    assert "b.yaml:1: not read: a link that leads out of the folder" in again


def test_a_link_within_the_folder_is_read_and_one_out_of_it_is_not(tmp_path):
    (tmp_path / "secret.sh").write_text("frobnicate --with $(\n")
    examine(tmp_path, a__sh="#!/bin/bash\nset -euo pipefail\ntrue\n")
    for name, target in (("b.sh", "a.sh"), ("c.sh", tmp_path / "secret.sh"), ("d.sh", "../secret.sh")):
        (tmp_path / "theirs" / name).symlink_to(target)
    findings = list(examine_jobs(tmp_path / "theirs"))
    why = "not read: a link that leads out of the folder"
    assert said(findings, Outcome.FAULT) == [f"c.sh:1: {why}", f"d.sh:1: {why}"]
    assert [each.partition(":")[0] for each in said(findings, Outcome.OK)] == ["a.sh", "b.sh"]
    assert not any("frobnicate" in each.found for each in findings)


def test_files_that_were_not_looked_at_are_told_of_and_none_of_them_is_ok(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.doctor.jobs.folder.MAX_FILES", 3)
    files = {f"{name}__md": "# A page.\n" for name in "abcde"}
    findings = examine(tmp_path, **{name: files[name] for name in ("a__md", "b__md", "c__md")})
    assert said(findings, Outcome.NOTE) == []
    findings = examine(tmp_path, **files)
    (note,) = said(findings, Outcome.NOTE)
    assert note.startswith("theirs: holds more than 3 files: those behind")
    assert note.endswith("c.md were not looked at")
    assert [each.partition(":")[0] for each in said(findings, Outcome.OK)] == ["a.md", "b.md", "c.md"]


def test_a_file_whose_faults_are_not_shown_is_not_ok(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.doctor.jobs.MAX_SHOWN", 2)
    findings = examine(tmp_path, a__yaml="[", b__yaml="[", c__yaml="[", d__sh='set -euo pipefail\necho "\n')
    shown = said(findings, Outcome.FAULT)
    assert [each.partition(":")[0] for each in shown] == ["a.yaml", "b.yaml", "theirs"]
    assert "further findings are not shown" in shown[-1]
    assert said(findings, Outcome.OK) == []


def test_notes_that_are_not_shown_are_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.doctor.jobs.MAX_SHOWN", 1)
    findings = examine(tmp_path, a__yaml="colour: blue\n", b__yaml="colour: blue\n")
    assert said(findings, Outcome.FAULT) == []
    assert said(findings, Outcome.NOTE)[-1] == "theirs: 1 further findings are not shown, 0 of them faults"


@pytest.mark.parametrize("name", ["a__sh", "Dockerfile"])
@pytest.mark.parametrize("opens", ["( ", "$(", '"$(echo ', "{ ", "[[ "])
def test_a_deep_file_is_a_finding_and_given_to_no_linter(tmp_path, name, opens):
    started = time.monotonic()
    findings = examine(tmp_path, **{name: f"RUN echo \n{opens * 20_000}\n"})
    assert time.monotonic() - started < 10
    (fault,) = said(findings, Outcome.FAULT)
    assert fault.endswith(":2: not read: more than 12 brackets open within each other")


def test_scripts_as_people_write_them_are_not_deep(tmp_path):
    text = 'set -euo pipefail\ncase "$1" in a) x=$(echo "$(cat "${f[$((1 + 1))]}")") ;; esac\n# ((((((((((((((((\n'
    assert not any("brackets" in each.found for each in examine(tmp_path, a__sh=text * 100))


def test_many_commands_of_many_variables_take_no_square_of_time(tmp_path):
    text = "set -euo pipefail\n" + "".join(f"v{n}={n}\necho $v{n}\n" for n in range(3000))
    (tmp_path / "a.sh").write_text(text)
    source = read_source(tmp_path / "a.sh", "a.sh")
    started = time.monotonic()
    assert list(find_commands([source], (), (), ())) == []
    assert time.monotonic() - started < 5


def test_a_linter_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.doctor.jobs.formats.LINT_TIMEOUT_SEC", 0.5)
    monkeypatch.setattr("sonify.doctor.jobs.formats._program", lambda _name: str(tmp_path / "linter"))
    (tmp_path / "linter").write_text(f"#!/bin/sh\n/bin/sleep 777 &\necho $! > {tmp_path}/pid\n/bin/sleep 777\n")
    (tmp_path / "linter").chmod(0o755)
    findings = examine(tmp_path, a__sh="set -euo pipefail\ntrue\n")
    assert any("not tried" in each and "timed out" in each for each in said(findings, Outcome.NOTE))
    assert is_gone(int((tmp_path / "pid").read_text()))


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

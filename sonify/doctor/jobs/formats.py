"""What each format itself would refuse: Kubernetes' and Ray's schemas, sbatch's options, bash, and two linters.

Linters and Kubernetes' schemas are for developers; where they are not installed, that is said. Nothing of a file is
run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.jobs.commands import is_runtime_env
from sonify.doctor.jobs.folder import JobSet, find
from sonify.doctor.jobs.pods import cluster_of, is_cluster_file, objects_of
from sonify.doctor.jobs.text import FileKind, Node, Source
from sonify.errors import did_you_mean

LINT_TIMEOUT_SEC = 20
KUBERNETES = "1.33"
# The fields of KubeRay 1.5; Source: ray-operator/apis/ray/v1/*_types.go.
_POD = ("template", "rayStartParams", "resources", "labels")
_HEAD = (*_POD, "serviceType", "headService", "enableIngress")
_WORKER = (
    *_POD, "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "scaleStrategy",
    "suspend",
)  # fmt: skip
_AUTOSCALER = (
    "resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext", "idleTimeoutSeconds",
    "upscalingMode", "version",
)  # fmt: skip
_CLUSTER = (
    "headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions",
    "headServiceAnnotations", "suspend", "managedBy", "gcsFaultToleranceOptions", "authOptions", "upgradeStrategy",
)  # fmt: skip
_JOB = (
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend", "preRunningDeadlineSeconds",
)  # fmt: skip


def ask_formats(jobs: JobSet) -> Iterator[Finding]:
    """What each file's own format refuses in it."""
    for source in jobs.sources:
        for document in source.documents:
            yield from _document(source, document)
    yield from _kubernetes(jobs)
    for script in jobs.slurm:
        yield from (find(script.source, line, what) for line, what in script.wrong)
    yield from _ray_words(jobs)
    yield from _bash(jobs)
    yield from _linters(jobs)


def _document(source: Source, node: Node) -> Iterator[Finding]:
    if is_cluster_file(node):
        yield from _cluster_file(source, node)
    elif node.at("apiVersion").given and node.at("kind").given:
        yield from (each for node in objects_of(source) for each in _kuberay(source, node))
    elif is_runtime_env(node):
        yield from _runtime_env(source, node)
    else:
        yield find(source, node.line, "of a kind that is not known here: not looked into", outcome=Outcome.NOTE)


def _cluster_file(source: Source, node: Node) -> Iterator[Finding]:
    """By the schema of Ray's launcher, and what its schema leaves open."""
    import jsonschema  # noqa: PLC0415 - comes with Ray, and takes a while
    import ray  # noqa: PLC0415

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(node.plain()):
        at = node.at(*(str(part) for part in error.absolute_path))
        yield find(source, at.line, f"Ray's launcher refuses it: {error.message[:200]}")
    types = dict(node.at("available_node_types").items())
    head = node.at("head_node_type")
    if types and head.text() not in types:
        yield find(source, head.line, f"head_node_type is {head.text()!r}, none of available_node_types")


def _runtime_env(source: Source, node: Node) -> Iterator[Finding]:
    from ray.runtime_env import RuntimeEnv  # noqa: PLC0415 - takes a while

    for key, value in node.items():
        if key in ("excludes", "env_vars"):
            try:
                RuntimeEnv(**{key: value.plain()})
            except (TypeError, ValueError) as error:
                yield find(source, value.line, f"Ray refuses {key}: {error}")


def _kuberay(source: Source, node: Node) -> Iterator[Finding]:
    """KubeRay's own fields; the pods in them are Kubernetes'."""
    if not node.at("apiVersion").text().startswith("ray.io/"):
        return
    if node.at("kind").text() == "RayJob":
        yield from _fields(source, node.at("spec"), _JOB, "spec")
        if not node.at("spec", "entrypoint").given and node.at("spec", "submissionMode").text() != "InteractiveMode":
            yield find(source, node.at("spec").line, "a RayJob without entrypoint")
        if not node.at("spec", "rayClusterSpec").given and not node.at("spec", "clusterSelector").given:
            yield find(source, node.at("spec").line, "a RayJob without rayClusterSpec or clusterSelector")
            return
    elif node.at("kind").text() != "RayCluster":
        yield find(source, node.line, "a kind of KubeRay's that is not looked into", outcome=Outcome.NOTE)
        return
    cluster = cluster_of(node)
    if cluster.given:
        yield from _fields(source, cluster, _CLUSTER, "the cluster")
        yield from _fields(source, cluster.at("headGroupSpec"), _HEAD, "headGroupSpec")
        yield from _fields(source, cluster.at("autoscalerOptions"), _AUTOSCALER, "autoscalerOptions")
        yield from _fields(source, cluster.at("authOptions"), ("mode",), "authOptions")
    for group in cluster.at("workerGroupSpecs").each():
        yield from _fields(source, group, _WORKER, "a worker group")


def _fields(source: Source, node: Node, known: Sequence[str], where: str) -> Iterator[Finding]:
    if node.given and not node.items():
        yield find(source, node.line, f"{where}: expected fields, found {node.text()[:60]!r}")
    for key, value in node.items():
        if key not in known:  # it may be a newer one's
            what = f"KubeRay 1.5 has no field {key} in {where}{did_you_mean(key, known)}"
            yield find(source, value.line, what, outcome=Outcome.NOTE)
    for name, each in node.at("rayStartParams").items():
        if not isinstance(each.value, str):
            yield find(source, each.line, f"rayStartParams.{name}: expected a text in quotes")


def _kubernetes(jobs: JobSet) -> Iterator[Finding]:
    """By Kubernetes' own schemas, unknown keys refused."""
    objects = [(source, node) for source in jobs.sources for node in objects_of(source)]
    if objects and find_spec("kubernetes_validate") is None:
        what = "Kubernetes' schemas are not installed: kubernetes-validate"
        yield find(objects[0][0], 1, what, outcome=Outcome.NOT_TRIED)
        return
    for source, node in objects:
        names = (node.at("apiVersion").value, node.at("kind").value)
        if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name) for name in names):
            yield find(source, node.line, "apiVersion and kind name nothing of Kubernetes")
        elif not node.at("apiVersion").text().startswith("ray.io/"):
            yield from _validate(source, node, node.plain())
        else:
            cluster = cluster_of(node)
            groups = [cluster.at("headGroupSpec"), *cluster.at("workerGroupSpecs").each()]
            templates = [*(group.at("template") for group in groups), node.at("spec", "submitterPodTemplate")]
            for spec in (template.at("spec") for template in templates if template.given):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec.plain()}
                yield from _validate(source, Node({"spec": spec}, spec.line), pod)


def _validate(source: Source, node: Node, plain: Any) -> Iterator[Finding]:
    known, path, message = _refused_by_kubernetes(json.dumps(plain, default=str, sort_keys=True))
    if not known:
        yield find(source, node.line, "a kind that is not looked into", outcome=Outcome.NOTE)
    elif message:
        yield find(source, node.at(*path).line, f"Kubernetes refuses it: {message}")


@lru_cache(maxsize=256)
def _refused_by_kubernetes(text: str) -> tuple[bool, tuple[str, ...], str]:
    """Whether the object's kind is known, and where and why it is refused; its schemas take a while to read."""
    import kubernetes_validate  # noqa: PLC0415 - for developers; asked for above

    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return True, tuple(str(part) for part in error.absolute_path), error.message[:200]
    except kubernetes_validate.SchemaNotFoundError:
        return False, (), ""
    return True, (), ""


def _ray_words(jobs: JobSet) -> Iterator[Finding]:
    """Commands of Ray's and their options, by its own command line."""
    used = [(source, words) for source in jobs.sources for words in source.commands if "ray" in words.words[:-1]]
    if not used:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of what it imports
        from ray.scripts.scripts import cli  # noqa: PLC0415 - takes seconds

    for source, command in used:
        words = command.words[command.words.index("ray") + 1 :]
        if command.words.index("ray") and command.words[0] not in ("srun", "nohup", "timeout", "uv", "exec"):
            continue
        group: Any = cli
        while words and hasattr(group, "commands") and words[0] in group.commands:
            group, words = group.commands[words[0]], words[1:]
        if hasattr(group, "commands"):
            if words and not words[0].startswith(("-", "$")):
                hint = did_you_mean(words[0], group.commands)
                yield find(source, command.line, f"ray has no command {words[0][:60]!r}{hint}")
            continue
        known = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
        own = words[: words.index("--")] if "--" in words else words
        for option in (word.partition("=")[0] for word in own if word.startswith("--")):
            if option not in {*known, "--help"}:
                yield find(source, command.line, f"ray {group.name}: no option {option}{did_you_mean(option, known)}")


def _bash(jobs: JobSet) -> Iterator[Finding]:
    bash = shutil.which("bash")
    for source in (each for each in jobs.sources if each.kind is FileKind.SHELL):
        if bash is None:
            yield find(source, 1, "bash is not here to read it", outcome=Outcome.NOT_TRIED)
            continue
        said = _ask((bash, "--noprofile", "--norc", "-n"), source.text)
        for line in said.splitlines():
            number = line.partition("line ")[2].partition(":")[0]
            at = min(int(number), len(source.text.splitlines())) if number.isdigit() else 1  # its end is behind it
            yield find(source, at, f"bash: {line.partition(': ')[2]}")
        if "set -euo pipefail" not in source.text:
            yield find(source, 1, "goes on behind a command that failed", "set -euo pipefail", Outcome.NOTE)


def _linters(jobs: JobSet) -> Iterator[Finding]:
    for kind, name, options in (
        (FileKind.DOCKERFILE, "hadolint", ("--no-color", "--format", "json", "-")),
        (FileKind.SHELL, "shellcheck", ("--norc", "--format", "json", "-")),
    ):
        sources = [each for each in jobs.sources if each.kind is kind]
        program = _program(name)
        if sources and program is None:
            yield find(sources[0], 1, f"{name} is not installed", outcome=Outcome.NOT_TRIED)
            continue
        for source in sources if program else ():
            for found in _rows(_ask((str(program), *options), source.text)):
                serious = found.get("level") == "error"
                what = f"{name} {found.get('code')}: {found.get('message')}"
                outcome = Outcome.FAULT if serious else Outcome.NOTE
                yield find(source, int(found.get("line") or 1), what, outcome=outcome)


def _program(name: str) -> str | None:
    """A program of this environment, else of PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


def _rows(text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError:
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


@lru_cache(maxsize=256)
def _ask(command: tuple[str, ...], text: str) -> str:
    """What a program says of a text that it reads from its standard input."""
    try:
        process = subprocess.Popen(  # noqa: S603 - a linter or `bash -n`: it reads, and runs nothing of what it reads
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={"LANG": "C.UTF-8"}, cwd="/", start_new_session=True,
        )  # fmt: skip
        with process:
            try:
                said, complained = process.communicate(text, timeout=LINT_TIMEOUT_SEC)
            finally:  # also where this command is interrupted
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return json.dumps([{"level": "info", "line": 1, "code": "", "message": f"not tried: {error}"}])
    return said or complained

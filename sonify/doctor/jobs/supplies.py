"""Is all that the files use provided by the set, or told to be brought: images, volumes, secrets, variables, files?"""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from posixpath import basename

from sonify.doctor.findings import Finding
from sonify.doctor.jobs.commands import is_runtime_env
from sonify.doctor.jobs.folder import JobSet, find
from sonify.doctor.jobs.images import misnamed_builds
from sonify.doctor.jobs.scripts import GIVEN, variables_set, variables_used
from sonify.doctor.jobs.text import FileKind, Source
from sonify.io.machine import OLDEST_DRIVERS

# One file of each kind that must stay at home when a job's working folder is sent to a cluster or into an image.
STAY = ("photos/a.jpg", "sounds/a.wav", "runs/mine/run.json", ".venv/bin/python", ".venv-light/bin/python")
# What goes along.
GO = ("sonify/cli.py", "train/pixart.py", "configs/sonify/sam.yaml")
_NAME = r"[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY(?:_ID)?)"
_KNOWN_FORM = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|gh[ps]_[A-Za-z0-9]{30,})\b|-----BEGIN [A-Z ]*PRIV"
)


def ask_for_supplies(jobs: JobSet) -> Iterator[Finding]:
    """Every question about what is used and what is there."""
    for question in (_images, _volumes, _secrets, _literals, _variables, _files, _excludes, _drivers):
        yield from question(jobs)


def _images(jobs: JobSet) -> Iterator[Finding]:
    for source, line, what in misnamed_builds(jobs.sources, jobs.stages):
        yield find(source, line, f"builds what is not here: {what}", "name a stage of the Dockerfile")
    named = [(pod.source, part.image, pod.name) for pod in jobs.pods for part in pod.containers]
    named += [(node.source, node.image, node.name) for node in jobs.nodes]
    for source, image, who in named:
        text = image.text()
        if not text:
            yield find(source, image.line, f"{who}: no image", "one that the set builds")
        elif jobs.stage_of(text) is None and not jobs.tells(source, text):
            made = ", ".join(sorted({f"{each.name}:{each.tag}" for each in jobs.images})) or "none"
            yield find(source, image.line, f"{who}: nothing here builds the image {text}", f"built here: {made}")
    for node in jobs.nodes:
        if not node.pulls:
            yield find(
                node.source, node.line, f"{node.name}: a new node lacks the image", "pull_before_run: true, or none"
            )


def _volumes(jobs: JobSet) -> Iterator[Finding]:
    for pod in jobs.pods:
        names = {volume.name for volume in pod.volumes}
        for mount in (mount for part in pod.containers for mount in part.mounts):
            if mount.volume not in names:
                yield find(pod.source, mount.line, f"{pod.name}: no volume {mount.volume!r} is declared")
        for volume in (volume for volume in pod.volumes if volume.claim):
            claim = next((each for each in jobs.claims if each.name == volume.claim), None)
            if claim is None and not jobs.tells(pod.source, volume.claim):
                yield find(
                    pod.source, volume.line, f"{pod.name}: nothing here makes the claim {volume.claim}, nor asks for it"
                )
            elif claim is not None and pod.role == "worker" and not {"ReadWriteMany", "ReadOnlyMany"} & {*claim.modes}:
                yield find(claim.source, claim.line, f"{claim.name}: pods of several nodes mount it", "ReadWriteMany")


def _secrets(jobs: JobSet) -> Iterator[Finding]:
    known = {(secret.name, key) for secret in jobs.secrets for key in secret.keys}
    for pod in jobs.pods:
        for part in pod.containers:
            for name in part.all_of_secrets:
                if name not in {secret.name for secret in jobs.secrets}:
                    yield find(pod.source, part.line, f"{pod.name}: nobody is told how to make the secret {name}")
            for variable in part.variables:
                if variable.secret and (variable.secret, variable.key) not in known:
                    yield find(
                        pod.source,
                        variable.line,
                        f"{pod.name}: nobody is told how to make {variable.key} of the secret {variable.secret}",
                        "kubectl create secret generic NAME --from-literal=KEY=..., in a comment",
                    )


def _literals(jobs: JobSet) -> Iterator[Finding]:
    """No secret stands in a file: neither one of a known form nor as the value of a variable that is named for one."""
    for source in jobs.sources:
        for number, line in enumerate(source.text.splitlines(), 1):
            if _KNOWN_FORM.search(line):
                yield find(source, number, "a secret stands here", "a reference to a secret")
    given = [
        (pod.source, v.line, v.name, v.value) for pod in jobs.pods for part in pod.containers for v in part.variables
    ]
    for source in jobs.sources:
        for node in source.documents if source.kind is FileKind.YAML else ():
            given += [(source, value.line, name, value.text()) for name, value in node.at("env_vars").items()]
    for source, line, name, value in given:
        if re.fullmatch(_NAME, name) and value and not value.startswith("$"):
            yield find(source, line, f"{name} stands here as a value", "a reference to a secret")


def _variables(jobs: JobSet) -> Iterator[Finding]:
    for source in (each for each in jobs.sources if each.kind is FileKind.SHELL):
        known = variables_set(source)
        said: set[str] = set()
        for name, line, optional in variables_used(source):
            if optional or name in known or GIVEN.fullmatch(name) or name in said or jobs.tells(source, name):
                continue
            said.add(name)
            yield find(source, line, f"${name} is set by nobody", "set it, or ask for it under `Needs:`")
    for pod in jobs.pods:
        for part in pod.containers:
            known_here = {each.name for each in part.variables}
            for word in part.words:
                for name in re.findall(r"\$\((\w+)\)", word.text()):
                    if name not in known_here:
                        yield find(pod.source, word.line, f"{pod.name}: $({name}) is no variable of the container")


def _files(jobs: JobSet) -> Iterator[Finding]:
    """The files of the set that a command or a page names are there, in an image's copy of the checkout, too."""
    here = {source.path.relative_to(jobs.folder).as_posix() for source in jobs.sources}
    folder = basename(jobs.folder.absolute().as_posix())
    within = "|".join(re.escape(step.rest) for stage in jobs.stages for step in stage.own if step.name == "WORKDIR")
    pattern = re.compile(rf"(?:(?<![\w/.-])|(?:{within or '//'})/)(?:{re.escape(folder)}|jobs)/([\w./-]*\w)")
    for source in jobs.sources:
        if source.kind is FileKind.OTHER:
            continue
        for number, line in enumerate(source.text.splitlines(), 1):
            for name in pattern.findall(line):
                if name not in here and not (jobs.folder / name).exists():
                    yield find(source, number, f"{name} is not in this set")
            for name in re.findall(
                r"`([\w-]+\.(?:yaml|yml|sh|lock))`", line if source.kind is FileKind.MARKDOWN else ""
            ):
                if name not in {basename(each) for each in here}:
                    yield find(source, number, f"{name} is not in this set")


def _excludes(jobs: JobSet) -> Iterator[Finding]:
    for source in jobs.sources:
        for node in source.documents:
            if is_runtime_env(node):
                excludes = [each.text() for each in node.at("excludes").each()]
                yield from _sent(source, node.at("excludes").line, excludes, "the upload")
    ignored = jobs.beside(".dockerignore")
    lines = ignored.read_text(errors="replace").splitlines() if ignored else []
    for stage in jobs.stages:
        for step in stage.own:
            words = [word for word in step.rest.split() if not word.startswith("--")]
            if step.name != "COPY" or "--from=" in step.rest:
                continue
            if words[:1] == ["."]:
                yield from _sent(stage.source, step.line, lines, "the image (.dockerignore)")
            for name in words[:-1]:
                if name != "." and is_left_out(name, lines):
                    yield find(stage.source, step.line, f"{name} is left out by .dockerignore")


def _sent(source: Source, line: int, patterns: Sequence[str], what: str) -> Iterator[Finding]:
    if going := [path for path in STAY if not is_left_out(path, patterns)]:
        yield find(source, line, f"{what} takes along {', '.join(going)}", "exclude photos, sounds, runs, environments")
    if lacking := [path for path in GO if is_left_out(path, patterns)]:
        yield find(source, line, f"{what} leaves out {', '.join(lacking)}", "leave the code in")


def is_left_out(path: str, patterns: Sequence[str]) -> bool:
    """Whether patterns as `.gitignore` has them leave a file out: of those that fit it, or a folder above, the last."""
    parts = path.split("/")
    for n in range(1, len(parts) + 1):
        fitting = [each for each in patterns if _fits(parts[:n], each.strip().removeprefix("!"), n < len(parts))]
        if fitting and not fitting[-1].strip().startswith("!"):
            return True
    return False


def _fits(parts: Sequence[str], pattern: str, is_folder: bool) -> bool:
    """Whether a pattern fits a place, or a folder above it."""
    pattern = pattern.removeprefix("**/")
    wanted = pattern.strip("/")
    if not wanted or pattern.startswith("#"):
        return False
    among = parts if is_folder or not pattern.endswith("/") else parts[:-1]
    if "/" in pattern.rstrip("/"):
        return any(fnmatch("/".join(among[:n]), wanted) for n in range(1, len(among) + 1))
    return any(fnmatch(part, wanted) for part in among)


def _drivers(jobs: JobSet) -> Iterator[Finding]:
    """People with GPUs are told which driver the lock's CUDA needs."""
    release = jobs.locked("cuda-toolkit").partition(".")[0]
    driver = OLDEST_DRIVERS.get(int(release)) if release.isdecimal() else None
    prose = "\n".join(source.prose for source in jobs.sources)
    for stage in jobs.stages[-1:] if driver else ():
        if driver and not re.search(rf"{driver}\b", prose):
            yield find(
                stage.source, 1, f"nobody is told that the lock's CUDA {release} needs a driver of {driver} or newer"
            )

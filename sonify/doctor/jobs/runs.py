"""The questions about our own commands: does what a configuration asks for exist where the command runs?"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from posixpath import basename, dirname
from typing import Any

from sonify.config import Config, ServerVlm
from sonify.config.text import Text
from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.gpus import asks_of
from sonify.doctor.jobs.commands import Command, Loaded, Place, container_commands, load, sections_of
from sonify.doctor.jobs.folder import JobSet, find, is_named
from sonify.doctor.jobs.images import folders_of, has_program, libraries_of, made_by
from sonify.doctor.jobs.pods import NodeType, Pod, is_below, mounted_by
from sonify.doctor.jobs.scripts import variables_set
from sonify.doctor.jobs.text import FileKind, Source, split_commands
from sonify.errors import InputError

# What the driver of a run needs beside Ray: it looks for every model before it asks for workers.
DRIVER_LIBRARIES = ("huggingface-hub",)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?<!\.tflite)")


def load_all(jobs: JobSet) -> tuple[list[Loaded], list[Finding]]:
    """The configurations of all commands, and what is wrong with the words of those that have none."""
    loaded: list[Loaded] = []
    findings: list[Finding] = []
    texts: dict[Path, Text] = {}
    for command in jobs.commands:
        try:
            found = load(command, jobs.folder, texts)
        except InputError as error:
            away = "is not installed" in str(error)
            outcome = Outcome.NOT_TRIED if away else Outcome.FAULT
            findings.append(find(command.source, command.line, f"{command.module}: {error}", outcome=outcome))
            continue
        if found is not None:
            loaded.append(found)
    return loaded, findings


def ask_of_runs(jobs: JobSet, loaded: Sequence[Loaded]) -> Iterator[Finding]:
    """Every question about every command that has a configuration."""
    yield from _fetched(jobs, loaded)
    for run in loaded:
        yield from _places(jobs, run)
        yield from _engines(jobs, run)
        yield from _libraries(jobs, run)
        yield from _keys(jobs, run)
        yield from _gpus(run)
        yield from _batch(run)
        yield from _caches(run)


def _places(jobs: JobSet, run: Loaded) -> Iterator[Finding]:
    """Input, `run_dir` and models that are folders lie where all that use them see them."""
    lacking: dict[str, list[str]] = {}
    for place in run.places:
        if "://" in place.path or "$" in place.path:
            continue
        if not place.path.startswith("/"):
            # Slurm starts in the checkout, which all nodes see; a job of Ray's in a copy that is gone afterwards
            if run.command.by_ray or run.command.pods or run.command.nodes:
                lacking.setdefault("each node takes for another place", []).append(f"{place.key} is {place.path}")
        elif where := _lacks(jobs, run, place):
            lacking.setdefault(where, []).append(f"{place.key} is {place.path}")
    for where, named in lacking.items():
        yield _at(
            run,
            f"{', '.join(named)}, which {where}",
            "mount it, fetch it there, name another place, or say under `Needs:` who provides it",
        )


def _lacks(jobs: JobSet, run: Loaded, place: Place) -> str:
    """Where a place is not provided, as the end of a sentence; empty where it is."""
    command = run.command
    pods = [pod for pod in command.pods if pod.role != "submitter" and (pod.gpus or not _is_for_gpus(pod, place))]
    nodes = [node for node in command.nodes if node.is_head or node.gpus or not place.is_model]
    if pods:
        names = [pod.name for pod in pods if not _pod_has(jobs, pod, place)]
        return f"lies below no mount of {', '.join(dict.fromkeys(names))}" if names else ""
    if nodes:
        names = [node.name for node in nodes if not _node_has(jobs, node, place)]
        return f"is brought into no container of {', '.join(names)}" if names else ""
    return "" if _is_shared(run, place) or _is_told(jobs, command, place.path) else "nothing here provides"


def _is_for_gpus(pod: Pod, place: Place) -> bool:
    """Whether a place is a model that no worker in a pod looks at; the driver looks at each."""
    return place.is_model and pod.role == "worker"


def _is_shared(run: Loaded, place: Place) -> bool:
    """Whether a place is on the disk that the run is written to, which all nodes see."""
    run_dir = next((each.path for each in run.places if each.key == "run_dir"), "")
    return place.path.split("/")[:2] == run_dir.split("/")[:2]


def _is_told(jobs: JobSet, command: Command, path: str) -> bool:
    """Whether people are told of a folder that a path lies in."""
    parts = path.strip("/").split("/")
    folders = ["/" + "/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    told = jobs.told(command.source) + (jobs.told(command.script.source) if command.script else "")
    return any(is_named(folder, told) for folder in folders)


def _pod_has(jobs: JobSet, pod: Pod, place: Place) -> bool:
    volume = pod.volume_at(place.path)
    if volume is not None:
        return volume.lasting or place.is_model
    stages = [jobs.stage_of(container.image.text()) for container in pod.containers]
    return place.key != "run_dir" and any(
        is_below(place.path, folder) for stage in stages if stage is not None for folder in folders_of(stage)
    )


def _node_has(jobs: JobSet, node: NodeType, place: Place) -> bool:
    stage = jobs.stage_of(node.image.text())
    inside = folders_of(stage) if stage is not None and place.key != "run_dir" else []
    fetched = [word for step in node.setup for word in re.findall(r"(?<!\S)(/\S+)", step.text()) if ".sh" not in word]
    return any(is_below(place.path, folder) for folder in (*mounted_by(node.options), *inside, *fetched))


def _engines(jobs: JobSet, run: Loaded) -> Iterator[Finding]:
    """Serving engines are on PATH in the image of every node that a worker of theirs may be placed on."""
    if not isinstance(run.config, Config):
        return
    for n, extractor in enumerate(run.config.concepts.extractors):
        if not isinstance(extractor, ServerVlm):
            continue
        program = extractor.command if isinstance(extractor.command, str) else extractor.command[0]
        key = f"concepts.extractors.{n}.command"
        for image, who in _hosts(run.command, extractor.gpus):
            stage = jobs.stage_of(image)
            if stage is not None and not has_program(stage, program, jobs.building):
                yield _at(
                    run,
                    f"{key} is {program}, which is not on PATH in the image of {who} ({image})",
                    "install the engine in that image, in an environment of its own",
                )
        if not run.command.pods and not run.command.nodes and not _has_engine(jobs, run.command, program):
            yield _at(run, f"{key} is {program}, which nothing here puts on PATH", "say under `Needs:` where it is")


def _hosts(command: Command, gpus: float, *, driver: bool = False) -> Iterator[tuple[str, str]]:
    """The images of the workers that have so many GPUs, or of where the driver runs."""
    for pod in command.pods:
        is_host = pod.role in ("head", "alone") if driver else pod.role in ("worker", "alone") and pod.gpus >= gpus
        if is_host:
            yield from ((container.image.text(), pod.name) for container in pod.containers if container.image.given)
    for node in command.nodes:
        if node.is_head if driver else not node.is_head and node.gpus >= gpus:
            yield node.image.text(), node.name


def _has_engine(jobs: JobSet, command: Command, program: str) -> bool:
    """Whether an engine is on PATH on nodes of which there is no image: in a script's PATH, where it is told to be."""
    told = jobs.told(command.source)
    if command.script is None:  # nodes of any cluster: of an image of the set
        images = (has_program(image.stage, program, jobs.building) for image in jobs.images)
        return any(images) or is_named(basename(program), told)
    told += jobs.told(command.script.source)
    made = made_by(told, program, jobs.building)
    path = variables_set(command.script.source).get("PATH", "").split(":")
    return any(entry.endswith(f"/{dirname(place)}") or entry == dirname(place) for place in made for entry in path)


def _libraries(jobs: JobSet, run: Loaded) -> Iterator[Finding]:
    """The environment of an image holds what the configuration needs there."""
    stores = ["s3fs"] if any(place.path.startswith("s3://") for place in run.places) else []
    if isinstance(run.config, Config):
        looked_at = ["torch", *DRIVER_LIBRARIES] if run.config.features else list(DRIVER_LIBRARIES)
        uses = [(looked_at + stores, True, 0.0), (["torch", "transformers", *stores], False, 1.0), (stores, False, 0.0)]
    else:
        uses = [(["torch", "accelerate", "diffusers", *stores], True, 0.0)]
    for libraries, driver, gpus in uses:
        for image, who in _hosts(run.command, gpus, driver=driver):
            stage = jobs.stage_of(image)
            locked = libraries_of(stage, jobs.building) if stage is not None else None
            for library in libraries if locked is not None else ():
                if not re.search(rf"^{library}==", locked or "", re.MULTILINE):
                    yield _at(run, f"needs the library {library} on {who}, and the image {image} has it not")


def _fetched(jobs: JobSet, loaded: Sequence[Loaded]) -> Iterator[Finding]:
    """Models that are folders are fetched by something of the set, and those of the hub as they are asked for."""
    fetches = list(_fetches(jobs))
    scripts = {source.path.name for source, _, words in fetches if source.kind is FileKind.SHELL}
    folders = [
        word for words in _all_words(jobs, scripts) if _is_fetch(words, scripts) for word in words if word[:1] == "/"
    ]
    kept = {basename(_after(words, "--local-dir")) for _, _, words in fetches} - {""}
    for run in loaded:
        for place in (each for each in run.places if each.is_model and each.path.startswith("/") and kept):
            command = run.command
            # of a cluster of which nothing else is said, people say the folder themselves
            into = not (command.pods or command.nodes) or any(is_below(place.path, folder) for folder in folders)
            if not (into and basename(place.path) in kept) and not jobs.tells(command.source, place.path):
                yield _at(
                    run, f"{place.key} is {place.path}, which nothing here fetches", f"fetched are {sorted(kept)}"
                )
        for key, model, revision in _hub_models(run):
            of_it = [(source, line, words) for source, line, words in fetches if model in words]
            if fetches and not of_it and not jobs.tells(run.command.source, model):
                yield _at(run, f"{key} is {model}, which nothing here fetches", "fetch it with the others")
            for source, line, words in of_it:
                got = _after(words, "--revision")
                if got and revision and got != revision:
                    yield find(source, line, f"fetches {model} at {got[:12]}, and {key} asks for {revision[:12]}")


def _fetches(jobs: JobSet) -> Iterator[tuple[Source, int, tuple[str, ...]]]:
    for source in jobs.sources:
        for command in source.commands:
            if "download" in command.words[1:3] and basename(command.words[0]) in ("hf", "huggingface-cli"):
                yield source, command.line, command.words


def _all_words(jobs: JobSet, scripts: set[str]) -> Iterator[tuple[str, ...]]:
    """The commands of scripts and examples, of containers, and of nodes' setup; not how a script itself is called."""
    sources = (source for source in jobs.sources if source.path.name not in scripts)
    yield from (command.words for source in sources for command in source.commands)
    yield from (words for pod in jobs.pods for _, words in container_commands(pod))
    for step in (each for node in jobs.nodes for each in node.setup):
        yield from (command.words for command in split_commands(step.text(), step.line))


def _is_fetch(words: Sequence[str], scripts: set[str]) -> bool:
    return any(basename(word) in scripts for word in words) or "download" in words[1:3]


def _after(words: Sequence[str], option: str) -> str:
    return next((following for word, following in pairwise(words) if word == option), "")


def _hub_models(run: Loaded) -> Iterator[tuple[str, str, str]]:
    """The models of a configuration that come from the hub, by key, with their revisions, empty where none is said."""
    for prefix, section in sections_of(run.config):
        for name in ("model", "vae", "ast", "roberta"):
            model, revision = getattr(section, name, None), "revision" if name == "model" else f"{name}_revision"
            # a server that runs already has what it has, and no revision
            if isinstance(model, str) and HUB_NAME.fullmatch(model) and hasattr(section, revision):
                yield f"{prefix}.{name}".lstrip("."), model, getattr(section, revision) or ""


def _keys(jobs: JobSet, run: Loaded) -> Iterator[Finding]:
    """Variables in which a configuration names its keys are set where its workers run."""
    for prefix, section in sections_of(run.config):
        name = getattr(section, "api_key_env", None)
        if not name:
            continue
        for pod in run.command.pods:
            has = any(each.name == name for part in pod.containers for each in part.variables)
            if not has and not any(part.all_of_secrets for part in pod.containers):
                yield _at(run, f"{prefix}.api_key_env is {name}, which {pod.name} has not", "give it by secretKeyRef")
        if not run.command.pods and not jobs.tells(run.command.source, name):
            yield _at(run, f"{prefix}.api_key_env is {name}, which nothing here sets or asks for")


def _gpus(run: Loaded) -> Iterator[Finding]:
    """What one worker of a stage asks for fits on one node."""
    command = run.command
    if not isinstance(run.config, Config) or not (command.pods or command.nodes or command.script):
        return
    most_gpus, most_cpus = _largest(command)
    for ask in asks_of(run.config):
        if ask.gpus > most_gpus and (ask.needs_gpu or most_gpus):
            what = f"{ask.key}.gpus is {ask.gpus:g}, and no node has more than {most_gpus:g}"
            yield _at(run, what, "a larger worker group")
        if most_cpus and ask.cpus > most_cpus:
            what = f"{ask.key}.cpus is {ask.cpus:g}, and no node has more than {most_cpus:g}"
            yield _at(run, what, "a larger worker group")


def _largest(command: Command) -> tuple[float, float]:
    if command.script is not None:
        return command.script.gpus_per_node, 0.0
    sizes = [
        (pod.gpus, max((part.amount("cpu") for part in pod.containers), default=0.0))
        for pod in command.pods
        if pod.role != "head" and pod.most
    ]
    sizes += [(node.gpus, node.cpus) for node in command.nodes if not node.is_head and node.most]
    return max((gpus for gpus, _ in sizes), default=0.0), max((cpus for _, cpus in sizes), default=0.0)


def _batch(run: Loaded) -> Iterator[Finding]:
    """A training's devices are those of its nodes, and divide its batch with what each takes at once."""
    config: Any = run.config
    if isinstance(config, Config) or not hasattr(config, "batch"):
        return
    script = run.command.script
    there = script.gpus_per_node * run.command.num_nodes if script is not None else sum(
        pod.gpus * pod.most for pod in run.command.pods
    )  # fmt: skip
    devices = config.devices if config.devices is not None else int(there)
    if (script is not None or run.command.pods) and devices != there:
        yield _at(run, f"devices is {devices}, and there are {there:g} GPUs", f"devices={there:g}, or other nodes")
    step = devices * config.batch.per_device
    if step and config.batch.total % step:
        yield _at(
            run,
            f"batch.total is {config.batch.total}, which {devices} devices times batch.per_device"
            f" {config.batch.per_device} do not divide",
            "another per_device, or other devices",
        )


def _caches(run: Loaded) -> Iterator[Finding]:
    """Where models of the hub are fetched to outlives the pod, or each pod would fetch them again."""
    for pod in run.command.pods:
        for container in pod.containers:
            for variable in container.variables:
                if variable.name not in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME") or not variable.value:
                    continue
                volume = pod.volume_at(variable.value)
                if volume is None or not volume.lasting:
                    yield find(
                        pod.source,
                        variable.line,
                        f"{variable.name} is {variable.value}, which lies below no lasting mount of {pod.name}",
                        "a folder of the volume that all pods share",
                    )


def _at(run: Loaded, found: str, todo: str = "") -> Finding:
    return find(run.command.source, run.command.line, found, todo)

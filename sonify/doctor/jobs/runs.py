"""The questions about our own commands: does what a configuration asks for exist where the command runs?"""

from collections.abc import Iterator, Sequence
from posixpath import basename
from typing import Any

from sonify.config import Config, Section, ServerVlm
from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.jobs.commands import Command, Loaded, Place, load, sections_of
from sonify.doctor.jobs.folder import JobSet, find, is_named
from sonify.doctor.jobs.images import folders_of, has_program
from sonify.doctor.jobs.pods import NodeType, Pod, is_below, mounted_by
from sonify.doctor.jobs.scripts import variables_set
from sonify.errors import InputError


def load_all(jobs: JobSet) -> tuple[list[Loaded], list[Finding]]:
    """The configurations of all commands, and what is wrong with the words of those that have none."""
    loaded: list[Loaded] = []
    findings: list[Finding] = []
    for command in jobs.commands:
        try:
            found = load(command, jobs.folder)
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
    for run in loaded:
        yield from _places(jobs, run)
        yield from _engines(jobs, run)
        yield from _keys(jobs, run)
        yield from _gpus(run)
        yield from _batch(run)
        yield from _caches(run)


def _places(jobs: JobSet, run: Loaded) -> Iterator[Finding]:
    for place in run.places:
        path = place.path
        if "://" in path or "$" in path:
            continue
        command = run.command
        if not path.startswith("/"):
            # Slurm starts in the checkout, which all nodes see; a job of Ray's in a copy that is gone afterwards
            if command.by_ray or command.pods or command.nodes:
                yield _at(run, f"{place.key} is {path}, which each node takes for another place", "an absolute path")
            continue
        for where in _unprovided(jobs, command, place):
            yield _at(
                run,
                f"{place.key} is {path}, which {where}",
                "mount it, fetch it there, name another place, or say under `Needs:` who provides it",
            )


def _unprovided(jobs: JobSet, command: Command, place: Place) -> Iterator[str]:
    """Where a place is not provided; each an end of a sentence."""
    told = _is_told(jobs, command, place.path)
    if command.pods:
        lacking = [pod.name for pod in command.pods if not _pod_has(jobs, pod, place)]
        if lacking:
            yield f"lies below no mount of {', '.join(dict.fromkeys(lacking))}"
    elif command.nodes:
        lacking = [node.name for node in command.nodes if not _node_has(jobs, node, place)]
        if lacking and not told:
            yield f"is brought into no container of {', '.join(lacking)}"
    elif not told:
        yield "nothing here provides"


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
    return any(is_below(place.path, folder) for folder in (*mounted_by(node.options), *inside))


def _engines(jobs: JobSet, run: Loaded) -> Iterator[Finding]:
    """Serving engines are on PATH in the image of every node that a worker of theirs may be placed on."""
    if not isinstance(run.config, Config):
        return
    for n, extractor in enumerate(run.config.concepts.extractors):
        if not isinstance(extractor, ServerVlm):
            continue
        program = extractor.command if isinstance(extractor.command, str) else extractor.command[0]
        key = f"concepts.extractors.{n}.command"
        for image, who in _images_for(jobs, run.command, extractor.gpus):
            stage = jobs.stage_of(image)
            if stage is not None and not has_program(stage, program, jobs.building):
                yield _at(
                    run,
                    f"{key} is {program}, which is not on PATH in the image of {who} ({image})",
                    "install the engine in that image, in an environment of its own",
                )
        if not run.command.pods and not run.command.nodes and not _engine_told(jobs, run.command, program):
            yield _at(run, f"{key} is {program}, which nothing here puts on PATH", "say under `Needs:` where it is")


def _images_for(jobs: JobSet, command: Command, gpus: float) -> Iterator[tuple[str, str]]:
    """The images of the workers that have GPUs enough for an engine."""
    for pod in command.pods:
        if pod.role != "head" and pod.gpus >= gpus:
            yield from ((container.image.text(), pod.name) for container in pod.containers if container.image.given)
    for node in command.nodes:
        if not node.is_head and node.gpus >= gpus:
            yield node.image.text(), node.name


def _engine_told(jobs: JobSet, command: Command, program: str) -> bool:
    script = command.script
    set_here = " ".join(variables_set(script.source).values()) if script else ""
    told = jobs.told(command.source) + (jobs.told(script.source) if script else "")
    name = basename(program)
    return is_named(name, told) or f"/{name}" in set_here


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
    for key, section in sections_of(run.config):
        gpus, device = getattr(section, "gpus", None), getattr(section, "device", "cuda")
        asked = 0.0 if gpus is None or device == "cpu" or (device == "auto" and not most_gpus) else float(gpus)
        if asked > most_gpus:
            yield _at(run, f"{key}.gpus is {gpus:g}, and no node has more than {most_gpus:g}", "a larger worker group")
        cpus = getattr(section, "cpus", 0)
        if most_cpus and cpus > most_cpus:
            yield _at(run, f"{key}.cpus is {cpus}, and no node has more than {most_cpus:g}", "a larger worker group")
    growing = [(pod.name, pod.most) for pod in command.pods if pod.role == "worker"]
    growing += [(node.name, node.most) for node in command.nodes if not node.is_head]
    if (command.pods or command.nodes) and growing and not any(most for _, most in growing):
        yield _at(run, "no worker group may have a single node", "maxReplicas or max_workers above 0")


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


def loader_bytes(config: Section | Any) -> int:
    """What the loader processes of a training may hold in shared memory at once, on one node.

    Each has two batches under way, of a sample's latents and their deviation (float32) and of AST's mean rows.
    """
    latents = 2 * 4 * config.model.latent_channels * config.model.sample_size**2
    condition = 4 * 102 * config.model.caption_channels
    return 2 * config.data.workers * config.batch.per_device * (latents + condition) * (config.devices or 1)

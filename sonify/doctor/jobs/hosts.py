"""Is what is asked for put and started where it can run, and ended in time: pods, nodes, Ray, Slurm?"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sonify.doctor.findings import Finding
from sonify.doctor.jobs.commands import Command, Loaded
from sonify.doctor.jobs.folder import JobSet, find
from sonify.doctor.jobs.images import user_of
from sonify.doctor.jobs.pods import GPU, cluster_of, objects_of, to_amount, variables_of
from sonify.doctor.jobs.scripts import SlurmScript, variables_set
from sonify.doctor.jobs.text import FileKind, Source
from sonify.doctor.machine import AST_VECTORS, loader_bytes

# Between the signal that ends a training and the end: the step at work is finished, and some 10 GB of state are
# written at what a shared disk takes, 100 MB/s and more.
SAVING_SEC = 120
# Ray's own limit for nodes to join `symmetric-run`; a single `ray start` took as long on a busy machine.
RAY_WAIT_SEC = 30
SYMMETRIC_WAIT = "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"


def ask_of_hosts(jobs: JobSet, loaded: Sequence[Loaded]) -> Iterator[Finding]:
    """Every question about where and how the work is started."""
    for question in (
        _gpu_pods,
        _gpu_nodes,
        _memory_volumes,
        _groups,
        _ray_versions,
        _tokens,
        _ray_commands,
        _addresses,
        _slurm,
    ):
        yield from question(jobs)
    for run in loaded:
        yield from _shared_memory(run)
        yield from _time_to_save(run)


def _gpu_pods(jobs: JobSet) -> Iterator[Finding]:
    for pod in jobs.pods:
        if pod.gpus and not pod.tolerated:
            yield find(
                pod.source, pod.line, f"{pod.name}: nodes with GPUs that are kept for them refuse it",
                f"tolerations: [{{key: {GPU}, operator: Exists, effect: NoSchedule}}]",
            )  # fmt: skip
        for node in pod.tolerated if not pod.gpus else ():
            yield find(pod.source, node.line, f"{pod.name}: has no GPU, and takes the place of one that has")


def _gpu_nodes(jobs: JobSet) -> Iterator[Finding]:
    for node in jobs.nodes:
        for option in node.options:
            if "--gpus" in option.text() and not node.gpus:
                yield find(
                    node.source, option.line, f"{node.name}: has no GPU, and Docker does not start with --gpus there",
                    "give --gpus in the `docker` section of the node types that have GPUs",
                )  # fmt: skip
        if node.gpus and not any("--gpus" in option.text() for option in node.options):
            yield find(node.source, node.line, f"{node.name}: its container sees no GPU", "--gpus all, on this type")
        if variables_of(node.options).get("RAY_AUTH_MODE") != "token":
            yield find(
                node.source, node.line, f"{node.name}: whoever reaches Ray runs code", "--env RAY_AUTH_MODE=token"
            )


def _memory_volumes(jobs: JobSet) -> Iterator[Finding]:
    """What is written to a volume in memory counts as its container's: all of it, and the container is killed."""
    for pod in jobs.pods:
        for memory in (part.amount("memory") for part in pod.containers):
            for volume in (each for each in pod.volumes if each.in_memory):
                if memory and volume.size_bytes and volume.size_bytes >= memory:
                    yield find(
                        pod.source, volume.line,
                        f"{pod.name}: {volume.name} may take all memory that it has ({memory / 2**30:.0f} Gi)",
                    )  # fmt: skip


def _groups(jobs: JobSet) -> Iterator[Finding]:
    """A claim belongs to root when it is new: pods of another user cannot write it without `fsGroup`."""
    for pod in jobs.pods:
        stages = [jobs.stage_of(part.image.text()) for part in pod.containers]
        users = {user_of(stage) for stage in stages if stage is not None}
        as_user = pod.spec.at("securityContext", "runAsUser").text()
        is_root = as_user == "0" if as_user else users <= {"root", "0"}
        claims = [volume for volume in pod.volumes if volume.claim]
        if claims and not is_root and not pod.spec.at("securityContext", "fsGroup").given:
            yield find(
                pod.source, pod.line, f"{pod.name}: runs as {', '.join(sorted(users)) or as_user}, who may not write"
                f" {claims[0].claim}", "securityContext: {fsGroup: 1000}, the user's group",
            )  # fmt: skip


def _ray_versions(jobs: JobSet) -> Iterator[Finding]:
    expected = jobs.locked("ray")
    for source in jobs.sources:
        for node in objects_of(source):
            stated = cluster_of(node).at("rayVersion")
            if stated.given and expected and stated.text() != expected:
                yield find(source, stated.line, f"rayVersion is {stated.text()}, and the lock's {expected}")


def _tokens(jobs: JobSet) -> Iterator[Finding]:
    for source in jobs.sources:
        for node in objects_of(source):
            cluster = cluster_of(node)
            if cluster.at("headGroupSpec").given and cluster.at("authOptions", "mode").text() != "token":
                yield find(
                    source, cluster.line, "whoever reaches this Ray runs code in it", "authOptions: {mode: token}"
                )


def _ray_commands(jobs: JobSet) -> Iterator[Finding]:
    alone = [script.source for script in jobs.slurm if script.has("exclusive")]  # no other Ray is on its nodes
    for source in jobs.sources:
        variables = variables_set(source)
        shared = not any(source is each for each in alone)
        for command in source.commands:
            words = command.words
            if "symmetric-run" in words:
                yield from _waiting(
                    source, command.line, command.set.get(SYMMETRIC_WAIT) or variables.get(SYMMETRIC_WAIT)
                )
            trap = " ".join(words[1:]) if words[:1] == ("trap",) else ""
            if shared and (words[:2] == ("ray", "stop") or re.search(r"(?:^|[;&|]\s*)ray stop\b", trap)):
                yield find(source, command.line, "ray stop ends every Ray of the user on the machine", "end your own")
            if shared and words[:2] == ("ray", "start") and "--head" in words:
                yield from _own_ray(source, command.line, words)
            is_sent = words[:3] == ("ray", "job", "submit") and "--working-dir" in words
            if is_sent and not any(word.startswith("--runtime-env") for word in words):
                yield find(source, command.line, "all of the folder is sent along", "--runtime-env, with excludes")


def _waiting(source: Source, line: int, waits: str | None) -> Iterator[Finding]:
    if not waits or not waits.isdigit() or int(waits) <= RAY_WAIT_SEC:
        yield find(
            source,
            line,
            f"symmetric-run gives up after {waits or RAY_WAIT_SEC} s, and a node's start may take that long",
            f"export {SYMMETRIC_WAIT}=600",
        )


def _addresses(jobs: JobSet) -> Iterator[Finding]:
    """A host's name may stand for loopback (Debian's 127.0.1.1) or for an address of another network."""
    for source in (each for each in jobs.sources if each.kind is FileKind.SHELL):
        for number, line in enumerate(source.text.splitlines(), 1):
            if re.search(r"^[^#]*\bhostname\s+(?:--ip-address|-i\b|-I\b|--all-ip)", line):
                yield find(
                    source,
                    number,
                    "the address that a name resolves to may be loopback or of another network",
                    "ask an interface: ip -4 -o addr show NAME",
                )


def _own_ray(source: Source, line: int, words: Sequence[str]) -> Iterator[Finding]:
    given = {word.partition("=")[0] for word in words}
    wanted = ("--temp-dir", "--port", "--dashboard-port", "--dashboard-agent-listen-port")
    if lacking := [option for option in wanted if option not in given]:
        yield find(source, line, f"meets another Ray on the machine: without {', '.join(lacking)}", "its own of each")


def _slurm(jobs: JobSet) -> Iterator[Finding]:
    for script in jobs.slurm:
        commands = [command for command in jobs.commands if command.script is script]
        if commands and not script.has("requeue"):
            yield find(
                script.source, script.line("requeue"), "a job that loses its node is not started again",
                "#SBATCH --requeue: the same command resumes",
            )  # fmt: skip
        if any("symmetric-run" in command.words for command in script.source.commands):
            if not script.has("exclusive"):
                yield find(
                    script.source, script.line("exclusive"), "symmetric-run ends every Ray of the user on its nodes",
                    "#SBATCH --exclusive",
                )  # fmt: skip
            if variables_set(script.source).get("RAY_AUTH_MODE") != "token":
                yield find(script.source, 1, "whoever reaches this Ray runs code in it", "export RAY_AUTH_MODE=token")
        yield from _when_time_runs_out(script, commands)


def _when_time_runs_out(script: SlurmScript, commands: Sequence[Command]) -> Iterator[Finding]:
    """Slurm's `--requeue` is for lost nodes: who ends at the signal before the limit goes into the queue by himself."""
    signal = re.fullmatch(r"(?:([RB]+):)?(?:SIG)?(\w+?)(?:@\d+)?", script.value("signal"))
    if not commands or signal is None:
        return
    own = [command.words for command in script.source.commands if not command.comment]
    if not any("scontrol requeue" in " ".join(words) for words in own):
        yield find(
            script.source, script.line("signal"), "a job whose time runs out is not started again",
            'scontrol requeue "${SLURM_JOB_ID}" where it has ended',
        )  # fmt: skip
    if "B" not in (signal[1] or ""):
        return
    # bash runs a trap when the command before it has ended, and `wait` ends at once
    trapped = any(words[:1] == ("trap",) and {signal[2], f"SIG{signal[2]}"} & {*words[2:]} for words in own)
    waits = any(words[:1] == ("wait",) for words in own)
    behind = re.search(r"^[^#\n]*[^&#\n]&\s*$", script.source.text, re.MULTILINE)
    at, name = script.line("signal"), signal[2]
    if not trapped:
        yield find(script.source, at, f"the batch shell gets {name}, and has no trap for it", f"trap '...' {name}")
    if not (waits and behind):
        what = f"the batch shell acts upon {name} only when its command has ended"
        yield find(script.source, at, what, 'COMMAND & wait "$!"')


def _shared_memory(run: Loaded) -> Iterator[Finding]:
    """Loader processes hand batches over in /dev/shm, of which a container has 64 MB if nothing is said."""
    config: Any = run.config
    if run.command.module != "train.pixart" or not config.data.workers:
        return
    side = config.model.sample_size
    for pod in run.command.pods:
        volume = pod.volume_at("/dev/shm")  # noqa: S108 - the mount is looked at, nothing is written
        needed = loader_bytes(
            workers=config.data.workers,
            images=config.batch.per_device,
            latent_shape=(config.model.latent_channels, side, side),
            condition_shape=(AST_VECTORS, config.model.caption_channels),
            processes=int(pod.gpus) or 1,
        )
        if volume is None or not volume.in_memory:
            yield find(pod.source, pod.line, f"{pod.name}: loader processes have no /dev/shm", "emptyDir in Memory")
        elif volume.size_bytes is not None and volume.size_bytes < needed:
            yield find(
                pod.source, volume.line,
                f"{pod.name}: /dev/shm has {volume.size_bytes / 2**30:.1f} Gi, and the {config.data.workers} loader"
                f" processes of each device may hold {needed / 2**30:.1f} Gi",
            )  # fmt: skip


def _time_to_save(run: Loaded) -> Iterator[Finding]:
    """Whoever ends a training leaves it the time to write its state."""
    if run.command.module != "train.pixart":
        return
    for pod in run.command.pods:
        grace = pod.spec.at("terminationGracePeriodSeconds")
        if (to_amount(grace.text()) or 30) < SAVING_SEC:
            yield _too_short(pod.source, grace.line, grace.text() or "30", "terminationGracePeriodSeconds")
    script = run.command.script
    if script is not None:
        seconds = script.value("signal").partition("@")[2]
        if not script.value("signal") or int(seconds if seconds.isdigit() else 60) < SAVING_SEC:
            yield _too_short(script.source, script.line("signal"), seconds or "no", "#SBATCH --signal=TERM@...")


def _too_short(source: Source, line: int, seconds: str, key: str) -> Finding:
    return find(
        source, line, f"{seconds} seconds from SIGTERM to the end are too few to save", f"{key}: {SAVING_SEC} or more"
    )

"""The questions about pods, nodes and scripts: is all that they use provided by the set, or told to be brought?"""

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from posixpath import basename

from sonify.doctor.findings import Finding
from sonify.doctor.jobs.commands import Loaded, is_runtime_env
from sonify.doctor.jobs.folder import JobSet, find
from sonify.doctor.jobs.images import misnamed_builds, user_of, variable_of
from sonify.doctor.jobs.pods import GPU, Pod, cluster_of, objects_of, to_amount, variables_of
from sonify.doctor.jobs.runs import loader_bytes
from sonify.doctor.jobs.scripts import GIVEN, SlurmScript, variables_set, variables_used
from sonify.doctor.jobs.text import Kind, Source

# Between the signal that ends a training and the end: the step at work is finished, and some 10 GB of state are
# written at what a shared disk takes, 100 MB/s and more.
SAVING_SEC = 120
# Ray's own limit for nodes to join `symmetric-run`; a single `ray start` took as long on a busy machine.
RAY_WAIT_SEC = 30
SYMMETRIC_WAIT = "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"
# One file of each kind that must stay at home when a job's working folder is sent to a cluster or into an image.
STAY = ("photos/a.jpg", "sounds/a.wav", "runs/mine/run.json", ".venv/bin/python", ".venv-light/bin/python")
GO = ("sonify/cli.py", "train/pixart.py", "configs/sonify/sam.yaml")
# The driver that a release of CUDA needs. Source: NVIDIA, CUDA Toolkit release notes, table of minimum drivers.
DRIVERS = {"12": "525", "13": "580"}
_SECRET_NAME = r"[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY(?:_ID)?)"
_SECRET_TEXT = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|gh[ps]_[A-Za-z0-9]{30,})\b|-----BEGIN [A-Z ]*PRIVATE"
)


def ask_of_set(jobs: JobSet, loaded: Sequence[Loaded]) -> Iterator[Finding]:
    """Every question that is about no single command."""
    asked: tuple[Callable[[JobSet], Iterator[Finding]], ...] = (
        _images, _volumes, _secrets, _literals, _gpu_pods, _gpu_nodes, _amounts, _groups, _ray_versions, _tokens,
        _variables, _files, _ray_commands, _excludes, _drivers, _slurm,
    )  # fmt: skip
    for question in asked:
        yield from question(jobs)
    for run in loaded:
        yield from _shared_memory(run)
        yield from _time_to_save(run)


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
                yield find(
                    claim.source, claim.line, f"{claim.name}: pods of several nodes mount it", "ReadWriteMany"
                )


def _secrets(jobs: JobSet) -> Iterator[Finding]:
    known = {(secret.name, key) for secret in jobs.secrets for key in secret.keys}
    names = {secret.name for secret in jobs.secrets}
    yield from _keys_agree(jobs)
    used: dict[str, tuple[str, str]] = {}
    for pod in jobs.pods:
        for part in pod.containers:
            for name in part.all_of_secrets:
                if name not in names:
                    yield find(pod.source, part.line, f"{pod.name}: nobody is told how to make the secret {name}")
            for variable in (each for each in part.variables if each.secret):
                pair = (variable.secret, variable.key)
                if pair not in known:
                    yield find(
                        pod.source,
                        variable.line,
                        f"{pod.name}: nobody is told how to make the key {variable.key} of the secret {variable.secret}",
                        "kubectl create secret generic NAME --from-literal=KEY=..., in a comment",
                    )
                first = used.setdefault(variable.name, pair)
                if first != pair:
                    yield find(
                        pod.source, variable.line,
                        f"{variable.name} is {pair[1]} of {pair[0]} here and {first[1]} of {first[0]} elsewhere",
                    )  # fmt: skip


def _keys_agree(jobs: JobSet) -> Iterator[Finding]:
    """A secret that is made in several places has the same keys in each, or some of them."""
    for name in dict.fromkeys(secret.name for secret in jobs.secrets):
        told = sorted((each for each in jobs.secrets if each.name == name), key=lambda each: -len(each.keys))
        for secret in told[1:]:
            for key in (each for each in secret.keys if each not in told[0].keys):
                yield find(
                    secret.source, secret.line,
                    f"the secret {name} has a key {key} here, and none of that name in {told[0].source.name}",
                )  # fmt: skip


def _literals(jobs: JobSet) -> Iterator[Finding]:
    """No secret stands in a file: neither one of a known form nor a value for a name that says so."""
    by_name = re.compile(rf"\b({_SECRET_NAME})(?:=|: *|, value: *)[\"']?([A-Za-z0-9+/_.-]{{8,}})")
    for source in jobs.sources:
        for number, line in enumerate(source.text.splitlines(), 1):
            found = by_name.search(line[:2000])
            name = found.group(1) if found and not found.group(2).isupper() else ""
            if name and found and re.fullmatch(r"[.]+|optional|secretKeyRef|token", found.group(2)):
                name = ""
            if name or _SECRET_TEXT.search(line[:2000]):
                yield find(source, number, f"a secret stands here{name and f': {name}'}", "a reference to a secret")
    for pod in jobs.pods:
        for variable in (each for part in pod.containers for each in part.variables):
            if re.fullmatch(_SECRET_NAME, variable.name) and variable.value and not variable.value.startswith("$"):
                yield find(pod.source, variable.line, f"{variable.name} stands here as a value", "valueFrom")
    for source in jobs.sources:
        for node in objects_of(source):
            for key, value in (*node.at("data").items(), *node.at("stringData").items()):
                text = value.text()
                if node.at("kind").text() == "Secret" and text and not re.fullmatch(r"[.<>A-Z_ ]+", text):
                    yield find(source, value.line, f"the secret's {key} stands here", "make it with kubectl create")


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
            yield find(node.source, node.line, f"{node.name}: whoever reaches Ray runs code", "--env RAY_AUTH_MODE=token")


def _amounts(jobs: JobSet) -> Iterator[Finding]:
    for pod in jobs.pods:
        for part in pod.containers:
            for what, asked in part.requests.items():
                limit = part.limits.get(what)
                wanted, most = to_amount(asked.text()), to_amount(limit.text()) if limit else None
                if wanted is None:
                    yield find(pod.source, asked.line, f"{pod.name}: {what} is {asked.text()!r}, no amount")
                elif most is not None and (wanted > most or (what == GPU and wanted != most)):
                    yield find(
                        pod.source, asked.line,
                        f"{pod.name}: asks for {asked.text()} of {what}, and {limit.text() if limit else ''} is its limit",
                    )  # fmt: skip
            if GPU in part.requests and GPU not in part.limits:
                yield find(pod.source, part.requests[GPU].line, f"{pod.name}: a GPU is a limit, too")
            memory = part.amount("memory")
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
    expected = _locked(jobs, "ray") or _installed("ray")
    for source in jobs.sources:
        for node in objects_of(source):
            stated = cluster_of(node).at("rayVersion")
            if stated.given and expected and stated.text() != expected:
                yield find(source, stated.line, f"rayVersion is {stated.text()}, and the lock's {expected}")


def _locked(jobs: JobSet, library: str) -> str:
    lock = jobs.beside("requirements.lock")
    found = re.search(rf"^{library}==(\S+)", lock.read_text(errors="replace"), re.MULTILINE) if lock else None
    return found.group(1) if found else ""


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _tokens(jobs: JobSet) -> Iterator[Finding]:
    for source in jobs.sources:
        for node in objects_of(source):
            cluster = cluster_of(node)
            if cluster.at("headGroupSpec").given and cluster.at("authOptions", "mode").text() != "token":
                yield find(source, cluster.line, "whoever reaches this Ray runs code in it", "authOptions: {mode: token}")


def _variables(jobs: JobSet) -> Iterator[Finding]:
    for source in (each for each in jobs.sources if each.kind is Kind.SHELL):
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
        if source.kind is Kind.OTHER:
            continue
        for number, line in enumerate(source.text.splitlines(), 1):
            for name in pattern.findall(line):
                missing = name not in here and not (jobs.folder / name).exists()
                if missing and "*" not in name:
                    yield find(source, number, f"{name} is not in this set")


def _ray_commands(jobs: JobSet) -> Iterator[Finding]:
    for source in jobs.sources:
        variables = variables_set(source)
        for command in source.commands:
            words = command.words
            if "symmetric-run" in words:
                waits = command.set.get(SYMMETRIC_WAIT) or variables.get(SYMMETRIC_WAIT, "")
                if not waits.isdigit() or int(waits) <= RAY_WAIT_SEC:
                    yield find(
                        source, command.line, f"symmetric-run gives up after {waits or RAY_WAIT_SEC} s, and a node's"
                        " start may take that long", f"export {SYMMETRIC_WAIT}=600",
                    )  # fmt: skip
            if source.kind is Kind.MARKDOWN and words[:2] == ("ray", "stop"):
                yield find(source, command.line, "ray stop ends every Ray of the user on the machine", "end your own")
            if source.kind is Kind.MARKDOWN and words[:2] == ("ray", "start") and "--head" in words:
                yield from _own_ray(source, command.line, words)
            if "submit" in words and words[:2] == ("ray", "job") and "--working-dir" in words:
                if not any(word.startswith("--runtime-env") for word in words):
                    yield find(source, command.line, "all of the folder is sent along", "--runtime-env, with excludes")
        if source.kind is Kind.SHELL:
            for number, line in enumerate(source.text.splitlines(), 1):
                if re.search(r"hostname\s+(?:--ip-address|-i\b|-I\b|--all-ip)", line) and not line.lstrip().startswith("#"):
                    yield find(
                        source, number, "the address that a name resolves to may be loopback or of another network",
                        "ask an interface: ip -4 -o addr show NAME",
                    )  # fmt: skip


def _own_ray(source: Source, line: int, words: Sequence[str]) -> Iterator[Finding]:
    given = {word.partition("=")[0] for word in words}
    wanted = ("--temp-dir", "--port", "--dashboard-port", "--dashboard-agent-listen-port")
    if lacking := [option for option in wanted if option not in given]:
        yield find(source, line, f"meets another Ray on the machine: without {', '.join(lacking)}", "its own of each")


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
    """Whether patterns as `.gitignore` has them leave a file out; of those that fit, the last one counts."""
    fitting = [pattern for pattern in patterns if _fits(path, pattern.strip().removeprefix("!"))]
    return bool(fitting) and not fitting[-1].strip().startswith("!")


def _fits(path: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("**/")
    wanted = pattern.strip("/")
    if not wanted or pattern.startswith("#"):
        return False
    parts = path.split("/")
    if "/" in pattern.rstrip("/"):
        return any(fnmatch("/".join(parts[:n]), wanted) for n in range(1, len(parts) + 1))
    folders = parts[:-1] if pattern.endswith("/") else parts
    return any(fnmatch(part, wanted) for part in folders)


def _drivers(jobs: JobSet) -> Iterator[Finding]:
    """People with GPUs are told which driver the lock's CUDA needs."""
    release = _locked(jobs, "cuda-toolkit").partition(".")[0]
    driver = DRIVERS.get(release)
    prose = "\n".join(source.prose for source in jobs.sources)
    for stage in jobs.stages[-1:] if driver else ():
        if driver and not re.search(rf"{driver}\b", prose):
            yield find(
                stage.source, 1, f"nobody is told that the lock's CUDA {release} needs a driver of {driver} or newer"
            )


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
        for command in script.source.commands:
            given = re.search(r"--nproc[-_]per[-_]node[= ](\d+)", " ".join(command.words))
            if given and int(given.group(1)) != script.gpus_per_node:
                yield find(
                    script.source, command.line,
                    f"{given.group(1)} processes a node, and {script.gpus_per_node} GPUs are asked for",
                )  # fmt: skip


def _shared_memory(run: Loaded) -> Iterator[Finding]:
    """Loader processes hand batches over in /dev/shm, of which a container has 64 MB if nothing is said."""
    workers = getattr(getattr(run.config, "data", None), "workers", 0)
    for pod in run.command.pods if workers else ():
        volume = pod.volume_at("/dev/shm")  # noqa: S108 - the mount is looked at, nothing is written
        needed = loader_bytes(run.config)
        if volume is None or not volume.in_memory:
            yield find(pod.source, pod.line, f"{pod.name}: loader processes have no /dev/shm", "emptyDir in Memory")
        elif volume.size_bytes is not None and volume.size_bytes < needed:
            yield find(
                pod.source, volume.line,
                f"{pod.name}: /dev/shm has {volume.size_bytes / 2**30:.1f} Gi, and its {workers} loader processes a"
                f" device may hold {needed / 2**30:.1f} Gi",
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



"""What Kubernetes, KubeRay and Ray's launcher are asked for: pods, claims and secrets as typed rows."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sonify.doctor.jobs.text import Node, Source

Role = Literal["head", "worker", "submitter", "alone"]
GPU = "nvidia.com/gpu"
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", 1)}


def to_amount(text: str) -> float | None:
    """A quantity of Kubernetes as a number: `500m`, `16Gi`; None where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGT]|[KMGT]i)?", text.strip())
    return float(found.group(1)) * _UNITS[found.group(2) or ""] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Where a container sees a volume."""

    volume: str
    path: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume of a pod; `claim` is empty for one that is none."""

    name: str
    claim: str
    in_memory: bool
    lasting: bool  # what is written there outlives the pod
    size_bytes: float | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of a container: a value that stands there, or the key of a secret."""

    name: str
    value: str
    secret: str
    key: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a pod; amounts are those of its limits, else of its requests."""

    name: str
    line: int
    image: Node
    words: tuple[Node, ...]  # command and args
    variables: tuple[Variable, ...]
    all_of_secrets: tuple[str, ...]  # envFrom
    mounts: tuple[Mount, ...]
    requests: Mapping[str, Node]
    limits: Mapping[str, Node]

    def amount(self, what: str) -> float:
        """How much of a resource it may use."""
        node = self.limits.get(what) or self.requests.get(what)
        return (to_amount(node.text()) or 0.0) if node else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod, or a group of them made by one template; `owner` is the object that makes it."""

    source: Source
    line: int
    name: str
    role: Role
    owner: Node
    spec: Node
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...]
    most: float  # how many at most

    @property
    def gpus(self) -> float:
        """GPUs of one such pod."""
        return sum(container.amount(GPU) for container in self.containers)

    @property
    def tolerated(self) -> tuple[Node, ...]:
        """The tolerations that let it onto nodes kept for GPUs."""
        return tuple(
            node
            for node in self.spec.at("tolerations").each()
            if node.at("key").text() in (GPU, "") and node.at("key").text() + node.at("operator").text()
        )

    def volume_at(self, path: str) -> Volume | None:
        """The volume that a path lies on; the innermost mount wins."""
        mounts = [mount for each in self.containers for mount in each.mounts if is_below(path, mount.path)]
        if not mounts:
            return None
        inner = max(mounts, key=lambda mount: len(mount.path))
        return next((volume for volume in self.volumes if volume.name == inner.volume), None)


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    folder = folder.rstrip("/")
    return bool(folder) and (path == folder or path.startswith(f"{folder}/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of storage that the set makes."""

    name: str
    modes: tuple[str, ...]
    source: Source
    line: int


def objects_of(source: Source) -> Iterator[Node]:
    """The objects of Kubernetes in a file, those of a List among them."""
    for document in source.documents:
        if document.at("apiVersion").given and document.at("kind").given:
            yield from document.at("items").each() if document.at("kind").text() == "List" else (document,)


def read_claims(source: Source) -> Iterator[Claim]:
    """The claims that a file makes."""
    for node in objects_of(source):
        if node.at("kind").text() == "PersistentVolumeClaim":
            modes = tuple(mode.text() for mode in node.at("spec", "accessModes").each())
            yield Claim(name=node.at("metadata", "name").text(), modes=modes, source=source, line=node.line)


def cluster_of(node: Node) -> Node:
    """The cluster that a RayJob or a RayCluster asks for."""
    return node.at("spec", "rayClusterSpec") if node.at("kind").text() == "RayJob" else node.at("spec")


def read_pods(source: Source) -> Iterator[Pod]:
    """The pods that a file's objects make."""
    for node in objects_of(source):
        kind, name = node.at("kind").text(), node.at("metadata", "name").text()
        if kind in ("RayJob", "RayCluster", "RayService"):
            yield from _pods_of_ray(source, node)
        elif kind == "Pod":
            yield _to_pod(source, node, node, name, "alone", 1)
        elif kind == "CronJob":
            yield _to_pod(source, node, node.at("spec", "jobTemplate", "spec", "template"), name, "alone", 1)
        elif node.at("spec", "template", "spec").given:
            most = node.at("spec", "parallelism").text() or node.at("spec", "replicas").text() or "1"
            yield _to_pod(source, node, node.at("spec", "template"), name, "alone", to_amount(most) or 1)


def _pods_of_ray(source: Source, node: Node) -> Iterator[Pod]:
    cluster = cluster_of(node)
    if cluster.at("headGroupSpec").given:
        yield _to_pod(source, node, cluster.at("headGroupSpec", "template"), "head", "head", 1)
    for group in cluster.at("workerGroupSpecs").each():
        most = to_amount(group.at("maxReplicas").text() or group.at("replicas").text() or "1")
        yield _to_pod(
            source, node, group.at("template"), group.at("groupName").text(), "worker", 1.0 if most is None else most
        )
    if node.at("spec", "submitterPodTemplate").given:
        yield _to_pod(source, node, node.at("spec", "submitterPodTemplate"), "submitter", "submitter", 1)


def _to_pod(source: Source, owner: Node, template: Node, name: str, role: Role, most: float) -> Pod:
    spec = template.at("spec")
    containers = (*spec.at("initContainers").each(), *spec.at("containers").each())
    return Pod(
        source=source,
        line=spec.line,
        name=name,
        role=role,
        owner=owner,
        spec=spec,
        containers=tuple(_to_container(node) for node in containers),
        volumes=tuple(_to_volume(node) for node in spec.at("volumes").each()),
        most=most,
    )


def _to_container(node: Node) -> Container:
    mounts = node.at("volumeMounts").each()
    return Container(
        name=node.at("name").text(),
        line=node.line,
        image=node.at("image"),
        words=(*node.at("command").each(), *node.at("args").each()),
        variables=tuple(_to_variable(each) for each in node.at("env").each()),
        all_of_secrets=tuple(each.at("secretRef", "name").text() for each in node.at("envFrom").each()),
        mounts=tuple(
            Mount(volume=each.at("name").text(), path=each.at("mountPath").text(), line=each.line) for each in mounts
        ),
        requests=dict(node.at("resources", "requests").items()),
        limits=dict(node.at("resources", "limits").items()),
    )


def _to_volume(node: Node) -> Volume:
    claim = node.at("persistentVolumeClaim", "claimName").text()
    memory = node.at("emptyDir", "medium").text() == "Memory"
    passing = node.at("emptyDir").given or node.at("secret").given or node.at("configMap").given
    return Volume(
        name=node.at("name").text(),
        claim=claim,
        in_memory=memory,
        lasting=not passing,
        size_bytes=to_amount(node.at("emptyDir", "sizeLimit").text()),
        line=node.line,
    )


def _to_variable(node: Node) -> Variable:
    reference = node.at("valueFrom", "secretKeyRef")
    return Variable(
        name=node.at("name").text(),
        value=node.at("value").text(),
        secret=reference.at("name").text(),
        key=reference.at("key").text(),
        line=node.line,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A type of node of Ray's cluster file, with the options of Docker that act on it."""

    source: Source
    name: str
    line: int
    is_head: bool
    gpus: float
    cpus: float
    most: float
    image: Node
    options: tuple[Node, ...]
    pulls: bool
    setup: tuple[Node, ...]  # commands that prepare it


def is_cluster_file(node: Node) -> bool:
    """Whether a document is one of Ray's launcher."""
    return node.at("cluster_name").given and node.at("provider").given


def read_node_types(source: Source) -> Iterator[NodeType]:
    """The types of nodes of Ray's cluster file."""
    for cluster in (node for node in source.documents if is_cluster_file(node)):
        docker = cluster.at("docker")
        for name, node in cluster.at("available_node_types").items():
            is_head = name == cluster.at("head_node_type").text()
            side = "head" if is_head else "worker"
            own = node.at("docker")
            images = (own.at(f"{side}_image"), own.at("image"), docker.at(f"{side}_image"), docker.at("image"))
            options = [docker.at("run_options"), docker.at(f"{side}_run_options")]
            options += [own.at("run_options"), own.at(f"{side}_run_options")]
            pull = own.at("pull_before_run") if own.at("pull_before_run").given else docker.at("pull_before_run")
            most = node.at("max_workers").text() or cluster.at("max_workers").text() or "1"
            yield NodeType(
                source=source,
                name=name,
                line=node.line,
                is_head=is_head,
                gpus=to_amount(node.at("resources", "GPU").text()) or 0.0,
                cpus=to_amount(node.at("resources", "CPU").text()) or 0.0,
                most=1 if is_head else to_amount(most) or 0.0,
                image=next((image for image in images if image.given), Node(None, node.line)),
                options=tuple(each for part in options for each in part.each()),
                pulls=pull.value is not False,
                setup=_setup_of(cluster, node, side),
            )


def _setup_of(cluster: Node, node: Node, side: str) -> tuple[Node, ...]:
    """The commands of setup that act on a type of node: its own take the place of those for all workers."""
    own = node.at("worker_setup_commands") if side == "worker" else Node(None, node.line)
    parts = (
        cluster.at("initialization_commands"),
        cluster.at("setup_commands"),
        own if own.given else cluster.at(f"{side}_setup_commands"),
    )
    return tuple(each for part in parts for each in part.each())


def mounted_by(options: Sequence[Node]) -> tuple[str, ...]:
    """The folders that Docker's options bring into a container: `-v A:B`, `--mount ...,target=B`."""
    said = " ".join(option.text() for option in options)
    found = re.findall(r"(?:-v|--volume)[ =]\S+?:(/[^:\s]+)", said)
    return (*found, *re.findall(r"(?:target|dst|destination)=(/[^,\s]+)", said))


def variables_of(options: Sequence[Node]) -> dict[str, str]:
    """The variables that Docker's options set; one that is taken from the node has no value."""
    said = " ".join(option.text() for option in options)
    return dict(re.findall(r"(?:-e|--env)[ =]([A-Za-z_]\w*)=?(\S*)", said))

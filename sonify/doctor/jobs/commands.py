"""Our own commands in a folder of jobs: where each runs, and the configuration that it gets.

Their parser lies above this package, and the training configuration beside it: both are loaded by name when a folder
is examined, from beside this package, as the command line loads what it opens (`DOORS` in sonify/cli.py).
"""

import copy
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from posixpath import basename
from typing import Any

from upath import UPath

from sonify.config import Config, Section, make_settings
from sonify.config.loader import apply_override
from sonify.config.shipped import find_config
from sonify.config.text import Text, read_text
from sonify.doctor.jobs.pods import NodeType, Pod, is_cluster_file, objects_of
from sonify.doctor.jobs.scripts import SlurmScript, variables_set
from sonify.doctor.jobs.text import FileKind, Node, Source, Words, expand, split_commands
from sonify.errors import InputError
from sonify.installed import pin_packages

# The options of `train.pixart`, and how many words follow each.
TRAINING_OPTIONS = {"--config": 1, "--dry-run": 0, "--prices": 1}
SHELLS = ("bash", "sh", "/bin/bash", "/bin/sh")
_BEFORE_A_PROGRAM = ("--", "exec", "srun", "nohup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of ours, with the words behind its module, and where it runs.

    No pods, node types or script: on a cluster of which the set says nothing else.
    """

    source: Source
    line: int
    module: str  # sonify, train.pixart
    words: tuple[str, ...]
    pods: tuple[Pod, ...] = ()
    nodes: tuple[NodeType, ...] = ()
    script: SlurmScript | None = None
    num_nodes: int = 1  # of a script
    by_ray: bool = False  # as a job of a Ray cluster, in a folder of its own


@dataclass(frozen=True, slots=True)
class Place:
    """A place that a configuration names, with its key, as it is written there."""

    key: str
    path: str
    is_model: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """A command with its configuration."""

    command: Command
    config: Section
    places: tuple[Place, ...]


def ours_in(words: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The module and the arguments of a command of ours, whatever starts it."""
    end = next((n for n, word in enumerate(words) if word and set(word) <= set("<>&|")), len(words))
    words = unwrap(words[:end])
    if words and words[0] in ("set", "for", "echo", "printf"):
        return None
    for n, word in enumerate(words):
        following = words[n + 1] if n + 1 < len(words) else ""
        before = words[n - 1] if n else "--"
        if word == "-m" and following.partition(".")[0] in ("sonify", "train", "eval"):
            return _through_doors(following, words[n + 2 :])
        if basename(word) == "sonify" and before in _BEFORE_A_PROGRAM and following and not following.startswith("="):
            return _through_doors("sonify", words[n + 1 :])
    return None


def unwrap(words: Sequence[str]) -> Sequence[str]:
    """A command of ours within `bash -c '...' NAME ARGUMENTS`, with its arguments; anything else as it is."""
    for n, word in enumerate(words[:-2]):
        if word in SHELLS and re.fullmatch(r"-\w*c", words[n + 1]):
            arguments = words[n + 4 :]
            for inner in split_commands(words[n + 2], 1):
                given = [part for each in inner.words for part in (arguments if each in ("$@", "$*") else [each])]
                if "-m" in given or "sonify" in map(basename, given):
                    return given
    return words


def _through_doors(module: str, words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    doors: Mapping[str, Any] = import_module("sonify.cli").DOORS
    if module == "sonify" and words and words[0] in doors:
        return doors[words[0]][0], tuple(words[1:])
    return module, tuple(words)


def find_commands(
    sources: Sequence[Source], pods: Sequence[Pod], nodes: Sequence[NodeType], slurm: Sequence[SlurmScript]
) -> Iterator[Command]:
    """Every command of ours in the set, in comments and pages too."""
    for source in sources:
        own_pods = tuple(pod for pod in pods if pod.source is source)
        own_nodes = tuple(node for node in nodes if node.source is source)
        script = next((each for each in slurm if each.source is source), None)
        variables = variables_set(source) if source.kind is FileKind.SHELL else {}
        for words in source.commands:
            found = ours_in(tuple(expand(word, variables) for word in words.words))
            if found is None or (script is not None and not words.comment):
                continue
            by_ray = "submit" in words.words
            yield Command(
                source=source, line=words.line, module=found[0], words=found[1], pods=own_pods, nodes=own_nodes,
                by_ray=by_ray,
            )  # fmt: skip
        if script is not None:
            yield from _of_script(script, sources)
        yield from _of_objects(source, pods)


def _of_script(script: SlurmScript, sources: Sequence[Source]) -> Iterator[Command]:
    """The commands in a Slurm script, for each way to submit it that the set tells."""
    variables = variables_set(script.source)
    prepended = _prepended(script.source)
    uses = list(_submissions(script, sources)) or [(script.source, None)]
    for words in script.source.commands:
        if words.comment:
            continue
        for source, use in uses:
            asked = _option_of(use.words if use else (), "--nodes", "-N") or script.value("nodes", "1")
            nodes = int(asked.split("-")[0]) if asked.split("-")[0].isdigit() else 1
            given = script.variables(nodes) | dict(variables) | (dict(use.set) if use else {})
            arguments = [*prepended, *(_arguments_of(use, script) if use else [])]
            # those of an inner shell stay, which gets them behind its own command
            own = [part for word in words.words for part in (arguments if word in ("$@", "$*") else [word])]
            found = ours_in([word if "$@" in word else expand(word, given) for word in own])
            if found is not None:
                filled = tuple(expand(word, given) for word in found[1])
                at = (source, use.line) if use else (source, words.line)
                yield Command(source=at[0], line=at[1], module=found[0], words=filled, script=script, num_nodes=nodes)


def _prepended(source: Source) -> list[str]:
    """What a script puts before its arguments: `set -- WORD "$@"`."""
    found: list[str] = []
    for command in source.commands:
        if not command.comment and command.words[:2] == ("set", "--") and command.words[-1] == "$@":
            found = [*command.words[2:-1], *found]
    return found


def _submissions(script: SlurmScript, sources: Sequence[Source]) -> Iterator[tuple[Source, Words]]:
    name = script.source.path.name
    for source in sources:
        for words in source.commands:
            if words.words and basename(words.words[0]) == "sbatch" and name in map(basename, words.words):
                exported = _option_of(words.words, "--export")
                pairs = dict(part.split("=", 1) for part in exported.split(",") if "=" in part)
                yield source, Words(words.line, words.words, dict(words.set) | pairs, words.comment)


def _arguments_of(use: Words, script: SlurmScript) -> list[str]:
    names = list(map(basename, use.words))
    return list(use.words[names.index(script.source.path.name) + 1 :])


def _option_of(words: Sequence[str], *names: str) -> str:
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word in names:
            return following
        if word.partition("=")[0] in names and "=" in word:
            return word.partition("=")[2]
    return ""


def _of_objects(source: Source, pods: Sequence[Pod]) -> Iterator[Command]:
    for node in objects_of(source):
        entry = node.at("spec", "entrypoint")
        if node.at("kind").text() == "RayJob" and entry.given:
            own = tuple(pod for pod in pods if pod.owner is node and pod.role in ("head", "worker"))
            own = own or tuple(pod for pod in pods if pod.role in ("head", "worker"))  # clusterSelector
            for words in split_commands(entry.text(), entry.line):
                if found := ours_in(words.words):
                    yield Command(
                        source=source, line=entry.line, module=found[0], words=found[1], pods=own, by_ray=True
                    )
    for pod in (pod for pod in pods if pod.source is source):
        for line, words in container_commands(pod):
            if found := ours_in(words):
                yield Command(source=source, line=line, module=found[0], words=found[1], pods=(pod,))


def container_commands(pod: Pod) -> Iterator[tuple[int, tuple[str, ...]]]:
    """What the containers of a pod run, with the values that its variables have."""
    for container in pod.containers:
        variables = {each.name: each.value for each in container.variables if each.value}
        texts = [node.text() for node in container.words]
        line = container.words[0].line if container.words else container.line
        shell = next((n for n, text in enumerate(texts) if re.fullmatch(r"-\w*c", text)), None)
        if texts and texts[0] in SHELLS and shell is not None and shell + 1 < len(texts):
            script = container.words[shell + 1]
            for words in split_commands(script.text(), script.line):
                yield words.line, tuple(expand(word, variables | dict(words.set)) for word in words.words)
        elif texts:
            yield line, tuple(expand(text, variables) for text in texts)


def load(command: Command, folder: Path, texts: dict[Path, Text]) -> Loaded | None:
    """The configuration that a command gets; None for one that has none, of which only the words are parsed.

    `texts` are the files that were read before.

    Raises:
        InputError: a word, a key, or a value is wrong.
    """
    pin_packages()
    if command.module == "sonify":
        config, overrides = _parse_sonify(command.words)
        kind: type[Section] = Config
    elif command.module == "train.pixart":
        config, overrides = _parse_training(command.words)
        kind = import_module("train.config").TrainConfig
    else:
        return None
    if config is None:
        return None
    path = _find(config, "sonify" if kind is Config else "train", folder)
    text = texts[path] if path in texts else texts.setdefault(path, read_text(path))
    values = copy.deepcopy(text.values)
    for override in overrides:
        apply_override(values, override)
    loaded = make_settings(values, kind, f"config {config}", check_paths=False, lines=text.lines)
    places = tuple(Place(place.key, _as_written(values, place), place.is_model) for place in places_of(loaded, ""))
    return Loaded(command, loaded, places)


def _parse_sonify(words: Sequence[str]) -> tuple[str | None, list[str]]:
    cli = import_module("sonify.cli")
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            arguments, rest = cli.build_parser().parse_known_args(list(words))
    except SystemExit as error:
        if error.code:
            raise InputError(said.getvalue().strip().partition("\n")[0]) from error
        return None, []
    if not hasattr(arguments, "overrides") and not hasattr(arguments, "config"):
        _refuse(rest)
        return None, []
    shortcuts = {key: getattr(arguments, name, None) for name, key in cli.SHORTCUTS.items()}
    overrides = [f"{key}={value}" for key, value in shortcuts.items() if value is not None]
    _refuse([word for word in rest if "=" not in word or word.startswith("-")])
    config = arguments.config
    if config is None and arguments.images and arguments.sounds:
        config = "folder"
    if config is None:
        raise InputError("expected --config F, or --images DIR and --sounds DIR")
    return config, [*overrides, *rest]


def _parse_training(words: Sequence[str]) -> tuple[str, list[str]]:
    """As `train.pixart` parses, whose own parser is behind libraries that need not be here."""
    config = _option_of(words, "--config")
    if not config:
        raise InputError("expected --config F")
    rest: list[str] = []
    todo = list(words)
    while todo:
        word = todo.pop(0)
        option, equals, _ = word.partition("=")
        if option in TRAINING_OPTIONS and not equals:
            del todo[: TRAINING_OPTIONS[option]]
        elif option not in TRAINING_OPTIONS:
            rest.append(word)
    _refuse([word for word in rest if "=" not in word or word.startswith("-")])
    return config, rest


def _refuse(words: Sequence[str]) -> None:
    if words:
        raise InputError(f"unknown argument {words[0][:80]!r}; see --help")


def _find(config: str, family: str, folder: Path) -> Path:
    """The file that a command means, of the checkout that the folder lies in or of those that come along.

    No other place of this machine is looked into, whatever a file says.
    """
    root = folder.absolute().parent
    inside = config[config.index("configs/") :] if "/configs/" in config else config
    for base in (root, folder.absolute()):
        path = base / inside
        if inside and not Path(inside).is_absolute() and ".." not in Path(inside).parts and path.is_file():
            return path
    if Path(inside).is_absolute():
        raise InputError(f"config {config}: not in this set; expected one of it, or one that comes along")
    return find_config(inside, family)


def places_of(section: Section, prefix: str) -> Iterator[Place]:
    """Every place below a section: input, `run_dir`, and models that are folders."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        for part, item in enumerate(value) if isinstance(value, tuple) else [("", value)]:
            key = f"{prefix}{name}" if part == "" else f"{prefix}{name}.{part}"
            if isinstance(item, Section):
                yield from places_of(item, f"{key}.")
            elif isinstance(item, Path | UPath):
                yield Place(key, str(item), is_model=name == "checkpoint")
            elif isinstance(item, str) and name in ("model", "vae", "ast", "roberta") and item.startswith(("/", "$")):
                yield Place(key, item, is_model=True)


def _as_written(values: Mapping[str, Any], place: Place) -> str:
    """The place as the file or the override has it: a relative one was made absolute here."""
    node: Any = values
    for part in place.key.split("."):
        if isinstance(node, Mapping):
            node = node.get(part)
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return place.path
    return node if isinstance(node, str) else place.path


def sections_of(section: Section, prefix: str = "") -> Iterator[tuple[str, Section]]:
    """A section and all below it, with their keys."""
    yield prefix, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        for part, item in enumerate(value) if isinstance(value, tuple) else [("", value)]:
            if isinstance(item, Section):
                key = f"{prefix}.{name}".lstrip(".") + (f".{part}" if part != "" else "")
                yield from sections_of(item, key)


def is_runtime_env(node: Node) -> bool:
    """Whether a document is a runtime environment of Ray's jobs."""
    known = {"excludes", "env_vars", "working_dir", "py_modules", "pip", "uv", "conda", "container", "image_uri"}
    return (
        bool(node.items())
        and {key for key, _ in node.items()} <= known | {"config", "nsight", "py_executable"}
        and (not is_cluster_file(node))
    )

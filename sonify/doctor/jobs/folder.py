"""A folder of jobs as one set: what its files provide each other, and what they tell people to bring."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.doctor.jobs.commands import Command, find_commands
from sonify.doctor.jobs.images import Building, Image, Stage, read_builds, read_stages, short_name
from sonify.doctor.jobs.pods import Claim, NodeType, Pod, objects_of, read_claims, read_node_types, read_pods
from sonify.doctor.jobs.scripts import SlurmScript, read_slurm
from sonify.doctor.jobs.text import FileKind, Source, Unreadable, kind_of, read_source
from sonify.installed import ROOT

MAX_FILES = 500
# Brackets within brackets. Those of scripts that people wrote reach 11; of 14 command substitutions in each other
# shellcheck makes 6 s, and twice that of each more.
MAX_NESTING = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret that the set makes, or says how to make, with the names of its keys."""

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSet:
    """All that was read in a folder."""

    folder: Path
    sources: tuple[Source, ...]
    stages: tuple[Stage, ...]
    images: tuple[Image, ...]
    pods: tuple[Pod, ...]
    claims: tuple[Claim, ...]
    secrets: tuple[Secret, ...]
    nodes: tuple[NodeType, ...]
    slurm: tuple[SlurmScript, ...]
    commands: tuple[Command, ...]

    def told(self, source: Source) -> str:
        """What people who use a file are told: in its comments, and on the set's pages."""
        pages = (each.prose for each in self.sources if each.kind is FileKind.MARKDOWN and each is not source)
        return "\n".join((source.prose, *pages))

    def tells(self, source: Source, word: str) -> bool:
        """Whether people are told of a name as a whole word."""
        return bool(word) and is_named(word, self.told(source))

    def stage_of(self, image: str) -> Stage | None:
        """The stage of a Dockerfile that an image is built of; None where the set does not build it."""
        name, tag = short_name(image)
        return next(
            (made.stage for made in self.images if made.name == name and (made.tag == tag or "$" in made.tag)), None
        )

    @property
    def building(self) -> Building:
        """What the Dockerfiles build with."""
        texts = {source.path.name: source.text for source in self.sources}
        return Building(self.stages, texts)

    def beside(self, name: str) -> Path | None:
        """A file of the checkout that the folder lies in, else of the one that this package lies in."""
        places = (self.folder.absolute().parent / name, ROOT / name)
        return next((place for place in places if place.is_file()), None)

    def locked(self, library: str) -> str:
        """The version of a library in the checkout's lock; empty where there is none."""
        lock = self.beside("requirements.lock")
        text = lock.read_text(errors="replace") if lock else ""
        found = re.search(rf"^{re.escape(library)}==(\S+)", text, re.MULTILINE)
        return found.group(1) if found else ""


def is_named(word: str, text: str) -> bool:
    """Whether a text has a name as a whole word, in capitals or not; a folder of a path in it is none."""
    return re.search(rf"(?<![\w./-]){re.escape(word)}/?(?![\w/-]|\.\w)", text, re.IGNORECASE) is not None


def find(source: Source, line: int, found: str, todo: str = "", outcome: Outcome = Outcome.FAULT) -> Finding:
    """What was found at a line of a file; a fault, if nothing else is said."""
    return Finding(about=f"{source.name}:{line}", outcome=outcome, found=one_line(found), todo=one_line(todo))


def read_folder(folder: Path) -> tuple[JobSet, list[Finding]]:
    """Read every file of a folder; those that cannot be read are findings, and are no part of the set."""
    sources: list[Source] = []
    stages: list[Stage] = []
    findings: list[Finding] = []
    files, is_cut = _files_of(folder)
    if is_cut:
        what = f"holds more than {MAX_FILES} files: those behind {one_line(str(files[-1]))} were not looked at"
        todo = "name a folder that holds the jobs alone"
        findings.append(Finding(about=one_line(str(folder)), outcome=Outcome.NOTE, found=what, todo=todo))
    for path in files:
        name = f"{folder}/{path.relative_to(folder)}"
        try:
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise Unreadable(1, "a link that leads out of the folder")
            source = read_source(path, one_line(name))
            _refuse_deep(source)
            stages += read_stages(source) if source.kind is FileKind.DOCKERFILE else ()
        except Unreadable as error:
            outcome = Outcome.NOTE if kind_of(path) is FileKind.OTHER else Outcome.FAULT
            findings.append(
                Finding(
                    about=f"{one_line(name)}:{error.line}", outcome=outcome, found=one_line(f"not read: {error.what}")
                )
            )
            continue
        sources.append(source)
    return _to_set(folder, sources, stages), findings


def _files_of(folder: Path) -> tuple[list[Path], bool]:
    """The files of a folder without hidden ones, and whether there are more; links to folders are not followed."""
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        found += (Path(where, name) for name in sorted(names) if not name.startswith("."))
        if len(found) > MAX_FILES:
            return found[:MAX_FILES], True
    return found, False


def _refuse_deep(source: Source) -> None:
    """A text that keeps linters busy for ever is given to none.

    Raises:
        Unreadable: brackets lie too deep in each other.
    """
    if source.kind not in (FileKind.SHELL, FileKind.DOCKERFILE):
        return
    depth = 0
    for number, line in enumerate(source.text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        for bracket in re.findall(r"[()\[\]{}]", line):
            # of `case`, some only close
            depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
            if depth > MAX_NESTING:
                raise Unreadable(number, f"more than {MAX_NESTING} brackets open within each other")


def _to_set(folder: Path, sources: Sequence[Source], stages: Sequence[Stage]) -> JobSet:
    pods = [pod for source in sources for pod in read_pods(source)]
    nodes = [node for source in sources for node in read_node_types(source)]
    slurm = [script for source in sources if (script := read_slurm(source)) is not None]
    return JobSet(
        folder=folder,
        sources=tuple(sources),
        stages=tuple(stages),
        images=read_builds(sources, stages),
        pods=tuple(pods),
        claims=tuple(claim for source in sources for claim in read_claims(source)),
        secrets=tuple(secret for source in sources for secret in _read_secrets(source)),
        nodes=tuple(nodes),
        slurm=tuple(slurm),
        commands=tuple(find_commands(sources, pods, nodes, slurm)),
    )


def _read_secrets(source: Source) -> Iterator[Secret]:
    for node in objects_of(source):
        if node.at("kind").text() == "Secret":
            keys = [key for part in ("data", "stringData") for key, _ in node.at(part).items()]
            name = node.at("metadata", "name").text()
            yield Secret(name=name, keys=tuple(keys))
    for command in source.commands:
        words = command.words
        if words[:4] in (("kubectl", "create", "secret", "generic"),) and len(words) > 4:
            told = re.findall(r"--from-(?:literal|file)[ =]([A-Za-z_][\w.-]*)=", " ".join(words))
            yield Secret(name=words[4], keys=tuple(told))

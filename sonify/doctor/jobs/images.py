"""Images: what a Dockerfile builds, under which names, and which programs are on PATH in each."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from posixpath import basename, dirname, join, normpath

from sonify.doctor.jobs.text import Source, Unreadable, expand

BUILDERS = ("docker", "podman", "buildah", "nerdctl")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSTRUCTIONS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined."""

    line: int
    name: str
    rest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of a Dockerfile, what it begins with included."""

    source: Source
    line: int
    name: str
    base: str  # the image or the stage that it begins with
    steps: tuple[Instruction, ...]  # those of the stages below first
    own: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name that something of the set builds."""

    name: str  # without registry and tag
    tag: str
    stage: Stage
    line: int


def short_name(image: str) -> tuple[str, str]:
    """An image's name without its registry, and its tag; what a shell would fill in counts as filled in."""
    whole = re.sub(r"\$\{?\w+(:-)?([^}]*)\}?", r"\2", image) if "$" in image else image
    name = whole.rpartition("/")[2].partition("@")[0]
    name, _, tag = name.partition(":")
    return name, tag or "latest"


def read_stages(source: Source) -> tuple[Stage, ...]:
    """The stages of a Dockerfile.

    Raises:
        Unreadable: it has no FROM first, or an instruction that does not exist.
    """
    stages: list[Stage] = []
    steps: list[Instruction] = []
    for step in [*_instructions(source.text), Instruction(0, "FROM", "")]:
        if step.name not in INSTRUCTIONS:
            raise Unreadable(step.line, f"{step.name[:40]!r} is no instruction of a Dockerfile")
        if step.name == "FROM" and steps and steps[0].name == "FROM":
            stages.append(_to_stage(source, steps, stages))
        elif step.name != "FROM" and not any(done.name == "FROM" for done in steps) and step.name != "ARG":
            raise Unreadable(step.line, f"{step.name} before the first FROM")
        steps = [step] if step.name == "FROM" else [*steps, step]
    if not stages:
        raise Unreadable(1, "a Dockerfile without FROM")
    return tuple(stages)


def _instructions(text: str) -> Iterator[Instruction]:
    begun, first = "", 0
    heredoc = ""
    for number, line in enumerate(text.splitlines(), 1):
        if heredoc:
            begun += f"\n{line}"
            if line.strip() != heredoc:
                continue
            heredoc = ""
        elif line.lstrip().startswith("#") or (not begun and not line.strip()):
            continue
        else:
            first = first if begun else number
            begun += line.strip()
            if begun.endswith("\\"):
                begun = begun[:-1] + " "
                continue
            if found := re.search(r"<<-?[\"']?(\w+)[\"']?", begun):
                heredoc = found.group(1)
                continue
        name, _, rest = begun.partition(" ")
        yield Instruction(first, name.upper(), rest.strip())
        begun = ""
    if begun:
        name, _, rest = begun.partition(" ")
        yield Instruction(first, name.upper(), rest.strip())


def _to_stage(source: Source, steps: Sequence[Instruction], before: Sequence[Stage]) -> Stage:
    words = [word for word in steps[0].rest.split() if not word.startswith("--")]
    named = len(words) >= 3 and words[1].lower() == "as"
    base = words[0] if words else ""
    below = next((stage for stage in before if stage.name == base.lower()), None)
    own = tuple(steps)
    return Stage(
        source=source,
        line=steps[0].line,
        name=words[2].lower() if named else str(len(before)),
        base=base,
        steps=(*(below.steps if below else ()), *own),
        own=own,
    )


def read_builds(sources: Sequence[Source], stages: Sequence[Stage]) -> tuple[Image, ...]:
    """The images that the set builds: `docker build -t NAME [--target STAGE]`, in scripts and in what is told."""
    found: list[Image] = []
    for _, line, words in _build_commands(sources):
        stage = _stage_of(_option(words, "--target"), _option(words, "-f") or _option(words, "--file"), stages)
        for tag in _options(words, "-t", "--tag"):
            name, version = short_name(tag)
            if stage is not None:
                found.append(Image(name=name, tag=version, stage=stage, line=line))
    return tuple(found)


def misnamed_builds(sources: Sequence[Source], stages: Sequence[Stage]) -> Iterator[tuple[Source, int, str]]:
    """Commands that build a stage, or of a Dockerfile, that the set has not."""
    for source, line, words in _build_commands(sources):
        file = _option(words, "-f") or _option(words, "--file")
        target = _option(words, "--target")
        if _stage_of("", file, stages) is None:
            yield source, line, f"no Dockerfile {file or 'of this set'}"
        elif target and "$" not in target and _stage_of(target, file, stages) is None:
            yield source, line, f"no stage {target} in {basename(file) or 'the Dockerfile'}"


def _build_commands(sources: Sequence[Source]) -> Iterator[tuple[Source, int, list[str]]]:
    """Every `docker build`, once for each value that a loop around it gives its variable."""
    for source in sources:
        variables = {name: value for command in source.commands for name, value in command.set.items()}
        loops = {name: values.split() for name, values in re.findall(r"\bfor (\w+) in ([^;\n$]+)", source.text)}
        for command in source.commands:
            words = command.words
            if len(words) < 2 or basename(words[0]) not in BUILDERS or "build" not in words[1:4]:
                continue
            looped = next((name for name in loops if re.search(rf"\$\{{?{name}\b", " ".join(words))), None)
            for value in loops[looped] if looped else [""]:
                known = variables | dict(command.set) | ({looped: value} if looped else {})
                yield source, command.line, [expand(word, known) for word in words]


def _stage_of(target: str, file: str, stages: Sequence[Stage]) -> Stage | None:
    of_file = [stage for stage in stages if not file or "$" in file or stage.source.path.name == basename(file)]
    if target:
        return next((stage for stage in of_file if stage.name == target.lower()), None)
    return of_file[-1] if of_file else None


def _option(words: Sequence[str], name: str) -> str:
    return next(iter(_options(words, name)), "")


def _options(words: Sequence[str], *names: str) -> list[str]:
    found = [after for word, after in pairwise(words) if word in names]
    return found + [word.partition("=")[2] for word in words if word.partition("=")[0] in names and "=" in word]


def variable_of(stage: Stage, name: str) -> str:
    """A variable as ENV and ARG leave it, filled in; empty if none sets it."""
    return _variables(stage).get(name, "")


def _variables(stage: Stage) -> dict[str, str]:
    found = {"PATH": DEFAULT_PATH}
    for step in stage.steps:
        if step.name not in ("ENV", "ARG"):
            continue
        try:
            words = shlex.split(step.rest)
        except ValueError:
            words = step.rest.split()
        if step.name == "ENV" and words and "=" not in words[0]:  # the old form: ENV NAME VALUE
            words = [f"{words[0]}={' '.join(words[1:])}"]
        for word in words:
            key, equals, value = word.partition("=")
            if equals:
                found[key] = expand(value, found)
    return found


def user_of(stage: Stage) -> str:
    """Who its processes are."""
    return next((step.rest.split(":")[0] for step in reversed(stage.steps) if step.name == "USER"), "root")


def folders_of(stage: Stage) -> list[str]:
    """Folders that the image itself holds: where files were copied or made."""
    found = [step.rest for step in stage.steps if step.name == "WORKDIR"]
    for step in stage.steps:
        if step.name in ("COPY", "ADD") and step.rest.split():
            found.append(_absolute(step.rest.split()[-1], stage))
    return [place for place in found if place.startswith("/") and normpath(place) != "/"]


def _absolute(place: str, stage: Stage) -> str:
    work = next((step.rest for step in reversed(stage.steps) if step.name == "WORKDIR"), "/")
    return normpath(join(work, expand(place, _variables(stage))))


@dataclass(frozen=True, slots=True)
class Building:
    """What a stage may take from: the other stages, and the files of the set by their names."""

    stages: Sequence[Stage]
    files: Mapping[str, str]


def has_program(stage: Stage, program: str, building: Building) -> bool:
    """Whether an image has a program: one with a path at that path, else on its PATH."""
    places = _places_of(stage, basename(program), building)
    if "/" in program:
        return normpath(program) in places
    path = variable_of(stage, "PATH").split(":")
    return any(dirname(place) in path for place in places)


def _places_of(stage: Stage, program: str, building: Building) -> set[str]:
    """Where a program lies in an image, as far as its steps tell: installed, linked or copied there."""
    found: set[str] = set()
    for step in stage.steps:
        if step.name == "RUN":
            text = expand(step.rest, _variables(stage))
            found |= _installed_by(text, program) | _linked_by(text, program) | made_by(text, program, building)
        elif step.name in ("COPY", "ADD"):
            found |= _copied_by(step.rest, program, stage, building)
    return found


def _installed_by(text: str, program: str) -> set[str]:
    """Where a command installs a package that has the program's name: `pip install vllm==1.0` and its like."""
    found: set[str] = set()
    for part in re.split(r"&&|;|\n", text):
        wanted = re.search(rf"(?:^|[\s/'\"]){re.escape(program)}(?=$|[\s=<>~!\['\".\-])", part)
        if not wanted or not re.search(r"\binstall\b|\bsync\b|\bvenv\b", part):
            continue
        prefixes = re.findall(r"(/[\w./-]+?)/bin/(?:python|pip|uv)", part)
        prefixes += re.findall(r"(?:--python|--prefix|\bvenv)[ =](?:--\S+ )*(/[\w./-]+)", part)
        found |= {f"{prefix.removesuffix('/bin/python')}/bin/{program}" for prefix in prefixes}
        if not prefixes:
            found |= {f"/usr/local/bin/{program}", f"/usr/bin/{program}"}
    return found


def _linked_by(text: str, program: str) -> set[str]:
    found: set[str] = set()
    for link in re.findall(r"\bln\s+-s\S*\s+([^;&|\n]+)", text):
        *targets, last = link.split() or [""]
        into = last.endswith("/") or len(targets) > 1
        found |= {join(last, basename(target)) if into or basename(last) == "bin" else last for target in targets}
    return {place for place in found if basename(place) == program}


def made_by(text: str, program: str, building: Building) -> set[str]:
    """What a script of the set puts into PREFIX/bin: `bash jobs/engines.sh PREFIX vllm`, or all that it names."""
    found: set[str] = set()
    for script, rest in re.findall(r"(?:^|[\s;&`])(\S+\.sh)((?:[ \t]+[^\s;&|`)]+)*)", text):
        body = building.files.get(basename(script), "")
        prefix, *names = rest.split() or [""]
        wanted = program in names if names else re.search(rf"[\s-]{re.escape(program)}\b", body)
        if prefix and wanted and re.search(r"/bin/(?:\$\{?\w+|" + re.escape(program) + ")", body):
            found.add(join(prefix, "bin", program))
    return found


def libraries_of(stage: Stage, building: Building) -> str | None:
    """The locks that the environment of an image's first `python` was installed from; None where none is named."""
    home = dirname(variable_of(stage, "PATH").partition(":")[0])
    origins = [stage]
    for step in stage.steps:
        words = step.rest.split()
        origin = next((word.partition("=")[2] for word in words if word.startswith("--from=")), "")
        if step.name == "COPY" and origin and home.startswith(_absolute(words[-1], stage)):
            origins += [each for each in building.stages if each.name == origin.lower()]
    steps = [step.rest for each in origins for step in each.steps if step.name == "RUN"]
    named = [basename(name) for text in steps for name in re.findall(r"(?:-r|--requirement)[ =](\S+)", text)]
    texts = [building.files[name] for name in named if name in building.files]
    return "\n".join(texts) if texts else None


def _copied_by(text: str, program: str, stage: Stage, building: Building) -> set[str]:
    words = [word for word in text.split() if not word.startswith("--")]
    if len(words) < 2:
        return set()
    *origins, target = words
    to = _absolute(target, stage)
    origin_stage = next((word.partition("=")[2] for word in text.split() if word.startswith("--from=")), "")
    other = next((each for each in building.stages if each.name == origin_stage.lower()), None)
    if other is None or other is stage:
        return {join(to, program) for origin in origins if basename(origin) == program} | (
            {to} if basename(to) == program else set()
        )
    found: set[str] = set()
    remaining = Building([each for each in building.stages if each is not other], building.files)
    for place in _places_of(other, program, remaining):
        for origin in origins:
            if place == origin:
                found.add(join(to, program) if target.endswith("/") else to)
            elif place.startswith(f"{origin.rstrip('/')}/"):
                found.add(to + place[len(origin.rstrip("/")) :])
    return found

"""The configurations that come along: where they are, how they are named, and one of them as a file to edit."""

import shlex
from pathlib import Path

from sonify import layout
from sonify.errors import InputError, did_you_mean
from sonify.installed import shipped_configs, spell
from sonify.stores import expand_user

ENDINGS = (".yaml", ".yml")
# The command that reads those of each folder, and how it is told of one.
COMMANDS = {
    "sonify": (("run",), ("--config",)),
    "train": (("train",), ("--config",)),
    "eval": (("eval", "prepare"), ("--out", "SUITE", "--config")),
    "baselines": (("eval", "baseline"), ("--suite", "SUITE", "--out", "FOLDER", "--recipe")),
}
# Trainers beside that of `sonify train`, by the names of what they read.
TRAINERS = {"audiotoken": "train.audiotoken", "audiotoken_smoke": "train.audiotoken"}
TRAINERS |= {"projector": "train.projector", "projector_smoke": "train.projector"}
# The networks that judge lie beside the suites.
TOWERS = {("eval", "towers"), ("eval", "random")}
TOWERS_COMMAND = (("eval", "run"), ("--suite", "SUITE", "--manifest", "FOLDER", "--out", "REPORT", "--towers"))


def find_config(name: str | Path, family: str) -> Path:
    """The file that `--config` means: one that exists, else one of those that come along for this family of commands.

    Raises:
        InputError: there is neither; what may have been meant is named.
    """
    if not str(name):
        raise InputError("config: expected a file or a name, found nothing: is a variable of the shell not set?")
    try:
        path = expand_user(str(name))
        if path.exists() and not path.is_dir():
            return path
    except (OSError, ValueError) as error:
        raise InputError(f"config {str(name)[:80]}: not a path: {getattr(error, 'strerror', None) or error}") from error
    folder, stem = _parts(name, family)
    known = shipped_names()
    if stem in known.get(folder, ()):
        if folder != family:
            theirs, ours = (spell(*COMMANDS[each][0]) for each in (folder, family))
            raise InputError(f"config {name}: is one for `{theirs}`, not `{ours}`")
        return shipped_configs() / folder / f"{stem}.yaml"
    if path.is_dir():
        hint = "a run's settings are in its run.json" if (path / layout.RUN).is_file() else "--config takes a YAML file"
        raise InputError(f"config {name}: is a folder; {hint}")
    ours = known.get(family, [])
    hint = did_you_mean(path.name, [each.name for each in _files_in(path.parent)]) or did_you_mean(stem, ours)
    raise InputError(f"config {name}: no such file, nor one that comes along ({', '.join(ours)}){hint}")


def family_of(name: str | Path) -> str | None:
    """Whose commands read a configuration that comes along; None where none is of that name."""
    wanted, stem = _parts(name, "")
    return next((each for each, names in shipped_names().items() if stem in names and wanted in ("", each)), None)


def shipped_names() -> dict[str, list[str]]:
    """The names of the configurations that come along, by whose commands read them."""
    folders = {family: _files_in(shipped_configs() / family) for family in COMMANDS}
    return {family: sorted(path.stem for path in files) for family, files in folders.items()}


def list_shipped() -> list[str]:
    """A line for each configuration that comes along: its name, and what it is for."""
    named = {path: path.stem if family == "sonify" else f"{family}/{path.stem}" for family, path in _all()}
    width = max(map(len, named.values()), default=0)
    return [f"{name:{width}}  {_first_line(path)}" for path, name in named.items()]


def write_config(name: str, folder: Path = Path()) -> str:
    """Copy one of the configurations that come along into a folder, to edit; say what comes next.

    Raises:
        InputError: there is none of that name, or a file of its name is there already.
    """
    wanted, stem = _parts(name, "")
    found = [(family, path) for family, path in _all() if path.stem == stem and wanted in ("", family)]
    if not found:
        names = [path.stem for _, path in _all()]
        raise InputError(f"init {name}: expected one of {', '.join(names)}{did_you_mean(stem, names)}")
    family, shipped = found[0]
    path = folder / shipped.name
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(shipped.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise InputError(
            f"{path}: is there already and stays as it is; `init {name}` writes a new file only"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    if family == "train" and stem in TRAINERS:
        return f"{path}: edit it, then: python -m {TRAINERS[stem]} --config {shlex.quote(str(path))}"
    command, options = TOWERS_COMMAND if (family, stem) in TOWERS else COMMANDS[family]
    words = spell(*command, *options, path, *(["--dry-run"] * (family == "sonify")))
    return f"{path}: edit it, then: {words}"


def _parts(name: str | Path, family: str) -> tuple[str, str]:
    """The family and the bare name of what may be one of ours: `folder`, `sonify/folder.yaml`, `configs/sonify/...`."""
    text = Path(name).as_posix().removeprefix("configs/")
    for ending in ENDINGS:
        text = text.removesuffix(ending)
    folder, _, stem = text.rpartition("/")
    return folder or family, stem


def _all() -> list[tuple[str, Path]]:
    return [
        (family, shipped_configs() / family / f"{name}.yaml")
        for family, names in shipped_names().items()
        for name in names
    ]


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _files_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix in ENDINGS]
    except OSError:
        return []

"""Recipes: how the pictures of a model come about, each a YAML file; `kind` says which of four ways.

`command` runs a program, `images` takes a folder of pictures in, `shuffled` and `references` are controls.
`in_the_wild` has the settings of a program that comes along, and becomes its command.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.baselines.folder import List
from eval.baselines.wild.config import InTheWild
from eval.suites.config import LocalPath, load_kind
from eval.towers.config import Sha256
from sonify.config.inputs import Model, Section
from sonify.config.shipped import find_config
from sonify.errors import InputError
from sonify.installed import ROOT
from sonify.io.commits import digest_of
from sonify.io.write import sha256_of
from train.manifest import Heard, OutsideSettings

FAMILY = "baselines"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+\[\]-]*$"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")
PLACEHOLDERS = ("sounds", "out", "seed", "seeds", "model", "python", "packages", "interpreter", "adapters", "checkout")
ADAPTERS = ROOT / "eval" / "baselines" / "adapters"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HeardBy(Section):
    """What the model hears of a sound: at which rate, how long, and what it does with a shorter one."""

    sample_rate_hz: int = Field(ge=1)
    seconds: float = Field(gt=0)
    repeat: str


class Sampling(Section):
    """How the model samples, as far as it is known."""

    guidance: float | None = None
    steps: int | None = Field(default=None, ge=0)


class About(Section):
    """What is known of a model that is not of this project; it goes into the manifest."""

    name: Annotated[str, Field(pattern=NAME, max_length=80)]
    repository: str | None = None
    commit: str | None = None
    trained_on: tuple[str, ...] = ()
    heard: HeardBy | None = None
    image_px: int | None = Field(default=None, ge=1)
    settings: Sampling = Sampling()
    licence: str | None = None
    deterministic: bool = False  # the same picture for every seed; else two pictures that are equal are an error


class CommandRecipe(About):
    """A program that makes the pictures, by the protocol of docs/evaluation.md.

    `command` and `env` may hold `{sounds}`, `{out}`, `{seed}`, `{seeds}`, `{model}`, `{python}` (this one) and
    `{packages}` (where `sonify` lies). Where `cwd` is null the program runs in its output folder. `weights` are
    relative to `cwd`.

    Of a project with an environment of its own: `{interpreter}` (the Python of that environment), `{adapters}` (scripts
    that come along and speak the protocol for it), `{checkout}` (`cwd`, where its repository is at `commit`). `needs`
    are files below `cwd` without which it cannot run; they are hashed as the command's own files are.
    """

    kind: Literal["command"] = "command"
    command: tuple[str, ...] = Field(min_length=1)
    cwd: LocalPath | None = None
    env: dict[str, str] = Field(default_factory=dict)
    takes: List
    model: Model | None = None
    weights: dict[str, Sha256] = Field(default_factory=dict)
    interpreter: LocalPath | None = None
    needs: tuple[str, ...] = ()
    timeout_s_per_image: float = Field(default=600, gt=0)
    items_may_be_alike: bool = False  # two items may be one picture where their seed is the same; two seeds may not


class ImagesRecipe(About):
    """Pictures that a model made already: `pattern` names each below `images`, or `table` does, a CSV with the columns
    id (or sound), image and, where there are several of an item, seed."""

    kind: Literal["images"]
    images: LocalPath
    pattern: str = "{id}-{seed}.png"
    table: LocalPath | None = None
    takes: List = "sounds.csv"


class ShuffledRecipe(Section):
    """The control that nothing of a sound is in: its picture is that of another, of other labels and recordings. `of`
    is a folder with the pictures of a model, or `references`."""

    kind: Literal["shuffled"]
    of: Annotated[Literal["references"] | LocalPath, Field(union_mode="left_to_right")] = "references"
    seed: int = 0


class ReferencesRecipe(Section):
    """The control that nothing is better than: the true pictures as they are, each once."""

    kind: Literal["references"]


Recipe = CommandRecipe | ImagesRecipe | ShuffledRecipe | ReferencesRecipe
KINDS: Mapping[str, type[Recipe]] = {
    "command": CommandRecipe,
    "images": ImagesRecipe,
    "shuffled": ShuffledRecipe,
    "references": ReferencesRecipe,
}


IN_THE_WILD = "in_the_wild"


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's YAML file, or one that comes along by its name, with `key=value` overrides.

    Raises:
        InputError: the file, a key, a type or a path is wrong, or a model is to be named and is not.
    """
    path = find_config(name, FAMILY)
    # YAML would read the braces of pattern={id}.png as a mapping
    overrides = [f"pattern={json.dumps(word[8:])}" if word.startswith("pattern={") else word for word in overrides]
    read = load_kind(path, overrides, {**KINDS, IN_THE_WILD: InTheWild}, "command")
    recipe = _in_the_wild(read) if isinstance(read, InTheWild) else read
    if isinstance(recipe, CommandRecipe):
        _check_command(path, recipe)
    if isinstance(recipe, ImagesRecipe) and recipe.table is None and "{id}" not in recipe.pattern:
        raise InputError(f"config {path}: pattern: expected {{id}} in it, found {recipe.pattern!r}")
    return recipe


def _in_the_wild(system: InTheWild) -> CommandRecipe:
    """The command of the system; its files, by their sha256, are weights of it."""
    heard = {"act": (32_000, 10.0, "pad"), "captioner": (16_000, 30.0, "pad")}
    hears = next((heard[key] for key in heard if getattr(system, key) is not None), None)
    options = (
        "--list",
        "{sounds}",
        "--out",
        "{out}",
        "--seed",
        "{seed}",
        "--seeds",
        "{seeds}",
        "--config",
        IN_THE_WILD,
    )
    try:
        weights = {str(path): sha256_of(path) for path in system.files()}
    except OSError as error:
        raise InputError(
            f"{IN_THE_WILD}: {error.filename}: cannot be read ({error.strerror}); expected a file"
        ) from None
    return CommandRecipe(
        name=system.name,
        repository="https://github.com/etilelab/Generating-Realistic-Images-from-In-the-wild-Sounds",
        trained_on=system.trained_on,
        heard=HeardBy(sample_rate_hz=hears[0], seconds=hears[1], repeat=hears[2]) if hears else None,
        settings=Sampling(guidance=system.guidance, steps=system.steps),
        command=("{python}", "-m", "eval.baselines.in_the_wild", *options, *system.words()),
        env={"PYTHONPATH": "{packages}", **system.env},
        takes="sounds_whole.csv",
        weights=weights,
        timeout_s_per_image=system.timeout_s_per_image,
        items_may_be_alike=not system.hears_sound,  # two sounds of one caption are one picture
    )


def _check_command(path: Path, recipe: CommandRecipe) -> None:
    texts = (*recipe.command, *recipe.env.values())
    used = {name for text in texts for name in _PLACEHOLDER.findall(text)}
    if unknown := used - set(PLACEHOLDERS):
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise InputError(f"config {path}: command: expected one of {known}, found {{{min(unknown)}}}")
    if "model" in used and recipe.model is None:
        raise InputError(f"config {path}: model: must be set: the folder or the hub id of a model (model=DIR)")
    if "model" not in used and recipe.model is not None:
        raise InputError(f"config {path}: model: {recipe.model!r} would be ignored: the command has no {{model}}")
    if "interpreter" in used and recipe.interpreter is None:
        raise InputError(
            f"config {path}: interpreter: must be set: the Python of the environment that {recipe.name} is installed in"
            " (interpreter=ENVIRONMENT/bin/python)"
        )
    if "checkout" in used:
        _check_checkout(path, recipe)


def _check_checkout(path: Path, recipe: CommandRecipe) -> None:
    """Refuse a checkout that is not there, is at another commit, or lacks what the program cannot do without."""
    what = f"a checkout of {recipe.repository} at {recipe.commit}"
    if recipe.cwd is None:
        raise InputError(f"config {path}: cwd: must be set: {what} (cwd=DIR)")
    head = _head_of(recipe.cwd)
    if head is not None and recipe.commit is not None and head != recipe.commit:
        raise InputError(
            f"config {path}: cwd: expected {what}, found it at {head}: run `git -C {recipe.cwd} checkout"
            f" {recipe.commit}`, or say that another is meant (commit={head})"
        )
    for name in recipe.needs:
        if not (recipe.cwd / name).is_file():
            raise InputError(
                f"config {path}: needs: no such file: {recipe.cwd / name}; the recipe's head says where it is from"
            )


def _head_of(folder: Path) -> str | None:
    """The commit that a checkout is at; None where nothing tells, as in an archive without history."""
    git = folder / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        name = head.removeprefix("ref: ")
        if name != head:
            loose = git / name
            packed = git / "packed-refs"
            lines = [loose.read_text(encoding="utf-8")] if loose.is_file() else packed.read_text("utf-8").splitlines()
            head = next((line.split()[0] for line in lines if loose.is_file() or line.endswith(f" {name}")), "")
    except (OSError, ValueError, IndexError):
        return None
    return head if _COMMIT.fullmatch(head) else None


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of placeholders; what `values` has not stays."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def standing_values(recipe: CommandRecipe) -> dict[str, str]:
    """The placeholders that have the same value in every run on this machine."""
    return {
        "python": sys.executable,
        "packages": str(ROOT),
        "model": recipe.model or "",
        "interpreter": str(recipe.interpreter or ""),
        "adapters": str(ADAPTERS),
        "checkout": str(recipe.cwd or ""),
    }


def recipe_digest(recipe: Recipe) -> str:
    """The digest of what a recipe says that its pictures depend on: how long it may take is not in it, nor what is
    hashed itself or is of this machine."""
    apart = {"timeout_s_per_image", "licence", "deterministic", "items_may_be_alike", "interpreter", "needs"}
    return digest_of(recipe.model_dump(mode="json", exclude=apart))


def program_files(recipe: CommandRecipe, folder: Path) -> dict[str, str]:
    """The sha256 of each file that the command names, such as `run.py`, or needs; `folder` is where it runs without a
    `cwd`.

    What those files read in turn is not known.

    Raises:
        InputError: one cannot be read.
    """
    cwd = recipe.cwd or folder
    known = {"adapters": str(ADAPTERS), "checkout": str(cwd)}
    words = _command(recipe)
    shared = ["{adapters}/protocol.py"] if any("{adapters}" in word for word in words) else []
    named = {word: cwd / fill_in(word, known) for word in (*words, *shared, *recipe.needs)}
    try:
        return {word: sha256_of(path) for word, path in named.items() if path.is_file()}
    except OSError as error:
        raise InputError(f"{recipe.name}: command: {error.filename}: cannot be read ({error.strerror})") from None


def model_digest(recipe: CommandRecipe, program: Mapping[str, str]) -> str:
    """The digest by which a model is known: of its commit, its weights, its command with the files that it names, and
    what it is told by the environment."""
    return digest_of([recipe.commit, recipe.weights, _command(recipe), recipe.env, dict(program)])


def _command(recipe: CommandRecipe) -> list[str]:
    return [fill_in(word, {"model": recipe.model or ""}) for word in recipe.command]


def outside_settings(recipe: CommandRecipe | ImagesRecipe) -> OutsideSettings:
    """What the manifest says of each picture."""
    heard = recipe.heard
    return OutsideSettings(
        kind="outside",
        command=recipe.command if isinstance(recipe, CommandRecipe) else (),
        repository=recipe.repository,
        commit=recipe.commit,
        heard=Heard(sample_rate_hz=heard.sample_rate_hz, seconds=heard.seconds, repeat=heard.repeat) if heard else None,
        image_px=recipe.image_px,
        guidance=recipe.settings.guidance,
        steps=recipe.settings.steps,
        trained_on=recipe.trained_on,
    )

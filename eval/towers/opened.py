"""Opens the towers that a configuration names."""

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from eval.towers.config import Random, Towers
from eval.towers.random import open_random
from eval.towers.tower import Judges, Tower
from sonify.config.inputs import Section
from sonify.config.loader import load_settings
from sonify.config.shipped import find_config
from sonify.errors import InputError, require

# What each kind needs of the extra `eval`; `eval.towers.KIND` has its `open_KIND`, and torch takes seconds to import.
LIBRARIES: Mapping[str, Sequence[str]] = {
    "inception": ("torch", "safetensors", "torch_fidelity"),
    "clip": ("torch", "safetensors", "timm", "transformers"),
    "dinov2": ("torch", "transformers"),
    "sscd": ("torch", "torchvision"),
    "wav2clip": ("torch", "torchvision", "safetensors"),
    "clap": ("torch", "transformers"),
    "peav": ("torch", "transformers", "timm"),
}


class _File(Section):
    """A file of towers."""

    towers: Towers


def load_towers(path: str | Path, overrides: Sequence[str] = ()) -> Towers:
    """Read a YAML file of `towers:`, or one that comes along by its name, with `key=value` overrides.

    Weights that are not there are the openers' to refuse, which know how they are made.

    Raises:
        InputError: the file, a key or a type is wrong.
    """
    return load_settings(find_config(path, "eval"), overrides, _File, check_paths=False).towers


def open_judges(towers: Towers, roles: Collection[str] | None = None) -> Judges:
    """Open the towers that are not null, or of these the ones for `roles`, so that no weights are asked for in vain.

    Their files are found, hashed and checked; networks are loaded when needed.

    Raises:
        InputError: weights or a library are not there, or weights are others than were asked for.
    """
    asked = {role: section for role, section in towers if roles is None or role in roles}
    sections = {role: section for role, section in asked.items() if section is not None}
    return Judges(**{role: _open(section, role) for role, section in sections.items()})


def _open(section: Section, role: str) -> Tower:
    if isinstance(section, Random):
        return open_random(section, role)
    kind: str = section.kind  # pyright: ignore[reportAttributeAccessIssue] - by which sections are told apart
    require(*LIBRARIES[kind], extra="eval", what=f"towers.{role}")
    try:
        return getattr(import_module(f"eval.towers.{kind}"), f"open_{kind}")(section)
    except InputError as error:
        raise InputError(f"towers.{role}: {error}") from error

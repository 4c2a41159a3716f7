"""Opens the towers that a configuration names."""

import copy
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from eval.towers.config import Random, Towers
from eval.towers.random import open_random
from eval.towers.tower import Judges, Tower
from sonify.config.inputs import Section
from sonify.config.loader import apply_override, load_settings, make_settings
from sonify.config.problems import explain_word
from sonify.config.shipped import find_config
from sonify.errors import InputError, require

PIXELS = ("torch", "torchvision", "torch_fidelity")  # of `eval.towers.pixels`
# What each kind needs of the extra `eval`; `eval.towers.KIND` has its `open_KIND`, and torch takes seconds to import.
LIBRARIES: Mapping[str, Sequence[str]] = {
    "inception": (*PIXELS, "safetensors"),
    "clip": (*PIXELS, "safetensors", "timm", "transformers"),
    "dinov2": (*PIXELS, "safetensors", "transformers"),
    "sscd": (*PIXELS, "safetensors"),
    "wav2clip": ("torch", "torchvision", "safetensors"),
    "clap": ("torch", "safetensors", "transformers"),
    "peav": ("torch", "safetensors", "transformers", "timm"),
}
ALWAYS = ("numpy", "scipy", "pillow", "soxr")  # arithmetic, decoding, resampling
# What metrics name in their definitions: patch and side in pixels, width and depth of the network, width of the space.
CLIPS: Mapping[str, Mapping[str, int]] = {
    "clip_b32": {"patch": 32, "side": 224, "width": 768, "depth": 12, "space": 512},
    "clip_l14": {"patch": 14, "side": 224, "width": 1024, "depth": 24, "space": 768},
    "clip_l14_336": {"patch": 14, "side": 336, "width": 1024, "depth": 24, "space": 768},
}
WAV2CLIP_SPACE = 512


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


def make_towers(sections: object, where: str, overrides: Sequence[str] = ()) -> Towers:
    """Check towers that were recorded, with `key=value` overrides of them; raises as `load_towers`."""
    raw: dict[str, Any] = {"towers": copy.deepcopy(sections)}
    for override, following in zip_longest(overrides, overrides[1:], fillvalue=""):
        if "=" not in override:
            raise InputError(explain_word(override, following, _File))
        apply_override(raw, override)
    return make_settings(raw, _File, where, check_paths=False).towers


def open_judges(towers: Towers, roles: Collection[str] | None = None) -> Judges:
    """Open the towers that are not null, or of these the ones for `roles`, so that no weights are asked for in vain.

    Their files are found, hashed and checked; networks are loaded when needed.

    Raises:
        InputError: weights or a library are not there, or weights are others than were asked for, or than the role's.
    """
    asked = {role: section for role, section in towers if roles is None or role in roles}
    sections = {role: section for role, section in asked.items() if section is not None}
    _check_space(sections)
    return Judges(**{role: _open(section, role) for role, section in sections.items()})


def _open(section: Section, role: str) -> Tower:
    if isinstance(section, Random):
        return open_random(section, role)
    kind: str = section.kind  # pyright: ignore[reportAttributeAccessIssue] - by which sections are told apart
    require(*LIBRARIES[kind], extra="eval", what=f"towers.{role}")
    try:
        open_it = getattr(import_module(f"eval.towers.{kind}"), f"open_{kind}")
        return open_it(section, CLIPS[role]) if kind == "clip" else open_it(section)
    except InputError as error:
        raise InputError(f"towers.{role}: {error}") from error


def _check_space(sections: Mapping[str, Section]) -> None:
    """Refuse a random tower in the place of one of the two that are held against each other, in another width."""
    pair = [(role, sections[role]) for role in ("clip_b32", "wav2clip") if role in sections]
    widths = [section.width if isinstance(section, Random) else WAV2CLIP_SPACE for _, section in pair]
    if len(set(widths)) > 1:
        found = " and ".join(f"towers.{role} of {width}" for (role, _), width in zip(pair, widths, strict=True))
        raise InputError(f"expected vectors of one width, found {found}: they share no space; mend `width`")


def libraries_of(judges: Judges, towers: Towers | None) -> dict[str, str]:
    """The versions of the libraries that vectors and scores rest on, of towers that were opened from sections."""
    opened = [section for role, section in towers or () if section is not None and getattr(judges, role) is not None]
    names = {name for section in opened for name in LIBRARIES.get(section.kind, ())}
    return {name: version(name) for name in sorted({*ALWAYS, *names})}

"""Reading a configuration: YAML and bare `a.b=value` overrides, checked as far as it can be without work.

What is wrong is an `InputError` of one line that names the key, what was expected and what was found. Relative paths
are relative to the directory the command runs in. A configuration that comes along is named bare: `folder`.
"""

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from upath import UPath

from sonify.config.inputs import Section
from sonify.config.models import Tagger
from sonify.config.problems import describe, explain_word, short
from sonify.config.sections import Config
from sonify.config.shipped import find_config
from sonify.config.text import BACKSLASH, read_text, read_value
from sonify.errors import InputError, TransientError
from sonify.stores import Place, kind_of

Settings = TypeVar("Settings", bound=Section)

# Keys whose value is one file and never a folder.
LISTS = (".exclude", ".segments", ".labels", ".table", ".checkpoint", ".model")
# What a run did that was made before these keys were there: the defaults of the first do something else, and of the
# others whoever renders what was published then may not.
KEYS_OF_BEFORE: Mapping[str, Any] = {
    "retrieval.encoder.matching": "words",
    "retrieval.limit": None,
    "retrieval.merge_names": False,
    "audio.min_tail_sec": 1.0,
    "audio.remove_dc": True,
    "audio.downmix": "mean_or_louder",
    "retrieval.hears": "recording",
    "retrieval.top_k_share": 0.02,
    "retrieval.clips_per_recording": 3,
    "retrieval.repeat_recordings": False,
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's YAML file, apply `a.b=value` overrides and check the result.

    Args:
        path: a file, or the name of a configuration that comes along, such as `folder`.
        overrides: each `key=value`, the value as YAML has it.

    Raises:
        InputError: the file, a key, a type or a path is wrong.
    """
    return load_settings(find_config(path, "sonify"), overrides, Config)


def load_settings(path: Path, overrides: Sequence[str], kind: type[Settings], check_paths: bool = True) -> Settings:
    """Do what `load_config` does for a file and any kind of configuration; `check_paths` as in `make_config`."""
    text = read_text(path)
    lines = dict(text.lines)
    for override, following in zip_longest(overrides, overrides[1:], fillvalue=""):
        if "=" not in override:
            raise InputError(explain_word(override, following, kind))
        apply_override(text.values, override)
        key = override.partition("=")[0]
        lines = {known: line for known, line in lines.items() if not f"{known}.".startswith(f"{key}.")}
    return make_settings(text.values, kind, f"config {path}", check_paths, lines)


def make_config(raw: Mapping[str, Any], where: str = "config", check_paths: bool = True) -> Config:
    """Check a plain mapping, as a notebook would write it; `check_paths` asks that the input is there.

    Raises:
        InputError: a key, a type or a path is wrong.
    """
    return make_settings(raw, Config, where, check_paths)


def with_keys_of_before(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with what its run did by the keys that it lacks (`KEYS_OF_BEFORE`)."""
    filled = copy.deepcopy(dict(recorded))
    for key, value in KEYS_OF_BEFORE.items():
        *above, name = key.split(".")
        section: Any = filled
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and (name != "matching" or section.get("kind") in ("text", "hybrid")):
            section.setdefault(name, value)
    return filled


def make_settings(
    raw: Mapping[str, Any],
    kind: type[Settings],
    where: str = "config",
    check_paths: bool = True,
    lines: Mapping[str, int] | None = None,
) -> Settings:
    """Do what `make_config` does for any kind of configuration; `lines` are those of the keys in a file."""
    try:
        # through JSON, whose types are YAML's: lists stand for tuples there, and nothing else is bent
        config = kind.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error.errors(), kind, lines or {})}") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not a mapping of sections: {error}") from error
    if check_paths:
        _check_paths(config, where, lines or {})
    return config


def _check_paths(config: Section, where: str, lines: Mapping[str, int]) -> None:
    for wrong in wrong_paths(config):
        at = f"{where}: {wrong.key}" + (f" (line {lines[wrong.key]})" if wrong.key in lines else "")
        raise InputError(f"{at}: {wrong.what}")


@dataclass(frozen=True, slots=True)
class WrongPath:
    """A key of a configuration, and what is wrong with the place that it names."""

    key: str
    what: str


def wrong_paths(config: Section) -> Iterator[WrongPath]:
    """Every input of a configuration that is not there, in its order; `make_config` stops at the first."""
    run_dir = getattr(config, "run_dir", Path())
    root = _real(run_dir)
    around = {root, *root.parents}
    for key, place in _places(config):
        try:
            kind = kind_of(place)
        except (OSError, ValueError):
            yield WrongPath(key, f"not a path: {short(place)}")
            continue
        except (InputError, TransientError) as error:
            yield WrongPath(key, str(error))
            continue
        if kind is None:
            hint = "" if str(place).isprintable() else f"; {BACKSLASH}"
            yield WrongPath(key, f"no such file or folder: {short(place)}{hint}")
        elif isinstance(config, Config) and _real(place) in around:
            yield WrongPath("run_dir", f"{run_dir} lies inside {key}: the run would read its own output")
        elif key.endswith(LISTS) and kind != "file":
            yield WrongPath(key, f"no such file: {short(place)}")


def _real(place: Place) -> Path:
    """Where a place is, whatever `..` and links lead to it; one in a store is its address."""
    return Path(os.path.realpath(place)) if isinstance(place, Path) else Path(str(place).rstrip("/"))


def _places(section: Section, prefix: str = "") -> Iterator[tuple[str, Place]]:
    """The input that is named anywhere in the configuration, with its key; `run_dir` is no input."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        for part, item in enumerate(value) if isinstance(value, tuple) else [("", value)]:
            key = f"{prefix}{name}" if part == "" else f"{prefix}{name}.{part}"
            if isinstance(item, Section):
                yield from _places(item, f"{key}.")
            elif isinstance(item, Path | UPath) and key != "run_dir":
                yield key, item
    if isinstance(section, Tagger) and section.is_tflite:
        yield f"{prefix}model", Path(section.model)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in a plain mapping, in place."""
    key, _, text = override.partition("=")
    if not all(key.split(".")):
        raise InputError(f"override {short(override)}: expected key=value, such as mix.lufs=[-34,-30]")
    try:
        value = read_value(f"override {short(override)}", text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        hint = "" if text.count("[") == text.count("]") else "; quote it for the shell: 'mix.lufs=[-34, -30]'"
        raise InputError(f"override {short(override)}: the value is not YAML{hint}") from error
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    child = node[_index(node, part, override)] if isinstance(node, list) else node.setdefault(part, {})
    if child is None and isinstance(node, dict):
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"override {short(override)}: {part!r} is {short(child)}, not a section")
    return child


def _index(node: list[Any], part: str, override: str) -> int:
    if part.isascii() and part.isdigit() and int(part) < len(node):
        return int(part)
    before, _, after = override.partition(f".{part}")
    hint = "" if part.isdigit() else f"; did you mean {before}.0.{part}{after}?"
    expected = f"a position from 0 to {len(node) - 1}" if len(node) > 1 else "position 0, the only one"
    raise InputError(f"override {short(override)}: expected {expected}, found {part!r}{hint}")

"""Reading a configuration: YAML and bare `a.b=value` overrides, checked as far as it can be without work.

What is wrong is an `InputError` of one line that names the key, what was expected and what was found. Relative paths
are relative to the directory the command runs in.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from upath import UPath

from sonify.config.sections import Config, Section
from sonify.errors import InputError, TransientError
from sonify.stores import Place, kind_of

Settings = TypeVar("Settings", bound=Section)

# Keys whose value is not shown.
SECRET = frozenset({"api_key_env"})
# Keys whose value is one file and never a folder.
LISTS = (".exclude", ".segments", ".labels", ".table", ".checkpoint")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's YAML file, apply `a.b=value` overrides and check the result.

    Raises:
        InputError: the file, a key, a type or a path is wrong.
    """
    return load_settings(path, overrides, Config)


def load_settings(path: Path, overrides: Sequence[str], kind: type[Settings]) -> Settings:
    """Do what `load_config` does for any kind of configuration."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror}); --config takes a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"config {path}: not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(raw, dict):
        raise InputError(f"config {path}: expected a mapping of sections, found {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return make_settings(raw, kind, where=f"config {path}")


def make_config(raw: Mapping[str, Any], where: str = "config", check_paths: bool = True) -> Config:
    """Check a plain mapping, as a notebook would write it; `check_paths` asks that the input is there.

    Raises:
        InputError: a key, a type or a path is wrong.
    """
    return make_settings(raw, Config, where, check_paths)


def make_settings(
    raw: Mapping[str, Any], kind: type[Settings], where: str = "config", check_paths: bool = True
) -> Settings:
    """Do what `make_config` does for any kind of configuration."""
    try:
        # through JSON, whose types are YAML's: lists stand for tuples there, and nothing else is bent
        config = kind.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        found = error.errors()
        # a tuple none of whose items is right is also called too short
        own = [e for e in found if e["type"] != "too_short"] or found
        raise InputError(f"{where}: {'; '.join(dict.fromkeys(_describe(e) for e in own[:3]))}") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not a mapping of sections: {error}") from error
    if check_paths:
        _check_paths(config, where)
    return config


def _check_paths(config: Section, where: str) -> None:
    run_dir = getattr(config, "run_dir", Path())
    root = run_dir.absolute() if isinstance(run_dir, Path) else run_dir
    around = {str(place).rstrip("/") for place in (root, *root.parents)}
    for key, place in _places(config):
        try:
            kind = kind_of(place)
        except (OSError, ValueError) as error:
            raise InputError(f"{where}: {key}: not a path: {_short(place)}") from error
        except TransientError as error:
            raise InputError(f"{where}: {key}: {error}") from error
        if kind is None:
            raise InputError(f"{where}: {key}: no such file or folder: {_short(place)}")
        if isinstance(config, Config) and str(place).rstrip("/") in around:
            raise InputError(f"{where}: run_dir: {run_dir} lies inside {key}: the run would read its own output")
        if key.endswith(LISTS) and kind != "file":
            raise InputError(f"{where}: {key}: no such file: {_short(place)}")


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


def _short(value: object) -> str:
    """A value as a message shows it: untrusted, so not longer than a line."""
    text = repr(value) if not isinstance(value, Path | UPath) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"override {override!r}: expected key=value, such as mix.lufs=[-34,-30]")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"override {_short(override)}: the value is not YAML") from error
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
        raise InputError(f"override {override!r}: {part!r} is {child!r}, not a section")
    return child


def _index(node: list[Any], part: str, override: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(node):
        raise InputError(f"override {override!r}: expected a position from 0 to {len(node) - 1}, found {part!r}")
    return int(part)


def _describe(error: Any) -> str:
    # pydantic puts the branch of a union into the path (`images.folder.x`, `image.literal['original']`)
    *parents, last = [str(part) for part in error["loc"]] or ["config"]
    kinds = set(_kinds(Section))
    branches = [part for part in parents if part not in kinds and not re.search(r"[\[-]", part)]
    is_branch = error["type"] != "extra_forbidden" and (last in kinds or re.search(r"[\[-]", last))
    key = ".".join(branches if is_branch else [*branches, last]) or "config"
    chosen_by = str(error.get("ctx", {}).get("discriminator", "")).strip("'")
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key; check the spelling"
    if error["type"] == "missing":
        return f"{key}: missing, must be set"
    if error["type"] == "union_tag_not_found":
        return f"{key}.{chosen_by}: missing, must be set"
    if error["type"] == "union_tag_invalid":
        return f"{key}.{chosen_by}: expected one of {error['ctx']['expected_tags']}, found {error['ctx']['tag']!r}"
    message = error["msg"].removeprefix("Value error, ")
    # what stands where a variable's name belongs may be the key itself
    found = "" if error["type"] == "value_error" or last in SECRET else f", found {_short(error['input'])}"
    return f"{key}: {message[0].lower()}{message[1:]}{found}"


def _kinds(section: type[Section]) -> Iterator[str]:
    """What tells the branches of the unions apart, in all sections that there are."""
    for one in section.__subclasses__():
        for name in {"kind", "backend"} & one.model_fields.keys():
            yield from get_args(one.model_fields[name].annotation)
        yield from _kinds(one)
